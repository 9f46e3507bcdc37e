//! Who may take lines out of the store.

use crate::check::{Checker, LEARNING};
use crate::history::{Line, Op, What, line_set, lines};
use crate::net::PATIENCE;
use crate::store::{Mutation, Time};
use bucketfs::driver::Strength;
use bytes::Bytes;

/// How late a request may be carried out that its client has given up.
const LATE: Time = 15_000_000;

impl Checker<'_> {
    /// Whoever takes lines away had seen the version that they were in, or kept it, or was asked
    /// to remove whatever is there.
    pub fn nothing_is_destroyed_unseen(&mut self) {
        for (index, mutation) in self.report.log.iter().enumerate() {
            let Some(before) = &mutation.before else {
                continue;
            };
            let after = mutation.after.as_deref().unwrap_or_default();
            let left = line_set(after);
            let destroyed: Vec<Line> = lines(before)
                .into_iter()
                .filter(|line| !left.contains(line))
                .collect();
            if destroyed.is_empty() {
                continue;
            }
            let justified = match &mutation.after {
                None => self.removal_is_right(index, mutation, before),
                Some(after) => self.replacement_is_right(mutation, before, after),
            };
            if let Err(why) = justified {
                self.violations.push(format!(
                    "the lines {destroyed:?} of {:?} were destroyed at {} by a {} of mount {}: {why}",
                    mutation.key, mutation.at, mutation.how, mutation.by
                ));
            }
        }
    }

    /// The operations of a mount that were under way, or had been given up and are carried out yet.
    fn under_way(&self, mount: usize, at: Time) -> impl Iterator<Item = &Op> {
        self.report.ops.iter().filter(move |op| {
            let given_up = matches!(op.outcome, Some(Err(libc::EIO | libc::ETIMEDOUT)));
            let late = if given_up { LATE } else { 0 };
            op.mount == mount && op.begin <= at && op.end.is_none_or(|end| end + late >= at)
        })
    }

    /// Whether an operation's name may be this key: the directory that it is in may be moved by
    /// its own mount meanwhile.
    fn is_called(&self, op: &Op, name: &str, key: &str, at: Time) -> bool {
        let last = |path: &str| path.rsplit('/').next().map(str::to_string);
        let moved = || {
            self.report.ops.iter().any(|other| {
                other.what == What::Move
                    && other.mount == op.mount
                    && other.begin <= at
                    && other.end.is_none_or(|end| end >= op.begin)
            })
        };
        name == key || (last(name) == last(key) && moved())
    }

    fn removal_is_right(
        &self,
        index: usize,
        mutation: &Mutation,
        before: &Bytes,
    ) -> Result<(), &'static str> {
        let key = mutation.key.to_string();
        let mut moving = false;
        for op in self.under_way(mutation.by, mutation.at) {
            match op.what {
                What::Unlink if self.is_called(op, &op.name, &key, mutation.at) => return Ok(()),
                What::Lock if op.name == key && op.closing.is_some() => return Ok(()),
                What::Rename | What::NoReplace | What::Move
                    if self.is_called(op, &op.name, &key, mutation.at)
                        || key.starts_with(&format!("{}/", op.name)) =>
                {
                    moving = true;
                    let below = key.strip_prefix(&op.name).unwrap_or_default();
                    let target = format!("{}{below}", op.other);
                    let moved = self.report.log[..index].iter().any(|other| {
                        other.by == mutation.by
                            && other.at >= op.begin
                            && self.is_called(op, &target, &other.key.to_string(), mutation.at)
                            && other.after.as_ref() == Some(before)
                    });
                    // Or somebody else's rename, which failed half-way, had copied it there.
                    let mut there = self.report.log[..index].iter().rev();
                    let there = there.find(|other| other.key.to_string() == target);
                    let copied = there.is_some_and(|there| there.after.as_ref() == Some(before));
                    if moved || copied {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
        if !moving {
            return Err("nobody there removed it");
        }
        // Where a delete takes no condition, the mount looks first; what comes between is lost. The
        // delete may have been on its way while another process of the mount was told.
        let unguarded = self.report.character.capabilities.delete_condition == Strength::None;
        let looked = self.last_told(mutation, before);
        let looked = looked.filter(|told| told + PATIENCE.as_micros() as Time <= mutation.at);
        let written = self.span_at(&key, mutation.at);
        if unguarded && looked.is_none() && written.is_some() {
            return Ok(());
        }
        Err("it was not moved to the new name")
    }

    /// When the version that stood until a time began to stand.
    fn span_at(&self, key: &str, at: Time) -> Option<Time> {
        let chain = self.spans.get(key)?;
        let span = chain.iter().rev().find(|span| span.until == at)?;
        Some(span.from)
    }

    /// When a mount was last told, before a change, that a key has these bytes.
    fn last_told(&self, mutation: &Mutation, bytes: &Bytes) -> Option<Time> {
        let told = self.report.told.iter().rev().find(|told| {
            told.to == mutation.by
                && told.at < mutation.at
                && told.key == mutation.key
                && told.bytes.as_ref() == Some(bytes)
        });
        told.map(|told| told.at)
    }

    fn replacement_is_right(
        &self,
        mutation: &Mutation,
        before: &Bytes,
        after: &Bytes,
    ) -> Result<(), &'static str> {
        let key = mutation.key.to_string();
        // Somebody who knew it may have put the same bytes there a moment before.
        let first = self.report.told.iter().find(|told| {
            told.to == mutation.by
                && told.at < mutation.at
                && told.key == mutation.key
                && told.bytes.as_ref() == Some(before)
        });
        let Some(first) = first else {
            return Err("it had never been told of that version");
        };
        let had = line_set(before);
        let mut writers: Vec<&Op> = lines(after)
            .iter()
            .filter(|line| !had.contains(line))
            .filter_map(|line| self.authors.get(line))
            .map(|number| &self.report.ops[*number])
            .filter(|op| op.mount == mutation.by)
            .collect();
        let renames: Vec<&Op> = self
            .under_way(mutation.by, mutation.at)
            .filter(|op| op.other == key)
            .collect();
        if renames.iter().any(|op| op.what == What::Rename) {
            return Ok(());
        }
        if writers.is_empty() {
            writers = self
                .report
                .ops
                .iter()
                .filter(|op| op.mount == mutation.by && op.begin <= mutation.at)
                .filter(|op| op.what.destroys() && !self.applied_before(op, mutation.at))
                .collect();
            writers.retain(|op| op.what != What::NoReplace);
            if writers.is_empty() {
                return Err("nobody there was writing, or may replace it");
            }
        }
        // What a copy puts there are others' lines.
        let here = |op: &&Op| op.name == key && op.what == What::Copy;
        writers.extend(self.under_way(mutation.by, mutation.at).filter(here));
        let adding = self.alone() && writers.iter().all(|op| !op.what.destroys());
        if adding && !self.has_unsent(mutation.by, mutation.at, mutation.at) {
            return Err("they were only adding to it");
        }
        // A rename that brought what is being written here looked at what it went over.
        let brought = self.report.ops.iter().filter(|op| {
            op.mount == mutation.by
                && op.begin <= mutation.at
                && (op.other == key || op.what == What::Move)
                && writers.iter().any(|writer| {
                    (writer.name == op.name || op.what == What::Move)
                        && writer.end.is_none_or(|end| end >= op.begin)
                })
        });
        let brought = brought.map(|op| op.end.unwrap_or(mutation.at));
        let knew = writers
            .iter()
            .filter_map(|op| match op.what {
                What::Truncate => Some(op.end.unwrap_or(mutation.at)),
                _ => op.opened,
            })
            .chain(brought)
            .max();
        // What its own processes wrote they may write over, as on a disk.
        let left = line_set(after);
        let ours = lines(before)
            .iter()
            .filter(|line| !left.contains(line))
            .all(|line| {
                let author = self.authors.get(line);
                author.is_some_and(|author| self.report.ops[*author].mount == mutation.by)
            });
        // Its own version, between two commits through one handle, it knows anyway.
        let made = |other: &Mutation| other.key == mutation.key && other.at <= mutation.at;
        let own = self.report.log.iter().any(|other| {
            made(other) && other.by == mutation.by && other.after.as_ref() == Some(before)
        });
        match knew {
            _ if own || ours => Ok(()),
            Some(knew) if first.at <= knew => Ok(()),
            _ => Err("it came after they had opened the file"),
        }
    }

    /// Whether all that an operation wrote was in the store long before.
    fn applied_before(&self, op: &Op, at: Time) -> bool {
        !op.wrote.is_empty()
            && op.end.is_some_and(|end| end < at)
            && op.wrote.iter().all(|line| {
                self.applied
                    .get(line)
                    .is_some_and(|applied| applied + LEARNING < at)
            })
    }
}
