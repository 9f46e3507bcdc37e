//! Names that stay on this machine.

use crate::store::Plain;
use crate::world::*;
use bucketfs::driver::Strength;
use bucketfs::fs::SetAttr;

fn stores() -> Vec<World> {
    vec![
        World::memory(),
        World::s3(),
        World::over(Plain::s3().copying(Strength::None)),
        World::over(Plain::bare()),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_local_name_is_seen_by_its_mount_alone() {
    for world in stores() {
        world.put("d/f", "text").await;
        let (a, b) = (world.mount_local("*.swp"), world.mount());
        a.save("d/.f.swp", "swap").await.unwrap();
        a.append("d/.f.swp", " and more").await.unwrap();
        assert_eq!(a.cat("d/.f.swp").await.unwrap(), "swap and more");
        assert_eq!(a.ls("d").await.unwrap(), [".f.swp", "f"]);
        a.rename("d/.f.swp", "d/.g.swp").await.unwrap();
        assert_eq!(a.ls("d").await.unwrap(), [".g.swp", "f"]);
        later().await;
        assert_eq!(b.ls("d").await.unwrap(), ["f"]);
        assert!(!b.exists("d/.g.swp").await);
        assert_eq!(world.keys().await, ["d/f"]);
        // The other mount may have a file of that name, which is not this one.
        b.save("d/.g.swp", "theirs").await.unwrap();
        later().await;
        assert_eq!(a.cat("d/.g.swp").await.unwrap(), "swap and more");
        a.unlink("d/.g.swp").await.unwrap();
        later().await;
        assert_eq!(a.ls("d").await.unwrap(), ["f"]);
        assert_eq!(world.get("d/.g.swp").await.unwrap(), "theirs");
        assert!(a.fs.status().conflicts.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_local_file_sends_nothing_to_the_store() {
    let world = World::s3();
    world.put("f", "text").await;
    let mount = world.mount_local("*.swp");
    mount.ls("").await.unwrap();
    mount.cost();
    for i in 0..3 {
        let text = format!("swap {i}");
        mount.save(".f.swp", &text).await.unwrap();
        assert_eq!(mount.cat(".f.swp").await.unwrap(), text);
    }
    mount.unlink(".f.swp").await.unwrap();
    assert_eq!(mount.cost(), "");
}

#[tokio::test(start_paused = true)]
async fn saving_by_rename_from_a_local_name_uploads() {
    for world in stores() {
        world.put("f", "seen").await;
        let mount = world.mount_local("*.tmp");
        mount.stat("f").await.unwrap();
        mount.save("f.tmp", "mine").await.unwrap();
        mount.rename("f.tmp", "f").await.unwrap();
        assert_eq!(world.get("f").await.unwrap(), "mine");
        assert_eq!(mount.cat("f").await.unwrap(), "mine");
        assert_eq!(mount.ls("").await.unwrap(), ["f"]);
        assert_eq!(world.keys().await, ["f"]);
        // Under the usual conditions: what somebody else has put there meanwhile is kept.
        mount.save("f.tmp", "mine again").await.unwrap();
        world.put("f", "theirs").await;
        mount.rename("f.tmp", "f").await.unwrap();
        assert_eq!(world.get("f").await.unwrap(), "mine again");
        assert_eq!(world.conflicts("f").await, ["theirs"]);
        assert!(!mount.exists("f.tmp").await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_local_file_that_is_renamed_while_it_is_written_is_sent_at_close() {
    for world in stores() {
        let mount = world.mount_local("*.part");
        let open = mount.open("f.part", CREATE).await.unwrap();
        mount.write(open, 0, "first").unwrap();
        mount.rename("f.part", "f").await.unwrap();
        mount.write(open, 5, ", second").unwrap();
        mount.close(open).await.unwrap();
        assert_eq!(world.get("f").await.unwrap(), "first, second");
        // The same with bytes that have been kept here before.
        let open = mount.open("g.part", CREATE).await.unwrap();
        mount.write(open, 0, "first").unwrap();
        mount.flush(open).await.unwrap();
        mount.write(open, 5, ", second").unwrap();
        mount.rename("g.part", "g").await.unwrap();
        mount.write(open, 13, ", third").unwrap();
        mount.close(open).await.unwrap();
        assert_eq!(world.get("g").await.unwrap(), "first, second, third");
        assert_eq!(mount.ls("").await.unwrap(), ["f", "g"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_rename_to_a_local_name_takes_the_file_out_of_the_store() {
    for world in stores() {
        world.put("f", "text").await;
        let mount = world.mount_local("*~");
        mount.rename("f", "f~").await.unwrap();
        assert!(world.keys().await.is_empty());
        assert_eq!(mount.cat("f~").await.unwrap(), "text");
        mount.save("f", "newer").await.unwrap();
        mount.rename("f", "f~").await.unwrap();
        assert_eq!(mount.cat("f~").await.unwrap(), "newer");
        assert_eq!(mount.ls("").await.unwrap(), ["f~"]);
        assert!(world.keys().await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn local_names_go_with_their_directory() {
    for world in stores() {
        let mount = world.mount_local("*.swp");
        mount.mkdir("d").await.unwrap();
        mount.save("d/f", "text").await.unwrap();
        mount.save("d/.f.swp", "swap").await.unwrap();
        mount.rename("d", "e").await.unwrap();
        assert_eq!(mount.ls("e").await.unwrap(), [".f.swp", "f"]);
        assert_eq!(mount.cat("e/.f.swp").await.unwrap(), "swap");
        assert_eq!(mount.ls("").await.unwrap(), ["e"]);
        mount.unlink("e/f").await.unwrap();
        assert_eq!(mount.rmdir("e").await, Err(libc::ENOTEMPTY));
        mount.unlink("e/.f.swp").await.unwrap();
        mount.rmdir("e").await.unwrap();
        later().await;
        assert!(mount.ls("").await.unwrap().is_empty());
        assert!(world.keys().await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn modes_go_with_a_file_from_this_machine_to_the_store() {
    for world in [World::memory(), World::s3()] {
        let mount = world.mount_local("*.tmp");
        mount.save("f.tmp", "text").await.unwrap();
        let set = SetAttr {
            mode: Some(0o600),
            ..SetAttr::default()
        };
        mount.setattr("f.tmp", set).await.unwrap();
        mount.rename("f.tmp", "f").await.unwrap();
        let mount = world.mount();
        assert_eq!(mount.stat("f").await.unwrap().mode & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_local_file_beyond_the_staging_area_ends_on_this_machine() {
    const PIECE: usize = 1 << 20;
    for world in [World::memory(), World::s3()] {
        let mount = world.mount_local_with(|options| options.staging_size = 8 << 20, "*.part");
        let open = mount.open("f.part", CREATE).await.unwrap();
        let piece = |number: u8| bytes::Bytes::from(vec![b'a' + number; PIECE]);
        for number in 0..24 {
            let at = u64::from(number) * PIECE as u64;
            let written = mount
                .fs
                .write_when_room(open, at, piece(number), CALLER.uid, false);
            assert_eq!(written.await.unwrap() as usize, PIECE);
        }
        assert!(
            !world.keys().await.is_empty(),
            "some of it waits in the store"
        );
        mount.close(open).await.unwrap();
        let open = mount.open("f.part", READ).await.unwrap();
        let all: Vec<u8> = (0..24).flat_map(piece).collect();
        assert!(mount.fs.read(open, 0, 32 << 20).await.unwrap() == all);
        mount.close(open).await.unwrap();
        for _ in 0..1000 {
            if world.keys().await.is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(world.keys().await.is_empty(), "what waited is removed");
        mount.rename("f.part", "f").await.unwrap();
        assert!(world.get("f").await.unwrap().into_bytes() == all);
        assert_eq!(world.keys().await, ["f"]);
    }
}
