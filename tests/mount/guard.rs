//! Keeps a test from leaving a mount or a process behind, whatever becomes of it.

use bucketfs::mount::point;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Weak};
use std::time::{Duration, Instant};

/// What one test has to clean up.
#[derive(Debug)]
pub struct Guard {
    root: PathBuf,
    until: Instant,
    tripped: AtomicBool,
    processes: Mutex<Vec<u32>>,
}

impl Guard {
    /// Guards what is mounted below a directory, for so long.
    pub fn new(root: &Path, patience: Duration) -> Arc<Guard> {
        let guard = Arc::new(Guard {
            root: root.to_owned(),
            until: Instant::now() + patience,
            tripped: AtomicBool::new(false),
            processes: Mutex::default(),
        });
        WATCHED.lock().unwrap().push(Arc::downgrade(&guard));
        guard
    }

    /// Guards a process too.
    pub fn adopt(&self, child: &Child) {
        self.processes.lock().unwrap().push(child.id());
        if let Some((_, reaper)) = &mut *REAPER.lock().unwrap() {
            let _ = writeln!(reaper, "{}", child.id());
        }
    }

    /// A process has ended: its number may be another's soon.
    pub fn release(&self, pid: u32) {
        self.processes.lock().unwrap().retain(|known| *known != pid);
        if let Some((_, reaper)) = &mut *REAPER.lock().unwrap() {
            let _ = writeln!(reaper, "-{pid}");
        }
    }

    /// Whether the watchdog had to intervene.
    pub fn tripped(&self) -> bool {
        self.tripped.load(Ordering::Relaxed)
    }

    /// Frees whoever waits: ends the processes, takes the mounts away and cuts their connections.
    pub fn clear(&self) {
        for pid in self.processes.lock().unwrap().iter() {
            kill(*pid, Signal::KILL);
        }
        for _ in 0..8 {
            let mounts = point::table().unwrap_or_default();
            let mut below = mounts
                .iter()
                .filter(|line| line.path.starts_with(&self.root))
                .peekable();
            if below.peek().is_none() {
                return;
            }
            for line in below {
                // Forced, which cuts the connection: who waits in it is freed even where the
                // control filesystem of FUSE is not mounted.
                let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
                if rustix::mount::unmount(&line.path, flags).is_err() {
                    let _ = Command::new("fusermount3")
                        .arg("-uz")
                        .arg(&line.path)
                        .stderr(Stdio::null())
                        .status();
                }
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Sends a signal to one process.
pub fn kill(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

static WATCHED: LazyLock<Mutex<Vec<Weak<Guard>>>> = LazyLock::new(|| {
    std::thread::spawn(watch);
    Mutex::default()
});

fn watch() {
    loop {
        std::thread::sleep(Duration::from_millis(250));
        let mut watched = WATCHED.lock().unwrap();
        watched.retain(|guard| guard.strong_count() > 0);
        let due: Vec<Arc<Guard>> = watched.iter().filter_map(Weak::upgrade).collect();
        drop(watched);
        for guard in due {
            if Instant::now() > guard.until && !guard.tripped.swap(true, Ordering::Relaxed) {
                guard.clear();
            }
        }
    }
}

/// A process that cleans up after this one, should that be killed.
static REAPER: LazyLock<Mutex<Option<(Child, ChildStdin)>>> = LazyLock::new(|| {
    const SCRIPT: &str = r#"
        trap '' INT TERM HUP
        pids=" "
        while read -r pid; do
            case $pids:$pid in
            *" ${pid#-} "*:-*) pids=${pids%% ${pid#-} *}" "${pids#* ${pid#-} } ;;
            *:-*) ;;
            *) pids="$pids$pid " ;;
            esac
        done
        for pid in $pids; do kill -KILL "$pid"; done
        while read -r _ _ _ _ dir _; do
            case $dir in "$1"/*) umount -f -l "$dir" ;; esac
        done </proc/self/mountinfo
    "#;
    let child = Command::new("sh")
        .args(["-c", SCRIPT, "sh"])
        .arg(RUN.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Mutex::new(child.ok().and_then(|mut child| {
        let stdin = child.stdin.take()?;
        Some((child, stdin))
    }))
});

/// The directory of all tests of this run.
static RUN: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .prefix("bucketfs-mount-")
        .permissions(std::fs::Permissions::from_mode(0o711))
        .tempdir()
        .unwrap()
});

/// The directory of all tests of this run, without links in its path.
pub fn run_dir() -> PathBuf {
    RUN.path().canonicalize().unwrap()
}

/// Ends the process that would have cleaned up, and removes the directory of this run.
pub fn finish() {
    if let Some((mut child, stdin)) = REAPER.lock().unwrap().take() {
        drop(stdin);
        let _ = child.wait();
    }
    let busy = point::table()
        .unwrap_or_default()
        .iter()
        .any(|line| line.path.starts_with(run_dir()));
    if !busy {
        let _ = std::fs::remove_dir_all(run_dir());
    }
}
