//! The documents of RethinkDB as files, on a double of its server.

use crate::harness::{PYTHON, Place, eventually, fails, trial};
use crate::redis::{read, refusal};
use crate::rethinkdb::{Cut, Server};
use bucketfs::driver::{self, Driver, GetOptions, ListRequest, Location, OpenOptions};
use bucketfs::key::Key;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub fn trials() -> Vec<Trial> {
    let usual = |name: &str, test: fn(&Place)| trial(&[], name, test);
    let python = |name: &str, test: fn(&Place)| trial(&[PYTHON], name, test);
    vec![
        usual(
            "rethinkdb::the_session_of_the_readme_is_true",
            the_session_of_the_readme_is_true,
        ),
        usual(
            "rethinkdb::every_key_has_a_name_and_listings_are_in_order",
            every_key_has_a_name_and_listings_are_in_order,
        ),
        usual(
            "rethinkdb::a_page_reads_a_page_of_the_table",
            a_page_reads_a_page_of_the_table,
        ),
        usual(
            "rethinkdb::the_server_looks_for_fields",
            the_server_looks_for_fields,
        ),
        usual(
            "rethinkdb::what_others_change_is_pushed",
            what_others_change_is_pushed,
        ),
        python(
            "rethinkdb::edits_of_different_fields_are_both_kept",
            edits_of_different_fields_are_both_kept,
        ),
        python(
            "rethinkdb::what_is_no_document_is_refused_and_kept",
            what_is_no_document_is_refused_and_kept,
        ),
        usual(
            "rethinkdb::a_server_is_refused_in_words",
            a_server_is_refused_in_words,
        ),
        usual(
            "rethinkdb::cut_connections_lose_nothing",
            cut_connections_lose_nothing,
        ),
        usual(
            "rethinkdb::a_connection_without_answers_is_left",
            a_connection_without_answers_is_left,
        ),
        usual(
            "rethinkdb::databases_are_directories",
            databases_are_directories,
        ),
    ]
}

/// The commands of the session give what it shows.
fn the_session_of_the_readme_is_true(place: &Place) {
    let server = Server::start();
    server.make("shop", "orders", "id");
    place.session("rethinkdb", &[("rethinkdb://127.0.0.1/", &server.url("/"))]);
    let ada = json!({"id": "ada", "name": "Ada", "born": 1815});
    assert_eq!(server.find("shop", "users", json!("ada")), Some(ada));
}

/// All keys of a listing, which are in order.
async fn pages(driver: &Arc<dyn Driver>, mut request: ListRequest) -> Vec<Key> {
    let mut keys = Vec::new();
    loop {
        let page = driver.list(request.clone()).await.unwrap();
        assert!(page.entries.len() <= request.limit);
        keys.extend(page.entries.into_iter().map(|entry| entry.key));
        request.token = page.next;
        if request.token.is_none() {
            break;
        }
    }
    assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
    keys
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

async fn opened(url: &str) -> Arc<dyn Driver> {
    let location = Location::parse(url).unwrap();
    let opened = driver::open(&location, &OpenOptions::default()).await;
    opened.unwrap().driver
}

fn every_key_has_a_name_and_listings_are_in_order(_: &Place) {
    let server = Server::start();
    server.make("d", "t", "key");
    let texts = [
        "a", "a-", "a-b", "a-.json", "a.", "a.b", "a.z", "a.json", "a b", "a0", "ab", "ab-", "abc",
        "A", "é", "é!", "日本", "🪣", "\u{ff01}", "🪣-", "42", "-1", "042", "", "/", "a/b", "=",
        "=x", "~", "\u{7}", "-", "--1", "1.5", "x.json",
    ];
    let mut ids: Vec<Value> = texts.map(Value::from).to_vec();
    ids.extend((-12..=112).map(Value::from));
    ids.extend(
        [
            -(1_i64 << 53),
            -(1 << 40),
            -1000,
            1000,
            5005,
            99_999,
            1 << 40,
        ]
        .map(Value::from),
    );
    ids.extend([0.5, -1.5, 10.25, 1e300, -1e300].map(Value::from));
    ids.extend([json!(true), json!(false), json!([1, "a"]), json!(["b/c"])]);
    ids.push(json!({"$reql_type$": "TIME", "epoch_time": 1.5, "timezone": "+00:00"}));
    for id in &ids {
        server.put("d", "t", json!({"key": id, "size": 1}));
    }
    runtime().block_on(async {
        let driver = opened(&server.url("/d")).await;
        let all = pages(&driver, ListRequest::flat(&Key::from("t/"))).await;
        let files = &all[1..];
        assert_eq!((all[0].to_str(), files.len()), (Some("t/"), ids.len()));
        let mut found = std::collections::BTreeSet::new();
        for key in files {
            let got = driver.get(key, GetOptions::default()).await.unwrap();
            let (info, text) = got.found().unwrap().collect().await.unwrap();
            assert_eq!(info.size, Some(text.len() as u64));
            assert!(text.starts_with(b"{\n  \"key\": "));
            assert!(found.insert(text), "{key:?} is another's text");
        }
        for limit in [1, 7] {
            let request = ListRequest {
                limit,
                ..ListRequest::flat(&Key::from("t/"))
            };
            assert_eq!(pages(&driver, request).await, all, "{limit} at a time");
        }
        for (at, key) in files.iter().enumerate() {
            let begins = ListRequest {
                start_after: Some(key.clone()),
                ..ListRequest::flat(&Key::from("t/"))
            };
            let behind = pages(&driver, begins).await;
            assert_eq!(behind, files[at + 1..], "behind {key:?}");
            let cut = Key::from(&key.as_bytes()[..key.len() - 6]);
            let below = all.iter().filter(|other| other.starts_with(&cut)).cloned();
            assert_eq!(
                pages(&driver, ListRequest::flat(&cut)).await,
                below.collect::<Vec<_>>(),
                "{cut:?}"
            );
        }
    });
}

fn a_page_reads_a_page_of_the_table(_: &Place) {
    let server = Server::start();
    server.make("d", "t", "id");
    for number in 0..2000 {
        server.put("d", "t", json!({"id": format!("k{number:04}")}));
    }
    runtime().block_on(async {
        let driver = opened(&server.url("/d")).await;
        let request = ListRequest {
            start_after: Some(Key::from("t/k0999.json")),
            limit: 20,
            ..ListRequest::flat(&Key::from("t/"))
        };
        server.rows_sent();
        let page = driver.list(request).await.unwrap();
        let first = page
            .entries
            .first()
            .unwrap()
            .key
            .to_str()
            .map(str::to_owned);
        assert_eq!(
            (page.entries.len(), first.as_deref()),
            (20, Some("t/k1000.json"))
        );
        let sent = server.rows_sent();
        assert!(sent < 60, "{sent} rows were sent");
    });
}

/// What does not match is not sent, and no document keeps the server from looking at others.
fn the_server_looks_for_fields(place: &Place) {
    let server = Server::start();
    server.make("d", "t", "id");
    let time = json!({"$reql_type$": "TIME", "epoch_time": 1, "timezone": "+00:00"});
    for number in 0..1000 {
        let at = match number % 7 {
            0 => json!({"city": "ulm", "zip": [1, {"x": true}]}),
            1 => json!({"city": ["ulm"]}),
            2 => json!("ulm"),
            3 => json!(null),
            4 => json!([{"city": "ulm"}]),
            5 => time.clone(),
            _ => json!(1.5),
        };
        let id = if number % 2 == 0 {
            json!(number)
        } else {
            json!(format!("={number}"))
        };
        server.put("d", "t", json!({"id": id, "at": at, "n": number}));
    }
    let find = |args: &[&str], wanted: usize, most: usize| {
        server.rows_sent();
        let mut command = place.command(&["find", "--count", &server.url("/d")]);
        let said = place.run(command.args(args));
        assert_eq!(
            (said.stdout.trim(), said.stderr.as_str()),
            (wanted.to_string().as_str(), ""),
            "{args:?}"
        );
        let sent = server.rows_sent();
        assert!(sent <= most, "{args:?}: {sent} rows were sent");
    };
    find(&["at.city=ulm"], 143, 350);
    find(&["at.city=ulm", "n=700"], 1, 20);
    find(&["at=ulm"], 143, 350);
    find(&["at=null"], 143, 350);
    find(&["at.zip.1.x=true"], 143, 350);
    find(&["n=-1"], 0, 20);
    find(&["missing=null"], 0, 20);
    find(&["at.epoch_time=1"], 143, usize::MAX);
    find(&["at.$reql_type$=TIME"], 143, usize::MAX);
    find(
        &["--json", &json!({"at": time}).to_string()],
        143,
        usize::MAX,
    );
    find(&["at.0.city=ulm"], 143, usize::MAX);
    find(&["n=1e400"], 0, 20);
    find(&["--json", "{}"], 1000, usize::MAX);
}

fn what_others_change_is_pushed(place: &Place) {
    let server = Server::start();
    server.make("d", "t", "id");
    server.put("d", "t", json!({"id": "k", "a": 1}));
    // Only the feed tells what changes.
    let args = ["--metadata-ttl", "1h", "--negative-metadata-ttl", "1h"];
    let mount = place.mount("m", &server.url("/d/t"), &args, true);
    assert!(read(&mount, "k.json").contains("\"a\": 1"));
    assert!(!mount.path("new.json").exists());
    server.put("d", "t", json!({"id": "k", "a": "a longer one"}));
    server.put("d", "t", json!({"id": "new"}));
    eventually("the new version is seen", || {
        read(&mount, "k.json").contains("a longer one")
    });
    eventually("the new name is seen", || mount.path("new.json").exists());
    // What happens while there is no connection is seen when there is one again.
    server.cut();
    server.put("d", "t", json!({"id": "later"}));
    server.put("d", "t", json!({"id": "k", "a": "another"}));
    eventually("the change meanwhile is seen", || {
        read(&mount, "k.json").contains("another")
    });
    eventually("the name is seen", || mount.path("later.json").exists());
}

/// Writes a file and says what close says.
const SAVING: &str = "
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
data = os.fsencode(sys.argv[2])
while data:
    data = data[os.write(fd, data):]
say(attempt(os.close, fd))";

fn edits_of_different_fields_are_both_kept(place: &Place) {
    let server = Server::start();
    server.make("d", "t", "id");
    let old = json!({"id": "x", "a": 1, "b": null, "c": {"d": 3, "e": 4}});
    server.put("d", "t", old);
    // Neither hears of the other: each edits what it has read.
    let deaf = [
        "--metadata-ttl",
        "1h",
        "--consistency",
        "ttl",
        "--fault",
        "watch:error=unavailable",
    ];
    let mounts = ["m", "n"].map(|name| place.mount(name, &server.url("/d/t"), &deaf, false));
    let text = read(&mounts[0], "x.json");
    assert_eq!(read(&mounts[1], "x.json"), text);
    let save = |at: usize, from: &str, to: &str| {
        let text = text.replace(from, to);
        place.script(SAVING, &[&mounts[at].path("x.json"), Path::new(&text)])
    };
    assert_eq!(save(0, "\"d\": 3", "\"d\": 33"), "OK");
    assert_eq!(save(1, "\"e\": 4", "\"e\": 44"), "OK");
    let both = json!({"id": "x", "a": 1, "b": null, "c": {"d": 33, "e": 44}});
    assert_eq!(server.find("d", "t", json!("x")), Some(both.clone()));
    // The same field is a conflict, and the loser's text is kept.
    let mut theirs = both;
    theirs["a"] = "theirs".into();
    server.put("d", "t", theirs.clone());
    assert_eq!(save(1, "\"a\": 1", "\"a\": \"ours\""), "ESTALE");
    assert_eq!(server.find("d", "t", json!("x")), Some(theirs));
    let status = mounts[1].status().to_string();
    assert!(status.contains("kept/unsent"), "{status}");
}

fn what_is_no_document_is_refused_and_kept(place: &Place) {
    let server = Server::start();
    server.make("d", "t", "id");
    let old = json!({"id": "x", "a": 1});
    server.put("d", "t", old.clone());
    let mount = place.mount("m", &server.url("/d/t"), &[], false);
    let save = |name: &str, text: &str| place.script(SAVING, &[&mount.path(name), Path::new(text)]);
    for (name, text, errno, why) in [
        ("x.json", "{\"a\": 1,\n  b}", "EINVAL", "line 2 column 3"),
        ("x.json", "[1]", "EINVAL", "a document is an object"),
        ("x.json", "{\"id\": 1}", "EINVAL", "its id belongs into"),
        (
            "x.json",
            "{\"a\": 9007199254740993}",
            "EINVAL",
            "numbers are doubles here",
        ),
    ] {
        assert_eq!(save(name, text), errno, "{name} {text}");
        let status = mount.status().to_string();
        assert!(status.contains(why), "{why}: {status}");
    }
    // Names that no document has cannot be made.
    for name in ["notes.txt", "=42.json"] {
        let made = fs::File::create(mount.path(name));
        assert_eq!(fails(made), libc::EINVAL, "{name}");
        let status = mount.status().to_string();
        assert!(status.contains("holds only documents"), "{status}");
    }
    let huge = "
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.write(fd, b'{\"a\": \"' + b'x' * (17 << 20) + b'\"}')
say(attempt(os.close, fd))";
    assert_eq!(place.script(huge, &[&mount.path("huge.json")]), "EFBIG");
    assert_eq!(server.find("d", "t", json!("x")), Some(old));
    let long = mount.path(&format!("{}.json", "x".repeat(128)));
    assert_eq!(fails(fs::write(long, "{}")), libc::ENAMETOOLONG);
    server.drop_table("d", "t");
    assert_eq!(save("y.json", "{}"), "ENOENT");
}

fn a_server_is_refused_in_words(place: &Place) {
    let server = Server::start();
    server.make("d", "t", "id");
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    std::thread::spawn(move || {
        use std::io::Write;
        for stream in other.incoming() {
            let _ = stream
                .unwrap()
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let at = format!("127.0.0.1:{}", server.port);
    let unwelcome = "takes neither this user nor this password";
    for (url, code, why) in [
        (format!("rethinkdb://writer:falsch@{at}/d"), 4, unwelcome),
        (format!("rethinkdb://nobody:falsch@{at}/d"), 4, unwelcome),
        (
            format!("rethinkdb://127.0.0.1:{closed}/d"),
            3,
            "cannot reach 127.0.0.1",
        ),
        (
            format!("rethinkdb://127.0.0.1:{port}/d"),
            3,
            "does not speak as RethinkDB",
        ),
        (format!("rethinkdb://{at}/a.b"), 2, "cannot be the name"),
    ] {
        let said = refusal(place, &url, &[]);
        assert!(said.stderr.contains(why), "{url}: {said:?}");
        assert_eq!(said.code, Some(code), "{url}: {said:?}");
        assert!(!said.stderr.contains("falsch"));
    }
    // Who may only read is told so.
    server.put("d", "t", json!({"id": "x"}));
    let url = format!("rethinkdb://reader:lesen@{at}/d/t");
    let mount = place.mount("m", &url, &[], false);
    assert_eq!(read(&mount, "x.json"), "{\n  \"id\": \"x\"\n}\n");
    assert_eq!(fails(fs::remove_file(mount.path("x.json"))), libc::EACCES);
    let status = mount.status().to_string();
    assert!(status.contains("r.grant gives permissions"), "{status}");
}

/// Numbers are counted up while connections are cut, at any time and within writes; what was
/// acknowledged is never lost.
fn cut_connections_lose_nothing(place: &Place) {
    let server = Server::start();
    server.make("d", "t", "id");
    server.put("d", "t", json!({"id": "n", "count": 0}));
    let mount = place.mount("m", &server.url("/d/t"), &[], false);
    let mut acknowledged = 0;
    for number in 1..=60 {
        match number % 6 {
            0 => server.cut(),
            2 => server.cut_write(Cut::Before),
            4 => server.cut_write(Cut::After),
            _ => {}
        }
        let text = format!("{{\"count\": {number}}}");
        if fs::write(mount.path("n.json"), text).is_ok() {
            acknowledged = number;
        }
    }
    eventually("everything is sent", || mount.number("dirty_files") == 0);
    let found = server.find("d", "t", json!("n")).unwrap();
    let count = found["count"].as_i64().unwrap();
    assert!(count >= acknowledged, "{count} of {acknowledged}");
    server.cut();
    let shown: Value = serde_json::from_str(&read(&mount, "n.json")).unwrap();
    assert_eq!(shown["count"], found["count"]);
}

/// A peer that vanished is waited for once: what comes then goes on another connection.
fn a_connection_without_answers_is_left(_: &Place) {
    const SUSPICIOUS: Duration = Duration::from_secs(5);
    let server = Server::start();
    server.make("d", "t", "id");
    server.put("d", "t", json!({"id": "n"}));
    runtime().block_on(async {
        let driver = opened(&server.url("/d")).await;
        let key = Key::from("t/n.json");
        driver.head(&key).await.unwrap();
        server.mute();
        for wait in [
            SUSPICIOUS / 10,
            // A short wait says nothing of the connection.
            SUSPICIOUS + Duration::from_millis(200),
        ] {
            let given_up = tokio::time::timeout(wait, driver.head(&key)).await;
            given_up.expect_err("no answer");
        }
        let next = tokio::time::timeout(SUSPICIOUS, driver.head(&key)).await;
        next.expect("another connection").unwrap();
    });
}

fn databases_are_directories(place: &Place) {
    let server = Server::start();
    server.make("d", "t", "id");
    server.make("rethinkdb", "users", "id");
    server.put("d", "t", json!({"id": "x"}));
    let mount = place.mount("m", &server.url(""), &[], true);
    assert_eq!(read(&mount, "d/t/x.json"), "{\n  \"id\": \"x\"\n}\n");
    fs::create_dir(mount.path("d/made")).unwrap();
    assert_eq!(fails(fs::create_dir(mount.path("d/made"))), libc::EEXIST);
    assert_eq!(fails(fs::remove_dir(mount.path("d/made"))), libc::EACCES);
    let names = |dir: &str| {
        let names = fs::read_dir(mount.path(dir)).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("d"), ["made", "t"]);
    assert_eq!(names(""), ["d"]);
    // What can be no document is refused here, too, before anything is written into it.
    let made = fs::File::create(mount.path("d/t/notes.txt"));
    assert_eq!(fails(made), libc::EINVAL);
    assert_eq!(fails(fs::metadata(mount.path("d/none"))), libc::ENOENT);
}
