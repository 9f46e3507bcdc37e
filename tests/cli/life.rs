//! The life of a mount, through the kernel.

use crate::harness::{Place, end, eventually, finish, has_program, kill, no_fuse, runs};
use crate::unless;
use libtest_mimic::Trial;
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub fn trials() -> Vec<Trial> {
    let missing = no_fuse();
    let not_root = missing.or((!rustix::process::geteuid().is_root()).then_some("needs root"));
    vec![
        unless(missing, "life::mount_status_umount", mount_status_umount),
        unless(missing, "life::a_mount_point_in_use", a_mount_point_in_use),
        unless(
            missing,
            "life::a_killed_daemon_is_replaced",
            a_killed_daemon_is_replaced,
        ),
        unless(
            missing,
            "life::a_dead_mount_is_unmounted",
            a_dead_mount_is_unmounted,
        ),
        unless(missing, "life::sigterm_unmounts", sigterm_unmounts),
        unless(
            missing,
            "life::sigterm_detaches_what_is_busy",
            sigterm_detaches_what_is_busy,
        ),
        unless(missing, "life::a_busy_mount_stays", a_busy_mount_stays),
        unless(
            missing,
            "life::what_lies_below_the_mount_keeps_nobody_from_unmounting",
            what_lies_below_the_mount_keeps_nobody_from_unmounting,
        ),
        unless(
            missing,
            "life::the_daemon_holds_nothing_of_who_started_it",
            the_daemon_holds_nothing_of_who_started_it,
        ),
        unless(
            missing,
            "life::systemd_is_asked_for_time_while_an_unmount_sends",
            systemd_is_asked_for_time_while_an_unmount_sends,
        ),
        unless(
            missing,
            "life::a_hung_daemon_is_told",
            a_hung_daemon_is_told,
        ),
        unless(
            missing,
            "life::the_foreground_notifies",
            the_foreground_notifies,
        ),
        unless(missing, "life::auto_unmount", auto_unmount),
        unless(missing, "life::in_process", in_process),
        unless(
            missing,
            "life::what_is_not_sent_is_kept",
            what_is_not_sent_is_kept,
        ),
        unless(missing, "life::why_tells_the_reason", why_tells_the_reason),
        unless(not_root, "life::others_unmount", others_unmount),
        unless(
            not_root.or((!has_program("unshare")).then_some("needs unshare")),
            "life::a_copy_in_another_mount_namespace_is_told",
            a_copy_in_another_mount_namespace_is_told,
        ),
        unless(
            not_root,
            "life::the_kernel_reads_ahead",
            the_kernel_reads_ahead,
        ),
        unless(
            not_root,
            "life::a_redirection_is_one_put",
            a_redirection_is_one_put,
        ),
    ]
}

fn mount_status_umount() {
    let place = Place::new();
    let pid = place.mount(&[]);
    assert!(place.is_mounted() && runs(pid));
    let status = place.status();
    assert_eq!(status["state"], "mounted");
    assert_eq!(status["url"], "memory:");
    assert_eq!(status["dir"], place.text("mnt"));
    assert_eq!(status["fs"]["dirty_files"], 0);
    let said = place.run(&["status", &place.text("mnt")]);
    let first = format!("memory: on {}", place.text("mnt"));
    assert_eq!(said.stdout.lines().next(), Some(first.as_str()));
    let said = place.run(&["umount", &place.text("mnt")]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said:?}");
    assert!(!place.is_mounted() && !runs(pid));
    // Nothing is left of it but its state.
    assert_eq!(std::fs::read_dir(place.path("run")).unwrap().count(), 0);
    place.mount(&[]);
}

fn a_mount_point_in_use() {
    let place = Place::new();
    let pid = place.mount(&[]);
    let mnt = place.text("mnt");
    let said = place.run(&["mount", "memory:?seed=/etc", &mnt]);
    assert_eq!(
        said.stderr,
        format!(
            "bucketfs: memory: is mounted on {mnt} already by process {pid}; bucketfs umount {mnt} ends that\n"
        )
    );
    assert_eq!(said.code, Some(6));
    assert_eq!(place.pid(), pid);
}

fn a_killed_daemon_is_replaced() {
    let place = Place::new();
    let first = place.mount(&[]);
    kill(first, Signal::KILL);
    eventually("the daemon is gone", || !runs(first));
    assert!(place.is_mounted());
    let said = place.run(&["status", &place.text("mnt")]);
    assert!(
        said.stdout.contains("  dead: its process has ended"),
        "{said:?}"
    );
    let second = place.mount(&[]);
    assert_ne!(first, second);
    assert_eq!(place.status()["state"], "mounted");
}

fn a_dead_mount_is_unmounted() {
    let place = Place::new();
    let pid = place.mount(&[]);
    kill(pid, Signal::KILL);
    eventually("the daemon is gone", || !runs(pid));
    let mnt = place.text("mnt");
    let said = place.run(&["umount", &mnt]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(
        said.stdout,
        format!("{mnt}: took away the mount of memory:, whose process has died\n")
    );
    assert!(!place.is_mounted());
}

fn sigterm_unmounts() {
    let place = Place::new();
    let pid = place.mount(&[]);
    kill(pid, Signal::TERM);
    eventually("the daemon is gone", || !runs(pid));
    assert!(!place.is_mounted());
}

/// Keeps a mount busy without asking its daemon for anything.
fn occupy(place: &Place) -> std::os::fd::OwnedFd {
    rustix::fs::open(place.mnt(), OFlags::PATH, Mode::empty()).unwrap()
}

fn sigterm_detaches_what_is_busy() {
    let place = Place::new();
    let pid = place.mount(&[]);
    let _open = occupy(&place);
    kill(pid, Signal::TERM);
    eventually("the daemon is gone", || !runs(pid));
    assert!(!place.is_mounted());
}

fn a_busy_mount_stays() {
    let place = Place::new();
    let pid = place.mount(&[]);
    let mnt = place.text("mnt");
    let open = occupy(&place);
    let said = place.run(&["umount", &mnt]);
    assert_eq!(said.code, Some(6), "{said:?}");
    let me = std::process::id();
    assert!(
        said.stderr.contains(&format!("{mnt} is in use by "))
            && said.stderr.contains(&format!("{me} (")),
        "{said:?}"
    );
    assert!(place.is_mounted() && runs(pid));
    assert_eq!(place.status()["draining"], false);
    let said = place.run(&["umount", "--lazy", &mnt]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!place.is_mounted() && runs(pid));
    drop(open);
    eventually("the daemon ends with the last open file", || !runs(pid));
}

fn a_copy_in_another_mount_namespace_is_told() {
    let place = Place::new();
    std::fs::create_dir(place.path("store")).unwrap();
    let (url, mnt) = (format!("file://{}", place.text("store")), place.text("mnt"));
    let said = place.run(&["mount", &url, &mnt]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let daemon = place.pid();
    // It opens a file only when the mount is away here, and leaves it open.
    let script =
        "touch ready; read go; exec 3> mnt/file; echo pending >&3; touch written; read end";
    let mut other = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .current_dir(place.path(""))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // It ends with its input, also when this test fails.
    let mut input = other.stdin.take().unwrap();
    eventually("the namespace is there", || place.path("ready").exists());

    let said = place.run(&["umount", &mnt]);
    assert_eq!(said.code, Some(6), "{said:?}");
    let copy = format!(
        "the mount is also at {mnt} in the mount namespace of process {} (sh)",
        other.id()
    );
    assert!(said.stderr.contains(&copy), "{said:?}");
    assert!(!place.is_mounted() && runs(daemon));
    input.write_all(b"go\n").unwrap();
    eventually("the copy is written to", || place.path("written").exists());

    // The end was waited for already, and is not again.
    kill(daemon, Signal::TERM);
    let began = Instant::now();
    eventually("the daemon ends by a signal", || !runs(daemon));
    let took = began.elapsed();
    drop(input);
    other.wait().unwrap();
    assert!(took < Duration::from_secs(4), "{took:?}");
    let sent = std::fs::read_to_string(place.path("store/file"));
    assert_eq!(sent.unwrap(), "pending\n");
}

/// `cd mnt && bucketfs mount URL .` leaves the shell in the directory below the mount.
fn what_lies_below_the_mount_keeps_nobody_from_unmounting() {
    let place = Place::new();
    std::fs::write(place.path("mnt/below"), "").unwrap();
    let _file = std::fs::File::open(place.path("mnt/below")).unwrap();
    let mut shell = Command::new("sleep");
    let mut shell = shell.arg("60").current_dir(place.mnt()).spawn().unwrap();
    let pid = place.mount(&[]);
    let said = place.run(&["umount", &place.text("mnt")]);
    shell.kill().unwrap();
    shell.wait().unwrap();
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said:?}");
    assert!(!place.is_mounted() && !runs(pid));
}

/// `(exec 9>lock; flock 9; bucketfs mount URL DIR)` gives the lock back at once.
fn the_daemon_holds_nothing_of_who_started_it() {
    let place = Place::new();
    let lock = std::fs::File::create(place.path("lock")).unwrap();
    let exclusively = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(&lock, exclusively).unwrap();
    // Far from the daemon's own.
    let inherited = rustix::io::fcntl_dupfd_cloexec(&lock, 100).unwrap();
    rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
    rustix::io::fcntl_setfd(&lock, rustix::io::FdFlags::empty()).unwrap();
    place.mount(&[]);
    drop((lock, inherited));
    let lock = std::fs::File::open(place.path("lock")).unwrap();
    eventually("the lock is free", || {
        rustix::fs::flock(&lock, exclusively).is_ok()
    });
}

fn systemd_is_asked_for_time_while_an_unmount_sends() {
    let place = Place::new();
    let socket = place.path("notify");
    let notify = UnixDatagram::bind(&socket).unwrap();
    let mnt = place.text("mnt");
    let faults = ["--fault", "put:error=unavailable", "--retries", "0"];
    let mut command = place.command(&[&["mount", "-f", "memory:", &mnt], &faults[..]].concat());
    let child = command.env("NOTIFY_SOCKET", &socket).spawn().unwrap();
    eventually("it is mounted", || {
        place.run(&["status", &mnt]).stdout.contains("on /")
    });
    let _ = std::fs::write(place.path("mnt/file"), "precious");
    let said = place.run(&["umount", "--timeout", "2", &mnt]);
    assert_eq!(said.code, Some(8), "{said:?}");
    end(child);
    notify.set_nonblocking(true).unwrap();
    let mut heard = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(length) = notify.recv(&mut buffer) {
        heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    assert!(heard[0].starts_with("READY=1\n"), "{heard:?}");
    assert_eq!(
        heard[1],
        "STATUS=sending 1 files, 8 bytes\nEXTEND_TIMEOUT_USEC=62000000"
    );
}

fn a_hung_daemon_is_told() {
    let place = Place::new();
    let pid = place.mount(&[]);
    kill(pid, Signal::STOP);
    eventually("every thread has stopped", || all_stopped(pid));
    let began = Instant::now();
    let said = place.run(&["status", &place.text("mnt")]);
    assert!(began.elapsed() < Duration::from_secs(8));
    kill(pid, Signal::CONT);
    assert_eq!(said.code, Some(10), "{said:?}");
    assert!(
        said.stdout
            .contains(&format!("  process {pid} is not answering")),
        "{said:?}"
    );
    assert_eq!(place.pid(), pid);
}

fn all_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

/// As systemd runs it.
fn the_foreground_notifies() {
    let place = Place::new();
    let socket = place.path("notify");
    let notify = UnixDatagram::bind(&socket).unwrap();
    notify
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let heard = || {
        let mut buffer = [0; 512];
        let length = notify.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut command = place.command(&["mount", "-f", "memory:", &place.text("mnt")]);
    command.env("NOTIFY_SOCKET", &socket);
    let child = command.spawn().unwrap();
    let pid = child.id();
    assert_eq!(
        heard(),
        format!(
            "READY=1\nMAINPID={pid}\nSTATUS=memory: is mounted on {}",
            place.text("mnt")
        )
    );
    assert!(place.is_mounted());
    assert_eq!(place.pid(), pid);
    kill(pid, Signal::TERM);
    assert!(heard().starts_with("STOPPING=1\n"));
    let said = end(child);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.stderr.contains("INFO  SIGTERM: unmounting"),
        "{said:?}"
    );
    assert!(!place.is_mounted());
}

fn auto_unmount() {
    let place = Place::new();
    let pid = place.mount(&["--auto-unmount"]);
    kill(pid, Signal::KILL);
    eventually("the watchdog unmounts", || !place.is_mounted());
    // After an orderly end the watchdog has nothing to do, and another mount is safe from it.
    let pid = place.mount(&["-o", "auto_unmount"]);
    let said = place.run(&["umount", &place.text("mnt")]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!runs(pid));
    place.mount(&[]);
    std::thread::sleep(Duration::from_millis(200));
    assert!(place.is_mounted());
}

fn others_unmount() {
    let place = Place::new();
    let pid = place.mount(&[]);
    let mut command = Command::new("umount");
    command
        .arg(place.mnt())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let said = finish(command);
    assert_eq!(said.code, Some(0), "{said:?}");
    eventually("the daemon is gone", || !runs(pid));
}

fn the_kernel_reads_ahead() {
    let place = Place::new();
    place.mount(&[]);
    let line = bucketfs::mount::point::mounted_at(&place.mnt())
        .unwrap()
        .unwrap();
    assert_eq!(line.fs_type, "fuse.bucketfs");
    let (major, minor) = line.device;
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    assert_eq!(std::fs::read_to_string(path).unwrap().trim(), "1024");
}

/// A shell's redirection closes a duplicate before anything is written.
fn a_redirection_is_one_put() {
    let place = Place::new();
    place.mount(&[]);
    let run = |script: &str| {
        let mut shell = std::process::Command::new("bash");
        let done = shell.args(["-c", script]).current_dir(place.mnt()).status();
        assert!(done.unwrap().success(), "{script}");
    };
    let puts = || {
        let status = place.status();
        let counts = status.pointer("/requests/operations/put/count");
        counts.and_then(serde_json::Value::as_u64).unwrap_or(0)
    };
    for (script, cost) in [
        ("printf hello > new", 1),
        ("printf again > new", 1),
        ("echo more >> new; : > empty", 2),
        ("exec 3> held; printf x >&3; exec 3>&-", 1),
    ] {
        let before = puts();
        run(script);
        assert_eq!(puts() - before, cost, "{script}");
    }
    run("test \"$(cat new)\" = againmore && test -e empty && test \"$(cat held)\" = x");
}

/// The way in which tests of the filesystem mount.
fn in_process() {
    use bucketfs::config::{Sources, resolve};
    use bucketfs::mount::{KernelOptions, Session};
    let place = Place::new();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let settings = resolve(Sources {
        url: Some("memory:".into()),
        ..Sources::default()
    })
    .unwrap();
    let (staging, state) = (place.path("staging"), place.path("state"));
    for dir in [&staging, &state] {
        std::fs::create_dir(dir).unwrap();
    }
    let start = || {
        let stack = runtime
            .block_on(bucketfs::mount::open(&settings.store))
            .unwrap();
        let options = bucketfs::mount::fs_options(&settings, staging.clone(), state.clone(), None);
        let kernel = KernelOptions::of(&settings);
        Session::start(
            runtime.handle(),
            stack.driver,
            options,
            &kernel,
            &place.mnt(),
        )
        .unwrap()
    };
    let session = start();
    assert_eq!(session.path(), place.mnt());
    assert!(place.is_mounted());
    session.unmount().unwrap();
    assert!(!place.is_mounted());
    // A test that fails must not leave its mount behind.
    drop(start());
    assert!(!place.is_mounted());
}

/// The files that are kept below a directory, without the notes beside them.
fn kept_files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(kept_files(&path)),
            false if path.extension().is_none_or(|end| end != "json") => found.push(path),
            false => {}
        }
    }
    found.retain(|path| path.to_string_lossy().contains("/kept/"));
    found
}

fn what_is_not_sent_is_kept() {
    // Asked for over the socket, by a signal, and by somebody else's umount.
    for end in ["umount", "signal", "others"] {
        let place = Place::new();
        let faults = [
            "--fault",
            "put:error=unavailable",
            "--retries",
            "0",
            "--deadline",
            "1s",
        ];
        let pid = place.mount(&faults);
        // The failure is told by close, which this call does not look at.
        let _ = std::fs::write(place.path("mnt/file"), "precious");
        match end {
            "umount" => {
                let said = place.run(&["umount", "--timeout", "1", &place.text("mnt")]);
                assert_eq!(said.code, Some(8), "{said:?}");
                assert_eq!(
                    said.stderr,
                    "bucketfs: 1 file could not be sent; the bytes are kept\n"
                );
                let kept = kept_files(&place.path("state"));
                assert!(said.stdout.starts_with("not sent: file: "), "{said:?}");
                assert!(
                    said.stdout
                        .contains(&format!("kept as {}", kept[0].display())),
                    "{said:?}"
                );
            }
            "signal" => kill(pid, Signal::TERM),
            _ => bucketfs::mount::point::unmount(&place.mnt(), false).unwrap(),
        }
        eventually("the daemon is gone", || !runs(pid));
        let kept = kept_files(&place.path("state"));
        assert_eq!(kept.len(), 1, "{end}: {kept:?}");
        assert_eq!(std::fs::read_to_string(&kept[0]).unwrap(), "precious");
        // The next mount of the same URL tells.
        let said = place.run(&["mount", "memory:", &place.text("mnt")]);
        assert!(
            said.stderr
                .ends_with("kept holds files that an earlier mount could not send\n"),
            "{said:?}"
        );
    }
}

fn why_tells_the_reason() {
    let place = Place::new();
    place.mount(&["--fault", "put:error=denied"]);
    let file = place.text("mnt/file");
    let said = place.run(&["why", &file]);
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (Some(0), "no error recorded\n")
    );
    let _ = std::fs::write(&file, "x");
    let said = place.run(&["why", &file]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.contains("put \"file\": "), "{said:?}");
}
