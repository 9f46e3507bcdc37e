//! Which names there are. Redis has no index of its keys, so they are all asked for with SCAN, in
//! steps, sorted here, and kept for as long as the server's counters say that nothing was written.

use super::Data;
use super::names::Form;
use crate::clock;
use crate::driver::redis::answer::{array, bytes, garbled, next, text};
use crate::driver::redis::fact;
use crate::driver::{Error, ErrorKind, Result};
use crate::key::Key;
use std::sync::Arc;

/// How many keys are shown at most, which bounds the memory that their names take.
const MOST: usize = 1_000_000;
/// How many keys one step of a scan looks at, for which the server serves nobody else.
const STEP: usize = 1000;
/// How many listings can go on at a time over names that have changed meanwhile.
const KEPT: usize = 4;

/// The names at some moment, in order.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub id: u64,
    pub names: Vec<Key>,
    /// What the server's counters were before it was made.
    counters: Option<String>,
}

/// Snapshots, the newest first.
pub(super) type Snapshots = Vec<Arc<Snapshot>>;

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
    /// What changes whenever anything in the server does; nothing where it may not be asked.
    async fn counters(&self) -> Result<Option<String>> {
        let info = match self.0.link.ask(&::redis::cmd("INFO")).await {
            Ok(info) => text(info)?,
            Err(error) if error.kind() == ErrorKind::Denied => return Ok(None),
            Err(error) => return Err(error),
        };
        let counters = [
            "run_id",
            "rdb_changes_since_last_save",
            "rdb_last_save_time",
            "expired_keys",
            "evicted_keys",
        ];
        let counters = counters.map(|name| fact(&info, name));
        let counters: Option<Vec<&str>> = counters.into_iter().collect();
        Ok(counters.map(|counters| counters.join(" ")))
    }

    /// The names there are now, or those that a listing goes on with.
    pub(super) async fn snapshot(&self, of: Option<u64>) -> Result<Arc<Snapshot>> {
        if let Some(id) = of {
            let kept = self.0.snapshots.lock();
            if let Some(found) = kept.iter().find(|snapshot| snapshot.id == id) {
                return Ok(found.clone());
            }
        }
        // One scan serves all who wait for it and came before it began.
        let _turn = self.0.scanning.lock().await;
        let counters = self.counters().await?;
        let newest = self.0.snapshots.lock().first().cloned();
        if let Some(newest) = newest
            && counters.is_some()
            && newest.counters == counters
        {
            return Ok(newest);
        }
        let snapshot = Arc::new(Snapshot {
            id: clock::random(),
            names: self.scan().await?,
            counters,
        });
        let mut kept = self.0.snapshots.lock();
        kept.insert(0, snapshot.clone());
        kept.truncate(KEPT);
        Ok(snapshot)
    }

    async fn scan(&self) -> Result<Vec<Key>> {
        let (pattern, count) = (pattern(&self.0.names.prefix), STEP.to_string());
        let (mut cursor, mut names) = ("0".to_owned(), Vec::new());
        loop {
            let arguments = [cursor.as_bytes(), &pattern, count.as_bytes()];
            let answer = self.0.link.run(&super::SCAN, &[], arguments).await?;
            let mut answer = array(answer)?.into_iter();
            cursor = text(next(&mut answer)?)?;
            while let Some(key) = answer.next() {
                let (key, kind) = (bytes(key)?, bytes(answer.next().ok_or_else(garbled)?)?);
                let form = Form::of(&kind);
                names.extend(form.and_then(|form| self.0.names.shown(&key, form)));
            }
            if names.len() > MOST {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "there are more than {MOST} keys: choose some of them with prefix= in the URL"
                    ),
                ));
            }
            if cursor == "0" {
                break;
            }
        }
        // A key may come twice.
        names.sort_unstable();
        names.dedup();
        Ok(names)
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
