//! The life of a mount: its directories, its FUSE session, and its end.
//!
//! [`Session`] is a mount within this process; [`daemon`] is the process that `bucketfs mount`
//! leaves behind.

pub mod daemon;
pub mod dirs;
pub mod local;
mod notify;
pub mod point;
pub mod record;
pub mod register;
mod session;
mod watchdog;

pub use session::{KernelOptions, Session};

use crate::config::{Settings, StoreSettings};
use crate::driver;
use crate::exit::{Exit, Failure};
use crate::fs::{DrainReport, FsOptions, StagingRoom, Top};
use crate::layer::{self, LayerOptions, Stack};
use std::path::PathBuf;
use std::time::Duration;

/// How many entries of listings are kept: some tens of megabytes when all are in use.
const LISTING_ENTRIES: usize = 100_000;

/// How much longer than one request opening a store may take: it looks for credentials, connects
/// and probes.
const OPENING: u32 = 3;

/// Opens a store and puts the layers over it.
pub async fn open(settings: &StoreSettings) -> Result<Stack, Failure> {
    let patience = settings.deadline * OPENING;
    let opening = driver::open(&settings.location, &settings.open);
    let opened = match tokio::time::timeout(patience, opening).await {
        Ok(opened) => opened.map_err(|error| {
            let why = match error.operation() {
                "" | "open" => error.reason(),
                _ => error.to_string(),
            };
            Failure::new(
                Failure::from(&error).exit,
                format!("cannot open {}: {why}", settings.location),
            )
        })?,
        Err(_) => {
            return Err(Failure::new(
                Exit::Unreachable,
                format!(
                    "cannot open {}: no answer within {} s; is it up, and reachable from here?",
                    settings.location,
                    patience.as_secs()
                ),
            ));
        }
    };
    let mut opened = opened;
    let shown = &settings.location;
    if opened.is_store && !settings.prefix.is_empty() {
        return Err(Failure::usage(format!(
            "--prefix is a part of one bucket; write it like {shown}BUCKET --prefix {}",
            settings.prefix
        )));
    }
    if settings.create_buckets && !opened.is_store {
        return Err(Failure::usage(format!(
            "--create-buckets is for mounts of all buckets, like s3://; {shown} is one"
        )));
    }
    if !opened.prefix.is_empty() && !opened.prefix.as_bytes().ends_with(b"/") {
        opened.prefix = opened.prefix.join("/");
    }
    let options = LayerOptions {
        deadline: settings.deadline,
        retries: settings.retries,
        concurrency: settings.concurrency,
        prefix: settings.prefix.clone(),
        read_only: settings.open.read_only,
        index: !settings.no_index,
        create_buckets: settings.create_buckets,
        fault: settings.fault.clone(),
    };
    layer::stack(opened, &options).map_err(|error| Failure::from(&error))
}

/// The filesystem's options, with the directories that a mount has claimed.
pub fn fs_options(
    settings: &Settings,
    staging_dir: PathBuf,
    state_dir: PathBuf,
    cache_dir: Option<PathBuf>,
) -> FsOptions {
    FsOptions {
        name: settings.store.name(),
        top: Top::Bucket,
        uid: settings.uid,
        gid: settings.gid,
        file_mode: settings.file_mode,
        dir_mode: settings.dir_mode,
        stat_attrs: settings.stat_attrs,
        read_only: settings.read_only,
        metadata_ttl: settings.metadata_ttl,
        negative_ttl: settings.negative_ttl,
        exclusive_create: settings.exclusive_create,
        max_rename: settings.max_rename,
        consistency: settings.consistency,
        staging_dir,
        staging_size: settings.staging_size,
        // Who names a directory wants the bytes there.
        staging_room: match settings.staging_dir {
            Some(_) => StagingRoom::Usual,
            None => StagingRoom::Memory,
        },
        state_dir,
        memory_cache: settings.memory,
        cache_dir,
        max_cache_size: settings.max_cache_size,
        listing_entries: LISTING_ENTRIES,
        host: host(),
        query: None,
    }
}

/// Where the state directories of mounts are.
pub fn state_root(settings: &StoreSettings) -> PathBuf {
    let given = settings.state_dir.as_ref();
    given.map_or_else(dirs::state_root, dirs::of_user)
}

/// This machine's name, up to its first dot.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim().split('.').next() {
        None | Some("") => "localhost".into(),
        Some(name) => name.to_owned(),
    }
}

/// Merges what two drains of one mount tell; of a file, the second knows better.
fn merge(first: &mut DrainReport, second: DrainReport) {
    first.committed += second.committed;
    for unsent in second.unsent {
        first.unsent.retain(|known| known.path != unsent.path);
        first.unsent.push(unsent);
    }
    // It has tried those of the first again.
    first.untold = second.untold;
}

/// How long a drain may go on without progress when nobody says otherwise.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(60);
