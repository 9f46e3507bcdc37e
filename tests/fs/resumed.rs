//! Renames of directories that are broken off, and what another mount makes of them.

use crate::store::Plain;
use crate::world::{Mount, World};
use std::time::Duration;

/// For so long nobody must have written a record whose writer cannot be asked for.
const SILENT: Duration = Duration::from_secs(400);

async fn filled(count: usize) -> World {
    let world = World::s3();
    for i in 0..count {
        world.put(&format!("d/{i:03}"), &format!("text {i}")).await;
    }
    world
}

/// Breaks a rename of `d` to `m` off after a time, and the mount with it.
async fn break_off(mount: Mount, faults: &str, after: Duration) {
    mount.ls("").await.unwrap();
    mount.fault.set(faults).unwrap();
    let rename = tokio::time::timeout(after, mount.rename("d", "m"));
    assert!(rename.await.is_err(), "it was complete before");
}

fn errors(mount: &Mount) -> Vec<String> {
    let errors = mount.fs.status().errors;
    errors.into_iter().map(|error| error.message).collect()
}

#[tokio::test(start_paused = true)]
async fn a_rename_of_many_is_written_down_by_one_put_and_one_delete() {
    let world = filled(100).await;
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.cost();
    mount.fault.set("copy:delay=10ms").unwrap();
    let rename = mount.rename("d", "m");
    let watch = async {
        tokio::time::sleep(Duration::from_millis(25)).await;
        let keys = world.keys().await;
        let records = keys
            .iter()
            .filter(|key| key.starts_with(".bucketfs/renames/"));
        assert_eq!(records.count(), 1, "{keys:?}");
        let shown = mount.fs.status().renames;
        assert_eq!(shown.len(), 1);
        assert_eq!((&*shown[0].from, &*shown[0].to), ("d", "m"));
        assert_eq!(shown[0].listed, 100);
        assert!((1..100).contains(&shown[0].moved), "{shown:?}");
    };
    let (renamed, ()) = tokio::join!(rename, watch);
    renamed.unwrap();
    assert!(mount.fs.status().renames.is_empty());
    let cost = mount.cost();
    let expected = "copy 100, delete 1, delete_many 1, ";
    assert!(
        cost.starts_with(expected) && cost.ends_with("put 1"),
        "{cost}"
    );
    let keys = world.keys().await;
    assert!(keys.iter().all(|key| key.starts_with("m/")), "{keys:?}");
}

#[tokio::test(start_paused = true)]
async fn a_rename_of_more_keys_than_allowed_is_refused_before_anything_is_moved() {
    for world in [World::memory(), World::s3()] {
        for i in 0..6 {
            world.put(&format!("d/{i}"), "x").await;
        }
        let mount = world.mount_with(|options| options.max_rename = Some(5), false);
        let open = mount.open("d/0", libc::O_RDWR).await.unwrap();
        assert_eq!(mount.rename("d", "m").await, Err(libc::EXDEV));
        assert!(world.keys().await.iter().all(|key| key.starts_with("d/")));
        mount.write(open, 0, "y").unwrap();
        mount.close(open).await.unwrap();
        assert_eq!(world.get("d/0").await.unwrap(), "y");
        mount.unlink("d/5").await.unwrap();
        mount.rename("d", "m").await.unwrap();
        assert_eq!(world.keys().await.len(), 5);
        assert_eq!(mount.cat("m/0").await.unwrap(), "y");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rename_broken_off_at_any_moment_is_completed() {
    for moment in 0..14 {
        let world = filled(100).await;
        world.put("d/", "").await;
        world.put("d/e/", "").await;
        world.put("d/e/f", "deep").await;
        let after = Duration::from_millis(5 + 10 * moment);
        let slow = "put:delay=10ms,copy:delay=10ms,delete_many:delay=20ms,delete:delay=20ms";
        break_off(world.mount(), slow, after).await;
        let other = world.mount();
        other.fs.resume_renames().await;
        tokio::time::sleep(SILENT).await;
        let mut keys = world.keys().await;
        // Before its first put it has done nothing.
        let from = if moment == 0 { "d/" } else { "m/" };
        assert!(
            keys.iter().all(|key| key.starts_with(from)),
            "{moment}: {keys:?}"
        );
        assert_eq!(keys.len(), 103, "{moment}");
        keys.retain(|key| !key.ends_with('/'));
        for key in keys {
            let text = world.get(&key).await.unwrap();
            match key[from.len()..].parse::<usize>() {
                Ok(number) => assert_eq!(text, format!("text {number}")),
                Err(_) => assert_eq!((&key[from.len()..], &*text), ("e/f", "deep")),
            }
        }
        assert_eq!(errors(&other), [""; 0], "{moment}");
        assert_eq!(other.ls(&from[..1]).await.unwrap().len(), 101);
    }
}

/// What is at the new names is asked for from right before the first of them on.
#[tokio::test(start_paused = true)]
async fn a_rename_of_names_that_end_in_any_letter_is_completed() {
    let mut store = Plain::s3();
    store.capabilities.utf8_keys = true;
    let world = World::over(store);
    let names = ["é", "メモ", "メモモ", "日"];
    let count = 40;
    for name in names {
        for i in 0..count / names.len() {
            world.put(&format!("d/{}{name}", "x".repeat(i)), "x").await;
        }
    }
    let deleting = "delete_many:delay=60m";
    break_off(world.mount(), deleting, Duration::from_secs(60)).await;
    assert_eq!(world.keys().await.len(), 2 * count + 1);
    let other = world.mount();
    other.fs.resume_renames().await;
    tokio::time::sleep(SILENT).await;
    let keys = world.keys().await;
    assert!(keys.iter().all(|key| key.starts_with("m/")), "{keys:?}");
    assert_eq!(keys.len(), count);
    assert_eq!(errors(&other), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_others_changed_since_a_rename_was_broken_off_stays_and_is_told() {
    let world = filled(50).await;
    let deleting = "delete_many:delay=60m";
    break_off(world.mount(), deleting, Duration::from_secs(60)).await;
    assert_eq!(world.keys().await.len(), 101);
    // Times of the store are of the real clock, and count only when they are well apart.
    std::thread::sleep(Duration::from_millis(2200));
    world.put("d/001", "changed at the old name").await;
    world.put("m/002", "changed at the new name").await;
    world.put("d/new", "made since").await;
    world.delete("m/003").await;
    world.delete("d/004").await;
    let other = world.mount();
    other.fs.resume_renames().await;
    tokio::time::sleep(SILENT).await;
    let mut old = world.keys().await;
    old.retain(|key| !key.starts_with("m/"));
    assert_eq!(old, ["d/001", "d/002", "d/new"]);
    for (key, text) in [
        ("d/001", "changed at the old name"),
        ("m/001", "text 1"),
        ("d/002", "text 2"),
        ("m/002", "changed at the new name"),
        ("m/003", "text 3"),
        ("m/004", "text 4"),
        ("d/new", "made since"),
    ] {
        assert_eq!(world.get(key).await.as_deref(), Some(text), "{key}");
    }
    let errors = errors(&other);
    assert_eq!(errors.len(), 1, "{errors:?}");
    for part in [
        "complete but for 2 that stay at their old names",
        "\"d/001\" (somebody has changed it since)",
        "\"d/002\" (there is another file at its new name)",
    ] {
        assert!(errors[0].contains(part), "{part}: {errors:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rename_that_goes_on_elsewhere_is_left_alone_however_long_it_takes() {
    let world = filled(100).await;
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount.fault.set("copy:delay=600s").unwrap();
    let other = world.mount();
    let watch = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        other.fs.resume_renames().await;
        other.cost();
        tokio::time::sleep(Duration::from_secs(900)).await;
        assert_eq!(mount.fs.status().renames.len(), 1, "it takes its time");
        let cost = other.cost();
        assert!(!cost.contains("copy") && !cost.contains("put"), "{cost}");
    };
    let (renamed, ()) = tokio::join!(mount.rename("d", "m"), watch);
    renamed.unwrap();
    assert_eq!(world.keys().await.len(), 100);
}

#[tokio::test(start_paused = true)]
async fn of_many_mounts_one_completes_a_rename() {
    let world = filled(60).await;
    break_off(world.mount(), "copy:delay=10ms", Duration::from_millis(15)).await;
    let others = [world.mount(), world.mount(), world.mount()];
    for other in &others {
        other.fault.set("copy:delay=10ms").unwrap();
        other.fs.resume_renames().await;
    }
    tokio::time::sleep(SILENT).await;
    let keys = world.keys().await;
    assert!(keys.iter().all(|key| key.starts_with("m/")), "{keys:?}");
    assert_eq!(keys.len(), 60);
    let copying = others.iter().filter(|other| other.cost().contains("copy"));
    assert_eq!(copying.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_rename_that_failed_is_not_taken_up_again() {
    let world = filled(50).await;
    let mount = world.mount();
    mount.ls("").await.unwrap();
    mount
        .fault
        .set("copy:error=denied:key~/04,delete:error=unreachable")
        .unwrap();
    assert_eq!(mount.rename("d", "m").await, Err(libc::EACCES));
    mount.fault.clear();
    // The record could not be removed at once.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let mut keys = world.keys().await;
    assert_eq!(keys.len(), 50);
    keys.retain(|key| !key.starts_with("m/"));
    assert!(keys.iter().all(|key| key.starts_with("d/04")), "{keys:?}");
}
