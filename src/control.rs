//! The control socket of a mount: one request in one line of JSON, answers in lines of JSON.

pub mod search;

use crate::clock;
use crate::driver::{Filter, PartStatus};
use crate::exit::{Exit, Failure};
use crate::fs::{DrainReport, FsStatus};
use crate::layer::{Pace, StatsSnapshot};
use crate::task;
use search::Searched;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc};

/// Longest request in bytes. That of a search names fields and values.
const LONGEST_REQUEST: u64 = 1 << 20;
/// Most connections served at once.
const MOST_CLIENTS: usize = 32;
/// Most of them that search or watch: some places are always free for others.
const MOST_SEARCHES: usize = 8;
/// Most documents that are removed at once. A search removes what it finds while it goes on, so these
/// places are others than its own, and who gets none waits for one.
const MOST_REMOVALS: usize = 8;
/// Longest answer in bytes, but for one with a document.
const LONGEST_ANSWER: u64 = 64 << 20;
/// Longest answer with a document: each of its bytes may take six in JSON.
const LONGEST_FOUND: u64 = 6 * crate::find::LARGEST + (1 << 20);
/// How long a client may take to send its request.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);
/// How often a drain tells its progress; a client that hears nothing for much longer gives up.
pub const PROGRESS: Duration = Duration::from_millis(250);

/// Longest path of a socket in bytes, without the final NUL.
const LONGEST_PATH: usize = 107;

/// Calls `act` with a path of a socket that is short enough for the kernel, however deep the
/// runtime directory lies.
pub fn at_socket<T>(socket: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
        return act(socket);
    };
    if socket.as_os_str().len() <= LONGEST_PATH {
        return act(socket);
    }
    let dir = std::fs::File::open(dir)?;
    let short = format!("/proc/self/fd/{}", dir.as_raw_fd());
    act(&Path::new(&short).join(name))
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Tell about the mount.
    Status,
    /// Send what is dirty, unmount and end. Once asked it is carried out, whether or not the
    /// client waits.
    Unmount {
        /// How long a drain may go on without progress.
        timeout_ms: u64,
        /// Take a busy mount out of the tree too; it ends with its last open file.
        lazy: bool,
    },
    /// Find documents.
    Find {
        /// What they must hold.
        filter: Filter,
        /// What keys begin with, as [`search::spelled`] has it.
        prefix: String,
        /// Whether the documents are wanted, rather than their keys alone.
        texts: bool,
        /// Go on and tell what comes; how often to look again.
        interval_ms: Option<u64>,
    },
    /// Remove a document that was found.
    Remove {
        /// Its key, as [`search::spelled`] has it.
        key: String,
        /// The version that matched.
        etag: String,
    },
}

impl Request {
    /// How long an answer in bytes may be. The daemon may be another user's.
    fn longest_answer(&self) -> u64 {
        match self {
            Request::Find { texts: true, .. } => LONGEST_FOUND,
            _ => LONGEST_ANSWER,
        }
    }
}

/// What a daemon answers. `Progress`, `Found`, `Looked`, `Skipped`, `Away` and `Back` are
/// followed by more.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// About the mount.
    Status(Box<StatusReport>),
    /// A drain goes on.
    Progress {
        /// Files that are left.
        files: u64,
        /// Bytes that are left.
        bytes: u64,
    },
    /// The mount is in use and stays.
    Busy {
        /// Processes that use it.
        users: Vec<String>,
    },
    /// The mount is taken away.
    Unmounted {
        /// What became of dirty files.
        report: DrainReport,
        /// It was busy, and ends with its last open file.
        detached: bool,
    },
    /// A document that matches.
    Found {
        /// Its key, as [`search::spelled`] has it.
        key: String,
        /// The version that matches.
        etag: String,
        /// What it is, if that was asked for.
        text: Option<String>,
    },
    /// A search goes on.
    Looked {
        /// So many objects more were looked at.
        objects: u64,
    },
    /// An object could not be looked at.
    Skipped {
        /// Why.
        message: String,
    },
    /// The store does not answer a search that watches; it goes on.
    Away {
        /// Why.
        message: String,
    },
    /// The store answers again.
    Back,
    /// A search is through.
    Searched,
    /// The version is removed.
    Removed,
    /// There is another version, which stays.
    Changed,
    /// It did not work.
    Failed {
        /// Why.
        message: String,
    },
}

impl Answer {
    /// Whether nothing comes after it.
    fn is_last(&self) -> bool {
        !matches!(
            self,
            Answer::Progress { .. }
                | Answer::Found { .. }
                | Answer::Looked { .. }
                | Answer::Skipped { .. }
                | Answer::Away { .. }
                | Answer::Back
        )
    }
}

/// What a daemon tells about its mount.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StatusReport {
    /// The daemon's version.
    pub version: String,
    /// The daemon.
    pub pid: u32,
    /// The URL without secrets.
    pub url: String,
    /// The mount point.
    pub dir: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Whether it is being unmounted.
    pub draining: bool,
    /// Where the daemon logs, if to a file.
    pub log_file: Option<String>,
    /// The filesystem.
    pub fs: FsStatus,
    /// Requests to the store.
    pub requests: StatsSnapshot,
    /// How many of them there may be at once.
    #[serde(default)]
    pub pace: Pace,
    /// The stores that it is made of, where it is made of several.
    #[serde(default)]
    pub stores: Vec<PartStatus>,
}

/// A client's wish to unmount, with the way of the answers.
#[derive(Debug)]
pub struct UnmountRequest {
    /// How long a drain may go on without progress.
    pub timeout: Duration,
    /// Take a busy mount out of the tree too.
    pub lazy: bool,
    /// Answers on their way to the client. It may have gone.
    pub answers: mpsc::Sender<Answer>,
}

/// The places of those who ask the store.
#[derive(Clone, Debug)]
struct Limits {
    searches: Arc<Semaphore>,
    removals: Arc<Semaphore>,
}

/// Serves clients until the future is dropped.
pub async fn serve(
    listener: UnixListener,
    status: Arc<dyn Fn() -> StatusReport + Send + Sync>,
    unmounts: mpsc::Sender<UnmountRequest>,
    store: Option<Searched>,
) {
    let places = Arc::new(Semaphore::new(MOST_CLIENTS));
    let limits = Limits {
        searches: Arc::new(Semaphore::new(MOST_SEARCHES)),
        removals: Arc::new(Semaphore::new(MOST_REMOVALS)),
    };
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (status, unmounts) = (status.clone(), unmounts.clone());
                let (store, limits) = (store.clone(), limits.clone());
                task::spawn(async move {
                    let served = client(stream, status, unmounts, store, limits).await;
                    if let Err(error) = served {
                        log::debug!("control socket: {error}");
                    }
                    drop(place);
                });
            }
            // Out of descriptors: let others end first.
            Err(error) => {
                log::warn!("control socket: cannot accept: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn client(
    mut stream: tokio::net::UnixStream,
    status: Arc<dyn Fn() -> StatusReport + Send + Sync>,
    unmounts: mpsc::Sender<UnmountRequest>,
    store: Option<Searched>,
    limits: Limits,
) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = Vec::new();
    let mut reader = tokio::io::BufReader::new(reader.take(LONGEST_REQUEST));
    tokio::time::timeout(CLIENT_PATIENCE, reader.read_until(b'\n', &mut line)).await??;
    let (sender, mut answers) = mpsc::channel(16);
    match serde_json::from_slice(&line) {
        Ok(Request::Status) => {
            let _ = sender.send(Answer::Status(Box::new(status()))).await;
        }
        Ok(Request::Unmount { timeout_ms, lazy }) => {
            let request = UnmountRequest {
                timeout: Duration::from_millis(timeout_ms),
                lazy,
                answers: sender.clone(),
            };
            if status().draining || unmounts.try_send(request).is_err() {
                let message = "the mount is being unmounted already".into();
                let _ = sender.send(Answer::Failed { message }).await;
            }
        }
        Ok(request @ (Request::Find { .. } | Request::Remove { .. })) => {
            let place = match request {
                Request::Remove { .. } => limits.removals.acquire().await.ok(),
                _ => limits.searches.try_acquire().ok(),
            };
            match (store, place) {
                (Some(store), Some(_place)) => {
                    return search::serve(&mut writer, &store, request).await;
                }
                _ => {
                    let message = format!(
                        "{MOST_SEARCHES} others search this mount already; try again when one has ended"
                    );
                    let _ = sender.send(Answer::Failed { message }).await;
                }
            }
        }
        Err(error) => {
            let message = format!("the daemon does not understand the request: {error}");
            let _ = sender.send(Answer::Failed { message }).await;
        }
    }
    drop(sender);
    while let Some(answer) = answers.recv().await {
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        tokio::time::timeout(CLIENT_PATIENCE, writer.write_all(&line)).await??;
        if answer.is_last() {
            break;
        }
    }
    Ok(())
}

/// Asks a daemon and hands each answer to `heard`, which tells whether to go on. `patience` is how
/// long the daemon may be silent.
pub fn ask(
    socket: &Path,
    request: &Request,
    patience: Duration,
    mut heard: impl FnMut(Answer) -> bool,
) -> Result<(), Failure> {
    let silent = |error: &dyn std::fmt::Display| {
        Failure::new(
            Exit::NotAnswering,
            format!("the daemon does not answer: {error}"),
        )
    };
    // Connecting to a hung daemon does not block before its backlog is full.
    let connect = {
        let socket = socket.to_owned();
        move || at_socket(&socket, |path| UnixStream::connect(path))
    };
    let mut stream = crate::mount::point::within(patience, connect)
        .ok_or_else(|| silent(&"no connection in time"))?
        .map_err(|error| silent(&error))?;
    let mut line = serde_json::to_vec(request).map_err(|error| silent(&error))?;
    line.push(b'\n');
    stream
        .set_write_timeout(Some(patience))
        .and_then(|()| stream.write_all(&line))
        .map_err(|error| silent(&error))?;
    let mut reader = BufReader::new(stream);
    loop {
        let line = read_line(&mut reader, patience, request.longest_answer())
            .map_err(|error| silent(&error))?;
        let Some(line) = line else {
            return Err(silent(&"it closed the connection"));
        };
        let answer = serde_json::from_slice(&line).map_err(|error| {
            Failure::other(format!("the daemon's answer makes no sense: {error}"))
        })?;
        if !heard(answer) {
            return Ok(());
        }
    }
}

/// Reads a line that arrives within `patience` as a whole, and is no longer than that; `None` at
/// the end.
fn read_line(
    reader: &mut BufReader<UnixStream>,
    patience: Duration,
    longest: u64,
) -> io::Result<Option<Vec<u8>>> {
    let end = clock::now() + patience;
    let mut line = Vec::new();
    loop {
        let left = end.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        reader.get_ref().set_read_timeout(Some(left))?;
        let bytes = match reader.fill_buf() {
            Ok([]) => return Ok(None),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let newline = bytes.iter().position(|byte| *byte == b'\n');
        let used = newline.map_or(bytes.len(), |at| at + 1);
        line.extend_from_slice(&bytes[..used]);
        reader.consume(used);
        if line.len() as u64 > longest {
            return Err(io::Error::other(format!(
                "its answer is longer than {longest} bytes"
            )));
        }
        if newline.is_some() {
            return Ok(Some(line));
        }
    }
}

/// Asks a daemon about its mount; one that does not answer within two seconds is
/// [`Exit::NotAnswering`].
pub fn status(socket: &Path) -> Result<StatusReport, Failure> {
    let mut report = Err(Failure::other(
        "the daemon gave another answer than asked for",
    ));
    ask(
        socket,
        &Request::Status,
        crate::mount::point::PATIENCE,
        |answer| {
            report = match answer {
                Answer::Status(status) => Ok(*status),
                Answer::Failed { message } => Err(Failure::other(message)),
                // Whoever goes on with others must not be listened to for ever.
                _ => return false,
            };
            false
        },
    )?;
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(test: impl FnOnce(&Path, mpsc::Receiver<UnmountRequest>) + Send + 'static) {
        served_with(None, test);
    }

    fn served_with(
        store: Option<Searched>,
        test: impl FnOnce(&Path, mpsc::Receiver<UnmountRequest>) + Send + 'static,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        runtime.block_on(async {
            let listener = UnixListener::bind(&path).unwrap();
            let (sender, receiver) = mpsc::channel(1);
            let status = || StatusReport {
                pid: 42,
                ..StatusReport::default()
            };
            tokio::spawn(serve(listener, Arc::new(status), sender, store));
            let test = tokio::task::spawn_blocking(move || test(&path, receiver));
            tokio::time::timeout(Duration::from_secs(20), test)
                .await
                .expect("the exchange ends")
                .unwrap();
        });
    }

    #[test]
    fn status_is_told() {
        served(|path, _receiver| assert_eq!(status(path).unwrap().pid, 42));
    }

    #[test]
    fn an_unmount_tells_its_progress() {
        served(|path, mut receiver| {
            std::thread::spawn(move || {
                let request = receiver.blocking_recv().unwrap();
                assert!(request.lazy);
                assert_eq!(request.timeout, Duration::from_millis(1500));
                for answer in [
                    Answer::Progress { files: 2, bytes: 9 },
                    Answer::Unmounted {
                        report: DrainReport::default(),
                        detached: false,
                    },
                ] {
                    request.answers.blocking_send(answer).unwrap();
                }
            });
            let request = Request::Unmount {
                timeout_ms: 1500,
                lazy: true,
            };
            let mut heard = Vec::new();
            ask(path, &request, Duration::from_secs(5), |answer| {
                heard.push(format!("{answer:?}"));
                !matches!(answer, Answer::Unmounted { .. })
            })
            .unwrap();
            assert_eq!(heard.len(), 2);
            assert_eq!(heard[0], "Progress { files: 2, bytes: 9 }");
        });
    }

    #[test]
    fn searches_that_fill_all_places_can_remove_what_they_find() {
        let store = Searched {
            driver: Arc::new(crate::driver::memory::Memory::new()),
            shows_buckets: false,
            unsafely: false,
        };
        served_with(Some(store), |path, _receiver| {
            let watch = Request::Find {
                filter: Filter::default(),
                prefix: String::new(),
                texts: false,
                interval_ms: Some(10_000),
            };
            let line = serde_json::to_string(&watch).unwrap() + "\n";
            let begin = || {
                let mut stream = UnixStream::connect(path).unwrap();
                stream.write_all(line.as_bytes()).unwrap();
                let mut reader = BufReader::new(stream);
                let mut answer = String::new();
                reader.read_line(&mut answer).unwrap();
                (reader, answer)
            };
            let places: Vec<_> = (0..MOST_SEARCHES).map(|_| begin()).collect();
            assert!(places.iter().all(|(_, answer)| answer.contains("looked")));
            let (_, refused) = begin();
            assert!(refused.contains("search this mount already"), "{refused}");
            let (key, etag) = ("k".into(), crate::driver::ETag::new("1"));
            // There is no such document, which only the store can tell.
            let removed = search::remove(path, &key, &etag);
            assert!(!removed.unwrap());
        });
    }

    #[test]
    fn nonsense_is_answered() {
        served(|path, _receiver| {
            let mut stream = UnixStream::connect(path).unwrap();
            stream.write_all(b"{\"request\":\"dance\"}\n").unwrap();
            let line = io::read_to_string(stream).unwrap();
            assert!(line.contains("does not understand"), "{line}");
        });
    }

    #[test]
    fn a_silent_daemon_does_not_hang_its_client() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let began = clock::now();
        let failure = ask(&path, &Request::Status, Duration::from_millis(50), |_| {
            false
        });
        assert_eq!(failure.unwrap_err().exit, Exit::NotAnswering);
        assert!(began.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn an_answer_without_an_end_is_given_up() {
        let (client, mut daemon) = UnixStream::pair().unwrap();
        std::thread::spawn(move || while daemon.write_all(&[b' '; 4096]).is_ok() {});
        let mut reader = BufReader::new(client);
        let told = read_line(&mut reader, Duration::from_secs(60), 1 << 20);
        let why = told.unwrap_err().to_string();
        assert_eq!(why, "its answer is longer than 1048576 bytes");
    }

    #[test]
    fn a_daemon_that_answers_something_else_is_not_listened_to_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let line = b"{\"answer\":\"progress\",\"files\":1,\"bytes\":1}\n";
            while stream.write_all(line).is_ok() {}
        });
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let failure = status(&path).unwrap_err();
            let _ = sender.send(failure.exit);
        });
        let told = receiver.recv_timeout(Duration::from_secs(10));
        assert_eq!(told, Ok(Exit::Other));
    }

    #[test]
    fn a_socket_deep_in_the_tree_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let socket = deep.join("mount.sock");
        let bind = |path: &Path| std::os::unix::net::UnixListener::bind(path);
        let _listener = at_socket(&socket, bind).unwrap();
        assert!(socket.exists());
        at_socket(&socket, |path| UnixStream::connect(path)).unwrap();
    }
}
