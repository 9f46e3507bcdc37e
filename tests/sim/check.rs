//! Judges a history against what is promised.

use crate::handles::is_name;
use crate::history::{Line, Op, What, line_set, lines, show};
use crate::mount::Mount;
use crate::store::{Mutation, Store, Time};
use crate::world::Report;
use bucketfs::driver::Strength;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long an answer counts for the open behind it.
const LOOK_AHEAD: Time = 250_000;

/// What a feed may lag, and the pause after it broke.
const FEED: Time = 3_000_000;

/// How long after a commit was carried out its mount may not have learned of it.
const LEARNING: Time = 60_000_000;

/// Compares what the mounts show in the end with what the store has.
pub async fn trees(store: &Store, mounts: &[Arc<Mount>], violations: &mut Vec<String>) {
    let content = store.content();
    let mut expected = BTreeMap::new();
    for (key, bytes) in &content {
        let path = key.to_string();
        for (at, _) in path.match_indices('/') {
            expected.insert(path[..at].to_string(), None);
        }
        if !path.ends_with('/') {
            expected.insert(path, Some(bytes.to_vec()));
        }
    }
    for mount in mounts {
        let number = mount.number;
        match mount.tree().await {
            Ok(seen) => {
                for (path, content) in &expected {
                    if seen.get(path) != Some(content) {
                        let shown = seen.get(path).map(|seen| seen.as_deref().map(show));
                        violations.push(format!(
                            "in the end mount {number} shows {path:?} as {shown:?}, the store has {:?}",
                            content.as_deref().map(show)
                        ));
                    }
                }
                for path in seen.keys().filter(|path| !expected.contains_key(*path)) {
                    violations.push(format!(
                        "in the end mount {number} shows {path:?}, which the store has not"
                    ));
                }
            }
            Err(errno) => violations.push(format!("in the end mount {number} tells errno {errno}")),
        }
    }
}

/// A content of a key, and from when until when.
struct Span {
    from: Time,
    until: Time,
    bytes: Option<Bytes>,
}

pub struct Checker<'a> {
    pub report: &'a Report,
    /// What each key has been, in order.
    spans: BTreeMap<String, Vec<Span>>,
    /// When each line first was in the store.
    applied: BTreeMap<Line, Time>,
    /// When each line first was in a file that is no conflict file.
    pub named: BTreeMap<Line, Time>,
    authors: BTreeMap<Line, usize>,
    pub violations: Vec<String>,
}

/// What is wrong with a history.
pub fn history(report: &Report) -> Vec<String> {
    let mut checker = Checker::new(report);
    checker.nothing_is_there_twice();
    checker.what_is_acknowledged_is_there();
    checker.what_is_acknowledged_has_its_name();
    checker.no_version_is_torn();
    checker.what_failed_is_kept();
    checker.nothing_is_destroyed_unseen();
    checker.what_is_read_was_there();
    checker.locks_have_one_owner();
    checker.violations
}

impl<'a> Checker<'a> {
    fn new(report: &'a Report) -> Checker<'a> {
        let mut spans: BTreeMap<String, Vec<Span>> = BTreeMap::new();
        let (mut applied, mut named) = (BTreeMap::new(), BTreeMap::new());
        for mutation in &report.log {
            let chain = spans.entry(mutation.key.to_string()).or_default();
            if chain.is_empty() {
                chain.push(Span {
                    from: 0,
                    until: Time::MAX,
                    bytes: None,
                });
            }
            if let Some(last) = chain.last_mut() {
                last.until = mutation.at;
            }
            chain.push(Span {
                from: mutation.at,
                until: Time::MAX,
                bytes: mutation.after.clone(),
            });
            for line in mutation.after.iter().flat_map(|after| lines(after)) {
                applied.entry(line).or_insert(mutation.at);
                if is_name(&mutation.key.to_string()) {
                    named.entry(line).or_insert(mutation.at);
                }
            }
        }
        let mut authors = BTreeMap::new();
        for (number, op) in report.ops.iter().enumerate() {
            for line in &op.wrote {
                authors.insert(*line, number);
            }
        }
        Checker {
            report,
            spans,
            applied,
            named,
            authors,
            violations: Vec::new(),
        }
    }

    fn wrong(&mut self, what: String) {
        self.violations.push(what);
    }

    fn alone(&self) -> bool {
        self.report.character.processes == 1
    }

    /// What a name was between two times.
    fn contents(&self, name: &str, from: Time, until: Time) -> Vec<Option<&Bytes>> {
        match self.spans.get(name) {
            None => vec![None],
            Some(chain) => chain
                .iter()
                .filter(|span| span.from <= until && span.until >= from)
                .map(|span| span.bytes.as_ref())
                .collect(),
        }
    }

    /// Whether something else of the same mount may have taken away what an operation wrote, from
    /// its beginning until a time.
    pub fn taken_away_here(&self, number: usize, until: Time) -> bool {
        let op = &self.report.ops[number];
        self.report.ops.iter().enumerate().any(|(other, by)| {
            other != number
                && by.mount == op.mount
                && by.what.overwrites()
                && by.begin <= until
                && by.end.is_none_or(|end| end >= op.begin)
        })
    }

    fn nothing_is_there_twice(&mut self) {
        for mutation in &self.report.log {
            let Some(after) = &mutation.after else {
                continue;
            };
            let all = lines(after);
            if all.len() != line_set(after).len() {
                let what = format!(
                    "a line is twice in {:?} at {}: {}",
                    mutation.key,
                    mutation.at,
                    show(after)
                );
                self.wrong(what);
            }
        }
    }

    /// Every acknowledged line was in the store when it was acknowledged.
    fn what_is_acknowledged_is_there(&mut self) {
        for (number, op) in self.report.ops.iter().enumerate() {
            // What follows lost bytes may be kept outside of the store.
            let owed = op.lost.unwrap_or(op.acknowledged.len());
            for (count, at) in &op.acknowledged[..owed] {
                for line in &op.wrote[..*count] {
                    let there = self.applied.get(line).is_some_and(|applied| applied <= at);
                    if there || (!self.alone() && self.taken_away_here(number, *at)) {
                        continue;
                    }
                    self.violations.push(format!(
                        "line {line} was acknowledged at {at} and was not in the store: {op}"
                    ));
                }
            }
        }
    }

    /// Every line that was written is in a file or a conflict file, or in a state directory,
    /// unless its mount died or has taken it away itself.
    fn what_failed_is_kept(&mut self) {
        let mut kept = BTreeSet::new();
        for file in &self.report.kept {
            kept.extend(lines(file));
        }
        for (number, op) in self.report.ops.iter().enumerate() {
            let gave_up = op.what == What::Lock && op.closing.is_some();
            if gave_up || self.report.died.contains_key(&op.mount) {
                continue;
            }
            for line in &op.wrote {
                if self.applied.contains_key(line)
                    || kept.contains(line)
                    || self.taken_away_here(number, Time::MAX)
                {
                    continue;
                }
                self.violations
                    .push(format!("line {line} is nowhere: {op}"));
            }
        }
    }

    /// Whoever takes lines away had seen the version that they were in, or kept it, or was asked
    /// to remove whatever is there.
    fn nothing_is_destroyed_unseen(&mut self) {
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

    /// The operations of a mount that were under way.
    fn under_way(&self, mount: usize, at: Time) -> impl Iterator<Item = &Op> {
        self.report.ops.iter().filter(move |op| {
            op.mount == mount && op.begin <= at && op.end.is_none_or(|end| end >= at)
        })
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
                What::Unlink if op.name == key => return Ok(()),
                What::Lock if op.name == key && op.closing.is_some() => return Ok(()),
                What::Rename | What::NoReplace if op.name == key => {
                    moving = true;
                    let moved = self.report.log[..index].iter().any(|other| {
                        other.by == mutation.by
                            && other.at >= op.begin
                            && *other.key.as_bytes() == *op.other.as_bytes()
                            && other.after.as_ref() == Some(before)
                    });
                    if moved {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
        if !moving {
            return Err("nobody there removed it");
        }
        // Where a delete takes no condition, the mount looks first; what comes between is lost.
        let unguarded = self.report.character.capabilities.delete_condition == Strength::None;
        let looked = self.last_told(mutation, before);
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
        let adding = self.alone() && writers.iter().all(|op| !op.what.destroys());
        if adding && !self.has_unsent(mutation.by, mutation.at, mutation.at) {
            return Err("they were only adding to it");
        }
        let knew = writers
            .iter()
            .filter_map(|op| match op.what {
                What::Truncate => Some(op.end.unwrap_or(mutation.at)),
                _ => op.opened,
            })
            .max();
        // Its own version, between two commits through one handle, it knows anyway.
        let made = |other: &Mutation| other.key == mutation.key && other.at <= mutation.at;
        let own = self.report.log.iter().any(|other| {
            made(other) && other.by == mutation.by && other.after.as_ref() == Some(before)
        });
        match knew {
            _ if own => Ok(()),
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

    /// Whether a mount may have bytes that are not in the store, or not know what is there: after
    /// a commit that failed without losing a race.
    fn has_unsent(&self, mount: usize, from: Time, until: Time) -> bool {
        self.report.ops.iter().any(|op| {
            op.mount == mount
                && op.begin <= until
                && matches!(
                    op.outcome,
                    Some(Err(libc::EIO | libc::ETIMEDOUT | libc::ENOSPC))
                )
                && (!op.wrote.is_empty()
                    || op.opened.is_some()
                    || matches!(
                        op.what,
                        What::Truncate | What::Rename | What::NoReplace | What::Save
                    ))
                && !(op.end.is_some_and(|end| end + LEARNING < from)
                    && op.wrote.iter().all(|line| {
                        self.applied
                            .get(line)
                            .is_some_and(|applied| applied + LEARNING < from)
                    }))
        })
    }

    /// What an open saw stood there when it began, or until it had its handle.
    fn what_is_read_was_there(&mut self) {
        let mut all = BTreeSet::new();
        for mutation in &self.report.log {
            all.extend(mutation.after.iter().map(|after| after.as_ref()));
        }
        let mut wrong = Vec::new();
        for op in &self.report.ops {
            if !self.alone() {
                continue;
            }
            let Some(end) = op.end else { continue };
            let unsent = self.has_unsent(op.mount, op.begin, end);
            let ttl = self.report.character.ttl.as_micros() as Time;
            let feed = if self.report.character.capabilities.watch {
                FEED
            } else {
                0
            };
            let slack = match (
                op.name.contains("lock") || op.name.contains(".#"),
                op.locked,
            ) {
                (true, _) | (_, true) => 0,
                _ => ttl.max(LOOK_AHEAD) + feed,
            };
            // What an own change made of a name is believed from its answer on.
            let early = op.begin.saturating_sub(slack);
            let own = self.report.ops.iter().filter(|own| {
                own.mount == op.mount
                    && (own.name == op.name || own.other == op.name)
                    && own.what.changes()
                    && own.begin <= op.begin
                    && own.end.is_some_and(|end| end >= early)
            });
            let early = own.map(|own| own.begin).min().unwrap_or(early).min(early);
            let from = |slack: Time| op.begin.saturating_sub(slack);
            if let (Some(read), Some(opened)) = (&op.read, op.opened) {
                let look_ahead = if op.locked { 0 } else { LOOK_AHEAD };
                let stood = self.contents(&op.name, from(look_ahead), opened);
                if stood.contains(&Some(&Bytes::copy_from_slice(read))) || unsent {
                    continue;
                }
                // What an O_CREAT made is empty before its first commit.
                if read.is_empty() && op.what == What::Rewrite && stood.contains(&None) {
                    continue;
                }
                let what = match all.contains(&read[..]) {
                    true => "it read what was not there",
                    false => "it read what never was there",
                };
                wrong.push(format!("{what}: {op}"));
            }
            if unsent {
                continue;
            }
            match (op.what, op.outcome) {
                (What::Stat, Some(Ok(()))) => {
                    let stood = self.contents(&op.name, early, end);
                    let sizes: Vec<Option<u64>> = stood
                        .iter()
                        .map(|content| content.map(|bytes| bytes.len() as u64))
                        .collect();
                    if !sizes.contains(&op.size) {
                        wrong.push(format!("nothing of that size was there: {op}"));
                    }
                }
                (
                    What::Stat | What::Read | What::Rewrite | What::Patch,
                    Some(Err(libc::ENOENT)),
                ) => {
                    // Without its directory a name is absent for the directory's TTL.
                    let above = match op.name.contains('/') {
                        true => early.min(from(ttl + feed)),
                        false => early,
                    };
                    if !self.contents(&op.name, above, end).contains(&None) {
                        wrong.push(format!("it was there all the time: {op}"));
                    }
                }
                _ => {}
            }
        }
        self.violations.extend(wrong);
    }

    /// Between the winner's answer and the beginning of its removal nobody else wins.
    fn locks_have_one_owner(&mut self) {
        let won: Vec<&Op> = self
            .report
            .ops
            .iter()
            .filter(|op| op.what == What::Lock && op.opened.is_some())
            .collect();
        let mut wrong = Vec::new();
        for (number, first) in won.iter().enumerate() {
            let dead = self.report.died.get(&first.mount).copied();
            let Some(until) = first.closing.or(dead) else {
                continue;
            };
            for second in &won[number + 1..] {
                let overlaps = second.name == first.name
                    && second.opened < Some(until)
                    && first.opened < second.closing.or(Some(Time::MAX));
                if overlaps {
                    wrong.push(format!("two have the lock:\n  {first}\n  {second}"));
                }
            }
        }
        self.violations.extend(wrong);
    }
}
