//! The `mongodb:` driver: collections as directories of documents, and GridFS buckets as directories
//! of files.

mod database;
mod databases;
mod documents;
mod feed;
mod files;
mod json;
mod link;
mod names;
mod target;

use super::databases::Server;
use super::{Driver, Location, OpenOptions, Opened, Result};
use databases::All;
use files::Files;
use link::Link;
use std::sync::Arc;
use target::Target;

/// The URL scheme.
pub const SCHEME: &str = "mongodb";
/// What `bucketfs drivers` says.
pub const ABOUT: &str = "mongodb://[USER:PASSWORD@]HOST[:PORT][/DATABASE[/COLLECTION]][?layout=gridfs]  the documents of MongoDB, as JSON files, or a GridFS bucket";

/// Opens the store: connects, and sees what is there.
pub async fn open(location: Location, options: OpenOptions) -> Result<Opened> {
    let target = Target::parse(&location)?;
    let (database, prefix) = (target.database.clone(), target.below.clone());
    let bucket = target.bucket.clone();
    let is_store = database.is_none();
    let below = prefix.to_str().unwrap_or_default().to_owned();
    let opened = async {
        let link = Link::new(target)?;
        let is_ferret = link.greet().await?.contains_key("ferretdbVersion");
        if is_ferret && !options.read_only {
            log::warn!(
                "{} is a FerretDB, which looks for a document first and writes it later: what somebody else writes between the two is lost",
                link.target()
            );
        }
        Ok(match (database, bucket) {
            (Some(name), Some(bucket)) => {
                Arc::new(Files::new(link, name, bucket, is_ferret)) as Arc<dyn Driver>
            }
            (Some(name), None) => {
                // One collection can be followed as a whole.
                let watched = match below.split_once('/') {
                    Some((collection, "")) if feed::works(&link, &name, collection).await => {
                        Some(collection.to_owned())
                    }
                    _ => None,
                };
                Arc::new(database::open(link, name, is_ferret, watched))
            }
            (None, _) => Arc::new(Server(All { link, is_ferret })),
        })
    };
    let driver = opened
        .await
        .map_err(|error: super::Error| error.during("open"))?;
    Ok(Opened {
        driver,
        prefix,
        is_store,
    })
}
