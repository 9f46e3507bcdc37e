//! The filesystem operations without a kernel: any number of mounts over one store.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "fs/asleep.rs"]
mod asleep;
#[path = "fs/attributes.rs"]
mod attributes;
#[path = "fs/budget.rs"]
mod budget;
#[path = "fs/claims.rs"]
mod claims;
#[path = "fs/commits.rs"]
mod commits;
#[path = "fs/conflicts.rs"]
mod conflicts;
#[path = "fs/directories.rs"]
mod directories;
#[path = "fs/guesses.rs"]
mod guesses;
#[path = "fs/index.rs"]
mod index;
#[path = "fs/limits.rs"]
mod limits;
#[path = "fs/names.rs"]
mod names;
#[path = "fs/offload.rs"]
mod offload;
#[path = "fs/parts.rs"]
mod parts;
#[path = "fs/queries.rs"]
mod queries;
#[path = "fs/races.rs"]
mod races;
#[path = "fs/reading.rs"]
mod reading;
#[path = "fs/records.rs"]
mod records;
#[path = "fs/regression.rs"]
mod regression;
#[path = "fs/renames.rs"]
mod renames;
#[path = "fs/replies.rs"]
mod replies;
#[path = "fs/resumed.rs"]
mod resumed;
#[path = "fs/scratch.rs"]
mod scratch;
#[path = "fs/store.rs"]
mod store;
#[path = "fs/stress.rs"]
mod stress;
#[path = "fs/uploads.rs"]
mod uploads;
#[path = "fs/watching.rs"]
mod watching;
#[path = "fs/world.rs"]
mod world;
#[path = "fs/writing.rs"]
mod writing;
