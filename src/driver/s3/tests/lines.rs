//! Lines over which bytes take their time.

use super::*;
use crate::layer::{Deadline, Layered};
use std::time::Duration;
use tokio::net::TcpSocket;

const DEADLINE: Duration = Duration::from_secs(2);

/// A server that takes this many bytes each tenth of a second, up to `most` of them, and answers
/// when it has `len`.
async fn slow(rate: usize, most: usize, len: usize) -> Arc<dyn Driver> {
    let socket = TcpSocket::new_v4().expect("a socket");
    // What waits is to wait at the client.
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let address = "127.0.0.1:0".parse().expect("an address");
    socket.bind(address).expect("a port");
    let listener = socket.listen(8).expect("a listener");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut piece = vec![0; rate];
                let mut taken = 0;
                while taken < most.min(len) {
                    let mut now = 0;
                    while now < rate && taken + now < len {
                        let count = stream.read(&mut piece[now..]).await.unwrap_or(0);
                        if count == 0 {
                            return;
                        }
                        now += count;
                    }
                    taken += now;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                if taken >= len {
                    let answer = answer("200 OK", GOOD, "");
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
                std::future::pending::<()>().await;
            });
        }
    });
    let (mut bucket, _) = serve(Vec::new()).await;
    let options = OpenOptions {
        endpoint_url: Some(endpoint),
        region: Some("us-east-1".into()),
        ..OpenOptions::default()
    };
    let keys = StaticCredentials::new("AKIDTEST", "very-secret");
    let account = Account::configure(&options, Some(keys)).await;
    bucket.store = account.expect("settings").store.clone();
    bucket.target = Arc::new(Target::new(Some("b"), bucket.store.site.clone()));
    Layered::over(Arc::new(bucket), Arc::new(Deadline::new(DEADLINE)))
}

/// Buffers of the kernel take megabytes at once, and a small body is read at once anyway: what is
/// read of a body tells little of how far it is.
#[tokio::test]
async fn a_body_on_a_slow_line_is_never_late() {
    let put = async |len: usize| {
        let rate = len / 50;
        let driver = slow(rate, len, len).await;
        let begin = crate::clock::now();
        let body = vec![7; len].into();
        let options = PutOptions::default();
        driver
            .put(&Key::from("k"), body, options)
            .await
            .expect("moved all the time");
        assert!(begin.elapsed() > 2 * DEADLINE);
    };
    tokio::join!(put(3 << 20), put(300_000), put(60_000));
}

#[tokio::test]
async fn a_body_that_nobody_takes_is_late() {
    let len = 3 << 20;
    let driver = slow(len / 50, len / 10, len).await;
    let begin = crate::clock::now();
    let key = Key::from("k");
    let put = driver.put(&key, vec![7; len].into(), PutOptions::default());
    let error = put.await.expect_err("it waits");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(begin.elapsed() < 3 * DEADLINE, "{:?}", begin.elapsed());
}
