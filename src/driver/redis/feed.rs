//! The change feed: the server pushes the names of changed keys (client tracking in broadcast mode,
//! RESP3), and they are looked at for what they are now, many at once.
//!
//! The server pushes what is written here too: its `NOLOOP` knows nothing of scripts. Such an echo
//! has to be looked at like any other, for somebody else may have written the key in the same turn
//! of the server's loop; but nobody waits for it, so it waits for others.

use super::link::Link;
use super::target::Mode;
use crate::clock::{self, Instant};
use crate::driver::{Change, Error, ErrorKind, Result};
use ::redis::aio::{ConnectionLike, MultiplexedConnection, SendError};
use ::redis::{PushInfo, PushKind, Value};
use futures::StreamExt;
use futures::stream::BoxStream;
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::{HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often a silent connection is asked whether it is still there, and how long that may take.
const PULSE: Duration = Duration::from_secs(10);
/// How many messages may wait to be read; one more, and all that is known may be stale.
const QUEUE: usize = 16_384;
/// How many times keys are looked at at a time, and how many keys at once.
const AHEAD: usize = 16;
const MOST: usize = 128;
/// How long an echo waits for others.
const REST: Duration = Duration::from_millis(5);
/// How many keys at most are known to be written here. An echo of another is taken for a change of
/// somebody else's.
const OWN: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Whether the server can push. A cluster's keys move from node to node, and their feed with them.
pub(super) fn works(link: &Link) -> bool {
    link.target().mode != Mode::Cluster
}

/// A change as it is pushed.
pub(super) enum Pushed {
    Key(Vec<u8>),
    /// All keys, or more than can be told.
    All,
}

/// The keys that are written here, and whose next push is most likely the echo of that.
pub(super) struct Echoes(Mutex<LruCache<Vec<u8>, ()>>);

impl Default for Echoes {
    fn default() -> Self {
        Echoes(Mutex::new(LruCache::new(OWN)))
    }
}

impl Echoes {
    /// Does something that writes keys, unless it fails.
    pub(super) async fn of<T>(
        &self,
        keys: &[impl AsRef<[u8]>],
        writing: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        for key in keys {
            self.0.lock().put(key.as_ref().to_vec(), ());
        }
        let written = writing.await;
        if written.is_err() {
            self.forget(keys);
        }
        written
    }

    /// Nothing was written to these keys after all.
    pub(super) fn forget(&self, keys: &[impl AsRef<[u8]>]) {
        for key in keys {
            self.0.lock().pop(key.as_ref());
        }
    }

    fn take(&self, key: &[u8]) -> bool {
        self.0.lock().pop(key).is_some()
    }
}

/// A connection on which the server pushes.
pub(super) struct Feed {
    connection: MultiplexedConnection,
    pushes: mpsc::Receiver<PushInfo>,
    /// Whether there were more messages than the queue takes.
    lost: Arc<AtomicBool>,
    ready: VecDeque<Pushed>,
}

fn broken() -> Error {
    let why = "the connection that tells changes broke";
    Error::new(ErrorKind::Unreachable, why).during("watch")
}

impl Feed {
    /// Begins to follow the keys that begin with something.
    pub(super) async fn begin(link: &Link, begin: &[u8]) -> Result<Feed> {
        let (sender, pushes) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicBool::new(false));
        let overflow = lost.clone();
        let push = move |push| match sender.try_send(push) {
            Err(mpsc::error::TrySendError::Full(_)) => {
                overflow.store(true, Ordering::Relaxed);
                Ok(())
            }
            sent => sent.map_err(|_| SendError),
        };
        let mut connection = link.listen(push).await?;
        let mut cmd = ::redis::cmd("CLIENT");
        cmd.arg("TRACKING").arg("ON").arg("BCAST");
        if !begin.is_empty() {
            cmd.arg("PREFIX").arg(begin);
        }
        let began = connection.req_packed_command(&cmd).await;
        began
            .and_then(Value::extract_error)
            .map_err(|cause| link.error(cause).during("watch"))?;
        Ok(Feed {
            connection,
            pushes,
            lost,
            ready: VecDeque::new(),
        })
    }

    /// All that was pushed for writes that were answered before this was called: the server pushes
    /// before it answers the writer, and answers a connection in order.
    pub(super) async fn settled(&mut self) -> Result<Vec<Pushed>> {
        let ping = ::redis::cmd("PING");
        let answered = self.connection.req_packed_command(&ping).await;
        answered.map_err(|_| broken())?;
        while let Ok(push) = self.pushes.try_recv() {
            self.take(push)?;
        }
        if self.lost.swap(false, Ordering::Relaxed) {
            self.ready.push_back(Pushed::All);
        }
        Ok(self.ready.drain(..).collect())
    }

    async fn next(&mut self) -> Result<Pushed> {
        loop {
            if self.lost.swap(false, Ordering::Relaxed) {
                return Ok(Pushed::All);
            }
            if let Some(pushed) = self.ready.pop_front() {
                return Ok(pushed);
            }
            match tokio::time::timeout(PULSE, self.pushes.recv()).await {
                Ok(Some(push)) => self.take(push)?,
                Ok(None) => return Err(broken()),
                Err(_) => {
                    let ping = ::redis::cmd("PING");
                    let pulse = self.connection.req_packed_command(&ping);
                    let answer = tokio::time::timeout(PULSE, pulse).await;
                    answer.map_err(|_| broken())?.map_err(|_| broken())?;
                }
            }
        }
    }

    fn take(&mut self, push: PushInfo) -> Result<()> {
        match push.kind {
            PushKind::Disconnection => return Err(broken()),
            PushKind::Invalidate => {}
            _ => return Ok(()),
        }
        for keys in push.data {
            match keys {
                Value::Array(keys) => self.ready.extend(keys.into_iter().map(|key| match key {
                    Value::BulkString(key) => Pushed::Key(key),
                    _ => Pushed::All,
                })),
                _ => self.ready.push_back(Pushed::All),
            }
        }
        Ok(())
    }
}

/// Puts together the keys that are looked at at once.
struct Batches {
    feed: Feed,
    echoes: Arc<Echoes>,
    keys: HashSet<Vec<u8>>,
    /// When they have waited long enough.
    due: Option<Instant>,
}

impl Batches {
    /// The next keys to look at; `None` where all may have changed.
    async fn next(&mut self) -> Result<Option<Vec<Vec<u8>>>> {
        loop {
            let pushed = match self.due {
                None => self.feed.next().await?,
                Some(due) => match tokio::time::timeout_at(due, self.feed.next()).await {
                    Ok(pushed) => pushed?,
                    Err(_) => break,
                },
            };
            let Pushed::Key(key) = pushed else {
                self.due = None;
                self.keys.clear();
                return Ok(None);
            };
            let now = clock::now();
            let due = match self.echoes.take(&key) {
                true => now + REST,
                // As soon as what is here already goes with it.
                false => now,
            };
            self.due = Some(self.due.map_or(due, |before| before.min(due)));
            self.keys.insert(key);
            if self.keys.len() == MOST {
                break;
            }
        }
        self.due = None;
        Ok(Some(self.keys.drain().collect()))
    }
}

/// The changes of keys that begin with something. `look` tells what keys are now; they come in the
/// order in which they are looked at.
pub(super) async fn changes<F>(
    link: &Link,
    begin: &[u8],
    echoes: Arc<Echoes>,
    look: impl Fn(Vec<Vec<u8>>) -> F + Send + 'static,
) -> Result<BoxStream<'static, Result<Change>>>
where
    F: Future<Output = Vec<Change>> + Send + 'static,
{
    let batches = Batches {
        feed: Feed::begin(link, begin).await?,
        echoes,
        keys: HashSet::new(),
        due: None,
    };
    let batches = futures::stream::unfold(Some(batches), |batches| async move {
        let mut batches = batches?;
        let next = batches.next().await;
        let rest = next.is_ok().then_some(batches);
        Some((next, rest))
    });
    let changes = batches.map(move |keys| {
        let looking = keys.map(|keys| keys.map(&look));
        async move {
            match looking {
                Err(error) => vec![Err(error)],
                Ok(None) => vec![Ok(Change::Lost)],
                Ok(Some(looking)) => looking.await.into_iter().map(Ok).collect(),
            }
        }
    });
    let changes = changes.buffered(AHEAD);
    Ok(changes.flat_map(futures::stream::iter).boxed())
}
