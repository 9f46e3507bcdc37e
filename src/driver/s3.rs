//! The `s3:` driver: Amazon S3 and every service that speaks its protocol.
//!
//! Signing, credentials, HTTP, TLS and XML are libraries; what is said over them is here, because
//! a mount's cost is its requests. Which conditions a server honours is found out when it is
//! opened for writing, on keys of our own.
//!
//! What is stored with an object comes with its attributes: modes and times, the media type, and
//! the user metadata of other tools.

mod account;
mod bucket;
mod class;
mod copy;
#[cfg(test)]
#[path = "../../tests/fuzz/corpus.rs"]
mod corpus;
mod meta;
mod object;
mod probe;
mod refusal;
mod restated;
mod sign;
mod site;
mod store;
mod tags;
#[cfg(test)]
mod tests;
mod tombstone;
mod trust;
mod upload;
mod verify;
mod xml;

use super::{
    AttributeChange, AttributeCheck, AttributeSupport, Body, BucketInfo, Capabilities, CopyOptions,
    Driver, ETag, Error, ErrorKind, GetOptions, GetOutcome, ListRequest, Location, ObjectInfo,
    OpenOptions, Opened, Page, Precondition, PutOptions, Removal, Result, Strength, Upload,
};
use crate::clock::{self, Instant};
use crate::key::Key;
use async_trait::async_trait;
use parking_lot::Mutex;
use probe::{Findings, known};
use refusal::{Purpose, estranged};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use store::{Store, Target};

/// The URL scheme.
pub const SCHEME: &str = "s3";
/// What `bucketfs drivers` says.
pub const ABOUT: &str =
    "s3://BUCKET[/PREFIX] or s3:// for all buckets  Amazon S3 and what speaks its protocol";

/// The longest key, in bytes.
const MAX_KEY: usize = 1024;
/// The largest object that one request can put.
const MAX_OBJECT: u64 = 5 << 30;
/// Where bucketfs' own objects are, below the top of a mount.
const HIDDEN: &str = ".bucketfs/";
/// For how long what was told at opening is the answer to the first question for it.
const OPENING: Duration = Duration::from_secs(5);
/// How long a service may take to answer while it is opened.
const PATIENCE: Duration = Duration::from_secs(30);

/// Opens the store: finds credentials, sees that the bucket is there, and tries out its
/// conditions, unless nothing is to be written. Without a bucket it sees that the account's can be
/// listed.
pub async fn open(location: Location, options: OpenOptions) -> Result<Opened> {
    let (bucket, prefix) = parse(&location)?;
    let account = Account::configure(&options, None).await?;
    let is_store = bucket.is_none();
    let driver: Arc<dyn Driver> = match bucket {
        Some(bucket) => Arc::new(account.open(&bucket, &prefix).await?),
        None => {
            account.greet().await?;
            Arc::new(account)
        }
    };
    Ok(Opened {
        driver,
        prefix,
        is_store,
    })
}

/// The bucket, if any, and the prefix that a URL names.
fn parse(location: &Location) -> Result<(Option<String>, Key)> {
    let wrong = |why: &str| Err(Error::new(ErrorKind::InvalidArgument, why));
    let url = location.url();
    location.parameters(&[])?;
    if url.fragment().is_some() {
        return wrong("write a # in the prefix as %23");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return wrong(
            "credentials do not belong into the URL: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        );
    }
    if url.port().is_some() {
        return wrong(
            "the URL names a bucket, not a server: write s3://BUCKET and give the server with --endpoint-url",
        );
    }
    let mut prefix = location.path();
    let bucket = match location.host() {
        "" if prefix.is_empty() => return Ok((None, Key::empty())),
        "" => return wrong("name the bucket before the prefix, as in s3://BUCKET/PREFIX"),
        name => bucket::check_name(name)?.to_owned(),
    };
    if prefix.last().is_some_and(|last| *last != b'/') {
        prefix.push(b'/');
    }
    let prefix = Key::from(prefix);
    if prefix.to_str().is_none() {
        return wrong("the prefix is not UTF-8, which keys must be");
    }
    Ok((Some(bucket), prefix))
}

/// Credentials given by hand instead of found. `Debug` does not show them.
pub struct StaticCredentials(aws_credential_types::Credentials);

impl StaticCredentials {
    /// An access key and its secret.
    pub fn new(access_key_id: impl Into<String>, secret_access_key: impl Into<String>) -> Self {
        StaticCredentials(aws_credential_types::Credentials::new(
            access_key_id,
            secret_access_key,
            None,
            None,
            "given",
        ))
    }
}

impl fmt::Debug for StaticCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StaticCredentials(***)")
    }
}

/// An account at a service, before a bucket is chosen.
#[derive(Clone, Debug)]
pub struct Account {
    store: Arc<Store>,
    options: OpenOptions,
}

impl Account {
    /// Finds region, endpoint and, unless they are given, credentials: in the options, the
    /// environment, the profile, and what else the field's tools look at. Nothing is sent to the
    /// service yet.
    pub async fn configure(
        options: &OpenOptions,
        credentials: Option<StaticCredentials>,
    ) -> Result<Self> {
        let store = Store::configure(options, credentials)
            .await
            .map_err(|error| error.during("open"))?;
        Ok(Account {
            store: Arc::new(store),
            options: options.clone(),
        })
    }

    /// Makes a bucket; one that is there is `Exists`.
    pub async fn create_bucket(&self, name: &str) -> Result<()> {
        self.store.create_bucket(name).await
    }

    /// A bucket of which this is known so far. Nothing is sent.
    fn at(&self, bucket: &str, findings: Findings) -> Result<Bucket> {
        Ok(Bucket {
            target: Arc::new(Target::new(
                Some(bucket::check_name(bucket)?),
                self.store.site.clone(),
            )),
            account: self.clone(),
            store: self.store.clone(),
            findings,
            first: Arc::default(),
        })
    }

    /// Sees that the service knows these credentials. Who may not list buckets may yet name them.
    async fn greet(&self) -> Result<()> {
        let site = &self.store.site;
        self.patiently(async {
            match self.store.buckets().await {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == ErrorKind::Denied => {
                    log::warn!(
                        "these credentials may not list the buckets at {site}; those that they may use can be named: {}",
                        error.message()
                    );
                    Ok(())
                }
                Err(error) => Err(estranged(error, site)),
            }
        })
        .await
    }

    /// Opens a bucket for what lies below `prefix`: sees that it is there and may be listed, and
    /// tries out its conditions unless the options say that nothing is written.
    pub async fn open(&self, bucket: &str, prefix: &Key) -> Result<Bucket> {
        let mut bucket = self.at(bucket, Findings::NOTHING)?;
        self.patiently(async {
            bucket.check(prefix).await?;
            if !self.options.read_only {
                bucket.findings = bucket.explore(prefix).await?;
            }
            Ok(bucket)
        })
        .await
    }

    async fn patiently<T>(&self, open: impl Future<Output = Result<T>>) -> Result<T> {
        match tokio::time::timeout(2 * PATIENCE, open).await {
            Ok(result) => result.map_err(|error: Error| error.during("open")),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                format!("{} does not answer in time", self.store.site),
            )
            .during("open")),
        }
    }
}

/// A bucket. Cloning it is cheap, and shares what is learnt of where it is.
#[derive(Clone)]
pub struct Bucket {
    store: Arc<Store>,
    account: Account,
    target: Arc<Target>,
    findings: Findings,
    /// What was told while it was opened, for whoever asks for that first. A leaf lock.
    first: Arc<Mutex<Option<First>>>,
}

/// What a bucket holds below a prefix, as it was told at opening.
struct First {
    prefix: Key,
    page: Page,
    at: Instant,
    /// What it has answered: each question once.
    answered: Vec<Key>,
}

impl First {
    /// The answer to a question for a part of it, the first time.
    fn answer(&mut self, request: &ListRequest) -> Option<Page> {
        let prefix = &request.prefix;
        let known = prefix.starts_with(&self.prefix) && *prefix != self.prefix;
        let fresh = self.at + OPENING > clock::now() && !self.answered.contains(prefix);
        if !known || !fresh || *request != ListRequest::flat(prefix) {
            return None;
        }
        self.answered.push(prefix.clone());
        let mut page = self.page.clone();
        page.entries.retain(|entry| entry.key.starts_with(prefix));
        Some(page)
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket")
            .field("bucket", &self.target.bucket)
            .field("endpoint", &format_args!("{}", self.target.site()))
            .field("region", &self.target.site().region)
            .field("findings", &self.findings)
            .finish_non_exhaustive()
    }
}

impl Bucket {
    /// Sees that the bucket is there and may be listed: by what is wanted next, the keys of
    /// bucketfs' own objects, or else by any other.
    async fn check(&self, prefix: &Key) -> Result<()> {
        let hidden = ListRequest::flat(&prefix.join(HIDDEN));
        let any = ListRequest {
            limit: 1,
            ..ListRequest::flat(prefix)
        };
        let asked = clock::now();
        let mut first = &hidden;
        let mut result = self.list_page(first).await;
        if matches!(&result, Err(error) if error.kind() == ErrorKind::Denied) {
            first = &any;
            result = self.list_page(first).await;
        }
        let result = match result {
            Err(error) if !self.target.site().path_style && self.store.site.custom => {
                // Only some services have a host for each bucket; all have the bucket in the path.
                match error.kind() {
                    ErrorKind::Unreachable | ErrorKind::Corrupt | ErrorKind::NotFound => {
                        let elsewhere = self.target.site().with_path_style();
                        self.target.move_to(elsewhere);
                        self.list_page(first).await
                    }
                    _ => Err(error),
                }
            }
            other => other,
        };
        let error = match result {
            Ok(page) => {
                // A part of them tells nothing of what is not in it.
                if *first == hidden && page.next.is_none() {
                    *self.first.lock() = Some(First {
                        prefix: hidden.prefix.clone(),
                        page,
                        at: asked,
                        answered: Vec::new(),
                    });
                }
                return Ok(());
            }
            Err(error) => error,
        };
        let site = self.target.site();
        let bucket = self.target.bucket.as_deref().unwrap_or_default();
        let why = error.message();
        let why = match error.kind() {
            ErrorKind::NotFound => format!("the bucket {bucket:?} does not exist at {site}: {why}"),
            ErrorKind::Denied => {
                format!("these credentials may not list the bucket {bucket:?} at {site}: {why}")
            }
            _ => return Err(estranged(error, &site)),
        };
        Err(Error::new(error.kind(), why).retry(error.retryable()))
    }

    /// Tries out what the server honours, and refuses one that would lose writes.
    async fn explore(&mut self, prefix: &Key) -> Result<Findings> {
        let place = known::place(self, prefix).await;
        let known = match &place {
            Some(place) => known::read(place).await,
            None => None,
        };
        if let Some(findings) = known {
            return self.accept(findings);
        }
        let findings = probe::probe(self, prefix).await.map_err(|error| {
            match error.kind() {
                ErrorKind::Denied => {
                    let bucket = self.target.bucket.as_deref().unwrap_or_default();
                    Error::new(
                        ErrorKind::Denied,
                        format!(
                            "these credentials may not write to the bucket {bucket:?} below {prefix:?}: {}, or mount with --read-only",
                            error.message()
                        ),
                    )
                }
                _ => error,
            }
        })?;
        log::debug!("{} honours {findings:?}", self.target.site());
        let findings = self.accept(findings)?;
        if let Some(place) = &place {
            known::write(place, &findings).await;
        }
        Ok(findings)
    }

    /// Refuses a server of which it was found out that it would lose writes.
    fn accept(&self, findings: Findings) -> Result<Findings> {
        if findings.put == Strength::None && !self.account.options.unsafe_writes {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{} ignores the conditions of a put: when two write the same file, or one deletes it meanwhile, \
                     the work of one is lost and nobody is told; mount read-only, or accept that with --unsafe-writes",
                    self.target.site()
                ),
            ));
        }
        Ok(findings)
    }

    /// Refuses keys that this service cannot hold: reading one that it takes for another key would
    /// give that one's object.
    fn check_key(&self, key: &Key, purpose: &Purpose<'_>) -> Result<()> {
        let why = if key.is_empty() {
            (ErrorKind::InvalidKey, "a key cannot be empty")
        } else if key.len() > MAX_KEY {
            (ErrorKind::NameTooLong, "a key has at most 1024 bytes")
        } else if key.to_str().is_none() {
            (ErrorKind::InvalidKey, "a key must be UTF-8")
        } else {
            return self
                .findings
                .folded
                .check(key)
                .map_err(|error| purpose.name(error));
        };
        Err(purpose.name(Error::new(why.0, why.1)))
    }

    /// Refuses keys that this service cannot hold, and all writes of a driver that was opened for
    /// reading.
    fn check_written_key(&self, key: &Key, purpose: &Purpose<'_>) -> Result<()> {
        self.check_key(key, purpose)?;
        if self.account.options.read_only {
            return Err(purpose.name(Error::new(
                ErrorKind::ReadOnly,
                "the bucket was opened for reading only",
            )));
        }
        Ok(())
    }
}

#[async_trait]
impl Driver for Bucket {
    fn capabilities(&self) -> Capabilities {
        let writable = !self.account.options.read_only;
        Capabilities {
            put_condition: self.findings.put,
            delete_condition: self.delete_strength(),
            knows_own_deletes: self.buries(),
            range: true,
            attributes: AttributeSupport::Object,
            set_attributes: writable && self.copies().is_some(),
            check_attributes: AttributeCheck(meta::check),
            special_files: true,
            commit_ids: true,
            copy: self.copies(),
            delete_many: self.findings.delete_many.then_some(bucket::MOST),
            delete_many_condition: self.delete_many_strength(),
            upload: upload::claimed(&self.findings),
            buckets: true,
            create_bucket: writable,
            utf8_keys: true,
            max_key: MAX_KEY,
            max_object: MAX_OBJECT,
            ..Capabilities::default()
        }
    }

    fn wall(&self) -> SystemTime {
        self.store.wall()
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.head_object(key).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        self.get_object(key, options).await
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        let purpose = Purpose::of("put", Some(key));
        self.check_written_key(key, &purpose)?;
        options
            .precondition
            .require(self.findings.put, "put")
            .map_err(|error| purpose.name(error))?;
        if body.len() > MAX_OBJECT {
            return Err(purpose.name(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "{} bytes are more than the {MAX_OBJECT} that one request can put",
                    body.len()
                ),
            )));
        }
        self.put_behind(key, &body, options).await
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        let purpose = Purpose::of("delete", Some(key));
        self.check_written_key(key, &purpose)?;
        if precondition == Precondition::IfAbsent {
            return Err(purpose.name(Error::new(
                ErrorKind::InvalidArgument,
                "what is absent cannot be deleted",
            )));
        }
        precondition
            .require(self.delete_strength(), "delete")
            .map_err(|error| purpose.name(error))?;
        match &precondition {
            Precondition::IfMatch(etag) if self.buries() => self.bury(key, etag).await,
            _ => self.delete_raw(key, &precondition).await,
        }
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        let told = (self.first.lock().as_mut()).and_then(|first| first.answer(&request));
        match told {
            Some(page) => Ok(page),
            None => self.list_page(&request).await,
        }
    }

    async fn copy(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let source = Purpose::of("copy", Some(from));
        let destination = Purpose::of("copy", Some(to));
        self.check_key(from, &source)?;
        self.check_written_key(to, &destination)?;
        let Some(copy) = self.copies() else {
            return Err(Error::unsupported("copy").on(to));
        };
        if options.source.is_some() && copy.source == Strength::None {
            return Err(source.name(Error::new(
                ErrorKind::Unsupported,
                "this store takes no condition on what is copied",
            )));
        }
        options
            .destination
            .require(copy.destination, "copy")
            .map_err(|error| destination.name(error))?;
        self.copy_behind(from, to, options).await
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let purpose = Purpose::of("set_attributes", Some(key));
        self.check_written_key(key, &purpose)?;
        if self.copies().is_none() {
            return Err(Error::unsupported("set_attributes").on(key));
        }
        self.restate(key, &change, if_match.as_ref()).await
    }

    async fn delete_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        if !self.findings.delete_many {
            return Err(Error::unsupported("delete_many"));
        }
        if self.buries() && removals.iter().any(|removal| removal.if_match.is_some()) {
            return self.bury_many(removals).await;
        }
        self.delete_objects(removals, self.findings.delete_many_condition)
            .await
    }

    async fn upload(&self, key: &Key, options: PutOptions) -> Result<Box<dyn Upload>> {
        let purpose = Purpose::of("upload", Some(key));
        self.check_written_key(key, &purpose)?;
        if !self.findings.upload {
            return Err(Error::unsupported("upload").on(key));
        }
        Ok(Box::new(self.upload_raw(key, &options).await?))
    }

    async fn abandon_uploads(&self, prefix: &Key, before: SystemTime) -> Result<Vec<Key>> {
        if self.account.options.read_only {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "the bucket was opened for reading only",
            )
            .during("abandon_uploads"));
        }
        self.abandon(prefix, before).await
    }

    async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        self.store.buckets().await
    }

    async fn bucket(&self, name: &str) -> Result<Arc<dyn Driver>> {
        // Conditions are the server's, so what was found out in one bucket holds in all.
        let other = self.account.at(name, self.findings.clone())?;
        other.target.move_to((*self.target.site()).clone());
        other
            .check(&Key::empty())
            .await
            .map_err(|error| error.during("bucket"))?;
        Ok(Arc::new(other))
    }

    async fn create_bucket(&self, name: &str) -> Result<()> {
        if self.account.options.read_only {
            return Err(Error::unsupported("create_bucket"));
        }
        self.store.create_bucket(name).await
    }

    async fn delete_bucket(&self, name: &str) -> Result<()> {
        if self.account.options.read_only {
            return Err(Error::unsupported("delete_bucket"));
        }
        self.store.delete_bucket(name).await
    }
}
