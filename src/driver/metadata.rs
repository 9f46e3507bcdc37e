//! Attributes of files as user metadata in headers, in forms that s3fs and rclone read and write too.
//! Stores differ in what such headers begin with; this is Amazon's:
//!
//! | header | s3fs | rclone `--metadata` | written here |
//! |---|---|---|---|
//! | `x-amz-meta-mode` | `st_mode` in C notation | `st_mode`, octal | octal with a leading 0, which both read |
//! | `x-amz-meta-uid`, `-gid` | decimal | decimal | decimal |
//! | `x-amz-meta-mtime` | seconds, perhaps with 9 decimals | seconds with decimals | seconds with 9 decimals |
//! | `x-amz-meta-atime` | as mtime | RFC 3339 | as mtime |
//! | `x-amz-meta-rdev` | - | decimal | decimal |
//! | `x-amz-meta-xattr` | percent-encoded JSON of names and base64 | one header for each name | as s3fs |
//!
//! A symbolic link is an object of that mode whose body is the target, a directory an object whose
//! key ends in `/`. User metadata of other tools keeps its own header, and is an extended
//! attribute of that name as well.

use super::{Attributes, Error, ErrorKind, Result};
use crate::key::Key;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// What no object is without a media type.
const BYTES: &str = "application/octet-stream";
/// What directories' markers are.
const DIRECTORY: &str = "application/x-directory";
/// What s3fs leaves as it is in percent-encoded text.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'.')
    .remove(b'-')
    .remove(b'_')
    .remove(b'~');
/// What extended attributes of users begin with.
const USER: &str = "user.";
/// Where extended attributes of others than users are kept among an object's headers.
const OTHER: &str = "xattr:";

/// What begins the name of a header of user metadata at S3.
const META: &str = "x-amz-meta-";
/// Where rclone keeps a digest of an object's bytes, and s3cmd one beside the times and owners of
/// the file that it sent.
const OF_BYTES: [&str; 2] = ["md5chksum", "s3cmd-attrs"];

/// Takes out what other tools say of an object's bytes, which others are to replace: rclone calls
/// those corrupt that have another digest.
pub(crate) fn forget_bytes(attributes: &mut Attributes) {
    for name in OF_BYTES {
        // An extended attribute of that name is a user's own, and stays.
        if attributes
            .headers
            .remove(&format!("{META}{name}"))
            .is_some()
        {
            attributes.user.remove(name);
        }
    }
}

/// The media type that an object has by its key, if nothing else says what it is.
pub(super) fn media_type(key: &Key, mode: Option<u32>) -> &'static str {
    if key.as_bytes().ends_with(b"/") {
        return DIRECTORY;
    }
    match mode.unwrap_or(0) & libc::S_IFMT {
        0 | libc::S_IFREG => key
            .to_str()
            .and_then(|key| mime_guess::from_path(key).first_raw())
            .unwrap_or(BYTES),
        _ => BYTES,
    }
}

/// Finds the attributes of a file among the user metadata that an answer told, whose headers begin
/// with `meta`. What is not what it should be stays there, as another tool's.
pub(super) fn recognise(attributes: &mut Attributes, meta: &str) {
    let Attributes { user, headers, .. } = attributes;
    let mut words = |name: &str, accept: &mut dyn FnMut(&str) -> bool| {
        let text = user
            .get(name)
            .and_then(|value| std::str::from_utf8(value).ok());
        if text.is_some_and(|text| accept(text.trim())) {
            user.remove(name);
        }
    };
    let number = |text: &str| text.parse::<u32>().ok();
    macro_rules! set {
        ($name:literal, $field:expr, $parse:expr) => {
            words($name, &mut |text| {
                $field = $parse(text);
                $field.is_some()
            });
        };
    }
    set!("mode", attributes.mode, mode);
    set!("uid", attributes.uid, number);
    set!("gid", attributes.gid, number);
    set!("mtime", attributes.mtime, time);
    set!("atime", attributes.atime, time);
    set!("rdev", attributes.rdev, number);
    // The store's own time is what it is meant to be, and moves with every change.
    words("ctime", &mut |text| time(text).is_some());
    let mut extended = None;
    words("xattr", &mut |text| {
        extended = parse_extended(text);
        extended.is_some()
    });
    for name in user.keys() {
        headers.insert(format!("{meta}{name}"), String::new());
    }
    for (name, value) in extended.unwrap_or_default() {
        match name.strip_prefix(USER) {
            Some(name) if !name.is_empty() => {
                user.insert(name.to_owned(), value);
            }
            _ => {
                headers.insert(format!("{OTHER}{name}"), BASE64.encode(&value));
            }
        }
    }
}

/// The user metadata of an object: names without what they begin with, and values. What came with
/// a header of its own goes with one.
pub(super) fn metadata(attributes: &Attributes, meta: &str) -> BTreeMap<String, Bytes> {
    let mut all = BTreeMap::new();
    let mut extended = BTreeMap::new();
    for (name, value) in &attributes.user {
        if attributes.headers.contains_key(&format!("{meta}{name}")) {
            all.insert(name.clone(), value.clone());
        } else {
            extended.insert(format!("{USER}{name}"), BASE64.encode(value));
        }
    }
    for (name, value) in &attributes.headers {
        if let Some(name) = name.strip_prefix(OTHER) {
            extended.insert(name.to_owned(), value.clone());
        }
    }
    let mut set = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            all.insert(name.to_owned(), value.into());
        }
    };
    let number = |number: u32| number.to_string();
    set("mode", attributes.mode.map(|mode| format!("0{mode:o}")));
    set("uid", attributes.uid.map(number));
    set("gid", attributes.gid.map(number));
    set("mtime", attributes.mtime.map(show_time));
    set("atime", attributes.atime.map(show_time));
    set("rdev", attributes.rdev.map(number));
    if !extended.is_empty() {
        let json = serde_json::to_string(&extended).unwrap_or_default();
        set(
            "xattr",
            Some(utf8_percent_encode(&json, ENCODED).to_string()),
        );
    }
    all
}

/// `st_mode` in the notation of C, or in octal without a sign of it, which is no such mode then.
fn mode(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let octal = || {
        u32::from_str_radix(text, 8)
            .ok()
            .filter(|mode| known(*mode))
    };
    if !digits {
        return None;
    }
    if text.starts_with('0') {
        return octal();
    }
    let decimal = text.parse().ok().filter(|mode| known(*mode));
    decimal.or_else(octal)
}

/// Whether a mode has a type that there is, or none, and no other bits.
fn known(mode: u32) -> bool {
    let kind = matches!(
        mode & libc::S_IFMT,
        0 | libc::S_IFREG
            | libc::S_IFDIR
            | libc::S_IFLNK
            | libc::S_IFIFO
            | libc::S_IFSOCK
            | libc::S_IFCHR
            | libc::S_IFBLK
    );
    kind && mode <= 0o177_777
}

/// Seconds since 1970 with or without decimals, or RFC 3339.
fn time(text: &str) -> Option<SystemTime> {
    let (before, number) = match text.strip_prefix('-') {
        Some(number) => (true, number),
        None => (false, text),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) {
        let parsed =
            time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
        return parsed.ok().map(SystemTime::from);
    }
    let nanos: u32 = format!("{part:0<9}").get(..9)?.parse().ok()?;
    let since = Duration::new(whole.parse().ok()?, nanos);
    match before {
        true => SystemTime::UNIX_EPOCH.checked_sub(since),
        false => SystemTime::UNIX_EPOCH.checked_add(since),
    }
}

fn show_time(time: SystemTime) -> String {
    let (sign, since) = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => ("", since),
        Err(before) => ("-", before.duration()),
    };
    format!("{sign}{}.{:09}", since.as_secs(), since.subsec_nanos())
}

/// Extended attributes as s3fs writes them.
fn parse_extended(text: &str) -> Option<BTreeMap<String, Bytes>> {
    let json = percent_decode(text.as_bytes()).decode_utf8().ok()?;
    let pairs: BTreeMap<String, String> = serde_json::from_str(&json).ok()?;
    pairs
        .into_iter()
        .map(|(name, value)| Some((name, BASE64.decode(value).ok()?.into())))
        .collect()
}

/// A header's value from text that is known to be plain.
pub(super) fn ascii(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text)
        .ok()
        .filter(|value| value.to_str().is_ok())
        .ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "not plain text"))
}

/// A value as it stands in a header: as it is when a server gives that back unchanged.
pub(super) fn encode(value: &Bytes) -> Result<HeaderValue> {
    let plain = value.iter().all(|byte| matches!(byte, b' '..=b'~'))
        && !value.starts_with(b" ")
        && !value.ends_with(b" ")
        && !value.windows(2).any(|pair| pair == b"  ")
        && decode_word(value).is_none();
    if plain {
        return HeaderValue::from_maybe_shared(value.clone())
            .map_err(|_| Error::new(ErrorKind::InvalidArgument, "not plain text"));
    }
    let charset = match std::str::from_utf8(value) {
        Ok(_) => "UTF-8",
        Err(_) => "x-binary",
    };
    ascii(&format!("=?{charset}?B?{}?=", BASE64.encode(value)))
}

/// The value that a header stands for: RFC 2047 words, or else its bytes.
pub(super) fn decode(header: &[u8]) -> Bytes {
    let mut value = Vec::new();
    let mut words = header
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let all_words = words.all(|word| match decode_word(word) {
        Some(part) => {
            value.extend_from_slice(&part);
            true
        }
        None => false,
    });
    if all_words && !header.is_empty() {
        value.into()
    } else {
        Bytes::copy_from_slice(header)
    }
}

/// The bytes of one RFC 2047 word in UTF-8, or of none in particular.
fn decode_word(word: &[u8]) -> Option<Vec<u8>> {
    let word = std::str::from_utf8(word).ok()?;
    let mut parts = word.strip_prefix("=?")?.strip_suffix("?=")?.splitn(3, '?');
    let (charset, encoding, text) = (parts.next()?, parts.next()?, parts.next()?);
    if !["utf-8", "us-ascii", "x-binary"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(charset))
    {
        return None;
    }
    match encoding {
        "B" | "b" => BASE64.decode(text).ok(),
        "Q" | "q" => {
            let mut bytes = Vec::with_capacity(text.len());
            let mut rest = text.bytes();
            while let Some(byte) = rest.next() {
                bytes.push(match byte {
                    b'_' => b' ',
                    b'=' => {
                        let digit = |byte: u8| (byte as char).to_digit(16);
                        let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
                        u8::try_from(value).ok()?
                    }
                    byte => byte,
                });
            }
            Some(bytes)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pairs: &[(&str, &str)]) -> Attributes {
        let mut attributes = Attributes::default();
        for (name, value) in pairs {
            let value = Bytes::copy_from_slice(value.as_bytes());
            attributes.user.insert((*name).into(), value);
        }
        recognise(&mut attributes, META);
        attributes
    }

    fn at(seconds: u64, nanos: u32) -> Option<SystemTime> {
        Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos))
    }

    #[test]
    fn modes_of_other_tools_are_read() {
        for (text, expected) in [
            ("33184", Some(0o100_640)),
            ("100640", Some(0o100_640)),
            ("0100640", Some(0o100_640)),
            ("41471", Some(0o120_777)),
            ("0120777", Some(0o120_777)),
            ("16841", Some(0o40_711)),
            ("40711", Some(0o40_711)),
            ("4516", Some(0o10_644)),
            ("420", Some(0o644)),
            ("0644", Some(0o644)),
            ("99999999", None),
            ("rw-r--r--", None),
            ("", None),
            ("-1", None),
        ] {
            let attributes = told(&[("mode", text)]);
            assert_eq!(attributes.mode, expected, "{text}");
            assert_eq!(attributes.user.is_empty(), expected.is_some(), "{text}");
        }
    }

    #[test]
    fn times_of_other_tools_are_read() {
        for (text, expected) in [
            ("981173106", at(981_173_106, 0)),
            ("981173106.789", at(981_173_106, 789_000_000)),
            ("981173106.789123456", at(981_173_106, 789_123_456)),
            (
                "2001-02-03T04:05:06.789123456Z",
                at(981_173_106, 789_123_456),
            ),
            ("2001-02-03T05:05:06+01:00", at(981_173_106, 0)),
            (
                "-1.5",
                SystemTime::UNIX_EPOCH.checked_sub(Duration::from_millis(1500)),
            ),
            ("yesterday", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(told(&[("mtime", text)]).mtime, expected, "{text}");
        }
    }

    #[test]
    fn extended_attributes_are_those_of_s3fs() {
        let text = "%7B%22user.bin%22%3A%22AP8K%22%2C%22user.color%22%3A%22Ymx1ZQ%3D%3D%22%2C%22security.x%22%3A%22eA%3D%3D%22%7D";
        let attributes = told(&[("xattr", text), ("color", "red"), ("ctime", "1")]);
        assert_eq!(attributes.user["bin"], &b"\0\xff\n"[..]);
        assert_eq!(attributes.user["color"], "blue");
        let written = metadata(&attributes, META);
        // It had a header of its own, and keeps it.
        assert_eq!(written["color"], "blue");
        assert_eq!(
            written["xattr"],
            "%7B%22security.x%22%3A%22eA%3D%3D%22%2C%22user.bin%22%3A%22AP8K%22%7D"
        );
        assert_eq!(written.len(), 2);
        let broken = told(&[("xattr", "%7B%22user.a")]);
        assert_eq!(metadata(&broken, META)["xattr"], "%7B%22user.a");
    }

    #[test]
    fn what_other_tools_say_of_the_bytes_is_not_said_of_others() {
        let digest = ("md5chksum", "XUFAKrxLKna5cZ2REBfFkg==");
        let sent = (
            "s3cmd-attrs",
            "gid:0/md5:5d41402abc4b2a76b9719d911017c592/mtime:3",
        );
        let mut attributes = told(&[digest, sent, ("color", "blue")]);
        forget_bytes(&mut attributes);
        assert_eq!(attributes, told(&[("color", "blue")]));
        let mut own = Attributes::default();
        own.user.insert(digest.0.into(), digest.1.into());
        let before = own.clone();
        forget_bytes(&mut own);
        assert_eq!(own, before);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let attributes = Attributes {
            mode: Some(0o100_755),
            uid: Some(1000),
            gid: Some(100),
            mtime: at(1_500_000_000, 5),
            atime: SystemTime::UNIX_EPOCH.checked_sub(Duration::new(3, 1)),
            rdev: Some(0x0103),
            user: [("a\"b, c".to_owned(), Bytes::from_static(&[0, 255]))].into(),
            ..Attributes::default()
        };
        let written = metadata(&attributes, META);
        assert_eq!(written["mode"], "0100755");
        assert_eq!(written["mtime"], "1500000000.000000005");
        let mut read = Attributes {
            user: written,
            ..Attributes::default()
        };
        recognise(&mut read, META);
        assert_eq!(read, attributes);
    }

    #[test]
    fn media_types_go_by_the_extension() {
        for (key, mode, expected) in [
            ("a/b.txt", None, "text/plain"),
            ("a/b.HTML", Some(0o100_644), "text/html"),
            ("a.txt/b", None, BYTES),
            ("b.txt", Some(0o120_777), BYTES),
            ("a.txt/", Some(0o40_755), DIRECTORY),
        ] {
            assert_eq!(media_type(&Key::from(key), mode), expected, "{key}");
        }
    }

    #[test]
    fn words_of_other_tools_are_read() {
        assert_eq!(decode(b"=?UTF-8?Q?=C3=BCber_x?="), "\u{fc}ber x");
        assert_eq!(decode(b"=?utf-8?b?w7w=?= =?utf-8?q?y?="), "\u{fc}y");
        assert_eq!(decode(b"=?UTF-8?B?!?="), "=?UTF-8?B?!?=");
        assert_eq!(decode("\u{fc}".as_bytes()), "\u{fc}");
    }
}
