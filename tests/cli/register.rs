//! The runtime directory: which one is taken, and what is believed of what others put into it.

use crate::harness::{Place, finish, no_fuse};
use crate::{anywhere, unless};
use libtest_mimic::Trial;
use rustix::fs::{CWD, FileType, Mode};
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

pub fn trials() -> Vec<Trial> {
    vec![
        anywhere(
            "register::a_pipe_in_it_hangs_nobody",
            a_pipe_in_it_hangs_nobody,
        ),
        anywhere(
            "register::a_relative_one_is_refused",
            a_relative_one_is_refused,
        ),
        unless(
            no_fuse(),
            "register::one_that_was_there_keeps_its_mode",
            one_that_was_there_keeps_its_mode,
        ),
    ]
}

fn a_pipe_in_it_hangs_nobody() {
    let place = Place::new();
    std::fs::create_dir(place.path("run")).unwrap();
    for name in ["run/daemon.json", "run/daemon.lock"] {
        let mode = Mode::from(0o600);
        rustix::fs::mknodat(CWD, place.path(name), FileType::Fifo, mode, 0).unwrap();
    }
    let said = place.run(&["status"]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said:?}");
    let said = place.run(&["umount", &place.text("mnt")]);
    assert_eq!(said.code, Some(6), "{said:?}");
}

fn a_relative_one_is_refused() {
    let place = Place::new();
    let mnt = place.text("mnt");
    for args in [
        &["status"][..],
        &["umount", &mnt],
        &["mount", "memory:", &mnt],
    ] {
        let mut command = place.command(args);
        command.env("BUCKETFS_RUNTIME_DIR", "run/here");
        let said = finish(command);
        assert_eq!(
            said.stderr,
            "bucketfs: BUCKETFS_RUNTIME_DIR is the relative path \"run/here\"; give an absolute one\n"
        );
        assert_eq!(said.code, Some(2), "{said:?}");
    }
    assert!(!place.is_mounted());
}

fn one_that_was_there_keeps_its_mode() {
    let place = Place::new();
    let run = place.path("run");
    let mnt = place.text("mnt");
    std::fs::create_dir(&run).unwrap();
    let set = |mode| std::fs::set_permissions(&run, Permissions::from_mode(mode)).unwrap();
    let mode = || std::fs::metadata(&run).unwrap().mode() & 0o7777;
    set(0o1777);
    for args in [&["mount", "memory:", &mnt][..], &["status"]] {
        let said = place.run(args);
        assert_eq!(
            said.stderr,
            format!(
                "bucketfs: cannot use the runtime directory {}: its mode 1777 lets others write to it; choose another one with BUCKETFS_RUNTIME_DIR\n",
                run.display()
            )
        );
        assert_eq!(said.code, Some(1), "{said:?}");
    }
    assert_eq!(mode(), 0o1777);
    assert!(!place.is_mounted());
    set(0o755);
    place.mount(&[]);
    assert_eq!(mode(), 0o755);
    let modes = std::fs::read_dir(&run).unwrap().map(|entry| {
        let facts = entry.unwrap().metadata().unwrap();
        facts.mode() & 0o777
    });
    assert_eq!(modes.collect::<Vec<_>>(), [0o600; 3]);
}
