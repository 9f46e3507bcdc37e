//! What objects have beside their bytes.

use crate::fixture::{Fixture, cases, get, key, kind, list, names, put, text};
use bucketfs::driver::{
    AttributeChange, AttributeSupport, Attributes, CommitId, CopyOptions, ErrorKind, GetOptions,
    ListRequest, ObjectInfo, PutOptions,
};
use std::time::{Duration, SystemTime};

cases! {
    attributes_round_trip_as_claimed, attributes_belong_to_a_version,
    set_attributes_changes_only_what_it_names, copies_keep_or_replace_attributes,
    commit_ids_round_trip, links_and_fifos_are_objects,
}

fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(seconds, 123_456_789)
}

/// Attributes that a store can keep without privileges.
fn some() -> Attributes {
    Attributes {
        mode: Some(0o100_640),
        uid: Some(rustix::process::geteuid().as_raw()),
        gid: Some(rustix::process::getegid().as_raw()),
        mtime: Some(time(1_500_000_000)),
        content_type: Some("text/plain; charset=utf-8".to_owned()),
        user: [
            ("color".to_owned(), "blue".into()),
            ("UPPER lower".to_owned(), "ü \" %".into()),
            ("binary".to_owned(), vec![0, 255, 10].into()),
        ]
        .into(),
        ..Attributes::default()
    }
}

fn with(attributes: Attributes) -> PutOptions {
    PutOptions {
        attributes,
        ..PutOptions::default()
    }
}

/// Compares what was set; the store may tell more, such as an access time.
#[track_caller]
fn same(info: &ObjectInfo, expected: &Attributes) {
    let told = info.attributes.as_ref().expect("attributes are told");
    assert_eq!(told.mode, expected.mode);
    assert_eq!((told.uid, told.gid), (expected.uid, expected.gid));
    assert_eq!(told.mtime, expected.mtime);
    assert_eq!(told.content_type, expected.content_type);
    assert_eq!(told.user, expected.user);
}

/// What the store tells of an object, by head, get and, where claimed, list.
async fn told(f: &Fixture, name: &str) -> Vec<ObjectInfo> {
    let mut infos = vec![f.b.head(&key(name)).await.unwrap()];
    infos.push(get(&f.b, name, GetOptions::default()).await.unwrap().0);
    if f.capabilities().attributes == AttributeSupport::Listed {
        let listed = list(&f.b, ListRequest::flat(&key(name))).await;
        infos.push(listed[0].object.clone().unwrap());
    }
    infos
}

async fn attributes_round_trip_as_claimed(f: Fixture) {
    let put = f.a.put(&key("k"), "x".into(), with(some())).await;
    if f.capabilities().attributes == AttributeSupport::None {
        put.unwrap();
        assert_eq!(text(&f.b, "k").await, "x");
        return;
    }
    put.unwrap();
    for info in told(&f, "k").await {
        same(&info, &some());
    }
}

/// A put's attributes are complete: those of the version before are gone.
async fn attributes_belong_to_a_version(f: Fixture) {
    if f.capabilities().attributes == AttributeSupport::None {
        return f.skip("attributes are not claimed");
    }
    f.a.put(&key("k"), "x".into(), with(some())).await.unwrap();
    let fewer = Attributes {
        mode: Some(0o100_600),
        user: [("size".to_owned(), "small".into())].into(),
        ..Attributes::default()
    };
    f.b.put(&key("k"), "y".into(), with(fewer.clone()))
        .await
        .unwrap();
    for info in told(&f, "k").await {
        let attributes = info.attributes.unwrap();
        assert_eq!(attributes.mode, fewer.mode);
        assert_eq!(attributes.user, fewer.user);
        assert_ne!(attributes.content_type, some().content_type);
        assert_ne!(attributes.mtime, some().mtime);
    }
}

async fn set_attributes_changes_only_what_it_names(f: Fixture) {
    if !f.capabilities().set_attributes {
        return f.skip("set_attributes is not claimed");
    }
    f.a.put(&key("k"), "bytes".into(), with(some()))
        .await
        .unwrap();
    let old = f.a.head(&key("k")).await.unwrap();
    let change = AttributeChange {
        mode: Some(0o100_755),
        mtime: Some(time(1_600_000_000)),
        user: [
            ("color".to_owned(), Some("red".into())),
            ("binary".to_owned(), None),
            ("new".to_owned(), Some("value".into())),
            ("never was".to_owned(), None),
        ]
        .into(),
        ..AttributeChange::default()
    };
    let etag = Some(old.etag.clone());
    let set = f.b.set_attributes(&key("k"), change.clone(), etag).await;
    let set = set.unwrap();
    let mut expected = some();
    change.apply(&mut expected);
    for info in told(&f, "k").await {
        same(&info, &expected);
        assert_eq!(info.etag, set.etag);
    }
    assert_eq!(text(&f.a, "k").await, "bytes");
    // The version before this one does not get attributes meant for it.
    put(&f.a, "k", "other bytes").await;
    let lost =
        f.b.set_attributes(&key("k"), change.clone(), Some(set.etag))
            .await;
    assert_eq!(kind(lost), ErrorKind::Changed);
    let missing = f.b.set_attributes(&key("none"), change, None).await;
    assert_eq!(kind(missing), ErrorKind::NotFound);
    assert_eq!(names(&f.a, "").await, ["k"]);
}

async fn copies_keep_or_replace_attributes(f: Fixture) {
    let capabilities = f.capabilities();
    if capabilities.copy.is_none() || capabilities.attributes == AttributeSupport::None {
        return f.skip("copies of attributes are not claimed");
    }
    f.a.put(&key("k"), "x".into(), with(some())).await.unwrap();
    let copy =
        f.a.copy(&key("k"), &key("kept"), CopyOptions::default())
            .await;
    copy.unwrap();
    same(&f.b.head(&key("kept")).await.unwrap(), &some());
    let other = Attributes {
        mode: Some(0o100_600),
        ..some()
    };
    let options = CopyOptions {
        attributes: Some(other.clone()),
        ..CopyOptions::default()
    };
    f.a.copy(&key("k"), &key("replaced"), options)
        .await
        .unwrap();
    same(&f.b.head(&key("replaced")).await.unwrap(), &other);
    same(&f.b.head(&key("k")).await.unwrap(), &some());
    assert_eq!(text(&f.b, "replaced").await, "x");
    if capabilities.rename {
        let rename =
            f.a.rename(&key("k"), &key("moved"), CopyOptions::default())
                .await;
        rename.unwrap();
        same(&f.b.head(&key("moved")).await.unwrap(), &some());
    }
}

async fn commit_ids_round_trip(f: Fixture) {
    let ids: Vec<CommitId> = (1..=8).map(|i| CommitId(u64::MAX / i)).collect();
    let options = PutOptions {
        commits: ids.clone(),
        ..PutOptions::default()
    };
    f.a.put(&key("k"), "x".into(), options).await.unwrap();
    let head = f.b.head(&key("k")).await.unwrap();
    if !f.capabilities().commit_ids {
        assert!(head.commits.is_empty());
        return;
    }
    assert_eq!(head.commits, ids);
    let (got, _) = get(&f.b, "k", GetOptions::default()).await.unwrap();
    assert_eq!(got.commits, ids);
    if f.capabilities().copy.is_some() {
        let copy = f.a.copy(&key("k"), &key("c"), CopyOptions::default()).await;
        copy.unwrap();
        assert_eq!(f.b.head(&key("c")).await.unwrap().commits, ids);
        let options = CopyOptions {
            commits: ids[..1].to_vec(),
            ..CopyOptions::default()
        };
        f.a.copy(&key("k"), &key("c"), options).await.unwrap();
        assert_eq!(f.b.head(&key("c")).await.unwrap().commits, ids[..1]);
    }
    put(&f.a, "k", "by somebody else").await;
    assert!(f.b.head(&key("k")).await.unwrap().commits.is_empty());
}

async fn links_and_fifos_are_objects(f: Fixture) {
    for (name, mode, target) in [
        ("link", 0o120_777, "../where/it points"),
        ("fifo", 0o010_644, ""),
    ] {
        let attributes = Attributes {
            mode: Some(mode),
            ..Attributes::default()
        };
        let put = f.a.put(&key(name), target.into(), with(attributes)).await;
        if !f.capabilities().special_files {
            assert_eq!(kind(put), ErrorKind::Unsupported);
            assert!(names(&f.b, "").await.is_empty());
            continue;
        }
        put.unwrap();
        for info in told(&f, name).await {
            let told = info.attributes.unwrap().mode.unwrap();
            assert_eq!(told & 0o170_000, mode & 0o170_000, "{name}");
        }
        assert_eq!(text(&f.b, name).await, target);
    }
    if f.capabilities().special_files {
        put(&f.a, "link", "a file now").await;
        assert_eq!(text(&f.b, "link").await, "a file now");
        f.a.delete(&key("fifo"), Default::default()).await.unwrap();
        assert_eq!(names(&f.b, "").await, ["link"]);
    }
}
