//! What the service's refusals mean: the one table from codes and statuses to kinds.

use super::site::Site;
use super::xml::{self, Complaint};
use crate::driver::{Error, ErrorKind};
use crate::key::Key;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};

/// The longest sentence of a server that is passed on, in characters.
const LONGEST: usize = 300;

/// An answer that is no success.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// What the body says; its code is empty where there is none.
    pub complaint: Complaint,
    /// It comes from whatever stands in front of the service, and tells nothing of what is there.
    pub foreign: bool,
}

/// Why a request did not succeed.
#[derive(Debug)]
pub(super) enum Failed {
    /// The service refused it.
    Refused(Refusal),
    /// It got no answer, or none that makes sense.
    Broken(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Broken(error)
    }
}

/// What a request was for, which decides the meaning of "precondition failed" and "not found".
#[derive(Clone, Copy)]
pub(super) struct Purpose<'a> {
    /// The operation by its name in the contract.
    pub operation: &'static str,
    /// The key it was about.
    pub key: Option<&'a Key>,
    /// What a failed precondition means.
    pub lost: ErrorKind,
    /// What a missing object means.
    pub missing: ErrorKind,
}

impl<'a> Purpose<'a> {
    /// A request without conditions on what is written.
    pub fn of(operation: &'static str, key: Option<&'a Key>) -> Self {
        Purpose {
            operation,
            key,
            lost: ErrorKind::Changed,
            missing: ErrorKind::NotFound,
        }
    }

    /// Names operation and key in an error.
    pub fn name(&self, error: Error) -> Error {
        let error = error.during(self.operation);
        match self.key {
            Some(key) => error.on(key),
            None => error,
        }
    }

    /// The error of a request that did not succeed.
    pub fn error(&self, failed: Failed) -> Error {
        self.name(match failed {
            Failed::Broken(error) => error,
            Failed::Refused(refusal) => {
                let permission = match refusal.complaint.code.as_str() {
                    "AccessDenied" => permission(self.operation),
                    _ => None,
                };
                refusal.explain_to(self.lost, self.missing, permission)
            }
        })
    }
}

/// What an operation has to be allowed for.
fn permission(operation: &str) -> Option<&'static str> {
    Some(match operation {
        "list" => "allow s3:ListBucket there",
        // Without the second one what is missing is denied as well.
        "head" | "get" => "allow s3:GetObject and s3:ListBucket there",
        "put" | "upload" | "part" | "complete" => "allow s3:PutObject there",
        "copy" | "copy_part" => "allow s3:GetObject and s3:PutObject there",
        "delete" | "delete_many" => "allow s3:DeleteObject there",
        "abort" => "allow s3:AbortMultipartUpload there",
        "abandon_uploads" => {
            "allow s3:ListBucketMultipartUploads and s3:AbortMultipartUpload there"
        }
        "tags" => "allow s3:GetObjectTagging and s3:PutObjectTagging there",
        "buckets" => "allow s3:ListAllMyBuckets",
        "create_bucket" => "allow s3:CreateBucket",
        "delete_bucket" => "allow s3:DeleteBucket",
        _ => return None,
    })
}

impl Refusal {
    /// Reads an answer. MinIO tells the code of a HEAD, which has no body, in headers.
    pub fn read(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let header = |name: &str| {
            let value = headers.get(name)?.to_str().ok()?;
            (!value.is_empty()).then(|| value.to_owned())
        };
        let mut complaint = xml::complaint(body).unwrap_or_else(|| Complaint {
            code: header("x-minio-error-code").unwrap_or_default(),
            message: header("x-minio-error-desc").unwrap_or_else(|| plain(body)),
            region: None,
        });
        if complaint.region.is_none() {
            complaint.region = header("x-amz-bucket-region");
        }
        let foreign = match status.as_u16() {
            // It answers a condition, and whoever asked under one does not get here.
            304 => true,
            // Who is sent elsewhere by these is to log in there, and a DELETE has nothing to show.
            200..300 | 302 | 303 => true,
            // Simple servers tell nothing of what is missing. A page about it is none of S3's.
            404 => !body.is_empty() || is_page(headers) && !is_signed(headers),
            _ => false,
        };
        let foreign = foreign && complaint.code.is_empty();
        Refusal {
            status,
            complaint,
            foreign,
        }
    }

    /// What a service says behind a good status.
    pub fn late(status: StatusCode, complaint: Complaint) -> Self {
        Refusal {
            status,
            complaint,
            foreign: false,
        }
    }

    /// Replaces words that must not be shown.
    pub fn redact<'a>(&mut self, secrets: impl Iterator<Item = &'a str>) {
        for secret in secrets {
            for text in [&mut self.complaint.code, &mut self.complaint.message] {
                if text.contains(secret) {
                    *text = text.replace(secret, "***");
                }
            }
        }
    }

    /// Whether it says that there is no such object, while the bucket may be there.
    pub fn object_missing(&self) -> bool {
        self.status == StatusCode::NOT_FOUND && !self.foreign && !self.bucket_missing()
    }

    /// Whether it says that there is no such bucket.
    pub fn bucket_missing(&self) -> bool {
        self.complaint.code == "NoSuchBucket"
    }

    /// Whether it says that another write came at the same moment.
    pub fn conflict(&self) -> bool {
        self.complaint.code == "ConditionalRequestConflict"
    }

    /// The kind, and whether the same request may succeed later. The code is more exact than the
    /// status, so it comes first.
    pub fn kind(&self, lost: ErrorKind, missing: ErrorKind) -> (ErrorKind, bool) {
        use ErrorKind as K;
        if self.foreign {
            return (K::Unavailable, true);
        }
        match (self.complaint.code.as_str(), self.status.as_u16()) {
            ("NoSuchKey" | "NoSuchVersion" | "XMinioObjectNotFound", _) => (missing, false),
            ("NoSuchBucket" | "NoSuchUpload", _) => (K::NotFound, false),
            ("PreconditionFailed", _) => (lost, false),
            ("ConditionalRequestConflict", _) => (lost, true),
            ("BucketAlreadyExists" | "BucketAlreadyOwnedByYou" | "BucketNotEmpty", _) => {
                (K::Exists, false)
            }
            (
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "ExpiredToken"
                | "InvalidToken"
                | "TokenRefreshRequired"
                | "InvalidSecurity"
                | "MissingSecurityHeader"
                | "AuthorizationHeaderMalformed"
                | "RequestTimeTooSkewed"
                | "RequestExpired"
                | "NotSignedUp"
                | "CredentialsNotSupported"
                | "MissingAuthenticationToken",
                _,
            ) => (K::Unauthenticated, false),
            (
                "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "InvalidObjectState"
                | "ObjectLocked" | "XMinioObjectLocked",
                _,
            ) => (K::Denied, false),
            ("KeyTooLongError" | "KeyTooLong", _) => (K::NameTooLong, false),
            ("EntityTooLarge" | "MetadataTooLarge" | "XMinioObjectTooLarge", _) => {
                (K::TooLarge, false)
            }
            (
                "QuotaExceeded"
                | "XMinioStorageFull"
                | "XMinioAdminBucketQuotaExceeded"
                | "InsufficientCapacity"
                | "StorageFull",
                _,
            ) => (K::NoSpace, false),
            (
                "XMinioInvalidObjectName"
                | "XMinioInvalidResourceName"
                | "InvalidObjectName"
                | "XMinioParentIsObject"
                | "XMinioObjectExistsAsDirectory"
                | "ObjectParentIsFile"
                | "ExistingObjectIsDirectory"
                | "ExistingObjectIsAFile"
                | "InvalidURI"
                | "DirectoryObjectContainsData",
                _,
            ) => (K::InvalidKey, false),
            ("NotImplemented" | "MethodNotAllowed", _) => (K::Unsupported, false),
            ("RequestTimeout", _) => (K::Timeout, true),
            (
                "BadDigest"
                | "IncompleteBody"
                | "InvalidDigest"
                | "XAmzContentChecksumMismatch"
                | "XAmzContentSHA256Mismatch",
                _,
            ) => (K::Corrupt, true),
            (
                "SlowDown"
                | "SlowDownRead"
                | "SlowDownWrite"
                | "ServiceUnavailable"
                | "InternalError"
                | "OperationAborted"
                | "Throttling"
                | "ThrottlingException"
                | "TooManyRequests"
                | "RequestLimitExceeded"
                | "XMinioServerNotInitialized",
                _,
            ) => (K::Unavailable, true),
            ("TemporaryRedirect", _) | ("", 307) => (K::Unavailable, true),
            (_, 404) => (missing, false),
            (_, 412) => (lost, false),
            (_, 409) => (lost, true),
            (_, 401) => (K::Unauthenticated, false),
            (_, 403) => (K::Denied, false),
            (_, 405 | 501) => (K::Unsupported, false),
            (_, 408) => (K::Timeout, true),
            (_, 413) => (K::TooLarge, false),
            (_, 429) => (K::Unavailable, true),
            (_, 507) => (K::NoSpace, false),
            (_, 500..) => (K::Unavailable, true),
            _ => (K::InvalidArgument, false),
        }
    }

    /// Whether the service wants to get fewer requests.
    fn throttles(&self) -> bool {
        match self.complaint.code.as_str() {
            "SlowDown"
            | "SlowDownRead"
            | "SlowDownWrite"
            | "Throttling"
            | "ThrottlingException"
            | "TooManyRequests"
            | "RequestLimitExceeded" => true,
            "" | "ServiceUnavailable" => matches!(self.status.as_u16(), 429 | 503),
            _ => false,
        }
    }

    /// The error with its sentence: the server's own words, and what to do where that is known.
    pub fn explain(&self, lost: ErrorKind, missing: ErrorKind) -> Error {
        self.explain_to(lost, missing, None)
    }

    /// The same, with what to allow to whoever lacks it.
    fn explain_to(
        &self,
        lost: ErrorKind,
        missing: ErrorKind,
        permission: Option<&'static str>,
    ) -> Error {
        let (kind, retryable) = self.kind(lost, missing);
        let Complaint { code, message, .. } = &self.complaint;
        let mut sentence = match (kind, code.is_empty() && message.is_empty()) {
            (ErrorKind::NotFound, true) => "there is no such object".to_owned(),
            (ErrorKind::Changed, true) if self.status == StatusCode::NOT_FOUND => {
                "the object is gone".to_owned()
            }
            (ErrorKind::Changed, true) => "the object has another version".to_owned(),
            (ErrorKind::Exists, true) => "the object is there already".to_owned(),
            _ if code.is_empty() => format!("the server answered {}", self.status),
            _ => code.clone(),
        };
        if !sentence.ends_with(message.as_str()) {
            sentence.push_str(": ");
            sentence.extend(
                message
                    .chars()
                    .map(|c| if c.is_control() { ' ' } else { c })
                    .take(LONGEST),
            );
        }
        if let Some(hint) = self.hint().or(permission) {
            let end = sentence.trim_end_matches(['.', ' ']).len();
            sentence.truncate(end);
            sentence.push_str("; ");
            sentence.push_str(hint);
        }
        let error = Error::new(kind, sentence).retry(retryable);
        match self.throttles() {
            true => error.throttling(),
            false => error,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        let Complaint { code, message, .. } = &self.complaint;
        Some(match code.as_str() {
            "InvalidAccessKeyId" => {
                "check AWS_ACCESS_KEY_ID or the profile, and that the key belongs to this endpoint"
            }
            "SignatureDoesNotMatch" => "check AWS_SECRET_ACCESS_KEY or the profile",
            "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
                "log in again or renew AWS_SESSION_TOKEN"
            }
            "RequestTimeTooSkewed" => "correct this machine's clock",
            "AuthorizationHeaderMalformed" => "name the bucket's region",
            "NoSuchBucket" => "create the bucket, or correct its name or the endpoint",
            "InvalidObjectState" => {
                "the object is archived: restore it before it is read, renamed or copied"
            }
            "PermanentRedirect" => "name the bucket's region or its endpoint",
            "" if self.foreign => {
                "S3 does not answer like that: something in front of it does, or the endpoint is wrong"
            }
            "" if message.contains("HTTP request to an HTTPS")
                || message.contains("HTTP request was sent to HTTPS") =>
            {
                "write https:// in the endpoint"
            }
            _ => return None,
        })
    }
}

/// Whether an answer is one for people.
pub(super) fn is_page(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    kind.and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| {
            let kind = kind.trim();
            kind.eq_ignore_ascii_case("text/html") || kind.eq_ignore_ascii_case("text/plain")
        })
}

/// Whether an answer has headers that only services like S3 send: some, moto among them, call a
/// HEAD's missing body a page.
fn is_signed(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| {
        ["x-amz", "x-goog-", "x-guploader-"]
            .iter()
            .any(|prefix| name.as_str().starts_with(prefix))
    })
}

/// The first line of an answer that is no XML, unless it is a page for people.
fn plain(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(2 * LONGEST)]);
    if let Some((_, rest)) = text.split_once("<title>") {
        return rest.split('<').next().unwrap_or_default().trim().to_owned();
    }
    let line = text.trim().lines().next().unwrap_or_default();
    if line.starts_with('<') {
        String::new()
    } else {
        line.to_owned()
    }
}

/// An answer of a service that is not what S3 answers.
pub(super) fn estranged(error: Error, site: &Site) -> Error {
    let why = error.message();
    let why = match error.kind() {
        ErrorKind::Corrupt => {
            format!("{site} does not answer like S3 ({why}); is the endpoint right?")
        }
        ErrorKind::Unavailable => format!("{site} cannot answer now ({why}); try again later"),
        _ => why.to_owned(),
    };
    Error::new(error.kind(), why).retry(error.retryable())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, code: &str) -> Refusal {
        Refusal {
            status: StatusCode::from_u16(status).expect("a status"),
            complaint: Complaint {
                code: code.into(),
                ..Complaint::default()
            },
            foreign: false,
        }
    }

    #[test]
    fn codes_come_before_statuses() {
        use ErrorKind as K;
        for (status, code, kind, retryable) in [
            (404, "NoSuchKey", K::Changed, false),
            (404, "", K::Changed, false),
            (404, "NoSuchBucket", K::NotFound, false),
            (412, "PreconditionFailed", K::Exists, false),
            (412, "", K::Exists, false),
            (409, "ConditionalRequestConflict", K::Exists, true),
            (403, "AccessDenied", K::Denied, false),
            (403, "", K::Denied, false),
            (403, "InvalidAccessKeyId", K::Unauthenticated, false),
            (403, "SignatureDoesNotMatch", K::Unauthenticated, false),
            (400, "ExpiredToken", K::Unauthenticated, false),
            (403, "InvalidObjectState", K::Denied, false),
            (503, "SlowDown", K::Unavailable, true),
            (500, "", K::Unavailable, true),
            (502, "", K::Unavailable, true),
            (504, "", K::Unavailable, true),
            (429, "", K::Unavailable, true),
            (507, "", K::NoSpace, false),
            (500, "XMinioStorageFull", K::NoSpace, false),
            (400, "KeyTooLongError", K::NameTooLong, false),
            (400, "EntityTooLarge", K::TooLarge, false),
            (400, "XMinioInvalidObjectName", K::InvalidKey, false),
            (501, "NotImplemented", K::Unsupported, false),
            (400, "RequestTimeout", K::Timeout, true),
            (400, "SomethingNew", K::InvalidArgument, false),
            (301, "PermanentRedirect", K::InvalidArgument, false),
            (307, "TemporaryRedirect", K::Unavailable, true),
            (307, "", K::Unavailable, true),
        ] {
            let got = refusal(status, code).kind(K::Exists, K::Changed);
            assert_eq!(got, (kind, retryable), "{status} {code}");
        }
    }

    #[test]
    fn sentences_carry_code_message_and_advice_but_no_secrets() {
        let body =
            b"<Error><Code>SignatureDoesNotMatch</Code><Message>wrong\nfor hushhush.</Message>\
            <AWSAccessKeyId>AKID</AWSAccessKeyId><StringToSign>AWS4 x</StringToSign></Error>";
        let mut refusal = Refusal::read(StatusCode::FORBIDDEN, &HeaderMap::new(), body);
        refusal.redact(["hushhush"].into_iter());
        let text = Purpose::of("get", Some(&Key::from("k")))
            .error(Failed::Refused(refusal))
            .to_string();
        assert_eq!(
            text,
            "get \"k\": SignatureDoesNotMatch: wrong for ***; check AWS_SECRET_ACCESS_KEY or the profile"
        );
    }

    #[test]
    fn answers_without_xml_are_still_understood() {
        let mut headers = HeaderMap::new();
        headers.insert("x-minio-error-code", "NoSuchBucket".parse().expect("text"));
        let head = Refusal::read(StatusCode::NOT_FOUND, &headers, b"");
        assert_eq!(
            head.kind(ErrorKind::Changed, ErrorKind::Changed).0,
            ErrorKind::NotFound
        );
        let none = HeaderMap::new();
        let go = Refusal::read(
            StatusCode::BAD_REQUEST,
            &none,
            b"Client sent an HTTP request to an HTTPS server.\n",
        );
        let text = go
            .explain(ErrorKind::Changed, ErrorKind::NotFound)
            .to_string();
        assert!(
            text.ends_with("HTTPS server; write https:// in the endpoint"),
            "{text}"
        );
        let html = Refusal::read(
            StatusCode::BAD_GATEWAY,
            &none,
            b"<html><head><title>502 Bad Gateway</title></head></html>",
        );
        let text = html
            .explain(ErrorKind::Changed, ErrorKind::NotFound)
            .to_string();
        assert_eq!(text, "the server answered 502 Bad Gateway");
    }
}
