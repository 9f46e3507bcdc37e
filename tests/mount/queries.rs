//! Queries as directories, as programs see them.

use crate::harness::{Mount, PYTHON, Place, Program, Variable, eventually, fails, trial};
use crate::mongodb::{self, Database, RUNTIME};
use crate::redis::{ALLOWED, SERVER, Server};
use crate::rethinkdb;
use ::mongodb::bson::doc;
use libtest_mimic::Trial;
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

pub fn trials() -> Vec<Trial> {
    let usual = |name: &str, test: fn(&Place)| trial(&[], name, test);
    vec![
        usual(
            "queries::the_session_of_the_readme_is_true",
            the_session_of_the_readme_is_true,
        ),
        usual("queries::files_are_found", files_are_found),
        usual("queries::memory_is_found", memory_is_found),
        trial(
            &[ALLOWED, SERVER],
            "queries::redis_is_found",
            redis_is_found,
        ),
        trial(
            &[Variable(mongodb::ADDRESS)],
            "queries::mongodb_is_found",
            mongodb_is_found,
        ),
        usual("queries::rethinkdb_is_found", rethinkdb_is_found),
        trial(
            &[Program("rsync")],
            "queries::programs_walk_past_them",
            programs_walk_past_them,
        ),
        usual(
            "queries::nothing_is_written_there",
            nothing_is_written_there,
        ),
        usual(
            "queries::a_term_that_is_none_says_why",
            a_term_that_is_none_says_why,
        ),
        usual(
            "queries::they_can_be_done_without",
            they_can_be_done_without,
        ),
        trial(
            &[PYTHON],
            "queries::a_killed_listing_ends",
            a_killed_listing_ends,
        ),
    ]
}

fn the_session_of_the_readme_is_true(place: &Place) {
    place.session("query", &[]);
}

fn names(mount: &Mount, query: &str) -> Vec<String> {
    let entries = fs::read_dir(mount.path(query)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// What two documents of three are found by, through links that lead to them.
fn are_found(mount: &Mount, directory: &str) {
    let all = format!("{directory}%2Fada.json {directory}%2Fben.json");
    let all: Vec<&str> = all.split(' ').collect();
    assert_eq!(names(mount, ".query/at=London"), all);
    assert_eq!(names(mount, ".query/at=London/name=Ada"), all[..1]);
    assert_eq!(names(mount, ".query/name=Ada/at=Ulm"), [""; 0]);
    assert_eq!(names(mount, ".query"), [""; 0]);
    let link = format!(".query/at=London/name=Ada/{}", all[0]);
    let target = fs::read_link(mount.path(&link)).unwrap();
    assert_eq!(target, Path::new(&format!("../../../{directory}/ada.json")));
    let told = fs::symlink_metadata(mount.path(&link)).unwrap();
    assert_eq!(told.len(), target.as_os_str().len() as u64);
    let text = fs::read_to_string(mount.path(&link)).unwrap();
    assert!(text.contains("Ada"), "{text}");
    let other = format!(".query/at=London/{directory}%2Fcyd.json");
    assert_eq!(fails(fs::read_link(mount.path(&other))), libc::ENOENT);
    // An edit through a link is one of the document, and ends the match.
    fs::write(mount.path(&link), text.replace("London", "Paris")).unwrap();
    assert_eq!(names(mount, ".query/at=London/name=Ada"), [""; 0]);
    assert_eq!(names(mount, ".query/at=Paris"), all[..1]);
    eventually("the link is gone", || {
        fs::symlink_metadata(mount.path(&link)).is_err()
    });
    assert_eq!(names(mount, ""), [directory]);
}

const DOCUMENTS: [(&str, &str); 3] = [
    ("ada", "{\"name\": \"Ada\", \"at\": \"London\"}\n"),
    ("ben", "{\"name\": \"Ben\", \"at\": \"London\"}\n"),
    ("cyd", "{\"name\": \"Cyd\", \"at\": \"Ulm\"}\n"),
];

fn fill(mount: &Mount) {
    fs::create_dir(mount.path("users")).unwrap();
    for (name, text) in DOCUMENTS {
        fs::write(mount.path(&format!("users/{name}.json")), text).unwrap();
    }
}

fn files_are_found(place: &Place) {
    let mount = place.file("m", &[]);
    fill(&mount);
    are_found(&mount, "users");
}

fn memory_is_found(place: &Place) {
    let mount = place.memory("m", &[]);
    fill(&mount);
    are_found(&mount, "users");
}

fn redis_is_found(place: &Place) {
    let server = Server::start(place, &[]);
    for (name, at) in [("Ada", "London"), ("Ben", "London"), ("Cyd", "Ulm")] {
        let key = format!("users:{}", name.to_lowercase());
        server.ask(&["hset", &key, "name", name, "at", at]);
    }
    let url = server.url("/0?separator=:");
    let mount = place.mount("m", &url, &[], true);
    are_found(&mount, "users");
}

fn mongodb_is_found(place: &Place) {
    let database = Database::new();
    let users = database.collection("users");
    let documents = [("Ada", "London"), ("Ben", "London"), ("Cyd", "Ulm")];
    let documents =
        documents.map(|(name, at)| doc! { "_id": name.to_lowercase(), "name": name, "at": at });
    let inserted = async { users.insert_many(documents).await };
    RUNTIME.block_on(inserted).unwrap();
    let mount = place.mount("m", &database.url(""), &[], true);
    are_found(&mount, "users");
}

fn rethinkdb_is_found(place: &Place) {
    let server = rethinkdb::Server::start();
    server.make("d", "users", "id");
    for (name, at) in [("Ada", "London"), ("Ben", "London"), ("Cyd", "Ulm")] {
        let document = json!({"id": name.to_lowercase(), "name": name, "at": at});
        server.put("d", "users", document);
    }
    let mount = place.mount("m", &server.url("/d"), &[], true);
    are_found(&mount, "users");
    let mount = place.mount("all", &server.url(""), &[], true);
    assert_eq!(names(&mount, ".query/at=London"), ["d%2Fusers%2Fben.json"]);
    let link = mount.path(".query/at=London/d%2Fusers%2Fben.json");
    let text = fs::read_to_string(link).unwrap();
    assert!(text.contains("Ben"), "{text}");
    assert_eq!(names(&mount, ""), ["d"]);
}

fn programs_walk_past_them(place: &Place) {
    let mount = place.file("m", &[]);
    fill(&mount);
    names(&mount, ".query/at=London");
    let shell = |script: &str| {
        let mut shell = Command::new("bash");
        place.settle(&mut shell);
        shell.current_dir(mount.path(""));
        let said = place.run(shell.args(["-ec", script]));
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said:?}");
        said.stdout
    };
    let copy = place.path("copy");
    let copy = copy.to_str().unwrap();
    assert_eq!(shell("find . -mindepth 1 | wc -l").trim(), "4");
    assert_eq!(
        shell("ls -A; echo .*; shopt -s dotglob; echo *"),
        "users\n.*\nusers\n"
    );
    shell(&format!(
        "cp -r . {copy}; rsync -a ./ {copy}2/; tar cf {copy}.tar ."
    ));
    assert_eq!(
        shell(&format!("ls -A {copy} {copy}2 | grep -c query || true")),
        "0\n"
    );
    assert_eq!(shell(&format!("tar tf {copy}.tar | wc -l")).trim(), "5");
    // Links are followed where a program is told to, and lead nowhere else.
    assert_eq!(
        shell("grep -l Ulm .query/at=Ulm/*"),
        ".query/at=Ulm/users%2Fcyd.json\n"
    );
    assert_eq!(
        shell("grep -Rl Ulm .query/at=Ulm"),
        ".query/at=Ulm/users%2Fcyd.json\n"
    );
    assert_eq!(
        shell(&format!("cp -rL .query/at=London {copy}3; cat {copy}3/*")),
        format!("{}{}", DOCUMENTS[0].1, DOCUMENTS[1].1)
    );
    assert_eq!(
        shell("cd .query/at=London; realpath --relative-to=$PWD/../.. *"),
        "users/ada.json\nusers/ben.json\n"
    );
    assert_eq!(shell("rm -r * && ls -A | wc -l").trim(), "0");
    assert!(mount.path(".query/at=London").exists());
}

fn nothing_is_written_there(place: &Place) {
    let mount = place.file("m", &[]);
    fill(&mount);
    let query = mount.path(".query/at=Ulm");
    let link = query.join("users%2Fcyd.json");
    assert!(link.exists());
    for path in [
        query.join("new"),
        mount.path(".query/new"),
        query.join("a=b/new"),
    ] {
        assert_eq!(fails(fs::write(&path, "x")), libc::EROFS);
        assert_eq!(fails(fs::create_dir(&path)), libc::EROFS);
        assert_eq!(fails(symlink("x", &path)), libc::EROFS);
        assert_eq!(
            fails(fs::rename(mount.path("users/ada.json"), &path)),
            libc::EROFS
        );
    }
    assert_eq!(fails(fs::remove_file(&link)), libc::EROFS);
    assert_eq!(fails(fs::rename(&link, mount.path("x"))), libc::EROFS);
    assert_eq!(fails(fs::remove_dir(&query)), libc::EROFS);
    assert_eq!(fails(fs::remove_dir(mount.path(".query"))), libc::EROFS);
    assert_eq!(
        fails(fs::rename(mount.path(".query"), mount.path("x"))),
        libc::EROFS
    );
    assert_eq!(
        fails(fs::rename(mount.path("users"), mount.path(".query"))),
        libc::EROFS
    );
    assert_eq!(fails(fs::create_dir(mount.path(".query"))), libc::EEXIST);
    assert_eq!(fails(fs::write(mount.path(".query"), "x")), libc::EISDIR);
    let mut rm = Command::new("rm");
    let said = place.run(rm.args(["-rf", mount.path(".query").to_str().unwrap()]));
    assert!(said.stderr.contains("Read-only file system"), "{said:?}");
    assert_eq!(names(&mount, "users").len(), 3);
    let mut why = place.command(&["why", query.join("new").to_str().unwrap()]);
    let said = place.run(&mut why);
    assert!(
        said.stdout.contains("queries only lead to documents"),
        "{said:?}"
    );
}

fn a_term_that_is_none_says_why(place: &Place) {
    let mount = place.file("m", &[]);
    fill(&mount);
    let wrong = mount.path(".query/at=Ulm/=x");
    assert_eq!(fails(fs::read_dir(&wrong)), libc::EINVAL);
    let said = place.run(&mut place.command(&["why", wrong.to_str().unwrap()]));
    assert!(
        said.stdout
            .contains("\"=x\" names no field; write FIELD=VALUE"),
        "{said:?}"
    );
    assert_eq!(fails(fs::read_dir(mount.path(".query/name"))), libc::ENOENT);
    let query = mount.path(".query/at=Ulm");
    let said = place.run(&mut place.command(&["find", query.to_str().unwrap(), "name=Cyd"]));
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(
        said.stderr
            .contains("is a query itself; give its terms behind"),
        "{said:?}"
    );
    assert_eq!(
        fails(fs::read_dir(
            mount.path(&format!(".query/a={}", "x".repeat(254)))
        )),
        libc::ENAMETOOLONG
    );
}

fn they_can_be_done_without(place: &Place) {
    let mount = place.file("m", &["--no-query"]);
    fill(&mount);
    assert_eq!(fails(fs::read_dir(mount.path(".query"))), libc::ENOENT);
    fs::create_dir(mount.path(".query")).unwrap();
    fs::write(mount.path(".query/at=Ulm"), "a file").unwrap();
    assert_eq!(names(&mount, ""), [".query", "users"]);
    // What the store has is shown by any mount, and can be removed there.
    let other = place.file("other", &[]);
    assert_eq!(names(&other, ".query"), ["at=Ulm"]);
    assert_eq!(fs::read(other.path(".query/at=Ulm")).unwrap(), b"a file");
    fs::remove_dir_all(other.path(".query")).unwrap();
    eventually("queries are there", || {
        other.path(".query/at=Ulm/users%2Fcyd.json").exists()
    });
}

fn a_killed_listing_ends(place: &Place) {
    let mount = place.faulty("m", "get:delay=20s", &["--deadline", "60s"]);
    for (name, text) in DOCUMENTS {
        place.store(name, text.as_bytes());
    }
    let script = "
import subprocess, time
child = subprocess.Popen(['ls', sys.argv[1]])
time.sleep(1)
child.kill()
begun = time.time()
child.wait()
say('gone' if time.time() - begun < 5 else 'late')";
    assert_eq!(
        place.script(script, &[&mount.path(".query/at=London")]),
        "gone"
    );
    eventually("no handle is left", || mount.status()["fs"]["handles"] == 0);
}
