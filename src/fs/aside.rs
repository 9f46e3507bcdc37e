//! Where the bytes of a commit go that the store refuses for good: beside the name, or into the
//! state directory.

use super::errno::FsError;
use super::inode::Inode;
use super::lost::Loser;
use super::target::{Form, Target};
use super::{ConflictRecord, Fs};
use crate::clock;
use crate::driver::{Error, ErrorKind, ObjectInfo};
use crate::name;
use crate::writeback::conflict::{self, Kept};
use crate::writeback::upload;
use std::sync::Arc;
use std::time::Duration;

const UNREAD: &str =
    "what was neither written nor read here was not fetched before that, and is zeros";

/// How long what only the store has may take to be fetched, where it takes nothing itself.
const KEEPING: Duration = Duration::from_secs(60);

impl Fs {
    /// The commit lost its race, or the store refuses it for good: the bytes go to a conflict file
    /// beside the name, or to the state directory. From then on the inode is that file, so that
    /// its open handles lose nothing either. Gives the error for the program.
    pub(super) async fn lose(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        errno: i32,
        why: &str,
    ) -> FsError {
        // Bytes that only another object has, as those of a copy, are the file's too.
        if let Err(error) = self.keep_content(inode).await {
            return error;
        }
        let whole = {
            let state = inode.state();
            let stage = state.file.stage.as_ref();
            stage.is_none_or(|stage| stage.missing(0..stage.size()).is_empty())
        };
        let loser = match self.loser(inode) {
            Ok(loser) => loser,
            Err(error) => return error,
        };
        let generation = loser.generation;
        let why = match whole {
            true => why.to_owned(),
            false => format!("{why}; {UNREAD}"),
        };
        let error = self.put_aside(inode, loser, errno, &why).await;
        let mut state = inode.state();
        // Where nothing took the bytes they are not lost yet, but dirty still.
        if !state.file.dirty || state.file.generation > generation {
            state.file.lost = Some(Box::new((generation, error.clone())));
        }
        error
    }

    /// Puts a loser's bytes where they can be found.
    async fn put_aside(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        loser: Loser,
        errno: i32,
        why: &str,
    ) -> FsError {
        let path = inode.path();
        let Some((parent, name)) = loser.place.clone() else {
            return FsError::new(libc::ESTALE, why);
        };
        let prefix = parent.key();
        let stem = match Target::of(&name) {
            Some(target) if target.form == Form::Beside => {
                name::encode(&target.component).first().to_vec()
            }
            _ => name.to_vec(),
        };
        let time = clock::wall();
        let mut refused: Option<Error> = None;
        for number in 0..100 {
            let beside = conflict::name(&stem, &self.options.host, time, number);
            let Some(component) = self.component(&beside) else {
                break;
            };
            let key = prefix.join(&component);
            let (body, options) = (loser.body.clone(), loser.options.clone());
            match upload::put(&self.driver, &key, body, options).await {
                Ok(info) => {
                    let info = ObjectInfo {
                        size: Some(loser.body.len()),
                        ..info
                    };
                    self.rehome(inode, &parent, &name, &beside, key, &info, &loser);
                    let kept = String::from_utf8_lossy(&beside).into_owned();
                    self.record_conflict(ConflictRecord {
                        time: clock::seconds(time),
                        path: path.clone(),
                        kept_as: kept.clone(),
                        reason: why.into(),
                    });
                    return FsError::new(
                        errno,
                        format!(
                            "{path:?}: {why}; the bytes written here are kept beside it as {kept:?}"
                        ),
                    );
                }
                Err(error) if error.kind() == ErrorKind::Exists => {}
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        let refusal = refused.map_or_else(String::new, |error| format!(" ({error})"));
        let content = Kept::from(&loser.body);
        match self.keep_outside(&path, why, content, KEEPING).await {
            Ok(kept) => {
                self.unname(inode, &parent, &name, loser.generation);
                let kept = kept.display().to_string();
                self.record_conflict(ConflictRecord {
                    time: clock::seconds(time),
                    path: path.clone(),
                    kept_as: kept.clone(),
                    reason: why.into(),
                });
                FsError::new(
                    errno,
                    format!(
                        "{path:?}: {why}; no conflict file could be written{refusal}, so the bytes are kept in {kept:?}"
                    ),
                )
            }
            Err(disk) => FsError::new(
                errno,
                format!(
                    "{path:?}: {why}; neither a conflict file{refusal} nor the state directory ({disk}) takes the bytes: they stay in memory, write them elsewhere before unmounting"
                ),
            ),
        }
    }
}
