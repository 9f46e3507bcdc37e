//! Names in their order: those that pages have passed, and those that follow another one.

use super::{Directory, Known, ListingCache, Record, Ticket, Window};
use crate::clock::Instant;
use crate::driver::Page;
use crate::key::Key;
use bytes::Bytes;
use std::ops::Bound;

impl Directory {
    /// Its names behind one of them, without those that are known to be absent.
    fn behind(&self, after: &[u8]) -> impl Iterator<Item = (&Bytes, &Record)> {
        let range = (Bound::Excluded(after), Bound::Unbounded);
        let records = self.records.range::<[u8], _>(range);
        records.filter(|(_, record)| !record.is_absent())
    }
}

impl ListingCache {
    /// The names of which the pages of a listing up to this one have told all, with what was
    /// changed here since; each is given once.
    pub fn passed(&self, prefix: &Key, page: &Page, ticket: &mut Ticket) -> Vec<(Bytes, Known)> {
        let told = std::mem::take(&mut ticket.told);
        let upto = (page.next.is_some()).then(|| ticket.last.clone().unwrap_or_default());
        let window = Window::new(upto, ticket);
        let mut directories = self.directories.lock();
        let directory = directories.get(prefix);
        let changed = |name: &Bytes| {
            let record = directory?.records.get(name)?;
            (record.changed() > ticket.sequence).then(|| record.known())
        };
        let mut names = Vec::with_capacity(told.len());
        for (name, known) in told {
            if !window.covers(&name) {
                ticket.told.insert(name, known);
                continue;
            }
            let known = changed(&name).unwrap_or(known);
            if !known.is_absent() {
                names.push((name, known));
            }
        }
        names
    }

    /// The names of a directory that own changes behind a mark have put there.
    pub fn changed_behind(&self, prefix: &Key, mark: u64) -> Vec<(Bytes, Known)> {
        let directories = self.directories.lock();
        let records = directories.peek(prefix).map(|directory| &directory.records);
        let changed = records.into_iter().flatten();
        changed
            .filter(|(_, record)| record.changed() > mark && !record.is_absent())
            .map(|(name, record)| (name.clone(), record.known()))
            .collect()
    }

    /// The known names of a directory that follow `after`, and since when each is known.
    pub fn following(
        &self,
        prefix: &Key,
        after: &[u8],
        limit: usize,
    ) -> Vec<(Bytes, Known, Instant)> {
        let directories = self.directories.lock();
        let Some(directory) = directories.peek(prefix) else {
            return Vec::new();
        };
        let window = directory.window.as_ref();
        directory
            .behind(after)
            .take(limit)
            .map_while(|(name, record)| {
                let window = window.filter(|window| window.vouches(name));
                Some((name.clone(), record.known(), record.since(window)?))
            })
            .collect()
    }

    /// How many names behind `after` another one is, where it is among the first `far`.
    pub fn distance(&self, prefix: &Key, after: &[u8], name: &[u8], far: usize) -> Option<usize> {
        let directories = self.directories.lock();
        let mut names = directories.peek(prefix)?.behind(after).take(far);
        names.position(|(other, _)| other == name).map(|at| at + 1)
    }

    /// Notes the names that a page has told which was asked for behind `after` with a ticket of
    /// then.
    pub fn learned_behind(&self, prefix: &Key, after: &[u8], page: &Page, ticket: &Ticket) {
        let mut told = self.begin(ticket.since);
        told.sequence = ticket.sequence;
        told.take(prefix, page);
        let upto = (page.next.is_some()).then(|| told.last.clone().unwrap_or_default());
        let window = Window::new(upto, &told);
        for (name, known) in told.told {
            // Of others the object lies before the page, or the directory behind it.
            if *name > *after && window.covers(&name) {
                self.learned(prefix, &name, known, ticket);
            }
        }
    }
}
