//! What names stand for: components of keys, and what was found under them.

use crate::cache::listing::{Known, Marker};
use crate::clock::Instant;
use crate::driver::ObjectInfo;
use crate::key::Key;
use crate::name::{self, Component};
use bytes::Bytes;
use std::sync::Arc;

/// What a name in a directory means.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The component of the key.
    pub component: Bytes,
    /// Whether the name means the object, the directory, or whichever is there.
    pub form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A directory, or else an object.
    Plain,
    /// The object beside a directory of that name.
    Beside,
    /// The pseudo-directory of long names that begin with this.
    Chunk,
}

/// What was found under a name.
#[derive(Clone, Debug)]
pub(super) enum Found {
    Object(Arc<ObjectInfo>),
    Directory(Marker),
    Nothing,
}

/// What was found under a name, since when that is known, before which own changes, and whether it
/// was asked just now.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub found: Found,
    pub since: Instant,
    pub mark: u64,
    pub asked: bool,
}

impl Target {
    /// What a name means; `None` for a name that no key can have.
    pub fn of(name: &[u8]) -> Option<Target> {
        let (component, form) = match name::decode(name)? {
            Component::Plain(component) => (component, Form::Plain),
            Component::FileBeside(component) => (component, Form::Beside),
            Component::Continued(component) => (component, Form::Chunk),
            Component::DirectoryBeside(_) => return None,
        };
        Some(Target {
            component: Bytes::from(component.into_owned()),
            form,
        })
    }

    /// The key of the object of that name.
    pub fn object_key(&self, prefix: &Key) -> Key {
        prefix.join(&self.component)
    }

    /// The prefix of the directory of that name.
    pub fn directory_prefix(&self, prefix: &Key) -> Key {
        let key = prefix.join(&self.component);
        if self.form == Form::Chunk {
            key
        } else {
            key.join(b"/")
        }
    }

    /// What of all that is known the name shows.
    pub fn choose(&self, known: &Known) -> Found {
        let object = known
            .object
            .as_ref()
            // An empty object that is called like its directory is that directory's marker.
            .filter(|info| !self.component.is_empty() || info.size != Some(0));
        match (self.form, known.directory, object) {
            (Form::Chunk, true, _) => Found::Directory(Marker::Absent),
            (Form::Plain, true, _) => Found::Directory(known.marker.clone()),
            (Form::Plain, false, Some(info)) | (Form::Beside, true, Some(info)) => {
                Found::Object(info.clone())
            }
            _ => Found::Nothing,
        }
    }
}
