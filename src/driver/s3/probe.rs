//! Finding out which conditions a server honours, on canary keys of our own.
//!
//! A server that does not know a condition ignores it and answers with success, so each one is
//! tried in a way in which it must fail. Conditions of puts are raced as well: one that is tested
//! before the write instead of with it lets two writers win.

pub(super) mod known;
mod uploads;

use super::Bucket;
use crate::clock;
use crate::driver::{
    Body, CopyCapability, CopyOptions, ETag, Error, ErrorKind, GetOptions, ObjectInfo,
    Precondition, PutOptions, Removal, Result, Strength,
};
use crate::key::Key;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How often the whole is tried when the service says that it cannot answer now.
const ATTEMPTS: u32 = 3;
/// How many writers race.
const RACERS: usize = 2;

/// What a server was seen to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Findings {
    /// Strength of the conditions of a put.
    pub put: Strength,
    /// Strength of the condition of a delete.
    pub delete: Strength,
    /// Whether objects can be copied, and the strengths of a copy's conditions.
    pub copy: Option<CopyCapability>,
    /// Whether many keys can be deleted by one request.
    pub delete_many: bool,
    /// Strength of the condition that each of those keys may have.
    pub delete_many_condition: Strength,
    /// Whether an object of fixed bytes has the etag that their MD5 is, where deletes need that.
    pub tombstones: bool,
    /// Whether objects can be sent in parts.
    pub upload: bool,
    /// Strength of the condition under which parts become an object; below atomic it is this
    /// driver's own look before.
    pub complete: Strength,
    /// Whether parts can be copied from objects, and the strength of the condition on their version;
    /// below atomic this driver looks at it before and behind.
    pub part_copy: Strength,
    /// Whether each write of a key gives another etag, also one of the same bytes.
    pub fresh_etags: bool,
    /// Whether it looks at the checksum of a put.
    pub checksum: bool,
    /// Whether it looks at the checksum of a part.
    pub part_checksum: bool,
    /// Whether conditions of writes want etags without quotes.
    pub bare_etags: bool,
    /// Forms of keys that the server takes for other keys, or not at all.
    pub folded: Folded,
}

/// Forms of keys that a server does not keep apart from others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Folded {
    /// A `/` at the start.
    pub leading_slash: bool,
    /// Two `/` in a row.
    pub double_slash: bool,
    /// `.` or `..` between slashes.
    pub dots: bool,
}

impl Findings {
    /// Nothing is known, and nothing is claimed.
    pub const NOTHING: Findings = Findings {
        put: Strength::None,
        delete: Strength::None,
        copy: None,
        delete_many: false,
        delete_many_condition: Strength::None,
        tombstones: false,
        upload: false,
        complete: Strength::None,
        part_copy: Strength::None,
        fresh_etags: false,
        checksum: false,
        part_checksum: false,
        bare_etags: false,
        folded: Folded {
            leading_slash: false,
            double_slash: false,
            dots: false,
        },
    };
}

impl Folded {
    /// Every form.
    pub const ALL: Folded = Folded {
        leading_slash: true,
        double_slash: true,
        dots: true,
    };

    /// Refuses a key that would become another one.
    pub fn check(self, key: &Key) -> Result<()> {
        let bytes = key.as_bytes();
        let form = if self.leading_slash && bytes.first() == Some(&b'/') {
            "a '/' at its start"
        } else if self.double_slash && bytes.windows(2).any(|pair| pair == b"//") {
            "two '/' in a row"
        } else if self.dots
            && bytes
                .split(|byte| *byte == b'/')
                .any(|part| matches!(part, b"." | b".."))
        {
            "'.' or '..' between its slashes"
        } else {
            return Ok(());
        };
        Err(Error::new(
            ErrorKind::InvalidKey,
            format!("this server does not keep a key with {form} apart from others"),
        ))
    }
}

/// How a conditional request ended.
enum Verdict<T> {
    /// It was done.
    Done(T),
    /// Its condition failed.
    Lost,
    /// The server refuses such a request, whatever the condition.
    Refused,
}

fn verdict<T>(result: Result<T>) -> Result<Verdict<T>> {
    match result {
        Ok(done) => Ok(Verdict::Done(done)),
        Err(error) => match error.kind() {
            ErrorKind::Exists | ErrorKind::Changed => Ok(Verdict::Lost),
            ErrorKind::Unsupported | ErrorKind::InvalidArgument => Ok(Verdict::Refused),
            _ => Err(error),
        },
    }
}

/// Whether a request that had to lose did.
fn honoured<T>(verdict: &Verdict<T>) -> bool {
    matches!(verdict, Verdict::Lost)
}

/// Tries a server out below `prefix`. An error means that nothing can be written there.
pub(super) async fn probe(bucket: &Bucket, prefix: &Key) -> Result<Findings> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let a = prefix.join(format!(".bucketfs/probe-{:016x}", clock::random()));
        let [b, c, d] = ["b", "c", "d"].map(|name| a.join(name));
        let result = Probe {
            bucket,
            a: &a,
            b: &b,
            c: &c,
            d: &d,
        }
        .run()
        .await;
        match result {
            Ok(findings) => return Ok(findings),
            Err(error) => {
                // What cannot be removed now lies where `check --clean` looks for it.
                for key in [&a, &b, &c, &d] {
                    let _ = bucket.delete_raw(key, &Precondition::None).await;
                }
                if !error.retryable() || attempt == ATTEMPTS {
                    return Err(error);
                }
                log::debug!("probing the server again: {error}");
                tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Probe<'a> {
    bucket: &'a Bucket,
    a: &'a Key,
    b: &'a Key,
    c: &'a Key,
    d: &'a Key,
}

impl Probe<'_> {
    async fn put(
        &self,
        key: &Key,
        text: String,
        precondition: Precondition,
    ) -> Result<Verdict<ETag>> {
        let options = PutOptions {
            precondition,
            ..PutOptions::default()
        };
        let body = Body::from(text.into_bytes());
        verdict(
            self.bucket
                .put_raw(key, &body, &options)
                .await
                .map(|info| info.etag),
        )
    }

    async fn copy(
        &self,
        source: Option<&ETag>,
        destination: Precondition,
    ) -> Result<Verdict<ObjectInfo>> {
        let options = CopyOptions {
            source: source.cloned(),
            destination,
            ..CopyOptions::default()
        };
        match verdict(self.bucket.copy_raw(self.a, self.b, &options).await) {
            // Copying may be denied, or end in an error of the server, where putting is not.
            Err(error) if !error.retryable() => Ok(Verdict::Refused),
            other => other,
        }
    }

    /// Races puts under one condition. Gives its strength and the etag that is there afterwards.
    async fn race(
        &self,
        round: &str,
        precondition: &Precondition,
    ) -> Result<(Strength, Option<ETag>)> {
        let racers = (0..RACERS).map(|i| async move {
            let put = || self.put(self.a, format!("{round} {i}"), precondition.clone());
            match put().await {
                // radosgw tells who loses a race of an error of its own, and the truth when asked again.
                Err(error) if error.retryable() => put().await,
                result => result,
            }
        });
        let mut winners = Vec::new();
        let mut losers = 0;
        for result in join_all(racers).await {
            match result? {
                Verdict::Done(etag) => winners.push(etag),
                Verdict::Lost => losers += 1,
                Verdict::Refused => {}
            }
        }
        match winners.as_slice() {
            [winner] if losers + 1 == RACERS => {
                return Ok((Strength::Atomic, Some(winner.clone())));
            }
            // One who comes alone wins, if the condition is understood at all.
            [] => {
                return match self
                    .put(self.a, format!("{round} alone"), precondition.clone())
                    .await?
                {
                    Verdict::Done(etag) => Ok((Strength::Atomic, Some(etag))),
                    Verdict::Lost | Verdict::Refused => Ok((Strength::None, None)),
                };
            }
            _ => {}
        }
        // Several won: one who comes late tells a test before the write from no test at all.
        let etag = winners.last().cloned();
        match self
            .put(self.a, format!("{round} late"), precondition.clone())
            .await?
        {
            Verdict::Lost => Ok((Strength::Checked, etag)),
            Verdict::Done(etag) => Ok((Strength::None, Some(etag))),
            Verdict::Refused => Ok((Strength::None, etag)),
        }
    }

    /// The etag that a canary has, unless it is known.
    async fn etag(&self, key: &Key, known: Option<ETag>) -> Result<ETag> {
        match known {
            Some(etag) => Ok(etag),
            None => Ok(self.bucket.head_object(key).await?.etag),
        }
    }

    /// Whether copies that were refused have left the bytes that were there: LocalStack answers as
    /// it should, and has replaced them nevertheless.
    async fn is_untouched(&self) -> Result<bool> {
        let get = self.bucket.get_object(self.b, GetOptions::default());
        match get.await?.found()?.collect().await {
            Ok((_, bytes)) => Ok(bytes == "b"),
            // The bytes are not those of the checksum.
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Tries and races the condition of a delete.
    async fn delete(&self, stale: &ETag, etag: &ETag) -> Result<Strength> {
        let delete = async |etag: &ETag| {
            let precondition = Precondition::IfMatch(etag.clone());
            match verdict(self.bucket.delete_raw(self.b, &precondition).await) {
                // Who may write may yet be denied to delete.
                Err(error) if error.kind() == ErrorKind::Denied => Ok(Verdict::Refused),
                other => other,
            }
        };
        if !honoured(&delete(stale).await?) {
            return Ok(Strength::None);
        }
        let (one, other) = tokio::join!(delete(etag), delete(etag));
        Ok(match (one?, other?) {
            (Verdict::Done(()), Verdict::Lost) | (Verdict::Lost, Verdict::Done(())) => {
                Strength::Atomic
            }
            (Verdict::Done(()), Verdict::Done(())) if honoured(&delete(etag).await?) => {
                Strength::Checked
            }
            _ => Strength::None,
        })
    }

    /// Whether the server takes a variant of the canary's key for the canary, or refuses it.
    async fn folds(&self, variant: Key) -> bool {
        match self.bucket.look(&variant, None, None).await {
            Ok(_) => true,
            Err(super::refusal::Failed::Refused(refusal)) => !refusal.object_missing(),
            Err(super::refusal::Failed::Broken(_)) => true,
        }
    }

    async fn run(self) -> Result<Findings> {
        let mut bucket = self.bucket.clone();
        let (checksum, before) = self.checksum().await?;
        bucket.findings.checksum = checksum;
        let probe = Probe {
            bucket: &bucket,
            ..self
        };
        let (findings, uploads) = tokio::join!(probe.objects(before), probe.uploads());
        let (mut findings, uploads) = (findings?, uploads?);
        findings.checksum = bucket.findings.checksum;
        findings.upload = uploads.offered;
        findings.complete = match uploads.condition {
            Strength::Atomic => Strength::Atomic,
            // Looking before is as good as a put that does so itself.
            _ => findings.put.min(Strength::Checked),
        };
        findings.part_copy = uploads.part_copy;
        findings.fresh_etags &= uploads.fresh_etags;
        findings.part_checksum = uploads.checksum;
        // Where a single delete holds no condition, one of many does not either.
        findings.delete_many_condition = match findings.delete {
            Strength::None => Strength::None,
            held => held.min(probe.batch().await?),
        };
        findings.tombstones = findings.delete == Strength::None
            && findings.put == Strength::Atomic
            && match self.bucket.knows_tombstones(self.d).await {
                Err(error) if error.retryable() => return Err(error),
                known => known.unwrap_or(false),
            };
        let keys = [self.a, self.b, self.c, self.d];
        let all = keys.map(|key| Removal::from(key.clone()));
        findings.delete_many = match self.bucket.delete_objects(&all, Strength::None).await {
            Ok(results) => results.iter().all(Result::is_ok),
            Err(_) => false,
        };
        if !findings.delete_many {
            for key in &keys {
                if let Err(error) = self.bucket.delete_raw(key, &Precondition::None).await {
                    log::warn!("a canary object stays behind: {error}");
                }
            }
        }
        Ok(findings)
    }

    /// Tries the condition of a key among many: with a wrong etag the canary stays.
    async fn batch(&self) -> Result<Strength> {
        let etag = self.etag(self.a, None).await?;
        for (etag, stays) in [
            (ETag::new("0123456789abcdef0123456789abcdef"), true),
            (etag, false),
        ] {
            let removal = Removal {
                key: self.a.clone(),
                if_match: Some(etag),
            };
            let removals = [removal];
            let many = self.bucket.delete_objects(&removals, Strength::Atomic);
            let lost = match many.await.as_deref() {
                Ok([Ok(())]) => false,
                Ok([Err(error)]) if error.kind() == ErrorKind::Changed => true,
                Ok(_) | Err(_) => return Ok(Strength::None),
            };
            if lost != stays {
                return Ok(Strength::None);
            }
        }
        Ok(Strength::Atomic)
    }

    /// Whether a right checksum is taken and a wrong one refused, and the etag of what was put so.
    async fn checksum(&self) -> Result<(bool, Option<ETag>)> {
        let mut bucket = self.bucket.clone();
        bucket.findings.checksum = true;
        let (right, body) = (PutOptions::default(), Body::from("b"));
        let (right, wrong) = tokio::join!(
            bucket.put_raw(self.b, &body, &right),
            self.bucket.put_wrong(self.b, &body),
        );
        let passing = |error: &Error| error.retryable() && error.kind() != ErrorKind::Corrupt;
        match (right, wrong) {
            (Err(error), _) | (_, Err(error)) if passing(&error) => Err(error),
            (right, wrong) => Ok((
                right.is_ok() && wrong.is_err(),
                right.ok().map(|info| info.etag),
            )),
        }
    }

    /// Tries everything but uploads. `before`: an etag that the second canary had with the same
    /// bytes.
    async fn objects(&self, before: Option<ETag>) -> Result<Findings> {
        let stale = ETag::new("0123456789abcdef0123456789abcdef");
        let any = Precondition::None;
        let matching = |etag: &ETag| Precondition::IfMatch(etag.clone());

        let (created, other) = tokio::join!(
            self.race("create", &Precondition::IfAbsent),
            self.put(self.b, "b".into(), any.clone()),
        );
        let (mut absent, mut a) = created?;
        let mut b = match other? {
            Verdict::Done(etag) => Some(etag),
            Verdict::Lost | Verdict::Refused => None,
        };
        let mut fresh_etags = before.is_some() && b.is_some() && before != b;
        if a.is_none() {
            // The condition is refused; the rest is still worth knowing.
            self.put(self.a, "a".into(), any.clone()).await?;
        }

        // Everything here must lose, so nothing disturbs the others.
        let path = self.a.as_bytes();
        let cut = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let (above, name) = (Key::from(&path[..cut]), &path[cut..]);
        let (late, wrong, onto, over, from, leading_slash, double_slash, dots) = tokio::join!(
            self.put(self.a, "late".into(), Precondition::IfAbsent),
            self.put(self.a, "wrong".into(), matching(&stale)),
            self.copy(None, Precondition::IfAbsent),
            self.copy(None, matching(&stale)),
            self.copy(Some(&stale), any.clone()),
            self.folds(Key::from("/").join(path)),
            self.folds(above.join(b"/").join(name)),
            self.folds(above.join(b"/.").join(name)),
        );
        let (late, wrong, onto, over, from) = (late?, wrong?, onto?, over?, from?);
        if !honoured(&late) {
            absent = Strength::None;
        }
        if matches!(late, Verdict::Done(_))
            || matches!(wrong, Verdict::Done(_))
            || absent != Strength::Atomic
        {
            a = None;
        }
        if [&onto, &over, &from]
            .iter()
            .any(|copy| matches!(copy, Verdict::Done(_)))
        {
            b = None;
        }
        let mut a = self.etag(self.a, a).await?;
        let mut b = self.etag(self.b, b).await?;

        // The conditions must also hold when they are met.
        let mut destination = honoured(&onto) && honoured(&over) && self.is_untouched().await?;
        let mut source = honoured(&from);
        let to = if destination {
            matching(&b)
        } else {
            any.clone()
        };
        let mut can_copy = true;
        match self.copy(source.then_some(&a), to).await? {
            Verdict::Done(copy) => b = copy.etag,
            Verdict::Lost | Verdict::Refused => {
                (source, destination) = (false, false);
                match self.copy(None, any.clone()).await? {
                    Verdict::Done(copy) => b = copy.etag,
                    Verdict::Lost | Verdict::Refused => can_copy = false,
                }
            }
        }

        // A copy may bring an etag back.
        fresh_etags &= b != a;
        let mut put = Strength::None;
        let mut bucket = self.bucket.clone();
        if honoured(&wrong) {
            (put, _) = self.race("match", &matching(&a)).await?;
            if put == Strength::None {
                a = self.etag(self.a, None).await?;
                bucket.findings.bare_etags = true;
                let bare = Probe {
                    bucket: &bucket,
                    ..*self
                };
                (put, _) = bare.race("bare", &matching(&a)).await?;
                bucket.findings.bare_etags = put != Strength::None;
            }
        }
        let probe = Probe {
            bucket: &bucket,
            ..*self
        };
        let delete = probe.delete(&stale, &b).await?;
        let strength = |honoured: bool| {
            if honoured {
                Strength::Atomic
            } else {
                Strength::None
            }
        };
        Ok(Findings {
            put: put.min(absent),
            delete,
            copy: can_copy.then_some(CopyCapability {
                source: strength(source),
                destination: strength(destination),
            }),
            fresh_etags,
            bare_etags: bucket.findings.bare_etags,
            folded: Folded {
                leading_slash,
                double_slash,
                dots,
            },
            ..Findings::NOTHING
        })
    }
}
