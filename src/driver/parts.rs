//! What stores that are made of stores have in common: their URLs, and copies that say what they
//! are copies of.
//!
//! `mirror:` and `tier:` are drivers over drivers, and so use layers as nothing else here does.

mod copies;
mod mark;
mod transfer;

pub(super) use copies::Copies;
pub use mark::is_copy_mark;
pub(super) use mark::{Mark, Source};
pub(super) use transfer::transfer;

use super::{Driver, Error, ErrorKind, Location, OpenOptions, Result};
use crate::clock::{self, Instant};
use crate::layer::{Deadline, Layered, Prefix};
use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// How long a store that others stand in for may be silent.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How long a store may be silent that nobody can stand in for.
const SILENCE: Duration = Duration::from_secs(30);
/// The pauses in which a store that does not answer is not asked.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// What one of several stores is, and how it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartStatus {
    /// Its URL without secrets.
    pub url: String,
    /// Which part it has.
    pub role: String,
    /// Why it does not answer, if it does not.
    pub failing: Option<String>,
    /// How many keys it lacks the newest version of, as far as is known here.
    pub pending: u64,
    /// Whether those are too many to tell, so that all are to be compared.
    pub everything: bool,
    /// Whether it has the copies of another store, and is left alone.
    pub of_another: bool,
}

/// What came of a repair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Objects that were looked at.
    pub compared: u64,
    /// Copies that were made, changed or removed.
    pub mended: u64,
    /// Objects of a replica that no mirror has put there.
    pub foreign: u64,
    /// Copies of what the first store does not have, which were not removed.
    pub surplus: u64,
    /// Objects that could not be brought up to date.
    pub failed: u64,
}

/// Several stores that are kept alike.
#[async_trait]
pub trait Replicated: Send + Sync + Debug {
    /// Each of them.
    fn status(&self) -> Vec<PartStatus>;

    /// Compares all of them, and brings copies up to date, with `replace` also those that have the
    /// copies of another store. It says what it does.
    async fn repair(&self, replace: bool, say: &mut (dyn FnMut(String) + Send))
    -> Result<Repaired>;
}

fn wrong(why: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, why).during("open")
}

/// The URLs that a URL is made of: what stands between its commas. One in parentheses may have
/// commas itself. No message shows any of it, for it may hold a password.
pub(super) fn split(url: &url::Url) -> Result<Vec<&str>> {
    let scheme = url.scheme();
    let text = &url.as_str()[scheme.len() + 1..];
    let unpaired = || {
        wrong(format!(
            "a parenthesis of the {scheme}: URL has no counterpart; write %28 and %29 for those of a name"
        ))
    };
    let (mut parts, mut depth, mut begin) = (Vec::new(), 0_usize, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.checked_sub(1).ok_or_else(unpaired)?,
            b',' if depth == 0 => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    if depth > 0 {
        return Err(unpaired());
    }
    parts.push(&text[begin..]);
    let bare = |part: &'_ str| part.trim().len();
    if parts.len() < 2 || parts.iter().any(|part| bare(part) == 0) {
        return Err(wrong(format!(
            "a {scheme}: URL names at least two stores, like {scheme}:file:///a,file:///b; write %2C for a comma within a URL"
        )));
    }
    Ok(parts
        .into_iter()
        .map(|part| {
            let inner = part
                .strip_prefix('(')
                .and_then(|part| part.strip_suffix(')'));
            inner.unwrap_or(part)
        })
        .collect())
}

/// What a URL within a URL may say for itself.
const OWN: [&str; 4] = ["endpoint-url", "region", "profile", "force-path-style"];

/// Opens a store as a part of another one. `copies` says that it holds only copies, so that it
/// needs no conditions.
pub(super) async fn open(
    location: &Location,
    options: &OpenOptions,
    copies: bool,
) -> Result<Arc<dyn Driver>> {
    let mut options = OpenOptions {
        depth: options.depth + 1,
        unsafe_writes: options.unsafe_writes || copies,
        // Each has its own place there.
        journal_dir: options
            .journal_dir
            .as_ref()
            .map(|dir| dir.join(Mark::digest_of(&location.to_string()))),
        ..options.clone()
    };
    let mut location = location.clone();
    if location.scheme() == super::s3::SCHEME {
        let (rest, mut own) = location.without(&OWN);
        location = rest;
        options.endpoint_url = own.remove("endpoint-url").or(options.endpoint_url);
        options.region = own.remove("region").or(options.region);
        options.profile = own.remove("profile").or(options.profile);
        if let Some(given) = own.remove("force-path-style") {
            options.force_path_style = given != "false";
        }
    }
    let opened = Box::pin(super::open(&location, &options)).await?;
    if opened.is_store {
        return Err(wrong(format!(
            "{location} holds buckets or databases; name one of them"
        )));
    }
    let mut prefix = opened.prefix;
    if prefix.is_empty() {
        return Ok(opened.driver);
    }
    if !prefix.as_bytes().ends_with(b"/") {
        prefix = prefix.join("/");
    }
    Ok(Arc::new(Prefix::new(opened.driver, prefix)))
}

/// A store of copies, with a time limit for each request, as those who wait need not.
pub(super) fn limited(driver: Arc<dyn Driver>) -> Arc<dyn Driver> {
    Layered::over(driver, Arc::new(Deadline::new(PATIENCE)))
}

/// A store that copies are made of, with a time limit for each request: what copies in the
/// background is below no other one.
pub(super) fn patient(driver: Arc<dyn Driver>) -> Arc<dyn Driver> {
    Layered::over(driver, Arc::new(Deadline::new(SILENCE)))
}

/// Whether an error says that the store does not answer, and not what it answers.
pub(super) fn is_unavailable(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Timeout | ErrorKind::Unreachable | ErrorKind::Unavailable
    )
}

/// Whether a store answers, and when one that does not is asked again.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Option<Failing>>);

#[derive(Debug)]
struct Failing {
    why: String,
    next: Instant,
    pause: Duration,
}

impl Health {
    /// Whether it may be asked now. Of those who ask at once while it fails only one may.
    pub fn may_ask(&self) -> bool {
        match &mut *self.0.lock() {
            None => true,
            Some(failing) if failing.next <= clock::now() => {
                failing.next = clock::now() + failing.pause;
                true
            }
            Some(_) => false,
        }
    }

    /// Why it does not answer, when it does not.
    pub fn failing(&self) -> Option<String> {
        self.0.lock().as_ref().map(|failing| failing.why.clone())
    }

    /// It has answered; whether that is news.
    pub fn answered(&self) -> bool {
        self.0.lock().take().is_some()
    }

    /// It has not answered; whether that is news.
    pub fn failed(&self, error: &Error) -> bool {
        let mut state = self.0.lock();
        let known = state.as_ref().map(|failing| failing.pause);
        let pause = known.map_or(PAUSE.0, |pause| (pause * 2).min(PAUSE.1));
        *state = Some(Failing {
            why: error.reason(),
            next: clock::now() + pause,
            pause,
        });
        known.is_none()
    }

    /// What is told in its place while it is not asked.
    pub fn refusal(&self, operation: &'static str) -> Error {
        let why = self.failing().unwrap_or_default();
        Error::new(
            ErrorKind::Unavailable,
            format!("the store has just failed to answer, and is asked again in a moment: {why}"),
        )
        .during(operation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> std::result::Result<Vec<String>, String> {
        let location = Location::parse(text).map_err(|error| error.to_string())?;
        Ok(location.parts().iter().map(Location::to_string).collect())
    }

    #[test]
    fn commas_part_urls_and_parentheses_hold_them_together() {
        let two = parts("mirror:file:///a,file:///b").unwrap();
        assert_eq!(two, ["file:///a", "file:///b"]);
        let nested = parts("tier:memory:,(mirror:file:///a,s3://b/c)").unwrap();
        assert_eq!(nested, ["memory:", "mirror:file:///a,s3://b/c"]);
        let escaped = parts("tier:memory:?seed=/a%2Cb&size=5,file:///c%2C%28d").unwrap();
        assert_eq!(escaped, ["memory:?seed=/a%2Cb&size=5", "file:///c%2C%28d"]);
        let location = Location::parse("tier:memory:,file:///a%2Cb").unwrap();
        assert_eq!(location.parts()[1].path(), b"a,b");
        let shown = "tier:memory:,(mirror:file:///a,(tier:memory:,file:///b))";
        let location = Location::parse(shown).unwrap();
        assert_eq!(location.to_string(), shown);
        assert_eq!(location.leaves().len(), 4);
    }

    #[test]
    fn what_is_no_list_of_urls_is_refused() {
        for text in [
            "mirror:",
            "mirror:file:///a",
            "mirror:file:///a,",
            "mirror:file:///a,(file:///b",
            "mirror:file:///a),file:///b",
            "mirror:file:///a,nonsense",
            "mirror:file:///a,ftp://b",
            "mirror://host/path",
        ] {
            assert!(parts(text).is_err(), "{text}");
        }
    }

    /// Room that was made in the fast store of a tier over itself was made by removing files.
    #[test]
    fn stores_that_share_objects_are_refused() {
        for text in [
            "tier:file:///a,file:///a",
            "tier:file:///a/cache,file:///a",
            "mirror:file:///a,file:///b,file:///a/../a/d",
            "mirror:redis://h/0?layout=objects,redis://u:x@H/0?layout=objects",
            "mirror:s3://b,s3://b/x/y",
            "tier:memory:,(mirror:file:///a,(tier:memory:,file:///a/b))",
        ] {
            let refused = parts(text).unwrap_err();
            assert!(refused.contains("lies in the other"), "{text}: {refused}");
        }
        for text in [
            "mirror:memory:,memory:",
            "mirror:file:///a,file:///ab",
            "mirror:s3://b/x,s3://b/y",
            "mirror:s3://b?endpoint-url=http://x,s3://b?endpoint-url=http://y",
            "mirror:redis://h/0?layout=objects,redis://h/1?layout=objects",
            "mirror:redis://h:1/0?layout=objects,redis://h:2/0?layout=objects",
        ] {
            assert_eq!(parts(text).unwrap().len(), 2, "{text}");
        }
    }

    #[test]
    fn passwords_within_are_seen_and_not_shown() {
        let text = "mirror:redis://u:hunter2@h/0,(tier:memory:,redis://u:hunter3@i/0)";
        assert!(Location::holds_password(text));
        assert!(!Location::holds_password("mirror:file:///a@b,memory:"));
        let location = Location::parse(text).unwrap();
        assert!(!format!("{location} {location:?}").contains("hunter"));
        let garbled = "mirror:redis://u:hunter2@h:x/0,memory:";
        assert!(Location::holds_password(
            &format!("({garbled}").replacen('(', "mirror:(", 1)
        ));
        let error = Location::parse(garbled).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter"));
    }

    #[test]
    fn what_an_s3_url_says_for_itself_is_taken_from_it() {
        let url = "mirror:s3://a?endpoint-url=http://127.0.0.1:9000,s3://b/p";
        let location = Location::parse(url).unwrap();
        let (rest, own) = location.parts()[0].without(&OWN);
        assert_eq!(rest.to_string(), "s3://a");
        assert_eq!(own["endpoint-url"], "http://127.0.0.1:9000");
    }
}
