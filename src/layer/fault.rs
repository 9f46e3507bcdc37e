//! Faults on order: a store that is slow, silent, lying or gone, for tests and for trying out.

mod spec;

use crate::driver::{Error, ErrorKind, GetOutcome, Object, Result};
use crate::layer::{Call, Policy};
use futures::StreamExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use spec::{Fault, Plan};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A policy that makes requests fail as a plan says. The plan can be changed at any time.
///
/// A specification is a list of rules, separated by commas, each of the form
/// `OPERATION:FAULT[@WHICH][:key~SUBSTRING]`, and at most one `seed=NUMBER`.
/// - `OPERATION` is a name of the contract (`get`, `put`, `list`, `part`, ...), or `*` for all of
///   these. With delays only it may also be `request`, for requests of the kernel, which are looked
///   at later; and `answer`, for what it is told, which it takes in later: as if whoever waits for
///   it were not given a processor. What they are called, such as `lookup`, stands for the key.
/// - `FAULT` is
///   - `delay=TIME`: the request begins later, by `10us`, `200ms`, `3s` or `1m`;
///   - `error=KIND`: it fails before it is sent, with an error such as `unavailable`;
///   - `lost-reply`: it is carried out, and fails with `unreachable`;
///   - `panic`: the code that asked for it panics;
///   - `hang`: it is not answered until the plan changes, and then fails with `unreachable`;
///   - for gets only: `truncate=BYTES`, `break=BYTES` and `stall=BYTES`: the body ends, fails or
///     falls silent after so many bytes; `wrong-length`: the answer promises a byte more or less
///     than it brings.
/// - `WHICH` is `N` (the Nth request of that operation and key, from 1), `N+` (the Nth and all
///   behind it), `everyN` or `pX` (each with probability X); all when left out.
///
/// Where several rules meet, their delays add up and the first of the other faults happens.
#[derive(Debug)]
pub struct FaultPlan {
    plan: Mutex<Plan>,
    /// Wakes those that hang when the plan changes.
    changed: watch::Sender<()>,
}

impl FaultPlan {
    /// Reads a specification.
    pub fn parse(spec: &str) -> Result<Self> {
        Ok(FaultPlan {
            plan: Mutex::new(Plan::parse(spec)?),
            changed: watch::Sender::new(()),
        })
    }

    /// A plan without faults, for one that is set later.
    pub fn none() -> Self {
        FaultPlan {
            plan: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Replaces the plan; requests are counted anew. A malformed one changes nothing.
    pub fn set(&self, spec: &str) -> Result<()> {
        *self.plan.lock() = Plan::parse(spec)?;
        self.changed.send_replace(());
        Ok(())
    }

    /// Ends all faults.
    pub fn clear(&self) {
        *self.plan.lock() = Plan::default();
        self.changed.send_replace(());
    }

    /// How many faults happened since the plan was set.
    pub fn injected(&self) -> u64 {
        self.plan.lock().injected
    }

    /// How late a request of the kernel of that name begins, and how late it takes in the answer.
    pub fn lateness(&self, name: &str) -> (Duration, Duration) {
        self.plan.lock().lateness(name)
    }

    async fn run<T>(
        &self,
        call: &Call<'_>,
        request: BoxFuture<'_, Result<T>>,
    ) -> (Option<Fault>, Result<T>) {
        // From before the decision, so that a plan that ends meanwhile is seen.
        let mut changed = self.changed.subscribe();
        let (delay, fault) = self.plan.lock().judge(call);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let fail = |kind, message: &str| {
            let error = Error::new(kind, format!("injected fault: {message}"))
                .during(call.operation.name());
            Err(match call.key {
                Some(key) => error.on(key),
                None => error,
            })
        };
        let result = match &fault {
            Some(Fault::Error(kind)) => fail(*kind, "the request was not sent"),
            Some(Fault::Hang) => {
                // An error says that the plan is gone, which ends the silence as well.
                let _ = changed.changed().await;
                fail(ErrorKind::Unreachable, "there was no answer")
            }
            Some(Fault::Panic) => panic!("injected fault: {}", call.operation.name()),
            Some(Fault::LostReply) => {
                let _ = request.await;
                fail(ErrorKind::Unreachable, "the reply was lost")
            }
            Some(
                Fault::Truncate(_) | Fault::Break(_) | Fault::Stall(_) | Fault::WrongLength(_),
            )
            | None => request.await,
        };
        (fault, result)
    }
}

impl Policy for FaultPlan {
    async fn request<'a, T: Send + 'a>(
        self: &'a Arc<Self>,
        call: &'a Call<'_>,
        request: BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        self.run(call, request).await.1
    }

    async fn get<'a>(
        self: &'a Arc<Self>,
        call: &'a Call<'_>,
        request: BoxFuture<'a, Result<GetOutcome>>,
    ) -> Result<GetOutcome> {
        let (fault, result) = self.run(call, request).await;
        let outcome = result?;
        let GetOutcome::Found(mut object) = outcome else {
            return Ok(outcome);
        };
        match fault {
            Some(Fault::Truncate(bytes)) => cut(&mut object, bytes, End::Ends),
            Some(Fault::Break(bytes)) => cut(&mut object, bytes, End::Fails),
            Some(Fault::Stall(bytes)) => cut(&mut object, bytes, End::Stalls),
            Some(Fault::WrongLength(more)) => {
                let shift = |length: u64| if more { length + 1 } else { length.max(1) - 1 };
                object.info.size = object.info.size.map(shift);
                object.range.end = shift(object.range.end).max(object.range.start);
            }
            Some(Fault::Error(_) | Fault::Hang | Fault::LostReply | Fault::Panic) | None => {}
        }
        Ok(GetOutcome::Found(object))
    }
}

#[derive(Clone, Copy)]
enum End {
    Ends,
    Fails,
    Stalls,
}

/// Lets a body end after so many bytes; one that is shorter is whole.
fn cut(object: &mut Object, bytes: u64, end: End) {
    if bytes >= object.range.end - object.range.start {
        return;
    }
    let body = std::mem::replace(&mut object.body, futures::stream::empty().boxed());
    let cut = futures::stream::unfold((body, bytes), move |(mut body, left)| async move {
        let piece = match left {
            0 => None,
            _ => body.next().await,
        };
        match (piece, end) {
            (Some(Ok(piece)), _) => {
                let piece = piece.slice(..piece.len().min(left as usize));
                let left = left - piece.len() as u64;
                Some((Ok(piece), (body, left)))
            }
            (Some(Err(error)), _) => Some((Err(error), (body, left))),
            (None, End::Ends) => None,
            (None, End::Fails) => {
                let error = Error::new(
                    ErrorKind::Unreachable,
                    "injected fault: the connection broke",
                );
                Some((Err(error.during("get")), (body, 0)))
            }
            (None, End::Stalls) => futures::future::pending().await,
        }
    });
    object.body = cut.boxed();
}
