//! The change feed: the server pushes the names of changed keys (client tracking in broadcast mode,
//! RESP3), and each is looked at once for what it is now.

use super::link::Link;
use super::target::Mode;
use crate::driver::{Change, Error, ErrorKind, Result};
use crate::key::Key;
use ::redis::aio::{ConnectionLike, MultiplexedConnection, SendError};
use ::redis::{PushInfo, PushKind, Value};
use futures::StreamExt;
use futures::stream::BoxStream;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often a silent connection is asked whether it is still there, and how long that may take.
const PULSE: Duration = Duration::from_secs(10);
/// How many messages may wait to be read; one more, and all that is known may be stale.
const QUEUE: usize = 16_384;
/// How many changed keys are looked at at a time.
pub(super) const AHEAD: usize = 16;

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

/// The changes of keys that begin with `root` and then with `prefix`. `look` tells what
/// a key is now.
pub(super) async fn changes<F>(
    link: &Link,
    root: Vec<u8>,
    prefix: &Key,
    look: impl Fn(Key) -> F + Send + 'static,
) -> Result<BoxStream<'static, Result<Change>>>
where
    F: Future<Output = Change> + Send + 'static,
{
    let pushed = pushes(link, &[&root[..], prefix.as_bytes()].concat()).await?;
    let changes = pushed.map(move |pushed| {
        let key = match pushed {
            Ok(Some(key)) => key.strip_prefix(&root[..]).map(Key::from),
            Ok(None) => None,
            Err(error) => return futures::future::Either::Left(futures::future::ready(Err(error))),
        };
        let looking = key.map(&look);
        futures::future::Either::Right(async move {
            Ok(match looking {
                None => Change::Lost,
                Some(looking) => looking.await,
            })
        })
    });
    Ok(changes.buffered(AHEAD).boxed())
}

/// The names of changed keys that begin with something; `None` where all may have changed.
pub(super) async fn pushes(
    link: &Link,
    begin: &[u8],
) -> Result<BoxStream<'static, Result<Option<Vec<u8>>>>> {
    let feed = Feed::begin(link, begin).await?;
    let stream = futures::stream::unfold(Some(feed), |feed| async move {
        let mut feed = feed?;
        Some(match feed.next().await {
            Ok(Pushed::Key(key)) => (Ok(Some(key)), Some(feed)),
            Ok(Pushed::All) => (Ok(None), Some(feed)),
            Err(error) => (Err(error), None),
        })
    });
    Ok(stream.boxed())
}
