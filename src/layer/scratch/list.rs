//! Listings of the store with the names of this machine among them.

use super::{Shared, Side};
use crate::driver::{Error, ErrorKind, ListEntry, ListRequest, Page, Result};
use crate::key::Key;

/// Where a merged listing goes on.
#[derive(Debug, Default, PartialEq, Eq)]
struct Place {
    /// The store's token; `None` where it is asked from `start` on.
    token: Option<String>,
    /// What the store's listing began after.
    start: Option<Key>,
    /// The last key that was told, or passed.
    after: Option<Key>,
}

impl Place {
    fn format(&self) -> String {
        let start = self.start.as_ref().map_or(String::from("-"), hex);
        let after = self.after.as_ref().map_or(String::from("-"), hex);
        match &self.token {
            Some(token) => format!("{start}.{after}.{token}"),
            None => format!("{start}.{after}"),
        }
    }

    fn parse(text: &str) -> Option<Place> {
        let mut words = text.splitn(3, '.');
        let mut key = || match words.next()? {
            "-" => Some(None),
            word => unhex(word).map(Some),
        };
        Some(Place {
            start: key()?,
            after: key()?,
            token: words.next().map(str::to_owned),
        })
    }
}

fn hex(key: &Key) -> String {
    let digits = key.as_bytes().iter().map(|byte| format!("{byte:02x}"));
    digits.collect()
}

fn unhex(word: &str) -> Option<Key> {
    let pairs = word.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect::<Option<Vec<u8>>>().map(Key::from)
}

impl Shared {
    /// One page: what the store lists, without what is hidden here, and what is on this machine
    /// up to where the store's page ends.
    pub(super) async fn page(&self, request: ListRequest) -> Result<Page> {
        let place = match &request.token {
            None => Place {
                token: None,
                start: request.start_after.clone(),
                after: request.start_after.clone(),
            },
            Some(token) => Place::parse(token).ok_or_else(|| {
                Error::new(ErrorKind::InvalidArgument, "the token is none of a listing")
                    .during("list")
            })?,
        };
        let of_store = ListRequest {
            token: place.token.clone(),
            start_after: place.start.clone(),
            ..request.clone()
        };
        let page = self.store.list(of_store).await?;
        let last = page.entries.last().map(|entry| entry.key.clone());
        let end = page.next.is_some().then(|| match last {
            Some(last) => last,
            None => place.after.clone().unwrap_or_default(),
        });
        let mut here = self
            .local_entries(&request, &place.after, end.as_ref())
            .await?;
        let mut entries = page.entries;
        entries.retain(|entry| entry.object.is_none() || self.side(&entry.key) == Side::Store);
        let is_new = |entry: &ListEntry| {
            let found = entries.binary_search_by(|known| known.key.cmp(&entry.key));
            found.is_err()
        };
        here.retain(is_new);
        if !here.is_empty() {
            let mut shown = Vec::new();
            for entry in here {
                if entry.object.is_some() || self.has_local_below(&entry.key).await? {
                    shown.push(entry);
                }
            }
            entries.extend(shown);
            entries.sort_by(|a, b| a.key.cmp(&b.key));
        }
        let next = if entries.len() > request.limit {
            entries.truncate(request.limit);
            let last = entries.last().map(|entry| entry.key.clone());
            Some(Place {
                token: None,
                start: last.clone(),
                after: last,
            })
        } else {
            page.next.map(|token| Place {
                token: Some(token),
                start: place.start,
                after: end,
            })
        };
        Ok(Page {
            entries,
            next: next.map(|place| place.format()),
        })
    }

    /// What this machine has behind `after` and up to `end`, as far as a page can hold it.
    async fn local_entries(
        &self,
        request: &ListRequest,
        after: &Option<Key>,
        end: Option<&Key>,
    ) -> Result<Vec<ListEntry>> {
        let mut request = ListRequest {
            start_after: after.clone(),
            token: None,
            ..request.clone()
        };
        let mut entries = Vec::new();
        loop {
            let page = self.local.list(request.clone()).await?;
            for entry in page.entries {
                if end.is_some_and(|end| entry.key > *end) {
                    return Ok(entries);
                }
                if entry.object.is_none() || self.side(&entry.key) == Side::Local {
                    entries.push(entry);
                }
            }
            request.token = page.next;
            // One more than the page shows that it is full. Folded ones may yet be left out.
            let certain = entries.iter().filter(|entry| entry.object.is_some());
            if request.token.is_none() || certain.count() > request.limit {
                return Ok(entries);
            }
        }
    }

    /// Whether there is a name of this machine below a prefix: a directory that was made for one
    /// may be left without.
    async fn has_local_below(&self, prefix: &Key) -> Result<bool> {
        let mut request = ListRequest::flat(prefix);
        loop {
            let page = self.local.list(request.clone()).await?;
            let mut keys = page.entries.iter().map(|entry| &entry.key);
            if keys.any(|key| self.side(key) == Side::Local) {
                return Ok(true);
            }
            request.token = page.next;
            if request.token.is_none() {
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_survive_their_spelling() {
        for place in [
            Place::default(),
            Place {
                token: Some("a.b.".into()),
                start: None,
                after: Some(Key::new(vec![0, 0xff, b'.'])),
            },
            Place {
                token: None,
                start: Some("k".into()),
                after: Some(Key::empty()),
            },
        ] {
            assert_eq!(Place::parse(&place.format()).as_ref(), Some(&place));
        }
        assert_eq!(Place::parse("zz.-"), None);
        assert_eq!(Place::parse("-"), None);
    }
}
