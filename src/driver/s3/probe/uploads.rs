//! Finding out about objects that are sent in parts, on a canary key of their own.

use super::{Probe, Verdict, honoured, verdict};
use crate::driver::s3::upload::S3Upload;
use crate::driver::{
    Body, ETag, Error, ErrorKind, ObjectInfo, Precondition, PutOptions, Result, Strength, Upload,
};
use futures::future::join_all;

/// What a server does with parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Uploads {
    /// It takes them.
    pub offered: bool,
    /// How strong the condition is under which they become an object.
    pub condition: Strength,
    /// It copies parts from objects: atomic where it honours their versions.
    pub part_copy: Strength,
    /// The same parts become an object with another etag each time, as far as that is of use.
    pub fresh_etags: bool,
    /// It looks at the checksums of parts.
    pub checksum: bool,
}

/// A refusal for good as an answer, and an answer that makes no sense: who may put need not be
/// allowed all of this, and a server that takes puts need not know parts.
fn settled<T>(result: Result<T>) -> Result<std::result::Result<T, Error>> {
    match result {
        Err(error) if error.retryable() && error.kind() != ErrorKind::Corrupt => Err(error),
        other => Ok(other),
    }
}

impl Probe<'_> {
    /// An upload of one part; each has other bytes, so that each object has another etag.
    async fn begin(&self, text: &'static str) -> Result<S3Upload> {
        let upload = self
            .bucket
            .upload_raw(self.c, &PutOptions::default())
            .await?;
        upload.part(1, text.into()).await?;
        Ok(upload)
    }

    async fn complete(
        &self,
        upload: &S3Upload,
        precondition: &Precondition,
    ) -> Result<Verdict<ObjectInfo>> {
        let result = settled(upload.complete_raw(precondition).await);
        match result {
            Err(error) => Err(error),
            // After a conflict an upload has to be begun anew.
            Ok(Err(error)) if error.kind() == ErrorKind::NotFound => Ok(Verdict::Lost),
            Ok(result) => Ok(verdict(result).unwrap_or(Verdict::Refused)),
        }
    }

    /// Races two uploads under a condition that only one can meet. Gives the winner's etag, or
    /// nothing when not exactly one won and the other lost.
    async fn race_uploads(
        &self,
        racers: [&S3Upload; 2],
        precondition: &Precondition,
    ) -> Result<Option<ETag>> {
        let (one, two) = tokio::join!(
            self.complete(racers[0], precondition),
            self.complete(racers[1], precondition)
        );
        Ok(match (one?, two?) {
            (Verdict::Done(info), Verdict::Lost) | (Verdict::Lost, Verdict::Done(info)) => {
                Some(info.etag)
            }
            _ => None,
        })
    }

    /// Whether a part with a right checksum is taken and one with a wrong checksum refused, in an
    /// upload that has them.
    async fn checks_parts(&self) -> Result<bool> {
        if !self.bucket.findings.checksum {
            return Ok(false);
        }
        let mut bucket = self.bucket.clone();
        bucket.findings.part_checksum = true;
        let begun = bucket.upload_raw(self.d, &PutOptions::default()).await;
        let Ok(upload) = settled(begun)? else {
            return Ok(false);
        };
        let body = Body::from("d");
        let wrong = upload.part_raw(1, &body, Some("AAAAAA==".into())).await;
        let right = async {
            upload.part(1, body).await?;
            upload.complete_raw(&Precondition::None).await
        };
        let checks = settled(wrong)?.is_err() && settled(right.await)?.is_ok();
        if !checks && let Err(error) = upload.abort().await {
            log::debug!("an upload stays behind: {error}");
        }
        Ok(checks)
    }

    /// Whether the same parts become an object with another etag each time.
    async fn gives_fresh_etags(&self) -> Result<bool> {
        let mut etags = Vec::new();
        for _ in 0..2 {
            let Ok(upload) = settled(self.begin("same").await)? else {
                return Ok(false);
            };
            match self.complete(&upload, &Precondition::None).await? {
                Verdict::Done(info) => etags.push(info.etag),
                Verdict::Lost | Verdict::Refused => return Ok(false),
            }
        }
        Ok(etags[0] != etags[1])
    }

    /// Tries and races the condition of a completion, copies a part, and sends one with a checksum.
    pub(super) async fn uploads(&self) -> Result<Uploads> {
        let (found, checksum) = tokio::join!(self.conditional_uploads(), self.checks_parts());
        Ok(Uploads {
            checksum: checksum?,
            ..found?
        })
    }

    async fn conditional_uploads(&self) -> Result<Uploads> {
        let mut uploads = Vec::new();
        for upload in join_all(["1", "2", "3", "4", "5"].map(|text| self.begin(text))).await {
            match settled(upload)? {
                Ok(upload) => uploads.push(upload),
                Err(error) => {
                    log::debug!("the server takes no parts: {error}");
                    return Ok(Uploads::default());
                }
            }
        }
        let [one, two, three, four, copied] = &uploads[..] else {
            return Ok(Uploads::default());
        };
        let stale = ETag::new("0123456789abcdef0123456789abcdef");
        let mut found = Uploads {
            offered: true,
            ..Uploads::default()
        };
        let created = self
            .race_uploads([one, two], &Precondition::IfAbsent)
            .await?;
        if let Some(etag) = created {
            let other = Precondition::IfMatch(stale.clone());
            let (late, missed, copy) = tokio::join!(
                self.complete(three, &Precondition::IfAbsent),
                self.complete(three, &other),
                copied.copy_part_raw(1, self.c, None, &stale, 1),
            );
            let (late, missed) = (late?, missed?);
            found.part_copy = match settled(copy)? {
                Err(error) if error.kind() == ErrorKind::Changed => {
                    let copy = copied.copy_part_raw(1, self.c, None, &etag, 1).await;
                    match settled(copy)? {
                        Ok(()) => Strength::Atomic,
                        Err(_) => Strength::None,
                    }
                }
                // It copies whatever is there.
                Ok(()) => Strength::Checked,
                Err(_) => Strength::None,
            };
            if honoured(&late) && honoured(&missed) {
                let matching = Precondition::IfMatch(etag);
                if self.race_uploads([three, four], &matching).await?.is_some() {
                    found.condition = Strength::Atomic;
                }
            }
        } else if matches!(
            self.complete(three, &Precondition::None).await?,
            Verdict::Lost | Verdict::Refused
        ) {
            found.offered = false;
        }
        if found.part_copy == Strength::Checked {
            found.fresh_etags = self.gives_fresh_etags().await?;
        }
        // Those that were completed are gone already.
        for result in join_all(uploads.iter().map(Upload::abort)).await {
            if let Err(error) = result {
                log::debug!("an upload stays behind: {error}");
            }
        }
        Ok(found)
    }
}
