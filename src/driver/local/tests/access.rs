//! Files that this process may not read.

use super::*;

/// Takes from this thread, and those that it begins, what bars nothing to root.
fn drop_capabilities() {
    let mut ours = rustix::thread::capabilities(None).unwrap();
    ours.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    rustix::thread::set_capabilities(None, ours).unwrap();
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A directory with the file `secret`, which has an attribute and only can be written, and others.
/// Nothing is where the filesystem keeps no attributes.
fn guarded() -> Bench {
    let bench = bench();
    assert!(bench.driver.0.xattrs, "{:?} keeps no xattrs", bench.dir);
    let secret = bench.dir.path().join("secret");
    for name in ["a", "secret", "z"] {
        fs::write(bench.dir.path().join(name), "1").unwrap();
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&secret, "user.note", b"kept", flags).unwrap();
    allow(&secret, 0o200);
    drop_capabilities();
    assert!(fs::read(&secret).is_err());
    bench
}

fn put(store: &Store, name: &str, options: &PutOptions) -> Result<ObjectInfo> {
    let key = key(name);
    store.put(&KeyPath::parse_for_write(&key)?, &"2".into(), options)
}

fn change(store: &Store, change: &AttributeChange) -> Result<ObjectInfo> {
    store.set_attributes(&existing(&key("secret"))?, change, None)
}

#[test]
fn a_file_that_cannot_be_read_is_listed_like_any_other() {
    let Bench { dir: _dir, driver } = guarded();
    for request in [
        ListRequest::flat(&Key::empty()),
        ListRequest::directory(&Key::empty()),
    ] {
        let page = driver.0.list(&request).unwrap();
        let keys: Vec<_> = page.entries.iter().map(|entry| entry.key.clone()).collect();
        assert_eq!(keys, [key("a"), key("secret"), key("z")]);
        let listed = page.entries[1].object.clone().unwrap();
        assert_eq!(listed.size, Some(1));
        let told = listed.attributes.unwrap();
        assert_eq!((told.mode.unwrap() & 0o777, told.user.len()), (0o200, 0));
        // The version that a stat tells, too.
        let found = driver.0.root.find(&existing(&key("secret")).unwrap());
        let stat = attributes::facts(&found.unwrap().unwrap(), true).unwrap();
        assert_eq!(stat.etag, listed.etag);
    }
}

#[test]
fn attributes_that_cannot_be_read_are_not_lost() {
    let Bench { dir, driver } = guarded();
    let store = &driver.0;
    let path = dir.path().join("secret");
    let found = store.root.find(&existing(&key("secret")).unwrap());
    let etag = attributes::facts(&found.unwrap().unwrap(), true)
        .unwrap()
        .etag;
    for precondition in [Precondition::None, Precondition::IfMatch(etag.clone())] {
        let options = PutOptions {
            precondition,
            ..PutOptions::default()
        };
        assert_eq!(kind(put(store, "secret", &options)), ErrorKind::Denied);
    }
    let noted = AttributeChange {
        user: [("other".to_owned(), Some(Bytes::from("new")))].into(),
        ..AttributeChange::default()
    };
    assert_eq!(kind(change(store, &noted)), ErrorKind::Denied);
    // The mode can be changed by whom the file belongs to, and all is there.
    let open = AttributeChange {
        mode: Some(0o600),
        ..AttributeChange::default()
    };
    let told = change(store, &open).unwrap().attributes.unwrap();
    assert_eq!(told.user["note"], "kept");
    assert_eq!(fs::read(&path).unwrap(), b"1");
    let options = PutOptions::default();
    put(store, "secret", &options).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"2");
}

#[test]
fn a_file_that_cannot_be_read_can_be_written_and_removed() {
    let Bench { dir, driver } = guarded();
    let store = &driver.0;
    // One without attributes loses none.
    let drop_box = PutOptions {
        attributes: Attributes {
            mode: Some(0o200),
            ..Attributes::default()
        },
        ..PutOptions::default()
    };
    let first = put(store, "a", &drop_box).unwrap();
    let again = PutOptions {
        precondition: Precondition::IfMatch(first.etag),
        ..drop_box
    };
    put(store, "a", &again).unwrap();
    let secret = key("secret");
    let moved = key("moved");
    let options = CopyOptions::default();
    store
        .rename(
            &existing(&secret).unwrap(),
            &existing(&moved).unwrap(),
            &options,
        )
        .unwrap();
    let removed = store.delete(&existing(&moved).unwrap(), &Precondition::None);
    removed.unwrap();
    assert_eq!(
        names(dir.path()),
        BTreeSet::from([".bucketfs", "a", "z"].map(String::from))
    );
}

#[test]
fn a_directory_that_can_only_be_read_does_not_end_a_listing_of_what_it_is_in() {
    let Bench { dir, driver } = guarded();
    let closed = dir.path().join("d");
    fs::create_dir(&closed).unwrap();
    fs::write(closed.join("k"), "1").unwrap();
    allow(&closed, 0o400);
    let page = driver.0.list(&ListRequest::flat(&Key::empty()));
    let keys: Vec<_> = page
        .unwrap()
        .entries
        .into_iter()
        .map(|entry| entry.key)
        .collect();
    allow(&closed, 0o700);
    assert_eq!(keys, [key("a"), key("d/"), key("secret"), key("z")]);
}
