//! The register of mounts: one record and one lock for each, in the runtime directory.
//!
//! A mount is alive for as long as its daemon holds the lock. What a killed one leaves behind is
//! removed by whoever looks next.

use super::dirs::{self, Lock};
use crate::clock;
use crate::exit::Failure;
use crate::process::start_of;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
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
    /// The control socket.
    pub socket: PathBuf,
}

/// The place of this process in the register. It is given up when this is dropped.
#[derive(Debug)]
pub struct Registration {
    lock: Option<Lock>,
    record: PathBuf,
    socket: PathBuf,
}

impl Registration {
    /// Takes the place of a mount point. Refused while another daemon serves it; one that ends just
    /// now, as after umount(8), or that has not told yet what it mounts, is waited for.
    pub fn take(root: &Path, dir: &Path) -> Result<Registration, Failure> {
        Registration::take_within(root, dir, PATIENCE)
    }

    fn take_within(root: &Path, dir: &Path, patience: Duration) -> Result<Registration, Failure> {
        let unusable = |error: io::Error| {
            Failure::other(format!(
                "cannot use the runtime directory {}: {error}; choose another one with BUCKETFS_RUNTIME_DIR",
                root.display()
            ))
        };
        dirs::private(root).map_err(unusable)?;
        let end = clock::now() + patience;
        let lock = loop {
            match Lock::take(&file(root, dir, "lock")).map_err(unusable)? {
                Some(lock) => break lock,
                None if clock::now() < end && !is_served(root, dir) => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                None => return Err(taken(root, dir)),
            }
        };
        let registration = Registration {
            lock: Some(lock),
            record: file(root, dir, "json"),
            socket: file(root, dir, "sock"),
        };
        registration.clean();
        Ok(registration)
    }

    /// Where the control socket belongs.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Shows the mount to others.
    pub fn publish(&self, record: &Record) -> io::Result<()> {
        let new = self.record.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(record)?)?;
        std::fs::rename(new, &self.record)
    }

    fn clean(&self) {
        let _ = std::fs::remove_file(&self.record);
        let _ = std::fs::remove_file(&self.socket);
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
    match Lock::is_held(&file(root, dir, "lock")) && is_mounted(dir) {
        true => Err(taken(root, dir)),
        false => Ok(()),
    }
}

fn is_mounted(dir: &Path) -> bool {
    let line = super::point::mounted_at(dir);
    line.is_ok_and(|line| line.is_some_and(|line| line.is_ours()))
}

/// Whether a living daemon has told that it mounts there, and does.
fn is_served(root: &Path, dir: &Path) -> bool {
    let record = read(&file(root, dir, "json"));
    is_mounted(dir) && record.is_some_and(|record| record.is_running())
}

/// The refusal of a mount point that another daemon has.
fn taken(root: &Path, dir: &Path) -> Failure {
    let shown = dir.display();
    Failure::mount_point(match read(&file(root, dir, "json")) {
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

/// The living mounts of a runtime directory, by mount point. What dead ones left is removed.
pub fn list(root: &Path) -> Vec<Listed> {
    let mut found: Vec<Listed> = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .filter_map(|path| {
            let record = read(&path)?;
            match Lock::take(&path.with_extension("lock")) {
                Ok(Some(lock)) => {
                    drop(Registration {
                        lock: Some(lock),
                        socket: path.with_extension("sock"),
                        record: path,
                    });
                    None
                }
                // Somebody else's register may be read-only to us; the process tells then.
                Err(_) if !record.is_running() => None,
                Ok(None) | Err(_) => Some(Listed {
                    record,
                    socket: path.with_extension("sock"),
                }),
            }
        })
        .collect();
    found.sort_by(|a, b| a.record.dir.cmp(&b.record.dir));
    found
}

fn read(path: &Path) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// The file of a mount point; its name is a hash, for a path does not fit into a name.
fn file(root: &Path, dir: &Path, extension: &str) -> PathBuf {
    let id = dirs::hash(dir.as_os_str().as_bytes());
    root.join(format!("{id:016x}.{extension}"))
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

    #[test]
    fn a_process_is_named_by_its_start() {
        let mut mine = record(Path::new("/"));
        assert!(mine.is_running());
        mine.started += 1;
        assert!(!mine.is_running());
        assert!(mine.wait_gone(Duration::ZERO));
    }
}
