//! Documents: what hashes, lists, sets, sorted sets and streams are as JSON, and back.
//!
//! Their members are strings of bytes, so strings are what is shown, one per line, in an order that
//! is the same each time: of names in hashes and sets, of scores in sorted sets. Bytes that are not
//! UTF-8 are `{"$binary": "BASE64"}`, and as a name `$binary:BASE64`.

use super::super::answer::{array, bytes, garbled};
use crate::driver::json::Members;
use crate::driver::{Error, ErrorKind, Result};
use ::redis::Value;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::value::RawValue;
use std::collections::HashSet;

const BINARY: &str = "$binary";
const BINARY_NAME: &str = "$binary:";

/// A document as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Document {
    /// Names and values, in the order of the text.
    Object(Vec<(Bytes, Bytes)>),
    Array(Vec<Bytes>),
}

fn refuse(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidDocument, why)
}

/// The bytes that a value stands for.
fn scalar(value: &RawValue, place: &str) -> Result<Bytes> {
    let text = value.get();
    let string = |text: &str| -> Result<String> {
        serde_json::from_str(text).map_err(|_| refuse(format!("{place} is no string")))
    };
    match text.as_bytes().first() {
        Some(b'"') => Ok(string(text)?.into_bytes().into()),
        Some(b'-' | b'0'..=b'9' | b't' | b'f') => Ok(text.to_owned().into_bytes().into()),
        Some(b'{') => {
            let Ok(Members(members)) = serde_json::from_str(text) else {
                return Err(refuse(format!("{place} is no string")));
            };
            match members.as_slice() {
                [(name, value)] if name == BINARY => {
                    let decoded = BASE64.decode(string(value.get())?);
                    let decoded = decoded.map_err(|_| refuse(format!("{place} is no base64")))?;
                    Ok(decoded.into())
                }
                _ => Err(refuse(format!(
                    "{place} is an object within the document; Redis keeps strings there"
                ))),
            }
        }
        Some(b'[') => Err(refuse(format!(
            "{place} is a list within the document; Redis keeps strings there"
        ))),
        _ => Err(refuse(format!(
            "{place} is null, which Redis does not keep; leave it out"
        ))),
    }
}

fn name_of(name: &str) -> Bytes {
    let decoded = name
        .strip_prefix(BINARY_NAME)
        .and_then(|text| BASE64.decode(text).ok());
    decoded.map_or_else(|| name.to_owned().into_bytes().into(), Bytes::from)
}

impl Document {
    pub(super) fn parse(text: &[u8]) -> Result<Document> {
        let text = std::str::from_utf8(text).map_err(|cause| {
            let at = cause.valid_up_to();
            refuse(format!(
                "it is not UTF-8 from byte {at} on, as JSON has to be"
            ))
        })?;
        let wrong = |cause: serde_json::Error| refuse(format!("it is not JSON: {cause}"));
        let empty = |what: &str| {
            refuse(format!(
                "Redis keeps no empty {what}; remove the file instead"
            ))
        };
        match text.trim_start().as_bytes().first() {
            Some(b'[') => {
                let items: Vec<Box<RawValue>> = serde_json::from_str(text).map_err(wrong)?;
                let items = items.iter().enumerate();
                let items = items.map(|(at, item)| scalar(item, &format!("item {at}")));
                let items = items.collect::<Result<Vec<_>>>()?;
                match items.is_empty() {
                    true => Err(empty("list")),
                    false => Ok(Document::Array(items)),
                }
            }
            Some(b'{') => {
                let Members(members) = serde_json::from_str(text).map_err(wrong)?;
                let mut seen = HashSet::new();
                let mut fields = Vec::with_capacity(members.len());
                for (name, value) in &members {
                    let field = name_of(name);
                    // What is spelled in two ways is one field.
                    if !seen.insert(field.clone()) {
                        return Err(refuse(format!("the field {name:?} is there twice")));
                    }
                    let place = format!("the field {name:?}");
                    fields.push((field, scalar(value, &place)?));
                }
                match fields.is_empty() {
                    true => Err(empty("hash")),
                    false => Ok(Document::Object(fields)),
                }
            }
            _ => {
                serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(wrong)?;
                Err(refuse("a document is an object or a list"))
            }
        }
    }

    /// As the server tells it, flat.
    pub(super) fn of(kind: &[u8], content: Value) -> Result<Document> {
        let content = array(content)?.into_iter().map(bytes);
        let content = content.collect::<Result<Vec<_>>>()?;
        Ok(match kind {
            b"hash" | b"zset" => {
                let pairs = content.chunks_exact(2);
                Document::Object(pairs.map(|p| (p[0].clone(), p[1].clone())).collect())
            }
            _ => Document::Array(content),
        })
    }

    /// The one text of this content.
    pub(super) fn render(self, kind: &[u8]) -> Bytes {
        let mut out = String::new();
        match self {
            Document::Object(mut fields) => {
                if kind == b"hash" {
                    fields.sort();
                }
                let lines = fields.iter().map(|(name, value)| {
                    let value = match kind {
                        b"zset" => score(value),
                        _ => shown(value),
                    };
                    format!("{}: {value}", shown_name(name))
                });
                block(&mut out, '{', lines, '}');
            }
            Document::Array(mut items) => {
                if kind == b"set" {
                    items.sort();
                    items.dedup();
                }
                block(&mut out, '[', items.iter().map(|item| shown(item)), ']');
            }
        }
        out.into_bytes().into()
    }

    /// The changes of fields from another document to this one, as `put.lua` takes them.
    pub(super) fn changes(&self, from: &Document) -> Vec<Bytes> {
        let (Document::Object(new), Document::Object(old)) = (self, from) else {
            return Vec::new();
        };
        let find = |list: &[(Bytes, Bytes)], name: &Bytes| {
            let found = list.iter().find(|(other, _)| other == name);
            found.map(|(_, value)| value.clone())
        };
        let mut changes = Vec::new();
        let mut note = |name: &Bytes, had: Option<Bytes>, get: Option<Bytes>| {
            let word = |there: bool, yes: &'static [u8], no: &'static [u8]| {
                Bytes::from_static(if there { yes } else { no })
            };
            let words = [
                word(had.is_some(), b"had", b"new"),
                word(get.is_some(), b"set", b"gone"),
            ];
            let [first, second] = words;
            changes.extend([
                name.clone(),
                first,
                had.unwrap_or_default(),
                second,
                get.unwrap_or_default(),
            ]);
        };
        for (name, value) in new {
            let had = find(old, name);
            if had.as_ref() != Some(value) {
                note(name, had, Some(value.clone()));
            }
        }
        for (name, value) in old {
            if find(new, name).is_none() {
                note(name, Some(value.clone()), None);
            }
        }
        changes
    }
}

/// A stream, whose entries have a name and fields.
pub(super) fn render_stream(content: Value) -> Result<Bytes> {
    let mut lines = Vec::new();
    for entry in array(content)? {
        let mut entry = array(entry)?.into_iter();
        let (id, fields) = (entry.next(), entry.next());
        let id = bytes(id.ok_or_else(garbled)?)?;
        let fields = array(fields.ok_or_else(garbled)?)?.into_iter().map(bytes);
        let fields = fields.collect::<Result<Vec<_>>>()?;
        let fields = fields.chunks_exact(2);
        let fields = fields.map(|pair| format!("{}: {}", shown_name(&pair[0]), shown(&pair[1])));
        let fields = fields.collect::<Vec<_>>().join(", ");
        lines.push(format!(
            "{{\"id\": {}, \"fields\": {{{fields}}}}}",
            shown(&id)
        ));
    }
    let mut out = String::new();
    block(&mut out, '[', lines.into_iter(), ']');
    Ok(out.into_bytes().into())
}

fn block(out: &mut String, open: char, lines: impl Iterator<Item = String>, close: char) {
    out.push(open);
    for (at, line) in lines.enumerate() {
        out.push_str(if at == 0 { "\n  " } else { ",\n  " });
        out.push_str(&line);
    }
    out.push('\n');
    out.push(close);
    out.push('\n');
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn shown(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => quoted(text),
        Err(_) => format!("{{\"{BINARY}\": \"{}\"}}", BASE64.encode(value)),
    }
}

fn shown_name(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) if !text.starts_with(BINARY_NAME) => quoted(text),
        _ => format!("\"{BINARY_NAME}{}\"", BASE64.encode(name)),
    }
}

/// A score, which JSON may lack a number for.
fn score(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value).into_owned();
    match serde_json::from_str::<serde_json::Number>(&text) {
        Ok(_) => text,
        Err(_) => quoted(&text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Document {
        Document::parse(text.as_bytes()).expect("a document")
    }

    #[test]
    fn a_document_comes_back_as_it_was() {
        let (binary, odd) = (vec![0xff, 0], b"$binary:x".to_vec());
        let fields: Vec<(Bytes, Bytes)> = vec![
            (b"a \"b\"\n".to_vec().into(), "ü\u{7f}".into()),
            (odd.into(), binary.clone().into()),
            (binary.into(), "".into()),
            ("n".into(), "1.10".into()),
        ];
        let text = Document::Object(fields.clone()).render(b"hash");
        let Document::Object(mut back) = object(std::str::from_utf8(&text).expect("UTF-8")) else {
            panic!("it is an object");
        };
        let mut fields = fields;
        fields.sort();
        back.sort();
        assert_eq!(back, fields);
        assert_eq!(
            object(&String::from_utf8_lossy(&text)).render(b"hash"),
            text
        );
    }

    #[test]
    fn what_people_write_is_taken() {
        let written = object("{\"n\": 1.10, \"b\" :true,\"s\":\"x\"}\n");
        assert_eq!(
            written.render(b"hash"),
            "{\n  \"b\": \"true\",\n  \"n\": \"1.10\",\n  \"s\": \"x\"\n}\n"
        );
        assert_eq!(
            object("[3,\"a\",\"a\"]").render(b"set"),
            "[\n  \"3\",\n  \"a\"\n]\n"
        );
        assert_eq!(
            object("{\"m\": 1e3}").render(b"zset"),
            "{\n  \"m\": 1e3\n}\n"
        );
        let changes = object("{\"a\":1,\"c\":3}").changes(&object("{\"a\":1,\"b\":2}"));
        let words = ["c", "new", "", "set", "3", "b", "had", "2", "gone", ""];
        assert_eq!(changes, words);
    }

    #[test]
    fn refusals_say_where() {
        for (text, why) in [
            ("{\"a\": 1,\n  b}", "line 2 column 3"),
            ("", "line 1 column 0"),
            ("12", "an object or a list"),
            ("{}", "no empty hash"),
            ("[]", "no empty list"),
            ("{\"a\": null}", "the field \"a\" is null"),
            ("{\"a\": {\"b\": 1}}", "the field \"a\" is an object within"),
            ("[[1]]", "item 0 is a list within"),
            ("{\"a\": 1, \"a\": 2}", "twice"),
            (
                "{\"a\": \"5\", \"$binary:YQ==\": \"6\"}",
                "the field \"$binary:YQ==\" is there twice",
            ),
            ("{\"a\": {\"$binary\": \"!\"}}", "no base64"),
        ] {
            let error = Document::parse(text.as_bytes()).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidDocument);
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
        let error = Document::parse(b"{\"a\": \"\xff\"}").expect_err("no UTF-8");
        assert!(error.to_string().contains("byte 7"), "{error}");
    }
}
