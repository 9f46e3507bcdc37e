//! The `bucketfs` command.
fn main() {}
