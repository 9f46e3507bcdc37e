//! The simulated store: one ordered map behind a network that delays, reorders and loses what goes
//! through it, as a seed has it. It keeps a log of all that it did and told.

use crate::broken::Break;
use crate::character::{Character, Faults};
use crate::net::Fate;
use bucketfs::clock::{self, Instant};
use bucketfs::driver::{
    AttributeSupport, Attributes, Change, CommitId, ETag, Error, ErrorKind, ObjectInfo,
    Precondition, Result,
};
use bucketfs::key::Key;
use bytes::Bytes;
use fastrand::Rng;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc::UnboundedSender;

/// Microseconds since the beginning.
pub type Time = u64;

/// A store and its log, shared by its clients.
#[derive(Clone, Debug)]
pub struct Store(pub Arc<Mutex<State>>);

#[derive(Debug)]
pub struct State {
    pub character: Character,
    pub random: Rng,
    /// None once the store is to behave.
    pub faults: Option<Faults>,
    pub began: Instant,
    pub objects: BTreeMap<Key, Stored>,
    writes: u64,
    pub log: Vec<Mutation>,
    pub told: Vec<Told>,
    pub watchers: Vec<UnboundedSender<Result<Change>>>,
    /// Mounts that died: what of theirs still runs reaches nothing.
    pub dead: BTreeSet<usize>,
    /// Etags of what was deleted, for a driver that takes them for versions.
    pub tombstones: BTreeMap<Key, ETag>,
}

#[derive(Clone, Debug)]
pub struct Stored {
    pub bytes: Bytes,
    pub etag: ETag,
    pub modified: SystemTime,
    pub attributes: Attributes,
    pub commits: Vec<CommitId>,
}

/// One change of one key.
#[derive(Clone, Debug)]
pub struct Mutation {
    pub at: Time,
    /// The mount that asked for it.
    pub by: usize,
    pub how: &'static str,
    pub key: Key,
    pub before: Option<Bytes>,
    pub after: Option<Bytes>,
    /// The commit ids that it stores, newest first.
    pub commits: Vec<CommitId>,
}

/// The store told a mount what is at a key.
#[derive(Clone, Debug)]
pub struct Told {
    /// When it was true.
    pub at: Time,
    pub to: usize,
    pub key: Key,
    pub bytes: Option<Bytes>,
}

impl Store {
    pub fn new(character: Character, seed: u64) -> Store {
        Store(Arc::new(Mutex::new(State {
            random: Rng::with_seed(seed),
            faults: Some(character.faults),
            character,
            began: clock::now(),
            objects: BTreeMap::new(),
            writes: 0,
            log: Vec::new(),
            told: Vec::new(),
            watchers: Vec::new(),
            dead: BTreeSet::new(),
            tombstones: BTreeMap::new(),
        })))
    }

    /// From now on nothing fails.
    pub fn behave(&self) {
        self.0.lock().faults = None;
    }

    pub fn now(&self) -> Time {
        self.0.lock().now()
    }

    /// How long after a close its release comes.
    pub fn lateness(&self) -> Duration {
        let random = &mut self.0.lock().random;
        let most = [1, 3, 100, 1000][random.usize(..4)];
        Duration::from_micros(random.u64(..most * 1000))
    }

    /// All keys with their bytes.
    pub fn content(&self) -> BTreeMap<Key, Bytes> {
        let state = self.0.lock();
        let all = state.objects.iter();
        all.map(|(key, stored)| (key.clone(), stored.bytes.clone()))
            .collect()
    }
}

impl State {
    pub fn now(&self) -> Time {
        (clock::now() - self.began).as_micros() as Time
    }

    pub fn chance(&mut self, permille: u32) -> bool {
        permille > 0 && self.random.u32(..1000) < permille
    }

    /// How long a request is on its way, what becomes of it, and how long the answer takes.
    pub fn journey(&mut self) -> (Duration, Fate, Duration) {
        let micros = |most: u64, random: &mut Rng| Duration::from_micros(random.u64(1..most));
        let mut there = micros(20_000, &mut self.random);
        let mut back = micros(20_000, &mut self.random);
        let Some(faults) = self.faults else {
            return (there, Fate::Carried, back);
        };
        if self.chance(faults.slow) {
            there = micros(1_500_000, &mut self.random);
        }
        if self.chance(faults.slow) {
            back = micros(2_500_000, &mut self.random);
        }
        let fates = [
            (faults.lost_request, Fate::LostRequest),
            (faults.lost_reply, Fate::LostReply),
            (faults.silent, Fate::Silent),
            (faults.late, Fate::Late),
            (faults.refused, Fate::Refused),
            (faults.contended, Fate::Contended),
        ];
        for (permille, fate) in fates {
            if self.chance(permille) {
                return (there, fate, back);
            }
        }
        (there, Fate::Carried, back)
    }

    /// What an answer to a mount tells of an object.
    pub fn info(&self, stored: &Stored, listed: bool) -> ObjectInfo {
        let kept = match self.character.capabilities.attributes {
            AttributeSupport::None => false,
            AttributeSupport::Object => !listed,
            AttributeSupport::Listed => true,
        };
        let ids = self.character.capabilities.commit_ids && (kept || !listed);
        ObjectInfo {
            size: Some(stored.bytes.len() as u64),
            etag: stored.etag.clone(),
            modified: stored.modified,
            attributes: kept.then(|| Arc::new(stored.attributes.clone())),
            commits: if ids {
                stored.commits.clone()
            } else {
                Vec::new()
            },
            version: None,
        }
    }

    /// Notes that a mount is told what is at a key now.
    pub fn tell(&mut self, to: usize, key: &Key) {
        let bytes = self.objects.get(key).map(|stored| stored.bytes.clone());
        let at = self.now();
        self.told.push(Told {
            at,
            to,
            key: key.clone(),
            bytes,
        });
    }

    pub fn find(&self, key: &Key, etag: Option<&ETag>) -> Result<&Stored> {
        let stored = self.objects.get(key).ok_or_else(|| missing(key))?;
        if let Some(etag) = etag {
            Precondition::IfMatch(etag.clone())
                .check(Some(&stored.etag))
                .map_err(|error| error.on(key))?;
        }
        Ok(stored)
    }

    pub fn check(&self, key: &Key, condition: &Precondition) -> Result<()> {
        let now = self.objects.get(key).map(|stored| &stored.etag);
        let now = now.or_else(|| self.tombstones.get(key));
        condition.check(now).map_err(|error| error.on(key))
    }

    /// Puts an object, whatever is there.
    pub fn store(
        &mut self,
        by: usize,
        how: &'static str,
        key: &Key,
        bytes: Bytes,
        attributes: Attributes,
        commits: Vec<CommitId>,
    ) -> ObjectInfo {
        self.writes += 1;
        let etag = if self.character.digests {
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            ETag::new(format!("{:016x}", hasher.finish()))
        } else {
            ETag::new(format!("v{}", self.writes))
        };
        self.tombstones.remove(key);
        let stored = Stored {
            bytes: bytes.clone(),
            etag,
            modified: clock::wall(),
            attributes,
            commits,
        };
        let info = self.info(&stored, false);
        let before = self.objects.insert(key.clone(), stored);
        self.note(by, how, key, before, Some(bytes));
        self.announce(Change::Written(key.clone(), Some(info.etag.clone())));
        info
    }

    pub fn remove(&mut self, by: usize, how: &'static str, key: &Key) -> Option<Stored> {
        let before = self.objects.remove(key)?;
        self.note(by, how, key, Some(before.clone()), None);
        self.announce(Change::Removed(key.clone()));
        Some(before)
    }

    fn note(
        &mut self,
        by: usize,
        how: &'static str,
        key: &Key,
        before: Option<Stored>,
        after: Option<Bytes>,
    ) {
        let at = self.now();
        self.log.push(Mutation {
            at,
            by,
            how,
            key: key.clone(),
            before: before.map(|stored| stored.bytes),
            after,
            commits: self
                .objects
                .get(key)
                .map_or(Vec::new(), |stored| stored.commits.clone()),
        });
        self.tell(by, key);
    }

    fn announce(&mut self, change: Change) {
        let breaks = self.faults.map_or(0, |faults| faults.broken_feed);
        let (lost, broken) = (self.chance(breaks), self.chance(breaks));
        self.watchers.retain(|watcher| {
            let sent = watcher.send(Ok(if lost { Change::Lost } else { change.clone() }));
            if broken {
                let why = Error::new(ErrorKind::Unreachable, "the feed broke");
                return watcher.send(Err(why.during("watch"))).is_err();
            }
            sent.is_ok()
        });
    }
}

pub fn missing(key: &Key) -> Error {
    Error::new(ErrorKind::NotFound, "there is no such object").on(key)
}

/// What one mount sees of the store: its driver.
#[derive(Clone, Debug)]
pub struct Client {
    pub store: Store,
    pub mount: usize,
    pub broken: Option<Break>,
}
