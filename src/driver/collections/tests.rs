use super::*;
use crate::driver::Strength;

/// Two tables, of which the first is empty.
#[derive(Debug)]
struct Two;

fn refuse<T>() -> Result<T> {
    Err(Error::unsupported("it"))
}

#[async_trait]
impl Collections for Two {
    const WORD: &'static str = "table";
    const DROP: &'static str = "nobody";
    const MAX_TEXT: u64 = 1;

    fn claims(&self) -> Capabilities {
        Capabilities {
            put_condition: Strength::Atomic,
            ..Capabilities::default()
        }
    }

    fn takes(&self, _: &str) -> Result<()> {
        refuse()
    }

    async fn names(&self) -> Result<Vec<String>> {
        Ok(vec!["a".to_owned(), "b".to_owned()])
    }

    async fn make(&self, _: &str) -> Result<()> {
        refuse()
    }

    async fn fetch(&self, _: &Place<'_>) -> Result<Found> {
        refuse()
    }

    async fn write(&self, _: &Place<'_>, _: Bytes, _: &Precondition) -> Result<ObjectInfo> {
        refuse()
    }

    async fn remove(&self, _: &Place<'_>, _: &Precondition) -> Result<()> {
        refuse()
    }

    async fn page(
        &self,
        collection: &str,
        window: Window<'_>,
        _: &Key,
    ) -> Result<(Vec<(String, ObjectInfo)>, bool)> {
        let names = ["x.json", "y.json"].into_iter();
        let behind = names.filter(|name| window.after.is_none_or(|after| name.as_bytes() > after));
        let all: Vec<_> = behind.map(|name| (name.to_owned(), facts())).collect();
        let shown = if collection == "a" { 0 } else { all.len() };
        let limit = shown.min(window.limit);
        Ok((all[..limit].to_vec(), limit < shown))
    }
}

#[tokio::test]
async fn a_walk_over_several_collections_ends() {
    let database = Database::new(Two);
    for limit in [1, 2, 3, 100] {
        let mut request = ListRequest {
            limit,
            ..ListRequest::flat(&Key::empty())
        };
        let mut keys = Vec::new();
        for _ in 0..10 {
            let page = database.list(request.clone()).await.expect("a page");
            keys.extend(page.entries.into_iter().map(|entry| entry.key.to_string()));
            request.token = page.next;
            if request.token.is_none() {
                break;
            }
        }
        assert_eq!(request.token, None, "{keys:?}");
        assert_eq!(
            keys,
            ["a/", "b/", "b/x.json", "b/y.json"],
            "{limit} at a time"
        );
    }
}
