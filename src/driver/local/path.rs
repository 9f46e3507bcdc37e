//! Keys and the paths that they have on disk.

use crate::driver::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::name::{self, Encoded};

/// The directory of what is the driver's and bucketfs's own.
pub(super) const HIDDEN: &[u8] = b".bucketfs";
/// The directory in it for names that live for a moment.
pub(super) const TMP: &[u8] = b"tmp";
/// How names begin that live for a moment in a directory of keys.
pub(super) const TMP_PREFIX: &[u8] = b".bucketfs-tmp-";

/// Longest key in bytes.
pub(super) const MAX_KEY: usize = 4096;

/// A key in its components.
#[derive(Clone, Debug)]
pub(super) struct KeyPath<'a> {
    /// The whole key.
    pub key: &'a Key,
    /// The components in front of the last `/`.
    pub dirs: Vec<&'a [u8]>,
    /// What stands behind it; empty for the marker of a directory.
    pub leaf: &'a [u8],
}

impl<'a> KeyPath<'a> {
    /// Splits a key; `None` for keys that this driver keeps for itself, which no object has.
    pub fn parse(key: &'a Key) -> Result<Option<Self>> {
        if key.len() > MAX_KEY {
            return Err(Error::new(
                ErrorKind::NameTooLong,
                format!("the key has {} bytes, and file: takes {MAX_KEY}", key.len()),
            ));
        }
        let mut dirs: Vec<_> = key.as_bytes().split(|byte| *byte == b'/').collect();
        let leaf = dirs.pop().unwrap_or_default();
        let own = (dirs.is_empty() && leaf.is_empty())
            || is_tmp(&dirs, leaf)
            || (dirs.first() == Some(&HIDDEN) && leaf.is_empty());
        Ok((!own).then_some(KeyPath { key, dirs, leaf }))
    }

    /// [`KeyPath::parse`] for writers: it refuses the keys that no object can have.
    pub fn parse_for_write(key: &'a Key) -> Result<Self> {
        KeyPath::parse(key)?.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidKey,
                "file: keeps this name for itself; choose another one",
            )
        })
    }

    /// Whether this is the marker of a directory.
    pub fn is_marker(&self) -> bool {
        self.leaf.is_empty()
    }

    /// Whether this lies below `.bucketfs/`, where directories are no objects.
    pub fn is_hidden(&self) -> bool {
        self.dirs.first() == Some(&HIDDEN)
    }

    /// The path on disk if nothing has to stand beside something else.
    pub fn plain(&self) -> Vec<u8> {
        let mut path = plain_path(&self.dirs);
        push_name(&mut path, name::encode(self.leaf));
        path
    }
}

/// Whether a key is the driver's own: for names that live for a moment.
pub(super) fn is_tmp(dirs: &[&[u8]], leaf: &[u8]) -> bool {
    let in_tmp = dirs.first() == Some(&HIDDEN)
        && (dirs.get(1) == Some(&TMP) || (dirs.len() == 1 && leaf == TMP));
    let is = |component: &&[u8]| component.starts_with(TMP_PREFIX);
    in_tmp || dirs.iter().any(is) || is(&leaf)
}

/// The path on disk of a directory's components, if nothing has to stand beside something else.
pub(super) fn plain_path(dirs: &[&[u8]]) -> Vec<u8> {
    let mut path = Vec::new();
    for dir in dirs {
        push_name(&mut path, name::encode(dir));
    }
    path
}

fn push_name(path: &mut Vec<u8>, encoded: Encoded<'_>) {
    for name in encoded.into_names() {
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
    }
}

/// A path with `tail` behind it.
pub(super) fn join(path: &[u8], tail: &[u8]) -> Vec<u8> {
    match (path, tail) {
        (b"", tail) => tail.to_vec(),
        (path, b"") => path.to_vec(),
        (path, tail) => [path, b"/", tail].concat(),
    }
}
