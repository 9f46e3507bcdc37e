//! The `redis:` driver: Redis, Valkey and what speaks their protocol.
//!
//! A database is shown in one of two layouts. *Objects* is a bucket like any other, with attributes
//! and an index, in keys of its own. *Data* shows what programs keep there, each key as a file.

mod answer;
mod data;
mod databases;
mod feed;
mod link;
mod objects;
mod target;

use super::databases::Server;
use super::{Driver, Error, ErrorKind, Location, OpenOptions, Opened, Result, Space};
use answer::text;
use data::Data;
use databases::All;
use link::Link;
use objects::Objects;
use std::sync::Arc;
use target::{Layout, Mode, Target};

/// The URL scheme.
pub const SCHEME: &str = "redis";
/// What `bucketfs drivers` says.
pub const ABOUT: &str = "redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE][?layout=objects]  the keys of Redis or Valkey, or a bucket in it";

/// The same over TLS.
pub mod tls {
    use super::{Location, OpenOptions, Opened, Result};

    /// The URL scheme.
    pub const SCHEME: &str = "rediss";
    /// What `bucketfs drivers` says.
    pub const ABOUT: &str = "rediss://...  the same over TLS";

    /// Opens the store.
    pub async fn open(location: Location, options: OpenOptions) -> Result<Opened> {
        super::connect(&location, &options, true).await
    }
}

/// Opens the store: connects, and sees what is there.
pub async fn open(location: Location, options: OpenOptions) -> Result<Opened> {
    connect(&location, &options, false).await
}

async fn connect(location: &Location, options: &OpenOptions, tls: bool) -> Result<Opened> {
    let target = Target::parse(location, tls)?;
    let prefix = target.below.clone();
    let is_store = target.database.is_none();
    let driver: Result<Arc<dyn Driver>> = match is_store {
        false => bucket(target, options).await,
        true => {
            let all = All::new(target, options);
            let greeted = greet(all.link(), options).await;
            greeted.map(|()| Arc::new(Server(all)) as Arc<dyn Driver>)
        }
    };
    Ok(Opened {
        driver: driver.map_err(|error| error.during("open"))?,
        prefix,
        is_store,
    })
}

/// The driver of one database.
async fn bucket(target: Target, options: &OpenOptions) -> Result<Arc<dyn Driver>> {
    let objects = Objects::new(target.clone());
    greet(objects.link(), options).await?;
    // Without a word about it, what is there decides.
    let format = match target.layout {
        Some(Layout::Data) => None,
        _ => objects.marker().await?,
    };
    match (format.as_deref(), target.layout) {
        (Some("1"), _) | (None, Some(Layout::Objects)) => Ok(Arc::new(objects)),
        (Some(format), _) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("the objects there are of format {format}: a newer bucketfs can read them"),
        )),
        (None, _) if target.mode == Mode::Cluster => Err(Error::new(
            ErrorKind::Unsupported,
            "a cluster can hold objects only: write layout=objects into the URL",
        )),
        (None, _) => Ok(Arc::new(Data::new(target))),
    }
}

/// The value of a line of INFO.
fn fact<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let line = |line: &'a str| line.trim().strip_prefix(name)?.strip_prefix(':');
    info.lines().find_map(line)
}

async fn info(link: &Link, section: &str) -> Result<String> {
    let mut cmd = ::redis::cmd("INFO");
    // A cluster answers for each node.
    match link.ask(cmd.arg(section)).await? {
        ::redis::Value::Map(nodes) => nodes.into_iter().map(|(_, info)| text(info)).collect(),
        info => text(info),
    }
}

/// Sees that the server answers, and warns of what makes it a poor place for files.
async fn greet(link: &Link, options: &OpenOptions) -> Result<()> {
    let known = match info(link, "replication").await {
        Ok(known) => known,
        // It may be talked to, and nothing about itself be asked.
        Err(error) if error.kind() == ErrorKind::Denied => return Ok(()),
        Err(error) => return Err(error),
    };
    if fact(&known, "role") == Some("slave") && !options.read_only {
        let read_only = fact(&known, "slave_read_only").or(fact(&known, "replica_read_only"));
        if read_only != Some("0") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{} is a read-only replica: name its primary, let Sentinels find it (sentinel=NAME), or mount with --read-only",
                    link.target()
                ),
            ));
        }
    }
    let memory = info(link, "memory").await.unwrap_or_default();
    let policy = fact(&memory, "maxmemory_policy").unwrap_or_default();
    if fact(&memory, "maxmemory").is_some_and(|most| most != "0") && policy.starts_with("allkeys") {
        log::warn!(
            "{} throws keys away when it is full (maxmemory-policy {policy}): files will vanish; set noeviction",
            link.target()
        );
    }
    Ok(())
}

/// How much there is room for, where the server has a limit.
async fn space(link: &Link) -> Result<Option<Space>> {
    let memory = match info(link, "memory").await {
        Err(error) if error.kind() == ErrorKind::Denied => return Ok(None),
        memory => memory?,
    };
    let number = |name| fact(&memory, name).and_then(|text| text.parse::<u64>().ok());
    Ok(match (number("maxmemory"), number("used_memory")) {
        (Some(total), Some(used)) if total > 0 => Some(Space {
            total,
            free: total.saturating_sub(used),
        }),
        _ => None,
    })
}
