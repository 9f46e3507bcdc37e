//! The change feed: a change stream of the collection that is mounted, where the server has those.

use super::link::Link;
use super::names;
use crate::driver::{Change, Error, ErrorKind, Result};
use crate::key::Key;
use ::mongodb::bson::Document;
use ::mongodb::change_stream::event::{ChangeStreamEvent, OperationType};
use futures::StreamExt;
use futures::stream::BoxStream;

/// Whether the server tells what changes in a collection: without a replica set none does.
pub(super) async fn works(link: &Link, database: &str, collection: &str) -> bool {
    match link.collection(database, collection).watch().await {
        Ok(_) => true,
        Err(cause) => {
            log::debug!("no change stream: {}", link.error(&cause));
            false
        }
    }
}

/// The changes of a collection from now on.
pub(super) async fn changes(
    link: &Link,
    database: &str,
    collection: &str,
    prefix: Key,
) -> Result<BoxStream<'static, Result<Change>>> {
    let stream = link.database(database).collection::<Document>(collection);
    let stream = stream.watch().await.map_err(|cause| link.error(&cause))?;
    let link = link.clone();
    let ended = || {
        let why = "the server has ended the change stream";
        Err(Error::new(ErrorKind::Unreachable, why))
    };
    let directory = Key::from(format!("{collection}/"));
    let told = stream.map(move |event| match event {
        Ok(event) => Ok(change(&event, &directory)),
        Err(cause) => Err(link.error(&cause)),
    });
    let told = told.chain(futures::stream::once(async move { ended() }));
    let below = told.filter_map(move |change| {
        let change = match change {
            Ok(Change::Written(key, _) | Change::Removed(key)) if !key.starts_with(&prefix) => None,
            Ok(change) => Some(Ok(change)),
            Err(error) => Some(Err(error.during("watch"))),
        };
        futures::future::ready(change)
    });
    Ok(below.boxed())
}

/// What an event is to files.
fn change(event: &ChangeStreamEvent<Document>, directory: &Key) -> Change {
    let removed = match event.operation_type {
        OperationType::Insert | OperationType::Update | OperationType::Replace => false,
        OperationType::Delete => true,
        // The collection is another now.
        _ => return Change::Lost,
    };
    // Emulators leave the key out.
    let id = event.document_key.as_ref().and_then(|key| key.get("_id"));
    let Some(id) = id else {
        return Change::Lost;
    };
    let key = directory.join(names::name(id));
    match removed {
        true => Change::Removed(key),
        false => Change::Written(key, None),
    }
}
