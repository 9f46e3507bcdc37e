//! Requests in the background, for what nobody has asked for yet.

use super::flight::Flight;
use super::scatter::SWEEP;
use super::{Fetcher, InFlight, Pattern};
use crate::cache::content::Version;
use std::sync::Arc;

/// So many blocks are looked at for one request in the background.
const LOOK: u64 = 1024;

impl Fetcher {
    /// Sends up to so many requests for what is missing of a version, on from where the last one
    /// for this handle ended.
    pub(super) fn sweep(
        self: &Arc<Self>,
        version: &Arc<Version>,
        pattern: &Pattern,
        requests: usize,
    ) {
        for _ in 0..requests {
            let mut in_flight = self.in_flight.lock();
            let (mut next, running) = pattern.scatter(|s| (s.cursor, s.running.clone()));
            let far = version.blocks().min(next + LOOK);
            while next < far && !self.is_missing(version, next, &in_flight) {
                next += 1;
            }
            // Blocks that are here lie on the way of a request as long as they are few: one for
            // four that are not.
            let (mut wanted, mut end) = (Vec::new(), next);
            for index in next..far.min(next + SWEEP) {
                let here = index - next - wanted.len() as u64;
                if here * 4 > wanted.len() as u64 {
                    break;
                }
                if self.is_missing(version, index, &in_flight) {
                    wanted.push(index);
                    end = index + 1;
                }
            }
            let mut flight = Flight::new(self, version, next);
            for index in next..end {
                if wanted.binary_search(&index).is_ok() {
                    let id = (version.key.clone(), version.etag.clone(), index);
                    in_flight.insert(id, flight.add());
                } else {
                    flight.pass();
                }
            }
            pattern.scatter(|scatter| {
                scatter.cursor = end.max(next);
                scatter.brought(version, wanted);
            });
            drop(in_flight);
            if flight.len() == 0 {
                return;
            }
            flight.hold(running);
            self.runtime.spawn(flight.run(false));
        }
    }

    /// Whether a block is neither here nor on its way.
    pub(super) fn is_missing(&self, version: &Version, index: u64, in_flight: &InFlight) -> bool {
        let id = (version.key.clone(), version.etag.clone(), index);
        !in_flight.contains_key(&id) && !self.cache.holds(version, index)
    }
}
