//! Settings: flags, `-o` options, the environment and a configuration file, resolved once.
//!
//! What is set in several places is taken from the first of: flag, `-o` option, environment
//! variable (`BUCKETFS_` and the name in capitals with `_`), configuration file, default.

pub mod fstab;
pub mod options;
pub mod values;

pub use fstab::KernelFlags;
pub use options::{Flags, StoreFlags};

use crate::driver::{Encryption, Location, OpenOptions};
use crate::exit::Failure;
use crate::fs::{Consistency, ExclusiveCreate, StatAttrs};
use crate::key::Key;
use crate::layer::LocalNames;
use log::LevelFilter;
use options::OPTIONS;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What variables of the environment begin with.
const ENVIRONMENT: &str = "BUCKETFS_";

/// Who may see a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// The user who mounted it.
    #[default]
    Owner,
    /// That user and root.
    Root,
    /// Everybody, as modes allow.
    Other,
}

/// How a store is reached.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// Its URL.
    pub location: Location,
    /// What stands behind the URL's own prefix; empty, or ending with `/`.
    pub prefix: Key,
    /// What the driver is told.
    pub open: OpenOptions,
    /// Time without progress after which a request is given up.
    pub deadline: Duration,
    /// How often a failed request is sent again.
    pub retries: u32,
    /// Most requests under way.
    pub concurrency: usize,
    /// Faults to inject.
    pub fault: Option<String>,
    /// Whether buckets of a whole store may be made and removed.
    pub create_buckets: bool,
    /// Neither read nor write an index of attributes.
    pub no_index: bool,
    /// Where state directories are, when not at the usual place.
    pub state_dir: Option<PathBuf>,
    /// How much is logged.
    pub log_level: LevelFilter,
}

impl StoreSettings {
    /// What is reached, without secrets: the URL, and the prefix if there is one.
    pub fn name(&self) -> String {
        match self.prefix.is_empty() {
            true => self.location.to_string(),
            false => format!("{} below {}", self.location, self.prefix),
        }
    }
}

/// Everything that is to be known of a mount.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The store.
    pub store: StoreSettings,
    /// Refuse every change.
    pub read_only: bool,
    /// Who may see it.
    pub access: Access,
    /// What the kernel is told.
    pub kernel: KernelFlags,
    /// Owner of objects that store none.
    pub uid: u32,
    /// Group of objects that store none.
    pub gid: u32,
    /// Permission bits of files that store none.
    pub file_mode: u32,
    /// Permission bits of directories that store none.
    pub dir_mode: u32,
    /// No directory of queries at the top.
    pub no_query: bool,
    /// How long names and attributes are believed.
    pub metadata_ttl: Duration,
    /// How long an absent name is believed absent.
    pub negative_ttl: Duration,
    /// For which objects attributes are asked that a listing does not tell.
    pub stat_attrs: StatAttrs,
    /// Whether opens revalidate.
    pub consistency: Consistency,
    /// Memory for content, in bytes.
    pub memory: u64,
    /// Where disk caches are.
    pub cache_dir: Option<PathBuf>,
    /// Size of the disk cache, in bytes.
    pub max_cache_size: u64,
    /// Where `O_EXCL` is decided.
    pub exclusive_create: ExclusiveCreate,
    /// How many keys the rename of a directory may move, if there is a limit.
    pub max_rename: Option<u64>,
    /// Where staging directories are, when not at the usual place.
    pub staging_dir: Option<PathBuf>,
    /// Largest file that can be staged, in bytes.
    pub staging_size: u64,
    /// Names of files that stay on this machine.
    pub local: LocalNames,
    /// Stay in the foreground.
    pub foreground: bool,
    /// Unmount when the daemon is killed.
    pub auto_unmount: bool,
    /// Where to log, when not at the usual place.
    pub log_file: Option<PathBuf>,
}

/// Where settings come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The URL of the command line.
    pub url: Option<OsString>,
    /// Flags.
    pub flags: Flags,
    /// Values of `-o`, in order.
    pub mount_options: Vec<String>,
    /// The environment; only what begins with `BUCKETFS_` is looked at.
    pub environment: Vec<(OsString, OsString)>,
}

/// Which of several places set a value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Flag,
    MountOption,
    Environment,
    File(PathBuf),
    Default,
}

/// The values that won, as text.
#[derive(Debug, Default)]
struct Values(BTreeMap<&'static str, (OsString, Origin)>);

/// Resolves what a mount needs.
pub fn resolve(sources: Sources) -> Result<Settings, Failure> {
    let mount_options = fstab::parse(sources.mount_options.iter().map(String::as_str))?;
    let kernel = mount_options.kernel;
    let values = Values::collect(&sources, mount_options.ours)?;
    let store = values.store(sources.url.as_deref())?;
    let metadata_ttl = values.parse("metadata-ttl", values::time_to_live)?;
    let access = match (values.switch("allow-other")?, values.switch("allow-root")?) {
        (true, true) => {
            return Err(Failure::usage(
                "allow-other and allow-root exclude each other; give one of them",
            ));
        }
        (true, false) => Access::Other,
        (false, true) => Access::Root,
        (false, false) => Access::Owner,
    };
    Ok(Settings {
        read_only: store.open.read_only,
        store,
        access,
        kernel,
        uid: values
            .parse_given("uid", values::number)?
            .unwrap_or_else(|| rustix::process::geteuid().as_raw()),
        gid: values
            .parse_given("gid", values::number)?
            .unwrap_or_else(|| rustix::process::getegid().as_raw()),
        file_mode: values.parse("file-mode", values::mode)?,
        dir_mode: values.parse("dir-mode", values::mode)?,
        no_query: values.switch("no-query")?,
        metadata_ttl,
        negative_ttl: values
            .parse_given("negative-metadata-ttl", values::time_to_live)?
            .unwrap_or(metadata_ttl),
        stat_attrs: values.parse("stat-attrs", |text| {
            let words = [
                ("lazy", StatAttrs::Lazy),
                ("full", StatAttrs::Full),
                ("none", StatAttrs::None),
            ];
            values::choice(text, &words)
        })?,
        consistency: values.parse("consistency", |text| {
            let words = [
                ("close-to-open", Consistency::CloseToOpen),
                ("ttl", Consistency::Ttl),
            ];
            values::choice(text, &words)
        })?,
        memory: values.parse("memory", values::size)?,
        cache_dir: values.path("cache-dir")?,
        max_cache_size: values.parse("max-cache-size", values::size)?,
        exclusive_create: values.parse("exclusive-create", |text| {
            let words = [
                ("always", ExclusiveCreate::Always),
                ("locks", ExclusiveCreate::Locks),
                ("commit", ExclusiveCreate::Commit),
            ];
            values::choice(text, &words)
        })?,
        max_rename: values.parse_given("max-rename", values::number)?,
        staging_dir: values.path("staging-dir")?,
        staging_size: values.parse("staging-size", values::size)?,
        local: values
            .parse_given("local", LocalNames::parse)?
            .unwrap_or_default(),
        foreground: values.switch("foreground")?,
        auto_unmount: values.switch("auto-unmount")?,
        log_file: values.path("log-file")?,
    })
}

/// Resolves what is needed to reach a store; other options may be set and are not looked at.
pub fn resolve_store(sources: Sources) -> Result<StoreSettings, Failure> {
    let values = Values::collect(&sources, Vec::new())?;
    values.store(sources.url.as_deref())
}

impl Values {
    /// Collects, from the weakest source to the strongest.
    fn collect(
        sources: &Sources,
        mount_options: Vec<(&'static str, String)>,
    ) -> Result<Values, Failure> {
        let environment = environment(&sources.environment)?;
        let find = |wanted: &str| {
            let option = mount_options.iter().rev().find(|(name, _)| *name == wanted);
            sources
                .flags
                .0
                .get(wanted)
                .cloned()
                .or_else(|| option.map(|(_, value)| value.into()))
                .or_else(|| environment.get(wanted).cloned())
        };
        let mut values = BTreeMap::new();
        if let Some(path) = find("config").map(PathBuf::from) {
            for (name, value) in file(&path)? {
                values.insert(name, (value, Origin::File(path.clone())));
            }
        }
        let mut set = |name, value, origin| {
            values.insert(name, (value, origin));
        };
        for (name, value) in environment {
            set(name, value, Origin::Environment);
        }
        for (name, value) in given_once(mount_options) {
            set(name, value, Origin::MountOption);
        }
        for (name, value) in &sources.flags.0 {
            set(name, value.clone(), Origin::Flag);
        }
        Ok(Values(values))
    }

    fn store(&self, url: Option<&OsStr>) -> Result<StoreSettings, Failure> {
        let url = match (url, self.0.get("url")) {
            (Some(url), _) => url,
            (None, Some((url, _))) => url,
            (None, None) => {
                return Err(Failure::usage(
                    "no URL: give it before the directory, in BUCKETFS_URL or as \"url\" in --config FILE",
                ));
            }
        };
        let url = url
            .to_str()
            .ok_or_else(|| Failure::usage("the URL is not UTF-8; percent-encode it"))?;
        let location = Location::parse(url).map_err(|error| Failure::from(&error))?;
        let log_level = match self.switch("debug")? {
            true => LevelFilter::Debug,
            false => self.parse("log-level", |text| {
                let words = [
                    ("error", LevelFilter::Error),
                    ("warn", LevelFilter::Warn),
                    ("info", LevelFilter::Info),
                    ("debug", LevelFilter::Debug),
                    ("trace", LevelFilter::Trace),
                ];
                values::choice(text, &words)
            })?,
        };
        let deadline = self.parse("deadline", values::duration)?;
        if deadline.is_zero() {
            return Err(self.wrong("deadline", "a request needs some time; give at least 1ms"));
        }
        let concurrency = self.parse("concurrency", values::number)?;
        if concurrency == 0 {
            return Err(self.wrong("concurrency", "it must be at least 1"));
        }
        Ok(StoreSettings {
            location,
            prefix: self.prefix(),
            open: self.open()?,
            deadline,
            retries: self.parse("retries", values::number)?,
            concurrency,
            fault: self.text("fault")?,
            create_buckets: self.switch("create-buckets")?,
            no_index: self.switch("no-index")?,
            state_dir: self.path("state-dir")?,
            log_level,
        })
    }

    /// What drivers are told.
    fn open(&self) -> Result<OpenOptions, Failure> {
        let options = OpenOptions {
            read_only: self.switch("read-only")?,
            unsafe_writes: self.switch("unsafe-writes")?,
            profile: self.text("profile")?,
            region: self.text("region")?,
            endpoint_url: self.text("endpoint-url")?,
            force_path_style: self.switch("force-path-style")?,
            no_sign_request: self.switch("no-sign-request")?,
            requester_pays: self.switch("requester-pays")?,
            sse: self.parse_given("sse", |text| {
                values::choice(text, &Encryption::ALL.map(|kind| (kind.name(), kind)))
            })?,
            sse_kms_key_id: self.text("sse-kms-key-id")?,
            storage_class: self.text("storage-class")?,
            findings_dir: None,
            journal_dir: None,
            depth: 0,
        };
        if options.no_sign_request && options.profile.is_some() {
            return Err(Failure::usage(
                "no-sign-request and profile exclude each other; give one of them",
            ));
        }
        if options.sse_kms_key_id.is_some()
            && !matches!(options.sse, Some(Encryption::Kms | Encryption::KmsDsse))
        {
            return Err(self.wrong("sse-kms-key-id", "it needs --sse aws:kms or aws:kms:dsse"));
        }
        Ok(options)
    }

    /// The prefix, with one `/` at its end and none at its start.
    fn prefix(&self) -> Key {
        let given = self.0.get("prefix").map(|(value, _)| value.as_bytes());
        let given = given.unwrap_or_default();
        let start = given.iter().position(|byte| *byte != b'/');
        match &given[start.unwrap_or(given.len())..] {
            [] => Key::empty(),
            prefix if prefix.ends_with(b"/") => Key::from(prefix),
            prefix => Key::from(prefix).join("/"),
        }
    }

    fn text(&self, name: &'static str) -> Result<Option<String>, Failure> {
        self.parse_given(name, |text| Ok(text.to_owned()))
    }

    fn path(&self, name: &'static str) -> Result<Option<PathBuf>, Failure> {
        let Some((value, _)) = self.0.get(name) else {
            return Ok(None);
        };
        if value.is_empty() {
            return Err(self.wrong(name, "an empty path"));
        }
        std::path::absolute(value)
            .map(Some)
            .map_err(|error| self.wrong(name, error))
    }

    fn switch(&self, name: &'static str) -> Result<bool, Failure> {
        self.parse(name, values::switch)
    }

    fn parse<T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, Failure> {
        match self.parse_given(name, &parse)? {
            Some(value) => Ok(value),
            None => {
                let default = options::find(name).map_or("", |option| option.default);
                parse(default).map_err(|why| self.wrong(name, why))
            }
        }
    }

    fn parse_given<T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Failure> {
        let Some((value, _)) = self.0.get(name) else {
            return Ok(None);
        };
        let text = value
            .to_str()
            .ok_or_else(|| self.wrong(name, "the value is not UTF-8"))?;
        parse(text).map(Some).map_err(|why| self.wrong(name, why))
    }

    /// The refusal of a value, with the place that set it.
    fn wrong(&self, name: &'static str, why: impl fmt::Display) -> Failure {
        let origin = self.0.get(name).map(|(_, origin)| origin);
        let place = match origin.unwrap_or(&Origin::Default) {
            Origin::Flag => format!("--{name}"),
            Origin::MountOption => format!("-o {name}"),
            Origin::Environment => variable(name),
            Origin::File(path) => format!("{}: {name}", path.display()),
            Origin::Default => format!("the default of {name}"),
        };
        Failure::usage(format!("{place}: {why}"))
    }
}

/// The environment variable of an option.
fn variable(name: &str) -> String {
    format!("{ENVIRONMENT}{}", name.replace('-', "_").to_uppercase())
}

/// Our variables of the environment by the names of their options. Empty ones count as not set.
fn environment(
    variables: &[(OsString, OsString)],
) -> Result<BTreeMap<&'static str, OsString>, Failure> {
    let mut found = BTreeMap::new();
    for (variable_name, value) in variables {
        let Some(name) = variable_name
            .to_str()
            .and_then(|name| name.strip_prefix(ENVIRONMENT))
        else {
            continue;
        };
        let name = name.to_lowercase();
        match (name.as_str(), options::find(&name)) {
            ("runtime_dir", _) => {}
            _ if value.is_empty() => {}
            ("url", _) => {
                found.insert("url", value.clone());
            }
            (_, Some(option)) => {
                found.insert(option.name, value.clone());
            }
            (_, None) => {
                let names = OPTIONS.iter().map(|option| option.name);
                let names = names.chain(["url", "runtime-dir"]);
                let nearest = options::nearest(&name, names).unwrap_or_default();
                return Err(Failure::usage(format!(
                    "unknown environment variable {ENVIRONMENT}{}; did you mean {}?",
                    name.to_uppercase(),
                    variable(nearest)
                )));
            }
        }
    }
    Ok(found)
}

/// The options of a configuration file.
fn file(path: &Path) -> Result<Vec<(&'static str, OsString)>, Failure> {
    let wrong = |why: String| Failure::usage(format!("{}: {why}", path.display()));
    let text = std::fs::read(path)
        .map_err(|error| wrong(format!("cannot read this configuration file: {error}")))?;
    let document: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| wrong(format!("this configuration file is not JSON: {error}")))?;
    let serde_json::Value::Object(entries) = document else {
        return Err(wrong(
            "a configuration file is one JSON object, like {\"read-only\": true}".into(),
        ));
    };
    let mut found = Vec::new();
    for (key, value) in entries {
        let name = match options::find(&key).map(|option| option.name) {
            // A file that names another one would make precedence a riddle.
            Some("config") => return Err(wrong("config: this key is not allowed here".into())),
            Some(name) => name,
            None if key == "url" => "url",
            None => {
                let names = OPTIONS.iter().map(|option| option.name).chain(["url"]);
                let nearest = options::nearest(&key, names).unwrap_or_default();
                return Err(wrong(format!(
                    "unknown key {key:?}; did you mean {nearest:?}?"
                )));
            }
        };
        if name == "url" && holds_password(&value) && is_readable_by_others(path) {
            return Err(wrong(format!(
                "the url holds a password and other users can read this file; chmod 600 {}",
                path.display()
            )));
        }
        let value = match value {
            serde_json::Value::String(text) => text,
            serde_json::Value::Bool(value) => value.to_string(),
            serde_json::Value::Number(number) => number.to_string(),
            serde_json::Value::Array(values) if is_many(name) => {
                let texts = values.iter().map(|value| value.as_str().map(OsStr::new));
                let texts: Option<Vec<_>> = texts.collect();
                let not_texts = || wrong(format!("{key}: the values of the list must be texts"));
                found.push((name, options::joined(texts.ok_or_else(not_texts)?)));
                continue;
            }
            _ => {
                return Err(wrong(format!(
                    "{key}: the value must be a text, a number, true or false"
                )));
            }
        };
        found.push((name, value.into()));
    }
    Ok(found)
}

fn is_many(name: &str) -> bool {
    options::find(name).is_some_and(|option| option.many)
}

/// What was given several times, as one value: all of them where an option takes many, else the
/// last.
fn given_once(options: Vec<(&'static str, String)>) -> BTreeMap<&'static str, OsString> {
    let mut given: BTreeMap<&'static str, OsString> = BTreeMap::new();
    for (name, value) in options {
        let value = match given.get(name).filter(|_| is_many(name)) {
            Some(before) => options::joined([before.as_os_str(), OsStr::new(&value)]),
            None => value.into(),
        };
        given.insert(name, value);
    }
    given
}

fn holds_password(value: &serde_json::Value) -> bool {
    value.as_str().is_some_and(Location::holds_password)
}

fn is_readable_by_others(path: &Path) -> bool {
    path.metadata().is_ok_and(|facts| facts.mode() & 0o044 != 0)
}

#[cfg(test)]
mod tests;
