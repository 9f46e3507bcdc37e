mod repairs;
mod roles;

use super::*;
use crate::clock;
use crate::driver::memory::Memory;
use crate::driver::{Attributes, CommitId};
use crate::layer::{FaultPlan, Layered};
use bytes::Bytes;
use std::time::Duration;

/// Stores in memory that can be made to fail, the primary first.
struct World {
    stores: Vec<Memory>,
    faults: Vec<Arc<FaultPlan>>,
}

impl World {
    fn of(count: usize) -> World {
        World {
            stores: (0..count).map(|_| Memory::new()).collect(),
            faults: (0..count).map(|_| Arc::new(FaultPlan::none())).collect(),
        }
    }

    fn layered(&self) -> Vec<Arc<dyn Driver>> {
        let both = self.stores.iter().zip(&self.faults);
        both.map(|(store, faults)| Layered::over(Arc::new(store.clone()), faults.clone()))
            .collect()
    }

    fn mirror(&self) -> Mirror {
        Mirror::new(self.layered(), None).unwrap()
    }

    /// Each replica has what the primary has, and nothing else.
    async fn assert_alike(&self) {
        let primary = all(&self.stores[0]).await;
        for replica in &self.stores[1..] {
            assert_eq!(all(replica).await, primary);
        }
    }
}

type Seen = (Key, Bytes, Attributes, Vec<CommitId>);

/// Everything in a store, without marks.
async fn all(store: &Memory) -> Vec<Seen> {
    let page = store.list(ListRequest::flat(&Key::empty())).await.unwrap();
    let mut seen = Vec::new();
    for entry in page.entries {
        if entry.key.as_bytes().starts_with(b".bucketfs/") {
            continue;
        }
        let got = store.get(&entry.key, GetOptions::default()).await.unwrap();
        let (mut info, bytes) = got.found().unwrap().collect().await.unwrap();
        Mark::new(0).take(&mut info);
        seen.push((entry.key, bytes, info.told_attributes(), info.commits));
    }
    seen
}

async fn put(driver: &dyn Driver, name: &str, body: &str) -> Result<ObjectInfo> {
    let options = PutOptions {
        attributes: Attributes {
            mode: Some(0o100_640),
            ..Attributes::default()
        },
        commits: vec![CommitId(7)],
        ..PutOptions::default()
    };
    let body = Body::from(body.as_bytes().to_vec());
    driver.put(&Key::from(name), body, options).await
}

async fn read(driver: &dyn Driver, name: &str, options: GetOptions) -> Result<(ETag, Bytes)> {
    let got = driver.get(&Key::from(name), options).await?;
    let (info, bytes) = got.found()?.collect().await?;
    Ok((info.etag, bytes))
}

async fn text(driver: &dyn Driver, name: &str) -> Result<Bytes> {
    let read = read(driver, name, GetOptions::default()).await;
    read.map(|(_, bytes)| bytes)
}

async fn settled(mirror: &Mirror) {
    let wait = async {
        while !mirror.is_settled() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(600), wait).await;
    waited.expect("the replicas are brought up to date");
}

#[tokio::test(start_paused = true)]
async fn replicas_have_what_each_write_has_made() {
    let world = World::of(3);
    let mirror = world.mirror();
    let (a, b, c) = (Key::from("a"), Key::from("b"), Key::from("c"));
    let first = put(&mirror, "a", "one").await.unwrap();
    world.assert_alike().await;
    let change = AttributeChange {
        mode: Some(0o100_600),
        user: [("name".to_owned(), Some("value".into()))].into(),
        ..AttributeChange::default()
    };
    for if_match in [None, Some(first.etag.clone())] {
        let set = mirror.set_attributes(&a, change.clone(), if_match).await;
        set.unwrap();
        world.assert_alike().await;
    }
    let from = |etag: &ETag| CopyOptions {
        source: Some(etag.clone()),
        ..CopyOptions::default()
    };
    mirror.copy(&a, &b, from(&first.etag)).await.unwrap();
    world.assert_alike().await;
    let copied = mirror.copy(&a, &c, CopyOptions::default()).await.unwrap();
    world.assert_alike().await;
    let moved = Key::from("moved");
    mirror.rename(&c, &moved, from(&copied.etag)).await.unwrap();
    world.assert_alike().await;
    put(&mirror, "b", "two").await.unwrap();
    mirror.exchange(&a, &b).await.unwrap();
    world.assert_alike().await;
    let upload = mirror.upload(&c, PutOptions::default()).await.unwrap();
    for number in [2, 1] {
        let bytes = vec![number as u8; 5 << 20];
        upload.part(number, bytes.into()).await.unwrap();
    }
    upload.complete(Precondition::IfAbsent).await.unwrap();
    world.assert_alike().await;
    mirror.delete(&a, Precondition::None).await.unwrap();
    world.assert_alike().await;
    let removals = [b.into(), c.into(), moved.into()];
    mirror.delete_many(&removals).await.unwrap();
    world.assert_alike().await;
    assert!(all(&world.stores[1]).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lost_condition_changes_no_replica() {
    let world = World::of(2);
    let mirror = world.mirror();
    put(&mirror, "k", "kept").await.unwrap();
    let options = PutOptions {
        precondition: Precondition::IfAbsent,
        ..PutOptions::default()
    };
    let lost = mirror.put(&"k".into(), "lost".into(), options).await;
    assert_eq!(lost.unwrap_err().kind(), ErrorKind::Exists);
    world.assert_alike().await;
    assert_eq!(mirror.0.journal.count(1), (0, false));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_fails_fails_nothing_and_is_brought_up_to_date() {
    for fault in [
        "*:error=unreachable",
        "*:hang",
        "*:error=denied",
        "*:lost-reply",
    ] {
        let world = World::of(3);
        let mirror = world.mirror();
        for name in ["changed", "removed", "moved"] {
            put(&mirror, name, "old").await.unwrap();
        }
        world.faults[1].set(fault).unwrap();
        put(&mirror, "changed", "new").await.unwrap();
        put(&mirror, "new", "new").await.unwrap();
        let (from, to) = (Key::from("moved"), Key::from("to"));
        let rename = mirror.rename(&from, &to, CopyOptions::default());
        rename.await.unwrap();
        mirror
            .delete(&"removed".into(), Precondition::None)
            .await
            .unwrap();
        assert!(!mirror.is_settled(), "{fault}");
        let status = mirror.replicated()[0].status();
        assert!(
            status[1].pending >= 4 && status[2].pending == 0,
            "{status:?}"
        );
        assert_eq!(all(&world.stores[2]).await, all(&world.stores[0]).await);
        world.faults[1].clear();
        settled(&mirror).await;
        world.assert_alike().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_hangs_is_waited_for_once() {
    let world = World::of(2);
    let mirror = world.mirror();
    world.faults[1].set("*:hang").unwrap();
    let began = clock::now();
    put(&mirror, "k", "x").await.unwrap();
    let first = began.elapsed();
    assert!(first < 2 * parts::PATIENCE, "{first:?}");
    for _ in 0..100 {
        put(&mirror, "k", "x").await.unwrap();
    }
    assert!(began.elapsed() < 2 * parts::PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn reads_go_on_without_the_primary() {
    for fault in ["*:error=unreachable", "*:hang", "*:error=unavailable"] {
        let world = World::of(2);
        let mirror = world.mirror();
        settled(&mirror).await;
        let info = put(&mirror, "d/k", "bytes").await.unwrap();
        world.faults[0].set(fault).unwrap();
        let key = Key::from("d/k");
        let head = mirror.head(&key).await.unwrap();
        assert_eq!(head.etag, info.etag, "{fault}");
        assert_eq!(head.told_attributes(), info.told_attributes());
        let exact = GetOptions {
            if_match: Some(info.etag.clone()),
            range: Some(1..3),
            ..GetOptions::default()
        };
        let (etag, bytes) = read(&mirror, "d/k", exact).await.unwrap();
        assert_eq!((etag, &bytes[..]), (info.etag.clone(), &b"yt"[..]));
        let same = GetOptions {
            if_none_match: Some(info.etag.clone()),
            ..GetOptions::default()
        };
        let same = mirror.get(&key, same).await.unwrap();
        assert!(matches!(same, GetOutcome::Unmodified));
        let page = mirror.list(ListRequest::flat(&Key::empty())).await.unwrap();
        assert_eq!(page.entries.len(), 1);
        assert_eq!(page.entries[0].object.as_ref().unwrap().etag, info.etag);
        let status = mirror.replicated()[0].status();
        assert!(status[0].failing.is_some() && status[1].failing.is_none());
        // A write does not go on, and changes no copy.
        let waited = Duration::from_secs(60);
        let refused = tokio::time::timeout(waited, put(&mirror, "d/k", "lost")).await;
        assert!(!matches!(refused, Ok(Ok(_))), "{fault}");
        world.faults[0].clear();
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(text(&mirror, "d/k").await.unwrap(), "bytes");
        assert_eq!(mirror.replicated()[0].status()[0].failing, None);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_primary_does_not_have_is_not_there() {
    let world = World::of(2);
    let mirror = world.mirror();
    settled(&mirror).await;
    put(&mirror, "gone", "back from the dead").await.unwrap();
    // By somebody who knows nothing of the replica.
    let key = Key::from("gone");
    let gone = world.stores[0].delete(&key, Precondition::None);
    gone.await.unwrap();
    let error = text(&mirror, "gone").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = mirror.head(&"gone".into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // And while it is away, nothing without a mark is told, and an old version is none.
    put(&world.stores[1], "foreign", "x").await.unwrap();
    world.faults[0].set("*:error=unreachable").unwrap();
    let error = text(&mirror, "foreign").await.unwrap_err();
    assert!(parts::is_unavailable(&error), "{error}");
    assert!(
        mirror
            .head(&"foreign".into())
            .await
            .unwrap_err()
            .retryable()
    );
    let exact = GetOptions {
        if_match: Some(ETag::new("some")),
        ..GetOptions::default()
    };
    for name in ["gone", "missing"] {
        let error = read(&mirror, name, exact.clone()).await.unwrap_err();
        assert!(parts::is_unavailable(&error), "{error}");
    }
    // What was never written is as missing there as anywhere.
    let error = text(&mirror, "missing").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let page = mirror.list(ListRequest::flat(&Key::empty())).await.unwrap();
    assert!(
        page.entries
            .iter()
            .all(|entry| entry.key != "foreign".into())
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_known_to_be_stale_is_not_told() {
    let world = World::of(2);
    let mirror = world.mirror();
    settled(&mirror).await;
    let old = put(&mirror, "d/k", "old").await.unwrap();
    world.faults[1].set("put:error=unreachable").unwrap();
    put(&mirror, "d/k", "new").await.unwrap();
    world.faults[1].set("put:error=denied").unwrap();
    world.faults[0].set("*:error=unreachable").unwrap();
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(parts::is_unavailable(
        &text(&mirror, "d/k").await.unwrap_err()
    ));
    assert!(mirror.head(&"d/k".into()).await.is_err());
    let below = |prefix: &str| mirror.list(ListRequest::flat(&Key::from(prefix)));
    let requests = (below("d/").await, below("e/").await);
    assert!(requests.0.is_err() && requests.1.is_ok());
    // That version is that version, though.
    let exact = GetOptions {
        if_match: Some(old.etag),
        ..GetOptions::default()
    };
    assert_eq!(read(&mirror, "d/k", exact).await.unwrap().1, "old");
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_fails_forgets_no_other_replica_that_is_stale() {
    let world = World::of(3);
    let mirror = world.mirror();
    settled(&mirror).await;
    put(&mirror, "k", "old").await.unwrap();
    for replica in [1, 2] {
        world.faults[replica].set("put:error=denied").unwrap();
    }
    put(&mirror, "k", "new").await.unwrap();
    let compared = mirror
        .0
        .compare(0, repair::Removes::Noted, &mut |_| {})
        .await
        .unwrap();
    assert_eq!(compared.failed, 1);
    for at in [0, 1] {
        assert_eq!(mirror.0.journal.count(reads::bit(at)), (1, false));
    }
    world.faults[0].set("*:error=unreachable").unwrap();
    assert!(text(&mirror, "k").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_stale_copy_is_the_base_of_no_write() {
    let world = World::of(2);
    let (mirror, other) = (world.mirror(), world.mirror());
    settled(&mirror).await;
    settled(&other).await;
    put(&other, "k", "old").await.unwrap();
    world.faults[1].set("put:error=unreachable").unwrap();
    // The other one knows that the replica is behind, this one cannot.
    put(&other, "k", "new").await.unwrap();
    world.faults[1].set("put:error=denied").unwrap();
    world.faults[0].set("get:error=unreachable").unwrap();
    tokio::time::sleep(Duration::from_secs(11)).await;
    let (etag, bytes) = read(&mirror, "k", GetOptions::default()).await.unwrap();
    assert_eq!(bytes, "old");
    world.faults[0].clear();
    let based = PutOptions {
        precondition: Precondition::IfMatch(etag),
        ..PutOptions::default()
    };
    let lost = mirror.put(&"k".into(), "edited".into(), based).await;
    assert_eq!(lost.unwrap_err().kind(), ErrorKind::Changed);
    world.faults[1].clear();
    settled(&other).await;
    world.assert_alike().await;
    assert_eq!(text(&mirror, "k").await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn replicas_end_like_the_primary_whatever_arrives_first() {
    for seed in 0..10 {
        let world = World::of(3);
        for (at, faults) in world.faults.iter().enumerate() {
            let spec = format!(
                "put:delay=30ms@p0.5,delete:delay=40ms@p0.3,head:delay=20ms@p0.5,copy:delay=10ms@p0.5,seed={}",
                seed * 3 + at
            );
            faults.set(&spec).unwrap();
        }
        let (a, b) = (world.mirror(), world.mirror());
        let work = |mirror: Mirror, who: &'static str| async move {
            for round in 0..20 {
                let body = format!("{who} {round}");
                put(&mirror, "k", &body).await.unwrap();
                if round % 3 == 0 {
                    let key = Key::from("k");
                    mirror.delete(&key, Precondition::None).await.unwrap();
                }
                put(&mirror, "l", &body).await.unwrap();
                let (k, l) = (Key::from("k"), Key::from("l"));
                let _ = mirror.copy(&l, &k, CopyOptions::default()).await;
            }
        };
        tokio::join!(
            work(a.clone(), "a"),
            work(a.clone(), "a too"),
            work(b.clone(), "b")
        );
        settled(&a).await;
        settled(&b).await;
        world.assert_alike().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_dropped_is_carried_over_later() {
    let world = World::of(2);
    let mirror = world.mirror();
    world.faults[1].set("put:delay=1s").unwrap();
    let dropped = tokio::time::timeout(Duration::from_millis(500), put(&mirror, "k", "x")).await;
    assert!(dropped.is_err() && world.stores[1].is_empty());
    settled(&mirror).await;
    world.assert_alike().await;
    // And one of which nobody knows what it did.
    world.faults[0].set("put:lost-reply").unwrap();
    put(&mirror, "k", "y").await.unwrap_err();
    world.faults[0].clear();
    settled(&mirror).await;
    world.assert_alike().await;
}

#[tokio::test(start_paused = true)]
async fn the_next_process_knows_what_a_replica_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::of(2);
    let mirror = Mirror::new(world.layered(), Some(dir.path())).unwrap();
    world.faults[1].set("*:error=unreachable").unwrap();
    put(&mirror, "k", "x").await.unwrap();
    drop(mirror);
    // The task that repairs lets go of it.
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.faults[1].clear();
    let next = Mirror::new(world.layered(), Some(dir.path())).unwrap();
    assert!(!next.is_settled());
    settled(&next).await;
    world.assert_alike().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_replica_is_filled_and_answers_for_nothing_until_then() {
    let world = World::of(2);
    put(&world.stores[0], "old", "bytes").await.unwrap();
    world.faults[1].set("put:error=denied").unwrap();
    let mirror = world.mirror();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(mirror.replicated()[0].status()[1].everything);
    world.faults[0].set("*:error=unreachable").unwrap();
    for name in ["old", "missing"] {
        let error = text(&mirror, name).await.unwrap_err();
        assert!(parts::is_unavailable(&error), "{name}: {error}");
    }
    let listed = mirror.list(ListRequest::flat(&Key::empty())).await;
    assert!(parts::is_unavailable(&listed.unwrap_err()));
    for faults in &world.faults {
        faults.clear();
    }
    settled(&mirror).await;
    world.assert_alike().await;
    // The next one sees that it is filled, and compares nothing.
    let lists = Arc::new(FaultPlan::parse("list:error=denied").unwrap());
    let mut stores = world.layered();
    stores[1] = Layered::over(stores[1].clone(), lists.clone());
    settled(&Mirror::new(stores, None).unwrap()).await;
    assert_eq!(lists.injected(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_becomes_the_primary_is_a_store_like_any() {
    let world = World::of(2);
    let before = world.mirror();
    settled(&before).await;
    put(&before, "k", "x").await.unwrap();
    let swapped: Vec<_> = world.layered().into_iter().rev().collect();
    let mirror = Mirror::new(swapped, None).unwrap();
    let info = mirror.head(&"k".into()).await.unwrap();
    assert!(info.told_attributes().user.is_empty());
    // Marks of before are no marks of the new bytes.
    let options = PutOptions {
        attributes: world.stores[1]
            .head(&"k".into())
            .await
            .unwrap()
            .told_attributes(),
        ..PutOptions::default()
    };
    mirror.put(&"k".into(), "y".into(), options).await.unwrap();
    let stored = world.stores[1].head(&"k".into()).await.unwrap();
    assert!(stored.told_attributes().user.is_empty());
    assert_eq!(text(&world.stores[0], "k").await.unwrap(), "y");
}

#[tokio::test(start_paused = true)]
async fn mirrors_of_mirrors_tell_their_marks_apart() {
    let world = World::of(3);
    let [a, b, c] = <[_; 3]>::try_from(world.layered()).unwrap();
    let replicas = vec![Copies::open("c", c).unwrap()];
    let inner = Mirror::over(("b".into(), b), replicas, None, (1, true)).unwrap();
    settled(&inner).await;
    let mirror = Mirror::new(vec![a, Arc::new(inner)], None).unwrap();
    settled(&mirror).await;
    let info = put(&mirror, "k", "x").await.unwrap();
    // Two of three are away.
    for faults in &world.faults[..2] {
        faults.set("*:error=unreachable").unwrap();
    }
    let (etag, bytes) = read(&mirror, "k", GetOptions::default()).await.unwrap();
    assert_eq!((etag, &bytes[..]), (info.etag, &b"x"[..]));
    assert_eq!(mirror.replicated().len(), 2);
}
