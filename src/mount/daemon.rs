//! The process behind a mount: it starts, says that it is ready, waits for its end and ends well.

mod ready;
mod serve;

use super::dirs::{self, Claimed};
use super::local::LOCAL;
use super::record::{self, Record, Registration};
use super::session::{KernelOptions, Session};
use super::watchdog::Watchdog;
use super::{notify, point};
use crate::config::Settings;
use crate::control::search::Searched;
use crate::exit::{Exit, Failure};
use crate::fs::{DrainReport, Top};
use crate::layer::Stack;
use crate::writeback::conflict;
use crate::{clock, logging, process};
use ready::{Ready, Side};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;

/// Threads that wait for the store.
const WORKERS: usize = 2;

/// Everything a mount holds besides its session, in the order in which it is let go.
struct Holdings {
    registration: Registration,
    staging: Claimed,
    cache: Option<Claimed>,
    local: Option<Claimed>,
    state: PathBuf,
    log_file: Option<PathBuf>,
}

/// Mounts, and returns when the mount is ready; with `foreground` when it has ended. Must be
/// called while the process has a single thread.
pub fn run(settings: &Settings, dir: &Path, runtime_root: &Path) -> Result<(), Failure> {
    let dir = point::locate(dir)?;
    check_places(settings, &dir)?;
    record::check_free(runtime_root, &dir)?;
    point::check(&dir)?;
    if settings.foreground {
        let mut nobody = None;
        return start(settings, &dir, runtime_root, &mut nobody);
    }
    match ready::split().map_err(|error| Failure::other(format!("cannot fork: {error}")))? {
        Side::Waiting(outcome) => outcome,
        Side::Daemon(ready) => {
            let mut waiting = Some(ready);
            let outcome = start(settings, &dir, runtime_root, &mut waiting);
            if let Err(failure) = &outcome {
                log::error!(target: logging::REPORTED, "{failure}");
                if let Some(ready) = waiting {
                    ready.failed(failure);
                }
            }
            // The caller's process reports what is to be reported; this one ends here.
            std::process::exit(
                outcome
                    .map_or_else(|failure| failure.exit, |()| Exit::Ok)
                    .code()
                    .into(),
            )
        }
    }
}

fn staging_root(settings: &Settings) -> PathBuf {
    let given = settings.staging_dir.as_ref();
    given.map_or_else(dirs::staging_root, dirs::of_user)
}

fn state_root(settings: &Settings) -> PathBuf {
    super::state_root(&settings.store)
}

/// What the daemon must not keep below its own mount: it would wait for itself.
fn check_places(settings: &Settings, dir: &Path) -> Result<(), Failure> {
    let places = [
        ("staging-dir", Some(staging_root(settings))),
        ("state-dir", Some(state_root(settings))),
        ("cache-dir", settings.cache_dir.clone()),
        ("log-file", settings.log_file.clone()),
    ];
    for (option, path) in places {
        let Some(path) = path else { continue };
        if resolved(&path).starts_with(dir) {
            return Err(Failure::usage(format!(
                "--{option} {} lies below the mount point {}; choose a place outside",
                path.display(),
                dir.display()
            )));
        }
    }
    let stores = settings.store.location.leaves().into_iter();
    for location in stores.filter(|location| location.scheme() == "file") {
        let root = Path::new("/").join(std::ffi::OsStr::from_bytes(&location.path()));
        let root = resolved(&root);
        if point::overlap(&root, dir) {
            return Err(Failure::mount_point(format!(
                "the store {} and the mount point {} lie in each other; choose a directory outside the store",
                root.display(),
                dir.display()
            )));
        }
    }
    Ok(())
}

/// The path with the links of what exists of it resolved.
fn resolved(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    let mut there = path.to_owned();
    loop {
        if let Ok(found) = there.canonicalize() {
            return missing
                .iter()
                .rev()
                .fold(found, |path, name| path.join(name));
        }
        match (there.file_name().map(ToOwned::to_owned), there.parent()) {
            (Some(name), Some(parent)) => {
                missing.push(name);
                there = parent.to_owned();
            }
            _ => return path.to_owned(),
        }
    }
}

/// Starts the mount, serves it to its end, and lets everything go.
fn start(
    settings: &Settings,
    dir: &Path,
    runtime_root: &Path,
    waiting: &mut Option<Ready>,
) -> Result<(), Failure> {
    let watchdog = match settings.auto_unmount {
        true => Some(
            Watchdog::start(dir, || *waiting = None)
                .map_err(|error| Failure::other(format!("cannot start the watchdog: {error}")))?,
        ),
        false => None,
    };
    raise_descriptors();
    let outcome = hold(settings, dir, runtime_root)
        .and_then(|holdings| mounted(settings, dir, holdings, waiting));
    if let Some(watchdog) = watchdog {
        watchdog.dismiss();
    }
    outcome
}

/// Allows as many open files as this user may have: connections and spill files are many.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it there are fewer, and opening one too many is an error of its own.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Claims directories, opens the log and takes a dead mount away.
fn hold(settings: &Settings, dir: &Path, runtime_root: &Path) -> Result<Holdings, Failure> {
    let store = &settings.store;
    let name = dirs::slug(&store.location, &store.prefix);
    let state_root = state_root(settings);
    let state = state_root.join(&name);
    let kept = state.join("kept");
    dirs::private(&state_root)
        .and_then(|()| dirs::private(&state))
        .and_then(|()| dirs::private(&kept))
        .map_err(|error| dirs::failure("state directory", "state-dir", &state, &error))?;
    let log_file = match (&settings.log_file, settings.foreground) {
        (Some(file), _) => Some(file.clone()),
        (None, false) => Some(state.join("log")),
        (None, true) => None,
    };
    match &log_file {
        Some(file) => logging::to_file(store.log_level, file)
            .map_err(|error| dirs::failure("log file", "log-file", file, &error))?,
        None => logging::to_stderr(store.log_level),
    }
    logging::log_panics();

    let registration = Registration::take(runtime_root, dir)?;
    if let Some(dead) = point::check(dir)? {
        log::warn!(
            "{} was mounted on {} by a process that has died; taking that away",
            dead.source,
            dir.display()
        );
        point::unmount(dir, true).map_err(|error| {
            Failure::mount_point(format!(
                "{} is a dead mount and cannot be taken away: {error}; try umount -l {}",
                dir.display(),
                dir.display()
            ))
        })?;
        point::check(dir)?;
    }
    let staging_root = staging_root(settings);
    let staging = dirs::claim_empty(&staging_root).map_err(|error| {
        dirs::failure("staging directory", "staging-dir", &staging_root, &error)
    })?;
    let cache = match &settings.cache_dir {
        Some(root) => Some(
            dirs::claim_named(&dirs::of_user(root), &name)
                .map_err(|error| dirs::failure("cache directory", "cache-dir", root, &error))?,
        ),
        None => None,
    };
    let local = match settings.local.is_empty() || settings.read_only {
        true => None,
        false => Some(
            dirs::claim_named(&state, LOCAL)
                .map_err(|error| dirs::failure("state directory", "state-dir", &state, &error))?,
        ),
    };
    if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        log::warn!(
            "{} is not empty; what is in it is hidden while it is mounted on",
            dir.display()
        );
    }
    if conflict::holds_any(&kept) {
        log::warn!(
            "{} holds files that an earlier mount could not send",
            kept.display()
        );
    }
    Ok(Holdings {
        registration,
        staging,
        cache,
        local,
        state: kept,
        log_file,
    })
}

/// Opens the store, mounts, tells who waits, and serves until the end.
fn mounted(
    settings: &Settings,
    dir: &Path,
    holdings: Holdings,
    waiting: &mut Option<Ready>,
) -> Result<(), Failure> {
    crate::sys::share_free_memory();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("bucketfs")
        .enable_all()
        .build()
        .map_err(|error| Failure::other(format!("cannot start the runtime: {error}")))?;
    let mut store = settings.store.clone();
    store.open.findings_dir = Some(state_root(settings).join("servers"));
    store.open.journal_dir = Some(dirs::journal(&store));
    let Stack {
        mut driver,
        stats,
        fault,
        limit,
        index,
        shows_buckets,
        ..
    } = runtime.block_on(super::open(&store))?;
    // What is on this machine only is no part of it.
    let searched = Searched {
        driver: driver.clone(),
        shows_buckets,
        unsafely: settings.store.open.unsafe_writes,
    };
    if let Some(local) = &holdings.local {
        let names = settings.local.clone();
        let over = super::local::over(driver, &local.path, names, shows_buckets);
        driver = runtime.block_on(over)?;
    }
    let replicated = driver.replicated();
    // Beside what the kernel is asked for.
    let begun = index.map(|index| runtime.spawn(async move { index.begin().await }));
    let mut options = super::fs_options(
        settings,
        holdings.staging.path.clone(),
        holdings.state.clone(),
        holdings.cache.as_ref().map(|cache| cache.path.clone()),
    );
    options.query = (!settings.no_query).then(|| searched.driver.clone());
    if shows_buckets {
        options.top = Top::Buckets {
            may_make: settings.store.create_buckets,
        };
    }
    // Signals are heard before the mount is there: none of them may leave it behind.
    let signals = {
        let _inside = runtime.enter();
        serve::Signals::listen(settings.foreground)
            .map_err(|error| Failure::other(format!("cannot listen for signals: {error}")))?
    };
    let kernel = KernelOptions {
        faults: fault,
        ..KernelOptions::of(settings)
    };
    let session = Session::start(runtime.handle(), driver, options, &kernel, dir)?;
    let resumed = session.fs().clone();
    let resumed = runtime.spawn(async move { resumed.resume_renames().await });
    if let Some(begun) = begun {
        // Without it listings show fewer attributes.
        let _ = runtime.block_on(begun);
    }
    // Without it the next mount looks.
    let _ = runtime.block_on(resumed);
    let listener = publish(settings, dir, &holdings.registration, &runtime)
        .map_err(|error| Failure::other(format!("cannot publish the mount: {error}")))?;
    let url = settings.store.location.to_string();
    log::info!(
        "mounted {url} on {}, version {}",
        dir.display(),
        env!("CARGO_PKG_VERSION")
    );
    notify::ready(&format!("{url} is mounted on {}", dir.display()));
    if let Some(ready) = waiting.take() {
        ready.ready().map_err(|error| {
            Failure::other(format!("whoever started the mount has gone: {error}"))
        })?;
        logging::detach();
    }
    let mount = serve::Mount {
        session,
        stats,
        limit,
        store: searched,
        replicated,
        url,
        since: since(),
        log_file: holdings.log_file.clone(),
    };
    let report = runtime.block_on(serve::until_the_end(mount, listener, signals));
    // Tasks that still wait for the store would hold up the end: what they carry is kept.
    runtime.shutdown_background();
    let Holdings {
        registration,
        staging,
        cache,
        local,
        ..
    } = holdings;
    let _ = std::fs::remove_dir_all(&staging.path);
    drop((staging, cache, local, registration));
    conclude(&report)
}

fn publish(
    settings: &Settings,
    dir: &Path,
    registration: &Registration,
    runtime: &Runtime,
) -> io::Result<UnixListener> {
    let listener = {
        let _inside = runtime.enter();
        crate::control::at_socket(registration.socket(), |path| UnixListener::bind(path))?
    };
    // The directory may be open to others for reading.
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(registration.socket(), mode)?;
    let pid = std::process::id();
    registration.publish(&Record {
        pid,
        started: process::start_of(pid).unwrap_or_default(),
        url: settings.store.location.to_string(),
        dir: dir.display().to_string(),
        since: since(),
    })?;
    Ok(listener)
}

fn since() -> u64 {
    clock::seconds(clock::wall())
}

/// Logs how it ended.
fn conclude(report: &DrainReport) -> Result<(), Failure> {
    for unsent in &report.unsent {
        log::error!(
            "{} could not be sent: {}; its bytes are {}",
            unsent.path,
            unsent.reason,
            unsent.fate()
        );
    }
    match super::session::unsent(report) {
        Some(failure) => Err(failure),
        None => {
            log::info!("ended; sent at the end: {} files", report.committed);
            Ok(())
        }
    }
}

/// The failure of a daemon that said nothing.
fn died(how: &str) -> Failure {
    Failure::new(
        Exit::Other,
        format!("the daemon died while it started ({how}); try again with -f to see why"),
    )
}
