//! `bucketfs status`.

use super::{bytes, counted, is_silent, print, say};
use crate::control::{self, StatusReport};
use crate::exit::{Exit, Failure};
use crate::logging::timestamp;
use crate::mount::dirs;
use crate::mount::point::{self, Pulse};
use crate::mount::record::{self, Listed, Record};
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// How many of the last conflicts and errors are shown; `--json` has all that are kept.
const LAST: usize = 5;

/// A mount, as `--json` shows it.
#[derive(Debug, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
enum Shown {
    /// Its daemon answers.
    Mounted(Box<StatusReport>),
    /// Its daemon does not answer in time.
    NotAnswering(Record),
    /// Its daemon has died, or belongs to another user.
    Dead {
        /// The URL without secrets.
        url: String,
        /// The mount point.
        dir: String,
    },
    /// As `Dead`, but something answers there.
    Foreign {
        /// The URL without secrets.
        url: String,
        /// The mount point.
        dir: String,
    },
}

/// Shows all mounts, or one.
pub fn run(dir: Option<&Path>, json: bool) -> Result<Exit, Failure> {
    let dir = dir.map(point::locate).transpose()?;
    let mut shown = collect(dir.as_deref())?;
    if let Some(dir) = &dir
        && shown.is_empty()
    {
        return Err(Failure::mount_point(format!(
            "{} is not a bucketfs mount; bucketfs status lists them",
            dir.display()
        )));
    }
    shown.sort_by(|a, b| a.dir().cmp(b.dir()));
    if json {
        let text = serde_json::to_string_pretty(&shown)
            .map_err(|error| Failure::other(format!("cannot print JSON: {error}")))?;
        print(format!("{text}\n").as_bytes())?;
    } else if shown.is_empty() {
        say("no bucketfs mounts")?;
    } else {
        for mount in &shown {
            mount.lines().iter().try_for_each(say)?;
        }
    }
    let silent = shown
        .iter()
        .any(|mount| matches!(mount, Shown::NotAnswering(_)));
    Ok(match silent {
        true => Exit::NotAnswering,
        false => Exit::Ok,
    })
}

/// What is known of all mounts, or of the one at `dir`. Daemons are asked side by side, so that
/// several that hang cost no more time than one.
fn collect(dir: Option<&Path>) -> Result<Vec<Shown>, Failure> {
    let wanted = |mounted: &str| dir.is_none_or(|dir| dir == Path::new(mounted));
    let listed: Vec<Listed> = dirs::registers()?
        .iter()
        .flat_map(record::listed)
        .filter(|listed| wanted(&listed.record.dir))
        .collect();
    let known: Vec<String> = listed
        .iter()
        .map(|listed| listed.record.dir.clone())
        .collect();
    let asked: Vec<_> = listed
        .into_iter()
        .map(|listed| std::thread::spawn(move || ask(listed)))
        .collect();
    let lines = point::table().unwrap_or_default();
    let others: Vec<_> = lines
        .into_iter()
        .filter(|line| line.is_ours())
        .map(|line| (line.path.display().to_string(), line))
        .filter(|(dir, _)| wanted(dir) && !known.contains(dir))
        .map(|(dir, line)| {
            std::thread::spawn(move || match point::pulse(&line.path) {
                Pulse::Dead => Shown::Dead {
                    url: line.source,
                    dir,
                },
                Pulse::Alive | Pulse::Hung => Shown::Foreign {
                    url: line.source,
                    dir,
                },
            })
        })
        .collect();
    let shown = asked.into_iter().chain(others);
    Ok(shown.filter_map(|thread| thread.join().ok()).collect())
}

fn ask(listed: Listed) -> Shown {
    let told = listed.socket();
    match told.and_then(|socket| control::status(&socket)) {
        Ok(report) => Shown::Mounted(Box::new(report)),
        Err(failure) => {
            if !is_silent(&failure) {
                log::debug!("{}: {failure}", listed.record.dir);
            }
            Shown::NotAnswering(listed.record)
        }
    }
}

impl Shown {
    fn dir(&self) -> &str {
        match self {
            Shown::Mounted(report) => &report.dir,
            Shown::NotAnswering(record) => &record.dir,
            Shown::Dead { dir, .. } | Shown::Foreign { dir, .. } => dir,
        }
    }

    /// Each is one line, whatever names in it hold, once [`say`] has escaped them.
    fn lines(&self) -> Vec<String> {
        let (url, dir, what) = match self {
            Shown::Mounted(report) => return lines(report),
            Shown::NotAnswering(Record { url, dir, pid, .. }) => (
                url,
                dir,
                format!("process {pid} is not answering; umount -l {dir} takes the mount away"),
            ),
            Shown::Dead { url, dir } => (
                url,
                dir,
                format!("dead: its process has ended; bucketfs umount {dir} takes the mount away"),
            ),
            Shown::Foreign { url, dir } => (
                url,
                dir,
                "mounted by another user, or registered in another BUCKETFS_RUNTIME_DIR".into(),
            ),
        };
        vec![format!("{url} on {dir}"), format!("  {what}")]
    }
}

/// A mount for people.
fn lines(report: &StatusReport) -> Vec<String> {
    let mut lines = vec![format!("{} on {}", report.url, report.dir)];
    let mut line = |name: &str, value: String| lines.push(format!("  {name:10} {value}"));
    let unmounting = match report.draining {
        true => ", being unmounted",
        false => "",
    };
    line(
        "process",
        format!(
            "{}, version {}, since {}{unmounting}",
            report.pid,
            report.version,
            time(report.since)
        ),
    );
    let fs = &report.fs;
    line(
        "dirty",
        format!(
            "{}, {}, {} under way",
            counted(fs.dirty_files, "file"),
            bytes(fs.dirty_bytes),
            counted(fs.uploads, "upload")
        ),
    );
    line(
        "open",
        format!(
            "{}, {}",
            counted(fs.handles, "handle"),
            counted(fs.inodes, "inode")
        ),
    );
    for rename in &fs.renames {
        let begun_by = match &rename.begun_by {
            Some(host) => format!(", begun by {host}"),
            None => String::new(),
        };
        line(
            "renaming",
            format!(
                "{} to {}: {} of {} moved so far, since {}{begun_by}",
                rename.from,
                rename.to,
                rename.moved,
                counted(rename.listed, "key"),
                time(rename.since)
            ),
        );
    }
    line(
        "cache",
        format!(
            "{} in memory, {} on disk, {} of listings",
            bytes(fs.cache.memory_bytes),
            bytes(fs.cache.disk_bytes),
            counted(fs.cache.listing_entries, "name")
        ),
    );
    for (at, store) in report.stores.iter().enumerate() {
        let name = if at == 0 { "stores" } else { "" };
        let lacks = match (store.everything, store.pending) {
            _ if store.of_another => {
                ", which has the copies of another store and is left alone".to_owned()
            }
            (true, _) => ", of which everything is to be compared".to_owned(),
            (false, 0) => String::new(),
            (false, pending) => format!(", which lacks {}", counted(pending, "key")),
        };
        let failing = match &store.failing {
            Some(why) => format!("; it does not answer: {why}"),
            None => String::new(),
        };
        line(
            name,
            format!("{} {}{lacks}{failing}", store.role, store.url),
        );
    }
    if let Some(file) = &report.log_file {
        line("log", file.clone());
    }
    let requests = &report.requests;
    line("requests", format!("{} under way", requests.in_flight));
    let pace = &report.pace;
    if pace.refusals > 0 {
        line(
            "",
            format!(
                "the store refused {} for it gets too many: at most {} of {} at once now",
                counted(pace.refusals, "request"),
                pace.now,
                pace.most
            ),
        );
    }
    for (name, stats) in &requests.operations {
        let failed = match stats.errors {
            0 => String::new(),
            errors => format!(", {errors} failed"),
        };
        let latency = match (stats.p50(), stats.p99()) {
            (Some(p50), Some(p99)) => {
                format!(", half within {}, 99% within {}", within(p50), within(p99))
            }
            _ => String::new(),
        };
        let moved = match stats.sent + stats.received {
            0 => String::new(),
            moved => format!(", {}", bytes(moved)),
        };
        line(
            "",
            format!("{name} {}{failed}{latency}{moved}", stats.count),
        );
    }
    line("conflicts", fs.conflicts.len().to_string());
    for conflict in last(&fs.conflicts) {
        line(
            "",
            format!(
                "{} {}: {}; kept as {}",
                time(conflict.time),
                conflict.path,
                conflict.reason,
                conflict.kept_as
            ),
        );
    }
    line("errors", fs.errors.len().to_string());
    for error in last(&fs.errors) {
        line(
            "",
            format!(
                "{} {} {}: {} ({})",
                time(error.time),
                error.operation,
                error.path,
                error.message,
                error.errno
            ),
        );
    }
    lines
}

fn last<T>(all: &[T]) -> &[T] {
    &all[all.len().saturating_sub(LAST)..]
}

fn within(time: Duration) -> String {
    match time.as_micros() {
        micros @ 0..1000 => format!("{micros} µs"),
        micros @ 1000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        micros => format!("{:.1} s", micros as f64 / 1e6),
    }
}

/// A time in whole seconds, in UTC.
pub fn time(seconds: u64) -> String {
    let text = timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
    text.replace(".000Z", "Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::PartStatus;
    use crate::fs::{ConflictRecord, ErrorRecord, RenameStatus};
    use crate::layer::OperationStats;

    #[test]
    fn a_mount_is_told_for_people() {
        let mut report = StatusReport {
            version: "0.1.0".into(),
            pid: 42,
            url: "s3://b".into(),
            dir: "/mnt/b".into(),
            since: 951_782_400,
            ..StatusReport::default()
        };
        report.fs.dirty_files = 1;
        report.fs.dirty_bytes = 2048;
        report.fs.renames.push(RenameStatus {
            from: "d".into(),
            to: "e/f".into(),
            since: 951_782_400,
            begun_by: Some("host".into()),
            listed: 1000,
            moved: 320,
        });
        report.fs.conflicts.push(ConflictRecord {
            time: 951_782_401,
            path: "a".into(),
            kept_as: "a.conflict".into(),
            reason: "somebody else wrote it".into(),
        });
        report.fs.errors.push(ErrorRecord {
            time: 951_782_402,
            operation: "flush".into(),
            path: "b".into(),
            errno: "EACCES".into(),
            message: "put \"b\": denied".into(),
        });
        let stats = OperationStats {
            count: 3,
            errors: 1,
            sent: 10,
            ..OperationStats::default()
        };
        report.requests.operations.insert("put".into(), stats);
        for (role, pending) in [("primary", 0), ("replica", 3)] {
            report.stores.push(PartStatus {
                url: format!("file:///{pending}"),
                role: role.into(),
                failing: (pending == 0).then(|| "no route".into()),
                pending,
                ..PartStatus::default()
            });
        }
        report.pace.refusals = 2;
        report.pace.now = 32;
        report.pace.most = 64;
        let expected = "\
s3://b on /mnt/b
  process    42, version 0.1.0, since 2000-02-29T00:00:00Z
  dirty      1 file, 2.0 KiB, 0 uploads under way
  open       0 handles, 0 inodes
  renaming   d to e/f: 320 of 1000 keys moved so far, since 2000-02-29T00:00:00Z, begun by host
  cache      0 B in memory, 0 B on disk, 0 names of listings
  stores     primary file:///0; it does not answer: no route
             replica file:///3, which lacks 3 keys
  requests   0 under way
             the store refused 2 requests for it gets too many: at most 32 of 64 at once now
             put 3, 1 failed, 10 B
  conflicts  1
             2000-02-29T00:00:01Z a: somebody else wrote it; kept as a.conflict
  errors     1
             2000-02-29T00:00:02Z flush b: put \"b\": denied (EACCES)";
        assert_eq!(lines(&report).join("\n"), expected);
    }

    #[test]
    fn times_have_units() {
        assert_eq!(within(Duration::from_micros(512)), "512 µs");
        assert_eq!(within(Duration::from_micros(2048)), "2.0 ms");
        assert_eq!(within(Duration::from_secs(3)), "3.0 s");
    }
}
