//! What receiving threads tell the main thread: while they run, and at the end.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::churn::Gone;
use super::latency::Histogram;
use super::subscriber::Subscriber;

/// What the main thread sees of the receiving threads while they run, and tells them.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Deliveries that the acknowledged messages make, over all subscribers, and one for each
    /// that is to be told that it has what it missed.
    pub(super) due: AtomicU64,
    /// Those that arrived; a state brings the ones left out before it with it.
    pub(super) delivered: AtomicU64,
    /// Subscribers whose connection stands.
    pub(super) open: AtomicUsize,
    /// Subscribers that asked for what they had missed and have it.
    pub(super) came_back: AtomicU64,
    /// When the last of them had it, on the run's clock.
    pub(super) last_back: AtomicU64,
    /// Set once: close all subscribers and end.
    pub(super) leave: AtomicBool,
}

impl Progress {
    /// Deliveries that are still to come.
    pub(super) fn outstanding(&self) -> u64 {
        let delivered = self.delivered.load(Ordering::Relaxed);
        self.due.load(Ordering::Relaxed).saturating_sub(delivered)
    }
}

/// What several subscribers together received.
#[derive(Debug, Default)]
pub(super) struct Received {
    /// Messages or states that arrived in the measured time.
    pub(super) in_window: u64,
    /// From publish call to arrival, of those published in the measured time.
    pub(super) latency: Histogram,
    /// Frames that are neither control frames nor what was published.
    pub(super) malformed: u64,
    pub(super) first_malformed: Option<String>,
    pub(super) subscribers: Vec<Subscriber>,
    pub(super) gone: Gone,
}

impl Received {
    pub(super) fn merge(&mut self, other: Self) {
        self.in_window += other.in_window;
        self.latency.merge(&other.latency);
        self.malformed += other.malformed;
        self.first_malformed = self.first_malformed.take().or(other.first_malformed);
        self.subscribers.extend(other.subscribers);
        self.gone += other.gone;
    }
}
