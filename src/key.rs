//! Object keys: bytes, as the stores see them. How a key becomes a path is the business of
//! [`crate::name`].

use bytes::Bytes;
use std::fmt;

/// The key of an object, or a prefix of keys. Cheap to clone; ordered by its bytes, which is the
/// order that listings have.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Key(Bytes);

impl Key {
    /// Wraps bytes as a key.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Key(bytes.into())
    }

    /// The empty key: no object has it, as a prefix it stands for the whole bucket.
    pub const fn empty() -> Self {
        Key(Bytes::new())
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key's bytes, sharing their memory.
    pub fn bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// The key as text, when it is UTF-8.
    pub fn to_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether this is the empty key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this key begins with `prefix`.
    pub fn starts_with(&self, prefix: &Key) -> bool {
        self.0.starts_with(&prefix.0)
    }

    /// This key with `tail` behind it.
    pub fn join(&self, tail: impl AsRef<[u8]>) -> Key {
        let tail = tail.as_ref();
        let mut joined = Vec::with_capacity(self.0.len() + tail.len());
        joined.extend_from_slice(&self.0);
        joined.extend_from_slice(tail);
        Key(joined.into())
    }

    /// What stands behind `prefix`, or `None` when the key does not begin with it.
    pub fn strip_prefix(&self, prefix: &Key) -> Option<Key> {
        self.starts_with(prefix)
            .then(|| Key(self.0.slice(prefix.len()..)))
    }

    /// This key without its last character, or its last byte where it is not UTF-8: a key that
    /// comes before this one, and is text if this one is. `None` for the empty key.
    pub fn before(&self) -> Option<Key> {
        let last = match self.to_str() {
            Some(text) => text.chars().next_back()?.len_utf8(),
            None => 1,
        };
        Some(Key(self.0.slice(..self.len() - last)))
    }

    /// The smallest byte string greater than every key that begins with this one; `None` when
    /// there is none (the empty prefix, or 0xff bytes only).
    pub fn successor(&self) -> Option<Key> {
        let last = self.0.iter().rposition(|byte| *byte != 0xff)?;
        let mut next = self.0[..=last].to_vec();
        next[last] += 1;
        Some(Key(next.into()))
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Key(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Key(text.into())
    }
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Self {
        Key(Bytes::copy_from_slice(bytes))
    }
}

impl From<Vec<u8>> for Key {
    fn from(bytes: Vec<u8>) -> Self {
        Key(bytes.into())
    }
}

/// Shows the key as text; bytes that are not printable UTF-8 are escaped.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn successor_is_the_next_prefix() {
        assert_eq!(Key::from("a").successor(), Some(Key::from("b")));
        assert_eq!(Key::new(vec![b'a', 0xff]).successor(), Some(Key::from("b")));
        assert_eq!(Key::new(vec![0xff]).successor(), None);
        assert_eq!(Key::empty().successor(), None);
    }

    #[test]
    fn what_comes_before_text_is_text() {
        assert_eq!(Key::from("a/b").before(), Some(Key::from("a/")));
        assert_eq!(Key::from("a/メモ").before(), Some(Key::from("a/メ")));
        assert_eq!(Key::from("é").before(), Some(Key::empty()));
        let bytes = |bytes: &[u8]| Key::from(bytes);
        assert_eq!(bytes(b"a\xff\xfe").before(), Some(bytes(b"a\xff")));
        assert_eq!(Key::empty().before(), None);
    }

    #[test]
    fn display_escapes_what_is_not_printable() {
        assert_eq!(Key::new(vec![b'a', b'\n', 0xfe]).to_string(), "a\\n\\xfe");
    }
}
