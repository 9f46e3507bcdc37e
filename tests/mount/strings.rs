//! Large strings of Redis.

use crate::harness::{Place, eventually, pattern, trial};
use crate::redis::{ALLOWED, SERVER, Server};
use libtest_mimic::Trial;
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

pub fn trials() -> Vec<Trial> {
    vec![trial(
        &[ALLOWED, SERVER],
        "strings::a_large_string_is_brought_once",
        a_large_string_is_brought_once,
    )]
}

fn a_large_string_is_brought_once(place: &Place) {
    let server = Server::start(place, &[]);
    let content = pattern(24 << 20, 1);
    let source = place.path("content");
    fs::write(&source, &content).unwrap();
    let set = format!(
        "redis-cli -p {} -x set big < {}",
        server.port,
        source.display()
    );
    let said = place.run(Command::new("sh").args(["-c", &set]));
    assert_eq!(said.stdout.trim(), "OK");
    let mount = server.mount("m", "/0");
    let file = fs::File::open(mount.path("big")).unwrap();
    server.ask(&["config", "resetstat"]);
    let mut piece = vec![0; 4096];
    for at in (0..24).map(|turn| ((turn * 7 + 3) % 24) << 20) {
        file.read_exact_at(&mut piece, at).unwrap();
        assert!(piece == content[at as usize..][..4096]);
    }
    // The scripts for facts, if any, are of the open.
    let calls = server.ask(&["info", "commandstats"]);
    let count = |name: &str| {
        let line = calls.lines().find_map(|line| line.strip_prefix(name));
        let calls = line.and_then(|line| line.strip_prefix(":calls=")?.split(',').next());
        calls.map_or(0, |calls| calls.parse::<u32>().unwrap())
    };
    assert_eq!(count("cmdstat_get"), 1, "{calls}");
    assert_eq!(count("cmdstat_evalsha"), 0, "{calls}");
    server.ask(&["setrange", "big", "5", "other"]);
    drop(file);
    let mut now = content;
    now[5..10].copy_from_slice(b"other");
    eventually("the feed has told", || {
        fs::read(mount.path("big")).is_ok_and(|told| told == now)
    });
}
