//! A run: steps on a mount and on a directory in memory, compared after each of them.

use crate::compare;
use crate::harness::{Mount, Place};
use crate::operation::{Operation, Renaming, SLOTS, Style, Whence, draw};
use crate::perform::{self, Mapper, Outcome, Side};
use crate::store::Store;
use fastrand::Rng;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What did not agree.
pub type Failure = String;
pub type Checked<T = ()> = Result<T, Failure>;

/// Where steps come from.
pub enum Steps {
    /// So many, drawn by a seed.
    Drawn(u64, usize),
    /// These.
    Given(VecDeque<Operation>),
}

/// How long a mount under faults may take to give an answer that is none of them.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many steps are between two comparisons of the whole tree.
const WHOLE: usize = 400;

pub struct Run<'a> {
    pub store: &'a Store<'a>,
    pub mounted: Arc<Mount>,
    pub mount: Side,
    pub reference: Side,
    /// Every step so far and what the mount said.
    pub done: Vec<(Operation, Outcome)>,
    /// Operations may fail for no reason of their own.
    pub faulty: bool,
    /// How many did.
    pub failed: usize,
    style: Style,
    looks: Rng,
}

/// Runs the steps; gives the mount that stays at the end, and what did not agree with the steps
/// that led there.
pub fn run(
    place: &Place,
    store: &Store<'_>,
    steps: Steps,
    style: Style,
) -> Result<usize, (Failure, Vec<Operation>)> {
    let reference = tempfile::Builder::new()
        .prefix("bucketfs-model-")
        .tempdir_in(if std::path::Path::new("/dev/shm").is_dir() {
            "/dev/shm".into()
        } else {
            std::env::temp_dir()
        })
        .unwrap();
    let mapper = Arc::new(Mutex::new(Mapper::new(place)));
    let mounted = store.mount(true);
    let mut run = Run {
        mount: Side::new(mounted.path(""), mapper.clone()),
        mounted,
        reference: Side::new(reference.path().to_owned(), mapper),
        done: Vec::new(),
        faulty: style.traceable,
        failed: 0,
        looks: Rng::with_seed(1),
        store,
        style,
    };
    match run.all(steps) {
        Ok(()) => Ok(run.failed),
        Err(failure) => {
            let mut text = String::new();
            let from = run.done.len().saturating_sub(25);
            for (number, (operation, outcome)) in run.done.iter().enumerate().skip(from) {
                let _ = writeln!(text, "{number:6} {operation:?} -> {}", brief(outcome));
            }
            let steps = run.done.into_iter().map(|(operation, _)| operation);
            Err((format!("{text}{failure}"), steps.collect()))
        }
    }
}

impl Run<'_> {
    fn all(&mut self, steps: Steps) -> Checked {
        match steps {
            Steps::Drawn(seed, count) => {
                let mut rng = Rng::with_seed(seed);
                for _ in 0..count {
                    let held = |slot: &usize| self.reference.slots[*slot].is_some();
                    let open: Vec<usize> = (0..SLOTS).filter(held).collect();
                    let operation = draw(&mut rng, &self.reference.root, &open, self.style);
                    self.step(operation)?;
                }
            }
            Steps::Given(steps) => {
                for operation in steps {
                    self.step(operation)?;
                }
            }
        }
        self.remount(false)?;
        compare::trees(self)
    }

    fn step(&mut self, operation: Operation) -> Checked {
        self.looks.seed(self.done.len() as u64);
        if self.faulty
            && let [Some(slot), None] = operation.touched()
            && matches!(operation, Operation::Open { .. } | Operation::Dup { .. })
            && self.mount.slots[slot].is_some()
        {
            // What an error of the close in them would mean could not be told.
            self.step(Operation::Close { slot })?;
        }
        if operation == Operation::Remount {
            self.done.push((operation, Outcome::Done));
            return self.remount(true);
        }
        let got = self.mount.perform(&operation);
        self.done.push((operation.clone(), got.clone()));
        match &got {
            Outcome::Failed(errno) if self.faulty && may_fail(&operation, *errno) => {
                self.failed += 1;
                self.find_out(&operation)?;
                self.take_time_over(&operation);
            }
            _ => self.agree(&operation, &got)?,
        }
        // Looking changes what is cached: some steps follow each other at once.
        if self.looks.u8(..4) > 0 {
            self.look(&operation)?;
        }
        if self.done.len().is_multiple_of(WHOLE) {
            compare::trees(self)?;
        }
        Ok(())
    }

    /// Performs the step on the reference, and compares what came of it.
    fn agree(&mut self, operation: &Operation, got: &Outcome) -> Checked {
        if let Some(verdict) = self.store.refusal(operation, got, &mut self.reference) {
            return verdict.map_err(|why| format!("{operation:?} gave {}: {why}", brief(got)));
        }
        if let Operation::Seek {
            slot,
            offset,
            whence: whence @ (Whence::Data | Whence::Hole),
        } = operation
            && let Some(open) = &self.reference.slots[*slot]
            && compare::is_plain(open)
        {
            return compare::sparse(open, *whence, offset.unsigned_abs(), got);
        }
        let want = self.reference.perform(operation);
        if let (Operation::Map { path, .. }, Outcome::Bytes(stored)) = (operation, &want)
            && !stored.is_empty()
        {
            // Stores through mappings change no times in memory.
            perform::set_time(&self.reference.path(path), std::time::SystemTime::now());
        }
        if matches!(
            operation,
            Operation::Truncate { .. } | Operation::Allocate { .. }
        ) {
            // What changes no byte may change the time.
            self.take_time_over(operation);
        }
        if let Operation::Seek { slot, .. } = operation
            && let Some(open) = &self.reference.slots[*slot]
            && !compare::is_plain(open)
        {
            // Each filesystem has positions of its own in directories.
            return Ok(());
        }
        let agree = match (got, &want) {
            (Outcome::Facts(got), Outcome::Facts(want)) => self
                .store
                .comparable(got)
                .agree(&self.store.comparable(want)),
            _ => *got == want,
        };
        match agree {
            true => Ok(()),
            false => Err(format!(
                "{operation:?} gave {} and not {}{}",
                brief(got),
                brief(&want),
                difference(got, &want),
            )),
        }
    }

    /// Gives the files of a step in the reference the times that they have in the mount.
    fn take_time_over(&self, operation: &Operation) {
        let set = |facts: Result<perform::Facts, Errno>, path: std::path::PathBuf| {
            if let Ok(facts) = facts
                && facts.kind == rustix::fs::FileType::RegularFile
            {
                let since = Duration::from_secs(facts.modified as u64);
                perform::set_time(&path, std::time::UNIX_EPOCH + since);
            }
        };
        for path in operation.paths().into_iter().flatten() {
            // Links are followed by steps that change times.
            let path = self.reference.target(path);
            let facts = self.settle(|| perform::stat(&self.mount.path(&path)));
            set(facts, self.reference.path(&path));
        }
        for slot in operation.slots().into_iter().flatten() {
            if let (Some(mount), Some(reference)) =
                (&self.mount.slots[slot], &self.reference.slots[slot])
            {
                let facts = self.settle(|| perform::stat_of(mount));
                set(facts, perform::path_of(reference));
            }
        }
    }

    /// Looks at what the step worked on.
    fn look(&mut self, operation: &Operation) -> Checked {
        for slot in operation.touched().into_iter().flatten() {
            self.look_at_slot(slot)?;
        }
        for path in operation.paths().into_iter().flatten() {
            compare::name(self, path)?;
        }
        if let (
            Operation::SetTime {
                path,
                seconds: Some(seconds),
            },
            Some((_, Outcome::Done)),
        ) = (operation, self.done.last())
        {
            let facts = self.settle(|| perform::stat(&self.mount.path(path)));
            if !facts.is_ok_and(|facts| facts.modified == *seconds) {
                return Err(format!("{operation:?} left {facts:?}"));
            }
        }
        Ok(())
    }

    fn look_at_slot(&mut self, slot: usize) -> Checked {
        let (Some(open), Some(reference)) = (&self.mount.slots[slot], &self.reference.slots[slot])
        else {
            let (one, two) = (&self.mount.slots[slot], &self.reference.slots[slot]);
            return match one.is_none() && two.is_none() {
                true => Ok(()),
                false => Err(format!("slot {slot} is open on one side only")),
            };
        };
        let got = self.settle(|| perform::stat_of(open));
        let want = perform::stat_of(reference);
        compare::facts(self.store, &format!("slot {slot}"), got, want)?;
        if !compare::is_plain(reference) {
            return Ok(());
        }
        if self.looks.clone().bool() {
            perform::drop_pages(open);
        }
        let got = self.settle(|| perform::contents(open));
        let want = perform::contents(reference);
        compare::bytes(&format!("slot {slot}"), &got, &want)
    }

    /// Asks again while the answer is a fault.
    pub fn settle<T>(&self, mut ask: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
        let began = Instant::now();
        loop {
            match ask() {
                Err(errno) if self.faulty && is_fault(errno) && began.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                other => return other,
            }
        }
    }

    /// Closes everything, unmounts and mounts again.
    fn remount(&mut self, with_faults: bool) -> Checked {
        for slot in 0..SLOTS {
            let (got, want) = (self.mount.close(slot), self.reference.close(slot));
            let excused = self.faulty && matches!(got, Outcome::Failed(errno) if is_fault(errno));
            if got != want && !excused {
                return Err(format!(
                    "close of slot {slot} gave {got:?} and not {want:?}"
                ));
            }
        }
        compare::trees(self)?;
        if !self.store.lasts() {
            return Ok(());
        }
        self.store.unmount(&self.mounted);
        self.faulty &= with_faults;
        self.mounted = self.store.mount(with_faults);
        compare::trees(self)
    }
}

/// Whether an errno is what a fault gives.
pub fn is_fault(errno: Errno) -> bool {
    matches!(errno, Errno::IO | Errno::TIMEDOUT | Errno::NOSPC)
}

/// Whether an errno of a step may be that of a fault.
fn may_fail(operation: &Operation, errno: Errno) -> bool {
    is_fault(errno) || errno == Errno::EXIST && operation.anonymous()
}

/// An outcome in a line.
pub fn brief(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Outcome::Failed(errno) => bucketfs::fs::errno::name(errno.raw_os_error()),
        other => format!("{other:?}"),
    }
}

fn difference(got: &Outcome, want: &Outcome) -> String {
    match (got, want) {
        (Outcome::Bytes(got), Outcome::Bytes(want)) => {
            let at = got.iter().zip(want).position(|(got, want)| got != want);
            format!(", which differ at {at:?}")
        }
        _ => String::new(),
    }
}

/// Whether a step exchanges two names.
pub fn exchanges(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Rename {
            how: Renaming::Exchange,
            ..
        }
    )
}
