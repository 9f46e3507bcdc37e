//! Names that look like lock files: their exclusive creation is decided on the server at open, and
//! what is known of them is never cached.

/// Endings of lock names.
const ENDINGS: [&[u8]; 4] = [b".lock", b"lock", b".lck", b".pid"];

/// Whether a name looks like a lock: `*.lock`, `*lock`, `*.lck`, `*.pid`, `.#*`.
pub fn looks_like_lock(name: &[u8]) -> bool {
    name.starts_with(b".#") || ENDINGS.iter().any(|ending| name.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_names_are_known() {
        for name in [
            "index.lock",
            "lock",
            "mailbox.lock",
            "a.lck",
            "d.pid",
            ".#file",
            "flock",
        ] {
            assert!(looks_like_lock(name.as_bytes()), "{name}");
        }
        for name in ["locks", "lock.txt", "#file#", "pid", "a.pid2"] {
            assert!(!looks_like_lock(name.as_bytes()), "{name}");
        }
    }
}
