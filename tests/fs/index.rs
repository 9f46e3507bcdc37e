//! Attributes that listings of the store do not tell: by the index in the bucket, or asked for.

use crate::store::Plain;
use crate::world::{CALLER, CREATE, Mount, READ, World, later, mode};
use bucketfs::clock;
use bucketfs::driver::{AttributeChange, AttributeSupport, Driver, ListRequest};
use bucketfs::fs::{Kind, SetAttr, StatAttrs};
use bucketfs::key::Key;
use std::time::Duration;

pub const DAY: Duration = Duration::from_secs(60);

/// A file with a mode that is not the default one.
pub async fn save(mount: &Mount, path: &str, bits: u32) {
    let handle = mount.open(path, CREATE).await.unwrap();
    mount.write(handle, 0, "text").unwrap();
    mount.setattr(path, mode(bits)).await.unwrap();
    mount.close(handle).await.unwrap();
}

/// The end of a mount.
pub async fn end(mount: Mount) {
    let report = mount.fs.drain(DAY).await;
    assert!(report.unsent.is_empty());
}

pub async fn settle() {
    tokio::time::sleep(Duration::from_secs(3)).await;
}

/// How many index objects there are.
pub async fn indexes(world: &World) -> usize {
    let keys = world.keys().await;
    let own = keys
        .iter()
        .filter(|key| key.starts_with(".bucketfs/index/"));
    own.count()
}

pub async fn modes(mount: &Mount, path: &str) -> Vec<u32> {
    let names = mount.ls(path.trim_end_matches('/')).await.unwrap();
    let mut modes = Vec::new();
    for name in names {
        modes.push(mount.stat(&format!("{path}{name}")).await.unwrap().mode);
    }
    modes
}

/// Three files in a directory, and a mount that has ended.
pub async fn three() -> World {
    clock::simulate(1);
    let world = World::s3();
    let mount = world.mount();
    mount.mkdir("d").await.unwrap();
    for (name, bits) in [("d/a", 0o600), ("d/b", 0o640), ("d/c", 0o755)] {
        save(&mount, name, bits).await;
    }
    settle().await;
    end(mount).await;
    world
}

#[tokio::test(start_paused = true)]
async fn the_next_mount_lists_attributes_by_one_more_request() {
    let world = three().await;
    assert_eq!(indexes(&world).await, 1);
    let mount = world.mount();
    assert_eq!(mount.ls("").await.unwrap(), ["d"]);
    mount.cost();
    assert_eq!(modes(&mount, "d/").await, [0o600, 0o640, 0o755]);
    assert_eq!(mount.cost(), "get 1, list 1");
    let seen = mount.stat("d/a").await.unwrap();
    assert_eq!((seen.uid, seen.gid), (CALLER.uid, CALLER.gid));
    // What is known of them is enough to change or replace them at once.
    mount.setattr("d/a", mode(0o400)).await.unwrap();
    assert_eq!(mount.cost(), "copy 1");
    mount.save("d/b", "other").await.unwrap();
    assert_eq!(mount.cost(), "put 1");
    later().await;
    assert_eq!(modes(&mount, "d/").await, [0o400, 0o640, 0o755]);
}

#[tokio::test(start_paused = true)]
async fn a_record_of_another_version_or_time_is_ignored() {
    let world = three().await;
    // Somebody else changes the mode of one, and the bytes of another.
    let change = AttributeChange {
        mode: Some(0o100_444),
        ..AttributeChange::default()
    };
    let key = Key::from("d/a");
    let set = world.raw().set_attributes(&key, change, None);
    set.await.unwrap();
    world.put("d/b", "other").await;
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.cost();
    assert_eq!(modes(&mount, "d/").await, [0o444, 0o644, 0o755]);
    assert_eq!(mount.cost(), "get 1, head 2, list 1");
    // What was asked for is known, if no other change could have the same time any more.
    for cost in ["get 1, head 2, list 1", "get 1, list 1"] {
        settle().await;
        assert_eq!(modes(&mount, "d/").await, [0o444, 0o644, 0o755]);
        assert_eq!(mount.cost(), cost);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_too_young_is_not_written_and_asked_for() {
    clock::simulate(1);
    let world = World::s3();
    let mount = world.mount();
    save(&mount, "a", 0o600).await;
    settle().await;
    save(&mount, "b", 0o600).await;
    end(mount).await;
    let mount = world.mount();
    assert_eq!(modes(&mount, "").await, [0o600, 0o600]);
    assert_eq!(mount.cost(), "get 1, head 1, list 1");
}

#[tokio::test(start_paused = true)]
async fn a_bucket_without_stored_attributes_costs_nothing_more() {
    clock::simulate(1);
    let world = World::s3();
    for name in ["d/a", "d/b", "e/f"] {
        world.put(name, "text").await;
    }
    let mount = world.mount();
    for path in ["", "d", "e"] {
        mount.ls(path).await.unwrap();
    }
    mount.cat("d/a").await.unwrap();
    later().await;
    mount.ls("d").await.unwrap();
    assert_eq!(mount.cost(), "get 2, list 3");
    tokio::time::sleep(DAY).await;
    end(mount).await;
    assert_eq!(indexes(&world).await, 0);
}

#[tokio::test(start_paused = true)]
async fn the_index_is_written_when_a_directory_is_left_alone() {
    clock::simulate(1);
    let world = World::s3();
    let mount = world.mount();
    for i in 0..20 {
        save(&mount, &format!("f{i}"), 0o600).await;
    }
    assert_eq!(indexes(&world).await, 0);
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(indexes(&world).await, 1);
    mount.cost();
    tokio::time::sleep(DAY).await;
    assert_eq!(mount.cost(), "", "nothing has changed");
}

#[tokio::test(start_paused = true)]
async fn what_two_mounts_know_is_written_together() {
    clock::simulate(1);
    let world = World::s3();
    let (one, two) = (world.mount(), world.mount());
    save(&one, "a", 0o600).await;
    save(&two, "b", 0o640).await;
    settle().await;
    end(one).await;
    end(two).await;
    let mount = world.mount();
    assert_eq!(modes(&mount, "").await, [0o600, 0o640]);
    assert_eq!(mount.cost(), "get 1, list 1");
}

#[tokio::test(start_paused = true)]
async fn a_walk_stays_flat() {
    clock::simulate(1);
    let world = World::s3();
    let mount = world.mount();
    for i in 0..5 {
        mount.mkdir(&format!("d{i}")).await.unwrap();
        save(&mount, &format!("d{i}/f"), 0o600).await;
    }
    settle().await;
    end(mount).await;
    let mount = world.mount();
    mount.ls("").await.unwrap();
    // The directories' markers, which their listing above does not tell.
    assert_eq!(mount.cost(), "head 5, list 1");
    for i in 0..5 {
        assert_eq!(modes(&mount, &format!("d{i}/")).await, [0o600]);
    }
    assert_eq!(mount.cost(), "get 5, list 1");
}

#[tokio::test(start_paused = true)]
async fn links_are_links_in_the_next_mount_and_however_they_are_found() {
    clock::simulate(1);
    let world = World::s3();
    let mount = world.mount();
    mount
        .fs
        .symlink(1, b"link", b"target", CALLER)
        .await
        .unwrap();
    settle().await;
    end(mount).await;
    let mount = world.mount();
    mount.ls("").await.unwrap();
    assert_eq!(mount.stat("link").await.unwrap().kind, Kind::Symlink);
    // Without an index a listing shows a file, until it is opened.
    for key in world.keys().await {
        if key.starts_with(".bucketfs/") {
            world.delete(&key).await;
        }
    }
    let mount = world.mount();
    mount.ls("").await.unwrap();
    assert_eq!(mount.stat("link").await.unwrap().kind, Kind::File);
    let opened = mount.open("link", READ).await;
    assert_eq!(
        opened,
        Err(libc::ELOOP),
        "the kernel opens what a link leads to"
    );
    assert_eq!(mount.stat("link").await.unwrap().kind, Kind::Symlink);
}

#[tokio::test(start_paused = true)]
async fn all_or_none_can_be_asked_for() {
    let world = three().await;
    for key in world.keys().await {
        if key.starts_with(".bucketfs/") {
            world.delete(&key).await;
        }
    }
    let mount = world.mount_with(|options| options.stat_attrs = StatAttrs::Full, false);
    let seen = modes(&mount, "d/").await;
    assert_eq!(seen, [0o600, 0o640, 0o755]);
    let mount = world.mount_with(|options| options.stat_attrs = StatAttrs::None, false);
    let seen = modes(&mount, "d/").await;
    assert_eq!(seen, [0o644, 0o644, 0o644]);
    mount.cost();
    assert_eq!(mount.cat("d/c").await.unwrap(), "text");
    assert_eq!(mount.stat("d/c").await.unwrap().mode, 0o644);
    let refused = mount.setattr("d/c", mode(0o600)).await;
    assert_eq!(refused, Err(libc::EOPNOTSUPP));
    // A rewrite leaves what it does not show.
    mount.save("d/c", "more").await.unwrap();
    let kept = world.raw().head(&Key::from("d/c")).await.unwrap();
    assert_eq!(kept.told_attributes().mode, Some(0o100_755));
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_reply_left_is_asked_for() {
    clock::simulate(1);
    let world = World::s3();
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.fault.set("put:lost-reply@1").unwrap();
    let made = mount.fs.mkdir(1, b"d", 0o700, CALLER).await;
    assert!(made.is_err());
    assert_eq!(mount.stat("d").await.unwrap().mode, 0o700);
}

#[tokio::test(start_paused = true)]
async fn an_index_that_cannot_be_read_or_written_now_is_later() {
    clock::simulate(1);
    let world = World::s3();
    let mount = world.mount();
    save(&mount, "a", 0o600).await;
    settle().await;
    mount.fault.set("put:error=unavailable@1").unwrap();
    end(mount).await;
    assert_eq!(indexes(&world).await, 1);
    let mount = world.mount();
    mount.fault.set("get:error=unavailable@1").unwrap();
    assert_eq!(modes(&mount, "").await, [0o600]);
    assert_eq!(mount.cost(), "get 2, list 1");
}

#[tokio::test(start_paused = true)]
async fn an_index_for_which_there_was_no_room_is_written_later() {
    clock::simulate(1);
    let world = World::s3();
    let mount = world.mount();
    save(&mount, "a", 0o600).await;
    settle().await;
    mount.fault.set("put:error=no-space@1").unwrap();
    end(mount).await;
    assert_eq!(indexes(&world).await, 1);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_sets_right_after_a_commit_is_seen_by_who_committed() {
    clock::simulate(1);
    let world = World::s3();
    let (one, two) = (world.mount(), world.mount());
    // In each part of a second.
    for tenth in 0..10 {
        let name = format!("f{tenth}");
        save(&one, &name, 0o600).await;
        assert_eq!(two.stat(&name).await.unwrap().mode, 0o600);
        two.setattr(&name, mode(0o640)).await.unwrap();
        two.fs.drain(DAY).await;
        settle().await;
        assert_eq!(one.stat(&name).await.unwrap().mode, 0o640, "{name}");
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    end(one).await;
    end(two).await;
    let mount = world.mount();
    assert_eq!(modes(&mount, "").await, [0o640; 10]);
}

/// What the store has of an object's mode and owner.
async fn stored(world: &World, key: &str) -> (u32, u32) {
    let info = world.raw().head(&Key::from(key)).await.unwrap();
    let attributes = info.told_attributes();
    (attributes.mode.unwrap() & 0o7777, attributes.uid.unwrap())
}

/// An etag that is a digest does not tell that attributes have changed, and a copy of an object onto
/// itself takes all of them.
#[tokio::test(start_paused = true)]
async fn a_change_of_one_attribute_undoes_no_other_that_somebody_else_has_made() {
    clock::simulate(1);
    let owner = |uid| SetAttr {
        uid: Some(uid),
        ..SetAttr::default()
    };
    for age in [0, 400, 5_000] {
        for gap in [2_100, 3_200, 4_000, 10_000] {
            let world = World::s3();
            let (one, two) = (world.mount(), world.mount());
            save(&one, "f", 0o600).await;
            one.mkdir("d").await.unwrap();
            tokio::time::sleep(Duration::from_millis(age)).await;
            for path in ["f", "d"] {
                for mount in [&one, &two] {
                    mount.stat(path).await.unwrap();
                }
                // Both have changed it before.
                two.setattr(path, mode(0o640)).await.unwrap();
            }
            two.fs.drain(DAY).await;
            settle().await;
            for path in ["f", "d"] {
                let case = format!("{path}, {age} ms, {gap} ms");
                one.setattr(path, owner(55)).await.unwrap();
                one.fs.drain(DAY).await;
                tokio::time::sleep(Duration::from_millis(gap)).await;
                two.setattr(path, mode(0o711)).await.unwrap();
                two.fs.drain(DAY).await;
                let key = if path == "d" { "d/" } else { path };
                assert_eq!(stored(&world, key).await, (0o711, 55), "{case}");
                let seen = two.stat(path).await.unwrap();
                assert_eq!((seen.mode, seen.uid), (0o711, 55), "{case}, who changed it");
                settle().await;
                if path == "f" {
                    let seen = one.stat(path).await.unwrap();
                    assert_eq!((seen.mode, seen.uid), (0o711, 55), "{case}, the other");
                }
                one.setattr(path, owner(66)).await.unwrap();
                one.fs.drain(DAY).await;
                assert_eq!(stored(&world, key).await, (0o711, 66), "{case}");
            }
        }
    }
}

/// `fchmod` is about an inode that nobody has looked up for long.
#[tokio::test(start_paused = true)]
async fn attributes_that_were_told_long_ago_are_asked_for_before_some_are_changed() {
    clock::simulate(1);
    let world = World::s3();
    let (one, two) = (world.mount(), world.mount());
    save(&one, "f", 0o600).await;
    one.mkdir("d").await.unwrap();
    settle().await;
    two.open("f", READ).await.unwrap();
    for (path, key) in [("f", "f"), ("d", "d/")] {
        two.setattr(path, mode(0o640)).await.unwrap();
        two.fs.drain(DAY).await;
        settle().await;
        let owner = SetAttr {
            uid: Some(55),
            ..SetAttr::default()
        };
        let ino = two.ino(path).await.unwrap();
        one.setattr(path, owner).await.unwrap();
        one.fs.drain(DAY).await;
        settle().await;
        two.fs.setattr(ino, mode(0o711), CALLER.uid).await.unwrap();
        two.fs.drain(DAY).await;
        assert_eq!(stored(&world, key).await, (0o711, 55), "{path}");
    }
}

/// A listing tells that there was a change, and not which one.
#[tokio::test(start_paused = true)]
async fn what_others_change_of_a_known_file_is_seen_within_the_ttl() {
    clock::simulate(1);
    for age in [0, 400, 5_000] {
        let world = World::s3();
        let (one, two) = (world.mount(), world.mount());
        for name in ["f", "g", "h"] {
            save(&one, name, 0o600).await;
        }
        tokio::time::sleep(Duration::from_millis(age)).await;
        for name in ["f", "g", "h"] {
            two.cat(name).await.unwrap();
        }
        assert_eq!(modes(&two, "").await, [0o600; 3], "{age}");
        tokio::time::sleep(Duration::from_millis(200)).await;
        one.setattr("f", mode(0o640)).await.unwrap();
        one.fs.drain(DAY).await;
        later().await;
        assert_eq!(modes(&two, "").await, [0o640, 0o600, 0o600], "{age}");
        assert_eq!(two.stat("f").await.unwrap().mode, 0o640, "{age}");
    }
}

/// No listing of the directory above tells it.
#[tokio::test(start_paused = true)]
async fn what_others_change_of_a_known_directory_is_seen_within_a_minute_more() {
    clock::simulate(1);
    let world = World::s3();
    let (one, two) = (world.mount(), world.mount());
    for name in ["d", "e"] {
        one.mkdir(name).await.unwrap();
        save(&one, &format!("{name}/f"), 0o600).await;
        two.setattr(name, mode(0o711)).await.unwrap();
    }
    settle().await;
    assert_eq!(modes(&two, "").await, [0o711; 2]);
    one.setattr("d", mode(0o750)).await.unwrap();
    let mut waited = Duration::ZERO;
    while modes(&two, "").await != [0o750, 0o711] {
        waited += Duration::from_secs(1);
        assert!(waited <= Duration::from_secs(61));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// A copy on the server has what the store has, and not what is known here of the version before.
#[tokio::test(start_paused = true)]
async fn what_others_changed_is_not_undone_in_the_eyes_of_who_moves_the_directory() {
    clock::simulate(1);
    let world = World::s3();
    let one = world.mount();
    one.mkdir("d").await.unwrap();
    one.setattr("d", mode(0o750)).await.unwrap();
    save(&one, "d/a", 0o640).await;
    one.mkdir("d/sub").await.unwrap();
    one.setattr("d/sub", mode(0o750)).await.unwrap();
    one.fs.drain(DAY).await;
    settle().await;
    for (key, mode) in [("d/", 0o40_700), ("d/a", 0o100_600), ("d/sub/", 0o40_700)] {
        let change = AttributeChange {
            mode: Some(mode),
            ..AttributeChange::default()
        };
        let key = Key::from(key);
        let set = world.raw().set_attributes(&key, change, None);
        set.await.unwrap();
    }
    settle().await;
    one.rename("d", "e").await.unwrap();
    later().await;
    assert_eq!(modes(&one, "e/").await, [0o600, 0o700]);
    assert_eq!(modes(&one, "").await, [0o700]);
    settle().await;
    end(one).await;
    assert_eq!(modes(&world.mount(), "e/").await, [0o600, 0o700]);
}

#[tokio::test(start_paused = true)]
async fn a_large_directory_has_several_index_objects() {
    clock::simulate(1);
    let world = World::s3();
    let mount = world.mount();
    mount.mkdir("d").await.unwrap();
    for i in 0..8900 {
        save(&mount, &format!("d/f{i:04}"), 0o600).await;
    }
    settle().await;
    end(mount).await;
    assert_eq!(indexes(&world).await, 2);
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.cost();
    assert!(modes(&mount, "d/").await.iter().all(|mode| *mode == 0o600));
    assert_eq!(mount.cost(), "get 2, list 9");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_with_a_garbled_index() {
    let world = three().await;
    for key in world.keys().await {
        if key.starts_with(".bucketfs/") {
            world
                .put(&key, "{\"form\": \"bucketfs index 1\", \"direc")
                .await;
        }
    }
    let mount = world.mount();
    assert_eq!(modes(&mount, "d/").await, [0o600, 0o640, 0o755]);
    later().await;
    end(mount).await;
    settle().await;
    let page = world
        .raw()
        .list(ListRequest::flat(&Key::from(".bucketfs/")));
    assert_eq!(page.await.unwrap().entries.len(), 1);
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.cost();
    assert_eq!(modes(&mount, "d/").await, [0o600, 0o640, 0o755]);
    assert_eq!(mount.cost(), "get 1, list 1");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lists_attributes_has_no_index() {
    clock::simulate(1);
    let world = World::over(Plain::memory());
    assert_eq!(
        world.store.capabilities.attributes,
        AttributeSupport::Listed
    );
    let mount = world.mount();
    save(&mount, "a", 0o600).await;
    settle().await;
    end(mount).await;
    assert_eq!(world.keys().await, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_mount_that_began_without_any_index_sees_the_one_that_another_writes() {
    clock::simulate(1);
    let world = World::s3();
    let (writer, reader) = (world.mount(), world.mount());
    assert!(reader.ls("").await.unwrap().is_empty());
    writer.mkdir("d").await.unwrap();
    save(&writer, "d/tool", 0o750).await;
    writer
        .fs
        .symlink(writer.ino("d").await.unwrap(), b"link", b"tool", CALLER)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(90)).await;
    reader.ls("d").await.unwrap();
    later().await;
    assert_eq!(reader.ls("d").await.unwrap(), ["link", "tool"]);
    assert_eq!(reader.stat("d/link").await.unwrap().kind, Kind::Symlink);
    assert_eq!(reader.stat("d/tool").await.unwrap().mode, 0o750);
}
