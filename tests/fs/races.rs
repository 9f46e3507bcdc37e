//! Races inside one mount.

use crate::world::*;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn a_late_release_does_not_take_the_number_of_a_newer_inode() {
    let world = World::memory();
    let mount = world.mount();
    mount.mkdir("d").await.unwrap();
    let handle = mount.open("d/f", CREATE).await.unwrap();
    mount.unlink("d/f").await.unwrap();
    // The kernel has given up all names before the release gets its turn.
    mount.forget_all();
    later().await;
    let newer = mount.ino("d").await.unwrap();
    mount.fs.release(handle).await.unwrap();
    assert!(mount.fs.getattr(newer).await.is_ok());
    mount.save("d/g", "x").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_written_while_the_file_is_renamed_is_committed_under_the_new_name() {
    for world in [World::memory(), World::s3()] {
        world.put("a", "0123456789").await;
        let mount = world.mount();
        let handle = mount.open("a", libc::O_RDWR).await.unwrap();
        mount.write(handle, 0, "first").unwrap();
        mount.fault.set("copy:delay=1s,rename:delay=1s").unwrap();
        let write = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            mount.write(handle, 5, "again").unwrap();
        };
        let (renamed, ()) = tokio::join!(mount.rename("a", "b"), write);
        renamed.unwrap();
        assert_eq!(mount.read(handle, 0, 100).await.unwrap(), "firstagain");
        mount.close(handle).await.unwrap();
        assert_eq!(world.keys().await, ["b"]);
        assert_eq!(world.get("b").await.unwrap(), "firstagain");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_written_while_files_are_exchanged_is_committed_under_the_new_name() {
    let world = World::memory();
    world.put("a", "aaaa").await;
    world.put("b", "bbbb").await;
    let mount = world.mount();
    let handle = mount.open("a", libc::O_RDWR).await.unwrap();
    mount.fault.set("exchange:delay=1s").unwrap();
    let write = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        mount.write(handle, 0, "A").unwrap();
    };
    let exchange = mount.rename_with("a", "b", libc::RENAME_EXCHANGE);
    let (renamed, ()) = tokio::join!(exchange, write);
    renamed.unwrap();
    mount.close(handle).await.unwrap();
    assert_eq!(world.get("a").await.unwrap(), "bbbb");
    assert_eq!(world.get("b").await.unwrap(), "Aaaa");
    assert_eq!(mount.cat("a").await.unwrap(), "bbbb");
}

/// Runs `act` while an answer to a lookup of `name` that was given before is held back.
async fn beside_a_slow_lookup<F: Future>(mount: &Mount, name: &[u8], act: F) -> F::Output {
    let held = mount.late.hold();
    let lookup = mount.look(bucketfs::fs::ROOT, name);
    let act = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let result = act.await;
        drop(held);
        result
    };
    tokio::join!(lookup, act).1
}

#[tokio::test(start_paused = true)]
async fn an_answer_older_than_an_own_removal_does_not_undo_it() {
    let world = World::memory();
    world.put("f", "x").await;
    let mount = world.mount();
    mount.ino("f").await.unwrap();
    later().await;
    beside_a_slow_lookup(&mount, b"f", async {
        // The name is known again by a listing, so that the removal need not ask.
        mount.names(bucketfs::fs::ROOT).await.unwrap();
        mount.fs.unlink(bucketfs::fs::ROOT, b"f").await.unwrap();
    })
    .await;
    assert!(!mount.exists("f").await);
    assert_eq!(mount.put("f", EXCLUSIVE, "new").await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn an_answer_older_than_an_own_rename_does_not_undo_it() {
    let world = World::memory();
    world.put("f", "x").await;
    let mount = world.mount();
    mount.ino("f").await.unwrap();
    later().await;
    let root = bucketfs::fs::ROOT;
    beside_a_slow_lookup(&mount, b"f", async {
        mount.names(root).await.unwrap();
        mount
            .fs
            .rename((root, b"f"), (root, b"g"), 0)
            .await
            .unwrap();
    })
    .await;
    assert!(!mount.exists("f").await);
    assert_eq!(mount.cat("g").await.unwrap(), "x");
    assert_eq!(mount.put("f", EXCLUSIVE, "new").await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_name_removed_while_its_commit_loses_takes_no_conflict_file_with_it() {
    for rename in [false, true] {
        let world = World::memory();
        world.put("f", "base").await;
        let mount = world.mount();
        let handle = mount.open("f", WRITE).await.unwrap();
        mount.write(handle, 0, "mine").unwrap();
        world.put("f", "theirs").await;
        mount.fault.set("put:delay=1s").unwrap();
        let change = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if rename {
                mount.rename("f", "g").await
            } else {
                mount.unlink("f").await
            }
        };
        let (closed, changed) = tokio::join!(mount.close(handle), change);
        assert_eq!((closed, changed), (Err(libc::ESTALE), Ok(())));
        assert_eq!(world.conflicts("f").await, ["mine"]);
        assert_eq!(world.get("f").await, None);
        let moved = rename.then(|| "theirs".to_owned());
        assert_eq!(world.get("g").await, moved);
    }
}

/// While files are copied one after the other, an open relies on what was told a moment ago. An
/// answer that comes late is no such thing.
#[tokio::test(start_paused = true)]
async fn an_open_does_not_rely_on_the_late_answer_to_a_commit() {
    // A listing that began before the answer tells nothing of what that tells.
    for listed in [false, true] {
        an_open_behind_a_late_answer(listed).await;
    }
}

async fn an_open_behind_a_late_answer(listed: bool) {
    let world = World::s3();
    world.put("a", "bytes").await;
    let mount = world.mount();
    for to in ["b", "c"] {
        let source = mount.open("a", libc::O_RDONLY).await.unwrap();
        let target = mount.open(to, CREATE).await.unwrap();
        let ends = ((source, 0), (target, 0));
        let copied = mount.fs.copy_file_range(ends.0, ends.1, 100, 7).await;
        copied.unwrap();
        mount.close(target).await.unwrap();
        mount.close(source).await.unwrap();
    }
    let late = mount.late.hold_puts();
    let others = async {
        later().await;
        world.put("f", "theirs").await;
        later().await;
        if listed {
            mount.ls("").await.unwrap();
        }
        drop(late);
    };
    let (saved, ()) = tokio::join!(mount.save("f", "mine"), others);
    saved.unwrap();
    assert_eq!(mount.cat("f").await.unwrap(), "theirs");
}

/// The answer to a change of attributes is about the version of when it was sent.
#[tokio::test(start_paused = true)]
async fn an_open_does_not_rely_on_the_late_answer_to_a_change_of_attributes() {
    for looks_up in [false, true] {
        let world = World::s3();
        world.put("f", "old").await;
        let mount = world.mount();
        assert_eq!(mount.cat("f").await.unwrap(), "old");
        let ino = mount.ino("f").await.unwrap();
        let late = mount.late.hold_copies();
        let heads = mount.late.hold();
        let others = async {
            later().await;
            world.put("f", "newer").await;
            let answers = async {
                later().await;
                drop(late);
                half_a_second().await;
                drop(heads);
            };
            let reads = async {
                if looks_up {
                    return mount.cat("f").await;
                }
                let handle = mount.fs.open(ino, libc::O_RDONLY, CALLER).await;
                let handle = handle.map_err(|error| error.errno())?.handle;
                let read = mount.read(handle, 0, 100).await;
                mount.close(handle).await?;
                read
            };
            tokio::join!(reads, answers).0
        };
        let (set, read) = tokio::join!(mount.setattr("f", mode(0o600)), others);
        set.unwrap();
        assert_eq!(read.unwrap(), "newer", "{looks_up}");
    }
}
