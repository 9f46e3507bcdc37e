//! The `file:` driver: a directory of plain files.
//!
//! The key `a/b` is the file `a/b`, so that every other program sees the same data. Keys that are
//! no paths have escaped names ([`crate::name`]), and of the keys `a` and `a/b` the one that came
//! second has a suffix: the file is `a%~f` beside a directory, the directory is `a%~p` beside a
//! file.
//!
//! A directory is the object of the key `dir/`, whose body is empty; a body that is put there all
//! the same is the file `%~e` in it. Directories that a key needs are made, and stay when the key
//! goes. Deleting `dir/` removes the directory if there is nothing in it and otherwise does
//! nothing, as deleting a marker in a bucket leaves the keys below it alone.
//!
//! Symbolic links, fifos, sockets and devices are objects of those modes. Nothing outside of the
//! directory is ever reached: links are not followed, neither on the way to a key nor at its end.
//!
//! Conditions are exact between any number of processes that use this driver, and the best that
//! can be done against others: the comparison and the rename are under a lock on the directory.
//!
//! What this process may not read is not listed: of a directory, only its marker.

mod attributes;
mod list;
mod lock;
mod path;
mod publish;
mod read;
mod root;
#[cfg(test)]
mod tests;
mod watch;
mod write;

use super::{
    AttributeChange, AttributeSupport, Body, Capabilities, Change, CopyCapability, CopyOptions,
    Driver, ETag, Error, ErrorKind, GetOptions, GetOutcome, ListRequest, Location, ObjectInfo,
    OpenOptions, Opened, Page, Precondition, PutOptions, Result, Space, Strength,
};
use crate::key::Key;
use crate::task;
use async_trait::async_trait;
use futures::stream::BoxStream;
use list::Listings;
use lock::TmpDir;
use path::{KeyPath, MAX_KEY};
use root::Root;
use rustix::fs::{Access, AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The URL scheme.
pub const SCHEME: &str = "file";
/// What `bucketfs drivers` says.
pub const ABOUT: &str = "file:///DIR  plain files below a directory";

/// Opens the store.
pub async fn open(location: Location, options: OpenOptions) -> Result<Opened> {
    let path = directory(&location)?;
    let key = Key::empty();
    let store = blocking("open", &key, move || Store::open(&path, &options)).await?;
    Ok(Opened {
        driver: Arc::new(Local(Arc::new(store))),
        prefix: key,
        is_store: false,
    })
}

/// The directory that a URL names.
fn directory(location: &Location) -> Result<PathBuf> {
    let wrong = |why: &str| Err(Error::new(ErrorKind::InvalidArgument, why).during("open"));
    if !matches!(location.host(), "" | "localhost") {
        return wrong("file URLs name no host; write three slashes: file:///path");
    }
    if location.url().fragment().is_some() || location.url().query().is_some() {
        return wrong("file URLs take no parameters; write '?' in a path as %3F and '#' as %23");
    }
    let mut path = vec![b'/'];
    path.extend_from_slice(&location.path());
    Ok(PathBuf::from(OsString::from_vec(path)))
}

/// What the driver makes use of. Tests do without, to run what stands in for it elsewhere.
#[derive(Clone, Copy, Debug)]
struct Means {
    /// Files without a name, where the filesystem has them.
    nameless: bool,
    /// Change times, as far as they tell versions apart.
    fine_clock: bool,
}

/// An open directory.
#[derive(Debug)]
struct Store {
    /// The directory as the URL names it, for messages.
    path: PathBuf,
    root: Root,
    tmp: TmpDir,
    /// Whether the filesystem keeps user xattrs.
    xattrs: bool,
    /// Whether it can exchange two names.
    exchange: bool,
    /// Whether inotify tells all that is changed in it.
    watch: bool,
    means: Means,
    listings: Listings,
    /// Whether nothing is changed, not even what a crash left behind.
    read_only: bool,
}

impl Store {
    fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let shown = path.display();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| {
            let what = match errno {
                Errno::NOENT => format!("there is no directory {shown}; make it with mkdir -p"),
                Errno::NOTDIR => format!("{shown} is no directory; name one that exists"),
                _ => format!("the directory {shown} cannot be opened"),
            };
            fail(errno, what)
        })?;
        if !options.read_only
            && let Err(errno) = rustix::fs::accessat(
                &fd,
                ".",
                Access::WRITE_OK | Access::EXEC_OK,
                AtFlags::EACCESS,
            )
        {
            let what = format!("the directory {shown} cannot be written to; mount it read-only");
            return Err(fail(errno, what));
        }
        if !Path::new("/proc/self/fd").exists() {
            return Err(Error::new(
                ErrorKind::Io,
                "file: needs /proc; mount it with mount -t proc proc /proc",
            ));
        }
        let root = Root::new(fd);
        let tmp = TmpDir::new(root.fd().clone());
        let mut store = Store {
            path: path.to_owned(),
            xattrs: attributes::keeps_xattrs(root.fd()),
            exchange: false,
            watch: watch::tells_all(root.fd()),
            means: Means {
                nameless: true,
                fine_clock: true,
            },
            listings: Listings::default(),
            read_only: options.read_only,
            root,
            tmp,
        };
        if !options.read_only {
            store.tmp.sweep();
            store.exchange = store.can_exchange();
            store.tmp.sweep();
        }
        Ok(store)
    }

    /// Refuses once the directory itself was removed. Nothing is found in it then, nothing can be
    /// made, and it does not come back: asked where nothing was found, and where something failed.
    fn require_root(&self) -> Result<()> {
        if root::fstat(self.root.fd())?.st_nlink > 0 {
            return Ok(());
        }
        let what = format!(
            "the directory {} was removed while it was mounted: unmount, make it again, and mount",
            self.path.display()
        );
        Err(Error::new(ErrorKind::Unavailable, what).retry(false))
    }

    /// Whether two names can be exchanged, found out with two names of our own.
    fn can_exchange(&self) -> bool {
        let Some(dir) = self.tmp.get() else {
            return false;
        };
        let names = [lock::TempName::new(&dir), lock::TempName::new(&dir)];
        let made = names
            .iter()
            .all(|name| rustix::fs::symlinkat("probe", &dir, &name.name).is_ok());
        let [a, b] = &names;
        made && rustix::fs::renameat_with(&dir, &a.name, &dir, &b.name, RenameFlags::EXCHANGE)
            .is_ok()
    }
}

/// The error of a failed system call: its kind is that of the errno.
fn fail(errno: Errno, what: impl Into<String>) -> Error {
    let kind = Error::from(std::io::Error::from(errno)).kind();
    Error::new(kind, what).because(std::io::Error::from(errno))
}

/// Runs what blocks off the async threads, and names the operation in its errors.
async fn blocking<T: Send + 'static>(
    operation: &'static str,
    key: &Key,
    run: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = match task::blocking(run).await {
        Ok(done) => done,
        Err(cause) => Err(Error::new(ErrorKind::Io, "the operation was cut off").because(cause)),
    };
    done.map_err(|error| match key.is_empty() {
        true => error.during(operation),
        false => error.during(operation).on(key),
    })
}

/// The driver.
#[derive(Debug)]
struct Local(Arc<Store>);

impl Local {
    /// Runs an operation on the store.
    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &Key,
        run: impl FnOnce(&Store, &Key) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.0.clone();
        let own = key.clone();
        blocking(operation, key, move || {
            run(&store, &own).or_else(|error| store.require_root().and(Err(error)))
        })
        .await
    }
}

/// The path of a key that is read; no object has those that the driver keeps for itself.
fn existing(key: &Key) -> Result<KeyPath<'_>> {
    KeyPath::parse(key)?.ok_or_else(read::missing)
}

#[async_trait]
impl Driver for Local {
    fn capabilities(&self) -> Capabilities {
        let strength = match self.0.root.locks() {
            true => Strength::Atomic,
            false => Strength::Checked,
        };
        Capabilities {
            remote: false,
            put_condition: strength,
            delete_condition: strength,
            range: true,
            attributes: AttributeSupport::Listed,
            set_attributes: true,
            special_files: true,
            commit_ids: self.0.xattrs,
            directories_persist: true,
            copy: Some(CopyCapability {
                source: Strength::Atomic,
                destination: strength,
            }),
            rename: true,
            exchange: self.0.exchange,
            watch: self.0.watch,
            utf8_keys: false,
            max_key: MAX_KEY,
            max_object: i64::MAX as u64,
            ..Capabilities::default()
        }
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.run("head", key, |store, key| {
            let found = store.root.find(&existing(key)?)?;
            attributes::facts(&found.ok_or_else(read::missing)?, store.xattrs)
        })
        .await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetOutcome> {
        if options.version.is_some() {
            return Err(Error::unsupported("get").on(key));
        }
        let begun = self
            .run("get", key, move |store, key| {
                store.get(&existing(key)?, &options)
            })
            .await?;
        Ok(match begun {
            Some(begun) => begun.into_outcome(key),
            None => GetOutcome::Unmodified,
        })
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectInfo> {
        self.run("put", key, move |store, key| {
            store.put(&KeyPath::parse_for_write(key)?, &body, &options)
        })
        .await
    }

    async fn delete(&self, key: &Key, precondition: Precondition) -> Result<()> {
        self.run("delete", key, move |store, key| {
            match KeyPath::parse(key)? {
                Some(path) => store.delete(&path, &precondition),
                None => precondition.check(None),
            }
        })
        .await
    }

    async fn list(&self, request: ListRequest) -> Result<Page> {
        let prefix = request.prefix.clone();
        self.run("list", &prefix, move |store, _| store.list(&request))
            .await
    }

    async fn copy(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let to = to.clone();
        self.run("copy", from, move |store, from| {
            let to_path = KeyPath::parse_for_write(&to).map_err(|error| error.on(&to))?;
            store.copy(&existing(from)?, &to_path, &options)
        })
        .await
    }

    async fn rename(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<ObjectInfo> {
        let to = to.clone();
        self.run("rename", from, move |store, from| {
            if *from == to {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    "a rename needs two keys",
                ));
            }
            let to_path = KeyPath::parse_for_write(&to).map_err(|error| error.on(&to))?;
            store.rename(&existing(from)?, &to_path, &options)
        })
        .await
    }

    async fn exchange(&self, a: &Key, b: &Key) -> Result<(ObjectInfo, ObjectInfo)> {
        if !self.0.exchange {
            return Err(Error::unsupported("exchange").on(a));
        }
        let b = b.clone();
        self.run("exchange", a, move |store, a| {
            store.exchange(&existing(a)?, &existing(&b)?)
        })
        .await
    }

    async fn set_attributes(
        &self,
        key: &Key,
        change: AttributeChange,
        if_match: Option<ETag>,
    ) -> Result<ObjectInfo> {
        self.run("set_attributes", key, move |store, key| {
            store.set_attributes(&existing(key)?, &change, if_match.as_ref())
        })
        .await
    }

    async fn watch(&self, prefix: &Key) -> Result<BoxStream<'static, Result<Change>>> {
        if !self.0.watch {
            return Err(Error::unsupported("watch"));
        }
        watch::watch(self.0.clone(), prefix).await
    }

    async fn sync(&self, key: &Key) -> Result<()> {
        self.run("sync", key, |store, key| match KeyPath::parse(key)? {
            Some(path) => store.sync(&path),
            None => Ok(()),
        })
        .await
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.run("space", &Key::empty(), |store, _| {
            let stat = rustix::fs::fstatvfs(store.root.fd().as_fd())
                .map_err(|errno| fail(errno, "the filesystem does not tell its size"))?;
            Ok(Some(Space {
                total: stat.f_blocks.saturating_mul(stat.f_frsize),
                free: stat.f_bavail.saturating_mul(stat.f_frsize),
            }))
        })
        .await
    }
}
