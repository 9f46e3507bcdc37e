//! Locks on directories, and names that live for a moment.
//!
//! Each write holds an exclusive `flock` on the directory that its name is in, from the comparison
//! of the etag to the rename. The lock is on the directory itself, so there are no lock files, and
//! it is given back when its descriptor is closed, also by a crash. It keeps out other drivers,
//! in this process or another, not foreign programs.

use super::fail;
use super::path::{HIDDEN, TMP, TMP_PREFIX};
use crate::clock;
use crate::driver::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a lock is waited for. It is held for less than a millisecond at a time by anything
/// but a stopped process.
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes the exclusive lock of an open directory, waiting on a thread that may block.
pub(super) fn lock(dir: &OwnedFd) -> Result<()> {
    flock(dir, FlockOperation::NonBlockingLockExclusive)
}

fn flock(dir: &OwnedFd, operation: FlockOperation) -> Result<()> {
    let mut waited = Duration::ZERO;
    let mut pause = Duration::from_micros(20);
    loop {
        match rustix::fs::flock(dir, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if waited < PATIENCE => {
                // Random, so that nobody of many that wait is always the last.
                let pause_now = pause.mul_f64(0.5 + (clock::random() % 1024) as f64 / 1024.0);
                std::thread::sleep(pause_now);
                waited += pause_now;
                pause = (pause * 2).min(Duration::from_millis(2));
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!(
                        "another process has held the lock of the directory for {} s; \
                         find it with lslocks",
                        PATIENCE.as_secs()
                    ),
                ));
            }
            Err(errno) => {
                return Err(fail(errno, "the directory cannot be locked"));
            }
        }
    }
}

/// Whether directories of this filesystem can be locked (some network filesystems refuse).
pub(super) fn can_lock(dir: &OwnedFd) -> bool {
    let shared = rustix::fs::flock(dir, FlockOperation::NonBlockingLockExclusive);
    match shared {
        Ok(()) => {
            let _ = rustix::fs::flock(dir, FlockOperation::Unlock);
            true
        }
        Err(Errno::WOULDBLOCK) => true,
        Err(_) => false,
    }
}

/// `.bucketfs/tmp`, made when it is needed and removed when the last driver that uses it goes.
///
/// Every driver holds a shared lock on it from its first use on. Who gets the exclusive lock knows
/// that nobody uses it, so that all that is in it was left behind by a crash.
#[derive(Debug)]
pub(super) struct TmpDir {
    root: Arc<OwnedFd>,
    open: Mutex<Option<Arc<OwnedFd>>>,
}

impl TmpDir {
    /// Nothing is made yet.
    pub fn new(root: Arc<OwnedFd>) -> Self {
        TmpDir {
            root,
            open: Mutex::new(None),
        }
    }

    /// The directory; `None` where it cannot be made.
    pub fn get(&self) -> Option<Arc<OwnedFd>> {
        let mut open = self.open.lock();
        if let Some(dir) = &*open {
            match rustix::fs::fstat(dir) {
                Ok(stat) if stat.st_nlink > 0 => return Some(dir.clone()),
                // Somebody removed it.
                _ => *open = None,
            }
        }
        for _ in 0..8 {
            let dir = match self.make() {
                Ok(dir) => dir,
                // Another driver has just removed it.
                Err(Errno::NOENT) => continue,
                Err(errno) => {
                    log::debug!("file: .bucketfs/tmp cannot be made: {errno}");
                    return None;
                }
            };
            flock(&dir, FlockOperation::NonBlockingLockShared).ok()?;
            // The last user may have removed it before the lock was there.
            if rustix::fs::fstat(&dir).is_ok_and(|stat| stat.st_nlink > 0) {
                let dir = Arc::new(dir);
                *open = Some(dir.clone());
                return Some(dir);
            }
        }
        None
    }

    fn make(&self) -> rustix::io::Result<OwnedFd> {
        let exists = |result| match result {
            Err(Errno::EXIST) => Ok(()),
            result => result,
        };
        exists(rustix::fs::mkdirat(
            &self.root,
            HIDDEN,
            Mode::from_raw_mode(0o755),
        ))?;
        let hidden = open_dir(&self.root, HIDDEN)?;
        exists(rustix::fs::mkdirat(
            &hidden,
            TMP,
            Mode::from_raw_mode(0o700),
        ))?;
        open_dir(&hidden, TMP)
    }

    /// Removes what crashed processes left behind, and the directory, if nobody uses it.
    pub fn sweep(&self) {
        let Some(dir) = self.open.lock().take().or_else(|| {
            let hidden = open_dir(&self.root, HIDDEN).ok()?;
            open_dir(&hidden, TMP).ok().map(Arc::new)
        }) else {
            return;
        };
        if rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err() {
            return;
        }
        let Ok(entries) = Dir::read_from(&dir) else {
            return;
        };
        for entry in entries.flatten() {
            if rustix::fs::unlinkat(&dir, entry.file_name(), AtFlags::empty()).is_ok() {
                log::info!(
                    "file: removed {:?}, left behind in .bucketfs/tmp",
                    entry.file_name()
                );
            }
        }
        if let Ok(hidden) = open_dir(&self.root, HIDDEN)
            && rustix::fs::unlinkat(&hidden, TMP, AtFlags::REMOVEDIR).is_ok()
        {
            let _ = rustix::fs::unlinkat(&self.root, HIDDEN, AtFlags::REMOVEDIR);
        }
    }
}

impl Drop for TmpDir {
    fn drop(&mut self) {
        if self.open.lock().is_some() {
            self.sweep();
        }
    }
}

fn open_dir(at: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

/// A name that nobody lists; it is removed with this value unless it was renamed away.
#[derive(Debug)]
pub(super) struct TempName {
    pub dir: Arc<OwnedFd>,
    pub name: Vec<u8>,
    gone: bool,
}

impl TempName {
    /// A fresh name in `.bucketfs/tmp`, or in a directory of keys, whose lock is held as long as
    /// the name lives: who holds that lock and sees such a name knows that it was left behind.
    pub fn new(dir: &Arc<OwnedFd>) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let mut name = TMP_PREFIX.to_vec();
        name.extend_from_slice(format!("{serial:x}-{:016x}", clock::random()).as_bytes());
        TempName {
            dir: dir.clone(),
            name,
            gone: false,
        }
    }

    /// Says that the name is gone.
    pub fn renamed(&mut self) {
        self.gone = true;
    }
}

impl Drop for TempName {
    fn drop(&mut self) {
        if !self.gone {
            let _ = rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty());
        }
    }
}

/// Removes a name that a crash left behind in a directory of keys, unless somebody is at it.
pub(super) fn sweep_name(dir: &OwnedFd, name: &[u8]) {
    // A descriptor of its own, so that the lock ends with it.
    let Ok(own) = open_dir(dir, b".") else { return };
    if rustix::fs::flock(&own, FlockOperation::NonBlockingLockExclusive).is_ok()
        && rustix::fs::unlinkat(&own, name, AtFlags::empty()).is_ok()
    {
        log::info!("file: removed {}, left behind", name.escape_ascii());
    }
}
