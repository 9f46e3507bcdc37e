//! What the processes did and what they were answered.

use crate::store::Time;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// Length of a line: `0000042\n`. Each is written once in a history, so that it names its writer.
pub const LINE: usize = 8;

/// A line's number.
pub type Line = u32;

pub fn line(number: Line) -> String {
    format!("{number:07}\n")
}

/// The lines of a content, in order; what else there is does not count.
pub fn lines(content: &[u8]) -> Vec<Line> {
    let number = |chunk: &[u8]| {
        let digits = chunk
            .strip_suffix(b"\n")
            .filter(|digits| digits.len() == LINE - 1)?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    };
    content.chunks(LINE).filter_map(number).collect()
}

pub fn line_set(content: &[u8]) -> BTreeSet<Line> {
    lines(content).into_iter().collect()
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// Opens with O_TRUNC, writes, closes.
    Save,
    /// Opens with O_APPEND, writes lines, perhaps with an fsync between, closes.
    Append,
    /// Creates with O_EXCL a name that is no lock.
    Exclusive,
    /// Reads all and writes it back with a line more.
    Rewrite,
    /// Writes a line somewhere.
    Patch,
    /// Writes lines where nobody else does, through one of several handles.
    Share,
    /// Cuts by path.
    Truncate,
    Read,
    Stat,
    List,
    Unlink,
    Rename,
    NoReplace,
    /// A directory.
    Move,
    /// `cp` by copy_file_range.
    Copy,
    /// chmod, touch.
    Attributes,
    Mkdir,
    Rmdir,
    /// From the creation of a lock file to its removal.
    Lock,
}

impl What {
    /// Whether it can change what is in the store.
    pub fn changes(self) -> bool {
        !matches!(self, What::Read | What::Stat | What::List)
    }

    /// Whether it takes bytes away that others may have written, where all goes well.
    pub fn destroys(self) -> bool {
        !matches!(
            self,
            What::Append
                | What::Exclusive
                | What::Rewrite
                | What::Share
                | What::Read
                | What::Stat
                | What::List
                | What::Mkdir
                | What::Attributes
        )
    }

    /// Whether it takes bytes away that others of its mount have staged.
    pub fn overwrites(self) -> bool {
        self.destroys() || matches!(self, What::Rewrite | What::Exclusive)
    }
}

/// One operation of one process.
#[derive(Clone, Debug, Hash)]
pub struct Op {
    pub mount: usize,
    pub process: usize,
    pub what: What,
    pub name: String,
    /// The new name of a rename.
    pub other: String,
    pub begin: Time,
    /// When it had its handle, or its lock.
    pub opened: Option<Time>,
    /// When a lock's removal began.
    pub closing: Option<Time>,
    /// None while it goes on; for ever where its mount died.
    pub end: Option<Time>,
    pub outcome: Option<Result<(), i32>>,
    /// The lines whose writes succeeded.
    pub wrote: Vec<Line>,
    /// How many of them there were at each flush.
    pub flushed: Vec<usize>,
    /// How many of them were acknowledged, and when.
    pub acknowledged: Vec<(usize, Time)>,
    /// How many acknowledgments there were when it was first told that it had lost a race.
    pub lost: Option<usize>,
    /// A flush failed and left bytes that the store does not have, whatever else went wrong.
    pub unsent: bool,
    pub read: Option<Vec<u8>>,
    pub size: Option<u64>,
    /// It runs while its process has a lock.
    pub locked: bool,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |at: Option<Time>| at.map_or("-".into(), |at| format!("{at}"));
        write!(
            f,
            "{:>9}..{:<9} opened {:<9} mount {} process {} {:?} {:?}",
            self.begin,
            time(self.end),
            time(self.opened),
            self.mount,
            self.process,
            self.what,
            self.name,
        )?;
        if !self.other.is_empty() {
            write!(f, " to {:?}", self.other)?;
        }
        if !self.wrote.is_empty() {
            write!(
                f,
                " wrote {:?} acknowledged {:?}",
                self.wrote, self.acknowledged
            )?;
        }
        if let Some(read) = &self.read {
            write!(f, " read {}", show(read))?;
        }
        if let Some(size) = self.size {
            write!(f, " size {size}")?;
        }
        match self.outcome {
            None => write!(f, " UNANSWERED"),
            Some(Ok(())) => Ok(()),
            Some(Err(errno)) => write!(f, " errno {errno}"),
        }
    }
}

/// A content, briefly.
pub fn show(content: &[u8]) -> String {
    format!("{} bytes {:?}", content.len(), lines(content))
}

/// What all processes did, in the order in which it began.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<(Vec<Op>, Line)>>);

impl History {
    pub fn begin(&self, mount: usize, process: usize, what: What, name: &str, at: Time) -> usize {
        let mut inner = self.0.lock();
        inner.0.push(Op {
            mount,
            process,
            what,
            name: name.into(),
            other: String::new(),
            begin: at,
            opened: None,
            closing: None,
            end: None,
            outcome: None,
            wrote: Vec::new(),
            flushed: Vec::new(),
            acknowledged: Vec::new(),
            lost: None,
            unsent: false,
            read: None,
            size: None,
            locked: false,
        });
        inner.0.len() - 1
    }

    pub fn with<T>(&self, op: usize, change: impl FnOnce(&mut Op) -> T) -> T {
        change(&mut self.0.lock().0[op])
    }

    /// A line that nobody has written yet.
    pub fn fresh(&self) -> Line {
        let mut inner = self.0.lock();
        inner.1 += 1;
        inner.1
    }

    pub fn ops(&self) -> Vec<Op> {
        self.0.lock().0.clone()
    }
}
