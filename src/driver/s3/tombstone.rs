//! Deletes under a condition where the server ignores that of a DELETE and holds that of a PUT, as
//! MinIO does: first a tombstone is put in the place of the version that is to go, under the
//! condition, and then that is deleted. A tombstone has fixed bytes, so that listings tell it by its
//! etag; it is read as absent, nothing is based on it, and who makes a new object waits until it is
//! gone. So of those who keep to this nobody loses a write, and of several who delete one version one
//! wins. Who writes without a condition between the two requests loses what was written.
//!
//! One whose mount was stopped between the two is replaced, or deleted, later: by then no request of
//! its own can be under way. For that there are two kinds, which replace each other under a
//! condition: it goes by one only.

use super::object::written_etag;
use super::refusal::{Failed, Purpose, Refusal};
use super::store::{Call, Outgoing};
use super::xml::Complaint;
use super::{Bucket, meta};
use crate::clock::{self, Instant};
use crate::driver::{
    Attributes, Body, CommitId, CopyOptions, ETag, Error, ErrorKind, ListEntry, ObjectInfo,
    Precondition, PutOptions, Removal, Result, Strength,
};
use crate::key::Key;
use crate::task;
use futures::stream::{self, StreamExt};
use http::{Method, StatusCode};
use lru::LruCache;
use md5::{Digest, Md5};
use parking_lot::Mutex;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

/// What the two kinds hold, for who meets one with another tool.
const BYTES: [&str; 2] = [
    "bucketfs is deleting what was here; this object can be deleted. 0c5e2b97d1a84f36-1\n",
    "bucketfs is deleting what was here; this object can be deleted. 0c5e2b97d1a84f36-2\n",
];
const SIZE: u64 = BYTES[0].len() as u64;
/// Their etags, on a server that takes MD5 for that.
static ETAGS: LazyLock<[ETag; 2]> = LazyLock::new(|| BYTES.map(etag_of));

/// After so long a tombstone's mount has no request under way that could still delete it: who makes
/// an object there replaces it, and who meets it in a listing deletes it.
const LEFT: Duration = Duration::from_secs(60);
/// How long who makes an object waits at once, and how long before the first look.
const PATIENCE: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_millis(4);
/// How many are put at once for a delete of many.
const WIDTH: usize = 16;
/// Of how many deletes it is remembered that their answer was lost.
const UNSETTLED: usize = 1024;

fn etag_of(bytes: &str) -> ETag {
    let mut text = String::with_capacity(32);
    for byte in Md5::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    ETag::new(text)
}

/// Which kind of tombstone an object is.
fn kind_of(info: &ObjectInfo) -> Option<usize> {
    if info.size != Some(SIZE) {
        return None;
    }
    ETAGS.iter().position(|etag| *etag == info.etag)
}

/// Whether an object is a tombstone, which is none.
pub(super) fn is(info: &ObjectInfo) -> bool {
    kind_of(info).is_some()
}

/// What a request for one is answered.
pub(super) fn absent() -> Failed {
    Failed::Refused(Refusal::late(
        StatusCode::NOT_FOUND,
        Complaint {
            code: "NoSuchKey".into(),
            message: "it was deleted".into(),
            region: None,
        },
    ))
}

/// The deletes of a bucket whose tombstone may be there, because the answer to a request was lost,
/// by the commit ids of those, and whether it may have been deleted by now. A leaf lock, held for
/// moments only.
#[derive(Debug)]
pub(super) struct Unsettled(Mutex<LruCache<Key, (CommitId, bool)>>);

impl Default for Unsettled {
    fn default() -> Self {
        let most = NonZeroUsize::new(UNSETTLED).unwrap_or(NonZeroUsize::MIN);
        Unsettled(Mutex::new(LruCache::new(most)))
    }
}

/// A delete under way; dropped before it is settled it is remembered.
struct Burial<'a> {
    all: &'a Unsettled,
    key: &'a Key,
    /// What its tombstone is put as.
    id: CommitId,
    /// Whether its deletion has been sent.
    sent: bool,
    settled: bool,
}

/// What has become of the version that is to go.
enum Mark<'a> {
    /// Its tombstone is there.
    Put(Burial<'a>),
    /// This delete has deleted it, and the answer was lost.
    Gone,
}

impl<'a> Burial<'a> {
    /// Begins one, or goes on with one whose answer was lost. Two at the same time are two.
    fn of(all: &'a Unsettled, key: &'a Key) -> Self {
        let before = all.0.lock().pop(key);
        let (id, sent) = before.unwrap_or_else(|| (CommitId(clock::random()), false));
        Burial {
            all,
            key,
            id,
            sent,
            settled: false,
        }
    }
}

impl Drop for Burial<'_> {
    fn drop(&mut self) {
        if !self.settled {
            let before = (self.id, self.sent);
            self.all.0.lock().put(self.key.clone(), before);
        }
    }
}

/// What is at a key.
enum There {
    Nothing,
    Object,
    Tombstone(usize, ObjectInfo),
}

impl Bucket {
    /// Whether deletes under a condition go by tombstones.
    pub(super) fn buries(&self) -> bool {
        self.findings.tombstones && self.findings.delete == Strength::None
    }

    /// The strength of the condition of a delete.
    pub(super) fn delete_strength(&self) -> Strength {
        match self.buries() {
            // Who takes no condition can come between the two requests.
            true => Strength::Checked,
            false => self.findings.delete,
        }
    }

    /// The same where many keys are deleted.
    pub(super) fn delete_many_strength(&self) -> Strength {
        match self.buries() {
            true => Strength::Checked,
            false => self.findings.delete_many_condition,
        }
    }

    async fn there(&self, key: &Key) -> Result<There> {
        match self.look_at(key, None, None).await {
            Ok(Some((info, _))) => Ok(match kind_of(&info) {
                Some(kind) => There::Tombstone(kind, info),
                None => There::Object,
            }),
            Err(Failed::Refused(refusal)) if refusal.object_missing() => Ok(There::Nothing),
            Ok(None) => Ok(There::Nothing),
            Err(failed) => Err(Purpose::of("head", Some(key)).error(failed)),
        }
    }

    async fn put_tombstone(
        &self,
        key: &Key,
        kind: usize,
        precondition: &Precondition,
        id: CommitId,
    ) -> std::result::Result<ETag, Failed> {
        let body = Body::from(BYTES[kind]);
        let mut call = Call::new(Method::PUT, key.as_bytes());
        call.body = Outgoing::Object(&body);
        self.describe(&mut call.headers, key, &Attributes::default(), &[id])?;
        if self.findings.checksum {
            let checksum = meta::checksum(&body).await?;
            call.headers.insert(meta::CHECKSUM, meta::ascii(&checksum)?);
        }
        self.add_precondition(&mut call.headers, precondition)?;
        let (headers, _) = self.make(&mut call).await?;
        Ok(written_etag(&headers, &Purpose::of("delete", Some(key)))?)
    }

    /// Whether tombstones have the etag here by which they are told.
    pub(super) async fn knows_tombstones(&self, key: &Key) -> Result<bool> {
        let put = self.put_tombstone(key, 0, &Precondition::None, CommitId(0));
        match put.await {
            Ok(etag) => Ok(etag == ETAGS[0]),
            Err(failed) => Err(Purpose::of("put", Some(key)).error(failed)),
        }
    }

    /// Puts a tombstone in the place of a version, or nothing: then somebody else has written or
    /// deleted it.
    async fn mark<'a>(&'a self, key: &'a Key, etag: &ETag) -> Result<Mark<'a>> {
        let purpose = Purpose {
            missing: ErrorKind::Changed,
            ..Purpose::of("delete", Some(key))
        };
        let mut burial = Burial::of(&self.target.unsettled, key);
        let condition = Precondition::IfMatch(etag.clone());
        let put = self.put_tombstone(key, 0, &condition, burial.id).await;
        let lost = match put {
            Ok(_) => return Ok(Mark::Put(burial)),
            Err(failed) => purpose.error(failed),
        };
        if lost.kind() != ErrorKind::Changed {
            return Err(lost);
        }
        // What is there may be its own, if the answer to the same request was lost before.
        match self.there(key).await? {
            There::Tombstone(_, there) if there.commits.first() == Some(&burial.id) => {
                Ok(Mark::Put(burial))
            }
            There::Nothing if burial.sent => {
                burial.settled = true;
                Ok(Mark::Gone)
            }
            There::Tombstone(..) | There::Nothing | There::Object => {
                burial.settled = true;
                Err(lost)
            }
        }
    }

    /// Deletes a version, or nothing.
    pub(super) async fn bury(&self, key: &Key, etag: &ETag) -> Result<()> {
        if let Mark::Put(mut burial) = self.mark(key, etag).await? {
            burial.sent = true;
            self.delete_raw(key, &Precondition::None).await?;
            burial.settled = true;
        }
        Ok(())
    }

    /// Deletes keys, those with a version only as that.
    pub(super) async fn bury_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        let marks = (0..removals.len()).map(|at| async move {
            let Removal { key, if_match } = &removals[at];
            match if_match {
                Some(etag) => self.mark(key, etag).await.map(Some),
                None => Ok(None),
            }
        });
        let mut marks: Vec<_> = stream::iter(marks).buffered(WIDTH).collect().await;
        let mut marked = Vec::with_capacity(removals.len());
        for (removal, mark) in removals.iter().zip(&mut marks) {
            match mark {
                Ok(Some(Mark::Put(burial))) => burial.sent = true,
                Ok(None) => {}
                Ok(Some(Mark::Gone)) | Err(_) => continue,
            }
            marked.push(Removal::from(removal.key.clone()));
        }
        let mut deleted = match marked.is_empty() {
            true => Vec::new(),
            false => self.delete_objects(&marked, Strength::None).await?,
        }
        .into_iter();
        let results = marks.into_iter().map(|mark| {
            let mark = mark?;
            if matches!(mark, Some(Mark::Gone)) {
                return Ok(());
            }
            let result = deleted.next().unwrap_or(Ok(()));
            if let Some(Mark::Put(mut burial)) = mark {
                burial.settled = result.is_ok();
            }
            result
        });
        Ok(results.collect())
    }

    /// Puts an object, behind any tombstone, that is not taken for one.
    pub(super) async fn put_behind(
        &self,
        key: &Key,
        body: &Body,
        mut options: PutOptions,
    ) -> Result<ObjectInfo> {
        let purpose = Purpose::of("put", Some(key));
        check(body).await.map_err(|error| purpose.name(error))?;
        let mut making = Making::new(self, key, &options.precondition);
        loop {
            options.precondition = making.condition.clone();
            let made = self.put_raw(key, body, &options).await;
            if let Some(made) = making.after(made).await? {
                return Ok(made);
            }
        }
    }

    /// Copies an object, behind any tombstone.
    pub(super) async fn copy_behind(
        &self,
        from: &Key,
        to: &Key,
        mut options: CopyOptions,
    ) -> Result<ObjectInfo> {
        let mut making = Making::new(self, to, &options.destination);
        loop {
            options.destination = making.condition.clone();
            let made = self.copy_object(from, to, &options).await;
            if let Some(made) = making.after(made).await? {
                return Ok(made);
            }
        }
    }

    fn is_older(&self, info: &ObjectInfo, age: Duration) -> bool {
        let now: SystemTime = self.store.wall();
        now.duration_since(info.modified).is_ok_and(|old| old > age)
    }

    /// Leaves tombstones out of what a listing tells, and deletes those that were forgotten.
    pub(super) fn without_tombstones(&self, entries: &mut Vec<ListEntry>) {
        let mut forgotten = Vec::new();
        entries.retain(|ListEntry { key, object }| {
            let Some((info, kind)) = object
                .as_ref()
                .and_then(|info| Some((info, kind_of(info)?)))
            else {
                return true;
            };
            if self.is_older(info, LEFT) {
                forgotten.push((key.clone(), kind));
            }
            false
        });
        if forgotten.is_empty() || !self.buries() {
            return;
        }
        let bucket = self.clone();
        task::spawn(async move {
            for (key, kind) in forgotten {
                if let Err(failed) = bucket.sweep(&key, kind).await {
                    let error = Purpose::of("delete", Some(&key)).error(failed);
                    log::debug!("a tombstone stays: {error}");
                }
            }
        });
    }

    /// Deletes a tombstone that was forgotten, unless somebody else does, or makes an object there.
    async fn sweep(&self, key: &Key, kind: usize) -> std::result::Result<(), Failed> {
        let id = CommitId(clock::random());
        let condition = Precondition::IfMatch(ETAGS[kind].clone());
        self.put_tombstone(key, 1 - kind, &condition, id).await?;
        Ok(self.delete_raw(key, &Precondition::None).await?)
    }
}

/// The making of an object. Where there must be none before, a tombstone is none: it is waited for,
/// and replaced when nobody can delete it any more.
pub(super) struct Making<'a> {
    bucket: &'a Bucket,
    key: &'a Key,
    /// Whether a tombstone can be in the way.
    waits: bool,
    /// Under which condition it is to be tried.
    pub condition: Precondition,
    begun: Instant,
    pause: Duration,
}

impl<'a> Making<'a> {
    pub fn new(bucket: &'a Bucket, key: &'a Key, precondition: &Precondition) -> Self {
        Making {
            bucket,
            key,
            waits: *precondition == Precondition::IfAbsent && bucket.buries(),
            condition: precondition.clone(),
            begun: clock::now(),
            pause: SOON,
        }
    }

    /// How an attempt ended; `None` when another is to be made.
    pub async fn after<T>(&mut self, made: Result<T>) -> Result<Option<T>> {
        let lost = match made {
            Err(error)
                if self.waits
                    && matches!(error.kind(), ErrorKind::Exists | ErrorKind::Changed)
                    && error.key().is_none_or(|named| named == self.key) =>
            {
                error
            }
            other => return other.map(Some),
        };
        let before = std::mem::replace(&mut self.condition, Precondition::IfAbsent);
        match self.bucket.there(self.key).await? {
            There::Object if before == Precondition::IfAbsent => return Err(lost),
            There::Object | There::Nothing => {}
            There::Tombstone(kind, info) if self.bucket.is_older(&info, LEFT) => {
                self.condition = Precondition::IfMatch(ETAGS[kind].clone());
            }
            There::Tombstone(..) => {
                tokio::time::sleep(self.pause).await;
                self.pause *= 2;
            }
        }
        if clock::now() < self.begun + PATIENCE {
            return Ok(None);
        }
        let why = "somebody is deleting what was here, or was stopped while that was done: the name is free again in a minute";
        let error = Error::new(ErrorKind::Unavailable, why);
        Err(error.during("put").on(self.key))
    }
}

/// Refuses to put what would be taken for a tombstone.
async fn check(body: &Body) -> Result<()> {
    if body.len() != SIZE {
        return Ok(());
    }
    let mut bytes = Vec::new();
    let mut stream = body.stream();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece?);
    }
    match BYTES.iter().any(|text| text.as_bytes() == bytes) {
        true => Err(Error::new(
            ErrorKind::InvalidArgument,
            "an object of these bytes would be taken for one that is being deleted",
        )),
        false => Ok(()),
    }
}
