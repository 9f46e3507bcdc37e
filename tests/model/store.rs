//! The stores that are mounted, and what each of them refuses.

use crate::guard::kill;
use crate::harness::{Mount, Place, eventually};
use crate::operation::Operation;
use crate::perform::{Facts, Outcome, Side};
use crate::run::exchanges;
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::process::Signal;
use std::sync::Arc;

/// A store and how it is mounted.
pub struct Store<'a> {
    place: &'a Place,
    url: String,
    name: String,
    args: Vec<String>,
    faults: Vec<String>,
    pub can: Can,
}

/// What a store can do that another one cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Can {
    /// The exchange of two names.
    pub exchange: bool,
}

impl<'a> Store<'a> {
    pub fn new(
        place: &'a Place,
        url: &str,
        name: &str,
        args: &[&str],
        faults: Vec<String>,
    ) -> Store<'a> {
        let can = Can {
            exchange: !url.starts_with("s3:"),
        };
        Store {
            place,
            url: url.into(),
            name: name.into(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            faults,
            can,
        }
    }

    /// Whether it is there when nobody mounts it.
    pub fn lasts(&self) -> bool {
        !self.url.starts_with("memory:")
    }

    pub fn mount(&self, with_faults: bool) -> Arc<Mount> {
        let faults = self.faults.iter().filter(|_| with_faults);
        let args: Vec<&str> = self.args.iter().chain(faults).map(String::as_str).collect();
        self.place.mount(&self.name, &self.url, &args, false)
    }

    /// Unmounts, which sends what is dirty. Under faults that may be too much to ask of one try:
    /// then it is sent before, in the background.
    pub fn unmount(&self, mount: &Mount) {
        if !self.faults.is_empty() {
            eventually("all is sent", || mount.number("dirty_files") == 0);
        }
        kill(mount.pid(), Signal::TERM);
        mount.ends(0);
    }

    /// Facts without those that the store does not keep.
    pub fn comparable(&self, facts: &Facts) -> Facts {
        let mut facts = *facts;
        if !self.faults.is_empty() {
            // What was replaced by a step that failed is not known to be gone.
            facts.links = 0;
        }
        // Not each kernel tells the filesystem of what is written into a fifo, and a directory has
        // the time that was set again when nobody remembers what was made in it.
        if matches!(facts.kind, FileType::Fifo | FileType::Directory) {
            facts.modified = 0;
        }
        facts
    }

    /// Judges a step that the store refuses, which is not performed on the reference then, or is
    /// undone there. `None` for what it takes.
    pub fn refusal(
        &self,
        operation: &Operation,
        got: &Outcome,
        reference: &mut Side,
    ) -> Option<Result<(), String>> {
        use Operation as O;
        let undone = |reference: &mut Side, undo: &dyn Fn(&mut Side), refusals: &[Errno]| {
            let before = reference.perform(operation);
            let right = match &before {
                Outcome::Failed(_) => *got == before || refused(got, refusals),
                _ => {
                    undo(reference);
                    refused(got, refusals)
                }
            };
            match right {
                true => Ok(()),
                false => Err(format!(
                    "it is refused with one of {refusals:?}, where it is not {before:?}"
                )),
            }
        };
        match operation {
            O::HardLink { to, .. } => {
                let undo = |side: &mut Side| rustix::fs::unlink(side.path(to)).unwrap();
                Some(undone(reference, &undo, &[Errno::PERM]))
            }
            O::Rename { from, to, .. } if exchanges(operation) && from != to => {
                let is_directory = |path: &String| {
                    let stat = crate::perform::stat(&reference.path(path));
                    stat.is_ok_and(|facts| facts.kind == FileType::Directory)
                };
                let takes = self.can.exchange && !is_directory(from) && !is_directory(to);
                let undo = |side: &mut Side| {
                    side.perform(operation);
                };
                (!takes).then(|| undone(reference, &undo, &[Errno::INVAL]))
            }
            _ => None,
        }
    }
}

fn refused(got: &Outcome, refusals: &[Errno]) -> bool {
    matches!(got, Outcome::Failed(errno) if refusals.contains(errno))
}
