//! What is kept with an object beside its bytes, where a copy or a rewrite would lose it.

use super::*;
use crate::driver::ListRequest;

const COPIED: &str = "<CopyObjectResult><ETag>e</ETag></CopyObjectResult>";
const BEGUN: &str =
    "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
const DONE: &str =
    "<CompleteMultipartUploadResult><ETag>&quot;f-1&quot;</ETag></CompleteMultipartUploadResult>";
const TAGS: &str = "<Tagging><TagSet><Tag><Key>a b</Key><Value>\u{fc}&amp;/</Value></Tag>\
     <Tag><Key>n</Key><Value/></Tag></TagSet></Tagging>";
const TAGGED: &str = "x-amz-tagging: a%20b=%c3%bc%26%2f&n=\r\n";

fn listing(class: &str) -> String {
    let text = format!(
        "<ListBucketResult><Contents><Key>k</Key><ETag>e</ETag><Size>1</Size>\
         <LastModified>2009-10-12T17:50:30Z</LastModified>\
         <StorageClass>{class}</StorageClass></Contents></ListBucketResult>"
    );
    answer("200 OK", "", &text)
}

/// What a request says of the class.
fn class(head: &str) -> Option<&str> {
    let (_, rest) = head.split_once("\r\nx-amz-storage-class: ")?;
    rest.split("\r\n").next()
}

#[tokio::test]
async fn a_copy_has_the_class_that_was_told_last() {
    let (key, other) = (Key::from("k"), Key::from("l"));
    for (name, expected) in [
        ("STANDARD_IA", Some("standard_ia")),
        ("STANDARD", None),
        ("GLACIER", None),
    ] {
        let headers = format!("{GOOD}x-amz-storage-class: {name}\r\n");
        for told in [answer("200 OK", &headers, ""), listing(name)] {
            let lists = told.contains("<ListBucketResult>");
            let copied = || answer("200 OK", "", COPIED);
            let (bucket, server) = serve(vec![told, copied(), copied(), copied()]).await;
            match lists {
                true => drop(bucket.list(ListRequest::flat(&Key::empty())).await),
                false => drop(bucket.head(&key).await.expect("there")),
            }
            let copy = async |from: &Key, to: &Key, options| {
                let copied = bucket.copy(from, to, options).await;
                copied.expect("copied");
            };
            copy(&key, &other, CopyOptions::default()).await;
            // The copy's is known as well.
            copy(&other, &key, CopyOptions::default()).await;
            // What waits for a rename goes with it.
            let renamed = CopyOptions {
                attributes: Some(Default::default()),
                commits: vec![crate::driver::CommitId(1)],
                ..CopyOptions::default()
            };
            copy(&key, &other, renamed).await;
            let heads = server.await.expect("four requests");
            for head in &heads[1..] {
                assert!(head.starts_with("put "), "{head}");
                assert_eq!(class(head), expected, "{head}");
            }
        }
    }
}

/// MinIO names what it has moved to another store by a class that it takes from nobody.
#[tokio::test]
async fn a_class_that_nobody_can_ask_for_is_left_out() {
    let refused = || complaint("400 Bad Request", "", "InvalidStorageClass");
    let copied = answer("200 OK", "", COPIED);
    let headers = format!("{GOOD}x-amz-storage-class: WARM\r\n");
    let script = vec![
        answer("200 OK", &headers, ""),
        refused(),
        copied,
        refused(),
        answer("200 OK", GOOD, ""),
    ];
    let (bucket, server) = serve(script).await;
    let (key, other) = (Key::from("k"), Key::from("l"));
    let info = bucket.head(&key).await.expect("there");
    let copy = bucket.copy(&key, &other, CopyOptions::default());
    copy.await.expect("copied");
    let options = PutOptions {
        attributes: info.told_attributes(),
        ..PutOptions::default()
    };
    bucket.put(&key, "x".into(), options).await.expect("put");
    let heads = server.await.expect("five requests");
    let classes: Vec<_> = heads.iter().map(|head| class(head)).collect();
    assert_eq!(classes, [None, Some("warm"), None, Some("warm"), None]);
}

#[tokio::test]
async fn an_archived_object_is_not_copied_and_the_sentence_says_so() {
    let script = vec![complaint("403 Forbidden", "", "InvalidObjectState")];
    let (bucket, server) = serve(script).await;
    let (key, other) = (Key::from("k"), Key::from("l"));
    let copy = bucket.copy(&key, &other, CopyOptions::default()).await;
    let error = copy.expect_err("archived");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert_eq!(
        error.to_string(),
        "copy \"k\": InvalidObjectState; the object is archived: restore it before it is read, renamed or copied"
    );
    server.await.expect("one request");
}

/// Where a copy goes by a put or by parts, as on MinIO, its tags and its class go with it.
#[tokio::test]
async fn a_copy_through_other_requests_has_tags_and_class() {
    let (key, other) = (Key::from("k"), Key::from("l"));
    let told = "x-amz-tagging-count: 2\r\nx-amz-storage-class: ONEZONE_IA\r\n";
    let small = answer("200 OK", &format!("{GOOD}{told}"), "hello");
    // Larger than what is read of it.
    let large = format!(
        "HTTP/1.1 206 Partial Content\r\nConnection: close\r\nContent-Length: {}\r\n\
         Content-Range: bytes 0-{}/{}\r\n{GOOD}{told}\r\n",
        1 << 20,
        (1 << 20) - 1,
        2 << 20
    );
    let script = |first: String, rest: &[String]| {
        let mut script = vec![first, answer("200 OK", "", TAGS)];
        script.extend_from_slice(rest);
        script
    };
    let put = answer("200 OK", GOOD, "");
    let parts = ["", BEGUN, COPIED, DONE].map(|body| answer("200 OK", "", body));
    for script in [script(small, &[put]), script(large, &parts[1..])] {
        let requests = script.len();
        let (mut bucket, server) = serve(script).await;
        bucket.findings.copy = None;
        bucket.findings.part_copy = Strength::Atomic;
        let options = CopyOptions {
            source: Some(ETag::new("e")),
            destination: Precondition::IfAbsent,
            ..CopyOptions::default()
        };
        bucket.copy(&key, &other, options).await.expect("copied");
        let heads = server.await.expect("all requests");
        assert_eq!(heads.len(), requests);
        assert!(heads[1].starts_with("get /b/k?tagging= "), "{}", heads[1]);
        assert!(heads[2].contains(TAGGED), "{}", heads[2]);
        assert_eq!(class(&heads[2]), Some("onezone_ia"), "{}", heads[2]);
    }
}

/// A copy with new attributes keeps them too, as one on the server does.
#[tokio::test]
async fn a_copy_with_new_attributes_has_tags_and_class() {
    let told = "x-amz-tagging-count: 2\r\nx-amz-storage-class: ONEZONE_IA\r\n";
    let script = vec![
        answer("200 OK", &format!("{GOOD}{told}"), "hello"),
        answer("200 OK", "", TAGS),
        answer("200 OK", GOOD, ""),
    ];
    let (mut bucket, server) = serve(script).await;
    bucket.findings.copy = None;
    bucket.findings.part_copy = Strength::Atomic;
    let options = CopyOptions {
        attributes: Some(Default::default()),
        commits: vec![crate::driver::CommitId(1)],
        ..CopyOptions::default()
    };
    let (key, other) = (Key::from("k"), Key::from("l"));
    let copy = bucket.copy(&key, &other, options);
    copy.await.expect("copied");
    let heads = server.await.expect("three requests");
    assert!(heads[2].contains(TAGGED), "{}", heads[2]);
    assert_eq!(class(&heads[2]), Some("onezone_ia"), "{}", heads[2]);
}

#[tokio::test]
async fn a_rewrite_asks_for_tags_only_where_there_are_some() {
    let key = Key::from("k");
    for (count, tagged) in [
        ("", false),
        ("x-amz-tagging-count: 0\r\n", false),
        ("x-amz-tagging-count: 2\r\n", true),
    ] {
        let mut script = vec![answer("200 OK", &format!("{GOOD}{count}"), "")];
        if tagged {
            script.push(answer("200 OK", "", TAGS));
        }
        script.push(answer("200 OK", GOOD, ""));
        let (bucket, server) = serve(script).await;
        let info = bucket.head(&key).await.expect("there");
        let options = PutOptions {
            attributes: info.told_attributes(),
            precondition: Precondition::IfMatch(info.etag),
            ..PutOptions::default()
        };
        bucket.put(&key, "x".into(), options).await.expect("put");
        let heads = server.await.expect("all requests");
        let last = heads.last().expect("a put");
        assert!(last.starts_with("put "), "{last}");
        assert_eq!(last.contains(TAGGED), tagged, "{last}");
    }
    // A new name for bytes whose file has tags has none: it replaces nothing.
    let (bucket, server) = serve(vec![answer("200 OK", GOOD, "")]).await;
    let mut options = PutOptions {
        precondition: Precondition::IfAbsent,
        ..PutOptions::default()
    };
    let headers = &mut options.attributes.headers;
    headers.insert("x-amz-tagging-count".into(), "2".into());
    bucket.put(&key, "x".into(), options).await.expect("put");
    let heads = server.await.expect("one request");
    assert!(!heads[0].contains("x-amz-tagging"), "{}", heads[0]);
}

#[tokio::test]
async fn tags_that_may_not_be_read_are_not_lost_in_silence() {
    let script = vec![complaint("403 Forbidden", "", "AccessDenied")];
    let (bucket, server) = serve(script).await;
    let mut options = PutOptions::default();
    let headers = &mut options.attributes.headers;
    headers.insert("x-amz-tagging-count".into(), "2".into());
    let put = bucket.put(&Key::from("k"), "x".into(), options).await;
    let error = put.expect_err("denied");
    assert_eq!(error.kind(), ErrorKind::Denied);
    let why = "allow s3:GetObjectTagging and s3:PutObjectTagging there";
    assert!(error.to_string().ends_with(why), "{error}");
    server.await.expect("one request");
}
