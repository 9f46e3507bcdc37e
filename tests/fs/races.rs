//! Races inside one mount.

use crate::world::*;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn a_late_release_does_not_take_the_number_of_a_newer_inode() {
    let world = World::memory();
    let mount = world.mount();
    mount.mkdir("d").await.unwrap();
    let handle = mount.open("d/f", CREATE).await.unwrap();
    mount.unlink("d/f").await.unwrap();
    // The kernel has given up all names before the release gets its turn.
    mount.forget_all();
    later().await;
    let newer = mount.ino("d").await.unwrap();
    mount.fs.release(handle).await.unwrap();
    assert!(mount.fs.getattr(newer).await.is_ok());
    mount.save("d/g", "x").await.unwrap();
}
