//! Bad luck on a mount: the errno that a program gets, and the sentence that `bucketfs why` gives.

use crate::harness::{Place, Said, eventually, finish, no_fuse, runs};
use crate::unless;
use libtest_mimic::Trial;
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

pub fn trials() -> Vec<Trial> {
    let missing = no_fuse();
    let list: [(&str, fn()); 9] = [
        ("sentences::an_invalid_document", an_invalid_document),
        ("sentences::a_name_that_the_store_denies", a_denied_name),
        (
            "sentences::answers_that_are_garbage",
            answers_that_are_garbage,
        ),
        ("sentences::what_is_too_much", what_is_too_much),
        ("sentences::a_store_that_is_down", a_store_that_is_down),
        (
            "sentences::a_directory_that_cannot_be_listed",
            a_directory_that_cannot_be_listed,
        ),
        (
            "sentences::a_store_that_was_removed",
            a_store_that_was_removed,
        ),
        (
            "sentences::a_panic_is_one_failed_request",
            a_panic_is_one_failed_request,
        ),
        (
            "sentences::a_mount_waits_for_the_end_of_the_one_before",
            a_mount_waits,
        ),
    ];
    let trials = list.into_iter();
    trials
        .map(|(name, test)| unless(missing, name, test))
        .collect()
}

/// Mounts with a fault and no patience.
fn faulty(place: &Place, fault: &str) -> u32 {
    place.mount(&["--fault", fault, "--retries", "0", "--deadline", "1s"])
}

/// Writes a file and fsyncs it; gives the errno.
fn write(place: &Place, name: &str, content: &[u8]) -> Option<i32> {
    let mut file = File::create(place.path("mnt").join(name)).unwrap();
    let outcome = file.write_all(content).and_then(|()| file.sync_all());
    outcome.err().and_then(|error| error.raw_os_error())
}

/// What `why` says, without the time that some sentences begin with.
fn why(place: &Place, name: &str) -> String {
    let said = place.run(&["why", &place.text(&format!("mnt/{name}"))]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said:?}");
    let line = said.stdout.trim_end();
    assert_eq!(line.lines().count(), 1, "{said:?}");
    match line.split_once("Z: ") {
        Some((time, rest)) if time.starts_with("20") && time.len() == 19 => rest.to_owned(),
        _ => line.to_owned(),
    }
}

/// The one conflict file of a name.
fn conflict(place: &Place, name: &str) -> String {
    let begin = format!("{name}.conflict-");
    let names = std::fs::read_dir(place.mnt()).unwrap();
    let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.find(|name| name.starts_with(&begin)).unwrap()
}

/// The same failure is found under the name that the program wrote to and under that of the
/// conflict file, in `why` and in `status`.
fn kept_beside(place: &Place, errno: (i32, &str), kind: &str, cause: &str) {
    let (errno, errno_name) = errno;
    faulty(place, &format!("put:error={kind}@1"));
    assert_eq!(write(place, "file", b"{\"a\": }"), Some(errno));
    let kept = conflict(place, "file");
    let content = std::fs::read(place.mnt().join(&kept)).unwrap();
    assert_eq!(content, b"{\"a\": }");
    // The kernel is told in the background that the name leads elsewhere.
    let expected = format!("{cause}; the bytes are kept as {kept}");
    let mut told = why(place, "file");
    for _ in 0..100 {
        if told == expected {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        told = why(place, "file");
    }
    assert_eq!(told, expected);
    let sentence =
        format!("\"file\": {cause}; the bytes written here are kept beside it as {kept:?}");
    assert_eq!(why(place, &kept), format!("{errno_name}: {sentence}"));
    let status = place.status();
    let last = status["fs"]["errors"].as_array().unwrap().last().unwrap();
    assert_eq!(last["path"], "file");
    assert_eq!(last["message"], sentence);
    assert_eq!(status["fs"]["conflicts"][0]["path"], "file");
}

fn an_invalid_document() {
    kept_beside(
        &Place::new(),
        (libc::EINVAL, "EINVAL"),
        "invalid-document",
        "put \"file\": injected fault: the request was not sent",
    );
}

fn a_denied_name() {
    kept_beside(
        &Place::new(),
        (libc::EACCES, "EACCES"),
        "denied",
        "put \"file\": injected fault: the request was not sent",
    );
}

fn answers_that_are_garbage() {
    for (fault, sentence) in [
        (
            "get:truncate=3",
            "EIO: get \"file\": the body ended at byte 3 of 10",
        ),
        (
            "get:error=corrupt",
            "EIO: get \"file\": injected fault: the request was not sent",
        ),
        (
            "get:break=3",
            "EIO: get \"file\": injected fault: the connection broke",
        ),
    ] {
        let place = Place::new();
        let seed = place.path("seed");
        std::fs::create_dir(&seed).unwrap();
        std::fs::write(seed.join("file"), "0123456789").unwrap();
        let url = format!("memory:?seed={}", seed.display());
        let args = [
            "mount",
            &url,
            &place.text("mnt"),
            "--fault",
            fault,
            "--retries",
            "0",
        ];
        let said = place.run(&args);
        assert_eq!(said.code, Some(0), "{said:?}");
        let mut content = Vec::new();
        let opened = File::open(place.path("mnt/file"));
        let read = opened.and_then(|mut file| file.read_to_end(&mut content));
        let error = read.expect_err("it is not whole");
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{fault}");
        assert_eq!(content, b"", "{fault}");
        assert_eq!(why(&place, "file"), sentence, "{fault}");
    }
}

fn what_is_too_much() {
    let place = Place::new();
    let mnt = place.text("mnt");
    assert_eq!(place.run(&["mount", "memory:?size=10", &mnt]).code, Some(0));
    assert_eq!(write(&place, "small", b"0123456"), None);
    assert_eq!(write(&place, "more", b"0123456"), Some(libc::ENOSPC));
    assert_eq!(
        why(&place, "more"),
        "ENOSPC: put \"more\": 7 more bytes do not fit: 7 of 10 bytes are in use"
    );
    std::fs::remove_file(place.path("mnt/more")).unwrap();
    let content = std::fs::read(place.path("mnt/small")).unwrap();
    assert_eq!(content, b"0123456");

    let place = Place::new();
    place.mount(&["--staging-size", "1"]);
    let mut file = File::create(place.path("mnt/large")).unwrap();
    let error = file.write_all(&vec![7; 3 << 20]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
    assert_eq!(
        why(&place, "large"),
        "EFBIG: \"large\": larger than 1048576 bytes, the most that can be staged or stored; see --staging-size"
    );
}

fn a_store_that_is_down() {
    for (fault, errno, sentence) in [
        (
            "put:hang",
            libc::ETIMEDOUT,
            "ETIMEDOUT: put \"file\": the store has not answered for 1s",
        ),
        (
            "put:error=unreachable",
            libc::EIO,
            "EIO: put \"file\": injected fault: the request was not sent",
        ),
        (
            "put:error=unavailable",
            libc::EIO,
            "EIO: put \"file\": injected fault: the request was not sent",
        ),
        (
            "put:error=unauthenticated",
            libc::EPERM,
            "EPERM: put \"file\": injected fault: the request was not sent",
        ),
    ] {
        let place = Place::new();
        faulty(&place, fault);
        assert_eq!(write(&place, "file", b"precious"), Some(errno), "{fault}");
        assert_eq!(why(&place, "file"), sentence, "{fault}");
        assert_eq!(std::fs::read(place.path("mnt/file")).unwrap(), b"precious");
    }
}

/// The error is one of the directory, which is in the way of every name in it.
fn a_directory_that_cannot_be_listed() {
    for kind in ["denied", "unavailable"] {
        let place = Place::new();
        faulty(&place, &format!("list:error={kind}"));
        let looked = std::fs::symlink_metadata(place.path("mnt/dir/file"));
        looked.expect_err("its directory cannot be looked up");
        let told = why(&place, "dir/file");
        let sentence = "injected fault: the request was not sent";
        assert!(told.contains(sentence), "{told}");
    }
}

fn a_store_that_was_removed() {
    let place = Place::new();
    std::fs::create_dir(place.path("store")).unwrap();
    std::fs::write(place.path("store/old"), "old").unwrap();
    let url = format!("file://{}", place.text("store"));
    let said = place.run(&["mount", &url, &place.text("mnt")]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let pid = place.pid();
    let look = |name: &str| {
        let looked = std::fs::symlink_metadata(place.mnt().join(name));
        looked.err().and_then(|error| error.raw_os_error())
    };
    assert_eq!(look("old"), None);
    let listed = || std::fs::read_dir(place.mnt()).and_then(|mut names| names.next().transpose());
    assert!(listed().unwrap().is_some());

    let mut new = File::create(place.path("mnt/new")).unwrap();
    new.write_all(b"new").unwrap();

    std::fs::remove_dir_all(place.path("store")).unwrap();
    // The kernel may believe for a while that a name is absent which it asked for too early.
    let mut names = (0..).map(|i| format!("never{i}"));
    eventually("the mount hears of it", || {
        look(&names.next().unwrap()) == Some(libc::EIO)
    });
    let refused = listed().expect_err("it is no empty directory");
    assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    eventually("what was known is asked for", || {
        look("old") == Some(libc::EIO)
    });
    let made = std::fs::create_dir(place.path("mnt/dir")).unwrap_err();
    assert_eq!(made.raw_os_error(), Some(libc::EIO));
    let unsent = new.sync_all().unwrap_err();
    assert_eq!(unsent.raw_os_error(), Some(libc::EIO));
    drop(new);
    let store = place.text("store");
    let sentence = format!(
        "put \"new\": the directory {store} was removed while it was mounted: unmount, make it again, and mount"
    );
    assert_eq!(why(&place, "new"), format!("EIO: {sentence}"));

    let said = place.run(&["umount", &place.text("mnt")]);
    assert_eq!(said.code, Some(8), "{said:?}");
    assert!(said.stdout.contains(&sentence), "{said:?}");
    eventually("the daemon has ended", || !runs(pid));
    let kept = said.stdout.trim_end().rsplit_once(" are kept as ");
    let kept = std::fs::read(kept.expect("where they are").1);
    assert_eq!(kept.unwrap(), b"new");
}

fn a_panic_is_one_failed_request() {
    let place = Place::new();
    let pid = faulty(
        &place,
        "put:panic@1:key~file,head:panic@1:key~name,list:panic@1:key~name",
    );
    assert_eq!(write(&place, "file", b"precious"), Some(libc::EIO));
    let metadata = std::fs::metadata(place.path("mnt/name/x"));
    assert_eq!(metadata.unwrap_err().raw_os_error(), Some(libc::EIO));
    // The mount lives on, and so do the bytes.
    assert_eq!(place.pid(), pid);
    eventually("it is sent", || place.status()["fs"]["dirty_files"] == 0);
    assert_eq!(std::fs::read(place.path("mnt/file")).unwrap(), b"precious");
    assert_eq!(write(&place, "other", b"x"), None);
    let status = place.status();
    let log = std::fs::read_to_string(status["log_file"].as_str().unwrap()).unwrap();
    assert!(log.contains("injected fault: put"), "{log}");
}

/// `umount` of mount(8) returns while the daemon still sends.
fn a_mount_waits() {
    let place = Place::new();
    let first = place.mount(&[
        "--fault",
        "put:error=unavailable@1,put:error=unavailable@2,put:delay=1s@3+",
        "--retries",
        "0",
    ]);
    let _ = std::fs::write(place.path("mnt/file"), "precious");
    let mut umount = Command::new("umount");
    umount
        .arg(place.mnt())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let said: Said = finish(umount);
    assert_eq!(said.code, Some(0), "{said:?}");
    let second = place.mount(&[]);
    assert!(first != second && !runs(first));
    assert!(place.is_mounted());
}
