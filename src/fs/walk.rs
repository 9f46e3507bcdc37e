//! Walks: who lists one directory after the other is given what flat listings tell, whose pages
//! hold many small directories.

use super::Fs;
use super::inode::Inode;
use super::pages::Pages;
use crate::cache::listing::{Flat, Known};
use crate::clock::{self, Instant};
use crate::driver::{AttributeSupport, ListRequest};
use crate::key::Key;
use bytes::Bytes;
use std::time::Duration;

/// How long after a directory was read one below it is taken for the next step of a walk.
const STEP: Duration = Duration::from_secs(1);

/// How long a walk may pause.
const PAUSE: Duration = Duration::from_secs(10);

/// A flat listing that a walk goes along.
#[derive(Debug)]
pub(super) struct Walk {
    top: Key,
    token: Option<String>,
    /// The last key that was told.
    last: Key,
    asked: Instant,
    flat: Flat,
    /// The pages that come next, once it is known to go on.
    pages: Option<Pages>,
}

/// All names of a directory, and since when they are known.
type Names = (Vec<(Bytes, Known)>, Instant);

/// What pages of a walk have told of a directory.
enum Met {
    /// Its names.
    There(Names),
    /// Nothing: they have not come to it, or not well.
    Before,
    /// Not all of it, and what follows is something else.
    Beyond,
}

impl Fs {
    /// Whether listings without delimiter tell all that those with one do, and are worth it.
    pub(super) fn lists_flat(&self) -> bool {
        self.capabilities.remote
            && self.capabilities.attributes != AttributeSupport::Listed
            && !self.metadata_ttl().is_zero()
    }

    /// The names of a directory that a walk has come to; `None` where it is none, or where a flat
    /// listing does not tell them soon.
    pub(super) async fn walk(&self, directory: &Inode) -> Option<Names> {
        let (prefix, parent) = {
            let state = directory.state();
            (state.key.clone(), state.place.clone()?.0)
        };
        let (top, listed) = {
            let state = parent.state();
            (state.key.clone(), state.listed?)
        };
        let begin = prefix.as_bytes().strip_suffix(b"/")?;
        if !self.lists_flat() || !prefix.starts_with(&top) {
            return None;
        }
        let known = self.walk.lock().take().filter(|walk| {
            prefix.starts_with(&walk.top)
                && (walk.last < prefix || walk.last.starts_with(&prefix))
                && walk.asked + PAUSE > clock::now()
        });
        if known.is_none() && listed + STEP.min(self.metadata_ttl()) <= clock::now() {
            return None;
        }
        // Along the listing that is under way, if it is about to come here; else from here on.
        if let Some(mut walk) = known {
            match self.go_on(&mut walk, &prefix, None).await {
                Met::There(names) => return self.keep(walk, Some(names)),
                Met::Beyond => return self.keep(walk, None),
                Met::Before => {}
            }
        }
        let mut walk = Walk {
            top,
            token: None,
            last: Key::from(begin),
            asked: clock::now(),
            flat: Flat::default(),
            pages: None,
        };
        match self.go_on(&mut walk, &prefix, Some(begin)).await {
            Met::There(names) => self.keep(walk, Some(names)),
            Met::Beyond => self.keep(walk, None),
            Met::Before => None,
        }
    }

    fn keep(&self, walk: Walk, names: Option<Names>) -> Option<Names> {
        *self.walk.lock() = Some(walk).filter(|walk| walk.token.is_some());
        names
    }

    /// Asks for pages until they have told the names in `prefix`, or will not soon.
    async fn go_on(&self, walk: &mut Walk, prefix: &Key, mut begin: Option<&[u8]>) -> Met {
        loop {
            if !self.next_page(walk, begin.take()).await {
                return Met::Before;
            }
            if let Some((names, since)) = self.listing.all(prefix)
                && since + self.metadata_ttl() > clock::now()
            {
                return Met::There((names, since));
            }
            match walk.last.strip_prefix(prefix) {
                _ if walk.token.is_none() => return Met::Before,
                // Its own names go on.
                Some(rest) if !rest.as_bytes().contains(&b'/') => {}
                None if walk.last < *prefix => return Met::Before,
                // What follows may be below a directory of this one, for who knows how long.
                Some(_) | None => return Met::Beyond,
            }
        }
    }

    /// Asks for the next page of a walk; the first one begins behind `begin`.
    async fn next_page(&self, walk: &mut Walk, begin: Option<&[u8]>) -> bool {
        walk.asked = clock::now();
        let request = ListRequest {
            start_after: begin.map(Key::from),
            token: walk.token.take(),
            ..ListRequest::flat(&walk.top)
        };
        let told = match &mut walk.pages {
            _ if begin.is_some() => None,
            Some(pages) => pages.next().await,
            None => None,
        };
        // What waited for a walk that paused is no news any more.
        let told = told.filter(|(ticket, _)| ticket.since() + self.metadata_ttl() > clock::now());
        let (ticket, page) = match told {
            Some(told) => told,
            None => {
                let goes_on = begin.is_none();
                let mut pages = self.pages(request, goes_on);
                let Some(told) = pages.next().await else {
                    return false;
                };
                walk.pages = goes_on.then_some(pages);
                told
            }
        };
        // A refusal is told by the question for this directory alone.
        let Ok(page) = page else {
            return false;
        };
        if let Some(last) = page.entries.last() {
            walk.last = last.key.clone();
        }
        self.listing.flat_page(
            &walk.top,
            &page,
            &ticket,
            &mut walk.flat,
            self.metadata_ttl(),
        );
        walk.token = page.next;
        true
    }
}
