//! Which documents a query means: those in which fields have exactly these values.
//!
//! A document is the text of an object that is JSON as a whole. What is compared is what the file
//! shows, whatever types the store has beneath it, so that every store gives the same answer; a store
//! that is asked may only leave out what cannot match.

use super::{Error, ErrorKind, Result, decimal};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// As deep as values are compared. Deeper ones are the same as nothing.
const DEPTH: usize = 128;

/// Terms that must all hold. Without any, every document matches.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Filter {
    /// The terms.
    pub terms: Vec<Term>,
}

/// A field and the value that it must have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// The way to the field: names of members, and positions in lists. Never empty.
    pub path: Vec<String>,
    /// The value as JSON: numbers as they are written, whatever number of this machine holds them.
    pub value: String,
}

fn wrong(why: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, why)
}

/// Takes a path apart at its dots, up to `end` if that is given, and gives what is left. A backslash
/// takes the meaning from what stands behind it.
fn path(text: &str, end: Option<char>) -> Option<(Vec<String>, Option<&str>)> {
    let (mut path, mut name) = (Vec::new(), String::new());
    let mut signs = text.char_indices();
    while let Some((at, sign)) = signs.next() {
        match sign {
            '\\' => name.push(signs.next().map_or('\\', |(_, sign)| sign)),
            '.' => path.push(std::mem::take(&mut name)),
            sign if Some(sign) == end => {
                path.push(name);
                return Some((path, Some(&text[at + sign.len_utf8()..])));
            }
            sign => name.push(sign),
        }
    }
    path.push(name);
    end.is_none().then_some((path, None))
}

impl Term {
    /// Reads `a.b=VALUE`. A value that is JSON is that, and any other is a string.
    pub fn parse(text: &str) -> Result<Term> {
        let Some((path, Some(value))) = path(text, Some('=')) else {
            return Err(wrong(format!(
                "{text:?} is no term; write FIELD=VALUE, such as name=ada or address.zip=1010"
            )));
        };
        if path == [""] {
            return Err(wrong(format!(
                "{text:?} names no field; write FIELD=VALUE, such as name=ada or address.zip=1010"
            )));
        }
        let value = match serde_json::from_str::<&RawValue>(value) {
            Ok(json) => json.get().to_owned(),
            Err(_) => Value::from(value).to_string(),
        };
        Ok(Term { path, value })
    }

    fn holds(&self, document: &RawValue) -> bool {
        let mut at = document.get();
        for name in &self.path {
            let next = match at.as_bytes().first() {
                Some(b'{') => fields(at).and_then(|fields| fields.get(name).copied()),
                Some(b'[') => {
                    let position = position(name);
                    position.and_then(|position| items(at)?.get(position).copied())
                }
                _ => None,
            };
            match next {
                Some(next) => at = next.get(),
                None => return false,
            }
        }
        same(at, &self.value, DEPTH)
    }
}

/// The members of an object; of a name that is there twice the last one counts.
fn fields(object: &str) -> Option<BTreeMap<String, &RawValue>> {
    serde_json::from_str(object).ok()
}

/// The items of a list.
fn items(list: &str) -> Option<Vec<&RawValue>> {
    serde_json::from_str(list).ok()
}

/// The position that a name is in a list.
pub fn position(name: &str) -> Option<usize> {
    let position: usize = name.parse().ok()?;
    (position.to_string() == name).then_some(position)
}

impl Filter {
    /// Reads terms as [`Term::parse`] does.
    pub fn parse<'a>(terms: impl IntoIterator<Item = &'a str>) -> Result<Filter> {
        let terms = terms.into_iter().map(Term::parse);
        let terms = terms.collect::<Result<_>>()?;
        Ok(Filter { terms })
    }

    /// Reads an object whose members are paths with the values that they must have.
    pub fn json(text: &str) -> Result<Filter> {
        let fields: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(|cause| {
            wrong(format!(
                "the query is no JSON object: {cause}; write it like {{\"name\": \"ada\", \"address.zip\": 1010}}"
            ))
        })?;
        let term = |(name, value): (String, &RawValue)| {
            let (path, _) = path(&name, None)?;
            let value = value.get().to_owned();
            Some(Term { path, value })
        };
        let terms = fields.into_iter().filter_map(term);
        Ok(Filter {
            terms: terms.collect(),
        })
    }

    /// Whether the beginning of a text may be that of a document that matches.
    pub fn may_begin(&self, text: &[u8]) -> bool {
        let space = |byte: &&u8| matches!(**byte, b' ' | b'\t' | b'\n' | b'\r');
        match text.iter().find(|byte| !space(byte)) {
            None => true,
            Some(b'{' | b'[') => true,
            // Only what holds fields can have a field.
            Some(byte) => {
                self.terms.is_empty()
                    && matches!(byte, b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n')
            }
        }
    }

    /// Whether a text is a document that matches.
    pub fn matches(&self, text: &[u8]) -> bool {
        if !self.may_begin(text) {
            return false;
        }
        if self.terms.is_empty() {
            return serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
                && std::str::from_utf8(text).is_ok();
        }
        match serde_json::from_slice::<&RawValue>(text) {
            Ok(document) => self.terms.iter().all(|term| term.holds(document)),
            Err(_) => false,
        }
    }
}

/// Whether two values are the same: numbers by what they amount to, to the last digit, objects
/// whatever their order.
fn same(a: &str, b: &str, depth: usize) -> bool {
    let first = |text: &str| text.bytes().next().unwrap_or_default();
    match (first(a), first(b)) {
        (b'{' | b'[', b'{' | b'[') if depth == 0 => false,
        (b'{', b'{') => match (fields(a), fields(b)) {
            (Some(a), Some(b)) => {
                let has = |(name, value): (&String, &&RawValue)| {
                    let other = b.get(name);
                    other.is_some_and(|other| same(value.get(), other.get(), depth - 1))
                };
                a.len() == b.len() && a.iter().all(has)
            }
            _ => false,
        },
        (b'[', b'[') => match (items(a), items(b)) {
            (Some(a), Some(b)) => {
                let mut pairs = a.iter().zip(&b);
                a.len() == b.len() && pairs.all(|(a, b)| same(a.get(), b.get(), depth - 1))
            }
            _ => false,
        },
        (b'"', b'"') => {
            let text = |text: &str| serde_json::from_str::<String>(text).ok();
            text(a).is_some_and(|a| text(b).is_some_and(|b| a == b))
        }
        (b'-' | b'0'..=b'9', b'-' | b'0'..=b'9') => decimal::same(a, b),
        _ => a == b,
    }
}

/// A document on one line, in its own order and words.
pub fn compact(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    let (mut quoted, mut escaped) = (false, false);
    for sign in text.chars() {
        match sign {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' | '\t' | '\n' | '\r' if !quoted => continue,
            _ => {}
        }
        line.push(sign);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn matches(terms: &[&str], text: &str) -> bool {
        let filter = Filter::parse(terms.iter().copied()).expect("terms");
        filter.matches(text.as_bytes())
    }

    #[test]
    fn values_match_exactly() {
        let text = r#"{"s": "x", "n": 3, "d": 3.5, "t": true, "z": null, "zip": "01234",
            "o": {"b": {"c": 3}, "k": "v"}, "l": [1, {"m": "y"}, []], "e": {}, "a.b": 1, "": 2}"#;
        for term in [
            "s=x",
            "s=\"x\"",
            "n=3",
            "n=3.0",
            "n=0.3e1",
            "d=3.5",
            "t=true",
            "z=null",
            "zip=01234",
            "o.b.c=3",
            "o.k=v",
            "o={\"k\":\"v\", \"b\":{\"c\":3}}",
            "o.b={\"c\":3.0}",
            "l.0=1",
            "l.1.m=y",
            "l=[1,{\"m\":\"y\"},[]]",
            "e={}",
            "l.2=[]",
            "a\\.b=1",
            ".=2",
        ] {
            let alone = term == ".=2";
            assert_eq!(matches(&[term], text), !alone, "{term}");
        }
        for term in [
            "s=X",
            "s=",
            "n=\"3\"",
            "n=4",
            "n=true",
            "t=\"true\"",
            "t=1",
            "z=false",
            "missing=null",
            "missing=",
            "o.b=3",
            "o={\"k\":\"v\"}",
            "o.b.c.d=3",
            "s.x=x",
            "l.00=1",
            "l.3=1",
            "l=[1]",
            "l=1",
            "e=[]",
            "a.b=1",
        ] {
            assert!(!matches(&[term], text), "{term}");
        }
        assert!(matches(&["s=x", "n=3", "o.b.c=3"], text));
        assert!(!matches(&["s=x", "n=4"], text), "all terms must hold");
    }

    #[test]
    fn without_terms_every_document_matches_and_nothing_else() {
        for text in ["{}", " [1]\n", "3", "\"x\"", "null", "{\"a\":{}}"] {
            assert!(matches(&[], text), "{text}");
            assert!(!matches(&["b=1"], text), "{text}");
        }
        for text in ["", " \n", "x", "{", "{} {}", "#!/bin/sh", "{'a':1}"] {
            assert!(!matches(&[], text), "{text}");
        }
        assert!(!Filter::default().matches(b"\"\xff\""));
    }

    #[test]
    fn large_numbers_are_compared_to_the_last_digit() {
        for (a, b, wanted) in [
            ("9007199254740993", "9007199254740993", true),
            ("9007199254740993", "9007199254740992.0", false),
            ("9007199254740992", "9007199254740992.0", true),
            ("18446744073709551615", "18446744073709551615", true),
            ("18446744073709551615", "1.8446744073709552e19", false),
            ("-1", "-1.0", true),
            ("0", "-0.0", true),
            ("1e30", "1e30", true),
            ("1e30", "1000000000000000000000000000000", true),
            ("12345678901234567890", "12345678901234567891", false),
            ("12345678901234567891", "12345678901234567891.0", true),
            ("-12345678901234567890", "-12345678901234567891", false),
            (
                "340282366920938463463374607431768211456",
                "340282366920938463463374607431768211457",
                false,
            ),
            ("0.1", "0.10", true),
            ("1e999", "10e998", true),
            ("1e999", "1e998", false),
        ] {
            assert_eq!(
                matches(&[&format!("a={a}")], &format!("{{\"a\":{b}}}")),
                wanted,
                "{a} {b}"
            );
        }
    }

    #[test]
    fn terms_go_to_a_daemon_as_they_are() {
        let filter = Filter::parse(["a=12345678901234567890123", "b=x"]).expect("terms");
        let sent = serde_json::to_string(&filter).expect("JSON");
        let filter: Filter = serde_json::from_str(&sent).expect("a filter");
        assert!(filter.matches(br#"{"a": 12345678901234567890123, "b": "x"}"#));
        assert!(!filter.matches(br#"{"a": 12345678901234567890124, "b": "x"}"#));
    }

    #[test]
    fn values_of_any_depth_are_looked_at_and_those_of_bounded_depth_compared() {
        let nested = |depth: usize| "[".repeat(depth) + "1" + &"]".repeat(depth);
        for (depth, wanted) in [(100, true), (200_000, false)] {
            let text = format!("{{\"a\": {}, \"b\": 1}}", nested(depth));
            assert!(matches(&["b=1"], &text));
            assert_eq!(matches(&[&format!("a={}", nested(depth))], &text), wanted);
        }
    }

    #[test]
    fn terms_that_are_none_are_refused() {
        for text in ["name", "", "=x", "a\\=b"] {
            let error = Term::parse(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.message().contains("write FIELD=VALUE"), "{error}");
        }
        let term = Term::parse("a\\=b\\\\.c==d").expect("a term");
        assert_eq!(term.path, ["a=b\\", "c"]);
        assert_eq!(term.value, "\"=d\"");
        for text in ["", "[]", "3", "{\"a\"}", "{} x"] {
            assert!(Filter::json(text).is_err(), "{text}");
        }
        let filter = Filter::json(r#"{"a.b": {"c": [1]}, "d": "e"}"#).expect("a query");
        assert_eq!(filter.terms.len(), 2);
        assert!(filter.matches(br#"{"d": "e", "a": {"b": {"c": [1]}}}"#));
        assert_eq!(Filter::json("{}").expect("a query"), Filter::default());
    }

    #[test]
    fn a_document_goes_on_one_line_as_it_is() {
        let text = "{\n  \"b\": \" a \\\" \\\\\",\n  \"a\": [1.10,\t2 ]\n}\n";
        assert_eq!(compact(text), r#"{"b":" a \" \\","a":[1.10,2]}"#);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-2_i64..3).prop_map(Value::from),
            prop::sample::select(vec![
                json!(1.0),
                json!(0.5),
                json!("1"),
                json!("x"),
                json!("")
            ]),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[ab.=\\\\0]{1,2}", inner, 0..3)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    /// Every way into a document, with what is there.
    fn ways(value: &Value, way: &mut Vec<String>, found: &mut Vec<(Vec<String>, Value)>) {
        if !way.is_empty() {
            found.push((way.clone(), value.clone()));
        }
        let inner: Vec<(String, &Value)> = match value {
            Value::Object(fields) => fields.iter().map(|(n, v)| (n.clone(), v)).collect(),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .map(|(at, v)| (at.to_string(), v))
                .collect(),
            _ => Vec::new(),
        };
        for (name, value) in inner {
            way.push(name);
            ways(value, way, found);
            way.pop();
        }
    }

    fn escaped(way: &[String]) -> String {
        let escape = |name: &String| {
            name.replace('\\', "\\\\")
                .replace('.', "\\.")
                .replace('=', "\\=")
        };
        way.iter().map(escape).collect::<Vec<_>>().join(".")
    }

    /// Numbers in one spelling, so that values are the same when their texts are.
    fn spelled(value: &Value) -> String {
        match value {
            Value::Number(number) => format!("{:?}", number.as_f64().unwrap_or_default()),
            Value::Array(items) => {
                format!(
                    "[{}]",
                    items.iter().map(spelled).collect::<Vec<_>>().join(",")
                )
            }
            Value::Object(fields) => {
                let fields = fields.iter().map(|(n, v)| format!("{n:?}:{}", spelled(v)));
                format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
            }
            other => other.to_string(),
        }
    }

    proptest! {
        #[test]
        fn a_term_holds_where_a_simple_model_says_so(
            document in value(),
            other in value(),
            pretty in any::<bool>(),
        ) {
            let text = match pretty {
                true => serde_json::to_string_pretty(&document).expect("JSON"),
                false => document.to_string(),
            };
            let mut known = Vec::new();
            ways(&document, &mut Vec::new(), &mut known);
            let mut asked = known.clone();
            ways(&other, &mut Vec::new(), &mut asked);
            for (way, value) in asked {
                let term = format!("{}={value}", escaped(&way));
                let wanted = known.iter().any(|(at, has)| *at == way && spelled(has) == spelled(&value));
                prop_assert_eq!(matches(&[&term], &text), wanted, "{} in {}", term, text);
            }
            let back: Value = serde_json::from_str(&compact(&text)).expect("still JSON");
            prop_assert_eq!(back, document);
        }
    }
}
