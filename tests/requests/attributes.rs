//! What stored attributes cost: where they are known, and where they are not yet.

use crate::harness::{Place, Program, pattern};
use crate::world::{Objects, World, list, trial};
use libtest_mimic::Trial;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

pub fn trials() -> Vec<Trial> {
    vec![
        trial(&[], "chmod_and_touch_of_an_unknown_file", unknown),
        trial(&[], "chmod_and_touch_of_a_known_file", known),
        trial(&[], "links_and_attributes_of_new_files", new),
        trial(&[Program("cp")], "cp_p_of_a_large_file", cp_p_large),
        trial(&[Program("chmod")], "chmod_r_of_1000", chmod_r),
        trial(&[Program("rsync")], "rsync_a_of_100", rsync),
        trial(&[Program("tar")], "tar_x_with_modes_and_times", tar_x),
        trial(&[], "ls_of_10000_with_attributes", ls_10000),
        trial(&[Program("find")], "find_without_an_index", find_plain),
    ]
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// As `utime` does it.
fn touch(path: &Path) {
    use nix::sys::stat::{UtimensatFlags, utimensat};
    use nix::sys::time::TimeSpec;
    let now = TimeSpec::UTIME_NOW;
    let at = nix::fcntl::AT_FDCWD;
    utimensat(at, path, &now, &now, UtimensatFlags::FollowSymlink).unwrap();
}

fn seen(path: &Path) -> (u32, i64) {
    let data = fs::symlink_metadata(path).unwrap();
    (data.mode(), data.mtime())
}

fn files(objects: &mut Objects<'_>) {
    for i in 0..200 {
        objects.put(&format!("f{i:03}"), "old");
    }
}

fn unknown(place: &Place) {
    let world = World::new(place, files);
    world.ls("");
    world.cost();
    chmod(&world.path("f007"), 0o600);
    assert_eq!(world.cost(), "copy 1, head 1");
    assert_eq!(seen(&world.path("f007")).0, 0o100_600);
    chmod(&world.path("f007"), 0o640);
    assert_eq!(world.cost(), "copy 1");
    assert_eq!(world.stored("f007").unwrap(), "old");
}

fn known(place: &Place) {
    let world = World::new(place, files);
    world.ls("");
    fs::write(world.path("new"), "bytes").unwrap();
    world.cost();
    // Later than those that follow a close, which wait for each other.
    std::thread::sleep(Duration::from_secs(1));
    chmod(&world.path("new"), 0o600);
    assert_eq!(world.cost(), "copy 1");
    // It opens the file, which asks whether the version is still the store's.
    world.sh("touch -d '2001-02-03 04:05:06' new");
    assert_eq!(world.cost(), "copy 1, get 1");
    assert_eq!(seen(&world.path("new")), (0o100_600, 981_173_106));
    touch(&world.path("new"));
    assert_eq!(world.cost(), "copy 1");
}

fn new(place: &Place) {
    let world = World::new(place, files);
    world.ls("");
    world.cost();
    std::os::unix::fs::symlink("f007", world.path("link")).unwrap();
    assert_eq!(world.cost(), "put 1");
    assert_eq!(world.stored("link").unwrap(), "f007");
    let file = fs::File::create(world.path("file")).unwrap();
    let times = fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(5));
    file.set_permissions(fs::Permissions::from_mode(0o751))
        .unwrap();
    std::io::Write::write_all(&mut &file, b"bytes").unwrap();
    file.set_times(times).unwrap();
    drop(file);
    assert_eq!(world.cost(), "put 1");
    assert_eq!(seen(&world.path("file")), (0o100_751, 5));
}

/// What went ahead does not know the times that follow it.
fn cp_p_large(place: &Place) {
    let world = World::new(place, files);
    world.ls("");
    fs::write(place.path("large"), pattern(32 << 20, 1)).unwrap();
    world.cost();
    world.sh("cp $OUT/large plain");
    assert_eq!(world.cost(), "begin 1, complete 1, part 4");
    world.sh("cp -p $OUT/large kept");
    assert_eq!(world.cost(), "begin 1, complete 1, copy 1, part 4");
    let source = fs::metadata(place.path("large")).unwrap();
    assert_eq!(seen(&world.path("kept")), (source.mode(), source.mtime()));
}

fn chmod_r(place: &Place) {
    let fill = |objects: &mut Objects<'_>| {
        for i in 0..1000 {
            objects.put_with_mode(&format!("d/f{i:04}"), "text", 0o100_640);
        }
    };
    let world = World::new(place, fill);
    // What is told in the second of a change is not believed later.
    std::thread::sleep(Duration::from_secs(2));
    let first = world.another("first", &["--stat-attrs", "full"]);
    first.ls("d");
    std::thread::sleep(Duration::from_secs(2));
    first.end();
    let again = world.again();
    again.sh("chmod -R g-r d");
    // The directory itself has no marker: it gets one of that mode.
    assert_eq!(again.cost(), "copy 1000, get 2, list 1, put 1");
    assert_eq!(seen(&again.path("d/f0007")).0, 0o100_600);
}

/// Each file is put under another name, given its mode and times, and renamed: the copy of the
/// rename carries them.
fn rsync(place: &Place) {
    fs::create_dir(place.path("src")).unwrap();
    for i in 0..100 {
        let file = place.path(&format!("src/f{i:02}"));
        fs::write(&file, format!("{i}")).unwrap();
        chmod(&file, 0o600 + i);
    }
    let world = World::new(place, |_| {});
    world.sh("rsync -a $OUT/src/ dst/");
    let counts = world.counts();
    let count = |kind| counts.requests.get(kind).copied().unwrap_or(0);
    assert_eq!((count("delete"), count("head")), (100, 0), "{counts}");
    assert!(count("put") + count("copy") <= 204, "{counts}");
    assert_eq!(world.sh("rsync -ain $OUT/src/ dst/"), "");
    world.end();
}

fn tar_x(place: &Place) {
    for i in 0..500 {
        let dir = place.path(&format!("src/d{:02}", i / 50));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join(format!("f{:02}.c", i % 50));
        fs::write(&file, format!("{i}\n")).unwrap();
        chmod(&file, 0o600 + i % 8);
    }
    let world = World::new(place, |_| {});
    world.sh("tar cf $OUT/src.tar -C $OUT src; tar xpf $OUT/src.tar");
    let counts = world.counts();
    let all: u64 = counts.requests.values().sum();
    assert!(all <= 550, "{counts}");
    world.sh("tar df $OUT/src.tar");
    world.end();
}

fn ls_10000(place: &Place) {
    let fill = |objects: &mut Objects<'_>| {
        for i in 0..10_000 {
            objects.put_with_mode(&format!("d/f{i:05}"), "text", 0o100_000 + i % 0o1000);
        }
    };
    let world = World::new(place, fill);
    // What is told in the second of a change is not believed later.
    std::thread::sleep(Duration::from_secs(2));
    let first = world.another("first", &["--stat-attrs", "full"]);
    assert_eq!(first.ls("d"), 10_000);
    std::thread::sleep(Duration::from_secs(2));
    first.end();
    let again = world.again();
    again.ls("");
    again.cost();
    assert_eq!(list(&again.path("d")), 10_000);
    assert_eq!(again.cost(), "get 2, list 10");
    assert_eq!(
        seen(&again.path("d/f00420")),
        (0o100_000 + 420, 981_173_106)
    );
    assert_eq!(again.cost(), "");
}

/// Attributes that nobody has asked for cost nothing.
fn find_plain(place: &Place) {
    let world = World::new(place, |objects| {
        for i in 0..500 {
            objects.put_with_mode(&format!("d{}/f{i}", i % 5), "text", 0o100_600);
        }
    });
    assert_eq!(world.sh("find . -type f -size -9 | wc -l").trim(), "500");
    assert_eq!(world.cost(), "list 2");
}
