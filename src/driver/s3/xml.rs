//! The documents that the service sends, read event by event, and the one that it is sent.

use crate::driver::{
    BucketInfo, ETag, Error, ErrorKind, ListEntry, ObjectInfo, Page, Removal, Result,
};
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

/// A time such as `2009-10-12T17:50:30.000Z`, in whole seconds.
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
    // Headers tell whole seconds, so that more here would be another time for the same object.
    let fraction = match rest.strip_prefix('.') {
        None => rest.is_empty(),
        Some(digits) => !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()),
    };
    fraction.then_some(())?;
    // Days of the civil calendar, with years that begin in March so that leap days come last.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
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

/// A page of a listing, and what the contract has no place for.
#[derive(Debug)]
pub(super) struct Listed {
    /// Objects and common prefixes in one order, that of their bytes.
    pub page: Page,
    /// The storage classes of objects that are told to have one.
    pub classes: Vec<(Key, String)>,
}

/// A page of ListObjectsV2.
pub(super) fn listed(xml: &[u8]) -> Result<Listed> {
    // Whether names are escaped may be told behind them.
    let mut escaped = false;
    let mut truncated = None;
    let mut next = None;
    let mut common = false;
    let mut entries: Vec<(String, Option<ObjectInfo>)> = Vec::new();
    let mut classes: Vec<(usize, String)> = Vec::new();
    let (mut key, mut tag, mut size, mut modified) = (None, None, None, None);
    read(xml, &["ListBucketResult"], |node| {
        match node {
            Node::Leaf(b"ListBucketResult", name, text) => match name {
                b"EncodingType" => match text.trim() {
                    "" => {}
                    "url" => escaped = true,
                    other => {
                        return Err(corrupt(format!("names are in an unknown form {other:?}")));
                    }
                },
                b"IsTruncated" => match text.trim() {
                    "true" => truncated = Some(true),
                    "false" => truncated = Some(false),
                    other => {
                        return Err(corrupt(format!(
                            "{other:?} does not say whether a page is the last"
                        )));
                    }
                },
                b"NextContinuationToken" => {
                    next = Some(std::mem::take(text)).filter(|token| !token.is_empty());
                }
                b"Contents" | b"CommonPrefixes" => return Err(corrupt("an entry is empty")),
                _ => {}
            },
            Node::Leaf(b"Contents", name, text) => match name {
                b"Key" => key = Some(std::mem::take(text)).filter(|key| !key.is_empty()),
                b"ETag" => tag = etag(text),
                b"Size" => size = text.trim().parse::<u64>().ok(),
                b"LastModified" => modified = time(text.trim()),
                b"StorageClass" if text.trim() != "STANDARD" => {
                    classes.push((entries.len(), text.trim().to_owned()));
                }
                _ => {}
            },
            Node::Leaf(b"CommonPrefixes", b"Prefix", text) => {
                if text.is_empty() {
                    return Err(corrupt("a common prefix is empty"));
                }
                common = true;
                entries.push((std::mem::take(text), None));
            }
            Node::End(b"CommonPrefixes") => {
                if !std::mem::take(&mut common) {
                    return Err(corrupt("an entry lacks its prefix"));
                }
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
    let classes = classes
        .into_iter()
        .map(|(at, class)| (entries[at].key.clone(), class))
        .collect();
    // Objects and common prefixes come apart, and some servers order neither by bytes.
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    // A token without that word is believed: what follows must not be missed.
    let truncated = truncated.unwrap_or(next.is_some());
    let next = next.filter(|_| truncated);
    if truncated && next.is_none() {
        return Err(corrupt(
            "a page says that it is not the last and not what follows",
        ));
    }
    let page = Page { entries, next };
    Ok(Listed { page, classes })
}

/// Names and values of an object's tags.
pub(super) fn tags(xml: &[u8]) -> Result<Vec<(String, String)>> {
    let mut tags = Vec::new();
    let (mut name, mut value) = (None, None);
    read(xml, &["Tagging"], |node| {
        match node {
            Node::Leaf(b"Tag", b"Key", text) => name = Some(std::mem::take(text)),
            Node::Leaf(b"Tag", b"Value", text) => value = Some(std::mem::take(text)),
            Node::End(b"Tag") => match name.take() {
                Some(name) => tags.push((name, value.take().unwrap_or_default())),
                None => return Err(corrupt("a tag has no name")),
            },
            Node::Leaf(..) | Node::End(_) => {}
        }
        Ok(())
    })?;
    Ok(tags)
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

/// The answer of a copy of an object or a part: the new etag and time. The document may be an error although the status
/// said otherwise.
pub(super) fn copied(
    xml: &[u8],
) -> Result<std::result::Result<(ETag, Option<SystemTime>), Complaint>> {
    if let Some(complaint) = complaint(xml) {
        return Ok(Err(complaint));
    }
    let (mut tag, mut modified) = (None, None);
    read(xml, &["CopyObjectResult", "CopyPartResult"], |node| {
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

/// The id of an upload that was begun.
pub(super) fn initiated(xml: &[u8]) -> Result<String> {
    let mut id = None;
    read(xml, &["InitiateMultipartUploadResult"], |node| {
        if let Node::Leaf(_, b"UploadId", text) = node {
            id = Some(std::mem::take(text));
        }
        Ok(())
    })?;
    id.filter(|id| !id.is_empty())
        .ok_or_else(|| corrupt("the upload that was begun has no id"))
}

/// The answer to the completion of an upload: the object's etag. The document may be an error
/// although the status said otherwise.
pub(super) fn completed(xml: &[u8]) -> Result<std::result::Result<ETag, Complaint>> {
    if let Some(complaint) = complaint(xml) {
        return Ok(Err(complaint));
    }
    let mut tag = None;
    // moto calls it a response.
    let roots = [
        "CompleteMultipartUploadResult",
        "CompleteMultipartUploadResponse",
    ];
    read(xml, &roots, |node| {
        if let Node::Leaf(_, b"ETag", text) = node {
            tag = etag(text);
        }
        Ok(())
    })?;
    match tag {
        Some(tag) => Ok(Ok(tag)),
        None => Err(corrupt("the completed upload has no etag")),
    }
}

/// One page of the uploads that are under way.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Uploads {
    /// Key, id, and when it was begun.
    pub uploads: Vec<(Key, String, Option<SystemTime>)>,
    /// Where the next page begins: behind this key and this id.
    pub next: Option<(String, String)>,
}

/// Reads a page of uploads.
pub(super) fn uploads(xml: &[u8]) -> Result<Uploads> {
    let mut escaped = false;
    let mut truncated = false;
    let (mut next_key, mut next_id) = (String::new(), String::new());
    let mut found = Vec::new();
    let (mut key, mut id, mut begun) = (None, None, None);
    read(xml, &["ListMultipartUploadsResult"], |node| {
        match node {
            Node::Leaf(b"ListMultipartUploadsResult", name, text) => match name {
                b"EncodingType" => escaped = text == "url",
                b"IsTruncated" => truncated = text == "true",
                b"NextKeyMarker" => next_key = std::mem::take(text),
                b"NextUploadIdMarker" => next_id = std::mem::take(text),
                _ => {}
            },
            Node::Leaf(b"Upload", b"Key", text) => key = Some(std::mem::take(text)),
            Node::Leaf(b"Upload", b"UploadId", text) => id = Some(std::mem::take(text)),
            Node::Leaf(b"Upload", b"Initiated", text) => begun = time(text.trim()),
            Node::End(b"Upload") => match (key.take(), id.take()) {
                (Some(key), Some(id)) => found.push((key, id, begun.take())),
                _ => return Err(corrupt("an upload lacks its key or its id")),
            },
            Node::Leaf(..) | Node::End(_) => {}
        }
        Ok(())
    })?;
    let plain = |key: String| Key::new(if escaped { unescape(&key) } else { key.into() });
    let next = (truncated && !next_key.is_empty()).then(|| {
        let key = plain(next_key).to_str().unwrap_or_default().to_owned();
        (key, next_id)
    });
    Ok(Uploads {
        uploads: found
            .into_iter()
            .map(|(key, id, begun)| (plain(key), id, begun))
            .collect(),
        next,
    })
}

/// The body of the completion of an upload: its parts in the order of their numbers, with the
/// checksums that they were sent with.
pub(super) fn complete<'a>(
    parts: impl Iterator<Item = (u32, &'a ETag, Option<&'a str>)>,
) -> String {
    let mut xml =
        String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for (number, etag, checksum) in parts {
        xml.push_str("<Part><PartNumber>");
        // Writing to a string does not fail.
        let _ = write!(xml, "{number}");
        xml.push_str("</PartNumber><ETag>\"");
        escape(&mut xml, etag.as_str());
        xml.push_str("\"</ETag>");
        if let Some(checksum) = checksum {
            let _ = write!(xml, "<ChecksumCRC32>{checksum}</ChecksumCRC32>");
        }
        xml.push_str("</Part>");
    }
    xml.push_str("</CompleteMultipartUpload>");
    xml
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
            Node::Leaf(b"DeleteResult", b"Error", _) => return Err(corrupt("a failure is empty")),
            Node::End(b"Error") if key.is_empty() => {
                return Err(corrupt("a failure does not tell its key"));
            }
            Node::End(b"Error") => {
                failed.push((std::mem::take(&mut key), std::mem::take(&mut complaint)));
            }
            Node::Leaf(..) | Node::End(_) => {}
        }
        Ok(())
    })?;
    Ok(failed)
}

/// Buckets of an account, and how the list goes on.
pub(super) fn buckets(xml: &[u8]) -> Result<(Vec<BucketInfo>, Option<String>)> {
    let mut buckets = Vec::new();
    let mut next = None;
    let (mut name, mut created) = (None, None);
    read(
        xml,
        &["ListAllMyBucketsResult", "ListBucketsResult"],
        |node| {
            match node {
                Node::Leaf(b"Bucket", b"Name", text) => name = Some(std::mem::take(text)),
                Node::Leaf(b"Bucket", b"CreationDate", text) => created = time(text.trim()),
                Node::Leaf(_, b"ContinuationToken", text) => {
                    next = Some(std::mem::take(text)).filter(|token| !token.is_empty());
                }
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
    Ok((buckets, next))
}

/// Whether a document can hold this key.
pub(super) fn expressible(key: &Key) -> bool {
    key.to_str().is_some_and(|key| {
        key.chars().all(|c| {
            !matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}')
        })
    })
}

/// Writes text so that it is read back as it is.
fn escape(xml: &mut String, text: &str) {
    for c in text.chars() {
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
}

/// The body of a DeleteObjects for keys that are [`expressible`].
pub(super) fn delete<'a>(removals: impl Iterator<Item = &'a Removal>) -> String {
    let mut xml = String::from(
        "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet>",
    );
    for removal in removals {
        xml.push_str("<Object><Key>");
        escape(&mut xml, removal.key.to_str().unwrap_or_default());
        xml.push_str("</Key>");
        if let Some(etag) = &removal.if_match {
            xml.push_str("<ETag>");
            escape(&mut xml, &format!("\"{}\"", etag.as_str()));
            xml.push_str("</ETag>");
        }
        xml.push_str("</Object>");
    }
    xml.push_str("</Delete>");
    xml
}

#[cfg(test)]
fn page(xml: &[u8]) -> Result<Page> {
    listed(xml).map(|listed| listed.page)
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
