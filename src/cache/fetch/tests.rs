mod scatter;
mod store;

use super::*;
use crate::cache::disk::STRIDE;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use store::{Fault, Store};
use tokio::sync::Semaphore;

fn content(len: u64, seed: u64) -> Bytes {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len as usize];
    random.fill(&mut bytes);
    bytes.into()
}

fn fetcher(store: &Arc<Store>, memory: u64) -> Arc<Fetcher> {
    Fetcher::new(store.clone(), FetchOptions::new(memory)).unwrap()
}

/// As the filesystem reads: inline where possible.
async fn read(
    fetcher: &Arc<Fetcher>,
    version: &Arc<Version>,
    range: Range<u64>,
    pattern: &Pattern,
) -> Result<Bytes> {
    match fetcher.cached(version, range.clone(), pattern) {
        Some(bytes) => Ok(bytes),
        None => fetcher.read(version, range, pattern).await,
    }
}

/// Waits until nothing is on its way.
async fn settle(fetcher: &Fetcher) {
    while !fetcher.in_flight.lock().is_empty() {
        tokio::task::yield_now().await;
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_exact() {
    for (ranges, memory) in [
        (true, 64 << 20),
        (true, 1 << 20),
        (true, 0),
        (false, 2 << 20),
    ] {
        let store = Arc::new(Store {
            ranges,
            ..Store::new()
        });
        let fetcher = fetcher(&store, memory);
        for size in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * 1024 * 1024 + 7] {
            let bytes = content(size, size);
            let version = store.put(&format!("k{size}"), "e", bytes.clone());
            let tasks = (0..4).map(|task| {
                let (fetcher, version, bytes) = (fetcher.clone(), version.clone(), bytes.clone());
                tokio::spawn(async move {
                    let mut random = fastrand::Rng::with_seed(task);
                    let pattern = Pattern::default();
                    let mut next = 0;
                    for _ in 0..60 {
                        let start = match random.u8(0..3) {
                            0 => random.u64(0..=size + 10),
                            _ => next,
                        };
                        next = start + random.u64(0..=400_000);
                        let got = read(&fetcher, &version, start..next, &pattern)
                            .await
                            .unwrap();
                        let cut = version.cut(start..next);
                        assert!(got == bytes[cut.start as usize..cut.end as usize]);
                        assert!(fetcher.usage().memory <= memory);
                    }
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await.unwrap();
            }
        }
        settle(&fetcher).await;
    }
}

#[tokio::test]
async fn a_small_file_is_one_get_however_many_read_it() {
    let store = Arc::new(Store::new());
    let fetcher = fetcher(&store, 8 << 20);
    let version = store.put("k", "e", content(BLOCK, 1));
    let patterns: Vec<Pattern> = (0..5).map(|_| Pattern::default()).collect();
    let reads = patterns.iter().enumerate().map(|(i, pattern)| {
        let start = i as u64 * 1000;
        fetcher.read(&version, start..start + 5000, pattern)
    });
    for result in futures::future::join_all(reads).await {
        assert_eq!(result.unwrap().len(), 5000);
    }
    assert!(fetcher.cached(&version, 0..BLOCK, &patterns[0]).is_some());
    assert_eq!(*store.gets.lock(), vec![0..BLOCK; 1]);
}

#[tokio::test]
async fn sequential_reading_is_a_few_gets_of_every_byte_once() {
    for request in [BLOCK, 1 << 20, 4096] {
        let store = Arc::new(Store::new());
        let fetcher = fetcher(&store, 64 << 20);
        let size = 16 << 20;
        let bytes = content(size, 2);
        let version = store.put("k", "e", bytes.clone());
        let pattern = Pattern::default();
        for start in (0..size).step_by(request as usize) {
            let range = start..start + request;
            let got = read(&fetcher, &version, range, &pattern).await.unwrap();
            assert!(got == bytes[start as usize..(start + request) as usize]);
        }
        let gets = store.gets.lock().clone();
        assert!(
            gets.len() <= 12,
            "{} gets of {request}: {gets:?}",
            gets.len()
        );
        assert_eq!(gets.iter().map(|r| r.end - r.start).sum::<u64>(), size);
    }
}

#[tokio::test]
async fn random_reading_fetches_its_blocks_only() {
    let store = Arc::new(Store::new());
    let fetcher = fetcher(&store, 64 << 20);
    let version = store.put("k", "e", content(16 << 20, 3));
    let pattern = Pattern::default();
    for block in [70, 3, 50, 20, 90] {
        let start = block * BLOCK + 5000;
        let got = fetcher.read(&version, start..start + 4096, &pattern).await;
        assert_eq!(got.unwrap().len(), 4096);
        assert_eq!(
            store.gets.lock().last(),
            Some(&(block * BLOCK..(block + 1) * BLOCK))
        );
    }
    assert_eq!(store.count(), 5);
}

#[tokio::test]
async fn a_reader_waits_for_its_own_blocks_only() {
    let store = Arc::new(Store {
        gate: Arc::new(Semaphore::new(3)),
        ..Store::new()
    });
    let fetcher = fetcher(&store, 64 << 20);
    let version = store.put("k", "e", content(1 << 20, 4));
    let pattern = Pattern::default();
    // Three pieces of the body are enough for the first block, not for the second.
    fetcher.read(&version, 0..4096, &pattern).await.unwrap();
    assert_eq!(*store.gets.lock(), vec![0..2 * BLOCK; 1]);
    let mut second = Box::pin(fetcher.read(&version, BLOCK..BLOCK + 1, &pattern));
    assert!(futures::poll!(&mut second).is_pending());
    store.gate.add_permits(1000);
    assert_eq!(second.await.unwrap().len(), 1);
}

#[tokio::test]
async fn another_version_is_changed_and_never_mixed_in() {
    for conditions in [true, false] {
        let store = Arc::new(Store {
            conditions,
            ..Store::new()
        });
        let fetcher = fetcher(&store, 8 << 20);
        let old = content(3 * BLOCK, 5);
        let version = store.put("k", "1", old.clone());
        let pattern = Pattern::default();
        let start = 2 * BLOCK;
        let got = fetcher.read(&version, start..start + 10, &pattern).await;
        assert_eq!(got.unwrap(), old[start as usize..][..10]);
        store.put("k", "2", content(3 * BLOCK, 6));
        let result = fetcher.read(&version, 0..3 * BLOCK, &pattern).await;
        assert_eq!(kind(result), ErrorKind::Changed);
        assert_eq!(
            kind(fetcher.read_all(&version, 0..9).await),
            ErrorKind::Changed
        );
        // What was read of the old version is still what it was.
        let got = fetcher
            .cached(&version, start..3 * BLOCK, &pattern)
            .unwrap();
        assert_eq!(got, old[start as usize..]);
        store.objects.lock().clear();
        let result = fetcher.read(&version, 0..1, &pattern).await;
        assert_eq!(kind(result), ErrorKind::NotFound);
        // One get for each failed read: nobody asks twice about a version that is gone.
        assert_eq!(store.count(), 3);
    }
}

#[tokio::test]
async fn bodies_of_a_wrong_length_are_errors_and_whole_blocks_are_kept() {
    let store = Arc::new(Store::new());
    let fetcher = fetcher(&store, 8 << 20);
    let bytes = content(3 * BLOCK, 7);
    let version = store.put("k", "e", bytes.clone());
    let pattern = Pattern::default();
    // The last of them brings all bytes and then some.
    for (fault, arrived) in [
        (Fault::Short(0), 0),
        (Fault::Short(4), BLOCK),
        (Fault::Long, 2 * BLOCK),
    ] {
        store.fault(&[fault]);
        let result = fetcher.read(&version, 0..u64::MAX, &pattern).await;
        assert_eq!(kind(result), ErrorKind::Corrupt);
        assert_eq!(
            fetcher.peek(&version, &(0..arrived)).unwrap(),
            bytes[..arrived as usize]
        );
        assert_eq!(fetcher.peek(&version, &(arrived..arrived + 1)), None);
    }
    let got = fetcher.read(&version, 0..u64::MAX, &pattern).await.unwrap();
    assert!(got == bytes);
    // What did arrive is not asked for again.
    let starts: Vec<u64> = store.gets.lock().iter().map(|range| range.start).collect();
    assert_eq!(starts, [0, 0, BLOCK, 2 * BLOCK]);
}

#[tokio::test]
async fn failures_wake_everybody_and_others_try_again() {
    let store = Arc::new(Store {
        gate: Arc::new(Semaphore::new(0)),
        ..Store::new()
    });
    let fetcher = fetcher(&store, 8 << 20);
    let version = store.put("k", "e", content(BLOCK, 9));
    let patterns = [(); 3].map(|()| Pattern::default());
    let denied = [Fault::Fail(ErrorKind::Denied)];
    store.fault(&denied);
    let mut reads = patterns
        .each_ref()
        .map(|pattern| Box::pin(fetcher.read(&version, 0..10, pattern)));
    for read in &mut reads {
        assert!(futures::poll!(read).is_pending());
    }
    store.gate.add_permits(1000);
    let [own, joined, too] = reads;
    let (own, joined, too) = tokio::join!(own, joined, too);
    assert_eq!(kind(own), ErrorKind::Denied);
    assert!(joined.is_ok() && too.is_ok());
    assert_eq!(store.count(), 2);

    // A request that dies is tried again once, then given up.
    fetcher.forget(&version.key);
    store.fault(&[Fault::Panic]);
    assert!(fetcher.read(&version, 0..10, &patterns[0]).await.is_ok());
    fetcher.forget(&version.key);
    store.fault(&[Fault::Panic, Fault::Panic]);
    let result = fetcher.read(&version, 0..10, &patterns[0]).await;
    assert_eq!(kind(result), ErrorKind::Unavailable);
    assert!(fetcher.in_flight.lock().is_empty());
}

#[tokio::test]
async fn a_dropped_reader_leaves_nothing_behind() {
    let store = Arc::new(Store {
        gate: Arc::new(Semaphore::new(0)),
        ..Store::new()
    });
    let fetcher = fetcher(&store, 8 << 20);
    let version = store.put("k", "e", content(BLOCK, 10));
    let pattern = Pattern::default();
    let mut read = Box::pin(fetcher.read(&version, 0..10, &pattern));
    assert!(futures::poll!(&mut read).is_pending());
    drop(read);
    store.gate.add_permits(1000);
    settle(&fetcher).await;
    assert!(fetcher.cached(&version, 0..BLOCK, &pattern).is_some());
    assert_eq!(store.count(), 1);
}

#[tokio::test]
async fn whole_objects_are_got_once() {
    let store = Arc::new(Store {
        ranges: false,
        ..Store::new()
    });
    let fetcher = fetcher(&store, 64 << 20);
    let bytes = content(5 * BLOCK + 1, 11);
    let version = store.put("k", "e", bytes.clone());
    let pattern = Pattern::default();
    let start = 3 * BLOCK - 5;
    let got = fetcher.read(&version, start..start + 10, &pattern).await;
    assert_eq!(got.unwrap(), bytes[start as usize..][..10]);
    settle(&fetcher).await;
    assert_eq!(
        fetcher.cached(&version, 0..u64::MAX, &pattern).unwrap(),
        bytes
    );
    assert_eq!(store.count(), 1);
}

#[tokio::test]
async fn bytes_learned_elsewhere_are_not_fetched() {
    let store = Arc::new(Store::new());
    let fetcher = fetcher(&store, 8 << 20);
    let bytes = content(2 * BLOCK + 100, 12);
    let version = store.put("k", "e", bytes.clone());
    let pattern = Pattern::default();
    fetcher.insert(&version, 5, bytes.slice(5..BLOCK as usize + 5));
    assert_eq!(fetcher.usage().memory, 0);
    fetcher.insert(&version, BLOCK - 9, bytes.slice(BLOCK as usize - 9..));
    let tail = BLOCK..version.size;
    assert_eq!(
        fetcher.cached(&version, tail, &pattern).unwrap(),
        bytes[BLOCK as usize..]
    );
    assert_eq!(fetcher.cached(&version, 0..1, &pattern), None);
    assert_eq!(store.count(), 0);
}

#[tokio::test]
async fn stages_are_filled_exactly_and_past_the_cache() {
    for ranges in [true, false] {
        let store = Arc::new(Store {
            ranges,
            ..Store::new()
        });
        let fetcher = fetcher(&store, 8 << 20);
        let bytes = content(20 << 20, 13);
        let version = store.put("k", "e", bytes.clone());
        let range = 12_345..19 << 20;
        let got = fetcher.read_all(&version, range.clone()).await.unwrap();
        assert!(got == bytes[range.start as usize..range.end as usize]);
        assert_eq!(store.count(), if ranges { 3 } else { 1 });
        assert_eq!(fetcher.usage().memory, 0);
        // A small range is shared with readers, and fetches nothing ahead.
        let got = fetcher.read_all(&version, 0..100).await.unwrap();
        assert_eq!(got, bytes[..100]);
        settle(&fetcher).await;
        let last = store.gets.lock().last().cloned().unwrap();
        assert_eq!(last.end, if ranges { BLOCK } else { version.size });
        assert_eq!(
            fetcher.read_all(&version, 7..7).await.unwrap(),
            Bytes::new()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_handles_share_one_budget() {
    let store = Arc::new(Store::new());
    let memory = 8 << 20;
    let fetcher = fetcher(&store, memory);
    let size = 6 << 20;
    let most = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..12)
        .map(|i| {
            let version = store.put(&format!("k{i}"), "e", content(size, i));
            let (fetcher, most) = (fetcher.clone(), most.clone());
            tokio::spawn(async move {
                let pattern = Pattern::default();
                for start in (0..size).step_by(BLOCK as usize) {
                    let range = start..start + BLOCK;
                    read(&fetcher, &version, range, &pattern).await.unwrap();
                    most.fetch_max(fetcher.usage().memory, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(most.load(Ordering::Relaxed) <= memory);
    // Windows that fit are not thrown out before they are read: nearly every byte comes once.
    let sent: u64 = store.gets.lock().iter().map(|r| r.end - r.start).sum();
    assert!(sent <= 12 * size * 5 / 4, "{sent} bytes for {}", 12 * size);
}

async fn all_on_disk(fetcher: &Fetcher, version: &Version) {
    while fetcher.usage().disk < version.size {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn blocks_on_disk_are_not_fetched_and_damaged_ones_are() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::new());
    let bytes = content(8 * BLOCK + 1, 14);
    let version = store.put("k", "e", bytes.clone());
    let open = || {
        let disk = DiskOptions {
            dir: dir.path().to_owned(),
            size: 100 << 20,
            namespace: "test".into(),
        };
        let options = FetchOptions {
            disk: Some(disk),
            ..FetchOptions::new(8 << 20)
        };
        Fetcher::new(store.clone(), options).unwrap()
    };
    let fetcher = open();
    let pattern = Pattern::default();
    assert!(fetcher.read(&version, 0..u64::MAX, &pattern).await.unwrap() == bytes);
    let first = store.count();
    all_on_disk(&fetcher, &version).await;
    drop(fetcher);

    let fetcher = open();
    // What is read before it knows its files waits to be written, and would hide the damage.
    all_on_disk(&fetcher, &version).await;
    let pattern = Pattern::default();
    for start in (0..version.size).step_by(50_000) {
        let range = start..start + 50_000;
        let cut = version.cut(range.clone());
        let got = read(&fetcher, &version, range, &pattern).await.unwrap();
        assert!(got == bytes[cut.start as usize..cut.end as usize]);
    }
    assert_eq!(store.count(), first);

    fetcher.forget(&version.key);
    let file = File::options().write(true).open(dir.path().join("slots"));
    let file = file.unwrap();
    let size = file.metadata().unwrap().len();
    let damaged = size.div_ceil(STRIDE);
    assert_eq!(damaged, 9);
    let nonsense = vec![b'x'; size as usize];
    file.write_all_at(&nonsense, 0).unwrap();
    let pattern = Pattern::default();
    assert!(fetcher.read(&version, 0..u64::MAX, &pattern).await.unwrap() == bytes);
    assert!(store.count() > first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_or_is_dropped_nothing_hangs_and_all_bytes_are_right() {
    let store = Arc::new(Store::new());
    let fetcher = fetcher(&store, 3 << 20);
    let size = 4 << 20;
    let bytes = content(size, 15);
    let version = store.put("k", "e", bytes.clone());
    let faults = (0..400).map(|i| match i % 7 {
        0 => Fault::Fail(ErrorKind::Unavailable),
        1 => Fault::Short(i % 5),
        2 => Fault::Long,
        _ => Fault::None,
    });
    store.fault(&faults.collect::<Vec<_>>());
    let readers = (0..6).map(|seed| {
        let (fetcher, version, bytes) = (fetcher.clone(), version.clone(), bytes.clone());
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let pattern = Pattern::default();
            let (mut start, mut right) = (0, 0);
            for _ in 0..150 {
                if random.u8(0..4) == 0 {
                    start = random.u64(0..size);
                }
                let range = start..(start + random.u64(1..300_000)).min(size);
                start = range.end % size;
                let mut patience = random.u32(0..50);
                let impatient = std::future::poll_fn(|context| {
                    patience = patience.saturating_sub(1);
                    context.waker().wake_by_ref();
                    match patience {
                        0 => std::task::Poll::Ready(()),
                        _ => std::task::Poll::Pending,
                    }
                });
                let got = tokio::select! {
                    biased;
                    got = read(&fetcher, &version, range.clone(), &pattern) => got,
                    () = impatient => continue,
                };
                if let Ok(got) = got {
                    assert!(got == bytes[range.start as usize..range.end as usize]);
                    right += 1;
                }
            }
            right
        })
    });
    let readers: Vec<_> = readers.collect();
    let all = async {
        let mut right = 0;
        for reader in readers {
            right += reader.await.unwrap();
        }
        settle(&fetcher).await;
        right
    };
    let right = tokio::time::timeout(Duration::from_secs(60), all).await;
    assert!(right.expect("nothing hangs") > 100);
    store.faults.lock().clear();
    let got = fetcher.read(&version, 0..size, &Pattern::default()).await;
    assert!(got.unwrap() == bytes);
}

#[tokio::test]
async fn a_large_file_that_is_read_on_takes_no_room_from_others() {
    let store = Arc::new(Store::new());
    let memory = 64 << 20;
    let fetcher = fetcher(&store, memory);
    let small = store.put("small", "e", content(1 << 20, 1));
    let large = store.put("large", "e", content(96 << 20, 2));
    // It fits half of the memory, and stays.
    let middling = store.put("middling", "e", content(16 << 20, 3));
    for version in [&small, &middling, &large] {
        let pattern = Pattern::default();
        for start in (0..version.size).step_by(BLOCK as usize) {
            let got = read(&fetcher, version, start..start + BLOCK, &pattern).await;
            assert_eq!(got.unwrap().len() as u64, BLOCK);
        }
        settle(&fetcher).await;
    }
    let kept = 17 << 20;
    let used = fetcher.usage().memory;
    assert!(used <= kept + pattern::BEHIND + (1 << 20), "{used}");
    for (version, again) in [(&small, 0), (&middling, 0), (&large, 1)] {
        let before = store.count();
        for start in [0, version.size / 2] {
            read(&fetcher, version, start..start + BLOCK, &Pattern::default())
                .await
                .unwrap();
        }
        settle(&fetcher).await;
        assert_eq!((store.count() > before) as u64, again, "{:?}", version.key);
    }
}
