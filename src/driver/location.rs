//! URLs of stores, and the registry of drivers by scheme.

use super::{Driver, Error, ErrorKind, Result};
use crate::key::Key;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

/// The URL of a store. Printing it, with `{}` or `{:?}`, never shows a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Location {
    url: url::Url,
    /// The stores that it is made of, where it is made of others.
    parts: Vec<Location>,
}

impl Location {
    /// Parses a URL and checks that a driver answers to its scheme.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: String| Error::new(ErrorKind::InvalidArgument, why);
        let url = url::Url::parse(text).map_err(|cause| {
            wrong(format!(
                "not a URL: {cause}; write it like memory:, file:///path or s3://bucket/prefix"
            ))
        })?;
        if super::scheme(url.scheme()).is_none() {
            let known: Vec<_> = super::DRIVERS.iter().map(|driver| driver.scheme).collect();
            return Err(wrong(format!(
                "no driver for {:?} URLs; there are drivers for {}",
                url.scheme(),
                known.join(", ")
            )));
        }
        let parts = match Self::composes(url.scheme()) {
            true => Self::parse_parts(&url)?,
            false => Vec::new(),
        };
        Ok(Location { url, parts })
    }

    /// Whether URLs of this scheme are made of other URLs.
    fn composes(scheme: &str) -> bool {
        matches!(scheme, super::mirror::SCHEME | super::tier::SCHEME)
    }

    fn parse_parts(url: &url::Url) -> Result<Vec<Location>> {
        let parts = super::parts::split(url)?;
        let parse = |(at, text): (usize, &&str)| {
            Location::parse(text).map_err(|error| {
                let why = format!("store {} of {}: {}", at + 1, url.scheme(), error.message());
                Error::new(error.kind(), why)
            })
        };
        let parts: Vec<Location> = parts.iter().enumerate().map(parse).collect::<Result<_>>()?;
        // What is written to one would be written to the other, and what is removed there gone here.
        for (at, part) in parts.iter().enumerate() {
            for (before, other) in parts[..at].iter().enumerate() {
                if part.overlaps(other) {
                    let why = format!(
                        "stores {} and {} of {}: are the same, or one lies in the other; name stores that share nothing",
                        before + 1,
                        at + 1,
                        url.scheme()
                    );
                    return Err(Error::new(ErrorKind::InvalidArgument, why));
                }
            }
        }
        Ok(parts)
    }

    /// Whether two stores have objects in common, as far as their URLs tell.
    fn overlaps(&self, other: &Location) -> bool {
        let place = |location: &Location| {
            let url = &location.url;
            let host = url.host_str().map(str::to_ascii_lowercase);
            let query = url.query().map(str::to_owned);
            (url.scheme().to_owned(), host, url.port(), query)
        };
        let path = |location: &Location| {
            let path = PathBuf::from("/").join(OsStr::from_bytes(&location.path()));
            match location.scheme() {
                "file" => path.canonicalize().unwrap_or(path),
                _ => path,
            }
        };
        self.leaves().into_iter().any(|one| {
            let others = other.leaves();
            let mut alike = others.iter().filter(|other| place(other) == place(one));
            // Each of those in memory is another one.
            one.scheme() != "memory"
                && alike.any(|other| {
                    let (one, other) = (path(one), path(other));
                    one.starts_with(&other) || other.starts_with(&one)
                })
        })
    }

    /// The stores that it is made of; none where it is one store.
    pub fn parts(&self) -> &[Location] {
        &self.parts
    }

    /// The stores at the bottom: those of its parts, or itself.
    pub fn leaves(&self) -> Vec<&Location> {
        match self.parts.as_slice() {
            [] => vec![self],
            parts => parts.iter().flat_map(Location::leaves).collect(),
        }
    }

    /// Whether a text that is meant as a URL holds a password, also where it is no good one.
    pub fn holds_password(text: &str) -> bool {
        let Ok(url) = url::Url::parse(text) else {
            return false;
        };
        // A part of what cannot be taken apart may hold one.
        let within = Self::composes(url.scheme())
            && super::parts::split(&url).map_or(text.contains('@'), |parts| {
                parts.into_iter().any(Location::holds_password)
            });
        url.password().is_some() || within
    }

    /// The parsed URL.
    pub fn url(&self) -> &url::Url {
        &self.url
    }

    /// The same URL without these parameters, and what they say.
    pub(super) fn without(&self, names: &[&str]) -> (Location, BTreeMap<String, String>) {
        let pairs: Vec<(String, String)> = self.url.query_pairs().into_owned().collect();
        let (taken, left): (Vec<_>, Vec<_>) = pairs
            .into_iter()
            .partition(|(name, _)| names.contains(&name.as_str()));
        let mut location = self.clone();
        if !taken.is_empty() {
            location.url.set_query(None);
        }
        if !taken.is_empty() && !left.is_empty() {
            location.url.query_pairs_mut().extend_pairs(left);
        }
        (location, taken.into_iter().collect())
    }

    /// The part before the colon.
    pub fn scheme(&self) -> &str {
        self.url.scheme()
    }

    /// Host, bucket or the like; empty when there is none.
    pub fn host(&self) -> &str {
        self.url.host_str().unwrap_or("")
    }

    /// The path without percent-encoding and without its first `/`.
    pub fn path(&self) -> Vec<u8> {
        let path = self.url.path();
        percent_encoding::percent_decode_str(path.strip_prefix('/').unwrap_or(path)).collect()
    }

    /// The query's parameters; names that are not in `known` and names given twice are refused.
    pub fn parameters(&self, known: &[&str]) -> Result<BTreeMap<String, String>> {
        let mut parameters = BTreeMap::new();
        for (name, value) in self.url.query_pairs() {
            let refuse = |why: String| Err(Error::new(ErrorKind::InvalidArgument, why));
            if !known.contains(&name.as_ref()) {
                return refuse(match known {
                    [] => format!("{} URLs take no parameter {name:?}", self.scheme()),
                    known => format!(
                        "{} URLs take no parameter {name:?}, only {}",
                        self.scheme(),
                        known.join(", ")
                    ),
                });
            }
            if parameters
                .insert(name.to_string(), value.into_owned())
                .is_some()
            {
                return refuse(format!("the parameter {name:?} is given twice"));
            }
        }
        Ok(parameters)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, part) in self.parts.iter().enumerate() {
            match at {
                0 => write!(f, "{}:", self.scheme())?,
                _ => f.write_str(",")?,
            }
            match part.parts.is_empty() {
                true => write!(f, "{part}")?,
                false => write!(f, "({part})")?,
            }
        }
        if !self.parts.is_empty() {
            return Ok(());
        }
        if self.url.password().is_none() {
            return write!(f, "{}", self.url);
        }
        let mut shown = self.url.clone();
        match shown.set_password(Some("***")) {
            Ok(()) => write!(f, "{shown}"),
            Err(()) => write!(f, "{}:***", self.url.scheme()),
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the command line tells a driver beside the URL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Nothing will be written: nothing needs to be probed or created.
    pub read_only: bool,
    /// Write even where the store ignores conditions.
    pub unsafe_writes: bool,
    /// Credentials profile.
    pub profile: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// Where the service is, when not at its usual place.
    pub endpoint_url: Option<String>,
    /// Bucket in the path of requests instead of in the host name.
    pub force_path_style: bool,
    /// Send requests without credentials.
    pub no_sign_request: bool,
    /// Pay for requests instead of the bucket's owner.
    pub requester_pays: bool,
    /// How the service encrypts what is written; by default as the bucket says.
    pub sse: Option<Encryption>,
    /// The key for [`Encryption::Kms`] and [`Encryption::KmsDsse`].
    pub sse_kms_key_id: Option<String>,
    /// Storage class of what is written; by default that of the object that is rewritten.
    pub storage_class: Option<String>,
    /// Where it is kept for a day what was found out about a service; by default nowhere.
    pub findings_dir: Option<PathBuf>,
    /// Where it is kept what a replica lacks; by default nowhere.
    pub journal_dir: Option<PathBuf>,
    /// How many stores that are made of stores this one is a part of.
    pub depth: u32,
}

/// How a service encrypts objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// With keys of the service.
    Aes256,
    /// With a key of its key management.
    Kms,
    /// With such a key, in two layers.
    KmsDsse,
}

impl Encryption {
    /// Every kind.
    pub const ALL: [Encryption; 3] = [Encryption::Aes256, Encryption::Kms, Encryption::KmsDsse];

    /// As requests and options spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Encryption::Aes256 => "AES256",
            Encryption::Kms => "aws:kms",
            Encryption::KmsDsse => "aws:kms:dsse",
        }
    }
}

/// An open store.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The bucket, or the store.
    pub driver: Arc<dyn Driver>,
    /// The part of it that the URL names.
    pub prefix: Key,
    /// Whether the driver is a whole store, which has buckets and no keys of its own.
    pub is_store: bool,
}

/// An entry of the registry.
#[derive(Clone, Copy, Debug)]
pub struct Registered {
    /// The URL scheme.
    pub scheme: &'static str,
    /// One line for `bucketfs drivers`: the form of the URL and what is behind it.
    pub about: &'static str,
    /// Opens a store: it connects, and fails with a sentence that says what to do.
    pub open: fn(Location, OpenOptions) -> futures::future::BoxFuture<'static, Result<Opened>>,
}
