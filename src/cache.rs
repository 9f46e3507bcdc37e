//! What is known of the store without asking it: `listing` holds names and attributes, `content`
//! blocks of object bodies in memory, `disk` more of them behind it, and `fetch` brings what is
//! missing.
//!
//! Content is keyed by etag, so it is never stale: what may be stale is only which etag a name has.

pub mod content;
pub mod disk;
pub mod fetch;
pub mod listing;
