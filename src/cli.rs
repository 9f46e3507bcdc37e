//! The command line: `bucketfs mount`, `umount`, `status`, `why`, `find`, `drivers` and `check`.

mod args;
mod find;
mod status;
mod umount;
mod why;

use crate::check;
use crate::config::{self, Flags, Sources, StoreFlags};
use crate::driver::DRIVERS;
use crate::exit::{Exit, Failure};
use crate::logging;
use crate::mount::{self, dirs};
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Mount any bucket as a directory; every write is a conditional put
#[derive(Debug, Parser)]
#[command(name = "bucketfs", version, arg_required_else_help = true, after_help = after_help())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount a bucket on a directory
    #[command(after_help = MOUNT_HELP, override_usage = "bucketfs mount [OPTIONS] [URL] DIR")]
    Mount {
        /// What to mount, such as s3://bucket/prefix, and where. Without a URL it is taken from
        /// BUCKETFS_URL or from "url" in the configuration file, which other users cannot see
        #[arg(required = true, num_args = 1..=2, value_name = "URL DIR")]
        target: Vec<OsString>,
        #[command(flatten)]
        flags: Flags,
        /// Options as mount(8) takes them: the ones below by name, and ro, rw, dev, suid, noexec,
        /// noatime, sync, dirsync [default: nodev,nosuid]
        #[arg(short = 'o', value_name = "OPT[,OPT...]")]
        options: Vec<String>,
    },
    /// Send what is dirty, unmount, and wait until the daemon has ended
    #[command(visible_alias = "unmount")]
    Umount {
        /// The mount point
        dir: PathBuf,
        /// Give a file up that is not sent after so long, and keep its bytes [default: 60s]
        #[arg(long, value_name = "DURATION")]
        timeout: Option<String>,
        /// Take a busy mount out of the tree too; it ends with its last open file
        /// [default: false]
        #[arg(long, short)]
        lazy: bool,
    },
    /// Show mounts: dirty files, requests, conflicts, errors
    Status {
        /// Only this mount point [default: all]
        dir: Option<PathBuf>,
        /// As JSON [default: false]
        #[arg(long)]
        json: bool,
    },
    /// Tell why the last operation on a file failed
    Why {
        /// The file
        path: PathBuf,
    },
    /// Find the documents in which fields have given values
    #[command(after_help = find::HELP, override_usage = "bucketfs find [OPTIONS] [URL|DIR] TERM...")]
    Find(find::Find),
    /// List the kinds of stores
    Drivers,
    /// Connect to a store, and tell what works there
    Check {
        /// The store; without it, BUCKETFS_URL or "url" in the configuration file
        url: Option<OsString>,
        #[command(flatten)]
        flags: StoreFlags,
        /// Remove everything that bucketfs keeps below .bucketfs/, and what --local left on this
        /// machine, and check nothing. No mount must be using the bucket [default: false]
        #[arg(long, conflicts_with = "repair")]
        clean: bool,
        /// Compare the replicas of a mirror with the first store, bring them up to date, and check
        /// nothing [default: false]
        #[arg(long)]
        repair: bool,
        /// With --repair: take replicas that have the copies of another store, too. What those have
        /// and the first store does not is removed [default: false]
        #[arg(long, requires = "repair")]
        replace: bool,
    },
}

const MOUNT_HELP: &str = "\
An option set in several places is taken from the first of: flag, -o, environment (BUCKETFS_ and
the name in capitals with _, such as BUCKETFS_CACHE_DIR), configuration file, default.
Sizes: 512M, 4GiB; a number alone is MiB. Durations: 2, 500ms, 5m; a number alone is seconds.

In /etc/fstab, with this program in the PATH of mount(8):
  s3://bucket/prefix  /mnt/bucket  fuse.bucketfs  _netdev,nofail,allow_other,region=eu-west-1  0 0";

fn after_help() -> String {
    let mut text = String::from("Exit codes:\n");
    for exit in Exit::ALL {
        text += &format!("  {:2}  {}\n", exit.code(), exit.about());
    }
    text += "\nRecords and control sockets of mounts are in /run/bucketfs (root), \
             $XDG_RUNTIME_DIR/bucketfs\nor /tmp/bucketfs-UID; BUCKETFS_RUNTIME_DIR chooses another directory, by an absolute path.";
    text
}

/// Runs the command and reports a failure in one line on stderr.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match run(args) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "bucketfs: {failure}");
            failure.exit.into()
        }
    }
}

fn run(args: Vec<OsString>) -> Result<Exit, Failure> {
    let invocation = args::normalise(args);
    let cli = match Cli::try_parse_from(&invocation.args) {
        Ok(cli) => cli,
        Err(error) => return args::explain(&error, &Cli::command()),
    };
    match cli.command {
        Command::Mount {
            mut target,
            flags,
            options,
        } => {
            let dir = target.pop().unwrap_or_default();
            let url = target.pop();
            // Started anew, it would not know that it is not to mount.
            if !invocation.fake {
                args::hide_password(url.as_deref(), &invocation.args)?;
            }
            let settings = config::resolve(Sources {
                url,
                flags,
                mount_options: options,
                environment: std::env::vars_os().collect(),
            })?;
            if !invocation.fake {
                mount::daemon::run(&settings, Path::new(&dir), &dirs::runtime_root()?)?;
            }
            Ok(Exit::Ok)
        }
        Command::Umount { dir, timeout, lazy } => {
            let timeout = match timeout {
                Some(text) => config::values::duration(&text)
                    .map_err(|why| Failure::usage(format!("--timeout: {why}")))?,
                None => mount::DRAIN_PATIENCE,
            };
            umount::run(&dir, timeout, lazy)
        }
        Command::Status { dir, json } => status::run(dir.as_deref(), json),
        Command::Why { path } => why::run(&path),
        Command::Find(find) => find::run(find, &invocation.args),
        Command::Drivers => {
            for driver in DRIVERS {
                say(driver.about)?;
            }
            Ok(Exit::Ok)
        }
        Command::Check {
            url,
            flags,
            clean,
            repair,
            replace,
        } => {
            args::hide_password(url.as_deref(), &invocation.args)?;
            let settings = config::resolve_store(Sources {
                url,
                flags: flags.0,
                mount_options: Vec::new(),
                environment: std::env::vars_os().collect(),
            })?;
            logging::to_stderr(settings.log_level.min(log::LevelFilter::Warn));
            let task = match (clean, repair) {
                (true, _) => check::Task::Clean,
                (false, true) => check::Task::Repair { replace },
                (false, false) => check::Task::Check,
            };
            let mut said = Ok(());
            let outcome = check::run(&settings, task, &mut |line| {
                if said.is_ok() {
                    said = say(line);
                }
            });
            match outcome {
                Ok(Exit::Ok) => said.map(|()| Exit::Ok),
                outcome => outcome,
            }
        }
    }
}

/// Prints a line on stdout. Control characters in it, which may come from names that others gave,
/// are escaped.
fn say(line: impl AsRef<str>) -> Result<(), Failure> {
    print(format!("{}\n", logging::one_line(line.as_ref())).as_bytes()).map(|_| ())
}

/// Writes to stdout, and waits until it is taken; `false` when whoever reads it has closed it, and
/// wants no more.
fn print(text: &[u8]) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::other(format!(
            "cannot write to standard output: {error}"
        ))),
    }
}

/// Bytes for people.
fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

/// A count with its noun.
fn counted(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// Whether the exchange failed because nobody answers.
fn is_silent(failure: &Failure) -> bool {
    failure.exit == Exit::NotAnswering
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_tells_defaults() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                let is_clap_own = matches!(arg.get_id().as_str(), "help" | "version");
                assert!(
                    is_clap_own || (help.contains("[default: ") && help.ends_with(']')),
                    "{} {}: {help}",
                    command.get_name(),
                    arg.get_id()
                );
            }
        }
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(counted(1, "file"), "1 file");
        assert_eq!(counted(0, "file"), "0 files");
    }
}
