//! Names: unlinked and replaced while open, renames with flags, directories that change under a
//! reader, and what hangs on an inode beside its bytes.

use crate::harness::{PYTHON, Place, Root, eventually, fails, pattern, trial};
use libtest_mimic::Trial;
use rustix::fs::{CWD, Mode, OFlags, RawDir, RenameFlags, XattrFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            &[Root, PYTHON],
            "names::only_user_attributes_can_be_set",
            only_user_attributes_can_be_set,
        ),
        trial(
            &[],
            "names::an_unlinked_file_lives_while_open",
            an_unlinked_file_lives_while_open,
        ),
        trial(
            &[],
            "names::a_replaced_file_lives_while_open",
            a_replaced_file_lives_while_open,
        ),
        trial(
            &[],
            "names::a_file_is_renamed_while_it_is_written",
            a_file_is_renamed_while_it_is_written,
        ),
        trial(
            &[],
            "names::renameat2_exchanges_and_refuses_to_replace",
            renameat2_exchanges_and_refuses_to_replace,
        ),
        trial(
            &[],
            "names::a_directory_is_renamed_under_open_files",
            a_directory_is_renamed_under_open_files,
        ),
        trial(
            &[],
            "names::a_directory_changes_under_its_reader",
            a_directory_changes_under_its_reader,
        ),
        trial(
            &[],
            "names::a_removed_directory_is_empty",
            a_removed_directory_is_empty,
        ),
        trial(
            &[PYTHON],
            "names::extended_attributes_have_sizes",
            extended_attributes_have_sizes,
        ),
        trial(&[], "names::statfs_tells_room", statfs_tells_room),
        trial(&[], "names::hard_links_are_refused", hard_links_are_refused),
        trial(&[], "names::links_lead_on", links_lead_on),
    ]
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(CWD, from, CWD, to, flags)
}

fn all(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let read = file.read_at(&mut bytes, 0).unwrap();
    bytes.truncate(read);
    bytes
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn an_unlinked_file_lives_while_open(place: &Place) {
    let m = place.file("m", &[]);
    // Stored and clean, stored and dirty, and never committed.
    place.store("clean", b"0123456789");
    place.store("dirty", b"0123456789");
    for name in ["clean", "dirty", "fresh"] {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(m.path(name))
            .unwrap();
        if name != "clean" {
            file.write_all_at(b"0123456789", 0).unwrap();
        }
        std::fs::remove_file(m.path(name)).unwrap();
        assert!(!m.path(name).exists() && place.stored(name).is_err());
        let facts = file.metadata().unwrap();
        assert_eq!((facts.nlink(), facts.size()), (0, 10), "{name}");
        assert_eq!(all(&file), b"0123456789", "{name}");
        file.write_all_at(b"more", 10).unwrap();
        file.sync_all().unwrap();
        file.set_len(12).unwrap();
        assert_eq!(all(&file), b"0123456789mo", "{name}");
        // The name is free for another file.
        std::fs::write(m.path(name), "another").unwrap();
        assert_eq!(all(&file), b"0123456789mo", "{name}");
        drop(file);
        assert_eq!(std::fs::read(m.path(name)).unwrap(), b"another");
        std::fs::remove_file(m.path(name)).unwrap();
    }
    assert_eq!(names_in(&m.path("")), [""; 0]);
    assert_eq!(m.number("dirty_files"), 0);
}

fn a_replaced_file_lives_while_open(place: &Place) {
    let m = place.file("m", &[]);
    let old = pattern(200_000, 1);
    place.store("to", &old);
    let open = File::open(m.path("to")).unwrap();
    std::fs::write(m.path("from"), "new").unwrap();
    std::fs::rename(m.path("from"), m.path("to")).unwrap();
    assert!(all(&open) == old);
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    assert_eq!(std::fs::read(m.path("to")).unwrap(), b"new");
    assert_eq!(place.stored("to").unwrap(), b"new");
    assert!(!m.path("from").exists());
}

fn a_file_is_renamed_while_it_is_written(place: &Place) {
    let m = place.file("m", &[]);
    std::fs::write(m.path("target"), "old").unwrap();
    for to in ["fresh", "target"] {
        let mut file = File::create(m.path("temporary")).unwrap();
        file.write_all(b"first ").unwrap();
        std::fs::rename(m.path("temporary"), m.path(to)).unwrap();
        file.write_all(b"second").unwrap();
        assert_eq!(std::fs::read(m.path(to)).unwrap(), b"first second");
        drop(file);
        assert_eq!(place.stored(to).unwrap(), b"first second");
        assert!(place.stored("temporary").is_err());
    }
    // A stored file, dirty again.
    let file = File::options().write(true).open(m.path("fresh")).unwrap();
    file.write_all_at(b"FIRST", 0).unwrap();
    std::fs::rename(m.path("fresh"), m.path("moved")).unwrap();
    file.write_all_at(b"SECOND", 6).unwrap();
    drop(file);
    assert_eq!(place.stored("moved").unwrap(), b"FIRST SECOND");
    assert_eq!(names_in(&m.path("")), ["moved", "target"]);
}

fn renameat2_exchanges_and_refuses_to_replace(place: &Place) {
    for m in [place.file("file", &[]), place.memory("memory", &[])] {
        let (a, b) = (m.path("a"), m.path("b"));
        std::fs::write(&a, "a").unwrap();
        std::fs::write(&b, "bb").unwrap();
        let open = File::open(&a).unwrap();
        assert_eq!(rename(&a, &b, RenameFlags::NOREPLACE), Err(Errno::EXIST));
        rename(&a, &b, RenameFlags::EXCHANGE).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), b"bb");
        assert_eq!(std::fs::read(&b).unwrap(), b"a");
        assert_eq!(a.metadata().unwrap().size(), 2);
        assert_eq!(all(&open), b"a");
        assert_eq!(open.metadata().unwrap().ino(), b.metadata().unwrap().ino());
        let c = m.path("c");
        assert_eq!(rename(&a, &c, RenameFlags::EXCHANGE), Err(Errno::NOENT));
        rename(&a, &c, RenameFlags::NOREPLACE).unwrap();
        assert_eq!(std::fs::read(&c).unwrap(), b"bb");
        std::fs::write(&c, "written after").unwrap();
        std::fs::write(&b, "and this").unwrap();
        assert_eq!(std::fs::read(&c).unwrap(), b"written after");
        assert_eq!(names_in(&m.path("")), ["b", "c"]);
        let whiteout = rename(&b, &a, RenameFlags::WHITEOUT);
        assert_eq!(whiteout, Err(Errno::INVAL));
    }
}

fn a_directory_is_renamed_under_open_files(place: &Place) {
    let m = place.file("m", &[]);
    std::fs::create_dir_all(m.path("d/e")).unwrap();
    std::fs::write(m.path("d/clean"), "clean").unwrap();
    let clean = File::open(m.path("d/clean")).unwrap();
    let mut dirty = File::create(m.path("d/e/dirty")).unwrap();
    dirty.write_all(b"dirty ").unwrap();
    std::fs::rename(m.path("d"), m.path("moved")).unwrap();
    dirty.write_all(b"still").unwrap();
    drop(dirty);
    assert_eq!(all(&clean), b"clean");
    assert_eq!(std::fs::read(m.path("moved/clean")).unwrap(), b"clean");
    assert_eq!(place.stored("moved/e/dirty").unwrap(), b"dirty still");
    assert!(!m.path("d").exists());
    assert_eq!(
        fails(std::fs::rename(m.path("moved"), m.path("moved/e/x"))),
        libc::EINVAL
    );
}

/// Reads a directory in small pieces, with something to do between the first two of them.
fn read_slowly(dir: &Path, between: impl FnOnce()) -> BTreeMap<String, usize> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty()).unwrap();
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut raw = RawDir::new(&fd, &mut buffer);
    let mut names = BTreeMap::new();
    let mut between = Some(between);
    while let Some(entry) = raw.next() {
        let name = entry.unwrap().file_name().to_str().unwrap().to_owned();
        *names.entry(name).or_default() += 1;
        if raw.is_buffer_empty()
            && let Some(between) = between.take()
        {
            between();
        }
    }
    names
}

fn a_directory_changes_under_its_reader(place: &Place) {
    let m = place.file("m", &[]);
    let dir = m.path("d");
    std::fs::create_dir(&dir).unwrap();
    for i in 0..600 {
        place.store(&format!("d/{i:03}"), b"x");
    }
    let change = || {
        for i in (0..600).filter(|i| i % 3 == 0) {
            std::fs::remove_file(dir.join(format!("{i:03}"))).unwrap();
            std::fs::write(dir.join(format!("new{i:03}")), "y").unwrap();
        }
        std::fs::rename(dir.join("001"), dir.join("renamed")).unwrap();
    };
    let names = read_slowly(&dir, change);
    assert!(names.values().all(|count| *count == 1), "{names:?}");
    for i in (2..600).filter(|i| i % 3 != 0) {
        assert!(names.contains_key(&format!("{i:03}")), "{i}");
    }
    // Whoever begins later sees what is there now.
    let now = names_in(&dir);
    assert_eq!(now.len(), 600);
    assert!(now.contains(&"renamed".to_owned()) && !now.contains(&"003".to_owned()));
    let again = read_slowly(&dir, || {});
    assert_eq!(again.len(), 602, "with . and ..");
    // rm -r reads and removes by turns.
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(!dir.exists() && !place.path("store/d").exists());
}

fn a_removed_directory_is_empty(place: &Place) {
    let m = place.file("m", &[]);
    std::fs::create_dir(m.path("d")).unwrap();
    std::fs::write(m.path("d/f"), "x").unwrap();
    assert_eq!(fails(std::fs::remove_dir(m.path("d"))), libc::ENOTEMPTY);
    std::fs::remove_file(m.path("d/f")).unwrap();
    let open = File::open(m.path("d")).unwrap();
    std::fs::remove_dir(m.path("d")).unwrap();
    let make = rustix::fs::openat(
        &open,
        "g",
        OFlags::CREATE | OFlags::WRONLY,
        Mode::from_raw_mode(0o600),
    );
    assert_eq!(make.err(), Some(Errno::NOENT));
    assert_eq!(
        rustix::fs::Dir::read_from(&open).unwrap().flatten().count(),
        0
    );
    std::fs::create_dir(m.path("d")).unwrap();
    assert_eq!(names_in(&m.path("d")), [""; 0]);
}

fn extended_attributes_have_sizes(place: &Place) {
    let m = place.memory("m", &[]);
    let f = m.path("f");
    std::fs::write(&f, "content").unwrap();
    let none = XattrFlags::empty();
    let large = pattern(60_000, 1);
    rustix::fs::setxattr(&f, "user.small", b"value", none).unwrap();
    rustix::fs::setxattr(&f, "user.large", &large, none).unwrap();
    rustix::fs::setxattr(&f, "user.empty", b"", none).unwrap();
    let get = |name: &str, room: usize| {
        let mut buffer = vec![0u8; room];
        rustix::fs::getxattr(&f, name, &mut buffer[..]).map(|length| {
            buffer.truncate(length);
            buffer
        })
    };
    assert_eq!(rustix::fs::getxattr_query(&f, "user.small"), Ok(5));
    assert_eq!(get("user.small", 5).unwrap(), b"value");
    assert_eq!(get("user.small", 100).unwrap(), b"value");
    assert_eq!(get("user.small", 4).err(), Some(Errno::RANGE));
    assert_eq!(rustix::fs::getxattr_query(&f, "user.large"), Ok(60_000));
    assert!(get("user.large", 65_536).unwrap() == large);
    assert_eq!(get("user.large", 59_999).err(), Some(Errno::RANGE));
    assert_eq!(get("user.empty", 10).unwrap(), b"");
    assert_eq!(get("user.absent", 10).err(), Some(Errno::NODATA));
    let list = |room: usize| {
        let mut buffer = vec![0u8; room];
        rustix::fs::listxattr(&f, &mut buffer[..]).map(|length| {
            buffer.truncate(length);
            buffer
        })
    };
    let names = b"user.empty\0user.large\0user.small\0";
    assert_eq!(rustix::fs::listxattr_query(&f), Ok(names.len()));
    assert_eq!(list(names.len()).unwrap(), names);
    assert_eq!(list(names.len() - 1).err(), Some(Errno::RANGE));
    let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&f, name, value, flags);
    let too_large = vec![0; 65_537];
    assert_eq!(set("user.too", &too_large, none), Err(Errno::TOOBIG));
    let create = set("user.small", b"x", XattrFlags::CREATE);
    assert_eq!(create, Err(Errno::EXIST));
    let replace = set("user.absent", b"x", XattrFlags::REPLACE);
    assert_eq!(replace, Err(Errno::NODATA));
    set("user.small", b"other", XattrFlags::REPLACE).unwrap();
    rustix::fs::removexattr(&f, "user.large").unwrap();
    let gone = rustix::fs::removexattr(&f, "user.large");
    assert_eq!(gone, Err(Errno::NODATA));
    // A rewrite keeps them.
    std::fs::write(&f, "rewritten").unwrap();
    assert_eq!(get("user.small", 100).unwrap(), b"other");
    assert_eq!(std::fs::read(&f).unwrap(), b"rewritten");
}

fn statfs_tells_room(place: &Place) {
    for m in [place.file("file", &[]), place.memory("memory", &[])] {
        let room = rustix::fs::statvfs(m.path("")).unwrap();
        assert!(room.f_blocks > 0 && room.f_bfree > 0 && room.f_bavail > 0);
        assert!(room.f_bfree <= room.f_blocks && room.f_files > 0);
        assert_eq!(room.f_namemax, 255);
        assert!(room.f_bsize.is_power_of_two());
    }
    let file = rustix::fs::statvfs(place.path("file")).unwrap();
    let disk = rustix::fs::statvfs(place.path("store")).unwrap();
    let bytes = |room: &rustix::fs::StatVfs| room.f_blocks * room.f_frsize;
    assert_eq!(bytes(&file) / (1 << 20), bytes(&disk) / (1 << 20));
}

fn hard_links_are_refused(place: &Place) {
    let m = place.file("m", &[]);
    std::fs::write(m.path("f"), "x").unwrap();
    let link = std::fs::hard_link(m.path("f"), m.path("g"));
    assert_eq!(fails(link), libc::EPERM);
    assert!(!m.path("g").exists());
}

fn links_lead_on(place: &Place) {
    let m = place.file("m", &[]);
    std::fs::create_dir(m.path("d")).unwrap();
    std::fs::write(m.path("d/f"), "content").unwrap();
    std::os::unix::fs::symlink("d/f", m.path("link")).unwrap();
    std::os::unix::fs::symlink("absent", m.path("dangling")).unwrap();
    std::os::unix::fs::symlink("loop", m.path("loop")).unwrap();
    let mut text = String::new();
    File::open(m.path("link"))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "content");
    std::fs::write(m.path("link"), "through").unwrap();
    assert_eq!(place.stored("d/f").unwrap(), b"through");
    assert_eq!(fails(File::open(m.path("dangling"))), libc::ENOENT);
    assert_eq!(fails(File::open(m.path("loop"))), libc::ELOOP);
    std::fs::write(m.path("dangling"), "made").unwrap();
    assert_eq!(place.stored("absent").unwrap(), b"made");
    // A link that others change is followed anew.
    std::fs::remove_file(place.path("store/link")).unwrap();
    std::os::unix::fs::symlink("absent", place.path("store/link")).unwrap();
    eventually("the link leads elsewhere", || {
        std::fs::read(m.path("link")).is_ok_and(|bytes| bytes == b"made")
    });
}

fn only_user_attributes_can_be_set(place: &Place) {
    let m = place.memory("m", &[]);
    let said = place.script(
        "
path = sys.argv[1]
open(path, 'w').write('x')
for name, value in (('user.a', b'1'), ('user.large', b'x' * 65536), ('user.larger', b'x' * 65537),
        ('trusted.a', b'1'), ('security.a', b'1'), ('user.bucketfs.key', b'1'), ('user.bucketfs.x', b'1')):
    say(name, attempt(os.setxattr, path, name, value))
say(sorted(os.listxattr(path)))
say(os.getxattr(path, 'user.bucketfs.key'), len(os.getxattr(path, 'user.bucketfs.etag')) > 0)
say(attempt(os.getxattr, path, 'user.bucketfs.error'))
",
        &[&m.path("f")],
    );
    assert_eq!(
        said,
        "\
user.a OK
user.large OK
user.larger E2BIG
trusted.a ENOTSUP
security.a ENOTSUP
user.bucketfs.key EPERM
user.bucketfs.x EPERM
['user.a', 'user.large']
b'f' True
ENODATA"
    );
}
