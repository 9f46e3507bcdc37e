//! The contract between bucketfs and a store.
//!
//! A [`Driver`] is one bucket: a map from keys to versioned objects. A new store is one file in
//! `src/driver/`, one word in the list at the end of this file, and passes the one conformance
//! suite (`tests/conformance.rs`).
//!
//! What every method promises:
//! - **Atomic**: a write happens wholly or not at all; no reader sees a part of it.
//! - **Visible**: when a write has returned, `head`, `get` and `list` of every client see it.
//! - **Cancellable**: a dropped future leaves the old object or the new one, never something
//!   half-written, and holds no lock.
//! - **Honest**: an error of kind `Timeout`, `Unreachable`, `Unavailable` or `Corrupt` from a
//!   write does not say whether it was applied; every other error means that it was not.

mod attributes;
mod body;
mod capabilities;
mod collections;
mod databases;
mod decimal;
mod error;
mod filter;
mod json;
mod location;
mod metadata;
mod parts;
pub(crate) mod progress;
mod servers;
mod silence;
mod types;
mod web;

pub use body::{Body, Object, Piece, Source, Stored};
pub use capabilities::*;
pub use error::{Error, ErrorKind, Result};
pub use filter::{Filter, Term, compact, position};
pub use location::{Encryption, Location, OpenOptions, Opened, Registered};
pub(crate) use metadata::forget_bytes;
pub use parts::{PartStatus, Repaired, Replicated, is_copy_mark};
pub use types::*;

use crate::key::Key;
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

/// What a get gives.
#[derive(Debug)]
pub enum GetOutcome {
    /// The object, with a stream of its bytes.
    Found(Box<Object>),
    /// It still has the etag of [`GetOptions::if_none_match`].
    Unmodified,
}

impl GetOutcome {
    /// The object, for callers that set no `if_none_match`.
    pub fn found(self) -> Result<Object> {
        match self {
            GetOutcome::Found(object) => Ok(*object),
            GetOutcome::Unmodified => Err(Error::new(
                ErrorKind::Corrupt,
                "the store answered 'not modified' to a request without that condition",
            )
            .during("get")),
        }
    }
}

/// One bucket of a store. `Debug` shows no secrets.
#[async_trait]
pub trait Driver: Send + Sync + Debug + 'static {
    /// What this driver can do. It does not change while the driver lives.
    fn capabilities(&self) -> Capabilities;

    /// Whether an object, last modified at a time if that was told, may have attributes that a
    /// listing did not tell, as far as anybody told. Nothing is asked for that.
    fn has_attributes(&self, key: &Key, modified: Option<SystemTime>) -> bool {
        let _ = (key, modified);
        false
    }

    /// Refuses a key under which there can be no object, whatever its content. Nothing is asked for that.
    fn takes(&self, key: &Key) -> Result<()> {
        let _ = key;
        Ok(())
    }

    /// The clock by which the store tells [`ObjectInfo::modified`], as its answers told it, and else
    /// this machine's. It may be a little behind the store's, and is ahead only of one that was set
    /// back since. Nothing is asked for that.
    fn wall(&self) -> SystemTime {
        crate::clock::wall()
    }

    /// Facts of an object, with attributes and commit ids where they are kept.
    async fn head(&self, key: &Key) -> Result<ObjectInfo>;

    /// The bytes of an object. All bytes of one answer belong to one version; once the answer has
    /// begun it either goes on with that version or fails with `Changed`, `NotFound` or `Corrupt`.
    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome>;

    /// Writes an object whole. The answer is the new version's facts: its etag is the one that
    /// a `head` would tell if nobody wrote since. Where the store gives no clock in its answer,
    /// `modified` is this machine's.
    ///
    /// Missing `IfMatch` targets are `Changed`, whatever the store calls it.
    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo>;

    /// Removes an object. Removing what is missing is fine without a precondition, and `Changed`
    /// with one. `IfAbsent` makes no sense here and is `InvalidArgument`.
    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()>;

    /// One page of a listing. Entries written or removed while a listing goes on may be in it or
    /// not; all others are in it exactly once.
    async fn list(&self, request: ListRequest) -> Result<Page>;

    /// Copies an object on the server, with its attributes unless the options replace them.
    /// Gives the copy's facts.
    ///
    /// A lost condition names its key: [`Error::key`] is `from` for [`CopyOptions::source`] and
    /// `to` for [`CopyOptions::destination`], as callers cannot tell the two apart otherwise. When
    /// both are lost it is either. What is missing at `from` is `NotFound` or `Changed` there.
    async fn copy(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let _ = (from, to, options);
        Err(Error::unsupported("copy"))
    }

    /// Moves an object to another key in one step: at every moment exactly one of both names has
    /// it. `from == to` is `InvalidArgument`. `attributes` of the options must be `None`. A lost
    /// condition names its key as in [`Driver::copy`]. Between keys that a layer keeps in different
    /// places it is `Unsupported`, claimed or not.
    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let _ = (from, to, options);
        Err(Error::unsupported("rename"))
    }

    /// Swaps two objects in one step. Gives the facts of what is now at `a` and at `b`.
    async fn exchange(&self, a: &Key, b: &Key) -> Result<(ObjectInfo, ObjectInfo)> {
        let _ = (a, b);
        Err(Error::unsupported("exchange"))
    }

    /// Changes some attributes of an object, leaving its bytes. With `if_match` only of that
    /// version. The new facts may have a new etag where etags are no digests.
    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let _ = (key, change, if_match);
        Err(Error::unsupported("set_attributes"))
    }

    /// Removes many objects, each as `delete` does; one result for each, in order.
    async fn delete_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        let _ = removals;
        Err(Error::unsupported("delete_many"))
    }

    /// Begins an object that is sent in parts. Nothing of it is visible until `complete`.
    async fn upload(&self, key: &Key, options: PutOptions) -> Result<Box<dyn Upload>> {
        let _ = (key, options);
        Err(Error::unsupported("upload"))
    }

    /// Throws away uploads below `prefix` that were begun before a time and neither completed nor
    /// aborted, whoever began them. Gives their keys; none where uploads leave nothing behind.
    async fn abandon_uploads(&self, prefix: &Key, before: SystemTime) -> Result<Vec<Key>> {
        let _ = (prefix, before);
        Ok(Vec::new())
    }

    /// The versions of an object, newest first.
    async fn versions(&self, key: &Key) -> Result<Vec<VersionInfo>> {
        let _ = key;
        Err(Error::unsupported("versions"))
    }

    /// The changes made below `prefix` by anybody from now on: a change that happens after this
    /// has returned is in the stream, or `Change::Lost` is. The stream ends with an error when
    /// the feed breaks; what happened meanwhile is unknown then.
    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        let _ = prefix;
        Err(Error::unsupported("watch"))
    }

    /// The documents that a filter matches, a page at a time, where the store can look for them
    /// without sending them all. The filter decides on the texts that `get` gives. The first page
    /// may be `Unsupported` also where it is claimed: for now, each object is to be looked at.
    async fn find(&self, query: Query) -> Result<Matches> {
        let _ = query;
        Err(Error::unsupported("find"))
    }

    /// The buckets of the store that this driver belongs to.
    async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        Err(Error::unsupported("buckets"))
    }

    /// The driver of another bucket of the same store.
    async fn bucket(&self, name: &str) -> Result<Arc<dyn Driver>> {
        let _ = name;
        Err(Error::unsupported("bucket"))
    }

    /// Makes a bucket; one that is there is `Exists`.
    async fn create_bucket(&self, name: &str) -> Result<()> {
        let _ = name;
        Err(Error::unsupported("create_bucket"))
    }

    /// Removes a bucket that is empty; one that is not is `Exists`.
    async fn delete_bucket(&self, name: &str) -> Result<()> {
        let _ = name;
        Err(Error::unsupported("delete_bucket"))
    }

    /// Makes sure that what was written to `key` survives a power cut of this machine. Stores that
    /// acknowledge only what is durable have nothing to do; a missing key is fine. The empty key
    /// stands for all that is still to be written anywhere.
    async fn sync(&self, key: &Key) -> Result<()> {
        let _ = key;
        Ok(())
    }

    /// Room in the store, where it has a notion of it.
    async fn space(&self) -> Result<Option<Space>> {
        Ok(None)
    }

    /// What keeps several stores alike behind this driver. Nothing is asked for that.
    fn replicated(&self) -> Vec<Arc<dyn Replicated>> {
        Vec::new()
    }
}

/// An object on its way in parts. Dropping it without `complete` or `abort` leaves nothing
/// visible; a store may keep the parts until somebody cleans up.
#[async_trait]
pub trait Upload: Send + Sync + Debug {
    /// Sends part `number` (from 1). Parts may be sent in any order and in parallel; a number sent
    /// again replaces the part.
    async fn part(&self, number: u32, body: Body) -> Result<()>;

    /// Takes part `number` from a range of an existing object of this etag. The upload must have been
    /// begun for that: [`PutOptions::copies_parts`].
    async fn copy_part(
        &self,
        number: u32,
        from: &Key,
        range: Range<u64>,
        if_match: ETag,
    ) -> Result<()>;

    /// Makes the object of the parts, in the order of their numbers, if the precondition holds.
    /// It may be called again after a retryable error.
    async fn complete(&self, precondition: Precondition) -> Result<ObjectInfo>;

    /// Throws the parts away.
    async fn abort(&self) -> Result<()>;
}

pub mod local;
pub mod memory;
pub mod mirror;
pub mod mongodb;
pub mod redis;
pub mod rethinkdb;
pub mod riak;
pub mod s3;
pub mod tier;

/// Makes the registry of the drivers: one word for each scheme. Their modules are declared above, where
/// rustfmt finds them.
macro_rules! drivers {
    ($($($name:ident)::+),+ $(,)?) => {
        /// Every driver there is.
        pub const DRIVERS: &[Registered] = &[$(Registered {
            scheme: $($name)::+::SCHEME,
            about: $($name)::+::ABOUT,
            open: |location, options| Box::pin($($name)::+::open(location, options)),
        }),+];
    };
}

drivers!(
    memory,
    local,
    s3,
    redis,
    redis::tls,
    mongodb,
    mirror,
    tier,
    rethinkdb,
    riak,
    riak::tls
);

/// The driver of a URL scheme.
pub fn scheme(scheme: &str) -> Option<&'static Registered> {
    DRIVERS.iter().find(|driver| driver.scheme == scheme)
}

/// Opens the store that a URL names.
pub async fn open(location: &Location, options: &OpenOptions) -> Result<Opened> {
    match scheme(location.scheme()) {
        Some(driver) => (driver.open)(location.clone(), options.clone()).await,
        None => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("no driver for {:?} URLs", location.scheme()),
        )),
    }
}
