//! How index objects are written: in the background, when a directory has been left alone for a
//! while, and at the end of a mount.

use super::known::{Changed, Directory, Record};
use super::{PART, PARTS, Shared, digest, file};
use crate::clock;
use crate::driver::{Body, ETag, ErrorKind, Precondition, PutOptions, Result, SETTLING};
use crate::key::Key;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

/// How often it is looked whether something is due.
const TICK: Duration = Duration::from_secs(2);
/// How long a directory has to be left alone, and how long at most it waits for that.
const QUIET: Duration = Duration::from_secs(8);
const LONG: Duration = Duration::from_secs(120);
/// How many directories are written at a time.
const WIDTH: usize = 8;
/// How often a part is written again over what somebody else wrote meanwhile.
const ROUNDS: u32 = 3;

/// Writes what is due, until the index is gone.
pub(super) async fn now_and_then(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(TICK).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let due = {
            let known = shared.known.lock();
            let due = known.iter().filter(|(_, directory)| {
                let due = |changed: Changed| {
                    let now = clock::now();
                    changed.last + QUIET <= now || changed.first + LONG <= now
                };
                directory.changed.is_some_and(due)
            });
            due.map(|(key, _)| key.clone()).collect::<Vec<_>>()
        };
        write(&shared, due).await;
    }
}

/// Writes everything.
pub(super) async fn all(shared: &Arc<Shared>) {
    if !shared.writes {
        return;
    }
    let changed = {
        let known = shared.known.lock();
        let changed = known
            .iter()
            .filter(|(_, directory)| directory.changed.is_some());
        changed.map(|(key, _)| key.clone()).collect::<Vec<_>>()
    };
    let mut left = changed;
    for _ in 0..ROUNDS {
        left = write(shared, left).await;
    }
}

/// Writes the index of directories. Gives those that could not be written now.
async fn write(shared: &Arc<Shared>, directories: Vec<Key>) -> Vec<Key> {
    if directories.is_empty() {
        return directories;
    }
    let _turn = shared.writing.lock().await;
    stream::iter(directories)
        .map(|directory| async move {
            let error = shared.write(&directory).await.err()?;
            log::debug!("the index of {directory:?} is not written: {error}");
            // A full store may have room again.
            let later = error.retryable() || error.kind() == ErrorKind::NoSpace;
            later.then(|| {
                shared.known.lock().still_changed(&directory);
                directory
            })
        })
        .buffer_unordered(WIDTH)
        .filter_map(std::future::ready)
        .collect()
        .await
}

/// The part of an index that an object is in.
fn part_of(name: &Bytes, parts: u32) -> u32 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    (hasher.finish() % u64::from(parts)) as u32
}

impl Shared {
    /// Writes the index of a directory.
    async fn write(&self, directory: &Key) -> Result<()> {
        let Some(top) = self.top(directory) else {
            return Ok(());
        };
        self.load(&top).await;
        // Others' records are kept.
        if let Some(parts) = self.unread(directory, &top, false) {
            self.read(directory, &top, parts).await;
        }
        let digest = digest(directory, &top);
        let parts = {
            let wall = self.inner.wall();
            let mut known = self.known.lock();
            let Some(known) = known.get(directory) else {
                return Ok(());
            };
            // What is too young to be written makes it due once more.
            let young = |record: &Record| record.certain && !record.is_settled(wall);
            known.changed = known.records.values().any(young).then(|| {
                let now = clock::now();
                let last = now.checked_sub(QUIET - SETTLING).unwrap_or(now);
                Changed { first: now, last }
            });
            known.records.len().div_ceil(PART).clamp(1, PARTS as usize) as u32
        };
        for part in 0..parts {
            let mut rounds = 0;
            loop {
                rounds += 1;
                let wall = self.inner.wall();
                let (text, etag) = {
                    let mut known = self.known.lock();
                    let Some(known) = known.get(directory) else {
                        return Ok(());
                    };
                    let records = settled(known, part, parts, wall);
                    let text = file::write(
                        &Self::below(directory, &top),
                        records.iter().map(|(name, record)| (*name, *record)),
                    );
                    (text, known.parts.get(&part).cloned())
                };
                let Some(text) = text else { return Ok(()) };
                let key = Self::part(&top, &digest, part);
                let strength = self.inner.capabilities().put_condition;
                let options = PutOptions {
                    precondition: match etag {
                        _ if strength == crate::driver::Strength::None => Precondition::None,
                        Some(etag) => Precondition::IfMatch(etag),
                        None => Precondition::IfAbsent,
                    },
                    ..PutOptions::default()
                };
                match self.inner.put(&key, Body::from(text), options).await {
                    Ok(info) => {
                        self.written(directory, &top, &digest, part, info.etag);
                        break;
                    }
                    Err(error)
                        if matches!(error.kind(), ErrorKind::Exists | ErrorKind::Changed)
                            && rounds < ROUNDS =>
                    {
                        self.known
                            .lock()
                            .change(directory, |known| known.parts.remove(&part));
                        let again = BTreeMap::from([(part, ETag::new(""))]);
                        self.read(directory, &top, again).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn written(&self, directory: &Key, top: &Key, digest: &str, part: u32, etag: ETag) {
        let mut catalogues = self.catalogues.lock();
        let catalogue = catalogues.entry(top.clone()).or_default();
        let parts = catalogue.directories.entry(digest.to_owned()).or_default();
        parts.insert(part, etag.clone());
        drop(catalogues);
        let mut known = self.known.lock();
        known.change(directory, |known| {
            known.parts.insert(part, etag);
            known.read.get_or_insert_with(clock::now);
        });
    }
}

/// The records of a part that may be written when it is `now` by the store's clock, in the order of
/// their names.
fn settled(known: &Directory, part: u32, parts: u32, now: SystemTime) -> BTreeMap<&Bytes, &Record> {
    known
        .records
        .iter()
        .filter(|(name, record)| {
            record.is_settled(now) && record.certain && part_of(name, parts) == part
        })
        .collect()
}
