//! The one place that a feed's subscriber has for states: whatever it has not been sent is
//! replaced by what is newer.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::frame::{Chunk, StateFrame};
use crate::manager::feeds::Update;
use crate::protocol::Rev;

/// A feed's newest state, as far as one subscriber has not been sent it.
#[derive(Debug, Default)]
pub(super) struct Newest(Mutex<Place>);

#[derive(Debug, Default)]
struct Place {
    /// Of what waits, or was sent last.
    rev: Rev,
    waiting: Option<Chunk>,
    /// Of what was taken to be sent last.
    sent: Rev,
}

impl Newest {
    /// Brings it into the cache.
    pub(super) fn look(&self) -> bool {
        self.0.is_poisoned()
    }

    /// The state that the subscriber starts with.
    pub(super) fn start_with(&self, state: &StateFrame) {
        *self.lock() = Place {
            rev: state.rev,
            waiting: Some(state.chunk().clone()),
            sent: Rev::default(),
        };
    }

    /// Puts what is new in place of what waits, if it is new to this subscriber and, asked in
    /// one step with that, `wanted`.
    pub(super) fn replace(&self, update: &Update, wanted: impl FnOnce() -> bool) -> bool {
        let mut place = self.lock();
        if !wanted() || update.last.rev <= place.rev {
            return false;
        }
        // Only whoever keeps up gets states that are not the newest.
        let is_next = place.waiting.is_none() && place.rev < update.first;
        place.waiting = Some(if is_next {
            update.all.clone()
        } else {
            update.last.chunk().clone()
        });
        place.rev = update.last.rev;
        true
    }

    /// What is to be sent next.
    pub(super) fn take(&self) -> Option<Chunk> {
        let mut place = self.lock();
        let taken = place.waiting.take();
        if taken.is_some() {
            place.sent = place.rev;
        }
        taken
    }

    /// The revision that the subscriber was sent last, or is being sent.
    pub(super) fn sent(&self) -> Rev {
        self.lock().sent
    }

    /// Whether something is to be sent.
    pub(super) fn waits(&self) -> bool {
        self.lock().waiting.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
