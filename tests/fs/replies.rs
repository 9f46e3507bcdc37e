//! Answers to commits that are not what the store made of them.

use crate::world::*;
use bucketfs::driver::{Driver, PutOptions};
use bucketfs::key::Key;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Proxies do that where an answer is late: what was refused the second time was done the first.
#[tokio::test(start_paused = true)]
async fn a_put_that_was_sent_twice_on_its_way_is_no_lost_race() {
    for world in [World::memory(), World::s3()] {
        let mount = world.mount();
        let resends = || world.store.resends.store(true, Ordering::Relaxed);
        resends();
        mount.put("f", CREATE, "one\n").await.unwrap();
        resends();
        mount.append("f", "two\n").await.unwrap();
        assert_eq!(world.get("f").await.unwrap(), "one\ntwo\n");
        resends();
        mount.save("f", "other").await.unwrap();
        assert_eq!(world.get("f").await.unwrap(), "other");
        let handle = mount.open("f", WRITE).await.unwrap();
        mount.write(handle, 0, "O").unwrap();
        resends();
        mount.flush(handle).await.unwrap();
        mount.write(handle, 5, "!").unwrap();
        mount.close(handle).await.unwrap();
        assert_eq!(world.get("f").await.unwrap(), "Other!");
        resends();
        mount.mkdir("d").await.unwrap();
        assert!(!world.store.resends.load(Ordering::Relaxed));
        assert_eq!(world.keys().await, ["d/", "f"]);
        // What somebody else made is none of ours.
        world.put("e/", "").await;
        assert_eq!(mount.mkdir("e").await, Err(libc::EEXIST));
    }
}

/// A tool that stores again what it found beside the bytes keeps the commit id too.
#[tokio::test(start_paused = true)]
async fn other_bytes_under_an_own_commit_id_are_not_taken_for_own_ones() {
    for retry in [false, true] {
        let world = World::memory();
        world.put("f", "base").await;
        let mount = world.mount_with(|_| {}, retry);
        let handle = mount.open("f", WRITE).await.unwrap();
        mount.write(handle, 0, "mine").unwrap();
        mount.fault.set("put:lost-reply@1,put:delay=5s@2+").unwrap();
        let flush = async {
            if !retry {
                assert_eq!(mount.flush(handle).await, Err(libc::EIO));
            }
            mount.flush(handle).await
        };
        let edit = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let key = Key::from("f");
            let found = world.raw().head(&key).await.unwrap();
            let options = PutOptions {
                commits: found.commits,
                ..PutOptions::default()
            };
            world
                .raw()
                .put(&key, "mine and theirs".into(), options)
                .await
        };
        let (flushed, edited) = tokio::join!(flush, edit);
        edited.unwrap();
        assert_eq!(flushed, Ok(()), "retry {retry}");
        // What is written to the version before has lost.
        mount.write(handle, 0, "M").unwrap();
        assert_eq!(
            mount.close(handle).await,
            Err(libc::ESTALE),
            "retry {retry}"
        );
        assert_eq!(world.get("f").await.unwrap(), "mine and theirs");
        assert_eq!(world.conflicts("f").await, ["Mine"]);
    }
}
