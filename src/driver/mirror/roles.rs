//! Who has had everything of whom: told by notes in the stores, which the next mount believes.
//!
//! A primary has an id, and a replica that had everything of it once a note that names that id. No
//! store has both: before anything is written to a primary its note is removed, and before anything
//! is carried over to a replica without a note of this primary, its id is. So a note holds only while
//! neither of the two has had another part.
//!
//! A replica with a note of *another* store is left alone until a person gives it to this one: a
//! primary that came up empty, because its disk is not there or its data are gone, has no id or a new
//! one, and the copies may be all that is left. For the same reason nothing is removed from a replica in
//! the background unless its note and the primary's id say together that it is a copy of that.

use super::Shared;
use super::carry::is_open;
use super::journal::Replicas;
use super::reads::bit;
use super::repair::Walk;
use crate::clock;
use crate::driver::parts::is_copy_mark;
use crate::driver::{
    AttributeSupport, Body, Driver, Error, ErrorKind, GetOptions, Precondition, PutOptions, Result,
    Strength,
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

/// What is known of a replica's note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    /// It had everything of this primary.
    Complete,
    /// There is none: it is new, was a primary, or has never had everything.
    Not,
    /// It had everything of another one.
    OfAnother,
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

    /// Whether the primary is still the store that its id says; where it never had one, whether it has
    /// anything at all.
    pub async fn is_itself(&self) -> Result<bool> {
        if !self.has_notes() {
            return Ok(true);
        }
        match self.called.get() {
            Some(called) => {
                let id = own(&*self.origin, &self.id()).await?;
                Ok(id.is_some_and(|id| *id == *called.as_bytes()))
            }
            None => Ok(Walk::over(self.origin.clone()).first().await?.is_some()),
        }
    }

    /// Looks what a replica is noted as. If something is to be written there and it has no note of this
    /// primary, it gets rid of what it was; a note of another one it loses only when it is `given`.
    pub async fn look_at(&self, at: usize, writes: bool, given: bool) -> Result<()> {
        let note = self.note();
        let told = self.replicas[at].ask("get", async |driver| own(&*driver, &note).await);
        let noted = match told.await? {
            Some(told) if *told == *note_of(&self.called().await?).as_bytes() => Noted::Complete,
            Some(_) => Noted::OfAnother,
            None => Noted::Not,
        };
        let joins = noted == Noted::Not || noted == Noted::OfAnother && given;
        if writes && joins {
            // First, so that no note names an id that is gone.
            self.claim().await?;
            let forget = self.replicas[at].ask("delete", async |driver| {
                driver.delete(&self.id(), Precondition::None).await?;
                match noted {
                    Noted::OfAnother => driver.delete(&note, Precondition::None).await,
                    Noted::Complete | Noted::Not => Ok(()),
                }
            });
            forget.await?;
        }
        let left_alone = noted == Noted::OfAnother && !(writes && given);
        let complete = noted == Noted::Complete;
        let news = self.note_seen(at, complete, left_alone, writes && joins);
        if news && left_alone {
            log::warn!("{}", self.of_another(at).message());
        }
        Ok(())
    }

    /// Remembers what a look at a replica has told. Whether it is left alone since now, or no more.
    fn note_seen(&self, at: usize, complete: bool, left_alone: bool, joined: bool) -> bool {
        let put = |set: Replicas, holds: bool| set & !bit(at) | if holds { bit(at) } else { 0 };
        let mut unseen = self.unseen.lock();
        let before = unseen.of_another;
        unseen.unasked &= !bit(at);
        unseen.empty = put(unseen.empty, !complete);
        unseen.of_another = put(unseen.of_another, left_alone);
        if complete || joined {
            unseen.joined |= bit(at);
        }
        before != unseen.of_another
    }

    /// What a replica that has the copies of another store is left alone with.
    pub fn of_another(&self, at: usize) -> Error {
        let (replica, primary) = (&self.replicas[at].name, &self.name);
        let why = format!(
            "{replica} has the copies of another store than {primary} is now, and is left alone: if {primary} has lost its data, name {replica} first; bucketfs check --repair --replace makes it a replica of {primary}"
        );
        Error::new(ErrorKind::InvalidArgument, why).during("repair")
    }

    /// Sees that a replica is noted as nobody else's, before anything is written to it.
    pub async fn join(&self, at: usize) -> Result<()> {
        if !self.is_seen(at) {
            self.look_at(at, true, false).await?;
        }
        match self.unseen.lock().of_another & bit(at) {
            0 => Ok(()),
            _ => Err(self.of_another(at)),
        }
    }

    /// Whether it is known if a replica may be written to.
    fn is_seen(&self, at: usize) -> bool {
        let unseen = self.unseen.lock();
        (unseen.joined | unseen.of_another) & bit(at) != 0
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
        unseen.surplus &= !bit(at);
        Ok(())
    }

    /// Whether a replica is known to have had everything once.
    pub fn is_complete(&self, at: usize) -> bool {
        let unseen = self.unseen.lock();
        (unseen.unasked | unseen.empty) & bit(at) == 0
    }

    /// Looks which replicas had everything once, and whether those of others still are. A replica that
    /// is new in a mirror has nothing.
    pub async fn look(&self) -> bool {
        let mut known = false;
        for at in 0..self.replicas.len() {
            if self.unseen.lock().to_ask() & bit(at) == 0 {
                continue;
            }
            match self.look_at(at, self.fills, false).await {
                Ok(()) => known = true,
                Err(error) => log::debug!("{}: {error}", self.replicas[at].name),
            }
        }
        known
    }
}
