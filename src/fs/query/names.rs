//! The names of links: a whole key in one name.
//!
//! `%` is `%25`, `/` is `%2F` and `=` is `%3D`, for a name with `=` in it is a term; so is one that
//! begins with `{`, which is `%7B` there. What that gives is a component like any other, with the
//! escapes of [`crate::name`]: one that is too long for a name goes on in pseudo-directories.

use crate::key::Key;
use crate::name::{self, Component};
use bytes::Bytes;

/// Whether a name is a term, and not that of a link.
pub fn is_term(name: &[u8]) -> bool {
    name.starts_with(b"{") || name.contains(&b'=')
}

fn escape(key: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(key.len() + 8);
    for (at, byte) in key.iter().enumerate() {
        match byte {
            b'%' => text.extend_from_slice(b"%25"),
            b'/' => text.extend_from_slice(b"%2F"),
            b'=' => text.extend_from_slice(b"%3D"),
            b'{' if at == 0 => text.extend_from_slice(b"%7B"),
            byte => text.push(*byte),
        }
    }
    text
}

/// What some text is an escape of, to where it breaks off within one.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, tail @ ..] = rest {
        rest = match rest {
            [b'%', b'2', b'5', tail @ ..] => {
                key.push(b'%');
                tail
            }
            [b'%', b'2', b'F', tail @ ..] => {
                key.push(b'/');
                tail
            }
            [b'%', b'3', b'D', tail @ ..] => {
                key.push(b'=');
                tail
            }
            [b'%', b'7', b'B', tail @ ..] => {
                key.push(b'{');
                tail
            }
            [b'%', ..] => break,
            _ => {
                key.push(*byte);
                tail
            }
        };
    }
    key
}

/// The names that lead to the link of a key: its own behind those of pseudo-directories.
pub fn of(key: &Key) -> Vec<Bytes> {
    let text = escape(key.as_bytes());
    let names = name::encode(&text).into_names();
    names
        .into_iter()
        .map(|name| Bytes::from(name.into_owned()))
        .collect()
}

/// Whether a name is that of a pseudo-directory.
pub fn is_chunk(name: &[u8]) -> bool {
    matches!(name::decode(name), Some(Component::Continued(_)))
}

/// The text of which pseudo-directories are the beginning.
fn text(chunks: &[Bytes]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    for chunk in chunks {
        match name::decode(chunk)? {
            Component::Continued(bytes) => text.extend_from_slice(&bytes),
            _ => return None,
        }
    }
    Some(text)
}

/// What keys begin with whose links are behind these pseudo-directories.
pub fn prefix(chunks: &[Bytes]) -> Key {
    Key::from(unescape(&text(chunks).unwrap_or_default()))
}

/// The key of a link; `None` for what is the name of none.
pub fn key(chunks: &[Bytes], name: &[u8]) -> Option<Key> {
    let mut text = text(chunks)?;
    match name::decode(name)? {
        Component::Plain(rest) => text.extend_from_slice(&rest),
        _ => return None,
    }
    let key = Key::from(unescape(&text));
    // Each key has one name.
    let names = of(&key);
    let (last, before) = names.split_last()?;
    (!key.is_empty() && last == name && before == chunks).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_of_links_can_be_read() {
        for (key, wanted) in [
            ("docs/ada.json", "docs%2Fada.json"),
            ("a//b", "a%2F%2Fb"),
            ("=1.5.json", "%3D1.5.json"),
            ("50%", "50%25"),
            ("{x", "%7Bx"),
            ("x{", "x{"),
            ("..", "%~D"),
            ("%~e", "%25~e"),
            ("\u{fc} b", "\u{fc} b"),
        ] {
            let names = of(&key.into());
            assert_eq!(names, [Bytes::from(wanted)], "{key}");
            assert_eq!(super::key(&[], wanted.as_bytes()), Some(key.into()));
            assert!(!is_term(wanted.as_bytes()));
        }
        for none in [
            "a%2fb", "a%20b", "a%", "a%7Bb", "%~e", "x%~f", "", ".", "a%2",
        ] {
            assert_eq!(super::key(&[], none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn long_keys_have_names_in_pseudo_directories() {
        for key in ["l/".repeat(300), "%".repeat(90), "\u{fc}/".repeat(400)] {
            let key = Key::from(key);
            let names = of(&key);
            let (last, chunks) = names.split_last().expect("names");
            assert!(!chunks.is_empty() && names.iter().all(|name| name.len() <= 255));
            assert!(chunks.iter().all(|chunk| is_chunk(chunk)));
            assert_eq!(super::key(chunks, last), Some(key.clone()));
            assert!(key.starts_with(&prefix(chunks)), "{key:?}");
            assert!(prefix(chunks).len() * 3 + 3 >= 249, "{key:?}");
        }
    }

    proptest! {
        #[test]
        fn each_key_has_names_of_its_own(
            key in prop::collection::vec(prop::sample::select(b"a/%=~{25FD.\0\xff\xc3\xbc".to_vec()), 1..400)
        ) {
            let key = Key::from(key);
            let names = of(&key);
            let (last, chunks) = names.split_last().expect("names");
            prop_assert!(names.iter().all(|name| !name.contains(&b'=') && !name.contains(&b'/')));
            // In a pseudo-directory nothing is a term.
            prop_assert!(!is_term(&names[0]));
            prop_assert!(key.starts_with(&prefix(chunks)));
            prop_assert_eq!(super::key(chunks, last), Some(key));
        }

        #[test]
        fn each_name_is_of_one_key(name in "[a%257BFD3={~./]{1,12}") {
            if let Some(key) = super::key(&[], name.as_bytes()) {
                prop_assert_eq!(of(&key), vec![Bytes::from(name)]);
            }
        }
    }
}
