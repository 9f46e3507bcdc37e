use super::*;
use crate::driver::memory::Memory;
use crate::layer::{Deadline, FaultPlan, Layered, Limit, Operation, Stats};
use bytes::Bytes;
use futures::StreamExt;

struct Fixture {
    memory: Memory,
    plan: Arc<FaultPlan>,
    stats: Arc<Stats>,
    driver: Arc<dyn Driver>,
}

fn fixture(options: RetryOptions) -> Fixture {
    let memory = Memory::new();
    let plan = Arc::new(FaultPlan::none());
    let stats = Arc::new(Stats::default());
    let driver = Layered::over(Arc::new(memory.clone()), plan.clone());
    let driver = Layered::over(driver, stats.clone());
    let deadline = Arc::new(Deadline::new(Duration::from_secs(30)));
    let driver = Layered::over(driver, deadline.clone());
    // One place only: whoever holds it while asking for another hangs.
    let driver = Layered::over(driver, Arc::new(Limit::new(1)));
    Fixture {
        memory,
        plan,
        stats,
        driver: Arc::new(Retry::over(driver, options, &deadline)),
    }
}

fn key(text: &str) -> Key {
    text.into()
}

fn commit(id: u64, precondition: Precondition) -> PutOptions {
    PutOptions {
        precondition,
        commits: vec![CommitId(id)],
        ..PutOptions::default()
    }
}

async fn put(driver: &dyn Driver, name: &str, text: &'static str) -> ObjectInfo {
    let put = driver
        .put(&key(name), text.into(), PutOptions::default())
        .await;
    put.unwrap()
}

async fn read(driver: &dyn Driver, name: &str, options: GetOptions) -> Result<Bytes> {
    let object = driver.get(&key(name), options).await?.found()?;
    object.collect().await.map(|(_, bytes)| bytes)
}

#[tokio::test(start_paused = true)]
async fn retryable_errors_are_retried_with_growing_pauses_and_others_are_not() {
    let f = fixture(RetryOptions::default());
    put(&f.memory, "k", "hello").await;
    f.plan.set("head:error=unavailable").unwrap();
    let begin = clock::now();
    let error = f.driver.head(&key("k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(f.stats.snapshot().count(Operation::Head), 8);
    // 50 + 100 + ... + 3200 ms at most.
    assert!(begin.elapsed() < Duration::from_millis(6400));
    assert!(begin.elapsed() > Duration::from_millis(500));
    f.plan.set("head:error=denied").unwrap();
    f.driver.head(&key("k")).await.unwrap_err();
    assert_eq!(f.stats.snapshot().count(Operation::Head), 9);
    f.plan.set("head:error=unreachable@1").unwrap();
    f.driver.head(&key("k")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_store_is_given_up_after_the_deadline() {
    let f = fixture(RetryOptions::default());
    f.plan.set("*:hang").unwrap();
    let begin = clock::now();
    let error = f.driver.head(&key("k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(begin.elapsed().as_secs(), 30);
    f.plan.set("get:stall=2").unwrap();
    put(&f.memory, "k", "hello").await;
    let begin = clock::now();
    let error = read(&*f.driver, "k", GetOptions::default()).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(begin.elapsed().as_secs(), 30);
}

/// A policy in whose requests the whole process is stopped for a minute.
#[derive(Debug)]
struct Asleep;

impl crate::layer::Policy for Asleep {
    async fn request<'a, T: Send + 'a>(
        self: &'a Arc<Self>,
        _: &'a crate::layer::Call<'_>,
        request: futures::future::BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        tokio::time::advance(Duration::from_secs(60)).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        request.await
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_is_not_blamed_for_a_sleep_of_this_process() {
    let memory = Memory::new();
    put(&memory, "k", "hello").await;
    let driver = Layered::over(Arc::new(memory), Arc::new(Asleep));
    let deadline = Arc::new(Deadline::new(Duration::from_secs(30)));
    let driver = Layered::over(driver, deadline);
    assert_eq!(driver.head(&key("k")).await.unwrap().size, Some(5));
}

/// In real time, because paused time stands still while a body is read.
#[tokio::test]
async fn a_large_body_that_moves_is_never_late() {
    struct Slow;
    impl crate::driver::Source for Slow {
        fn len(&self) -> u64 {
            10 << 20
        }
        fn read(&self, range: std::ops::Range<u64>) -> std::io::Result<Bytes> {
            std::thread::sleep(Duration::from_millis(60));
            Ok(vec![0; (range.end - range.start) as usize].into())
        }
    }
    let deadline = Duration::from_millis(300);
    let driver = Layered::over(Arc::new(Memory::new()), Arc::new(Deadline::new(deadline)));
    let body = || Body::Source(Arc::new(Slow));
    let begin = clock::now();
    let put = driver.put(&key("k"), body(), PutOptions::default()).await;
    put.unwrap();
    assert!(begin.elapsed() > deadline);
    let upload = driver.upload(&key("u"), PutOptions::default()).await;
    upload.unwrap().part(1, body()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_not_multiplied() {
    let f = fixture(RetryOptions {
        burst: 20,
        refill: 1,
        ..RetryOptions::default()
    });
    f.plan.set("head:error=unreachable").unwrap();
    for _ in 0..100 {
        f.driver.head(&key("k")).await.unwrap_err();
    }
    let seconds = 60;
    let sent = f.stats.snapshot().count(Operation::Head);
    assert!((120..100 + 20 + seconds).contains(&sent), "{sent}");
}

/// How many seconds a request waits, in vain unless `answered`.
async fn waits(f: &Fixture, answered: bool) -> u64 {
    let begin = clock::now();
    let head = f.driver.head(&key("k")).await;
    let silent = matches!(&head, Err(error) if error.kind() == ErrorKind::Timeout);
    assert_eq!(silent, !answered, "{head:?}");
    begin.elapsed().as_secs()
}

/// Creators in one directory come one after the other: the kernel holds it for each lookup.
#[tokio::test(start_paused = true)]
async fn who_comes_later_to_a_silent_store_waits_for_a_part_of_the_deadline() {
    let f = fixture(RetryOptions::default());
    put(&f.memory, "k", "hello").await;
    f.plan.set("*:hang").unwrap();
    assert_eq!(waits(&f, false).await, 30);
    for _ in 0..20 {
        assert_eq!(waits(&f, false).await, 3);
    }
    // Any answer ends it.
    f.plan.set("list:error=denied").unwrap();
    let list = f.driver.list(crate::driver::ListRequest::flat(&key("")));
    assert_eq!(list.await.unwrap_err().kind(), ErrorKind::Denied);
    f.plan.set("*:hang").unwrap();
    assert_eq!(waits(&f, false).await, 30);
    assert_eq!(waits(&f, false).await, 3);
    f.plan.set("").unwrap();
    assert_eq!(waits(&f, true).await, 0);
    f.plan.set("*:hang").unwrap();
    assert_eq!(waits(&f, false).await, 30);
}

/// An answer takes longer than a part of the deadline, and so only who has all of it hears it.
#[tokio::test(start_paused = true)]
async fn a_store_that_became_slow_is_heard_again() {
    let f = fixture(RetryOptions::default());
    put(&f.memory, "k", "hello").await;
    f.plan.set("*:hang").unwrap();
    assert_eq!(waits(&f, false).await, 30);
    f.plan.set("*:delay=5s").unwrap();
    let begin = clock::now();
    while f.driver.head(&key("k")).await.is_err() {}
    assert!(
        begin.elapsed() < Duration::from_secs(130),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(waits(&f, true).await, 5);
}

#[tokio::test(start_paused = true)]
async fn one_answer_is_enough_for_a_store_not_to_be_silent() {
    let plan = Arc::new(FaultPlan::none());
    let deadline = Arc::new(Deadline::new(Duration::from_secs(30)));
    let driver = Layered::over(Arc::new(Memory::new()), plan.clone());
    let driver = Layered::over(driver, deadline);
    plan.set("head:hang").unwrap();
    let (name, other) = (key("k"), key(""));
    let silent = async {
        let begin = clock::now();
        driver.head(&name).await.unwrap_err();
        driver.head(&name).await.unwrap_err();
        begin.elapsed().as_secs()
    };
    let lives = async {
        loop {
            tokio::time::sleep(Duration::from_secs(10)).await;
            driver
                .list(crate::driver::ListRequest::flat(&other))
                .await
                .unwrap();
        }
    };
    let took = tokio::select! { took = silent => took, () = lives => 0 };
    assert_eq!(took, 60);
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_recognised_by_the_commit_id() {
    let f = fixture(RetryOptions::default());
    let lost = "put:lost-reply@1,copy:lost-reply@1,rename:lost-reply@1,complete:lost-reply@1";
    f.plan.set(lost).unwrap();
    let options = commit(1, Precondition::IfAbsent);
    let info = f.driver.put(&key("a"), "x".into(), options).await.unwrap();
    assert_eq!(info.etag, f.memory.head(&key("a")).await.unwrap().etag);

    f.plan.set(lost).unwrap();
    let options = commit(2, Precondition::IfMatch(info.etag));
    let info = f.driver.put(&key("a"), "y".into(), options).await.unwrap();
    assert_eq!(info.commits, [CommitId(2)]);

    let options = CopyOptions {
        destination: Precondition::IfAbsent,
        commits: vec![CommitId(3)],
        ..CopyOptions::default()
    };
    let copy = f.driver.copy(&key("a"), &key("b"), options.clone()).await;
    assert_eq!(copy.unwrap().commits, [CommitId(3)]);

    let rename = f.driver.rename(&key("b"), &key("c"), options).await;
    assert_eq!(rename.unwrap().commits, [CommitId(3)]);

    let options = commit(4, Precondition::None);
    let upload = f.driver.upload(&key("u"), options).await.unwrap();
    upload.part(1, "part".into()).await.unwrap();
    let info = upload.complete(Precondition::IfAbsent).await.unwrap();
    assert_eq!(info.commits, [CommitId(4)]);
}

#[tokio::test(start_paused = true)]
async fn a_real_conflict_behind_a_lost_reply_is_reported() {
    let f = fixture(RetryOptions::default());
    f.plan
        .set("put:error=unreachable@1,head:error=unavailable@1")
        .unwrap();
    let other = commit(7, Precondition::IfAbsent);
    f.memory
        .put(&key("a"), "theirs".into(), other)
        .await
        .unwrap();
    let options = commit(1, Precondition::IfAbsent);
    let put = f.driver.put(&key("a"), "ours".into(), options).await;
    assert_eq!(put.unwrap_err().kind(), ErrorKind::Exists);
    // Without a commit id nothing is proven.
    f.plan.set("put:lost-reply@1").unwrap();
    let options = PutOptions {
        precondition: Precondition::IfAbsent,
        ..PutOptions::default()
    };
    let put = f.driver.put(&key("b"), "ours".into(), options).await;
    assert_eq!(put.unwrap_err().kind(), ErrorKind::Exists);
    // A conflict at the first attempt costs no further request.
    let before = f.stats.snapshot().requests();
    let options = commit(1, Precondition::IfAbsent);
    let put = f.driver.put(&key("a"), "ours".into(), options).await;
    assert_eq!(put.unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(f.stats.snapshot().requests(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn lost_replies_of_deletes_and_renames() {
    let f = fixture(RetryOptions::default());
    f.plan
        .set("delete:lost-reply@1,rename:lost-reply@1,exchange:lost-reply@1")
        .unwrap();
    let etag = put(&f.memory, "a", "x").await.etag;
    let delete = f
        .driver
        .delete(&key("a"), Precondition::IfMatch(etag))
        .await;
    delete.unwrap();

    let source = put(&f.memory, "a", "x").await.etag;
    let options = CopyOptions {
        source: Some(source.clone()),
        ..CopyOptions::default()
    };
    let rename = f.driver.rename(&key("a"), &key("b"), options).await;
    assert_eq!(rename.unwrap().etag, source);

    // Somebody else's object at the destination is no proof.
    f.plan.set("rename:error=unreachable@1").unwrap();
    let options = CopyOptions {
        source: Some(ETag::new("gone")),
        ..CopyOptions::default()
    };
    let rename = f.driver.rename(&key("a"), &key("b"), options).await;
    assert_eq!(rename.unwrap_err().kind(), ErrorKind::NotFound);

    f.plan.set("exchange:lost-reply@1").unwrap();
    put(&f.memory, "a", "was a").await;
    let exchange = f.driver.exchange(&key("a"), &key("b")).await;
    assert_eq!(exchange.unwrap_err().kind(), ErrorKind::Unreachable);
    let bytes = read(&f.memory, "b", GetOptions::default()).await.unwrap();
    assert_eq!(bytes, "was a", "swapped once, not twice");
}

#[tokio::test(start_paused = true)]
async fn broken_bodies_are_continued_in_the_same_version() {
    let f = fixture(RetryOptions::default());
    put(&f.memory, "k", "0123456789").await;
    let all = GetOptions::default();
    let some = GetOptions {
        range: Some(2..8),
        ..GetOptions::default()
    };
    for spec in ["get:truncate=3", "get:break=1", "get:truncate=0@1"] {
        f.plan.set(spec).unwrap();
        let bytes = read(&*f.driver, "k", all.clone()).await.unwrap();
        assert_eq!(bytes, "0123456789", "{spec}");
        let bytes = read(&*f.driver, "k", some.clone()).await.unwrap();
        assert_eq!(bytes, "234567", "{spec}");
    }
    // Another version in between is an error, not a mixture.
    f.plan.set("get:truncate=3@1").unwrap();
    let object = f.driver.get(&key("k"), all.clone()).await.unwrap();
    let mut body = object.found().unwrap().body;
    assert_eq!(body.next().await.unwrap().unwrap(), "012");
    put(&f.memory, "k", "abcdefghij").await;
    let error = body.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed);
    assert!(body.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn lengths_that_lie_are_retried_and_never_believed() {
    let f = fixture(RetryOptions::default());
    put(&f.memory, "k", "0123456789").await;
    for seed in 0..8 {
        f.plan
            .set(&format!("get:wrong-length,seed={seed}"))
            .unwrap();
        let some = GetOptions {
            range: Some(0..100),
            ..GetOptions::default()
        };
        let error = read(&*f.driver, "k", some).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{seed}");
        let range = GetOptions {
            range: Some(2..4),
            ..GetOptions::default()
        };
        f.plan
            .set(&format!("get:wrong-length@1,seed={seed}"))
            .unwrap();
        let bytes = read(&*f.driver, "k", range).await.unwrap();
        assert_eq!(bytes, "23", "{seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_keys_that_failed_are_deleted_again() {
    let f = fixture(RetryOptions::default());
    for name in ["a", "b"] {
        put(&f.memory, name, "x").await;
    }
    f.plan.set("delete_many:lost-reply@1").unwrap();
    let results = f
        .driver
        .delete_many(&[key("a").into(), key("b").into()])
        .await
        .unwrap();
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(f.stats.snapshot().count(Operation::DeleteMany), 2);
    assert!(f.memory.is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_to_delete_is_an_answer() {
    let f = fixture(RetryOptions::default());
    f.plan.set("delete_many:delay=1s").unwrap();
    let deleted = f.driver.delete_many(&[]);
    let deleted = tokio::time::timeout(Duration::from_secs(60), deleted).await;
    assert!(deleted.expect("an answer").unwrap().is_empty());
}

/// A store whose copies take several steps, of so many seconds each.
#[derive(Debug)]
struct Steps(Vec<u64>);

impl crate::layer::Policy for Steps {
    async fn request<'a, T: Send + 'a>(
        self: &'a Arc<Self>,
        _: &'a crate::layer::Call<'_>,
        request: futures::future::BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        for seconds in &self.0 {
            tokio::time::sleep(Duration::from_secs(*seconds)).await;
            crate::driver::progress::step();
        }
        request.await
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_goes_on_by_steps_is_not_late() {
    let memory = Memory::new();
    put(&memory, "k", "hello").await;
    let (from, to) = (key("k"), key("l"));
    for (steps, kind) in [
        (vec![100, 100, 100], None),
        (vec![100, 130], Some(ErrorKind::Timeout)),
    ] {
        let mut driver = Layered::over(Arc::new(memory.clone()), Arc::new(Steps(steps)));
        // The steps of a part of a store are the whole's as well.
        for _ in 0..2 {
            driver = Layered::over(driver, Arc::new(Deadline::new(Duration::from_secs(30))));
            let copied = driver.copy(&from, &to, CopyOptions::default()).await;
            assert_eq!(copied.err().map(|error| error.kind()), kind);
            let changed = driver.set_attributes(&from, AttributeChange::default(), None);
            assert_eq!(changed.await.err().map(|error| error.kind()), kind);
        }
    }
}
