//! Several who rename the same file or directory: it is a way to claim it.

use crate::store::Plain;
use crate::world::*;
use std::time::Duration;

/// A store whose deletes tell when it was somebody else who deleted an object.
fn knowing() -> World {
    let mut store = Plain::s3();
    store.capabilities.knows_own_deletes = true;
    World::over(store)
}

#[tokio::test(start_paused = true)]
async fn of_two_mounts_that_rename_a_file_one_wins() {
    let world = knowing();
    world.put("f", "x").await;
    let (a, b) = (world.mount(), world.mount());
    for mount in [&a, &b] {
        mount.ls("").await.unwrap();
        mount.fault.set("delete:delay=20ms").unwrap();
    }
    let both = tokio::join!(a.rename("f", "a"), b.rename("f", "b"));
    let one = match both {
        (Ok(()), Err(libc::ENOENT)) => "a",
        (Err(libc::ENOENT), Ok(())) => "b",
        other => panic!("{other:?}"),
    };
    assert_eq!(world.keys().await, [one]);
    assert_eq!(world.get(one).await.as_deref(), Some("x"));
}

#[tokio::test(start_paused = true)]
async fn of_two_mounts_that_rename_a_directory_each_file_goes_to_one() {
    for count in [1, 40] {
        let world = knowing();
        for i in 0..count {
            world.put(&format!("d/{i:02}"), "x").await;
        }
        let (a, b) = (world.mount(), world.mount());
        for mount in [&a, &b] {
            mount.ls("d").await.unwrap();
            mount
                .fault
                .set("delete_many:delay=20ms,delete:delay=20ms")
                .unwrap();
        }
        let _ = tokio::join!(a.rename("d", "a"), b.rename("d", "b"));
        let keys = world.keys().await;
        let files: Vec<&String> = keys.iter().filter(|key| !key.ends_with('/')).collect();
        assert_eq!(files.len(), count, "{keys:?}");
        assert!(files.iter().all(|key| !key.starts_with("d/")), "{keys:?}");
    }
}

/// What may have been deleted by this mount itself is not taken back: it would be the only copy.
#[tokio::test(start_paused = true)]
async fn a_rename_whose_delete_is_answered_late_is_not_taken_back() {
    let world = knowing();
    for name in ["f", "d/1", "d/2"] {
        world.put(name, "x").await;
    }
    let mount = world.retrying();
    mount.ls("").await.unwrap();
    mount.ls("d").await.unwrap();
    mount
        .fault
        .set("delete:lost-reply@1,delete_many:lost-reply@1")
        .unwrap();
    mount.rename("f", "g").await.unwrap();
    mount.rename("d", "m").await.unwrap();
    assert_eq!(world.keys().await, ["g", "m/1", "m/2"]);
}

/// What a rename finds at its new name is a copy of the same version: that of another, which may
/// have won.
#[tokio::test(start_paused = true)]
async fn of_two_mounts_that_rename_to_the_same_name_none_takes_the_files_away() {
    for (count, slow) in [1, 2, 40]
        .into_iter()
        .flat_map(|count| [(count, 0), (count, 1)])
    {
        let world = knowing();
        world.put("f", "x").await;
        for i in 0..count {
            world.put(&format!("d/{i:02}"), "x").await;
        }
        let mounts = [world.mount(), world.mount()];
        for mount in &mounts {
            mount.ls("").await.unwrap();
            mount.ls("d").await.unwrap();
            let faults = "copy:delay=10ms,delete_many:delay=20ms,delete:delay=20ms";
            mount.fault.set(faults).unwrap();
        }
        let slower = "copy:delay=15ms,delete_many:delay=40ms,delete:delay=40ms";
        mounts[slow].fault.set(slower).unwrap();
        let [a, b] = &mounts;
        let _ = tokio::join!(a.rename("d", "m"), b.rename("d", "m"));
        let _ = tokio::join!(a.rename("f", "g"), b.rename("f", "g"));
        let keys = world.keys().await;
        let there = |name: &str| keys.iter().any(|key| key == name);
        assert!(there("g") && !there("f"), "{count} {slow}: {keys:?}");
        for i in 0..count {
            let kept = [format!("m/{i:02}"), format!("d/{i:02}")];
            assert!(
                kept.iter().any(|key| there(key)),
                "{count} {slow}: {keys:?}"
            );
        }
    }
}

/// What another mount has taken over is its: the copies, too.
#[tokio::test(start_paused = true)]
async fn a_rename_that_was_taken_over_takes_nothing_back() {
    let world = knowing();
    for i in 0..40 {
        world.put(&format!("d/{i:02}"), "x").await;
    }
    let (slow, other) = (world.mount(), world.mount());
    slow.ls("d").await.unwrap();
    slow.fault
        .set("delete_many:delay=900s,put:delay=900s@2+:key~renames/")
        .unwrap();
    let completes = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        other.fs.resume_renames().await;
    };
    let _ = tokio::join!(slow.rename("d", "m"), completes);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let keys = world.keys().await;
    let files = keys
        .iter()
        .filter(|key| key.starts_with("m/") && !key.ends_with('/'));
    assert_eq!(files.count(), 40, "{keys:?}");
}
