//! `bucketfs umount`.

use super::{bytes, counted, is_silent, say};
use crate::control::{self, Answer, Request};
use crate::exit::{Exit, Failure};
use crate::fs::DrainReport;
use crate::mount::dirs;
use crate::mount::point::{self, Pulse};
use crate::mount::record::{self, Listed};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

/// How long the daemon may be silent: it tells its progress four times a second.
const SILENCE: Duration = Duration::from_secs(60);
/// How long the process may take to end after it has answered.
const ENDING: Duration = Duration::from_secs(15);

/// Sends what is dirty, unmounts, and waits until the daemon has gone.
pub fn run(dir: &Path, timeout: Duration, lazy: bool) -> Result<Exit, Failure> {
    let dir = point::locate(dir)?;
    match find(&dir)? {
        Some(listed) => {
            let outcome = ask(&dir, &listed, timeout, lazy);
            match outcome {
                // It may have died just now, or been killed before.
                Err(failure) if is_silent(&failure) && !listed.record.is_running() => {
                    without_daemon(&dir)
                }
                // Somebody else was quicker, and it was on its way out when it was asked.
                Err(failure)
                    if is_silent(&failure)
                        && point::mounted_at(&dir).is_ok_and(|line| line.is_none())
                        && listed.record.wait_gone(ENDING) =>
                {
                    say(format!("{}: unmounted by somebody else", dir.display()))?;
                    Ok(Exit::Ok)
                }
                outcome => outcome,
            }
        }
        None => without_daemon(&dir),
    }
}

/// The living mount at a mount point.
pub fn find(dir: &Path) -> Result<Option<Listed>, Failure> {
    let registers = dirs::registers()?;
    let mut listed = registers.iter().flat_map(record::listed);
    Ok(listed.find(|listed| Path::new(&listed.record.dir) == dir))
}

fn ask(dir: &Path, listed: &Listed, timeout: Duration, lazy: bool) -> Result<Exit, Failure> {
    let request = Request::Unmount {
        timeout_ms: timeout.as_millis().try_into().unwrap_or(u64::MAX),
        lazy,
    };
    let shown = dir.display();
    let pid = listed.record.pid;
    // Afterwards the path does not tell.
    let line = point::mounted_at(dir).ok().flatten();
    let mut progress = Progress::new();
    let mut outcome = Err(Failure::other("the daemon gave no answer"));
    control::ask(&listed.socket()?, &request, SILENCE, |answer| {
        outcome = match answer {
            Answer::Progress { files, bytes } => {
                progress.show(files, bytes);
                return true;
            }
            Answer::Unmounted { report, detached } => Ok((report, detached)),
            Answer::Busy { users } => Err(busy(dir, &users)),
            Answer::Failed { message } => Err(Failure::other(message)),
            _ => return true,
        };
        false
    })
    .map_err(|failure| match is_silent(&failure) {
        true => Failure::new(
            Exit::NotAnswering,
            format!("process {pid} does not answer; umount -l {shown} takes the mount away, and kill {pid} ends the process"),
        ),
        false => failure,
    })?;
    progress.end();
    let (report, detached) = outcome?;
    let mut said = Ok(());
    if detached {
        let copies = line.map(|line| point::copies(line.device));
        let copies = copies.unwrap_or_default().join(", ");
        if !lazy {
            conclude(&report)?;
            return Err(elsewhere(&shown.to_string(), pid, &copies));
        }
        let and = match &copies[..] {
            "" => String::new(),
            copies => format!(", and the mount is gone from {copies}"),
        };
        said = say(format!(
            "{shown} is out of the tree; process {pid} goes on until the last open file is closed{and}"
        ));
    } else if !listed.record.wait_gone(ENDING) {
        return Err(Failure::new(
            Exit::NotAnswering,
            format!("{shown} is unmounted, but process {pid} does not end"),
        ));
    }
    let exit = conclude(&report)?;
    said.map(|()| exit)
}

/// Tells which files could not be sent. That they were not is worse than that it cannot be told.
fn conclude(report: &DrainReport) -> Result<Exit, Failure> {
    for untold in &report.untold {
        let _ = say(format!(
            "attributes not sent: {}: {}",
            untold.path, untold.reason
        ));
    }
    if report.unsent.is_empty() {
        return match report.untold.len() {
            0 => Ok(Exit::Ok),
            count => Err(Failure::new(
                Exit::Unsent,
                format!(
                    "the changed attributes of {} could not be sent",
                    counted(count as u64, "file")
                ),
            )),
        };
    }
    for unsent in &report.unsent {
        let _ = say(format!(
            "not sent: {}: {}; its bytes are {}",
            unsent.path,
            unsent.reason,
            unsent.fate()
        ));
    }
    let lost = report
        .unsent
        .iter()
        .filter(|unsent| unsent.kept_as.is_err());
    let bytes = match lost.count() as u64 {
        0 => "the bytes are kept".to_owned(),
        lost => format!("the bytes of {} are lost", counted(lost, "file")),
    };
    Err(Failure::new(
        Exit::Unsent,
        format!(
            "{} could not be sent; {bytes}",
            counted(report.unsent.len() as u64, "file")
        ),
    ))
}

/// The mount was not in use, and its session goes on: something else than open files holds it.
fn elsewhere(dir: &str, pid: u32, copies: &str) -> Failure {
    let copies = match copies {
        "" => "a place that does not show here, such as a container",
        copies => copies,
    };
    Failure::mount_point(format!(
        "{dir} is unmounted, and process {pid} goes on, for the mount is also at {copies}; unmount it there, or have kill {pid} end it everywhere"
    ))
}

fn busy(dir: &Path, users: &[String]) -> Failure {
    let shown = dir.display();
    let by = match users {
        [] => String::new(),
        users => format!(" by {}", users.join(", ")),
    };
    Failure::mount_point(format!(
        "{shown} is in use{by} and stays mounted; end that, or use --lazy"
    ))
}

/// Takes a mount away that no daemon of the register stands behind.
fn without_daemon(dir: &Path) -> Result<Exit, Failure> {
    let shown = dir.display();
    let line = point::mounted_at(dir)
        .map_err(|error| Failure::other(format!("cannot read /proc/self/mountinfo: {error}")))?;
    let Some(line) = line.filter(point::MountLine::is_ours) else {
        return Err(Failure::mount_point(format!(
            "{shown} is not a bucketfs mount; bucketfs status lists them"
        )));
    };
    let dead = point::pulse(dir) == Pulse::Dead;
    point::unmount(dir, dead).map_err(|error| match error.raw_os_error() == Some(libc::EBUSY) {
        true => busy(dir, &point::users(dir)),
        false => Failure::mount_point(format!("cannot unmount {shown}: {error}")),
    })?;
    say(match dead {
        true => format!(
            "{shown}: took away the mount of {}, whose process has died",
            line.source
        ),
        false => format!("{shown}: unmounted; its process sends what is left"),
    })?;
    Ok(Exit::Ok)
}

/// What is left, on one line of a terminal that is written again and again.
struct Progress {
    terminal: bool,
    shown: bool,
}

impl Progress {
    fn new() -> Self {
        Progress {
            terminal: std::io::stderr().is_terminal(),
            shown: false,
        }
    }

    fn show(&mut self, files: u64, left: u64) {
        if self.terminal {
            let files = counted(files, "file");
            let _ = write!(std::io::stderr(), "\r{files}, {} left\x1b[K", bytes(left));
            self.shown = true;
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Unsent;

    #[test]
    fn what_could_not_be_sent_is_an_exit_code() {
        assert_eq!(conclude(&DrainReport::default()), Ok(Exit::Ok));
        let report = DrainReport {
            untold: vec![crate::fs::Untold {
                path: "a".into(),
                reason: "the store is silent".into(),
            }],
            ..DrainReport::default()
        };
        assert_eq!(
            conclude(&report),
            Err(Failure::new(
                Exit::Unsent,
                "the changed attributes of 1 file could not be sent"
            ))
        );
        let mut report = DrainReport {
            untold: Vec::new(),
            committed: 1,
            unsent: vec![Unsent {
                path: "a".into(),
                kept_as: Ok("/state/a".into()),
                reason: "denied".into(),
            }],
        };
        assert_eq!(
            conclude(&report),
            Err(Failure::new(
                Exit::Unsent,
                "1 file could not be sent; the bytes are kept"
            ))
        );
        report.unsent.push(Unsent {
            path: "b".into(),
            kept_as: Err("No space left on device".into()),
            reason: "denied".into(),
        });
        assert_eq!(
            conclude(&report),
            Err(Failure::new(
                Exit::Unsent,
                "2 files could not be sent; the bytes of 1 file are lost"
            ))
        );
    }
}
