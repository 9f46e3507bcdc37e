use super::*;
use bytes::Bytes;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::SystemTime;
use std::time::{Duration, Instant};

async fn opened(url: &str) -> Result<Opened> {
    open(Location::parse(url)?, OpenOptions::default()).await
}

#[tokio::test]
async fn a_seed_brings_files_folders_links_modes_and_times() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::create_dir(path.join("d")).unwrap();
    std::fs::write(path.join("d/f"), "hello").unwrap();
    std::fs::set_permissions(path.join("d/f"), PermissionsExt::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("d/f", path.join("l")).unwrap();
    let store = opened(&format!("memory:?seed={}", path.display()))
        .await
        .unwrap();
    let page = store
        .driver
        .list(ListRequest::flat(&Key::empty()))
        .await
        .unwrap();
    let modes: Vec<_> = page
        .entries
        .iter()
        .map(|entry| {
            let object = entry.object.clone().unwrap();
            (
                entry.key.to_string(),
                object.size,
                object.attributes.unwrap().mode.unwrap() & !0o777,
            )
        })
        .collect();
    assert_eq!(
        modes,
        [
            ("d/".to_owned(), Some(0), 0o040_000),
            ("d/f".to_owned(), Some(5), 0o100_000),
            ("l".to_owned(), Some(3), 0o120_000),
        ]
    );
    let attributes = store.driver.head(&"d/f".into()).await.unwrap().attributes;
    let attributes = attributes.unwrap();
    assert_eq!(attributes.mode, Some(0o100_640));
    let facts = std::fs::metadata(path.join("d/f")).unwrap();
    let mtime = attributes.mtime.unwrap();
    let seconds = mtime.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(seconds.as_secs() as i64, facts.mtime());
}

#[tokio::test]
async fn wrong_urls_are_refused_with_the_reason() {
    for (url, word) in [
        ("memory:?seed=/no/such/folder", "/no/such/folder"),
        ("memory:?size=lots", "lots"),
        ("memory:?speed=1", "speed"),
        ("memory:x", "neither host nor path"),
        ("memory://host", "neither host nor path"),
    ] {
        let error = opened(url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{url}");
        assert!(error.to_string().contains(word), "{url}: {error}");
    }
}

#[tokio::test]
async fn a_full_store_refuses_and_keeps_what_it_has() {
    let store = Memory::with_size(10);
    let key = Key::from("k");
    let put = |text: &'static str| store.put(&key, text.into(), PutOptions::default());
    put("12345678").await.unwrap();
    put("1234567890").await.unwrap();
    let error = put("12345678901").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let other = Key::from("other");
    let copy = store.copy(&key, &other, CopyOptions::default()).await;
    assert_eq!(copy.unwrap_err().kind(), ErrorKind::NoSpace);
    let upload = store.upload(&other, PutOptions::default()).await.unwrap();
    let part = upload.part(1, "x".into()).await;
    assert_eq!(part.unwrap_err().kind(), ErrorKind::NoSpace);
    let space = store.space().await.unwrap().unwrap();
    assert_eq!((space.total, space.free), (10, 0));
    store.delete(&key, Precondition::None).await.unwrap();
    assert_eq!(store.space().await.unwrap().unwrap().free, 10);
}

#[tokio::test]
async fn bodies_in_memory_are_shared_not_copied() {
    let store = Memory::new();
    let pieces: Arc<[Bytes]> = Arc::new([vec![1; 100].into(), vec![2; 100].into()]);
    let key = Key::from("k");
    store
        .put(&key, Body::Memory(pieces.clone()), PutOptions::default())
        .await
        .unwrap();
    let options = GetOptions {
        range: Some(50..150),
        ..GetOptions::default()
    };
    let object = store.get(&key, options).await.unwrap().found().unwrap();
    let got: Vec<_> = object.body.map(|piece| piece.unwrap()).collect().await;
    assert_eq!(got[0].as_ptr(), pieces[0][50..].as_ptr());
    assert_eq!(got[1].as_ptr(), pieces[1].as_ptr());
    assert_eq!((got[0].len(), got[1].len()), (50, 50));
}

/// A page costs what is on it, not what is in the store: were each of these pages to look at all
/// keys, this would take minutes.
#[tokio::test]
async fn pages_of_a_large_store_are_cheap() {
    let store = Memory::new();
    for i in 0..200_000 {
        let key = Key::from(format!("{}/{i:06}", i % 10));
        store
            .put(&key, Body::empty(), PutOptions::default())
            .await
            .unwrap();
    }
    let begin = Instant::now();
    for _ in 0..300 {
        let page = store.list(ListRequest::directory(&Key::empty())).await;
        assert_eq!(page.unwrap().entries.len(), 10);
    }
    let mut request = ListRequest {
        limit: 2,
        ..ListRequest::flat(&"5/".into())
    };
    for _ in 0..1000 {
        let page = store.list(request.clone()).await.unwrap();
        assert_eq!(page.entries.len(), 2);
        request.token = page.next;
    }
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_watcher_that_lags_is_told_that_it_lost_something() {
    let store = Memory::new();
    let mut changes = store.watch(&"k".into()).await.unwrap();
    for _ in 0..FEED + 1 {
        store
            .put(&"k".into(), Body::empty(), PutOptions::default())
            .await
            .unwrap();
    }
    assert_eq!(changes.next().await.unwrap().unwrap(), Change::Lost);
    let next = changes.next().await.unwrap().unwrap();
    assert!(matches!(next, Change::Written(..)));
}
