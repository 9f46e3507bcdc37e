//! Files of names that stay on this machine: a directory of each mount, below the state directory
//! of its URL. The next mount of that URL finds what is left in it.

use super::dirs;
use crate::config::StoreSettings;
use crate::driver::{self, Driver, Location, OpenOptions};
use crate::exit::Failure;
use crate::layer::{LocalNames, Scratch};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the directories are called.
pub const LOCAL: &str = "local";

/// Keeps names of a store in a directory of this machine.
pub async fn over(
    store: Arc<dyn Driver>,
    dir: &Path,
    names: LocalNames,
    buckets: bool,
) -> Result<Arc<dyn Driver>, Failure> {
    let opened = async {
        let local = driver::open(&location(dir)?, &OpenOptions::default()).await?;
        let scratch = Scratch::over(store, local.driver, names, buckets)?;
        scratch.begin().await?;
        Ok(scratch)
    };
    let scratch = opened.await.map_err(|error: driver::Error| {
        let error = io::Error::other(error.reason());
        dirs::failure("state directory", "state-dir", dir, &error)
    })?;
    Ok(Arc::new(scratch))
}

fn location(dir: &Path) -> driver::Result<Location> {
    let kept = percent_encoding::NON_ALPHANUMERIC;
    let path = dir.as_os_str().as_bytes().split(|byte| *byte == b'/');
    let path: Vec<_> = path
        .map(|name| percent_encoding::percent_encode(name, kept).to_string())
        .collect();
    Location::parse(&format!("file://{}", path.join("/")))
}

/// What an earlier mount has left on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The directory.
    pub dir: PathBuf,
    /// How many files there are in it.
    pub files: usize,
    /// Whether a mount uses it now.
    pub in_use: bool,
}

/// Removes what mounts of this URL that have ended left on this machine. Gives what there was.
pub fn clean_up(settings: &StoreSettings) -> io::Result<Vec<Left>> {
    let name = dirs::slug(&settings.location, &settings.prefix);
    let mut found = Vec::new();
    for dir in dirs::named(&super::state_root(settings).join(name), LOCAL)? {
        let files = count(&dir)?;
        let lock = dirs::claim_again(&dir)?;
        if lock.is_some() {
            std::fs::remove_dir_all(&dir)?;
        }
        let in_use = lock.is_none();
        if let Some(lock) = lock {
            lock.remove();
        }
        if files > 0 {
            found.push(Left { dir, files, in_use });
        }
    }
    Ok(found)
}

/// How many files there are below a directory; those that only the store's driver knows are none.
fn count(dir: &Path) -> io::Result<usize> {
    let mut files = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        files += match entry.file_type()?.is_dir() {
            true if entry.file_name() == ".bucketfs" => 0,
            true => count(&entry.path())?,
            false => 1,
        };
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_is_a_location() {
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/a b/?#%/\xff"));
        let location = location(path).unwrap();
        assert_eq!(location.path(), b"a b/?#%/\xff");
    }
}
