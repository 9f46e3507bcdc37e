//! What becomes of bytes that the store did not take under their name: a conflict file beside it,
//! or a file in the state directory.

use crate::clock;
pub use crate::conflict::name;
use crate::driver::Body;
use crate::task;
use serde::Serialize;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What stands beside kept bytes, so that a person can put them where they belong.
#[derive(Serialize)]
struct Note<'a> {
    path: &'a str,
    reason: &'a str,
    time: u64,
}

/// Content to keep: a length, and pieces at their offsets. What lies between them are bytes of a
/// stored version that could not be fetched; they are kept as zeros.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Length in bytes.
    pub len: u64,
    /// The bytes there are, with their offsets.
    pub pieces: Vec<(u64, Body)>,
}

impl From<Body> for Kept {
    fn from(body: Body) -> Self {
        Kept {
            len: body.len(),
            pieces: vec![(0, body)],
        }
    }
}

/// Writes bytes that no store would take into the state directory, durably, with a note beside
/// them. Gives the path.
pub async fn keep(dir: &Path, path: &str, reason: &str, content: &Kept) -> io::Result<PathBuf> {
    let time = clock::seconds(clock::wall());
    let plain: String = path
        .chars()
        .map(|c| if c == '/' || c.is_control() { '_' } else { c })
        .take(80)
        .collect();
    let dir = dir.join("unsent");
    let kept = dir.join(format!(
        "{time}-{:08x}-{plain}",
        crate::clock::random() as u32
    ));
    let note = serde_json::to_vec_pretty(&Note { path, reason, time })?;
    let content = content.clone();
    task::blocking(move || write(&dir, kept, &content, &note))
        .await
        .map_err(io::Error::other)?
}

fn write(dir: &Path, kept: PathBuf, content: &Kept, note: &[u8]) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&kept)?;
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
    let mut beside = kept.clone().into_os_string();
    beside.push(".json");
    fs::write(PathBuf::from(beside), note)?;
    Ok(kept)
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
        };
        let kept = keep(dir.path(), "a/b", "store is full", &content)
            .await
            .expect("kept");
        assert_eq!(std::fs::read(&kept).expect("read"), b"by\0\0\0tes");
        let note = std::fs::read_to_string(format!("{}.json", kept.display())).expect("note");
        assert!(note.contains("\"a/b\"") && note.contains("store is full"));
    }
}
