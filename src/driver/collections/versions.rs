//! What is known of versions of documents: when each was seen first, and what it may be edited from.

use crate::clock::{self, Instant};
use crate::driver::{ETag, Error, ErrorKind, ObjectInfo, Precondition};
use crate::key::Key;
use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Of how many names the time of their version is known.
const SEEN: usize = 65_536;
/// How many documents, and how large ones, are remembered as what they may be edited from.
const BASES: usize = 256;
const BASE: usize = 64 << 10;
/// For how long a document that comes back is what was removed, in another text.
const RETURNS: Duration = Duration::from_secs(60);
/// Behind the etag of what was written in other words than it is shown in. It names the same
/// content, and other bytes.
const OWN_WORDS: char = '~';

/// Versions of documents of one kind.
pub(in crate::driver) struct Versions<D> {
    /// When it was opened: the time of versions that were there before.
    opened: SystemTime,
    /// Leaf locks, held for moments only.
    seen: Mutex<LruCache<Key, (ETag, SystemTime)>>,
    bases: Mutex<LruCache<(Key, ETag), D>>,
    gone: Mutex<LruCache<Key, (D, Instant)>>,
}

fn cache<K: std::hash::Hash + Eq, V>(most: usize) -> Mutex<LruCache<K, V>> {
    Mutex::new(LruCache::new(
        NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN),
    ))
}

impl<D: Clone> Versions<D> {
    pub(in crate::driver) fn new() -> Self {
        Versions {
            opened: clock::wall(),
            seen: cache(SEEN),
            bases: cache(BASES),
            gone: cache(BASES),
        }
    }

    /// The facts of what is there now.
    pub(in crate::driver) fn info(&self, key: &Key, etag: ETag, size: u64) -> ObjectInfo {
        let mut seen = self.seen.lock();
        let modified = match seen.get(key) {
            Some((known, modified)) if *known == etag => *modified,
            Some(_) => clock::wall(),
            None => self.opened,
        };
        seen.put(key.clone(), (etag.clone(), modified));
        ObjectInfo {
            size: Some(size),
            etag,
            modified,
            attributes: Some(Arc::default()),
            commits: Vec::new(),
            version: None,
        }
    }

    /// The facts of what was written just now.
    pub(in crate::driver) fn written(
        &self,
        key: &Key,
        etag: ETag,
        size: usize,
        document: D,
    ) -> ObjectInfo {
        self.seen
            .lock()
            .put(key.clone(), (etag.clone(), clock::wall()));
        self.gone.lock().pop(key);
        self.keep(key, &etag, size, document);
        self.info(key, etag, size as u64)
    }

    /// Remembers a version that may be edited.
    pub(in crate::driver) fn keep(&self, key: &Key, etag: &ETag, size: usize, document: D) {
        if size <= BASE {
            let name = (key.clone(), etag.clone());
            self.bases.lock().put(name, document);
        }
    }

    /// Remembers what was removed here: editors move a document away and write it anew.
    pub(in crate::driver) fn removed(&self, key: &Key, document: D) {
        self.gone.lock().put(key.clone(), (document, clock::now()));
    }

    /// What was removed here a moment ago.
    pub(in crate::driver) fn returning(&self, key: &Key) -> Option<D> {
        let mut gone = self.gone.lock();
        let (document, at) = gone.get(key)?;
        (*at + RETURNS > clock::now()).then(|| document.clone())
    }

    /// A version that was read or written here.
    pub(in crate::driver) fn base(&self, key: &Key, etag: &ETag) -> Option<D> {
        let name = (key.clone(), etag.clone());
        self.bases.lock().get(&name).cloned()
    }
}

/// The content that an etag names, whatever its words.
pub(in crate::driver) fn plain(etag: &ETag) -> &str {
    etag.as_str().trim_end_matches(OWN_WORDS)
}

/// The etag of a document that was written by a text, and is shown by another or the same.
pub(in crate::driver) fn worded(etag: ETag, shown: &str, text: &[u8]) -> ETag {
    match shown.as_bytes() == text {
        true => etag,
        false => ETag::new(format!("{}{OWN_WORDS}", etag.as_str())),
    }
}

/// That there is no document.
pub(in crate::driver) fn gone(precondition: &Precondition) -> Error {
    match precondition {
        Precondition::IfMatch(etag) => Error::new(
            ErrorKind::Changed,
            format!("the document of etag {etag:?} is gone"),
        ),
        _ => Error::new(ErrorKind::NotFound, "there is no such document"),
    }
}

/// That there is one.
pub(in crate::driver) fn there() -> Error {
    Error::new(ErrorKind::Exists, "the document is there already")
}

/// That it is another.
pub(in crate::driver) fn changed() -> Error {
    Error::new(ErrorKind::Changed, "somebody else changed the document")
}
