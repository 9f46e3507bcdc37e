//! A double of RethinkDB, written from its published protocol: the handshake, frames, cursors, feeds
//! and the terms that the driver sends. Whatever else is asked is refused loudly. It proves what the
//! driver makes of the protocol, and nothing about the real server.

#![allow(
    dead_code,
    reason = "not each test that uses this file needs all of it"
)]

#[path = "rethinkdb/handshake.rs"]
mod handshake;
#[path = "rethinkdb/terms.rs"]
mod terms;
#[path = "rethinkdb/values.rs"]
mod values;

use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

/// How many rows an answer has at most.
const BATCH: usize = 10;

/// What happens to the connection of the next write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It breaks, and nothing is written.
    Before,
    /// It is written, and nobody hears of that.
    After,
}

/// What a user may do.
#[derive(Clone, Debug)]
pub struct User {
    pub password: &'static str,
    pub may_write: bool,
}

/// A table.
#[derive(Default)]
struct Table {
    key: String,
    rows: BTreeMap<Vec<u8>, Value>,
    feeds: Vec<mpsc::Sender<Value>>,
}

#[derive(Default)]
struct State {
    databases: BTreeMap<String, BTreeMap<String, Table>>,
    cut: Option<Cut>,
}

/// A server on a port of its own. It ends with the process.
pub struct Server {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    users: BTreeMap<&'static str, User>,
    open: Mutex<Vec<TcpStream>>,
    /// Held from the begin of a query until it is done: queries are served in the order in which
    /// they come, however large they are.
    turn: Mutex<()>,
    /// Rows that were sent to clients.
    sent: AtomicUsize,
    /// How many connections there have been, and how many of them, the first ones, get no answers.
    met: AtomicUsize,
    mute: AtomicUsize,
}

impl Server {
    /// One that takes anybody who is `admin`.
    pub fn start() -> Server {
        Server::at(0)
    }

    /// One on a given port.
    pub fn at(port: u16) -> Server {
        let user = |password, may_write| User {
            password,
            may_write,
        };
        let users = [
            ("admin", user("", true)),
            ("writer", user("geheim", true)),
            ("reader", user("lesen", false)),
        ];
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            users: users.into(),
            open: Mutex::default(),
            turn: Mutex::default(),
            sent: AtomicUsize::new(0),
            met: AtomicUsize::new(0),
            mute: AtomicUsize::new(0),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, shared) = (stream.unwrap(), serving.clone());
                shared
                    .open
                    .lock()
                    .unwrap()
                    .push(stream.try_clone().unwrap());
                let number = shared.met.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || {
                    // A client may go away at any time.
                    let _ = serve(stream, &shared, number);
                });
            }
        });
        Server { port, shared }
    }

    pub fn url(&self, rest: &str) -> String {
        format!("rethinkdb://127.0.0.1:{}{rest}", self.port)
    }

    /// Makes a table, and its database where there is none.
    pub fn make(&self, database: &str, table: &str, key: &str) {
        let mut state = self.shared.state.lock().unwrap();
        let tables = state.databases.entry(database.to_owned()).or_default();
        tables.insert(
            table.to_owned(),
            Table {
                key: key.to_owned(),
                ..Table::default()
            },
        );
    }

    /// Drops a table.
    pub fn drop_table(&self, database: &str, table: &str) {
        let mut state = self.shared.state.lock().unwrap();
        state.databases.get_mut(database).unwrap().remove(table);
    }

    /// Another program's write.
    pub fn put(&self, database: &str, table: &str, document: Value) {
        let mut state = self.shared.state.lock().unwrap();
        let table = terms::table(&mut state, database, table).unwrap();
        let document = values::normal(document);
        let id = values::encoded(&document[&table.key]);
        table.set(id, Some(document));
    }

    /// Another program's read.
    pub fn find(&self, database: &str, table: &str, id: Value) -> Option<Value> {
        let mut state = self.shared.state.lock().unwrap();
        let table = terms::table(&mut state, database, table).unwrap();
        table.rows.get(&values::encoded(&id)).cloned()
    }

    /// Another program's change of one document, in one step.
    pub fn edit(
        &self,
        database: &str,
        table: &str,
        id: &Value,
        change: impl FnOnce(Option<Value>) -> Option<Value>,
    ) {
        let mut state = self.shared.state.lock().unwrap();
        let table = terms::table(&mut state, database, table).unwrap();
        let id = values::encoded(id);
        let new = change(table.rows.get(&id).cloned());
        table.set(id, new.map(values::normal));
    }

    /// The keys of a table, in their order; none where there is no table.
    pub fn keys(&self, database: &str, table: &str) -> Option<Vec<Value>> {
        let state = self.shared.state.lock().unwrap();
        let table = state.databases.get(database)?.get(table)?;
        let rows = table.rows.values();
        Some(rows.map(|row| row[&table.key].clone()).collect())
    }

    /// What the next write comes to.
    pub fn cut_write(&self, how: Cut) {
        self.shared.state.lock().unwrap().cut = Some(how);
    }

    /// Breaks all connections.
    pub fn cut(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Answers nothing any more on the connections that there are, and keeps them open.
    pub fn mute(&self) {
        let met = self.shared.met.load(Ordering::Relaxed);
        self.shared.mute.store(met, Ordering::Relaxed);
    }

    /// How many rows went to clients since somebody asked last.
    pub fn rows_sent(&self) -> usize {
        self.shared.sent.swap(0, Ordering::Relaxed)
    }
}

impl Table {
    /// Sets or removes a row, and tells the feeds. Gives what was there.
    fn set(&mut self, id: Vec<u8>, new: Option<Value>) -> Option<Value> {
        let old = match &new {
            Some(new) => self.rows.insert(id, new.clone()),
            None => self.rows.remove(&id),
        };
        if !self.feeds.is_empty() && old != new {
            let told = json!({"new_val": new, "old_val": old});
            self.feeds.retain(|feed| feed.send(told.clone()).is_ok());
        }
        old
    }
}

/// What a query has begun.
enum Going {
    Rows(VecDeque<Value>),
    Feed(Arc<Mutex<Feed>>),
}

struct Feed {
    changes: mpsc::Receiver<Value>,
    pluck: Option<Value>,
}

type Writer = Arc<Mutex<TcpStream>>;

fn answer(to: &Writer, token: u64, kind: u8, rows: &[Value], code: Option<i64>) -> io::Result<()> {
    let mut told = json!({"t": kind, "r": rows, "n": []});
    // As the server has it: the type first.
    if let Some(code) = code {
        told["e"] = code.into();
        told["b"] = json!([]);
    }
    let rest = told.as_object_mut().unwrap();
    rest.remove("t");
    let rest = Value::Object(rest.clone()).to_string();
    let text = format!("{{\"t\":{kind},{}", &rest[1..]);
    let mut frame = token.to_le_bytes().to_vec();
    frame.extend((text.len() as u32).to_le_bytes());
    frame.extend(text.as_bytes());
    to.lock().unwrap().write_all(&frame)
}

fn serve(mut stream: TcpStream, shared: &Arc<Shared>, number: usize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Some(user) = handshake::greet(&mut stream, &shared.users)? else {
        return Ok(());
    };
    let writer = Arc::new(Mutex::new(stream.try_clone()?));
    let mut going: HashMap<u64, Going> = HashMap::new();
    loop {
        let (mut token, mut len) = ([0; 8], [0; 4]);
        stream.read_exact(&mut token)?;
        stream.read_exact(&mut len)?;
        let turn = shared.turn.lock().unwrap();
        let mut query = vec![0; u32::from_le_bytes(len) as usize];
        stream.read_exact(&mut query)?;
        if number < shared.mute.load(Ordering::Relaxed) {
            continue;
        }
        let token = u64::from_le_bytes(token);
        let query: Value = match serde_json::from_slice(&query) {
            Ok(query) => query,
            Err(cause) => {
                let said = json!(format!("this is no JSON: {cause}"));
                answer(&writer, token, 16, &[said], None)?;
                continue;
            }
        };
        match query[0].as_u64() {
            Some(1) => {
                let outcome = terms::evaluate(&query[1], user.may_write, &shared.state);
                drop(turn);
                match outcome {
                    Err(terms::Failure::Cut) => return stream.shutdown(Shutdown::Both),
                    Err(terms::Failure::Said { kind, code, said }) => {
                        answer(&writer, token, kind, &[said.into()], Some(code))?;
                    }
                    Ok(terms::Outcome::One(value)) => {
                        shared.sent.fetch_add(1, Ordering::Relaxed);
                        answer(&writer, token, 1, &[value], None)?;
                    }
                    Ok(terms::Outcome::Rows(rows)) => {
                        going.insert(token, Going::Rows(rows.into()));
                        more(&mut going, token, &writer, shared)?;
                    }
                    Ok(terms::Outcome::Feed(changes, pluck)) => {
                        let feed = Arc::new(Mutex::new(Feed { changes, pluck }));
                        going.insert(token, Going::Feed(feed));
                        answer(&writer, token, 3, &[], None)?;
                    }
                }
            }
            Some(2) => more(&mut going, token, &writer, shared)?,
            Some(3) => {
                going.remove(&token);
                answer(&writer, token, 2, &[], None)?;
            }
            Some(5) => {
                let who = json!({"id": "double", "name": "double", "proxy": false});
                answer(&writer, token, 5, &[who], None)?;
            }
            _ => {
                let said = json!(format!("the double knows no query {query}"));
                answer(&writer, token, 16, &[said], None)?;
            }
        }
    }
}

fn more(
    going: &mut HashMap<u64, Going>,
    token: u64,
    writer: &Writer,
    shared: &Shared,
) -> io::Result<()> {
    match going.get_mut(&token) {
        None => {
            let said = json!(format!("Token {token} not in stream cache."));
            answer(writer, token, 16, &[said], None)
        }
        Some(Going::Rows(rows)) => {
            let batch: Vec<_> = rows.drain(..rows.len().min(BATCH)).collect();
            let is_last = rows.is_empty();
            shared.sent.fetch_add(batch.len(), Ordering::Relaxed);
            if is_last {
                going.remove(&token);
            }
            answer(writer, token, if is_last { 2 } else { 3 }, &batch, None)
        }
        Some(Going::Feed(feed)) => {
            let (feed, writer) = (feed.clone(), writer.clone());
            std::thread::spawn(move || {
                let feed = feed.lock().unwrap();
                let Ok(first) = feed.changes.recv() else {
                    let said = "The table was dropped.".into();
                    let _ = answer(&writer, token, 18, &[said], Some(4_100_000));
                    return;
                };
                let mut told = vec![first];
                told.extend(feed.changes.try_iter());
                let told: Vec<_> = told
                    .into_iter()
                    .map(|change| match &feed.pluck {
                        Some(fields) => values::pluck(&change, fields),
                        None => change,
                    })
                    .collect();
                let _ = answer(&writer, token, 3, &told, None);
            });
            Ok(())
        }
    }
}
