//! Many writers, in one process and in several.

use super::*;

#[tokio::test]
async fn etags_never_come_back() {
    for make in [driver, frugal] {
        let dir = tempfile::tempdir().unwrap();
        let driver = make(dir.path());
        let mut seen = HashSet::new();
        for round in 0..1000 {
            let info = driver
                .write("k", if round % 2 == 0 { "even" } else { "odd!" })
                .await;
            assert_eq!(driver.head(&key("k")).await.unwrap(), info);
            assert!(seen.insert(info.etag.clone()), "round {round}: {info:?}");
            if round % 3 == 0 {
                driver.delete(&key("k"), Precondition::None).await.unwrap();
            }
        }
        let link = PutOptions {
            attributes: Attributes {
                mode: Some(libc::S_IFLNK | 0o777),
                ..Attributes::default()
            },
            ..PutOptions::default()
        };
        for round in 0..100 {
            let info = driver
                .put(&key("l"), "target".into(), link.clone())
                .await
                .unwrap();
            assert!(seen.insert(info.etag), "round {round}");
        }
    }
}

/// Adds 100 to a counter, one by one, by compare and set.
async fn increment(driver: &Local) {
    for _ in 0..100 {
        loop {
            let got = driver.get(&key("d/counter"), GetOptions::default()).await;
            let (info, bytes) = got.unwrap().found().unwrap().collect().await.unwrap();
            let count: u64 = std::str::from_utf8(&bytes).unwrap().parse().unwrap();
            let options = PutOptions {
                precondition: Precondition::IfMatch(info.etag),
                ..PutOptions::default()
            };
            let next = Body::from((count + 1).to_string().into_bytes());
            match driver.put(&key("d/counter"), next, options).await {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Changed, "{error}"),
            }
        }
    }
}

const COUNTER_DIR: &str = "BUCKETFS_TEST_COUNTER_DIR";

#[tokio::test]
#[ignore = "one of the processes of compare_and_set_is_exact_between_processes, which starts it"]
async fn increments_of_one_process() {
    let path = std::env::var_os(COUNTER_DIR).expect("the other test sets the directory");
    increment(&driver(Path::new(&path))).await;
}

#[tokio::test]
async fn compare_and_set_is_exact_between_processes() {
    let Bench { dir, driver } = bench();
    driver.write("d/counter", "0").await;
    let children: Vec<_> = (0..6)
        .map(|_| {
            tokio::process::Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact"])
                .arg("driver::local::tests::races::increments_of_one_process")
                .env(COUNTER_DIR, dir.path())
                .stdout(std::process::Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().await.unwrap().success());
    }
    assert_eq!(driver.read("d/counter").await, "600");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compare_and_set_is_exact_between_drivers_of_a_process() {
    let Bench { dir, driver: first } = bench();
    first.write("d/counter", "0").await;
    let tasks: Vec<_> = [driver, frugal, driver, frugal]
        .into_iter()
        .map(|make| make(dir.path()))
        .map(|driver| tokio::spawn(async move { increment(&driver).await }))
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(first.read("d/counter").await, "400");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_one_of_many_creates_wins() {
    let Bench { dir, .. } = bench();
    for round in 0..20 {
        // Markers too, and names that have to stand beside others.
        for name in ["f", "d/", "f/x", "d"] {
            let name = format!("{round}/{name}");
            let tasks: Vec<_> = (0..8)
                .map(|i| {
                    if i % 2 == 0 {
                        driver(dir.path())
                    } else {
                        frugal(dir.path())
                    }
                })
                .map(|driver| {
                    let key = Key::from(&*name);
                    let options = PutOptions {
                        precondition: Precondition::IfAbsent,
                        ..PutOptions::default()
                    };
                    tokio::spawn(async move { driver.put(&key, "body".into(), options).await })
                })
                .collect();
            let mut won = 0;
            for task in tasks {
                match task.await.unwrap() {
                    Ok(_) => won += 1,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Exists, "{error}"),
                }
            }
            assert_eq!(won, 1, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_may_come_and_go_under_a_put() {
    let Bench { dir, driver: first } = bench();
    let tasks: Vec<_> = (0..4)
        .map(|i| {
            let driver = driver(dir.path());
            tokio::spawn(async move {
                let key = Key::from(format!("a/b/{i}"));
                for _ in 0..200 {
                    let options = PutOptions::default();
                    driver.put(&key, "x".into(), options).await.unwrap();
                    assert_eq!(driver.read(&key.to_string()).await, "x");
                    driver.delete(&key, Precondition::None).await.unwrap();
                    for marker in ["a/b/", "a/"] {
                        let marker = Key::from(marker);
                        driver.delete(&marker, Precondition::None).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(first.all().await, []);
    assert_eq!(names(dir.path()), BTreeSet::new());
}
