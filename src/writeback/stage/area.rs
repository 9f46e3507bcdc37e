//! What all stages share: the memory budget, the directory of spill files and its limit.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Limits of a [`StagingArea`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagingOptions {
    /// Directory of the spill files. It is made when missing, and is readable to its owner only.
    pub dir: PathBuf,
    /// Memory for all stages together, in bytes; a stage that would exceed it spills.
    pub memory: u64,
    /// Memory for one stage, in bytes; a stage that would exceed it spills.
    pub file_memory: u64,
    /// Size of the largest file, in bytes; more is EFBIG.
    pub largest_file: u64,
    /// Room for all spill files together, in bytes; more is ENOSPC.
    pub disk: u64,
}

impl StagingOptions {
    /// 128 MiB of memory, 8 MiB of it for one file, and as much disk as there is.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        StagingOptions {
            dir: dir.into(),
            memory: 128 << 20,
            file_memory: 8 << 20,
            largest_file: i64::MAX as u64,
            disk: u64::MAX,
        }
    }
}

/// Where stages live.
#[derive(Debug)]
pub struct StagingArea {
    options: StagingOptions,
    memory: Arc<Meter>,
    disk: Arc<Meter>,
    /// Whether the directory's filesystem lacks files without a name.
    named: AtomicBool,
}

/// Spill files bear a name only for the moment between their creation and their unlinking.
const PREFIX: &str = "spill-";

impl StagingArea {
    /// Opens the directory, makes it private and removes what a crash has left in it.
    pub fn new(options: StagingOptions) -> io::Result<Arc<Self>> {
        sweep(&options.dir).map_err(|error| {
            let place = options.dir.display();
            io::Error::new(
                error.kind(),
                format!("cannot stage writes in {place}: {error}; choose another --staging-dir"),
            )
        })?;
        Ok(Arc::new(StagingArea {
            memory: Meter::new(options.memory),
            disk: Meter::new(options.disk),
            named: AtomicBool::new(false),
            options,
        }))
    }

    /// Bytes of memory that stages and their snapshots hold.
    pub fn memory(&self) -> u64 {
        self.memory.used()
    }

    /// Bytes that lie in spill files, those of living snapshots included.
    pub fn spilled(&self) -> u64 {
        self.disk.used()
    }

    /// The limits.
    pub fn options(&self) -> &StagingOptions {
        &self.options
    }

    pub(super) fn memory_meter(&self) -> &Arc<Meter> {
        &self.memory
    }

    pub(super) fn disk_meter(&self) -> &Arc<Meter> {
        &self.disk
    }

    /// A new file that vanishes when it is closed. The directory is made again where somebody has
    /// removed it.
    pub(super) fn unnamed_file(&self) -> io::Result<File> {
        match self.open_unnamed() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(&self.options.dir)?;
                self.open_unnamed()
            }
            opened => opened,
        }
    }

    fn open_unnamed(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        if !self.named.load(Ordering::Relaxed) {
            match options
                .clone()
                .custom_flags(libc::O_TMPFILE)
                .open(&self.options.dir)
            {
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)
                    ) =>
                {
                    self.named.store(true, Ordering::Relaxed);
                }
                result => return result,
            }
        }
        let name = format!("{PREFIX}{:016x}", crate::clock::random());
        let path = self.options.dir.join(name);
        let file = options.create_new(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }
}

/// Makes the directory, for nobody else.
fn make(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    std::fs::set_permissions(dir, Permissions::from_mode(0o700))
}

/// Makes the directory private and removes spill files that still have a name.
fn sweep(dir: &Path) -> io::Result<()> {
    make(dir)?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A bounded count of bytes.
#[derive(Debug)]
pub(super) struct Meter {
    used: AtomicU64,
    limit: u64,
}

impl Meter {
    fn new(limit: u64) -> Arc<Self> {
        Arc::new(Meter {
            used: AtomicU64::new(0),
            limit,
        })
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: u64) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.limit)
            })
            .is_ok()
    }
}

/// A part of a meter's count, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    meter: Arc<Meter>,
    bytes: AtomicU64,
}

impl Charge {
    /// A charge of nothing.
    pub fn new(meter: &Arc<Meter>) -> Self {
        Charge {
            meter: meter.clone(),
            bytes: AtomicU64::new(0),
        }
    }

    /// Takes more, or nothing when that would exceed the limit.
    #[must_use]
    pub fn grow(&self, bytes: u64) -> bool {
        let done = self.meter.add(bytes);
        if done {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        done
    }

    /// Takes more, even beyond the limit.
    pub fn force(&self, bytes: u64) {
        self.meter.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives some back.
    pub fn shrink(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.meter.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.meter
            .used
            .fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}
