//! Mount points: what is mounted where, whether somebody answers there, and how it is taken away.

use crate::exit::{Exit, Failure};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::mount::UnmountFlags;
use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// What mounts of bucketfs have as their type.
pub const FS_TYPE: &str = "fuse.bucketfs";

/// How long a system call on a mount may take before its daemon counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// One line of the kernel's table of mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    /// The kernel's number of the mount.
    pub id: u64,
    /// Major and minor number of the mounted device.
    pub device: (u32, u32),
    /// Where it is mounted.
    pub path: PathBuf,
    /// Its type, such as [`FS_TYPE`].
    pub fs_type: String,
    /// What is mounted; for ours, the URL without secrets.
    pub source: String,
}

impl MountLine {
    /// Whether it is a mount of bucketfs.
    pub fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// Whether it is a FUSE mount.
    pub fn is_fuse(&self) -> bool {
        matches!(self.fs_type.as_str(), "fuse" | "fuseblk") || self.fs_type.starts_with("fuse.")
    }
}

/// All mounts that this process sees, lower ones first. Reading it asks no daemon.
pub fn table() -> io::Result<Vec<MountLine>> {
    table_of(Path::new("/proc/self"))
}

/// All mounts that a process sees, by its directory in `/proc`.
fn table_of(process: &Path) -> io::Result<Vec<MountLine>> {
    let text = std::fs::read(process.join("mountinfo"))?;
    Ok(text
        .split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect())
}

/// The uppermost mount at exactly this path, which must be absolute and free of links.
pub fn mounted_at(path: &Path) -> io::Result<Option<MountLine>> {
    Ok(table()?.into_iter().rev().find(|line| line.path == path))
}

fn parse_line(line: &[u8]) -> Option<MountLine> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let (major, minor) = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    Some(MountLine {
        id: std::str::from_utf8(fields.first()?).ok()?.parse().ok()?,
        device: (major.parse().ok()?, minor.parse().ok()?),
        path: OsString::from_vec(unescape(fields.get(4)?)).into(),
        fs_type: text(fields.get(dash + 1)?),
        source: text(fields.get(dash + 2)?),
    })
}

/// The device of what is at a path, or of what is open where that is empty. It asks no daemon.
pub fn device(from: BorrowedFd<'_>, path: &Path) -> io::Result<(u32, u32)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let facts = rustix::fs::statx(from, path, flags, StatxFlags::empty())?;
    Ok((facts.stx_dev_major, facts.stx_dev_minor))
}

/// Undoes the kernel's octal escapes of spaces and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

/// Runs a call that may block on a daemon in a thread of its own, and gives up on it after
/// `patience`; the thread is left behind then.
pub fn within<T: Send + 'static>(
    patience: Duration,
    call: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("patience".into())
        .spawn(move || {
            let _ = sender.send(call());
        })
        .ok()?;
    let result = receiver.recv_timeout(patience).ok()?;
    // A process that is to fork must have no other thread left.
    let _ = thread.join();
    Some(result)
}

/// Whether a mounted filesystem answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulse {
    /// It answers, or is not ours to ask.
    Alive,
    /// Its daemon has ended.
    Dead,
    /// Its daemon does not answer in time.
    Hung,
}

/// Asks the filesystem at `path` for a sign of life.
pub fn pulse(path: &Path) -> Pulse {
    let path = path.to_owned();
    match within(PATIENCE, move || rustix::fs::statfs(&path)) {
        Some(Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED)) => Pulse::Dead,
        Some(_) => Pulse::Alive,
        None => Pulse::Hung,
    }
}

/// The absolute path of a directory without links. The directory itself may be missing, dead or
/// hung; what is above it must be there.
pub fn locate(dir: &Path) -> Result<PathBuf, Failure> {
    let wrong =
        |error: io::Error| Failure::mount_point(format!("cannot find {}: {error}", dir.display()));
    let absolute = std::path::absolute(dir).map_err(wrong)?;
    let asked = absolute.clone();
    match within(PATIENCE, move || asked.canonicalize()) {
        Some(Ok(path)) => return Ok(path),
        Some(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(wrong(error));
        }
        _ => {}
    }
    // A trailing `..` cannot be resolved without asking what is before it.
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Ok(absolute);
    };
    let (parent, name) = (parent.to_owned(), name.to_owned());
    let shown = parent.clone();
    match within(PATIENCE, move || parent.canonicalize()) {
        Some(Ok(parent)) => Ok(parent.join(name)),
        Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => Err(missing(dir)),
        Some(Err(error)) => Err(wrong(error)),
        None => Err(Failure::new(
            Exit::NotAnswering,
            format!("{} does not answer", shown.display()),
        )),
    }
}

/// Checks that something can be mounted at a located path, and that the store does not lie there.
/// Gives a dead mount of ours that has to be taken away first.
pub fn check(dir: &Path) -> Result<Option<MountLine>, Failure> {
    let shown = dir.display();
    let line = mounted_at(dir)
        .map_err(|error| Failure::other(format!("cannot read /proc/self/mountinfo: {error}")))?;
    if let Some(line) = line.filter(MountLine::is_fuse) {
        return match (line.is_ours(), pulse(dir)) {
            (true, Pulse::Dead) => Ok(Some(line)),
            (true, Pulse::Alive) => Err(Failure::mount_point(format!(
                "{} is mounted on {shown} already; bucketfs umount {shown} ends that",
                line.source
            ))),
            (true, Pulse::Hung) => Err(Failure::mount_point(format!(
                "{} is mounted on {shown} and does not answer; umount -l {shown} takes it away",
                line.source
            ))),
            (false, Pulse::Dead) => Err(Failure::mount_point(format!(
                "{shown} is a dead mount of {} ({}); umount -l {shown} takes it away",
                line.source, line.fs_type
            ))),
            (false, _) => Err(Failure::mount_point(format!(
                "{} ({}) is mounted on {shown} already; choose another directory",
                line.source, line.fs_type
            ))),
        };
    }
    match std::fs::metadata(dir) {
        Ok(facts) if facts.is_dir() => Ok(None),
        Ok(_) => Err(Failure::mount_point(format!(
            "{shown} is not a directory; give one to mount on"
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing(dir)),
        Err(error) => Err(Failure::mount_point(format!(
            "cannot mount on {shown}: {error}"
        ))),
    }
}

fn missing(dir: &Path) -> Failure {
    let shown = dir.display();
    Failure::mount_point(format!(
        "the mount point {shown} does not exist; make it with: mkdir -p {shown}"
    ))
}

/// Takes a mount away, as root with umount2(2), else with `fusermount3`. `lazy` takes it out of
/// the tree at once and ends it when its last file is closed. A busy mount is `EBUSY`.
pub fn unmount(dir: &Path, lazy: bool) -> io::Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if lazy {
        flags |= UnmountFlags::DETACH;
    }
    match rustix::mount::unmount(dir, flags) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => with_helper(dir, lazy),
        Err(error) => Err(error.into()),
    }
}

fn with_helper(dir: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z"));
    let output = command
        .arg("--")
        .arg(dir)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("cannot run fusermount3: {error}"))
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match said.contains("busy") {
        true => Err(rustix::io::Errno::BUSY.into()),
        false => Err(io::Error::other(said)),
    }
}

/// Processes that use what is mounted at `dir`, as `PID (NAME)`, at most a few, as far as they are
/// found in time: what the kernel tells of a process can wait for that process, which may wait for
/// some hung mount.
pub fn users(dir: &Path) -> Vec<String> {
    let Ok(Some(line)) = mounted_at(dir) else {
        return Vec::new();
    };
    let (sender, receiver) = mpsc::sync_channel(USERS);
    let looking = move || {
        let tell = |user| sender.send(user).is_ok();
        look_for_users(line.device)
            .take(USERS)
            .take_while(|user| tell(user.clone()))
            .count()
    };
    let _ = within(PATIENCE, looking);
    receiver.try_iter().collect()
}

/// How many users or copies are told.
const USERS: usize = 5;

/// Where a device is mounted, as far as `/proc` shows it in time: `PATH` for bind mounts that this
/// process sees, `PATH in the mount namespace of process PID (NAME)` for others; at most a few.
pub fn copies(of: (u32, u32)) -> Vec<String> {
    let looking = move || {
        // Each mount has a number of its own, in whatever namespace it is.
        let mut seen = HashSet::new();
        let mut copies = Vec::new();
        let others = entries(Path::new("/proc")).filter_map(|process| {
            let pid: u32 = process.file_name()?.to_str()?.parse().ok()?;
            Some((process, Some(pid)))
        });
        for (process, pid) in std::iter::once(("/proc/self".into(), None)).chain(others) {
            for line in table_of(&process).unwrap_or_default() {
                if line.device != of || !seen.insert(line.id) || copies.len() == USERS {
                    continue;
                }
                let path = line.path.display();
                copies.push(match pid {
                    None => path.to_string(),
                    Some(pid) => {
                        let user = named(&process, pid);
                        format!("{path} in the mount namespace of process {user}")
                    }
                });
            }
        }
        copies
    };
    within(PATIENCE, looking).unwrap_or_default()
}

/// `PID (NAME)` of a process, by its directory in `/proc`.
fn named(process: &Path, pid: u32) -> String {
    let name = std::fs::read(process.join("comm")).unwrap_or_default();
    format!("{pid} ({})", String::from_utf8_lossy(name.trim_ascii()))
}

/// Those that have something of a device open or mapped, as far as `/proc` shows it to this user.
/// Paths would not tell: they may lead below the mount, or be those of another mount namespace.
fn look_for_users(of: (u32, u32)) -> impl Iterator<Item = String> {
    let is_there = move |link: PathBuf| device(CWD, &link).is_ok_and(|device| device == of);
    let uses = move |process: &Path| {
        ["cwd", "root", "exe"]
            .iter()
            .any(|name| is_there(process.join(name)))
            || entries(&process.join("fd")).any(is_there)
            || std::fs::read(process.join("maps")).is_ok_and(|maps| is_mapped(&maps, of))
    };
    entries(Path::new("/proc")).filter_map(move |process| {
        let pid: u32 = process.file_name()?.to_str()?.parse().ok()?;
        uses(&process).then(|| named(&process, pid))
    })
}

/// Whether one of the lines of `/proc/PID/maps` is of a device, which is their fourth field.
fn is_mapped(maps: &[u8], (major, minor): (u32, u32)) -> bool {
    let device = format!("{major:02x}:{minor:02x}");
    let mut fields = maps
        .split(|byte| *byte == b'\n')
        .map(|line| line.split(|byte| *byte == b' ').nth(3));
    fields.any(|field| field == Some(device.as_bytes()))
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok().map(|entry| entry.path()))
}

/// Whether one path lies at or below the other, either way round.
pub fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// The path of `path` below `dir`, as `status` shows paths of a mount.
pub fn below(path: &Path, dir: &Path) -> Option<Vec<u8>> {
    let rest = path.strip_prefix(dir).ok()?;
    Some(rest.as_os_str().as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_line_of_the_table_is_parsed() {
        let line = b"57 27 0:50 / /mnt/a\\040b rw,nosuid shared:1 master:2 - fuse.bucketfs s3://b/p rw,user_id=0";
        assert_eq!(
            parse_line(line),
            Some(MountLine {
                id: 57,
                device: (0, 50),
                path: "/mnt/a b".into(),
                fs_type: FS_TYPE.into(),
                source: "s3://b/p".into(),
            })
        );
        assert_eq!(parse_line(b""), None);
        assert_eq!(unescape(b"\\134\\0x\\"), b"\\\\0x\\");
    }

    #[test]
    fn bad_mount_points_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let file = root.join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(check(&root), Ok(None));
        let message = |path: &Path| {
            locate(path)
                .and_then(|path| check(&path))
                .unwrap_err()
                .message
        };
        assert_eq!(
            message(&file),
            format!(
                "{} is not a directory; give one to mount on",
                file.display()
            )
        );
        for missing in [root.join("none"), root.join("none/deeper")] {
            let shown = missing.display();
            assert_eq!(
                message(&missing),
                format!("the mount point {shown} does not exist; make it with: mkdir -p {shown}")
            );
        }
    }

    #[test]
    fn links_lead_to_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&root, root.join("link")).unwrap();
        assert_eq!(locate(&root.join("link/.")).unwrap(), root);
    }

    #[test]
    fn patience_ends() {
        assert_eq!(within(PATIENCE, || 7), Some(7));
        let slow = || std::thread::sleep(Duration::from_secs(5));
        assert_eq!(within(Duration::from_millis(20), slow), None);
    }

    #[test]
    fn users_of_a_device_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let open = std::fs::File::create(dir.path().join("file")).unwrap();
        let me = std::process::id().to_string();
        let device = device(open.as_fd(), Path::new("")).unwrap();
        assert!(look_for_users(device).any(|user| user.starts_with(&me)));
        let other = (device.0, u32::MAX >> 12);
        assert_eq!(look_for_users(other).next(), None);
        let maps = b"7f00-7f01 r--s 00000000 fd:1a 131 /mnt/a b\n7f02-7f03 rw-p 00000000 00:00 0\n";
        assert!(is_mapped(maps, (0xfd, 0x1a)) && !is_mapped(maps, (0xfd, 0x1)));
    }
}
