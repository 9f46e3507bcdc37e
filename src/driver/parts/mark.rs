//! The mark of a copy: which version of which attributes it is a copy of.

use crate::driver::{Attributes, ETag, ObjectInfo};
use bytes::Bytes;
use md5::{Digest, Md5};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The user attribute that a copy has. It must not begin with `bucketfs.`, where drivers keep what
/// is theirs.
const NAME: &str = "bucketfs-source";

/// Whether a user attribute of this name says what an object is a copy of.
pub fn is_copy_mark(name: &str) -> bool {
    name.starts_with(NAME)
}

/// The mark of one store of stores. Where they nest, each has a name of its own.
#[derive(Clone, Debug)]
pub(in crate::driver) struct Mark(String);

/// What a mark tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::driver) struct Source {
    /// The version.
    pub etag: ETag,
    /// The attributes that it had.
    pub attributes: String,
    /// Its size, where that is known.
    pub size: Option<u64>,
}

impl Source {
    /// What a copy of an object tells.
    pub fn of(etag: &ETag, attributes: &Attributes, size: Option<u64>) -> Source {
        Source {
            etag: etag.clone(),
            attributes: Mark::digest(attributes),
            size,
        }
    }

    fn encode(&self) -> Bytes {
        let size = self.size.map(|size| format!(":{size}"));
        let size = size.unwrap_or_default();
        format!("{}{size} {}", self.attributes, self.etag.as_str()).into()
    }

    fn decode(text: &[u8]) -> Option<Source> {
        let (attributes, etag) = std::str::from_utf8(text).ok()?.split_once(' ')?;
        let (attributes, size) = match attributes.split_once(':') {
            Some((attributes, size)) => (attributes, Some(size.parse().ok()?)),
            None => (attributes, None),
        };
        Some(Source {
            etag: ETag::new(etag),
            attributes: attributes.to_owned(),
            size,
        })
    }
}

impl Mark {
    /// The mark of a store that is a part of so many others.
    pub fn new(depth: u32) -> Mark {
        Mark(match depth {
            0 => NAME.to_owned(),
            depth => format!("{NAME}-{depth}"),
        })
    }

    /// The attribute's name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// What the attribute holds.
    pub fn value(source: &Source) -> Bytes {
        source.encode()
    }

    /// Puts it among the attributes of a copy.
    pub fn set(&self, attributes: &mut Attributes, source: &Source) {
        attributes.user.insert(self.0.clone(), source.encode());
    }

    /// Takes it from the attributes that a store told. What somebody else did to the bytes can leave
    /// it there: none is given where the object has another size.
    pub fn take(&self, info: &mut ObjectInfo) -> Option<Source> {
        let attributes = info.attributes.as_mut()?;
        if !attributes.user.contains_key(&self.0) {
            return None;
        }
        let source = Source::decode(&Arc::make_mut(attributes).user.remove(&self.0)?)?;
        let other = |marked| info.size.is_some_and(|size| size != marked);
        (!source.size.is_some_and(other)).then_some(source)
    }

    /// Attributes without what another order of the stores has left there.
    pub fn strip(&self, attributes: &mut Attributes) {
        attributes.user.remove(&self.0);
    }

    /// A digest of what a change of attributes may change. Times of access and headers are left
    /// out: the one changes by itself, the other is for one kind of store.
    pub fn digest(attributes: &Attributes) -> String {
        let nanos = |time: SystemTime| match time.duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        };
        let Attributes {
            mode,
            uid,
            gid,
            mtime,
            atime: _,
            rdev,
            content_type,
            user,
            headers: _,
        } = attributes;
        let mtime = mtime.map(nanos);
        Mark::digest_of(&format!(
            "{mode:?} {uid:?} {gid:?} {mtime:?} {rdev:?} {content_type:?} {user:?}"
        ))
    }

    /// A digest of a text, as 16 digits.
    pub fn digest_of(text: &str) -> String {
        let digest = Md5::digest(text.as_bytes());
        digest[..8].iter().map(|b| format!("{b:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_and_those_of_nested_stores_are_kept_apart() {
        let (outer, inner) = (Mark::new(0), Mark::new(1));
        let mut attributes = Attributes::default();
        let source = Source::of(&ETag::new("\"an etag\" -1"), &attributes, None);
        outer.set(&mut attributes, &source);
        let nested = Source::of(&ETag::new("other"), &attributes, None);
        inner.set(&mut attributes, &nested);
        assert_ne!(source.attributes, nested.attributes);
        let mut info = ObjectInfo {
            size: None,
            etag: ETag::new("own"),
            modified: SystemTime::UNIX_EPOCH,
            attributes: Some(Arc::new(attributes)),
            commits: Vec::new(),
            version: None,
        };
        assert_eq!(inner.take(&mut info), Some(nested));
        assert_eq!(inner.take(&mut info), None);
        assert_eq!(outer.take(&mut info), Some(source));
        assert!(info.told_attributes().user.is_empty());
    }

    #[test]
    fn a_mark_is_none_of_bytes_of_another_size() {
        let mark = Mark::new(0);
        let mut attributes = Attributes::default();
        let source = Source::of(&ETag::new("e"), &attributes, Some(10));
        mark.set(&mut attributes, &source);
        for (size, told) in [(Some(10), true), (None, true), (Some(4), false)] {
            let mut info = ObjectInfo {
                size,
                etag: ETag::new("own"),
                modified: SystemTime::UNIX_EPOCH,
                attributes: Some(Arc::new(attributes.clone())),
                commits: Vec::new(),
                version: None,
            };
            let taken = mark.take(&mut info);
            assert_eq!(taken, told.then(|| source.clone()), "{size:?}");
        }
    }
}
