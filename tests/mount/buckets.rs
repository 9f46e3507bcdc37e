//! All buckets of an account as directories of one mount.

use crate::harness::{Mount, Need, PYTHON, Place, Variable, eventually, fails, trial};
use crate::proxy::{ENDPOINT, Proxy, refusal};
use bucketfs::driver::s3::Account;
use bucketfs::driver::{Driver, ErrorKind, ListRequest, OpenOptions};
use bucketfs::key::Key;
use libtest_mimic::Trial;
use std::collections::BTreeSet;
use std::fs::{self, DirEntry};
use std::io;
use std::sync::Arc;

pub const SERVER: Need = Variable(ENDPOINT);

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            &[SERVER, PYTHON],
            "buckets::each_bucket_is_a_directory",
            each_bucket_is_a_directory,
        ),
        trial(
            &[SERVER, PYTHON],
            "buckets::what_cannot_be_at_the_top_is_refused",
            what_cannot_be_at_the_top_is_refused,
        ),
        trial(
            &[SERVER],
            "buckets::buckets_are_made_and_removed_where_that_is_allowed",
            buckets_are_made_and_removed_where_that_is_allowed,
        ),
        trial(
            &[SERVER],
            "buckets::a_bucket_that_refuses_fails_no_other",
            a_bucket_that_refuses_fails_no_other,
        ),
        trial(
            &[SERVER],
            "buckets::each_bucket_learns_its_region",
            each_bucket_learns_its_region,
        ),
    ]
}

pub fn account() -> Account {
    let options = OpenOptions {
        endpoint_url: std::env::var(ENDPOINT).ok(),
        region: Some("us-east-1".into()),
        ..OpenOptions::default()
    };
    wait(Account::configure(&options, None)).unwrap()
}

pub fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// A bucket of a name that nobody has, made now.
pub fn fresh(what: &str) -> String {
    let name = format!("bucketfs-{what}-{:08x}", bucketfs::clock::random() as u32);
    wait(account().create_bucket(&name)).unwrap();
    name
}

fn mount(place: &Place, name: &str, endpoint: &str, args: &[&str]) -> Arc<Mount> {
    let args = [&["--endpoint-url", endpoint, "--region", "us-east-1"], args].concat();
    place.mount(name, "s3://", &args, true)
}

fn endpoint() -> String {
    std::env::var(ENDPOINT).unwrap()
}

fn names(mount: &Mount, dir: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(mount.path(dir)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

/// The first name in a directory.
fn first(mount: &Mount, dir: &str) -> io::Result<Option<DirEntry>> {
    fs::read_dir(mount.path(dir))?.next().transpose()
}

/// What `bucketfs why` says of a path.
fn why(place: &Place, mount: &Mount, path: &str) -> String {
    let said = place.run(place.command(&["why"]).arg(mount.path(path)));
    assert_eq!(said.code, Some(0), "{said:?}");
    said.stdout
}

fn each_bucket_is_a_directory(place: &Place) {
    let (a, b) = (fresh("one"), fresh("two"));
    let m = mount(place, "m", &endpoint(), &[]);
    assert!(names(&m, "").is_superset(&[a.clone(), b.clone()].into()));
    assert!(m.path(&a).metadata().unwrap().is_dir());
    let in_a = |name: &str| format!("{a}/{name}");
    let in_b = |name: &str| format!("{b}/{name}");
    assert_eq!(names(&m, &a), [].into());
    fs::create_dir(m.path(&in_a("dir"))).unwrap();
    fs::write(m.path(&in_a("dir/file")), "text").unwrap();
    fs::write(m.path(&in_b("file")), "other").unwrap();
    // Nothing of the trial of conditions shows.
    assert_eq!(names(&m, &a), ["dir".into()].into());
    assert_eq!(
        fails(fs::write(m.path(&in_a(".bucketfs")), "")),
        libc::EPERM
    );
    let one = place.mount(
        "one",
        &format!("s3://{a}"),
        &["--endpoint-url", &endpoint(), "--region", "us-east-1"],
        true,
    );
    assert_eq!(fs::read(one.path("dir/file")).unwrap(), b"text");

    // A lost race is told, and kept, as in a mount of the bucket alone.
    let said = place.script(
        "
fd = os.open(sys.argv[1], os.O_WRONLY)
with open(sys.argv[2], 'w') as f: f.write('theirs')
os.write(fd, b'mine')
say(attempt(os.close, fd))
",
        &[&m.path(&in_a("dir/file")), &one.path("dir/file")],
    );
    assert_eq!(said, "ESTALE");
    let beside = names(&m, &in_a("dir"));
    assert!(
        beside.iter().any(|name| name.starts_with("file.conflict-")),
        "{beside:?}"
    );

    fs::rename(m.path(&in_a("dir/file")), m.path(&in_a("moved"))).unwrap();
    assert_eq!(fs::read(m.path(&in_a("moved"))).unwrap(), b"theirs");
    let across = fs::rename(m.path(&in_a("moved")), m.path(&in_b("moved")));
    assert_eq!(fails(across), libc::EXDEV);
    fs::copy(m.path(&in_a("moved")), m.path(&in_b("copy"))).unwrap();
    assert_eq!(fs::read(m.path(&in_b("copy"))).unwrap(), b"theirs");
    fs::remove_dir_all(m.path(&in_a("dir"))).unwrap();
    for name in ["copy", "file"] {
        fs::remove_file(m.path(&in_b(name))).unwrap();
    }
    // The bucket that lost its last file is still there, and has no marker.
    assert!(m.path(&b).is_dir());
    std::thread::sleep(std::time::Duration::from_millis(1600));
    let bucket = wait(account().bucket(&b)).unwrap();
    let left = wait(bucket.list(ListRequest::flat(&Key::empty()))).unwrap();
    assert_eq!(left.entries, []);
}

fn what_cannot_be_at_the_top_is_refused(place: &Place) {
    let a = fresh("top");
    let m = mount(place, "m", &endpoint(), &[]);
    assert_eq!(fails(fs::write(m.path("file"), "")), libc::EPERM);
    assert!(why(place, &m, "file").contains("only buckets are at the top"));
    assert_eq!(fails(fs::create_dir(m.path("bucket"))), libc::EPERM);
    assert!(why(place, &m, "bucket").contains("only with --create-buckets"));
    assert_eq!(fails(fs::remove_dir(m.path(&a))), libc::EPERM);
    assert!(why(place, &m, &a).contains("only with --create-buckets"));
    let link = std::os::unix::fs::symlink(&a, m.path("link"));
    assert_eq!(fails(link), libc::EPERM);
    let renamed = fs::rename(m.path(&a), m.path("other"));
    assert_eq!(fails(renamed), libc::EPERM);
    assert!(why(place, &m, &a).contains("a bucket keeps its name"));
    assert!(m.path(&a).is_dir());
    assert_eq!(fails(fs::metadata(m.path("not a bucket"))), libc::ENOENT);
    assert_eq!(fails(fs::metadata(m.path("none/below"))), libc::ENOENT);
}

fn buckets_are_made_and_removed_where_that_is_allowed(place: &Place) {
    let name = format!("bucketfs-made-{:08x}", bucketfs::clock::random() as u32);
    let m = mount(place, "m", &endpoint(), &["--create-buckets"]);
    fs::create_dir(m.path(&name)).unwrap();
    assert_eq!(fails(fs::create_dir(m.path(&name))), libc::EEXIST);
    assert!(names(&m, "").contains(&name));
    let file = format!("{name}/file");
    fs::write(m.path(&file), "text").unwrap();
    assert_eq!(fails(fs::remove_dir(m.path(&name))), libc::ENOTEMPTY);
    fs::remove_file(m.path(&file)).unwrap();
    fs::remove_dir(m.path(&name)).unwrap();
    assert_eq!(fails(fs::metadata(m.path(&name))), libc::ENOENT);
    let gone = wait(account().bucket(&name)).map(|_| ());
    assert_eq!(gone.unwrap_err().kind(), ErrorKind::NotFound);
    // What can be no bucket's name cannot be made.
    assert_eq!(fails(fs::create_dir(m.path("no bucket"))), libc::EINVAL);
}

fn a_bucket_that_refuses_fails_no_other(place: &Place) {
    let (good, bad) = (fresh("good"), fresh("bad"));
    let proxy = Proxy::before_server();
    let inside = format!(" /{bad}");
    proxy.when(
        usize::MAX,
        move |head| head.lines().next().unwrap_or_default().contains(&inside),
        refusal("403 Forbidden", "", "AccessDenied"),
    );
    let m = mount(place, "m", &proxy.endpoint(), &["--retries", "0"]);
    assert!(names(&m, "").is_superset(&[good.clone(), bad.clone()].into()));
    assert!(m.path(&bad).is_dir());
    assert_eq!(fails(first(&m, &bad)), libc::EACCES);
    let file = format!("{good}/file");
    fs::write(m.path(&file), "text").unwrap();
    assert_eq!(fs::read(m.path(&file)).unwrap(), b"text");
    // It is asked again, and let in, when its owner allows that.
    proxy.heal();
    let file = format!("{bad}/file");
    eventually("the bucket can be used", || {
        fs::write(m.path(&file), "text").is_ok()
    });
    assert_eq!(fs::read(m.path(&file)).unwrap(), b"text");
}

fn each_bucket_learns_its_region(place: &Place) {
    let (near, far) = (fresh("near"), fresh("far"));
    let proxy = Proxy::before_server();
    let (path, seen) = (format!(" /{far}"), "/us-east-1/s3/");
    // Its requests are refused unless they are signed for another region, which the server then
    // takes for its own.
    proxy.when(
        usize::MAX,
        move |head| head.contains(&path) && head.contains(seen),
        refusal(
            "301 Moved Permanently",
            "x-amz-bucket-region: eu-west-7\r\n",
            "PermanentRedirect",
        ),
    );
    let m = mount(place, "m", &proxy.endpoint(), &["--retries", "0"]);
    assert!(names(&m, "").contains(&far));
    let file = format!("{near}/file");
    fs::write(m.path(&file), "text").unwrap();
    // Whether the server takes that signature is its own affair.
    let _ = first(&m, &far);
    let signed = |region: &str| {
        let (bucket, region) = (format!(" /{far}/"), format!("/{region}/s3/"));
        proxy.count(|head| head.contains(&bucket) && head.contains(&region))
    };
    assert!(signed("us-east-1") == 1 && signed("eu-west-7") >= 1);
    assert_eq!(fs::read(m.path(&file)).unwrap(), b"text");
}
