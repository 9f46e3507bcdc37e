//! Storage classes. A copy has the usual one unless the request names its source's, which listings,
//! heads and gets tell.

use super::meta::{ARCHIVES, STORAGE_CLASS};
use super::refusal::Failed;
use super::store::Call;
use super::xml::Listed;
use super::{Bucket, meta};
use crate::key::Key;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// The class that no answer but a listing names.
const USUAL: &str = "STANDARD";
/// How many objects of other classes are known at once, in 5 MiB.
const MOST: usize = 1 << 18;

/// Which objects of a bucket are of another class than the usual one, as was told last.
#[derive(Debug, Default)]
pub(super) struct Classes {
    hasher: RandomState,
    /// A leaf lock, held for moments only.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    names: Vec<HeaderValue>,
    /// By the hashes of their keys, which class by its place among the names.
    others: HashMap<u64, u8>,
    /// There were more than can be known: the class of what is not here has to be asked for.
    forgot: bool,
}

impl Known {
    fn insert(&mut self, key: u64, class: &str) {
        let Ok(class) = meta::ascii(class) else {
            return;
        };
        let at = self.names.iter().position(|name| *name == class);
        let at = at.unwrap_or_else(|| {
            self.names.push(class);
            self.names.len() - 1
        });
        let full = self.others.len() >= MOST && !self.others.contains_key(&key);
        match u8::try_from(at) {
            Ok(at) if !full => {
                self.others.insert(key, at);
            }
            _ => {
                self.names.clear();
                self.others.clear();
                self.forgot = true;
            }
        }
    }
}

/// Whether a copy is to be of this class. Who copies from an archive has had the object restored,
/// and is likely to read the copy.
fn stays(class: &str) -> bool {
    !class.is_empty() && !class.eq_ignore_ascii_case(USUAL) && !ARCHIVES.contains(&class)
}

impl Classes {
    /// Notes the class of an object.
    pub fn told(&self, key: &Key, class: Option<&HeaderValue>) {
        let class = class.and_then(|class| class.to_str().ok());
        let key = self.hasher.hash_one(key);
        let mut known = self.known.lock();
        match class.filter(|class| stays(class)) {
            Some(class) => known.insert(key, class),
            None => {
                known.others.remove(&key);
            }
        }
    }

    /// Notes the classes of what is on a page.
    pub fn listed(&self, listed: &Listed) {
        let mut known = self.known.lock();
        if !known.others.is_empty() {
            for entry in &listed.page.entries {
                known.others.remove(&self.hasher.hash_one(&entry.key));
            }
        }
        for (key, class) in &listed.classes {
            if stays(class) {
                known.insert(self.hasher.hash_one(key), class);
            }
        }
    }

    /// The class that a copy of an object is to name; `Err` where it has to be asked for.
    fn of(&self, key: &Key) -> std::result::Result<Option<HeaderValue>, ()> {
        let known = self.known.lock();
        match known.others.get(&self.hasher.hash_one(key)) {
            Some(at) => Ok(known.names.get(usize::from(*at)).cloned()),
            None if known.forgot => Err(()),
            None => Ok(None),
        }
    }
}

impl Bucket {
    /// Whether the options say of which class every new object is.
    fn imposes_class(&self) -> bool {
        self.store.written.contains_key(STORAGE_CLASS)
    }

    /// Names the class of a copy's source, unless another one is named already.
    pub(super) async fn keep_class(
        &self,
        headers: &mut HeaderMap,
        from: &Key,
    ) -> std::result::Result<(), Failed> {
        if headers.contains_key(STORAGE_CLASS) || self.imposes_class() {
            return Ok(());
        }
        let class = match self.target.classes.of(from) {
            Ok(class) => class,
            Err(()) => {
                let looked = self.look(from, None, None).await?;
                let told = looked.and_then(|(_, headers)| headers.get(STORAGE_CLASS).cloned());
                told.filter(|class| class.to_str().is_ok_and(stays))
            }
        };
        if let Some(class) = class {
            headers.insert(STORAGE_CLASS, class);
        }
        Ok(())
    }

    /// Makes a request for a new object. A class that nobody can ask for, such as MinIO has for what
    /// it has moved to another store, is left out.
    pub(super) async fn make(
        &self,
        call: &mut Call<'_>,
    ) -> std::result::Result<(HeaderMap, Bytes), Failed> {
        match self.store.ask(&self.target, call).await {
            Err(Failed::Refused(refusal))
                if refusal.complaint.code == "InvalidStorageClass"
                    && !self.imposes_class()
                    && call.headers.remove(STORAGE_CLASS).is_some() =>
            {
                self.store.ask(&self.target, call).await
            }
            answer => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_any_more_is_asked_for() {
        let classes = Classes::default();
        let (key, other) = (Key::from("k"), Key::from("l"));
        let class = HeaderValue::from_static("STANDARD_IA");
        for usual in [None, Some(&HeaderValue::from_static("STANDARD"))] {
            classes.told(&key, Some(&class));
            assert_eq!(classes.of(&key), Ok(Some(class.clone())));
            assert_eq!(classes.of(&other), Ok(None));
            classes.told(&key, usual);
            assert_eq!(classes.of(&key), Ok(None));
        }
        classes.told(&key, Some(&HeaderValue::from_static("GLACIER")));
        assert_eq!(classes.of(&key), Ok(None));
        for at in 0..MOST {
            classes.told(&Key::from(at.to_string()), Some(&class));
        }
        assert_eq!(classes.of(&other), Ok(None));
        classes.told(&key, Some(&class));
        assert_eq!(classes.of(&other), Err(()));
    }
}
