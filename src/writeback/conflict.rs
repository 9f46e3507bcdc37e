//! What becomes of bytes that the store did not take under their name: a conflict file beside it,
//! or a file in the state directory.

use crate::clock;
pub use crate::conflict::name;
use crate::driver::{Body, Piece, Stored};
use crate::task;
use bytes::Bytes;
use serde::Serialize;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What stands beside kept bytes, so that a person can put them where they belong.
#[derive(Clone, Debug, Serialize)]
pub struct Note {
    path: String,
    reason: String,
    time: u64,
    /// What of the bytes are zeros, since only the store has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub absent: Vec<Absent>,
    /// Where the bytes are.
    #[serde(skip)]
    pub kept: PathBuf,
}

/// Bytes of a kept file that only an object of the store has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Absent {
    /// The first of them, in the file.
    pub start: u64,
    /// Behind the last of them.
    pub end: u64,
    /// The object.
    pub key: String,
    /// Where they begin in it.
    pub from: u64,
}

/// Content to keep: a length, and pieces at their offsets.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Length in bytes.
    pub len: u64,
    /// The bytes there are, with their offsets.
    pub pieces: Vec<(u64, Body)>,
    /// Those that only the store has.
    pub absent: Vec<(u64, Stored)>,
}

impl From<&Body> for Kept {
    fn from(body: &Body) -> Self {
        let mut kept = Kept {
            len: body.len(),
            pieces: Vec::new(),
            absent: Vec::new(),
        };
        let Some(pieces) = body.pieces() else {
            kept.pieces.push((0, body.clone()));
            return kept;
        };
        let mut at = 0;
        for piece in pieces {
            let len = piece.len();
            match piece {
                Piece::Here(body) => kept.pieces.push((at, body.clone())),
                Piece::Stored(stored) => kept.absent.push((at, stored.clone())),
            }
            at += len;
        }
        kept
    }
}

/// Writes bytes that no store would take into the state directory, durably, with a note beside
/// them. What is absent is zeros until [`complete`] has written it.
pub async fn keep(dir: &Path, path: &str, reason: &str, content: &Kept) -> io::Result<Note> {
    let time = clock::seconds(clock::wall());
    let plain: String = path
        .chars()
        .map(|c| if c == '/' || c.is_control() { '_' } else { c })
        .take(80)
        .collect();
    let dir = dir.join("unsent");
    let random = clock::random() as u32;
    let absent = content.absent.iter().map(|(start, stored)| Absent {
        start: *start,
        end: start + stored.len(),
        key: stored.key.to_string(),
        from: stored.range.start,
    });
    let note = Note {
        path: path.into(),
        reason: reason.into(),
        time,
        absent: absent.collect(),
        kept: dir.join(format!("{time}-{random:08x}-{plain}")),
    };
    let (content, written) = (content.clone(), note.clone());
    task::blocking(move || write(&dir, &content, &written))
        .await
        .map_err(io::Error::other)??;
    Ok(note)
}

/// Writes bytes into a kept file that were absent, durably.
pub async fn complete(kept: &Path, offset: u64, bytes: Bytes) -> io::Result<()> {
    let kept = kept.to_owned();
    let write = move || {
        let file = fs::OpenOptions::new().write(true).open(kept)?;
        file.write_all_at(&bytes, offset)?;
        file.sync_data()
    };
    task::blocking(write).await.map_err(io::Error::other)?
}

impl Note {
    /// Writes it beside the bytes.
    pub async fn write(&self) -> io::Result<()> {
        let note = self.clone();
        task::blocking(move || note.store())
            .await
            .map_err(io::Error::other)?
    }

    fn store(&self) -> io::Result<()> {
        let mut beside = self.kept.clone().into_os_string();
        beside.push(".json");
        fs::write(PathBuf::from(beside), serde_json::to_vec_pretty(self)?)
    }
}

fn write(dir: &Path, content: &Kept, note: &Note) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&note.kept)?;
    file.set_len(content.len)?;
    for (offset, body) in &content.pieces {
        let mut at = *offset;
        body.read(|piece| {
            file.write_all_at(&piece, at)?;
            at += piece.len() as u64;
            Ok(())
        })?;
    }
    file.sync_all()?;
    note.store()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_are_kept_with_a_note() {
        let dir = tempfile::tempdir().expect("tempdir");
        let content = Kept {
            len: 8,
            pieces: vec![(0, Body::from("by")), (5, Body::from("tes"))],
            absent: Vec::new(),
        };
        let note = keep(dir.path(), "a/b", "store is full", &content).await;
        let kept = note.expect("kept").kept;
        assert_eq!(std::fs::read(&kept).expect("read"), b"by\0\0\0tes");
        let note = std::fs::read_to_string(format!("{}.json", kept.display())).expect("note");
        assert!(note.contains("\"a/b\"") && note.contains("store is full"));
    }
}
