//! Layers: each is a [`Driver`] over a [`Driver`] and adds one thing that no store's driver has to
//! know. [`stack`] puts them in the one order that is right:
//!
//! ```text
//! driver <- fault <- stats <- deadline <- limit <- retry <- buckets <- prefix <- read-only <- index <- scratch <- caller
//! ```
//!
//! - *fault* stands for the store, so everything above it must cope with what it does.
//! - *stats* counts what is really sent: each attempt of a retried request, with its outcome.
//! - *deadline* is one attempt's, and begins when *limit* lets it go: waiting in the queue is no
//!   fault of the store.
//! - *limit* is below *retry*, so that a request that waits for its next attempt holds no place.
//! - *retry* sees the store's keys; *prefix* and *read-only* decide what the caller sees, and
//!   cost nothing below.
//! - *index* is there where attributes are kept and not listed, and asks for its own objects as
//!   everybody does.
//! - *buckets* is there when a whole store was opened: each bucket comes with the layers below.
//! - *scratch* is there when some names stay on this machine. Whoever opened the store puts it on
//!   top of the rest: nothing below it knows of those names.

mod around;
mod buckets;
mod deadline;
mod fault;
mod index;
mod limit;
mod outage;
mod prefix;
mod progress;
mod read_only;
mod renamed;
mod retry;
mod scratch;
mod stats;

pub use around::{Call, Layered, Operation, Policy};
pub use buckets::Buckets;
pub use deadline::Deadline;
pub use fault::FaultPlan;
pub use index::Index;
pub use limit::{Limit, Pace};
pub use prefix::Prefix;
pub use read_only::ReadOnly;
pub use retry::{Retry, RetryOptions};
pub use scratch::{LocalNames, Scratch};
pub use stats::{OperationStats, Stats, StatsSnapshot};

use crate::driver::{AttributeSupport, Driver, Opened, Result};
use crate::key::Key;
use std::sync::Arc;
use std::time::Duration;

/// Settings of a [`stack`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerOptions {
    /// How long a request may go without progress.
    pub deadline: Duration,
    /// How often a request that failed is sent again.
    pub retries: u32,
    /// How many requests are under way at most.
    pub concurrency: usize,
    /// The part of the bucket that is shown, behind the prefix of the URL.
    pub prefix: Key,
    /// Refuse every change.
    pub read_only: bool,
    /// Show attributes in listings, by an index in the bucket.
    pub index: bool,
    /// Let buckets of a whole store be made and removed.
    pub create_buckets: bool,
    /// Faults to inject, as [`FaultPlan::parse`] reads them.
    pub fault: Option<String>,
}

impl Default for LayerOptions {
    fn default() -> Self {
        LayerOptions {
            deadline: Duration::from_secs(30),
            retries: 7,
            concurrency: 64,
            prefix: Key::empty(),
            read_only: false,
            index: false,
            create_buckets: false,
            fault: None,
        }
    }
}

/// A store with all layers over it.
#[derive(Clone, Debug)]
pub struct Stack {
    /// The outermost layer.
    pub driver: Arc<dyn Driver>,
    /// What is sent to the store.
    pub stats: Arc<Stats>,
    /// The faults that are injected, when the options name any.
    pub fault: Option<Arc<FaultPlan>>,
    /// What bounds the requests under way.
    pub limit: Arc<Limit>,
    /// The index of attributes, if there is one. Nothing is asked or written before it begins.
    pub index: Option<Arc<Index>>,
    /// Whether the top of it shows the buckets of a store.
    pub shows_buckets: bool,
}

/// Puts the layers over an open store. Fails when the fault specification is malformed.
pub fn stack(opened: Opened, options: &LayerOptions) -> Result<Stack> {
    let mut driver = opened.driver;
    let fault = match &options.fault {
        Some(spec) => Some(Arc::new(FaultPlan::parse(spec)?)),
        None => None,
    };
    if let Some(plan) = &fault {
        driver = Layered::over(driver, plan.clone());
    }
    let stats = Arc::new(Stats::default());
    driver = Layered::over(driver, stats.clone());
    let deadline = Arc::new(Deadline::new(options.deadline));
    driver = Layered::over(driver, deadline.clone());
    let limit = Arc::new(Limit::new(options.concurrency));
    driver = Layered::over(driver, limit.clone());
    let retry = RetryOptions {
        retries: options.retries,
        patience: options.deadline,
        ..RetryOptions::default()
    };
    driver = Arc::new(Retry::over(driver, retry, &deadline));
    if opened.is_store {
        driver = Arc::new(Buckets::new(driver, options.create_buckets));
    }
    let prefix = opened.prefix.join(options.prefix.as_bytes());
    if !prefix.is_empty() {
        driver = Arc::new(Prefix::new(driver, prefix));
    }
    if options.read_only {
        driver = Arc::new(ReadOnly::new(driver));
    }
    let indexed = driver.capabilities().attributes == AttributeSupport::Object;
    let index = (options.index && indexed)
        .then(|| Index::over(driver.clone(), opened.is_store, !options.read_only));
    if let Some(index) = &index {
        driver = index.clone();
    }
    Ok(Stack {
        driver,
        index,
        stats,
        fault,
        limit,
        shows_buckets: opened.is_store,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::memory::Memory;
    use crate::driver::{ErrorKind, GetOptions, PutOptions};

    fn memory() -> (Memory, Opened) {
        let memory = Memory::new();
        let opened = Opened {
            driver: Arc::new(memory.clone()),
            prefix: "p/".into(),
            is_store: false,
        };
        (memory, opened)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stack_survives_a_bad_store() {
        let (memory, opened) = memory();
        let options = LayerOptions {
            prefix: "q/".into(),
            fault: Some("put:lost-reply@2,get:truncate=3@2,*:error=unavailable@every3".into()),
            concurrency: 1,
            ..LayerOptions::default()
        };
        let stack = stack(opened, &options).unwrap();
        for i in 0..20 {
            let key = Key::from(format!("{i}"));
            let put = stack
                .driver
                .put(&key, "hello".into(), PutOptions::default());
            put.await.unwrap();
            let got = stack.driver.get(&key, GetOptions::default()).await.unwrap();
            let (_, bytes) = got.found().unwrap().collect().await.unwrap();
            assert_eq!(bytes, "hello");
        }
        assert!(memory.head(&"p/q/7".into()).await.is_ok());
        let snapshot = stack.stats.snapshot();
        assert!(snapshot.requests() > 40, "attempts are counted one by one");
        assert!(snapshot.errors["unavailable"] > 10);
        assert_eq!(snapshot.errors["unreachable"], 1);
        assert_eq!(snapshot.in_flight, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_place_is_not_counted_against_the_deadline() {
        let (_, opened) = memory();
        let options = LayerOptions {
            deadline: Duration::from_secs(1),
            fault: Some("head:delay=900ms".into()),
            concurrency: 1,
            ..LayerOptions::default()
        };
        let stack = stack(opened, &options).unwrap();
        let key = Key::from("missing");
        let heads = (0..5).map(|_| stack.driver.head(&key));
        for outcome in futures::future::join_all(heads).await {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NotFound);
        }
    }

    #[test]
    fn a_bad_fault_specification_is_refused() {
        let (_, opened) = memory();
        let options = LayerOptions {
            fault: Some("put:explode".into()),
            ..LayerOptions::default()
        };
        let error = stack(opened, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}
