//! What kind of store a seed simulates: no two of those that speak S3 are alike.

use bucketfs::driver::{AttributeSupport, Capabilities, CopyCapability, Strength};
use bucketfs::fs::{Consistency, StagingRoom};
use fastrand::Rng;
use std::time::Duration;

/// The character of a simulated store and of the mounts of it.
#[derive(Clone, Debug)]
pub struct Character {
    /// Etags are digests of the bytes, so that the same bytes have the same etag again.
    pub digests: bool,
    /// Entries of a page at most.
    pub page: usize,
    /// How often, of a thousand requests, each fault strikes.
    pub faults: Faults,
    pub capabilities: Capabilities,
    /// `--metadata-ttl` of the mounts.
    pub ttl: Duration,
    /// `--consistency` of the mounts.
    pub consistency: Consistency,
    pub mounts: usize,
    /// Processes of each mount. With one, what a mount shows is exactly predictable.
    pub processes: usize,
    /// Mounts may die, and their successors take their places.
    pub crashes: bool,
    /// How many of a hundred files are longer than a block of the cache.
    pub long: u32,
    /// `--staging-size` of the mounts.
    pub staging: Option<u64>,
    /// How much the mounts can stage in memory and on their disks.
    pub room: StagingRoom,
    /// The state directory cannot be written.
    pub stateless: bool,
}

/// How often, of a thousand requests, the store misbehaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The request does not arrive; the client learns that the connection broke.
    pub lost_request: u32,
    /// The request is carried out; the client learns that the connection broke.
    pub lost_reply: u32,
    /// The request is carried out, or not; the client hears nothing.
    pub silent: u32,
    /// A conditional write is carried out when its client has given it up.
    pub late: u32,
    /// 503.
    pub refused: u32,
    /// 409 to a conditional write, which was not carried out.
    pub contended: u32,
    /// A body breaks off.
    pub broken_body: u32,
    /// The answer takes seconds.
    pub slow: u32,
    /// The change feed breaks, of a thousand changes.
    pub broken_feed: u32,
}

impl Character {
    pub fn of(random: &mut Rng) -> Character {
        let mut pick = |percent: u32| random.u32(..100) < percent;
        let (digests, watch, special) = (pick(50), pick(20), pick(50));
        let (rename, copy) = (pick(20), pick(70));
        let commit_ids = pick(90);
        let strength = |yes| {
            if yes {
                Strength::Atomic
            } else {
                Strength::None
            }
        };
        let copy = copy.then(|| CopyCapability {
            source: strength(pick(80)),
            destination: strength(pick(60)),
        });
        let delete_condition = strength(pick(60));
        let quiet = pick(25);
        let crashes = pick(30);
        let attributes = match random.u32(..4) {
            0 => AttributeSupport::None,
            1 | 2 => AttributeSupport::Object,
            _ => AttributeSupport::Listed,
        };
        let mut often = |most: u32| if quiet { 0 } else { random.u32(..=most) };
        let faults = Faults {
            lost_request: often(40),
            lost_reply: often(80),
            silent: often(5),
            late: often(5),
            refused: often(60),
            contended: often(40),
            broken_body: often(40),
            slow: often(40),
            broken_feed: often(20),
        };
        let ttl = [0, 20, 1000, 1000, 5000][random.usize(..5)];
        let processes = [1, 1, 2][random.usize(..3)];
        let stateless = random.u32(..8) == 0;
        // What neither the store nor a disk has room for is nowhere, and its writer was told.
        let limited = random.u32(..5) == 0 && !stateless;
        Character {
            digests,
            page: [1, 2, 3, 1000][random.usize(..4)],
            faults,
            capabilities: Capabilities {
                put_condition: Strength::Atomic,
                delete_condition,
                range: true,
                attributes,
                set_attributes: attributes != AttributeSupport::None,
                special_files: special && attributes != AttributeSupport::None,
                commit_ids,
                copy,
                rename: rename && !digests,
                watch,
                ..Capabilities::default()
            },
            ttl: Duration::from_millis(ttl),
            consistency: Consistency::CloseToOpen,
            mounts: random.usize(2..=if processes > 1 { 3 } else { 5 }),
            processes,
            crashes,
            long: [0, 5, 5, 60][random.usize(..4)],
            staging: (random.u32(..5) == 0).then(|| random.u64(0..40_000)),
            stateless,
            room: match limited {
                true => StagingRoom::Limited {
                    file_memory: random.u64(..200),
                    memory: random.u64(..1000),
                    disk: [random.u64(..2000), u64::MAX][random.usize(..2)],
                },
                false => StagingRoom::Usual,
            },
        }
    }
}
