//! What the filesystem tells about itself.

use serde::{Deserialize, Serialize};

/// What `bucketfs status` shows of a filesystem.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FsStatus {
    /// Files with bytes that the store does not have.
    pub dirty_files: u64,
    /// How many bytes those are.
    pub dirty_bytes: u64,
    /// Commits under way.
    pub uploads: u64,
    /// Open handles of files and directories.
    pub handles: u64,
    /// Inodes the kernel knows.
    pub inodes: u64,
    /// Use of the caches.
    pub cache: CacheUse,
    /// Renames of directories that go on.
    #[serde(default)]
    pub renames: Vec<RenameStatus>,
    /// The last lost races, newest last.
    pub conflicts: Vec<ConflictRecord>,
    /// The last failed operations, newest last.
    pub errors: Vec<ErrorRecord>,
}

/// Use of the caches.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CacheUse {
    /// Content in memory, in bytes.
    pub memory_bytes: u64,
    /// Content on disk, in bytes.
    pub disk_bytes: u64,
    /// Entries of cached listings.
    pub listing_entries: u64,
}

/// A rename of a directory that goes on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RenameStatus {
    /// The old name, from the root of the mount.
    pub from: String,
    /// The new name.
    pub to: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// The host that began it, when it was broken off and is completed here.
    pub begun_by: Option<String>,
    /// How many keys it has found so far.
    pub listed: u64,
    /// How many of them are at their new names.
    pub moved: u64,
}

/// A lost race, and where the loser's bytes are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConflictRecord {
    /// Seconds since 1970.
    pub time: u64,
    /// The file, from the root of the mount.
    pub path: String,
    /// The conflict file beside it, or a path in the state directory.
    pub kept_as: String,
    /// The sentence.
    pub reason: String,
}

/// A failed operation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorRecord {
    /// Seconds since 1970.
    pub time: u64,
    /// The filesystem operation.
    pub operation: String,
    /// The file, from the root of the mount.
    pub path: String,
    /// The errno's name, such as `ESTALE`.
    pub errno: String,
    /// The sentence.
    pub message: String,
}

/// What became of dirty files at the end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DrainReport {
    /// Files that were committed.
    pub committed: u64,
    /// Files that could not be sent.
    pub unsent: Vec<Unsent>,
    /// Files and directories whose changed attributes could not be sent.
    #[serde(default)]
    pub untold: Vec<Untold>,
}

/// A file or directory whose changed attributes could not be sent; they are lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untold {
    /// It, from the root of the mount.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// A file that could not be sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unsent {
    /// The file, from the root of the mount.
    pub path: String,
    /// Where its bytes are now, or why they could be kept nowhere.
    pub kept_as: Result<String, String>,
    /// Why it could not be sent.
    pub reason: String,
}

impl Unsent {
    /// What has become of its bytes.
    pub fn fate(&self) -> String {
        match &self.kept_as {
            Ok(place) => format!("kept as {place}"),
            Err(why) => format!("lost, as they could be kept nowhere: {why}"),
        }
    }
}
