//! When to try again.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

/// The first pause is up to this long.
const BASE: Duration = Duration::from_millis(100);

/// No pause is longer: a node that is cut off costs its clients.
const CAP: Duration = Duration::from_secs(2);

/// Pauses of exponential backoff with jitter, from half of the bound to all of it, so that nodes
/// that were cut off together come back spread out.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// How long to wait now.
    pub(crate) fn pause(&mut self) -> Duration {
        let most = BASE.saturating_mul(1 << self.attempts.min(16)).min(CAP);
        self.attempts = self.attempts.saturating_add(1);
        // The keys of a map's hasher are random; nothing here has to be secret.
        let random = RandomState::new().hash_one(0) as f64 / u64::MAX as f64;
        most.mul_f64(0.5 + random / 2.0)
    }
}
