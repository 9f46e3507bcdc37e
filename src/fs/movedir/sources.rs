//! How what was copied is deleted at its old keys, unless somebody has written it meanwhile.

use super::{Copied, vanished};
use crate::driver::{
    ETag, Error, ErrorKind, ListEntry, ListRequest, ObjectInfo, Precondition, Removal, Strength,
};
use crate::fs::Fs;
use crate::fs::intent::Moving;
use crate::key::Key;
use std::collections::HashMap;

/// How many of them are looked at again by one request before they are deleted, or marked each by
/// one, where the store takes no conditions for that. Where they are looked at, a write that comes
/// between the two is lost.
const LOOKED_AT: usize = 100;

impl Fs {
    /// Whether many keys can be deleted with each request, as safely as one.
    pub(in crate::fs) fn deletes_many(&self) -> bool {
        let claims = &self.capabilities;
        claims.delete_many.is_some()
            && claims.delete_many_condition >= claims.delete_condition
            && !claims.rename
    }

    /// Deletes what was copied, many keys with each request; one result for each.
    pub(in crate::fs) async fn remove_sources(
        &self,
        old: &Key,
        copied: &[(ListEntry, Key, Copied)],
    ) -> Vec<Result<(), Error>> {
        let mut most = self.capabilities.delete_many.unwrap_or(1).max(1);
        let blind = self.capabilities.delete_many_condition == Strength::None;
        if blind || self.capabilities.knows_own_deletes {
            most = most.min(LOOKED_AT);
        }
        let mut results = Vec::with_capacity(copied.len());
        for batch in copied.chunks(most) {
            let removed = match blind {
                true => self.look_and_remove(old, batch).await,
                false => self.remove_batch(batch).await,
            };
            match removed {
                Ok(gone) => results.extend(gone),
                Err(error) => {
                    results.push(Err(error));
                    return results;
                }
            }
        }
        results
    }

    async fn remove_batch(
        &self,
        batch: &[(ListEntry, Key, Copied)],
    ) -> Result<Vec<Result<(), Error>>, Error> {
        let removals: Vec<Removal> = batch
            .iter()
            .map(|(entry, _, _)| Removal {
                if_match: self.source_version(entry),
                key: entry.key.clone(),
            })
            .collect();
        self.driver.delete_many(&removals).await
    }

    /// The same where the store would ignore conditions: looks first, by one listing. `batch` is in
    /// the order of its keys.
    async fn look_and_remove(
        &self,
        old: &Key,
        batch: &[(ListEntry, Key, Copied)],
    ) -> Result<Vec<Result<(), Error>>, Error> {
        let Some((first, _, _)) = batch.first() else {
            return Ok(Vec::new());
        };
        let before = first.key.before();
        let request = ListRequest {
            start_after: before.filter(|before| before.len() > old.len()),
            ..ListRequest::flat(old)
        };
        let page = self.driver.list(request).await?;
        let now: HashMap<&Key, &ObjectInfo> = page
            .entries
            .iter()
            .filter_map(|entry| Some((&entry.key, entry.object.as_ref()?)))
            .collect();
        let same = |entry: &ListEntry| {
            let listed = entry.object.as_ref().map(|info| &info.etag);
            now.get(&entry.key).map(|info| &info.etag) == listed
        };
        let removals: Vec<Removal> = batch
            .iter()
            .filter(|(entry, _, _)| same(entry))
            .map(|(entry, _, _)| Removal::from(entry.key.clone()))
            .collect();
        let mut gone = match removals.is_empty() {
            true => Vec::new(),
            false => self.driver.delete_many(&removals).await?,
        }
        .into_iter();
        // What is gone, changed, or beyond the page is met by the next round.
        let changed = || Error::new(ErrorKind::Changed, "it is not the version that was copied");
        Ok(batch
            .iter()
            .map(|(entry, _, _)| match same(entry) {
                true => gone.next().unwrap_or_else(|| Err(changed())),
                false => Err(changed()),
            })
            .collect())
    }

    /// Takes back the copies of what somebody else has moved away or removed first, where that is
    /// certain. Gives the first failure.
    pub(in crate::fs) async fn take_back_lost(
        &self,
        moving: &Moving,
        lost: Vec<(Key, Key)>,
    ) -> Result<(), Error> {
        let Some(mark) = moving.mark.filter(|_| !lost.is_empty()) else {
            return Ok(());
        };
        if !self.is_own(moving).await? {
            return Ok(());
        }
        let mut failed = Ok(());
        for (from, to) in lost {
            let taken = match self.driver.head(&from).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.take_back(&to, mark).await
                }
                // The next round meets another version.
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            failed = failed.and(taken);
        }
        failed
    }

    /// The version of a source that may be deleted, where the store holds that.
    fn source_version(&self, entry: &ListEntry) -> Option<ETag> {
        let marker = entry.key.as_bytes().ends_with(b"/");
        let held = self.capabilities.delete_condition != Strength::None && !marker;
        let info = entry.object.as_ref().filter(|_| held);
        info.map(|info| info.etag.clone())
    }

    /// Deletes what was copied. Where it was written meanwhile both versions are kept, and the next
    /// round meets the new one.
    pub(in crate::fs) async fn remove_source(&self, entry: &ListEntry) -> Result<bool, Error> {
        if self.capabilities.delete_condition == Strength::None
            && !entry.key.as_bytes().ends_with(b"/")
        {
            // The store would ignore the condition: look first.
            let listed = entry.object.as_ref().map(|info| &info.etag);
            match self.driver.head(&entry.key).await {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
                Ok(now) if Some(&now.etag) != listed => return Ok(false),
                Ok(_) => {}
            }
        }
        let precondition = self.source_version(entry).map(Precondition::IfMatch);
        match self
            .driver
            .delete(&entry.key, precondition.unwrap_or_default())
            .await
        {
            Ok(()) => Ok(true),
            Err(error) if vanished(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
