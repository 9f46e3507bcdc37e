//! What of a file takes no room on the disk.

use super::*;

#[tokio::test]
async fn long_zeros_are_holes_on_the_disk() {
    let bench = bench();
    let mut bytes = vec![0; 3 << 20];
    bytes[1 << 20] = 1;
    bytes[(2 << 20) - 1] = 2;
    let pieces: Vec<Bytes> = bytes.chunks(100_000).map(Bytes::copy_from_slice).collect();
    for (name, body) in [
        ("whole", Body::from(bytes.clone())),
        ("pieces", Body::Memory(pieces.into())),
        ("nothing", Body::from(vec![0; 3 << 20])),
    ] {
        let len = body.len();
        let wanted = body.collect().await.unwrap();
        let key = key(name);
        let put = bench.driver.put(&key, body, PutOptions::default());
        assert_eq!(put.await.unwrap().size.unwrap_or(len), len);
        let path = bench.dir.path().join(name);
        assert!(std::fs::read(&path).unwrap() == wanted);
        let facts = std::fs::metadata(&path).unwrap();
        assert!(
            facts.len() == len && facts.blocks() * 512 <= 512 << 10,
            "{facts:?}"
        );
    }
}
