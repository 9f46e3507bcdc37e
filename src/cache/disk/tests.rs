use super::super::content::BLOCK;
use super::*;
use crate::driver::ETag;
use crate::key::Key;
use std::time::Duration;

fn options(dir: &Path) -> DiskOptions {
    DiskOptions {
        dir: dir.to_owned(),
        size: 100 << 20,
        namespace: "s3://bucket".into(),
    }
}

/// Opens a cache and waits until it knows its files.
async fn open(options: DiskOptions) -> DiskCache {
    let disk = DiskCache::open(options).unwrap();
    until(|| disk.shared.index.lock().complete).await;
    disk
}

async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not happen");
}

fn version(key: &str) -> Arc<Version> {
    Arc::new(Version {
        key: Key::from(key),
        etag: ETag::new("e"),
        size: 10 * BLOCK - 100,
    })
}

fn block(version: &Version, index: u64) -> Bytes {
    let range = version.block(index);
    let fill = version.key.as_bytes()[0].wrapping_add(index as u8);
    vec![fill; (range.end - range.start) as usize].into()
}

async fn store(disk: &DiskCache, version: &Arc<Version>, index: u64) {
    disk.store(version, index, &block(version, index));
    until(|| {
        disk.shared
            .index
            .lock()
            .files
            .contains(&disk.shared.name(version, index))
    })
    .await;
}

#[tokio::test]
async fn what_waits_to_be_written_is_there_already() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(options(dir.path())).await;
    let versions: Vec<_> = (0..20).map(|i| version(&format!("{i}"))).collect();
    for version in &versions {
        for index in 0..10 {
            disk.store(version, index, &block(version, index));
            assert!(disk.contains(version, index));
        }
    }
    for version in &versions {
        let loaded = disk.load(version, 3).await;
        assert_eq!(loaded, Some(block(version, 3)));
    }
    until(|| disk.shared.index.lock().waiting.is_empty()).await;
    assert!(!disk.is_behind());
    assert_eq!(disk.shared.index.lock().files.len(), 200);
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let blocks = dir.join("blocks");
    entries(&blocks)
        .flat_map(|sub| entries(&sub).collect::<Vec<_>>())
        .collect()
}

#[tokio::test]
async fn blocks_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let v = version("a");
    let disk = open(options(dir.path())).await;
    for index in 0..10 {
        store(&disk, &v, index).await;
    }
    let used = disk.used();
    drop(disk);
    // What a crash may leave is removed once it is old; what is new may be being written.
    let sub = entries(&dir.path().join("blocks")).next().unwrap();
    for (name, age) in [("x.old", 100), ("x.new", 0)] {
        let file = File::create(sub.join(name)).unwrap();
        let time = crate::clock::wall() - Duration::from_secs(age);
        file.set_modified(time).unwrap();
    }

    let disk = open(options(dir.path())).await;
    assert_eq!(disk.used(), used);
    assert!(!sub.join("x.old").exists() && sub.join("x.new").exists());
    for index in 0..10 {
        assert!(disk.contains(&v, index));
        assert_eq!(disk.load(&v, index).await, Some(block(&v, index)));
    }
    assert!(!disk.contains(&version("b"), 0));
    let elsewhere = DiskOptions {
        namespace: "s3://other".into(),
        ..options(dir.path())
    };
    let other = open(elsewhere).await;
    assert_eq!(other.load(&v, 0).await, None);
}

#[tokio::test]
async fn damage_is_a_miss_and_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let v = version("a");
    let damages: [fn(&mut Vec<u8>); 7] = [
        |content| content[0] ^= 1,
        |content| content[9] ^= 1,
        |content| content[13] ^= 1,
        |content| content[30] ^= 1,
        |content| *content.last_mut().unwrap() ^= 1,
        |content| content.truncate(content.len() - 1),
        Vec::clear,
    ];
    let disk = open(options(dir.path())).await;
    for damage in damages {
        store(&disk, &v, 3).await;
        let path = files(dir.path()).pop().unwrap();
        let mut content = std::fs::read(&path).unwrap();
        damage(&mut content);
        std::fs::write(&path, content).unwrap();
        assert_eq!(disk.load(&v, 3).await, None);
        assert!(!path.exists() && !disk.contains(&v, 3));
        assert_eq!(disk.used(), 0);
    }
    // A whole file under another block's name is that block's no more than a damaged one.
    store(&disk, &v, 1).await;
    store(&disk, &v, 2).await;
    let path = |index| disk.shared.path(disk.shared.name(&v, index));
    std::fs::copy(path(1), path(2)).unwrap();
    assert_eq!(disk.load(&v, 2).await, None);
    assert_eq!(disk.load(&v, 1).await, Some(block(&v, 1)));
}

#[tokio::test]
async fn size_is_bounded_and_the_least_recent_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let size = 6 * (BLOCK + 4096);
    let small = DiskOptions {
        size,
        ..options(dir.path())
    };
    let v = version("a");
    let disk = open(small.clone()).await;
    for index in 0..9 {
        store(&disk, &v, index).await;
        assert!(disk.load(&v, 0).await.is_some());
        assert!(disk.used() <= size);
    }
    assert!(!disk.contains(&v, 1) && disk.contains(&v, 8));
    assert_eq!(files(dir.path()).len(), 6);
    drop(disk);
    let smaller = DiskOptions {
        size: size / 2,
        ..small
    };
    let disk = open(smaller).await;
    until(|| files(dir.path()).len() == 3).await;
    assert!(disk.contains(&v, 0) && disk.contains(&v, 8));
}

#[tokio::test]
async fn a_broken_disk_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let v = version("a");
    let disk = open(options(dir.path())).await;
    store(&disk, &v, 0).await;
    std::fs::remove_dir_all(dir.path().join("blocks")).unwrap();
    std::fs::write(dir.path().join("blocks"), "in the way").unwrap();
    assert_eq!(disk.load(&v, 0).await, None);
    disk.store(&v, 1, &block(&v, 1));
    until(|| disk.shared.disabled.load(Ordering::Relaxed)).await;
    disk.store(&v, 2, &block(&v, 2));
    assert_eq!(disk.load(&v, 2).await, None);
}

#[test]
fn the_directory_is_private_and_ours() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = dir.path().join("blocks");
    std::fs::create_dir(&blocks).unwrap();
    std::fs::set_permissions(&blocks, Permissions::from_mode(0o777)).unwrap();
    DiskCache::open(options(dir.path())).unwrap();
    let mode = std::fs::metadata(&blocks).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);

    let linked = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&blocks, linked.path().join("blocks")).unwrap();
    let error = DiskCache::open(options(linked.path())).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}
