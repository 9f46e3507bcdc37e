//! A store, its mounts, and a kernel's manners: names are looked up, counted and forgotten, an
//! ESTALE of open is tried again, close is flush and release.

use crate::store::{Late, Plain};
use bucketfs::driver::memory::Memory;
use bucketfs::driver::{AttributeSupport, Driver, GetOptions, ListRequest, PutOptions};
use bucketfs::fs::{
    Attr, Caller, Consistency, Entry, ExclusiveCreate, Fs, FsOptions, FsResult, KernelNotify,
    Listed, Lookup, Opened, ROOT, SetAttr, Top,
};
use bucketfs::key::Key;
use bucketfs::layer::{FaultPlan, Index, Layered, LocalNames, Retry, RetryOptions, Scratch, Stats};
use futures::FutureExt;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Who asks in tests.
pub const CALLER: Caller = Caller {
    uid: 7,
    gid: 8,
    pid: 9,
};

/// A thread that no other call is of.
fn thread() -> Caller {
    static LAST: AtomicU32 = AtomicU32::new(100);
    Caller {
        pid: LAST.fetch_add(1, Ordering::Relaxed),
        ..CALLER
    }
}

pub const READ: i32 = libc::O_RDONLY;
pub const WRITE: i32 = libc::O_WRONLY;
pub const CREATE: i32 = libc::O_WRONLY | libc::O_CREAT;
pub const REPLACE: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
pub const APPEND: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND;
pub const EXCLUSIVE: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;

/// The errno of a failure.
pub type Outcome<T> = Result<T, i32>;

fn errno<T>(result: FsResult<T>) -> Outcome<T> {
    result.map_err(|error| error.errno())
}

/// The options of a mount that keeps everything in `home`.
pub fn default_options(home: &std::path::Path, number: u32) -> FsOptions {
    FsOptions {
        name: "memory:".into(),
        top: Top::Bucket,
        uid: 1,
        gid: 2,
        file_mode: 0o644,
        dir_mode: 0o755,
        stat_attrs: Default::default(),
        read_only: false,
        metadata_ttl: Duration::from_secs(1),
        negative_ttl: Duration::from_secs(1),
        exclusive_create: ExclusiveCreate::Locks,
        max_rename: None,
        consistency: Consistency::CloseToOpen,
        staging_dir: home.join("staging"),
        staging_size: 1 << 30,
        staging_room: Default::default(),
        state_dir: home.join("state"),
        memory_cache: 64 << 20,
        cache_dir: None,
        max_cache_size: 0,
        listing_entries: 10_000,
        host: format!("host{number}"),
        query: None,
    }
}

/// A store and the directories of its mounts.
pub struct World {
    pub store: Plain,
    pub dir: tempfile::TempDir,
    mounts: AtomicU32,
}

impl World {
    pub fn over(store: Plain) -> World {
        World {
            store,
            dir: tempfile::tempdir().unwrap(),
            mounts: AtomicU32::new(0),
        }
    }

    pub fn memory() -> World {
        World::over(Plain::memory())
    }

    pub fn s3() -> World {
        World::over(Plain::s3())
    }

    pub fn watched() -> World {
        let mut store = Plain::memory();
        store.capabilities.watch = true;
        World::over(store)
    }

    pub fn raw(&self) -> &Memory {
        &self.store.memory
    }

    /// Another mount, whose requests are tried once.
    pub fn mount(&self) -> Mount {
        self.mount_with(|_| {}, false)
    }

    /// Another mount, with the retry layer.
    pub fn retrying(&self) -> Mount {
        self.mount_with(|_| {}, true)
    }

    /// Another mount, on whose machine names stay that match these patterns.
    pub fn mount_local(&self, patterns: &str) -> Mount {
        self.mount_local_with(|_| {}, patterns)
    }

    pub fn mount_local_with(&self, change: impl FnOnce(&mut FsOptions), patterns: &str) -> Mount {
        let names = LocalNames::parse(patterns).unwrap();
        let over = |driver| {
            let local = Arc::new(Memory::new());
            Arc::new(Scratch::over(driver, local, names, false).unwrap()) as Arc<dyn Driver>
        };
        self.mount_over(change, false, over)
    }

    pub fn mount_with(&self, change: impl FnOnce(&mut FsOptions), retry: bool) -> Mount {
        self.mount_over(change, retry, |driver| driver)
    }

    fn mount_over(
        &self,
        change: impl FnOnce(&mut FsOptions),
        retry: bool,
        over: impl FnOnce(Arc<dyn Driver>) -> Arc<dyn Driver>,
    ) -> Mount {
        let number = self.mounts.fetch_add(1, Ordering::Relaxed) + 1;
        let home = self.dir.path().join(format!("{number}"));
        let mut options = default_options(&home, number);
        let fault = Arc::new(FaultPlan::none());
        let stats = Arc::new(Stats::default());
        let late = Arc::new(Late::default());
        let driver = Layered::over(Arc::new(self.store.clone()), late.clone());
        let driver = Layered::over(driver, fault.clone());
        let mut driver = Layered::over(driver, stats.clone());
        if retry {
            driver = Arc::new(Retry::new(driver, RetryOptions::default()));
        }
        if self.store.capabilities.attributes == AttributeSupport::Object {
            let index = Index::over(driver, false, true);
            let begun = tokio::task::unconstrained(index.begin());
            // Where others hold the memory just now, the first listing asks.
            begun.now_or_never();
            driver = index;
        }
        let kernel = Arc::new(Kernel::default());
        options.query = Some(driver.clone());
        change(&mut options);
        let state = options.state_dir.clone();
        let fs = Fs::new(over(driver), options, kernel.clone()).unwrap();
        let mount = Mount {
            fs,
            fault,
            late,
            stats,
            kernel,
            state,
            counted: Mutex::default(),
            paid: Mutex::default(),
        };
        // What a mount asks before it is there.
        mount.cost();
        mount
    }

    /// Removes what mounts that have ended kept on disk.
    pub fn forget_homes(&self) {
        for home in std::fs::read_dir(self.dir.path()).unwrap() {
            std::fs::remove_dir_all(home.unwrap().path()).unwrap();
        }
    }

    /// Writes an object behind all mounts' backs.
    pub async fn put(&self, key: &str, bytes: &str) {
        self.put_bytes(key.as_bytes(), bytes.as_bytes()).await;
    }

    pub async fn put_bytes(&self, key: &[u8], bytes: &[u8]) {
        let (key, body) = (Key::from(key), bytes.to_vec().into());
        let put = self.raw().put(&key, body, PutOptions::default());
        put.await.unwrap();
    }

    /// Removes an object behind all mounts' backs.
    pub async fn delete(&self, key: &str) {
        let key = Key::from(key);
        self.raw().delete(&key, Default::default()).await.unwrap();
    }

    /// What the store has under a key.
    pub async fn get(&self, key: &str) -> Option<String> {
        let got = self.raw().get(&key.into(), GetOptions::default()).await;
        let object = got.ok()?.found().unwrap();
        let (_, bytes) = object.collect().await.unwrap();
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// All keys of the store.
    pub async fn keys(&self) -> Vec<String> {
        let mut request = ListRequest::flat(&Key::empty());
        request.limit = 10_000;
        let page = self.raw().list(request).await.unwrap();
        assert!(page.next.is_none());
        page.entries
            .iter()
            .map(|entry| entry.key.to_string())
            .collect()
    }

    /// The contents of the conflict files of a key, in the order of their names.
    pub async fn conflicts(&self, key: &str) -> Vec<String> {
        let mut found = Vec::new();
        for name in self.keys().await {
            if name.starts_with(&format!("{key}.conflict-")) {
                found.push(self.get(&name).await.unwrap());
            }
        }
        found
    }
}

/// What the kernel was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Inode(u64, bool),
    Entry(u64, String),
    GoesOn(u64, u64, String),
}

/// Records what the kernel was told.
#[derive(Debug, Default)]
pub struct Kernel(Mutex<Vec<Told>>);

impl Kernel {
    /// What was told since the last call.
    pub fn told(&self) -> Vec<Told> {
        std::mem::take(&mut self.0.lock())
    }
}

impl KernelNotify for Kernel {
    fn invalidate_inode(&self, inode: u64, attributes_only: bool) {
        self.0.lock().push(Told::Inode(inode, attributes_only));
    }

    fn goes_on(&self, inode: u64, at: u64, bytes: bytes::Bytes) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        self.0.lock().push(Told::GoesOn(inode, at, text));
    }

    fn invalidate_entry(&self, parent: u64, name: &[u8]) {
        let name = String::from_utf8_lossy(name).into_owned();
        self.0.lock().push(Told::Entry(parent, name));
    }
}

/// A mount as its kernel uses it.
pub struct Mount {
    pub fs: Arc<Fs>,
    pub fault: Arc<FaultPlan>,
    pub late: Arc<Late>,
    pub stats: Arc<Stats>,
    pub kernel: Arc<Kernel>,
    pub state: PathBuf,
    counted: Mutex<HashMap<u64, u64>>,
    paid: Mutex<BTreeMap<String, u64>>,
}

impl Mount {
    /// The requests since the last call, such as `get 1, put 2`.
    pub fn cost(&self) -> String {
        let now: BTreeMap<String, u64> = self
            .stats
            .snapshot()
            .operations
            .into_iter()
            .map(|(name, stats)| (name, stats.count))
            .collect();
        let mut paid = self.paid.lock();
        let more: Vec<String> = now
            .iter()
            .map(|(name, count)| (name, count - paid.get(name).unwrap_or(&0)))
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        *paid = now;
        more.join(", ")
    }

    fn count(&self, entry: &Entry) {
        *self.counted.lock().entry(entry.attr.ino).or_default() += 1;
    }

    /// Gives every lookup back.
    pub fn forget_all(&self) {
        let counted = std::mem::take(&mut *self.counted.lock());
        for (ino, count) in counted {
            self.fs.forget(ino, count);
        }
    }

    pub async fn look(&self, parent: u64, name: &[u8]) -> Outcome<Entry> {
        match errno(self.fs.lookup(parent, name).await)? {
            Lookup::Found(entry) => {
                self.count(&entry);
                Ok(entry)
            }
            Lookup::Absent(_) => Err(libc::ENOENT),
        }
    }

    /// The directory of a path, and the last name.
    pub async fn parent<'a>(&self, path: &'a str) -> Outcome<(u64, &'a [u8])> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut ino = ROOT;
        for part in dir.split('/').filter(|part| !part.is_empty()) {
            ino = self.look(ino, part.as_bytes()).await?.attr.ino;
        }
        Ok((ino, name.as_bytes()))
    }

    pub async fn ino(&self, path: &str) -> Outcome<u64> {
        if path.is_empty() {
            return Ok(ROOT);
        }
        let (parent, name) = self.parent(path).await?;
        Ok(self.look(parent, name).await?.attr.ino)
    }

    pub async fn stat(&self, path: &str) -> Outcome<Attr> {
        let (parent, name) = self.parent(path).await?;
        Ok(self.look(parent, name).await?.attr)
    }

    pub async fn exists(&self, path: &str) -> bool {
        match self.stat(path).await {
            Ok(_) => true,
            Err(libc::ENOENT) => false,
            Err(other) => panic!("stat {path}: {other}"),
        }
    }

    /// `open`, as the kernel does it.
    pub async fn open_with(&self, path: &str, flags: i32) -> Outcome<(u64, Opened)> {
        let (parent, name) = self.parent(path).await?;
        let mut last = libc::ENOENT;
        let caller = thread();
        for _ in 0..2 {
            match self.look(parent, name).await {
                Ok(_) if flags & libc::O_EXCL != 0 => return Err(libc::EEXIST),
                Ok(entry) => match errno(self.fs.open(entry.attr.ino, flags, caller).await) {
                    Err(libc::ESTALE) => last = libc::ESTALE,
                    opened => return Ok((entry.attr.ino, opened?)),
                },
                Err(libc::ENOENT) if flags & libc::O_CREAT != 0 => {
                    let create = self.fs.create(parent, name, 0o644, flags, caller);
                    let (entry, opened) = errno(create.await)?;
                    self.count(&entry);
                    return Ok((entry.attr.ino, opened));
                }
                Err(other) => return Err(other),
            }
        }
        Err(last)
    }

    pub async fn open(&self, path: &str, flags: i32) -> Outcome<u64> {
        Ok(self.open_with(path, flags).await?.1.handle)
    }

    pub fn write(&self, handle: u64, offset: u64, data: &str) -> Outcome<u32> {
        errno(
            self.fs
                .write(handle, offset, data.as_bytes(), CALLER.uid, false)
                .map(|written| written.expect("room")),
        )
    }

    pub async fn read(&self, handle: u64, offset: u64, size: u32) -> Outcome<String> {
        let bytes = errno(self.fs.read(handle, offset, size).await)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub async fn flush(&self, handle: u64) -> Outcome<()> {
        errno(self.fs.flush(handle).await)
    }

    /// What `close` gives: the flush's answer; the release follows.
    pub async fn close(&self, handle: u64) -> Outcome<()> {
        let flushed = self.flush(handle).await;
        let _ = self.fs.release(handle).await;
        flushed
    }

    /// Opens, writes from the start, closes.
    pub async fn put(&self, path: &str, flags: i32, data: &str) -> Outcome<()> {
        let handle = self.open(path, flags).await?;
        if !data.is_empty() {
            self.write(handle, 0, data)?;
        }
        self.close(handle).await
    }

    pub async fn save(&self, path: &str, data: &str) -> Outcome<()> {
        self.put(path, REPLACE, data).await
    }

    pub async fn append(&self, path: &str, data: &str) -> Outcome<()> {
        self.put(path, APPEND, data).await
    }

    /// The whole content, by a fresh open.
    pub async fn cat(&self, path: &str) -> Outcome<String> {
        let handle = self.open(path, READ).await?;
        let text = self.read(handle, 0, 16 << 20).await;
        let closed = self.close(handle).await;
        let text = text?;
        closed.map(|()| text)
    }

    pub async fn mkdir(&self, path: &str) -> Outcome<()> {
        let (parent, name) = self.parent(path).await?;
        if self.look(parent, name).await.is_ok() {
            return Err(libc::EEXIST);
        }
        let entry = errno(self.fs.mkdir(parent, name, 0o755, CALLER).await)?;
        self.count(&entry);
        Ok(())
    }

    pub async fn unlink(&self, path: &str) -> Outcome<()> {
        let (parent, name) = self.parent(path).await?;
        self.look(parent, name).await?;
        errno(self.fs.unlink(parent, name).await)
    }

    pub async fn rmdir(&self, path: &str) -> Outcome<()> {
        let (parent, name) = self.parent(path).await?;
        self.look(parent, name).await?;
        errno(self.fs.rmdir(parent, name).await)
    }

    pub async fn rename(&self, from: &str, to: &str) -> Outcome<()> {
        self.rename_with(from, to, 0).await
    }

    pub async fn rename_with(&self, from: &str, to: &str, flags: u32) -> Outcome<()> {
        let from = self.parent(from).await?;
        let to = self.parent(to).await?;
        self.look(from.0, from.1).await?;
        if let Err(error) = self.look(to.0, to.1).await
            && error != libc::ENOENT
        {
            return Err(error);
        }
        errno(self.fs.rename(from, to, flags).await)
    }

    pub async fn setattr(&self, path: &str, set: SetAttr) -> Outcome<Attr> {
        let ino = self.ino(path).await?;
        Ok(errno(self.fs.setattr(ino, set, CALLER.uid).await)?.attr)
    }

    /// The names in a directory without dots, as `ls -l` learns them.
    pub async fn ls(&self, path: &str) -> Outcome<Vec<String>> {
        let ino = self.ino(path).await?;
        let names = self.names(ino).await?;
        Ok(names
            .into_iter()
            .map(|name| String::from_utf8_lossy(&name).into_owned())
            .collect())
    }

    pub async fn names(&self, ino: u64) -> Outcome<Vec<Vec<u8>>> {
        let handle = errno(self.fs.opendir(ino))?;
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let batch = errno(self.fs.readdirplus(handle, offset).await)?;
            let Some((last, _)) = batch.last() else {
                break;
            };
            offset = last.next;
            for (entry, told) in &batch {
                match told {
                    Listed::Entry(told) => self.count(told),
                    Listed::Name if entry.name != "." && entry.name != ".." => {}
                    Listed::Name | Listed::Gone => continue,
                }
                names.push(entry.name.to_vec());
            }
        }
        errno(self.fs.releasedir(handle))?;
        Ok(names)
    }

    /// The files kept in the state directory, with their contents.
    pub fn kept(&self) -> Vec<String> {
        let Ok(dir) = std::fs::read_dir(self.state.join("unsent")) else {
            return Vec::new();
        };
        dir.map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_none_or(|ext| ext != "json"))
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect()
    }
}

pub async fn half_a_second() {
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// A change of the mode.
pub fn mode(mode: u32) -> SetAttr {
    SetAttr {
        mode: Some(mode),
        ..SetAttr::default()
    }
}

/// Lets everything that is known grow older than the TTL.
pub async fn later() {
    tokio::time::sleep(Duration::from_millis(1100)).await;
}
