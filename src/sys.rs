//! System calls without a safe wrapper: the only file with `unsafe`.

use crate::clock;
use bytes::BytesMut;
use rustix::fs::{Mode, OFlags};
use rustix::mm::Advice;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::time::Duration;

/// How many threads run at a time. Asked of the system once, which reads files for that.
pub fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

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

/// Lets threads share what the C library has free, where it can. By default each has an arena of
/// its own: what one thread gathers for a listing and another gives back is then used by nobody,
/// and a mount on which much happens at once holds up to twice the memory. Before any thread is
/// begun.
pub fn share_free_memory() {
    #[cfg(target_env = "gnu")]
    {
        let cores = cores();
        // More cores would wait for each other.
        let arenas = (cores / 4).clamp(1, 8) as libc::c_int;
        // SAFETY: it sets a number of the allocator, under its own lock.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, arenas);
        }
    }
}

/// Asks for large pages under what is free of a buffer, where the system has them.
pub fn prefer_huge_pages(buffer: &mut BytesMut) {
    advise(buffer, Advice::LinuxHugepage);
}

/// Has what is free of a buffer mapped in one go. Filling it takes a page fault for every 4 KiB
/// otherwise, which costs more than the copy does.
pub fn prefault(buffer: &mut BytesMut) {
    advise(buffer, Advice::LinuxPopulateWrite);
}

/// Advises the system on the pages under what is free of a buffer. That it is not taken is fine.
fn advise(buffer: &mut BytesMut, advice: Advice) {
    let room = buffer.spare_capacity_mut();
    let first = room.as_mut_ptr().addr() & !(rustix::param::page_size() - 1);
    let len = room.as_mut_ptr().addr() + room.len() - first;
    let pages = std::ptr::with_exposed_provenance_mut(first);
    // SAFETY: the range is mapped, as the buffer lies in it, and neither kind of advice changes
    // what can be read there.
    let _ = unsafe { rustix::mm::madvise(pages, len, advice) };
}

/// Bytes of memory that the machine has.
pub fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

/// How many of the bytes written to a TCP socket the other side has not acknowledged, sent or not.
pub fn unacknowledged(socket: impl AsFd) -> io::Result<u64> {
    type Count = libc::c_int;
    // SAFETY: SIOCOUTQ has the number of TIOCOUTQ, and the kernel writes one int behind the
    // pointer. It knows the kind of the descriptor.
    let count = unsafe {
        let outq =
            rustix::ioctl::Getter::<{ libc::TIOCOUTQ as rustix::ioctl::Opcode }, Count>::new();
        rustix::ioctl::ioctl(socket, outq)?
    };
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Another way to the connection of a FUSE device, with its own list of the requests read from it.
pub fn clone_fuse_device(device: impl AsFd) -> io::Result<OwnedFd> {
    // FUSE_DEV_IOC_CLONE
    const CLONE: u32 = rustix::ioctl::opcode::read::<u32>(229, 0);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let fresh = rustix::fs::open("/dev/fuse", flags, Mode::empty())?;
    let source = device.as_fd().as_raw_fd() as u32;
    // SAFETY: the kernel reads one u32 behind the pointer, the number of an open FUSE device.
    unsafe { rustix::ioctl::ioctl(&fresh, rustix::ioctl::Setter::<CLONE, u32>::new(source))? };
    Ok(fresh)
}

/// Gives the calling thread descriptors of its own, and closes them all but this one: what others
/// close is closed then, whatever this thread waits for. From then on it must neither use nor open
/// any other: not even to log, for a number may mean another file to other threads.
pub fn keep_only(own: &OwnedFd) -> io::Result<()> {
    let own = own.as_raw_fd() as libc::c_uint;
    // SAFETY: nobody but this thread sees its table, and the callers use nothing that is closed.
    unsafe {
        // Kernels before 5.9 lack it, and a table in which others stay open would be worse.
        close_range(libc::c_uint::MAX, libc::c_uint::MAX)?;
        rustix::thread::unshare_unsafe(UnshareFlags::FILES)?;
        if own > 0 {
            close_range(0, own - 1)?;
        }
        close_range(own + 1, libc::c_uint::MAX)
    }
}

/// Closes all descriptors but the standard streams and this one. To be called in a process that
/// has opened no other itself, for what is given to a program does not belong to any value in it.
pub fn close_inherited(but: &impl AsFd) {
    const FIRST: libc::c_uint = 3;
    let own = but.as_fd().as_raw_fd() as libc::c_uint;
    // SAFETY: as the caller says. Kernels before 5.9 lack it, and then they stay open.
    unsafe {
        if own > FIRST {
            let _ = close_range(FIRST, own - 1);
        }
        let _ = close_range(own.max(FIRST - 1) + 1, libc::c_uint::MAX);
    }
}

/// # Safety
///
/// Nobody may own a descriptor of the range who uses it later.
unsafe fn close_range(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    // SAFETY: as the caller says.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_with_descriptors_of_its_own_keeps_no_pipe_open() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let (own, others) = (OwnedFd::from(io::pipe().expect("a pipe").0), writer);
        let (ready, unshared) = std::sync::mpsc::channel();
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            keep_only(&own).expect("a table of its own");
            let open = rustix::io::fcntl_getfd(&own).is_ok();
            ready.send(()).expect("somebody waits");
            // The others' close is felt although this thread goes on.
            let _ = receiver.recv();
            open
        });
        unshared.recv().expect("it has begun");
        let mut rest = Vec::new();
        drop(others);
        io::Read::read_to_end(&mut &reader, &mut rest).expect("the end of the pipe");
        drop(sender);
        assert!(thread.join().expect("ended"), "it keeps its own");
    }
}
