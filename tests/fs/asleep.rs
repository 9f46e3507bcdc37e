//! Files that the kernel knows from a listing only, and that nobody has used yet.

use crate::world::*;
use bucketfs::fs::ROOT;
use std::time::Duration;

/// The numbers of a directory's files as `ls -l` learns them, with their names.
async fn listed(mount: &Mount, path: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for name in mount.ls(path).await.unwrap() {
        let ino = mount.ino(&format!("{path}/{name}")).await.unwrap();
        found.push((name, ino));
    }
    found
}

#[tokio::test(start_paused = true)]
async fn a_listed_file_keeps_its_number_when_it_is_used() {
    let world = World::s3();
    for name in ["a", "b", "c"] {
        world.put(&format!("d/{name}"), name).await;
    }
    let mount = world.mount();
    let before = listed(&mount, "d").await;
    mount.cost();
    // By number, as the kernel does it while it believes what it was told.
    for (name, ino) in &before {
        assert_eq!(mount.fs.getattr(*ino).await.unwrap().attr.ino, *ino);
        let opened = mount.fs.open(*ino, READ, CALLER).await.unwrap();
        assert_eq!(mount.read(opened.handle, 0, 9).await.unwrap(), *name);
        mount.close(opened.handle).await.unwrap();
    }
    assert_eq!(mount.cost(), "get 3");
    assert_eq!(listed(&mount, "d").await, before);
}

#[tokio::test(start_paused = true)]
async fn listed_files_keep_their_numbers_when_their_directory_is_renamed() {
    let world = World::s3();
    for name in ["a", "sub/b", "sub/c"] {
        world.put(&format!("d/{name}"), name).await;
    }
    let mount = world.mount();
    let (outer, inner) = (listed(&mount, "d").await, listed(&mount, "d/sub").await);
    mount.rename("d", "e").await.unwrap();
    for (name, ino) in &inner {
        assert_eq!(mount.fs.getattr(*ino).await.unwrap().attr.ino, *ino);
        assert_eq!(mount.ino(&format!("e/sub/{name}")).await, Ok(*ino));
    }
    assert_eq!(listed(&mount, "e").await, outer);
    assert_eq!(mount.cat("e/sub/b").await.unwrap(), "sub/b");
}

#[tokio::test(start_paused = true)]
async fn a_version_found_while_a_file_was_not_used_is_told_before_it_is_opened() {
    for relisted in [false, true] {
        let world = World::s3();
        world.put("d/f", "old").await;
        let mount = world.mount();
        let ino = listed(&mount, "d").await[0].1;
        world.put("d/f", "newer").await;
        later().await;
        if relisted {
            // Names alone: the kernel is told no attributes of the new version.
            let dir = mount.fs.opendir(mount.ino("d").await.unwrap()).unwrap();
            mount.fs.readdir(dir, 0).await.unwrap();
            mount.fs.releasedir(dir).unwrap();
        }
        mount.kernel.told();
        let opened = mount.fs.open(ino, READ, CALLER).await.unwrap();
        let told = mount.kernel.told();
        assert!(told.contains(&Told::Inode(ino, true)), "{told:?}");
        assert_eq!(mount.read(opened.handle, 0, 9).await.unwrap(), "newer");
        assert_eq!(mount.fs.getattr(ino).await.unwrap().attr.size, 5);
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_elsewhere_of_a_file_that_was_not_used_is_told() {
    let world = World::watched();
    world.put("d/f", "old").await;
    world.put("d/g", "stays").await;
    let mount = world.mount();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let ino = listed(&mount, "d").await[0].1;
    let dir = mount.ino("d").await.unwrap();
    for change in ["newer", ""] {
        mount.kernel.told();
        match change {
            "" => world.delete("d/f").await,
            bytes => world.put("d/f", bytes).await,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        let told = mount.kernel.told();
        assert!(told.contains(&Told::Inode(ino, true)), "{told:?}");
        assert!(told.contains(&Told::Entry(dir, "f".into())), "{told:?}");
        mount.ls("d").await.unwrap();
    }
    assert_eq!(
        mount.fs.getattr(ino).await.unwrap_err().errno(),
        libc::ESTALE
    );
    assert_eq!(mount.ls("d").await.unwrap(), ["g"]);
}

#[tokio::test(start_paused = true)]
async fn files_that_were_not_used_are_forgotten_with_their_directory() {
    let world = World::s3();
    for number in 0..50 {
        world.put(&format!("d/{number}"), "x").await;
    }
    let mount = world.mount();
    mount.ls("d").await.unwrap();
    mount.ls("d").await.unwrap();
    // The directory, its files, and the root.
    assert_eq!(mount.fs.status().inodes, 52);
    mount.cat("d/7").await.unwrap();
    mount.rename("d/8", "moved").await.unwrap();
    mount.unlink("d/9").await.unwrap();
    mount.forget_all();
    assert_eq!(mount.fs.status().inodes, 1);
    assert_eq!(mount.fs.getattr(ROOT).await.unwrap().attr.ino, ROOT);
}

#[tokio::test(start_paused = true)]
async fn an_open_after_a_lookup_does_not_depend_on_what_the_listing_still_knows() {
    for listed_before in [false, true] {
        let world = World::watched();
        world.put("d/f", "old").await;
        let mount = world.mount();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let directory = mount.ino("d").await.unwrap();
        if listed_before {
            let ino = listed(&mount, "d").await[0].1;
            world.put("d/f", "newer").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            // Nothing is known of it now. The kernel looks it up once more, and no further.
            let opened = mount.fs.open(ino, READ, CALLER).await;
            assert_eq!(opened.unwrap_err().errno(), libc::ESTALE);
        }
        // Names alone, as a listing tells them to who asks for no attributes.
        let dir = mount.fs.opendir(directory).unwrap();
        mount.fs.readdir(dir, 0).await.unwrap();
        mount.fs.releasedir(dir).unwrap();
        let ino = mount.look(directory, b"f").await.unwrap().attr.ino;
        world.put("d/f", "newest").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let opened = mount.fs.open(ino, READ, CALLER).await.unwrap();
        assert_eq!(mount.read(opened.handle, 0, 9).await.unwrap(), "newest");
        mount.close(opened.handle).await.unwrap();
    }
}
