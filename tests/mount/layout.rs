//! The objects layout of Redis, as its driver is called: what others do to its keys, and what it leaves there.

use crate::harness::{Place, trial};
use crate::mongodb::RUNTIME;
use crate::redis::{ALLOWED, SERVER, Server};
use bucketfs::driver::{
    self, Body, Driver, ErrorKind, GetOptions, GetOutcome, Location, ObjectInfo, OpenOptions,
    Precondition, PutOptions, Result,
};
use bucketfs::key::Key;
use bytes::Bytes;
use libtest_mimic::Trial;
use std::sync::Arc;

pub fn trials() -> Vec<Trial> {
    let usual = |name: &str, test: fn(&Place)| trial(&[ALLOWED, SERVER], name, test);
    vec![usual("layout::no_etag_comes_back", no_etag_comes_back)]
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
