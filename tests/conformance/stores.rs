//! The stores that are tested: each driver, and the layers over some of them.

use crate::enveloped::Enveloped;
use crate::fixture::{Fixture, Skipped, Store};
use crate::mixtures::{composed, mixtures};
use crate::{rethinkdb, riak};
use bucketfs::clock;
use bucketfs::driver::memory::Memory;
use bucketfs::driver::{
    self, DRIVERS, Driver, Error, ErrorKind, Location, OpenOptions, Opened, s3 as s3_driver,
};
use bucketfs::key::Key;
use bucketfs::layer::{
    Buckets, Deadline, FaultPlan, Index, LayerOptions, Layered, Limit, LocalNames, Prefix, Retry,
    RetryOptions, Scratch, Stats, stack,
};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

const ACROSS: &str = "a rename from one side to the other is refused, as renames are one step";
const RENAMES: &[(&str, &str)] = &[
    ("rename_moves", ACROSS),
    ("a_lost_condition_names_its_key", ACROSS),
];

/// The same store, with names that match in a directory of this machine that both clients share.
fn scratch(store: &Store, patterns: &'static str) -> Store {
    let open = store.open.clone();
    Store {
        name: format!("scratch[{patterns}]({})", store.name),
        known: match patterns {
            "*" => store.known,
            _ => [store.known, RENAMES].concat().leak(),
        },
        open: Arc::new(move || {
            let fixture = open();
            Box::pin(async move {
                let (fixture, here) = (fixture.await?, file().await?);
                let over = |store, local| {
                    let names = LocalNames::parse(patterns).unwrap();
                    Ok::<_, Error>(Arc::new(Scratch::over(store, local, names, false)?))
                };
                Ok(Fixture {
                    a: over(fixture.a, here.a)?,
                    b: over(fixture.b, here.b)?,
                    url: None,
                    _keep: Box::new((fixture._keep, here._keep)),
                    ..fixture
                })
            })
        }),
        ..store.clone()
    }
}

/// The drivers of the registry, and the layers over some of them.
pub fn stores() -> Vec<Store> {
    let mut stores: Vec<Store> = DRIVERS
        .iter()
        .map(|driver| match driver.scheme {
            "memory" => memory(),
            "file" => Store::new("file", file),
            "s3" => s3(Shown::Bucket),
            "redis" => redis(REDIS, "redis", "objects"),
            "rediss" => redis(REDISS, "rediss", "objects"),
            "mongodb" => mongodb(),
            "mirror" => composed("mirror"),
            "tier" => composed("tier"),
            "rethinkdb" => Store::new("rethinkdb", rethinkdb),
            "riak" => Store::new("riak", || riak(&RIAK, "files")),
            "riaks" => Store {
                missing: Some("needs a server with TLS, which the double has not".to_owned()),
                ..Store::new("riaks", || riak(&RIAK, "files"))
            },
            other => Store::new(other, move || async move {
                panic!("there is no fixture for {other:?} in tests/conformance/stores.rs")
            }),
        })
        .collect();
    stores.push(s3(Shown::Buckets));
    stores.push(redis(REDIS, "redis-data", "data"));
    stores.push(gridfs());
    stores.push(Store::new("riak-bitcask", || riak(&BITCASK, "default")));
    let plain = stores.clone();
    for store in plain {
        let whole = |spec: Option<&str>| {
            let options = LayerOptions {
                prefix: "below/".into(),
                fault: spec.map(str::to_owned),
                index: true,
                ..LayerOptions::default()
            };
            move |driver| {
                let prefix = Key::empty();
                let is_store = false;
                let opened = Opened {
                    driver,
                    prefix,
                    is_store,
                };
                stack(opened, &options).unwrap().driver
            }
        };
        stores.push(store.under("stack", whole(None)));
        // Names on both sides, so that listings are merged and copies go across.
        stores.push(scratch(&store, "[a-fnt]*"));
        if store.name == "memory" {
            stores.extend(mixtures());
        } else {
            continue;
        }
        stores.push(store.under("fault", |driver| {
            Layered::over(driver, Arc::new(FaultPlan::none()))
        }));
        stores.push(store.under("stats", |driver| {
            Layered::over(driver, Arc::new(Stats::default()))
        }));
        stores.push(store.under("deadline", |driver| {
            Layered::over(driver, Arc::new(Deadline::new(Duration::from_secs(60))))
        }));
        stores.push(store.under("limit", |driver| {
            Layered::over(driver, Arc::new(Limit::new(1)))
        }));
        stores.push(store.under("retry", |driver| {
            Arc::new(Retry::new(driver, RetryOptions::default()))
        }));
        stores.push(store.under("index", |driver| Index::over(driver, false, true)));
        stores.push(store.under("prefix", |driver| {
            Arc::new(Prefix::new(driver, "a/b".into()))
        }));
        stores.push(scratch(&store, "*"));
        // What the layers promise to hide. An exchange is never retried.
        stores.push(store.under("flaky", whole(Some(FLAKY))));
    }
    stores
}

const FLAKY: &str = "get:truncate=3@every3,get:break=1@every4,get:error=unreachable@every7,\
    head:error=unavailable@every5,put:error=unavailable@every5,delete:error=unavailable@every5,\
    delete:lost-reply@every6,list:error=corrupt@every5,list:delay=1ms@p0.1,\
    copy:error=unavailable@every2,rename:error=unavailable@every2,\
    delete_many:lost-reply@every2,upload:error=timeout@every2,part:lost-reply@every2,\
    complete:error=unavailable@every2,set_attributes:lost-reply@every2,watch:error=unavailable@1,\
    seed=7";

fn memory() -> Store {
    Store::new("memory", || async {
        let memory = Memory::new();
        Ok(Fixture {
            a: Arc::new(memory.clone()),
            b: Arc::new(memory),
            url: None,
            secrets: Vec::new(),
            skipped: Skipped::default(),
            _keep: Box::new(()),
        })
    })
}

/// Opens a URL as a command would.
pub async fn open(url: &str, options: &OpenOptions) -> Result<Arc<dyn Driver>, Error> {
    let opened = driver::open(&Location::parse(url)?, options).await?;
    Ok(match opened.prefix.is_empty() {
        true => opened.driver,
        false => Arc::new(Prefix::new(opened.driver, opened.prefix)),
    })
}

async fn file() -> Result<Fixture, Error> {
    let folder = tempfile::tempdir()?;
    let url = format!("file://{}", folder.path().display());
    let options = OpenOptions::default();
    Ok(Fixture {
        a: open(&url, &options).await?,
        b: open(&url, &options).await?,
        url: Some(url),
        secrets: Vec::new(),
        skipped: Skipped::default(),
        _keep: Box::new(folder),
    })
}

const ENDPOINT: &str = "BUCKETFS_TEST_S3_ENDPOINT";
const SECRET: &str = "AWS_SECRET_ACCESS_KEY";
/// Which server that is, as its script in `scripts/servers` is called: some fail cases for reasons
/// that no driver can mend.
const SERVER: &str = "BUCKETFS_TEST_S3_SERVER";

const MINIO: &[(&str, &str)] = &[(
    "a_key_beside_its_own_directory",
    "MinIO lists nothing below a key that is an object itself",
)];
const MOTO_RACES: &str =
    "moto tests a condition before the write, so that several of those who race can win";
const MOTO: &[(&str, &str)] = &[
    ("racing_increments_are_exact", MOTO_RACES),
    ("a_racing_delete_loses_no_write", MOTO_RACES),
    (
        "awkward_keys_are_kept_apart_or_refused",
        "moto answers 404 to a put of a key with a line feed in it",
    ),
];
const LOCALSTACK_NAMES: &str =
    "LocalStack leaves names that are not ASCII out of pages that continue a listing";
const LOCALSTACK_BYTES: &str =
    "LocalStack sends bytes and checksum of different versions while an object is replaced";
const LOCALSTACK: &[(&str, &str)] = &[
    ("listings_are_what_the_model_says", LOCALSTACK_NAMES),
    ("paging_neither_repeats_nor_drops", LOCALSTACK_NAMES),
    (
        "a_dropped_put_leaves_nothing_half_written",
        LOCALSTACK_BYTES,
    ),
];
const CEPH: &[(&str, &str)] = &[(
    "awkward_keys_are_kept_apart_or_refused",
    "radosgw refuses a key with a NUL in it, and does not say that it is the key",
)];

/// How a bucket is reached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// By its name.
    Bucket,
    /// As a directory among all buckets.
    Buckets,
}

/// A prefix of its own in the bucket `conformance`, which is made when it is missing. With moto a
/// bucket of its own: it fails listings while others write to the same bucket.
fn s3(shown: Shown) -> Store {
    let name = match shown {
        Shown::Bucket => "s3",
        Shown::Buckets => "buckets(s3)",
    };
    let environment = (std::env::var(ENDPOINT).ok(), std::env::var(SECRET).ok());
    let (Some(endpoint), Some(secret)) = environment else {
        let missing = format!("needs a server: scripts/servers/minio, and {ENDPOINT}");
        return Store {
            missing: Some(missing),
            ..Store::new(name, || async { Err(Error::unsupported("open")) })
        };
    };
    let server = std::env::var(SERVER).unwrap_or_default();
    let (known, own): (&[_], bool) = match server.as_str() {
        "minio" => (MINIO, false),
        "moto" => (MOTO, true),
        "localstack" => (LOCALSTACK, false),
        "ceph" => (CEPH, false),
        _ => (&[], false),
    };
    let store = Store::new(name, move || {
        let (endpoint, secret) = (endpoint.clone(), secret.clone());
        async move {
            let options = OpenOptions {
                endpoint_url: Some(endpoint),
                region: Some("us-east-1".to_owned()),
                force_path_style: true,
                ..OpenOptions::default()
            };
            let account = s3_driver::Account::configure(&options, None).await?;
            let bucket = match (shown, own) {
                (Shown::Bucket, true) => format!("conformance-{:016x}", clock::random()),
                (Shown::Bucket, false) => "conformance".to_owned(),
                // The longest there can be, for the longest key to be what is claimed.
                (Shown::Buckets, true) => {
                    format!("conformance-{:016x}-{:034}", clock::random(), 0)
                }
                (Shown::Buckets, false) => format!("conformance-{:051}", 0),
            };
            match account.create_bucket(&bucket).await {
                Err(error) if error.kind() != ErrorKind::Exists => return Err(error),
                _ => {}
            }
            let below = format!("{bucket}/{:016x}", clock::random());
            let open = async || match shown {
                Shown::Bucket => open(&format!("s3://{below}"), &options).await,
                Shown::Buckets => {
                    let account = open("s3://", &options).await?;
                    let all: Arc<dyn Driver> = Arc::new(Buckets::new(account, true));
                    let prefix = Key::from(format!("{below}/"));
                    Ok(Arc::new(Prefix::new(all, prefix)) as Arc<dyn Driver>)
                }
            };
            Ok(Fixture {
                a: open().await?,
                b: open().await?,
                url: None,
                secrets: vec![secret],
                skipped: Skipped::default(),
                _keep: Box::new(()),
            })
        }
    });
    let fewer = shown == Shown::Buckets && matches!(server.as_str(), "moto" | "ceph");
    let missing =
        fewer.then(|| format!("{server} holds fewer conditions than all buckets are taken to"));
    Store {
        known,
        missing,
        ..store
    }
}

/// Where a Redis is, as a URL without a path.
const REDIS: &str = "BUCKETFS_TEST_REDIS";
/// The same with TLS.
const REDISS: &str = "BUCKETFS_TEST_REDISS";

/// A layout under a prefix of its own.
fn redis(variable: &'static str, name: &str, layout: &'static str) -> Store {
    let Ok(server) = std::env::var(variable) else {
        let missing = format!("needs a server: scripts/servers/redis, and {variable}");
        return Store {
            missing: Some(missing),
            ..Store::new(name, || async { Err(Error::unsupported("open")) })
        };
    };
    Store::new(name, move || {
        let random = clock::random();
        let url = format!("{server}/0?layout={layout}&prefix=conformance-{random:016x}:");
        async move {
            let options = OpenOptions::default();
            let secret = Location::parse(&url)?.url().password().map(str::to_owned);
            Ok(Fixture {
                a: open(&url, &options).await?,
                b: open(&url, &options).await?,
                url: Some(url),
                secrets: secret.into_iter().collect(),
                skipped: Skipped::default(),
                _keep: Box::new(()),
            })
        }
    })
}

/// Where a MongoDB is, as a URL without a path.
pub const MONGODB: &str = "BUCKETFS_TEST_MONGODB";
/// Which server that is, as its script in `scripts/servers` is called.
const MONGODB_SERVER: &str = "BUCKETFS_TEST_MONGODB_SERVER";
const FERRETDB_RACES: &str = "FerretDB finds a document first and writes it later";
const FERRETDB: &[(&str, &str)] = &[
    ("racing_increments_are_exact", FERRETDB_RACES),
    ("a_racing_delete_loses_no_write", FERRETDB_RACES),
];

/// A collection of its own.
fn mongodb() -> Store {
    let Ok(server) = std::env::var(MONGODB) else {
        let missing = format!("needs a server: scripts/servers/mongo, and {MONGODB}");
        return Store {
            missing: Some(missing),
            ..Store::new("mongodb", || async { Err(Error::unsupported("open")) })
        };
    };
    let known = match std::env::var(MONGODB_SERVER).unwrap_or_default().as_str() {
        "ferretdb" => FERRETDB,
        _ => &[],
    };
    let store = Store::new("mongodb", move || {
        let url = format!("{server}/conformance/c{:016x}", clock::random());
        async move {
            let options = OpenOptions::default();
            let secret = Location::parse(&url)?.url().password().map(str::to_owned);
            Ok(Fixture {
                a: Arc::new(Enveloped(open(&url, &options).await?, "_id")),
                b: Arc::new(Enveloped(open(&url, &options).await?, "_id")),
                url: None,
                secrets: secret.into_iter().collect(),
                skipped: Skipped::default(),
                _keep: Box::new(()),
            })
        }
    });
    Store { known, ..store }
}

/// A double of RethinkDB: the server itself is to be had nowhere.
pub static RETHINKDB: LazyLock<rethinkdb::Server> = LazyLock::new(rethinkdb::Server::start);

/// A table of its own.
async fn rethinkdb() -> Result<Fixture, Error> {
    let table = format!("c{:016x}", clock::random());
    RETHINKDB.make("conformance", &table, "id");
    let url = RETHINKDB.url(&format!("/conformance/{table}"));
    let url = url.replace("://", "://writer:geheim@");
    let options = OpenOptions::default();
    Ok(Fixture {
        a: Arc::new(Enveloped(open(&url, &options).await?, "id")),
        b: Arc::new(Enveloped(open(&url, &options).await?, "id")),
        url: None,
        secrets: vec!["geheim".to_owned()],
        skipped: Skipped::default(),
        _keep: Box::new(()),
    })
}

/// Doubles of Riak, which is to be had nowhere: a recent one with indexes and siblings, and an old one
/// without either, which forgets at once what was deleted.
static RIAK: LazyLock<riak::Server> = LazyLock::new(|| {
    riak::Server::start(riak::Setup {
        login: Some("writer:geheim"),
        ..riak::Setup::default()
    })
});
static BITCASK: LazyLock<riak::Server> = LazyLock::new(|| {
    riak::Server::start(riak::Setup {
        login: Some("writer:geheim"),
        indexes: false,
        reaps: true,
        knows_clocks: false,
        ..riak::Setup::default()
    })
});

/// A bucket of its own.
async fn riak(server: &riak::Server, kind: &str) -> Result<Fixture, Error> {
    let url = server.url(&format!("/{kind}/b{:016x}", clock::random()));
    let url = url.replace("://", "://writer:geheim@");
    let options = OpenOptions::default();
    Ok(Fixture {
        a: open(&url, &options).await?,
        b: open(&url, &options).await?,
        url: None,
        secrets: vec!["geheim".to_owned()],
        skipped: Skipped::default(),
        _keep: Box::new(()),
    })
}

/// A bucket of its own.
fn gridfs() -> Store {
    const NAME: &str = "mongodb-gridfs";
    let Ok(server) = std::env::var(MONGODB) else {
        return Store {
            name: NAME.to_owned(),
            ..mongodb()
        };
    };
    let store = Store::new(NAME, move || {
        let bucket = format!("b{:016x}", clock::random());
        let url = format!("{server}/conformance/{bucket}?layout=gridfs");
        async move {
            let options = OpenOptions::default();
            let secret = Location::parse(&url)?.url().password().map(str::to_owned);
            Ok(Fixture {
                a: open(&url, &options).await?,
                b: open(&url, &options).await?,
                url: Some(url),
                secrets: secret.into_iter().collect(),
                skipped: Skipped::default(),
                _keep: Box::new(()),
            })
        }
    });
    Store {
        known: mongodb().known,
        ..store
    }
}
