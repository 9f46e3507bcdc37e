//! What the server is asked for when documents are looked for. It compares otherwise than files show
//! values, so its answer is what may match: lists match by their items, null matches nothing, and
//! objects only in one order.

use super::super::json::Json;
use crate::driver::{Filter, Term};
use ::mongodb::bson::{Bson, Document, doc};
use serde_json::Value;

/// Conditions of the server that hold wherever a filter matches.
pub(super) fn conditions(filter: &Filter) -> Vec<Document> {
    let mut conditions = Vec::new();
    for Term { path, value } in &filter.terms {
        if path.iter().all(|name| is_addressable(name)) {
            condition(&path.join("."), value, &mut conditions);
        }
    }
    conditions
}

/// Whether the server takes a name as that of a field.
fn is_addressable(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('$') && !name.contains(['.', '\0'])
}

fn condition(path: &str, value: &Value, conditions: &mut Vec<Document>) {
    let is = |value: Bson| doc! { path: { "$eq": value } };
    conditions.push(match value {
        Value::Null => is(Bson::Null),
        Value::Bool(yes) => is((*yes).into()),
        Value::String(text) => is(text.as_str().into()),
        Value::Number(number) => is(match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => whole.into(),
            (None, Some(double)) => double.into(),
            (None, None) => return,
        }),
        Value::Object(fields) => {
            let typed = match Json::parse(value.to_string().as_bytes()) {
                Ok(json) => json.value(None, path).ok(),
                Err(_) => None,
            };
            match typed {
                Some(
                    typed @ (Bson::ObjectId(_)
                    | Bson::DateTime(_)
                    | Bson::Binary(_)
                    | Bson::Decimal128(_)),
                ) => is(typed),
                Some(Bson::Document(_))
                    if !fields.is_empty() && fields.keys().all(|name| is_addressable(name)) =>
                {
                    for (name, value) in fields {
                        condition(&format!("{path}.{name}"), value, conditions);
                    }
                    return;
                }
                _ => doc! { path: { "$exists": true } },
            }
        }
        Value::Array(_) => doc! { path: { "$exists": true } },
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
