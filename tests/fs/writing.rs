//! Creating, writing, committing.

use crate::store::Plain;
use crate::world::*;
use bucketfs::driver::Driver;
use bucketfs::fs::{SetAttr, StagingRoom};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn creating_a_file_costs_one_put() {
    let world = World::s3();
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.cost();
    for i in 0..20 {
        mount.put(&format!("{i}"), CREATE, "hello").await.unwrap();
    }
    assert_eq!(mount.cost(), "put 20");
    assert_eq!(world.get("7").await.unwrap(), "hello");
}

#[tokio::test(start_paused = true)]
async fn creating_in_an_unknown_directory_costs_one_lookup_more() {
    let world = World::s3();
    let mount = world.mount();
    mount.put("f", CREATE, "hello").await.unwrap();
    assert_eq!(mount.cost(), "get 1, list 1, put 1");
}

#[tokio::test(start_paused = true)]
async fn a_locks_creation_is_claimed_at_open() {
    let world = World::s3();
    let (a, b) = (world.mount(), world.mount());
    assert!(!b.exists("x.lock").await);
    let handle = a.open("x.lock", EXCLUSIVE).await.unwrap();
    assert_eq!(world.keys().await, ["x.lock"]);
    assert_eq!(b.open("x.lock", EXCLUSIVE).await, Err(libc::EEXIST));
    a.write(handle, 0, "pid").unwrap();
    a.close(handle).await.unwrap();
    assert_eq!(b.cat("x.lock").await.unwrap(), "pid");
    a.unlink("x.lock").await.unwrap();
    assert!(b.open("x.lock", EXCLUSIVE).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn overwriting_a_listed_file_costs_one_put() {
    let world = World::memory();
    world.put("f", "old").await;
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.cost();
    mount.save("f", "new").await.unwrap();
    assert_eq!(mount.cost(), "put 1");
    assert_eq!(world.get("f").await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn overwriting_asks_for_unknown_metadata_beside_it() {
    let world = World::s3();
    world.put("f", "old").await;
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.cost();
    mount.save("f", "new").await.unwrap();
    assert_eq!(mount.cost(), "head 1, put 1");
}

#[tokio::test(start_paused = true)]
async fn appending_to_a_small_file_costs_a_get_and_a_put() {
    for world in [World::memory(), World::s3()] {
        world.put("log", "one\n").await;
        let mount = world.mount();
        mount.ls("").await.unwrap();
        mount.cost();
        mount.append("log", "two\n").await.unwrap();
        assert_eq!(mount.cost(), "get 1, put 1");
        assert_eq!(world.get("log").await.unwrap(), "one\ntwo\n");
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_close_and_a_flush_of_a_clean_file_cost_nothing() {
    let world = World::memory();
    let mount = world.mount();
    let handle = mount.open("f", CREATE).await.unwrap();
    mount.write(handle, 0, "x").unwrap();
    mount.flush(handle).await.unwrap();
    mount.cost();
    mount.flush(handle).await.unwrap();
    mount.close(handle).await.unwrap();
    assert_eq!(mount.cost(), "");
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_after_the_flush_is_committed_at_release() {
    let world = World::memory();
    let mount = world.mount();
    let handle = mount.open("f", CREATE).await.unwrap();
    mount.flush(handle).await.unwrap();
    mount.write(handle, 0, "mapped").unwrap();
    mount.fs.release(handle).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "mapped");
}

#[tokio::test(start_paused = true)]
async fn handles_of_one_file_share_their_bytes() {
    let world = World::memory();
    let mount = world.mount();
    let writer = mount.open("f", CREATE).await.unwrap();
    mount.write(writer, 0, "shared").unwrap();
    let reader = mount.open("f", READ).await.unwrap();
    assert_eq!(mount.read(reader, 0, 100).await.unwrap(), "shared");
    assert_eq!(mount.ls("").await.unwrap(), ["f"]);
    assert!(world.keys().await.is_empty());
    assert_eq!(mount.open("f", EXCLUSIVE).await, Err(libc::EEXIST));
}

#[tokio::test(start_paused = true)]
async fn a_changed_part_keeps_the_rest() {
    let world = World::s3();
    world.put("f", "0123456789").await;
    let mount = world.mount();
    let handle = mount.open("f", libc::O_RDWR).await.unwrap();
    mount.write(handle, 3, "abc").unwrap();
    assert_eq!(mount.read(handle, 0, 100).await.unwrap(), "012abc6789");
    mount.close(handle).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "012abc6789");
}

#[tokio::test(start_paused = true)]
async fn files_are_cut_and_extended() {
    let world = World::memory();
    world.put("f", "0123456789").await;
    let mount = world.mount();
    let size = |size| SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    assert_eq!(mount.setattr("f", size(4)).await.unwrap().size, 4);
    assert_eq!(world.get("f").await.unwrap(), "0123");
    assert_eq!(mount.setattr("f", size(6)).await.unwrap().size, 6);
    assert_eq!(world.get("f").await.unwrap(), "0123\0\0");
    let handle = mount.open("f", WRITE).await.unwrap();
    mount.write(handle, 8, "x").unwrap();
    mount.close(handle).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "0123\0\0\0\0x");
}

#[tokio::test(start_paused = true)]
async fn fallocate_reserves_punches_and_zeroes() {
    let world = World::memory();
    world.put("f", "0123456789").await;
    let mount = world.mount();
    let handle = mount.open("f", WRITE).await.unwrap();
    let fallocate = |offset, length, mode| {
        let done = mount.fs.fallocate(handle, offset, length, mode, 7);
        done.map_err(|error| error.errno())
    };
    fallocate(0, 20, libc::FALLOC_FL_KEEP_SIZE).unwrap();
    fallocate(0, 5, 0).unwrap();
    assert_eq!(mount.stat("f").await.unwrap().size, 10);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fallocate(2, 3, punch).unwrap();
    fallocate(8, 4, libc::FALLOC_FL_ZERO_RANGE).unwrap();
    assert_eq!(
        fallocate(0, 1, libc::FALLOC_FL_COLLAPSE_RANGE),
        Err(libc::EOPNOTSUPP)
    );
    assert_eq!(fallocate(0, 0, 0), Err(libc::EINVAL));
    mount.close(handle).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "01\0\0\x00567\0\0\0\0");
}

#[tokio::test(start_paused = true)]
async fn fallocate_that_changes_no_length_takes_privileges_away() {
    for (uid, mode, left) in [
        (7, 0, 0o755),
        (7, libc::FALLOC_FL_KEEP_SIZE, 0o755),
        (0, 0, 0o4755),
    ] {
        let world = World::memory();
        world.put("f", "0123456789").await;
        let mount = world.mount();
        let suid = SetAttr {
            mode: Some(0o4755),
            ..SetAttr::default()
        };
        mount.setattr("f", suid).await.unwrap();
        let handle = mount.open("f", WRITE).await.unwrap();
        mount.fs.fallocate(handle, 0, 5, mode, uid).unwrap();
        assert_eq!(mount.stat("f").await.unwrap().mode, left);
        mount.close(handle).await.unwrap();
        assert_eq!(world.get("f").await.unwrap(), "0123456789");
        assert_eq!(world.mount().stat("f").await.unwrap().mode, left);
    }
}

#[tokio::test(start_paused = true)]
async fn lseek_finds_data_and_holes() {
    let world = World::memory();
    let mount = world.mount();
    let flags = libc::O_WRONLY | libc::O_CREAT;
    let handle = mount.open("f", flags).await.unwrap();
    mount.write(handle, 100, "data").unwrap();
    let size = SetAttr {
        size: Some(200),
        handle: Some(handle),
        ..SetAttr::default()
    };
    mount.setattr("f", size).await.unwrap();
    let seek = |offset, whence| {
        let found = mount.fs.lseek(handle, offset, whence);
        found.map_err(|error| error.errno())
    };
    assert_eq!(seek(0, libc::SEEK_HOLE), Ok(0));
    assert_eq!(seek(0, libc::SEEK_DATA), Ok(100));
    assert_eq!(seek(100, libc::SEEK_HOLE), Ok(104));
    assert_eq!(seek(104, libc::SEEK_DATA), Err(libc::ENXIO));
    assert_eq!(seek(200, libc::SEEK_HOLE), Err(libc::ENXIO));
    // While somebody may store through a mapping, no hole is one for sure.
    let maps = mount.open("f", libc::O_RDWR).await.unwrap();
    assert_eq!(seek(0, libc::SEEK_DATA), Ok(0));
    assert_eq!(seek(0, libc::SEEK_HOLE), Ok(200));
    mount.close(maps).await.unwrap();
    assert_eq!(seek(0, libc::SEEK_DATA), Ok(100));
}

#[tokio::test(start_paused = true)]
async fn a_write_beyond_the_largest_file_is_refused_and_the_file_stays() {
    let world = World::memory();
    let mount = world.mount_with(|options| options.staging_size = 10, false);
    let handle = mount.open("f", CREATE).await.unwrap();
    mount.write(handle, 0, "0123").unwrap();
    assert_eq!(mount.write(handle, 8, "xyz"), Err(libc::EFBIG));
    assert_eq!(mount.write(handle, u64::MAX, "x"), Err(libc::EFBIG));
    mount.close(handle).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "0123");
}

/// Puts a file where a directory was.
fn no_directory(dir: &std::path::Path) {
    std::fs::remove_dir(dir).unwrap();
    std::fs::write(dir, "").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_staging_directory_that_somebody_removes_is_made_again() {
    let world = World::memory();
    let mut staging = None;
    let mount = world.mount_with(|options| staging = Some(options.staging_dir.clone()), false);
    std::fs::remove_dir(staging.unwrap()).unwrap();
    let large = "x".repeat(9 << 20);
    mount.put("f", CREATE, &large).await.unwrap();
    assert!(world.get("f").await.unwrap() == large);
}

#[tokio::test(start_paused = true)]
async fn a_local_disk_that_fails_is_no_answer_of_the_store() {
    // Nothing is built of parts there: all of a file has to come here.
    let mut store = Plain::memory();
    store.capabilities.upload = None;
    let world = World::over(store);
    let old = "o".repeat(10 << 20);
    world.put("f", &old).await;
    let mut staging = None;
    let mount = world.mount_with(|options| staging = Some(options.staging_dir.clone()), false);
    let staging = staging.unwrap();
    no_directory(&staging);
    let handle = mount.open("f", libc::O_RDWR).await.unwrap();
    mount.write(handle, 0, "n").unwrap();
    assert_eq!(mount.flush(handle).await, Err(libc::EIO));
    assert_eq!(world.keys().await, ["f"]);
    assert!(world.get("f").await.unwrap() == old);
    std::fs::remove_file(&staging).unwrap();
    mount.close(handle).await.unwrap();
    assert!(world.get("f").await.unwrap() == format!("n{}", &old[1..]));
}

#[tokio::test(start_paused = true)]
async fn what_is_read_of_a_large_file_that_was_written_to_takes_no_room_here() {
    let world = World::memory();
    let size = 40 << 20;
    world.put("f", &"o".repeat(size)).await;
    let mut staging = None;
    let mount = world.mount_with(
        |options| {
            options.staging_room = StagingRoom::Usual;
            options.memory_cache = 1 << 20;
            staging = Some(options.staging_dir.clone());
        },
        false,
    );
    let handle = mount.open("f", libc::O_RDWR).await.unwrap();
    mount.write(handle, 5, "new").unwrap();
    mount.fs.fsync(handle).await.unwrap();
    // Whatever is to be kept of that needs a file.
    no_directory(&staging.unwrap());
    for at in (0..size).step_by(1 << 20) {
        let read = mount.read(handle, at as u64, 1 << 20).await.unwrap();
        assert_eq!(read.len(), 1 << 20);
    }
    assert_eq!(mount.read(handle, 3, 7).await.unwrap(), "oonewoo");
    mount.close(handle).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_file_beyond_what_can_be_staged_is_refused_also_where_little_of_it_changes() {
    let mut store = Plain::memory();
    store.capabilities.upload = None;
    let world = World::over(store);
    world.put("f", &"o".repeat(100)).await;
    let mount = world.mount_with(|options| options.staging_size = 50, false);
    let handle = mount.open("f", libc::O_RDWR).await.unwrap();
    assert_eq!(mount.write(handle, 0, "n"), Err(libc::EFBIG));
    mount.close(handle).await.unwrap();
    assert_eq!(
        mount.put("f", CREATE | libc::O_TRUNC, "short").await,
        Ok(())
    );
    assert_eq!(world.get("f").await.unwrap(), "short");
}

#[tokio::test(start_paused = true)]
async fn what_a_store_keeps_in_memory_waits_there_unless_a_directory_is_named() {
    let world = World::memory();
    let large = "x".repeat(9 << 20);
    let (usual, memory) = (StagingRoom::Usual, StagingRoom::Memory);
    for (room, written) in [(memory, Ok(9 << 20)), (usual, Err(libc::ENOTDIR))] {
        let mut staging = None;
        let mount = world.mount_with(
            |options| {
                options.staging_room = room;
                staging = Some(options.staging_dir.clone());
            },
            false,
        );
        // Nothing can be spilled there any more.
        no_directory(&staging.unwrap());
        let handle = mount.open("f", CREATE).await.unwrap();
        assert_eq!(mount.write(handle, 0, &large), written);
        mount.close(handle).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn copying_a_whole_file_moves_no_bytes() {
    let world = World::s3();
    world.put("a", &"x".repeat(1000)).await;
    let mount = world.mount();
    let from = mount.open("a", READ).await.unwrap();
    let to = mount.open("b", CREATE).await.unwrap();
    mount.cost();
    let copied = mount.fs.copy_file_range((from, 0), (to, 0), 1 << 30, 7);
    assert_eq!(copied.await.unwrap(), 1000);
    let more = mount
        .fs
        .copy_file_range((from, 1000), (to, 1000), 1 << 30, 7);
    assert_eq!(more.await.unwrap(), 0);
    mount.close(to).await.unwrap();
    assert_eq!(mount.cost(), "copy 1");
    assert_eq!(world.get("b").await.unwrap().len(), 1000);
}

/// A large file whose bytes tell where they stand.
fn large(len: usize) -> String {
    let mut text: String = (0..len / 8).map(|at| format!("{at:07}\n")).collect();
    text.truncate(len);
    text
}

/// Copies on from where a copy has come to; how far that is then.
async fn copy_on(mount: &Mount, (from, to): (u64, u64), at: u64) -> u64 {
    let copied = mount.fs.copy_file_range((from, at), (to, at), 16 << 20, 7);
    at + u64::from(copied.await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn copying_a_whole_file_in_several_calls_moves_no_bytes() {
    let world = World::s3();
    let text = large(40 << 20);
    world.put("a", &text).await;
    let mount = world.mount();
    let from = mount.open("a", READ).await.unwrap();
    let to = mount.open("b", CREATE).await.unwrap();
    mount.cost();
    let mut at = 0;
    for upto in [16 << 20, 32 << 20, 40 << 20, 40 << 20] {
        at = copy_on(&mount, (from, to), at).await;
        assert_eq!(at, upto);
        assert_eq!(mount.fs.fstat(to).unwrap().size, upto);
    }
    mount.close(to).await.unwrap();
    assert_eq!(mount.cost(), "copy 1");
    assert!(world.get("b").await.unwrap() == text);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_stops_half_way_is_what_was_copied() {
    let text = large(40 << 20);
    for goes_on in [false, true] {
        let world = World::s3();
        world.put("a", &text).await;
        let mount = world.mount();
        let from = mount.open("a", READ).await.unwrap();
        let to = mount.open("b", CREATE).await.unwrap();
        let mut at = copy_on(&mount, (from, to), 0).await;
        if goes_on {
            // What is copied while a commit is under way is none of its version.
            let late = mount.late.hold_puts();
            let flushed = mount.flush(to);
            let more = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let at = copy_on(&mount, (from, to), at).await;
                drop(late);
                at
            };
            let (flushed, more) = tokio::join!(flushed, more);
            flushed.unwrap();
            at = more;
        }
        assert!(at < 40 << 20);
        mount.write(to, at, "end").unwrap();
        mount.close(to).await.unwrap();
        let wanted = format!("{}end", &text[..at as usize]);
        assert!(world.get("b").await.unwrap() == wanted, "{goes_on}");
    }
}

#[tokio::test(start_paused = true)]
async fn copying_a_part_reads_and_writes() {
    let world = World::memory();
    world.put("a", "0123456789").await;
    world.put("b", "----------").await;
    let mount = world.mount();
    let from = mount.open("a", READ).await.unwrap();
    let to = mount.open("b", WRITE).await.unwrap();
    let copied = mount.fs.copy_file_range((from, 2), (to, 5), 3, 7);
    assert_eq!(copied.await.unwrap(), 3);
    mount.close(to).await.unwrap();
    assert_eq!(world.get("b").await.unwrap(), "-----234--");
}

#[tokio::test(start_paused = true)]
async fn a_copy_changed_before_its_commit_is_written_whole() {
    let world = World::s3();
    world.put("a", "0123456789").await;
    let mount = world.mount();
    let from = mount.open("a", READ).await.unwrap();
    let to = mount.open("b", libc::O_RDWR | libc::O_CREAT).await.unwrap();
    let copied = mount.fs.copy_file_range((from, 0), (to, 0), 100, 7);
    assert_eq!(copied.await.unwrap(), 10);
    assert_eq!(mount.read(to, 0, 100).await.unwrap(), "0123456789");
    mount.write(to, 4, "x").unwrap();
    mount.close(to).await.unwrap();
    assert_eq!(world.get("b").await.unwrap(), "0123x56789");
}

#[tokio::test(start_paused = true)]
async fn a_file_unlinked_while_open_is_readable_and_writable() {
    let world = World::s3();
    world.put("f", "0123456789").await;
    let mount = world.mount();
    let handle = mount.open("f", libc::O_RDWR).await.unwrap();
    mount.write(handle, 0, "ab").unwrap();
    mount.unlink("f").await.unwrap();
    assert!(world.keys().await.is_empty());
    assert!(!mount.exists("f").await);
    assert_eq!(mount.read(handle, 0, 100).await.unwrap(), "ab23456789");
    mount.write(handle, 10, "more").unwrap();
    assert_eq!(mount.read(handle, 8, 100).await.unwrap(), "89more");
    assert_eq!(mount.fs.fstat(handle).unwrap().nlink, 0);
    mount.close(handle).await.unwrap();
    assert!(world.keys().await.is_empty());
    assert_eq!(mount.fs.status().dirty_files, 0);
}

#[tokio::test(start_paused = true)]
async fn a_new_file_takes_the_name_of_one_unlinked_while_open() {
    let world = World::memory();
    let mount = world.mount();
    let old = mount.open("f", CREATE).await.unwrap();
    mount.write(old, 0, "old").unwrap();
    mount.unlink("f").await.unwrap();
    mount.put("f", EXCLUSIVE, "new").await.unwrap();
    mount.close(old).await.unwrap();
    assert_eq!(world.get("f").await.unwrap(), "new");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_keeps_the_file_dirty_until_it_is_back() {
    let world = World::memory();
    let mount = world.mount();
    let handle = mount.open("f", CREATE).await.unwrap();
    mount.write(handle, 0, "kept").unwrap();
    mount.fault.set("*:error=unreachable").unwrap();
    assert_eq!(mount.close(handle).await, Err(libc::EIO));
    let status = mount.fs.status();
    assert_eq!((status.dirty_files, status.dirty_bytes), (1, 4));
    assert_eq!(status.errors.last().unwrap().errno, "EIO");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(mount.fs.status().dirty_files, 1);
    assert_eq!(mount.ls("").await, Err(libc::EIO));
    mount.fault.clear();
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(world.get("f").await.unwrap(), "kept");
    assert_eq!(mount.fs.status().dirty_files, 0);
    assert_eq!(mount.cat("f").await.unwrap(), "kept");
}

#[tokio::test(start_paused = true)]
async fn a_full_store_keeps_the_file_dirty_and_says_so() {
    let world = World::memory();
    let mount = world.mount();
    mount.fault.set("put:error=no-space").unwrap();
    assert_eq!(mount.put("f", CREATE, "kept").await, Err(libc::ENOSPC));
    assert_eq!(mount.fs.status().dirty_files, 1);
    mount.fault.clear();
    assert_eq!(mount.fs.drain(Duration::from_secs(5)).await.committed, 1);
    assert_eq!(world.get("f").await.unwrap(), "kept");
}

#[tokio::test(start_paused = true)]
async fn drain_saves_what_the_store_does_not_take() {
    let world = World::memory();
    let mount = world.mount();
    mount
        .fault
        .set("put:error=unreachable:key~down,put:hang:key~silent")
        .unwrap();
    for name in ["down", "silent", "fine"] {
        let handle = mount.open(name, CREATE).await.unwrap();
        mount.write(handle, 0, name).unwrap();
    }
    let report = mount.fs.drain(Duration::from_secs(5)).await;
    assert_eq!((report.committed, report.unsent.len()), (1, 2));
    for unsent in report.unsent {
        let kept = std::fs::read_to_string(unsent.kept_as.as_ref().unwrap()).unwrap();
        assert_eq!(kept, unsent.path);
    }
    assert_eq!(world.keys().await, ["fine"]);
}

#[tokio::test(start_paused = true)]
async fn a_spilled_file_is_committed_whole() {
    let world = World::memory();
    let mount = world.mount();
    let handle = mount.open("big", CREATE).await.unwrap();
    let piece = "0123456789abcdef".repeat(1 << 16);
    for i in 0..12 {
        mount.write(handle, i << 20, &piece).unwrap();
    }
    mount.close(handle).await.unwrap();
    let info = world.raw().head(&"big".into()).await.unwrap();
    assert_eq!(info.size, Some(12 << 20));
    assert_eq!(mount.cat("big").await.unwrap(), piece.repeat(12));
}

#[tokio::test(start_paused = true)]
async fn a_read_only_mount_refuses_every_change() {
    let world = World::memory();
    world.put("f", "x").await;
    world.put("d/f", "x").await;
    let mount = world.mount_with(|options| options.read_only = true, false);
    let refused = Err(libc::EROFS);
    assert_eq!(mount.save("f", "y").await, refused);
    assert_eq!(mount.append("new", "y").await, refused);
    assert_eq!(mount.mkdir("e").await, refused);
    assert_eq!(mount.unlink("f").await, refused);
    assert_eq!(mount.rmdir("d").await, refused);
    assert_eq!(mount.rename("f", "g").await, refused);
    let mode = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    assert_eq!(mount.setattr("f", mode).await.map(|_| ()), refused);
    assert_eq!(mount.cat("f").await.unwrap(), "x");
    assert_eq!(world.keys().await, ["d/f", "f"]);
}

#[tokio::test(start_paused = true)]
async fn drain_saves_bytes_before_it_waits_for_markers() {
    let world = World::memory();
    world.put("d/f", "x").await;
    let mount = world.mount();
    let handle = mount.open("new", CREATE).await.unwrap();
    mount.write(handle, 0, "bytes").unwrap();
    mount.unlink("d/f").await.unwrap();
    mount.fault.set("*:hang").unwrap();
    let drain = mount.fs.drain(Duration::from_secs(5));
    let report = tokio::time::timeout(Duration::from_secs(20), drain).await;
    assert_eq!(report.expect("it waits for ever").unsent.len(), 1);
    assert_eq!(mount.kept(), ["bytes"]);
    assert_eq!(mount.fs.status().uploads, 0);
}
