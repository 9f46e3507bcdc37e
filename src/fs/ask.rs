//! Questions to the store about names, each with as much of what is wanted next as a round trip
//! holds.

use super::attr::{Attr, Kind};
use super::dir::DirEntry;
use super::errno::{FsError, FsResult};
use super::inode::Inode;
use super::lookup::LOOK_AHEAD;
use super::target::{Form, Found, Target};
use super::{Fs, StatAttrs};
use crate::cache::content::Version;
use crate::cache::listing::{Flat, Known, Marker, Ticket};
use crate::clock;
use crate::driver::{
    AttributeSupport, Attributes, ErrorKind, GetOptions, ListRequest, ObjectInfo, Result,
};
use crate::key::Key;
use crate::locks::looks_like_lock;
use bytes::Bytes;
use futures::StreamExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI8, Ordering};
use std::time::Duration;

/// How much of an object rides on the question whether it is there, in bytes. Files up to this
/// size need no other request to be read.
pub(super) const SMALL: u64 = 64 << 10;

/// How many objects of a directory are asked for their attributes at a time.
const ASKING: usize = 32;

/// How long the names of a directory are asked for one by one after its first page did not tell
/// the one that was wanted, and only for its first key after a page did not tell all of them.
const LARGE: Duration = Duration::from_secs(60);

/// A guess that is made as long as it comes true often enough: that what is looked up is opened,
/// or that what is opened is copied.
#[derive(Debug)]
pub(super) struct Guess(AtomicI8);

impl Guess {
    const MOST: i8 = 16;

    /// One that is worth a try.
    pub fn likely() -> Self {
        Guess(AtomicI8::new(Self::MOST / 2))
    }

    /// One that has to come true before it is made.
    pub fn unlikely() -> Self {
        Guess(AtomicI8::new(0))
    }

    /// Whether it would be made.
    pub fn is_made(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Stakes so much on it, if it is worth that; one that comes true gives back two.
    pub fn try_take(&self, stake: i8) -> bool {
        let less = |left: i8| (left >= stake).then(|| left - stake);
        let order = Ordering::Relaxed;
        self.0.fetch_update(order, order, less).is_ok()
    }

    /// Notes that it has come true, or would have.
    pub fn came_true(&self) {
        let more = |left: i8| Some((left + 2).min(Self::MOST));
        let order = Ordering::Relaxed;
        let _ = self.0.fetch_update(order, order, more);
    }
}

impl Fs {
    /// Whether a lookup has just told the version that an open wants; counts once.
    pub(super) fn take_look_ahead(&self, inode: &Inode) -> bool {
        let (taken, expired) = {
            let mut state = inode.state();
            (state.file.looked_ahead.take(), state.expired)
        };
        if taken.is_some() {
            self.look_aheads.came_true();
        }
        let acquired = *self.acquired.lock();
        taken.is_some_and(|at| {
            at + LOOK_AHEAD > clock::now()
                && acquired.is_none_or(|acquired| at >= acquired)
                // Something was heard since.
                && expired.is_none_or(|expired| at >= expired)
        })
    }

    /// Asks the store what a name is, again if something that was heard meanwhile makes the answer
    /// doubtful.
    pub(super) async fn ask(
        &self,
        prefix: &Key,
        target: &Target,
        name: &[u8],
    ) -> FsResult<(Known, Ticket)> {
        self.ask_how(prefix, target, name, false).await
    }

    /// The same for a directory of which a listing told the name only: its marker is asked for.
    pub(super) async fn ask_for_marker(
        &self,
        prefix: &Key,
        target: &Target,
        name: &[u8],
    ) -> FsResult<(Known, Ticket)> {
        self.ask_how(prefix, target, name, true).await
    }

    async fn ask_how(
        &self,
        prefix: &Key,
        target: &Target,
        name: &[u8],
        itself: bool,
    ) -> FsResult<(Known, Ticket)> {
        let plain = target.form == Form::Plain;
        if plain && self.capabilities.utf8_keys && std::str::from_utf8(&target.component).is_err() {
            // No key is called so: the store could only refuse the question.
            return Ok((Known::default(), self.listing.begin(clock::now())));
        }
        let mut again = 3;
        loop {
            if !itself
                && self.lists_instead(prefix, target, name)
                && let Some(told) = self.ask_for_all(prefix, target).await
            {
                return Ok(told);
            }
            let ticket = self.listing.begin(clock::now());
            let known = self.ask_once(prefix, target, name, &ticket).await?;
            if again == 0 || !self.listing.is_outdated(prefix, &ticket) {
                if target.form != Form::Chunk {
                    self.listing
                        .learned(prefix, &target.component, known.clone(), &ticket);
                }
                return Ok((known, ticket));
            }
            again -= 1;
        }
    }

    /// Whether attributes have to be asked for that nobody told of what was found in a directory.
    pub(super) fn must_ask(&self, prefix: &Key, target: &Target, found: &Found) -> bool {
        let (untold, modified) = match found {
            _ if target.form == Form::Chunk => (false, None),
            Found::Nothing | Found::Directory(Marker::Absent) => (false, None),
            Found::Directory(Marker::Unknown) => (true, None),
            Found::Directory(Marker::Present(info)) | Found::Object(info) => {
                (info.attributes.is_none(), Some(info.modified))
            }
        };
        let expected = || match found {
            Found::Directory(_) => {
                let key = target.directory_prefix(prefix);
                self.driver.has_attributes(&key, modified)
            }
            Found::Object(_) | Found::Nothing => {
                let key = target.object_key(prefix);
                self.driver.has_attributes(&key, modified)
            }
        };
        untold
            && match (self.capabilities.attributes, self.options.stat_attrs) {
                (AttributeSupport::None, _) | (_, StatAttrs::None) => false,
                (AttributeSupport::Listed, _) | (_, StatAttrs::Full) => true,
                (AttributeSupport::Object, StatAttrs::Lazy) => expected(),
            }
    }

    /// Whether a listing found a known inode without attributes, and does not vouch for those that
    /// are known: somebody has changed them.
    pub(super) fn is_doubtful(&self, directory: &Inode, name: &[u8], found: &Found) -> bool {
        let (Found::Directory(Marker::Present(info)) | Found::Object(info)) = found else {
            return false;
        };
        info.attributes.is_none()
            && self.capabilities.attributes == AttributeSupport::Object
            && self.options.stat_attrs != StatAttrs::None
            && directory.child(name).is_some_and(|child| {
                let state = child.state();
                let same = child.kind == Kind::Directory || state.is_version(&info.etag);
                let some = |known: &Arc<Attributes>| known.exceed_listings();
                same && !state.is_local()
                    && state.attributes.as_ref().is_some_and(some)
                    && !state.vouches(info.modified)
            })
    }

    /// Asks for the attributes of what was found under a name.
    pub(super) async fn ask_attributes(
        &self,
        prefix: &Key,
        target: &Target,
        name: &[u8],
        mut known: Known,
    ) -> FsResult<(Known, Ticket)> {
        let found = target.choose(&known);
        if self.capabilities.attributes == AttributeSupport::Listed {
            return self.ask_for_marker(prefix, target, name).await;
        }
        let ticket = self.listing.begin(clock::now());
        let key = match &found {
            Found::Directory(_) => target.directory_prefix(prefix),
            Found::Object(_) | Found::Nothing => target.object_key(prefix),
        };
        let told = match self.driver.head(&key).await {
            Ok(info) => Some(Arc::new(info)),
            // Who may not look is shown what a listing tells.
            Err(error) if error.kind() == ErrorKind::Denied => match &found {
                Found::Object(info) | Found::Directory(Marker::Present(info)) => {
                    let mut info = ObjectInfo::clone(info);
                    info.attributes = Some(Arc::default());
                    Some(Arc::new(info))
                }
                Found::Directory(_) | Found::Nothing => None,
            },
            Err(error) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::InvalidKey => None,
                _ => return Err(error.into()),
            },
        };
        match (found, told) {
            (Found::Directory(_), told) => {
                known.marker = told.map_or(Marker::Absent, Marker::Present);
            }
            (_, Some(info)) => known.object = Some(info),
            // It has just gone.
            (_, None) => return self.ask(prefix, target, name).await,
        }
        self.listing
            .learned(prefix, &target.component, known.clone(), &ticket);
        Ok((known, ticket))
    }

    /// Asks for what listings did not tell of entries of a directory that are about to be shown.
    pub(super) async fn complete(&self, directory: &Inode, entries: &mut [DirEntry]) {
        let prefix = directory.key();
        let open = |target: &Target, found: &Found, name: &[u8]| {
            self.must_ask(&prefix, target, found) || self.is_doubtful(directory, name, found)
        };
        let unknown: Vec<(usize, Target, Known)> = entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| {
                let (known, ..) = entry.known.as_ref()?;
                let target = entry.target()?;
                let found = target.choose(known);
                open(&target, &found, &entry.name).then(|| (index, target, known.clone()))
            })
            .collect();
        let names: Vec<Bytes> = entries.iter().map(|entry| entry.name.clone()).collect();
        let told: Vec<_> = futures::stream::iter(unknown)
            .map(|(index, target, known)| {
                let (prefix, name, open) = (&prefix, &names[index], &open);
                async move {
                    let before = self.listing.mark();
                    let now = self.listing.get(prefix, &target.component);
                    let told = match now {
                        // Somebody else has asked meanwhile.
                        Some((now, since)) if !open(&target, &target.choose(&now), name) => {
                            Some((now, since, before))
                        }
                        _ => {
                            let asked = self.ask_attributes(prefix, &target, name, known).await;
                            let asked = asked.ok();
                            asked.map(|(known, ticket)| (known, ticket.since(), ticket.mark()))
                        }
                    };
                    (index, target, told)
                }
            })
            .buffer_unordered(ASKING)
            .collect()
            .await;
        for (index, target, told) in told {
            let Some((known, since, mark)) = told else {
                continue;
            };
            if let Found::Object(info) = target.choose(&known) {
                entries[index].kind = Attr::of_object(0, &info, &self.options).kind;
            }
            entries[index].known = Some((known, since, mark));
        }
    }

    /// Whether a listing of the directory is to tell what a name is. The second name that is asked
    /// for is rarely the last one.
    pub(super) fn lists_instead(&self, prefix: &Key, target: &Target, name: &[u8]) -> bool {
        let now = clock::now();
        self.capabilities.remote
            // A listing tells less than a head where all attributes are wanted.
            && self.options.stat_attrs != StatAttrs::Full
            && target.form != Form::Chunk
            && !looks_like_lock(name)
            && self.listing.asked(prefix, now, self.metadata_ttl(), LARGE)
    }

    /// Asks for a directory's first names, and says what they tell of one: nothing where it lies
    /// behind them. A refusal is left to the question for the name itself.
    pub(super) async fn ask_for_all(
        &self,
        prefix: &Key,
        target: &Target,
    ) -> Option<(Known, Ticket)> {
        let mut ticket = self.listing.begin(clock::now());
        let page = self
            .driver
            .list(ListRequest::directory(prefix))
            .await
            .ok()?;
        let complete = page.next.is_none();
        self.listing.page(prefix, &page, &mut ticket);
        let told = self.listing.get(prefix, &target.component);
        let told = told.filter(|(_, since)| *since >= ticket.since());
        let now = clock::now();
        // What takes so long to come is stale before the next names are wanted.
        let slow = ticket.since() + self.metadata_ttl() <= now;
        if slow || (told.is_none() && !complete) {
            self.listing.is_large(prefix, now);
        }
        told.map(|(known, _)| (known, ticket))
    }

    /// Asks for the object of a key, or that there is none. What is looked up is often read next:
    /// over a network the beginning of a small file rides on the answer.
    async fn ask_for_object(&self, key: &Key, name: &[u8]) -> Result<Option<Arc<ObjectInfo>>> {
        let guess = self.capabilities.remote && self.capabilities.range && !looks_like_lock(name);
        let found = if guess && self.look_aheads.try_take(1) {
            match self.ask_with_bytes(key).await {
                // What cannot be read can still be looked at.
                Err(error)
                    if matches!(error.kind(), ErrorKind::Denied | ErrorKind::Unsupported) =>
                {
                    self.driver.head(key).await
                }
                found => found,
            }
        } else {
            self.driver.head(key).await
        };
        match found {
            Ok(info) => Ok(Some(Arc::new(info))),
            Err(error) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::InvalidKey => Ok(None),
                _ => Err(error),
            },
        }
    }

    async fn ask_with_bytes(&self, key: &Key) -> Result<ObjectInfo> {
        let options = GetOptions {
            range: Some(0..SMALL),
            ..GetOptions::default()
        };
        let object = self.driver.get(key, options).await?.found()?;
        let (whole, info) = (object.range.clone(), object.info.clone());
        if info.size != Some(whole.end) || whole.start != 0 {
            return Ok(info);
        }
        let Ok((_, bytes)) = object.collect().await else {
            // It breaks off, or is not as long as was promised.
            return self.driver.head(key).await;
        };
        let version = Version {
            key: key.clone(),
            etag: info.etag.clone(),
            size: whole.end,
        };
        self.fetcher.insert(&Arc::new(version), 0, bytes);
        Ok(info)
    }

    /// Asks the store what a name is: its object, and a listing of what is below it, side by side.
    /// A page tells all of a small subtree; of others only whether there is a key is asked for.
    async fn ask_once(
        &self,
        prefix: &Key,
        target: &Target,
        name: &[u8],
        ticket: &Ticket,
    ) -> FsResult<Known> {
        let key = target.object_key(prefix);
        let below = target.directory_prefix(prefix);
        if key.len() > self.capabilities.max_key {
            return Err(FsError::plain(libc::ENAMETOOLONG));
        }
        let head = async {
            if key.is_empty() || target.form == Form::Chunk {
                return Ok(None);
            }
            self.ask_for_object(&key, name).await
        };
        let whole = ListRequest::flat(&below);
        let subtree =
            target.form != Form::Chunk && !looks_like_lock(name) && self.lists_flat() && {
                let (now, ttl) = (clock::now(), self.metadata_ttl());
                let listed = self.listing.complete_since(&below);
                listed.is_none_or(|since| since + ttl <= now)
                    && !self.listing.was_deep(&below, now, LARGE)
            };
        let list = self.driver.list(ListRequest {
            limit: if subtree { whole.limit } else { 1 },
            ..whole
        });
        let (head, list) = futures::join!(head, list);
        let object = head?;
        let page = match list {
            Ok(page) => page,
            // Who may read one object need not be allowed to list.
            Err(error) if object.is_some() && error.kind() == ErrorKind::Denied => {
                Default::default()
            }
            Err(error) if error.kind() == ErrorKind::InvalidKey => Default::default(),
            Err(error) => return Err(error.into()),
        };
        if subtree && !page.entries.is_empty() {
            let mut flat = Flat::whole(&below, ticket);
            let ttl = self.metadata_ttl();
            self.listing
                .flat_page(&below, &page, ticket, &mut flat, ttl);
            if page.next.is_some() {
                self.listing.is_deep(&below, clock::now());
            }
        }
        let first = page.entries.into_iter().next();
        let directory = first.is_some() || page.next.is_some();
        let marker = match first {
            Some(entry) if entry.key == below => entry
                .object
                .map_or(Marker::Unknown, |info| Marker::Present(Arc::new(info))),
            Some(_) => Marker::Absent,
            None => Marker::Unknown,
        };
        Ok(Known {
            object,
            directory,
            marker,
        })
    }
}
