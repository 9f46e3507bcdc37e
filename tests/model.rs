//! Random steps on real mounts, compared after each one with a directory in memory that does the
//! same.
//!
//! What fails names its seed and the last steps. `BUCKETFS_MODEL_SEED=...` draws the same steps
//! again, `BUCKETFS_MODEL_STEPS=...` sets how many, and with `BUCKETFS_MODEL_SHRINK=1` they are
//! tried again without those that the failure does not need. `BUCKETFS_MODEL_ARGS=...` are further
//! options of the mounts, such as `--log-level debug`.

// The attributes by which clippy knows tests are those of the standard harness.
#![allow(clippy::unwrap_used)]

#[path = "model/compare.rs"]
mod compare;
#[path = "model/faults.rs"]
mod faults;
#[path = "mount/guard.rs"]
mod guard;
#[path = "mount/harness.rs"]
#[expect(dead_code, reason = "the tests in mount.rs use the rest")]
mod harness;
#[path = "model/operation.rs"]
mod operation;
#[path = "model/perform.rs"]
mod perform;
#[path = "model/run.rs"]
mod run;
#[path = "model/store.rs"]
mod store;

use harness::{Manner, Need, PYTHON, Place, Variable, trial_as};
use libtest_mimic::{Arguments, Trial};
use operation::{Operation, Style};
use run::Steps;
use std::collections::VecDeque;
use std::time::Duration;
use store::Store;

/// Where the S3 server is that tests may use.
const ENDPOINT: &str = "BUCKETFS_TEST_S3_ENDPOINT";

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(3));
    let server = [PYTHON, Variable(ENDPOINT)];
    let trials = vec![
        model(&[PYTHON], "model::memory", "memory:", false),
        model(&[PYTHON], "model::file", "file:", false),
        model(&server, "model::minio", "s3:", false),
        model(&[PYTHON], "model::file_with_faults", "file:", true),
        model(&server, "model::minio_with_faults", "s3:", true),
    ];
    let conclusion = libtest_mimic::run(&arguments, trials);
    guard::finish();
    conclusion.exit()
}

/// The settings that the steps are spread over.
const SETTINGS: [&[&str]; 4] = [
    &[],
    &["--metadata-ttl", "minimal"],
    &["--exclusive-create", "always", "--memory", "1M"],
    &["--consistency", "ttl", "--metadata-ttl", "1h"],
];

fn model(needs: &[Need], name: &str, url: &'static str, faulty: bool) -> Trial {
    let manner = Manner {
        patience: Duration::from_secs(600),
        ..Manner::default()
    };
    trial_as(manner, needs, name, move |place| {
        let from_env = |name| {
            let text = std::env::var(name).ok()?;
            Some(text.parse::<u64>().expect("a number"))
        };
        let usual = if faulty { 4_000 } else { 20_000 };
        let steps = from_env("BUCKETFS_MODEL_STEPS").unwrap_or(usual) as usize;
        match from_env("BUCKETFS_MODEL_SEED") {
            Some(seed) => drawn(place, url, seed, steps / SETTINGS.len(), faulty),
            None => {
                let first = fastrand::u32(..) / 4 * 4;
                for seed in 0..SETTINGS.len() as u64 {
                    let seed = u64::from(first) + seed;
                    drawn(place, url, seed, steps / SETTINGS.len(), faulty);
                }
            }
        }
    })
}

/// The steps of a seed, with the settings of that seed.
fn drawn(place: &Place, url: &str, seed: u64, count: usize, faulty: bool) {
    let settings = SETTINGS[seed as usize % SETTINGS.len()];
    let style = Style {
        traceable: faulty,
        renames: !faulty || url != "s3:" || seed % 2 == 1,
        remount: (url != "memory:").then_some(1_200),
        syncs: if url == "s3:" { 3 } else { 10 },
    };
    let attempt = |number: usize, steps: Steps| {
        let name = format!("{seed}-{number}");
        let faults = if faulty { faults_of(seed) } else { Vec::new() };
        let (url, reach) = location(place, url, &name);
        let reach: Vec<&str> = reach.iter().map(String::as_str).collect();
        let more = std::env::var("BUCKETFS_MODEL_ARGS").unwrap_or_default();
        let more: Vec<&str> = more.split_whitespace().collect();
        let args = [settings, &reach, &more].concat();
        let store = Store::new(place, &url, &name, &args, faults);
        run::run(place, &store, steps, style)
    };
    let (failure, steps) = match attempt(0, Steps::Drawn(seed, count)) {
        Ok(failed) => {
            let seen = faulty && seed.is_multiple_of(2) && count >= 500;
            assert!(!seen || failed > 0, "no fault was seen");
            return;
        }
        Err(failed) => failed,
    };
    let mut text = format!("seed {seed}, {settings:?}:\n{failure}");
    if std::env::var_os("BUCKETFS_MODEL_SHRINK").is_some() {
        let (failure, steps) = shrink(failure, steps, attempt);
        text += &format!(
            "\n\nshrunk to {} steps:\n{failure}\n{steps:#?}",
            steps.len()
        );
    }
    panic!("{text}");
}

/// Leaves steps out while it goes on failing.
fn shrink(
    mut failure: String,
    mut steps: Vec<Operation>,
    attempt: impl Fn(usize, Steps) -> Result<usize, (String, Vec<Operation>)>,
) -> (String, Vec<Operation>) {
    let mut number = 0;
    let mut piece = steps.len() / 2;
    while piece > 0 && number < 150 {
        let mut at = 0;
        while at < steps.len() && number < 150 {
            number += 1;
            let mut fewer: VecDeque<Operation> = steps.iter().cloned().collect();
            fewer.drain(at..(at + piece).min(steps.len()));
            match attempt(number, Steps::Given(fewer)) {
                Ok(_) => at += piece,
                Err((again, led)) => (failure, steps) = (again, led),
            }
        }
        piece /= 2;
    }
    (failure, steps)
}

/// A fresh store, and what the mount needs to reach it.
fn location(place: &Place, url: &str, name: &str) -> (String, Vec<String>) {
    match url {
        "memory:" => (url.into(), Vec::new()),
        "file:" => {
            let dir = place.path(&format!("store-{name}"));
            std::fs::create_dir(&dir).unwrap();
            (format!("file://{}", dir.display()), Vec::new())
        }
        _ => {
            let endpoint = std::env::var(ENDPOINT).unwrap();
            let bucket = fresh_bucket(&endpoint);
            let reach = [
                "--endpoint-url",
                &endpoint,
                "--force-path-style",
                "--region",
                "us-east-1",
            ];
            (format!("s3://{bucket}"), reach.map(str::to_owned).to_vec())
        }
    }
}

fn fresh_bucket(endpoint: &str) -> String {
    use bucketfs::driver::OpenOptions;
    use bucketfs::driver::s3::Account;
    let options = OpenOptions {
        endpoint_url: Some(endpoint.to_owned()),
        region: Some("us-east-1".into()),
        ..OpenOptions::default()
    };
    let name = format!("bucketfs-model-{:016x}", bucketfs::clock::random());
    let made = async {
        let account = Account::configure(&options, None).await?;
        account.create_bucket(&name).await
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(made).unwrap();
    name
}

/// Requests that fail, are late, lose their answer or bring too little of it. Half of the seeds
/// see each failure; there only puts lose answers, for what else was carried out then can make the
/// loser of a race of what the program does next. The other half has them all and tries again.
fn faults_of(seed: u64) -> Vec<String> {
    let usual = [
        "*:delay=3ms@p0.05",
        "put:lost-reply@p0.04",
        "get:truncate=100@p0.03",
        "get:break=1000@p0.03",
        "get:wrong-length@p0.02",
        "list:error=timeout@p0.02",
    ];
    let failing = [
        "put:error=no-space@p0.01",
        "put:error=unavailable@p0.04",
        "get:error=unreachable@p0.03",
        "head:error=unavailable@p0.02",
        "delete:error=unavailable@p0.02",
        "copy:error=unavailable@p0.03",
        "rename:error=unavailable@p0.03",
        "set_attributes:error=unavailable@p0.03",
    ];
    let losing = [
        "put:error=unavailable@p0.04",
        "head:lost-reply@p0.02",
        "delete:lost-reply@p0.05",
        "copy:lost-reply@p0.05",
        "rename:lost-reply@p0.05",
        "exchange:lost-reply@p0.05",
        "set_attributes:error=unavailable@p0.05",
    ];
    let (more, retries): (&[&str], _) = match seed % 2 {
        0 => (&failing, "0"),
        _ => (&losing, "4"),
    };
    let rules = [&usual, more].concat().join(",");
    let faults = format!("{rules},seed={seed}");
    ["--fault", &faults, "--retries", retries, "--deadline", "3s"]
        .map(str::to_owned)
        .to_vec()
}
