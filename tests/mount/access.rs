//! Other users: who gets in, what modes allow, and mounts without root.

use crate::harness::{BINARY, Need, PYTHON, Place, Program, Root, trial};
use libtest_mimic::Trial;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

/// An ordinary user and group.
const NOBODY: u32 = 65_534;
const AS_NOBODY: Need = Program("setpriv");

pub fn trials() -> Vec<Trial> {
    let needs = &[Root, PYTHON, AS_NOBODY];
    let by_user = trial(
        &[Root, PYTHON, AS_NOBODY, Program("fusermount3")],
        "access::a_user_mounts_through_fusermount",
        a_user_mounts_through_fusermount,
    );
    vec![
        trial(needs, "access::others_are_kept_out", others_are_kept_out),
        trial(needs, "access::modes_are_enforced", modes_are_enforced),
        trial(
            needs,
            "access::others_may_not_ask_for_documents",
            others_may_not_ask_for_documents,
        ),
        trial(
            needs,
            "access::a_write_drops_privilege_bits",
            a_write_drops_privilege_bits,
        ),
        match std::fs::metadata("/dev/fuse").map(|facts| facts.mode() & 0o006) {
            Ok(0o006) => by_user,
            _ => by_user
                .with_ignored_flag(true)
                .with_kind("needs chmod 666 /dev/fuse"),
        },
    ]
}

/// Makes a command run as an ordinary user.
fn as_nobody(command: &Command) -> Command {
    let mut changed = Command::new("setpriv");
    changed
        .args(["--reuid", &NOBODY.to_string()])
        .args(["--regid", &NOBODY.to_string()])
        .args(["--clear-groups", "--"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => changed.env(name, value),
            None => changed.env_remove(name),
        };
    }
    changed
}

/// Runs a script as an ordinary user, and gives what it printed.
fn nobody(place: &Place, script: &str, args: &[&Path]) -> String {
    let mut command = as_nobody(&place.python(script, args));
    command.stdin(std::process::Stdio::null()).current_dir("/");
    let said = place.run(&mut command);
    assert_eq!(said.code, Some(0), "{said:?}");
    said.stdout.trim_end().to_owned()
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn others_are_kept_out(place: &Place) {
    let m = place.file("m", &[]);
    std::fs::write(m.path("f"), "open to all").unwrap();
    chmod(&m.path("f"), 0o666);
    let said = nobody(
        place,
        "
for f in os.stat, os.listdir, os.chdir:
    say(attempt(f, sys.argv[1]))
say(attempt(open, sys.argv[2]))
",
        &[&m.path(""), &m.path("f")],
    );
    assert_eq!(said, "EACCES\nEACCES\nEACCES\nEACCES");
}

fn others_may_not_ask_for_documents(place: &Place) {
    let m = place.file("m", &["--allow-other"]);
    std::fs::create_dir(m.path("private")).unwrap();
    chmod(&m.path("private"), 0o700);
    std::fs::write(m.path("private/f"), "{\"n\": 1}").unwrap();
    let (query, link) = (m.path(".query/n=1"), m.path(".query/n=1/private%2Ff"));
    assert!(link.exists());
    let said = nobody(
        place,
        "
say(attempt(os.listdir, sys.argv[1]))
say(attempt(os.listdir, sys.argv[2]))
say(attempt(os.readlink, sys.argv[3]))
",
        &[&m.path(".query"), &query, &link],
    );
    assert_eq!(said, "EACCES\nEACCES\nEACCES");
}

fn modes_are_enforced(place: &Place) {
    let m = place.file("m", &["--allow-other"]);
    for (name, mode) in [("closed", 0o600), ("readable", 0o644), ("open", 0o666)] {
        std::fs::write(m.path(name), name).unwrap();
        chmod(&m.path(name), mode);
    }
    for (name, mode) in [("private", 0o700), ("public", 0o777), ("sticky", 0o1777)] {
        std::fs::create_dir(m.path(name)).unwrap();
        chmod(&m.path(name), mode);
        std::fs::write(m.path(name).join("root"), "root's").unwrap();
    }
    let said = nobody(
        place,
        "
os.chdir(sys.argv[1])
def write(path):
    with open(path, 'r+') as f:
        f.write('nobody')
def make(path):
    with open(path, 'x') as f:
        f.write('made')
for name in 'closed', 'readable', 'open':
    say(attempt(open, name), attempt(write, name), attempt(os.chmod, name, 0o777))
say(attempt(make, 'new'), attempt(os.mkdir, 'newdir'), attempt(os.unlink, 'open'))
say(attempt(os.listdir, 'private'), attempt(os.stat, 'private/root'))
say(attempt(make, 'public/mine'), attempt(os.unlink, 'public/root'))
say(attempt(make, 'sticky/mine'), attempt(os.unlink, 'sticky/root'))
say(attempt(os.unlink, 'sticky/mine'), attempt(os.chown, 'public/mine', 0, 0))
say(attempt(os.chmod, 'public/mine', 0o640), attempt(os.mkdir, 'public/dir', 0o750))
",
        &[&m.path("")],
    );
    assert_eq!(
        said,
        "EACCES EACCES EPERM\nOK EACCES EPERM\nOK OK EPERM\nEACCES EACCES EACCES\n\
         EACCES EACCES\nOK OK\nOK EPERM\nOK EPERM\nOK OK"
    );
    assert_eq!(place.stored("open").unwrap(), b"nobody");
    for (name, mode) in [("public/mine", 0o100_640), ("public/dir", 0o40_750)] {
        let facts = m.path(name).metadata().unwrap();
        assert_eq!((facts.uid(), facts.gid()), (NOBODY, NOBODY), "{name}");
        assert_eq!(facts.mode(), mode, "{name}");
    }
}

fn a_write_drops_privilege_bits(place: &Place) {
    let m = place.file("m", &["--allow-other"]);
    let mode = |name: &str| m.path(name).metadata().unwrap().mode() & 0o7777;
    for name in ["written", "cut", "truncated", "by-root", "punched"] {
        std::fs::write(m.path(name), "a program").unwrap();
        chmod(&m.path(name), 0o6777);
        assert_eq!(mode(name), 0o6777);
    }
    nobody(
        place,
        "
os.chdir(sys.argv[1])
fd = os.open('written', os.O_WRONLY)
os.write(fd, b'x')
say(oct(os.fstat(fd).st_mode))
os.close(fd)
os.truncate('cut', 3)
os.close(os.open('truncated', os.O_WRONLY | os.O_TRUNC))
",
        &[&m.path("")],
    );
    std::fs::write(m.path("by-root"), "another").unwrap();
    assert_eq!(mode("written"), 0o777);
    assert_eq!(mode("cut"), 0o777);
    assert_eq!(mode("truncated"), 0o777);
    assert_eq!(mode("by-root"), 0o6777);
    let stored = |name: &str| {
        let path = place.path("store").join(name);
        path.metadata().unwrap().mode() & 0o7777
    };
    assert_eq!((stored("written"), stored("cut")), (0o777, 0o777));
    // chown drops them too, whoever does it.
    std::os::unix::fs::chown(m.path("by-root"), Some(NOBODY), None).unwrap();
    assert_eq!(mode("by-root"), 0o777);
}

fn a_user_mounts_through_fusermount(place: &Place) {
    // The command may lie where only root comes. A process copies it that forks no others: they
    // would have it open for writing, and it could not be executed (ETXTBSY).
    let binary = place.path("bucketfs");
    let copied = place.run(Command::new("cp").arg(BINARY).arg(&binary));
    assert_eq!(copied.code, Some(0), "{copied:?}");
    chmod(&binary, 0o755);
    for name in ["m", "run", "state", "cache"] {
        let _ = std::fs::create_dir(place.path(name));
    }
    for name in ["m", "run", "state", "cache", "store"] {
        std::os::unix::fs::chown(place.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
        chmod(&place.path(name), 0o700);
    }
    let mut command = Command::new(&binary);
    command
        .args(["mount", "-f", &place.file_url()])
        .arg(place.path("m"));
    place.settle(&mut command);
    command.env("HOME", place.path("state"));
    let mut command = as_nobody(&command);
    command.current_dir("/");
    let m = place.started("m", command, true);
    let said = nobody(
        place,
        "
os.chdir(sys.argv[1])
with open('f', 'x') as f:
    f.write('from nobody')
os.mkdir('d')
os.rename('f', 'd/f')
s = os.stat('d/f')
say(open('d/f').read(), s.st_uid, s.st_gid)
os.chdir('/')
",
        &[&m.path("")],
    );
    assert_eq!(said, format!("from nobody {NOBODY} {NOBODY}"));
    assert_eq!(place.stored("d/f").unwrap(), b"from nobody");
    // Not even root comes in, and other users' files are refused.
    let refused = std::fs::read_dir(m.path("")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    let mut umount = Command::new(&binary);
    umount.arg("umount").arg(m.path(""));
    place.settle(&mut umount);
    let mut umount = as_nobody(&umount);
    let said = place.run(umount.current_dir("/"));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!m.is_mounted());
    m.ends(0);
}
