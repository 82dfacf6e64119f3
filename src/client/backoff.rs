//! When to try again.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use super::Retry;

/// The first pause is up to this long.
const BASE: Duration = Duration::from_millis(200);

/// No pause is longer, except where the server asks for it.
const CAP: Duration = Duration::from_secs(10);

/// A server that asks for more (`Retry-After`) is asked again then.
const LONGEST_AFTER: Duration = Duration::from_secs(600);

/// Pauses of exponential backoff with full jitter: any length from 0 to 200 ms, then to
/// 400 ms, and so on up to 10 s, so that clients that were lost together come back spread out
/// ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// How long to wait now. A connection that was open since `connected` and held for the
    /// longest pause starts the series anew; one that is lost at once does not.
    pub(crate) fn pause(&mut self, retry: Retry, connected: Option<Instant>) -> Duration {
        if connected.is_some_and(|since| since.elapsed() >= CAP) {
            self.attempts = 0;
        }
        let most = BASE.saturating_mul(1 << self.attempts.min(16)).min(CAP);
        self.attempts = self.attempts.saturating_add(1);
        let jitter = most.mul_f64(random());
        match retry {
            Retry::After(wait) => wait.min(LONGEST_AFTER) + jitter,
            Retry::Soon | Retry::Never => jitter,
        }
    }
}

/// From 0 to 1. The keys of a map's hasher are random; nothing here has to be secret.
fn random() -> f64 {
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_cap_and_differ() {
        let series = || {
            let mut backoff = Backoff::default();
            [(); 40].map(|()| backoff.pause(Retry::Soon, None))
        };
        let many = [(); 50].map(|()| series());
        for (attempt, most) in [(0, 200), (1, 400), (4, 3200), (6, 10_000), (39, 10_000)] {
            let longest = many.iter().map(|series| series[attempt]).max();
            let longest = longest.expect("fifty").as_millis();
            // That none of fifty is above a third of the bound: less than one in 10^23.
            assert!(
                longest <= most && longest > most / 3,
                "{attempt}: {longest}"
            );
        }
    }

    #[test]
    fn the_server_s_word_is_a_lower_bound_and_a_long_connection_a_new_beginning() {
        let mut backoff = Backoff::default();
        let asked = Duration::from_secs(7);
        assert!(backoff.pause(Retry::After(asked), None) >= asked);
        let year = Duration::from_secs(31_536_000);
        assert!(backoff.pause(Retry::After(year), None) <= LONGEST_AFTER + CAP);
        backoff.attempts = 30;
        let long_ago = Instant::now().checked_sub(CAP);
        if long_ago.is_some() {
            assert!(backoff.pause(Retry::Soon, long_ago) <= BASE);
        }
        backoff.attempts = 30;
        backoff.pause(Retry::Soon, Some(Instant::now()));
        assert_eq!(backoff.attempts, 31);
    }
}
