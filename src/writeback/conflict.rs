//! What becomes of bytes that the store did not take under their name: a conflict file beside it,
//! or a file in the state directory.

use crate::clock;
pub use crate::conflict::name;
use crate::driver::{Body, Piece, Stored};
use crate::task;
use bytes::Bytes;
use serde::Serialize;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What stands behind the name of a file that is not all there yet.
const PARTIAL: &str = ".part";

/// How many bytes of a path are in the name of a kept file, of 255 that a name may have.
const NAME: usize = 120;

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
    let plain = plain(path);
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

/// The beginning of a path, as part of a file's name.
fn plain(path: &str) -> String {
    let mut plain = String::new();
    for c in path.chars() {
        let c = if c == '/' || c.is_control() { '_' } else { c };
        if plain.len() + c.len_utf8() > NAME {
            break;
        }
        plain.push(c);
    }
    plain
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
        let mut file = fs::File::create(beside(&self.kept, ".json"))?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()
    }
}

/// A file whose name goes on behind another one's.
fn beside(path: &Path, tail: &str) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(tail);
    beside.into()
}

/// Whether a state directory holds bytes that were kept. What was being written when its process ended
/// is nothing that anybody was told of.
pub fn holds_any(dir: &Path) -> bool {
    let whole = |name: &OsStr| !name.as_encoded_bytes().ends_with(PARTIAL.as_bytes());
    fs::read_dir(dir.join("unsent"))
        .is_ok_and(|entries| entries.flatten().any(|entry| whole(&entry.file_name())))
}

/// The file has its name when all of it, and its note, are on the disk; or there is nothing.
fn write(dir: &Path, content: &Kept, note: &Note) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let partial = beside(&note.kept, PARTIAL);
    let written = write_bytes(&partial, content)
        .and_then(|()| note.store())
        .and_then(|()| fs::rename(&partial, &note.kept));
    if let Err(error) = written {
        for left in [partial, beside(&note.kept, ".json")] {
            let _ = fs::remove_file(left);
        }
        return Err(error);
    }
    fs::File::open(dir)?.sync_all()
}

fn write_bytes(path: &Path, content: &Kept) -> io::Result<()> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.set_len(content.len)?;
    for (offset, body) in &content.pieces {
        let mut at = *offset;
        body.read(|piece| {
            file.write_all_at(&piece, at)?;
            at += piece.len() as u64;
            Ok(())
        })?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_of_a_long_path_are_kept() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = format!("{}/{}.txt", "漢".repeat(60), "字".repeat(30));
        let note = keep(dir.path(), &path, "silence", &Kept::from(&Body::from("x"))).await;
        let kept = note.expect("kept").kept;
        assert_eq!(fs::read(&kept).expect("the bytes"), b"x");
        assert!(holds_any(dir.path()));
        let note = fs::read_to_string(format!("{}.json", kept.display()));
        assert!(note.expect("the note").contains(&path));
    }

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

    #[tokio::test]
    async fn what_cannot_be_kept_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("tempdir");
        let gone = Body::Source(std::sync::Arc::new(Gone));
        let kept = keep(dir.path(), "a", "silence", &Kept::from(&gone)).await;
        assert_eq!(kept.unwrap_err().raw_os_error(), Some(libc::EIO));
        let left = fs::read_dir(dir.path().join("unsent")).expect("the directory");
        assert_eq!(left.count(), 0);
        fs::write(dir.path().join("unsent/1-2-a.part"), "").expect("a file");
        assert!(!holds_any(dir.path()));
    }

    /// Bytes that cannot be read.
    struct Gone;

    impl crate::driver::Source for Gone {
        fn len(&self) -> u64 {
            4
        }

        fn read(&self, _: std::ops::Range<u64>) -> io::Result<Bytes> {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }
}
