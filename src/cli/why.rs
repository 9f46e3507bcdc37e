//! `bucketfs why`: the sentence behind an errno.

use super::say;
use super::status::time;
use crate::control;
use crate::exit::{Exit, Failure};
use crate::fs::{ErrorRecord, FsStatus};
use crate::mount::point::{self, MountLine};
use std::path::Path;

/// Where a file tells its last error.
const ATTRIBUTE: &str = "user.bucketfs.error";
/// Longest sentence that is read.
const LONGEST: usize = 64 << 10;

/// Tells why the last operation on a file failed: from its extended attribute, else from what
/// the daemon remembers.
pub fn run(path: &Path) -> Result<Exit, Failure> {
    let path = point::locate(path)?;
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
    say(remembered(&status, &inside)
        .or_else(|| remembered_above(&status, &inside))
        .unwrap_or_else(|| "no error recorded".into()))?;
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

/// The last error or conflict of a path, whichever is later.
fn remembered(status: &FsStatus, path: &str) -> Option<String> {
    let same = |other: &str| other.trim_matches('/') == path.trim_matches('/');
    let error = status.errors.iter().rfind(|error| same(&error.path));
    let conflict = status
        .conflicts
        .iter()
        .rfind(|conflict| same(&conflict.path));
    match (error, conflict) {
        (error, Some(conflict)) if error.is_none_or(|error| error.time <= conflict.time) => {
            Some(format!(
                "{}: {}; the bytes are kept as {}",
                time(conflict.time),
                conflict.reason,
                conflict.kept_as
            ))
        }
        (Some(error), _) => Some(told(error)),
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

/// Why a name could not be made or removed: that is an error of its directory, which names it.
fn remembered_above(status: &FsStatus, path: &str) -> Option<String> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let begin = format!("{name:?} in ");
    // The key has what the URL names before it, and that of a directory a slash behind it.
    let key = format!("{path:?}");
    let key = key.trim_matches('"');
    let keys = ["\"", "/"].map(|before| ["\"", "/\""].map(|after| format!("{before}{key}{after}")));
    let same = |other: &str| other.trim_matches('/') == parent.trim_matches('/');
    let mut errors = status.errors.iter().rev().filter(|error| same(&error.path));
    // Of queries it does not depend on the name.
    let of_query = parent.split('/').next() == Some(".query");
    let named = |message: &str| {
        of_query
            || message.starts_with(&begin)
            || keys.as_flattened().iter().any(|key| message.contains(key))
    };
    let error = errors.find(|error| named(&error.message))?;
    Some(told(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::ConflictRecord;

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
            remembered(&status, "a/b").as_deref(),
            Some("1970-01-01T00:00:05Z: flush failed: the store is down (EIO)")
        );
        status.conflicts.push(ConflictRecord {
            time: 5,
            path: "a/b".into(),
            kept_as: "a/b.conflict".into(),
            reason: "somebody else wrote it".into(),
        });
        assert_eq!(
            remembered(&status, "a/b").as_deref(),
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
        let said = remembered_above(&status, "a/c");
        let line = "1970-01-01T00:00:06Z: unlink failed: delete \"a/c\": denied (EACCES)";
        assert_eq!(said.as_deref(), Some(line));
        assert_eq!(remembered_above(&status, "a/d"), None);
        status.errors[1].path = ".query/a=b".into();
        let said = remembered_above(&status, ".query/a=b/new");
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
            let said = remembered_above(&status, path).expect(path);
            assert!(said.contains(message), "{said}");
        }
        assert_eq!(remembered_above(&status, "w"), None);
    }
}
