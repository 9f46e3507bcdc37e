//! The `rethinkdb:` driver: tables as directories of documents.

mod changes;
mod database;
mod documents;
mod feed;
mod find;
mod link;
mod list;
mod names;
mod target;
mod term;
mod wire;

use super::databases::Server;
use super::{Driver, Location, OpenOptions, Opened, Result};
use database::All;
use link::Link;
use std::sync::Arc;
use target::Target;

/// The URL scheme.
pub const SCHEME: &str = "rethinkdb";
/// What `bucketfs drivers` says.
pub const ABOUT: &str = "rethinkdb://[USER:PASSWORD@]HOST[:PORT][/DATABASE[/TABLE]]  the documents of RethinkDB, as JSON files (not proven on a real server)";

/// Opens the store: connects, and sees who answers.
pub async fn open(location: Location, _: OpenOptions) -> Result<Opened> {
    let target = Target::parse(&location)?;
    let (database, prefix) = (target.database.clone(), target.below.clone());
    let is_store = database.is_none();
    let link = Link::new(target);
    let greeted = link.greet().await;
    greeted.map_err(|error| error.during("open"))?;
    let driver = match database {
        Some(name) => Arc::new(database::open(link, name, &prefix)) as Arc<dyn Driver>,
        None => Arc::new(Server(All(link))),
    };
    Ok(Opened {
        driver,
        prefix,
        is_store,
    })
}
