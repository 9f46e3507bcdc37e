//! Large objects on this machine: bytes that are read where they lie, and uploads in parts.

use super::{Shared, Side};
use crate::clock;
use crate::driver::{
    Body, Driver, ETag, Error, ErrorKind, GetOptions, ObjectInfo, Precondition, PutOptions, Result,
    Source, Upload,
};
use crate::key::Key;
use crate::task;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::{BoxStream, StreamExt};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Where parts are, in the store of this machine.
pub(super) const PLACE: &str = ".bucketfs/parts/";
/// How much of a stream becomes one piece.
const PIECE: usize = 8 << 20;

/// A range of an object on this machine.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub key: Key,
    pub etag: ETag,
    pub range: Range<u64>,
}

impl Piece {
    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// Pieces one behind the other.
pub(super) struct Pieces {
    driver: Arc<dyn Driver>,
    pieces: Vec<Piece>,
    runtime: Handle,
}

impl Pieces {
    /// A body that reads these pieces of a driver's objects, which must be on this machine.
    pub fn body(driver: &Arc<dyn Driver>, pieces: Vec<Piece>) -> Body {
        Body::Source(Arc::new(Pieces {
            driver: driver.clone(),
            pieces,
            runtime: Handle::current(),
        }))
    }
}

impl Source for Pieces {
    fn len(&self) -> u64 {
        self.pieces.iter().map(Piece::len).sum()
    }

    fn read(&self, range: Range<u64>) -> std::io::Result<Bytes> {
        let mut bytes = BytesMut::with_capacity((range.end - range.start) as usize);
        let mut begin = 0;
        for piece in &self.pieces {
            let end = begin + piece.len();
            let (from, to) = (range.start.max(begin), range.end.min(end));
            if from < to {
                let start = piece.range.start;
                let wanted = start + from - begin..start + to - begin;
                let read = read(&*self.driver, &piece.key, wanted, &piece.etag);
                let read = self.runtime.block_on(read);
                bytes.extend_from_slice(&read.map_err(std::io::Error::other)?);
            }
            begin = end;
        }
        Ok(bytes.freeze())
    }
}

/// A range of one version of an object, which must have all of it.
pub(super) async fn read(
    driver: &dyn Driver,
    key: &Key,
    range: Range<u64>,
    etag: &ETag,
) -> Result<Bytes> {
    let len = range.end - range.start;
    let options = GetOptions {
        range: Some(range),
        if_match: Some(etag.clone()),
        ..GetOptions::default()
    };
    let (_, bytes) = driver.get(key, options).await?.found()?.collect().await?;
    if bytes.len() as u64 != len {
        return Err(Error::new(ErrorKind::Corrupt, "it ends within the range").on(key));
    }
    Ok(bytes)
}

/// What waits on this machine to become an object; removed when it is dropped, or at the next
/// start.
#[derive(Debug)]
pub(super) struct Waiting {
    driver: Arc<dyn Driver>,
    prefix: Key,
    /// Leaf lock, held for moments only.
    keys: Mutex<Vec<Key>>,
}

impl Waiting {
    pub fn new(driver: &Arc<dyn Driver>) -> Self {
        Waiting {
            driver: driver.clone(),
            prefix: Key::from(format!("{PLACE}{:016x}/", clock::random())),
            keys: Mutex::default(),
        }
    }

    /// Keeps a body.
    async fn keep(&self, body: Body) -> Result<Piece> {
        let key = {
            let mut keys = self.keys.lock();
            let key = self.prefix.join(format!("{}", keys.len()));
            keys.push(key.clone());
            key
        };
        let range = 0..body.len();
        let put = self.driver.put(&key, body, PutOptions::default());
        let etag = put.await?.etag;
        Ok(Piece { key, etag, range })
    }

    /// Keeps what a stream brings, all `len` bytes of it.
    pub async fn keep_stream(
        &self,
        mut stream: BoxStream<'_, Result<Bytes>>,
        len: u64,
    ) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut gathered = BytesMut::new();
        while let Some(bytes) = stream.next().await {
            gathered.extend_from_slice(&bytes?);
            if gathered.len() >= PIECE {
                pieces.push(self.keep(gathered.split().freeze().into()).await?);
            }
        }
        if !gathered.is_empty() {
            pieces.push(self.keep(gathered.freeze().into()).await?);
        }
        if pieces.iter().map(Piece::len).sum::<u64>() != len {
            return Err(Error::new(ErrorKind::Corrupt, "the body ended early").during("get"));
        }
        Ok(pieces)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let keys = std::mem::take(&mut *self.keys.lock());
        let driver = self.driver.clone();
        // Where the runtime has ended, the next start removes them.
        if !keys.is_empty() && Handle::try_current().is_ok() {
            task::spawn(async move {
                for key in keys {
                    if let Err(error) = driver.delete(&key, Precondition::None).await {
                        log::debug!("a part stays until the next start: {error}");
                    }
                }
            });
        }
    }
}

/// An object of this machine that arrives in parts, for callers whose store has them.
#[derive(Debug)]
pub(super) struct LocalUpload {
    shared: Arc<Shared>,
    key: Key,
    options: PutOptions,
    waiting: Waiting,
    /// By number; `None` when it was aborted. Leaf lock.
    parts: Mutex<Option<BTreeMap<u32, Vec<Piece>>>>,
}

impl LocalUpload {
    pub fn new(shared: &Arc<Shared>, key: &Key, options: PutOptions) -> Self {
        LocalUpload {
            shared: shared.clone(),
            key: key.clone(),
            options,
            waiting: Waiting::new(&shared.local),
            parts: Mutex::new(Some(BTreeMap::new())),
        }
    }

    fn aborted(&self, operation: &'static str) -> Error {
        Error::new(ErrorKind::NotFound, "the upload was aborted")
            .during(operation)
            .on(&self.key)
    }

    fn insert(&self, number: u32, pieces: Vec<Piece>) -> Result<()> {
        let mut parts = self.parts.lock();
        let Some(parts) = &mut *parts else {
            return Err(self.aborted("part"));
        };
        parts.insert(number, pieces);
        Ok(())
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Upload for LocalUpload {
    async fn part(&self, number: u32, body: Body) -> Result<()> {
        let kept = self.waiting.keep(body).await;
        self.insert(number, vec![kept.map_err(|error| error.on(&self.key))?])
    }

    async fn copy_part(
        &self,
        number: u32,
        from: &Key,
        range: Range<u64>,
        if_match: ETag,
    ) -> Result<()> {
        self.shared.require_part_copies(from)?;
        let pieces = match self.shared.side(from) {
            // What is here already need not be copied before it is all put together.
            Side::Local => {
                let now = self.shared.local.head(from).await?;
                Precondition::IfMatch(if_match.clone())
                    .check(Some(&now.etag))
                    .map_err(|error| error.during("copy_part").on(from))?;
                vec![Piece {
                    key: from.clone(),
                    etag: if_match,
                    range,
                }]
            }
            Side::Store => {
                let len = range.end - range.start;
                let options = GetOptions {
                    range: Some(range),
                    if_match: Some(if_match),
                    ..GetOptions::default()
                };
                let object = self.shared.store.get(from, options).await?.found()?;
                self.waiting.keep_stream(object.body, len).await?
            }
        };
        self.insert(number, pieces)
    }

    async fn complete(&self, precondition: Precondition) -> Result<ObjectInfo> {
        let pieces = self.parts.lock().clone();
        let pieces = pieces.ok_or_else(|| self.aborted("complete"))?;
        let pieces = pieces.into_values().flatten().collect();
        let body = Pieces::body(&self.shared.local, pieces);
        let options = PutOptions {
            precondition,
            ..self.options.clone()
        };
        self.shared.put_local(&self.key, body, options).await
    }

    async fn abort(&self) -> Result<()> {
        *self.parts.lock() = None;
        Ok(())
    }
}

/// An upload to the store, some of whose parts may be copied from objects of this machine.
#[derive(Debug)]
pub(super) struct StoreUpload {
    pub shared: Arc<Shared>,
    pub inner: Box<dyn Upload>,
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Upload for StoreUpload {
    async fn part(&self, number: u32, body: Body) -> Result<()> {
        self.inner.part(number, body).await
    }

    async fn copy_part(
        &self,
        number: u32,
        from: &Key,
        range: Range<u64>,
        if_match: ETag,
    ) -> Result<()> {
        if self.shared.side(from) == Side::Store {
            return self.inner.copy_part(number, from, range, if_match).await;
        }
        self.shared.require_part_copies(from)?;
        // Asked for here, so that a lost condition is told as such.
        let now = self.shared.local.head(from).await?;
        Precondition::IfMatch(if_match.clone())
            .check(Some(&now.etag))
            .map_err(|error| error.during("copy_part").on(from))?;
        let piece = Piece {
            key: from.clone(),
            etag: if_match,
            range,
        };
        let body = Pieces::body(&self.shared.local, vec![piece]);
        self.inner.part(number, body).await
    }

    async fn complete(&self, precondition: Precondition) -> Result<ObjectInfo> {
        self.inner.complete(precondition).await
    }

    async fn abort(&self) -> Result<()> {
        self.inner.abort().await
    }
}
