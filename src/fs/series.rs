//! Files of one directory that are opened one after the other: who opens the names that a listing
//! tells, each or every so many of them, will open the next ones too. Those that are small are
//! asked for ahead, so that one process need not wait a round trip for each.
//!
//! What is asked for is what the open would ask for, and counts for it as long as it is young: a
//! guess that comes true costs no request. One that does not makes the next guesses fewer.

use super::Fs;
use super::ask::SMALL;
use super::inode::Inode;
use super::lookup::LOOK_AHEAD;
use super::target::{Form, Target};
use crate::cache::content::{BLOCK, Version};
use crate::cache::fetch::Pattern;
use crate::cache::listing::ListingCache;
use crate::clock::{self, Instant};
use crate::driver::{GetOptions, GetOutcome, ListRequest, ObjectInfo};
use crate::key::Key;
use crate::locks::looks_like_lock;
use crate::task;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How many series are known at a time; the one that went on longest ago is forgotten first.
const SERIES: usize = 4;
/// The most files that are asked for ahead of one series.
const WIDTH: usize = 16;
/// Names that are further apart are no series.
const STRIDE: usize = 16;
/// After so many steps a series is believed to go on.
const STEPS: u32 = 2;
/// A series that pauses longer begins anew.
const PAUSE: Duration = Duration::from_secs(2);
/// What is asked for is to be opened within so long: less than an answer counts for an open.
const SOON: Duration = Duration::from_millis(150);

/// What an open will want to know of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// Its bytes.
    Bytes,
    /// What is stored beside its bytes.
    Facts,
}

/// An answer that is on its way, or here.
#[derive(Clone)]
struct Coming {
    wants: Wants,
    since: Instant,
    answer: Shared<BoxFuture<'static, Option<ObjectInfo>>>,
}

/// Files of one directory that are opened in order.
struct Row {
    prefix: Key,
    wants: Wants,
    /// The last name in the order that was opened.
    frontier: Bytes,
    /// When.
    last: Instant,
    /// By how many names the opened ones are apart; 0 while there was one only.
    stride: usize,
    /// How many steps of that size were made.
    steps: u32,
    /// How long one takes.
    pace: Duration,
    /// Opens of names before the frontier.
    behind: u32,
    /// The distance of the last open, and how often it was that.
    same: (usize, u32),
    /// How many steps ahead of the frontier is asked.
    ahead: usize,
    /// Up to which name.
    upto: Bytes,
    /// How many steps ahead to ask.
    width: usize,
    /// Whether more names are being asked for.
    naming: Arc<AtomicBool>,
    /// Whether there are none.
    ended: Arc<AtomicBool>,
}

/// Files that are opened in order, and what was asked for ahead of them.
#[derive(Default)]
pub(super) struct AllSeries {
    /// The one that went on last comes last.
    rows: Vec<Row>,
    coming: HashMap<Key, Coming>,
}

impl std::fmt::Debug for AllSeries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AllSeries")
            .field("rows", &self.rows.len())
            .field("coming", &self.coming.len())
            .finish()
    }
}

/// What a step leads to.
#[derive(Default)]
struct Next {
    /// Components to be asked for, and their etags as listed.
    files: Vec<(Bytes, Arc<ObjectInfo>)>,
    /// Behind which name more names are to be asked for.
    names_behind: Option<(Bytes, Arc<AtomicBool>, Arc<AtomicBool>)>,
}

impl Row {
    fn begin(prefix: &Key, name: &Bytes, wants: Wants, now: Instant) -> Row {
        Row {
            prefix: prefix.clone(),
            wants,
            frontier: name.clone(),
            last: now,
            stride: 0,
            steps: 0,
            pace: Duration::ZERO,
            behind: 0,
            same: (0, 0),
            ahead: 0,
            upto: name.clone(),
            width: 1,
            naming: Arc::default(),
            ended: Arc::default(),
        }
    }

    /// Takes note of an open. Whether the series is still one.
    fn step(&mut self, listing: &ListingCache, name: &Bytes, now: Instant) -> bool {
        if now > self.last + PAUSE {
            return false;
        }
        if *name <= self.frontier {
            // Threads go in a little disorder.
            self.behind += 1;
            return self.behind < WIDTH as u32;
        }
        let far = STRIDE.max(self.stride * WIDTH);
        let Some(distance) = listing.distance(&self.prefix, &self.frontier, name, far) else {
            return false;
        };
        self.behind = 0;
        self.same = match self.same {
            (same, times) if same == distance => (same, times + 1),
            _ => (distance, 1),
        };
        // Names between those that were known at first may have made a greater distance of it.
        let greater = distance > self.stride && self.same.1 > STEPS;
        if self.stride == 0 || greater || !distance.is_multiple_of(self.stride) {
            if distance > STRIDE {
                return false;
            }
            self.stride = distance;
            (self.steps, self.ahead, self.width) = (0, 0, 1);
        }
        let steps = distance / self.stride;
        let pace = (now - self.last) / steps as u32;
        self.pace = match self.steps {
            0 => pace,
            _ => (self.pace * 3 + pace) / 4,
        };
        self.steps += 1;
        self.last = now;
        self.frontier = name.clone();
        self.ahead = self.ahead.saturating_sub(steps);
        if self.ahead == 0 {
            self.upto = name.clone();
        }
        true
    }

    /// What to ask for.
    fn next(&mut self, listing: &ListingCache, now: Instant, ttl: Duration) -> Next {
        let mut next = Next::default();
        if self.steps < STEPS || self.ahead * 2 > self.width {
            return next;
        }
        let in_time = SOON.as_micros() / self.pace.as_micros().max(1);
        let most = WIDTH.min(usize::try_from(in_time).unwrap_or(WIDTH)).max(1);
        self.width = (self.width * 2).min(most);
        let wanted = self.width.saturating_sub(self.ahead);
        let names = listing.following(&self.prefix, &self.upto, wanted * self.stride);
        let known = names.len() / self.stride;
        let mut old = false;
        let begin = self.upto.clone();
        for (name, known, since) in names.iter().skip(self.stride - 1).step_by(self.stride) {
            self.upto = name.clone();
            self.ahead += 1;
            // Who opens it looks it up first.
            old |= *since + ttl / 2 < now;
            if let Some(info) = &known.object
                && !known.directory
                && !looks_like_lock(name)
                && info.size.is_some_and(|size| 0 < size && size <= SMALL)
                && !(self.wants == Wants::Facts && info.attributes.is_some())
            {
                next.files.push((name.clone(), info.clone()));
            }
        }
        let few = known < wanted && !self.ended.load(Ordering::Relaxed);
        let whole = listing.complete_since(&self.prefix);
        let few = few && whole.is_none_or(|since| since + ttl <= now);
        if (old || few) && !self.naming.swap(true, Ordering::Relaxed) {
            let behind = match names.last() {
                Some((last, ..)) if !old => last.clone(),
                _ => begin,
            };
            next.names_behind = Some((behind, self.naming.clone(), self.ended.clone()));
        }
        next
    }
}

impl Fs {
    /// Notes that a file is opened, and asks for what will probably be opened next.
    pub(super) fn opens(&self, inode: &Inode, wants: Wants) {
        if !self.capabilities.remote || !self.capabilities.range || self.metadata_ttl().is_zero() {
            return;
        }
        if wants == Wants::Bytes && self.copies.is_made() {
            return;
        }
        let Some((parent, name)) = inode.state().place.clone() else {
            return;
        };
        let target = Target::of(&name).filter(|target| target.form == Form::Plain);
        let Some(target) = target.filter(|_| !looks_like_lock(&name)) else {
            return;
        };
        let (prefix, now) = (parent.key(), clock::now());
        let mut all = self.series.lock();
        let AllSeries { rows, coming } = &mut *all;
        let same = |row: &Row| row.prefix == prefix && row.wants == wants;
        let known = rows.iter().position(same).map(|at| rows.remove(at));
        let goes_on = |row: &mut Row| row.step(&self.listing, &target.component, now);
        let known = known.and_then(|mut row| goes_on(&mut row).then_some(row));
        let next = match known {
            Some(mut row) => {
                let before = coming.len();
                coming.retain(|_, coming| coming.since + LOOK_AHEAD > now);
                if coming.len() < before {
                    // What was asked for was not opened in time.
                    row.width = (row.width / 4).max(1);
                }
                let next = row.next(&self.listing, now, self.metadata_ttl());
                rows.push(row);
                next
            }
            None => {
                if rows.len() >= SERIES {
                    rows.remove(0);
                }
                rows.push(Row::begin(&prefix, &target.component, wants, now));
                return;
            }
        };
        for (name, info) in next.files {
            let key = prefix.join(&name);
            coming.entry(key).or_insert_with_key(|key| Coming {
                wants,
                since: now,
                answer: self.ask_ahead(key.clone(), info, wants),
            });
        }
        drop(all);
        if let Some((behind, naming, ended)) = next.names_behind {
            self.name_ahead(prefix, behind, naming, ended);
        }
    }

    /// Asks for a file as an open would.
    fn ask_ahead(
        &self,
        key: Key,
        listed: Arc<ObjectInfo>,
        wants: Wants,
    ) -> Shared<BoxFuture<'static, Option<ObjectInfo>>> {
        let (driver, fetcher) = (self.driver.clone(), self.fetcher.clone());
        let asking = task::spawn(async move {
            if wants == Wants::Facts {
                return driver.head(&key).await.ok();
            }
            let version = Arc::new(Version {
                key: key.clone(),
                etag: listed.etag.clone(),
                size: listed.size.unwrap_or(0),
            });
            let first = 0..version.size.min(BLOCK);
            let cached = fetcher.cached(&version, first, &Pattern::default());
            let options = GetOptions {
                range: Some(0..BLOCK),
                if_none_match: cached.map(|_| listed.etag.clone()),
                ..GetOptions::default()
            };
            let object = match driver.get(&key, options).await.ok()? {
                GetOutcome::Found(object) => object,
                GetOutcome::Unmodified => return Some((*listed).clone()),
            };
            let (info, bytes) = object.collect().await.ok()?;
            let version = Version {
                key,
                etag: info.etag.clone(),
                size: info.size?,
            };
            fetcher.insert(&Arc::new(version), 0, bytes);
            Some(info)
        });
        asking.map(|answer| answer.ok().flatten()).boxed().shared()
    }

    /// Asks for the names of a directory behind one of them.
    fn name_ahead(
        &self,
        prefix: Key,
        behind: Bytes,
        naming: Arc<AtomicBool>,
        ended: Arc<AtomicBool>,
    ) {
        let (driver, listing) = (self.driver.clone(), self.listing.clone());
        task::spawn(async move {
            let ticket = listing.begin(clock::now());
            let request = ListRequest {
                start_after: Some(prefix.join(&behind)),
                ..ListRequest::directory(&prefix)
            };
            if let Ok(page) = driver.list(request).await {
                ended.store(page.next.is_none(), Ordering::Relaxed);
                listing.learned_behind(&prefix, &behind, &page, &ticket);
            }
            naming.store(false, Ordering::Relaxed);
        });
    }

    /// What was asked for ahead of an open of this key, and since when, if it is young enough to
    /// count for that. It counts once.
    pub(super) async fn asked_ahead(
        &self,
        key: &Key,
        wants: Wants,
    ) -> Option<(ObjectInfo, Instant)> {
        let coming = {
            let coming = &mut self.series.lock().coming;
            coming.get(key).filter(|coming| coming.wants == wants)?;
            coming.remove(key)?
        };
        let acquired = *self.acquired.lock();
        let young = coming.since + LOOK_AHEAD > clock::now();
        if !young || acquired.is_some_and(|acquired| coming.since < acquired) {
            return None;
        }
        Some((coming.answer.await?, coming.since))
    }
}
