//! Names that stay on this machine, through the kernel.

use crate::harness::{Mount, Place, Program, fails, trial};
use libtest_mimic::Trial;
use std::path::PathBuf;
use std::process::Command;

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            &[],
            "scratch::a_second_mount_does_not_see_local_names",
            a_second_mount_does_not_see_local_names,
        ),
        trial(
            &[],
            "scratch::the_next_mount_finds_what_was_left_and_clean_removes_it",
            the_next_mount_finds_what_was_left_and_clean_removes_it,
        ),
        trial(
            &[],
            "scratch::large_files_go_to_the_store_and_back_by_rename",
            large_files_go_to_the_store_and_back_by_rename,
        ),
        trial(
            &[Program("vim")],
            "scratch::vim_keeps_its_swap_file_on_this_machine",
            vim_keeps_its_swap_file_on_this_machine,
        ),
    ]
}

const NAMES: [&str; 4] = ["--local", "*.sw[a-p]", "--local", "*~:*.part"];

fn names(dir: PathBuf) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != ".bucketfs")
        .collect();
    names.sort();
    names
}

fn unmount(place: &Place, mount: &Mount) {
    let dir = mount.path("");
    let said = place.run(&mut place.command(&["umount", dir.to_str().unwrap()]));
    assert_eq!(said.code, Some(0), "{said:?}");
    mount.ends(0);
}

fn a_second_mount_does_not_see_local_names(place: &Place) {
    let a = place.file("a", &NAMES);
    // It has names of its own, in a place of its own.
    let b = place.file("b", &NAMES);
    std::fs::create_dir(a.path("d")).unwrap();
    std::fs::write(a.path("d/f"), "text").unwrap();
    std::fs::write(a.path("d/.f.swp"), "a's").unwrap();
    std::fs::write(b.path("d/.f.swp"), "b's").unwrap();
    assert_eq!(names(a.path("d")), [".f.swp", "f"]);
    assert_eq!(std::fs::read(a.path("d/.f.swp")).unwrap(), b"a's");
    assert_eq!(std::fs::read(b.path("d/.f.swp")).unwrap(), b"b's");
    assert_eq!(names(place.path("store/d")), ["f"]);
    std::fs::remove_file(b.path("d/.f.swp")).unwrap();
    assert_eq!(names(b.path("d")), ["f"]);
    assert_eq!(names(a.path("d")), [".f.swp", "f"]);
    // An editor's save by rename, and the reverse.
    std::fs::write(a.path("d/f~"), "saved").unwrap();
    std::fs::rename(a.path("d/f~"), a.path("d/f")).unwrap();
    assert_eq!(place.stored("d/f").unwrap(), b"saved");
    std::fs::rename(a.path("d/f"), a.path("d/f~")).unwrap();
    assert!(names(place.path("store/d")).is_empty());
    assert_eq!(std::fs::read(a.path("d/f~")).unwrap(), b"saved");
    assert_eq!(
        fails(std::fs::remove_dir(a.path("d"))),
        libc::ENOTEMPTY,
        "what is here is in the directory"
    );
}

fn the_next_mount_finds_what_was_left_and_clean_removes_it(place: &Place) {
    let m = place.file("m", &NAMES);
    std::fs::write(m.path(".f.swp"), "left").unwrap();
    unmount(place, &m);
    let m = place.file("other", &NAMES);
    assert_eq!(std::fs::read(m.path(".f.swp")).unwrap(), b"left");
    let clean = || {
        let url = place.file_url();
        let said = place.run(&mut place.command(&["check", &url, "--clean"]));
        assert_eq!(said.code, Some(0), "{said:?}");
        let line = said.stdout.lines().find(|line| line.contains("--local"));
        line.unwrap_or_default().to_owned()
    };
    let line = clean();
    assert!(line.starts_with("left 1 files of --local names"), "{line}");
    assert!(line.ends_with(": a mount uses them"), "{line}");
    unmount(place, &m);
    // A mount that keeps no names, or others, shows none of them.
    let m = place.file("m", &["--local", "*.other"]);
    assert!(names(m.path("")).is_empty());
    unmount(place, &m);
    let line = clean();
    assert!(
        line.starts_with("removed 1 files of --local names"),
        "{line}"
    );
    assert_eq!(clean(), "");
    let m = place.file("m", &NAMES);
    assert!(names(m.path("")).is_empty());
}

fn large_files_go_to_the_store_and_back_by_rename(place: &Place) {
    // More than what goes in one piece, and what goes ahead of its close.
    let bytes = crate::harness::pattern(40 << 20, 1);
    for url in [place.file_url(), "memory:".to_owned()] {
        let m = place.mount("m", &url, &NAMES, true);
        std::fs::write(m.path("f.part"), &bytes).unwrap();
        std::fs::rename(m.path("f.part"), m.path("f")).unwrap();
        assert!(std::fs::read(m.path("f")).unwrap() == bytes);
        std::fs::rename(m.path("f"), m.path("g.part")).unwrap();
        assert!(std::fs::read(m.path("g.part")).unwrap() == bytes);
        std::fs::copy(m.path("g.part"), m.path("g")).unwrap();
        assert!(std::fs::read(m.path("g")).unwrap() == bytes);
        assert_eq!(names(m.path("")), ["g", "g.part"]);
        std::fs::remove_file(m.path("g")).unwrap();
        std::fs::remove_file(m.path("g.part")).unwrap();
        unmount(place, &m);
    }
}

fn vim_keeps_its_swap_file_on_this_machine(place: &Place) {
    let m = place.file("m", &["--local", "*.sw[a-p]"]);
    std::fs::write(m.path("f"), "first\n").unwrap();
    let listed = place.path("listed");
    let mut vim = Command::new("vim");
    vim.args(["-es", "-N", "-u", "NONE", "--cmd"])
        .arg("set swapfile directory=. backup backupskip= backupdir=.")
        .arg(m.path("f"))
        .args(["-c", "normal osecond", "-c", "preserve", "-c"])
        .arg(format!(
            "silent !ls -A {} {} > {}",
            m.path("").display(),
            place.path("store").display(),
            listed.display()
        ))
        .args(["-c", "wq"])
        .current_dir(m.path(""))
        .stdin(std::process::Stdio::null());
    let said = place.run(&mut vim);
    let listed = std::fs::read_to_string(listed).unwrap_or_default();
    let swaps = listed.lines().filter(|line| *line == ".f.swp").count();
    assert_eq!(swaps, 1, "in the mount alone: {listed} {said:?}");
    assert_eq!(place.stored("f").unwrap(), b"first\nsecond\n");
    assert_eq!(names(place.path("store")), ["f", "f~"]);
    assert_eq!(names(m.path("")), ["f", "f~"]);
}
