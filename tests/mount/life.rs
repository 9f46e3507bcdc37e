//! The end of mounts that are in use.

use crate::guard::kill;
use crate::harness::{Place, Program, eventually, fails, trial};
use libtest_mimic::Trial;
use rustix::process::Signal;
use std::fs::File;
use std::io::Write;
use std::process::Command;

pub fn trials() -> Vec<Trial> {
    let root = crate::harness::Root;
    vec![
        trial(
            &[],
            "life::a_killed_daemon_is_replaced",
            a_killed_daemon_is_replaced,
        ),
        trial(
            &[Program("fusermount3")],
            "life::fusermount_ends_the_daemon_with_its_last_file",
            |place| ends_with_its_last_file(place, &["fusermount3", "-uz"]),
        ),
        trial(
            &[root],
            "life::umount_ends_the_daemon_with_its_last_file",
            |place| {
                ends_with_its_last_file(place, &["umount", "-l"]);
            },
        ),
        trial(
            &[],
            "life::an_unmount_sends_what_is_dirty",
            an_unmount_sends_what_is_dirty,
        ),
        trial(
            &[],
            "life::a_second_mount_of_a_store_sees_it_all",
            a_second_mount_of_a_store_sees_it_all,
        ),
    ]
}

fn a_killed_daemon_is_replaced(place: &Place) {
    let m = place.faulty("m", "head:error=denied:key~nothing", &[]);
    std::fs::write(m.path("f"), "content").unwrap();
    let open = File::open(m.path("f")).unwrap();
    m.kill();
    assert!(m.is_mounted());
    assert_eq!(fails(std::fs::read_dir(m.path(""))), libc::ENOTCONN);
    assert_eq!(fails(std::fs::read(m.path("f"))), libc::ENOTCONN);
    assert_eq!(fails(open.sync_all()), libc::ENOTCONN);
    let second = place.file("m", &[]);
    assert_eq!(std::fs::read(second.path("f")).unwrap(), b"content");
    std::fs::write(second.path("f"), "rewritten").unwrap();
    assert_eq!(place.stored("f").unwrap(), b"rewritten");
}

fn ends_with_its_last_file(place: &Place, command: &[&str]) {
    let m = place.file("m", &[]);
    let mut open = File::create(m.path("f")).unwrap();
    open.write_all(b"before ").unwrap();
    let mut unmount = Command::new(command[0]);
    unmount.args(&command[1..]).arg(m.path(""));
    let said = place.run(&mut unmount);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!m.is_mounted() && !m.has_ended());
    // Whoever has files open goes on with them.
    open.write_all(b"and after").unwrap();
    open.sync_all().unwrap();
    assert_eq!(place.stored("f").unwrap(), b"before and after");
    open.write_all(b", closed").unwrap();
    drop(open);
    m.ends(0);
    assert_eq!(place.stored("f").unwrap(), b"before and after, closed");
}

fn an_unmount_sends_what_is_dirty(place: &Place) {
    let m = place.faulty("m", "put:error=unavailable@1", &["--retries", "0"]);
    // The failure is told by close, which this call does not look at.
    let _ = std::fs::write(m.path("f"), "dirty");
    assert!(place.stored("f").is_err());
    let dir = m.path("");
    let said = place.run(&mut place.command(&["umount", dir.to_str().unwrap()]));
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said:?}");
    assert_eq!(place.stored("f").unwrap(), b"dirty");
    m.ends(0);
}

fn a_second_mount_of_a_store_sees_it_all(place: &Place) {
    let first = place.file("m", &[]);
    std::fs::create_dir_all(first.path("a/b")).unwrap();
    std::fs::write(first.path("a/b/f"), "content").unwrap();
    std::os::unix::fs::symlink("a/b/f", first.path("link")).unwrap();
    let before = first.path("a/b/f").metadata().unwrap();
    kill(first.pid(), Signal::TERM);
    first.ends(0);
    let second = place.file("m", &[]);
    eventually("it is there", || second.path("link").exists());
    let after = second.path("a/b/f").metadata().unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        (
            before.ino(),
            before.mode(),
            before.mtime(),
            before.mtime_nsec()
        ),
        (after.ino(), after.mode(), after.mtime(), after.mtime_nsec())
    );
    assert_eq!(std::fs::read(second.path("link")).unwrap(), b"content");
}
