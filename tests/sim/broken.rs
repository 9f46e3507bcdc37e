//! Drivers, and mounts, that are wrong in one way each: what shows that the checker can tell.

/// How a driver, or its mount, is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// Puts and copies over a version that is expected are sent without the condition.
    ForgottenIfMatch,
    /// The same, for those that make something new.
    ForgottenIfAbsent,
    /// Looks whether the condition holds, then puts without it.
    CheckThenPut,
    /// A put whose answer was lost counts as done.
    SwallowedLoss,
    /// A put whose answer was lost is sent again without its condition.
    AppliedAgain,
    /// What was deleted still has an etag, which conditions hold against.
    Tombstone,
    /// A delete forgets which version is meant.
    ForgottenDeleteCondition,
    /// A copy answers as if it had been made.
    UncopiedCopy,
    /// A part of a version is read from whatever is there now.
    TornRead,
    /// A page lacks its last entry.
    ShortListing,
    /// The release of a handle commits whatever is dirty.
    CommittingRelease,
    /// A loss is told to nobody who has written since another handle was told one.
    UntoldLoss,
}

/// Whether the checker finds what is broken within a thousand seeds, and says why.
fn is_caught(broken: Break, why: &[&str]) {
    let caught = crate::search(0..1000, Some(broken), 1, |report| {
        let told = report.violations.iter();
        told.clone()
            .any(|told| why.iter().any(|why| told.contains(why)))
    });
    assert!(!caught.is_empty(), "nobody notices {broken:?}");
}

#[test]
fn a_forgotten_if_match_is_caught() {
    is_caught(
        Break::ForgottenIfMatch,
        &["it came after they had opened the file"],
    );
}

#[test]
fn a_forgotten_if_none_match_is_caught() {
    is_caught(Break::ForgottenIfAbsent, &["two have the lock"]);
}

#[test]
fn a_check_before_the_put_is_caught() {
    is_caught(Break::CheckThenPut, &["were destroyed"]);
}

#[test]
fn a_swallowed_lost_reply_is_caught() {
    is_caught(Break::SwallowedLoss, &["was not in the store"]);
}

#[test]
fn a_put_sent_again_without_its_condition_is_caught() {
    is_caught(Break::AppliedAgain, &["were destroyed"]);
}

#[test]
fn a_tombstone_taken_as_a_base_is_caught() {
    is_caught(Break::Tombstone, &["nothing of that size was there"]);
}

#[test]
fn a_delete_that_forgets_the_version_is_caught() {
    is_caught(
        Break::ForgottenDeleteCondition,
        &["it was not moved to the new name"],
    );
}

#[test]
fn a_copy_that_was_not_made_is_caught() {
    is_caught(Break::UncopiedCopy, &["it was not moved to the new name"]);
}

#[test]
fn a_mixture_of_versions_is_caught() {
    is_caught(Break::TornRead, &["it read what never was there"]);
}

#[test]
fn a_short_listing_is_caught() {
    is_caught(Break::ShortListing, &["in the end mount"]);
}

#[test]
fn a_release_that_commits_is_caught() {
    is_caught(Break::CommittingRelease, &["half written"]);
}

#[test]
fn a_loss_that_is_not_told_is_caught() {
    is_caught(Break::UntoldLoss, &["stood beside its name only"]);
}
