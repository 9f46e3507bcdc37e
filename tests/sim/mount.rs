//! A mount with its layers, as a kernel uses it: names are looked up, counted and forgotten, an
//! ESTALE of open is tried again, close is answered after the flush and released some time later.

use crate::broken::Break;
use crate::net::PATIENCE;
use crate::store::{Client, Store};
use bucketfs::driver::Opened as Open;
use bucketfs::fs::{
    Caller, Entry, ExclusiveCreate, Fs, FsOptions, FsResult, KernelNotify, Kind, Lookup, ROOT,
    SetAttr, Top,
};
use bucketfs::key::Key;
use bucketfs::layer::{LayerOptions, stack};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tokio::task::JoinSet;

pub const CALLER: Caller = Caller {
    uid: 7,
    gid: 8,
    pid: 0,
};

/// A thread that no other call is of.
fn thread() -> Caller {
    static LAST: AtomicU32 = AtomicU32::new(100);
    Caller {
        pid: LAST.fetch_add(1, Ordering::Relaxed),
        ..CALLER
    }
}

pub type Outcome<T> = Result<T, i32>;

pub fn errno<T>(result: FsResult<T>) -> Outcome<T> {
    result.map_err(|error| error.errno())
}

/// A kernel that forgets nothing too early, and so needs no telling.
#[derive(Debug)]
struct Kernel;

impl KernelNotify for Kernel {
    fn invalidate_inode(&self, _: u64, _: bool) {}
    fn invalidate_entry(&self, _: u64, _: &[u8]) {}
}

#[derive(Debug)]
pub struct Mount {
    pub fs: Arc<Fs>,
    pub number: usize,
    store: Store,
    broken: Option<Break>,
    counted: Mutex<BTreeMap<u64, u64>>,
    /// Operations under way: a kernel forgets no inode that it is opening.
    pub under_way: AtomicU64,
    /// Nobody waits for these; they end with the mount.
    releases: Mutex<JoinSet<()>>,
    losses: Mutex<Losses>,
}

/// What a mount that tells too little remembers: how many writes there were at each handle's last
/// one, and at the last loss that one of them was told.
#[derive(Debug, Default)]
struct Losses {
    writes: u64,
    last: BTreeMap<u64, u64>,
    told: u64,
}

impl Mount {
    pub fn new(
        store: &Store,
        number: usize,
        home: &Path,
        retries: u32,
        broken: Option<Break>,
    ) -> Mount {
        let (ttl, consistency, staging, room, stateless) = {
            let character = &store.0.lock().character;
            (
                character.ttl,
                character.consistency,
                character.staging,
                character.room,
                character.stateless,
            )
        };
        let state = home.join("state");
        if stateless {
            std::fs::create_dir_all(home).unwrap();
            std::fs::write(&state, "a file").unwrap();
        }
        let client = Client {
            store: store.clone(),
            mount: number,
            broken,
        };
        let opened = Open {
            driver: Arc::new(client),
            prefix: Key::empty(),
            is_store: false,
        };
        let layers = LayerOptions {
            deadline: PATIENCE,
            retries,
            ..LayerOptions::default()
        };
        let options = FsOptions {
            name: "sim:".into(),
            top: Top::Bucket,
            uid: 1,
            gid: 2,
            file_mode: 0o644,
            dir_mode: 0o755,
            stat_attrs: Default::default(),
            read_only: false,
            metadata_ttl: ttl,
            negative_ttl: ttl,
            exclusive_create: ExclusiveCreate::Locks,
            max_rename: None,
            consistency,
            staging_dir: home.join("staging"),
            staging_size: staging.unwrap_or(1 << 30),
            staging_room: room,
            state_dir: state,
            memory_cache: 64 << 20,
            cache_dir: None,
            max_cache_size: 0,
            listing_entries: 10_000,
            host: format!("host{number}"),
            query: None,
        };
        let driver = stack(opened, &layers).unwrap().driver;
        Mount {
            fs: Fs::new(driver, options, Arc::new(Kernel)).unwrap(),
            number,
            store: store.clone(),
            broken,
            counted: Mutex::default(),
            under_way: AtomicU64::new(0),
            releases: Mutex::default(),
            losses: Mutex::default(),
        }
    }

    fn count(&self, entry: &Entry) {
        *self.counted.lock().entry(entry.attr.ino).or_default() += 1;
    }

    /// Gives every lookup back.
    pub fn forget_all(&self) {
        for (ino, count) in std::mem::take(&mut *self.counted.lock()) {
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

    async fn parent<'a>(&self, path: &'a str) -> Outcome<(u64, &'a [u8])> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut ino = ROOT;
        for part in dir.split('/').filter(|part| !part.is_empty()) {
            ino = self.look(ino, part.as_bytes()).await?.attr.ino;
        }
        Ok((ino, name.as_bytes()))
    }

    pub async fn open(&self, path: &str, flags: i32) -> Outcome<u64> {
        let (parent, name) = self.parent(path).await?;
        let mut last = libc::ENOENT;
        let caller = thread();
        for _ in 0..2 {
            match self.look(parent, name).await {
                Ok(_) if flags & libc::O_EXCL != 0 => return Err(libc::EEXIST),
                Ok(entry) => match errno(self.fs.open(entry.attr.ino, flags, caller).await) {
                    Err(libc::ESTALE) => last = libc::ESTALE,
                    opened => return Ok(opened?.handle),
                },
                Err(libc::ENOENT) if flags & libc::O_CREAT != 0 => {
                    let create = self.fs.create(parent, name, 0o644, flags, caller);
                    match errno(create.await) {
                        Err(libc::ESTALE) => last = libc::ESTALE,
                        created => {
                            let (entry, opened) = created?;
                            self.count(&entry);
                            return Ok(opened.handle);
                        }
                    }
                }
                Err(other) => return Err(other),
            }
        }
        Err(last)
    }

    pub fn write(&self, handle: u64, offset: u64, data: &[u8]) -> Outcome<()> {
        let mut losses = self.losses.lock();
        losses.writes += 1;
        let number = losses.writes;
        losses.last.insert(handle, number);
        drop(losses);
        errno(self.fs.write(handle, offset, data, CALLER.uid, false)).map(drop)
    }

    pub async fn read(&self, handle: u64, offset: u64, size: u32) -> Outcome<Vec<u8>> {
        Ok(errno(self.fs.read(handle, offset, size).await)?.to_vec())
    }

    pub async fn flush(&self, handle: u64) -> Outcome<()> {
        let flushed = errno(self.fs.flush(handle).await);
        self.tell(handle, flushed)
    }

    pub async fn fsync(&self, handle: u64) -> Outcome<()> {
        let synced = errno(self.fs.fsync(handle).await);
        self.tell(handle, synced)
    }

    fn tell(&self, handle: u64, result: Outcome<()>) -> Outcome<()> {
        if !matches!(result, Err(libc::ESTALE | libc::EEXIST)) {
            return result;
        }
        let mut losses = self.losses.lock();
        let after = losses.last.get(&handle).copied() > Some(losses.told) && losses.told > 0;
        losses.told = losses.writes;
        match self.broken {
            Some(Break::UntoldLoss) if after => Ok(()),
            _ => result,
        }
    }

    pub async fn close(&self, handle: u64) -> Outcome<()> {
        let closed = self.flush(handle).await;
        self.release(handle);
        closed
    }

    /// The last close of a handle: the kernel sends it when it comes to it.
    fn release(&self, handle: u64) {
        let (fs, late, broken) = (self.fs.clone(), self.store.lateness(), self.broken);
        let mut releases = self.releases.lock();
        while releases.try_join_next().is_some() {}
        releases.spawn(async move {
            tokio::time::sleep(late).await;
            if broken == Some(Break::CommittingRelease) {
                let _ = fs.flush(handle).await;
            }
            let _ = fs.release(handle).await;
        });
    }

    pub async fn stat(&self, path: &str) -> Outcome<u64> {
        let (parent, name) = self.parent(path).await?;
        let attr = self.look(parent, name).await?.attr;
        if attr.kind == Kind::Directory {
            return Err(libc::EISDIR);
        }
        Ok(attr.size)
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

    pub async fn rename(&self, from: &str, to: &str, flags: u32) -> Outcome<()> {
        let from = self.parent(from).await?;
        let to = self.parent(to).await?;
        self.look(from.0, from.1).await?;
        match self.look(to.0, to.1).await {
            Ok(_) if flags & libc::RENAME_NOREPLACE != 0 => return Err(libc::EEXIST),
            Ok(_) | Err(libc::ENOENT) => {}
            Err(other) => return Err(other),
        }
        errno(self.fs.rename(from, to, flags).await)
    }

    pub async fn set(&self, path: &str, set: SetAttr) -> Outcome<()> {
        let (parent, name) = self.parent(path).await?;
        let ino = self.look(parent, name).await?.attr.ino;
        errno(self.fs.setattr(ino, set, CALLER.uid).await).map(drop)
    }

    /// `cp` of a whole file into an open, empty one.
    pub async fn copy(&self, from: u64, to: u64) -> Outcome<()> {
        let fs = &self.fs;
        let copied = fs.copy_file_range((from, 0), (to, 0), 1 << 30, CALLER.uid);
        errno(copied.await).map(drop)
    }

    /// The whole content, by a fresh open.
    pub async fn cat(&self, path: &str) -> Outcome<Vec<u8>> {
        let handle = self.open(path, libc::O_RDONLY).await?;
        let content = self.read(handle, 0, 16 << 20).await;
        self.close(handle).await?;
        content
    }

    /// The names in a directory without dots.
    pub async fn list(&self, path: &str) -> Outcome<Vec<(String, bool)>> {
        let mut ino = ROOT;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            ino = self.look(ino, part.as_bytes()).await?.attr.ino;
        }
        let handle = errno(self.fs.opendir(ino))?;
        let (mut names, mut offset) = (Vec::new(), 0);
        let result = loop {
            let batch = match errno(self.fs.readdirplus(handle, offset).await) {
                Ok(batch) => batch,
                Err(error) => break Err(error),
            };
            let Some((last, _)) = batch.last() else {
                break Ok(());
            };
            offset = last.next;
            for (entry, told) in &batch {
                if let bucketfs::fs::Listed::Entry(told) = told {
                    self.count(told);
                    let name = String::from_utf8_lossy(&entry.name).into_owned();
                    names.push((name, told.attr.kind == Kind::Directory));
                }
            }
        };
        errno(self.fs.releasedir(handle))?;
        result.map(|()| names)
    }

    /// Everything that can be reached, with its content; directories have none.
    pub async fn tree(&self, but: &BTreeSet<String>) -> Outcome<BTreeMap<String, Option<Vec<u8>>>> {
        let mut found = BTreeMap::new();
        let mut pending = vec![String::new()];
        while let Some(dir) = pending.pop() {
            for (name, directory) in self.list(&dir).await? {
                let path = match dir.as_str() {
                    "" => name,
                    dir => format!("{dir}/{name}"),
                };
                if but.contains(&path) {
                    continue;
                }
                if directory {
                    found.insert(path.clone(), None);
                    pending.push(path);
                } else {
                    let content = self.cat(&path).await?;
                    found.insert(path, Some(content));
                }
            }
        }
        Ok(found)
    }
}
