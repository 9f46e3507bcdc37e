//! How much of a directory is known by its listing.

use super::Ticket;
use crate::clock::Instant;
use bytes::Bytes;
use std::collections::HashSet;

/// How many names may have been forgotten before it is worth no more than a new listing.
const HOLES: usize = 1024;

#[derive(Clone, Debug)]
pub struct Window {
    /// The last key told, relative to the directory, empty when there was none yet; `None` when
    /// the listing reached the end.
    pub upto: Option<Bytes>,
    pub since: Instant,
    /// The listing's number.
    pub listing: u64,
    /// Most of the page that ends it was of other directories.
    pub shared: bool,
    /// Names inside that were forgotten since.
    holes: HashSet<Bytes>,
}

impl Window {
    /// The window of a listing, up to the last key told of pages that go on.
    pub fn new(upto: Option<Bytes>, ticket: &Ticket) -> Window {
        Window {
            upto,
            since: ticket.since,
            listing: ticket.sequence,
            shared: ticket.shared,
            holes: HashSet::new(),
        }
    }

    /// Whether both the object `name` and the directory `name/` lie inside.
    pub fn covers(&self, name: &[u8]) -> bool {
        match &self.upto {
            None => true,
            Some(upto) => {
                let upto = upto.as_ref();
                upto.len() > name.len() && &upto[..name.len()] == name && upto[name.len()] >= b'/'
                    || (!upto.starts_with(name) && upto > name)
            }
        }
    }

    /// Whether it says what there is of a name.
    pub fn vouches(&self, name: &[u8]) -> bool {
        self.covers(name) && !self.holes.contains(name)
    }

    /// Whether it says what there is of each name.
    pub fn is_whole(&self) -> bool {
        self.upto.is_none() && self.holes.is_empty()
    }

    /// Leaves a name to its own record.
    pub fn fill(&mut self, name: &[u8]) {
        self.holes.remove(name);
    }

    /// Says nothing of a name any more. Whether it still says enough to be kept.
    pub fn forget(&mut self, name: &[u8]) -> bool {
        if self.covers(name) {
            self.holes.insert(Bytes::copy_from_slice(name));
        }
        self.holes.len() <= HOLES
    }
}
