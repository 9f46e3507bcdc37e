//! The `memory:` driver: an ordered map in this process. It claims all that the contract knows
//! beside versions and buckets, and is the reference that tests compare with.

mod seed;
mod state;
mod upload;

use super::{
    AttributeChange, AttributeSupport, Body, Capabilities, Change, CopyCapability, CopyOptions,
    Driver, ETag, Error, ErrorKind, GetOptions, GetOutcome, ListEntry, ListRequest, Location,
    Object, ObjectInfo, OpenOptions, Opened, Page, Precondition, PutOptions, Removal, Result,
    Space, Strength, Upload, UploadLimits,
};
use crate::clock;
use crate::key::Key;
use crate::task;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::RwLock;
use state::{Shared, Stored, Value, expect, missing, pieces};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use tokio::sync::broadcast;

/// The URL scheme.
pub const SCHEME: &str = "memory";
/// What `bucketfs drivers` says.
pub const ABOUT: &str = "memory:[?seed=DIR][&size=BYTES]  this process's memory, gone when it ends";

/// Longest key. Nothing here needs a limit; this is the longest path that the kernel passes.
const MAX_KEY: usize = 4096;
/// Greatest number of keys of one `delete_many`.
const MAX_DELETE: usize = 1000;
/// Most entries of one page, which bounds the time for which a listing holds the lock.
const MAX_PAGE: usize = 10_000;
/// Changes that a watcher may lag behind before it is told [`Change::Lost`].
const FEED: usize = 4096;
const LIMITS: UploadLimits = UploadLimits {
    min_part: 1,
    max_part: u64::MAX,
    max_parts: 10_000,
    part_copy: true,
    condition: Strength::Atomic,
};

/// Opens a new, empty store, or one with a folder's content in it.
pub async fn open(location: Location, options: OpenOptions) -> Result<Opened> {
    let wrong = |why: String| Error::new(ErrorKind::InvalidArgument, why).during("open");
    let OpenOptions { .. } = options;
    if !location.host().is_empty() || !matches!(location.path().as_slice(), b"" | b"/") {
        return Err(wrong(format!(
            "a {SCHEME}: URL has neither host nor path; write {ABOUT}"
        )));
    }
    let parameters = location.parameters(&["seed", "size"])?;
    let memory = match parameters.get("size") {
        Some(size) => Memory::with_size(
            size.parse()
                .map_err(|_| wrong(format!("size={size:?} is not a number of bytes")))?,
        ),
        None => Memory::new(),
    };
    if let Some(folder) = parameters.get("seed") {
        let (folder, store) = (folder.into(), memory.clone());
        task::blocking(move || seed::seed(&store, folder))
            .await
            .map_err(|cause| Error::new(ErrorKind::Io, "seeding broke off").because(cause))??;
    }
    Ok(Opened {
        driver: Arc::new(memory),
        prefix: Key::empty(),
        is_store: false,
    })
}

/// A bucket in memory. Clones share it, as two clients share a server.
#[derive(Clone)]
pub struct Memory(Arc<Shared>);

impl Default for Memory {
    fn default() -> Self {
        Memory::new()
    }
}

impl Memory {
    /// An empty bucket that takes what the machine has.
    pub fn new() -> Self {
        Memory::sized(None)
    }

    /// An empty bucket that is full at `capacity` bytes of bodies.
    pub fn with_size(capacity: u64) -> Self {
        Memory::sized(Some(capacity))
    }

    fn sized(capacity: Option<u64>) -> Self {
        Memory(Arc::new(Shared {
            state: RwLock::default(),
            changes: broadcast::Sender::new(FEED),
            capacity,
            store: clock::random() >> 32,
        }))
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.0.state.read().objects.len()
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state.read();
        f.debug_struct("Memory")
            .field("objects", &state.objects.len())
            .field("bytes", &state.used)
            .finish()
    }
}

/// Refuses keys that no object can have.
fn check(key: &Key) -> Result<()> {
    if key.is_empty() {
        return Err(Error::new(ErrorKind::InvalidKey, "the key is empty"));
    }
    if key.len() > MAX_KEY {
        return Err(Error::new(
            ErrorKind::NameTooLong,
            format!("the key has {} bytes; {MAX_KEY} are possible", key.len()),
        ));
    }
    Ok(())
}

/// Tokens are the hexadecimal spelling of the last entry's key.
fn token(key: &Key) -> String {
    key.as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn parse_token(text: &str) -> Result<Key> {
    let byte = |at: usize| {
        let word = text.get(at..at + 2)?;
        u8::from_str_radix(word, 16).ok()
    };
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(byte).collect();
    bytes.map(Key::from).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidArgument,
            format!("{text:?} is no token of this listing"),
        )
        .during("list")
    })
}

#[async_trait]
impl Driver for Memory {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            remote: false,
            keeps_bodies: self.0.capacity.unwrap_or(u64::MAX),
            put_condition: Strength::Atomic,
            delete_condition: Strength::Atomic,
            range: true,
            attributes: AttributeSupport::Listed,
            set_attributes: true,
            special_files: true,
            commit_ids: true,
            directories_persist: false,
            copy: Some(CopyCapability {
                source: Strength::Atomic,
                destination: Strength::Atomic,
            }),
            rename: true,
            exchange: true,
            upload: Some(LIMITS),
            delete_many: Some(MAX_DELETE),
            delete_many_condition: Strength::Atomic,
            watch: true,
            max_key: MAX_KEY,
            ..Capabilities::default()
        }
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let state = self.0.state.read();
        expect(&state.objects, key, None)
            .map(Stored::info)
            .map_err(|error| error.during("head").on(key))
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let named = |error: Error| error.during("get").on(key);
        if options.version.is_some() {
            return Err(named(Error::new(
                ErrorKind::Unsupported,
                "this store keeps no versions",
            )));
        }
        let state = self.0.state.read();
        let stored = expect(&state.objects, key, options.if_match.as_ref()).map_err(named)?;
        if options.if_none_match.as_ref() == Some(&stored.etag) {
            return Ok(GetOutcome::Unmodified);
        }
        let wanted = options.range.unwrap_or(0..stored.size);
        let start = wanted.start.min(stored.size);
        let range = start..wanted.end.clamp(start, stored.size);
        let slices = stored.slices(&range);
        Ok(GetOutcome::Found(Box::new(Object {
            info: stored.info(),
            range,
            body: futures::stream::iter(slices.into_iter().map(Ok)).boxed(),
        })))
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("put").on(key);
        check(key).map_err(named)?;
        let value = Value {
            pieces: pieces(&body).await.map_err(named)?,
            attributes: Arc::new(options.attributes),
            commits: options.commits.into(),
        };
        let mut state = self.0.state.write();
        self.store(&mut state, key, value, &options.precondition)
            .map_err(named)
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        let named = |error: Error| error.during("delete").on(key);
        if precondition == Precondition::IfAbsent {
            return Err(named(Error::new(
                ErrorKind::InvalidArgument,
                "a delete cannot ask for the object to be absent",
            )));
        }
        let mut state = self.0.state.write();
        precondition
            .check(state.objects.get(key).map(|stored| &stored.etag))
            .map_err(named)?;
        self.remove(&mut state, key);
        Ok(())
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        let ListRequest {
            prefix,
            delimiter,
            start_after,
            token: from,
            limit,
        } = request;
        let from = from.as_deref().map(parse_token).transpose()?;
        // A token is where the last page ended, so the later of both is where this one begins.
        let after = from.max(start_after);
        let limit = limit.clamp(1, MAX_PAGE);
        let mut begin = match &after {
            Some(after) if *after >= prefix => Bound::Excluded(after.clone()),
            _ => Bound::Included(prefix.clone()),
        };
        let mut page = Page::default();
        let state = self.0.state.read();
        'seek: loop {
            for (key, stored) in state.objects.range((begin.clone(), Bound::Unbounded)) {
                let Some(rest) = key.as_bytes().strip_prefix(prefix.as_bytes()) else {
                    break 'seek;
                };
                let slash = rest.iter().position(|byte| *byte == b'/');
                let folded = slash
                    .filter(|_| delimiter)
                    .map(|at| Key::new(key.bytes().slice(..=prefix.len() + at)));
                let passed = folded.is_some() && folded <= after;
                if !passed && page.entries.len() == limit {
                    page.next = page.entries.last().map(|last| token(&last.key));
                    break 'seek;
                }
                let Some(folded) = folded else {
                    page.entries.push(ListEntry {
                        key: key.clone(),
                        object: Some(stored.info()),
                    });
                    continue;
                };
                // Whatever lies below a folded entry is skipped in one step.
                let next = folded.successor();
                if !passed {
                    page.entries.push(ListEntry {
                        key: folded,
                        object: None,
                    });
                }
                match next {
                    Some(next) => begin = Bound::Included(next),
                    None => break 'seek,
                }
                continue 'seek;
            }
            break;
        }
        Ok(page)
    }

    async fn copy(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("copy");
        check(to).map_err(|error| named(error).on(to))?;
        let mut state = self.0.state.write();
        let source = expect(&state.objects, from, options.source.as_ref())
            .map_err(|error| named(error).on(from))?;
        let value = Value {
            pieces: source.pieces.clone(),
            commits: options.commits_behind(&source.commits).into(),
            attributes: match options.attributes {
                Some(attributes) => Arc::new(attributes),
                None => source.attributes.clone(),
            },
        };
        self.store(&mut state, to, value, &options.destination)
            .map_err(|error| named(error).on(to))
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("rename");
        if from == to || options.attributes.is_some() {
            return Err(named(Error::new(
                ErrorKind::InvalidArgument,
                "a rename needs two names and changes no attributes",
            ))
            .on(from));
        }
        check(to).map_err(|error| named(error).on(to))?;
        let mut state = self.0.state.write();
        expect(&state.objects, from, options.source.as_ref())
            .map_err(|error| named(error).on(from))?;
        options
            .destination
            .check(state.objects.get(to).map(|stored| &stored.etag))
            .map_err(|error| named(error).on(to))?;
        if let Some(replaced) = state.objects.remove(to) {
            state.used -= replaced.size;
        }
        let mut stored = state.objects.remove(from).ok_or_else(missing)?;
        if !options.commits.is_empty() {
            stored.commits = options.commits.into();
        }
        let info = stored.info();
        state.objects.insert(to.clone(), stored);
        self.announce(Change::Removed(from.clone()));
        self.announce(Change::Written(to.clone(), Some(info.etag.clone())));
        Ok(info)
    }

    async fn exchange(&self, a: &Key, b: &Key) -> Result<(ObjectInfo, ObjectInfo)> {
        let mut state = self.0.state.write();
        let take = |key: &Key| {
            expect(&state.objects, key, None)
                .cloned()
                .map_err(|error| error.during("exchange").on(key))
        };
        let (at_b, at_a) = (take(a)?, take(b)?);
        let infos = (at_a.info(), at_b.info());
        for (key, stored) in [(a, at_a), (b, at_b)] {
            let etag = stored.etag.clone();
            state.objects.insert(key.clone(), stored);
            self.announce(Change::Written(key.clone(), Some(etag)));
        }
        Ok(infos)
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let named = |error: Error| error.during("set_attributes").on(key);
        let mut state = self.0.state.write();
        expect(&state.objects, key, if_match.as_ref()).map_err(named)?;
        let stored = state.objects.get_mut(key).ok_or_else(missing)?;
        change.apply(Arc::make_mut(&mut stored.attributes));
        stored.modified = clock::wall();
        let info = stored.info();
        self.announce(Change::Written(key.clone(), Some(info.etag.clone())));
        Ok(info)
    }

    async fn delete_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        if removals.len() > MAX_DELETE {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "{} keys are more than the {MAX_DELETE} of one request",
                    removals.len()
                ),
            )
            .during("delete_many"));
        }
        let mut state = self.0.state.write();
        let remove = |Removal { key, if_match }: &Removal| {
            let named = |error: Error| error.during("delete_many").on(key);
            if let Some(etag) = if_match {
                let there = state.objects.get(key).map(|stored| &stored.etag);
                let condition = Precondition::IfMatch(etag.clone());
                condition.check(there).map_err(named)?;
            }
            self.remove(&mut state, key);
            Ok(())
        };
        Ok(removals.iter().map(remove).collect())
    }

    async fn upload(&self, key: &Key, options: PutOptions) -> Result<Box<dyn Upload>> {
        check(key).map_err(|error| error.during("upload").on(key))?;
        Ok(Box::new(upload::MemoryUpload::new(self, key, options)))
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        let below = {
            let prefix = prefix.clone();
            move |change: &Change| match change {
                Change::Written(key, _) | Change::Removed(key) => key.starts_with(&prefix),
                Change::Lost => true,
            }
        };
        let feed = Some(self.0.changes.subscribe());
        let changes = futures::stream::unfold(feed, |feed| async move {
            let mut feed = feed?;
            match feed.recv().await {
                Ok(change) => Some((Ok(change), Some(feed))),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Ok(Change::Lost), Some(feed))),
                Err(broadcast::error::RecvError::Closed) => Some((
                    Err(Error::new(ErrorKind::Unreachable, "the store is gone").during("watch")),
                    None,
                )),
            }
        });
        Ok(changes
            .filter(move |change| futures::future::ready(change.as_ref().map_or(true, &below)))
            .boxed())
    }

    /// Without a size of its own the store has what the machine has to give.
    async fn space(&self) -> Result<Option<Space>> {
        let used = self.0.state.read().used;
        if let Some(total) = self.0.capacity {
            let free = total.saturating_sub(used);
            return Ok(Some(Space { total, free }));
        }
        Ok(available().map(|free| Space {
            total: used + free,
            free,
        }))
    }
}

/// Bytes of memory that the kernel believes it can give, where it tells.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests;
