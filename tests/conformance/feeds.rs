//! Change feeds.

use crate::fixture::{Fixture, cases, key, put};
use bucketfs::driver::{Change, Precondition, Result};
use futures::StreamExt;
use futures::stream::BoxStream;
use std::time::Duration;

cases! {
    a_feed_tells_what_others_change, a_feed_misses_nothing_after_it_began,
    a_feed_tells_its_prefix_only,
}

type Feed = BoxStream<'static, Result<Change>>;

/// Waits until the feed tells what is wanted, or that it lost something.
async fn expect(feed: &mut Feed, what: &str, wanted: impl Fn(&Change) -> bool) {
    let tells = async {
        loop {
            let change = feed.next().await.expect("the feed goes on").unwrap();
            if change == Change::Lost || wanted(&change) {
                return;
            }
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(20), tells).await;
    told.unwrap_or_else(|_| panic!("the feed never told that {what}"));
}

async fn a_feed_tells_what_others_change(f: Fixture) {
    if !f.capabilities().watch {
        return f.skip("watch is not claimed");
    }
    put(&f.b, "w/old", "x").await;
    let mut feed = f.a.watch(&key("w/")).await.unwrap();
    for name in ["w/old", "w/new", "w/deep/down/new"] {
        for body in ["one", "two"] {
            let etag = put(&f.b, name, body).await.etag;
            expect(
                &mut feed,
                &format!("{name} was written"),
                |change| match change {
                    Change::Written(key, told) => {
                        *key == name.into() && told.as_ref().is_none_or(|told| *told == etag)
                    }
                    _ => false,
                },
            )
            .await;
        }
        f.b.delete(&key(name), Precondition::None).await.unwrap();
        expect(&mut feed, &format!("{name} was removed"), |change| {
            *change == Change::Removed(name.into())
        })
        .await;
    }
}

async fn a_feed_misses_nothing_after_it_began(f: Fixture) {
    if !f.capabilities().watch {
        return f.skip("watch is not claimed");
    }
    for round in 0..10 {
        let name = format!("w{round}/k");
        let mut feed = f.a.watch(&key("w")).await.unwrap();
        put(&f.b, &name, "x").await;
        expect(
            &mut feed,
            "a key was written",
            |change| matches!(change, Change::Written(key, _) if *key == name.as_str().into()),
        )
        .await;
    }
}

async fn a_feed_tells_its_prefix_only(f: Fixture) {
    if !f.capabilities().watch {
        return f.skip("watch is not claimed");
    }
    let mut feed = f.a.watch(&key("in/")).await.unwrap();
    for name in ["out/1", "i", "inn", "in/1"] {
        put(&f.b, name, "x").await;
    }
    expect(&mut feed, "a key was written", |change| match change {
        Change::Written(key, _) | Change::Removed(key) => {
            assert!(key.starts_with(&"in/".into()), "{key:?} was not asked for");
            *key == "in/1".into()
        }
        Change::Lost => true,
    })
    .await;
}
