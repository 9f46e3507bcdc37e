//! What programs cost that do many operations, and why it cannot be less.

use crate::harness::{Place, Program};
use crate::rows::tree;
use crate::world::{World, trial};
use libtest_mimic::Trial;
use std::fs;

pub fn trials() -> Vec<Trial> {
    vec![
        trial(&[Program("git")], "git_status", git_status),
        trial(&[Program("rsync")], "rsync_of_unchanged_files", rsync),
        trial(&[Program("tar")], "tar_x", tar_x),
        trial(&[Program("du")], "du", du),
        trial(&[Program("cp")], "cp_r_of_100", cp_r),
        trial(&[], "save_as_vim_does", save),
    ]
}

/// Files of a program outside of the mount, in directories of 50.
fn sources(place: &Place, count: usize) {
    for i in 0..count {
        let dir = place.path(&format!("src/d{:02}", i / 50));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("f{:02}.c", i % 50)), format!("{i}\n")).unwrap();
    }
}

fn git_status(place: &Place) {
    sources(place, 200);
    let world = World::new(place, |_| {});
    let git = "git -c user.name=b -c user.email=b@localhost -c init.defaultBranch=main";
    world.sh(&format!(
        "(cd $OUT/src && {git} init -q . && {git} add . && {git} commit -qm x); {git} clone -q --no-local $OUT/src c
        sleep 1.1; {git} -C c status -s"
    ));
    let again = world.again();
    assert_eq!(again.sh(&format!("{git} -C c status -s")), "");
    // What git reads and asks for of its own, `index.lock`, and pages of all names: times and sizes
    // are those that git's index knows, so that no file is read. The first mount has written no
    // index of attributes yet, so that files beside one that was read are asked for theirs.
    let cost = again.counts();
    let count = |kind| cost.requests.get(kind).copied().unwrap_or(0);
    assert!(
        count("get") < 40 && count("list") < 20 && count("head") < 20,
        "{cost}"
    );
    assert!(count("put") <= 2 && count("delete") <= 1, "{cost}");
}

fn rsync(place: &Place) {
    sources(place, 500);
    let world = World::new(place, |objects| {
        for i in 0..500 {
            let key = format!("dst/d{:02}/f{:02}.c", i / 50, i % 50);
            objects.put(&key, format!("{i}\n"));
        }
    });
    world.sh("rsync -r --size-only $OUT/src/ dst/");
    // `dst`, and one page of all that is below it.
    assert_eq!(world.cost(), "get 1, list 1");
}

fn tar_x(place: &Place) {
    sources(place, 500);
    let world = World::new(place, |_| {});
    world.sh(
        "tar cf $OUT/src.tar -C $OUT src; tar xf $OUT/src.tar --touch --no-same-owner --no-same-permissions",
    );
    // Each file and each directory is an object; nobody else can tell that they are not there yet.
    assert_eq!(world.cost(), "get 1, list 1, put 511");
}

fn du(place: &Place) {
    let world = World::new(place, |objects| tree(objects, "", 50, 100));
    world.sh("du -s .");
    // The directories of the root, and then five pages of all keys.
    assert_eq!(world.cost(), "list 6");
}

fn cp_r(place: &Place) {
    let world = World::new(place, |objects| tree(objects, "", 1, 100));
    world.ls("");
    world.cost();
    world.sh("cp -r d000 copy");
    // Each file is copied on the server. What was listed a moment ago is not asked for again.
    let counts = world.counts().requests;
    assert_eq!((counts["copy"], counts["put"]), (100, 1));
    assert!(counts["get"] + counts["list"] < 50, "{counts:?}");
}

/// The steps of vim with `backup` off: a probe, the old file aside, a new one, the old one away.
fn save(place: &Place) {
    let world = World::new(place, |objects| objects.put("f", "line\n"));
    world.ls("");
    world.cost();
    world.sh("cat f >/dev/null; mv f f~; echo other >f; rm f~");
    assert_eq!(world.cost(), "copy 1, delete 2, get 1, put 1");
}
