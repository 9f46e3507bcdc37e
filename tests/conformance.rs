//! One suite for every driver, and for every layer over a driver: each pair of a store and a case
//! is a test of its own, such as `memory::create_is_exclusive`. A new driver needs a fixture in
//! `conformance/stores.rs` and no case.

#![allow(clippy::unwrap_used, reason = "a panic is how a case fails")]

#[path = "conformance/attributes.rs"]
mod attributes;
#[path = "conformance/broken.rs"]
mod broken;
#[path = "conformance/conditions.rs"]
mod conditions;
#[path = "conformance/enveloped.rs"]
mod enveloped;
#[path = "conformance/feeds.rs"]
mod feeds;
#[path = "conformance/finds.rs"]
mod finds;
#[path = "conformance/fixture.rs"]
mod fixture;
#[path = "conformance/keys.rs"]
mod keys;
#[path = "conformance/listing.rs"]
mod listing;
#[path = "conformance/mixtures.rs"]
mod mixtures;
#[path = "conformance/moves.rs"]
mod moves;
#[path = "conformance/objects.rs"]
mod objects;
#[path = "conformance/refusals.rs"]
mod refusals;
#[path = "servers/rethinkdb.rs"]
mod rethinkdb;
#[path = "servers/riak.rs"]
mod riak;
#[path = "conformance/stores.rs"]
mod stores;
#[path = "conformance/uploads.rs"]
mod uploads;

use fixture::{Case, Store, run};
use libtest_mimic::{Arguments, Completion, Trial};
use stores::stores;

/// Every case, by the part of the contract that it holds a driver to.
const SUITE: &[&[Case]] = &[
    objects::CASES,
    conditions::CASES,
    keys::CASES,
    listing::CASES,
    moves::CASES,
    attributes::CASES,
    uploads::CASES,
    feeds::CASES,
    finds::CASES,
    refusals::CASES,
];

fn trial(store: &Store, case: &'static Case) -> Trial {
    let (store, name) = (store.clone(), format!("{}::{}", store.name, case.name));
    Trial::ignorable_test(name, move || match store.ignored(case.name) {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => run(store.open(case.run)),
    })
}

fn main() {
    if conditions::is_worker() {
        return conditions::work();
    }
    let mut arguments = Arguments::from_args();
    // Cases block on one shared runtime; many at once only take each other's time.
    arguments.test_threads.get_or_insert(4);
    let mut trials: Vec<Trial> = Vec::new();
    for store in stores() {
        let cases = SUITE.iter().copied().flatten();
        trials.extend(cases.map(|case| trial(&store, case)));
    }
    // Documents as they are, which cannot hold everything else.
    for store in finds::stores() {
        trials.extend(finds::CASES.iter().map(|case| trial(&store, case)));
    }
    trials.extend(refusals::read_only());
    trials.extend(broken::trials());
    libtest_mimic::run(&arguments, trials).exit();
}
