//! Content of open files: read, write, resize, and what is built of them.

use super::Fs;
use super::commit::version_of;
use super::errno::{FsError, FsResult};
use super::handle::Handle;
use super::inode::{FileState, Inode, State};
use crate::cache::content::Version;
use crate::cache::fetch::Pattern;
use crate::clock;
use crate::driver::{Attributes, Error, ErrorKind, PutOptions, Stored};
use crate::writeback::ahead::Ahead;
use crate::writeback::stage::{Holder, Origin, Stage};
use crate::writeback::upload;
use bytes::{Bytes, BytesMut};
use std::ops::Range;
use std::sync::Arc;

/// What is told of a file at the beginning of its upload: the time of its last write is that at
/// which the store will take it.
fn without_times(attributes: Attributes) -> Attributes {
    Attributes {
        mtime: None,
        atime: None,
        ..attributes
    }
}

/// How content is written into a file that is not wholly here.
pub(super) fn origin(version: &Arc<Version>) -> Origin {
    Origin {
        key: version.key.clone(),
        etag: version.etag.clone(),
        size: version.size,
    }
}

/// Bytes of a stage, and where those of the others are that are not in it.
type Pieces = Vec<Result<Bytes, Stored>>;

/// A range of a stage.
fn gathered(stage: &Stage, range: Range<u64>) -> std::io::Result<Pieces> {
    let holders = stage.holders(range).into_iter();
    let pieces = holders.map(|(range, holder)| match (holder, stage.origin()) {
        (Holder::Object(stored), _) => Ok(Err(stored)),
        (Holder::Origin, Some(origin)) => Ok(Err(origin.stored(range))),
        (Holder::Stage, _) | (Holder::Origin, None) => stage.read(range).map(Ok),
    });
    pieces.collect()
}

/// Where the next bytes of a read come from.
enum Next {
    /// The store's version, as it is.
    Version(Arc<Version>),
    /// The store's version, of which the stage lacks these, and is to have them.
    Missing(Arc<Version>, Vec<Range<u64>>),
    /// The stage, that version, and what the stage has let go.
    Pieces(Option<Arc<Version>>, Pieces),
}

/// What went wrong with bytes on the local disk: nothing of it says anything about the store.
pub(super) fn staged(error: std::io::Error) -> Error {
    let kind = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("the staging directory: {error}"))
}

/// How large a file may be for what is read of it to be kept beside what was written. Of larger ones
/// it would take room on the disk that nobody gave to that.
const KEPT_WHOLE: u64 = upload::LARGE;

impl Fs {
    /// Empties a file that is opened with `O_TRUNC`.
    pub(super) fn truncate_open(&self, inode: &Arc<Inode>, uid: u32) -> FsResult<()> {
        let mut state = inode.state();
        state.file.stage = Some(Box::new(Stage::new(&self.area, None)));
        self.wrote(&mut state, uid, false);
        state.attr.size = 0;
        drop(state);
        self.mark_dirty(inode);
        Ok(())
    }

    /// The bookkeeping of every change of content.
    pub(super) fn wrote(&self, state: &mut State, uid: u32, appended: bool) {
        state.touch_content(appended);
        let now = clock::wall();
        state.attr.mtime = now;
        state.attr.ctime = now;
        state.mtime_set = false;
        if uid != 0 {
            let before = state.attr.mode;
            state.attr.drop_privilege_bits();
            // The kernel asks for the size again after a write, and goes on believing in the mode.
            if state.attr.mode != before {
                self.notify.invalidate_inode(state.attr.ino, true);
            }
        }
    }

    /// The stage of an inode, begun over its version if there is none.
    pub(super) fn stage<'a>(&self, state: &'a mut State) -> &'a mut Stage {
        let version = state.file.version.as_ref().map(origin);
        state
            .file
            .stage
            .get_or_insert_with(|| Box::new(Stage::new(&self.area, version)))
    }

    /// Writes through a handle. With `O_APPEND` the bytes go to the end, wherever the kernel
    /// believes that to be, unless they are `paged`: stored through a mapping. `None` where it has
    /// to wait for room: see [`Fs::write_when_room`].
    pub fn write(
        self: &Arc<Self>,
        handle: u64,
        offset: u64,
        data: &[u8],
        uid: u32,
        paged: bool,
    ) -> FsResult<Option<u32>> {
        let handle = self.handle(handle)?;
        if !handle.writable {
            return Err(FsError::plain(libc::EBADF));
        }
        let inode = &handle.inode;
        let mut state = inode.state();
        Self::used(&handle, &mut state);
        let appends = handle.append && !paged;
        if !appends && handle.is_overtaken(&state) {
            drop(state);
            return Err(Self::overtaken(inode));
        }
        let stage = self.stage(&mut state);
        let at = if appends { stage.size() } else { offset };
        let end = at.saturating_add(data.len() as u64);
        // Where nothing can be joined in the store, all of it has to come here.
        if end.max(stage.size()) > self.max_file_size() {
            drop(state);
            return Err(self.too_large(inode));
        }
        if !self.has_room(stage, at..end) {
            return Ok(None);
        }
        stage.write(at, data)?;
        let size = stage.size();
        self.wrote(&mut state, uid, appends);
        handle.wrote(&state);
        state.file.mapped |= paged;
        state.attr.size = size;
        if end == size && size > upload::LARGE {
            self.go_ahead(inode, &mut state);
        }
        self.offload_more(inode, &mut state);
        drop(state);
        self.mark_dirty(inode);
        if at != offset {
            log::debug!("inode {}: appended at {at}..{end}, not {offset}", inode.ino);
            self.tell_end(inode, offset.min(at));
        }
        Ok(Some(data.len() as u32))
    }

    /// Sends what is written in order before its commit. Content that is changed again behind that
    /// goes ahead once more, and then waits for the commit.
    fn go_ahead(&self, inode: &Inode, state: &mut State) {
        const TRIES: u32 = 2;
        let Some(part) = self.part_ahead else {
            return;
        };
        let Some(stage) = &state.file.stage else {
            return;
        };
        match &state.file.ahead {
            Some(ahead) if !ahead.holds(stage) => state.file.ahead = None,
            Some(ahead) if ahead.sent() + part > stage.size() => return,
            _ => {}
        }
        if state.file.ahead.is_none() {
            // Attributes that are still to be asked for are told when an upload begins.
            let told = state.attributes.is_some() || state.file.base.is_none();
            let whole = stage.missing(0..stage.size()).is_empty();
            // A commit under way makes another version what the next one is based on.
            let committing = inode.turn.try_lock().is_err();
            let outgrown = stage.has_away() || state.file.offloading;
            let refused = state.file.aheads >= TRIES || state.removed || outgrown;
            if refused || committing || !told || !whole {
                return;
            }
            state.file.aheads += 1;
            let options = PutOptions {
                attributes: without_times(self.stored_attributes(state)),
                commits: state.file.next_commits(),
                ..PutOptions::default()
            };
            let (key, mark) = (state.key.clone(), clock::random());
            let ahead = Ahead::begin(&self.driver, &self.runtime, key, options, part, mark);
            state.file.ahead = Some(Box::new(ahead));
        }
        let FileState { stage, ahead, .. } = &mut state.file;
        if let (Some(stage), Some(sending)) = (stage, ahead.as_mut())
            && let Err(error) = sending.advance(stage)
        {
            log::debug!("nothing goes ahead: {error}");
            *ahead = None;
        }
    }

    /// The refusal of what is written at an offset of a file that has become another.
    fn overtaken(inode: &Inode) -> FsError {
        FsError::new(
            libc::ESTALE,
            format!(
                "{:?}: somebody else's bytes were put before those that were appended here, since this was opened or read: what is written at an offset could replace them; read the file again",
                inode.path()
            ),
        )
    }

    pub(super) fn too_large(&self, inode: &Inode) -> FsError {
        FsError::new(
            libc::EFBIG,
            format!(
                "{:?}: larger than {} bytes, the most that can be staged or stored; see --staging-size",
                inode.path(),
                self.max_file_size()
            ),
        )
    }

    /// Reads through a handle; short only at the end of the file.
    pub async fn read(&self, handle: u64, offset: u64, size: u32) -> FsResult<Bytes> {
        let handle = self.handle(handle)?;
        {
            let mut state = handle.inode.state();
            Self::used(&handle, &mut state);
            handle.read(&state);
        }
        self.read_inode(
            &handle.inode,
            offset..offset.saturating_add(u64::from(size)),
            &handle.pattern,
        )
        .await
    }

    /// Reads a range of an inode's content, staged or stored.
    pub(super) async fn read_inode(
        &self,
        inode: &Arc<Inode>,
        range: Range<u64>,
        pattern: &Pattern,
    ) -> FsResult<Bytes> {
        // A second round is needed when a commit or a rename moved the version meanwhile.
        for _ in 0..8 {
            let next = {
                let state = inode.state();
                match &state.file.stage {
                    Some(stage) => {
                        let end = range.end.min(stage.size());
                        if range.start >= end {
                            return Ok(Bytes::new());
                        }
                        let missing = stage.missing(range.start..end);
                        let version = stage.origin().map(|origin| Arc::new(version_of(origin)));
                        match version {
                            _ if missing.is_empty() && !stage.has_away() => {
                                return Ok(stage.read(range.start..end)?);
                            }
                            None if !missing.is_empty() => {
                                return Err(FsError::plain(libc::EIO));
                            }
                            Some(version)
                                if !missing.is_empty()
                                    && !stage.has_away()
                                    && version.size.max(stage.size()) <= KEPT_WHOLE =>
                            {
                                Next::Missing(version, missing)
                            }
                            version => Next::Pieces(version, gathered(stage, range.start..end)?),
                        }
                    }
                    None => {
                        let Some(version) = &state.file.version else {
                            return Ok(Bytes::new());
                        };
                        let end = range.end.min(version.size);
                        if range.start >= end {
                            return Ok(Bytes::new());
                        }
                        if let Some(bytes) = self.fetcher.cached(version, range.start..end, pattern)
                        {
                            return Ok(bytes);
                        }
                        Next::Version(version.clone())
                    }
                }
            };
            let (outcome, version) = match next {
                Next::Version(version) => {
                    let end = range.end.min(version.size);
                    let read = self.fetcher.read(&version, range.start..end, pattern);
                    (read.await.map(Some), Some(version))
                }
                Next::Missing(version, missing) => {
                    let filled = self.fill(inode, &version, missing, Some(pattern)).await;
                    (filled.map(|()| None), Some(version))
                }
                Next::Pieces(version, pieces) => {
                    (self.gather(pieces, pattern).await.map(Some), version)
                }
            };
            let error = match outcome {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => continue,
                Err(error) => error,
            };
            // What was let go is nobody else's.
            let Some(version) = version else {
                return Err(error.into());
            };
            {
                let moved = || {
                    let state = inode.state();
                    let stands_for = match &state.file.stage {
                        Some(stage) => stage.origin().map(|origin| (&origin.key, &origin.etag)),
                        None => state.file.version.as_ref().map(|v| (&v.key, &v.etag)),
                    };
                    stands_for != Some((&version.key, &version.etag))
                };
                let gone = matches!(error.kind(), ErrorKind::Changed | ErrorKind::NotFound);
                if gone && !moved() {
                    // A commit, a rename or a change of attributes that is under way may be what
                    // moved it.
                    drop(self.settled(inode).await);
                }
                match error.kind() {
                    _ if moved() => continue,
                    ErrorKind::Changed | ErrorKind::NotFound => {
                        return Err(FsError::new(
                            libc::ESTALE,
                            format!(
                                "{:?}: the version that was opened is gone from the store; open the file again",
                                version.key
                            ),
                        ));
                    }
                    _ => return Err(error.into()),
                }
            }
        }
        Err(FsError::new(
            libc::EIO,
            format!("{:?}: the file keeps changing its version", inode.path()),
        ))
    }

    /// Joins bytes of a stage with those that are elsewhere.
    async fn gather(&self, pieces: Pieces, pattern: &Pattern) -> crate::driver::Result<Bytes> {
        let mut all = BytesMut::new();
        for piece in pieces {
            match piece {
                Ok(bytes) => all.extend_from_slice(&bytes),
                Err(stored) => {
                    let version = Arc::new(Version {
                        key: stored.key,
                        etag: stored.etag,
                        size: stored.size,
                    });
                    let read = self.fetcher.read(&version, stored.range, pattern).await;
                    all.extend_from_slice(&read?);
                }
            }
        }
        Ok(all.freeze())
    }

    /// Fetches ranges of a stage's origin into it.
    pub(super) async fn fill(
        &self,
        inode: &Arc<Inode>,
        version: &Arc<Version>,
        missing: Vec<Range<u64>>,
        pattern: Option<&Pattern>,
    ) -> crate::driver::Result<()> {
        /// The most that is held in memory on the way into the stage.
        const PIECE: u64 = 8 << 20;
        let own = Pattern::default();
        for range in missing {
            let mut start = range.start;
            while start < range.end {
                let end = range.end.min(start + PIECE);
                let bytes = self
                    .fetcher
                    .read(version, start..end, pattern.unwrap_or(&own))
                    .await?;
                let mut state = inode.state();
                if let Some(stage) = &mut state.file.stage
                    && stage
                        .origin()
                        .is_some_and(|o| o.etag == version.etag && o.key == version.key)
                {
                    stage.fill(start, &bytes).map_err(staged)?;
                }
                start = end;
            }
        }
        Ok(())
    }

    /// Makes a file's whole content independent of the store, for handles that outlive its name.
    pub(super) async fn keep_content(&self, inode: &Arc<Inode>) -> FsResult<()> {
        loop {
            let (version, missing) = {
                let mut state = inode.state();
                let stage = self.stage(&mut state);
                let missing = stage.missing(0..stage.size());
                let Some(origin) = stage.origin().filter(|_| !missing.is_empty()) else {
                    return Ok(());
                };
                (Arc::new(version_of(origin)), missing)
            };
            match self.fill(inode, &version, missing, None).await {
                Ok(()) => {}
                // Gone already: its handles read ESTALE, as they would have anyway.
                Err(error) if matches!(error.kind(), ErrorKind::Changed | ErrorKind::NotFound) => {
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Cuts or extends a file, through a handle or by its path.
    pub(super) fn resize(
        &self,
        inode: &Arc<Inode>,
        size: u64,
        uid: u32,
        handle: Option<&Handle>,
    ) -> FsResult<()> {
        if size > self.max_file_size() {
            return Err(self.too_large(inode));
        }
        let mut state = inode.state();
        let cuts = size < state.attr.size;
        if handle.is_some_and(|handle| cuts && handle.is_overtaken(&state)) {
            drop(state);
            return Err(Self::overtaken(inode));
        }
        let stage = self.stage(&mut state);
        if !self.has_room(stage, size..size) {
            drop(state);
            return Err(self.no_room(inode));
        }
        stage.set_size(size)?;
        self.wrote(&mut state, uid, false);
        if let Some(handle) = handle {
            handle.wrote(&state);
        }
        state.attr.size = size;
        drop(state);
        self.mark_dirty(inode);
        Ok(())
    }

    /// `fallocate`: reserves (which extends), punches holes and zeroes ranges.
    pub fn fallocate(
        &self,
        handle: u64,
        offset: u64,
        length: u64,
        mode: i32,
        uid: u32,
    ) -> FsResult<()> {
        let handle = self.handle(handle)?;
        if !handle.writable {
            return Err(FsError::plain(libc::EBADF));
        }
        let end = offset
            .checked_add(length)
            .filter(|_| length > 0)
            .ok_or(FsError::plain(libc::EINVAL))?;
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let inode = &handle.inode;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => {
                let mut state = inode.state();
                // Nothing is reserved where nothing grows. All the same it counts as a write, by
                // which privileges go.
                if !keep_size && end > state.attr.size {
                    drop(state);
                    return self.resize(inode, end, uid, Some(&handle));
                }
                let mut without = state.attr;
                without.drop_privilege_bits();
                if uid == 0 || without == state.attr {
                    return Ok(());
                }
                if handle.is_overtaken(&state) {
                    drop(state);
                    return Err(Self::overtaken(inode));
                }
                self.stage(&mut state);
                self.wrote(&mut state, uid, false);
                handle.wrote(&state);
                drop(state);
                self.mark_dirty(inode);
                return Ok(());
            }
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => {}
            libc::FALLOC_FL_ZERO_RANGE => {}
            _ => return Err(FsError::plain(libc::EOPNOTSUPP)),
        }
        if end > self.max_file_size() {
            return Err(self.too_large(inode));
        }
        let mut state = inode.state();
        if handle.is_overtaken(&state) {
            drop(state);
            return Err(Self::overtaken(inode));
        }
        let stage = self.stage(&mut state);
        let before = stage.size();
        if before > self.max_file_size() {
            drop(state);
            return Err(self.too_large(inode));
        }
        // First, so that nothing has changed where the disk is full.
        if offset < end.min(before) {
            stage.zero(offset..end.min(before))?;
        }
        if !keep_size && end > before {
            if !self.has_room(stage, end..end) {
                drop(state);
                return Err(self.no_room(inode));
            }
            stage.set_size(end)?;
        }
        let size = stage.size();
        self.wrote(&mut state, uid, false);
        handle.wrote(&state);
        state.attr.size = size;
        drop(state);
        self.mark_dirty(inode);
        Ok(())
    }

    /// `lseek` with `SEEK_DATA` or `SEEK_HOLE`.
    pub fn lseek(&self, handle: u64, offset: i64, whence: i32) -> FsResult<i64> {
        let handle = self.handle(handle)?;
        let state = handle.inode.state();
        let size = state.attr.size;
        let at = u64::try_from(offset)
            .ok()
            .filter(|at| *at < size)
            .ok_or(FsError::plain(libc::ENXIO))?;
        // What was stored through a mapping may still be the kernel's alone.
        let stage = state.file.stage.as_ref().filter(|_| state.mapping == 0);
        let found = match (whence, stage) {
            (libc::SEEK_DATA, Some(stage)) => stage.next_data(at),
            (libc::SEEK_DATA, None) => Some(at),
            (libc::SEEK_HOLE, Some(stage)) => Some(stage.next_hole(at)),
            (libc::SEEK_HOLE, None) => Some(size),
            _ => return Err(FsError::plain(libc::EINVAL)),
        };
        let found = found.ok_or(FsError::plain(libc::ENXIO))?;
        Ok(found.min(size) as i64)
    }
}
