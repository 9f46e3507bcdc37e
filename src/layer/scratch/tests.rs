use super::*;
use crate::driver::memory::Memory;
use crate::driver::{Attributes, CommitId, ListEntry, Location, OpenOptions, Strength};
use crate::layer::{FaultPlan, Layered};
use bytes::Bytes;
use std::collections::BTreeSet;

struct World {
    store: Memory,
    local: Arc<dyn Driver>,
    both: Scratch,
    /// What is on this machine lies there.
    _folder: tempfile::TempDir,
}

async fn world(patterns: &str) -> World {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let location = Location::parse(&url).unwrap();
    let opened = crate::driver::open(&location, &OpenOptions::default()).await;
    let (store, local) = (Memory::new(), opened.unwrap().driver);
    let names = LocalNames::parse(patterns).unwrap();
    let both = Scratch::over(Arc::new(store.clone()), local.clone(), names, false);
    World {
        both: both.unwrap(),
        store,
        local,
        _folder: folder,
    }
}

async fn put(driver: &dyn Driver, key: &str, body: impl Into<Body>) -> ObjectInfo {
    let key = Key::from(key);
    let put = driver.put(&key, body.into(), PutOptions::default());
    put.await.unwrap()
}

async fn read_all(driver: &dyn Driver, key: &str) -> Bytes {
    let got = driver.get(&key.into(), GetOptions::default()).await;
    got.unwrap().found().unwrap().collect().await.unwrap().1
}

async fn list(driver: &dyn Driver, mut request: ListRequest) -> Vec<ListEntry> {
    let mut entries = Vec::new();
    loop {
        let page = driver.list(request.clone()).await.unwrap();
        assert!(page.entries.len() <= request.limit);
        entries.extend(page.entries);
        request.token = page.next;
        if request.token.is_none() {
            return entries;
        }
    }
}

async fn keys(driver: &dyn Driver, request: ListRequest) -> Vec<String> {
    let entries = list(driver, request).await;
    entries.iter().map(|entry| entry.key.to_string()).collect()
}

fn everything() -> ListRequest {
    ListRequest::flat(&Key::empty())
}

#[tokio::test]
async fn names_that_match_never_reach_the_store() {
    let world = world("*.swp").await;
    let both = &world.both;
    put(both, "d/.a.swp", "swap").await;
    put(both, "d/a", "text").await;
    assert_eq!(keys(&world.store, everything()).await, ["d/a"]);
    assert_eq!(read_all(both, "d/.a.swp").await, "swap");
    assert_eq!(keys(both, everything()).await, ["d/.a.swp", "d/a"]);
    // What the store has of such a name is neither seen nor changed.
    put(&world.store, "d/.b.swp", "theirs").await;
    assert_eq!(keys(both, everything()).await, ["d/.a.swp", "d/a"]);
    let head = both.head(&"d/.b.swp".into()).await;
    assert_eq!(head.unwrap_err().kind(), ErrorKind::NotFound);
    put(both, "d/.b.swp", "ours").await;
    assert_eq!(read_all(&world.store, "d/.b.swp").await, "theirs");
    for key in ["d/.a.swp", "d/.b.swp"] {
        both.delete(&key.into(), Precondition::None).await.unwrap();
    }
    assert_eq!(keys(both, everything()).await, ["d/a"]);
    assert_eq!(keys(&world.store, everything()).await, ["d/.b.swp", "d/a"]);
}

#[tokio::test]
async fn pages_are_merged_in_key_order_whatever_their_size() {
    let world = world("*.t").await;
    let both = &world.both;
    let mut expected = BTreeSet::new();
    for directory in ["", "a/", "a/b/", "m/", "z.t/"] {
        for name in ["0", "1.t", "5", "5.t", "9.t", "z"] {
            let key = format!("{directory}{name}");
            put(both, &key, key.clone().into_bytes()).await;
            expected.insert(key);
        }
    }
    put(both, "only/here.t", "x").await;
    expected.insert("only/here.t".into());
    let expected: Vec<String> = expected.into_iter().collect();
    let top = expected.iter().map(|key| match key.split_once('/') {
        Some((directory, _)) => format!("{directory}/"),
        None => key.clone(),
    });
    let top: Vec<String> = top.collect::<BTreeSet<_>>().into_iter().collect();
    for limit in [1, 2, 3, 5, 1000] {
        let request = ListRequest {
            limit,
            ..everything()
        };
        assert_eq!(keys(both, request.clone()).await, expected, "{limit}");
        let request = ListRequest {
            delimiter: true,
            ..request
        };
        assert_eq!(keys(both, request.clone()).await, top, "{limit}");
        let request = ListRequest {
            start_after: Some("a/b/5".into()),
            delimiter: false,
            ..request
        };
        let after = expected.iter().filter(|key| key.as_str() > "a/b/5");
        assert_eq!(
            keys(both, request).await,
            after.cloned().collect::<Vec<_>>()
        );
    }
}

#[tokio::test]
async fn a_directory_goes_with_its_last_name_of_this_machine() {
    let world = world("*.t").await;
    let both = &world.both;
    put(both, "a/b/x.t", "x").await;
    assert_eq!(
        keys(both, ListRequest::directory(&Key::empty())).await,
        ["a/"]
    );
    let (from, to) = (Key::from("a/b/x.t"), Key::from("c/x.t"));
    let moved = both.rename(&from, &to, CopyOptions::default());
    moved.await.unwrap();
    assert_eq!(
        keys(both, ListRequest::directory(&Key::empty())).await,
        ["c/"]
    );
    both.delete(&"c/x.t".into(), Precondition::None)
        .await
        .unwrap();
    assert!(
        keys(both, ListRequest::directory(&Key::empty()))
            .await
            .is_empty()
    );
    assert!(keys(&*world.local, everything()).await.is_empty());
    // One that a crash has left is not shown either.
    put(&*world.local, "left/", Body::empty()).await;
    put(&*world.local, "other/no-match", "x").await;
    assert!(
        keys(both, ListRequest::directory(&Key::empty()))
            .await
            .is_empty()
    );
    assert!(keys(both, everything()).await.is_empty());
}

#[tokio::test]
async fn copies_go_across_with_attributes_commits_and_conditions() {
    let world = world("*.t").await;
    let both = &world.both;
    for (from, to) in [("a", "a.t"), ("b.t", "b")] {
        let options = PutOptions {
            attributes: Attributes {
                mode: Some(0o100_751),
                user: [("color".to_owned(), "blue".into())].into(),
                ..Attributes::default()
            },
            commits: vec![CommitId(7)],
            ..PutOptions::default()
        };
        let (from, to) = (Key::from(from), Key::from(to));
        let first = both
            .put(&from, "first".into(), options.clone())
            .await
            .unwrap();
        let second = both
            .put(&from, "second".into(), options.clone())
            .await
            .unwrap();
        let copy = |source: &ETag, destination| {
            let options = CopyOptions {
                source: Some(source.clone()),
                destination,
                ..CopyOptions::default()
            };
            both.copy(&from, &to, options)
        };
        let lost = copy(&first.etag, Precondition::IfAbsent).await.unwrap_err();
        assert_eq!((lost.kind(), lost.key()), (ErrorKind::Changed, Some(&from)));
        let copied = copy(&second.etag, Precondition::IfAbsent).await.unwrap();
        let told = both.head(&to).await.unwrap();
        assert_eq!(told.etag, copied.etag);
        let attributes = told.attributes.unwrap();
        assert_eq!(attributes.mode, options.attributes.mode);
        assert_eq!(attributes.user, options.attributes.user);
        assert_eq!(told.commits, options.commits);
        let lost = copy(&second.etag, Precondition::IfAbsent)
            .await
            .unwrap_err();
        assert_eq!((lost.kind(), lost.key()), (ErrorKind::Exists, Some(&to)));
        let stale = Precondition::IfMatch(first.etag.clone());
        let lost = copy(&second.etag, stale).await.unwrap_err();
        assert_eq!((lost.kind(), lost.key()), (ErrorKind::Changed, Some(&to)));
        let right = Precondition::IfMatch(copied.etag);
        copy(&second.etag, right).await.unwrap();
        let (none, none_here) = (Key::from("none"), Key::from("none.t"));
        let missing = both.copy(&none, &none_here, CopyOptions::default());
        assert_eq!(missing.await.unwrap_err().kind(), ErrorKind::NotFound);
        let rename = both.rename(&from, &to, CopyOptions::default()).await;
        assert_eq!(rename.unwrap_err().kind(), ErrorKind::Unsupported);
        let exchange = both.exchange(&from, &to).await;
        assert_eq!(exchange.unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(read_all(both, from.to_str().unwrap()).await, "second");
    }
    assert_eq!(keys(&world.store, everything()).await, ["a", "b"]);
}

fn large(seed: u64) -> Bytes {
    let mut bytes = vec![0; SMALL as usize + 12345];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes.into()
}

/// Without what is being removed behind a request's answer.
async fn settled(local: &dyn Driver) -> Vec<String> {
    for _ in 0..500 {
        if keys(local, ListRequest::flat(&parts::PLACE.into()))
            .await
            .is_empty()
        {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    keys(local, everything()).await
}

#[tokio::test]
async fn large_objects_go_across_and_leave_nothing_behind() {
    let world = world("*.t").await;
    let both = &world.both;
    let bytes = large(1);
    put(both, "a", bytes.clone()).await;
    let copy = |from: &str, to: &str| {
        let (from, to) = (Key::from(from), Key::from(to));
        async move { both.copy(&from, &to, CopyOptions::default()).await }
    };
    copy("a", "a.t").await.unwrap();
    copy("a.t", "b").await.unwrap();
    assert!(read_all(both, "a.t").await == bytes);
    assert!(read_all(&world.store, "b").await == bytes);
    assert_eq!(settled(&*world.local).await, ["a.t"]);
}

#[tokio::test]
async fn uploads_copy_parts_from_either_side() {
    let world = world("*.t").await;
    let both = &world.both;
    let bytes = large(2);
    let len = bytes.len() as u64;
    for (from, to) in [("a.t", "b.t"), ("a.t", "b"), ("a", "c.t"), ("a", "c")] {
        let etag = put(both, from, bytes.clone()).await.etag;
        let options = PutOptions {
            copies_parts: true,
            ..PutOptions::default()
        };
        let upload = both.upload(&to.into(), options).await.unwrap();
        upload.part(1, "head".into()).await.unwrap();
        let from = Key::from(from);
        upload.copy_part(2, &from, 7..len, etag).await.unwrap();
        let stale = upload.copy_part(3, &from, 0..1, ETag::new("stale")).await;
        assert_eq!(stale.unwrap_err().kind(), ErrorKind::Changed);
        upload.complete(Precondition::IfAbsent).await.unwrap();
        assert!(read_all(both, to).await == [b"head", &bytes[7..]].concat());
    }
    assert_eq!(settled(&*world.local).await, ["a.t", "b.t", "c.t"]);
}

#[tokio::test]
async fn parts_that_a_crash_has_left_go_at_the_next_start() {
    let world = world("*.t").await;
    put(&*world.local, ".bucketfs/parts/0123/0", "left").await;
    put(&*world.local, "a.t", "kept").await;
    world.both.begin().await.unwrap();
    assert_eq!(keys(&*world.local, everything()).await, ["a.t"]);
}

#[tokio::test]
async fn many_removals_are_sorted_by_side_and_answered_in_order() {
    let world = world("*.t").await;
    let both = &world.both;
    let mut removals = Vec::new();
    for key in ["a", "b.t", "c", "d.t"] {
        let etag = put(both, key, "x").await.etag;
        removals.push(Removal {
            key: key.into(),
            if_match: Some(etag),
        });
    }
    put(both, "b.t", "changed").await;
    put(both, "c", "changed").await;
    let results = both.delete_many(&removals).await.unwrap();
    let kinds: Vec<_> = results
        .iter()
        .map(|r| r.as_ref().err().map(Error::kind))
        .collect();
    let changed = Some(ErrorKind::Changed);
    assert_eq!(kinds, [None, changed, changed, None]);
    assert_eq!(keys(both, everything()).await, ["b.t", "c"]);
}

#[tokio::test]
async fn our_own_objects_and_the_places_of_buckets_are_the_stores() {
    let world = world("*").await;
    let both = &world.both;
    put(both, ".bucketfs/renames/x", "intent").await;
    put(both, "index.lock", "lock").await;
    put(both, "d/", Body::empty()).await;
    put(both, "d/x", "here").await;
    let expected = [".bucketfs/renames/x", "d/", "index.lock"];
    assert_eq!(keys(&world.store, everything()).await, expected);
    let shared = Shared {
        store: Arc::new(world.store.clone()),
        local: world.local.clone(),
        names: LocalNames::parse("*").unwrap(),
        buckets: true,
        copies_parts: false,
    };
    for (key, side) in [
        ("bucket", Side::Store),
        ("bucket/", Side::Store),
        ("bucket/x", Side::Local),
        ("bucket/.bucketfs/x", Side::Store),
        (".bucketfs/x", Side::Local),
    ] {
        assert_eq!(shared.side(&key.into()), side, "{key}");
    }
}

#[tokio::test]
async fn a_place_that_holds_less_than_the_store_is_refused() {
    let local = crate::layer::ReadOnly::new(Arc::new(Memory::new()));
    assert_eq!(local.capabilities().put_condition, Strength::None);
    let store = Arc::new(Memory::new());
    let names = LocalNames::parse("*").unwrap();
    let refused = Scratch::over(store, Arc::new(local), names, false);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_file_that_cannot_be_given_to_its_owner_is_kept_all_the_same() {
    let plan = FaultPlan::parse("put:error=denied@1").unwrap();
    let local = Layered::over(Arc::new(Memory::new()), Arc::new(plan));
    let names = LocalNames::parse("*").unwrap();
    let both = Scratch::over(Arc::new(Memory::new()), local, names, false).unwrap();
    let options = PutOptions {
        attributes: Attributes {
            mode: Some(0o100_640),
            uid: Some(4321),
            gid: Some(4321),
            ..Attributes::default()
        },
        ..PutOptions::default()
    };
    let (k, l) = (Key::from("k"), Key::from("l"));
    both.put(&k, "x".into(), options.clone()).await.unwrap();
    both.put(&l, "x".into(), options).await.unwrap();
    let owner = async |key| {
        let told = both.head(key).await.unwrap().told_attributes();
        (told.mode, told.uid)
    };
    assert_eq!(owner(&k).await, (Some(0o100_640), None));
    assert_eq!(owner(&l).await, (Some(0o100_640), Some(4321)));
}
