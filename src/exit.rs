//! How the command ends: exit codes, and the one line that goes with a failure.

use crate::driver::{Error, ErrorKind};
use crate::logging;
use std::fmt;
use std::process::ExitCode;

/// What the exit code of `bucketfs` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// What has no code of its own.
    Other = 1,
    /// An option, a URL or a configuration file is wrong.
    Usage = 2,
    /// The store does not answer.
    Unreachable = 3,
    /// There are no credentials, or they do not suffice.
    Denied = 4,
    /// There is no such bucket, path or file.
    NotFound = 5,
    /// The mount point is missing, no directory, in use or not mounted.
    MountPoint = 6,
    /// FUSE is not available to this user on this machine.
    Fuse = 7,
    /// Some files could not be sent; their bytes are kept.
    Unsent = 8,
    /// The store lacks what was asked of it, such as conditional writes.
    Unsupported = 9,
    /// The daemon of the mount does not answer.
    NotAnswering = 10,
}

impl Exit {
    /// Every code.
    pub const ALL: [Exit; 11] = [
        Exit::Ok,
        Exit::Other,
        Exit::Usage,
        Exit::Unreachable,
        Exit::Denied,
        Exit::NotFound,
        Exit::MountPoint,
        Exit::Fuse,
        Exit::Unsent,
        Exit::Unsupported,
        Exit::NotAnswering,
    ];

    /// The code as a number.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The reverse of [`Exit::code`].
    pub fn from_code(code: u8) -> Option<Exit> {
        Exit::ALL.into_iter().find(|exit| exit.code() == code)
    }

    /// What `--help` says of the code.
    pub fn about(self) -> &'static str {
        match self {
            Exit::Ok => "done",
            Exit::Other => "another failure",
            Exit::Usage => "a wrong option, URL or configuration file",
            Exit::Unreachable => "the store does not answer",
            Exit::Denied => "no credentials, or they do not suffice",
            Exit::NotFound => "no such bucket, path or file",
            Exit::MountPoint => "the mount point is missing, no directory, in use or not mounted",
            Exit::Fuse => "FUSE is not available here or to this user",
            Exit::Unsent => {
                "some files or changed attributes could not be sent; it is told where the bytes are kept"
            }
            Exit::Unsupported => "the store lacks what is needed, such as conditional writes",
            Exit::NotAnswering => "the mount's daemon does not answer",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// Why the command failed: an exit code and one line for people. It holds no secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What is wrong and what to do, without a line break.
    pub message: String,
}

impl Failure {
    /// A failure; line breaks of the message become spaces, and other control characters, which
    /// may come from names, are escaped.
    pub fn new(exit: Exit, message: impl AsRef<str>) -> Self {
        let lines: Vec<&str> = message
            .as_ref()
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        Failure {
            exit,
            message: logging::one_line(&lines.join(" ")),
        }
    }

    /// A wrong option, URL or configuration file.
    pub fn usage(message: impl AsRef<str>) -> Self {
        Failure::new(Exit::Usage, message)
    }

    /// What has no code of its own.
    pub fn other(message: impl AsRef<str>) -> Self {
        Failure::new(Exit::Other, message)
    }

    /// A problem with the mount point.
    pub fn mount_point(message: impl AsRef<str>) -> Self {
        Failure::new(Exit::MountPoint, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Failures of a store, by their kind.
impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let exit = match error.kind() {
            ErrorKind::NotFound => Exit::NotFound,
            ErrorKind::Denied | ErrorKind::Unauthenticated => Exit::Denied,
            ErrorKind::Timeout | ErrorKind::Unreachable | ErrorKind::Unavailable => {
                Exit::Unreachable
            }
            ErrorKind::Unsupported => Exit::Unsupported,
            ErrorKind::InvalidArgument => Exit::Usage,
            ErrorKind::Exists
            | ErrorKind::Changed
            | ErrorKind::NoSpace
            | ErrorKind::TooLarge
            | ErrorKind::NameTooLong
            | ErrorKind::InvalidKey
            | ErrorKind::Corrupt
            | ErrorKind::InvalidDocument
            | ErrorKind::ReadOnly
            | ErrorKind::Io => Exit::Other,
        };
        Failure::new(exit, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_their_positions() {
        for (code, exit) in Exit::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(exit.code()), code);
            assert_eq!(Exit::from_code(exit.code()), Some(exit));
        }
        assert_eq!(Exit::from_code(11), None);
    }

    #[test]
    fn a_message_is_one_line() {
        let failure = Failure::other("fusermount3: no\n  such thing\n");
        assert_eq!(failure.to_string(), "fusermount3: no such thing");
        assert_eq!(Failure::other("a\u{1b}[2J").message, "a\\u{1b}[2J");
    }
}
