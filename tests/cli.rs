//! The `bucketfs` command from outside: its messages, its exit codes, and the life of its mounts.
//!
//! What needs a real mount is ignored, with the reason, where FUSE is not available.

// The attributes by which clippy knows tests are those of the standard harness.
#![allow(clippy::unwrap_used)]

#[path = "cli/find.rs"]
mod find;
#[path = "cli/harness.rs"]
mod harness;
#[path = "cli/input.rs"]
mod input;
#[path = "cli/life.rs"]
mod life;
#[path = "cli/output.rs"]
mod output;
#[path = "cli/refusals.rs"]
mod refusals;
#[path = "cli/register.rs"]
mod register;
#[path = "cli/s3.rs"]
mod s3;
#[path = "cli/sentences.rs"]
mod sentences;

use libtest_mimic::{Arguments, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = input::trials();
    trials.extend(refusals::trials());
    trials.extend(sentences::trials());
    trials.extend(find::trials());
    trials.extend(life::trials());
    trials.extend(output::trials());
    trials.extend(register::trials());
    trials.extend(s3::trials());
    libtest_mimic::run(&arguments, trials).exit();
}

/// A test that runs everywhere.
fn anywhere(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// A test that is ignored, for this reason, where there is one.
fn unless(missing: Option<&str>, name: &str, test: fn()) -> Trial {
    let trial = anywhere(name, test).with_ignored_flag(missing.is_some());
    trial.with_kind(missing.unwrap_or_default())
}
