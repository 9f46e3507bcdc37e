//! Bodies of several parts: the siblings of an object.

use crate::driver::{Error, ErrorKind, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

fn corrupt() -> Error {
    let why = "the server's list of siblings makes no sense";
    Error::new(ErrorKind::Corrupt, why)
}

/// Where `wanted` begins, from `from` on.
fn find(text: &[u8], wanted: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let rest = text.get(at..)?;
        at += rest.iter().position(|byte| *byte == wanted[0])?;
        if text[at..].starts_with(wanted) {
            return Some(at);
        }
        at += 1;
    }
}

/// The boundary that a media type names.
fn boundary(kind: &str) -> Option<&str> {
    let (kind, parameters) = kind.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/mixed") {
        return None;
    }
    let named = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.trim().split_once('=')?;
        name.eq_ignore_ascii_case("boundary").then_some(value)
    });
    named
        .map(|value| value.trim_matches('"'))
        .filter(|value| !value.is_empty())
}

fn headers(text: &[u8]) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let colon = colon.ok_or_else(corrupt)?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| corrupt())?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        headers.append(name, value.map_err(|_| corrupt())?);
    }
    Ok(headers)
}

/// The parts of a body of this media type.
pub(super) fn parts(kind: &str, body: &Bytes) -> Result<Vec<(HeaderMap, Bytes)>> {
    let line = format!("\r\n--{}", boundary(kind).ok_or_else(corrupt)?);
    let line = line.as_bytes();
    let mut parts = Vec::new();
    // The first line may stand at the very beginning.
    let mut at = match body.starts_with(&line[2..]) {
        true => line.len() - 2,
        false => find(body, line, 0).ok_or_else(corrupt)? + line.len(),
    };
    while !body[at..].starts_with(b"--") {
        let begin = find(body, b"\r\n", at).ok_or_else(corrupt)? + 2;
        // A part without headers begins with its empty line.
        let split = find(body, b"\r\n\r\n", begin - 2).ok_or_else(corrupt)?;
        let end = find(body, line, split + 2).ok_or_else(corrupt)?;
        let told = headers(&body[begin.min(split)..split])?;
        parts.push((told, body.slice((split + 4).min(end)..end)));
        at = end + line.len();
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_taken_apart_by_their_boundary() {
        let kind = "multipart/mixed; boundary=b0";
        let body = Bytes::from_static(
            b"\r\n--b0\r\nEtag: x\r\nX-Riak-Meta-a: 1\r\n\r\none\r\n\r\n--b\r\n--b0\r\nEtag: y\r\n\r\n\r\n--b0--\r\n",
        );
        let parts = parts(kind, &body).expect("parts");
        let told: Vec<_> = parts
            .iter()
            .map(|(headers, body)| (headers["etag"].to_str().expect("text"), &body[..]))
            .collect();
        assert_eq!(told, [("x", &b"one\r\n\r\n--b"[..]), ("y", b"")]);
        assert_eq!(parts[0].0["x-riak-meta-a"], "1");
    }

    #[test]
    fn what_is_no_list_of_parts_is_corrupt() {
        for (kind, body) in [
            ("text/plain", "\r\n--b--"),
            ("multipart/mixed", "\r\n--b--"),
            ("multipart/mixed; boundary=", "\r\n----"),
            ("multipart/mixed; boundary=b", ""),
            (
                "multipart/mixed; boundary=b",
                "\r\n--b\r\nEtag: x\r\n\r\nbroken off",
            ),
            ("multipart/mixed; boundary=b", "\r\n--b\r\nEtag: x"),
            (
                "multipart/mixed; boundary=b",
                "\r\n--b\r\nno header\r\n\r\n\r\n--b--",
            ),
        ] {
            let error = parts(kind, &Bytes::from_static(body.as_bytes())).expect_err(body);
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{kind}: {body}");
        }
    }
}
