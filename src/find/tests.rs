//! Searches of a store that fails at times.

use super::*;
use crate::driver::memory::Memory;
use crate::driver::{Body, Capabilities, Change, GetOutcome, Page, PutOptions};
use async_trait::async_trait;
use futures::stream::BoxStream;
use parking_lot::Mutex;

/// A store in memory with a mood.
#[derive(Debug)]
struct Moody {
    inner: Memory,
    /// Whether it has a feed.
    tells: bool,
    /// How every request fails.
    away: Mutex<Option<ErrorKind>>,
    /// How the object `bad` cannot be read.
    bad: Mutex<Option<ErrorKind>>,
}

impl Moody {
    fn new(tells: bool) -> Arc<Moody> {
        Arc::new(Moody {
            inner: Memory::new(),
            tells,
            away: Mutex::new(None),
            bad: Mutex::new(None),
        })
    }

    fn mood(&self) -> Result<()> {
        match *self.away.lock() {
            Some(kind) => Err(Error::new(kind, "not today")),
            None => Ok(()),
        }
    }

    async fn write(&self, name: &str) {
        let body = Body::from(format!("{{\"name\": \"{name}\"}}").into_bytes());
        let options = PutOptions::default();
        self.inner.put(&name.into(), body, options).await.unwrap();
    }

    /// Follows all documents.
    fn follow(self: &Arc<Moody>) -> Told {
        let search = Search {
            driver: self.clone(),
            shows_buckets: false,
            prefix: Key::empty(),
            filter: Filter::default(),
            texts: false,
        };
        Told(search.follow(Duration::from_millis(20)))
    }
}

#[async_trait]
impl Driver for Moody {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            watch: self.tells,
            ..self.inner.capabilities()
        }
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.inner.head(key).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        self.mood()?;
        match *self.bad.lock() {
            Some(kind) if key.as_bytes() == b"bad" => return Err(Error::new(kind, "no")),
            _ => {}
        }
        self.inner.get(key, options).await
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        self.inner.put(key, body, options).await
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        self.inner.delete(key, precondition).await
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        self.mood()?;
        self.inner.list(request).await
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        self.inner.watch(prefix).await
    }
}

/// What a search tells, in short.
struct Told(mpsc::Receiver<Result<Event>>);

impl Told {
    async fn next(&mut self) -> String {
        let next = async {
            loop {
                match self.0.recv().await {
                    Some(Ok(Event::Looked(_))) => {}
                    Some(Ok(Event::Found(found))) => return format!("found {}", found.key),
                    Some(Ok(Event::Skipped(_))) => return "skipped".into(),
                    Some(Ok(Event::Away(_))) => return "away".into(),
                    Some(Ok(Event::Back)) => return "back".into(),
                    Some(Err(error)) => return format!("failed {:?}", error.kind()),
                    None => return "ended".into(),
                }
            }
        };
        let next = tokio::time::timeout(Duration::from_secs(10), next);
        next.await.unwrap_or_else(|_| "nothing".into())
    }

    /// That nothing is told while the store is looked at several times.
    async fn is_quiet(&mut self) {
        let more = tokio::time::timeout(Duration::from_millis(200), self.next()).await;
        assert!(more.is_err(), "{more:?}");
    }
}

#[tokio::test]
async fn a_watch_outlasts_an_outage() {
    for tells in [false, true] {
        let store = Moody::new(tells);
        store.write("a").await;
        let mut told = store.follow();
        assert_eq!(told.next().await, "found a");
        if tells {
            // The first look is through once the feed tells.
            store.write("b").await;
            assert_eq!(told.next().await, "found b");
        } else {
            told.is_quiet().await;
        }
        *store.away.lock() = Some(ErrorKind::Unreachable);
        store.write("c").await;
        assert_eq!(told.next().await, "away", "{tells}");
        told.is_quiet().await;
        *store.away.lock() = None;
        // What was told is not told again.
        let mut next = [told.next().await, told.next().await];
        next.sort();
        assert_eq!(next, ["back", "found c"], "{tells}");
        store.write("d").await;
        assert_eq!(told.next().await, "found d", "{tells}");
        // What does not pass by itself ends it.
        *store.away.lock() = Some(ErrorKind::Unauthenticated);
        store.write("e").await;
        assert_eq!(told.next().await, "failed Unauthenticated", "{tells}");
        assert_eq!(told.next().await, "ended");
    }
}

#[tokio::test]
async fn a_watch_of_a_store_that_never_answered_ends() {
    let store = Moody::new(false);
    *store.away.lock() = Some(ErrorKind::Unreachable);
    let mut told = store.follow();
    assert_eq!(told.next().await, "failed Unreachable");
}

#[tokio::test]
async fn a_version_that_could_not_be_read_is_told_when_it_can_be() {
    for tells in [false, true] {
        // There from the start, or made while the feed is heard.
        for is_there in [false, true] {
            let store = Moody::new(tells);
            *store.bad.lock() = Some(ErrorKind::Denied);
            store.write("a").await;
            if is_there {
                store.write("bad").await;
            }
            let mut told = store.follow();
            assert_eq!(told.next().await, "found a");
            if !is_there {
                told.is_quiet().await;
                store.write("bad").await;
            }
            assert_eq!(told.next().await, "skipped");
            // Once.
            told.is_quiet().await;
            *store.bad.lock() = None;
            assert_eq!(told.next().await, "found bad", "{tells} {is_there}");
            told.is_quiet().await;
        }
    }
}

#[tokio::test]
async fn an_object_that_is_too_large_is_read_once() {
    let store = Moody::new(false);
    *store.bad.lock() = Some(ErrorKind::TooLarge);
    store.write("bad").await;
    let mut told = store.follow();
    assert_eq!(told.next().await, "skipped");
    *store.bad.lock() = None;
    told.is_quiet().await;
}
