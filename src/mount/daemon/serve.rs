//! What a mounted daemon waits for: signals, the end of its session, and the control socket.

use crate::control::search::Searched;
use crate::control::{self, Answer, PROGRESS, StatusReport, UnmountRequest};
use crate::driver::Replicated;
use crate::fs::DrainReport;
use crate::layer::{Limit, Stats};
use crate::logging;
use crate::mount::session::{Session, Unmounted};
use crate::mount::{DRAIN_PATIENCE, notify, point};
use crate::task;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// How often systemd is told that the end takes time, and for how much longer.
const EXTENSION: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// How long the last answers may take to get to their clients.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// A mount that is served.
pub struct Mount {
    /// The session.
    pub session: Session,
    /// Requests to the store.
    pub stats: Arc<Stats>,
    /// What bounds the requests under way.
    pub limit: Arc<Limit>,
    /// The store, for searches.
    pub store: Searched,
    /// What keeps several stores alike, where there are several.
    pub replicated: Vec<Arc<dyn Replicated>>,
    /// The URL without secrets.
    pub url: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Where the log is.
    pub log_file: Option<PathBuf>,
}

/// Signals that end the mount, and SIGHUP: a terminal that goes away ends a mount in the
/// foreground, while a daemon opens its log anew.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    foreground: bool,
}

impl Signals {
    /// Begins to listen.
    pub fn listen(foreground: bool) -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            foreground,
        })
    }

    /// Waits for a signal to end, and gives its name.
    async fn end(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => match self.foreground {
                    true => return "SIGHUP",
                    false => logging::reopen(),
                },
            }
        }
    }
}

/// Serves the mount until it has ended, and tells what became of dirty files.
pub async fn until_the_end(
    mount: Mount,
    listener: UnixListener,
    mut signals: Signals,
) -> DrainReport {
    let (sender, mut unmounts) = mpsc::channel(1);
    let Mount {
        session,
        stats,
        limit,
        store,
        replicated,
        url,
        since,
        log_file,
    } = mount;
    let draining = Arc::new(AtomicBool::new(false));
    let mounted = format!("{url} is mounted on {}", session.path().display());
    let status = {
        let (fs, draining, dir) = (session.fs().clone(), draining.clone(), session.path());
        let dir = dir.display().to_string();
        let log_file = log_file.map(|path| path.display().to_string());
        move || StatusReport {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            url: url.clone(),
            dir: dir.clone(),
            since,
            draining: draining.load(Ordering::Relaxed),
            log_file: log_file.clone(),
            fs: fs.status(),
            requests: stats.snapshot(),
            pace: limit.pace(),
            stores: replicated.iter().flat_map(|all| all.status()).collect(),
        }
    };
    let server = task::spawn(control::serve(
        listener,
        Arc::new(status),
        sender,
        Some(store),
    ));
    let report = loop {
        tokio::select! {
            () = session.ended() => {
                log::info!("unmounted by somebody else");
                draining.store(true, Ordering::Relaxed);
                break end(&session, None, &mut signals).await;
            }
            name = signals.end() => {
                log::info!("{name}: unmounting");
                draining.store(true, Ordering::Relaxed);
                break end(&session, None, &mut signals).await;
            }
            Some(request) = unmounts.recv() => {
                draining.store(true, Ordering::Relaxed);
                match asked(&session, request, &mut signals).await {
                    Some(report) => break report,
                    None => {
                        draining.store(false, Ordering::Relaxed);
                        notify::tell(&format!("STATUS={mounted}"));
                    }
                }
            }
        }
    };
    server.abort();
    report
}

/// Ends the mount after what has been drained already; a signal from now on hurries.
async fn end(
    session: &Session,
    drained: Option<DrainReport>,
    signals: &mut Signals,
) -> DrainReport {
    let hurry = async {
        let name = signals.end().await;
        log::warn!("{name} again: what is not sent yet is kept");
    };
    tokio::select! {
        report = session.close_after(drained, DRAIN_PATIENCE, hurry) => report,
        () = tell_systemd(session) => DrainReport::default(),
    }
}

/// Asks systemd for more time again and again; it never returns. Each file is sent or kept in a
/// time that has an end.
async fn tell_systemd(session: &Session) {
    loop {
        notify::stopping(&left(session), EXTENSION.1);
        tokio::time::sleep(EXTENSION.0).await;
    }
}

/// Asks systemd for more time, for `patience` is granted to each file, whenever less is left than
/// before; it never returns. Without progress `ExecStop=` ends in time, and the signal that follows
/// has the rest kept. The mount may turn out to be busy and stay: it is not said that it stops.
async fn tell_systemd_of_progress(session: &Session, patience: Duration) {
    let mut told = None;
    loop {
        let left = left(session);
        if told.as_ref() != Some(&left) {
            notify::going_on(&left, patience + EXTENSION.1);
            told = Some(left);
        }
        tokio::time::sleep(EXTENSION.0).await;
    }
}

fn left(session: &Session) -> String {
    let status = session.fs().status();
    format!(
        "sending {} files, {} bytes",
        status.dirty_files, status.dirty_bytes
    )
}

/// Carries out an unmount that somebody asked for. `None` when the mount is busy and stays.
async fn asked(
    session: &Session,
    request: UnmountRequest,
    signals: &mut Signals,
) -> Option<DrainReport> {
    let UnmountRequest {
        timeout,
        lazy,
        answers,
    } = request;
    // Before anything is drained: what a mount that stays cannot send must not be kept yet.
    let users = users_of(session).await;
    if !lazy && !users.is_empty() {
        answer(&answers, Answer::Busy { users }).await;
        return None;
    }
    let mut hurried = false;
    let report = tokio::select! {
        report = session.fs().drain(timeout) => report,
        () = tell_client(session, &answers) => DrainReport::default(),
        () = tell_systemd_of_progress(session, timeout) => DrainReport::default(),
        name = signals.end() => {
            log::warn!("{name}: what is not sent yet is kept");
            hurried = true;
            session.fs().drain(Duration::ZERO).await
        }
    };
    let detached = match session.detach(lazy || hurried).await {
        Ok(Unmounted::Gone) => false,
        Ok(Unmounted::Detached) => {
            answer(
                &answers,
                Answer::Unmounted {
                    report: report.clone(),
                    detached: true,
                },
            )
            .await;
            // Whoever has files open, or a copy of the mount, goes on with them, as after umount -l.
            tokio::select! {
                () = session.ended() => {}
                name = signals.end() => log::info!("{name}: not waiting for open files and copies of the mount"),
            }
            true
        }
        Err(error) => {
            let busy = error.raw_os_error() == Some(libc::EBUSY);
            let reply = match busy {
                true => Answer::Busy {
                    users: users_of(session).await,
                },
                false => Answer::Failed {
                    message: format!("cannot unmount {}: {error}", session.path().display()),
                },
            };
            answer(&answers, reply).await;
            return None;
        }
    };
    let report = end(session, Some(report), signals).await;
    if !detached {
        answer(
            &answers,
            Answer::Unmounted {
                report: report.clone(),
                detached,
            },
        )
        .await;
        // The task that carries the answer to the client ends when it has done so.
        let _ = tokio::time::timeout(LAST_ANSWERS, answers.closed()).await;
    }
    Some(report)
}

/// Processes that use the mount, looked for where it holds up nobody.
async fn users_of(session: &Session) -> Vec<String> {
    let dir = session.path().to_owned();
    let looking = task::blocking(move || point::users(&dir));
    looking.await.unwrap_or_default()
}

/// Tells how much is left again and again; it never returns.
async fn tell_client(session: &Session, answers: &mpsc::Sender<Answer>) {
    loop {
        tokio::time::sleep(PROGRESS).await;
        let status = session.fs().status();
        // A client that does not read, or is gone, must not hold up the drain.
        let _ = answers.try_send(Answer::Progress {
            files: status.dirty_files,
            bytes: status.dirty_bytes,
        });
    }
}

async fn answer(answers: &mpsc::Sender<Answer>, answer: Answer) {
    let _ = tokio::time::timeout(LAST_ANSWERS, answers.send(answer)).await;
}
