//! A FUSE session within this process, and how it is ended without ever hanging.

use super::point;
use crate::config::{Access, KernelFlags, Settings};
use crate::driver::Driver;
use crate::exit::{Exit, Failure};
use crate::fs::{DrainReport, Fs, FsOptions};
use crate::fuse::{Edge, NotifyQueue};
use crate::layer::FaultPlan;
use crate::task;
use fuser::{MountOption, SessionACL};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Threads that read requests of the kernel.
const THREADS: usize = 4;
/// How far the kernel reads ahead, in KiB: as much as one request may hold.
const READ_AHEAD: &str = "1024";
/// How long a call of umount(2) or `fusermount3` may take.
const UNMOUNTING: Duration = Duration::from_secs(10);
/// How long the session's threads may take to see that it has ended.
const ENDING: Duration = Duration::from_secs(5);

/// What the kernel is told about a mount.
#[derive(Clone, Debug, Default)]
pub struct KernelOptions {
    /// What `mount` and `df` show as the source: the URL without secrets.
    pub source: String,
    /// Who may see it.
    pub access: Access,
    /// Refuse every change.
    pub read_only: bool,
    /// Flags of the mount.
    pub flags: KernelFlags,
    /// What makes it wait, for tests.
    pub faults: Option<Arc<FaultPlan>>,
}

impl KernelOptions {
    /// The options of a mount's settings.
    pub fn of(settings: &Settings) -> Self {
        KernelOptions {
            source: settings.store.location.to_string(),
            access: settings.access,
            read_only: settings.read_only,
            flags: settings.kernel,
            faults: None,
        }
    }

    fn config(&self) -> fuser::Config {
        let flags = self.flags;
        // A comma would end the option on its way through fusermount3.
        let source = self.source.replace('\\', "%5C").replace(',', "%2C");
        let mut options = vec![
            MountOption::FSName(source),
            // As a plain option it gets into the type also where mount(2) is called directly.
            MountOption::CUSTOM("subtype=bucketfs".into()),
            MountOption::DefaultPermissions,
        ];
        let mut add = |wanted: bool, option| {
            if wanted {
                options.push(option);
            }
        };
        add(self.read_only, MountOption::RO);
        add(flags.dev, MountOption::Dev);
        add(!flags.dev, MountOption::NoDev);
        add(flags.suid, MountOption::Suid);
        add(!flags.suid, MountOption::NoSuid);
        add(flags.noexec, MountOption::NoExec);
        add(flags.noatime, MountOption::NoAtime);
        add(flags.sync, MountOption::Sync);
        add(flags.dirsync, MountOption::DirSync);
        let mut config = fuser::Config::default();
        config.mount_options = options;
        config.acl = match self.access {
            Access::Owner => SessionACL::Owner,
            Access::Root => SessionACL::RootAndOwner,
            Access::Other => SessionACL::All,
        };
        config.n_threads = Some(THREADS);
        config
    }
}

/// A mounted filesystem. Dropping it takes the mount away without sending what is dirty; call
/// [`Session::close`] or [`Session::unmount`] for an orderly end.
#[derive(Debug)]
pub struct Session {
    fs: Arc<Fs>,
    dir: PathBuf,
    runtime: Handle,
    /// The mount's device number, to know it from one that somebody mounts in its place.
    device: Option<(u32, u32)>,
    /// Becomes true when the last FUSE thread has ended.
    ended: watch::Receiver<bool>,
    /// Whether it was away and went on: its end was waited for in vain once.
    lingers: AtomicBool,
}

/// What came of unmounting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// The session has ended.
    Gone,
    /// It is out of the tree, and ends with its last open file and its last copy in another mount
    /// namespace.
    Detached,
}

impl Session {
    /// Mounts a bucket on a directory. What has to wait for the store runs on `runtime`, which
    /// needs a thread of its own; this call blocks and must not be made on it.
    pub fn start(
        runtime: &Handle,
        driver: Arc<dyn Driver>,
        options: FsOptions,
        kernel: &KernelOptions,
        dir: &Path,
    ) -> Result<Session, Failure> {
        let dir = point::locate(dir)?;
        available(kernel.access)?;
        let queue = NotifyQueue::new();
        let fs = {
            let _inside = runtime.enter();
            Fs::new(driver, options, queue.clone()).map_err(|error| {
                Failure::other(format!("cannot prepare the filesystem: {error}"))
            })?
        };
        let edge = Edge::new(fs.clone(), runtime.clone(), kernel.faults.clone());
        let (mount, pending) = (edge.mount(), edge.pending());
        let session = fuser::Session::new(edge, &dir, &kernel.config())
            .map_err(|error| refused(&dir, &error))?;
        queue
            .attach(&session, pending)
            .map_err(|error| refused(&dir, &error))?;
        let line = point::mounted_at(&dir).ok().flatten();
        if let Some(line) = &line {
            // Nobody else sets it.
            let _ = mount.set(line.id);
        }
        let device = line.map(|line| line.device);
        let no_threads =
            |error: io::Error| Failure::other(format!("cannot start FUSE threads: {error}"));
        let threads = disarm(session.spawn().map_err(no_threads)?).map_err(no_threads)?;
        let (sender, ended) = watch::channel(false);
        let session = Session {
            fs,
            dir,
            runtime: runtime.clone(),
            device,
            ended,
            lingers: AtomicBool::new(false),
        };
        std::thread::Builder::new()
            .name("session-end".into())
            .spawn(move || {
                match threads.join() {
                    Ok(Ok(())) => log::debug!("the FUSE session has ended"),
                    Ok(Err(error)) => log::error!("the FUSE session has ended: {error}"),
                    Err(_) => log::error!("the FUSE session has ended by a panic"),
                }
                let _ = sender.send(true);
            })
            .map_err(no_threads)?;
        session.widen_read_ahead();
        Ok(session)
    }

    /// The filesystem.
    pub fn fs(&self) -> &Arc<Fs> {
        &self.fs
    }

    /// The mount point, absolute and without links.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Whether the session has ended: nothing comes from the kernel any more.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits until the session has ended.
    pub async fn ended(&self) {
        // A sender that is gone has sent before, or its thread died: it has ended either way.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Takes the mount away. A busy one is `EBUSY` and stays, unless `lazy`.
    pub async fn detach(&self, lazy: bool) -> io::Result<Unmounted> {
        match self.take_away(false).await {
            Err(error) if is_busy(&error) && lazy => {
                // Once it is detached nobody is below the path any more.
                let dir = self.dir.clone();
                let looking = task::blocking(move || point::users(&dir));
                let users = looking.await.unwrap_or_default().join(", ");
                self.take_away(true).await?;
                log::warn!("{} is detached; in use by: {users}", self.dir.display());
            }
            other => other?,
        }
        let patience = match self.lingers.load(Ordering::Relaxed) {
            true => Duration::ZERO,
            false => ENDING,
        };
        match tokio::time::timeout(patience, self.ended()).await {
            Ok(()) => Ok(Unmounted::Gone),
            Err(_) => {
                self.lingers.store(true, Ordering::Relaxed);
                Ok(Unmounted::Detached)
            }
        }
    }

    async fn take_away(&self, lazy: bool) -> io::Result<()> {
        if !self.is_in_place() {
            // Somebody took it away already; its last files may be open yet.
            return Ok(());
        }
        let dir = self.dir.clone();
        let unmounting = task::blocking(move || point::unmount(&dir, lazy));
        match tokio::time::timeout(UNMOUNTING, unmounting).await {
            Ok(done) => done.map_err(io::Error::other)?,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Whether the mount point still shows this mount, and not another one or none.
    fn is_in_place(&self) -> bool {
        point::mounted_at(&self.dir).is_ok_and(|line| match (line, self.device) {
            (Some(line), Some(device)) => line.device == device,
            (line, _) => line.is_some(),
        })
    }

    /// Cuts the kernel off: whoever waits for an answer gets an error. It needs fusectl; without
    /// it the connection ends with this process. Tells whether it was cut.
    pub fn abort(&self) -> bool {
        let Some((_, minor)) = self.device else {
            return false;
        };
        let path = format!("/sys/fs/fuse/connections/{minor}/abort");
        // Only an existing file: a wrong number must not make one.
        let opened = std::fs::OpenOptions::new().write(true).open(&path);
        match opened.and_then(|mut file| file.write_all(b"1")) {
            Ok(()) => log::warn!("aborted the FUSE connection of {}", self.dir.display()),
            Err(error) => {
                log::debug!("cannot write {path}: {error}");
                return false;
            }
        }
        true
    }

    /// Ends the mount: sends what is dirty, unmounts, detaches what is busy, cuts off what does
    /// not end, and sends or keeps what came meanwhile. `hurry` ends the waiting for the store:
    /// then the rest is kept at once.
    pub async fn close(&self, patience: Duration, hurry: impl Future<Output = ()>) -> DrainReport {
        self.close_after(None, patience, hurry).await
    }

    /// [`Session::close`] for a mount that has been drained a moment ago. Gives both reports as
    /// one.
    pub async fn close_after(
        &self,
        drained: Option<DrainReport>,
        mut patience: Duration,
        hurry: impl Future<Output = ()>,
    ) -> DrainReport {
        let mut hurry = std::pin::pin!(hurry);
        let mut report = match drained {
            Some(report) => report,
            None => tokio::select! {
                report = self.fs.drain(patience) => report,
                () = &mut hurry => {
                    patience = Duration::ZERO;
                    self.fs.drain(patience).await
                }
            },
        };
        let ended = match self.detach(true).await {
            Ok(Unmounted::Gone) => true,
            Ok(Unmounted::Detached) => false,
            Err(error) => {
                log::error!("cannot unmount {}: {error}", self.dir.display());
                false
            }
        };
        if !ended && self.abort() {
            let _ = tokio::time::timeout(ENDING, self.ended()).await;
        }
        if self.has_more_than(&report) {
            let rest = tokio::select! {
                report = self.fs.drain(patience) => report,
                () = &mut hurry, if !patience.is_zero() => self.fs.drain(Duration::ZERO).await,
            };
            super::merge(&mut report, rest);
        }
        report
    }

    /// Whether something may have been written since that report. What it could not send is kept
    /// already, and would be kept twice.
    fn has_more_than(&self, report: &DrainReport) -> bool {
        report.unsent.is_empty() || self.fs.status().dirty_files > report.unsent.len() as u64
    }

    /// [`Session::close`] for code that is not async. Fails when something could not be sent.
    pub fn unmount(self) -> Result<(), Failure> {
        let closing = self.close(super::DRAIN_PATIENCE, std::future::pending());
        let report = self.runtime.block_on(closing);
        match unsent(&report) {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// Lets the kernel read ahead by whole requests; without root the kernel's 128 KiB stay. The
    /// device number comes from the table of mounts: asking the mount could wait for ourselves.
    fn widen_read_ahead(&self) {
        let Some((major, minor)) = self.device else {
            return;
        };
        let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        if let Err(error) = std::fs::write(&path, READ_AHEAD) {
            log::debug!("cannot write {path}: {error}");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.is_in_place()
            && let Err(error) = point::unmount(&self.dir, true)
        {
            log::error!("cannot unmount {}: {error}", self.dir.display());
        }
        if !self.has_ended() {
            self.abort();
        }
    }
}

/// Takes the session's threads, and keeps fuser from unmounting when they have ended: it goes by
/// the path, does not see that the mount is gone already, and would take away what somebody else
/// mounts there in between. The descriptor of /dev/fuse stays open with it.
fn disarm(mut background: fuser::BackgroundSession) -> io::Result<Threads> {
    let none = std::thread::Builder::new().spawn(|| Ok(()))?;
    let threads = std::mem::replace(&mut background.guard, none);
    std::mem::forget(background);
    Ok(threads)
}

type Threads = std::thread::JoinHandle<io::Result<()>>;

/// The failure that a report with unsent files is.
pub(super) fn unsent(report: &DrainReport) -> Option<Failure> {
    let Some(first) = report.unsent.first() else {
        return untold(report);
    };
    let others = match report.unsent.len() {
        1 => String::new(),
        count => format!(" (and {} more files)", count - 1),
    };
    Some(Failure::new(
        Exit::Unsent,
        format!(
            "{} could not be sent: {}; its bytes are {}{others}",
            first.path,
            first.reason,
            first.fate()
        ),
    ))
}

/// The failure that a report with attributes is that could not be sent.
fn untold(report: &DrainReport) -> Option<Failure> {
    let first = report.untold.first()?;
    let others = match report.untold.len() {
        1 => String::new(),
        count => format!(" (and {} more)", count - 1),
    };
    Some(Failure::new(
        Exit::Unsent,
        format!(
            "the changed attributes of {} could not be sent: {}{others}",
            first.path, first.reason
        ),
    ))
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}

/// Whether FUSE can be used here at all, and as it is asked for.
fn available(access: Access) -> Result<(), Failure> {
    let no = |message: &str| Err(Failure::new(Exit::Fuse, message));
    let device = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    match device.map_err(|error| error.kind()) {
        Ok(_) => {}
        Err(io::ErrorKind::PermissionDenied) => {
            return no("this user may not open /dev/fuse; as root: chmod 666 /dev/fuse");
        }
        Err(_) => {
            return no(
                "there is no /dev/fuse; load the module (modprobe fuse), or give the container the device (--device /dev/fuse --cap-add SYS_ADMIN)",
            );
        }
    }
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    if access != Access::Owner && !user_allow_other() {
        return no(NEEDS_USER_ALLOW_OTHER);
    }
    Ok(())
}

const NEEDS_USER_ALLOW_OTHER: &str = "allow-other and allow-root need the line user_allow_other in /etc/fuse.conf when a user other than root mounts";

fn user_allow_other() -> bool {
    let text = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    text.lines().any(|line| line.trim() == "user_allow_other")
}

/// Why the mount was refused.
fn refused(dir: &Path, error: &io::Error) -> Failure {
    let text = error.to_string();
    let shown = dir.display();
    if text.contains("user_allow_other") {
        return Failure::new(Exit::Fuse, NEEDS_USER_ALLOW_OTHER);
    }
    if error.kind() == io::ErrorKind::NotFound && !rustix::process::geteuid().is_root() {
        return Failure::new(
            Exit::Fuse,
            "cannot run fusermount3, which users other than root need; install the package fuse3",
        );
    }
    if text.contains("EPERM") || text.contains("Operation not permitted") {
        return Failure::new(
            Exit::Fuse,
            format!(
                "cannot mount on {shown}: not permitted here; a container needs --device /dev/fuse --cap-add SYS_ADMIN"
            ),
        );
    }
    Failure::mount_point(format!("cannot mount on {shown}: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Unsent, Untold};

    #[test]
    fn the_kernel_is_told_what_was_asked() {
        let kernel = KernelOptions {
            source: "s3://b/a,b".into(),
            access: Access::Root,
            read_only: true,
            flags: KernelFlags {
                suid: true,
                noexec: true,
                ..KernelFlags::default()
            },
            faults: None,
        };
        let config = kernel.config();
        let has = |option| config.mount_options.contains(&option);
        assert!(has(MountOption::FSName("s3://b/a%2Cb".into())));
        assert!(has(MountOption::RO) && has(MountOption::NoExec));
        assert!(has(MountOption::Suid) && !has(MountOption::NoSuid));
        assert!(has(MountOption::NoDev) && !has(MountOption::Dev));
        assert_eq!(config.acl, SessionACL::RootAndOwner);
    }

    #[test]
    fn unsent_files_are_a_failure_with_their_place() {
        let mut report = DrainReport::default();
        assert_eq!(unsent(&report), None);
        for name in ["c", "d"] {
            report.untold.push(Untold {
                path: name.into(),
                reason: "the store is silent".into(),
            });
        }
        assert_eq!(
            unsent(&report),
            Some(Failure::new(
                Exit::Unsent,
                "the changed attributes of c could not be sent: the store is silent (and 1 more)"
            ))
        );
        for name in ["a", "b"] {
            report.unsent.push(Unsent {
                path: name.into(),
                kept_as: Ok(format!("/state/{name}")),
                reason: "the store is full".into(),
            });
        }
        assert_eq!(
            unsent(&report),
            Some(Failure::new(
                Exit::Unsent,
                "a could not be sent: the store is full; its bytes are kept as /state/a (and 1 more files)"
            ))
        );
    }
}
