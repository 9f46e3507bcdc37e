//! What a query finds. The server leaves out what surely does not match, and sends the rest.

use super::names::Form;
use super::{Data, FIND};
use crate::driver::redis::answer::{self, array, bytes, garbled};
use crate::driver::{Match, Matches, Query, Result, Term};
use crate::key::Key;
use ::redis::Value;
use std::ops::Bound;

/// How many keys one page looks at, and one step of it at most and at least; for a step the server
/// serves nobody else.
const PAGE: usize = 20_000;
const STEP: usize = 1000;
const LEAST: usize = 100;
/// After how many bytes a step leaves the rest to the next one, and a page ends.
const BUDGET: &[u8] = b"1048576";
const FULL: usize = 8 << 20;

impl Data {
    /// One page. Tokens are the hexadecimal spelling of the last name that was looked at.
    pub(super) async fn matches(&self, query: Query) -> Result<Matches> {
        let begin = match query.token.as_deref() {
            None => Bound::Included(query.prefix.clone()),
            Some(text) => Bound::Excluded(answer::parse_token(text)?),
        };
        let mut index = self.0.index.lock().await;
        self.refresh(&mut index).await?;
        let names = index.names.range((begin, Bound::Unbounded));
        let names = names.take_while(|name| name.starts_with(&query.prefix));
        let names: Vec<Key> = names.take(PAGE + 1).cloned().collect();
        drop(index);
        let terms: Vec<String> = query.filter.terms.iter().filter_map(asked).collect();
        let terms = format!("[{}]", terms.join(","));
        let (mut found, mut size, mut at) = (Vec::new(), 0, 0);
        let end = names.len().min(PAGE);
        while at < end && found.len() < query.limit && size < FULL {
            // Where most match, what is beyond the limit would be sent in vain.
            let most = (query.limit - found.len()).clamp(LEAST, STEP);
            let step = &names[at..end.min(at + most)];
            let stored: Vec<_> = step.iter().map(|name| self.0.names.stored(name)).collect();
            let keys: Vec<&[u8]> = stored.iter().map(|(key, _)| key.as_slice()).collect();
            let arguments = [BUDGET, terms.as_bytes()];
            let answers = array(self.0.link.run(&FIND, &keys, arguments).await?)?;
            if answers.is_empty() {
                return Err(garbled());
            }
            for (answer, (name, (_, form))) in answers.into_iter().zip(step.iter().zip(&stored)) {
                if found.len() == query.limit {
                    break;
                }
                at += 1;
                let Some((etag, text)) = shown(answer, *form)? else {
                    continue;
                };
                if query.filter.matches(&text) {
                    size += text.len();
                    let key = name.clone();
                    found.push(Match { key, etag, text });
                }
            }
        }
        let next = names[..at].last().filter(|_| at < names.len());
        Ok(Matches {
            found,
            next: next.map(answer::token),
        })
    }
}

/// A term as the script takes it, unless its JSON is none to the server's reader, as half of a
/// surrogate pair is: whoever asks compares that alone. The server compares numbers as doubles, and
/// so leaves out none that is equal.
fn asked(term: &Term) -> Option<String> {
    let value = match serde_json::from_str::<serde_json::Value>(&term.value) {
        Ok(value) => value.to_string(),
        // A number beyond all doubles stays as it is written.
        Err(_)
            if term
                .value
                .starts_with(|sign: char| sign == '-' || sign.is_ascii_digit()) =>
        {
            term.value.clone()
        }
        Err(_) => return None,
    };
    let path = serde_json::Value::from(term.path.clone());
    Some(format!(r#"{{"p":{path},"v":{value}}}"#))
}

/// The version and the text of a key, if that is shown under the name.
fn shown(answer: Value, form: Form) -> Result<Option<(crate::driver::ETag, bytes::Bytes)>> {
    if matches!(&answer, Value::Array(parts) if parts.len() == 1) {
        return Ok(None);
    }
    let mut told = super::calls::Told::parse(answer)?;
    if Form::of(&told.kind) != Some(form) {
        return Ok(None);
    }
    let text = match form {
        Form::Text => bytes(std::mem::take(&mut told.content))?,
        Form::Document => told.render()?,
    };
    Ok(Some((told.etag, text)))
}
