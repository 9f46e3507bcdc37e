//! What a directory of queries lists: the documents that match, as they are found.
//!
//! A handle keeps only what was told last, so that any number of matches needs little memory. Who
//! goes back asks anew, and passes over as many entries as stand before the place.

use super::{Directory, FIRST, names, number};
use crate::driver::{Error, Result};
use crate::find::Event;
use crate::fs::Fs;
use crate::fs::attr::Kind;
use crate::fs::dir::{BATCH, DirEntry, Listed};
use crate::fs::errno::{self, FsError, FsResult};
use crate::key::Key;
use bytes::Bytes;
use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use tokio::sync::{Mutex, Notify, mpsc};

/// Of so many names at most the kernel is told more than that they are there.
const MOST: usize = 1 << 16;

/// An open directory of queries.
#[derive(Debug)]
pub(super) struct Reader {
    directory: Arc<Directory>,
    /// Held while matches are waited for: the kernel sends one request of a handle at a time.
    reading: Mutex<Reading>,
    /// That it was closed: who still reads, for one that was killed, ends.
    closed: Notify,
}

#[derive(Debug, Default)]
struct Reading {
    /// What was told last, and what comes next.
    window: VecDeque<DirEntry>,
    /// How many entries stand before it.
    before: u64,
    /// How many were found since the search began.
    found: u64,
    /// Hashes of the pseudo-directories among them, each of which many documents lead to.
    chunks: HashSet<u64>,
    stage: Stage,
    /// Objects that could not be looked at: how many, and the first failure.
    skipped: Option<(u64, Error)>,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    NotBegun,
    Begun(mpsc::Receiver<Result<Event>>),
    Ended,
}

impl Reading {
    fn push(&mut self, name: Bytes, ino: u64, kind: Kind) {
        let at = self.found;
        self.found += 1;
        if at >= self.before + self.window.len() as u64 {
            let mut entry = DirEntry::of(name, ino, kind);
            entry.next = at + 1;
            self.window.push_back(entry);
        }
    }

    /// Adds a match.
    fn add(&mut self, directory: &Directory, key: &Key) {
        let names = names::of(key);
        let Some([name, rest @ ..]) = names.strip_prefix(directory.chunks()) else {
            // A prefix may end within an escape.
            return;
        };
        let kind = match rest {
            [] => Kind::Symlink,
            _ => Kind::Directory,
        };
        if kind == Kind::Directory {
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            if !self.chunks.insert(hasher.finish()) {
                return;
            }
        }
        self.push(name.clone(), number(directory.ino, name), kind);
    }

    /// Begins again, to go on at the same place.
    fn again(&mut self) {
        *self = Reading {
            before: self.before,
            ..Reading::default()
        };
    }

    /// Waits for what comes next.
    async fn fetch(&mut self, fs: &Fs, directory: &Directory) -> FsResult<()> {
        let events = match &mut self.stage {
            Stage::Ended => return Ok(()),
            Stage::NotBegun => {
                self.push(".".into(), directory.ino, Kind::Directory);
                self.push("..".into(), directory.parent, Kind::Directory);
                self.stage = match fs.search(directory) {
                    Some(search) => Stage::Begun(search.begin()),
                    None => Stage::Ended,
                };
                return Ok(());
            }
            Stage::Begun(events) => events,
        };
        let mut told = Vec::new();
        told.push(events.recv().await);
        while told.len() < BATCH
            && let Ok(event) = events.try_recv()
        {
            told.push(Some(event));
        }
        for event in told {
            match event {
                Some(Ok(Event::Found(found))) => self.add(directory, &found.key),
                Some(Ok(Event::Looked(_) | Event::Away(_) | Event::Back)) => {}
                Some(Ok(Event::Skipped(error))) => {
                    log::debug!("{:?}: {error}", directory.path());
                    let (count, first) = self.skipped.take().unwrap_or((0, error));
                    self.skipped = Some((count + 1, first));
                }
                Some(Err(error)) => {
                    // Who reads on asks again.
                    self.again();
                    return Err(error.into());
                }
                None => self.stage = Stage::Ended,
            }
        }
        Ok(())
    }

    /// The entries from an offset on.
    async fn read(
        &mut self,
        fs: &Fs,
        directory: &Directory,
        offset: u64,
    ) -> FsResult<Vec<DirEntry>> {
        if offset == 0 || offset < self.before {
            *self = Reading {
                before: offset,
                ..Reading::default()
            };
        }
        loop {
            while self.before < offset && self.window.pop_front().is_some() {
                self.before += 1;
            }
            let is_there = self.before >= offset && !self.window.is_empty();
            if is_there {
                return Ok(self.window.iter().take(BATCH).cloned().collect());
            }
            if let Stage::Ended = self.stage {
                return match self.skipped.take() {
                    Some((count, first)) => Err(incomplete(directory, count, &first)),
                    None => Ok(Vec::new()),
                };
            }
            self.fetch(fs, directory).await?;
        }
    }
}

/// That not all is listed.
fn incomplete(directory: &Directory, count: u64, first: &Error) -> FsError {
    FsError::new(
        errno::errno(first.kind()),
        format!(
            "{:?}: {count} objects could not be looked at, and may match: {first}",
            directory.path()
        ),
    )
}

impl Fs {
    /// Opens a directory of queries. Nothing is asked for before it is read.
    pub(in crate::fs) fn opendir_query(&self, ino: u64) -> FsResult<u64> {
        let directory = self.queries.directory(ino)?;
        let number = FIRST | self.next_handle();
        let reader = Reader {
            directory,
            reading: Mutex::default(),
            closed: Notify::new(),
        };
        self.queries.readers.lock().insert(number, Arc::new(reader));
        Ok(number)
    }

    /// Closes it, and ends its search.
    pub(in crate::fs) fn releasedir_query(&self, handle: u64) -> FsResult<()> {
        let reader = self.queries.readers.lock().remove(&handle);
        let reader = reader.ok_or(FsError::plain(libc::EBADF))?;
        reader.closed.notify_one();
        Ok(())
    }

    fn reader(&self, handle: u64) -> FsResult<Arc<Reader>> {
        let reader = self.queries.readers.lock().get(&handle).cloned();
        reader.ok_or(FsError::plain(libc::EBADF))
    }

    /// The entries from an offset on; fewer than there are, none at the end.
    pub(in crate::fs) async fn readdir_query(
        &self,
        handle: u64,
        offset: u64,
    ) -> FsResult<Vec<DirEntry>> {
        let reader = self.reader(handle)?;
        let mut reading = reader.reading.lock().await;
        tokio::select! {
            biased;
            () = reader.closed.notified() => Err(FsError::plain(libc::EBADF)),
            entries = reading.read(self, &reader.directory, offset) => entries,
        }
    }

    /// The same with attributes, as long as not too many are known. The lookup count of each that
    /// has some is raised.
    pub(in crate::fs) async fn readdirplus_query(
        &self,
        handle: u64,
        offset: u64,
    ) -> FsResult<Vec<(DirEntry, Listed)>> {
        let directory = self.reader(handle)?.directory.clone();
        let entries = self.readdir_query(handle, offset).await?;
        let told = entries.into_iter().map(|entry| {
            let is_dot = entry.name == "." || entry.name == "..";
            let named = match is_dot || self.queries.count() >= MOST {
                true => None,
                false => self.named(&directory, &entry.name).ok().flatten(),
            };
            let told = match named {
                Some((what, _)) => {
                    let (ino, what) = self.queries.told(directory.ino, &entry.name, what);
                    Listed::Entry(self.query_entry(ino, &what))
                }
                None => Listed::Name,
            };
            (entry, told)
        });
        Ok(told.collect())
    }
}
