//! Modes, owners, times and extended attributes.

use crate::store::Plain;
use crate::world::*;
use bucketfs::driver::{Attributes, Driver, PutOptions};
use bucketfs::fs::{Kind, SetAttr, SetTime, StatAttrs};
use std::time::{Duration, SystemTime};

fn modified(time: SystemTime) -> SetAttr {
    SetAttr {
        mtime: Some(SetTime::At(time)),
        ..SetAttr::default()
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_stored_has_the_mounts_defaults() {
    let world = World::memory();
    world.put("d/f", "x").await;
    let mount = world.mount();
    let file = mount.stat("d/f").await.unwrap();
    assert_eq!((file.mode, file.uid, file.gid, file.size), (0o644, 1, 2, 1));
    let dir = mount.stat("d").await.unwrap();
    assert_eq!(
        (dir.kind, dir.mode, dir.uid, dir.gid),
        (Kind::Directory, 0o755, 1, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn attributes_of_a_clean_file_are_set_without_moving_it() {
    for (world, cost) in [
        (World::memory(), "set_attributes 1"),
        (World::s3(), "copy 1"),
    ] {
        world.put("f", "hello").await;
        let mount = world.mount();
        mount.cat("f").await.unwrap();
        mount.cost();
        assert_eq!(mount.setattr("f", mode(0o600)).await.unwrap().mode, 0o600);
        assert_eq!(mount.cost(), cost);
        assert_eq!(world.mount().stat("f").await.unwrap().mode, 0o600);
        assert_eq!(mount.cat("f").await.unwrap(), "hello");
        mount.save("f", "more").await.unwrap();
        assert_eq!(world.mount().stat("f").await.unwrap().mode, 0o600);
    }
}

#[tokio::test(start_paused = true)]
async fn attributes_of_a_dirty_file_ride_on_its_put() {
    for world in [World::memory(), World::s3()] {
        let mount = world.mount();
        mount.ls("").await.unwrap();
        mount.cost();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let handle = mount.open("f", CREATE).await.unwrap();
        mount.write(handle, 0, "hello").unwrap();
        mount.setattr("f", mode(0o640)).await.unwrap();
        mount.setattr("f", modified(time)).await.unwrap();
        mount.close(handle).await.unwrap();
        assert_eq!(mount.cost(), "put 1");
        let seen = world.mount().stat("f").await.unwrap();
        assert_eq!((seen.mode, seen.mtime, seen.uid), (0o640, time, CALLER.uid));
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_without_attributes_says_so() {
    let world = World::over(Plain::bare());
    world.put("f", "hello").await;
    let mount = world.mount();
    let refused = Err(libc::EOPNOTSUPP);
    assert_eq!(mount.setattr("f", mode(0o600)).await.map(|_| ()), refused);
    let owner = SetAttr {
        uid: Some(77),
        ..SetAttr::default()
    };
    assert_eq!(mount.setattr("f", owner).await.map(|_| ()), refused);
    assert!(
        mount.setattr("f", mode(0o644)).await.is_ok(),
        "it is that already"
    );
    let ino = mount.ino("f").await.unwrap();
    let set = mount.fs.setxattr(ino, b"user.a", b"1", 0).await;
    assert_eq!(set.unwrap_err().errno(), libc::EOPNOTSUPP);
    assert!(mount.fs.listxattr(ino).await.unwrap().is_empty());
    assert_eq!(world.get("f").await.unwrap(), "hello");
}

#[tokio::test(start_paused = true)]
async fn touching_a_file_of_a_store_without_times_copies_it_onto_itself() {
    let world = World::over(Plain::bare().copying(bucketfs::driver::Strength::None));
    world.put("f", "hello").await;
    let mount = world.mount();
    mount.stat("f").await.unwrap();
    let before = world.raw().head(&"f".into()).await.unwrap().modified;
    let now = SetAttr {
        atime: Some(SetTime::Now),
        mtime: Some(SetTime::Now),
        ..SetAttr::default()
    };
    mount.setattr("f", now).await.unwrap();
    assert!(world.raw().head(&"f".into()).await.unwrap().modified > before);
    assert_eq!(mount.cat("f").await.unwrap(), "hello");
}

#[tokio::test(start_paused = true)]
async fn extended_attributes_and_media_types_survive_rewrites_and_renames() {
    for world in [World::memory(), World::s3()] {
        let attributes = Attributes {
            content_type: Some("text/css".into()),
            user: [("color".to_owned(), "blue".into())].into(),
            ..Attributes::default()
        };
        let options = PutOptions {
            attributes,
            ..PutOptions::default()
        };
        world
            .raw()
            .put(&"f".into(), "old".into(), options)
            .await
            .unwrap();
        let mount = world.mount();
        mount.save("f", "new").await.unwrap();
        mount.append("f", " and more").await.unwrap();
        mount.setattr("f", mode(0o600)).await.unwrap();
        mount.rename("f", "g").await.unwrap();
        let ino = mount.ino("g").await.unwrap();
        assert_eq!(mount.fs.getxattr(ino, b"user.color").await.unwrap(), "blue");
        mount
            .fs
            .setxattr(ino, b"user.size", b"10", 0)
            .await
            .unwrap();
        mount.save("g", "newest").await.unwrap();
        let told = world
            .raw()
            .head(&"g".into())
            .await
            .unwrap()
            .attributes
            .unwrap();
        assert_eq!(told.content_type.as_deref(), Some("text/css"));
        assert_eq!(told.user.len(), 2);
        assert_eq!(told.mode.unwrap() & 0o7777, 0o600);
        let ino = mount.ino("g").await.unwrap();
        mount.fs.removexattr(ino, b"user.color").await.unwrap();
        let names = mount.fs.listxattr(ino).await.unwrap();
        assert_eq!(names, "user.size\0");
        let again = mount.fs.removexattr(ino, b"user.color").await;
        assert_eq!(again.unwrap_err().errno(), libc::ENODATA);
    }
}

#[tokio::test(start_paused = true)]
async fn digests_of_other_tools_stay_with_the_bytes_and_go_with_them() {
    let world = World::s3();
    let mut attributes = Attributes::default();
    let pairs = [
        ("md5chksum", "XUFAKrxLKna5cZ2REBfFkg=="),
        ("s3cmd-attrs", "gid:0/md5:5d41402abc4b2a76b9719d911017c592"),
        ("color", "blue"),
    ];
    for (name, value) in pairs {
        attributes.user.insert(name.into(), value.into());
        let header = format!("x-amz-meta-{name}");
        attributes.headers.insert(header, String::new());
    }
    let options = PutOptions {
        attributes,
        ..PutOptions::default()
    };
    let put = world.raw().put(&"f".into(), "hello".into(), options).await;
    put.unwrap();
    let names = async |key: &str| {
        let info = world.raw().head(&key.into()).await.unwrap();
        let told = info.attributes.unwrap();
        let names: Vec<String> = told.user.keys().cloned().collect();
        assert_eq!(told.headers.len(), names.len());
        names.join(" ")
    };
    let mount = world.mount();
    mount.setattr("f", mode(0o600)).await.unwrap();
    assert_eq!(names("f").await, "color md5chksum s3cmd-attrs");
    mount.rename("f", "g").await.unwrap();
    assert_eq!(names("g").await, "color md5chksum s3cmd-attrs");
    mount.append("g", " again").await.unwrap();
    assert_eq!(names("g").await, "color");
}

#[tokio::test(start_paused = true)]
async fn a_directorys_mode_is_kept_in_its_marker() {
    let world = World::memory();
    world.put("d/f", "x").await;
    let mount = world.mount();
    mount.setattr("d", mode(0o700)).await.unwrap();
    assert_eq!(world.keys().await, ["d/", "d/f"]);
    assert_eq!(world.mount().stat("d").await.unwrap().mode, 0o700);
}

#[tokio::test(start_paused = true)]
async fn links_and_special_files_are_kept_where_the_store_can() {
    let world = World::s3();
    let mount = world.mount();
    let root = bucketfs::fs::ROOT;
    mount.ls("").await.unwrap();
    mount.cost();
    let entry = mount
        .fs
        .symlink(root, b"link", b"to/there", CALLER)
        .await
        .unwrap();
    assert_eq!(mount.cost(), "put 1");
    assert_eq!(mount.fs.readlink(entry.attr.ino).await.unwrap(), "to/there");
    mount
        .fs
        .mknod(root, b"fifo", libc::S_IFIFO | 0o600, 0, CALLER)
        .await
        .unwrap();
    // The first mount goes on, and has not written its index yet.
    let other = world.mount_with(|options| options.stat_attrs = StatAttrs::Full, false);
    let link = other.stat("link").await.unwrap();
    assert_eq!((link.kind, link.size), (Kind::Symlink, 8));
    assert_eq!(other.fs.readlink(link.ino).await.unwrap(), "to/there");
    assert_eq!(other.stat("fifo").await.unwrap().kind, Kind::Fifo);
    let bare = World::over(Plain::bare()).mount();
    let refused = bare.fs.symlink(root, b"link", b"x", CALLER).await;
    assert_eq!(refused.unwrap_err().errno(), libc::EPERM);
}

#[tokio::test(start_paused = true)]
async fn a_new_length_is_committed_although_the_mode_beside_it_is_refused() {
    let world = World::over(Plain::bare());
    world.put("f", "hello").await;
    let mount = world.mount();
    let set = SetAttr {
        size: Some(2),
        mode: Some(0o600),
        ..SetAttr::default()
    };
    assert_eq!(
        mount.setattr("f", set).await.map(|_| ()),
        Err(libc::EOPNOTSUPP)
    );
    assert_eq!(world.get("f").await.unwrap(), "he");
    assert_eq!(mount.fs.status().dirty_files, 0);
}

#[tokio::test(start_paused = true)]
async fn changes_right_after_a_close_are_one_copy() {
    let world = World::s3();
    let mount = world.mount();
    mount.save("f", "hello").await.unwrap();
    mount.save("other", "hello").await.unwrap();
    mount.cost();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for set in [mode(0o640), modified(time), mode(0o600)] {
        mount.setattr("f", set).await.unwrap();
    }
    assert_eq!(mount.cost(), "");
    mount.ls("").await.unwrap();
    let seen = mount.stat("f").await.unwrap();
    assert_eq!((seen.mode, seen.mtime), (0o600, time));
    mount.cost();
    later().await;
    assert_eq!(mount.cost(), "copy 1");
    let stored = world.raw().head(&"f".into()).await.unwrap();
    let stored = stored.told_attributes();
    assert_eq!((stored.mode, stored.mtime), (Some(0o100_600), Some(time)));
    // Later ones are sent at once.
    mount.setattr("f", mode(0o644)).await.unwrap();
    assert_eq!(mount.cost(), "copy 1");
}

#[tokio::test(start_paused = true)]
async fn a_rename_or_a_commit_carries_what_was_changed_before() {
    let world = World::s3();
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.save("new", "hello").await.unwrap();
    mount.setattr("new", mode(0o600)).await.unwrap();
    mount.cost();
    mount.rename("new", "renamed").await.unwrap();
    assert_eq!(mount.cost(), "copy 1, delete 1");
    mount.save("again", "hello").await.unwrap();
    mount.setattr("again", mode(0o640)).await.unwrap();
    mount.cost();
    mount.save("again", "more").await.unwrap();
    assert_eq!(mount.cost(), "put 1");
    mount.save("gone", "hello").await.unwrap();
    mount.setattr("gone", mode(0o640)).await.unwrap();
    mount.cost();
    mount.unlink("gone").await.unwrap();
    assert_eq!(mount.cost(), "delete 1");
    later().await;
    assert_eq!(mount.cost(), "");
    for (key, expected) in [("renamed", 0o100_600), ("again", 0o100_640)] {
        let stored = world.raw().head(&key.into()).await.unwrap();
        assert_eq!(stored.told_attributes().mode, Some(expected), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_sent_by_fsync_and_at_the_end_and_after_a_failure() {
    let world = World::s3();
    let mount = world.mount();
    let mode_of = async |key: &str| {
        let stored = world.raw().head(&key.into()).await.unwrap();
        stored.told_attributes().mode
    };
    for name in ["synced", "drained", "failed"] {
        mount.save(name, "hello").await.unwrap();
        mount.setattr(name, mode(0o600)).await.unwrap();
        assert_eq!(mode_of(name).await, Some(0o100_644));
    }
    let handle = mount.open("synced", WRITE).await.unwrap();
    mount.fs.fsync(handle).await.unwrap();
    assert_eq!(mode_of("synced").await, Some(0o100_600));
    mount.close(handle).await.unwrap();
    mount.fault.set("copy:error=unavailable@every1").unwrap();
    later().await;
    mount.fault.set("").unwrap();
    assert_eq!(mode_of("failed").await, Some(0o100_644));
    assert_eq!(mount.stat("failed").await.unwrap().mode, 0o600);
    mount.fs.drain(Duration::from_secs(10)).await;
    for name in ["drained", "failed"] {
        assert_eq!(mode_of(name).await, Some(0o100_600));
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_put_on_what_somebody_else_wrote() {
    let world = World::s3();
    let mount = world.mount();
    mount.save("f", "hello").await.unwrap();
    mount.setattr("f", mode(0o600)).await.unwrap();
    world.put("f", "theirs").await;
    later().await;
    assert_eq!(world.get("f").await.unwrap(), "theirs");
    assert_eq!(mount.cat("f").await.unwrap(), "theirs");
    assert_eq!(mount.stat("f").await.unwrap().mode, 0o600);
    assert!(world.conflicts("f").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_length_that_could_not_be_sent_is_asked_for_again() {
    let world = World::memory();
    world.put("f", "hello").await;
    let mount = world.mount();
    let ino = mount.ino("f").await.unwrap();
    mount.fault.set("put:error=unreachable").unwrap();
    mount.kernel.told();
    let shorter = SetAttr {
        size: Some(2),
        ..SetAttr::default()
    };
    assert_eq!(mount.setattr("f", shorter).await, Err(libc::EIO));
    // It waits to be sent, and the kernel believes in the one of before.
    let told = mount.kernel.told();
    assert!(told.contains(&Told::Inode(ino, true)), "{told:?}");
    assert!(told.contains(&Told::Inode(ino, false)), "{told:?}");
    assert_eq!(mount.fs.getattr(ino).await.unwrap().attr.size, 2);
    mount.fault.clear();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(world.get("f").await.unwrap(), "he");
}

/// What somebody else has stored: a mode, an owner and a group.
async fn stored_by_another(world: &World, key: &str) {
    let attributes = Attributes {
        mode: Some(0o100_755),
        uid: Some(55),
        gid: Some(56),
        user: [("color".to_owned(), "blue".into())].into(),
        ..Attributes::default()
    };
    let options = PutOptions {
        attributes,
        ..PutOptions::default()
    };
    let key = key.into();
    let put = world.raw().put(&key, "old".into(), options);
    put.await.unwrap();
}

async fn stored_now(world: &World, key: &str) -> (u32, u32, u32, usize) {
    let told = world.raw().head(&key.into()).await.unwrap();
    let told = told.told_attributes();
    let mode = told.mode.unwrap() & 0o7777;
    (mode, told.uid.unwrap(), told.gid.unwrap(), told.user.len())
}

#[tokio::test(start_paused = true)]
async fn a_rewrite_keeps_the_mode_and_the_owner_that_nobody_has_told() {
    let world = World::s3();
    for name in ["f", "g", "h", "i"] {
        stored_by_another(&world, name).await;
    }
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.save("f", "new").await.unwrap();
    assert_eq!(stored_now(&world, "f").await, (0o755, 55, 56, 1));
    let seen = mount.stat("f").await.unwrap();
    assert_eq!((seen.mode, seen.uid, seen.gid), (0o755, 55, 56));
    // Also when the listing answered the lookup just before, and nothing is cut off.
    mount.stat("g").await.unwrap();
    mount.append("g", " more").await.unwrap();
    assert_eq!(stored_now(&world, "g").await, (0o755, 55, 56, 1));
    // What is changed before the commit stays changed, and the rest stays.
    let flags = libc::O_WRONLY | libc::O_TRUNC;
    let handle = mount.open("h", flags).await.unwrap();
    mount.write(handle, 0, "new").unwrap();
    mount.setattr("h", mode(0o640)).await.unwrap();
    mount.close(handle).await.unwrap();
    assert_eq!(stored_now(&world, "h").await, (0o640, 55, 56, 1));
    let handle = mount.open("i", flags).await.unwrap();
    mount.write(handle, 0, "new").unwrap();
    let ino = mount.ino("i").await.unwrap();
    let set = mount.fs.setxattr(ino, b"user.size", b"3", 0).await;
    set.unwrap();
    mount.close(handle).await.unwrap();
    assert_eq!(stored_now(&world, "i").await, (0o755, 55, 56, 2));
}

#[tokio::test(start_paused = true)]
async fn what_is_written_while_attributes_are_sent_is_younger() {
    let world = World::s3();
    let mount = world.mount();
    mount.save("f", "hello").await.unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    mount.setattr("f", modified(old)).await.unwrap();
    mount.fault.set("copy:delay=5s").unwrap();
    later().await;
    let handle = mount.open("f", libc::O_WRONLY).await.unwrap();
    mount.write(handle, 0, "H").unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(mount.stat("f").await.unwrap().mtime > old);
    mount.close(handle).await.unwrap();
    let told = world.raw().head(&"f".into()).await.unwrap();
    assert!(told.told_attributes().mtime.unwrap() > old);
    assert_eq!(world.get("f").await.unwrap(), "Hello");
}

#[tokio::test(start_paused = true)]
async fn what_the_store_tells_while_attributes_are_sent_does_not_hide_them() {
    let world = World::s3();
    // Nothing is kept: each open brings the bytes, and what is stored beside them.
    let mount = world.mount_with(|options| options.memory_cache = 0, false);
    mount.save("f", "hello").await.unwrap();
    mount.setattr("f", mode(0o600)).await.unwrap();
    mount.fault.set("copy:delay=5s").unwrap();
    for _ in 0..3 {
        later().await;
        assert_eq!(mount.stat("f").await.unwrap().mode, 0o600);
        assert_eq!(mount.cat("f").await.unwrap(), "hello");
        assert_eq!(mount.stat("f").await.unwrap().mode, 0o600);
    }
    // What is changed meanwhile is sent as well.
    mount.setattr("f", mode(0o640)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(mount.stat("f").await.unwrap().mode, 0o640);
    let told = world.raw().head(&"f".into()).await.unwrap();
    assert_eq!(told.told_attributes().mode, Some(0o100_640));
}

#[tokio::test(start_paused = true)]
async fn attributes_that_cannot_be_sent_at_the_end_are_tried_again_and_told() {
    for lasting in [false, true] {
        let world = World::s3();
        let mount = world.mount();
        mount.save("f", "hello").await.unwrap();
        mount.setattr("f", mode(0o600)).await.unwrap();
        let faults = match lasting {
            false => "copy:error=unreachable@1,copy:error=unreachable@2",
            true => "copy:error=unreachable",
        };
        mount.fault.set(faults).unwrap();
        let report = mount.fs.drain(Duration::from_secs(60)).await;
        assert_eq!(report.untold.len(), usize::from(lasting), "{report:?}");
        let told = world.raw().head(&"f".into()).await.unwrap();
        let changed = told.told_attributes().mode == Some(0o100_600);
        assert_eq!(changed, !lasting);
        if let [untold] = &*report.untold {
            assert_eq!(untold.path, "f");
            assert!(untold.reason.contains("copy"), "{}", untold.reason);
            // Broken off in the middle of a try it is told as well.
            mount.fault.set("copy:hang").unwrap();
            let report = mount.fs.drain(Duration::from_secs(5)).await;
            assert_eq!(report.untold.len(), 1, "{report:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_kernel_hears_of_privileges_that_a_write_takes_away() {
    let world = World::memory();
    let mount = world.mount();
    mount.save("f", "program").await.unwrap();
    mount.setattr("f", mode(0o4755)).await.unwrap();
    let ino = mount.ino("f").await.unwrap();
    for (user, told) in [(0, vec![]), (1000, vec![Told::Inode(ino, true)])] {
        let handle = mount.open("f", libc::O_WRONLY).await.unwrap();
        mount.kernel.told();
        let written = mount.fs.write(handle, 0, b"P", user, false);
        assert_eq!(written.unwrap(), Some(1));
        assert_eq!(mount.kernel.told(), told);
        mount.close(handle).await.unwrap();
    }
    assert_eq!(mount.stat("f").await.unwrap().mode, 0o755);
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_is_opened_by_no_number_that_the_kernel_has_of_before() {
    let world = World::memory();
    let mount = world.mount();
    mount.save("f", "hello").await.unwrap();
    let ino = mount.ino("f").await.unwrap();
    let open = async |flags| mount.fs.open(ino, flags, CALLER).await;
    let handle = open(libc::O_RDONLY).await.unwrap().handle;
    mount.unlink("f").await.unwrap();
    // Who has it open can open it again, as by /proc/self/fd.
    let again = open(libc::O_RDWR).await.unwrap().handle;
    for handle in [again, handle] {
        mount.fs.release(handle).await.unwrap();
    }
    for flags in [libc::O_RDONLY, libc::O_WRONLY | libc::O_TRUNC] {
        assert_eq!(open(flags).await.unwrap_err().errno(), libc::ESTALE);
    }
}
