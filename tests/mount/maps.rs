//! Mappings: private, shared, and what is stored through them after close.

use crate::harness::{PYTHON, Place, eventually, trial};
use libtest_mimic::Trial;

pub fn trials() -> Vec<Trial> {
    let needs = &[PYTHON];
    vec![
        trial(
            needs,
            "maps::msync_commits_a_shared_mapping",
            msync_commits_a_shared_mapping,
        ),
        trial(
            needs,
            "maps::stores_after_close_are_committed_at_the_end",
            stores_after_close_are_committed_at_the_end,
        ),
        trial(
            needs,
            "maps::close_commits_what_a_mapping_stored",
            close_commits_what_a_mapping_stored,
        ),
        trial(
            needs,
            "maps::a_private_mapping_changes_nothing",
            a_private_mapping_changes_nothing,
        ),
        trial(
            needs,
            "maps::mappings_and_reads_agree",
            mappings_and_reads_agree,
        ),
        trial(
            needs,
            "maps::a_mapping_of_an_appended_file_stores_in_place",
            a_mapping_of_an_appended_file_stores_in_place,
        ),
        trial(
            needs,
            "maps::a_mapping_outlives_its_name",
            a_mapping_outlives_its_name,
        ),
    ]
}

fn msync_commits_a_shared_mapping(place: &Place) {
    let m = place.file("m", &[]);
    std::fs::write(m.path("f"), vec![b'-'; 10_000]).unwrap();
    place.script(
        "
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 10000)
m[5000:5003] = b'new'
m[0:1] = b'N'
m.flush()
say(open(sys.argv[2], 'rb').read()[5000:5003])
m.close()
os.close(fd)
",
        &[&m.path("f"), &place.path("store/f")],
    );
    let mut expected = vec![b'-'; 10_000];
    expected[5000..5003].copy_from_slice(b"new");
    expected[0] = b'N';
    assert!(place.stored("f").unwrap() == expected);
    assert!(std::fs::read(m.path("f")).unwrap() == expected);
}

fn stores_after_close_are_committed_at_the_end(place: &Place) {
    let m = place.file("m", &[]);
    std::fs::write(m.path("f"), "0123456789").unwrap();
    place.script(
        "
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 10)
m[0:1] = b'A'
os.close(fd)
m[9:10] = b'Z'
m.close()
",
        &[&m.path("f")],
    );
    eventually("the release commits", || {
        place.stored("f").unwrap() == b"A12345678Z"
    });
    assert_eq!(std::fs::read(m.path("f")).unwrap(), b"A12345678Z");
    // Without munmap: the end of the process does it.
    place.script(
        "
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 10)
os.close(fd)
m[4:6] = b'##'
os._exit(0)
",
        &[&m.path("f")],
    );
    eventually("the release commits", || {
        place.stored("f").unwrap() == b"A123##678Z"
    });
}

fn close_commits_what_a_mapping_stored(place: &Place) {
    let m = place.file("m", &[]);
    let said = place.script(
        "
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8192)
m = mmap.mmap(fd, 8192)
m[4096:4100] = b'page'
m.close()
os.close(fd)
data = open(sys.argv[2], 'rb').read()
say(len(data), data[4096:4100].decode())
",
        &[&m.path("f"), &place.path("store/f")],
    );
    assert_eq!(said, "8192 page");
}

fn a_private_mapping_changes_nothing(place: &Place) {
    let m = place.file("m", &[]);
    std::fs::write(m.path("f"), "content").unwrap();
    let puts = m.requests("put");
    let said = place.script(
        "
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 7, flags=mmap.MAP_PRIVATE)
m[0:3] = b'CON'
say(m[:].decode(), os.pread(fd, 7, 0).decode())
m.close()
os.close(fd)
",
        &[&m.path("f")],
    );
    assert_eq!(said, "CONtent content");
    assert_eq!(std::fs::read(m.path("f")).unwrap(), b"content");
    assert_eq!(m.requests("put"), puts);
}

fn mappings_and_reads_agree(place: &Place) {
    let m = place.file("m", &[]);
    std::fs::write(m.path("f"), vec![b'.'; 20_000]).unwrap();
    let said = place.script(
        "
fd = os.open(sys.argv[1], os.O_RDWR)
other = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 20000)
say(m[9000:9003])
os.pwrite(other, b'one', 9000)
say(m[9000:9003])
m[9003:9006] = b'two'
say(os.pread(other, 6, 9000))
os.ftruncate(other, 9002)
os.ftruncate(other, 20000)
say(m[9000:9004])
",
        &[&m.path("f")],
    );
    assert_eq!(said, "b'...'\nb'one'\nb'onetwo'\nb'on\\x00\\x00'");
    eventually("the end commits", || {
        place.stored("f").unwrap()[9000..9004] == *b"on\0\0"
    });
}

fn a_mapping_of_an_appended_file_stores_in_place(place: &Place) {
    let m = place.file("m", &[]);
    std::fs::write(m.path("f"), "0123456789").unwrap();
    place.script(
        "
fd = os.open(sys.argv[1], os.O_RDWR | os.O_APPEND)
m = mmap.mmap(fd, 10)
m[2:4] = b'XY'
m.flush()
os.write(fd, b'+end')
m.close()
os.close(fd)
",
        &[&m.path("f")],
    );
    assert_eq!(place.stored("f").unwrap(), b"01XY456789+end");
}

fn a_mapping_outlives_its_name(place: &Place) {
    let m = place.file("m", &[]);
    std::fs::write(m.path("f"), "0123456789").unwrap();
    let said = place.script(
        "
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 10)
os.close(fd)
os.unlink(sys.argv[1])
m[0:1] = b'A'
m.flush()
say(m[:].decode())
m.close()
",
        &[&m.path("f")],
    );
    assert_eq!(said, "A123456789");
    assert!(place.stored("f").is_err());
    eventually("nothing is held", || m.number("handles") == 0);
    assert!(place.stored("f").is_err());
}
