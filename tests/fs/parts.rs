//! The objects that an index consists of: which are written, read and removed.

use crate::index::{DAY, end, indexes, modes, save, settle, three};
use crate::world::{Mount, World, mode};
use bucketfs::clock;

/// The keys of the index objects.
async fn parts(world: &World) -> Vec<String> {
    let keys = world.keys().await.into_iter();
    keys.filter(|key| key.starts_with(".bucketfs/index/"))
        .collect()
}

async fn change(mount: &Mount, path: &str, bits: u32) {
    mount.setattr(path, mode(bits)).await.unwrap();
    mount.fs.drain(DAY).await;
    settle().await;
}

/// So many files that two index objects tell of them.
async fn large() -> World {
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
    world
}

#[tokio::test(start_paused = true)]
async fn only_the_part_of_a_large_index_that_changes_is_written() {
    let world = large().await;
    let mount = world.mount();
    assert_eq!(modes(&mount, "d/").await.len(), 8900);
    mount.cost();
    mount.setattr("d/f0007", mode(0o640)).await.unwrap();
    tokio::time::sleep(DAY).await;
    assert_eq!(mount.cost(), "copy 1, put 1");
}

/// Such as another mount leaves that knew of more files.
#[tokio::test(start_paused = true)]
async fn a_part_that_is_left_over_undoes_nothing_and_is_removed() {
    let world = three().await;
    let part = parts(&world).await.remove(0);
    let old = world.get(&part).await.unwrap();
    let mount = world.mount();
    change(&mount, "d/a", 0o400).await;
    end(mount).await;
    let surplus = part.replace(".0", ".3");
    // Whichever is read first.
    for first in [true, false] {
        let new = world.get(&part).await.unwrap();
        let (zero, three) = if first { (&old, &new) } else { (&new, &old) };
        world.put(&surplus, three).await;
        world.put(&part, zero).await;
        let mount = world.mount();
        mount.ls("").await.unwrap();
        mount.cost();
        assert_eq!(modes(&mount, "d/").await, [0o400, 0o640, 0o755]);
        assert_eq!(mount.cost(), "get 2, list 1");
        change(&mount, "d/c", 0o711).await;
        change(&mount, "d/c", 0o755).await;
        end(mount).await;
        assert_eq!(parts(&world).await, [part.as_str()]);
        let mount = world.mount();
        mount.ls("").await.unwrap();
        mount.cost();
        assert_eq!(modes(&mount, "d/").await, [0o400, 0o640, 0o755]);
        assert_eq!(mount.cost(), "get 1, list 1");
    }
}

/// Another program may put anything there.
#[tokio::test(start_paused = true)]
async fn what_is_too_large_for_an_index_is_none() {
    let world = three().await;
    let part = parts(&world).await.remove(0);
    let mut text = world.get(&part).await.unwrap();
    text.push_str(&"\n".repeat(32 << 20));
    world.put(&part, &text).await;
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.cost();
    assert_eq!(modes(&mount, "d/").await, [0o600, 0o640, 0o755]);
    assert_eq!(mount.cost(), "get 1, head 3, list 1");
}
