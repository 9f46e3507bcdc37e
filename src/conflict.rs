//! How the files are called that hold what lost a race.

use bytes::Bytes;
use std::time::SystemTime;

/// Longest file name.
const NAME_MAX: usize = 255;

/// The name of a conflict file: `NAME.conflict-HOST-TIME`, with a number behind it from the second
/// of the same second on. A name that gets too long loses the end of `NAME`.
pub fn name(of: &[u8], host: &str, time: SystemTime, number: u32) -> Bytes {
    let stamp = time::OffsetDateTime::from(time);
    let mut tail = format!(
        ".conflict-{host}-{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        stamp.year(),
        u8::from(stamp.month()),
        stamp.day(),
        stamp.hour(),
        stamp.minute(),
        stamp.second()
    );
    if number > 0 {
        tail.push_str(&format!("-{number}"));
    }
    let mut keep = of.len().min(NAME_MAX.saturating_sub(tail.len()));
    while keep > 0 && keep < of.len() && of[keep] & 0xc0 == 0x80 {
        keep -= 1;
    }
    let mut name = of[..keep].to_vec();
    name.extend_from_slice(tail.as_bytes());
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn names_carry_host_and_time_and_fit() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(
            name(b"notes.txt", "box", time, 0),
            "notes.txt.conflict-box-20231114T221320Z"
        );
        assert!(name(b"a", "box", time, 2).ends_with(b"-2"));
        let long = "\u{e9}".repeat(127);
        let name = name(long.as_bytes(), "box", time, 0);
        assert!(name.len() <= 255);
        assert!(std::str::from_utf8(&name).is_ok());
    }
}
