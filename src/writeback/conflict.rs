//! What becomes of bytes that the store did not take under their name: a conflict file beside it,
//! or a file in the state directory.

use crate::driver::Body;
use crate::task;
use bytes::Bytes;
use serde::Serialize;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Longest file name.
const NAME_MAX: usize = 255;

/// The name of a conflict file: `NAME.conflict-HOST-TIME`, with a number behind it from the second
/// of the same second on. A name that gets too long loses the end of `NAME`.
pub fn name(of: &[u8], host: &str, time: SystemTime, number: u32) -> Bytes {
    let stamp = time::OffsetDateTime::from(time);
    let mut tail = format!(
        ".conflict-{host}-{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        stamp.year(),
        u8::from(stamp.month()),
        stamp.day(),
        stamp.hour(),
        stamp.minute(),
        stamp.second()
    );
    if number > 0 {
        tail.push_str(&format!("-{number}"));
    }
    let mut keep = of.len().min(NAME_MAX.saturating_sub(tail.len()));
    while keep > 0 && keep < of.len() && of[keep] & 0xc0 == 0x80 {
        keep -= 1;
    }
    let mut name = of[..keep].to_vec();
    name.extend_from_slice(tail.as_bytes());
    name.into()
}

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
    let time = crate::clock::wall()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
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
    use std::time::Duration;

    #[test]
    fn names_carry_host_and_time_and_fit() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(
            name(b"notes.txt", "box", time, 0),
            "notes.txt.conflict-box-20231114T221320Z"
        );
        assert!(name(b"a", "box", time, 2).ends_with(b"-2"));
        let long = "\u{e9}".repeat(127);
        let name = name(long.as_bytes(), "box", time, 0);
        assert!(name.len() <= 255);
        assert!(std::str::from_utf8(&name).is_ok());
    }

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
