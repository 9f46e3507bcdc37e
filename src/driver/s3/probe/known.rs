//! What was found out about a server, kept for a day: finding it out takes some forty requests.
//!
//! It is kept for what it was found out of: an endpoint, a bucket, a prefix, and the credentials,
//! which decide what may be tried. Who cannot write it down tries again the next time.

use super::super::Bucket;
use super::Findings;
use crate::clock;
use crate::key::Key;
use crate::task;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a server is believed to be as it was.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A file of findings.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Which program found it out: another one may look for other things.
    version: String,
    /// When, in seconds since 1970.
    at: u64,
    findings: Findings,
}

/// Where the findings about a bucket are kept.
pub(in super::super) async fn place(bucket: &Bucket, prefix: &Key) -> Option<PathBuf> {
    let dir = bucket.account.options.findings_dir.as_ref()?;
    let site = bucket.target.site();
    let name = bucket.target.bucket.as_deref().unwrap_or_default();
    let who = bucket.store.access_key().await.unwrap_or_default();
    let written = &bucket.store.written;
    let of = format!("{site} {name} {prefix:?} {who} {written:?}");
    Some(dir.join(URL_SAFE_NO_PAD.encode(Md5::digest(of))))
}

/// What was found out less than a day ago.
pub(in super::super) async fn read(place: &Path) -> Option<Findings> {
    let path = place.to_owned();
    let text = task::blocking(move || std::fs::read(path)).await;
    let record: Record = serde_json::from_slice(&text.ok()?.ok()?).ok()?;
    let age = clock::seconds(clock::wall()).checked_sub(record.at)?;
    (record.version == env!("CARGO_PKG_VERSION") && age < DAY.as_secs()).then_some(record.findings)
}

/// Keeps what was found out.
pub(in super::super) async fn write(place: &Path, findings: &Findings) {
    let record = Record {
        version: env!("CARGO_PKG_VERSION").into(),
        at: clock::seconds(clock::wall()),
        findings: findings.clone(),
    };
    let path = place.to_owned();
    let written = task::blocking(move || {
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(dir)?;
        let beside = dir.join(format!("new-{:016x}", clock::random()));
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&beside)?;
        file.write_all(&serde_json::to_vec(&record)?)?;
        std::fs::rename(&beside, &path)
    });
    if let Ok(Err(error)) = written.await {
        log::debug!("{}: {error}", place.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Strength;

    #[tokio::test]
    async fn findings_are_believed_for_a_day_by_the_same_program() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("servers/a");
        assert_eq!(read(&place).await, None);
        let findings = Findings {
            put: Strength::Atomic,
            checksum: true,
            ..Findings::NOTHING
        };
        write(&place, &findings).await;
        assert_eq!(read(&place).await, Some(findings.clone()));
        let text = std::fs::read_to_string(&place).unwrap();
        let mut record: Record = serde_json::from_str(&text).unwrap();
        let now = record.at;
        for (at, believed) in [
            (now - DAY.as_secs() + 60, true),
            (now - DAY.as_secs() - 60, false),
            (now + 3600, false),
        ] {
            record.at = at;
            std::fs::write(&place, serde_json::to_vec(&record).unwrap()).unwrap();
            assert_eq!(read(&place).await.is_some(), believed, "{at}");
        }
        record.at = now;
        record.version = "0".into();
        std::fs::write(&place, serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(read(&place).await, None);
        std::fs::write(&place, "{").unwrap();
        assert_eq!(read(&place).await, None);
    }
}
