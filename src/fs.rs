//! Filesystem operations in our own types, without a kernel: what `fuse` calls and tests drive.
//!
//! Every operation is an async function that waits only where the store has to be asked, so that
//! polling it once answers whatever the caches know. Operations that change something are not
//! cancelled half-way: whoever calls them polls them to the end.
//!
//! | file | operations |
//! |---|---|
//! | `lookup` | names to inodes, `getattr` |
//! | `handle`, `refused` | open, read, write, flush, fsync, release, fallocate, lseek, copy_file_range |
//! | `make` | create, mkdir, symlink, mknod |
//! | `remove` | unlink, rmdir |
//! | `rename`, `movedir` | rename |
//! | `intent`, `resume` | records of renames of directories, and what becomes of those broken off |
//! | `dir` | opendir, readdir, readdirplus |
//! | `query` | directories that are terms, with links to what matches |
//! | `node`, `later`, `room` | setattr, extended attributes, readlink, statfs |
//! | `commit`, `merge`, `lost` | a dirty file's way to the store, and what becomes of losers |

mod aside;
mod ask;
mod attach;
mod attr;
mod commit;
mod content;
mod copies;
mod dir;
pub mod errno;
mod handle;
mod inode;
mod intent;
mod kept;
mod late;
mod later;
mod learn;
mod lookup;
mod lost;
mod make;
mod merge;
mod movedir;
mod node;
mod offload;
mod pages;
mod query;
mod reflink;
mod refused;
mod remove;
mod rename;
mod resume;
mod room;
mod series;
mod status;
mod table;
mod target;
mod top;
mod walk;
mod watch;
mod xattr;

pub use attr::{Attr, BLOCK_SIZE, Kind};
pub use dir::{DirEntry, Listed};
pub use errno::{FsError, FsResult};
pub use handle::Opened;
pub use inode::ROOT;
pub use lookup::{Entry, Lookup};
pub use make::Caller;
pub use node::{SetAttr, SetTime};
pub use query::is_of_query;
pub use status::{
    CacheUse, ConflictRecord, DrainReport, ErrorRecord, FsStatus, RenameStatus, Unsent, Untold,
};

use crate::cache::disk::DiskOptions;
use crate::cache::fetch::{FetchOptions, Fetcher};
use crate::cache::listing::ListingCache;
use crate::clock::{self, Instant};
use crate::driver::{AttributeSupport, Capabilities, Driver, ObjectInfo};
use crate::key::Key;
use crate::writeback::stage::{StagingArea, StagingOptions};
use crate::writeback::upload;
use crate::{sys, task};
use futures::FutureExt;
use inode::Inode;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};
use table::Table;

/// The directory of bucketfs' own objects, at the top of each bucket; it never shows.
const HIDDEN: &[u8] = b".bucketfs";

/// How often what is due is looked for.
const TICK: Duration = Duration::from_millis(500);

/// How long attributes and names are believed while a change feed invalidates them.
const WATCHED_TTL: Duration = Duration::from_secs(24 * 3600);

/// How long the kernel believes at most that there is no such name, where there is a feed. It cannot
/// be told to forget all such names when the feed begins, breaks or tells too much at once; asked
/// again, most are answered from what is known here.
const ABSENT_TTL: Duration = Duration::from_secs(10);

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

/// Where the store keeps attributes and does not list them: for which objects they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StatAttrs {
    /// For those that may have some, as far as anybody told.
    #[default]
    Lazy,
    /// For each one.
    Full,
    /// For none; stored ones are not shown and not changed.
    None,
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

/// What is at the top of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Top {
    /// What one bucket holds.
    #[default]
    Bucket,
    /// Buckets, and nothing else.
    Buckets {
        /// Whether `mkdir` and `rmdir` make and remove them.
        may_make: bool,
    },
}

/// Where and how many bytes may wait for their commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StagingRoom {
    /// In memory as many as is usual, then in the staging directory.
    #[default]
    Usual,
    /// In memory, as far as the store would keep them in there as well, but at most half of the
    /// machine's; else as is usual.
    Memory,
    /// So many in memory, of one file and of all, then so many in the staging directory.
    Limited {
        /// Bytes in memory of one file.
        file_memory: u64,
        /// Bytes in memory of all files.
        memory: u64,
        /// Bytes in the staging directory.
        disk: u64,
    },
}

/// Settings of a mounted filesystem.
#[derive(Clone, Debug)]
pub struct FsOptions {
    /// What is mounted: the URL without secrets.
    pub name: String,
    /// What is at the top.
    pub top: Top,
    /// Owner of objects that store none.
    pub uid: u32,
    /// Group of objects that store none.
    pub gid: u32,
    /// Permission bits of files that store none.
    pub file_mode: u32,
    /// Permission bits of directories that store none.
    pub dir_mode: u32,
    /// For which objects attributes are asked that a listing does not tell.
    pub stat_attrs: StatAttrs,
    /// Refuse every change.
    pub read_only: bool,
    /// How long attributes and names are believed.
    pub metadata_ttl: Duration,
    /// How long an absent name is believed absent.
    pub negative_ttl: Duration,
    /// Where `O_EXCL` is decided.
    pub exclusive_create: ExclusiveCreate,
    /// How many keys the rename of a directory may move, if there is a limit.
    pub max_rename: Option<u64>,
    /// Whether opens revalidate.
    pub consistency: Consistency,
    /// Directory of spill files (0700, emptied at mount).
    pub staging_dir: PathBuf,
    /// Largest file that can be staged, in bytes.
    pub staging_size: u64,
    /// Where and how many bytes may wait for their commit.
    pub staging_room: StagingRoom,
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
    /// Where `.query` at the top looks for documents; without, there is no such directory.
    pub query: Option<Arc<dyn Driver>>,
}

/// What the filesystem tells the kernel on its own.
///
/// Telling that only attributes are stale happens at once, for the answer that follows must not
/// overtake it; everything else is queued. Neither blocks, and both may be called under any lock.
pub trait KernelNotify: Send + Sync + std::fmt::Debug + 'static {
    /// Attributes of the inode, and its pages unless `attributes_only`, are stale.
    fn invalidate_inode(&self, inode: u64, attributes_only: bool);
    /// The kernel has put what was appended elsewhere than it is, and believes in another size: from
    /// `at` on the file goes on with `bytes`, to its end. The kernel may be asking for the attributes
    /// just now, and would throw the answer away; this it takes.
    fn goes_on(&self, inode: u64, at: u64, bytes: bytes::Bytes) {
        let _ = (at, bytes);
        self.invalidate_inode(inode, false);
    }
    /// The entry `name` of the directory is stale.
    fn invalidate_entry(&self, parent: u64, name: &[u8]);
}

/// A mounted bucket.
#[derive(Debug)]
pub struct Fs {
    options: FsOptions,
    driver: Arc<dyn Driver>,
    capabilities: Capabilities,
    notify: Arc<dyn KernelNotify>,
    started: SystemTime,
    table: Table,
    listing: Arc<ListingCache>,
    /// Lookups ask for the bytes as well.
    look_aheads: ask::Guess,
    /// Opens are for copies on the server, and need no bytes.
    copies: ask::Guess,
    walk: Mutex<Option<walk::Walk>>,
    series: Mutex<series::AllSeries>,
    fetcher: Arc<Fetcher>,
    area: Arc<StagingArea>,
    handles: Mutex<HashMap<u64, Arc<handle::Handle>>>,
    dir_handles: Mutex<HashMap<u64, Arc<dir::DirHandle>>>,
    queries: query::Queries,
    last_handle: AtomicU64,
    /// Shared by everything that changes the store under a key; taken alone by renames of
    /// directories, which change many keys.
    names: tokio::sync::RwLock<()>,
    dirty: Mutex<BTreeMap<u64, Arc<Inode>>>,
    /// Files that began as copies of others' versions, until they are committed.
    reflinks: Mutex<Vec<Weak<Inode>>>,
    unsent: Mutex<BTreeMap<u64, lost::Waiting>>,
    /// Inodes of which the store does not know all attributes yet.
    changed: Mutex<BTreeMap<u64, Arc<Inode>>>,
    may_be_empty: Mutex<BTreeMap<u64, remove::MayBeEmpty>>,
    renames: intent::Renames,
    /// When an exclusive create was last won on the server.
    acquired: Mutex<Option<Instant>>,
    refused: refused::Refused,
    records: Mutex<Records>,
    room: room::Room,
    uploads: AtomicU64,
    /// The size of the parts in which files go to the store while they are being written.
    part_ahead: Option<u64>,
    /// How files that outgrow the staging area go to the store, where they can.
    rows: Option<offload::Rows>,
    trash: Arc<offload::Trash>,
    runtime: tokio::runtime::Handle,
    watching: AtomicBool,
}

/// What is remembered for `bucketfs status`.
#[derive(Debug, Default)]
struct Records {
    errors: VecDeque<ErrorRecord>,
    conflicts: VecDeque<ConflictRecord>,
}

fn staging(
    options: &FsOptions,
    capabilities: &Capabilities,
    rows: Option<offload::Rows>,
) -> StagingOptions {
    let usual = StagingOptions {
        largest_file: match rows {
            Some(_) => i64::MAX as u64,
            None => options.staging_size,
        },
        ..StagingOptions::new(&options.staging_dir)
    };
    match options.staging_room {
        StagingRoom::Usual => usual,
        StagingRoom::Memory => {
            let kept = capabilities.keeps_bodies.min(sys::memory() / 2);
            StagingOptions {
                memory: usual.memory.max(kept),
                file_memory: usual.file_memory.max(kept),
                ..usual
            }
        }
        StagingRoom::Limited {
            file_memory,
            memory,
            disk,
        } => StagingOptions {
            memory,
            file_memory,
            disk,
            ..usual
        },
    }
}

impl Fs {
    /// A filesystem over a driver. Must be called inside a tokio runtime, on which it keeps a task
    /// that ends with it.
    pub fn new(
        driver: Arc<dyn Driver>,
        options: FsOptions,
        notify: Arc<dyn KernelNotify>,
    ) -> std::io::Result<Arc<Fs>> {
        let started = clock::wall();
        let mut capabilities = driver.capabilities();
        if options.stat_attrs == StatAttrs::None {
            capabilities.attributes = AttributeSupport::None;
            capabilities.set_attributes = false;
            capabilities.special_files = false;
        }
        let root = Attr {
            nlink: 2,
            ..Attr::of_directory(ROOT, None, started, &options)
        };
        let rows = offload::Rows::of(&capabilities, options.staging_size);
        let root = Inode::new(root, Key::empty(), None, clock::now());
        root.state().lookups = 1;
        let fs = Arc::new(Fs {
            table: Table::new(root),
            listing: Arc::new(ListingCache::new(options.listing_entries)),
            look_aheads: ask::Guess::likely(),
            copies: ask::Guess::unlikely(),
            walk: Mutex::default(),
            series: Mutex::default(),
            fetcher: Fetcher::new(
                driver.clone(),
                FetchOptions {
                    disk: options.cache_dir.clone().map(|directory| DiskOptions {
                        namespace: options.name.clone(),
                        dir: directory,
                        size: options.max_cache_size,
                    }),
                    ..FetchOptions::new(options.memory_cache)
                },
            )?,
            area: StagingArea::new(staging(&options, &capabilities, rows))?,
            handles: Mutex::default(),
            dir_handles: Mutex::default(),
            queries: Default::default(),
            last_handle: AtomicU64::new(0),
            names: tokio::sync::RwLock::new(()),
            dirty: Mutex::default(),
            reflinks: Mutex::default(),
            unsent: Mutex::default(),
            changed: Mutex::default(),
            may_be_empty: Mutex::default(),
            renames: Default::default(),
            acquired: Mutex::default(),
            refused: refused::Refused::default(),
            records: Mutex::default(),
            room: room::Room::default(),
            uploads: AtomicU64::new(0),
            part_ahead: upload::part_ahead(&capabilities, options.staging_size),
            rows,
            trash: offload::Trash::new(driver.clone()),
            runtime: tokio::runtime::Handle::current(),
            watching: AtomicBool::new(false),
            started,
            capabilities,
            driver,
            options,
            notify,
        });
        task::spawn(Fs::tick(Arc::downgrade(&fs)));
        task::spawn(lost::retry(Arc::downgrade(&fs)));
        if fs.capabilities.watch {
            task::spawn(watch::follow(Arc::downgrade(&fs)));
        }
        Ok(fs)
    }

    /// Does what is due from time to time, until the filesystem is gone.
    async fn tick(fs: Weak<Fs>) {
        loop {
            tokio::time::sleep(TICK).await;
            let Some(fs) = fs.upgrade() else {
                return;
            };
            let round = async {
                fs.send_due(false).await;
                fs.write_markers(false).await;
                fs.remove_records(false).await;
            };
            // The next one may succeed: what is due stays due.
            if AssertUnwindSafe(round).catch_unwind().await.is_err() {
                log::error!("work in the background panicked; it is tried again");
            }
        }
    }

    /// Records a failure of an operation on an inode; ordinary answers are not.
    pub fn report(&self, operation: &str, ino: u64, error: &FsError) {
        if error.message().is_none() {
            return;
        }
        if query::is_of_query(ino) {
            let path = self.queries.path(ino).unwrap_or_default();
            return self.remember(operation, path, error);
        }
        match self.table.get(ino) {
            // A failed commit has been recorded where it failed.
            Some(inode) if inode.state().last_error == Some(error.to_string()) => {}
            Some(inode) => self.record(operation, &inode, error),
            None => log::warn!("{operation} inode {ino}: {error}"),
        }
    }

    /// Makes a directory's entries durable.
    pub async fn fsyncdir(&self, ino: u64) -> FsResult<()> {
        if query::is_of_query(ino) {
            return Ok(());
        }
        let directory = self.directory(ino)?;
        self.driver.sync(&directory.key()).await?;
        Ok(())
    }

    /// What the driver below can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Takes lookups of an inode back.
    pub fn forget(&self, ino: u64, count: u64) {
        match query::is_of_query(ino) {
            true => self.queries.forget(ino, count),
            false => self.table.forget(ino, count),
        }
    }

    fn next_handle(&self) -> u64 {
        self.last_handle.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// How long attributes and names are believed.
    fn metadata_ttl(&self) -> Duration {
        if self.is_watching() {
            WATCHED_TTL
        } else {
            self.options.metadata_ttl
        }
    }

    /// Whether a change feed invalidates what others change.
    fn is_watching(&self) -> bool {
        self.watching.load(Ordering::Relaxed)
    }

    /// Largest file that can be written.
    fn max_file_size(&self) -> u64 {
        let staged = match self.rows {
            Some(_) => u64::MAX,
            None => self.options.staging_size,
        };
        staged
            .min(upload::largest(&self.capabilities))
            .min(i64::MAX as u64)
    }

    /// Puts a dirty inode on the list, unless it has been committed since it became dirty.
    fn mark_dirty(&self, inode: &Arc<Inode>) {
        let state = inode.state();
        if state.file.dirty {
            let mut dirty = self.dirty.lock();
            dirty.entry(inode.ino).or_insert_with(|| inode.clone());
        }
    }

    /// Notes in the listing what an inode's object is, as of the time when it was asked for, or made:
    /// by the time of the answer somebody else may have changed it.
    fn note_object(&self, inode: &Inode, info: Option<&ObjectInfo>, at: Instant) {
        let Some((parent, name)) = inode.state().place.clone() else {
            return;
        };
        if let Some(component) = self.component(&name) {
            let info = info.cloned().map(Arc::new);
            self.listing
                .changed(&parent.key(), &component, at, |known| known.object = info);
        }
    }

    /// Notes in the listing that an inode is a directory.
    fn note_directory(&self, inode: &Inode, exists: bool) {
        let Some((parent, name)) = inode.state().place.clone() else {
            return;
        };
        if let Some(component) = self.component(&name) {
            self.listing
                .changed(&parent.key(), &component, clock::now(), |known| {
                    known.directory = exists;
                    known.marker = Default::default();
                });
        }
    }

    /// Notes in the listing that a name is a directory.
    fn note_directory_at(&self, parent: &Inode, name: &[u8]) {
        if let Some(component) = self.component(name) {
            self.listing
                .changed(&parent.key(), &component, clock::now(), |known| {
                    known.directory = true;
                    known.marker = Default::default();
                });
        }
    }

    /// What `bucketfs status` shows of the filesystem.
    pub fn status(&self) -> FsStatus {
        let dirty: Vec<Arc<Inode>> = self.dirty.lock().values().cloned().collect();
        let dirty_bytes = dirty
            .iter()
            .map(|inode| {
                let state = inode.state();
                state
                    .file
                    .stage
                    .as_ref()
                    .map_or(0, |stage| stage.dirty_bytes())
            })
            .sum();
        let usage = self.fetcher.usage();
        let records = self.records.lock();
        FsStatus {
            dirty_files: dirty.len() as u64,
            dirty_bytes,
            uploads: self.uploads.load(Ordering::Relaxed),
            handles: (self.handles.lock().len()
                + self.dir_handles.lock().len()
                + self.queries.open()) as u64,
            inodes: (self.table.count() + self.queries.count()) as u64,
            cache: CacheUse {
                memory_bytes: usage.memory,
                disk_bytes: usage.disk,
                listing_entries: self.listing.entries(),
            },
            renames: self.renames.status(),
            conflicts: records.conflicts.iter().cloned().collect(),
            errors: records.errors.iter().cloned().collect(),
        }
    }
}
