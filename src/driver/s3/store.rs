//! A service and how requests to it are made: signed, sent, and sent again where the answer tells
//! what was wrong with the region, the clock or the credentials.

use super::class::Classes;
use super::refusal::{Failed, Refusal, is_page};
use super::restated::Restated;
use super::sign::{self, Credentials};
use super::site::Site;
use super::tombstone::Unsettled;
use super::verify::Etags;
use super::{StaticCredentials, meta, trust, xml};
use crate::clock::{self, Instant};
use crate::driver::web::connect::{self, Client, Proxies};
use crate::driver::web::{self as connection, Payload};
use crate::driver::{Body, Error, ErrorKind, OpenOptions, Result};
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sigv4::http_request::SignableBody;
use aws_types::service_config::ServiceConfigKey;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, IF_NONE_MATCH, PROXY_AUTHORIZATION, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

/// The largest answer that is read whole: a page of a listing, or a refusal.
pub(super) const LARGEST: usize = 16 << 20;
/// The largest refusal that is read.
const LARGEST_REFUSAL: usize = 64 << 10;
/// How far clocks may be apart before a refusal is put down to that. Services bear 15 minutes.
const SKEW: u64 = 240;

/// What a service is reached with.
#[derive(Debug)]
pub(super) struct Store {
    client: Client,
    proxies: Proxies,
    /// `None` where requests go without a signature.
    credentials: Option<Credentials>,
    /// Headers of every request.
    always: HeaderMap,
    /// Headers of requests that make objects.
    pub written: HeaderMap,
    /// Seconds that the service's clock is ahead of ours.
    skew: AtomicI64,
    /// The service's clock as the last answer told it, and when that came. A leaf lock, held for
    /// moments only.
    told: Mutex<Option<(SystemTime, Instant)>>,
    /// Where buckets are looked for first.
    pub site: Site,
}

/// Where requests go: to the service, or to one of its buckets. Each learns its own region.
#[derive(Debug)]
pub(super) struct Target {
    /// The bucket.
    pub bucket: Option<Box<str>>,
    /// A leaf lock, held for moments only.
    site: RwLock<Arc<Site>>,
    /// What is known of its etags.
    pub etags: Arc<Etags>,
    /// What is known of its objects' storage classes.
    pub classes: Classes,
    /// What is being copied onto itself.
    pub restated: Restated,
    /// Deletes whose answer was lost.
    pub unsettled: Unsettled,
}

impl Target {
    /// A target that is believed to be at `site`.
    pub fn new(bucket: Option<&str>, site: Site) -> Self {
        Target {
            bucket: bucket.map(Into::into),
            site: RwLock::new(Arc::new(site)),
            etags: Arc::default(),
            classes: Classes::default(),
            restated: Restated::default(),
            unsettled: Unsettled::default(),
        }
    }

    /// Where it is, as far as is known.
    pub fn site(&self) -> Arc<Site> {
        self.site.read().clone()
    }

    /// Corrects where it is.
    pub fn move_to(&self, site: Site) {
        *self.site.write() = Arc::new(site);
    }
}

/// What a request carries.
pub(super) enum Outgoing<'a> {
    /// Nothing.
    Nothing,
    /// A document, which the signature covers.
    Document(Bytes),
    /// An object, which it does not cover: hashing would cost more than sending.
    Object(&'a Body),
}

/// A request that can be made several times.
pub(super) struct Call<'a> {
    /// Its method.
    pub method: Method,
    /// The key, or nothing for the bucket.
    pub key: &'a [u8],
    /// Parameters, escaped.
    pub query: &'a str,
    /// Headers beside those of the signature.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Outgoing<'a>,
}

impl<'a> Call<'a> {
    /// A request without parameters, headers or body.
    pub fn new(method: Method, key: &'a [u8]) -> Self {
        Call {
            method,
            key,
            query: "",
            headers: HeaderMap::with_capacity(8),
            body: Outgoing::Nothing,
        }
    }
}

/// What the options say of objects that are written.
fn written(options: &OpenOptions) -> Result<HeaderMap> {
    let value = |name: &str, text: &str| {
        meta::ascii(text).map_err(|_| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("{name}: {text:?} is not plain text"),
            )
        })
    };
    let mut headers = HeaderMap::new();
    if let Some(kind) = options.sse {
        headers.insert(
            "x-amz-server-side-encryption",
            HeaderValue::from_static(kind.name()),
        );
    }
    if let Some(key) = &options.sse_kms_key_id {
        headers.insert(
            "x-amz-server-side-encryption-aws-kms-key-id",
            value("sse-kms-key-id", key)?,
        );
    }
    if let Some(class) = &options.storage_class {
        headers.insert(meta::STORAGE_CLASS, value("storage-class", class)?);
    }
    Ok(headers)
}

impl Store {
    /// Finds region, endpoint and credentials as the field's other tools do: options, environment,
    /// profile. Nothing is sent, unless credentials come from a service.
    pub async fn configure(options: &OpenOptions, keys: Option<StaticCredentials>) -> Result<Self> {
        let mut profile = ProfileFileRegionProvider::builder();
        if let Some(name) = &options.profile {
            profile = profile.profile_name(name);
        }
        // No question to the machine's metadata service: a bucket tells its region itself.
        let regions = RegionProviderChain::first_try(options.region.clone().map(Region::new))
            .or_else(EnvironmentVariableRegionProvider::new())
            .or_else(profile.build())
            .or_else(Region::from_static("us-east-1"));
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(name) = &options.profile {
            loader = loader.profile_name(name);
        }
        let region = regions.region().await;
        let mut loader = loader.region(region.clone());
        if options.no_sign_request {
            loader = loader.no_credentials();
        } else if let Some(keys) = keys {
            loader = loader.credentials_provider(SharedCredentialsProvider::new(keys.0));
        } else if let Some(name) = &options.profile {
            // A profile that was asked for comes before the environment.
            let provider = ProfileFileCredentialsProvider::builder()
                .configure(&ProviderConfig::without_region().with_region(region))
                .profile_name(name)
                .build();
            loader = loader.credentials_provider(provider);
        }
        let config = loader.load().await;
        let region = config
            .region()
            .map_or("us-east-1", |region| region.as_ref());
        let special = config.service_config().and_then(|service| {
            let key = ServiceConfigKey::builder()
                .service_id("S3")
                .env("AWS_ENDPOINT_URL")
                .profile("endpoint_url")
                .build()
                .ok()?;
            service.load_config(key)
        });
        let endpoint = options
            .endpoint_url
            .as_deref()
            .or(special.as_deref())
            .or(config.endpoint_url());
        let site = match endpoint {
            Some(endpoint) => Site::custom(endpoint, region, options.force_path_style)?,
            None => Site::amazon(region, options.force_path_style),
        };
        let credentials = match config.credentials_provider() {
            _ if options.no_sign_request => None,
            Some(provider) => Some(Credentials::new(provider, options.profile.clone())),
            None => {
                return Err(Error::new(
                    ErrorKind::Unauthenticated,
                    "there is no way to get credentials",
                ));
            }
        };
        let proxies = Proxies::from_env();
        let mut always = HeaderMap::new();
        if options.requester_pays {
            let requester = HeaderValue::from_static("requester");
            always.insert("x-amz-request-payer", requester);
        }
        // The system's certificates are read for encrypted endpoints only.
        let roots = match site.https {
            true => trust::roots()?,
            false => rustls::RootCertStore::empty(),
        };
        Ok(Store {
            client: connect::client(roots, &proxies)?,
            proxies,
            credentials,
            always,
            written: written(options)?,
            skew: AtomicI64::new(0),
            told: Mutex::new(None),
            site,
        })
    }

    /// The access key that requests are signed with, which is no secret.
    pub async fn access_key(&self) -> Option<String> {
        let identity = self.credentials.as_ref()?.identity().await.ok()?;
        let key = identity.data::<aws_credential_types::Credentials>()?;
        Some(key.access_key_id().into())
    }

    /// Makes a request. What comes back is a success or "not modified", with its body unread.
    pub async fn send(
        &self,
        target: &Target,
        call: &Call<'_>,
    ) -> std::result::Result<Response<Incoming>, Failed> {
        let (mut moved, mut shifted, mut renewed) = (false, false, false);
        loop {
            let site = target.site();
            let identity = match &self.credentials {
                Some(credentials) => Some(credentials.identity().await?),
                None => None,
            };
            let skew = self.skew.load(Ordering::Relaxed);
            let request = self.request(&site, target, call, identity.as_ref(), skew)?;
            let response = connect::request(&self.client, request)
                .await
                .map_err(|error| connection::unanswered(&error, &site.peer()))?;
            if let Some(theirs) = meta::date(response.headers()) {
                *self.told.lock() = Some((theirs, clock::now()));
            }
            let status = response.status();
            let unchanged = status == StatusCode::NOT_MODIFIED
                && matches!(call.method, Method::GET | Method::HEAD)
                && call.headers.contains_key(IF_NONE_MATCH);
            if status.is_success() || unchanged {
                return Ok(response);
            }
            let (parts, body) = response.into_parts();
            let body = connection::collect(body, LARGEST_REFUSAL).await?;
            let mut refusal = Refusal::read(status, &parts.headers, &body);
            if let Some(identity) = &identity {
                refusal.redact(Credentials::secrets(identity));
            }
            log::debug!(
                "{} {site}: {status} {}",
                call.method,
                refusal.complaint.code
            );
            match (status.as_u16(), &refusal.complaint.region) {
                (301 | 307 | 400, Some(region)) if !moved && *region != site.region => {
                    moved = true;
                    log::debug!("{site}: the bucket is in region {region}");
                    target.move_to(site.in_region(region));
                    continue;
                }
                _ => {}
            }
            if status == StatusCode::FORBIDDEN && !shifted && self.shift(&parts.headers, skew) {
                shifted = true;
                continue;
            }
            // A HEAD has no body that could tell the code.
            let expired = match refusal.complaint.code.as_str() {
                "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => true,
                "" => call.method == Method::HEAD && status == StatusCode::BAD_REQUEST,
                _ => false,
            };
            if let (true, false, Some(credentials), Some(identity)) =
                (expired, renewed, &self.credentials, &identity)
                && credentials.refused(identity)
            {
                renewed = true;
                continue;
            }
            return Err(Failed::Refused(refusal));
        }
    }

    /// Makes a request whose answer is a document, and reads that.
    pub async fn ask(
        &self,
        target: &Target,
        call: &Call<'_>,
    ) -> std::result::Result<(HeaderMap, Bytes), Failed> {
        let (parts, body) = self.send(target, call).await?.into_parts();
        let body = connection::collect(body, LARGEST).await?;
        // What a login page in front of the service answers to a DELETE removes nothing.
        if call.method == Method::DELETE
            && !body.is_empty()
            && (is_page(&parts.headers) || xml::complaint(&body).is_some())
        {
            let refusal = Refusal::read(parts.status, &parts.headers, &body);
            return Err(Failed::Refused(refusal));
        }
        Ok((parts.headers, body))
    }

    fn request(
        &self,
        site: &Site,
        target: &Target,
        call: &Call<'_>,
        identity: Option<&aws_smithy_runtime_api::client::identity::Identity>,
        skew: i64,
    ) -> Result<Request<Payload>> {
        let url = site.url(target.bucket.as_deref(), call.key, call.query);
        let mut headers = call.headers.clone();
        let covered = match &call.body {
            Outgoing::Nothing => SignableBody::Bytes(b""),
            Outgoing::Document(document) => SignableBody::Bytes(document),
            Outgoing::Object(_) => SignableBody::UnsignedPayload,
        };
        headers.extend(
            self.always
                .iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        if let Some(identity) = identity {
            sign::authorize(
                identity,
                &site.region,
                shifted(clock::wall(), skew),
                &call.method,
                &url,
                &mut headers,
                covered,
            )?;
        }
        let payload = match &call.body {
            Outgoing::Nothing => Payload::Whole(Bytes::new()),
            Outgoing::Document(document) => Payload::Whole(document.clone()),
            Outgoing::Object(body) => Payload::from(*body),
        };
        if matches!(call.method, Method::PUT | Method::POST) {
            // Said even of an empty body, which would otherwise have no length at all.
            let len = hyper::body::Body::size_hint(&payload).lower();
            headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
        }
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("bucketfs/", env!("CARGO_PKG_VERSION"))),
        );
        let mut request = Request::new(payload);
        *request.method_mut() = call.method.clone();
        let uri: Uri = url.parse().map_err(|cause| {
            Error::new(
                ErrorKind::InvalidKey,
                format!("the key makes no URL: {cause}"),
            )
        })?;
        if let Some(value) = self.proxies.authorization(&uri) {
            headers.insert(PROXY_AUTHORIZATION, value);
        }
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// The service's clock, at most what an answer takes and a second behind it; this machine's
    /// where no answer told it.
    pub fn wall(&self) -> SystemTime {
        match *self.told.lock() {
            Some((theirs, at)) => theirs + clock::now().saturating_duration_since(at),
            None => clock::wall(),
        }
    }

    /// Adopts the service's clock if that of a request is too far from it, which was signed with
    /// `signed` seconds added to ours. Whether the request is worth another try: also where another
    /// one has corrected the clock meanwhile.
    fn shift(&self, headers: &HeaderMap, signed: i64) -> bool {
        let Some(theirs) = meta::date(headers) else {
            return false;
        };
        let skew = match theirs.duration_since(clock::wall()) {
            Ok(ahead) => i64::try_from(ahead.as_secs()).unwrap_or(i64::MAX),
            Err(behind) => -i64::try_from(behind.duration().as_secs()).unwrap_or(i64::MAX),
        };
        let far = |known: i64| skew.saturating_sub(known).unsigned_abs() > SKEW;
        if !far(signed) {
            return false;
        }
        if far(self.skew.load(Ordering::Relaxed)) {
            log::warn!("this machine's clock differs from the server's by {skew} s; correct it");
            self.skew.store(skew, Ordering::Relaxed);
        }
        true
    }
}

/// The time that signatures carry: the service's.
fn shifted(time: SystemTime, skew: i64) -> SystemTime {
    let shift = Duration::from_secs(skew.unsigned_abs());
    if skew >= 0 {
        time + shift
    } else {
        time - shift
    }
}
