//! What the server is asked for when documents are looked for. It fails where a field is asked of what
//! is no object, so each step down is taken only where it can be.

use super::names::{PSEUDOTYPE, canonical};
use super::term::{self, Term, datum};
use crate::driver::json::Json;
use crate::driver::{self, Filter, position};

/// What the objects that stand for other types show, and no field is.
const SHOWN: [&str; 6] = [
    PSEUDOTYPE,
    "epoch_time",
    "timezone",
    "data",
    "type",
    "coordinates",
];

/// What holds of [`term::row`] wherever a filter matches; none where that is of every document.
pub(super) fn condition(filter: &Filter) -> Option<Term> {
    let mut holds = Vec::new();
    for wanted in &filter.terms {
        add(wanted, &mut holds);
    }
    (!holds.is_empty()).then(|| term::all(holds))
}

/// Adds conditions, of which each is looked at only where those before it hold.
fn add(wanted: &driver::Term, holds: &mut Vec<Term>) {
    let mut at = term::row();
    for (depth, name) in wanted.path.iter().enumerate() {
        if depth > 0 {
            // It may be a list, or what the server has another type for.
            if position(name).is_some() || SHOWN.contains(&name.as_str()) {
                return;
            }
            holds.push(at.clone().kind().is(term::text("OBJECT")));
        }
        holds.push(at.clone().has(name));
        at = at.field(name);
    }
    // Files show numbers by the shortest text that tells the double: the one that the text tells.
    match Json::parse(wanted.value.as_bytes()) {
        // No field has it: what is asked for is found nowhere, and sends nothing.
        Ok(Json::Number(number)) if !number.parse().is_ok_and(f64::is_finite) => {
            holds.push(at.is(term::text(&number)));
        }
        Ok(value) if !mentions_others(&value) => holds.push(at.is(datum(&canonical(&value)))),
        _ => {}
    }
}

/// Whether an object in a value would be taken for one of another type, or refused, or a number is
/// beyond all that the server has.
fn mentions_others(value: &Json) -> bool {
    match value {
        Json::Number(text) => !text.parse().is_ok_and(f64::is_finite),
        Json::Array(items) => items.iter().any(mentions_others),
        Json::Object(fields) => fields
            .iter()
            .any(|(name, value)| name == PSEUDOTYPE || mentions_others(value)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_asked_for_no_less_than_what_matches() {
        let row = "[10,[1]]";
        let has = |at: &str, name: &str| format!("[93,[[94,[{at}]],\"{name}\"]]");
        let is_object = |at: &str| format!("[17,[[52,[{at}]],\"OBJECT\"]]");
        let field = |at: &str, name: &str| format!("[31,[{at},\"{name}\"]]");
        let is = |at: &str, value: &str| format!("[17,[{at},{value}]]");
        let a = field(row, "a");
        let ab = field(&a, "b");
        for (query, wanted) in [
            ("{}", vec![]),
            (r#"{"a": 3}"#, vec![has(row, "a"), is(&a, "3")]),
            (
                r#"{"a": 12345678901234567890, "b": 1e999}"#,
                vec![
                    has(row, "a"),
                    is(&a, "1.2345678901234567e19"),
                    has(row, "b"),
                    is(&field(row, "b"), "\"1e999\""),
                ],
            ),
            (
                r#"{"a": null, "c": [1, {"d": "x"}]}"#,
                vec![
                    has(row, "a"),
                    is(&a, "null"),
                    has(row, "c"),
                    is(&field(row, "c"), "[2,[1,{\"d\":\"x\"}]]"),
                ],
            ),
            (
                r#"{"a.b": true}"#,
                vec![has(row, "a"), is_object(&a), has(&a, "b"), is(&ab, "true")],
            ),
            (
                r#"{"a.b.0.c": 1}"#,
                vec![has(row, "a"), is_object(&a), has(&a, "b")],
            ),
            (r#"{"a.timezone": "+00:00"}"#, vec![has(row, "a")]),
            (r#"{"a": {"$reql_type$": "TIME"}}"#, vec![has(row, "a")]),
            (
                r#"{"0": 1}"#,
                vec![has(row, "0"), is(&field(row, "0"), "1")],
            ),
        ] {
            let filter = Filter::json(query).expect("a query");
            let asked = condition(&filter).map(|term| term.query());
            let wanted =
                (!wanted.is_empty()).then(|| format!("[1,[67,[{}]],{{}}]", wanted.join(",")));
            assert_eq!(asked, wanted, "{query}");
        }
    }
}
