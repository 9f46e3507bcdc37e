//! Queries as directories: in `.query` at the top of a mount each directory is a term, as
//! `bucketfs find` takes them, and holds links to the documents for which it and all terms above it
//! hold.
//!
//! A name with `=` in it, or one that begins with `{`, is a term; any other is that of a link. Terms
//! are there as soon as they are named, and nothing lists them. What has a number of its own here is
//! not in the inode table, and keeps nothing of it: a directory has all that it needs in itself, and
//! a link is its target. Both go when the kernel forgets them.
//!
//! What the store has under the name `.query` is shown instead, as everything else is.

mod listing;
mod names;

use super::attr::{Attr, Kind};
use super::errno::{FsError, FsResult};
use super::inode::{Inode, ROOT};
use super::lookup::{Entry, Lookup};
use super::table::stable_hash;
use super::{Fs, Top, WATCHED_TTL};
use crate::driver::Filter;
use crate::find::Search;
use crate::key::Key;
use crate::name;
use bytes::Bytes;
use listing::Reader;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;
use std::time::Duration;

/// The directory of queries at the top of a mount.
const NAME: &[u8] = b".query";
/// Inodes and handles from this number on are of queries.
pub(super) const FIRST: u64 = 0x7fff << 48;
/// The largest number of an inode: programs take them for signed ones.
pub(super) const LAST: u64 = i64::MAX as u64;
/// The longest target that a link can have.
const LONGEST: usize = libc::PATH_MAX as usize - 1;

/// Whether an inode or a handle is of a query.
pub fn is_of_query(number: u64) -> bool {
    number >= FIRST
}

/// What the kernel knows below `.query`.
#[derive(Debug, Default)]
pub(super) struct Queries {
    /// A leaf lock, as the other one is.
    nodes: Mutex<HashMap<u64, Node>>,
    readers: Mutex<HashMap<u64, Arc<Reader>>>,
}

/// A directory or a link, at its place, which never changes.
#[derive(Debug)]
struct Node {
    what: What,
    parent: u64,
    name: Bytes,
    lookups: u64,
}

#[derive(Clone, Debug)]
enum What {
    Directory(Arc<Directory>),
    /// Its target.
    Link(Bytes),
}

/// `.query`, a term, or a part of long names.
#[derive(Clone, Debug)]
struct Directory {
    ino: u64,
    parent: u64,
    /// The names that lead here from the top of the mount.
    path: Vec<Bytes>,
    /// What must hold; without, nothing is asked for yet.
    filter: Option<Filter>,
    /// Those at the end of the path that are parts of long names.
    chunks: usize,
}

impl Directory {
    fn chunks(&self) -> &[Bytes] {
        &self.path[self.path.len() - self.chunks..]
    }

    fn path(&self) -> String {
        String::from_utf8_lossy(&self.path.join(&b'/')).into_owned()
    }

    /// A directory in this one.
    fn within(&self, name: &Bytes, filter: Option<Filter>, chunks: usize) -> What {
        let mut path = self.path.clone();
        path.push(name.clone());
        What::Directory(Arc::new(Directory {
            ino: 0,
            parent: self.ino,
            path,
            filter,
            chunks,
        }))
    }
}

/// The number of a name, unless another has it already.
fn number(parent: u64, name: &[u8]) -> u64 {
    let hash = stable_hash(&[&parent.to_le_bytes(), name].concat(), Kind::Symlink);
    FIRST | hash & LAST
}

impl Queries {
    /// Notes that the kernel is told of a name.
    fn told(&self, parent: u64, name: &Bytes, what: What) -> (u64, What) {
        let mut nodes = self.nodes.lock();
        let mut ino = number(parent, name);
        loop {
            match nodes.entry(ino) {
                Slot::Occupied(mut known) => {
                    let node = known.get_mut();
                    if node.parent == parent && node.name == name {
                        node.lookups += 1;
                        return (ino, node.what.clone());
                    }
                    ino = FIRST | (ino + 1) & LAST;
                }
                Slot::Vacant(free) => {
                    let what = match what {
                        What::Directory(directory) => {
                            let mut directory = Arc::unwrap_or_clone(directory);
                            directory.ino = ino;
                            What::Directory(Arc::new(directory))
                        }
                        link => link,
                    };
                    free.insert(Node {
                        what: what.clone(),
                        parent,
                        name: name.clone(),
                        lookups: 1,
                    });
                    return (ino, what);
                }
            }
        }
    }

    /// Takes lookups back.
    pub fn forget(&self, ino: u64, count: u64) {
        let mut nodes = self.nodes.lock();
        if let Slot::Occupied(mut known) = nodes.entry(ino) {
            let node = known.get_mut();
            node.lookups = node.lookups.saturating_sub(count);
            if node.lookups == 0 {
                known.remove();
            }
        }
    }

    fn get(&self, ino: u64) -> FsResult<What> {
        let nodes = self.nodes.lock();
        let node = nodes.get(&ino).ok_or(FsError::plain(libc::ESTALE))?;
        Ok(node.what.clone())
    }

    fn directory(&self, ino: u64) -> FsResult<Arc<Directory>> {
        match self.get(ino)? {
            What::Directory(directory) => Ok(directory),
            What::Link(_) => Err(FsError::plain(libc::ENOTDIR)),
        }
    }

    /// The path of an inode from the top of the mount, for people.
    pub fn path(&self, ino: u64) -> Option<String> {
        let (parent, name) = {
            let nodes = self.nodes.lock();
            let node = nodes.get(&ino)?;
            if let What::Directory(directory) = &node.what {
                return Some(directory.path());
            }
            (node.parent, node.name.clone())
        };
        let parent = self.directory(parent).ok()?.path();
        Some(format!("{parent}/{}", String::from_utf8_lossy(&name)))
    }

    /// How many inodes the kernel knows.
    pub fn count(&self) -> usize {
        self.nodes.lock().len()
    }

    /// How many directories are open.
    pub fn open(&self) -> usize {
        self.readers.lock().len()
    }
}

impl Fs {
    /// Whether a name is that of the queries, unless the store has it.
    fn is_query(&self, directory: u64, name: &[u8]) -> bool {
        directory == ROOT && name == NAME && self.options.query.is_some()
    }

    /// `.query` itself, where the store has nothing of that name.
    pub(super) fn query_top(&self, directory: u64, name: &[u8]) -> Option<Entry> {
        if !self.is_query(directory, name) {
            return None;
        }
        let top = What::Directory(Arc::new(Directory {
            ino: 0,
            parent: ROOT,
            path: vec![Bytes::from_static(NAME)],
            filter: None,
            chunks: 0,
        }));
        let (ino, what) = self.queries.told(ROOT, &Bytes::from_static(NAME), top);
        Some(self.query_entry(ino, &what))
    }

    /// That a name of a directory is not there, or not to be touched.
    pub(super) fn untouchable(&self, directory: &Inode, name: &[u8]) -> FsError {
        match self.is_query(directory.ino, name) {
            true => FsError::new(
                libc::EROFS,
                "\".query\" in \"\": this is where queries are; mount with --no-query to use the name",
            ),
            false => FsError::plain(libc::ENOENT),
        }
    }

    /// Refuses to make what would hide the queries. What the store has there already may be
    /// replaced.
    pub(super) fn require_no_query(&self, directory: &Inode, name: &[u8]) -> FsResult<()> {
        match self.is_query(directory.ino, name) && directory.child(name).is_none() {
            true => Err(self.untouchable(directory, name)),
            false => Ok(()),
        }
    }

    /// Why nothing changes below `.query`.
    pub(super) fn query_refusal(&self, ino: u64) -> FsError {
        match self.queries.path(ino) {
            Some(path) => FsError::new(
                libc::EROFS,
                format!("{path:?}: queries only lead to documents; change those"),
            ),
            None => FsError::plain(libc::ESTALE),
        }
    }

    /// What a directory of queries asks for.
    fn search(&self, directory: &Directory) -> Option<Search> {
        Some(Search {
            driver: self.options.query.clone()?,
            shows_buckets: self.options.top != Top::Bucket,
            prefix: names::prefix(directory.chunks()),
            filter: directory.filter.clone()?,
            texts: false,
        })
    }

    /// The path from a directory of queries to the document of a key.
    fn link(&self, directory: &Directory, key: &Key) -> Bytes {
        let mut target = b"../".repeat(directory.path.len());
        let bytes = key.as_bytes();
        let cut = bytes.iter().rposition(|byte| *byte == b'/');
        let (parent, last) = bytes.split_at(cut.map_or(0, |slash| slash + 1));
        // Where a directory is known to have its name, a file has another.
        let known = self.listing.get(&Key::from(parent), last);
        let is_beside = known.is_some_and(|(known, _)| known.directory && known.object.is_some());
        match is_beside {
            true => {
                let parent = name::path(parent);
                target.extend_from_slice(parent.strip_suffix(b"%~e").unwrap_or(&parent));
                let names = name::encode_file_beside(last).into_names();
                target.extend_from_slice(&names.join(&b'/'));
            }
            false => target.extend_from_slice(&name::path(bytes)),
        }
        Bytes::from(target)
    }

    /// What a name in a directory of queries is, if a document that it stands for matches.
    fn named(&self, directory: &Directory, name: &Bytes) -> FsResult<Option<(What, Option<Key>)>> {
        if directory.chunks == 0 && names::is_term(name) {
            let more = self.term(directory, name)?;
            let mut filter = directory.filter.clone().unwrap_or_default();
            filter.terms.extend(more.terms);
            return Ok(Some((directory.within(name, Some(filter), 0), None)));
        }
        let Some(filter) = &directory.filter else {
            return Ok(None);
        };
        if names::is_chunk(name) {
            let chunks = directory.chunks + 1;
            let what = directory.within(name, Some(filter.clone()), chunks);
            return Ok(Some((what, None)));
        }
        let Some(key) = names::key(directory.chunks(), name) else {
            return Ok(None);
        };
        let target = self.link(directory, &key);
        if target.len() > LONGEST {
            return Err(FsError::plain(libc::ENAMETOOLONG));
        }
        Ok(Some((What::Link(target), Some(key))))
    }

    /// What a name says that is a term.
    fn term(&self, directory: &Directory, name: &[u8]) -> FsResult<Filter> {
        let refuse = |why: &str| {
            let name = String::from_utf8_lossy(name);
            let path = directory.path();
            FsError::new(libc::EINVAL, format!("{name:?} in {path:?}: {why}"))
        };
        let Ok(text) = std::str::from_utf8(name) else {
            return Err(refuse("the term is not UTF-8, as JSON is"));
        };
        let filter = match text.starts_with('{') {
            true => Filter::json(text),
            false => Filter::parse([text]),
        };
        filter.map_err(|error| refuse(&error.reason()))
    }

    /// Looks a name up. A link's document is asked for; all else is there.
    pub(super) async fn look_up_query(&self, parent: u64, name: &[u8]) -> FsResult<Lookup> {
        let directory = self.queries.directory(parent)?;
        if name.len() > name::NAME_MAX {
            return Err(FsError::plain(libc::ENAMETOOLONG));
        }
        let absent = Lookup::Absent(self.options.negative_ttl);
        let name = Bytes::copy_from_slice(name);
        let Some((what, key)) = self.named(&directory, &name)? else {
            return Ok(absent);
        };
        if let (Some(key), Some(search)) = (&key, self.search(&directory))
            && !search.holds(key).await?
        {
            return Ok(absent);
        }
        let (ino, what) = self.queries.told(parent, &name, what);
        Ok(Lookup::Found(self.query_entry(ino, &what)))
    }

    /// The answer for an inode of queries. What `.query` is may change, and what matches; what a
    /// term means does not.
    fn query_entry(&self, ino: u64, what: &What) -> Entry {
        let (kind, size, mode, ttl) = match what {
            // Modes of documents do not bound what a query tells of them.
            What::Directory(directory) => {
                let mode = self.options.dir_mode & 0o500;
                let ttl = match directory.parent {
                    ROOT => self.query_ttl(),
                    _ => WATCHED_TTL,
                };
                (Kind::Directory, 4096, mode, ttl)
            }
            What::Link(target) => (Kind::Symlink, target.len(), 0o777, self.query_ttl()),
        };
        let options = &self.options;
        let attr = Attr::new(ino, kind, mode, options.uid, options.gid, self.started);
        Entry {
            attr: Attr {
                size: size as u64,
                ..attr
            },
            ttl,
        }
    }

    /// No feed tells what matches.
    fn query_ttl(&self) -> Duration {
        self.options.metadata_ttl
    }

    /// Attributes of an inode of queries.
    pub(super) fn getattr_query(&self, ino: u64) -> FsResult<Entry> {
        Ok(self.query_entry(ino, &self.queries.get(ino)?))
    }

    /// The target of a link.
    pub(super) fn readlink_query(&self, ino: u64) -> FsResult<Bytes> {
        match self.queries.get(ino)? {
            What::Link(target) => Ok(target),
            What::Directory(_) => Err(FsError::plain(libc::EINVAL)),
        }
    }
}
