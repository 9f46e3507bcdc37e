//! A double of Riak KV, written from its published HTTP API: objects with vector clocks, siblings and
//! what deletes leave, conditions that are tested before the write, listings by chunks and by the index
//! of keys. Whatever else is asked is refused loudly. It proves what the driver makes of the protocol,
//! and nothing about the real server.

#![allow(
    dead_code,
    reason = "not each test that uses this file needs all of it"
)]

#[path = "riak/answers.rs"]
mod answers;
#[path = "riak/objects.rs"]
mod objects;

use bytes::Bytes;
use http::{HeaderMap, Request};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::AbortHandle;

pub use objects::{Content, Object};

/// What happens to the connection of the next write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It breaks, and nothing is written.
    Before,
    /// It is written, and nobody hears of that.
    After,
}

/// How the server is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Whether the backend has secondary indexes, as leveldb has and Bitcask has not.
    pub indexes: bool,
    /// Whether what deletes leave goes at once.
    pub reaps: bool,
    /// Whether it knows `X-Riak-If-Not-Modified`, as 3.0.13 does.
    pub knows_clocks: bool,
    /// Whom it takes, as `user:password`; others are refused, or told that they need TLS.
    pub login: Option<&'static str>,
    pub wants_tls: bool,
    /// Who may only read.
    pub reader: Option<&'static str>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            indexes: true,
            reaps: false,
            knows_clocks: true,
            login: None,
            wants_tls: false,
            reader: None,
        }
    }
}

/// A bucket type.
pub struct Type {
    pub properties: Value,
    pub buckets: BTreeMap<String, BTreeMap<Vec<u8>, Object>>,
}

#[derive(Default)]
pub struct State {
    pub types: BTreeMap<String, Type>,
    /// The last event that was.
    pub clock: u64,
    pub cut: Option<Cut>,
    /// How many requests are still to be told that the server cannot answer.
    pub busy: usize,
    /// After how many bytes the next answer with a value breaks off.
    pub breaks: Option<usize>,
}

/// A server on a port of its own. It ends with the process.
pub struct Server {
    pub port: u16,
    shared: Arc<Shared>,
}

pub struct Shared {
    pub setup: Setup,
    pub state: Mutex<State>,
    open: Mutex<Vec<AbortHandle>>,
    /// How long a write waits between its condition and itself, in milliseconds.
    pub window: AtomicUsize,
    /// Requests since somebody asked last.
    asked: AtomicUsize,
}

impl Server {
    /// One with the type `default`, which keeps no siblings, and `files`, which does.
    pub fn start(setup: Setup) -> Server {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            setup,
            state: Mutex::default(),
            open: Mutex::default(),
            window: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
        });
        let server = Server { port, shared };
        server.make("default", json!({"allow_mult": false}));
        server.make("files", json!({"allow_mult": true}));
        let served = server.shared.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(serve(listener, served));
        });
        server
    }

    pub fn url(&self, rest: &str) -> String {
        format!("riak://127.0.0.1:{}{rest}", self.port)
    }

    /// Makes a bucket type.
    pub fn make(&self, name: &str, properties: Value) {
        let made = Type {
            properties,
            buckets: BTreeMap::new(),
        };
        let mut state = self.shared.state.lock().unwrap();
        state.types.insert(name.to_owned(), made);
    }

    /// Another program's write, which knows nothing of what is there or all of it.
    pub fn put(
        &self,
        at: [&str; 3],
        headers: &[(&'static str, &'static str)],
        body: &str,
        knows: bool,
    ) {
        let mut told = HeaderMap::new();
        told.insert("content-type", "text/plain".parse().unwrap());
        for (name, value) in headers {
            told.insert(*name, value.parse().unwrap());
        }
        let content = Content::new(&told, Bytes::copy_from_slice(body.as_bytes())).unwrap();
        let mut state = self.shared.state.lock().unwrap();
        let context = match knows {
            true => state.object(at).map_or(0, |object| object.clock),
            false => 0,
        };
        state.write(at, context, Some(content)).unwrap();
    }

    /// The values that another program reads.
    pub fn find(&self, at: [&str; 3]) -> Vec<Content> {
        let mut state = self.shared.state.lock().unwrap();
        let values = state.object(at).map(|object| object.values.clone());
        let values = values.unwrap_or_default().into_iter();
        values.filter_map(|value| value.content).collect()
    }

    /// The bytes of each value, in any order.
    pub fn texts(&self, at: [&str; 3]) -> Vec<String> {
        let values = self.find(at).into_iter();
        let texts = values.map(|value| String::from_utf8(value.body.to_vec()).unwrap());
        let mut texts: Vec<_> = texts.collect();
        texts.sort();
        texts
    }

    /// What the next write comes to.
    pub fn cut_write(&self, how: Cut) {
        self.shared.state.lock().unwrap().cut = Some(how);
    }

    /// Breaks all connections.
    pub fn cut(&self) {
        for connection in self.shared.open.lock().unwrap().drain(..) {
            connection.abort();
        }
    }

    /// Breaks the next answer with a value off.
    pub fn cut_answer(&self, after: usize) {
        self.shared.state.lock().unwrap().breaks = Some(after);
    }

    /// Lets some requests be told that the server cannot answer.
    pub fn be_busy(&self, times: usize) {
        self.shared.state.lock().unwrap().busy = times;
    }

    /// Lets writes wait between their condition and themselves.
    pub fn widen(&self, window: Duration) {
        let window = window.as_millis() as usize;
        self.shared.window.store(window, Ordering::Relaxed);
    }

    /// How many requests came since somebody asked last.
    pub fn asked(&self) -> usize {
        self.shared.asked.swap(0, Ordering::Relaxed)
    }
}

async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        stream.set_nodelay(true).unwrap();
        let own = shared.clone();
        let connection = tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let shared = own.clone();
                async move {
                    shared.asked.fetch_add(1, Ordering::Relaxed);
                    let answer = answers::answer(request, &shared).await;
                    answer.ok_or_else(|| io::Error::other("cut"))
                }
            });
            // A client may go away in the middle of a request.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        let mut open = shared.open.lock().unwrap();
        open.retain(|connection| !connection.is_finished());
        open.push(connection.abort_handle());
    }
}
