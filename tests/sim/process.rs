//! What the processes of a mount do: few names, so that they collide.

use crate::history::{History, LINE, Line, What, line};
use crate::mount::{Mount, Outcome};
use crate::store::Store;
use bucketfs::fs::{SetAttr, SetTime};
use fastrand::Rng;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub const NAMES: [&str; 5] = ["a", "b", "d/a", "d/b", "e/a"];
const DIRS: [&str; 4] = ["d", "e", "d/x", "g"];
const LOCKS: [&str; 2] = ["x.lock", ".#a"];
const LOG: &str = "log";
const COUNTER: &str = "counter";
const SHARED: &str = "shared";

const REPLACE: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
const APPEND: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND;
const EXCLUSIVE: i32 = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;

/// Longer than a block of the cache, so that it is not read in one answer.
const LONG: usize = 140_000;

/// A process of a mount.
pub struct Process {
    pub mount: Arc<Mount>,
    pub number: usize,
    pub store: Store,
    pub history: History,
    pub random: Rng,
    pub locked: bool,
    /// How many of a hundred files are long.
    pub long: u32,
}

impl Process {
    fn begin(&self, what: What, name: &str) -> usize {
        let at = self.store.now();
        let op = self
            .history
            .begin(self.mount.number, self.number, what, name, at);
        self.history.with(op, |op| op.locked = self.locked);
        op
    }

    fn opened(&self, op: usize) {
        let at = self.store.now();
        self.history.with(op, |op| op.opened = Some(at));
    }

    fn end(&self, op: usize, outcome: Outcome<()>) -> Outcome<()> {
        let at = self.store.now();
        self.history.with(op, |op| {
            op.end = Some(at);
            op.outcome = Some(outcome);
        });
        outcome
    }

    async fn pause(&mut self, most: u64) {
        let pause = self.random.u64(0..most);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    fn pick<'a>(&mut self, names: &[&'a str]) -> &'a str {
        names[self.random.usize(..names.len())]
    }

    /// Writes a line; what the handle has written is acknowledged by the next flush.
    fn write(&self, op: usize, handle: u64, at: u64, data: &[u8], line: Line) -> Outcome<()> {
        self.mount.write(handle, at, data)?;
        self.history.with(op, |op| op.wrote.push(line));
        Ok(())
    }

    /// Whatever acknowledges what a handle has written.
    async fn acknowledge(
        &self,
        op: usize,
        answer: impl Future<Output = Outcome<()>>,
    ) -> Outcome<()> {
        let count = self.history.with(op, |op| {
            op.flushed.push(op.wrote.len());
            op.wrote.len()
        });
        let answer = answer.await;
        let at = self.store.now();
        let unsent = answer.is_err() && self.mount.fs.status().dirty_files > 0;
        self.history.with(op, |op| {
            op.unsent |= unsent;
            match answer {
                Ok(()) => op.acknowledged.push((count, at)),
                Err(libc::ESTALE | libc::EEXIST) => {
                    op.lost.get_or_insert(op.acknowledged.len());
                }
                Err(_) => {}
            }
        });
        answer
    }

    /// An fsync, or a close of a duplicate.
    async fn flush(&mut self, op: usize, handle: u64) -> Outcome<()> {
        if self.random.bool() {
            self.acknowledge(op, self.mount.fsync(handle)).await
        } else {
            self.acknowledge(op, self.mount.flush(handle)).await
        }
    }

    async fn close(&self, op: usize, handle: u64) -> Outcome<()> {
        self.acknowledge(op, self.mount.close(handle)).await
    }

    /// One operation.
    pub async fn step(&mut self) {
        self.mount.under_way.fetch_add(1, Ordering::Relaxed);
        let _ = match self.random.u32(..48) {
            0..5 => self.save().await,
            5..9 => self.append().await,
            9 => self.exclusive().await,
            10..13 => self.rewrite(None).await,
            13 => self.patch().await,
            14 => self.truncate().await,
            15..19 => self.read().await,
            19..21 => self.stat().await,
            21 => self.list().await,
            22..24 => self.unlink().await,
            24..26 => self.rename(What::Rename).await,
            26..28 => self.rename(What::NoReplace).await,
            28..30 => self.mkdir().await,
            30 => self.rmdir().await,
            31..35 => self.share().await,
            35..37 => self.rename(What::Move).await,
            37 => self.copy().await,
            38..40 => self.attributes().await,
            40..44 => self.read().await,
            _ => self.lock().await,
        };
        let others = self.mount.under_way.fetch_sub(1, Ordering::Relaxed) - 1;
        if self.random.u32(..8) == 0 && others == 0 {
            self.mount.forget_all();
        }
        self.pause(300).await;
    }

    async fn save(&mut self) -> Outcome<()> {
        let name = self.pick(&NAMES);
        let op = self.begin(What::Save, name);
        let handle = match self.mount.open(name, REPLACE).await {
            Ok(handle) => handle,
            Err(error) => return self.end(op, Err(error)),
        };
        self.opened(op);
        if self.random.bool() {
            self.pause(200).await;
        }
        let number = self.history.fresh();
        let mut data = line(number).into_bytes();
        if self.random.u32(..100) < self.long {
            data.resize(LONG, b'a' + (number % 26) as u8);
        }
        let mut wrote = self.write(op, handle, 0, &data, number);
        let mut at = data.len() as u64;
        for _ in 0..[0, 0, 1, 3][self.random.usize(..4)] {
            if self.random.bool() {
                self.pause(300).await;
            }
            if self.random.u32(..4) == 0 {
                wrote = wrote.and(self.flush(op, handle).await);
            }
            let number = self.history.fresh();
            let more = self.write(op, handle, at, line(number).as_bytes(), number);
            at += LINE as u64;
            wrote = wrote.and(more);
        }
        let closed = self.close(op, handle).await;
        self.end(op, wrote.and(closed))
    }

    async fn append(&mut self) -> Outcome<()> {
        let name = if self.random.bool() {
            LOG
        } else {
            self.pick(&NAMES)
        };
        let op = self.begin(What::Append, name);
        let handle = match self.mount.open(name, APPEND).await {
            Ok(handle) => handle,
            Err(error) => return self.end(op, Err(error)),
        };
        self.opened(op);
        let mut outcome = Ok(());
        for i in 0..self.random.u32(1..4) {
            if i > 0 {
                self.pause(400).await;
            }
            let number = self.history.fresh();
            let wrote = self.write(op, handle, 0, line(number).as_bytes(), number);
            outcome = outcome.and(wrote);
            if self.random.bool() {
                outcome = outcome.and(self.flush(op, handle).await);
            }
        }
        let closed = self.close(op, handle).await;
        self.end(op, outcome.and(closed))
    }

    async fn exclusive(&mut self) -> Outcome<()> {
        let name = self.pick(&NAMES);
        let op = self.begin(What::Exclusive, name);
        let handle = match self.mount.open(name, EXCLUSIVE).await {
            Ok(handle) => handle,
            Err(error) => return self.end(op, Err(error)),
        };
        self.opened(op);
        self.pause(200).await;
        let number = self.history.fresh();
        let wrote = self.write(op, handle, 0, line(number).as_bytes(), number);
        let closed = self.close(op, handle).await;
        self.end(op, wrote.and(closed))
    }

    /// Reads all, then writes a line more: all of it again, or only the line.
    async fn rewrite(&mut self, name: Option<&str>) -> Outcome<()> {
        let name = name.unwrap_or(self.pick(&NAMES));
        let op = self.begin(What::Rewrite, name);
        let flags = libc::O_RDWR | if self.locked { libc::O_CREAT } else { 0 };
        let handle = match self.mount.open(name, flags).await {
            Ok(handle) => handle,
            Err(error) => return self.end(op, Err(error)),
        };
        self.opened(op);
        let outcome = match self.mount.read(handle, 0, 16 << 20).await {
            Ok(mut content) => {
                self.history.with(op, |op| op.read = Some(content.clone()));
                self.pause(300).await;
                let number = self.history.fresh();
                if self.random.bool() {
                    let at = content.len() as u64;
                    self.write(op, handle, at, line(number).as_bytes(), number)
                } else {
                    content.extend(line(number).as_bytes());
                    self.write(op, handle, 0, &content, number)
                }
            }
            Err(error) => Err(error),
        };
        let closed = self.close(op, handle).await;
        self.end(op, outcome.and(closed))
    }

    /// Has several handles of one file, which write in turns.
    async fn share(&mut self) -> Outcome<()> {
        let mut open: Vec<(usize, u64, Outcome<()>)> = Vec::new();
        for _ in 0..self.random.u32(3..10) {
            let what = self.random.u32(..8);
            if open.is_empty() || (what == 0 && open.len() < 3) {
                let op = self.begin(What::Share, SHARED);
                let flags = libc::O_RDWR | libc::O_CREAT;
                match self.mount.open(SHARED, flags).await {
                    Ok(handle) => {
                        self.opened(op);
                        open.push((op, handle, Ok(())));
                    }
                    Err(error) => drop(self.end(op, Err(error))),
                }
                continue;
            }
            let index = self.random.usize(..open.len());
            let (op, handle, outcome) = open[index];
            match what {
                0..2 => {
                    let closed = self.close(op, handle).await;
                    let _ = self.end(op, outcome.and(closed));
                    let _ = open.remove(index);
                }
                2 => open[index].2 = outcome.and(self.flush(op, handle).await),
                _ => {
                    let number = self.history.fresh();
                    let at = u64::from(number) * LINE as u64;
                    let wrote = self.write(op, handle, at, line(number).as_bytes(), number);
                    open[index].2 = outcome.and(wrote);
                }
            }
            if self.random.bool() {
                self.pause(200).await;
            }
        }
        for (op, handle, outcome) in open {
            let closed = self.close(op, handle).await;
            let _ = self.end(op, outcome.and(closed));
        }
        Ok(())
    }

    async fn patch(&mut self) -> Outcome<()> {
        let name = self.pick(&NAMES);
        let op = self.begin(What::Patch, name);
        let handle = match self.mount.open(name, libc::O_RDWR).await {
            Ok(handle) => handle,
            Err(error) => return self.end(op, Err(error)),
        };
        self.opened(op);
        self.pause(200).await;
        let (number, at) = (self.history.fresh(), self.random.u64(..4) * LINE as u64);
        let wrote = self.write(op, handle, at, line(number).as_bytes(), number);
        let closed = self.close(op, handle).await;
        self.end(op, wrote.and(closed))
    }

    async fn truncate(&mut self) -> Outcome<()> {
        let name = self.pick(&NAMES);
        let op = self.begin(What::Truncate, name);
        let size = self.random.u64(..3) * LINE as u64;
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        let done = self.mount.set(name, set).await;
        self.end(op, done)
    }

    async fn attributes(&mut self) -> Outcome<()> {
        let name = self.pick(&NAMES);
        let op = self.begin(What::Attributes, name);
        let mut set = SetAttr::default();
        if self.random.bool() {
            set.mode = Some(0o600 + self.random.u32(..64));
        } else {
            set.mtime = Some(SetTime::Now);
        }
        let done = self.mount.set(name, set).await;
        self.end(op, done)
    }

    async fn copy(&mut self) -> Outcome<()> {
        let (from, to) = (self.pick(&NAMES), self.pick(&NAMES));
        if from == to {
            return Ok(());
        }
        let op = self.begin(What::Copy, to);
        let source = match self.mount.open(from, libc::O_RDONLY).await {
            Ok(source) => source,
            Err(error) => return self.end(op, Err(error)),
        };
        let outcome = match self.mount.open(to, REPLACE).await {
            Ok(handle) => {
                self.opened(op);
                let copied = self.mount.copy(source, handle).await;
                self.pause(200).await;
                let closed = self.close(op, handle).await;
                copied.and(closed)
            }
            Err(error) => Err(error),
        };
        let _ = self.mount.close(source).await;
        self.end(op, outcome)
    }

    async fn read(&mut self) -> Outcome<()> {
        let name = match self.random.u32(..8) {
            0 => LOG,
            1 => SHARED,
            _ => self.pick(&NAMES),
        };
        let op = self.begin(What::Read, name);
        let handle = match self.mount.open(name, libc::O_RDONLY).await {
            Ok(handle) => handle,
            Err(error) => return self.end(op, Err(error)),
        };
        self.opened(op);
        let mut content = Vec::new();
        let outcome = loop {
            let size = [LINE as u32, 100_000, 16 << 20][self.random.usize(..3)];
            match self.mount.read(handle, content.len() as u64, size).await {
                Ok(piece) if piece.is_empty() => break Ok(()),
                Ok(piece) => content.extend(piece),
                Err(error) => break Err(error),
            }
            self.pause(600).await;
        };
        let outcome = outcome.and(self.mount.close(handle).await);
        if outcome.is_ok() {
            self.history.with(op, |op| op.read = Some(content));
        }
        self.end(op, outcome)
    }

    async fn stat(&mut self) -> Outcome<()> {
        let name = match self.random.u32(..3) {
            0 => self.pick(&LOCKS),
            _ => self.pick(&NAMES),
        };
        let op = self.begin(What::Stat, name);
        let size = self.mount.stat(name).await;
        self.history.with(op, |op| op.size = size.ok());
        self.end(op, size.map(drop))
    }

    async fn list(&mut self) -> Outcome<()> {
        let dir = self.pick(&["", "d", "e", "g"]);
        let op = self.begin(What::List, dir);
        let listed = self.mount.list(dir).await;
        self.end(op, listed.map(drop))
    }

    async fn unlink(&mut self) -> Outcome<()> {
        let name = self.pick(&NAMES);
        let op = self.begin(What::Unlink, name);
        let done = self.mount.unlink(name).await;
        self.end(op, done)
    }

    async fn rename(&mut self, what: What) -> Outcome<()> {
        let names = if what == What::Move {
            &DIRS[..]
        } else {
            &NAMES
        };
        let (from, to) = (self.pick(names), self.pick(names));
        if from == to {
            return Ok(());
        }
        let op = self.begin(what, from);
        self.history.with(op, |op| op.other = to.into());
        let flags = match what {
            What::NoReplace => libc::RENAME_NOREPLACE,
            _ => 0,
        };
        let done = self.mount.rename(from, to, flags).await;
        self.end(op, done)
    }

    async fn mkdir(&mut self) -> Outcome<()> {
        let dir = self.pick(&DIRS);
        let op = self.begin(What::Mkdir, dir);
        let done = self.mount.mkdir(dir).await;
        self.end(op, done)
    }

    async fn rmdir(&mut self) -> Outcome<()> {
        let dir = self.pick(&DIRS);
        let op = self.begin(What::Rmdir, dir);
        let done = self.mount.rmdir(dir).await;
        self.end(op, done)
    }

    /// Takes a lock, counts under it, gives it back.
    async fn lock(&mut self) -> Outcome<()> {
        let name = self.pick(&LOCKS);
        let op = self.begin(What::Lock, name);
        let handle = match self.mount.open(name, EXCLUSIVE).await {
            Ok(handle) => handle,
            Err(error) => return self.end(op, Err(error)),
        };
        self.opened(op);
        let number = self.history.fresh();
        let wrote = self.write(op, handle, 0, line(number).as_bytes(), number);
        let closed = self.close(op, handle).await;
        if name == LOCKS[0] {
            self.locked = true;
            let _ = Box::pin(self.rewrite(Some(COUNTER))).await;
            self.locked = false;
        }
        self.pause(200).await;
        let at = self.store.now();
        self.history.with(op, |op| op.closing = Some(at));
        let removed = self.mount.unlink(name).await;
        self.end(op, wrote.and(closed).and(removed))
    }
}
