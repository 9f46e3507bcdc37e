//! The change feed: the server pushes the names of changed keys (client tracking in broadcast mode,
//! RESP3), and each is looked at once for what it is now.

use super::link::Link;
use super::target::Mode;
use crate::driver::{Change, ETag, Error, ErrorKind, Result};
use crate::key::Key;
use ::redis::aio::{ConnectionLike, MultiplexedConnection};
use ::redis::{PushInfo, PushKind, Value};
use futures::StreamExt;
use futures::stream::BoxStream;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// How often a silent connection is asked whether it is still there, and how long that may take.
const PULSE: Duration = Duration::from_secs(10);
/// How many changed keys are looked at at a time.
pub(super) const AHEAD: usize = 16;

/// Whether the server can push. A cluster's keys move from node to node, and their feed with them.
pub(super) fn works(link: &Link) -> bool {
    link.target().mode != Mode::Cluster
}

/// A change as it is pushed.
enum Pushed {
    Key(Vec<u8>),
    /// All keys, or more than can be told.
    All,
}

struct Feed {
    connection: MultiplexedConnection,
    pushes: UnboundedReceiver<PushInfo>,
    ready: VecDeque<Pushed>,
}

fn broken() -> Error {
    let why = "the connection that tells changes broke";
    Error::new(ErrorKind::Unreachable, why).during("watch")
}

impl Feed {
    async fn next(&mut self) -> Result<Pushed> {
        loop {
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

/// The changes of keys that begin with `root` and then with `prefix`. `look` tells a key's etag,
/// and `None` where it is gone.
pub(super) async fn changes<F>(
    link: &Link,
    root: Vec<u8>,
    prefix: &Key,
    look: impl Fn(Key) -> F + Send + 'static,
) -> Result<BoxStream<'static, Result<Change>>>
where
    F: Future<Output = Option<ETag>> + Send + 'static,
{
    let pushed = pushes(link, &[&root[..], prefix.as_bytes()].concat()).await?;
    let changes = pushed.map(move |pushed| {
        let key = match pushed {
            Ok(Some(key)) => key.strip_prefix(&root[..]).map(Key::from),
            Ok(None) => None,
            Err(error) => return futures::future::Either::Left(futures::future::ready(Err(error))),
        };
        let looking = key.map(|key| (key.clone(), look(key)));
        futures::future::Either::Right(async move {
            Ok(match looking {
                None => Change::Lost,
                Some((key, looking)) => match looking.await {
                    Some(etag) => Change::Written(key, Some(etag)),
                    None => Change::Removed(key),
                },
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
    let (sender, pushes) = unbounded_channel();
    let mut connection = link.listen(sender).await?;
    let mut cmd = ::redis::cmd("CLIENT");
    cmd.arg("TRACKING").arg("ON").arg("BCAST");
    if !begin.is_empty() {
        cmd.arg("PREFIX").arg(begin);
    }
    let began = connection.req_packed_command(&cmd).await;
    began
        .and_then(Value::extract_error)
        .map_err(|cause| link.error(cause).during("watch"))?;
    let feed = Feed {
        connection,
        pushes,
        ready: VecDeque::new(),
    };
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
