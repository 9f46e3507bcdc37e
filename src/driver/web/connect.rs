//! How connections come about: directly or through the proxy that the environment names, and
//! encrypted where the endpoint is.

use super::Payload;
use crate::driver::{Error, ErrorKind, Result, progress};
use crate::sys;
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::{Body as _, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{self, Connected, HttpConnector, capture_connection};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::RootCertStore;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// How often it is looked at whether the bytes of a request go on.
const LOOK: Duration = Duration::from_millis(250);

/// Makes a request. That its body goes on is told as progress: the other side's acknowledgements
/// count, for what was read of the body waits in the buffers of this side for as long as a slow
/// line takes, and a small body is read at once.
pub(in crate::driver) async fn request(
    client: &Client,
    mut request: Request<Payload>,
) -> std::result::Result<Response<Incoming>, legacy::Error> {
    if request.body().is_end_stream() {
        return client.request(request).await;
    }
    let taken = capture_connection(&mut request);
    let mut answer = pin!(client.request(request));
    let mut last = None;
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            () = tokio::time::sleep(LOOK) => {}
        }
        let mut extras = http::Extensions::new();
        if let Some(connected) = &*taken.connection_metadata() {
            connected.get_extras(&mut extras);
        }
        let arrived = extras.get::<Arc<Line>>().and_then(|line| line.arrived());
        // The first look tells where it began.
        if last.is_some() && arrived > last {
            progress::step();
        }
        last = arrived;
    }
}

/// What is known of the bytes that were written to a connection.
struct Line {
    written: AtomicU64,
    /// The connection's socket. It is closed with the connection, however long others know of it.
    socket: Mutex<Option<OwnedFd>>,
}

impl Line {
    /// How many bytes the other side has acknowledged.
    fn arrived(&self) -> Option<u64> {
        let socket = self.socket.lock();
        let waiting = sys::unacknowledged(socket.as_ref()?).ok()?;
        self.written.load(Ordering::Relaxed).checked_sub(waiting)
    }
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
    line: Arc<Line>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        *self.line.socket.lock() = None;
    }
}

impl Connection {
    fn new(io: TokioIo<TcpStream>, proxied: bool) -> Self {
        // Without it nothing is known of the bytes on their way, and only their being read counts.
        let socket = io.inner().as_fd().try_clone_to_owned().ok();
        Connection {
            io,
            proxied,
            asked: false,
            line: Arc::new(Line {
                written: AtomicU64::new(0),
                socket: Mutex::new(socket),
            }),
        }
    }

    fn wrote(&self, count: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(count)) = count {
            self.line
                .written
                .fetch_add(*count as u64, Ordering::Relaxed);
        }
    }
}

impl connect::Connection for Connection {
    fn connected(&self) -> Connected {
        let connected = self.io.inner().connected().proxy(self.proxied);
        connected.extra(self.line.clone())
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
        let count = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.wrote(&count);
        count
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.asked = true;
        let count = Pin::new(&mut self.io).poll_write_vectored(cx, pieces);
        self.wrote(&count);
        count
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
