//! Messages to systemd: `sd_notify(3)` is one datagram.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Tells systemd, if it started this process and listens.
pub fn tell(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
        return;
    };
    let sent = address(name.as_bytes())
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        log::warn!("cannot notify systemd: {error}");
    }
}

/// The mount is ready.
pub fn ready(status: &str) {
    let pid = std::process::id();
    tell(&format!("READY=1\nMAINPID={pid}\nSTATUS={status}"));
}

/// The mount ends, and needs at least this time for it.
pub fn stopping(status: &str, patience: Duration) {
    let microseconds = patience.as_micros();
    tell(&format!(
        "STOPPING=1\nSTATUS={status}\nEXTEND_TIMEOUT_USEC={microseconds}"
    ));
}

/// Something is going on, also at the end of a service, that takes at least this time.
pub fn going_on(status: &str, patience: Duration) {
    let microseconds = patience.as_micros();
    tell(&format!(
        "STATUS={status}\nEXTEND_TIMEOUT_USEC={microseconds}"
    ));
}

/// A path, or a name in the abstract namespace that begins with `@`.
fn address(name: &[u8]) -> std::io::Result<SocketAddr> {
    match name {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let abstract_name = format!("@bucketfs-test-{}", std::process::id());
        for name in [path.as_os_str().as_bytes(), abstract_name.as_bytes()] {
            let address = address(name).unwrap();
            let socket = UnixDatagram::bind_addr(&address).unwrap();
            let sender = UnixDatagram::unbound().unwrap();
            sender.send_to_addr(b"READY=1", &address).unwrap();
            let mut buffer = [0; 16];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        }
    }
}
