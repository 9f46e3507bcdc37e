//! URLs of stores, and the registry of drivers by scheme.

use super::{Driver, Error, ErrorKind, Result};
use crate::key::Key;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// The URL of a store. Printing it, with `{}` or `{:?}`, never shows a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Location(url::Url);

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
        Ok(Location(url))
    }

    /// The parsed URL.
    pub fn url(&self) -> &url::Url {
        &self.0
    }

    /// The part before the colon.
    pub fn scheme(&self) -> &str {
        self.0.scheme()
    }

    /// Host, bucket or the like; empty when there is none.
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or("")
    }

    /// The path without percent-encoding and without its first `/`.
    pub fn path(&self) -> Vec<u8> {
        let path = self.0.path();
        percent_encoding::percent_decode_str(path.strip_prefix('/').unwrap_or(path)).collect()
    }

    /// The query's parameters; names that are not in `known` and names given twice are refused.
    pub fn parameters(&self, known: &[&str]) -> Result<BTreeMap<String, String>> {
        let mut parameters = BTreeMap::new();
        for (name, value) in self.0.query_pairs() {
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
        if self.0.password().is_none() {
            return write!(f, "{}", self.0);
        }
        let mut shown = self.0.clone();
        match shown.set_password(Some("***")) {
            Ok(()) => write!(f, "{shown}"),
            Err(()) => write!(f, "{}:***", self.0.scheme()),
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
