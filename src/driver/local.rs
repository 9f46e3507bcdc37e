//! The `file:` driver.

use super::{Error, Location, OpenOptions, Opened, Result};

/// The URL scheme.
pub const SCHEME: &str = "file";
/// What `bucketfs drivers` says.
pub const ABOUT: &str = "file:///DIR  plain files below a directory";

/// Opens the store.
pub async fn open(location: Location, options: OpenOptions) -> Result<Opened> {
    let _ = (location, options);
    Err(Error::unsupported("open"))
}
