//! Commits, and what else happens to a file while they run or after they failed.

use crate::world::*;
use bucketfs::driver::Driver;
use bucketfs::fs::SetAttr;
use std::sync::Arc;
use std::time::Duration;

const MIB: usize = 1 << 20;

/// A text of which every line tells where it is.
fn lines(len: usize, mark: char) -> String {
    let line = |at: usize| format!("{mark}{:014}\n", at * 16);
    (0..len / 16).map(line).collect()
}

async fn write_all(mount: &Mount, handle: u64, text: &str) {
    for at in (0..text.len()).step_by(MIB) {
        let end = text.len().min(at + MIB);
        mount.write(handle, at as u64, &text[at..end]).unwrap();
    }
}

async fn read_all(mount: &Mount, handle: u64, len: usize) -> String {
    let mut text = String::new();
    while text.len() < len {
        let part = mount.read(handle, text.len() as u64, 1 << 20).await;
        text += &part.unwrap();
    }
    text
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_was_read_while_the_bytes_before_it_were_committed_is_not_taken_for_them() {
    let world = World::memory();
    let (old, new) = (lines(20 * MIB, 'A'), lines(20 * MIB, 'B'));
    world.put("source", &new).await;
    let mount = world.mount();
    let source = mount.open("source", READ).await.unwrap();
    let first = mount.open("f", CREATE).await.unwrap();
    write_all(&mount, first, &old).await;
    mount.fault.set("complete:delay=5s,put:delay=5s").unwrap();
    let again = async {
        half_a_second().await;
        let flags = libc::O_RDWR | libc::O_TRUNC;
        let second = mount.open("f", flags).await.unwrap();
        let mut at = 0;
        while at < new.len() as u64 {
            let ends = ((source, at), (second, at));
            let copied = mount.fs.copy_file_range(ends.0, ends.1, 1 << 30, 7).await;
            at += u64::from(copied.unwrap());
        }
        assert!(read_all(&mount, second, new.len()).await == new);
        second
    };
    let (flushed, second) = tokio::join!(mount.flush(first), again);
    flushed.unwrap();
    mount.fault.clear();
    mount.close(second).await.unwrap();
    mount.close(first).await.unwrap();
    assert!(world.get("f").await.unwrap() == new);
}

/// What this mount has acknowledged as copied is not its own to lose.
#[tokio::test(start_paused = true)]
async fn a_copy_outlives_what_this_mount_does_to_its_source() {
    let text = lines(5 * MIB, 'x');
    for what in ["unlink", "rename", "replace", "overwrite", "directory"] {
        let world = World::s3();
        world.put("d/a", &text).await;
        world.put("other", "other").await;
        let mount = world.mount();
        let from = mount.open("d/a", READ).await.unwrap();
        let to = mount.open("b", CREATE).await.unwrap();
        let copied = mount.fs.copy_file_range((from, 0), (to, 0), 1 << 30, 7);
        assert_eq!(copied.await.unwrap() as usize, text.len());
        mount.close(from).await.unwrap();
        match what {
            "unlink" => mount.unlink("d/a").await.unwrap(),
            "rename" => mount.rename("d/a", "c").await.unwrap(),
            "replace" => mount.rename("other", "d/a").await.unwrap(),
            "overwrite" => mount.save("d/a", "new").await.unwrap(),
            _ => mount.rename("d", "e").await.unwrap(),
        }
        mount.close(to).await.unwrap();
        assert!(world.get("b").await.unwrap() == text, "{what}");
        assert!(mount.fs.status().conflicts.is_empty(), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_and_a_rename_end_while_somebody_keeps_writing() {
    let world = World::memory();
    world.put("log", "base\n").await;
    let mount = world.mount();
    let busy = mount.open("log", APPEND).await.unwrap();
    mount.fault.set("put:delay=1s").unwrap();
    let writing = async {
        for i in 0.. {
            mount.write(busy, 0, &format!("busy {i}\n")).unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let others = async {
        half_a_second().await;
        let other = mount.open("log", APPEND).await.unwrap();
        mount.write(other, 0, "other\n").unwrap();
        mount.flush(other).await.unwrap();
        assert!(world.get("log").await.unwrap().contains("other\n"));
        mount.close(other).await.unwrap();
        mount.rename("log", "log.1").await.unwrap();
    };
    tokio::select! {
        () = writing => unreachable!(),
        ended = tokio::time::timeout(Duration::from_secs(30), others) => ended.unwrap(),
    }
    mount.fault.clear();
    let log = world.get("log.1").await.unwrap();
    assert!(log.contains("other\n"), "{log}");
    mount.write(busy, 0, "last\n").unwrap();
    mount.close(busy).await.unwrap();
    let log = world.get("log.1").await.unwrap();
    assert!(log.ends_with("last\n"), "{log}");
    let mut numbers = log.lines().filter_map(|line| line.strip_prefix("busy "));
    assert!(
        (0..)
            .zip(numbers.by_ref())
            .all(|(i, told)| told == i.to_string())
    );
    assert_eq!(mount.fs.status().dirty_files, 0);
}

/// Nobody else would commit it.
#[tokio::test(start_paused = true)]
async fn what_is_changed_during_the_last_commit_is_committed_as_well() {
    let world = World::memory();
    let mount = world.mount();
    let handle = mount.open("f", CREATE).await.unwrap();
    mount.write(handle, 0, "bytes").unwrap();
    mount.fault.set("put:delay=1s").unwrap();
    let change = async {
        half_a_second().await;
        mount.setattr("f", mode(0o600)).await.unwrap();
    };
    let (closed, ()) = tokio::join!(mount.close(handle), change);
    closed.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(mount.fs.status().dirty_files, 0);
    let info = world.raw().head(&"f".into()).await.unwrap();
    assert_eq!(info.told_attributes().mode, Some(0o100_600));
}

/// The first attempt was applied, and its answer lost; the second was refused for another reason.
#[tokio::test(start_paused = true)]
async fn an_append_that_was_refused_after_a_lost_reply_is_not_appended_again() {
    for refused in ["unauthenticated", "no-space", "denied"] {
        let world = World::memory();
        world.put("log", "base\n").await;
        let mount = world.retrying();
        let handle = mount.open("log", APPEND).await.unwrap();
        mount.write(handle, 0, "mine\n").unwrap();
        let faults = format!("put:lost-reply@1,put:error={refused}@2");
        mount.fault.set(&faults).unwrap();
        let _ = mount.flush(handle).await;
        mount.fault.clear();
        mount.write(handle, 0, "more\n").unwrap();
        mount.close(handle).await.unwrap();
        let log = world.get("log").await.unwrap();
        assert_eq!(log, "base\nmine\nmore\n", "{refused}");
        assert_eq!(world.keys().await, ["log"], "{refused}");
    }
}

/// Behind a foreign writer who drops the commit ids, a chain of them begins anew.
#[tokio::test(start_paused = true)]
async fn a_chain_of_commits_that_begins_behind_a_foreign_writer_proves_nothing() {
    let world = World::memory();
    world.put("log", "base\n").await;
    let (mount, other) = (world.mount(), world.mount());
    let handle = mount.open("log", APPEND).await.unwrap();
    mount.write(handle, 0, "mine\n").unwrap();
    mount.fault.set("put:lost-reply@1").unwrap();
    assert_eq!(mount.flush(handle).await, Err(libc::EIO));
    let text = world.get("log").await.unwrap();
    world.put("log", &(text + "foreign\n")).await;
    other.append("log", "theirs\n").await.unwrap();
    assert_eq!(mount.flush(handle).await, Err(libc::ESTALE));
    let log = world.get("log").await.unwrap();
    assert_eq!(log, "base\nmine\nforeign\ntheirs\n");
    assert_eq!(world.conflicts("log").await, ["base\nmine\n"]);
}

/// Nobody heard what became of it.
#[tokio::test(start_paused = true)]
async fn an_append_whose_commit_was_given_up_is_not_appended_again() {
    let world = World::memory();
    world.put("log", "base\n").await;
    let mount = world.mount();
    let handle = mount.open("log", APPEND).await.unwrap();
    mount.write(handle, 0, "mine\n").unwrap();
    let held = mount.late.hold_puts();
    let report = mount.fs.drain(Duration::from_secs(1)).await;
    assert_eq!(report.unsent.len(), 1);
    drop(held);
    mount.close(handle).await.unwrap();
    assert_eq!(world.get("log").await.unwrap(), "base\nmine\n");
}

#[tokio::test(start_paused = true)]
async fn an_own_commit_whose_answer_was_lost_is_gone_on_from() {
    for change in ["write", "chmod"] {
        let world = World::memory();
        let text = lines(32 * MIB, 'o');
        world.put("big", &text).await;
        let mount = world.mount();
        let handle = mount.open("big", libc::O_RDWR).await.unwrap();
        mount.write(handle, 0, "first").unwrap();
        mount.fault.set("complete:lost-reply@1").unwrap();
        assert_eq!(mount.flush(handle).await, Err(libc::EIO));
        mount.fault.clear();
        let mut expected = text.replacen(&text[..5], "first", 1);
        match change {
            "write" => {
                mount.write(handle, 20 << 20, "second").unwrap();
                expected.replace_range((20 << 20)..(20 << 20) + 6, "second");
            }
            _ => {
                mount.setattr("big", mode(0o600)).await.unwrap();
            }
        }
        mount.flush(handle).await.unwrap();
        assert!(world.get("big").await.unwrap() == expected, "{change}");
        assert!(read_all(&mount, handle, expected.len()).await == expected);
        mount.close(handle).await.unwrap();
        assert!(mount.fs.status().conflicts.is_empty(), "{change}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_at_the_end_is_whole() {
    let world = World::s3();
    let text = lines(32 * MIB, 'o');
    world.put("big", &text).await;
    let mount = world.mount();
    let handle = mount.open("big", libc::O_RDWR).await.unwrap();
    mount.write(handle, 0, "first").unwrap();
    mount
        .fault
        .set("complete:error=no-space,put:error=no-space")
        .unwrap();
    let report = mount.fs.drain(Duration::from_secs(5)).await;
    assert_eq!(report.unsent.len(), 1);
    let expected = text.replacen(&text[..5], "first", 1);
    assert!(mount.kept() == [expected]);
    mount.fault.clear();
    mount.close(handle).await.unwrap();
}

/// As a write at an offset through the same handle is refused.
#[tokio::test(start_paused = true)]
async fn others_lines_that_were_merged_are_not_cut_off_by_who_has_not_seen_them() {
    let world = World::s3();
    world.put("log", "1\n").await;
    let mount = world.mount();
    let older = mount.open("log", libc::O_RDWR).await.unwrap();
    assert_eq!(mount.read(older, 0, 100).await.unwrap(), "1\n");
    let appending = mount.open("log", APPEND).await.unwrap();
    world.put("log", "1\ntheirs\n").await;
    mount.write(appending, 0, "ours\n").unwrap();
    mount.flush(appending).await.unwrap();
    let cut = SetAttr {
        size: Some(2),
        handle: Some(older),
        ..SetAttr::default()
    };
    assert_eq!(mount.setattr("log", cut).await, Err(libc::ESTALE));
    assert_eq!(
        mount.read(older, 0, 100).await.unwrap(),
        "1\ntheirs\nours\n"
    );
    mount.setattr("log", cut).await.unwrap();
    mount.close(older).await.unwrap();
    assert_eq!(world.get("log").await.unwrap(), "1\n");
    mount.close(appending).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_no_work_in_the_background() {
    let world = World::memory();
    let mount = world.mount();
    let handle = mount.open("f", CREATE).await.unwrap();
    mount.write(handle, 0, "x").unwrap();
    let faults = "put:error=unreachable@1,put:panic@2";
    mount.fault.set(faults).unwrap();
    assert_eq!(mount.flush(handle).await, Err(libc::EIO));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(mount.fault.injected(), 2);
    assert_eq!(world.get("f").await.unwrap(), "x");
    assert_eq!(mount.fs.status().dirty_files, 0);
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_no_change_feed() {
    let world = World::watched();
    let mount = world.mount();
    mount.fault.set("watch:panic@1").unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(mount.fault.injected(), 1);
    assert!(!mount.exists("f").await);
    world.put("f", "told").await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(mount.cat("f").await.unwrap(), "told");
}

/// Programs that tried again and again made the wait for the next try in the background longer.
#[tokio::test(start_paused = true)]
async fn a_commit_that_takes_long_holds_up_no_other() {
    let world = World::s3();
    let mount = Arc::new(world.mount());
    let slow = mount.open("slow", CREATE).await.unwrap();
    let fine = mount.open("fine", CREATE).await.unwrap();
    mount.fault.set("put:error=unreachable").unwrap();
    for handle in [slow, fine] {
        mount.write(handle, 0, "new").unwrap();
        mount.fs.fsync(handle).await.unwrap_err();
    }
    mount.fault.set("put:delay=300s:key~slow").unwrap();
    let syncing = mount.clone();
    let syncing = bucketfs::task::spawn(async move { syncing.fs.fsync(slow).await });
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(world.keys().await, ["fine"]);
    // Nor the attributes of others.
    mount.setattr("fine", mode(0o600)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let told = world.raw().head(&"fine".into()).await.unwrap();
    assert_eq!(told.told_attributes().mode, Some(0o100_600));
    assert!(!syncing.is_finished());
    syncing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn commits_that_take_long_leave_places_for_others() {
    let world = World::memory();
    let mount = world.mount();
    mount.fault.set("put:error=unreachable").unwrap();
    let mut names: Vec<String> = (0..12).map(|at| format!("slow{at}")).collect();
    names.push("fine".into());
    for name in &names {
        mount.put(name, CREATE, "new").await.unwrap_err();
    }
    mount.fault.set("put:delay=3000s:key~slow").unwrap();
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(world.keys().await, ["fine"]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_passes_is_no_reason_to_send_all_of_a_large_file() {
    for error in ["unauthenticated", "no-space", "io"] {
        let world = World::s3();
        world.put("f", &"o".repeat(40 << 20)).await;
        let mount = world.mount();
        let handle = mount.open("f", libc::O_WRONLY | libc::O_APPEND).await;
        let handle = handle.unwrap();
        mount.write(handle, 0, "new").unwrap();
        mount.fault.set(&format!("upload:error={error}")).unwrap();
        mount.cost();
        mount.fs.fsync(handle).await.unwrap_err();
        mount.fault.clear();
        mount.close(handle).await.unwrap();
        let cost = mount.cost();
        assert!(!cost.contains("get "), "{error}: {cost}");
        assert_eq!(world.get("f").await.unwrap().len(), (40 << 20) + 3);
    }
}

#[tokio::test(start_paused = true)]
async fn what_programs_try_meanwhile_does_not_put_off_the_next_try() {
    let world = World::memory();
    let mount = world.mount();
    let handle = mount.open("f", CREATE).await.unwrap();
    mount.write(handle, 0, "new").unwrap();
    mount.fault.set("put:error=unreachable").unwrap();
    for _ in 0..8 {
        mount.fs.fsync(handle).await.unwrap_err();
    }
    mount.fault.clear();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(world.keys().await, ["f"]);
    mount.close(handle).await.unwrap();
}
