//! Searches that never end: what they have seen, how they go on while the store is away, and when they
//! look again for what could not be read.

use super::{
    Event, Out, Search, Step, Stop, hash, is_hidden, is_lasting, is_of_one, say, while_heard,
};
use crate::driver::{Change, ETag, Error, ErrorKind, Match, Result};
use crate::key::Key;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::collections::HashMap;
use std::time::Duration;

/// How often the time is doubled after which a feed is left for what could not be read.
const LONGEST_WAIT: u32 = 6;

/// A version that a search has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// The hash of its etag.
    etag: u64,
    /// Whether it is known whether it matches: else it was told that it could not be read, and it is
    /// read again without telling that again.
    pub is_known: bool,
}

impl Version {
    pub fn known(etag: &ETag) -> Version {
        Version {
            etag: hash(etag),
            is_known: true,
        }
    }

    /// One whose object was there and did not tell its etag.
    fn unread() -> Version {
        Version {
            etag: 0,
            is_known: false,
        }
    }
}

/// The versions that a search has seen, by hashes of their keys.
pub(super) type Seen = HashMap<u64, Version>;

/// What a search that never ends knows.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// What it saw before this look.
    pub before: Seen,
    /// What this look has seen so far.
    pub now: Seen,
}

impl Notes {
    /// Ends a look. After a whole one, what was not there is forgotten.
    pub fn close(&mut self, is_whole: bool) {
        let now = std::mem::take(&mut self.now);
        match is_whole {
            true => self.before = now,
            false => self.before.extend(now),
        }
    }

    /// Whether there is something that could not be read.
    fn lacks_some(&self) -> bool {
        self.before.values().any(|version| !version.is_known)
    }
}

/// Whether an error passes by itself.
fn is_outage(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Timeout
            | ErrorKind::Unreachable
            | ErrorKind::Unavailable
            | ErrorKind::Corrupt
            | ErrorKind::Io
    )
}

/// A search that never ends.
pub(super) struct Follow<'a> {
    search: &'a Search,
    asks: bool,
    interval: Duration,
    out: &'a Out,
    notes: Option<Notes>,
    /// Whether it has looked at all once: before that, what fails may never have worked.
    has_looked: bool,
    /// Whether it was told that the store does not answer.
    is_away: bool,
    /// How often in a row a feed was left to look for what could not be read.
    waits: u32,
}

impl<'a> Follow<'a> {
    pub fn new(search: &'a Search, asks: bool, interval: Duration, out: &'a Out) -> Self {
        Follow {
            search,
            asks,
            interval,
            out,
            notes: Some(Notes::default()),
            has_looked: false,
            is_away: false,
            waits: 0,
        }
    }

    /// Goes on until nobody listens, or for what does not pass by itself.
    pub async fn run(mut self) -> Step<()> {
        loop {
            let pauses = match self.round().await {
                Ok(pauses) => pauses,
                Err(Stop::Failed(error)) if self.has_looked && is_outage(&error) => {
                    if !std::mem::replace(&mut self.is_away, true) {
                        say(self.out, Event::Away(error)).await?;
                    }
                    true
                }
                Err(stop) => return Err(stop),
            };
            if pauses {
                while_heard(self.out, tokio::time::sleep(self.interval)).await?;
            }
        }
    }

    /// Looks once, and then tells what the feed does as long as there is one; whether to pause
    /// before the next look.
    async fn round(&mut self) -> Step<bool> {
        let (search, out) = (self.search, self.out);
        // Before anything is looked at, so that what changes meanwhile is told.
        let feed = match search.driver.capabilities().watch {
            true => while_heard(out, search.driver.watch(&search.prefix))
                .await?
                .ok(),
            false => None,
        };
        search.pass(self.asks, out, &mut self.notes).await?;
        self.has_looked = true;
        if std::mem::take(&mut self.is_away) {
            say(out, Event::Back).await?;
        }
        let Some(mut feed) = feed else {
            return Ok(true);
        };
        let mut notes = self.notes.take().unwrap_or_default();
        let told = self.listen(&mut feed, &mut notes).await;
        self.notes = Some(notes);
        told
    }

    async fn listen(
        &mut self,
        feed: &mut BoxStream<'static, Result<Change>>,
        notes: &mut Notes,
    ) -> Step<bool> {
        let (search, out) = (self.search, self.out);
        // The feed does not tell when what could not be read can be.
        let mut lacks_some = notes.lacks_some();
        if !lacks_some {
            self.waits = 0;
        }
        let patience = self
            .interval
            .saturating_mul(1 << self.waits.min(LONGEST_WAIT));
        let mut again = std::pin::pin!(tokio::time::sleep(patience));
        loop {
            let change = tokio::select! {
                change = feed.next() => change,
                () = &mut again, if lacks_some => {
                    self.waits += 1;
                    return Ok(false);
                }
                () = out.closed() => return Err(Stop::Gone),
            };
            match change {
                Some(Ok(Change::Written(key, _))) => {
                    if !search.retold(&key, &mut notes.before, out).await? {
                        lacks_some = true;
                        self.waits = 0;
                        again.set(tokio::time::sleep(self.interval));
                    }
                }
                Some(Ok(Change::Removed(key))) => drop(notes.before.remove(&hash(&key))),
                Some(Ok(Change::Lost)) => return Ok(false),
                Some(Err(error)) => {
                    log::debug!("the feed broke: {error}");
                    return Ok(true);
                }
                None => return Ok(true),
            }
        }
    }
}

impl Search {
    /// Tells an object that was written, if it matches and that version was not told; whether it
    /// could be read.
    async fn retold(&self, key: &Key, seen: &mut Seen, out: &Out) -> Step<bool> {
        if is_hidden(key, self.shows_buckets) || key.as_bytes().ends_with(b"/") {
            return Ok(true);
        }
        let (etag, text) = match while_heard(out, self.read(key)).await? {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
            Err(error) if is_of_one(&error) => {
                let lasts = is_lasting(&error);
                let before = match lasts {
                    true => None,
                    false => seen.insert(hash(key), Version::unread()),
                };
                if before.is_none_or(|before| before.is_known) {
                    say(out, Event::Skipped(error)).await?;
                }
                return Ok(lasts);
            }
            Err(error) => return Err(error.into()),
        };
        let version = Version::known(&etag);
        let is_new = seen.get(&hash(key)) != Some(&version);
        if let (true, Some(text)) = (is_new, text) {
            let key = key.clone();
            self.say_found(out, Match { key, etag, text }).await?;
        }
        seen.insert(hash(key), version);
        Ok(true)
    }
}
