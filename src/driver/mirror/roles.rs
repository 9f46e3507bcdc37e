//! Who has had everything of whom: told by notes in the stores, which the next mount believes.
//!
//! A primary has an id, and a replica that had everything of it once a note that names that id. No
//! store has both: before anything is written to a primary its note is removed, and before anything
//! is carried over to a replica that is not noted as one of this primary, its id and its note of
//! another one are. So a note holds only while neither of the two has had another part.

use super::Shared;
use super::carry::is_open;
use super::reads::bit;
use crate::clock;
use crate::driver::parts::is_copy_mark;
use crate::driver::{
    AttributeSupport, Body, Driver, GetOptions, Precondition, PutOptions, Result, Strength,
};
use crate::key::Key;
use bytes::Bytes;

/// Whether a key is an id or a note of any mirror. Each store has its own, and no copy of others'.
pub(super) fn is_role(key: &Key) -> bool {
    let name = key.as_bytes().strip_prefix(b".bucketfs/");
    let name = name.and_then(|name| std::str::from_utf8(name).ok());
    name.is_some_and(is_copy_mark)
}

/// Whether a listing leaves a key out: ids and notes, and the directory that there may be for their
/// sake alone. Nobody else puts anything of that name.
pub(super) fn is_untold(key: &Key) -> bool {
    is_role(key) || key.as_bytes() == b".bucketfs/"
}

/// What a replica has that had everything of a primary.
fn note_of(primary: &str) -> String {
    format!("this store was brought up to date as a replica of {primary}\n")
}

/// A small object of our own, if it is there. Who may not look has none.
async fn own(driver: &dyn Driver, key: &Key) -> Result<Option<Bytes>> {
    let got = async { driver.get(key, GetOptions::default()).await?.found() };
    match got.await {
        Ok(object) => Ok(Some(object.collect().await?.1)),
        Err(error) if is_open(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

impl Shared {
    fn note(&self) -> Key {
        Key::from(format!(".bucketfs/{}", self.mark.name()))
    }

    fn id(&self) -> Key {
        Key::from(format!(".bucketfs/{}.id", self.mark.name()))
    }

    /// Whether the primary can have ids and notes: documents of a collection are no place for them,
    /// and such a store is never a replica.
    fn has_notes(&self) -> bool {
        self.claims.attributes != AttributeSupport::None
    }

    /// Sees that the primary is noted as nobody's replica, before anything is written to it.
    pub async fn claim(&self) -> Result<()> {
        let claim = || async {
            let note = self.note();
            match self.has_notes() && own(&*self.origin, &note).await?.is_some() {
                true => self.origin.delete(&note, Precondition::None).await,
                false => Ok(()),
            }
        };
        self.claimed.get_or_try_init(claim).await.copied()
    }

    /// What notes call the primary: its id, or its URL where it has none.
    async fn called(&self) -> Result<String> {
        if let Some(called) = self.called.get() {
            return Ok(called.clone());
        }
        let id = match self.has_notes() {
            true => own(&*self.origin, &self.id()).await?,
            false => None,
        };
        let id = id.and_then(|id| String::from_utf8(id.into()).ok());
        Ok(match id {
            Some(id) => self.called.get_or_init(async || id).await.clone(),
            None => self.name.clone(),
        })
    }

    /// The same, of a primary that gets an id if it has none.
    async fn named(&self) -> Result<String> {
        self.claim().await?;
        let called = self.called().await?;
        if self.called.get().is_some() || !self.has_notes() {
            return Ok(called);
        }
        let id = format!("{:016x}{:016x}", clock::random(), clock::random());
        let options = PutOptions {
            precondition: match self.claims.put_condition {
                Strength::None => Precondition::None,
                _ => Precondition::IfAbsent,
            },
            ..PutOptions::default()
        };
        let body = Body::from(id.into_bytes());
        match self.origin.put(&self.id(), body, options).await {
            Err(error) if is_open(&error) => Err(error),
            // It is there now, whoever has put it; what may have none is called by its URL.
            _ => self.called().await,
        }
    }

    /// Looks whether a replica is noted as one of this primary. Where it is not, and something is
    /// to be written there, it gets rid of what it was.
    pub async fn look_at(&self, at: usize, writes: bool) -> Result<()> {
        let note = self.note();
        let noted = self.replicas[at].ask("get", async |driver| own(&*driver, &note).await);
        let noted = noted.await?;
        let complete = match &noted {
            Some(noted) => *noted == note_of(&self.called().await?),
            None => false,
        };
        if writes && !complete {
            let forget = self.replicas[at].ask("delete", async |driver| {
                driver.delete(&self.id(), Precondition::None).await?;
                match noted {
                    Some(_) => driver.delete(&note, Precondition::None).await,
                    None => Ok(()),
                }
            });
            forget.await?;
        }
        let mut unseen = self.unseen.lock();
        unseen.unasked &= !bit(at);
        match complete {
            true => unseen.empty &= !bit(at),
            false => unseen.empty |= bit(at),
        }
        if writes || complete {
            unseen.joined |= bit(at);
        }
        Ok(())
    }

    /// Sees that a replica is noted as nobody else's, before anything is written to it.
    pub async fn join(&self, at: usize) -> Result<()> {
        if self.unseen.lock().joined & bit(at) != 0 {
            return Ok(());
        }
        self.look_at(at, true).await
    }

    /// Notes, there, that a replica has had everything.
    pub async fn note_complete(&self, at: usize) -> Result<()> {
        let note = Body::from(note_of(&self.named().await?).into_bytes());
        let put = self.replicas[at].ask("put", async |driver| {
            driver.put(&self.note(), note, PutOptions::default()).await
        });
        put.await?;
        let mut unseen = self.unseen.lock();
        unseen.unasked &= !bit(at);
        unseen.empty &= !bit(at);
        Ok(())
    }

    /// Whether a replica is known to have had everything once.
    pub fn is_complete(&self, at: usize) -> bool {
        let unseen = self.unseen.lock();
        (unseen.unasked | unseen.empty) & bit(at) == 0
    }

    /// Looks which replicas had everything once. A replica that is new in a mirror has nothing.
    pub async fn look(&self) -> bool {
        let mut known = false;
        for at in 0..self.replicas.len() {
            if self.unseen.lock().unasked & bit(at) == 0 {
                continue;
            }
            match self.look_at(at, self.fills).await {
                Ok(()) => known = true,
                Err(error) => log::debug!("{}: {error}", self.replicas[at].name),
            }
        }
        known
    }
}
