//! System calls without a safe wrapper: the only file with `unsafe`.

use crate::clock;
use rustix::process::Pid;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

/// How long a thread that has been joined may yet be seen.
const LAST_BREATH: Duration = Duration::from_millis(500);

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The process that called, with its child's id.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Makes a copy of this process. Refused once there is a second thread: its locks would stay
/// taken in the copy for ever.
pub fn fork() -> io::Result<Forked> {
    let end = clock::now() + LAST_BREATH;
    loop {
        match std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count) {
            0 | 1 => break,
            _ if clock::now() < end => std::thread::sleep(Duration::from_millis(1)),
            threads => {
                return Err(io::Error::other(format!(
                    "cannot fork a process of {threads} threads"
                )));
            }
        }
    }
    // SAFETY: this is the only thread, so that the child inherits no lock that another one holds
    // and may do everything that its parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        child => match Pid::from_raw(child) {
            Some(child) => Ok(Forked::Parent(child)),
            None => Err(io::Error::other("fork gave no process id")),
        },
    }
}

/// Gives memory that is free again back to the system, where the C library can. It takes the
/// allocator's locks for a while, so call it rarely, and not where somebody waits.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing but free memory of the allocator, under its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes the descriptor number `number` mean the open file `to`.
pub fn redirect(number: RawFd, to: impl AsFd) -> io::Result<()> {
    // SAFETY: both are plain descriptor numbers, and `to` stays open during the call. Only the
    // standard streams are passed as `number`, which nobody in this process owns as a value.
    match unsafe { libc::dup2(to.as_fd().as_raw_fd(), number) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
