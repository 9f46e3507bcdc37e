use super::super::content::BLOCK;
use super::*;
use crate::driver::ETag;
use crate::key::Key;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
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
    written(disk).await;
    assert!(disk.shared.place(version, index).is_some());
}

/// Waits until all that was stored is written.
async fn written(disk: &DiskCache) {
    until(|| disk.shared.index.lock().waiting.is_empty()).await;
}

impl Shared {
    fn place(&self, version: &Version, index: u64) -> Option<Place> {
        let name = self.name(version, index);
        self.index.lock().entries.peek(&name).copied()
    }
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
    written(&disk).await;
    assert!(!disk.is_behind());
    assert_eq!(disk.shared.index.lock().entries.len(), 200);
    for version in &versions {
        assert_eq!(disk.peek(version, 9), Some(block(version, 9)));
    }
}

#[tokio::test]
async fn blocks_outlive_the_process_and_a_crash() {
    for crash in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let v = version("a");
        let disk = open(options(dir.path())).await;
        for index in 0..10 {
            store(&disk, &v, index).await;
        }
        let used = disk.used();
        let order = disk.shared.path.with_extension("order");
        assert!(!order.exists());
        drop(disk);
        assert!(order.exists());
        if crash {
            std::fs::remove_file(&order).unwrap();
        }

        let disk = open(options(dir.path())).await;
        assert!(!order.exists());
        assert_eq!(disk.used(), used);
        for index in 0..10 {
            assert!(disk.contains(&v, index));
            assert_eq!(disk.load(&v, index).await, Some(block(&v, index)));
        }
        assert!(!disk.contains(&version("b"), 0));
        drop(disk);
        // What another store left is of no use, and makes room in time.
        let elsewhere = DiskOptions {
            namespace: "s3://other".into(),
            ..options(dir.path())
        };
        let other = open(elsewhere).await;
        assert_eq!(other.load(&v, 0).await, None);
        assert_eq!(other.used(), used);
    }
}

#[tokio::test]
async fn an_order_that_is_not_whole_or_wrong_is_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let v = version("a");
    let damages: [fn(&mut Vec<u8>); 4] = [
        Vec::clear,
        |content| content[3] ^= 1,
        |content| content.truncate(content.len() - 1),
        |content| content[40] ^= 1,
    ];
    for damage in damages {
        let disk = open(options(dir.path())).await;
        for index in 0..3 {
            store(&disk, &v, index).await;
        }
        let order = disk.shared.path.with_extension("order");
        drop(disk);
        let mut content = std::fs::read(&order).unwrap();
        damage(&mut content);
        std::fs::write(&order, content).unwrap();
        let disk = open(options(dir.path())).await;
        for index in 0..3 {
            assert_eq!(disk.load(&v, index).await, Some(block(&v, index)));
        }
    }
    // One that tells of other slots is found out by their heads.
    let disk = open(options(dir.path())).await;
    let (path, place) = (disk.shared.path.clone(), disk.shared.place(&v, 0).unwrap());
    let names = [0, 1, 2].map(|index| disk.shared.name(&v, index));
    drop(disk);
    let far = Place {
        slot: 1000,
        ..place
    };
    let lies = [(names[1], place), (names[2], far)];
    order::save(&path.with_extension("order"), lies.into_iter()).unwrap();
    let disk = open(options(dir.path())).await;
    for index in 0..3 {
        assert_eq!(disk.load(&v, index).await, None);
    }
    assert_eq!(disk.used(), 0);
}

#[tokio::test]
async fn damage_is_a_miss_and_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let v = version("a");
    let disk = open(options(dir.path())).await;
    let path = disk.shared.path.clone();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    // Magic, name, checksum, length, key, and both ends of the block.
    for byte in [0, 9, 25, 29, 60, 4096, STRIDE - 1] {
        store(&disk, &v, 3).await;
        let start = u64::from(disk.shared.place(&v, 3).unwrap().slot) * STRIDE;
        let mut content = [0];
        file.read_exact_at(&mut content, start + byte).unwrap();
        content[0] ^= 1;
        file.write_all_at(&content, start + byte).unwrap();
        assert_eq!(disk.load(&v, 3).await, None, "{byte}");
        assert!(!disk.contains(&v, 3));
        assert_eq!(disk.used(), 0);
    }
    for length in [0, STRIDE - 1] {
        store(&disk, &v, 3).await;
        assert_eq!(disk.shared.place(&v, 3).unwrap().slot, 0);
        file.set_len(length).unwrap();
        assert_eq!(disk.load(&v, 3).await, None);
        assert!(!disk.contains(&v, 3));
    }
    // A whole slot in another block's place is that block's no more than a damaged one.
    store(&disk, &v, 1).await;
    store(&disk, &v, 2).await;
    let start = |index| u64::from(disk.shared.place(&v, index).unwrap().slot) * STRIDE;
    let mut content = vec![0; STRIDE as usize];
    file.read_exact_at(&mut content, start(1)).unwrap();
    file.write_all_at(&content, start(2)).unwrap();
    assert_eq!(disk.load(&v, 2).await, None);
    assert_eq!(disk.load(&v, 1).await, Some(block(&v, 1)));
}

/// What a file takes on disk.
fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
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
    let path = disk.shared.path.clone();
    assert!(allocated(&path) <= size + 8192);
    drop(disk);
    let smaller = DiskOptions {
        size: size / 2,
        ..small
    };
    let disk = open(smaller).await;
    until(|| disk.used() <= size / 2).await;
    assert!(disk.contains(&v, 0) && disk.contains(&v, 8) && !disk.contains(&v, 6));
    assert!(allocated(&path) <= size / 2 + 8192);
}

#[tokio::test]
async fn small_blocks_take_little_room_and_make_room_for_large_ones() {
    let dir = tempfile::tempdir().unwrap();
    let size = 40 * 8192;
    let disk = open(DiskOptions {
        size,
        ..options(dir.path())
    })
    .await;
    let path = disk.shared.path.clone();
    let small = |number: u64| {
        Arc::new(Version {
            size: 1 + number,
            ..(*version(&format!("{number}"))).clone()
        })
    };
    for number in 0..60 {
        store(&disk, &small(number), 0).await;
    }
    assert_eq!(disk.used(), size);
    assert!(allocated(&path) <= size + 8192, "{}", allocated(&path));
    let large = version("large");
    store(&disk, &large, 0).await;
    assert!(disk.used() <= size);
    assert!(!disk.contains(&small(30), 0) && disk.contains(&small(59), 0));
    assert!(allocated(&path) <= size + 8192, "{}", allocated(&path));
    // What can never fit is not kept, and costs nobody else's room.
    let tiny = tempfile::tempdir().unwrap();
    let disk = open(DiskOptions {
        size: 16384,
        ..options(tiny.path())
    })
    .await;
    store(&disk, &small(1), 0).await;
    disk.store(&large, 0, &block(&large, 0));
    written(&disk).await;
    assert!(disk.contains(&small(1), 0) && !disk.contains(&large, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_given_away_while_it_is_read_is_a_miss() {
    let dir = tempfile::tempdir().unwrap();
    let disk = open(DiskOptions {
        size: 5 * (BLOCK + 4096),
        ..options(dir.path())
    })
    .await;
    let disk = Arc::new(disk);
    let (mut found, v) = (0, version("a"));
    for round in 0..400 {
        for index in [round % 9, (round * 7 + 1) % 9] {
            disk.store(&v, index, &block(&v, index));
        }
        let loads = (0..9).map(|index| {
            let (disk, v) = (disk.clone(), v.clone());
            tokio::spawn(async move { (index, disk.load(&v, index).await) })
        });
        for load in futures::future::join_all(loads).await {
            let (index, bytes) = load.unwrap();
            if let Some(bytes) = bytes {
                assert_eq!(bytes, block(&v, index));
                found += 1;
            }
        }
    }
    assert!(found > 400, "{found}");
    written(&disk).await;
    let index = disk.shared.index.lock();
    let sum: u64 = index.entries.iter().map(|(_, place)| place.cost).sum();
    assert_eq!(index.used, sum);
    assert_eq!(index.slots as usize, index.entries.len() + index.free.len());
}

#[tokio::test]
async fn a_file_that_was_removed_gives_its_room_back() {
    let dir = tempfile::tempdir().unwrap();
    let v = version("a");
    let disk = open(options(dir.path())).await;
    store(&disk, &v, 0).await;
    let removed = File::open(&disk.shared.path).unwrap();
    std::fs::remove_file(&disk.shared.path).unwrap();
    disk.store(&v, 1, &block(&v, 1));
    until(|| disk.shared.disabled.load(Ordering::Relaxed)).await;
    assert_eq!(removed.metadata().unwrap().blocks(), 0);
    assert_eq!(disk.used(), 0);
    for index in 0..2 {
        assert_eq!(disk.load(&v, index).await, None);
    }
    disk.store(&v, 2, &block(&v, 2));
    assert_eq!(disk.load(&v, 2).await, None);
}

#[tokio::test]
async fn a_disk_that_takes_nothing_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let (path, v) = (dir.path().join("slots"), version("a"));
    let disk = open(options(dir.path())).await;
    store(&disk, &v, 0).await;
    drop(disk);
    // Every write to it fails.
    let file = CacheFile::read_only(&path);
    let disk = DiskCache::over(options(dir.path()), path, file).unwrap();
    disk.store(&v, 1, &block(&v, 1));
    until(|| disk.shared.disabled.load(Ordering::Relaxed)).await;
    written(&disk).await;
    assert_eq!(disk.load(&v, 1).await, None);
    assert_eq!(disk.load(&v, 0).await, Some(block(&v, 0)));
    disk.store(&v, 2, &block(&v, 2));
    assert_eq!(disk.load(&v, 2).await, None);
}

#[tokio::test]
async fn what_cannot_be_opened_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("slots")).unwrap();
    let error = DiskCache::open(options(dir.path())).err().unwrap();
    let place = dir.path().join("slots");
    let told = format!("cannot keep the cache in {}: ", place.display());
    assert!(error.to_string().starts_with(&told), "{error}");
}
