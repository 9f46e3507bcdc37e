//! How index objects are written: in the background, when a directory has been left alone for a
//! while, and at the end of a mount.

use super::known::{Changed, Directory, Part, Record};
use super::{LARGEST, PART, PARTS, Shared, digest, file};
use crate::clock;
use crate::driver::{Body, ETag, ErrorKind, Precondition, PutOptions, Result, SETTLING, Strength};
use crate::key::Key;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use md5::{Digest, Md5};
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

/// How many parts so many records are spread over where there are some already: a power of two, and
/// less than there are only when they are a quarter full, since with each change all are written.
fn spread(records: usize, there: u32) -> u32 {
    let needed = records.div_ceil(PART).next_power_of_two();
    let needed = needed.clamp(1, PARTS as usize) as u32;
    let suits = there.is_power_of_two() && there <= PARTS && needed <= there;
    if suits && records > there as usize * PART / 4 {
        there
    } else {
        needed
    }
}

/// The names of a directory, by the part that they are in.
struct Shares {
    names: Vec<Vec<Bytes>>,
    /// The reads of index objects whose names are among them.
    reads: u64,
}

impl Shares {
    fn of(known: &Directory, parts: u32) -> Self {
        let mut names = vec![Vec::new(); parts as usize];
        for name in known.records.keys() {
            names[part_of(name, parts) as usize].push(name.clone());
        }
        Shares {
            names,
            reads: known.reads,
        }
    }
}

impl Shared {
    /// Writes the index of a directory: the parts whose text is another one than the store has.
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
        let mut shares = {
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
            let there = known.parts.keys().max().map_or(0, |last| last + 1);
            Shares::of(known, spread(known.records.len(), there))
        };
        for part in 0..shares.names.len() as u32 {
            self.write_part(directory, &top, &digest, part, &mut shares)
                .await?;
        }
        self.remove_surplus(directory, &top, &digest, shares.names.len() as u32)
            .await
    }

    async fn write_part(
        &self,
        directory: &Key,
        top: &Key,
        digest: &str,
        part: u32,
        shares: &mut Shares,
    ) -> Result<()> {
        for round in 1.. {
            let wall = self.inner.wall();
            let (text, there) = {
                let mut known = self.known.lock();
                let Some(known) = known.get(directory) else {
                    return Ok(());
                };
                // Records that were read with a part's etag are written with it.
                if shares.reads != known.reads {
                    *shares = Shares::of(known, shares.names.len() as u32);
                }
                let there = known.parts.get(&part).cloned();
                let records = settled(known, &shares.names[part as usize], wall);
                // The first part tells that there is an index.
                if records.is_empty() && there.is_none() && part > 0 {
                    return Ok(());
                }
                let below = Self::below(directory, top);
                (file::write(&below, records.into_iter()), there)
            };
            let Some(text) = text else { return Ok(()) };
            let written = Md5::digest(&text).into();
            if there.as_ref().is_some_and(|there| there.digest == written) {
                return Ok(());
            }
            if text.len() as u64 > LARGEST {
                log::debug!("part {part} of the index of {directory:?} is too large");
                return Ok(());
            }
            let strength = self.inner.capabilities().put_condition;
            let options = PutOptions {
                precondition: match there {
                    _ if strength == Strength::None => Precondition::None,
                    Some(there) => Precondition::IfMatch(there.etag),
                    None => Precondition::IfAbsent,
                },
                ..PutOptions::default()
            };
            let key = Self::part(top, digest, part);
            match self.inner.put(&key, Body::from(text), options).await {
                Ok(info) => {
                    let now = Part {
                        etag: info.etag,
                        digest: written,
                    };
                    self.written(directory, top, digest, part, now);
                    return Ok(());
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::Exists | ErrorKind::Changed)
                        && round < ROUNDS =>
                {
                    self.read_again(directory, top, part).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads a part that somebody else has written or removed.
    async fn read_again(&self, directory: &Key, top: &Key, part: u32) {
        self.known
            .lock()
            .change(directory, |known| known.parts.remove(&part));
        let again = BTreeMap::from([(part, ETag::new(""))]);
        self.read(directory, top, again).await;
    }

    /// Removes parts that nothing is in any more, once all that was read from them is in others.
    async fn remove_surplus(
        &self,
        directory: &Key,
        top: &Key,
        digest: &str,
        parts: u32,
    ) -> Result<()> {
        let surplus: Vec<(u32, ETag)> = {
            let mut known = self.known.lock();
            let Some(known) = known.get(directory) else {
                return Ok(());
            };
            let surplus = known.parts.iter().filter(|(part, _)| **part >= parts);
            surplus
                .map(|(part, there)| (*part, there.etag.clone()))
                .collect()
        };
        for (part, etag) in surplus {
            let precondition = match self.inner.capabilities().delete_condition {
                Strength::None => Precondition::None,
                _ => Precondition::IfMatch(etag),
            };
            let key = Self::part(top, digest, part);
            match self.inner.delete(&key, precondition).await {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.kind() == ErrorKind::Changed => {
                    self.read_again(directory, top, part).await;
                    continue;
                }
                Err(error) => return Err(error),
            }
            if let Some(catalogue) = self.catalogues.lock().get_mut(top)
                && let Some(parts) = catalogue.directories.get_mut(digest)
            {
                parts.remove(&part);
            }
            self.known
                .lock()
                .change(directory, |known| known.parts.remove(&part));
        }
        Ok(())
    }

    fn written(&self, directory: &Key, top: &Key, digest: &str, part: u32, now: Part) {
        let mut catalogues = self.catalogues.lock();
        let catalogue = catalogues.entry(top.clone()).or_default();
        let parts = catalogue.directories.entry(digest.to_owned()).or_default();
        parts.insert(part, now.etag.clone());
        drop(catalogues);
        let mut known = self.known.lock();
        known.change(directory, |known| {
            known.parts.insert(part, now);
            known.read.get_or_insert_with(clock::now);
        });
    }
}

/// The records of these that may be written when it is `now` by the store's clock, in the order of
/// their names.
fn settled<'a>(
    known: &'a Directory,
    names: &[Bytes],
    now: SystemTime,
) -> BTreeMap<&'a Bytes, &'a Record> {
    names
        .iter()
        .filter_map(|name| known.records.get_key_value(name))
        .filter(|(_, record)| record.certain && record.is_settled(now))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_parts_changes_seldom() {
        assert_eq!(spread(0, 0), 1);
        assert_eq!(spread(PART, 1), 1);
        assert_eq!(spread(PART + 1, 1), 2);
        assert_eq!(spread(PART, 2), 2);
        assert_eq!(spread(PART / 2, 2), 1);
        assert_eq!(spread(200_000, 25), 32, "what an older version wrote");
        assert_eq!(spread(usize::MAX / 2, 0), PARTS);
    }
}
