//! What happens to the arguments before and after clap sees them: calls by mount(8), passwords in
//! URLs, and errors in one line.

use crate::config::options::{self, OPTIONS};
use crate::driver::Location;
use crate::exit::{Exit, Failure};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

/// Arguments as clap wants them.
#[derive(Debug, PartialEq, Eq)]
pub struct Invocation {
    /// The arguments, with the name of the command first.
    pub args: Vec<OsString>,
    /// mount(8) asked to do everything but the mount itself.
    pub fake: bool,
}

/// Understands the ways in which mount(8) calls: as `mount.fuse.bucketfs URL DIR [-sfnv] [-t TYPE]
/// [-o OPTIONS]`, and as `bucketfs URL DIR -o OPTIONS` through mount.fuse3.
pub fn normalise(args: Vec<OsString>) -> Invocation {
    let name = args.first().and_then(|name| Path::new(name).file_name());
    let is_helper = name.is_some_and(|name| name.as_bytes().starts_with(b"mount."));
    let names_url = args.get(1).is_some_and(|first| {
        !first.as_bytes().starts_with(b"-") && first.as_bytes().contains(&b':')
    });
    if !is_helper && !names_url {
        return Invocation { args, fake: false };
    }
    let mut fake = false;
    let mut kept: Vec<OsString> = vec!["bucketfs".into(), "mount".into()];
    let mut rest = args.into_iter().skip(1);
    while let Some(arg) = rest.next() {
        let letters = match arg.as_bytes() {
            [b'-', letters @ ..] if !letters.is_empty() && !letters.starts_with(b"-") => letters,
            _ => {
                kept.push(arg);
                continue;
            }
        };
        match letters {
            // Type and namespace: the one is known, the other entered already.
            b"t" | b"N" => drop(rest.next()),
            [b't', ..] => {}
            // In a helper -f is "fake"; without one it is --foreground.
            letters if letters.iter().all(|letter| b"nvs".contains(letter)) => {}
            letters if is_helper && letters.iter().all(|letter| b"nvsf".contains(letter)) => {
                fake = true;
            }
            _ => {
                let takes_value = letters == b"o";
                kept.push(arg);
                if takes_value {
                    kept.extend(rest.next());
                }
            }
        }
    }
    Invocation { args: kept, fake }
}

/// Starts this program anew without the URL among its arguments, when it holds a password: every
/// user can read the arguments of a process, and only its owner the environment.
pub fn hide_password(url: Option<&OsStr>, args: &[OsString]) -> Result<(), Failure> {
    let text = url.and_then(OsStr::to_str);
    let holds_password = text.is_some_and(Location::holds_password);
    let (Some(url), true) = (url, holds_password) else {
        return Ok(());
    };
    let mut found = false;
    let others = args.iter().skip(1).filter(|arg| {
        let is_url = !found && *arg == url;
        found |= is_url;
        !is_url
    });
    let error = std::process::Command::new("/proc/self/exe")
        .arg0("bucketfs")
        .args(others)
        .env("BUCKETFS_URL", url)
        .exec();
    Err(Failure::other(format!(
        "cannot hide the password of the URL: {error}; set BUCKETFS_URL instead of giving it as an argument"
    )))
}

/// Turns what clap found wrong into one line; what it was asked to print is printed.
pub fn explain(error: &clap::Error, command: &clap::Command) -> Result<Exit, Failure> {
    let said = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            super::print(error.render().to_string().as_bytes())?;
            Ok(Exit::Ok)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = write!(std::io::stderr(), "{}", error.render());
            Ok(Exit::Usage)
        }
        ErrorKind::UnknownArgument => {
            let given = said(ContextKind::InvalidArg).unwrap_or_default();
            let given = given.split('=').next().unwrap_or_default();
            let Some(name) = given.strip_prefix("--") else {
                return Err(Failure::usage(format!(
                    "unexpected argument {given:?}; see bucketfs --help"
                )));
            };
            // Commands with few flags of their own are answered from those.
            let suggested = match error.get(ContextKind::SuggestedArg) {
                Some(ContextValue::String(text)) => text.clone(),
                _ => {
                    let names = OPTIONS.iter().map(|option| option.name);
                    format!("--{}", options::nearest(name, names).unwrap_or_default())
                }
            };
            Err(Failure::usage(format!(
                "unknown option --{name}; did you mean {suggested}?"
            )))
        }
        ErrorKind::InvalidSubcommand => {
            let given = said(ContextKind::InvalidSubcommand).unwrap_or_default();
            let names = command.get_subcommands().map(clap::Command::get_name);
            Err(Failure::usage(format!(
                "unknown command {given:?}; did you mean {:?}?",
                options::nearest(&given, names).unwrap_or_default()
            )))
        }
        _ => {
            let text = error.render().to_string();
            let text = text.split("\n\n").next().unwrap_or_default();
            let text = text.strip_prefix("error: ").unwrap_or(text);
            Err(Failure::usage(format!("{text}; see bucketfs --help")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalised(line: &str) -> (String, bool) {
        let Invocation { args, fake } = normalise(line.split(' ').map(OsString::from).collect());
        let args: Vec<_> = args.iter().filter_map(|arg| arg.to_str()).collect();
        (args.join(" "), fake)
    }

    #[test]
    fn calls_of_mount_are_understood() {
        for (line, meant, fake) in [
            (
                "bucketfs mount s3://b /m -f",
                "bucketfs mount s3://b /m -f",
                false,
            ),
            ("bucketfs status", "bucketfs status", false),
            ("bucketfs --version", "bucketfs --version", false),
            ("bucketfs", "bucketfs", false),
            (
                "/sbin/mount.fuse.bucketfs s3://b /m -n -o rw,_netdev -t fuse.bucketfs",
                "bucketfs mount s3://b /m -o rw,_netdev",
                false,
            ),
            (
                "mount.bucketfs s3://b /m -sfnv",
                "bucketfs mount s3://b /m",
                true,
            ),
            (
                "bucketfs s3://b /m -o rw,dev,suid",
                "bucketfs mount s3://b /m -o rw,dev,suid",
                false,
            ),
            (
                "bucketfs memory: /m -v -f --debug",
                "bucketfs mount memory: /m -f --debug",
                false,
            ),
        ] {
            assert_eq!(normalised(line), (meant.to_owned(), fake), "{line}");
        }
    }
}
