//! Searches in mounts: their daemons have the store open.

use super::{Asked, Place};
use crate::cli::{umount, why};
use crate::control::{Request, search};
use crate::driver::ETag;
use crate::exit::{Exit, Failure};
use crate::find::Event;
use crate::fs::is_of_query;
use crate::key::Key;
use crate::mount::point;
use crate::mount::record::Listed;
use crate::name::{self, Component};
use std::path::Path;

/// A directory of a mount.
pub struct Mount {
    listed: Listed,
    prefix: Key,
}

impl Mount {
    /// The mount of a directory, and what is in that.
    pub fn of(dir: &Path) -> Result<Mount, Failure> {
        let path = point::locate(dir)?;
        let Some(mount) = why::containing(&path)? else {
            return Err(Failure::mount_point(format!(
                "{} is neither a URL nor in a bucketfs mount; bucketfs drivers lists the URLs, and bucketfs status the mounts",
                dir.display()
            )));
        };
        let Some(listed) = umount::find(&mount.path)? else {
            return Err(Failure::new(
                Exit::NotAnswering,
                format!(
                    "{} has no daemon that this user can ask",
                    mount.path.display()
                ),
            ));
        };
        let inside = point::below(&path, &mount.path).unwrap_or_default();
        // A daemon that hangs is told later.
        let asked = path.clone();
        let number = point::within(point::PATIENCE, move || rustix::fs::lstat(&asked));
        if let Some(Ok(told)) = number
            && is_of_query(told.st_ino)
        {
            return Err(Failure::mount_point(format!(
                "{} is a query itself; give its terms behind {}",
                dir.display(),
                mount.path.display()
            )));
        }
        let prefix = prefix(&inside).ok_or_else(|| {
            Failure::mount_point(format!("{} is no directory of the mount", dir.display()))
        })?;
        Ok(Mount { listed, prefix })
    }

    /// What the keys of the directory begin with.
    pub fn prefix(&self) -> &Key {
        &self.prefix
    }
}

/// What the keys in a directory begin with.
fn prefix(inside: &[u8]) -> Option<Key> {
    let mut prefix = Vec::new();
    let names = inside.split(|byte| *byte == b'/');
    for name in names.filter(|name| !name.is_empty()) {
        match name::decode(name)? {
            Component::Plain(bytes) => {
                prefix.extend_from_slice(&bytes);
                prefix.push(b'/');
            }
            Component::Continued(bytes) => prefix.extend_from_slice(&bytes),
            Component::FileBeside(_) | Component::DirectoryBeside(_) => return None,
        }
    }
    Some(Key::from(prefix))
}

impl Place for Mount {
    fn search(&self, asked: &Asked, heard: &mut dyn FnMut(Event) -> bool) -> Result<(), Failure> {
        let request = Request::Find {
            filter: asked.filter.clone(),
            prefix: search::spelled(&self.prefix),
            texts: asked.texts,
            interval_ms: asked
                .watch
                .map(|interval| interval.as_millis().try_into().unwrap_or(u64::MAX)),
        };
        search::search(&self.listed.socket()?, &request, heard)
    }

    fn remove(&self, key: &Key, etag: &ETag) -> Result<bool, Failure> {
        search::remove(&self.listed.socket()?, key, etag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_what_its_keys_begin_with() {
        let long = "x".repeat(300);
        let chunks = name::encode(long.as_bytes()).into_names();
        let inside = [&chunks[0][..], &chunks[1][..]].join(&b'/');
        assert_eq!(prefix(&inside), Some(Key::from(format!("{long}/"))));
        for (inside, wanted) in [
            ("", Some("")),
            ("a/b", Some("a/b/")),
            ("a/%~e", Some("a//")),
            ("a%~f", None),
        ] {
            assert_eq!(prefix(inside.as_bytes()), wanted.map(Key::from), "{inside}");
        }
    }
}
