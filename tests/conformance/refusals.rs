//! What a driver must not do, and what it must not tell.

use crate::fixture::{Fixture, cases, get, key, kind, names, put, run, state};
use bucketfs::clock;
use bucketfs::driver::memory::Memory;
use bucketfs::driver::{
    self, AttributeChange, CopyOptions, DRIVERS, Driver, ErrorKind, Filter, GetOptions, Location,
    OpenOptions, Precondition, PutOptions, Query, Strength,
};
use bucketfs::layer::ReadOnly;
use libtest_mimic::Trial;
use std::sync::Arc;

cases! {
    unclaimed_capabilities_refuse, versions_are_kept_as_claimed, buckets_are_made_as_claimed,
    secrets_are_not_shown, sync_takes_any_key, space_makes_sense,
}

async fn unclaimed_capabilities_refuse(f: Fixture) {
    let capabilities = f.capabilities();
    put(&f.a, "k", "x").await;
    put(&f.a, "l", "y").await;
    let before = state(&f.b).await;
    let (k, l, new) = (key("k"), key("l"), key("new"));
    let query = Query {
        prefix: key(""),
        filter: Filter::default(),
        token: None,
        limit: 10,
    };
    let past = GetOptions {
        version: Some("1".to_owned()),
        ..GetOptions::default()
    };
    let change = AttributeChange {
        mode: Some(0o100_600),
        ..AttributeChange::default()
    };
    let mut refusals = Vec::new();
    let options = CopyOptions::default;
    if capabilities.copy.is_none() {
        refusals.push(("copy", kind(f.a.copy(&k, &new, options()).await)));
    }
    if !capabilities.rename {
        refusals.push(("rename", kind(f.a.rename(&k, &new, options()).await)));
    }
    if !capabilities.exchange {
        refusals.push(("exchange", kind(f.a.exchange(&k, &l).await)));
    }
    if !capabilities.set_attributes {
        let set = f.a.set_attributes(&k, change, None).await;
        refusals.push(("set_attributes", kind(set)));
    }
    if capabilities.delete_many.is_none() {
        let delete = f.a.delete_many(&[k.clone().into(), l.clone().into()]).await;
        refusals.push(("delete_many", kind(delete)));
    }
    if capabilities.upload.is_none() {
        let upload = f.a.upload(&new, PutOptions::default()).await;
        refusals.push(("upload", kind(upload)));
    }
    if !capabilities.versions {
        refusals.push(("versions", kind(f.a.versions(&k).await)));
        refusals.push(("get of a version", kind(get(&f.a, "k", past).await)));
    }
    if !capabilities.watch {
        let watch = f.a.watch(&k).await.map(|_| "a feed");
        refusals.push(("watch", kind(watch)));
    }
    if !capabilities.find {
        refusals.push(("find", kind(f.a.find(query).await)));
    }
    if !capabilities.buckets {
        refusals.push(("buckets", kind(f.a.buckets().await)));
    }
    if !capabilities.create_bucket {
        let name = format!("conformance-{:08x}", clock::random() as u32);
        refusals.push(("create_bucket", kind(f.a.create_bucket(&name).await)));
        refusals.push(("delete_bucket", kind(f.a.delete_bucket(&name).await)));
    }
    for (operation, kind) in refusals {
        assert_eq!(kind, ErrorKind::Unsupported, "{operation}");
    }
    assert_eq!(state(&f.b).await, before);
    assert_eq!(
        f.a.capabilities(),
        capabilities,
        "capabilities never change"
    );
}

async fn versions_are_kept_as_claimed(f: Fixture) {
    if !f.capabilities().versions {
        return f.skip("versions are not claimed");
    }
    let old = put(&f.a, "k", "old").await;
    put(&f.a, "k", "new").await;
    let versions = f.b.versions(&key("k")).await.unwrap();
    assert!(versions.len() >= 2 && versions[0].latest);
    let past = versions[1..].iter();
    let mut past = past.filter(|version| {
        let object = version.object.as_ref();
        object.is_some_and(|object| object.etag == old.etag)
    });
    let options = GetOptions {
        version: Some(past.next().unwrap().id.clone()),
        ..GetOptions::default()
    };
    assert_eq!(get(&f.b, "k", options).await.unwrap().1, "old");
}

async fn buckets_are_made_as_claimed(f: Fixture) {
    if !f.capabilities().create_bucket {
        return f.skip("create_bucket is not claimed");
    }
    let name = format!("conformance-{:016x}", clock::random());
    f.a.create_bucket(&name).await.unwrap();
    assert_eq!(kind(f.a.create_bucket(&name).await), ErrorKind::Exists);
    let bucket = f.a.bucket(&name).await.unwrap();
    put(&bucket, "in/bucket", "x").await;
    assert_eq!(names(&bucket, "").await, ["in/bucket"]);
    assert!(names(&f.a, "").await.is_empty());
    assert_eq!(kind(f.b.delete_bucket(&name).await), ErrorKind::Exists);
    if f.capabilities().buckets {
        let buckets = f.b.buckets().await.unwrap();
        assert!(buckets.iter().any(|bucket| bucket.name == name));
    }
    let gone = bucket.delete(&key("in/bucket"), Precondition::None).await;
    gone.unwrap();
    f.b.delete_bucket(&name).await.unwrap();
    assert_eq!(kind(f.b.delete_bucket(&name).await), ErrorKind::NotFound);
}

async fn secrets_are_not_shown(f: Fixture) {
    let error = f.a.head(&key("missing")).await.unwrap_err();
    let driver = &f.a;
    for shown in [
        format!("{driver:?}"),
        format!("{error}"),
        format!("{error:?}"),
    ] {
        for secret in &f.secrets {
            assert!(!shown.contains(secret), "a secret is shown");
        }
    }
    // A password that somebody put into a URL, for whatever it does there.
    for scheme in DRIVERS.iter().map(|driver| driver.scheme) {
        let url = format!("{scheme}://user:hunter2@127.0.0.1:1/bucket?password=hunter3");
        let shown = match Location::parse(&url) {
            Err(error) => format!("{error} {error:?}"),
            Ok(location) => match driver::open(&location, &OpenOptions::default()).await {
                Ok(opened) => format!("{location} {location:?} {opened:?}"),
                Err(error) => format!("{location} {location:?} {error} {error:?}"),
            },
        };
        assert!(!shown.contains("hunter2"), "{scheme}: a password is shown");
    }
}

async fn sync_takes_any_key(f: Fixture) {
    put(&f.a, "d/k", "x").await;
    for name in ["d/k", "d/", "missing", "also/missing"] {
        f.a.sync(&key(name)).await.unwrap();
    }
    assert_eq!(names(&f.a, "").await, ["d/k"]);
}

async fn space_makes_sense(f: Fixture) {
    if let Some(space) = f.a.space().await.unwrap() {
        assert!(space.total >= space.free && space.total > 0);
    }
}

/// The one layer that refuses what its driver can do.
pub fn read_only() -> Vec<Trial> {
    vec![Trial::test(
        "read_only(memory)::every_change_is_refused",
        || {
            run(async {
                every_change_is_refused().await;
                Ok(())
            })
        },
    )]
}

async fn every_change_is_refused() {
    let memory: Arc<dyn Driver> = Arc::new(Memory::new());
    put(&memory, "k", "x").await;
    put(&memory, "l", "y").await;
    let before = state(&memory).await;
    let driver = ReadOnly::new(memory.clone());
    let (k, l, new) = (key("k"), key("l"), key("new"));
    let upload = driver.upload(&new, PutOptions::default()).await;
    let set = driver.set_attributes(&k, AttributeChange::default(), None);
    for kind in [
        kind(driver.put(&new, "z".into(), PutOptions::default()).await),
        kind(driver.delete(&k, Precondition::None).await),
        kind(driver.copy(&k, &new, CopyOptions::default()).await),
        kind(driver.rename(&k, &new, CopyOptions::default()).await),
        kind(driver.exchange(&k, &l).await),
        kind(set.await),
        kind(driver.delete_many(&[k.clone().into()]).await),
        kind(upload),
        kind(driver.create_bucket("b").await),
    ] {
        assert_eq!(kind, ErrorKind::ReadOnly);
    }
    let claims = driver.capabilities();
    assert_eq!(claims.put_condition, Strength::None);
    assert_eq!(claims.delete_condition, Strength::None);
    assert!(claims.copy.is_none() && claims.upload.is_none() && claims.delete_many.is_none());
    assert!(!claims.rename && !claims.exchange && !claims.set_attributes);
    assert!(claims.watch && claims.range);
    let driver: Arc<dyn Driver> = Arc::new(driver);
    assert_eq!(state(&driver).await, before);
    assert_eq!(state(&memory).await, before);
}
