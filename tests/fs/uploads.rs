//! Large files go to the store in parts, where attributes allow it while they are being written.

use crate::store::Plain;
use crate::world::{Mount, World};
use bucketfs::driver::Driver;
use bucketfs::fs::{SetAttr, SetTime};
use bucketfs::key::Key;
use bucketfs::layer::Operation;
use std::time::{Duration, SystemTime};

const MIB: u64 = 1 << 20;
const CREATE: i32 = libc::O_CREAT | libc::O_WRONLY;

/// A store that keeps no attributes, so that uploads can begin before the commit.
fn world() -> World {
    let mut store = Plain::bare();
    store.digests = false;
    World::over(store)
}

/// The bytes of one mebibyte of a file.
fn mebibyte(index: u64) -> String {
    format!("{index:08}").repeat(MIB as usize / 8)
}

fn write(mount: &Mount, handle: u64, range: std::ops::Range<u64>) {
    for index in range {
        mount.write(handle, index * MIB, &mebibyte(index)).unwrap();
    }
}

/// Whether an object is these mebibytes.
async fn holds(world: &World, key: &str, range: std::ops::Range<u64>) -> bool {
    let expected: String = range.map(mebibyte).collect();
    world.get(key).await.is_some_and(|text| text == expected)
}

async fn reached(mount: &Mount, operation: Operation, count: u64) {
    let enough = async {
        while mount.stats.snapshot().count(operation) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let patience = Duration::from_secs(20);
    tokio::time::timeout(patience, enough)
        .await
        .unwrap_or_else(|_| panic!("no {count} of {operation:?}: {}", mount.cost()));
}

#[tokio::test]
async fn a_large_file_goes_ahead_of_its_close() {
    let world = world();
    let mount = world.mount();
    let handle = mount.open("big", CREATE).await.unwrap();
    mount.cost();
    write(&mount, handle, 0..35);
    reached(&mount, Operation::Part, 4).await;
    assert_eq!(mount.cost(), "part 4, upload 1");
    assert_eq!(world.get("big").await, None);
    mount.close(handle).await.unwrap();
    assert_eq!(mount.cost(), "complete 1, part 1");
    assert!(holds(&world, "big", 0..35).await);
}

#[tokio::test]
async fn where_attributes_are_listed_parts_wait_for_the_commit() {
    let world = World::memory();
    let mount = world.mount();
    let handle = mount.open("big", CREATE).await.unwrap();
    mount.cost();
    write(&mount, handle, 0..20);
    assert_eq!(mount.cost(), "");
    mount.close(handle).await.unwrap();
    assert_eq!(mount.cost(), "complete 1, part 3, upload 1");
    assert!(holds(&world, "big", 0..20).await);
}

#[tokio::test]
async fn modes_and_times_of_what_went_ahead_are_set_by_a_copy() {
    let mut store = Plain::s3();
    store.digests = false;
    let world = World::over(store);
    let mount = world.mount();
    let stored = async |key: &str| {
        let info = world.raw().head(&Key::from(key)).await.unwrap();
        info.told_attributes()
    };
    // The time of the last write is that of the commit.
    let handle = mount.open("written", CREATE).await.unwrap();
    mount.cost();
    write(&mount, handle, 0..20);
    mount.close(handle).await.unwrap();
    assert_eq!(mount.cost(), "complete 1, part 3, upload 1");
    let kept = stored("written").await;
    assert_eq!((kept.mode, kept.mtime), (Some(0o100_644), None));
    let info = world.raw().head(&Key::from("written")).await.unwrap();
    let seen = mount.stat("written").await.unwrap();
    assert_eq!(seen.mtime, info.modified);

    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let set = SetAttr {
        mode: Some(0o600),
        mtime: Some(SetTime::At(time)),
        ..SetAttr::default()
    };
    let handle = mount.open("copied", CREATE).await.unwrap();
    mount.cost();
    write(&mount, handle, 0..20);
    mount.setattr("copied", set).await.unwrap();
    mount.close(handle).await.unwrap();
    assert_eq!(mount.cost(), "complete 1, copy 1, part 3, upload 1");
    let kept = stored("copied").await;
    assert_eq!((kept.mode, kept.mtime), (Some(0o100_600), Some(time)));
    assert!(holds(&world, "copied", 0..20).await);
}

/// The copy may have been applied, or not: neither loses a mode, nor the race of the next write.
#[tokio::test]
async fn modes_that_a_copy_behind_the_parts_did_not_set_are_set_later() {
    for fault in ["copy:lost-reply@1", "copy:error=unavailable@1"] {
        for again in [false, true] {
            let mut store = Plain::s3();
            store.digests = false;
            let world = World::over(store);
            let mount = world.mount();
            let handle = mount.open("big", CREATE).await.unwrap();
            write(&mount, handle, 0..20);
            let mode = SetAttr {
                mode: Some(0o600),
                ..SetAttr::default()
            };
            mount.setattr("big", mode).await.unwrap();
            mount.fault.set(fault).unwrap();
            mount.flush(handle).await.unwrap();
            if again {
                write(&mount, handle, 20..21);
                mount.flush(handle).await.unwrap();
            } else {
                mount.fs.fsync(handle).await.unwrap();
            }
            mount.close(handle).await.unwrap();
            let info = world.raw().head(&Key::from("big")).await.unwrap();
            assert_eq!(info.told_attributes().mode, Some(0o100_600), "{fault}");
            let end = 20 + u64::from(again);
            assert!(holds(&world, "big", 0..end).await, "{fault}");
            assert_eq!(world.keys().await, ["big"], "{fault}");
        }
    }
}

#[tokio::test]
async fn what_is_changed_behind_is_sent_again() {
    for change in ["write", "cut", "rename"] {
        let world = world();
        let mount = world.mount();
        let handle = mount.open("big", CREATE).await.unwrap();
        write(&mount, handle, 0..20);
        reached(&mount, Operation::Part, 2).await;
        let expected: String = match change {
            "write" => {
                mount.write(handle, 3 * MIB, &mebibyte(99)).unwrap();
                (0..3).chain([99]).chain(4..20).map(mebibyte).collect()
            }
            "cut" => {
                let set = SetAttr {
                    size: Some(5 * MIB),
                    ..SetAttr::default()
                };
                mount.setattr("big", set).await.unwrap();
                (0..5).map(mebibyte).collect()
            }
            _ => {
                mount.rename("big", "moved").await.unwrap();
                (0..20).map(mebibyte).collect()
            }
        };
        mount.close(handle).await.unwrap();
        let key = if change == "rename" { "moved" } else { "big" };
        assert!(world.get(key).await.unwrap() == expected, "{change}");
        if change != "rename" {
            reached(&mount, Operation::Abort, 1).await;
        }
        let keys = world.keys().await;
        assert_eq!(keys, [key], "{change}");
    }
}

#[tokio::test]
async fn a_file_that_keeps_changing_behind_waits_for_its_commit() {
    let world = world();
    let mount = world.mount();
    let handle = mount.open("big", CREATE).await.unwrap();
    for round in 0..5 {
        let from = if round == 0 { 0 } else { 19 + round };
        write(&mount, handle, from..20 + round);
        mount.write(handle, 0, &mebibyte(0)).unwrap();
    }
    mount.close(handle).await.unwrap();
    assert!(holds(&world, "big", 0..24).await);
    assert!(mount.stats.snapshot().count(Operation::Upload) <= 3);
}

#[tokio::test]
async fn the_loser_of_a_race_keeps_what_went_ahead() {
    let world = world();
    let mount = world.mount();
    let handle = mount.open("big", CREATE).await.unwrap();
    write(&mount, handle, 0..20);
    reached(&mount, Operation::Part, 2).await;
    world.put("big", "theirs").await;
    assert_eq!(mount.close(handle).await, Err(libc::EEXIST));
    assert_eq!(world.get("big").await.unwrap(), "theirs");
    let conflicts = world.conflicts("big").await;
    assert_eq!(conflicts.len(), 1);
    let expected: String = (0..20).map(mebibyte).collect();
    assert!(conflicts[0] == expected);
}

#[tokio::test]
async fn parts_that_fail_are_sent_with_the_rest() {
    for (fault, closes) in [
        ("upload:error=denied@1", true),
        ("part:error=denied@2", true),
        ("part:error=unreachable@2", false),
        ("complete:error=not-found@1", true),
        ("complete:lost-reply@1", false),
    ] {
        let world = world();
        let mount = world.mount();
        let handle = mount.open("big", CREATE).await.unwrap();
        mount.fault.set(fault).unwrap();
        write(&mount, handle, 0..20);
        reached(&mount, Operation::Upload, 1).await;
        let closed = mount.flush(handle).await;
        assert_eq!(closed.is_ok(), closes, "{fault}: {closed:?}");
        // The bytes are still staged, and the next close sends them all.
        mount.flush(handle).await.unwrap();
        mount.close(handle).await.unwrap();
        assert!(holds(&world, "big", 0..20).await, "{fault}");
        assert_eq!(world.keys().await, ["big"], "{fault}");
    }
}

#[tokio::test]
async fn a_file_that_is_removed_leaves_no_parts() {
    let world = world();
    let mount = world.mount();
    let handle = mount.open("big", CREATE).await.unwrap();
    write(&mount, handle, 0..20);
    reached(&mount, Operation::Part, 2).await;
    mount.unlink("big").await.unwrap();
    mount.close(handle).await.unwrap();
    reached(&mount, Operation::Abort, 1).await;
    assert_eq!(world.keys().await.len(), 0);
}

/// So does a bucket of an account that holds less than the others.
#[tokio::test]
async fn what_is_refused_in_parts_goes_in_one_put() {
    let mut store = Plain::bare();
    store.digests = false;
    store.capabilities.max_object = 40 * MIB;
    let world = World::over(store);
    let mount = world.mount();
    mount.fault.set("upload:error=unsupported").unwrap();
    let handle = mount.open("big", CREATE).await.unwrap();
    write(&mount, handle, 0..35);
    mount.cost();
    mount.close(handle).await.unwrap();
    assert!(mount.cost().contains("put 1"));
    assert!(holds(&world, "big", 0..35).await);
    let handle = mount.open("larger", CREATE).await.unwrap();
    write(&mount, handle, 0..41);
    assert_eq!(mount.close(handle).await, Err(libc::EFBIG));
    let errors = mount.fs.status().errors;
    let why = "42991616 bytes are more than the 41943040 that one put takes";
    assert!(
        errors.iter().any(|error| error.message.contains(why)),
        "{errors:?}"
    );
}
