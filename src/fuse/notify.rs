//! Notifications to the kernel, sent by one thread that holds no lock a handler takes.
//!
//! While a request about an inode waits, the kernel may hold a lock on that inode or its pages, and
//! a notification about it would wait as well: with all those behind it, and beyond the reach of
//! SIGKILL, which would leave the connection of a killed daemon open for ever. Such notifications
//! are put off until the request is answered. Not every such request is known here: so the thread
//! has descriptors of its own, and the device that requests are read from closes without it. That
//! ends what waits, and then the thread.
//!
//! An answer that was made up before a change must not reach the kernel after its notification,
//! which would be lost on it. Answers given at once are waited for; those of requests that wait
//! are told by the same rule as above.

use crate::clock::{self, Instant};
use crate::fs::KernelNotify;
use crate::fuse::Pending;
use crate::sys;
use bytes::Bytes;
use fuser::{INodeNo, Notifier};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How many notifications may wait. What does not fit is left to the TTL.
const QUEUE: usize = 16 << 10;

/// How often those that were put off are looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// A request that waits longer than this may go on waiting. Where there are always others, but
/// none so old, a notification is put off no longer than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// From where on files go on with which bytes, to their end, that the kernel has not been told yet.
/// What comes last is all of it. A leaf lock, held for moments only.
type Ends = parking_lot::Mutex<HashMap<u64, (u64, Bytes)>>;

/// How many files that is told of. Of the others the kernel only has to forget what it has.
const ENDS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Notification {
    Inode(u64),
    /// The same of a file of which [`Ends`] tells how it goes on.
    GoesOn(u64),
    Entry(u64, Vec<u8>),
}

impl Notification {
    /// The inode that the kernel locks for it.
    fn inode(&self) -> u64 {
        match self {
            Notification::Inode(ino) | Notification::GoesOn(ino) => *ino,
            Notification::Entry(parent, _) => *parent,
        }
    }

    fn send(self, device: &OwnedFd, ends: &Ends) {
        // A refusal is most often that the kernel does not know it.
        let _ = match self {
            Notification::Inode(ino) => write(device, &invalidation(ino)),
            // Only what is stored moves the end that the kernel reads to.
            Notification::GoesOn(ino) => {
                // The kernel may hold what is written until a handler has answered that takes the
                // lock.
                let end = ends.lock().remove(&ino);
                let stored = match end {
                    Some((at, bytes)) => write(device, &store(ino, at, &bytes)),
                    // Told by the one before.
                    None => Ok(()),
                };
                stored.and_then(|()| write(device, &invalidation(ino)))
            }
            Notification::Entry(parent, name) => write(device, &expiry(parent, &name)),
        };
    }
}

/// Notifications that were put off.
#[derive(Debug, Default)]
struct PutOff(HashMap<Notification, Since>);

/// Since when a notification is put off, and when it was last asked for.
#[derive(Clone, Copy, Debug)]
struct Since {
    first: Instant,
    last: Instant,
}

impl PutOff {
    /// Takes one in, or gives it back when it can be sent. `waiting` tells since when requests
    /// about an inode wait.
    fn take(
        &mut self,
        notification: Notification,
        waiting: &HashMap<u64, Instant>,
        now: Instant,
    ) -> Option<Notification> {
        if !waiting.contains_key(&notification.inode()) {
            return Some(notification);
        }
        if self.0.len() < QUEUE {
            let since = self.0.entry(notification);
            since
                .or_insert(Since {
                    first: now,
                    last: now,
                })
                .last = now;
        }
        // What does not fit is left to the TTL.
        None
    }

    /// Gives back those that can be sent now. One that a request still outlives stays as well.
    fn due(&mut self, waiting: &HashMap<u64, Instant>, now: Instant) -> Vec<Notification> {
        let mut due = Vec::new();
        self.0.retain(|notification, since| {
            let Some(oldest) = waiting.get(&notification.inode()) else {
                due.push(notification.clone());
                return false;
            };
            if since.first + PATIENCE > now || *oldest + PATIENCE <= now {
                return true;
            }
            due.push(notification.clone());
            since.first = now;
            *oldest <= since.last
        });
        due
    }
}

/// Sends what comes, and later what cannot be sent yet, until the queue is dropped.
fn run(receiver: &Receiver<Notification>, device: &OwnedFd, pending: &Pending, ends: &Ends) {
    let mut put_off = PutOff::default();
    loop {
        let next = match put_off.0.is_empty() {
            true => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => receiver.recv_timeout(INTERVAL),
        };
        pending.let_answers_out();
        let now = clock::now();
        match next {
            Ok(next) => {
                if let Some(next) = put_off.take(next, &pending.inodes(), now) {
                    next.send(device, ends);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                for next in put_off.due(&pending.inodes(), now) {
                    next.send(device, ends);
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// The queue to the one notifier thread. Made before the session, attached to it once mounted.
#[derive(Debug)]
pub struct NotifyQueue {
    sender: SyncSender<Notification>,
    ends: Arc<Ends>,
    receiver: parking_lot::Mutex<Option<Receiver<Notification>>>,
    attached: OnceLock<Notifier>,
}

impl NotifyQueue {
    /// A queue with nothing behind it yet.
    pub fn new() -> Arc<Self> {
        let (sender, receiver) = sync_channel(QUEUE);
        Arc::new(NotifyQueue {
            sender,
            ends: Arc::default(),
            receiver: parking_lot::Mutex::new(Some(receiver)),
            attached: OnceLock::new(),
        })
    }

    /// Starts the notifier thread of a session, which heeds the requests that wait. It ends when
    /// the queue is dropped.
    pub fn attach<F: fuser::Filesystem>(
        &self,
        session: &fuser::Session<F>,
        pending: Arc<Pending>,
    ) -> io::Result<()> {
        let Some(receiver) = self.receiver.lock().take() else {
            return Ok(());
        };
        let _ = self.attached.set(session.notifier());
        let cloned = sys::clone_fuse_device(session.as_fd());
        let own = cloned.is_ok();
        let device = match cloned {
            Ok(device) => device,
            Err(error) => {
                log::debug!("no other way to the kernel: {error}");
                session.as_fd().try_clone_to_owned()?
            }
        };
        let ends = self.ends.clone();
        let notify = move || {
            // Where that cannot be, the thread shares what the others have.
            let _ = own.then(|| sys::keep_only(&device));
            run(&receiver, &device, &pending, &ends);
        };
        let started = std::thread::Builder::new()
            .name("notifier".into())
            .spawn(notify);
        if let Err(error) = started {
            log::error!("no notifier thread: {error}; what others change is seen after the TTL");
        }
        Ok(())
    }

    fn queue(&self, notification: Notification) {
        if let Err(TrySendError::Full(_)) = self.sender.try_send(notification) {
            log::debug!("too many notifications wait: one is left to the TTL");
        }
    }
}

fn write(device: &OwnedFd, message: &[u8]) -> io::Result<()> {
    rustix::io::write(device, message)?;
    Ok(())
}

/// `FUSE_NOTIFY_INVAL_INODE` of attributes and all pages.
fn invalidation(inode: u64) -> Vec<u8> {
    const INVAL_INODE: u32 = 2;
    /// `struct fuse_out_header` and `struct fuse_notify_inval_inode_out`.
    const LEN: usize = 16 + 24;
    let mut message = Vec::with_capacity(LEN);
    message.extend((LEN as u32).to_ne_bytes());
    message.extend(INVAL_INODE.to_ne_bytes());
    message.extend(0u64.to_ne_bytes());
    message.extend(inode.to_ne_bytes());
    // From the first byte, and to the last.
    message.extend([0; 16]);
    message
}

/// `FUSE_NOTIFY_STORE`.
fn store(inode: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    const STORE: u32 = 4;
    /// `struct fuse_out_header` and `struct fuse_notify_store_out`.
    const FIXED: usize = 16 + 24;
    let length = FIXED + bytes.len();
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(STORE.to_ne_bytes());
    message.extend(0u64.to_ne_bytes());
    message.extend(inode.to_ne_bytes());
    message.extend(offset.to_ne_bytes());
    message.extend((bytes.len() as u32).to_ne_bytes());
    message.extend([0; 4]);
    message.extend(bytes);
    message
}

/// Makes the kernel look a name up again before it believes in it: `FUSE_NOTIFY_INVAL_ENTRY` with
/// `FUSE_EXPIRE_ONLY`, which kernels before 6.2 take for the notification without it. With it
/// the name stays where it is meanwhile: most often the answer is the same inode, and who works in
/// a directory must not see it vanish.
fn expiry(parent: u64, name: &[u8]) -> Vec<u8> {
    const INVAL_ENTRY: u32 = 3;
    const EXPIRE_ONLY: u32 = 1;
    /// `struct fuse_out_header` and `struct fuse_notify_inval_entry_out`, and the final NUL.
    const FIXED: usize = 16 + 16 + 1;
    let mut message = Vec::with_capacity(FIXED + name.len());
    message.extend(((FIXED + name.len()) as u32).to_ne_bytes());
    message.extend(INVAL_ENTRY.to_ne_bytes());
    message.extend(0u64.to_ne_bytes());
    message.extend(parent.to_ne_bytes());
    message.extend((name.len() as u32).to_ne_bytes());
    message.extend(EXPIRE_ONLY.to_ne_bytes());
    message.extend(name);
    message.push(0);
    message
}

impl KernelNotify for NotifyQueue {
    fn invalidate_inode(&self, inode: u64, attributes_only: bool) {
        if !attributes_only {
            self.queue(Notification::Inode(inode));
        } else if let Some(notifier) = self.attached.get() {
            // Offset -1: attributes only. This takes no lock in the kernel that a handler's
            // requester may hold.
            if let Err(error) = notifier.inval_inode(INodeNo(inode), -1, 0) {
                log::debug!("notification: {error}");
            }
        }
    }

    fn goes_on(&self, inode: u64, at: u64, bytes: Bytes) {
        let mut ends = self.ends.lock();
        let told = ends.len() < ENDS || ends.contains_key(&inode);
        if told {
            ends.insert(inode, (at, bytes));
        }
        drop(ends);
        self.queue(match told {
            true => Notification::GoesOn(inode),
            false => Notification::Inode(inode),
        });
    }

    fn invalidate_entry(&self, parent: u64, name: &[u8]) {
        self.queue(Notification::Entry(parent, name.to_vec()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_wait_for_requests_about_their_inode() {
        let (start, second) = (clock::now(), Duration::from_secs(1));
        let entry = |parent| Notification::Entry(parent, b"name".to_vec());
        let mut put_off = PutOff::default();
        let hung = HashMap::from([(7, start)]);
        let free = put_off.take(Notification::Inode(8), &hung, start);
        assert_eq!(free, Some(Notification::Inode(8)));
        for _ in 0..2 {
            assert_eq!(put_off.take(entry(7), &hung, start), None);
        }
        assert!(put_off.due(&hung, start + second * 60).is_empty());
        assert_eq!(put_off.due(&HashMap::new(), start + second), [entry(7)]);
        assert!(put_off.due(&HashMap::new(), start + second).is_empty());
    }

    #[test]
    fn a_handler_does_not_wait_for_what_the_kernel_holds_back() {
        // A pipe that is full holds back as the kernel does.
        let (reader, device) = io::pipe().unwrap();
        let device = OwnedFd::from(device);
        rustix::io::ioctl_fionbio(&device, true).unwrap();
        while rustix::io::write(&device, &[0; 4096]).is_ok() {}
        rustix::io::ioctl_fionbio(&device, false).unwrap();
        let ends = Arc::new(Ends::default());
        ends.lock().insert(7, (0, Bytes::from_static(b"line")));
        let theirs = ends.clone();
        let notifier = std::thread::spawn(move || Notification::GoesOn(7).send(&device, &theirs));
        // Until it is about to write.
        let taken = || {
            let ends = ends.try_lock_for(Duration::from_secs(10));
            ends.expect("no lock is held meanwhile").is_empty()
        };
        while !taken() {
            std::thread::yield_now();
        }
        drop(reader);
        notifier.join().unwrap();
    }

    #[test]
    fn an_inode_that_is_always_busy_is_notified_all_the_same() {
        let (start, second) = (clock::now(), Duration::from_secs(1));
        let mut put_off = PutOff::default();
        let busy = |at: Instant| HashMap::from([(7, at)]);
        let inode = Notification::Inode(7);
        assert_eq!(put_off.take(inode.clone(), &busy(start), start), None);
        let later = start + second / 2;
        assert!(put_off.due(&busy(later), later).is_empty());
        let later = start + second * 2;
        assert!(put_off.due(&busy(start), later).is_empty());
        assert_eq!(put_off.due(&busy(later - second / 2), later), [inode]);
    }

    #[test]
    fn a_request_older_than_the_last_change_is_waited_for() {
        let (start, second) = (clock::now(), Duration::from_secs(1));
        let mut put_off = PutOff::default();
        let inode = Notification::Inode(7);
        let busy = |since: Instant| HashMap::from([(7, since)]);
        assert_eq!(put_off.take(inode.clone(), &busy(start), start), None);
        // It changes again while a younger request waits, whose answer may be of before.
        let (asked, again) = (start + second / 2, start + second * 3 / 4);
        assert_eq!(put_off.take(inode.clone(), &busy(asked), again), None);
        let later = start + second * 5 / 4;
        for waiting in [busy(asked), HashMap::new()] {
            assert_eq!(put_off.due(&waiting, later), std::slice::from_ref(&inode));
        }
        assert!(put_off.due(&HashMap::new(), later).is_empty());
    }

    #[test]
    fn an_invalidation_is_laid_out_as_the_kernel_reads_it() {
        let message = invalidation(0x0102);
        assert_eq!(message.len(), 40);
        assert_eq!(message[0..4], 40u32.to_ne_bytes());
        assert_eq!(message[4..8], 2u32.to_ne_bytes());
        assert_eq!(message[16..24], 0x0102u64.to_ne_bytes());
        assert_eq!(message[24..], [0; 16]);
    }

    #[test]
    fn stored_bytes_are_laid_out_as_the_kernel_reads_them() {
        let message = store(0x0102, 0x0304, b"text");
        assert_eq!(message.len(), 44);
        assert_eq!(message[0..4], 44u32.to_ne_bytes());
        assert_eq!(message[4..8], 4u32.to_ne_bytes());
        assert_eq!(message[16..24], 0x0102u64.to_ne_bytes());
        assert_eq!(message[24..32], 0x0304u64.to_ne_bytes());
        assert_eq!(message[32..36], 4u32.to_ne_bytes());
        assert_eq!(message[40..], *b"text");
    }

    #[test]
    fn an_expiry_is_laid_out_as_the_kernel_reads_it() {
        let message = expiry(0x0102, b"name");
        assert_eq!(message.len(), 37);
        assert_eq!(message[0..4], 37u32.to_ne_bytes());
        assert_eq!(message[4..8], 3u32.to_ne_bytes());
        assert_eq!(message[8..16], [0; 8]);
        assert_eq!(message[16..24], 0x0102u64.to_ne_bytes());
        assert_eq!(message[24..28], 4u32.to_ne_bytes());
        assert_eq!(message[28..32], 1u32.to_ne_bytes());
        assert_eq!(&message[32..], b"name\0");
    }
}
