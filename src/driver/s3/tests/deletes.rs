//! Answers to the deletion of many keys.

use super::*;
use crate::driver::Removal;

/// A refusal of a key that nobody asked for is one of a key that somebody did, spelt in another way.
#[tokio::test]
async fn a_failure_of_another_key_is_not_taken_for_a_deletion() {
    let failed = |keys: &[&str]| {
        let failures: Vec<_> = keys
            .iter()
            .map(|key| format!("<Error><Key>{key}</Key><Code>AccessDenied</Code></Error>"))
            .collect();
        let text = format!("<DeleteResult>{}</DeleteResult>", failures.concat());
        answer("200 OK", "", &text)
    };
    let keys = ["a", "b"].map(|key| Removal::from(Key::from(key)));
    let (mut bucket, server) = serve(vec![failed(&["a"]), failed(&["a", "%62"])]).await;
    bucket.findings.delete_many = true;
    let results = bucket.delete_many(&keys).await.expect("an answer");
    let kinds = results
        .iter()
        .map(|result| result.as_ref().err().map(|error| error.kind()));
    assert_eq!(kinds.collect::<Vec<_>>(), [Some(ErrorKind::Denied), None]);
    let error = bucket.delete_many(&keys).await.expect_err("senseless");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error.to_string().contains("\"%62\" (AccessDenied)"),
        "{error}"
    );
    server.await.expect("two requests");
}
