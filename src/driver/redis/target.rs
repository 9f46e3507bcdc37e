//! What a URL of Redis names: servers, database, layout.

use crate::driver::servers::{self, Nodes, wrong};
use crate::driver::{Location, Result};
use crate::key::Key;
use std::fmt;

/// How objects lie in a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// A bucket of its own: bodies in chunks, attributes, an index.
    Objects,
    /// What programs keep there, as files.
    Data,
}

/// How the server is found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// The node is the server.
    Single,
    /// The nodes are some of a cluster.
    Cluster,
    /// The nodes are Sentinels, which know the server by this name.
    Sentinel(String),
}

/// A place in a server. `Debug` shows no password.
#[derive(Clone)]
pub(super) struct Target {
    pub tls: bool,
    pub nodes: Nodes,
    pub user: Option<String>,
    pub password: Option<String>,
    pub mode: Mode,
    /// `None` where the URL names the server only.
    pub database: Option<i64>,
    /// `None` where it depends on what is there.
    pub layout: Option<Layout>,
    /// What the keys of the objects layout, or the keys shown, begin with.
    pub prefix: Option<String>,
    /// What stands between directories in keys of the data layout.
    pub separator: u8,
    /// The part of the database that the URL names.
    pub below: Key,
}

const PARAMETERS: &[&str] = &[
    "layout",
    "prefix",
    "separator",
    "cluster",
    "sentinel",
    "nodes",
];
/// Where the keys of an objects layout are unless the URL says otherwise.
const PREFIX: &str = "bucketfs";
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

impl Target {
    pub(super) fn parse(location: &Location, tls: bool) -> Result<Target> {
        let parameters = location.parameters(PARAMETERS)?;
        let mode = match (parameters.get("cluster"), parameters.get("sentinel")) {
            (None, None) => Mode::Single,
            (Some(_), Some(_)) => {
                return Err(wrong(
                    "a server is in a cluster or found by Sentinels, not both",
                ));
            }
            (Some(yes), None) if matches!(yes.as_str(), "" | "yes" | "true" | "1") => Mode::Cluster,
            (Some(other), None) => return Err(wrong(format!("write cluster=yes, not {other:?}"))),
            (None, Some(name)) if !name.is_empty() => Mode::Sentinel(name.clone()),
            (None, Some(_)) => {
                return Err(wrong(
                    "name what the Sentinels watch, as in sentinel=mymaster",
                ));
            }
        };
        let port = match mode {
            Mode::Sentinel(_) => SENTINEL_PORT,
            _ => PORT,
        };
        let nodes = Nodes::of(location, parameters.get("nodes"), port)?;
        // As redis-cli has it.
        let (user, password) = servers::login(location, "REDISCLI_AUTH")?;
        let (database, below) = place(&location.path())?;
        if database.is_some_and(|number| number != 0) && mode == Mode::Cluster {
            return Err(wrong(
                "a cluster has one database: write redis://HOST/0?cluster=yes",
            ));
        }
        let layout = match parameters.get("layout").map(String::as_str) {
            None => None,
            Some("objects") => Some(Layout::Objects),
            Some("data") => Some(Layout::Data),
            Some(other) => {
                return Err(wrong(format!(
                    "layout={other:?} is neither objects nor data"
                )));
            }
        };
        let separator = match parameters.get("separator").map(String::as_bytes) {
            None => b'/',
            Some([byte]) if byte.is_ascii_punctuation() => *byte,
            Some(_) => return Err(wrong("separator is one sign, as in separator=:")),
        };
        Ok(Target {
            tls,
            nodes,
            user,
            password,
            // A cluster is one database.
            database: database.or((mode == Mode::Cluster).then_some(0)),
            mode,
            layout,
            prefix: parameters.get("prefix").cloned(),
            separator,
            below,
        })
    }

    /// What all keys of an objects layout begin with: a hash tag, so that they are on one shard.
    pub(super) fn root(&self) -> String {
        let prefix = self.prefix.as_deref().unwrap_or(PREFIX);
        let tagged = prefix
            .split_once('{')
            .and_then(|(_, rest)| rest.split_once('}'))
            .is_some_and(|(tag, _)| !tag.is_empty());
        match tagged {
            true => format!("{prefix}:"),
            false => format!("{{{prefix}}}:"),
        }
    }
}

/// The database and what is below it, from a path like `0/some/where`.
fn place(path: &[u8]) -> Result<(Option<i64>, Key)> {
    if path.is_empty() {
        return Ok((None, Key::empty()));
    }
    let (first, rest) = match path.iter().position(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (path, &[][..]),
    };
    let number = std::str::from_utf8(first)
        .ok()
        .and_then(|text| text.parse().ok());
    match number {
        Some(number) if (0..1 << 20).contains(&number) => Ok((Some(number), Key::from(rest))),
        _ => Err(wrong(
            "the path begins with the number of a database, as in redis://HOST/0",
        )),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.nodes.joined(", "))
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("nodes", &self.nodes)
            .field("mode", &self.mode)
            .field("database", &self.database)
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::ErrorKind;

    fn parse(text: &str) -> Result<Target> {
        Target::parse(&Location::parse(text)?, false)
    }

    #[test]
    fn urls_name_servers_databases_and_layouts() {
        let plain = parse("redis://").expect("parses");
        assert_eq!(plain.nodes.0, [("127.0.0.1".to_owned(), 6379)]);
        assert_eq!((plain.database, plain.separator), (None, b'/'));
        let full = "redis://me:p%40ss@h:7/3/a/b?layout=objects&prefix=x&separator=:&nodes=i,j:9";
        let full = parse(full).expect("parses");
        let nodes: Vec<_> = [("h", 7), ("i", 6379), ("j", 9)]
            .map(|(h, p)| (h.to_owned(), p))
            .into();
        assert_eq!(full.nodes.0, nodes);
        assert_eq!(full.password.as_deref(), Some("p@ss"));
        assert_eq!((full.database, &full.below), (Some(3), &Key::from("a/b")));
        assert_eq!(
            (full.layout, full.root()),
            (Some(Layout::Objects), "{x}:".to_owned())
        );
        assert!(!format!("{full:?} {full}").contains("p@ss"));
        let tagged = parse("redis://h/0?prefix=my{tag}x").expect("parses");
        assert_eq!(tagged.root(), "my{tag}x:");
        let found = parse("redis://h?sentinel=mymaster").expect("parses");
        assert_eq!(found.nodes.0[0].1, 26379);
        assert_eq!(
            parse("redis://[::1]:7/0").expect("parses").nodes.0[0].0,
            "::1"
        );
    }

    #[test]
    fn what_no_url_can_mean_is_refused() {
        for (url, why) in [
            ("redis://h/bucket", "number of a database"),
            ("redis://h/-1", "number of a database"),
            ("redis://h/0?layout=files", "neither objects nor data"),
            ("redis://h/0?separator=::", "one sign"),
            ("redis://h/3?cluster=yes", "one database"),
            ("redis://h/0?cluster=yes&sentinel=x", "not both"),
            ("redis://h/0?nodes=a:b", "HOST:PORT"),
            ("redis://h/0?color=red", "no parameter"),
        ] {
            let error = parse(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{url}");
            assert!(error.to_string().contains(why), "{url}: {error}");
        }
    }
}
