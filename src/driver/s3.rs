//! The `s3:` driver.

use super::{Error, Location, OpenOptions, Opened, Result};

/// The URL scheme.
pub const SCHEME: &str = "s3";
/// What `bucketfs drivers` says.
pub const ABOUT: &str = "s3://BUCKET[/PREFIX]  Amazon S3 and what speaks its protocol";

/// Opens the store.
pub async fn open(location: Location, options: OpenOptions) -> Result<Opened> {
    let _ = (location, options);
    Err(Error::unsupported("open"))
}
