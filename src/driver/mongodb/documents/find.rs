//! What the server is asked for when documents are looked for. It compares otherwise than files show
//! values, so its answer is what may match: lists match by their items, null matches nothing, and
//! objects only in one order.

use super::super::json::Json;
use crate::driver::decimal::Decimal;
use crate::driver::{Filter, Term};
use ::mongodb::bson::{Bson, Document, doc};

/// Conditions of the server that hold wherever a filter matches.
pub(super) fn conditions(filter: &Filter) -> Vec<Document> {
    let mut conditions = Vec::new();
    for Term { path, value } in &filter.terms {
        if path.iter().all(|name| is_addressable(name)) {
            let path = path.join(".");
            match Json::parse(value.as_bytes()) {
                Ok(value) => condition(&path, &value, &mut conditions),
                // What it amounts to is compared here.
                Err(_) => conditions.push(is_there(&path)),
            }
        }
    }
    conditions
}

/// Whether the server takes a name as that of a field.
fn is_addressable(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('$') && !name.contains(['.', '\0'])
}

fn is_there(path: &str) -> Document {
    doc! { path: { "$exists": true } }
}

/// The numbers of the server that files may show as this one. It compares them whatever their
/// types: an integer is asked for to the last digit, and a double, which is shown by the shortest
/// text that tells it, by that which the text tells.
fn numbers(text: &str) -> Vec<Bson> {
    let whole = Decimal::of(text).and_then(|amount| amount.whole());
    let double = text.parse::<f64>().ok().filter(|double| double.is_finite());
    match (whole, double) {
        (Some(whole), Some(double)) if double as i128 == i128::from(whole) => vec![whole.into()],
        (whole, double) => {
            let double = double.map(Bson::from);
            whole.map(Bson::from).into_iter().chain(double).collect()
        }
    }
}

fn condition(path: &str, value: &Json, conditions: &mut Vec<Document>) {
    let is = |value: Bson| doc! { path: { "$eq": value } };
    conditions.push(match value {
        Json::Null => is(Bson::Null),
        Json::Bool(yes) => is((*yes).into()),
        Json::String(text) => is(text.as_str().into()),
        Json::Number(text) => {
            let mut numbers = numbers(text);
            match numbers.len() {
                0 => is_there(path),
                1 => is(numbers.remove(0)),
                _ => doc! { path: { "$in": numbers } },
            }
        }
        Json::Object(fields) => match value.value(None, path).ok() {
            Some(
                typed @ (Bson::ObjectId(_)
                | Bson::DateTime(_)
                | Bson::Binary(_)
                | Bson::Decimal128(_)),
            ) => is(typed),
            Some(Bson::Document(_))
                if !fields.is_empty() && fields.iter().all(|(name, _)| is_addressable(name)) =>
            {
                for (name, value) in fields {
                    condition(&format!("{path}.{name}"), value, conditions);
                }
                return;
            }
            _ => is_there(path),
        },
        Json::Array(_) => is_there(path),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::mongodb::bson::oid::ObjectId;

    #[test]
    fn the_server_is_asked_for_no_less_than_what_matches() {
        let oid = ObjectId::parse_str("507f1f77bcf86cd799439011").expect("an id");
        for (query, wanted) in [
            (r#"{}"#, vec![]),
            (r#"{"a.b": 3}"#, vec![doc! { "a.b": { "$eq": 3_i64 } }]),
            (r#"{"a": 1.5}"#, vec![doc! { "a": { "$eq": 1.5 } }]),
            (r#"{"a": 3.0}"#, vec![doc! { "a": { "$eq": 3_i64 } }]),
            // A double of another amount is shown so.
            (
                r#"{"a": 1152921504606847000}"#,
                vec![
                    doc! { "a": { "$in": [1_152_921_504_606_847_000_i64, 1_152_921_504_606_846_976.0] } },
                ],
            ),
            (
                r#"{"a": 9007199254740993.0}"#,
                vec![doc! { "a": { "$in": [9_007_199_254_740_993_i64, 9_007_199_254_740_992.0] } }],
            ),
            (
                r#"{"a": 12345678901234567890}"#,
                vec![doc! { "a": { "$eq": 12_345_678_901_234_567_890.0 } }],
            ),
            (r#"{"a": 1e999}"#, vec![doc! { "a": { "$exists": true } }]),
            (r#"{"a": null}"#, vec![doc! { "a": { "$eq": Bson::Null } }]),
            (
                r#"{"a": {"b": {"c": "x"}, "d": true}}"#,
                vec![
                    doc! { "a.b.c": { "$eq": "x" } },
                    doc! { "a.d": { "$eq": true } },
                ],
            ),
            (
                r#"{"_id": {"$oid": "507f1f77bcf86cd799439011"}}"#,
                vec![doc! { "_id": { "$eq": oid } }],
            ),
            (r#"{"a": {}}"#, vec![doc! { "a": { "$exists": true } }]),
            (
                r#"{"a": {"$oid": "no"}}"#,
                vec![doc! { "a": { "$exists": true } }],
            ),
            (
                r#"{"a": {"b.c": 1}}"#,
                vec![doc! { "a": { "$exists": true } }],
            ),
            (
                r#"{"a": [1, {"b": 2}]}"#,
                vec![doc! { "a": { "$exists": true } }],
            ),
            (r#"{"a\\.b": 1, "$where": "1"}"#, vec![]),
        ] {
            let filter = Filter::json(query).expect("a query");
            assert_eq!(conditions(&filter), wanted, "{query}");
        }
    }
}
