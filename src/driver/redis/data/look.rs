//! What keys have become that the server pushes. The digest of a large one would keep the server
//! from everybody else, and again at each write to it, even where nobody looks at the file: of such
//! a key the feed tells a version that is none, so that what is known of it is forgotten, and the
//! next who wants it pays for it once.

use super::calls::fresh;
use super::names::Form;
use super::{Data, LOOK};
use crate::driver::redis::answer::{array, bytes, garbled, next, text};
use crate::driver::{Change, ETag, Result};
use crate::key::Key;
use bytes::Bytes;

/// With more elements than this, or more bytes, a key is large, whatever its kind. Either is about
/// 4 ms of the server's time, and as much as one write of another program can cost here.
const MOST: &[u8] = b"1000";
const LONGEST: &[u8] = b"1048576";
/// After how much one call leaves the rest to the next one, about as many bytes: some tens of ms.
const BUDGET: &[u8] = b"1048576";

impl Data {
    /// What keys have become, under both names that each can have.
    pub(super) async fn look(&self, keys: Vec<Vec<u8>>) -> Vec<Change> {
        let told = self.versions(&keys).await;
        let mut changes = Vec::with_capacity(keys.len() * 2);
        for (at, key) in keys.iter().enumerate() {
            for form in [Form::Text, Form::Document] {
                let Some(name) = self.0.names.shown(key, form) else {
                    continue;
                };
                changes.push(match &told {
                    Err(_) => Change::Written(name, None),
                    Ok(told) => self.change(name, form, &told[at]),
                });
            }
        }
        changes
    }

    fn change(&self, name: Key, form: Form, (kind, etag): &(Bytes, String)) -> Change {
        if Form::of(kind) != Some(form) {
            return Change::Removed(name);
        }
        if etag.is_empty() {
            self.noticed(&name);
            return Change::Written(name, Some(fresh('l')));
        }
        let etag = ETag::new(etag.clone());
        self.modified(&name, &etag);
        Change::Written(name, Some(etag))
    }

    /// The kind of each key, and its etag unless it is large.
    async fn versions(&self, keys: &[Vec<u8>]) -> Result<Vec<(Bytes, String)>> {
        let mut versions = Vec::with_capacity(keys.len());
        while versions.len() < keys.len() {
            let left: Vec<&[u8]> = keys[versions.len()..].iter().map(Vec::as_slice).collect();
            let answer = self
                .0
                .link
                .run(&LOOK, &left, [BUDGET, MOST, LONGEST])
                .await?;
            let answers = array(answer)?;
            if answers.is_empty() || answers.len() > left.len() {
                return Err(garbled());
            }
            for answer in answers {
                let mut parts = array(answer)?.into_iter();
                versions.push((bytes(next(&mut parts)?)?, text(next(&mut parts)?)?));
            }
        }
        Ok(versions)
    }
}
