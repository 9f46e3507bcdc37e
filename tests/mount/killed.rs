//! What the kernel believes after the requester of a change was killed, and the change was made
//! nevertheless.

use crate::guard::kill;
use crate::harness::{Mount, PYTHON, Place, eventually, fails, trial};
use libtest_mimic::Trial;
use rustix::process::Signal;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            &[PYTHON],
            "killed::what_a_killed_rename_has_moved_is_looked_up_anew",
            what_a_killed_rename_has_moved_is_looked_up_anew,
        ),
        trial(
            &[PYTHON],
            "killed::what_a_killed_unlink_has_removed_takes_no_bytes",
            what_a_killed_unlink_has_removed_takes_no_bytes,
        ),
        trial(
            &[PYTHON],
            "killed::what_a_killed_rmdir_has_removed_is_gone",
            what_a_killed_rmdir_has_removed_is_gone,
        ),
        trial(
            &[PYTHON],
            "killed::what_a_killed_chmod_has_set_is_seen",
            what_a_killed_chmod_has_set_is_seen,
        ),
    ]
}

/// Kills a process in a call that goes on for three seconds, and has the kernel told meanwhile of
/// what there is.
fn killed_in(place: &Place, m: &Mount, call: &str, name: &str) {
    let path = m.path(name);
    let call = format!("say('begin')\n{call}");
    let mut process = place.start(&mut place.python(&call, &[&path]));
    assert_eq!(process.line(), "begin");
    std::thread::sleep(Duration::from_millis(900));
    kill(process.pid(), Signal::KILL);
    assert_eq!(process.end().code, None);
    std::fs::symlink_metadata(path).unwrap();
}

/// Waits for the end of that call. The kernel hears of it a moment later.
fn has_happened(what: &str, holds: impl FnMut() -> bool) {
    eventually(what, holds);
    std::thread::sleep(Duration::from_millis(300));
}

fn what_a_killed_rename_has_moved_is_looked_up_anew(place: &Place) {
    place.store("a", b"moved");
    let m = place.faulty("m", "rename:delay=3s", &[]);
    killed_in(place, &m, "os.rename(sys.argv[1], sys.argv[1] + '2')", "a");
    has_happened("it is moved", || place.stored("a2").is_ok());
    std::fs::write(m.path("a"), "another").unwrap();
    assert_eq!(place.stored("a").unwrap(), b"another");
    for stored in [place.stored("a2"), std::fs::read(m.path("a2"))] {
        assert_eq!(stored.unwrap(), b"moved");
    }
}

fn what_a_killed_unlink_has_removed_takes_no_bytes(place: &Place) {
    place.store("f", b"removed");
    let m = place.faulty("m", "delete:delay=3s", &[]);
    killed_in(place, &m, "os.unlink(sys.argv[1])", "f");
    has_happened("it is removed", || place.stored("f").is_err());
    assert_eq!(fails(std::fs::metadata(m.path("f"))), libc::ENOENT);
    std::fs::write(m.path("f"), "new").unwrap();
    for stored in [place.stored("f"), std::fs::read(m.path("f"))] {
        assert_eq!(stored.unwrap(), b"new");
    }
}

fn what_a_killed_rmdir_has_removed_is_gone(place: &Place) {
    let m = place.faulty("m", "delete:delay=3s", &[]);
    std::fs::create_dir(m.path("d")).unwrap();
    killed_in(place, &m, "os.rmdir(sys.argv[1])", "d");
    let stored = place.path("store").join("d");
    has_happened("it is removed", || !stored.exists());
    assert_eq!(fails(std::fs::metadata(m.path("d"))), libc::ENOENT);
    std::fs::create_dir(m.path("d")).unwrap();
    std::fs::write(m.path("d/f"), "x").unwrap();
}

fn what_a_killed_chmod_has_set_is_seen(place: &Place) {
    place.store("f", b"secret");
    let mode = |told: io::Result<std::fs::Metadata>| told.unwrap().permissions().mode() & 0o777;
    let stored = place.path("store").join("f");
    std::fs::set_permissions(&stored, PermissionsExt::from_mode(0o644)).unwrap();
    let m = place.faulty("m", "set_attributes:delay=3s", &[]);
    killed_in(place, &m, "os.chmod(sys.argv[1], 0o600)", "f");
    has_happened("it is set", || mode(stored.metadata()) == 0o600);
    assert_eq!(mode(std::fs::metadata(m.path("f"))), 0o600);
}
