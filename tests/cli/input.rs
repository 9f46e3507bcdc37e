//! Bad input gets one line that says what is wrong and what to do, and a documented exit code.

use crate::harness::{BINARY, Place, end, eventually, finish, has_program, without_settings};
use crate::{anywhere, unless};
use libtest_mimic::Trial;
use std::process::Command;

pub fn trials() -> Vec<Trial> {
    let no_systemd = (!has_program("systemd-analyze")).then_some("needs systemd-analyze");
    vec![
        anywhere("input::wrong_urls", wrong_urls),
        anywhere("input::wrong_options", wrong_options),
        anywhere("input::wrong_commands", wrong_commands),
        anywhere("input::wrong_mount_points", wrong_mount_points),
        anywhere("input::wrong_places", wrong_places),
        anywhere("input::wrong_configuration", wrong_configuration),
        anywhere("input::passwords_are_not_shown", passwords_are_not_shown),
        anywhere(
            "input::passwords_leave_the_arguments",
            passwords_leave_the_arguments,
        ),
        anywhere("input::stores_that_do_not_open", stores_that_do_not_open),
        anywhere("input::nothing_mounted", nothing_mounted),
        anywhere("input::help_and_version", help_and_version),
        anywhere("input::drivers_are_listed", drivers_are_listed),
        anywhere("input::check_of_a_good_store", check_of_a_good_store),
        anywhere("input::fake_mount", fake_mount),
        unless(no_systemd, "input::the_unit_is_valid", the_unit_is_valid),
    ]
}

/// Runs, and expects a failure of this code with exactly this line.
pub fn refused(place: &Place, args: &[&str], code: i32, line: &str) {
    let said = place.run(args);
    assert_eq!(said.stderr, format!("bucketfs: {line}\n"), "{args:?}");
    assert_eq!(said.code, Some(code), "{args:?}");
    assert_eq!(said.stdout, "", "{args:?}");
}

fn wrong_urls() {
    let place = Place::new();
    let mnt = place.text("mnt");
    refused(
        &place,
        &["mount", "bucket", &mnt],
        2,
        "not a URL: relative URL without a base; write it like memory:, file:///path or s3://bucket/prefix",
    );
    let schemes: Vec<_> = bucketfs::driver::DRIVERS
        .iter()
        .map(|driver| driver.scheme)
        .collect();
    let known = schemes.join(", ");
    for args in [&["mount", "gopher://b", &mnt][..], &["check", "gopher://b"]] {
        refused(
            &place,
            args,
            2,
            &format!("no driver for \"gopher\" URLs; there are drivers for {known}"),
        );
    }
    refused(
        &place,
        &["mount", &mnt],
        2,
        "no URL: give it before the directory, in BUCKETFS_URL or as \"url\" in --config FILE",
    );
}

fn wrong_options() {
    let place = Place::new();
    let mnt = place.text("mnt");
    let mount = |more: &[&'static str], line: &str| {
        refused(
            &place,
            &[&["mount", "memory:", &mnt], more].concat(),
            2,
            line,
        );
    };
    mount(
        &["--read-olny"],
        "unknown option --read-olny; did you mean --read-only?",
    );
    mount(
        &["--meta-ttl=5"],
        "unknown option --meta-ttl; did you mean --metadata-ttl?",
    );
    mount(
        &["-o", "rw,reed_only"],
        "unknown mount option \"reed_only\"; did you mean \"read-only\"?",
    );
    mount(
        &["--metadata-ttl", "soon"],
        "--metadata-ttl: \"soon\" is no duration; write it like 2, 500ms or 5m (a number alone is seconds), or minimal or indefinite",
    );
    mount(
        &["--memory=lots"],
        "--memory: \"lots\" is no size; write it like 512M or 4GiB (a number alone is MiB)",
    );
    mount(
        &["--file-mode", "rw-r--r--"],
        "--file-mode: \"rw-r--r--\" is no mode; write it in octal, like 644",
    );
    mount(
        &["--allow-other", "-o", "allow_root"],
        "allow-other and allow-root exclude each other; give one of them",
    );
    let mut command = place.command(&["mount", "memory:", &mnt]);
    command.env("BUCKETFS_CASH_DIR", "/x");
    let said = finish(command);
    assert_eq!(
        said.stderr,
        "bucketfs: unknown environment variable BUCKETFS_CASH_DIR; did you mean BUCKETFS_CACHE_DIR?\n"
    );
    assert_eq!(said.code, Some(2));
    refused(
        &place,
        &["umount", &mnt, "--timeout", "x"],
        2,
        "--timeout: \"x\" is no duration; write it like 2, 500ms or 5m (a number alone is seconds)",
    );
}

fn wrong_commands() {
    let place = Place::new();
    refused(
        &place,
        &["moutn", "x"],
        2,
        "unknown command \"moutn\"; did you mean \"mount\"?",
    );
    let said = place.run(&[]);
    assert_eq!(said.code, Some(2));
    assert!(
        said.stderr.contains("Usage: bucketfs <COMMAND>"),
        "{said:?}"
    );
}

fn wrong_mount_points() {
    let place = Place::new();
    let missing = place.text("none");
    refused(
        &place,
        &["mount", "memory:", &missing],
        6,
        &format!("the mount point {missing} does not exist; make it with: mkdir -p {missing}"),
    );
    let file = place.text("file");
    std::fs::write(&file, "").unwrap();
    refused(
        &place,
        &["mount", "memory:", &file],
        6,
        &format!("{file} is not a directory; give one to mount on"),
    );
    refused(
        &place,
        &["mount", "memory:", "/proc/self/fdinfo/none/none"],
        6,
        "the mount point /proc/self/fdinfo/none/none does not exist; make it with: mkdir -p /proc/self/fdinfo/none/none",
    );
}

/// What a daemon kept below its own mount would make it wait for itself.
fn wrong_places() {
    let place = Place::new();
    let mnt = place.text("mnt");
    let inside = place.text("mnt/cache/deep");
    refused(
        &place,
        &["mount", "memory:", &mnt, "--cache-dir", &inside],
        2,
        &format!("--cache-dir {inside} lies below the mount point {mnt}; choose a place outside"),
    );
    let root = place.text("");
    let root = root.trim_end_matches('/');
    refused(
        &place,
        &["mount", &format!("file://{root}"), &mnt],
        6,
        &format!(
            "the store {root} and the mount point {mnt} lie in each other; choose a directory outside the store"
        ),
    );
}

fn wrong_configuration() {
    let place = Place::new();
    let (mnt, file) = (place.text("mnt"), place.text("config.json"));
    let written = |text: &str, line: &str| {
        std::fs::write(&file, text).unwrap();
        refused(
            &place,
            &["mount", "memory:", &mnt, "--config", &file],
            2,
            &format!("{file}: {line}"),
        );
    };
    written(
        "{\"memory\": 1,}",
        "this configuration file is not JSON: trailing comma at line 1 column 14",
    );
    written(
        "{\"staging_sise\": 1}",
        "unknown key \"staging_sise\"; did you mean \"staging-size\"?",
    );
    written(
        "{\"read-only\": \"maybe\"}",
        "read-only: \"maybe\" is neither true nor false",
    );
    let missing = place.text("none.json");
    refused(
        &place,
        &["mount", "memory:", &mnt, "-o", &format!("config={missing}")],
        2,
        &format!(
            "{missing}: cannot read this configuration file: No such file or directory (os error 2)"
        ),
    );
}

fn passwords_are_not_shown() {
    let place = Place::new();
    for args in [
        &["mount", "memory://user:SECRET@host/", &place.text("mnt")][..],
        &["check", "memory://user:SECRET@host/"],
        &["mount", "gopher://user:SECRET@host/", &place.text("mnt")],
    ] {
        let said = place.run(args);
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(!format!("{said:?}").contains("SECRET"), "{said:?}");
    }
}

/// Every user can read the arguments of a process.
fn passwords_leave_the_arguments() {
    let place = Place::new();
    let fifo = place.path("config");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    // It waits for somebody to write its configuration.
    let mut command = place.command(&[
        "mount",
        "memory://user:SECRET@host/",
        &place.text("mnt"),
        "--config",
        fifo.to_str().unwrap(),
    ]);
    let child = command.spawn().unwrap();
    let arguments = || {
        let line = std::fs::read(format!("/proc/{}/cmdline", child.id())).unwrap();
        String::from_utf8_lossy(&line).replace('\0', " ")
    };
    let wanted = format!(
        "bucketfs mount {} --config {} ",
        place.text("mnt"),
        fifo.display()
    );
    eventually("the password is gone", || arguments() == wanted);
    std::fs::write(&fifo, "{}").unwrap();
    let said = end(child);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(
        said.stderr
            .contains("cannot open memory://user:***@host/: "),
        "{said:?}"
    );
}

fn stores_that_do_not_open() {
    let place = Place::new();
    let mnt = place.text("mnt");
    let file = place.text("file");
    std::fs::write(&file, "").unwrap();
    let missing = place.text("none");
    for (url, code, why) in [
        (
            format!("file://{missing}"),
            5,
            format!(
                "there is no directory {missing}; make it with mkdir -p: No such file or directory (os error 2)"
            ),
        ),
        (
            format!("file://{file}"),
            5,
            format!("{file} is no directory; name one that exists: Not a directory (os error 20)"),
        ),
        (
            "file://host/dir".into(),
            2,
            "file URLs name no host; write three slashes: file:///path".into(),
        ),
        (
            "file:///dir?mode=7".into(),
            2,
            "file URLs take no parameters; write '?' in a path as %3F and '#' as %23".into(),
        ),
        (
            "memory:?size=lots".into(),
            2,
            "size=\"lots\" is not a number of bytes".into(),
        ),
        (
            "memory:?size=1&size=2".into(),
            2,
            "the parameter \"size\" is given twice".into(),
        ),
        (
            "memory:?sise=1".into(),
            2,
            "memory URLs take no parameter \"sise\", only seed, size".into(),
        ),
        (
            format!("memory:?seed={missing}"),
            2,
            format!(
                "cannot take the store's content from {missing}: No such file or directory (os error 2)"
            ),
        ),
    ] {
        let line = format!("cannot open {url}: {why}");
        refused(&place, &["mount", &url, &mnt], code, &line);
        refused(&place, &["check", &url], code, &line);
    }
    assert!(!place.is_mounted());
}

fn nothing_mounted() {
    let place = Place::new();
    let mnt = place.text("mnt");
    // Mounts that others made on this machine may be shown by the plain status.
    let line = format!("{mnt} is not a bucketfs mount; bucketfs status lists them");
    refused(&place, &["status", &mnt], 6, &line);
    refused(&place, &["umount", &mnt], 6, &line);
    refused(
        &place,
        &["why", &mnt],
        6,
        &format!("{mnt} is not in a bucketfs mount; bucketfs status lists them"),
    );
    let said = place.run(&["status"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    if !std::fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .contains("fuse.bucketfs")
    {
        assert_eq!(said.stdout, "no bucketfs mounts\n");
    }
}

fn help_and_version() {
    let place = Place::new();
    let said = place.run(&["--version"]);
    assert_eq!(
        said.stdout,
        format!("bucketfs {}\n", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(said.code, Some(0));
    let said = place.run(&["--help"]);
    assert_eq!(said.code, Some(0));
    for exit in bucketfs::exit::Exit::ALL {
        let line = format!("{:2}  {}\n", exit.code(), exit.about());
        assert!(said.stdout.contains(&line), "{line}");
    }
    let said = place.run(&["mount", "--help"]);
    for option in bucketfs::config::options::OPTIONS {
        assert!(
            said.stdout.contains(&format!("--{}", option.name)),
            "{}",
            option.name
        );
    }
}

fn drivers_are_listed() {
    let said = Place::new().run(&["drivers"]);
    assert_eq!(said.code, Some(0));
    for driver in bucketfs::driver::DRIVERS {
        assert!(said.stdout.lines().any(|line| line == driver.about));
    }
}

fn check_of_a_good_store() {
    let place = Place::new();
    let said = place.run(&["check", "memory:"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.stderr, "");
    let line = "writing only a name that is not there (If-None-Match): honoured (atomic, as the driver claims)";
    assert!(said.stdout.lines().any(|said| said == line), "{said:?}");
    let said = place.run(&["check", "memory:", "--clean"]);
    assert_eq!(
        said.stdout,
        "memory: answers\nremoved 0 objects below .bucketfs/\n"
    );
}

/// `mount -f` of mount(8) asks for everything but the mount.
fn fake_mount() {
    let place = Place::new();
    let helper = place.path("mount.fuse.bucketfs");
    std::os::unix::fs::symlink(BINARY, &helper).unwrap();
    let run = |url: &str, options: &str| {
        let mut command = Command::new(&helper);
        without_settings(&mut command);
        command.args([url, &place.text("mnt"), "-fn", "-o", options]);
        command.output().unwrap()
    };
    assert!(run("memory:", "rw,_netdev").status.success());
    // Nobody is there, which only a mount would find out.
    let hidden = run("redis://:hunter2@127.0.0.1:1/0", "rw");
    assert!(hidden.status.success(), "{hidden:?}");
    let output = run("memory:", "rw,_netdve");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "bucketfs: unknown mount option \"_netdve\"; did you mean \"_netdev\"?\n"
    );
    assert!(!place.is_mounted());
}

fn the_unit_is_valid() {
    let place = Place::new();
    let unit = include_str!("../../systemd/bucketfs@.service");
    // The program need not be installed where it is tested.
    let unit = unit.replace("/usr/bin/bucketfs", BINARY);
    let unit = unit.replace("/usr/bin/fusermount3", "/bin/true");
    let path = place.path("bucketfs@.service");
    std::fs::write(&path, unit).unwrap();
    let output = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
}
