//! Judges a history against what is promised.

use crate::handles::is_name;
use crate::history::{Line, Op, What, lines, show};
use crate::mount::Mount;
use crate::store::{Store, Time};
use crate::world::Report;
use bucketfs::driver::Strength;
use bucketfs::fs::Consistency;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long an answer counts for the open behind it.
const LOOK_AHEAD: Time = 250_000;

/// What a feed may lag, and the pause after it broke.
const FEED: Time = 3_000_000;

/// How long after a commit was carried out its mount may not have learned of it.
pub const LEARNING: Time = 60_000_000;

/// Compares what the mounts show in the end with what the store has, but for the paths that each
/// has no room to send.
pub async fn trees(
    store: &Store,
    mounts: &[(Arc<Mount>, BTreeSet<String>)],
    violations: &mut Vec<String>,
) {
    let content = store.content();
    let mut expected = BTreeMap::new();
    for (key, bytes) in &content {
        let path = key.to_string();
        // Records of renames, which no mount shows.
        if path.starts_with(".bucketfs/") {
            continue;
        }
        for (at, _) in path.match_indices('/') {
            expected.insert(path[..at].to_string(), None);
        }
        if !path.ends_with('/') {
            expected.insert(path, Some(bytes.to_vec()));
        }
    }
    for (mount, unsent) in mounts {
        let number = mount.number;
        match mount.tree(unsent).await {
            Ok(seen) => {
                for (path, content) in &expected {
                    if unsent.contains(path) {
                        continue;
                    }
                    if seen.get(path) != Some(content) {
                        let shown = seen.get(path).map(|seen| seen.as_deref().map(show));
                        violations.push(format!(
                            "in the end mount {number} shows {path:?} as {shown:?}, the store has {:?}",
                            content.as_deref().map(show)
                        ));
                    }
                }
                // The directory of what is still to be sent is there.
                let waits = |path: &str| {
                    let below = |unsent: &String| {
                        let rest = unsent.strip_prefix(path);
                        rest.is_some_and(|rest| rest.starts_with('/'))
                    };
                    unsent.iter().any(below)
                };
                let known = |path: &str| expected.contains_key(path) || waits(path);
                for path in seen.keys().filter(|path| !known(path)) {
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
pub struct Span {
    pub from: Time,
    pub until: Time,
    bytes: Option<Bytes>,
}

pub struct Checker<'a> {
    pub report: &'a Report,
    /// What each key has been, in order.
    pub spans: BTreeMap<String, Vec<Span>>,
    /// When each line first was in the store.
    pub applied: BTreeMap<Line, Time>,
    /// When each line first was in a file that is no conflict file.
    pub named: BTreeMap<Line, Time>,
    pub authors: BTreeMap<Line, usize>,
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

    pub fn alone(&self) -> bool {
        self.report.character.processes == 1
    }

    /// What a name was between two times.
    pub fn contents(&self, name: &str, from: Time, until: Time) -> Vec<Option<&Bytes>> {
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

    /// Whether a mount may have bytes of a file that lost a race and could be kept nowhere: these
    /// stay where they are, in memory.
    fn has_homeless(&self, op: &Op) -> bool {
        self.report.character.stateless
            && self.report.ops.iter().any(|lost| {
                lost.mount == op.mount
                    && lost.name == op.name
                    && lost.what.changes()
                    && lost.begin < op.begin
                    && matches!(lost.outcome, Some(Err(libc::ESTALE | libc::EEXIST)))
            })
    }

    fn nothing_is_there_twice(&mut self) {
        for mutation in &self.report.log {
            let Some(after) = &mutation.after else {
                continue;
            };
            let mut all = lines(after);
            // Another process may write back what it read before an append was merged.
            let back = self.report.ops.iter().filter(|op| {
                !self.alone()
                    && op.mount == mutation.by
                    && op.begin <= mutation.at
                    && op.what == What::Rewrite
            });
            let back: BTreeSet<Line> = back
                .flat_map(|op| lines(op.read.as_deref().unwrap_or_default()))
                .collect();
            all.retain(|line| !back.contains(line));
            // Or what it copied elsewhere before it was sent, and another mount has renamed back.
            let copied = self.report.ops.iter().filter(|op| {
                op.mount == mutation.by && op.what == What::Copy && op.begin <= mutation.at
            });
            let copies: BTreeSet<&str> = copied.map(|op| op.name.as_str()).collect();
            let copied = self.report.log.iter().filter(|copy| {
                let key = copy.key.to_str().unwrap_or_default();
                copy.at <= mutation.at && copy.key != mutation.key && copies.contains(key)
            });
            let copied: BTreeSet<Line> = copied
                .flat_map(|copy| lines(copy.after.as_deref().unwrap_or_default()))
                .collect();
            let from_another = |line: &Line| {
                let mut here = self.report.log.iter().filter(|one| one.key == mutation.key);
                let first = here.find(|one| {
                    let after = one.after.as_deref().unwrap_or_default();
                    lines(after).contains(line)
                });
                first.is_some_and(|first| first.by != mutation.by)
            };
            all.retain(|line| !(copied.contains(line) && from_another(line)));
            if all.len() != all.iter().collect::<BTreeSet<_>>().len() {
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

    /// Whether a mount may have bytes that are not in the store, or not know what is there: after
    /// a commit that failed without losing a race.
    pub fn has_unsent(&self, mount: usize, from: Time, until: Time) -> bool {
        self.report.ops.iter().any(|op| {
            op.mount == mount
                && op.begin <= until
                && (op.unsent
                    || matches!(
                        op.outcome,
                        Some(Err(libc::EIO | libc::ETIMEDOUT | libc::ENOSPC))
                    ))
                && (!op.wrote.is_empty()
                    || op.opened.is_some()
                    || matches!(
                        op.what,
                        What::Truncate
                            | What::Rename
                            | What::NoReplace
                            | What::Move
                            | What::Save
                            | What::Attributes
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
                let known = match self.report.character.consistency {
                    _ if op.locked => op.begin,
                    Consistency::CloseToOpen => from(LOOK_AHEAD),
                    Consistency::Ttl => early,
                };
                let stood = self.contents(&op.name, known, opened);
                let there = stood.contains(&Some(&Bytes::copy_from_slice(read)));
                if there || unsent || self.has_homeless(op) {
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
            if self.report.ops.iter().any(|op| op.what == What::Move) && op.name.contains('/') {
                // What its directory's name is, is cached too.
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
                // A delete that was sent again removed it, where no condition can tell the owners
                // apart.
                let character = &self.report.character;
                let apart = character.capabilities.delete_condition == Strength::Atomic
                    && !character.digests;
                let robbed = self.report.log.iter().any(|mutation| {
                    *mutation.key.as_bytes() == *first.name.as_bytes()
                        && mutation.after.is_none()
                        && mutation.by != first.mount
                        && Some(mutation.at) <= second.opened
                        && first
                            .opened
                            .is_some_and(|opened| mutation.at + FEED >= opened)
                });
                if overlaps && (apart || !robbed) {
                    wrong.push(format!("two have the lock:\n  {first}\n  {second}"));
                }
            }
        }
        self.violations.extend(wrong);
    }
}
