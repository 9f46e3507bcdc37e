//! Documents as relaxed Extended JSON, and back: in the order that they have, with the types that
//! their fields had.

use crate::driver::{Error, ErrorKind, Result};
use ::mongodb::bson::oid::ObjectId;
use ::mongodb::bson::spec::BinarySubtype;
use ::mongodb::bson::{
    Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, Regex, Timestamp, Uuid,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::fmt;

/// As deep as a document can be.
const DEPTH: usize = 100;
/// The last year of a date that is written as text.
const LAST: i64 = 253_402_300_799_999;

/// JSON with its order, and numbers as they are written.
#[derive(Clone, Debug)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Number(String),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

/// Numbers are the same by value.
impl PartialEq for Json {
    fn eq(&self, other: &Json) -> bool {
        match (self, other) {
            (Json::Null, Json::Null) => true,
            (Json::Bool(a), Json::Bool(b)) => a == b,
            (Json::String(a), Json::String(b)) => a == b,
            (Json::Array(a), Json::Array(b)) => a == b,
            (Json::Object(a), Json::Object(b)) => a == b,
            (Json::Number(a), Json::Number(b)) => {
                let whole = (a.parse::<i64>(), b.parse::<i64>());
                let double = (a.parse::<f64>(), b.parse::<f64>());
                match (whole, double) {
                    ((Ok(a), Ok(b)), _) => a == b,
                    (_, (Ok(a), Ok(b))) => a == b,
                    _ => false,
                }
            }
            _ => false,
        }
    }
}

fn refuse(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidDocument, why)
}

/// The items of an array, and the members of an object, in order.
struct Items(Vec<Box<RawValue>>);
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Ordered;
        impl<'de> Visitor<'de> for Ordered {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Ordered)
    }
}

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Ordered;
        impl<'de> Visitor<'de> for Ordered {
            type Value = Items;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> std::result::Result<Items, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Items(items))
            }
        }
        from.deserialize_seq(Ordered)
    }
}

fn read(text: &str, depth: usize) -> Result<Json> {
    if depth == 0 {
        return Err(refuse(format!("it is nested more than {DEPTH} deep")));
    }
    let wrong = |cause: serde_json::Error| refuse(format!("it is not JSON: {cause}"));
    let text = text.trim();
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let Members(members) = serde_json::from_str(text).map_err(wrong)?;
            let mut seen = HashSet::new();
            let mut fields = Vec::with_capacity(members.len());
            for (name, value) in &members {
                if !seen.insert(name) {
                    return Err(refuse(format!("the field {name:?} is there twice")));
                }
                fields.push((name.clone(), read(value.get(), depth - 1)?));
            }
            Json::Object(fields)
        }
        Some(b'[') => {
            let Items(items) = serde_json::from_str(text).map_err(wrong)?;
            let items = items.iter().map(|item| read(item.get(), depth - 1));
            Json::Array(items.collect::<Result<_>>()?)
        }
        Some(b'"') => Json::String(serde_json::from_str(text).map_err(wrong)?),
        Some(b't' | b'f') => Json::Bool(text == "true"),
        Some(b'n') => Json::Null,
        _ => Json::Number(text.to_owned()),
    })
}

/// An object of one member, as types are written.
fn wrapped(name: &str, value: Json) -> Json {
    Json::Object(vec![(name.to_owned(), value)])
}

fn string(text: impl Into<String>) -> Json {
    Json::String(text.into())
}

fn number(number: impl ToString) -> Json {
    Json::Number(number.to_string())
}

impl Json {
    /// Parses a text whole; errors tell line and column.
    pub(super) fn parse(text: &[u8]) -> Result<Json> {
        let text = std::str::from_utf8(text).map_err(|cause| {
            let at = cause.valid_up_to();
            refuse(format!(
                "it is not UTF-8 from byte {at} on, as JSON has to be"
            ))
        })?;
        let whole: &RawValue = serde_json::from_str(text)
            .map_err(|cause| refuse(format!("it is not JSON: {cause}")))?;
        read(whole.get(), DEPTH)
    }

    /// How a value is shown.
    pub(super) fn of(value: &Bson) -> Json {
        let object = |members: Vec<(&str, Json)>| {
            let members = members.into_iter();
            Json::Object(
                members
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect(),
            )
        };
        match value {
            Bson::Null => Json::Null,
            Bson::Boolean(yes) => Json::Bool(*yes),
            Bson::Int32(n) => number(n),
            Bson::Int64(n) => number(n),
            Bson::Double(n) if n.is_finite() => Json::Number(format!("{n:?}")),
            Bson::Double(n) => {
                let word = match (n.is_nan(), *n > 0.0) {
                    (true, _) => "NaN",
                    (false, true) => "Infinity",
                    (false, false) => "-Infinity",
                };
                wrapped("$numberDouble", string(word))
            }
            Bson::Decimal128(n) => wrapped("$numberDecimal", string(n.to_string())),
            Bson::String(text) => string(text),
            Bson::Array(items) => Json::Array(items.iter().map(Json::of).collect()),
            Bson::Document(document) => Json::of_document(document),
            Bson::ObjectId(id) => wrapped("$oid", string(id.to_hex())),
            Bson::DateTime(date) => {
                let millis = date.timestamp_millis();
                let text = match (0..=LAST).contains(&millis) {
                    true => date.try_to_rfc3339_string().ok(),
                    false => None,
                };
                let told = text.map(string);
                let told =
                    told.unwrap_or_else(|| wrapped("$numberLong", string(millis.to_string())));
                wrapped("$date", told)
            }
            Bson::Binary(binary) => match binary.to_uuid() {
                Ok(uuid) if binary.subtype == BinarySubtype::Uuid => {
                    wrapped("$uuid", string(uuid.to_string()))
                }
                _ => {
                    let kind = format!("{:02x}", u8::from(binary.subtype));
                    let members = vec![
                        ("base64", string(BASE64.encode(&binary.bytes))),
                        ("subType", string(kind)),
                    ];
                    wrapped("$binary", object(members))
                }
            },
            Bson::Timestamp(at) => {
                let members = vec![("t", number(at.time)), ("i", number(at.increment))];
                wrapped("$timestamp", object(members))
            }
            Bson::RegularExpression(regex) => {
                let members = vec![
                    ("pattern", string(regex.pattern.to_string())),
                    ("options", string(regex.options.to_string())),
                ];
                wrapped("$regularExpression", object(members))
            }
            Bson::JavaScriptCode(code) => wrapped("$code", string(code)),
            Bson::JavaScriptCodeWithScope(code) => object(vec![
                ("$code", string(&code.code)),
                ("$scope", Json::of_document(&code.scope)),
            ]),
            Bson::Symbol(text) => wrapped("$symbol", string(text)),
            Bson::MinKey => wrapped("$minKey", number(1)),
            Bson::MaxKey => wrapped("$maxKey", number(1)),
            Bson::Undefined => wrapped("$undefined", Json::Bool(true)),
            Bson::DbPointer(pointer) => wrapped("$dbPointer", string(format!("{pointer:?}"))),
        }
    }

    pub(super) fn of_document(document: &Document) -> Json {
        let fields = document.iter();
        Json::Object(
            fields
                .map(|(name, value)| (name.clone(), Json::of(value)))
                .collect(),
        )
    }

    /// Whether it is shown on one line: it holds nothing, or is the one value of a type.
    fn is_short(&self) -> bool {
        match self {
            Json::Array(items) => items.is_empty(),
            Json::Object(fields) => match fields.first() {
                None => true,
                Some((name, _)) => name.starts_with('$') && name != "$scope" && fields.len() == 1,
            },
            _ => true,
        }
    }

    fn write(&self, out: &mut String, indent: Option<usize>) {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let indent = indent.filter(|_| !self.is_short());
        let breaks = |out: &mut String, indent: Option<usize>, first: bool| {
            if !first {
                out.push(',');
            }
            if let Some(indent) = indent {
                out.push('\n');
                out.extend(std::iter::repeat_n("  ", indent + 1));
            } else if !first {
                out.push(' ');
            }
        };
        let close = |out: &mut String, indent: Option<usize>, sign: char| {
            if let Some(indent) = indent {
                out.push('\n');
                out.extend(std::iter::repeat_n("  ", indent));
            }
            out.push(sign);
        };
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(yes) => out.push_str(if *yes { "true" } else { "false" }),
            Json::Number(number) => out.push_str(number),
            Json::String(text) => out.push_str(&quoted(text)),
            Json::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    breaks(out, indent, at == 0);
                    item.write(out, indent.map(|indent| indent + 1));
                }
                close(out, indent, ']');
            }
            Json::Object(fields) => {
                out.push('{');
                for (at, (name, value)) in fields.iter().enumerate() {
                    breaks(out, indent, at == 0);
                    out.push_str(&quoted(name));
                    out.push_str(": ");
                    value.write(out, indent.map(|indent| indent + 1));
                }
                close(out, indent, '}');
            }
        }
    }

    /// One field per line, as files show it.
    pub(super) fn pretty(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, Some(0));
        out.push('\n');
        out
    }

    /// Without any space, as names show it.
    pub(super) fn compact(&self) -> String {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        match self {
            Json::Array(items) => {
                let items: Vec<_> = items.iter().map(Json::compact).collect();
                format!("[{}]", items.join(","))
            }
            Json::Object(fields) => {
                let fields = fields.iter();
                let fields: Vec<_> = fields
                    .map(|(name, value)| format!("{}:{}", quoted(name), value.compact()))
                    .collect();
                format!("{{{}}}", fields.join(","))
            }
            other => {
                let mut out = String::new();
                other.write(&mut out, None);
                out
            }
        }
    }

    /// The document that it is; fields that `old` has keep their types.
    pub(super) fn document(&self, old: Option<&Document>) -> Result<Document> {
        let Json::Object(fields) = self else {
            return Err(refuse("a document is an object"));
        };
        within(fields, old, "")
    }

    /// The value that it is. What looks as `old` does is `old`, and a number is of its type.
    pub(super) fn value(&self, old: Option<&Bson>, place: &str) -> Result<Bson> {
        if let Some(old) = old
            && *self == Json::of(old)
        {
            return Ok(old.clone());
        }
        Ok(match self {
            Json::Null => Bson::Null,
            Json::Bool(yes) => Bson::Boolean(*yes),
            Json::String(text) => Bson::String(text.clone()),
            Json::Number(text) => numeric(text, old, place)?,
            Json::Array(items) => {
                let olds = match old {
                    Some(Bson::Array(olds)) => olds.as_slice(),
                    _ => &[],
                };
                let items = items.iter().enumerate().map(|(at, item)| {
                    let place = format!("{place}[{at}]");
                    item.value(olds.get(at), &place)
                });
                Bson::Array(items.collect::<Result<_>>()?)
            }
            Json::Object(fields) => match typed(fields, place)? {
                Some(value) => value,
                None => {
                    let old = match old {
                        Some(Bson::Document(old)) => Some(old),
                        _ => None,
                    };
                    Bson::Document(within(fields, old, place)?)
                }
            },
        })
    }
}

fn within(fields: &[(String, Json)], old: Option<&Document>, place: &str) -> Result<Document> {
    let mut document = Document::new();
    for (name, value) in fields {
        if name.contains('\0') {
            return Err(refuse("the name of a field cannot hold a NUL"));
        }
        let place = match place {
            "" => name.clone(),
            place => format!("{place}.{name}"),
        };
        let value = value.value(old.and_then(|old| old.get(name)), &place)?;
        document.insert(name, value);
    }
    Ok(document)
}

fn numeric(text: &str, old: Option<&Bson>, place: &str) -> Result<Bson> {
    let wrong = || refuse(format!("{place}: no number can be {text}"));
    if let Some(Bson::Decimal128(_)) = old {
        return Ok(text.parse::<Decimal128>().map_err(|_| wrong())?.into());
    }
    let double = || -> Result<Bson> {
        let double: f64 = text.parse().map_err(|_| wrong())?;
        if !double.is_finite() {
            return Err(wrong());
        }
        Ok(Bson::Double(double))
    };
    match (text.parse::<i64>(), old) {
        (Ok(_), Some(Bson::Double(_))) => double(),
        (Ok(n), Some(Bson::Int64(_))) => Ok(Bson::Int64(n)),
        (Ok(n), _) => Ok(i32::try_from(n).map_or(Bson::Int64(n), Bson::Int32)),
        (Err(_), _) => double(),
    }
}

/// The value of a type that has an object of its own, if it is one.
fn typed(fields: &[(String, Json)], place: &str) -> Result<Option<Bson>> {
    let Some((kind, value)) = fields.first().filter(|(name, _)| name.starts_with('$')) else {
        return Ok(None);
    };
    let wrong = || {
        refuse(format!(
            "{place}: this is no {kind} as Extended JSON has it"
        ))
    };
    let text = || match value {
        Json::String(text) => Ok(text.as_str()),
        _ => Err(wrong()),
    };
    let member = |name: &str| match value {
        Json::Object(members) => {
            let found = members.iter().find(|(other, _)| other == name);
            found.map(|(_, value)| value).ok_or_else(wrong)
        }
        _ => Err(wrong()),
    };
    let word = |name: &str| match member(name)? {
        Json::String(text) => Ok(text.clone()),
        _ => Err(wrong()),
    };
    let count = |name: &str| match member(name)? {
        Json::Number(text) => text.parse::<u32>().map_err(|_| wrong()),
        _ => Err(wrong()),
    };
    if let ("$code", [_, (scope, Json::Object(members))]) = (kind.as_str(), fields)
        && scope == "$scope"
    {
        return Ok(Some(Bson::JavaScriptCodeWithScope(
            JavaScriptCodeWithScope {
                code: text()?.to_owned(),
                scope: within(members, None, place)?,
            },
        )));
    }
    let known = match kind.as_str() {
        "$oid" => ObjectId::parse_str(text()?).map_err(|_| wrong())?.into(),
        "$date" => Bson::DateTime(match value {
            Json::String(text) => DateTime::parse_rfc3339_str(text).map_err(|_| wrong())?,
            _ => {
                let millis = word("$numberLong")?.parse().map_err(|_| wrong())?;
                DateTime::from_millis(millis)
            }
        }),
        "$numberInt" => Bson::Int32(text()?.parse().map_err(|_| wrong())?),
        "$numberLong" => Bson::Int64(text()?.parse().map_err(|_| wrong())?),
        "$numberDouble" => Bson::Double(text()?.parse().map_err(|_| wrong())?),
        "$numberDecimal" => text()?.parse::<Decimal128>().map_err(|_| wrong())?.into(),
        "$uuid" => Uuid::parse_str(text()?).map_err(|_| wrong())?.into(),
        "$binary" => {
            let kind = u8::from_str_radix(&word("subType")?, 16).map_err(|_| wrong())?;
            Bson::Binary(Binary {
                subtype: kind.into(),
                bytes: BASE64.decode(word("base64")?).map_err(|_| wrong())?,
            })
        }
        "$timestamp" => Bson::Timestamp(Timestamp {
            time: count("t")?,
            increment: count("i")?,
        }),
        "$regularExpression" => Bson::RegularExpression(Regex {
            pattern: word("pattern")?.try_into().map_err(|_| wrong())?,
            options: word("options")?.try_into().map_err(|_| wrong())?,
        }),
        "$code" => Bson::JavaScriptCode(text()?.to_owned()),
        "$symbol" => Bson::Symbol(text()?.to_owned()),
        "$minKey" => Bson::MinKey,
        "$maxKey" => Bson::MaxKey,
        "$undefined" => Bson::Undefined,
        "$dbPointer" => return Err(refuse(format!("{place}: a DBPointer can only be read"))),
        _ => return Ok(None),
    };
    match fields.len() {
        1 => Ok(Some(known)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::mongodb::bson::doc;
    use ::mongodb::bson::raw::cstr;

    fn parse(text: &str, old: &Document) -> Document {
        let json = Json::parse(text.as_bytes()).expect("JSON");
        json.document(Some(old)).expect("a document")
    }

    fn all() -> Document {
        doc! {
            "_id": ObjectId::from_bytes([1; 12]),
            "int": 1, "long": 2_i64, "double": 5.0, "third": 0.1 + 0.2, "large": 1e300,
            "nan": f64::INFINITY, "text": "a \"b\"\n\u{1F600}/", "yes": true, "none": Bson::Null,
            "decimal": "1.10".parse::<Decimal128>().expect("a decimal"),
            "date": DateTime::from_millis(1_700_000_000_123), "early": DateTime::from_millis(-5),
            "uuid": Uuid::from_bytes([7; 16]),
            "bytes": Binary { subtype: BinarySubtype::Generic, bytes: vec![0, 255] },
            "stamp": Timestamp { time: 3, increment: 4 },
            "regex": Regex { pattern: cstr!("^a/b").into(), options: cstr!("i").into() },
            "code": Bson::JavaScriptCode("f()".into()), "min": Bson::MinKey, "max": Bson::MaxKey,
            "list": [1_i64, "x", { "y": 2.0 }, []], "within": { "z": 3_i64, "empty": {} },
        }
    }

    #[test]
    fn a_document_comes_back_as_it_was() {
        let document = all();
        let text = Json::of_document(&document).pretty();
        assert_eq!(parse(&text, &document), document);
        // Without the old one, types that are shown are kept.
        let fresh = parse(&text, &Document::new());
        assert_eq!(Json::of_document(&fresh).pretty(), text);
        for kept in [
            "_id", "decimal", "date", "early", "uuid", "bytes", "stamp", "regex", "nan",
        ] {
            assert_eq!(fresh.get(kept), document.get(kept), "{kept}");
        }
        assert_eq!(fresh.get("third"), Some(&Bson::Double(0.1 + 0.2)));
    }

    #[test]
    fn one_field_is_one_line() {
        let document =
            doc! { "_id": 1, "at": DateTime::from_millis(0), "a": { "b": [1, 2], "c": {} } };
        let text = "{\n  \"_id\": 1,\n  \"at\": {\"$date\": \"1970-01-01T00:00:00Z\"},\n  \"a\": {\n    \"b\": [\n      1,\n      2\n    ],\n    \"c\": {}\n  }\n}\n";
        assert_eq!(Json::of_document(&document).pretty(), text);
    }

    #[test]
    fn edits_keep_types() {
        let old = doc! { "int": 1, "long": 2_i64, "double": 5.0, "decimal": "1.1".parse::<Decimal128>().expect("a decimal"), "list": [1_i64, 2_i64] };
        let new = parse(
            "{\"int\": 9, \"long\": 9, \"double\": 9, \"decimal\": 9.5, \"list\": [1, 9], \"new\": 9, \"far\": 5000000000}",
            &old,
        );
        let wanted = doc! { "int": 9, "long": 9_i64, "double": 9.0, "decimal": "9.5".parse::<Decimal128>().expect("a decimal"), "list": [1_i64, 9_i64], "new": 9, "far": 5_000_000_000_i64 };
        assert_eq!(new, wanted);
        assert_eq!(
            parse("{\"double\": 5, \"long\": 2.0}", &old),
            doc! { "double": 5.0, "long": 2_i64 }
        );
        assert_eq!(parse("{\"int\": 1.5}", &old), doc! { "int": 1.5 });
    }

    #[test]
    fn refusals_say_where() {
        for (text, why) in [
            ("{\"a\": 1,\n  b}", "line 2 column 3"),
            ("", "line 1 column 0"),
            ("12", "a document is an object"),
            ("[]", "a document is an object"),
            ("{\"a\": 1, \"a\": 2}", "\"a\" is there twice"),
            ("{\"a\": {\"$oid\": \"x\"}}", "a: this is no $oid"),
            ("{\"a\": [{\"$date\": \"soon\"}]}", "a[0]: this is no $date"),
            ("{\"a\": 1e999}", "no number can be 1e999"),
            ("{\"a\\u0000b\": 1}", "cannot hold a NUL"),
        ] {
            let refused = Json::parse(text.as_bytes()).and_then(|json| json.document(None));
            let error = refused.expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidDocument);
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
        let error = Json::parse(b"{\"a\": \"\xff\"}").expect_err("no UTF-8");
        assert!(error.to_string().contains("byte 7"), "{error}");
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert!(Json::parse(deep.as_bytes()).is_err());
    }
}
