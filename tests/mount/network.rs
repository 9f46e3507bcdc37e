//! A bad network between a mount and its server: no wrong byte is read, no acknowledged one is
//! lost, nobody waits for longer than the deadline, and the mount recovers.

use crate::buckets::{SERVER, account, fresh, wait};
use crate::harness::{Mount, PYTHON, Place, eventually, fails, pattern, trial};
use crate::proxy::{Act, Proxy, refusal};
use bucketfs::driver::{Body, Driver, GetOptions, ListRequest, PutOptions};
use bucketfs::key::Key;
use libtest_mimic::Trial;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            &[SERVER],
            "network::broken_answers_are_no_wrong_bytes",
            broken_answers_are_no_wrong_bytes,
        ),
        trial(
            &[SERVER, PYTHON],
            "network::a_close_survives_what_befalls_its_put",
            a_close_survives_what_befalls_its_put,
        ),
        trial(
            &[SERVER, PYTHON],
            "network::a_large_file_survives_what_befalls_its_parts",
            a_large_file_survives_what_befalls_its_parts,
        ),
        trial(
            &[SERVER, PYTHON],
            "network::lost_replies_are_no_failures",
            lost_replies_are_no_failures,
        ),
        trial(
            &[SERVER, PYTHON],
            "network::a_silent_server_is_given_up",
            a_silent_server_is_given_up,
        ),
        trial(
            &[SERVER, PYTHON],
            "network::an_overloaded_server_is_asked_less",
            an_overloaded_server_is_asked_less,
        ),
        trial(
            &[SERVER, PYTHON],
            "network::what_is_not_allowed_is_told",
            what_is_not_allowed_is_told,
        ),
        trial(
            &[SERVER, PYTHON],
            "network::a_server_that_comes_back_is_used_again",
            a_server_that_comes_back_is_used_again,
        ),
    ]
}

/// A fresh bucket, mounted through a proxy that passes everything on at first.
struct Scene {
    bucket: String,
    driver: Arc<dyn Driver>,
    proxy: Proxy,
    mount: Arc<Mount>,
}

impl Scene {
    fn new(place: &Place, args: &[&str]) -> Scene {
        let (bucket, proxy) = (fresh("net"), Proxy::before_server());
        let endpoint = proxy.endpoint();
        let args = [
            &["--endpoint-url", &endpoint, "--region", "us-east-1"],
            args,
        ]
        .concat();
        let url = format!("s3://{bucket}");
        Scene {
            driver: wait(account().bucket(&bucket)).unwrap(),
            mount: place.mount("m", &url, &args, false),
            bucket,
            proxy,
        }
    }

    /// Does this to the next requests for a key.
    fn next(&self, times: usize, method: &str, key: &str, act: Act) {
        let begin = format!("{method} /{}/{key}", self.bucket);
        self.proxy
            .when(times, move |head| head.starts_with(&begin), act);
    }

    /// Puts an object past the proxy.
    fn store(&self, key: &str, bytes: &[u8]) {
        let (key, body) = (Key::from(key), Body::from(bytes.to_vec()));
        wait(self.driver.put(&key, body, PutOptions::default())).unwrap();
    }

    /// What the server has under a key.
    fn stored(&self, key: &str) -> Option<Vec<u8>> {
        let key = Key::from(key);
        wait(async {
            let object = self.driver.get(&key, GetOptions::default()).await.ok()?;
            let object = object.found().ok()?;
            Some(object.collect().await.unwrap().1.to_vec())
        })
    }

    fn keys(&self) -> Vec<String> {
        let page = wait(self.driver.list(ListRequest::flat(&Key::empty()))).unwrap();
        page.entries
            .iter()
            .map(|entry| entry.key.to_string())
            .collect()
    }

    fn spent(&self) {
        assert!(self.proxy.is_spent(), "not all of the plan has happened");
    }
}

/// Writes a file in a process of its own, and gives what close said.
fn close_of(place: &Place, path: &Path, content: &str) -> String {
    place.script(
        "
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.write(fd, sys.argv[2].encode())
say(attempt(os.close, fd))
",
        &[path, Path::new(content)],
    )
}

fn down(code: &str) -> Act {
    refusal("503 Slow Down", "Retry-After: 1\r\n", code)
}

fn broken_answers_are_no_wrong_bytes(place: &Place) {
    let scene = Scene::new(place, &[]);
    let content = pattern(3_000_000, 7);
    let plan = [
        ("reset", 2, Act::Reset),
        ("slow-down", 2, down("SlowDown")),
        ("error", 2, refusal("500 Oops", "", "InternalError")),
        ("cut", 3, Act::Truncate(70_000)),
        ("empty", 2, Act::Truncate(0)),
        ("late", 1, Act::Late(Duration::from_millis(700))),
        ("nonsense", 1, Act::Answer("what is this?\r\n\r\n".into())),
    ];
    for (key, ..) in &plan {
        scene.store(key, &content);
    }
    scene.store("small", &content[..100_000]);
    for (key, times, act) in plan {
        scene.next(times, "GET", key, act);
        let read = fs::read(scene.mount.path(key)).unwrap();
        assert!(read == content, "{key}");
    }
    // A small object's etag tells that its bytes are others.
    scene.next(2, "GET", "small", Act::GarbleAnswer);
    assert!(fs::read(scene.mount.path("small")).unwrap() == content[..100_000]);
    scene.spent();
    // Names too.
    let list = format!("GET /{}/?", scene.bucket);
    scene.proxy.next(2, list, Act::Truncate(100));
    assert_eq!(fs::read_dir(scene.mount.path("")).unwrap().count(), 8);
}

fn a_close_survives_what_befalls_its_put(place: &Place) {
    let scene = Scene::new(place, &[]);
    for (key, times, act) in [
        ("reset", 2, Act::Reset),
        ("slow-down", 2, down("SlowDown")),
        ("error", 2, refusal("500 Oops", "", "InternalError")),
        ("lost", 2, Act::LoseReply),
        ("garbled", 2, Act::Garble),
        ("late", 1, Act::Late(Duration::from_millis(700))),
        ("cut", 1, Act::Truncate(0)),
    ] {
        for content in ["first", "second"] {
            scene.next(times, "PUT", key, act.clone());
            assert_eq!(
                close_of(place, &scene.mount.path(key), content),
                "OK",
                "{key}"
            );
            assert_eq!(scene.stored(key).unwrap(), content.as_bytes(), "{key}");
        }
    }
    scene.spent();
    assert_eq!(scene.keys().len(), 7, "{:?}", scene.keys());
}

fn a_large_file_survives_what_befalls_its_parts(place: &Place) {
    let scene = Scene::new(place, &[]);
    let content = pattern(24 << 20, 9);
    fs::write(place.path("large"), &content).unwrap();
    let of = |word: &str| {
        let (begin, word) = (format!(" /{}/large?", scene.bucket), word.to_owned());
        move |head: &str| {
            let line = head.lines().next().unwrap_or_default();
            line.contains(&begin) && line.contains(&word)
        }
    };
    let proxy = &scene.proxy;
    proxy.when(1, of("partNumber=1&"), Act::Reset);
    proxy.when(1, of("partNumber=1&"), Act::Garble);
    proxy.when(1, of("partNumber=2&"), Act::LoseReply);
    proxy.when(2, of("partNumber=3&"), down("SlowDown"));
    proxy.when(1, of("uploads="), down("InternalError"));
    let begin = format!("POST /{}/large?uploadId", scene.bucket);
    proxy.next(1, begin.as_str(), Act::LoseReply);
    let said = place.script(
        "
source = open(sys.argv[1], 'rb').read()
fd = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
for at in range(0, len(source), 1 << 20): os.write(fd, source[at:at + (1 << 20)])
say(attempt(os.close, fd))
",
        &[&place.path("large"), &scene.mount.path("large")],
    );
    assert_eq!(said, "OK");
    scene.spent();
    assert!(scene.stored("large").unwrap() == content);
    assert_eq!(scene.keys(), ["large"]);
    assert!(fs::read(scene.mount.path("large")).unwrap() == content);
}

fn lost_replies_are_no_failures(place: &Place) {
    let scene = Scene::new(place, &[]);
    let path = |name: &str| scene.mount.path(name);
    scene.next(1, "PUT", "dir/", Act::LoseReply);
    fs::create_dir(path("dir")).unwrap();
    assert_eq!(close_of(place, &path("dir/file"), "text"), "OK");
    // A lock whose claim was applied belongs to who claimed it.
    scene.next(1, "PUT", "dir/x.lock", Act::LoseReply);
    let said = place.script(
        "say(attempt(os.close, os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)))",
        &[&path("dir/x.lock")],
    );
    assert_eq!(said, "OK");
    scene.next(1, "PUT", "dir/moved", Act::LoseReply);
    fs::rename(path("dir/file"), path("dir/moved")).unwrap();
    scene.next(1, "DELETE", "dir/x.lock", Act::LoseReply);
    fs::remove_file(path("dir/x.lock")).unwrap();
    // An append is not done twice.
    scene.next(1, "PUT", "dir/moved", Act::LoseReply);
    let said = place.script(
        "
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
os.write(fd, b' and more')
say(attempt(os.close, fd))
",
        &[&path("dir/moved")],
    );
    assert_eq!(said, "OK");
    scene.spent();
    assert_eq!(scene.keys(), ["dir/", "dir/moved"]);
    assert_eq!(scene.stored("dir/moved").unwrap(), b"text and more");
    assert_eq!(fs::read(path("dir/moved")).unwrap(), b"text and more");
}

fn a_silent_server_is_given_up(place: &Place) {
    let scene = Scene::new(place, &["--deadline", "1s", "--retries", "0"]);
    scene.store("read", b"text");
    scene.next(usize::MAX, "GET", "read", Act::Stall);
    scene.next(usize::MAX, "PUT", "written", Act::Stall);
    let in_time = |began: Instant| {
        let took = began.elapsed().as_secs_f64();
        assert!((0.9..5.0).contains(&took), "{took}");
    };
    let began = Instant::now();
    assert_eq!(fails(fs::read(scene.mount.path("read"))), libc::ETIMEDOUT);
    in_time(began);
    let began = Instant::now();
    let said = close_of(place, &scene.mount.path("written"), "kept");
    assert_eq!(said, "ETIMEDOUT");
    in_time(began);
    assert_eq!(scene.mount.number("dirty_files"), 1);
    scene.proxy.heal();
    eventually("what was kept is sent", || {
        scene
            .stored("written")
            .is_some_and(|bytes| bytes == b"kept")
    });
    assert_eq!(fs::read(scene.mount.path("read")).unwrap(), b"text");
    assert_eq!(scene.keys(), ["read", "written"]);
}

fn a_server_that_comes_back_is_used_again(place: &Place) {
    let scene = Scene::new(place, &["--deadline", "2s", "--retries", "1"]);
    assert_eq!(close_of(place, &scene.mount.path("f"), "before"), "OK");
    scene.proxy.when(usize::MAX, |_| true, Act::Reset);
    assert_eq!(close_of(place, &scene.mount.path("f"), "meanwhile"), "EIO");
    let missing = fails(fs::metadata(scene.mount.path("other")));
    assert_eq!(missing, libc::EIO);
    // What was written is read here all the same.
    assert_eq!(fs::read(scene.mount.path("f")).unwrap(), b"meanwhile");
    assert_eq!(scene.stored("f").unwrap(), b"before");
    scene.proxy.heal();
    eventually("what was kept is sent", || {
        scene.stored("f").unwrap() == b"meanwhile"
    });
    assert_eq!(fails(fs::metadata(scene.mount.path("other"))), libc::ENOENT);
    assert_eq!(close_of(place, &scene.mount.path("f"), "after"), "OK");
    assert_eq!(scene.stored("f").unwrap(), b"after");
    assert_eq!(scene.keys(), ["f"]);
}

fn an_overloaded_server_is_asked_less(place: &Place) {
    let scene = Scene::new(place, &[]);
    scene.next(30, "PUT", "f", down("SlowDown"));
    let said = place.script(
        "
import threading
def write(i):
    with open(f'{sys.argv[1]}/f{i}', 'w') as f: f.write(str(i))
threads = [threading.Thread(target=write, args=(i,)) for i in range(20)]
for t in threads: t.start()
for t in threads: t.join()
say(len(os.listdir(sys.argv[1])))
",
        &[&scene.mount.path("")],
    );
    assert_eq!(said, "20");
    scene.spent();
    let pace = scene.mount.status()["pace"].clone();
    assert_eq!((&pace["most"], &pace["refusals"]), (&64.into(), &30.into()));
    assert!(pace["now"].as_u64().unwrap() < 64, "{pace}");
    let status = place.run(place.command(&["status"]).arg(scene.mount.path("")));
    let line = "the store refused 30 requests for it gets too many: at most ";
    assert!(status.stdout.contains(line), "{status:?}");
    assert_eq!(scene.keys().len(), 20);
}

/// A permission that lacks, and an object that has to be restored first: the errno, and what to do.
fn what_is_not_allowed_is_told(place: &Place) {
    let scene = Scene::new(place, &[]);
    let why = |name: &str| {
        let said = place.run(place.command(&["why"]).arg(scene.mount.path(name)));
        assert_eq!(said.code, Some(0), "{said:?}");
        said.stdout
    };
    let denied = || refusal("403 Forbidden", "", "AccessDenied");
    for name in ["read", "archived", "removed"] {
        scene.store(name, b"text");
    }
    scene.next(usize::MAX, "GET", "read", denied());
    assert_eq!(fails(fs::read(scene.mount.path("read"))), libc::EACCES);
    let said = why("read");
    assert!(
        said.contains("allow s3:GetObject and s3:ListBucket there"),
        "{said}"
    );

    let archived = refusal("403 Forbidden", "", "InvalidObjectState");
    scene.next(usize::MAX, "GET", "archived", archived);
    // It is there, and cannot be read.
    assert_eq!(fs::metadata(scene.mount.path("archived")).unwrap().len(), 4);
    assert_eq!(fails(fs::read(scene.mount.path("archived"))), libc::EACCES);
    let said = why("archived");
    assert!(
        said.contains("the object is archived: restore it"),
        "{said}"
    );

    scene.next(usize::MAX, "DELETE", "removed", denied());
    let removed = fs::remove_file(scene.mount.path("removed"));
    assert_eq!(fails(removed), libc::EACCES);
    let said = why("removed");
    assert!(said.contains("allow s3:DeleteObject there"), "{said}");
    assert_eq!(fs::read(scene.mount.path("removed")).unwrap(), b"text");

    scene.next(usize::MAX, "PUT", "written", denied());
    let said = close_of(place, &scene.mount.path("written"), "kept");
    assert_eq!(said, "EACCES");
    let said = why("written");
    assert!(said.contains("allow s3:PutObject there"), "{said}");
    let state = place.path("state");
    let kept = place.run(Command::new("grep").args(["-rlx", "kept"]).arg(state));
    assert_eq!(kept.stdout.lines().count(), 1, "{kept:?}");
}
