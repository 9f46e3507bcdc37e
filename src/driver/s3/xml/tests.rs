//! Documents as services send them, and as they must not.

use super::*;

const PAGE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>p%2F</Prefix>
<IsTruncated>true</IsTruncated><NextContinuationToken>1/x+&amp;=</NextContinuationToken>
<Contents><Key>p/b+%2B%25%0A%C3%A4</Key><LastModified>2009-10-12T17:50:30.250Z</LastModified>
<ETag>&quot;fba9&quot;</ETag><Size>434234</Size><Owner><ID>Key</ID><DisplayName/></Owner><StorageClass>STANDARD</StorageClass></Contents>
<Contents><Key>p/a-b</Key><LastModified>2009-10-12T17:50:30Z</LastModified><ETag>"1"</ETag><Size>0</Size></Contents>
<CommonPrefixes><Prefix>p/a/</Prefix></CommonPrefixes><EncodingType>url</EncodingType></ListBucketResult>"#;

#[test]
fn a_page_is_merged_sorted_and_unescaped() {
    let page = page(PAGE.as_bytes()).expect("a good page");
    let keys: Vec<_> = page.entries.iter().map(|entry| entry.key.clone()).collect();
    assert_eq!(
        keys,
        [
            Key::from("p/a-b"),
            Key::from("p/a/"),
            Key::from("p/b +%\n\u{e4}")
        ]
    );
    assert_eq!(page.next.as_deref(), Some("1/x+&="));
    assert_eq!(page.entries[1].object, None);
    let object = page.entries[2].object.as_ref().expect("an object");
    assert_eq!((object.size, object.etag.as_str()), (Some(434_234), "fba9"));
    assert_eq!(
        object.modified,
        UNIX_EPOCH + Duration::from_secs(1_255_369_830)
    );
}

#[test]
fn names_are_taken_as_they_are_without_encoding_type() {
    let plain = PAGE.replace("<EncodingType>url</EncodingType>", "");
    let page = page(plain.as_bytes()).expect("a good page");
    assert_eq!(page.entries[2].key, Key::from("p/b+%2B%25%0A%C3%A4"));
}

#[test]
fn what_is_cut_or_of_another_kind_is_corrupt() {
    for xml in [
        &PAGE[..PAGE.len() - 30],
        &PAGE[..PAGE.len() / 2],
        "",
        "<html><body>hello</body></html>",
        "<ListAllMyBucketsResult></ListAllMyBucketsResult>",
        "<ListBucketResult/><ListBucketResult/>",
        "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        "<ListBucketResult><Contents><Key>k</Key></Contents></ListBucketResult>",
        "<ListBucketResult><Name>&bomb;</Name></ListBucketResult>",
    ] {
        assert_eq!(
            page(xml.as_bytes()).expect_err(xml).kind(),
            ErrorKind::Corrupt
        );
    }
    assert_eq!(
        page(b"<ListBucketResult/>").expect("empty"),
        Page::default()
    );
    let deep = format!("<ListBucketResult>{}", "<a>".repeat(1000));
    assert_eq!(
        page(deep.as_bytes()).expect_err("deep").kind(),
        ErrorKind::Corrupt
    );
}

#[test]
fn times_are_those_of_the_calendar() {
    let seconds =
        |text| time(text).map(|time| time.duration_since(UNIX_EPOCH).expect("later").as_secs());
    assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
    assert_eq!(seconds("2000-02-29T12:00:00.5Z"), Some(951_825_600));
    assert_eq!(
        seconds("2100-03-01T00:00:00.123456789012Z"),
        Some(4_107_542_400)
    );
    for wrong in [
        "",
        "2000-02-29",
        "2000-13-01T00:00:00Z",
        "2000-01-01T00:00:00+01:00",
        "20a0-01-01T00:00:00Z",
    ] {
        assert_eq!(time(wrong), None);
    }
}

#[test]
fn complaints_are_found_in_both_forms() {
    let plain = b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>a &lt; b</Message><Region>eu-west-1</Region><StringToSign>s</StringToSign></Error>";
    let found = complaint(plain).expect("an error");
    assert_eq!(
        (found.code.as_str(), found.message.as_str()),
        ("AuthorizationHeaderMalformed", "a < b")
    );
    assert_eq!(found.region.as_deref(), Some("eu-west-1"));
    let wrapped =
        b"<ErrorResponse><Error><Type>Sender</Type><Code>X</Code></Error></ErrorResponse>";
    assert_eq!(complaint(wrapped).expect("an error").code, "X");
    assert_eq!(complaint(b"<html/>"), None);
}

#[test]
fn a_copy_can_fail_after_its_status() {
    let done = copied(b"<CopyObjectResult><LastModified>2009-10-28T22:32:00Z</LastModified><ETag>&#34;9b&#34;</ETag></CopyObjectResult>");
    assert_eq!(done.expect("good XML").expect("a copy").0.as_str(), "9b");
    let failed = copied(b"<Error><Code>InternalError</Code></Error>");
    assert_eq!(
        failed.expect("good XML").expect_err("an error").code,
        "InternalError"
    );
    assert!(copied(b"<CopyObjectResult></CopyObjectResult>").is_err());
}

#[test]
fn uploads_are_read_and_parts_written() {
    let begun = b"<InitiateMultipartUploadResult><Bucket>b</Bucket><UploadId>i+/=</UploadId></InitiateMultipartUploadResult>";
    assert_eq!(initiated(begun).expect("good XML"), "i+/=");
    assert!(initiated(b"<InitiateMultipartUploadResult/>").is_err());
    let done = b"<CompleteMultipartUploadResult><ETag>&quot;e-2&quot;</ETag></CompleteMultipartUploadResult>";
    assert_eq!(
        completed(done).expect("good XML").expect("done").as_str(),
        "e-2"
    );
    let late = completed(b"  <Error><Code>InternalError</Code></Error>").expect("good XML");
    assert_eq!(late.expect_err("an error").code, "InternalError");
    let (one, two) = (ETag::new("a"), ETag::new("b<"));
    assert_eq!(
        complete([(1, &one, None), (7, &two, Some("y/Q5Jg=="))].into_iter()),
        "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
         <Part><PartNumber>1</PartNumber><ETag>\"a\"</ETag></Part>\
         <Part><PartNumber>7</PartNumber><ETag>\"b&lt;\"</ETag>\
         <ChecksumCRC32>y/Q5Jg==</ChecksumCRC32></Part></CompleteMultipartUpload>"
    );
    let page = uploads(
        b"<ListMultipartUploadsResult><IsTruncated>true</IsTruncated>\
        <NextKeyMarker>a+b</NextKeyMarker><NextUploadIdMarker>j</NextUploadIdMarker>\
        <Upload><Key>a+b</Key><UploadId>j</UploadId><Initiated>1970-01-01T00:00:07Z</Initiated></Upload>\
        <EncodingType>url</EncodingType></ListMultipartUploadsResult>",
    )
    .expect("good XML");
    let begun = UNIX_EPOCH + Duration::from_secs(7);
    assert_eq!(
        page,
        Uploads {
            uploads: vec![(Key::from("a b"), "j".into(), Some(begun))],
            next: Some(("a b".into(), "j".into())),
        }
    );
}

#[test]
fn keys_survive_the_way_into_a_document() {
    let key = Key::from("a<b>&\"'\r\n\t\u{85} ä");
    let xml = delete([Removal::from(key.clone())].iter());
    let mut got = None;
    read(xml.as_bytes(), &["Delete"], |node| {
        if let Node::Leaf(b"Object", b"Key", text) = node {
            got = Some(text.clone());
        }
        Ok(())
    })
    .expect("good XML");
    assert_eq!(got.map(Key::from), Some(key));
    assert!(expressible(&Key::from("a\tb")));
    assert!(!expressible(&Key::from("a\u{1}b")));
    assert!(!expressible(&Key::new(vec![0xff])));
}

#[test]
fn failed_deletes_and_buckets_are_read() {
    let failed = undeleted(b"<DeleteResult><Error><Key>a &amp; b</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>").expect("good XML");
    assert_eq!(failed[0].0, "a & b");
    assert_eq!(failed[0].1.code, "AccessDenied");
    let found = buckets(b"<ListAllMyBucketsResult><Owner><ID>i</ID></Owner><Buckets><Bucket><Name>x</Name><CreationDate>2019-12-11T23:32:47+00:00</CreationDate></Bucket></Buckets></ListAllMyBucketsResult>").expect("good XML");
    assert_eq!(
        found,
        (
            vec![BucketInfo {
                name: "x".into(),
                created: None
            }],
            None
        )
    );
    let more = buckets(b"<ListAllMyBucketsResult><Buckets/><ContinuationToken>a/b=</ContinuationToken></ListAllMyBucketsResult>");
    assert_eq!(more.expect("good XML"), (Vec::new(), Some("a/b=".into())));
}
