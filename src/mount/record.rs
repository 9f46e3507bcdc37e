//! The register of mounts: one record and one lock for each, in the runtime directory.
//!
//! A mount is alive for as long as its daemon holds the lock. What a killed one leaves behind is
//! removed by whoever looks next.

use super::dirs::{self, Lock};
use super::register::Register;
use crate::clock;
use crate::exit::{Exit, Failure};
use crate::process::start_of;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a mount waits for a daemon that has no mount any more, or none yet, on its directory.
/// Another process that reads the register holds a lock for a moment only.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is known of a mount without asking its daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The daemon.
    pub pid: u32,
    /// When the daemon began, in the kernel's ticks since boot: with the pid it names a process.
    pub started: u64,
    /// The URL without secrets.
    pub url: String,
    /// The mount point.
    pub dir: String,
    /// Seconds since 1970.
    pub since: u64,
}

impl Record {
    /// Whether the daemon's process is still there.
    pub fn is_running(&self) -> bool {
        start_of(self.pid) == Some(self.started)
    }

    /// Waits until the daemon's process is gone; `false` when it is still there after `patience`.
    pub fn wait_gone(&self, patience: Duration) -> bool {
        let end = clock::now() + patience;
        while self.is_running() {
            if clock::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

/// A record and where its daemon listens.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The record.
    pub record: Record,
    socket: Option<Arc<OwnedFd>>,
}

impl Listed {
    /// The control socket, for as long as this is held.
    pub fn socket(&self) -> Result<PathBuf, Failure> {
        match &self.socket {
            Some(socket) => Ok(format!("/proc/self/fd/{}", socket.as_raw_fd()).into()),
            None => Err(Failure::new(
                Exit::NotAnswering,
                "the daemon does not answer: it has no control socket",
            )),
        }
    }
}

/// The place of this process in the register. It is given up when this is dropped.
#[derive(Debug)]
pub struct Registration {
    lock: Option<Lock>,
    register: Register,
    id: String,
    socket: PathBuf,
}

impl Registration {
    /// Takes the place of a mount point. Refused while another daemon serves it; one that ends just
    /// now, as after umount(8), or that has not told yet what it mounts, is waited for.
    pub fn take(root: &Path, dir: &Path) -> Result<Registration, Failure> {
        Registration::take_within(root, dir, PATIENCE)
    }

    fn take_within(root: &Path, dir: &Path, patience: Duration) -> Result<Registration, Failure> {
        let unusable = |error: io::Error| dirs::unusable_runtime_root(root, &error);
        let register = Register::make(root).map_err(unusable)?;
        let id = id(dir);
        let end = clock::now() + patience;
        let lock = loop {
            match register.lock(&file(&id, "lock")).map_err(unusable)? {
                Some(lock) => break lock,
                None if clock::now() < end && !is_served(&register, dir) => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                None => return Err(taken(&register, dir)),
            }
        };
        let registration = Registration::of(register, id, lock);
        registration.clean();
        Ok(registration)
    }

    fn of(register: Register, id: String, lock: Lock) -> Registration {
        Registration {
            lock: Some(lock),
            socket: register.path(&file(&id, "sock")),
            register,
            id,
        }
    }

    /// Where the control socket belongs.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Shows the mount to others.
    pub fn publish(&self, record: &Record) -> io::Result<()> {
        let bytes = serde_json::to_vec(record)?;
        let [name, new] = ["json", "new"].map(|extension| file(&self.id, extension));
        self.register.write(&name, &new, &bytes)
    }

    fn clean(&self) {
        for extension in ["json", "sock"] {
            self.register.remove(&file(&self.id, extension));
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.clean();
        if let Some(lock) = self.lock.take() {
            lock.remove();
        }
    }
}

/// Refuses a mount point on which a living daemon has a mount.
pub fn check_free(root: &Path, dir: &Path) -> Result<(), Failure> {
    let unusable = |error: io::Error| dirs::unusable_runtime_root(root, &error);
    let Some(register) = Register::open(root).map_err(unusable)? else {
        return Ok(());
    };
    let is_locked = register.is_locked(&file(&id(dir), "lock"));
    match is_locked.map_err(unusable)? && is_mounted(dir) {
        true => Err(taken(&register, dir)),
        false => Ok(()),
    }
}

fn is_mounted(dir: &Path) -> bool {
    let line = super::point::mounted_at(dir);
    line.is_ok_and(|line| line.is_some_and(|line| line.is_ours()))
}

/// Whether a living daemon has told that it mounts there, and does.
fn is_served(register: &Register, dir: &Path) -> bool {
    let record = read(register, &id(dir));
    is_mounted(dir) && record.is_some_and(|record| record.is_running())
}

/// The refusal of a mount point that another daemon has.
fn taken(register: &Register, dir: &Path) -> Failure {
    let shown = dir.display();
    Failure::mount_point(match read(register, &id(dir)) {
        Some(record) if is_mounted(dir) => format!(
            "{} is mounted on {shown} already by process {}; bucketfs umount {shown} ends that",
            record.url, record.pid
        ),
        Some(record) => format!(
            "process {} still sends what was written to {} on {shown}, or serves files that are open there; mount again when it has ended, or end it with: kill {}",
            record.pid, record.url, record.pid
        ),
        None => format!("another bucketfs mounts on {shown} just now"),
    })
}

/// The living mounts of this user's runtime directory at a path; none where it cannot be believed.
pub fn list(root: &Path) -> Vec<Listed> {
    let register = Register::open(root).ok().flatten();
    register.map_or_else(Vec::new, |register| listed(&register))
}

/// The living mounts of a runtime directory, by mount point. What dead ones left is removed where
/// it is this user's own; nothing is changed in that of another one.
pub fn listed(register: &Register) -> Vec<Listed> {
    let ids = register.names(".json").into_iter();
    let mut found: Vec<Listed> = ids
        .filter_map(|id| {
            let record = read(register, &id)?;
            if !is_alive(register, &id, &record) {
                return None;
            }
            let socket = register.socket(&file(&id, "sock")).ok();
            Some(Listed {
                record,
                socket: socket.map(Arc::new),
            })
        })
        .collect();
    found.sort_by(|a, b| a.record.dir.cmp(&b.record.dir));
    found
}

fn is_alive(register: &Register, id: &str, record: &Record) -> bool {
    let name = file(id, "lock");
    if !register.is_own() {
        return register.is_locked(&name).unwrap_or(false);
    }
    match register.lock(&name) {
        Ok(Some(lock)) => {
            drop(Registration::of(register.clone(), id.to_owned(), lock));
            false
        }
        Ok(None) => true,
        // The process tells where the lock cannot.
        Err(_) => record.is_running(),
    }
}

fn read(register: &Register, id: &str) -> Option<Record> {
    serde_json::from_slice(&register.read(&file(id, "json")).ok()?).ok()
}

/// What stands for a mount point in names of files: a hash, for a path does not fit into a name.
fn id(dir: &Path) -> String {
    format!("{:016x}", dirs::hash(dir.as_os_str().as_bytes()))
}

fn file(id: &str, extension: &str) -> String {
    format!("{id}.{extension}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(dir: &Path) -> Record {
        Record {
            pid: std::process::id(),
            started: start_of(std::process::id()).expect("this process runs"),
            url: "memory:".into(),
            dir: dir.display().to_string(),
            since: 7,
        }
    }

    #[test]
    fn a_place_is_taken_once_and_given_up() {
        let root = tempfile::tempdir().unwrap();
        let dir = Path::new("/mnt/none");
        let registration = Registration::take(root.path(), dir).unwrap();
        assert!(list(root.path()).is_empty());
        registration.publish(&record(dir)).unwrap();
        assert_eq!(list(root.path())[0].record, record(dir));
        let failure = Registration::take_within(root.path(), dir, Duration::ZERO).unwrap_err();
        let pid = std::process::id();
        assert_eq!(
            failure.message,
            format!(
                "process {pid} still sends what was written to memory: on /mnt/none, or serves files that are open there; mount again when it has ended, or end it with: kill {pid}"
            )
        );
        check_free(root.path(), dir).expect("nothing is mounted there");
        // Who ends meanwhile is waited for.
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(registration);
        });
        drop(Registration::take(root.path(), dir).unwrap());
        ending.join().unwrap();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        Registration::take(root.path(), dir).unwrap();
    }

    #[test]
    fn what_a_dead_daemon_left_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let mut registration = Registration::take(root.path(), Path::new("/mnt/a")).unwrap();
        registration.publish(&record(Path::new("/mnt/a"))).unwrap();
        std::fs::write(registration.socket(), "").unwrap();
        drop(registration.lock.take());
        std::mem::forget(registration);
        assert!(list(root.path()).is_empty());
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    /// A runtime directory of another user, as root finds it, with a record of a dead daemon.
    fn of_another(root: &Path) -> (PathBuf, Register) {
        let uid = rustix::process::geteuid().as_raw();
        let dir = root.join(uid.to_string()).join("bucketfs");
        std::fs::create_dir_all(&dir).unwrap();
        let record = serde_json::to_vec(&record(Path::new("/mnt/a"))).unwrap();
        for name in ["daemon.json", "daemon.lock", "daemon.sock"] {
            std::fs::write(dir.join(name), &record).unwrap();
        }
        let register = Register::of_users(root).pop().expect("it is its owner's");
        (dir, register)
    }

    #[test]
    fn nothing_is_removed_from_another_users_directory() {
        let root = tempfile::tempdir().unwrap();
        let (dir, register) = of_another(root.path());
        assert!(listed(&register).is_empty());
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 3);
        // A daemon that lives is shown.
        let lock = Lock::take(&dir.join("daemon.lock")).unwrap().unwrap();
        assert_eq!(listed(&register).len(), 1);
        drop(lock);
    }

    #[test]
    fn a_directory_that_is_replaced_by_a_link_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("own");
        let register = Register::make(&own).unwrap();
        let victim = root.path().join("victim");
        std::fs::create_dir(&victim).unwrap();
        let record = serde_json::to_vec(&record(Path::new("/mnt/a"))).unwrap();
        for dir in [&own, &victim] {
            std::fs::write(dir.join("daemon.json"), &record).unwrap();
        }
        std::fs::rename(&own, root.path().join("away")).unwrap();
        std::os::unix::fs::symlink(&victim, &own).unwrap();
        assert!(listed(&register).is_empty());
        assert!(!root.path().join("away/daemon.json").exists());
        let left: Vec<_> = std::fs::read_dir(&victim).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(Register::open(&own).is_err());
        assert!(Register::open(&own.join("")).is_err(), "a slash behind it");
        assert!(list(&own).is_empty() && victim.join("daemon.json").exists());
    }

    #[test]
    fn pipes_and_links_in_a_runtime_directory_are_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let (dir, register) = of_another(root.path());
        let elsewhere = root.path().join("elsewhere");
        std::fs::rename(dir.join("daemon.json"), &elsewhere).unwrap();
        let own = Register::make(&root.path().join("own")).unwrap();
        for dir in [dir, root.path().join("own")] {
            let fifo = rustix::fs::FileType::Fifo;
            let mode = rustix::fs::Mode::from(0o600);
            let lock = dir.join("linked.lock");
            for path in [&dir.join("pipe.json"), &lock] {
                rustix::fs::mknodat(rustix::fs::CWD, path, fifo, mode, 0).unwrap();
            }
            std::fs::write(dir.join("large.json"), vec![b' '; 1 << 20]).unwrap();
            std::os::unix::fs::symlink(&elsewhere, dir.join("linked.json")).unwrap();
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let found = listed(&register).len() + listed(&own).len();
            let held = register.is_locked("linked.lock").is_ok();
            let _ = sender.send((found, held, own.lock("linked.lock").is_ok()));
        });
        let told = receiver.recv_timeout(Duration::from_secs(10));
        assert_eq!(told, Ok((0, false, false)));
    }

    #[test]
    fn directories_that_others_write_to_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let (dir, _) = of_another(root.path());
        let uid = rustix::process::geteuid().as_raw();
        let mode = std::os::unix::fs::PermissionsExt::from_mode;
        std::fs::set_permissions(&dir, mode(0o1777)).unwrap();
        assert!(Register::of_users(root.path()).is_empty());
        let refused = check_free(&dir, Path::new("/mnt/none")).unwrap_err();
        assert!(
            refused
                .message
                .contains("its mode 1777 lets others write to it"),
            "{refused}"
        );
        let refused = Registration::take(&dir, Path::new("/mnt/none")).unwrap_err();
        assert!(refused.message.contains("choose another one"), "{refused}");
        let kept = std::fs::metadata(&dir).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&kept) & 0o7777, 0o1777);
        std::fs::set_permissions(&dir, mode(0o755)).unwrap();
        assert_eq!(Register::of_users(root.path()).len(), 1);
        if uid == 0 {
            std::os::unix::fs::chown(&dir, Some(12345), None).unwrap();
            assert!(Register::of_users(root.path()).is_empty());
            // Root may look at it by name, and mounts with one of its own.
            let refused = Registration::take(&dir, Path::new("/mnt/none")).unwrap_err();
            assert!(refused.message.contains("another user"), "{refused}");
            assert!(list(&dir).is_empty());
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 3);
            let users = root.path().join("12345");
            std::fs::rename(root.path().join("0"), &users).unwrap();
            assert_eq!(Register::of_users(root.path()).len(), 1);
        }
    }

    #[test]
    fn a_process_is_named_by_its_start() {
        let mut mine = record(Path::new("/"));
        assert!(mine.is_running());
        mine.started += 1;
        assert!(!mine.is_running());
        assert!(mine.wait_gone(Duration::ZERO));
    }
}
