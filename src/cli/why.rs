//! `bucketfs why`: the sentence behind an errno.

use super::say;
use super::status::time;
use crate::control;
use crate::exit::{Exit, Failure};
use crate::fs::{ErrorRecord, FsStatus};
use crate::mount::point::{self, MountLine};
use std::path::{Path, PathBuf};

/// Where a file tells its last error.
const ATTRIBUTE: &str = "user.bucketfs.error";
/// Longest sentence that is read.
const LONGEST: usize = 64 << 10;

/// Tells why the last operation on a file failed: from its extended attribute, else from what
/// the daemon remembers.
pub fn run(path: &Path) -> Result<Exit, Failure> {
    let path = match point::locate(path) {
        Ok(path) => path,
        // It may be the mount that fails on the way there.
        Err(failure) => {
            let absolute = std::path::absolute(path).ok();
            let inside = |path: &PathBuf| containing(path).is_ok_and(|mount| mount.is_some());
            absolute.filter(inside).ok_or(failure)?
        }
    };
    let Some(mount) = containing(&path)? else {
        return Err(Failure::mount_point(format!(
            "{} is not in a bucketfs mount; bucketfs status lists them",
            path.display()
        )));
    };
    let asked = path.clone();
    let attribute = point::within(point::PATIENCE, move || {
        let mut buffer = vec![0; LONGEST];
        let length = rustix::fs::lgetxattr(&asked, ATTRIBUTE, &mut buffer[..])?;
        buffer.truncate(length);
        Ok::<_, rustix::io::Errno>(buffer)
    });
    if let Some(Ok(sentence)) = &attribute
        && !sentence.is_empty()
    {
        say(String::from_utf8_lossy(sentence).trim_end())?;
        return Ok(Exit::Ok);
    }
    let Some(listed) = super::umount::find(&mount.path)? else {
        return Err(Failure::new(
            Exit::NotAnswering,
            format!(
                "{} has no daemon that this user can ask",
                mount.path.display()
            ),
        ));
    };
    let status = control::status(&listed.socket()?)?.fs;
    let inside = point::below(&path, &mount.path).unwrap_or_default();
    let inside = String::from_utf8_lossy(&inside);
    say(all_remembered(&status, &inside).unwrap_or_else(|| "no error recorded".into()))?;
    Ok(Exit::Ok)
}

/// The uppermost mount that a path lies in, if it is one of ours.
pub(super) fn containing(path: &Path) -> Result<Option<MountLine>, Failure> {
    let table = point::table()
        .map_err(|error| Failure::other(format!("cannot read /proc/self/mountinfo: {error}")))?;
    let deepest = table
        .into_iter()
        .filter(|line| path.starts_with(&line.path))
        .max_by_key(|line| line.path.as_os_str().len());
    Ok(deepest.filter(MountLine::is_ours))
}

/// The last error or conflict of a path, and behind it that of a directory above which concerns it,
/// where that is not older.
fn all_remembered(status: &FsStatus, path: &str) -> Option<String> {
    let (own, above) = (remembered(status, path), remembered_above(status, path));
    match (own, above) {
        (Some((since, own)), Some(above)) if above.time >= since => {
            Some(format!("{own}\n{}", told(above)))
        }
        (Some((_, own)), _) => Some(own),
        (None, above) => above.map(told),
    }
}

/// The last error or conflict of a path, whichever is later, and its time.
fn remembered(status: &FsStatus, path: &str) -> Option<(u64, String)> {
    let same = |other: &str| other.trim_matches('/') == path.trim_matches('/');
    let error = status.errors.iter().rfind(|error| same(&error.path));
    let conflict = status
        .conflicts
        .iter()
        .rfind(|conflict| same(&conflict.path));
    match (error, conflict) {
        (error, Some(conflict)) if error.is_none_or(|error| error.time <= conflict.time) => {
            let sentence = format!(
                "{}: {}; the bytes are kept as {}",
                time(conflict.time),
                conflict.reason,
                conflict.kept_as
            );
            Some((conflict.time, sentence))
        }
        (Some(error), _) => Some((error.time, told(error))),
        (None, _) => None,
    }
}

fn told(error: &ErrorRecord) -> String {
    format!(
        "{}: {} failed: {} ({})",
        time(error.time),
        error.operation,
        error.message,
        error.errno
    )
}

/// Why a name could not be made, removed or looked up: that is an error of its directory, which
/// names it or was not to be listed, or of one further up that could not be looked into.
fn remembered_above<'a>(status: &'a FsStatus, path: &str) -> Option<&'a ErrorRecord> {
    status.errors.iter().rfind(|error| concerns(error, path))
}

/// Whether the error of a directory is one of a path in it.
fn concerns(error: &ErrorRecord, path: &str) -> bool {
    let dir = error.path.trim_matches('/');
    let Some(rest) = path.trim_matches('/').strip_prefix(dir) else {
        return false;
    };
    let rest = match dir {
        "" => rest,
        _ => rest.strip_prefix('/').unwrap_or_default(),
    };
    let Some(name) = rest.split('/').next().filter(|name| !name.is_empty()) else {
        return false;
    };
    if is_of_listing(error, dir) {
        return true;
    }
    if name != rest && error.operation != "lookup" {
        return false;
    }
    // Of queries it does not depend on the name.
    dir.split('/').next() == Some(".query")
        || error.message.starts_with(&format!("{name:?} in "))
        || has_key(&error.message, &format!("{dir}/{name}"))
}

/// Whether all names of a directory have the error: it could not be listed.
fn is_of_listing(error: &ErrorRecord, dir: &str) -> bool {
    let listed = error.message.starts_with("list \"");
    let own = match dir {
        "" => error.message.starts_with("list \"\":"),
        _ => listed && has_key(&error.message, dir),
    };
    own || error.operation.starts_with("readdir")
}

/// Whether a message has the key of a path. The key has what the URL names before it, and that of
/// a directory a slash behind it.
fn has_key(message: &str, path: &str) -> bool {
    let key = format!("{:?}", path.trim_matches('/'));
    let key = key.trim_matches('"');
    let keys = ["\"", "/"].map(|before| ["\"", "/\""].map(|after| format!("{before}{key}{after}")));
    keys.as_flattened().iter().any(|key| message.contains(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::ConflictRecord;
    use std::slice;

    #[test]
    fn the_latest_is_remembered() {
        let mut status = FsStatus::default();
        assert_eq!(remembered(&status, "a/b"), None);
        status.errors.push(ErrorRecord {
            time: 5,
            operation: "flush".into(),
            path: "/a/b".into(),
            errno: "EIO".into(),
            message: "the store is down".into(),
        });
        assert_eq!(
            all_remembered(&status, "a/b").as_deref(),
            Some("1970-01-01T00:00:05Z: flush failed: the store is down (EIO)")
        );
        status.conflicts.push(ConflictRecord {
            time: 5,
            path: "a/b".into(),
            kept_as: "a/b.conflict".into(),
            reason: "somebody else wrote it".into(),
        });
        assert_eq!(
            all_remembered(&status, "a/b").as_deref(),
            Some(
                "1970-01-01T00:00:05Z: somebody else wrote it; the bytes are kept as a/b.conflict"
            )
        );
        assert_eq!(remembered(&status, "a"), None);
        status.errors.push(ErrorRecord {
            time: 6,
            operation: "unlink".into(),
            path: "a".into(),
            errno: "EACCES".into(),
            message: "delete \"a/c\": denied".into(),
        });
        let said = remembered_above(&status, "a/c").map(told);
        let line = "1970-01-01T00:00:06Z: unlink failed: delete \"a/c\": denied (EACCES)";
        assert_eq!(said.as_deref(), Some(line));
        assert!(remembered_above(&status, "a/d").is_none());
        status.errors[1].path = ".query/a=b".into();
        let said = remembered_above(&status, ".query/a=b/new").map(told);
        assert_eq!(said.as_deref(), Some(line));
        for (message, path) in [
            ("delete \"d/\": not removed from here", "d"),
            ("delete \"below/e\": denied", "e"),
        ] {
            status.errors.push(ErrorRecord {
                time: 7,
                operation: "rmdir".into(),
                path: "".into(),
                errno: "EACCES".into(),
                message: message.into(),
            });
            let said = remembered_above(&status, path).map(told).expect(path);
            assert!(said.contains(message), "{said}");
        }
        assert!(remembered_above(&status, "w").is_none());
    }

    #[test]
    fn what_failed_above_is_remembered_too() {
        let error = |time, operation: &str, path: &str, message: &str| ErrorRecord {
            time,
            operation: operation.into(),
            path: path.into(),
            errno: "EIO".into(),
            message: message.into(),
        };
        let of = |errors: &[ErrorRecord], path: &str| {
            let status = FsStatus {
                errors: errors.to_vec(),
                ..FsStatus::default()
            };
            all_remembered(&status, path).unwrap_or_default()
        };
        let list = error(7, "lookup", "d", "list \"below/d/\": down");
        let line = "1970-01-01T00:00:07Z: lookup failed: list \"below/d/\": down (EIO)";
        let errors = [list.clone()];
        assert_eq!(of(&errors, "d/a"), line);
        assert_eq!(of(&errors, "d/e/f"), line);
        for other in ["d2/a", "e", ""] {
            assert_eq!(of(&errors, other), "");
        }
        let own = |time| error(time, "flush", "d/a", "put \"below/d/a\": down");
        let first = of(&[own(6)], "d/a");
        assert_eq!(
            of(&[own(6), list.clone()], "d/a"),
            format!("{first}\n{line}")
        );
        assert_eq!(of(&[list, own(8)], "d/a"), of(&[own(8)], "d/a"));

        // One name's failure is no other one's, but that of all below it.
        let look = error(7, "lookup", "", "head \"d\": down");
        assert!(of(slice::from_ref(&look), "d/a").contains("head"));
        assert_eq!(of(&[look], "e"), "");
        let removal = error(7, "rmdir", "", "delete \"d/\": down");
        assert!(of(slice::from_ref(&removal), "d").contains("delete"));
        assert_eq!(of(&[removal], "d/a"), "");
        for top in [
            error(7, "lookup", "", "list \"\": down"),
            error(7, "readdirplus", "/", "list \"below/\": down"),
        ] {
            assert!(of(&[top], "e/f").contains("list"));
        }
    }
}
