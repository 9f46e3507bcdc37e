//! A mounted bucket, and the server behind it that counts.

use crate::harness::{Manner, Mount, Need, Place, trial_as};
use crate::http::{Counts, Server};
use crate::store::{Conditions, Store};
use libtest_mimic::Trial;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// The bucket of every mount.
pub const BUCKET: &str = "bucket";

/// A mount of a bucket that was filled before.
pub struct World<'a> {
    pub place: &'a Place,
    /// What mounting has cost.
    pub mounting: String,
    server: Arc<Server>,
    mount: Arc<Mount>,
}

impl<'a> World<'a> {
    /// Mounts a bucket with these objects.
    pub fn new(place: &'a Place, fill: impl FnOnce(&mut Objects<'_>)) -> World<'a> {
        let server = Arc::new(Server::start(0).unwrap());
        server.with(|store| {
            store.create_bucket(BUCKET);
            fill(&mut Objects(store));
        });
        let mount = mounted(place, &server, "mnt", &[]);
        World {
            place,
            mounting: server.take().to_string(),
            server,
            mount,
        }
    }

    /// A second mount of it.
    pub fn again(&self) -> World<'a> {
        self.another("again", &[])
    }

    /// A mount of it in a directory of this name, with these options.
    pub fn another(&self, name: &str, args: &[&str]) -> World<'a> {
        let server = self.server.clone();
        let mount = mounted(self.place, &server, name, args);
        World {
            place: self.place,
            mounting: server.take().to_string(),
            server,
            mount,
        }
    }

    /// Ends the mount in order.
    pub fn end(self) -> World<'a> {
        let pid = rustix::process::Pid::from_raw(self.mount.pid() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.mount.ends(0);
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.mount.path(name)
    }

    /// What was asked for since the last call.
    pub fn counts(&self) -> Counts {
        self.server.take()
    }

    /// The same as words.
    pub fn cost(&self) -> String {
        self.counts().to_string()
    }

    /// Puts an object behind the mount's back.
    pub fn put(&self, key: &str, bytes: impl Into<bytes::Bytes>) {
        self.server.with(|store| Objects(store).put(key, bytes));
    }

    /// The bytes of an object.
    pub fn stored(&self, key: &str) -> Option<bytes::Bytes> {
        let get = |store: &mut Store| store.get(BUCKET, key, &Conditions::default());
        Some(self.server.with(get).ok()?.bytes)
    }

    /// Lists a directory as `ls -l` does.
    pub fn ls(&self, name: &str) -> usize {
        list(&self.path(name))
    }

    /// Runs a script in the mount, to its end, with success.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let mut command = Command::new("bash");
        command.args(["-euc", script]).current_dir(self.path(""));
        command.env("HOME", self.place.path(""));
        command.env("OUT", self.place.path(""));
        let said = self.place.run(&mut command);
        assert_eq!(said.code, Some(0), "{script}: {said:?}");
        said.stdout
    }
}

/// Mounts the bucket of a server.
fn mounted(place: &Place, server: &Server, name: &str, args: &[&str]) -> Arc<Mount> {
    let (dir, url) = (place.path(name), server.url());
    fs::create_dir(&dir).unwrap();
    let bucket = format!("s3://{BUCKET}");
    let mut command = place.command(&["mount", "-f", &bucket, dir.to_str().unwrap()]);
    command.args(["--endpoint-url", &url, "--region", "us-east-1"]);
    command.args(args);
    // What is known must not grow old because the machine is slow.
    command.args(["--metadata-ttl", "60"]);
    for (variable, _) in std::env::vars_os() {
        let lower = variable.to_string_lossy().to_lowercase();
        if lower.starts_with("aws_") || lower.ends_with("_proxy") {
            command.env_remove(variable);
        }
    }
    command
        .env("AWS_ACCESS_KEY_ID", "AKIDTEST")
        .env("AWS_SECRET_ACCESS_KEY", "secret");
    place.started(name, command, true)
}

/// Names and attributes of all that is in a directory.
pub fn list(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .inspect(|entry| assert!(entry.as_ref().unwrap().metadata().is_ok()))
        .count()
}

/// Puts objects where no client sees it.
pub struct Objects<'a>(&'a mut Store);

impl Objects<'_> {
    pub fn put(&mut self, key: &str, bytes: impl Into<bytes::Bytes>) {
        let any = Conditions::default();
        let kind = vec![("content-type".into(), "text/plain".into())];
        let put = self.0.put((BUCKET, key), bytes.into(), kind, &any);
        assert!(put.is_ok());
    }

    /// From now on etags are numbers, none given twice, and parts are copied of any version.
    pub fn number_etags(&mut self) {
        self.0.last_etag = Some(0);
    }

    /// The same as s3fs puts it.
    pub fn put_with_mode(&mut self, key: &str, bytes: &str, mode: u32) {
        let any = Conditions::default();
        let headers = [
            ("content-type", "application/octet-stream".into()),
            ("x-amz-meta-mode", mode.to_string()),
            ("x-amz-meta-mtime", "981173106".into()),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value));
        let bytes = bytes.to_owned().into();
        let put = self.0.put((BUCKET, key), bytes, headers.into(), &any);
        assert!(put.is_ok());
    }
}

/// A test of one row.
pub fn trial(needs: &[Need], name: &str, test: impl Fn(&Place) + Send + 'static) -> Trial {
    let manner = Manner {
        alone: true,
        patience: Duration::from_secs(120),
        ..Manner::default()
    };
    trial_as(manner, needs, name, test)
}
