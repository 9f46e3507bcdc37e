//! Several who rename the same file or directory: it is a way to claim it.

use crate::store::Plain;
use crate::world::*;

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
