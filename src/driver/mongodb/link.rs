//! The client of a server, and what its errors mean.

use super::target::Target;
use crate::driver::{Error, ErrorKind, Result};
use ::mongodb::bson::{Document, RawDocumentBuf, doc};
use ::mongodb::error::{CommandError, ErrorKind as Kind, WriteFailure};
use ::mongodb::{Client, Collection, Database};
use std::fmt;
use std::sync::Arc;

/// A server, by a client that connects when it is needed. Clones share it.
#[derive(Clone)]
pub(super) struct Link {
    target: Arc<Target>,
    client: Client,
}

impl Link {
    pub(super) fn new(target: Target) -> Result<Link> {
        match Client::with_options(target.options()) {
            Ok(client) => Ok(Link {
                target: Arc::new(target),
                client,
            }),
            Err(cause) => Err(refusal(&target, &cause)),
        }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn database(&self, name: &str) -> Database {
        self.client.database(name)
    }

    /// A collection, whose documents are taken as they are sent.
    pub(super) fn collection(&self, database: &str, name: &str) -> Collection<RawDocumentBuf> {
        self.database(database).collection(name)
    }

    /// What the server tells of itself.
    pub(super) async fn greet(&self) -> Result<Document> {
        let admin = self.database("admin");
        let told = admin.run_command(doc! { "buildInfo": 1 }).await;
        told.map_err(|cause| self.error(&cause))
    }

    /// The error that callers get: by kind, and with what to do.
    pub(super) fn error(&self, cause: &::mongodb::error::Error) -> Error {
        refusal(&self.target, cause)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target.fmt(f)
    }
}

/// Whether a write failed because its key is there already.
pub(super) fn is_duplicate(cause: &::mongodb::error::Error) -> bool {
    code_of(cause).is_some_and(|(code, _)| code == 11000)
}

/// Whether a request failed because the server does not know it.
pub(super) fn is_unknown(cause: &::mongodb::error::Error) -> bool {
    // By their codes: failed to parse, command not found, not implemented, unknown operator.
    code_of(cause).is_some_and(|(code, _)| matches!(code, 2 | 9 | 59 | 238 | 168))
}

/// The server's own number and words.
fn code_of(cause: &::mongodb::error::Error) -> Option<(i32, &str)> {
    match cause.kind.as_ref() {
        Kind::Command(CommandError { code, message, .. }) => Some((*code, message)),
        Kind::Write(WriteFailure::WriteError(error)) => Some((error.code, &error.message)),
        Kind::Write(WriteFailure::WriteConcernError(error)) => Some((error.code, &error.message)),
        _ => None,
    }
}

fn refusal(at: &Target, cause: &::mongodb::error::Error) -> Error {
    if let Some((code, said)) = code_of(cause) {
        return coded(at, code).because(said.to_owned());
    }
    match cause.kind.as_ref() {
        // Its text may show what was sent with it.
        Kind::Authentication { .. } => Error::new(ErrorKind::Unauthenticated, unwelcome(at)),
        Kind::ServerSelection { message, .. } => {
            let spoke = [
                "InvalidResponse",
                "Invalid response",
                "message length",
                "invalid reply",
                "unexpected end of file",
                "early eof",
            ];
            match spoke.iter().any(|word| message.contains(word)) {
                true => Error::new(ErrorKind::Unreachable, foreign(at)),
                false => Error::new(ErrorKind::Unreachable, format!("cannot reach {at}")),
            }
            .because(innermost(message))
        }
        Kind::IncompatibleServer { message, .. } => Error::new(
            ErrorKind::Unsupported,
            format!("{at} is too old; MongoDB 4.2 or newer is needed"),
        )
        .because(message.clone()),
        Kind::InvalidResponse { message, .. } => {
            Error::new(ErrorKind::Unreachable, foreign(at)).because(message.clone())
        }
        Kind::InvalidTlsConfig { message, .. } => Error::new(
            ErrorKind::InvalidArgument,
            "what the URL says of TLS cannot be used",
        )
        .because(message.clone()),
        Kind::InvalidArgument { message, .. } => {
            Error::new(ErrorKind::InvalidArgument, "the client refuses").because(message.clone())
        }
        Kind::Io(cause) => Error::new(
            ErrorKind::Unreachable,
            format!("the connection to {at} failed"),
        )
        .because(cause.to_string()),
        Kind::ConnectionPoolCleared { message, .. } | Kind::DnsResolve { message, .. } => {
            Error::new(
                ErrorKind::Unreachable,
                format!("the connection to {at} failed"),
            )
            .because(innermost(message))
        }
        other => Error::new(ErrorKind::Io, format!("{at} failed")).because(other.to_string()),
    }
}

fn unwelcome(at: &Target) -> String {
    format!(
        "{at} takes neither this user nor this password: they go into the URL, mongodb://USER:PASSWORD@HOST, or the password into MONGODB_PASSWORD; authSource names the database of the user"
    )
}

fn foreign(at: &Target) -> String {
    format!(
        "what answers at {at} does not speak as MongoDB does; is it the right port, and tls=true as the server has it?"
    )
}

/// The reason in the client's long description of all servers.
fn innermost(message: &str) -> String {
    let reason = message.split("Error: ").last().unwrap_or(message);
    let reason = reason.split(", labels").next().unwrap_or(reason);
    let reason = reason.strip_prefix("Kind: ").unwrap_or(reason);
    reason.chars().take(200).collect()
}

/// By the number of an error: see MongoDB's error_codes.yml.
fn coded(at: &Target, code: i32) -> Error {
    let (kind, why) = match code {
        18 | 8000 => (ErrorKind::Unauthenticated, unwelcome(at)),
        13 if !at.has_user() => (
            ErrorKind::Unauthenticated,
            format!("{at} wants a user and a password: write mongodb://USER:PASSWORD@HOST"),
        ),
        13 => (
            ErrorKind::Denied,
            "the user may not do this; grantRolesToUser gives roles".to_owned(),
        ),
        26 => (
            ErrorKind::NotFound,
            "there is no such collection".to_owned(),
        ),
        48 => (ErrorKind::Exists, "it is there already".to_owned()),
        73 => (
            ErrorKind::InvalidKey,
            "the server refuses the name".to_owned(),
        ),
        28 => (
            ErrorKind::Changed,
            "what held the field is another thing now".to_owned(),
        ),
        52 | 55 | 56 | 57 => (
            ErrorKind::InvalidDocument,
            "the server refuses a name of a field".to_owned(),
        ),
        121 => (
            ErrorKind::InvalidDocument,
            "the rules of the collection refuse the document".to_owned(),
        ),
        17280 | 10334 | 17419 | 17420 => (
            ErrorKind::TooLarge,
            "a document has at most 16 MiB".to_owned(),
        ),
        14031 => (ErrorKind::NoSpace, format!("the disk of {at} is full")),
        50 => (ErrorKind::Timeout, format!("{at} took too long")),
        6 | 7 | 89 | 91 | 189 | 262 | 9001 | 10107 | 11600 | 11602 | 13435 | 13436 => {
            (ErrorKind::Unavailable, format!("{at} cannot answer yet"))
        }
        59 | 115 | 238 => (
            ErrorKind::Unsupported,
            format!("{at} lacks a command that is needed"),
        ),
        _ => (ErrorKind::Io, format!("{at} refused")),
    };
    Error::new(kind, why)
}
