//! The objects of Riak as files, on doubles of its server.

#[path = "riak/siblings.rs"]
mod siblings;

use crate::harness::{Mount, Need, PYTHON, Place, eventually, fails, pattern, trial};
use crate::redis::{certificates, read, refusal};
use crate::riak::{Cut, Server, Setup};
use bucketfs::driver::{AttributeChange, GetOptions, ListRequest, Precondition};
use bucketfs::key::Key;
use libtest_mimic::Trial;
use serde_json::json;
use siblings::{opened, pages, runtime, when};
use std::fs;
use std::net::TcpListener;
use std::path::Path;

pub fn trials() -> Vec<Trial> {
    let usual = |name: &str, test: fn(&Place)| trial(&[], name, test);
    let mut trials = vec![
        usual(
            "riak::the_session_of_the_readme_is_true",
            the_session_of_the_readme_is_true,
        ),
        usual(
            "riak::what_a_delete_left_is_no_sibling",
            what_a_delete_left_is_no_sibling,
        ),
        usual(
            "riak::what_others_stored_survives",
            what_others_stored_survives,
        ),
        usual(
            "riak::a_server_is_refused_in_words",
            a_server_is_refused_in_words,
        ),
        usual(
            "riak::cut_connections_lose_nothing",
            cut_connections_lose_nothing,
        ),
        usual("riak::types_are_directories", types_are_directories),
        trial(
            &[PYTHON, Need::Program("openssl")],
            "riak::users_are_taken_over_tls",
            users_are_taken_over_tls,
        ),
    ];
    trials.push(usual(
        "riak::a_check_tells_what_conditions_are_worth",
        a_check_tells_what_conditions_are_worth,
    ));
    trials.push(usual(
        "riak::requests_are_as_many_as_is_said",
        requests_are_as_many_as_is_said,
    ));
    trials.extend(siblings::trials());
    trials
}

/// The commands of the session give what it shows.
fn the_session_of_the_readme_is_true(place: &Place) {
    let server = Server::start(Setup::default());
    let port = format!(":{}", server.port);
    place.session(
        "riak",
        &[("riak://127.0.0.1/", &server.url("/")), (":8098", &port)],
    );
    let at = ["files", "notes", "todo.txt"];
    assert_eq!(server.texts(at), ["buy both\n"]);
}

/// The names in a directory, in order.
fn names(mount: &Mount, dir: &str) -> Vec<String> {
    let names = fs::read_dir(mount.path(dir)).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn what_a_delete_left_is_no_sibling(place: &Place) {
    let server = Server::start(Setup::default());
    let mount = place.mount("m", &server.url("/files/b"), &[], true);
    let at = ["files", "b", "n"];
    for round in 0..5 {
        let text = format!("round {round}");
        fs::write(mount.path("n"), &text).unwrap();
        assert_eq!(server.texts(at), [text]);
        assert_eq!(names(&mount, ""), ["n"]);
        fs::remove_file(mount.path("n")).unwrap();
        assert!(names(&mount, "").is_empty());
    }
    // A value beside what a delete left is the file, alone.
    fs::write(mount.path("n"), "mine").unwrap();
    fs::remove_file(mount.path("n")).unwrap();
    server.put(at, &[], "theirs", false);
    eventually("it is there", || mount.path("n").exists());
    assert_eq!(
        (names(&mount, ""), read(&mount, "n")),
        (vec!["n".into()], "theirs".into())
    );
    fs::write(mount.path("n"), "edited").unwrap();
    assert_eq!(server.texts(at), ["edited"]);
    // Neither does it make a directory.
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("d/x"), "").unwrap();
    fs::remove_dir_all(mount.path("d")).unwrap();
    assert_eq!(names(&mount, ""), ["n"]);
}

fn what_others_stored_survives(place: &Place) {
    let server = Server::start(Setup::default());
    let at = ["files", "b", "page.html"];
    let headers = [
        ("content-type", "text/x-special; charset=utf-8"),
        ("content-encoding", "identity"),
        ("link", "</buckets/b/keys/other>; riaktag=\"next\""),
        ("x-riak-index-age_int", "36, 37"),
        ("x-riak-meta-color", "blue"),
    ];
    server.put(at, &headers, "old", false);
    let mount = place.mount("m", &server.url("/files/b"), &[], true);
    fs::write(mount.path("page.html"), "new").unwrap();
    let check = |name: &str, text: &str| {
        let found = server.find(["files", "b", name]);
        let [content] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(content.body, text);
        for (name, value) in headers {
            let all = content.headers.get_all(name).iter();
            let all: Vec<_> = all.map(|value| value.to_str().unwrap()).collect();
            assert_eq!(all.join(", "), value, "{name}");
        }
    };
    check("page.html", "new");
    let mut mode = fs::metadata(mount.path("page.html")).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o600);
    fs::set_permissions(mount.path("page.html"), mode).unwrap();
    fs::rename(mount.path("page.html"), mount.path("moved.html")).unwrap();
    eventually("it is moved", || {
        server.find(["files", "b", "moved.html"]).len() == 1
    });
    check("moved.html", "new");
    let mode = &server.find(["files", "b", "moved.html"])[0].headers["x-riak-meta-mode"];
    assert_eq!(mode, "0100600");
    // A new file has the type that its name says, and a link is what it is.
    fs::write(mount.path("a.json"), "{}").unwrap();
    let kind = server.find(["files", "b", "a.json"])[0].headers["content-type"].clone();
    assert_eq!(kind, "application/json");
    std::os::unix::fs::symlink("a.json", mount.path("l")).unwrap();
    assert_eq!(read(&mount, "l"), "{}");
    let large = pattern(3 << 20, 7);
    fs::write(mount.path("large"), &large).unwrap();
    let mut copy = fs::read(mount.path("large")).unwrap();
    assert!(copy == large);
    copy.rotate_left(1);
    fs::write(mount.path("large"), &copy).unwrap();
    assert!(server.find(["files", "b", "large"])[0].body == copy);
    let huge = fs::write(mount.path("huge"), vec![0; (50 << 20) + 1]);
    assert_eq!(fails(huge), libc::EFBIG);
}

fn a_server_is_refused_in_words(place: &Place) {
    let server = Server::start(Setup::default());
    server.make("counts", json!({"allow_mult": true, "datatype": "counter"}));
    server.make("once", json!({"allow_mult": true, "write_once": true}));
    let guarded = Server::start(Setup {
        login: Some("writer:geheim"),
        reader: Some("reader:lesen"),
        ..Setup::default()
    });
    let strict = Server::start(Setup {
        login: Some("writer:geheim"),
        wants_tls: true,
        ..Setup::default()
    });
    // Something else that speaks HTTP, and something that does not.
    let serving = |answer: &'static str| {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = other.local_addr().unwrap().port();
        std::thread::spawn(move || {
            use std::io::{Read, Write};
            for stream in other.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        port
    };
    let page = serving("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    let noise = serving("\u{15}\u{3}\u{1}\0\u{2}\u{2}");
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let at = format!("127.0.0.1:{}", server.port);
    let unwelcome = "takes neither this user nor this password";
    let guard = format!("127.0.0.1:{}", guarded.port);
    for (url, code, why) in [
        (
            format!("riak://{at}/none"),
            5,
            "has no bucket type \"none\"",
        ),
        (
            format!("riak://{at}/counts"),
            9,
            "holds data types (counter)",
        ),
        (format!("riak://{at}/once"), 9, "mount it --read-only"),
        (format!("riak://{guard}/files"), 4, unwelcome),
        (format!("riak://writer:falsch@{guard}/files"), 4, unwelcome),
        (strict.url("/files"), 4, "takes no user without TLS"),
        (
            format!("riak://127.0.0.1:{closed}/files"),
            3,
            "cannot reach 127.0.0.1",
        ),
        (format!("riak://127.0.0.1:{page}/files"), 3, "is not Riak"),
        (
            format!("riak://127.0.0.1:{noise}/files"),
            1,
            "if the server expects TLS, write riaks://",
        ),
        (
            format!("riaks://{at}/files"),
            3,
            "the server speaks no TLS there",
        ),
        (
            format!("riak://{at}//b"),
            2,
            "the path begins with a bucket type",
        ),
    ] {
        let said = refusal(place, &url, &[]);
        assert!(said.stderr.contains(why), "{url}: {said:?}");
        assert_eq!(said.code, Some(code), "{url}: {said:?}");
        assert!(!said.stderr.contains("falsch"));
    }
    // The type says what its conditions are worth.
    for (kind, why) in [
        ("files", "one is kept as a conflict file"),
        ("default", "keeps no siblings"),
    ] {
        let mount = place.mount(kind, &server.url(&format!("/{kind}")), &[], true);
        assert!(mount.log().contains(why), "{kind}: {}", mount.log());
    }
    // Who may only read is told so.
    guarded.put(["files", "b", "x"], &[], "old", false);
    let url = format!("riak://reader:lesen@{guard}/files/b");
    let mount = place.mount("m", &url, &[], false);
    assert_eq!(read(&mount, "x"), "old");
    assert_eq!(fails(fs::remove_file(mount.path("x"))), libc::EACCES);
    let status = mount.status().to_string();
    assert!(status.contains("riak-admin security grant"), "{status}");
}

/// Numbers are counted up while connections are cut, answers break off and the server is busy; what was
/// acknowledged is never lost.
fn cut_connections_lose_nothing(place: &Place) {
    let server = Server::start(Setup::default());
    let at = ["files", "b", "n"];
    server.put(at, &[], "0", false);
    let mount = place.mount("m", &server.url("/files/b"), &[], false);
    let mut acknowledged = 0;
    for number in 1..=60 {
        match number % 8 {
            0 => server.cut(),
            2 => server.cut_write(Cut::Before),
            4 => server.cut_write(Cut::After),
            6 => server.be_busy(2),
            7 => server.cut_answer(1),
            _ => {}
        }
        if fs::write(mount.path("n"), format!("{number}")).is_ok() {
            acknowledged = number;
        }
        if number % 8 == 7 {
            // Never short or mixed.
            assert_eq!(read(&mount, "n"), format!("{number}"));
        }
    }
    eventually("everything is sent", || mount.number("dirty_files") == 0);
    let found = server.texts(at);
    let [count] = found.as_slice() else {
        panic!("{found:?}");
    };
    let count: i64 = count.parse().unwrap();
    assert!(count >= acknowledged, "{count} of {acknowledged}");
    server.cut();
    assert_eq!(read(&mount, "n"), format!("{count}"));
    let large = "x".repeat(1 << 20);
    server.put(["files", "b", "large"], &[], &large, false);
    server.cut_answer(70_000);
    eventually("it is there", || mount.path("large").exists());
    assert!(read(&mount, "large") == large);
}

fn types_are_directories(place: &Place) {
    let server = Server::start(Setup::default());
    server.make("logs", json!({"allow_mult": true}));
    server.put(["files", "a/b", "x"], &[], "hello", false);
    let url = server.url("?types=files,none");
    let mount = place.mount("m", &url, &[], true);
    assert_eq!(names(&mount, ""), ["default", "files"]);
    assert_eq!(names(&mount, "files"), ["a%2Fb"]);
    assert_eq!(read(&mount, "files/a%2Fb/x"), "hello");
    fs::create_dir(mount.path("files/made")).unwrap();
    assert_eq!(
        fails(fs::create_dir(mount.path("files/made"))),
        libc::EEXIST
    );
    assert_eq!(names(&mount, "files"), ["a%2Fb", "made"]);
    assert_eq!(
        server.find(["files", "made", ".bucketfs/directory"]).len(),
        1
    );
    fs::write(mount.path("files/made/x"), "x").unwrap();
    assert_eq!(names(&mount, "files/made"), ["x"]);
    fs::remove_file(mount.path("files/made/x")).unwrap();
    fs::remove_dir(mount.path("files/made")).unwrap();
    assert!(
        server
            .find(["files", "made", ".bucketfs/directory"])
            .is_empty()
    );
    // There are only buckets in a type.
    let file = fs::File::create(mount.path("files/file"));
    assert_eq!(fails(file), libc::EINVAL);
    assert_eq!(fails(fs::metadata(mount.path("logs"))), libc::ENOENT);
    assert_eq!(fails(fs::create_dir(mount.path("more"))), libc::EPERM);
}

/// What is encrypted before the double, which is not.
const TLS: &str = "
import asyncio, ssl
async def pump(source, sink):
    try:
        while piece := await source.read(65536):
            sink.write(piece)
            await sink.drain()
    except OSError:
        pass
    sink.close()
async def serve(reader, writer):
    inner = await asyncio.open_connection('127.0.0.1', int(sys.argv[3]))
    await asyncio.gather(pump(reader, inner[1]), pump(inner[0], writer))
async def main():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    server = await asyncio.start_server(serve, '127.0.0.1', 0, ssl=context)
    say(server.sockets[0].getsockname()[1])
    await server.serve_forever()
asyncio.run(main())";

fn users_are_taken_over_tls(place: &Place) {
    let server = Server::start(Setup {
        login: Some("writer:geheim"),
        ..Setup::default()
    });
    let keys = certificates(place);
    let port = server.port.to_string();
    let args = [&keys.join("s.crt"), &keys.join("s.key"), Path::new(&port)];
    let mut secure = place.start(&mut place.python(TLS, &args));
    let at = format!("127.0.0.1:{}", secure.line());
    let authority = keys.join("ca.crt").to_str().unwrap().to_owned();
    let trusts = [("SSL_CERT_FILE", authority.as_str())];
    let url = format!("riaks://writer:geheim@{at}/files/b");
    let said = refusal(place, &url, &[]);
    let why = "if it is a private one, let SSL_CERT_FILE name a file with its issuer";
    assert!(said.stderr.contains(why), "{said:?}");
    let wrong = url.replace("geheim", "falsch");
    let said = refusal(place, &wrong, &trusts);
    assert!(said.stderr.contains("takes neither this user"), "{said:?}");
    assert!(!said.stderr.contains("falsch"), "{said:?}");
    let plain = url.replace("riaks:", "riak:");
    let said = refusal(place, &plain, &trusts);
    assert!(said.stderr.contains("127.0.0.1"), "{said:?}");
    let dir = place.path("m");
    fs::create_dir(&dir).unwrap();
    // The password may stand in the environment.
    let url = url.replace(":geheim", "");
    let mut command = place.command(&["mount", "-f", &url, dir.to_str().unwrap()]);
    command.envs(trusts).env("RIAK_PASSWORD", "geheim");
    let mount = place.started("m", command, true);
    let text = "over TLS ".repeat(100_000);
    fs::write(mount.path("f"), &text).unwrap();
    assert_eq!(server.texts(["files", "b", "f"]), [text.as_str()]);
    assert!(read(&mount, "f") == text);
    assert!(!mount.log().contains("geheim"));
}

fn a_check_tells_what_conditions_are_worth(place: &Place) {
    let server = Server::start(Setup::default());
    for url in ["/files/b", "/files", "/default/b"].map(|rest| server.url(rest)) {
        let said = place.run(&mut place.command(&["check", &url]));
        assert_eq!(said.code, Some(0), "{said:?}");
        for what in [
            "writing only a name that is not there (If-None-Match)",
            "writing only over the version that was read (If-Match)",
            "removing only the version that was seen",
        ] {
            let line = format!("{what}: honoured (tested, then written)");
            assert!(said.stdout.contains(&line), "{said:?}");
        }
    }
    runtime().block_on(async {
        let driver = opened(&server.url("/files")).await;
        let left = pages(&driver, ListRequest::flat(&Key::empty())).await;
        assert!(left.is_empty(), "{left:?}");
    });
}

fn requests_are_as_many_as_is_said(_: &Place) {
    let server = Server::start(Setup::default());
    runtime().block_on(async {
        let driver = opened(&server.url("/files")).await;
        let key = Key::from("b/k");
        server.asked();
        let put = driver.put(&key, "new".into(), when(Precondition::IfAbsent));
        let etag = put.await.unwrap().etag;
        assert_eq!(server.asked(), 2, "a HEAD and a PUT");
        let condition = Precondition::IfMatch(etag);
        driver
            .put(&key, "old".into(), when(condition))
            .await
            .unwrap();
        assert_eq!(server.asked(), 2, "a HEAD and a PUT");
        let got = driver.get(&key, GetOptions::default()).await.unwrap();
        got.found().unwrap().collect().await.unwrap();
        assert_eq!(server.asked(), 1, "a GET");
        let change = AttributeChange {
            mode: Some(0o100_600),
            ..AttributeChange::default()
        };
        driver.set_attributes(&key, change, None).await.unwrap();
        assert_eq!(server.asked(), 2, "a GET and a PUT");
        driver.delete(&key, Precondition::None).await.unwrap();
        assert_eq!(server.asked(), 2, "a HEAD and a DELETE");
        for number in 0..300 {
            let name = format!("d/{number:03}");
            server.put(["files", "b", &name], &[], "x", false);
        }
        for name in ["a", "e", "f"] {
            server.put(["files", "b", name], &[], "x", false);
        }
        let top = ListRequest {
            limit: 50,
            ..ListRequest::directory(&Key::from("b/"))
        };
        let names = pages(&driver, top).await;
        assert_eq!(names, ["b/a", "b/d/", "b/e", "b/f"].map(Key::from));
        let asked = server.asked();
        // Two pages of the index; the directory itself, its first key, three files and what is deleted.
        assert_eq!(asked, 2 + 1 + 1 + 3 + 1, "the rest of d/ is passed over");
    });
}
