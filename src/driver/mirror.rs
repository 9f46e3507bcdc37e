//! The `mirror:` driver: one store that says what there is, and others that hold copies of it.
//!
//! Every condition is the primary's, and so is every etag. What a write has done there is carried
//! over to the replicas before it returns; a replica that fails is noted in a journal and brought
//! up to date later. A copy is marked with the etag that its source had on the primary, and an
//! etag of the primary is all that is ever told of it: a write that is based on a copy is tested
//! against the primary, and cannot replace what the copy is older than.

mod carry;
mod journal;
mod reads;
mod repair;
mod roles;
#[cfg(test)]
mod tests;
mod uploads;

use super::parts::{self, Copies, Health, Mark, Replicated};
use super::{
    AttributeChange, Body, BucketInfo, Capabilities, Change, CopyOptions, Driver, ETag, Error,
    ErrorKind, GetOptions, GetOutcome, ListRequest, Location, Matches, ObjectInfo, OpenOptions,
    Opened, Page, Precondition, PutOptions, Query, Removal, Result, Space, Strength, Upload,
    VersionInfo,
};
use crate::key::Key;
use async_trait::async_trait;
use carry::Step;
use futures::stream::BoxStream;
use journal::{Journal, Replicas};
use parking_lot::Mutex;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;
use tokio::sync::OnceCell;

/// The URL scheme.
pub const SCHEME: &str = "mirror";
/// What `bucketfs drivers` says.
pub const ABOUT: &str = "mirror:URL,URL[,...]  the first store, with copies of all in the others; a URL with commas in parentheses, or %2C";

/// Most stores of a mirror: the bits of [`Replicas`], less one.
const MOST: usize = 9;

/// Opens the stores. Replicas that do not answer are done without until they do.
pub async fn open(location: Location, options: OpenOptions) -> Result<Opened> {
    let Some((first, others)) = location.parts().split_first() else {
        return Err(wrong(format!("write {ABOUT}")));
    };
    if others.len() >= MOST {
        return Err(wrong(format!("a mirror has at most {MOST} stores")));
    }
    let primary = parts::open(first, &options, false).await.map_err(|error| {
        let why = format!("{first}, which is the first store: {}", error.reason());
        Error::new(error.kind(), why).during("open")
    })?;
    let mut replicas = Vec::new();
    for other in others {
        replicas.push(Copies::connect(other, &options).await?);
    }
    let dir = options.journal_dir.filter(|_| !options.read_only);
    let fills = dir.is_some();
    let mirror = Mirror::over(
        (first.to_string(), primary),
        replicas,
        dir.as_deref(),
        (options.depth, fills),
    )?;
    Ok(Opened {
        driver: Arc::new(mirror),
        prefix: Key::empty(),
        is_store: false,
    })
}

fn wrong(why: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, why).during("open")
}

/// A primary store and its replicas.
#[derive(Clone)]
pub struct Mirror(Arc<Shared>);

struct Shared {
    name: String,
    primary: Arc<dyn Driver>,
    /// The primary for whoever copies from it: with a time limit, as nobody else may set one.
    origin: Arc<dyn Driver>,
    /// Whether the primary answers reads.
    health: Health,
    replicas: Vec<Copies>,
    mark: Mark,
    journal: Journal,
    claims: Capabilities,
    /// Whether somebody repairs in the background.
    repairing: AtomicBool,
    /// Replicas that are not seen yet to have had everything once. A leaf lock.
    unseen: Mutex<Unseen>,
    /// The primary is noted as nobody's replica.
    claimed: OnceCell<()>,
    /// Its id.
    called: OnceCell<String>,
    /// Whether such a one is filled in the background.
    fills: bool,
}

/// Replicas of which it is not known that they ever had everything.
#[derive(Debug, Default)]
struct Unseen {
    /// Nobody has looked.
    unasked: Replicas,
    /// They never had.
    empty: Replicas,
    /// They have the copies of another store, and are left alone.
    of_another: Replicas,
    /// They have everything, and copies of what the primary does not have.
    surplus: Replicas,
    /// Others, too, that may be written to: no note there says that they are another mirror's.
    joined: Replicas,
}

impl Unseen {
    /// Those whose notes are to be looked at.
    fn to_ask(&self) -> Replicas {
        self.unasked | self.of_another
    }

    /// Those that are to be filled.
    fn to_fill(&self) -> Replicas {
        self.empty & !self.of_another & !self.surplus
    }
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.replicas.iter().map(|r| r.name.as_str()).collect();
        f.debug_struct("Mirror")
            .field("primary", &self.primary)
            .field("replicas", &names)
            .finish_non_exhaustive()
    }
}

/// What the primary can do, as far as all replicas can hold it. What a replica cannot do itself,
/// such as a copy, it gets by being copied to.
fn claims(primary: Capabilities, replicas: &[Copies]) -> Capabilities {
    let mut all = Capabilities {
        buckets: false,
        create_bucket: false,
        ..primary
    };
    for claims in replicas.iter().filter_map(Copies::claims) {
        all.remote |= claims.remote;
        all.keeps_bodies = all.keeps_bodies.min(claims.keeps_bodies);
        all.special_files &= claims.special_files;
        all.utf8_keys |= claims.utf8_keys;
        all.max_key = all.max_key.min(claims.max_key);
        if claims.upload.is_none() {
            all.max_object = all.max_object.min(claims.max_object);
        }
        // One of them can be asked: the first that has anything to say.
        if all.check_attributes == Capabilities::default().check_attributes {
            all.check_attributes = claims.check_attributes;
        }
    }
    all
}

impl Mirror {
    /// Puts open stores together, the primary first. With a directory, what replicas lack is kept
    /// there.
    pub fn new(stores: Vec<Arc<dyn Driver>>, journal: Option<&Path>) -> Result<Mirror> {
        let mut stores = stores.into_iter();
        let primary = stores
            .next()
            .ok_or_else(|| wrong("there is no store".into()))?;
        let replicas: Result<Vec<Copies>> = stores
            .enumerate()
            .map(|(at, driver)| Copies::open(&format!("replica {}", at + 1), driver))
            .collect();
        let primary = ("the primary".into(), primary);
        Mirror::over(primary, replicas?, journal, (0, true))
    }

    fn over(
        (name, primary): (String, Arc<dyn Driver>),
        replicas: Vec<Copies>,
        journal: Option<&Path>,
        (depth, fills): (u32, bool),
    ) -> Result<Mirror> {
        let all: Replicas = (1 << replicas.len()) - 1;
        let journal = match journal {
            Some(dir) => Journal::open(dir, all)?,
            None => Journal::in_memory(),
        };
        let shared = Arc::new(Shared {
            name,
            claims: claims(primary.capabilities(), &replicas),
            origin: parts::patient(primary.clone()),
            primary,
            health: Health::default(),
            replicas,
            mark: Mark::new(depth),
            journal,
            repairing: AtomicBool::new(false),
            unseen: Mutex::new(Unseen {
                unasked: all,
                ..Unseen::default()
            }),
            claimed: OnceCell::new(),
            called: OnceCell::new(),
            fills,
        });
        shared.wake();
        Ok(Mirror(shared))
    }

    /// Whether no replica lacks anything, as far as is known here.
    pub fn is_settled(&self) -> bool {
        !self.0.has_work()
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Driver for Mirror {
    fn capabilities(&self) -> Capabilities {
        self.0.claims.clone()
    }

    fn has_attributes(&self, key: &Key, modified: Option<SystemTime>) -> bool {
        self.0.primary.has_attributes(key, modified)
    }

    fn takes(&self, key: &Key) -> Result<()> {
        self.0.primary.takes(key)
    }

    fn wall(&self) -> SystemTime {
        self.0.primary.wall()
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.0.head(key).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        self.0.get(key, options).await
    }

    async fn put(&self, key: &Key, body: Body, mut options: PutOptions) -> Result<ObjectInfo> {
        self.0.mark.strip(&mut options.attributes);
        let put = self.0.primary.put(key, body.clone(), options.clone());
        let step = |info: &ObjectInfo| vec![self.0.written(key, body, options, info)];
        self.0.carried("put", &[key], put, step).await
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        let delete = self.0.primary.delete(key, precondition);
        let step = |_: &()| vec![Step::removed(key)];
        self.0.carried("delete", &[key], delete, step).await
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        self.0.list(request).await
    }

    async fn copy(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let copy = self.0.primary.copy(from, to, options.clone());
        let step = |info: &ObjectInfo| vec![Step::copied(from, to, &options, info)];
        self.0.carried("copy", &[to], copy, step).await
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let rename = self.0.primary.rename(from, to, options.clone());
        let steps = |info: &ObjectInfo| {
            let copied = Step::copied(from, to, &options, info);
            vec![copied, Step::removed(from)]
        };
        self.0.carried("rename", &[to, from], rename, steps).await
    }

    async fn exchange(&self, a: &Key, b: &Key) -> Result<(ObjectInfo, ObjectInfo)> {
        let exchange = self.0.primary.exchange(a, b);
        let steps = |_: &(ObjectInfo, ObjectInfo)| vec![Step::same(a), Step::same(b)];
        self.0.carried("exchange", &[a, b], exchange, steps).await
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let before = if_match.clone();
        let set = self.0.primary.set_attributes(key, change, if_match);
        let step = |info: &ObjectInfo| vec![Step::changed(key, before, info)];
        self.0.carried("set_attributes", &[key], set, step).await
    }

    async fn delete_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        let keys: Vec<&Key> = removals.iter().map(|removal| &removal.key).collect();
        let delete = self.0.primary.delete_many(removals);
        let steps = |results: &Vec<Result<()>>| {
            let told = removals.iter().zip(results);
            // One that failed may be gone nevertheless.
            let steps = told.map(|(removal, result)| match result {
                Ok(()) => Step::removed(&removal.key),
                Err(_) => Step::same(&removal.key),
            });
            steps.collect()
        };
        self.0.carried("delete_many", &keys, delete, steps).await
    }

    async fn upload(&self, key: &Key, mut options: PutOptions) -> Result<Box<dyn Upload>> {
        self.0.mark.strip(&mut options.attributes);
        let inner = self.0.primary.upload(key, options).await?;
        Ok(Box::new(uploads::Mirrored {
            inner,
            mirror: self.0.clone(),
            key: key.clone(),
        }))
    }

    async fn abandon_uploads(&self, prefix: &Key, before: SystemTime) -> Result<Vec<Key>> {
        for replica in &self.0.replicas {
            let abandon = replica.ask("abandon_uploads", async |driver| {
                driver.abandon_uploads(prefix, before).await
            });
            if let Err(error) = abandon.await {
                log::warn!("{}: uploads are not thrown away: {error}", replica.name);
            }
        }
        self.0.primary.abandon_uploads(prefix, before).await
    }

    async fn versions(&self, key: &Key) -> Result<Vec<VersionInfo>> {
        self.0.primary.versions(key).await
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        self.0.primary.watch(prefix).await
    }

    async fn find(&self, query: Query) -> Result<Matches> {
        self.0.find(query).await
    }

    async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        Err(Error::unsupported("buckets"))
    }

    async fn bucket(&self, _: &str) -> Result<Arc<dyn Driver>> {
        Err(Error::unsupported("bucket"))
    }

    async fn create_bucket(&self, _: &str) -> Result<()> {
        Err(Error::unsupported("create_bucket"))
    }

    async fn delete_bucket(&self, _: &str) -> Result<()> {
        Err(Error::unsupported("delete_bucket"))
    }

    /// The primary's word counts; of replicas nothing more is promised than that they are brought
    /// up to date.
    async fn sync(&self, key: &Key) -> Result<()> {
        for replica in &self.0.replicas {
            let sync = replica.ask("sync", async |driver| driver.sync(key).await);
            if let Err(error) = sync.await {
                log::debug!("{}: {error}", replica.name);
            }
        }
        self.0.primary.sync(key).await
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.0.primary.space().await
    }

    fn replicated(&self) -> Vec<Arc<dyn Replicated>> {
        let mut all: Vec<Arc<dyn Replicated>> = vec![Arc::new(self.clone())];
        all.extend(self.0.primary.replicated());
        let replicas = self.0.replicas.iter().filter_map(Copies::driver);
        all.extend(replicas.flat_map(|driver| driver.replicated()));
        all
    }
}

impl Shared {
    /// Whether a copy may be told that may not be the newest: only where a write that is based on
    /// it is refused then.
    fn tests_writes(&self) -> bool {
        self.claims.put_condition != Strength::None
    }
}
