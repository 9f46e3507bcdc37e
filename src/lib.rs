//! bucketfs mounts buckets as directories and turns every file write into a conditional put.
//!
//! ```text
//! kernel --/dev/fuse--> fuse --> fs --> cache --> writeback --> layer --> driver::NAME --> store
//! ```
//!
//! Each stage imports only what stands to its right; the drivers of stores that are made of stores
//! (`mirror:`, `tier:`) stand over layers and drivers again. [`driver`] is the contract every store
//! implements; [`key`], [`conflict`], [`locks`] and [`clock`] are the vocabulary all stages share.

// Unit tests wait, race and make up what they like.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod cache;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod conflict;
pub mod control;
pub mod driver;
pub mod exit;
pub mod find;
pub mod fs;
pub mod fuse;
pub mod key;
pub mod layer;
pub mod locks;
pub mod logging;
pub mod mount;
pub mod name;
pub mod process;
pub mod sys;
pub mod task;
pub mod writeback;
