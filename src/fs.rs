//! Filesystem operations in our own types, without a kernel: what `fuse` calls and tests drive.

mod status;

pub use status::{CacheUse, ConflictRecord, DrainReport, ErrorRecord, FsStatus, Unsent};

use crate::driver::Driver;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Where an exclusive create (`O_EXCL`) is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ExclusiveCreate {
    /// On the server at open, for every name.
    Always,
    /// On the server at open for names that look like locks, else at commit.
    #[default]
    Locks,
    /// At commit.
    Commit,
}

/// Whether an open trusts what is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Every open revalidates.
    #[default]
    CloseToOpen,
    /// Opens trust the metadata TTL.
    Ttl,
}

/// Settings of a mounted filesystem.
#[derive(Clone, Debug)]
pub struct FsOptions {
    /// Owner of objects that store none.
    pub uid: u32,
    /// Group of objects that store none.
    pub gid: u32,
    /// Permission bits of files that store none.
    pub file_mode: u32,
    /// Permission bits of directories that store none.
    pub dir_mode: u32,
    /// Refuse every change.
    pub read_only: bool,
    /// How long attributes and names are believed.
    pub metadata_ttl: Duration,
    /// How long an absent name is believed absent.
    pub negative_ttl: Duration,
    /// Where `O_EXCL` is decided.
    pub exclusive_create: ExclusiveCreate,
    /// Whether opens revalidate.
    pub consistency: Consistency,
    /// Directory of spill files (0700, emptied at mount).
    pub staging_dir: PathBuf,
    /// Largest file that can be staged, in bytes.
    pub staging_size: u64,
    /// Directory where bytes that no store would take are kept (0700).
    pub state_dir: PathBuf,
    /// Memory for cached content, in bytes.
    pub memory_cache: u64,
    /// Directory of the disk cache, if there is to be one.
    pub cache_dir: Option<PathBuf>,
    /// Size of the disk cache, in bytes.
    pub max_cache_size: u64,
    /// Entries kept of listings, over all directories.
    pub listing_entries: usize,
    /// This machine's name, for conflict files.
    pub host: String,
}

/// What the filesystem tells the kernel on its own. Calls only enqueue: they never block and may
/// be made under any lock.
pub trait KernelNotify: Send + Sync + std::fmt::Debug + 'static {
    /// Attributes of the inode, and its pages unless `attributes_only`, are stale.
    fn invalidate_inode(&self, inode: u64, attributes_only: bool);
    /// The entry `name` of the directory is stale.
    fn invalidate_entry(&self, parent: u64, name: &[u8]);
}

/// A mounted bucket.
#[derive(Debug)]
pub struct Fs {
    options: FsOptions,
    driver: Arc<dyn Driver>,
}

impl Fs {
    /// A filesystem over a driver. Must be called inside a tokio runtime.
    pub fn new(
        driver: Arc<dyn Driver>,
        options: FsOptions,
        notify: Arc<dyn KernelNotify>,
    ) -> std::io::Result<Arc<Fs>> {
        let _ = notify;
        Ok(Arc::new(Fs { options, driver }))
    }

    /// Commits everything dirty, within `timeout` without progress. What the store does not take
    /// is saved in the state directory and told in the report.
    pub async fn drain(&self, timeout: Duration) -> DrainReport {
        let _ = (timeout, &self.options, &self.driver);
        DrainReport::default()
    }

    /// What `bucketfs status` shows of the filesystem.
    pub fn status(&self) -> FsStatus {
        FsStatus::default()
    }
}
