//! Keys, their names on disk, and listings of them.

use super::*;

#[tokio::test]
async fn a_key_beside_keys_below_it() {
    for make in [driver, frugal] {
        let dir = tempfile::tempdir().unwrap();
        let driver = make(dir.path());
        driver.write("file/below", "1").await;
        driver.write("file", "2").await;
        driver.write("dir", "3").await;
        driver.write("dir/below", "4").await;
        let mut on_disk = names(dir.path());
        on_disk.remove(".bucketfs");
        assert_eq!(
            on_disk,
            BTreeSet::from(["file", "file%~f", "dir", "dir%~p"].map(String::from))
        );
        for (name, body) in [
            ("file/below", "1"),
            ("file", "2"),
            ("dir", "3"),
            ("dir/below", "4"),
        ] {
            assert_eq!(driver.read(name).await, body);
        }
        let all = ["dir", "dir/", "dir/below", "file", "file/", "file/below"].map(key);
        assert_eq!(driver.all().await, all);
        let top = driver.keys(ListRequest::directory(&Key::empty())).await;
        assert_eq!(top, ["dir", "dir/", "file", "file/"].map(key));

        // What is there keeps its name when the other one goes.
        driver
            .delete(&key("dir"), Precondition::None)
            .await
            .unwrap();
        driver.write("dir/more", "5").await;
        driver.write("file", "6").await;
        driver
            .delete(&key("file/below"), Precondition::None)
            .await
            .unwrap();
        driver
            .delete(&key("file/"), Precondition::None)
            .await
            .unwrap();
        assert_eq!(driver.read("file").await, "6");
        let all = ["dir/", "dir/below", "dir/more", "file"].map(key);
        assert_eq!(driver.all().await, all);
        driver
            .rename(&key("file"), &key("file/x"), CopyOptions::default())
            .await
            .unwrap();
        assert_eq!(driver.read("file/x").await, "6");
        assert_eq!(kind(driver.head(&key("file")).await), ErrorKind::NotFound);
    }
}

/// Keys with everything that is no path.
fn odd_keys() -> Vec<Key> {
    let long = "x".repeat(252);
    let mut keys: Vec<Key> = [
        "/", "//", "/a", "a/", "a//", "a//b", "a/b", "a", ".", "..", "./x", "../x", "a/../b",
        "%~e", "%~", "a%~f", "a%~p/x", "nul\0", "ö", "a/./", "aa", "a.b", "a0",
    ]
    .into_iter()
    .map(Key::from)
    .collect();
    for tail in [
        "",
        "y",
        "yyy",
        "yyyy",
        "yyyy/x",
        "yyyy/",
        ".",
        "..",
        "..../.",
        "ööööö",
    ] {
        keys.push(Key::from(format!("{long}{tail}")));
        keys.push(Key::from(format!("d/{long}{long}{tail}")));
        keys.push(Key::from(format!("{tail}{long}/{tail}")));
    }
    keys.push(Key::new(vec![0xff, b'/', 0xfe]));
    keys.push(Key::new(vec![b'z'; MAX_KEY]));
    keys.push(Key::new(vec![b'/'; 100]));
    keys.push(Key::new([&[b'w'; 2][..]; 100].concat()));
    keys.sort();
    keys.dedup();
    keys
}

#[tokio::test]
async fn every_key_is_reachable_and_listed_in_order() {
    for make in [driver, frugal] {
        let dir = tempfile::tempdir().unwrap();
        let driver = make(dir.path());
        let keys = odd_keys();
        for key in keys.iter().rev() {
            let options = PutOptions {
                precondition: Precondition::IfAbsent,
                ..PutOptions::default()
            };
            let body = Body::from(key.bytes());
            let made = driver.put(key, body, options).await;
            match made {
                Ok(_) => {}
                // Made before, as the directory of another key.
                Err(error) => {
                    assert!(error.kind() == ErrorKind::Exists && key.as_bytes().ends_with(b"/"));
                    let body = Body::from(key.bytes());
                    driver.put(key, body, PutOptions::default()).await.unwrap();
                }
            }
        }
        for key in &keys {
            let got = driver.get(key, GetOptions::default()).await.unwrap();
            let (info, body) = got.found().unwrap().collect().await.unwrap();
            assert_eq!(body, key.bytes());
            assert_eq!(info, driver.head(key).await.unwrap());
        }
        let all = driver.all().await;
        assert!(all.is_sorted());
        let markers = |key: &&Key| !keys.contains(key);
        assert!(
            all.iter()
                .filter(markers)
                .all(|key| key.as_bytes().ends_with(b"/"))
        );
        assert!(keys.iter().all(|key| all.contains(key)));

        // Any prefix, any start, any size of page, with or without what is kept between pages.
        let prefixes = ["", "a", "a/", "d/", "d/xx", "/", "//", "z", "nope/"].map(key);
        for prefix in &prefixes {
            let start = [None, Some(key("a/b")), Some(key("d/xz"))];
            for (delimiter, start_after) in [true, false]
                .into_iter()
                .flat_map(|d| start.clone().map(|start| (d, start)))
            {
                let mut expected = BTreeSet::new();
                for key in all.iter().filter(|key| key.starts_with(prefix)) {
                    let tail = &key.as_bytes()[prefix.len()..];
                    let fold = tail.iter().position(|byte| *byte == b'/');
                    let key = match fold {
                        Some(fold) if delimiter => {
                            Key::from(&key.as_bytes()[..=prefix.len() + fold])
                        }
                        _ => key.clone(),
                    };
                    if start_after.as_ref().is_none_or(|start| key > *start) {
                        expected.insert(key);
                    }
                }
                let request = ListRequest {
                    prefix: prefix.clone(),
                    delimiter,
                    start_after,
                    token: None,
                    limit: 1000,
                };
                let expected: Vec<_> = expected.into_iter().collect();
                assert!(
                    driver.keys(request.clone()).await == expected,
                    "{request:?}"
                );
                if *prefix == key("//") || prefix.is_empty() && !delimiter {
                    continue;
                }
                let mut paged = Vec::new();
                let mut next = ListRequest {
                    limit: 2,
                    ..request
                };
                loop {
                    let page = driver.list(next.clone()).await.unwrap();
                    paged.extend(page.entries.into_iter().map(|entry| entry.key));
                    driver.0.listings.forget();
                    match page.next {
                        Some(token) => next.token = Some(token),
                        None => break,
                    }
                }
                assert!(paged == expected, "{next:?}");
            }
        }
        for key in keys.iter().rev().chain(all.iter().rev()) {
            driver.delete(key, Precondition::None).await.unwrap();
        }
        assert_eq!(driver.all().await, []);
        drop(driver);
        assert_eq!(names(dir.path()), BTreeSet::new(), "nothing is left behind");
    }
}

#[tokio::test]
async fn a_very_deep_key_is_reachable() {
    let Bench { dir: _dir, driver } = bench();
    // On disk, longer than any path that the kernel takes.
    let deepest = Key::new(vec![b'/'; 1200]);
    let options = PutOptions::default();
    driver.put(&deepest, "deep".into(), options).await.unwrap();
    assert_eq!(driver.head(&deepest).await.unwrap().size, Some(4));
    let all = driver.all().await;
    assert_eq!((all.len(), all.last()), (1200, Some(&deepest)));
    let longer = Key::new(vec![b'/'; MAX_KEY + 1]);
    assert_eq!(kind(driver.head(&longer).await), ErrorKind::NameTooLong);
}

#[tokio::test]
async fn pages_read_the_names_once() {
    let Bench { dir, driver } = bench();
    for i in 0..5000 {
        fs::write(dir.path().join(format!("{i:05}")), "").unwrap();
    }
    let mut request = ListRequest::directory(&Key::empty());
    request.limit = 10;
    let keys = driver.keys(request.clone()).await;
    assert_eq!(keys.len(), 5000);
    assert!(keys.is_sorted());
    // A name that vanishes between two pages is left out, and a new one does no harm.
    let page = driver.list(request.clone()).await.unwrap();
    request.token = page.next;
    fs::remove_file(dir.path().join("00010")).unwrap();
    fs::write(dir.path().join("00010a"), "").unwrap();
    let page = driver.list(request).await.unwrap();
    assert_eq!(page.entries[0].key, key("00011"));
}

#[tokio::test]
async fn a_page_of_many_files_tells_of_each_what_it_alone_tells() {
    let Bench { dir, driver } = bench();
    for i in 0..1500 {
        let name = format!("{i:04}");
        match i {
            400 | 1100 => fs::create_dir(dir.path().join(name)).unwrap(),
            // In chunks on disk.
            700 => {
                driver.write(&name.repeat(100), "long").await;
            }
            _ => fs::write(dir.path().join(name), vec![0; i]).unwrap(),
        }
    }
    for limit in [1, 600, 5000] {
        for mut request in [
            ListRequest::directory(&Key::empty()),
            ListRequest::flat(&Key::empty()),
        ] {
            request.limit = limit;
            let mut count = 0;
            loop {
                let page = driver.list(request.clone()).await.unwrap();
                for entry in page.entries {
                    count += 1;
                    if let Some(info) = entry.object {
                        assert_eq!(
                            info,
                            driver.head(&entry.key).await.unwrap(),
                            "{:?}",
                            entry.key
                        );
                    }
                }
                match page.next {
                    Some(token) => request.token = Some(token),
                    None => break,
                }
            }
            assert_eq!(count, 1500);
        }
    }
}

#[tokio::test]
async fn listing_leaves_a_directorys_access_time_alone() {
    let bench = bench();
    bench.driver.write("d/f", "1").await;
    let path = bench.dir.path().join("d");
    // Older than the last change: also `relatime` would move it.
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let times = fs::FileTimes::new().set_accessed(then);
    fs::File::open(&path).unwrap().set_times(times).unwrap();
    assert_eq!(bench.driver.all().await, ["d/", "d/f"].map(key));
    assert_eq!(fs::metadata(&path).unwrap().accessed().unwrap(), then);
}
