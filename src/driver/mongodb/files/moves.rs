//! Renames: one change of the file's document.

use super::entry::{Entry, FOLLOWS};
use super::{Files, TRIES, behind, busy, follows, known, metadata, missing, name};
use crate::driver::mongodb::link;
use crate::driver::{CopyOptions, Error, ErrorKind, ObjectInfo, Precondition, Result};
use crate::key::Key;
use ::mongodb::bson::doc;

fn wrong(why: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, why)
}

impl Files {
    /// Moves the newest revision of a name. Older ones of it go, as none of them may become the file.
    pub(super) async fn relocate(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
    ) -> Result<ObjectInfo> {
        let (old, new) = (known(from)?, name(to).map_err(|error| error.on(to))?);
        if from == to {
            return Err(wrong("a file cannot be renamed to itself"));
        }
        if options.attributes.is_some() {
            return Err(wrong("a rename takes no attributes"));
        }
        self.prepare().await?;
        for _ in 0..TRIES {
            let mut all = self.revisions(old).await?;
            let entry = all.pop().ok_or_else(missing)?;
            if let Some(etag) = &options.source {
                Precondition::IfMatch(etag.clone()).check(Some(&entry.etag()))?;
            }
            let there = self.newest(new).await?;
            let etag = there.as_ref().map(Entry::etag);
            let checked = options.destination.check(etag.as_ref());
            checked.map_err(|error| error.on(to))?;
            let older = self.forget(old, all).await?;
            self.discard(&older).await;
            let word = follows(new, there.as_ref());
            let mut fields = doc! {
                "filename": new, "uploadDate": behind(entry.uploaded, there.as_ref()), FOLLOWS: &word,
            };
            if !options.commits.is_empty() {
                fields.extend(metadata(&entry.attributes(), &options.commits));
            }
            let moved = match self.amend(&entry, fields).await {
                Ok(Some(moved)) => moved,
                Ok(None) => continue,
                Err(cause) if link::is_duplicate(&cause) => {
                    self.release(new, &word).await?;
                    continue;
                }
                Err(cause) => return Err(self.error(&cause)),
            };
            let settled = self.settle(new, &moved.id, there.as_ref()).await?;
            if settled || (options.destination == Precondition::None && there.is_some()) {
                self.replace(there, settled).await;
                return Ok(moved.info());
            }
            // Somebody else was faster at the new name.
            let back =
                doc! { "filename": old, "uploadDate": entry.uploaded, FOLLOWS: follows(old, None) };
            let back = self.amend(&moved, back).await;
            back.map_err(|cause| self.error(&cause))?;
        }
        Err(busy())
    }
}
