//! Which directories of a bucket have an index, and how it is read.

use super::known::Part;
use super::{LARGEST, PLACE, Shared, WIDTH, digest, file};
use crate::clock::{self, Instant};
use crate::driver::{ETag, ErrorKind, GetOptions, ListRequest, Result};
use crate::key::Key;
use crate::task;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use md5::{Digest, Md5};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How many pages of index objects' keys are asked for. In a bucket with more directories than that
/// each one is asked for its index.
const PAGES: usize = 10;
/// How long what is known of other mounts' index objects is believed. Who lists nothing asks for
/// nothing.
const TTL: Duration = Duration::from_secs(60);
/// How long after an index was read it may be read again.
const READ_TTL: Duration = Duration::from_secs(10);

/// Which directories of a bucket have an index: parts and their etags, by digest.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    pub directories: HashMap<String, BTreeMap<u32, ETag>>,
    /// Whether there are others than those.
    pub more: bool,
    pub asked: Option<Instant>,
    /// The store's time when it was asked.
    pub told: Option<SystemTime>,
}

impl Shared {
    /// Asks which directories have an index, unless that is known. What failed is asked again by
    /// the next one.
    pub(super) async fn load(&self, top: &Key) {
        let cell = {
            let mut loading = self.loading.lock();
            loading.entry(top.clone()).or_default().clone()
        };
        let loaded = cell.get_or_try_init(|| self.ask_catalogue(top)).await;
        if let Err(error) = loaded {
            log::debug!("there is no index to be seen: {error}");
        }
    }

    async fn ask_catalogue(&self, top: &Key) -> Result<()> {
        let mut request = ListRequest::flat(&top.join(PLACE));
        let mut catalogue = Catalogue {
            asked: Some(clock::now()),
            told: Some(self.inner.wall()),
            ..Catalogue::default()
        };
        for page in 0..=PAGES {
            if page == PAGES {
                catalogue.more = true;
                break;
            }
            let told = match self.inner.list(request.clone()).await {
                // Who may not see it does without.
                Err(error) if !error.retryable() => {
                    log::debug!("there is no index to be seen: {error}");
                    break;
                }
                told => told?,
            };
            for entry in told.entries {
                let name = entry.key.strip_prefix(&request.prefix);
                let name = name.as_ref().and_then(|name| name.to_str());
                if let Some((digest, part)) = name.and_then(|name| name.split_once('.'))
                    && let Ok(part) = part.parse()
                    && let Some(info) = entry.object
                {
                    let parts = catalogue.directories.entry(digest.to_owned()).or_default();
                    parts.insert(part, info.etag);
                }
            }
            request.token = told.next;
            if request.token.is_none() {
                break;
            }
        }
        self.catalogues.lock().insert(top.clone(), catalogue);
        Ok(())
    }

    /// Asks again after a while for the indexes that others have written.
    pub(super) fn refresh(self: &Arc<Self>, top: &Key) {
        {
            let mut catalogues = self.catalogues.lock();
            let Some(catalogue) = catalogues.get_mut(top) else {
                return;
            };
            let due = |asked: Instant| asked + TTL <= clock::now();
            if !catalogue.asked.is_some_and(due) {
                return;
            }
            catalogue.asked = Some(clock::now());
        }
        let (shared, top) = (self.clone(), top.clone());
        task::spawn(async move {
            if let Err(error) = shared.ask_catalogue(&top).await {
                log::debug!("there is no newer index to be seen: {error}");
            }
        });
    }

    /// The parts of a directory's index, if it has one that is not known yet.
    pub(super) fn unread(
        &self,
        directory: &Key,
        top: &Key,
        again: bool,
    ) -> Option<BTreeMap<u32, ETag>> {
        let parts = {
            let catalogues = self.catalogues.lock();
            let catalogue = catalogues.get(top)?;
            if catalogue.directories.is_empty() && !catalogue.more {
                return None;
            }
            let parts = catalogue.directories.get(&digest(directory, top)).cloned();
            match parts {
                Some(parts) => parts,
                // Whether there is one its first part tells.
                None if catalogue.more => [(0, ETag::new(""))].into(),
                None => return None,
            }
        };
        let known = self.known.lock();
        let read = known.peek(directory).and_then(|known| known.read);
        match read {
            None => Some(parts),
            Some(read) if again && read + READ_TTL <= clock::now() => Some(parts),
            Some(_) => None,
        }
    }

    /// Reads parts of a directory's index.
    pub(super) async fn read(&self, directory: &Key, top: &Key, parts: BTreeMap<u32, ETag>) {
        let digest = digest(directory, top);
        let asked = clock::now();
        let keys = parts
            .into_keys()
            .map(|part| (part, Self::part(top, &digest, part)));
        let keys: Vec<_> = keys.collect();
        let told: Vec<_> = stream::iter(keys)
            .map(|(part, key)| async move { (part, self.read_part(&key).await) })
            .buffer_unordered(WIDTH)
            .collect()
            .await;
        let mut whole = true;
        for (part, told) in told {
            let (etag, text) = match told {
                Ok(told) => told,
                Err(error) => {
                    whole &= error.kind() == ErrorKind::NotFound;
                    log::debug!("a part of the index cannot be read: {error}");
                    continue;
                }
            };
            let records = file::read(&Self::below(directory, top), &text);
            let digest = Md5::digest(&text).into();
            let mut known = self.known.lock();
            known.read(directory, records);
            let told = Part { etag, digest };
            known.change(directory, |known| known.parts.insert(part, told));
        }
        if whole {
            let mut known = self.known.lock();
            known.change(directory, |known| known.read = Some(asked));
        }
    }

    /// A directory as its index names it.
    pub(super) fn below(directory: &Key, top: &Key) -> Key {
        directory.strip_prefix(top).unwrap_or_default()
    }

    /// The etag and the text of an index object. What is too large to be one has no text.
    async fn read_part(&self, key: &Key) -> Result<(ETag, Bytes)> {
        let told = self.inner.get(key, GetOptions::default()).await?;
        let object = told.found()?;
        if object.range.end > LARGEST {
            log::debug!("{key:?} is too large for an index");
            return Ok((object.info.etag, Bytes::new()));
        }
        let (info, text) = object.collect().await?;
        Ok((info.etag, text))
    }
}
