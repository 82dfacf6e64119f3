//! Looks at what the server uses: when the measured time begins, in between, and when all is over.

use std::time::Duration;

use serde_json::{Value, json};

use super::latency::{Clock, Window};
use super::server::{Server, Usage};

/// Looks within the measured time.
const LOOKS: u64 = 10;
/// Shortest time between two of them.
const LEAST_GAP_NANOS: u64 = 100_000_000;
/// Longest wait for what subscribers and publishers leave behind when they go.
const SETTLING: Duration = Duration::from_secs(5);

/// What the server used at one time after another.
#[derive(Debug, Default)]
pub(super) struct Soundings(Vec<(u64, Usage)>);

impl Soundings {
    /// Looks again and again until the window's end, and on until `is_over`.
    pub(super) fn take(
        server: &Server,
        window: Window,
        clock: Clock,
        is_over: impl Fn() -> bool,
    ) -> Result<Self, String> {
        let mut all = Self::default();
        let gap = ((window.end - window.start) / LOOKS).max(LEAST_GAP_NANOS);
        let mut due = window.start;
        loop {
            clock.sleep_until(due);
            all.look(server, clock)?;
            let now = clock.now();
            if now >= window.end && is_over() {
                return Ok(all);
            }
            due = if now < window.end {
                (due + gap).min(window.end)
            } else {
                now + LEAST_GAP_NANOS
            };
        }
    }

    pub(super) fn look(&mut self, server: &Server, clock: Clock) -> Result<(), String> {
        if let Some(pid) = server.pid {
            self.0.push((clock.now(), Usage::of(pid)?));
        }
        Ok(())
    }

    /// Waits until there are as many threads and descriptors as at the beginning, though not forever, and looks.
    pub(super) fn settle(&mut self, server: &Server, clock: Clock) -> Result<(), String> {
        let (Some(pid), Some(first)) = (server.pid, self.first()) else {
            return Ok(());
        };
        let wanted = |usage: Usage| (usage.threads, usage.descriptors);
        let start = clock.now();
        while wanted(Usage::of(pid)?) != wanted(first)
            && clock.now() - start < super::latency::nanos(SETTLING)
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.look(server, clock)
    }

    pub(super) fn first(&self) -> Option<Usage> {
        self.0.first().map(|&(_, usage)| usage)
    }

    pub(super) fn last(&self) -> Option<Usage> {
        self.0.last().map(|&(_, usage)| usage)
    }

    pub(super) fn most_resident_kib(&self) -> Option<u64> {
        self.0.iter().map(|(_, usage)| usage.resident_kib).max()
    }

    /// With times from the window's start.
    pub(super) fn json(&self, window: Window) -> Value {
        let one = |(at, usage): &(u64, Usage)| {
            json!({
                "seconds": at.saturating_sub(window.start) as f64 / 1e9,
                "resident_kib": usage.resident_kib,
                "threads": usage.threads,
                "descriptors": usage.descriptors,
            })
        };
        self.0.iter().map(one).collect()
    }
}
