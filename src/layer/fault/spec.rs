//! The language of fault specifications, and the decision which request gets which fault.

use crate::driver::{Error, ErrorKind, Result};
use crate::layer::{Call, Operation};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Error(ErrorKind),
    LostReply,
    Hang,
    Panic,
    Truncate(u64),
    Break(u64),
    Stall(u64),
    /// Whether more is promised than comes.
    WrongLength(bool),
}

impl Fault {
    /// Whether it happens to the body of a get.
    fn of_body(&self) -> bool {
        match self {
            Fault::Truncate(_) | Fault::Break(_) | Fault::Stall(_) | Fault::WrongLength(_) => true,
            Fault::Error(_) | Fault::LostReply | Fault::Hang | Fault::Panic => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Effect {
    Delay(Duration),
    Fault(Fault),
}

impl Effect {
    fn of_body(&self) -> bool {
        matches!(self, Effect::Fault(fault) if fault.of_body())
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Which {
    All,
    Nth(u64),
    From(u64),
    Every(u64),
    Chance(f64),
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// Requests to the store, of one operation or of all.
    Store(Option<Operation>),
    /// What the kernel asks.
    Request,
    /// What it is told.
    Answer,
}

#[derive(Debug)]
struct Rule {
    subject: Subject,
    effect: Effect,
    which: Which,
    key: Option<Vec<u8>>,
    /// Requests of that operation and key so far.
    seen: u64,
}

#[derive(Debug)]
pub(super) struct Plan {
    rules: Vec<Rule>,
    random: fastrand::Rng,
    pub injected: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            rules: Vec::new(),
            random: fastrand::Rng::with_seed(0),
            injected: 0,
        }
    }
}

impl Plan {
    pub fn parse(spec: &str) -> Result<Self> {
        let mut plan = Plan::default();
        let parts = spec.split(',').map(str::trim);
        for part in parts.filter(|part| !part.is_empty()) {
            let outcome = match part.strip_prefix("seed=") {
                Some(seed) => number(seed).map(|seed| plan.random.seed(seed)),
                None => rule(part).map(|rule| plan.rules.push(rule)),
            };
            outcome.map_err(|why| {
                Error::new(
                    ErrorKind::InvalidArgument,
                    format!("in the fault specification, at {part:?}: {why}"),
                )
            })?;
        }
        Ok(plan)
    }

    /// What happens to a request to the store.
    pub fn judge(&mut self, call: &Call<'_>) -> (Duration, Option<Fault>) {
        let (mut delay, mut fault) = (Duration::ZERO, None);
        for rule in &mut self.rules {
            if !rule.concerns(call) || !rule.hits(&mut self.random) {
                continue;
            }
            match &rule.effect {
                Effect::Delay(time) => delay += *time,
                Effect::Fault(other) => {
                    fault.get_or_insert_with(|| other.clone());
                }
            }
        }
        if let Some(Fault::WrongLength(more)) = &mut fault {
            *more = self.random.bool();
        }
        self.injected += u64::from(fault.is_some() || !delay.is_zero());
        (delay, fault)
    }

    /// How late a request of the kernel of that name begins, and how late it takes in the answer.
    pub fn lateness(&mut self, name: &str) -> (Duration, Duration) {
        let (mut request, mut answer) = (Duration::ZERO, Duration::ZERO);
        for rule in &mut self.rules {
            let late = match rule.subject {
                Subject::Store(_) => continue,
                Subject::Request => &mut request,
                Subject::Answer => &mut answer,
            };
            if rule.names(name.as_bytes())
                && rule.hits(&mut self.random)
                && let Effect::Delay(time) = rule.effect
            {
                *late += time;
            }
        }
        self.injected += u64::from(!request.is_zero() || !answer.is_zero());
        (request, answer)
    }
}

impl Rule {
    /// Counts one that it is about, and says whether that one is hit.
    fn hits(&mut self, random: &mut fastrand::Rng) -> bool {
        self.seen += 1;
        match self.which {
            Which::All => true,
            Which::Nth(n) => self.seen == n,
            Which::From(n) => self.seen >= n,
            Which::Every(n) => self.seen.is_multiple_of(n),
            Which::Chance(share) => random.f64() < share,
        }
    }

    fn concerns(&self, call: &Call<'_>) -> bool {
        let body = self.effect.of_body();
        let operation = match self.subject {
            Subject::Store(Some(operation)) => operation == call.operation,
            Subject::Store(None) => !body || call.operation == Operation::Get,
            Subject::Request | Subject::Answer => false,
        };
        operation && self.names(call.key.map_or(&b""[..], |key| key.as_bytes()))
    }

    /// Whether what it names is part of a key.
    fn names(&self, key: &[u8]) -> bool {
        let within = |part: &Vec<u8>| key.windows(part.len()).any(|window| window == part);
        self.key.as_ref().is_none_or(within)
    }
}

/// The reason why a part is malformed.
type Parsed<T> = std::result::Result<T, String>;

fn rule(text: &str) -> Parsed<Rule> {
    let form = "a rule is OPERATION:FAULT[@WHICH][:key~SUBSTRING], such as put:lost-reply@3";
    let (operation, rest) = text.split_once(':').ok_or(form)?;
    let (fault, key) = match rest.split_once(':') {
        None => (rest, None),
        Some((fault, condition)) => match condition.strip_prefix("key~") {
            Some(part) if !part.is_empty() => (fault, Some(part.as_bytes().to_vec())),
            _ => return Err(format!("{condition:?} is not key~SUBSTRING")),
        },
    };
    let (fault, which) = match fault.split_once('@') {
        None => (fault, Which::All),
        Some((fault, which)) => (fault, parse_which(which)?),
    };
    let subject = parse_subject(operation)?;
    let effect = parse_effect(fault)?;
    match subject {
        Subject::Store(Some(other)) if effect.of_body() && other != Operation::Get => {
            return Err(format!("{fault:?} is for get only"));
        }
        Subject::Request | Subject::Answer if matches!(effect, Effect::Fault(_)) => {
            return Err(format!("{operation:?} takes delay=TIME, and not {fault:?}"));
        }
        Subject::Store(_) | Subject::Request | Subject::Answer => {}
    }
    Ok(Rule {
        subject,
        effect,
        which,
        key,
        seen: 0,
    })
}

fn parse_subject(text: &str) -> Parsed<Subject> {
    match text {
        "*" => return Ok(Subject::Store(None)),
        "request" => return Ok(Subject::Request),
        "answer" => return Ok(Subject::Answer),
        _ => {}
    }
    let found = Operation::ALL
        .iter()
        .find(|operation| operation.name() == text);
    let known = found.map(|operation| Subject::Store(Some(*operation)));
    known.ok_or_else(|| {
        let names: Vec<_> = Operation::ALL.iter().map(|known| known.name()).collect();
        format!(
            "{text:?} is no operation; there are *, request, answer and {}",
            names.join(", ")
        )
    })
}

fn parse_effect(text: &str) -> Parsed<Effect> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let fault = match (name, value) {
        ("delay", Some(time)) => return Ok(Effect::Delay(duration(time)?)),
        ("error", Some(kind)) => Fault::Error(error_kind(kind)?),
        ("truncate", Some(bytes)) => Fault::Truncate(number(bytes)?),
        ("break", Some(bytes)) => Fault::Break(number(bytes)?),
        ("stall", Some(bytes)) => Fault::Stall(number(bytes)?),
        ("lost-reply", None) => Fault::LostReply,
        ("hang", None) => Fault::Hang,
        ("panic", None) => Fault::Panic,
        ("wrong-length", None) => Fault::WrongLength(false),
        _ => {
            return Err(format!(
                "{text:?} is no fault; there are delay=TIME, error=KIND, lost-reply, hang, \
                 panic, truncate=BYTES, break=BYTES, stall=BYTES and wrong-length"
            ));
        }
    };
    Ok(Effect::Fault(fault))
}

fn error_kind(text: &str) -> Parsed<ErrorKind> {
    let found = ErrorKind::ALL.iter().find(|kind| kind.name() == text);
    found.copied().ok_or_else(|| {
        let names: Vec<_> = ErrorKind::ALL.iter().map(|kind| kind.name()).collect();
        format!(
            "{text:?} is no kind of error; there are {}",
            names.join(", ")
        )
    })
}

fn parse_which(text: &str) -> Parsed<Which> {
    let positive = |text: &str| match number(text) {
        Ok(0) => Err("requests are counted from 1".to_owned()),
        other => other,
    };
    if let Some(share) = text.strip_prefix('p') {
        return match share.parse::<f64>() {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(Which::Chance(share)),
            _ => Err(format!("{text:?} is not p0 to p1, such as p0.1")),
        };
    }
    if let Some(every) = text.strip_prefix("every") {
        return positive(every).map(Which::Every);
    }
    match text.strip_suffix('+') {
        Some(from) => positive(from).map(Which::From),
        None => positive(text).map(Which::Nth).map_err(|why| {
            format!("{why}; which requests is N, N+, everyN or pX, such as @3 or @p0.1")
        }),
    }
}

fn number(text: &str) -> Parsed<u64> {
    text.parse()
        .map_err(|_| format!("{text:?} is not a number"))
}

fn duration(text: &str) -> Parsed<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "us" => Duration::from_micros(1),
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        _ => {
            return Err(format!(
                "{text:?} is not a time such as 10us, 200ms, 3s or 1m"
            ));
        }
    };
    let count = number(digits)?;
    let count = u32::try_from(count).map_err(|_| format!("{text:?} is too long a time"))?;
    Ok(unit * count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::memory::Memory;
    use crate::driver::{Driver, GetOptions, PutOptions};
    use crate::key::Key;
    use crate::layer::{FaultPlan, Layered};
    use std::sync::Arc;

    fn faulty(spec: &str) -> (Memory, Arc<FaultPlan>, Arc<dyn Driver>) {
        let memory = Memory::new();
        let plan = Arc::new(FaultPlan::parse(spec).unwrap());
        let driver = Layered::over(Arc::new(memory.clone()), plan.clone());
        (memory, plan, driver)
    }

    /// Which of `count` heads of `key` fail.
    async fn failing(driver: &Arc<dyn Driver>, key: &str, count: usize) -> Vec<usize> {
        let mut failing = Vec::new();
        for i in 1..=count {
            let error = driver.head(&key.into()).await.unwrap_err();
            if error.kind() != ErrorKind::NotFound {
                failing.push(i);
            }
        }
        failing
    }

    #[tokio::test]
    async fn which_requests_fail() {
        for (spec, expected) in [
            ("head:error=io@3", vec![3]),
            ("head:error=io@4+", vec![4, 5, 6]),
            ("*:error=io@every2", vec![2, 4, 6]),
            ("head:error=io:key~cd", vec![1, 2, 3, 4, 5, 6]),
            ("head:error=io:key~x", vec![]),
            ("get:error=io", vec![]),
            ("head:error=io@p1", vec![1, 2, 3, 4, 5, 6]),
            ("head:error=io@p0", vec![]),
            ("head:error=io@1,head:error=denied@2", vec![1, 2]),
        ] {
            let (_, _, driver) = faulty(spec);
            assert_eq!(failing(&driver, "abcde", 6).await, expected, "{spec}");
        }
    }

    #[tokio::test]
    async fn chance_follows_the_seed() {
        let mut runs = Vec::new();
        for seed in [42, 42, 43] {
            let (_, _, driver) = faulty(&format!("head:error=io@p0.3,seed={seed}"));
            runs.push(failing(&driver, "k", 100).await);
        }
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0], runs[2]);
        assert!((15..45).contains(&runs[0].len()));
    }

    #[tokio::test]
    async fn a_plan_can_be_changed_while_it_runs() {
        let (memory, plan, driver) = faulty("put:lost-reply");
        let key = Key::from("k");
        let put = || driver.put(&key, "hello".into(), PutOptions::default());
        assert_eq!(put().await.unwrap_err().kind(), ErrorKind::Unreachable);
        assert!(memory.head(&key).await.is_ok(), "it was carried out");
        plan.set("put:error=no-space").unwrap();
        assert_eq!(put().await.unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(plan.injected(), 1);
        assert!(plan.set("put:error=nonsense").is_err());
        assert!(put().await.is_err(), "the plan before stays");
        plan.set("head:hang").unwrap();
        let hung = driver.head(&key);
        let end = async {
            tokio::task::yield_now().await;
            plan.clear();
        };
        let (hung, ()) = tokio::join!(hung, end);
        assert_eq!(hung.unwrap_err().kind(), ErrorKind::Unreachable);
        put().await.unwrap();
    }

    #[tokio::test]
    async fn bodies_are_cut_and_lengths_are_wrong() {
        let (_, plan, driver) = faulty("");
        let key = Key::from("k");
        let put = driver
            .put(&key, "hello".into(), PutOptions::default())
            .await;
        put.unwrap();
        for spec in ["get:truncate=2", "get:break=2", "get:wrong-length"] {
            plan.set(spec).unwrap();
            let got = driver.get(&key, GetOptions::default()).await.unwrap();
            let error = got.found().unwrap().collect().await.unwrap_err();
            let kind = match spec {
                "get:break=2" => ErrorKind::Unreachable,
                _ => ErrorKind::Corrupt,
            };
            assert_eq!(error.kind(), kind, "{spec}");
        }
    }

    #[tokio::test]
    async fn the_kernel_waits_apart_from_the_store() {
        let spec = "request:delay=1ms@2,answer:delay=2ms:key~pen,answer:delay=9ms:key~lookup,answer:delay=3ms@every2,*:error=io";
        let (_, plan, driver) = faulty(spec);
        let [one, two, five] = [1, 2, 5].map(Duration::from_millis);
        assert_eq!(plan.lateness("open"), (Duration::ZERO, two));
        assert_eq!(
            failing(&driver, "k", 2).await,
            [1, 2],
            "and are not counted there"
        );
        assert_eq!(plan.lateness("open"), (one, five));
        plan.clear();
        assert_eq!(plan.lateness("open"), (Duration::ZERO, Duration::ZERO));
        plan.set("*:delay=1s").unwrap();
        assert_eq!(plan.lateness("open"), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn bad_specifications_name_the_part_and_what_is_possible() {
        for (spec, part, hint) in [
            ("get:hang,pat:hang", "pat:hang", "head, get, put"),
            ("put", "put", "OPERATION:FAULT"),
            ("put:explode", "put:explode", "lost-reply"),
            ("put:error=bad", "error=bad", "no-space"),
            ("put:hang=3", "hang=3", "hang"),
            ("put:delay=3", "delay=3", "200ms"),
            ("put:delay=99999999999s", "99999999999s", "too long"),
            ("put:hang@0", "hang@0", "from 1"),
            ("put:hang@x", "hang@x", "everyN"),
            ("put:hang@p2", "hang@p2", "p0.1"),
            ("put:truncate=3", "truncate=3", "get only"),
            ("answer:error=io", "error=io", "delay=TIME"),
            ("request:hang", "hang", "delay=TIME"),
            ("put:hang:name~x", "name~x", "key~"),
            ("put:hang:key~", "key~", "key~SUBSTRING"),
            ("seed=x", "seed=x", "number"),
        ] {
            let error = FaultPlan::parse(spec).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            let text = error.to_string();
            assert!(text.contains(part) && text.contains(hint), "{spec}: {text}");
        }
    }
}
