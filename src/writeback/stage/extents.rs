//! What each byte of a stage is, as a compact map of ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// Where the bytes of a range come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// They are the origin's and have not been fetched.
    Missing,
    /// They are zeros that take no room.
    Hole,
    /// They are held by the stage.
    Data,
    /// They are in an object of our own, which the stage knows by this number.
    Away(u32),
}

/// How a range relates to the stored version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    /// The stored version has the same bytes.
    Clean,
    /// Changed before the last snapshot.
    Frozen,
    /// Changed since the last snapshot.
    Dirty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    end: u64,
    content: Content,
    age: Age,
}

/// Ranges that do not overlap, adjacent equal ones merged. A stage keeps the whole of `0..size`
/// covered.
#[derive(Debug, Default)]
pub(super) struct Extents {
    map: BTreeMap<u64, Extent>,
    data: u64,
    dirty: u64,
    holes: u64,
}

/// One range of the map.
pub(super) type Piece = (Range<u64>, Content, Age);

impl Extents {
    /// Bytes of data.
    pub fn data(&self) -> u64 {
        self.data
    }

    /// Bytes of data that the stored version does not have.
    pub fn dirty_data(&self) -> u64 {
        self.dirty
    }

    /// Bytes of holes that the stored version does not have.
    pub fn dirty_holes(&self) -> u64 {
        self.holes
    }

    /// Whether a range differs from the stored version.
    pub fn is_dirty(&self) -> bool {
        self.dirty > 0 || self.map.values().any(|extent| extent.age != Age::Clean)
    }

    /// The ranges that overlap `range`, cut to it.
    pub fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = Piece> + '_ {
        let from = self
            .map
            .range(..=range.start)
            .next_back()
            .map_or(range.start, |(start, _)| *start);
        let upper = range.end.max(from);
        self.map.range(from..upper).filter_map(move |(start, e)| {
            let cut = (*start).max(range.start)..e.end.min(range.end);
            (cut.start < cut.end).then_some((cut, e.content, e.age))
        })
    }

    /// The ranges of one content within `range`, merged whatever their age.
    pub fn of(&self, content: Content, range: Range<u64>) -> Vec<Range<u64>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        for (piece, _, _) in self.pieces(range).filter(|(_, c, _)| *c == content) {
            match found.last_mut() {
                Some(last) if last.end == piece.start => last.end = piece.end,
                _ => found.push(piece),
            }
        }
        found
    }

    /// How many bytes of `range` are data.
    pub fn data_in(&self, range: Range<u64>) -> u64 {
        self.pieces(range)
            .filter(|(_, content, _)| *content == Content::Data)
            .map(|(piece, _, _)| piece.end - piece.start)
            .sum()
    }

    /// Makes `range` something else.
    pub fn set(&mut self, range: Range<u64>, content: Content, age: Age) {
        if range.is_empty() {
            return;
        }
        self.remove(range.clone());
        let mut new = range.start;
        let mut extent = Extent {
            end: range.end,
            content,
            age,
        };
        if let Some((start, before)) = self.map.range(..range.start).next_back()
            && before.end == range.start
            && (before.content, before.age) == (content, age)
        {
            new = *start;
        }
        if let Some(after) = self.map.get(&range.end)
            && (after.content, after.age) == (content, age)
        {
            extent.end = after.end;
            self.map.remove(&range.end);
        }
        self.map.insert(new, extent);
        self.count(content, age, range.end - range.start, true);
    }

    /// Forgets everything behind `size`.
    pub fn truncate(&mut self, size: u64) {
        self.remove(size..u64::MAX);
    }

    /// Gives every range of age `from` the age `to`.
    pub fn turn(&mut self, from: Age, to: Age) {
        let old = std::mem::take(self);
        for (start, extent) in old.map {
            let age = if extent.age == from { to } else { extent.age };
            self.append(start..extent.end, extent.content, age);
        }
    }

    /// Calls what changed before the last snapshot the stored version's: of that, nothing is away.
    pub fn settle(&mut self) {
        let old = std::mem::take(self);
        for (start, extent) in old.map {
            let (content, age) = match (extent.content, extent.age) {
                (Content::Away(_), Age::Frozen) => (Content::Missing, Age::Clean),
                (content, Age::Frozen) => (content, Age::Clean),
                other => other,
            };
            self.append(start..extent.end, content, age);
        }
    }

    /// Gives what is held of a range another content.
    pub fn turn_data(&mut self, range: Range<u64>, content: Content) {
        let pieces: Vec<Piece> = self.pieces(range).collect();
        for (piece, _, age) in pieces {
            self.set(piece, content, age);
        }
    }

    /// Adds a range behind all others.
    fn append(&mut self, range: Range<u64>, content: Content, age: Age) {
        self.count(content, age, range.end - range.start, true);
        if let Some(mut last) = self.map.last_entry()
            && last.get().end == range.start
            && (last.get().content, last.get().age) == (content, age)
        {
            last.get_mut().end = range.end;
            return;
        }
        self.map.insert(
            range.start,
            Extent {
                end: range.end,
                content,
                age,
            },
        );
    }

    fn remove(&mut self, range: Range<u64>) {
        if let Some((_, extent)) = self.map.range_mut(..range.start).next_back()
            && extent.end > range.start
        {
            let old = *extent;
            extent.end = range.start;
            self.count(old.content, old.age, old.end - range.start, false);
            if old.end > range.end {
                self.count(old.content, old.age, old.end - range.end, true);
                self.map.insert(range.end, old);
                return;
            }
        }
        while let Some((start, extent)) = self.map.range(range.clone()).next() {
            let (start, old) = (*start, *extent);
            self.map.remove(&start);
            self.count(old.content, old.age, old.end - start, false);
            if old.end > range.end {
                self.count(old.content, old.age, old.end - range.end, true);
                self.map.insert(range.end, old);
            }
        }
    }

    fn count(&mut self, content: Content, age: Age, bytes: u64, more: bool) {
        let apply = |sum: &mut u64| {
            *sum = if more { *sum + bytes } else { *sum - bytes };
        };
        match (content, age) {
            (Content::Data, Age::Clean) => apply(&mut self.data),
            (Content::Data, _) => {
                apply(&mut self.data);
                apply(&mut self.dirty);
            }
            (Content::Hole, Age::Frozen | Age::Dirty) => apply(&mut self.holes),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(extents: &Extents) -> Vec<Piece> {
        extents.pieces(0..u64::MAX).collect()
    }

    #[test]
    fn neighbours_merge_and_cuts_keep_both_ends() {
        let mut extents = Extents::default();
        extents.set(0..100, Content::Missing, Age::Clean);
        extents.set(20..30, Content::Data, Age::Dirty);
        extents.set(30..40, Content::Data, Age::Dirty);
        extents.set(25..27, Content::Hole, Age::Dirty);
        assert_eq!(
            list(&extents),
            [
                (0..20, Content::Missing, Age::Clean),
                (20..25, Content::Data, Age::Dirty),
                (25..27, Content::Hole, Age::Dirty),
                (27..40, Content::Data, Age::Dirty),
                (40..100, Content::Missing, Age::Clean),
            ]
        );
        assert_eq!((extents.data(), extents.dirty_data()), (18, 18));
        extents.set(25..27, Content::Data, Age::Dirty);
        assert_eq!(extents.of(Content::Data, 22..99), vec![22..40; 1]);
        extents.truncate(35);
        assert_eq!(extents.data_in(0..100), 15);
        extents.turn(Age::Dirty, Age::Clean);
        assert!(!extents.is_dirty());
        assert_eq!(
            list(&extents),
            [
                (0..20, Content::Missing, Age::Clean),
                (20..35, Content::Data, Age::Clean),
            ]
        );
    }
}
