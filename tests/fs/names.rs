//! Keys that are no paths, and names that are no keys.

use crate::store::Plain;
use crate::world::*;
use bucketfs::fs::{Kind, ROOT};

/// Walks the whole mount; gives the inode of each file with its directory and name.
async fn walk(mount: &Mount) -> Vec<(u64, Vec<u8>, u64, Vec<u8>)> {
    let mut files = Vec::new();
    let mut pending = vec![ROOT];
    while let Some(dir) = pending.pop() {
        for name in mount.names(dir).await.unwrap() {
            let entry = mount.look(dir, &name).await.unwrap();
            if entry.attr.kind == Kind::Directory {
                pending.push(entry.attr.ino);
                continue;
            }
            let opened = mount.fs.open(entry.attr.ino, READ, CALLER).await.unwrap();
            let bytes = mount.fs.read(opened.handle, 0, 1000).await.unwrap();
            mount.fs.release(opened.handle).await.unwrap();
            files.push((dir, name, entry.attr.ino, bytes.to_vec()));
        }
    }
    files
}

fn awkward() -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = [
        "a",
        "a/b",
        "x//y",
        "/lead",
        "//",
        "trail/",
        "dots/.",
        "dots/..",
        "dots/./f",
        "../up",
        ".",
        "%~e",
        "q/%~e",
        "%~z",
        "z%~f",
        "nul\0nul",
        "new\nline",
        "sp ace",
        "\u{fc}\u{1f600}",
        "e/%~%e",
        "deep/a//",
        "deep/a",
        "beside",
        "beside/",
        "beside/x",
    ]
    .iter()
    .map(|key| key.as_bytes().to_vec())
    .collect();
    keys.push(vec![b'r', 0xff, 0xfe]);
    keys.push("l".repeat(300).into_bytes());
    keys.push(format!("{}/{}", "m".repeat(600), "n".repeat(256)).into_bytes());
    keys.push("\u{e9}".repeat(200).into_bytes());
    keys
}

#[tokio::test(start_paused = true)]
async fn every_key_is_found_by_a_walk_and_can_be_read_written_and_deleted() {
    for store in [Plain::memory(), Plain::s3(), Plain::bare()] {
        let world = World::over(store);
        for key in awkward() {
            world.put_bytes(&key, &key).await;
        }
        world.put(".bucketfs/canary", "hidden").await;
        let mount = world.mount();
        let mut found: Vec<_> = walk(&mount).await.into_iter().map(|file| file.3).collect();
        found.sort();
        let mut keys = awkward();
        keys.sort();
        let text = |keys: &[Vec<u8>]| -> Vec<String> {
            keys.iter()
                .map(|key| String::from_utf8_lossy(key).into_owned())
                .collect()
        };
        assert_eq!(text(&found), text(&keys));
        for (_, _, ino, key) in walk(&mount).await {
            let opened = mount
                .fs
                .open(ino, libc::O_WRONLY | libc::O_APPEND, CALLER)
                .await
                .unwrap();
            mount.fs.write(opened.handle, 0, b"!", 7, false).unwrap();
            mount.close(opened.handle).await.unwrap();
            let now = world.get(&String::from_utf8_lossy(&key)).await;
            if std::str::from_utf8(&key).is_ok() {
                assert_eq!(now.unwrap().into_bytes(), [&key[..], b"!"].concat());
            }
        }
        // A file that shared its name with a directory has another one when that is gone.
        for _ in 0..3 {
            for (dir, name, _, _) in walk(&mount).await {
                mount.fs.unlink(dir, &name).await.unwrap();
            }
        }
        let left = world.keys().await;
        assert!(
            left.iter()
                .all(|key| key.ends_with('/') || key.starts_with(".bucketfs")),
            "{left:?}"
        );
        assert!(walk(&mount).await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn names_that_mean_no_new_key_are_refused() {
    let world = World::memory();
    world.put("a", "x").await;
    world.put("a/b", "x").await;
    world.put(&"l".repeat(300), "x").await;
    let mount = world.mount();
    for name in ["x%~f", "x%~p", "x%~c", "%~%%~f"] {
        assert_eq!(
            mount.put(name, CREATE, "x").await,
            Err(libc::EINVAL),
            "{name}"
        );
        assert_eq!(mount.mkdir(name).await, Err(libc::EINVAL), "{name}");
        assert_eq!(mount.rename("a/b", name).await, Err(libc::EINVAL), "{name}");
    }
    let long = "x".repeat(256);
    assert_eq!(mount.put(&long, CREATE, "x").await, Err(libc::ENAMETOOLONG));
    assert_eq!(mount.put(".bucketfs", CREATE, "x").await, Err(libc::EPERM));
    assert_eq!(mount.mkdir(".bucketfs").await, Err(libc::EPERM));
    let chunk = mount
        .ls("")
        .await
        .unwrap()
        .into_iter()
        .find(|name| name.len() > 100)
        .unwrap();
    assert_eq!(
        mount.put(&format!("{chunk}/x"), CREATE, "x").await,
        Err(libc::EINVAL)
    );
    assert_eq!(world.keys().await.len(), 3);
    assert!(mount.put("fine%~z", CREATE, "x").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_escaped_name_makes_the_key_that_it_stands_for() {
    let world = World::memory();
    let mount = world.mount();
    mount.mkdir("%~e").await.unwrap();
    mount.save("%~e/f", "x").await.unwrap();
    mount.save("%~d", "dot").await.unwrap();
    assert_eq!(world.keys().await, [".", "/", "/f"]);
    assert_eq!(world.mount().cat("%~e/f").await.unwrap(), "x");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_would_be_too_long_is_refused() {
    let mut store = Plain::memory();
    store.capabilities.max_key = 20;
    let world = World::over(store);
    let mount = world.mount();
    mount.mkdir("0123456789").await.unwrap();
    let name = |length: usize| format!("0123456789/{}", "x".repeat(length));
    assert_eq!(mount.put(&name(9), CREATE, "x").await, Ok(()));
    assert_eq!(
        mount.put(&name(10), CREATE, "x").await,
        Err(libc::ENAMETOOLONG)
    );
    assert_eq!(mount.mkdir(&name(9)).await, Err(libc::EEXIST));
    assert_eq!(
        mount.stat(&name(30)).await.map(|_| ()),
        Err(libc::ENAMETOOLONG)
    );
    assert_eq!(
        mount.rename("0123456789", "0123456789a").await,
        Err(libc::ENAMETOOLONG)
    );
    assert_eq!(mount.cat(&name(9)).await.unwrap(), "x");
}

#[tokio::test(start_paused = true)]
async fn names_a_store_cannot_spell_are_refused() {
    let mut store = Plain::memory();
    store.capabilities.utf8_keys = true;
    let world = World::over(store);
    let mount = world.mount();
    // Nor is the store asked for them, which could only refuse that.
    let looked = mount.look(ROOT, &[b'x', 0xff]).await;
    assert_eq!(looked.unwrap_err(), libc::ENOENT);
    assert_eq!(mount.cost(), "");
    let create = mount
        .fs
        .create(ROOT, &[b'x', 0xff], 0o644, CREATE, CALLER)
        .await;
    assert_eq!(create.unwrap_err().errno(), libc::EILSEQ);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_of_a_very_long_name_is_kept_where_it_can_be_found() {
    let world = World::memory();
    let key = "k".repeat(255);
    world.put(&key, "base").await;
    let mount = world.mount();
    let handle = mount.open(&key, REPLACE).await.unwrap();
    mount.write(handle, 0, "mine").unwrap();
    world.put(&key, "theirs").await;
    assert_eq!(mount.close(handle).await, Err(libc::ESTALE));
    let found: Vec<_> = walk(&mount).await.into_iter().map(|file| file.3).collect();
    assert_eq!(found.len(), 2);
    assert!(found.contains(&b"mine".to_vec()) && found.contains(&b"theirs".to_vec()));
}
