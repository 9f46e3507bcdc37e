//! Which names stay on this machine.

use crate::locks::looks_like_lock;
use glob::Pattern;

/// Patterns of names: `*`, `?` and `[a-z]`, for the last component of a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalNames(Vec<Pattern>);

impl LocalNames {
    /// Parses patterns that `:` separates.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let patterns = text.split(':').filter(|pattern| !pattern.is_empty());
        patterns.map(pattern).collect::<Result<_, _>>().map(Self)
    }

    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a name stays on this machine. One that looks like a lock file never does: it is
    /// there to be seen by other machines.
    pub fn matches(&self, name: &[u8]) -> bool {
        if name.is_empty() || looks_like_lock(name) {
            return false;
        }
        let name = String::from_utf8_lossy(name);
        self.0.iter().any(|pattern| pattern.matches(&name))
    }
}

fn pattern(text: &str) -> std::result::Result<Pattern, String> {
    if text.contains('/') {
        return Err(format!(
            "{text:?} has a '/' in it, and patterns are for names alone; write it like *.swp"
        ));
    }
    if looks_like_lock(text.as_bytes()) {
        return Err(format!(
            "{text:?} is for lock files, which only work where other machines see them; leave it out"
        ));
    }
    Pattern::new(text).map_err(|error| format!("{text:?} is no pattern: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_a_shell_and_leading_dots_are_no_exception() {
        let names = LocalNames::parse("*.sw[op]:4913:#?*#").unwrap();
        for name in [".a.swp", "a.swo", "4913", "#a#", "é.swp"] {
            assert!(names.matches(name.as_bytes()), "{name}");
        }
        for name in ["a.swx", "49130", "##", "swp", ""] {
            assert!(!names.matches(name.as_bytes()), "{name}");
        }
        assert!(names.matches(b"\xff.swp"));
        assert!(LocalNames::parse("").unwrap().is_empty());
    }

    #[test]
    fn lock_files_are_refused_and_never_match() {
        for text in ["*.lock", "index.lock", "*lock", ".#*", "a:*.pid", "*.lck"] {
            let why = LocalNames::parse(text).unwrap_err();
            assert!(why.contains("lock files"), "{why}");
        }
        let all = LocalNames::parse("*:*.l[o]ck").unwrap();
        assert!(all.matches(b"locks") && all.matches(b"a"));
        for name in ["index.lock", ".#file", "d.pid", "a.lck"] {
            assert!(!all.matches(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["a/b", "a[", "***"] {
            assert!(LocalNames::parse(text).is_err(), "{text}");
        }
    }
}
