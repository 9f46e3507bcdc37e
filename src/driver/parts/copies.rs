//! A store that holds copies: others do without it when it does not answer.

use super::{Health, is_unavailable, limited};
use crate::driver::{
    AttributeSupport, Capabilities, Driver, Error, ErrorKind, Location, OpenOptions, Result,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;

/// How long opening one may take: it looks for credentials, connects and probes.
const OPENING: Duration = Duration::from_secs(15);

/// A store of copies. One that does not answer when it is opened is opened when it is used.
#[derive(Debug)]
pub(in crate::driver) struct Copies {
    /// Its URL without secrets.
    pub name: String,
    /// Whether it answers.
    pub health: Health,
    driver: OnceCell<Arc<dyn Driver>>,
    location: Option<(Location, OpenOptions)>,
}

/// Refuses stores in which a copy could not say what it is a copy of.
fn suits(name: &str, claims: &Capabilities) -> Result<()> {
    // Where commit ids are kept, attributes of any name are.
    if claims.attributes != AttributeSupport::None && claims.commit_ids && claims.range {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "{name} keeps no attributes, so that a copy there could not say of which version it is one; take a file: store on a disk with extended attributes, s3:, or redis: with layout=objects"
        ),
    )
    .during("open"))
}

/// Opens a store, or gives it up: nobody is to wait long for what can be done without.
async fn in_time(location: &Location, options: &OpenOptions) -> Result<Arc<dyn Driver>> {
    let opening = super::open(location, options, true);
    let opened = tokio::time::timeout(OPENING, opening).await;
    opened.unwrap_or_else(|_| {
        let why = format!("it could not be opened within {OPENING:?}");
        Err(Error::new(ErrorKind::Timeout, why).during("open"))
    })
}

impl Copies {
    /// An open store.
    pub fn open(name: &str, driver: Arc<dyn Driver>) -> Result<Copies> {
        suits(name, &driver.capabilities())?;
        Ok(Copies {
            name: name.to_owned(),
            health: Health::default(),
            driver: OnceCell::new_with(Some(limited(driver))),
            location: None,
        })
    }

    /// Opens the store of a URL.
    pub async fn connect(location: &Location, options: &OpenOptions) -> Result<Copies> {
        let name = location.to_string();
        match in_time(location, options).await {
            Ok(driver) => Copies::open(&name, driver),
            Err(error) if is_unavailable(&error) => {
                log::warn!("{name} does not answer, and is done without for now: {error}");
                let health = Health::default();
                health.failed(&error);
                Ok(Copies {
                    name,
                    health,
                    driver: OnceCell::new(),
                    location: Some((location.clone(), options.clone())),
                })
            }
            Err(error) => Err(Error::new(
                error.kind(),
                format!("{name}: {}", error.reason()),
            )),
        }
    }

    /// What it can do, if it ever answered.
    pub fn claims(&self) -> Option<Capabilities> {
        self.driver.get().map(|driver| driver.capabilities())
    }

    /// The store behind it, if it ever answered.
    pub fn driver(&self) -> Option<&Arc<dyn Driver>> {
        self.driver.get()
    }

    async fn opened(&self) -> Result<Arc<dyn Driver>> {
        let open = || async {
            let Some((location, options)) = &self.location else {
                return Err(Error::unsupported("open"));
            };
            let driver = in_time(location, options).await?;
            suits(&self.name, &driver.capabilities())?;
            Ok(limited(driver))
        };
        self.driver.get_or_try_init(open).await.cloned()
    }

    /// Sends it a request, unless it has just failed to answer one.
    pub async fn ask<T, F: Future<Output = Result<T>>>(
        &self,
        operation: &'static str,
        request: impl FnOnce(Arc<dyn Driver>) -> F,
    ) -> Result<T> {
        if !self.health.may_ask() {
            return Err(self.health.refusal(operation));
        }
        let answer = match self.opened().await {
            Ok(driver) => request(driver).await,
            Err(error) => Err(error),
        };
        match &answer {
            Err(error) if is_unavailable(error) => {
                if self.health.failed(error) {
                    log::warn!(
                        "{} does not answer, and is done without: {error}",
                        self.name
                    );
                }
            }
            _ => {
                if self.health.answered() {
                    log::info!("{} answers again", self.name);
                }
            }
        }
        answer
    }
}
