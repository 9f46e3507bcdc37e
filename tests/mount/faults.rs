//! A store that hangs, fails and recovers: what programs get, who can be killed, and that nothing
//! is lost.

use crate::guard::kill;
use crate::harness::{PYTHON, Place, Root, eventually, fails, pattern, trial};
use libtest_mimic::Trial;
use rustix::process::Signal;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            &[PYTHON],
            "faults::a_process_waiting_in_stat_can_be_killed",
            |place| {
                dies(place, "*:hang:key~hung", "os.stat(path)");
            },
        ),
        trial(
            &[PYTHON],
            "faults::a_process_waiting_in_open_can_be_killed",
            |place| {
                dies(
                    place,
                    "get:hang:key~hung",
                    "os.stat(path); time.sleep(0.4); os.open(path, os.O_RDONLY)",
                );
            },
        ),
        trial(
            &[PYTHON],
            "faults::a_process_waiting_in_read_can_be_killed",
            |place| {
                dies(
                    place,
                    "get:hang:key~hung",
                    "os.read(os.open(path, os.O_RDONLY), 10)",
                );
            },
        ),
        trial(
            &[PYTHON],
            "faults::a_process_waiting_in_a_direct_read_can_be_killed",
            |place| {
                dies(
                    place,
                    "get:hang:key~hung",
                    "os.read(os.open(path, os.O_RDONLY | os.O_DIRECT), 4096)",
                );
            },
        ),
        trial(
            &[PYTHON],
            "faults::a_process_waiting_in_a_page_fault_can_be_killed",
            |place| {
                dies(
                    place,
                    "get:hang:key~hung",
                    "mmap.mmap(os.open(path, os.O_RDONLY), 4096, prot=mmap.PROT_READ)[0]",
                );
            },
        ),
        trial(
            &[PYTHON],
            "faults::a_process_waiting_in_close_can_be_killed",
            |place| {
                dies(
                    place,
                    "put:hang:key~hung",
                    "fd = os.open(path, os.O_WRONLY); os.write(fd, b'killed'); os.close(fd)",
                );
            },
        ),
        trial(
            &[PYTHON],
            "faults::a_process_waiting_in_fsync_can_be_killed",
            |place| {
                dies(
                    place,
                    "put:hang:key~hung",
                    "fd = os.open(path, os.O_WRONLY); os.write(fd, b'killed'); os.fsync(fd)",
                );
            },
        ),
        trial(
            &[PYTHON],
            "faults::a_killed_process_does_not_wait_for_its_files",
            |place| {
                dies(
                    place,
                    "put:hang:key~hung",
                    "fd = os.open(path, os.O_WRONLY); os.write(fd, b'killed'); time.sleep(60)",
                );
            },
        ),
        trial(
            &[PYTHON],
            "faults::a_process_waiting_in_readdir_can_be_killed",
            |place| {
                dies(place, "list:hang", "os.listdir(os.path.dirname(path))");
            },
        ),
        trial(
            &[PYTHON],
            "faults::a_process_waiting_in_unlink_can_be_killed",
            |place| {
                dies(place, "delete:hang", "os.unlink(path)");
            },
        ),
        trial(
            &[PYTHON],
            "faults::what_a_killed_writer_wrote_is_committed",
            what_a_killed_writer_wrote_is_committed,
        ),
        trial(
            &[PYTHON],
            "faults::other_signals_break_no_call",
            other_signals_break_no_call,
        ),
        trial(
            &[PYTHON],
            "faults::a_hung_store_is_a_timeout",
            a_hung_store_is_a_timeout,
        ),
        trial(
            &[PYTHON],
            "faults::cached_data_is_readable_while_the_store_hangs",
            cached_data_is_readable_while_the_store_hangs,
        ),
        trial(
            &[],
            "faults::reads_recover_without_a_remount",
            reads_recover_without_a_remount,
        ),
        trial(
            &[PYTHON],
            "faults::a_failed_close_is_made_up_for",
            a_failed_close_is_made_up_for,
        ),
        trial(
            &[PYTHON],
            "faults::a_lost_reply_is_no_conflict",
            a_lost_reply_is_no_conflict,
        ),
        trial(
            &[PYTHON],
            "faults::sigterm_sends_what_is_dirty",
            sigterm_sends_what_is_dirty,
        ),
        trial(
            &[Root, PYTHON],
            "faults::a_full_staging_area_is_enospc",
            a_full_staging_area_is_enospc,
        ),
        trial(
            &[],
            "faults::a_full_store_is_enospc",
            a_full_store_is_enospc,
        ),
        trial(
            &[],
            "faults::broken_bodies_are_never_short_reads",
            broken_bodies_are_never_short_reads,
        ),
        trial(
            &[],
            "faults::a_hung_store_holds_up_nobody_else",
            a_hung_store_holds_up_nobody_else,
        ),
    ]
}

/// No signal that kills may wait longer than this for its process to be gone.
const DYING: Duration = Duration::from_secs(1);

/// Runs a call that hangs on the file `hung`, in processes that are killed in it.
fn dies(place: &Place, faults: &str, call: &str) {
    place.store("hung", &pattern(100_000, 1));
    place.store("fine", b"fine");
    let m = place.faulty("m", faults, &[]);
    for signal in [Signal::KILL, Signal::INT] {
        let mut process = place.start(&mut place.python(
            &format!(
                "
signal.signal(signal.SIGINT, signal.SIG_DFL)
path = sys.argv[1]
say('begin')
{call}
"
            ),
            &[&m.path("hung")],
        ));
        assert_eq!(process.line(), "begin");
        std::thread::sleep(Duration::from_millis(900));
        assert!(!process.has_ended(), "{call}: it did not wait");
        let began = Instant::now();
        kill(process.pid(), signal);
        while !process.has_ended() {
            assert!(
                began.elapsed() < DYING,
                "{call}: {signal:?} does not end it"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        // Nobody else is held up.
        if !faults.starts_with("list") {
            assert_eq!(std::fs::read(m.path("fine")).unwrap(), b"fine");
        }
    }
}

fn what_a_killed_writer_wrote_is_committed(place: &Place) {
    let m = place.faulty(
        "m",
        "put:hang@1:key~hung",
        &["--deadline", "2s", "--retries", "0"],
    );
    let mut process = place.start(&mut place.python(
        "
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(fd, b'precious')
say('written')
os.close(fd)
",
        &[&m.path("hung")],
    ));
    assert_eq!(process.line(), "written");
    std::thread::sleep(Duration::from_millis(500));
    kill(process.pid(), Signal::KILL);
    assert_eq!(process.end().code, None);
    assert!(place.stored("hung").is_err());
    eventually("it is committed", || {
        place.stored("hung").is_ok_and(|bytes| bytes == b"precious")
    });
    assert_eq!(std::fs::read(m.path("hung")).unwrap(), b"precious");
}

fn other_signals_break_no_call(place: &Place) {
    place.store("slow", b"0123456789");
    let m = place.faulty("m", "*:delay=1200ms:key~slow", &[]);
    let said = place.script(
        "
libc = ctypes.CDLL(None, use_errno=True)
count = 0
def handler(*args):
    global count
    count += 1
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
path = sys.argv[1].encode()
def say_errno(what, result):
    say(what, 'OK' if result >= 0 else errno.errorcode[ctypes.get_errno()])
buffer = ctypes.create_string_buffer(400)
say_errno('access', libc.access(path, os.R_OK))
time.sleep(0.4)
fd = libc.open(path, os.O_RDWR)
say_errno('open', fd)
say_errno('read', libc.read(fd, buffer, 10))
say_errno('write', libc.write(fd, b'X', 1))
say_errno('fsync', libc.fsync(fd))
say_errno('write', libc.write(fd, b'Y', 1))
say_errno('close', libc.close(fd))
say_errno('unlink', libc.unlink(path))
signal.setitimer(signal.ITIMER_REAL, 0)
say(count >= 5)
",
        &[&m.path("slow")],
    );
    assert_eq!(
        said,
        "access OK\nopen OK\nread OK\nwrite OK\nfsync OK\nwrite OK\nclose OK\nunlink OK\nTrue"
    );
}

/// Writes a file in a process of its own, and gives what close said.
fn close_of(place: &Place, path: &Path, content: &str) -> String {
    place.script(
        "
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.write(fd, sys.argv[2].encode())
say(attempt(os.close, fd))
",
        &[path, Path::new(content)],
    )
}

/// Whether something took about so long.
fn took(time: Duration, seconds: std::ops::Range<f64>) -> bool {
    seconds.contains(&time.as_secs_f64())
}

fn a_hung_store_is_a_timeout(place: &Place) {
    // The bytes of a smaller file come with its open.
    place.store("hung", &pattern(200_000, 1));
    place.store("hung-small", b"content");
    let m = place.faulty(
        "m",
        "put:hang:key~hung,get:hang:key~hung",
        &["--deadline", "1s", "--retries", "0"],
    );
    let mut byte = [0];
    let began = Instant::now();
    let file = File::open(m.path("hung")).unwrap();
    assert_eq!(fails(file.read_at(&mut byte, 0)), libc::ETIMEDOUT);
    assert!(took(began.elapsed(), 0.9..4.0), "{:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(fails(File::open(m.path("hung-small"))), libc::ETIMEDOUT);
    assert!(took(began.elapsed(), 0.9..4.0), "{:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(close_of(place, &m.path("hung-new"), "x"), "ETIMEDOUT");
    assert!(took(began.elapsed(), 0.9..4.0), "{:?}", began.elapsed());
    let errors = m.status()["fs"]["errors"].clone();
    assert_eq!(
        errors[errors.as_array().unwrap().len() - 1]["errno"],
        "ETIMEDOUT"
    );
    // With retries too it ends.
    let m = place.faulty("retried", "get:hang:key~hung", &["--deadline", "1s"]);
    let began = Instant::now();
    let file = File::open(m.path("hung")).unwrap();
    assert_eq!(fails(file.read_at(&mut byte, 0)), libc::ETIMEDOUT);
    assert!(took(began.elapsed(), 0.9..10.0), "{:?}", began.elapsed());
}

fn cached_data_is_readable_while_the_store_hangs(place: &Place) {
    let content = pattern(300_000, 3);
    place.store("cached", &content);
    let faults = "get:hang@2+:key~cached,head:hang@2+:key~cached,put:hang";
    let m = place.faulty("m", faults, &["--deadline", "1s", "--retries", "0"]);
    let file = File::open(m.path("cached")).unwrap();
    let mut read = vec![0; content.len()];
    file.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(close_of(place, &m.path("dirty"), "x"), "ETIMEDOUT");
    // From the pages, and from the daemon's memory.
    for _ in 0..2 {
        let began = Instant::now();
        read.fill(0);
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == content);
        assert!(began.elapsed() < Duration::from_millis(900));
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    // Opens that trust what they know need no store either.
    place.store("trusted", &content);
    let faults = "get:hang@2+,head:hang@2+:key~trusted,list:hang@2+:key~trusted";
    let trusting = ["--consistency", "ttl", "--metadata-ttl", "1h"];
    let m = place.faulty("trusting", faults, &trusting);
    assert!(std::fs::read(m.path("trusted")).unwrap() == content);
    std::thread::sleep(Duration::from_millis(400));
    let began = Instant::now();
    assert!(std::fs::read(m.path("trusted")).unwrap() == content);
    assert!(began.elapsed() < Duration::from_millis(900));
}

fn reads_recover_without_a_remount(place: &Place) {
    place.store("f", b"content");
    let faults = "get:error=unreachable@1:key~f,get:error=unavailable@2:key~f,get:break=3@3:key~f";
    let m = place.faulty("m", faults, &["--retries", "0"]);
    let mut failures = 0;
    eventually("it recovers", || match std::fs::read(m.path("f")) {
        Ok(bytes) => {
            assert_eq!(bytes, b"content");
            true
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
            failures += 1;
            false
        }
    });
    assert!((1..=3).contains(&failures), "{failures}");
    // Names too.
    let m = place.faulty(
        "names",
        "head:error=unreachable@1,list:error=unreachable@1",
        &["--retries", "0"],
    );
    assert_eq!(fails(m.path("f").metadata()), libc::EIO);
    assert_eq!(std::fs::read(m.path("f")).unwrap(), b"content");
}

fn a_failed_close_is_made_up_for(place: &Place) {
    // At the close, and once more at the release behind it.
    let faults = "put:error=unavailable@1,put:error=unavailable@2";
    let m = place.faulty("m", faults, &["--retries", "0"]);
    assert_eq!(close_of(place, &m.path("f"), "kept"), "EIO");
    // It is still the file, here and for whoever writes on.
    assert_eq!(std::fs::read(m.path("f")).unwrap(), b"kept");
    assert_eq!(m.number("dirty_files"), 1);
    eventually("the background commits", || {
        place.stored("f").is_ok_and(|bytes| bytes == b"kept")
    });
    eventually("it is clean", || m.number("dirty_files") == 0);
    assert_eq!(close_of(place, &m.path("f"), "rewritten"), "OK");
    assert_eq!(place.stored("f").unwrap(), b"rewritten");
    assert_eq!(m.status()["fs"]["conflicts"].as_array().unwrap().len(), 0);
}

fn a_lost_reply_is_no_conflict(place: &Place) {
    let m = place.faulty(
        "m",
        "put:lost-reply@1:key~new,put:lost-reply@2:key~log",
        &["--retries", "0"],
    );
    assert_eq!(close_of(place, &m.path("new"), "one"), "EIO");
    eventually("it is told from a foreign one", || {
        m.number("dirty_files") == 0
    });
    assert_eq!(place.stored("new").unwrap(), b"one");
    assert_eq!(close_of(place, &m.path("new"), "two"), "OK");
    // An append whose reply is lost is not appended twice.
    assert_eq!(close_of(place, &m.path("log"), "one"), "OK");
    let said = place.script(
        "
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
os.write(fd, b' two')
say(attempt(os.fsync, fd))
os.write(fd, b' three')
say(attempt(os.close, fd))
",
        &[&m.path("log")],
    );
    assert_eq!(said, "EIO\nOK");
    eventually("it is clean", || m.number("dirty_files") == 0);
    assert_eq!(place.stored("log").unwrap(), b"one two three");
    let names: Vec<_> = std::fs::read_dir(m.path("")).unwrap().flatten().collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

fn sigterm_sends_what_is_dirty(place: &Place) {
    let m = place.faulty("m", "put:error=unavailable@1", &["--retries", "0"]);
    assert_eq!(close_of(place, &m.path("f"), "dirty"), "EIO");
    let mut open = File::create(m.path("open")).unwrap();
    open.write_all(b"not closed").unwrap();
    kill(m.pid(), Signal::TERM);
    m.ends(0);
    assert!(!m.is_mounted());
    assert_eq!(place.stored("f").unwrap(), b"dirty");
    assert_eq!(place.stored("open").unwrap(), b"not closed");
    assert_eq!(fails(open.write_all(b"x")), libc::ENOTCONN);
}

fn a_full_staging_area_is_enospc(place: &Place) {
    let small = place.path("small");
    std::fs::create_dir(&small).unwrap();
    let mut mount = Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", "size=1M", "none"])
        .arg(&small);
    let said = place.run(&mut mount);
    assert_eq!(said.code, Some(0), "{said:?}");
    let old = pattern(100_000, 1);
    place.store("f", &old);
    let m = place.file("m", &["--staging-dir", small.to_str().unwrap()]);
    let said = place.script(
        "
fd = os.open(sys.argv[1], os.O_RDWR)
piece = b'x' * (1 << 20)
def fill():
    for i in range(40):
        os.pwrite(fd, piece, i << 20)
say(attempt(fill))
size = os.fstat(fd).st_size
say(size > 1 << 20, os.pread(fd, 1 << 20, 0) == piece)
os.ftruncate(fd, 0)
os.pwrite(fd, open(sys.argv[2], 'rb').read(), 0)
say(attempt(os.close, fd))
",
        &[&m.path("f"), &place.path("store/f")],
    );
    assert_eq!(said, "ENOSPC\nTrue True\nOK");
    assert!(place.stored("f").unwrap() == old);
    // What is small enough for memory goes on.
    std::fs::write(m.path("small"), "fits").unwrap();
    assert_eq!(place.stored("small").unwrap(), b"fits");
    // What did not fit is not half a file elsewhere.
    let mut file = File::create(m.path("new")).unwrap();
    assert_eq!(fails(file.write_all(&vec![0; 40 << 20])), libc::ENOSPC);
    std::fs::remove_file(m.path("new")).unwrap();
    drop(file);
    assert!(place.stored("new").is_err());
    assert!(std::fs::read(m.path("f")).unwrap() == old);
}

fn a_full_store_is_enospc(place: &Place) {
    let m = place.mount("m", "memory:?size=200000", &[], true);
    std::fs::write(m.path("f"), vec![b'o'; 100_000]).unwrap();
    let mut file = File::create(m.path("g")).unwrap();
    let outcome = file
        .write_all(&vec![b'n'; 300_000])
        .and_then(|()| file.sync_all());
    assert_eq!(fails(outcome), libc::ENOSPC);
    assert_eq!(std::fs::read(m.path("f")).unwrap(), vec![b'o'; 100_000]);
    // Once it fits, it is sent.
    file.set_len(50_000).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(std::fs::read(m.path("g")).unwrap(), vec![b'n'; 50_000]);
}

fn broken_bodies_are_never_short_reads(place: &Place) {
    let content = pattern(2 << 20, 5);
    place.store("f", &content);
    for fault in ["truncate=1000", "break=1000", "wrong-length"] {
        let faults = format!("get:{fault}@every2:key~f");
        let m = place.faulty(fault.split('=').next().unwrap(), &faults, &[]);
        assert!(std::fs::read(m.path("f")).unwrap() == content, "{fault}");
        let always = format!("get:{fault}:key~f");
        let name = format!("{}-always", fault.split('=').next().unwrap());
        let m = place.faulty(&name, &always, &["--retries", "0"]);
        match std::fs::read(m.path("f")) {
            Ok(bytes) => assert!(bytes == content, "{fault}: {} bytes", bytes.len()),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{fault}"),
        }
    }
}

fn a_hung_store_holds_up_nobody_else(place: &Place) {
    // In a directory of their own: the kernel changes no directory while it looks a name up there.
    std::fs::create_dir(place.path("store/d")).unwrap();
    place.store("fine", b"fine");
    let m = place.faulty("m", "*:hang:key~hung", &[]);
    assert!(m.path("d").is_dir());
    let waiting: Vec<_> = (0..20)
        .map(|i| {
            let mut command = place.python(
                "say('begin'); attempt(os.stat, sys.argv[1])",
                &[&m.path(&format!("d/hung{i}"))],
            );
            place.start(&mut command)
        })
        .collect();
    std::thread::sleep(Duration::from_secs(1));
    let began = Instant::now();
    assert_eq!(std::fs::read(m.path("fine")).unwrap(), b"fine");
    std::fs::write(m.path("new"), "x").unwrap();
    std::fs::remove_file(m.path("new")).unwrap();
    assert!(m.path("fine").exists());
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    for process in &waiting {
        kill(process.pid(), Signal::KILL);
    }
    for process in waiting {
        assert_eq!(process.end().code, None);
    }
}
