//! Opens that were answered ESTALE, and are tried again.
//!
//! The kernel tries once more: it looks the name up again, and opens what it finds there. Its second
//! ESTALE would be the program's. So the lookup gives a version that is known to be the store's as
//! of the first try or later, and that one is opened even where the name is another version's by
//! then: the open has begun before that came.

use super::Fs;
use super::inode::{Inode, Place};
use crate::clock::{self, Instant};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How many are remembered. The others take their chance.
const MOST: usize = 1024;

/// How long. The kernel tries again at once, but the lookup may have to ask the store.
const MEMORY: Duration = Duration::from_secs(5);

/// Opens that were refused, by the thread that asked.
#[derive(Debug, Default)]
pub(super) struct Refused {
    all: Mutex<HashMap<u32, Refusal>>,
    /// Whether there are any: lookups and opens need no lock where nothing was refused.
    any: AtomicBool,
}

#[derive(Debug)]
struct Refusal {
    /// The name that is looked up again.
    directory: u64,
    name: Bytes,
    /// When the open began.
    began: Instant,
}

impl Refusal {
    fn is_at(&self, directory: u64, name: &[u8]) -> bool {
        self.directory == directory && *self.name == *name
    }

    fn is_due(&self, now: Instant) -> bool {
        self.began + MEMORY > now
    }
}

impl Refused {
    fn some(&self) -> Option<MutexGuard<'_, HashMap<u32, Refusal>>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let refused = self.all.lock();
        self.any.store(!refused.is_empty(), Ordering::Release);
        Some(refused)
    }

    /// Notes a refusal. Threads that the mount cannot see, outside of its pid namespace, all have
    /// the number 0.
    pub fn note(&self, pid: u32, (directory, name): &Place, began: Instant) {
        if pid == 0 {
            return;
        }
        let mut refused = self.all.lock();
        let now = clock::now();
        refused.retain(|_, refusal| refusal.is_due(now));
        if refused.len() < MOST {
            let refusal = Refusal {
                directory: directory.ino,
                name: name.clone(),
                began,
            };
            refused.insert(pid, refusal);
            self.any.store(true, Ordering::Release);
        }
    }

    /// If this is the second try: when the first one began.
    pub fn take(&self, pid: u32, (directory, name): &Place) -> Option<Instant> {
        let refusal = self.some()?.remove(&pid)?;
        let again = refusal.is_at(directory.ino, name) && refusal.is_due(clock::now());
        again.then_some(refusal.began)
    }

    /// When the last open of a name began that is being tried again.
    pub fn began(&self, directory: u64, name: &[u8]) -> Option<Instant> {
        let refused = self.some()?;
        let at = |refusal: &&Refusal| refusal.is_at(directory, name);
        refused
            .values()
            .filter(at)
            .map(|refusal| refusal.began)
            .max()
    }

    /// Forgets those of a name: it leads nowhere, or nobody can tell where.
    pub fn forget(&self, directory: u64, name: &[u8]) {
        if let Some(mut refused) = self.some() {
            refused.retain(|_, refusal| !refusal.is_at(directory, name));
        }
    }
}

impl Fs {
    /// Whether an inode may be opened for who was refused since `began`, although the name leads to
    /// another version now: this one was the store's in between, and its first bytes are here.
    pub(super) fn serves_again(&self, inode: &Inode, began: Instant, reads: bool) -> bool {
        let state = inode.state();
        if state.removed || state.away || state.file.dirty || state.checked < began {
            return false;
        }
        let Some(version) = &state.file.version else {
            return false;
        };
        !reads || self.begins_here(version)
    }
}
