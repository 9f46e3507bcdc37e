//! Keys of a bucket type: a bucket's name, a `/`, and the key in it.
//!
//! A key in Riak is as it is. In the name of a bucket, `/` is `%2F` and `%` is `%25`, so that each
//! bucket is one directory. A bucket's own directory has no key in Riak; where one is made, it is the
//! object [`MARKER`] of the bucket.

use crate::conflict;
use crate::driver::{Error, ErrorKind, Result};
use crate::key::Key;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use std::time::SystemTime;

/// The longest key: a request's line has room for it, escaped.
pub(super) const MAX_KEY: usize = 1024;
/// The key of a bucket's own directory.
pub(super) const MARKER: &str = ".bucketfs/directory";
/// What stands for a machine in the name of a sibling's conflict file, with its tag behind it.
const HOST: &str = "riak-";
const BESIDE: &str = ".conflict-riak-";

/// What is escaped in the URLs of the server. A segment of dots would mean another one.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~');

/// A segment of a URL.
pub(super) fn segment(text: impl AsRef<[u8]>) -> String {
    percent_encode(text.as_ref(), SEGMENT).to_string()
}

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub bucket: String,
    /// The key in Riak.
    pub name: String,
    /// The key here.
    pub key: Key,
}

/// The directory of a bucket.
pub(super) fn directory(bucket: &str) -> Key {
    let escaped = bucket.replace('%', "%25").replace('/', "%2F");
    Key::from(format!("{escaped}/"))
}

/// The bucket of a directory's name, without its `/`.
pub(super) fn bucket(text: &[u8]) -> Option<String> {
    let mut rest = std::str::from_utf8(text).ok()?;
    let mut name = String::new();
    while let Some((before, behind)) = rest.split_once('%') {
        name.push_str(before);
        let sign = match behind.get(..2)? {
            "25" => '%',
            "2F" => '/',
            _ => return None,
        };
        name.push(sign);
        rest = &behind[2..];
    }
    name.push_str(rest);
    (!name.is_empty()).then_some(name)
}

impl Place {
    /// Where a key is; `None` where none can be.
    pub(super) fn find(key: &Key) -> Option<Place> {
        let cut = key.as_bytes().iter().position(|byte| *byte == b'/')?;
        let bucket = bucket(&key.as_bytes()[..cut])?;
        let name = match std::str::from_utf8(&key.as_bytes()[cut + 1..]).ok()? {
            MARKER => return None,
            "" => MARKER,
            name => name,
        };
        Some(Place {
            bucket,
            name: name.to_owned(),
            key: key.clone(),
        })
    }

    /// Where a key is to be written.
    pub(super) fn writable(key: &Key) -> Result<Place> {
        if key.len() > MAX_KEY {
            let why = format!("the key has {} bytes; {MAX_KEY} are possible", key.len());
            return Err(Error::new(ErrorKind::NameTooLong, why));
        }
        Place::find(key).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidKey,
                "only buckets are at the top of a type, and in their names % is %25 and / is %2F",
            )
        })
    }

    /// The place of a sibling's conflict file beside this one.
    pub(super) fn beside(&self, tag: &str, modified: SystemTime) -> Place {
        let (directory, file) = self.name.rsplit_once('/').unwrap_or(("", &self.name));
        let host = format!("{HOST}{tag}");
        let file = conflict::name(file.as_bytes(), &host, modified, 0);
        // It is cut between characters.
        let file = String::from_utf8_lossy(&file);
        let name = match directory.len() < self.name.len() && self.name.contains('/') {
            true => format!("{directory}/{file}"),
            false => file.into_owned(),
        };
        Place {
            bucket: self.bucket.clone(),
            key: self::directory(&self.bucket).join(&name),
            name,
        }
    }

    /// The object whose sibling this may be the conflict file of.
    pub(super) fn main(&self) -> Option<Place> {
        let at = self.name.rfind(BESIDE)?;
        let name = &self.name[..at];
        (!name.is_empty() && !name.ends_with('/') && !self.name[at..].contains('/')).then(|| {
            Place {
                bucket: self.bucket.clone(),
                name: name.to_owned(),
                key: self::directory(&self.bucket).join(name),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn each_bucket_is_one_directory(name in "[a%/2F5é.]{1,12}") {
            let directory = directory(&name);
            let text = directory.as_bytes().strip_suffix(b"/").expect("a directory");
            prop_assert!(!text.contains(&b'/'));
            prop_assert_eq!(bucket(text), Some(name));
        }

        #[test]
        fn each_directory_is_of_one_bucket(text in "[a%2F5é.]{1,12}") {
            if let Some(name) = bucket(text.as_bytes()) {
                prop_assert_eq!(directory(&name), Key::from(format!("{text}/")));
            }
        }
    }

    #[test]
    fn keys_are_places() {
        let place = |key: &str| Place::find(&Key::from(key));
        let found = place("a%2Fb//c/").expect("a place");
        assert_eq!((found.bucket.as_str(), found.name.as_str()), ("a/b", "/c/"));
        assert_eq!(place("b/").expect("a place").name, MARKER);
        for none in ["", "a", "/a", "a%/b", "a%2f/b", "b/.bucketfs/directory"] {
            assert_eq!(place(none), None, "{none}");
        }
        assert_eq!(segment("../a+b ü"), "%2E%2E%2Fa%2Bb%20%C3%BC");
    }

    #[test]
    fn a_sibling_has_a_conflict_file_beside_its_object() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for key in ["b/notes.txt", "b/d/e", "b//x"] {
            let place = Place::find(&Key::from(key)).expect("a place");
            let beside = place.beside("3xYz", time);
            let tail = ".conflict-riak-3xYz-20231114T221320Z";
            assert_eq!(beside.key, Key::from(format!("{key}{tail}")));
            assert_eq!(beside.main(), Some(place));
        }
        for none in ["b/x", "b/.conflict-riak-a", "b/x.conflict-riak-a/b"] {
            let place = Place::find(&Key::from(none)).expect("a place");
            assert_eq!(place.main(), None, "{none}");
        }
    }
}
