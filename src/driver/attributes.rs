//! Attributes as fields with names and values: `mode` (octal), `uid`, `gid`, `mtime` and `atime` (seconds, with
//! nanoseconds behind the point), `rdev`, `type`, `u:NAME` for user attributes, `h:NAME` for others.

use crate::driver::{AttributeChange, Attributes};
use bytes::Bytes;
use std::time::{Duration, SystemTime};

fn shown(time: SystemTime) -> String {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => format!("{}.{:09}", after.as_secs(), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            format!("-{}.{:09}", before.as_secs(), before.subsec_nanos())
        }
    }
}

fn time(text: &str) -> Option<SystemTime> {
    let (seconds, nanos) = text.split_once('.').unwrap_or((text, "0"));
    let nanos = format!("{nanos:0<9}").get(..9)?.parse().ok()?;
    match seconds.strip_prefix('-') {
        None => SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds.parse().ok()?, nanos)),
        Some(before) => {
            SystemTime::UNIX_EPOCH.checked_sub(Duration::new(before.parse().ok()?, nanos))
        }
    }
}

fn own(name: &str, value: String) -> [Bytes; 2] {
    [
        name.to_owned().into_bytes().into(),
        value.into_bytes().into(),
    ]
}

fn named(kind: &str, name: &str, value: Bytes) -> [Bytes; 2] {
    [format!("{kind}:{name}").into_bytes().into(), value]
}

/// Takes in a field; one that makes no sense is as if it were not there.
pub(super) fn take(to: &mut Attributes, name: &[u8], value: Bytes) {
    let (Ok(name), text) = (std::str::from_utf8(name), std::str::from_utf8(&value)) else {
        return;
    };
    if let Some(name) = name.strip_prefix("u:") {
        to.user.insert(name.to_owned(), value);
        return;
    }
    let Ok(text) = text else {
        return;
    };
    match name {
        "mode" => to.mode = u32::from_str_radix(text, 8).ok(),
        "uid" => to.uid = text.parse().ok(),
        "gid" => to.gid = text.parse().ok(),
        "mtime" => to.mtime = time(text),
        "atime" => to.atime = time(text),
        "rdev" => to.rdev = text.parse().ok(),
        "type" => to.content_type = Some(text.to_owned()),
        name => {
            if let Some(name) = name.strip_prefix("h:") {
                to.headers.insert(name.to_owned(), text.to_owned());
            }
        }
    }
}

/// Names and values, one after the other.
pub(super) fn fields(attributes: &Attributes) -> Vec<Bytes> {
    let Attributes {
        mode,
        uid,
        gid,
        mtime,
        atime,
        rdev,
        content_type,
        user,
        headers,
    } = attributes;
    let mut fields = Vec::new();
    let plain = [
        ("mode", mode.map(|mode| format!("{mode:o}"))),
        ("uid", uid.map(|uid| uid.to_string())),
        ("gid", gid.map(|gid| gid.to_string())),
        ("mtime", mtime.map(shown)),
        ("atime", atime.map(shown)),
        ("rdev", rdev.map(|rdev| rdev.to_string())),
        ("type", content_type.clone()),
    ];
    for (name, value) in plain {
        fields.extend(value.into_iter().flat_map(|value| own(name, value)));
    }
    for (name, value) in user {
        fields.extend(named("u", name, value.clone()));
    }
    for (name, value) in headers {
        fields.extend(named("h", name, value.clone().into_bytes().into()));
    }
    fields
}

/// The names that go, and the names and values that come.
pub(super) fn change(change: &AttributeChange) -> (Vec<Bytes>, Vec<Bytes>) {
    let mut come = Attributes::default();
    change.apply(&mut come);
    let gone = change.user.iter().filter(|(_, value)| value.is_none());
    let gone = gone.map(|(name, _)| format!("u:{name}").into_bytes().into());
    (gone.collect(), fields(&come))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_the_epoch_come_back() {
        for nanos in [0, 1, 999_999_999, 1_500_000_000_123_456_789] {
            let apart = Duration::from_nanos(nanos);
            for there in [
                SystemTime::UNIX_EPOCH + apart,
                SystemTime::UNIX_EPOCH - apart,
            ] {
                assert_eq!(time(&shown(there)), Some(there), "{}", shown(there));
            }
        }
        assert_eq!(time("never"), None);
    }
}
