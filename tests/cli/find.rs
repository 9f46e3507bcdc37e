//! Finding documents: what is printed, the exit code, and what is left in the store.

use crate::harness::{Place, Said, end, eventually, finish, has_program, kill, no_fuse};
use crate::{anywhere, unless};
use libtest_mimic::Trial;
use rustix::process::Signal;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::process::{Child, Command};

pub fn trials() -> Vec<Trial> {
    let missing = no_fuse();
    let mut trials: Vec<Trial> = [
        ("find::matches_are_printed", matches_are_printed as fn()),
        ("find::wrong_questions", wrong_questions),
        ("find::what_is_found_is_removed", what_is_found_is_removed),
        ("find::a_store_is_watched", a_store_is_watched),
        ("find::what_cannot_be_read_is_told", what_cannot_be_read),
        ("find::faults_are_one_line", faults_are_one_line),
        ("find::a_reader_that_goes_ends_it", a_reader_that_goes),
        ("find::the_session_of_the_readme_is_true", the_session),
    ]
    .into_iter()
    .map(|(name, test)| anywhere(name, test))
    .collect();
    let no_script = (!has_program("script")).then_some("needs script");
    trials.extend([
        unless(
            no_script,
            "find::removing_asks_on_a_terminal",
            removing_asks,
        ),
        unless(missing, "find::a_mount_is_searched", a_mount_is_searched),
        unless(missing, "find::a_mount_is_watched", a_mount_is_watched),
    ]);
    trials
}

const FILES: &[(&str, &str)] = &[
    (
        "users/ada.json",
        "{\n  \"name\": \"Ada\",\n  \"born\": 1815,\n  \"at\": {\"city\": \"London\", \"zip\": [1, 2]}\n}\n",
    ),
    (
        "users/ben.json",
        r#"{"born": 1815.0, "name": "Ben", "on": true}"#,
    ),
    ("users/carl", r#"{"name": "Carl", "born": "1815"}"#),
    ("list.json", r#"[{"name": "Ada"}]"#),
    ("number", "1815"),
    ("odd\nname.json", r#"{"odd": null}"#),
    ("text.json", "name=Ada"),
    ("empty.json", ""),
];

/// A folder of documents, and its URL.
fn folder(place: &Place) -> String {
    for (name, text) in FILES {
        let path = place.path("store").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    symlink("{}", place.path("store").join("link")).unwrap();
    format!("file://{}", place.text("store"))
}

fn expect(said: &Said, code: i32, stdout: &str, stderr: &str) {
    assert_eq!(
        (said.code, said.stdout.as_str(), said.stderr.as_str()),
        (Some(code), stdout, stderr),
        "{said:?}"
    );
}

fn matches_are_printed() {
    let place = Place::new();
    let url = folder(&place);
    let find = |args: &[&str], code: i32, stdout: &str| {
        let said = place.run(&[&["find", &url], args].concat());
        expect(&said, code, stdout, "");
    };
    find(&["name=Ada"], 0, "users/ada.json\n");
    find(&["born=1815"], 0, "users/ada.json\nusers/ben.json\n");
    find(&["born=1815", "on=true"], 0, "users/ben.json\n");
    find(&["born=\"1815\""], 0, "users/carl\n");
    find(&["at.city=London"], 0, "users/ada.json\n");
    find(&["at.zip=[1,2]"], 0, "users/ada.json\n");
    find(&["at.zip.1=2"], 0, "users/ada.json\n");
    find(&["0.name=Ada"], 0, "list.json\n");
    find(
        &["--json", r#"{"at": {"zip": [1, 2], "city": "London"}}"#],
        0,
        "users/ada.json\n",
    );
    find(
        &["--json", r#"{"born": 1815}"#, "name=Ben"],
        0,
        "users/ben.json\n",
    );
    find(&["name=Dora"], 1, "");
    find(&["nobody=null"], 1, "");
    find(&["name=Ada", "on=true"], 1, "");
    find(&["--first", "born=1815"], 0, "users/ada.json\n");
    find(&["--count", "born=1815"], 0, "2\n");
    find(&["--count", "name=Dora"], 1, "0\n");
    find(
        &["--keys", "--prefix", "users/", "name=Ada"],
        0,
        "ada.json\n",
    );
    find(&["-0", "odd=null"], 0, "odd\nname.json\0");
    find(
        &["--json-out", "born=1815"],
        0,
        "{\"key\":\"users/ada.json\",\"document\":{\"name\":\"Ada\",\"born\":1815,\"at\":{\"city\":\"London\",\"zip\":[1,2]}}}\n\
         {\"key\":\"users/ben.json\",\"document\":{\"born\":1815.0,\"name\":\"Ben\",\"on\":true}}\n",
    );
    find(
        &["--json", "{}"],
        0,
        "list.json\nnumber\nodd\nname.json\nusers/ada.json\nusers/ben.json\nusers/carl\n",
    );
    // The URL may be elsewhere.
    let mut command = place.command(&["find", "name=Ada"]);
    command.env("BUCKETFS_URL", &url);
    expect(&finish(command), 0, "users/ada.json\n", "");
    let mut command = place.command(&["find", "--count", "--json", "{}"]);
    command.env("BUCKETFS_URL", &url);
    expect(&finish(command), 0, "6\n", "");
    expect(&place.run(&["find", "memory:", "--json", "{}"]), 1, "", "");
}

fn wrong_questions() {
    let place = Place::new();
    let url = folder(&place);
    let refused = |args: &[&str], line: &str| {
        let said = place.run(&[&["find"], args].concat());
        expect(&said, 2, "", &format!("bucketfs: {line}\n"));
    };
    refused(
        &[&url],
        "say what to find, as FIELD=VALUE; --json '{}' finds every document",
    );
    refused(
        &[&url, "name"],
        "\"name\" is no term; write FIELD=VALUE, such as name=ada or address.zip=1010",
    );
    refused(
        &[&url, "=x"],
        "\"=x\" names no field; write FIELD=VALUE, such as name=ada or address.zip=1010",
    );
    refused(
        &[&url, "--json", "[]"],
        "the query is no JSON object: invalid type: sequence, expected a map at line 1 column 0; write it like {\"name\": \"ada\", \"address.zip\": 1010}",
    );
    refused(
        &[&url, "a=1", "--watch", "--interval", "soon"],
        "--interval: \"soon\" is no duration; write it like 2, 500ms or 5m (a number alone is seconds)",
    );
    refused(
        &[&url, "a=1", "--delete"],
        "--delete asks on a terminal, and there is none; --yes removes without asking",
    );
    refused(
        &["gopher://x", "a=1"],
        &format!(
            "no driver for \"gopher\" URLs; there are drivers for {}",
            bucketfs::driver::DRIVERS
                .iter()
                .map(|driver| driver.scheme)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    );
    let dir = place.text("store");
    refused(
        &[&dir, "a=1"],
        &format!(
            "{dir} is neither a URL nor in a bucketfs mount; bucketfs drivers lists the URLs, and bucketfs status the mounts"
        ),
    );
    refused(
        &["a=1"],
        "no URL: give it before the directory, in BUCKETFS_URL or as \"url\" in --config FILE",
    );
    let missing = format!("file://{}", place.text("nothing"));
    let said = place.run(&["find", &missing, "a=1"]);
    assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""), "{said:?}");
    assert!(
        said.stderr.starts_with("bucketfs: cannot open file://")
            && said.stderr.lines().count() == 1,
        "{said:?}"
    );
    for args in [
        &["--count", "--keys"][..],
        &["--watch", "--delete"],
        &["--json-out", "-0"],
        &["--yes"],
        &["--interval", "1s"],
    ] {
        let said = place.run(&[&["find", &url, "a=1"], args].concat());
        assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""), "{said:?}");
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
    }
}

fn what_is_found_is_removed() {
    let place = Place::new();
    let url = folder(&place);
    let find = |args: &[&str]| place.run(&[&["find", &url, "--delete", "--yes"], args].concat());
    expect(&find(&["name=Dora"]), 1, "", "");
    expect(&find(&["--first", "born=1815"]), 0, "users/ada.json\n", "");
    expect(&find(&["--count", "born=1815"]), 0, "1\n", "");
    expect(&find(&["born=1815"]), 1, "", "");
    let left = place.run(&["find", &url, "--json", "{}"]);
    expect(
        &left,
        0,
        "list.json\nnumber\nodd\nname.json\nusers/carl\n",
        "",
    );
    assert_eq!(
        fs::read(place.path("store/text.json")).unwrap(),
        b"name=Ada"
    );
    let said = place.run(&[
        "find",
        &url,
        "--read-only",
        "--delete",
        "--yes",
        "name=Carl",
    ]);
    let told = (said.code, said.stdout.as_str());
    assert_eq!(told, (Some(2), "users/carl\n"), "{said:?}");
    assert!(place.path("store/users/carl").exists());
    // Numbers that no machine word holds are others when their last digit is.
    for n in [0, 1] {
        let text = format!("{{\"id\": 1234567890123456789{n}}}");
        fs::write(place.path("store").join(format!("id{n}")), text).unwrap();
    }
    expect(&find(&["id=12345678901234567891"]), 0, "id1\n", "");
    assert!(place.path("store/id0").exists());
    expect(&find(&["id=1.234567890123456789e19"]), 0, "id0\n", "");
    // With a fault that stands for somebody else who is quicker.
    let said = find(&["--fault", "delete:error=changed", "name=Carl"]);
    expect(
        &said,
        2,
        "users/carl\n",
        "bucketfs: \"users/carl\": somebody else changed the document since it was found; it stays\n\
         bucketfs: 1 of 1 document that matched changed since, and stayed\n",
    );
}

/// Runs a command on a terminal of its own, and types an answer.
fn on_a_terminal(place: &Place, args: &str, answer: &str) -> Said {
    let command = place.command(&[]);
    let program = command.get_program().to_str().unwrap().to_owned();
    let mut script = Command::new("script");
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    let line = format!("{program} find {args}");
    script
        .args(["-qec", &line, "/dev/null"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = script.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, answer.as_bytes()).unwrap();
    let said = end(child);
    drop(input);
    said
}

fn removing_asks() {
    let place = Place::new();
    let url = folder(&place);
    let asked = "remove 2 documents? [y/N]";
    let said = on_a_terminal(&place, &format!("{url} --delete born=1815"), "n\n");
    assert!(said.stdout.contains(asked), "{said:?}");
    assert!(place.path("store/users/ada.json").exists());
    assert!(place.path("store/users/ben.json").exists());
    let said = on_a_terminal(&place, &format!("{url} --delete born=1815"), "y\n");
    assert!(said.stdout.contains(asked), "{said:?}");
    assert!(said.stdout.contains("users/ada.json"), "{said:?}");
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!place.path("store/users/ada.json").exists());
    assert!(!place.path("store/users/ben.json").exists());
    assert!(place.path("store/users/carl").exists());
    let said = on_a_terminal(
        &place,
        &format!("{url} --delete --json-out name=Carl"),
        "y\n",
    );
    let line = "{\"key\":\"users/carl\",\"document\":{\"name\":\"Carl\",\"born\":\"1815\"}}";
    assert!(said.stdout.contains(line), "{said:?}");
    assert!(!place.path("store/users/carl").exists());
}

/// A command that goes on, and its lines.
struct Watching {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Watching {
    fn new(place: &Place, args: &[&str]) -> Watching {
        let mut child = place.command(args).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Watching { child, lines }
    }

    /// The next line; a test that waits for ever is ended by whoever runs it.
    fn next(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn a_store_is_watched() {
    let place = Place::new();
    let url = folder(&place);
    let mut watching = Watching::new(&place, &["find", &url, "--watch", "on=true"]);
    assert_eq!(watching.next(), "users/ben.json\n");
    fs::write(place.path("store/no.json"), r#"{"on": false}"#).unwrap();
    fs::write(place.path("store/new.json"), r#"{"on": true}"#).unwrap();
    assert_eq!(watching.next(), "new.json\n");
    fs::write(place.path("store/no.json"), r#"{"on": true, "now": 1}"#).unwrap();
    assert_eq!(watching.next(), "no.json\n");
    drop(watching);
    // The first that comes ends it.
    let mut first = Watching::new(&place, &["find", &url, "--watch", "--first", "done=true"]);
    std::thread::sleep(std::time::Duration::from_millis(100));
    fs::write(place.path("store/job.json"), r#"{"done": true}"#).unwrap();
    assert_eq!(first.next(), "job.json\n");
    assert_eq!(first.child.wait().unwrap().code(), Some(0));
}

fn what_cannot_be_read() {
    let place = Place::new();
    let url = folder(&place);
    let said = place.run(&["find", &url, "--fault", "get:error=denied@2", "born=1815"]);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert_eq!(said.stdout, "users/ada.json\nusers/ben.json\n");
    let lines: Vec<&str> = said.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{said:?}");
    assert!(lines[0].starts_with("bucketfs: get \""), "{said:?}");
    assert_eq!(lines[1], "bucketfs: 1 object could not be looked at");
}

fn faults_are_one_line() {
    let place = Place::new();
    let url = folder(&place);
    for fault in ["list:error=unreachable", "get:error=unreachable"] {
        let args = ["find", &url, "--retries", "0", "--fault", fault, "name=Ada"];
        let said = place.run(&args);
        assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""), "{said:?}");
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
        assert!(
            said.stderr.starts_with(&format!("bucketfs: {url}: ")),
            "{said:?}"
        );
    }
}

fn a_reader_that_goes() {
    let place = Place::new();
    let url = folder(&place);
    let mut command = place.command(&["find", &url, "--json", "{}"]);
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
}

/// The commands of the session give what it shows.
fn the_session() {
    let place = Place::new();
    let readme = include_str!("../../README.md");
    let session = readme
        .split("<!-- session: find -->\n```console\n")
        .nth(1)
        .unwrap();
    let session = session.split("```").next().unwrap();
    let (mut commands, mut expected) = (String::new(), String::new());
    for line in session.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => commands += &format!("{command}\n"),
            None => expected += &format!("{line}\n"),
        }
    }
    assert!(commands.lines().count() >= 5);
    let commands = commands.replace("bucketfs ", &format!("{} ", crate::harness::BINARY));
    let mut shell = Command::new("bash");
    crate::harness::without_settings(&mut shell);
    shell
        .args(["-ec", &commands])
        .current_dir(place.path("."))
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    expect(&finish(shell), 0, &expected, "");
}

fn a_mount_is_searched() {
    let place = Place::new();
    place.mount(&[]);
    let mnt = place.text("mnt");
    for (name, text) in FILES {
        let path = place.mnt().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let find = |args: &[&str], code: i32, stdout: &str| {
        let said = place.run(&[&["find"], args].concat());
        expect(&said, code, stdout, "");
    };
    find(&[&mnt, "name=Ada"], 0, &format!("{mnt}/users/ada.json\n"));
    let users = place.text("mnt/users");
    find(
        &[&users, "born=1815"],
        0,
        &format!("{users}/ada.json\n{users}/ben.json\n"),
    );
    find(
        &[&users, "--keys", "--first", "born=1815"],
        0,
        "users/ada.json\n",
    );
    find(
        &[&mnt, "0.name=Ada", "--json-out"],
        0,
        "{\"key\":\"list.json\",\"document\":[{\"name\":\"Ada\"}]}\n",
    );
    find(&[&mnt, "name=Dora"], 1, "");
    find(&[&mnt, "--count", "--json", "{}"], 0, "6\n");
    find(
        &[&users, "--delete", "--yes", "born=1815"],
        0,
        &format!("{users}/ada.json\n{users}/ben.json\n"),
    );
    eventually("the files have gone", || {
        !place.path("mnt/users/ada.json").exists() && !place.path("mnt/users/ben.json").exists()
    });
    assert!(place.path("mnt/users/carl").exists());
    let file = place.text("mnt/number");
    find(&[&file, "a=1"], 1, "");
}

fn a_mount_is_watched() {
    let place = Place::new();
    let pid = place.mount(&[]);
    let mnt = place.text("mnt");
    let mut watching = Watching::new(&place, &["find", &mnt, "--watch", "on=true"]);
    // It may begin before this is written or later.
    fs::write(place.path("mnt/a.json"), r#"{"on": true}"#).unwrap();
    assert_eq!(watching.next(), format!("{mnt}/a.json\n"));
    fs::write(place.path("mnt/b.json"), r#"{"on": true}"#).unwrap();
    assert_eq!(watching.next(), format!("{mnt}/b.json\n"));
    // Others are served beside it, and its end is told.
    assert_eq!(place.pid(), pid);
    kill(pid, Signal::KILL);
    assert_eq!(watching.next(), "");
    assert_eq!(watching.child.wait().unwrap().code(), Some(2));
    let mut said = String::new();
    watching
        .child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(
        said.starts_with("bucketfs: the daemon does not answer: "),
        "{said}"
    );
}
