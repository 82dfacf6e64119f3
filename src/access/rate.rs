//! Token buckets: so many at once, so many a second after that.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Buckets kept at most. Beyond it whoever is new shares one.
const MAX_BUCKETS: usize = 16_384;

/// A bucket for everybody who took something lately; one that is full again is forgotten.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    per_second: f64,
    burst: f64,
    inner: Mutex<Inner<K>>,
}

#[derive(Debug)]
struct Inner<K> {
    of: HashMap<K, Bucket>,
    /// For those who came when there was no place for a bucket more.
    shared: Bucket,
}

/// How much was left, and when.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl<K: Hash + Eq> Buckets<K> {
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        let burst = f64::from(burst.max(1));
        Self {
            per_second: f64::from(per_second.max(1)),
            burst,
            inner: Mutex::new(Inner {
                of: HashMap::new(),
                shared: Bucket {
                    left: burst,
                    at: Instant::now(),
                },
            }),
        }
    }

    pub(super) fn per_second(&self) -> usize {
        self.per_second as usize
    }

    /// Takes so many, if they are there. More than fit the bucket are given to whoever finds it
    /// full, who then waits for longer.
    ///
    /// # Errors
    /// How long to wait before they are there; nothing was taken.
    pub(super) fn take(&self, key: K, number: usize) -> Result<(), Duration> {
        self.with(key, |bucket| {
            let number = number as f64;
            let needed = number.min(self.burst);
            if bucket.left >= needed {
                bucket.left -= number;
                return Ok(());
            }
            Err(self.time_for(needed - bucket.left))
        })
    }

    /// Takes one, on credit if need be: how long to wait for it. `None`, with nothing taken, when
    /// that would be longer than `longest`.
    pub(super) fn owe(&self, key: K, longest: Duration) -> Option<Duration> {
        self.with(key, |bucket| {
            let wait = self.time_for(1.0 - bucket.left);
            (wait <= longest).then(|| {
                bucket.left -= 1.0;
                wait
            })
        })
    }

    fn time_for(&self, missing: f64) -> Duration {
        Duration::from_secs_f64(missing.max(0.0) / self.per_second)
    }

    fn with<T>(&self, key: K, work: impl FnOnce(&mut Bucket) -> T) -> T {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if inner.of.len() >= MAX_BUCKETS && !inner.of.contains_key(&key) {
            inner
                .of
                .retain(|_, bucket| self.filled(*bucket, now).left < self.burst);
        }
        let new = Bucket {
            left: self.burst,
            at: now,
        };
        let is_full = inner.of.len() >= MAX_BUCKETS && !inner.of.contains_key(&key);
        let bucket = if is_full {
            &mut inner.shared
        } else {
            inner.of.entry(key).or_insert(new)
        };
        *bucket = self.filled(*bucket, now);
        work(bucket)
    }

    fn filled(&self, bucket: Bucket, now: Instant) -> Bucket {
        let seconds = now.saturating_duration_since(bucket.at).as_secs_f64();
        Bucket {
            left: (bucket.left + seconds * self.per_second).min(self.burst),
            at: now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_time_to_wait_is_told() {
        let buckets = Buckets::new(1, 3);
        for _ in 0..3 {
            assert_eq!(buckets.take("ada", 1), Ok(()));
        }
        let wait = buckets.take("ada", 1).expect_err("the bucket is empty");
        assert!(
            wait > Duration::ZERO && wait <= Duration::from_secs(1),
            "{wait:?}"
        );
        assert_eq!(buckets.take("bob", 1), Ok(()));
    }

    #[test]
    fn more_than_a_bucket_passes_once_and_is_paid_for() {
        let buckets = Buckets::new(10, 5);
        assert_eq!(buckets.take("ada", 1000), Ok(()));
        let wait = buckets.take("ada", 1).expect_err("in debt");
        assert!(wait > Duration::from_secs(90), "{wait:?}");
    }

    #[test]
    fn credit_ends() {
        let buckets = Buckets::new(1, 2);
        let longest = Duration::from_secs(5);
        let owed: Vec<Option<Duration>> = (0..20).map(|_| buckets.owe("ada", longest)).collect();
        assert_eq!(owed[..2], [Some(Duration::ZERO); 2]);
        let waits: Vec<Duration> = owed.iter().copied().flatten().collect();
        assert!(waits.iter().all(|wait| *wait <= longest), "{waits:?}");
        // Two at once, five on credit; more only if this takes seconds.
        assert!((7..20).contains(&waits.len()), "{waits:?}");
    }

    #[test]
    fn there_are_never_more_buckets_than_their_bound() {
        let buckets = Buckets::new(1, 1);
        for key in 0..MAX_BUCKETS + 100 {
            let _ = buckets.take(key, 1);
        }
        let inner = buckets.inner.lock().expect("no panic");
        assert_eq!(inner.of.len(), MAX_BUCKETS);
    }
}
