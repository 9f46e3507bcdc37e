//! `bucketfs find`.

mod out;
mod within;

use super::{args, counted};
use crate::config::{self, Sources, StoreFlags, values};
use crate::driver::{self, ETag, ErrorKind, Filter, Match};
use crate::exit::{Exit, Failure};
use crate::find::{self, Event, Search};
use crate::key::Key;
use crate::{logging, mount};
use out::Out;
use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// What stands behind the options in `--help`.
pub const HELP: &str = "\
A term is FIELD=VALUE. FIELD goes down into objects, and by positions into lists, with dots: a.b.0;
a backslash before a dot or a = makes it a part of the name. VALUE is what JSON takes it for (3,
true, null, \"3\", '[1,2]', '{\"x\":1}'), and else a string. All terms must hold, each exactly: 3 is
3.0 and not \"3\", and an object has no further fields. A document is any object of the store that
is JSON, whatever it is called.

Exit codes of find: 0 something was found, 1 nothing was found, 2 it did not work.";

/// What is asked for.
#[derive(Debug, clap::Args)]
pub struct Find {
    /// Where to look: a URL, or a mount of bucketfs or a directory in one, and what for. Without a
    /// URL it is taken from BUCKETFS_URL or from "url" in the configuration file
    #[arg(num_args = 0.., value_name = "URL|DIR TERM")]
    target: Vec<OsString>,
    /// Terms as an object of fields and values, such as '{"a.b": 3}'; '{}' finds every document
    /// [default: none]
    #[arg(long, value_name = "OBJECT")]
    json: Option<String>,
    /// End at the first match [default: false]
    #[arg(long)]
    first: bool,
    /// Print the keys that the store has, rather than paths [default: false]
    #[arg(long)]
    keys: bool,
    /// Print how many there are [default: false]
    #[arg(long, conflicts_with_all = ["keys", "json_out", "null"])]
    count: bool,
    /// Print each match as a line of JSON: its key, and the document [default: false]
    #[arg(long, conflicts_with_all = ["keys", "null"])]
    json_out: bool,
    /// End each path with a NUL byte rather than a line feed [default: false]
    #[arg(short = '0', long)]
    null: bool,
    /// Remove what is found, each document only if it is still as it was found [default: false]
    #[arg(long)]
    delete: bool,
    /// Remove without asking [default: false]
    #[arg(long, requires = "delete")]
    yes: bool,
    /// Go on, and print each new version that matches, as it comes [default: false]
    #[arg(long, conflicts_with_all = ["count", "delete"])]
    watch: bool,
    /// How often to look again where the store tells no changes [default: 2s]
    #[arg(long, value_name = "DURATION", requires = "watch")]
    interval: Option<String>,
    #[command(flatten)]
    flags: StoreFlags,
}

/// Where documents are looked for.
trait Place {
    /// Tells events until they end, or nobody wants more.
    fn search(&self, asked: &Asked, heard: &mut dyn FnMut(Event) -> bool) -> Result<(), Failure>;

    /// Removes a version; whether that was still there.
    fn remove(&self, key: &Key, etag: &ETag) -> Result<bool, Failure>;
}

/// What a place is asked.
struct Asked {
    filter: Filter,
    /// Whether the texts are wanted.
    texts: bool,
    /// Whether to go on, and how often to look again.
    watch: Option<Duration>,
}

/// How often a store is looked through again that tells no changes.
const INTERVAL: Duration = Duration::from_secs(2);

/// Finds documents. Whatever fails is [`Exit::Usage`], as scripts expect of programs that search.
pub fn run(find: Find, all: &[OsString]) -> Result<Exit, Failure> {
    found(find, all).map_err(|failure| Failure {
        exit: Exit::Usage,
        ..failure
    })
}

fn found(mut find: Find, all: &[OsString]) -> Result<Exit, Failure> {
    let (place, terms) = match find.target.split_first() {
        Some((first, rest)) if !matches!(named(first), Named::Term) => (Some(first), rest),
        _ => (None, &find.target[..]),
    };
    let mut wanted = Vec::new();
    for term in terms {
        wanted.push(term.to_str().ok_or_else(|| {
            Failure::usage(format!("{} is not UTF-8, as JSON is", term.display()))
        })?);
    }
    let wrong = |error: driver::Error| Failure::usage(error.reason());
    let mut filter = Filter::parse(wanted).map_err(wrong)?;
    match &find.json {
        Some(json) => filter
            .terms
            .extend(Filter::json(json).map_err(wrong)?.terms),
        None if filter.terms.is_empty() => {
            return Err(Failure::usage(
                "say what to find, as FIELD=VALUE; --json '{}' finds every document",
            ));
        }
        None => {}
    }
    let interval = match &find.interval {
        Some(text) => {
            values::duration(text).map_err(|why| Failure::usage(format!("--interval: {why}")))?
        }
        None => INTERVAL,
    };
    if find.delete
        && !find.yes
        && !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal())
    {
        return Err(Failure::usage(
            "--delete asks on a terminal, and there is none; --yes removes without asking",
        ));
    }
    let asked = Asked {
        filter,
        texts: find.json_out,
        watch: find.watch.then_some(interval),
    };
    let dir = place.filter(|place| matches!(named(place), Named::Dir));
    if let Some(dir) = dir {
        let dir = Path::new(dir);
        let within = within::Mount::of(dir)?;
        let out = Out::new(&find, Some(dir), within.prefix());
        return carry_out(&find, &within, &asked, out);
    }
    args::hide_password(place.map(OsString::as_os_str), all)?;
    let settings = config::resolve_store(Sources {
        url: place.cloned(),
        flags: std::mem::take(&mut find.flags.0),
        mount_options: Vec::new(),
        environment: std::env::vars_os().collect(),
    })?;
    logging::to_stderr(settings.log_level.min(log::LevelFilter::Warn));
    let store = Store::open(settings, find.delete)?;
    let out = Out::new(&find, None, &Key::empty());
    carry_out(&find, &store, &asked, out)
}

/// What the first argument is.
enum Named {
    Url,
    Dir,
    Term,
}

fn named(argument: &OsStr) -> Named {
    let bytes = argument.as_bytes();
    let scheme = bytes.split(|byte| *byte == b':').next().unwrap_or_default();
    let rest = &bytes[scheme.len()..];
    let is_scheme = |name: &&str| {
        let part = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        !name.is_empty() && name.bytes().all(part)
    };
    let scheme = std::str::from_utf8(scheme).ok().filter(is_scheme);
    match (scheme, rest) {
        (Some(_), [b':', b'/', b'/', ..]) => Named::Url,
        (Some(scheme), [b':', ..]) if driver::scheme(scheme).is_some() => Named::Url,
        _ if !bytes.contains(&b'=') || Path::new(argument).is_dir() => Named::Dir,
        _ => Named::Term,
    }
}

fn carry_out(find: &Find, place: &dyn Place, asked: &Asked, mut out: Out) -> Result<Exit, Failure> {
    let mut to_remove: Vec<Match> = Vec::new();
    let (mut count, mut changed, mut failed) = (0_u64, 0_u64, None);
    let mut skipped = 0_u64;
    let mut take = |found: &Match, out: &mut Out| {
        if !place.remove(&found.key, &found.etag)? {
            changed += 1;
            out.complain(&kept(&found.key));
        }
        Ok(true)
    };
    place.search(asked, &mut |event| {
        match event {
            Event::Looked(more) => out.progress(more),
            Event::Skipped(error) => {
                skipped += 1;
                out.complain(&error.to_string());
            }
            Event::Away(error) => out.complain(&format!(
                "the store does not answer, and is asked again until it does: {error}"
            )),
            Event::Back => out.complain("the store answers again"),
            Event::Found(found) => {
                count += 1;
                if find.delete && !find.yes {
                    to_remove.push(found);
                    return !find.first;
                }
                // Nothing is removed that was not shown before.
                let done = match (out.say(&found.key, &found.text), find.delete) {
                    (Ok(true), true) => take(&found, &mut out),
                    (wanted, _) => wanted,
                };
                return match done {
                    Ok(wanted) => wanted && !find.first,
                    Err(failure) => {
                        failed = Some(failure);
                        false
                    }
                };
            }
        }
        true
    })?;
    out.end();
    if let Some(failure) = failed {
        return Err(failure);
    }
    if !to_remove.is_empty() && asks(&format!("remove {}?", counted(count, "document"))) {
        for found in to_remove {
            if !out.say(&found.key, &found.text)? {
                break;
            }
            take(&found, &mut out)?;
        }
    }
    if find.count {
        super::say(count.to_string())?;
    }
    if changed > 0 {
        return Err(Failure::other(format!(
            "{} of {} that matched changed since, and stayed",
            changed,
            counted(count, "document")
        )));
    }
    if skipped > 0 {
        return Err(Failure::other(format!(
            "{} could not be looked at",
            counted(skipped, "object")
        )));
    }
    Ok(match count {
        0 => Exit::Other,
        _ => Exit::Ok,
    })
}

fn kept(key: &Key) -> String {
    format!("{key:?}: somebody else changed the document since it was found; it stays")
}

/// Asks on the terminal.
fn asks(question: &str) -> bool {
    let mut answer = String::new();
    let _ = write!(std::io::stderr(), "{question} [y/N] ");
    let _ = std::io::stdin().read_line(&mut answer);
    matches!(answer.trim(), "y" | "Y" | "yes")
}

/// A store that is opened for the search.
struct Store {
    runtime: tokio::runtime::Runtime,
    stack: crate::layer::Stack,
    name: String,
    unsafely: bool,
}

impl Store {
    fn open(mut settings: config::StoreSettings, writes: bool) -> Result<Store, Failure> {
        let unsafely = settings.open.unsafe_writes;
        // What a store lacks for writes keeps nobody from looking.
        settings.open.read_only |= !writes;
        settings.no_index = true;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| Failure::other(format!("cannot start the runtime: {error}")))?;
        let stack = runtime.block_on(mount::open(&settings))?;
        Ok(Store {
            runtime,
            stack,
            name: settings.name(),
            unsafely,
        })
    }

    fn failure(&self, error: &driver::Error) -> Failure {
        Failure::other(format!("{}: {error}", self.name))
    }
}

impl Place for Store {
    fn search(&self, asked: &Asked, heard: &mut dyn FnMut(Event) -> bool) -> Result<(), Failure> {
        let search = Search {
            driver: self.stack.driver.clone(),
            shows_buckets: self.stack.shows_buckets,
            prefix: Key::empty(),
            filter: asked.filter.clone(),
            texts: asked.texts,
        };
        let _inside = self.runtime.enter();
        let mut events = match asked.watch {
            Some(interval) => search.follow(interval),
            None => search.begin(),
        };
        while let Some(event) = self.runtime.block_on(events.recv()) {
            if !heard(event.map_err(|error| self.failure(&error))?) {
                break;
            }
        }
        Ok(())
    }

    fn remove(&self, key: &Key, etag: &ETag) -> Result<bool, Failure> {
        let removing = find::remove(&*self.stack.driver, key, etag, self.unsafely);
        match self.runtime.block_on(removing) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Changed => Ok(false),
            Err(error) => Err(self.failure(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_argument_is_a_place_or_a_term() {
        for (argument, wanted) in [
            ("s3://b/p", "url"),
            ("redis://h?layout=objects", "url"),
            ("memory:", "url"),
            ("what://x=1", "url"),
            ("/tmp", "dir"),
            ("missing", "dir"),
            ("a=b", "term"),
            ("a=http://x", "term"),
            ("a:b=c", "term"),
        ] {
            let told = match named(OsStr::new(argument)) {
                Named::Url => "url",
                Named::Dir => "dir",
                Named::Term => "term",
            };
            assert_eq!(told, wanted, "{argument}");
        }
    }
}
