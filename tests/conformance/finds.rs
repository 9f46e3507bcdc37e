//! What is found: by the store where it can look, and by looking at each object everywhere.

use crate::fixture::{Fixture, Skipped, Store, cases, key, read};
use crate::stores::{MONGODB, RETHINKDB};
use bucketfs::clock;
use bucketfs::driver::memory::Memory;
use bucketfs::driver::mirror::Mirror;
use bucketfs::driver::tier::Tier;
use bucketfs::driver::{
    self, Body, Driver, ErrorKind, Filter, GetOptions, Location, Match, OpenOptions, Opened,
    Precondition, PutOptions, Query,
};
use bucketfs::find::{self, Event, Search};
use bucketfs::key::Key;
use bucketfs::layer::{FaultPlan, LayerOptions, Layered, stack};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

cases! {
    finds_of_values_are_what_the_model_says, finds_within_are_what_the_model_says,
    finds_of_ids_and_of_nothing_are_what_the_model_says, finds_come_in_pages, what_was_found_is_removed_as_it_was,
    new_matches_are_told_as_they_come, hidden_objects_are_not_found,
}

/// Members of documents, without their braces.
const DOCUMENTS: &[(&str, &str)] = &[
    (
        "ada",
        r#""name": "ada", "age": 36, "on": true, "tags": ["x", "y"], "at": {"city": "ulm", "zip": 89073}"#,
    ),
    (
        "ben",
        r#""name": "ben", "age": 36.0, "on": false, "tags": [], "at": {"zip": 89073, "city": "ulm"}"#,
    ),
    (
        "cyd",
        r#""name": "cyd", "age": "36", "tags": "x", "at": null"#,
    ),
    (
        "dan",
        r#""name": "dan", "age": [36], "tags": {"0": "x", "1": "y"}, "at": [{"city": "ulm"}], "deep": {"er": {"still": 1.5}}"#,
    ),
    (
        "eve",
        r#""name": "eve \"ü\" \\ ", "age": 9007199254740993, "big": 9007199254740992.0, "none": {}, "d": {"$date": "2026-01-01T00:00:00Z"}"#,
    ),
    ("=1.5", r#""name": "ada", "n": -7"#),
    ("42", r#""name": "ben", "n": 42"#),
    ("-7", r#""name": "ada", "n": 0"#),
    ("507f1f77bcf86cd799439011", r#""name": "oid""#),
];

const VALUES: &[&str] = &[
    "{}",
    r#"{"name": "ada"}"#,
    r#"{"name": "eve \"ü\" \\ "}"#,
    r#"{"age": 36}"#,
    r#"{"age": 36.0}"#,
    r#"{"age": "36"}"#,
    r#"{"age": [36]}"#,
    r#"{"age": 9007199254740993}"#,
    r#"{"age": 9007199254740992}"#,
    r#"{"big": 9007199254740992}"#,
    r#"{"on": true}"#,
    r#"{"on": false, "name": "ben"}"#,
    r#"{"on": false, "name": "ada"}"#,
    r#"{"at": null}"#,
];

const WITHIN: &[&str] = &[
    r#"{"at.city": "ulm"}"#,
    r#"{"at.0.city": "ulm"}"#,
    r#"{"at.zip": 89073, "at.city": "ulm", "age": 36}"#,
    r#"{"at": {"zip": 89073, "city": "ulm"}}"#,
    r#"{"at": {"city": "ulm"}}"#,
    r#"{"at": [{"city": "ulm"}]}"#,
    r#"{"tags": []}"#,
    r#"{"tags": ["x", "y"]}"#,
    r#"{"tags": "x"}"#,
    r#"{"tags.1": "y"}"#,
    r#"{"deep.er.still": 1.5}"#,
    r#"{"deep.er": {"still": 1.5}}"#,
    r#"{"none": {}}"#,
    r#"{"d": {"$date": "2026-01-01T00:00:00Z"}}"#,
];

const OTHERS: &[&str] = &[
    r#"{"n": 42}"#,
    r#"{"n": -7.0}"#,
    r#"{"n": 0}"#,
    r#"{"_id": 42}"#,
    r#"{"_id": "ada"}"#,
    r#"{"_id": {"$oid": "507f1f77bcf86cd799439011"}}"#,
    r#"{"nobody": 1}"#,
    r#"{"nobody": null}"#,
    r#"{"nobody.has": {}}"#,
    r#"{"$where": "1", "a\\.b": 2}"#,
];

/// Puts a document at the place that the store has for it.
async fn put(driver: &Arc<dyn Driver>, id: &str, members: &str) -> (Key, String) {
    let id_member = match id {
        "507f1f77bcf86cd799439011" => format!("{{\"$oid\": \"{id}\"}}"),
        id if id.starts_with('=') => id[1..].to_owned(),
        id if id.parse::<i64>().is_ok() => id.to_owned(),
        id => format!("\"{id}\""),
    };
    let text = format!("{{\"_id\": {id_member}, {members}}}\n");
    let name = format!("docs/{id}.json");
    let written = driver
        .put(&key(&name), body(&text), PutOptions::default())
        .await;
    let name = match written {
        // What is called so there has another shape: it is a text.
        Err(error) if error.kind() == ErrorKind::InvalidDocument => {
            let name = format!("{name}.str");
            let place = key(&name);
            let written = driver.put(&place, body(&text), PutOptions::default());
            match written.await {
                // It has only documents, and all numbers are doubles there.
                Err(error) if error.kind() == ErrorKind::InvalidKey => {
                    return Box::pin(put(driver, id, &members.replace("993,", "992,"))).await;
                }
                written => written.unwrap(),
            };
            name
        }
        written => {
            written.unwrap();
            name
        }
    };
    // As the store shows it.
    let shown = read(driver, &key(&name)).await.to_vec();
    (key(&name), String::from_utf8(shown).unwrap())
}

/// Stores of nothing but documents, as they are.
pub fn stores() -> Vec<Store> {
    let mut stores = documents("rethinkdb-documents", table);
    stores.extend([
        composed(
            "mirror(rethinkdb-documents, memory)",
            |documents, copies| Ok(Arc::new(Mirror::new(vec![documents, copies], None)?)),
        ),
        composed(
            "mirror(away rethinkdb-documents, memory)",
            |documents, copies| {
                let away = FaultPlan::parse("find:error=unreachable")?;
                let documents = Layered::over(documents, Arc::new(away));
                Ok(Arc::new(Mirror::new(vec![documents, copies], None)?))
            },
        )
        .knowing(&[("finds_come_in_pages", "its first store cannot be asked")]),
        composed("tier(memory, rethinkdb-documents)", |documents, copies| {
            Ok(Arc::new(Tier::new(copies, documents)?))
        }),
    ]);
    if let Ok(server) = std::env::var(MONGODB) {
        let url = move || format!("{server}/conformance-{:016x}/docs", clock::random());
        stores.extend(documents("mongodb-documents", url));
    }
    stores
}

/// The URL of a table of its own.
fn table() -> String {
    let database = format!("d{:016x}", clock::random());
    RETHINKDB.make(&database, "docs", "id");
    RETHINKDB.url(&format!("/{database}/docs"))
}

type Together = fn(Arc<dyn Driver>, Arc<dyn Driver>) -> driver::Result<Arc<dyn Driver>>;

/// Documents, with copies in memory.
fn composed(name: &str, together: Together) -> Store {
    Store::new(name, move || async move {
        let (location, copies) = (Location::parse(&table())?, Memory::new());
        let client = async || {
            let documents = driver::open(&location, &OpenOptions::default()).await?;
            together(documents.driver, Arc::new(copies.clone()))
        };
        Ok(Fixture {
            a: client().await?,
            b: client().await?,
            url: None,
            secrets: Vec::new(),
            skipped: Skipped::default(),
            _keep: Box::new(()),
        })
    })
}

/// A collection of its own for each case.
fn documents(name: &str, url: impl Fn() -> String + Send + Sync + 'static) -> Vec<Store> {
    let store = Store::new(name, move || {
        let url = url();
        async move {
            let location = Location::parse(&url)?;
            let open = async || driver::open(&location, &OpenOptions::default()).await;
            // The collection is watched, and still a part of the keys.
            Ok(Fixture {
                a: open().await?.driver,
                b: open().await?.driver,
                url: None,
                secrets: Vec::new(),
                skipped: Skipped::default(),
                _keep: Box::new(()),
            })
        }
    });
    let layers = store.under("stack", |driver| {
        let opened = Opened {
            driver,
            prefix: Key::empty(),
            is_store: false,
        };
        stack(opened, &LayerOptions::default()).unwrap().driver
    });
    vec![store, layers]
}

fn body(text: &str) -> Body {
    Body::from(text.as_bytes().to_vec())
}

fn search(f: &Fixture, query: &str) -> Search {
    Search {
        driver: f.b.clone(),
        shows_buckets: false,
        prefix: key("docs/"),
        filter: Filter::json(query).unwrap(),
        texts: true,
    }
}

async fn all(mut events: mpsc::Receiver<bucketfs::driver::Result<Event>>) -> BTreeMap<Key, Match> {
    let mut found = BTreeMap::new();
    while let Some(event) = events.recv().await {
        if let Event::Found(one) = event.unwrap() {
            let twice = found.insert(one.key.clone(), one);
            assert!(twice.is_none(), "{twice:?} was told twice");
        }
    }
    found
}

async fn finds_of_values_are_what_the_model_says(f: Fixture) {
    hold(f, VALUES).await;
}

async fn finds_within_are_what_the_model_says(f: Fixture) {
    hold(f, WITHIN).await;
}

async fn finds_of_ids_and_of_nothing_are_what_the_model_says(f: Fixture) {
    hold(f, OTHERS).await;
}

async fn hold(f: Fixture, queries: &[&str]) {
    let mut verified = BTreeSet::new();
    let mut documents = BTreeMap::new();
    for (id, members) in DOCUMENTS {
        let (key, text) = put(&f.a, id, members).await;
        documents.insert(key, text);
    }
    // What is no document, where that can be.
    for (name, text) in [
        ("docs/plain", "name=ada"),
        ("docs/cut", "{\"name\": \"ada\""),
        ("docs/empty", ""),
    ] {
        let _ = f.a.put(&key(name), body(text), PutOptions::default()).await;
    }
    for query in queries {
        let wanted: Map = serde_json::from_str(query).unwrap();
        let wanted: Vec<&Key> = documents
            .iter()
            .filter(|(_, text)| model(&serde_json::from_str(text).unwrap(), &wanted))
            .map(|(key, _)| key)
            .collect();
        // Where the store does not look for itself, both are one.
        let mut ways = vec![("looked at", search(&f, query).scan())];
        if f.capabilities().find {
            ways.push(("asked", search(&f, query).begin()));
        }
        for (how, events) in ways {
            let found = all(events).await;
            let keys: Vec<&Key> = found.keys().collect();
            assert_eq!(keys, wanted, "{query}, {how}");
            for (key, one) in found {
                if !verified.insert((how, key.clone())) {
                    continue;
                }
                let options = GetOptions {
                    if_match: Some(one.etag),
                    ..GetOptions::default()
                };
                let object = f.a.get(&key, options).await.unwrap().found().unwrap();
                assert_eq!(object.collect().await.unwrap().1, one.text, "{key:?}");
            }
        }
    }
    // Of one prefix only.
    let other = Search {
        prefix: key("other/"),
        ..search(&f, "{}")
    };
    assert!(all(other.begin()).await.is_empty());
    let few = Search {
        prefix: key("docs/a"),
        ..search(&f, "{}")
    };
    assert_eq!(all(few.begin()).await.len(), 1);
}

type Map = serde_json::Map<String, Value>;

/// The meaning in other words: each value is the one that is found on the way to it.
fn model(document: &Value, query: &Map) -> bool {
    query.iter().all(|(path, wanted)| {
        let way = path.split('.').map(|name| name.replace('/', "~1"));
        let way: String = way.map(|name| format!("/{name}")).collect();
        let has = document.pointer(&way);
        has.is_some_and(|has| canonical(has) == canonical(wanted))
    })
}

fn canonical(value: &Value) -> Value {
    match value {
        Value::Number(number) => {
            let text = number.to_string();
            let whole = text.strip_suffix(".0").unwrap_or(&text);
            Value::from(whole)
        }
        Value::String(text) => Value::from(format!("\"{text}\"")),
        Value::Array(items) => items.iter().map(canonical).collect(),
        Value::Object(fields) => {
            let fields = fields.iter();
            Value::Object(fields.map(|(n, v)| (n.clone(), canonical(v))).collect())
        }
        other => other.clone(),
    }
}

async fn finds_come_in_pages(f: Fixture) {
    if !f.capabilities().find {
        return f.skip("find is not claimed");
    }
    let mut wanted = Vec::new();
    for n in 0..25 {
        let name = if n % 2 == 0 { "even" } else { "odd" };
        let (key, _) = put(&f.a, &format!("d{n:02}"), &format!("\"name\": \"{name}\"")).await;
        wanted.extend((n % 2 == 1).then_some(key));
    }
    for limit in [1, 4, 12, 1000] {
        let mut query = Query {
            prefix: key("docs/"),
            filter: Filter::parse(["name=odd"]).unwrap(),
            token: None,
            limit,
        };
        let mut keys = Vec::new();
        for pages in 0.. {
            assert!(pages < 40, "it goes on for ever");
            let page = f.b.find(query.clone()).await.unwrap();
            assert!(page.found.len() <= limit);
            keys.extend(page.found.into_iter().map(|found| found.key));
            query.token = page.next;
            if query.token.is_none() {
                break;
            }
        }
        keys.sort();
        assert_eq!(keys, wanted, "{limit} at a time");
    }
}

async fn what_was_found_is_removed_as_it_was(f: Fixture) {
    put(&f.a, "one", "\"a\": \"1\"").await;
    put(&f.a, "two", "\"a\": \"1\"").await;
    let mut found = all(search(&f, r#"{"a": "1"}"#).begin()).await.into_values();
    let (one, two) = (found.next().unwrap(), found.next().unwrap());
    put(&f.a, "two", "\"a\": \"2\"").await;
    find::remove(&*f.b, &one.key, &one.etag, true)
        .await
        .unwrap();
    let lost = find::remove(&*f.b, &two.key, &two.etag, true).await;
    assert_eq!(lost.unwrap_err().kind(), ErrorKind::Changed);
    let left = all(search(&f, "{}").begin()).await;
    assert_eq!(left.keys().collect::<Vec<_>>(), [&two.key]);
}

async fn new_matches_are_told_as_they_come(f: Fixture) {
    let (old, _) = put(&f.a, "old", "\"a\": \"1\"").await;
    put(&f.a, "other", "\"a\": \"2\"").await;
    let mut events = search(&f, r#"{"a": "1"}"#).follow(Duration::from_millis(50));
    let mut next = async |what: &str| {
        let told = async {
            loop {
                match events.recv().await.expect("it goes on").unwrap() {
                    Event::Found(found) => return found.key,
                    Event::Looked(_) | Event::Back => {}
                    Event::Skipped(error) | Event::Away(error) => panic!("{error}"),
                }
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(20), told).await;
        told.unwrap_or_else(|_| panic!("{what} was never told"))
    };
    assert_eq!(next("what was there").await, old);
    put(&f.a, "not", "\"a\": \"3\"").await;
    let (new, _) = put(&f.a, "new", "\"a\": \"1\"").await;
    assert_eq!(next("what was made").await, new);
    let (other, _) = put(&f.a, "other", "\"a\": \"1\"").await;
    assert_eq!(next("what began to match").await, other);
    f.a.delete(&old, Precondition::None).await.unwrap();
    put(&f.a, "old", "\"a\": \"1\", \"b\": \"2\"").await;
    assert_eq!(next("what came back").await, old);
}

async fn hidden_objects_are_not_found(f: Fixture) {
    let text = "{\"_id\": \"x\", \"a\": \"1\"}";
    let hidden = key(".bucketfs/x");
    if f.a
        .put(&hidden, body(text), PutOptions::default())
        .await
        .is_err()
    {
        return f.skip("it has no place for them");
    }
    put(&f.a, "x", "\"a\": \"1\"").await;
    let everywhere = || Search {
        prefix: Key::empty(),
        ..search(&f, r#"{"a": "1"}"#)
    };
    assert_eq!(all(everywhere().begin()).await.len(), 1);
    assert_eq!(all(everywhere().scan()).await.len(), 1);
}
