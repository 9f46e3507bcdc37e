//! GridFS buckets as directories of files, beside the client library's own way to them.

use crate::cuts::{Passage, mongodb_address};
use crate::harness::{Need, Place, Variable, fails, trial};
use crate::mongodb::{ADDRESS, Database, RUNTIME};
use crate::redis::{read, refusal};
use ::mongodb::bson::{Bson, DateTime, Document, doc};
use ::mongodb::gridfs::GridFsBucket;
use ::mongodb::options::GridFsBucketOptions;
use bucketfs::driver::{
    self, Body, CopyOptions, Driver, ErrorKind, GetOptions, Location, OpenOptions, Precondition,
    PutOptions,
};
use bucketfs::key::Key;
use futures::{AsyncReadExt, AsyncWriteExt};
use libtest_mimic::Trial;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Arc;

const SERVER: Need = Variable(ADDRESS);

pub fn trials() -> Vec<Trial> {
    let usual = |name: &str, test: fn(&Place)| trial(&[SERVER], name, test);
    vec![
        usual(
            "gridfs::the_session_of_the_readme_is_true",
            the_session_of_the_readme_is_true,
        ),
        usual(
            "gridfs::other_programs_read_and_write_the_same_files",
            other_programs_read_and_write_the_same_files,
        ),
        usual(
            "gridfs::a_name_that_others_gave_up_is_free",
            a_name_that_others_gave_up_is_free,
        ),
        usual(
            "gridfs::a_file_renamed_while_it_is_removed_keeps_its_bytes",
            a_file_renamed_while_it_is_removed_keeps_its_bytes,
        ),
        usual(
            "gridfs::a_file_renamed_while_it_is_replaced_keeps_its_bytes",
            a_file_renamed_while_it_is_replaced_keeps_its_bytes,
        ),
        usual(
            "gridfs::a_reader_of_a_replaced_file_is_told",
            a_reader_of_a_replaced_file_is_told,
        ),
        usual(
            "gridfs::what_is_damaged_or_nameless_is_told_apart",
            what_is_damaged_or_nameless_is_told_apart,
        ),
        usual(
            "gridfs::urls_that_name_no_bucket_are_refused",
            urls_that_name_no_bucket_are_refused,
        ),
    ]
}

/// The bucket `b` of a database.
struct Bucket {
    database: Database,
    files: GridFsBucket,
}

impl Bucket {
    fn new() -> Self {
        let database = Database::new();
        let options = GridFsBucketOptions::builder()
            .bucket_name("b".to_owned())
            .build();
        let within = database.client.database(&database.name);
        let files = within.gridfs_bucket(options);
        Bucket { database, files }
    }

    fn url(&self) -> String {
        self.database.url("/b?layout=gridfs")
    }

    fn upload(&self, name: &str, bytes: &[u8]) -> Bson {
        let sent = async {
            let mut stream = self.files.open_upload_stream(name).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            stream.close().await.unwrap();
            stream.id().clone()
        };
        RUNTIME.block_on(sent)
    }

    fn download(&self, name: &str) -> Vec<u8> {
        let got = async {
            let stream = self.files.open_download_stream_by_name(name).await;
            let mut bytes = Vec::new();
            stream.unwrap().read_to_end(&mut bytes).await.unwrap();
            bytes
        };
        RUNTIME.block_on(got)
    }

    fn count(&self, part: &str, of: Document) -> u64 {
        let all = self.database.collection(&format!("b.{part}"));
        let count = async { all.count_documents(of).await };
        RUNTIME.block_on(count).unwrap()
    }

    fn driver(&self) -> Arc<dyn Driver> {
        self.driver_at(&self.url())
    }

    /// The same, by a passage to the server.
    fn driver_through(&self, passage: &Passage) -> Arc<dyn Driver> {
        let (port, name) = (passage.port, &self.database.name);
        self.driver_at(&format!(
            "mongodb://127.0.0.1:{port}/{name}/b?layout=gridfs"
        ))
    }

    fn driver_at(&self, url: &str) -> Arc<dyn Driver> {
        let location = Location::parse(url).unwrap();
        let options = OpenOptions::default();
        let opened = RUNTIME.block_on(driver::open(&location, &options));
        opened.unwrap().driver
    }
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

fn the_session_of_the_readme_is_true(place: &Place) {
    let database = Database::new();
    place.session("gridfs", &[("mongodb://127.0.0.1/shop", &database.url(""))]);
    let files = database.collection("photos.files");
    let letter = async {
        files
            .find_one(doc! { "filename": "2026/letter.txt" })
            .await
            .unwrap()
    };
    let letter = RUNTIME.block_on(letter).unwrap();
    assert_eq!(letter.get_i64("length").unwrap(), 6);
}

fn other_programs_read_and_write_the_same_files(place: &Place) {
    let bucket = Bucket::new();
    let (old, new) = (pattern(700_000, 1), pattern(600_001, 2));
    bucket.upload("a/x.bin", &old);
    bucket.upload("a/x.bin", &new);
    let mount = place.mount("m", &bucket.url(), &["--metadata-ttl", "0s"], true);
    let path = mount.path("a/x.bin");
    assert_eq!(fs::metadata(&path).unwrap().len(), 600_001);
    let mut middle = vec![0; 300_000];
    let file = fs::File::open(&path).unwrap();
    file.read_exact_at(&mut middle, 200_000).unwrap();
    assert_eq!(middle, new[200_000..500_000]);
    drop(file);
    assert_eq!(fs::read(&path).unwrap(), new);
    // What is written here is a file of theirs, and what it replaced is gone; older ones stay.
    let ours = pattern(5 << 20, 3);
    fs::write(&path, &ours).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(bucket.download("a/x.bin"), ours);
    assert_eq!(bucket.count("files", doc! { "filename": "a/x.bin" }), 2);
    assert_eq!(bucket.count("chunks", doc! {}), 3 + 21);
    // And the reverse.
    bucket.upload("a/x.bin", b"theirs");
    assert_eq!(read(&mount, "a/x.bin"), "theirs");
    assert_eq!(bucket.count("files", doc! {}), 3);
    fs::create_dir(mount.path("c")).unwrap();
    fs::rename(&path, mount.path("c/y")).unwrap();
    assert_eq!(bucket.download("c/y"), b"theirs");
    assert_eq!(bucket.count("files", doc! { "filename": "a/x.bin" }), 0);
    let exists = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(mount.path("c/y"));
    assert_eq!(fails(exists), libc::EEXIST);
    fs::remove_file(mount.path("c/y")).unwrap();
    assert_eq!(bucket.count("files", doc! { "filename": "c/y" }), 0);
    assert_eq!(bucket.count("chunks", doc! {}), 0);
    // A write that is refused leaves no chunks.
    let (driver, key) = (bucket.driver(), Key::from("k"));
    RUNTIME.block_on(async {
        let put = driver.put(&key, "x".into(), PutOptions::default()).await;
        put.unwrap();
        let absent = PutOptions {
            precondition: Precondition::IfAbsent,
            ..PutOptions::default()
        };
        let lost = driver.put(&key, "y".into(), absent).await;
        assert_eq!(lost.unwrap_err().kind(), ErrorKind::Exists);
    });
    crate::harness::eventually("the chunks of the loser go", || {
        bucket.count("chunks", doc! {}) == 1
    });
}

/// Other programs rename files without a word about what these follow.
fn a_name_that_others_gave_up_is_free(_: &Place) {
    let bucket = Bucket::new();
    let (driver, key) = (bucket.driver(), Key::from("k"));
    let absent = || PutOptions {
        precondition: Precondition::IfAbsent,
        ..PutOptions::default()
    };
    RUNTIME.block_on(async {
        driver.put(&key, "one".into(), absent()).await.unwrap();
        bucket.files.rename_by_name("k", "moved").await.unwrap();
        driver.put(&key, "two".into(), absent()).await.unwrap();
    });
    assert_eq!(bucket.download("moved"), b"one");
    assert_eq!(bucket.download("k"), b"two");
}

/// A request by which the entry of a file is removed.
const REMOVAL: &str = "delete\0\u{8}\0\0\0b.files\0";

fn a_file_renamed_while_it_is_removed_keeps_its_bytes(_: &Place) {
    let (old, key) = (pattern(600_000, 1), Key::from("k"));
    for is_conditional in [false, true] {
        let bucket = Bucket::new();
        let passage = Passage::new(&mongodb_address());
        let (driver, other) = (bucket.driver_through(&passage), bucket.driver());
        let put = other.put(&key, Body::from(old.clone()), PutOptions::default());
        let etag = RUNTIME.block_on(put).unwrap().etag;
        let precondition = match is_conditional {
            true => Precondition::IfMatch(etag),
            false => Precondition::None,
        };
        let moves = move || {
            let (from, to) = (Key::from("k"), Key::from("m"));
            let moved = other.rename(&from, &to, CopyOptions::default());
            RUNTIME.block_on(moved).unwrap();
        };
        let removed = passage.behind(moves, REMOVAL, || {
            RUNTIME.block_on(driver.delete(&key, precondition))
        });
        let told = removed.map_err(|error| error.kind());
        match is_conditional {
            true => assert_eq!(told, Err(ErrorKind::Changed)),
            false => assert_eq!(told, Ok(())),
        }
        assert_eq!(bucket.download("m"), old, "{is_conditional}");
    }
    // Older revisions are files too once they have a name of their own.
    let bucket = Bucket::new();
    let passage = Passage::new(&mongodb_address());
    let driver = bucket.driver_through(&passage);
    let id = bucket.upload("k", &old);
    bucket.upload("k", b"older");
    bucket.upload("k", b"newest");
    let files = bucket.files.clone();
    let moves = move || {
        RUNTIME
            .block_on(files.rename(id, "m").into_future())
            .unwrap()
    };
    passage.behind(moves, REMOVAL, || {
        let removed = driver.delete(&key, Precondition::None);
        RUNTIME.block_on(removed).unwrap();
    });
    assert_eq!(bucket.download("m"), old);
    assert_eq!(bucket.count("chunks", doc! {}), 3);
}

fn a_file_renamed_while_it_is_replaced_keeps_its_bytes(_: &Place) {
    let (old, new, key) = (pattern(600_000, 1), pattern(300_000, 2), Key::from("k"));
    for (is_conditional, moves_newest) in [(false, false), (true, false), (true, true)] {
        let what = format!("{is_conditional} {moves_newest}");
        let bucket = Bucket::new();
        let passage = Passage::new(&mongodb_address());
        let (driver, other) = (bucket.driver_through(&passage), bucket.driver());
        let id = bucket.upload("k", &old);
        let etag = RUNTIME.block_on(driver.head(&key)).unwrap().etag;
        let options = PutOptions {
            precondition: match is_conditional {
                true => Precondition::IfMatch(etag),
                false => Precondition::None,
            },
            ..PutOptions::default()
        };
        let files = bucket.files.clone();
        let moves = move || match moves_newest {
            // The new revision is the file by then.
            true => {
                let (from, to) = (Key::from("k"), Key::from("m"));
                let moved = other.rename(&from, &to, CopyOptions::default());
                RUNTIME.block_on(moved).unwrap();
            }
            false => RUNTIME
                .block_on(files.rename(id, "m").into_future())
                .unwrap(),
        };
        let put = passage.behind(moves, REMOVAL, || {
            RUNTIME.block_on(driver.put(&key, Body::from(new.clone()), options))
        });
        let told = put.map(drop).map_err(|error| error.kind());
        match is_conditional {
            true => assert_eq!(told, Err(ErrorKind::Changed), "{what}"),
            false => {
                assert_eq!(told, Ok(()), "{what}");
                assert_eq!(bucket.download("k"), new, "{what}");
            }
        }
        let kept = if moves_newest { &new } else { &old };
        let left: u64 = [3, 2, 3 + 2][usize::from(moves_newest) + 2 * usize::from(!is_conditional)];
        crate::harness::eventually("other chunks go", || {
            bucket.count("chunks", doc! {}) == left
        });
        assert_eq!(bucket.download("m"), *kept, "{what}");
    }
}

fn a_reader_of_a_replaced_file_is_told(_: &Place) {
    let bucket = Bucket::new();
    let (driver, key) = (bucket.driver(), Key::from("k"));
    RUNTIME.block_on(async {
        let put = async |seed| {
            let body = Body::from(pattern(6 << 20, seed));
            driver.put(&key, body, PutOptions::default()).await.unwrap()
        };
        put(1).await;
        let old = driver.get(&key, GetOptions::default()).await.unwrap();
        put(2).await;
        let read = old.found().unwrap().collect().await;
        assert_eq!(read.unwrap_err().kind(), ErrorKind::Changed);
    });
}

fn what_is_damaged_or_nameless_is_told_apart(place: &Place) {
    let bucket = Bucket::new();
    let id = bucket.upload("damaged", &pattern(600_000, 1));
    bucket.upload("whole", b"text");
    RUNTIME.block_on(async {
        let chunks = bucket.database.collection("b.chunks");
        let one = doc! { "files_id": id, "n": 1 };
        assert_eq!(chunks.delete_one(one).await.unwrap().deleted_count, 1);
        let nameless =
            doc! { "length": 0_i64, "chunkSize": 261_120, "uploadDate": DateTime::now() };
        let files = bucket.database.collection("b.files");
        files.insert_one(nameless).await.unwrap();
    });
    let mount = place.mount("m", &bucket.url(), &[], true);
    let mut names: Vec<_> = fs::read_dir(mount.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["damaged", "whole"]);
    assert_eq!(read(&mount, "whole"), "text");
    assert_eq!(fails(fs::read(mount.path("damaged"))), libc::EIO);
    fs::remove_file(mount.path("damaged")).unwrap();
    assert_eq!(bucket.count("chunks", doc! {}), 1);
}

fn urls_that_name_no_bucket_are_refused(place: &Place) {
    let server = std::env::var(ADDRESS).unwrap();
    for (url, why) in [
        (
            format!("{server}?layout=gridfs"),
            "files are in a bucket of a database",
        ),
        (
            format!("{server}/x?layout=files"),
            "neither documents nor gridfs",
        ),
        (
            format!("{server}/x/$y?layout=gridfs"),
            "cannot be the name of a bucket",
        ),
    ] {
        let said = refusal(place, &url, &[]);
        assert!(said.stderr.contains(why), "{url}: {said:?}");
        assert_eq!(said.code, Some(2), "{url}: {said:?}");
    }
}
