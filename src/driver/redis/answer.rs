//! What scripts answer, taken apart.

use crate::driver::{Error, ErrorKind, Result};
use crate::key::Key;
use ::redis::Value;
use bytes::Bytes;

/// The answer is not what the script gives.
pub(super) fn garbled() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "the server's answer makes no sense here: something else wrote to the keys of this layout?",
    )
}

pub(super) fn array(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(values) | Value::Set(values) => Ok(values),
        _ => Err(garbled()),
    }
}

pub(super) fn bytes(value: Value) -> Result<Bytes> {
    match value {
        Value::BulkString(bytes) => Ok(bytes.into()),
        Value::SimpleString(text) => Ok(text.into_bytes().into()),
        Value::VerbatimString { text, .. } => Ok(text.into_bytes().into()),
        Value::Okay => Ok(Bytes::from_static(b"OK")),
        _ => Err(garbled()),
    }
}

pub(super) fn text(value: Value) -> Result<String> {
    String::from_utf8(bytes(value)?.to_vec()).map_err(|_| garbled())
}

pub(super) fn int(value: Value) -> Result<i64> {
    match value {
        Value::Int(number) => Ok(number),
        other => text(other)?.parse().map_err(|_| garbled()),
    }
}

/// An answer that begins with a word: the word, and what follows.
pub(super) fn words(value: Value) -> Result<(String, std::vec::IntoIter<Value>)> {
    let mut values = array(value)?.into_iter();
    let word = text(values.next().ok_or_else(garbled)?)?;
    Ok((word, values))
}

/// The next of an answer.
pub(super) fn next(values: &mut std::vec::IntoIter<Value>) -> Result<Value> {
    values.next().ok_or_else(garbled)
}

/// Tokens are the hexadecimal spelling of the last entry's key.
pub(super) fn token(key: &Key) -> String {
    key.as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub(super) fn parse_token(text: &str) -> Result<Key> {
    let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(byte).collect();
    bytes.map(Key::from).ok_or_else(|| {
        let why = format!("{text:?} is no token of this listing");
        Error::new(ErrorKind::InvalidArgument, why)
    })
}
