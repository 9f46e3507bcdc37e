//! One test for each bug that a suite or a program found through a mount, named for its cause.

use crate::world::*;
use bucketfs::fs::{Kind, ROOT, SetAttr};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn an_open_that_meets_our_own_rename_does_not_take_it_for_somebody_elses() {
    for world in [World::memory(), World::s3()] {
        world.put("a", "text").await;
        let mount = world.mount();
        let ino = mount.ino("a").await.unwrap();
        later().await;
        // The open's request reaches the store when the old name is gone.
        mount.fault.set("get:delay=1s").unwrap();
        let rename = async {
            half_a_second().await;
            mount.rename("a", "b").await
        };
        let (opened, renamed) = tokio::join!(mount.fs.open(ino, READ, CALLER), rename);
        renamed.unwrap();
        mount.fault.set("").unwrap();
        let opened = opened.unwrap();
        assert_eq!(mount.read(opened.handle, 0, 10).await.unwrap(), "text");
        assert_eq!(mount.ino("b").await.unwrap(), ino);
        assert_eq!(mount.cat("b").await.unwrap(), "text");
    }
}

#[tokio::test(start_paused = true)]
async fn files_stay_open_while_their_directory_is_renamed() {
    for world in [World::memory(), World::s3()] {
        world.put("d/s/f", "text").await;
        let mount = world.mount();
        let ino = mount.ino("d/s/f").await.unwrap();
        let held = mount.open("d/s/f", READ).await.unwrap();
        later().await;
        mount.fault.set("get:delay=1s").unwrap();
        let rename = async {
            half_a_second().await;
            mount.rename("d", "e").await
        };
        let (opened, renamed) = tokio::join!(mount.fs.open(ino, READ, CALLER), rename);
        renamed.unwrap();
        mount.fault.set("").unwrap();
        let opened = opened.unwrap().handle;
        assert_eq!(mount.read(opened, 0, 10).await.unwrap(), "text");
        assert_eq!(mount.read(held, 0, 10).await.unwrap(), "text");
        assert_eq!(mount.ino("e/s/f").await.unwrap(), ino);
    }
}

#[tokio::test(start_paused = true)]
async fn a_running_program_is_not_emptied_by_a_truncating_open_for_reading() {
    const EXECUTES: i32 = 0x20;
    let world = World::memory();
    world.put("program", "text").await;
    let mount = world.mount();
    let running = mount.open("program", READ | EXECUTES).await.unwrap();
    let emptied = mount.open("program", READ | libc::O_TRUNC).await;
    assert_eq!(emptied, Err(libc::ETXTBSY));
    assert_eq!(mount.cat("program").await.unwrap(), "text");
    mount.close(running).await.unwrap();
    let handle = mount.open("program", READ | libc::O_TRUNC).await.unwrap();
    mount.close(handle).await.unwrap();
    assert_eq!(mount.cat("program").await.unwrap(), "");
}

#[tokio::test(start_paused = true)]
async fn asking_the_store_again_moves_no_times_of_what_was_made_here() {
    for world in [World::memory(), World::s3()] {
        let mount = world.mount();
        mount.save("file", "text").await.unwrap();
        mount.mkdir("directory").await.unwrap();
        mount.save("renamed", "text").await.unwrap();
        mount.rename("renamed", "file2").await.unwrap();
        let mode = SetAttr {
            mode: Some(0o600),
            ..SetAttr::default()
        };
        mount.save("changed", "text").await.unwrap();
        mount.setattr("changed", mode).await.unwrap();
        for path in ["file", "directory", "file2", "changed"] {
            let before = mount.stat(path).await.unwrap();
            later().await;
            let after = mount.stat(path).await.unwrap();
            assert_eq!(before, after, "{path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_close_of_a_file_made_by_an_open_for_reading_waits_for_the_store() {
    let world = World::memory();
    let mount = world.mount();
    let (_, opened) = mount.open_with("new", READ | libc::O_CREAT).await.unwrap();
    assert!(!opened.no_flush);
    mount.flush(opened.handle).await.unwrap();
    assert_eq!(world.get("new").await.unwrap(), "");
    world.put("old", "text").await;
    let (_, opened) = mount.open_with("old", READ | libc::O_TRUNC).await.unwrap();
    assert!(!opened.no_flush);
    mount.flush(opened.handle).await.unwrap();
    assert_eq!(world.get("old").await.unwrap(), "");
    let (_, opened) = mount.open_with("old", READ).await.unwrap();
    assert!(opened.no_flush);
}

#[tokio::test(start_paused = true)]
async fn a_renamed_directory_changes_its_ctime_and_keeps_it() {
    let world = World::memory();
    let mount = world.mount();
    mount.mkdir("d").await.unwrap();
    let before = mount.stat("d").await.unwrap();
    std::thread::sleep(Duration::from_millis(2));
    mount.rename("d", "e").await.unwrap();
    let after = mount.stat("e").await.unwrap();
    assert!(after.ctime > before.ctime);
    later().await;
    assert_eq!(mount.stat("e").await.unwrap(), after);
}

#[tokio::test(start_paused = true)]
async fn a_lookup_in_a_directory_that_is_renamed_meanwhile_finds_the_file_where_it_is_now() {
    let world = World::memory();
    world.put("d/f", "text").await;
    let mount = world.mount();
    let directory = mount.ino("d").await.unwrap();
    mount
        .fault
        .set("head:delay=1s@1:key~d/f,list:delay=1s@1:key~d/f")
        .unwrap();
    let rename = async {
        half_a_second().await;
        mount.rename("d", "e").await
    };
    let (found, renamed) = tokio::join!(mount.look(directory, b"f"), rename);
    renamed.unwrap();
    assert_eq!(found, mount.look(directory, b"f").await);
    assert!(found.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_absent_before_a_lock_was_won_is_asked_for_again() {
    let world = World::memory();
    let mount = world.mount_with(
        |options| options.negative_ttl = Duration::from_secs(60),
        false,
    );
    assert!(!mount.exists("counter").await);
    world.put("counter", "1").await;
    half_a_second().await;
    let lock = mount.open("lock", EXCLUSIVE).await.unwrap();
    let handle = mount
        .open("counter", libc::O_RDWR | libc::O_CREAT)
        .await
        .unwrap();
    assert_eq!(mount.read(handle, 0, 10).await.unwrap(), "1");
    mount.write(handle, 0, "2").unwrap();
    mount.close(handle).await.unwrap();
    mount.close(lock).await.unwrap();
    assert_eq!(world.get("counter").await.unwrap(), "2");
}

#[tokio::test(start_paused = true)]
async fn what_is_written_while_the_losers_bytes_are_put_away_is_not_dropped() {
    let world = World::memory();
    world.put("f", "base").await;
    let mount = world.mount();
    mount
        .fault
        .set("put:delay=1s,put:error=denied:key~.conflict-")
        .unwrap();
    let handle = mount.open("f", WRITE).await.unwrap();
    let second = mount.open("f", WRITE).await.unwrap();
    mount.write(handle, 0, "mine").unwrap();
    world.put("f", "theirs").await;
    let late = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        mount.write(second, 4, " and more").unwrap();
    };
    let (flushed, ()) = tokio::join!(mount.flush(handle), late);
    assert_eq!(flushed, Err(libc::ESTALE));
    assert_eq!(mount.close(second).await, Err(libc::ESTALE));
    assert!(mount.kept().contains(&"mine and more".into()));
    mount.close(handle).await.ok();
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_fate_could_not_be_asked_for_is_not_appended_again() {
    let world = World::memory();
    let (mount, other) = (world.retrying(), world.mount());
    other.append("log", "one\n").await.unwrap();
    let handle = mount.open("log", APPEND).await.unwrap();
    mount.write(handle, 0, "two\n").unwrap();
    mount
        .fault
        .set("put:lost-reply@1,put:delay=1s@2,head:error=unavailable@2+")
        .unwrap();
    let append = async {
        half_a_second().await;
        other.append("log", "three\n").await
    };
    let (flushed, appended) = tokio::join!(mount.flush(handle), append);
    assert_eq!((flushed, appended), (Err(libc::EIO), Ok(())));
    mount.fault.clear();
    mount.close(handle).await.unwrap();
    assert_eq!(world.get("log").await.unwrap(), "one\ntwo\nthree\n");
}

#[tokio::test(start_paused = true)]
async fn a_file_copied_here_while_another_copy_is_committed_is_not_taken_for_that_one() {
    let world = World::s3();
    world.put("short", "0123456789").await;
    world.put("long", "abcdefghijklmnop").await;
    let mount = world.mount();
    let short = mount.open("short", READ).await.unwrap();
    let long = mount.open("long", READ).await.unwrap();
    let first = mount.open("f", REPLACE).await.unwrap();
    let copied = mount.fs.copy_file_range((short, 0), (first, 0), 100, 7);
    assert_eq!(copied.await.unwrap(), 10);
    mount.fault.set("copy:delay=1s").unwrap();
    let again = async {
        half_a_second().await;
        let second = mount.open("f", REPLACE).await.unwrap();
        let copied = mount.fs.copy_file_range((long, 0), (second, 0), 100, 7);
        assert_eq!(copied.await.unwrap(), 16);
        second
    };
    let (flushed, second) = tokio::join!(mount.flush(first), again);
    flushed.unwrap();
    mount.close(second).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "abcdefghijklmnop");
}

#[tokio::test(start_paused = true)]
async fn a_file_copied_here_while_the_name_moves_is_not_taken_for_what_was_there() {
    let world = World::s3();
    world.put("source", "abcdefghijklmnop").await;
    world.put("old", "0123456789012345").await;
    let mount = world.mount();
    let source = mount.open("source", READ).await.unwrap();
    mount.stat("old").await.unwrap();
    mount.fault.set("copy:delay=1s@1").unwrap();
    let copy = async {
        half_a_second().await;
        let handle = mount.open("old", REPLACE).await.unwrap();
        let copied = mount
            .fs
            .copy_file_range((source, 0), (handle, 0), 100, 7)
            .await;
        assert_eq!(copied.unwrap(), 16);
        handle
    };
    let (renamed, handle) = tokio::join!(mount.rename("old", "new"), copy);
    renamed.unwrap();
    mount.close(handle).await.unwrap();
    assert_eq!(world.get("new").await.unwrap(), "abcdefghijklmnop");
}

/// A look at the store that failed was taken for a name that is gone.
#[tokio::test(start_paused = true)]
async fn a_name_whose_attributes_could_not_be_asked_for_is_listed() {
    let world = World::memory();
    world.put("d/f", "text").await;
    world.put("f", "text").await;
    let mount = world.mount();
    mount.fault.set("head:error=unavailable").unwrap();
    assert_eq!(mount.ls("").await.unwrap(), ["d", "f"]);
    mount.fault.clear();
    assert_eq!(mount.ls("").await.unwrap(), ["d", "f"]);
}

/// What was believed of a name outlived a change of it that failed without telling whether it
/// happened.
#[tokio::test(start_paused = true)]
async fn a_name_is_looked_up_again_after_a_change_whose_answer_was_lost() {
    let world = World::memory();
    world.put("f", "text").await;
    world.put("e/", "").await;
    let mount = world.mount_with(
        |options| {
            options.metadata_ttl = Duration::from_secs(3600);
            options.negative_ttl = options.metadata_ttl;
        },
        false,
    );
    assert!(!mount.exists("d").await);
    assert!(mount.exists("f").await && mount.exists("e").await);
    let told = |name: &str| Told::Entry(bucketfs::fs::ROOT, name.into());
    for (fault, name) in [("put", "d"), ("delete", "f"), ("delete", "e")] {
        mount.kernel.told();
        mount.fault.set(&format!("{fault}:lost-reply@1")).unwrap();
        let outcome = match name {
            "d" => mount.mkdir(name).await.map(drop),
            "f" => mount.unlink(name).await,
            _ => mount.rmdir(name).await,
        };
        assert_eq!(outcome, Err(libc::EIO), "{name}");
        mount.fault.clear();
        assert!(mount.kernel.told().contains(&told(name)), "{name}");
        assert_eq!(mount.exists(name).await, name == "d", "{name}");
    }
    assert_eq!(mount.ls("").await.unwrap(), ["d"]);
}

#[tokio::test(start_paused = true)]
async fn a_removal_of_a_lock_that_is_sent_again_leaves_the_next_owners() {
    let world = World::memory();
    let (mount, other) = (world.retrying(), world.mount());
    mount.put("lock", EXCLUSIVE, "mine").await.unwrap();
    mount
        .fault
        .set("delete:lost-reply@1,delete:delay=1s@2")
        .unwrap();
    let next = async {
        half_a_second().await;
        other.put("lock", EXCLUSIVE, "theirs").await
    };
    let (removed, next) = tokio::join!(mount.unlink("lock"), next);
    assert_eq!((removed, next), (Ok(()), Ok(())));
    assert_eq!(world.get("lock").await.unwrap(), "theirs");
    let again = mount.put("lock", EXCLUSIVE, "mine").await;
    assert_eq!(again, Err(libc::EEXIST));
}

/// What a listing under way had not told, and a change of somebody else made unknown, was left out
/// although it had been committed here meanwhile.
#[tokio::test(start_paused = true)]
async fn a_file_committed_and_changed_elsewhere_during_a_listing_is_listed() {
    let world = World::watched();
    let mount = world.mount();
    half_a_second().await;
    let file = mount.open("f", CREATE).await.unwrap();
    mount.write(file, 0, "ours").unwrap();
    assert_eq!(mount.ls("").await.unwrap(), ["f"]);
    world.put("other", "x").await;
    half_a_second().await;
    let held = mount.late.hold_lists();
    let changes = async {
        half_a_second().await;
        mount.flush(file).await.unwrap();
        half_a_second().await;
        world.put("f", "theirs").await;
        half_a_second().await;
        drop(held);
    };
    let (listed, ()) = tokio::join!(mount.ls(""), changes);
    assert_eq!(listed.unwrap(), ["f", "other"]);
}

#[tokio::test(start_paused = true)]
async fn a_create_that_met_a_link_made_elsewhere_emptied_the_link() {
    let world = World::memory();
    let (mount, other) = (world.mount(), world.mount());
    let made = other.fs.symlink(ROOT, b"f", b"target", CALLER).await;
    made.unwrap();
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
    let refused = mount.fs.create(ROOT, b"f", 0o644, flags, CALLER).await;
    assert_eq!(refused.unwrap_err().errno(), libc::ESTALE);
    let link = mount.look(ROOT, b"f").await.unwrap().attr;
    assert_eq!(link.kind, Kind::Symlink);
    let refused = mount.fs.open(link.ino, flags, CALLER).await;
    assert_eq!(refused.unwrap_err().errno(), libc::ELOOP);
    assert_eq!(mount.fs.status().handles, 0);
    for mount in [&mount, &other] {
        let ino = mount.ino("f").await.unwrap();
        assert_eq!(mount.fs.readlink(ino).await.unwrap(), &b"target"[..]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_small_file_that_was_renamed_was_not_all_there_after_its_open() {
    for world in [World::memory(), World::s3()] {
        let text = "text".repeat(2500);
        let mount = world.mount();
        mount.save("new", &text).await.unwrap();
        mount.rename("new", "f").await.unwrap();
        later().await;
        let handle = mount.open("f", READ).await.unwrap();
        world.put("f", "another").await;
        assert!(mount.read(handle, 0, 10_000).await.unwrap() == text);
    }
}

/// The kernel puts what is appended where it believes the end to be.
#[tokio::test(start_paused = true)]
async fn what_was_appended_behind_others_was_not_told_to_the_kernel() {
    let world = World::memory();
    let (mount, other) = (world.mount(), world.mount());
    mount.save("log", "base ").await.unwrap();
    let flags = libc::O_RDWR | libc::O_APPEND;
    let (ino, opened) = mount.open_with("log", flags).await.unwrap();
    let handle = opened.handle;
    other.append("log", "theirs ").await.unwrap();
    mount.write(handle, 5, "ours ").unwrap();
    mount.kernel.told();
    mount.flush(handle).await.unwrap();
    let told = [
        Told::Inode(ino, true),
        Told::GoesOn(ino, 5, "theirs ours ".into()),
    ];
    assert_eq!(mount.kernel.told(), told);
    // It need not have heard that yet.
    mount.write(handle, 10, "and more").unwrap();
    let told = Told::GoesOn(ino, 5, "theirs ours and more".into());
    assert_eq!(mount.kernel.told(), [told]);
    assert_eq!(
        mount.read(handle, 0, 99).await.unwrap(),
        "base theirs ours and more"
    );
    mount.close(handle).await.unwrap();
    assert_eq!(world.get("log").await.unwrap(), "base theirs ours and more");
}

#[tokio::test(start_paused = true)]
async fn df_neither_fails_nor_waits_while_the_store_is_silent() {
    let world = World::memory();
    let mount = world.mount();
    let room = async || {
        let began = tokio::time::Instant::now();
        let room = mount.fs.statfs().await;
        (room, began.elapsed())
    };
    let second = Duration::from_secs(1);
    mount.fault.set("space:hang").unwrap();
    let (guess, took) = room().await;
    assert!(guess.free > 0 && took < second, "{guess:?} {took:?}");
    assert_eq!(room().await, (guess, Duration::ZERO));
    mount.fault.set("space:error=unavailable").unwrap();
    for _ in 0..3 {
        tokio::time::sleep(100 * second).await;
        let (again, took) = room().await;
        assert!(again == guess && took < second, "{again:?} {took:?}");
    }
    // What it told is shown again when it is silent anew.
    mount.fault.set("").unwrap();
    tokio::time::sleep(100 * second).await;
    room().await;
    let (known, took) = room().await;
    assert!(took < second);
    mount.fault.set("space:hang").unwrap();
    tokio::time::sleep(100 * second).await;
    let (shown, took) = room().await;
    assert!(shown == known && took < second, "{shown:?} {took:?}");
    assert_eq!(room().await, (known, Duration::ZERO));
}
