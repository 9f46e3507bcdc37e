//! One seed: a store of some character, its mounts, what their processes do, and what is left in
//! the end.

use crate::broken::Break;
use crate::character::Character;
use crate::check;
use crate::history::{History, Op};
use crate::mount::Mount;
use crate::process::Process;
use crate::store::{Mutation, Store, Told};
use bucketfs::clock;
use bucketfs::fs::{Consistency, StagingRoom};
use fastrand::Rng;
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What a seed's world went through.
pub struct Report {
    pub seed: u64,
    pub character: Character,
    pub ops: Vec<Op>,
    pub log: Vec<Mutation>,
    pub told: Vec<Told>,
    /// What the state directories hold.
    pub kept: Vec<Vec<u8>>,
    /// Mounts that died, and when.
    pub died: BTreeMap<usize, u64>,
    pub violations: Vec<String>,
}

impl Report {
    /// The same for the same history only.
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.ops.hash(&mut hasher);
        for mutation in &self.log {
            let Mutation {
                at,
                by,
                how,
                key,
                before,
                after,
                commits,
            } = mutation;
            (at, by, how, key.as_bytes(), before, after, commits).hash(&mut hasher);
        }
        self.told.len().hash(&mut hasher);
        self.violations.hash(&mut hasher);
        hasher.finish()
    }

    /// The seed, the store's character, the last events of the history, what is wrong, and how to
    /// see it again.
    pub fn tell(&self, last: usize) -> String {
        let mut text = format!("seed {}\n{:#?}\n", self.seed, self.character);
        let mut events: Vec<(u64, String)> = Vec::new();
        for op in &self.ops {
            events.push((op.begin, format!("{op}")));
        }
        for mutation in &self.log {
            let content = |bytes: &Option<bytes::Bytes>| match bytes {
                Some(bytes) => crate::history::show(bytes),
                None => "nothing".into(),
            };
            let line = format!(
                "{:>9} store: {} by {} of {:?}: {} -> {}, commits {}",
                mutation.at,
                mutation.how,
                mutation.by,
                mutation.key,
                content(&mutation.before),
                content(&mutation.after),
                mutation
                    .commits
                    .iter()
                    .map(|id| format!("{:04x}", id.0 >> 48))
                    .collect::<Vec<_>>()
                    .join(" ")
            );
            events.push((mutation.at, line));
        }
        // Where all is told, also what the mounts learned.
        for told in self.told.iter().filter(|_| last == usize::MAX) {
            let content = told.bytes.as_deref().map(crate::history::show);
            let line = format!(
                "{:>9} mount {} hears of {:?}: {content:?}",
                told.at, told.to, told.key
            );
            events.push((told.at, line));
        }
        events.sort_by_key(|event| event.0);
        for (_, event) in &events[events.len().saturating_sub(last)..] {
            let _ = writeln!(text, "{event}");
        }
        for violation in &self.violations {
            let _ = writeln!(text, "WRONG: {violation}");
        }
        let _ = writeln!(
            text,
            "again: BUCKETFS_SIM_SEED={} cargo test --test sim seeds -- --nocapture",
            self.seed
        );
        text
    }
}

/// How many operations a world does, about.
const STEPS: usize = 80;

/// Runs a seed's world, with a driver that may be broken.
pub fn run(seed: u64, broken: Option<Break>) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let home = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        clock::simulate(seed);
        let report = live(seed, broken, home.path());
        match tokio::time::timeout(Duration::from_secs(100_000), report).await {
            Ok(report) => report,
            Err(_) => panic!("seed {seed} hangs"),
        }
    })
}

async fn live(seed: u64, broken: Option<Break>, home: &Path) -> Report {
    let mut random = Rng::with_seed(seed);
    let mut character = Character::of(&mut random);
    if seed % 8 == 5 {
        character.consistency = Consistency::Ttl;
    }
    if broken == Some(Break::TornRead) {
        // What is read with one request is never torn.
        character.long = 60;
    }
    let store = Store::new(character.clone(), random.u64(..));
    let history = History::default();
    let workers = character.mounts * character.processes;
    let steps = STEPS / workers;
    let mut seats = Vec::new();
    for seat in 0..character.mounts {
        seats.push(Seat {
            store: store.clone(),
            history: history.clone(),
            random: random.fork(),
            home: home.join(format!("{seat}")),
            number: seat,
            steps,
            broken,
            retries: [0, 2, 7][random.usize(..3)],
            dies: character.crashes && random.bool(),
        });
    }
    let mut violations = Vec::new();
    let homes: Vec<PathBuf> = seats.iter().map(|seat| seat.home.clone()).collect();
    let lives = join_all(seats.into_iter().map(Seat::live)).await;
    store.behave();
    // What is still on its way arrives.
    tokio::time::sleep(Duration::from_secs(70)).await;
    let mut died = BTreeMap::new();
    let mut mounts = Vec::new();
    for life in lives {
        died.extend(life.died);
        mounts.push(life.mount);
    }
    // What a mount has no room to put together stays unsent, and was told ENOSPC.
    let limited = matches!(character.room, StagingRoom::Limited { .. });
    let mut left = Vec::new();
    for mount in mounts {
        let drained = mount.fs.drain(Duration::from_secs(60)).await;
        let mut roomless = BTreeSet::new();
        for unsent in drained.unsent {
            if limited && unsent.reason.starts_with("ENOSPC") {
                roomless.insert(unsent.path);
                continue;
            }
            violations.push(format!(
                "mount {}: a store without faults does not take {unsent:?}",
                mount.number
            ));
        }
        left.push((mount, roomless));
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    check::trees(&store, &left, &mut violations).await;
    let mut kept = Vec::new();
    for home in homes {
        let Ok(files) = std::fs::read_dir(home.join("state/unsent")) else {
            continue;
        };
        for file in files {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "json") {
                kept.push(std::fs::read(path).unwrap());
            }
        }
    }
    kept.sort();
    let state = store.0.lock();
    let mut report = Report {
        seed,
        character,
        ops: history.ops(),
        log: state.log.clone(),
        told: state.told.clone(),
        kept,
        died,
        violations,
    };
    drop(state);
    let found = check::history(&report);
    report.violations.extend(found);
    report
}

/// A place for a mount, which may die and have a successor.
struct Seat {
    store: Store,
    history: History,
    random: Rng,
    home: PathBuf,
    number: usize,
    steps: usize,
    broken: Option<Break>,
    retries: u32,
    dies: bool,
}

struct Life {
    mount: Arc<Mount>,
    died: Vec<(usize, u64)>,
}

impl Seat {
    fn mount(&self, number: usize) -> Arc<Mount> {
        let mount = Mount::new(&self.store, number, &self.home, self.retries, self.broken);
        Arc::new(mount)
    }

    async fn live(mut self) -> Life {
        let mut mount = self.mount(self.number);
        let mut died = Vec::new();
        if self.dies {
            let steps = self.steps / 2;
            let processes = self.processes(&mount, steps);
            let patience = Duration::from_millis(self.random.u64(0..8_000));
            tokio::time::sleep(patience).await;
            died.push((mount.number, self.store.now()));
            self.store.0.lock().dead.insert(mount.number);
            for process in &processes {
                process.abort();
            }
            join_all(processes).await;
            // Nothing but the processes and this held it: from here on it does nothing.
            drop(mount);
            tokio::time::sleep(Duration::from_millis(self.random.u64(0..3_000))).await;
            mount = self.mount(self.number + 100);
            self.steps -= steps;
        }
        let processes = self.processes(&mount, self.steps);
        for ended in join_all(processes).await {
            ended.unwrap();
        }
        Life { mount, died }
    }

    fn processes(&mut self, mount: &Arc<Mount>, steps: usize) -> Vec<tokio::task::JoinHandle<()>> {
        let (count, long) = {
            let character = &self.store.0.lock().character;
            (character.processes, character.long)
        };
        (0..count)
            .map(|number| {
                let mut process = Process {
                    mount: mount.clone(),
                    number,
                    store: self.store.clone(),
                    history: self.history.clone(),
                    random: self.random.fork(),
                    locked: false,
                    long,
                };
                tokio::spawn(async move {
                    for _ in 0..steps {
                        process.step().await;
                    }
                })
            })
            .collect()
    }
}
