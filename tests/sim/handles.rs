//! What handles of one file owe each other: what one has half written no other commits, and each
//! that wrote a part of what lost a race is told.

use crate::check::Checker;
use crate::history::{Op, What, line_set};

/// What conflict files have in their names.
const BESIDE: &str = ".conflict-";

impl Checker<'_> {
    /// Whether what one operation does to a name of its mount may move the other's bytes.
    fn related(&self, op: &Op, other: &Op) -> bool {
        let renamed = |by: &Op| {
            matches!(by.what, What::Rename | What::NoReplace | What::Move)
                && by.mount == op.mount
                && op.end.is_none_or(|end| by.begin <= end)
                && by.end.is_none_or(|end| end >= other.begin.min(op.begin))
        };
        other.mount == op.mount
            && other.what.changes()
            && (other.name == op.name
                || other.other == op.name
                || self.report.ops.iter().any(renamed))
    }

    /// Until its close nothing of a file is in the store but what its only writer flushed.
    pub fn no_version_is_torn(&mut self) {
        for (number, op) in self.report.ops.iter().enumerate() {
            let (Some(opened), Some(end), Some(Ok(()))) = (op.opened, op.end, op.outcome) else {
                continue;
            };
            let disturbed = self.report.ops.iter().enumerate().any(|(at, other)| {
                let meanwhile = other.end.is_none_or(|end| end >= op.begin);
                let failed = !matches!(other.outcome, Some(Ok(())));
                at != number
                    && other.begin <= end
                    && (meanwhile || failed)
                    && self.related(op, other)
            });
            if op.wrote.len() < 2 || disturbed {
                continue;
            }
            let during = |at| (opened..=end).contains(&at);
            let own = self.report.log.iter().filter(|change| {
                let named = change.key.as_bytes().starts_with(op.name.as_bytes());
                change.by == op.mount && during(change.at) && named
            });
            for mutation in own {
                let there = line_set(mutation.after.as_deref().unwrap_or_default());
                let last = op.wrote.iter().rposition(|line| there.contains(line));
                let there = last.map_or(0, |last| last + 1);
                if there > 0 && !op.flushed.contains(&there) {
                    self.violations.push(format!(
                        "{:?} was put half written at {}, up to its line {there}: {op}",
                        mutation.key, mutation.at
                    ));
                }
            }
        }
    }

    /// What was acknowledged had its name, and was not only in a conflict file, unless the handle
    /// had been told that it lost.
    pub fn what_is_acknowledged_has_its_name(&mut self) {
        for (number, op) in self.report.ops.iter().enumerate() {
            let owed = op.lost.unwrap_or(op.acknowledged.len());
            for (count, at) in &op.acknowledged[..owed] {
                for line in &op.wrote[..*count] {
                    let stood = self.named.get(line).is_some_and(|named| named <= at);
                    if stood || self.taken_away_here(number, *at) {
                        continue;
                    }
                    self.violations.push(format!(
                        "line {line} was acknowledged at {at} and stood beside its name only: {op}"
                    ));
                }
            }
        }
    }
}

/// Whether a key is a file's own, and not that of what lost a race.
pub fn is_name(key: &str) -> bool {
    !key.contains(BESIDE)
}
