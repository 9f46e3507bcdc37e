//! What differs between two documents, field by field: a condition on just these fields, and what
//! is merged into the document where it holds.

use super::names::is_pseudotype;
use super::term::{self, Term, datum};
use crate::driver::json::Json;

/// How one document becomes another.
pub(super) struct Edit {
    /// What must hold of [`term::row`], each thing only where those before it do.
    pub holds: Vec<Term>,
    /// What is merged into it.
    pub patch: Vec<(String, Term)>,
}

type Fields = [(String, Json)];

fn field<'a>(fields: &'a Fields, name: &str) -> Option<&'a Json> {
    let found = fields.iter().find(|(other, _)| other == name);
    found.map(|(_, value)| value)
}

/// An object whose fields can change one by one.
fn open(value: &Json) -> Option<&Fields> {
    match value {
        Json::Object(fields) if !fields.is_empty() && !is_pseudotype(fields) => Some(fields),
        _ => None,
    }
}

/// The changes that make one document of another; both are in their one form.
pub(super) fn between(old: &Json, new: &Json) -> Edit {
    let mut holds = Vec::new();
    let patch = match (old, new) {
        (Json::Object(old), Json::Object(new)) => compare(old, new, &term::row(), &mut holds),
        // A document is an object.
        _ => Vec::new(),
    };
    Edit { holds, patch }
}

fn compare(old: &Fields, new: &Fields, at: &Term, holds: &mut Vec<Term>) -> Vec<(String, Term)> {
    let mut patch = Vec::new();
    let gone = old.iter().filter(|(name, _)| field(new, name).is_none());
    for (name, _) in new.iter().chain(gone) {
        let (had, get) = (field(old, name), field(new, name));
        if had == get {
            continue;
        }
        // Null is another thing than no field.
        let Some(had) = had else {
            holds.push(at.clone().has(name).negated());
            patch.extend(get.map(|get| (name.clone(), whole(get))));
            continue;
        };
        holds.push(at.clone().has(name));
        let here = at.clone().field(name);
        if let (Some(had), Some(get)) = (open(had), get.and_then(open)) {
            holds.push(here.clone().kind().is(term::text("OBJECT")));
            let within = compare(had, get, &here, holds);
            patch.push((name.clone(), term::object(within)));
        } else {
            holds.push(here.is(datum(had)));
            patch.push((name.clone(), get.map_or_else(term::nothing, whole)));
        }
    }
    patch
}

/// A value that replaces what was there, where an object would be merged.
fn whole(value: &Json) -> Term {
    match value {
        Json::Object(_) => term::literal(datum(value)),
        value => datum(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Json {
        Json::parse(text.as_bytes()).expect("JSON")
    }

    #[test]
    fn only_what_differs_is_asked_and_written() {
        let old = parse(r#"{"a": 1, "b": {"c": 1, "d": [1, 2]}, "gone": null, "id": 1}"#);
        let new = parse(r#"{"a": 1, "b": {"c": 1, "d": [1, 3]}, "e": {"x": 1}, "id": 1}"#);
        let edit = between(&old, &new);
        let told = edit.patch.iter().map(|(name, _)| name.as_str());
        assert_eq!(told.collect::<Vec<_>>(), ["b", "e", "gone"]);
        let patch = term::object(edit.patch).query();
        // The array whole, the new object in place of any, and nothing in place of the field.
        let wanted = r#"[1,{"b":{"d":[2,[1,3]]},"e":[137,[{"x":1}]],"gone":[137,[]]},{}]"#;
        assert_eq!(patch, wanted);
        // Each nested field is asked for where there is an object: b, its type, d, its value; no e;
        // gone, and that it is null.
        assert_eq!(edit.holds.len(), 7);
        assert!(between(&old, &old).patch.is_empty());
    }

    #[test]
    fn times_and_empty_objects_are_replaced_whole() {
        let time = r#"{"$reql_type$": "TIME", "epoch_time": 1, "timezone": "Z"}"#;
        for (old, new) in [
            (time, "{}"),
            ("{}", time),
            ("{}", r#"{"a": 1}"#),
            ("[]", "{}"),
        ] {
            let document = |value: &str| parse(&format!("{{\"v\": {value}}}"));
            let edit = between(&document(old), &document(new));
            let patch = term::object(edit.patch).query();
            assert!(patch.contains("\"v\":[137,"), "{patch}");
        }
    }
}
