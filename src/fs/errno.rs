//! What a failure is to a program: the one table from error kinds to errno, and the error that
//! filesystem operations give.

use crate::driver::{Error, ErrorKind};
use std::fmt;

/// The result of a filesystem operation.
pub type FsResult<T> = Result<T, FsError>;

/// The errno of an error kind.
pub fn errno(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::NotFound => libc::ENOENT,
        ErrorKind::Exists => libc::EEXIST,
        ErrorKind::Changed => libc::ESTALE,
        ErrorKind::Denied => libc::EACCES,
        ErrorKind::Unauthenticated => libc::EPERM,
        ErrorKind::NoSpace => libc::ENOSPC,
        ErrorKind::TooLarge => libc::EFBIG,
        ErrorKind::NameTooLong => libc::ENAMETOOLONG,
        ErrorKind::InvalidKey => libc::EINVAL,
        ErrorKind::Unsupported => libc::EOPNOTSUPP,
        ErrorKind::Timeout => libc::ETIMEDOUT,
        ErrorKind::Unreachable => libc::EIO,
        ErrorKind::Unavailable => libc::EIO,
        ErrorKind::Corrupt => libc::EIO,
        ErrorKind::InvalidDocument => libc::EINVAL,
        ErrorKind::ReadOnly => libc::EROFS,
        ErrorKind::InvalidArgument => libc::EINVAL,
        ErrorKind::Io => libc::EIO,
    }
}

/// A failed filesystem operation. One without a message is an ordinary answer (no such file);
/// one with a message is kept for `bucketfs status` and `bucketfs why`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsError {
    errno: i32,
    message: Option<String>,
}

impl FsError {
    /// An ordinary answer.
    pub const fn plain(errno: i32) -> Self {
        FsError {
            errno,
            message: None,
        }
    }

    /// A failure with its sentence.
    pub fn new(errno: i32, message: impl Into<String>) -> Self {
        FsError {
            errno,
            message: Some(message.into()),
        }
    }

    /// The errno.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// The sentence, if this is more than an ordinary answer.
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    /// The same failure under another errno.
    pub fn with_errno(mut self, errno: i32) -> Self {
        self.errno = errno;
        self
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => write!(f, "{}: {message}", name(self.errno)),
            None => f.write_str(&name(self.errno)),
        }
    }
}

impl std::error::Error for FsError {}

impl From<Error> for FsError {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound => FsError::plain(libc::ENOENT),
            kind => FsError::new(errno(kind), error.to_string()),
        }
    }
}

/// Failures of the local disk under the stage.
impl From<std::io::Error> for FsError {
    fn from(error: std::io::Error) -> Self {
        FsError::new(
            error.raw_os_error().unwrap_or(libc::EIO),
            format!("staging area: {error}"),
        )
    }
}

/// The name of an errno, such as `ESTALE`.
pub fn name(errno: i32) -> String {
    let known = match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::EACCES => "EACCES",
        libc::EBADF => "EBADF",
        libc::EEXIST => "EEXIST",
        libc::EXDEV => "EXDEV",
        libc::ENOTDIR => "ENOTDIR",
        libc::EISDIR => "EISDIR",
        libc::EINVAL => "EINVAL",
        libc::ETXTBSY => "ETXTBSY",
        libc::EFBIG => "EFBIG",
        libc::ENOSPC => "ENOSPC",
        libc::EROFS => "EROFS",
        libc::ENAMETOOLONG => "ENAMETOOLONG",
        libc::ENOTEMPTY => "ENOTEMPTY",
        libc::EILSEQ => "EILSEQ",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::ESTALE => "ESTALE",
        libc::EDQUOT => "EDQUOT",
        libc::ENODATA => "ENODATA",
        libc::ERANGE => "ERANGE",
        libc::E2BIG => "E2BIG",
        libc::ENXIO => "ENXIO",
        other => return format!("errno {other}"),
    };
    known.into()
}
