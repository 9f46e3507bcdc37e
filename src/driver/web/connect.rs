//! How connections come about: directly or through the proxy that the environment names, and
//! encrypted where the endpoint is.

use super::Payload;
use crate::driver::{Error, ErrorKind, Result};
use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{self, Connected, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::RootCertStore;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tower_service::Service;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an unused connection is kept. Servers close theirs after 20 seconds and more.
const IDLE: Duration = Duration::from_secs(15);
/// How many unused connections are kept.
const SPARE: usize = 128;

/// A pool of connections. Cloning it shares the pool.
pub(in crate::driver) type Client = legacy::Client<HttpsConnector<Connector>, Payload>;

/// The proxies that `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` name, as curl
/// understands them. `Debug` shows none, because their URLs have passwords.
#[derive(Clone)]
pub(in crate::driver) struct Proxies(Arc<Matcher>);

impl Proxies {
    /// Those of the environment.
    pub fn from_env() -> Self {
        Proxies(Arc::new(Matcher::from_env()))
    }

    /// What a proxy wants to be told with each request that it passes on in the clear.
    pub fn authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        if uri.scheme_str() != Some("http") {
            return None;
        }
        let mut value = self.0.intercept(uri)?.basic_auth()?.clone();
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxies(***)")
    }
}

/// Makes the pool, which trusts these certificates.
pub(in crate::driver) fn client(roots: RootCertStore, proxies: &Proxies) -> Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(Duration::from_secs(60)));
    tcp.set_connect_timeout(Some(CONNECT));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| Error::new(ErrorKind::Io, "cannot set up TLS").because(cause))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(Connector {
            tcp,
            proxies: proxies.clone(),
        });
    Ok(legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(SPARE)
        .build(connector))
}

/// The system's certificates.
pub(in crate::driver) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for problem in &system.errors {
        log::warn!("some of the system's certificates cannot be read: {problem}");
    }
    roots.add_parsable_certificates(system.certs);
    roots
}

/// Connects to the destination, or to the proxy before it.
#[derive(Clone)]
pub(in crate::driver) struct Connector {
    tcp: HttpConnector,
    proxies: Proxies,
}

/// A proxy that lets nobody through.
#[derive(Debug)]
pub(in crate::driver) struct ProxyFailed(String);

impl fmt::Display for ProxyFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for ProxyFailed {}

impl ProxyFailed {
    /// Names the proxy, without its user and password, and the innermost cause.
    fn new(proxy: &Uri, error: &(dyn StdError + 'static)) -> Self {
        let causes = std::iter::successors(Some(error), |&error| error.source());
        let cause = causes.last().unwrap_or(error);
        let host = proxy.host().unwrap_or_default();
        let port = proxy.port_u16().unwrap_or(80);
        ProxyFailed(format!(
            "the proxy {host}:{port} of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY lets nothing through: {cause}; correct it, or name the endpoint in NO_PROXY"
        ))
    }
}

type BoxError = Box<dyn StdError + Send + Sync>;

impl Connector {
    async fn through(
        mut tcp: HttpConnector,
        proxy: Intercept,
        to: Uri,
    ) -> std::result::Result<Connection, BoxError> {
        let uri = proxy.uri().clone();
        if uri.scheme_str().is_some_and(|scheme| scheme != "http") {
            let scheme = io::Error::other("only proxies of http:// URLs are supported");
            return Err(ProxyFailed::new(&uri, &scheme).into());
        }
        if to.scheme_str() == Some("http") {
            let connected = tcp.call(uri.clone()).await;
            let io = connected.map_err(|error| ProxyFailed::new(&uri, &error))?;
            return Ok(Connection::new(io, true));
        }
        let mut tunnel = Tunnel::new(uri.clone(), tcp);
        if let Some(value) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(value.clone());
        }
        let connected = tunnel.call(to).await;
        let io = connected.map_err(|error| ProxyFailed::new(&uri, &error))?;
        Ok(Connection::new(io, false))
    }
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = BoxError;
    type Future =
        Pin<Box<dyn Future<Output = std::result::Result<Connection, BoxError>> + Send + 'static>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let mut tcp = self.tcp.clone();
        match self.proxies.0.intercept(&to) {
            Some(proxy) => Box::pin(Connector::through(tcp, proxy, to)),
            None => Box::pin(async move { Ok(Connection::new(tcp.call(to).await?, false)) }),
        }
    }
}

/// A TCP connection that acknowledges the beginning of an answer at once: a server that does not
/// set `TCP_NODELAY` holds the rest back until then, for 40 ms at worst.
pub(in crate::driver) struct Connection {
    io: TokioIo<TcpStream>,
    /// Requests go to a proxy, which wants to be told whole URLs.
    proxied: bool,
    /// Something was written since the last read.
    asked: bool,
}

impl Connection {
    fn new(io: TokioIo<TcpStream>, proxied: bool) -> Self {
        Connection {
            io,
            proxied,
            asked: false,
        }
    }
}

impl connect::Connection for Connection {
    fn connected(&self) -> Connected {
        self.io.inner().connected().proxy(self.proxied)
    }
}

impl Read for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if self.asked && read.is_ready() {
            self.asked = false;
            // It only costs time where it cannot be set.
            let _ = self.io.inner().set_quickack(true);
        }
        read
    }
}

impl Write for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.asked = true;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.asked = true;
        Pin::new(&mut self.io).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
