//! Which names there are. Redis has no index of its keys, so they are all asked for once with SCAN,
//! in steps, and kept in order here; which keys were made and removed since, the server pushes.

use super::Data;
use super::names::{Form, KINDS};
use crate::driver::redis::answer::{array, bytes, next, text};
use crate::driver::redis::feed::{Feed, Pushed};
use crate::driver::{Error, ErrorKind, Result};
use crate::key::Key;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashSet};

/// How many keys are shown at most, which bounds the memory that their names take.
const MOST: usize = 1_000_000;
/// How many keys one step looks at, for which the server serves nobody else.
const STEP: usize = 1000;
/// When more keys than this have changed, all are asked for again.
const CHANGED: usize = 100_000;

/// The names there are, and the feed that keeps them true.
#[derive(Default)]
pub(super) struct Index {
    pub names: BTreeSet<Key>,
    /// `None` before the first listing, and where the server does not push.
    feed: Option<Feed>,
}

/// A pattern that only what begins with these bytes matches.
fn pattern(prefix: &[u8]) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(prefix.len() + 1);
    for byte in prefix {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\' | b'^') {
            pattern.push(b'\\');
        }
        pattern.push(*byte);
    }
    pattern.push(b'*');
    pattern
}

impl Data {
    /// Makes an index true for everything that was written before now.
    pub(super) async fn refresh(&self, index: &mut Index) -> Result<()> {
        if let Some(feed) = &mut index.feed {
            // Until it is through, what was taken from the feed is known nowhere.
            let pushed = feed.settled().await;
            let feed = index.feed.take();
            if let Ok(pushed) = pushed
                && self.follow(&mut index.names, pushed).await?
            {
                index.feed = feed;
                return Ok(());
            }
        }
        index.names.clear();
        index.feed = None;
        // Before the scan, so that what is written meanwhile is pushed.
        let feed = match Feed::begin(&self.0.link, &self.0.names.prefix).await {
            Ok(feed) => Some(feed),
            Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::Unsupported) => {
                None
            }
            Err(error) => return Err(error),
        };
        self.scan(&mut index.names).await?;
        index.feed = feed;
        Ok(())
    }

    /// Takes in which keys have changed; whether that sufficed.
    async fn follow(&self, names: &mut BTreeSet<Key>, pushed: Vec<Pushed>) -> Result<bool> {
        let mut keys = HashSet::new();
        for pushed in pushed {
            match pushed {
                Pushed::Key(key) => keys.insert(key),
                Pushed::All => return Ok(false),
            };
        }
        if keys.len() > CHANGED {
            return Ok(false);
        }
        let keys: Vec<Vec<u8>> = keys.into_iter().collect();
        for keys in keys.chunks(STEP) {
            let refs: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
            let kinds = self.0.link.run(&super::KIND, &refs, []).await?;
            for (key, kind) in keys.iter().zip(array(kinds)?) {
                let kind = Form::of(&bytes(kind)?);
                for form in [Form::Text, Form::Document] {
                    let Some(name) = self.0.names.shown(key, form) else {
                        continue;
                    };
                    match kind == Some(form) {
                        true => names.insert(name),
                        false => names.remove(&name),
                    };
                }
            }
            self.check(names)?;
        }
        Ok(true)
    }

    /// Asks for the keys of each kind by itself, side by side: the server tells kinds apart at little cost, while a
    /// script would have to ask it for that of each key.
    async fn scan(&self, names: &mut BTreeSet<Key>) -> Result<()> {
        let names = Mutex::new(names);
        let scans = KINDS.map(|(kind, form)| self.scan_kind(kind, form, &names));
        futures::future::try_join_all(scans).await.map(drop)
    }

    async fn scan_kind(
        &self,
        kind: &str,
        form: Form,
        names: &Mutex<&mut BTreeSet<Key>>,
    ) -> Result<()> {
        let pattern = pattern(&self.0.names.prefix);
        let mut cursor = "0".to_owned();
        loop {
            let mut cmd = ::redis::cmd("SCAN");
            cmd.arg(&cursor).arg("MATCH").arg(&pattern);
            cmd.arg("COUNT").arg(STEP).arg("TYPE").arg(kind);
            let mut answer = array(self.0.link.ask(&cmd).await?)?.into_iter();
            cursor = text(next(&mut answer)?)?;
            let keys = array(next(&mut answer)?)?;
            let mut names = names.lock();
            for key in keys {
                names.extend(self.0.names.shown(&bytes(key)?, form));
            }
            self.check(&names)?;
            if cursor == "0" {
                return Ok(());
            }
        }
    }

    fn check(&self, names: &BTreeSet<Key>) -> Result<()> {
        match names.len() > MOST {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "there are more than {MOST} keys: choose some of them with prefix= in the URL"
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_say() {
        assert_eq!(pattern(b"a[1]*?\\"), b"a\\[1\\]\\*\\?\\\\*");
        assert_eq!(pattern(b""), b"*");
    }
}
