//! What a cache file holds, in the order of its last uses: written when a mount ends, so that the
//! next one need not look at each slot. It is removed as soon as it is read: a crash leaves none.

use super::{Name, Place};
use bytes::{Buf, BufMut, Bytes};
use crc_fast::{CrcAlgorithm, checksum};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const MAGIC: &[u8; 8] = b"bucketfo";
/// Name, slot, cost.
const ENTRY: usize = 16 + 4 + 4;

/// Writes what is there, least recently used first.
pub(super) fn save(
    path: &Path,
    entries: impl ExactSizeIterator<Item = (Name, Place)>,
) -> io::Result<()> {
    let mut body = Vec::with_capacity(entries.len() * ENTRY);
    for (name, place) in entries {
        body.put_u128_le(name);
        body.put_u32_le(place.slot);
        body.put_u32_le(place.cost as u32);
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.write_all(MAGIC)?;
    file.write_all(&(checksum(CrcAlgorithm::Crc32IsoHdlc, &body) as u32).to_le_bytes())?;
    file.write_all(&body)
}

/// Reads what [`save`] has written, and removes it. None: it is not there, or not whole.
pub(super) fn take(path: &Path) -> Option<Vec<(Name, Place)>> {
    let content = std::fs::read(path);
    let _ = std::fs::remove_file(path);
    let mut content = Bytes::from(content.ok()?);
    if content.len() < MAGIC.len() + 4 || content.split_to(MAGIC.len()) != MAGIC[..] {
        return None;
    }
    let right = content.get_u32_le();
    if !content.len().is_multiple_of(ENTRY)
        || checksum(CrcAlgorithm::Crc32IsoHdlc, &content) as u32 != right
    {
        return None;
    }
    let mut entries = Vec::with_capacity(content.len() / ENTRY);
    while content.has_remaining() {
        let name = content.get_u128_le();
        let slot = content.get_u32_le();
        let cost = u64::from(content.get_u32_le());
        entries.push((name, Place { slot, cost }));
    }
    Some(entries)
}
