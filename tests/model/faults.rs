//! What became of a step that failed for no reason of its own: it happened or it did not, and the
//! reference follows.

use crate::operation::{Operation, Renaming};
use crate::perform::{self, Outcome};
use crate::run::{Checked, Run};
use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;
use std::io::Write;
use std::time::{Duration, Instant};

impl Run<'_> {
    /// Looks at the mount until it answers, and does the same to the reference.
    pub fn find_out(&mut self, operation: &Operation) -> Checked {
        use Operation as O;
        for path in operation.paths().into_iter().flatten() {
            self.wait_for(path)?;
        }
        match operation {
            // The descriptor is gone, and the bytes stay.
            O::Close { .. } => drop(self.reference.perform(operation)),
            O::Open { path, flags, .. } => self.opened(operation, path, *flags)?,
            O::WriteAt { slot, .. }
            | O::Write { slot, .. }
            | O::SetLength { slot, .. }
            | O::Allocate { slot, .. }
            | O::Copy { to: slot, .. } => self.wrote(operation, *slot)?,
            O::Truncate { path, .. } => {
                let before = perform::load(&self.reference.path(path));
                let now = self.settle(|| perform::load(&self.mount.path(path)));
                if now != before {
                    self.did(operation)?;
                }
            }
            O::Save { path, length, seed } => self.saved(operation, path, *length, *seed)?,
            O::MakeDirectory { path, .. }
            | O::SymbolicLink { path, .. }
            | O::MakeFifo { path }
            | O::Unlink { path }
            | O::RemoveDirectory { path } => {
                let now = self.settle(|| perform::stat(&self.mount.path(path)));
                let before = perform::stat(&self.reference.path(path));
                if now.is_ok() != before.is_ok() {
                    self.did(operation)?;
                }
            }
            O::Rename { from, to, how } => self.renamed(operation, from, to, *how)?,
            O::SetMode { path, mode } => {
                let now = self.settle(|| perform::stat(&self.mount.path(path)));
                if now.is_ok_and(|facts| facts.mode == *mode) {
                    self.reference.perform(operation);
                }
            }
            O::SetTime {
                path,
                seconds: Some(seconds),
            } => {
                let now = self.settle(|| perform::stat(&self.mount.path(path)));
                if now.is_ok_and(|facts| facts.modified == *seconds) {
                    self.reference.perform(operation);
                }
            }
            O::SetAttribute { path, name, .. } | O::RemoveAttribute { path, name } => {
                let now = self.settle(|| perform::attribute(&self.mount.path(path), name));
                let before = perform::attribute(&self.reference.path(path), name);
                if now != before {
                    self.did(operation)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Waits until the kernel has been told that a name is to be looked up again.
    fn wait_for(&self, path: &str) -> Checked {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let began = Instant::now();
        loop {
            let listed = self.settle(|| perform::names(&self.mount.path(above)));
            let found = self.settle(|| perform::stat(&self.mount.path(path)));
            if listed.is_ok_and(|names| names.contains(name)) == found.is_ok() {
                return Ok(());
            }
            if began.elapsed() > Duration::from_secs(5) {
                return Err(format!("{path:?} is {found:?}, and is listed otherwise"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The step happened after all.
    fn did(&mut self, operation: &Operation) -> Checked {
        match self.reference.perform(operation) {
            Outcome::Failed(errno) => Err(format!(
                "{operation:?} failed, happened all the same, and should give {errno:?}"
            )),
            _ => Ok(()),
        }
    }

    fn opened(&mut self, operation: &Operation, path: &str, flags: i32) -> Checked {
        let now = self.settle(|| perform::stat(&self.mount.path(path)));
        let before = perform::stat(&self.reference.path(path));
        let happened = match (&now, &before) {
            (Ok(_), Err(Errno::NOENT)) => true,
            (Ok(now), Ok(before)) => flags & libc::O_TRUNC != 0 && now.size == 0 && before.size > 0,
            _ => false,
        };
        if !happened {
            return Ok(());
        }
        self.did(operation)?;
        if let [Some(slot), _] = operation.touched() {
            self.reference.close(slot);
        }
        Ok(())
    }

    fn wrote(&mut self, operation: &Operation, slot: usize) -> Checked {
        let (Some(mount), Some(reference)) = (
            self.mount.slots[slot].clone(),
            self.reference.slots[slot].clone(),
        ) else {
            return Err(format!("{operation:?} failed on an empty slot"));
        };
        let before = perform::contents(&reference);
        let now = self.settle(|| perform::contents(&mount));
        self.did(operation)?;
        let after = perform::contents(&reference);
        if now == before && now != after {
            let mut file = perform::reopened(&reference);
            file.set_len(0).unwrap();
            file.write_all(&before.unwrap_or_default()).unwrap();
        } else if now != after {
            return Err(format!("{operation:?} failed and happened in part"));
        }
        // A failed write does not move the position.
        if let Ok(position) = rustix::fs::seek(&mount, SeekFrom::Current(0)) {
            rustix::fs::seek(&reference, SeekFrom::Start(position)).unwrap();
        }
        Ok(())
    }

    fn saved(&mut self, operation: &Operation, path: &str, length: usize, seed: u32) -> Checked {
        let now = self.settle(|| perform::load(&self.mount.path(path)));
        let before = perform::load(&self.reference.path(path));
        if now == before {
            return Ok(());
        }
        match &now {
            Ok(bytes) if bytes.is_empty() => {
                let opened = Operation::Save {
                    path: path.into(),
                    length: 0,
                    seed,
                };
                self.did(&opened)
            }
            Ok(bytes) if *bytes == crate::harness::pattern(length, seed) => self.did(operation),
            _ => Err(format!(
                "{operation:?} failed and left {:?}, where {:?} was",
                now.map(|bytes| bytes.len()),
                before.map(|bytes| bytes.len())
            )),
        }
    }

    fn renamed(&mut self, operation: &Operation, from: &str, to: &str, how: Renaming) -> Checked {
        assert_ne!(how, Renaming::Exchange, "it is not drawn here");
        let Ok(moved) = perform::stat(&self.reference.path(from)) else {
            return Ok(());
        };
        let left = self.settle(|| perform::stat(&self.mount.path(from)));
        if left == Err(Errno::NOENT) {
            return self.did(operation);
        }
        // It was not removed; whether it was copied is to be seen.
        let now = self.settle(|| perform::stat(&self.mount.path(to)));
        let before = perform::stat(&self.reference.path(to));
        let (Ok(now), source, target) = (now, self.reference.path(from), self.reference.path(to))
        else {
            return Ok(());
        };
        let there = before.is_ok();
        match (moved.kind, now.kind) {
            (FileType::RegularFile, FileType::RegularFile) => {
                let bytes = self.settle(|| perform::load(&self.mount.path(to)));
                if bytes == perform::load(&target) {
                    return Ok(());
                }
                if bytes != perform::load(&source) {
                    return Err(format!("{operation:?} failed and left neither of both"));
                }
                if there {
                    std::fs::remove_file(&target).unwrap();
                }
                std::fs::copy(&source, &target).unwrap();
            }
            (FileType::Directory, FileType::Directory) if !there => {
                std::fs::create_dir(&target).unwrap();
            }
            (FileType::Directory, FileType::Directory) => {
                let got = self.settle(|| perform::all_attributes(&self.mount.path(to)));
                let has = |of: &std::path::Path| {
                    let mode = perform::stat(of).map(|facts| facts.mode);
                    mode == Ok(now.mode) && perform::all_attributes(of) == got
                };
                if has(&target) {
                    return Ok(());
                }
                if !has(&source) {
                    return Err(format!(
                        "{operation:?} failed and left attributes of neither of both"
                    ));
                }
                for name in perform::attributes(&target).unwrap() {
                    rustix::fs::lremovexattr(&target, &*name).unwrap();
                }
            }
            _ => return Ok(()),
        }
        // A copy has all that its original has.
        for name in perform::attributes(&source).unwrap() {
            let value = perform::attribute(&source, &name).unwrap();
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::lsetxattr(&target, &*name, &value, flags).unwrap();
        }
        rustix::fs::chmod(&target, rustix::fs::Mode::from_raw_mode(moved.mode)).unwrap();
        Ok(())
    }
}
