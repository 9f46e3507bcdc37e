//! Mounts of several stores, some of which stop.

use crate::harness::{Mount, Place, eventually, trial};
use crate::redis::{ALLOWED, SERVER, Server, read};
use libtest_mimic::Trial;
use std::fs;

pub fn trials() -> Vec<Trial> {
    let usual = |name: &str, test: fn(&Place)| trial(&[ALLOWED, SERVER], name, test);
    vec![
        trial(
            &[],
            "mirror::the_session_of_the_readme_is_true",
            the_session_of_the_readme_is_true,
        ),
        usual(
            "mirror::a_replica_that_stops_and_comes_back",
            a_replica_that_stops_and_comes_back,
        ),
        usual(
            "mirror::the_primary_stops_and_comes_back",
            the_primary_stops_and_comes_back,
        ),
        usual(
            "mirror::a_killed_mount_leaves_its_journal",
            a_killed_mount_leaves_its_journal,
        ),
        usual(
            "mirror::a_tier_outlives_its_fast_store",
            a_tier_outlives_its_fast_store,
        ),
    ]
}

/// The commands of the session give what it shows.
fn the_session_of_the_readme_is_true(place: &Place) {
    let here = place.path("");
    place.session(
        "mirror",
        &[("/tmp", here.to_str().unwrap().trim_end_matches('/'))],
    );
}

/// What `bucketfs status` says of a mount.
fn status(place: &Place, mount: &Mount) -> String {
    let dir = mount.path("");
    let mut command = place.command(&["status", dir.to_str().unwrap()]);
    place.run(&mut command).stdout
}

const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];
const OBJECTS: &str = "/0?layout=objects";

fn a_replica_that_stops_and_comes_back(place: &Place) {
    let mut server = Server::start(place, &DURABLE);
    let url = format!("mirror:{},{}", place.file_url(), server.url(OBJECTS));
    let mount = place.mount("m", &url, &[], true);
    fs::write(mount.path("old"), "old").unwrap();
    fs::write(mount.path("gone"), "gone").unwrap();
    // A new replica is compared first; until then nothing is known of what it lacks.
    eventually("the replica had everything", || {
        let said = status(place, &mount);
        !said.contains("to be compared") && !said.contains("which lacks")
    });
    server.kill();
    fs::write(mount.path("old"), "new").unwrap();
    fs::create_dir(mount.path("d")).unwrap();
    fs::write(mount.path("d/f"), "f").unwrap();
    fs::rename(mount.path("d/f"), mount.path("d/g")).unwrap();
    fs::remove_file(mount.path("gone")).unwrap();
    assert_eq!(read(&mount, "d/g"), "f");
    assert_eq!(place.stored("old").unwrap(), b"new");
    let said = status(place, &mount);
    assert!(
        said.contains("which lacks") && said.contains("does not answer"),
        "{said}"
    );
    server.again();
    eventually("the replica is up to date", || {
        !status(place, &mount).contains("which lacks")
    });
    let replica = place.mount("r", &server.url(OBJECTS), &[], true);
    assert_eq!(read(&replica, "old"), "new");
    assert_eq!(read(&replica, "d/g"), "f");
    assert!(!replica.path("gone").exists() && !replica.path("d/f").exists());
    // A replica that is not there when it is mounted is done without, too.
    drop(replica);
    server.kill();
    let late = place.mount("late", &url, &[], true);
    fs::write(late.path("late"), "late").unwrap();
    server.again();
    eventually("the replica is up to date", || {
        !status(place, &late).contains("which lacks")
    });
}

fn the_primary_stops_and_comes_back(place: &Place) {
    let mut server = Server::start(place, &DURABLE);
    let url = format!("mirror:{},{}", server.url(OBJECTS), place.file_url());
    let mount = place.mount("m", &url, &["--deadline", "5s"], true);
    fs::create_dir(mount.path("d")).unwrap();
    for name in ["d/a", "d/b"] {
        fs::write(mount.path(name), name).unwrap();
    }
    assert_eq!(place.stored("d/a").unwrap(), b"d/a");
    eventually("the replica is known to have everything", || {
        place.stored(".bucketfs/bucketfs-source").is_ok()
    });
    server.kill();
    // Another mount has nothing cached, but cannot begin; this one goes on.
    for name in ["d/a", "d/b"] {
        assert_eq!(read(&mount, name), name);
    }
    let listed = fs::read_dir(mount.path("d")).unwrap();
    let listed: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(listed.len(), 2);
    assert!(!fs::exists(mount.path("d/never")).unwrap());
    let refused = fs::write(mount.path("d/a"), "written meanwhile");
    let said = status(place, &mount);
    assert!(
        said.contains("primary redis") && said.contains("does not answer"),
        "{said}"
    );
    assert_eq!(place.stored("d/a").unwrap(), b"d/a");
    server.again();
    drop(refused);
    eventually("what was written is sent", || {
        place.stored("d/a").unwrap() == b"written meanwhile"
    });
    assert_eq!(read(&mount, "d/a"), "written meanwhile");
    let primary = place.mount("p", &server.url(OBJECTS), &[], true);
    assert_eq!(read(&primary, "d/a"), "written meanwhile");
    let names = fs::read_dir(primary.path("d")).unwrap();
    assert_eq!(names.count(), 2, "no conflict, for nobody else wrote");
}

fn a_killed_mount_leaves_its_journal(place: &Place) {
    let mut server = Server::start(place, &DURABLE);
    let url = format!("mirror:{},{}", place.file_url(), server.url(OBJECTS));
    let mount = place.mount("m", &url, &[], false);
    server.kill();
    fs::write(mount.path("f"), "bytes").unwrap();
    mount.kill();
    server.again();
    let next = place.mount("m", &url, &[], true);
    eventually("the replica is up to date", || {
        !status(place, &next).contains("which lacks")
    });
    let replica = place.mount("r", &server.url(OBJECTS), &[], true);
    assert_eq!(read(&replica, "f"), "bytes");
}

fn a_tier_outlives_its_fast_store(place: &Place) {
    let mut server = Server::start(place, &[]);
    let url = format!("tier:{},{}", server.url(OBJECTS), place.file_url());
    let mount = place.mount("m", &url, &[], true);
    fs::write(mount.path("f"), "one").unwrap();
    assert_eq!(read(&mount, "f"), "one");
    assert!(server.ask(&["dbsize"]) != "0");
    place.store("f", b"by somebody else");
    eventually("it is seen", || read(&mount, "f") == "by somebody else");
    server.kill();
    assert_eq!(read(&mount, "f"), "by somebody else");
    fs::write(mount.path("f"), "two").unwrap();
    assert_eq!(place.stored("f").unwrap(), b"two");
    // Its memory is gone with it.
    server.again();
    assert_eq!(read(&mount, "f"), "two");
    fs::write(mount.path("f"), "three").unwrap();
    assert_eq!(read(&mount, "f"), "three");
}
