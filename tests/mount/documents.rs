//! What programs keep in Redis, as files and documents.

use crate::harness::{PYTHON, Place, eventually, fails, trial};
use crate::redis::{ALLOWED, SERVER, Server, read, refusal};
use libtest_mimic::Trial;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::process::Command;

pub fn trials() -> Vec<Trial> {
    let usual = |name: &str, test: fn(&Place)| trial(&[ALLOWED, SERVER], name, test);
    let python = &[ALLOWED, SERVER, PYTHON];
    vec![
        usual(
            "documents::the_session_of_the_readme_is_true",
            the_session_of_the_readme_is_true,
        ),
        usual(
            "documents::what_others_change_is_pushed",
            what_others_change_is_pushed,
        ),
        usual(
            "documents::edits_keep_the_kind_and_the_time_to_live",
            edits_keep_the_kind_and_the_time_to_live,
        ),
        usual(
            "documents::a_file_renamed_over_a_key_gets_its_time_to_live",
            a_file_renamed_over_a_key_gets_its_time_to_live,
        ),
        usual(
            "documents::a_document_renamed_over_a_key_gets_its_kind",
            a_document_renamed_over_a_key_gets_its_kind,
        ),
        usual(
            "documents::a_key_that_is_moved_away_and_written_anew_is_what_it_was",
            a_key_that_is_moved_away_and_written_anew_is_what_it_was,
        ),
        usual(
            "documents::a_score_is_what_the_server_takes",
            a_score_is_what_the_server_takes,
        ),
        usual(
            "documents::edits_of_different_fields_are_both_kept",
            edits_of_different_fields_are_both_kept,
        ),
        usual(
            "documents::two_who_count_one_field_up_have_counted_two",
            two_who_count_one_field_up_have_counted_two,
        ),
        trial(
            python,
            "documents::what_is_no_document_is_refused_and_kept",
            what_is_no_document_is_refused_and_kept,
        ),
        usual(
            "documents::the_server_looks_for_fields",
            the_server_looks_for_fields,
        ),
        usual(
            "documents::databases_are_directories",
            databases_are_directories,
        ),
    ]
}

/// The commands of the session give what it shows.
fn the_session_of_the_readme_is_true(place: &Place) {
    let server = Server::start(place, &[]);
    let client = format!("redis-cli -p {}", server.port);
    place.session(
        "redis",
        &[
            ("redis://127.0.0.1/", &server.url("/")),
            ("redis-cli", &client),
        ],
    );
}

/// What does not match is not sent, whatever it is; and what is sent is compared as it is shown.
fn the_server_looks_for_fields(place: &Place) {
    let server = Server::start(place, &[]);
    let fill = "for i = 1, 1000 do \
        redis.call('HSET', 'user:' .. i, 'name', 'n' .. i % 100, 'bio', string.rep('x', 1000)) \
        redis.call('SET', 'text:' .. i, '{\"name\": [\"n7\"], \"bio\": \"' .. string.rep('x', 1000) .. '\"}') \
        end \
        redis.call('SET', 'text', '{\"name\": \"n7\", \"at\": [1, {\"x\": true}]}') \
        redis.call('SET', 'blob', string.rep('z', 1000000)) \
        redis.call('RPUSH', 'list', 'n7', '2') \
        redis.call('ZADD', 'scores', 3, 'n7') \
        redis.call('HSET', 'binary', 'b', '\\255', '\\254', 'c')";
    server.ask(&["eval", fill, "0"]);
    let sent = || -> u64 {
        let info = server.ask(&["info", "stats"]);
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix("total_net_output_bytes:"));
        line.unwrap().trim().parse().unwrap()
    };
    let find = |args: &[&str]| {
        let mut command = place.command(&["find", &server.url("/0")]);
        let said = place.run(command.args(args));
        assert_eq!(said.stderr, "", "{said:?}");
        (said.code, said.stdout)
    };
    let before = sent();
    let (code, found) = find(&["name=n7"]);
    assert_eq!((code, found.lines().count()), (Some(0), 11), "{found}");
    assert!(found.contains("\nuser:107.json\n") && found.starts_with("text\n"));
    // Two thousand values are more than 2 MB; their names are less than 100 kB.
    assert!(sent() - before < 200_000, "{} bytes", sent() - before);
    for (query, wanted) in [
        (r#"{"at.1.x": true}"#, "text\n"),
        (r#"{"at": [1, {"x": true}]}"#, "text\n"),
        (r#"{"0": "n7", "1": "2"}"#, "list.json\n"),
        (r#"{"n7": 3}"#, "scores.json\n"),
        (r#"{"b": {"$binary": "/w=="}}"#, "binary.json\n"),
        (r#"{"$binary:/g==": "c"}"#, "binary.json\n"),
    ] {
        assert_eq!(
            find(&["--json", query]),
            (Some(0), wanted.into()),
            "{query}"
        );
    }
    assert_eq!(find(&["n7=\"3\""]), (Some(1), String::new()));
    // No document holds what is no text, and nobody's reader fails at it.
    for term in ["name=\"\\ud800\"", "name={\"x\":\"\\ud800\"}", "name=1e999"] {
        assert_eq!(find(&[term]), (Some(1), String::new()), "{term}");
    }
    assert_eq!(find(&["--count", "name.0=n7"]), (Some(0), "1000\n".into()));
    let removed = find(&["--delete", "--yes", "at.1.x=true"]);
    assert_eq!(removed, (Some(0), "text\n".into()));
    assert_eq!(server.ask(&["exists", "text"]), "0");
}

fn what_others_change_is_pushed(place: &Place) {
    let server = Server::start(place, &[]);
    server.ask(&["set", "k", "old"]);
    let (data, objects) = (
        server.mount("d", "/0"),
        server.mount("o", "/1?layout=objects"),
    );
    assert_eq!(read(&data, "k"), "old");
    assert!(!data.path("new").exists() && !data.path("h.json").exists());
    server.ask(&["set", "k", "a longer one"]);
    server.ask(&["set", "new", "x"]);
    server.ask(&["hset", "h", "f", "v"]);
    eventually("the new size is seen", || {
        fs::metadata(data.path("k")).unwrap().len() == 12
    });
    eventually("the new names are seen", || {
        data.path("new").exists() && data.path("h.json").exists()
    });
    assert_eq!(read(&data, "k"), "a longer one");
    server.ask(&["del", "k"]);
    eventually("the removal is seen", || !data.path("k").exists());
    server.ask(&["set", "new", "x", "px", "50"]);
    eventually("the end of its time is seen", || !data.path("new").exists());
    let other = server.mount("p", "/1?layout=objects");
    assert!(!other.path("f").exists());
    fs::write(objects.path("f"), "one").unwrap();
    eventually("another mount's file is seen", || other.path("f").exists());
    server.ask(&["flushall"]);
    eventually("nothing is left", || {
        !other.path("f").exists() && !data.path("h.json").exists()
    });
}

fn edits_keep_the_kind_and_the_time_to_live(place: &Place) {
    let server = Server::start(place, &[]);
    for words in [
        &["hset", "hash", "a", "1", "b", "2"][..],
        &["rpush", "list", "x", "y"],
        &["sadd", "set", "x", "y"],
        &["zadd", "zset", "1", "x", "2.5", "y"],
        &["set", "text", "old"],
        &["xadd", "stream", "1-1", "f", "v"],
    ] {
        server.ask(words);
    }
    for key in ["hash", "list", "set", "zset", "text"] {
        server.ask(&["expire", key, "1000"]);
    }
    let mount = server.mount("m", "/0");
    for (key, text) in [
        ("hash", "{\"a\": \"9\", \"c\": 3}"),
        ("list", "[\"z\"]"),
        ("set", "[\"y\", \"z\"]"),
        ("zset", "{\"y\": 7}"),
    ] {
        let name = format!("{key}.json");
        // In place, by a new file renamed over it, and with the old one moved away first.
        fs::write(mount.path(&name), text).unwrap();
        fs::write(mount.path("new"), text).unwrap();
        fs::rename(mount.path("new"), mount.path(&name)).unwrap();
        fs::rename(mount.path(&name), mount.path("old~")).unwrap();
        fs::write(mount.path(&name), text).unwrap();
        assert_eq!(server.ask(&["type", key]), key);
        let left: i64 = server.ask(&["ttl", key]).parse().unwrap();
        assert!((1..=1000).contains(&left), "{key} lives for {left}");
    }
    fs::write(mount.path("text"), "new").unwrap();
    assert_eq!(
        (
            server.ask(&["get", "text"]).as_str(),
            server.ask(&["ttl", "text"]) != "-1"
        ),
        ("new", true)
    );
    assert_eq!(server.ask(&["hgetall", "hash"]), "a\n9\nc\n3");
    assert_eq!(server.ask(&["lrange", "list", "0", "-1"]), "z");
    assert_eq!(
        server.ask(&["zrange", "zset", "0", "-1", "withscores"]),
        "y\n7"
    );
    assert!(read(&mount, "stream.json").contains("{\"id\": \"1-1\", \"fields\": {\"f\": \"v\"}}"));
    let set = |ttl: &str| {
        let mut command = Command::new("setfattr");
        command.args(["-n", "user.redis.ttl", "-v", ttl]);
        place.run(command.arg(mount.path("hash.json"))).code
    };
    assert_eq!(set("50"), Some(0));
    let left: i64 = server.ask(&["ttl", "hash"]).parse().unwrap();
    assert!((1..=50).contains(&left), "{left}");
    assert_ne!(set("soon"), Some(0));
    // A new document is a hash or a list, and a string where its name says so.
    fs::write(mount.path("made.json"), "{\"a\": 1}").unwrap();
    fs::write(mount.path("made2.json"), "[1]").unwrap();
    fs::write(mount.path("made3.json.str"), "[1").unwrap();
    for (key, kind) in [
        ("made", "hash"),
        ("made2", "list"),
        ("made3.json", "string"),
    ] {
        assert_eq!(server.ask(&["type", key]), kind);
    }
}

/// Seconds that a key lives, or less than nothing.
fn left(server: &Server, key: &str) -> i64 {
    server.ask(&["ttl", key]).parse().unwrap()
}

/// As `sed -i` saves.
fn a_file_renamed_over_a_key_gets_its_time_to_live(place: &Place) {
    let server = Server::start(place, &[]);
    server.ask(&["set", "k", "old", "ex", "1000"]);
    server.ask(&["set", "timeless", "old"]);
    let mount = server.mount("m", "/0");
    for key in ["k", "timeless"] {
        fs::write(mount.path("sedX"), "new").unwrap();
        fs::rename(mount.path("sedX"), mount.path(key)).unwrap();
        assert_eq!(read(&mount, key), "new");
        assert_eq!(server.ask(&["get", key]), "new");
    }
    assert!((900..=1000).contains(&left(&server, "k")));
    assert_eq!(left(&server, "timeless"), -1);
    // What has a time of its own brings it.
    server.ask(&["set", "brief", "x", "ex", "50"]);
    eventually("it is seen", || mount.path("brief").exists());
    fs::rename(mount.path("brief"), mount.path("k")).unwrap();
    assert!((1..=50).contains(&left(&server, "k")));
}

/// As `jq > tmp.json && mv tmp.json tags.json` saves.
fn a_document_renamed_over_a_key_gets_its_kind(place: &Place) {
    let server = Server::start(place, &[]);
    server.ask(&["sadd", "tags", "x", "y"]);
    server.ask(&["zadd", "scores", "1", "x"]);
    for key in ["tags", "scores"] {
        server.ask(&["expire", key, "1000"]);
    }
    let mount = server.mount("m", "/0");
    for (key, kind, text) in [
        ("tags", "set", "[\"y\", \"z\", \"y\"]"),
        ("scores", "zset", "{\"y\": 7}"),
    ] {
        let (new, name) = (mount.path("tmp.json"), format!("{key}.json"));
        fs::write(&new, text).unwrap();
        fs::rename(&new, mount.path(&name)).unwrap();
        assert_eq!(server.ask(&["type", key]), kind);
        assert!((900..=1000).contains(&left(&server, key)));
        assert!(!new.exists());
    }
    assert_eq!(server.ask(&["scard", "tags"]), "2");
    assert_eq!(read(&mount, "tags.json"), "[\n  \"y\",\n  \"z\"\n]\n");
    assert_eq!(server.ask(&["zscore", "scores", "y"]), "7");
    // What does not fit is refused, and both stay.
    for (key, text, kind) in [
        ("tags", "{\"a\": 1}", "hash"),
        ("scores", "{\"a\": \"b\"}", "hash"),
        ("scores", "[1]", "list"),
    ] {
        let (new, name) = (mount.path("tmp.json"), format!("{key}.json"));
        fs::write(&new, text).unwrap();
        let renamed = fs::rename(&new, mount.path(&name));
        assert_eq!(fails(renamed), libc::EINVAL, "{text} to {key}");
        assert_eq!(server.ask(&["type", "tmp"]), kind);
        fs::remove_file(new).unwrap();
    }
    assert_eq!(server.ask(&["scard", "tags"]), "2");
    assert_eq!(server.ask(&["zcard", "scores"]), "1");
    // Nothing is in the way of a stream.
    server.ask(&["xadd", "stream", "1-1", "f", "v"]);
    eventually("it is seen", || mount.path("stream.json").exists());
    fs::rename(mount.path("stream.json"), mount.path("tags.json")).unwrap();
    assert_eq!(server.ask(&["type", "tags"]), "stream");
}

/// As vim saves with `backupcopy=no`. Names that are only swapped keep what is theirs.
fn a_key_that_is_moved_away_and_written_anew_is_what_it_was(place: &Place) {
    let server = Server::start(place, &[]);
    server.ask(&["set", "k", "old", "ex", "1000"]);
    server.ask(&["sadd", "tags", "x"]);
    server.ask(&["expire", "tags", "1000"]);
    let mount = server.mount("m", "/0");
    for (name, old, text) in [
        ("k", "k~", "new"),
        ("tags.json", "tags.old.json", "[\"y\"]"),
    ] {
        fs::rename(mount.path(name), mount.path(old)).unwrap();
        fs::write(mount.path(name), text).unwrap();
        fs::remove_file(mount.path(old)).unwrap();
    }
    assert_eq!(server.ask(&["get", "k"]), "new");
    assert_eq!(server.ask(&["type", "tags"]), "set");
    for key in ["k", "tags"] {
        assert!((900..=1000).contains(&left(&server, key)), "{key}");
    }
    fs::write(mount.path("b"), "b").unwrap();
    for (from, to) in [("k", "t"), ("b", "k"), ("t", "b")] {
        fs::rename(mount.path(from), mount.path(to)).unwrap();
    }
    assert_eq!(
        (read(&mount, "k"), read(&mount, "b")),
        ("b".into(), "new".into())
    );
    assert_eq!(left(&server, "k"), -1);
    assert!((900..=1000).contains(&left(&server, "b")));
    // And nothing is left of what they were before that.
    server.ask(&["del", "k"]);
    eventually("the removal is seen", || !mount.path("k").exists());
    fs::write(mount.path("k"), "new").unwrap();
    assert_eq!(left(&server, "k"), -1);
}

/// Lua takes other numbers than ZADD, which would refuse them when others are written already.
fn a_score_is_what_the_server_takes(place: &Place) {
    let server = Server::start(place, &[]);
    server.ask(&["zadd", "scores", "1", "x"]);
    let mount = server.mount("m", "/0");
    let path = mount.path("scores.json");
    for score in ["\" 1\"", "1e400", "\"1 \"", "\"nan\"", "\"\"", "true"] {
        let text = format!("{{\"new\": 2, \"odd\": {score}}}");
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        assert_eq!(fails(file.sync_all()), libc::EINVAL, "{score}");
        let kept = server.ask(&["zrange", "scores", "0", "-1", "withscores"]);
        assert_eq!(kept, "x\n1", "{score}");
    }
    fs::write(&path, "{\"a\": \"-inf\", \"b\": \"0x10\", \"c\": 1e3}").unwrap();
    let kept = server.ask(&["zrange", "scores", "0", "-1", "withscores"]);
    assert_eq!(kept, "a\n-inf\nb\n16\nc\n1000");
}

fn edits_of_different_fields_are_both_kept(place: &Place) {
    let server = Server::start(place, &[]);
    server.ask(&["hset", "doc", "a", "1", "b", "2", "c", "3"]);
    // Neither hears of the other: each edits what it has read.
    let deaf = [
        "--metadata-ttl",
        "1h",
        "--consistency",
        "ttl",
        "--fault",
        "watch:error=unavailable",
    ];
    let mounts = ["m", "n"].map(|name| place.mount(name, &server.url("/0"), &deaf, true));
    for mount in &mounts {
        read(mount, "doc.json");
    }
    fs::write(
        mounts[0].path("doc.json"),
        "{\"a\": \"one\", \"b\": \"2\", \"c\": \"3\"}",
    )
    .unwrap();
    fs::write(mounts[1].path("doc.json"), "{\"a\": \"1\", \"b\": \"two\"}").unwrap();
    assert_eq!(server.ask(&["hgetall", "doc"]), "a\none\nb\ntwo");
    // The same field is a conflict, and the loser's text is kept.
    server.ask(&["hset", "doc", "b", "theirs"]);
    fs::write(
        mounts[1].path("doc.json"),
        "{\"a\": \"1\", \"b\": \"ours\"}",
    )
    .unwrap();
    assert_eq!(server.ask(&["hget", "doc", "b"]), "theirs");
    let kept = server.ask(&["keys", "doc.json.conflict-*"]);
    assert_eq!(
        server.ask(&["get", &kept]),
        "{\"a\": \"1\", \"b\": \"ours\"}"
    );
}

/// That a field has the value already, which somebody else gave it, is no success.
fn two_who_count_one_field_up_have_counted_two(place: &Place) {
    let server = Server::start(place, &[]);
    server.ask(&["hset", "doc", "n", "5", "other", "x"]);
    let mount = server.mount("m", "/0");
    let path = mount.path("doc.json");
    let mut file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    server.ask(&["hincrby", "doc", "n", "1"]);
    server.ask(&["hset", "doc", "other", "y"]);
    let counted = text.replace("\"5\"", "\"6\"");
    file.write_all_at(counted.as_bytes(), 0).unwrap();
    assert_eq!(fails(file.sync_all()), libc::ESTALE);
    assert_eq!(server.ask(&["hgetall", "doc"]), "n\n6\nother\ny");
    let kept = server.ask(&["keys", "doc.json.conflict-*"]);
    assert_eq!(server.ask(&["get", &kept]), counted.trim_end());
}

fn what_is_no_document_is_refused_and_kept(place: &Place) {
    let server = Server::start(place, &[]);
    server.ask(&["hset", "doc", "a", "1"]);
    server.ask(&["xadd", "stream", "1-1", "f", "v"]);
    let mount = server.mount("m", "/0");
    let close = |name: &str, text: &str| {
        let script = "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)\nos.write(fd, os.fsencode(sys.argv[2]))\nsay(attempt(os.close, fd))";
        place.script(script, &[&mount.path(name), std::path::Path::new(text)])
    };
    for (name, text, errno, why) in [
        ("doc.json", "{\"a\": 1,\n  b}", "EINVAL", "line 2 column 3"),
        ("doc.json", "[1]", "EINVAL", "holds a hash"),
        ("new.json", "text", "EINVAL", "line 1 column"),
        ("doc", "text", "EINVAL", "holds a hash"),
        ("stream.json", "[1]", "EACCES", "can only be read"),
    ] {
        assert_eq!(close(name, text), errno, "{name} {text}");
        let status = mount.status().to_string();
        assert!(status.contains(why), "{why}: {status}");
    }
    assert_eq!(server.ask(&["hgetall", "doc"]), "a\n1");
    let kept = fs::read_dir(mount.path("")).unwrap();
    let kept = kept.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().contains(".conflict-")
    });
    assert_eq!(kept.count(), 5);
}

fn databases_are_directories(place: &Place) {
    let server = Server::start(place, &["--databases", "3"]);
    server.ask(&["-n", "2", "set", "k", "x"]);
    let mount = server.mount("m", "");
    let mut names: Vec<_> = fs::read_dir(mount.path("")).unwrap().collect();
    names.sort_by_key(|entry| entry.as_ref().unwrap().file_name());
    assert_eq!(names.len(), 3);
    assert_eq!(read(&mount, "2/k"), "x");
    fs::write(mount.path("0/made"), "y").unwrap();
    assert_eq!(server.ask(&["get", "made"]), "y");
    assert_eq!(fails(fs::create_dir(mount.path("7"))), libc::EPERM);
    assert!(!mount.path("3").exists());
    let said = refusal(place, &server.url("/9"), &[]);
    assert!(
        said.stderr.contains("no database of that number"),
        "{said:?}"
    );
}
