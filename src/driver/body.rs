//! Bytes on their way: bodies that can be sent again, and streams of what a store sends.

use super::{ETag, Error, ErrorKind, ObjectInfo, Result};
use crate::key::Key;
use crate::task;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that can be read at any offset as often as a retry needs, and never change.
pub trait Source: Send + Sync + 'static {
    /// How many bytes there are.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads exactly `range`, which lies within `0..len`. It may block on a local disk (never on
    /// a network), so callers read it off the async threads.
    fn read(&self, range: Range<u64>) -> std::io::Result<Bytes>;

    /// Some bytes of `range`, from its start and at least one, where they lie in memory and need
    /// no copy; `None` where they have to be read.
    fn at_hand(&self, range: Range<u64>) -> Option<Bytes> {
        let _ = range;
        None
    }

    /// Of what `range` is made, where some of it is in the store already and cannot be read here;
    /// `None` where all of it can.
    fn pieces(&self, range: Range<u64>) -> Option<Vec<Piece>> {
        let _ = range;
        None
    }
}

/// A range of an object that the store of a put has.
#[derive(Clone)]
pub struct Stored {
    /// The object.
    pub key: Key,
    /// Its version.
    pub etag: ETag,
    /// How large it is.
    pub size: u64,
    /// Which bytes of it.
    pub range: Range<u64>,
    /// What keeps the object there as long as somebody may need it.
    pub keep: Option<Arc<dyn Any + Send + Sync>>,
}

impl Stored {
    /// How many bytes they are.
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether they are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// A part of them.
    #[must_use]
    pub fn slice(&self, range: Range<u64>) -> Stored {
        let start = self.range.start;
        Stored {
            range: start + range.start..start + range.end,
            ..self.clone()
        }
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { start, end } = self.range;
        write!(f, "bytes {start}..{end} of {:?}", self.key)
    }
}

/// A piece of a body.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Bytes that can be sent from here.
    Here(Body),
    /// Bytes that the store can copy.
    Stored(Stored),
}

impl Piece {
    /// How many bytes it has.
    pub fn len(&self) -> u64 {
        match self {
            Piece::Here(body) => body.len(),
            Piece::Stored(stored) => stored.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A part of it.
    #[must_use]
    pub fn slice(&self, range: Range<u64>) -> Piece {
        match self {
            Piece::Here(body) => Piece::Here(body.slice(range)),
            Piece::Stored(stored) => Piece::Stored(stored.slice(range)),
        }
    }
}

/// The body of a put: it can be sent again, and cloning it copies no bytes.
#[derive(Clone)]
pub enum Body {
    /// Pieces in memory, in order.
    Memory(Arc<[Bytes]>),
    /// Bytes that lie elsewhere, such as a spill file.
    Source(Arc<dyn Source>),
}

/// How much of a [`Body::Source`] is read at a time.
const PIECE: u64 = 1 << 20;

impl Body {
    /// A body of no bytes.
    pub fn empty() -> Self {
        Body::Memory(Arc::new([]))
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Body::Memory(pieces) => pieces.iter().map(|piece| piece.len() as u64).sum(),
            Body::Source(source) => source.len(),
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One body of several pieces. What of it the store has cannot be read from it.
    pub fn joined(pieces: Vec<Piece>) -> Self {
        let len = pieces.iter().map(Piece::len).sum();
        Body::Source(Arc::new(Joined { pieces, len }))
    }

    /// Its pieces, where the store has some of them; `None` where all bytes are here.
    pub fn pieces(&self) -> Option<Vec<Piece>> {
        match self {
            Body::Memory(_) => None,
            Body::Source(source) => source.pieces(0..source.len()),
        }
    }

    /// The bytes from the start, in pieces of at most 1 MiB where they have to be read. Each call
    /// starts anew.
    pub fn stream(&self) -> BoxStream<'static, std::io::Result<Bytes>> {
        match self {
            Body::Memory(pieces) => {
                let pieces = pieces.clone();
                futures::stream::iter((0..pieces.len()).map(move |i| Ok(pieces[i].clone()))).boxed()
            }
            Body::Source(source) => {
                let source = source.clone();
                let len = source.len();
                futures::stream::try_unfold(0, move |start| {
                    let source = source.clone();
                    async move {
                        let range = start..(start + PIECE).min(len);
                        if range.is_empty() {
                            return Ok(None);
                        }
                        if let Some(bytes) = source.at_hand(range.clone()) {
                            let next = start + bytes.len() as u64;
                            return Ok(Some((bytes, next)));
                        }
                        let next = range.end;
                        let bytes = task::blocking(move || source.read(range))
                            .await
                            .map_err(std::io::Error::other)??;
                        Ok(Some((bytes, next)))
                    }
                })
                .boxed()
            }
        }
    }

    /// A part of it, without a copy. What reaches past the end is cut.
    pub fn slice(&self, range: Range<u64>) -> Body {
        let end = range.end.min(self.len());
        let range = range.start.min(end)..end;
        match self {
            Body::Memory(pieces) => {
                let mut at = 0;
                let mut slices = Vec::new();
                for piece in pieces.iter() {
                    let (begin, end) = (at, at + piece.len() as u64);
                    at = end;
                    let (from, to) = (range.start.max(begin), range.end.min(end));
                    if from < to {
                        slices.push(piece.slice((from - begin) as usize..(to - begin) as usize));
                    }
                }
                Body::Memory(slices.into())
            }
            Body::Source(source) => Body::Source(Arc::new(Slice {
                source: source.clone(),
                range,
            })),
        }
    }

    /// Passes the bytes on from the start, in pieces as [`Body::stream`] has them. It may block on
    /// a local disk.
    pub fn read(&self, mut take: impl FnMut(Bytes) -> std::io::Result<()>) -> std::io::Result<()> {
        match self {
            Body::Memory(pieces) => pieces.iter().cloned().try_for_each(take),
            Body::Source(source) => {
                let len = source.len();
                for start in (0..len).step_by(PIECE as usize) {
                    take(source.read(start..(start + PIECE).min(len))?)?;
                }
                Ok(())
            }
        }
    }

    /// All bytes in one buffer; for stores that take a value whole.
    pub async fn collect(&self) -> Result<Bytes> {
        if let Body::Memory(pieces) = self
            && let [piece] = pieces.as_ref()
        {
            return Ok(piece.clone());
        }
        let mut all = BytesMut::with_capacity(self.len() as usize);
        let mut stream = self.stream();
        while let Some(piece) = stream.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all.freeze())
    }
}

/// A range of another source.
struct Slice {
    source: Arc<dyn Source>,
    range: Range<u64>,
}

impl Source for Slice {
    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn read(&self, range: Range<u64>) -> std::io::Result<Bytes> {
        let start = self.range.start;
        self.source.read(start + range.start..start + range.end)
    }

    fn at_hand(&self, range: Range<u64>) -> Option<Bytes> {
        let start = self.range.start;
        self.source.at_hand(start + range.start..start + range.end)
    }

    fn pieces(&self, range: Range<u64>) -> Option<Vec<Piece>> {
        let start = self.range.start;
        self.source.pieces(start + range.start..start + range.end)
    }
}

/// Pieces in order.
struct Joined {
    pieces: Vec<Piece>,
    len: u64,
}

impl Joined {
    /// The pieces of a range, cut to it.
    fn within(&self, range: Range<u64>) -> impl Iterator<Item = Piece> + '_ {
        let mut at = 0;
        self.pieces.iter().filter_map(move |piece| {
            let (begin, end) = (at, at + piece.len());
            at = end;
            let (from, to) = (range.start.max(begin), range.end.min(end));
            (from < to).then(|| piece.slice(from - begin..to - begin))
        })
    }
}

impl Source for Joined {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, range: Range<u64>) -> std::io::Result<Bytes> {
        let mut all = BytesMut::with_capacity((range.end - range.start) as usize);
        for piece in self.within(range) {
            match piece {
                Piece::Here(body) => body.read(|bytes| {
                    all.extend_from_slice(&bytes);
                    Ok(())
                })?,
                Piece::Stored(stored) => {
                    return Err(std::io::Error::other(format!("{stored:?} are not here")));
                }
            }
        }
        Ok(all.freeze())
    }

    fn pieces(&self, range: Range<u64>) -> Option<Vec<Piece>> {
        let pieces: Vec<_> = self.within(range).collect();
        let stored = pieces.iter().any(|p| matches!(p, Piece::Stored(_)));
        stored.then_some(pieces)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.len())
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Body::Memory(Arc::new([bytes]))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<&'static [u8]> for Body {
    fn from(bytes: &'static [u8]) -> Self {
        Bytes::from_static(bytes).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

/// What a get found: the object's facts and a stream of the range that was asked for.
pub struct Object {
    /// Facts of the version that the bytes come from; `size` is that of the whole object.
    pub info: ObjectInfo,
    /// Which bytes of the object the body holds. It may be shorter than what was asked for where
    /// the object ends before, and is empty for a range that begins at or past the end.
    pub range: Range<u64>,
    /// The bytes. A stream that ends before `range` is full is an error of kind
    /// [`ErrorKind::Corrupt`], reported by whoever reads it.
    pub body: BoxStream<'static, Result<Bytes>>,
}

impl Object {
    /// All bytes of the range, exactly; anything shorter or longer is an error.
    pub async fn collect(mut self) -> Result<(ObjectInfo, Bytes)> {
        let want = self.range.end - self.range.start;
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(piece) = self.body.next().await {
            let piece = piece?;
            if first.is_empty() && all.is_empty() {
                first = piece;
                continue;
            }
            if all.is_empty() {
                all.reserve(want.min(1 << 30) as usize);
                all.extend_from_slice(&first);
                first = Bytes::new();
            }
            all.extend_from_slice(&piece);
        }
        let bytes = if all.is_empty() { first } else { all.freeze() };
        if bytes.len() as u64 != want {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the body has {} bytes instead of {want}", bytes.len()),
            )
            .during("get"));
        }
        Ok((self.info, bytes))
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("info", &self.info)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Whole(Bytes);

    impl Source for Whole {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }

        fn read(&self, range: Range<u64>) -> std::io::Result<Bytes> {
            Ok(self.0.slice(range.start as usize..range.end as usize))
        }
    }

    #[tokio::test]
    async fn slices_have_the_bytes_of_their_range() {
        let bytes = Bytes::from_static(b"0123456789");
        let pieces = [bytes.slice(..3), bytes.slice(3..3), bytes.slice(3..)];
        let whole = Arc::new(Whole(bytes.clone()));
        for body in [Body::Memory(pieces.into()), Body::Source(whole)] {
            for (range, expected) in [
                (0..10, "0123456789"),
                (2..4, "23"),
                (3..3, ""),
                (8..99, "89"),
                (50..60, ""),
            ] {
                let slice = body.slice(range);
                assert_eq!(slice.len(), expected.len() as u64);
                assert_eq!(slice.collect().await.expect("bytes"), expected);
                let again = slice.slice(1..2).collect().await.expect("bytes");
                assert_eq!(again, expected.get(1..2).unwrap_or_default());
            }
        }
    }
}
