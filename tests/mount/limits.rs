//! Many open files and many names through the kernel.

use crate::guard::kill;
use crate::harness::{Manner, Mount, Place, Root, eventually, long, trial_as};
use libtest_mimic::Trial;
use rustix::process::{Resource, Rlimit, Signal};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

pub fn trials() -> Vec<Trial> {
    let patient = Manner {
        patience: Duration::from_secs(240),
        alone: true,
        ..Manner::default()
    };
    vec![
        trial_as(
            patient,
            &[Root],
            "limits::ten_thousand_files_are_open_at_once",
            ten_thousand_files_are_open_at_once,
        ),
        trial_as(
            patient,
            &[Root],
            "limits::what_the_kernel_forgets_takes_no_memory",
            what_the_kernel_forgets_takes_no_memory,
        ),
    ]
}

/// A number of a process, from /proc/PID/status: KiB, or a count.
fn told(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors(m: &Mount) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", m.pid()))
        .unwrap()
        .count()
}

fn ten_thousand_files_are_open_at_once(place: &Place) {
    const COUNT: usize = 10_000;
    let before = rustix::process::getrlimit(Resource::Nofile);
    let needed = COUNT as u64 + 1000;
    let most = Rlimit {
        current: before.current.map(|current| current.max(needed)),
        maximum: before.maximum.map(|maximum| maximum.max(needed)),
    };
    rustix::process::setrlimit(Resource::Nofile, most).unwrap();
    let m = place.memory("m", &[]);
    let threads = told(m.pid(), "Threads");
    let held = descriptors(&m);
    let mut open = Vec::with_capacity(COUNT);
    for number in 0..COUNT {
        let path = m.path(&format!("{}", number % (COUNT / 2)));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap();
        file.write_all_at(format!("{number} ").as_bytes(), 0)
            .unwrap();
        open.push(file);
    }
    assert_eq!(m.number("handles"), COUNT as u64);
    // The daemon needs no descriptor and no thread for each.
    assert!(descriptors(&m) < held + 200, "{}", descriptors(&m));
    assert!(told(m.pid(), "Threads") < threads + 64);
    for (number, file) in open.iter().enumerate() {
        let mut bytes = [0; 8];
        let length = file.read_at(&mut bytes, 0).unwrap();
        let last = number % (COUNT / 2) + COUNT / 2;
        assert_eq!(bytes[..length], *format!("{last} ").as_bytes());
    }
    drop(open);
    eventually("every handle is released", || m.number("handles") == 0);
    assert_eq!(m.number("dirty_files"), 0);
    rustix::process::setrlimit(Resource::Nofile, before).unwrap();
    kill(m.pid(), Signal::TERM);
    m.ends(0);
}

fn what_the_kernel_forgets_takes_no_memory(place: &Place) {
    let count = if long() { 200_000 } else { 20_000 };
    let dirs = 20;
    for dir in 0..dirs {
        std::fs::create_dir(place.path(&format!("store/{dir}"))).unwrap();
        for file in 0..count / dirs {
            std::fs::write(place.path(&format!("store/{dir}/{file}")), "").unwrap();
        }
    }
    let m = place.file("m", &[]);
    let walk = || {
        let mut found = 0;
        for dir in 0..dirs {
            for entry in std::fs::read_dir(m.path(&format!("{dir}"))).unwrap() {
                assert_eq!(entry.unwrap().metadata().unwrap().len(), 0);
                found += 1;
            }
        }
        assert_eq!(found, count);
    };
    let forget = || {
        eventually("the kernel forgets every inode", || {
            std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            m.number("inodes") == 1
        });
    };
    walk();
    assert!(m.number("inodes") > count as u64, "{}", m.number("inodes"));
    forget();
    let once = told(m.pid(), "VmRSS");
    for _ in 0..3 {
        walk();
        forget();
    }
    // The same again takes no more than the first time, give or take what allocators keep.
    let now = told(m.pid(), "VmRSS");
    assert!(now < once + once / 4 + 8192, "{once} KiB, then {now} KiB");
}
