//! Services that refuse, do not understand, or are not there: `mount` and `check` say in one line
//! what is wrong and what to do, end with the documented code, and mount nothing.

use crate::harness::{Place, Said, finish, no_fuse};
use crate::{anywhere, unless};
use libtest_mimic::Trial;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

pub fn trials() -> Vec<Trial> {
    let root = rustix::process::geteuid().is_root();
    let not_root = no_fuse().or((!root).then_some("needs root"));
    vec![
        anywhere(
            "refusals::credentials_that_are_missing",
            missing_credentials,
        ),
        anywhere("refusals::services_that_refuse", services_that_refuse),
        anywhere(
            "refusals::credentials_that_may_only_read",
            credentials_that_may_only_read,
        ),
        anywhere("refusals::a_clock_that_is_wrong", a_clock_that_is_wrong),
        anywhere(
            "refusals::services_of_another_kind",
            services_of_another_kind,
        ),
        anywhere(
            "refusals::services_that_are_silent",
            services_that_are_silent,
        ),
        anywhere(
            "refusals::urls_that_name_no_bucket",
            urls_that_name_no_bucket,
        ),
        unless(
            not_root,
            "refusals::machines_without_fuse",
            machines_without_fuse,
        ),
        unless(not_root, "refusals::users_without_fuse", users_without_fuse),
    ]
}

/// Runs with credentials that every service may refuse, and with nothing else of AWS's.
fn run(place: &Place, args: &[&str], keys: bool) -> Said {
    let mut command = place.command(args);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command
        .env("HOME", place.path("home"))
        .env("AWS_EC2_METADATA_DISABLED", "true");
    if keys {
        command
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "SECRET");
    }
    finish(command)
}

/// Expects the same line from `mount`, in the background and not, and from `check`.
fn refused(place: &Place, more: &[&str], keys: bool, code: i32, why: &str) {
    let mnt = place.text("mnt");
    for command in [
        &["mount", "s3://b", &mnt][..],
        &["mount", "-f", "s3://b", &mnt],
        &["check", "s3://b"],
    ] {
        let args = [command, more].concat();
        let said = run(place, &args, keys);
        assert_eq!(
            said.stderr,
            format!("bucketfs: cannot open s3://b: {why}\n"),
            "{args:?}"
        );
        assert_eq!(said.code, Some(code), "{args:?}");
        assert_eq!(said.stdout, "", "{args:?}");
    }
    assert!(!place.is_mounted());
}

fn missing_credentials() {
    let place = Place::new();
    let nobody = ["--endpoint-url", "http://127.0.0.1:1"];
    refused(
        &place,
        &nobody,
        false,
        4,
        "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or choose a profile of ~/.aws (--profile), or log in with `aws sso login`",
    );
    let profile = [&nobody[..], &["--profile", "none"]].concat();
    refused(
        &place,
        &profile,
        true,
        4,
        "there are no credentials in the profile \"none\", or there is no such profile: look into ~/.aws/config and ~/.aws/credentials",
    );
}

/// Answers every request alike. Gives the endpoint's URL.
fn service(status: &'static str, body: &'static str) -> String {
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    listening(move |mut stream| {
        if read_request(&mut stream) {
            let _ = stream.write_all(answer.as_bytes());
        }
    })
}

/// Reads the head of a request; whether there was one.
fn read_request(stream: &mut TcpStream) -> bool {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return false,
            Ok(length) => request.extend_from_slice(&buffer[..length]),
        }
    }
    true
}

/// Listens on a port of its own for as long as the test runs.
fn listening(serve: impl Fn(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
    url
}

fn services_that_refuse() {
    let place = Place::new();
    for (status, body, code, why) in [
        (
            "403 Forbidden",
            "<Error><Code>InvalidAccessKeyId</Code><Message>The key does not exist in our records.</Message></Error>",
            4,
            "InvalidAccessKeyId: The key does not exist in our records; check AWS_ACCESS_KEY_ID or the profile, and that the key belongs to this endpoint",
        ),
        (
            "403 Forbidden",
            "<Error><Code>SignatureDoesNotMatch</Code><Message>It does not match SECRET.</Message></Error>",
            4,
            "SignatureDoesNotMatch: It does not match ***; check AWS_SECRET_ACCESS_KEY or the profile",
        ),
        (
            "400 Bad Request",
            "<Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>",
            4,
            "ExpiredToken: The token has expired; log in again or renew AWS_SESSION_TOKEN",
        ),
        (
            "403 Forbidden",
            "<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>",
            4,
            "these credentials may not list the bucket \"b\" at SITE: AccessDenied: Access Denied; allow s3:ListBucket there",
        ),
        (
            "404 Not Found",
            "<Error><Code>NoSuchBucket</Code><Message>The bucket does not exist</Message></Error>",
            5,
            "the bucket \"b\" does not exist at SITE: NoSuchBucket: The bucket does not exist; create the bucket, or correct its name or the endpoint",
        ),
        (
            "403 Forbidden",
            "<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>",
            4,
            "RequestTimeTooSkewed: The difference is too large; correct this machine's clock",
        ),
        (
            "503 Slow Down",
            "<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>",
            3,
            "SITE cannot answer now (SlowDown: Please reduce your request rate); try again later",
        ),
        (
            "400 Bad Request",
            "<Error><Code>AuthorizationHeaderMalformed</Code><Message>The region is wrong.</Message></Error>",
            4,
            "AuthorizationHeaderMalformed: The region is wrong; name the bucket's region",
        ),
        (
            "400 Bad Request",
            "Client sent an HTTP request to an HTTPS server.\n",
            2,
            "the server answered 400 Bad Request: Client sent an HTTP request to an HTTPS server; write https:// in the endpoint",
        ),
        (
            "301 Moved Permanently",
            "<Error><Code>PermanentRedirect</Code><Message>Use the other endpoint.</Message></Error>",
            2,
            "PermanentRedirect: Use the other endpoint; name the bucket's region or its endpoint",
        ),
    ] {
        let site = service(status, body);
        let why = why.replace("SITE", &site);
        refused(&place, &["--endpoint-url", &site], true, code, &why);
    }
}

/// An answer of a service.
fn answer(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}",
        body.len()
    )
}

fn credentials_that_may_only_read() {
    let place = Place::new();
    let site = listening(|mut stream| {
        let mut method = [0; 3];
        let _ = stream.peek(&mut method);
        let answer = match &method {
            b"GET" => answer(
                "200 OK",
                "",
                "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
            ),
            _ => answer(
                "403 Forbidden",
                "",
                "<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>",
            ),
        };
        if read_request(&mut stream) {
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let why = "these credentials may not write to the bucket \"b\" below \"\": AccessDenied: Access Denied; allow s3:PutObject there, or mount with --read-only";
    refused(&place, &["--endpoint-url", &site], true, 4, why);
    let args = ["check", "s3://b", "--read-only", "--endpoint-url", &site];
    let said = run(&place, &args, true);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said:?}");
}

/// The server's clock is taken over once, with a word about it; a server that refuses that too is
/// believed.
fn a_clock_that_is_wrong() {
    let place = Place::new();
    let skewed = |ahead: u64| {
        let date = std::time::SystemTime::now() + std::time::Duration::from_secs(ahead);
        let date = format!("date: {}\r\n", httpdate::fmt_http_date(date));
        answer(
            "403 Forbidden",
            &date,
            "<Error><Code>RequestTimeTooSkewed</Code><Message>No.</Message></Error>",
        )
    };
    let missing = answer(
        "404 Not Found",
        "",
        "<Error><Code>NoSuchBucket</Code></Error>",
    );
    let answers = [skewed(1200), missing, skewed(1200), skewed(4800)];
    let answers = std::sync::Mutex::new(answers.into_iter());
    let site = listening(move |mut stream| {
        if read_request(&mut stream) {
            let answer = answers.lock().unwrap().next().unwrap_or_default();
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let check = || run(&place, &["check", "s3://b", "--endpoint-url", &site], true);
    let said = check();
    let (warning, failure) = said.stderr.split_once('\n').unwrap();
    let differs = "this machine's clock differs from the server's by ";
    assert!(warning.contains(differs), "{said:?}");
    assert!(
        failure.contains("the bucket \"b\" does not exist"),
        "{said:?}"
    );
    assert_eq!(said.code, Some(5));
    let said = check();
    assert!(
        said.stderr
            .ends_with("RequestTimeTooSkewed: No; correct this machine's clock\n"),
        "{said:?}"
    );
    assert_eq!(said.code, Some(4));
}

fn services_of_another_kind() {
    let place = Place::new();
    for (body, why) in [
        ("hello", "the answer ends in the middle of a document"),
        (
            "<html><body>Welcome</body></html>",
            "the answer is a document of type \"html\" instead of ListBucketResult",
        ),
        (
            "<ListBucketResult><IsTruncated>tr",
            "the answer ends in the middle of a document",
        ),
    ] {
        let site = service("200 OK", body);
        let why = format!("{site} does not answer like S3 ({why}); is the endpoint right?");
        refused(&place, &["--endpoint-url", &site], true, 1, &why);
    }
    let site = listening(|mut stream| {
        if read_request(&mut stream) {
            let _ = stream.write_all(b"220 mail.example.com ESMTP\r\n");
        }
    });
    let why = format!(
        "{site} does not answer like S3 (what {site} answers is not HTTP (invalid HTTP version parsed); if the server expects TLS, write https:// in the endpoint); is the endpoint right?"
    );
    refused(&place, &["--endpoint-url", &site], true, 1, &why);
    // Plain HTTP where TLS was asked for.
    let site = listening(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let site = site.replace("http://", "https://");
    let why = format!(
        "no secure connection to {site}: received corrupt message of type InvalidContentType; the server speaks no TLS there; write http:// in the endpoint if that is meant"
    );
    refused(&place, &["--endpoint-url", &site], true, 3, &why);
}

fn services_that_are_silent() {
    let place = Place::new();
    // Nobody listens on port 1.
    let site = "http://127.0.0.1:1";
    let why = format!(
        "cannot reach {site}: Connection refused (os error 111); is the server running, and the endpoint right?"
    );
    refused(&place, &["--endpoint-url", site], true, 3, &why);
    let kept = std::sync::Mutex::new(Vec::new());
    let site = listening(move |stream| kept.lock().unwrap().push(stream));
    refused(
        &place,
        &["--endpoint-url", &site, "--deadline", "500ms"],
        true,
        3,
        "no answer within 1 s; is it up, and reachable from here?",
    );
}

fn urls_that_name_no_bucket() {
    let place = Place::new();
    let mnt = place.text("mnt");
    for (url, more, why) in [
        (
            "s3:///a",
            &[][..],
            "name the bucket before the prefix, as in s3://BUCKET/PREFIX",
        ),
        (
            "s3://host:9000/b",
            &[],
            "the URL names a bucket, not a server: write s3://BUCKET and give the server with --endpoint-url",
        ),
        (
            "s3://key@b/",
            &[],
            "credentials do not belong into the URL: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        (
            "s3://a%20b/",
            &[],
            "\"a%20b\" is no bucket name: those have small letters, digits, dots and hyphens",
        ),
        ("s3://b/a#c", &[], "write a # in the prefix as %23"),
        ("s3://b/?x", &[], "s3 URLs take no parameter \"x\""),
        (
            "s3://b/%ff",
            &[],
            "the prefix is not UTF-8, which keys must be",
        ),
        (
            "s3://b",
            &["--endpoint-url", "localhost:9000"],
            "the endpoint has neither the scheme http nor https; write it like https://s3.example.com or http://127.0.0.1:9000",
        ),
    ] {
        let said = run(&place, &[&["mount", url, &mnt][..], more].concat(), true);
        assert_eq!(
            said.stderr,
            format!("bucketfs: cannot open {url}: {why}\n"),
            "{said:?}"
        );
        assert_eq!(said.code, Some(2), "{said:?}");
    }
}

/// Runs in a namespace of mounts of its own, behind commands that change it; as root or as nobody.
fn elsewhere(place: &Place, change: &str, nobody: bool, args: &[&str]) -> Said {
    // The one under test may lie where only root gets.
    let binary = place.path("bucketfs");
    if !binary.exists() {
        std::fs::copy(crate::harness::BINARY, &binary).unwrap();
    }
    let user = match nobody {
        true => "setpriv --reuid 65534 --regid 65534 --clear-groups",
        false => "",
    };
    let script = format!("set -e; {change}; exec {user} \"$@\"");
    let ours = place.command(args);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", &script, "sh"])
        .arg(binary)
        .args(args)
        .env("HOME", place.path("home"))
        .current_dir(place.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for (name, value) in ours.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    finish(command)
}

/// A `/dev` with these devices only.
const NO_DEVICES: &str = "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3";

fn machines_without_fuse() {
    let place = Place::new();
    let said = elsewhere(
        &place,
        NO_DEVICES,
        false,
        &["mount", "memory:", &place.text("mnt")],
    );
    assert_eq!(
        said.stderr,
        "bucketfs: there is no /dev/fuse; load the module (modprobe fuse), or give the container the device (--device /dev/fuse --cap-add SYS_ADMIN)\n"
    );
    assert_eq!(said.code, Some(7));
}

fn users_without_fuse() {
    let place = Place::new();
    let all = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(place.path(""), all).unwrap();
    std::os::unix::fs::chown(place.mnt(), Some(65_534), Some(65_534)).unwrap();
    let private = format!("{NO_DEVICES}; mknod -m 600 /dev/fuse c 10 229");
    let fuse_conf = place.text("fuse.conf");
    std::fs::write(&fuse_conf, "# user_allow_other\n").unwrap();
    let public = format!("{NO_DEVICES}; mknod -m 666 /dev/fuse c 10 229");
    let conf = format!("{public}; mount --bind {fuse_conf} /etc/fuse.conf");
    for (change, more, line) in [
        (
            private.as_str(),
            &[][..],
            "this user may not open /dev/fuse; as root: chmod 666 /dev/fuse",
        ),
        (
            &conf,
            &["--allow-other"],
            "allow-other and allow-root need the line user_allow_other in /etc/fuse.conf when a user other than root mounts",
        ),
    ] {
        let mnt = place.text("mnt");
        let args = [&["mount", "memory:", &mnt][..], more].concat();
        let said = elsewhere(&place, change, true, &args);
        assert_eq!(said.stderr, format!("bucketfs: {line}\n"));
        assert_eq!(said.code, Some(7), "{said:?}");
    }
}
