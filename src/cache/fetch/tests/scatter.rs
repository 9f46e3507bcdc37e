//! Reading here and there.

use super::*;
use crate::cache::fetch::scatter::{PARALLEL, PATIENCE, RIDE, SWEEP};

/// What a handle that reads one block in each of `order` has cost.
struct Cost {
    reads: u64,
    bytes: u64,
    gets: u64,
}

/// Reads 4 KiB of each block.
async fn scattered(
    store: &Arc<Store>,
    fetcher: &Arc<Fetcher>,
    version: &Arc<Version>,
    order: impl Iterator<Item = u64>,
) -> Cost {
    let before = store.count();
    let pattern = Pattern::default();
    let mut reads = 0;
    for index in order {
        let start = version.block(index).start;
        let got = read(fetcher, version, start..start + 4096, &pattern).await;
        assert_eq!(got.unwrap()[..8], index.to_le_bytes());
        reads += 1;
    }
    settle(fetcher).await;
    let gets = &store.gets.lock()[before..];
    Cost {
        reads,
        bytes: gets.iter().map(|get| get.end - get.start).sum(),
        gets: gets.len() as u64,
    }
}

/// Content in which each block begins with its index.
fn numbered(blocks: u64) -> Bytes {
    let mut bytes = vec![0; (blocks * BLOCK) as usize];
    for index in 0..blocks {
        bytes[(index * BLOCK) as usize..][..8].copy_from_slice(&index.to_le_bytes());
    }
    bytes.into()
}

fn shuffled(blocks: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..blocks).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut order);
    order
}

#[tokio::test]
async fn a_file_that_fits_and_is_read_all_over_is_brought_by_few_requests() {
    let blocks = 512;
    for size in [0, 4 * blocks * BLOCK] {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::new());
        // It fits the memory, or the disk.
        let options = FetchOptions::new(if size == 0 {
            2 * blocks * BLOCK
        } else {
            8 << 20
        });
        let disk = (size > 0).then(|| DiskOptions {
            dir: dir.path().to_owned(),
            size,
            namespace: "test".into(),
        });
        let fetcher = Fetcher::new(store.clone(), FetchOptions { disk, ..options }).unwrap();
        let version = store.put("k", "e", numbered(blocks));
        let order = shuffled(blocks);
        let cost = scattered(&store, &fetcher, &version, order.into_iter()).await;
        if size == 0 {
            assert!(cost.gets < blocks / 4, "{} gets", cost.gets);
            // Everything is here, so another handle asks for nothing.
            let again = scattered(&store, &fetcher, &version, 0..blocks).await;
            assert_eq!(again.gets, 0);
        } else {
            // How many goes by the disk, which the next reads do not wait for.
            assert!(cost.gets < blocks, "{} gets", cost.gets);
        }
        // A few blocks lie on the way of requests for others.
        assert!(cost.bytes <= blocks * BLOCK * 5 / 4, "{}", cost.bytes);
    }
}

#[tokio::test]
async fn a_file_that_does_not_fit_is_not_swallowed() {
    let blocks = 512;
    let store = Arc::new(Store::new());
    let fetcher = fetcher(&store, 2 * blocks * BLOCK - 2);
    let version = store.put("k", "e", numbered(blocks));
    let order = shuffled(blocks).into_iter().take(300);
    let cost = scattered(&store, &fetcher, &version, order).await;
    // Neighbours in time and place make two requests one, now and then.
    assert!(
        cost.gets >= 290 && cost.bytes <= 310 * BLOCK,
        "{} gets of {} bytes",
        cost.gets,
        cost.bytes
    );
}

#[tokio::test]
async fn what_is_never_come_upon_is_a_small_multiple_of_what_was_read() {
    let blocks = 2048;
    let store = Arc::new(Store::new());
    let fetcher = fetcher(&store, 2 * blocks * BLOCK);
    let version = store.put("k", "e", numbered(blocks));
    // From the end to the start, ever before what the last request brought.
    let order = (0..blocks).rev().step_by(RIDE as usize + 1);
    let cost = scattered(&store, &fetcher, &version, order).await;
    assert_eq!(cost.gets, cost.reads);
    let patient = u64::from(PATIENCE);
    let ridden = cost.reads - patient;
    assert!(cost.bytes > ridden * RIDE * BLOCK);
    assert!(cost.bytes <= (cost.reads + ridden * RIDE) * BLOCK);
}

#[tokio::test]
async fn reads_over_a_slow_line_wait_for_few_others() {
    let blocks = 8192;
    let store = Arc::new(Store::new());
    let fetcher = fetcher(&store, 2 * blocks * BLOCK);
    let version = store.put("k", "e", numbered(blocks));
    let pattern = Pattern::default();
    store.gate.forget_permits(usize::MAX);
    let mut at = 0;
    let mut next = async || {
        at += 2 * SWEEP * BLOCK;
        let reading = read(&fetcher, &version, at..at + 4096, &pattern);
        tokio::pin!(reading);
        let before = store.count();
        // So much comes in as the read needs, and no more.
        while futures::poll!(&mut reading).is_pending() {
            tokio::task::yield_now().await;
            store.gate.add_permits(1);
        }
        let get = store.gets.lock()[before].clone();
        (get.end - get.start) / BLOCK
    };
    for _ in 0..PATIENCE {
        assert_eq!(next().await, 1);
    }
    for _ in 0..PARALLEL {
        assert!(next().await > RIDE);
    }
    assert_eq!(next().await, 1);
    store.gate.add_permits(1 << 20);
    settle(&fetcher).await;
    assert!(next().await > RIDE);
}

#[tokio::test]
async fn a_request_in_the_background_is_earned_by_one_that_was_saved() {
    let blocks = 4096;
    for take in [PATIENCE as usize, 40, 60, 100, 300] {
        let store = Arc::new(Store::new());
        let fetcher = fetcher(&store, 2 * blocks * BLOCK);
        let version = store.put("k", "e", numbered(blocks));
        let order = shuffled(blocks).into_iter().take(take);
        let cost = scattered(&store, &fetcher, &version, order).await;
        assert!(cost.gets <= cost.reads, "{} gets", cost.gets);
        assert!(cost.bytes <= cost.reads * SWEEP * BLOCK);
        if take == PATIENCE as usize {
            assert_eq!(cost.bytes, cost.reads * BLOCK);
        }
        // It ends with the reads.
        let after = store.count();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(store.count(), after);
    }
}

#[tokio::test]
async fn another_version_is_learned_anew() {
    let blocks = 512;
    let store = Arc::new(Store::new());
    let fetcher = fetcher(&store, 4 * blocks * BLOCK);
    let pattern = Pattern::default();
    for etag in ["1", "2"] {
        let version = store.put("k", etag, numbered(blocks));
        let before = store.count();
        for index in shuffled(blocks).into_iter().take(PATIENCE as usize) {
            let start = version.block(index).start;
            let got = read(&fetcher, &version, start..start + 4096, &pattern).await;
            assert_eq!(got.unwrap()[..8], index.to_le_bytes());
        }
        settle(&fetcher).await;
        let gets = &store.gets.lock()[before..];
        assert!(gets.iter().all(|get| get.end - get.start == BLOCK));
    }
}

#[tokio::test(start_paused = true)]
async fn memory_of_a_handle_that_is_idle_goes_to_another() {
    let blocks = 256;
    let store = Arc::new(Store::new());
    let fetcher = fetcher(&store, 2 * blocks * BLOCK);
    let versions = ["a", "b"].map(|key| store.put(key, "e", numbered(blocks)));
    let patterns = [Pattern::default(), Pattern::default()];
    let mut rides = Vec::new();
    for (i, from) in [(0, 0), (1, 0), (1, 100)] {
        if from == 100 {
            tokio::time::advance(Duration::from_secs(3)).await;
        }
        let before = store.count();
        for index in shuffled(blocks).into_iter().skip(from).take(40) {
            let start = versions[i].block(index).start;
            let range = start..start + 4096;
            read(&fetcher, &versions[i], range, &patterns[i])
                .await
                .unwrap();
        }
        settle(&fetcher).await;
        let gets = &store.gets.lock()[before..];
        rides.push(gets.iter().any(|get| get.end - get.start > 4 * BLOCK));
    }
    assert_eq!(rides, [true, false, true]);
}
