//! Which records of the index are believed: whatever this machine's clock says, and after copies.

use crate::index::{DAY, end, modes, save, settle};
use crate::world::{World, later, mode};
use bucketfs::clock;
use bucketfs::driver::{AttributeChange, Driver};
use bucketfs::key::Key;
use std::time::Duration;

/// Sets a mode behind all mounts' backs.
async fn set(world: &World, key: &str, mode: u32) {
    let change = AttributeChange {
        mode: Some(0o100_000 | mode),
        ..AttributeChange::default()
    };
    let key = Key::from(key);
    let set = world.raw().set_attributes(&key, change, None);
    set.await.unwrap();
}

/// Records are young by the clock of the store that tells their times.
#[tokio::test(start_paused = true)]
async fn an_index_is_written_once_although_the_clock_is_slow() {
    clock::simulate(1);
    let mut world = World::s3();
    world.store.ahead = 3600;
    let mount = world.mount();
    save(&mount, "a", 0o600).await;
    save(&mount, "b", 0o640).await;
    mount.cost();
    tokio::time::sleep(DAY).await;
    assert_eq!(mount.cost(), "put 1");
    end(mount).await;
    let mount = world.mount();
    assert_eq!(modes(&mount, "").await, [0o600, 0o640]);
    assert_eq!(mount.cost(), "get 1, list 1");
}

/// What is told in the second of a change may be changed once more in it.
#[tokio::test(start_paused = true)]
async fn a_record_of_a_second_that_goes_on_is_not_believed_although_the_clock_is_fast() {
    clock::simulate(1);
    let mut world = World::s3();
    world.store.ahead = -3600;
    let mount = world.mount();
    save(&mount, "a", 0o600).await;
    mount.stat("a").await.unwrap();
    settle().await;
    set(&world, "a", 0o640).await;
    later().await;
    let since = clock::wall();
    set(&world, "a", 0o644).await;
    mount.forget_all();
    assert_eq!(modes(&mount, "").await, [0o644]);
    set(&world, "a", 0o666).await;
    assert_eq!(clock::seconds(clock::wall()), clock::seconds(since));
    settle().await;
    mount.forget_all();
    assert_eq!(modes(&mount, "").await, [0o666]);
    end(mount).await;
    assert_eq!(modes(&world.mount(), "").await, [0o666]);
}

/// The etag of a digest does not tell the copy's attributes from those that were listed.
#[tokio::test(start_paused = true)]
async fn what_others_change_before_a_copy_of_a_move_is_in_no_record() {
    clock::simulate(1);
    let world = World::s3();
    let mount = world.mount();
    for name in ["d", "e"] {
        mount.mkdir(name).await.unwrap();
    }
    for name in ["d/a", "d/b", "g"] {
        save(&mount, name, 0o644).await;
    }
    set(&world, "g", 0o640).await;
    settle().await;
    mount.ls("").await.unwrap();
    mount.fault.set("copy:delay=4s").unwrap();
    let ((), moved) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            set(&world, "d/a", 0o600).await;
        },
        mount.rename("d", "f")
    );
    moved.unwrap();
    mount.ls("").await.unwrap();
    let ((), moved) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            set(&world, "g", 0o600).await;
        },
        mount.rename("g", "e/g")
    );
    moved.unwrap();
    settle().await;
    mount.forget_all();
    assert_eq!(modes(&mount, "f/").await, [0o600, 0o644]);
    mount.ls("e").await.unwrap();
    settle().await;
    end(mount).await;
    let mount = world.mount();
    assert_eq!(modes(&mount, "f/").await, [0o600, 0o644]);
    assert_eq!(modes(&mount, "e/").await, [0o600]);
}

/// What the store has just listed is known of its copies too.
#[tokio::test(start_paused = true)]
async fn a_moved_directory_is_listed_without_asking_for_its_files() {
    clock::simulate(1);
    let world = World::s3();
    let mount = world.mount();
    mount.mkdir("d").await.unwrap();
    for name in ["d/a", "d/b", "d/c"] {
        save(&mount, name, 0o600).await;
    }
    settle().await;
    end(mount).await;
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.rename("d", "e").await.unwrap();
    later().await;
    mount.forget_all();
    mount.ls("").await.unwrap();
    mount.cost();
    assert_eq!(modes(&mount, "e/").await, [0o600; 3]);
    assert_eq!(mount.cost(), "list 1");
    mount.setattr("e/a", mode(0o400)).await.unwrap();
    settle().await;
    end(mount).await;
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.cost();
    assert_eq!(modes(&mount, "e/").await, [0o400, 0o600, 0o600]);
    assert_eq!(mount.cost(), "get 1, list 1");
}
