//! Finding documents: by asking the store where it can look for them, else by looking at each object.

mod follow;
#[cfg(test)]
mod tests;

use crate::check::HIDDEN;
use crate::driver::{
    Driver, ETag, Error, ErrorKind, Filter, GetOptions, ListEntry, ListRequest, Match, ObjectInfo,
    Precondition, Query, Result,
};
use crate::key::Key;
use crate::task;
use bytes::BytesMut;
use follow::{Follow, Notes, Seen, Version};
use futures::StreamExt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

/// Larger objects are no documents. Every store's documents are smaller.
pub const LARGEST: u64 = 64 << 20;
/// How many objects are read at once, and how much of them is in memory, in KiB.
const AT_ONCE: usize = 16;
const ROOM: u32 = 128 << 10;
/// How many matches one page asks for.
const PAGE: usize = 1000;
/// How many events wait for who reads them, with texts and without.
const AHEAD: usize = 16;
const AHEAD_BARE: usize = 256;

/// What a search tells.
#[derive(Debug)]
pub enum Event {
    /// A document that matches.
    Found(Match),
    /// So many objects more were looked at, as far as it was done here.
    Looked(u64),
    /// An object could not be looked at; the search goes on.
    Skipped(Error),
    /// The store does not answer any more; a search that never ends looks again by and by.
    Away(Error),
    /// The store answers again.
    Back,
}

/// What is to be found, and where.
#[derive(Clone, Debug)]
pub struct Search {
    /// The store.
    pub driver: Arc<dyn Driver>,
    /// Whether its top shows buckets.
    pub shows_buckets: bool,
    /// Only keys that begin with this.
    pub prefix: Key,
    /// What documents must hold.
    pub filter: Filter,
    /// Whether the texts of matches are told.
    pub texts: bool,
}

type Out = mpsc::Sender<Result<Event>>;

/// Why a search ends before it is through.
enum Stop {
    /// Nobody listens any more.
    Gone,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

type Step<T> = std::result::Result<T, Stop>;

/// An object that was looked at, and its room in memory until it is told.
struct Looked<'a> {
    key: Key,
    etag: ETag,
    outcome: Result<Option<Match>>,
    _place: Option<SemaphorePermit<'a>>,
}

/// How a search goes about it.
enum Manner {
    /// The store looks where it can.
    Ask,
    /// Each object is looked at here.
    Scan,
    /// Never ends.
    Follow(Duration),
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Whether a key is of what bucketfs keeps for itself.
fn is_hidden(key: &Key, shows_buckets: bool) -> bool {
    let bytes = key.as_bytes();
    let inside = match shows_buckets {
        false => bytes,
        true => match bytes.iter().position(|byte| *byte == b'/') {
            Some(cut) => &bytes[cut + 1..],
            None => return false,
        },
    };
    inside.starts_with(HIDDEN.as_bytes())
}

/// Whether an object is no link or other special file, as far as was told.
fn is_file(info: &ObjectInfo) -> bool {
    let mode = info.attributes.as_ref().and_then(|known| known.mode);
    matches!(mode.unwrap_or(0) & libc::S_IFMT, 0 | libc::S_IFREG)
}

/// Whether an error is of one object, and the next may well be read.
fn is_of_one(error: &Error) -> bool {
    !matches!(
        error.kind(),
        ErrorKind::Timeout
            | ErrorKind::Unreachable
            | ErrorKind::Unavailable
            | ErrorKind::Unauthenticated
    )
}

/// Whether an object will be no other when its version is read again.
fn is_lasting(error: &Error) -> bool {
    error.kind() == ErrorKind::TooLarge
}

impl Search {
    /// Tells what matches now, and then ends. The search ends, too, when nobody listens any more.
    pub fn begin(self) -> mpsc::Receiver<Result<Event>> {
        self.start(Manner::Ask)
    }

    /// As [`Search::begin`], without asking the store to look.
    pub fn scan(self) -> mpsc::Receiver<Result<Event>> {
        self.start(Manner::Scan)
    }

    /// Tells what matches now, and from then on each new version that does: by the store's change
    /// feed, or by looking again after each interval. Once the store has answered it goes on while
    /// that is away, and it looks again for what could not be read.
    pub fn follow(self, interval: Duration) -> mpsc::Receiver<Result<Event>> {
        self.start(Manner::Follow(interval))
    }

    fn start(self, manner: Manner) -> mpsc::Receiver<Result<Event>> {
        let (out, events) = mpsc::channel(match self.texts {
            true => AHEAD,
            false => AHEAD_BARE,
        });
        task::spawn(async move {
            let asks = self.driver.capabilities().find;
            let ended = match manner {
                Manner::Ask => self.pass(asks, &out, &mut None).await,
                Manner::Scan => self.pass(false, &out, &mut None).await,
                Manner::Follow(interval) => Follow::new(&self, asks, interval, &out).run().await,
            };
            if let Err(Stop::Failed(error)) = ended {
                let _ = out.send(Err(error)).await;
            }
        });
        events
    }

    /// Looks once. Versions that were seen before are not told again, where that is noted.
    async fn pass(&self, asks: bool, out: &Out, notes: &mut Option<Notes>) -> Step<()> {
        let done = match asks {
            true => self.ask(out, notes).await,
            false => self.look_at_all(out, notes).await,
        };
        if let Some(notes) = notes {
            notes.close(done.is_ok());
        }
        done
    }

    async fn ask(&self, out: &Out, notes: &mut Option<Notes>) -> Step<()> {
        let mut query = Query {
            prefix: self.prefix.clone(),
            filter: self.filter.clone(),
            token: None,
            limit: PAGE,
        };
        loop {
            let page = self.driver.find(query.clone());
            let page = match while_heard(out, page).await? {
                // It cannot just now.
                Err(error) if error.kind() == ErrorKind::Unsupported && query.token.is_none() => {
                    log::debug!("objects are looked at here: {error}");
                    return self.look_at_all(out, notes).await;
                }
                page => page?,
            };
            for found in page.found {
                if is_hidden(&found.key, self.shows_buckets) {
                    continue;
                }
                let (name, version) = (hash(&found.key), Version::known(&found.etag));
                let before = notes.as_ref().and_then(|notes| notes.before.get(&name));
                if before != Some(&version) {
                    self.say_found(out, found).await?;
                }
                if let Some(notes) = notes {
                    notes.now.insert(name, version);
                }
            }
            query.token = page.next;
            if query.token.is_none() {
                return Ok(());
            }
        }
    }

    async fn look_at_all(&self, out: &Out, notes: &mut Option<Notes>) -> Step<()> {
        let (before, mut now) = match notes {
            Some(Notes { before, now }) => (Some(&*before), Some(now)),
            None => (None, None),
        };
        let room = Semaphore::new(ROOM as usize);
        let mut request = ListRequest::flat(&self.prefix);
        loop {
            let page = while_heard(out, self.driver.list(request.clone())).await??;
            let mut looks = futures::stream::iter(page.entries)
                .filter(|entry| futures::future::ready(self.is_wanted(entry)))
                .map(|entry| self.look(entry, before, &room))
                .buffered(AT_ONCE);
            while let Some(looked) = while_heard(out, looks.next()).await? {
                let Looked {
                    key,
                    etag,
                    outcome,
                    _place,
                } = looked;
                let name = hash(&key);
                let mut version = Version::known(&etag);
                match outcome {
                    Ok(Some(found)) => self.say_found(out, found).await?,
                    Ok(None) => {}
                    Err(error) if is_of_one(&error) => {
                        version.is_known = is_lasting(&error);
                        let told = before.and_then(|before| before.get(&name));
                        if told.is_none_or(|told| told.is_known) {
                            say(out, Event::Skipped(error)).await?;
                        }
                    }
                    Err(error) => return Err(error.into()),
                }
                if let Some(now) = &mut now {
                    now.insert(name, version);
                }
                say(out, Event::Looked(1)).await?;
            }
            drop(looks);
            request.token = page.next;
            if request.token.is_none() {
                return Ok(());
            }
        }
    }

    /// Whether an entry can be a document: a file that is not empty.
    fn is_wanted(&self, entry: &ListEntry) -> bool {
        let Some(info) = &entry.object else {
            return false;
        };
        is_file(info)
            && info.size != Some(0)
            && !entry.key.as_bytes().ends_with(b"/")
            && !is_hidden(&entry.key, self.shows_buckets)
    }

    /// Looks at one object of a listing, unless that version was seen; gives the version that it
    /// was then.
    async fn look<'a>(
        &self,
        entry: ListEntry,
        before: Option<&Seen>,
        room: &'a Semaphore,
    ) -> Looked<'a> {
        let key = entry.key;
        let (size, listed) = match entry.object {
            Some(info) => (info.size, info.etag),
            None => (None, ETag::new("")),
        };
        let seen = before.and_then(|before| before.get(&hash(&key)));
        if seen == Some(&Version::known(&listed)) {
            return Looked {
                key,
                etag: listed,
                outcome: Ok(None),
                _place: None,
            };
        }
        // In the order of the listing, so that the one whose turn it is never waits for others.
        let kib = size.unwrap_or(LARGEST).min(LARGEST).div_ceil(1024) as u32;
        let place = room.acquire_many(kib.min(ROOM)).await.ok();
        let (etag, outcome) = match self.read(&key).await {
            Ok((etag, text)) => {
                let found = text.map(|text| Match {
                    key: key.clone(),
                    etag: etag.clone(),
                    text,
                });
                (etag, Ok(found))
            }
            // It went meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => (listed, Ok(None)),
            Err(error) => (listed, Err(error)),
        };
        Looked {
            key,
            etag,
            outcome,
            _place: place,
        }
    }

    /// Whether the object of a key is a document that matches, by one request.
    pub async fn holds(&self, key: &Key) -> Result<bool> {
        let is_file = key.starts_with(&self.prefix) && !key.as_bytes().ends_with(b"/");
        if !is_file || is_hidden(key, self.shows_buckets) {
            return Ok(false);
        }
        match self.read(key).await {
            Ok((_, text)) => Ok(text.is_some()),
            // Nothing can be there.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::InvalidKey | ErrorKind::NameTooLong
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The version of an object, and its text if that matches. No more is read than has to be.
    async fn read(&self, key: &Key) -> Result<(ETag, Option<bytes::Bytes>)> {
        let object = self.driver.get(key, GetOptions::default()).await?;
        let mut object = object.found()?;
        let etag = object.info.etag.clone();
        if !is_file(&object.info) {
            return Ok((etag, None));
        }
        let mut text = BytesMut::new();
        while let Some(piece) = object.body.next().await {
            text.extend_from_slice(&piece?);
            if !self.filter.may_begin(&text) {
                return Ok((etag, None));
            }
            if text.len() as u64 > LARGEST {
                let why = format!(
                    "it was not looked at: it is larger than {} MiB",
                    LARGEST >> 20
                );
                return Err(Error::new(ErrorKind::TooLarge, why).during("find").on(key));
            }
        }
        let text = self.filter.matches(&text).then(|| text.freeze());
        Ok((etag, text))
    }

    async fn say_found(&self, out: &Out, mut found: Match) -> Step<()> {
        if !self.texts {
            found.text = bytes::Bytes::new();
        }
        say(out, Event::Found(found)).await
    }
}

async fn say(out: &Out, event: Event) -> Step<()> {
    out.send(Ok(event)).await.map_err(|_| Stop::Gone)
}

/// Waits for something, as long as anybody listens.
async fn while_heard<T>(out: &Out, future: impl Future<Output = T>) -> Step<T> {
    tokio::select! {
        done = future => Ok(done),
        () = out.closed() => Err(Stop::Gone),
    }
}

/// Removes the version of a document that was found; another one stays, with [`ErrorKind::Changed`].
/// In a store that takes no condition there it is looked at before, if `unsafely`, and stays else.
pub async fn remove(driver: &dyn Driver, key: &Key, etag: &ETag, unsafely: bool) -> Result<()> {
    let condition = Precondition::IfMatch(etag.clone());
    let refused = match driver.delete(key, condition).await {
        Err(error) if error.kind() == ErrorKind::Unsupported => error,
        removed => return removed,
    };
    if !unsafely {
        let why = "this store cannot remove only the version that was found; with --unsafe-writes it is looked at again, and then removed";
        return Err(Error::new(ErrorKind::Unsupported, why)
            .during("delete")
            .on(key)
            .because(refused.message().to_owned()));
    }
    if driver.head(key).await?.etag != *etag {
        let why = "somebody else changed the document";
        return Err(Error::new(ErrorKind::Changed, why).during("delete").on(key));
    }
    driver.delete(key, Precondition::None).await
}
