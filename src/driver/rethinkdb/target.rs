//! What a URL of RethinkDB names: a server, a database, a table.

use crate::driver::servers::{self, Nodes, wrong};
use crate::driver::{Location, Result};
use crate::key::Key;
use std::fmt;

/// A place in a server. `Debug` shows no password.
#[derive(Clone)]
pub(super) struct Target {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: String,
    /// `None` where the URL names the server only.
    pub database: Option<String>,
    /// The part of the database that the URL names.
    pub below: Key,
}

const PORT: u16 = 28015;
/// The variable of a password that does not stand in the URL.
const PASSWORD: &str = "RETHINKDB_PASSWORD";
/// Whom a server has when it is new, without a password.
const ADMIN: &str = "admin";

/// Whether a database or a table can have a name.
pub(super) fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    !name.is_empty() && name.bytes().all(fits)
}

impl Target {
    pub(super) fn parse(location: &Location) -> Result<Target> {
        location.parameters(&[])?;
        let mut nodes = Nodes::of(location, None, PORT)?;
        let (host, port) = nodes.0.remove(0);
        let (user, password) = servers::login(location, PASSWORD)?;
        let path = String::from_utf8(location.path());
        let path = path.map_err(|_| wrong("the URL is not UTF-8"))?;
        let (database, below) = path.split_once('/').unwrap_or((&path, ""));
        if database.is_empty() && !below.is_empty() {
            return Err(wrong(
                "the path begins with a database, as in rethinkdb://HOST/DATABASE/TABLE",
            ));
        }
        let table = below.split('/').next().unwrap_or_default();
        for name in [database, table] {
            if !name.is_empty() && !is_name(name) {
                return Err(wrong(format!(
                    "{name:?} cannot be the name of a database or a table"
                )));
            }
        }
        // A table is a directory.
        let below = match below.contains('/') || below.is_empty() {
            true => Key::from(below),
            false => Key::from(format!("{below}/")),
        };
        Ok(Target {
            host,
            port,
            user: user.unwrap_or_else(|| ADMIN.to_owned()),
            password: password.unwrap_or_default(),
            database: Some(database.to_owned()).filter(|name| !name.is_empty()),
            below,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("below", &self.below)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::ErrorKind;

    fn parse(url: &str) -> Result<Target> {
        Target::parse(&Location::parse(url)?)
    }

    #[test]
    fn a_url_names_a_server_a_database_and_a_table() {
        let server = parse("rethinkdb://").expect("parses");
        assert_eq!(server.to_string(), "127.0.0.1:28015");
        assert_eq!((server.user.as_str(), server.database), ("admin", None));
        let full = parse("rethinkdb://me:p%40ss@h:7/app/users").expect("parses");
        assert_eq!((full.to_string().as_str(), full.port), ("h:7", 7));
        assert_eq!(full.database.as_deref(), Some("app"));
        assert_eq!(full.below, Key::from("users/"));
        assert_eq!(full.password, "p@ss");
        assert!(!format!("{full:?} {full}").contains("p@ss"));
        let one = parse("rethinkdb://h/app/users/x.json").expect("parses");
        assert_eq!(one.below, Key::from("users/x.json"));
    }

    #[test]
    fn what_no_url_can_mean_is_refused() {
        for (url, why) in [
            ("rethinkdb://h//users", "begins with a database"),
            ("rethinkdb://h/a.b", "cannot be the name"),
            ("rethinkdb://h/a/b%20c", "cannot be the name"),
            ("rethinkdb://h/a?tls=true", "no parameter"),
        ] {
            let error = parse(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{url}");
            assert!(error.to_string().contains(why), "{url}: {error}");
        }
    }
}
