//! What a write did on the primary, carried over to the replicas.
//!
//! A key is always brought to what the primary has *now*, whoever wrote that. The last thing done
//! about a replica's copy is therefore a look at the primary: of two who write one key at a time,
//! the one whose copy landed last sees what the other wrote, and copies that. So both replicas and
//! primary end alike in whatever order anything arrives.

use super::Shared;
use super::journal::{Begun, Replicas};
use crate::driver::parts::{Mark, Source, is_unavailable, transfer};
use crate::driver::{
    AttributeChange, AttributeSupport, Attributes, Body, CopyOptions, Driver, ETag, Error,
    ErrorKind, GetOptions, ObjectInfo, Precondition, PutOptions, Result, Strength,
};
use crate::key::Key;
use futures::StreamExt;
use futures::future::{BoxFuture, join_all};
use std::sync::Arc;
use std::time::Duration;

/// Objects above this size are carried over in the background, unless their bytes are here: what
/// waits for the write has a deadline.
const LARGE: u64 = 64 << 20;
/// How often the primary may change while a key is carried over, before that is left for later.
const PATIENCE: usize = 4;
/// Keys of one write that are carried over at a time.
const WIDTH: usize = 16;

/// How a replica gets what a write did to a key.
pub(super) struct Step {
    key: Key,
    how: How,
    /// What the primary has then; `None` when that is not known, or nothing.
    etag: Option<ETag>,
}

enum How {
    /// The bytes and attributes are here.
    Written(Body, Box<PutOptions>),
    /// There is nothing any more.
    Removed,
    /// It is a copy of a version of another key.
    Copied {
        from: Key,
        source: Option<ETag>,
        options: Box<PutOptions>,
        told: bool,
    },
    /// Attributes are these now, of this version of the bytes.
    Changed(ETag, Box<Attributes>),
    /// What it has is to be found out.
    Same,
}

impl Step {
    pub fn removed(key: &Key) -> Step {
        Step {
            key: key.clone(),
            how: How::Removed,
            etag: None,
        }
    }

    pub fn same(key: &Key) -> Step {
        Step {
            key: key.clone(),
            how: How::Same,
            etag: None,
        }
    }

    pub fn copied(from: &Key, to: &Key, options: &CopyOptions, info: &ObjectInfo) -> Step {
        let told = info.attributes.as_deref().or(options.attributes.as_ref());
        Step {
            key: to.clone(),
            etag: Some(info.etag.clone()),
            how: How::Copied {
                from: from.clone(),
                source: options.source.clone(),
                told: told.is_some(),
                options: Box::new(PutOptions {
                    attributes: told.cloned().unwrap_or_default(),
                    commits: match options.commits.is_empty() {
                        true => info.commits.clone(),
                        false => options.commits.clone(),
                    },
                    ..PutOptions::default()
                }),
            },
        }
    }

    pub fn changed(key: &Key, before: Option<ETag>, info: &ObjectInfo) -> Step {
        let how = match (before, &info.attributes) {
            (Some(before), Some(now)) => How::Changed(before, Box::new((**now).clone())),
            _ => How::Same,
        };
        Step {
            key: key.clone(),
            etag: Some(info.etag.clone()),
            how,
        }
    }
}

/// A write under way. Dropped before its end, it leaves its keys to whoever repairs.
struct Intent<'a> {
    mirror: &'a Arc<Shared>,
    begun: Begun,
    left: Vec<Key>,
}

impl Intent<'_> {
    fn end(&mut self, key: &Key, lacking: Replicas) {
        if let Some(at) = self.left.iter().position(|left| left == key) {
            self.left.swap_remove(at);
            self.mirror.journal.end(self.begun, key, lacking);
        }
    }
}

impl Drop for Intent<'_> {
    fn drop(&mut self) {
        for key in &self.left {
            let all = self.mirror.all();
            self.mirror.journal.end(self.begun, key, all);
        }
        if !self.left.is_empty() {
            self.mirror.wake();
        }
    }
}

/// Whether an error of a write leaves open what it did.
pub(super) fn is_open(error: &Error) -> bool {
    is_unavailable(error) || error.kind() == ErrorKind::Corrupt || error.retryable()
}

impl Shared {
    /// All replicas.
    pub fn all(&self) -> Replicas {
        (1 << self.replicas.len()) - 1
    }

    /// The step of a put whose body is at hand.
    pub fn written(
        &self,
        key: &Key,
        body: Body,
        mut options: PutOptions,
        info: &ObjectInfo,
    ) -> Step {
        // A store of documents may keep something else than it was given.
        let claims = &self.claims;
        let verbatim = claims.attributes != AttributeSupport::None
            && info.size.is_none_or(|size| size == body.len());
        if !verbatim {
            return Step::same(key);
        }
        if let Some(attributes) = &info.attributes {
            options.attributes = (**attributes).clone();
        }
        options.precondition = Precondition::None;
        options.base = None;
        Step {
            key: key.clone(),
            how: How::Written(body, Box::new(options)),
            etag: Some(info.etag.clone()),
        }
    }

    /// Runs a write on the primary, and then carries over what it did. Only the primary's failure
    /// is one.
    pub async fn carried<T: Send>(
        self: &Arc<Self>,
        operation: &'static str,
        keys: &[&Key],
        write: BoxFuture<'_, Result<T>>,
        steps: impl FnOnce(&T) -> Vec<Step> + Send,
    ) -> Result<T> {
        self.claim().await?;
        let mut intent = Intent {
            mirror: self,
            begun: self.journal.begin(keys.iter().copied()),
            left: keys.iter().map(|key| (*key).clone()).collect(),
        };
        let done = match write.await {
            Ok(done) => done,
            Err(error) if is_open(&error) => return Err(error),
            Err(error) => {
                for key in intent.left.drain(..) {
                    self.journal.withdraw(&key);
                }
                return Err(error);
            }
        };
        if self.health.answered() {
            log::info!("{} answers again", self.name);
        }
        let carry = steps(&done).into_iter().map(|step| async move {
            let lacking = self.carry(&step).await;
            (step.key, lacking)
        });
        let mut carry = futures::stream::iter(carry).buffer_unordered(WIDTH);
        let mut lag = false;
        while let Some((key, lacking)) = carry.next().await {
            lag |= lacking != 0;
            intent.end(&key, lacking);
        }
        drop(carry);
        drop(intent);
        if lag {
            log::debug!("{operation}: a replica is to be brought up to date later");
            self.journal.persist().await;
            self.wake();
        }
        Ok(done)
    }

    /// Carries a step over to all replicas. Gives those that lack it.
    async fn carry(&self, step: &Step) -> Replicas {
        let carry = (0..self.replicas.len()).map(|at| self.carry_to(at, step));
        let mut lacking: Replicas = 0;
        let mut to_look = false;
        for (at, carried) in join_all(carry).await.into_iter().enumerate() {
            match carried {
                Ok(look) => to_look |= look,
                Err(error) => {
                    log::debug!("{}: {:?}: {error}", self.replicas[at].name, step.key);
                    lacking |= 1 << at;
                }
            }
        }
        if !to_look {
            return lacking;
        }
        let same = match self.origin.head(&step.key).await {
            Ok(info) => step.etag.as_ref() == Some(&info.etag),
            Err(error) if error.kind() == ErrorKind::NotFound => matches!(step.how, How::Removed),
            Err(_) => return self.all(),
        };
        if same {
            return lacking;
        }
        // Somebody else has written meanwhile.
        let bring = (0..self.replicas.len()).map(|at| self.bring(at, &step.key, Some(LARGE)));
        let brought = join_all(bring).await.into_iter().enumerate();
        let failed = brought.filter(|(_, brought)| brought.is_err());
        failed.fold(0, |lacking, (at, _)| lacking | 1 << at)
    }

    /// Carries a step over to one replica. Gives whether the primary is still to be looked at.
    async fn carry_to(&self, at: usize, step: &Step) -> Result<bool> {
        let (replica, key) = (&self.replicas[at], &step.key);
        self.join(at).await?;
        match (&step.how, &step.etag) {
            (How::Written(body, options), Some(etag)) => {
                let source = Source::of(etag, &options.attributes, Some(body.len()));
                let put = replica.ask("put", async |driver| {
                    let body = async || Ok(body.clone());
                    self.put_copy(&*driver, key, &source, options, body).await
                });
                put.await.map(|()| true)
            }
            (How::Removed, _) => {
                let delete = replica.ask("delete", async |driver| {
                    driver.delete(key, Precondition::None).await
                });
                delete.await.map(|()| true)
            }
            (
                How::Copied {
                    from,
                    source: Some(source),
                    options,
                    told,
                },
                Some(etag),
            ) => {
                let copied = replica.ask("copy", async |driver| {
                    let (from, to) = (from, key);
                    self.copy_there(&*driver, (from, source), to, etag, options, *told)
                        .await
                });
                match copied.await {
                    Ok(true) => Ok(true),
                    Ok(false) => self.bring(at, key, Some(LARGE)).await.map(|_| false),
                    Err(error) => Err(error),
                }
            }
            (How::Changed(before, now), Some(etag)) => {
                let set = replica.ask("set_attributes", async |driver| {
                    let mut now = (**now).clone();
                    self.mark.strip(&mut now);
                    self.change_there(&*driver, key, before, etag, &now).await
                });
                match set.await {
                    Ok(true) => Ok(true),
                    Ok(false) => self.bring(at, key, Some(LARGE)).await.map(|_| false),
                    Err(error) => Err(error),
                }
            }
            _ => self.bring(at, key, Some(LARGE)).await.map(|_| false),
        }
    }

    /// Copies on the replica, where it has the version that was copied. Whether it has.
    async fn copy_there(
        &self,
        driver: &dyn Driver,
        (from, source): (&Key, &ETag),
        to: &Key,
        etag: &ETag,
        options: &PutOptions,
        told: bool,
    ) -> Result<bool> {
        let held = driver.capabilities().copy;
        if held.is_none_or(|held| held.source != Strength::Atomic) {
            return Ok(false);
        }
        let mut copy = match driver.head(from).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            copy => copy?,
        };
        let marked = self.mark.take(&mut copy);
        if marked.is_none_or(|marked| marked.etag != *source) {
            return Ok(false);
        }
        let mut attributes = match told {
            true => options.attributes.clone(),
            false => copy.told_attributes(),
        };
        let source = Source::of(etag, &attributes, copy.size);
        self.mark.set(&mut attributes, &source);
        let options = CopyOptions {
            source: Some(copy.etag),
            attributes: Some(attributes),
            commits: options.commits.clone(),
            ..CopyOptions::default()
        };
        match driver.copy(from, to, options).await {
            Ok(_) => Ok(true),
            Err(error) if is_unavailable(&error) => Err(error),
            // By bytes, then.
            Err(_) => Ok(false),
        }
    }

    /// Changes attributes on the replica to those of a version, where it has its bytes, of the
    /// version before, and a change can do that. Whether it has.
    async fn change_there(
        &self,
        driver: &dyn Driver,
        key: &Key,
        before: &ETag,
        etag: &ETag,
        now: &Attributes,
    ) -> Result<bool> {
        if !driver.capabilities().set_attributes {
            return Ok(false);
        }
        let mut copy = match driver.head(key).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            copy => copy?,
        };
        let Some(marked) = self.mark.take(&mut copy) else {
            return Ok(false);
        };
        let Some(mut change) = difference(&copy.told_attributes(), now, &marked) else {
            return Ok(false);
        };
        if marked.etag != *before {
            return Ok(false);
        }
        let source = Source::of(etag, now, copy.size);
        let name = self.mark.name().to_owned();
        change.user.insert(name, Some(Mark::value(&source)));
        match driver.set_attributes(key, change, Some(copy.etag)).await {
            Ok(_) => Ok(true),
            Err(error) if is_unavailable(&error) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Puts a copy with its mark. What a replica cannot keep of the owner is left out, and where it
    /// keeps no attributes of links and special files, so is the mark.
    async fn put_copy<F: Future<Output = Result<Body>>>(
        &self,
        driver: &dyn Driver,
        key: &Key,
        source: &Source,
        options: &PutOptions,
        body: impl Fn() -> F,
    ) -> Result<()> {
        let mut options = options.clone();
        self.mark.set(&mut options.attributes, source);
        let error = match driver.put(key, body().await?, options.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let special = is_special(&options.attributes);
        match error.kind() {
            ErrorKind::Denied => {
                options.attributes.uid = None;
                options.attributes.gid = None;
            }
            ErrorKind::Unsupported if special => options.attributes.user.clear(),
            _ => return Err(error),
        }
        driver.put(key, body().await?, options).await.map(drop)
    }

    /// Makes a replica's copy that of what the primary has now. Whether there was anything to do.
    /// What is larger than `most` is left for later.
    pub async fn bring(&self, at: usize, key: &Key, most: Option<u64>) -> Result<bool> {
        let replica = &self.replicas[at];
        self.join(at).await?;
        let mut changed = false;
        for _ in 0..PATIENCE {
            let info = match self.origin.head(key).await {
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                info => Some(info?),
            };
            let brought = replica.ask("repair", async |driver| {
                self.bring_to(&*driver, key, info.as_ref(), most).await
            });
            match brought.await {
                // It was so before, and so nobody can have been overtaken.
                Ok(false) => return Ok(changed),
                Ok(true) => changed = true,
                Err(error) if matches!(error.kind(), ErrorKind::Changed | ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "the object keeps changing").on(key))
    }

    /// One attempt at that. Gives whether anything was done.
    async fn bring_to(
        &self,
        driver: &dyn Driver,
        key: &Key,
        info: Option<&ObjectInfo>,
        most: Option<u64>,
    ) -> Result<bool> {
        let copy = match driver.head(key).await {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            copy => Some(copy?),
        };
        let Some(info) = info else {
            if copy.is_none() {
                return Ok(false);
            }
            if !self.is_itself().await? {
                let why = format!(
                    "{} is not the store that it was, or is empty: what it does not have is not removed from its replicas",
                    self.name
                );
                return Err(Error::new(ErrorKind::Unavailable, why)
                    .during("repair")
                    .on(key));
            }
            driver.delete(key, Precondition::None).await?;
            return Ok(true);
        };
        let mut attributes = info.told_attributes();
        self.mark.strip(&mut attributes);
        let source = Source::of(&info.etag, &attributes, info.size);
        if let Some(mut copy) = copy {
            let marked = self.mark.take(&mut copy);
            let marked = marked.filter(|_| !is_touched(&attributes, &copy));
            if marked.as_ref() == Some(&source) {
                return Ok(false);
            }
            if marked.is_none() && self.is_same_special(driver, key, info, &copy).await? {
                return Ok(false);
            }
            let etag = &source.etag;
            if marked.is_some_and(|marked| marked.etag == *etag)
                && self
                    .change_there(driver, key, etag, etag, &attributes)
                    .await?
            {
                return Ok(true);
            }
        }
        if let (Some(size), Some(most)) = (info.size, most)
            && size > most
        {
            let why = "it is large, and is copied in the background";
            return Err(Error::new(ErrorKind::TooLarge, why).on(key));
        }
        let options = PutOptions {
            attributes,
            commits: info.commits.clone(),
            ..PutOptions::default()
        };
        if is_special(&options.attributes) {
            let body = async || self.bytes(&*self.origin, key, info).await;
            self.put_copy(driver, key, &source, &options, body).await?;
            return Ok(true);
        }
        let mut marked = options;
        self.mark.set(&mut marked.attributes, &source);
        let sent = transfer(&*self.origin, key, info, driver, marked.clone()).await;
        match sent {
            Err(error) if error.kind() == ErrorKind::Denied => {
                marked.attributes.uid = None;
                marked.attributes.gid = None;
                transfer(&*self.origin, key, info, driver, marked).await?;
            }
            sent => drop(sent?),
        }
        Ok(true)
    }

    /// Whether a copy that cannot be marked is what it should be.
    async fn is_same_special(
        &self,
        driver: &dyn Driver,
        key: &Key,
        info: &ObjectInfo,
        copy: &ObjectInfo,
    ) -> Result<bool> {
        let (theirs, ours) = (info.told_attributes(), copy.told_attributes());
        if !is_special(&theirs) || theirs.mode != ours.mode || theirs.rdev != ours.rdev {
            return Ok(false);
        }
        let source = self
            .bytes(&*self.origin, key, info)
            .await?
            .collect()
            .await?;
        let copy = self.bytes(driver, key, copy).await?.collect().await?;
        Ok(source == copy)
    }

    /// The bytes of a link or special file.
    async fn bytes(&self, driver: &dyn Driver, key: &Key, info: &ObjectInfo) -> Result<Body> {
        let version = GetOptions {
            if_match: Some(info.etag.clone()),
            ..GetOptions::default()
        };
        let object = driver.get(key, version).await?.found()?;
        Ok(object.collect().await?.1.into())
    }
}

/// Whether these are the attributes of a link or a special file.
pub(super) fn is_special(attributes: &Attributes) -> bool {
    attributes.require_plain("put").is_err()
}

/// Whether somebody has written to a copy of an object with these attributes, as its time tells. Some
/// stores keep whole seconds.
pub(super) fn is_touched(attributes: &Attributes, copy: &ObjectInfo) -> bool {
    let copied = copy.attributes.as_ref().and_then(|told| told.mtime);
    let (Some(was), Some(is)) = (attributes.mtime, copied) else {
        return false;
    };
    let apart = is
        .duration_since(was)
        .unwrap_or_else(|before| before.duration());
    apart >= Duration::from_secs(1)
}

/// What makes a copy's attributes the others, if a change can. What the copy's source never had,
/// a store may tell of itself.
pub(super) fn difference(
    copy: &Attributes,
    to: &Attributes,
    marked: &Source,
) -> Option<AttributeChange> {
    let mut from = copy.clone();
    from.mode = from.mode.filter(|_| to.mode.is_some());
    from.uid = from.uid.filter(|_| to.uid.is_some());
    from.gid = from.gid.filter(|_| to.gid.is_some());
    from.mtime = from.mtime.filter(|_| to.mtime.is_some());
    if from != *copy && Mark::digest(&from) != marked.attributes {
        return None;
    }
    let gone = from.user.keys().filter(|name| !to.user.contains_key(*name));
    let mut user: std::collections::BTreeMap<_, _> =
        gone.map(|name| (name.clone(), None)).collect();
    let come = to.user.iter();
    user.extend(come.map(|(name, value)| (name.clone(), Some(value.clone()))));
    let change = AttributeChange {
        mode: to.mode,
        uid: to.uid,
        gid: to.gid,
        mtime: to.mtime,
        atime: to.atime,
        content_type: to.content_type.clone(),
        user,
    };
    change.apply(&mut from);
    (Mark::digest(&from) == Mark::digest(to)).then_some(change)
}
