//! What the source says: files, string literals, names of tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// The directory of this project.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below a directory of this project with one of these endings, as (path, text).
pub fn files(dir: &str, ending: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut pending = vec![root().join(dir)];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if path.to_str().unwrap().ends_with(ending) {
            let content = fs::read_to_string(&path).unwrap();
            found.push((path.strip_prefix(root()).unwrap().to_owned(), content));
        }
    }
    found.sort();
    found
}

/// The source of the program: without unit tests, and without comments.
pub fn sources() -> Vec<(PathBuf, String)> {
    let mut sources = files("src", ".rs");
    sources.retain(|(path, _)| !path.ends_with("tests.rs") && !path.ends_with("fuzz.rs"));
    for (_, source) in &mut sources {
        if let Some(tests) = source.find("#[cfg(test)]\nmod tests {") {
            source.truncate(tests);
        }
        let code = source
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        *source = code.collect::<Vec<_>>().join("\n");
    }
    sources
}

/// The string literals of Rust code, unescaped as far as messages need it.
pub fn literals(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut chars = code.chars().peekable();
    let mut before = ' ';
    while let Some(c) = chars.next() {
        // A quote as a character is no string's beginning.
        if c == '"' && !(before == '\'' && chars.peek() == Some(&'\'')) {
            let mut literal = String::new();
            while let Some(c) = chars.next() {
                match c {
                    '"' => break,
                    '\\' => match chars.next() {
                        Some('\n') => while chars.next_if(|c| c.is_whitespace()).is_some() {},
                        Some('n') => literal.push(' '),
                        Some(c) => literal.push(c),
                        None => {}
                    },
                    c => literal.push(c),
                }
            }
            found.push(literal);
        }
        before = c;
    }
    found
}

/// Literals that calls of these functions have as arguments.
pub fn told_by(code: &str, functions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for function in functions {
        for (at, _) in code.match_indices(function) {
            let arguments = &code[at + function.len()..];
            let (mut depth, mut end, mut inside, mut escaped) = (1, arguments.len(), false, false);
            for (at, c) in arguments.char_indices() {
                match c {
                    _ if escaped => escaped = false,
                    '\\' if inside => escaped = true,
                    '"' => inside = !inside,
                    '(' if !inside => depth += 1,
                    ')' if !inside => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    end = at;
                    break;
                }
            }
            found.extend(literals(&arguments[..end]));
        }
    }
    found.retain(|message| message.split_whitespace().count() > 2);
    found
}

/// The tests there are, as paths such as `conformance::keys::awkward_keys`. A test is a function
/// with a test attribute, or one that its file names in a list of cases.
pub fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut all = files("src", ".rs");
    all.extend(files("tests", ".rs"));
    for (path, code) in all {
        let module = path
            .with_extension("")
            .display()
            .to_string()
            .replace('/', "::");
        let module = module.strip_suffix("::tests").unwrap_or(&module).to_owned();
        let in_tests = path.starts_with("tests");
        let mut marked = false;
        for line in code.lines() {
            let line = line.trim();
            let line = line.strip_prefix("async ").unwrap_or(line);
            if line.starts_with("#[") {
                marked |= line.starts_with("#[test") || line.starts_with("#[tokio::test");
            } else if let Some(rest) = line.strip_prefix("fn ") {
                let name: String = rest
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                if marked || (in_tests && is_named(&code, &name)) {
                    found.insert(format!("{module}::{name}"));
                }
                marked = false;
            } else if !line.is_empty() {
                marked = false;
            }
        }
    }
    found
}

/// Whether a file has a name more than once: in a list of cases and where it is defined.
fn is_named(code: &str, name: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let uses = code.match_indices(name).filter(|(at, _)| {
        !is_part(code[..*at].chars().next_back())
            && !is_part(code[at + name.len()..].chars().next())
    });
    uses.count() > 1
}
