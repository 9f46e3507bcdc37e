//! The thin edge to the kernel: decode, call [`crate::fs`], reply. Nothing else imports fuser.

use crate::fs::Fs;
use std::sync::Arc;

/// The filesystem as fuser wants it.
#[derive(Debug)]
pub struct Edge {
    fs: Arc<Fs>,
}

impl Edge {
    /// An edge that answers with `fs`, running what has to wait on `runtime`.
    pub fn new(fs: Arc<Fs>, runtime: tokio::runtime::Handle) -> Self {
        let _ = runtime;
        Edge { fs }
    }

    /// The filesystem behind it.
    pub fn fs(&self) -> &Arc<Fs> {
        &self.fs
    }
}

impl fuser::Filesystem for Edge {}

/// The queue to the one notifier thread. Made before the session, attached to it once mounted.
#[derive(Debug, Default)]
pub struct NotifyQueue {}

impl NotifyQueue {
    /// A queue with nothing behind it yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Starts the notifier thread.
    pub fn attach(&self, notifier: fuser::Notifier) {
        let _ = notifier;
    }
}

impl crate::fs::KernelNotify for NotifyQueue {
    fn invalidate_inode(&self, inode: u64, attributes_only: bool) {
        let _ = (inode, attributes_only);
    }
    fn invalidate_entry(&self, parent: u64, name: &[u8]) {
        let _ = (parent, name);
    }
}
