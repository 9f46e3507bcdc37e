//! Large keys that are read in pieces. A script that tells the etag of a key has the server read all
//! of it, half a second for 100 MiB in which nobody else is answered: so such a string is brought
//! once, by a plain GET, its etag is computed here, and its pieces are given from that. So are those
//! of a document from the text that the first script told.

use super::Data;
use super::calls::refused;
use crate::clock::{self, Instant};
use crate::driver::redis::answer::bytes;
use crate::driver::{ETag, ErrorKind, ObjectInfo, Result};
use crate::key::Key;
use crate::task;
use ::redis::Value;
use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use sha1::{Digest, Sha1};
use std::fmt::Write;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// From how many bytes on a string is large.
const LARGE: u64 = 1 << 20;
/// From how many bytes on the text of a document is held; shorter ones are read at once.
const TEXT: usize = 64 << 10;
/// How long one is held after its last use.
const HELD: Duration = Duration::from_secs(10);
/// Of how many large ones the facts are remembered.
const KNOWN: usize = 64;

/// What is known and held of large keys.
pub(super) struct Large {
    /// A leaf lock, held for moments only.
    known: Mutex<LruCache<Key, ObjectInfo>>,
    /// One at a time. Held while it is brought: whoever wants another piece of it waits for that.
    held: tokio::sync::Mutex<Option<Held>>,
}

struct Held {
    key: Key,
    etag: ETag,
    bytes: Bytes,
    used: Instant,
}

impl Default for Large {
    fn default() -> Self {
        Large {
            known: super::cache(KNOWN),
            held: tokio::sync::Mutex::default(),
        }
    }
}

/// The etag that `lib.lua` tells of a string.
fn etag_of(bytes: &[u8]) -> String {
    let mut etag = "s".to_owned();
    for byte in Sha1::digest(bytes) {
        // Writing to a string does not fail.
        let _ = write!(etag, "{byte:02x}");
    }
    etag
}

/// What a text has of a range.
pub(super) fn cut(bytes: &Bytes, range: &Range<u64>) -> Bytes {
    let size = bytes.len() as u64;
    let start = range.start.min(size);
    let end = range.end.clamp(start, size);
    bytes.slice(start as usize..end as usize)
}

impl Data {
    /// Notes a string of which a piece was asked for.
    pub(super) fn note_large(&self, key: &Key, info: &ObjectInfo, told: usize) {
        if info
            .size
            .is_some_and(|size| size > LARGE && size > told as u64)
        {
            self.0.large.known.lock().put(key.clone(), info.clone());
        }
    }

    /// A piece of a version of a large string; `None` where it is not known for one.
    pub(super) async fn piece(
        &self,
        key: &Key,
        etag: &ETag,
        range: Range<u64>,
    ) -> Result<Option<(ObjectInfo, Bytes)>> {
        let known = self.0.large.known.lock().get(key).cloned();
        let Some(info) = known.filter(|info| info.etag == *etag && !range.is_empty()) else {
            return Ok(None);
        };
        let mut slot = self.0.large.held.lock().await;
        let bytes = match &mut *slot {
            Some(held) if held.key == *key && held.etag == *etag => {
                held.used = clock::now();
                held.bytes.clone()
            }
            _ => {
                let bytes = self.bring(key, etag).await?;
                self.hold(&mut slot, key, etag, &bytes);
                bytes
            }
        };
        Ok(Some((info, cut(&bytes, &range))))
    }

    fn hold(&self, slot: &mut Option<Held>, key: &Key, etag: &ETag, bytes: &Bytes) {
        let before = slot.replace(Held {
            key: key.clone(),
            etag: etag.clone(),
            bytes: bytes.clone(),
            used: clock::now(),
        });
        if before.is_none() {
            task::spawn(let_go(Arc::downgrade(&self.0.large)));
        }
    }

    /// Holds the text of a document of which no more than a piece was asked for.
    pub(super) fn hold_document(&self, key: &Key, info: &ObjectInfo, text: &Bytes, told: usize) {
        if text.len() < TEXT || text.len() <= told {
            return;
        }
        // Where another is just brought, that is what is read.
        if let Ok(mut slot) = self.0.large.held.try_lock() {
            self.hold(&mut slot, key, &info.etag, text);
            self.0.large.known.lock().put(key.clone(), info.clone());
        }
    }

    /// A piece of a version of a document, if that is held.
    pub(super) async fn document_piece(
        &self,
        key: &Key,
        etag: &ETag,
        range: Range<u64>,
    ) -> Option<(ObjectInfo, Bytes)> {
        let known = self.0.large.known.lock().get(key).cloned();
        let info = known.filter(|info| info.etag == *etag && !range.is_empty())?;
        let mut slot = self.0.large.held.lock().await;
        let held = slot.as_mut()?;
        if held.key != *key || held.etag != *etag {
            return None;
        }
        held.used = clock::now();
        Some((info, cut(&held.bytes, &range)))
    }

    async fn bring(&self, key: &Key, etag: &ETag) -> Result<Bytes> {
        let (name, _) = self.0.names.stored(key);
        let mut cmd = ::redis::cmd("GET");
        cmd.arg(name);
        let content = match self.0.link.ask(&cmd).await? {
            Value::Nil => return Err(refused(ErrorKind::Changed, "the key is gone")),
            content => bytes(content)?,
        };
        let hashed = content.clone();
        let told = task::blocking(move || etag_of(&hashed)).await;
        let told = told.map_err(|error| refused(ErrorKind::Io, error.to_string()))?;
        match told == etag.as_str() {
            true => Ok(content),
            false => Err(refused(
                ErrorKind::Changed,
                format!("the key has etag {told}"),
            )),
        }
    }
}

/// Forgets what is held when nobody has used it for a while.
async fn let_go(large: Weak<Large>) {
    loop {
        tokio::time::sleep(HELD).await;
        let Some(large) = large.upgrade() else {
            return;
        };
        let mut held = large.held.lock().await;
        if held.as_ref().is_none_or(|held| held.used.elapsed() >= HELD) {
            *held = None;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_are_those_of_the_script() {
        assert_eq!(etag_of(b"abc"), "sa9993e364706816aba3e25717850c26c9cd0d89d");
    }
}
