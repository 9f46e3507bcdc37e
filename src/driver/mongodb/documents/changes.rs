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

/// That a field is what it was.
fn is(path: &str, value: Option<&Bson>) -> Document {
    match value {
        None => doc! { path: { "$exists": false } },
        // A missing field would be null too.
        Some(Bson::Null) => doc! { path: { "$eq": Bson::Null, "$exists": true } },
        Some(value) => doc! { path: { "$eq": value.clone() } },
    }
}

impl Change {
    pub(super) fn condition(&self) -> Document {
        is(&self.path, self.had.as_ref())
    }
}

/// Conditions that hold while the fields of a document are what they are.
pub(super) fn unchanged(document: &Document) -> Document {
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
        assert_eq!(is("a", None), doc! { "a": { "$exists": false } });
        assert_eq!(
            is("a", Some(&Bson::Null)),
            doc! { "a": { "$eq": Bson::Null, "$exists": true } }
        );
        let kept = unchanged(&doc! { "_id": 1, "a": 1, "b.c": 2 });
        assert_eq!(kept, doc! { "a": { "$eq": 1 } });
    }
}
