//! When a client is pinged, and when it counts as dead.

use std::time::{Duration, Instant};

use crate::config::Limits;

/// One client's pings and the time its answer is due.
pub(super) struct Heartbeat {
    interval: Duration,
    timeout: Duration,
    /// Makes clients that came together differ.
    spread: u64,
    next_ping: Instant,
    pong_due: Option<Instant>,
}

/// What it is time for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Beat {
    Nothing,
    Ping,
    Dead,
}

impl Heartbeat {
    pub(super) fn new(client: u64, limits: &Limits) -> Self {
        let mut heartbeat = Self {
            interval: limits.ping_interval,
            timeout: limits.pong_timeout,
            spread: client,
            next_ping: Instant::now(),
            pong_due: None,
        };
        heartbeat.schedule(Instant::now());
        heartbeat
    }

    /// The client said something, whatever it was: it is there.
    pub(super) fn heard(&mut self) {
        self.pong_due = None;
    }

    /// When to look again.
    pub(super) fn due(&self) -> Instant {
        self.pong_due
            .map_or(self.next_ping, |due| due.min(self.next_ping))
    }

    /// What it is time for now. With `patient` nobody is blamed for silence: the server itself
    /// does not read at the moment, or the ping is not out because the socket is full.
    pub(super) fn beat(&mut self, now: Instant, patient: bool) -> Beat {
        if self.pong_due.is_some_and(|due| due <= now) {
            if !patient {
                return Beat::Dead;
            }
            self.pong_due = Some(now + self.timeout);
        }
        if self.next_ping > now {
            return Beat::Nothing;
        }
        self.schedule(now);
        if patient || self.pong_due.is_some() {
            return Beat::Nothing;
        }
        self.pong_due = Some(now + self.timeout);
        Beat::Ping
    }

    /// Give or take a tenth, so that clients who came together are not pinged together.
    fn schedule(&mut self, now: Instant) {
        // Fibonacci hashing: neighbours fall far apart.
        self.spread = self
            .spread
            .wrapping_add(1)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let share = 0.9 + 0.2 * ((self.spread >> 32) as f64 / f64::from(u32::MAX));
        self.next_ping = now + self.interval.mul_f64(share);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_after_a_ping_is_death_unless_the_server_does_not_listen() {
        let limits = Limits::default();
        let mut heartbeat = Heartbeat::new(7, &limits);
        let ping = heartbeat.due();
        assert_eq!(
            heartbeat.beat(ping - Duration::from_millis(1), false),
            Beat::Nothing
        );
        assert_eq!(heartbeat.beat(ping, false), Beat::Ping);
        let due = ping + limits.pong_timeout;
        assert_eq!(heartbeat.due(), due);
        assert_eq!(heartbeat.beat(due, true), Beat::Nothing);
        assert_eq!(heartbeat.beat(due, false), Beat::Nothing);
        assert_eq!(heartbeat.beat(due + limits.pong_timeout, false), Beat::Dead);
        heartbeat.heard();
        assert!(heartbeat.due() > due);
    }

    #[test]
    fn clients_that_came_together_are_pinged_apart() {
        let limits = Limits::default();
        let now = Instant::now();
        let due: Vec<Duration> = (0..100)
            .map(|client| Heartbeat::new(client, &limits).due() - now)
            .collect();
        let (first, last) = (
            due.iter().min().expect("some"),
            due.iter().max().expect("some"),
        );
        assert!(*first >= limits.ping_interval.mul_f64(0.9));
        assert!(*last <= limits.ping_interval.mul_f64(1.1) + Duration::from_secs(1));
        assert!(*last - *first > Duration::from_secs(4));
    }
}
