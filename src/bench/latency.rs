//! The one clock of a run, and latencies counted in a logarithmic histogram.

use std::time::{Duration, Instant};

/// Nanoseconds since the start of the run, from the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(self) -> u64 {
        nanos(self.0.elapsed())
    }

    pub(super) fn sleep_until(self, time: u64) {
        std::thread::sleep(Duration::from_nanos(time.saturating_sub(self.now())));
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The measured part of a run: from `start`, before `end`, on the run's [`Clock`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Window {
    pub(super) fn contains(self, time: u64) -> bool {
        self.start <= time && time < self.end
    }

    pub(super) fn seconds(self) -> f64 {
        (self.end - self.start) as f64 / 1e9
    }
}

/// Each power of two is cut into 2^BITS equal buckets: a percentile is off by less than 0.8 %.
const BITS: u32 = 7;

/// How often each latency occurred.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; bucket(u64::MAX) + 1],
            count: 0,
            max: 0,
        }
    }
}

impl Histogram {
    pub(super) fn record(&mut self, nanos: u64) {
        self.buckets[bucket(nanos)] += 1;
        self.count += 1;
        self.max = self.max.max(nanos);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// The latency that `share` (0 to 1) of all recorded ones do not exceed; `None` when there are none.
    pub(super) fn percentile(&self, share: f64) -> Option<Duration> {
        let rank = ((self.count as f64 * share).ceil() as u64).clamp(1, self.count.max(1));
        let mut below = 0;
        let found = self.buckets.iter().position(|&count| {
            below += count;
            below >= rank
        })?;
        Some(Duration::from_nanos(upper_end(found).min(self.max)))
    }

    pub(super) fn max(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_nanos(self.max))
    }
}

/// Values below 2^BITS have a bucket each; above, the leading BITS + 1 bits choose it.
fn bucket(nanos: u64) -> usize {
    let shift = (u64::BITS - BITS - 1).saturating_sub(nanos.leading_zeros());
    ((shift as usize) << BITS) + (nanos >> shift) as usize
}

/// The greatest value that falls into a bucket.
fn upper_end(bucket: usize) -> u64 {
    let shift = (bucket >> BITS).saturating_sub(1) as u32;
    let leading = (bucket - ((shift as usize) << BITS)) as u64;
    (leading << shift) + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_at_most_its_buckets_end_and_near_it() {
        for shift in 0..64 {
            for value in [
                1_u64 << shift,
                (1 << shift) + (1 << shift) / 3,
                u64::MAX >> shift,
            ] {
                let end = upper_end(bucket(value));
                assert!(
                    end >= value,
                    "{value} lies above the end of its bucket, {end}"
                );
                assert!(end - value <= value >> BITS, "{value} is far from {end}");
                assert_eq!(bucket(end), bucket(value));
            }
        }
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        let mut values: Vec<u64> = (0..10_000_u64).map(|n| n * n * 37 % 50_000_017).collect();
        let (mut one, mut two) = (Histogram::default(), Histogram::default());
        for (index, &value) in values.iter().enumerate() {
            if index % 3 == 0 {
                one.record(value)
            } else {
                two.record(value)
            }
        }
        one.merge(&two);
        values.sort_unstable();
        for (share, rank) in [
            (0.5, 5_000),
            (0.99, 9_900),
            (0.999, 9_990),
            (1.0, 10_000),
            (0.0, 1),
        ] {
            let exact = values[rank - 1] as f64;
            let found = one.percentile(share).expect("recorded values").as_nanos() as f64;
            assert!(
                (exact..=exact * 1.008).contains(&found),
                "p{share}: {found} instead of {exact}"
            );
        }
        assert_eq!(one.max(), Some(Duration::from_nanos(values[9_999])));
    }

    #[test]
    fn nothing_recorded_has_no_percentile() {
        assert_eq!(Histogram::default().percentile(0.5), None);
        assert_eq!(Histogram::default().max(), None);
    }
}
