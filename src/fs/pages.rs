//! Pages of a listing, asked for while those before them are taken in: each names the next one, so
//! that the round trips of a long listing can overlap with nothing but that.

use crate::cache::listing::Ticket;
use crate::clock;
use crate::driver::{ListRequest, Page, Result};
use crate::fs::Fs;
use crate::task;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// How many pages wait to be taken, beside one that is on its way.
const WAITING: usize = 2;

/// A listing under way. What nobody takes any more is not asked for.
#[derive(Debug)]
pub(super) struct Pages {
    coming: mpsc::Receiver<(Ticket, Result<Page>)>,
    asking: AbortHandle,
}

impl Fs {
    /// Begins a listing with this request; pages behind the first one are asked for if it `goes_on`.
    pub(super) fn pages(&self, mut request: ListRequest, goes_on: bool) -> Pages {
        let (driver, listing) = (self.driver.clone(), self.listing.clone());
        let (sender, coming) = mpsc::channel(WAITING);
        let asking = task::spawn(async move {
            loop {
                let ticket = listing.begin(clock::now());
                let page = driver.list(request.clone()).await;
                request.token = page.as_ref().ok().and_then(|page| page.next.clone());
                let ends = request.token.is_none() || !goes_on;
                if sender.send((ticket, page)).await.is_err() || ends {
                    return;
                }
            }
        });
        Pages {
            coming,
            asking: asking.abort_handle(),
        }
    }
}

impl Pages {
    /// The next page, with a ticket of when it was asked for; nothing behind the last one, or
    /// behind an error.
    pub async fn next(&mut self) -> Option<(Ticket, Result<Page>)> {
        self.coming.recv().await
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.asking.abort();
    }
}
