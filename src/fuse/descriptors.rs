//! What else a process has open.
//!
//! Each close of a descriptor flushes, and the kernel does not tell whether it is the last one. A
//! shell's `> file` opens, duplicates and closes before anything is written: a commit by that close
//! would publish the file empty, and pay for it.

use crate::task;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tokio::sync::Semaphore;

/// How many descriptors of a process are looked at.
const MOST: usize = 64;

/// How long looking may take. The kernel tells nothing of a process that is in the middle of an
/// exec, and that one may be waiting for the very flush that asks: it closes what is `FD_CLOEXEC`.
const PATIENCE: Duration = Duration::from_millis(50);

/// How many may look at once; a look that has to wait for an exec leaves its thread behind until
/// the flush is answered.
static LOOKS: Semaphore = Semaphore::const_new(16);

/// [`writes`], where that can be found out soon; false where it cannot.
pub(super) async fn write_elsewhere(pid: u32, mount: u64, ino: u64) -> bool {
    let Ok(permit) = LOOKS.try_acquire() else {
        return false;
    };
    let look = task::blocking(move || {
        let found = writes(pid, mount, ino);
        drop(permit);
        found
    });
    matches!(tokio::time::timeout(PATIENCE, look).await, Ok(Ok(true)))
}

/// Whether a process has a file of a mount open for writing by any descriptor: then another flush
/// of it is certain to follow. The descriptor that is being closed is not among them any more.
/// False where that cannot be found out.
fn writes(pid: u32, mount: u64, ino: u64) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    descriptors
        .take(MOST)
        .filter_map(Result::ok)
        // To ask about sockets, polls and the like may wait for their locks.
        .filter(|descriptor| fs::read_link(descriptor.path()).is_ok_and(|to| to.is_absolute()))
        .filter_map(|descriptor| {
            fs::read_to_string(process.join("fdinfo").join(descriptor.file_name())).ok()
        })
        .any(|told| is_writer(&told, mount, ino))
}

/// Whether a descriptor is one of that file that can write, by its `fdinfo`.
fn is_writer(told: &str, mount: u64, ino: u64) -> bool {
    let field = |name: &str| {
        told.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let number = |name: &str| field(name)?.parse().ok();
    let flags = field("flags").and_then(|flags| i32::from_str_radix(flags, 8).ok());
    number("mnt_id") == Some(mount)
        && number("ino") == Some(ino)
        && flags.is_some_and(|flags| {
            flags & libc::O_PATH == 0 && flags & libc::O_ACCMODE != libc::O_RDONLY
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_duplicate_is_seen_until_it_is_closed() {
        let pid = std::process::id();
        let file = tempfile::NamedTempFile::new().expect("a file");
        let ino = file.as_file().metadata().expect("facts").ino();
        let told = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_file().as_raw_fd()))
            .expect("told");
        let mount = told
            .lines()
            .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
            .expect("a mount");
        let copy = file.as_file().try_clone().expect("a duplicate");
        let path = file.into_temp_path();
        assert!(writes(pid, mount, ino));
        assert!(!writes(pid, mount + 1, ino) && !writes(pid, mount, ino + 1));
        drop(copy);
        let reader = fs::File::open(&path).expect("opened again");
        assert!(!writes(pid, mount, ino));
        drop(reader);
    }

    #[test]
    fn only_writers_of_the_file_count() {
        let told = |flags: &str| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t29\nino:\t7\n");
        assert!(is_writer(&told("0100001"), 29, 7));
        assert!(is_writer(&told("02102002"), 29, 7));
        assert!(!is_writer(&told("0100000"), 29, 7));
        assert!(!is_writer(&told("010000001"), 29, 7), "only a path");
        // Kernels before 5.14 do not tell the inode.
        assert!(!is_writer("flags:\t0100001\nmnt_id:\t29\n", 29, 7));
    }
}
