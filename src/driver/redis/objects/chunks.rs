//! Bodies: immutable chunks under a name of their own. They expire until a head names them, so that
//! what is given up halfway goes by itself, and again when no head names them any more.

use super::calls::{DISCARD, PIECE, granted};
use super::head::Head;
use super::{Objects, Shared};
use crate::clock;
use crate::driver::redis::answer::{bytes, garbled, int, next};
use crate::driver::{Body, Error, ErrorKind, Result};
use crate::key::Key;
use ::redis::Value;
use bytes::{Bytes, BytesMut};
use futures::stream::{BoxStream, FuturesOrdered};
use futures::{StreamExt, TryStreamExt};
use std::fmt;
use std::ops::Range;

/// The size of every chunk of a part but its last, and of the largest body that is put in one
/// request. The server serves nobody else while it moves one.
pub(super) const CHUNK: u64 = 1 << 20;
/// How long chunks stay that no head names yet, in seconds.
const EXPIRY: &str = "86400";
/// How many chunks are under way at a time.
const AHEAD: usize = 4;

/// A name that no body had before.
pub(super) fn name() -> String {
    format!("{:016x}{:016x}", clock::random(), clock::random())
}

/// Chunks with consecutive numbers and one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u64,
    count: u64,
    size: u64,
}

/// The chunks of a body in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs(Vec<Run>);

/// A piece of a chunk: its number, and which of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub number: u64,
    pub range: Range<u64>,
}

impl Runs {
    /// Chunks for so many bytes, the first of that number.
    pub(super) fn of(first: u64, size: u64) -> Self {
        let (count, rest) = (size / CHUNK, size % CHUNK);
        let mut runs = Runs::default();
        if count > 0 {
            runs.0.push(Run {
                first,
                count,
                size: CHUNK,
            });
        }
        if rest > 0 {
            runs.0.push(Run {
                first: first + count,
                count: 1,
                size: rest,
            });
        }
        runs
    }

    pub(super) fn append(&mut self, others: &Runs) {
        self.0.extend(&others.0);
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let run = |text: &str| {
            let mut numbers = text.split(',').map(str::parse);
            let mut number = || numbers.next()?.ok();
            let (first, count, size) = (number()?, number()?, number()?);
            Some(Run { first, count, size })
        };
        let runs = text.split(';').filter(|run| !run.is_empty()).map(run);
        runs.collect::<Option<_>>().map(Runs).ok_or_else(garbled)
    }

    pub(super) fn size(&self) -> u64 {
        self.0.iter().map(|run| run.count * run.size).sum()
    }

    /// Whether one chunk at most is all there is.
    pub(super) fn is_one(&self) -> bool {
        matches!(self.0.as_slice(), [] | [Run { count: 1, .. }])
    }

    /// What a range is made of.
    pub(super) fn pieces(&self, range: &Range<u64>) -> Vec<Piece> {
        let (mut pieces, mut at) = (Vec::new(), 0);
        for run in &self.0 {
            let end = at + run.count * run.size;
            let (from, to) = (range.start.max(at), range.end.min(end));
            let mut next = from;
            while next < to {
                let chunk = (next - at) / run.size;
                let begin = at + chunk * run.size;
                let until = to.min(begin + run.size);
                pieces.push(Piece {
                    number: run.first + chunk,
                    range: next - begin..until - begin,
                });
                next = until;
            }
            at = end;
        }
        pieces
    }
}

impl fmt::Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Run { first, count, size } in &self.0 {
            write!(f, "{first},{count},{size};")?;
        }
        Ok(())
    }
}

fn short(have: u64, want: u64) -> Error {
    let why = format!("the body gave {have} bytes instead of {want}");
    Error::new(ErrorKind::Io, why)
}

/// All bytes of a body that is small.
pub(super) async fn whole(body: &Body) -> Result<Bytes> {
    let bytes = body.collect().await?;
    match bytes.len() as u64 == body.len() {
        true => Ok(bytes),
        false => Err(short(bytes.len() as u64, body.len())),
    }
}

fn replaced() -> Error {
    let why = "the object was replaced while it was read";
    Error::new(ErrorKind::Changed, why)
}

impl Shared {
    fn chunk(&self, body: &str, number: u64) -> Vec<u8> {
        format!("{}c:{body}:{number}", self.root).into_bytes()
    }
}

impl Objects {
    /// Sends a body as chunks from a number on. Nothing shows of them until a head names them.
    pub(super) async fn send(&self, name: &str, first: u64, body: &Body) -> Result<Runs> {
        let mut under_way = FuturesOrdered::new();
        let (mut stream, mut number, mut sent) = (body.stream(), first, 0);
        let mut rest = BytesMut::new();
        loop {
            let piece = stream.next().await.transpose()?;
            let ended = piece.is_none();
            rest.extend_from_slice(&piece.unwrap_or_default());
            while rest.len() as u64 >= CHUNK || (ended && !rest.is_empty()) {
                let bytes = rest.split_to(rest.len().min(CHUNK as usize)).freeze();
                sent += bytes.len() as u64;
                under_way.push_back(self.set(name, number, bytes));
                number += 1;
                if under_way.len() >= AHEAD {
                    under_way.try_next().await?;
                }
            }
            if ended {
                break;
            }
        }
        while under_way.try_next().await?.is_some() {}
        match sent == body.len() {
            true => Ok(Runs::of(first, sent)),
            false => Err(short(sent, body.len())),
        }
    }

    async fn set(&self, name: &str, number: u64, bytes: Bytes) -> Result<()> {
        let mut cmd = ::redis::cmd("SET");
        cmd.arg(self.0.chunk(name, number))
            .arg(bytes.as_ref())
            .arg("EX")
            .arg(EXPIRY);
        self.0.link.ask(&cmd).await.map(drop)
    }

    /// A piece of a body, whole.
    async fn piece(&self, name: &str, piece: Piece) -> Result<Bytes> {
        let Range { start, end } = piece.range;
        let mut cmd = ::redis::cmd("GETRANGE");
        cmd.arg(self.0.chunk(name, piece.number))
            .arg(start)
            .arg(end - 1);
        let bytes = match self.0.link.ask(&cmd).await? {
            Value::Nil => Bytes::new(),
            value => bytes(value)?,
        };
        match bytes.len() as u64 == end - start {
            true => Ok(bytes),
            false => Err(replaced()),
        }
    }

    /// The bytes of a range, some chunks ahead of who reads them.
    pub(super) fn stream(
        &self,
        key: &Key,
        head: &Head,
        range: Range<u64>,
    ) -> BoxStream<'static, Result<Bytes>> {
        let (objects, name, key) = (self.clone(), head.body.clone(), key.clone());
        let pieces = head.runs.pieces(&range);
        futures::stream::iter(pieces)
            .map(move |piece| {
                let (objects, name, key) = (objects.clone(), name.clone(), key.clone());
                async move {
                    let piece = objects.piece(&name, piece).await;
                    piece.map_err(|error| error.during("get").on(&key))
                }
            })
            .buffered(AHEAD)
            .boxed()
    }

    /// Makes chunks, from a number on, of a range of another body, in the server.
    pub(super) async fn splice(
        &self,
        name: &str,
        first: u64,
        source: &Head,
        range: Range<u64>,
    ) -> Result<Runs> {
        let size = range.end - range.start;
        for (chunk, start) in (range.start..range.end).step_by(CHUNK as usize).enumerate() {
            let part = start..range.end.min(start + CHUNK);
            let want = part.end - part.start;
            let made = format!("{name}:{}", first + chunk as u64);
            let mut words = vec![made, EXPIRY.to_owned()];
            for Piece { number, range } in source.runs.pieces(&part) {
                let last = range.end - 1;
                words.extend([source.body.clone(), number.to_string()]);
                words.extend([range.start.to_string(), last.to_string()]);
            }
            let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            let mut rest = granted(self.run(&PIECE, &words).await?)?;
            if int(next(&mut rest)?)? as u64 != want {
                return Err(replaced());
            }
        }
        Ok(Runs::of(first, size))
    }

    /// Throws chunks away that no head names.
    pub(super) async fn discard(&self, name: &str, runs: &Runs) -> Result<()> {
        let numbers = runs
            .0
            .iter()
            .flat_map(|run| run.first..run.first + run.count);
        let numbers: Vec<String> = numbers.map(|number| number.to_string()).collect();
        for numbers in numbers.chunks(1000) {
            let mut words = vec![name.as_bytes()];
            words.extend(numbers.iter().map(|number| number.as_bytes()));
            granted(self.run(&DISCARD, &words).await?)?;
        }
        Ok(())
    }

    /// The same for what is not missed if it stays: it expires.
    pub(super) async fn give_up(&self, name: &str, runs: &Runs) {
        if let Err(error) = self.discard(name, runs).await {
            log::debug!("chunks of {name} stay until they expire: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_tell_the_pieces_of_any_range() {
        let mut runs = Runs::of(1, 3 * CHUNK);
        runs.append(&Runs::of(65536, CHUNK + 5));
        runs.append(&Runs::of(131_072, 7));
        assert_eq!(runs.size(), 4 * CHUNK + 12);
        assert_eq!(Runs::parse(&runs.to_string()).expect("parses"), runs);
        for start in (0..runs.size()).step_by(999_983) {
            for end in (start..=runs.size()).step_by(777_777).chain([runs.size()]) {
                let pieces = runs.pieces(&(start..end));
                let size: u64 = pieces
                    .iter()
                    .map(|piece| piece.range.end - piece.range.start)
                    .sum();
                assert_eq!(size, end - start);
            }
        }
        let piece = |number, range| Piece { number, range };
        assert_eq!(
            runs.pieces(&(4 * CHUNK - 1..4 * CHUNK + 6)),
            [
                piece(65536, CHUNK - 1..CHUNK),
                piece(65537, 0..5),
                piece(131_072, 0..1)
            ]
        );
        assert!(Runs::of(1, 0).is_one() && Runs::of(1, CHUNK).is_one() && !runs.is_one());
        assert!(Runs::parse("1,2").is_err());
    }
}
