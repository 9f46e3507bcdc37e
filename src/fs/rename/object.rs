//! How one object is moved in the store.

use super::Moved;
use crate::clock;
use crate::driver::{
    Body, CommitId, CopyOptions, ETag, Error, ErrorKind, GetOptions, ObjectInfo, Precondition,
    PutOptions, Result, Strength,
};
use crate::fs::Fs;
use crate::fs::commit::same_conditions;
use crate::fs::content::staged;
use crate::fs::inode::Inode;
use crate::key::Key;
use crate::writeback::upload;

impl Fs {
    /// Moves one object in the store under conditions on both ends.
    pub(super) async fn move_object(
        &self,
        source: &Inode,
        from: &Key,
        to: &Key,
        etag: &ETag,
        destination: Precondition,
    ) -> std::result::Result<ObjectInfo, Moved> {
        let mark = self.mark();
        let mut options = CopyOptions {
            source: Some(etag.clone()),
            destination: destination.clone(),
            mark,
            ..CopyOptions::default()
        };
        if let Some((attributes, commits)) = self.carried(source) {
            options.attributes = Some(attributes);
            options.commits = commits;
        }
        if self.capabilities.rename {
            let options = CopyOptions {
                // The same as before: by them the version is known again at its new key when the
                // answer was lost, for its etag may be another there.
                commits: source.state().file.commits.clone(),
                ..options.clone()
            };
            match self.driver.rename(from, to, options).await {
                // From this machine to the store, or back: that takes two steps.
                Err(error) if error.kind() == ErrorKind::Unsupported => {}
                moved => return moved.map_err(|error| Moved::of(error, to)),
            }
        }
        let info = if same_conditions(&self.capabilities, &destination) {
            // With everything that is stored beside the bytes, commit ids too: a store that was
            // told only some of it anew would have to be asked for the rest first.
            match self.driver.copy(from, to, options).await {
                Err(error)
                    if error.maybe_applied()
                        && matches!(error.kind(), ErrorKind::Exists | ErrorKind::Changed) =>
                {
                    match self.copied_before(from, to, mark).await {
                        Ok(Some(copied)) => copied,
                        Err(unknown) if unknown.kind() != ErrorKind::NotFound => {
                            return Err(Moved::Failed(unknown));
                        }
                        Ok(None) | Err(_) => return Err(Moved::of(error, to)),
                    }
                }
                copied => copied.map_err(|error| Moved::of(error, to))?,
            }
        } else {
            self.carry(from, to, etag, destination.clone(), mark)
                .await?
        };
        let precondition = if self.capabilities.delete_condition == Strength::None {
            // The store would ignore the condition: look first.
            match self.driver.head(from).await {
                Ok(now) if now.etag == *etag => Precondition::None,
                Ok(_) => return Err(Moved::Failed(self.changed_while_moved(from))),
                Err(gone) if gone.kind() == ErrorKind::NotFound => return Ok(info),
                // What nobody has looked at stays.
                Err(error) => return Err(Moved::Failed(error)),
            }
        } else {
            Precondition::IfMatch(etag.clone())
        };
        let gone = |error: &Error| error.kind() == ErrorKind::NotFound;
        match self.driver.delete(from, precondition).await {
            Ok(()) => Ok(info),
            Err(error) if error.kind() == ErrorKind::Changed => {
                match self.driver.head(from).await {
                    Err(head) if gone(&head) => {
                        let others = mark.filter(|_| !error.maybe_applied());
                        match others.filter(|_| destination == Precondition::IfAbsent) {
                            None => Ok(info),
                            Some(mark) => {
                                let taken = self.take_back(to, mark).await;
                                Err(taken.map_or_else(Moved::Failed, |()| Moved::Source))
                            }
                        }
                    }
                    _ => Err(Moved::Failed(self.changed_while_moved(from))),
                }
            }
            Err(error) if gone(&error) => Ok(info),
            Err(error) => Err(Moved::Failed(error)),
        }
    }

    /// What the copies of one rename are marked by, where the loser of several renames has to take
    /// them back.
    pub(in crate::fs) fn mark(&self) -> Option<CommitId> {
        let told = self.capabilities.knows_own_deletes && self.capabilities.commit_ids;
        told.then(|| CommitId(clock::random()))
    }

    /// Somebody else has renamed or removed the source first: the copy that this rename has made is
    /// none of theirs, and goes. What somebody else has made of it by now, or put in its place, stays:
    /// it may be the only one.
    pub(in crate::fs) async fn take_back(&self, to: &Key, mark: CommitId) -> Result<()> {
        let gone = |error: &Error| matches!(error.kind(), ErrorKind::Changed | ErrorKind::NotFound);
        let there = match self.driver.head(to).await {
            Ok(there) if there.commits.first() == Some(&mark) => there,
            Ok(_) => return Ok(()),
            Err(error) if gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let copy = Precondition::IfMatch(there.etag);
        match self.driver.delete(to, copy).await {
            Err(error) if !gone(&error) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn changed_while_moved(&self, from: &Key) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            "somebody else wrote it while it was renamed: both names are kept",
        )
        .retry(false)
        .during("rename")
        .on(from)
    }

    /// Moves an object's bytes through this machine, where the server's copy takes no condition.
    pub(in crate::fs) async fn carry(
        &self,
        from: &Key,
        to: &Key,
        etag: &ETag,
        destination: Precondition,
        mark: Option<CommitId>,
    ) -> std::result::Result<ObjectInfo, Moved> {
        let options = GetOptions {
            if_match: Some(etag.clone()),
            ..GetOptions::default()
        };
        let object = match self.driver.get(from, options).await {
            Ok(outcome) => outcome.found().map_err(Moved::Failed)?,
            Err(error) if matches!(error.kind(), ErrorKind::Changed | ErrorKind::NotFound) => {
                return Err(Moved::Source);
            }
            Err(error) => return Err(Moved::Failed(error)),
        };
        let attributes = object.info.told_attributes();
        let mut commits = vec![mark.unwrap_or_else(|| CommitId(clock::random()))];
        commits.extend(&object.info.commits);
        commits.truncate(CommitId::KEPT);
        let body = self.spool(object).await.map_err(Moved::Failed)?;
        let options = PutOptions {
            precondition: destination,
            attributes,
            commits,
            like: Some(from.clone()),
            ..PutOptions::default()
        };
        upload::put(&self.driver, to, body, options)
            .await
            .map_err(|error| Moved::of(error, to))
    }

    /// Reads an object into a body that can be sent again: through the staging area, so that a
    /// large one does not lie in memory.
    async fn spool(&self, mut object: crate::driver::Object) -> Result<Body> {
        use futures::StreamExt;
        let mut stage = crate::writeback::stage::Stage::new(&self.area, None);
        let mut at = 0;
        while let Some(piece) = object.body.next().await {
            let piece = piece?;
            stage.write(at, &piece).map_err(staged)?;
            at += piece.len() as u64;
        }
        if at != object.range.end - object.range.start {
            return Err(Error::new(ErrorKind::Corrupt, "the body ended early").during("get"));
        }
        stage.snapshot().map_err(staged)
    }
}
