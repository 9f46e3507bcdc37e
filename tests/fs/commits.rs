//! Commits, and what else happens to a file while they run or after they failed.

use crate::world::*;
use bucketfs::driver::Driver;
use bucketfs::fs::SetAttr;
use std::time::Duration;

const MIB: usize = 1 << 20;

async fn half_a_second() {
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// A text of which every line tells where it is.
fn lines(len: usize, mark: char) -> String {
    let line = |at: usize| format!("{mark}{:014}\n", at * 16);
    (0..len / 16).map(line).collect()
}

async fn write_all(mount: &Mount, handle: u64, text: &str) {
    for at in (0..text.len()).step_by(MIB) {
        let end = text.len().min(at + MIB);
        mount.write(handle, at as u64, &text[at..end]).unwrap();
    }
}

async fn read_all(mount: &Mount, handle: u64, len: usize) -> String {
    let mut text = String::new();
    while text.len() < len {
        let part = mount.read(handle, text.len() as u64, 1 << 20).await;
        text += &part.unwrap();
    }
    text
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_was_read_while_the_bytes_before_it_were_committed_is_not_taken_for_them() {
    let world = World::memory();
    let (old, new) = (lines(20 * MIB, 'A'), lines(20 * MIB, 'B'));
    world.put("source", &new).await;
    let mount = world.mount();
    let source = mount.open("source", READ).await.unwrap();
    let first = mount.open("f", CREATE).await.unwrap();
    write_all(&mount, first, &old).await;
    mount.fault.set("complete:delay=5s,put:delay=5s").unwrap();
    let again = async {
        half_a_second().await;
        let flags = libc::O_RDWR | libc::O_TRUNC;
        let second = mount.open("f", flags).await.unwrap();
        let mut at = 0;
        while at < new.len() as u64 {
            let ends = ((source, at), (second, at));
            let copied = mount.fs.copy_file_range(ends.0, ends.1, 1 << 30, 7).await;
            at += u64::from(copied.unwrap());
        }
        assert!(read_all(&mount, second, new.len()).await == new);
        second
    };
    let (flushed, second) = tokio::join!(mount.flush(first), again);
    flushed.unwrap();
    mount.fault.clear();
    mount.close(second).await.unwrap();
    mount.close(first).await.unwrap();
    assert!(world.get("f").await.unwrap() == new);
}

/// What this mount has acknowledged as copied is not its own to lose.
#[tokio::test(start_paused = true)]
async fn a_copy_outlives_what_this_mount_does_to_its_source() {
    let text = lines(5 * MIB, 'x');
    for what in ["unlink", "rename", "replace", "overwrite", "directory"] {
        let world = World::s3();
        world.put("d/a", &text).await;
        world.put("other", "other").await;
        let mount = world.mount();
        let from = mount.open("d/a", READ).await.unwrap();
        let to = mount.open("b", CREATE).await.unwrap();
        let copied = mount.fs.copy_file_range((from, 0), (to, 0), 1 << 30, 7);
        assert_eq!(copied.await.unwrap() as usize, text.len());
        mount.close(from).await.unwrap();
        match what {
            "unlink" => mount.unlink("d/a").await.unwrap(),
            "rename" => mount.rename("d/a", "c").await.unwrap(),
            "replace" => mount.rename("other", "d/a").await.unwrap(),
            "overwrite" => mount.save("d/a", "new").await.unwrap(),
            _ => mount.rename("d", "e").await.unwrap(),
        }
        mount.close(to).await.unwrap();
        assert!(world.get("b").await.unwrap() == text, "{what}");
        assert!(mount.fs.status().conflicts.is_empty(), "{what}");
    }
}
