//! Deletes under a condition where the server takes none.

use super::*;
use crate::clock;
use crate::driver::s3::Bucket;
use crate::driver::{ListRequest, Removal};
use std::time::Duration;

/// The etag of a tombstone of the first kind, by `md5sum`.
const ETAG: &str = "d2e042e486682cbcd6846c12cd2bd0c6";
const SIZE: usize = 83;

async fn bury(script: Vec<String>) -> (Bucket, JoinHandle<Vec<String>>) {
    let (mut bucket, server) = serve(script).await;
    bucket.findings.tombstones = true;
    bucket.findings.delete_many = true;
    (bucket, server)
}

fn put() -> String {
    answer("200 OK", &format!("ETag: \"{ETAG}\"\r\n"), "")
}

fn deleted() -> String {
    answer("204 No Content", "", "")
}

fn lost() -> String {
    complaint("412 Precondition Failed", "", "PreconditionFailed")
}

fn missing() -> String {
    complaint("404 Not Found", "", "NoSuchKey")
}

/// What a HEAD tells of a tombstone of this age.
fn tombstone(commit: &str, age: Duration) -> String {
    let time = httpdate::fmt_http_date(clock::wall() - age);
    format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {SIZE}\r\nETag: \"{ETAG}\"\r\n\
         Last-Modified: {time}\r\nx-amz-meta-bucketfs-commit: {commit}\r\n\r\n"
    )
}

fn matching() -> Precondition {
    Precondition::IfMatch(ETag::new("e"))
}

fn methods(heads: &[String]) -> Vec<&str> {
    let words = heads.iter().map(|head| head.split(' ').next());
    words.map(Option::unwrap_or_default).collect()
}

#[tokio::test]
async fn a_delete_puts_a_tombstone_in_the_place_of_the_version_first() {
    let (bucket, server) = bury(vec![put(), deleted()]).await;
    assert_eq!(bucket.capabilities().delete_condition, Strength::Checked);
    bucket.delete(&Key::from("k"), matching()).await.unwrap();
    let heads = server.await.unwrap();
    assert_eq!(methods(&heads), ["put", "delete"]);
    assert!(heads[0].contains("if-match: \"e\""), "{}", heads[0]);
    assert!(!heads[1].contains("if-match"));
}

#[tokio::test]
async fn of_two_who_delete_a_version_one_wins() {
    let key = Key::from("k");
    for there in [missing(), tombstone("0123456789abcdef", Duration::ZERO)] {
        let (bucket, server) = bury(vec![lost(), there]).await;
        let error = bucket.delete(&key, matching()).await.expect_err("lost");
        assert_eq!(error.kind(), ErrorKind::Changed);
        assert!(!error.maybe_applied());
        assert_eq!(methods(&server.await.unwrap()), ["put", "head"]);
    }
}

#[tokio::test]
async fn a_tombstone_whose_answer_was_lost_is_known_again() {
    let unknown = answer("500 Internal Server Error", "", "");
    let own = || tombstone("{commit}", Duration::ZERO);
    let (bucket, server) = bury(vec![
        unknown.clone(),
        lost(),
        own(),
        unknown,
        lost(),
        own(),
        deleted(),
    ])
    .await;
    let key = Key::from("k");
    for _ in 0..2 {
        // First the tombstone's answer is lost, then that to the delete.
        let error = bucket
            .delete(&key, matching())
            .await
            .expect_err("no answer");
        assert!(error.retryable(), "{error}");
    }
    bucket.delete(&key, matching()).await.unwrap();
    let heads = server.await.unwrap();
    let wanted = ["put", "put", "head", "delete", "put", "head", "delete"];
    assert_eq!(methods(&heads), wanted);
}

/// Who was refused before it had marked anything has deleted nothing, whatever is there by then.
#[tokio::test]
async fn only_who_has_sent_a_delete_has_deleted_what_is_gone() {
    let unknown = || answer("500 Internal Server Error", "", "");
    let script = [
        (vec![put(), unknown(), lost(), missing()], Ok(())),
        (
            vec![unknown(), lost(), missing()],
            Err((ErrorKind::Changed, false)),
        ),
    ];
    for (script, wanted) in script {
        let (bucket, server) = bury(script).await;
        let key = Key::from("k");
        let error = bucket.delete(&key, matching()).await.expect_err("unknown");
        assert!(error.retryable(), "{error}");
        let deleted = bucket.delete(&key, matching()).await;
        let told = deleted.map_err(|error| (error.kind(), error.maybe_applied()));
        assert_eq!(told, wanted);
        server.await.unwrap();
    }
}

#[tokio::test]
async fn many_are_deleted_by_one_request_and_only_as_they_were() {
    let removal = |name: &str, etag: &str| Removal {
        key: Key::from(name),
        if_match: (!etag.is_empty()).then(|| ETag::new(etag)),
    };
    let done = answer("200 OK", "", "<DeleteResult></DeleteResult>");
    // Which of the two puts comes first is not said.
    let (bucket, server) = bury(vec![lost(), missing(), done]).await;
    let removals = [removal("a", "e"), removal("b", "")];
    let results = bucket.delete_many(&removals).await.unwrap();
    let kinds = results
        .iter()
        .map(|result| result.as_ref().err().map(|error| error.kind()));
    assert_eq!(kinds.collect::<Vec<_>>(), [Some(ErrorKind::Changed), None]);
    assert_eq!(methods(&server.await.unwrap()), ["put", "head", "post"]);
}

#[tokio::test]
async fn a_tombstone_is_read_as_absent() {
    let key = Key::from("k");
    let facts = || tombstone("0", Duration::ZERO);
    let body = facts()
        + "bucketfs is deleting what was here; this object can be deleted. 0c5e2b97d1a84f36-1\n";
    let entry = |key: &str, etag: &str| {
        let time = "<LastModified>2009-10-12T17:50:00.000Z</LastModified>";
        format!("<Contents><Key>{key}</Key>{time}<ETag>{etag}</ETag><Size>{SIZE}</Size></Contents>")
    };
    let page = |entries: String, more: &str| {
        let text = format!("<ListBucketResult>{more}{entries}</ListBucketResult>");
        answer("200 OK", "", &text)
    };
    let more = "<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>";
    let end = "<IsTruncated>false</IsTruncated>";
    let (mut bucket, server) = bury(vec![
        facts(),
        body,
        page(entry("a", ETAG), more),
        page(entry("b", ETAG) + &entry("c", "e"), end),
    ])
    .await;
    // Whoever meets one reads it so, and only who deletes so removes forgotten ones.
    bucket.findings.tombstones = false;
    let error = bucket.head(&key).await.expect_err("absent");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = bucket
        .get(&key, GetOptions::default())
        .await
        .expect_err("absent");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let listed = bucket.list(ListRequest::flat(&Key::empty())).await.unwrap();
    let keys: Vec<_> = listed.entries.iter().map(|entry| &entry.key).collect();
    assert_eq!(keys, [&Key::from("c")]);
    let heads = server.await.unwrap();
    assert!(heads[3].contains("continuation-token=t"), "{}", heads[3]);
}

#[tokio::test]
async fn who_makes_an_object_waits_for_a_tombstone_and_replaces_one_that_was_left() {
    let create = || PutOptions {
        precondition: Precondition::IfAbsent,
        ..PutOptions::default()
    };
    let key = Key::from("k");
    let young = tombstone("0", Duration::ZERO);
    let made = answer("200 OK", GOOD, "");
    let script = vec![lost(), young.clone(), lost(), missing(), made.clone()];
    let (bucket, server) = bury(script).await;
    bucket.put(&key, "x".into(), create()).await.unwrap();
    let heads = server.await.unwrap();
    assert_eq!(methods(&heads), ["put", "head", "put", "head", "put"]);
    assert!(heads[4].contains("if-none-match: *"));

    let old = tombstone("0", Duration::from_secs(90));
    let (bucket, server) = bury(vec![lost(), old, made]).await;
    bucket.put(&key, "x".into(), create()).await.unwrap();
    let heads = server.await.unwrap();
    let replaced = format!("if-match: \"{ETAG}\"");
    assert!(heads[2].contains(&replaced), "{}", heads[2]);

    let other = answer("200 OK", GOOD, "");
    let (bucket, _server) = bury(vec![lost(), other]).await;
    let error = bucket
        .put(&key, "x".into(), create())
        .await
        .expect_err("there");
    assert_eq!(error.kind(), ErrorKind::Exists);
}

#[tokio::test]
async fn what_would_be_taken_for_a_tombstone_is_not_put() {
    let (bucket, _server) = bury(vec![]).await;
    let bytes =
        "bucketfs is deleting what was here; this object can be deleted. 0c5e2b97d1a84f36-2\n";
    let key = Key::from("k");
    let put = bucket.put(&key, bytes.into(), PutOptions::default());
    let error = put.await.expect_err("it would be gone");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}
