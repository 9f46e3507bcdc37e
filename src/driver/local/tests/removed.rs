//! A store whose own directory is removed.

use super::*;

#[tokio::test]
async fn a_root_that_was_removed_is_told_and_nothing_is_taken_for_missing() {
    for make in [driver, frugal] {
        let dir = tempfile::tempdir().unwrap();
        let driver = make(dir.path());
        driver.write("d/a", "a").await;
        let etag = driver.write("b", "b").await.etag;
        let path = dir.path().display().to_string();
        let mut feed = driver.watch(&Key::empty()).await.unwrap();
        fs::remove_dir_all(dir.path()).unwrap();

        let told = |error: Error, operation: &str| {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{operation}: {error}");
            assert!(!error.retryable(), "{operation}: {error}");
            assert_eq!(
                error.message(),
                format!(
                    "the directory {path} was removed while it was mounted: unmount, make it again, and mount"
                ),
                "{operation}"
            );
        };
        for name in ["b", "d/", "d/a", "never"] {
            let key = key(name);
            told(driver.head(&key).await.unwrap_err(), "head");
            let got = driver.get(&key, GetOptions::default()).await;
            told(got.map(|_| ()).unwrap_err(), "get");
            let precondition = Precondition::IfMatch(etag.clone());
            for precondition in [Precondition::None, precondition] {
                let deleted = driver.delete(&key, precondition.clone()).await;
                told(deleted.unwrap_err(), "delete");
                let options = PutOptions {
                    precondition,
                    ..PutOptions::default()
                };
                let put = driver.put(&key, "x".into(), options).await;
                told(put.unwrap_err(), "put");
            }
            let options = PutOptions {
                precondition: Precondition::IfAbsent,
                ..PutOptions::default()
            };
            let put = driver.put(&key, "x".into(), options).await;
            told(put.unwrap_err(), "put of what is absent");
            let to = Key::from("to");
            let copied = driver.copy(&key, &to, CopyOptions::default()).await;
            told(copied.unwrap_err(), "copy");
            let renamed = driver.rename(&key, &to, CopyOptions::default()).await;
            told(renamed.unwrap_err(), "rename");
        }
        for prefix in ["", "d/", "never/"] {
            for request in [
                ListRequest::flat(&key(prefix)),
                ListRequest::directory(&key(prefix)),
            ] {
                told(driver.list(request).await.unwrap_err(), "list");
            }
        }
        let watched = driver.watch(&Key::empty()).await;
        told(watched.map(|_| ()).unwrap_err(), "watch");
        let end = async {
            loop {
                if let Err(error) = feed.next().await.unwrap() {
                    return error;
                }
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(10), end).await;
        told(ended.unwrap(), "feed");
    }
}
