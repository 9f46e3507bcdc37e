//! The reversible escape between the components of keys and the names of files.
//!
//! Keys are any bytes; a file name has 1 to 255 bytes without `/` and NUL and is neither `.` nor
//! `..`. A key is split at every `/` into components, and each component becomes a name. Nearly
//! all components are their own names. For the others there is the escape introducer `%~`:
//!
//! | in the key | in the name |
//! |---|---|
//! | an empty component (`a//b`, `/a`) | `%~e` |
//! | the component `.` | `%~d` |
//! | the component `..` | `%~D` |
//! | a NUL byte | `%~0` |
//! | `%~` in front of one of `e d D 0 c f p %` or of a NUL byte | `%~%` |
//! | any other `%~`, such as `%~z` | as it is |
//!
//! Three suffixes stand behind an escaped component:
//!
//! - `%~f`: the file of a key whose name is taken by a directory beside it. Of the keys `a` and
//!   `a/b`, the directory is `a` and the file is `a%~f`.
//! - `%~p`: the directory of keys whose name is taken by a file. Only the `file:` driver uses it,
//!   on its disk, where the file `a` may have been there first.
//! - `%~c`: a component whose name would be longer than 255 bytes begins here. `CHUNK%~c` is a
//!   pseudo-directory that stands for no `/` in the key: its key prefix is the directory's followed
//!   by `CHUNK`, and the names in it are those of the remainders.
//!
//! A chunk is the longest beginning of the component whose escaped form has at most 252 bytes,
//! made of whole characters where the bytes are UTF-8, and of whole `%~`. It is escaped on its
//! own, and so is the remainder, as if it were a component: where it is `.`, its name is `%~d`;
//! where it is still too long, it begins with a chunk of its own. A name with a suffix that would
//! be longer than 255 bytes is cut likewise, and the suffix stands behind the last remainder.
//!
//! Decoding is strict: every component has exactly one name, and a name that is not the escaped
//! form of anything decodes to `None`. One check needs both sides of a cut, so it is
//! the caller's, with [`is_cut`].

use std::borrow::Cow;

/// Longest file name in bytes.
pub const NAME_MAX: usize = 255;

const INTRODUCER: &[u8] = b"%~";
const CONTINUED: &[u8] = b"%~c";
const FILE_BESIDE: &[u8] = b"%~f";
const DIRECTORY_BESIDE: &[u8] = b"%~p";

/// Longest escaped form of a chunk, in bytes.
const CHUNK_MAX: usize = NAME_MAX - CONTINUED.len();
/// Most bytes that one more character adds to an escaped form; a chunk leaves less room than this.
const UNIT_MAX: usize = 4;

/// What a name stands for. The bytes are those of the key, unescaped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Component<'a> {
    /// A whole component (or what remains of one behind chunks): a file or a directory.
    Plain(Cow<'a, [u8]>),
    /// A file whose plain name is taken by a directory.
    FileBeside(Cow<'a, [u8]>),
    /// A directory whose plain name is taken by a file.
    DirectoryBeside(Cow<'a, [u8]>),
    /// A pseudo-directory with all components that begin with this chunk.
    Continued(Cow<'a, [u8]>),
}

/// The name of a component.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Encoded<'a> {
    /// One name.
    Name(Cow<'a, [u8]>),
    /// Two or more names, each but the last that of a pseudo-directory with the next in it.
    Chunks(Vec<Vec<u8>>),
}

impl<'a> Encoded<'a> {
    /// The name that the component has in its directory: its own, or that of the pseudo-directory
    /// in which it begins.
    pub fn first(&self) -> &[u8] {
        match self {
            Encoded::Name(name) => name,
            Encoded::Chunks(names) => &names[0],
        }
    }

    /// All names, outermost first.
    pub fn into_names(self) -> Vec<Cow<'a, [u8]>> {
        match self {
            Encoded::Name(name) => vec![name],
            Encoded::Chunks(names) => names.into_iter().map(Cow::Owned).collect(),
        }
    }
}

/// The name of a component (or of what remains of one behind chunks). It must contain no `/`.
pub fn encode(component: &[u8]) -> Encoded<'_> {
    encode_with(component, b"")
}

/// The path of a key: the names of its components, with `/` between them.
pub fn path(key: &[u8]) -> Vec<u8> {
    let components = key.split(|byte| *byte == b'/');
    let names = components.flat_map(|component| encode(component).into_names());
    names.collect::<Vec<_>>().join(&b'/')
}

/// The name of a file whose plain name is taken by a directory.
pub fn encode_file_beside(component: &[u8]) -> Encoded<'_> {
    encode_with(component, FILE_BESIDE)
}

/// The name of a directory whose plain name is taken by a file.
pub fn encode_directory_beside(component: &[u8]) -> Encoded<'_> {
    encode_with(component, DIRECTORY_BESIDE)
}

/// What a name stands for; `None` when it is not the escaped form of anything.
pub fn decode(name: &[u8]) -> Option<Component<'_>> {
    if name.is_empty() || name.len() > NAME_MAX || matches!(name, b"." | b"..") {
        return None;
    }
    if name.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return None;
    }
    if let Some(base) = name.strip_suffix(FILE_BESIDE) {
        return unescape(base).map(Component::FileBeside);
    }
    if let Some(base) = name.strip_suffix(DIRECTORY_BESIDE) {
        return unescape(base).map(Component::DirectoryBeside);
    }
    if let Some(base) = name.strip_suffix(CONTINUED) {
        return unescape(base)
            .filter(|_| base.len() + UNIT_MAX > CHUNK_MAX)
            .map(Component::Continued);
    }
    unescape(name).map(Component::Plain)
}

/// Whether a component that is `chunk` followed by `rest` is cut between the two; so whether
/// `rest` has a name in the pseudo-directory of `chunk`. `beside` tells whether that name has a
/// suffix `%~f` or `%~p`.
///
/// Of a component with several chunks, each pair of neighbours is to be checked.
pub fn is_cut(chunk: &[u8], rest: &[u8], beside: bool) -> bool {
    let suffix = if beside { FILE_BESIDE.len() } else { 0 };
    cut([chunk, rest].concat().as_slice(), NAME_MAX - suffix) == Some(chunk.len())
}

fn encode_with<'a>(component: &'a [u8], suffix: &[u8]) -> Encoded<'a> {
    let limit = NAME_MAX - suffix.len();
    let finish = |rest: &'a [u8]| match escape(rest) {
        name if suffix.is_empty() => name,
        name => Cow::Owned([&name, suffix].concat()),
    };
    let Some(mut end) = cut(component, limit) else {
        return Encoded::Name(finish(component));
    };
    let mut names = Vec::new();
    let mut rest = component;
    loop {
        names.push([&escape(&rest[..end]), CONTINUED].concat());
        rest = &rest[end..];
        match cut(rest, limit) {
            Some(next) => end = next,
            None => break,
        }
    }
    names.push(finish(rest).into_owned());
    Encoded::Chunks(names)
}

/// Whether a `%~` in front of this byte of a component has to be escaped.
fn is_special(byte: u8) -> bool {
    matches!(
        byte,
        b'e' | b'd' | b'D' | b'0' | b'c' | b'f' | b'p' | b'%' | 0
    )
}

fn escape(component: &[u8]) -> Cow<'_, [u8]> {
    match component {
        b"" => return Cow::Borrowed(b"%~e"),
        b"." => return Cow::Borrowed(b"%~d"),
        b".." => return Cow::Borrowed(b"%~D"),
        _ => {}
    }
    if is_ordinary(component) {
        return Cow::Borrowed(component);
    }
    let mut name = Vec::with_capacity(component.len() + 8);
    let mut rest = component;
    while let [byte, tail @ ..] = rest {
        if let Some(behind) = rest.strip_prefix(INTRODUCER) {
            name.extend_from_slice(INTRODUCER);
            if behind.first().is_some_and(|next| is_special(*next)) {
                name.push(b'%');
            }
            rest = behind;
        } else {
            match byte {
                0 => name.extend_from_slice(b"%~0"),
                byte => name.push(*byte),
            }
            rest = tail;
        }
    }
    Cow::Owned(name)
}

/// Whether a component that is not empty, `.` or `..` is its own escaped form, and the reverse.
fn is_ordinary(bytes: &[u8]) -> bool {
    let mut before = 1;
    for byte in bytes {
        if *byte == 0 || (before == b'%' && *byte == b'~') {
            return false;
        }
        before = *byte;
    }
    true
}

/// The reverse of [`escape`], of canonical forms only.
fn unescape(base: &[u8]) -> Option<Cow<'_, [u8]>> {
    match base {
        b"" | b"." | b".." => return None,
        b"%~e" => return Some(Cow::Borrowed(b"")),
        b"%~d" => return Some(Cow::Borrowed(b".")),
        b"%~D" => return Some(Cow::Borrowed(b"..")),
        _ => {}
    }
    if is_ordinary(base) {
        return Some(Cow::Borrowed(base));
    }
    let mut component = Vec::with_capacity(base.len());
    let mut rest = base;
    while let [byte, tail @ ..] = rest {
        rest = match rest.strip_prefix(INTRODUCER) {
            Some([b'0', behind @ ..]) => {
                component.push(0);
                behind
            }
            Some([b'%', behind @ ..]) => {
                component.extend_from_slice(INTRODUCER);
                behind
            }
            Some(behind) => {
                component.extend_from_slice(INTRODUCER);
                behind
            }
            None => {
                component.push(*byte);
                tail
            }
        };
    }
    (*escape(&component) == *base).then_some(Cow::Owned(component))
}

/// How many bytes of the component its first chunk has, or `None` when the escaped form fits
/// into `limit` bytes.
fn cut(component: &[u8], limit: usize) -> Option<usize> {
    // An escaped form has at most 3 bytes for each byte.
    if component.len() * 3 <= limit {
        return None;
    }
    let mut end = 0;
    let mut chunk = 0;
    let mut length = 0;
    let mut open = false;
    while end < component.len() {
        let rest = &component[end..];
        let unit = unit(rest);
        // A `%~` takes one more byte when something special turns out to follow.
        length += usize::from(open && is_special(rest[0]));
        length += if rest[0] == 0 { 3 } else { unit };
        open = rest.starts_with(INTRODUCER);
        end += unit;
        if length <= CHUNK_MAX {
            chunk = end;
        }
        if length > limit {
            return Some(chunk);
        }
    }
    None
}

/// Length of what is not cut apart at the start of some bytes: `%~`, a UTF-8 character, or a byte.
fn unit(bytes: &[u8]) -> usize {
    if bytes.starts_with(INTRODUCER) {
        return INTRODUCER.len();
    }
    let width = match bytes[0] {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    match bytes.get(..width) {
        Some(character) if std::str::from_utf8(character).is_ok() => width,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(component: &[u8]) -> Vec<u8> {
        match encode(component) {
            Encoded::Name(name) => name.into_owned(),
            chunks => panic!("{chunks:?}"),
        }
    }

    /// Puts the names of a component together again, checking each cut.
    fn join(names: &[Cow<'_, [u8]>]) -> Option<(Vec<u8>, &'static str)> {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let mut kind = "";
        for (i, name) in names.iter().enumerate() {
            let last = i + 1 == names.len();
            let (part, is) = match decode(name)? {
                Component::Plain(part) => (part, "plain"),
                Component::FileBeside(part) => (part, "file"),
                Component::DirectoryBeside(part) => (part, "directory"),
                Component::Continued(part) => (part, "continued"),
            };
            if last == (is == "continued") {
                return None;
            }
            kind = is;
            parts.push(part.into_owned());
        }
        let beside = kind != "plain";
        let cut = parts
            .windows(2)
            .enumerate()
            .all(|(i, pair)| is_cut(&pair[0], &pair[1], beside && i + 2 == parts.len()));
        cut.then(|| (parts.concat(), kind))
    }

    /// Components with everything that is special in them, short and long.
    fn components() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(&b"%~"[..]),
            Just(&b"%"[..]),
            Just(&b"~"[..]),
            Just(&b"\0"[..]),
            Just(&b"."[..]),
            Just(&b"e"[..]),
            Just(&b"D"[..]),
            Just(&b"c"[..]),
            Just(&b"f"[..]),
            Just(&b"p"[..]),
            Just(&b"0"[..]),
            Just(&b"z"[..]),
            Just("ö".as_bytes()),
            Just("€".as_bytes()),
            Just("🪣".as_bytes()),
            Just(&b"\xff"[..]),
            Just(&b"\xe2\x82"[..]),
        ];
        let words = prop_oneof![
            proptest::collection::vec(piece.clone(), 0..6),
            proptest::collection::vec(piece, 60..120),
        ];
        (0usize..600, words).prop_map(|(fill, words)| {
            let words = words.concat();
            let fill = if words.len() > 20 { fill } else { 0 };
            [vec![b'x'; fill], words].concat()
        })
    }

    /// Names that look like escapes, most of them wrong.
    fn names() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(&b"%~"[..]),
            Just(&b"%~%"[..]),
            Just(&b"%~0"[..]),
            Just(&b"%~e"[..]),
            Just(&b"%~f"[..]),
            Just(&b"%~c"[..]),
            Just(&b"%~p"[..]),
            Just(&b"%"[..]),
            Just(&b"~"[..]),
            Just(&b"d"[..]),
            Just(&b"D"[..]),
            Just(&b"."[..]),
            Just(&b"z"[..]),
        ];
        proptest::collection::vec(piece, 0..7).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn every_component_comes_back(component in components()) {
            for (encoded, kind) in [
                (encode(&component), "plain"),
                (encode_file_beside(&component), "file"),
                (encode_directory_beside(&component), "directory"),
            ] {
                let names = encoded.into_names();
                for name in &names {
                    prop_assert!((1..=NAME_MAX).contains(&name.len()), "{name:?}");
                    prop_assert!(!name.contains(&0) && **name != b"."[..] && **name != b".."[..]);
                }
                prop_assert_eq!(join(&names), Some((component.clone(), kind)));
            }
        }

        #[test]
        fn a_name_that_decodes_is_the_only_one(name in names()) {
            let decoded = decode(&name);
            let again = match &decoded {
                None | Some(Component::Continued(_)) => return Ok(()),
                Some(Component::Plain(part)) => encode(part),
                Some(Component::FileBeside(part)) => encode_file_beside(part),
                Some(Component::DirectoryBeside(part)) => encode_directory_beside(part),
            };
            prop_assert_eq!(again, Encoded::Name(Cow::Borrowed(&name[..])));
        }

        #[test]
        fn characters_stay_whole(component in "[a🪣ö%~]{200,400}") {
            for name in encode(component.as_bytes()).into_names() {
                prop_assert!(std::str::from_utf8(&name).is_ok());
            }
        }

        #[test]
        fn a_cut_elsewhere_is_refused(component in components(), off in -5isize..=5) {
            let names = encode(&component).into_names();
            let chunk = match decode(&names[0]) {
                Some(Component::Continued(chunk)) => Some(chunk.len()),
                _ => None,
            };
            let at = chunk.unwrap_or(component.len()).saturating_add_signed(off);
            let (left, right) = component.split_at(at.min(component.len()));
            prop_assert_eq!(is_cut(left, right, false), Some(left.len()) == chunk);
        }
    }

    #[test]
    fn ordinary_names_are_borrowed() {
        for plain in ["a", "%", "~", "50%", "a%b~c", "...", ".a", "ö"] {
            assert!(
                matches!(encode(plain.as_bytes()), Encoded::Name(Cow::Borrowed(name)) if name == plain.as_bytes())
            );
            assert!(matches!(
                decode(plain.as_bytes()),
                Some(Component::Plain(Cow::Borrowed(_)))
            ));
        }
        assert_eq!(name(&[b'x'; 255]).len(), 255);
    }

    #[test]
    fn the_table_of_the_documentation_holds() {
        for (component, shown) in [
            (&b""[..], &b"%~e"[..]),
            (b".", b"%~d"),
            (b"..", b"%~D"),
            (b"a\0b", b"a%~0b"),
            (b"%~e", b"%~%e"),
            (b"%~%", b"%~%%"),
            (b"%~\0", b"%~%%~0"),
            (b"%~z", b"%~z"),
            (b"%~", b"%~"),
            (b"%~%~f", b"%~%%~%f"),
        ] {
            assert_eq!(name(component), shown);
        }
        assert_eq!(encode_file_beside(b"a").first(), b"a%~f");
        assert_eq!(
            decode(b"a%~p"),
            Some(Component::DirectoryBeside(Cow::Borrowed(b"a")))
        );
    }

    #[test]
    fn what_is_no_escaped_form_is_refused() {
        for wrong in [
            &b""[..],
            b".",
            b"..",
            b"a/b",
            b"a\0",
            b"x%~e",
            b"%~d.",
            b"%~ef",
            b"%~%z",
            b"%~%",
            b"short%~c",
            b"%~f",
            b".%~f",
            b"a%~f%~f",
            b"a%~c%~f",
        ] {
            assert_eq!(decode(wrong), None, "{}", wrong.escape_ascii());
        }
        assert_eq!(decode(&[b'x'; 256]), None);
    }

    #[test]
    fn a_remainder_is_a_component_of_its_own() {
        let long = [&[b'x'; 252][..], b"%~e.."].concat();
        let names = encode(&long).into_names();
        assert_eq!(*names[0], [&[b'x'; 252][..], b"%~c"].concat());
        assert_eq!(*names[1], b"%~%e.."[..]);
        let dots = [&[b'x'; 252][..], b"."].concat();
        assert!(matches!(encode(&dots), Encoded::Name(_)), "253 bytes fit");
        let beside = encode_file_beside(&dots).into_names();
        assert_eq!(*beside[1], b"%~d%~f"[..]);
    }
}
