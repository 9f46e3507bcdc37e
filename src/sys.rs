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

/// Gives the calling thread descriptors of its own, without those to `/dev/fuse` but this one.
/// From then on it must use no other that was opened later, nor any other to that device.
pub fn keep_only_fuse_device(device: &OwnedFd) -> io::Result<()> {
    // SAFETY: nobody but this thread sees its table, and it drops no owner of a descriptor that
    // is closed here but `device`.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FILES)? };
    for entry in std::fs::read_dir("/proc/thread-self/fd")? {
        let entry = entry?;
        let number: Option<RawFd> = entry.file_name().to_str().and_then(|n| n.parse().ok());
        let is_fuse = std::fs::read_link(entry.path()).is_ok_and(|to| to == *"/dev/fuse");
        if let Some(number) = number
            && is_fuse
            && number != device.as_raw_fd()
        {
            // SAFETY: it is a number of this thread's own table.
            unsafe { libc::close(number) };
        }
    }
    Ok(())
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
    fn a_thread_with_descriptors_of_its_own_has_one_way_to_the_kernel() {
        let open = || rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let (Ok(other), Ok(own)) = (open(), open()) else {
            return;
        };
        let devices = || -> Vec<_> {
            let entries = std::fs::read_dir("/proc/thread-self/fd").expect("descriptors");
            let paths = entries.flatten().map(|entry| entry.path());
            let fuse = |path: &std::path::PathBuf| {
                std::fs::read_link(path).is_ok_and(|to| to == *"/dev/fuse")
            };
            let numbers = paths
                .filter(fuse)
                .filter_map(|path| path.file_name()?.to_str()?.parse().ok());
            numbers.collect::<Vec<RawFd>>()
        };
        std::thread::scope(|scope| {
            let kept = scope.spawn(|| {
                keep_only_fuse_device(&own).expect("a table of its own");
                devices()
            });
            assert_eq!(kept.join().expect("ended"), [own.as_raw_fd()]);
        });
        let here = devices();
        assert!(here.contains(&own.as_raw_fd()) && here.contains(&other.as_raw_fd()));
    }
}
