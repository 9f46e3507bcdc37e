//! What is written down of a rename of a directory before its first copy, so that one that was
//! broken off can be completed.
//!
//! A record is an object of our own, `.bucketfs/renames/ID` at the top of the bucket. While the
//! rename goes on it is written again from time to time, and at the end it is removed. One whose
//! writer has ended, or that nobody has written for long, is taken over by compare-and-set: see
//! [`super::resume`].

use super::{Fs, RenameStatus, Top};
use crate::clock;
use crate::clock::Instant;
use crate::driver::{
    Body, CommitId, ETag, Error, ErrorKind, GetOptions, Precondition, PutOptions, Result, Strength,
};
use crate::key::Key;
use crate::process;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// Where records are, below the top of a bucket.
pub(super) const PLACE: &str = ".bucketfs/renames/";
/// A rename of at most so many keys leaves no record: it takes a few round trips.
pub(super) const HANDFUL: usize = 32;
/// How often a record is written again while its rename goes on.
const BEAT: Duration = Duration::from_secs(60);
/// How long a record that could not be removed waits.
const REMOVE_AGAIN: Duration = Duration::from_secs(10);
/// What keys are escaped by in records, beside what is not ASCII.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// Who carries a rename out, and from where to where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Intent {
    from: String,
    to: String,
    /// The host that began it.
    pub host: String,
    machine: String,
    pid: u32,
    started: u64,
    mount: u64,
    /// When it was begun, in milliseconds since 1970 by the store's clock. The first version of a
    /// record is as old as that itself.
    pub began: Option<u64>,
    beat: u64,
}

/// Whether the writer of a record is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// It is this mount.
    Here,
    /// It is.
    Lives,
    /// Its process has ended.
    Ended,
    /// It is on another machine, or another mount of this process.
    Unknown,
}

/// A record as this mount has written it last.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub key: Key,
    pub etag: ETag,
    pub modified: SystemTime,
    pub intent: Intent,
}

/// A rename of a directory that this mount carries out.
#[derive(Debug)]
pub(super) struct Moving {
    pub from: Key,
    pub to: Key,
    since: SystemTime,
    /// Who began it, if that was another mount.
    begun_by: Option<String>,
    pub listed: AtomicU64,
    pub moved: AtomicU64,
    /// What its copies are marked by.
    pub mark: Option<CommitId>,
    record: Mutex<Option<Written>>,
}

/// The renames of directories of a mount. Leaf locks.
#[derive(Debug, Default)]
pub(super) struct Renames {
    mount: OnceLock<u64>,
    moving: Mutex<Vec<Arc<Moving>>>,
    /// Records that could not be removed, and when that is tried again.
    left: Mutex<Vec<(Key, Instant)>>,
}

/// Shows a rename in `bucketfs status` as long as it lives.
pub(super) struct Shown<'a> {
    renames: &'a Renames,
    pub moving: Arc<Moving>,
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        let mut moving = self.renames.moving.lock();
        moving.retain(|other| !Arc::ptr_eq(other, &self.moving));
    }
}

impl Renames {
    /// Begins to show a rename.
    pub fn begin(
        &self,
        from: &Key,
        to: &Key,
        begun_by: Option<String>,
        mark: Option<CommitId>,
    ) -> Shown<'_> {
        let moving = Arc::new(Moving {
            from: from.clone(),
            to: to.clone(),
            since: clock::wall(),
            begun_by,
            listed: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            mark,
            record: Mutex::default(),
        });
        self.moving.lock().push(moving.clone());
        Shown {
            renames: self,
            moving,
        }
    }

    /// What `bucketfs status` shows of them.
    pub fn status(&self) -> Vec<RenameStatus> {
        let moving = self.moving.lock();
        let shown = moving.iter().map(|moving| RenameStatus {
            from: name(&moving.from),
            to: name(&moving.to),
            since: clock::seconds(moving.since),
            begun_by: moving.begun_by.clone(),
            listed: moving.listed.load(Ordering::Relaxed),
            moved: moving.moved.load(Ordering::Relaxed),
        });
        shown.collect()
    }

    fn mount(&self) -> u64 {
        *self.mount.get_or_init(clock::random)
    }
}

/// A directory's key as people write it.
pub(super) fn name(directory: &Key) -> String {
    let text = directory.to_string();
    text.strip_suffix('/').unwrap_or(&text).to_owned()
}

fn escape(key: &Key) -> String {
    percent_encode(key.as_bytes(), ESCAPED).to_string()
}

fn unescape(text: &str) -> Key {
    let bytes: Vec<u8> = percent_decode_str(text).collect();
    Key::from(bytes)
}

impl Intent {
    /// The prefixes between which keys are moved, in the bucket whose top this is; `None` for
    /// what no mount writes.
    pub fn directories(&self, top: &Key) -> Option<(Key, Key)> {
        let (from, to) = (unescape(&self.from), unescape(&self.to));
        let sane = |key: &Key| {
            let bytes = key.as_bytes();
            bytes.len() > 1 && bytes.ends_with(b"/") && !bytes.starts_with(b".bucketfs/")
        };
        let apart = !from.starts_with(&to) && !to.starts_with(&from);
        (sane(&from) && sane(&to) && apart)
            .then(|| (top.join(from.as_bytes()), top.join(to.as_bytes())))
    }

    fn body(&self) -> Result<Body> {
        let text = serde_json::to_vec(self).map_err(|error| {
            Error::new(ErrorKind::InvalidArgument, "a record of a rename").because(error)
        })?;
        Ok(Body::from(text))
    }
}

impl Fs {
    /// The top of the bucket that a key is in.
    pub(super) fn top_of(&self, key: &Key) -> Key {
        let cut = key.as_bytes().iter().position(|byte| *byte == b'/');
        match (self.options.top, cut) {
            (Top::Bucket, _) | (_, None) => Key::empty(),
            (Top::Buckets { .. }, Some(cut)) => Key::new(key.bytes().slice(..=cut)),
        }
    }

    /// This mount as the one that carries out a rename.
    fn intent(&self, from: &Key, to: &Key) -> Intent {
        let pid = std::process::id();
        Intent {
            from: escape(from),
            to: escape(to),
            host: self.options.host.clone(),
            machine: process::machine(),
            pid,
            started: process::start_of(pid).unwrap_or_default(),
            mount: self.renames.mount(),
            began: None,
            beat: 0,
        }
    }

    /// Writes down that a rename begins, unless that is done. A store that lets nobody write there
    /// has its renames without.
    pub(super) async fn write_record(&self, moving: &Moving) -> Result<()> {
        if moving.record.lock().is_some() {
            return Ok(());
        }
        let top = self.top_of(&moving.from);
        let below = |key: &Key| key.strip_prefix(&top).unwrap_or_default();
        let intent = self.intent(&below(&moving.from), &below(&moving.to));
        let key = top.join(format!("{PLACE}{:016x}", clock::random()));
        let options = PutOptions {
            precondition: self.if_absent(),
            ..PutOptions::default()
        };
        let written = match self.driver.put(&key, intent.body()?, options).await {
            // Nobody else has that name: the answer was lost.
            Err(error) if error.kind() == ErrorKind::Exists => self.driver.head(&key).await,
            written => written,
        };
        let info = match written {
            Ok(info) => info,
            Err(error) if !error.retryable() => {
                log::warn!("{:?}: renamed without a record: {error}", moving.from);
                return Ok(());
            }
            Err(error) => {
                // It may have been written, or may be when the store answers again.
                let due = clock::now() + REMOVE_AGAIN;
                self.renames.left.lock().push((key, due));
                return Err(error);
            }
        };
        *moving.record.lock() = Some(Written {
            key,
            etag: info.etag,
            modified: info.modified,
            intent,
        });
        Ok(())
    }

    /// Makes this mount the one that carries out a rename that another one began; `false` when
    /// somebody else was faster.
    pub(super) async fn take_over(&self, moving: &Moving, found: Written) -> Result<bool> {
        let mine = self.intent(&Key::empty(), &Key::empty());
        let intent = Intent {
            from: found.intent.from,
            to: found.intent.to,
            host: found.intent.host,
            began: found.intent.began,
            beat: found.intent.beat + 1,
            ..mine
        };
        let written = self.rewrite(&found.key, &found.etag, &intent).await;
        match written {
            Ok(etag) => {
                *moving.record.lock() = Some(Written {
                    etag,
                    intent,
                    ..found
                });
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::Changed | ErrorKind::NotFound) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn rewrite(&self, key: &Key, etag: &ETag, intent: &Intent) -> Result<ETag> {
        let precondition = match self.capabilities.put_condition {
            Strength::None => Precondition::None,
            Strength::Checked | Strength::Atomic => Precondition::IfMatch(etag.clone()),
        };
        let options = PutOptions {
            precondition,
            ..PutOptions::default()
        };
        let info = self.driver.put(key, intent.body()?, options).await?;
        Ok(info.etag)
    }

    /// Writes a rename's record again and again, so that others see that it goes on.
    pub(super) async fn keep_record(&self, moving: &Moving) -> Infallible {
        loop {
            tokio::time::sleep(BEAT).await;
            let Some(mut written) = moving.record.lock().clone() else {
                continue;
            };
            written.intent.beat += 1;
            written.intent.began.get_or_insert(millis(written.modified));
            let again = self.rewrite(&written.key, &written.etag, &written.intent);
            match again.await {
                Ok(etag) => *moving.record.lock() = Some(Written { etag, ..written }),
                // Whoever has taken it over moves under the same conditions.
                Err(error) => log::debug!("the record of a rename is not written: {error}"),
            }
        }
    }

    /// Whether nobody has taken a rename over: who does makes the copies theirs.
    pub(super) async fn is_own(&self, moving: &Moving) -> Result<bool> {
        let Some(written) = moving.record.lock().clone() else {
            return Ok(true);
        };
        match self.driver.head(&written.key).await {
            Ok(info) => Ok(info.etag == written.etag),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the record of a rename that has ended, however it did: whoever asked for it knows.
    pub(super) async fn remove_record(&self, moving: &Moving) {
        let written = moving.record.lock().take();
        if let Some(written) = written {
            self.remove_record_at(written.key).await;
        }
    }

    async fn remove_record_at(&self, key: Key) {
        if let Err(error) = self.driver.delete(&key, Precondition::None).await {
            log::debug!("the record of a rename is not removed: {error}");
            let due = clock::now() + REMOVE_AGAIN;
            self.renames.left.lock().push((key, due));
        }
    }

    /// Removes the records of renames that could not be removed when these ended: those that are
    /// due, or all.
    pub(super) async fn remove_records(&self, all: bool) {
        let now = clock::now();
        let due: Vec<Key> = {
            let mut left = self.renames.left.lock();
            let due = left.extract_if(.., |(_, due)| all || *due <= now);
            due.map(|(key, _)| key).collect()
        };
        for key in due {
            self.remove_record_at(key).await;
        }
    }

    /// Reads a record that a listing has shown; `None` when it is gone, or none of this version.
    pub(super) async fn read_record(
        &self,
        key: &Key,
        modified: SystemTime,
    ) -> Result<Option<Written>> {
        let found = match self.driver.get(key, GetOptions::default()).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            found => found?.found()?.collect().await?,
        };
        let (info, text) = found;
        Ok(match serde_json::from_slice::<Intent>(&text) {
            Ok(mut intent) => {
                intent.began.get_or_insert(millis(modified));
                Some(Written {
                    key: key.clone(),
                    etag: info.etag,
                    modified,
                    intent,
                })
            }
            Err(error) => {
                log::debug!("{key:?} is no record of a rename: {error}");
                None
            }
        })
    }

    /// Whether this mount carries out the rename of a record just now.
    pub(super) fn is_moving(&self, record: &Key) -> bool {
        let moving = self.renames.moving.lock();
        moving.iter().any(|moving| {
            let written = moving.record.lock();
            written
                .as_ref()
                .is_some_and(|written| written.key == *record)
        })
    }

    /// Whether the writer of a record is at work.
    pub(super) fn writer(&self, intent: &Intent) -> Writer {
        let machine = process::machine();
        if intent.mount == self.renames.mount() {
            Writer::Here
        } else if machine.is_empty() || machine != intent.machine {
            Writer::Unknown
        } else if process::start_of(intent.pid) != Some(intent.started) {
            Writer::Ended
        } else if intent.pid == std::process::id() {
            Writer::Unknown
        } else {
            Writer::Lives
        }
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_back_and_nonsense_is_refused() {
        let intent = |from: &[u8], to: &[u8]| Intent {
            from: escape(&Key::from(from)),
            to: escape(&Key::from(to)),
            host: "h".into(),
            machine: String::new(),
            pid: 1,
            started: 2,
            mount: 3,
            began: None,
            beat: 0,
        };
        for (from, to) in [("d/", "m/"), ("a b%/\u{e9}/", "x/")] {
            let back = intent(from.as_bytes(), to.as_bytes()).directories(&"b/".into());
            let top = Key::from("b/");
            assert_eq!(back, Some((top.join(from), top.join(to))));
        }
        let bytes = intent(b"\xff\n/", b"m/");
        let text = serde_json::to_vec(&bytes).unwrap();
        let back: Intent = serde_json::from_slice(&text).unwrap();
        let both = (Key::from(&b"\xff\n/"[..]), Key::from("m/"));
        assert_eq!(back.directories(&Key::empty()), Some(both));
        for (from, to) in [
            ("", "m/"),
            ("d", "m/"),
            ("d/", "d/e/"),
            (".bucketfs/", "m/"),
        ] {
            let wrong = intent(from.as_bytes(), to.as_bytes());
            assert_eq!(wrong.directories(&Key::empty()), None, "{from} {to}");
        }
    }
}
