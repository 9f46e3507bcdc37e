use super::*;

/// Sources with a URL and, of each kind, the given pairs.
fn sources(
    flags: &[(&'static str, &str)],
    mount_options: &[&str],
    environment: &[(&str, &str)],
) -> Sources {
    Sources {
        url: Some("memory:".into()),
        flags: Flags(
            flags
                .iter()
                .map(|(name, value)| (*name, value.into()))
                .collect(),
        ),
        mount_options: mount_options.iter().map(|&list| list.into()).collect(),
        environment: environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
    }
}

fn config(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn defaults_parse() {
    let settings = resolve(sources(&[], &[], &[])).unwrap();
    assert_eq!(settings.metadata_ttl, Duration::from_secs(1));
    assert_eq!(settings.negative_ttl, Duration::from_secs(1));
    assert_eq!(settings.store.deadline, Duration::from_secs(30));
    assert_eq!(settings.memory, 256 << 20);
    assert_eq!((settings.file_mode, settings.dir_mode), (0o644, 0o755));
    assert_eq!(settings.exclusive_create, ExclusiveCreate::Locks);
    assert_eq!(settings.consistency, Consistency::CloseToOpen);
    assert_eq!(settings.access, Access::Owner);
    assert!(!settings.read_only && !settings.foreground);
    // A default that is parsed must not be one of those that are only shown, and the reverse.
    for option in OPTIONS {
        assert!(!option.default.is_empty(), "{}", option.name);
    }
}

#[test]
fn what_the_service_is_to_do_with_objects_is_checked() {
    let options =
        |text: &str| resolve(sources(&[], &[text], &[])).map(|settings| settings.store.open);
    let plain = options("retries=1").unwrap();
    assert!(!plain.no_sign_request && !plain.requester_pays && plain.sse.is_none());
    let all =
        options("sse=aws:kms,sse-kms-key-id=alias/a,storage_class=STANDARD_IA,requester-pays");
    let all = all.unwrap();
    assert_eq!(
        (all.sse, all.sse_kms_key_id.as_deref()),
        (Some(Encryption::Kms), Some("alias/a"))
    );
    assert_eq!(all.storage_class.as_deref(), Some("STANDARD_IA"));
    assert!(all.requester_pays && options("no_sign_request").unwrap().no_sign_request);
    for wrong in [
        "sse=kms",
        "sse-kms-key-id=k",
        "sse=AES256,sse-kms-key-id=k",
        "no-sign-request,profile=p",
    ] {
        let failure = options(wrong).unwrap_err();
        assert_eq!(failure.exit, crate::exit::Exit::Usage, "{wrong}");
    }
}

#[test]
fn flag_beats_mount_option_beats_environment_beats_file_beats_default() {
    let (_dir, path) = config(r#"{"retries": 1, "memory": "1M", "deadline": 2, "uid": 3}"#);
    let all = sources(
        &[("retries", "4"), ("config", &path)],
        &["retries=3,memory=3M"],
        &[
            ("BUCKETFS_RETRIES", "2"),
            ("BUCKETFS_MEMORY", "2M"),
            ("BUCKETFS_DEADLINE", "5s"),
        ],
    );
    let settings = resolve(all).unwrap();
    assert_eq!(settings.store.retries, 4);
    assert_eq!(settings.memory, 3 << 20);
    assert_eq!(settings.store.deadline, Duration::from_secs(5));
    assert_eq!(settings.uid, 3);
    assert_eq!(settings.store.concurrency, 64);
}

#[test]
fn a_switch_can_be_turned_off_by_a_stronger_source() {
    let settings = resolve(sources(
        &[("read-only", "false")],
        &["allow_other,debug"],
        &[("BUCKETFS_READ_ONLY", "1"), ("BUCKETFS_DEBUG", "")],
    ))
    .unwrap();
    assert!(!settings.read_only);
    assert_eq!(settings.access, Access::Other);
    assert_eq!(settings.store.log_level, LevelFilter::Debug);
}

#[test]
fn the_url_may_come_from_anywhere() {
    let (_dir, path) = config(r#"{"url": "memory:?seed=/file"}"#);
    let environment = [("BUCKETFS_CONFIG", path.as_str())];
    let mut all = sources(&[], &[], &environment);
    assert_eq!(
        resolve_store(all.clone()).unwrap().location.to_string(),
        "memory:"
    );
    all.url = None;
    let location = resolve_store(all.clone()).unwrap().location;
    assert_eq!(location.to_string(), "memory:?seed=/file");
    all.environment
        .push(("BUCKETFS_URL".into(), "memory:?seed=/env".into()));
    let location = resolve_store(all).unwrap().location;
    assert_eq!(location.to_string(), "memory:?seed=/env");
}

#[test]
fn a_password_is_refused_where_others_can_read_it() {
    let (_dir, path) = config(r#"{"url": "memory://u:SECRET@h"}"#);
    let mut sources = sources(&[("config", &path)], &[], &[]);
    sources.url = None;
    let allow = |mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&path, mode).unwrap();
    };
    allow(0o640);
    let message = resolve_store(sources.clone()).unwrap_err().message;
    assert_eq!(
        message,
        format!(
            "{path}: the url holds a password and other users can read this file; chmod 600 {path}"
        )
    );
    allow(0o600);
    let location = resolve_store(sources).unwrap().location;
    assert_eq!(location.to_string(), "memory://u:***@h");
}

#[test]
fn a_prefix_ends_with_one_slash() {
    for (given, key) in [("", ""), ("/", ""), ("a", "a/"), ("/a/b/", "a/b/")] {
        let store = resolve_store(sources(&[("prefix", given)], &[], &[])).unwrap();
        assert_eq!(store.prefix, Key::from(key), "{given:?}");
    }
}

#[test]
fn what_is_wrong_names_its_place() {
    let (_dir, bad_key) = config(r#"{"cache_dri": "/x"}"#);
    let (_dir2, bad_value) = config(r#"{"memory": "lots"}"#);
    let (_dir3, bad_type) = config(r#"{"memory": [1]}"#);
    let (_dir4, no_json) = config("memory = 1");
    let (_dir5, no_object) = config("[]");
    let file = |path: &str| sources(&[("config", path)], &[], &[]);
    let cases = [
        (
            sources(&[("retries", "many")], &[], &[]),
            "--retries: \"many\" is not a whole number in range".to_owned(),
        ),
        (
            sources(&[], &["metadata-ttl=soon"], &[]),
            "-o metadata-ttl: \"soon\" is no duration; write it like 2, 500ms or 5m (a number alone is seconds), or minimal or indefinite".to_owned(),
        ),
        (
            sources(&[], &[], &[("BUCKETFS_CONSISTENCY", "strong")]),
            "BUCKETFS_CONSISTENCY: \"strong\" is not one of close-to-open, ttl".to_owned(),
        ),
        (
            sources(&[], &[], &[("BUCKETFS_RETRY", "1")]),
            "unknown environment variable BUCKETFS_RETRY; did you mean BUCKETFS_RETRIES?".to_owned(),
        ),
        (
            sources(&[("concurrency", "0")], &[], &[]),
            "--concurrency: it must be at least 1".to_owned(),
        ),
        (
            sources(&[("allow-other", "true")], &["allow_root"], &[]),
            "allow-other and allow-root exclude each other; give one of them".to_owned(),
        ),
        (
            file(&bad_key),
            format!("{bad_key}: unknown key \"cache_dri\"; did you mean \"cache-dir\"?"),
        ),
        (
            file(&bad_value),
            format!("{bad_value}: memory: \"lots\" is no size; write it like 512M or 4GiB (a number alone is MiB)"),
        ),
        (
            file(&bad_type),
            format!("{bad_type}: memory: the value must be a text, a number, true or false"),
        ),
        (
            file(&no_json),
            format!("{no_json}: this configuration file is not JSON: expected value at line 1 column 1"),
        ),
        (
            file(&no_object),
            format!("{no_object}: a configuration file is one JSON object, like {{\"read-only\": true}}"),
        ),
    ];
    for (sources, message) in cases {
        assert_eq!(resolve(sources).unwrap_err(), Failure::usage(message));
    }
}

#[test]
fn patterns_of_local_names_may_be_given_again() {
    let local = |flags: &[(&'static str, &str)], options: &[&str], environment: &[(&str, &str)]| {
        resolve(sources(flags, options, environment)).map(|settings| settings.local)
    };
    let names = |text| Ok(crate::layer::LocalNames::parse(text).unwrap());
    assert_eq!(local(&[], &[], &[]), names(""));
    let given = local(&[], &["local=*.swp,ro,local=*~:*.bak"], &[]);
    assert_eq!(given, names("*.swp:*~:*.bak"));
    // Other options given again: the last one.
    let settings = resolve(sources(&[], &["retries=1,retries=2"], &[])).unwrap();
    assert_eq!(settings.store.retries, 2);
    let given = local(
        &[("local", "*.a")],
        &["local=*.b"],
        &[("BUCKETFS_LOCAL", "*.c")],
    );
    assert_eq!(given, names("*.a"));
    let (_dir, path) = config(r#"{"local": ["*.swp", "*~"]}"#);
    let given = local(&[("config", &path)], &[], &[]);
    assert_eq!(given, names("*.swp:*~"));
    let (_dir, path) = config(r#"{"local": [1]}"#);
    let refused = local(&[("config", &path)], &[], &[]).unwrap_err();
    assert!(
        refused
            .to_string()
            .ends_with("the values of the list must be texts")
    );
    let (_dir, path) = config(r#"{"memory": ["1M"]}"#);
    local(&[("config", &path)], &[], &[]).unwrap_err();
    let refused = local(&[("local", "*.swp:*.lock")], &[], &[]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "--local: \"*.lock\" is for lock files, which only work where other machines see them; leave it out"
    );
}
