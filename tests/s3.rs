//! The S3 driver against a real server: the one that `BUCKETFS_TEST_S3_ENDPOINT` names, with
//! credentials from the environment. Without it every test shows as ignored.

#[path = "s3/keys.rs"]
mod keys;
#[path = "s3/large.rs"]
mod large;
#[path = "s3/tags.rs"]
mod tags;

use bucketfs::driver::s3::{Account, Bucket, StaticCredentials};
use bucketfs::driver::{
    Attributes, Body, CommitId, CopyOptions, Driver, ETag, Error, ErrorKind, GetOptions,
    GetOutcome, ListRequest, OpenOptions, Precondition, PutOptions, Removal, Strength,
};
use bucketfs::key::Key;
use bytes::Bytes;
use libtest_mimic::{Arguments, Failed, Trial};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

const ENDPOINT: &str = "BUCKETFS_TEST_S3_ENDPOINT";
/// Which server that is, as its script in `scripts/servers` is called.
const SERVER: &str = "BUCKETFS_TEST_S3_SERVER";

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn options() -> OpenOptions {
    OpenOptions {
        endpoint_url: std::env::var(ENDPOINT).ok(),
        region: Some("us-east-1".into()),
        ..OpenOptions::default()
    }
}

/// A fresh bucket.
async fn fresh() -> Result<Arc<Bucket>, Error> {
    let account = Account::configure(&options(), None).await?;
    let name = format!("bucketfs-s3-{:016x}", bucketfs::clock::random());
    account.create_bucket(&name).await?;
    Ok(Arc::new(account.open(&name, &Key::empty()).await?))
}

fn when(precondition: Precondition) -> PutOptions {
    PutOptions {
        precondition,
        ..PutOptions::default()
    }
}

async fn read(bucket: &Bucket, key: &Key) -> Result<Bytes, Error> {
    let object = bucket.get(key, GetOptions::default()).await?.found()?;
    Ok(object.collect().await?.1)
}

fn kind<T>(result: Result<T, Error>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

async fn conditions() -> Outcome {
    let bucket = fresh().await?;
    let key = Key::from("k");
    assert_eq!(bucket.capabilities().put_condition, Strength::Atomic);
    let one = bucket
        .put(&key, "one".into(), when(Precondition::IfAbsent))
        .await?;
    let again = bucket.put(&key, "x".into(), when(Precondition::IfAbsent));
    assert_eq!(kind(again.await), Some(ErrorKind::Exists));
    let stale = ETag::new("0123456789abcdef0123456789abcdef");
    let lost = bucket.put(&key, "x".into(), when(Precondition::IfMatch(stale.clone())));
    assert_eq!(kind(lost.await), Some(ErrorKind::Changed));
    let two = bucket
        .put(
            &key,
            "two".into(),
            when(Precondition::IfMatch(one.etag.clone())),
        )
        .await?;
    assert_ne!(one.etag, two.etag);
    assert_eq!(read(&bucket, &key).await?, "two");
    assert_eq!(bucket.head(&key).await?.etag, two.etag);
    let gone = Key::from("gone");
    let missing = bucket.put(
        &gone,
        "x".into(),
        when(Precondition::IfMatch(two.etag.clone())),
    );
    assert_eq!(kind(missing.await), Some(ErrorKind::Changed));
    assert_eq!(kind(bucket.head(&gone).await), Some(ErrorKind::NotFound));

    let with = |if_match: Option<&ETag>, if_none_match: Option<&ETag>| GetOptions {
        if_match: if_match.cloned(),
        if_none_match: if_none_match.cloned(),
        ..GetOptions::default()
    };
    let same = bucket.get(&key, with(None, Some(&two.etag))).await?;
    assert!(matches!(same, GetOutcome::Unmodified));
    let other = bucket.get(&key, with(None, Some(&one.etag))).await?;
    assert!(matches!(other, GetOutcome::Found(_)));
    let changed = bucket.get(&key, with(Some(&one.etag), None)).await;
    assert_eq!(kind(changed), Some(ErrorKind::Changed));
    let missing = bucket.get(&gone, with(Some(&one.etag), None)).await;
    assert_eq!(kind(missing), Some(ErrorKind::NotFound));

    let delete = bucket.capabilities().delete_condition;
    let refused = bucket.delete(&key, Precondition::IfMatch(stale)).await;
    if delete == Strength::None {
        assert_eq!(kind(refused), Some(ErrorKind::Unsupported));
    } else {
        assert_eq!(kind(refused), Some(ErrorKind::Changed));
        let right = Precondition::IfMatch(two.etag.clone());
        bucket.delete(&key, right.clone()).await?;
        let late = bucket.delete(&key, right).await;
        assert_eq!(kind(late), Some(ErrorKind::Changed));
        bucket
            .put(&key, "two".into(), PutOptions::default())
            .await?;
    }
    let absent = bucket.delete(&key, Precondition::IfAbsent).await;
    assert_eq!(kind(absent), Some(ErrorKind::InvalidArgument));
    assert_eq!(read(&bucket, &key).await?, "two");
    bucket.delete(&key, Precondition::None).await?;
    bucket.delete(&key, Precondition::None).await?;
    assert_eq!(kind(bucket.head(&key).await), Some(ErrorKind::NotFound));
    Ok(())
}

/// Nothing of the probe is left, and what is not written is not claimed.
async fn opening() -> Outcome {
    let bucket = fresh().await?;
    let page = bucket.list(ListRequest::flat(&Key::empty())).await?;
    assert_eq!(page.entries, []);
    let names = bucket.buckets().await?;
    assert!(names.len() > 1 || names.iter().all(|bucket| !bucket.name.is_empty()));
    let name = names.first().ok_or("there is no bucket")?.name.clone();
    let other = bucket.bucket(&name).await?;
    assert_eq!(other.capabilities(), bucket.capabilities());
    assert_eq!(
        kind(bucket.create_bucket(&name).await),
        Some(ErrorKind::Exists)
    );
    assert_eq!(
        kind(bucket.bucket("bucketfs-no-such").await),
        Some(ErrorKind::NotFound)
    );

    let reading = OpenOptions {
        read_only: true,
        ..options()
    };
    let account = Account::configure(&reading, None).await?;
    let reader = account.open(&name, &Key::from("a/")).await?;
    let claims = reader.capabilities();
    assert_eq!(claims.put_condition, Strength::None);
    assert_eq!((claims.copy, claims.delete_many), (None, None));
    let key = Key::from("a/k");
    let put = reader.put(&key, "x".into(), PutOptions::default()).await;
    assert_eq!(kind(put), Some(ErrorKind::ReadOnly));
    assert_eq!(kind(reader.head(&key).await), Some(ErrorKind::NotFound));
    Ok(())
}

/// Tasks that add one to a number by compare-and-set lose no addition.
async fn increments() -> Outcome {
    const TASKS: u64 = 8;
    const ROUNDS: u64 = 25;
    let bucket = fresh().await?;
    let key = Key::from("n");
    bucket
        .put(&key, "0".into(), when(Precondition::IfAbsent))
        .await?;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let (bucket, key) = (bucket.clone(), key.clone());
        tasks.spawn(async move {
            let mut done = 0;
            while done < ROUNDS {
                let object = bucket.get(&key, GetOptions::default()).await?.found()?;
                let (info, bytes) = object.collect().await?;
                let n: u64 = String::from_utf8_lossy(&bytes).parse().expect("a number");
                let next = Body::from((n + 1).to_string().into_bytes());
                let put = bucket.put(&key, next, when(Precondition::IfMatch(info.etag)));
                match put.await {
                    Ok(_) => done += 1,
                    Err(error) if error.kind() == ErrorKind::Changed => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    assert_eq!(read(&bucket, &key).await?, (TASKS * ROUNDS).to_string());
    Ok(())
}

/// Ranges give what there is, with the facts of the whole object.
async fn ranges() -> Outcome {
    let bucket = fresh().await?;
    let (key, empty) = (Key::from("k"), Key::from("empty"));
    let put = bucket
        .put(&key, "0123456789".into(), PutOptions::default())
        .await?;
    bucket
        .put(&empty, Body::empty(), PutOptions::default())
        .await?;
    for (range, want) in [
        (0..10, "0123456789"),
        (3..5, "34"),
        (8..99, "89"),
        (9..u64::MAX, "9"),
        (10..11, ""),
        (50..60, ""),
        (4..4, ""),
    ] {
        let options = GetOptions {
            range: Some(range.clone()),
            if_match: Some(put.etag.clone()),
            ..GetOptions::default()
        };
        let object = bucket.get(&key, options).await?.found()?;
        let begin = range.start.min(10);
        assert_eq!(object.range, begin..begin + want.len() as u64);
        let (info, bytes) = object.collect().await?;
        assert_eq!((info.size, &info.etag), (Some(10), &put.etag));
        assert_eq!(bytes, want);
        let options = GetOptions {
            range: Some(range),
            if_none_match: Some(put.etag.clone()),
            ..GetOptions::default()
        };
        let unmodified = bucket.get(&key, options).await?;
        assert!(matches!(unmodified, GetOutcome::Unmodified));
    }
    let options = GetOptions {
        range: Some(0..4096),
        ..GetOptions::default()
    };
    let (info, bytes) = bucket
        .get(&empty, options)
        .await?
        .found()?
        .collect()
        .await?;
    assert_eq!((info.size, bytes.len()), (Some(0), 0));
    Ok(())
}

/// A server may leave out of a listing what is copied onto itself just then.
async fn what_is_copied_onto_itself_is_listed_all_the_while() -> Outcome {
    let bucket = fresh().await?;
    let keys: Vec<Key> = (0..8)
        .map(|i| Key::from(format!("d{}/f", i % 4) + &i.to_string()))
        .collect();
    for key in &keys {
        bucket.put(key, "x".into(), PutOptions::default()).await?;
    }
    let done = Cell::new(false);
    let copies = async {
        for round in 0..300 {
            for key in &keys[..2] {
                let options = CopyOptions {
                    attributes: Some(Attributes {
                        mode: Some(0o100_600 + round % 8),
                        ..Attributes::default()
                    }),
                    ..CopyOptions::default()
                };
                bucket.copy(key, key, options).await?;
            }
        }
        done.set(true);
        Ok::<(), Error>(())
    };
    let listings = async {
        while !done.get() {
            let flat = bucket.list(ListRequest::flat(&Key::empty())).await?;
            assert_eq!(flat.entries.len(), keys.len());
            assert!(flat.entries.is_sorted_by_key(|entry| &entry.key));
            let folded = bucket.list(ListRequest::directory(&Key::empty())).await?;
            assert_eq!(folded.entries.len(), 4);
        }
        Ok::<(), Error>(())
    };
    tokio::try_join!(copies, listings)?;
    Ok(())
}

/// What other tools keep with an object survives a rewrite and a copy.
async fn metadata() -> Outcome {
    let bucket = fresh().await?;
    let (a, b) = (Key::from("a"), Key::from("b"));
    let mut attributes = Attributes {
        content_type: Some("text/x-test".into()),
        ..Attributes::default()
    };
    attributes
        .user
        .insert("mtime".into(), "1700000000.5".into());
    attributes.user.insert("note".into(), "\u{fc}ber".into());
    for (name, value) in [
        ("cache-control", "max-age=60"),
        ("content-disposition", "attachment; filename=\"x y\""),
        ("content-encoding", "gzip"),
        ("content-language", "de"),
        ("expires", "Thu, 01 Dec 2033 16:00:00 GMT"),
    ] {
        attributes.headers.insert(name.into(), value.into());
    }
    let commits = vec![CommitId(7), CommitId(8)];
    let options = PutOptions {
        attributes: attributes.clone(),
        commits: commits.clone(),
        ..PutOptions::default()
    };
    let put = bucket.put(&a, "text".into(), options).await?;
    let head = bucket.head(&a).await?;
    assert_eq!((head.size, &head.etag), (Some(4), &put.etag));
    assert_eq!(head.attributes.as_deref(), Some(&attributes));
    assert_eq!(head.commits, commits);
    let got = bucket.get(&a, GetOptions::default()).await?.found()?;
    assert_eq!(got.info, head);
    if bucket.capabilities().copy.is_none() {
        return Ok(());
    }
    bucket.copy(&a, &b, CopyOptions::default()).await?;
    let copy = bucket.head(&b).await?;
    let mut all = attributes.clone();
    if std::env::var(SERVER).is_ok_and(|server| server == "minio") {
        // MinIO forgets it in a copy that does not name it.
        all.headers.remove("expires");
    }
    assert_eq!(
        (copy.attributes.as_deref(), &copy.commits),
        (Some(&all), &commits)
    );
    let options = CopyOptions {
        commits: vec![CommitId(9)],
        ..CopyOptions::default()
    };
    let facts = bucket.copy(&a, &b, options).await?;
    let copy = bucket.head(&b).await?;
    assert_eq!(copy.etag, facts.etag);
    assert_eq!(copy.attributes.as_deref(), Some(&attributes));
    assert_eq!(copy.commits, [CommitId(9)]);
    let other = Attributes {
        content_type: Some("text/y".into()),
        ..Attributes::default()
    };
    let options = CopyOptions {
        attributes: Some(other.clone()),
        ..CopyOptions::default()
    };
    bucket.copy(&a, &b, options).await?;
    let copy = bucket.head(&b).await?;
    assert_eq!(
        (copy.attributes.as_deref(), copy.commits),
        (Some(&other), commits)
    );
    Ok(())
}

/// A copy's conditions hold where they are claimed, and are refused where not.
async fn copies() -> Outcome {
    let bucket = fresh().await?;
    let Some(claim) = bucket.capabilities().copy else {
        return Ok(());
    };
    let (a, b) = (Key::from("a"), Key::from("b"));
    let source = bucket.put(&a, "a".into(), PutOptions::default()).await?;
    let there = bucket.put(&b, "b".into(), PutOptions::default()).await?;
    let stale = ETag::new("0123456789abcdef0123456789abcdef");
    let from = |etag: &ETag| CopyOptions {
        source: Some(etag.clone()),
        ..CopyOptions::default()
    };
    let onto = |destination: Precondition| CopyOptions {
        destination,
        ..CopyOptions::default()
    };
    let refusal = |strength: Strength, lost: ErrorKind| match strength {
        Strength::None => Some(ErrorKind::Unsupported),
        Strength::Checked | Strength::Atomic => Some(lost),
    };
    for (options, want) in [
        (from(&stale), refusal(claim.source, ErrorKind::Changed)),
        (
            onto(Precondition::IfAbsent),
            refusal(claim.destination, ErrorKind::Exists),
        ),
        (
            onto(Precondition::IfMatch(stale)),
            refusal(claim.destination, ErrorKind::Changed),
        ),
    ] {
        assert_eq!(kind(bucket.copy(&a, &b, options).await), want);
        assert_eq!(read(&bucket, &b).await?, "b");
    }
    if claim.destination != Strength::None {
        let options = onto(Precondition::IfMatch(there.etag));
        bucket.copy(&a, &b, options).await?;
        assert_eq!(read(&bucket, &b).await?, "a");
    }
    if claim.source != Strength::None {
        bucket.copy(&a, &Key::from("c"), from(&source.etag)).await?;
        assert_eq!(read(&bucket, &Key::from("c")).await?, "a");
    }
    let missing = bucket
        .copy(&Key::from("no"), &b, CopyOptions::default())
        .await;
    assert_eq!(kind(missing), Some(ErrorKind::NotFound));
    Ok(())
}

/// Each way not to get in has its kind and a sentence that says what to do.
async fn refusals() -> Outcome {
    let secret = "not-the-secret-key";
    let open = async |options: OpenOptions, keys: Option<StaticCredentials>, bucket: &str| {
        let account = Account::configure(&options, keys).await?;
        account.open(bucket, &Key::empty()).await.map(|_| ())
    };
    let error = open(options(), None, "bucketfs-no-such-bucket")
        .await
        .expect_err("missing");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("does not exist"), "{error}");

    let bucket = format!("bucketfs-s3-{:016x}", bucketfs::clock::random());
    Account::configure(&options(), None)
        .await?
        .create_bucket(&bucket)
        .await?;
    for (name, variable) in [
        ("nobody".to_owned(), "AWS_ACCESS_KEY_ID"),
        (std::env::var("AWS_ACCESS_KEY_ID")?, "AWS_SECRET_ACCESS_KEY"),
    ] {
        let keys = StaticCredentials::new(name, secret);
        // Emulators do not look at signatures.
        let Err(error) = open(options(), Some(keys), &bucket).await else {
            continue;
        };
        assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
        assert!(error.to_string().contains(variable), "{error}");
        assert!(!error.to_string().contains(secret) && !error.to_string().contains('\n'));
    }

    let closed = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let nowhere = OpenOptions {
        endpoint_url: Some(format!("http://{closed}")),
        ..options()
    };
    let error = open(nowhere, None, "bucketfs-any")
        .await
        .expect_err("closed");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains(&closed.to_string()), "{error}");

    let plain = std::env::var(ENDPOINT)?;
    if plain.starts_with("http://") {
        let tls = OpenOptions {
            endpoint_url: Some(plain.replace("http://", "https://")),
            ..options()
        };
        let error = open(tls, None, "bucketfs-any").await.expect_err("no TLS");
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert!(error.to_string().contains("http://"), "{error}");
    }
    Ok(())
}

fn trial<F: Future<Output = Outcome>>(
    name: &str,
    test: impl FnOnce() -> F + Send + 'static,
) -> Trial {
    let there = std::env::var_os(ENDPOINT).is_some();
    let name = if there {
        name.to_owned()
    } else {
        format!("{name} (needs a server: {ENDPOINT}=http://HOST:PORT and AWS credentials)")
    };
    Trial::test(name, move || {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime
            .block_on(test())
            .map_err(|error| Failed::from(error.to_string()))
    })
    .with_ignored_flag(!there)
}

fn main() {
    let mut tests = vec![
        trial("opening", opening),
        trial("conditions", conditions),
        trial("increments", increments),
        trial("awkward_keys", keys::awkward_keys),
        trial("paging", keys::paging),
        trial(
            "what_is_copied_onto_itself_is_listed_all_the_while",
            what_is_copied_onto_itself_is_listed_all_the_while,
        ),
        trial("ranges", ranges),
        trial("metadata", metadata),
        trial("copies", copies),
        trial("refusals", refusals),
    ];
    tests.extend(large::trials());
    tests.extend(tags::trials());
    libtest_mimic::run(&Arguments::from_args(), tests).exit();
}
