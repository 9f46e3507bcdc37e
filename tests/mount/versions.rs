//! Two mounts of one store: what each sees of the other's changes, through the kernel's caches.

use crate::harness::{
    Mount, Need, PYTHON, Place, eventually, fails, pattern, trial, trial_alone, trial_unwatched,
};
use libtest_mimic::Trial;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// A test's needs, its name and itself.
type Test = (&'static [Need], &'static str, fn(&Place));

/// Both with a store that tells what changes in it, and with one that does not.
const TESTS: &[Test] = &[
    (
        &[],
        "an_open_file_keeps_its_version",
        an_open_file_keeps_its_version,
    ),
    (
        &[],
        "a_version_that_is_gone_is_never_mixed",
        a_version_that_is_gone_is_never_mixed,
    ),
    (
        &[],
        "reads_see_a_new_version_at_open",
        reads_see_a_new_version_at_open,
    ),
    (
        &[],
        "opens_side_by_side_see_a_new_version",
        opens_side_by_side_see_a_new_version,
    ),
    (
        &[PYTHON],
        "mappings_see_a_new_version_at_open",
        mappings_see_a_new_version_at_open,
    ),
    (
        &[PYTHON],
        "mappings_keep_the_version_that_they_are_of",
        mappings_keep_the_version_that_they_are_of,
    ),
    (
        &[],
        "stat_follows_within_the_ttl",
        stat_follows_within_the_ttl,
    ),
    (
        &[],
        "absent_names_appear_within_the_ttl",
        absent_names_appear_within_the_ttl,
    ),
    (
        &[],
        "names_that_went_are_not_opened",
        names_that_went_are_not_opened,
    ),
    (
        &[],
        "a_released_lock_is_seen_at_once",
        a_released_lock_is_seen_at_once,
    ),
    (
        &[],
        "an_exclusive_create_has_one_winner",
        an_exclusive_create_has_one_winner,
    ),
    (
        &[],
        "what_a_lock_protects_is_read_fresh",
        what_a_lock_protects_is_read_fresh,
    ),
    (
        &[PYTHON],
        "the_later_of_two_writers_keeps_its_bytes_aside",
        the_later_of_two_writers_keeps_its_bytes_aside,
    ),
    (
        &[PYTHON],
        "appenders_on_two_mounts_lose_no_line",
        appenders_on_two_mounts_lose_no_line,
    ),
    (
        &[],
        "a_directory_removed_elsewhere_is_gone",
        a_directory_removed_elsewhere_is_gone,
    ),
];

pub fn trials() -> Vec<Trial> {
    let watched = TESTS.iter().map(|(needs, name, test)| {
        let name = format!("versions::{name}");
        trial(needs, &name, *test)
    });
    let unwatched = TESTS.iter().map(|(needs, name, test)| {
        let name = format!("versions::unwatched::{name}");
        trial_unwatched(needs, &name, *test)
    });
    let name = "versions::unchanged_pages_are_kept";
    let alone = trial_alone(&[], name, unchanged_pages_are_kept);
    watched.chain(unwatched).chain([alone]).collect()
}

fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut at = 0;
    while at < length {
        match file.read_at(&mut bytes[at..], offset + at as u64)? {
            0 => break,
            read => at += read,
        }
    }
    bytes.truncate(at);
    Ok(bytes)
}

fn an_open_file_keeps_its_version(place: &Place) {
    let (a, b) = (place.file("a", &[]), place.file("b", &[]));
    let versions = [pattern(300_000, 1), pattern(500_000, 2), pattern(100, 3)];
    let mut open: Vec<(File, &[u8], u64)> = Vec::new();
    for version in &versions {
        std::fs::write(a.path("f"), version).unwrap();
        let file = File::open(b.path("f")).unwrap();
        let ino = file.metadata().unwrap().ino();
        assert!(open.iter().all(|(_, _, other)| *other != ino));
        assert_eq!(read_at(&file, 0, 1 << 20).unwrap(), *version);
        open.push((file, version, ino));
        // Every older descriptor is what it was: number, size and bytes.
        for (file, version, ino) in &open {
            let facts = file.metadata().unwrap();
            assert_eq!((facts.ino(), facts.size()), (*ino, version.len() as u64));
            assert_eq!(read_at(file, 0, 1 << 20).unwrap(), **version);
        }
        assert_eq!(std::fs::metadata(b.path("f")).unwrap().ino(), ino);
    }
}

fn a_version_that_is_gone_is_never_mixed(place: &Place) {
    const SIZE: usize = 24 << 20;
    let (a, b) = (place.file("a", &[]), place.file("b", &["--memory", "1M"]));
    let old = pattern(SIZE, 1);
    place.store("f", &old);
    let file = File::open(b.path("f")).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    assert_eq!(read_at(&file, 0, 4096).unwrap(), old[..4096]);
    std::fs::write(a.path("f"), pattern(SIZE, 2)).unwrap();
    // What was not fetched cannot be had any more; what was may be told.
    let mut stale = 0;
    for offset in (0..SIZE).step_by(1 << 20) {
        match read_at(&file, offset as u64, 4096) {
            Ok(bytes) => assert!(bytes == old[offset..offset + 4096], "at {offset}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
                stale += 1;
            }
        }
    }
    assert!(stale > 0);
    let fresh = File::open(b.path("f")).unwrap();
    assert!(read_at(&fresh, 0, SIZE).unwrap() == pattern(SIZE, 2));
}

/// Contents that grow, shrink, stay as long, and vanish.
fn contents() -> Vec<Vec<u8>> {
    [10_000, 300_000, 5_000, 5_000, 0, 4096, 4097]
        .into_iter()
        .enumerate()
        .map(|(seed, length)| pattern(length, seed as u32))
        .collect()
}

/// Changes a file in three ways, by turns.
fn change(place: &Place, a: &Mount, turn: usize, content: &[u8]) {
    match turn % 3 {
        0 => std::fs::write(a.path("f"), content).unwrap(),
        1 => {
            std::fs::write(a.path("fresh"), content).unwrap();
            std::fs::rename(a.path("fresh"), a.path("f")).unwrap();
        }
        _ => {
            place.store("f", content);
            // Until it knows, the other mount's next overwrite would be refused.
            assert!(std::fs::read(a.path("f")).unwrap() == content);
        }
    }
}

fn reads_see_a_new_version_at_open(place: &Place) {
    let (a, b) = (place.file("a", &[]), place.file("b", &[]));
    for (turn, content) in contents().iter().enumerate() {
        change(place, &a, turn, content);
        assert!(std::fs::read(b.path("f")).unwrap() == *content, "{turn}");
        assert!(std::fs::read(b.path("f")).unwrap() == *content, "{turn}");
    }
}

fn opens_side_by_side_see_a_new_version(place: &Place) {
    let b = place.file("b", &[]);
    for round in 0..40 {
        // Longer, shorter, as long.
        let length = 100_000 + [0, 50_000, 0, 0, 70_000][round % 5];
        let content = pattern(length, round as u32);
        place.store("f", &content);
        let start = Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    let file = File::open(b.path("f")).unwrap();
                    assert!(read_at(&file, 0, 1 << 20).unwrap() == content, "{round}");
                    let size = file.metadata().unwrap().size();
                    assert_eq!(size, length as u64, "{round}");
                });
            }
        });
    }
}

fn mappings_see_a_new_version_at_open(place: &Place) {
    let (a, b) = (place.file("a", &[]), place.file("b", &[]));
    let mut mapper = place.start(
        place
            .python(
                "
for line in sys.stdin:
    fd = os.open(sys.argv[1], os.O_RDONLY)
    size = os.fstat(fd).st_size
    data = b''
    if size:
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as m:
            data = m[:]
    os.close(fd)
    say(data.hex())
",
                &[&b.path("f")],
            )
            .stdin(std::process::Stdio::piped()),
    );
    let mut stdin = mapper.stdin();
    for (turn, content) in contents().iter().enumerate() {
        change(place, &a, turn, content);
        stdin.write_all(b"\n").unwrap();
        let hex: String = content.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(mapper.line() == hex, "{turn}");
    }
    drop(stdin);
    assert_eq!(mapper.end().code, Some(0));
}

/// Each version that was mapped is looked at again beside all later ones, without what the page
/// cache may still hold.
fn mappings_keep_the_version_that_they_are_of(place: &Place) {
    let (a, b) = (place.file("a", &[]), place.file("b", &[]));
    let mut mapper = place.start(
        place
            .python(
                "
maps = []
for line in sys.stdin:
    fd = os.open(sys.argv[1], os.O_RDONLY)
    size = os.fstat(fd).st_size
    if size:
        maps.append((fd, mmap.mmap(fd, size, prot=mmap.PROT_READ)))
    for fd, m in maps:
        m.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.fstat(fd).st_size == len(m)
    say(' '.join(m[:].hex() for fd, m in maps))
",
                &[&b.path("f")],
            )
            .stdin(std::process::Stdio::piped()),
    );
    let mut stdin = mapper.stdin();
    let mut mapped = Vec::new();
    for (turn, content) in contents().iter().enumerate() {
        change(place, &a, turn, content);
        stdin.write_all(b"\n").unwrap();
        let hex: String = content.iter().map(|byte| format!("{byte:02x}")).collect();
        mapped.extend(Some(hex).filter(|hex| !hex.is_empty()));
        assert!(mapper.line() == mapped.join(" "), "{turn}");
    }
    drop(stdin);
    assert_eq!(mapper.end().code, Some(0));
}

fn unchanged_pages_are_kept(place: &Place) {
    const SIZE: usize = 4 << 20;
    // Hardly any memory of its own: what is not in the pages is fetched again.
    let b = place.file("b", &["--memory", "1M"]);
    let content = pattern(SIZE, 7);
    place.store("f", &content);
    assert!(std::fs::read(b.path("f")).unwrap() == content);
    assert!(b.received() >= SIZE as u64);
    // The store's own news of the file may come late, and be taken for another change.
    std::thread::sleep(Duration::from_millis(500));
    assert!(std::fs::read(b.path("f")).unwrap() == content);
    let mut received = b.received();
    eventually("what is fetched ahead has come", || {
        std::thread::sleep(Duration::from_millis(200));
        let before = std::mem::replace(&mut received, b.received());
        before == received
    });
    for _ in 0..3 {
        assert!(std::fs::read(b.path("f")).unwrap() == content);
    }
    assert_eq!(b.received(), received, "the pages of an unchanged file");
    // Own writes are in the pages already, unless the store's news of them comes before its answer.
    let kept = (0..5).any(|i| {
        let received = b.received();
        let own = b.path(&format!("own{i}"));
        std::fs::write(&own, &content).unwrap();
        assert!(std::fs::read(&own).unwrap() == content);
        b.received() == received
    });
    assert!(kept, "the pages of an own file");
    place.store("f", &pattern(SIZE, 8));
    assert!(std::fs::read(b.path("f")).unwrap() == pattern(SIZE, 8));
    assert!(b.received() >= received + SIZE as u64);
}

fn stat_follows_within_the_ttl(place: &Place) {
    let (a, b) = (place.file("a", &[]), place.file("b", &[]));
    for length in [3, 70_000, 1] {
        std::fs::write(a.path("f"), vec![b'x'; length]).unwrap();
        eventually("the size is seen", || {
            std::fs::metadata(b.path("f")).is_ok_and(|facts| facts.size() == length as u64)
        });
    }
    a.path("f").metadata().unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(a.path("f"), std::fs::Permissions::from_mode(0o604)).unwrap();
    eventually("the mode is seen", || {
        b.path("f").metadata().unwrap().mode() & 0o777 == 0o604
    });
    // Even while the file is open there.
    let open = File::open(b.path("f")).unwrap();
    std::fs::write(a.path("f"), "longer").unwrap();
    eventually("the name leads to the new version", || {
        b.path("f").metadata().unwrap().size() == 6
    });
    assert_eq!(open.metadata().unwrap().size(), 1);
}

fn absent_names_appear_within_the_ttl(place: &Place) {
    let (a, b) = (place.file("a", &[]), place.file("b", &[]));
    for name in ["file", "dir/file", "dir/deeper/file"] {
        let (there, here) = (a.path(name), b.path(name));
        assert_eq!(fails(here.metadata()), libc::ENOENT);
        assert_eq!(fails(File::open(&here)), libc::ENOENT);
        std::fs::create_dir_all(there.parent().unwrap()).unwrap();
        std::fs::write(&there, name).unwrap();
        let began = Instant::now();
        eventually("the name appears", || here.exists());
        assert!(began.elapsed() < Duration::from_secs(3));
        assert_eq!(std::fs::read(&here).unwrap(), name.as_bytes());
        let parent = here.parent().unwrap();
        let listed = std::fs::read_dir(parent).unwrap();
        assert!(listed.flatten().any(|entry| entry.path() == here));
    }
}

fn names_that_went_are_not_opened(place: &Place) {
    let (a, b) = (place.file("a", &[]), place.file("b", &[]));
    for _ in 0..5 {
        std::fs::write(a.path("f"), "here").unwrap();
        eventually("the name appears", || b.path("f").exists());
        assert_eq!(std::fs::read(b.path("f")).unwrap(), b"here");
        std::fs::remove_file(a.path("f")).unwrap();
        // Close-to-open: at once, whatever is cached.
        assert_eq!(fails(File::open(b.path("f"))), libc::ENOENT);
        eventually("the name goes", || !b.path("f").exists());
    }
}

fn claim(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).open(path)
}

fn a_released_lock_is_seen_at_once(place: &Place) {
    let mounts = [place.file("a", &[]), place.file("b", &[])];
    for round in 0..20 {
        let (holder, other) = (&mounts[round % 2], &mounts[(round + 1) % 2]);
        let mine = claim(&holder.path("job.lock")).unwrap();
        assert_eq!(fails(claim(&other.path("job.lock"))), libc::EEXIST);
        assert!(other.path("job.lock").exists(), "{round}");
        drop(mine);
        std::fs::remove_file(holder.path("job.lock")).unwrap();
        assert!(!other.path("job.lock").exists(), "{round}");
    }
}

fn an_exclusive_create_has_one_winner(place: &Place) {
    let mounts = [place.file("a", &[]), place.file("b", &[])];
    for (round, name) in ["x.lock", "y.lock", "z.pid", ".#w", "x.lock"]
        .iter()
        .enumerate()
    {
        let paths: Vec<_> = (0..8).map(|i| mounts[i % 2].path(name)).collect();
        let start = Barrier::new(paths.len());
        let wins = std::thread::scope(|scope| {
            let claims: Vec<_> = paths
                .iter()
                .map(|path| {
                    scope.spawn(|| {
                        start.wait();
                        claim(path).map(drop)
                    })
                })
                .collect();
            claims
                .into_iter()
                .map(|claim| claim.join().unwrap())
                .filter(|claim| match claim {
                    Ok(()) => true,
                    Err(error) => {
                        assert_eq!(error.raw_os_error(), Some(libc::EEXIST), "{round}");
                        false
                    }
                })
                .count()
        });
        assert_eq!(wins, 1, "{round}");
        std::fs::remove_file(mounts[round % 2].path(name)).unwrap();
    }
    // Within a mount that holds for every name.
    let path = mounts[0].path("plain");
    let wins = std::thread::scope(|scope| {
        let claims: Vec<_> = (0..8).map(|_| scope.spawn(|| claim(&path))).collect();
        // The winner stays open until all have tried.
        let results: Vec<_> = claims
            .into_iter()
            .map(|claim| claim.join().unwrap())
            .collect();
        results.iter().filter(|result| result.is_ok()).count()
    });
    assert_eq!(wins, 1);
}

fn what_a_lock_protects_is_read_fresh(place: &Place) {
    let mounts = [place.file("a", &[]), place.file("b", &[])];
    std::fs::write(mounts[0].path("counter"), "0").unwrap();
    const ROUNDS: usize = 15;
    std::thread::scope(|scope| {
        for mount in &mounts {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    let lock = mount.path("counter.lock");
                    eventually("the lock is free", || match claim(&lock) {
                        Ok(_) => true,
                        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => false,
                        Err(error) => panic!("{}: {error}", lock.display()),
                    });
                    let counter = mount.path("counter");
                    let mut text = String::new();
                    let mut file = File::open(&counter).unwrap();
                    file.read_to_string(&mut text).unwrap();
                    let next = text.parse::<usize>().unwrap() + 1;
                    std::fs::write(&counter, next.to_string()).unwrap();
                    std::fs::remove_file(&lock).unwrap();
                }
            });
        }
    });
    let total = (2 * ROUNDS).to_string();
    assert_eq!(place.stored("counter").unwrap(), total.as_bytes());
}

fn the_later_of_two_writers_keeps_its_bytes_aside(place: &Place) {
    let (a, b) = (place.file("a", &[]), place.file("b", &[]));
    std::fs::write(a.path("f"), "base").unwrap();
    let mut writer = place.start(
        place
            .python(
                "
fd = os.open(sys.argv[1], os.O_RDWR)
os.pread(fd, 100, 0)
os.pwrite(fd, b'B', 0)
say('open')
sys.stdin.readline()
say(attempt(os.close, fd))
",
                &[&b.path("f")],
            )
            .stdin(std::process::Stdio::piped()),
    );
    assert_eq!(writer.line(), "open");
    std::fs::write(a.path("f"), "A's version").unwrap();
    drop(writer.stdin());
    assert_eq!(writer.line(), "ESTALE");
    assert_eq!(writer.end().code, Some(0));
    assert_eq!(std::fs::read(b.path("f")).unwrap(), b"A's version");
    for mount in [&a, &b] {
        eventually("the conflict file is listed", || {
            let mut names = std::fs::read_dir(mount.path("")).unwrap().flatten();
            names.any(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                name.starts_with("f.conflict-") && std::fs::read(entry.path()).unwrap() == b"Base"
            })
        });
    }
    assert_eq!(b.status()["fs"]["conflicts"][0]["path"], "f");
}

fn appenders_on_two_mounts_lose_no_line(place: &Place) {
    let mounts = [place.file("a", &[]), place.file("b", &[])];
    const WRITERS: usize = 4;
    const LINES: usize = 20;
    std::fs::write(mounts[0].path("log"), "").unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|i| {
            let name = format!("w{i}");
            place.start(&mut place.python(
                &format!(
                    "
for i in range({LINES}):
    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
    os.write(fd, (sys.argv[2] + ' %d\\n' % i).encode())
    os.close(fd)
"
                ),
                &[&mounts[i % 2].path("log"), Path::new(&name)],
            ))
        })
        .collect();
    for writer in writers {
        let said = writer.end();
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    let text = String::from_utf8(place.stored("log").unwrap()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), WRITERS * LINES, "{text}");
    for writer in 0..WRITERS {
        let own = lines
            .iter()
            .filter(|line| line.starts_with(&format!("w{writer} ")));
        let expected = (0..LINES).map(|i| format!("w{writer} {i}"));
        assert!(own.copied().eq(expected), "{text}");
    }
    for mount in &mounts {
        assert_eq!(std::fs::read_to_string(mount.path("log")).unwrap(), text);
    }
}

fn a_directory_removed_elsewhere_is_gone(place: &Place) {
    let (a, b) = (place.file("a", &[]), place.file("b", &[]));
    std::fs::create_dir(a.path("d")).unwrap();
    std::fs::write(a.path("d/f"), "x").unwrap();
    eventually("the directory appears", || b.path("d/f").exists());
    std::fs::remove_dir_all(a.path("d")).unwrap();
    eventually("the directory goes", || {
        !b.path("d/f").exists() && !b.path("d").exists()
    });
    std::fs::create_dir(b.path("d")).unwrap();
    std::fs::write(b.path("d/g"), "y").unwrap();
    eventually("and comes back", || {
        std::fs::read(a.path("d/g")).is_ok_and(|bytes| bytes == b"y")
    });
}
