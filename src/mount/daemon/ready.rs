//! Going to the background: the caller waits until the daemon is ready or has failed.

use super::died;
use crate::exit::{Exit, Failure};
use crate::sys::{self, Forked};
use rustix::process::WaitOptions;
use std::io::{self, PipeReader, PipeWriter, Read, Write};

/// Which process this is after [`split`].
pub enum Side {
    /// The one that was called, with what became of the daemon.
    Waiting(Result<(), Failure>),
    /// The daemon.
    Daemon(Ready),
}

/// The daemon's way to tell. Its message is an exit code, and the line that goes with it.
#[derive(Debug)]
pub struct Ready(PipeWriter);

/// Forks. The new process leads a session of its own and keeps stderr until it is ready.
pub fn split() -> io::Result<Side> {
    let (reader, writer) = io::pipe()?;
    match sys::fork()? {
        Forked::Parent(child) => {
            drop(writer);
            Ok(Side::Waiting(wait(reader, child)))
        }
        Forked::Child => {
            drop(reader);
            // Whoever waits for a lock or the end of a pipe that its caller has does not wait for
            // the mount's.
            sys::close_inherited(&writer);
            rustix::process::setsid()?;
            // It keeps no directory from being unmounted. Every path was made absolute before.
            std::env::set_current_dir("/")?;
            Ok(Side::Daemon(Ready(writer)))
        }
    }
}

fn wait(mut reader: PipeReader, child: rustix::process::Pid) -> Result<(), Failure> {
    let mut message = Vec::new();
    let read = reader.read_to_end(&mut message);
    match (read, message.split_first()) {
        (Ok(_), Some((code, line))) => match Exit::from_code(*code) {
            Some(Exit::Ok) => Ok(()),
            exit => Err(Failure::new(
                exit.unwrap_or(Exit::Other),
                String::from_utf8_lossy(line),
            )),
        },
        _ => Err(
            match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
                Ok(Some((_, status))) => match status.terminating_signal() {
                    Some(signal) => died(&format!("signal {signal}")),
                    None => died(&format!("exit code {}", status.exit_status().unwrap_or(-1))),
                },
                _ => died("no message"),
            },
        ),
    }
}

impl Ready {
    /// Lets the caller return, and goes out of touch with its terminal. Fails when nobody waits.
    pub fn ready(mut self) -> io::Result<()> {
        let null = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        self.0.write_all(&[Exit::Ok.code()])?;
        for number in 0..=2 {
            sys::redirect(number, &null)?;
        }
        Ok(())
    }

    /// Tells why there will be no mount.
    pub fn failed(mut self, failure: &Failure) {
        let mut message = vec![failure.exit.code()];
        message.extend_from_slice(failure.message.as_bytes());
        let _ = self.0.write_all(&message);
    }
}
