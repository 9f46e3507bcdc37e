//! Where the service is, and how buckets, keys and parameters become URLs.

use crate::driver::web::Peer;
use crate::driver::{Error, ErrorKind, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use std::fmt::{self, Write};

/// What a parameter's value is escaped from: everything but the unreserved characters, which is
/// also what the signature wants.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The same for keys, whose slashes separate segments.
const KEY: &AsciiSet = &VALUE.remove(b'/');

/// A key as it stands in URLs and in `x-amz-copy-source`: escaped once, never normalised.
pub(super) fn encode_key(key: &[u8]) -> impl fmt::Display + '_ {
    percent_encode(key, KEY)
}

/// A name or a value as it stands in a query.
pub(super) fn encode_value(value: &str) -> impl fmt::Display + '_ {
    percent_encode(value.as_bytes(), VALUE)
}

/// The service that a bucket is reached at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Site {
    /// The region that requests are signed for.
    pub region: String,
    /// Whether the user named the endpoint, so that it stays the same in every region.
    pub custom: bool,
    /// Whether the bucket is the first segment of the path instead of the first label of the host.
    pub path_style: bool,
    /// Whether connections are encrypted.
    pub https: bool,
    /// Host and port.
    authority: String,
    /// What stands before the bucket in the path, without a `/` at its end.
    base: String,
}

impl Site {
    /// The endpoint of Amazon's service in a region.
    pub fn amazon(region: &str, path_style: bool) -> Self {
        let domain = if region.starts_with("cn-") {
            "amazonaws.com.cn"
        } else {
            "amazonaws.com"
        };
        Site {
            region: region.to_owned(),
            custom: false,
            path_style,
            https: true,
            authority: format!("s3.{region}.{domain}"),
            base: String::new(),
        }
    }

    /// An endpoint by its URL. Hosts that can have no sub-domains get the bucket in the path.
    pub fn custom(endpoint: &str, region: &str, path_style: bool) -> Result<Self> {
        let wrong = |why: &str| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "the endpoint {why}; write it like https://s3.example.com or http://127.0.0.1:9000"
                ),
            )
        };
        let url = url::Url::parse(endpoint).map_err(|_| wrong("is not a URL"))?;
        let https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(wrong("has neither the scheme http nor https")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("must not contain a user or a password"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("must not contain ? or #"));
        }
        let host = url.host_str().ok_or_else(|| wrong("has no host"))?;
        let local = match url.host() {
            Some(url::Host::Domain(name)) => {
                name == "localhost" || name.ends_with(".localhost") || !name.contains('.')
            }
            _ => true,
        };
        Ok(Site {
            region: region.to_owned(),
            custom: true,
            path_style: path_style || local,
            https,
            authority: match url.port() {
                Some(port) => format!("{host}:{port}"),
                None => host.to_owned(),
            },
            base: url.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The same service, as seen from another region.
    pub fn in_region(&self, region: &str) -> Self {
        if self.custom {
            Site {
                region: region.to_owned(),
                ..self.clone()
            }
        } else {
            Site::amazon(region, self.path_style)
        }
    }

    /// The same service, with buckets in the path.
    pub fn with_path_style(&self) -> Self {
        Site {
            path_style: true,
            ..self.clone()
        }
    }

    /// The URL of the service, a bucket or an object. `query` is escaped already.
    pub fn url(&self, bucket: Option<&str>, key: &[u8], query: &str) -> String {
        let mut url = String::with_capacity(
            16 + self.authority.len()
                + self.base.len()
                + bucket.map_or(0, str::len)
                + key.len() * 3 / 2
                + query.len(),
        );
        url.push_str(if self.https { "https://" } else { "http://" });
        match bucket {
            Some(bucket) if !self.in_path(bucket) => {
                url.push_str(bucket);
                url.push('.');
                url.push_str(&self.authority);
                url.push_str(&self.base);
            }
            Some(bucket) => {
                url.push_str(&self.authority);
                url.push_str(&self.base);
                url.push('/');
                url.extend(percent_encode(bucket.as_bytes(), VALUE));
            }
            None => {
                url.push_str(&self.authority);
                url.push_str(&self.base);
            }
        }
        url.push('/');
        url.extend(percent_encode(key, KEY));
        if !query.is_empty() {
            url.push('?');
            url.push_str(query);
        }
        url
    }

    /// Whether requests for this bucket carry it in the path: certificates of `*.host` do not
    /// cover names with dots, and other characters are no part of a host name.
    fn in_path(&self, bucket: &str) -> bool {
        self.path_style
            || !bucket
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    }

    /// Who is asked, for sentences.
    pub fn peer(&self) -> Peer<'_> {
        Peer {
            name: self,
            https: self.https,
            away: match self.custom {
                true => "is the server running, and the endpoint right?",
                false => "is the network up, and the region right?",
            },
            plain: "; if the server expects TLS, write https:// in the endpoint",
            bare: "the server speaks no TLS there; write http:// in the endpoint if that is meant",
            issuer: "if it is a private one, let AWS_CA_BUNDLE name a file with its issuer",
        }
    }
}

/// The endpoint, for messages.
impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.base)
    }
}

/// Parameters of a URL, escaped as they are added.
#[derive(Default)]
pub(super) struct Query(String);

impl Query {
    /// Adds a parameter. `name` needs no escaping.
    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(name);
        self.0.push('=');
        self.0.extend(percent_encode(value.as_ref(), VALUE));
        self
    }

    /// Adds a number.
    pub fn with_number(mut self, name: &str, value: usize) -> Self {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        // Writing to a string does not fail.
        let _ = write!(self.0, "{name}={value}");
        self
    }

    /// The text behind the `?`.
    pub fn into_string(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minio() -> Site {
        Site::custom("http://127.0.0.1:9000", "us-east-1", false).expect("a good URL")
    }

    #[test]
    fn keys_reach_the_request_line_unchanged() {
        for (key, path) in [
            ("a b+c%d", "/b/a%20b%2Bc%25d"),
            ("a//b", "/b/a//b"),
            ("/a", "/b//a"),
            ("./a/../b/", "/b/./a/../b/"),
            ("\n\u{e4}?#&=~", "/b/%0A%C3%A4%3F%23%26%3D~"),
        ] {
            let url = minio().url(Some("b"), key.as_bytes(), "");
            let uri: http::Uri = url.parse().expect("a good URI");
            assert_eq!(uri.path(), path);
            assert_eq!(uri.query(), None);
        }
    }

    #[test]
    fn buckets_go_where_the_endpoint_can_take_them() {
        let amazon = Site::amazon("eu-west-1", false);
        assert_eq!(
            amazon.url(Some("b"), b"k", ""),
            "https://b.s3.eu-west-1.amazonaws.com/k"
        );
        assert_eq!(
            amazon.url(Some("b.c"), b"", "list-type=2"),
            "https://s3.eu-west-1.amazonaws.com/b.c/?list-type=2"
        );
        assert_eq!(
            amazon.url(None, b"", ""),
            "https://s3.eu-west-1.amazonaws.com/"
        );
        assert_eq!(
            amazon.in_region("cn-north-1").url(None, b"", ""),
            "https://s3.cn-north-1.amazonaws.com.cn/"
        );
        let far = Site::custom("https://s3.example.com/base/", "x", false).expect("a good URL");
        assert_eq!(
            far.url(Some("b"), b"k", ""),
            "https://b.s3.example.com/base/k"
        );
        for local in [
            "http://localhost:9000",
            "http://[::1]:9000",
            "http://minio:9000",
        ] {
            let site = Site::custom(local, "x", false).expect("a good URL");
            assert_eq!(site.url(Some("b"), b"k", ""), format!("{local}/b/k"));
        }
    }

    #[test]
    fn endpoints_that_are_no_service_are_refused() {
        for wrong in [
            "localhost:9000",
            "127.0.0.1:9000",
            "ftp://host",
            "http://me:secret@host",
            "http://host/?a",
        ] {
            let error = Site::custom(wrong, "x", false).expect_err(wrong);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(!error.to_string().contains("secret"));
        }
    }

    #[test]
    fn parameters_are_escaped_once() {
        let query = Query::default()
            .with("prefix", "a/ä b")
            .with_number("max-keys", 7)
            .with("delete", "");
        assert_eq!(
            query.into_string(),
            "prefix=a%2F%C3%A4%20b&max-keys=7&delete="
        );
    }
}
