//! What replicas lack: in memory, and on disk, so that the next process knows it too.
//!
//! A file of lines, `+KEY` for a key that a write has begun on or that a replica lacks, `-KEY` when all
//! replicas have it, `*` when there are too many. Keys are in hexadecimal digits. Whoever writes it
//! holds a lock on it; a file without a lock is what a process that has ended left behind.

use crate::driver::{Error, Result};
use crate::key::Key;
use crate::{clock, task};
use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Keys, and bytes of keys, beyond which all objects are to be compared instead.
const MOST: (usize, usize) = (if cfg!(test) { 500 } else { 100_000 }, 16 << 20);
/// Lines after which a file without news is begun anew.
const LONG: u64 = 10_000;

/// Which replicas, by the bits of their places.
pub(super) type Replicas = u16;

/// The keys of which a replica may not have the newest version.
#[derive(Debug)]
pub(super) struct Journal(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    keys: BTreeMap<Key, Entry>,
    bytes: usize,
    /// Replicas that are to be compared whole.
    everything: Replicas,
    /// When single keys of a replica were last given up for that, by `begun`.
    given_up: [u64; Replicas::BITS as usize],
    /// Counts the writes that began and ended.
    begun: u64,
    file: Option<Written>,
    /// Files of processes that have ended, whose keys are here and in the own file.
    adopted: Vec<PathBuf>,
}

#[derive(Debug, Default)]
struct Entry {
    /// Writes under way.
    holders: u32,
    /// Who lacks it for sure.
    lacking: Replicas,
    /// The last write that began on it.
    last: u64,
}

#[derive(Debug)]
struct Written {
    file: File,
    path: PathBuf,
    lines: u64,
    /// Whether a line could not be written; that is told once.
    broken: bool,
    /// Whether the last one may be there in part.
    torn: bool,
}

/// A write that has begun on some keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun(u64);

fn hexadecimal(key: &Key) -> String {
    key.as_bytes().iter().map(|b| format!("{b:02x}")).collect()
}

fn parse(digits: &str) -> Option<Key> {
    // A sign is none of them.
    let hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let digits = hexadecimal.then_some(digits)?;
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
    bytes.map(Key::from)
}

fn lock(file: &File) -> bool {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// Whether an open file is still the one of its name: its owner may have put another one there.
fn is_at(file: &File, path: &Path) -> bool {
    let told = |facts: io::Result<Metadata>| facts.map(|facts| (facts.dev(), facts.ino())).ok();
    told(file.metadata()).is_some_and(|this| told(path.metadata()) == Some(this))
}

impl Written {
    fn create(dir: &Path) -> io::Result<Written> {
        let name = format!(
            "{}-{:08x}.journal",
            std::process::id(),
            clock::random() as u32
        );
        Written::begin(dir.join(name), "")
    }

    /// Puts a file of that name there, with these lines, or leaves what is there. It is locked and
    /// on the disk before it has the name.
    fn begin(path: PathBuf, lines: &str) -> io::Result<Written> {
        let new = path.with_extension("new");
        let mut file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        lock(&file);
        let written = file.write_all(lines.as_bytes());
        let synced = written.and_then(|()| file.sync_all());
        if let Err(error) = synced.and_then(|()| std::fs::rename(&new, &path)) {
            let _ = std::fs::remove_file(&new);
            return Err(error);
        }
        let dir = path.parent().unwrap_or(Path::new("."));
        if let Err(error) = File::open(dir).and_then(|dir| dir.sync_all()) {
            log::error!("what replicas lack may be forgotten by a power cut: {error}");
        }
        Ok(Written {
            file,
            path,
            lines: lines.lines().count() as u64,
            broken: false,
            torn: false,
        })
    }

    fn line(&mut self, line: &str) {
        self.lines += 1;
        let written = match self.torn {
            // What is there of the line before is one by itself, which nobody understands.
            true => self.file.write_all(format!("\n{line}").as_bytes()),
            false => self.file.write_all(line.as_bytes()),
        };
        self.torn = written.is_err();
        if let Err(error) = written
            && !std::mem::replace(&mut self.broken, true)
        {
            log::error!(
                "cannot write {}: {error}; what replicas lack is forgotten when this mount ends",
                self.path.display()
            );
        }
    }
}

impl State {
    fn line(&mut self, line: &str) {
        let idle = self.keys.is_empty() && self.everything == 0;
        if let Some(written) = &mut self.file {
            if idle && written.lines >= LONG && written.file.set_len(0).is_ok() {
                written.lines = 0;
            }
            written.line(line);
        }
    }

    fn entry(&mut self, key: &Key) -> &mut Entry {
        if !self.keys.contains_key(key) {
            self.line(&format!("+{}\n", hexadecimal(key)));
            self.bytes += key.len();
        }
        self.keys.entry(key.clone()).or_default()
    }

    fn forget(&mut self, key: &Key) {
        if self.keys.remove(key).is_some() {
            self.bytes -= key.len();
            self.line(&format!("-{}\n", hexadecimal(key)));
        }
    }

    /// Gives single keys up where there are too many.
    fn bound(&mut self) {
        if self.keys.len() <= MOST.0 && self.bytes <= MOST.1 {
            return;
        }
        let lacking = self.keys.values().fold(0, |all, entry| all | entry.lacking);
        self.everything |= lacking;
        for (at, given_up) in self.given_up.iter_mut().enumerate() {
            if lacking & (1 << at) != 0 {
                *given_up = self.begun;
            }
        }
        self.line("*\n");
        let idle = self.keys.iter().filter(|(_, entry)| entry.holders == 0);
        for key in idle.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.forget(&key);
        }
    }
}

impl Journal {
    /// A journal in memory, for as long as it lives.
    pub fn in_memory() -> Journal {
        Journal(Mutex::default())
    }

    /// A journal in a directory, with what processes that have ended left there: `all` stands for
    /// all replicas, which lack what those journals name.
    pub fn open(dir: &Path, all: Replicas) -> Result<Journal> {
        let named = |error: io::Error| {
            Error::from(error)
                .during("open")
                .because(format!("the journal of replicas is in {}", dir.display()))
        };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(dir).map_err(named)?;
        let mut state = State {
            file: Some(Written::create(dir).map_err(named)?),
            ..State::default()
        };
        // Held until their keys are in the own file.
        let mut left = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(named)?.flatten() {
            let path = entry.path();
            let is_journal = path.extension().is_some_and(|e| e == "journal");
            let opened = is_journal.then(|| File::open(&path).ok()).flatten();
            if let Some(mut file) = opened.filter(|file| lock(file) && is_at(file, &path)) {
                let mut text = String::new();
                file.read_to_string(&mut text).map_err(named)?;
                Self::adopt(&mut state, &text, all);
                state.adopted.push(path);
                left.push(file);
            }
        }
        if let Some(written) = &state.file {
            written.file.sync_all().map_err(named)?;
        }
        let kept = state.file.as_ref().is_some_and(|written| written.broken);
        for path in state.adopted.drain(..).filter(|_| !kept) {
            let _ = std::fs::remove_file(path);
        }
        Ok(Journal(Mutex::new(state)))
    }

    fn adopt(state: &mut State, text: &str, all: Replicas) {
        let mut lacking = BTreeMap::new();
        // A last line that a crash has cut is a key that no answer was given for.
        for line in text
            .split_inclusive('\n')
            .filter_map(|l| l.strip_suffix('\n'))
        {
            match (line.split_at_checked(1), line) {
                (_, "*") => state.everything |= all,
                (Some(("+", digits)), _) => drop(lacking.insert(digits, ())),
                (Some(("-", digits)), _) => drop(lacking.remove(digits)),
                _ => {}
            }
        }
        if state.everything != 0 {
            state.line("*\n");
        }
        for key in lacking.into_keys().filter_map(parse) {
            state.entry(&key).lacking |= all;
        }
        state.bound();
    }

    /// A write begins that may change these keys.
    pub fn begin<'a>(&self, keys: impl IntoIterator<Item = &'a Key>) -> Begun {
        let mut state = self.0.lock();
        state.begun += 1;
        let begun = state.begun;
        for key in keys {
            let entry = state.entry(key);
            entry.holders += 1;
            entry.last = begun;
        }
        Begun(begun)
    }

    /// A write has ended: these replicas lack what it made of the key, and all others have it.
    pub fn end(&self, begun: Begun, key: &Key, lacking: Replicas) {
        self.end_among(Replicas::MAX, begun, key, lacking);
    }

    /// A write to some replicas has ended: these of them lack it. Nothing was found out about others.
    pub fn end_among(&self, among: Replicas, begun: Begun, key: &Key, lacking: Replicas) {
        let mut state = self.0.lock();
        state.begun += 1;
        let fresh = state.begun;
        let Some(entry) = state.keys.get_mut(key) else {
            return;
        };
        entry.holders = entry.holders.saturating_sub(1);
        // Who looked before another write began does not know how that went.
        match entry.holders == 0 && entry.last == begun.0 {
            true => entry.lacking = entry.lacking & !among | lacking,
            false => entry.lacking |= lacking,
        }
        // Nor does who is under way know of this failure.
        if entry.holders > 0 && lacking != 0 {
            entry.last = fresh;
        }
        if entry.holders == 0 && entry.lacking == 0 {
            state.forget(key);
        }
        state.bound();
    }

    /// A write has ended that changed nothing.
    pub fn withdraw(&self, key: &Key) {
        let mut state = self.0.lock();
        let Some(entry) = state.keys.get_mut(key) else {
            return;
        };
        entry.holders = entry.holders.saturating_sub(1);
        if entry.holders == 0 && entry.lacking == 0 {
            state.forget(key);
        }
    }

    /// Makes sure that what is known survives a power cut.
    pub async fn persist(&self) {
        let file = {
            let state = self.0.lock();
            let Some(written) = &state.file else { return };
            written.file.try_clone()
        };
        let synced = task::blocking(move || file.and_then(|file| file.sync_data())).await;
        if let Err(error) = synced.map_err(io::Error::other).and_then(|done| done) {
            log::error!("what replicas lack may be forgotten by a power cut: {error}");
        }
    }

    /// Whether a replica may lack the newest version of a key, as far as is known here.
    pub fn may_lack(&self, key: &Key, replica: Replicas) -> bool {
        let state = self.0.lock();
        let entry = state.keys.get(key);
        state.everything & replica != 0
            || entry.is_some_and(|entry| entry.holders > 0 || entry.lacking & replica != 0)
    }

    /// Whether it may lack the newest version of any key below a prefix.
    pub fn may_lack_below(&self, prefix: &Key, replica: Replicas) -> bool {
        let state = self.0.lock();
        let mut below = state.keys.range(prefix.clone()..);
        state.everything & replica != 0
            || below.next().is_some_and(|(key, _)| key.starts_with(prefix))
    }

    /// Keys that replicas lack and that nobody writes now, behind a key.
    pub fn lacking(&self, after: Option<&Key>, most: usize) -> Vec<Key> {
        let state = self.0.lock();
        let keys = state.keys.iter();
        keys.filter(|(key, entry)| entry.lacking != 0 && after.is_none_or(|after| *key > after))
            .map(|(key, _)| key.clone())
            .take(most)
            .collect()
    }

    /// How many keys a replica lacks, and whether it is to be compared whole.
    pub fn count(&self, replica: Replicas) -> (u64, bool) {
        let state = self.0.lock();
        let lacking = state.keys.values();
        let lacking = lacking.filter(|entry| entry.lacking & replica != 0);
        (lacking.count() as u64, state.everything & replica != 0)
    }

    /// The replicas that are to be compared whole.
    pub fn everything(&self) -> Replicas {
        self.0.lock().everything
    }

    /// What a comparison of all begins behind.
    pub fn mark(&self) -> u64 {
        let mut state = self.0.lock();
        state.begun += 1;
        state.begun
    }

    /// Replicas have been compared whole since that mark; of which single keys have been given up
    /// meanwhile is to be compared again. When no other one is to be, the file is put anew, without
    /// the star; until then what was synced stays.
    pub fn compared(&self, replicas: Replicas, since: u64) {
        let mut state = self.0.lock();
        let before = state.everything;
        let given_up = state.given_up.iter().enumerate();
        let again = given_up.filter(|(_, at)| **at >= since);
        let again = again.fold(0, |again, (at, _)| again | 1 << at);
        state.everything &= !replicas | again;
        if before == 0 || state.everything != 0 {
            return;
        }
        let State { keys, file, .. } = &mut *state;
        let Some(written) = file else { return };
        let lines = keys.keys().map(|key| format!("+{}\n", hexadecimal(key)));
        match Written::begin(written.path.clone(), &lines.collect::<String>()) {
            Ok(anew) => *written = anew,
            // The next process compares all once more.
            Err(error) => log::debug!("{} stays as it is: {error}", written.path.display()),
        }
    }
}

impl Drop for Journal {
    /// Nobody needs a file that says nothing.
    fn drop(&mut self) {
        let state = self.0.get_mut();
        if state.keys.is_empty()
            && state.everything == 0
            && let Some(written) = &state.file
        {
            let _ = std::fs::remove_file(&written.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_replicas_lack_outlives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let (done, failed, cut): (Key, Key, Key) = ("a".into(), "b/ü\n".into(), "c".into());
        let journal = Journal::open(dir.path(), 3).unwrap();
        let begun = journal.begin([&done, &failed, &cut]);
        assert!(journal.may_lack(&done, 1));
        journal.end(begun, &done, 0);
        journal.end(begun, &failed, 2);
        journal.persist().await;
        assert!(!journal.may_lack(&done, 1) && !journal.may_lack(&failed, 1));
        assert!(journal.may_lack(&failed, 2) && journal.may_lack_below(&"b/".into(), 2));
        assert_eq!(journal.count(2), (1, false));
        // While it is used nobody else takes it; a kill leaves the file as it is.
        assert!(
            Journal::open(dir.path(), 3)
                .unwrap()
                .lacking(None, 9)
                .is_empty()
        );
        let state = std::mem::take(&mut *journal.0.lock());
        drop(state);
        let next = Journal::open(dir.path(), 3).unwrap();
        assert_eq!(next.lacking(None, 9), [failed.clone(), cut.clone()]);
        assert_eq!(next.count(1), (2, false));
        for key in [&failed, &cut] {
            let begun = next.begin([key]);
            next.end(begun, key, 0);
        }
        drop(next);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn who_looked_before_another_write_began_clears_nothing() {
        let journal = Journal::in_memory();
        let key = Key::from("k");
        let (first, second) = (journal.begin([&key]), journal.begin([&key]));
        journal.end(second, &key, 1);
        journal.end(first, &key, 0);
        assert_eq!(journal.count(1), (1, false));
        let third = journal.begin([&key]);
        journal.end(third, &key, 0);
        assert_eq!(journal.count(1), (0, false));
        journal.begin([&key]);
        journal.withdraw(&key);
        assert!(!journal.may_lack(&key, 1));
    }

    #[test]
    fn what_one_write_failed_to_do_no_other_one_under_way_clears() {
        let journal = Journal::in_memory();
        let key = Key::from("k");
        let (first, second) = (journal.begin([&key]), journal.begin([&key]));
        journal.end(first, &key, 1);
        journal.end(second, &key, 0);
        assert_eq!(journal.count(1), (1, false));
        let repair = journal.begin([&key]);
        journal.end(repair, &key, 0);
        assert_eq!(journal.count(1), (0, false));
    }

    #[test]
    fn the_file_is_put_anew_only_when_a_comparison_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), 3).unwrap();
        let path = journal.0.lock().file.as_ref().unwrap().path.clone();
        let facts = || std::fs::metadata(&path).unwrap();
        let text = || std::fs::read_to_string(&path).unwrap();
        let begun = journal.begin([&Key::from("a"), &Key::from("b")]);
        journal.end(begun, &"a".into(), 0);
        let before = (facts().modified().unwrap(), facts().ino(), text());
        journal.compared(0, journal.mark());
        journal.compared(1, journal.mark());
        let after = (facts().modified().unwrap(), facts().ino(), text());
        assert_eq!(before, after);
        journal.0.lock().everything = 3;
        journal.0.lock().line("*\n");
        journal.compared(1, journal.mark());
        assert!(text().contains('*') && facts().ino() == before.1);
        journal.compared(2, journal.mark());
        assert_eq!(text(), "+62\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        // It is written on, and nobody else's.
        journal.begin([&Key::from("c")]);
        assert_eq!(text(), "+62\n+63\n");
        assert!(
            Journal::open(dir.path(), 3)
                .unwrap()
                .lacking(None, 9)
                .is_empty()
        );
        drop(std::mem::take(&mut *journal.0.lock()));
        let next = Journal::open(dir.path(), 3).unwrap();
        assert_eq!(next.lacking(None, 9).len(), 2);
    }

    #[test]
    fn too_many_keys_are_one_comparison_of_all() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), 1).unwrap();
        for at in 0..=MOST.0 {
            let key = Key::from(format!("{at}"));
            let begun = journal.begin([&key]);
            journal.end(begun, &key, 1);
        }
        assert_eq!(journal.count(1), (0, true));
        assert!(journal.may_lack(&"any".into(), 1));
        drop(std::mem::take(&mut *journal.0.lock()));
        let next = Journal::open(dir.path(), 1).unwrap();
        assert_eq!(next.everything(), 1);
        next.compared(1, next.mark());
        drop(next);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn keys_that_are_given_up_while_all_are_compared_are_compared_again() {
        let journal = Journal::in_memory();
        journal.0.lock().everything = 3;
        let begun = journal.mark();
        for at in 0..=MOST.0 {
            let key = Key::from(format!("{at}"));
            let write = journal.begin([&key]);
            journal.end(write, &key, 1);
        }
        journal.compared(3, begun);
        assert_eq!(journal.everything(), 1);
        journal.compared(3, journal.mark());
        assert_eq!(journal.everything(), 0);
    }

    #[test]
    fn what_cannot_be_written_down_stays_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("1-2.journal");
        // The second line was cut, and the third one begun anew behind it.
        std::fs::write(&left, "+61\n+6\n+62\n++6\n").unwrap();
        let mut journal = Journal::open(dir.path(), 1).unwrap();
        assert_eq!(journal.lacking(None, 9), ["a".into(), "b".into()]);
        assert!(!left.exists());
        // A file that takes nothing.
        let state = journal.0.get_mut();
        let written = state.file.as_mut().unwrap();
        let file = std::mem::replace(&mut written.file, File::open(&written.path).unwrap());
        written.line("+63\n");
        assert!(written.broken && written.torn);
        written.file = file;
        written.line("+64\n");
        let text = std::fs::read_to_string(&written.path).unwrap();
        assert_eq!(text, "+61\n+62\n\n+64\n");
    }
}
