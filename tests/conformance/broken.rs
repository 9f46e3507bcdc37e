//! Proof that the suite can fail: drivers that break the contract in one point each, and the cases
//! that must find it.

use crate::SUITE;
use crate::fixture::{Fixture, Skipped, run};
use async_trait::async_trait;
use bucketfs::driver::memory::Memory;
use bucketfs::driver::{
    Body, Capabilities, CopyOptions, Driver, ETag, Error, ErrorKind, GetOptions, GetOutcome,
    ListRequest, ObjectInfo, Page, Precondition, PutOptions, Result, Strength,
};
use bucketfs::key::Key;
use bytes::Bytes;
use futures::FutureExt;
use libtest_mimic::Trial;
use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// What is wrong, and the cases that must see it.
const FAULTS: &[(How, &[&str])] = &[
    (
        How::CheckThenPut,
        &[
            "racing_increments_are_exact",
            "racing_creates_have_one_winner",
        ],
    ),
    (
        How::ConstantEtag,
        &[
            "etags_change_with_the_bytes",
            "a_wrong_etag_changes_nothing",
        ],
    ),
    (How::ListsBackwards, &["listings_are_what_the_model_says"]),
    (
        How::RepeatsPrefixes,
        &[
            "listings_are_what_the_model_says",
            "paging_neither_repeats_nor_drops",
        ],
    ),
    (
        How::IgnoresStartAfter,
        &["listings_are_what_the_model_says"],
    ),
    (
        How::WritesInTwoSteps,
        &[
            "a_dropped_put_leaves_nothing_half_written",
            "readers_and_writers_do_not_mix",
        ],
    ),
    (How::FoldsKeys, &["awkward_keys_are_kept_apart_or_refused"]),
    (
        How::IgnoresDeleteCondition,
        &["conditional_delete", "a_racing_delete_loses_no_write"],
    ),
    (
        How::ClaimsTooMuch,
        &[
            "rename_moves",
            "delete_many_takes_missing_keys",
            "a_feed_tells_what_others_change",
        ],
    ),
    (How::ClaimsTooLittle, &["unclaimed_capabilities_refuse"]),
    (How::RefusesLate, &["unclaimed_capabilities_refuse"]),
    (How::TellsSecrets, &["secrets_are_not_shown"]),
    (How::MissesRangeEnds, &["ranges_are_exact"]),
    (
        How::DropsAttributes,
        &["attributes_round_trip_as_claimed", "commit_ids_round_trip"],
    ),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Nothing: what the cases see is not the wrapper's doing.
    Sound,
    CheckThenPut,
    ConstantEtag,
    ListsBackwards,
    RepeatsPrefixes,
    IgnoresStartAfter,
    WritesInTwoSteps,
    FoldsKeys,
    IgnoresDeleteCondition,
    ClaimsTooMuch,
    ClaimsTooLittle,
    RefusesLate,
    TellsSecrets,
    MissesRangeEnds,
    DropsAttributes,
}

thread_local! {
    /// Whether a panic on this thread is what the test is about.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

pub fn trials() -> Vec<Trial> {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !EXPECTED.get() {
            report(panic);
        }
    }));
    let broken = FAULTS.iter().flat_map(|(how, cases)| {
        let trials = cases.iter().map(|case| trial(*how, case));
        trials.collect::<Vec<_>>()
    });
    let mut names: Vec<_> = FAULTS
        .iter()
        .copied()
        .flat_map(|(_, cases)| cases)
        .collect();
    names.sort_unstable();
    names.dedup();
    let sound = names.into_iter().map(|case| trial(How::Sound, case));
    broken.chain(sound).collect()
}

/// A case that must fail, unless the driver is sound.
fn trial(how: How, name: &'static str) -> Trial {
    let mut cases = SUITE.iter().copied().flatten();
    let case = cases.find(|case| case.name == name);
    let case = case.unwrap_or_else(|| panic!("there is no case {name:?}"));
    let sound = how == How::Sound;
    let end = if sound { "passes" } else { "fails" };
    Trial::test(format!("broken({how:?})::{name}_{end}"), move || {
        let driver: Arc<dyn Driver> = Arc::new(Broken(Memory::new(), how));
        let fixture = Fixture {
            a: driver.clone(),
            b: driver,
            url: None,
            secrets: vec!["swordfish".to_owned()],
            skipped: Skipped::default(),
            _keep: Box::new(()),
        };
        EXPECTED.set(!sound);
        let outcome = run(async {
            let case = AssertUnwindSafe((case.run)(fixture)).catch_unwind();
            match (case.await, sound) {
                (Ok(()), true) | (Err(_), false) => Ok(()),
                (Ok(()), false) => Err("the case passed on a broken driver".into()),
                (Err(_), true) => Err("the case failed on a sound driver".into()),
            }
        });
        EXPECTED.set(false);
        outcome
    })
}

struct Broken(Memory, How);

impl std::fmt::Debug for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.1 {
            How::TellsSecrets => f.write_str("Broken { password: swordfish }"),
            _ => f.write_str("Broken"),
        }
    }
}

impl Broken {
    fn key(&self, key: &Key) -> Key {
        let text = key.to_str().filter(|_| self.1 == How::FoldsKeys);
        match text {
            Some(text) => text.replace("//", "/").trim_start_matches("./").into(),
            None => key.clone(),
        }
    }

    fn info(&self, mut info: ObjectInfo) -> ObjectInfo {
        if self.1 == How::ConstantEtag {
            info.etag = ETag::new("constant");
        }
        info
    }
}

/// Lets others run in between.
async fn pause() {
    tokio::time::sleep(std::time::Duration::from_micros(100)).await;
}

#[async_trait]
impl Driver for Broken {
    fn capabilities(&self) -> Capabilities {
        let claims = Capabilities {
            put_condition: Strength::Atomic,
            delete_condition: Strength::Atomic,
            attributes: self.0.capabilities().attributes,
            commit_ids: true,
            ..Capabilities::default()
        };
        match self.1 {
            How::ClaimsTooMuch => Capabilities {
                rename: true,
                delete_many: Some(1000),
                watch: true,
                ..claims
            },
            _ => claims,
        }
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.0
            .head(&self.key(key))
            .await
            .map(|info| self.info(info))
    }

    async fn get(&self, key: &Key, mut options: GetOptions) -> Result<GetOutcome> {
        if self.1 == How::MissesRangeEnds
            && let Some(range) = &mut options.range
        {
            range.end = range.end.saturating_add(1);
        }
        let outcome = self.0.get(&self.key(key), options).await?;
        let GetOutcome::Found(mut object) = outcome else {
            return Ok(outcome);
        };
        object.info = self.info(object.info);
        Ok(GetOutcome::Found(object))
    }

    async fn put(&self, key: &Key, body: Body, mut options: PutOptions) -> Result<ObjectInfo> {
        let key = &self.key(key);
        match self.1 {
            How::CheckThenPut => {
                let current = self.0.head(key).await.ok().map(|info| info.etag);
                let condition = std::mem::take(&mut options.precondition);
                condition.check(current.as_ref())?;
                pause().await;
            }
            How::ConstantEtag => {
                let current = self.0.head(key).await.ok().map(|_| ETag::new("constant"));
                let condition = std::mem::take(&mut options.precondition);
                condition.check(current.as_ref())?;
            }
            How::WritesInTwoSteps => {
                let bytes = body.collect().await?;
                let half: Bytes = bytes.slice(..bytes.len() / 2);
                self.0.put(key, half.into(), options.clone()).await?;
                pause().await;
                options.precondition = Precondition::None;
            }
            How::DropsAttributes => {
                options.attributes = Default::default();
                options.commits.clear();
            }
            _ => {}
        }
        self.0
            .put(key, body, options)
            .await
            .map(|info| self.info(info))
    }

    async fn delete(&self, key: &Key, mut precondition: Precondition) -> Result<()> {
        if self.1 == How::IgnoresDeleteCondition && precondition != Precondition::IfAbsent {
            precondition = Precondition::None;
        }
        self.0.delete(&self.key(key), precondition).await
    }

    async fn list(&self, mut request: ListRequest) -> Result<Page> {
        if self.1 == How::IgnoresStartAfter {
            request.start_after = None;
        }
        let mut page = self.0.list(request).await?;
        match self.1 {
            How::ListsBackwards => page.entries.reverse(),
            How::RepeatsPrefixes => {
                let folded = |entry: &&bucketfs::driver::ListEntry| entry.object.is_none();
                let again = page.entries.iter().find(folded).cloned();
                page.entries.extend(again);
            }
            _ => {}
        }
        for entry in &mut page.entries {
            entry.object = entry.object.take().map(|info| self.info(info));
        }
        Ok(page)
    }

    async fn copy(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        match self.1 {
            How::ClaimsTooLittle => self.0.copy(from, to, options).await,
            _ => Err(Error::unsupported("copy")),
        }
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        if self.1 == How::RefusesLate {
            self.0.copy(from, to, options).await?;
        }
        Err(Error::new(ErrorKind::Unsupported, "no renames here"))
    }
}
