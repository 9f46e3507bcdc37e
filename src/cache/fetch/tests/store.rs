//! A store that does what a test tells it.

use crate::cache::content::Version;
use crate::driver::*;
use crate::key::Key;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// How large the pieces are in which bodies come; no divisor of a block.
const STEP: u64 = 50_000;

/// A store of objects that counts gets and fails as it is told.
#[derive(Debug)]
pub struct Store {
    pub ranges: bool,
    pub objects: Mutex<HashMap<Key, (ETag, Bytes)>>,
    /// The ranges that were asked for.
    pub gets: Mutex<Vec<Range<u64>>>,
    /// What becomes of the next gets; afterwards they succeed.
    pub faults: Mutex<VecDeque<Fault>>,
    /// Permits for pieces of bodies.
    pub gate: Arc<Semaphore>,
    pub conditions: bool,
}

#[derive(Clone, Debug)]
pub enum Fault {
    None,
    Fail(ErrorKind),
    Panic,
    /// The body ends after so many pieces.
    Short(usize),
    /// The body has more than it says.
    Long,
}

impl Store {
    pub fn new() -> Store {
        Store {
            ranges: true,
            objects: Mutex::default(),
            gets: Mutex::default(),
            faults: Mutex::default(),
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            conditions: true,
        }
    }

    pub fn put(&self, key: &str, etag: &str, bytes: Bytes) -> Arc<Version> {
        let version = Version {
            key: Key::from(key),
            etag: ETag::new(etag),
            size: bytes.len() as u64,
        };
        let object = (version.etag.clone(), bytes);
        self.objects.lock().insert(version.key.clone(), object);
        Arc::new(version)
    }

    pub fn count(&self) -> usize {
        self.gets.lock().len()
    }

    pub fn fault(&self, faults: &[Fault]) {
        self.faults.lock().extend(faults.iter().cloned());
    }
}

#[async_trait]
impl Driver for Store {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            range: self.ranges,
            ..Capabilities::default()
        }
    }

    async fn head(&self, _: &Key) -> Result<ObjectInfo> {
        Err(Error::unsupported("head"))
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        let Some((etag, bytes)) = self.objects.lock().get(key).cloned() else {
            return Err(Error::new(ErrorKind::NotFound, "gone").during("get"));
        };
        let size = bytes.len() as u64;
        let range = options.range.filter(|_| self.ranges).unwrap_or(0..size);
        self.gets.lock().push(range.clone());
        let fault = self.faults.lock().pop_front().unwrap_or(Fault::None);
        tokio::task::yield_now().await;
        match fault {
            Fault::Fail(kind) => {
                let _ = self.gate.acquire().await.unwrap();
                return Err(Error::new(kind, "told to fail").during("get"));
            }
            Fault::Panic => panic!("told to panic"),
            _ => {}
        }
        if self.conditions && options.if_match.is_some_and(|want| want != etag) {
            return Err(Error::new(ErrorKind::Changed, "changed").during("get"));
        }
        let mut pieces: Vec<Bytes> = (range.start..range.end)
            .step_by(STEP as usize)
            .map(|at| bytes.slice(at as usize..(at + STEP).min(range.end) as usize))
            .collect();
        match fault {
            Fault::Short(keep) => pieces.truncate(keep),
            Fault::Long => pieces.push(Bytes::from_static(b"more")),
            _ => {}
        }
        let gate = self.gate.clone();
        let body = futures::stream::iter(pieces).then(move |piece| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.expect("never closed").forget();
                Ok(piece)
            }
        });
        Ok(GetOutcome::Found(Box::new(Object {
            info: ObjectInfo {
                size: Some(size),
                etag,
                modified: crate::clock::wall(),
                attributes: None,
                commits: Vec::new(),
                version: None,
            },
            range,
            body: body.boxed(),
        })))
    }

    async fn put(&self, _: &Key, _: Body, _: PutOptions) -> Result<ObjectInfo> {
        Err(Error::unsupported("put"))
    }

    async fn delete(&self, _: &Key, _: Precondition) -> Result<()> {
        Err(Error::unsupported("delete"))
    }

    async fn list(&self, _: ListRequest) -> Result<Page> {
        Err(Error::unsupported("list"))
    }
}
