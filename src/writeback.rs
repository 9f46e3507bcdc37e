//! What was written and is not yet in the store: `stage` holds the bytes, one buffer for each
//! inode, until a conditional put has taken them.

pub mod stage;
