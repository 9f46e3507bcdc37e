//! Connections that break in the middle of each operation: what was done is there once, what was not is told, and the mount goes
//! on with a new connection.

use crate::harness::{Mount, Place, eventually, trial};
use crate::mongodb::{ADDRESS, Database};
use crate::redis::{ALLOWED, SERVER, Server, read};
use crate::rethinkdb::Cut;
use ::mongodb::bson::{Document, doc};
use libtest_mimic::Trial;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub fn trials() -> Vec<Trial> {
    let mongodb = crate::harness::Need::Variable(ADDRESS);
    vec![
        trial(
            &[ALLOWED, SERVER],
            "cuts::each_operation_on_keys_of_redis",
            each_operation_on_keys_of_redis,
        ),
        trial(
            &[ALLOWED, SERVER],
            "cuts::a_kind_outlives_a_put_that_did_not_arrive",
            a_kind_outlives_a_put_that_did_not_arrive,
        ),
        trial(
            &[mongodb],
            "cuts::each_operation_on_documents_of_mongodb",
            each_operation_on_documents_of_mongodb,
        ),
        trial(
            &[mongodb],
            "cuts::each_operation_on_files_of_gridfs",
            each_operation_on_files_of_gridfs,
        ),
    ]
}

/// Passes bytes on to a server, until its connections are cut.
pub struct Passage {
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    open: Mutex<Vec<TcpStream>>,
    /// What happens to the next request that holds these bytes.
    armed: Mutex<Option<(Fate, Vec<u8>)>>,
}

enum Fate {
    Cut(Cut),
    /// It is passed on when this is done.
    Behind(Box<dyn FnOnce() + Send>),
}

impl Passage {
    /// A passage to HOST:PORT.
    pub fn new(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared: Arc<Shared> = Arc::default();
        let (serving, to) = (shared.clone(), to.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                // A server that is away takes nobody.
                let Ok(server) = TcpStream::connect(&to) else {
                    continue;
                };
                let (mut from, mut back) =
                    (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut back);
                    let _ = back.shutdown(Shutdown::Both);
                });
                serving
                    .open
                    .lock()
                    .unwrap()
                    .push(client.try_clone().unwrap());
                let shared = serving.clone();
                std::thread::spawn(move || {
                    let _ = shared.requests(&client, &server);
                    let _ = client.shutdown(Shutdown::Both);
                    let _ = server.shutdown(Shutdown::Both);
                });
            }
        });
        Passage { port, shared }
    }

    /// Breaks all connections.
    pub fn cut(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Does something while the first request with these bytes loses its connection.
    pub fn during<T>(&self, cut: Cut, request: &str, does: impl FnOnce() -> T) -> T {
        self.armed(Fate::Cut(cut), request, does)
    }

    /// Does something of which the first request with these bytes comes only after something else.
    pub fn behind<T>(
        &self,
        first: impl FnOnce() + Send + 'static,
        request: &str,
        does: impl FnOnce() -> T,
    ) -> T {
        self.armed(Fate::Behind(Box::new(first)), request, does)
    }

    fn armed<T>(&self, fate: Fate, request: &str, does: impl FnOnce() -> T) -> T {
        *self.shared.armed.lock().unwrap() = Some((fate, request.as_bytes().to_vec()));
        let done = does();
        let left = self.shared.armed.lock().unwrap().take();
        assert!(left.is_none(), "there was no request with {request:?}");
        done
    }
}

impl Shared {
    fn requests(&self, mut client: &TcpStream, mut server: &TcpStream) -> io::Result<()> {
        let mut bytes = vec![0; 1 << 16];
        loop {
            let count = client.read(&mut bytes)?;
            if count == 0 {
                return Ok(());
            }
            let hit = self.armed.lock().unwrap().take_if(|(_, request)| {
                bytes[..count]
                    .windows(request.len())
                    .any(|window| window == request.as_slice())
            });
            let mut is_lost = false;
            match hit.map(|(fate, _)| fate) {
                None => {}
                Some(Fate::Cut(Cut::Before)) => return Ok(()),
                Some(Fate::Cut(Cut::After)) => is_lost = true,
                Some(Fate::Behind(first)) => first(),
            }
            server.write_all(&bytes[..count])?;
            if is_lost {
                // It is done, and its answer goes nowhere.
                client.shutdown(Shutdown::Both)?;
                std::thread::sleep(Duration::from_millis(100));
                return Ok(());
            }
        }
    }
}

/// Writes a file and waits for its commit; what is told.
fn save(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// That what is told is success, or, where the answer was lost, one of these.
fn told(result: io::Result<()>, cut: Cut, otherwise: &[i32], what: &str) {
    if let Err(error) = result {
        let code = error.raw_os_error().unwrap();
        assert!(
            cut == Cut::After && otherwise.contains(&code),
            "{what}, {cut:?}: {error}"
        );
    }
}

/// That nothing waits, and nothing but lost answers left texts behind.
fn settles(mount: &Mount, texts: &[&str]) {
    eventually("everything is sent", || mount.number("dirty_files") == 0);
    let status = mount.status();
    for conflict in status["fs"]["conflicts"].as_array().unwrap() {
        let kept = Path::new(conflict["kept_as"].as_str().unwrap());
        let kept = match kept.is_absolute() && kept.exists() {
            true => kept.to_owned(),
            false => mount.path(kept.to_str().unwrap().trim_start_matches('/')),
        };
        let text = fs::read_to_string(&kept).unwrap();
        assert!(texts.contains(&text.as_str()), "{kept:?} holds {text:?}");
    }
}

const CUTS: [Cut; 2] = [Cut::Before, Cut::After];

fn each_operation_on_keys_of_redis(place: &Place) {
    let server = Server::start(place, &[]);
    let passage = Passage::new(&format!("127.0.0.1:{}", server.port));
    let url = format!("redis://127.0.0.1:{}/0?separator=:", passage.port);
    // Without a feed, each look asks.
    let asks = ["--metadata-ttl", "0s", "--fault", "watch:error=unavailable"];
    let mount = place.mount("m", &url, &asks, true);
    let script = "EVALSHA";
    for cut in CUTS {
        server.ask(&["flushall"]);
        server.ask(&["set", "text", "old"]);
        server.ask(&["hset", "d:doc", "a", "1", "b", "2"]);
        eventually("the keys are seen", || {
            mount.path("text").exists() && mount.path("d/doc.json").exists()
        });
        // What was asked a moment ago is not asked again.
        std::thread::sleep(Duration::from_millis(300));
        passage.during(cut, script, || {
            assert_eq!(read(&mount, "text"), "old", "{cut:?}");
        });
        passage.during(cut, script, || {
            let names = fs::read_dir(mount.path("d")).unwrap();
            let sizes = names.map(|entry| entry.unwrap().metadata().unwrap().len());
            assert_eq!(sizes.collect::<Vec<_>>(), [27], "{cut:?}");
        });
        let saved = passage.during(cut, script, || save(&mount.path("text"), "new"));
        told(saved, cut, &[libc::ESTALE], "overwriting");
        assert_eq!(server.ask(&["get", "text"]), "new", "{cut:?}");
        let edited = "{\"a\": \"1\", \"b\": \"3\"}";
        let saved = passage.during(cut, script, || save(&mount.path("d/doc.json"), edited));
        told(saved, cut, &[libc::ESTALE], "editing");
        assert_eq!(server.ask(&["hgetall", "d:doc"]), "a\n1\nb\n3", "{cut:?}");
        let saved = passage.during(cut, script, || save(&mount.path("made"), "made"));
        told(saved, cut, &[libc::EEXIST], "creating");
        assert_eq!(server.ask(&["get", "made"]), "made", "{cut:?}");
        let moved = passage.during(cut, script, || {
            fs::rename(mount.path("made"), mount.path("moved"))
        });
        told(moved, cut, &[libc::ENOENT], "renaming");
        assert_eq!(server.ask(&["get", "moved"]), "made", "{cut:?}");
        assert_eq!(server.ask(&["exists", "made"]), "0", "{cut:?}");
        let removed = passage.during(cut, script, || fs::remove_file(mount.path("moved")));
        told(removed, cut, &[libc::ENOENT], "removing");
        assert_eq!(server.ask(&["exists", "moved"]), "0", "{cut:?}");
        settles(&mount, &["new", edited, "made"]);
        // Without any cut all is as ever.
        save(&mount.path("text"), "last").unwrap();
        assert_eq!(server.ask(&["get", "text"]), "last", "{cut:?}");
    }
}

/// A program that takes the old file away and writes it anew, over a connection that breaks.
fn a_kind_outlives_a_put_that_did_not_arrive(place: &Place) {
    let server = Server::start(place, &[]);
    let passage = Passage::new(&format!("127.0.0.1:{}", server.port));
    let url = format!("redis://127.0.0.1:{}/0", passage.port);
    server.ask(&["sadd", "names", "Ada"]);
    let asks = ["--metadata-ttl", "0s", "--fault", "watch:error=unavailable"];
    let mount = place.mount("m", &url, &asks, true);
    let path = mount.path("names.json");
    fs::remove_file(&path).unwrap();
    assert_eq!(server.ask(&["exists", "names"]), "0");
    passage.during(Cut::Before, "Grace", || {
        save(&path, "[\"Ada\", \"Grace\"]").unwrap();
    });
    assert_eq!(server.ask(&["type", "names"]), "set");
}

pub fn mongodb_address() -> String {
    std::env::var(ADDRESS)
        .unwrap()
        .trim_start_matches("mongodb://")
        .to_owned()
}

fn each_operation_on_documents_of_mongodb(place: &Place) {
    let database = Database::new();
    let passage = Passage::new(&mongodb_address());
    let url = format!("mongodb://127.0.0.1:{}/{}", passage.port, database.name);
    let mount = place.mount("m", &url, &["--metadata-ttl", "0s"], false);
    for cut in CUTS {
        let name = format!("c{cut:?}");
        let at = |file: &str| mount.path(&format!("{name}/{file}"));
        let find = |id: &str| -> Option<Document> { database.find(&name, id) };
        let made = passage.during(cut, "create\0", || fs::create_dir(at("")));
        told(made, cut, &[libc::EEXIST], "making a collection");
        assert!(at("").is_dir(), "{cut:?}");
        let saved = passage.during(cut, "insert\0", || save(&at("x.json"), "{\"a\": 1}"));
        told(saved, cut, &[libc::EEXIST], "creating");
        assert_eq!(find("x"), Some(doc! { "_id": "x", "a": 1 }), "{cut:?}");
        passage.during(cut, "find\0", || {
            let text = fs::read_to_string(at("x.json")).unwrap();
            assert_eq!(text, "{\n  \"_id\": \"x\",\n  \"a\": 1\n}\n", "{cut:?}");
        });
        passage.during(cut, "find\0", || {
            let names = fs::read_dir(at("")).unwrap();
            assert_eq!(names.map(Result::unwrap).count(), 1, "{cut:?}");
        });
        let saved = passage.during(cut, "update\0", || save(&at("x.json"), "{\"a\": 2}"));
        told(saved, cut, &[libc::ESTALE], "editing");
        assert_eq!(find("x"), Some(doc! { "_id": "x", "a": 2 }), "{cut:?}");
        let removed = passage.during(cut, "delete\0", || fs::remove_file(at("x.json")));
        told(removed, cut, &[libc::ENOENT], "removing");
        assert_eq!(find("x"), None, "{cut:?}");
        settles(&mount, &["{\"a\": 1}", "{\"a\": 2}"]);
        save(&at("y.json"), "{\"a\": 3}").unwrap();
        assert_eq!(find("y"), Some(doc! { "_id": "y", "a": 3 }), "{cut:?}");
        // Collections may fold case, which the server of this test cannot: conditions say that they do not.
        let exact = "locale\0\x07\0\0\0simple\0";
        passage.armed(Fate::Behind(Box::new(|| {})), exact, || {
            save(&at("y.json"), "{\"a\": 4}").unwrap();
        });
        passage.armed(Fate::Behind(Box::new(|| {})), exact, || {
            fs::remove_file(at("y.json")).unwrap();
        });
        assert_eq!(find("y"), None, "{cut:?}");
    }
}

fn each_operation_on_files_of_gridfs(place: &Place) {
    let database = Database::new();
    let passage = Passage::new(&mongodb_address());
    let url = format!(
        "mongodb://127.0.0.1:{}/{}/b?layout=gridfs",
        passage.port, database.name
    );
    let direct = place.mount(
        "d",
        &database.url("/b?layout=gridfs"),
        &["--metadata-ttl", "0s"],
        true,
    );
    let mount = place.mount("m", &url, &["--metadata-ttl", "0s"], true);
    save(&mount.path("first"), "x").unwrap();
    for cut in CUTS {
        let saved = passage.during(cut, "insert\0", || save(&mount.path("f"), "one"));
        told(saved, cut, &[], "creating");
        assert_eq!(read(&direct, "f"), "one", "{cut:?}");
        passage.during(cut, "find\0", || {
            assert_eq!(read(&mount, "f"), "one", "{cut:?}")
        });
        let saved = passage.during(cut, "insert\0", || save(&mount.path("f"), "two"));
        told(saved, cut, &[], "overwriting");
        assert_eq!(read(&direct, "f"), "two", "{cut:?}");
        let moved = passage.during(cut, "update\0", || {
            fs::rename(mount.path("f"), mount.path("g"))
        });
        told(moved, cut, &[libc::ENOENT], "renaming");
        assert_eq!(read(&direct, "g"), "two", "{cut:?}");
        assert!(!direct.path("f").exists(), "{cut:?}");
        let removed = passage.during(cut, "delete\0", || fs::remove_file(mount.path("g")));
        told(removed, cut, &[libc::ENOENT], "removing");
        assert!(!direct.path("g").exists(), "{cut:?}");
        settles(&mount, &[]);
        assert_eq!(read(&mount, "first"), "x");
    }
}
