//! Renames of files and directories, alone and against others.

use crate::store::Plain;
use crate::world::*;
use bucketfs::driver::Strength;
use std::sync::Arc;
use std::time::Duration;

fn stores() -> Vec<World> {
    vec![
        World::memory(),
        World::s3(),
        World::over(Plain::s3().copying(Strength::None)),
        World::over(Plain::bare()),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_file_is_renamed_by_one_copy_and_one_delete() {
    let world = World::s3();
    world.put("a", "x").await;
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.cost();
    mount.rename("a", "b").await.unwrap();
    assert_eq!(mount.cost(), "copy 1, delete 1");
    assert_eq!(world.keys().await, ["b"]);
    assert_eq!(mount.ls("").await.unwrap(), ["b"]);
    assert!(!mount.exists("a").await);
    assert_eq!(mount.cat("b").await.unwrap(), "x");
}

#[tokio::test(start_paused = true)]
async fn a_rename_replaces_what_was_seen() {
    for world in stores() {
        world.put("a", "new").await;
        world.put("b", "old").await;
        let mount = world.mount();
        let open = mount.open("b", READ).await.unwrap();
        mount.rename("a", "b").await.unwrap();
        assert_eq!(world.keys().await, ["b"]);
        assert_eq!(mount.cat("b").await.unwrap(), "new");
        assert_eq!(mount.read(open, 0, 100).await.unwrap(), "old");
        mount.close(open).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn saving_by_rename_keeps_a_version_of_others_as_a_conflict_file() {
    for world in stores() {
        world.put("f", "seen").await;
        let mount = world.mount();
        mount.stat("f").await.unwrap();
        mount.save("f.tmp", "mine").await.unwrap();
        world.put("f", "theirs").await;
        mount.rename("f.tmp", "f").await.unwrap();
        assert_eq!(world.get("f").await.unwrap(), "mine");
        assert_eq!(world.conflicts("f").await, ["theirs"]);
        assert_eq!(world.keys().await.len(), 2);
        assert_eq!(mount.fs.status().conflicts.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn saving_by_rename_over_a_version_of_ones_own_whose_answer_was_lost_keeps_none() {
    for world in stores() {
        world.put("f", "seen").await;
        let mount = world.mount();
        let handle = mount.open("f", WRITE).await.unwrap();
        mount.write(handle, 0, "lost").unwrap();
        mount.fault.set("put:lost-reply@1").unwrap();
        assert!(mount.flush(handle).await.is_err());
        mount.fault.clear();
        assert_eq!(world.get("f").await.unwrap(), "lost");
        mount.save("f.tmp", "mine").await.unwrap();
        mount.rename("f.tmp", "f").await.unwrap();
        assert_eq!(world.get("f").await.unwrap(), "mine");
        assert_eq!(world.conflicts("f").await, [""; 0]);
        mount.close(handle).await.unwrap();
        assert_eq!(world.keys().await, ["f"]);
    }
}

#[tokio::test(start_paused = true)]
async fn every_version_that_comes_in_between_is_kept() {
    let world = World::s3();
    world.put("f", "seen").await;
    let mount = world.mount();
    mount.stat("f").await.unwrap();
    mount.save("f.tmp", "mine").await.unwrap();
    world.put("f", "theirs 1").await;
    mount.fault.set("copy:delay=1s,head:delay=1s").unwrap();
    // The second version comes after the first one was put aside.
    let others = async {
        while world.conflicts("f").await.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        world.put("f", "theirs 2").await;
    };
    let (renamed, ()) = tokio::join!(mount.rename("f.tmp", "f"), others);
    renamed.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "mine");
    let mut kept = world.conflicts("f").await;
    kept.sort();
    assert_eq!(kept, ["theirs 1", "theirs 2"]);
}

#[tokio::test(start_paused = true)]
async fn of_two_renames_without_replacing_one_wins() {
    for world in stores() {
        world.put("a", "a").await;
        world.put("b", "b").await;
        let (one, two) = (world.mount(), world.mount());
        assert!(!one.exists("c").await && !two.exists("c").await);
        let flags = libc::RENAME_NOREPLACE;
        let first = one.rename_with("a", "c", flags).await;
        let second = two.rename_with("b", "c", flags).await;
        assert_eq!((first, second), (Ok(()), Err(libc::EEXIST)));
        assert_eq!(world.keys().await, ["b", "c"]);
        assert_eq!(world.get("c").await.unwrap(), "a");
        assert_eq!(two.cat("b").await.unwrap(), "b");
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_renames_of_new_files_without_replacing_one_wins() {
    for world in stores() {
        let mounts = [world.mount(), world.mount()];
        let mut open = Vec::new();
        for (number, mount) in mounts.iter().enumerate() {
            assert!(!mount.exists("lock").await);
            let flags = CREATE | libc::O_APPEND;
            let handle = mount.open(&format!("tmp{number}"), flags).await.unwrap();
            mount.write(handle, 0, "mine").unwrap();
            open.push(handle);
        }
        let flags = libc::RENAME_NOREPLACE;
        let first = mounts[0].rename_with("tmp0", "lock", flags).await;
        let second = mounts[1].rename_with("tmp1", "lock", flags).await;
        assert_eq!((first, second), (Ok(()), Err(libc::EEXIST)));
        for (mount, handle) in mounts.iter().zip(open) {
            mount.close(handle).await.unwrap();
        }
        assert_eq!(world.get("lock").await.unwrap(), "mine");
        assert_eq!(world.get("tmp1").await.unwrap(), "mine");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_appended_to_a_new_file_is_not_added_to_what_it_is_renamed_over() {
    for world in stores() {
        world.put("log", "old\n").await;
        let mount = world.mount();
        let handle = mount.open("new", CREATE | libc::O_APPEND).await.unwrap();
        mount.write(handle, 0, "head\n").unwrap();
        mount.rename("new", "log").await.unwrap();
        world.put("log", "old\nmore\n").await;
        assert_eq!(mount.close(handle).await, Err(libc::ESTALE));
        assert_eq!(world.get("log").await.unwrap(), "old\nmore\n");
        assert_eq!(world.conflicts("log").await, ["head\n"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_waits_for_a_long_commit_lets_others_go_on() {
    let world = World::memory();
    world.put("d/f", "x").await;
    let mount = Arc::new(world.mount());
    let handle = mount.open("slow", CREATE).await.unwrap();
    mount.write(handle, 0, "bytes").unwrap();
    mount.fault.set("put:delay=300s:key~slow").unwrap();
    let closing = mount.clone();
    let closing = bucketfs::task::spawn(async move { closing.close(handle).await });
    half_a_second().await;
    let moving = mount.clone();
    let moving = bucketfs::task::spawn(async move { moving.rename("d", "e").await });
    half_a_second().await;
    for number in 0..20 {
        let saving = mount.save("other", "text");
        let saved = tokio::time::timeout(Duration::from_secs(6), saving).await;
        saved
            .unwrap_or_else(|_| panic!("save {number} waits"))
            .unwrap();
        half_a_second().await;
    }
    assert!(!closing.is_finished() && !moving.is_finished());
    closing.await.unwrap().unwrap();
    moving.await.unwrap().unwrap();
    assert_eq!(world.keys().await, ["e/f", "other", "slow"]);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_begins_while_its_source_moves_has_its_bytes() {
    let world = World::s3();
    let text = "0123456789abcdef".repeat(1 << 16);
    world.put("d/f", &text).await;
    let mount = Arc::new(world.mount());
    mount.ls("d").await.unwrap();
    let source = mount.open("d/f", READ).await.unwrap();
    let target = mount.open("t", CREATE).await.unwrap();
    mount.fault.set("copy:delay=5s").unwrap();
    let moving = mount.clone();
    let moving = bucketfs::task::spawn(async move { moving.rename("d", "e").await });
    half_a_second().await;
    let copied = mount
        .fs
        .copy_file_range((source, 0), (target, 0), 1 << 30, 7);
    assert_eq!(copied.await, Ok(1 << 20));
    moving.await.unwrap().unwrap();
    mount.close(target).await.unwrap();
    assert_eq!(world.get("t").await.unwrap(), text);
}

#[tokio::test(start_paused = true)]
async fn an_open_dirty_file_is_committed_under_its_new_name() {
    for world in stores() {
        let mount = world.mount();
        let handle = mount.open("a", CREATE).await.unwrap();
        mount.write(handle, 0, "one").unwrap();
        mount.rename("a", "b").await.unwrap();
        assert_eq!(mount.ls("").await.unwrap(), ["b"]);
        mount.flush(handle).await.unwrap();
        assert_eq!(world.keys().await, ["b"]);
        mount.write(handle, 3, " two").unwrap();
        mount.rename("b", "c").await.unwrap();
        mount.write(handle, 7, " three").unwrap();
        mount.close(handle).await.unwrap();
        assert_eq!(world.keys().await, ["c"]);
        assert_eq!(world.get("c").await.unwrap(), "one two three");
    }
}

#[tokio::test(start_paused = true)]
async fn an_uncommitted_file_renamed_over_another_expects_the_version_seen() {
    for lost in [false, true] {
        let world = World::memory();
        world.put("f", "seen").await;
        let mount = world.mount();
        let handle = mount.open("tmp", CREATE).await.unwrap();
        mount.write(handle, 0, "mine").unwrap();
        mount.rename("tmp", "f").await.unwrap();
        assert_eq!(mount.read(handle, 0, 100).await.unwrap(), "mine");
        assert_eq!(world.get("f").await.unwrap(), "seen");
        if lost {
            world.put("f", "theirs").await;
            assert_eq!(mount.close(handle).await, Err(libc::ESTALE));
            assert_eq!(world.get("f").await.unwrap(), "theirs");
            assert_eq!(world.conflicts("f").await, ["mine"]);
        } else {
            mount.close(handle).await.unwrap();
            assert_eq!(world.get("f").await.unwrap(), "mine");
            assert_eq!(world.keys().await, ["f"]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn files_are_exchanged_in_one_step_where_the_store_can() {
    let world = World::memory();
    world.put("a", "from a").await;
    world.put("d/b", "from b").await;
    let mount = world.mount();
    let handle = mount.open("a", libc::O_RDWR).await.unwrap();
    mount
        .rename_with("a", "d/b", libc::RENAME_EXCHANGE)
        .await
        .unwrap();
    assert_eq!(mount.cat("a").await.unwrap(), "from b");
    assert_eq!(mount.cat("d/b").await.unwrap(), "from a");
    mount.write(handle, 0, "FROM").unwrap();
    mount.close(handle).await.unwrap();
    assert_eq!(world.get("d/b").await.unwrap(), "FROM a");
    let world = World::s3();
    world.put("a", "x").await;
    world.put("b", "y").await;
    let exchange = world.mount();
    let exchange = exchange.rename_with("a", "b", libc::RENAME_EXCHANGE).await;
    assert_eq!(exchange, Err(libc::EINVAL));
}

#[tokio::test(start_paused = true)]
async fn a_directory_takes_its_open_files_along() {
    for world in stores() {
        world.put("d/", "").await;
        world.put("d/clean", "clean").await;
        world.put("d/e/dirty", "dirty").await;
        let mount = world.mount();
        let clean = mount.open("d/clean", READ).await.unwrap();
        let dirty = mount.open("d/e/dirty", libc::O_RDWR).await.unwrap();
        let new = mount.open("d/e/new", CREATE).await.unwrap();
        mount.write(dirty, 0, "DIR").unwrap();
        mount.write(new, 0, "new").unwrap();
        mount.rename("d", "m").await.unwrap();
        assert_eq!(mount.read(clean, 0, 100).await.unwrap(), "clean");
        assert_eq!(mount.read(dirty, 0, 100).await.unwrap(), "DIRty");
        mount.close(dirty).await.unwrap();
        mount.close(new).await.unwrap();
        mount.close(clean).await.unwrap();
        assert_eq!(
            world.keys().await,
            ["m/", "m/clean", "m/e/dirty", "m/e/new"]
        );
        assert_eq!(world.get("m/e/dirty").await.unwrap(), "DIRty");
        assert!(!mount.exists("d").await);
        assert_eq!(mount.ls("m").await.unwrap(), ["clean", "e"]);
        assert_eq!(mount.cat("m/e/new").await.unwrap(), "new");
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_of_twenty_is_renamed_in_one_listing_and_its_copies() {
    let world = World::s3();
    for i in 0..20 {
        world.put(&format!("d/{i}"), "x").await;
    }
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.cost();
    mount.rename("d", "m").await.unwrap();
    let cost = mount.cost();
    assert!(cost.starts_with("copy 20, delete_many 1"), "{cost}");
    assert_eq!(world.keys().await.len(), 20);
}

#[tokio::test(start_paused = true)]
async fn what_others_write_into_a_moving_directory_is_not_lost() {
    for world in stores() {
        for i in 0..40 {
            world.put(&format!("d/{i:02}"), "x").await;
        }
        let mount = world.mount();
        mount.ls("d").await.unwrap();
        mount
            .fault
            .set("copy:delay=20ms,rename:delay=20ms,put:delay=20ms")
            .unwrap();
        let others = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            world.put("d/new", "theirs").await;
            world.put("d/39", "changed").await;
        };
        let (renamed, ()) = tokio::join!(mount.rename("d", "m"), others);
        renamed.unwrap();
        let keys = world.keys().await;
        assert_eq!(keys.len(), 41, "{keys:?}");
        assert!(keys.iter().all(|key| key.starts_with("m/")), "{keys:?}");
        assert_eq!(world.get("m/new").await.unwrap(), "theirs");
        assert_eq!(world.get("m/39").await.unwrap(), "changed");
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_write_while_it_is_copied_is_not_deleted_where_that_takes_no_condition() {
    for count in [1, 3, 250] {
        let mut store = Plain::s3();
        store.capabilities.delete_condition = Strength::None;
        store.capabilities.delete_many_condition = Strength::None;
        let world = World::over(store);
        for i in 0..count {
            world.put(&format!("d/{i:03}"), "x").await;
        }
        let mount = world.mount();
        mount.ls("d").await.unwrap();
        mount.cost();
        let slow = "copy:delay=20ms,head:delay=20ms,list:delay=20ms";
        mount.fault.set(slow).unwrap();
        let others = async {
            // The last copies are on their way, and all before are made.
            let copied = count / 16 * 16;
            while world
                .get(&format!("m/{:03}", copied.max(1) - 1))
                .await
                .is_none()
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            world.put("d/000", "changed").await;
        };
        let renamed = mount.rename("d", "m");
        let renamed = async { tokio::time::timeout(Duration::from_secs(60), renamed).await };
        let (renamed, ()) = tokio::join!(renamed, others);
        let cost = mount.cost();
        // Its old version is at the new name already, and another is never replaced.
        assert_eq!(renamed.unwrap(), Err(libc::EIO), "{count}: {cost}");
        assert_eq!(world.get("d/000").await.as_deref(), Some("changed"));
        assert_eq!(world.get("m/000").await.as_deref(), Some("x"));
        assert_eq!(world.keys().await.len(), count + 1, "{count}");
        if count == 250 {
            assert!(cost.contains("delete_many 3, head 2, list 6"), "{cost}");
        }
    }
}

/// Where deletes take no condition they follow a listing that begins right before the first of the
/// files.
#[tokio::test(start_paused = true)]
async fn names_that_end_in_any_letter_are_moved_where_deletes_take_no_condition() {
    let mut store = Plain::s3();
    store.capabilities.delete_condition = Strength::None;
    store.capabilities.delete_many_condition = Strength::None;
    store.capabilities.utf8_keys = true;
    let world = World::over(store);
    for name in ["メモ", "メモモ", "日", "é"] {
        world.put(&format!("d/{name}"), "x").await;
    }
    let mount = world.mount();
    mount.ls("d").await.unwrap();
    mount.rename("d", "m").await.unwrap();
    assert_eq!(world.keys().await, ["m/é", "m/メモ", "m/メモモ", "m/日"]);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_moved_stays_and_the_rest_is_found() {
    let world = World::s3();
    for i in 0..5 {
        world.put(&format!("d/{i}"), "x").await;
    }
    let mount = world.mount();
    mount.ls("d").await.unwrap();
    mount.fault.set("copy:error=denied:key~/3").unwrap();
    assert_eq!(mount.rename("d", "m").await, Err(libc::EACCES));
    mount.fault.clear();
    let mut all = mount.ls("d").await.unwrap();
    assert!(all.contains(&"3".into()), "{all:?}");
    all.extend(mount.ls("m").await.unwrap());
    all.sort();
    assert_eq!(all, ["0", "1", "2", "3", "4"]);
    mount.rename("d/3", "m/3").await.unwrap();
    assert_eq!(mount.cat("m/3").await.unwrap(), "x");
}

#[tokio::test(start_paused = true)]
async fn a_directorys_rename_survives_a_lost_reply() {
    for world in [World::memory(), World::s3()] {
        for i in 0..5 {
            world.put(&format!("d/{i}"), "x").await;
        }
        let mount = world.retrying();
        mount.ls("d").await.unwrap();
        mount
            .fault
            .set("copy:lost-reply@1,rename:lost-reply@1,delete_many:lost-reply@1")
            .unwrap();
        mount.rename("d", "m").await.unwrap();
        assert_eq!(mount.ls("m").await.unwrap().len(), 5);
        assert_eq!(world.keys().await.len(), 5);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_written_to_a_file_that_moved_leaves_its_old_name_when_the_rest_does_not_move() {
    let world = World::s3();
    world.put("d/a", "one").await;
    world.put("d/b", "two").await;
    let mount = world.mount();
    let handle = mount.open("d/a", WRITE).await.unwrap();
    mount.write(handle, 0, "ONE").unwrap();
    mount.fault.set("copy:error=denied:key~b").unwrap();
    assert_eq!(mount.rename("d", "m").await, Err(libc::EACCES));
    assert_eq!(world.keys().await, ["d/b", "m/a"]);
    assert_eq!(mount.cat("d/a").await, Err(libc::ENOENT));
    mount.flush(handle).await.unwrap();
    assert_eq!(world.get("m/a").await.unwrap(), "ONE");
    assert_eq!(mount.cat("m/a").await.unwrap(), "ONE");
    world.put("d/a", "other").await;
    later().await;
    assert_eq!(mount.cat("d/a").await.unwrap(), "other");
    mount.write(handle, 0, "1").unwrap();
    mount.close(handle).await.unwrap();
    assert_eq!(world.get("m/a").await.unwrap(), "1NE");
    assert_eq!(world.keys().await, ["d/a", "d/b", "m/a"]);
}

#[tokio::test(start_paused = true)]
async fn reads_go_on_while_the_file_moves() {
    for directory in [false, true] {
        let world = World::s3();
        let text = "0123456789".repeat(500_000);
        world.put("d/f", &text).await;
        let mount = world.mount();
        let handle = mount.open("d/f", READ).await.unwrap();
        // The object is gone from its old key long before the rename is told so.
        mount
            .fault
            .set("delete:delay=1ms,copy:delay=500ms")
            .unwrap();
        let late = mount.late.hold_deletes();
        let read = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let release = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                drop(late);
            };
            tokio::join!(mount.read(handle, 3_000_000, 10), release).0
        };
        let (from, to) = if directory {
            ("d", "e")
        } else {
            ("d/f", "d/g")
        };
        let (renamed, text) = tokio::join!(mount.rename(from, to), read);
        renamed.unwrap();
        assert_eq!(text.as_deref(), Ok("0123456789"), "directory {directory}");
    }
}

#[tokio::test(start_paused = true)]
async fn renames_across_a_directory_and_its_child_do_not_wait_for_each_other() {
    let world = World::memory();
    let mount = world.mount();
    for i in 0..20 {
        mount.mkdir(&format!("p{i}")).await.unwrap();
        mount.mkdir(&format!("p{i}/c")).await.unwrap();
        mount.save(&format!("p{i}/c/f"), "x").await.unwrap();
        let (parent, child) = (format!("p{i}"), format!("p{i}/c"));
        let (p, c) = (
            mount.ino(&parent).await.unwrap(),
            mount.ino(&child).await.unwrap(),
        );
        mount.fault.set("*:delay=10ms").unwrap();
        later().await;
        let rename = mount.fs.rename((c, b"f"), (p, b"f"), 0);
        let rmdir = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            mount.fs.rmdir(p, b"c").await
        };
        let both = async { tokio::join!(rename, rmdir) };
        let both = tokio::time::timeout(Duration::from_secs(60), both).await;
        assert!(both.is_ok(), "a rename and an rmdir wait for each other");
        mount.fault.clear();
    }
}

#[tokio::test(start_paused = true)]
async fn impossible_renames_are_refused() {
    let world = World::memory();
    world.put("d/e/f", "x").await;
    world.put("f", "x").await;
    world.put("g/h", "x").await;
    let mount = world.mount();
    assert_eq!(mount.rename("d", "d/e/x").await, Err(libc::EINVAL));
    assert_eq!(mount.rename("d", "f").await, Err(libc::ENOTDIR));
    assert_eq!(mount.rename("f", "d").await, Err(libc::EISDIR));
    assert_eq!(mount.rename("d", "g").await, Err(libc::ENOTEMPTY));
    assert_eq!(mount.rename("none", "x").await, Err(libc::ENOENT));
    assert_eq!(mount.rename("f", "f").await, Ok(()));
    assert_eq!(mount.rename("f", ".bucketfs").await, Err(libc::EPERM));
    let long = "x".repeat(256);
    assert_eq!(mount.rename("f", &long).await, Err(libc::ENAMETOOLONG));
    assert_eq!(world.keys().await, ["d/e/f", "f", "g/h"]);
}

#[tokio::test(start_paused = true)]
async fn a_rename_that_could_not_look_before_its_delete_keeps_the_old_name() {
    let world = World::over(Plain::bare());
    world.put("a", "mine").await;
    let mount = world.mount();
    mount.stat("a").await.unwrap();
    // This store ignores conditions of a delete: what it would take is to be looked at first.
    mount.fault.set("head:error=unreachable").unwrap();
    let look = mount.rename("a", "b").await;
    mount.fault.set("").unwrap();
    assert_eq!(look, Err(libc::EIO));
    assert_eq!(world.get("a").await.unwrap(), "mine");
    mount.rename("a", "b").await.unwrap();
    assert_eq!(world.keys().await, ["b"]);
}
