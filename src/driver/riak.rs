//! The `riak:` driver: buckets of Riak KV as directories of plain files, over its HTTP API.
//!
//! The server tests a condition before it writes, so each write carries the vector clock of what it
//! replaces: what somebody else writes in between is a sibling then, and is shown as a conflict file.

mod bucket;
mod link;
mod list;
mod multipart;
mod names;
mod object;
mod siblings;
mod target;
mod types;
mod write;

use super::databases::Server;
use super::{Driver, Location, OpenOptions, Opened, Result};
use link::Link;
use std::sync::Arc;
use target::Target;
use types::Types;

/// The URL scheme.
pub const SCHEME: &str = "riak";
/// What `bucketfs drivers` says.
pub const ABOUT: &str = "riak://[USER:PASSWORD@]HOST[:PORT][/TYPE[/BUCKET]]  the objects of Riak KV as files (not proven on a real server)";

/// The same over TLS.
pub mod tls {
    use super::{Location, OpenOptions, Opened, Result};

    /// The URL scheme.
    pub const SCHEME: &str = "riaks";
    /// What `bucketfs drivers` says.
    pub const ABOUT: &str = "riaks://...  the same over TLS (not proven on a real server)";

    /// Opens the store.
    pub async fn open(location: Location, options: OpenOptions) -> Result<Opened> {
        super::connect(&location, &options, true).await
    }
}

/// Opens the store: sees that Riak answers, and that the bucket type is there.
pub async fn open(location: Location, options: OpenOptions) -> Result<Opened> {
    connect(&location, &options, false).await
}

async fn connect(location: &Location, options: &OpenOptions, tls: bool) -> Result<Opened> {
    let target = Target::parse(location, tls)?;
    let (name, prefix) = (target.bucket_type.clone(), target.below.clone());
    let opened = async {
        let types = Types {
            link: Link::new(target)?,
            read_only: options.read_only,
        };
        types.link.greet().await?;
        Ok(match &name {
            Some(name) => Arc::new(types.open(name, &prefix).await?) as Arc<dyn Driver>,
            None => Arc::new(Server(types)),
        })
    };
    let driver = opened
        .await
        .map_err(|error: super::Error| error.during("open"))?;
    Ok(Opened {
        driver,
        prefix,
        is_store: name.is_none(),
    })
}
