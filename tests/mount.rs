//! Mounts through the real kernel: what the page cache, mappings, locks, signals and users make of
//! the filesystem.
//!
//! Every mount is a process of its own. A test that hangs is freed by a watchdog, which detaches
//! the mounts, cuts their connections and kills their daemons; it fails then. What cannot run here
//! is ignored, with the reason.

// The attributes by which clippy knows tests are those of the standard harness.
#![allow(clippy::unwrap_used)]

#[path = "mount/access.rs"]
mod access;
#[path = "mount/buckets.rs"]
mod buckets;
#[path = "mount/crashes.rs"]
mod crashes;
#[path = "mount/cuts.rs"]
mod cuts;
#[path = "mount/digests.rs"]
mod digests;
#[path = "mount/documents.rs"]
mod documents;
#[path = "mount/faults.rs"]
mod faults;
#[path = "mount/files.rs"]
mod files;
#[path = "mount/gridfs.rs"]
mod gridfs;
#[path = "mount/guard.rs"]
mod guard;
#[path = "mount/harness.rs"]
mod harness;
#[path = "mount/killed.rs"]
mod killed;
#[path = "mount/layout.rs"]
mod layout;
#[path = "mount/life.rs"]
mod life;
#[path = "mount/limits.rs"]
mod limits;
#[path = "mount/maps.rs"]
mod maps;
#[path = "mount/mirror.rs"]
mod mirror;
#[path = "mount/mongodb.rs"]
mod mongodb;
#[path = "mount/names.rs"]
mod names;
#[path = "mount/network.rs"]
mod network;
#[path = "mount/riak.rs"]
mod objects;
#[path = "mount/proxy.rs"]
mod proxy;
#[path = "mount/queries.rs"]
mod queries;
#[path = "mount/redis.rs"]
mod redis;
#[path = "mount/regression.rs"]
mod regression;
#[path = "mount/renames.rs"]
mod renames;
#[path = "servers/rethinkdb.rs"]
mod rethinkdb;
#[path = "servers/riak.rs"]
mod riak;
#[path = "mount/scratch.rs"]
mod scratch;
#[path = "mount/session.rs"]
mod session;
#[path = "mount/strings.rs"]
mod strings;
#[path = "mount/rethinkdb.rs"]
mod tables;
#[path = "mount/versions.rs"]
mod versions;

use libtest_mimic::Arguments;

fn main() {
    let mut arguments = Arguments::from_args();
    // Most of the time goes by in waiting.
    arguments.test_threads = arguments.test_threads.or(Some(4));
    let mut trials = versions::trials();
    trials.extend(files::trials());
    trials.extend(maps::trials());
    trials.extend(names::trials());
    trials.extend(faults::trials());
    trials.extend(killed::trials());
    trials.extend(buckets::trials());
    trials.extend(crashes::trials());
    trials.extend(life::trials());
    trials.extend(limits::trials());
    trials.extend(access::trials());
    trials.extend(network::trials());
    trials.extend(redis::trials());
    trials.extend(strings::trials());
    trials.extend(layout::trials());
    trials.extend(digests::trials());
    trials.extend(documents::trials());
    trials.extend(mongodb::trials());
    trials.extend(cuts::trials());
    trials.extend(gridfs::trials());
    trials.extend(mirror::trials());
    trials.extend(tables::trials());
    trials.extend(queries::trials());
    trials.extend(objects::trials());
    trials.extend(regression::trials());
    trials.extend(renames::trials());
    trials.extend(scratch::trials());
    let conclusion = libtest_mimic::run(&arguments, trials);
    guard::finish();
    conclusion.exit()
}
