use super::*;
use crate::driver::memory::Memory;

/// A store whose buckets are in memory. A bucket `denied` is listed and lets nobody in.
#[derive(Debug, Default)]
struct Shop {
    buckets: Mutex<BTreeMap<String, Memory>>,
    unlisted: bool,
}

impl Shop {
    fn with(names: &[&str]) -> Shop {
        let buckets = names.iter().map(|name| (name.to_string(), Memory::new()));
        Shop {
            buckets: Mutex::new(buckets.collect()),
            unlisted: false,
        }
    }
}

fn no<T>(kind: ErrorKind) -> Result<T> {
    Err(Error::new(kind, "no"))
}

#[async_trait]
impl Driver for Shop {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            buckets: true,
            create_bucket: true,
            ..Memory::new().capabilities()
        }
    }

    async fn head(&self, _: &Key) -> Result<ObjectInfo> {
        unreachable!()
    }

    async fn get(&self, _: &Key, _: GetOptions) -> Result<GetOutcome> {
        unreachable!()
    }

    async fn put(&self, _: &Key, _: Body, _: PutOptions) -> Result<ObjectInfo> {
        unreachable!()
    }

    async fn delete(&self, _: &Key, _: Precondition) -> Result<()> {
        unreachable!()
    }

    async fn list(&self, _: ListRequest) -> Result<Page> {
        unreachable!()
    }

    async fn buckets(&self) -> Result<Vec<BucketInfo>> {
        if self.unlisted {
            return no(ErrorKind::Denied);
        }
        let names: Vec<String> = self.buckets.lock().keys().cloned().collect();
        let info = |name| BucketInfo {
            name,
            created: None,
        };
        Ok(names.into_iter().map(info).collect())
    }

    async fn bucket(&self, name: &str) -> Result<Arc<dyn Driver>> {
        if name == "denied" {
            return no(ErrorKind::Denied);
        }
        match self.buckets.lock().get(name) {
            Some(bucket) => Ok(Arc::new(bucket.clone())),
            None => no(ErrorKind::NotFound),
        }
    }

    async fn create_bucket(&self, name: &str) -> Result<()> {
        self.buckets.lock().insert(name.to_owned(), Memory::new());
        Ok(())
    }

    async fn delete_bucket(&self, name: &str) -> Result<()> {
        let bucket = self.buckets.lock().get(name).cloned();
        let Some(bucket) = bucket else {
            return no(ErrorKind::NotFound);
        };
        let first = bucket.list(ListRequest::flat(&Key::empty())).await?;
        if !first.entries.is_empty() {
            return no(ErrorKind::Exists);
        }
        self.buckets.lock().remove(name);
        Ok(())
    }
}

async fn put(driver: &dyn Driver, key: &str) {
    let body = Body::from(key.as_bytes().to_vec());
    let key = Key::from(key);
    let put = driver.put(&key, body, PutOptions::default());
    put.await.unwrap();
}

/// All keys of a listing, over all its pages.
async fn keys(driver: &dyn Driver, mut request: ListRequest) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    loop {
        let page = driver.list(request.clone()).await?;
        assert!(page.entries.len() <= request.limit);
        keys.extend(page.entries.iter().map(|entry| entry.key.to_string()));
        match page.next {
            Some(token) => request.token = Some(token),
            None => return Ok(keys),
        }
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[tokio::test]
async fn keys_of_all_buckets_are_listed_in_order_whatever_the_pages() {
    let shop = Shop::with(&["a", "a-b", "denied", "empty", "z"]);
    let driver = Buckets::new(Arc::new(shop), false);
    for key in ["a/1", "a/2/x", "a/2/y", "a-b/1", "z/1"] {
        put(&driver, key).await;
    }
    let flat = [
        "a-b/", "a-b/1", "a/", "a/1", "a/2/x", "a/2/y", "denied/", "empty/", "z/", "z/1",
    ];
    for limit in [1, 2, 3, 1000] {
        let request = |prefix: &str, delimiter| ListRequest {
            limit,
            delimiter,
            ..ListRequest::flat(&Key::from(prefix))
        };
        let all = async |request| keys(&driver, request).await.unwrap();
        let readable: Vec<_> = flat.iter().filter(|key| **key != "denied/").collect();
        let listed = all(request("", false)).await;
        let listed: Vec<_> = listed.iter().filter(|key| *key != "denied/").collect();
        assert_eq!(listed, readable, "{limit}");
        let top = ["a-b/", "a/", "denied/", "empty/", "z/"];
        assert_eq!(all(request("", true)).await, top, "{limit}");
        assert_eq!(all(request("a", true)).await, ["a-b/", "a/"]);
        assert_eq!(all(request("a/", true)).await, ["a/", "a/1", "a/2/"]);
        assert_eq!(all(request("a/2/", false)).await, ["a/2/x", "a/2/y"]);
        assert_eq!(all(request("empty/", false)).await, ["empty/"]);
        assert_eq!(all(request("none/", false)).await, [""; 0]);
        for (at, after) in flat.iter().enumerate() {
            let request = ListRequest {
                start_after: Some(Key::from(*after)),
                ..request("", false)
            };
            let rest = all(request).await;
            let rest: Vec<_> = rest.iter().filter(|key| *key != "denied/").collect();
            let want: Vec<_> = flat[at + 1..].iter().filter(|k| **k != "denied/").collect();
            assert_eq!(rest, want, "after {after}, {limit}");
        }
    }
}

#[tokio::test]
async fn buckets_are_made_and_removed_only_where_that_is_allowed() {
    let shop: Arc<dyn Driver> = Arc::new(Shop::with(&["a"]));
    let (may, must_not) = (
        Buckets::new(shop.clone(), true),
        Buckets::new(shop.clone(), false),
    );
    let (a, b) = (Key::from("a/"), Key::from("b/"));
    let absent = || PutOptions {
        precondition: Precondition::IfAbsent,
        ..PutOptions::default()
    };
    let make = must_not.put(&b, Body::empty(), absent()).await;
    assert_eq!(kind(make), ErrorKind::Denied);
    let make = must_not.put(&a, Body::empty(), absent()).await;
    assert_eq!(kind(make), ErrorKind::Exists);
    let remove = must_not.delete(&a, Precondition::None).await;
    assert_eq!(kind(remove), ErrorKind::Denied);
    assert!(!must_not.capabilities().create_bucket);

    may.put(&b, Body::empty(), absent()).await.unwrap();
    assert!(may.head(&b).await.is_ok());
    put(&may, "b/k").await;
    let full = may.delete(&b, Precondition::None).await;
    assert_eq!(kind(full), ErrorKind::Exists);
    let k = Key::from("b/k");
    may.delete(&k, Precondition::None).await.unwrap();
    may.delete(&b, Precondition::None).await.unwrap();
    assert_eq!(kind(may.head(&b).await), ErrorKind::NotFound);
    let file = may.put(&"file".into(), "x".into(), absent()).await;
    assert_eq!(kind(file), ErrorKind::Denied);
}

#[tokio::test]
async fn one_bucket_takes_nothing_from_another() {
    let shop = Shop::with(&["a", "b", "denied"]);
    let driver = Buckets::new(Arc::new(shop), false);
    for key in ["a/k", "b/k"] {
        put(&driver, key).await;
    }
    let error = driver.head(&"denied/k".into()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert_eq!(error.key(), Some(&Key::from("denied/k")));
    // It is there all the same.
    assert!(driver.head(&"denied/".into()).await.is_ok());
    let missing = driver.head(&"b/none".into()).await.unwrap_err();
    assert_eq!(missing.key(), Some(&Key::from("b/none")));
    let (from, to) = (Key::from("a/k"), Key::from("b/c"));
    let across = driver.copy(&from, &to, CopyOptions::default());
    assert_eq!(kind(across.await), ErrorKind::Unsupported);
    let gone = ["a/k", "none/k", "b/k", "b/never"].map(Key::from);
    for result in driver
        .delete_many(&gone.clone().map(Removal::from))
        .await
        .unwrap()
    {
        result.unwrap();
    }
    for key in &gone {
        assert_eq!(kind(driver.head(key).await), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn buckets_that_may_not_be_listed_can_be_named() {
    let mut shop = Shop::with(&["a"]);
    shop.unlisted = true;
    let driver = Buckets::new(Arc::new(shop), false);
    put(&driver, "a/k").await;
    let top = driver.list(ListRequest::directory(&Key::empty())).await;
    assert_eq!(kind(top), ErrorKind::Denied);
    let below = ListRequest::directory(&Key::from("a/"));
    assert_eq!(keys(&driver, below).await.unwrap(), ["a/", "a/k"]);
    assert!(driver.head(&"a/".into()).await.is_ok());
    let none = ListRequest::directory(&Key::from("none/"));
    assert_eq!(keys(&driver, none).await.unwrap(), [""; 0]);
}
