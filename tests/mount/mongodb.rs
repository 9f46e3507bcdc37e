//! What programs keep in MongoDB, as directories of documents.

use crate::cuts::Passage;
use crate::harness::{Need, PYTHON, Place, Variable, eventually, fails, trial};
use crate::redis::{read, refusal};
use ::mongodb::Client;
use ::mongodb::bson::oid::ObjectId;
use ::mongodb::bson::{Bson, DateTime, Decimal128, Document, Uuid, doc};
use bucketfs::clock;
use bucketfs::driver::{self, Driver, GetOptions, ListRequest, Location, OpenOptions};
use bucketfs::key::Key;
use libtest_mimic::Trial;
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::sync::{Arc, LazyLock};

pub const ADDRESS: &str = "BUCKETFS_TEST_MONGODB";
const SERVER: Need = Variable(ADDRESS);

/// The client's connections belong to it.
pub static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());

pub fn trials() -> Vec<Trial> {
    let usual = |name: &str, test: fn(&Place)| trial(&[SERVER], name, test);
    let python = |name: &str, test: fn(&Place)| trial(&[SERVER, PYTHON], name, test);
    vec![
        usual(
            "mongodb::the_session_of_the_readme_is_true",
            the_session_of_the_readme_is_true,
        ),
        usual(
            "mongodb::every_id_has_a_name_and_listings_are_in_order",
            every_id_has_a_name_and_listings_are_in_order,
        ),
        usual("mongodb::edits_keep_types", edits_keep_types),
        usual(
            "mongodb::a_document_that_an_editor_moved_away_keeps_types",
            a_document_that_an_editor_moved_away_keeps_types,
        ),
        python(
            "mongodb::edits_of_different_fields_are_both_kept",
            edits_of_different_fields_are_both_kept,
        ),
        python(
            "mongodb::a_field_that_became_a_list_is_not_what_it_was",
            a_field_that_became_a_list_is_not_what_it_was,
        ),
        python(
            "mongodb::what_is_no_document_is_refused_and_kept",
            what_is_no_document_is_refused_and_kept,
        ),
        usual(
            "mongodb::a_server_is_refused_in_words",
            a_server_is_refused_in_words,
        ),
        usual(
            "mongodb::cut_connections_lose_nothing",
            cut_connections_lose_nothing,
        ),
        usual(
            "mongodb::databases_are_directories",
            databases_are_directories,
        ),
    ]
}

/// A database of its own, and another program's way to it.
pub struct Database {
    pub name: String,
    pub client: Client,
}

fn server() -> String {
    std::env::var(ADDRESS).unwrap()
}

impl Database {
    pub fn new() -> Self {
        let client = RUNTIME.block_on(Client::with_uri_str(server())).unwrap();
        let name = format!("t{:016x}", clock::random());
        Database { name, client }
    }

    pub fn url(&self, rest: &str) -> String {
        format!("{}/{}{rest}", server(), self.name)
    }

    pub fn collection(&self, name: &str) -> ::mongodb::Collection<Document> {
        self.client.database(&self.name).collection(name)
    }

    fn insert(&self, name: &str, documents: Vec<Document>) {
        let all = self.collection(name);
        RUNTIME
            .block_on(async { all.insert_many(documents).await })
            .unwrap();
    }

    pub fn find(&self, name: &str, id: impl Into<Bson>) -> Option<Document> {
        let (all, id) = (self.collection(name), id.into());
        RUNTIME
            .block_on(async { all.find_one(doc! { "_id": id }).await })
            .unwrap()
    }

    fn set(&self, name: &str, id: &str, fields: Document) {
        let all = self.collection(name);
        let set = async {
            all.update_one(doc! { "_id": id }, doc! { "$set": fields })
                .await
        };
        assert_eq!(RUNTIME.block_on(set).unwrap().matched_count, 1);
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let dropped = async { self.client.database(&self.name).drop().await };
        let _ = RUNTIME.block_on(dropped);
    }
}

fn the_session_of_the_readme_is_true(place: &Place) {
    let database = Database::new();
    place.session(
        "mongodb",
        &[("mongodb://127.0.0.1/shop", &database.url(""))],
    );
    let ada = doc! { "_id": "ada", "name": "Ada", "born": 1815 };
    assert_eq!(database.find("users", "ada"), Some(ada));
}

fn every_id_has_a_name_and_listings_are_in_order(_: &Place) {
    let database = Database::new();
    let texts = [
        "a",
        "a-",
        "a-b",
        "a-.json",
        "a.",
        "a.b",
        "a.z",
        "a.json",
        "a b",
        "a0",
        "ab",
        "ab-",
        "abc",
        "A",
        "é",
        "é!",
        "日本",
        "🪣",
        "\u{ff01}",
        "🪣-",
        "42",
        "-1",
        "042",
        "",
        "/",
        "a/b",
        "=",
        "=x",
        "~",
        "\u{7}",
        "507f1f77bcf86cd799439011",
        "507F1F77BCF86CD799439011",
        "507f1f77bcf86cd79943901",
        "x.json",
    ];
    let mut ids: Vec<Bson> = texts.map(Bson::from).to_vec();
    ids.extend((-12..=112).map(Bson::Int32));
    ids.extend([i64::MIN, -(1 << 40), 1 << 40, i64::MAX].map(Bson::Int64));
    ids.extend([-1000, 1000, 5005, 99_999].map(|n| Bson::Double(f64::from(n))));
    // Many fractions beside few whole numbers.
    ids.extend((1..=9).map(|n| Bson::Double(f64::from(n) / 10.0)));
    ids.extend([-1.5, 1e300].map(Bson::Double));
    ids.extend((0..12).map(|n| Bson::from(ObjectId::from_bytes([n * 21; 12]))));
    ids.extend((0..3).map(|n| Bson::from(DateTime::from_millis(n * 1_000_000_000))));
    ids.extend((0..3).map(|n| Bson::from(Uuid::from_bytes([n; 16]))));
    ids.extend([
        Bson::Boolean(true),
        Bson::Null,
        Bson::from(doc! { "b": 1, "a": "x/y" }),
    ]);
    let documents = ids.iter().map(|id| doc! { "_id": id.clone(), "size": 1 });
    database.insert("c", documents.collect());
    // The least and the greatest number need not be whole.
    let [least, greatest] = ["0.5", "7.5"].map(|n| n.parse::<Decimal128>().unwrap());
    let few = [least.into(), Bson::Int32(1), greatest.into()];
    database.insert("d", few.map(|id| doc! { "_id": id }).to_vec());
    RUNTIME.block_on(async {
        let location = Location::parse(&database.url("")).unwrap();
        let opened = driver::open(&location, &OpenOptions::default())
            .await
            .unwrap();
        let all = pages(&opened.driver, ListRequest::flat(&Key::from("d/"))).await;
        assert!(all.contains(&Key::from("d/1.json")), "{all:?}");
        let all = pages(&opened.driver, ListRequest::flat(&Key::from("c/"))).await;
        let files = &all[1..];
        assert_eq!((all[0].to_str(), files.len()), (Some("c/"), ids.len()));
        let mut found = BTreeMap::new();
        for key in files {
            let got = opened.driver.get(key, GetOptions::default()).await.unwrap();
            let (info, text) = got.found().unwrap().collect().await.unwrap();
            assert_eq!(info.size, Some(text.len() as u64));
            assert!(text.starts_with(b"{\n  \"_id\": "));
            assert!(
                found.insert(text, key).is_none(),
                "{key:?} is another's text"
            );
        }
        for limit in [1, 7] {
            let request = ListRequest {
                limit,
                ..ListRequest::flat(&Key::from("c/"))
            };
            assert_eq!(
                pages(&opened.driver, request).await,
                all,
                "{limit} at a time"
            );
        }
        for (at, key) in files.iter().enumerate() {
            let begins = |tail: &[u8]| ListRequest {
                start_after: Some(key.join(tail)),
                ..ListRequest::flat(&Key::from("c/"))
            };
            assert_eq!(
                pages(&opened.driver, begins(b"")).await,
                files[at + 1..],
                "behind {key:?}"
            );
            let cut = ListRequest::flat(&Key::from(&key.as_bytes()[..key.len() - 6]));
            let below = all
                .iter()
                .filter(|other| other.starts_with(&cut.prefix))
                .cloned();
            assert_eq!(
                pages(&opened.driver, cut.clone()).await,
                below.collect::<Vec<_>>(),
                "{cut:?}"
            );
        }
    });
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

fn edits_keep_types(place: &Place) {
    let database = Database::new();
    let decimal: Decimal128 = "1.10".parse().unwrap();
    let old = doc! {
        "_id": "x", "long": 5_i64, "double": 2.0, "decimal": decimal,
        "date": DateTime::from_millis(1_500), "list": [1_i64, 2_i64], "within": { "a": 7_i64, "b": "x" },
    };
    database.insert("c", vec![old.clone()]);
    let mount = place.mount("m", &database.url("/c"), &[], true);
    let text = read(&mount, "x.json");
    assert!(
        text.contains("\n  \"date\": {\"$date\": \"1970-01-01T00:00:01.5Z\"},\n"),
        "{text}"
    );
    assert_eq!(
        fs::metadata(mount.path("x.json")).unwrap().len(),
        text.len() as u64
    );
    let edited = text
        .replace("\"long\": 5", "\"long\": 6")
        .replace("\"x\"\n", "\"y\"\n");
    fs::write(mount.path("x.json"), edited).unwrap();
    let mut new = old;
    new.insert("long", 6_i64);
    new.insert("within", doc! { "a": 7_i64, "b": "y" });
    assert_eq!(database.find("c", "x"), Some(new));
    // A new file has the _id of its name, whatever type that is.
    fs::write(mount.path("507f1f77bcf86cd799439011.json"), "{\"a\": 1}").unwrap();
    let id = ObjectId::parse_str("507f1f77bcf86cd799439011").unwrap();
    assert_eq!(database.find("c", id), Some(doc! { "_id": id, "a": 1 }));
    fs::write(mount.path("42.json"), "{\"_id\": 42}").unwrap();
    assert_eq!(database.find("c", 42), Some(doc! { "_id": 42 }));
    fs::remove_file(mount.path("42.json")).unwrap();
    assert_eq!(database.find("c", 42), None);
    let exists = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(mount.path("x.json"));
    assert_eq!(fails(exists), libc::EEXIST);
}

/// Editors make the old file their backup, and write a new one.
fn a_document_that_an_editor_moved_away_keeps_types(place: &Place) {
    let database = Database::new();
    let old = doc! { "_id": "x", "long": 5_i64, "double": 2.0, "n": 1_i64 };
    database.insert("c", vec![old.clone()]);
    let mount = place.mount("m", &database.url("/c"), &["--local", "*~"], true);
    let text = read(&mount, "x.json");
    fs::rename(mount.path("x.json"), mount.path("x.json~")).unwrap();
    assert_eq!(database.find("c", "x"), None);
    let edited = text.replace("\"n\": 1", "\"n\": 2");
    fs::write(mount.path("x.json"), edited).unwrap();
    let mut new = old;
    new.insert("n", 2_i64);
    assert_eq!(database.find("c", "x"), Some(new));
    assert_eq!(read(&mount, "x.json~"), text);
}

/// Writes a file and says what close says.
const SAVING: &str = "
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
data = os.fsencode(sys.argv[2])
while data:
    data = data[os.write(fd, data):]
say(attempt(os.close, fd))";

/// Neither of two mounts hears of the other: each edits what it has read.
const DEAF: [&str; 6] = [
    "--metadata-ttl",
    "1h",
    "--consistency",
    "ttl",
    "--fault",
    "watch:error=unavailable",
];

fn edits_of_different_fields_are_both_kept(place: &Place) {
    let database = Database::new();
    let old = doc! { "_id": "x", "a": 1, "b": 2, "c": { "d": 3, "e": 4 } };
    database.insert("c", vec![old]);
    let mounts = ["m", "n"].map(|name| place.mount(name, &database.url("/c"), &DEAF, false));
    let text = read(&mounts[0], "x.json");
    assert_eq!(read(&mounts[1], "x.json"), text);
    let save = |at: usize, from: &str, to: &str| {
        let text = text.replace(from, to);
        place.script(
            SAVING,
            &[&mounts[at].path("x.json"), std::path::Path::new(&text)],
        )
    };
    assert_eq!(save(0, "\"d\": 3", "\"d\": 33"), "OK");
    assert_eq!(save(1, "\"e\": 4", "\"e\": 44"), "OK");
    let both = doc! { "_id": "x", "a": 1, "b": 2, "c": { "d": 33, "e": 44 } };
    assert_eq!(database.find("c", "x"), Some(both));
    // The same field is a conflict, and the loser's text is kept.
    database.set("c", "x", doc! { "a": "theirs" });
    assert_eq!(save(1, "\"a\": 1", "\"a\": \"ours\""), "ESTALE");
    let theirs = Bson::from("theirs");
    assert_eq!(database.find("c", "x").unwrap().get("a"), Some(&theirs));
    let status = mounts[1].status().to_string();
    assert!(status.contains("kept/unsent"), "{status}");
}

/// A server takes what is said of a field for said of the items of a list.
fn a_field_that_became_a_list_is_not_what_it_was(place: &Place) {
    let database = Database::new();
    let list = |items: &[i32]| Bson::from(items.to_vec());
    let rows: [(&str, Bson, Bson, &str); 7] = [
        ("item", Bson::from(5), list(&[5, 6]), "7"),
        ("null", Bson::Null, Bson::Array(vec![Bson::Null]), "7"),
        (
            "object",
            doc! { "c": 1, "d": 1 }.into(),
            Bson::Array(vec![doc! { "c": 1, "d": 1 }.into()]),
            "{\"d\": 1}",
        ),
        (
            "added",
            doc! { "c": 1 }.into(),
            Bson::Array(vec![]),
            "{\"c\": 1, \"d\": 1}",
        ),
        (
            "list",
            list(&[1, 2]),
            Bson::Array(vec![list(&[1, 2]), 3.into()]),
            "[7]",
        ),
        (
            "deep",
            Bson::Array(vec![list(&[1, 2])]),
            Bson::Array(vec![Bson::Array(vec![list(&[1, 2])])]),
            "[7]",
        ),
        // Nor is one what it was in which another is to be made, and which is gone.
        (
            "gone",
            doc! { "c": 1 }.into(),
            Bson::from("no object"),
            "{\"c\": 1, \"d\": 1}",
        ),
    ];
    let before = rows.iter().flat_map(|(id, old, ..)| {
        let same = format!("{id}2");
        [
            doc! { "_id": *id, "v": old },
            doc! { "_id": same, "v": old },
        ]
    });
    database.insert("c", before.collect());
    let mount = place.mount("m", &database.url("/c"), &DEAF, false);
    let save = |id: &str, mine: &str| {
        let (name, text) = (format!("{id}.json"), format!("{{\"v\": {mine}}}"));
        place.script(SAVING, &[&mount.path(&name), std::path::Path::new(&text)])
    };
    for (id, old, theirs, mine) in &rows {
        read(&mount, &format!("{id}.json"));
        database.set("c", id, doc! { "v": theirs });
        assert_eq!(save(id, mine), "ESTALE", "{id}");
        let now = database.find("c", *id);
        assert_eq!(now, Some(doc! { "_id": *id, "v": theirs }), "{id}");
        // And where nobody changes it, it is.
        let same = format!("{id}2");
        read(&mount, &format!("{same}.json"));
        assert_eq!(save(&same, mine), "OK", "{same}");
        assert_ne!(
            database.find("c", same.as_str()).unwrap().get("v"),
            Some(old)
        );
    }
}

fn what_is_no_document_is_refused_and_kept(place: &Place) {
    let database = Database::new();
    let old = doc! { "_id": "x", "a": 1, "b.c": 2 };
    database.insert("c", vec![old.clone()]);
    let mount = place.mount("m", &database.url("/c"), &[], false);
    let save = |name: &str, text: &str| {
        place.script(SAVING, &[&mount.path(name), std::path::Path::new(text)])
    };
    for (name, text, errno, why) in [
        ("x.json", "{\"a\": 1,\n  b}", "EINVAL", "line 2 column 3"),
        ("x.json", "[1]", "EINVAL", "a document is an object"),
        ("x.json", "{\"_id\": 1}", "EINVAL", "its _id belongs into"),
        (
            "x.json",
            "{\"a\": 1, \"b.c\": 3}",
            "EINVAL",
            "cannot be changed",
        ),
        (
            "x.json",
            "{\"a\": {\"$oid\": 1}}",
            "EINVAL",
            "this is no $oid",
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
    let binary = "
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.write(fd, b'{\"a\": \"\\xff\"}')
say(attempt(os.close, fd))";
    assert_eq!(
        place.script(binary, &[&mount.path("binary.json")]),
        "EINVAL"
    );
    assert!(mount.status().to_string().contains("not UTF-8 from byte 7"));
    assert_eq!(database.find("c", "x"), Some(old));
}

fn a_server_is_refused_in_words(place: &Place) {
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
    let at = server().replace("mongodb://", "");
    for (url, code, why) in [
        (
            format!("mongodb://me:geheim@{at}/x"),
            4,
            "takes neither this user nor this password",
        ),
        (
            format!("mongodb://127.0.0.1:{closed}/x"),
            3,
            "cannot reach 127.0.0.1",
        ),
        (
            format!("mongodb://127.0.0.1:{port}/x"),
            3,
            "does not speak as MongoDB does",
        ),
        (format!("mongodb://{at}/x?tls=true"), 3, "cannot reach"),
        (format!("mongodb://{at}/a.b"), 2, "cannot be the name"),
    ] {
        let said = refusal(place, &url, &[]);
        assert!(said.stderr.contains(why), "{url}: {said:?}");
        assert_eq!(said.code, Some(code), "{url}: {said:?}");
        assert!(!said.stderr.contains("geheim"));
    }
}

/// Numbers are counted up while connections are cut; what was acknowledged is never lost.
fn cut_connections_lose_nothing(place: &Place) {
    let database = Database::new();
    let passage = Passage::new(server().trim_start_matches("mongodb://"));
    database.insert("c", vec![doc! { "_id": "n", "count": 0 }]);
    let url = format!("mongodb://127.0.0.1:{}/{}/c", passage.port, database.name);
    let mount = place.mount("m", &url, &[], false);
    let mut acknowledged = 0;
    for number in 1..=60 {
        if number % 6 == 0 {
            passage.cut();
        }
        let text = format!("{{\"count\": {number}}}");
        if fs::write(mount.path("n.json"), text).is_ok() {
            acknowledged = number;
        }
    }
    eventually("everything is sent", || mount.number("dirty_files") == 0);
    let count = database.find("c", "n").unwrap().get_i32("count").unwrap();
    assert!(count >= acknowledged, "{count} of {acknowledged}");
    passage.cut();
    assert_eq!(
        read(&mount, "n.json"),
        format!("{{\n  \"_id\": \"n\",\n  \"count\": {count}\n}}\n")
    );
}

fn databases_are_directories(place: &Place) {
    let database = Database::new();
    database.insert("c", vec![doc! { "_id": "x" }]);
    let mount = place.mount("m", &server(), &[], true);
    let there = format!("{}/c/x.json", database.name);
    assert_eq!(read(&mount, &there), "{\n  \"_id\": \"x\"\n}\n");
    let made = format!("{}/made", database.name);
    fs::create_dir(mount.path(&made)).unwrap();
    assert_eq!(fails(fs::create_dir(mount.path(&made))), libc::EEXIST);
    assert_eq!(fails(fs::remove_dir(mount.path(&made))), libc::EACCES);
    let mut names: Vec<_> = fs::read_dir(mount.path(&database.name))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["c", "made"]);
    assert_eq!(
        fails(fs::metadata(mount.path(&format!("{}/none", database.name)))),
        libc::ENOENT
    );
}
