//! Runs the command with everything it keeps in one temporary directory.

use rustix::process::{Pid, Signal};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The command under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_bucketfs");
/// No command may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A temporary directory with a mount point `mnt`. At its end every mount below it is taken away
/// and every daemon that was started from it is killed.
pub struct Place {
    root: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("mnt")).unwrap();
        Place { root }
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().canonicalize().unwrap().join(name)
    }

    /// The mount point.
    pub fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    /// A path as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A command that keeps everything here.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        without_settings(&mut command);
        command
            .args(args)
            .env_remove("NOTIFY_SOCKET")
            .env("BUCKETFS_RUNTIME_DIR", self.path("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if args.first() == Some(&"mount") {
            command
                .env("BUCKETFS_STAGING_DIR", self.path("staging"))
                .env("BUCKETFS_STATE_DIR", self.path("state"));
        }
        command
    }

    /// Runs the command to its end.
    pub fn run(&self, args: &[&str]) -> Said {
        finish(self.command(args))
    }

    /// Mounts `memory:` on `mnt` with further arguments, and gives the daemon's pid.
    pub fn mount(&self, args: &[&str]) -> u32 {
        let mnt = self.text("mnt");
        let said = self.run(&[&["mount", "memory:", &mnt], args].concat());
        assert_eq!(said.code, Some(0), "{said:?}");
        self.pid()
    }

    /// The status of the mount on `mnt`.
    pub fn status(&self) -> serde_json::Value {
        let said = self.run(&["status", "--json", &self.text("mnt")]);
        assert_eq!(said.code, Some(0), "{said:?}");
        let all: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
        all[0].clone()
    }

    pub fn pid(&self) -> u32 {
        let pid = self.status()["pid"].as_u64().unwrap();
        pid.try_into().unwrap()
    }

    /// Whether something is mounted on `mnt`. It asks no daemon.
    pub fn is_mounted(&self) -> bool {
        bucketfs::mount::point::mounted_at(&self.mnt())
            .unwrap()
            .is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The name of a runtime directory is this place's alone.
        for listed in bucketfs::mount::record::list(&self.path("run")) {
            kill(listed.record.pid, Signal::KILL);
        }
        let mut attempts = 0;
        while self.is_mounted() && attempts < 3 {
            attempts += 1;
            let _ = Command::new("umount").arg("-l").arg(self.mnt()).output();
        }
    }
}

/// Keeps settings of this process's environment from a command.
pub fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BUCKETFS_") {
            command.env_remove(name);
        }
    }
}

/// Waits for a command, and kills it when that takes too long.
pub fn finish(mut command: Command) -> Said {
    end(command.spawn().unwrap())
}

/// Waits for a process that was started, and kills it when that takes too long.
pub fn end(mut child: Child) -> Said {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let out = std::thread::spawn(move || std::io::read_to_string(out.unwrap()).unwrap());
    let err = std::thread::spawn(move || std::io::read_to_string(err.unwrap()).unwrap());
    let began = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("the command did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Said {
        code,
        stdout: out.join().unwrap(),
        stderr: err.join().unwrap(),
    }
}

/// Sends a signal to one process.
pub fn kill(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
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

/// Whether a process runs.
pub fn runs(pid: u32) -> bool {
    bucketfs::process::start_of(pid).is_some()
}

/// Why nothing can be mounted here, if so.
pub fn no_fuse() -> Option<&'static str> {
    let open = |path: &Path| std::fs::File::options().read(true).write(true).open(path);
    match open(Path::new("/dev/fuse")) {
        Err(_) => Some("needs /dev/fuse"),
        Ok(_) if rustix::process::geteuid().is_root() => None,
        Ok(_) if has_program("fusermount3") => None,
        Ok(_) => Some("needs root or fusermount3"),
    }
}

/// Whether a program is in the PATH.
pub fn has_program(name: impl AsRef<OsStr>) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name.as_ref()).is_file())
}
