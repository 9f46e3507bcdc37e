//! The thin edge to the kernel: decode, call [`crate::fs`], reply. Nothing else imports fuser.
//!
//! An operation is polled once where it arrives, so that what the caches know is answered on the
//! FUSE thread; what has to wait goes on as a tokio task with its reply. While it waits, a killed
//! requester is let go (`killed`); the operation itself goes on to its end.

mod decode;
mod descriptors;
mod killed;
mod notify;
mod ops;
mod reply;

pub use killed::Pending;
pub use notify::NotifyQueue;

use crate::fs::{Caller, Entry, Fs, FsError, FsResult, Opened};
use crate::layer::FaultPlan;
use crate::task;
use fuser::{Errno, INodeNo, Request};
use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use tokio::runtime::Handle;

/// The filesystem as fuser wants it.
#[derive(Debug)]
pub struct Edge {
    fs: Arc<Fs>,
    runtime: Handle,
    pending: Arc<Pending>,
    mount: MountId,
    /// For tests.
    faults: Option<Arc<FaultPlan>>,
}

/// The kernel's number of the mount, which is known when it is mounted.
pub type MountId = Arc<OnceLock<u64>>;

impl Edge {
    /// An edge that answers with `fs`, running what has to wait on `runtime`, and as late as the
    /// `faults` say.
    pub fn new(fs: Arc<Fs>, runtime: Handle, faults: Option<Arc<FaultPlan>>) -> Self {
        let pending = Pending::watch(&runtime);
        Edge {
            fs,
            runtime,
            pending,
            mount: MountId::default(),
            faults,
        }
    }

    /// Where the number of its mount belongs.
    pub fn mount(&self) -> MountId {
        self.mount.clone()
    }

    /// The requests that wait for the store.
    pub fn pending(&self) -> Arc<Pending> {
        self.pending.clone()
    }

    /// The filesystem behind it.
    pub fn fs(&self) -> &Arc<Fs> {
        &self.fs
    }

    /// Runs an operation and sends its answer: at once if it need not wait, else from a task.
    fn run<T, R, F>(&self, what: What, reply: R, operation: F, send: fn(R, Result<T, Errno>))
    where
        T: Send + 'static,
        R: Send + 'static,
        F: Future<Output = FsResult<T>> + Send + 'static,
    {
        self.run_holding(what, reply, operation, send, |_, _| {});
    }

    /// [`Edge::run`] for an answer that makes the kernel hold something, which `let_go` takes back
    /// when it comes too late for a killed requester.
    fn run_holding<T, R, F>(
        &self,
        what: What,
        reply: R,
        operation: F,
        send: fn(R, Result<T, Errno>),
        let_go: fn(&Arc<Fs>, T),
    ) where
        T: Send + 'static,
        R: Send + 'static,
        F: Future<Output = FsResult<T>> + Send + 'static,
    {
        let _entered = self.runtime.enter();
        let late = self.faults.as_ref().map(|plan| plan.lateness(what.name));
        let (late, answer_late) = late.unwrap_or_default();
        let mut operation = Box::pin(async move {
            if !late.is_zero() {
                tokio::time::sleep(late).await;
            }
            operation.await
        });
        let answer = move |reply: R, result| match answer_late.is_zero() {
            true => send(reply, result),
            // It counts as given: that is what the rule is for.
            false => drop(task::spawn(async move {
                tokio::time::sleep(answer_late).await;
                send(reply, result);
            })),
        };
        let mut context = Context::from_waker(Waker::noop());
        let fs = self.fs.clone();
        let _answering = self.pending.answer();
        match catch_unwind(AssertUnwindSafe(|| operation.as_mut().poll(&mut context))) {
            Ok(Poll::Ready(result)) => answer(reply, told(&fs, &what, result)),
            Ok(Poll::Pending) => {
                let flushing = what.name == "flush";
                let killed = self.pending.add(what.pid, flushing, [what.ino, what.other]);
                self.runtime.spawn(async move {
                    let result = tokio::select! {
                        biased;
                        result = &mut operation => result,
                        () = killed.wait() => {
                            answer(reply, Err(Errno::EINTR));
                            // The kernel waits for nothing any more.
                            drop(killed);
                            // What was begun is brought to its end.
                            if let Ok(late) = told(&fs, &what, operation.await) {
                                let_go(&fs, late);
                            }
                            what.forget_before(&fs);
                            return;
                        }
                    };
                    answer(reply, told(&fs, &what, result));
                });
            }
            // The reply was dropped on the way, which answers EIO. The hook has logged the panic.
            Err(_) => log::error!("{} of inode {} panicked", what.name, what.ino),
        }
    }
}

/// Which operation of whom an answer is for.
struct What {
    name: &'static str,
    ino: u64,
    /// The other inode of an operation on two.
    other: u64,
    pid: u32,
    /// Whether it changes these inodes.
    changes: bool,
    /// The names that it may change, each in its directory.
    names: Vec<(u64, Vec<u8>)>,
}

impl What {
    fn new(name: &'static str, request: &Request, ino: INodeNo) -> What {
        What {
            name,
            ino: ino.0,
            other: ino.0,
            pid: request.pid(),
            changes: false,
            names: Vec::new(),
        }
    }

    /// The same of one that changes an inode.
    fn changing(name: &'static str, request: &Request, ino: INodeNo) -> What {
        What {
            changes: true,
            ..What::new(name, request, ino)
        }
    }

    /// The same of one that changes what a name stands for.
    fn naming(name: &'static str, request: &Request, directory: INodeNo, entry: &OsStr) -> What {
        What::new(name, request, directory).and_name(directory, entry)
    }

    fn and_name(mut self, directory: INodeNo, entry: &OsStr) -> What {
        self.other = directory.0;
        self.names.push((directory.0, entry.as_bytes().to_vec()));
        self
    }

    /// Has the kernel ask anew for what an operation changed after its requester was let go: meanwhile
    /// it may have been told of what was there before, and believe it.
    fn forget_before(&self, fs: &Fs) {
        if self.changes {
            fs.forget_pages([self.ino, self.other]);
        }
        fs.forget_entries(&self.names);
    }
}

/// Takes back what an entry makes the kernel hold: a lookup.
fn let_entry_go(fs: &Arc<Fs>, entry: Entry) {
    fs.forget(entry.attr.ino, 1);
}

/// Takes back what an open makes the kernel hold: a handle.
fn let_handle_go(fs: &Arc<Fs>, opened: Opened) {
    let fs = fs.clone();
    task::spawn(async move {
        // Its failure is recorded by the commit.
        let _ = fs.release(opened.handle).await;
    });
}

fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        pid: request.pid(),
    }
}

/// Records a failure with a sentence, and gives the errno.
fn told<T>(fs: &Fs, what: &What, result: FsResult<T>) -> Result<T, Errno> {
    result.map_err(|error| {
        fs.report(what.name, what.ino, &error);
        errno(&error)
    })
}

fn errno(error: &FsError) -> Errno {
    Errno::from_i32(error.errno())
}
