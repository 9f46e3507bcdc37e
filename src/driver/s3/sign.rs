//! Credentials from the chain that all tools of the field use, renewed in time, and signatures.

use crate::clock;
use crate::driver::{Error, ErrorKind, Result};
use crate::task;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningParams,
    SigningSettings, UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::identity::Identity;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Credentials with no more left than this are renewed while they are still used.
const EARLY: Duration = Duration::from_secs(300);
/// Credentials with no more left than this are not used any more.
const LATE: Duration = Duration::from_secs(10);
/// How long after a renewal that failed the next one begins, while the old ones still serve.
const PAUSE: Duration = Duration::from_secs(15);

/// A failed renewal as everybody who waited for it is told: kind, whether to retry, sentence.
type Failure = (ErrorKind, bool, Arc<str>);
type Renewal = Shared<BoxFuture<'static, std::result::Result<Identity, Failure>>>;

/// The credentials of a mount. One renewal runs at a time, for everybody who needs it.
pub(super) struct Credentials {
    provider: SharedCredentialsProvider,
    /// The profile that was asked for.
    profile: Option<String>,
    /// A leaf lock, held for moments only.
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    current: Option<Identity>,
    renewal: Option<Renewal>,
    not_before: Option<clock::Instant>,
}

impl Credentials {
    /// Takes them from a provider when they are needed.
    pub fn new(provider: SharedCredentialsProvider, profile: Option<String>) -> Self {
        Credentials {
            provider,
            profile,
            state: Arc::default(),
        }
    }

    /// Credentials that are good for some time.
    pub async fn identity(&self) -> Result<Identity> {
        let renewal = {
            let mut state = self.state.lock();
            let current = state.current.clone();
            let left = match &current {
                None => Duration::ZERO,
                Some(identity) => match identity.expiration() {
                    None => Duration::MAX,
                    Some(end) => end.duration_since(clock::wall()).unwrap_or_default(),
                },
            };
            match current {
                Some(identity) if left > EARLY => return Ok(identity),
                Some(identity) if left > LATE => {
                    if state.not_before.is_none_or(|at| clock::now() >= at) {
                        // It runs by itself; nobody has to wait for it.
                        drop(self.renew(&mut state));
                    }
                    return Ok(identity);
                }
                _ => self.renew(&mut state),
            }
        };
        renewal
            .await
            .map_err(|(kind, retry, why)| Error::new(kind, &*why).retry(retry))
    }

    /// Forgets credentials that the server refused, unless others have come since. Tells whether
    /// asking again may give others.
    pub fn refused(&self, identity: &Identity) -> bool {
        if identity.expiration().is_none() {
            return false;
        }
        let mut state = self.state.lock();
        let secret = |identity: &Identity| {
            identity
                .data::<aws_credential_types::Credentials>()
                .map(|keys| keys.access_key_id().to_owned())
        };
        if state.current.as_ref().map(secret) == Some(secret(identity)) {
            state.current = None;
        }
        true
    }

    /// Words that must never be shown.
    pub fn secrets(identity: &Identity) -> impl Iterator<Item = &str> {
        identity
            .data::<aws_credential_types::Credentials>()
            .into_iter()
            .flat_map(|keys| [Some(keys.secret_access_key()), keys.session_token()])
            .flatten()
            .filter(|word| !word.is_empty())
    }

    /// The renewal that runs, or a new one. It goes on when nobody waits for it any more.
    fn renew(&self, state: &mut State) -> Renewal {
        if let Some(renewal) = &state.renewal {
            return renewal.clone();
        }
        let provider = self.provider.clone();
        let profile = self.profile.clone();
        let shared = self.state.clone();
        let task = task::spawn(async move {
            let result = provider.provide_credentials().await;
            let mut state = shared.lock();
            state.renewal = None;
            match result {
                Ok(keys) => {
                    let identity = Identity::from(keys);
                    state.not_before = None;
                    state.current = Some(identity.clone());
                    Ok(identity)
                }
                Err(error) => {
                    state.not_before = Some(clock::now() + PAUSE);
                    let failure = failure(&error, profile.as_deref());
                    // As long as the old ones serve, nobody waits for this, and nobody is told.
                    if state.current.is_some() {
                        log::warn!("{}", failure.2);
                    }
                    Err(failure)
                }
            }
        });
        let renewal = async move {
            task.await.unwrap_or_else(|_| {
                let why = "looking for credentials was interrupted";
                Err((ErrorKind::Unauthenticated, true, why.into()))
            })
        }
        .boxed()
        .shared();
        state.renewal = Some(renewal.clone());
        renewal
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

fn failure(error: &CredentialsError, profile: Option<&str>) -> Failure {
    const WAYS: &str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or choose a profile of ~/.aws (--profile), or log in with `aws sso login`";
    let (retry, why) = match error {
        CredentialsError::CredentialsNotLoaded(_) => (
            false,
            match profile {
                Some(name) => format!(
                    "there are no credentials in the profile {name:?}, or there is no such profile: look into ~/.aws/config and ~/.aws/credentials"
                ),
                None => format!("there are no credentials: {WAYS}"),
            },
        ),
        error => {
            let outer = error.to_string();
            let mut why = String::from("cannot get credentials");
            let mut cause = std::error::Error::source(error);
            while let Some(inner) = cause {
                let text = inner.to_string();
                // Providers within providers say the same.
                if text != outer {
                    why.push_str(": ");
                    why.push_str(&text);
                }
                cause = inner.source();
            }
            let passing = !matches!(error, CredentialsError::InvalidConfiguration(_));
            (
                passing,
                format!("{}; {WAYS}", why.replace(['\n', '\r'], " ")),
            )
        }
    };
    (ErrorKind::Unauthenticated, retry, why.into())
}

/// Signs a request: adds the headers that S3 wants, and covers every header that is there.
pub(super) fn authorize(
    identity: &Identity,
    region: &str,
    time: SystemTime,
    method: &Method,
    url: &str,
    headers: &mut HeaderMap,
    body: SignableBody<'_>,
) -> Result<()> {
    let wrong = |why: String| Error::new(ErrorKind::InvalidArgument, why);
    let mut settings = SigningSettings::default();
    // Keys are signed as they are: escaped once, with their dots and slashes.
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    settings.excluded_headers = None;
    let params = v4::SigningParams::builder()
        .identity(identity)
        .region(region)
        .name("s3")
        .time(time)
        .settings(settings)
        .build()
        .map_err(|cause| wrong(format!("cannot sign the request: {cause}")))?;
    let params = SigningParams::V4(params);
    let mut covered = Vec::with_capacity(headers.len());
    for (name, value) in headers.iter() {
        let value = value
            .to_str()
            .map_err(|_| wrong(format!("the header {name} is not plain text")))?;
        covered.push((name.as_str(), value));
    }
    let request = SignableRequest::new(method.as_str(), url, covered.into_iter(), body)
        .map_err(|cause| wrong(format!("cannot sign the request: {cause}")))?;
    let (output, _) = sign(request, &params)
        .map_err(|cause| wrong(format!("cannot sign the request: {cause}")))?
        .into_parts();
    for header in output.into_parts().0 {
        let mut value = HeaderValue::from_str(header.value())
            .map_err(|_| wrong("the credentials are not plain text".into()))?;
        value.set_sensitive(true);
        headers.insert(HeaderName::from_static(header.name()), value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::UNIX_EPOCH;

    /// The examples of "Authenticating Requests: Using the Authorization Header" in Amazon's
    /// documentation of the S3 API.
    #[test]
    fn signatures_are_those_of_the_documentation() {
        let keys = aws_credential_types::Credentials::new(
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            None,
            None,
            "test",
        );
        let time = UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        for (method, path, extra, body, signature) in [
            (
                Method::GET,
                "test.txt",
                &[("range", "bytes=0-9")][..],
                "",
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                Method::PUT,
                "test%24file.text",
                &[
                    ("date", "Fri, 24 May 2013 00:00:00 GMT"),
                    ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
                ][..],
                "Welcome to Amazon S3.",
                "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            ),
            (
                Method::GET,
                "?max-keys=2&prefix=J",
                &[][..],
                "",
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in extra {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            let url = format!("https://examplebucket.s3.amazonaws.com/{path}");
            let identity = Identity::from(keys.clone());
            let body = SignableBody::Bytes(body.as_bytes());
            authorize(
                &identity,
                "us-east-1",
                time,
                &method,
                &url,
                &mut headers,
                body,
            )
            .expect("a signature");
            let authorization = headers["authorization"].to_str().expect("text");
            assert!(
                authorization.ends_with(&format!("Signature={signature}")),
                "{authorization}"
            );
            assert!(!format!("{headers:?}").contains(signature));
        }
    }

    #[derive(Debug)]
    struct Fake {
        asked: Arc<AtomicU64>,
        lifetime: Duration,
    }

    impl ProvideCredentials for Fake {
        fn provide_credentials<'a>(
            &'a self,
        ) -> aws_credential_types::provider::future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            aws_credential_types::provider::future::ProvideCredentials::new(async {
                let count = self.asked.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                if self.lifetime.is_zero() {
                    return Err(CredentialsError::not_loaded("nothing"));
                }
                Ok(aws_credential_types::Credentials::new(
                    format!("key-{count}"),
                    "topsecret",
                    None,
                    Some(clock::wall() + self.lifetime),
                    "fake",
                ))
            })
        }
    }

    fn fake(seconds: u64) -> (Credentials, Arc<AtomicU64>) {
        let asked = Arc::<AtomicU64>::default();
        let fake = Fake {
            asked: asked.clone(),
            lifetime: Duration::from_secs(seconds),
        };
        (
            Credentials::new(SharedCredentialsProvider::new(fake), None),
            asked,
        )
    }

    #[tokio::test]
    async fn credentials_are_asked_for_once_and_renewed_before_they_end() {
        let (lasting, asked) = fake(3600);
        let both = tokio::join!(lasting.identity(), lasting.identity());
        assert!(both.0.is_ok() && both.1.is_ok());
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        let identity = lasting.identity().await.expect("credentials");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(lasting.refused(&identity));
        lasting.identity().await.expect("others");
        assert_eq!(asked.load(Ordering::SeqCst), 2);

        let (ending, asked) = fake(60);
        ending.identity().await.expect("credentials");
        ending
            .identity()
            .await
            .expect("the same, with a renewal beside");
        while asked.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }

        let (ended, asked) = fake(1);
        ended.identity().await.expect("credentials");
        ended.identity().await.expect("others");
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn missing_credentials_are_explained() {
        let (none, _) = fake(0);
        let error = none.identity().await.expect_err("there are none");
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
        assert!(error.to_string().contains("AWS_ACCESS_KEY_ID"), "{error}");
        assert!(!format!("{none:?}").contains("topsecret"));
    }
}
