//! Bucket types of a server. Its HTTP API lists none, so those are shown that the URL names, and the
//! one that is always there.

use super::bucket::BucketType;
use super::link::Link;
use super::names;
use crate::driver::databases::Databases;
use crate::driver::{Capabilities, Driver, Error, ErrorKind, Result};
use crate::key::Key;
use async_trait::async_trait;
use serde_json::Value;
use std::sync::Arc;

/// The types of a server.
#[derive(Debug)]
pub(super) struct Types {
    pub link: Link,
    pub read_only: bool,
}

impl Types {
    /// Opens a type, of which a part is meant. Those that do not hold plain objects are refused.
    pub(super) async fn open(&self, name: &str, below: &Key) -> Result<BucketType> {
        let cut = below.as_bytes().split(|byte| *byte == b'/').next();
        let bucket = cut.and_then(names::bucket);
        let told = self.link.properties(name, bucket.as_deref()).await?;
        let told = told.ok_or_else(|| {
            let why = format!(
                "{} has no bucket type {name:?}; riak-admin bucket-type list shows them",
                self.link.target()
            );
            Error::new(ErrorKind::NotFound, why)
        })?;
        if let Some(kind) = told["datatype"].as_str() {
            let why =
                format!("the bucket type {name:?} holds data types ({kind}), which are no files");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        if told["write_once"] == Value::Bool(true) && !self.read_only {
            let why = format!(
                "what is in the bucket type {name:?} is written once; mount it --read-only"
            );
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let keeps_siblings =
            told["allow_mult"] == Value::Bool(true) && told["last_write_wins"] != Value::Bool(true);
        if !self.read_only {
            self.warn(name, keeps_siblings);
        }
        Ok(BucketType::new(self.link.clone(), name.to_owned()))
    }

    /// Says how much conditions are worth.
    fn warn(&self, name: &str, keeps_siblings: bool) {
        let at = self.link.target();
        match keeps_siblings {
            true => log::warn!(
                "{at} tests a condition before it writes: of two who write an object of the type {name:?} at the same moment, both are told that they have, and one is kept as a conflict file"
            ),
            false => log::warn!(
                "{at} tests a condition before it writes, and the bucket type {name:?} keeps no siblings: of two who write an object at the same moment, one is overwritten; set allow_mult to true, and last_write_wins to false"
            ),
        }
    }
}

#[async_trait]
impl Databases for Types {
    fn claims(&self) -> Capabilities {
        super::bucket::claims()
    }

    async fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for name in &self.link.target().types {
            match self.link.properties(name, None).await? {
                Some(_) => names.push(name.clone()),
                None => log::debug!("{} has no bucket type {name:?}", self.link.target()),
            }
        }
        Ok(names)
    }

    async fn database(&self, name: &str) -> Result<Option<Arc<dyn Driver>>> {
        match self.open(name, &Key::empty()).await {
            Ok(opened) => Ok(Some(Arc::new(opened))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
