//! What a comparison of all that is stored mends.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_repair_compares_everything() {
    let world = World::of(2);
    let mirror = world.mirror();
    for name in ["same", "changed", "removed"] {
        put(&mirror, name, "old").await.unwrap();
    }
    let [primary, replica] = &world.stores[..] else {
        unreachable!()
    };
    put(primary, "changed", "new").await.unwrap();
    put(primary, "added", "new").await.unwrap();
    let change = AttributeChange {
        mode: Some(0o100_600),
        ..AttributeChange::default()
    };
    primary
        .set_attributes(&"same".into(), change, None)
        .await
        .unwrap();
    primary
        .delete(&"removed".into(), Precondition::None)
        .await
        .unwrap();
    put(replica, "foreign", "x").await.unwrap();
    let mut said = Vec::new();
    let repaired = mirror.replicated()[0]
        .repair(false, &mut |line| said.push(line))
        .await;
    let repaired = repaired.unwrap();
    assert_eq!(
        (repaired.mended, repaired.foreign, repaired.failed),
        (4, 1, 0),
        "{said:?}"
    );
    replica
        .delete(&"foreign".into(), Precondition::None)
        .await
        .unwrap();
    world.assert_alike().await;
    let again = mirror.replicated()[0]
        .repair(false, &mut |_| {})
        .await
        .unwrap();
    assert_eq!((again.compared, again.mended), (3, 0));
    // Where the first store has nothing but what is our own, the order may be wrong.
    let fresh = Memory::new();
    put(&fresh, ".bucketfs/index/x.0", "own").await.unwrap();
    let swapped = vec![
        Arc::new(fresh) as Arc<dyn Driver>,
        Arc::new(replica.clone()),
    ];
    let swapped = Mirror::new(swapped, None).unwrap();
    swapped.replicated()[0]
        .repair(false, &mut |_| {})
        .await
        .unwrap_err();
    assert_eq!(all(replica).await.len(), 3);
}

/// A crash of the replica's disk, or a hand that writes in place, leaves the marks where they are.
#[tokio::test(start_paused = true)]
async fn copies_that_somebody_has_cut_or_written_over_are_mended() {
    let world = World::of(2);
    let mirror = world.mirror();
    settled(&mirror).await;
    for name in ["cut", "over", "kept"] {
        let options = PutOptions {
            attributes: Attributes {
                mtime: Some(clock::wall() - Duration::from_secs(60)),
                ..Attributes::default()
            },
            ..PutOptions::default()
        };
        let key = Key::from(name);
        mirror.put(&key, "bytes".into(), options).await.unwrap();
    }
    let replica = &world.stores[1];
    for (name, bytes) in [("cut", "by"), ("over", "BYTES")] {
        let key = Key::from(name);
        let found = replica.head(&key).await.unwrap();
        let mut attributes = found.told_attributes();
        attributes.mtime = Some(clock::wall());
        let options = PutOptions {
            attributes,
            ..PutOptions::default()
        };
        replica.put(&key, bytes.into(), options).await.unwrap();
    }
    // Nor is one that was cut told in place of the primary.
    world.faults[0].set("*:error=unreachable").unwrap();
    text(&mirror, "cut").await.unwrap_err();
    assert_eq!(text(&mirror, "kept").await.unwrap(), "bytes");
    world.faults[0].set("").unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let repaired = mirror.replicated()[0].repair(false, &mut |_| {}).await;
    let repaired = repaired.unwrap();
    assert_eq!(
        (repaired.compared, repaired.mended, repaired.failed),
        (3, 2, 0)
    );
    world.assert_alike().await;
}
