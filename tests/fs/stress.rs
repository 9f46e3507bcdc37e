//! Many tasks at once, on threads, against stores that fail: what must hold whatever happens.

use crate::store::Plain;
use crate::world::*;
use bucketfs::fs::{ROOT, SetAttr};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Fails a test that hangs.
async fn within<F: Future>(seconds: u64, act: F) -> F::Output {
    let limit = Duration::from_secs(seconds);
    tokio::time::timeout(limit, act).await.expect("it hangs")
}

const FAULTS: &str = "put:lost-reply@p0.1,copy:lost-reply@p0.1,*:error=unavailable@p0.05";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn appends_lose_no_line_and_write_none_twice_whatever_fails() {
    for (seed, store) in [Plain::memory(), Plain::s3(), Plain::bare()]
        .into_iter()
        .enumerate()
    {
        let world = Arc::new(World::over(store));
        let mut tasks = Vec::new();
        for m in 0..3 {
            // One mount without the retry layer, so that its caller meets every failure.
            let mount = Arc::new(world.mount_with(|_| {}, m > 0));
            mount
                .fault
                .set(&format!("{FAULTS},seed={}", 10 * seed + m))
                .unwrap();
            for t in 0..2 {
                let mount = mount.clone();
                tasks.push(tokio::spawn(async move {
                    let mut acknowledged = Vec::new();
                    for i in 0..15 {
                        let line = format!("{m}.{t}.{i}\n");
                        let Ok(handle) = mount.open("log", APPEND).await else {
                            continue;
                        };
                        mount.write(handle, 0, &line).unwrap();
                        let mut flushed = mount.flush(handle).await;
                        for _ in 0..20 {
                            if !matches!(flushed, Err(libc::EIO)) {
                                break;
                            }
                            flushed = mount.flush(handle).await;
                        }
                        mount.fs.release(handle).await.ok();
                        acknowledged.push((line, flushed));
                    }
                    (mount, acknowledged)
                }));
            }
        }
        let mut lines = Vec::new();
        for task in tasks {
            let (mount, acknowledged) = within(60, task).await.unwrap();
            lines.extend(acknowledged);
            mount.fault.clear();
            mount.fs.drain(Duration::from_secs(10)).await;
        }
        let log = world.get("log").await.unwrap();
        let kept = world.conflicts("log").await.concat();
        assert!(lines.len() > 60);
        for (line, flushed) in &lines {
            let times = log.matches(line.as_str()).count();
            assert!(times <= 1, "{line:?} is there {times} times\n{log}");
            // What is appended through a handle whose file lost goes on behind the loser's bytes.
            assert!(
                times == 1 || kept.contains(line.as_str()),
                "{line:?} was answered {flushed:?}\n{log}\nKEPT\n{kept}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn read_modify_write_of_several_mounts_is_compare_and_swap_whatever_fails() {
    for (seed, store) in [Plain::memory(), Plain::s3(), Plain::bare()]
        .into_iter()
        .enumerate()
    {
        let world = Arc::new(World::over(store));
        world.put("f", "start\n").await;
        let mut tasks = Vec::new();
        for m in 0..3 {
            let mount = world.retrying();
            mount
                .fault
                .set(&format!("{FAULTS},seed={}", 10 * seed + m))
                .unwrap();
            tasks.push(tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for i in 0..25 {
                    let token = format!("{m}.{i}\n");
                    let Ok(handle) = mount.open("f", libc::O_RDWR).await else {
                        continue;
                    };
                    if let Ok(text) = mount.read(handle, 0, 1 << 20).await {
                        mount.write(handle, 0, &(text + &token)).unwrap();
                        acknowledged.push((token, mount.close(handle).await));
                    } else {
                        mount.close(handle).await.ok();
                    }
                }
                mount.fault.clear();
                mount.fs.drain(Duration::from_secs(10)).await;
                acknowledged
            }));
        }
        let mut tokens = Vec::new();
        for task in tasks {
            tokens.extend(within(60, task).await.unwrap());
        }
        let text = world.get("f").await.unwrap();
        let kept = world.conflicts("f").await.concat();
        assert!(tokens.iter().any(|(_, closed)| closed.is_ok()));
        for (token, closed) in &tokens {
            let times = text.lines().filter(|line| *line == token.trim()).count();
            match closed {
                Ok(()) => assert_eq!(times, 1, "{token:?} was acknowledged\n{text}"),
                Err(_) => assert!(times == 1 || kept.contains(token.as_str()), "{token:?}"),
            }
        }
    }
}

const NAMES: [&str; 6] = ["a", "b", "d/a", "d/b", "e/a", "d/x/a"];

/// One random operation; what it answers does not matter here.
async fn act(mount: &Mount, random: &mut fastrand::Rng, token: &str) {
    let name = NAMES[random.usize(..NAMES.len())];
    let other = NAMES[random.usize(..NAMES.len())];
    match random.u32(..16) {
        0..3 => drop(mount.save(name, token).await),
        3 => drop(mount.append(name, token).await),
        4 => drop(mount.put(name, EXCLUSIVE, token).await),
        5 => drop(mount.unlink(name).await),
        6 => drop(mount.rename(name, other).await),
        7 => drop(mount.rename_with(name, other, libc::RENAME_NOREPLACE).await),
        8 => drop(mount.rename_with(name, other, libc::RENAME_EXCHANGE).await),
        9 => drop(
            mount
                .rename(
                    ["d", "e", "g"][random.usize(..3)],
                    ["g", "d", "e"][random.usize(..3)],
                )
                .await,
        ),
        10 => drop(mount.mkdir(["d", "e", "d/x"][random.usize(..3)]).await),
        11 => drop(mount.rmdir(["d", "e", "d/x"][random.usize(..3)]).await),
        12 => drop(mount.ls(["", "d", "e"][random.usize(..3)]).await),
        13 => drop(mount.cat(name).await),
        14 => {
            let size = SetAttr {
                size: Some(random.u64(..8)),
                mode: Some(0o600),
                ..SetAttr::default()
            };
            mount.setattr(name, size).await.ok();
        }
        _ => {
            // A handle that outlives whatever happens to its name.
            let Ok(handle) = mount.open(name, libc::O_RDWR).await else {
                return;
            };
            mount.read(handle, 0, 100).await.ok();
            mount.write(handle, 2, token).ok();
            tokio::time::sleep(Duration::from_millis(random.u64(..4))).await;
            mount.read(handle, 0, 100).await.ok();
            mount.close(handle).await.ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_operations_neither_hang_nor_leak_nor_disagree_with_the_store() {
    for (seed, store) in [Plain::memory(), Plain::s3(), Plain::bare()]
        .into_iter()
        .enumerate()
    {
        let world = Arc::new(World::over(store));
        let mounts: Vec<_> = (0..2)
            .map(|_| {
                Arc::new(world.mount_with(
                    |options| options.metadata_ttl = Duration::from_millis(5),
                    false,
                ))
            })
            .collect();
        let mut tasks = Vec::new();
        for t in 0..8_u64 {
            let mount = mounts[t as usize % 2].clone();
            mount.fault.set("*:delay=200us@p0.5").unwrap();
            tasks.push(tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(100 * seed as u64 + t);
                for i in 0..150 {
                    act(&mount, &mut random, &format!("{t}.{i} ")).await;
                    if random.u32(..20) == 0 {
                        mount.forget_all();
                    }
                }
            }));
        }
        for task in tasks {
            within(120, task).await.unwrap();
        }
        for mount in &mounts {
            mount.fault.clear();
            let report = within(30, mount.fs.drain(Duration::from_secs(10))).await;
            assert!(report.unsent.is_empty(), "{report:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
            let fresh = world.mount();
            let (seen, expected) = (tree(mount).await, tree(&fresh).await);
            assert_eq!(seen, expected);
            mount.forget_all();
            let status = mount.fs.status();
            assert_eq!(
                (status.handles, status.dirty_files, status.uploads),
                (0, 0, 0)
            );
            assert_eq!(status.inodes, 1, "inodes were left behind");
        }
    }
}

/// Every path with its content.
async fn tree(mount: &Mount) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    let mut pending = vec![(ROOT, String::new())];
    while let Some((dir, path)) = pending.pop() {
        for name in mount.names(dir).await.unwrap() {
            let entry = mount.look(dir, &name).await.unwrap();
            let path = format!("{path}/{}", String::from_utf8_lossy(&name));
            if entry.attr.kind == bucketfs::fs::Kind::Directory {
                found.insert((path.clone(), String::new()));
                pending.push((entry.attr.ino, path));
            } else {
                let text = mount.cat(&path[1..]).await.unwrap();
                let attr = mount.stat(&path[1..]).await.unwrap();
                assert_eq!(text.len() as u64, attr.size, "{path}");
                found.insert((path, text));
            }
        }
    }
    found
}
