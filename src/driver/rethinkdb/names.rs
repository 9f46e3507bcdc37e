//! Names of documents: their primary key and `.json`.
//!
//! A whole number is its decimal digits, and a string is as it is. What could be mistaken for a
//! number, and every other type, is `=` and the value as compact JSON: `="42"`, `=1.5`,
//! `=["a",1]`. Each value has one name.

use crate::driver::Result;
pub(super) use crate::driver::collections::ESCAPE;
use crate::driver::json::{Json, refuse};

const END: &str = ".json";
/// Up to here, each whole number is a number of the server.
pub(super) const EXACT: i64 = 9_007_199_254_740_992;
/// What marks the objects that stand for times and bytes.
pub(super) const PSEUDOTYPE: &str = "$reql_type$";

fn whole(text: &str) -> Option<i64> {
    let number: i64 = text.parse().ok()?;
    (number.to_string() == text && (-EXACT..=EXACT).contains(&number)).then_some(number)
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.starts_with(ESCAPE) && !text.contains('/') && whole(text).is_none()
}

/// A value in the one form that it has: numbers as doubles, fields by their names.
pub(super) fn canonical(value: &Json) -> Json {
    match value {
        Json::Number(text) => Json::Number(match text.parse::<f64>() {
            Ok(n) if n.fract() == 0.0 && n.abs() <= EXACT as f64 => (n as i64).to_string(),
            Ok(n) if n.is_finite() => format!("{n:?}"),
            _ => text.clone(),
        }),
        Json::Array(items) => Json::Array(items.iter().map(canonical).collect()),
        Json::Object(fields) => {
            let fields = fields.iter();
            let mut fields: Vec<_> = fields
                .map(|(name, v)| (name.clone(), canonical(v)))
                .collect();
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
            Json::Object(fields)
        }
        other => other.clone(),
    }
}

/// Refuses numbers that the server would make others of.
pub(super) fn require_exact(value: &Json, place: &str) -> Result<()> {
    match value {
        Json::Number(text) => {
            let double = text.parse::<f64>().unwrap_or(f64::INFINITY);
            if !double.is_finite() {
                return Err(refuse(format!("{place}: no number can be {text}")));
            }
            let is_whole = text
                .bytes()
                .all(|byte| byte == b'-' || byte.is_ascii_digit());
            if is_whole && text.parse::<i128>().ok() != Some(double as i128) {
                return Err(refuse(format!(
                    "{place}: numbers are doubles here, and none is {text}; write it as a string"
                )));
            }
            Ok(())
        }
        Json::Array(items) => {
            let mut items = items.iter().enumerate();
            items.try_for_each(|(at, item)| require_exact(item, &format!("{place}[{at}]")))
        }
        Json::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            let place = match place {
                "" => name.clone(),
                place => format!("{place}.{name}"),
            };
            require_exact(value, &place)
        }),
        _ => Ok(()),
    }
}

/// Whether an object is a value of a type that JSON has no words for.
pub(super) fn is_pseudotype(fields: &[(String, Json)]) -> bool {
    fields.iter().any(|(name, _)| name == PSEUDOTYPE)
}

/// The name of the document of a key, which is in its one form.
pub(super) fn name(id: &Json) -> String {
    let stem = match id {
        Json::Number(text) if whole(text).is_some() => text.clone(),
        Json::String(text) if is_plain(text) => text.clone(),
        other => format!("{ESCAPE}{}", other.compact().replace('/', "\\u002f")),
    };
    stem + END
}

fn is_key(value: &Json) -> bool {
    match value {
        Json::Null => false,
        Json::Object(fields) => is_pseudotype(fields),
        Json::Array(items) => items.iter().all(is_key),
        _ => true,
    }
}

/// The key that a name stands for; none for what is no name of any.
pub(super) fn id(name: &str) -> Option<Json> {
    let stem = name.strip_suffix(END)?;
    let id = match stem.strip_prefix(ESCAPE) {
        Some(json) => canonical(&Json::parse(json.as_bytes()).ok()?),
        None => match whole(stem) {
            Some(number) => Json::Number(number.to_string()),
            None => Json::String(stem.to_owned()),
        },
    };
    // Another spelling is no name.
    (is_key(&id) && self::name(&id) == name).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_of_all_types_have_names() {
        for (json, wanted) in [
            ("42", "42.json"),
            ("-7", "-7.json"),
            ("\"42\"", "=\"42\".json"),
            ("\"042\"", "042.json"),
            ("\"ada\"", "ada.json"),
            ("\"a/b\"", "=\"a\\u002fb\".json"),
            ("\"=x\"", "=\"=x\".json"),
            ("\"\"", "=\"\".json"),
            ("1.5", "=1.5.json"),
            ("9007199254740994.0", "=9007199254740994.0.json"),
            ("true", "=true.json"),
            ("[\"a\",1]", "=[\"a\",1].json"),
            (
                "{\"$reql_type$\":\"TIME\",\"epoch_time\":1,\"timezone\":\"+00:00\"}",
                "={\"$reql_type$\":\"TIME\",\"epoch_time\":1,\"timezone\":\"+00:00\"}.json",
            ),
        ] {
            let value = Json::parse(json.as_bytes()).expect("JSON");
            assert_eq!(name(&canonical(&value)), wanted);
            assert_eq!(id(wanted), Some(value), "{wanted}");
        }
        let number = Json::Number("42.0".into());
        assert_eq!(name(&canonical(&number)), "42.json");
        for none in [
            "x",
            "=42.json",
            "= 1.5.json",
            "=null.json",
            "=[null].json",
            "={\"a\":1}.json",
            "=\"ada\".json",
            "=.json",
        ] {
            assert_eq!(id(none), None, "{none}");
        }
    }

    #[test]
    fn numbers_that_would_change_are_refused() {
        let exact = |text: &str| {
            let value = Json::parse(text.as_bytes()).expect("JSON");
            require_exact(&value, "").map_err(|error| error.to_string())
        };
        for text in [
            "{\"a\": 9007199254740992}",
            "[0.1, -3, 1e300, 18014398509481984]",
        ] {
            assert_eq!(exact(text), Ok(()), "{text}");
        }
        for text in ["{\"a\": [9007199254740993]}", "{\"a\": [0, 1e999]}"] {
            let refused = exact(text).expect_err(text);
            assert!(refused.starts_with("a["), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn each_key_has_a_name_of_its_own(text in "\\PC{0,6}|[=0-9a-f/\"\\\\-]{0,25}") {
            let value = Json::String(text);
            let name = name(&value);
            prop_assert!(!name.contains('/'));
            prop_assert_eq!(id(&name), Some(value));
        }

        #[test]
        fn each_name_is_of_one_key(name in "(=?[\"0-9a-f{}:,x.-]{0,24})\\.json") {
            if let Some(value) = id(&name) {
                prop_assert_eq!(self::name(&value), name);
            }
        }
    }
}
