//! Stores that are made of stores, with parts that fail.

use crate::fixture::{Fixture, Skipped, Store};
use crate::stores::open;
use bucketfs::driver::memory::Memory;
use bucketfs::driver::mirror::Mirror;
use bucketfs::driver::tier::Tier;
use bucketfs::driver::{Driver, Error, OpenOptions};
use bucketfs::layer::{FaultPlan, Layered, Retry, RetryOptions};
use std::sync::Arc;

/// A store that is made of folders, as a URL names it.
pub fn composed(scheme: &'static str) -> Store {
    Store::new(scheme, move || async move {
        let folder = tempfile::tempdir()?;
        let parts = ["a", "b"].map(|name| {
            let part = folder.path().join(name);
            std::fs::create_dir(&part).unwrap();
            format!("file://{}", part.display())
        });
        let url = format!("{scheme}:{},{}", parts[0], parts[1]);
        let options = OpenOptions::default();
        Ok(Fixture {
            a: open(&url, &options).await?,
            b: open(&url, &options).await?,
            url: Some(url),
            secrets: Vec::new(),
            skipped: Skipped::default(),
            _keep: Box::new(folder),
        })
    })
}

/// What a part does that is away now and then, or always.
const AWAY: [(&str, &str); 3] = [
    ("", "seed=1"),
    (
        "flaky ",
        "get:break=1@every3,get:error=unreachable@every4,head:error=unavailable@every3,\
         put:error=unavailable@every3,put:lost-reply@every5,delete:lost-reply@every3,list:error=timeout@every3,\
         copy:error=unavailable@every2,set_attributes:lost-reply@every2,seed=3",
    ),
    ("dead ", "*:error=unreachable"),
];

/// Stores that are made of two, each also with the part that may fail failing. A primary, and a
/// slow store, are the store's own word, so that only what is read of it may fail.
pub fn mixtures() -> Vec<Store> {
    let mut all = Vec::new();
    for (scheme, other) in [
        ("mirror", "memory"),
        ("mirror", "file"),
        ("tier", "memory"),
        ("tier", "file"),
    ] {
        for (how, spec) in AWAY {
            let name = match scheme {
                "mirror" => format!("mirror(memory, {how}{other})"),
                _ => format!("tier({how}{other}, memory)"),
            };
            all.push(mixture(&name, scheme, other, [None, Some(spec)]));
        }
    }
    let reads =
        "get:error=unavailable@every3,head:error=unreachable@every4,list:error=unavailable@every3";
    let name = "mirror(flaky memory, memory)";
    all.push(mixture(name, "mirror", "memory", [Some(reads), None]));
    all
}

/// Two clients of memory that says what there is and of another store with copies.
fn mixture(
    name: &str,
    scheme: &'static str,
    other: &'static str,
    faults: [Option<&'static str>; 2],
) -> Store {
    Store::new(name, move || async move {
        let memory = Memory::new();
        let folder = tempfile::tempdir()?;
        let url = format!("file://{}", folder.path().display());
        let copies = Memory::new();
        let client = async || {
            let truth: Arc<dyn Driver> = Arc::new(memory.clone());
            let copies = match other {
                "file" => open(&url, &OpenOptions::default()).await?,
                _ => Arc::new(copies.clone()) as Arc<dyn Driver>,
            };
            let under = |driver, spec: Option<&str>| match spec {
                Some(spec) => Layered::over(driver, Arc::new(FaultPlan::parse(spec).unwrap())),
                None => driver,
            };
            let (truth, copies) = (under(truth, faults[0]), under(copies, faults[1]));
            let whole: Arc<dyn Driver> = match scheme {
                "mirror" => Arc::new(Mirror::new(vec![truth, copies], None)?),
                _ => Arc::new(Tier::new(copies, truth)?),
            };
            // A mount asks again where the store's own word fails.
            Ok::<Arc<dyn Driver>, Error>(match faults[0] {
                Some(_) => Arc::new(Retry::new(whole, RetryOptions::default())),
                None => whole,
            })
        };
        Ok(Fixture {
            a: client().await?,
            b: client().await?,
            url: None,
            secrets: Vec::new(),
            skipped: Skipped::default(),
            _keep: Box::new(folder),
        })
    })
}
