//! Extended attributes.

use super::attr::Kind;
use super::errno::{FsError, FsResult};
use super::inode::Inode;
use super::query::is_of_query;
use super::{Fs, StatAttrs};
use crate::clock;
use crate::driver::{AttributeChange, AttributeSupport, ErrorKind};
use bytes::Bytes;
use std::sync::Arc;

/// The extended attribute that tells a path's last error.
const ERROR_XATTR: &[u8] = b"user.bucketfs.error";
/// The one that tells the version.
const ETAG_XATTR: &[u8] = b"user.bucketfs.etag";
/// The one that tells the key.
const KEY_XATTR: &[u8] = b"user.bucketfs.key";
/// Longest value of an extended attribute, as in the kernel.
const XATTR_MAX: usize = 64 << 10;

impl Fs {
    /// Attributes as the store keeps them, asked for when a listing did not tell.
    async fn user_attributes(&self, inode: &Arc<Inode>) -> FsResult<()> {
        let settable = !self.capabilities.settable.is_empty();
        if self.capabilities.attributes == AttributeSupport::None && !settable {
            return Err(FsError::plain(libc::EOPNOTSUPP));
        }
        let key = {
            let state = inode.state();
            // What is told beside the bytes alone may move without them.
            let known = state.attributes.is_some() && !settable;
            let new = state.is_local() && state.file.base.is_none();
            if known || new {
                return Ok(());
            }
            state.key.clone()
        };
        if key.is_empty() {
            return Ok(());
        }
        let since = clock::now();
        match self.driver.head(&key).await {
            Ok(mut info) => {
                let mut state = inode.state();
                let base = state.file.base.as_ref();
                // Of another version nothing is kept; its put's condition will tell. What is known by
                // an own change that was answered meanwhile is younger.
                let older = state.attributes.is_some() && state.checked > since;
                if base.is_none_or(|base| *base == info.etag) && !older {
                    info.attributes.get_or_insert_default();
                    if state.file.dirty {
                        self.show_stored(inode, &mut state, &info);
                    }
                    state.note_attributes(&info, self.driver.wall());
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Whether an inode may have attributes that nobody told.
    fn are_expected(&self, inode: &Inode) -> bool {
        match (self.capabilities.attributes, self.options.stat_attrs) {
            (AttributeSupport::None, _) | (_, StatAttrs::None) => false,
            (AttributeSupport::Listed, _) | (_, StatAttrs::Full) => true,
            (AttributeSupport::Object, StatAttrs::Lazy) => {
                // Of a version whose attributes are unknown, this is when it was written.
                let written = inode.state().attr.mtime;
                self.driver.has_attributes(&inode.key(), Some(written))
            }
        }
    }

    /// An extended attribute.
    pub async fn getxattr(&self, ino: u64, name: &[u8]) -> FsResult<Bytes> {
        let absent = FsError::plain(libc::ENODATA);
        if is_of_query(ino) {
            return user_name(name).and(Err(absent));
        }
        let inode = self.inode(ino)?;
        let text = |text: String| Bytes::from(text.into_bytes());
        match name {
            ERROR_XATTR => return inode.state().last_error.clone().map(text).ok_or(absent),
            ETAG_XATTR => {
                let base = inode.state().file.base.clone();
                return base.map(|etag| text(etag.as_str().into())).ok_or(absent);
            }
            KEY_XATTR => return Ok(inode.key().bytes()),
            _ => {}
        }
        let name = user_name(name)?;
        self.user_attributes(&inode).await?;
        let state = inode.state();
        let attributes = state.attributes.as_ref();
        attributes
            .and_then(|attributes| attributes.user.get(&name))
            .cloned()
            .ok_or(absent)
    }

    /// The names of extended attributes, each followed by a NUL byte.
    pub async fn listxattr(&self, ino: u64) -> FsResult<Bytes> {
        if is_of_query(ino) {
            return Ok(Bytes::new());
        }
        let inode = self.inode(ino)?;
        // `ls -l` asks for the names of each file.
        let untold = inode.state().attributes.is_none();
        if untold && !self.are_expected(&inode) {
            return Ok(Bytes::new());
        }
        match self.user_attributes(&inode).await {
            Ok(()) => {}
            Err(error) if error.errno() == libc::EOPNOTSUPP => return Ok(Bytes::new()),
            Err(error) => return Err(error),
        }
        let mut names = Vec::new();
        if let Some(attributes) = &inode.state().attributes {
            for name in attributes.user.keys() {
                names.extend_from_slice(b"user.");
                names.extend_from_slice(name.as_bytes());
                names.push(0);
            }
        }
        Ok(names.into())
    }

    /// Sets an extended attribute; `flags` may demand that it is new (`XATTR_CREATE`) or not
    /// (`XATTR_REPLACE`).
    pub async fn setxattr(
        self: &Arc<Self>,
        ino: u64,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> FsResult<()> {
        if value.len() > XATTR_MAX {
            return Err(FsError::plain(libc::E2BIG));
        }
        let value = Bytes::copy_from_slice(value);
        self.change_xattr(ino, name, Some(value), flags).await
    }

    /// Removes an extended attribute.
    pub async fn removexattr(self: &Arc<Self>, ino: u64, name: &[u8]) -> FsResult<()> {
        self.change_xattr(ino, name, None, libc::XATTR_REPLACE)
            .await
    }

    async fn change_xattr(
        self: &Arc<Self>,
        ino: u64,
        name: &[u8],
        value: Option<Bytes>,
        flags: i32,
    ) -> FsResult<()> {
        let inode = self.inode(ino)?;
        // Drivers keep their own facts, such as commit ids, under such names.
        if name.starts_with(b"user.bucketfs.") {
            return Err(FsError::plain(libc::EPERM));
        }
        let name = user_name(name)?;
        if self.options.read_only {
            return Err(FsError::plain(libc::EROFS));
        }
        if !matches!(inode.kind, Kind::File | Kind::Directory) {
            return Err(FsError::plain(libc::EPERM));
        }
        let _names = self.names.read().await;
        let _turn = inode.turn.lock().await;
        self.user_attributes(&inode).await?;
        let exists = {
            let state = inode.state();
            let attributes = state.attributes.as_ref();
            attributes.is_some_and(|attributes| attributes.user.contains_key(&name))
        };
        if flags & libc::XATTR_CREATE != 0 && exists {
            return Err(FsError::plain(libc::EEXIST));
        }
        if flags & libc::XATTR_REPLACE != 0 && !exists {
            return Err(FsError::plain(libc::ENODATA));
        }
        let change = AttributeChange {
            user: [(name, value)].into(),
            ..AttributeChange::default()
        };
        self.change_attributes(&inode, change, false).await
    }
}

/// The stored name of an extended attribute; only `user.` ones are kept.
fn user_name(name: &[u8]) -> FsResult<String> {
    let name = name
        .strip_prefix(b"user.")
        .filter(|name| !name.is_empty())
        .ok_or(FsError::plain(libc::EOPNOTSUPP))?;
    String::from_utf8(name.to_vec()).map_err(|_| FsError::plain(libc::EILSEQ))
}
