//! Many of everything: what is remembered ends with what it is remembered for.

use crate::world::*;
use async_trait::async_trait;
use bucketfs::driver::{
    Body, Capabilities, Driver, ETag, Error, ErrorKind, GetOptions, GetOutcome, ListEntry,
    ListRequest, Match, Matches, ObjectInfo, Page, Precondition, PutOptions, Query, Result,
};
use bucketfs::fs::{Fs, FsOptions, Listed, Lookup, ROOT};
use bucketfs::key::Key;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

/// Whether tests may take their time.
fn long() -> bool {
    std::env::var_os("BUCKETFS_TEST_LONG").is_some()
}

/// A store with so many objects in one directory, which it makes up page by page.
#[derive(Debug)]
struct Vast {
    count: usize,
    lists: AtomicUsize,
    finds: AtomicUsize,
}

impl Vast {
    const PAGE: usize = 1000;

    fn new(count: usize) -> Arc<Vast> {
        Arc::new(Vast {
            count,
            lists: AtomicUsize::new(0),
            finds: AtomicUsize::new(0),
        })
    }

    fn key(number: usize) -> Key {
        Key::from(format!("object-{number:08}").as_str())
    }

    fn info(number: usize) -> ObjectInfo {
        ObjectInfo {
            size: Some(number as u64),
            etag: ETag::new(format!("{number}")),
            modified: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000),
            attributes: None,
            commits: Vec::new(),
            version: None,
        }
    }

    fn number(&self, key: &Key) -> Option<usize> {
        let text = std::str::from_utf8(key.as_bytes()).ok()?;
        let number = text.strip_prefix("object-")?.parse().ok()?;
        (number < self.count).then_some(number)
    }

    fn refuse<T>() -> Result<T> {
        Err(Error::new(ErrorKind::Unsupported, "it is made up"))
    }
}

#[async_trait]
impl Driver for Vast {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            find: true,
            ..Capabilities::default()
        }
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        match self.number(key) {
            Some(number) => Ok(Vast::info(number)),
            None => Err(Error::new(ErrorKind::NotFound, "no such object")),
        }
    }

    async fn get(&self, _: &Key, _: GetOptions) -> Result<GetOutcome> {
        Vast::refuse()
    }

    async fn put(&self, _: &Key, _: Body, _: PutOptions) -> Result<ObjectInfo> {
        Vast::refuse()
    }

    async fn delete(&self, _: &Key, _: Precondition) -> Result<()> {
        Vast::refuse()
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        if !request.prefix.is_empty() {
            return Ok(Page::default());
        }
        let from = request.token.map_or(0, |token| token.parse().unwrap());
        let to = self.count.min(from + Vast::PAGE.min(request.limit));
        let entries = (from..to).map(|number| ListEntry {
            key: Vast::key(number),
            object: Some(Vast::info(number)),
        });
        Ok(Page {
            entries: entries.collect(),
            next: (to < self.count).then(|| to.to_string()),
        })
    }

    /// Everything matches.
    async fn find(&self, query: Query) -> Result<Matches> {
        self.finds.fetch_add(1, Ordering::Relaxed);
        let from = query.token.map_or(0, |token| token.parse().unwrap());
        let to = self.count.min(from + Vast::PAGE.min(query.limit));
        let found = (from..to).map(|number| Match {
            key: Vast::key(number),
            etag: Vast::info(number).etag,
            text: "{}".into(),
        });
        Ok(Matches {
            found: found.collect(),
            next: (to < self.count).then(|| to.to_string()),
        })
    }
}

fn mount(driver: Arc<dyn Driver>, dir: &tempfile::TempDir) -> Arc<Fs> {
    Fs::new(driver, options(dir.path()), Arc::new(Kernel::default())).unwrap()
}

fn options(home: &std::path::Path) -> FsOptions {
    default_options(home, 1)
}

/// A number of the process, from /proc/self/status.
fn own(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn inodes_that_are_forgotten_are_gone() {
    const COUNT: usize = 200_000;
    let dir = tempfile::tempdir().unwrap();
    let fs = mount(Vast::new(COUNT), &dir);
    for round in 0..if long() { 5 } else { 1 } {
        let mut found = Vec::with_capacity(COUNT);
        for number in 0..COUNT {
            match fs.lookup(ROOT, Vast::key(number).as_bytes()).await.unwrap() {
                Lookup::Found(entry) => found.push(entry.attr.ino),
                Lookup::Absent(_) => panic!("object {number} is missing"),
            }
        }
        assert_eq!(fs.status().inodes as usize, COUNT + 1, "round {round}");
        // In another order than they came in.
        for ino in found
            .iter()
            .skip(1)
            .step_by(2)
            .chain(found.iter().step_by(2))
        {
            fs.forget(*ino, 1);
        }
        assert_eq!(fs.status().inodes, 1, "round {round}");
        // Names that are there are remembered, once.
        assert!(fs.status().cache.listing_entries as usize <= COUNT + 1000);
    }
}

#[tokio::test]
async fn a_vast_directory_is_listed_once_in_pages() {
    let count = if long() { 1_000_000 } else { 100_000 };
    let vast = Vast::new(count);
    let dir = tempfile::tempdir().unwrap();
    let fs = mount(vast.clone(), &dir);
    let handle = fs.opendir(ROOT).unwrap();
    let (mut names, mut offset, mut largest) = (0, 0, 0);
    loop {
        let batch = fs.readdirplus(handle, offset).await.unwrap();
        let Some((last, _)) = batch.last() else {
            break;
        };
        largest = largest.max(batch.len());
        offset = last.next;
        for (entry, told) in batch {
            if let Listed::Entry(told) = told {
                assert_eq!(entry.name, Vast::key(names).as_bytes());
                assert_eq!(told.attr.size, names as u64);
                names += 1;
                fs.forget(told.attr.ino, 1);
            }
        }
        // Nothing but the listing grows with the directory.
        assert_eq!(fs.status().inodes, 1);
    }
    assert_eq!(names, count);
    assert_eq!(
        vast.lists.load(Ordering::Relaxed),
        count.div_ceil(Vast::PAGE)
    );
    assert!(largest <= 1000, "{largest} entries in one answer");
    assert!(fs.status().cache.listing_entries as usize <= count + 1000);
    fs.releasedir(handle).unwrap();
    assert_eq!((fs.status().inodes, fs.status().handles), (1, 0));
}

#[tokio::test]
async fn mounts_that_end_leave_no_thread_and_no_descriptor() {
    let rounds = if long() { 10_000 } else { 500 };
    let world = World::memory();
    let cycle = |number: usize| {
        let mount = world.mount();
        let world = &world;
        async move {
            let name = format!("f{}", number % 10);
            mount.save(&name, "content").await.unwrap();
            assert_eq!(mount.cat(&name).await.unwrap(), "content");
            mount.ls("").await.unwrap();
            mount.forget_all();
            let fs = Arc::downgrade(&mount.fs);
            drop(mount);
            // Its tasks end with it.
            for _ in 0..100 {
                if fs.strong_count() == 0 {
                    break;
                }
                tokio::task::yield_now().await;
            }
            assert_eq!(fs.strong_count(), 0, "round {number}");
            world.forget_homes();
        }
    };
    for number in 0..50 {
        cycle(number).await;
    }
    let (threads, open) = (own("Threads"), descriptors());
    for number in 0..rounds {
        cycle(number).await;
    }
    // Other tests of this process come and go meanwhile.
    assert!(own("Threads") <= threads + 64, "{}", own("Threads"));
    assert!(descriptors() <= open + 200, "{}", descriptors());
}

#[tokio::test(start_paused = true)]
async fn an_append_that_would_be_merged_beyond_the_largest_file_is_kept_as_a_conflict() {
    let world = World::memory();
    world.put("log", "12345").await;
    let mount = world.mount_with(|options| options.staging_size = 10, false);
    let log = mount
        .open("log", libc::O_RDWR | libc::O_APPEND)
        .await
        .unwrap();
    mount.write(log, 0, "abc").unwrap();
    assert_eq!(mount.read(log, 0, 10).await.unwrap(), "12345abc");
    world.put("log", "123456789").await;
    assert_eq!(mount.close(log).await, Err(libc::ESTALE));
    assert_eq!(world.get("log").await.unwrap(), "123456789");
    assert_eq!(world.conflicts("log").await, ["12345abc"]);
}

#[tokio::test]
async fn a_query_with_many_matches_is_listed_as_they_come_and_kept_nowhere() {
    let count = if long() { 1_000_000 } else { 100_000 };
    let vast = Vast::new(count);
    let dir = tempfile::tempdir().unwrap();
    let options = FsOptions {
        query: Some(vast.clone()),
        ..options(dir.path())
    };
    let fs = Fs::new(vast.clone(), options, Arc::new(Kernel::default())).unwrap();
    let mut directory = ROOT;
    for name in [&b".query"[..], b"a=1"] {
        let Lookup::Found(entry) = fs.lookup(directory, name).await.unwrap() else {
            panic!("{name:?} is missing");
        };
        directory = entry.attr.ino;
    }
    let handle = fs.opendir(directory).unwrap();
    let (mut names, mut offset, mut told) = (0, 0, Vec::new());
    loop {
        let batch = fs.readdirplus(handle, offset).await.unwrap();
        let Some((last, _)) = batch.last() else {
            break;
        };
        offset = last.next;
        for (entry, listed) in batch {
            if entry.name == "." || entry.name == ".." {
                continue;
            }
            assert_eq!(entry.name, Vast::key(names).as_bytes());
            names += 1;
            if let Listed::Entry(entry) = listed {
                told.push(entry.attr.ino);
            }
        }
        // A page that is read, one that is handed on, and one that is on its way.
        let asked = vast.finds.load(Ordering::Relaxed);
        assert!(asked <= names / Vast::PAGE + 3, "{asked} for {names}");
    }
    fs.releasedir(handle).unwrap();
    assert_eq!(names, count);
    assert!(fs.status().inodes < 70_000, "{}", fs.status().inodes);
    assert_eq!(fs.status().inodes as usize, told.len() + 3);
    for ino in told {
        fs.forget(ino, 1);
    }
    assert_eq!(fs.status().inodes, 3);
}
