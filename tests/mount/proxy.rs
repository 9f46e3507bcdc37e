//! A proxy between a mount and its server that does to requests what networks, and servers in
//! trouble, do. Each request gets a connection of its own to the server.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The server that is tested on.
pub const ENDPOINT: &str = "BUCKETFS_TEST_S3_ENDPOINT";

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// The connection is reset before the request is read.
    Reset,
    /// It is read, and nothing is ever said.
    Stall,
    /// It is answered by this instead of the server.
    Answer(String),
    /// The server does it, and nobody hears of that.
    LoseReply,
    /// The server's answer begins so much later.
    Late(Duration),
    /// The body of the answer ends after so many bytes.
    Truncate(usize),
    /// The server gets another byte in the middle of the body than was sent.
    Garble,
    /// The client gets another byte in the body than the server sent.
    GarbleAnswer,
}

struct Rule {
    left: usize,
    applies: Box<dyn Fn(&str) -> bool + Send>,
    act: Act,
}

#[derive(Default)]
struct Plan {
    rules: Vec<Rule>,
    heads: Vec<String>,
}

/// A running proxy; it ends with the process.
pub struct Proxy {
    port: u16,
    plan: Arc<Mutex<Plan>>,
}

impl Proxy {
    /// Before the server under test.
    pub fn before_server() -> Proxy {
        let endpoint = std::env::var(ENDPOINT).unwrap();
        Proxy::before(endpoint.strip_prefix("http://").unwrap())
    }

    /// Before a server at `host:port`.
    pub fn before(server: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy {
            port: listener.local_addr().unwrap().port(),
            plan: Arc::default(),
        };
        let (plan, server) = (proxy.plan.clone(), server.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (plan, server) = (plan.clone(), server.clone());
                std::thread::spawn(move || {
                    // Either end may go away at any time.
                    let _ = serve(client, &plan, &server);
                });
            }
        });
        proxy
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Does this to the next `times` requests whose head begins like `PUT /bucket/key`.
    pub fn next(&self, times: usize, begin: impl Into<String>, act: Act) {
        let begin = begin.into();
        self.when(times, move |head| head.starts_with(&begin), act);
    }

    /// Does this to the next `times` requests of which this holds.
    pub fn when(&self, times: usize, applies: impl Fn(&str) -> bool + Send + 'static, act: Act) {
        self.plan.lock().unwrap().rules.push(Rule {
            left: times,
            applies: Box::new(applies),
            act,
        });
    }

    /// Passes everything on again.
    pub fn heal(&self) {
        self.plan.lock().unwrap().rules.clear();
    }

    /// How many requests came of whose head this holds.
    pub fn count(&self, holds: impl Fn(&str) -> bool) -> usize {
        let plan = self.plan.lock().unwrap();
        plan.heads.iter().filter(|head| holds(head)).count()
    }

    /// Whether every rule has been used up.
    pub fn is_spent(&self) -> bool {
        let plan = self.plan.lock().unwrap();
        plan.rules.iter().all(|rule| rule.left == 0)
    }
}

/// An answer of a server.
pub fn answer(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

/// A refusal of a server.
pub fn refusal(status: &str, headers: &str, code: &str) -> Act {
    let body = format!("<Error><Code>{code}</Code><Message>as the test says</Message></Error>");
    Act::Answer(answer(status, headers, &body))
}

/// Reads up to the end of a head. Gives it, and what came of the body.
fn head(stream: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut read = Vec::new();
    let mut piece = [0; 16 << 10];
    loop {
        if let Some(at) = read.windows(4).position(|end| end == b"\r\n\r\n") {
            let body = read.split_off(at + 4);
            return Ok((String::from_utf8_lossy(&read).into_owned(), body));
        }
        match stream.read(&mut piece)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => read.extend_from_slice(&piece[..count]),
        }
    }
}

fn length(head: &str) -> usize {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths
        .next()
        .map_or(0, |(_, value)| value.trim().parse().unwrap_or(0))
}

fn serve(mut client: TcpStream, plan: &Mutex<Plan>, server: &str) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut beginning = [0; 4096];
    let seen = client.peek(&mut beginning)?;
    let beginning = String::from_utf8_lossy(&beginning[..seen]).into_owned();
    if seen == 0 {
        return Ok(());
    }
    let act = {
        let mut plan = plan.lock().unwrap();
        plan.heads.push(beginning.clone());
        let mut rules = plan.rules.iter_mut();
        let rule = rules.find(|rule| rule.left > 0 && (rule.applies)(&beginning));
        rule.map(|rule| {
            rule.left -= 1;
            rule.act.clone()
        })
    };
    if matches!(act, Some(Act::Reset)) {
        // What was not read makes it a reset.
        return Ok(());
    }
    let (head, mut body) = head(&mut client)?;
    let total = length(&head);
    while body.len() < total {
        let mut piece = vec![0; (total - body.len()).min(64 << 10)];
        match client.read(&mut piece)? {
            0 => return Ok(()),
            count => body.extend_from_slice(&piece[..count]),
        }
    }
    match &act {
        Some(Act::Stall) => {
            // Until the client gives up.
            let _ = client.read(&mut [0]);
            return Ok(());
        }
        Some(Act::Answer(answer)) => {
            client.write_all(answer.as_bytes())?;
            return client.shutdown(Shutdown::Write);
        }
        Some(Act::Garble) if total > 0 => body[total / 2] ^= 1,
        _ => {}
    }
    let mut upstream = TcpStream::connect(server)?;
    upstream.set_nodelay(true)?;
    let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    upstream.write_all(head.as_bytes())?;
    upstream.write_all(&body)?;
    let (head, mut body) = self::head(&mut upstream)?;
    match act {
        Some(Act::LoseReply) => return Ok(()),
        Some(Act::Late(time)) => std::thread::sleep(time),
        _ => {}
    }
    client.write_all(head.as_bytes())?;
    let mut left = match act {
        Some(Act::Truncate(bytes)) => bytes,
        _ => usize::MAX,
    };
    while left > 0 {
        if body.is_empty() {
            body.resize(64 << 10, 0);
            let count = upstream.read(&mut body)?;
            body.truncate(count);
            if count == 0 {
                break;
            }
        }
        let count = body.len().min(left);
        if matches!(act, Some(Act::GarbleAnswer)) {
            body[count / 2] ^= 1;
        }
        client.write_all(&body[..count])?;
        body.clear();
        left -= count;
    }
    Ok(())
}
