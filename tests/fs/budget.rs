//! Requests per operation on a store such as S3. A cold look at a name is a get, of as
//! much as a small file has, and a listing, side by side; `listed` is what follows a listing of the
//! directory.

use crate::store::Plain;
use crate::world::{CREATE, Mount, World, later};
use bucketfs::driver::{Body, Driver, PutOptions};
use bucketfs::fs::StatAttrs;
use bucketfs::layer::Operation;
use std::pin::Pin;
use std::time::Duration;

type Running<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// An operation, what it costs on a fresh mount, and what after `ls -l`.
struct Row {
    name: &'static str,
    run: for<'a> fn(&'a Mount) -> Running<'a>,
    cold: &'static str,
    listed: &'static str,
}

macro_rules! row {
    ($name:literal, $cold:literal, $listed:literal, |$mount:ident| $body:expr) => {
        Row {
            name: $name,
            run: |$mount| {
                Box::pin(async move {
                    $body;
                })
            },
            cold: $cold,
            listed: $listed,
        }
    };
}

const LOOK: &str = "get 1, list 1";

#[tokio::test(start_paused = true)]
async fn common_operations_cost_what_is_budgeted() {
    let rows = [
        row!("ls", "list 1", "", |m| m.ls("").await.unwrap()),
        row!("stat", "get 1, list 1", "", |m| m
            .stat("f007")
            .await
            .unwrap()),
        row!("stat missing", "get 1, list 1", "", |m| m
            .stat("nope")
            .await
            .unwrap_err()),
        row!("cat", "get 1, list 1", "get 1", |m| m
            .cat("f007")
            .await
            .unwrap()),
        row!("create", "get 1, list 1, put 1", "put 1", |m| m
            .save("new", "hello")
            .await
            .unwrap()),
        row!("overwrite", "get 1, list 1, put 1", "head 1, put 1", |m| m
            .save("f007", "hello")
            .await
            .unwrap()),
        row!("append", "get 1, list 1, put 1", "get 1, put 1", |m| m
            .append("f007", "hello")
            .await
            .unwrap()),
        row!("mkdir", "get 1, list 1, put 1", "put 1", |m| m
            .mkdir("d")
            .await
            .unwrap()),
        row!(
            "rename",
            "copy 1, delete 1, get 1, list 2",
            "copy 1, delete 1",
            |m| m.rename("f007", "moved").await.unwrap()
        ),
        row!(
            "rename over",
            "copy 1, delete 1, get 1, list 2",
            "copy 1, delete 1",
            |m| m.rename("f007", "f008").await.unwrap()
        ),
        row!("rm", "delete 1, get 1, list 1", "delete 1", |m| m
            .unlink("f007")
            .await
            .unwrap()),
    ];
    for row in rows {
        for listed in [false, true] {
            let world = World::s3();
            for i in 0..200 {
                let key = format!("f{i:03}").into();
                let put = world
                    .raw()
                    .put(&key, Body::from("old"), PutOptions::default());
                put.await.unwrap();
            }
            let mount = world.mount();
            if listed {
                assert_eq!(mount.ls("").await.unwrap().len(), 200);
                mount.cost();
            }
            (row.run)(&mount).await;
            let cost = if listed { row.listed } else { row.cold };
            assert_eq!(mount.cost(), cost, "{} (listed: {listed})", row.name);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_is_known_for_a_while() {
    let world = World::s3();
    let mount = world.mount();
    for again in [LOOK, "", ""] {
        mount.stat("nope").await.unwrap_err();
        assert_eq!(mount.cost(), again);
    }
    later().await;
    mount.stat("nope").await.unwrap_err();
    assert_eq!(mount.cost(), LOOK);

    mount.save("f", "bytes").await.unwrap();
    mount.cost();
    // Its own bytes are here, so that nothing but the question is sent.
    for _ in 0..3 {
        assert_eq!(mount.cat("f").await.unwrap(), "bytes");
        assert_eq!(mount.cost(), "get 1");
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_costs_a_marker_and_a_look_inside() {
    let world = World::s3();
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.cost();
    mount.mkdir("d").await.unwrap();
    assert_eq!(mount.cost(), "put 1");
    mount.rmdir("d").await.unwrap();
    assert_eq!(mount.cost(), "delete 1, list 1");
}

/// A store of that many files, without attributes, so that listings tell all that there is.
async fn plain(files: usize) -> World {
    let world = World::over(Plain::bare());
    for i in 0..files {
        world.put(&format!("d/f{i:04}"), "old").await;
    }
    world
}

#[tokio::test(start_paused = true)]
async fn the_second_name_of_a_directory_lists_it() {
    let world = plain(20).await;
    let mount = world.mount();
    for i in 0..20 {
        assert_eq!(mount.cat(&format!("d/f{i:04}")).await.unwrap(), "old");
    }
    // What tells that `d` is a directory tells all that is in it; each file is one get.
    assert_eq!(mount.cost(), "get 21, list 1");
    for i in 0..20 {
        mount.save(&format!("d/new{i}"), "x").await.unwrap();
    }
    assert_eq!(mount.cost(), "put 20");

    let mount = world.mount();
    for i in 0..20 {
        mount.save(&format!("d/newer{i}"), "x").await.unwrap();
    }
    assert_eq!(mount.cost(), "get 1, list 1, put 20");
}

#[tokio::test(start_paused = true)]
async fn a_walk_is_listed_flat() {
    let world = World::over(Plain::bare());
    for i in 0..1500 {
        world.put(&format!("d{:02}/f{i:04}", i / 50), "x").await;
    }
    let mount = world.mount();
    let names = mount.ls("").await.unwrap();
    for name in &names {
        assert_eq!(mount.ls(name).await.unwrap().len(), 50, "{name}");
    }
    assert_eq!((names.len(), mount.cost().as_str()), (30, "list 3"));
    // Who comes to one of them alone lists that one.
    later().await;
    mount.ls("d07").await.unwrap();
    assert_eq!(mount.cost(), "get 1, list 1");
}

#[tokio::test(start_paused = true)]
async fn a_directory_larger_than_a_page_is_not_listed_in_vain() {
    let world = plain(1500).await;
    let mount = world.mount();
    for i in 1490..1500 {
        assert_eq!(mount.cat(&format!("d/f{i:04}")).await.unwrap(), "old");
    }
    assert_eq!(mount.cost(), "get 11, list 11");
    assert_eq!(mount.cat("d/f0007").await.unwrap(), "old");
    assert_eq!(mount.cost(), "get 1");
}

/// Opens files that are so many names apart, over a network of 10 ms; gives how long that took.
async fn read_in_order(mount: &Mount, files: impl Iterator<Item = usize>) -> Duration {
    mount.fault.set("*:delay=10ms").unwrap();
    let begin = tokio::time::Instant::now();
    for i in files {
        assert_eq!(mount.cat(&format!("d/f{i:04}")).await.unwrap(), "old");
    }
    begin.elapsed()
}

#[tokio::test(start_paused = true)]
async fn files_that_are_opened_in_order_are_asked_for_ahead() {
    // All names are known from the page that told that `d` is a directory, or three more tell them.
    for (files, step, cost) in [(500, 1, "get 501, list 1"), (3500, 7, "get 501, list 4")] {
        let world = plain(files).await;
        let mount = world.mount();
        let took = read_in_order(&mount, (0..files).step_by(step)).await;
        assert_eq!(mount.cost(), cost);
        // One after the other they take 5 s.
        assert!(took < Duration::from_millis(700), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn names_of_a_large_directory_are_known_as_long_as_its_files_are_opened_in_order() {
    let world = plain(9000).await;
    let mount = world.mount();
    mount.fault.set("*:delay=10ms").unwrap();
    for i in (0..9000).step_by(9) {
        assert_eq!(mount.cat(&format!("d/f{i:04}")).await.unwrap(), "old");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let counts = mount.stats.snapshot();
    assert!(counts.count(Operation::Get) < 1010, "{counts:?}");
    assert!(counts.count(Operation::List) < 25, "{}", mount.cost());
}

#[tokio::test(start_paused = true)]
async fn files_that_are_opened_in_no_order_are_not_asked_for_ahead() {
    let world = plain(900).await;
    let mount = world.mount();
    read_in_order(&mount, (0..50).map(|i| i * 389 % 900)).await;
    assert_eq!(mount.cost(), "get 51, list 1");
}

#[tokio::test(start_paused = true)]
async fn files_that_are_opened_slowly_are_not_asked_for_far_ahead() {
    let world = plain(100).await;
    let mount = world.mount();
    mount.ls("d").await.unwrap();
    mount.cost();
    for i in 0..50 {
        assert_eq!(mount.cat(&format!("d/f{i:04}")).await.unwrap(), "old");
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    let counts = mount.stats.snapshot().count(Operation::Get);
    assert!(counts < 110, "{counts}");
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_ahead_is_what_an_open_would_find() {
    let world = plain(100).await;
    let mount = world.mount();
    mount.ls("d").await.unwrap();
    for i in 0..10 {
        assert_eq!(mount.cat(&format!("d/f{i:04}")).await.unwrap(), "old");
    }
    // Its bytes are here; an open a little later finds what is there then.
    world.put("d/f0010", "new").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(mount.cat("d/f0010").await.unwrap(), "new");
    for i in 11..16 {
        assert_eq!(mount.cat(&format!("d/f{i:04}")).await.unwrap(), "old");
    }
    // What was written here since it was asked for is not undone by the answer.
    mount.save("d/f0016", "ours").await.unwrap();
    assert_eq!(mount.cat("d/f0016").await.unwrap(), "ours");
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_files_that_are_overwritten_in_order_is_asked_for_ahead() {
    let world = plain(50).await;
    let mount = world.mount();
    mount.ls("d").await.unwrap();
    mount.cost();
    mount.fault.set("*:delay=10ms").unwrap();
    let begin = tokio::time::Instant::now();
    for i in 0..50 {
        mount.save(&format!("d/f{i:04}"), "new").await.unwrap();
    }
    assert_eq!(mount.cost(), "head 50, put 50");
    // One after the other they take a second.
    assert!(begin.elapsed() < Duration::from_millis(600));
}

#[tokio::test(start_paused = true)]
async fn names_that_nobody_opens_are_asked_for_without_their_bytes() {
    let world = World::s3();
    let mount = world.mount_with(|options| options.stat_attrs = StatAttrs::Full, false);
    for i in 0..20 {
        mount.stat(&format!("f{i}")).await.unwrap_err();
    }
    assert_eq!(mount.cost(), "get 8, head 12, list 20");
    world.put("read", "bytes").await;
    for cost in ["get 1, head 1, list 1", "get 1, list 1"] {
        assert_eq!(mount.cat("read").await.unwrap(), "bytes");
        assert_eq!(mount.cost(), cost);
        mount.forget_all();
        later().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_read_can_be_looked_at() {
    let world = World::s3();
    world.put("archived", "bytes").await;
    let mount = world.mount();
    mount.fault.set("get:error=denied").unwrap();
    assert_eq!(mount.stat("archived").await.unwrap().size, 5);
    assert_eq!(mount.cost(), "get 1, head 1, list 1");
}

/// What `cp -r` does with one file.
async fn cp(mount: &Mount, from: &str, to: &str) {
    let source = mount.open(from, libc::O_RDONLY).await.unwrap();
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
    let target = mount.open(to, flags).await.unwrap();
    let copied = mount
        .fs
        .copy_file_range((source, 0), (target, 0), 1 << 30, 7);
    copied.await.unwrap();
    mount.close(target).await.unwrap();
    mount.close(source).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn files_that_are_copied_one_after_the_other_are_asked_for_by_listings() {
    let world = World::s3();
    for i in 0..200 {
        world.put(&format!("d/{i:03}"), "old").await;
    }
    for (pace, cost) in [(1, "copy 200, get 1"), (20, "copy 200, get 8, list 27")] {
        let mount = world.mount();
        let to = format!("e{pace}");
        mount.mkdir(&to).await.unwrap();
        mount.ls("").await.unwrap();
        mount.ls("d").await.unwrap();
        mount.cost();
        for i in 0..200 {
            cp(&mount, &format!("d/{i:03}"), &format!("{to}/{i:03}")).await;
            tokio::time::sleep(Duration::from_millis(pace)).await;
        }
        assert_eq!(mount.cost(), cost, "{pace} ms each");
    }
    // One that another has replaced is what is copied.
    let mount = world.mount();
    mount.mkdir("f").await.unwrap();
    mount.ls("d").await.unwrap();
    for i in 0..10 {
        cp(&mount, &format!("d/{i:03}"), &format!("f/{i:03}")).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.put("d/010", "newer").await;
    cp(&mount, "d/010", "f/010").await;
    assert_eq!(world.get("f/010").await.unwrap(), "newer");
    // One that is replaced within the time for which the listing counts is not copied as it was.
    mount.ls("d").await.unwrap();
    let source = mount.open("d/011", libc::O_RDONLY).await.unwrap();
    world.put("d/011", "newer").await;
    let target = mount.open("f/011", CREATE).await.unwrap();
    let whole = (source, 0);
    let copied = mount.fs.copy_file_range(whole, (target, 0), 1 << 30, 7);
    copied.await.unwrap();
    assert_eq!(mount.close(target).await, Err(libc::EIO));
    assert_eq!(world.get("f/011").await, None);
}
