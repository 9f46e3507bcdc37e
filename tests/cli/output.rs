//! What is printed: it arrives, or the command fails; and names in it stay names.

use crate::harness::{Place, Said, finish, no_fuse};
use crate::{anywhere, unless};
use libtest_mimic::Trial;
use std::fs::File;

pub fn trials() -> Vec<Trial> {
    vec![
        anywhere("output::a_full_disk_is_a_failure", a_full_disk_is_a_failure),
        anywhere(
            "output::nothing_is_removed_unseen",
            nothing_is_removed_unseen,
        ),
        unless(
            no_fuse(),
            "output::names_cannot_forge_lines_of_status",
            names_cannot_forge_lines_of_status,
        ),
    ]
}

/// Runs a command whose output has no room.
fn without_room(place: &Place, args: &[&str]) -> Said {
    let mut command = place.command(args);
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    let output = command.output().unwrap();
    Said {
        code: output.status.code(),
        stdout: String::new(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn folder(place: &Place) -> String {
    std::fs::create_dir(place.path("store")).unwrap();
    std::fs::write(place.path("store/d.json"), "{\"x\":1}").unwrap();
    format!("file://{}", place.text("store"))
}

const NO_ROOM: &str =
    "bucketfs: cannot write to standard output: No space left on device (os error 28)\n";

fn a_full_disk_is_a_failure() {
    let place = Place::new();
    let url = folder(&place);
    for (args, code) in [
        (&["status"][..], 1),
        (&["status", "--json"], 1),
        (&["drivers"], 1),
        (&["--help"], 1),
        (&["find", "--help"], 1),
        (&["check", &url, "--read-only"], 1),
        (&["find", &url, "x=1"], 2),
        (&["find", &url, "x=1", "--json-out"], 2),
        (&["find", &url, "x=1", "--count"], 2),
    ] {
        let said = without_room(&place, args);
        assert_eq!(
            (said.code, said.stderr.as_str()),
            (Some(code), NO_ROOM),
            "{args:?}"
        );
    }
}

fn nothing_is_removed_unseen() {
    let place = Place::new();
    let url = folder(&place);
    let args = ["find", &url, "x=1", "--json-out", "--delete", "--yes"];
    let said = without_room(&place, &args);
    assert_eq!((said.code, said.stderr.as_str()), (Some(2), NO_ROOM));
    assert!(place.path("store/d.json").exists());
    // Nor for a reader that has gone.
    let mut command = place.command(&args);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer);
    assert_eq!(command.output().unwrap().status.code(), Some(0));
    assert!(place.path("store/d.json").exists());
    let said = finish(place.command(&args));
    let line = "{\"key\":\"d.json\",\"document\":{\"x\":1}}\n";
    assert_eq!((said.code, said.stdout.as_str()), (Some(0), line));
    assert!(!place.path("store/d.json").exists());
}

fn names_cannot_forge_lines_of_status() {
    let place = Place::new();
    place.mount(&["--fault", "put:error=denied", "--retries", "0"]);
    let name = "evil\x1b]0;pwn\x07\nforged line";
    let _ = std::fs::write(place.mnt().join(name), "x");
    let said = place.run(&["status"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.stdout
            .contains("evil\\u{1b}]0;pwn\\u{7}\\nforged line"),
        "{said:?}"
    );
    let is_raw = |c: char| c.is_control() && c != '\n';
    assert!(!said.stdout.contains(is_raw), "{said:?}");
    assert!(
        !said.stdout.lines().any(|line| line.starts_with("forged")),
        "{said:?}"
    );
}
