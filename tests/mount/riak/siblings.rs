//! Siblings: shown as conflict files, made by races, resolved by writes.

use super::names;
use crate::harness::{Mount, Place, eventually, trial};
use crate::redis::read;
use crate::riak::{Server, Setup};
use bucketfs::driver::{
    self, Driver, ErrorKind, GetOptions, ListRequest, Location, OpenOptions, Precondition,
    PutOptions,
};
use bucketfs::key::Key;
use libtest_mimic::Trial;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub fn trials() -> Vec<Trial> {
    let usual = |name: &str, test: fn(&Place)| trial(&[], name, test);
    vec![
        usual(
            "riak::siblings_are_conflict_files",
            siblings_are_conflict_files,
        ),
        usual(
            "riak::a_write_resolves_and_loses_nothing",
            a_write_resolves_and_loses_nothing,
        ),
        usual(
            "riak::listings_with_siblings_are_in_order_on_pages_of_any_length",
            listings_with_siblings_are_in_order_on_pages_of_any_length,
        ),
        usual(
            "riak::of_those_who_create_at_once_one_wins",
            of_those_who_create_at_once_one_wins,
        ),
        usual(
            "riak::of_those_who_write_at_once_all_are_kept",
            of_those_who_write_at_once_all_are_kept,
        ),
    ]
}

/// The conflict files of a name, and what is in them.
fn beside(mount: &Mount, dir: &str, name: &str) -> Vec<(String, String)> {
    let begin = format!("{name}.conflict-riak-");
    let files = names(mount, dir).into_iter();
    let files = files.filter(|file| file.starts_with(&begin));
    files
        .map(|file| {
            let path = Path::new(dir).join(&file);
            let text = read(mount, path.to_str().unwrap());
            (file, text)
        })
        .collect()
}

fn texts(beside: &[(String, String)]) -> Vec<&str> {
    let mut texts: Vec<_> = beside.iter().map(|(_, text)| text.as_str()).collect();
    texts.sort_unstable();
    texts
}

fn siblings_are_conflict_files(place: &Place) {
    let server = Server::start(Setup::default());
    let at = ["files", "b", "d/notes"];
    for text in ["one", "two", "three"] {
        server.put(at, &[], text, false);
    }
    server.put(["files", "b", "d/notes-too"], &[], "alone", false);
    let mount = place.mount("m", &server.url("/files"), &[], true);
    assert_eq!(read(&mount, "b/d/notes"), "three");
    assert_eq!(texts(&beside(&mount, "b/d", "notes")), ["one", "two"]);
    assert_eq!(names(&mount, "b/d").len(), 4);
    // Looking changes nothing.
    assert_eq!(server.texts(at), ["one", "three", "two"]);
    // Removing one leaves the others.
    let gone = beside(&mount, "b/d", "notes").remove(0);
    fs::remove_file(mount.path(&format!("b/d/{}", gone.0))).unwrap();
    assert_eq!(read(&mount, "b/d/notes"), "three");
    let left = beside(&mount, "b/d", "notes");
    assert_eq!(left.len(), 1);
    assert_ne!(left[0].1, gone.1);
    assert_eq!(server.texts(at), ["three"]);
    fs::remove_file(mount.path(&format!("b/d/{}", left[0].0))).unwrap();
    assert_eq!(names(&mount, "b/d"), ["notes", "notes-too"]);
    // One more, while it is mounted.
    server.put(at, &[], "four", false);
    eventually("the sibling is seen", || {
        texts(&beside(&mount, "b/d", "notes")) == ["three"]
    });
    assert_eq!(read(&mount, "b/d/notes"), "four");
    // All of it can go at once.
    fs::remove_dir_all(mount.path("b/d")).unwrap();
    assert!(!mount.path("b/d").exists());
    let left = names(&mount, "b");
    assert!(left.is_empty(), "{left:?}");
}

fn a_write_resolves_and_loses_nothing(place: &Place) {
    let server = Server::start(Setup::default());
    let at = ["files", "b", "n"];
    for text in ["one", "two", "three"] {
        server.put(at, &[], text, false);
    }
    let mount = place.mount("m", &server.url("/files/b"), &[], true);
    fs::write(mount.path("n"), "resolved").unwrap();
    assert_eq!(server.texts(at), ["resolved"]);
    let kept = beside(&mount, "", "n");
    assert_eq!(texts(&kept), ["one", "two"]);
    for (name, text) in &kept {
        assert_eq!(server.texts(["files", "b", name]), [text.as_str()]);
    }
    // A conflict file can be written and moved like any.
    server.put(at, &[], "another", false);
    eventually("the sibling is seen", || {
        beside(&mount, "", "n").len() == kept.len() + 1
    });
    let all = beside(&mount, "", "n").into_iter();
    let fresh = all.filter(|file| !kept.contains(file)).collect::<Vec<_>>();
    let [(name, text)] = fresh.as_slice() else {
        panic!("{fresh:?}");
    };
    assert_eq!(
        (text.as_str(), read(&mount, "n").as_str()),
        ("resolved", "another")
    );
    fs::write(mount.path(name), "merged").unwrap();
    assert_eq!(server.texts(["files", "b", name]), ["merged"]);
    assert_eq!(server.texts(at), ["another"]);
    fs::rename(mount.path(name), mount.path("n")).unwrap();
    assert_eq!(server.texts(at), ["merged"]);
    assert_eq!(beside(&mount, "", "n"), kept);
    // A delete of the file keeps what is beside it.
    server.put(at, &[], "last", false);
    eventually("the sibling is seen", || {
        beside(&mount, "", "n").len() == kept.len() + 1
    });
    fs::remove_file(mount.path("n")).unwrap();
    assert!(server.texts(at).is_empty());
    assert_eq!(texts(&beside(&mount, "", "n")), ["merged", "one", "two"]);
}

/// All keys of a listing, which are in order.
pub async fn pages(driver: &Arc<dyn Driver>, mut request: ListRequest) -> Vec<Key> {
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

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

pub async fn opened(url: &str) -> Arc<dyn Driver> {
    let location = Location::parse(url).unwrap();
    let opened = driver::open(&location, &OpenOptions::default()).await;
    opened.unwrap().driver
}

fn listings_with_siblings_are_in_order_on_pages_of_any_length(_: &Place) {
    let both = [true, false].map(|indexes| {
        Server::start(Setup {
            indexes,
            ..Setup::default()
        })
    });
    for server in both {
        let bucket = "a/b%";
        let names = [
            "n",
            "n-",
            "n.a",
            "n.conflict",
            "n.x",
            "n/1",
            "n/2",
            "n/3/4",
            "n0",
            "é",
            "日/x",
        ];
        for name in names {
            server.put(["files", bucket, name], &[], "first", false);
        }
        for name in ["n", "n/2", "é"] {
            server.put(["files", bucket, name], &[], "second", false);
            server.put(["files", bucket, name], &[], "third", false);
        }
        server.put(["files", "z", "gone/1"], &[], "x", false);
        server.put(["files", "z", "there"], &[], "x", false);
        runtime().block_on(async {
            let driver = opened(&server.url("/files")).await;
            let gone = Key::from("z/gone/1");
            driver.delete(&gone, Precondition::None).await.unwrap();
            let all = pages(&driver, ListRequest::flat(&Key::empty())).await;
            assert_eq!(all.len(), names.len() + 2 * 3 + 1, "{all:?}");
            assert_eq!(all.last(), Some(&Key::from("z/there")));
            for key in &all {
                let got = driver.get(key, GetOptions::default()).await.unwrap();
                let (info, bytes) = got.found().unwrap().collect().await.unwrap();
                assert_eq!(info.size, Some(bytes.len() as u64));
                assert_eq!(info.etag, driver.head(key).await.unwrap().etag, "{key:?}");
            }
            let below = Key::from("a%2Fb%25/");
            let folded = pages(&driver, ListRequest::directory(&below)).await;
            let shown: Vec<_> = folded.iter().map(Key::to_string).collect();
            assert_eq!(shown.len(), 7 + 2 * 2 + 2, "{shown:?}");
            assert!(shown.contains(&"a%2Fb%25/n/".to_owned()));
            let top = pages(&driver, ListRequest::directory(&Key::empty())).await;
            assert_eq!(top, ["a%2Fb%25/", "z/"].map(Key::from));
            for limit in [1, 2, 3, 5] {
                // Nothing is known from before.
                let driver = opened(&server.url("/files")).await;
                for (request, wanted) in [
                    (ListRequest::flat(&Key::empty()), &all),
                    (ListRequest::directory(&below), &folded),
                ] {
                    let request = ListRequest { limit, ..request };
                    assert_eq!(&pages(&driver, request).await, wanted, "{limit} at a time");
                }
            }
            for (at, key) in folded.iter().enumerate() {
                let behind = ListRequest {
                    start_after: Some(key.clone()),
                    ..ListRequest::directory(&below)
                };
                assert_eq!(pages(&driver, behind).await, folded[at + 1..], "{key:?}");
            }
        });
    }
}

pub fn when(precondition: Precondition) -> PutOptions {
    PutOptions {
        precondition,
        ..PutOptions::default()
    }
}

fn of_those_who_create_at_once_one_wins(_: &Place) {
    let server = Server::start(Setup::default());
    server.widen(Duration::from_millis(20));
    runtime().block_on(async {
        let drivers = [
            opened(&server.url("/files")).await,
            opened(&server.url("/files")).await,
        ];
        for round in 0..10 {
            let key = Key::from(format!("b/lock{round}"));
            let create = |at: usize| {
                let (driver, text) = (&drivers[at], ["one", "two"][at]);
                driver.put(&key, text.into(), when(Precondition::IfAbsent))
            };
            let (one, two) = tokio::join!(create(0), create(1));
            let (winner, lost) = match (one, two) {
                (Ok(_), Err(lost)) => ("one", lost),
                (Err(lost), Ok(_)) => ("two", lost),
                other => panic!("one of both had to win: {other:?}"),
            };
            assert_eq!(lost.kind(), ErrorKind::Exists, "{lost}");
            let name = format!("lock{round}");
            assert_eq!(server.texts(["files", "b", &name]), [winner]);
        }
        let all = pages(&drivers[0], ListRequest::flat(&Key::from("b/"))).await;
        assert_eq!(all.len(), 10, "{all:?}");
        // Of more of them at most one wins, whose bytes are there.
        for round in 0..5 {
            let key = Key::from(format!("many/lock{round}"));
            let create = |at: usize| {
                let put = when(Precondition::IfAbsent);
                drivers[at % 2].put(&key, format!("{at}").into_bytes().into(), put)
            };
            let outcomes = futures::future::join_all((0..6).map(create)).await;
            let won = outcomes
                .iter()
                .enumerate()
                .filter(|(_, outcome)| outcome.is_ok());
            let won: Vec<_> = won.map(|(at, _)| at.to_string()).collect();
            assert!(won.len() <= 1, "{won:?}");
            let files = pages(&drivers[1], ListRequest::flat(&key)).await;
            let mut texts = Vec::new();
            for file in &files {
                let got = drivers[1].get(file, GetOptions::default()).await.unwrap();
                let (_, bytes) = got.found().unwrap().collect().await.unwrap();
                texts.push(String::from_utf8(bytes.to_vec()).unwrap());
            }
            assert!(
                won.iter().all(|text| texts.contains(text)),
                "{won:?} of {texts:?}"
            );
            assert!(!texts.is_empty());
        }
    });
}

fn of_those_who_write_at_once_all_are_kept(place: &Place) {
    let server = Server::start(Setup::default());
    let at = ["files", "b", "n"];
    server.put(at, &[], "base", false);
    let mounts = ["m", "n"].map(|name| place.mount(name, &server.url("/files/b"), &[], false));
    for mount in &mounts {
        assert_eq!(read(mount, "n"), "base");
    }
    server.widen(Duration::from_millis(100));
    std::thread::scope(|scope| {
        for (at, mount) in mounts.iter().enumerate() {
            scope.spawn(move || fs::write(mount.path("n"), format!("text {at}")));
        }
    });
    server.widen(Duration::ZERO);
    let kept = || {
        let mount = &mounts[0];
        let all = names(mount, "").into_iter().map(|name| read(mount, &name));
        let mut all: Vec<_> = all.collect();
        all.sort();
        all
    };
    // Each text is in the file or in a conflict file, of the server's making or of a mount's.
    eventually("both are kept", || kept() == ["text 0", "text 1"]);
}
