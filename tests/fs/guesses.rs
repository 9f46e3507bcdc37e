//! What a listing leaves to guess of a file, whether it is one and who may use it, is asked for before
//! anything is done that depends on it.

use crate::index::{save, settle, three};
use crate::world::{CALLER, Mount, READ, WRITE, World, mode};
use bucketfs::clock;
use bucketfs::driver::Driver;
use bucketfs::fs::{Kind, ROOT};
use bucketfs::key::Key;

/// A store without indexes that has a link and a private file, and a mount that has listed it.
async fn guessing() -> (World, Mount) {
    clock::simulate(1);
    let world = World::s3();
    let maker = world.mount();
    let made = maker.fs.symlink(ROOT, b"link", b"target", CALLER).await;
    made.unwrap();
    save(&maker, "private", 0o600).await;
    world.put("target", "content").await;
    settle().await;
    let mount = world.mount();
    mount.ls("").await.unwrap();
    assert_eq!(mount.stat("link").await.unwrap().kind, Kind::File);
    assert_eq!(mount.stat("private").await.unwrap().mode, 0o644);
    (world, mount)
}

async fn stored_mode(world: &World, key: &str) -> u32 {
    let info = world.raw().head(&Key::from(key)).await.unwrap();
    info.told_attributes().mode.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_link_that_was_listed_as_a_file_is_not_written_over() {
    for flags in [WRITE | libc::O_TRUNC, WRITE, libc::O_RDWR | libc::O_TRUNC] {
        let (world, mount) = guessing().await;
        let ino = mount.ino("link").await.unwrap();
        // The kernel looks the name up again, and goes where the link leads.
        let refused = mount.fs.open(ino, flags, CALLER).await;
        assert_eq!(refused.unwrap_err().errno(), libc::ESTALE);
        assert_eq!(mount.stat("link").await.unwrap().kind, Kind::Symlink);
        assert_eq!(world.get("link").await.unwrap(), "target");
        assert_eq!(
            stored_mode(&world, "link").await & libc::S_IFMT,
            libc::S_IFLNK
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_was_listed_as_a_file_stays_a_link_when_its_mode_is_changed() {
    let (world, mount) = guessing().await;
    let refused = mount.setattr("link", mode(0o640)).await;
    assert_eq!(refused.unwrap_err(), libc::ESTALE);
    assert_eq!(
        stored_mode(&world, "link").await & libc::S_IFMT,
        libc::S_IFLNK
    );
    assert_eq!(mount.stat("link").await.unwrap().kind, Kind::Symlink);
}

#[tokio::test(start_paused = true)]
async fn an_open_that_a_guess_has_let_in_is_tried_again_once() {
    for flags in [READ, WRITE, libc::O_RDWR] {
        let (_world, mount) = guessing().await;
        let ino = mount.ino("private").await.unwrap();
        let refused = mount.fs.open(ino, flags, CALLER).await;
        assert_eq!(refused.unwrap_err().errno(), libc::ESTALE);
        // By now the kernel can tell who may.
        assert_eq!(mount.stat("private").await.unwrap().mode, 0o600);
        let ino = mount.ino("private").await.unwrap();
        let opened = mount.fs.open(ino, flags, CALLER).await.unwrap();
        mount.close(opened.handle).await.unwrap();
    }
}

/// A file may be written to before anybody asks for it: what its first open told is overtaken then.
#[tokio::test(start_paused = true)]
async fn the_mode_of_a_guessed_file_is_kept_by_who_writes_to_it() {
    let (world, mount) = guessing().await;
    mount.save("private", "other").await.unwrap();
    assert_eq!(stored_mode(&world, "private").await, 0o100_600);
    assert_eq!(world.get("private").await.unwrap(), "other");
}

/// Its index comes some seconds later, and is looked for after a minute.
#[tokio::test(start_paused = true)]
async fn new_files_in_a_bucket_with_indexes_are_asked_for() {
    let world = three().await;
    let mount = world.mount();
    mount.ls("d").await.unwrap();
    let maker = world.mount();
    maker.mkdir("new").await.unwrap();
    save(&maker, "new/private", 0o600).await;
    let new = maker.ino("new").await.unwrap();
    let made = maker.fs.symlink(new, b"link", b"target", CALLER).await;
    made.unwrap();
    settle().await;
    assert_eq!(mount.ls("new").await.unwrap(), ["link", "private"]);
    assert_eq!(mount.stat("new/private").await.unwrap().mode, 0o600);
    assert_eq!(mount.stat("new/link").await.unwrap().kind, Kind::Symlink);
    // Once: what was told is known.
    mount.cost();
    settle().await;
    mount.ls("new").await.unwrap();
    assert_eq!(mount.stat("new/private").await.unwrap().mode, 0o600);
    let cost = mount.cost();
    assert!(!cost.contains("head"), "{cost}");
}
