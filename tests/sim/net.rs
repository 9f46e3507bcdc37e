//! The driver of a simulated store: each request travels, is carried out in one step, and its
//! answer travels back, or not.

use crate::broken::Break;
use crate::store::{Client, State};
use async_trait::async_trait;
use bucketfs::driver::{
    AttributeChange, Body, Capabilities, Change, CopyOptions, Driver, ETag, Error, ErrorKind,
    GetOptions, GetOutcome, ListEntry, ListRequest, Object, ObjectInfo, Page, Precondition,
    PutOptions, Result, Strength,
};
use bucketfs::key::Key;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::ops::Bound;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long a client waits for an answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Carried,
    LostRequest,
    LostReply,
    Silent,
    Late,
    Refused,
    Contended,
}

fn broke(operation: &'static str, key: &Key) -> Error {
    Error::new(ErrorKind::Unreachable, "the connection broke")
        .during(operation)
        .on(key)
}

/// What a request is.
struct Ask<'a> {
    operation: &'static str,
    key: &'a Key,
    /// What a conflict of this request is called; none where it has no condition.
    lost: Option<ErrorKind>,
}

impl Client {
    /// Sends a request. What it does on the server happens in one step, and also when nobody waits
    /// for the answer any more.
    async fn ask<T: Send + 'static>(
        &self,
        ask: Ask<'_>,
        carry_out: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if self.store.0.lock().dead.contains(&self.mount) {
            return std::future::pending().await;
        }
        let (there, fate, back) = self.store.0.lock().journey();
        let (operation, key, lost) = (ask.operation, ask.key.clone(), ask.lost);
        let (sender, receiver) = oneshot::channel();
        let store = self.store.clone();
        // Nobody can defend an unconditional write against its own delay.
        let late = fate == Fate::Late && lost.is_some();
        tokio::spawn(async move {
            let given_up = PATIENCE + (there * 100).min(PATIENCE);
            tokio::time::sleep(if late { given_up } else { there }).await;
            let answer = match (fate, lost) {
                (Fate::LostRequest, _) => Err(broke(operation, &key)),
                (Fate::Refused, _) => Err(Error::new(ErrorKind::Unavailable, "503")),
                (Fate::Contended, Some(kind)) => {
                    Err(Error::new(kind, "409: another write is under way").retry(true))
                }
                (Fate::LostReply, _) => {
                    let _ = carry_out(&mut store.0.lock());
                    Err(broke(operation, &key))
                }
                (Fate::Carried | Fate::Silent | Fate::Late | Fate::Contended, _) => {
                    carry_out(&mut store.0.lock())
                }
            };
            if fate == Fate::Silent {
                // The client's patience ends before this.
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            tokio::time::sleep(back).await;
            let named = answer.map_err(|error| {
                let whose = error.key().unwrap_or(&key).clone();
                error.during(operation).on(&whose)
            });
            let _ = sender.send(named);
        });
        match receiver.await {
            Ok(answer) => answer,
            Err(_) => Err(broke(operation, ask.key)),
        }
    }

    fn plain<'a>(operation: &'static str, key: &'a Key) -> Ask<'a> {
        Ask {
            operation,
            key,
            lost: None,
        }
    }

    fn conditional<'a>(operation: &'static str, key: &'a Key, on: &Precondition) -> Ask<'a> {
        Ask {
            operation,
            key,
            lost: match on {
                Precondition::None => None,
                Precondition::IfAbsent => Some(ErrorKind::Exists),
                Precondition::IfMatch(_) => Some(ErrorKind::Changed),
            },
        }
    }

    /// Sends a put of a driver that is right.
    async fn put_once(
        &self,
        key: &Key,
        bytes: bytes::Bytes,
        options: PutOptions,
    ) -> Result<ObjectInfo> {
        let (mount, at) = (self.mount, key.clone());
        let ask = Client::conditional("put", key, &options.precondition);
        self.ask(ask, move |state| {
            state.check(&at, &options.precondition)?;
            let PutOptions {
                attributes,
                commits,
                ..
            } = options;
            Ok(state.store(mount, "put", &at, bytes, attributes, commits))
        })
        .await
    }
}

#[async_trait]
impl Driver for Client {
    fn capabilities(&self) -> Capabilities {
        self.store.0.lock().character.capabilities.clone()
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let (mount, at, broken) = (self.mount, key.clone(), self.broken);
        self.ask(Client::plain("head", key), move |state| {
            state.tell(mount, &at);
            if broken == Some(Break::Tombstone)
                && let Some(etag) = state.tombstones.get(&at)
            {
                return Ok(ObjectInfo {
                    size: Some(0),
                    etag: etag.clone(),
                    modified: bucketfs::clock::wall(),
                    attributes: None,
                    commits: Vec::new(),
                    version: None,
                });
            }
            let stored = state.find(&at, None)?;
            Ok(state.info(stored, false))
        })
        .await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let (mount, at, broken) = (self.mount, key.clone(), self.broken);
        let outcome = self.ask(Client::plain("get", key), move |state| {
            state.tell(mount, &at);
            let if_match = options.if_match.as_ref();
            let if_match = if_match.filter(|_| broken != Some(Break::TornRead));
            let stored = state.find(&at, if_match)?;
            if options.if_none_match.as_ref() == Some(&stored.etag) {
                return Ok(None);
            }
            let size = stored.bytes.len() as u64;
            let wanted = options.range.clone().unwrap_or(0..size);
            let start = wanted.start.min(size);
            let range = start..wanted.end.clamp(start, size);
            let bytes = stored.bytes.slice(range.start as usize..range.end as usize);
            let mut info = state.info(stored, false);
            let (mut range, mut bytes) = (range, bytes);
            if broken == Some(Break::TornRead)
                && let Some(etag) = options.if_match
                && etag != info.etag
            {
                // Of one length, as fixed-size files are.
                let whole = (stored.bytes.len() as u64).max(wanted.end);
                range = wanted;
                bytes = vec![b'?'; (range.end - range.start) as usize].into();
                info.size = Some(whole);
                info.etag = etag;
            }
            let breaks = state.faults.map_or(0, |faults| faults.broken_body);
            let breaks = state.chance(breaks);
            Ok(Some((info, range, bytes, breaks)))
        });
        let Some((info, range, bytes, breaks)) = outcome.await? else {
            return Ok(GetOutcome::Unmodified);
        };
        let middle = bytes.len() / 2;
        let mut pieces = vec![Ok(bytes.slice(..middle))];
        if breaks {
            pieces.push(Err(broke("get", key)));
        } else {
            pieces.push(Ok(bytes.slice(middle..)));
        }
        Ok(GetOutcome::Found(Box::new(Object {
            info,
            range,
            body: futures::stream::iter(pieces).boxed(),
        })))
    }

    async fn put(&self, key: &Key, body: Body, mut options: PutOptions) -> Result<ObjectInfo> {
        let bytes = body.collect().await?;
        match self.broken {
            Some(Break::ForgottenIfMatch)
                if matches!(options.precondition, Precondition::IfMatch(_)) =>
            {
                options.precondition = Precondition::None;
            }
            Some(Break::ForgottenIfAbsent) if options.precondition == Precondition::IfAbsent => {
                options.precondition = Precondition::None;
            }
            Some(Break::CheckThenPut) => {
                let now = match self.head(key).await {
                    Ok(info) => Some(info.etag),
                    Err(error) if error.kind() == ErrorKind::NotFound => None,
                    Err(error) => return Err(error),
                };
                options.precondition.check(now.as_ref())?;
                options.precondition = Precondition::None;
            }
            Some(Break::AppliedAgain) => {
                let again = PutOptions {
                    precondition: Precondition::None,
                    ..options.clone()
                };
                return match self.put_once(key, bytes.clone(), options).await {
                    Err(error) if error.kind() == ErrorKind::Unreachable => {
                        self.put_once(key, bytes, again).await
                    }
                    decided => decided,
                };
            }
            Some(Break::SwallowedLoss) => {
                let info = ObjectInfo {
                    size: Some(bytes.len() as u64),
                    etag: ETag::new("made up"),
                    modified: bucketfs::clock::wall(),
                    attributes: None,
                    commits: options.commits.clone(),
                    version: None,
                };
                return match self.put_once(key, bytes, options).await {
                    Err(error) if error.kind() == ErrorKind::Unreachable => Ok(info),
                    decided => decided,
                };
            }
            _ => {}
        }
        self.put_once(key, bytes, options).await
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        precondition.require(self.capabilities().delete_condition, "delete")?;
        let precondition = match self.broken {
            Some(Break::ForgottenDeleteCondition) => Precondition::None,
            _ => precondition,
        };
        let (mount, at, broken) = (self.mount, key.clone(), self.broken);
        let ask = Client::conditional("delete", key, &precondition);
        self.ask(ask, move |state| {
            state.check(&at, &precondition)?;
            state.tell(mount, &at);
            let removed = state.remove(mount, "delete", &at);
            if broken == Some(Break::Tombstone)
                && let Some(removed) = removed
                && !at.as_bytes().ends_with(b"/")
            {
                let etag = ETag::new(format!("dead-{}", removed.etag.as_str()));
                state.tombstones.insert(at, etag);
            }
            Ok(())
        })
        .await
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        let prefix = request.prefix.clone();
        let (mount, broken) = (self.mount, self.broken);
        self.ask(Client::plain("list", &prefix), move |state| {
            let mut page = list(state, &request);
            if broken == Some(Break::ShortListing) && page.entries.len() > 1 {
                page.entries.pop();
            }
            for entry in &page.entries {
                state.tell(mount, &entry.key);
            }
            Ok(page)
        })
        .await
    }

    async fn copy(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let Some(claimed) = self.capabilities().copy else {
            return Err(Error::unsupported("copy"));
        };
        options.destination.require(claimed.destination, "copy")?;
        if options.source.is_some() && claimed.source == Strength::None {
            return Err(Error::unsupported("copy"));
        }
        let (mount, source, target) = (self.mount, from.clone(), to.clone());
        let (ask, broken) = (
            Client::conditional("copy", to, &options.destination),
            self.broken,
        );
        self.ask(ask, move |state| {
            let expected = options.source.as_ref();
            let stored = state.find(&source, expected)?.clone();
            if broken == Some(Break::UncopiedCopy) {
                return Ok(state.info(&stored, false));
            }
            if broken != Some(Break::ForgottenIfMatch) {
                state.check(&target, &options.destination)?;
            }
            let attributes = options.attributes.unwrap_or(stored.attributes);
            let commits = match options.commits.is_empty() {
                true => stored.commits,
                false => options.commits,
            };
            state.tell(mount, &source);
            Ok(state.store(mount, "copy", &target, stored.bytes, attributes, commits))
        })
        .await
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        if !self.capabilities().rename {
            return Err(Error::unsupported("rename"));
        }
        let (mount, source, target) = (self.mount, from.clone(), to.clone());
        let ask = Client::conditional("rename", to, &options.destination);
        self.ask(ask, move |state| {
            let stored = state.find(&source, options.source.as_ref())?.clone();
            state.check(&target, &options.destination)?;
            let commits = match options.commits.is_empty() {
                true => stored.commits,
                false => options.commits,
            };
            let info = state.store(
                mount,
                "rename",
                &target,
                stored.bytes,
                stored.attributes,
                commits,
            );
            state.remove(mount, "rename", &source);
            Ok(info)
        })
        .await
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        if !self.capabilities().set_attributes {
            return Err(Error::unsupported("set_attributes"));
        }
        let (mount, at) = (self.mount, key.clone());
        self.ask(Client::plain("set_attributes", key), move |state| {
            let stored = state.find(&at, if_match.as_ref())?.clone();
            let mut attributes = stored.attributes;
            change.apply(&mut attributes);
            Ok(state.store(
                mount,
                "attributes",
                &at,
                stored.bytes,
                attributes,
                stored.commits,
            ))
        })
        .await
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        if !self.capabilities().watch {
            return Err(Error::unsupported("watch"));
        }
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        self.ask(Client::plain("watch", prefix), move |state| {
            state.watchers.push(sender);
            Ok(())
        })
        .await?;
        let late = futures::stream::unfold(receiver, |mut receiver| async move {
            let change = receiver.recv().await?;
            tokio::time::sleep(Duration::from_millis(3)).await;
            Some((change, receiver))
        });
        Ok(late.boxed())
    }
}

/// One page.
fn list(state: &State, request: &ListRequest) -> Page {
    let after = request.token.clone().map(Key::from);
    let after = after.max(request.start_after.clone());
    let limit = request.limit.min(state.character.page);
    let prefix = &request.prefix;
    let mut begin = match &after {
        Some(after) if after >= prefix => Bound::Excluded(after.clone()),
        _ => Bound::Included(prefix.clone()),
    };
    let mut page = Page::default();
    loop {
        let mut rest = state.objects.range((begin.clone(), Bound::Unbounded));
        let Some((key, stored)) = rest.next().filter(|(key, _)| key.starts_with(prefix)) else {
            return page;
        };
        let below = &key.as_bytes()[prefix.len()..];
        let slash = below.iter().position(|byte| *byte == b'/');
        let folded = slash
            .filter(|_| request.delimiter)
            .map(|at| Key::from(&key.as_bytes()[..=prefix.len() + at]));
        begin = match &folded {
            Some(folded) => match folded.successor() {
                Some(next) => Bound::Included(next),
                None => return page,
            },
            None => Bound::Excluded(key.clone()),
        };
        if folded.is_some() && folded <= after {
            continue;
        }
        if page.entries.len() == limit {
            page.next = page.entries.last().map(|last| last.key.to_string());
            return page;
        }
        page.entries.push(match folded {
            Some(folded) => ListEntry {
                key: folded,
                object: None,
            },
            None => ListEntry {
                key: key.clone(),
                object: Some(state.info(stored, true)),
            },
        });
    }
}
