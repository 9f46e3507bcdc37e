//! Bytes that the stage has let go to objects of our own, because there is no room for all.

use super::extents::{Age, Content};
use super::{Stage, Store};
use crate::driver::{Body, Piece, Stored};
use std::io;
use std::ops::Range;

/// A range of the file that an object has.
#[derive(Debug)]
pub(super) struct Away {
    /// Where in the file the object's first byte is.
    at: u64,
    object: Stored,
}

/// Who has the bytes of a range.
#[derive(Clone, Debug)]
pub enum Holder {
    /// The stage.
    Stage,
    /// The origin only: they have not been fetched.
    Origin,
    /// An object of our own: they were let go.
    Object(Stored),
}

impl Stage {
    /// Bytes that have to be sent from here by the next commit, zeros of holes included, or that
    /// are held although the origin has them.
    pub fn unsent(&self) -> u64 {
        self.extents.data() + self.extents.dirty_holes()
    }

    /// By how many bytes a write of this range, and the hole before it, makes that more.
    pub fn growth(&self, range: Range<u64>) -> u64 {
        let behind = range.end.saturating_sub(self.size);
        let known = range.start..range.end.min(self.size);
        let pieces = self.extents.pieces(known);
        let more = pieces.filter(|(_, content, age)| match content {
            Content::Data => false,
            Content::Hole => *age == Age::Clean,
            Content::Missing | Content::Away(_) => true,
        });
        behind
            + more
                .map(|(piece, _, _)| piece.end - piece.start)
                .sum::<u64>()
    }

    /// Whether bytes were let go.
    pub fn has_away(&self) -> bool {
        !self.away.is_empty()
    }

    /// Lets go what the origin has as well. Nothing of it is lost.
    pub fn forget_clean(&mut self) -> io::Result<()> {
        if self.origin.is_none() {
            return Ok(());
        }
        let pieces = self.extents.pieces(0..self.size);
        let clean: Vec<Range<u64>> = pieces
            .filter(|(_, content, age)| (*content, *age) == (Content::Data, Age::Clean))
            .map(|(range, _, _)| range)
            .collect();
        for range in clean {
            if !self.clear(range.clone())? {
                break;
            }
            self.extents.set(range, Content::Missing, Age::Clean);
        }
        Ok(())
    }

    /// The first bytes in one row that only this stage has, at least `least` and at most `most`,
    /// to be put into an object, with a mark for [`Stage::let_go`]. `None` where there are none.
    pub fn offer(&mut self, least: u64, most: u64, mark: u64) -> io::Result<Option<Body>> {
        let mut row = 0..0;
        for (range, content, age) in self.extents.pieces(0..self.size) {
            let own = age != Age::Clean && matches!(content, Content::Data | Content::Hole);
            if !own || range.start != row.end {
                if row.end - row.start >= least {
                    break;
                }
                row = range.end..range.end;
            }
            if own {
                row.start = row.start.min(range.start);
                row.end = range.end;
            }
        }
        if row.end - row.start < least {
            return Ok(None);
        }
        row.end = row.end.min(row.start.saturating_add(most));
        let body = self.body(row.clone())?;
        self.offered = Some((mark, row));
        Ok(Some(body))
    }

    /// The object has what was offered under this mark. Whether it was let go: not where it has
    /// been changed since, or somebody still reads it.
    pub fn let_go(&mut self, mark: u64, object: Stored) -> io::Result<bool> {
        let Some((_, range)) = self.offered.take_if(|(of, _)| *of == mark) else {
            return Ok(false);
        };
        if !self.clear(range.clone())? {
            return Ok(false);
        }
        let number = self.away.keys().next_back().map_or(0, |last| last + 1);
        let at = range.start;
        self.extents.turn_data(range, Content::Away(number));
        self.away.insert(number, Away { at, object });
        self.prune();
        Ok(true)
    }

    /// Who has the bytes of a range, in order.
    pub fn holders(&self, range: Range<u64>) -> Vec<(Range<u64>, Holder)> {
        let range = range.start..range.end.min(self.size);
        let mut holders: Vec<(Range<u64>, Holder)> = Vec::new();
        for (piece, content, _) in self.extents.pieces(range) {
            let holder = match content {
                Content::Data | Content::Hole => Holder::Stage,
                Content::Missing => Holder::Origin,
                Content::Away(number) => match self.away.get(&number) {
                    Some(away) => {
                        let (start, end) = (piece.start - away.at, piece.end - away.at);
                        Holder::Object(away.object.slice(start..end))
                    }
                    None => Holder::Origin,
                },
            };
            match (holders.last_mut(), &holder) {
                (Some((last, Holder::Stage)), Holder::Stage) if last.end == piece.start => {
                    last.end = piece.end;
                }
                (Some((last, Holder::Origin)), Holder::Origin) if last.end == piece.start => {
                    last.end = piece.end;
                }
                _ => holders.push((piece, holder)),
            }
        }
        holders
    }

    /// The whole content as a body that never changes, and a mark for [`Stage::rebase`]. What is
    /// missing, or was let go, is a piece that the store has.
    pub fn assembled(&mut self) -> io::Result<Body> {
        let body = self.joined(0..self.size)?;
        self.mark();
        Ok(body)
    }

    pub(super) fn joined(&mut self, range: Range<u64>) -> io::Result<Body> {
        let mut pieces = Vec::new();
        for (range, holder) in self.holders(range) {
            pieces.push(match (holder, &self.origin) {
                (Holder::Stage, _) => Piece::Here(self.here(range)),
                (Holder::Object(stored), _) => Piece::Stored(stored),
                (Holder::Origin, Some(origin)) => Piece::Stored(origin.stored(range)),
                (Holder::Origin, None) => {
                    let Range { start, end } = range;
                    let why = format!("bytes {start}..{end} are nowhere");
                    return Err(io::Error::other(why));
                }
            });
        }
        Ok(Body::joined(pieces))
    }

    /// Forgets the objects of which nothing is left here.
    pub(super) fn prune(&mut self) {
        if self.away.is_empty() {
            return;
        }
        let mut used: Vec<u32> = Vec::new();
        for (_, content, _) in self.extents.pieces(0..self.size) {
            match content {
                Content::Away(number) if used.last() != Some(&number) => used.push(number),
                _ => {}
            }
        }
        used.sort_unstable();
        self.away
            .retain(|number, _| used.binary_search(number).is_ok());
    }

    /// Gives the room of a range back. Not where a body reads from the same file: then nothing is
    /// changed.
    fn clear(&mut self, range: Range<u64>) -> io::Result<bool> {
        match &mut self.store {
            Store::Memory(memory) => {
                memory.clear(range);
                Ok(true)
            }
            Store::Spill(spill) if spill.is_shared() => Ok(false),
            Store::Spill(spill) => spill.clear(&self.area, &self.extents, range).map(|()| true),
        }
    }
}
