//! What the conformance suite cannot know: the files behind the keys.

mod access;
mod holes;
mod keys;
mod races;
mod removed;

use super::*;
use crate::driver::{Attributes, CommitId};
use bytes::Bytes;
use futures::StreamExt;
use rustix::thread::CapabilitySet;
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// A driver on a fresh directory.
struct Bench {
    dir: TempDir,
    driver: Local,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let driver = driver(dir.path());
    Bench { dir, driver }
}

fn driver(path: &Path) -> Local {
    Local(Arc::new(
        Store::open(path, &OpenOptions::default()).unwrap(),
    ))
}

/// A driver that does without what its kernel may offer.
fn frugal(path: &Path) -> Local {
    let mut store = Store::open(path, &OpenOptions::default()).unwrap();
    store.means = Means {
        nameless: false,
        fine_clock: false,
    };
    store.root = store.root.without_openat2();
    Local(Arc::new(store))
}

fn key(text: &str) -> Key {
    Key::from(text)
}

impl Local {
    async fn write(&self, name: &str, body: &'static str) -> ObjectInfo {
        let options = PutOptions::default();
        self.put(&key(name), body.into(), options).await.unwrap()
    }

    async fn read(&self, name: &str) -> Bytes {
        let outcome = self.get(&key(name), GetOptions::default()).await;
        let object = outcome.unwrap().found().unwrap();
        object.collect().await.unwrap().1
    }

    async fn keys(&self, request: ListRequest) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut request = request;
        loop {
            let page = self.list(request.clone()).await.unwrap();
            assert!(page.entries.len() <= request.limit);
            keys.extend(page.entries.into_iter().map(|entry| entry.key));
            match page.next {
                Some(token) => request.token = Some(token),
                None => return keys,
            }
        }
    }

    async fn all(&self) -> Vec<Key> {
        self.keys(ListRequest::flat(&Key::empty())).await
    }
}

fn names(path: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(path).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Waits until the clock of coarse change times has moved on: before that, an edit in place that
/// keeps the size cannot be seen on kernels without multigrain timestamps.
async fn tick() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[tokio::test]
async fn no_link_leads_out_of_the_root() {
    for make in [driver, frugal] {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        symlink(outside.path(), dir.path().join("link")).unwrap();
        symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
        let driver = make(dir.path());

        assert_eq!(
            kind(driver.head(&key("link/secret")).await),
            ErrorKind::NotFound
        );
        let got = driver.get(&key("link/secret"), GetOptions::default()).await;
        assert_eq!(kind(got), ErrorKind::NotFound);
        assert!(
            driver
                .keys(ListRequest::flat(&key("link/")))
                .await
                .is_empty()
        );
        driver
            .delete(&key("link/secret"), Precondition::None)
            .await
            .unwrap();
        driver.write("link/new", "n").await;
        driver.write("file", "f").await;
        let options = CopyOptions::default();
        driver
            .rename(&key("file"), &key("link/moved"), options)
            .await
            .unwrap();

        assert_eq!(names(outside.path()), BTreeSet::from(["secret".into()]));
        assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"s");
        assert_eq!(driver.read("link/new").await, "n");
        let target = outside.path().to_str().unwrap().to_owned();
        assert_eq!(driver.read("link").await, target);
    }
}

#[tokio::test]
async fn a_foreign_edit_is_another_version() {
    let Bench { dir, driver } = bench();
    let ours = driver.write("k", "aaaa").await;
    tick().await;
    fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join("k"))
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"bbbb"))
        .unwrap();
    let now = driver.head(&key("k")).await.unwrap();
    assert_ne!(now.etag, ours.etag);
    let options = PutOptions {
        precondition: Precondition::IfMatch(ours.etag),
        ..PutOptions::default()
    };
    assert_eq!(
        kind(driver.put(&key("k"), "c".into(), options).await),
        ErrorKind::Changed
    );
}

#[tokio::test]
async fn what_lives_for_a_moment_is_never_listed_and_is_swept() {
    let Bench { dir, driver: user } = bench();
    let tmp = dir.path().join(".bucketfs/tmp");
    // A replacement needs a name for a moment; the directory stays while the driver lives.
    user.write("k", "1").await;
    user.write("k", "2").await;
    assert!(names(&tmp).is_empty());
    fs::write(tmp.join("left"), "").unwrap();
    assert_eq!(user.all().await, [key("k")]);
    assert_eq!(
        user.keys(ListRequest::directory(&Key::empty())).await,
        [key("k")]
    );
    assert_eq!(
        kind(user.head(&key(".bucketfs/tmp/left")).await),
        ErrorKind::NotFound
    );
    let put = user
        .put(&key(".bucketfs/tmp/x"), "".into(), PutOptions::default())
        .await;
    assert_eq!(kind(put), ErrorKind::InvalidKey);

    // Another driver must not sweep what may be in use.
    let other = driver(dir.path());
    assert!(tmp.join("left").exists());
    drop(user);
    drop(other);
    let last = driver(dir.path());
    assert_eq!(names(dir.path()), BTreeSet::from(["k".into()]));

    // Keys below .bucketfs/ are keys; its directories are no objects and go with their keys.
    last.write(".bucketfs/canary/x", "c").await;
    assert_eq!(last.all().await, [".bucketfs/canary/x", "k"].map(key));
    last.delete(&key(".bucketfs/canary/x"), Precondition::None)
        .await
        .unwrap();
    assert_eq!(names(dir.path()), BTreeSet::from(["k".into()]));

    fs::write(dir.path().join(".bucketfs-tmp-left"), "").unwrap();
    assert_eq!(last.all().await, [key("k")]);
    assert_eq!(names(dir.path()), BTreeSet::from(["k".into()]));
}

#[tokio::test]
async fn a_driver_for_reading_sweeps_nothing() {
    let Bench { dir, driver: user } = bench();
    user.write("a/k", "1").await;
    drop(user);
    let left = [".bucketfs-tmp-left", "a/.bucketfs-tmp-left"];
    for name in left {
        fs::write(dir.path().join(name), "").unwrap();
    }
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let reader = Local(Arc::new(Store::open(dir.path(), &options).unwrap()));
    assert_eq!(reader.all().await, ["a/", "a/k"].map(key));
    for name in left {
        assert!(dir.path().join(name).exists(), "{name}");
    }
}

#[tokio::test]
async fn a_read_is_never_mixed() {
    const SIZE: usize = 3 << 20;
    let Bench { dir, driver } = bench();
    let old = Bytes::from(vec![b'o'; SIZE]);
    let begin = async || {
        let options = PutOptions::default();
        driver
            .put(&key("k"), old.clone().into(), options)
            .await
            .unwrap();
        let got = driver.get(&key("k"), GetOptions::default()).await;
        tick().await;
        got.unwrap().found().unwrap()
    };
    // Replaced, renamed, removed, made unreadable: the old version is read on.
    let object = begin().await;
    driver.write("k", "new").await;
    driver.delete(&key("k"), Precondition::None).await.unwrap();
    assert_eq!(object.collect().await.unwrap().1, old);
    let object = begin().await;
    fs::set_permissions(dir.path().join("k"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(object.collect().await.unwrap().1, old);
    // Written into: nobody gets half of it.
    let object = begin().await;
    fs::write(dir.path().join("k"), vec![b'n'; SIZE]).unwrap();
    assert_eq!(kind(object.collect().await), ErrorKind::Changed);
    let object = begin().await;
    fs::write(dir.path().join("k"), "short").unwrap();
    assert_eq!(kind(object.collect().await), ErrorKind::Changed);
    // Not even a piece, of which the reader behind may show some before it has them all.
    let mut body = begin().await.body;
    assert!(body.next().await.unwrap().is_ok());
    fs::write(dir.path().join("k"), vec![b'n'; SIZE]).unwrap();
    let next = body.next().await.unwrap();
    assert_eq!(kind(next), ErrorKind::Changed);
}

#[tokio::test]
async fn attributes_are_the_file_s_own() {
    for make in [driver, frugal] {
        let dir = tempfile::tempdir().unwrap();
        let driver = make(dir.path());
        let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let attributes = Attributes {
            mode: Some(libc::S_IFREG | 0o640),
            mtime: Some(time(1_000_000)),
            atime: Some(time(2_000_000)),
            content_type: Some("text/plain".into()),
            user: [("color".to_owned(), Bytes::from_static(b"red"))].into(),
            ..Attributes::default()
        };
        let commits: Vec<_> = (1..9).map(CommitId).collect();
        let options = PutOptions {
            attributes: attributes.clone(),
            commits: commits.clone(),
            ..PutOptions::default()
        };
        let info = driver.put(&key("k"), "x".into(), options).await.unwrap();
        let path = dir.path().join("k");
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(
            (meta.mode(), meta.mtime()),
            (libc::S_IFREG | 0o640, 1_000_000)
        );
        let mut value = [0; 16];
        let length = rustix::fs::getxattr(&path, "user.mime_type", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"text/plain");
        assert_eq!(info.commits, commits);
        assert_eq!(driver.read("k").await, "x");
        assert_eq!(
            driver.head(&key("k")).await.unwrap(),
            info,
            "reading leaves the atime alone"
        );
        let listed = driver.list(ListRequest::flat(&Key::empty())).await.unwrap();
        assert_eq!(listed.entries[0].object.as_ref(), Some(&info));

        // A change that cannot be made whole is not made at all.
        let change = AttributeChange {
            mode: Some(0o600),
            user: [
                ("a".to_owned(), Some(Bytes::from_static(b"1"))),
                ("b".to_owned(), Some(vec![0; 65537].into())),
            ]
            .into(),
            ..AttributeChange::default()
        };
        driver
            .set_attributes(&key("k"), change, None)
            .await
            .unwrap_err();
        let now = driver.head(&key("k")).await.unwrap();
        assert_eq!(now.attributes, info.attributes);
        let change = AttributeChange {
            user: [("bucketfs.commit".to_owned(), None)].into(),
            ..AttributeChange::default()
        };
        let set = driver.set_attributes(&key("k"), change, None).await;
        assert_eq!(kind(set), ErrorKind::Unsupported);
        assert_eq!(driver.head(&key("k")).await.unwrap().commits, commits);

        // A copy has them all, a replacement none of them.
        let copy = driver
            .copy(&key("k"), &key("c/opy"), CopyOptions::default())
            .await
            .unwrap();
        assert_eq!(copy.attributes, info.attributes);
        assert_eq!(copy.commits, commits);
        let fresh = driver.write("k", "y").await;
        let fresh = fresh.attributes.unwrap();
        assert_eq!(
            (fresh.mode, fresh.content_type.clone()),
            (Some(libc::S_IFREG | 0o644), None)
        );
        assert!(fresh.user.is_empty());
    }
}

#[tokio::test]
async fn special_files_are_made_and_never_opened() {
    for make in [driver, frugal] {
        let dir = tempfile::tempdir().unwrap();
        let driver = make(dir.path());
        let node = |mode| PutOptions {
            attributes: Attributes {
                mode: Some(mode),
                ..Attributes::default()
            },
            ..PutOptions::default()
        };
        let link = node(libc::S_IFLNK | 0o777);
        driver.write("l", "file").await;
        driver
            .put(&key("l"), "../up".into(), link.clone())
            .await
            .unwrap();
        assert_eq!(
            fs::read_link(dir.path().join("l")).unwrap(),
            Path::new("../up")
        );
        assert_eq!(driver.read("l").await, "../up");
        driver
            .put(&key("p"), Body::empty(), node(libc::S_IFIFO | 0o600))
            .await
            .unwrap();
        // Opening a fifo would wait for a writer.
        assert_eq!(driver.read("p").await, "");
        let size = driver.head(&key("p")).await.unwrap().size;
        assert_eq!(size, Some(0));
        let put = driver
            .put(&key("p"), "x".into(), node(libc::S_IFIFO | 0o600))
            .await;
        assert_eq!(kind(put), ErrorKind::InvalidArgument);
        let put = driver
            .put(&key("d"), Body::empty(), node(libc::S_IFDIR | 0o755))
            .await;
        assert_eq!(kind(put), ErrorKind::InvalidArgument);
        // The mode and the owner of a link are the link's, not those of what it leads to.
        fs::write(dir.path().join("target"), "").unwrap();
        driver.put(&key("l"), "target".into(), link).await.unwrap();
        let change = AttributeChange {
            mode: Some(0o600),
            mtime: Some(SystemTime::UNIX_EPOCH),
            ..AttributeChange::default()
        };
        let info = driver
            .set_attributes(&key("l"), change, None)
            .await
            .unwrap();
        assert_eq!(info.attributes.unwrap().mtime, Some(SystemTime::UNIX_EPOCH));
        let target = fs::metadata(dir.path().join("target")).unwrap();
        assert_eq!(target.mode() & 0o777, 0o644);
        assert_ne!(target.mtime(), 0);
        let (l, p) = driver.exchange(&key("l"), &key("p")).await.unwrap();
        assert_eq!(l, driver.head(&key("l")).await.unwrap());
        assert_eq!(p, driver.head(&key("p")).await.unwrap());
        assert_eq!(driver.read("p").await, "target");
    }
}

#[tokio::test]
async fn directories_are_markers() {
    let Bench { dir, driver } = bench();
    let made = driver.write("d/", "").await;
    assert_eq!(
        (made.size, &made),
        (Some(0), &driver.head(&key("d/")).await.unwrap())
    );
    assert!(dir.path().join("d").is_dir());
    driver.write("d/k", "k").await;
    assert_eq!(driver.head(&key("d/")).await.unwrap().etag, made.etag);
    driver.delete(&key("d/"), Precondition::None).await.unwrap();
    assert_eq!(driver.read("d/k").await, "k", "keys outlive the marker");

    // A marker with bytes keeps them, and loses them again.
    let body = driver.write("d/", "body").await;
    assert_eq!(fs::read(dir.path().join("d/%~e")).unwrap(), b"body");
    assert_eq!(driver.read("d/").await, "body");
    assert_eq!(driver.all().await, ["d/", "d/k"].map(key));
    let options = PutOptions {
        precondition: Precondition::IfMatch(body.etag),
        ..PutOptions::default()
    };
    driver
        .put(&key("d/"), Body::empty(), options)
        .await
        .unwrap();
    assert_eq!(names(&dir.path().join("d")), BTreeSet::from(["k".into()]));

    // Only what holds nothing moves in one step.
    let moved = driver
        .rename(&key("d/"), &key("e/"), CopyOptions::default())
        .await;
    assert_eq!(kind(moved), ErrorKind::Unsupported);
    driver.write("empty/", "own").await;
    driver
        .rename(&key("empty/"), &key("x/y/"), CopyOptions::default())
        .await
        .unwrap();
    assert_eq!(driver.read("x/y/").await, "own");
    assert_eq!(driver.all().await, ["d/", "d/k", "x/", "x/y/"].map(key));

    // A condition that fails leaves no directories behind.
    let options = PutOptions {
        precondition: Precondition::IfMatch(ETag::new("old")),
        ..PutOptions::default()
    };
    let put = driver.put(&key("no/such/dir"), "".into(), options).await;
    assert_eq!(kind(put), ErrorKind::Changed);
    assert!(!dir.path().join("no").exists());
}

#[tokio::test]
async fn the_feed_tells_ours_and_theirs() {
    let Bench { dir, driver } = bench();
    fs::create_dir(dir.path().join("old")).unwrap();
    let mut feed = driver.watch(&Key::empty()).await.unwrap();
    let mut other = driver.watch(&key("new/x")).await.unwrap();
    /// Reads until each of the changes was there, in any order.
    async fn until(
        feed: &mut BoxStream<'static, Result<Change>>,
        mut want: Vec<Change>,
    ) -> Vec<Change> {
        let mut seen = Vec::new();
        let wait = async {
            while !want.is_empty() {
                let change = feed.next().await.unwrap().unwrap();
                want.retain(|want| *want != change);
                seen.push(change);
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(10), wait).await;
        assert!(waited.is_ok(), "no {want:?} in {seen:?}");
        seen
    }
    let removed = |name: &str| Change::Removed(key(name));
    let written = |name: &str| Change::Written(key(name), None);
    driver.write("old/k", "1").await;
    let mut seen = until(&mut feed, vec![written("old/k")]).await;
    driver.write("old/k", "2").await;
    seen.extend(until(&mut feed, vec![written("old/k")]).await);
    driver
        .rename(&key("old/k"), &key("new/deep/k"), CopyOptions::default())
        .await
        .unwrap();
    let both = vec![removed("old/k"), written("new/deep/k")];
    seen.extend(until(&mut feed, both).await);
    fs::write(dir.path().join("new/deep/foreign"), "1").unwrap();
    seen.extend(until(&mut feed, vec![written("new/deep/foreign")]).await);
    driver
        .delete(&key("new/deep/foreign"), Precondition::None)
        .await
        .unwrap();
    seen.extend(until(&mut feed, vec![removed("new/deep/foreign")]).await);
    driver
        .delete(&key("old/"), Precondition::None)
        .await
        .unwrap();
    seen.extend(until(&mut feed, vec![removed("old/")]).await);
    let own = |change: &Change| match change {
        Change::Written(key, _) | Change::Removed(key) => key.starts_with(&Key::from(".bucketfs")),
        Change::Lost => true,
    };
    assert!(!seen.iter().any(own), "{seen:?}");

    // Of a prefix, only that; a directory that is moved away takes unknown keys with it.
    driver.write("new/xy/k", "1").await;
    let seen = until(&mut other, vec![written("new/xy/k")]).await;
    assert!(
        seen.iter()
            .all(|change| matches!(change, Change::Written(key, _)
        if key.starts_with(&Key::from("new/x")))),
        "{seen:?}"
    );
    fs::rename(dir.path().join("new"), dir.path().join("newer")).unwrap();
    until(&mut other, vec![Change::Lost]).await;
    until(&mut feed, vec![written("newer/xy/k")]).await;
    fs::write(dir.path().join("newer/xy/k2"), "1").unwrap();
    until(&mut feed, vec![written("newer/xy/k2")]).await;
}

#[tokio::test]
async fn a_directory_that_becomes_ours_to_read_is_watched() {
    let Bench { dir, driver } = bench();
    let path = dir.path().join("d");
    fs::create_dir(&path).unwrap();
    let allow = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    allow(0o000);
    // Of this thread and those that it begins: nothing is barred to root otherwise.
    let mut ours = rustix::thread::capabilities(None).unwrap();
    ours.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    rustix::thread::set_capabilities(None, ours).unwrap();
    assert!(fs::read_dir(&path).is_err());
    let mut feed = driver.watch(&Key::empty()).await.unwrap();
    allow(0o755);
    let wanted = Change::Written(key("d/k"), None);
    fs::write(path.join("k"), "1").unwrap();
    let wait = async { while feed.next().await.unwrap().unwrap() != wanted {} };
    let waited = tokio::time::timeout(Duration::from_secs(10), wait).await;
    assert!(waited.is_ok());
}

#[tokio::test]
async fn a_url_that_names_no_directory_says_what_to_do() {
    let open = async |url: &str| {
        let location = Location::parse(url).unwrap();
        let error = super::open(location, OpenOptions::default())
            .await
            .unwrap_err();
        error.to_string()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display();
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(
        open(&format!("file://{path}/nope"))
            .await
            .contains("mkdir -p")
    );
    assert!(
        open(&format!("file://{path}/file"))
            .await
            .contains("is no directory")
    );
    assert!(
        open(&format!("file://host{path}"))
            .await
            .contains("three slashes")
    );
    assert!(open(&format!("file://{path}?x=1")).await.contains("%3F"));
    fs::create_dir(dir.path().join("a b#c")).unwrap();
    let location = Location::parse(&format!("file://{path}/a%20b%23c")).unwrap();
    super::open(location, OpenOptions::default()).await.unwrap();
}
