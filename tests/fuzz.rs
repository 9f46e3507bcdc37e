//! Whatever comes in: URLs, options, configuration, names, specifications and pages of listings are
//! made up from grammars and by mutation of a corpus of awkward inputs, and what comes out is held
//! to properties. `PROPTEST_CASES` makes it longer, `PROPTEST_RNG_SEED` tries other cases.
//!
//! What is private to the S3 driver is treated alike beside its source: `src/driver/s3/*/fuzz.rs`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "fuzz/corpus.rs"]
mod corpus;
#[path = "fuzz/input.rs"]
mod input;
#[path = "fuzz/listing.rs"]
mod listing;
#[path = "fuzz/names.rs"]
mod names;
