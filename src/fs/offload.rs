//! Files of which more waits for its commit than the staging area may hold: rows of their bytes
//! are let go to objects of our own (`.bucketfs/staging/ID` at the top of the bucket), and the
//! commit joins them on the server. Nothing else knows these objects; they are removed when no
//! stage and no commit needs them any more, and by `bucketfs check --clean` where a mount has
//! crashed.

use super::Fs;
use super::errno::{FsError, FsResult};
use super::inode::{Inode, State};
use crate::clock;
use crate::driver::{Capabilities, Driver, ErrorKind, Precondition, PutOptions, Stored};
use crate::key::Key;
use crate::writeback::stage::{Origin, Stage};
use crate::writeback::{assemble, upload};
use bytes::Bytes;
use futures::StreamExt;
use std::ops::Range;
use std::sync::Arc;

/// Where the objects are, below the top of a bucket.
const PLACE: &str = ".bucketfs/staging/";
/// The most that one object takes, in bytes.
const MOST: u64 = 1 << 30;
/// How often a row is sent again that was changed on its way.
const TRIES: u32 = 4;
/// How many objects are removed at a time.
const WIDTH: usize = 8;

/// How much of a file goes into one object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    least: u64,
    most: u64,
    /// How much of a file may wait here.
    room: u64,
}

impl Rows {
    /// `None` where the store cannot join objects under a put's condition, or the staging area is
    /// too small for a few rows.
    pub fn of(claims: &Capabilities, staging_size: u64) -> Option<Rows> {
        let least = assemble::least(claims)?;
        let longest = claims.upload.map_or(MOST, |limits| limits.max_part);
        let most = (staging_size / 4).min(MOST).max(least).min(longest);
        (staging_size / 2 >= most).then_some(Rows {
            least,
            most,
            room: staging_size,
        })
    }
}

/// Objects that nobody needs any more.
#[derive(Debug)]
pub(super) struct Trash {
    driver: Arc<dyn Driver>,
    runtime: tokio::runtime::Handle,
    keys: parking_lot::Mutex<Vec<Key>>,
    emptying: tokio::sync::Mutex<()>,
}

impl Trash {
    pub fn new(driver: Arc<dyn Driver>) -> Arc<Trash> {
        Arc::new(Trash {
            driver,
            runtime: tokio::runtime::Handle::current(),
            keys: Default::default(),
            emptying: Default::default(),
        })
    }

    /// Removes what is there. What cannot be removed stays in the store.
    pub async fn empty(&self) {
        let _emptying = self.emptying.lock().await;
        let keys = std::mem::take(&mut *self.keys.lock());
        futures::stream::iter(keys)
            .for_each_concurrent(WIDTH, |key| async move {
                if let Err(error) = self.driver.delete(&key, Precondition::None).await
                    && error.kind() != ErrorKind::NotFound
                {
                    log::warn!("{key:?} stays until `bucketfs check --clean`: {error}");
                }
            })
            .await;
    }
}

/// Keeps an object until nobody needs it.
struct Kept {
    key: Key,
    trash: Arc<Trash>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.trash.keys.lock().push(self.key.clone());
        let trash = self.trash.clone();
        self.trash.runtime.spawn(async move { trash.empty().await });
    }
}

impl Fs {
    /// Whether what is written to a range may wait here.
    pub(super) fn has_room(&self, stage: &Stage, range: Range<u64>) -> bool {
        self.rows.is_none_or(|rows| {
            let most = range.end - range.start.min(stage.size()).min(range.end);
            let (held, room) = (stage.unsent(), rows.room);
            // What takes no more room than it has is never refused.
            held.saturating_add(most) <= room
                || most == 0
                || match stage.growth(range) {
                    0 => true,
                    growth => held.saturating_add(growth) <= room,
                }
        })
    }

    /// Writes through a handle as [`Fs::write`] does, and waits where there is no room.
    pub async fn write_when_room(
        self: &Arc<Self>,
        handle: u64,
        offset: u64,
        data: Bytes,
        uid: u32,
        paged: bool,
    ) -> FsResult<u32> {
        loop {
            match self.write(handle, offset, &data, uid, paged)? {
                Some(written) => return Ok(written),
                None => {
                    let handle = self.handle(handle)?;
                    let appends = handle.append && !paged;
                    let at = (!appends).then_some(offset);
                    self.make_room(&handle.inode, at, data.len() as u64).await?;
                }
            }
        }
    }

    /// Lets bytes of a file go until there is room for a write.
    async fn make_room(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        at: Option<u64>,
        len: u64,
    ) -> FsResult<()> {
        let Some(rows) = self.rows else {
            return Ok(());
        };
        let mut tries = 0;
        loop {
            let _turn = inode.turn.lock().await;
            {
                let mut state = inode.state();
                let Some(stage) = &mut state.file.stage else {
                    return Ok(());
                };
                let at = at.unwrap_or(stage.size());
                let range = at..at.saturating_add(len);
                if !self.has_room(stage, range.clone()) {
                    stage.forget_clean()?;
                }
                if self.has_room(stage, range.clone()) {
                    return Ok(());
                }
                if stage.growth(range) > rows.room / 2 {
                    drop(state);
                    return Err(self.no_room(inode));
                }
            }
            match self.offload(inode, rows).await? {
                Some(true) => tries = 0,
                Some(false) if tries < TRIES => tries += 1,
                _ => return Err(self.no_room(inode)),
            }
        }
    }

    /// Goes on letting go of a file that has outgrown the staging area, so that its close has
    /// little left to send.
    pub(super) fn offload_more(self: &Arc<Self>, inode: &Arc<Inode>, state: &mut State) {
        let (Some(rows), Some(stage)) = (self.rows, &state.file.stage) else {
            return;
        };
        if state.file.offloading || !stage.has_away() || stage.unsent() < 2 * rows.most {
            return;
        }
        state.file.offloading = true;
        let (fs, inode) = (self.clone(), inode.clone());
        self.runtime.spawn(async move {
            let turn = inode.turn.lock().await;
            let done = fs.offload(&inode, rows).await;
            drop(turn);
            if let Err(error) = done {
                log::debug!("{:?} waits for room: {error}", inode.path());
            }
            inode.state().file.offloading = false;
        });
    }

    /// Puts one row of a file's bytes into an object; the caller holds the turn. Whether they were
    /// let go; `None` where no row is long enough.
    async fn offload(self: &Arc<Self>, inode: &Arc<Inode>, rows: Rows) -> FsResult<Option<bool>> {
        let mark = clock::random();
        let offered = {
            let mut state = inode.state();
            // What went ahead cannot be joined with objects.
            state.file.ahead = None;
            let key = self.top_of(&state.key).join(format!("{PLACE}{mark:016x}"));
            let own = state.key.clone();
            match &mut state.file.stage {
                // A file whose beginning is another object's is committed from here.
                Some(stage) if !is_copy(stage.origin(), &own) => {
                    let body = stage.offer(rows.least, rows.most, mark)?;
                    body.map(|body| (key, body))
                }
                _ => None,
            }
        };
        let Some((key, body)) = offered else {
            return Ok(None);
        };
        let size = body.len();
        let options = PutOptions {
            precondition: self.if_absent(),
            ..PutOptions::default()
        };
        // From here on whatever happens removes it in the end.
        let keep = Arc::new(Kept {
            key: key.clone(),
            trash: self.trash.clone(),
        });
        let put = match upload::put(&self.driver, &key, body, options).await {
            // Nobody else has that name: the answer was lost.
            Err(error) if error.kind() == ErrorKind::Exists => self.driver.head(&key).await,
            put => put,
        };
        let info = put.map_err(|error| {
            let failed = FsError::from(error);
            FsError::new(
                match failed.errno() {
                    libc::ENOENT => libc::EIO,
                    errno => errno,
                },
                format!(
                    "{:?}: there is no room for more of it here (see --staging-size), and the store does not take what waits: {failed}",
                    inode.path()
                ),
            )
        })?;
        log::debug!("{size} bytes of {:?} wait in {key:?}", inode.path());
        let object = Stored {
            key,
            etag: info.etag,
            size,
            range: 0..size,
            keep: Some(keep),
        };
        let mut state = inode.state();
        match &mut state.file.stage {
            Some(stage) => Ok(Some(stage.let_go(mark, object)?)),
            None => Ok(Some(true)),
        }
    }

    /// The refusal of bytes for which there is no room, and none can be made.
    pub(super) fn no_room(&self, inode: &Inode) -> FsError {
        FsError::new(
            libc::EFBIG,
            format!(
                "{:?}: more than {} bytes of it would wait here, in rows that are too short to be sent before the rest, or in one hole; raise --staging-size",
                inode.path(),
                self.options.staging_size
            ),
        )
    }
}

/// Whether the bytes beneath a stage are those of an object with another key.
fn is_copy(origin: Option<&Origin>, key: &Key) -> bool {
    origin.is_some_and(|origin| origin.key != *key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{Strength, UploadLimits};

    #[test]
    fn rows_fit_the_store_and_the_staging_area() {
        let limits = UploadLimits {
            min_part: 5 << 20,
            max_part: 5 << 30,
            max_parts: 10_000,
            part_copy: true,
            condition: Strength::Atomic,
        };
        let claims = |limits| Capabilities {
            put_condition: Strength::Atomic,
            upload: limits,
            ..Capabilities::default()
        };
        let rows = |limits, size: u64| {
            let rows = Rows::of(&claims(limits), size)?;
            assert_eq!(rows.room, size);
            Some((rows.least >> 20, rows.most >> 20))
        };
        assert_eq!(rows(Some(limits), 64 << 30), Some((5, 1024)));
        assert_eq!(rows(Some(limits), 64 << 20), Some((5, 16)));
        assert_eq!(rows(Some(limits), 10 << 20), Some((5, 5)));
        assert_eq!(rows(Some(limits), 9 << 20), None);
        assert_eq!(rows(None, 64 << 30), None);
        let weak = UploadLimits {
            condition: Strength::Checked,
            ..limits
        };
        assert_eq!(rows(Some(weak), 64 << 30), None);
        let no_copy = UploadLimits {
            part_copy: false,
            ..limits
        };
        assert_eq!(rows(Some(no_copy), 64 << 30), None);
    }
}
