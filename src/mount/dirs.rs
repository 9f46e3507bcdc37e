//! Directories of a mount: private, never shared by two mounts, and clean after a crash.

use super::register::{self, OF_USERS, Register};
use crate::config::StoreSettings;
use crate::driver::Location;
use crate::exit::Failure;
use crate::key::Key;
use rustix::fs::{AtFlags, CWD, FlockOperation, OFlags};
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Chooses the directory of records and control sockets.
const RUNTIME_VARIABLE: &str = "BUCKETFS_RUNTIME_DIR";

/// More mounts than this never share a root of staging directories.
const MOST_SLOTS: usize = 10_000;

/// An exclusive lock on a file, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    /// What the path begins at, rather than at the working directory.
    dir: Option<Arc<OwnedFd>>,
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Takes the lock; `None` when another process holds it.
    pub fn take(path: &Path) -> io::Result<Option<Lock>> {
        Lock::take_from(None, path)
    }

    /// As [`Lock::take`], for a name in an open directory.
    pub fn take_in(dir: &Arc<OwnedFd>, name: &OsStr) -> io::Result<Option<Lock>> {
        Lock::take_from(Some(dir), Path::new(name))
    }

    fn take_from(dir: Option<&Arc<OwnedFd>>, path: &Path) -> io::Result<Option<Lock>> {
        loop {
            let flags = OFlags::WRONLY | OFlags::CREATE;
            let file = register::open_plain(dir, path.as_os_str(), flags)?;
            if !lock(&file)? {
                return Ok(None);
            }
            // The holder before may have removed the file after it was opened here.
            if file.metadata()?.nlink() > 0 {
                return Ok(Some(Lock {
                    dir: dir.cloned(),
                    path: path.to_owned(),
                    file,
                }));
            }
        }
    }

    /// Whether another process holds the lock of that name in an open directory. The file is not
    /// made for that.
    pub fn is_held(dir: &Arc<OwnedFd>, name: &OsStr) -> io::Result<bool> {
        match register::open_plain(Some(dir), name, OFlags::RDONLY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            file => Ok(!lock(&file?)?),
        }
    }

    /// Lets go and removes the file.
    pub fn remove(self) {
        let from = self.dir.as_ref().map_or(CWD, |dir| dir.as_fd());
        // Removed while it is still locked: nobody can lock a file that is gone.
        let _ = rustix::fs::unlinkat(from, &self.path, AtFlags::empty());
        drop(self.file);
    }
}

/// Locks a file until it is closed, unless another process has.
fn lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A directory of a mount, with the lock that keeps others out.
#[derive(Debug)]
pub struct Claimed {
    /// The directory.
    pub path: PathBuf,
    /// Held for as long as the directory is used.
    pub lock: Lock,
}

/// Makes a directory that only this user can enter. One that belongs to somebody else is refused.
pub fn private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let facts = path.symlink_metadata()?;
    if !facts.is_dir() {
        return Err(io::Error::other("it is not a directory"));
    }
    if facts.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!(
            "it belongs to user {}, not to this one",
            facts.uid()
        )));
    }
    if facts.mode() & 0o077 != 0 {
        std::fs::set_permissions(path, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Claims an empty directory below `root` that no living mount uses, and empties what dead mounts
/// left in the others.
pub fn claim_empty(root: &Path) -> io::Result<Claimed> {
    private(root)?;
    let mut claimed = None;
    for slot in 0..MOST_SLOTS {
        let path = root.join(slot.to_string());
        let lock_path = root.join(format!("{slot}.lock"));
        if claimed.is_some() && !lock_path.exists() {
            break;
        }
        let Some(lock) = Lock::take(&lock_path)? else {
            continue;
        };
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        if claimed.is_none() {
            private(&path)?;
            claimed = Some(Claimed { path, lock });
        }
    }
    claimed.ok_or_else(|| io::Error::other("every directory in it is in use"))
}

/// Claims the directory `name` below `root` with what is in it; while a living mount uses it,
/// `name-2` and so on.
pub fn claim_named(root: &Path, name: &str) -> io::Result<Claimed> {
    private(root)?;
    for slot in 1..MOST_SLOTS {
        let name = match slot {
            1 => name.to_owned(),
            _ => format!("{name}-{slot}"),
        };
        if let Some(lock) = Lock::take(&root.join(format!("{name}.lock")))? {
            let path = root.join(name);
            private(&path)?;
            return Ok(Claimed { path, lock });
        }
    }
    Err(io::Error::other("every directory in it is in use"))
}

/// The directories that [`claim_named`] has made below `root` under this name, in order.
pub fn named(root: &Path, name: &str) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let slot = match entry
            .file_name()
            .to_str()
            .and_then(|n| n.strip_prefix(name))
        {
            Some("") => Some(1),
            Some(rest) => rest
                .strip_prefix('-')
                .and_then(|slot| slot.parse::<usize>().ok()),
            None => None,
        };
        if let Some(slot) = slot.filter(|_| entry.path().is_dir()) {
            found.push((slot, entry.path()));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The lock of a directory that [`claim_named`] has made; `None` while a living mount uses it.
pub fn claim_again(path: &Path) -> io::Result<Option<Lock>> {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    Lock::take(Path::new(&lock))
}

/// Turns a failure with a directory into a sentence that names the option that moves it.
pub fn failure(what: &str, option: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::other(format!(
        "cannot use the {what} {}: {error}; choose another one with --{option}",
        path.display()
    ))
}

/// Where staging directories are by default.
pub fn staging_root() -> PathBuf {
    home("XDG_CACHE_HOME", ".cache", "/var/cache/bucketfs", "/tmp").join("staging")
}

/// Where state directories are by default: they outlive a restart of the machine.
pub fn state_root() -> PathBuf {
    home(
        "XDG_STATE_HOME",
        ".local/state",
        "/var/lib/bucketfs",
        "/var/tmp",
    )
}

/// Where it is kept what the replicas of a store lack.
pub fn journal(store: &StoreSettings) -> PathBuf {
    let name = slug(&store.location, &store.prefix);
    super::state_root(store).join(name).join("repair")
}

/// Where records and control sockets are.
pub fn runtime_root() -> Result<PathBuf, Failure> {
    if let Some(chosen) = chosen_runtime_root() {
        return match chosen.is_absolute() {
            true => Ok(chosen),
            false => Err(Failure::usage(format!(
                "{RUNTIME_VARIABLE} is the relative path {chosen:?}; give an absolute one"
            ))),
        };
    }
    Ok(match (is_root(), absolute_variable("XDG_RUNTIME_DIR")) {
        (true, _) => "/run/bucketfs".into(),
        (false, Some(dir)) => dir.join("bucketfs"),
        (false, None) => of_user("/tmp"),
    })
}

/// Where records are that this user may believe: its own first, and for root those of all users.
pub fn registers() -> Result<Vec<Register>, Failure> {
    let root = runtime_root()?;
    let own = Register::open(&root).map_err(|error| unusable_runtime_root(&root, &error))?;
    let mut registers: Vec<Register> = own.into_iter().collect();
    if is_root() && chosen_runtime_root().is_none() {
        registers.extend(Register::of_users(Path::new(OF_USERS)));
    }
    Ok(registers)
}

/// The failure of a runtime directory.
pub fn unusable_runtime_root(root: &Path, error: &io::Error) -> Failure {
    Failure::other(format!(
        "cannot use the runtime directory {}: {error}; choose another one with BUCKETFS_RUNTIME_DIR",
        root.display()
    ))
}

fn chosen_runtime_root() -> Option<PathBuf> {
    let chosen = std::env::var_os(RUNTIME_VARIABLE)?;
    (!chosen.is_empty()).then(|| chosen.into())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn home(variable: &str, below_home: &str, of_root: &str, shared: &str) -> PathBuf {
    if is_root() {
        return of_root.into();
    }
    absolute_variable(variable)
        .or_else(|| absolute_variable("HOME").map(|home| home.join(below_home)))
        .map_or_else(|| of_user(shared), |dir| dir.join("bucketfs"))
}

/// A directory of this user in one that may be everybody's; [`private`] refuses what another user
/// made there.
pub fn of_user(shared: impl AsRef<Path>) -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    shared.as_ref().join(format!("bucketfs-{uid}"))
}

fn absolute_variable(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(name)?);
    path.is_absolute().then_some(path)
}

/// A directory name for a URL and prefix: readable at its start, unique by a hash at its end.
pub fn slug(location: &Location, prefix: &Key) -> String {
    let shown = format!("{location}|{prefix}");
    let mut words: String = shown
        .chars()
        .take(60)
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    while words.contains("--") {
        words = words.replace("--", "-");
    }
    format!(
        "{}-{:016x}",
        words.trim_matches('-'),
        hash(shown.as_bytes())
    )
}

/// FNV-1a: the same in every version of this program, as names on disk must be.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mounts_never_share_and_a_dead_ones_is_emptied() {
        let root = tempfile::tempdir().unwrap();
        let first = claim_empty(root.path()).unwrap();
        let second = claim_empty(root.path()).unwrap();
        assert_ne!(first.path, second.path);
        assert_eq!(first.path.metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::write(first.path.join("spill"), "x").unwrap();
        std::fs::write(second.path.join("spill"), "x").unwrap();
        let (first_path, second_path) = (first.path.clone(), second.path.clone());
        drop((first, second));
        let again = claim_empty(root.path()).unwrap();
        assert_eq!(again.path, first_path);
        assert!(!first_path.join("spill").exists());
        assert!(!second_path.exists());
    }

    #[test]
    fn a_named_directory_keeps_its_content() {
        let root = tempfile::tempdir().unwrap();
        let first = claim_named(root.path(), "s3-b").unwrap();
        std::fs::write(first.path.join("block"), "x").unwrap();
        let second = claim_named(root.path(), "s3-b").unwrap();
        assert_eq!(second.path, root.path().join("s3-b-2"));
        let path = first.path.clone();
        drop(first);
        let again = claim_named(root.path(), "s3-b").unwrap();
        assert_eq!(again.path, path);
        assert!(path.join("block").exists());
    }

    #[test]
    fn a_removed_lock_can_be_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::take(&path).unwrap().expect("free");
        assert!(Lock::take(&path).unwrap().is_none());
        lock.remove();
        assert!(!path.exists());
        assert!(Lock::take(&path).unwrap().is_some());
    }

    #[test]
    fn slugs_are_stable_and_hold_no_password() {
        let location = Location::parse("s3://key:secret@bucket/a/b").unwrap();
        let slug = slug(&location, &Key::from("p/"));
        assert_eq!(hash(b"foobar"), 0x8594_4171_f739_67e8);
        assert!(slug.starts_with("s3-key-bucket-a-b-p-"), "{slug}");
        assert!(!slug.contains("secret"));
    }
}
