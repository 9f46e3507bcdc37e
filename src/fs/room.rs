//! The room that is left in the store, as `df` shows it.
//!
//! `df` asks every mount of a machine, and so do programs that look whether a mount lives: none of
//! them waits long for a store, or fails with it.

use super::Fs;
use crate::clock::{self, Instant};
use crate::driver::{Driver, Space};
use crate::task;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;

/// How long what the store told is believed, and how long it is left alone after it told nothing.
const TTL: Duration = Duration::from_secs(5);

/// How long its answer is waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a store is said to have that has no notion of room, or has told nothing yet.
const BOUNDLESS: Space = Space {
    total: 1 << 50,
    free: 1 << 50,
};

/// What is known of the room.
#[derive(Debug, Default)]
pub(super) struct Room {
    state: Mutex<State>,
    /// A question has ended.
    told: Notify,
}

#[derive(Debug, Default)]
struct State {
    known: Option<Space>,
    /// When the last question was asked.
    asked: Option<Instant>,
    /// It is under way.
    asking: bool,
    /// The last one that ended, or was waited for, had no answer: the next is not waited for.
    silent: bool,
}

impl Fs {
    /// Room in the store, from a moment ago; from longer ago, or a guess, where the store does not
    /// answer at once.
    pub async fn statfs(self: &Arc<Self>) -> Space {
        let told = self.room.told.notified();
        let patience = {
            let mut state = self.room.state.lock();
            let age = state.asked.map(|asked| clock::now() - asked);
            if !state.asking && age.is_none_or(|age| age >= TTL) {
                state.asked = Some(clock::now());
                state.asking = true;
                task::spawn(ask(Arc::downgrade(self), self.driver.clone()));
            }
            match state.asking && !state.silent {
                true => PATIENCE.saturating_sub(clock::now() - state.asked.unwrap_or(clock::now())),
                false => Duration::ZERO,
            }
        };
        if !patience.is_zero() && tokio::time::timeout(patience, told).await.is_err() {
            self.room.state.lock().silent = true;
        }
        self.room.state.lock().known.unwrap_or(BOUNDLESS)
    }
}

async fn ask(fs: Weak<Fs>, driver: Arc<dyn Driver>) {
    let space = driver.space().await;
    let Some(fs) = fs.upgrade() else { return };
    {
        let mut state = fs.room.state.lock();
        state.asking = false;
        state.silent = space.is_err();
        match space {
            Ok(space) => state.known = Some(space.unwrap_or(BOUNDLESS)),
            Err(error) => log::debug!("the store does not tell its room: {error}"),
        }
    }
    fs.room.told.notify_waiters();
}
