//! Bytes that the store does not take, in the state directory: what is here at once, then what only
//! the store has, as far as it still answers.

use super::Fs;
use super::inode::Inode;
use crate::cache::content::Version;
use crate::cache::fetch::Pattern;
use crate::driver::{Body, Stored};
use crate::writeback::conflict::{self, Absent, Kept};
use crate::writeback::stage::Holder;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The most that is held in memory on the way from the store.
const PIECE: u64 = 8 << 20;

/// What of a file's content is here, and where the rest is.
fn present(inode: &Inode) -> io::Result<Kept> {
    let mut state = inode.state();
    let Some(stage) = &mut state.file.stage else {
        return Ok(Kept::from(&Body::empty()));
    };
    let mut kept = Kept {
        len: stage.size(),
        pieces: Vec::new(),
        absent: Vec::new(),
    };
    let origin = stage.origin().cloned();
    for (range, holder) in stage.holders(0..kept.len) {
        let start = range.start;
        match (holder, &origin) {
            (Holder::Stage, _) => kept.pieces.push((start, stage.body(range)?)),
            (Holder::Origin, Some(origin)) => kept.absent.push((start, origin.stored(range))),
            (Holder::Origin, None) => {}
            (Holder::Object(stored), _) => kept.absent.push((start, stored)),
        }
    }
    Ok(kept)
}

impl Fs {
    /// Saves a dirty file's bytes in the state directory, unless an earlier drain has; tells where.
    pub(super) async fn save(
        &self,
        inode: &Inode,
        path: &str,
        reason: &str,
        timeout: Duration,
    ) -> Result<String, String> {
        let (generation, saved) = {
            let state = inode.state();
            (state.file.generation, state.file.saved.clone())
        };
        if let Some((_, kept)) = saved.filter(|(of, _)| *of == generation) {
            return Ok(kept);
        }
        // The mount may go on: the stage still needs to know what it has not fetched.
        let kept = match present(inode) {
            Ok(content) => self.keep_outside(path, reason, content, timeout).await,
            Err(error) => Err(error),
        };
        match kept {
            Ok(kept) => {
                let kept = kept.display().to_string();
                inode.state().file.saved = Some((generation, kept.clone()));
                Ok(kept)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Saves content in the state directory, with what only the store has of it as far as that can be
    /// fetched in time.
    pub(super) async fn keep_outside(
        &self,
        path: &str,
        reason: &str,
        content: Kept,
        timeout: Duration,
    ) -> io::Result<PathBuf> {
        let dir = &self.options.state_dir;
        let mut note = conflict::keep(dir, path, reason, &content).await?;
        if content.absent.is_empty() {
            return Ok(note.kept);
        }
        let fetching = async {
            for (at, stored) in content.absent {
                match self.fetch_into(&note.kept, at, &stored).await {
                    Ok(()) => note.absent.retain(|absent| absent.start != at),
                    Err(error) => log::warn!("{path:?}: {error}"),
                }
            }
        };
        if tokio::time::timeout(timeout, fetching).await.is_err() {
            log::warn!("{path:?}: not all of it could be fetched in time");
        }
        for Absent {
            start, end, key, ..
        } in &note.absent
        {
            log::error!("{path:?}: bytes {start}..{end} of what is kept are only in {key}");
        }
        note.write().await?;
        Ok(note.kept)
    }

    /// Writes what an object of the store has into a kept file.
    async fn fetch_into(&self, kept: &Path, at: u64, stored: &Stored) -> io::Result<()> {
        let version = Arc::new(Version {
            key: stored.key.clone(),
            etag: stored.etag.clone(),
            size: stored.size,
        });
        let pattern = Pattern::default();
        let mut next = stored.range.start;
        while next < stored.range.end {
            let end = stored.range.end.min(next + PIECE);
            let bytes = self.fetcher.read(&version, next..end, &pattern).await;
            let bytes = bytes.map_err(io::Error::other)?;
            let offset = at + (next - stored.range.start);
            conflict::complete(kept, offset, bytes).await?;
            next = end;
        }
        Ok(())
    }
}
