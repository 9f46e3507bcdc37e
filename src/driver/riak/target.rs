//! URLs of Riak: which server, which bucket type, and what of it.

use crate::driver::servers::{self, Nodes, wrong};
use crate::driver::{Location, Result};
use crate::key::Key;
use std::fmt;

/// The port of the HTTP API.
const PORT: u16 = 8098;
/// Where the password may stand.
const PASSWORD: &str = "RIAK_PASSWORD";
/// The type of buckets that have none.
pub(super) const DEFAULT: &str = "default";

/// What a URL means.
#[derive(Clone)]
pub(super) struct Target {
    pub host: String,
    pub port: u16,
    pub tls: bool,
    pub user: Option<String>,
    pub password: Option<String>,
    /// `None` where all of them are meant.
    pub bucket_type: Option<String>,
    /// What is meant of the type.
    pub below: Key,
    /// Those that are shown where all are meant: the server does not list them.
    pub types: Vec<String>,
}

impl Target {
    pub(super) fn parse(location: &Location, tls: bool) -> Result<Target> {
        let parameters = location.parameters(&["types"])?;
        let mut nodes = Nodes::of(location, None, PORT)?;
        let (host, port) = nodes.0.remove(0);
        let (user, password) = servers::login(location, PASSWORD)?;
        let path = String::from_utf8(location.path());
        let path = path.map_err(|_| wrong("the URL is not UTF-8"))?;
        let (bucket_type, below) = path.split_once('/').unwrap_or((&path, ""));
        if bucket_type.is_empty() && !below.is_empty() {
            return Err(wrong(
                "the path begins with a bucket type, as in riak://HOST/TYPE/BUCKET; what has none is in the type named default",
            ));
        }
        let named = parameters.get("types").map_or("", String::as_str);
        if !bucket_type.is_empty() && !named.is_empty() {
            return Err(wrong(
                "types= says which types are shown where the URL names none; it names one",
            ));
        }
        let mut types = vec![DEFAULT.to_owned()];
        types.extend(named.split(',').map(str::to_owned));
        types.retain(|name| !name.is_empty());
        types.sort_unstable();
        types.dedup();
        // What is named is a directory.
        let below = match below.is_empty() || below.ends_with('/') {
            true => Key::from(below),
            false => Key::from(format!("{below}/")),
        };
        Ok(Target {
            host,
            port,
            tls,
            user,
            password,
            bucket_type: Some(bucket_type.to_owned()).filter(|name| !name.is_empty()),
            below,
            types,
        })
    }

    /// The beginning of each URL that is asked for.
    pub(super) fn origin(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        match self.host.contains(':') {
            true => format!("{scheme}://[{}]:{}", self.host, self.port),
            false => format!("{scheme}://{}:{}", self.host, self.port),
        }
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
            .field("tls", &self.tls)
            .field("user", &self.user)
            .field("bucket_type", &self.bucket_type)
            .field("below", &self.below)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::ErrorKind;

    fn parse(url: &str) -> Result<Target> {
        Target::parse(&Location::parse(url)?, url.starts_with("riaks"))
    }

    #[test]
    fn a_url_names_a_server_a_type_and_a_bucket() {
        let server = parse("riak://").expect("parses");
        assert_eq!(server.to_string(), "127.0.0.1:8098");
        assert_eq!((server.bucket_type, server.user), (None, None));
        assert_eq!(server.types, ["default"]);
        let full = parse("riaks://me:p%40ss@h:7/app/users").expect("parses");
        assert_eq!(full.origin(), "https://h:7");
        assert_eq!(full.bucket_type.as_deref(), Some("app"));
        assert_eq!(full.below, Key::from("users/"));
        assert_eq!(full.password.as_deref(), Some("p@ss"));
        assert!(!format!("{full:?} {full}").contains("p@ss"));
        let deep = parse("riak://[::1]/app/users/a/b").expect("parses");
        assert_eq!(deep.below, Key::from("users/a/b/"));
        assert_eq!(deep.origin(), "http://[::1]:8098");
        let some = parse("riak://h?types=logs,maps,logs").expect("parses");
        assert_eq!(some.types, ["default", "logs", "maps"]);
    }

    #[test]
    fn what_no_url_can_mean_is_refused() {
        for (url, why) in [
            ("riak://h//users", "begins with a bucket type"),
            ("riak://h/a?types=b", "it names one"),
            ("riak://h/a?tls=true", "no parameter"),
        ] {
            let error = parse(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{url}");
            assert!(error.to_string().contains(why), "{url}: {error}");
        }
    }
}
