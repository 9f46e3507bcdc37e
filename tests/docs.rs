//! The documents for users say what the code does: messages, options, exit codes, errnos, names
//! of tests, links. Each rule is a function from text to complaints, tried on a wrong text too.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "docs/source.rs"]
mod source;

use bucketfs::config::options::OPTIONS;
use bucketfs::driver::{AttributeSupport, ErrorKind, Location, OpenOptions, Strength};
use bucketfs::exit::Exit;
use bucketfs::fs::errno;
use bucketfs::name;
use source::{files, literals, root, sources, tests, told_by};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

const README: &str = "README.md";
const SEMANTICS: &str = "docs/SEMANTICS.md";
const TROUBLESHOOTING: &str = "docs/TROUBLESHOOTING.md";
const DOCUMENTS: [&str; 6] = [
    "docs/performance.md",
    README,
    SEMANTICS,
    TROUBLESHOOTING,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
];

/// Options of other programs that the documents mention.
const FOREIGN: [&str; 18] = [
    "--s3",
    "--databases",
    "--documents",
    "--restarts",
    "--late",
    "--local",
    "--all-targets",
    "--device",
    "--cap-add",
    "--release",
    "--chmod",
    "--size-only",
    "--lib",
    "--long",
    "--nocapture",
    "--test",
    "--now",
    "--requests",
];

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn complain(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// A message with `{}` for whatever varies, and single spaces.
fn normal(message: &str) -> String {
    let mut normal = String::new();
    let mut depth = 0;
    for c in message.chars() {
        match c {
            '{' => {
                if depth == 0 {
                    normal.push('{');
                }
                depth += 1;
            }
            '}' if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    normal.push('}');
                }
            }
            _ if depth > 0 => {}
            c => normal.push(c),
        }
    }
    normal.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The code spans of some Markdown.
fn spans(markdown: &str) -> Vec<&str> {
    markdown.split('`').skip(1).step_by(2).collect()
}

/// The quoted messages: code spans in lines that begin a list item with one.
fn quoted(markdown: &str) -> Vec<&str> {
    let items = markdown.lines().filter(|line| line.starts_with("- `"));
    items.flat_map(spans).collect()
}

/// Messages that the kernel gives.
const KERNEL: [&str; 1] = ["Transport endpoint is not connected"];

/// Quoted messages that the program has not.
fn invented(markdown: &str, known: &[String]) -> Vec<String> {
    let wrong = quoted(markdown).into_iter().filter(|message| {
        let message = normal(message);
        !KERNEL.contains(&message.as_str()) && !known.iter().any(|known| known.contains(&message))
    });
    wrong
        .map(|message| format!("no source has: {message}"))
        .collect()
}

/// Messages of the program that are not quoted. A part of a message will do.
fn untold(markdown: &str, messages: &[String]) -> Vec<String> {
    let quoted: Vec<String> = quoted(markdown).into_iter().map(normal).collect();
    let missing = messages.iter().filter(|message| {
        let message = normal(message);
        !quoted.iter().any(|part| message.contains(part.as_str()))
    });
    missing
        .map(|message| format!("not in {TROUBLESHOOTING}: {message}"))
        .collect()
}

#[test]
fn quoted_messages_are_those_of_the_source() {
    let known: Vec<String> = sources()
        .iter()
        .flat_map(|(_, code)| literals(code))
        .map(|literal| normal(&literal))
        .collect();
    let document = text(TROUBLESHOOTING);
    assert!(quoted(&document).len() > 100);
    complain(invented(&document, &known));
    assert_eq!(
        invented("- `the moon is not full`, `no error recorded`", &known).len(),
        1
    );
    assert_eq!(
        invented("- `cannot fork: {whatever}`\\\n  text `none`", &known),
        [""; 0]
    );
}

#[test]
fn every_failure_of_the_command_and_the_filesystem_is_explained() {
    let functions = [
        "Failure::usage(",
        "Failure::mount_point(",
        "Failure::other(",
        "Failure::new(",
        "FsError::new(",
    ];
    let messages: Vec<String> = sources()
        .iter()
        .flat_map(|(_, code)| told_by(code, &functions))
        .collect();
    assert!(messages.len() > 60, "{}", messages.len());
    let document = text(TROUBLESHOOTING);
    complain(untold(&document, &messages));
    let gone = document.replace("cannot fork", "can not fork");
    assert_eq!(untold(&gone, &messages).len(), 1);
}

/// The table of options as README has it.
fn option_table() -> String {
    let mut table = String::from("| option | default | |\n|---|---|---|\n");
    for option in OPTIONS {
        let short = option
            .short
            .map_or(String::new(), |short| format!("`-{short}`, "));
        let value = option
            .value
            .map_or(String::new(), |value| format!(" {value}"));
        let default = option.default.trim_matches(['(', ')']);
        let (name, help) = (option.name, option.help);
        table += &format!("| {short}`--{name}{value}` | {default} | {help} |\n");
    }
    table
}

fn help(command: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_bucketfs"))
        .args(command.split_whitespace())
        .arg("--help")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The words that look like long options, without values.
fn long_options(text: &str) -> BTreeSet<String> {
    let parts = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    parts
        .filter(|word| word.len() > 3 && word.starts_with("--") && !word.starts_with("---"))
        .map(str::to_owned)
        .collect()
}

/// Long options in code that no `--help` has.
fn unknown_options(markdown: &str, known: &BTreeSet<String>) -> Vec<String> {
    let used = spans(markdown).into_iter().flat_map(long_options);
    let wrong = used.filter(|name| !known.contains(name) && !FOREIGN.contains(&name.as_str()));
    wrong.map(|name| format!("no --help has {name}")).collect()
}

#[test]
fn options_are_those_of_help() {
    let readme = text(README);
    let block = readme.split("--help -->\n").nth(1).unwrap();
    let block = block.split("<!-- /options -->").next().unwrap();
    assert_eq!(
        block,
        option_table(),
        "put this into {README}:\n{}",
        option_table()
    );

    let mut known = long_options(&help(""));
    let mounting = long_options(&help("mount"));
    for option in OPTIONS {
        assert!(
            mounting.contains(&format!("--{}", option.name)),
            "{}",
            option.name
        );
    }
    for name in &mounting {
        let shown = readme.contains(&format!("`{name}")) || name == "--help";
        assert!(shown, "{name} is not in {README}");
    }
    known.extend(mounting);
    for command in ["umount", "status", "check", "find"] {
        let options = long_options(&help(command));
        for name in &options {
            assert!(
                readme.contains(name.as_str()) || name == "--help",
                "{command} {name}"
            );
        }
        known.extend(options);
    }
    let mut foreign = BTreeSet::new();
    for document in DOCUMENTS {
        let text = text(document);
        complain(unknown_options(&text, &known));
        foreign.extend(spans(&text).into_iter().flat_map(long_options));
    }
    for name in FOREIGN {
        assert!(foreign.contains(name), "{name} is mentioned no more");
    }
    assert_eq!(
        unknown_options("`--read-only --frobnicate`", &known),
        ["no --help has --frobnicate"]
    );
}

/// The rows of all tables, as their cells.
fn rows(markdown: &str) -> Vec<Vec<&str>> {
    let lines = markdown.lines().filter(|line| line.starts_with('|'));
    lines
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

#[test]
fn exit_codes_are_those_of_the_program() {
    let readme = text(README);
    let documented: BTreeMap<u8, &str> = rows(&readme)
        .into_iter()
        .filter_map(|cells| Some((cells[0].parse().ok()?, cells[1])))
        .collect();
    let real: BTreeMap<u8, &str> = Exit::ALL
        .into_iter()
        .map(|exit| (exit.code(), exit.about()))
        .collect();
    assert_eq!(documented, real);
}

/// Kinds of errors whose errno the document does not tell, or tells wrongly.
fn wrong_errnos(markdown: &str) -> Vec<String> {
    let rows = rows(markdown);
    let wrong = ErrorKind::ALL.iter().filter_map(|kind| {
        let row = [
            format!("`{}`", kind.name()),
            errno::name(errno::errno(*kind)),
        ];
        (!rows.iter().any(|cells| *cells == row)).then(|| row.join(" "))
    });
    wrong.collect()
}

#[test]
fn errnos_are_those_of_the_one_table() {
    let document = text(SEMANTICS);
    complain(wrong_errnos(&document));
    let wrong = document.replace("| ESTALE |", "| EIO |");
    assert_eq!(wrong_errnos(&wrong), ["`changed` ESTALE"]);
}

#[test]
fn names_in_the_examples_are_right() {
    let document = text(SEMANTICS);
    let section = document.split("## Names").nth(1).unwrap();
    let examples: Vec<_> = rows(section.split("## ").next().unwrap())
        .into_iter()
        .filter(|cells| cells[0].starts_with('`'))
        .collect();
    assert_eq!(examples.len(), 6);
    for cells in examples {
        let (key, path) = (cells[0].trim_matches('`'), cells[1].trim_matches('`'));
        let shown: Vec<_> = key
            .split('/')
            .map(|component| {
                let encoded = name::encode(component.as_bytes());
                String::from_utf8(encoded.first().to_vec()).unwrap()
            })
            .collect();
        assert_eq!(shown.join("/"), path, "{key}");
    }
}

#[test]
fn lock_names_are_those_of_the_source() {
    let source = text("src/locks.rs");
    let list = source.split("looks like a lock: ").nth(1).unwrap();
    let list = list.split(".\n").next().unwrap();
    assert!(list.contains("`*.lock`"), "{list}");
    assert!(text(SEMANTICS).contains(list), "{list}");
}

#[tokio::test]
async fn stores_are_described_by_their_capabilities() {
    let readme = text(README);
    let rows = rows(&readme);
    let dir = tempfile::tempdir().unwrap();
    let urls = [
        "memory:".to_owned(),
        format!("file://{}", dir.path().display()),
    ];
    for (column, url) in urls.iter().enumerate() {
        let location = Location::parse(url).unwrap();
        let opened = bucketfs::driver::open(&location, &OpenOptions::default())
            .await
            .unwrap();
        let has = opened.driver.capabilities();
        for (what, claimed) in [
            ("conditional writes", has.put_condition == Strength::Atomic),
            (
                "modes, owners, times, xattrs",
                has.attributes != AttributeSupport::None,
            ),
            ("links, fifos, sockets, devices", has.special_files),
            ("atomic rename of a file", has.rename),
            ("server-side copy", has.copy.is_some()),
            ("change feed", has.watch),
        ] {
            let row = rows.iter().find(|cells| cells[0] == what).unwrap();
            assert_eq!(row[column + 1] == "yes", claimed, "{what} of {url}");
        }
    }
    for driver in bucketfs::driver::DRIVERS {
        assert!(
            readme.contains(&format!("- **`{}:", driver.scheme)),
            "{}",
            driver.scheme
        );
    }
}

/// Names behind an arrow that are no tests.
fn missing_tests(markdown: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let named = markdown.split('→').skip(1).flat_map(|behind| {
        let behind = behind.split("\n").next().unwrap_or_default();
        spans(behind)
    });
    let missing = named.filter(|name| {
        let end = format!("::{name}");
        !tests.iter().any(|test| test.ends_with(&end))
    });
    missing
        .map(|name| format!("no test is called {name}"))
        .collect()
}

/// What begins these items of a list explains, and promises nothing that a test could hold.
const EXPLAINED: [&str; 3] = [
    "- The shell ignores what close says",
    "- With `--unsafe-writes` on a store without conditions",
    "- Access times change only when a program sets them",
];

/// Items of lists that name no test.
fn unheld(markdown: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    let mut inside = false;
    for line in markdown.lines() {
        if line.starts_with("- ") {
            items.push(line.to_owned());
            inside = true;
        } else if inside && line.starts_with("  ") {
            let item = items.last_mut().unwrap();
            item.push('\n');
            item.push_str(line);
        } else {
            inside = false;
        }
    }
    items.retain(|item| {
        !item.contains('→') && !EXPLAINED.iter().any(|begin| item.starts_with(begin))
    });
    let first = |item: &String| item.lines().next().unwrap_or_default().to_owned();
    items
        .iter()
        .map(|item| format!("no test holds: {}", first(item)))
        .collect()
}

#[test]
fn each_promise_names_the_tests_that_hold_it() {
    let document = text(SEMANTICS);
    complain(unheld(&document));
    for begin in EXPLAINED {
        assert!(document.contains(begin), "{begin} is explained no more");
    }
    let wrong = "- a promise\n  of two lines → `a::b`\n- another\n  one\n\ntext → `a::b`";
    assert_eq!(unheld(wrong), ["no test holds: - another"]);
}

#[test]
fn named_tests_exist() {
    let tests = tests();
    let document = text(SEMANTICS);
    assert!(document.matches('→').count() > 40);
    complain(missing_tests(&document, &tests));
    let wrong = "a promise → `keys::the_empty_key_is_no_object`, `keys::no_such_test`";
    assert_eq!(missing_tests(wrong, &tests).len(), 1);
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let plain = heading.trim_start_matches('#').trim().to_lowercase();
    plain
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// Links of a document that lead nowhere.
fn broken_links(document: &str, markdown: &str) -> Vec<String> {
    let here = root().join(document);
    let links = markdown
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    let broken = links
        .filter(|link| !link.starts_with("https://"))
        .filter(|link| {
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let content = match file {
                "" => Some(markdown.to_owned()),
                file => {
                    let path = here.parent().unwrap().join(file);
                    path.exists()
                        .then(|| fs::read_to_string(path).unwrap_or_default())
                }
            };
            !content.is_some_and(|content| {
                let mut headings = content.lines().filter(|line| line.starts_with('#'));
                fragment.is_empty() || headings.any(|heading| anchor(heading) == fragment)
            })
        });
    broken
        .map(|link| format!("{document}: {link} leads nowhere"))
        .collect()
}

/// Paths of this project in code spans that are not there.
fn missing_paths(document: &str, markdown: &str) -> Vec<String> {
    let paths = spans(markdown).into_iter().filter(|span| {
        let begins = ["src/", "tests/", "docs/", "systemd/"];
        let plain = |c: char| c.is_alphanumeric() || "/._-@".contains(c);
        begins.iter().any(|begin| span.starts_with(begin)) && span.chars().all(plain)
    });
    let missing = paths.filter(|path| !root().join(path).exists());
    missing
        .map(|path| format!("{document}: there is no {path}"))
        .collect()
}

#[test]
fn links_and_paths_lead_somewhere() {
    for document in DOCUMENTS {
        let markdown = text(document);
        complain(broken_links(document, &markdown));
        complain(missing_paths(document, &markdown));
    }
    let wrong = "[a](SEMANTICS.md#names) [b](SEMANTICS.md#nomes) [c](nowhere.md) [d](https://x.y)";
    assert_eq!(broken_links("docs/X.md", wrong).len(), 2);
    assert_eq!(
        missing_paths("X.md", "`src/fs.rs` `src/sf.rs` `src/*.rs`").len(),
        1
    );
}

/// Variables of the environment that nothing reads.
fn unread_variables(markdown: &str, sources: &str) -> Vec<String> {
    let words = markdown.split(|c: char| !(c.is_ascii_uppercase() || c == '_'));
    let variables = words.filter(|word| word.starts_with("BUCKETFS_") && word.len() > 9);
    let unread = variables.filter(|variable| {
        let option = variable["BUCKETFS_".len()..]
            .to_lowercase()
            .replace('_', "-");
        let known = OPTIONS.iter().any(|spec| spec.name == option) || option == "url";
        !known && !sources.contains(variable)
    });
    unread
        .map(|variable| format!("nothing reads {variable}"))
        .collect()
}

/// Commands that `bucketfs` does not have.
fn unknown_commands(markdown: &str, help: &str) -> Vec<String> {
    // Quoted messages are held to the source, and comments to nothing.
    let lines = markdown.lines().filter(|line| !line.starts_with("- `"));
    let lines = lines.map(|line| line.split(" # ").next().unwrap_or(line));
    let markdown = lines.collect::<Vec<_>>().join("\n");
    let code = spans(&markdown).join("\n");
    let called = code.match_indices("bucketfs ").filter_map(|(at, name)| {
        let is_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || "-_./\"".contains(c));
        let word = code[at + name.len()..].split_whitespace().next()?;
        let is_command = word.chars().all(|c| c.is_ascii_lowercase());
        (is_word && is_command).then(|| word.to_owned())
    });
    let unknown = called.filter(|word| !help.contains(&format!("\n  {word} ")));
    unknown
        .map(|word| format!("no command is called {word}"))
        .collect()
}

#[test]
fn variables_and_commands_exist() {
    let sources: String = sources().into_iter().map(|(_, code)| code).collect();
    let tests: String = files("tests", ".rs")
        .into_iter()
        .map(|(_, code)| code)
        .collect();
    let help = help("");
    for document in DOCUMENTS {
        let markdown = text(document);
        complain(unread_variables(&markdown, &(sources.clone() + &tests)));
        complain(unknown_commands(&markdown, &help));
    }
    assert_eq!(
        unread_variables("BUCKETFS_CACHE_DIR BUCKETFS_CASH_DIR", "").len(),
        1
    );
    assert_eq!(
        unknown_commands("`bucketfs status` `$ bucketfs dance`", &help).len(),
        1
    );
}

/// Nobody has to look into the source to see that a document is read at all.
#[test]
fn every_document_of_the_project_is_checked() {
    let mut there: Vec<String> = files("docs", ".md")
        .into_iter()
        .map(|(path, _)| path.display().to_string())
        .collect();
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        there.extend(
            Path::new(&name)
                .extension()
                .is_some_and(|e| e == "md")
                .then_some(name),
        );
    }
    there.sort();
    let mut checked = DOCUMENTS.to_vec();
    checked.sort_unstable();
    assert_eq!(there, checked);
}
