//! Reads: the primary's answer, and while it does not answer what replicas have.
//!
//! - A replica is asked only while the primary is *unavailable* (unreachable, silent, 5xx) after
//!   some attempts. Any other answer of the primary, "not found" above all, is the answer.
//! - A copy is told with the etag that its source had on the primary, and only where its mark says
//!   which one that is. Of an object without a mark the primary's failure is told.
//! - Who asks for one version (`if_match`) gets exactly that one or the primary's failure.
//! - Who asks for whatever there is gets what a replica has that had everything once, and of which
//!   nothing newer is known here; also that there is nothing. It may be stale nevertheless, where
//!   another process could not write to the replica; so it is told only where the primary tests
//!   what is based on it, and a warning and `bucketfs status` say so.

use super::Shared;
use super::carry::is_special;
use super::journal::Replicas;
use super::roles::is_untold;
use crate::driver::parts::{PATIENCE, is_unavailable};
use crate::driver::{
    AttributeSupport, Driver, Error, ErrorKind, GetOptions, GetOutcome, ListEntry, ListRequest,
    Matches, ObjectInfo, Page, Query, Result,
};
use crate::key::Key;
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;

/// How long the pauses are between attempts at a primary that has answered until now.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(200)];
/// Marks of a page that are asked for at a time, where a replica does not list them.
const WIDTH: usize = 16;

impl Shared {
    /// The primary's answer. One that fails is asked again a few times, and later only now and
    /// then while it goes on failing.
    async fn ask_primary<T, F: Future<Output = Result<T>>>(
        &self,
        operation: &'static str,
        request: impl Fn() -> F,
    ) -> Result<T> {
        if self.replicas.is_empty() {
            return request().await;
        }
        let was_failing = self.health.failing().is_some();
        if !self.health.may_ask() {
            return Err(self.health.refusal(operation));
        }
        let mut pauses = PAUSES.iter().take(match was_failing {
            true => 0,
            false => PAUSES.len(),
        });
        loop {
            let answer = match tokio::time::timeout(PATIENCE, request()).await {
                Ok(answer) => answer,
                Err(_) => {
                    let why = format!("{} has not answered for {PATIENCE:?}", self.name);
                    Err(Error::new(ErrorKind::Timeout, why).during(operation))
                }
            };
            let error = match answer {
                Err(error) if is_unavailable(&error) => error,
                answer => {
                    if self.health.answered() {
                        log::info!("{} answers again", self.name);
                    }
                    return answer;
                }
            };
            // Another attempt at one that is silent would take as long again.
            if error.kind() != ErrorKind::Timeout
                && let Some(pause) = pauses.next()
            {
                tokio::time::sleep(*pause).await;
                continue;
            }
            if self.health.failed(&error) {
                log::warn!(
                    "{} does not answer: what is read comes from its replicas and may be stale: {error}",
                    self.name
                );
            }
            return Err(error);
        }
    }

    pub(super) async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let asked = self.ask_primary("head", || self.primary.head(key)).await;
        let error = match asked {
            Err(error) if is_unavailable(&error) => error,
            answer => return answer.map(|info| self.own(info)),
        };
        for at in 0..self.replicas.len() {
            if !self.may_tell(key, at) {
                continue;
            }
            let copy = self.replicas[at].ask("head", async |driver| driver.head(key).await);
            match copy.await {
                Ok(copy) => {
                    if let Some(info) = self.source(copy) {
                        return Ok(info);
                    }
                }
                Err(error) if error.kind() == ErrorKind::NotFound => return Err(error),
                Err(_) => {}
            }
        }
        Err(error)
    }

    pub(super) async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let asked = self
            .ask_primary("get", || self.primary.get(key, options.clone()))
            .await;
        let error = match asked {
            Err(error) if is_unavailable(&error) && options.version.is_none() => error,
            Ok(GetOutcome::Found(mut object)) => {
                object.info = self.own(object.info);
                return Ok(GetOutcome::Found(object));
            }
            answer => return answer,
        };
        for at in 0..self.replicas.len() {
            // One version is the same bytes wherever it is.
            if options.if_match.is_none() && !self.may_tell(key, at) {
                continue;
            }
            let wanted = GetOptions {
                // Whoever gives whole objects is not asked for less here either.
                range: options.range.clone().filter(|_| self.claims.range),
                ..GetOptions::default()
            };
            let copy =
                self.replicas[at].ask("get", async |driver| driver.get(key, wanted).await?.found());
            let mut object = match copy.await {
                Ok(object) => object,
                Err(error) if error.kind() == ErrorKind::NotFound && options.if_match.is_none() => {
                    return Err(error);
                }
                Err(_) => continue,
            };
            let Some(info) = self.source(object.info) else {
                continue;
            };
            if options
                .if_match
                .as_ref()
                .is_some_and(|wanted| *wanted != info.etag)
            {
                continue;
            }
            if options.if_none_match.as_ref() == Some(&info.etag) {
                return Ok(GetOutcome::Unmodified);
            }
            object.info = info;
            return Ok(GetOutcome::Found(Box::new(object)));
        }
        Err(error)
    }

    /// A page, without what only says which part the store has. Its token says whose it is, and a
    /// listing goes on where it began.
    pub(super) async fn list(&self, mut request: ListRequest) -> Result<Page> {
        let begun = match request.token.take() {
            None => None,
            Some(token) => {
                let at = token.get(..1).and_then(|digit| digit.parse::<usize>().ok());
                let at = at.filter(|at| *at <= self.replicas.len()).ok_or_else(|| {
                    let why = format!("{token:?} is no token of this listing");
                    Error::new(ErrorKind::InvalidArgument, why).during("list")
                })?;
                request.token = Some(token[1..].to_owned());
                Some(at)
            }
        };
        if let Some(at @ 1..) = begun {
            return self.list_replica(at - 1, request).await;
        }
        let asked = self
            .ask_primary("list", || self.primary.list(request.clone()))
            .await;
        let error = match asked {
            Err(error) if is_unavailable(&error) && begun.is_none() => error,
            Err(error) => return Err(error),
            Ok(mut page) => {
                page.next = page.next.map(|token| format!("0{token}"));
                page.entries.retain(|entry| !is_untold(&entry.key));
                for entry in &mut page.entries {
                    entry.object = entry.object.take().map(|info| self.own(info));
                }
                return Ok(page);
            }
        };
        for at in 0..self.replicas.len() {
            let lacks = self.journal.may_lack_below(&request.prefix, bit(at));
            if lacks || !self.is_complete(at) || !self.tests_writes() {
                continue;
            }
            if let Ok(page) = self.list_replica(at, request.clone()).await {
                return Ok(page);
            }
        }
        Err(error)
    }

    /// A page of what the primary finds. While it does not answer, whoever searches is to look at what
    /// can be read. A search takes its time, which says nothing about the primary.
    pub(super) async fn find(&self, query: Query) -> Result<Matches> {
        let begins = query.token.is_none() && !self.replicas.is_empty();
        let asked = match self.health.may_ask() {
            true => self.primary.find(query).await,
            false => Err(self.health.refusal("find")),
        };
        match asked {
            Err(error) if begins && is_unavailable(&error) => {
                let why = format!("{} cannot be asked to look", self.name);
                Err(Error::new(ErrorKind::Unsupported, why)
                    .during("find")
                    .because(error))
            }
            answer => {
                if answer.is_ok() && self.health.answered() {
                    log::info!("{} answers again", self.name);
                }
                answer
            }
        }
    }

    async fn list_replica(&self, at: usize, request: ListRequest) -> Result<Page> {
        let replica = &self.replicas[at];
        let ask = replica.ask("list", async |driver| {
            let listed = driver.capabilities().attributes == AttributeSupport::Listed;
            let page = driver.list(request).await?;
            let entries = futures::stream::iter(page.entries);
            let entries = entries.map(|entry| self.listed(&driver, entry, listed));
            let entries: Vec<Result<Listed>> = entries.buffered(WIDTH).collect().await;
            let entries: Result<Vec<Listed>> = entries.into_iter().collect();
            Ok((entries?, page.next))
        });
        let (entries, next) = ask.await?;
        let mut page = Page {
            entries: Vec::with_capacity(entries.len()),
            next: next.map(|token| format!("{}{token}", at + 1)),
        };
        for entry in entries {
            match entry {
                Listed::Copy(entry) if !is_untold(&entry.key) => page.entries.push(entry),
                Listed::Copy(_) | Listed::Foreign => {}
                Listed::Unknown(key) => {
                    let why = format!(
                        "{} keeps no marks of links and special files, and cannot say what this one is a copy of",
                        replica.name
                    );
                    let error = Error::new(ErrorKind::Unavailable, why);
                    return Err(error.during("list").on(&key));
                }
            }
        }
        Ok(page)
    }

    /// An entry of a replica as one of the primary.
    async fn listed(
        &self,
        driver: &Arc<dyn Driver>,
        entry: ListEntry,
        told: bool,
    ) -> Result<Listed> {
        let Some(copy) = entry.object else {
            return Ok(Listed::Copy(entry));
        };
        let copy = match told {
            true => copy,
            false => match driver.head(&entry.key).await {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Listed::Foreign),
                copy => copy?,
            },
        };
        let special = is_special(&copy.told_attributes());
        Ok(match self.source(copy) {
            Some(info) => Listed::Copy(ListEntry {
                key: entry.key,
                object: Some(info),
            }),
            None if special => Listed::Unknown(entry.key),
            None => Listed::Foreign,
        })
    }

    /// Whether a replica's copy may be told as what there is.
    fn may_tell(&self, key: &Key, at: usize) -> bool {
        let lacks = self.journal.may_lack(key, bit(at));
        self.tests_writes() && self.is_complete(at) && !lacks
    }

    /// A copy's facts as those of its source; none where it does not say which that is.
    fn source(&self, mut copy: ObjectInfo) -> Option<ObjectInfo> {
        let source = self.mark.take(&mut copy)?;
        Some(ObjectInfo {
            etag: source.etag,
            version: None,
            ..copy
        })
    }

    /// The primary's facts without what is left there of a time in which it was a replica.
    fn own(&self, mut info: ObjectInfo) -> ObjectInfo {
        self.mark.take(&mut info);
        info
    }
}

/// What a replica's entry is.
enum Listed {
    Copy(ListEntry),
    /// It has no mark.
    Foreign,
    /// It can have none, and may be a copy.
    Unknown(Key),
}

/// A replica by its place.
pub(super) fn bit(at: usize) -> Replicas {
    1 << at
}
