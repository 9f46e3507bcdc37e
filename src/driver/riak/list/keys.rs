//! The keys of a bucket: in order by the secondary index `$key`, or all of them without order where its
//! backend has no indexes.

use crate::clock;
use crate::driver::riak::bucket::BucketType;
use crate::driver::riak::link::{Call, garbled};
use crate::driver::riak::names::segment;
use crate::driver::{Error, ErrorKind, Result, web};
use crate::key::Key;
use futures::StreamExt;
use http::{Method, StatusCode};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// How long all keys of a bucket are kept for the next page.
const KEPT: Duration = Duration::from_secs(60);
/// Behind all keys that begin as what it stands behind: no key in JSON has such a byte.
pub(super) const END: u8 = 0xff;

#[derive(Deserialize)]
struct Keys {
    #[serde(default)]
    keys: Vec<String>,
    error: Option<String>,
}

/// Some keys of a bucket in order, and whether there are more behind them.
pub(super) struct Batch {
    pub names: Vec<String>,
    pub goes_on: bool,
}

impl BucketType {
    /// Keys from `from` on that begin with a prefix.
    pub(super) async fn batch(
        &self,
        bucket: &str,
        prefix: &Key,
        from: &Key,
        limit: usize,
        goes_on: bool,
        all: &mut Option<Arc<Vec<String>>>,
    ) -> Result<Batch> {
        let end = prefix.join([END]);
        if !self.unindexed.lock().contains_key(bucket) {
            let most = limit + 1;
            // No key is empty.
            let begin = if from.is_empty() {
                &b"\0"[..]
            } else {
                from.as_bytes()
            };
            let (begin, end) = (segment(begin), segment(end.as_bytes()));
            let path = format!("index/$key/{begin}/{end}?max_results={most}");
            let told: Result<Option<Keys>> = self.link.document(self.path(bucket, &path)).await;
            match told {
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    log::warn!(
                        "{} has no secondary indexes for the bucket {bucket:?}: each listing asks for all its keys",
                        self.link.target()
                    );
                    self.unindexed.lock().insert(bucket.to_owned(), None);
                }
                told => {
                    let mut names = told?.map_or_else(Vec::new, |told| told.keys);
                    // In order by its promise; sorted costs nothing then.
                    names.sort_unstable();
                    return Ok(Batch {
                        goes_on: names.len() >= most,
                        names,
                    });
                }
            }
        }
        if all.is_none() {
            *all = Some(self.all(bucket, goes_on).await?);
        }
        let names = all.as_deref().map_or(&[][..], Vec::as_slice);
        let begin = names.partition_point(|name| name.as_bytes() < from.as_bytes());
        let end = names.partition_point(|name| name.as_bytes() < end.as_bytes());
        let last = end.min(begin + limit + 1);
        Ok(Batch {
            names: names.get(begin..last).unwrap_or_default().to_vec(),
            goes_on: last < end,
        })
    }

    /// All keys of a bucket, in order; as they were a moment ago where a listing goes on.
    async fn all(&self, bucket: &str, goes_on: bool) -> Result<Arc<Vec<String>>> {
        if goes_on
            && let Some(Some((at, kept))) = self.unindexed.lock().get(bucket)
            && *at + KEPT > clock::now()
        {
            return Ok(kept.clone());
        }
        let call = Call::new(Method::GET, self.path(bucket, "keys?keys=stream"));
        let answer = self.link.send(call).await?;
        let mut names = Vec::new();
        if answer.status() != StatusCode::NOT_FOUND {
            let mut pieces = web::stream(answer.into_body());
            let mut text = Vec::new();
            while let Some(piece) = pieces.next().await {
                text.extend_from_slice(&piece?);
                let read = documents(&text, &mut names)?;
                text.drain(..read);
            }
            if !text.trim_ascii().is_empty() {
                let why = "the server's list of keys broke off";
                return Err(Error::new(ErrorKind::Corrupt, why));
            }
        }
        names.sort_unstable();
        names.dedup();
        let names = Arc::new(names);
        let kept = Some((clock::now(), names.clone()));
        let mut unindexed = self.unindexed.lock();
        unindexed.values_mut().for_each(|kept| {
            kept.take_if(|(at, _)| *at + KEPT <= clock::now());
        });
        unindexed.insert(bucket.to_owned(), kept);
        Ok(names)
    }
}

/// Takes the keys of the whole documents at the beginning of a text. Gives how long these are.
fn documents(text: &[u8], names: &mut Vec<String>) -> Result<usize> {
    let mut told = serde_json::Deserializer::from_slice(text).into_iter::<Keys>();
    let mut read = 0;
    while let Some(next) = told.next() {
        match next {
            Ok(Keys {
                error: Some(said), ..
            }) => {
                let why = "the server stopped to list keys";
                return Err(Error::new(ErrorKind::Unavailable, why).because(said));
            }
            Ok(Keys { keys, .. }) => names.extend(keys),
            Err(cause) if cause.is_eof() => break,
            Err(cause) => return Err(garbled(&cause)),
        }
        read = told.byte_offset();
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_pieces_of_any_length() {
        let text = r#"{"props":{}}{"keys":["a","b\"{"]}{"keys":[]}{"keys":["ü"]}"#;
        for len in 1..text.len() {
            let (mut names, mut held) = (Vec::new(), Vec::new());
            for piece in text.as_bytes().chunks(len) {
                held.extend_from_slice(piece);
                let read = documents(&held, &mut names).expect("documents");
                held.drain(..read);
            }
            assert_eq!(
                (names, held),
                (vec!["a".into(), "b\"{".into(), "ü".into()], vec![])
            );
        }
        let mut names = Vec::new();
        let error = documents(br#"{"error":"timeout"}"#, &mut names).expect_err("an error");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let error = documents(b"<html>", &mut names).expect_err("no document");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}
