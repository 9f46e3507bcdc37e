//! What differs between two documents, field by field, as conditions and as operators.

use crate::driver::{Error, ErrorKind, Result};
use ::mongodb::bson::{Bson, Document, doc};

/// A field that is to change.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    /// Its path, with dots.
    pub path: String,
    /// What it must be now; nothing where it must not be there.
    pub had: Option<Bson>,
    /// What it becomes; nothing where it goes.
    pub get: Option<Bson>,
}

/// Whether a path can name a field of this name.
fn is_addressable(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('$') && !name.contains('.')
}

/// That a field is what it was. What is asked of a field holds for a list also where it holds for
/// one of its items, which is ruled out: by another condition, as servers differ in several of one
/// field. Those of a list that has no lists in it name it once, for it may be large.
fn is(path: &str, value: Option<&Bson>) -> Vec<Document> {
    let Some(value) = value else {
        return vec![doc! { path: { "$exists": false } }];
    };
    let equal = match value {
        // A missing field would be null too.
        Bson::Null => doc! { path: { "$eq": Bson::Null, "$exists": true } },
        value => doc! { path: { "$eq": value.clone() } },
    };
    let list = doc! { "$type": "array" };
    let other = match value {
        Bson::Array(items) if items.iter().any(|item| matches!(item, Bson::Array(_))) => {
            doc! { "$elemMatch": { "$eq": value.clone() } }
        }
        Bson::Array(_) => doc! { "$elemMatch": list },
        _ => list,
    };
    vec![equal, doc! { path: { "$not": other } }]
}

impl Change {
    /// Conditions that hold while the field is what it was, and those that it is in are objects.
    pub(super) fn conditions(&self) -> Vec<Document> {
        let parents = self.path.match_indices('.').map(|(at, _)| &self.path[..at]);
        let objects = parents.flat_map(|path| {
            [
                doc! { path: { "$type": "object" } },
                doc! { path: { "$not": { "$type": "array" } } },
            ]
        });
        objects.chain(is(&self.path, self.had.as_ref())).collect()
    }
}

/// Conditions that hold while the fields of a document are what they are.
pub(super) fn unchanged(document: &Document) -> Vec<Document> {
    let fields = document
        .iter()
        .filter(|(name, _)| name.as_str() != "_id" && is_addressable(name));
    fields
        .flat_map(|(name, value)| is(name, Some(value)))
        .collect()
}

/// The changes that make one document of another.
pub(super) fn between(old: &Document, new: &Document) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    compare(old, new, "", &mut changes)?;
    Ok(changes)
}

/// Whether changes within can be named one by one.
fn is_open(document: &Document) -> bool {
    !document.is_empty() && document.keys().all(|name| is_addressable(name))
}

fn compare(old: &Document, new: &Document, place: &str, changes: &mut Vec<Change>) -> Result<()> {
    let gone = old.keys().filter(|name| !new.contains_key(name.as_str()));
    for name in new.keys().chain(gone) {
        let (had, get) = (old.get(name), new.get(name));
        if same(had, get) {
            continue;
        }
        if !is_addressable(name) {
            return Err(Error::new(
                ErrorKind::InvalidDocument,
                format!(
                    "the field {name:?} cannot be changed: its name is empty, has a dot or begins with $"
                ),
            ));
        }
        let path = format!("{place}{name}");
        match (had, get) {
            (Some(Bson::Document(had)), Some(Bson::Document(get)))
                if is_open(had) && is_open(get) =>
            {
                compare(had, get, &format!("{path}."), changes)?;
            }
            (had, get) => changes.push(Change {
                path,
                had: had.cloned(),
                get: get.cloned(),
            }),
        }
    }
    Ok(())
}

/// Whether two values are the same, to the bit: no number is equal to nothing else.
fn same(a: Option<&Bson>, b: Option<&Bson>) -> bool {
    match (a, b) {
        (Some(Bson::Double(a)), Some(Bson::Double(b))) => a.to_bits() == b.to_bits(),
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_changes() {
        let old =
            doc! { "_id": 1, "a": 1, "b": { "c": 1, "d": [1, 2] }, "gone": "x", "e": { "x.y": 1 } };
        let new = doc! { "_id": 1, "b": { "d": [1, 3], "c": 1, "n": 2 }, "a": 1, "e": { "x.y": 2 }, "f": Bson::Null };
        let changes = between(&old, &new).expect("can be told");
        let mut told: Vec<_> = changes.iter().map(|change| change.path.as_str()).collect();
        told.sort_unstable();
        assert_eq!(told, ["b.d", "b.n", "e", "f", "gone"]);
        assert!(between(&old, &old).expect("the same").is_empty());
        let nan = doc! { "a": f64::NAN };
        assert!(between(&nan, &nan).expect("the same").is_empty());
        // A number of another type is another value.
        assert_eq!(
            between(&doc! { "a": 1 }, &doc! { "a": 1_i64 })
                .expect("told")
                .len(),
            1
        );
    }

    #[test]
    fn what_no_path_can_name_is_refused() {
        for name in ["a.b", "$a", ""] {
            let error = between(&doc! {}, &doc! { name: 1 }).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::InvalidDocument);
        }
    }

    #[test]
    fn conditions_tell_null_from_nothing() {
        assert_eq!(is("a", None), [doc! { "a": { "$exists": false } }]);
        let null = doc! { "a": { "$eq": Bson::Null, "$exists": true } };
        assert_eq!(is("a", Some(&Bson::Null)), [null, no_list("a")]);
        let kept = unchanged(&doc! { "_id": 1, "a": 1, "b.c": 2 });
        assert_eq!(kept, [doc! { "a": { "$eq": 1 } }, no_list("a")]);
    }

    fn no_list(path: &str) -> Document {
        doc! { path: { "$not": { "$type": "array" } } }
    }

    #[test]
    fn conditions_tell_a_list_from_its_items() {
        let flat = Bson::from(vec![1, 2]);
        assert_eq!(
            is("a", Some(&flat)),
            [
                doc! { "a": { "$eq": &flat } },
                doc! { "a": { "$not": { "$elemMatch": { "$type": "array" } } } },
            ]
        );
        let deep = Bson::Array(vec![flat]);
        assert_eq!(
            is("a", Some(&deep)),
            [
                doc! { "a": { "$eq": &deep } },
                doc! { "a": { "$not": { "$elemMatch": { "$eq": &deep } } } },
            ]
        );
        // What a field is in has not become a list, or gone, either.
        let changes = between(
            &doc! { "b": { "c": { "d": 1 } } },
            &doc! { "b": { "c": { "d": 1, "e": 2 } } },
        );
        assert_eq!(
            changes.expect("can be told")[0].conditions(),
            [
                doc! { "b": { "$type": "object" } },
                no_list("b"),
                doc! { "b.c": { "$type": "object" } },
                no_list("b.c"),
                doc! { "b.c.e": { "$exists": false } },
            ]
        );
    }
}
