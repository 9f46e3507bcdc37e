//! How requests are made: by which clock, and which are not made at all.

use super::*;
use crate::clock;
use crate::driver::ListRequest;
use std::time::Duration;

#[tokio::test]
async fn the_clock_of_the_server_is_adopted() {
    let ahead = clock::wall() + Duration::from_secs(7200);
    let date = format!("Date: {}\r\n", httpdate::fmt_http_date(ahead));
    let (bucket, server) = serve(vec![
        complaint("403 Forbidden", &date, "RequestTimeTooSkewed"),
        answer("200 OK", GOOD, ""),
    ])
    .await;
    bucket.head(&Key::from("k")).await.expect("accepted now");
    let heads = server.await.expect("two requests");
    let hour = |head: &str| {
        let at = head.find("x-amz-date: ").expect("a date") + 12;
        head[at..at + 11].to_owned()
    };
    assert_ne!(hour(&heads[0]), hour(&heads[1]));
    let (bucket, server) = serve(vec![complaint("403 Forbidden", "", "AccessDenied")]).await;
    let error = bucket.head(&Key::from("k")).await.expect_err("denied");
    assert_eq!(error.kind(), ErrorKind::Denied);
    server.await.expect("one request");
}

/// Records of attributes are young or old by the clock that tells their times.
#[tokio::test]
async fn the_clock_of_the_server_is_told_by_any_answer() {
    for shift in [-7200, 7200] {
        let theirs = |time: std::time::SystemTime| {
            let seconds = clock::seconds(time).saturating_add_signed(shift);
            std::time::UNIX_EPOCH + Duration::from_secs(seconds)
        };
        let date = httpdate::fmt_http_date(theirs(clock::wall()));
        let good = format!("{GOOD}Date: {date}\r\n");
        let (bucket, server) = serve(vec![answer("200 OK", &good, "")]).await;
        bucket.head(&Key::from("k")).await.expect("an object");
        server.await.expect("one request");
        let (told, now) = (bucket.wall(), theirs(clock::wall()));
        let behind = now.duration_since(told).unwrap_or_default();
        assert!(behind < Duration::from_secs(60), "{behind:?}");
        assert!(told <= now + Duration::from_secs(1));
    }
}

/// All are signed before the first answer corrects the clock.
#[tokio::test]
async fn the_clock_is_corrected_for_all_requests_that_are_under_way() {
    let ahead = clock::wall() + Duration::from_secs(7200);
    let date = format!("Date: {}\r\n", httpdate::fmt_http_date(ahead));
    let skewed = || complaint("403 Forbidden", &date, "RequestTimeTooSkewed");
    let good = || answer("200 OK", GOOD, "");
    let (bucket, server) = serve(vec![skewed(), skewed(), skewed(), good(), good(), good()]).await;
    let [a, b, c] = ["a", "b", "c"].map(Key::from);
    let all = tokio::join!(bucket.head(&a), bucket.head(&b), bucket.head(&c));
    assert!(all.0.is_ok() && all.1.is_ok() && all.2.is_ok(), "{all:?}");
    server.await.expect("six requests");
}

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
