//! Subscribers that go or stop reading for a while: who does what, and when.

use std::collections::BTreeSet;
use std::time::Duration;

use super::latency::{Window, nanos};
use super::plan::Plan;

/// Longest time that somebody is away or reads nothing.
const LONGEST_REST: Duration = Duration::from_secs(45);
/// Time for a look at the server before those that stalled all the time begin to read.
const LAST_LOOK: Duration = Duration::from_millis(500);

/// What a subscriber does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Going {
    /// Says so, and comes back at once.
    Leaves,
    /// Ends the connection without a word, and comes back when it has rested.
    Vanishes,
    /// Reads nothing until it has rested.
    Stalls,
}

/// How many did what.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Gone {
    pub(super) left: u64,
    pub(super) vanished: u64,
    pub(super) stalled: u64,
    /// Connections with `since`.
    pub(super) returns: u64,
    /// Those that were told that they have what they had missed.
    pub(super) caught_up: u64,
}

/// What one receiving thread's subscribers do in the measured time.
#[derive(Debug)]
pub(super) struct Churn {
    subscribers: usize,
    /// Time between two of them; `None`: nobody goes.
    gap: Option<f64>,
    window: Window,
    turn: usize,
    rest: u64,
    /// Those that rest, and until when.
    resting: BTreeSet<(u64, usize)>,
}

impl Churn {
    pub(super) fn new(plan: &Plan, window: Window, subscribers: usize) -> Self {
        Self {
            subscribers,
            gap: plan.churn.map(|rate| 1e9 / rate),
            window,
            turn: 0,
            rest: nanos(LONGEST_REST).min((window.end - window.start) / 4),
            resting: BTreeSet::new(),
        }
    }

    /// The next one whose time to go has come.
    pub(super) fn next(&mut self, now: u64) -> Option<(usize, Going)> {
        let due = self.window.start + (self.gap? * self.turn as f64) as u64;
        if due > now || due >= self.window.end || self.subscribers == 0 {
            return None;
        }
        let (round, index) = (self.turn / self.subscribers, self.turn % self.subscribers);
        self.turn += 1;
        // Everybody does something else in the next round, however many they are.
        let going = match (round + index) % 3 {
            0 => Going::Leaves,
            1 => Going::Vanishes,
            _ => Going::Stalls,
        };
        Some((index, going))
    }

    /// Takes one that goes; all are called by the end of the measured time.
    pub(super) fn rest(&mut self, index: usize, going: Going, now: u64) {
        let until = match going {
            Going::Leaves => now,
            Going::Vanishes | Going::Stalls => (now + self.rest).min(self.window.end),
        };
        self.resting.insert((until, index));
    }

    /// Takes one that reads nothing before the measured time is over.
    pub(super) fn stall_to_the_end(&mut self, index: usize) {
        self.resting
            .insert((self.window.end + nanos(LAST_LOOK), index));
    }

    /// The next one that has rested enough.
    pub(super) fn rested(&mut self, now: u64) -> Option<usize> {
        let &(until, index) = self.resting.first()?;
        (until <= now).then(|| {
            self.resting.pop_first();
            index
        })
    }
}

impl Gone {
    pub(super) fn count(&mut self, going: Going) {
        match going {
            Going::Leaves => self.left += 1,
            Going::Vanishes => self.vanished += 1,
            Going::Stalls => self.stalled += 1,
        }
    }
}

impl std::ops::AddAssign for Gone {
    fn add_assign(&mut self, other: Self) {
        self.left += other.left;
        self.vanished += other.vanished;
        self.stalled += other.stalled;
        self.returns += other.returns;
        self.caught_up += other.caught_up;
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::Load;
    use super::*;

    #[test]
    fn everybody_goes_in_turn_and_is_back_by_the_end() {
        let plan = Plan {
            churn: Some(10.0),
            ..Plan::for_tests(Load::Messages)
        };
        let window = Window {
            start: 1_000_000_000,
            end: 2_000_000_000,
        };
        let mut churn = Churn::new(&plan, window, 3);
        assert_eq!(churn.next(window.start - 1), None);
        let (mut gone, mut back) = (Vec::new(), Vec::new());
        for now in (window.start..=window.end).step_by(10_000_000) {
            back.extend(std::iter::from_fn(|| churn.rested(now)));
            while let Some((index, going)) = churn.next(now) {
                churn.rest(index, going, now);
                gone.push((index, going));
            }
        }
        use Going::{Leaves, Stalls, Vanishes};
        let twice = [
            (0, Leaves),
            (1, Vanishes),
            (2, Stalls),
            (0, Vanishes),
            (1, Stalls),
            (2, Leaves),
        ];
        assert_eq!(gone[..6], twice);
        assert_eq!((gone.len(), back.len()), (10, 10));
        churn.stall_to_the_end(1);
        assert_eq!(churn.rested(window.end), None);
        assert_eq!(churn.rested(window.end + nanos(LAST_LOOK)), Some(1));
    }
}
