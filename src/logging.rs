//! Where log lines go: a file, the journal or stderr.
//!
//! Lines of other crates are let through from warnings on only, whatever the level: what a client
//! library prints while debugging may hold credentials.

use crate::clock;
use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A log file beyond this many bytes is renamed to `NAME.1`, replacing an older one.
const LARGEST_FILE: u64 = 10 << 20;

/// The target of lines that tell what a caller reports itself: they are not repeated on stderr.
pub const REPORTED: &str = "bucketfs::reported";

/// The one logger.
static LOGGER: Logger = Logger(Mutex::new(State {
    output: Output::Stderr,
    echo: false,
}));

struct Logger(Mutex<State>);

struct State {
    output: Output,
    /// Warnings and errors go to stderr too: somebody is waiting there for the mount.
    echo: bool,
}

enum Output {
    Stderr,
    Journal,
    File {
        path: PathBuf,
        file: File,
        written: u64,
    },
}

/// Logs to stderr, or to the journal if that is what stderr is.
pub fn to_stderr(level: LevelFilter) {
    let output = match stderr_is_journal() {
        true => Output::Journal,
        false => Output::Stderr,
    };
    install(
        level,
        State {
            output,
            echo: false,
        },
    );
}

/// Logs to a file, and warnings to stderr too until [`detach`].
pub fn to_file(level: LevelFilter, path: &Path) -> io::Result<()> {
    let output = open(path)?;
    install(level, State { output, echo: true });
    Ok(())
}

/// Stops the copies on stderr.
pub fn detach() {
    LOGGER.0.lock().echo = false;
}

/// Opens the log file again, after somebody moved it away.
pub fn reopen() {
    let mut state = LOGGER.0.lock();
    if let Output::File { path, .. } = &state.output
        && let Ok(output) = open(&path.clone())
    {
        state.output = output;
    }
}

/// Makes panics of any thread log lines.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        log::error!("panic in thread {name}: {panic}");
    }));
}

fn install(level: LevelFilter, state: State) {
    *LOGGER.0.lock() = state;
    log::set_max_level(level);
    // It fails when the logger is installed already, which is as well.
    let _ = log::set_logger(&LOGGER);
}

fn open(path: &Path) -> io::Result<Output> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    Ok(Output::File {
        written: file.metadata()?.len(),
        path: path.to_owned(),
        file,
    })
}

/// Whether systemd connected stderr with the journal; it says so by device and inode.
fn stderr_is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else {
        return false;
    };
    stream.to_str() == Some(&format!("{}:{}", stat.st_dev, stat.st_ino))
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target() == "bucketfs" || metadata.target().starts_with("bucketfs::");
        metadata.level() <= log::max_level() && (ours || metadata.level() <= Level::Warn)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let message = one_line(&record.args().to_string());
        let mut state = self.0.lock();
        if state.echo && record.level() <= Level::Warn && record.target() != REPORTED {
            let _ = writeln!(io::stderr(), "bucketfs: {message}");
        }
        state.output.write(record.level(), &message);
    }

    fn flush(&self) {}
}

impl Output {
    /// Writes one line. Where that fails there is nowhere left to complain.
    fn write(&mut self, level: Level, message: &str) {
        let _ = match self {
            Output::Stderr => writeln!(
                io::stderr(),
                "{} {level:5} {message}",
                timestamp(clock::wall())
            ),
            Output::Journal => writeln!(io::stderr(), "<{}>{message}", priority(level)),
            Output::File {
                path,
                file,
                written,
            } => {
                if *written > LARGEST_FILE {
                    let mut old = path.clone().into_os_string();
                    old.push(".1");
                    // A second daemon that shares the file may have renamed it just now.
                    if path.metadata().is_ok_and(|now| now.len() > LARGEST_FILE) {
                        let _ = std::fs::rename(&*path, old);
                    }
                    if let Ok(new) = open(path) {
                        *self = new;
                        return self.write(level, message);
                    }
                }
                let line = format!(
                    "{} {} {level:5} {message}\n",
                    timestamp(clock::wall()),
                    std::process::id()
                );
                *written += line.len() as u64;
                file.write_all(line.as_bytes())
            }
        };
    }
}

/// The journal's number of a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// The text with control characters escaped, so that no file name can forge a line.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// A time in UTC, like `2026-11-21T00:05:09.123Z`.
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
        since.subsec_millis()
    )
}

/// The Gregorian date of a day since 1970-01-01, counted in years that begin in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = (shifted_month + 2) % 12 + 1;
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    #[test]
    fn timestamps_are_civil() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.500Z"),
            (951_782_399, "2000-02-28T23:59:59.500Z"),
            (951_782_400, "2000-02-29T00:00:00.500Z"),
            (1_709_251_199, "2024-02-29T23:59:59.500Z"),
            (4_107_542_400, "2100-03-01T00:00:00.500Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 500);
            assert_eq!(timestamp(time), text);
        }
    }

    #[test]
    fn a_log_file_is_private_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut output = open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        let long = "x".repeat(1 << 20);
        for _ in 0..12 {
            output.write(Level::Info, &long);
        }
        assert!(path.metadata().unwrap().len() <= LARGEST_FILE + (2 << 20));
        let old = dir.path().join("log.1").metadata().unwrap();
        assert!(old.len() > LARGEST_FILE);
    }

    #[test]
    fn other_crates_do_not_debug() {
        log::set_max_level(LevelFilter::Trace);
        let enabled = |target: &str, level| {
            LOGGER.enabled(&Metadata::builder().target(target).level(level).build())
        };
        assert!(enabled("bucketfs::fs", Level::Debug));
        assert!(enabled("hyper", Level::Warn));
        assert!(!enabled("hyper", Level::Info));
        assert!(!enabled("bucketfsx", Level::Info));
    }

    #[test]
    fn names_cannot_forge_lines() {
        assert_eq!(one_line("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
    }
}
