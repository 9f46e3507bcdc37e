//! Documents as relaxed Extended JSON, and back: in the order that they have, with the types that
//! their fields had.

mod items;

use crate::driver::Result;
use crate::driver::decimal;
pub(super) use crate::driver::json::Json;
use crate::driver::json::refuse;
use ::mongodb::bson::oid::ObjectId;
use ::mongodb::bson::spec::BinarySubtype;
use ::mongodb::bson::{
    Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, Regex, Timestamp, Uuid,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use items::{Origin, origins};

/// The last year of a date that is written as text.
const LAST: i64 = 253_402_300_799_999;

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
                let origins = origins(items, olds).into_iter();
                let items = items.iter().zip(origins).enumerate();
                let items = items.map(|(at, (item, origin))| match origin {
                    Origin::Is(old) => Ok(old.clone()),
                    Origin::For(old) => item.value(old, &format!("{place}[{at}]")),
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

/// A number of the type that `old` has, as far as that can hold it. One that is written whole is
/// stored as it is or not at all; what has a point or a power of ten is the nearest double.
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
        // What it is, or else what it is shown as.
        let is_held = decimal::same(text, &format!("{double:.0}"))
            || decimal::same(text, &format!("{double:?}"));
        if decimal::is_whole(text) && !is_held {
            let kind = text.parse::<i64>().map_or("Decimal", |_| "Long");
            return Err(refuse(format!(
                "{place}: no double is {text}; write it as {{\"$number{kind}\": \"{text}\"}}"
            )));
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
    use crate::driver::ErrorKind;
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
    fn a_whole_number_that_no_double_is_is_refused_and_not_rounded() {
        let old = doc! { "double": 5.0, "long": 5_i64, "list": [5.0] };
        for (text, why) in [
            (
                "{\"new\": 12345678901234567890}",
                "new: no double is 12345678901234567890; write it as {\"$numberDecimal\": \"12345678901234567890\"}",
            ),
            (
                "{\"long\": -12345678901234567890}",
                "long: no double is -12345678901234567890",
            ),
            (
                "{\"double\": 9007199254740993}",
                "double: no double is 9007199254740993; write it as {\"$numberLong\": \"9007199254740993\"}",
            ),
            ("{\"list\": [9007199254740993]}", "list[0]: no double"),
            (
                "{\"new\": {\"in\": 36893488147419103233}}",
                "new.in: no double",
            ),
        ] {
            let json = Json::parse(text.as_bytes()).expect("JSON");
            let error = json.document(Some(&old)).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidDocument);
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
        // What is a double, or is shown as that number, is stored.
        for (text, wanted) in [
            ("36893488147419103232", 36_893_488_147_419_103_232.0),
            ("100000000000000000000000", 1e23),
            ("12345678901234567000", 12_345_678_901_234_567_000.0),
            ("12345678901234567890.0", 12_345_678_901_234_567_890.0),
        ] {
            let new = parse(&format!("{{\"double\": {text}}}"), &old);
            assert_eq!(new, doc! { "double": wanted }, "{text}");
        }
        let text = "{\"double\": {\"$numberLong\": \"9007199254740993\"}, \"new\": {\"$numberDecimal\": \"12345678901234567890\"}}";
        let decimal: Decimal128 = "12345678901234567890".parse().expect("a decimal");
        let wanted = doc! { "double": 9_007_199_254_740_993_i64, "new": decimal };
        assert_eq!(parse(text, &old), wanted);
    }

    #[test]
    fn an_edit_within_the_precision_of_a_double_is_seen() {
        let double = doc! { "a": 9_007_199_254_740_992.0 };
        let json = Json::parse(b"{\"a\": 9007199254740993}").expect("JSON");
        assert!(json.document(Some(&double)).is_err());
        let long = doc! { "a": 9_007_199_254_740_993_i64 };
        assert_eq!(parse("{\"a\": 9007199254740992.0}", &long), double);
        // Another spelling is no edit.
        for text in [
            "9007199254740993.0",
            "9.007199254740993e15",
            "9007199254740993",
        ] {
            assert_eq!(parse(&format!("{{\"a\": {text}}}"), &long), long);
        }
    }

    #[test]
    fn items_that_were_only_shifted_keep_their_types() {
        let old = doc! { "list": [1_i64, 2.0, 3, { "n": 4_i64 }, "x"] };
        for (text, wanted) in [
            (
                "[2, 3, {\"n\": 4}, \"x\"]",
                doc! { "list": [2.0, 3, { "n": 4_i64 }, "x"] },
            ),
            (
                "[\"new\", 1, 2.0, 3, {\"n\": 4}, \"x\"]",
                doc! { "list": ["new", 1_i64, 2.0, 3, { "n": 4_i64 }, "x"] },
            ),
            (
                "[\"x\", {\"n\": 4}, 3, 2.0, 1]",
                doc! { "list": ["x", { "n": 4_i64 }, 3, 2.0, 1_i64] },
            ),
            // What was edited has the type of what it took the place of.
            (
                "[1, 2.0, 3, {\"n\": 5}, \"x\"]",
                doc! { "list": [1_i64, 2.0, 3, { "n": 5_i64 }, "x"] },
            ),
            ("[3, {\"n\": 5}]", doc! { "list": [3, { "n": 5_i64 }] }),
        ] {
            assert_eq!(
                parse(&format!("{{\"list\": {text}}}"), &old),
                wanted,
                "{text}"
            );
        }
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
