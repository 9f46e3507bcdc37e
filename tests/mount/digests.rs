//! The digests that Redis makes of keys, which are their versions.

use crate::harness::{Mount, Place, eventually, trial};
use crate::redis::{ALLOWED, SERVER, Server, read};
use libtest_mimic::Trial;
use std::fs;

pub fn trials() -> Vec<Trial> {
    let usual = |name: &str, test: fn(&Place)| trial(&[ALLOWED, SERVER], name, test);
    vec![
        usual(
            "digests::a_large_key_that_others_write_is_not_digested",
            a_large_key_that_others_write_is_not_digested,
        ),
        usual(
            "digests::a_large_document_is_brought_once",
            a_large_document_is_brought_once,
        ),
        usual(
            "digests::a_stream_made_anew_is_another_version",
            a_stream_made_anew_is_another_version,
        ),
        usual(
            "digests::the_same_content_is_the_same_version_and_other_content_another",
            the_same_content_is_the_same_version_and_other_content_another,
        ),
    ]
}

/// How often the server did what a script asked it for.
fn calls(server: &Server, command: &str) -> u32 {
    let stats = server.ask(&["info", "commandstats"]);
    let begin = format!("cmdstat_{command}:calls=");
    let line = stats.lines().find_map(|line| line.strip_prefix(&begin));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

/// Only whoever wants to know what a large key holds has the server read all of it.
fn a_large_key_that_others_write_is_not_digested(place: &Place) {
    let server = Server::start(place, &[]);
    let fill = "for i = 1, 5000 do \
        redis.call('HSET', 'hash', 'f' .. i, i) redis.call('RPUSH', 'list', i) \
        redis.call('SADD', 'set', i) redis.call('ZADD', 'zset', i, i) \
        redis.call('XADD', 'stream', i .. '-0', 'f', i) end \
        redis.call('HSET', 'wide', 'f', string.rep('x', 3000000)) \
        redis.call('SET', 'string', string.rep('x', 3000000))";
    server.ask(&["eval", fill, "0"]);
    let mount = server.mount("m", "/0");
    let size = |name: &str| fs::metadata(mount.path(name)).unwrap().len();
    let writes: [(&str, &[&str], u64); 7] = [
        ("hash.json", &["hset", "hash", "more", "1"], 15),
        ("list.json", &["rpush", "list", "12"], 8),
        ("set.json", &["sadd", "set", "more"], 10),
        ("zset.json", &["zadd", "zset", "1", "more"], 13),
        (
            "stream.json",
            &["xadd", "stream", "9999-0", "f", "more"],
            45,
        ),
        ("wide.json", &["hset", "wide", "g", "1"], 12),
        ("string", &["append", "string", "more"], 4),
    ];
    let before = writes.map(|(name, ..)| size(name));
    server.ask(&["config", "resetstat"]);
    for (_, words, _) in writes {
        server.ask(words);
    }
    server.ask(&["hset", "small", "f", "v"]);
    eventually("the feed has told", || calls(&server, "hgetall") > 0);
    // That of the small one, which came last.
    assert_eq!(calls(&server, "hgetall"), 1);
    for command in ["lrange", "smembers", "zrange", "xrange", "get"] {
        assert_eq!(calls(&server, command), 0, "{command}");
    }
    for ((name, _, more), before) in writes.into_iter().zip(before) {
        eventually(&format!("{name} has its new size"), || {
            size(name) == before + more
        });
    }
}

fn a_large_document_is_brought_once(place: &Place) {
    let server = Server::start(place, &[]);
    let fill = "for i = 1, 9000 do redis.call('HSET', 'h', i, string.rep('x', 500)) end";
    server.ask(&["eval", fill, "0"]);
    let mount = server.mount("m", "/0");
    server.ask(&["config", "resetstat"]);
    assert!(read(&mount, "h.json").len() > 4 << 20);
    let brought = calls(&server, "hgetall");
    assert!((1..=3).contains(&brought), "{brought} times");
    server.ask(&["hset", "h", "1", "new"]);
    eventually("the feed has told", || {
        read(&mount, "h.json").contains("\"new\"")
    });
}

fn a_stream_made_anew_is_another_version(place: &Place) {
    let server = Server::start(place, &[]);
    let fill = |key: &str, values: [&str; 3]| {
        for (at, value) in values.into_iter().enumerate() {
            server.ask(&["xadd", key, &format!("{}-0", at + 1), "v", value]);
        }
    };
    fill("s", ["one", "two", "six"]);
    let mount = server.mount("m", "/0");
    assert!(read(&mount, "s.json").contains("\"two\""));
    for values in [
        ["ten", "two", "six"],
        ["ten", "two", "its"],
        ["ten", "own", "its"],
    ] {
        fill("new", values);
        server.ask(&["rename", "new", "s"]);
        eventually("the new one is seen", || {
            let text = read(&mount, "s.json");
            values
                .iter()
                .all(|value| text.contains(&format!("{value:?}")))
        });
    }
    server.ask(&["flushall"]);
    fill("s", ["ten", "own", "two"]);
    eventually("what came back is seen", || {
        fs::read_to_string(mount.path("s.json")).is_ok_and(|text| text.contains("\"two\""))
    });
}

fn etag(mount: &Mount, name: &str) -> String {
    let mut buffer = [0; 64];
    let path = mount.path(name);
    let length = rustix::fs::getxattr(path, "user.bucketfs.etag", &mut buffer[..]).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

/// Whatever the order in which the server has it, and whatever it holds it in.
fn the_same_content_is_the_same_version_and_other_content_another(place: &Place) {
    let server = Server::start(place, &[]);
    let fill = "local function add(i) \
        redis.call('HSET', KEYS[1], 'f' .. i, i) redis.call('SADD', KEYS[2], 'm' .. i) end \
        for i = 1, 5000 do add(ARGV[1] == 'up' and i or 5001 - i) end";
    server.ask(&["eval", fill, "2", "h1", "s1", "up"]);
    server.ask(&["eval", fill, "2", "h2", "s2", "down"]);
    server.ask(&["hset", "h3", "a", "1", "b", "2", "c", "3"]);
    // As a table, and not as a list.
    let long = "x".repeat(1000);
    server.ask(&["hset", "h4", "c", "3", "b", "2", "a", "1", "l", &long]);
    server.ask(&["hdel", "h4", "l"]);
    let others: [&[&str]; 12] = [
        &["hset", "o1", "a", "1", "b", "2"],
        &["hset", "o2", "a", "2", "b", "1"],
        &["hset", "o3", "a", "12", "b", "2"],
        &["hset", "o4", "a1", "2", "b", "2"],
        &["hset", "o5", "a", "1"],
        &["hset", "o6", "1:a1", "1"],
        &["rpush", "o7", "a", "1", "b", "2"],
        &["rpush", "o8", "a1", "b2"],
        &["rpush", "o9", "a", "1b", "2"],
        &["sadd", "p1", "a", "b"],
        &["sadd", "p2", "ab"],
        &["zadd", "p3", "1", "a", "2", "b"],
    ];
    for words in others {
        server.ask(words);
    }
    let mount = server.mount("m", "/0");
    for (a, b) in [("h1", "h2"), ("s1", "s2"), ("h3", "h4")] {
        let [a, b] = [a, b].map(|name| etag(&mount, &format!("{name}.json")));
        assert_eq!(a, b);
    }
    let mut told: Vec<_> = others
        .iter()
        .map(|words| etag(&mount, &format!("{}.json", words[1])))
        .collect();
    told.sort();
    told.dedup();
    assert_eq!(told.len(), others.len(), "{told:?}");
}
