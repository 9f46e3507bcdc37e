//! Listings: the newest revision of each name, in the order of the names' bytes.
//!
//! Servers differ in where characters from U+E000 on stand among each other. Names that are the same
//! up to the first such character stand together in any order, so they are sorted here.

use super::Files;
use super::entry::Entry;
use crate::driver::mongodb::names::DISPUTED;
use crate::driver::{Error, ListEntry, ListRequest, Page, Result};
use crate::key::Key;
use ::mongodb::Cursor;
use ::mongodb::bson::{Document, doc};
use std::collections::VecDeque;

/// Most entries of one page.
const MAX_PAGE: usize = 1000;
/// How many names of a folded directory are read before the server is asked to leave the rest out.
const SKIPPED: usize = 100;

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
    bytes.map(Key::new).ok_or_else(|| {
        let kind = crate::driver::ErrorKind::InvalidArgument;
        Error::new(kind, "no listing gave this token")
    })
}

/// What stands before the first disputed character; none where there is none.
fn disputed(name: &str) -> Option<&str> {
    let at = name.find(|c| c >= DISPUTED)?;
    Some(&name[..at])
}

/// The greatest name that no server puts behind one that begins with `from`, or is behind it.
fn floor(from: &[u8]) -> &str {
    let text = match std::str::from_utf8(from) {
        Ok(text) => text,
        Err(cause) => std::str::from_utf8(&from[..cause.valid_up_to()]).unwrap_or_default(),
    };
    disputed(text).unwrap_or(text)
}

/// The newest revisions in the order of their names.
struct Names<'a> {
    files: &'a Files,
    cursor: Cursor<Document>,
    /// Read, and not yet given: of one name, or of names whose order is disputed.
    held: Vec<Entry>,
    ready: VecDeque<Entry>,
    is_done: bool,
}

impl<'a> Names<'a> {
    async fn from(files: &'a Files, from: &str, limit: usize) -> Result<Self> {
        let wanted = doc! { "filename": { "$gte": from } };
        let all = files.files();
        let found = all
            .find(wanted)
            .sort(doc! { "filename": 1, "uploadDate": 1 });
        let found = found.batch_size(limit as u32).await;
        Ok(Names {
            files,
            cursor: found.map_err(|cause| files.error(&cause))?,
            held: Vec::new(),
            ready: VecDeque::new(),
            is_done: false,
        })
    }

    /// Gives out what is held, in order.
    fn release(&mut self) {
        self.held
            .sort_by(|a, b| a.name.cmp(&b.name).then_with(|| b.age().cmp(&a.age())));
        self.held.dedup_by(|a, b| a.name == b.name);
        self.ready.extend(self.held.drain(..));
    }

    async fn next(&mut self) -> Result<Option<Entry>> {
        while self.ready.is_empty() && !self.is_done {
            let advanced = self.cursor.advance().await;
            if !advanced.map_err(|cause| self.files.error(&cause))? {
                self.is_done = true;
                self.release();
                break;
            }
            let document = self.cursor.deserialize_current();
            let document = document.map_err(|cause| self.files.error(&cause))?;
            let Some(entry) = Entry::parse(document).filter(|entry| !entry.name.is_empty()) else {
                continue;
            };
            let together = self.held.last().is_none_or(|last| {
                let group = disputed(&entry.name);
                last.name == entry.name || (group.is_some() && disputed(&last.name) == group)
            });
            if !together {
                self.release();
            }
            self.held.push(entry);
        }
        Ok(self.ready.pop_front())
    }
}

impl Files {
    pub(super) async fn page(&self, request: ListRequest) -> Result<Page> {
        let from = request.token.as_deref().map(parse_token).transpose()?;
        let after = from.max(request.start_after);
        let limit = request.limit.clamp(1, MAX_PAGE);
        let prefix = request.prefix.as_bytes();
        let begin = match &after {
            Some(after) if after.as_bytes() > prefix => after.as_bytes(),
            _ => prefix,
        };
        let mut names = Names::from(self, floor(begin), limit + 1).await?;
        let mut page = Page::default();
        let mut skipped = 0;
        let mut folded: Option<Key> = None;
        while let Some(entry) = names.next().await? {
            let key = Key::from(entry.name.as_str());
            if !key.starts_with(&request.prefix) {
                if key > request.prefix {
                    break;
                }
                continue;
            }
            let rest = &key.as_bytes()[prefix.len()..];
            let cut = rest.iter().position(|byte| *byte == b'/');
            let (key, object) = match cut.filter(|_| request.delimiter) {
                Some(cut) => (Key::from(&key.as_bytes()[..prefix.len() + cut + 1]), None),
                None => (key, Some(entry.info())),
            };
            let is_given = after.as_ref().is_some_and(|after| key <= *after);
            if is_given || page.entries.last().is_some_and(|last| last.key == key) {
                if object.is_none() {
                    skipped = if folded.as_ref() == Some(&key) {
                        skipped + 1
                    } else {
                        1
                    };
                    // Behind the directory: `0` comes after `/`.
                    if skipped == SKIPPED
                        && let Some(text) = key.to_str()
                        && disputed(text).is_none()
                    {
                        let behind = format!("{}0", text.strip_suffix('/').unwrap_or(text));
                        names = Names::from(self, &behind, limit + 1).await?;
                    }
                    folded = Some(key);
                }
                continue;
            }
            if page.entries.len() == limit {
                page.next = page.entries.last().map(|last| token(&last.key));
                break;
            }
            page.entries.push(ListEntry { key, object });
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_begin_before_what_servers_order_differently() {
        for (from, wanted) in [
            ("", ""),
            ("a/b", "a/b"),
            ("é日", "é日"),
            ("a/🪣x", "a/"),
            ("\u{ff01}", ""),
        ] {
            assert_eq!(floor(from.as_bytes()), wanted);
        }
        assert_eq!(floor(b"ab\xc3"), "ab");
        assert_eq!(disputed("a🪣b"), Some("a"));
        assert_eq!(disputed("é"), None);
        let key = Key::from("é/x");
        assert_eq!(parse_token(&token(&key)).expect("a token"), key);
    }
}
