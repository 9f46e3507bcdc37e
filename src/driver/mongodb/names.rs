//! Names of documents: their `_id` and `.json`.
//!
//! An ObjectId is its 24 hexadecimal digits, a whole number its decimal digits, and a string is as it
//! is. What could be mistaken for one of these, and every other type, is `=` and the value as
//! compact Extended JSON: `="42"`, `={"$date":"2026-01-01T00:00:00Z"}`, `={"a":1}`. Each value has
//! one name: numbers by value, whatever their type, as `_id` takes them for the same.

use super::json::Json;
pub(super) use crate::driver::collections::ESCAPE;
use ::mongodb::bson::Bson;
use ::mongodb::bson::oid::ObjectId;

const END: &str = ".json";
/// Servers differ in the order of strings with such characters in them.
pub(super) const DISPUTED: char = '\u{e000}';
/// Up to here, each whole number has a double of its own.
const EXACT: f64 = 9_007_199_254_740_992.0;

fn is_hex(text: &str) -> bool {
    text.len() == 24 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn whole(text: &str) -> Option<i64> {
    let number: i64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(ESCAPE)
        && !text.contains(|c| c == '/' || c >= DISPUTED)
        && !is_hex(text)
        && whole(text).is_none()
}

/// The name of the document of an `_id`.
pub(super) fn name(id: &Bson) -> String {
    let stem = match id {
        Bson::ObjectId(id) => id.to_hex(),
        Bson::Int32(number) => number.to_string(),
        Bson::Int64(number) => number.to_string(),
        Bson::Double(number) if number.fract() == 0.0 && number.abs() <= EXACT => {
            (*number as i64).to_string()
        }
        Bson::String(text) if is_plain(text) => text.clone(),
        other => {
            let json = Json::of(other).compact();
            format!("{ESCAPE}{}", json.replace('/', "\\u002f"))
        }
    };
    stem + END
}

/// The `_id` that a name stands for; none for what is no name of any.
pub(super) fn id(name: &str) -> Option<Bson> {
    let stem = name.strip_suffix(END)?;
    let id = match stem.strip_prefix(ESCAPE) {
        Some(json) => Json::parse(json.as_bytes()).ok()?.value(None, "_id").ok()?,
        None => match whole(stem) {
            Some(number) => i32::try_from(number).map_or(Bson::Int64(number), Bson::Int32),
            None if is_hex(stem) => ObjectId::parse_str(stem).ok()?.into(),
            None => Bson::String(stem.to_owned()),
        },
    };
    // An _id is none of these, and another spelling is no name.
    let possible = !matches!(
        id,
        Bson::Array(_) | Bson::RegularExpression(_) | Bson::Undefined
    );
    (possible && self::name(&id) == name).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::mongodb::bson::{DateTime, Uuid, doc};
    use proptest::prelude::*;

    #[test]
    fn names_tell_types_apart() {
        let oid = ObjectId::parse_str("507f1f77bcf86cd799439011").expect("an id");
        for (id, wanted) in [
            (Bson::ObjectId(oid), "507f1f77bcf86cd799439011.json"),
            (
                Bson::String("507f1f77bcf86cd799439011".into()),
                "=\"507f1f77bcf86cd799439011\".json",
            ),
            (Bson::Int32(42), "42.json"),
            (Bson::Int64(-(1 << 40)), "-1099511627776.json"),
            (Bson::String("42".into()), "=\"42\".json"),
            (Bson::String("042".into()), "042.json"),
            (Bson::String("ada".into()), "ada.json"),
            (Bson::String("a/b".into()), "=\"a\\u002fb\".json"),
            (Bson::String("=x".into()), "=\"=x\".json"),
            (Bson::String("".into()), "=\"\".json"),
            (Bson::Double(1.5), "=1.5.json"),
            (Bson::Boolean(true), "=true.json"),
            (Bson::Null, "=null.json"),
            (
                Bson::DateTime(DateTime::from_millis(0)),
                "={\"$date\":\"1970-01-01T00:00:00Z\"}.json",
            ),
            (
                Bson::Document(doc! { "b": 1, "a": "x" }),
                "={\"b\":1,\"a\":\"x\"}.json",
            ),
        ] {
            assert_eq!(name(&id), wanted);
            assert_eq!(self::id(wanted), Some(id), "{wanted}");
        }
        let uuid = Bson::from(Uuid::from_bytes([7; 16]));
        assert_eq!(id(&name(&uuid)), Some(uuid));
        // One name for one value.
        assert_eq!(name(&Bson::Double(42.0)), "42.json");
        for none in [
            "x",
            "=42.json",
            "= 1.5.json",
            "=[1].json",
            "={\"a\": 1}.json",
            "=\"ada\".json",
            "=.json",
        ] {
            assert_eq!(id(none), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn each_string_has_a_name_of_its_own(text in "\\PC{0,6}|[=0-9a-f/\"\\\\]{0,25}") {
            let value = Bson::String(text);
            let name = name(&value);
            prop_assert!(!name.contains('/'));
            prop_assert_eq!(id(&name), Some(value));
        }

        #[test]
        fn each_name_is_of_one_value(name in "(=?[\"0-9a-f{}:,x]{0,24})\\.json") {
            if let Some(value) = id(&name) {
                prop_assert_eq!(self::name(&value), name);
            }
        }
    }
}
