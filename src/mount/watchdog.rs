//! `--auto-unmount`: a second process that takes the mount away when the daemon is killed.

use super::point::{self, Pulse};
use crate::sys::{self, Forked};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::path::Path;

/// What the daemon writes when it has unmounted itself.
const DONE: u8 = b'd';

/// The daemon's end. When the daemon dies with it, the watchdog unmounts.
#[derive(Debug)]
pub struct Watchdog(PipeWriter);

impl Watchdog {
    /// Starts the second process. Must be called while this one has a single thread;
    /// `close_in_child` runs in the second one, to let go of what it must not hold.
    pub fn start(dir: &Path, close_in_child: impl FnOnce()) -> io::Result<Watchdog> {
        let (reader, writer) = io::pipe()?;
        match sys::fork()? {
            Forked::Parent(_) => Ok(Watchdog(writer)),
            Forked::Child => {
                drop(writer);
                close_in_child();
                watch(reader, dir);
                std::process::exit(0)
            }
        }
    }

    /// Sends the second process home.
    pub fn dismiss(mut self) {
        let _ = self.0.write_all(&[DONE]);
    }
}

fn watch(mut reader: PipeReader, dir: &Path) {
    // A session of its own: a signal to the daemon's group must not end both.
    let _ = rustix::process::setsid();
    if let Ok(null) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
    {
        for number in 0..=2 {
            let _ = sys::redirect(number, &null);
        }
    }
    let mut said = Vec::new();
    let _ = reader.read_to_end(&mut said);
    if said.contains(&DONE) {
        return;
    }
    let ours = point::mounted_at(dir).is_ok_and(|line| line.is_some_and(|line| line.is_ours()));
    if ours && point::pulse(dir) == Pulse::Dead {
        let _ = point::unmount(dir, true);
    }
}
