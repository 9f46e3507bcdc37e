//! Bodies: chunks in `X.chunks` that carry the `_id` of their revision and their number.

use super::entry::{Entry, binary};
use super::{CHUNK, Files};
use crate::driver::{Body, Error, ErrorKind, Result};
use crate::key::Key;
use ::mongodb::Cursor;
use ::mongodb::bson::oid::ObjectId;
use ::mongodb::bson::{Bson, Document, doc};
use bytes::{Bytes, BytesMut};
use futures::stream::{BoxStream, FuturesOrdered};
use futures::{StreamExt, TryStreamExt};
use std::ops::Range;

/// How many chunks go in one request, either way.
const MANY: usize = 16;
/// How many such requests are under way at a time.
const AHEAD: usize = 2;

/// The chunks of a revision on its way: dropped while nothing may stand on them, they are removed.
pub(super) struct Pending {
    files: Files,
    pub id: ObjectId,
    /// Whether no file has this `_id`, for certain.
    pub is_loose: bool,
}

impl Pending {
    pub(super) fn new(files: &Files) -> Self {
        Pending {
            files: files.clone(),
            id: ObjectId::new(),
            is_loose: true,
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if !self.is_loose {
            return;
        }
        let (files, id) = (self.files.clone(), self.id);
        runtime.spawn(async move {
            // The client may have sent it twice, and another have renamed what came of the first.
            if let Ok(gone) = files.gone(vec![id.into()]).await {
                files.discard(&gone).await;
            }
        });
    }
}

/// Where a stream of chunks is.
struct Reading {
    cursor: Cursor<Document>,
    next: u64,
    range: Range<u64>,
}

impl Files {
    /// Sends a body. Nothing of it shows until a file has this `_id`.
    pub(super) async fn send(&self, id: ObjectId, body: &Body) -> Result<()> {
        let mut under_way = FuturesOrdered::new();
        let (mut stream, mut number, mut sent) = (body.stream(), 0_u64, 0);
        let (mut rest, mut many) = (BytesMut::new(), Vec::new());
        loop {
            let piece = stream.next().await.transpose()?;
            let ended = piece.is_none();
            rest.extend_from_slice(&piece.unwrap_or_default());
            while rest.len() as u64 >= CHUNK || (ended && !rest.is_empty()) {
                let bytes = rest.split_to(rest.len().min(CHUNK as usize));
                sent += bytes.len() as u64;
                let Ok(n) = i32::try_from(number) else {
                    let why = "a file has no more chunks than 32 bits can count";
                    return Err(Error::new(ErrorKind::TooLarge, why));
                };
                many.push(doc! { "_id": ObjectId::new(), "files_id": id, "n": n, "data": binary(bytes.to_vec()) });
                number += 1;
                if many.len() == MANY {
                    under_way.push_back(self.insert(std::mem::take(&mut many)));
                }
                if under_way.len() >= AHEAD {
                    under_way.try_next().await?;
                }
            }
            if ended {
                break;
            }
        }
        if !many.is_empty() {
            under_way.push_back(self.insert(many));
        }
        while under_way.try_next().await?.is_some() {}
        match sent == body.len() {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Io,
                format!("the body gave {sent} bytes instead of {}", body.len()),
            )),
        }
    }

    async fn insert(&self, chunks: Vec<Document>) -> Result<()> {
        let inserted = self.chunks().insert_many(chunks).await;
        inserted.map(drop).map_err(|cause| self.error(&cause))
    }

    /// Removes the chunks of revisions that are gone, whatever name they had. What stays is seen by
    /// nobody.
    pub(super) async fn discard(&self, ids: &[Bson]) {
        if ids.is_empty() {
            return;
        }
        let of = doc! { "files_id": { "$in": ids } };
        if let Err(cause) = self.chunks().delete_many(of).await {
            log::warn!("chunks of removed files stay: {}", self.error(&cause));
        }
    }

    /// The bytes of a range, by the chunks that hold them.
    pub(super) fn stream(
        &self,
        key: &Key,
        entry: Entry,
        range: Range<u64>,
    ) -> BoxStream<'static, Result<Bytes>> {
        if range.is_empty() {
            return futures::stream::empty().boxed();
        }
        let (files, key) = (self.clone(), key.clone());
        let begun = async move {
            let (first, last) = (range.start / entry.chunk, (range.end - 1) / entry.chunk);
            let wanted = doc! {
                "files_id": { "$eq": &entry.id }, "n": { "$gte": first as i64, "$lte": last as i64 },
            };
            let chunks = files.chunks();
            let found = chunks.find(wanted).sort(doc! { "n": 1 });
            let found = found.batch_size(MANY as u32).await;
            let cursor = found.map_err(|cause| files.error(&cause).during("get").on(&key))?;
            let reading = Reading {
                cursor,
                next: first,
                range,
            };
            Ok::<_, Error>(futures::stream::try_unfold(reading, move |mut reading| {
                let (files, key, entry) = (files.clone(), key.clone(), entry.clone());
                async move {
                    if reading.next * entry.chunk >= reading.range.end {
                        return Ok(None);
                    }
                    let piece = files.piece(&entry, &mut reading).await;
                    let piece = piece.map_err(|error: Error| error.during("get").on(&key))?;
                    reading.next += 1;
                    Ok(Some((piece, reading)))
                }
            }))
        };
        futures::stream::once(begun).try_flatten().boxed()
    }

    /// The wanted bytes of the next chunk.
    async fn piece(&self, entry: &Entry, reading: &mut Reading) -> Result<Bytes> {
        let advanced = reading.cursor.advance().await;
        if !advanced.map_err(|cause| self.error(&cause))? {
            return Err(self.torn(entry).await);
        }
        let chunk = reading.cursor.deserialize_current();
        let chunk = chunk.map_err(|cause| self.error(&cause))?;
        let number = match chunk.get("n") {
            Some(Bson::Int32(n)) => u64::try_from(*n).ok(),
            Some(Bson::Int64(n)) => u64::try_from(*n).ok(),
            _ => None,
        };
        let begin = reading.next * entry.chunk;
        let size = entry.chunk.min(entry.length - begin);
        let data = match chunk.get("data") {
            Some(Bson::Binary(data)) => data.bytes.as_slice(),
            _ => &[],
        };
        if number != Some(reading.next) || data.len() as u64 != size {
            return Err(self.torn(entry).await);
        }
        let from = reading.range.start.max(begin) - begin;
        let to = reading.range.end.min(begin + size) - begin;
        Ok(Bytes::copy_from_slice(&data[from as usize..to as usize]))
    }

    /// Why a chunk is not there.
    async fn torn(&self, entry: &Entry) -> Error {
        let files = self.files();
        match files.find_one(doc! { "_id": { "$eq": &entry.id } }).await {
            Ok(None) => Error::new(
                ErrorKind::Changed,
                "the file was replaced while it was read",
            ),
            Ok(Some(_)) => Error::new(
                ErrorKind::Corrupt,
                "a chunk of the file is missing, or not of the size that the file says",
            )
            .retry(false),
            Err(cause) => self.error(&cause),
        }
    }
}
