//! Daemons that are killed, stopped or cut off, and stores that fall silent or are full.

use crate::guard::kill;
use crate::harness::{
    Manner, Mount, PYTHON, Place, Program, Root, eventually, long, pattern, trial, trial_as,
};
use libtest_mimic::Trial;
use rustix::process::Signal;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;

pub fn trials() -> Vec<Trial> {
    let patient = Manner {
        patience: Duration::from_secs(180),
        ..Manner::default()
    };
    vec![
        trial_as(
            patient,
            &[Root, PYTHON],
            "crashes::a_daemon_killed_at_any_moment_loses_nothing_acknowledged",
            a_daemon_killed_at_any_moment_loses_nothing_acknowledged,
        ),
        trial(
            &[Root],
            "crashes::a_forced_unmount_frees_who_waits",
            |place| a_forced_unmount_frees_who_waits(place, &["umount", "-f"]),
        ),
        trial(
            &[Program("fusermount3")],
            "crashes::a_lazy_unmount_leaves_who_waits_to_the_deadline",
            |place| a_forced_unmount_frees_who_waits(place, &["fusermount3", "-uz"]),
        ),
        trial_as(
            patient,
            &[PYTHON],
            "crashes::a_daemon_that_slept_goes_on",
            a_daemon_that_slept_goes_on,
        ),
        trial_as(
            patient,
            &[PYTHON],
            "crashes::everything_slept_and_goes_on",
            everything_slept_and_goes_on,
        ),
        trial(
            &[Root, PYTHON],
            "crashes::a_full_disk_under_the_store_is_enospc",
            a_full_disk_under_the_store_is_enospc,
        ),
    ]
}

/// Saves numbered files one after the other, each three times in other ways, and says what is
/// acknowledged.
const SAVING: &str = "
root, number = sys.argv[1], int(sys.argv[2])
def save(name, flags, text):
    fd = os.open(os.path.join(root, name), flags, 0o644)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
os.makedirs(os.path.join(root, 'd'), exist_ok=True)
while True:
    name, text = 'd/%d' % (number % 17), '%d ' % number * 50
    save(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, text)
    say('saved', name, number)
    save('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND, '%d\\n' % number)
    say('logged', number)
    save('new', os.O_WRONLY | os.O_CREAT | os.O_TRUNC, text)
    os.rename(os.path.join(root, 'new'), os.path.join(root, 'd/renamed'))
    say('renamed', number)
    number += 1
";

fn a_daemon_killed_at_any_moment_loses_nothing_acknowledged(place: &Place) {
    let rounds = if long() { 200 } else { 50 };
    let mut number = 0;
    let mut saved = std::collections::BTreeMap::new();
    let (mut logged, mut renamed) = (0, 0);
    for _ in 0..rounds {
        // A dead mount is there from the round before, and is taken away.
        let m = place.faulty("m", "put:delay=1ms@p0.3", &[]);
        let root = m.path("");
        let first = number.to_string();
        let process = place.start(&mut place.python(SAVING, &[&root, first.as_ref()]));
        std::thread::sleep(Duration::from_micros(fastrand::u64(20_000..250_000)));
        if die(place, &m) {
            assert!(m.is_mounted(), "the kernel keeps a dead mount");
        }
        let said = process.end();
        assert_eq!(said.code, Some(1), "it failed on the dead mount: {said:?}");
        for line in said.stdout.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let told: u32 = words.last().unwrap().parse().unwrap();
            match words[0] {
                "saved" => drop(saved.insert(words[1].to_owned(), told)),
                "logged" => logged = told,
                _ => renamed = told,
            }
            number = number.max(told + 1);
        }
        // What was acknowledged is in the store; what was not may be, whole.
        for (name, told) in &mut saved {
            let stored = String::from_utf8(place.stored(name).unwrap()).unwrap();
            let found: u32 = stored.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(stored, format!("{found} ").repeat(50), "{name}");
            assert!(
                found == *told || found == number,
                "{name}: {found}, not {told}"
            );
            *told = found;
        }
        if renamed > 0 {
            let stored = String::from_utf8(place.stored("d/renamed").unwrap()).unwrap();
            let found: u32 = stored.split(' ').next().unwrap().parse().unwrap();
            assert!(found >= renamed, "renamed: {found}, not {renamed}");
            assert_eq!(stored, format!("{found} ").repeat(50));
        }
        number += 1;
    }
    assert!(number > rounds, "it hardly ever came to write");
    // Each acknowledged line is there once.
    let log = String::from_utf8(place.stored("log").unwrap()).unwrap();
    let lines: Vec<u32> = log.lines().map(|line| line.parse().unwrap()).collect();
    assert!(lines.is_sorted_by(|one, two| one < two), "{log}");
    assert!(lines.contains(&logged));
    let m = place.file("m", &[]);
    assert_eq!(std::fs::read(m.path("log")).unwrap(), log.as_bytes());
    let names = std::fs::read_dir(place.path("store")).unwrap().flatten();
    for name in names.map(|entry| entry.file_name().into_string().unwrap()) {
        assert!(
            ["d", "log", "new"].contains(&&*name),
            "{name} is left behind"
        );
    }
}

/// Kills a daemon. Whether it went by itself: a notification that waits in the kernel for a program
/// that waits for the daemon keeps both alive until the connection is cut.
fn die(place: &Place, m: &Mount) -> bool {
    kill(m.pid(), Signal::KILL);
    let began = std::time::Instant::now();
    while !m.has_ended() {
        if began.elapsed() > Duration::from_secs(3) {
            let said = place.run(Command::new("umount").arg("-f").arg(m.path("")));
            eventually("it has ended", || m.has_ended());
            assert!(said.code.is_some());
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// `umount -f` cuts the connection; a lazy one leaves it to those who are in it.
fn a_forced_unmount_frees_who_waits(place: &Place, command: &[&str]) {
    place.store("hung", b"content");
    place.store("fine", b"fine");
    let forced = command.contains(&"-f");
    // A forced one is not to be outrun by the deadline.
    let deadline = if forced { "60s" } else { "3s" };
    let m = place.faulty(
        "m",
        "get:hang:key~hung",
        &["--deadline", deadline, "--retries", "0"],
    );
    let waiting = {
        let path = m.path("hung");
        std::thread::spawn(move || std::fs::read(path).map_err(|error| error.raw_os_error()))
    };
    let open = File::open(m.path("fine")).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let mut unmount = Command::new(command[0]);
    unmount.args(&command[1..]).arg(m.path(""));
    let said = place.run(&mut unmount);
    if forced && m.is_mounted() {
        // The connection is gone; a second one takes the mount away, that nobody is in any more.
        assert_eq!(said.code, Some(32), "{said:?}");
    } else {
        assert_eq!(said.code, Some(0), "{said:?}");
    }
    let waited = waiting.join().unwrap();
    match forced {
        true => assert!(
            matches!(waited, Err(Some(libc::ECONNABORTED | libc::ENOTCONN))),
            "{waited:?}"
        ),
        false => assert_eq!(waited, Err(Some(libc::ETIMEDOUT))),
    }
    if !forced {
        let mut byte = [0];
        assert_eq!(open.read_at(&mut byte, 0).unwrap(), 1);
    }
    drop(open);
    eventually("the daemon ends", || m.has_ended());
    let again = place.file("m", &[]);
    assert_eq!(std::fs::read(again.path("hung")).unwrap(), b"content");
}

/// Works on a mount for as long as it is not told to end, and says what failed.
const WORKING: &str = "
root, ended = sys.argv[1], sys.argv[2]
count = 0
while not os.path.exists(ended):
    path = os.path.join(root, '%d' % (count % 5))
    text = b'%d' % count
    with open(path, 'wb') as f:
        f.write(text)
    with open(path, 'rb') as f:
        assert f.read() == text, count
    os.listdir(root)
    count += 1
say(count)
";

fn sleep_of(place: &Place, m: &Mount, stopped: impl Fn(u32) -> Vec<u32>) {
    let ended = place.path("ended");
    let mut process = place.start(&mut place.python(WORKING, &[&m.path(""), &ended]));
    let mut open = File::create(m.path("open")).unwrap();
    open.write_all(b"before, ").unwrap();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(fastrand::u64(100..400)));
        let pids = stopped(process.pid());
        for pid in &pids {
            kill(*pid, Signal::STOP);
        }
        let time = if long() { 60 } else { 4 };
        std::thread::sleep(Duration::from_secs(time));
        for pid in &pids {
            kill(*pid, Signal::CONT);
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(!process.has_ended(), "it failed: {:?}", process.end());
    open.write_all(b"after").unwrap();
    open.sync_all().unwrap();
    assert_eq!(place.stored("open").unwrap(), b"before, after");
    std::fs::write(&ended, "").unwrap();
    let said = process.end();
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.trim().parse::<u32>().unwrap() > 10, "{said:?}");
    std::fs::remove_file(ended).unwrap();
}

fn a_daemon_that_slept_goes_on(place: &Place) {
    // Shorter than the sleep: what a deadline measures is the silence of the store.
    let m = place.file("m", &["--deadline", "2s"]);
    let daemon = m.pid();
    sleep_of(place, &m, |_| vec![daemon]);
}

fn everything_slept_and_goes_on(place: &Place) {
    let m = place.file("m", &["--deadline", "2s"]);
    let daemon = m.pid();
    sleep_of(place, &m, |worker| vec![worker, daemon]);
}

/// Writes where there is no room, and then less. Each step waits for a line: what a process started
/// beside this one inherits for a moment must not close these files between two writes.
const FILLING: &str = "
root = sys.argv[1]
def write(fd, size, byte):
    data = byte * size
    while data:
        data = data[os.pwrite(fd, data, size - len(data)):]
    os.fsync(fd)
new = os.open(os.path.join(root, 'new'), os.O_RDWR | os.O_CREAT)
say(attempt(write, new, 3 << 20, b'2'))
sys.stdin.readline()
old = os.open(os.path.join(root, 'old'), os.O_WRONLY)
say(attempt(write, old, 3 << 20, b'3'))
sys.stdin.readline()
os.ftruncate(old, 0)
say(attempt(write, old, 5, b'4'))
sys.stdin.readline()
os.ftruncate(new, 1 << 20)
say('truncated')
sys.stdin.readline()
";

fn a_full_disk_under_the_store_is_enospc(place: &Place) {
    let disk = place.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let mut mount = Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", "size=2M", "none"])
        .arg(&disk);
    let said = place.run(&mut mount);
    assert_eq!(said.code, Some(0), "{said:?}");
    let url = format!("file://{}", disk.display());
    let m = place.mount("m", &url, &[], true);
    let old = pattern(1 << 20, 1);
    std::fs::write(m.path("old"), &old).unwrap();
    let mut filling = place.python(FILLING, &[&m.path("")]);
    let mut filling = place.start(filling.stdin(Stdio::piped()));
    let mut steps = filling.stdin();
    let mut goes_on = || steps.write_all(b"\n").unwrap();
    assert_eq!(filling.line(), "ENOSPC");
    // Neither the object is half there nor the old one gone, and the mount answers.
    assert_eq!(
        std::fs::metadata(disk.join("new")).map_or(0, |at| at.len()),
        0
    );
    assert!(std::fs::read(m.path("old")).unwrap() == old);
    goes_on();
    assert_eq!(filling.line(), "ENOSPC");
    assert!(std::fs::read(disk.join("old")).unwrap() == old);
    goes_on();
    assert_eq!(filling.line(), "OK");
    assert_eq!(std::fs::read(disk.join("old")).unwrap(), b"44444");
    goes_on();
    assert_eq!(filling.line(), "truncated");
    // With room for it, it is sent without being asked for.
    eventually("it is sent", || {
        std::fs::read(disk.join("new")).is_ok_and(|bytes| bytes == [b'2'; 1 << 20])
    });
}
