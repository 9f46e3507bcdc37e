//! Mounts by the real command, one process each, with everything they keep in one directory.
//!
//! Tests run beside each other in one process, which starts others: each of those closes its copies
//! of all descriptors, and closing commits. Tests that watch for what is not committed yet, or
//! count commits, therefore write from a process of their own.

use crate::guard::{self, Guard, kill};
use bucketfs::mount::{point, record};
use libtest_mimic::Trial;
use rustix::process::Signal;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

/// The command under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_bucketfs");
/// What is waited for must come true in this time.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a test cannot do without, beside FUSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To be root.
    Root,
    /// A program in the PATH.
    Program(&'static str),
    /// A variable in the environment.
    #[allow(dead_code, reason = "not each test that uses this file needs one")]
    Variable(&'static str),
}

pub use Need::{Program, Root, Variable};

/// For what needs system calls that are unsafe here.
pub const PYTHON: Need = Program("python3");

/// Most tests run beside each other; one that empties the kernel's caches runs alone.
static ALONE: RwLock<()> = RwLock::new(());

/// Whether tests may take their time.
pub fn long() -> bool {
    std::env::var_os("BUCKETFS_TEST_LONG").is_some()
}

/// How a test runs.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Beside no other.
    pub alone: bool,
    /// On a `file:` store that tells what changes; most stores do not.
    pub watched: bool,
    /// It hangs if it takes longer.
    pub patience: Duration,
}

impl Default for Manner {
    fn default() -> Manner {
        Manner {
            alone: false,
            watched: true,
            patience: Duration::from_secs(45),
        }
    }
}

/// A test in a place of its own.
pub fn trial(needs: &[Need], name: &str, test: fn(&Place)) -> Trial {
    trial_as(Manner::default(), needs, name, test)
}

/// A test beside which no other runs.
pub fn trial_alone(needs: &[Need], name: &str, test: fn(&Place)) -> Trial {
    let manner = Manner {
        alone: true,
        ..Manner::default()
    };
    trial_as(manner, needs, name, test)
}

/// A test of which the `file:` store tells nobody what changes, as most stores.
pub fn trial_unwatched(needs: &[Need], name: &str, test: fn(&Place)) -> Trial {
    let manner = Manner {
        watched: false,
        ..Manner::default()
    };
    trial_as(manner, needs, name, test)
}

/// A test in a manner of its own.
pub fn trial_as(
    manner: Manner,
    needs: &[Need],
    name: &str,
    test: impl Fn(&Place) + Send + 'static,
) -> Trial {
    let missing = no_fuse().or_else(|| needs.iter().find_map(lacks));
    let alone = manner.alone;
    let named = name.to_owned();
    let trial = Trial::test(name, move || {
        let shared = (!alone).then(|| ALONE.read().unwrap_or_else(|e| e.into_inner()));
        let only = alone.then(|| ALONE.write().unwrap_or_else(|e| e.into_inner()));
        let place = Place::new(&named, manner);
        // The panic is caught, for the mounts have to end whatever happened.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            test(&place);
            place.end();
        }));
        drop((shared, only));
        if place.guard.tripped() {
            return Err(format!("it hung; the logs are:\n{}", place.logs()).into());
        }
        outcome.map_err(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default();
            format!("{text}\nthe logs are:\n{}", place.logs()).into()
        })
    });
    trial
        .with_ignored_flag(missing.is_some())
        .with_kind(missing.unwrap_or_default())
}

fn lacks(need: &Need) -> Option<String> {
    match need {
        Root => (!rustix::process::geteuid().is_root()).then(|| "needs root".into()),
        Program(name) => (!has_program(name)).then(|| format!("needs {name}")),
        Variable(name) => std::env::var_os(name)
            .is_none()
            .then(|| format!("needs {name}")),
    }
}

fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

fn no_fuse() -> Option<String> {
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    match opened {
        Err(_) => Some("needs /dev/fuse".into()),
        Ok(_) if rustix::process::geteuid().is_root() => None,
        Ok(_) => lacks(&Program("fusermount3")),
    }
}

/// The directory of one test: stores, mount points, and what daemons keep.
pub struct Place {
    root: PathBuf,
    watched: bool,
    guard: Arc<Guard>,
    mounts: Mutex<Vec<Arc<Mount>>>,
}

/// A mounted bucket and its daemon.
pub struct Mount {
    dir: PathBuf,
    log: PathBuf,
    run: PathBuf,
    pid: u32,
    child: Mutex<Option<Child>>,
    guard: Arc<Guard>,
    ends_well: bool,
}

/// What a program said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    fn new(name: &str, manner: Manner) -> Place {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        // Short, for the path of a socket below it has about a hundred bytes.
        let last = name.rsplit("::").next().unwrap();
        let root = guard::run_dir().join(format!("{number}-{last:.16}"));
        std::fs::create_dir(&root).unwrap();
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o711)).unwrap();
        std::fs::create_dir(root.join("store")).unwrap();
        Place {
            guard: Guard::new(&root, manner.patience),
            root,
            watched: manner.watched,
            mounts: Mutex::default(),
        }
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// What the `file:` store holds under a key.
    pub fn stored(&self, key: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.path("store").join(key))
    }

    /// Puts a file into the `file:` store behind the back of every mount, as its driver does:
    /// under another name first.
    pub fn store(&self, key: &str, bytes: &[u8]) {
        let fresh = self.path(&format!("fresh-{}", key.replace('/', "_")));
        std::fs::write(&fresh, bytes).unwrap();
        std::fs::rename(fresh, self.path("store").join(key)).unwrap();
    }

    /// Mounts the `file:` store.
    pub fn file(&self, name: &str, args: &[&str]) -> Arc<Mount> {
        let unwatched = ["--fault", "watch:error=unavailable"];
        let more: &[&str] = if self.watched { &[] } else { &unwatched };
        self.mount(name, &self.file_url(), &[args, more].concat(), true)
    }

    /// Mounts a new `memory:` store.
    pub fn memory(&self, name: &str, args: &[&str]) -> Arc<Mount> {
        self.mount(name, "memory:", args, true)
    }

    /// Mounts the `file:` store with faults; such a mount need not end well.
    pub fn faulty(&self, name: &str, faults: &str, args: &[&str]) -> Arc<Mount> {
        let args = [&["--fault", faults], args].concat();
        self.mount(name, &self.file_url(), &args, false)
    }

    pub fn file_url(&self) -> String {
        format!("file://{}", self.path("store").display())
    }

    /// Mounts a URL.
    pub fn mount(&self, name: &str, url: &str, args: &[&str], ends_well: bool) -> Arc<Mount> {
        let dir = self.path(name);
        let _ = std::fs::create_dir(&dir);
        let command = self.command(&[&["mount", "-f", url, dir.to_str().unwrap()], args].concat());
        self.started(name, command, ends_well)
    }

    /// A command that keeps everything here.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(args);
        self.settle(&mut command);
        command
    }

    /// Makes a command that runs ours keep everything here.
    pub fn settle(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BUCKETFS_") {
                command.env_remove(name);
            }
        }
        command
            .env_remove("NOTIFY_SOCKET")
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("BUCKETFS_RUNTIME_DIR", self.path("run"))
            // Root's would be the system's.
            .env("BUCKETFS_STATE_DIR", self.path("state"));
    }

    /// Starts a daemon in the foreground and waits until it serves the directory `name`.
    pub fn started(&self, name: &str, mut command: Command, ends_well: bool) -> Arc<Mount> {
        let dir = self.path(name);
        let log = self.path(&format!("{name}.log"));
        let output = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let child = command.spawn().unwrap();
        self.guard.adopt(&child);
        let mount = Arc::new(Mount {
            dir,
            log,
            run: self.path("run"),
            pid: child.id(),
            child: Mutex::new(Some(child)),
            guard: self.guard.clone(),
            ends_well,
        });
        self.mounts.lock().unwrap().push(mount.clone());
        eventually("it is mounted", || {
            assert!(!mount.has_ended(), "it did not start: {}", mount.log());
            mount.is_listed() && mount.is_mounted()
        });
        mount
    }

    /// Runs a program to its end, and kills it when that takes too long.
    pub fn run(&self, command: &mut Command) -> Said {
        self.start(command).end()
    }

    /// Starts a program.
    pub fn start(&self, command: &mut Command) -> Process {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        self.guard.adopt(&child);
        Process {
            child: Some(child),
            guard: self.guard.clone(),
        }
    }

    /// A Python script, with arguments. `attempt(f, ...)` gives "OK" or the name of the errno.
    pub fn python(&self, script: &str, args: &[&Path]) -> Command {
        const BEFORE: &str = "\
import ctypes, errno, fcntl, mmap, os, signal, sys, time
def attempt(f, *args):
    try:
        f(*args)
        return 'OK'
    except OSError as e:
        return errno.errorcode[e.errno]
def say(*words):
    print(*words, flush=True)
";
        let usual = Path::new("/usr/bin/python3");
        let python = if usual.exists() {
            usual
        } else {
            Path::new("python3")
        };
        let mut command = Command::new(python);
        command.args(["-I", "-S", "-c", &format!("{BEFORE}{script}")]);
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Runs a script to its end, and gives what it printed.
    pub fn script(&self, script: &str, args: &[&Path]) -> String {
        let said = self.run(&mut self.python(script, args));
        assert_eq!(said.code, Some(0), "{said:?}");
        said.stdout.trim_end().to_owned()
    }

    /// Ends all mounts and looks how they ended.
    fn end(&self) {
        let mounts = std::mem::take(&mut *self.mounts.lock().unwrap());
        for mount in mounts {
            if mount.ends_well {
                mount.send(Signal::TERM);
                mount.ends(0);
            }
            let log = mount.log();
            assert!(!log.contains("panicked"), "{log}");
        }
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(&self.root)
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = entry.path();
            if path.extension().is_some_and(|end| end == "log") {
                text += &format!("{}:\n", path.display());
                text += &std::fs::read_to_string(path).unwrap_or_default();
            }
        }
        text
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.guard.clear();
        for mount in self
            .mounts
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .drain(..)
        {
            if let Some(mut child) = mount.child.lock().unwrap_or_else(|e| e.into_inner()).take() {
                let _ = child.wait();
                self.guard.release(mount.pid);
            }
        }
    }
}

impl Mount {
    /// A path in the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether something is mounted there. It asks no daemon.
    pub fn is_mounted(&self) -> bool {
        point::mounted_at(&self.dir).unwrap().is_some()
    }

    fn is_listed(&self) -> bool {
        let listed = record::list(&self.run);
        listed.iter().any(|listed| listed.record.pid == self.pid)
    }

    /// What `bucketfs status --json` tells of it.
    pub fn status(&self) -> serde_json::Value {
        let mut command = Command::new(BINARY);
        command
            .args(["status", "--json"])
            .arg(&self.dir)
            .env("BUCKETFS_RUNTIME_DIR", &self.run);
        let output = command.output().unwrap();
        let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        all[0].clone()
    }

    /// How many requests of an operation were sent to the store.
    pub fn requests(&self, operation: &str) -> u64 {
        self.status()["requests"]["operations"][operation]["count"]
            .as_u64()
            .unwrap_or(0)
    }

    /// How many bytes came from the store.
    pub fn received(&self) -> u64 {
        self.status()["requests"]["operations"]["get"]["received"]
            .as_u64()
            .unwrap_or(0)
    }

    /// A number of the filesystem's part of the status.
    pub fn number(&self, name: &str) -> u64 {
        self.status()["fs"][name].as_u64().unwrap()
    }

    pub fn has_ended(&self) -> bool {
        let mut child = self.child.lock().unwrap();
        match &mut *child {
            Some(running) => match running.try_wait().unwrap() {
                Some(_) => {
                    self.guard.release(self.pid);
                    true
                }
                None => false,
            },
            None => true,
        }
    }

    /// Waits for its end and looks at its exit code.
    pub fn ends(&self, code: i32) {
        eventually("the daemon ends", || self.has_ended());
        let mut child = self.child.lock().unwrap();
        if let Some(mut child) = child.take() {
            let status = child.wait().unwrap();
            assert_eq!(status.code(), Some(code), "{status:?}: {}", self.log());
        }
    }

    /// Sends the daemon a signal. The number of one that has ended may be another process's by now.
    fn send(&self, signal: Signal) {
        if !self.has_ended() {
            kill(self.pid, signal);
        }
    }

    /// Kills the daemon.
    pub fn kill(&self) {
        self.send(Signal::KILL);
        eventually("the daemon is killed", || self.has_ended());
        self.child.lock().unwrap().take();
    }
}

/// A program that was started. It is killed when it is dropped.
pub struct Process {
    child: Option<Child>,
    guard: Arc<Guard>,
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Its standard input, where that is a pipe.
    pub fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.as_mut().unwrap().stdin.take().unwrap()
    }

    /// Reads its standard output up to the end of a line.
    pub fn line(&mut self) -> String {
        use std::io::Read;
        let stdout = self.child.as_mut().unwrap().stdout.as_mut().unwrap();
        let mut line = Vec::new();
        let mut byte = [0];
        while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    pub fn end(mut self) -> Said {
        let mut child = self.child.take().unwrap();
        let pid = child.id();
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let out = std::thread::spawn(move || io::read_to_string(out.unwrap()).unwrap());
        let err = std::thread::spawn(move || io::read_to_string(err.unwrap()).unwrap());
        let status = child.wait().unwrap();
        self.guard.release(pid);
        Said {
            code: status.code(),
            stdout: out.join().unwrap(),
            stderr: err.join().unwrap(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            self.guard.release(child.id());
        }
    }
}

/// Waits until something holds, and fails with its name when it does not.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The errno with which something fails.
#[track_caller]
pub fn fails<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("it did not fail"),
        Err(error) => error.raw_os_error().unwrap(),
    }
}

/// Bytes that differ wherever they are taken from.
pub fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut bytes = Vec::with_capacity(length + 4);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
