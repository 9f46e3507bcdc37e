//! The conflict files that show siblings: which there are, as far as objects were looked at.
//!
//! A listing comes to an object before it comes to the conflict files beside it, so that it knows them.

use super::bucket::BucketType;
use super::names::Place;
use super::object::{Looked, Sibling, State};
use crate::driver::{ETag, ObjectInfo, Precondition, Result};
use crate::key::Key;
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Bound;

/// Of how many objects it is known that siblings of them were resolved, and by how many etags each.
const RESOLVED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
const ETAGS: usize = 16;
/// Of how many objects it is known which conflict files are beside them: more than a page lists.
const KNOWN: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// What was seen of them. A leaf lock, held for moments only.
#[derive(Default)]
pub(super) struct Siblings(Mutex<Seen>);

struct Seen {
    /// By their own key: the object, and the facts.
    files: BTreeMap<Key, (Place, ObjectInfo)>,
    /// By the object's key.
    of: LruCache<Key, Vec<Key>>,
    /// The etags that an object had before siblings of it were resolved here, with the same bytes as
    /// under the one that it has since.
    same: LruCache<Key, (Vec<ETag>, ETag)>,
}

impl Default for Seen {
    fn default() -> Self {
        Seen {
            files: BTreeMap::new(),
            of: LruCache::new(KNOWN),
            same: LruCache::new(RESOLVED),
        }
    }
}

impl Seen {
    fn forget(&mut self, place: &Place) {
        for key in self.of.pop(&place.key).unwrap_or_default() {
            self.files.remove(&key);
        }
    }
}

impl Siblings {
    /// There are none beside an object.
    pub(super) fn forget(&self, place: &Place) {
        self.0.lock().forget(place);
    }

    /// Takes in what an object was seen to be.
    pub(super) fn note(&self, place: &Place, looked: &Looked) {
        let mut seen = self.0.lock();
        seen.forget(place);
        let Looked::There(state) = looked else {
            return;
        };
        let beside = state.beside(place);
        let keys: Vec<_> = beside.iter().map(|(own, _)| own.key.clone()).collect();
        for (own, value) in beside {
            let known = (place.clone(), value.own_info());
            seen.files.insert(own.key, known);
        }
        if !keys.is_empty()
            && let Some((_, forgotten)) = seen.of.push(place.key.clone(), keys)
        {
            for key in forgotten {
                seen.files.remove(&key);
            }
        }
    }

    /// Notes that an object has the bytes that it had under another etag.
    pub(super) fn resolved(&self, place: &Place, before: ETag, now: ETag) {
        let mut seen = self.0.lock();
        let mut all = match seen.same.pop(&place.key) {
            Some((all, last)) if last == before => all,
            _ => Vec::new(),
        };
        all.push(before);
        all.drain(..all.len().saturating_sub(ETAGS));
        seen.same.put(place.key.clone(), (all, now));
    }

    /// Tests a condition on what is at a place.
    pub(super) fn check(
        &self,
        place: &Place,
        precondition: &Precondition,
        current: Option<&ETag>,
    ) -> Result<()> {
        if let (Precondition::IfMatch(wanted), Some(current)) = (precondition, current)
            && let Some((all, now)) = self.0.lock().same.peek(&place.key)
            && now == current
            && all.contains(wanted)
        {
            return Ok(());
        }
        precondition.check(current)
    }

    /// The object that one was seen beside.
    fn object(&self, key: &Key) -> Option<Place> {
        let seen = self.0.lock();
        seen.files.get(key).map(|(place, _)| place.clone())
    }

    /// Those that begin with a prefix and stand behind a key, each with its object.
    pub(super) fn within(
        &self,
        prefix: &Key,
        after: Option<&Key>,
    ) -> Vec<(Key, (Place, ObjectInfo))> {
        let seen = self.0.lock();
        let begin = match after {
            Some(after) if after >= prefix => Bound::Excluded(after.clone()),
            _ => Bound::Included(prefix.clone()),
        };
        let within = seen.files.range((begin, Bound::Unbounded));
        let within = within.take_while(|(key, _)| key.starts_with(prefix));
        within
            .map(|(key, known)| (key.clone(), known.clone()))
            .collect()
    }
}

/// A sibling that a conflict file shows.
pub(super) struct Beside {
    /// The object that it is a sibling of.
    pub of: Place,
    pub state: Box<State>,
    pub value: Sibling,
}

impl BucketType {
    /// The sibling that a key shows, if it shows one.
    pub(super) async fn beside(&self, place: &Place) -> Result<Option<Beside>> {
        // Names that were cut do not tell their object.
        let object = self.siblings.object(&place.key).or_else(|| place.main());
        let Some(of) = object else {
            return Ok(None);
        };
        let Looked::There(state) = self.look(&of).await? else {
            return Ok(None);
        };
        let mut all = state.beside(&of).into_iter();
        let found = all.find(|(own, _)| own.key == place.key);
        Ok(found.map(|(_, value)| Beside { of, state, value }))
    }
}
