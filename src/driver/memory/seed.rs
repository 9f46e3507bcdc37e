//! Fills a store from a folder.

use super::state::Value;
use super::{Memory, check};
use crate::driver::{Attributes, Error, ErrorKind, Precondition, Result};
use crate::key::Key;
use bytes::Bytes;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How much of a file is one piece in memory.
const PIECE: u64 = 1 << 20;

/// Puts everything below `folder`: files by their relative path, directories as `dir/` markers,
/// links as links; with modes and times. It follows no link but the folder's own name.
pub(super) fn seed(memory: &Memory, folder: PathBuf) -> Result<()> {
    let wrong = |path: &Path, cause: std::io::Error| {
        let path = path.display();
        Error::new(
            ErrorKind::InvalidArgument,
            format!("cannot take the store's content from {path}: {cause}"),
        )
        .during("open")
    };
    let mut folders = vec![(folder, Key::empty())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|cause| wrong(&folder, cause))? {
            let entry = entry.map_err(|cause| wrong(&folder, cause))?;
            let path = entry.path();
            let mut key = prefix.join(entry.file_name().as_bytes());
            let kind = entry.file_type().map_err(|cause| wrong(&path, cause))?;
            if kind.is_dir() {
                key = key.join(b"/");
                folders.push((path.clone(), key.clone()));
            }
            put(memory, &key, &path).map_err(|failed| match failed {
                Failed::Read(cause) => wrong(&path, cause),
                Failed::Write(error) => error.during("open").on(&key),
            })?;
        }
    }
    Ok(())
}

enum Failed {
    Read(std::io::Error),
    Write(Error),
}

impl From<std::io::Error> for Failed {
    fn from(cause: std::io::Error) -> Self {
        Failed::Read(cause)
    }
}

fn put(memory: &Memory, key: &Key, path: &Path) -> std::result::Result<(), Failed> {
    check(key).map_err(Failed::Write)?;
    let facts = fs::symlink_metadata(path)?;
    let pieces = if facts.is_symlink() {
        let target = fs::read_link(path)?;
        vec![Bytes::copy_from_slice(OsStr::as_bytes(target.as_os_str()))]
    } else if facts.is_file() {
        memory
            .reserve(&memory.0.state.read(), 0, facts.len())
            .map_err(Failed::Write)?;
        read(path)?
    } else {
        Vec::new()
    };
    let value = Value {
        pieces: pieces.into(),
        attributes: Arc::new(Attributes {
            mode: Some(facts.mode()),
            mtime: facts.modified().ok(),
            rdev: u32::try_from(facts.rdev()).ok().filter(|rdev| *rdev != 0),
            ..Attributes::default()
        }),
        commits: Arc::new([]),
    };
    let mut state = memory.0.state.write();
    memory
        .store(&mut state, key, value, &Precondition::None)
        .map_err(Failed::Write)?;
    Ok(())
}

fn read(path: &Path) -> std::io::Result<Vec<Bytes>> {
    let mut file = fs::File::open(path)?;
    let mut pieces = Vec::new();
    loop {
        let mut piece = Vec::new();
        if (&mut file).take(PIECE).read_to_end(&mut piece)? == 0 {
            return Ok(pieces);
        }
        pieces.push(piece.into());
    }
}
