//! `bucketfs check`: what a store can do, tried on canary objects that are removed again.

use crate::clock;
use crate::config::StoreSettings;
use crate::driver::{
    AttributeSupport, Attributes, Body, Capabilities, CopyOptions, Driver, ETag, Error, ErrorKind,
    GetOptions, ListRequest, Precondition, PutOptions, Removal, Result, Strength,
};
use crate::exit::{Exit, Failure};
use crate::key::Key;
use crate::mount;
use std::time::Duration;

/// Where our own objects live; it never shows in a mount.
pub const HIDDEN: &str = ".bucketfs/";
/// How old an upload is that nobody finishes any more. One that is under way tells nobody so.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);
/// The mode of the canary: one that is nobody's default.
const MODE: u32 = libc::S_IFREG | 0o604;

/// Says a line to the user.
pub type Say<'a> = &'a mut (dyn FnMut(String) + Send);

/// What is to be done with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Tell what works.
    Check,
    /// Remove what bucketfs keeps in the bucket.
    Clean,
    /// Bring replicas up to date.
    Repair {
        /// Also those that have the copies of another store.
        replace: bool,
    },
}

/// Connects, and does that.
pub fn run(
    settings: &StoreSettings,
    task: Task,
    say: Say<'_>,
) -> std::result::Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::other(format!("cannot start the runtime: {error}")))?;
    let outcome = runtime.block_on(async {
        // A check must reach stores without conditions too: that is what it is to tell.
        let mut settings = settings.clone();
        settings.open.unsafe_writes = true;
        if let Task::Repair { .. } = task {
            if settings.open.read_only {
                return Err(Failure::usage("--repair writes; leave --read-only away"));
            }
            settings.open.journal_dir = Some(mount::dirs::journal(&settings));
        }
        let stack = mount::open(&settings).await?;
        let driver = stack.driver;
        say(format!("{} answers", settings.location));
        let checked = match (stack.shows_buckets, task) {
            (_, Task::Repair { replace }) => repair(&*driver, replace, say).await,
            (true, Task::Clean) => {
                return Err(Failure::usage(format!(
                    "--clean is for one bucket at a time; name it, as in {}BUCKET",
                    settings.location
                )));
            }
            (true, Task::Check) => list_buckets(&*driver, say).await,
            (false, Task::Clean) => {
                let cleaned = clean_up(&*driver, say).await;
                if cleaned.is_ok() {
                    clean_local(&settings, say)?;
                }
                cleaned
            }
            (false, Task::Check) => check(&*driver, settings.open.read_only, say).await,
        };
        checked.map_err(|error| {
            let failure = Failure::from(&error);
            Failure::new(failure.exit, format!("{}: {failure}", settings.location))
        })
    });
    runtime.shutdown_background();
    outcome
}

/// Removes the files that `--local` has kept on this machine for mounts that have ended.
fn clean_local(settings: &StoreSettings, say: Say<'_>) -> std::result::Result<(), Failure> {
    let found = mount::local::clean_up(settings).map_err(|error| {
        let root = mount::state_root(settings);
        mount::dirs::failure("state directory", "state-dir", &root, &error)
    })?;
    for left in found {
        let (files, dir) = (left.files, left.dir.display());
        say(match left.in_use {
            true => format!("left {files} files of --local names in {dir}: a mount uses them"),
            false => format!("removed {files} files of --local names in {dir}"),
        });
    }
    Ok(())
}

/// Brings the replicas of a store up to date, and of the stores that it is made of.
async fn repair(driver: &dyn Driver, replace: bool, say: Say<'_>) -> Result<Exit> {
    let replicated = driver.replicated();
    if replicated.is_empty() {
        let why = "there is nothing to repair: only mirror: keeps replicas";
        return Err(Error::new(ErrorKind::Unsupported, why).during("repair"));
    }
    let mut exit = Exit::Ok;
    for mirror in replicated {
        if mirror.repair(replace, say).await?.failed > 0 {
            exit = Exit::Other;
        }
    }
    Ok(exit)
}

/// Tells the buckets of a store, and whether each may be listed.
async fn list_buckets(driver: &dyn Driver, say: Say<'_>) -> Result<Exit> {
    for bucket in driver.buckets().await? {
        let mut request = ListRequest::directory(&Key::from(format!("{}/", bucket.name)));
        request.limit = 2;
        say(match driver.list(request).await {
            Ok(_) => format!("{}: works", bucket.name),
            Err(error) => format!("{}: {error}", bucket.name),
        });
    }
    say("nothing was written: name a bucket to try out its conditions".into());
    Ok(Exit::Ok)
}

/// Tells what a driver claims, and tries it unless `read_only`.
pub async fn check(driver: &dyn Driver, read_only: bool, say: Say<'_>) -> Result<Exit> {
    let mut request = ListRequest::directory(&Key::empty());
    request.limit = 1;
    driver.list(request).await?;
    say("listing: works".into());
    let capabilities = driver.capabilities();
    describe(&capabilities, say);
    if read_only {
        say("nothing was written: --read-only".into());
        return Ok(Exit::Ok);
    }
    let name = format!("{HIDDEN}check-{:016x}", clock::random());
    let key = Key::from(format!("{name}-a"));
    let copied = Key::from(format!("{name}-b"));
    let mut trial = Trial {
        driver,
        capabilities,
        key: &key,
        say: &mut *say,
        exit: Exit::Ok,
    };
    let tried = trial.all(&copied).await;
    let exit = trial.exit;
    // What was tried is removed whatever came of it; a failure of that is told after its own.
    let mut removed = Ok(());
    for key in [&key, &copied] {
        let gone = driver.delete(key, Precondition::None).await;
        removed = removed.and(gone);
    }
    tried?;
    removed?;
    say(match exit {
        Exit::Ok => "all that was tried works; the canary objects are removed".into(),
        _ => "this store lets a writer overwrite another one unnoticed; mount it with --read-only, or with --unsafe-writes if nobody else writes there".into(),
    });
    Ok(exit)
}

fn describe(capabilities: &Capabilities, say: Say<'_>) {
    let yes = |has: bool| if has { "yes" } else { "no" }.to_owned();
    let attributes = match capabilities.attributes {
        AttributeSupport::None => "not kept",
        AttributeSupport::Object => "kept with each object",
        AttributeSupport::Listed => "kept with each object, and listed",
    };
    let parts = match &capabilities.upload {
        Some(limits) => format!("yes, up to {} parts", limits.max_parts),
        None => "no".into(),
    };
    for (what, how) in [
        ("modes, owners and times", attributes.into()),
        (
            "symbolic links and special files",
            yes(capabilities.special_files),
        ),
        ("server-side copy", yes(capabilities.copy.is_some())),
        ("atomic rename", yes(capabilities.rename)),
        ("upload in parts", parts),
        ("change feed", yes(capabilities.watch)),
        ("list of buckets", yes(capabilities.buckets)),
    ] {
        say(format!("{what}: {how}"));
    }
}

/// Attempts on one canary object.
struct Trial<'a, 'b> {
    driver: &'a dyn Driver,
    capabilities: Capabilities,
    key: &'a Key,
    say: &'a mut (dyn FnMut(String) + Send + 'b),
    exit: Exit,
}

impl Trial<'_, '_> {
    async fn all(&mut self, copied: &Key) -> Result<()> {
        let first = self.put("first", Precondition::None).await?;
        let second = self.put("second", Precondition::None).await?;
        if first == second {
            return Err(self.corrupt("put", "the etag stayed the same although the bytes changed"));
        }
        let strength = self.capabilities.put_condition;
        if strength == Strength::None {
            self.exit = Exit::Unsupported;
            (self.say)("conditional writes: none".into());
        } else {
            self.judge(
                "writing only a name that is not there (If-None-Match)",
                self.put("third", Precondition::IfAbsent).await,
                ErrorKind::Exists,
                strength,
            )?;
            self.judge(
                "writing only over the version that was read (If-Match)",
                self.put("fourth", Precondition::IfMatch(first.clone()))
                    .await,
                ErrorKind::Changed,
                strength,
            )?;
        }
        let current = self.driver.head(self.key).await?.etag;
        let fresh = match strength {
            Strength::None => Precondition::None,
            Strength::Checked | Strength::Atomic => Precondition::IfMatch(current),
        };
        self.put("the last one", fresh).await?;
        self.read_back().await?;
        self.attributes().await?;
        let strength = self.capabilities.delete_condition;
        if strength != Strength::None {
            self.judge(
                "removing only the version that was seen",
                self.driver
                    .delete(self.key, Precondition::IfMatch(first))
                    .await,
                ErrorKind::Changed,
                strength,
            )?;
            self.put("to be copied", Precondition::None).await?;
        }
        if let Some(copy) = self.capabilities.copy {
            let copying = |options| self.driver.copy(self.key, copied, options);
            copying(CopyOptions::default()).await?;
            if copy.destination != Strength::None {
                let attempt = copying(CopyOptions {
                    destination: Precondition::IfAbsent,
                    ..CopyOptions::default()
                })
                .await;
                self.judge(
                    "copying only to a name that is not there",
                    attempt,
                    ErrorKind::Exists,
                    copy.destination,
                )?;
            }
        }
        Ok(())
    }

    async fn put(&self, text: &'static str, precondition: Precondition) -> Result<ETag> {
        let options = PutOptions {
            precondition,
            attributes: Attributes {
                mode: Some(MODE),
                ..Attributes::default()
            },
            ..PutOptions::default()
        };
        let put = self.driver.put(self.key, Body::from(text), options);
        Ok(put.await?.etag)
    }

    /// Tells of an attempt that must lose: with the expected error the condition is honoured,
    /// with success it is ignored.
    fn judge<T>(
        &mut self,
        what: &str,
        attempt: Result<T>,
        expected: ErrorKind,
        strength: Strength,
    ) -> Result<()> {
        let line = match attempt {
            Ok(_) => {
                self.exit = Exit::Unsupported;
                format!("{what}: ignored")
            }
            Err(error) if error.kind() == expected => match strength {
                Strength::Atomic => format!("{what}: honoured (atomic, as the driver claims)"),
                Strength::Checked | Strength::None => {
                    format!("{what}: honoured (tested, then written)")
                }
            },
            Err(error) => return Err(error),
        };
        (self.say)(line);
        Ok(())
    }

    async fn read_back(&mut self) -> Result<()> {
        let ranges = self.capabilities.range;
        let wanted: &[u8] = if ranges { b"last" } else { b"the last one" };
        let options = GetOptions {
            range: ranges.then_some(4..8),
            ..GetOptions::default()
        };
        let object = self.driver.get(self.key, options).await?.found()?;
        let (_, bytes) = object.collect().await?;
        if bytes != wanted {
            return Err(self.corrupt("get", "the bytes read are not those that were written"));
        }
        (self.say)(match ranges {
            true => "writing, and reading a range of it: works".into(),
            false => "writing and reading: works; each read gets the whole object".into(),
        });
        Ok(())
    }

    async fn attributes(&mut self) -> Result<()> {
        if self.capabilities.attributes == AttributeSupport::None {
            return Ok(());
        }
        let told = self.driver.head(self.key).await?.attributes;
        if told.and_then(|told| told.mode) != Some(MODE) {
            return Err(self.corrupt("head", "the mode that was written did not come back"));
        }
        (self.say)("keeping a mode: works".into());
        Ok(())
    }

    fn corrupt(&self, operation: &'static str, why: &str) -> Error {
        Error::new(ErrorKind::Corrupt, why)
            .during(operation)
            .on(self.key)
    }
}

/// Removes what bucketfs leaves in a bucket: everything below [`HIDDEN`], and the parts of
/// uploads that nobody finishes any more.
pub async fn clean_up(driver: &dyn Driver, say: Say<'_>) -> Result<Exit> {
    let exit = remove_hidden(driver, say).await?;
    let before = clock::wall() - STALE;
    let keys = driver.abandon_uploads(&Key::empty(), before).await?;
    for key in &keys {
        say(format!("threw away the parts of an upload to {key:?}"));
    }
    if !keys.is_empty() {
        say(format!(
            "threw away {} uploads that were begun more than a day ago",
            keys.len()
        ));
    }
    Ok(exit)
}

/// Removes everything below [`HIDDEN`].
pub async fn remove_hidden(driver: &dyn Driver, say: Say<'_>) -> Result<Exit> {
    let mut removed = 0;
    let mut last_first = None;
    loop {
        // From the start each time: a token need not survive removals.
        let mut request = ListRequest::flat(&Key::from(HIDDEN));
        let entries = loop {
            let page = driver.list(request.clone()).await?;
            match page.next {
                Some(token) if page.entries.is_empty() => request.token = Some(token),
                _ => break page.entries,
            }
        };
        let Some(first) = entries.first().map(|entry| entry.key.clone()) else {
            break;
        };
        if last_first.as_ref() == Some(&first) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "the object was removed and is listed again",
            )
            .during("delete")
            .on(&first));
        }
        let keys: Vec<Key> = entries.into_iter().map(|entry| entry.key).collect();
        remove(driver, &keys).await?;
        removed += keys.len();
        last_first = Some(first);
    }
    say(format!("removed {removed} objects below {HIDDEN}"));
    Ok(Exit::Ok)
}

/// Removes objects, many with each request where the store can.
async fn remove(driver: &dyn Driver, keys: &[Key]) -> Result<()> {
    let Some(most) = driver.capabilities().delete_many else {
        for key in keys {
            driver.delete(key, Precondition::None).await?;
        }
        return Ok(());
    };
    for batch in keys.chunks(most.max(1)) {
        let batch: Vec<Removal> = batch.iter().cloned().map(Removal::from).collect();
        for removed in driver.delete_many(&batch).await? {
            removed?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::memory::Memory;

    async fn keys(driver: &dyn Driver) -> Vec<String> {
        let page = driver.list(ListRequest::flat(&Key::empty())).await.unwrap();
        page.entries
            .iter()
            .map(|entry| entry.key.to_string())
            .collect()
    }

    #[tokio::test]
    async fn a_good_store_passes_and_is_left_clean() {
        let memory = Memory::new();
        let mut said = Vec::new();
        let exit = check(&memory, false, &mut |line| said.push(line))
            .await
            .unwrap();
        assert_eq!(exit, Exit::Ok, "{said:?}");
        assert_eq!(
            said.iter()
                .filter(|line| line.contains(": honoured"))
                .count(),
            4
        );
        assert!(
            !said.iter().any(|line| line.contains("ignored")),
            "{said:?}"
        );
        assert!(keys(&memory).await.is_empty());
    }

    #[tokio::test]
    async fn cleaning_removes_the_hidden_prefix_only() {
        let memory = Memory::new();
        for key in [".bucketfs/x", ".bucketfs/y/z", ".bucketfsx", "a"] {
            let key = Key::from(key);
            let put = memory.put(&key, Body::empty(), PutOptions::default());
            put.await.unwrap();
        }
        let mut said = Vec::new();
        remove_hidden(&memory, &mut |line| said.push(line))
            .await
            .unwrap();
        assert_eq!(said, ["removed 2 objects below .bucketfs/"]);
        assert_eq!(keys(&memory).await, [".bucketfsx", "a"]);
    }
}
