//! Which records of the index are believed whatever this machine's clock says.

use crate::index::{DAY, end, modes, save, settle};
use crate::world::{World, later};
use bucketfs::clock;
use bucketfs::driver::{AttributeChange, Driver};
use bucketfs::key::Key;

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
