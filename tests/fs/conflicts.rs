//! Lost races and lost replies: no acknowledged byte is lost, none is written twice.

use crate::store::Plain;
use crate::world::*;
use bucketfs::driver::Strength;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn the_loser_of_a_creation_gets_eexist_and_a_conflict_file() {
    for world in [World::memory(), World::s3()] {
        let (a, b) = (world.mount(), world.mount());
        let (one, two) = (a.open("f", CREATE).await, b.open("f", CREATE).await);
        let (one, two) = (one.unwrap(), two.unwrap());
        a.write(one, 0, "first").unwrap();
        b.write(two, 0, "second").unwrap();
        a.close(one).await.unwrap();
        assert_eq!(b.close(two).await, Err(libc::EEXIST));
        assert_eq!(world.get("f").await.unwrap(), "first");
        assert_eq!(world.conflicts("f").await, ["second"]);
        assert_eq!(b.cat("f").await.unwrap(), "first");
        let names = b.ls("").await.unwrap();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(b.cat(&names[1]).await.unwrap(), "second");
        let status = b.fs.status();
        assert_eq!(status.conflicts.len(), 1);
        assert!(status.conflicts[0].kept_as.starts_with("f.conflict-host2-"));
        assert_eq!(status.dirty_files, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_loser_of_a_change_gets_estale_and_a_conflict_file() {
    for world in [World::memory(), World::s3(), World::over(Plain::bare())] {
        world.put("d/f", "base").await;
        let (a, b) = (world.mount(), world.mount());
        let both = libc::O_RDWR;
        let (one, two) = (a.open("d/f", both).await, b.open("d/f", both).await);
        let (one, two) = (one.unwrap(), two.unwrap());
        assert_eq!(b.read(two, 0, 100).await.unwrap(), "base");
        a.write(one, 0, "B").unwrap();
        b.write(two, 3, "E").unwrap();
        a.close(one).await.unwrap();
        assert_eq!(b.close(two).await, Err(libc::ESTALE));
        assert_eq!(world.get("d/f").await.unwrap(), "Base");
        assert_eq!(world.conflicts("d/f").await, ["basE"]);
        assert_eq!(b.cat("d/f").await.unwrap(), "Base");
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_removed_elsewhere_is_a_lost_race_too() {
    let world = World::memory();
    world.put("f", "base").await;
    let mount = world.mount();
    let handle = mount.open("f", libc::O_RDWR).await.unwrap();
    mount.write(handle, 0, "B").unwrap();
    assert_eq!(mount.read(handle, 0, 100).await.unwrap(), "Base");
    world.delete("f").await;
    assert_eq!(mount.close(handle).await, Err(libc::ESTALE));
    assert_eq!(world.get("f").await, None);
    assert_eq!(world.conflicts("f").await, ["Base"]);
}

#[tokio::test(start_paused = true)]
async fn later_writes_of_the_loser_go_to_its_conflict_file() {
    let world = World::memory();
    world.put("f", "base").await;
    let mount = world.mount();
    let handle = mount.open("f", WRITE).await.unwrap();
    mount.write(handle, 0, "mine").unwrap();
    world.put("f", "theirs").await;
    assert_eq!(mount.flush(handle).await, Err(libc::ESTALE));
    mount.write(handle, 4, " and more").unwrap();
    mount.close(handle).await.unwrap();
    assert_eq!(world.conflicts("f").await, ["mine and more"]);
    assert_eq!(world.get("f").await.unwrap(), "theirs");
    mount.forget_all();
    assert_eq!(mount.fs.status().inodes, 1);
}

#[tokio::test(start_paused = true)]
async fn conflicts_of_one_second_get_numbers() {
    let world = World::memory();
    let mount = world.mount();
    for i in 0..3 {
        let handle = mount.open("f", REPLACE).await.unwrap();
        mount.write(handle, 0, "mine").unwrap();
        world.put("f", &format!("theirs {i}")).await;
        assert!(mount.close(handle).await.is_err());
    }
    assert_eq!(world.conflicts("f").await, ["mine"; 3]);
}

#[tokio::test(start_paused = true)]
async fn bytes_go_to_the_state_directory_when_no_conflict_file_can_be_written() {
    let world = World::memory();
    world.put("f", "base").await;
    let mount = world.mount();
    mount.fault.set("put:error=denied:key~.conflict-").unwrap();
    let handle = mount.open("f", WRITE).await.unwrap();
    mount.write(handle, 0, "mine").unwrap();
    world.put("f", "theirs").await;
    assert_eq!(mount.close(handle).await, Err(libc::ESTALE));
    assert_eq!(mount.kept(), ["mine"]);
    assert_eq!(world.keys().await, ["f"]);
    assert_eq!(mount.cat("f").await.unwrap(), "theirs");
    mount.forget_all();
    assert_eq!(mount.fs.status().inodes, 1);
}

#[tokio::test(start_paused = true)]
async fn writes_after_the_state_directory_took_the_bytes_are_not_dropped_silently() {
    let world = World::memory();
    world.put("f", "base").await;
    let mount = world.mount();
    mount.fault.set("put:error=denied:key~.conflict-").unwrap();
    let handle = mount.open("f", WRITE).await.unwrap();
    mount.write(handle, 0, "mine").unwrap();
    world.put("f", "theirs").await;
    assert_eq!(mount.flush(handle).await, Err(libc::ESTALE));
    mount.write(handle, 4, " and more").unwrap();
    assert_eq!(mount.close(handle).await, Err(libc::ESTALE));
    assert!(mount.kept().contains(&"mine and more".into()));
}

#[tokio::test(start_paused = true)]
async fn a_name_the_store_denies_goes_to_a_conflict_file() {
    let world = World::memory();
    let mount = world.mount();
    mount.fault.set("put:error=denied@1").unwrap();
    assert_eq!(mount.put("f", CREATE, "mine").await, Err(libc::EACCES));
    assert_eq!(world.conflicts("f").await, ["mine"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_recognised_without_retries() {
    for world in [World::memory(), World::s3()] {
        let mount = world.mount();
        let handle = mount.open("f", CREATE).await.unwrap();
        mount.write(handle, 0, "one").unwrap();
        mount.fault.set("put:lost-reply@1").unwrap();
        assert_eq!(mount.flush(handle).await, Err(libc::EIO));
        assert_eq!(mount.flush(handle).await, Ok(()));
        mount.write(handle, 3, " two").unwrap();
        mount.fault.set("put:lost-reply@1").unwrap();
        assert_eq!(mount.flush(handle).await, Err(libc::EIO));
        mount.write(handle, 7, " three").unwrap();
        assert_eq!(mount.close(handle).await, Ok(()));
        assert_eq!(world.get("f").await.unwrap(), "one two three");
        assert_eq!(world.keys().await, ["f"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_reply_is_recognised_by_retries() {
    let world = World::s3();
    let mount = world.retrying();
    mount.fault.set("put:lost-reply@1").unwrap();
    mount.put("f", CREATE, "one").await.unwrap();
    mount.fault.set("put:lost-reply@1").unwrap();
    mount.save("f", "two").await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "two");
    assert_eq!(world.keys().await, ["f"]);
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_others_built_upon_is_recognised() {
    for retry in [false, true] {
        let world = World::memory();
        world.put("f", "base").await;
        let mount = world.mount_with(|_| {}, retry);
        let other = world.mount();
        let handle = mount.open("f", WRITE).await.unwrap();
        mount.write(handle, 0, "mine").unwrap();
        // The put is applied at once; its answer is lost and the retry waits for the store.
        mount.fault.set("put:lost-reply@1,put:delay=5s@2+").unwrap();
        let flush = async {
            if !retry {
                assert_eq!(mount.flush(handle).await, Err(libc::EIO));
            }
            mount.flush(handle).await
        };
        let build = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            other.append("f", " theirs").await.unwrap();
        };
        let (flushed, ()) = tokio::join!(flush, build);
        assert_eq!(flushed, Ok(()), "retry {retry}");
        assert_eq!(world.get("f").await.unwrap(), "mine theirs");
        assert_eq!(world.keys().await, ["f"]);
    }
}

/// The descriptors that a child inherits are closed when it ends, and nobody looks at that.
#[tokio::test(start_paused = true)]
async fn a_loss_that_the_close_of_a_child_was_told_is_told_the_writer_too() {
    for fsyncs in [false, true] {
        let world = World::memory();
        world.put("f", "base").await;
        let mount = world.mount();
        let handle = mount.open("f", WRITE | libc::O_TRUNC).await.unwrap();
        mount.write(handle, 0, "mine").unwrap();
        world.put("f", "theirs").await;
        for child in 1..3 {
            let told = mount.fs.flush_of(handle, child).await;
            assert_eq!(told.unwrap_err().errno(), libc::ESTALE);
        }
        if fsyncs {
            let told = mount.fs.fsync(handle).await.map_err(|error| error.errno());
            assert_eq!(told, Err(libc::ESTALE));
            assert_eq!(mount.close(handle).await, Ok(()));
        } else {
            assert_eq!(mount.close(handle).await, Err(libc::ESTALE));
        }
        assert_eq!(world.get("f").await.unwrap(), "theirs");
        assert_eq!(world.conflicts("f").await, ["mine"]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_append_that_others_appended_to_is_not_appended_again() {
    for retry in [false, true] {
        let world = World::memory();
        world.put("log", "base\n").await;
        let mount = world.mount_with(|_| {}, retry);
        let other = world.mount();
        let handle = mount.open("log", APPEND).await.unwrap();
        mount.write(handle, 0, "mine\n").unwrap();
        mount.fault.set("put:lost-reply@1,put:delay=5s@2").unwrap();
        let flush = async {
            if !retry {
                assert_eq!(mount.flush(handle).await, Err(libc::EIO));
                mount.write(handle, 0, "more\n").unwrap();
            }
            mount.flush(handle).await
        };
        let build = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            other.append("log", "theirs\n").await.unwrap();
        };
        let (flushed, ()) = tokio::join!(flush, build);
        flushed.unwrap();
        let more = if retry { "" } else { "more\n" };
        assert_eq!(
            world.get("log").await.unwrap(),
            format!("base\nmine\ntheirs\n{more}")
        );
        mount.write(handle, 0, "last\n").unwrap();
        mount.close(handle).await.unwrap();
        assert_eq!(
            world.get("log").await.unwrap(),
            format!("base\nmine\ntheirs\n{more}last\n")
        );
        assert_eq!(world.keys().await, ["log"]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_append_whose_fate_a_foreign_writer_hid_is_kept_as_a_conflict() {
    for retry in [false, true] {
        let world = World::memory();
        world.put("log", "base\n").await;
        let mount = world.mount_with(|_| {}, retry);
        let handle = mount.open("log", APPEND).await.unwrap();
        mount.write(handle, 0, "mine\n").unwrap();
        mount.fault.set("put:lost-reply@1,put:delay=5s@2").unwrap();
        let flush = async {
            if !retry {
                assert_eq!(mount.flush(handle).await, Err(libc::EIO));
            }
            mount.flush(handle).await
        };
        let foreign = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let text = world.get("log").await.unwrap();
            world.put("log", &(text + "foreign\n")).await;
        };
        let (flushed, ()) = tokio::join!(flush, foreign);
        assert_eq!(flushed, Err(libc::ESTALE), "retry {retry}");
        assert_eq!(world.get("log").await.unwrap(), "base\nmine\nforeign\n");
        assert_eq!(world.conflicts("log").await, ["base\nmine\n"]);
    }
}

#[tokio::test(start_paused = true)]
async fn appends_of_two_mounts_are_merged() {
    for world in [World::memory(), World::s3(), World::over(Plain::bare())] {
        let (a, b) = (world.mount(), world.mount());
        for i in 0..10 {
            let (one, two) = (a.open("log", APPEND).await, b.open("log", APPEND).await);
            let (one, two) = (one.unwrap(), two.unwrap());
            a.write(one, 0, &format!("a{i}\n")).unwrap();
            b.write(two, 0, &format!("b{i}\n")).unwrap();
            let (one, two) = tokio::join!(a.close(one), b.close(two));
            one.unwrap();
            two.unwrap();
        }
        let text = world.get("log").await.unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 20, "{text}");
        lines.sort();
        lines.dedup();
        assert_eq!(lines.len(), 20, "{text}");
        assert_eq!(world.keys().await, ["log"]);
    }
}

#[tokio::test(start_paused = true)]
async fn appends_through_open_handles_are_merged() {
    let world = World::s3();
    let (a, b) = (world.mount(), world.mount());
    let one = a.open("log", APPEND).await.unwrap();
    let two = b.open("log", APPEND).await.unwrap();
    for i in 0..10 {
        a.write(one, 0, &format!("a{i}\n")).unwrap();
        a.flush(one).await.unwrap();
        b.write(two, 0, &format!("b{i}\n")).unwrap();
        b.flush(two).await.unwrap();
    }
    let expected: String = (0..10).map(|i| format!("a{i}\nb{i}\n")).collect();
    assert_eq!(world.get("log").await.unwrap(), expected);
    assert_eq!(
        b.read(b.open("log", READ).await.unwrap(), 0, 10_000)
            .await
            .unwrap(),
        expected
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_merged_is_not_written_over_by_who_has_not_seen_it() {
    let world = World::s3();
    world.put("log", "1\n").await;
    let mount = world.mount();
    let older = mount.open("log", libc::O_RDWR).await.unwrap();
    assert_eq!(mount.read(older, 0, 100).await.unwrap(), "1\n");
    let appending = mount.open("log", APPEND).await.unwrap();
    world.put("log", "1\ntheirs\n").await;
    mount.write(appending, 0, "ours\n").unwrap();
    mount.flush(appending).await.unwrap();
    assert_eq!(world.get("log").await.unwrap(), "1\ntheirs\nours\n");
    // Its end was here when it was read last.
    assert_eq!(mount.write(older, 2, "other\n"), Err(libc::ESTALE));
    let newer = mount.open("log", libc::O_RDWR).await.unwrap();
    mount.write(newer, 0, "2").unwrap();
    mount.close(newer).await.unwrap();
    assert_eq!(world.get("log").await.unwrap(), "2\ntheirs\nours\n");
    mount.read(older, 0, 100).await.unwrap();
    mount.write(older, 0, "3").unwrap();
    mount.close(older).await.unwrap();
    mount.close(appending).await.unwrap();
    assert_eq!(world.get("log").await.unwrap(), "3\ntheirs\nours\n");
}

#[tokio::test(start_paused = true)]
async fn an_exclusive_creation_is_never_merged() {
    let world = World::memory();
    let (a, b) = (world.mount(), world.mount());
    let flags = EXCLUSIVE | libc::O_APPEND;
    let (one, two) = (a.open("f", flags).await, b.open("f", flags).await);
    let (one, two) = (one.unwrap(), two.unwrap());
    a.write(one, 0, "first\n").unwrap();
    b.write(two, 0, "second\n").unwrap();
    a.close(one).await.unwrap();
    assert_eq!(b.close(two).await, Err(libc::EEXIST));
    assert_eq!(world.get("f").await.unwrap(), "first\n");
    assert_eq!(world.conflicts("f").await, ["second\n"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_copy_keeps_the_copied_bytes() {
    for world in [
        World::memory(),
        World::over(Plain::s3().copying(Strength::None)),
    ] {
        world.put("a", "copied").await;
        let mount = world.mount();
        let from = mount.open("a", READ).await.unwrap();
        let to = mount.open("b", CREATE).await.unwrap();
        let copied = mount.fs.copy_file_range((from, 0), (to, 0), 100, 7);
        assert_eq!(copied.await.unwrap(), 6);
        world.put("b", "theirs").await;
        assert_eq!(mount.close(to).await, Err(libc::EEXIST));
        assert_eq!(world.conflicts("b").await, ["copied"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_whose_source_is_gone_is_an_error_and_no_file_of_zeros() {
    let world = World::s3();
    world.put("a", &"x".repeat(5_000_000)).await;
    let mount = world.mount();
    let from = mount.open("a", READ).await.unwrap();
    let to = mount.open("b", CREATE).await.unwrap();
    let copied = mount.fs.copy_file_range((from, 0), (to, 0), 1 << 30, 7);
    assert_eq!(copied.await.unwrap(), 5_000_000);
    world.delete("a").await;
    assert!(mount.close(to).await.is_err());
    for key in world.keys().await {
        assert!(!world.get(&key).await.unwrap().contains('\0'), "{key}");
    }
    assert!(mount.kept().is_empty());
    assert_eq!(
        mount.fs.status().dirty_files,
        0,
        "there is nothing left to send"
    );
}

#[tokio::test(start_paused = true)]
async fn every_handle_that_wrote_is_told_of_the_loss() {
    let world = World::memory();
    world.put("f", "base").await;
    let mount = world.mount();
    let one = mount.open("f", WRITE).await.unwrap();
    let two = mount.open("f", libc::O_RDWR).await.unwrap();
    mount.read(two, 0, 100).await.unwrap();
    let idle = mount.open("f", WRITE).await.unwrap();
    mount.write(one, 0, "1").unwrap();
    mount.write(two, 1, "2").unwrap();
    world.put("f", "theirs").await;
    assert_eq!(mount.close(one).await, Err(libc::ESTALE));
    assert_eq!(mount.close(idle).await, Ok(()));
    assert_eq!(mount.close(two).await, Err(libc::ESTALE));
    assert_eq!(world.conflicts("f").await, ["12se"]);
}

#[tokio::test(start_paused = true)]
async fn a_loss_in_the_background_is_told_by_the_next_flush() {
    let world = World::memory();
    world.put("f", "base").await;
    let mount = world.mount();
    let handle = mount.open("f", WRITE).await.unwrap();
    mount.write(handle, 0, "mine").unwrap();
    mount.fault.set("put:error=unreachable").unwrap();
    assert_eq!(mount.flush(handle).await, Err(libc::EIO));
    world.put("f", "theirs").await;
    mount.fault.clear();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.conflicts("f").await, ["mine"]);
    assert_eq!(mount.close(handle).await, Err(libc::ESTALE));
}

#[tokio::test(start_paused = true)]
async fn a_file_beside_a_directory_gets_its_conflict_file_beside_it() {
    let world = World::memory();
    world.put("a", "base").await;
    world.put("a/b", "x").await;
    let mount = world.mount();
    let handle = mount.open("a%~f", WRITE).await.unwrap();
    mount.write(handle, 0, "mine").unwrap();
    world.put("a", "theirs").await;
    assert_eq!(mount.close(handle).await, Err(libc::ESTALE));
    assert_eq!(world.conflicts("a").await, ["mine"]);
    assert_eq!(mount.ls("").await.unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_writer_is_told_the_loss_of_its_first_bytes_after_it_wrote_more() {
    let world = World::memory();
    world.put("f", "base").await;
    let mount = world.mount();
    let one = mount.open("f", WRITE).await.unwrap();
    let two = mount.open("f", WRITE).await.unwrap();
    mount.write(one, 0, "mi").unwrap();
    world.put("f", "other").await;
    // The other handle's flush commits, and loses, what this one has written so far.
    assert_eq!(mount.flush(two).await, Err(libc::ESTALE));
    mount.write(one, 2, "ne").unwrap();
    assert_eq!(mount.close(one).await, Err(libc::ESTALE));
    mount.close(two).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "other");
    assert_eq!(world.conflicts("f").await, ["mine"]);
}

#[tokio::test(start_paused = true)]
async fn a_handle_is_not_told_the_loss_of_what_another_wrote_after_its_flush() {
    let world = World::memory();
    world.put("f", "base").await;
    let mount = world.mount();
    let one = mount.open("f", WRITE).await.unwrap();
    let two = mount.open("f", WRITE).await.unwrap();
    mount.write(one, 0, "B").unwrap();
    mount.flush(one).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "Base");
    world.put("f", "other").await;
    mount.write(two, 3, "E").unwrap();
    assert_eq!(mount.close(two).await, Err(libc::ESTALE));
    mount.close(one).await.unwrap();
    assert_eq!(world.conflicts("f").await, ["BasE"]);
}

#[tokio::test(start_paused = true)]
async fn a_late_release_does_not_commit_what_the_next_handle_has_half_written() {
    let world = World::memory();
    world.put("f", "base").await;
    let mount = world.mount();
    let one = mount.open("f", WRITE).await.unwrap();
    mount.write(one, 0, "1111").unwrap();
    mount.flush(one).await.unwrap();
    // The kernel answers close after the flush; its release may come when more is open.
    let two = mount.open("f", WRITE).await.unwrap();
    mount.write(two, 0, "22").unwrap();
    mount.fs.release(one).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "1111");
    mount.write(two, 2, "22").unwrap();
    mount.close(two).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "2222");
    assert_eq!(world.keys().await, ["f"]);
}

#[tokio::test(start_paused = true)]
async fn a_late_release_does_not_commit_what_was_written_during_its_flush() {
    let world = World::memory();
    world.put("f", "base").await;
    let mount = world.mount();
    let one = mount.open("f", WRITE).await.unwrap();
    let two = mount.open("f", WRITE).await.unwrap();
    mount.write(one, 0, "11").unwrap();
    mount.fault.set("put:delay=1s").unwrap();
    let begins = async {
        half_a_second().await;
        mount.write(two, 2, "2").unwrap();
    };
    let (flushed, ()) = tokio::join!(mount.flush(one), begins);
    flushed.unwrap();
    mount.fs.release(one).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "11se");
    mount.write(two, 3, "2").unwrap();
    mount.close(two).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "1122");
}

#[tokio::test(start_paused = true)]
async fn what_a_mapping_stores_after_the_flush_is_committed_by_any_release() {
    let world = World::memory();
    world.put("f", "base").await;
    let mount = world.mount();
    let one = mount.open("f", libc::O_RDWR).await.unwrap();
    let two = mount.open("f", libc::O_RDWR).await.unwrap();
    mount.flush(one).await.unwrap();
    // The kernel writes pages back through whichever handle it finds.
    mount.fs.write(two, 0, b"page", 0, true).unwrap();
    mount.fs.release(one).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "page");
    mount.close(two).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_writer_is_told_the_loss_of_what_it_wrote_after_another_handle_lost() {
    let world = World::memory();
    world.put("f", "base").await;
    let mount = world.mount();
    let one = mount.open("f", WRITE).await.unwrap();
    let two = mount.open("f", WRITE).await.unwrap();
    mount.write(one, 0, "mi").unwrap();
    world.put("f", "other").await;
    assert_eq!(mount.flush(one).await, Err(libc::ESTALE));
    // What this handle writes is in the conflict file, and not in the file that it opened.
    mount.write(two, 2, "ne").unwrap();
    assert_eq!(mount.close(two).await, Err(libc::ESTALE));
    mount.close(one).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "other");
    assert_eq!(world.conflicts("f").await, ["mine"]);
}

#[tokio::test(start_paused = true)]
async fn an_open_that_a_loss_overtakes_opens_what_has_the_name() {
    let world = World::memory();
    world.put("f", "base").await;
    let mount = world.mount();
    let one = mount.open("f", WRITE).await.unwrap();
    world.put("f", "other").await;
    mount.fault.set("get:delay=1s").unwrap();
    let lose = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        mount.write(one, 0, "mine").unwrap();
        assert_eq!(mount.flush(one).await, Err(libc::ESTALE));
    };
    let (two, ()) = tokio::join!(mount.open("f", WRITE), lose);
    let two = two.unwrap();
    mount.write(two, 0, "an").unwrap();
    mount.close(two).await.unwrap();
    mount.close(one).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "anher");
    assert_eq!(world.conflicts("f").await, ["mine"]);
}
