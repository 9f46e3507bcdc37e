//! Counts what is sent to a store.

use crate::clock::{self, Instant};
use crate::driver::{Error, ErrorKind, GetOutcome, Result};
use crate::layer::{Call, Operation, Policy};
use futures::StreamExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets of a latency histogram: bucket `i` holds what took less than 2^i microseconds and did
/// not fit the one before; the last holds everything above 18 minutes too.
const BUCKETS: usize = 31;

/// A policy that counts requests, errors, bytes and time. It takes no lock.
#[derive(Debug)]
pub struct Stats {
    operations: [Counters; Operation::ALL.len()],
    errors: [AtomicU64; ErrorKind::ALL.len()],
    in_flight: AtomicU64,
}

impl Default for Stats {
    fn default() -> Self {
        Stats {
            operations: std::array::from_fn(|_| Counters::default()),
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
            in_flight: AtomicU64::new(0),
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    count: AtomicU64,
    errors: AtomicU64,
    cancelled: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    latency: [AtomicU64; BUCKETS],
}

impl Stats {
    /// The numbers of this moment. Each is exact; requests that go on meanwhile may be in some of
    /// them and not in others.
    pub fn snapshot(&self) -> StatsSnapshot {
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        let operations = Operation::ALL.iter().zip(&self.operations);
        let errors = ErrorKind::ALL.iter().zip(&self.errors);
        StatsSnapshot {
            operations: operations
                .filter(|(_, counters)| load(&counters.count) > 0)
                .map(|(operation, counters)| {
                    let stats = OperationStats {
                        count: load(&counters.count),
                        errors: load(&counters.errors),
                        cancelled: load(&counters.cancelled),
                        sent: load(&counters.sent),
                        received: load(&counters.received),
                        latency: counters.latency.iter().map(load).collect(),
                    };
                    (operation.name().to_owned(), stats)
                })
                .collect(),
            errors: errors
                .filter(|(_, count)| load(count) > 0)
                .map(|(kind, count)| (kind.name().to_owned(), load(count)))
                .collect(),
            in_flight: load(&self.in_flight),
        }
    }

    fn begin(self: &Arc<Self>, call: &Call<'_>) -> Running {
        let counters = &self.operations[call.operation as usize];
        counters.count.fetch_add(1, Relaxed);
        counters.sent.fetch_add(call.sent, Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
        Running {
            stats: self.clone(),
            operation: call.operation,
            begin: clock::now(),
            ended: false,
        }
    }
}

/// A request under way; dropping it before it has ended counts it as cancelled.
struct Running {
    stats: Arc<Stats>,
    operation: Operation,
    begin: Instant,
    ended: bool,
}

impl Running {
    fn counters(&self) -> &Counters {
        &self.stats.operations[self.operation as usize]
    }

    /// The store has answered.
    fn answered(&mut self, error: Option<&Error>) {
        let micros = self.begin.elapsed().as_micros() as u64;
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        self.counters().latency[bucket.min(BUCKETS - 1)].fetch_add(1, Relaxed);
        self.ended = true;
        if let Some(error) = error {
            self.failed(error);
        }
    }

    fn failed(&self, error: &Error) {
        self.counters().errors.fetch_add(1, Relaxed);
        self.stats.errors[error.kind() as usize].fetch_add(1, Relaxed);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stats.in_flight.fetch_sub(1, Relaxed);
        if !self.ended {
            self.counters().cancelled.fetch_add(1, Relaxed);
        }
    }
}

impl Policy for Stats {
    async fn request<'a, T: Send + 'a>(
        self: &'a Arc<Self>,
        call: &'a Call<'_>,
        request: BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        let mut running = self.begin(call);
        let result = request.await;
        running.answered(result.as_ref().err());
        result
    }

    /// The latency of a get is that of its answer; it is in flight until its body is read.
    async fn get<'a>(
        self: &'a Arc<Self>,
        call: &'a Call<'_>,
        request: BoxFuture<'a, Result<GetOutcome>>,
    ) -> Result<GetOutcome> {
        let mut running = self.begin(call);
        let result = request.await;
        running.answered(result.as_ref().err());
        let outcome = result?;
        let GetOutcome::Found(mut object) = outcome else {
            return Ok(outcome);
        };
        let body = object.body.inspect(move |piece| match piece {
            Ok(bytes) => {
                let received = &running.counters().received;
                received.fetch_add(bytes.len() as u64, Relaxed);
            }
            Err(error) => running.failed(error),
        });
        object.body = body.boxed();
        Ok(GetOutcome::Found(object))
    }
}

/// What [`Stats`] knew at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsSnapshot {
    /// The operations that were asked for, by their names in the contract.
    pub operations: BTreeMap<String, OperationStats>,
    /// How many requests, and bodies of gets, failed with an error of each kind.
    pub errors: BTreeMap<String, u64>,
    /// Requests under way.
    pub in_flight: u64,
}

impl StatsSnapshot {
    /// How many requests were begun.
    pub fn requests(&self) -> u64 {
        self.operations.values().map(|stats| stats.count).sum()
    }

    /// How many requests of one operation were begun.
    pub fn count(&self, operation: Operation) -> u64 {
        let stats = self.operations.get(operation.name());
        stats.map_or(0, |stats| stats.count)
    }

    /// Bytes of bodies sent.
    pub fn sent(&self) -> u64 {
        self.operations.values().map(|stats| stats.sent).sum()
    }

    /// Bytes of bodies received.
    pub fn received(&self) -> u64 {
        self.operations.values().map(|stats| stats.received).sum()
    }
}

/// The numbers of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationStats {
    /// Requests begun.
    pub count: u64,
    /// Requests that failed, and bodies that broke off.
    pub errors: u64,
    /// Requests that nobody waited for any more, such as those past their deadline.
    pub cancelled: u64,
    /// Bytes of bodies sent with requests; those of a request that failed count in full.
    pub sent: u64,
    /// Bytes of bodies received.
    pub received: u64,
    /// How many answers took less than 2^i microseconds and at least half of that.
    pub latency: Vec<u64>,
}

impl OperationStats {
    /// The time within which half of all answers came, as the upper edge of its bucket.
    pub fn p50(&self) -> Option<Duration> {
        self.quantile(0.50)
    }

    /// The time within which all but a hundredth of the answers came.
    pub fn p99(&self) -> Option<Duration> {
        self.quantile(0.99)
    }

    /// The time within which this share of the answers came; `None` when there were none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let all: u64 = self.latency.iter().sum();
        let wanted = ((all as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = self.latency.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(Duration::from_micros(1 << bucket.min(63)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::memory::Memory;
    use crate::driver::{GetOptions, PutOptions};
    use crate::layer::{FaultPlan, Layered};

    #[tokio::test(start_paused = true)]
    async fn requests_bytes_errors_and_time_are_counted() {
        let stats = Arc::new(Stats::default());
        let plan = Arc::new(FaultPlan::parse("head:delay=100ms,list:hang").unwrap());
        let slow = Layered::over(Arc::new(Memory::new()), plan);
        let driver = Layered::over(slow, stats.clone());
        let key = "k".into();
        let put = driver
            .put(&key, "hello".into(), PutOptions::default())
            .await;
        put.unwrap();
        let object = driver.get(&key, GetOptions::default()).await.unwrap();
        let object = object.found().unwrap();
        assert_eq!(stats.snapshot().in_flight, 1);
        object.collect().await.unwrap();
        driver.head(&key).await.unwrap();
        driver.head(&"missing".into()).await.unwrap_err();
        let list = driver.list(crate::driver::ListRequest::flat(&key));
        let second = Duration::from_secs(1);
        tokio::time::timeout(second, list).await.unwrap_err();
        let snapshot = stats.snapshot();
        assert_eq!((snapshot.requests(), snapshot.in_flight), (5, 0));
        assert_eq!((snapshot.sent(), snapshot.received()), (5, 5));
        assert_eq!(snapshot.errors["not-found"], 1);
        assert_eq!(snapshot.operations["list"].cancelled, 1);
        let heads = &snapshot.operations["head"];
        assert_eq!((heads.count, heads.errors, heads.cancelled), (2, 1, 0));
        let edge = Duration::from_micros(1 << 17);
        assert_eq!((heads.p50(), heads.p99()), (Some(edge), Some(edge)));
        assert_eq!(snapshot.count(Operation::Delete), 0);
        let text = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(
            serde_json::from_str::<StatsSnapshot>(&text).unwrap(),
            snapshot
        );
    }
}
