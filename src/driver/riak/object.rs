//! What an object is: one value, or several siblings of which one is the file and the others are shown
//! beside it. Facts are headers, of an answer or of a part of one.

use super::multipart;
use super::names::Place;
use crate::clock;
use crate::driver::metadata::{self, ascii, decode, encode};
use crate::driver::{Attributes, CommitId, ETag, Error, ErrorKind, ObjectInfo, Result};
use crate::key::Key;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, LAST_MODIFIED, LINK};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;
use std::time::SystemTime;

/// What user metadata begins with.
const META: &str = "x-riak-meta-";
/// What the entries of secondary indexes begin with.
const INDEX: &str = "x-riak-index-";
/// Where commit ids lie.
const COMMITS: &str = "x-riak-meta-bucketfs-commit";
/// Which write it was, with its time first: the writer knows it among siblings, and who created the
/// object before others is told by it.
const WRITE: HeaderName = HeaderName::from_static("x-riak-meta-bucketfs-write");
/// The vector clock of an object.
pub(super) const VCLOCK: HeaderName = HeaderName::from_static("x-riak-vclock");
const DELETED: HeaderName = HeaderName::from_static("x-riak-deleted");
/// The most bytes of metadata that go into the headers of a request for sure.
const MOST: usize = 4096;

fn corrupt(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, why)
}

/// One value of an object.
#[derive(Clone, Debug)]
pub(super) struct Sibling {
    /// Its own etag.
    pub tag: String,
    pub modified: SystemTime,
    pub attributes: Attributes,
    pub commits: Vec<CommitId>,
    pub write: Option<HeaderValue>,
    pub size: Option<u64>,
    /// The bytes, where the answer had them.
    pub body: Option<Bytes>,
}

/// What is at a key.
pub(super) struct State {
    /// What a write that replaces it all carries.
    pub vclock: HeaderValue,
    /// What the server itself compares conditions with.
    pub condition: Option<HeaderValue>,
    /// The values: the newest is the file. There is one at least.
    pub values: Vec<Sibling>,
}

/// What a look at a key has found.
pub(super) enum Looked {
    /// Nothing, or what a delete has left.
    Missing(Option<HeaderValue>),
    There(Box<State>),
}

impl Looked {
    pub(super) fn etag(&self) -> Option<ETag> {
        match self {
            Looked::Missing(_) => None,
            Looked::There(state) => Some(state.etag()),
        }
    }
}

impl State {
    /// Of an answer that tells one value.
    pub(super) fn single(headers: &HeaderMap, key: &Key, size: Option<u64>) -> Result<State> {
        let value = sibling(headers, key, size)?;
        Ok(State {
            vclock: vclock(headers).ok_or_else(|| corrupt("the answer has no vector clock"))?,
            condition: headers.get(ETAG).cloned(),
            values: vec![value],
        })
    }

    /// Of an answer with several values; those that deletes have left do not count.
    pub(super) fn multiple(headers: &HeaderMap, key: &Key, body: &Bytes) -> Result<Looked> {
        let clock = vclock(headers).ok_or_else(|| corrupt("the answer has no vector clock"))?;
        let kind = headers
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok());
        let mut values = Vec::new();
        for (told, bytes) in multipart::parts(kind.unwrap_or_default(), body)? {
            if told.contains_key(DELETED) {
                continue;
            }
            let mut value = sibling(&told, key, Some(bytes.len() as u64))?;
            value.body = Some(bytes);
            values.push(value);
        }
        values.sort_by(|a, b| (b.modified, &b.tag).cmp(&(a.modified, &a.tag)));
        if values.is_empty() {
            return Ok(Looked::Missing(Some(clock)));
        }
        Ok(Looked::There(Box::new(State {
            vclock: clock,
            condition: headers.get(ETAG).cloned(),
            values,
        })))
    }

    /// It names the values, all of them.
    pub(super) fn etag(&self) -> ETag {
        let mut tags: Vec<_> = self.values.iter().map(|value| value.tag.as_str()).collect();
        tags.sort_unstable();
        ETag::new(tags.join("+"))
    }

    /// The value that is the file.
    pub(super) fn main(&self) -> &Sibling {
        &self.values[0]
    }

    /// The others, each of which has bytes of its own.
    pub(super) fn others(&self) -> Vec<&Sibling> {
        let mut others: Vec<&Sibling> = Vec::new();
        for value in &self.values[1..] {
            let known = others.iter().copied().chain([self.main()]);
            if !known.into_iter().any(|other| other.body == value.body) {
                others.push(value);
            }
        }
        others
    }

    pub(super) fn info(&self) -> ObjectInfo {
        self.main().info(self.etag())
    }

    /// The conflict files beside the file.
    pub(super) fn beside(&self, place: &Place) -> Vec<(Place, Sibling)> {
        let others = self.others().into_iter();
        let named = others.map(|value| (place.beside(&value.tag, value.modified), value.clone()));
        named.collect()
    }
}

impl Sibling {
    pub(super) fn info(&self, etag: ETag) -> ObjectInfo {
        ObjectInfo {
            size: self.size,
            etag,
            modified: self.modified,
            attributes: Some(Arc::new(self.attributes.clone())),
            commits: self.commits.clone(),
            version: None,
        }
    }

    /// The facts of the conflict file that shows it.
    pub(super) fn own_info(&self) -> ObjectInfo {
        self.info(ETag::new(self.tag.as_str()))
    }

    /// Whether it was this write.
    pub(super) fn is_of(&self, write: &HeaderValue) -> bool {
        self.write.as_ref() == Some(write)
    }
}

pub(super) fn vclock(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(VCLOCK).cloned()
}

/// How many bytes an answer announces.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whether what came with an object goes with it, beside its user metadata.
fn is_carried(name: &HeaderName) -> bool {
    *name == CONTENT_ENCODING || *name == LINK || name.as_str().starts_with(INDEX)
}

/// All values of a header but those that the server adds.
fn carried(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values = headers.get_all(name).iter();
    let values = values.filter_map(|value| value.to_str().ok());
    let values = values.flat_map(|value| match *name == LINK {
        true => value.split(", ").collect(),
        false => vec![value],
    });
    let own = values.filter(|value| *name != LINK || !value.contains("rel=\"up\""));
    let own: Vec<_> = own.collect();
    (!own.is_empty()).then(|| own.join(", "))
}

/// The value that headers tell of. A media type that goes by the key is none of its own.
fn sibling(headers: &HeaderMap, key: &Key, size: Option<u64>) -> Result<Sibling> {
    let text = |name| {
        let value: Option<&HeaderValue> = headers.get(name);
        value.and_then(|value| value.to_str().ok())
    };
    let tag = text(ETAG).map(|tag| tag.trim_matches('"'));
    let tag = tag.filter(|tag| !tag.is_empty());
    let tag = tag.ok_or_else(|| corrupt("the answer has no etag"))?;
    let modified = text(LAST_MODIFIED).and_then(|time| httpdate::parse_http_date(time).ok());
    let modified = modified.ok_or_else(|| corrupt("the answer has no time of modification"))?;
    let mut attributes = Attributes {
        content_type: text(CONTENT_TYPE).map(str::to_owned),
        ..Attributes::default()
    };
    let mut commits = Vec::new();
    for name in headers.keys() {
        if name == COMMITS {
            commits = CommitId::parse(text(name.clone()).unwrap_or_default());
        } else if is_carried(name) {
            if let Some(value) = carried(headers, name) {
                attributes.headers.insert(name.as_str().to_owned(), value);
            }
        } else if let Some(own) = name.as_str().strip_prefix(META)
            && *name != WRITE
        {
            let value = decode(headers[name].as_bytes());
            attributes.user.insert(own.to_owned(), value);
        }
    }
    metadata::recognise(&mut attributes, META);
    let usual = metadata::media_type(key, attributes.mode);
    if attributes.content_type.as_deref() == Some(usual) {
        attributes.content_type = None;
    }
    Ok(Sibling {
        tag: tag.to_owned(),
        modified,
        attributes,
        commits,
        write: headers.get(WRITE).cloned(),
        size,
        body: None,
    })
}

/// The headers of an object that is to be written.
pub(super) fn describe(
    key: &Key,
    attributes: &Attributes,
    commits: &[CommitId],
) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    let kind = match &attributes.content_type {
        Some(kind) => kind,
        None => metadata::media_type(key, attributes.mode),
    };
    let value = ascii(kind).map_err(|_| {
        let why = format!("{kind:?} is no media type");
        Error::new(ErrorKind::InvalidArgument, why)
    })?;
    let mut size = 0;
    let mut add = |name: HeaderName, value: HeaderValue| {
        size += name.as_str().len() + value.len();
        headers.insert(name, value);
    };
    add(CONTENT_TYPE, value);
    for (name, value) in &attributes.headers {
        // Other stores may have other such names.
        if let Ok(name) = HeaderName::try_from(name)
            && is_carried(&name)
            && let Ok(value) = ascii(value)
        {
            add(name, value);
        }
    }
    for (name, value) in metadata::metadata(attributes, META) {
        let name = HeaderName::try_from(format!("{META}{name}"));
        if let Ok(name) = name
            && name != COMMITS
            && name != WRITE
        {
            add(name, encode(&value)?);
        }
    }
    if !commits.is_empty() {
        let value = ascii(&CommitId::format(commits))?;
        add(HeaderName::from_static(COMMITS), value);
    }
    if size > MOST {
        let why = format!(
            "its attributes are {size} bytes of metadata, and {MOST} are sent to Riak; use fewer or shorter extended attributes"
        );
        return Err(Error::new(ErrorKind::NoSpace, why));
    }
    Ok(headers)
}

/// Marks headers as those of a write of one's own, begun now.
pub(super) fn sign(headers: &mut HeaderMap) -> Result<HeaderValue> {
    let now = clock::wall().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_micros();
    let write = ascii(&format!("{now:016x}-{:016x}", clock::random()))?;
    headers.insert(WRITE, write.clone());
    Ok(write)
}

/// Whether an object can have these attributes, whatever commits it will have been through.
pub(super) fn check(attributes: &Attributes) -> Result<()> {
    let commits = [CommitId(0); CommitId::KEPT];
    describe(&Key::empty(), attributes, &commits).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, ascii(value).expect("text"));
        }
        headers
    }

    const GOOD: [(&str, &str); 3] = [
        ("x-riak-vclock", "a85hYGBgzGDKBVI8"),
        ("etag", "\"6dQBm9oYA1mxRSH0e96l5W\""),
        ("last-modified", "Mon, 12 Oct 2009 17:50:00 GMT"),
    ];

    #[test]
    fn what_others_stored_with_an_object_is_stored_again() {
        let key = Key::from("b/k.txt");
        let mut told = GOOD.to_vec();
        told.extend([
            ("content-type", "text/x-special"),
            ("content-encoding", "gzip"),
            ("link", "</buckets/b>; rel=\"up\""),
            ("link", "</buckets/b/keys/other>; riaktag=\"next\""),
            ("x-riak-index-age_int", "36"),
            ("x-riak-index-name_bin", "ada"),
            ("x-riak-index-name_bin", "lovelace"),
            ("x-riak-meta-color", "blue"),
            ("x-riak-meta-bucketfs-write", "1"),
        ]);
        let state = State::single(&headers(&told), &key, Some(1)).expect("good headers");
        assert_eq!(state.etag().as_str(), "6dQBm9oYA1mxRSH0e96l5W");
        let main = state.main();
        let sent = describe(&key, &main.attributes, &[CommitId(7)]).expect("describable");
        for (name, value) in [
            ("content-type", "text/x-special"),
            ("content-encoding", "gzip"),
            ("link", "</buckets/b/keys/other>; riaktag=\"next\""),
            ("x-riak-index-age_int", "36"),
            ("x-riak-index-name_bin", "ada, lovelace"),
            ("x-riak-meta-color", "blue"),
            ("x-riak-meta-bucketfs-commit", "0000000000000007"),
        ] {
            assert_eq!(sent[name], value);
        }
        assert_eq!(sent.len(), 7);
    }

    #[test]
    fn the_newest_sibling_is_the_file_and_others_with_its_bytes_are_no_conflict() {
        let part = |tag: &str, second: u32, body: &str| {
            format!(
                "\r\n--b\r\nEtag: {tag}\r\nLast-Modified: Mon, 12 Oct 2009 17:50:0{second} GMT\r\n\r\n{body}"
            )
        };
        let deleted = "\r\n--b\r\nEtag: t\r\nX-Riak-Deleted: true\r\n\r\n";
        let mut told = headers(&GOOD);
        told.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("multipart/mixed; boundary=b"),
        );
        let key = Key::from("b/k");
        let look = |parts: &[String]| {
            let body = Bytes::from(parts.concat() + "\r\n--b--\r\n");
            State::multiple(&told, &key, &body).expect("siblings")
        };
        let Looked::There(state) = look(&[
            part("a", 1, "old"),
            deleted.to_owned(),
            part("c", 3, "new"),
            part("b", 3, "new"),
        ]) else {
            panic!("there are values");
        };
        assert_eq!(state.etag().as_str(), "a+b+c");
        assert_eq!(state.main().tag, "c");
        let others: Vec<_> = state
            .others()
            .iter()
            .map(|value| value.tag.clone())
            .collect();
        assert_eq!(others, ["a"]);
        let gone = look(&[deleted.to_owned(), deleted.to_owned()]);
        assert!(matches!(gone, Looked::Missing(Some(_))));
    }

    #[test]
    fn an_answer_without_facts_is_corrupt() {
        for without in 0..GOOD.len() {
            let mut told = GOOD.to_vec();
            told.remove(without);
            let state = State::single(&headers(&told), &Key::from("b/k"), None);
            assert_eq!(
                state.err().map(|error| error.kind()),
                Some(ErrorKind::Corrupt)
            );
        }
    }
}
