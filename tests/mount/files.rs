//! Open files of one mount: writing, descriptors, holes, copies, locks.

use crate::harness::{PYTHON, Place, Program, eventually, fails, pattern, trial, trial_alone};
use libtest_mimic::Trial;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, SeekFrom};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            &[PYTHON],
            "files::truncate_cuts_and_extends",
            truncate_cuts_and_extends,
        ),
        trial(&[PYTHON], "files::every_close_commits", every_close_commits),
        trial(
            &[PYTHON],
            "files::appenders_lose_no_line",
            appenders_lose_no_line,
        ),
        trial(&[], "files::o_direct_is_tolerated", o_direct_is_tolerated),
        trial(&[], "files::holes_are_found", holes_are_found),
        trial(
            &[],
            "files::punched_ranges_are_zeros",
            punched_ranges_are_zeros,
        ),
        trial(
            &[Program("cp")],
            "files::cp_copies_on_the_server",
            cp_copies_on_the_server,
        ),
        trial(
            &[],
            "files::sendfile_reads_and_writes",
            sendfile_reads_and_writes,
        ),
        trial(
            &[PYTHON, Program("cp")],
            "files::programs_run_from_the_mount",
            programs_run_from_the_mount,
        ),
        trial(
            &[Program("flock")],
            "files::flock_excludes_other_processes",
            flock_excludes_other_processes,
        ),
        trial(
            &[PYTHON],
            "files::fcntl_locks_exclude_other_processes",
            fcntl_locks_exclude_other_processes,
        ),
        trial(
            &[],
            "files::a_large_file_goes_round",
            a_large_file_goes_round,
        ),
        trial(
            &[PYTHON],
            "files::readers_see_unclosed_writes",
            readers_see_unclosed_writes,
        ),
        trial(
            &[],
            "files::a_read_only_mount_refuses_changes",
            a_read_only_mount_refuses_changes,
        ),
        trial_alone(
            &[crate::harness::Root],
            "files::handles_leak_nothing",
            handles_leak_nothing,
        ),
    ]
}

fn truncate_cuts_and_extends(place: &Place) {
    let m = place.file("m", &[]);
    let content = pattern(100_000, 1);
    // By a path, of a file that nobody has open: committed when the call returns.
    place.store("f", &content);
    assert_eq!(truncate(place, &m.path("f"), "50000"), "OK");
    assert!(place.stored("f").unwrap() == content[..50_000]);
    assert_eq!(truncate(place, &m.path("f"), "60000"), "OK");
    let mut expected = content[..50_000].to_vec();
    expected.resize(60_000, 0);
    assert!(place.stored("f").unwrap() == expected);
    assert!(std::fs::read(m.path("f")).unwrap() == expected);
    // By a descriptor, while another is open.
    let other = File::open(m.path("f")).unwrap();
    let file = File::options().write(true).open(m.path("f")).unwrap();
    file.set_len(10).unwrap();
    assert_eq!(other.metadata().unwrap().size(), 10);
    file.set_len(20).unwrap();
    file.write_all_at(b"end", 20).unwrap();
    drop(file);
    let mut expected = content[..10].to_vec();
    expected.resize(20, 0);
    expected.extend_from_slice(b"end");
    assert_eq!(place.stored("f").unwrap(), expected);
    let mut read = Vec::new();
    (&other).read_to_end(&mut read).unwrap();
    assert_eq!(read, expected);
    // O_TRUNC, and nothing written.
    File::create(m.path("f")).unwrap();
    assert_eq!(place.stored("f").unwrap(), b"");
    assert_eq!(truncate(place, &m.path("f"), "0"), "OK");
    assert_eq!(truncate(place, &m.path("absent"), "0"), "ENOENT");
    std::fs::create_dir(m.path("d")).unwrap();
    assert_eq!(truncate(place, &m.path("d"), "0"), "EISDIR");
}

/// truncate(2): a length set by a path. Gives "OK" or the name of the errno.
fn truncate(place: &Place, path: &Path, size: &str) -> String {
    let script = "say(attempt(os.truncate, sys.argv[1], int(sys.argv[2])))";
    place.script(script, &[path, Path::new(size)])
}

fn every_close_commits(place: &Place) {
    let m = place.file("m", &[]);
    let said = place.script(
        "
path, stored = sys.argv[1:]
def there():
    return open(stored).read() if os.path.exists(stored) else None
fd = os.open(path, os.O_WRONLY | os.O_CREAT)
os.write(fd, b'one ')
say(there())
other = os.dup(fd)
os.close(other)
say(there())
os.write(fd, b'two ')
pid = os.fork()
if pid == 0:
    os.write(fd, b'child ')
    os._exit(0)
os.waitpid(pid, 0)
say(there())
os.write(fd, b'three')
os.fsync(fd)
say(there())
os.close(fd)
say(there())
say(attempt(os.close, fd))
",
        &[&m.path("f"), &place.path("store/f")],
    );
    assert_eq!(
        said,
        "None\none \none two child \none two child three\none two child three\nEBADF"
    );
    // A close that has nothing to send sends nothing.
    assert_eq!(m.requests("put"), 3);
}

fn appenders_lose_no_line(place: &Place) {
    let m = place.file("m", &[]);
    const LINES: usize = 300;
    let writers: Vec<_> = ["a", "b"]
        .map(|who| {
            place.start(&mut place.python(
                &format!(
                    "
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for i in range({LINES}):
    os.write(fd, (sys.argv[2] + ' %d\\n' % i).encode())
os.close(fd)
"
                ),
                &[&m.path("log"), Path::new(who)],
            ))
        })
        .into();
    for writer in writers {
        let said = writer.end();
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    let text = String::from_utf8(place.stored("log").unwrap()).unwrap();
    assert_eq!(std::fs::read_to_string(m.path("log")).unwrap(), text);
    for who in ["a", "b"] {
        let own = text.lines().filter(|line| line.starts_with(who));
        assert!(own.eq((0..LINES).map(|i| format!("{who} {i}"))), "{text}");
    }
    assert_eq!(text.lines().count(), 2 * LINES);
}

fn o_direct_is_tolerated(place: &Place) {
    let m = place.file("m", &[]);
    let content = pattern(3 << 20, 5);
    let open = |write: bool| {
        File::options()
            .read(true)
            .write(write)
            .create(write)
            .truncate(false)
            .custom_flags(libc::O_DIRECT)
            .open(m.path("f"))
            .unwrap()
    };
    let mut file = open(true);
    file.write_all(&content).unwrap();
    drop(file);
    assert!(place.stored("f").unwrap() == content);
    let mut read = Vec::new();
    open(false).read_to_end(&mut read).unwrap();
    assert!(read == content);
    // Beside a descriptor whose pages are cached.
    let cached = File::open(m.path("f")).unwrap();
    let mut first = [0; 4];
    cached.read_exact_at(&mut first, 0).unwrap();
    let direct = open(true);
    direct.write_all_at(b"here", 0).unwrap();
    cached.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(&first, b"here");
}

fn holes_are_found(place: &Place) {
    let m = place.file("m", &[]);
    // Not to be read as well: it could be stored to through a mapping then.
    let file = File::options()
        .write(true)
        .create_new(true)
        .open(m.path("f"))
        .unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(b"data", 512 << 10).unwrap();
    let seek = |to| rustix::fs::seek(&file, to);
    assert_eq!(seek(SeekFrom::Data(0)), Ok(512 << 10));
    assert_eq!(seek(SeekFrom::Hole(0)), Ok(0));
    let hole = seek(SeekFrom::Hole(512 << 10)).unwrap();
    assert!(((512 << 10) + 4..1 << 20).contains(&hole));
    assert_eq!(seek(SeekFrom::Data(hole)), Err(rustix::io::Errno::NXIO));
    assert_eq!(seek(SeekFrom::Data(1 << 20)), Err(rustix::io::Errno::NXIO));
    drop(file);
    let mut expected = vec![0; 1 << 20];
    expected[512 << 10..(512 << 10) + 4].copy_from_slice(b"data");
    assert!(std::fs::read(m.path("f")).unwrap() == expected);
    assert!(place.stored("f").unwrap() == expected);
}

fn punched_ranges_are_zeros(place: &Place) {
    let m = place.file("m", &[]);
    let mut expected = pattern(100_000, 9);
    place.store("f", &expected);
    let file = File::options()
        .read(true)
        .write(true)
        .open(m.path("f"))
        .unwrap();
    // Into pages that are cached.
    let mut all = Vec::new();
    (&file).read_to_end(&mut all).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let mut check = |range: std::ops::Range<usize>, size: usize| {
        let end = range.end.min(expected.len());
        expected[range.start.min(end)..end].fill(0);
        expected.resize(size, 0);
        let mut now = vec![0; 200_000];
        let read = file.read_at(&mut now, 0).unwrap();
        assert!(now[..read] == expected[..], "{range:?}");
        assert_eq!(file.metadata().unwrap().size(), size as u64);
    };
    rustix::fs::fallocate(&file, punch, 1000, 50_000).unwrap();
    check(1000..51_000, 100_000);
    rustix::fs::fallocate(&file, punch, 90_000, 50_000).unwrap();
    check(90_000..140_000, 100_000);
    rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 80_000, 30_000).unwrap();
    check(80_000..110_000, 110_000);
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 120_000).unwrap();
    check(0..0, 120_000);
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 130_000).unwrap();
    check(0..0, 120_000);
    let collapse = rustix::fs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096);
    assert_eq!(collapse, Err(rustix::io::Errno::OPNOTSUPP));
    drop(file);
    assert!(place.stored("f").unwrap() == expected);
    assert!(std::fs::read(m.path("f")).unwrap() == expected);
}

fn cp_copies_on_the_server(place: &Place) {
    let m = place.file("m", &[]);
    let content = pattern(3 << 20, 11);
    place.store("f", &content);
    let cp = |args: &[&str], to: &str| {
        let mut cp = Command::new("cp");
        cp.args(args).arg(m.path("f")).arg(m.path(to));
        let said = place.run(&mut cp);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(place.stored(to).unwrap() == content, "{args:?}");
        assert!(std::fs::read(m.path(to)).unwrap() == content, "{args:?}");
    };
    cp(&["--reflink=auto", "--sparse=never"], "plain");
    cp(&["-p"], "kept");
    cp(&["--sparse=always"], "sparse");
    // Over a file that is there, and over a longer one.
    std::fs::write(m.path("old"), pattern(4 << 20, 1)).unwrap();
    cp(&[], "old");
    // A part goes through the daemon.
    let from = File::open(m.path("f")).unwrap();
    let to = File::create(m.path("part")).unwrap();
    let (mut at_from, mut at_to) = (1000, 50);
    let mut left = 10_000;
    while left > 0 {
        left -= rustix::fs::copy_file_range(&from, Some(&mut at_from), &to, Some(&mut at_to), left)
            .unwrap();
    }
    drop(to);
    let mut expected = vec![0; 50];
    expected.extend_from_slice(&content[1000..11_000]);
    assert!(place.stored("part").unwrap() == expected);
}

fn sendfile_reads_and_writes(place: &Place) {
    let m = place.file("m", &[]);
    let content = pattern(2_500_000, 13);
    let send = |from: &Path, to: &Path| {
        let from = File::open(from).unwrap();
        let to = File::create(to).unwrap();
        while rustix::fs::sendfile(&to, &from, None, 1 << 20).unwrap() > 0 {}
    };
    std::fs::write(place.path("outside"), &content).unwrap();
    send(&place.path("outside"), &m.path("in"));
    assert!(place.stored("in").unwrap() == content);
    send(&m.path("in"), &m.path("within"));
    send(&m.path("within"), &place.path("out"));
    assert!(std::fs::read(place.path("out")).unwrap() == content);
}

fn programs_run_from_the_mount(place: &Place) {
    let m = place.file("m", &[]);
    let program = m.path("echo");
    // Not from here: whoever is started beside it has the file open for writing for a moment.
    let said = place.run(Command::new("cp").arg("/bin/echo").arg(&program));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(
        program.metadata().unwrap().permissions().mode() & 0o111,
        0o111
    );
    for _ in 0..2 {
        let said = place.run(Command::new(&program).arg("from the mount"));
        assert_eq!(said.stdout, "from the mount\n");
    }
    let script = m.path("script");
    place.script(
        "open(sys.argv[1], 'x').write('#!/bin/sh\\necho $0 $1\\n')",
        &[&script],
    );
    assert_eq!(fails(Command::new(&script).output()), libc::EACCES);
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let said = place.run(Command::new(&script).arg("x"));
    assert_eq!(said.stdout, format!("{} x\n", script.display()));
}

fn flock_excludes_other_processes(place: &Place) {
    let m = place.file("m", &[]);
    let path = m.path("f");
    std::fs::write(&path, "").unwrap();
    let other = |how: &str| {
        let mut flock = Command::new("flock");
        flock.args(["-n", how]).arg(&path).arg("true");
        place.run(&mut flock).code
    };
    let file = File::open(&path).unwrap();
    rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
    assert_eq!((other("-x"), other("-s")), (Some(1), Some(1)));
    rustix::fs::flock(&file, FlockOperation::LockShared).unwrap();
    assert_eq!((other("-x"), other("-s")), (Some(1), Some(0)));
    rustix::fs::flock(&file, FlockOperation::Unlock).unwrap();
    assert_eq!(other("-x"), Some(0));
    rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
    drop(file);
    assert_eq!(other("-x"), Some(0));
}

fn fcntl_locks_exclude_other_processes(place: &Place) {
    let m = place.file("m", &[]);
    let path = m.path("f");
    std::fs::write(&path, "0123456789").unwrap();
    let mut holder = place.start(
        place
            .python(
                "
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(fd, fcntl.LOCK_EX, 5, 0)
say('held')
sys.stdin.readline()
os._exit(0)
",
                &[&path],
            )
            .stdin(std::process::Stdio::piped()),
    );
    assert_eq!(holder.line(), "held");
    let attempt = || {
        place.script(
            "
fd = os.open(sys.argv[1], os.O_RDWR)
say(attempt(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0),
    attempt(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5))
",
            &[&path],
        )
    };
    assert_eq!(attempt(), "EAGAIN OK");
    drop(holder.stdin());
    assert_eq!(holder.end().code, Some(0));
    assert_eq!(attempt(), "OK OK");
}

fn a_large_file_goes_round(place: &Place) {
    let m = place.file("m", &["--memory", "4M"]);
    let content = pattern(40 << 20, 17);
    std::fs::write(m.path("f"), &content).unwrap();
    assert!(place.stored("f").unwrap() == content);
    let file = File::options()
        .read(true)
        .write(true)
        .open(m.path("f"))
        .unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut read = vec![0; 5000];
    for offset in [0, 4095, 1 << 20, (39 << 20) + 7, (40 << 20) - 5000] {
        file.read_exact_at(&mut read, offset as u64).unwrap();
        assert!(read == content[offset..offset + 5000], "{offset}");
    }
    file.write_all_at(b"patched", 20 << 20).unwrap();
    drop(file);
    let mut expected = content;
    expected[20 << 20..(20 << 20) + 7].copy_from_slice(b"patched");
    assert!(place.stored("f").unwrap() == expected);
    assert!(std::fs::read(m.path("f")).unwrap() == expected);
}

fn readers_see_unclosed_writes(place: &Place) {
    let m = place.file("m", &[]);
    let said = place.script(
        "
path, stored = sys.argv[1:]
fd = os.open(path, os.O_WRONLY | os.O_CREAT)
for i in range(1, 51):
    os.write(fd, b'x' * 1000)
    assert os.stat(path).st_size == i * 1000
    with open(path, 'rb') as f:
        assert len(f.read()) == i * 1000
time.sleep(0.2)
say(os.path.exists(stored))
os.pwrite(fd, b'back', 10)
say(open(path).read()[8:16])
os.close(fd)
say(open(stored).read()[8:16])
",
        &[&m.path("f"), &place.path("store/f")],
    );
    assert_eq!(said, "False\nxxbackxx\nxxbackxx");
    assert_eq!(m.requests("put"), 1);
}

fn a_read_only_mount_refuses_changes(place: &Place) {
    std::fs::create_dir(place.path("store/d")).unwrap();
    place.store("f", b"content");
    let m = place.file("m", &["--read-only"]);
    assert_eq!(std::fs::read(m.path("f")).unwrap(), b"content");
    let f = m.path("f");
    let mode = std::fs::Permissions::from_mode(0o600);
    assert_eq!(fails(std::fs::write(m.path("new"), "x")), libc::EROFS);
    assert_eq!(fails(File::options().append(true).open(&f)), libc::EROFS);
    assert_eq!(fails(std::fs::remove_file(&f)), libc::EROFS);
    assert_eq!(fails(std::fs::remove_dir(m.path("d"))), libc::EROFS);
    assert_eq!(fails(std::fs::create_dir(m.path("e"))), libc::EROFS);
    assert_eq!(fails(std::fs::rename(&f, m.path("g"))), libc::EROFS);
    assert_eq!(fails(std::fs::set_permissions(&f, mode)), libc::EROFS);
    let flags = rustix::fs::XattrFlags::empty();
    let set = rustix::fs::setxattr(&f, "user.x", b"y", flags);
    assert_eq!(set, Err(rustix::io::Errno::ROFS));
    let open = rustix::fs::open(&f, OFlags::RDWR, rustix::fs::Mode::empty());
    assert_eq!(open.err(), Some(rustix::io::Errno::ROFS));
    assert_eq!(place.stored("f").unwrap(), b"content");
}

fn handles_leak_nothing(place: &Place) {
    let m = place.file("m", &[]);
    std::fs::create_dir(m.path("d")).unwrap();
    let mut open = Vec::new();
    for i in 0..100 {
        let path = m.path(&format!("d/{i}"));
        std::fs::write(&path, pattern(1000, i)).unwrap();
        let options = [&[true, false][..], &[true, true]];
        for write in options {
            let file = File::options()
                .read(true)
                .write(write[1])
                .open(&path)
                .unwrap();
            open.push(file);
        }
    }
    // Some of them dirty, replaced, renamed, unlinked.
    for i in 0..10 {
        open[i * 2 + 1].write_all_at(b"dirty", 0).unwrap();
        std::fs::remove_file(m.path(&format!("d/{}", i + 10))).unwrap();
        std::fs::rename(
            m.path(&format!("d/{}", i + 20)),
            m.path(&format!("d/{}", i + 30)),
        )
        .unwrap();
        place.store(&format!("d/{}", i + 40), b"another version");
        open.push(File::open(m.path(&format!("d/{}", i + 40))).unwrap());
    }
    assert_eq!(m.number("handles"), 210);
    assert!(m.number("inodes") > 100);
    drop(open);
    eventually("every handle is released", || m.number("handles") == 0);
    assert_eq!(m.number("dirty_files"), 0);
    eventually("the kernel forgets every inode", || {
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        m.number("inodes") == 1
    });
}
