//! The wire protocol, version 1.0: a SCRAM-SHA-256 handshake in JSON, then frames of a token, a
//! length and JSON. Any number of queries go over one connection at a time.

use crate::driver::silence::{SILENCE, Waiting as Waits};
use crate::task;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use parking_lot::Mutex;
use pbkdf2::hmac::{Hmac, KeyInit, Mac};
use pbkdf2::sha2::{Digest, Sha256};
use serde::Deserialize;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

const MAGIC: u32 = 0x34c2_bdc3;
/// The longest answer within the handshake, and behind it.
const GREETING: usize = 16 << 10;
const FRAME: u32 = 256 << 20;
/// How many queries may wait to be sent.
const QUEUE: usize = 64;
/// As often as a server may want a password to be hashed.
const ROUNDS: u32 = 1_000_000;
const CONTINUE: &str = "[2]";
const STOP: &str = "[3]";
/// How an answer begins whose query has more.
const PARTIAL: &[u8] = b"{\"t\":3,";

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Refusal {
    Io(io::Error),
    /// What answers speaks something else.
    Foreign(String),
    /// It takes neither the user nor the password.
    Unwelcome(String),
}

impl From<io::Error> for Refusal {
    fn from(cause: io::Error) -> Self {
        Refusal::Io(cause)
    }
}

/// A token, and what is sent under it.
type Frame = (u64, Vec<u8>);
type Waiting = HashMap<u64, oneshot::Sender<Vec<u8>>>;

/// A connection. It ends when it is dropped.
pub(super) struct Wire {
    frames: mpsc::Sender<Frame>,
    /// Those who wait for answers, by token; `None` when the connection broke. A leaf lock, held
    /// for moments only.
    waiting: Arc<Mutex<Option<Waiting>>>,
    token: AtomicU64,
    /// Somebody has waited long and in vain. Who waits already may yet get an answer.
    suspected: AtomicBool,
    tasks: [AbortHandle; 2],
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

fn frame(token: u64, query: &str) -> Frame {
    let mut frame = Vec::with_capacity(12 + query.len());
    frame.extend_from_slice(&token.to_le_bytes());
    frame.extend_from_slice(&(query.len() as u32).to_le_bytes());
    frame.extend_from_slice(query.as_bytes());
    (token, frame)
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection broke")
}

impl Wire {
    /// Connects as a user.
    pub(super) async fn dial(at: (&str, u16), user: &str, password: &str) -> Result<Wire, Refusal> {
        let mut stream = TcpStream::connect(at).await?;
        stream.set_nodelay(true)?;
        let silence = SILENCE.as_millis() as u32;
        rustix::net::sockopt::set_tcp_user_timeout(&stream, silence).map_err(io::Error::from)?;
        greet(&mut stream, user, password).await?;
        let (reading, writing) = stream.into_split();
        let (frames, queue) = mpsc::channel(QUEUE);
        let waiting = Arc::new(Mutex::new(Some(Waiting::new())));
        let read = task::spawn(read(reading, waiting.clone(), frames.downgrade()));
        let write = task::spawn(write(writing, queue, waiting.clone()));
        Ok(Wire {
            frames,
            waiting,
            token: AtomicU64::new(1),
            suspected: AtomicBool::new(false),
            tasks: [read.abort_handle(), write.abort_handle()],
        })
    }

    /// Whether it can still be used.
    pub(super) fn is_open(&self) -> bool {
        !self.suspected.load(Ordering::Relaxed) && self.waiting.lock().is_some()
    }

    pub(super) fn token(&self) -> u64 {
        self.token.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a query and gives its answer. Where nobody waits for that any more, the server is told
    /// to forget the query.
    pub(super) async fn ask(&self, token: u64, query: &str) -> io::Result<Vec<u8>> {
        let waits = Waits::begin(|| self.suspected.store(true, Ordering::Relaxed));
        let place = self.frames.reserve().await.map_err(|_| broken())?;
        let (answer, told) = oneshot::channel();
        match &mut *self.waiting.lock() {
            Some(waiting) => waiting.insert(token, answer),
            None => return Err(broken()),
        };
        place.send(frame(token, query));
        let told = told.await;
        waits.end();
        told.map_err(|_| broken())
    }

    /// More of what a query gives.
    pub(super) async fn more(&self, token: u64) -> io::Result<Vec<u8>> {
        self.ask(token, CONTINUE).await
    }

    /// Tells the server that no more is wanted.
    pub(super) fn stop(&self, token: u64) {
        // A queue that is full is one of a server that does not read; it forgets all with the
        // connection.
        let _ = self.frames.try_send(frame(token, STOP));
    }
}

async fn write(
    mut to: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Frame>,
    waiting: Arc<Mutex<Option<Waiting>>>,
) {
    while let Some((token, frame)) = queue.recv().await {
        // Nobody wants it any more: then it is not to be done later.
        let dropped = |all: &mut Waiting| {
            let is_closed = all.get(&token).is_some_and(oneshot::Sender::is_closed);
            is_closed.then(|| all.remove(&token))
        };
        if waiting.lock().as_mut().and_then(dropped).is_some() {
            continue;
        }
        if to.write_all(&frame).await.is_err() {
            break;
        }
    }
    waiting.lock().take();
}

async fn read(
    mut from: OwnedReadHalf,
    waiting: Arc<Mutex<Option<Waiting>>>,
    frames: mpsc::WeakSender<Frame>,
) {
    while let Ok((token, answer)) = next(&mut from).await {
        let wanted = waiting.lock().as_mut().and_then(|all| all.remove(&token));
        // The answer to a stop is nobody's.
        let Some(wanted) = wanted else { continue };
        let unwanted = wanted.send(answer).err();
        if unwanted.is_some_and(|answer| answer.starts_with(PARTIAL))
            && let Some(frames) = frames.upgrade()
        {
            let _ = frames.try_send(frame(token, STOP));
        }
    }
    waiting.lock().take();
}

async fn next(from: &mut OwnedReadHalf) -> io::Result<(u64, Vec<u8>)> {
    let token = from.read_u64_le().await?;
    let len = from.read_u32_le().await?;
    if len > FRAME {
        return Err(broken());
    }
    let mut answer = vec![0; len as usize];
    from.read_exact(&mut answer).await?;
    Ok((token, answer))
}

/// What the server says within the handshake.
#[derive(Deserialize)]
struct Greeting {
    success: bool,
    #[serde(default)]
    authentication: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    error_code: i64,
}

async fn hear(stream: &mut TcpStream) -> Result<Greeting, Refusal> {
    let mut said = Vec::new();
    loop {
        match stream.read_u8().await {
            Ok(0) => break,
            Ok(byte) if said.len() < GREETING => said.push(byte),
            Ok(_) => return Err(Refusal::Foreign(shown(&said))),
            Err(cause) => {
                use io::ErrorKind::{ConnectionReset, UnexpectedEof};
                return Err(match cause.kind() {
                    ConnectionReset | UnexpectedEof => Refusal::Foreign(shown(&said)),
                    _ => cause.into(),
                });
            }
        }
    }
    let told: Greeting =
        serde_json::from_slice(&said).map_err(|_| Refusal::Foreign(shown(&said)))?;
    match told.success {
        true => Ok(told),
        // From 10 to 20 it is about who asks.
        false if (10..=20).contains(&told.error_code) => Err(Refusal::Unwelcome(told.error)),
        false => Err(Refusal::Foreign(told.error)),
    }
}

fn shown(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(&said[..said.len().min(100)]);
    match text.trim() {
        "" => "it closes the connection".to_owned(),
        text => format!("it says {:?}", text.lines().next().unwrap_or_default()),
    }
}

async fn say(stream: &mut TcpStream, said: serde_json::Value) -> io::Result<()> {
    stream.write_all(format!("{said}\0").as_bytes()).await
}

fn keyed(key: &[u8], data: &[u8]) -> [u8; 32] {
    // A key of any length will do.
    let mac = Hmac::<Sha256>::new_from_slice(key);
    mac.map_or([0; 32], |mac| {
        mac.chain_update(data).finalize().into_bytes().into()
    })
}

/// What a message of SCRAM says under a letter.
fn part<'a>(message: &'a str, letter: &str) -> Result<&'a str, Refusal> {
    let mut parts = message.split(',');
    let found = parts.find_map(|part| part.strip_prefix(letter)?.strip_prefix('='));
    found.ok_or_else(|| Refusal::Foreign("its handshake makes no sense".to_owned()))
}

/// RFC 5802 and RFC 7677, without channel binding.
async fn greet(stream: &mut TcpStream, user: &str, password: &str) -> Result<(), Refusal> {
    let senseless = || Refusal::Foreign("its handshake makes no sense".to_owned());
    stream.write_all(&MAGIC.to_le_bytes()).await?;
    hear(stream).await?;
    let mut random = [0; 18];
    let mut source = tokio::fs::File::open("/dev/urandom").await?;
    source.read_exact(&mut random).await?;
    let nonce = BASE64.encode(random);
    let name = user.replace('=', "=3D").replace(',', "=2C");
    let first = format!("n={name},r={nonce}");
    let hello = serde_json::json!({
        "protocol_version": 0,
        "authentication_method": "SCRAM-SHA-256",
        "authentication": format!("n,,{first}"),
    });
    say(stream, hello).await?;
    let challenge = hear(stream).await?.authentication;
    let (theirs, salt) = (part(&challenge, "r")?, part(&challenge, "s")?);
    let salt = BASE64.decode(salt).map_err(|_| senseless())?;
    let rounds: u32 = part(&challenge, "i")?.parse().map_err(|_| senseless())?;
    if !theirs.starts_with(&nonce) || rounds == 0 || rounds > ROUNDS {
        return Err(senseless());
    }
    let password = password.to_owned();
    let hashed = task::blocking(move || {
        pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), &salt, rounds)
    });
    let salted = hashed.await.map_err(io::Error::other)?;
    let unproved = format!("c=biws,r={theirs}");
    let message = format!("{first},{challenge},{unproved}");
    let client = keyed(&salted, b"Client Key");
    let signature = keyed(&Sha256::digest(client), message.as_bytes());
    let proof: Vec<u8> = client.iter().zip(signature).map(|(a, b)| a ^ b).collect();
    let answer = format!("{unproved},p={}", BASE64.encode(proof));
    say(stream, serde_json::json!({ "authentication": answer })).await?;
    let last = hear(stream).await?.authentication;
    let server = keyed(&keyed(&salted, b"Server Key"), message.as_bytes());
    // Who does not know the password's hash is no server of ours.
    match part(&last, "v")? == BASE64.encode(server) {
        true => Ok(()),
        false => Err(senseless()),
    }
}
