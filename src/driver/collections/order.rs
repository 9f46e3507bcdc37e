//! Listings of a collection: in the order of names, a page at a time.
//!
//! Servers sort by type and value; names sort by their bytes. Strings, and whole numbers of each
//! length, are streams that are in the order of their names, nearly so for strings, and are merged.
//! Names behind `=` are in no such order: they are gathered by one look at all ids, when a listing
//! comes to them, and kept while it goes on.

use crate::clock::{self, Instant};
use crate::driver::Result;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What the names of escaped values begin with.
pub(in crate::driver) const ESCAPE: char = '=';
/// A page ends with the document that makes it this large.
const BUDGET: usize = 8 << 20;
/// How many escaped names are asked for at once.
const MANY: usize = 100;
/// How long escaped names are kept for the next page.
const KEPT: Duration = Duration::from_secs(10);

/// A document with its name.
pub(in crate::driver) type Named<D> = (String, D);

/// Documents in the order that their server has; those of escaped names are passed over.
pub(in crate::driver) type Source<'a, D> = BoxStream<'a, Result<Named<D>>>;

/// One collection, as listings see it.
#[async_trait]
pub(in crate::driver) trait Shelf: Sync {
    /// A document.
    type Document: Send;

    /// Names with such characters in them, and greater ones, are escaped: servers differ in their
    /// order.
    const DISPUTED: char;

    /// How much memory one takes.
    fn weight(document: &Self::Document) -> usize;

    /// Whether it is among those that are asked for.
    fn is_wanted(&self, document: &Self::Document) -> Result<bool> {
        let _ = document;
        Ok(true)
    }

    /// Strings from `floor` on first, then whatever else is in the order of its names.
    async fn sources(
        &self,
        window: &Window<'_>,
        floor: &str,
    ) -> Result<Vec<Source<'_, Self::Document>>>;

    /// The documents of some strings, in order, and of some names in any.
    async fn strings(&self, ids: &[&str]) -> Result<Vec<Named<Self::Document>>>;
    async fn named(&self, names: &[String]) -> Result<Vec<Named<Self::Document>>>;

    /// All names that are escaped, in any order.
    async fn escaped(&self) -> Result<Vec<String>>;
}

/// The escaped names of collections, in order, and when they were used. A leaf lock, held for
/// moments only.
#[derive(Default)]
pub(in crate::driver) struct Kept(Mutex<HashMap<String, Escaped>>);

type Escaped = (Instant, Arc<Vec<String>>);

impl Kept {
    async fn names(
        &self,
        shelf: &impl Shelf,
        collection: &str,
        goes_on: bool,
    ) -> Result<Arc<Vec<String>>> {
        let now = clock::now();
        if goes_on {
            let mut kept = self.0.lock();
            kept.retain(|_, (used, _)| *used + KEPT > now);
            if let Some((used, names)) = kept.get_mut(collection) {
                *used = now;
                return Ok(names.clone());
            }
        }
        let mut names = shelf.escaped().await?;
        names.sort_unstable();
        let names = Arc::new(names);
        let kept = (clock::now(), names.clone());
        let mut all = self.0.lock();
        all.retain(|_, (used, _)| *used + KEPT > now);
        all.insert(collection.to_owned(), kept);
        drop(all);
        Ok(names)
    }
}

/// What one page is of.
pub(in crate::driver) struct Window<'a> {
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
    pub(in crate::driver) fn from(&self) -> &[u8] {
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

/// Documents in the order of their names.
struct Stream<'a, D> {
    source: Source<'a, D>,
    /// Those that may come behind others: each begins with the one before it, as far as the ids go.
    held: Vec<Named<D>>,
    ready: VecDeque<Named<D>>,
    is_done: bool,
}

fn stem(name: &str) -> &str {
    name.strip_suffix(".json").unwrap_or(name)
}

impl<D> Stream<'_, D> {
    /// The name that is next.
    async fn peek(&mut self) -> Result<Option<&str>> {
        while self.ready.is_empty() && !self.is_done {
            match self.source.next().await.transpose()? {
                None => {
                    self.is_done = true;
                    self.ready.extend(self.held.drain(..).rev());
                }
                // Others have them.
                Some((name, _)) if name.starts_with(ESCAPE) => {}
                Some((name, document)) => self.take(name, document),
            }
        }
        Ok(self.ready.front().map(|(name, _)| name.as_str()))
    }

    /// Puts aside what may be overtaken: `a` is `a.json`, which stands behind `a-.json`.
    fn take(&mut self, name: String, document: D) {
        while let Some((last, _)) = self.held.last() {
            if name.starts_with(stem(last)) && name < *last {
                break;
            }
            self.ready.extend(self.held.pop());
        }
        self.held.push((name, document));
    }
}

/// The least text of `len` signs of an alphabet that a name at or behind `from` can begin with;
/// none where all such names stand before it.
pub(in crate::driver) fn least(from: &[u8], alphabet: &[u8], len: usize) -> Option<String> {
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
fn floor(from: &[u8], disputed: char) -> String {
    let text = match std::str::from_utf8(from) {
        Ok(text) => text,
        Err(cause) => std::str::from_utf8(&from[..cause.valid_up_to()]).unwrap_or_default(),
    };
    text.chars().take_while(|c| *c < disputed).collect()
}

/// Whole numbers from `least` to `greatest`, both of which are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::driver) struct Numbers {
    pub least: i64,
    pub greatest: i64,
    /// Whether the order of their names is from the greatest on.
    pub is_descending: bool,
}

/// The ranges of numbers whose names are not before `from`, each in the order of its names: those of
/// one length. `ends` are the least and the greatest that there are.
pub(in crate::driver) fn numbers(from: &[u8], ends: (i64, i64)) -> Vec<Numbers> {
    let mut ranges = Vec::new();
    for len in 1..=19_u32 {
        let low = if len == 1 { 0 } else { 10_i64.pow(len - 1) };
        let high = 10_i64.checked_pow(len).map_or(i64::MAX, |end| end - 1);
        let from_here = least(from, b"0123456789", len as usize);
        let from_here = from_here.map(|text| text.parse::<i64>().unwrap_or(i64::MAX));
        if let Some(begin) = from_here.map(|begin| begin.max(low))
            && begin <= high.min(ends.1)
            && high >= ends.0
        {
            ranges.push(Numbers {
                least: begin,
                greatest: high,
                is_descending: false,
            });
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
            && -low >= ends.0
        {
            ranges.push(Numbers {
                least: if high == i64::MAX { i64::MIN } else { -high },
                greatest: -begin,
                is_descending: true,
            });
        }
    }
    ranges
}

/// One page of a collection; whether there are more. Escaped names are kept by that of the collection,
/// or of a part of it.
pub(in crate::driver) async fn page<S: Shelf>(
    shelf: &S,
    kept: &Kept,
    collection: &str,
    window: &Window<'_>,
) -> Result<(Vec<Named<S::Document>>, bool)> {
    let mut streams = streams(shelf, window).await?;
    let mut escaped: Option<Gathered<S::Document>> = None;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    loop {
        let mut next: Option<(usize, String)> = None;
        for (at, stream) in streams.iter_mut().enumerate() {
            while let Some(name) = stream.peek().await? {
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
            escaped = Some(gathered(shelf, kept, collection, window).await?);
        }
        let other = match &mut escaped {
            Some(gathered) => gathered.peek(shelf).await?,
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
        if !window.holds(&name) || !shelf.is_wanted(&document)? {
            continue;
        }
        if entries.len() == window.limit || bytes > BUDGET {
            return Ok((entries, true));
        }
        bytes += S::weight(&document);
        entries.push((name, document));
    }
}

/// Those whose names are in the order of a sort.
async fn streams<'a, S: Shelf>(
    shelf: &'a S,
    window: &Window<'_>,
) -> Result<Vec<Stream<'a, S::Document>>> {
    // Strings of which the place where this begins is a continuation. Some are behind `=`, and not
    // counted.
    let from = window.from();
    let begin = floor(from, S::DISPUTED);
    let within = begin.char_indices().skip(1).map(|(at, _)| &begin[..at]);
    let held: Vec<&str> = within
        .filter(|id| format!("{id}.json").as_bytes() > from)
        .collect();
    let mut before = match held.is_empty() {
        true => Vec::new(),
        false => shelf.strings(&held).await?,
    };
    before.retain(|(name, _)| !name.starts_with(ESCAPE));
    let sources = shelf.sources(window, &begin).await?;
    let streams = sources.into_iter().map(|source| Stream {
        source,
        held: std::mem::take(&mut before),
        ready: VecDeque::new(),
        is_done: false,
    });
    Ok(streams.collect())
}

/// The escaped names of a window.
async fn gathered<S: Shelf>(
    shelf: &S,
    kept: &Kept,
    collection: &str,
    window: &Window<'_>,
) -> Result<Gathered<S::Document>> {
    let mut names = Arc::default();
    let reaches = window
        .prefix
        .first()
        .is_none_or(|sign| *sign == ESCAPE as u8)
        && window.from() < &b">"[..];
    if reaches {
        names = kept.names(shelf, collection, window.goes_on).await?;
    }
    Ok(Gathered {
        at: names.partition_point(|name| !window.is_behind(name)),
        names,
        ready: VecDeque::new(),
    })
}

/// Escaped names, and those of them that are fetched.
struct Gathered<D> {
    names: Arc<Vec<String>>,
    at: usize,
    ready: VecDeque<Named<D>>,
}

impl<D: Send> Gathered<D> {
    /// The next escaped name that is still there.
    async fn peek(&mut self, shelf: &impl Shelf<Document = D>) -> Result<Option<&str>> {
        while self.ready.is_empty() && self.at < self.names.len() {
            let end = (self.at + MANY).min(self.names.len());
            let names = &self.names[self.at..end];
            self.at = end;
            let found = shelf.named(names).await?;
            let mut by_name: HashMap<_, _> = found.into_iter().collect();
            let there = names.iter().filter_map(|name| by_name.remove_entry(name));
            self.ready.extend(there);
        }
        Ok(self.ready.front().map(|(name, _)| name.as_str()))
    }
}
