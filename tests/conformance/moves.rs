//! Copies, renames and exchanges.

use crate::fixture::{Fixture, cases, key, kind, put, state, text};
use bucketfs::driver::{CopyOptions, ETag, ErrorKind, ObjectInfo, Precondition, Result, Strength};

cases! {
    copy_copies, copy_holds_its_source, copy_holds_its_destination, rename_moves,
    rename_holds_both_ends, a_lost_condition_names_its_key, rename_onto_itself_is_refused,
    exchange_swaps,
}

fn from(etag: &ETag) -> CopyOptions {
    CopyOptions {
        source: Some(etag.clone()),
        ..CopyOptions::default()
    }
}

fn to(destination: Precondition) -> CopyOptions {
    CopyOptions {
        destination,
        ..CopyOptions::default()
    }
}

fn stale() -> Precondition {
    Precondition::IfMatch(ETag::new("0123456789abcdef0123456789abcdef"))
}

// Where a method is not claimed at all, `unclaimed_capabilities_refuse` sees to it.

async fn copy_copies(f: Fixture) {
    if f.capabilities().copy.is_none() {
        return f.skip("copy is not claimed");
    }
    let source = put(&f.a, "a/x", "bytes").await;
    let copy =
        f.a.copy(&key("a/x"), &key("b/y"), CopyOptions::default())
            .await;
    let copy = copy.unwrap();
    assert_eq!(copy.etag, f.b.head(&key("b/y")).await.unwrap().etag);
    assert_eq!(text(&f.b, "b/y").await, "bytes");
    assert_eq!(f.b.head(&key("a/x")).await.unwrap().etag, source.etag);
    put(&f.a, "a/x", "other").await;
    let again =
        f.a.copy(&key("a/x"), &key("b/y"), CopyOptions::default())
            .await;
    again.unwrap();
    assert_eq!(text(&f.b, "b/y").await, "other");
    let missing =
        f.a.copy(&key("none"), &key("b/y"), CopyOptions::default())
            .await;
    assert_eq!(kind(missing), ErrorKind::NotFound);
    assert_eq!(text(&f.b, "b/y").await, "other");
}

async fn copy_holds_its_source(f: Fixture) {
    let Some(claim) = f.capabilities().copy else {
        return f.skip("copy is not claimed");
    };
    let old = put(&f.a, "k", "old").await.etag;
    let new = put(&f.a, "k", "new").await.etag;
    let before = state(&f.b).await;
    let lost = kind(f.a.copy(&key("k"), &key("c"), from(&old)).await);
    let right = f.a.copy(&key("k"), &key("c"), from(&new)).await;
    if claim.source == Strength::None {
        assert_eq!(
            (lost, kind(right)),
            (ErrorKind::Unsupported, ErrorKind::Unsupported)
        );
        assert_eq!(state(&f.b).await, before);
        return;
    }
    assert_eq!(lost, ErrorKind::Changed);
    right.unwrap();
    assert_eq!(text(&f.b, "c").await, "new");
    let missing = kind(f.a.copy(&key("none"), &key("d"), from(&new)).await);
    assert!(matches!(missing, ErrorKind::NotFound | ErrorKind::Changed));
    assert!(f.b.head(&key("d")).await.is_err());
}

async fn copy_holds_its_destination(f: Fixture) {
    let Some(claim) = f.capabilities().copy else {
        return f.skip("copy is not claimed");
    };
    put(&f.a, "from", "new").await;
    let there = put(&f.a, "to", "old").await.etag;
    let before = state(&f.b).await;
    let copy = |name: &'static str, condition: Precondition| {
        let driver = f.a.clone();
        async move { driver.copy(&key("from"), &key(name), to(condition)).await }
    };
    if claim.destination == Strength::None {
        for condition in [Precondition::IfAbsent, Precondition::IfMatch(there)] {
            assert_eq!(
                kind(copy("to", condition.clone()).await),
                ErrorKind::Unsupported
            );
            assert_eq!(kind(copy("new", condition).await), ErrorKind::Unsupported);
        }
        assert_eq!(state(&f.b).await, before);
        return;
    }
    assert_eq!(
        kind(copy("to", Precondition::IfAbsent).await),
        ErrorKind::Exists
    );
    assert_eq!(kind(copy("to", stale()).await), ErrorKind::Changed);
    assert_eq!(kind(copy("none", stale()).await), ErrorKind::Changed);
    assert_eq!(state(&f.b).await, before);
    copy("new", Precondition::IfAbsent).await.unwrap();
    copy("to", Precondition::IfMatch(there)).await.unwrap();
    assert_eq!(text(&f.b, "new").await, "new");
    assert_eq!(text(&f.b, "to").await, "new");
}

async fn rename_moves(f: Fixture) {
    if !f.capabilities().rename {
        return f.skip("rename is not claimed");
    }
    put(&f.a, "a/x", "bytes").await;
    put(&f.a, "b/y", "replaced").await;
    let moved =
        f.a.rename(&key("a/x"), &key("b/y"), CopyOptions::default())
            .await;
    let moved = moved.unwrap();
    assert_eq!(moved.etag, f.b.head(&key("b/y")).await.unwrap().etag);
    assert_eq!(text(&f.b, "b/y").await, "bytes");
    assert_eq!(kind(f.b.head(&key("a/x")).await), ErrorKind::NotFound);
    let again =
        f.a.rename(&key("b/y"), &key("c/d/e"), CopyOptions::default())
            .await;
    again.unwrap();
    assert_eq!(text(&f.b, "c/d/e").await, "bytes");
    let missing =
        f.a.rename(&key("b/y"), &key("c/d/e"), CopyOptions::default())
            .await;
    assert_eq!(kind(missing), ErrorKind::NotFound);
    assert_eq!(text(&f.b, "c/d/e").await, "bytes");
}

async fn rename_holds_both_ends(f: Fixture) {
    if !f.capabilities().rename {
        return f.skip("rename is not claimed");
    }
    let old = put(&f.a, "from", "old").await.etag;
    let new = put(&f.a, "from", "new").await.etag;
    let there = put(&f.a, "to", "there").await.etag;
    let before = state(&f.b).await;
    let rename = |name: &'static str, options: CopyOptions| {
        let driver = f.a.clone();
        async move { driver.rename(&key("from"), &key(name), options).await }
    };
    assert_eq!(kind(rename("to", from(&old)).await), ErrorKind::Changed);
    assert_eq!(kind(rename("free", from(&old)).await), ErrorKind::Changed);
    assert_eq!(
        kind(rename("to", to(Precondition::IfAbsent)).await),
        ErrorKind::Exists
    );
    assert_eq!(kind(rename("to", to(stale())).await), ErrorKind::Changed);
    assert_eq!(kind(rename("free", to(stale())).await), ErrorKind::Changed);
    let attributes = CopyOptions {
        attributes: Some(Default::default()),
        ..CopyOptions::default()
    };
    assert_eq!(
        kind(rename("free", attributes).await),
        ErrorKind::InvalidArgument
    );
    assert_eq!(state(&f.b).await, before);
    let options = CopyOptions {
        source: Some(new),
        destination: Precondition::IfMatch(there),
        ..CopyOptions::default()
    };
    rename("to", options).await.unwrap();
    assert_eq!(text(&f.b, "to").await, "new");
    assert_eq!(kind(f.b.head(&key("from")).await), ErrorKind::NotFound);
    let back = to(Precondition::IfAbsent);
    f.a.rename(&key("to"), &key("from"), back).await.unwrap();
    assert_eq!(text(&f.b, "from").await, "new");
}

/// The key that the error of a lost condition names.
#[track_caller]
fn lost(moved: Result<ObjectInfo>) -> String {
    let error = moved.expect_err("the condition is lost");
    let lost = [ErrorKind::Exists, ErrorKind::Changed, ErrorKind::NotFound];
    assert!(lost.contains(&error.kind()), "{error}");
    error.key().expect("a key is named").to_string()
}

async fn a_lost_condition_names_its_key(f: Fixture) {
    let capabilities = f.capabilities();
    let copy = capabilities
        .copy
        .is_some_and(|claim| claim.source != Strength::None && claim.destination != Strength::None);
    if !copy && !capabilities.rename {
        return f.skip("neither a rename nor both conditions of a copy are claimed");
    }
    let old = put(&f.a, "d/from", "old").await.etag;
    let new = put(&f.a, "d/from", "new").await.etag;
    let there = put(&f.a, "e/to", "there").await.etag;
    let matching = |etag: &ETag| Precondition::IfMatch(etag.clone());
    for (from, source, to, destination, named) in [
        ("d/from", &old, "e/to", matching(&there), "d/from"),
        ("d/from", &old, "e/free", Precondition::IfAbsent, "d/from"),
        ("d/none", &new, "e/to", matching(&there), "d/none"),
        ("none/x", &new, "e/free", Precondition::IfAbsent, "none/x"),
        ("d/from", &new, "e/to", stale(), "e/to"),
        ("d/from", &new, "e/to", Precondition::IfAbsent, "e/to"),
        ("d/from", &new, "e/free", matching(&there), "e/free"),
        ("d/from", &new, "none/x", matching(&there), "none/x"),
    ] {
        let options = CopyOptions {
            source: Some(source.clone()),
            destination,
            ..CopyOptions::default()
        };
        if copy {
            let copy = f.a.copy(&key(from), &key(to), options.clone()).await;
            assert_eq!(lost(copy), named, "copy {from} {to} {options:?}");
        }
        if capabilities.rename {
            let rename = f.a.rename(&key(from), &key(to), options.clone()).await;
            assert_eq!(lost(rename), named, "rename {from} {to} {options:?}");
        }
    }
    assert_eq!(text(&f.b, "d/from").await, "new");
    assert_eq!(text(&f.b, "e/to").await, "there");
}

async fn rename_onto_itself_is_refused(f: Fixture) {
    if !f.capabilities().rename {
        return f.skip("rename is not claimed");
    }
    put(&f.a, "k", "x").await;
    let before = state(&f.b).await;
    let rename =
        f.a.rename(&key("k"), &key("k"), CopyOptions::default())
            .await;
    assert_eq!(kind(rename), ErrorKind::InvalidArgument);
    assert_eq!(state(&f.b).await, before);
}

async fn exchange_swaps(f: Fixture) {
    if !f.capabilities().exchange {
        return f.skip("exchange is not claimed");
    }
    put(&f.a, "a", "was a").await;
    put(&f.a, "d/b", "was b").await;
    let (at_a, at_b) = f.a.exchange(&key("a"), &key("d/b")).await.unwrap();
    assert_eq!(text(&f.b, "a").await, "was b");
    assert_eq!(text(&f.b, "d/b").await, "was a");
    assert_eq!(at_a.etag, f.b.head(&key("a")).await.unwrap().etag);
    assert_eq!(at_b.etag, f.b.head(&key("d/b")).await.unwrap().etag);
    let before = state(&f.b).await;
    let missing = f.a.exchange(&key("a"), &key("none")).await;
    assert_eq!(kind(missing), ErrorKind::NotFound);
    assert_eq!(state(&f.b).await, before);
}
