//! JSON as people edit it: in the order that it has, with numbers as they are written.

use super::decimal::{self, Decimal};
use super::{Error, ErrorKind, Result};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::fmt;

/// As deep as a document can be.
const DEPTH: usize = 100;

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

/// Numbers are the same by value: to the last digit where one of them is written as a whole number,
/// and else as doubles.
impl PartialEq for Json {
    fn eq(&self, other: &Json) -> bool {
        match (self, other) {
            (Json::Null, Json::Null) => true,
            (Json::Bool(a), Json::Bool(b)) => a == b,
            (Json::String(a), Json::String(b)) => a == b,
            (Json::Array(a), Json::Array(b)) => a == b,
            (Json::Object(a), Json::Object(b)) => a == b,
            (Json::Number(a), Json::Number(b)) if decimal::is_whole(a) || decimal::is_whole(b) => {
                decimal::same(a, b)
            }
            (Json::Number(a), Json::Number(b)) => match (a.parse::<f64>(), b.parse::<f64>()) {
                (Ok(a), Ok(b)) => a == b,
                _ => false,
            },
            _ => false,
        }
    }
}

pub(super) fn refuse(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidDocument, why)
}

/// The members of an object, in order.
pub(super) struct Members(pub Vec<(String, Box<RawValue>)>);
/// The items of an array.
struct Items(Vec<Box<RawValue>>);

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

    /// As [`Json::compact`], with numbers in one spelling of what they amount to: what has the same
    /// text is the same.
    pub(super) fn spelled(&self) -> String {
        match self {
            Json::Number(text) => match Decimal::of(text) {
                Some(amount) => amount.spelled(),
                None => text.clone(),
            },
            Json::Array(items) => {
                let items: Vec<_> = items.iter().map(Json::spelled).collect();
                format!("[{}]", items.join(","))
            }
            Json::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| {
                    format!("{}:{}", serde_json::Value::from(&**name), value.spelled())
                });
                format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
            }
            other => other.compact(),
        }
    }
}
