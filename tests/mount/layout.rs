//! The objects layout of Redis, as its driver is called: what others do to its keys, and what it leaves there.

use crate::cuts::Passage;
use crate::harness::{Place, eventually, trial};
use crate::mongodb::RUNTIME;
use crate::redis::{ALLOWED, SERVER, Server};
use crate::rethinkdb::Cut;
use bucketfs::driver::{
    self, Body, Driver, ErrorKind, GetOptions, GetOutcome, Location, ObjectInfo, OpenOptions,
    Precondition, PutOptions, Result, Source,
};
use bucketfs::key::Key;
use bytes::Bytes;
use libtest_mimic::Trial;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

pub fn trials() -> Vec<Trial> {
    let usual = |name: &str, test: fn(&Place)| trial(&[ALLOWED, SERVER], name, test);
    vec![
        usual("layout::no_etag_comes_back", no_etag_comes_back),
        usual(
            "layout::a_refused_body_leaves_no_chunks",
            a_refused_body_leaves_no_chunks,
        ),
        usual(
            "layout::a_part_that_is_sent_again_leaves_no_chunks",
            a_part_that_is_sent_again_leaves_no_chunks,
        ),
        usual(
            "layout::a_cluster_is_sent_nothing_twice",
            a_cluster_is_sent_nothing_twice,
        ),
    ]
}

fn opened(url: &str) -> Arc<dyn Driver> {
    let location = Location::parse(url).unwrap();
    let options = OpenOptions::default();
    let opened = RUNTIME.block_on(driver::open(&location, &options));
    opened.unwrap().driver
}

fn put(
    driver: &Arc<dyn Driver>,
    key: &Key,
    body: impl Into<Body>,
    precondition: Precondition,
) -> Result<ObjectInfo> {
    let options = PutOptions {
        precondition,
        ..PutOptions::default()
    };
    RUNTIME.block_on(driver.put(key, body.into(), options))
}

fn text(driver: &Arc<dyn Driver>, key: &Key) -> Bytes {
    let got = async {
        let got = driver.get(key, GetOptions::default()).await.unwrap();
        got.found().unwrap().collect().await.unwrap().1
    };
    RUNTIME.block_on(got)
}

fn chunks(server: &Server) -> usize {
    let keys = server.ask(&["keys", "{bucketfs}:c:*"]);
    keys.lines().filter(|line| !line.is_empty()).count()
}

fn no_etag_comes_back(place: &Place) {
    let server = Server::start(place, &[]);
    let (driver, key) = (opened(&server.url("/0?layout=objects")), Key::from("k"));
    let any = Precondition::None;
    let mut known = vec![put(&driver, &key, "0", any.clone()).unwrap().etag];
    let meta = "{bucketfs}:meta";
    let befalls: [&[&str]; 3] = [
        &["flushdb"],
        // As a server comes back that has not kept the last writes.
        &["hset", meta, "version", "0"],
        &["hset", meta, "version", "1"],
    ];
    for (at, befalls) in befalls.iter().enumerate() {
        server.ask(befalls);
        let new = (at + 1).to_string();
        let etag = put(&driver, &key, new.clone().into_bytes(), any.clone())
            .unwrap()
            .etag;
        for old in &known {
            let options = GetOptions {
                if_none_match: Some(old.clone()),
                ..GetOptions::default()
            };
            let got = RUNTIME.block_on(driver.get(&key, options)).unwrap();
            assert!(matches!(got, GetOutcome::Found(_)), "{befalls:?}: {old:?}");
            let lost = put(&driver, &key, "lost", Precondition::IfMatch(old.clone()));
            assert_eq!(lost.unwrap_err().kind(), ErrorKind::Changed, "{befalls:?}");
        }
        assert_eq!(text(&driver, &key), new);
        known.push(etag);
    }
}

/// A body whose first bytes are read while something else happens.
struct Overtaken {
    len: u64,
    happens: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Source for Overtaken {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        if let Some(happens) = self.happens.lock().unwrap().take() {
            happens();
        }
        Ok(vec![1; (range.end - range.start) as usize].into())
    }
}

fn a_refused_body_leaves_no_chunks(place: &Place) {
    let server = Server::start(place, &[]);
    let url = server.url("/0?layout=objects");
    let (driver, other, key) = (opened(&url), opened(&url), Key::from("k"));
    let etag = put(&driver, &key, "old", Precondition::None).unwrap().etag;
    let body = Body::Source(Arc::new(Overtaken {
        len: 4 << 20,
        happens: Mutex::new(Some(Box::new(move || {
            let won = vec![2; 2 << 20];
            put(&other, &Key::from("k"), won, Precondition::None).unwrap();
        }))),
    }));
    let lost = put(&driver, &key, body, Precondition::IfMatch(etag));
    assert_eq!(lost.unwrap_err().kind(), ErrorKind::Changed);
    assert_eq!(chunks(&server), 2);
    assert_eq!(text(&driver, &key), vec![2; 2 << 20]);
}

fn a_part_that_is_sent_again_leaves_no_chunks(place: &Place) {
    let server = Server::start(place, &[]);
    let (driver, key) = (opened(&server.url("/0?layout=objects")), Key::from("k"));
    let uploaded = async {
        let upload = driver.upload(&key, PutOptions::default()).await.unwrap();
        let part = |byte, len| Body::from(vec![byte; len]);
        upload.part(1, part(1, 3 << 20)).await.unwrap();
        upload.part(1, part(2, 2 << 20)).await.unwrap();
        assert_eq!(chunks(&server), 2);
        upload.complete(Precondition::IfAbsent).await.unwrap();
        let late = upload.part(2, part(3, 1)).await;
        assert_eq!(late.unwrap_err().kind(), ErrorKind::NotFound);
    };
    RUNTIME.block_on(uploaded);
    assert_eq!(chunks(&server), 2);
    assert_eq!(text(&driver, &key), vec![2; 2 << 20]);
}

/// An exchange that is done twice is undone, and a delete that is done twice finds another version than
/// it asks for.
fn a_cluster_is_sent_nothing_twice(place: &Place) {
    let server = Server::start(place, &["--cluster-enabled", "yes"]);
    let passage = Passage::new(&format!("127.0.0.1:{}", server.port));
    // The client goes where the node says that it is.
    let port = passage.port.to_string();
    server.ask(&["config", "set", "cluster-announce-ip", "127.0.0.1"]);
    assert_eq!(
        server.ask(&["config", "set", "cluster-announce-port", &port]),
        "OK"
    );
    server.ask(&["cluster", "addslotsrange", "0", "16383"]);
    eventually("the cluster is up", || {
        server
            .ask(&["cluster", "info"])
            .contains("cluster_state:ok")
    });
    let url = format!("redis://127.0.0.1:{port}/0?layout=objects&cluster=yes");
    let (driver, any) = (opened(&url), Precondition::None);
    let [a, b, c] = ["a", "b", "c"].map(Key::from);
    let etags = [&a, &b, &c].map(|key| {
        let text = key.to_string().into_bytes();
        put(&driver, key, text, any.clone()).unwrap().etag
    });
    // The server has the scripts from now on.
    let swap = || RUNTIME.block_on(driver.exchange(&a, &b));
    swap().unwrap();
    RUNTIME.block_on(driver.delete(&c, any.clone())).unwrap();
    let lost = passage.during(Cut::After, "EVALSHA", swap);
    assert!(lost.unwrap_err().retryable());
    assert_eq!(
        (text(&driver, &a), text(&driver, &b)),
        ("a".into(), "b".into())
    );
    let [etag, ..] = etags;
    let removal = || RUNTIME.block_on(driver.delete(&a, Precondition::IfMatch(etag)));
    let lost = passage.during(Cut::After, "EVALSHA", removal);
    assert!(lost.unwrap_err().retryable());
    let gone = RUNTIME.block_on(driver.head(&a));
    assert_eq!(gone.unwrap_err().kind(), ErrorKind::NotFound);
}
