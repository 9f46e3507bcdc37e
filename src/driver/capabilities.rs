//! What drivers claim to be able to do.

use super::{Attributes, Result};
use serde::{Deserialize, Serialize};

/// How strong a condition is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum Strength {
    /// The store ignores it; a driver refuses a condition of this strength with `Unsupported`.
    #[default]
    None,
    /// Tested first, then written: a writer in between is overwritten.
    Checked,
    /// Test and write are one.
    Atomic,
}

/// Whether and where attributes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum AttributeSupport {
    /// Not kept; a put ignores them.
    #[default]
    None,
    /// Kept, and told by `head` and `get`, not by `list`.
    Object,
    /// Kept, and told by `list` too.
    Listed,
}

/// Tells whether an object can have these attributes.
#[derive(Clone, Copy, Debug)]
pub struct AttributeCheck(pub fn(&Attributes) -> Result<()>);

impl PartialEq for AttributeCheck {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::fn_addr_eq(self.0, other.0)
    }
}

impl Eq for AttributeCheck {}

/// What a driver's copy can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CopyCapability {
    /// Strength of [`super::CopyOptions::source`].
    pub source: Strength,
    /// Strength of [`super::CopyOptions::destination`].
    pub destination: Strength,
}

/// Limits of multipart uploads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UploadLimits {
    /// Least size of every part but the last.
    pub min_part: u64,
    /// Greatest size of a part.
    pub max_part: u64,
    /// Most parts of one upload.
    pub max_parts: u32,
    /// Whether ranges of existing objects can be parts.
    pub part_copy: bool,
    /// Strength of the precondition that `complete` takes.
    pub condition: Strength,
}

/// What a driver can do, as data. What is claimed works; what is not claimed is refused with
/// [`super::ErrorKind::Unsupported`] and changes nothing. The conformance suite checks both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether a request goes over a network, so that its round trip costs more than what it
    /// brings: what is likely to be wanted next is asked for with it.
    pub remote: bool,
    /// How many bytes of bodies the store keeps as they are, in this process's memory: so many may
    /// as well wait there for their put, because they will take no more room then.
    pub keeps_bodies: u64,
    /// Strength of the precondition of `put`.
    pub put_condition: Strength,
    /// Strength of the precondition of `delete`.
    pub delete_condition: Strength,
    /// Whether a conditional delete whose answer did not get lost, and that finds its object gone,
    /// means that somebody else has deleted it: also where something on the way sends requests again.
    pub knows_own_deletes: bool,
    /// Whether `get` honours a range; without, it gives the whole object.
    pub range: bool,
    /// Whether attributes are kept.
    pub attributes: AttributeSupport,
    /// Whether `set_attributes` works.
    pub set_attributes: bool,
    /// Refuses attributes that are too many for an object, before anything is sent: changes of
    /// some wait for a put.
    pub check_attributes: AttributeCheck,
    /// The user attributes that `set_attributes` takes, and that are told, where no others are
    /// kept; a put ignores them.
    pub settable: &'static [&'static str],
    /// Whether symbolic links, fifos, sockets and devices can be stored; where not, attributes
    /// with such a mode are refused.
    pub special_files: bool,
    /// Whether commit ids are kept.
    pub commit_ids: bool,
    /// Whether directories stay, as markers that nobody put, when their last key goes.
    pub directories_persist: bool,
    /// Server-side `copy`.
    pub copy: Option<CopyCapability>,
    /// Atomic `rename` of one key, with conditions on both ends.
    pub rename: bool,
    /// Atomic `exchange` of two keys.
    pub exchange: bool,
    /// Multipart `upload`.
    pub upload: Option<UploadLimits>,
    /// `delete_many`, with the greatest number of keys of one request.
    pub delete_many: Option<usize>,
    /// Strength of [`super::Removal::if_match`].
    pub delete_many_condition: Strength,
    /// `versions`, and get by version id.
    pub versions: bool,
    /// `watch`.
    pub watch: bool,
    /// `find`.
    pub find: bool,
    /// `buckets`.
    pub buckets: bool,
    /// `create_bucket` and `delete_bucket`.
    pub create_bucket: bool,
    /// Whether keys must be UTF-8.
    pub utf8_keys: bool,
    /// Longest key in bytes.
    pub max_key: usize,
    /// Largest object in bytes that a single `put` takes.
    pub max_object: u64,
}

impl Default for Capabilities {
    /// Only what is required, without conditions.
    fn default() -> Self {
        Capabilities {
            remote: true,
            keeps_bodies: 0,
            put_condition: Strength::None,
            delete_condition: Strength::None,
            knows_own_deletes: false,
            range: true,
            attributes: AttributeSupport::None,
            set_attributes: false,
            check_attributes: AttributeCheck(|_| Ok(())),
            settable: &[],
            special_files: false,
            commit_ids: false,
            directories_persist: false,
            copy: None,
            rename: false,
            exchange: false,
            upload: None,
            delete_many: None,
            delete_many_condition: Strength::None,
            versions: false,
            watch: false,
            find: false,
            buckets: false,
            create_bucket: false,
            utf8_keys: false,
            max_key: 1024,
            max_object: u64::MAX,
        }
    }
}
