//! Renames of directories on S3, one of whose mounts is killed, or in which others write.

use crate::buckets::{SERVER, account, fresh, wait};
use crate::guard::kill;
use crate::harness::{Manner, Mount, Place, eventually, long, trial_as};
use bucketfs::driver::{Body, Driver, GetOptions, ListRequest, PutOptions};
use bucketfs::key::Key;
use futures::StreamExt;
use libtest_mimic::Trial;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

pub fn trials() -> Vec<Trial> {
    let patient = Manner {
        patience: Duration::from_secs(if long() { 600 } else { 120 }),
        ..Manner::default()
    };
    vec![
        trial_as(
            patient,
            &[SERVER],
            "renames::a_mount_killed_while_it_renames_a_directory_loses_nothing",
            a_mount_killed_while_it_renames_a_directory_loses_nothing,
        ),
        trial_as(
            patient,
            &[SERVER],
            "renames::what_another_mount_writes_into_a_moving_directory_is_not_lost",
            what_another_mount_writes_into_a_moving_directory_is_not_lost,
        ),
        trial_as(
            patient,
            &[SERVER],
            "renames::of_two_mounts_that_rename_the_same_one_wins",
            of_two_mounts_that_rename_the_same_one_wins,
        ),
    ]
}

/// How many files are renamed.
const FILES: usize = 1000;

/// A fresh bucket.
struct Bucket {
    name: String,
    driver: Arc<dyn Driver>,
}

impl Bucket {
    fn new() -> Bucket {
        let name = fresh("mv");
        Bucket {
            driver: wait(account().bucket(&name)).unwrap(),
            name,
        }
    }

    fn fill(&self, directory: &str, count: usize) {
        let put = |number: usize| async move {
            let key = Key::from(format!("{directory}/{}", name(number)));
            let body = Body::from(text(number).into_bytes());
            let put = self.driver.put(&key, body, PutOptions::default());
            put.await.unwrap();
        };
        let puts = futures::stream::iter(0..count).map(put);
        wait(puts.buffer_unordered(32).collect::<()>());
    }

    /// All keys with their bytes.
    fn all(&self) -> BTreeMap<String, String> {
        wait(async {
            let mut all = BTreeMap::new();
            let mut request = ListRequest::flat(&Key::empty());
            loop {
                let page = self.driver.list(request.clone()).await.unwrap();
                let get = |key: Key| async move {
                    let got = self.driver.get(&key, GetOptions::default()).await;
                    let (_, bytes) = got.unwrap().found().unwrap().collect().await.unwrap();
                    (key.to_string(), String::from_utf8(bytes.to_vec()).unwrap())
                };
                let keys = page.entries.into_iter().map(|entry| entry.key);
                let keys = keys.filter(|key| !key.as_bytes().starts_with(b".bucketfs/index/"));
                let gets = futures::stream::iter(keys).map(get).buffer_unordered(32);
                all.extend(gets.collect::<Vec<_>>().await);
                request.token = page.next;
                if request.token.is_none() {
                    return all;
                }
            }
        })
    }

    fn records(&self) -> usize {
        let request = ListRequest::flat(&Key::from(".bucketfs/renames/"));
        wait(self.driver.list(request)).unwrap().entries.len()
    }

    fn mount(&self, place: &Place, name: &str, ends_well: bool) -> Arc<Mount> {
        let endpoint = std::env::var(crate::proxy::ENDPOINT).unwrap();
        let args = ["--endpoint-url", &endpoint, "--region", "us-east-1"];
        place.mount(name, &format!("s3://{}", self.name), &args, ends_well)
    }
}

fn name(number: usize) -> String {
    // Two levels, so that listings of several directories are involved.
    format!("{}/{number:04}", number % 7)
}

fn text(number: usize) -> String {
    format!("the text of {number}\n")
}

fn a_mount_killed_while_it_renames_a_directory_loses_nothing(place: &Place) {
    let bucket = Bucket::new();
    bucket.fill("d0", FILES);
    let other = bucket.mount(place, "other", true);
    let rounds = if long() { 20 } else { 3 };
    let mut broken_off = 0;
    let mut at = 0;
    for round in 0..rounds {
        let m = bucket.mount(place, "m", false);
        let (from, to) = (format!("d{at}"), format!("d{}", at + 1));
        assert_eq!(fs::read_dir(other.path(&from)).unwrap().count(), 7);
        let (old, new) = (m.path(&from), m.path(&to));
        let renaming = std::thread::spawn(move || fs::rename(old, new));
        // At any moment, and at one at which files are moved for sure.
        let longest = match round % 2 {
            0 => {
                while bucket.records() == 0 && !renaming.is_finished() {}
                50_000
            }
            _ => 1_500_000,
        };
        std::thread::sleep(Duration::from_micros(fastrand::u64(..longest)));
        kill(m.pid(), Signal::KILL);
        let renamed = renaming.join().unwrap();
        eventually("it has ended", || m.has_ended());
        if renamed.is_err() && bucket.records() > 0 {
            broken_off += 1;
        }
        let again = bucket.mount(place, "m", false);
        // Many requests, on a machine that may be slow; the guard of the test ends it.
        while bucket.records() > 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
        let all = bucket.all();
        let moved = all.keys().all(|key| key.starts_with(&format!("{to}/")));
        if moved {
            at += 1;
        }
        // Killed before it was written down, it has done nothing.
        let prefix = format!("d{at}/");
        assert_eq!(all.len(), FILES, "round {round}");
        for number in 0..FILES {
            let found = all.get(&format!("{prefix}{}", name(number)));
            assert_eq!(found, Some(&text(number)), "round {round}");
        }
        eventually("the other mount sees it", || {
            let names = fs::read_dir(other.path(&format!("d{at}/3")));
            names.is_ok_and(|names| names.count() == FILES.div_ceil(7))
        });
        let read = fs::read_to_string(other.path(&format!("d{at}/3/0003")));
        assert_eq!(read.unwrap(), text(3), "round {round}");
        again.kill();
    }
    assert!(broken_off > 0, "no kill came while files were being moved");
}

fn what_another_mount_writes_into_a_moving_directory_is_not_lost(place: &Place) {
    let bucket = Bucket::new();
    bucket.fill("d", FILES);
    let m = bucket.mount(place, "m", true);
    let other = bucket.mount(place, "other", true);
    let (old, new) = (m.path("d"), m.path("m"));
    let dir = other.path("d");
    let renaming = std::thread::spawn(move || fs::rename(old, new));
    // Whoever writes while a directory moves may be refused; what is acknowledged is there.
    let mut saved = Vec::new();
    let mut number = 0;
    while !renaming.is_finished() && number < FILES {
        let new = format!("new {number}\n");
        if fs::write(dir.join(format!("new-{number}")), &new).is_ok() {
            saved.push(new);
        }
        number += 1;
    }
    renaming.join().unwrap().unwrap();
    assert!(saved.len() > 1, "{saved:?}");
    let all = bucket.all();
    for text in &saved {
        let found = all.values().filter(|found| *found == text).count();
        assert_eq!(found, 1, "{text}");
    }
    let originals = (0..FILES).filter(|number| {
        let place = [
            format!("m/{}", name(*number)),
            format!("d/{}", name(*number)),
        ];
        place.iter().any(|key| all.contains_key(key))
    });
    assert_eq!(originals.count(), FILES);
    assert_eq!(bucket.records(), 0);
}

fn of_two_mounts_that_rename_the_same_one_wins(place: &Place) {
    let rounds = if long() { 300 } else { 40 };
    let bucket = Bucket::new();
    bucket.fill("f", rounds);
    bucket.fill("d", 70);
    let mounts = [
        bucket.mount(place, "a", true),
        bucket.mount(place, "b", true),
    ];
    // Each as a program that takes jobs from a queue does.
    let race = |from: &str, to: [&str; 2]| {
        let begin = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            let racers = [0, 1].map(|at| {
                let (mount, begin) = (&mounts[at], &begin);
                let (old, new) = (mount.path(from), mount.path(to[at]));
                scope.spawn(move || {
                    fs::symlink_metadata(&old).unwrap();
                    begin.wait();
                    fs::rename(old, new)
                })
            });
            racers.map(|racer| racer.join().unwrap())
        })
    };
    for number in 0..rounds {
        let to = [0, 1].map(|at| format!("{at}-{number}"));
        let ends = race(&format!("f/{}", name(number)), [&to[0], &to[1]]);
        let won: Vec<usize> = (0..2).filter(|at| ends[*at].is_ok()).collect();
        assert_eq!(won.len(), 1, "{number}: {ends:?}");
        let lost = ends[1 - won[0]].as_ref().unwrap_err();
        assert_eq!(lost.raw_os_error(), Some(libc::ENOENT), "{number}");
        let all = bucket.all();
        assert_eq!(all.get(&to[won[0]]), Some(&text(number)));
        assert!(!all.contains_key(&to[1 - won[0]]), "{number}");
    }
    let _ = race("d", ["one", "other"]);
    let all = bucket.all();
    for number in 0..70 {
        let places = ["d", "one", "other"].map(|dir| format!("{dir}/{}", name(number)));
        let found = places.iter().filter(|key| all.contains_key(*key)).count();
        assert_eq!(found, 1, "{number}");
    }
    assert_eq!(bucket.records(), 0);
}
