//! What URLs of database servers have in common: which servers, and who asks them.

use super::{Error, ErrorKind, Location, Result};

/// Servers by name and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nodes(pub Vec<(String, u16)>);

impl Nodes {
    /// The server of a URL, and those of its parameter `nodes`.
    pub fn of(location: &Location, more: Option<&String>, port: u16) -> Result<Nodes> {
        let host = match location.host() {
            "" => "127.0.0.1".to_owned(),
            host => decoded(host.trim_start_matches('[').trim_end_matches(']'))?,
        };
        let mut nodes = vec![(host, location.url().port().unwrap_or(port))];
        let more = more.map_or("", String::as_str);
        for node in more.split(',').filter(|node| !node.is_empty()) {
            let (host, digits) = node.rsplit_once(':').unwrap_or((node, ""));
            let port = match digits {
                "" => port,
                digits => digits
                    .parse()
                    .map_err(|_| wrong(format!("nodes: {node:?} is not HOST:PORT")))?,
            };
            nodes.push((host.to_owned(), port));
        }
        Ok(Nodes(nodes))
    }

    /// All of them, as URLs spell them.
    pub fn joined(&self, separator: &str) -> String {
        let nodes: Vec<_> = self.0.iter().map(|(h, p)| format!("{h}:{p}")).collect();
        nodes.join(separator)
    }
}

/// What no URL can mean.
pub(super) fn wrong(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, why).during("open")
}

/// Text of a URL without percent-encoding.
fn decoded(text: &str) -> Result<String> {
    let text = percent_encoding::percent_decode_str(text).decode_utf8();
    Ok(text
        .map_err(|_| wrong("the URL is not UTF-8"))?
        .into_owned())
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// The user that a URL names, and the password: from the URL, or from a variable of the environment.
pub(super) fn login(
    location: &Location,
    variable: &str,
) -> Result<(Option<String>, Option<String>)> {
    let url = location.url();
    let password = match url.password() {
        Some(password) => Some(decoded(password)?),
        None => std::env::var(variable).ok().and_then(some),
    };
    Ok((some(decoded(url.username())?), password))
}
