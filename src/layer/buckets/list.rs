//! Listings over several buckets, and within one.

use super::{Buckets, facts, is_absent, marker, outside, place, refuse};
use crate::driver::{
    BucketInfo, ErrorKind, ListEntry, ListRequest, Match, Matches, ObjectInfo, Page, Query, Result,
};
use crate::key::Key;
use std::collections::BTreeMap;
use std::ops::Bound;

const UNLISTED: &str =
    "these credentials may not list the buckets; those that they may use can be named";

impl Buckets {
    pub(super) async fn page(&self, request: ListRequest) -> Result<Page> {
        if let Some(place) = place(&request.prefix) {
            let marker = marker(&place.name);
            let after = request.start_after.clone();
            // The bucket itself comes first, unless what is listed begins behind it.
            let mut info = None;
            if place.key.is_empty() {
                info = self.find(&place.name).await?;
                if info.is_none() {
                    return Ok(Page::default());
                }
                info = info.filter(|_| after.is_none_or(|after| after < marker));
            }
            return self.within(&place.name, &place.key, &request, info).await;
        }
        let listed = self.listed().await?;
        let Some(all) = &*listed else {
            return refuse(ErrorKind::Denied, UNLISTED, "list", &request.prefix);
        };
        if request.delimiter {
            return Ok(top(all, &request));
        }
        self.through(all, request).await
    }

    /// One page of what lies in one bucket, with the marker of the bucket before it.
    async fn within(
        &self,
        name: &str,
        prefix: &Key,
        request: &ListRequest,
        info: Option<ObjectInfo>,
    ) -> Result<Page> {
        let marker = marker(name);
        // The first page has the marker; a token of ours is empty where the bucket's own begins.
        let token = request.token.as_deref();
        let mut entries = Vec::new();
        if token.is_none()
            && let Some(info) = info
        {
            entries.push(ListEntry {
                key: marker.clone(),
                object: Some(info),
            });
            if request.limit <= 1 {
                let next = Some(String::new());
                return Ok(Page { entries, next });
            }
        }
        let start_after = request.start_after.as_ref();
        let inner = ListRequest {
            prefix: prefix.clone(),
            delimiter: request.delimiter,
            start_after: start_after
                .and_then(|after| after.strip_prefix(&marker))
                .filter(|after| !after.is_empty()),
            token: token.filter(|token| !token.is_empty()).map(str::to_owned),
            limit: request.limit - entries.len(),
        };
        if start_after.is_some_and(|after| *after >= marker && !after.starts_with(&marker)) {
            return Ok(Page::default());
        }
        let listed = match self.opened(name).await {
            Ok(driver) => driver.list(inner).await,
            Err(error) => Err(error),
        };
        let page = match listed {
            Ok(page) => page,
            // It was removed a moment ago.
            Err(error) if is_absent(&error) => {
                self.forget(name);
                return Ok(Page::default());
            }
            Err(error) => return Err(outside(name)(error)),
        };
        entries.extend(page.entries.into_iter().map(|entry| ListEntry {
            key: marker.join(entry.key.as_bytes()),
            ..entry
        }));
        Ok(Page {
            entries,
            next: page.next,
        })
    }

    /// One page of all keys of all buckets whose names begin with the prefix. A page ends with its
    /// bucket; buckets that cannot be read are left out.
    async fn through(&self, all: &BTreeMap<Key, BucketInfo>, request: ListRequest) -> Result<Page> {
        let (from, token) = parted(request.token.as_deref());
        let after = request.start_after.clone().unwrap_or_else(Key::empty);
        let mut left = all
            .range((Bound::Included(from.clone()), Bound::Unbounded))
            .filter(|(key, _)| key.starts_with(&request.prefix))
            .filter(|(key, _)| **key > after || after.starts_with(key));
        let Some((key, bucket)) = left.next() else {
            return Ok(Page::default());
        };
        let following = left.next().map(|(_, next)| format!("{}/", next.name));
        let inner = ListRequest {
            token: token.filter(|_| *key == from),
            ..request
        };
        let info = (*key > after).then(|| facts(Some(bucket)));
        let page = match self.within(&bucket.name, &Key::empty(), &inner, info).await {
            Err(error) if error.kind() == ErrorKind::Denied => {
                log::debug!("left out: {error}");
                Page::default()
            }
            page => page?,
        };
        let next = page.next.map(|rest| format!("{}/+{rest}", bucket.name));
        Ok(Page {
            next: next.or(following),
            ..page
        })
    }
}

impl Buckets {
    /// One page of what is found in the bucket of a prefix, or in one after the other. Tokens are
    /// those of [`Buckets::through`].
    pub(super) async fn matches(&self, query: Query) -> Result<Matches> {
        if let Some(place) = place(&query.prefix) {
            let inner = Query {
                prefix: place.key,
                ..query
            };
            return self.matches_within(&place.name, inner).await;
        }
        let listed = self.listed().await?;
        let Some(all) = &*listed else {
            return refuse(ErrorKind::Denied, UNLISTED, "find", &query.prefix);
        };
        let (from, token) = parted(query.token.as_deref());
        let mut left = all
            .range((Bound::Included(from.clone()), Bound::Unbounded))
            .filter(|(key, _)| key.starts_with(&query.prefix));
        let Some((key, bucket)) = left.next() else {
            return Ok(Matches::default());
        };
        let following = left.next().map(|(_, next)| format!("{}/", next.name));
        let inner = Query {
            prefix: Key::empty(),
            token: token.filter(|_| *key == from),
            ..query
        };
        let matches = match self.matches_within(&bucket.name, inner).await {
            Err(error) if error.kind() == ErrorKind::Denied => {
                log::debug!("left out: {error}");
                Matches::default()
            }
            matches => matches?,
        };
        let next = matches.next.map(|rest| format!("{}/+{rest}", bucket.name));
        Ok(Matches {
            next: next.or(following),
            ..matches
        })
    }

    async fn matches_within(&self, name: &str, query: Query) -> Result<Matches> {
        let found = match self.opened(name).await {
            Ok(driver) => driver.find(query).await,
            Err(error) => Err(error),
        };
        let matches = match found {
            Ok(matches) => matches,
            Err(error) if is_absent(&error) => return Ok(Matches::default()),
            Err(error) => return Err(outside(name)(error)),
        };
        let marker = marker(name);
        let found = matches.found.into_iter().map(|found| Match {
            key: marker.join(found.key.as_bytes()),
            ..found
        });
        Ok(Matches {
            found: found.collect(),
            next: matches.next,
        })
    }
}

/// The bucket in which a page goes on, and the bucket's own token if it has begun.
fn parted(token: Option<&str>) -> (Key, Option<String>) {
    match token.and_then(|token| token.split_once('/')) {
        // Nothing behind the `/` stands for the bucket's beginning.
        Some((name, rest)) => (marker(name), rest.strip_prefix('+').map(str::to_owned)),
        None => (Key::empty(), None),
    }
}

/// One page of the buckets as directories.
fn top(all: &BTreeMap<Key, BucketInfo>, request: &ListRequest) -> Page {
    let after = request
        .token
        .as_ref()
        .map(|token| Key::from(token.as_str()));
    let after = after.or_else(|| request.start_after.clone());
    let mut left = all
        .keys()
        .filter(|key| key.starts_with(&request.prefix))
        .filter(|key| after.as_ref().is_none_or(|after| *key > after));
    let folded = |key: &Key| ListEntry {
        key: key.clone(),
        object: None,
    };
    let entries: Vec<_> = left.by_ref().take(request.limit).map(folded).collect();
    let more = left.next().is_some();
    let next = entries.last().filter(|_| more);
    let next = next.and_then(|last| last.key.to_str().map(str::to_owned));
    Page { entries, next }
}
