//! Preconditions: nobody's write is lost.

use crate::fixture::{Fixture, cases, get, key, kind, put, state, text, when};
use crate::stores::open;
use bucketfs::driver::{
    CopyOptions, Driver, ETag, ErrorKind, GetOptions, OpenOptions, Precondition, Strength,
};
use futures::future::join_all;
use std::process::{Command, Stdio};
use std::sync::Arc;

cases! {
    create_is_exclusive, if_match_on_a_missing_key_is_changed, a_wrong_etag_changes_nothing,
    a_right_etag_replaces, conditional_delete, racing_increments_are_exact,
    racing_creates_have_one_winner, a_racing_delete_loses_no_write, racing_copies_have_one_winner,
    increments_of_processes_are_exact,
}

fn conditional(f: &Fixture) -> bool {
    f.capabilities().put_condition != Strength::None
}

/// A store without conditions refuses them, so that nobody believes in them.
async fn refuses(f: &Fixture) {
    put(&f.a, "k", "old").await;
    let before = state(&f.b).await;
    for condition in [
        Precondition::IfAbsent,
        Precondition::IfMatch(ETag::new("x")),
    ] {
        for name in ["k", "new"] {
            let put =
                f.a.put(&key(name), "x".into(), when(condition.clone()))
                    .await;
            assert_eq!(kind(put), ErrorKind::Unsupported);
        }
    }
    assert_eq!(state(&f.b).await, before);
}

async fn create_is_exclusive(f: Fixture) {
    if !conditional(&f) {
        return refuses(&f).await;
    }
    let create = |driver: &Arc<dyn Driver>, body: &'static str| {
        let driver = driver.clone();
        async move {
            driver
                .put(&key("k"), body.into(), when(Precondition::IfAbsent))
                .await
        }
    };
    let first = create(&f.a, "first").await.unwrap();
    let error = create(&f.b, "second").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert!(!error.retryable());
    assert_eq!(error.key(), Some(&key("k")));
    assert_eq!(text(&f.b, "k").await, "first");
    assert_eq!(f.b.head(&key("k")).await.unwrap().etag, first.etag);
    f.a.delete(&key("k"), Precondition::None).await.unwrap();
    create(&f.b, "third").await.unwrap();
    assert_eq!(text(&f.a, "k").await, "third");
}

async fn if_match_on_a_missing_key_is_changed(f: Fixture) {
    if !conditional(&f) {
        return refuses(&f).await;
    }
    let etag = put(&f.a, "k", "x").await.etag;
    f.a.delete(&key("k"), Precondition::None).await.unwrap();
    for name in ["k", "never/was"] {
        let condition = Precondition::IfMatch(etag.clone());
        let put = f.b.put(&key(name), "y".into(), when(condition)).await;
        assert_eq!(kind(put), ErrorKind::Changed);
    }
    assert!(state(&f.b).await.is_empty());
}

async fn a_wrong_etag_changes_nothing(f: Fixture) {
    if !conditional(&f) {
        return refuses(&f).await;
    }
    let old = put(&f.a, "k", "old").await.etag;
    put(&f.b, "k", "new").await;
    let before = state(&f.b).await;
    for wrong in [old, ETag::new("nonsense"), ETag::new("\"quoted\"")] {
        let condition = Precondition::IfMatch(wrong);
        let put = f.a.put(&key("k"), "lost".into(), when(condition)).await;
        assert_eq!(kind(put), ErrorKind::Changed);
    }
    assert_eq!(state(&f.b).await, before);
}

async fn a_right_etag_replaces(f: Fixture) {
    if !conditional(&f) {
        return refuses(&f).await;
    }
    let mut etag = put(&f.a, "k", "0").await.etag;
    for (i, driver) in [&f.a, &f.b, &f.a].into_iter().enumerate() {
        let (condition, body) = (Precondition::IfMatch(etag), format!("{}", i + 1));
        let put = driver
            .put(&key("k"), body.into_bytes().into(), when(condition))
            .await;
        etag = put.unwrap().etag;
    }
    assert_eq!(text(&f.b, "k").await, "3");
}

async fn conditional_delete(f: Fixture) {
    let old = put(&f.a, "k", "old").await.etag;
    let new = put(&f.a, "k", "new").await.etag;
    let delete = |name: &'static str, etag: &ETag| {
        let (driver, etag) = (f.b.clone(), etag.clone());
        async move {
            let condition = Precondition::IfMatch(etag);
            driver.delete(&key(name), condition).await
        }
    };
    if f.capabilities().delete_condition == Strength::None {
        assert_eq!(kind(delete("k", &new).await), ErrorKind::Unsupported);
        assert_eq!(text(&f.a, "k").await, "new");
        return;
    }
    assert_eq!(kind(delete("k", &old).await), ErrorKind::Changed);
    assert_eq!(text(&f.a, "k").await, "new");
    let absent = f.a.delete(&key("k"), Precondition::IfAbsent).await;
    assert_eq!(kind(absent), ErrorKind::InvalidArgument);
    assert_eq!(kind(delete("missing", &new).await), ErrorKind::Changed);
    delete("k", &new).await.unwrap();
    assert_eq!(kind(f.a.head(&key("k")).await), ErrorKind::NotFound);
    assert_eq!(kind(delete("k", &new).await), ErrorKind::Changed);
}

/// Adds one so many times, each time from the number that is there.
async fn increment(driver: Arc<dyn Driver>, times: usize) {
    for _ in 0..times {
        loop {
            let got = get(&driver, "counter", GetOptions::default()).await;
            let (info, bytes) = match got {
                Ok(found) => found,
                // Overwritten while it was read.
                Err(error) if error.kind() == ErrorKind::Changed => continue,
                Err(error) => panic!("{error}"),
            };
            let count: u64 = std::str::from_utf8(&bytes).unwrap().parse().unwrap();
            let body = format!("{}", count + 1).into_bytes().into();
            let condition = Precondition::IfMatch(info.etag);
            match driver.put(&key("counter"), body, when(condition)).await {
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::Changed => {}
                // radosgw tells so who loses a race.
                Err(error) if error.retryable() && !error.maybe_applied() => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

async fn racing_increments_are_exact(f: Fixture) {
    if f.capabilities().put_condition != Strength::Atomic {
        return f.skip("conditions of puts are not claimed to be atomic");
    }
    put(&f.a, "counter", "0").await;
    let workers = (0..8).map(|i| {
        let driver = if i % 2 == 0 { &f.a } else { &f.b };
        tokio::spawn(increment(driver.clone(), 25))
    });
    for worker in join_all(workers.collect::<Vec<_>>()).await {
        worker.unwrap();
    }
    assert_eq!(text(&f.a, "counter").await, "200");
}

async fn racing_creates_have_one_winner(f: Fixture) {
    if f.capabilities().put_condition != Strength::Atomic {
        return f.skip("conditions of puts are not claimed to be atomic");
    }
    for round in 0..10 {
        let name = format!("dir{round}/lock");
        let racers = (0..12).map(|i| {
            let (driver, name) = (if i % 2 == 0 { &f.a } else { &f.b }.clone(), name.clone());
            tokio::spawn(async move {
                let body = format!("{i}").into_bytes().into();
                let put = driver
                    .put(&key(&name), body, when(Precondition::IfAbsent))
                    .await;
                put.map(|info| (i, info))
            })
        });
        let mut winners = Vec::new();
        for outcome in join_all(racers.collect::<Vec<_>>()).await {
            match outcome.unwrap() {
                Ok(winner) => winners.push(winner),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Exists, "{error}"),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        let (winner, info) = &winners[0];
        assert_eq!(text(&f.b, &name).await, format!("{winner}"));
        assert_eq!(f.a.head(&key(&name)).await.unwrap().etag, info.etag);
    }
}

async fn a_racing_delete_loses_no_write(f: Fixture) {
    let capabilities = f.capabilities();
    if capabilities
        .put_condition
        .min(capabilities.delete_condition)
        != Strength::Atomic
    {
        return f.skip("conditions of puts and deletes are not claimed to be atomic");
    }
    for round in 0..20 {
        let etag = put(&f.a, "k", &format!("old {round}")).await.etag;
        let (a, b) = (f.a.clone(), f.b.clone());
        let condition = Precondition::IfMatch(etag);
        let writer = tokio::spawn({
            let condition = condition.clone();
            async move { a.put(&key("k"), "new".into(), when(condition)).await }
        });
        let delete = tokio::spawn(async move { b.delete(&key("k"), condition).await });
        let (written, deleted) = (writer.await.unwrap(), delete.await.unwrap());
        match (written, deleted) {
            (Ok(_), Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::Changed);
                assert_eq!(text(&f.a, "k").await, "new");
            }
            (Err(error), Ok(())) => {
                assert_eq!(error.kind(), ErrorKind::Changed);
                assert_eq!(kind(f.a.head(&key("k")).await), ErrorKind::NotFound);
            }
            other => panic!("one of both had to win: {other:?}"),
        }
    }
}

async fn racing_copies_have_one_winner(f: Fixture) {
    let copy = f.capabilities().copy;
    if copy.is_none_or(|copy| copy.destination != Strength::Atomic) {
        return f.skip("the condition of a copy is not claimed to be atomic");
    }
    for i in 0..6 {
        put(&f.a, &format!("from{i}"), &format!("{i}")).await;
    }
    for round in 0..10 {
        let to = key(&format!("to{round}"));
        let racers = (0..6).map(|i| {
            let (driver, to) = (if i % 2 == 0 { &f.a } else { &f.b }.clone(), to.clone());
            tokio::spawn(async move {
                let options = CopyOptions {
                    destination: Precondition::IfAbsent,
                    ..CopyOptions::default()
                };
                driver.copy(&key(&format!("from{i}")), &to, options).await
            })
        });
        let outcomes = join_all(racers.collect::<Vec<_>>()).await;
        let won = outcomes
            .into_iter()
            .filter(|outcome| match outcome.as_ref().unwrap() {
                Ok(_) => true,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
                    false
                }
            });
        assert_eq!(won.count(), 1);
    }
}

/// Set for processes that this one starts: the URL of the store to work on.
const WORKER: &str = "BUCKETFS_CONFORMANCE_WORKER";

pub fn is_worker() -> bool {
    std::env::var_os(WORKER).is_some()
}

/// What a worker process does.
pub fn work() {
    let url = std::env::var(WORKER).unwrap();
    let outcome = crate::fixture::run(async {
        let driver = open(&url, &OpenOptions::default()).await?;
        increment(driver, 25).await;
        Ok(())
    });
    outcome.expect("the worker's store can be opened");
}

async fn increments_of_processes_are_exact(f: Fixture) {
    let Some(url) = f.url.clone() else {
        return f.skip("other processes cannot open this store");
    };
    put(&f.a, "counter", "0").await;
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let program = std::env::current_exe().unwrap();
            let mut command = Command::new(program);
            command.env(WORKER, &url).stdin(Stdio::null());
            command.spawn().unwrap()
        })
        .collect();
    for mut worker in workers {
        let status = tokio::task::spawn_blocking(move || worker.wait().unwrap());
        assert!(status.await.unwrap().success());
    }
    assert_eq!(text(&f.a, "counter").await, "100");
}
