//! What was written and is not yet in the store: `stage` holds the bytes, one buffer for each
//! inode, until a conditional put has taken them; `upload` sends large ones in parts, `ahead` while
//! they are still being written; `assemble` joins them with what the store has already; `conflict`
//! keeps what no put took.

pub mod ahead;
pub mod assemble;
pub mod conflict;
pub mod stage;
pub mod upload;
