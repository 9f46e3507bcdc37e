//! The driver against servers that answer by a script: what no well-behaved server shows.

mod deletes;
mod foreign;
mod kept;
mod lines;
mod parts;
mod requests;
mod tombstones;

use super::probe::Findings;
use super::store::Target;
use super::{Account, Bucket, StaticCredentials, parse};
use crate::driver::{
    Body, CopyCapability, CopyOptions, Driver, ETag, Encryption, ErrorKind, GetOptions, Location,
    OpenOptions, Precondition, PutOptions, Source, Strength,
};
use crate::key::Key;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const GOOD: &str = "ETag: \"e\"\r\nLast-Modified: Mon, 12 Oct 2009 17:50:00 GMT\r\n";

async fn serve(script: Vec<String>) -> (Bucket, JoinHandle<Vec<String>>) {
    serve_with(OpenOptions::default(), script).await
}

/// Answers one request for each line of the script, and gives the heads of the requests.
async fn serve_with(
    options: OpenOptions,
    script: Vec<String>,
) -> (Bucket, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let options = OpenOptions {
        endpoint_url: Some(format!(
            "http://{}",
            listener.local_addr().expect("an address")
        )),
        region: Some("us-east-1".into()),
        ..options
    };
    let server = tokio::spawn(async move {
        let mut heads = Vec::new();
        for answer in script {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            let mut piece = [0; 4096];
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut piece).await {
                    Ok(count) if count > 0 => request.extend_from_slice(&piece[..count]),
                    _ => break,
                }
            }
            heads.push(String::from_utf8_lossy(&request).to_lowercase());
            let answer = answer.replace("{commit}", commit(&heads));
            // Without an answer it waits until the client gives up.
            if !answer.is_empty() {
                // The client may have gone away.
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
            while matches!(stream.read(&mut piece).await, Ok(count) if count > 0) {}
        }
        heads
    });
    let keys = StaticCredentials::new("AKIDTEST", "very-secret");
    let account = Account::configure(&options, Some(keys))
        .await
        .expect("settings");
    let bucket = Bucket {
        store: account.store.clone(),
        target: Arc::new(Target::new(Some("b"), account.store.site.clone())),
        account,
        findings: Findings {
            put: Strength::Atomic,
            upload: true,
            complete: Strength::Atomic,
            copy: Some(CopyCapability {
                source: Strength::Atomic,
                destination: Strength::Atomic,
            }),
            ..Findings::NOTHING
        },
        first: Arc::default(),
    };
    (bucket, server)
}

/// What the last request that told one was told as.
fn commit(heads: &[String]) -> &str {
    let told = heads.iter().rev().find_map(|head| {
        let (_, rest) = head.split_once("x-amz-meta-bucketfs-commit: ")?;
        rest.split_whitespace().next()
    });
    told.unwrap_or_default()
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

fn complaint(status: &str, headers: &str, code: &str) -> String {
    answer(
        status,
        headers,
        &format!("<Error><Code>{code}</Code></Error>"),
    )
}

#[tokio::test]
async fn the_region_is_learnt_once() {
    let moved = "x-amz-bucket-region: eu-west-7\r\n";
    let (bucket, server) = serve(vec![
        complaint("301 Moved Permanently", moved, "PermanentRedirect"),
        answer("200 OK", GOOD, ""),
        answer("200 OK", GOOD, ""),
    ])
    .await;
    let key = Key::from("k");
    bucket.head(&key).await.expect("found elsewhere");
    bucket.head(&key).await.expect("known now");
    let heads = server.await.expect("three requests");
    assert!(heads[0].contains("/us-east-1/s3/"));
    assert!(heads[1].contains("/eu-west-7/s3/") && heads[2].contains("/eu-west-7/s3/"));

    let away = "x-amz-bucket-region: eu-west-8\r\n";
    let (bucket, server) = serve(vec![
        complaint("301 Moved Permanently", moved, "PermanentRedirect"),
        complaint("301 Moved Permanently", away, "PermanentRedirect"),
    ])
    .await;
    let error = bucket
        .get(&key, GetOptions::default())
        .await
        .expect_err("sent around");
    assert!(!error.retryable(), "{error}");
    server.await.expect("two requests");
}

#[tokio::test]
async fn what_makes_no_sense_is_corrupt() {
    let key = Key::from("k");
    let cut = format!("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n{GOOD}\r\nhello");
    let (bucket, _server) = serve(vec![cut]).await;
    let object = bucket.get(&key, GetOptions::default()).await;
    let object = object
        .and_then(|outcome| outcome.found())
        .expect("a beginning");
    let error = object.collect().await.expect_err("cut");
    assert_eq!(
        (error.kind(), error.retryable()),
        (ErrorKind::Corrupt, true)
    );

    let ranged = |headers: &str, status| answer(status, &format!("{GOOD}{headers}"), "hello");
    for wrong in [
        answer("200 OK", "ETag: \"e\"\r\n", "hello"),
        answer("200 OK", "", "hello"),
        ranged("", "206 Partial Content"),
        ranged("Content-Range: bytes 1-5/9\r\n", "206 Partial Content"),
        ranged("Content-Range: bytes 2-5/9\r\n", "206 Partial Content"),
        ranged("", "200 OK"),
        "what is this?\r\n\r\n".into(),
    ] {
        let (bucket, _server) = serve(vec![wrong.clone()]).await;
        let options = GetOptions {
            range: Some(2..7),
            ..GetOptions::default()
        };
        let error = bucket.get(&key, options).await.expect_err(&wrong);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{wrong}");
        assert!(error.retryable());
    }
    let (bucket, _server) = serve(vec![answer("200 OK", "", "")]).await;
    let put = bucket.put(&key, "x".into(), PutOptions::default()).await;
    assert_eq!(put.expect_err("no etag").kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn failures_behind_a_good_status_are_seen() {
    let (a, b) = (Key::from("a"), Key::from("b"));
    let (bucket, _server) = serve(vec![complaint("200 OK", "", "InternalError")]).await;
    let error = bucket
        .copy(&a, &b, CopyOptions::default())
        .await
        .expect_err("failed");
    assert_eq!(
        (error.kind(), error.retryable()),
        (ErrorKind::Unavailable, true)
    );
}

#[tokio::test]
async fn an_account_has_more_buckets_than_a_page() {
    let page = |name: &str, next: &str| {
        let more = match next {
            "" => String::new(),
            next => format!("<ContinuationToken>{next}</ContinuationToken>"),
        };
        let text = format!(
            "<ListAllMyBucketsResult><Buckets><Bucket><Name>{name}</Name></Bucket></Buckets>{more}</ListAllMyBucketsResult>"
        );
        answer("200 OK", "", &text)
    };
    let names = async |bucket: &Bucket| {
        let found = bucket.buckets().await?;
        let names: Vec<String> = found.into_iter().map(|bucket| bucket.name).collect();
        Ok::<_, crate::driver::Error>(names.join(" "))
    };
    let (bucket, server) = serve(vec![page("a", "t/1"), page("b", "u"), page("c", "")]).await;
    assert_eq!(names(&bucket).await.expect("all"), "a b c");
    let heads = server.await.expect("the server");
    assert!(
        heads[0].starts_with("get /?max-buckets=1000 "),
        "{}",
        heads[0]
    );
    let second = "get /?continuation-token=t%2f1&max-buckets=1000 ";
    assert!(heads[1].starts_with(second), "{}", heads[1]);

    let (bucket, _server) = serve(vec![page("a", "t"), page("b", "t")]).await;
    let error = names(&bucket).await.expect_err("no end");
    assert_eq!(error.kind(), ErrorKind::Corrupt);

    // One that knows no pages.
    let refusal = complaint("400 Bad Request", "", "InvalidArgument");
    let (bucket, server) = serve(vec![refusal, page("a", "")]).await;
    assert_eq!(names(&bucket).await.expect("all"), "a");
    let heads = server.await.expect("the server");
    assert!(heads[1].starts_with("get / "), "{}", heads[1]);
}

/// Where the server looks at them, parts have checksums, also when they are put together; an upload
/// that copies parts has none.
#[tokio::test]
async fn parts_carry_checksums() {
    let begun =
        "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
    let done = "<CompleteMultipartUploadResult><ETag>&quot;f-1&quot;</ETag></CompleteMultipartUploadResult>";
    for copies_parts in [false, true] {
        let (mut bucket, server) = serve(vec![
            answer("200 OK", "", begun),
            answer("200 OK", GOOD, ""),
            answer("200 OK", "", done),
        ])
        .await;
        bucket.findings.part_checksum = true;
        let options = PutOptions {
            copies_parts,
            ..PutOptions::default()
        };
        let upload = bucket
            .upload(&Key::from("k"), options)
            .await
            .expect("begun");
        upload.part(1, "123456789".into()).await.expect("a part");
        let completed = upload.complete(Precondition::IfAbsent).await;
        completed.expect("completed");
        let heads = server.await.expect("the server");
        let has = |at: usize, text: &str| heads[at].contains(text);
        assert_eq!(has(0, "x-amz-checksum-algorithm: crc32\r\n"), !copies_parts);
        assert_eq!(has(1, "x-amz-checksum-crc32: y/q5jg==\r\n"), !copies_parts);
    }
}

#[tokio::test]
async fn an_upload_that_met_another_write_is_begun_anew() {
    let key = Key::from("k");
    let begun =
        "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
    let done = "<CompleteMultipartUploadResult><ETag>&quot;f-1&quot;</ETag></CompleteMultipartUploadResult>";
    for (last, kind) in [
        (answer("200 OK", "", done), None),
        (
            complaint("409 Conflict", "", "ConditionalRequestConflict"),
            Some((ErrorKind::NotFound, false)),
        ),
        (
            complaint("412 Precondition Failed", "", "PreconditionFailed"),
            Some((ErrorKind::Changed, false)),
        ),
        (
            complaint("404 Not Found", "", "NoSuchKey"),
            Some((ErrorKind::Changed, false)),
        ),
        (
            complaint("404 Not Found", "", "NoSuchUpload"),
            Some((ErrorKind::NotFound, false)),
        ),
        (
            complaint("200 OK", "", "InternalError"),
            Some((ErrorKind::Unavailable, true)),
        ),
    ] {
        let (bucket, server) = serve(vec![
            answer("200 OK", "", begun),
            answer("200 OK", GOOD, ""),
            last,
            answer("204 No Content", "", ""),
        ])
        .await;
        let upload = bucket
            .upload(&key, PutOptions::default())
            .await
            .expect("begun");
        upload.part(1, "x".into()).await.expect("a part");
        let condition = Precondition::IfMatch(ETag::new("e"));
        let completed = upload.complete(condition).await;
        let got = completed.map_err(|error| (error.kind(), error.retryable()));
        assert_eq!(got.as_ref().err(), kind.as_ref());
        if let Ok(info) = got {
            assert_eq!((info.etag.as_str(), info.size), ("f-1", Some(1)));
            server.abort();
            continue;
        }
        drop(upload);
        let heads = server.await.expect("four requests");
        assert!(heads[0].starts_with("post /b/k?uploads= "), "{}", heads[0]);
        assert!(heads[1].starts_with("put /b/k?partnumber=1&uploadid=u "));
        assert!(heads[2].starts_with("post /b/k?uploadid=u "));
        assert!(heads[2].contains("if-match: \"e\"\r\n"));
        assert!(heads[3].starts_with("delete /b/k?uploadid=u "));
    }
}

#[tokio::test]
async fn options_become_headers_of_what_is_written() {
    let options = OpenOptions {
        requester_pays: true,
        sse: Some(Encryption::KmsDsse),
        sse_kms_key_id: Some("alias/a".into()),
        storage_class: Some("STANDARD_IA".into()),
        ..OpenOptions::default()
    };
    let begun =
        "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
    let copied = "<CopyObjectResult><ETag>e</ETag></CopyObjectResult>";
    let script = vec![
        answer("200 OK", GOOD, ""),
        answer("200 OK", "", begun),
        answer("200 OK", "", copied),
        answer("200 OK", GOOD, ""),
        answer("204 No Content", "", ""),
    ];
    let (bucket, server) = serve_with(options, script).await;
    let (key, other) = (Key::from("k"), Key::from("l"));
    let mut kept = PutOptions::default();
    let headers = &mut kept.attributes.headers;
    headers.insert("x-amz-storage-class".into(), "ONEZONE_IA".into());
    headers.insert("cache-control".into(), "no-store".into());
    bucket.put(&key, "x".into(), kept).await.expect("put");
    let upload = bucket.upload(&key, PutOptions::default()).await;
    let upload = upload.expect("begun");
    bucket
        .copy(&key, &other, CopyOptions::default())
        .await
        .expect("copied");
    bucket.head(&key).await.expect("there");
    drop(upload);
    let heads = server.await.expect("five requests");
    for (at, head) in heads.iter().enumerate() {
        let makes = at < 3;
        for line in [
            "x-amz-server-side-encryption: aws:kms:dsse\r\n",
            "x-amz-server-side-encryption-aws-kms-key-id: alias/a\r\n",
            "x-amz-storage-class: standard_ia\r\n",
        ] {
            assert_eq!(head.contains(line), makes, "{head}");
        }
        assert!(
            head.contains("x-amz-request-payer: requester\r\n"),
            "{head}"
        );
        assert!(!head.contains("onezone_ia"), "{head}");
        assert_eq!(head.contains("cache-control: no-store\r\n"), at == 0);
        let signed = head.split("signedheaders=").nth(1).expect("a signature");
        assert!(signed.contains("x-amz-request-payer"), "{head}");
    }
}

#[tokio::test]
async fn without_credentials_nothing_is_signed() {
    let options = OpenOptions {
        no_sign_request: true,
        ..OpenOptions::default()
    };
    let script = vec![
        answer("200 OK", GOOD, ""),
        complaint("403 Forbidden", "", "AccessDenied"),
    ];
    let (bucket, server) = serve_with(options, script).await;
    let key = Key::from("k");
    bucket.head(&key).await.expect("public");
    let error = bucket.get(&key, GetOptions::default()).await;
    assert_eq!(error.expect_err("denied").kind(), ErrorKind::Denied);
    for head in server.await.expect("two requests") {
        assert!(
            !head.contains("authorization:") && !head.contains("x-amz-date"),
            "{head}"
        );
    }
}

#[tokio::test]
async fn a_rewrite_leaves_the_archive_and_keeps_other_classes() {
    for (class, kept) in [
        ("STANDARD_IA", Some("STANDARD_IA")),
        ("GLACIER_IR", Some("GLACIER_IR")),
        ("GLACIER", None),
        ("DEEP_ARCHIVE", None),
    ] {
        let headers = format!("{GOOD}x-amz-storage-class: {class}\r\n");
        let (bucket, _server) = serve(vec![answer("200 OK", &headers, "")]).await;
        let info = bucket.head(&Key::from("k")).await.expect("there");
        let headers = info.told_attributes().headers;
        let found = headers.get("x-amz-storage-class").map(String::as_str);
        assert_eq!(found, kept);
    }
}

#[tokio::test]
async fn lost_conditions_have_their_kinds() {
    for (status, code, kind, retryable) in [
        ("404 Not Found", "NoSuchKey", ErrorKind::Changed, false),
        (
            "412 Precondition Failed",
            "PreconditionFailed",
            ErrorKind::Changed,
            false,
        ),
        (
            "409 Conflict",
            "ConditionalRequestConflict",
            ErrorKind::Changed,
            true,
        ),
        ("503 Slow Down", "SlowDown", ErrorKind::Unavailable, true),
    ] {
        let (bucket, server) = serve(vec![complaint(status, "", code)]).await;
        let options = PutOptions {
            precondition: Precondition::IfMatch(ETag::new("e")),
            ..PutOptions::default()
        };
        let put = bucket.put(&Key::from("k"), "x".into(), options).await;
        let error = put.expect_err(code);
        assert_eq!((error.kind(), error.retryable()), (kind, retryable));
        let heads = server.await.expect("one request");
        assert!(heads[0].contains("if-match: \"e\"\r\n"), "{}", heads[0]);
        assert!(heads[0].contains("content-length: 1\r\n"));
        assert!(heads[0].contains("x-amz-content-sha256: unsigned-payload\r\n"));
    }
}

#[tokio::test]
async fn a_lost_copy_names_the_key_of_the_lost_condition() {
    let (from, to) = (Key::from("from"), Key::from("to"));
    let here = || answer("200 OK", GOOD, "");
    let gone = || answer("404 Not Found", "", "");
    let lost = || complaint("412 Precondition Failed", "", "PreconditionFailed");
    let missing = || complaint("404 Not Found", "", "NoSuchKey");
    let other = || answer("200 OK", &GOOD.replace("\"e\"", "\"f\""), "");
    let (absent, matching) = (
        Precondition::IfAbsent,
        Precondition::IfMatch(ETag::new("d")),
    );
    for (script, destination, kind, key) in [
        (vec![lost(), here()], &absent, ErrorKind::Exists, &to),
        (vec![lost(), here()], &matching, ErrorKind::Changed, &to),
        (vec![missing(), here()], &matching, ErrorKind::Changed, &to),
        (vec![lost(), lost()], &matching, ErrorKind::Changed, &from),
        (vec![lost(), other()], &matching, ErrorKind::Changed, &from),
        (vec![lost(), gone()], &matching, ErrorKind::NotFound, &from),
        (
            vec![missing(), gone()],
            &matching,
            ErrorKind::NotFound,
            &from,
        ),
        (vec![missing()], &absent, ErrorKind::NotFound, &from),
        (vec![lost()], &Precondition::None, ErrorKind::Changed, &from),
    ] {
        let requests = script.len();
        let (bucket, server) = serve(script).await;
        let options = CopyOptions {
            source: Some(ETag::new("e")),
            destination: destination.clone(),
            ..CopyOptions::default()
        };
        let error = bucket.copy(&from, &to, options).await.expect_err("lost");
        assert_eq!((error.kind(), error.key()), (kind, Some(key)), "{error}");
        assert_eq!(server.await.expect("all requests").len(), requests);
    }
}

struct Broken {
    len: u64,
    piece: std::result::Result<usize, std::io::ErrorKind>,
}

impl Source for Broken {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, _: Range<u64>) -> std::io::Result<Bytes> {
        let len = self.piece.map_err(std::io::Error::from)?;
        Ok(vec![0; len].into())
    }
}

#[tokio::test]
async fn a_body_that_cannot_be_read_is_no_fault_of_the_network() {
    for piece in [Err(std::io::ErrorKind::PermissionDenied), Ok(5), Ok(500)] {
        let (bucket, _server) = serve(vec![String::new()]).await;
        let body = Body::Source(Arc::new(Broken { len: 50, piece }));
        let put = bucket
            .put(&Key::from("k"), body, PutOptions::default())
            .await;
        let error = put.expect_err("unreadable");
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(!error.retryable());
    }
}

#[tokio::test]
async fn nothing_secret_is_shown() {
    let echo = answer(
        "403 Forbidden",
        "",
        "<Error><Code>Odd</Code><Message>very-secret!</Message></Error>",
    );
    let (bucket, _server) = serve(vec![echo]).await;
    let error = bucket
        .get(&Key::from("k"), GetOptions::default())
        .await
        .expect_err("denied");
    for shown in [
        error.to_string(),
        format!("{error:?}"),
        format!("{bucket:?}"),
        format!("{:?}", bucket.account),
        format!("{:?}", StaticCredentials::new("a", "very-secret")),
    ] {
        assert!(!shown.contains("very-secret"), "{shown}");
    }
}

#[test]
fn urls_name_a_bucket_and_a_prefix() {
    for (url, bucket, prefix) in [
        ("s3://", None, ""),
        ("s3:///", None, ""),
        ("s3://b", Some("b"), ""),
        ("s3://b/", Some("b"), ""),
        ("s3://My_bucket.x/a/b", Some("My_bucket.x"), "a/b/"),
        ("s3://b/a%20%23/", Some("b"), "a #/"),
        ("s3://b//a", Some("b"), "/a/"),
    ] {
        let location = Location::parse(url).expect(url);
        assert_eq!(
            parse(&location).expect(url),
            (bucket.map(str::to_owned), Key::from(prefix))
        );
    }
    for url in [
        "s3:///a",
        "s3:b",
        "s3://b:80",
        "s3://me:pw@b",
        "s3://b?x=1",
        "s3://b/a#c",
        "s3://b/%ff",
        "s3://a%2fb",
    ] {
        let Ok(location) = Location::parse(url) else {
            continue;
        };
        let error = parse(&location).expect_err(url);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(!error.to_string().contains("pw"));
    }
}
