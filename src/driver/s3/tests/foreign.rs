//! Answers of what stands in front of a service: ingresses without a server behind them, login
//! pages, caches.

use super::*;
use crate::driver::{Error, ListRequest, Removal};

const PLAIN: &str =
    "Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n";
const HTML: &str = "Content-Type: text/html\r\n";

/// What all operations say of one answer: those that send no body are told of a page by its type.
async fn asked(of: &str, answer: &str) -> Error {
    let key = Key::from("k");
    let (mut bucket, _server) = serve(vec![answer.to_owned()]).await;
    bucket.findings.delete_many = true;
    let matching = Precondition::IfMatch(ETag::new("e"));
    let put = |precondition| PutOptions {
        precondition,
        ..PutOptions::default()
    };
    let result = match of {
        "head" => bucket.head(&key).await.err(),
        "get" => bucket.get(&key, GetOptions::default()).await.err(),
        "list" => bucket.list(ListRequest::flat(&Key::empty())).await.err(),
        "put" => bucket.put(&key, "x".into(), put(matching)).await.err(),
        "create" => {
            let create = put(Precondition::IfAbsent);
            bucket.put(&key, "x".into(), create).await.err()
        }
        "delete" => bucket.delete_raw(&key, &Precondition::None).await.err(),
        "delete if" => bucket.delete_raw(&key, &matching).await.err(),
        "abort" => bucket.abort_raw(&key, "u").await.err(),
        "delete_many" => {
            let keys = [Removal::from(key)];
            bucket.delete_many(&keys).await.err()
        }
        _ => panic!("{of}"),
    };
    result.unwrap_or_else(|| panic!("{of} believes {answer}"))
}

#[tokio::test]
async fn a_page_that_nothing_is_there_is_no_missing_object() {
    let go = answer("404 Not Found", PLAIN, "404 page not found\n");
    let nginx = answer(
        "404 Not Found",
        HTML,
        "<html><title>404 Not Found</title></html>",
    );
    let bare = answer("404 Not Found", "", "no such service");
    for page in [go, nginx, bare] {
        for of in [
            "get",
            "list",
            "put",
            "create",
            "delete",
            "delete if",
            "abort",
            "delete_many",
        ] {
            let error = asked(of, &page).await;
            let got = (error.kind(), error.retryable());
            assert_eq!(got, (ErrorKind::Unavailable, true), "{of}: {error}");
        }
    }
    for page in [PLAIN, HTML] {
        let error = asked("head", &answer("404 Not Found", page, "")).await;
        let got = (error.kind(), error.retryable());
        assert_eq!(got, (ErrorKind::Unavailable, true), "{error}");
    }
    let error = asked(
        "get",
        &answer("404 Not Found", PLAIN, "404 page not found\n"),
    )
    .await;
    let text = "get \"k\": the server answered 404 Not Found: 404 page not found; \
        S3 does not answer like that: something in front of it does, or the endpoint is wrong";
    assert_eq!(error.to_string(), text);
}

#[tokio::test]
async fn servers_may_tell_little_of_a_missing_object() {
    let moto = format!("{HTML}x-amzn-requestid: RX0J\r\n");
    for headers in ["", "Content-Type: application/xml\r\n", &moto] {
        for of in ["head", "get"] {
            let error = asked(of, &answer("404 Not Found", headers, "")).await;
            assert_eq!(error.kind(), ErrorKind::NotFound, "{of} {headers}: {error}");
        }
        let error = asked("put", &answer("404 Not Found", headers, "")).await;
        assert_eq!(error.kind(), ErrorKind::Changed, "{headers}: {error}");
        let (bucket, _server) = serve(vec![answer("404 Not Found", headers, "")]).await;
        let delete = bucket
            .delete_raw(&Key::from("k"), &Precondition::None)
            .await;
        delete.expect("gone");
    }
    // Some call their documents text.
    let error = asked("get", &complaint("404 Not Found", PLAIN, "NoSuchKey")).await;
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn a_delete_that_was_not_done_is_an_error() {
    let login = answer("200 OK", HTML, "<html><title>Please log in</title></html>");
    let away = answer("302 Found", "Location: http://login/\r\n", "");
    let failed = complaint("200 OK", "", "InternalError");
    for senseless in [answer("304 Not Modified", "", ""), login, away, failed] {
        for of in ["delete", "delete if", "abort"] {
            let error = asked(of, &senseless).await;
            let got = (error.kind(), error.retryable());
            assert_eq!(got, (ErrorKind::Unavailable, true), "{of}: {error}");
        }
    }
    for of in ["delete", "delete if", "delete_many"] {
        let error = asked(of, &complaint("404 Not Found", "", "NoSuchBucket")).await;
        let got = (error.kind(), error.retryable());
        assert_eq!(got, (ErrorKind::Unavailable, false), "{of}: {error}");
        assert!(error.to_string().contains("NoSuchBucket"), "{error}");
    }
    for done in ["204 No Content", "200 OK"] {
        let (bucket, _server) = serve(vec![answer(done, HTML, "")]).await;
        let delete = bucket
            .delete_raw(&Key::from("k"), &Precondition::None)
            .await;
        delete.expect("done");
    }
}

#[tokio::test]
async fn not_modified_is_no_answer_to_a_request_without_that_condition() {
    for of in ["head", "get", "put"] {
        let error = asked(of, &answer("304 Not Modified", "", "")).await;
        let got = (error.kind(), error.retryable());
        assert_eq!(got, (ErrorKind::Unavailable, true), "{of}: {error}");
    }
}

#[tokio::test]
async fn a_temporary_redirect_passes() {
    for of in ["get", "put", "delete"] {
        let answer = complaint("307 Temporary Redirect", "", "TemporaryRedirect");
        let error = asked(of, &answer).await;
        let got = (error.kind(), error.retryable());
        assert_eq!(got, (ErrorKind::Unavailable, true), "{of}: {error}");
    }
    let error = asked("get", &complaint("301 Moved", "", "PermanentRedirect")).await;
    assert!(!error.retryable(), "{error}");
}
