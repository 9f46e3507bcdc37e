//! A whole account as a store: its buckets, each opened when it is first asked for, and tried out
//! when it is first written to.

use super::probe::Folded;
use super::{Account, Bucket, Findings, MAX_KEY, MAX_OBJECT, bucket, meta, upload};
use crate::driver::{
    AttributeChange, AttributeCheck, AttributeSupport, Body, BucketInfo, Capabilities,
    CopyCapability, CopyOptions, Driver, ETag, Error, ErrorKind, GetOptions, GetOutcome,
    ListRequest, ObjectInfo, Page, Precondition, PutOptions, Removal, Result, Strength, Upload,
};
use crate::key::Key;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::OnceCell;

/// What buckets of an account are taken to offer before one of them is tried out: what Amazon's
/// service and MinIO both do. One that offers less refuses what it lacks.
fn claims(account: &Account) -> Capabilities {
    let writable = !account.options.read_only;
    let strength = match writable {
        true => Strength::Atomic,
        false => Strength::None,
    };
    Capabilities {
        put_condition: strength,
        delete_condition: Strength::None,
        range: true,
        attributes: AttributeSupport::Object,
        set_attributes: writable,
        check_attributes: AttributeCheck(meta::check),
        special_files: true,
        commit_ids: true,
        copy: writable.then_some(CopyCapability {
            source: strength,
            destination: strength,
        }),
        delete_many: writable.then_some(bucket::MOST),
        // An upload needs a condition at its end, which is not asked for where that is not held.
        upload: (writable && !account.options.unsafe_writes)
            .then(|| upload::limits(strength, true)),
        buckets: true,
        create_bucket: writable,
        utf8_keys: true,
        max_key: MAX_KEY,
        max_object: MAX_OBJECT,
        ..Capabilities::default()
    }
}

fn no_bucket<T>(operation: &'static str, key: &Key) -> Result<T> {
    Err(Error::new(
        ErrorKind::InvalidArgument,
        "this is a whole account, whose keys are in its buckets",
    )
    .during(operation)
    .on(key))
}

#[async_trait]
impl Driver for Account {
    fn capabilities(&self) -> Capabilities {
        claims(self)
    }

    fn wall(&self) -> SystemTime {
        self.store.wall()
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        no_bucket("head", key)
    }

    async fn get(&self, key: &Key, _: GetOptions) -> Result<GetOutcome> {
        no_bucket("get", key)
    }

    async fn put(&self, key: &Key, _: Body, _: PutOptions) -> Result<ObjectInfo> {
        no_bucket("put", key)
    }

    async fn delete(&self, key: &Key, _: Precondition) -> Result<()> {
        no_bucket("delete", key)
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        no_bucket("list", &request.prefix)
    }

    async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        self.store.buckets().await
    }

    /// A bucket that is there but may not be listed is opened too: its keys may yet be readable.
    async fn bucket(&self, name: &str) -> Result<Arc<dyn Driver>> {
        let reader = self.at(name, Findings::NOTHING)?;
        match reader.check(&Key::empty()).await {
            Err(error) if error.kind() != ErrorKind::Denied => {
                return Err(error.during("bucket"));
            }
            _ => {}
        }
        Ok(Arc::new(Late {
            reader,
            tried: OnceCell::new(),
        }))
    }

    async fn create_bucket(&self, name: &str) -> Result<()> {
        if self.options.read_only {
            return Err(Error::unsupported("create_bucket"));
        }
        self.store.create_bucket(name).await
    }

    async fn delete_bucket(&self, name: &str) -> Result<()> {
        if self.options.read_only {
            return Err(Error::unsupported("delete_bucket"));
        }
        self.store.delete_bucket(name).await
    }
}

/// A bucket whose conditions are tried out at its first write. It claims what every bucket of the
/// account does.
#[derive(Debug)]
struct Late {
    /// The bucket before anything is known of it.
    reader: Bucket,
    /// The bucket with what was found out.
    tried: OnceCell<Bucket>,
}

impl Late {
    /// The bucket, with what is known of it.
    fn known(&self) -> &Bucket {
        self.tried.get().unwrap_or(&self.reader)
    }

    /// The bucket as it can be asked for a key: some servers take keys of some forms for others, and
    /// which ones only a trial tells.
    async fn asked(&self, operation: &'static str, key: &Key) -> Result<&Bucket> {
        if let Err(folded) = Folded::ALL.check(key) {
            return match self.tried().await {
                Ok(bucket) => Ok(bucket),
                Err(error) if error.retryable() => Err(error),
                Err(_) => Err(folded.during(operation).on(key)),
            };
        }
        Ok(self.known())
    }

    /// The bucket, tried out. One that refused is asked again by the next write.
    async fn tried(&self) -> Result<&Bucket> {
        if self.reader.account.options.read_only {
            return Ok(&self.reader);
        }
        self.tried
            .get_or_try_init(|| async {
                let mut bucket = self.reader.clone();
                bucket.findings = bucket.explore(&Key::empty()).await?;
                Ok(bucket)
            })
            .await
    }

    /// A precondition as the bucket can hold it: none, where whoever mounted it accepts that.
    fn held(&self, bucket: &Bucket, precondition: Precondition) -> Precondition {
        match bucket.findings.put {
            Strength::None if bucket.account.options.unsafe_writes => Precondition::None,
            _ => precondition,
        }
    }
}

#[async_trait]
impl Driver for Late {
    fn capabilities(&self) -> Capabilities {
        claims(&self.reader.account)
    }

    fn wall(&self) -> SystemTime {
        self.reader.wall()
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.asked("head", key).await?.head(key).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        self.asked("get", key).await?.get(key, options).await
    }

    async fn put(&self, key: &Key, body: Body, mut options: PutOptions) -> Result<ObjectInfo> {
        let bucket = self.tried().await?;
        options.precondition = self.held(bucket, options.precondition);
        bucket.put(key, body, options).await
    }

    /// The condition is not claimed, for some services take none.
    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        if precondition != Precondition::IfAbsent {
            precondition.require(Strength::None, "delete")?;
        }
        self.tried().await?.delete(key, precondition).await
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        self.known().list(request).await
    }

    async fn copy(&self, from: &Key, to: &Key, mut options: CopyOptions) -> Result<ObjectInfo> {
        let bucket = self.tried().await?;
        options.destination = self.held(bucket, options.destination);
        bucket.copy(from, to, options).await
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        let bucket = self.tried().await?;
        bucket.set_attributes(key, change, if_match).await
    }

    async fn delete_many(&self, removals: &[Removal]) -> Result<Vec<Result<()>>> {
        let bucket = self.tried().await?;
        let conditional = removals.iter().any(|removal| removal.if_match.is_some());
        if bucket.findings.delete_many && !conditional {
            return bucket.delete_many(removals).await;
        }
        let mut results = Vec::with_capacity(removals.len());
        for Removal { key, if_match } in removals {
            let condition = if_match.clone().map(Precondition::IfMatch);
            results.push(self.delete(key, condition.unwrap_or_default()).await);
        }
        Ok(results)
    }

    async fn upload(&self, key: &Key, options: PutOptions) -> Result<Box<dyn Upload>> {
        let bucket = self.tried().await?;
        if bucket.findings.complete < bucket.findings.put {
            // What is claimed is not held: who relies on it could lose the write of another.
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the server looks at conditions before it puts parts together, and not while it does",
            )
            .during("upload")
            .on(key));
        }
        bucket.upload(key, options).await
    }

    async fn abandon_uploads(&self, prefix: &Key, before: SystemTime) -> Result<Vec<Key>> {
        self.known().abandon_uploads(prefix, before).await
    }

    async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        self.reader.account.buckets().await
    }

    async fn bucket(&self, name: &str) -> Result<Arc<dyn Driver>> {
        self.reader.account.bucket(name).await
    }

    async fn create_bucket(&self, name: &str) -> Result<()> {
        self.reader.account.create_bucket(name).await
    }

    async fn delete_bucket(&self, name: &str) -> Result<()> {
        self.reader.account.delete_bucket(name).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::OpenOptions;
    use crate::driver::s3::StaticCredentials;

    #[tokio::test]
    async fn a_bucket_that_holds_less_than_is_claimed_takes_no_uploads() {
        let options = OpenOptions {
            endpoint_url: Some("http://127.0.0.1:1".into()),
            region: Some("us-east-1".into()),
            ..OpenOptions::default()
        };
        let keys = StaticCredentials::new("AKIDTEST", "very-secret");
        let account = Account::configure(&options, Some(keys)).await.unwrap();
        for (complete, kind) in [
            (Strength::Checked, ErrorKind::Unsupported),
            // It asks the server, which is none.
            (Strength::Atomic, ErrorKind::Unreachable),
        ] {
            let tried = Findings {
                put: Strength::Atomic,
                upload: true,
                complete,
                ..Findings::NOTHING
            };
            let late = Late {
                reader: account.at("b", Findings::NOTHING).unwrap(),
                tried: OnceCell::new_with(Some(account.at("b", tried).unwrap())),
            };
            let claimed = late.capabilities().upload.unwrap();
            assert_eq!(claimed.condition, Strength::Atomic);
            let options = PutOptions::default();
            let error = late.upload(&Key::from("k"), options).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
        }
    }
}
