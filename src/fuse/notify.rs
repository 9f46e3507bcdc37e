//! Notifications to the kernel, sent by one thread that holds no lock a handler takes.

use crate::fs::KernelNotify;
use fuser::{INodeNo, Notifier};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};

/// How many notifications may wait. What does not fit is left to the TTL.
const QUEUE: usize = 16 << 10;

#[derive(Debug)]
enum Notification {
    Inode(u64),
    Entry(u64, Vec<u8>),
}

/// The queue to the one notifier thread. Made before the session, attached to it once mounted.
#[derive(Debug)]
pub struct NotifyQueue {
    sender: SyncSender<Notification>,
    receiver: parking_lot::Mutex<Option<Receiver<Notification>>>,
    attached: OnceLock<Notifier>,
}

impl NotifyQueue {
    /// A queue with nothing behind it yet.
    pub fn new() -> Arc<Self> {
        let (sender, receiver) = sync_channel(QUEUE);
        Arc::new(NotifyQueue {
            sender,
            receiver: parking_lot::Mutex::new(Some(receiver)),
            attached: OnceLock::new(),
        })
    }

    /// Starts the notifier thread. It ends when the queue is dropped.
    pub fn attach(&self, notifier: Notifier) {
        let Some(receiver) = self.receiver.lock().take() else {
            return;
        };
        let sender = notifier.clone();
        let started = std::thread::Builder::new()
            .name("notifier".into())
            .spawn(move || {
                for notification in receiver {
                    let sent = match notification {
                        Notification::Inode(ino) => sender.inval_inode(INodeNo(ino), 0, 0),
                        Notification::Entry(parent, name) => {
                            sender.inval_entry(INodeNo(parent), &OsString::from_vec(name))
                        }
                    };
                    if let Err(error) = sent {
                        log::debug!("notification: {error}");
                    }
                }
            });
        if let Err(error) = started {
            log::error!("no notifier thread: {error}; what others change is seen after the TTL");
        }
        let _ = self.attached.set(notifier);
    }

    fn queue(&self, notification: Notification) {
        if let Err(TrySendError::Full(_)) = self.sender.try_send(notification) {
            log::debug!("too many notifications wait: one is left to the TTL");
        }
    }
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

    fn invalidate_entry(&self, parent: u64, name: &[u8]) {
        self.queue(Notification::Entry(parent, name.to_vec()));
    }
}
