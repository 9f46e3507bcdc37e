//! Renames of directories that were broken off, by a kill or a crash: another mount completes
//! them, or tells what it left alone.
//!
//! It moves only what was there when the rename began, under the conditions of a rename: what
//! somebody has changed or made since stays where it is, and nothing is replaced. A copy that was
//! made already is known again, and only the original goes.

use super::errno::FsError;
use super::intent::{Moving, PLACE, Writer, name};
use super::movedir::{Copied, WIDTH, vanished};
use super::rename::Moved;
use super::{Fs, Top};
use crate::clock::{self, Instant};
use crate::driver::{
    ETag, Error, ErrorKind, GetOptions, ListEntry, ListRequest, Object, Precondition, Result,
};
use crate::key::Key;
use crate::task;
use bytes::{Buf, Bytes};
use futures::StreamExt;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

/// How long nobody may have written a record before its writer counts as gone, where its process
/// cannot be asked for: several times as long as a writer waits at most.
const SILENT: Duration = Duration::from_secs(300);
/// How often is looked again while there are records.
const AGAIN: Duration = Duration::from_secs(30);
/// Times within one listing may differ by so much though they are of one moment.
const SLACK: Duration = Duration::from_secs(2);
/// How many keys are moved before commits of this mount may go on.
const BATCH: usize = 16 * WIDTH;
/// How many names a report tells.
const NAMED: usize = 5;

/// Why what was written since stays.
const CHANGED: &str = "somebody has changed it since";

/// What has become of a file that was still to be moved.
enum Fate {
    /// It is at its new name as well.
    Copied(ListEntry, Key),
    /// It is at its new name only.
    Moved,
    /// It stays, for this reason, and nobody may think that it was moved.
    Stays(Key, String),
    /// There is nothing to do and to tell.
    Nothing,
}

/// What a broken-off rename left, and why.
type Left = Vec<(Key, String)>;

/// Since when which version of a record is seen here.
type Seen = HashMap<Key, (ETag, Instant)>;

impl Fs {
    /// Looks for renames of directories that were broken off, and completes them in the
    /// background.
    pub async fn resume_renames(self: &Arc<Self>) {
        let none = self.options.read_only || self.capabilities.rename;
        if none || self.options.top != Top::Bucket {
            return;
        }
        match self.records().await {
            Ok(records) if records.is_empty() => {}
            Ok(_) => drop(task::spawn(complete(Arc::downgrade(self)))),
            Err(error) => log::debug!("records of renames cannot be listed: {error}"),
        }
    }

    /// The keys of all records, with the times at which the store took them.
    async fn records(&self) -> Result<Vec<(Key, SystemTime)>> {
        let mut records = Vec::new();
        let mut request = ListRequest::flat(&Key::from(PLACE));
        loop {
            let page = self.driver.list(request.clone()).await?;
            let told = page.entries.into_iter();
            records.extend(told.filter_map(|entry| Some((entry.key, entry.object?.modified))));
            request.token = page.next;
            if request.token.is_none() {
                return Ok(records);
            }
        }
    }

    /// Completes a rename whose writer is gone.
    async fn complete_record(
        &self,
        key: &Key,
        modified: SystemTime,
        seen: &mut Seen,
    ) -> Result<()> {
        let Some(found) = self.read_record(key, modified).await? else {
            return Ok(());
        };
        let now = clock::now();
        let known = seen
            .entry(key.clone())
            .or_insert_with(|| (found.etag.clone(), now));
        if known.0 != found.etag {
            *known = (found.etag.clone(), now);
        }
        let silent = known.1 + SILENT <= now;
        let gone = match self.writer(&found.intent) {
            Writer::Ended => true,
            Writer::Unknown => silent,
            // One that this mount took over and could not complete yet.
            Writer::Here => !self.is_moving(key),
            Writer::Lives => false,
        };
        let (Some((from, to)), true) = (found.intent.directories(&Key::empty()), gone) else {
            return Ok(());
        };
        let began = Duration::from_millis(found.intent.began.unwrap_or_default());
        let before = SystemTime::UNIX_EPOCH + began + SLACK;
        let host = found.intent.host.clone();
        log::info!("completing the rename of {from:?} to {to:?} that {host} began");
        let shown = self
            .renames
            .begin(&from, &to, Some(host.clone()), self.mark());
        let moving = &shown.moving;
        if !self.take_over(moving, found).await? {
            return Ok(());
        }
        let completed = tokio::select! {
            biased;
            completed = self.complete_moving(moving, before) => completed,
            never = self.keep_record(moving) => match never {},
        };
        self.listing.forget_below(&from);
        self.listing.forget_below(&to);
        let left = completed?;
        self.remove_record(moving).await;
        let moved = moving.moved.load(Ordering::Relaxed);
        log::info!("the rename of {from:?} to {to:?} is complete: {moved} keys were left to move");
        if !left.is_empty() {
            let named = left.iter().take(NAMED);
            let named = named.map(|(key, why)| format!("{key:?} ({why})"));
            let named: Vec<String> = named.collect();
            let error = FsError::new(
                libc::EEXIST,
                format!(
                    "the rename of {from:?} to {to:?} that {host} began was broken off; it is complete but for {} that stay at their old names: {}",
                    left.len(),
                    named.join(", ")
                ),
            );
            self.remember("rename", name(&from), &error);
        }
        Ok(())
    }

    /// Moves what is left to move of what was there before a time. Gives what stays.
    async fn complete_moving(&self, moving: &Moving, before: SystemTime) -> Result<Left> {
        let mut left = Left::new();
        let mut markers = Vec::new();
        let mut request = ListRequest::flat(&moving.from);
        loop {
            let page = self.driver.list(request.clone()).await?;
            moving
                .listed
                .fetch_add(page.entries.len() as u64, Ordering::Relaxed);
            let (more, files): (Vec<_>, Vec<_>) = page
                .entries
                .into_iter()
                .partition(|entry| entry.key.as_bytes().ends_with(b"/"));
            markers.extend(more);
            let mut files = files.into_iter().peekable();
            while files.peek().is_some() {
                let batch: Vec<ListEntry> = files.by_ref().take(BATCH).collect();
                // No commit of this mount goes to a key that is being moved.
                let _alone = self.names_alone().await;
                left.extend(self.finish_files(batch, moving, before).await?);
            }
            request.token = page.next;
            if request.token.is_none() {
                break;
            }
        }
        markers.sort_by(|a, b| b.key.cmp(&a.key));
        for marker in markers {
            let _alone = self.names_alone().await;
            if left.iter().any(|(key, _)| key.starts_with(&marker.key)) {
                continue;
            }
            left.extend(self.finish_marker(&marker, moving, before).await?);
        }
        Ok(left)
    }

    /// Moves files, in the order of their keys. Gives those that stay.
    async fn finish_files(
        &self,
        files: Vec<ListEntry>,
        moving: &Moving,
        before: SystemTime,
    ) -> Result<Left> {
        let there = self.copies_of(&files, moving).await?;
        let there = &there;
        let mut finished = futures::stream::iter(files)
            .map(|entry| self.finish_copy(entry, moving, before, there))
            .buffer_unordered(WIDTH);
        let mut left = Left::new();
        let mut copied = Vec::new();
        while let Some(fate) = finished.next().await {
            match fate? {
                Fate::Copied(entry, to) => copied.push((entry, to, Copied::There(None))),
                Fate::Moved => drop(moving.moved.fetch_add(1, Ordering::Relaxed)),
                Fate::Stays(key, why) => left.push((key, why)),
                Fate::Nothing => {}
            }
        }
        drop(finished);
        copied.sort_by(|(a, _, _), (b, _, _)| a.key.cmp(&b.key));
        let removed = match self.deletes_many() {
            true => self.remove_sources(&moving.from, &copied).await,
            false => {
                let mut removed = Vec::with_capacity(copied.len());
                for (entry, _, _) in &copied {
                    let changed = || Error::new(ErrorKind::Changed, CHANGED);
                    removed.push(match self.remove_source(entry).await {
                        Ok(true) => Ok(()),
                        Ok(false) => Err(changed()),
                        Err(error) => Err(error),
                    });
                }
                removed
            }
        };
        // After a request that failed there are no more answers.
        for (entry, _, _) in copied.iter().skip(removed.len()) {
            left.push((entry.key.clone(), "it could not be deleted".into()));
        }
        for ((entry, _, _), removed) in copied.iter().zip(removed) {
            match removed {
                Ok(()) => drop(moving.moved.fetch_add(1, Ordering::Relaxed)),
                Err(error) if vanished(&error) => {
                    if let Fate::Stays(key, why) = self.still_there(entry, CHANGED).await? {
                        left.push((key, why));
                    }
                }
                Err(error) if error.retryable() => return Err(error),
                Err(error) => left.push((entry.key.clone(), error.to_string())),
            }
        }
        Ok(left)
    }

    /// The versions that are at the new names of files, as far as one page of a listing tells.
    async fn copies_of(&self, files: &[ListEntry], moving: &Moving) -> Result<HashMap<Key, ETag>> {
        let first = files
            .first()
            .and_then(|entry| entry.key.strip_prefix(&moving.from));
        let Some(first) = first else {
            return Ok(HashMap::new());
        };
        let before = first.before().filter(|before| !before.is_empty());
        let request = ListRequest {
            start_after: before.map(|before| moving.to.join(before.as_bytes())),
            ..ListRequest::flat(&moving.to)
        };
        let page = self.driver.list(request).await?;
        let there = page.entries.into_iter();
        let there = there.filter_map(|entry| Some((entry.key, entry.object?.etag)));
        Ok(there.collect())
    }

    /// Sees that one file is at its new name.
    async fn finish_copy(
        &self,
        entry: ListEntry,
        moving: &Moving,
        before: SystemTime,
        there: &HashMap<Key, ETag>,
    ) -> Result<Fate> {
        let Some(rest) = entry.key.strip_prefix(&moving.from) else {
            return Ok(Fate::Nothing);
        };
        let to = moving.to.join(rest.as_bytes());
        let stays = |why: &str| Ok(Fate::Stays(entry.key.clone(), why.to_owned()));
        let info = entry.object.as_ref();
        if info.is_none_or(|info| info.modified > before) {
            // Its older version may have been copied.
            return match self.driver.head(&to).await {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(Fate::Nothing),
                Err(error) => Err(error),
                Ok(_) => stays(CHANGED),
            };
        }
        let etag = info.map(|info| &info.etag);
        if etag.is_some() && there.get(&to) == etag {
            return Ok(Fate::Copied(entry, to));
        }
        match self.copy_key(&entry, &to, moving.mark).await {
            Ok(Some(Copied::Moved(_))) => Ok(Fate::Moved),
            Ok(Some(Copied::There(_))) => Ok(Fate::Copied(entry, to)),
            Ok(None) => self.still_there(&entry, CHANGED).await,
            Err(error) if vanished(&error) => self.still_there(&entry, CHANGED).await,
            Err(error) if error.kind() == ErrorKind::Exists => {
                match self.have_same_bytes(&entry.key, &to).await? {
                    true => Ok(Fate::Copied(entry, to)),
                    false => stays("there is another file at its new name"),
                }
            }
            Err(error) if !error.retryable() => stays(&error.to_string()),
            Err(error) => Err(error),
        }
    }

    /// What stays, unless somebody has removed it.
    async fn still_there(&self, entry: &ListEntry, why: &str) -> Result<Fate> {
        match self.driver.head(&entry.key).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Fate::Nothing),
            Err(error) => Err(error),
            Ok(_) => Ok(Fate::Stays(entry.key.clone(), why.to_owned())),
        }
    }

    /// Moves a directory's marker; one that is there already stays.
    async fn finish_marker(
        &self,
        entry: &ListEntry,
        moving: &Moving,
        before: SystemTime,
    ) -> Result<Option<(Key, String)>> {
        let (Some(rest), Some(info)) = (entry.key.strip_prefix(&moving.from), &entry.object) else {
            return Ok(None);
        };
        if info.modified > before {
            return Ok(None);
        }
        let to = moving.to.join(rest.as_bytes());
        match self.copy_aside(&entry.key, &to, &info.etag).await {
            Ok(_) => {}
            Err(Moved::Destination) if info.size == Some(0) => {}
            Err(Moved::Destination) => {
                let why = "there is another file at its new name".to_owned();
                return Ok(Some((entry.key.clone(), why)));
            }
            Err(Moved::Source) => return Ok(None),
            Err(Moved::Failed(error)) => return Err(error),
        }
        self.driver.delete(&entry.key, Precondition::None).await?;
        moving.moved.fetch_add(1, Ordering::Relaxed);
        Ok(None)
    }

    /// Whether two objects hold the same bytes, where neither etags nor commit ids tell.
    async fn have_same_bytes(&self, a: &Key, b: &Key) -> Result<bool> {
        let read = |key: &Key| {
            let key = key.clone();
            async move {
                let found = self.driver.get(&key, GetOptions::default()).await?;
                found.found()
            }
        };
        let mut a = read(a).await?;
        let mut b = read(b).await?;
        if a.range != b.range {
            return Ok(false);
        }
        let (mut left, mut right) = (Bytes::new(), Bytes::new());
        loop {
            let more = fill(&mut a, &mut left).await? & fill(&mut b, &mut right).await?;
            let length = left.len().min(right.len());
            if left[..length] != right[..length] {
                return Ok(false);
            }
            left.advance(length);
            right.advance(length);
            if !more {
                return Ok(left.is_empty() && right.is_empty());
            }
        }
    }
}

/// Reads on where nothing is left; `false` at the end.
async fn fill(object: &mut Object, piece: &mut Bytes) -> Result<bool> {
    while piece.is_empty() {
        match object.body.next().await {
            Some(next) => *piece = next?,
            None => return Ok(false),
        }
    }
    Ok(true)
}

/// Completes what was broken off, until no record is left or the filesystem is gone.
async fn complete(fs: Weak<Fs>) {
    let mut seen = Seen::new();
    loop {
        {
            let Some(fs) = fs.upgrade() else {
                return;
            };
            let told: std::result::Result<bool, Error> = async {
                let records = fs.records().await?;
                for (key, modified) in &records {
                    if let Err(error) = fs.complete_record(key, *modified, &mut seen).await {
                        log::warn!("a rename that was broken off is not completed yet: {error}");
                    }
                }
                Ok(records.is_empty())
            }
            .await;
            if matches!(told, Ok(true)) {
                return;
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}
