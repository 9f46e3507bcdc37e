//! The change feed of a table, on a connection of its own. A feed cannot be taken up again: when the
//! connection breaks, what happened meanwhile is unknown.

use super::documents::Table;
use super::link::{Cursor, Link};
use super::names::canonical;
use super::wire::Wire;
use crate::driver::json::Json;
use crate::driver::{Change, Error, ErrorKind, Result};
use crate::key::Key;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use std::sync::Arc;
use std::time::Duration;

/// How often a silent connection is asked whether it is still there, and how long that may take.
const PULSE: Duration = Duration::from_secs(10);
/// The query that any server answers at once: who it is.
const WHO: &str = "[5]";

fn broken() -> Error {
    let why = "the connection that tells changes broke";
    Error::new(ErrorKind::Unreachable, why)
}

/// The changes of a table from now on.
pub(super) async fn changes(
    link: &Link,
    table: &Table,
    directory: Key,
    prefix: &Key,
) -> Result<BoxStream<'static, Result<Change>>> {
    let wire = Arc::new(link.dial().await?);
    // The first answer says that the feed has begun.
    let feed = table.term.clone().changes(&table.key);
    let cursor = link.cursor_on(wire.clone(), &feed).await?;
    let told = stream::unfold(Some((cursor, wire)), |feed| async move {
        let (mut cursor, wire) = feed?;
        match next(&mut cursor, &wire).await {
            Ok(told) => Some((Ok(told), Some((cursor, wire)))),
            Err(error) => Some((Err(error), None)),
        }
    });
    let (table, prefix) = (table.clone(), prefix.clone());
    let changes = told.filter_map(move |told| {
        let change = match told {
            Ok(told) => Ok(change(&told, &table, &directory)),
            Err(error) => Err(error.during("watch")),
        };
        futures::future::ready(match change {
            Ok(Change::Written(key, _) | Change::Removed(key)) if !key.starts_with(&prefix) => None,
            change => Some(change),
        })
    });
    Ok(changes.boxed())
}

async fn next(cursor: &mut Cursor, wire: &Wire) -> Result<Json> {
    let next = cursor.next();
    tokio::pin!(next);
    loop {
        tokio::select! {
            told = &mut next => return told?.ok_or_else(broken),
            () = tokio::time::sleep(PULSE) => {
                let pulse = wire.ask(wire.token(), WHO);
                let answer = tokio::time::timeout(PULSE, pulse).await;
                answer.map_err(|_| broken())?.map_err(|_| broken())?;
            }
        }
    }
}

/// What an event is to files.
fn change(told: &Json, table: &Table, directory: &Key) -> Change {
    let Json::Object(sides) = told else {
        return Change::Lost;
    };
    let name = |side: &str| {
        let found = sides.iter().find(|(name, _)| name == side)?;
        table.name_of(&canonical(&found.1))
    };
    match (name("new_val"), name("old_val")) {
        (Some(name), _) => Change::Written(directory.join(name), None),
        (None, Some(name)) => Change::Removed(directory.join(name)),
        // The server has left changes out, as there were too many.
        (None, None) => Change::Lost,
    }
}
