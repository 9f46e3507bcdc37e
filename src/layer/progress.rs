//! Knows when a body that is being sent was last read.

pub(crate) use crate::driver::progress::Progress;

use crate::driver::{Body, Source};
use bytes::{Bytes, BytesMut};
use std::ops::Range;
use std::sync::Arc;

/// Bodies up to this length are sent within one deadline, and not followed.
const SMALL: u64 = 1 << 20;

/// Gives a body of the same bytes that tells whenever a piece of it is read. `None` stands for a
/// body so small that nobody needs to know.
pub(crate) fn follow(body: Body) -> (Body, Option<Arc<Progress>>) {
    if body.len() <= SMALL {
        return (body, None);
    }
    let progress = Progress::begin();
    let source: Arc<dyn Source> = match body {
        Body::Source(source) => source,
        Body::Memory(pieces) => Arc::new(Pieces::new(pieces)),
    };
    let followed = Followed {
        source,
        progress: progress.clone(),
    };
    (Body::Source(Arc::new(followed)), Some(progress))
}

struct Followed {
    source: Arc<dyn Source>,
    progress: Arc<Progress>,
}

impl Source for Followed {
    fn len(&self) -> u64 {
        self.source.len()
    }

    fn read(&self, range: Range<u64>) -> std::io::Result<Bytes> {
        let bytes = self.source.read(range);
        self.progress.touch();
        bytes
    }

    fn at_hand(&self, range: Range<u64>) -> Option<Bytes> {
        let bytes = self.source.at_hand(range)?;
        self.progress.touch();
        Some(bytes)
    }
}

/// Pieces in memory as a source. What lies within one piece is read without a copy.
struct Pieces {
    pieces: Arc<[Bytes]>,
    /// Where each piece ends.
    ends: Vec<u64>,
}

impl Pieces {
    fn new(pieces: Arc<[Bytes]>) -> Self {
        let mut end = 0;
        let ends = pieces.iter().map(|piece| {
            end += piece.len() as u64;
            end
        });
        Pieces {
            ends: ends.collect(),
            pieces,
        }
    }
}

impl Source for Pieces {
    fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn at_hand(&self, range: Range<u64>) -> Option<Bytes> {
        let index = self.ends.partition_point(|end| *end <= range.start);
        let (piece, end) = (self.pieces.get(index)?, self.ends.get(index)?);
        let begin = end - piece.len() as u64;
        let (from, to) = (range.start - begin, range.end.min(*end) - begin);
        Some(piece.slice(from as usize..to as usize))
    }

    fn read(&self, range: Range<u64>) -> std::io::Result<Bytes> {
        let first = self.ends.partition_point(|end| *end <= range.start);
        let mut all = BytesMut::new();
        for (piece, end) in self.pieces[first..].iter().zip(&self.ends[first..]) {
            let begin = end - piece.len() as u64;
            let (from, to) = (range.start.max(begin), range.end.min(*end));
            if from >= to {
                continue;
            }
            let slice = (from - begin) as usize..(to - begin) as usize;
            if from == range.start && to == range.end {
                return Ok(piece.slice(slice));
            }
            all.reserve((range.end - range.start) as usize - all.len());
            all.extend_from_slice(&piece[slice]);
            if to == range.end {
                break;
            }
        }
        Ok(all.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[tokio::test]
    async fn a_followed_body_has_the_same_bytes() {
        let bytes: Bytes = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        for cuts in [vec![], vec![10, 10, 1_500_000], vec![1 << 20, 2 << 20]] {
            let mut pieces = Vec::new();
            let mut begin = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                pieces.push(bytes.slice(begin..cut));
                begin = cut;
            }
            let (body, progress) = follow(Body::Memory(pieces.into()));
            let before = progress.unwrap().last();
            assert_eq!(body.collect().await.unwrap(), bytes);
            assert!(before <= clock::now());
        }
    }
}
