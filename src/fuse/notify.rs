//! Notifications to the kernel, sent by one thread that holds no lock a handler takes.

use crate::fs::KernelNotify;
use fuser::{INodeNo, Notifier};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
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

    /// Starts the notifier thread for a session. It ends when the queue is dropped.
    pub fn attach<F: fuser::Filesystem>(&self, session: &fuser::Session<F>) -> io::Result<()> {
        let Some(receiver) = self.receiver.lock().take() else {
            return Ok(());
        };
        let notifier = session.notifier();
        let device = session.as_fd().try_clone_to_owned()?;
        let sender = notifier.clone();
        let started = std::thread::Builder::new()
            .name("notifier".into())
            .spawn(move || {
                for notification in receiver {
                    let sent = match notification {
                        Notification::Inode(ino) => sender.inval_inode(INodeNo(ino), 0, 0),
                        Notification::Entry(parent, name) => expire_entry(&device, parent, &name),
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
        Ok(())
    }

    fn queue(&self, notification: Notification) {
        if let Err(TrySendError::Full(_)) = self.sender.try_send(notification) {
            log::debug!("too many notifications wait: one is left to the TTL");
        }
    }
}

/// Makes the kernel look a name up again before it believes in it. Unlike fuser's notification this
/// leaves the name where it is meanwhile: most often the answer is the same inode, and who works
/// in a directory must not see it vanish.
fn expire_entry(device: &OwnedFd, parent: u64, name: &[u8]) -> io::Result<()> {
    rustix::io::write(device, &expiry(parent, name))?;
    Ok(())
}

/// `FUSE_NOTIFY_INVAL_ENTRY` with `FUSE_EXPIRE_ONLY`, which kernels before 6.2 take for the
/// notification without it.
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

    fn invalidate_entry(&self, parent: u64, name: &[u8]) {
        self.queue(Notification::Entry(parent, name.to_vec()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
