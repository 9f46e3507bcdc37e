//! The nouns of the driver contract.

use super::{Error, ErrorKind, Filter, Result, Strength};
use crate::clock;
use crate::key::Key;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Names one version of an object's bytes. Opaque: compared for equality only.
///
/// It changes whenever the bytes change. In some stores it is a digest, so that the same bytes
/// have the same etag again (A-B-A) and a change of attributes keeps it; in others each write
/// makes a new one. `head`, `get`, `list` and the answers of writes report the same etag for the
/// same version.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ETag(Arc<str>);

impl ETag {
    /// Wraps the store's own spelling.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        ETag(text.into())
    }

    /// The store's own spelling.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What must be true of the destination for a write to happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum Precondition {
    /// Nothing.
    #[default]
    None,
    /// There is no object of that key; else [`ErrorKind::Exists`].
    IfAbsent,
    /// The object is there with this etag; else [`ErrorKind::Changed`], also when it is missing.
    IfMatch(ETag),
}

/// Identifies one commit, so that a writer whose reply was lost can recognise its own bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommitId(pub u64);

impl CommitId {
    /// How many a version carries: its own and the last seven before it.
    pub const KEPT: usize = 8;

    /// Newest first, as hexadecimal words separated by spaces: how drivers store them.
    pub fn format(ids: &[CommitId]) -> String {
        let words: Vec<String> = ids.iter().map(|id| format!("{:016x}", id.0)).collect();
        words.join(" ")
    }

    /// The reverse of [`CommitId::format`]; words that are no ids are skipped.
    pub fn parse(text: &str) -> Vec<CommitId> {
        text.split_whitespace()
            .filter_map(|word| u64::from_str_radix(word, 16).ok().map(CommitId))
            .take(CommitId::KEPT)
            .collect()
    }
}

impl fmt::Debug for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What an object has beside its bytes. `None` means that the store keeps no such attribute for it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Attributes {
    /// `st_mode` with the file type. A symbolic link is an object whose body is its target.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Time of the last change of the bytes, as set by programs.
    pub mtime: Option<SystemTime>,
    /// Time of the last access, as set by programs.
    pub atime: Option<SystemTime>,
    /// Device number, `st_rdev`, of a device file.
    pub rdev: Option<u32>,
    /// The media type.
    pub content_type: Option<String>,
    /// Extended attributes and user metadata: names without the `user.` prefix.
    pub user: BTreeMap<String, Bytes>,
    /// What else the store keeps with the object, by its own names, so that a rewrite keeps it.
    /// Only its driver knows what it means; drivers skip names that they do not know.
    pub headers: BTreeMap<String, String>,
}

impl Attributes {
    /// Whether anything is stored that no listing tells of an object that has none.
    pub fn exceed_listings(&self) -> bool {
        let Attributes {
            mode,
            uid,
            gid,
            mtime,
            atime,
            rdev,
            content_type: _,
            user,
            headers: _,
        } = self;
        mode.is_some()
            || uid.is_some()
            || gid.is_some()
            || mtime.is_some()
            || atime.is_some()
            || rdev.is_some()
            || !user.is_empty()
    }

    /// Refuses links and special files, for drivers that do not claim them.
    pub fn require_plain(&self, operation: &'static str) -> Result<()> {
        match self.mode.unwrap_or(0) & libc::S_IFMT {
            0 | libc::S_IFREG | libc::S_IFDIR => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                "this store keeps no links and special files",
            )
            .during(operation)),
        }
    }
}

/// A change of some attributes; what is `None` (or not named in `user`) stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AttributeChange {
    /// New permission bits with the unchanged file type.
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New modification time.
    pub mtime: Option<SystemTime>,
    /// New access time.
    pub atime: Option<SystemTime>,
    /// New media type.
    pub content_type: Option<String>,
    /// Extended attributes: `Some` sets, `None` removes.
    pub user: BTreeMap<String, Option<Bytes>>,
}

impl AttributeChange {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == AttributeChange::default()
    }

    /// What makes attributes of others, as far as a change can.
    pub fn between(old: &Attributes, new: &Attributes) -> AttributeChange {
        fn changed<T: Clone + PartialEq>(old: &Option<T>, new: &Option<T>) -> Option<T> {
            new.clone().filter(|_| old != new)
        }
        let set = new
            .user
            .iter()
            .filter(|(name, value)| old.user.get(*name) != Some(*value));
        let set = set.map(|(name, value)| (name.clone(), Some(value.clone())));
        let gone = old.user.keys().filter(|name| !new.user.contains_key(*name));
        AttributeChange {
            mode: changed(&old.mode, &new.mode),
            uid: changed(&old.uid, &new.uid),
            gid: changed(&old.gid, &new.gid),
            mtime: changed(&old.mtime, &new.mtime),
            atime: changed(&old.atime, &new.atime),
            content_type: changed(&old.content_type, &new.content_type),
            user: set.chain(gone.map(|name| (name.clone(), None))).collect(),
        }
    }

    /// Puts a later change behind this one.
    pub fn extend(&mut self, later: &AttributeChange) {
        self.mode = later.mode.or(self.mode);
        self.uid = later.uid.or(self.uid);
        self.gid = later.gid.or(self.gid);
        self.mtime = later.mtime.or(self.mtime);
        self.atime = later.atime.or(self.atime);
        if later.content_type.is_some() {
            self.content_type.clone_from(&later.content_type);
        }
        let user = later.user.iter();
        self.user
            .extend(user.map(|(name, value)| (name.clone(), value.clone())));
    }

    /// Applies the change.
    pub fn apply(&self, to: &mut Attributes) {
        to.mode = self.mode.or(to.mode);
        to.uid = self.uid.or(to.uid);
        to.gid = self.gid.or(to.gid);
        to.mtime = self.mtime.or(to.mtime);
        to.atime = self.atime.or(to.atime);
        if self.content_type.is_some() {
            to.content_type.clone_from(&self.content_type);
        }
        for (name, value) in &self.user {
            match value {
                Some(value) => to.user.insert(name.clone(), value.clone()),
                None => to.user.remove(name),
            };
        }
    }
}

/// Facts of one version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Length in bytes; `None` where only reading the object tells (a document that is rendered).
    pub size: Option<u64>,
    /// The version.
    pub etag: ETag,
    /// When the store took this version, or its attributes, by the store's clock.
    pub modified: SystemTime,
    /// Attributes; `None` when this answer does not tell them (an S3 listing).
    pub attributes: Option<Arc<Attributes>>,
    /// Commit ids, newest first; empty when the answer does not tell or no bucketfs wrote it.
    pub commits: Vec<CommitId>,
    /// The version's id, where the store keeps versions.
    pub version: Option<String>,
}

/// How long after a change another one may have the same time, by which listings tell the two apart.
pub const SETTLING: Duration = Duration::from_secs(2);

impl ObjectInfo {
    /// Whether all changes have been made that can have the time of the last one, when it is `now`
    /// by the store's clock ([`super::Driver::wall`]).
    pub fn is_settled(&self, now: SystemTime) -> bool {
        clock::seconds(now) >= clock::seconds(self.modified) + SETTLING.as_secs()
    }

    /// The attributes; none where this answer does not tell them.
    pub fn told_attributes(&self) -> Attributes {
        self.attributes.as_deref().cloned().unwrap_or_default()
    }
}

/// Which bytes to get, and under which condition.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct GetOptions {
    /// The bytes wanted; `None` is all. May reach past the end.
    pub range: Option<Range<u64>>,
    /// Only this version; another one is [`ErrorKind::Changed`], none is [`ErrorKind::NotFound`].
    pub if_match: Option<ETag>,
    /// Only another version than this one; else [`super::GetOutcome::Unmodified`].
    pub if_none_match: Option<ETag>,
    /// A past version by its id, where `versions` is claimed.
    pub version: Option<String>,
}

/// How a put is to happen.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    /// What must be true of the destination.
    pub precondition: Precondition,
    /// The complete attributes of the new version.
    pub attributes: Attributes,
    /// The new version's commit id and those before it, newest first.
    pub commits: Vec<CommitId>,
    /// The bytes that the body was edited from, so that a driver can write only what changed.
    pub base: Option<super::Body>,
    /// Parts of the upload that is begun so will be copied; into others they need not be.
    pub copies_parts: bool,
    /// The object that this is a copy of. What a store keeps with an object beside its attributes,
    /// as S3 does tags, is taken from there, and else from the version that is replaced.
    pub like: Option<Key>,
}

/// An object to remove among others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Its key.
    pub key: Key,
    /// Only this version; another one, or none, is [`ErrorKind::Changed`].
    pub if_match: Option<ETag>,
}

impl From<Key> for Removal {
    fn from(key: Key) -> Self {
        Removal {
            key,
            if_match: None,
        }
    }
}

/// How a copy or a rename is to happen.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CopyOptions {
    /// The version of the source that is meant; another one is [`ErrorKind::Changed`].
    pub source: Option<ETag>,
    /// What must be true of the destination.
    pub destination: Precondition,
    /// New attributes; `None` keeps the source's.
    pub attributes: Option<Attributes>,
    /// Commit ids of the copy, newest first; empty keeps the source's.
    pub commits: Vec<CommitId>,
    /// An id in front of those, by which whoever made the copy knows it again. For stores that
    /// tell who has deleted an object ([`knows_own_deletes`](super::Capabilities::knows_own_deletes)).
    pub mark: Option<CommitId>,
}

impl CopyOptions {
    /// The ids of the copy of an object that has these.
    pub fn commits_behind(&self, source: &[CommitId]) -> Vec<CommitId> {
        let kept = match self.commits.is_empty() {
            true => source,
            false => &self.commits,
        };
        let mut commits: Vec<CommitId> =
            self.mark.into_iter().chain(kept.iter().copied()).collect();
        commits.truncate(CommitId::KEPT);
        commits
    }

    /// The id of a copy that has just been made.
    pub fn newest(&self) -> &[CommitId] {
        match &self.mark {
            Some(mark) => std::slice::from_ref(mark),
            None => &self.commits,
        }
    }
}

/// Which keys to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// Only keys that begin with this.
    pub prefix: Key,
    /// Whether keys with a `/` behind the prefix are folded into one entry that ends there.
    pub delimiter: bool,
    /// Only entries greater than this. For a folded entry that is its key with the `/`.
    pub start_after: Option<Key>,
    /// Where the last page ended; the other fields are those of the request that gave it.
    pub token: Option<String>,
    /// At most so many entries; a page may have fewer, even none, and yet go on. At least 1.
    pub limit: usize,
}

impl ListRequest {
    /// One page of what lies directly below `prefix`.
    pub fn directory(prefix: &Key) -> Self {
        ListRequest {
            prefix: prefix.clone(),
            delimiter: true,
            start_after: None,
            token: None,
            limit: 1000,
        }
    }

    /// One page of all keys that begin with `prefix`.
    pub fn flat(prefix: &Key) -> Self {
        ListRequest {
            delimiter: false,
            ..ListRequest::directory(prefix)
        }
    }
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// The key, or the common prefix with its `/`.
    pub key: Key,
    /// Facts of the object; `None` for a common prefix.
    pub object: Option<ObjectInfo>,
}

/// A page of a listing: entries in ascending order of their keys' bytes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Page {
    /// The entries; over all pages each key appears once.
    pub entries: Vec<ListEntry>,
    /// How to go on; `None` at the end.
    pub next: Option<String>,
}

/// One past or present version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionInfo {
    /// Its id, for [`GetOptions::version`].
    pub id: String,
    /// Its facts; `None` for a mark that the object was deleted then.
    pub object: Option<ObjectInfo>,
    /// Whether this is the version that a get without id gives.
    pub latest: bool,
}

/// What a change feed tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The object was written; its etag where the feed tells it.
    Written(Key, Option<ETag>),
    /// The object was removed.
    Removed(Key),
    /// Changes were missed: everything known may be stale.
    Lost,
}

/// Which documents to find.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// Only keys that begin with this.
    pub prefix: Key,
    /// What they must hold.
    pub filter: Filter,
    /// Where the last page ended; the other fields are those of the query that gave it.
    pub token: Option<String>,
    /// At most so many matches; a page may have fewer, even none, and yet go on. At least 1.
    pub limit: usize,
}

/// A document that a query found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Its key.
    pub key: Key,
    /// The version that matches.
    pub etag: ETag,
    /// The bytes of that version.
    pub text: Bytes,
}

/// A page of what a query found.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Matches {
    /// Over all pages each key appears once.
    pub found: Vec<Match>,
    /// How to go on; `None` at the end.
    pub next: Option<String>,
}

/// One bucket of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketInfo {
    /// Its name.
    pub name: String,
    /// When it was made, where the store tells.
    pub created: Option<SystemTime>,
}

/// Room in a store, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// How much it can hold.
    pub total: u64,
    /// How much of it is free.
    pub free: u64,
}

impl Precondition {
    /// Refuses a condition that a store of this strength cannot hold.
    pub fn require(&self, strength: Strength, operation: &'static str) -> Result<()> {
        if *self != Precondition::None && strength == Strength::None {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this store takes no conditions here",
            )
            .during(operation));
        }
        Ok(())
    }

    /// Compares against what is there now; for drivers whose store lets them do it under a lock.
    pub fn check(&self, current: Option<&ETag>) -> Result<()> {
        match (self, current) {
            (Precondition::None, _) | (Precondition::IfAbsent, None) => Ok(()),
            (Precondition::IfAbsent, Some(_)) => {
                Err(Error::new(ErrorKind::Exists, "the object is there already"))
            }
            (Precondition::IfMatch(want), Some(have)) if want == have => Ok(()),
            (Precondition::IfMatch(want), have) => Err(Error::new(
                ErrorKind::Changed,
                match have {
                    Some(have) => format!("the object has etag {have:?}, not {want:?}"),
                    None => format!("the object of etag {want:?} is gone"),
                },
            )),
        }
    }
}
