//! Requests that are not made.

use super::*;
use crate::driver::ListRequest;

#[tokio::test]
async fn a_listing_that_would_be_signed_wrong_is_refused_here() {
    let half = Key::from(&"d/メ".as_bytes()[..4]);
    let behind = ListRequest {
        start_after: Some(half.clone()),
        ..ListRequest::flat(&Key::from("d/"))
    };
    let (bucket, _server) = serve(Vec::new()).await;
    for request in [behind, ListRequest::flat(&half)] {
        let error = bucket.list(request).await.expect_err("not UTF-8");
        assert_eq!(error.kind(), ErrorKind::InvalidKey);
        assert!(!error.retryable());
    }
}
