//! Brings replicas up to date: in the background what is known to lack, and on demand everything.

use super::carry::{is_special, is_touched};
use super::reads::bit;
use super::roles::is_role;
use super::{Mirror, Shared};
use crate::clock;
use crate::driver::parts::{PartStatus, Repaired, Replicated, Source};
use crate::driver::{
    AttributeSupport, Driver, Error, ErrorKind, ListEntry, ListRequest, ObjectInfo, Result,
};
use crate::key::Key;
use crate::task;
use async_trait::async_trait;
use futures::StreamExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The pauses between rounds in which nothing could be repaired.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Keys of one round that are looked at before it is said that something went on.
const ROUND: usize = 1000;
/// Objects that are repaired at a time.
const WIDTH: usize = 8;
/// How often progress is said.
const SAID: Duration = Duration::from_secs(10);

impl Shared {
    /// Sees that somebody repairs in the background, if there is anything to do.
    pub(super) fn wake(self: &Arc<Self>) {
        if self.has_work() && !self.repairing.swap(true, Ordering::AcqRel) {
            task::spawn(repair_in_background(Arc::downgrade(self)));
        }
    }

    pub(super) fn has_work(&self) -> bool {
        let unseen = {
            let unseen = self.unseen.lock();
            unseen.to_ask() != 0 || (self.fills && unseen.to_fill() != 0)
        };
        unseen || self.journal.everything() != 0 || !self.journal.lacking(None, 1).is_empty()
    }

    /// Repairs what the journal names. Gives whether anything came of it.
    async fn repair_known(self: &Arc<Self>) -> bool {
        let (mut after, mut mended) = (None, false);
        loop {
            let keys = self.journal.lacking(after.as_ref(), ROUND);
            let Some(last) = keys.last().cloned() else {
                return mended;
            };
            let repairs = keys.into_iter().map(|key| async move {
                let begun = self.journal.begin([&key]);
                let mut lacking = 0;
                for at in 0..self.replicas.len() {
                    if let Err(error) = self.bring(at, &key, None).await {
                        log::debug!("{}: {key:?}: {error}", self.replicas[at].name);
                        lacking |= bit(at);
                    }
                }
                self.journal.end(begun, &key, lacking);
                lacking == 0
            });
            let repairs = futures::stream::iter(repairs).buffer_unordered(WIDTH);
            mended |= repairs.fold(false, async |any, done| any | done).await;
            after = Some(last);
        }
    }

    async fn repair_everything(self: &Arc<Self>) -> bool {
        let mut done = 0;
        let mut all = self.journal.everything();
        if self.fills {
            all |= self.unseen.lock().to_fill();
        }
        all &= !self.unseen.lock().of_another;
        let begun = self.journal.mark();
        for at in (0..self.replicas.len()).filter(|at| all & bit(*at) != 0) {
            let mut say = |line: String| log::info!("{line}");
            match self.compare(at, Removes::Noted, &mut say).await {
                Ok(repaired) if repaired.surplus > 0 => {
                    self.unseen.lock().surplus |= bit(at);
                    log::warn!(
                        "{} has {} copies of what {} does not have, and may be all that is left of it: bucketfs check --repair removes them",
                        self.replicas[at].name,
                        repaired.surplus,
                        self.name
                    );
                }
                Ok(repaired) if repaired.failed == 0 => done |= bit(at),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::InvalidArgument => {
                    log::warn!("{}", error.message());
                }
                Err(error) => log::debug!("{}: {error}", self.replicas[at].name),
            }
        }
        self.journal.compared(done, begun);
        done != 0
    }

    /// Compares a replica with the primary, object by object, and makes it alike. Objects of the
    /// replica that no mirror has put there are left alone.
    pub(super) async fn compare(
        self: &Arc<Self>,
        at: usize,
        removes: Removes,
        say: &mut (dyn FnMut(String) + Send),
    ) -> Result<Repaired> {
        let name = &self.replicas[at].name;
        let driver = self.replicas[at]
            .ask("open", async |driver| Ok(driver))
            .await?;
        if Walk::over(self.origin.clone()).first().await?.is_none()
            && let Some(key) = Walk::over(driver.clone()).first().await?
        {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "{} is empty, and {name} is not; nothing is removed there: name the store first that has what is to be kept",
                    self.name
                ),
            )
            .during("repair")
            .on(&key));
        }
        self.look_at(at, true, removes == Removes::Replaced).await?;
        self.join(at).await?;
        let removes = removes != Removes::Noted || self.is_complete(at);
        let mut source = Walk::over(self.origin.clone());
        let mut copies = Walk::over(driver.clone());
        let (mut repaired, mut said) = (Repaired::default(), clock::now());
        loop {
            // What differs, a batch at a time.
            let mut differs = Vec::new();
            while differs.len() < WIDTH {
                let (theirs, ours) = (source.peek().await?, copies.peek().await?);
                let key = match (theirs, ours) {
                    (None, None) => break,
                    (Some(entry), None) | (None, Some(entry)) => entry.key.clone(),
                    (Some(theirs), Some(ours)) => (&theirs.key).min(&ours.key).clone(),
                };
                let theirs = source.take(&key);
                let ours = copies.take(&key);
                if is_role(&key) {
                    continue;
                }
                repaired.compared += 1;
                differs.push((key, theirs, ours));
            }
            if differs.is_empty() {
                break;
            }
            let mends = differs.into_iter().map(|(key, theirs, ours)| {
                let driver = driver.clone();
                async move { self.mend(at, &driver, removes, &key, theirs, ours).await }
            });
            let mut mends = futures::stream::iter(mends).buffer_unordered(WIDTH);
            while let Some(mended) = mends.next().await {
                match mended {
                    Ok(Mended::Same) => {}
                    Ok(Mended::Changed) => repaired.mended += 1,
                    Ok(Mended::Foreign) => repaired.foreign += 1,
                    Ok(Mended::Surplus) => repaired.surplus += 1,
                    Ok(Mended::Unknown(key)) => {
                        repaired.foreign += 1;
                        say(format!(
                            "{name}: {key:?} is not in {}; a link or special file has no mark there, so remove it yourself if it is a copy",
                            self.name
                        ));
                    }
                    Err(error) => {
                        repaired.failed += 1;
                        say(format!("{name}: {error}"));
                    }
                }
            }
            if said.elapsed() >= SAID {
                said = clock::now();
                let (compared, mended) = (repaired.compared, repaired.mended);
                say(format!(
                    "{name}: {compared} objects compared, {mended} brought up to date"
                ));
            }
        }
        if repaired.failed == 0 && repaired.surplus == 0 {
            self.note_complete(at).await?;
        }
        Ok(repaired)
    }

    async fn mend(
        self: &Arc<Self>,
        at: usize,
        driver: &Arc<dyn Driver>,
        removes: bool,
        key: &Key,
        theirs: Option<ObjectInfo>,
        ours: Option<ObjectInfo>,
    ) -> Result<Mended> {
        let told =
            |driver: &dyn Driver| driver.capabilities().attributes == AttributeSupport::Listed;
        if let Some(ours) = ours {
            let mut copy = match told(&**driver) {
                true => ours,
                false => driver.head(key).await?,
            };
            let marked = self.mark.take(&mut copy);
            match (&theirs, &marked) {
                (None, None) if is_special(&copy.told_attributes()) => {
                    return Ok(Mended::Unknown(key.clone()));
                }
                (None, None) => return Ok(Mended::Foreign),
                (None, Some(_)) if !removes => return Ok(Mended::Surplus),
                (Some(theirs), Some(marked)) if told(&*self.origin) => {
                    let mut attributes = theirs.told_attributes();
                    self.mark.strip(&mut attributes);
                    let source = Source::of(&theirs.etag, &attributes, theirs.size);
                    if source == *marked && !is_touched(&attributes, &copy) {
                        return Ok(Mended::Same);
                    }
                }
                _ => {}
            }
        }
        let begun = self.journal.begin([key]);
        let brought = self.bring(at, key, None).await;
        let lacking = if brought.is_err() { bit(at) } else { 0 };
        self.journal.end_among(bit(at), begun, key, lacking);
        brought.map(|changed| match changed {
            true => Mended::Changed,
            false => Mended::Same,
        })
    }
}

/// Which copies of what the primary does not have a comparison removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removes {
    /// Those of a replica that is noted as one of this primary.
    Noted,
    /// Those of every replica but one of another primary, which is an error.
    Unnoted,
    /// Those of that one, too, which becomes this primary's.
    Replaced,
}

enum Mended {
    Same,
    Changed,
    /// No mirror has put it there.
    Foreign,
    /// A copy of what the primary does not have, which was not removed.
    Surplus,
    /// Nobody can say whether one has.
    Unknown(Key),
}

/// All objects of a store in the order of their keys.
pub(super) struct Walk {
    driver: Arc<dyn Driver>,
    request: Option<ListRequest>,
    page: std::collections::VecDeque<ListEntry>,
}

impl Walk {
    pub fn over(driver: Arc<dyn Driver>) -> Walk {
        Walk {
            driver,
            request: Some(ListRequest::flat(&Key::empty())),
            page: Default::default(),
        }
    }

    async fn peek(&mut self) -> Result<Option<&ListEntry>> {
        while self.page.is_empty() {
            let Some(mut request) = self.request.take() else {
                break;
            };
            let page = self.driver.list(request.clone()).await?;
            self.page = page.entries.into();
            if page.next.is_some() {
                request.token = page.next;
                self.request = Some(request);
            }
        }
        Ok(self.page.front())
    }

    /// The first key that is none of our own.
    pub async fn first(mut self) -> Result<Option<Key>> {
        while let Some(entry) = self.peek().await? {
            if !entry.key.as_bytes().starts_with(b".bucketfs/") {
                return Ok(Some(entry.key.clone()));
            }
            self.page.pop_front();
        }
        Ok(None)
    }

    /// The next object, if it has this key.
    fn take(&mut self, key: &Key) -> Option<ObjectInfo> {
        let next = self.page.front().filter(|entry| entry.key == *key)?;
        let object = next.object.clone();
        self.page.pop_front();
        object
    }
}

async fn repair_in_background(mirror: Weak<Shared>) {
    let (mut pause, mut mended) = (PAUSE.0, false);
    loop {
        tokio::time::sleep(pause).await;
        let Some(mirror) = mirror.upgrade() else {
            return;
        };
        let looked = mirror.look().await;
        let known = mirror.repair_known().await;
        let went_on = mirror.repair_everything().await | known | looked;
        mended |= known;
        if !mirror.has_work() {
            if mended {
                log::info!("replicas of {} are up to date again", mirror.name);
            }
            mirror.repairing.store(false, Ordering::Release);
            // What came in between has found the work in hand.
            mirror.wake();
            return;
        }
        pause = match went_on {
            true => PAUSE.0,
            false => (pause * 2).min(PAUSE.1),
        };
    }
}

#[async_trait]
impl Replicated for Mirror {
    fn status(&self) -> Vec<PartStatus> {
        let mut parts = vec![PartStatus {
            url: self.0.name.clone(),
            role: "primary".into(),
            failing: self.0.health.failing(),
            ..PartStatus::default()
        }];
        for (at, replica) in self.0.replicas.iter().enumerate() {
            let (pending, everything) = self.0.journal.count(bit(at));
            let unseen = self.0.unseen.lock();
            let everything = everything || unseen.empty & bit(at) != 0;
            let of_another = unseen.of_another & bit(at) != 0;
            drop(unseen);
            parts.push(PartStatus {
                url: replica.name.clone(),
                role: "replica".into(),
                failing: replica.health.failing(),
                pending,
                everything,
                of_another,
            });
        }
        parts
    }

    async fn repair(
        &self,
        replace: bool,
        say: &mut (dyn FnMut(String) + Send),
    ) -> Result<Repaired> {
        let mut all = Repaired::default();
        let (mut compared, mut failed) = (0, None);
        let begun = self.0.journal.mark();
        let removes = match replace {
            true => Removes::Replaced,
            false => Removes::Unnoted,
        };
        for (at, replica) in self.0.replicas.iter().enumerate() {
            let one = match self.0.compare(at, removes, say).await {
                Ok(one) => one,
                // The others can be brought up to date nevertheless.
                Err(error) => {
                    failed.get_or_insert(error);
                    continue;
                }
            };
            say(format!(
                "{}: {} objects compared, {} brought up to date, {} not of this mirror, {} failed",
                replica.name, one.compared, one.mended, one.foreign, one.failed
            ));
            all.compared += one.compared;
            all.mended += one.mended;
            all.foreign += one.foreign;
            all.failed += one.failed;
            if one.failed == 0 {
                compared |= bit(at);
            }
        }
        // What the journal named has been compared with the rest, where it is there at all.
        self.0.repair_known().await;
        self.0.journal.compared(compared, begun);
        match failed {
            Some(error) => Err(error),
            None => Ok(all),
        }
    }
}
