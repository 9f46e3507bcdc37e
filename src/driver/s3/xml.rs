//! The documents that the service sends, read event by event, and the one that it is sent.

use crate::driver::{BucketInfo, ETag, Error, ErrorKind, ListEntry, ObjectInfo, Page, Result};
use crate::key::Key;
use bytes::Bytes;
use quick_xml::Reader;
use quick_xml::events::Event;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What [`read`] finds, in the order of the document.
enum Node<'a> {
    /// An element without children: its parent's name, its own, and its text, which may be taken.
    Leaf(&'a [u8], &'a [u8], &'a mut String),
    /// The end of an element with children.
    End(&'a [u8]),
}

/// How deep elements may be nested.
const DEPTH: usize = 16;

fn corrupt(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, why)
}

/// Walks through a whole document whose root is one of `roots`.
fn read(xml: &[u8], roots: &[&str], mut visit: impl FnMut(Node<'_>) -> Result<()>) -> Result<()> {
    let mut reader = Reader::from_reader(xml);
    let mut path: Vec<Vec<u8>> = Vec::with_capacity(DEPTH);
    let mut depth = 0;
    let mut text = String::new();
    let mut leaf = false;
    let mut seen = false;
    let malformed =
        |cause: &dyn std::fmt::Display| corrupt(format!("the answer is not good XML: {cause}"));
    loop {
        match reader.read_event().map_err(|cause| malformed(&cause))? {
            Event::Start(start) => {
                let name = start.local_name();
                if depth == 0 {
                    if seen || !roots.iter().any(|root| root.as_bytes() == name.as_ref()) {
                        return Err(corrupt(format!(
                            "the answer is a document of type {:?} instead of {}",
                            String::from_utf8_lossy(name.as_ref()),
                            roots.join(" or ")
                        )));
                    }
                    seen = true;
                } else if depth == DEPTH {
                    return Err(corrupt("the answer is nested too deep"));
                }
                // The names' buffers serve for the whole document.
                match path.get_mut(depth) {
                    Some(slot) => {
                        slot.clear();
                        slot.extend_from_slice(name.as_ref());
                    }
                    None => path.push(name.as_ref().to_vec()),
                }
                depth += 1;
                text.clear();
                leaf = true;
            }
            Event::End(_) => {
                depth -= 1;
                let parent: &[u8] = match depth {
                    0 => b"",
                    depth => &path[depth - 1],
                };
                if leaf {
                    visit(Node::Leaf(parent, &path[depth], &mut text))?;
                } else {
                    visit(Node::End(&path[depth]))?;
                }
                leaf = false;
            }
            Event::Empty(empty) => {
                if depth == 0 {
                    let name = empty.local_name();
                    if seen || !roots.iter().any(|root| root.as_bytes() == name.as_ref()) {
                        return Err(corrupt("the answer is another document than expected"));
                    }
                    seen = true;
                } else {
                    text.clear();
                    let name = empty.local_name();
                    visit(Node::Leaf(&path[depth - 1], name.as_ref(), &mut text))?;
                }
                leaf = false;
            }
            Event::Text(part) => text.push_str(&part.decode().map_err(|cause| malformed(&cause))?),
            Event::CData(part) => text.push_str(&part.decode().map_err(|cause| malformed(&cause))?),
            Event::GeneralRef(name) => {
                match name.resolve_char_ref().map_err(|cause| malformed(&cause))? {
                    Some(c) => text.push(c),
                    None => text.push(match name.as_ref() {
                        b"lt" => '<',
                        b"gt" => '>',
                        b"amp" => '&',
                        b"quot" => '"',
                        b"apos" => '\'',
                        _ => return Err(corrupt("the answer has an unknown XML entity")),
                    }),
                }
            }
            Event::Eof if seen && depth == 0 => return Ok(()),
            Event::Eof => return Err(corrupt("the answer ends in the middle of a document")),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
        }
    }
}

/// An etag without the quotes (and the mark of weakness) that only some answers have.
pub(super) fn etag(text: &str) -> Option<ETag> {
    let text = text.trim();
    let text = text.strip_prefix("W/").unwrap_or(text);
    let bare = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text);
    (!bare.is_empty()).then(|| ETag::new(bare))
}

/// A time such as `2009-10-12T17:50:30.000Z`.
fn time(text: &str) -> Option<SystemTime> {
    let number = |range: std::ops::Range<usize>| -> Option<u64> {
        let digits = text.get(range)?;
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then_some(())?;
        digits.parse().ok()
    };
    let marks = text.as_bytes();
    for (at, mark) in [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')] {
        (*marks.get(at)? == mark).then_some(())?;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if year < 1970
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let rest = text.get(19..)?.strip_suffix('Z')?;
    let nanos = match rest.strip_prefix('.') {
        None if rest.is_empty() => 0,
        None => return None,
        Some(digits) => {
            let digits = digits.get(..digits.len().min(9))?;
            let width = u32::try_from(digits.len())
                .ok()
                .filter(|width| *width > 0)?;
            digits
                .bytes()
                .all(|byte| byte.is_ascii_digit())
                .then_some(())?;
            digits.parse::<u32>().ok()? * 10u32.pow(9 - width)
        }
    };
    // Days of the civil calendar, with years that begin in March so that leap days come last.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    Some(UNIX_EPOCH + Duration::new(days * 86_400 + hour * 3600 + minute * 60 + second, nanos))
}

/// Undoes `encoding-type=url`, where a space is a plus.
fn unescape(text: &str) -> Bytes {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Bytes::copy_from_slice(text.as_bytes());
    }
    let spaced = text.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced)
        .collect::<Vec<u8>>()
        .into()
}

/// A page of ListObjectsV2: objects and common prefixes in one order, that of their bytes.
pub(super) fn page(xml: &[u8]) -> Result<Page> {
    // Whether names are escaped may be told behind them.
    let mut escaped = false;
    let mut truncated = false;
    let mut next = None;
    let mut entries: Vec<(String, Option<ObjectInfo>)> = Vec::new();
    let (mut key, mut tag, mut size, mut modified) = (None, None, None, None);
    read(xml, &["ListBucketResult"], |node| {
        match node {
            Node::Leaf(b"ListBucketResult", name, text) => match name {
                b"EncodingType" => escaped = text == "url",
                b"IsTruncated" => truncated = text == "true",
                b"NextContinuationToken" => next = Some(std::mem::take(text)),
                _ => {}
            },
            Node::Leaf(b"Contents", name, text) => match name {
                b"Key" => key = Some(std::mem::take(text)),
                b"ETag" => tag = etag(text),
                b"Size" => size = text.trim().parse::<u64>().ok(),
                b"LastModified" => modified = time(text.trim()),
                _ => {}
            },
            Node::Leaf(b"CommonPrefixes", b"Prefix", text) => {
                entries.push((std::mem::take(text), None));
            }
            Node::End(b"Contents") => {
                let (Some(key), Some(etag), Some(size), Some(modified)) =
                    (key.take(), tag.take(), size.take(), modified.take())
                else {
                    return Err(corrupt("an entry lacks its key, size, time or etag"));
                };
                entries.push((
                    key,
                    Some(ObjectInfo {
                        size: Some(size),
                        etag,
                        modified,
                        attributes: None,
                        commits: Vec::new(),
                        version: None,
                    }),
                ));
            }
            Node::Leaf(..) | Node::End(_) => {}
        }
        Ok(())
    })?;
    let mut entries: Vec<ListEntry> = entries
        .into_iter()
        .map(|(key, object)| ListEntry {
            key: Key::new(if escaped { unescape(&key) } else { key.into() }),
            object,
        })
        .collect();
    // Objects and common prefixes come apart, and some servers order neither by bytes.
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    let next = next.filter(|_| truncated);
    if truncated && next.is_none() {
        return Err(corrupt(
            "a page says that it is not the last and not what follows",
        ));
    }
    Ok(Page { entries, next })
}

/// What a refusal says about itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Complaint {
    /// The code that decides what it means.
    pub code: String,
    /// The server's sentence.
    pub message: String,
    /// The region that the server wants the signature for.
    pub region: Option<String>,
}

/// The body of a refusal; `None` when it is no error document.
pub(super) fn complaint(xml: &[u8]) -> Option<Complaint> {
    let mut found = Complaint::default();
    read(xml, &["Error", "ErrorResponse"], |node| {
        if let Node::Leaf(b"Error", name, text) = node {
            match name {
                b"Code" => found.code = std::mem::take(text),
                b"Message" => found.message = std::mem::take(text),
                b"Region" => found.region = Some(std::mem::take(text)).filter(|r| !r.is_empty()),
                _ => {}
            }
        }
        Ok(())
    })
    .ok()?;
    (!found.code.is_empty()).then_some(found)
}

/// The answer of a copy: the new etag and time. The document may be an error although the status
/// said otherwise.
pub(super) fn copied(
    xml: &[u8],
) -> Result<std::result::Result<(ETag, Option<SystemTime>), Complaint>> {
    if let Some(complaint) = complaint(xml) {
        return Ok(Err(complaint));
    }
    let (mut tag, mut modified) = (None, None);
    read(xml, &["CopyObjectResult"], |node| {
        match node {
            Node::Leaf(_, b"ETag", text) => tag = etag(text),
            Node::Leaf(_, b"LastModified", text) => modified = time(text.trim()),
            Node::Leaf(..) | Node::End(_) => {}
        }
        Ok(())
    })?;
    match tag {
        Some(tag) => Ok(Ok((tag, modified))),
        None => Err(corrupt("the answer to a copy has no etag")),
    }
}

/// The keys that a DeleteObjects did not delete.
pub(super) fn undeleted(xml: &[u8]) -> Result<Vec<(String, Complaint)>> {
    let mut failed = Vec::new();
    let mut key = String::new();
    let mut complaint = Complaint::default();
    read(xml, &["DeleteResult"], |node| {
        match node {
            Node::Leaf(b"Error", b"Key", text) => key = std::mem::take(text),
            Node::Leaf(b"Error", b"Code", text) => complaint.code = std::mem::take(text),
            Node::Leaf(b"Error", b"Message", text) => complaint.message = std::mem::take(text),
            Node::End(b"Error") => {
                failed.push((std::mem::take(&mut key), std::mem::take(&mut complaint)));
            }
            Node::Leaf(..) | Node::End(_) => {}
        }
        Ok(())
    })?;
    Ok(failed)
}

/// The buckets of an account.
pub(super) fn buckets(xml: &[u8]) -> Result<Vec<BucketInfo>> {
    let mut buckets = Vec::new();
    let (mut name, mut created) = (None, None);
    read(
        xml,
        &["ListAllMyBucketsResult", "ListBucketsResult"],
        |node| {
            match node {
                Node::Leaf(b"Bucket", b"Name", text) => name = Some(std::mem::take(text)),
                Node::Leaf(b"Bucket", b"CreationDate", text) => created = time(text.trim()),
                Node::End(b"Bucket") => {
                    let created = created.take();
                    match name.take() {
                        Some(name) => buckets.push(BucketInfo { name, created }),
                        None => return Err(corrupt("a bucket has no name")),
                    }
                }
                Node::Leaf(..) | Node::End(_) => {}
            }
            Ok(())
        },
    )?;
    Ok(buckets)
}

/// Whether a document can hold this key.
pub(super) fn expressible(key: &Key) -> bool {
    key.to_str().is_some_and(|key| {
        key.chars().all(|c| {
            !matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}')
        })
    })
}

/// The body of a DeleteObjects for keys that are [`expressible`].
pub(super) fn delete<'a>(keys: impl Iterator<Item = &'a Key>) -> String {
    let mut xml = String::from(
        "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet>",
    );
    for key in keys {
        xml.push_str("<Object><Key>");
        for c in key.to_str().unwrap_or_default().chars() {
            match c {
                '<' => xml.push_str("&lt;"),
                '>' => xml.push_str("&gt;"),
                '&' => xml.push_str("&amp;"),
                '"' => xml.push_str("&quot;"),
                // Written plainly they would be read as other white space.
                '\t' | '\n' | '\r' | '\u{7f}'..='\u{9f}' | '\u{2028}' => {
                    // Writing to a string does not fail.
                    let _ = write!(xml, "&#{};", u32::from(c));
                }
                c => xml.push(c),
            }
        }
        xml.push_str("</Key></Object>");
    }
    xml.push_str("</Delete>");
    xml
}

#[cfg(test)]
mod tests {
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
            UNIX_EPOCH + Duration::from_millis(1_255_369_830_250)
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
    fn keys_survive_the_way_into_a_document() {
        let key = Key::from("a<b>&\"'\r\n\t\u{85} ä");
        let xml = delete([key.clone()].iter());
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
            [BucketInfo {
                name: "x".into(),
                created: None
            }]
        );
    }
}
