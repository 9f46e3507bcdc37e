//! What the S3 driver takes from the environment: proxies, and credentials that end.

use crate::harness::{Place, finish, has_program, no_fuse};
use crate::{anywhere, unless};
use libtest_mimic::Trial;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

const ENDPOINT: &str = "BUCKETFS_TEST_S3_ENDPOINT";

pub fn trials() -> Vec<Trial> {
    let no_server = std::env::var_os(ENDPOINT)
        .is_none()
        .then_some("needs a server: scripts/servers/minio, and BUCKETFS_TEST_S3_ENDPOINT");
    vec![
        anywhere("s3::a_proxy_passes_requests_on", a_proxy_passes_requests_on),
        anywhere(
            "s3::a_proxy_that_refuses_is_named",
            a_proxy_that_refuses_is_named,
        ),
        anywhere("s3::no_proxy_goes_directly", no_proxy_goes_directly),
        anywhere(
            "s3::buckets_without_hosts_are_found_in_the_path",
            buckets_without_hosts_are_found_in_the_path,
        ),
        unless(
            no_server,
            "s3::a_check_of_all_buckets_tells_each",
            a_check_of_all_buckets_tells_each,
        ),
        unless(
            (!has_program("openssl")).then_some("needs openssl"),
            "s3::a_private_certificate_is_trusted_where_it_is_named",
            a_private_certificate_is_trusted_where_it_is_named,
        ),
        unless(
            no_server.or(no_fuse()),
            "s3::credentials_are_renewed_under_a_mount",
            credentials_are_renewed_under_a_mount,
        ),
        unless(
            no_server.or(no_fuse()),
            "s3::a_file_beyond_the_staging_area_is_joined_by_the_server",
            a_file_beyond_the_staging_area_is_joined_by_the_server,
        ),
    ]
}

/// Gives the head of the one request that it gets, and answers with this.
fn serve(answer: &'static str) -> (u16, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        let mut piece = [0; 4096];
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            match stream.read(&mut piece).unwrap() {
                0 => break,
                count => head.extend_from_slice(&piece[..count]),
            }
        }
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(head).unwrap()
    });
    (port, server)
}

const NO_BUCKET: &str = "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 42\r\n\r\n\
    <Error><Code>NoSuchBucket</Code></Error>\r\n";

/// `check` of a bucket at an endpoint, through what the environment says.
fn check(place: &Place, endpoint: &str, environment: &[(&str, String)]) -> Command {
    let mut command = check_anywhere(place, endpoint, environment);
    command.arg("--force-path-style");
    command
}

/// The same, without a word about where buckets are.
fn check_anywhere(place: &Place, endpoint: &str, environment: &[(&str, String)]) -> Command {
    let url = ["check", "s3://b", "--endpoint-url", endpoint];
    let mut command = place.command(&url);
    for (name, _) in std::env::vars_os() {
        let lower = name.to_string_lossy().to_lowercase();
        if lower.ends_with("_proxy") || lower.starts_with("aws_") {
            command.env_remove(name);
        }
    }
    command
        .args(["--retries", "0"])
        .env("AWS_ACCESS_KEY_ID", "AKID")
        .env("AWS_SECRET_ACCESS_KEY", "hush")
        .envs(environment.iter().map(|(name, value)| (name, value)));
    command
}

fn a_proxy_passes_requests_on() {
    let place = Place::new();
    let (port, proxy) = serve(NO_BUCKET);
    let environment = [(
        "http_proxy",
        format!("http://me:pass%20word@127.0.0.1:{port}"),
    )];
    let said = finish(check(
        &place,
        "http://s3.nowhere.invalid:9000",
        &environment,
    ));
    assert!(said.stderr.contains("does not exist"), "{said:?}");
    let head = proxy.join().unwrap();
    assert!(
        head.starts_with("GET http://s3.nowhere.invalid:9000/b/?"),
        "{head}"
    );
    assert!(
        head.to_lowercase()
            .contains("\r\nproxy-authorization: basic ")
    );
    assert!(!said.stderr.contains("pass"), "{said:?}");
}

fn a_proxy_that_refuses_is_named() {
    let place = Place::new();
    let (port, proxy) = serve("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    let environment = [("HTTPS_PROXY", format!("http://me:word@127.0.0.1:{port}"))];
    let said = finish(check(&place, "https://s3.nowhere.invalid", &environment));
    let named = format!("the proxy 127.0.0.1:{port} of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY");
    assert!(said.stderr.contains(&named), "{said:?}");
    assert!(said.stderr.contains("NO_PROXY"), "{said:?}");
    assert!(!said.stderr.contains("word"), "{said:?}");
    let head = proxy.join().unwrap();
    assert!(
        head.starts_with("CONNECT s3.nowhere.invalid:443 "),
        "{head}"
    );
}

/// A service of which nobody said that it has no host for each bucket.
fn buckets_without_hosts_are_found_in_the_path() {
    let place = Place::new();
    let (port, first) = serve("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    let endpoint = "http://s3.nowhere.invalid:9000";
    let environment = [("http_proxy", format!("http://127.0.0.1:{port}"))];
    // The server is gone after its one answer, but has heard where the next question goes.
    let said = finish(check_anywhere(&place, endpoint, &environment));
    let head = first.join().unwrap();
    assert!(
        head.starts_with("GET http://b.s3.nowhere.invalid:9000/?"),
        "{head}"
    );
    assert!(said.stderr.contains("the proxy 127.0.0.1"), "{said:?}");
    let (port, second) = serve(NO_BUCKET);
    let environment = [("http_proxy", format!("http://127.0.0.1:{port}"))];
    finish(check(&place, endpoint, &environment));
    let head = second.join().unwrap();
    assert!(
        head.starts_with("GET http://s3.nowhere.invalid:9000/b/?"),
        "{head}"
    );
}

fn a_check_of_all_buckets_tells_each() {
    let place = Place::new();
    let endpoint = std::env::var(ENDPOINT).unwrap();
    make_bucket("bucketfs-cli", &endpoint);
    let args = [
        "check",
        "s3://",
        "--endpoint-url",
        &endpoint,
        "--region",
        "us-east-1",
    ];
    let said = place.run(&args);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said:?}");
    assert!(said.stdout.starts_with("s3:// answers\n"), "{said:?}");
    assert!(said.stdout.contains("\nbucketfs-cli: works\n"), "{said:?}");
    let said = place.run(&[&args[..], &["--clean"]].concat());
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(
        said.stderr.contains("name it, as in s3://BUCKET"),
        "{said:?}"
    );
    let mnt = place.text("mnt");
    let one = ["mount", "memory:", &mnt, "--create-buckets"];
    let said = place.run(&one);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(
        said.stderr
            .contains("--create-buckets is for mounts of all buckets")
    );
}

fn no_proxy_goes_directly() {
    let place = Place::new();
    let (port, server) = serve(NO_BUCKET);
    let environment = [
        ("http_proxy", "http://127.0.0.1:9".to_owned()),
        ("no_proxy", "127.0.0.1".to_owned()),
    ];
    let endpoint = format!("http://127.0.0.1:{port}");
    let said = finish(check(&place, &endpoint, &environment));
    assert!(said.stderr.contains("does not exist"), "{said:?}");
    assert!(server.join().unwrap().starts_with("GET /b/?"));
}

/// Answers every request over TLS, with a certificate of its own authority. Gives the port.
fn serve_tls(place: &Place) -> u16 {
    let openssl = |args: &[&str]| {
        let mut command = Command::new("openssl");
        command.args(args).current_dir(place.path(""));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ];
    let authority = [
        "req", "-x509", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem",
    ];
    openssl(&[&authority[..], &key].concat());
    let request = [
        "req", "-subj", "/CN=s3", "-keyout", "own.key", "-out", "own.csr",
    ];
    openssl(&[&request[..], &key].concat());
    std::fs::write(place.path("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl(&[
        "x509",
        "-req",
        "-in",
        "own.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-extfile",
        "names",
        "-out",
        "own.pem",
    ]);
    let certificate = CertificateDer::from_pem_file(place.path("own.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(place.path("own.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream);
            // The client may not like what it sees.
            if stream.read(&mut [0; 4096]).is_ok() {
                let _ = stream.write_all(NO_BUCKET.as_bytes());
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    port
}

fn a_private_certificate_is_trusted_where_it_is_named() {
    let place = Place::new();
    let port = serve_tls(&place);
    let (https, http) = (
        format!("https://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{port}"),
    );
    let bundle = |name: &str| [("AWS_CA_BUNDLE", place.text(name))];
    let said = finish(check(&place, &https, &bundle("ca.pem")));
    assert!(said.stderr.contains("does not exist"), "{said:?}");
    assert_eq!(said.code, Some(5));
    let said = finish(check(&place, &https, &[]));
    assert_eq!(
        said.stderr,
        format!(
            "bucketfs: cannot open s3://b: no secure connection to {https}: invalid peer certificate: UnknownIssuer; if it is a private one, let AWS_CA_BUNDLE name a file with its issuer\n"
        )
    );
    assert_eq!(said.code, Some(3));
    for (name, why) in [
        (
            "none.pem",
            "cannot read the certificates that AWS_CA_BUNDLE names in",
        ),
        ("names", "there is no certificate in"),
    ] {
        let said = finish(check(&place, &https, &bundle(name)));
        assert!(said.stderr.contains(why), "{said:?}");
        assert_eq!(said.code, Some(2));
    }
    // Plain HTTP where the server expects TLS.
    let said = finish(check(&place, &http, &[]));
    assert!(
        said.stderr
            .contains("if the server expects TLS, write https:// in the endpoint"),
        "{said:?}"
    );
}

/// Credentials of a process that end after seconds are asked for again, and nobody notices.
fn credentials_are_renewed_under_a_mount() {
    let place = Place::new();
    let (script, asked) = (place.path("credentials"), place.path("asked"));
    let key = |name| std::env::var(name).unwrap();
    let text = format!(
        "#!/bin/sh\necho >>{}\ncat <<END\n{{\"Version\": 1, \"AccessKeyId\": \"{}\", \
         \"SecretAccessKey\": \"{}\", \"Expiration\": \"$(date -u -d '+12 seconds' +%Y-%m-%dT%H:%M:%SZ)\"}}\nEND\n",
        asked.display(),
        key("AWS_ACCESS_KEY_ID"),
        key("AWS_SECRET_ACCESS_KEY"),
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
    let config = format!(
        "[profile ending]\nregion = us-east-1\ncredential_process = {}\n",
        script.display()
    );
    std::fs::write(place.path("config"), config).unwrap();
    let count = || std::fs::read(&asked).map_or(0, |lines| lines.len());

    let mnt = place.text("mnt");
    let (bucket, endpoint) = (
        format!("s3://bucketfs-cli/{:016x}", bucketfs::clock::random()),
        key(ENDPOINT),
    );
    make_bucket("bucketfs-cli", &endpoint);
    let mut mount = place.command(&[
        "mount",
        &bucket,
        &mnt,
        "--endpoint-url",
        &endpoint,
        "--profile",
        "ending",
    ]);
    mount
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env("AWS_CONFIG_FILE", place.path("config"));
    let said = finish(mount);
    assert_eq!(said.code, Some(0), "{said:?}");
    let before = count();
    assert!(before >= 1, "the process was asked");
    for i in 0..5 {
        let file = place.mnt().join(format!("file-{i}"));
        std::fs::write(&file, "text").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"text");
        std::thread::sleep(Duration::from_secs(1));
    }
    assert!(count() > before, "the process was asked again");
    let said = place.run(&["umount", &mnt]);
    assert_eq!(said.code, Some(0), "{said:?}");
}

/// What has no room here waits in the bucket, out of sight, and is nobody's when the file is there.
fn a_file_beyond_the_staging_area_is_joined_by_the_server() {
    const MIB: usize = 1 << 20;
    let place = Place::new();
    let mnt = place.text("mnt");
    let endpoint = std::env::var(ENDPOINT).unwrap();
    make_bucket("bucketfs-cli", &endpoint);
    let id = bucketfs::clock::random();
    let url = format!("s3://bucketfs-cli/large-{id:016x}");
    let hidden = format!("{url}/.bucketfs/staging");
    let connect = ["--endpoint-url", &endpoint];
    let mount = |url: &str| {
        let staging = ["mount", url, &mnt, "--staging-size", "16M"];
        let said = place.run(&[&staging[..], &connect].concat());
        assert_eq!(said.code, Some(0), "{said:?}");
    };
    let umount = || {
        let said = place.run(&["umount", &mnt]);
        assert_eq!(said.code, Some(0), "{said:?}");
    };
    let mut bytes: Vec<u8> = (0..70 * MIB / 8)
        .flat_map(|i| (i as u64).to_be_bytes())
        .collect();
    mount(&url);
    let name = place.mnt().join("large");
    let mut file = std::fs::File::create(&name).unwrap();
    file.write_all(&bytes).unwrap();
    // As archivers do, that write the header when they know what is behind it.
    file.write_all_at(b"header", 0).unwrap();
    bytes[..6].copy_from_slice(b"header");
    file.sync_all().unwrap();
    file.write_all(&bytes[..3 * MIB]).unwrap();
    bytes.extend_from_within(..3 * MIB);
    let error = file.set_len(1 << 40).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
    drop(file);
    umount();
    mount(&url);
    assert!(std::fs::read(&name).unwrap() == bytes);
    umount();
    mount(&hidden);
    let left = std::fs::read_dir(place.mnt()).unwrap().count();
    assert_eq!(left, 0, "objects that nobody needs");
    umount();
}

fn make_bucket(name: &str, endpoint: &str) {
    let options = bucketfs::driver::OpenOptions {
        endpoint_url: Some(endpoint.to_owned()),
        region: Some("us-east-1".to_owned()),
        ..Default::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let made = runtime.block_on(async {
        let account = bucketfs::driver::s3::Account::configure(&options, None).await?;
        account.create_bucket(name).await
    });
    match made {
        Err(error) if error.kind() != bucketfs::driver::ErrorKind::Exists => panic!("{error}"),
        _ => {}
    }
}
