//! The table "Requests per operation" of the design, row by row.

use crate::harness::{Place, Program, pattern};
use crate::world::{Objects, World, list, trial};
use libtest_mimic::Trial;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// An operation in a directory of 200 small files, and what it costs on a fresh mount and after
/// `ls -l`.
struct Row {
    name: &'static str,
    run: fn(&Path),
    cold: &'static str,
    listed: &'static str,
}

const ROWS: &[Row] = &[
    Row {
        name: "stat",
        run: |at| assert_eq!(fs::metadata(at.join("f007")).unwrap().len(), 3),
        cold: "get 1, list 1",
        listed: "",
    },
    Row {
        name: "stat_missing",
        run: |at| {
            for _ in 0..2 {
                fs::metadata(at.join("nope")).unwrap_err();
            }
        },
        cold: "get 1, list 1",
        listed: "",
    },
    Row {
        name: "ls",
        run: |at| assert_eq!(list(at), 200),
        cold: "list 1",
        listed: "",
    },
    Row {
        name: "cat",
        run: |at| assert_eq!(fs::read(at.join("f007")).unwrap(), b"old"),
        cold: "get 1, list 1",
        listed: "get 1",
    },
    Row {
        name: "create",
        run: |at| fs::write(at.join("new"), "hello").unwrap(),
        cold: "get 1, list 1, put 1",
        listed: "put 1",
    },
    Row {
        name: "create_20",
        run: |at| {
            for i in 0..20 {
                fs::write(at.join(format!("new{i}")), "hello").unwrap();
            }
        },
        cold: "get 1, list 2, put 20",
        listed: "put 20",
    },
    Row {
        name: "overwrite",
        run: |at| fs::write(at.join("f007"), "hello").unwrap(),
        cold: "get 1, list 1, put 1",
        listed: "head 1, put 1",
    },
    Row {
        name: "append",
        run: |at| append(&at.join("f007"), b"hello"),
        cold: "get 1, list 1, put 1",
        listed: "get 1, put 1",
    },
    Row {
        name: "rename",
        run: |at| fs::rename(at.join("f007"), at.join("moved")).unwrap(),
        cold: "copy 1, delete 1, get 1, list 2",
        listed: "copy 1, delete 1",
    },
    Row {
        name: "rename_over",
        run: |at| fs::rename(at.join("f007"), at.join("f008")).unwrap(),
        cold: "copy 1, delete 1, get 1, list 2",
        listed: "copy 1, delete 1",
    },
    Row {
        name: "rm",
        run: |at| fs::remove_file(at.join("f007")).unwrap(),
        cold: "delete 1, get 1, list 1",
        listed: "delete 1",
    },
    Row {
        name: "mkdir",
        run: |at| fs::create_dir(at.join("d")).unwrap(),
        cold: "get 1, list 1, put 1",
        listed: "put 1",
    },
    Row {
        name: "df",
        run: |at| {
            nix::sys::statvfs::statvfs(at).unwrap();
        },
        cold: "",
        listed: "",
    },
];

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for row in ROWS {
        for listed in [false, true] {
            let name = format!("{}_{}", row.name, if listed { "listed" } else { "cold" });
            trials.push(trial(&[], &name, move |place| {
                let world = World::new(place, files);
                if listed {
                    assert_eq!(world.ls(""), 200);
                    world.cost();
                }
                (row.run)(&world.path(""));
                let cost = if listed { row.listed } else { row.cold };
                assert_eq!(world.cost(), cost);
            }));
        }
    }
    trials.extend([
        trial(&[], "mount_again", mount_again),
        trial(&[], "stat_three_directories_deep", deep),
        trial(&[], "cat_again", cat_again),
        trial(&[], "append_to_32_mib", append_to_large),
        trial(
            &[],
            "append_to_32_mib_where_etags_are_fresh",
            append_where_etags_are_fresh,
        ),
        trial(&[], "append_to_32_mib_behind_others", append_behind_others),
        trial(&[], "change_in_the_middle_of_32_mib", change_in_the_middle),
        trial(&[], "cut_of_32_mib", cut_large),
        trial(&[], "change_of_32_mib_that_lost_a_race", change_lost),
        trial(&[], "rename_a_directory_of_20", rename_directory),
        trial(&[], "rmdir", rmdir),
        trial(&[Program("rm")], "rm_r_of_20", rm_r),
        trial(&[Program("find")], "find_over_20_directories", find_20),
        trial(&[Program("find")], "find_over_20000_keys", find_20000),
        trial(&[Program("cp")], "cp_p", cp_p),
        trial(&[Program("cp")], "cp_r_of_200", cp_r),
    ]);
    trials
}

fn files(objects: &mut Objects<'_>) {
    for i in 0..200 {
        objects.put(&format!("f{i:03}"), "old");
    }
}

/// So many directories of so many files below a prefix.
pub fn tree(objects: &mut Objects<'_>, prefix: &str, directories: usize, files: usize) {
    for d in 0..directories {
        for f in 0..files {
            objects.put(&format!("{prefix}d{d:03}/f{f:03}"), format!("{d} {f}"));
        }
    }
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = fs::File::options().append(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

/// What a server honours is found out once a day.
fn mount_again(place: &Place) {
    let world = World::new(place, files);
    assert!(world.mounting.contains("put"), "{}", world.mounting);
    let again = world.again();
    assert_eq!(again.mounting, "list 1");
    fs::write(again.path("new"), "hello").unwrap();
    assert_eq!(world.stored("new").unwrap(), "hello");
}

fn deep(place: &Place) {
    let world = World::new(place, |objects| {
        for i in 0..10 {
            objects.put(&format!("a/b/c/f{i}"), "deep");
        }
    });
    assert_eq!(fs::metadata(world.path("a/b/c/f7")).unwrap().len(), 4);
    assert_eq!(world.cost(), "get 1, list 1");
}

fn cat_again(place: &Place) {
    let world = World::new(place, files);
    let cat = || assert_eq!(fs::read(world.path("f007")).unwrap(), b"old");
    cat();
    world.cost();
    cat();
    let counts = world.counts();
    assert_eq!((counts.to_string().as_str(), counts.sent), ("get 1", 0));
}

const LARGE: usize = 32 << 20;

fn append_to_large(place: &Place) {
    let old = pattern(LARGE, 1);
    let world = World::new(place, |objects| objects.put("large", old.clone()));
    world.ls("");
    world.cost();
    append(&world.path("large"), b"tail");
    let counts = world.counts();
    assert_eq!(
        counts.to_string(),
        "begin 1, complete 1, head 1, part 1, part-copy 1"
    );
    assert_eq!((counts.received, counts.sent), (4, 0));
    assert!(world.stored("large").unwrap() == [&old[..], b"tail"].concat());
}

/// A server that copies parts of any version is asked before and behind; where no etag comes back,
/// nobody waits until the object is old enough for its time to tell.
fn append_where_etags_are_fresh(place: &Place) {
    let old = pattern(LARGE, 1);
    let world = World::new(place, |objects| {
        objects.number_etags();
        objects.put("large", old.clone());
    });
    world.ls("");
    // The server is tried out by the first write.
    fs::write(world.path("other"), "x").unwrap();
    world.cost();
    append(&world.path("large"), b"tail");
    let counts = world.counts();
    assert_eq!(
        counts.to_string(),
        "begin 1, complete 1, head 3, part 1, part-copy 1"
    );
    assert_eq!((counts.received, counts.sent), (4, 0));
    assert!(world.stored("large").unwrap() == [&old[..], b"tail"].concat());
}

fn change_in_the_middle(place: &Place) {
    let mut old = pattern(LARGE, 1);
    let world = World::new(place, |objects| objects.put("large", old.clone()));
    world.ls("");
    world.cost();
    let file = fs::File::options().write(true).open(world.path("large"));
    let file = file.unwrap();
    file.write_all_at(b"changed", 20 << 20).unwrap();
    file.sync_all().unwrap();
    let counts = world.counts();
    // The part around it is as large as parts must be.
    assert_eq!(
        counts.to_string(),
        "begin 1, complete 1, get 1, head 1, part 1, part-copy 2"
    );
    assert_eq!((counts.received, counts.sent), (5 << 20, 5 << 20));
    old[20 << 20..][..7].copy_from_slice(b"changed");
    assert!(world.stored("large").unwrap() == old);
    // What is known of the file is what was made.
    file.write_all_at(b"again", 30 << 20).unwrap();
    drop(file);
    old[30 << 20..][..5].copy_from_slice(b"again");
    assert!(world.stored("large").unwrap() == old);
    assert!(fs::read(world.path("large")).unwrap() == old);
}

fn cut_large(place: &Place) {
    let old = pattern(LARGE, 1);
    let world = World::new(place, |objects| objects.put("large", old.clone()));
    world.ls("");
    world.cost();
    let file = fs::File::options().write(true).open(world.path("large"));
    file.unwrap().set_len(24 << 20).unwrap();
    assert_eq!(world.cost(), "begin 1, complete 1, head 1, part-copy 1");
    assert!(world.stored("large").unwrap() == old[..24 << 20]);
}

/// The loser's bytes are kept where they belong; what was never here is not in its file.
fn change_lost(place: &Place) {
    let old = pattern(LARGE, 1);
    let world = World::new(place, |objects| objects.put("large", old.clone()));
    let file = fs::File::options().write(true).open(world.path("large"));
    let file = file.unwrap();
    file.write_all_at(b"ours", 20 << 20).unwrap();
    world.put("large", "theirs");
    let lost = file.sync_all().unwrap_err();
    assert_eq!(lost.raw_os_error(), Some(libc::ESTALE));
    assert_eq!(world.stored("large").unwrap(), "theirs");
    let names = fs::read_dir(world.path("")).unwrap();
    let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let kept = names.find(|name| name.starts_with("large.conflict-"));
    let kept = fs::read(world.path(&kept.unwrap())).unwrap();
    assert_eq!(kept.len(), LARGE);
    assert_eq!(&kept[20 << 20..][..4], b"ours");
}

/// Who comes second appends behind the first.
fn append_behind_others(place: &Place) {
    let old = pattern(LARGE, 1);
    let world = World::new(place, |objects| objects.put("large", old.clone()));
    let path = world.path("large");
    let mut file = fs::File::options().append(true).open(path).unwrap();
    file.write_all(b"ours").unwrap();
    let theirs = [&old[..], b"theirs"].concat();
    world.put("large", theirs.clone());
    file.sync_all().unwrap();
    assert!(world.stored("large").unwrap() == [&theirs[..], b"ours"].concat());
}

fn rename_directory(place: &Place) {
    let world = World::new(place, |objects| tree(objects, "tree/", 1, 20));
    world.ls("tree");
    world.cost();
    fs::rename(world.path("tree/d000"), world.path("tree/moved")).unwrap();
    assert_eq!(world.cost(), "batch 1, copy 20, list 1");
    assert_eq!(world.ls("tree/moved"), 20);
}

fn rmdir(place: &Place) {
    let world = World::new(place, |objects| objects.put("d/", ""));
    fs::remove_dir(world.path("d")).unwrap();
    assert_eq!(world.cost(), "delete 1, get 1, list 2");
    fs::create_dir(world.path("e")).unwrap();
    world.cost();
    fs::remove_dir(world.path("e")).unwrap();
    assert_eq!(world.cost(), "delete 1, list 1");
}

fn rm_r(place: &Place) {
    let world = World::new(place, |objects| tree(objects, "tree/", 1, 20));
    world.ls("tree");
    world.cost();
    world.sh("rm -r tree/d000");
    assert_eq!(world.cost(), "delete 20, list 1");
}

fn find_20(place: &Place) {
    let world = World::new(place, |objects| tree(objects, "", 20, 100));
    assert_eq!(world.sh("find . -type f | wc -l").trim(), "2000");
    assert_eq!(world.cost(), "list 3");
}

fn find_20000(place: &Place) {
    let world = World::new(place, |objects| tree(objects, "", 200, 100));
    assert_eq!(world.sh("find . -type f | wc -l").trim(), "20000");
    assert_eq!(world.cost(), "list 21");
}

fn cp_p(place: &Place) {
    let world = World::new(place, files);
    world.ls("");
    world.cost();
    world.sh("cp f007 copy");
    assert_eq!(world.cost(), "copy 1, get 1");
    assert_eq!(world.stored("copy").unwrap(), "old");
}

fn cp_r(place: &Place) {
    let world = World::new(place, |objects| tree(objects, "tree/", 1, 200));
    world.ls("");
    world.cost();
    world.sh("cp -r tree/d000 copy");
    // The listing answers for the opens of a quarter of a second, and so does each later one.
    let counts = world.counts().requests;
    assert_eq!((counts["copy"], counts["put"]), (200, 1));
    assert!(counts["get"] + counts["list"] < 100, "{counts:?}");
}
