//! Values as the server has them: their order, their types, and how they are merged.

use serde_json::{Map, Value};

/// What marks values of types that JSON has no words for.
pub const TYPE: &str = "$reql_type$";

/// Numbers as the server prints them.
pub fn normal(value: Value) -> Value {
    match value {
        Value::Number(n) => match n.as_f64() {
            Some(n) if n.fract() == 0.0 && n.abs() <= 9_007_199_254_740_992.0 => (n as i64).into(),
            Some(n) => n.into(),
            None => Value::Null,
        },
        Value::Array(items) => items.into_iter().map(normal).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter();
            fields.map(|(name, value)| (name, normal(value))).collect()
        }
        other => other,
    }
}

/// A key in the order of its type and value.
pub fn encoded(id: &Value) -> Vec<u8> {
    match id {
        Value::Array(items) => {
            let mut bytes = b"A".to_vec();
            items.iter().for_each(|item| {
                bytes.extend(encoded(item));
                bytes.push(0);
            });
            bytes
        }
        Value::Bool(yes) => vec![b'B', u8::from(*yes)],
        Value::Number(n) => {
            let bits = (n.as_f64().unwrap() + 0.0).to_bits();
            let ordered = match bits >> 63 {
                0 => bits | (1 << 63),
                _ => !bits,
            };
            [b"N", &ordered.to_be_bytes()[..]].concat()
        }
        Value::Object(_) => [b"P", id.to_string().as_bytes()].concat(),
        Value::String(text) => [b"S", text.as_bytes()].concat(),
        Value::Null => b"0".to_vec(),
    }
}

/// Some fields of an object.
pub fn pluck(from: &Value, fields: &Value) -> Value {
    let mut kept = Map::new();
    let take = |name: &str, within: Option<&Value>, kept: &mut Map<String, Value>| match (
        from.get(name),
        within,
    ) {
        (Some(value), None) => {
            kept.insert(name.to_owned(), value.clone());
        }
        (Some(value @ Value::Object(_)), Some(within)) => {
            kept.insert(name.to_owned(), pluck(value, within));
        }
        _ => {}
    };
    match fields {
        Value::String(name) => take(name, None, &mut kept),
        Value::Array(all) => all.iter().for_each(|fields| {
            let more = pluck(from, fields);
            kept.extend(more.as_object().unwrap().clone());
        }),
        Value::Object(all) => all
            .iter()
            .for_each(|(name, within)| take(name, Some(within), &mut kept)),
        _ => {}
    }
    Value::Object(kept)
}

fn is_open(value: &Value) -> bool {
    value
        .as_object()
        .is_some_and(|fields| !fields.contains_key(TYPE))
}

/// What `merge` makes of two values.
pub fn merge(old: Value, new: &Value) -> Value {
    if new.get(TYPE).is_some_and(|kind| kind == "LITERAL") {
        return new["value"].clone();
    }
    if !is_open(new) {
        return new.clone();
    }
    let mut merged = match old {
        Value::Object(fields) if !fields.contains_key(TYPE) => fields,
        _ => Map::new(),
    };
    for (name, value) in new.as_object().unwrap() {
        let goes =
            value.get(TYPE).is_some_and(|kind| kind == "LITERAL") && value.get("value").is_none();
        match goes {
            true => drop(merged.remove(name)),
            false => {
                let old = merged.get(name).cloned().unwrap_or(Value::Null);
                merged.insert(name.clone(), merge(old, value));
            }
        }
    }
    Value::Object(merged)
}

/// The name of a type.
pub fn kind(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Bool(_) => "BOOL".to_owned(),
        Value::Number(_) => "NUMBER".to_owned(),
        Value::String(_) => "STRING".to_owned(),
        Value::Array(_) => "ARRAY".to_owned(),
        Value::Object(fields) => match fields.get(TYPE).and_then(Value::as_str) {
            Some(kind) => format!("PTYPE<{kind}>"),
            None => "OBJECT".to_owned(),
        },
    }
}
