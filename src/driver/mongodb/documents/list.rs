//! Listings of a collection: in the order of names, a page at a time.
//!
//! The server sorts by type and value; names sort by their bytes. Strings, ObjectIds, and whole
//! numbers of each length are streams that are in the order of their names, nearly so for strings,
//! and are merged. Names behind `=` are in no such order: they are gathered by one look at all
//! `_id`s, when a listing comes to them, and kept while it goes on.

use super::super::names::{self, DISPUTED, ESCAPE};
use super::{Documents, decoded, digest};
use crate::clock::{self, Instant};
use crate::driver::mongodb::json::Json;
use crate::driver::{ObjectInfo, Result};
use crate::key::Key;
use ::mongodb::Cursor;
use ::mongodb::bson::oid::ObjectId;
use ::mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// A page ends with the document that makes it this large.
const BUDGET: usize = 8 << 20;
/// How many escaped names are asked for at once.
const MANY: usize = 100;
/// How long escaped names are kept for the next page.
const KEPT: Duration = Duration::from_secs(10);

/// The escaped names of a collection, in order, and when they were used.
pub(in crate::driver::mongodb) type Escaped = (Instant, Arc<Vec<String>>);

/// What one page is of.
pub(in crate::driver::mongodb) struct Window<'a> {
    /// Names begin with this.
    pub prefix: &'a [u8],
    /// Names are greater than this.
    pub after: Option<&'a [u8]>,
    pub limit: usize,
    /// Whether a page before has told of those up to there.
    pub goes_on: bool,
}

impl Window<'_> {
    /// Where names begin.
    fn from(&self) -> &[u8] {
        self.prefix.max(self.after.unwrap_or_default())
    }

    fn is_behind(&self, name: &str) -> bool {
        self.after.is_none_or(|after| name.as_bytes() > after)
    }

    fn holds(&self, name: &str) -> bool {
        self.is_behind(name) && name.as_bytes().starts_with(self.prefix)
    }

    fn is_over(&self, name: &str) -> bool {
        !name.as_bytes().starts_with(self.prefix) && name.as_bytes() > self.prefix
    }
}

/// A document with its name.
type Named = (String, RawDocumentBuf);

/// Documents in the order of their names.
struct Stream {
    cursor: Cursor<RawDocumentBuf>,
    /// Those that may come behind others: each begins with the one before it, as far as the ids go.
    held: Vec<Named>,
    ready: VecDeque<Named>,
    is_done: bool,
}

fn stem(name: &str) -> &str {
    name.strip_suffix(".json").unwrap_or(name)
}

impl Stream {
    fn new(cursor: Cursor<RawDocumentBuf>, held: Vec<Named>) -> Self {
        Stream {
            cursor,
            held,
            ready: VecDeque::new(),
            is_done: false,
        }
    }

    /// The name that is next.
    async fn peek(&mut self) -> ::mongodb::error::Result<Option<&str>> {
        while self.ready.is_empty() && !self.is_done {
            if !self.cursor.advance().await? {
                self.is_done = true;
                self.ready.extend(self.held.drain(..).rev());
                break;
            }
            let document = self.cursor.current().to_owned();
            let Some(name) = name_of(&document) else {
                continue;
            };
            // Another stream has them.
            if !name.starts_with(ESCAPE) {
                self.take(name, document);
            }
        }
        Ok(self.ready.front().map(|(name, _)| name.as_str()))
    }

    /// Puts aside what may be overtaken: `a` is `a.json`, which stands behind `a-.json`.
    fn take(&mut self, name: String, document: RawDocumentBuf) {
        while let Some((last, _)) = self.held.last() {
            if name.starts_with(stem(last)) && name < *last {
                break;
            }
            self.ready.extend(self.held.pop());
        }
        self.held.push((name, document));
    }
}

fn name_of(document: &RawDocumentBuf) -> Option<String> {
    let id = document.get("_id").ok().flatten()?;
    Some(names::name(&Bson::try_from(id).ok()?))
}

/// The least text of `len` signs of an alphabet that a name at or behind `from` can begin with;
/// none where all such names stand before it.
fn least(from: &[u8], alphabet: &[u8], len: usize) -> Option<String> {
    let (first, last) = (alphabet[0], alphabet[alphabet.len() - 1]);
    let mut text: Vec<u8> = Vec::with_capacity(len);
    for at in 0..len {
        let Some(wanted) = from.get(at).copied() else {
            break;
        };
        if alphabet.contains(&wanted) {
            text.push(wanted);
            continue;
        }
        match alphabet.iter().find(|sign| **sign > wanted) {
            Some(next) => text.push(*next),
            // All that begin so stand before it: count up.
            None => loop {
                match text.pop() {
                    None => return None,
                    Some(sign) if sign == last => {}
                    Some(sign) => {
                        let next = alphabet.iter().find(|other| **other > sign);
                        text.extend(next);
                        break;
                    }
                }
            },
        }
        break;
    }
    text.resize(len, first);
    String::from_utf8(text).ok()
}

/// The string that those whose names stand behind `from` are not less than, in any server's order.
fn floor(from: &[u8]) -> String {
    let text = match std::str::from_utf8(from) {
        Ok(text) => text,
        Err(cause) => std::str::from_utf8(&from[..cause.valid_up_to()]).unwrap_or_default(),
    };
    text.chars().take_while(|c| *c < DISPUTED).collect()
}

impl Documents {
    /// One page of a collection; whether there are more.
    pub(in crate::driver::mongodb) async fn page(
        &self,
        collection: &str,
        window: Window<'_>,
        key: impl Fn(&str) -> Key,
    ) -> Result<(Vec<(String, ObjectInfo)>, bool)> {
        let failed = |cause: ::mongodb::error::Error| self.link.error(&cause);
        let mut streams = self.streams(collection, &window).await?;
        let mut escaped: Option<Gathered> = None;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        loop {
            let mut next: Option<(usize, String)> = None;
            for (at, stream) in streams.iter_mut().enumerate() {
                while let Some(name) = stream.peek().await.map_err(failed)? {
                    if !window.is_behind(name) {
                        stream.ready.pop_front();
                        continue;
                    }
                    if next.as_ref().is_none_or(|(_, least)| *name < **least) {
                        next = Some((at, name.to_owned()));
                    }
                    break;
                }
            }
            let sign = ESCAPE.to_string();
            if escaped.is_none() && next.as_ref().is_none_or(|(_, name)| *name > sign) {
                escaped = Some(self.gathered(collection, &window).await?);
            }
            let other = match &mut escaped {
                Some(gathered) => self.peek(collection, gathered).await?,
                None => None,
            };
            let named = match (next, other) {
                (None, None) => return Ok((entries, false)),
                (Some((at, name)), other) if other.is_none_or(|other| name.as_str() < other) => {
                    streams[at].ready.pop_front()
                }
                _ => escaped
                    .as_mut()
                    .and_then(|gathered| gathered.ready.pop_front()),
            };
            let Some((name, document)) = named else {
                return Ok((entries, false));
            };
            if window.is_over(&name) {
                return Ok((entries, false));
            }
            if !window.holds(&name) {
                continue;
            }
            if entries.len() == window.limit || bytes > BUDGET {
                return Ok((entries, true));
            }
            bytes += document.as_bytes().len();
            let text = Json::of_document(&decoded(&document)?).pretty();
            let info = self.info(&key(&name), digest(&document), text.len() as u64);
            entries.push((name, info));
        }
    }

    /// Those whose names are in the order of a sort.
    async fn streams(&self, collection: &str, window: &Window<'_>) -> Result<Vec<Stream>> {
        let failed = |cause: ::mongodb::error::Error| self.link.error(&cause);
        let all = self.collection(collection);
        let limit = window.limit as i64 + 2;
        let find = |range: Document, order: i32, limit: i64| {
            let found = all.find(doc! { "_id": range });
            found.sort(doc! { "_id": order }).limit(limit).into_future()
        };
        let from = window.from();
        let mut streams = Vec::new();
        // Strings, and those of which the place where this begins is a continuation. Some are
        // behind `=`, and not counted.
        let floor = floor(from);
        let within = floor.char_indices().skip(1).map(|(at, _)| &floor[..at]);
        let held: Vec<&str> = within
            .filter(|id| format!("{id}.json").as_bytes() > from)
            .collect();
        let mut before = Vec::new();
        if !held.is_empty() {
            let found = all.find(doc! { "_id": { "$in": held } });
            let mut found = found.sort(doc! { "_id": 1 }).await.map_err(failed)?;
            while found.advance().await.map_err(failed)? {
                let document = found.current().to_owned();
                let name = name_of(&document).filter(|name| !name.starts_with(ESCAPE));
                before.extend(name.map(|name| (name, document)));
            }
        }
        let strings = all.find(doc! { "_id": { "$gte": floor } });
        let strings = strings.sort(doc! { "_id": 1 }).await.map_err(failed)?;
        streams.push(Stream::new(strings, before));
        if let Some(least) = least(from, b"0123456789abcdef", 24)
            && let Ok(least) = ObjectId::parse_str(&least)
        {
            let found = find(doc! { "$gte": least }, 1, limit).await;
            streams.push(Stream::new(found.map_err(failed)?, Vec::new()));
        }
        // Whole numbers, between the least and the greatest.
        let any = doc! { "$gte": i64::MIN, "$lte": i64::MAX };
        let mut ends = Vec::new();
        for order in [1, -1] {
            let mut found = find(any.clone(), order, 1).await.map_err(failed)?;
            if found.advance().await.map_err(failed)? {
                let id = found.current().get("_id").ok().flatten();
                ends.extend(id.and_then(|id| match Bson::try_from(id).ok()? {
                    Bson::Int32(n) => Some(i64::from(n)),
                    Bson::Int64(n) => Some(n),
                    Bson::Double(n) => Some(n as i64),
                    _ => None,
                }));
            }
        }
        let [least_id, greatest_id] = ends[..] else {
            return Ok(streams);
        };
        for len in 1..=19_u32 {
            let low = if len == 1 { 0 } else { 10_i64.pow(len - 1) };
            let high = 10_i64.checked_pow(len).map_or(i64::MAX, |end| end - 1);
            let from_here = least(from, b"0123456789", len as usize);
            let from_here = from_here.map(|text| text.parse::<i64>().unwrap_or(i64::MAX));
            if let Some(begin) = from_here.map(|begin| begin.max(low))
                && begin <= high.min(greatest_id)
                && high >= least_id
            {
                let range = doc! { "$gte": begin, "$lte": high };
                let found = find(range, 1, limit).await.map_err(failed)?;
                streams.push(Stream::new(found, Vec::new()));
            }
            // Negative numbers of one length stand the other way round.
            let digits = match from.split_first() {
                Some((b'-', digits)) => Some(digits),
                Some((sign, _)) if *sign > b'-' => None,
                _ => Some(&b""[..]),
            };
            let from_here = digits.and_then(|digits| least(digits, b"0123456789", len as usize));
            let from_here = from_here.map(|text| text.parse::<i64>().unwrap_or(i64::MAX));
            let low = low.max(1);
            if let Some(begin) = from_here.map(|begin| begin.max(low))
                && begin <= high
                && -low >= least_id
            {
                let least = if high == i64::MAX { i64::MIN } else { -high };
                let range = doc! { "$gte": least, "$lte": -begin };
                let found = find(range, -1, limit).await.map_err(failed)?;
                streams.push(Stream::new(found, Vec::new()));
            }
        }
        Ok(streams)
    }

    /// The escaped names of a window.
    async fn gathered(&self, collection: &str, window: &Window<'_>) -> Result<Gathered> {
        let mut names = Arc::default();
        let reaches = window
            .prefix
            .first()
            .is_none_or(|sign| *sign == ESCAPE as u8)
            && window.from() < &b">"[..];
        if reaches {
            names = self.escaped(collection, window.goes_on).await?;
        }
        let begin = names.partition_point(|name| !window.is_behind(name));
        Ok(Gathered {
            names,
            at: begin,
            ready: VecDeque::new(),
        })
    }

    /// All names of a collection that are escaped.
    async fn escaped(&self, collection: &str, goes_on: bool) -> Result<Arc<Vec<String>>> {
        let now = clock::now();
        if goes_on {
            let mut kept = self.escaped.lock();
            kept.retain(|_, (used, _)| *used + KEPT > now);
            if let Some((used, names)) = kept.get_mut(collection) {
                *used = now;
                return Ok(names.clone());
            }
        }
        let failed = |cause: ::mongodb::error::Error| self.link.error(&cause);
        let all = self.collection(collection);
        let mut all = all
            .find(doc! {})
            .projection(doc! { "_id": 1 })
            .await
            .map_err(failed)?;
        let mut names = Vec::new();
        while all.advance().await.map_err(failed)? {
            let name = name_of(&all.current().to_owned());
            names.extend(name.filter(|name| name.starts_with(ESCAPE)));
        }
        names.sort_unstable();
        let names = Arc::new(names);
        let kept = (clock::now(), names.clone());
        self.escaped.lock().insert(collection.to_owned(), kept);
        Ok(names)
    }

    /// The next escaped name that is still there.
    async fn peek<'a>(
        &self,
        collection: &str,
        gathered: &'a mut Gathered,
    ) -> Result<Option<&'a str>> {
        let failed = |cause: ::mongodb::error::Error| self.link.error(&cause);
        while gathered.ready.is_empty() && gathered.at < gathered.names.len() {
            let end = (gathered.at + MANY).min(gathered.names.len());
            let names = &gathered.names[gathered.at..end];
            gathered.at = end;
            let ids: Vec<Bson> = names.iter().filter_map(|name| names::id(name)).collect();
            let all = self.collection(collection);
            let found = all.find(doc! { "_id": { "$in": ids } }).await;
            let mut found = found.map_err(failed)?;
            let mut by_name = HashMap::new();
            while found.advance().await.map_err(failed)? {
                let document = found.current().to_owned();
                by_name.extend(name_of(&document).map(|name| (name, document)));
            }
            let there = names.iter().filter_map(|name| by_name.remove_entry(name));
            gathered.ready.extend(there);
        }
        Ok(gathered.ready.front().map(|(name, _)| name.as_str()))
    }
}

/// Escaped names, and those of them that are fetched.
struct Gathered {
    names: Arc<Vec<String>>,
    at: usize,
    ready: VecDeque<Named>,
}
