//! A simulated world: mounts over one store that delays, reorders and loses what goes through it,
//! on a clock that stands still while anything runs. One seed decides everything.
//!
//! `BUCKETFS_SIM_SEED=N` runs one seed again, `BUCKETFS_SIM_SEEDS=N` runs the first N, and
//! `BUCKETFS_SIM_FROM=N` begins with that one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "sim/broken.rs"]
mod broken;
#[path = "sim/character.rs"]
mod character;
#[path = "sim/check.rs"]
mod check;
#[path = "sim/destroyed.rs"]
mod destroyed;
#[path = "sim/handles.rs"]
mod handles;
#[path = "sim/history.rs"]
mod history;
#[path = "sim/mount.rs"]
mod mount;
#[path = "sim/net.rs"]
mod net;
#[path = "sim/process.rs"]
mod process;
#[path = "sim/store.rs"]
mod store;
#[path = "sim/world.rs"]
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use world::{Report, run};

/// How many events of a failing seed are shown.
const SHOWN: usize = 150;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

/// Runs seeds on two threads until `enough` says so of a report; gives those reports.
fn search(
    seeds: std::ops::Range<u64>,
    broken: Option<broken::Break>,
    most: usize,
    wanted: impl Fn(&Report) -> bool + Sync,
) -> Vec<Report> {
    let next = AtomicU64::new(seeds.start);
    let found = parking_lot::Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || found.lock().len() >= most {
                        return;
                    }
                    let report = run(seed, broken);
                    if wanted(&report) {
                        found.lock().push(report);
                    }
                }
            });
        }
    });
    found.into_inner()
}

#[test]
fn seeds_hold_what_is_promised() {
    if let Some(seed) = number("BUCKETFS_SIM_SEED") {
        let report = run(seed, None);
        eprintln!("{}", report.tell(usize::MAX));
        assert!(report.violations.is_empty());
        return;
    }
    let count = number("BUCKETFS_SIM_SEEDS").unwrap_or(2000);
    let from = number("BUCKETFS_SIM_FROM").unwrap_or(0);
    let failed = search(from..from + count, None, 10, |report| {
        !report.violations.is_empty()
    });
    for report in failed.iter().rev() {
        eprintln!("{}", report.tell(SHOWN));
    }
    let seeds: Vec<u64> = failed.iter().map(|report| report.seed).collect();
    assert!(seeds.is_empty(), "these seeds break a promise: {seeds:?}");
}

#[test]
fn a_seed_decides_everything() {
    for seed in 0..40 {
        let (first, second) = (run(seed, None), run(seed, None));
        assert_eq!(first.hash(), second.hash(), "seed {seed}");
        assert!(!first.ops.is_empty() && !first.log.is_empty());
    }
}
