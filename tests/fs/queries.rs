//! Queries as directories: what they list, what a link leads to, and what they cost.

use crate::store::Plain;
use crate::world::*;
use bucketfs::driver::{Attributes, Driver, PutOptions};
use bucketfs::fs::{Attr, Kind, Lookup, ROOT, SetAttr};
use bucketfs::key::Key;
use std::sync::Arc;
use std::time::Duration;

const DOCUMENTS: &[(&str, &str)] = &[
    (
        "users/ada.json",
        r#"{"name": "Ada", "at": {"city": "London"}, "n": 1}"#,
    ),
    (
        "users/ben.json",
        r#"{"name": "Ben", "at": {"city": "London"}, "n": 2}"#,
    ),
    (
        "users/=1.5.json",
        r#"{"name": "Ada", "at": {"city": "Ulm"}}"#,
    ),
    ("top.json", r#"{"name": "Ada", "path": "/usr/bin"}"#),
    ("slash.json", r#"{"a/b": {"c": "d"}}"#),
    ("plain.txt", "name=Ada"),
    (".bucketfs/own", r#"{"name": "Ada"}"#),
];

async fn world() -> World {
    let world = World::memory();
    for (key, text) in DOCUMENTS {
        world.put(key, text).await;
    }
    world
}

async fn target(mount: &Mount, link: &str) -> Outcome<String> {
    let ino = mount.ino(link).await?;
    let target = mount
        .fs
        .readlink(ino)
        .await
        .map_err(|error| error.errno())?;
    Ok(String::from_utf8(target.to_vec()).unwrap())
}

/// The path that a link leads to, as the kernel goes.
fn followed(link: &str, target: &str) -> String {
    let (directory, _) = link.rsplit_once('/').unwrap();
    let mut path: Vec<&str> = directory.split('/').collect();
    for part in target.split('/') {
        match part {
            ".." => drop(path.pop().expect("it stays in the mount")),
            part => path.push(part),
        }
    }
    path.join("/")
}

fn last_error(mount: &Mount) -> (String, String, String) {
    let errors = mount.fs.status().errors;
    let error = errors.last().unwrap().clone();
    (error.path, error.errno, error.message)
}

/// What the edge does with an answer.
async fn reported(mount: &Mount, parent: u64, name: &[u8]) -> i32 {
    let error = mount.fs.lookup(parent, name).await.unwrap_err();
    mount.fs.report("lookup", parent, &error);
    error.errno()
}

#[tokio::test(start_paused = true)]
async fn terms_are_directories_and_what_matches_are_links() {
    let world = world().await;
    let mount = world.mount();
    for (query, wanted) in [
        ("", &[][..]),
        (
            "/name=Ada",
            &["top.json", "users%2F%3D1.5.json", "users%2Fada.json"],
        ),
        ("/name=Ada/at.city=London", &["users%2Fada.json"]),
        ("/at.city=London/name=Ada", &["users%2Fada.json"]),
        ("/n=2", &["users%2Fben.json"]),
        ("/n=\"2\"", &[]),
        ("/name=Cyd", &[]),
        ("/path=\"\\u002fusr\\u002fbin\"", &["top.json"]),
        ("/{\"a\\u002fb.c\": \"d\"}", &["slash.json"]),
        (
            "/{}",
            &[
                "slash.json",
                "top.json",
                "users%2F%3D1.5.json",
                "users%2Fada.json",
                "users%2Fben.json",
            ],
        ),
    ] {
        let found = mount.ls(&format!(".query{query}")).await.unwrap();
        assert_eq!(found, wanted, "{query}");
    }
    let link = ".query/name=Ada/at.city=London/users%2Fada.json";
    assert_eq!(
        target(&mount, link).await.unwrap(),
        "../../../users/ada.json"
    );
    let attr = mount.stat(link).await.unwrap();
    assert_eq!(
        (attr.kind, attr.mode, attr.size),
        (Kind::Symlink, 0o777, 23)
    );
    let path = followed(link, "../../../users/ada.json");
    assert_eq!(mount.cat(&path).await.unwrap(), DOCUMENTS[0].1);
    // Who may not read every document may not ask for any.
    let attr = mount.stat(".query/n=1").await.unwrap();
    assert_eq!(
        (attr.kind, attr.mode, attr.uid),
        (Kind::Directory, 0o500, 1)
    );
    // The next listing tells what there is then.
    world.put("users/cyd.json", "{\"n\": 2}").await;
    let found = mount.ls(".query/n=2").await.unwrap();
    assert_eq!(found, ["users%2Fben.json", "users%2Fcyd.json"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_before_a_query_is_used() {
    let world = world().await;
    let mount = world.mount();
    let plain = world.mount_with(|options| options.query = None, false);
    for mount in [&mount, &plain] {
        let top = mount.ls("").await.unwrap();
        assert_eq!(top, ["plain.txt", "slash.json", "top.json", "users"]);
        assert!(!mount.exists(".quer").await && !mount.exists("users/.query").await);
        assert!(mount.exists("users/ada.json").await);
    }
    assert_eq!(mount.cost(), plain.cost());
    // A complete listing says that the store has no such name.
    mount.ino(".query/name=Ada/at.city=London").await.unwrap();
    assert_eq!(mount.cost(), "");
    assert!(mount.ls(".query").await.unwrap().is_empty());
    assert_eq!(mount.cost(), "");
    later().await;
    let other = world.mount();
    other.ino(".query/name=Ada").await.unwrap();
    assert_eq!(
        other.cost(),
        "head 1, list 1",
        "whether the store has the name"
    );
    assert!(other.exists(".query/name=Ada/top.json").await);
    assert_eq!(other.cost(), "get 1");
    assert!(!other.exists(".query/name=Ada/slash.json").await);
    assert_eq!(other.cost(), "get 1");
    assert!(!other.exists(".query/name=Ada/missing").await);
    assert_eq!(other.cost(), "get 1");
    for name in ["a%2fb", "%~e", "50%"] {
        let path = format!(".query/name=Ada/{name}");
        assert!(!other.exists(&path).await, "{name}");
    }
    assert!(!other.exists(".query/top.json").await);
    assert!(!other.exists(".query/name=Ada/.bucketfs%2Fown").await);
    assert_eq!(other.cost(), "");
    other.ls(".query/name=Ada").await.unwrap();
    assert_eq!(
        other.cost(),
        "get 6, list 1",
        "each object is looked at once"
    );
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_no_term_is_refused_in_words() {
    let world = world().await;
    let mount = world.mount();
    let top = mount.ino(".query").await.unwrap();
    assert_eq!(reported(&mount, top, b"=x").await, libc::EINVAL);
    let why = "\"=x\" in \".query\": \"=x\" names no field; write FIELD=VALUE, such as name=ada or address.zip=1010";
    assert_eq!(
        last_error(&mount),
        (".query".into(), "EINVAL".into(), why.into())
    );
    assert_eq!(reported(&mount, top, b"{a").await, libc::EINVAL);
    assert!(last_error(&mount).2.contains("the query is no JSON object"));
    assert_eq!(reported(&mount, top, b"a=\xff").await, libc::EINVAL);
    let count = mount.fs.status().errors.len();
    // What programs look for everywhere.
    for name in [".git", "HEAD", ".hidden", "x%~f"] {
        assert!(!mount.exists(&format!(".query/{name}")).await);
        assert!(!mount.exists(&format!(".query/a=1/{name}")).await);
    }
    assert_eq!(mount.fs.status().errors.len(), count);
    let long = mount.look(top, &[b'a'; 256]).await;
    assert_eq!(long.unwrap_err(), libc::ENAMETOOLONG);
}

#[tokio::test(start_paused = true)]
async fn nothing_can_be_changed_there() {
    let world = world().await;
    let before = world.keys().await;
    let mount = world.mount();
    let query = mount.ino(".query/name=Ada").await.unwrap();
    let link = mount.ino(".query/name=Ada/top.json").await.unwrap();
    let errno = |error: bucketfs::fs::FsError| error.errno();
    for parent in [query, ROOT] {
        let name: &[u8] = if parent == ROOT { b".query" } else { b"new" };
        let fs = &mount.fs;
        let outcomes = [
            fs.mkdir(parent, name, 0o755, CALLER).await.map(drop),
            fs.symlink(parent, name, b"x", CALLER).await.map(drop),
            fs.mknod(parent, name, libc::S_IFREG | 0o644, 0, CALLER)
                .await
                .map(drop),
            fs.create(parent, name, 0o644, CREATE, CALLER)
                .await
                .map(drop),
            fs.create(parent, name, 0o644, EXCLUSIVE, CALLER)
                .await
                .map(drop),
            fs.unlink(parent, name).await,
            fs.rmdir(parent, name).await,
            fs.rename((parent, name), (ROOT, b"x"), 0).await,
            fs.rename((ROOT, b"top.json"), (parent, name), 0).await,
            fs.rename((ROOT, b"users"), (parent, name), 0).await,
            fs.rename((ROOT, b"top.json"), (parent, name), libc::RENAME_EXCHANGE)
                .await,
        ];
        for (at, outcome) in outcomes.into_iter().enumerate() {
            assert_eq!(outcome.map_err(errno), Err(libc::EROFS), "{at} of {name:?}");
        }
    }
    for ino in [query, link] {
        let fs = &mount.fs;
        let mode = SetAttr {
            mode: Some(0o777),
            ..SetAttr::default()
        };
        let outcomes = [
            fs.setattr(ino, mode, 0).await.map(drop),
            fs.setxattr(ino, b"user.a", b"b", 0).await,
            fs.removexattr(ino, b"user.a").await,
            fs.open(ino, WRITE, CALLER).await.map(drop),
        ];
        for (at, outcome) in outcomes.into_iter().enumerate() {
            assert_eq!(outcome.map_err(errno), Err(libc::EROFS), "{at}");
        }
        assert_eq!(
            fs.getxattr(ino, b"user.a").await.map_err(errno),
            Err(libc::ENODATA)
        );
        assert_eq!(fs.listxattr(ino).await.unwrap(), "");
        fs.fsyncdir(ino).await.unwrap();
    }
    assert_eq!(
        mount.unlink(".query/name=Ada/top.json").await,
        Err(libc::EROFS)
    );
    assert_eq!(mount.rmdir(".query").await, Err(libc::EROFS));
    assert_eq!(world.keys().await, before);
    // Below another directory the name is like any other.
    mount.mkdir("users/.query").await.unwrap();
    mount.save("users/.query/a=b", "x").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_the_store_has_under_the_name_is_shown() {
    let world = world().await;
    let without = world.mount_with(|options| options.query = None, false);
    assert!(!without.exists(".query").await);
    without.mkdir(".query").await.unwrap();
    without.save(".query/name=Ada", "mine").await.unwrap();
    let mount = world.mount();
    assert_eq!(mount.cat(".query/name=Ada").await.unwrap(), "mine");
    assert_eq!(mount.ls(".query").await.unwrap(), ["name=Ada"]);
    assert!(mount.ls("").await.unwrap().contains(&".query".into()));
    mount
        .rename(".query/name=Ada", "users/name=Ada")
        .await
        .unwrap();
    mount.rmdir(".query").await.unwrap();
    later().await;
    assert_eq!(mount.ls(".query/n=2").await.unwrap(), ["users%2Fben.json"]);
    // A file, which is replaced as programs replace files.
    world.put(".query", "theirs").await;
    later().await;
    assert_eq!(mount.cat(".query").await.unwrap(), "theirs");
    mount.save("new", "ours").await.unwrap();
    mount.rename("new", ".query").await.unwrap();
    assert_eq!(world.get(".query").await.unwrap(), "ours");
    mount.unlink(".query").await.unwrap();
    later().await;
    assert_eq!(mount.ls(".query/n=2").await.unwrap(), ["users%2Fben.json"]);
}

/// All links of a query, those in pseudo-directories too.
async fn links(mount: &Mount, query: &str) -> Vec<String> {
    let (mut found, mut pending) = (Vec::new(), vec![query.to_owned()]);
    while let Some(directory) = pending.pop() {
        let names = mount.ls(&directory).await.unwrap();
        for name in names {
            let path = format!("{directory}/{name}");
            match mount.stat(&path).await.unwrap() {
                Attr {
                    kind: Kind::Directory,
                    ..
                } => pending.push(path),
                _ => found.push(path),
            }
        }
    }
    found
}

#[tokio::test(start_paused = true)]
async fn every_key_has_a_link_that_leads_to_it() {
    let world = World::memory();
    let mut keys = [
        "a",
        "x//y",
        "/lead",
        "//x",
        "dots/.",
        "dots/..",
        "../up",
        "%~e",
        "q/%~e",
        "z%~f",
        "50%",
        "%2F",
        "a=b",
        "{x",
        "n{",
        "new\nline",
        "nul\0nul",
        "sp ace",
        "\u{fc}\u{1f600}",
        "beside",
        "beside/x",
    ]
    .map(String::from)
    .to_vec();
    keys.push("l".repeat(300));
    keys.push(format!("{}/{}", "m".repeat(600), "n".repeat(256)));
    keys.push("d/".repeat(200) + "e");
    keys.push("d/".repeat(200) + "f");
    for key in &keys {
        world
            .put(key, &serde_json::json!({"key": key, "n": 1}).to_string())
            .await;
    }
    let mount = world.mount();
    mount.ls("").await.unwrap();
    let mut found = Vec::new();
    for link in links(&mount, ".query/n=1").await {
        let to = followed(&link, &target(&mount, &link).await.unwrap());
        let text = mount
            .cat(&to)
            .await
            .unwrap_or_else(|error| panic!("{link} to {to}: {error}"));
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        found.push(document["key"].as_str().unwrap().to_owned());
    }
    found.sort();
    keys.sort();
    assert_eq!(found, keys);
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_is_gone() {
    let world = world().await;
    let mount = world.mount();
    for _ in 0..3 {
        for link in links(&mount, ".query/{}").await {
            mount.stat(&link).await.unwrap();
        }
        mount.ls(".query/name=Ada/n=1").await.unwrap();
        assert!(mount.fs.status().inodes > 8);
        mount.forget_all();
        assert_eq!(
            (mount.fs.status().inodes, mount.fs.status().handles),
            (1, 0)
        );
    }
    let gone = mount.fs.readlink(bucketfs::fs::ROOT.wrapping_sub(2)).await;
    assert_eq!(gone.unwrap_err().errno(), libc::ESTALE);
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_is_left_ends_its_search() {
    let world = World::memory();
    for n in 0..3000 {
        world.put(&format!("{n:04}"), "{\"n\": 1}").await;
    }
    let mount = world.mount();
    let query = mount.ino(".query/n=1").await.unwrap();
    mount.cost();
    let handle = mount.fs.opendir(query).unwrap();
    assert_eq!(
        mount.fs.readdir(handle, 0).await.unwrap().len(),
        2,
        "dots come at once"
    );
    assert!(!mount.fs.readdir(handle, 2).await.unwrap().is_empty());
    // Who still waits, for a process that was killed, is let go.
    let held = mount.late.hold_lists();
    mount.fs.releasedir(handle).unwrap();
    let second = mount.fs.opendir(query).unwrap();
    let waiting = {
        let fs = mount.fs.clone();
        tokio::spawn(async move { fs.readdir(second, 2).await.map_err(|error| error.errno()) })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished());
    mount.fs.releasedir(second).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err(), libc::EBADF);
    drop(held);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let cost = mount.cost();
    let gets = cost
        .split(", ")
        .find_map(|part| part.strip_prefix("get "))
        .unwrap();
    assert!(gets.parse::<u64>().unwrap() < 200, "{cost}");
    assert_eq!(mount.fs.status().handles, 0);
}

#[tokio::test(start_paused = true)]
async fn offsets_can_be_gone_back_to() {
    let world = World::memory();
    for n in 0..300 {
        world.put(&format!("{n:04}"), "{\"n\": 1}").await;
    }
    let mount = world.mount();
    let query = mount.ino(".query/n=1").await.unwrap();
    let handle = mount.fs.opendir(query).unwrap();
    let read = async |offset: u64| mount.fs.readdir(handle, offset).await.unwrap();
    let (mut all, mut offset) = (Vec::new(), 0);
    loop {
        let batch = read(offset).await;
        // A reader whose buffer was full asks again for what did not fit.
        let Some(taken) = batch.iter().take(7).next_back() else {
            break;
        };
        offset = taken.next;
        all.extend(batch.into_iter().take(7).map(|entry| entry.name));
    }
    assert_eq!(all.len(), 302);
    for at in [300_usize, 0, 5, 299, 150, 302, 1] {
        let entries = read(at as u64).await;
        let first = entries.first().map(|entry| &entry.name);
        assert_eq!(first, all.get(at), "{at}");
    }
    assert!(read(1_000_000).await.is_empty());
    mount.fs.releasedir(handle).unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_looked_at_is_told_at_the_end() {
    let world = world().await;
    let mount = world.mount();
    let query = mount.ino(".query/name=Ada").await.unwrap();
    let handle = mount.fs.opendir(query).unwrap();
    let read = async |mut offset: u64| {
        let mut names = Vec::new();
        loop {
            match mount.fs.readdir(handle, offset).await {
                Ok(batch) if batch.is_empty() => return (names, None),
                Ok(batch) => {
                    offset = batch.last().unwrap().next;
                    names.extend(batch.into_iter().map(|entry| entry.name));
                }
                Err(error) => return (names, Some(error)),
            }
        }
    };
    mount.fault.set("get:error=denied@2").unwrap();
    let (names, error) = read(0).await;
    assert_eq!(names.len(), 2 + 3, "{names:?}");
    let error = error.unwrap();
    assert_eq!(error.errno(), libc::EACCES);
    let why = error.message().unwrap();
    assert!(
        why.starts_with("\".query/name=Ada\": 1 objects could not be looked at, and may match: "),
        "{why}"
    );
    // A store that is away breaks the listing off, and who reads on goes on.
    mount.fault.set("list:error=unreachable@1").unwrap();
    let (names, error) = read(0).await;
    assert_eq!((names.len(), error.unwrap().errno()), (2, libc::EIO));
    let (names, error) = read(2).await;
    assert_eq!((names.len(), error), (3, None));
    mount.fs.releasedir(handle).unwrap();
}

#[tokio::test(start_paused = true)]
async fn only_documents_are_found() {
    let world = world().await;
    let mount = world.mount_local("*.swp");
    let link = PutOptions {
        attributes: Attributes {
            mode: Some(libc::S_IFLNK | 0o777),
            ..Attributes::default()
        },
        ..PutOptions::default()
    };
    let body = || b"{\"name\": \"Ada\"}".to_vec().into();
    world
        .raw()
        .put(&Key::from("link"), body(), link)
        .await
        .unwrap();
    mount.save("x.swp", "{\"name\": \"Ada\"}").await.unwrap();
    let found = mount.ls(".query/name=Ada").await.unwrap();
    assert_eq!(
        found,
        ["top.json", "users%2F%3D1.5.json", "users%2Fada.json"]
    );
    for none in ["link", "x.swp", "users", "users%2F", "plain.txt"] {
        assert!(
            !mount.exists(&format!(".query/name=Ada/{none}")).await,
            "{none}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn links_are_believed_no_longer_than_names_are() {
    let world = World::watched();
    world.put("a", "{\"n\": 1}").await;
    let mount = world.mount();
    let query = mount.ino(".query/n=1").await.unwrap();
    let Lookup::Found(entry) = mount.fs.lookup(query, b"a").await.unwrap() else {
        panic!("no link");
    };
    assert_eq!(
        entry.ttl,
        Duration::from_secs(1),
        "no feed tells what matches"
    );
    mount.fs.forget(entry.attr.ino, 1);
    let Lookup::Absent(ttl) = mount.fs.lookup(query, b"b").await.unwrap() else {
        panic!("a link");
    };
    assert_eq!(ttl, Duration::from_secs(1));
    let store: Arc<dyn Driver> = Arc::new(Plain::memory());
    assert!(!store.capabilities().find, "so objects were looked at here");
}
