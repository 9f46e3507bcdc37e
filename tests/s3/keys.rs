//! Keys as they are, and listings of them.

use super::*;

/// A key that the server takes is the same key in every operation; any other is refused.
pub async fn awkward_keys() -> Outcome {
    let bucket = fresh().await?;
    let longest = "0123456789abcdef/".repeat(61)[..1024].to_owned();
    let plain = [
        "a b",
        "a+b",
        "a%20b",
        "%2F",
        "\u{e4}\u{1f600}",
        "a\nb\u{1}\t",
        "q?x=1&y#z",
        "~*'();:@$,[]\"<>\\|^`{}",
        "x/y/",
        longest.as_str(),
    ];
    // moto answers 404 to a key with a line feed in it.
    let moto = std::env::var(SERVER).is_ok_and(|server| server == "moto");
    let plain = plain.iter().filter(|key| !(moto && key.contains('\n')));
    let folding = ["/a b", "a//b", "./c", "d/../e", "f/.", "..", "//"];
    let mut kept = BTreeSet::new();
    for key in plain.chain(&folding).copied() {
        let key = Key::from(key);
        let put = bucket.put(
            &key,
            Body::from(key.as_bytes().to_vec()),
            when(Precondition::IfAbsent),
        );
        match put.await {
            Ok(_) => assert!(kept.insert(key)),
            Err(error) => {
                let kinds = [ErrorKind::InvalidKey, ErrorKind::NameTooLong];
                assert!(kinds.contains(&error.kind()), "{error}");
                assert!(
                    folding.contains(&key.to_str().unwrap_or_default()),
                    "{error}"
                );
            }
        }
    }
    for key in &kept {
        assert_eq!(read(&bucket, key).await?, key.bytes(), "{key}");
    }
    let page = bucket.list(ListRequest::flat(&Key::empty())).await?;
    let listed: Vec<Key> = page.entries.into_iter().map(|entry| entry.key).collect();
    assert_eq!(listed, kept.iter().cloned().collect::<Vec<_>>());
    if bucket.capabilities().copy.is_some() {
        for key in &kept {
            bucket
                .copy(key, &Key::from("copy"), CopyOptions::default())
                .await?;
            assert_eq!(
                read(&bucket, &Key::from("copy")).await?,
                key.bytes(),
                "{key}"
            );
        }
    }
    let mut all: Vec<Key> = kept.into_iter().collect();
    all.push(Key::from("copy"));
    all.push(Key::from("never"));
    let all: Vec<Removal> = all.into_iter().map(Removal::from).collect();
    for result in bucket.delete_many(&all).await? {
        result?;
    }
    let page = bucket.list(ListRequest::flat(&Key::empty())).await?;
    assert_eq!(page.entries, []);
    for (key, want) in [
        (Key::empty(), ErrorKind::InvalidKey),
        (Key::new(vec![b'a', 0xff]), ErrorKind::InvalidKey),
        (Key::from("x".repeat(1025)), ErrorKind::NameTooLong),
    ] {
        let put = bucket.put(&key, "x".into(), PutOptions::default()).await;
        assert_eq!(kind(put), Some(want));
        assert_eq!(kind(bucket.head(&key).await), Some(want));
    }
    Ok(())
}

/// Pages join to the whole listing, flat and folded, from any start.
pub async fn paging() -> Outcome {
    let bucket = fresh().await?;
    let mut keys: Vec<Key> = (0..2_500)
        .map(|i| Key::from(format!("p/{:02}/f {i:04}\u{e4}", i % 50)))
        .collect();
    // Not "p/00": MinIO hides everything below a key from listings.
    for beside in ["p/00-", "p/00.", "p/000", "q"] {
        keys.push(Key::from(beside));
    }
    keys.sort();
    let mut tasks = tokio::task::JoinSet::new();
    for chunk in keys.chunks(keys.len() / 16 + 1) {
        let (bucket, chunk) = (bucket.clone(), chunk.to_vec());
        tasks.spawn(async move {
            for key in chunk {
                bucket.put(&key, "x".into(), PutOptions::default()).await?;
            }
            Ok::<_, Error>(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    let whole = async |mut request: ListRequest| -> Result<Vec<Key>, Error> {
        let mut all = Vec::new();
        loop {
            let page = bucket.list(request.clone()).await?;
            assert!(page.entries.len() <= request.limit);
            for entry in &page.entries {
                assert_eq!(entry.object.is_none(), entry.key.as_bytes().ends_with(b"/"));
            }
            all.extend(page.entries.into_iter().map(|entry| entry.key));
            match page.next {
                Some(token) => request.token = Some(token),
                None => return Ok(all),
            }
        }
    };
    let flat = whole(ListRequest::flat(&Key::empty())).await?;
    let wrong = flat.iter().zip(&keys).find(|(got, want)| got != want);
    assert_eq!((wrong, flat.len()), (None, keys.len()));
    let prefix = Key::from("p/");
    let mut folded: Vec<Key> = (0..50).map(|i| Key::from(format!("p/{i:02}/"))).collect();
    folded.extend(["p/00-", "p/00.", "p/000"].map(Key::from));
    folded.sort();
    for limit in [7, 1000] {
        let request = ListRequest {
            limit,
            ..ListRequest::directory(&prefix)
        };
        assert_eq!(whole(request).await?, folded);
    }
    for after in ["p/00-", "p/00/", "p/00/z", "p/49/"] {
        let after = Key::from(after);
        let request = ListRequest {
            start_after: Some(after.clone()),
            limit: 7,
            ..ListRequest::directory(&prefix)
        };
        let rest: Vec<Key> = folded.iter().filter(|key| **key > after).cloned().collect();
        assert_eq!(whole(request).await?, rest, "after {after}");
    }
    for part in keys.chunks(1000) {
        let part: Vec<Removal> = part.iter().cloned().map(Removal::from).collect();
        for result in bucket.delete_many(&part).await? {
            result?;
        }
    }
    assert_eq!(whole(ListRequest::flat(&Key::empty())).await?, []);
    Ok(())
}
