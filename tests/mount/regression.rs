//! What went wrong once, named for its cause.

use crate::guard::kill;
use crate::harness::{Mount, PYTHON, Place, Process, Root, eventually, trial, trial_alone};
use libtest_mimic::Trial;
use rustix::process::Signal;
use std::time::{Duration, Instant};

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            &[PYTHON],
            "regression::the_release_of_a_reader_committed_a_writers_half",
            the_release_of_a_reader_committed_a_writers_half,
        ),
        trial(
            &[PYTHON],
            "regression::an_exec_waited_for_the_flush_that_asked_about_it",
            an_exec_waited_for_the_flush_that_asked_about_it,
        ),
        trial(
            &[PYTHON],
            "regression::execs_waited_for_commits_that_waited_for_them",
            execs_waited_for_commits_that_waited_for_them,
        ),
        trial(
            &[PYTHON],
            "regression::notifications_waited_behind_a_hung_lookup",
            notifications_waited_behind_a_hung_lookup,
        ),
        trial(
            &[PYTHON],
            "regression::a_notification_kept_a_killed_daemon_alive",
            a_notification_kept_a_killed_daemon_alive,
        ),
        trial(
            &[],
            "regression::a_rename_whose_answer_was_lost_is_known_again",
            a_rename_whose_answer_was_lost_is_known_again,
        ),
        trial(
            &[PYTHON],
            "regression::what_was_appended_behind_others_was_cut_at_the_size_believed_before",
            what_was_appended_behind_others_was_cut_at_the_size_believed_before,
        ),
        trial(
            &[PYTHON],
            "regression::the_notifier_held_a_lock_that_appends_took",
            the_notifier_held_a_lock_that_appends_took,
        ),
        trial(
            &[],
            "regression::the_feed_told_nothing_of_the_times_of_directories",
            the_feed_told_nothing_of_the_times_of_directories,
        ),
        trial(
            &[],
            "regression::names_below_another_mount_were_believed_for_a_day",
            names_below_another_mount_were_believed_for_a_day,
        ),
        trial(
            &[PYTHON],
            "regression::data_stored_through_a_mapping_was_a_hole",
            data_stored_through_a_mapping_was_a_hole,
        ),
        trial(
            &[PYTHON],
            "regression::parts_of_seconds_before_1970_were_subtracted",
            parts_of_seconds_before_1970_were_subtracted,
        ),
        trial_alone(
            &[Root, PYTHON],
            "regression::the_answers_to_killed_processes_were_never_let_go",
            the_answers_to_killed_processes_were_never_let_go,
        ),
    ]
}

/// inotify does not tell what comes into a mount from its store.
fn names_below_another_mount_were_believed_for_a_day(place: &Place) {
    let below = place.file("below", &[]);
    let url = format!("file://{}", below.path("").display());
    let mount = place.mount("m", &url, &["--metadata-ttl", "1s"], true);
    let there = || mount.path("new").exists();
    // What is known before a feed begins is forgotten then.
    std::thread::sleep(Duration::from_millis(500));
    assert!(!there());
    place.store("new", b"x");
    eventually("the name is seen", there);
}

fn what_was_appended_behind_others_was_cut_at_the_size_believed_before(place: &Place) {
    let (a, b) = (place.file("a", &[]), place.file("b", &[]));
    let said = place.script(
        "
for i in range(30):
    ours, theirs = (os.path.join(root, 'log%d' % i) for root in sys.argv[1:])
    with open(ours, 'wb') as log:
        log.write(b'base ')
    fd = os.open(ours, os.O_RDWR | os.O_APPEND)
    # The pages are the kernel's.
    assert os.pread(fd, 100, 0) == b'base '
    with open(theirs, 'ab') as log:
        log.write(b'theirs ')
    os.write(fd, b'ours ')
    os.fsync(fd)
    os.write(fd, b'and more')
    # The kernel is told after the write; how soon is the machine's affair.
    until, read = time.monotonic() + 10, b''
    while read != b'base theirs ours and more' and time.monotonic() < until:
        time.sleep(0.06)
        read, size = os.pread(fd, 100, 0), os.fstat(fd).st_size
    assert (read, size) == (b'base theirs ours and more', 25), (i, read, size)
    os.close(fd)
say('done')
",
        &[&a.path(""), &b.path("")],
    );
    assert_eq!(said, "done");
}

/// The kernel holds back what the notifier stores in a page that is being written to.
fn the_notifier_held_a_lock_that_appends_took(place: &Place) {
    let (a, b) = (place.file("a", &[]), place.file("b", &[]));
    let said = place.script(
        "
def again(path, name):
    for i in range(150):
        with open(path, 'ab', buffering=0) as log:
            log.write(b'%s %d\\n' % (name, i))
def through(path, name):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for i in range(150):
        os.write(fd, b'%s %d\\n' % (name, i))
        os.fsync(fd)
    os.close(fd)
pids = []
for number, append in enumerate((again, through, again, through)):
    for side, root in enumerate(sys.argv[1:]):
        name = b'%d-%d' % (side, number)
        pid = os.fork()
        if pid == 0:
            append(os.path.join(root, 'log'), name)
            os._exit(0)
        pids.append((pid, name))
ends = [(name, os.waitpid(pid, 0)[1]) for pid, name in pids]
with open(os.path.join(sys.argv[1], 'log'), 'rb') as log:
    lines = sorted(log.read().splitlines())
wanted = sorted(b'%s %d' % (name, i) for _, name in pids for i in range(150))
say((all(end == 0 for _, end in ends), lines == wanted))
",
        &[&a.path(""), &b.path("")],
    );
    assert_eq!(said, "(True, True)");
}

fn the_feed_told_nothing_of_the_times_of_directories(place: &Place) {
    let (a, b) = (place.file("a", &[]), place.file("b", &[]));
    std::fs::create_dir(a.path("d")).unwrap();
    std::fs::write(a.path("d/old"), "x").unwrap();
    let time = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().modified().unwrap();
    let stored = || time(place.path("store").join("d"));
    eventually("both see it", || time(b.path("d")) == stored());
    std::thread::sleep(Duration::from_millis(20));
    std::fs::write(a.path("d/new"), "x").unwrap();
    eventually("a new file is seen", || time(b.path("d")) == stored());
    std::thread::sleep(Duration::from_millis(20));
    std::fs::remove_file(a.path("d/old")).unwrap();
    eventually("a removal is seen", || time(b.path("d")) == stored());
}

/// The kernel does not write its pages back before it asks.
fn data_stored_through_a_mapping_was_a_hole(place: &Place) {
    let m = place.file("m", &[]);
    let said = place.script(
        "
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 1 << 20)
stored = mmap.mmap(fd, 1 << 20)
stored[600000:600005] = b'hello'
say(os.lseek(fd, 0, os.SEEK_DATA) <= 600000 < os.lseek(fd, 600000, os.SEEK_HOLE))
",
        &[&m.path("f")],
    );
    assert_eq!(said, "True");
}

fn parts_of_seconds_before_1970_were_subtracted(place: &Place) {
    let m = place.file("m", &[]);
    let said = place.script(
        "
for time in -1, -1500000000, -2000000000, -999999999, 0, 1, 1500000000:
    open(sys.argv[1], 'w').close()
    os.utime(sys.argv[1], ns=(time, time))
    facts = os.stat(sys.argv[1])
    assert (facts.st_atime_ns, facts.st_mtime_ns) == (time, time), (time, facts.st_mtime_ns)
say('done')
",
        &[&m.path("f")],
    );
    assert_eq!(said, "done");
}

/// The kernel tells nothing of a process in the middle of an exec, which closes what is
/// `FD_CLOEXEC`; asking about its descriptors before that close was answered never ended.
fn an_exec_waited_for_the_flush_that_asked_about_it(place: &Place) {
    let m = place.file("m", &[]);
    let began = Instant::now();
    let said = place.script(
        "
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.execv('/bin/echo', ['echo', 'executed'])
",
        &[&m.path("f")],
    );
    assert_eq!(said, "executed");
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(place.stored("f").unwrap(), b"");
}

/// Requests that wait long have their process looked at, on the threads that were to answer them.
fn execs_waited_for_commits_that_waited_for_them(place: &Place) {
    let m = place.faulty("m", "put:delay=1s", &[]);
    let began = Instant::now();
    let said = place.script(
        "
pids = []
for name in sys.argv[1:]:
    pid = os.fork()
    if pid == 0:
        os.write(os.open(name, os.O_WRONLY | os.O_CREAT), b'bytes')
        os.execv('/bin/true', ['true'])
    pids.append(pid)
say([os.waitpid(pid, 0)[1] for pid in pids])
",
        &[&m.path("a"), &m.path("b"), &m.path("c"), &m.path("d")],
    );
    assert_eq!(said, "[0, 0, 0, 0]");
    assert!(began.elapsed() < Duration::from_secs(10));
    for name in ["a", "b", "c", "d"] {
        assert_eq!(place.stored(name).unwrap(), b"bytes");
    }
}

/// Lets a process hang in a lookup in the directory `d`, and others change that directory.
fn hung_lookup(place: &Place, m: &Mount) -> Process {
    let mut process = place.start(&mut place.python(
        "
say('begin')
say(attempt(os.stat, sys.argv[1]))
",
        &[&m.path("d/hung")],
    ));
    assert_eq!(process.line(), "begin");
    std::thread::sleep(Duration::from_millis(300));
    place.store("d/seen", b"another version");
    std::thread::sleep(Duration::from_millis(300));
    process
}

fn notifications_waited_behind_a_hung_lookup(place: &Place) {
    std::fs::create_dir(place.path("store/d")).unwrap();
    place.store("d/seen", b"one version");
    let m = place.faulty("m", "*:hang:key~hung", &[]);
    assert!(m.path("d/seen").exists() && !m.path("f").exists());
    let process = hung_lookup(place, &m);
    place.store("f", b"new");
    let began = Instant::now();
    eventually("the new name appears", || m.path("f").exists());
    assert!(began.elapsed() < Duration::from_secs(3));
    kill(process.pid(), Signal::KILL);
    assert_eq!(process.end().code, None);
    // What was put off comes then.
    eventually("the directory's change is seen", || {
        m.path("d/seen").metadata().unwrap().len() == 15
    });
}

fn a_notification_kept_a_killed_daemon_alive(place: &Place) {
    std::fs::create_dir(place.path("store/d")).unwrap();
    place.store("d/seen", b"one version");
    let m = place.faulty("m", "*:hang:key~hung", &[]);
    assert!(m.path("d/seen").exists());
    let mut process = hung_lookup(place, &m);
    m.kill();
    let answer = process.line();
    assert!(
        ["ENOTCONN", "ECONNABORTED"].contains(&answer.as_str()),
        "{answer}"
    );
    assert_eq!(process.end().code, Some(0));
    let m = place.file("m", &[]);
    assert_eq!(std::fs::read(m.path("d/seen")).unwrap(), b"another version");
}

fn the_release_of_a_reader_committed_a_writers_half(place: &Place) {
    let m = place.file("m", &[]);
    std::fs::write(m.path("f"), "whole").unwrap();
    let puts = m.requests("put");
    let said = place.script(
        "
path, stored = sys.argv[1:]
fd = os.open(path, os.O_WRONLY | os.O_APPEND)
for i in range(5):
    os.write(fd, b', and more')
    assert open(path).read().endswith('more')
time.sleep(0.2)
say(open(stored).read())
os.close(fd)
say(len(open(stored).read()))
",
        &[&m.path("f"), &place.path("store/f")],
    );
    assert_eq!(said, "whole\n55");
    assert_eq!(m.requests("put"), puts + 1);
}

fn the_answers_to_killed_processes_were_never_let_go(place: &Place) {
    place.store("open-slow", b"content");
    place.store("stat-slow", b"content");
    let faults = "put:delay=1500ms,get:delay=1500ms,head:delay=1500ms:key~stat";
    let m = place.faulty("m", faults, &[]);
    let calls = [
        "os.stat('stat-slow')",
        "os.open('open-slow', os.O_RDONLY)",
        "os.open('lock-slow.lock', os.O_CREAT | os.O_EXCL)",
        "os.mkdir('dir-slow')",
        "os.symlink('x', 'link-slow')",
    ];
    assert!(m.path("open-slow").exists());
    std::thread::sleep(Duration::from_millis(400));
    for call in calls {
        let script = format!("os.chdir(sys.argv[1])\nsay('begin')\n{call}");
        let mut process = place.start(&mut place.python(&script, &[&m.path("")]));
        assert_eq!(process.line(), "begin");
        std::thread::sleep(Duration::from_millis(400));
        assert!(!process.has_ended(), "{call}");
        kill(process.pid(), Signal::KILL);
        assert_eq!(process.end().code, None);
    }
    // What was begun is brought to its end, and nobody holds it.
    eventually("they are made", || {
        ["lock-slow.lock", "dir-slow", "link-slow"]
            .iter()
            .all(|name| place.path("store").join(name).symlink_metadata().is_ok())
    });
    eventually("nothing is held", || {
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        m.number("handles") == 0 && m.number("inodes") == 1
    });
}

/// A renamed file has another etag on `file:`, so that only its commit ids tell it from others.
fn a_rename_whose_answer_was_lost_is_known_again(place: &Place) {
    let m = place.faulty("m", "rename:lost-reply@1", &[]);
    std::fs::write(m.path("f"), "content").unwrap();
    std::fs::write(m.path("over"), "other").unwrap();
    for to in ["g", "over"] {
        std::fs::rename(m.path("f"), m.path(to)).unwrap();
        assert_eq!(std::fs::read(m.path(to)).unwrap(), b"content");
        assert!(place.stored("f").is_err());
        std::fs::rename(m.path(to), m.path("f")).unwrap();
    }
}
