//! What the limits come to: the connections open now, and how often each limit has refused
//! something since the start.
//!
//! One value for the whole server. Each number is an atomic of its own, so neither who counts
//! nor who looks waits for anybody; numbers read together need not be of one moment.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::metrics::Traffic;

/// The numbers beside the limits, as `GET /api/health` shows them.
#[derive(Debug, Default)]
pub struct Usage {
    /// Connections open now, of every kind. [`Limits::max_connections`](crate::Limits::max_connections) bounds them.
    pub connections: AtomicUsize,
    /// What was refused.
    pub refused: Refused,
    /// What was done, as `GET /metrics` shows it.
    pub traffic: Traffic,
}

/// How often each limit has refused something, by its clear answer.
#[derive(Debug, Default)]
pub struct Refused {
    /// Connections answered 503, because too many are open or the machine has no thread left.
    pub connections: Count,
    /// Connections answered 429, because too many of their address are open.
    pub per_address: Count,
    /// Subscribers answered 503, because their channel or feed has too many.
    pub subscribers: Count,
    /// Messages and states answered 503, because too much waits to be stored.
    pub queued_bytes: Count,
    /// Bodies answered 413, WebSocket texts answered `too_large` or closed with 1009.
    pub message_bytes: Count,
    /// States answered 422, because too many feeds have one.
    pub feeds: Count,
    /// Messages and states answered 429 or `rate_limited`, because their publisher was too fast.
    pub rate: Count,
    /// Requests answered 401 at the door, because what they showed is no token.
    pub credentials: Count,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// So many more.
    pub fn add_many(&self, number: usize) {
        self.0.fetch_add(number as u64, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
