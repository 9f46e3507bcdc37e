//! A store that tells its changes: nothing is stale, however long it is believed.

use crate::store::Plain;
use crate::world::*;
use bucketfs::fs::{Lookup, ROOT};
use std::time::Duration;

async fn settle() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

#[tokio::test(start_paused = true)]
async fn changes_of_others_are_seen_at_once_and_the_kernel_is_told() {
    let world = World::watched();
    world.put("d/f", "old").await;
    let mount = world.mount();
    settle().await;
    let (dir, _) = mount.parent("d/f").await.unwrap();
    let entry = mount.look(dir, b"f").await.unwrap();
    assert!(entry.ttl > Duration::from_secs(3600));
    assert!(!mount.exists("d/new").await);
    mount.kernel.told();
    world.put("d/f", "newer").await;
    settle().await;
    let told = mount.kernel.told();
    assert!(told.contains(&Told::Entry(dir, "f".into())), "{told:?}");
    assert!(
        told.contains(&Told::Inode(entry.attr.ino, true)),
        "{told:?}"
    );
    assert_eq!(mount.stat("d/f").await.unwrap().size, 5);
    assert_eq!(mount.cat("d/f").await.unwrap(), "newer");
    world.put("d/new", "x").await;
    settle().await;
    assert!(
        mount
            .kernel
            .told()
            .contains(&Told::Entry(dir, "new".into()))
    );
    assert!(mount.exists("d/new").await);
    world.delete("d/f").await;
    settle().await;
    assert!(!mount.exists("d/f").await);
    assert_eq!(mount.ls("d").await.unwrap(), ["new"]);
}

/// A listing can be quicker than the feed. The kernel, which was told before that there is nothing,
/// has to hear of it all the same.
#[tokio::test(start_paused = true)]
async fn the_kernel_hears_of_a_new_name_that_a_listing_told_before_the_feed() {
    let mut store = Plain::memory();
    (store.capabilities.watch, store.capabilities.remote) = (true, true);
    let world = World::over(store);
    world.put("d/f", "text").await;
    let mount = world.mount();
    settle().await;
    let (dir, _) = mount.parent("d/f").await.unwrap();
    assert!(!mount.exists("d/new").await && !mount.exists("e").await);
    world.delete("d/f").await;
    settle().await;
    mount.kernel.told();
    let late = world.store.feed.lock().await;
    world.put("d/new", "x").await;
    world.put("e/f", "x").await;
    mount.cost();
    for other in ["d/f", "d/other", "f", "other"] {
        assert!(!mount.exists(other).await);
    }
    assert!(mount.cost().contains("list"), "they were listed");
    assert_eq!(mount.kernel.told(), []);
    drop(late);
    settle().await;
    let told = mount.kernel.told();
    for wanted in [
        Told::Entry(dir, "new".into()),
        Told::Entry(ROOT, "e".into()),
    ] {
        assert!(told.contains(&wanted), "{told:?}");
    }
}

/// Nobody can make the kernel forget all names that it knows to be absent.
#[tokio::test(start_paused = true)]
async fn the_kernel_asks_again_for_absent_names_and_the_store_is_not_asked() {
    let world = World::watched();
    let mount = world.mount();
    settle().await;
    mount.ls("").await.unwrap();
    mount.cost();
    match mount.fs.lookup(ROOT, b"new").await.unwrap() {
        Lookup::Absent(ttl) => assert!(ttl <= Duration::from_secs(10), "{ttl:?}"),
        found => panic!("{found:?}"),
    }
    assert_eq!(mount.cost(), "");
}

/// A feed tells nothing of what was made before it began.
#[tokio::test(start_paused = true)]
async fn the_kernel_asks_again_for_names_that_were_absent_before_the_feed_began() {
    let world = World::watched();
    let hour = Duration::from_secs(3600);
    let mount = world.mount_with(|options| options.negative_ttl = hour, false);
    match mount.fs.lookup(ROOT, b"new").await.unwrap() {
        Lookup::Absent(ttl) => assert!(ttl <= Duration::from_secs(10), "{ttl:?}"),
        found => panic!("{found:?}"),
    }
    world.put("new", "x").await;
    settle().await;
    assert!(mount.ino("new").await.is_ok());
}

/// The kernel throws away attributes that are on their way to it when it is told to forget them, and
/// then reads no further than the size that it knows: that of the version before the open.
#[tokio::test(start_paused = true)]
async fn the_attributes_of_an_open_file_are_not_forgotten_on_their_way() {
    let world = World::watched();
    world.put("f", "old").await;
    let mount = world.mount();
    settle().await;
    let (ino, opened) = mount.open_with("f", libc::O_RDONLY).await.unwrap();
    mount.kernel.told();
    let attributes = |told: Vec<Told>| {
        let about = |told: &&Told| matches!(told, Told::Inode(about, _) if *about == ino);
        told.iter().filter(about).count()
    };
    for text in ["newer", "newest of all"] {
        world.put("f", text).await;
        settle().await;
        let told = mount.kernel.told();
        assert!(told.contains(&Told::Entry(ROOT, "f".into())), "{told:?}");
        assert_eq!(attributes(told), 0, "while it is open");
    }
    mount.close(opened.handle).await.unwrap();
    assert_eq!(attributes(mount.kernel.told()), 1, "when it no longer is");
    assert_eq!(mount.stat("f").await.unwrap().size, 13);
}

#[tokio::test(start_paused = true)]
async fn an_open_does_not_use_what_a_lookup_learned_before_a_change_was_told() {
    let world = World::watched();
    world.put("f", "old").await;
    let mount = world.mount();
    settle().await;
    let ino = mount.ino("f").await.unwrap();
    world.put("f", "newer").await;
    settle().await;
    let opened = mount.fs.open(ino, libc::O_RDONLY, CALLER).await.unwrap();
    assert_eq!(mount.read(opened.handle, 0, 9).await.unwrap(), "newer");
}

/// What others did there meanwhile may have been told before these were known to be there.
#[tokio::test(start_paused = true)]
async fn the_names_of_a_renamed_directory_are_not_believed_on() {
    let world = World::watched();
    world.put("d/f", "text").await;
    let mount = world.mount();
    settle().await;
    let ino = mount.ino("d/f").await.unwrap();
    mount.kernel.told();
    mount.rename("d", "m").await.unwrap();
    let told = mount.kernel.told();
    assert!(told.contains(&Told::Inode(ino, true)), "{told:?}");
    assert_eq!(mount.ino("m/f").await.unwrap(), ino);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_changes_is_asked_for_once() {
    let world = World::watched();
    world.put("d/f", "x").await;
    let mount = world.mount();
    settle().await;
    mount.ls("d").await.unwrap();
    mount.cat("d/f").await.unwrap();
    mount.cost();
    tokio::time::sleep(Duration::from_secs(600)).await;
    mount.ls("d").await.unwrap();
    mount.stat("d/f").await.unwrap();
    assert!(!mount.exists("d/g").await);
    assert_eq!(mount.cost(), "");
}

#[tokio::test(start_paused = true)]
async fn changes_of_keys_that_are_no_paths_are_seen() {
    let world = World::watched();
    let long = "l".repeat(300);
    let keys = ["a//b", "/lead", "beside", "beside/x", "dir/", &long, "%~e"];
    for key in keys {
        world.put(key, "old").await;
    }
    let mount = world.mount();
    settle().await;
    let chunk = mount
        .ls("")
        .await
        .unwrap()
        .into_iter()
        .find(|name| name.len() > 100)
        .unwrap();
    let rest = mount.ls(&chunk).await.unwrap().remove(0);
    let rest = format!("{chunk}/{rest}");
    let paths = [
        "a/%~e/b",
        "%~e/lead",
        "beside%~f",
        "beside/x",
        "dir/%~e",
        &rest,
        "%~%e",
    ];
    for (key, path) in keys.iter().zip(paths) {
        assert_eq!(mount.stat(path).await.unwrap().size, 3, "{path}");
        world.put(key, "changed").await;
        settle().await;
        assert_eq!(mount.stat(path).await.unwrap().size, 7, "{path}");
        world.delete(key).await;
        settle().await;
        assert!(!mount.exists(path).await, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_on_its_way_when_a_change_is_told_is_not_believed() {
    let world = World::watched();
    world.put("f", "old").await;
    let mount = world.mount();
    settle().await;
    let late = mount.late.hold();
    let change = async {
        settle().await;
        world.put("f", "newer").await;
        settle().await;
        drop(late);
    };
    let (entry, ()) = tokio::join!(mount.look(ROOT, b"f"), change);
    assert_eq!(entry.unwrap().attr.size, 5);
    assert_eq!(mount.stat("f").await.unwrap().size, 5);
}

#[tokio::test(start_paused = true)]
async fn an_absence_on_its_way_when_a_creation_is_told_is_not_believed() {
    let world = World::watched();
    let mount = world.mount();
    settle().await;
    let late = mount.late.hold();
    let change = async {
        settle().await;
        world.put("f", "new").await;
        settle().await;
        drop(late);
    };
    let (_, ()) = tokio::join!(mount.look(ROOT, b"f"), change);
    assert!(mount.exists("f").await);
    assert_eq!(mount.ls("").await.unwrap(), ["f"]);
}

#[tokio::test(start_paused = true)]
async fn an_own_removal_does_not_make_the_directory_unknown() {
    let world = World::watched();
    for i in 0..10 {
        world.put(&format!("d/{i}"), "x").await;
    }
    let mount = world.mount();
    settle().await;
    mount.ls("d").await.unwrap();
    mount.cost();
    for i in 0..9 {
        mount.unlink(&format!("d/{i}")).await.unwrap();
        settle().await;
    }
    assert_eq!(mount.ls("d").await.unwrap(), ["9"]);
    assert_eq!(mount.cost(), "delete 9");
}

#[tokio::test(start_paused = true)]
async fn own_commits_cost_no_more_under_a_feed() {
    let world = World::watched();
    let mount = world.mount();
    settle().await;
    mount.ls("").await.unwrap();
    mount.cost();
    for i in 0..5 {
        mount.save(&format!("{i}"), "x").await.unwrap();
        settle().await;
    }
    mount.ls("").await.unwrap();
    mount.stat("3").await.unwrap();
    assert_eq!(mount.cost(), "put 5");
}

#[tokio::test(start_paused = true)]
async fn a_new_directory_is_seen_by_its_first_key() {
    let world = World::watched();
    let mount = world.mount();
    settle().await;
    assert!(!mount.exists("d").await);
    assert!(mount.ls("").await.unwrap().is_empty());
    world.put("d/e/f", "x").await;
    settle().await;
    assert_eq!(mount.ls("").await.unwrap(), ["d"]);
    assert_eq!(mount.cat("d/e/f").await.unwrap(), "x");
    world.delete("d/e/f").await;
    settle().await;
    assert!(!mount.exists("d").await);
    assert!(mount.ls("").await.unwrap().is_empty());
}

/// Changes something here while the answers to its deletes are held back, and another program
/// writes a key: the feed tells of that before they come.
async fn overtaken(
    world: &World,
    mount: &Mount,
    own: impl Future<Output = Outcome<()>>,
    key: &str,
) {
    let late = mount.late.hold_deletes();
    let theirs = async {
        settle().await;
        world.put(key, "theirs").await;
        settle().await;
        drop(late);
    };
    let (done, ()) = tokio::join!(own, theirs);
    done.unwrap();
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_told_before_the_answer_to_an_own_removal_is_not_forgotten() {
    let world = World::watched();
    world.put("f", "old").await;
    world.put("d/", "").await;
    let mount = world.mount();
    settle().await;
    assert_eq!(mount.ls("").await.unwrap(), ["d", "f"]);
    overtaken(&world, &mount, mount.unlink("f"), "f").await;
    assert_eq!(mount.cat("f").await.unwrap(), "theirs");
    overtaken(&world, &mount, mount.rmdir("d"), "d/new").await;
    assert_eq!(mount.cat("d/new").await.unwrap(), "theirs");
}

#[tokio::test(start_paused = true)]
async fn a_file_made_elsewhere_while_its_directory_is_renamed_is_seen() {
    let world = World::watched();
    world.put("d/", "").await;
    world.put("d/f", "x").await;
    let mount = world.mount();
    settle().await;
    assert_eq!(mount.ls("d").await.unwrap(), ["f"]);
    overtaken(&world, &mount, mount.rename("d", "e"), "d/new").await;
    assert_eq!(mount.ls("e").await.unwrap(), ["f"]);
    assert_eq!(mount.ls("d").await.unwrap(), ["new"]);
    assert_eq!(mount.cat("d/new").await.unwrap(), "theirs");
}

/// What the kernel is told while nobody knows better is not to be believed for as long as a feed
/// would make up for it: it has been told already.
#[tokio::test(start_paused = true)]
async fn an_answer_that_was_told_to_be_old_before_it_is_given_is_asked_for_again() {
    let world = World::watched();
    world.put("d/", "").await;
    world.put("d/x", "x").await;
    let mount = world.mount();
    settle().await;
    assert_eq!(mount.ls("d").await.unwrap(), ["x"]);
    let late = mount.late.hold_deletes();
    let theirs = async {
        settle().await;
        world.put("d/", "").await;
        settle().await;
        // The directory is busy with the removal.
        let entry = mount.look(ROOT, b"d").await.unwrap();
        assert_eq!(entry.ttl, Duration::ZERO);
        drop(late);
    };
    let (removed, ()) = tokio::join!(mount.unlink("d/x"), theirs);
    removed.unwrap();
    settle().await;
    let entry = mount.look(ROOT, b"d").await.unwrap();
    assert!(entry.ttl > Duration::from_secs(3600));
}

/// The kernel asks for the root's attributes with each path that leads through it, if it is not told
/// to believe them.
#[tokio::test(start_paused = true)]
async fn the_root_is_believed_when_a_feed_has_begun() {
    let world = World::watched();
    world.put("d/f", "x").await;
    let mount = world.mount();
    settle().await;
    for path in ["", "d", "d/f"] {
        let ino = mount.ino(path).await.unwrap();
        let entry = mount.fs.getattr(ino).await.unwrap();
        assert!(entry.ttl > Duration::from_secs(3600), "{path:?}");
    }
}

/// What was never in the store is removed here: that tells nothing of what others have made there.
#[tokio::test(start_paused = true)]
async fn a_name_whose_new_file_was_removed_before_it_was_sent_is_asked_for() {
    let world = World::watched();
    let mount = world.mount();
    mount.ls("").await.unwrap();
    let handle = mount.open("f", CREATE).await.unwrap();
    mount.write(handle, 0, "mine").unwrap();
    world.put("f", "theirs").await;
    half_a_second().await;
    mount.unlink("f").await.unwrap();
    mount.close(handle).await.unwrap();
    assert_eq!(mount.cat("f").await.unwrap(), "theirs");
}
