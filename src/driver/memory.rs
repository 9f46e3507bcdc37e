//! The `memory:` driver.

use super::{Error, Location, OpenOptions, Opened, Result};

/// The URL scheme.
pub const SCHEME: &str = "memory";
/// What `bucketfs drivers` says.
pub const ABOUT: &str = "memory:[?seed=DIR]  this process's memory, gone when it ends";

/// Opens the store.
pub async fn open(location: Location, options: OpenOptions) -> Result<Opened> {
    let _ = (location, options);
    Err(Error::unsupported("open"))
}
