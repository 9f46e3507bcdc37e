//! Files of which more waits for its commit than the staging area may hold.

use crate::world::{CALLER, Mount, Outcome, World};
use bucketfs::fs::SetAttr;
use bucketfs::layer::Operation;
use std::ops::Range;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const CREATE: i32 = libc::O_CREAT | libc::O_RDWR;
/// How much of a file may wait here: four rows.
const ROOM: u64 = 8 * MIB;

fn mount(world: &World) -> Mount {
    world.mount_with(|options| options.staging_size = ROOM, false)
}

/// The bytes of one mebibyte of a file, in the `round`th writing.
fn mebibyte(index: u64, round: u64) -> Vec<u8> {
    format!("{index:06}:{round}")
        .repeat(MIB as usize / 8)
        .into_bytes()
}

async fn write(mount: &Mount, handle: u64, at: u64, data: Vec<u8>) -> Outcome<u32> {
    let written = mount
        .fs
        .write_when_room(handle, at, data.into(), CALLER.uid, false);
    written.await.map_err(|error| error.errno())
}

async fn fill(mount: &Mount, handle: u64, range: Range<u64>) {
    for index in range {
        let written = write(mount, handle, index * MIB, mebibyte(index, 0)).await;
        assert_eq!(written, Ok(MIB as u32));
    }
}

fn whole(range: Range<u64>) -> Vec<u8> {
    range.flat_map(|index| mebibyte(index, 0)).collect()
}

/// The objects in which bytes wait.
async fn waiting(world: &World) -> usize {
    let keys = world.keys().await;
    keys.iter()
        .filter(|key| key.starts_with(".bucketfs/staging/"))
        .count()
}

async fn none_waits(world: &World) {
    for _ in 0..1000 {
        if waiting(world).await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?}", world.keys().await);
}

async fn stored(world: &World, key: &str) -> Option<Vec<u8>> {
    world.get(key).await.map(String::into_bytes)
}

#[tokio::test]
async fn a_file_beyond_the_staging_area_is_written_whole_and_can_be_read_meanwhile() {
    for world in [World::memory(), World::s3()] {
        let mount = mount(&world);
        let handle = mount.open("big", CREATE).await.unwrap();
        fill(&mount, handle, 0..40).await;
        assert!(waiting(&world).await >= 15);
        assert_eq!(
            world.get("big").await,
            None,
            "nobody sees it before its commit"
        );
        assert!(mount.fs.status().dirty_bytes <= ROOM);
        assert_eq!(mount.stat("big").await.unwrap().size, 40 * MIB);
        // Across what is here and what is not.
        for at in [0, 3 * MIB - 100, 31 * MIB + 7, 40 * MIB - 50] {
            let bytes = mount.fs.read(handle, at, 100_000).await.unwrap();
            let end = (at + 100_000).min(40 * MIB);
            assert!(bytes == whole(0..40)[at as usize..end as usize], "at {at}");
        }
        assert!(mount.ls("").await.unwrap() == ["big"]);
        mount.close(handle).await.unwrap();
        assert!(stored(&world, "big").await.unwrap() == whole(0..40));
        none_waits(&world).await;
        let handle = mount.open("big", libc::O_RDONLY).await.unwrap();
        let bytes = mount.fs.read(handle, 0, 64 << 20).await.unwrap();
        assert!(bytes == whole(0..40));
        mount.close(handle).await.unwrap();
        assert_eq!(mount.fs.status().dirty_bytes, 0);
    }
}

#[tokio::test]
async fn what_was_let_go_can_be_changed_again() {
    let world = World::memory();
    let mount = mount(&world);
    let handle = mount.open("big", CREATE).await.unwrap();
    fill(&mount, handle, 0..30).await;
    let mut expected = whole(0..30);
    // As programs do that write a header when they know what is behind it.
    for at in [0, 5 * MIB + 100, 29 * MIB] {
        write(&mount, handle, at, b"header".to_vec()).await.unwrap();
        expected[at as usize..at as usize + 6].copy_from_slice(b"header");
    }
    let hole = 9 * MIB..11 * MIB;
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    mount
        .fs
        .fallocate(handle, hole.start, hole.end - hole.start, punch, 0)
        .unwrap();
    expected[hole.start as usize..hole.end as usize].fill(0);
    let half = SetAttr {
        size: Some(25 * MIB),
        ..SetAttr::default()
    };
    mount.setattr("big", half).await.unwrap();
    expected.truncate(25 << 20);
    let bytes = mount.fs.read(handle, 5 * MIB, 5 << 20).await.unwrap();
    assert!(bytes == expected[5 << 20..10 << 20]);
    mount.flush(handle).await.unwrap();
    assert!(stored(&world, "big").await.unwrap() == expected);
    // And on it goes, on top of what was committed.
    for index in 25..45 {
        write(&mount, handle, index * MIB, mebibyte(index, 0))
            .await
            .unwrap();
        expected.extend(mebibyte(index, 0));
    }
    assert!(waiting(&world).await > 0);
    mount.close(handle).await.unwrap();
    assert!(stored(&world, "big").await.unwrap() == expected);
    none_waits(&world).await;
}

#[tokio::test]
async fn bytes_that_were_let_go_become_a_conflict_file_when_the_race_is_lost() {
    for world in [World::memory(), World::s3()] {
        let mount = mount(&world);
        let handle = mount.open("big", CREATE).await.unwrap();
        fill(&mount, handle, 0..24).await;
        world.put("big", "somebody else's").await;
        assert_eq!(mount.close(handle).await, Err(libc::EEXIST));
        assert_eq!(world.get("big").await.unwrap(), "somebody else's");
        let kept = world.conflicts("big").await;
        assert_eq!(kept.len(), 1);
        assert!(kept[0].as_bytes() == whole(0..24));
        none_waits(&world).await;
    }
}

#[tokio::test]
async fn a_large_object_is_appended_to_beyond_the_staging_area() {
    let world = World::memory();
    let before = String::from_utf8(whole(0..20)).unwrap();
    world.put("log", &before).await;
    let mount = mount(&world);
    let handle = mount
        .open("log", libc::O_WRONLY | libc::O_APPEND)
        .await
        .unwrap();
    for index in 20..40 {
        write(&mount, handle, 0, mebibyte(index, 0)).await.unwrap();
    }
    let before = mount.stats.snapshot().count(Operation::Get);
    mount.close(handle).await.unwrap();
    assert!(stored(&world, "log").await.unwrap() == whole(0..40));
    assert_eq!(
        mount.stats.snapshot().count(Operation::Get),
        before,
        "nothing is fetched"
    );
    none_waits(&world).await;
}

#[tokio::test]
async fn an_unlinked_file_and_an_emptied_one_need_no_objects() {
    let world = World::memory();
    let mount = mount(&world);
    let (one, two) = (
        mount.open("one", CREATE).await,
        mount.open("two", CREATE).await,
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    fill(&mount, one, 0..12).await;
    fill(&mount, two, 0..12).await;
    mount.unlink("one").await.unwrap();
    let bytes = mount.fs.read(one, 0, 1 << 20).await.unwrap();
    assert!(bytes == mebibyte(0, 0), "an open file outlives its name");
    fill(&mount, one, 12..20).await;
    let bytes = mount.fs.read(one, 15 * MIB, 1 << 20).await.unwrap();
    assert!(bytes == mebibyte(15, 0));
    mount.close(one).await.unwrap();
    let empty = SetAttr {
        size: Some(0),
        ..SetAttr::default()
    };
    mount.setattr("two", empty).await.unwrap();
    none_waits(&world).await;
    mount.close(two).await.unwrap();
    assert_eq!(world.keys().await, ["two"]);
}

#[tokio::test]
async fn a_hole_that_would_have_to_be_sent_is_refused() {
    let world = World::memory();
    let mount = mount(&world);
    let handle = mount.open("sparse", CREATE).await.unwrap();
    assert_eq!(
        write(&mount, handle, 1 << 40, b"x".to_vec()).await,
        Err(libc::EFBIG)
    );
    let large = SetAttr {
        size: Some(1 << 40),
        ..SetAttr::default()
    };
    assert_eq!(
        mount.setattr("sparse", large).await.err(),
        Some(libc::EFBIG)
    );
    let error = mount
        .fs
        .write_when_room(handle, 1 << 40, "x".into(), 0, false)
        .await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("raise --staging-size"), "{error}");
    write(&mount, handle, 3 * MIB, b"x".to_vec()).await.unwrap();
    mount.close(handle).await.unwrap();
    assert_eq!(world.get("sparse").await.unwrap().len() as u64, 3 * MIB + 1);
}

#[tokio::test]
async fn a_store_that_takes_no_more_fails_the_write_and_keeps_what_was_there() {
    let world = World::memory();
    let mount = mount(&world);
    let handle = mount.open("big", CREATE).await.unwrap();
    fill(&mount, handle, 0..12).await;
    mount.fault.set("put:error=no-space@every1").unwrap();
    let mut failed = None;
    for index in 12..30 {
        if let Err(errno) = write(&mount, handle, index * MIB, mebibyte(index, 0)).await {
            failed = Some((index, errno));
            break;
        }
    }
    let (index, errno) = failed.expect("there is no room");
    assert_eq!(errno, libc::ENOSPC);
    mount.fault.clear();
    fill(&mount, handle, index..30).await;
    mount.close(handle).await.unwrap();
    assert!(stored(&world, "big").await.unwrap() == whole(0..30));
    none_waits(&world).await;
}

#[tokio::test]
async fn lost_answers_lose_no_byte() {
    let world = World::memory();
    let mount = world.mount_with(|options| options.staging_size = ROOM, true);
    let faults = "put:lost-reply@every3,copy_part:error=unavailable@every4,complete:lost-reply@1";
    mount.fault.set(faults).unwrap();
    let handle = mount.open("big", CREATE).await.unwrap();
    fill(&mount, handle, 0..30).await;
    mount.close(handle).await.unwrap();
    assert!(mount.fault.injected() > 4);
    assert!(stored(&world, "big").await.unwrap() == whole(0..30));
    assert!(mount.fs.status().conflicts.is_empty());
    none_waits(&world).await;
}
