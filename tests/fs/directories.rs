//! Directories: making, removing, listing, and those that only keys imply.

use crate::store::Plain;
use crate::world::*;
use bucketfs::driver::{AttributeChange, Driver};
use bucketfs::fs::SetAttr;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn mkdir_writes_the_marker_at_once_and_one_of_two_wins() {
    let world = World::s3();
    let (a, b) = (world.mount(), world.mount());
    assert!(!a.exists("d").await && !b.exists("d").await);
    a.cost();
    a.mkdir("d").await.unwrap();
    assert_eq!(a.cost(), "put 1");
    assert_eq!(world.keys().await, ["d/"]);
    assert_eq!(b.mkdir("d").await, Err(libc::EEXIST));
    assert_eq!(b.ls("").await.unwrap(), ["d"]);
    assert!(b.ls("d").await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn rmdir_of_an_empty_directory_removes_its_marker() {
    let world = World::s3();
    let mount = world.mount();
    mount.mkdir("d").await.unwrap();
    mount.cost();
    mount.rmdir("d").await.unwrap();
    assert_eq!(mount.cost(), "delete 1, list 1");
    assert!(world.keys().await.is_empty());
    assert!(!mount.exists("d").await);
    mount.mkdir("d").await.unwrap();
    assert!(mount.exists("d").await);
}

#[tokio::test(start_paused = true)]
async fn rmdir_of_a_directory_that_others_filled_is_refused() {
    let world = World::memory();
    let mount = world.mount();
    mount.mkdir("d").await.unwrap();
    assert!(mount.ls("d").await.unwrap().is_empty());
    world.put("d/f", "x").await;
    assert_eq!(mount.rmdir("d").await, Err(libc::ENOTEMPTY));
    assert_eq!(world.keys().await, ["d/", "d/f"]);
}

#[tokio::test(start_paused = true)]
async fn rmdir_of_a_directory_with_an_uncommitted_file_is_refused() {
    let world = World::memory();
    let mount = world.mount();
    mount.mkdir("d").await.unwrap();
    let handle = mount.open("d/f", CREATE).await.unwrap();
    assert_eq!(mount.rmdir("d").await, Err(libc::ENOTEMPTY));
    mount.close(handle).await.unwrap();
    mount.unlink("d/f").await.unwrap();
    mount.rmdir("d").await.unwrap();
    assert!(world.keys().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_implied_directory_gets_a_marker_a_second_after_its_last_file_went() {
    let world = World::memory();
    world.put("d/f", "x").await;
    let mount = world.mount();
    mount.stat("d/f").await.unwrap();
    mount.unlink("d/f").await.unwrap();
    assert!(world.keys().await.is_empty());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.keys().await, ["d/"]);
    assert!(mount.exists("d").await);
}

#[tokio::test(start_paused = true)]
async fn an_emptied_directory_is_there_before_its_marker_is() {
    let world = World::memory();
    world.put("d/f", "x").await;
    let mount = world.mount();
    mount.stat("d/f").await.unwrap();
    tokio::time::sleep(Duration::from_millis(900)).await;
    mount.unlink("d/f").await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(world.keys().await.is_empty());
    assert!(mount.exists("d").await);
    later().await;
    assert!(mount.exists("d").await);
    world.put("e/f", "x").await;
    mount.stat("e/f").await.unwrap();
    mount.unlink("e/f").await.unwrap();
    mount.fault.set("put:delay=10s").unwrap();
    later().await;
    assert_eq!(mount.ls("").await.unwrap(), ["d", "e"]);
    mount.rmdir("e").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_implied_directory_with_an_uncommitted_file_stays() {
    let world = World::memory();
    world.put("d/f", "x").await;
    let mount = world.mount();
    let handle = mount.open("d/new", CREATE).await.unwrap();
    mount.write(handle, 0, "new").unwrap();
    world.delete("d/f").await;
    later().await;
    assert_eq!(mount.ls("").await.unwrap(), ["d"]);
    assert_eq!(mount.cat("d/new").await.unwrap(), "new");
    mount.close(handle).await.unwrap();
    assert_eq!(world.keys().await, ["d/new"]);
}

#[tokio::test(start_paused = true)]
async fn a_marker_that_could_not_be_written_is_tried_again() {
    let world = World::memory();
    world.put("d/f", "x").await;
    let mount = world.mount();
    mount.unlink("d/f").await.unwrap();
    mount.fault.set("put:error=unreachable").unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    mount.fault.clear();
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(world.keys().await, ["d/"]);
}

#[tokio::test(start_paused = true)]
async fn removing_a_tree_writes_no_markers() {
    let world = World::s3();
    for i in 0..20 {
        world.put(&format!("d/{i}"), "x").await;
    }
    let mount = world.mount();
    let names = mount.ls("d").await.unwrap();
    mount.cost();
    for name in names {
        mount.unlink(&format!("d/{name}")).await.unwrap();
    }
    mount.rmdir("d").await.unwrap();
    assert_eq!(mount.cost(), "delete 20, list 1");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(world.keys().await.is_empty());
    assert_eq!(mount.cost(), "");
}

#[tokio::test(start_paused = true)]
async fn offsets_are_stable_while_entries_come_and_go() {
    let world = World::memory();
    for i in 0..300 {
        world.put(&format!("d/{i:03}"), "x").await;
    }
    let mount = world.mount();
    let ino = mount.ino("d").await.unwrap();
    let handle = mount.fs.opendir(ino).unwrap();
    let (mut seen, mut offset) = (Vec::new(), 0);
    for round in 0.. {
        let batch = mount.fs.readdir(handle, offset).await.unwrap();
        let Some(last) = batch.iter().take(50).next_back() else {
            break;
        };
        offset = last.next;
        seen.extend(batch.iter().take(50).map(|entry| entry.name.clone()));
        if round < 5 {
            mount
                .unlink(&format!("d/{:03}", 299 - round))
                .await
                .unwrap();
            mount.unlink(&format!("d/{:03}", round)).await.unwrap();
            mount.save(&format!("d/000 {round}"), "x").await.unwrap();
        }
    }
    mount.fs.releasedir(handle).unwrap();
    let stable = |i: &i32| {
        seen.iter()
            .filter(|name| **name == format!("{i:03}"))
            .count()
            == 1
    };
    assert!((5..295).all(|i| stable(&i)));
    let mut once = seen.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), seen.len());
    assert_eq!(mount.ls("d").await.unwrap().len(), 295);
}

#[tokio::test(start_paused = true)]
async fn dots_lead_to_the_directory_and_its_parent() {
    let world = World::memory();
    world.put("d/e/f", "x").await;
    let mount = world.mount();
    let (d, e) = (
        mount.ino("d").await.unwrap(),
        mount.ino("d/e").await.unwrap(),
    );
    let handle = mount.fs.opendir(e).unwrap();
    let entries = mount.fs.readdir(handle, 0).await.unwrap();
    let told: Vec<_> = entries.iter().map(|e| (e.name.to_vec(), e.ino)).collect();
    assert_eq!(told[0], (b".".to_vec(), e));
    assert_eq!(told[1], (b"..".to_vec(), d));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_made_in_a_removed_directory() {
    let world = World::memory();
    let mount = world.mount();
    mount.mkdir("d").await.unwrap();
    let d = mount.ino("d").await.unwrap();
    mount.fault.set("delete:delay=1s").unwrap();
    let create = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        mount.fs.create(d, b"f", 0o644, CREATE, CALLER).await
    };
    let (removed, created) = tokio::join!(mount.rmdir("d"), create);
    removed.unwrap();
    assert_eq!(created.unwrap_err().errno(), libc::ENOENT);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(world.keys().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_large_directory_is_told_before_its_last_page_has_come() {
    let world = World::over(Plain::bare());
    for i in 0..3500 {
        world.put(&format!("d/f{i:04}"), "x").await;
    }
    let mount = world.mount();
    let ino = mount.ino("d").await.unwrap();
    let handle = mount.fs.opendir(ino).unwrap();
    mount.fault.set("list:error=unreachable@4").unwrap();
    let mut names = Vec::new();
    let read = async |names: &mut Vec<String>, offset| {
        let batch = mount.fs.readdir(handle, offset).await?;
        names.extend(
            batch
                .iter()
                .map(|entry| String::from_utf8_lossy(&entry.name).into_owned()),
        );
        Ok::<_, bucketfs::fs::FsError>(batch.last().map(|entry| entry.next))
    };
    let mut offset = 0;
    // What was told before the failure stays, and who reads on is told the rest, once.
    let failed = loop {
        match read(&mut names, offset).await {
            Ok(next) => offset = next.unwrap(),
            Err(error) => break error,
        }
    };
    assert_eq!((failed.errno(), names.len()), (libc::EIO, 3001));
    mount.fault.clear();
    mount.save("d/f9999", "late").await.unwrap();
    mount.unlink("d/f0000").await.unwrap();
    while let Some(next) = read(&mut names, offset).await.unwrap() {
        offset = next;
    }
    let mut once = names.clone();
    once.sort();
    once.dedup();
    assert_eq!((once.len(), names.len()), (3503, 3503));
    assert_eq!(names.last().unwrap(), "f9999");
    assert_eq!(mount.ls("d").await.unwrap().len(), 3500);
    mount.fs.releasedir(handle).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_name_that_two_pages_tell_of_shows_once() {
    let world = World::over(Plain::bare());
    // `a/` sorts behind a page of names that begin with `a` and what comes before a slash.
    world.put("a", "file").await;
    for i in 0..1200 {
        world.put(&format!("a-{i:04}"), "x").await;
    }
    world.put("a/b", "x").await;
    let mount = world.mount();
    let names = mount.ls("").await.unwrap();
    let of_a: Vec<_> = names.iter().filter(|name| !name.contains('-')).collect();
    assert_eq!(of_a, ["a", "a%~f"]);
    assert_eq!(names.len(), 1202);
    assert_eq!(mount.cat("a%~f").await.unwrap(), "file");
}

/// A listing that tells attributes of objects tells none of directories, also where it was asked
/// for in place of the name.
#[tokio::test(start_paused = true)]
async fn a_directory_whose_listing_tells_its_name_only_has_its_own_mode() {
    let mut store = Plain::memory();
    store.capabilities.remote = true;
    let world = World::over(store);
    let mount = world.mount();
    mount.mkdir("d").await.unwrap();
    mount.mkdir("d/sub").await.unwrap();
    mount.save("d/file", "x").await.unwrap();
    let set = SetAttr {
        mode: Some(0o700),
        ..SetAttr::default()
    };
    mount.setattr("d/sub", set).await.unwrap();
    let mount = world.mount();
    mount.stat("d/file").await.unwrap();
    assert_eq!(mount.stat("d/sub").await.unwrap().mode, 0o700);
}

#[tokio::test(start_paused = true)]
async fn the_times_of_a_directory_stay_when_the_kernel_forgets_it() {
    let world = World::memory();
    let mount = world.mount();
    mount.mkdir("d").await.unwrap();
    later().await;
    mount.save("d/f", "x").await.unwrap();
    let before = mount.stat("d").await.unwrap();
    for _ in 0..2 {
        later().await;
        mount.forget_all();
        let after = mount.stat("d").await.unwrap();
        assert_eq!((after.mtime, after.ctime), (before.mtime, before.ctime));
    }
    // What others do to it later is seen.
    later().await;
    mount.forget_all();
    let change = AttributeChange {
        mode: Some(0o040_700),
        ..AttributeChange::default()
    };
    let key = "d/".into();
    let changed = world.raw().set_attributes(&key, change, None);
    let changed = changed.await.unwrap();
    later().await;
    let after = mount.stat("d").await.unwrap();
    assert!(after.ctime >= changed.modified && after.mode == 0o700);
}
