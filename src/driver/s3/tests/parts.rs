//! Parts that are copied by a server that does not look at the version there.

use super::*;
use crate::clock;
use crate::driver::progress::Progress;
use std::time::Duration;

const BEGUN: &str =
    "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
const COPIED: &str = "<CopyPartResult><ETag>p</ETag></CopyPartResult>";
const DONE: &str =
    "<CompleteMultipartUploadResult><ETag>&quot;f-1&quot;</ETag></CompleteMultipartUploadResult>";
const OTHER: &str = "ETag: \"n\"\r\nLast-Modified: Mon, 12 Oct 2009 17:50:00 GMT\r\n";
const WRITTEN: &str = "ETag: \"e\"\r\nLast-Modified: Mon, 12 Oct 2009 17:50:09 GMT\r\n";

/// Rebuilds an object of one part of its version `e`. Gives the outcome, and the requests' methods.
async fn rebuild(script: Vec<String>) -> (crate::driver::Result<()>, Vec<String>) {
    rebuild_on(script, false).await
}

async fn rebuild_on(
    script: Vec<String>,
    fresh_etags: bool,
) -> (crate::driver::Result<()>, Vec<String>) {
    let requests = script.len();
    let (mut bucket, server) = serve(script).await;
    bucket.findings.part_copy = Strength::Checked;
    bucket.findings.fresh_etags = fresh_etags;
    let key = Key::from("k");
    let options = PutOptions {
        copies_parts: true,
        ..PutOptions::default()
    };
    let upload = bucket.upload(&key, options).await.expect("begun");
    let etag = ETag::new("e");
    let mut outcome = upload.copy_part(1, &key, 0..5, etag.clone()).await;
    if outcome.is_ok() {
        let completed = upload.complete(Precondition::IfMatch(etag)).await;
        outcome = completed.map(drop);
    }
    let heads = server.await.expect("all requests");
    assert_eq!(heads.len(), requests);
    let method = |head: &String| head.split(' ').next().unwrap_or_default().to_owned();
    (outcome, heads.iter().map(method).collect())
}

fn body(text: &str) -> String {
    answer("200 OK", "", text)
}

fn head(headers: &str) -> String {
    answer("200 OK", headers, "")
}

#[tokio::test]
async fn a_source_that_stayed_what_it_was_is_looked_at_before_and_behind() {
    let script = vec![
        body(BEGUN),
        head(GOOD),
        body(COPIED),
        head(GOOD),
        body(DONE),
    ];
    let (outcome, methods) = rebuild(script).await;
    outcome.expect("rebuilt");
    assert_eq!(methods, ["post", "head", "put", "head", "post"]);
}

/// The same bytes again have the same etag.
#[tokio::test]
async fn a_source_that_was_written_meanwhile_is_not_used() {
    for now in [WRITTEN, OTHER] {
        let script = vec![body(BEGUN), head(GOOD), body(COPIED), head(now)];
        let (outcome, _) = rebuild(script).await;
        let error = outcome.expect_err("written");
        assert_eq!(error.kind(), ErrorKind::Changed);
    }
    let (outcome, _) = rebuild(vec![body(BEGUN), head(OTHER)]).await;
    assert_eq!(outcome.expect_err("written").kind(), ErrorKind::Changed);
}

/// In the second of its last change it could be written again, and nothing would tell.
#[tokio::test]
async fn a_source_that_was_written_just_now_is_waited_for() {
    let begun = || answer("200 OK", "Date: Mon, 12 Oct 2009 17:50:01 GMT\r\n", BEGUN);
    let script = vec![
        begun(),
        head(GOOD),
        head(GOOD),
        body(COPIED),
        head(GOOD),
        body(DONE),
    ];
    let since = clock::now();
    let (outcome, _) = rebuild(script).await;
    outcome.expect("rebuilt");
    assert!(clock::now() - since >= Duration::from_secs(1));
    let (outcome, _) = rebuild(vec![begun(), head(GOOD), head(WRITTEN)]).await;
    assert_eq!(outcome.expect_err("written").kind(), ErrorKind::Changed);
}

#[tokio::test]
async fn nobody_waits_where_an_etag_never_comes_back() {
    let begun = answer("200 OK", "Date: Mon, 12 Oct 2009 17:50:01 GMT\r\n", BEGUN);
    let script = |last| vec![begun.clone(), head(GOOD), body(COPIED), last];
    let (outcome, methods) =
        rebuild_on([script(head(GOOD)), vec![body(DONE)]].concat(), true).await;
    outcome.expect("rebuilt");
    assert_eq!(methods, ["post", "head", "put", "head", "post"]);
    let (outcome, _) = rebuild_on(script(head(OTHER)), true).await;
    assert_eq!(outcome.expect_err("written").kind(), ErrorKind::Changed);
}

#[tokio::test]
async fn a_copy_in_parts_tells_of_each() {
    let first = format!(
        "HTTP/1.1 206 Partial Content\r\nConnection: close\r\nContent-Length: 1048576\r\n{GOOD}Content-Range: bytes 0-1048575/536870912\r\n\r\n"
    );
    let (mut bucket, _server) = serve(vec![
        first,
        body(BEGUN),
        body(COPIED),
        body(COPIED),
        body(DONE),
    ])
    .await;
    bucket.findings.part_copy = Strength::Atomic;
    bucket.findings.copy = None;
    let progress = Progress::begin();
    let before = progress.last();
    let (from, to) = (Key::from("from"), Key::from("to"));
    let copy = bucket.copy(&from, &to, CopyOptions::default());
    progress.clone().of(copy).await.expect("copied");
    assert!(progress.last() > before);
}
