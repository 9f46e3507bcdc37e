//! The top of a mount that shows buckets: what cannot be done there, and between them.

use super::errno::{FsError, FsResult};
use super::inode::{Inode, ROOT};
use super::{Fs, HIDDEN, Top};

/// Why nothing but a bucket can be at the top.
const ONLY_BUCKETS: &str = "only buckets are at the top of this mount; choose a directory in one";
/// Why a bucket is neither made nor removed.
const NEEDS_OPTION: &str = "buckets are made and removed only with --create-buckets";

impl Fs {
    fn shows_buckets(&self) -> bool {
        self.options.top != Top::Bucket
    }

    /// Whether a name is one of ours that never shows.
    pub(super) fn is_hidden(&self, directory: &Inode, name: &[u8]) -> bool {
        name == HIDDEN
            && match self.options.top {
                Top::Bucket => directory.ino == ROOT,
                Top::Buckets { .. } => {
                    let key = directory.key();
                    let slash = key.as_bytes().iter().position(|byte| *byte == b'/');
                    slash.is_some_and(|at| at + 1 == key.len())
                }
            }
    }

    /// Refuses to make or remove at the top what cannot be there.
    pub(super) fn require_below_top(
        &self,
        directory: &Inode,
        name: &[u8],
        is_directory: bool,
    ) -> FsResult<()> {
        let why = match self.options.top {
            Top::Buckets { .. } if directory.ino == ROOT && !is_directory => ONLY_BUCKETS,
            Top::Buckets { may_make: false } if directory.ino == ROOT => NEEDS_OPTION,
            _ => return Ok(()),
        };
        let name = String::from_utf8_lossy(name);
        Err(FsError::new(
            libc::EPERM,
            format!("{name:?} in {:?}: {why}", directory.path()),
        ))
    }

    /// Refuses what would go from one bucket to another: programs copy then.
    pub(super) fn require_one_bucket(&self, a: &Inode, b: &Inode) -> FsResult<()> {
        let bucket = |inode: &Inode| {
            let key = inode.key();
            let mut parts = key.as_bytes().split(|byte| *byte == b'/');
            parts.next().map(<[u8]>::to_vec)
        };
        if self.shows_buckets() && bucket(a) != bucket(b) {
            return Err(FsError::plain(libc::EXDEV));
        }
        Ok(())
    }

    /// Refuses to give a bucket another name.
    pub(super) fn require_no_bucket(&self, directory: &Inode, name: &[u8]) -> FsResult<()> {
        if !self.shows_buckets() || directory.ino != ROOT {
            return Ok(());
        }
        let name = String::from_utf8_lossy(name);
        Err(FsError::new(
            libc::EPERM,
            format!(
                "{name:?} in {:?}: a bucket keeps its name; make another one and move what is in it",
                directory.path()
            ),
        ))
    }
}
