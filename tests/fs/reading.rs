//! Reading, caching, close-to-open.

use crate::world::*;
use bucketfs::fs::{Caller, Consistency, ROOT};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn a_small_file_costs_one_get_once_its_directory_is_listed() {
    let world = World::s3();
    world.put("d/f", "hello").await;
    let mount = world.mount();
    mount.ls("d").await.unwrap();
    mount.cost();
    assert_eq!(mount.cat("d/f").await.unwrap(), "hello");
    assert_eq!(mount.cost(), "get 1");
    assert_eq!(mount.cat("d/f").await.unwrap(), "hello");
    assert_eq!(mount.cost(), "get 1");
    assert_eq!(
        mount.stats.snapshot().received(),
        5,
        "the second one is revalidated"
    );
}

#[tokio::test(start_paused = true)]
async fn a_small_file_costs_one_round_trip_cold() {
    let world = World::s3();
    world.put("f", "hello").await;
    let mount = world.mount();
    assert_eq!(mount.cat("f").await.unwrap(), "hello");
    assert_eq!(mount.cost(), "get 1, list 1");
}

#[tokio::test(start_paused = true)]
async fn a_small_file_replaced_after_its_open_is_read_as_it_was_opened() {
    let world = World::s3();
    let paths: Vec<String> = (0..16).map(|number| format!("d{number}/f")).collect();
    for path in &paths {
        world.put(path, "older").await;
    }
    let mount = world.mount();
    // Who only looks at files is told of them without their bytes.
    for path in &paths[1..] {
        mount.stat(path).await.unwrap();
    }
    mount.cost();
    mount.stat(&paths[0]).await.unwrap();
    assert_eq!(mount.cost(), "head 1, list 1");
    let (_, opened) = mount.open_with(&paths[0], READ).await.unwrap();
    assert_eq!(mount.cost(), "get 1");
    world.put(&paths[0], "newer").await;
    assert_eq!(mount.read(opened.handle, 0, 9).await.unwrap(), "older");
    assert_eq!(mount.cost(), "");
}

#[tokio::test(start_paused = true)]
async fn a_name_of_an_unlisted_directory_is_one_round_trip() {
    // A name such as a lock's is asked for by a head, and nothing of it is known before.
    for name in ["d/a.lock", "d/b.lock"] {
        let world = World::s3();
        world.put("d/a.lock", "x").await;
        let mount = world.mount();
        let directory = mount.ino("d").await.unwrap();
        mount.cost();
        // While the one is not answered, the other is on its way.
        for lists in [false, true] {
            let held = match lists {
                true => mount.late.hold_lists(),
                false => mount.late.hold(),
            };
            let mut look = Box::pin(mount.look(directory, &name.as_bytes()[2..]));
            for _ in 0..20 {
                assert!(futures::poll!(look.as_mut()).is_pending());
                tokio::task::yield_now().await;
            }
            assert_eq!(mount.cost(), "head 1, list 1");
            drop(held);
            assert_eq!(look.await.is_ok(), name == "d/a.lock");
            assert_eq!(mount.cost(), "");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_written_here_is_read_from_the_cache() {
    let world = World::s3();
    let mount = world.mount();
    mount.save("f", "hello").await.unwrap();
    mount.cost();
    assert_eq!(mount.cat("f").await.unwrap(), "hello");
    assert_eq!(mount.cost(), "get 1");
    assert_eq!(mount.stats.snapshot().received(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_missing_name_is_asked_for_once_within_the_ttl() {
    let world = World::s3();
    let mount = world.mount();
    assert!(!mount.exists("f").await);
    assert_eq!(mount.cost(), "get 1, list 1");
    assert!(!mount.exists("f").await);
    assert_eq!(mount.cost(), "");
    later().await;
    world.put("f", "x").await;
    assert!(mount.exists("f").await);
}

#[tokio::test(start_paused = true)]
async fn a_listing_answers_for_names_in_it_and_names_that_are_not() {
    let world = World::memory();
    world.put("a", "x").await;
    world.put("c", "x").await;
    let mount = world.mount();
    assert_eq!(mount.ls("").await.unwrap(), ["a", "c"]);
    assert_eq!(mount.cost(), "list 1");
    assert!(mount.exists("a").await && !mount.exists("b").await);
    assert_eq!(mount.ls("").await.unwrap(), ["a", "c"]);
    assert_eq!(mount.cost(), "");
    later().await;
    world.put("b", "x").await;
    world.delete("a").await;
    assert_eq!(mount.ls("").await.unwrap(), ["b", "c"]);
    assert!(!mount.exists("a").await && mount.exists("b").await);
    assert_eq!(mount.cost(), "list 1");
}

#[tokio::test(start_paused = true)]
async fn two_hundred_files_are_listed_with_attributes_by_one_request() {
    // Where the names below it are asked for with a directory, they are known.
    for (world, cost) in [(World::memory(), "list 1"), (World::s3(), "")] {
        for i in 0..200 {
            world.put(&format!("d/{i:03}"), "x").await;
        }
        let mount = world.mount();
        let ino = mount.ino("d").await.unwrap();
        mount.cost();
        assert_eq!(mount.names(ino).await.unwrap().len(), 200);
        assert_eq!(mount.cost(), cost);
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_version_is_found_at_open_and_its_pages_are_dropped_before_the_reply() {
    for world in [World::memory(), World::s3()] {
        world.put("f", "old").await;
        let mount = world.mount();
        assert_eq!(mount.cat("f").await.unwrap(), "old");
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.put("f", "newer").await;
        mount.kernel.told();
        let (ino, opened) = mount.open_with("f", READ).await.unwrap();
        assert!(!opened.keep_cache);
        assert_eq!(mount.kernel.told(), [Told::Inode(ino, true)]);
        assert_eq!(mount.fs.fstat(opened.handle).unwrap().size, 5);
        assert_eq!(mount.read(opened.handle, 0, 100).await.unwrap(), "newer");
        let (_, again) = mount.open_with("f", READ).await.unwrap();
        assert!(again.keep_cache);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_the_kernel_hears_after_the_change_is_not_believed_by_an_open() {
    for world in [World::memory(), World::s3()] {
        world.put("f", "old").await;
        let mount = world.mount();
        // The first answer is on its way when the second lookup finds another version.
        let ino = mount.ino("f").await.unwrap();
        world.put("f", "newer").await;
        later().await;
        assert_eq!(mount.look(ROOT, b"f").await.unwrap().attr.ino, ino);
        mount.kernel.told();
        for told in [vec![Told::Inode(ino, true)], vec![]] {
            let opened = mount.fs.open(ino, READ, CALLER).await.unwrap();
            assert_eq!(mount.kernel.told(), told);
            assert_eq!(mount.read(opened.handle, 0, 100).await.unwrap(), "newer");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn older_handles_keep_their_version_and_the_name_gets_a_fresh_inode() {
    for world in [World::memory(), World::s3()] {
        let size = 3 << 20;
        world.put("f", &"o".repeat(size)).await;
        let mount = world.mount();
        let (old_ino, old) = mount.open_with("f", READ).await.unwrap();
        assert_eq!(mount.read(old.handle, 0, 10).await.unwrap(), "oooooooooo");
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.put("f", &"n".repeat(size)).await;
        let stale = mount.fs.open(old_ino, READ, CALLER).await.unwrap_err();
        assert_eq!(stale.errno(), libc::ESTALE);
        let (new_ino, new) = mount.open_with("f", READ).await.unwrap();
        assert_ne!(old_ino, new_ino);
        assert_eq!(mount.read(new.handle, 0, 10).await.unwrap(), "nnnnnnnnnn");
        for at in (0..size as u64).step_by(1 << 17) {
            match mount.read(old.handle, at, 10).await {
                Ok(text) => assert_eq!(text, "oooooooooo"),
                Err(error) => assert_eq!(error, libc::ESTALE),
            }
        }
        mount.close(old.handle).await.unwrap();
        mount.close(new.handle).await.unwrap();
        mount.forget_all();
        assert_eq!(mount.fs.status().inodes, 1);
    }
}

/// As the kernel does it: each is tried once more, after a lookup. Between its lookup and its second
/// try the file changes again, and others have it open by then.
#[tokio::test(start_paused = true)]
async fn an_open_that_was_refused_is_not_refused_again() {
    for (world, size) in [
        (World::memory(), 5),
        (World::s3(), 5),
        (World::memory(), 300_000),
    ] {
        let text = |version: &str| version.repeat(size / version.len());
        world.put("f", &text("1")).await;
        let mount = world.mount();
        let (old_ino, _) = mount.open_with("f", READ).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.put("f", &text("2")).await;
        let callers = [11, 12, 13].map(|pid| Caller { pid, ..CALLER });
        for caller in callers {
            let refused = mount.fs.open(old_ino, READ, caller).await.unwrap_err();
            assert_eq!(refused.errno(), libc::ESTALE);
        }
        let mut seen = Vec::new();
        for (caller, version) in callers.into_iter().zip(["3", "4", "5"]) {
            let ino = mount.ino("f").await.unwrap();
            // Somebody else opens that version, so that it stays the inode's.
            let (_, other) = mount.open_with("f", READ).await.unwrap();
            world.put("f", &text(version)).await;
            let opened = mount.fs.open(ino, READ, caller).await.unwrap();
            seen.push(mount.read(opened.handle, 0, 1).await.unwrap());
            mount.close(opened.handle).await.unwrap();
            mount.close(other.handle).await.unwrap();
        }
        assert_eq!(seen, ["2", "3", "4"]);
        // Who was not refused before is told of the new version.
        assert_eq!(mount.cat("f").await.unwrap(), text("5"));
    }
}

/// What was known before a refused open began is none to try it again with.
#[tokio::test(start_paused = true)]
async fn a_lookup_after_a_refused_open_gives_what_is_there_since() {
    let world = World::memory();
    world.put("f", "first").await;
    let mount = world.mount();
    let (old_ino, _) = mount.open_with("f", READ).await.unwrap();
    world.put("f", "second").await;
    let (new_ino, _) = mount.open_with("f", READ).await.unwrap();
    assert_ne!(old_ino, new_ino);
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.put("f", "third").await;
    // The kernel still has the name of the first.
    let refused = mount.fs.open(old_ino, READ, CALLER).await.unwrap_err();
    assert_eq!(refused.errno(), libc::ESTALE);
    let ino = mount.ino("f").await.unwrap();
    assert_ne!(ino, new_ino);
    let opened = mount.fs.open(ino, READ, CALLER).await.unwrap();
    assert_eq!(mount.read(opened.handle, 0, 10).await.unwrap(), "third");
}

#[tokio::test(start_paused = true)]
async fn a_foreign_version_is_found_by_lookup_after_the_ttl() {
    let world = World::memory();
    world.put("f", "old").await;
    let mount = world.mount();
    assert_eq!(mount.stat("f").await.unwrap().size, 3);
    world.put("f", "newer").await;
    assert_eq!(mount.stat("f").await.unwrap().size, 3);
    later().await;
    assert_eq!(mount.stat("f").await.unwrap().size, 5);
    world.delete("f").await;
    later().await;
    assert!(!mount.exists("f").await);
    mount.forget_all();
    assert_eq!(mount.fs.status().inodes, 1);
}

/// What `git gc` does: the objects go into a pack, and then away.
#[tokio::test(start_paused = true)]
async fn what_others_remove_is_missed_before_what_they_made_is_seen() {
    for (ttl, seen) in [(None, false), (Some(Duration::ZERO), true)] {
        let world = World::memory();
        world.put("loose/a", "object").await;
        world.put("pack/old", "pack").await;
        let with = |options: &mut bucketfs::fs::FsOptions| {
            options.metadata_ttl = ttl.unwrap_or(options.metadata_ttl);
            options.negative_ttl = options.metadata_ttl;
        };
        let mount = world.mount_with(with, false);
        assert_eq!(mount.ls("pack").await.unwrap(), ["old"]);
        assert_eq!(mount.cat("loose/a").await.unwrap(), "object");
        world.put("pack/new", "pack").await;
        world.delete("loose/a").await;
        half_a_second().await;
        assert!(mount.cat("loose/a").await.is_err());
        assert_eq!(mount.exists("pack/new").await, seen);
        assert_eq!(mount.ls("pack").await.unwrap().len() == 2, seen);
        later().await;
        assert!(mount.exists("pack/new").await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_became_a_directory_gets_another_inode() {
    let world = World::memory();
    world.put("f", "file").await;
    let mount = world.mount();
    let old = mount.ino("f").await.unwrap();
    world.delete("f").await;
    world.put("f/x", "below").await;
    later().await;
    assert_ne!(mount.ino("f").await.unwrap(), old);
    assert_eq!(mount.cat("f/x").await.unwrap(), "below");
}

#[tokio::test(start_paused = true)]
async fn consistency_ttl_trusts_what_is_cached() {
    let world = World::memory();
    world.put("f", "old").await;
    let mount = world.mount_with(|options| options.consistency = Consistency::Ttl, false);
    mount.cat("f").await.unwrap();
    mount.cost();
    assert_eq!(mount.cat("f").await.unwrap(), "old");
    assert_eq!(mount.cost(), "");
    world.put("f", "new").await;
    later().await;
    assert_eq!(mount.cat("f").await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn lock_names_are_never_cached() {
    let world = World::memory();
    let (a, b) = (world.mount(), world.mount());
    for _ in 0..3 {
        assert!(!b.exists("x.lock").await);
        a.save("x.lock", "held").await.unwrap();
        assert!(b.exists("x.lock").await);
        assert_eq!(b.cat("x.lock").await.unwrap(), "held");
        a.unlink("x.lock").await.unwrap();
    }
    world.put("y.lock", "").await;
    let (parent, name) = b.parent("y.lock").await.unwrap();
    let entry = b.look(parent, name).await.unwrap();
    assert!(entry.ttl.is_zero());
}

#[tokio::test(start_paused = true)]
async fn an_open_after_a_won_lock_trusts_no_earlier_look_ahead() {
    for exclusive in [true, false] {
        let world = World::memory();
        // The bytes of a smaller file come with its open.
        world.put("data", &"old".repeat(50_000)).await;
        let (a, b) = (world.mount(), world.mount());
        let ino = a.ino("data").await.unwrap();
        b.save("data", &"new".repeat(50_000)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        if exclusive {
            a.open("data.lock", EXCLUSIVE).await.unwrap();
        }
        let opened = a.fs.open(ino, READ, CALLER).await.unwrap();
        let text = a.read(opened.handle, 0, 3).await;
        if exclusive {
            assert_eq!(text.unwrap(), "new");
        } else {
            // Allowed to be old, or to find that it is gone; never a mixture.
            assert!(matches!(text.as_deref(), Ok("old") | Err(&libc::ESTALE)));
        }
    }
}

/// The bytes that ride on the answer to a lookup tell how many there are; a header may lie.
#[tokio::test(start_paused = true)]
async fn a_lookup_believes_no_size_that_its_bytes_contradict() {
    let world = World::s3();
    world.put("f", "text").await;
    let mount = world.mount();
    for _ in 0..8 {
        mount.cat("f").await.unwrap();
        later().await;
    }
    mount.cost();
    mount.fault.set("get:wrong-length").unwrap();
    let size = mount.stat("f").await.unwrap().size;
    assert!(mount.cost().contains("get"), "the bytes were asked for");
    assert_eq!(size, 4);
}

#[tokio::test(start_paused = true)]
async fn a_truncating_open_after_a_won_lock_expects_the_version_of_now() {
    let world = World::memory();
    world.put("data", "old").await;
    let (a, b) = (world.mount(), world.mount());
    a.cat("data").await.unwrap();
    b.save("data", "new").await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let lock = a.open("data.lock", EXCLUSIVE).await.unwrap();
    a.save("data", "newest").await.unwrap();
    a.close(lock).await.unwrap();
    assert_eq!(world.get("data").await.unwrap(), "newest");
    assert!(world.conflicts("data").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_inode_table_holds_only_the_root_when_all_is_forgotten() {
    let world = World::memory();
    world.put("d/e/f", "x").await;
    world.put("g", "x").await;
    let mount = world.mount();
    mount.cat("d/e/f").await.unwrap();
    mount.ls("d").await.unwrap();
    mount.ls("").await.unwrap();
    mount.save("d/new", "x").await.unwrap();
    mount.mkdir("h").await.unwrap();
    mount.rename("g", "h/g").await.unwrap();
    mount.rename("h", "i").await.unwrap();
    mount.save("i/g", "y").await.unwrap();
    mount.unlink("d/new").await.unwrap();
    assert!(mount.fs.status().inodes > 4);
    later().await;
    mount.stat("i/g").await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    mount.forget_all();
    assert_eq!(mount.fs.status().inodes, 1);
    assert_eq!(mount.fs.status().handles, 0);
}

#[tokio::test(start_paused = true)]
async fn operations_that_are_refused_leave_no_inode_behind() {
    let world = World::memory();
    world.put("d/x", "x").await;
    world.put("f", "x").await;
    let mount = world.mount();
    let root = bucketfs::fs::ROOT;
    assert!(mount.fs.mkdir(root, b"f", 0o755, CALLER).await.is_err());
    assert!(mount.fs.unlink(root, b"d").await.is_err());
    assert!(mount.fs.rmdir(root, b"f").await.is_err());
    assert!(mount.fs.rmdir(root, b"d").await.is_err());
    let flags = libc::RENAME_NOREPLACE;
    assert!(
        mount
            .fs
            .rename((root, b"f"), (root, b"d"), flags)
            .await
            .is_err()
    );
    assert!(
        mount
            .fs
            .rename((root, b"f"), (root, b"d"), 0)
            .await
            .is_err()
    );
    let create = mount.fs.create(root, b"f", 0o644, EXCLUSIVE, CALLER);
    assert!(create.await.is_err());
    assert_eq!(mount.fs.status().inodes, 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_still_gives_what_is_cached() {
    let world = World::memory();
    world.put("f", "cached").await;
    let mount = world.mount();
    let handle = mount.open("f", READ).await.unwrap();
    assert_eq!(mount.read(handle, 0, 100).await.unwrap(), "cached");
    mount.fault.set("*:error=unreachable").unwrap();
    assert_eq!(mount.read(handle, 0, 100).await.unwrap(), "cached");
    assert_eq!(mount.open("f", READ).await, Err(libc::EIO));
    mount.fault.clear();
    assert_eq!(mount.cat("f").await.unwrap(), "cached");
}

#[tokio::test(start_paused = true)]
async fn directories_larger_than_a_page_are_listed_by_several_at_once() {
    let world = World::memory();
    for i in 0..2500 {
        world.put(&format!("d/{i:04}"), "x").await;
    }
    let mount = world.mount();
    let ino = mount.ino("d").await.unwrap();
    mount.fault.set("list:delay=10ms").unwrap();
    let late = async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        mount.names(ino).await
    };
    let (one, two, three) = tokio::join!(mount.names(ino), late, mount.names(ino));
    for names in [one, two, three] {
        assert_eq!(names.unwrap().len(), 2500);
    }
}

#[tokio::test(start_paused = true)]
async fn directories_larger_than_the_listing_cache_are_listed() {
    let world = World::memory();
    for i in 0..2500 {
        world.put(&format!("a/{i:04}"), "x").await;
        world.put(&format!("b/{i:04}"), "x").await;
    }
    let mount = world.mount_with(|options| options.listing_entries = 1000, false);
    let (a, b) = (mount.ino("a").await.unwrap(), mount.ino("b").await.unwrap());
    mount.fault.set("list:delay=10ms").unwrap();
    let (one, two) = tokio::join!(mount.names(a), mount.names(b));
    assert_eq!((one.unwrap().len(), two.unwrap().len()), (2500, 2500));
}

#[tokio::test(start_paused = true)]
async fn missing_names_do_not_fill_the_memory() {
    let world = World::memory();
    let mount = world.mount_with(|options| options.listing_entries = 100, false);
    for i in 0..1000 {
        assert!(!mount.exists(&format!("missing {i}")).await);
    }
    let entries = mount.fs.status().cache.listing_entries;
    assert!(entries <= 101, "{entries}");
}

/// A lookup takes no answer while this mount changes the attributes in the store: then the open has
/// to ask.
#[tokio::test(start_paused = true)]
async fn an_open_while_attributes_are_sent_sees_what_others_have_written() {
    let world = World::s3();
    world.put("f", "old").await;
    let mount = world.mount();
    assert_eq!(mount.cat("f").await.unwrap(), "old");
    mount.fault.set("copy:delay=3s").unwrap();
    let others = async {
        later().await;
        world.put("f", "newer").await;
        mount.cat("f").await
    };
    let (_, read) = tokio::join!(mount.setattr("f", mode(0o600)), others);
    assert_eq!(read.unwrap(), "newer");
}

/// Whose copy was refused, after one whose answer was lost, must not take another's version for it.
#[tokio::test(start_paused = true)]
async fn attributes_set_on_what_others_have_written_do_not_keep_the_old_bytes() {
    let world = World::s3();
    let mount = world.retrying();
    let other = world.mount();
    other.save("f", "old").await.unwrap();
    later().await;
    mount.ls("").await.unwrap();
    other.save("f", "newer").await.unwrap();
    mount.fault.set("copy:lost-reply@1").unwrap();
    mount.setattr("f", mode(0o600)).await.unwrap();
    later().await;
    assert_eq!(mount.cat("f").await.unwrap(), "newer");
    assert_eq!(other.stat("f").await.unwrap().mode & 0o777, 0o600);
}
