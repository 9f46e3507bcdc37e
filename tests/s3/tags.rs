//! Tags that another client set, and storage classes.

use super::{ENDPOINT, Outcome, SERVER, options, trial, when};
use bucketfs::driver::s3::{Account, Bucket};
use bucketfs::driver::{Body, CopyOptions, Driver, ObjectInfo, Precondition, PutOptions, Strength};
use bucketfs::key::Key;
use libtest_mimic::Trial;
use std::io::Write;
use std::process::Command;

pub fn trials() -> Vec<Trial> {
    let there = Command::new("curl").arg("--version").output().is_ok();
    let tests = vec![
        trial("copies_have_tags_and_class", copies_have_tags_and_class),
        trial("rewrites_keep_tags", rewrites_keep_tags),
    ];
    let tests = tests.into_iter();
    tests
        .map(|test| match there {
            true => test,
            false => test.with_ignored_flag(true).with_kind("needs curl"),
        })
        .collect()
}

const TAGS: &str =
    "<Tagging><TagSet><Tag><Key>a b</Key><Value>c+/=:@</Value></Tag></TagSet></Tagging>";
const CLASS: &str = "x-amz-storage-class";

/// A fresh bucket, with its name.
async fn fresh() -> Result<(Bucket, String), Box<dyn std::error::Error>> {
    let account = Account::configure(&options(), None).await?;
    let name = format!("bucketfs-s3-{:016x}", bucketfs::clock::random());
    account.create_bucket(&name).await?;
    Ok((account.open(&name, &Key::empty()).await?, name))
}

/// Asks for the tags of an object, or sets them. `None` where the server refuses that.
fn tagging(bucket: &str, key: &Key, tags: Option<&str>) -> Result<Option<String>, std::io::Error> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let mut curl = Command::new("curl");
    curl.args(["-s", "-f", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user"]);
    curl.arg(format!(
        "{}:{}",
        variable("AWS_ACCESS_KEY_ID"),
        variable("AWS_SECRET_ACCESS_KEY")
    ));
    let mut body = tempfile::NamedTempFile::new()?;
    if let Some(tags) = tags {
        body.write_all(tags.as_bytes())?;
        // Of a body that is given in another way curl signs the type without being told.
        curl.arg("-T").arg(body.path());
    }
    let key = key.to_str().unwrap_or_default();
    curl.arg(format!("{}/{bucket}/{key}?tagging=", variable(ENDPOINT)));
    let output = curl.output()?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(output.status.success().then_some(told))
}

/// Other servers may know none.
fn without_tags() -> Outcome {
    match std::env::var(SERVER).is_ok_and(|server| server == "minio") {
        true => Err("MinIO takes and tells tags".into()),
        false => Ok(()),
    }
}

/// Whether an object has the tags that were set.
fn is_tagged(bucket: &str, key: &Key) -> Result<bool, std::io::Error> {
    let told = tagging(bucket, key, None)?.unwrap_or_default();
    Ok(told.contains("<Key>a b</Key>") && told.contains("<Value>c+/=:@</Value>"))
}

fn class(info: &ObjectInfo) -> Option<String> {
    info.told_attributes().headers.get(CLASS).cloned()
}

/// However large it is, and whether its copy goes by a put, by parts or by the server.
async fn copies_have_tags_and_class() -> Outcome {
    let (bucket, name) = fresh().await?;
    let Some(claim) = bucket.capabilities().copy else {
        return Ok(());
    };
    for size in [0, 5, 3 << 20] {
        let (from, to) = (format!("from{size}").into(), format!("to{size}").into());
        let mut put = PutOptions::default();
        let headers = &mut put.attributes.headers;
        headers.insert(CLASS.into(), "REDUCED_REDUNDANCY".into());
        let put = bucket.put(&from, Body::from(vec![7; size]), put).await?;
        if tagging(&name, &from, Some(TAGS))?.is_none() {
            return without_tags();
        }
        let kept = class(&bucket.head(&from).await?);
        let held = |strength| strength != Strength::None;
        for options in [
            CopyOptions::default(),
            CopyOptions {
                source: held(claim.source).then(|| put.etag.clone()),
                destination: match held(claim.destination) {
                    true => Precondition::IfAbsent,
                    false => Precondition::None,
                },
                ..CopyOptions::default()
            },
        ] {
            bucket.delete(&to, Precondition::None).await?;
            bucket.copy(&from, &to, options).await?;
            assert!(is_tagged(&name, &to)?, "{size}");
            assert_eq!(class(&bucket.head(&to).await?), kept, "{size}");
        }
    }
    Ok(())
}

async fn rewrites_keep_tags() -> Outcome {
    let (bucket, name) = fresh().await?;
    let key = Key::from("k");
    bucket
        .put(&key, "old".into(), when(Precondition::IfAbsent))
        .await?;
    if tagging(&name, &key, Some(TAGS))?.is_none() {
        return without_tags();
    }
    let info = bucket.head(&key).await?;
    // Some servers tell of tags only who reads.
    if info.told_attributes().headers.is_empty() {
        return without_tags();
    }
    let options = PutOptions {
        precondition: Precondition::IfMatch(info.etag.clone()),
        attributes: info.told_attributes(),
        ..PutOptions::default()
    };
    let put = bucket.put(&key, "new".into(), options.clone()).await?;
    assert!(is_tagged(&name, &key)?);
    let upload = bucket.upload(&key, options).await?;
    upload.part(1, "newer".into()).await?;
    upload.complete(Precondition::IfMatch(put.etag)).await?;
    assert!(is_tagged(&name, &key)?);
    Ok(())
}
