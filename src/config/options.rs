//! The one list of options: flags of the command line, `-o` options, environment variables and
//! keys of the configuration file are all made from it.

use clap::{Arg, ArgAction, ArgMatches, Command};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// Headings of `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// How the store is reached; `bucketfs check` takes these too.
    Store,
    /// Who sees what.
    Access,
    /// What is remembered.
    Caching,
    /// How files get to the store.
    Writing,
    /// The process itself.
    Daemon,
}

impl Group {
    fn heading(self) -> &'static str {
        match self {
            Group::Store => "Store",
            Group::Access => "Access",
            Group::Caching => "Caching",
            Group::Writing => "Writing",
            Group::Daemon => "Daemon",
        }
    }
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Its name, words joined by `-`.
    pub name: &'static str,
    /// Its one-letter flag.
    pub short: Option<char>,
    /// Its heading.
    pub group: Group,
    /// What `--help` calls its value; `None` for a switch.
    pub value: Option<&'static str>,
    /// One sentence for `--help`.
    pub help: &'static str,
    /// Whether it may be given again; then `:` separates its values.
    pub many: bool,
    /// What holds when nobody sets it. Where it begins with a letter or digit and the option has
    /// a value, it is parsed like a value that was given; one in parentheses is only shown.
    pub default: &'static str,
}

const fn value(
    group: Group,
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
) -> OptionSpec {
    OptionSpec {
        name,
        short: None,
        group,
        value: Some(value),
        many: false,
        help,
        default,
    }
}

const fn switch(group: Group, name: &'static str, help: &'static str) -> OptionSpec {
    OptionSpec {
        name,
        short: None,
        group,
        value: None,
        many: false,
        help,
        default: "false",
    }
}

/// Every option, in the order of `--help`.
#[rustfmt::skip]
pub const OPTIONS: &[OptionSpec] = &[
    value(Group::Store, "prefix", "PREFIX", "(none)", "Only keys that begin with this, as if it stood behind the URL"),
    value(Group::Store, "region", "REGION", "(from the credentials profile)", "Region of the bucket"),
    value(Group::Store, "endpoint-url", "URL", "(that of the region)", "Where the service is"),
    switch(Group::Store, "force-path-style", "Put the bucket into the path of requests, not into the host name"),
    value(Group::Store, "profile", "NAME", "(the default profile)", "Credentials profile"),
    switch(Group::Store, "no-sign-request", "Send requests without credentials, to a public bucket"),
    switch(Group::Store, "requester-pays", "Pay for requests to a bucket whose owner does not"),
    value(Group::Store, "sse", "KIND", "(that of the bucket)", "Encryption of new objects by the service: AES256, aws:kms or aws:kms:dsse"),
    value(Group::Store, "sse-kms-key-id", "KEY", "(that of the bucket)", "Key for --sse aws:kms and aws:kms:dsse"),
    value(Group::Store, "storage-class", "CLASS", "(that of the object, or STANDARD)", "Storage class of written objects"),
    value(Group::Store, "deadline", "DURATION", "30s", "Give a request up after so long without progress"),
    value(Group::Store, "retries", "N", "7", "Send a failed request again at most so often"),
    value(Group::Store, "concurrency", "N", "64", "Most requests under way at once"),
    value(Group::Store, "fault", "SPEC", "(none)", "Inject faults into requests, for tests"),

    switch(Group::Access, "read-only", "Refuse every change"),
    switch(Group::Access, "allow-other", "Let all users in; modes are enforced (users need user_allow_other in /etc/fuse.conf)"),
    switch(Group::Access, "allow-root", "Let root in beside the mounting user (users need user_allow_other in /etc/fuse.conf)"),
    value(Group::Access, "uid", "UID", "(the mounting user)", "Owner of objects that store none"),
    value(Group::Access, "gid", "GID", "(the mounting user's group)", "Group of objects that store none"),
    value(Group::Access, "file-mode", "MODE", "644", "Permission bits of files that store none"),
    value(Group::Access, "dir-mode", "MODE", "755", "Permission bits of directories that store none"),
    switch(Group::Access, "no-query", "No directory .query at the top, in which directories are terms such as name=ada and hold links to the documents that match"),

    value(Group::Caching, "metadata-ttl", "DURATION", "1s", "How long names and attributes are believed, or minimal, or indefinite"),
    value(Group::Caching, "negative-metadata-ttl", "DURATION", "(that of --metadata-ttl)", "How long an absent name is believed absent"),
    value(Group::Caching, "consistency", "MODE", "close-to-open", "close-to-open: each open asks the store; ttl: opens trust --metadata-ttl"),
    value(Group::Caching, "stat-attrs", "WHICH", "lazy", "Stored attributes that no listing and no index tells: lazy: of directories that have some, and of new files; full: of all; none: not shown at all"),
    switch(Group::Caching, "no-index", "Neither read nor write the index of attributes below .bucketfs/, by which listings show them"),
    value(Group::Caching, "memory", "SIZE", "256M", "Memory for cached content"),
    value(Group::Caching, "cache-dir", "DIR", "(no disk cache)", "Cache content on disk below this directory"),
    value(Group::Caching, "max-cache-size", "SIZE", "10G", "Size of the disk cache; a number alone is MiB"),

    value(Group::Writing, "exclusive-create", "WHEN", "locks", "Claim O_EXCL on the server at open: always, for names like locks, or at commit"),
    value(Group::Writing, "max-rename", "N", "(no limit)", "Refuse to rename a directory of more than N keys (EXDEV), so that mv copies it"),
    OptionSpec { many: true, ..value(Group::Writing, "local", "PATTERN", "(none)", "Keep files of names like this, such as *.swp, on this machine only; may be given again") },
    value(Group::Writing, "staging-dir", "DIR", "(below the user's cache directory)", "Directory for bytes that are not sent yet"),
    value(Group::Writing, "staging-size", "SIZE", "64G", "How much of one file waits on the local disk for its commit. Of a larger one, rows of bytes wait in the store, below .bucketfs/; where the store cannot join them this is the largest file"),
    value(Group::Writing, "state-dir", "DIR", "(below the user's state directory)", "Directory where bytes are kept that no store would take, and the log"),
    switch(Group::Writing, "create-buckets", "Let mkdir and rmdir make and remove buckets, where all of them are mounted"),
    switch(Group::Writing, "unsafe-writes", "Write even where the store has no conditional writes: another writer's bytes may be lost"),

    OptionSpec { short: Some('f'), ..switch(Group::Daemon, "foreground", "Stay in the foreground; log to stderr or the journal") },
    switch(Group::Daemon, "auto-unmount", "Unmount even when the daemon is killed"),
    value(Group::Daemon, "log-file", "FILE", "(log in the state directory; stderr with -f)", "Where to log"),
    value(Group::Daemon, "log-level", "LEVEL", "info", "error, warn, info, debug or trace"),
    switch(Group::Daemon, "debug", "The same as --log-level debug"),
    value(Group::Daemon, "config", "FILE", "(none)", "JSON file: one object with these options as keys, and url"),
];

/// The option of a name; `_` counts as `-`.
pub fn find(name: &str) -> Option<&'static OptionSpec> {
    let name = name.replace('_', "-");
    OPTIONS.iter().find(|option| option.name == name)
}

/// The candidate with the least edit distance to `name`.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.replace('_', "-").to_lowercase();
    candidates
        .into_iter()
        .min_by_key(|candidate| distance(&name, &candidate.replace('_', "-")))
}

/// Edit distance: insertions, removals, replacements and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// Options that the command line gave as long or short flags, by name.
#[derive(Clone, Debug, Default)]
pub struct Flags(pub BTreeMap<&'static str, OsString>);

/// The flags of `bucketfs check`: those that say how the store is reached, and where they come
/// from.
#[derive(Clone, Debug, Default)]
pub struct StoreFlags(pub Flags);

fn arguments(command: Command, wanted: fn(&OptionSpec) -> bool) -> Command {
    let args = OPTIONS
        .iter()
        .filter(|option| wanted(option))
        .map(|option| {
            let help = format!("{} [default: {}]", option.help, shown(option.default));
            let arg = Arg::new(option.name)
                .long(option.name)
                .help(help)
                .help_heading(option.group.heading());
            let arg = match option.short {
                Some(letter) => arg.short(letter),
                None => arg,
            };
            let arg = arg.value_parser(clap::value_parser!(OsString));
            match option.value {
                Some(name) if option.many => arg.value_name(name).action(ArgAction::Append),
                Some(name) => arg.value_name(name).action(ArgAction::Set),
                None => arg
                    .value_name("BOOL")
                    .num_args(0..=1)
                    .require_equals(true)
                    .hide_possible_values(true)
                    .default_missing_value("true"),
            }
        });
    command.args(args)
}

/// A default as it is shown: without the parentheses.
fn shown(default: &str) -> &str {
    default
        .strip_prefix('(')
        .and_then(|inner| inner.strip_suffix(')'))
        .unwrap_or(default)
}

fn given(matches: &ArgMatches, wanted: fn(&OptionSpec) -> bool) -> Flags {
    Flags(
        OPTIONS
            .iter()
            .filter(|option| wanted(option))
            .filter_map(|option| {
                let values = matches.get_many::<OsString>(option.name)?;
                Some((option.name, joined(values.map(OsString::as_os_str))))
            })
            .collect(),
    )
}

/// The values of an option that was given several times, as one.
pub fn joined<'a>(values: impl IntoIterator<Item = &'a OsStr>) -> OsString {
    let values: Vec<_> = values.into_iter().collect();
    values.join(OsStr::new(":"))
}

fn any(_: &OptionSpec) -> bool {
    true
}

fn of_store(option: &OptionSpec) -> bool {
    option.group == Group::Store
        || matches!(
            option.name,
            "config" | "debug" | "log-level" | "read-only" | "state-dir" | "unsafe-writes"
        )
}

/// Makes a set of flags usable with `#[command(flatten)]`.
macro_rules! clap_args {
    ($type:ty, $wanted:path, $wrap:expr) => {
        impl clap::FromArgMatches for $type {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok($wrap(given(matches, $wanted)))
            }
            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = $wrap(given(matches, $wanted));
                Ok(())
            }
        }
        impl clap::Args for $type {
            fn augment_args(command: Command) -> Command {
                arguments(command, $wanted)
            }
            fn augment_args_for_update(command: Command) -> Command {
                arguments(command, $wanted)
            }
        }
    };
}

clap_args!(Flags, any, std::convert::identity);
clap_args!(StoreFlags, of_store, StoreFlags);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found_with_either_dash() {
        let mut names: Vec<_> = OPTIONS.iter().map(|option| option.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), OPTIONS.len());
        assert_eq!(find("cache_dir").map(|o| o.name), Some("cache-dir"));
        assert!(find("cache dir").is_none());
    }

    #[test]
    fn nearest_counts_edits() {
        let names = || OPTIONS.iter().map(|option| option.name);
        for (typo, meant) in [
            ("read-olny", "read-only"),
            ("readonly", "read-only"),
            ("alow_other", "allow-other"),
            ("metadata-tll", "metadata-ttl"),
            ("max-cache", "max-cache-size"),
            ("endpoint", "endpoint-url"),
        ] {
            assert_eq!(nearest(typo, names()), Some(meant), "{typo}");
        }
        assert_eq!(distance("ab", "ba"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
