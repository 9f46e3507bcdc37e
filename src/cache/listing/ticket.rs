//! A listing under way, and what its pages tell.

use super::{Known, Marker};
use crate::clock::Instant;
use crate::driver::{ListEntry, Page};
use crate::key::Key;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A listing under way: made before the first request, so that own changes made meanwhile win.
#[derive(Clone, Debug)]
pub struct Ticket {
    pub(super) sequence: u64,
    pub(super) since: Instant,
    pub(super) last: Option<Bytes>,
    pub(super) first: bool,
    /// Its last page told more of other directories: how much is left of this one, it does not say.
    pub(super) shared: bool,
    /// What the pages have told so far.
    pub(super) told: BTreeMap<Bytes, Known>,
}

impl Ticket {
    /// When the listing began.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// The mark of that moment: see [`super::ListingCache::mark`].
    pub fn mark(&self) -> u64 {
        self.sequence
    }

    /// Takes in what a page tells. Gives the names that it tells of.
    pub fn take(&mut self, prefix: &Key, page: &Page) -> Vec<Bytes> {
        let mut names: Vec<Bytes> = Vec::with_capacity(page.entries.len());
        for (entry, rest) in rests(prefix, page) {
            self.last = Some(rest.clone());
            let name = match rest.strip_suffix(b"/") {
                Some(name) => rest.slice(..name.len()),
                None => rest.clone(),
            };
            let is_directory = name.len() < rest.len();
            let info = entry.object.as_ref();
            if !is_directory && info.is_none() {
                continue;
            }
            let info = info.map(|info| Arc::new(info.clone()));
            let known = self.told.entry(name.clone()).or_default();
            match info {
                Some(info) if is_directory => known.marker = Marker::Present(info),
                Some(info) => known.object = Some(info),
                None => {}
            }
            known.directory |= is_directory;
            if names.last() != Some(&name) {
                names.push(name);
            }
        }
        names
    }
}

/// A page's entries below a prefix with what stands behind it. All of that lies in one buffer: names
/// are remembered longer than their keys, and would each keep a key's memory.
pub fn rests<'a>(prefix: &Key, page: &'a Page) -> impl Iterator<Item = (&'a ListEntry, Bytes)> {
    let below = |entry: &'a ListEntry| {
        let rest = entry.key.as_bytes().strip_prefix(prefix.as_bytes());
        Some((entry, rest?))
    };
    let below: Vec<_> = page.entries.iter().filter_map(below).collect();
    let mut names = BytesMut::with_capacity(below.iter().map(|(_, rest)| rest.len()).sum());
    below
        .iter()
        .for_each(|(_, rest)| names.extend_from_slice(rest));
    let mut names = names.freeze();
    below
        .into_iter()
        .map(move |(entry, rest)| (entry, names.split_to(rest.len())))
}
