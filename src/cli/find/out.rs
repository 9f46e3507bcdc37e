//! What `bucketfs find` prints.

use super::Find;
use crate::cli::print;
use crate::driver::compact;
use crate::exit::Failure;
use crate::key::Key;
use crate::{logging, name};
use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How a match is printed.
enum Form {
    Path,
    Key,
    Json,
    /// Only counted.
    Nothing,
}

/// Standard output for matches, and standard error for what goes on.
pub struct Out {
    form: Form,
    end: u8,
    /// What stands before paths.
    dir: Vec<u8>,
    prefix: Key,
    /// How many objects were looked at, where a terminal shows it.
    looked: Option<u64>,
    found: u64,
    is_shown: bool,
}

/// After how many objects the terminal is told.
const EVERY: u64 = 64;

impl Out {
    /// What a directory was given as stands before its paths; keys in it begin with a prefix.
    pub fn new(find: &Find, dir: Option<&Path>, prefix: &Key) -> Out {
        let mut before = dir.map_or(Vec::new(), |dir| dir.as_os_str().as_bytes().to_vec());
        if !before.is_empty() && !before.ends_with(b"/") {
            before.push(b'/');
        }
        Out {
            form: match (find.count, find.json_out, find.keys) {
                (true, ..) => Form::Nothing,
                (_, true, _) => Form::Json,
                (_, _, true) => Form::Key,
                _ => Form::Path,
            },
            end: if find.null { 0 } else { b'\n' },
            dir: before,
            prefix: prefix.clone(),
            looked: std::io::stderr().is_terminal().then_some(0),
            found: 0,
            is_shown: false,
        }
    }

    /// Prints a match; whether more are wanted. What it gives `true` for has left this program.
    pub fn say(&mut self, key: &Key, text: &[u8]) -> Result<bool, Failure> {
        self.found += 1;
        let mut line = match self.form {
            Form::Nothing => return Ok(true),
            Form::Key => key.as_bytes().to_vec(),
            Form::Path => path(&self.dir, &self.prefix, key),
            Form::Json => json(key, text).into_bytes(),
        };
        line.push(self.end);
        self.clear();
        print(&line)
    }

    /// Tells of what went wrong, on a line of its own.
    pub fn complain(&mut self, why: &str) {
        self.clear();
        let _ = writeln!(std::io::stderr(), "bucketfs: {}", logging::one_line(why));
    }

    /// Counts objects that were looked at.
    pub fn progress(&mut self, more: u64) {
        let Some(looked) = &mut self.looked else {
            return;
        };
        let before = *looked;
        *looked += more;
        if before / EVERY != *looked / EVERY {
            let line = format!("\r{looked} objects looked at, {} found\x1b[K", self.found);
            let _ = std::io::stderr().write_all(line.as_bytes());
            self.is_shown = true;
        }
    }

    /// Takes the progress away.
    pub fn end(&mut self) {
        self.clear();
        self.looked = None;
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            let _ = std::io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

/// The path of a key as a mount shows it. Where a directory has its name, which only the mount on
/// `dir` can tell, a file has another.
fn path(dir: &[u8], prefix: &Key, key: &Key) -> Vec<u8> {
    let inside = key.strip_prefix(prefix).unwrap_or_else(|| key.clone());
    let path = [dir, &name::path(inside.as_bytes())].concat();
    let is_directory = |path: &[u8]| {
        let found = Path::new(OsStr::from_bytes(path)).symlink_metadata();
        found.is_ok_and(|found| found.is_dir())
    };
    let last = inside.as_bytes().rsplit(|byte| *byte == b'/').next();
    match last.filter(|_| !dir.is_empty() && is_directory(&path)) {
        Some(last) => {
            let plain = name::encode(last).into_names().join(&b'/').len();
            let beside = name::encode_file_beside(last).into_names();
            [&path[..path.len() - plain], &beside.join(&b'/')].concat()
        }
        None => path,
    }
}

/// A key and its document on one line.
fn json(key: &Key, text: &[u8]) -> String {
    let key = serde_json::Value::from(String::from_utf8_lossy(key.as_bytes()));
    let document = compact(&String::from_utf8_lossy(text));
    format!("{{\"key\":{key},\"document\":{document}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_paths_that_a_mount_shows() {
        for (dir, prefix, key, wanted) in [
            ("", "", "a/b.json", "a/b.json"),
            ("mnt/", "", "a//b", "mnt/a/%~e/b"),
            ("mnt/sub/", "sub/", "sub/x", "mnt/sub/x"),
            ("", "", "../x", "%~D/x"),
        ] {
            let path = path(dir.as_bytes(), &prefix.into(), &key.into());
            assert_eq!(String::from_utf8_lossy(&path), wanted);
        }
        let long = format!("d/{}", "x".repeat(300));
        let path = path(b"", &Key::empty(), &long.as_str().into());
        assert_eq!(path.split(|byte| *byte == b'/').count(), 3);
    }

    #[test]
    fn a_file_beside_a_directory_has_the_name_that_the_mount_gives_it() {
        let mount = tempfile::tempdir().unwrap();
        let long = "x".repeat(300);
        let names = name::path(long.as_bytes());
        for directory in [b"t".as_slice(), b"a/b", &names] {
            std::fs::create_dir_all(mount.path().join(OsStr::from_bytes(directory))).unwrap();
        }
        let dir = [mount.path().as_os_str().as_bytes(), b"/"].concat();
        let long_beside = [&names[..], b"%~f"].concat();
        for (key, wanted) in [
            ("t", b"t%~f".as_slice()),
            ("t/inner", b"t/inner"),
            ("u", b"u"),
            ("a/b", b"a/b%~f"),
            (&long, &long_beside),
        ] {
            let path = path(&dir, &Key::empty(), &key.into());
            let inside = path.strip_prefix(&dir[..]).unwrap();
            assert_eq!(
                String::from_utf8_lossy(inside),
                String::from_utf8_lossy(wanted)
            );
        }
    }

    #[test]
    fn a_match_is_a_line_of_json() {
        let line = json(&"a\"b".into(), b"{\n \"z\": 1.10,\n \"a\": \"x y\"\n}\n");
        assert_eq!(line, r#"{"key":"a\"b","document":{"z":1.10,"a":"x y"}}"#);
    }
}
