//! Fresh stores for cases, and the words that cases are written in.

use bucketfs::driver::{
    Body, Capabilities, Driver, Error, ErrorKind, GetOptions, ListEntry, ListRequest, ObjectInfo,
    Precondition, PutOptions,
};
use bucketfs::key::Key;
use bytes::Bytes;
use futures::future::{BoxFuture, LocalBoxFuture};
use libtest_mimic::{Completion, Failed};
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

/// A case: it panics where the driver breaks the contract.
pub struct Case {
    pub name: &'static str,
    pub run: Run,
}

pub type Run = fn(Fixture) -> LocalBoxFuture<'static, ()>;

/// Lists the cases of a module.
macro_rules! cases {
    ($($name:ident),+ $(,)?) => {
        pub const CASES: &[crate::fixture::Case] = &[$(crate::fixture::Case {
            name: stringify!($name),
            run: |fixture| Box::pin($name(fixture)),
        }),+];
    };
}
pub(crate) use cases;

/// An empty store of its own for each case.
pub struct Fixture {
    /// A client.
    pub a: Arc<dyn Driver>,
    /// Another client of the same store.
    pub b: Arc<dyn Driver>,
    /// How another process opens it, where that is possible.
    pub url: Option<String>,
    /// What must never be shown.
    pub secrets: Vec<String>,
    /// Why the case does not apply, when it does not.
    pub skipped: Skipped,
    /// What the store lives in.
    pub _keep: Box<dyn Any + Send>,
}

pub type Skipped = Arc<OnceLock<&'static str>>;

impl Fixture {
    /// Says that the case does not apply, for a last line: the test shows as ignored.
    pub fn skip(&self, reason: &'static str) {
        self.skipped.get_or_init(|| reason);
    }

    pub fn capabilities(&self) -> Capabilities {
        self.a.capabilities()
    }
}

type Open = Arc<dyn Fn() -> BoxFuture<'static, Result<Fixture, Error>> + Send + Sync>;

/// A kind of store that the suite runs against.
#[derive(Clone)]
pub struct Store {
    pub name: String,
    /// Why it cannot be tested here.
    pub missing: Option<String>,
    /// Cases that the server is known to fail, each with the reason.
    pub known: &'static [(&'static str, &'static str)],
    pub open: Open,
}

/// How long a case may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(120);

/// All cases run on one runtime, so that connections can be shared.
static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap()
});

/// Runs a future as a test.
pub fn run<T>(case: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    RUNTIME.block_on(async {
        let outcome = tokio::time::timeout(PATIENCE, case).await;
        outcome.unwrap_or_else(|_| Err(format!("hung for {PATIENCE:?}").into()))
    })
}

impl Store {
    /// Why a case shows as ignored with this store.
    pub fn ignored(&self, case: &str) -> Option<String> {
        let known = self.known.iter().find(|(name, _)| *name == case);
        let known = known.map(|(_, reason)| (*reason).to_owned());
        self.missing.clone().or(known)
    }

    /// The same store, which fails these cases.
    pub fn knowing(self, known: &'static [(&'static str, &'static str)]) -> Store {
        Store { known, ..self }
    }

    /// A case over a fresh store.
    pub async fn open(&self, case: Run) -> Result<Completion, Failed> {
        let fixture = (self.open)().await;
        let fixture = fixture.map_err(|error| format!("cannot open the store: {error}"))?;
        let skipped = fixture.skipped.clone();
        case(fixture).await;
        Ok(match skipped.get() {
            Some(reason) => Completion::ignored_with(reason),
            None => Completion::Completed,
        })
    }

    pub fn new<F: Future<Output = Result<Fixture, Error>> + Send + 'static>(
        name: &str,
        open: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self {
        Store {
            name: name.to_owned(),
            missing: None,
            known: &[],
            open: Arc::new(move || Box::pin(open())),
        }
    }

    /// The same store, with a layer over each client.
    pub fn under(
        &self,
        layer: &str,
        over: impl Fn(Arc<dyn Driver>) -> Arc<dyn Driver> + Send + Sync + 'static,
    ) -> Store {
        let (open, over) = (self.open.clone(), Arc::new(over));
        Store {
            name: format!("{layer}({})", self.name),
            missing: self.missing.clone(),
            known: self.known,
            open: Arc::new(move || {
                let (fixture, over) = (open(), over.clone());
                Box::pin(async move {
                    let fixture = fixture.await?;
                    Ok(Fixture {
                        a: over(fixture.a),
                        b: over(fixture.b),
                        url: None,
                        ..fixture
                    })
                })
            }),
        }
    }
}

pub fn key(text: &str) -> Key {
    text.into()
}

/// Put options with a condition.
pub fn when(precondition: Precondition) -> PutOptions {
    PutOptions {
        precondition,
        ..PutOptions::default()
    }
}

pub async fn put(driver: &Arc<dyn Driver>, name: &str, body: &str) -> ObjectInfo {
    let body = Body::from(body.as_bytes().to_vec());
    let put = driver.put(&key(name), body, PutOptions::default()).await;
    put.unwrap()
}

pub async fn get(
    driver: &Arc<dyn Driver>,
    name: &str,
    options: GetOptions,
) -> Result<(ObjectInfo, Bytes), Error> {
    driver
        .get(&key(name), options)
        .await?
        .found()?
        .collect()
        .await
}

pub async fn read(driver: &Arc<dyn Driver>, key: &Key) -> Bytes {
    let object = driver.get(key, GetOptions::default()).await.unwrap();
    object.found().unwrap().collect().await.unwrap().1
}

pub async fn text(driver: &Arc<dyn Driver>, name: &str) -> String {
    String::from_utf8(read(driver, &key(name)).await.to_vec()).unwrap()
}

/// The kind of an error that has to come.
#[track_caller]
pub fn kind<T: Debug>(result: Result<T, Error>) -> ErrorKind {
    match result {
        Ok(value) => panic!("this should have failed, and gave {value:?}"),
        Err(error) => error.kind(),
    }
}

/// All pages of a listing, each checked for order, size and prefix. Directories that the store
/// shows on its own account are left out.
pub async fn list(driver: &Arc<dyn Driver>, request: ListRequest) -> Vec<ListEntry> {
    let persist = driver.capabilities().directories_persist;
    let mut request = request;
    let mut entries: Vec<ListEntry> = Vec::new();
    loop {
        let page = driver.list(request.clone()).await.unwrap();
        assert!(page.entries.len() <= request.limit, "the page is too long");
        for entry in page.entries {
            let last = entries.last();
            assert!(
                last.is_none_or(|last| last.key < entry.key),
                "{:?} does not follow {last:?}",
                entry.key
            );
            assert!(entry.key.starts_with(&request.prefix));
            entries.push(entry);
        }
        request.token = page.next;
        if request.token.is_none() {
            break;
        }
    }
    let implied = |entry: &ListEntry| {
        persist && entry.object.is_some() && entry.key.as_bytes().ends_with(b"/")
    };
    entries.retain(|entry| !implied(entry));
    entries
}

/// All keys below a prefix.
pub async fn names(driver: &Arc<dyn Driver>, prefix: &str) -> Vec<String> {
    let entries = list(driver, ListRequest::flat(&key(prefix))).await;
    entries.iter().map(|entry| entry.key.to_string()).collect()
}

/// Everything in the store, to see that a refused operation changed nothing.
pub async fn state(driver: &Arc<dyn Driver>) -> BTreeMap<Key, (String, Bytes)> {
    let mut state = BTreeMap::new();
    for entry in list(driver, ListRequest::flat(&Key::empty())).await {
        let bytes = read(driver, &entry.key).await;
        let etag = entry.object.unwrap().etag.as_str().to_owned();
        state.insert(entry.key, (etag, bytes));
    }
    state
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize, seed: u64) -> Bytes {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes.into()
}
