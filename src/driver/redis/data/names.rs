//! Names of keys. A string `k` is the file `k`, anything else the file `k.json`; a string whose own
//! name ends in `.json` gets `.str` behind it, so that the two never meet.

use crate::key::Key;

/// What a name says of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// It holds a string.
    Text,
    /// It holds something else.
    Document,
}

impl Form {
    /// As scripts have it.
    pub(super) fn word(self) -> &'static [u8] {
        match self {
            Form::Text => b"text",
            Form::Document => b"document",
        }
    }

    /// By the server's name of the kind.
    pub(super) fn of(kind: &[u8]) -> Option<Form> {
        let known = KINDS.iter().find(|(name, _)| name.as_bytes() == kind);
        known.map(|(_, form)| *form)
    }
}

/// The kinds that are shown, by the server's names.
pub(super) const KINDS: [(&str, Form); 6] = [
    ("string", Form::Text),
    ("hash", Form::Document),
    ("list", Form::Document),
    ("set", Form::Document),
    ("zset", Form::Document),
    ("stream", Form::Document),
];

const DOCUMENT: &[u8] = b".json";
const TEXT: &[u8] = b".str";

/// How keys become names: those with the prefix, with `separator` and `/` swapped.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub prefix: Vec<u8>,
    pub separator: u8,
}

impl Names {
    fn swapped(&self, bytes: &[u8]) -> Vec<u8> {
        let swap = |byte: &u8| match *byte {
            b'/' => self.separator,
            byte if byte == self.separator => b'/',
            byte => byte,
        };
        bytes.iter().map(swap).collect()
    }

    /// The name of a key; `None` where it is not shown.
    pub(super) fn shown(&self, key: &[u8], form: Form) -> Option<Key> {
        let mut name = self.swapped(key.strip_prefix(&self.prefix[..])?);
        match form {
            Form::Document => name.extend_from_slice(DOCUMENT),
            Form::Text => {
                let mut rest = &name[..];
                while let Some(shorter) = rest.strip_suffix(TEXT) {
                    rest = shorter;
                }
                if rest.ends_with(DOCUMENT) {
                    name.extend_from_slice(TEXT);
                }
            }
        }
        (!name.is_empty()).then(|| Key::from(name))
    }

    /// The key of a name.
    pub(super) fn stored(&self, name: &Key) -> (Vec<u8>, Form) {
        let name = name.as_bytes();
        let (plain, form) = match name.strip_suffix(DOCUMENT) {
            Some(plain) => (plain, Form::Document),
            None => {
                let mut rest = name;
                while let Some(shorter) = rest.strip_suffix(TEXT) {
                    rest = shorter;
                }
                let escaped = rest.len() < name.len() && rest.ends_with(DOCUMENT);
                let cut = if escaped { TEXT.len() } else { 0 };
                (&name[..name.len() - cut], Form::Text)
            }
        };
        ([&self.prefix[..], &self.swapped(plain)].concat(), form)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(separator: u8) -> Names {
        Names {
            prefix: b"app:".to_vec(),
            separator,
        }
    }

    #[test]
    fn strings_and_documents_have_names_of_their_own() {
        let names = names(b':');
        for (key, form, name) in [
            ("app:user:1", Form::Text, "user/1"),
            ("app:user:1", Form::Document, "user/1.json"),
            ("app:a/b:c", Form::Text, "a:b/c"),
            ("app:a.json", Form::Text, "a.json.str"),
            ("app:a.json", Form::Document, "a.json.json"),
            ("app:a.json.str", Form::Text, "a.json.str.str"),
            ("app:a.str", Form::Text, "a.str"),
            ("app:", Form::Document, ".json"),
        ] {
            assert_eq!(
                names.shown(key.as_bytes(), form),
                Some(name.into()),
                "{key}"
            );
            assert_eq!(names.stored(&name.into()), (key.into(), form), "{name}");
        }
        assert_eq!(names.shown(b"other:x", Form::Text), None);
        assert_eq!(names.shown(b"app:", Form::Text), None);
    }

    proptest! {
        #[test]
        fn each_name_is_of_one_key_and_comes_back(
            name in "[a/:.]{0,4}(\\.json|\\.str|/|:){0,4}",
            separator in prop::sample::select(vec![b'/', b':', b'.']),
        ) {
            let (names, name) = (names(separator), Key::from(name));
            let (key, form) = names.stored(&name);
            let shown = names.shown(&key, form);
            prop_assert_eq!(shown, (!name.is_empty()).then_some(name));
        }
    }
}
