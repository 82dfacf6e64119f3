//! How long the journal looks for the next order before it sleeps.
//!
//! Not at all while orders come one now and then.

use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

/// How long the thread looks for the next order before it sleeps. Waking it takes 30 us on an idle
/// core, and so does waking everybody else on the way there and back.
const SPIN: Duration = Duration::from_micros(150);

/// Orders that come sooner than this after the last commit are worth looking for: who looks in vain
/// has lost no more than half of the time.
const DEMAND: Duration = Duration::from_micros(300);

/// What the last order says of the next.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The last order came soon after the commit before it.
    in_demand: bool,
}

impl Pace {
    /// An order was waited for so long, which took some sleep.
    pub(super) fn waited(&mut self, time: Duration) {
        self.in_demand = time < DEMAND;
    }

    /// The next order, if one comes in time, after one that came just as soon: who answers
    /// publishers as fast as they ask is not put to sleep for each of them.
    pub(super) fn next<T>(&self, orders: &Receiver<T>) -> Option<T> {
        let begin = Instant::now();
        while self.in_demand && begin.elapsed() < SPIN {
            if let Ok(order) = orders.try_recv() {
                return Some(order);
            }
            // Whoever has something to do has the core.
            thread::yield_now();
        }
        None
    }
}
