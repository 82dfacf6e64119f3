//! What the server has done since its start, as `GET /metrics` shows it.
//!
//! Counters and histograms are atomics: whoever counts waits for nobody, and the fan-out counts
//! once for each chunk, however many subscribers it goes to. Numbers read together need not be
//! of one moment.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::frame::CloseCode;
use crate::usage::Count;

/// Bounds of the histograms of time, in nanoseconds: 100 µs to 2.5 s.
const TIMES: &[u64] = &[
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
];

/// Bounds of the histogram of batches.
const SIZES: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512];

/// Every status that the server answers with; others are counted together.
const STATUSES: &[u16] = &[
    200, 204, 304, 400, 401, 403, 404, 405, 408, 411, 413, 415, 417, 422, 426, 429, 431, 500, 501,
    503, 505,
];

/// Every code with which the server ends a subscriber.
const CLOSE_CODES: &[u16] = &[
    CloseCode::Normal as u16,
    CloseCode::GoingAway as u16,
    CloseCode::Protocol as u16,
    CloseCode::Unsupported as u16,
    CloseCode::InvalidPayload as u16,
    CloseCode::Policy as u16,
    CloseCode::TooLarge as u16,
    CloseCode::Internal as u16,
    CloseCode::TryAgainLater as u16,
];

/// What was done, and what is being done, beside what the limits come to.
#[derive(Debug)]
pub struct Traffic {
    /// The server is about to end, or ending.
    pub draining: AtomicBool,
    /// Connections open now that speak HTTP: no subscribers, or not yet.
    pub http_connections: AtomicUsize,
    /// Requests on a connection of the relay now, see [`Limits::max_rest_requests`](crate::Limits::max_rest_requests).
    pub rest_requests: AtomicUsize,
    /// Bytes of committed frames that wait for the fan-out now.
    pub fanout_bytes: AtomicUsize,
    /// HTTP requests answered, refusals included, by status; without those that became subscribers.
    pub answers: ByCode,
    /// Subscribers that came over WebSocket.
    pub joined_websocket: Count,
    /// Subscribers that came as event streams.
    pub joined_sse: Count,
    /// Subscribers that went, by the close code that they were given; the others just went.
    pub left: ByCode,
    /// Subscriptions that asked for what came after an id.
    pub since: Count,
    /// Subscriptions that asked for the last so many messages.
    pub last: Count,
    /// Gaps that subscribers were told, because retention has deleted what they asked for.
    pub gaps_retention: Count,
    /// Gaps that subscribers were told, because they asked for an id that was never given.
    pub gaps_unknown_id: Count,
    /// How often an outbox was full, and its subscriber went on from the store.
    pub fell_behind: Count,
    /// Messages committed.
    pub messages: Count,
    /// Messages put into outboxes as they were broadcast, once for each subscriber.
    pub delivered_live: Count,
    /// The same for subscribers behind, of what was still in memory.
    pub delivered_recent: Count,
    /// The same for subscribers behind, of what was read from the store.
    pub delivered_store: Count,
    /// States published that differ from the feed's last.
    pub states_changed: Count,
    /// States published that are the feed's last already.
    pub states_unchanged: Count,
    /// States offered to subscribers, once for each.
    pub states_delivered: Count,
    /// Looks at a watched source.
    pub watch_looks: Count,
    /// Looks that failed.
    pub watch_errors: Count,
    /// Commits that failed.
    pub commit_errors: Count,
    /// How long it took until a batch was in the log that several nodes share, or was known not
    /// to be, in nanoseconds.
    pub appends: Histogram,
    /// How long commits took, failed ones too, in nanoseconds.
    pub commits: Histogram,
    /// Messages and states in one commit.
    pub batches: Histogram,
    /// How long fan-outs of messages took, in nanoseconds.
    pub fan_outs: Histogram,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            draining: AtomicBool::default(),
            http_connections: AtomicUsize::default(),
            rest_requests: AtomicUsize::default(),
            fanout_bytes: AtomicUsize::default(),
            answers: ByCode::new(STATUSES),
            joined_websocket: Count::default(),
            joined_sse: Count::default(),
            left: ByCode::new(CLOSE_CODES),
            since: Count::default(),
            last: Count::default(),
            gaps_retention: Count::default(),
            gaps_unknown_id: Count::default(),
            fell_behind: Count::default(),
            messages: Count::default(),
            delivered_live: Count::default(),
            delivered_recent: Count::default(),
            delivered_store: Count::default(),
            states_changed: Count::default(),
            states_unchanged: Count::default(),
            states_delivered: Count::default(),
            watch_looks: Count::default(),
            watch_errors: Count::default(),
            commit_errors: Count::default(),
            appends: Histogram::new(TIMES),
            commits: Histogram::new(TIMES),
            batches: Histogram::new(SIZES),
            fan_outs: Histogram::new(TIMES),
        }
    }
}

impl Traffic {
    /// Whether the server is about to end, or ending.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// So much waits for the fan-out now.
    pub(crate) fn show_fanout_bytes(&self, bytes: usize) {
        self.fanout_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// A count for each of some codes, and one for all others.
#[derive(Debug)]
pub struct ByCode {
    codes: &'static [u16],
    /// One for each code, and the one for all others.
    counts: Box<[Count]>,
}

impl ByCode {
    fn new(codes: &'static [u16]) -> Self {
        let counts = (0..=codes.len()).map(|_| Count::default()).collect();
        Self { codes, counts }
    }

    /// One more of this code; `None` for one without any.
    pub fn add(&self, code: Option<u16>) {
        let at = self.codes.iter().position(|known| Some(*known) == code);
        self.counts[at.unwrap_or(self.codes.len())].add();
    }

    /// Each code with its count; the last one is that of all others.
    pub fn totals(&self) -> impl Iterator<Item = (Option<u16>, u64)> {
        let codes = self.codes.iter().map(|code| Some(*code)).chain([None]);
        codes.zip(self.counts.iter().map(Count::total))
    }
}

/// How often what was observed was how large: in buckets, as Prometheus has them.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    /// One for each bound, of what is not above it and above the one before; the last one is of
    /// what is above all.
    counts: Box<[Count]>,
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [u64]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| Count::default()).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// One more, of this size.
    pub fn observe(&self, size: u64) {
        self.counts[self.bounds.partition_point(|bound| *bound < size)].add();
        self.sum.fetch_add(size, Ordering::Relaxed);
    }

    /// One more, which took so long.
    pub fn observe_time(&self, time: Duration) {
        self.observe(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Every bound with how many were not above it; the last one, without a bound, is all.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let bounds = self.bounds.iter().map(|bound| Some(*bound)).chain([None]);
        let mut so_far = 0;
        bounds.zip(&self.counts).map(move |(bound, count)| {
            so_far += count.total();
            (bound, so_far)
        })
    }

    /// All that was observed, added up.
    pub fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_is_not_above_its_bound() {
        let histogram = Histogram::new(&[1, 4]);
        for size in [0, 1, 2, 4, 4, 5, 1000] {
            histogram.observe(size);
        }
        let buckets: Vec<_> = histogram.buckets().collect();
        assert_eq!(buckets, [(Some(1), 2), (Some(4), 5), (None, 7)]);
        assert_eq!(histogram.sum(), 1016);
    }

    #[test]
    fn codes_that_nobody_knows_are_counted_together() {
        let codes = ByCode::new(&[200, 404]);
        for code in [Some(404), Some(404), Some(299), None] {
            codes.add(code);
        }
        let totals: Vec<_> = codes.totals().collect();
        assert_eq!(totals, [(Some(200), 0), (Some(404), 2), (None, 2)]);
    }
}
