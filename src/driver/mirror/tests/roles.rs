//! Stores that change their part, and what holds of replicas after failures.

use super::*;
use crate::driver::parts::Source;

impl World {
    /// A mirror of some of the stores, in this order.
    fn mirror_of(&self, order: &[usize]) -> Mirror {
        let layered = self.layered();
        let stores = order.iter().map(|at| layered[*at].clone()).collect();
        Mirror::new(stores, None).unwrap()
    }

    /// What is listed while the first store is away.
    async fn listed_without(&self, first: usize, mirror: &Mirror) -> Result<Vec<Key>> {
        self.faults[first].set("*:error=unreachable").unwrap();
        let page = mirror.list(ListRequest::flat(&Key::empty())).await;
        self.faults[first].clear();
        tokio::time::sleep(Duration::from_secs(11)).await;
        page.map(|page| page.entries.into_iter().map(|entry| entry.key).collect())
    }
}

/// Gives the replicas to this mirror, whoever had them.
async fn given(mirror: &Mirror) {
    let repaired = mirror.replicated()[0].repair(true, &mut |_| {}).await;
    assert_eq!(repaired.unwrap().failed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_first_is_no_complete_replica_afterwards() {
    let world = World::of(2);
    for (order, name) in [
        ([0, 1], "k1"),
        ([1, 0], "k2"),
        ([0, 1], "k3"),
        ([1, 0], "k4"),
    ] {
        let mirror = world.mirror_of(&order);
        settled(&mirror).await;
        put(&mirror, name, "x").await.unwrap();
        drop(mirror);
    }
    let mirror = world.mirror_of(&[0, 1]);
    settled(&mirror).await;
    let listed = world.listed_without(0, &mirror).await.unwrap();
    assert_eq!(listed, ["k1", "k2", "k3", "k4"].map(Key::from));
    // What says which part a store has is nothing that the mirror has.
    let page = mirror.list(ListRequest::flat(&Key::empty())).await.unwrap();
    let told: Vec<Key> = page.entries.into_iter().map(|entry| entry.key).collect();
    assert_eq!(told, listed);
}

#[tokio::test(start_paused = true)]
async fn a_replica_is_complete_for_one_primary_only() {
    let world = World::of(3);
    let (ab, cb) = ([0, 1], [2, 1]);
    let mirror = world.mirror_of(&ab);
    put(&mirror, "a", "x").await.unwrap();
    settled(&mirror).await;
    drop(mirror);
    put(&world.stores[2], "c", "y").await.unwrap();
    // Before it is given to another one, and filled, it answers for nothing.
    let mirror = world.mirror_of(&cb);
    world.faults[1].set("put:error=denied").unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(mirror.replicated()[0].status()[1].everything);
    assert!(world.listed_without(2, &mirror).await.is_err());
    world.faults[1].clear();
    given(&mirror).await;
    settled(&mirror).await;
    assert_eq!(all(&world.stores[1]).await, all(&world.stores[2]).await);
    drop(mirror);
    // And what was written to it once as another one's is not this one's.
    let mirror = world.mirror_of(&ab);
    assert!(world.listed_without(0, &mirror).await.is_err());
    given(&mirror).await;
    settled(&mirror).await;
    assert_eq!(
        world.listed_without(0, &mirror).await.unwrap(),
        ["a".into()]
    );
}

#[tokio::test(start_paused = true)]
async fn another_ones_replica_is_left_alone_by_writes() {
    let world = World::of(3);
    let mirror = world.mirror_of(&[0, 1]);
    put(&mirror, "k", "old").await.unwrap();
    settled(&mirror).await;
    drop(mirror);
    let other = world.mirror_of(&[2, 1]);
    put(&other, "k", "of another one").await.unwrap();
    assert_eq!(text(&world.stores[1], "k").await.unwrap(), "old");
    let status = other.replicated()[0].status();
    assert!(status[1].of_another && status[1].pending == 1);
    drop(other);
    let mirror = world.mirror_of(&[0, 1]);
    settled(&mirror).await;
    assert_eq!(all(&world.stores[1]).await, all(&world.stores[0]).await);
}

/// A mirror of two stores that is up to date, and has three objects.
async fn of_three(world: &World, journal: Option<&Path>) -> Mirror {
    let mirror = Mirror::new(world.layered(), journal).unwrap();
    for name in ["a", "b", "c"] {
        put(&mirror, name, "x").await.unwrap();
    }
    settled(&mirror).await;
    mirror
}

/// What becomes of a store whose disk is not there, or whose data are gone.
async fn lose_everything(store: &Memory) {
    let page = store.list(ListRequest::flat(&Key::empty())).await.unwrap();
    for entry in page.entries {
        store.delete(&entry.key, Precondition::None).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_primary_that_came_up_empty_takes_nothing_from_its_replicas() {
    let world = World::of(2);
    drop(of_three(&world, None).await);
    lose_everything(&world.stores[0]).await;
    let mirror = world.mirror();
    put(&mirror, "note", "new").await.unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(all(&world.stores[1]).await.len(), 3);
    assert!(mirror.replicated()[0].status()[1].of_another);
    let repaired = mirror.replicated()[0].repair(false, &mut |_| {}).await;
    let error = repaired.unwrap_err();
    assert!(error.message().contains("name replica 1 first"), "{error}");
    assert_eq!(all(&world.stores[1]).await.len(), 3);
    // The copies are all that is left, and can be read again.
    drop(mirror);
    let mirror = world.mirror_of(&[1]);
    assert_eq!(text(&mirror, "a").await.unwrap(), "x");
    drop(mirror);
    let mirror = world.mirror();
    given(&mirror).await;
    settled(&mirror).await;
    world.assert_alike().await;
    assert!(!mirror.replicated()[0].status()[1].of_another);
}

#[tokio::test(start_paused = true)]
async fn a_journal_of_before_takes_nothing_for_a_primary_that_came_up_empty() {
    let (world, dir) = (World::of(2), tempfile::tempdir().unwrap());
    let mirror = of_three(&world, Some(dir.path())).await;
    world.faults[1].set("put:error=denied").unwrap();
    put(&mirror, "a", "newer").await.unwrap();
    drop(mirror);
    world.faults[1].clear();
    lose_everything(&world.stores[0]).await;
    let mirror = Mirror::new(world.layered(), Some(dir.path())).unwrap();
    assert_eq!(mirror.replicated()[0].status()[1].pending, 1);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(text(&world.stores[1], "a").await.unwrap(), "x");
}

#[tokio::test(start_paused = true)]
async fn a_primary_that_loses_everything_meanwhile_takes_nothing_from_its_replicas() {
    let world = World::of(2);
    let mirror = of_three(&world, None).await;
    world.faults[1].set("put:error=denied").unwrap();
    put(&mirror, "a", "newer").await.unwrap();
    lose_everything(&world.stores[0]).await;
    put(&world.stores[0], "note", "new").await.unwrap();
    world.faults[1].clear();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(text(&world.stores[1], "a").await.unwrap(), "x");
    assert_eq!(mirror.replicated()[0].status()[1].pending, 1);
}

#[tokio::test(start_paused = true)]
async fn copies_in_a_replica_without_a_note_are_removed_by_nobody_in_the_background() {
    let world = World::of(2);
    drop(of_three(&world, None).await);
    for (store, key) in [(1, ".bucketfs/bucketfs-source"), (0, "a")] {
        let key = Key::from(key);
        let delete = world.stores[store].delete(&key, Precondition::None);
        delete.await.unwrap();
    }
    let mirror = world.mirror();
    put(&mirror, "d", "y").await.unwrap();
    settled(&mirror).await;
    assert_eq!(all(&world.stores[1]).await.len(), 4);
    // It may be more than there is, and is not told for what there is.
    assert!(mirror.replicated()[0].status()[1].everything);
    assert!(world.listed_without(0, &mirror).await.is_err());
    let repaired = mirror.replicated()[0].repair(false, &mut |_| {}).await;
    assert_eq!(repaired.unwrap().mended, 1);
    world.assert_alike().await;
    assert!(!mirror.replicated()[0].status()[1].everything);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_attributes_makes_no_copy_equal_that_an_earlier_one_did_not_reach() {
    let world = World::of(2);
    let mirror = world.mirror();
    settled(&mirror).await;
    let etag = put(&mirror, "k", "x").await.unwrap().etag;
    let key = Key::from("k");
    world.faults[1]
        .set("set_attributes:error=unreachable")
        .unwrap();
    let change = AttributeChange {
        mode: Some(0o100_600),
        ..AttributeChange::default()
    };
    let set = mirror.set_attributes(&key, change, Some(etag.clone()));
    set.await.unwrap();
    world.faults[1].clear();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let change = AttributeChange {
        user: [("x".to_owned(), Some("y".into()))].into(),
        ..AttributeChange::default()
    };
    let set = mirror.set_attributes(&key, change, Some(etag));
    set.await.unwrap();
    settled(&mirror).await;
    world.assert_alike().await;
}

#[test]
fn a_change_makes_a_copy_what_it_should_be_or_is_none() {
    let source = |attributes: &Attributes| Source::of(&ETag::new("e"), attributes, None);
    let bare = Attributes {
        mode: Some(0o100_640),
        ..Attributes::default()
    };
    let told = Attributes {
        uid: Some(7),
        mtime: Some(SystemTime::UNIX_EPOCH),
        ..bare.clone()
    };
    let to = Attributes {
        mode: Some(0o100_600),
        ..Attributes::default()
    };
    // A store may tell an owner that the source never had, but none that it has no more.
    let difference = |copy, marked| carry::difference(copy, &to, &source(marked));
    assert_eq!(difference(&told, &bare).unwrap().mode, to.mode);
    assert_eq!(difference(&told, &told), None);
    let typed = Attributes {
        content_type: Some("text/plain".into()),
        ..bare.clone()
    };
    assert_eq!(difference(&typed, &typed), None);
}

#[tokio::test(start_paused = true)]
async fn a_primary_that_falls_silent_holds_up_no_repair_for_ever() {
    for fault in ["list:hang", "head:hang", "get:hang"] {
        let world = World::of(2);
        put(&world.stores[0], "k", "x").await.unwrap();
        let mirror = world.mirror();
        world.faults[0].set(fault).unwrap();
        let replicated = mirror.replicated();
        let mut said = Vec::new();
        let mut say = |line| said.push(line);
        let repaired = tokio::time::timeout(
            Duration::from_secs(600),
            replicated[0].repair(false, &mut say),
        );
        let repaired = repaired.await.expect(fault);
        assert!(repaired.is_err() || repaired.unwrap().failed > 0, "{fault}");
        world.faults[0].clear();
        settled(&mirror).await;
        world.assert_alike().await;
    }
}

#[tokio::test(start_paused = true)]
async fn links_that_can_have_no_mark_are_not_missing_while_the_primary_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let location = Location::parse(&url).unwrap();
    let local = crate::driver::open(&location, &OpenOptions::default()).await;
    let local = local.unwrap().driver;
    let world = World::of(1);
    let stores = vec![world.layered().remove(0), local.clone()];
    let mirror = Mirror::new(stores, None).unwrap();
    settled(&mirror).await;
    let link = PutOptions {
        attributes: Attributes {
            mode: Some(libc::S_IFLNK | 0o777),
            ..Attributes::default()
        },
        ..PutOptions::default()
    };
    let key = Key::from("d/link");
    mirror.put(&key, "target".into(), link).await.unwrap();
    put(&mirror, "e/file", "x").await.unwrap();
    assert!(mirror.is_settled());
    world.faults[0].set("*:error=unreachable").unwrap();
    let listed = mirror.list(ListRequest::flat(&Key::empty())).await;
    assert_eq!(listed.unwrap_err().kind(), ErrorKind::Unreachable);
    // Nothing else is held up by that.
    let listed = mirror.list(ListRequest::flat(&Key::from("e/"))).await;
    assert!(
        listed
            .unwrap()
            .entries
            .iter()
            .any(|entry| entry.key == "e/file".into())
    );
    assert_eq!(text(&mirror, "e/file").await.unwrap(), "x");
    world.faults[0].clear();
    // Nobody can say whose one is that the primary does not have.
    let gone = world.stores[0].delete(&key, Precondition::None);
    gone.await.unwrap();
    let mut said = Vec::new();
    let repaired = mirror.replicated()[0]
        .repair(false, &mut |line| said.push(line))
        .await;
    let repaired = repaired.unwrap();
    assert_eq!((repaired.mended, repaired.failed), (0, 0));
    assert!(said.iter().any(|line| line.contains("d/link")), "{said:?}");
    assert!(local.head(&key).await.is_ok());
}
