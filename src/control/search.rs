//! Searches through the control socket: the daemon looks, with the credentials and the options that
//! the mount has.

use super::{Answer, PROGRESS, Request, ask};
use crate::driver::{Driver, ETag, Error, ErrorKind, Match};
use crate::exit::{Exit, Failure};
use crate::find::{self, Event, Search};
use crate::key::Key;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// How long the daemon may be silent: it tells that it is looking four times a second.
const SILENCE: Duration = Duration::from_secs(60);

/// The store of a mount.
#[derive(Clone, Debug)]
pub struct Searched {
    /// The store.
    pub driver: Arc<dyn Driver>,
    /// Whether its top shows buckets.
    pub shows_buckets: bool,
    /// Whether what takes no condition may be removed.
    pub unsafely: bool,
}

/// A key as text, whatever its bytes.
pub fn spelled(key: &Key) -> String {
    percent_encode(key.as_bytes(), NON_ALPHANUMERIC).to_string()
}

/// The reverse of [`spelled`].
fn key(text: &str) -> Key {
    Key::from(percent_decode_str(text).collect::<Vec<u8>>())
}

/// Writes an answer, however long the client takes: it may be read page by page.
async fn write<W: AsyncWriteExt + Unpin>(writer: &mut W, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

/// Carries out what a client asked for, until it is done or the client has gone.
pub(super) async fn serve<W: AsyncWriteExt + Unpin>(
    writer: &mut W,
    store: &Searched,
    request: Request,
) -> io::Result<()> {
    match request {
        Request::Find {
            filter,
            prefix,
            texts,
            interval_ms,
        } => {
            let search = Search {
                driver: store.driver.clone(),
                shows_buckets: store.shows_buckets,
                prefix: key(&prefix),
                filter,
                texts,
            };
            let interval = interval_ms.map(Duration::from_millis);
            told(writer, search, texts, interval).await
        }
        Request::Remove { key: name, etag } => {
            let (name, etag) = (key(&name), ETag::new(etag));
            let removed = find::remove(&*store.driver, &name, &etag, store.unsafely).await;
            let answer = match removed {
                Ok(()) => Answer::Removed,
                Err(error) if error.kind() == ErrorKind::Changed => Answer::Changed,
                Err(error) => Answer::Failed {
                    message: error.to_string(),
                },
            };
            write(writer, &answer).await
        }
        Request::Status | Request::Unmount { .. } => Ok(()),
    }
}

async fn told<W: AsyncWriteExt + Unpin>(
    writer: &mut W,
    search: Search,
    texts: bool,
    interval: Option<Duration>,
) -> io::Result<()> {
    let mut events = match interval {
        Some(interval) => search.follow(interval),
        None => search.begin(),
    };
    let mut looked = 0;
    let mut pulse = tokio::time::interval(PROGRESS);
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            _ = pulse.tick() => {
                let objects = std::mem::take(&mut looked);
                write(writer, &Answer::Looked { objects }).await?;
                continue;
            }
        };
        let answer = match event {
            None => return write(writer, &Answer::Searched).await,
            Some(Ok(Event::Looked(more))) => {
                looked += more;
                continue;
            }
            Some(Ok(Event::Found(found))) => Answer::Found {
                key: spelled(&found.key),
                etag: found.etag.as_str().to_owned(),
                text: texts.then(|| String::from_utf8_lossy(&found.text).into_owned()),
            },
            Some(Ok(Event::Skipped(error))) => Answer::Skipped {
                message: error.to_string(),
            },
            Some(Ok(Event::Away(error))) => Answer::Away {
                message: error.to_string(),
            },
            Some(Ok(Event::Back)) => Answer::Back,
            Some(Err(error)) => {
                let message = error.to_string();
                return write(writer, &Answer::Failed { message }).await;
            }
        };
        write(writer, &answer).await?;
    }
}

/// Has a daemon look, and hands each event to `heard`, which tells whether to go on.
pub fn search(
    socket: &Path,
    request: &Request,
    mut heard: impl FnMut(Event) -> bool,
) -> Result<(), Failure> {
    let mut outcome = Ok(());
    ask(socket, request, SILENCE, |answer| match answer {
        Answer::Found {
            key: name,
            etag,
            text,
        } => heard(Event::Found(Match {
            key: key(&name),
            etag: ETag::new(etag),
            text: text.unwrap_or_default().into(),
        })),
        Answer::Looked { objects } => heard(Event::Looked(objects)),
        Answer::Skipped { message } => heard(Event::Skipped(Error::new(ErrorKind::Io, message))),
        Answer::Away { message } => heard(Event::Away(Error::new(ErrorKind::Io, message))),
        Answer::Back => heard(Event::Back),
        Answer::Failed { message } => {
            outcome = Err(Failure::other(message));
            false
        }
        _ => false,
    })?;
    outcome
}

/// Has a daemon remove a version; whether that was still there.
pub fn remove(socket: &Path, name: &Key, etag: &ETag) -> Result<bool, Failure> {
    let request = Request::Remove {
        key: spelled(name),
        etag: etag.as_str().to_owned(),
    };
    let mut outcome = Err(Failure::new(
        Exit::NotAnswering,
        "the daemon gave another answer than asked for",
    ));
    ask(socket, &request, SILENCE, |answer| {
        outcome = match answer {
            Answer::Removed => Ok(true),
            Answer::Changed => Ok(false),
            Answer::Failed { message } => Err(Failure::other(message)),
            _ => return true,
        };
        false
    })?;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_spelled() {
        let odd = Key::from(vec![0, b'/', 0xff, b'%', b'a', b'\n']);
        assert_eq!(key(&spelled(&odd)), odd);
        assert_eq!(key(&spelled(&Key::empty())), Key::empty());
    }
}
