//! Brings blocks that are not cached: one request for a run of them, shared by all who wait, ahead
//! of those who read sequentially, and beside those who read here and there in a file that fits.

mod flight;
mod pattern;
mod scatter;
mod sweep;

pub use pattern::Pattern;

use super::content::{BLOCK, BlockCache, Usage, Version};
use super::disk::DiskOptions;
use crate::driver::{Driver, ETag, Error, ErrorKind, GetOptions, Object, Result};
use crate::key::Key;
use bytes::{Buf, Bytes, BytesMut};
use flight::{Flight, Ticket};
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use pattern::{Ahead, Budget, Step};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Limits of a [`Fetcher`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchOptions {
    /// Memory for cached blocks, in bytes. Half of it is what all handles together may have
    /// fetched ahead, and half what the files may take that are read here and there.
    pub memory: u64,
    /// How far ahead of one handle to fetch, in bytes.
    pub window: u64,
    /// The disk cache, if there is to be one.
    pub disk: Option<DiskOptions>,
}

impl FetchOptions {
    /// Up to 32 MiB ahead of a handle, less where memory is scarce, and no disk cache: a round trip
    /// of 30 ms then leaves room for a gigabyte per second.
    pub fn new(memory: u64) -> Self {
        FetchOptions {
            memory,
            window: (memory / 8).clamp(8 << 20, 32 << 20),
            disk: None,
        }
    }
}

/// Requests for a range that nobody reads ahead of are at most so large, in bytes.
const PIECE: u64 = 4 << 20;
/// Requests for a stage are at most so large, in bytes, and so many at a time.
const WHOLE_PIECE: u64 = 8 << 20;
const WHOLE_PARALLEL: usize = 4;
/// Up to this size a range for a stage goes through the cache.
const CACHED_WHOLE: u64 = 1 << 20;

/// Reads versions of objects through a cache.
pub struct Fetcher {
    driver: Arc<dyn Driver>,
    ranges: bool,
    cache: BlockCache,
    /// Its lock is taken before those of the cache and of a handle's pattern, and held for a few
    /// look-ups. An entry is there exactly as long as its flight has
    /// not landed it.
    in_flight: Mutex<InFlight>,
    budget: Arc<Budget>,
    runtime: tokio::runtime::Handle,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher")
            .field("driver", &self.driver)
            .field("usage", &self.usage())
            .finish_non_exhaustive()
    }
}

/// Blocks on their way, each with how to wait for it.
type InFlight = HashMap<(Key, ETag, u64), Ticket>;

/// How a reader gets one block.
enum Claim {
    /// It was cached.
    Here(Bytes),
    /// This reader's own request brings it.
    Own(Ticket),
    /// A request that was on its way brings it.
    Joined(Ticket),
}

impl Fetcher {
    /// A fetcher with its cache. Must be called inside a tokio runtime, which runs the requests;
    /// fails where the cache directory cannot be used.
    pub fn new(driver: Arc<dyn Driver>, options: FetchOptions) -> io::Result<Arc<Fetcher>> {
        let disk = options.disk.as_ref().map_or(0, |disk| disk.size / 2);
        Ok(Arc::new(Fetcher {
            ranges: driver.capabilities().range,
            // The rest is for what is on its way, and what the allocator loses.
            cache: BlockCache::new(options.memory - options.memory / 5, options.disk)?,
            in_flight: Mutex::default(),
            budget: Budget::new(options.window, disk, options.memory / 2),
            runtime: tokio::runtime::Handle::current(),
            driver,
        }))
    }

    /// The bytes of `range`, cut at the end, if all of them are in memory, be it the kernel's. It
    /// does not wait; it
    /// may start to fetch ahead.
    pub fn cached(
        self: &Arc<Self>,
        version: &Arc<Version>,
        range: Range<u64>,
        pattern: &Pattern,
    ) -> Option<Bytes> {
        let range = version.cut(range);
        let bytes = self.peek(version, &range)?;
        self.let_go(version, pattern);
        match self.note(version, &range, pattern) {
            Step::Jump => {
                let beside = pattern.jump(
                    &range,
                    version,
                    (false, !self.cache.is_behind()),
                    &self.budget,
                );
                self.sweep(version, pattern, beside.sweeps);
            }
            Step::On(None) => {}
            Step::On(ahead) => drop(self.claim(version, 0..0, ahead, None)),
        }
        Some(bytes)
    }

    /// The bytes of `range`, cut at the end, and of no other version: a replaced one is
    /// [`ErrorKind::Changed`], a missing one [`ErrorKind::NotFound`]. The future may be dropped.
    pub async fn read(
        self: &Arc<Self>,
        version: &Arc<Version>,
        range: Range<u64>,
        pattern: &Pattern,
    ) -> Result<Bytes> {
        let range = version.cut(range);
        self.let_go(version, pattern);
        match self.note(version, &range, pattern) {
            Step::Jump => self.blocks(version, range, None, Some(pattern)).await,
            Step::On(ahead) => self.blocks(version, range, ahead, None).await,
        }
    }

    async fn blocks(
        self: &Arc<Self>,
        version: &Arc<Version>,
        range: Range<u64>,
        mut ahead: Option<Ahead>,
        mut jump: Option<&Pattern>,
    ) -> Result<Bytes> {
        let mut next = range.start / BLOCK;
        let end = range.end.div_ceil(BLOCK);
        let mut blocks = Vec::with_capacity((end - next) as usize);
        let mut again = false;
        while next < end {
            for claim in self.claim(version, next..end, ahead.take(), jump.take()) {
                let (ticket, own) = match claim {
                    Claim::Here(bytes) => {
                        blocks.push(bytes);
                        next += 1;
                        continue;
                    }
                    Claim::Own(ticket) => (ticket, true),
                    Claim::Joined(ticket) => (ticket, false),
                };
                match flight::wait(ticket).await {
                    Some(Ok(bytes)) => {
                        blocks.push(bytes);
                        next += 1;
                    }
                    // Somebody else's failure is not this reader's, unless it is about the object.
                    Some(Err(error)) if again || own || is_final(&error) => return Err(error),
                    None if again => return Err(dropped(version)),
                    _ => {
                        again = true;
                        break;
                    }
                }
            }
        }
        Ok(join(blocks, range))
    }

    /// All bytes of a range, for filling a stage; see [`Fetcher::stream`] for large ones.
    pub async fn read_all(
        self: &Arc<Self>,
        version: &Arc<Version>,
        range: Range<u64>,
    ) -> Result<Bytes> {
        let range = version.cut(range);
        let mut stream = self.stream(version, range.clone());
        let Some(first) = stream.next().await.transpose()? else {
            return Ok(Bytes::new());
        };
        if first.len() as u64 == range.end - range.start {
            return Ok(first);
        }
        let mut all = BytesMut::with_capacity((range.end - range.start) as usize);
        all.extend_from_slice(&first);
        while let Some(bytes) = stream.next().await {
            all.extend_from_slice(&bytes?);
        }
        Ok(all.freeze())
    }

    /// The bytes of a range in order, in pieces of at most 8 MiB, a few of which are fetched at
    /// a time. Large ranges neither come from the cache nor go there, unless all is in memory.
    pub fn stream(
        self: &Arc<Self>,
        version: &Arc<Version>,
        range: Range<u64>,
    ) -> BoxStream<'static, Result<Bytes>> {
        let range = version.cut(range);
        let piece = if self.ranges { WHOLE_PIECE } else { u64::MAX };
        let (fetcher, version) = (self.clone(), version.clone());
        let mut start = range.start;
        let pieces = std::iter::from_fn(move || {
            let piece = start..range.end.min(start.saturating_add(piece));
            start = piece.end;
            (!piece.is_empty()).then_some(piece)
        });
        futures::stream::iter(pieces)
            .map(move |piece| {
                let (fetcher, version) = (fetcher.clone(), version.clone());
                async move { fetcher.piece(&version, piece).await }
            })
            .buffered(WHOLE_PARALLEL)
            .boxed()
    }

    /// Takes bytes of a version that were learned otherwise; whole blocks are kept.
    pub fn insert(&self, version: &Arc<Version>, offset: u64, data: Bytes) {
        let end = version.size.min(offset.saturating_add(data.len() as u64));
        for index in offset.div_ceil(BLOCK)..version.blocks() {
            let block = version.block(index);
            if block.end > end {
                return;
            }
            if self.cache.get(version, index).is_none() {
                let part = (block.start - offset) as usize..(block.end - offset) as usize;
                let copy = Bytes::copy_from_slice(&data[part]);
                self.cache.insert(version, index, copy);
            }
        }
    }

    /// Drops what is in memory of every version of a key.
    pub fn forget(&self, key: &Key) {
        self.cache.forget(key);
    }

    /// How much is cached.
    pub fn usage(&self) -> Usage {
        self.cache.usage()
    }

    /// Drops what a handle has read on from, so that a large file takes no room from others.
    fn let_go(&self, version: &Version, pattern: &Pattern) {
        if self.ranges {
            for index in pattern.passed(version.size, &self.budget) {
                self.cache.discard(version, index);
            }
        }
    }

    fn peek(&self, version: &Version, range: &Range<u64>) -> Option<Bytes> {
        let blocks: Option<Vec<Bytes>> = (range.start / BLOCK..range.end.div_ceil(BLOCK))
            .map(|index| self.cache.peek(version, index))
            .collect();
        Some(join(blocks?, range.clone()))
    }

    fn note(&self, version: &Version, range: &Range<u64>, pattern: &Pattern) -> Step {
        if range.is_empty() {
            return Step::On(None);
        }
        pattern.note(range, version, &self.budget)
    }

    async fn piece(self: &Arc<Self>, version: &Arc<Version>, range: Range<u64>) -> Result<Bytes> {
        if let Some(bytes) = self.peek(version, &range) {
            return Ok(bytes);
        }
        if range.end - range.start <= CACHED_WHOLE {
            return self.blocks(version, range, None, None).await;
        }
        let mut all = BytesMut::with_capacity((range.end - range.start) as usize);
        self.pull(version, range, |bytes| all.extend_from_slice(bytes))
            .await?;
        Ok(all.freeze())
    }

    /// Says how each block of `demand` is to be had, and sends requests for those of them and of
    /// `ahead` that are neither cached nor on their way. `jump`: how the handle reads whose read
    /// this is, if it is elsewhere than the one before it.
    fn claim(
        self: &Arc<Self>,
        version: &Arc<Version>,
        demand: Range<u64>,
        ahead: Option<Ahead>,
        jump: Option<&Pattern>,
    ) -> Vec<Claim> {
        let (ahead, piece) = match ahead {
            Some(ahead) => (ahead.blocks, ahead.piece),
            None => (0..0, PIECE / BLOCK),
        };
        let mut claims = Vec::with_capacity((demand.end - demand.start) as usize);
        // The reader's own blocks ride on the first request.
        let piece = piece + demand.end - demand.start;
        let mut flights: Vec<(Flight, bool)> = Vec::new();
        let mut in_flight = self.in_flight.lock();
        for index in demand.clone().chain(ahead) {
            let id = (version.key.clone(), version.etag.clone(), index);
            let joined = in_flight.get(&id).cloned();
            let claim = match joined {
                Some(ticket) => Claim::Joined(ticket),
                None => match self.cache.get(version, index) {
                    Some(bytes) => Claim::Here(bytes),
                    None if self.ranges => {
                        let disk = self.cache.on_disk(version, index);
                        let fits = |(flight, from_disk): &&mut (Flight, bool)| {
                            flight.end() == index && flight.len() < piece && *from_disk == disk
                        };
                        let ticket = match flights.last_mut().filter(fits) {
                            Some((flight, _)) => flight.add(),
                            None => {
                                let mut flight = Flight::new(self, version, index);
                                let ticket = flight.add();
                                flights.push((flight, disk));
                                ticket
                            }
                        };
                        in_flight.insert(id, ticket.clone());
                        Claim::Own(ticket)
                    }
                    None => {
                        flights.push(self.whole(version, index, &mut in_flight));
                        Claim::Own(in_flight[&id].clone())
                    }
                },
            };
            if demand.contains(&index) {
                claims.push(claim);
            }
        }
        let mut sweeps = 0;
        if let Some(pattern) = jump {
            let range = demand.start * BLOCK..demand.end * BLOCK;
            let waits = flights.iter().any(|(_, from_disk)| !from_disk);
            let beside = pattern.jump(
                &range,
                version,
                (waits, !self.cache.is_behind()),
                &self.budget,
            );
            sweeps = beside.sweeps;
            let own = |(flight, disk): &&mut (Flight, bool)| flight.end() == demand.end && !*disk;
            if beside.ride > 0
                && let Some((flight, _)) = flights.last_mut().filter(own)
            {
                let end = version.blocks().min(demand.end + beside.ride);
                for index in demand.end..end {
                    if !self.is_missing(version, index, &in_flight) {
                        break;
                    }
                    let id = (version.key.clone(), version.etag.clone(), index);
                    in_flight.insert(id, flight.add());
                }
                let rides = demand.end..flight.end();
                let running = pattern.scatter(|scatter| {
                    scatter.brought(version, rides);
                    scatter.running.clone()
                });
                flight.hold(running);
            }
        }
        drop(in_flight);
        for (flight, from_disk) in flights {
            self.runtime.spawn(flight.run(from_disk));
        }
        if let Some(pattern) = jump {
            self.sweep(version, pattern, sweeps);
        }
        claims
    }

    /// A flight for all blocks of a version that are neither cached nor on their way, for stores
    /// that send whole objects only. The one that is asked for is among them, even if somebody has
    /// put it into the cache since that was looked into.
    fn whole(
        self: &Arc<Self>,
        version: &Arc<Version>,
        asked: u64,
        in_flight: &mut InFlight,
    ) -> (Flight, bool) {
        let mut flight = Flight::new(self, version, 0);
        let mut on_disk = true;
        for index in 0..version.blocks() {
            let id = (version.key.clone(), version.etag.clone(), index);
            let elsewhere =
                || in_flight.contains_key(&id) || self.cache.get(version, index).is_some();
            if index != asked && elsewhere() {
                flight.pass();
            } else {
                on_disk &= self.cache.on_disk(version, index);
                in_flight.insert(id, flight.add());
            }
        }
        (flight, on_disk)
    }

    /// Takes blocks that have arrived, or never will, off the list.
    fn landed(&self, version: &Version, blocks: Range<u64>) {
        let mut in_flight = self.in_flight.lock();
        for index in blocks {
            in_flight.remove(&(version.key.clone(), version.etag.clone(), index));
        }
    }

    /// Gives `sink` exactly the bytes of `range`, in order. A body that breaks off is an error
    /// here; going on with it is the business of the retry layer.
    async fn pull(
        &self,
        version: &Version,
        range: Range<u64>,
        sink: impl FnMut(&[u8]) + Send,
    ) -> Result<()> {
        let object = self.open(version, &range).await?;
        drain(object, range, sink)
            .await
            .map_err(|error| error.during("get").on(&version.key))
    }

    /// Asks for a range of exactly this version.
    async fn open(&self, version: &Version, range: &Range<u64>) -> Result<Object> {
        let whole = !self.ranges || *range == (0..version.size);
        let options = GetOptions {
            range: (!whole).then(|| range.clone()),
            if_match: Some(version.etag.clone()),
            ..GetOptions::default()
        };
        let object = self.driver.get(&version.key, options).await?.found()?;
        let wrong = |kind, why: String| Err(Error::new(kind, why).during("get").on(&version.key));
        let info = &object.info;
        if info.etag != version.etag {
            return wrong(
                ErrorKind::Changed,
                format!(
                    "the object has etag {:?} now, not {:?} as when it was opened; open it again",
                    info.etag, version.etag
                ),
            );
        }
        if let Some(size) = info.size
            && size != version.size
        {
            return wrong(
                ErrorKind::Corrupt,
                format!(
                    "the store says that etag {:?} has {size} bytes, and said {} before",
                    info.etag, version.size
                ),
            );
        }
        if object.range.start > range.start || object.range.end < range.end {
            return wrong(
                ErrorKind::Corrupt,
                format!(
                    "the store sent bytes {}..{} instead of {}..{}",
                    object.range.start, object.range.end, range.start, range.end
                ),
            );
        }
        Ok(object)
    }
}

/// Gives `sink` the bytes of `range`, which the body holds, perhaps among others.
async fn drain(
    mut object: Object,
    range: Range<u64>,
    mut sink: impl FnMut(&[u8]) + Send,
) -> Result<()> {
    let Range { start: mut at, end } = range;
    let whole = object.range;
    let corrupt = |why: String| Err(Error::new(ErrorKind::Corrupt, why));
    let mut place = whole.start;
    let mut last = Bytes::new();
    while at < end {
        let Some(mut bytes) = object.body.next().await.transpose()? else {
            return corrupt(format!(
                "the body ended at byte {place} instead of {}",
                whole.end
            ));
        };
        let start = place;
        place += bytes.len() as u64;
        if place > whole.end {
            return corrupt(format!("the body goes on behind byte {}", whole.end));
        }
        if place <= at {
            continue;
        }
        bytes.advance((at - start) as usize);
        bytes.truncate((end - at) as usize);
        at += bytes.len() as u64;
        if place == whole.end {
            last = bytes;
        } else {
            sink(&bytes);
        }
    }
    // The end is given out only when the body has ended as it should.
    while place == whole.end
        && let Some(more) = object.body.next().await.transpose()?
    {
        if !more.is_empty() {
            return corrupt(format!("the body goes on behind byte {}", whole.end));
        }
    }
    sink(&last);
    Ok(())
}

/// Cuts `range` out of the blocks that it touches.
fn join(mut blocks: Vec<Bytes>, range: Range<u64>) -> Bytes {
    let skip = (range.start % BLOCK) as usize;
    let len = (range.end - range.start) as usize;
    if blocks.len() <= 1 {
        let block = blocks.pop().unwrap_or_default();
        return block.slice(if len == 0 { 0..0 } else { skip..skip + len });
    }
    let mut joined = BytesMut::with_capacity(len);
    for (i, block) in blocks.iter().enumerate() {
        let start = if i == 0 { skip } else { 0 };
        let end = block.len().min(start + len - joined.len());
        joined.extend_from_slice(&block[start..end]);
    }
    joined.freeze()
}

/// Whether an error says something about the object, so that asking again makes no sense.
fn is_final(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Changed | ErrorKind::NotFound)
}

fn dropped(version: &Version) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the request was dropped twice before it was answered; is bucketfs being stopped?",
    )
    .during("get")
    .on(&version.key)
}

#[cfg(test)]
mod tests;
