//! What goes wrong in a store, as a kind that the rest of bucketfs can act on.

use crate::key::Key;
use std::error::Error as StdError;
use std::fmt;

/// The result of a driver operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation failed. `fs/errno.rs` maps each kind to an errno; there is no other such table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// There is no such object (or bucket, or version).
    NotFound,
    /// `IfAbsent` lost: the object is there.
    Exists,
    /// `IfMatch` lost: the object has another etag, or is gone.
    Changed,
    /// The credentials are known and do not suffice.
    Denied,
    /// There are no credentials, or the store does not know them.
    Unauthenticated,
    /// The store is full, or a quota is reached.
    NoSpace,
    /// The object is larger than the store can hold.
    TooLarge,
    /// The key is longer than the store can hold.
    NameTooLong,
    /// The store cannot hold an object of that key (not UTF-8, folded together with another key).
    InvalidKey,
    /// The store lacks the capability, or this object cannot have it.
    Unsupported,
    /// No progress within the deadline.
    Timeout,
    /// The store cannot be reached (refused, reset, no such host).
    Unreachable,
    /// The store answered that it cannot answer now (5xx, throttling).
    Unavailable,
    /// The answer makes no sense: truncated, of a wrong length, not parseable.
    Corrupt,
    /// The body is not a document that the store takes.
    InvalidDocument,
    /// The store or the mount is read-only.
    ReadOnly,
    /// The caller asked for what cannot be (a range beyond the end, a malformed URL).
    InvalidArgument,
    /// A local file or socket failed beneath the driver.
    Io,
}

impl ErrorKind {
    /// Every kind, in the order of their discriminants.
    pub const ALL: &[ErrorKind] = &[
        ErrorKind::NotFound,
        ErrorKind::Exists,
        ErrorKind::Changed,
        ErrorKind::Denied,
        ErrorKind::Unauthenticated,
        ErrorKind::NoSpace,
        ErrorKind::TooLarge,
        ErrorKind::NameTooLong,
        ErrorKind::InvalidKey,
        ErrorKind::Unsupported,
        ErrorKind::Timeout,
        ErrorKind::Unreachable,
        ErrorKind::Unavailable,
        ErrorKind::Corrupt,
        ErrorKind::InvalidDocument,
        ErrorKind::ReadOnly,
        ErrorKind::InvalidArgument,
        ErrorKind::Io,
    ];

    /// Its name in statistics and specifications of faults.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "not-found",
            ErrorKind::Exists => "exists",
            ErrorKind::Changed => "changed",
            ErrorKind::Denied => "denied",
            ErrorKind::Unauthenticated => "unauthenticated",
            ErrorKind::NoSpace => "no-space",
            ErrorKind::TooLarge => "too-large",
            ErrorKind::NameTooLong => "name-too-long",
            ErrorKind::InvalidKey => "invalid-key",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Timeout => "timeout",
            ErrorKind::Unreachable => "unreachable",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::InvalidDocument => "invalid-document",
            ErrorKind::ReadOnly => "read-only",
            ErrorKind::InvalidArgument => "invalid-argument",
            ErrorKind::Io => "io",
        }
    }
}

/// A failed operation: what kind, whether it may be tried again, what was tried on which key, why.
///
/// `{}` prints one line. Credentials and signed URLs never get in here: drivers redact causes
/// before they wrap them.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    retryable: bool,
    maybe_applied: bool,
    throttled: bool,
    operation: &'static str,
    key: Option<Key>,
    message: String,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; whether it is retryable follows from the kind until
    /// [`Error::retryable`] says otherwise.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let retryable = matches!(
            kind,
            ErrorKind::Timeout
                | ErrorKind::Unreachable
                | ErrorKind::Unavailable
                | ErrorKind::Corrupt
        );
        Error {
            kind,
            retryable,
            maybe_applied: false,
            throttled: false,
            operation: "",
            key: None,
            message: message.into(),
            cause: None,
        }
    }

    /// The refusal of an operation that the driver does not claim.
    pub fn unsupported(operation: &'static str) -> Self {
        Error::new(
            ErrorKind::Unsupported,
            "this store does not offer the operation",
        )
        .during(operation)
    }

    /// Names the operation, unless it is named already.
    pub fn during(mut self, operation: &'static str) -> Self {
        if self.operation.is_empty() {
            self.operation = operation;
        }
        self
    }

    /// Names the key, unless it is named already.
    pub fn on(mut self, key: &Key) -> Self {
        self.key.get_or_insert_with(|| key.clone());
        self
    }

    /// Replaces the key: for wrappers that show their callers other keys than the store's.
    pub fn with_key(mut self, key: Option<Key>) -> Self {
        self.key = key;
        self
    }

    /// Wraps the cause.
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Overrides whether a retry can help.
    pub fn retry(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    /// Says that the store wants to get fewer requests.
    pub fn throttling(mut self) -> Self {
        self.throttled = true;
        self
    }

    /// Whether the store refused it for there were too many requests.
    pub fn is_throttled(&self) -> bool {
        self.throttled
    }

    /// Says that the request was sent before, and that this attempt may have failed on what the
    /// earlier one has done.
    pub fn after_lost_reply(mut self) -> Self {
        self.maybe_applied = true;
        self
    }

    /// Whether an earlier attempt, whose answer was lost, may have been applied: the conflict that
    /// this error tells of may be with oneself.
    pub fn maybe_applied(&self) -> bool {
        self.maybe_applied
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same request may succeed when it is sent again. A retryable put or delete may
    /// already have been applied.
    pub fn retryable(&self) -> bool {
        self.retryable
    }

    /// The operation that failed, by its name in the contract.
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// The key it was tried on.
    pub fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// The sentence without operation, key and cause.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The sentence with its causes, and without the operation: for whoever names that already.
    pub fn reason(&self) -> String {
        let mut reason = match &self.key {
            Some(key) if !key.is_empty() => format!("{key:?}: "),
            _ => String::new(),
        };
        reason.push_str(&self.message);
        let mut cause = self.source();
        while let Some(inner) = cause {
            reason.push_str(": ");
            reason.push_str(&inner.to_string());
            cause = inner.source();
        }
        reason
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.operation.is_empty() {
            write!(f, "{}", self.operation)?;
            if let Some(key) = &self.key {
                write!(f, " {key:?}")?;
            }
            f.write_str(": ")?;
        } else if let Some(key) = &self.key {
            write!(f, "{key:?}: ")?;
        }
        f.write_str(&self.message)?;
        let mut cause = self.source();
        while let Some(inner) = cause {
            write!(f, ": {inner}")?;
            cause = inner.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause
            .as_ref()
            .map(|cause| cause.as_ref() as &(dyn StdError + 'static))
    }
}

/// Local I/O errors, by their errno.
impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        let kind = match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => ErrorKind::NotFound,
            Some(libc::EEXIST) => ErrorKind::Exists,
            Some(libc::EACCES | libc::EPERM) => ErrorKind::Denied,
            Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
            Some(libc::EFBIG) => ErrorKind::TooLarge,
            Some(libc::ENAMETOOLONG) => ErrorKind::NameTooLong,
            Some(libc::EROFS) => ErrorKind::ReadOnly,
            Some(libc::EOPNOTSUPP) => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Error::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kinds_are_listed_in_order() {
        for (i, kind) in ErrorKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, i, "{}", kind.name());
        }
        // The last variant: a new one behind it must be listed too.
        assert_eq!(ErrorKind::ALL.len(), ErrorKind::Io as usize + 1);
    }
}
