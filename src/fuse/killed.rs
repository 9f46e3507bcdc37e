//! Letting killed requesters go.
//!
//! The kernel keeps a process in uninterruptible sleep until its request is answered, even when it
//! was killed. Requests that wait longer than [`PATIENCE`] are therefore looked after: when
//! SIGKILL is pending for the requester (the kernel adds it for every fatal signal), or when it is
//! exiting because of a signal and only waits for the flush of its files, it is answered EINTR.
//!
//! What `/proc` tells of a process can wait for that process: for the end of an exec, say, which
//! closes files and may wait for us. So it is read in threads of their own, a few at most.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};

use crate::clock::{self, Instant};
use crate::task;

/// How long a request may wait before its requester is looked after.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often it is.
const INTERVAL: Duration = Duration::from_millis(100);
/// SIGKILL's bit in the signal masks of `/proc/PID/status`.
const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);
/// `PF_EXITING` in the flags of `/proc/PID/stat`.
const EXITING: u64 = 0x4;

/// The requests that wait.
#[derive(Debug, Default)]
pub struct Pending {
    waiting: parking_lot::Mutex<HashMap<u64, Waiting>>,
    last: AtomicU64,
    /// Held while a request is answered at once, or finds that it has to wait.
    answering: parking_lot::RwLock<()>,
}

#[derive(Debug)]
struct Waiting {
    pid: u32,
    /// The inodes it is about, on which the kernel may hold locks meanwhile.
    inodes: [u64; 2],
    since: Instant,
    flushing: bool,
    /// Somebody is looking after it.
    looking: bool,
    killed: Arc<Notify>,
}

/// How many requests are looked after at once.
static LOOKS: Semaphore = Semaphore::const_new(64);

/// A request's place among those that wait; it leaves when this is dropped.
pub(super) struct Killed {
    pending: Arc<Pending>,
    number: u64,
    killed: Arc<Notify>,
}

impl Pending {
    /// Begins to look after requests, as long as they are held.
    pub(super) fn watch(runtime: &Handle) -> Arc<Pending> {
        let pending = Arc::new(Pending::default());
        let weak = Arc::downgrade(&pending);
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(INTERVAL).await;
                match weak.upgrade() {
                    Some(pending) => pending.look(),
                    None => return,
                }
            }
        });
        pending
    }

    /// Adds a request of a process (or thread).
    pub(super) fn add(self: &Arc<Self>, pid: u32, flushing: bool, inodes: [u64; 2]) -> Killed {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let killed = Arc::new(Notify::new());
        let waiting = Waiting {
            pid,
            inodes,
            since: clock::now(),
            flushing,
            looking: false,
            killed: killed.clone(),
        };
        self.waiting.lock().insert(number, waiting);
        Killed {
            pending: self.clone(),
            number,
            killed,
        }
    }

    /// Held by who answers a request at once.
    pub(super) fn answer(&self) -> parking_lot::RwLockReadGuard<'_, ()> {
        self.answering.read()
    }

    /// Waits until the answers that are being given at once are out, or their requests wait.
    pub(super) fn let_answers_out(&self) {
        drop(self.answering.write());
    }

    /// The inodes that requests are about, each with the time since which the oldest of them waits.
    pub(super) fn inodes(&self) -> HashMap<u64, Instant> {
        let mut inodes = HashMap::new();
        for waiting in self.waiting.lock().values() {
            for inode in waiting.inodes {
                let since = inodes.entry(inode).or_insert(waiting.since);
                *since = waiting.since.min(*since);
            }
        }
        inodes
    }

    /// Looks after requests that have waited long, each in a thread of its own.
    fn look(self: &Arc<Self>) {
        let now = clock::now();
        for (number, waiting) in self.waiting.lock().iter_mut() {
            if waiting.pid == 0 || waiting.looking || waiting.since + PATIENCE > now {
                continue;
            }
            let Ok(permit) = LOOKS.try_acquire() else {
                return;
            };
            waiting.looking = true;
            let (number, pid, flushing) = (*number, waiting.pid, waiting.flushing);
            let killed = waiting.killed.clone();
            let pending = self.clone();
            task::spawn(task::blocking(move || {
                if is_killed(pid) || flushing && is_exiting_by_signal(pid) {
                    killed.notify_one();
                }
                drop(permit);
                if let Some(waiting) = pending.waiting.lock().get_mut(&number) {
                    waiting.looking = false;
                }
            }));
        }
    }
}

impl Killed {
    /// Waits until the requester is killed.
    pub async fn wait(&self) {
        self.killed.notified().await;
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.pending.waiting.lock().remove(&self.number);
    }
}

/// Whether SIGKILL is pending for a thread or its process.
fn is_killed(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .is_ok_and(|status| killed_by_status(&status))
}

fn killed_by_status(status: &str) -> bool {
    status
        .lines()
        .filter_map(|line| {
            line.strip_prefix("SigPnd:")
                .or_else(|| line.strip_prefix("ShdPnd:"))
        })
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & SIGKILL_BIT != 0)
}

/// Whether a thread is on its way out because of a signal.
fn is_exiting_by_signal(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| exiting_by_stat(&stat))
}

fn exiting_by_stat(stat: &str) -> bool {
    // The command name, in parentheses, may hold anything; what follows are numbers.
    let Some((_, fields)) = stat.rsplit_once(')') else {
        return false;
    };
    let mut fields = fields.split_whitespace();
    // Fields 9 and 52 of proc(5), counted from field 3 here.
    let flags = fields.nth(6).and_then(|flags| flags.parse::<u64>().ok());
    let code = fields.nth(42).and_then(|code| code.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & EXITING != 0) && code.is_some_and(|code| code & 0x7f != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_sigkill_is_seen_and_other_signals_are_not() {
        let status = |signals: &str| format!("Name:\tx\nSigPnd:\t{signals}\nShdPnd:\t0\n");
        assert!(killed_by_status(&status("0000000000000100")));
        assert!(!killed_by_status(&status("0000000000002000")));
        assert!(killed_by_status("ShdPnd:\t0000000000000100\n"));
    }

    #[test]
    fn an_exit_by_signal_is_told_from_an_ordinary_one() {
        let stat = |flags: u64, code: u64| {
            let mut fields = vec!["0".to_string(); 50];
            fields[0] = "D".into();
            fields[6] = flags.to_string();
            fields[49] = code.to_string();
            format!("12 (a ) b) {}", fields.join(" "))
        };
        assert!(exiting_by_stat(&stat(0x40_0004, 9)));
        assert!(!exiting_by_stat(&stat(0x40_0004, 0)));
        assert!(!exiting_by_stat(&stat(0x40_0000, 9)));
    }

    #[test]
    fn this_process_is_alive() {
        let pid = std::process::id();
        assert!(!is_killed(pid) && !is_exiting_by_signal(pid));
    }
}
