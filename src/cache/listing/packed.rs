//! What is recorded of a name, in little memory: of a directory of a million files, nearly all that
//! is held are these records.

use super::{Known, Marker};
use crate::driver::{Attributes, CommitId, ETag, ObjectInfo};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What is known of a name, as a record keeps it.
#[derive(Clone, Debug)]
pub(super) enum Kept {
    /// An object with nothing beside it, as most are: its facts in one piece.
    Packed(Box<[u8]>),
    /// Anything else.
    Whole(Known),
}

impl Kept {
    pub fn known(&self) -> Known {
        match self {
            Kept::Whole(known) => known.clone(),
            Kept::Packed(packed) => Known {
                object: unpack(packed).map(Arc::new),
                ..Known::default()
            },
        }
    }

    pub fn is_absent(&self) -> bool {
        matches!(self, Kept::Whole(known) if known.is_absent())
    }
}

impl From<Known> for Kept {
    fn from(known: Known) -> Self {
        let alone = !known.directory && known.marker == Marker::Unknown;
        let packed = known.object.as_ref().filter(|_| alone);
        match packed.and_then(|info| pack(info)) {
            Some(packed) => Kept::Packed(packed),
            None => Kept::Whole(known),
        }
    }
}

impl Default for Kept {
    fn default() -> Self {
        Kept::Whole(Known::default())
    }
}

/// Which attributes follow.
const ATTRIBUTES: u8 = 1;
const MODE: u8 = 2;
const UID: u8 = 4;
const GID: u8 = 8;
const MTIME: u8 = 16;
const ATIME: u8 = 32;

/// Nanoseconds since 1970, for the years 1678 to 2262.
fn nanoseconds(time: SystemTime) -> Option<i64> {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_nanos().try_into().ok(),
        Err(before) => i64::try_from(before.duration().as_nanos()).ok().map(|n| -n),
    }
}

fn time(nanoseconds: i64) -> SystemTime {
    let apart = Duration::from_nanos(nanoseconds.unsigned_abs());
    if nanoseconds < 0 {
        UNIX_EPOCH - apart
    } else {
        UNIX_EPOCH + apart
    }
}

/// An object's facts as bytes; `None` where it has some that have no place there.
fn pack(info: &ObjectInfo) -> Option<Box<[u8]>> {
    let ObjectInfo {
        size,
        etag,
        modified,
        attributes,
        commits,
        version: None,
    } = info
    else {
        return None;
    };
    let plain = Attributes::default();
    let attributes = attributes.as_deref();
    let Attributes {
        mode,
        uid,
        gid,
        mtime,
        atime,
        rdev: None,
        content_type: None,
        user,
        headers,
    } = attributes.unwrap_or(&plain)
    else {
        return None;
    };
    if !user.is_empty() || !headers.is_empty() {
        return None;
    }
    let mut packed = Vec::with_capacity(60 + 8 * commits.len() + etag.as_str().len());
    packed.push(0);
    packed.push(u8::try_from(commits.len()).ok()?);
    packed.extend_from_slice(&(*size)?.to_le_bytes());
    packed.extend_from_slice(&nanoseconds(*modified)?.to_le_bytes());
    let mut flags = if attributes.is_some() { ATTRIBUTES } else { 0 };
    for (flag, number) in [(MODE, mode), (UID, uid), (GID, gid)] {
        if let Some(number) = number {
            flags |= flag;
            packed.extend_from_slice(&number.to_le_bytes());
        }
    }
    for (flag, time) in [(MTIME, mtime), (ATIME, atime)] {
        if let Some(time) = time {
            flags |= flag;
            packed.extend_from_slice(&nanoseconds(*time)?.to_le_bytes());
        }
    }
    packed[0] = flags;
    for commit in commits {
        packed.extend_from_slice(&commit.0.to_le_bytes());
    }
    packed.extend_from_slice(etag.as_str().as_bytes());
    Some(packed.into())
}

/// The reverse of [`pack`].
fn unpack(packed: &[u8]) -> Option<ObjectInfo> {
    let ([flags, commits], mut rest) = packed.split_first_chunk()?;
    fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
        let (taken, left) = rest.split_first_chunk()?;
        *rest = left;
        Some(*taken)
    }
    let size = u64::from_le_bytes(take(&mut rest)?);
    let modified = time(i64::from_le_bytes(take(&mut rest)?));
    let mut number = |flag| {
        (flags & flag != 0)
            .then(|| take(&mut rest).map(u32::from_le_bytes))
            .flatten()
    };
    let (mode, uid, gid) = (number(MODE), number(UID), number(GID));
    let mut moment = |flag| {
        (flags & flag != 0)
            .then(|| take(&mut rest).map(i64::from_le_bytes).map(time))
            .flatten()
    };
    let (mtime, atime) = (moment(MTIME), moment(ATIME));
    let mut ids = Vec::with_capacity(usize::from(*commits));
    for _ in 0..*commits {
        ids.push(CommitId(u64::from_le_bytes(take(&mut rest)?)));
    }
    let attributes = Attributes {
        mode,
        uid,
        gid,
        mtime,
        atime,
        ..Attributes::default()
    };
    Some(ObjectInfo {
        size: Some(size),
        etag: ETag::new(std::str::from_utf8(rest).ok()?),
        modified,
        attributes: (flags & ATTRIBUTES != 0).then(|| Arc::new(attributes)),
        commits: ids,
        version: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::option::of;
    use proptest::prelude::*;

    fn any_time() -> impl Strategy<Value = SystemTime> {
        prop_oneof![
            any::<i64>().prop_map(time),
            // Later than 2262.
            (0..u64::from(u32::MAX))
                .prop_map(|s| UNIX_EPOCH + Duration::from_secs(1 << 34) + Duration::from_secs(s)),
        ]
    }

    fn any_attributes() -> impl Strategy<Value = Attributes> {
        let numbers = (of(any::<u32>()), of(any::<u32>()), of(any::<u32>()));
        let rare = (
            prop_oneof![4 => Just(None), 1 => of(any::<u32>())],
            prop_oneof![4 => Just(None), 1 => of(".*")],
            prop_oneof![4 => Just(Vec::new()), 1 => vec((".*", ".*"), 0..3)],
            prop_oneof![4 => Just(Default::default()), 1 => btree_map(".*", ".*", 0..3)],
        );
        (numbers, of(any_time()), of(any_time()), rare).prop_map(|(numbers, mtime, atime, rare)| {
            Attributes {
                mode: numbers.0,
                uid: numbers.1,
                gid: numbers.2,
                mtime,
                atime,
                rdev: rare.0,
                content_type: rare.1,
                user: rare
                    .2
                    .into_iter()
                    .map(|(name, value)| (name, value.into()))
                    .collect(),
                headers: rare.3,
            }
        })
    }

    prop_compose! {
        fn any_info()(
            size in of(any::<u64>()),
            etag in ".*",
            modified in any_time(),
            attributes in of(any_attributes()),
            commits in vec(any::<u64>(), 0..300),
            version in prop_oneof![4 => Just(None), 1 => of(".*")],
        ) -> ObjectInfo {
            ObjectInfo {
                size,
                etag: ETag::new(etag),
                modified,
                attributes: attributes.map(Arc::new),
                commits: commits.into_iter().map(CommitId).collect(),
                version,
            }
        }
    }

    proptest! {
        #[test]
        fn a_record_keeps_all_that_is_known(info in any_info(), directory in any::<bool>(), marker in any::<bool>()) {
            let known = Known {
                object: Some(Arc::new(info)),
                directory,
                marker: if marker { Marker::Absent } else { Marker::Unknown },
            };
            prop_assert_eq!(Kept::from(known.clone()).known(), known);
        }
    }

    #[test]
    fn a_file_of_a_listing_is_packed() {
        let info = ObjectInfo {
            size: Some(5),
            etag: ETag::new("12345-5-18a1b2c3d4e5f607"),
            modified: UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789),
            attributes: Some(Arc::new(Attributes {
                mode: Some(0o100_644),
                uid: Some(0),
                gid: Some(0),
                mtime: Some(UNIX_EPOCH),
                atime: Some(UNIX_EPOCH - Duration::from_nanos(1)),
                ..Attributes::default()
            })),
            commits: Vec::new(),
            version: None,
        };
        let known = Known {
            object: Some(Arc::new(info)),
            ..Known::default()
        };
        match Kept::from(known.clone()) {
            Kept::Packed(packed) => assert!(packed.len() < 80, "{} bytes", packed.len()),
            Kept::Whole(_) => panic!("it is kept whole"),
        }
        assert!(Kept::default().is_absent());
        assert!(!Kept::from(known).is_absent());
    }
}
