use super::*;
use crate::driver::memory::Memory;
use crate::layer::{FaultPlan, Layered, Stats};
use bytes::Bytes;
use std::time::Duration;

struct World {
    fast: Memory,
    slow: Memory,
    faults: Arc<FaultPlan>,
    asked: Arc<Stats>,
    tier: Tier,
}

/// A tier whose fast store can be made to fail, and whose slow one counts.
fn world(fast: Memory) -> World {
    let slow = Memory::new();
    let (faults, asked) = (Arc::new(FaultPlan::none()), Arc::new(Stats::default()));
    let tier = Tier::new(
        Layered::over(Arc::new(fast.clone()), faults.clone()),
        Layered::over(Arc::new(slow.clone()), asked.clone()),
    );
    World {
        fast,
        slow,
        faults,
        asked,
        tier: tier.unwrap(),
    }
}

impl World {
    async fn put(&self, name: &str, body: &str) -> ObjectInfo {
        let body = Body::from(body.as_bytes().to_vec());
        let key = Key::from(name);
        let put = self.tier.put(&key, body, PutOptions::default());
        put.await.unwrap()
    }

    async fn read(&self, name: &str) -> Bytes {
        let got = self.tier.get(&name.into(), GetOptions::default()).await;
        got.unwrap().found().unwrap().collect().await.unwrap().1
    }

    fn gets(&self) -> u64 {
        let asked = self.asked.snapshot();
        asked.operations.get("get").map_or(0, |get| get.count)
    }
}

#[tokio::test]
async fn what_was_written_or_read_before_moves_no_bytes_of_the_slow_store() {
    let world = world(Memory::new());
    world.put("written", "here").await;
    assert_eq!(world.read("written").await, "here");
    assert_eq!(world.gets(), 0);
    let key = Key::from("read");
    let put = world.slow.put(&key, "there".into(), PutOptions::default());
    put.await.unwrap();
    assert_eq!(world.read("read").await, "there");
    world.tier.settled().await;
    assert_eq!(world.read("read").await, "there");
    assert_eq!(world.gets(), 1);
    let range = GetOptions {
        range: Some(1..3),
        ..GetOptions::default()
    };
    let part = world.tier.get(&key, range).await.unwrap().found().unwrap();
    assert_eq!(part.collect().await.unwrap().1, "he");
    assert_eq!(world.gets(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_that_falls_silent_keeps_no_place_of_a_copy() {
    let (fast, slow) = (Memory::new(), Memory::new());
    let faults = Arc::new(FaultPlan::none());
    let layered = Layered::over(Arc::new(slow.clone()), faults.clone());
    let tier = Tier::new(Arc::new(fast), layered).unwrap();
    let key = Key::from("k");
    let put = slow.put(&key, "bytes".into(), PutOptions::default());
    put.await.unwrap();
    let range = GetOptions {
        range: Some(1..3),
        ..GetOptions::default()
    };
    // The copy is begun by the read, and asks for the bytes itself.
    faults.set("get:hang@2+").unwrap();
    tier.get(&key, range).await.unwrap().found().unwrap();
    let settled = tokio::time::timeout(Duration::from_secs(600), tier.settled());
    settled.await.unwrap();
    assert_eq!(faults.injected(), 1);
}

#[tokio::test]
async fn a_copy_is_used_only_of_the_version_that_the_slow_store_has() {
    let world = world(Memory::new());
    world.put("k", "old").await;
    let key = Key::from("k");
    let put = world.slow.put(&key, "new".into(), PutOptions::default());
    put.await.unwrap();
    assert_eq!(world.read("k").await, "new");
    world.tier.settled().await;
    assert_eq!(world.read("k").await, "new");
    assert_eq!(world.gets(), 1, "the newer version was copied");
    world.slow.delete(&key, Precondition::None).await.unwrap();
    let gone = world.tier.get(&key, GetOptions::default()).await;
    assert_eq!(gone.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(world.fast.is_empty(), "nobody wants that copy any more");
    // What somebody put there who made no copy.
    let foreign = world.fast.put(&key, "else".into(), PutOptions::default());
    foreign.await.unwrap();
    let put = world.slow.put(&key, "true".into(), PutOptions::default());
    put.await.unwrap();
    assert_eq!(world.read("k").await, "true");
}

#[tokio::test]
async fn new_attributes_keep_the_copy() {
    let world = world(Memory::new());
    let info = world.put("k", "bytes").await;
    let change = AttributeChange {
        mode: Some(0o100_600),
        ..AttributeChange::default()
    };
    let key = Key::from("k");
    let set = world.tier.set_attributes(&key, change, Some(info.etag));
    set.await.unwrap();
    let got = world.tier.get(&"k".into(), GetOptions::default()).await;
    let got = got.unwrap().found().unwrap();
    assert_eq!(got.info.told_attributes().mode, Some(0o100_600));
    assert!(got.info.told_attributes().user.is_empty());
    assert_eq!(world.gets(), 0);
}

#[tokio::test]
async fn a_fast_store_that_fails_fails_nothing() {
    for faults in [
        "*:error=unreachable",
        "*:error=no-space",
        "*:error=denied",
        "*:lost-reply",
        "get:break=2",
        "get:truncate=2",
        "get:wrong-length",
    ] {
        let world = world(Memory::new());
        world.put("before", "before").await;
        world.faults.set(faults).unwrap();
        world.put("k", "one").await;
        assert_eq!(world.read("k").await, "one", "{faults}");
        world.put("k", "two").await;
        assert_eq!(world.read("k").await, "two", "{faults}");
        assert_eq!(world.read("before").await, "before", "{faults}");
        world
            .tier
            .delete(&"k".into(), Precondition::None)
            .await
            .unwrap();
        world.faults.clear();
        let gone = world.tier.head(&"k".into()).await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound, "{faults}");
        let gone = world.tier.get(&"k".into(), GetOptions::default()).await;
        assert_eq!(gone.unwrap_err().kind(), ErrorKind::NotFound, "{faults}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fast_store_that_hangs_is_waited_for_once() {
    let world = world(Memory::new());
    world.put("k", "bytes").await;
    world.faults.set("*:hang").unwrap();
    let began = crate::clock::now();
    assert_eq!(world.read("k").await, "bytes");
    let first = began.elapsed();
    assert!(first >= parts::PATIENCE && first < 2 * parts::PATIENCE);
    for _ in 0..100 {
        assert_eq!(world.read("k").await, "bytes");
    }
    assert_eq!(began.elapsed(), first);
}

#[tokio::test]
async fn a_full_fast_store_makes_room_for_what_is_used() {
    let world = world(Memory::with_size(100));
    for at in 0..20 {
        let body = format!("{at:030}");
        world.put(&format!("{at}"), &body).await;
        assert_eq!(world.read(&format!("{at}")).await, body);
    }
    assert_eq!(world.gets(), 0);
    assert_eq!((world.slow.len(), world.fast.len()), (20, 3));
    assert_eq!(world.read("0").await, format!("{:030}", 0));
}

/// A fast store that is slower than the readers holds no more than so many bytes in memory.
#[tokio::test(start_paused = true)]
async fn what_waits_for_the_fast_store_is_bounded() {
    for (size, count, most) in [(SMALL, 12, 4), (1, 600, 512)] {
        let world = world(Memory::new());
        let name = |at: usize| format!("{size}/{at}");
        for at in 0..count {
            let body = Body::from(vec![0; size as usize]);
            let key = Key::from(name(at));
            let put = world.slow.put(&key, body, PutOptions::default());
            put.await.unwrap();
        }
        world.faults.set("put:hang").unwrap();
        for at in 0..count {
            assert_eq!(world.read(&name(at)).await.len() as u64, size);
        }
        assert_eq!(world.tier.0.filling.lock().objects.len(), most);
        world.faults.clear();
        world.tier.settled().await;
        assert_eq!(world.tier.0.filling.lock().held, 0);
    }
}

#[tokio::test]
async fn a_large_object_is_copied_behind_who_reads_it() {
    let world = world(Memory::new());
    let bytes: Vec<u8> = (0..20 << 20).map(|at| (at % 253) as u8).collect();
    let key = Key::from("large");
    let put = world
        .slow
        .put(&key, bytes.clone().into(), PutOptions::default());
    put.await.unwrap();
    assert!(world.read("large").await == bytes);
    world.tier.settled().await;
    let before = world.gets();
    assert!(world.read("large").await == bytes);
    assert_eq!(world.gets(), before);
}

#[tokio::test]
async fn a_fast_store_that_keeps_no_attributes_is_refused() {
    #[derive(Debug)]
    struct Bare;
    #[async_trait]
    impl Driver for Bare {
        fn capabilities(&self) -> Capabilities {
            Capabilities::default()
        }
        async fn head(&self, _: &Key) -> Result<ObjectInfo> {
            Err(Error::unsupported("head"))
        }
        async fn get(&self, _: &Key, _: GetOptions) -> Result<GetOutcome> {
            Err(Error::unsupported("get"))
        }
        async fn put(&self, _: &Key, _: Body, _: PutOptions) -> Result<ObjectInfo> {
            Err(Error::unsupported("put"))
        }
        async fn delete(&self, _: &Key, _: Precondition) -> Result<()> {
            Err(Error::unsupported("delete"))
        }
        async fn list(&self, _: ListRequest) -> Result<Page> {
            Err(Error::unsupported("list"))
        }
    }
    let refused = Tier::new(Arc::new(Bare), Arc::new(Memory::new())).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
}
