//! Files that are copied on the server one after the other, as `cp -r` does: nobody needs their
//! bytes, and each copy's own condition tells if another version came between. One listing answers
//! for the opens of many of them.

use super::Fs;
use super::inode::Inode;
use super::lookup::LOOK_AHEAD;
use super::target::{Form, Target};
use crate::clock;
use crate::key::Key;
use crate::locks::looks_like_lock;

/// How many opens a listing has to spare: it costs more than a few of the requests that they would
/// send.
const LISTING: i8 = 8;

impl Fs {
    /// Whether a listing tells, now, that the version that an open wants is the one known here,
    /// and a copy of it is what will be asked for next.
    pub(super) async fn is_listed_to_copy(&self, inode: &Inode) -> bool {
        if !self.copies.is_made() {
            return false;
        }
        let Some((parent, name)) = inode.state().place.clone() else {
            return false;
        };
        let target = Target::of(&name).filter(|target| target.form == Form::Plain);
        let Some(target) = target.filter(|_| !looks_like_lock(&name)) else {
            return false;
        };
        let prefix = parent.key();
        let mut told = self.lists_version(inode, &prefix, &target);
        if told.is_none()
            && self.lists_instead(&prefix, &target, &name)
            && self.copies.try_take(LISTING)
        {
            self.ask_for_all(&prefix, &target).await;
            told = self.lists_version(inode, &prefix, &target);
        }
        told == Some(true) && self.copies.try_take(1)
    }

    /// Whether what was told of a name a moment ago is the version that is known here.
    fn lists_version(&self, inode: &Inode, prefix: &Key, target: &Target) -> Option<bool> {
        let (known, since) = self.listing.get(prefix, &target.component)?;
        let acquired = *self.acquired.lock();
        let young = since + LOOK_AHEAD.min(self.metadata_ttl()) > clock::now();
        if !young || acquired.is_some_and(|acquired| since < acquired) {
            return None;
        }
        let base = inode.state().file.base.clone();
        let listed = known.object.map(|info| info.etag.clone());
        Some(listed.is_some() && listed == base)
    }
}
