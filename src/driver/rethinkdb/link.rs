//! The connection to a server, and what its refusals mean.

use super::target::Target;
use super::term::{self, Term};
use super::wire::{Refusal, Wire};
use crate::driver::json::Json;
use crate::driver::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How long a connection may take to be made, with its handshake.
const DIALING: Duration = Duration::from_secs(5);

/// A server, by a connection that is made when it is needed. Clones share it.
#[derive(Clone)]
pub(super) struct Link {
    target: Arc<Target>,
    /// Held while it is made.
    wire: Arc<tokio::sync::Mutex<Option<Arc<Wire>>>>,
}

/// An answer of the server.
#[derive(Deserialize)]
struct Answer<'a> {
    t: u8,
    #[serde(borrow)]
    r: Vec<&'a RawValue>,
    #[serde(default)]
    e: i64,
}

/// What a query gives, a batch at a time.
pub(super) struct Cursor {
    link: Link,
    wire: Arc<Wire>,
    token: u64,
    ready: VecDeque<Json>,
    /// Whether the server has more.
    goes_on: bool,
}

impl Drop for Cursor {
    fn drop(&mut self) {
        if self.goes_on {
            self.wire.stop(self.token);
        }
    }
}

impl Cursor {
    /// The next thing.
    pub(super) async fn next(&mut self) -> Result<Option<Json>> {
        while self.ready.is_empty() && self.goes_on {
            let answer = self.wire.more(self.token).await;
            let answer = answer.map_err(|cause| self.link.failed(&cause))?;
            self.take(&answer)?;
        }
        Ok(self.ready.pop_front())
    }

    fn take(&mut self, answer: &[u8]) -> Result<()> {
        self.goes_on = false;
        let told = self.link.read(answer)?;
        self.goes_on = told.t == 3;
        for item in told.r {
            self.ready.push_back(Json::parse(item.get().as_bytes())?);
        }
        Ok(())
    }
}

impl Link {
    pub(super) fn new(target: Target) -> Link {
        Link {
            target: Arc::new(target),
            wire: Arc::default(),
        }
    }

    /// A connection of one's own.
    pub(super) async fn dial(&self) -> Result<Wire> {
        let at = &self.target;
        let dialed = Wire::dial((&at.host, at.port), &at.user, &at.password);
        match tokio::time::timeout(DIALING, dialed).await {
            Ok(Ok(wire)) => Ok(wire),
            Ok(Err(refusal)) => Err(self.refused(refusal)),
            Err(_) => {
                let why = format!("{at} does not answer as RethinkDB does; is it the right port?");
                Err(Error::new(ErrorKind::Unreachable, why))
            }
        }
    }

    async fn wire(&self) -> Result<Arc<Wire>> {
        let mut wire = self.wire.lock().await;
        if let Some(wire) = wire.as_ref().filter(|wire| wire.is_open()) {
            return Ok(wire.clone());
        }
        let fresh = Arc::new(self.dial().await?);
        *wire = Some(fresh.clone());
        Ok(fresh)
    }

    /// Sees that the server answers this user.
    pub(super) async fn greet(&self) -> Result<()> {
        self.one(&term::databases()).await.map(drop)
    }

    /// All that a query gives, by and by.
    pub(super) async fn cursor(&self, term: &Term) -> Result<Cursor> {
        let wire = self.wire().await?;
        self.cursor_on(wire, term).await
    }

    pub(super) async fn cursor_on(&self, wire: Arc<Wire>, term: &Term) -> Result<Cursor> {
        let token = wire.token();
        let answer = wire.ask(token, &term.query()).await;
        let answer = answer.map_err(|cause| self.failed(&cause))?;
        let mut cursor = Cursor {
            link: self.clone(),
            wire,
            token,
            ready: VecDeque::new(),
            goes_on: false,
        };
        cursor.take(&answer)?;
        Ok(cursor)
    }

    /// All that a query gives; what it gives as an array, one by one.
    pub(super) async fn all(&self, term: &Term) -> Result<Vec<Json>> {
        let mut cursor = self.cursor(term).await?;
        let mut all = Vec::new();
        while let Some(next) = cursor.next().await? {
            match next {
                Json::Array(items) => all.extend(items),
                other => all.push(other),
            }
        }
        Ok(all)
    }

    /// What a query gives as one thing.
    pub(super) async fn one(&self, term: &Term) -> Result<Json> {
        let mut cursor = self.cursor(term).await?;
        let next = cursor.next().await?;
        next.ok_or_else(|| Error::new(ErrorKind::Corrupt, "the server answered nothing"))
    }

    fn read<'a>(&self, answer: &'a [u8]) -> Result<Answer<'a>> {
        let told: Answer = serde_json::from_slice(answer).map_err(|cause| {
            let why = "the answer of the server makes no sense";
            Error::new(ErrorKind::Corrupt, why).because(cause.to_string())
        })?;
        if told.t <= 5 {
            return Ok(told);
        }
        let said = told.r.first().map(|said| said.get()).unwrap_or_default();
        let said: String = serde_json::from_str(said).unwrap_or_default();
        Err(self.refusal(told.t, told.e, &said))
    }

    pub(super) fn failed(&self, cause: &io::Error) -> Error {
        let why = format!("the connection to {} failed", self.target);
        Error::new(ErrorKind::Unreachable, why).because(cause.to_string())
    }

    fn refused(&self, refusal: Refusal) -> Error {
        let at = &self.target;
        match refusal {
            Refusal::Io(cause) => Error::new(ErrorKind::Unreachable, format!("cannot reach {at}"))
                .because(cause.to_string()),
            Refusal::Foreign(said) => Error::new(
                ErrorKind::Unreachable,
                format!(
                    "what answers at {at} does not speak as RethinkDB 2.3 or newer does; is it the port of drivers, 28015?"
                ),
            )
            .because(said),
            Refusal::Unwelcome(said) => Error::new(
                ErrorKind::Unauthenticated,
                format!(
                    "{at} takes neither this user nor this password: they go into the URL, rethinkdb://USER:PASSWORD@HOST, or the password into RETHINKDB_PASSWORD"
                ),
            )
            .because(said),
        }
    }

    /// By the numbers of ql2.proto.
    fn refusal(&self, kind: u8, code: i64, said: &str) -> Error {
        let at = &self.target;
        // What names what is not there comes under more than one number.
        let ends = |end: &str| said.trim_end_matches('.').ends_with(end);
        let (kind, why) = match (kind, code) {
            (17, _) => (
                ErrorKind::Unsupported,
                format!("{at} lacks a term that is needed: RethinkDB 2.3 or newer has them all"),
            ),
            (_, 6_000_000) => (
                ErrorKind::Denied,
                "the user may not do this; r.grant gives permissions".to_owned(),
            ),
            (_, 3_000_000..4_200_000) if ends("does not exist") => (
                ErrorKind::NotFound,
                "there is no such table or database".to_owned(),
            ),
            (_, 3_000_000..4_200_000) if ends("already exists") => {
                (ErrorKind::Exists, "it is there already".to_owned())
            }
            (_, 4_100_000 | 4_200_000) => (
                ErrorKind::Unavailable,
                format!("{at} cannot answer for the table now"),
            ),
            (_, 2_000_000) => (
                ErrorKind::TooLarge,
                format!("it is more than {at} takes at once"),
            ),
            _ => (ErrorKind::Io, format!("{at} refused")),
        };
        Error::new(kind, why).because(said.lines().next().unwrap_or_default().to_owned())
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target.fmt(f)
    }
}
