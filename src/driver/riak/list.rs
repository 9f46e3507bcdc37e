//! Listings: in the order of keys, a page at a time. The server lists keys alone; what is at each is
//! asked for, many at a time.

mod keys;

use super::bucket::BucketType;
use super::names::{Place, bucket, directory, segment};
use super::object::Looked;
use crate::driver::{Error, ErrorKind, ListEntry, ListRequest, ObjectInfo, Page, Result};
use crate::key::Key;
use futures::StreamExt;
use futures::stream;
use keys::END;
use serde::Deserialize;
use std::collections::{BTreeMap, VecDeque};

/// Most entries of one page.
const MAX_PAGE: usize = 1000;
/// How many objects are asked for at once.
const AT_ONCE: usize = 16;

#[derive(Deserialize)]
struct Buckets {
    buckets: Vec<String>,
}

/// Tokens are the hexadecimal spelling of the last entry's key.
fn token(key: &Key) -> String {
    let digits = key.as_bytes().iter().map(|byte| format!("{byte:02x}"));
    digits.collect()
}

fn parse_token(text: &str) -> Result<Key> {
    let pairs = (0..text.len()).step_by(2).map(|at| {
        let pair = text.get(at..at + 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    let bytes: Option<Vec<u8>> = pairs.collect();
    let wrong = || Error::new(ErrorKind::InvalidArgument, "no listing gave this token");
    bytes.map(Key::new).ok_or_else(wrong)
}

/// A page that is being filled.
struct Filling {
    page: Page,
    limit: usize,
    after: Option<Key>,
    /// Conflict files that are still to come.
    beside: BTreeMap<Key, ObjectInfo>,
    /// Whether there was no room for one.
    is_over: bool,
}

impl Filling {
    fn is_full(&self) -> bool {
        self.page.entries.len() >= self.limit
    }

    /// Takes an entry in, behind the conflict files that stand before it. It is dropped when the page
    /// is full: the next one begins with it.
    fn take(&mut self, key: Key, object: Option<ObjectInfo>) {
        while let Some(first) = self.beside.first_entry() {
            if *first.key() > key || self.page.entries.len() >= self.limit {
                break;
            }
            let (own, info) = first.remove_entry();
            let object = Some(info);
            self.page.entries.push(ListEntry { key: own, object });
        }
        let is_new = self.after.as_ref().is_none_or(|after| key > *after)
            && self.page.entries.last().is_none_or(|last| key > last.key);
        match self.is_full() {
            _ if !is_new => {}
            true => self.is_over = true,
            false => self.page.entries.push(ListEntry { key, object }),
        }
    }

    /// The end of the bucket, or of the page.
    fn finish(mut self, goes_on: bool) -> Page {
        if !goes_on {
            while let Some((key, info)) = self.beside.pop_first() {
                if self.is_full() {
                    self.beside.insert(key, info);
                    break;
                }
                let object = Some(info);
                self.page.entries.push(ListEntry { key, object });
            }
        }
        if goes_on || self.is_over || !self.beside.is_empty() {
            let last = self.page.entries.last().map(|last| &last.key);
            self.page.next = last.or(self.after.as_ref()).map(token);
        }
        self.page
    }
}

impl BucketType {
    pub(super) async fn page(&self, request: ListRequest) -> Result<Page> {
        let from = request.token.as_deref().map(parse_token).transpose()?;
        let goes_on = from.is_some();
        let after = from.max(request.start_after.clone());
        let limit = request.limit.clamp(1, MAX_PAGE);
        let prefix = request.prefix.as_bytes();
        if let Some(cut) = prefix.iter().position(|byte| *byte == b'/') {
            let Some(name) = bucket(&prefix[..cut]) else {
                return Ok(Page::default());
            };
            return self.within(&name, &request, after, limit, goes_on).await;
        }
        let path = format!("/types/{}/buckets?buckets=true", segment(&self.name));
        let told: Option<Buckets> = self.link.document(path).await?;
        let names = told.map_or_else(Vec::new, |told| told.buckets);
        let all: BTreeMap<Key, String> = names
            .into_iter()
            .map(|name| (directory(&name), name))
            .filter(|(key, _)| key.starts_with(&request.prefix))
            .collect();
        if request.delimiter {
            let mut left = all
                .into_keys()
                .filter(|key| after.as_ref().is_none_or(|after| key > after));
            let folded = |key| ListEntry { key, object: None };
            let entries: Vec<_> = left.by_ref().take(limit).map(folded).collect();
            let last = entries.last().filter(|_| left.next().is_some());
            let next = last.map(|last| token(&last.key));
            return Ok(Page { entries, next });
        }
        // One bucket after the other; a page ends with its bucket.
        let is_told = |key: &Key| {
            let end = key.join([END]);
            after.as_ref().is_some_and(|after| *after >= end)
        };
        let mut left: VecDeque<_> = all.into_iter().filter(|(key, _)| !is_told(key)).collect();
        let Some((key, name)) = left.pop_front() else {
            return Ok(Page::default());
        };
        let below = ListRequest {
            prefix: key.clone(),
            ..request
        };
        let mut page = self.within(&name, &below, after, limit, goes_on).await?;
        if page.next.is_none() && !left.is_empty() {
            page.next = Some(token(&key.join([END])));
        }
        Ok(page)
    }

    /// A page of one bucket.
    async fn within(
        &self,
        bucket: &str,
        request: &ListRequest,
        after: Option<Key>,
        limit: usize,
        goes_on: bool,
    ) -> Result<Page> {
        let directory = directory(bucket);
        let prefix = request.prefix.strip_prefix(&directory).unwrap_or_default();
        if after
            .as_ref()
            .is_some_and(|after| *after >= request.prefix.join([END]))
        {
            return Ok(Page::default());
        }
        let mut filling = Filling {
            page: Page::default(),
            limit,
            beside: self.known_beside(request, after.as_ref()).await?,
            after: after.clone(),
            is_over: false,
        };
        if prefix.is_empty()
            && after.as_ref().is_none_or(|after| *after < directory)
            && let Some(place) = Place::find(&directory)
            && let Looked::There(state) = self.look(&place).await?
        {
            filling.take(directory.clone(), Some(state.info()));
        }
        let within = after.and_then(|after| after.strip_prefix(&directory));
        let mut from = match within {
            Some(after) if after >= prefix => after.join([0]),
            _ => prefix.clone(),
        };
        // Where it went on from, all keys are those of then; where it begins, those of now.
        let mut all = None;
        loop {
            let batch = self
                .batch(bucket, &prefix, &from, limit, goes_on, &mut all)
                .await?;
            let next = self
                .fill(&mut filling, &directory, request, &batch.names)
                .await?;
            match next {
                Some(Next::Full) => return Ok(filling.finish(true)),
                _ if !batch.goes_on => return Ok(filling.finish(false)),
                Some(Next::Behind(key)) => from = key,
                None => {
                    let last = batch.names.last().map(|name| Key::from(name.as_str()));
                    from = last.unwrap_or(from).join([0]);
                }
            }
        }
    }

    /// The conflict files of a page that were seen before it.
    async fn known_beside(
        &self,
        request: &ListRequest,
        after: Option<&Key>,
    ) -> Result<BTreeMap<Key, ObjectInfo>> {
        let known = self.siblings.within(&request.prefix, after);
        // Those whose object is on this page are found with it.
        let earlier = known.into_iter().filter(|(key, (of, _))| {
            let is_earlier = after.is_some_and(|after| of.key <= *after);
            is_earlier && !(request.delimiter && is_folded(key, &request.prefix))
        });
        let mut beside = BTreeMap::new();
        for (key, (of, _)) in earlier.collect::<Vec<_>>() {
            if let Looked::There(state) = self.look(&of).await? {
                let there = state.beside(&of).into_iter();
                let there = there.filter(|(own, _)| own.key == key);
                beside.extend(there.map(|(own, value)| (own.key, value.own_info())));
            }
        }
        Ok(beside)
    }

    /// Fills a page from keys in order.
    async fn fill(
        &self,
        filling: &mut Filling,
        directory: &Key,
        request: &ListRequest,
        names: &[String],
    ) -> Result<Option<Next>> {
        let key_of = |name: &String| directory.join(name);
        let folded = |key: &Key| match request.delimiter {
            true => fold(key, &request.prefix),
            false => None,
        };
        let mut at = 0;
        while at < names.len() {
            if filling.is_full() {
                return Ok(Some(Next::Full));
            }
            let key = key_of(&names[at]);
            if let Some(below) = folded(&key) {
                let is_given = filling.after.as_ref().is_some_and(|after| below <= *after);
                let place = Place::find(&key);
                let is_there = match &place {
                    _ if is_given => true,
                    // What deletes have left makes no directory.
                    Some(place) => matches!(self.look(place).await?, Looked::There(_)),
                    None => false,
                };
                if !is_there {
                    at += 1;
                    continue;
                }
                if !is_given {
                    filling.take(below.clone(), None);
                }
                at += names[at..].partition_point(|name| key_of(name).starts_with(&below));
                let behind = below
                    .successor()
                    .and_then(|key| key.strip_prefix(directory));
                if let (true, Some(behind)) = (at == names.len(), behind) {
                    return Ok(Some(Next::Behind(behind)));
                }
                continue;
            }
            let rest = &names[at..];
            let room = filling.limit - filling.page.entries.len();
            let run = rest.iter().take(room.max(AT_ONCE));
            let run = run.take_while(|name| folded(&key_of(name)).is_none());
            let run: Vec<_> = run.map(key_of).collect();
            at += run.len();
            // Keys that are none here are passed over, as is what stands for the directory itself.
            let places = run.iter().filter_map(Place::find).collect::<Vec<_>>();
            let looks = places.into_iter().map(|place| async move {
                let looked = self.look(&place).await;
                (place, looked)
            });
            let mut found = stream::iter(looks).buffered(AT_ONCE);
            while let Some((place, looked)) = found.next().await {
                let Looked::There(state) = looked? else {
                    continue;
                };
                let beside = state.beside(&place).into_iter();
                let beside = beside.map(|(own, value)| (own.key, value.own_info()));
                let behind = filling.after.clone();
                let prefix = &request.prefix;
                filling.beside.extend(beside.filter(|(own, _)| {
                    own.starts_with(prefix) && behind.as_ref().is_none_or(|behind| own > behind)
                }));
                let is_last = filling.is_full();
                filling.take(place.key, Some(state.info()));
                if is_last {
                    return Ok(Some(Next::Full));
                }
            }
        }
        Ok(None)
    }
}

/// Where a page is after some keys.
enum Next {
    Full,
    /// What is before this key in the bucket is told.
    Behind(Key),
}

/// The directory below a prefix that a key is in.
fn fold(key: &Key, prefix: &Key) -> Option<Key> {
    let rest = &key.as_bytes()[prefix.len()..];
    let slash = rest.iter().position(|byte| *byte == b'/')?;
    Some(prefix.join(&rest[..=slash]))
}

fn is_folded(key: &Key, prefix: &Key) -> bool {
    fold(key, prefix).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_of_keys() {
        let key = Key::from("b/é");
        assert_eq!(parse_token(&token(&key)).expect("a token"), key);
        assert!(
            ["0", "xx", "0g"]
                .iter()
                .all(|wrong| parse_token(wrong).is_err())
        );
    }
}
