//! What publishers publish, and when.

use std::net::SocketAddr;

use super::Via;
use super::latency::Clock;

/// Every content starts with the time of its publish call in so many decimal digits
/// (nanoseconds since the run's start: enough for eleven days).
pub(super) const STAMP_DIGITS: usize = 15;

/// The channels of a run, or its one feed: names of equal length that nobody else uses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channels {
    pub(super) count: usize,
}

impl Channels {
    pub(super) fn name(self, index: usize) -> String {
        format!("bench-{}-{:06}", std::process::id(), index % self.count)
    }
}

/// What is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// Messages to channels.
    Messages,
    /// States of a feed, each different from all others.
    States,
    /// One and the same state of a feed, in two notations.
    EqualStates,
}

/// What all publishers of a run are to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) address: SocketAddr,
    pub(super) load: Load,
    pub(super) channels: Channels,
    pub(super) publishers: usize,
    /// Threads that serve those of HTTP.
    pub(super) publisher_threads: usize,
    pub(super) via: Via,
    pub(super) in_flight: usize,
    /// Messages or states per second, all publishers together; `None` for as fast as answers come.
    pub(super) rate: Option<f64>,
    /// How many there are, all publishers together; `None` for as many as the time allows.
    pub(super) messages: Option<u64>,
    pub(super) subscribers: usize,
    /// Of them, those that read nothing until the measured time is over.
    pub(super) stalled: usize,
    /// Subscribers per second and receiving thread that go or stop reading for a while.
    pub(super) churn: Option<f64>,
    /// All connect at once, when the measured time begins, and ask for what came after `base`:
    /// so many messages, spread over the channels, and what is published by then.
    pub(super) since_back: Option<u64>,
    /// Messages or states that subscribers may be behind, on average, before publishers pause.
    pub(super) max_behind: Option<u64>,
    /// Length of a message's content, or of a state.
    pub(super) content_bytes: usize,
    /// The feed's rev, or an id, before anything is published that subscribers are to get.
    pub(super) base: u64,
    pub(super) clock: Clock,
}

impl Plan {
    /// The path of the WebSockets of a channel, or of the feed.
    pub(super) fn path(&self, index: usize) -> String {
        let name = self.channels.name(index);
        match self.load {
            Load::Messages => format!("/api/ws/{name}"),
            Load::States | Load::EqualStates => format!("/ws/{name}"),
        }
    }
}

/// The times at which one publisher may publish.
#[derive(Debug)]
pub(super) struct Schedule {
    /// `None`: at any time.
    gap: Option<f64>,
    first: f64,
    sent: u64,
    most: u64,
}

impl Schedule {
    /// Publisher `index` of the plan takes every so-manieth slot, so that together they keep the rate.
    pub(super) fn new(plan: &Plan, index: usize) -> Self {
        let slot = plan.rate.map(|rate| 1e9 / rate);
        let start = plan.clock.now() as f64;
        Self {
            gap: slot.map(|slot| slot * plan.publishers as f64),
            first: start + slot.unwrap_or_default() * index as f64,
            sent: 0,
            most: plan.messages.map_or(u64::MAX, |all| {
                let publishers = plan.publishers as u64;
                all / publishers + u64::from((index as u64) < all % publishers)
            }),
        }
    }

    /// When the next message is due, on the run's clock: never, when all are sent.
    pub(super) fn due(&self) -> u64 {
        if self.sent == self.most {
            return u64::MAX;
        }
        self.gap
            .map_or(0, |gap| (self.first + gap * self.sent as f64) as u64)
    }

    pub(super) fn count(&mut self) {
        self.sent += 1;
    }
}

/// The content of a message but for its stamp.
pub(super) fn filler(content_bytes: usize) -> String {
    "x".repeat(content_bytes - STAMP_DIGITS)
}

/// Writes a time as decimal digits over `digits`.
pub(super) fn stamp(digits: &mut [u8], time: u64) {
    let mut rest = time;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Plan {
        /// A plan that nobody carries out.
        pub(crate) fn for_tests(load: Load) -> Self {
            Self {
                address: SocketAddr::from(([127, 0, 0, 1], 1)),
                load,
                channels: Channels { count: 1 },
                publishers: 1,
                publisher_threads: 1,
                via: Via::Http,
                in_flight: 1,
                rate: None,
                messages: None,
                subscribers: 0,
                stalled: 0,
                churn: None,
                since_back: None,
                max_behind: None,
                content_bytes: 200,
                base: 0,
                clock: Clock::start(),
            }
        }
    }

    #[test]
    fn a_stamp_is_the_time_in_decimal_digits() {
        let mut digits = *b"xxxxxxxxxxxxxxx";
        stamp(&mut digits, 1_234_567_890);
        assert_eq!(&digits, b"000001234567890");
    }

    #[test]
    fn publishers_share_the_rate_in_turn() {
        let plan = Plan {
            publishers: 4,
            rate: Some(20.0),
            ..Plan::for_tests(Load::Messages)
        };
        let mut due = Vec::new();
        for index in 0..4 {
            let mut schedule = Schedule {
                first: 5e7 * index as f64,
                ..Schedule::new(&plan, index)
            };
            for _ in 0..5 {
                due.push(schedule.due());
                schedule.count();
            }
        }
        due.sort_unstable();
        assert_eq!(
            due,
            (0..20).map(|slot| slot * 50_000_000).collect::<Vec<_>>()
        );
    }

    #[test]
    fn publishers_share_the_messages_and_end() {
        let plan = Plan {
            publishers: 3,
            messages: Some(10),
            ..Plan::for_tests(Load::Messages)
        };
        let shares = [0, 1, 2].map(|index| {
            let mut schedule = Schedule::new(&plan, index);
            (0..20)
                .take_while(|_| {
                    let is_due = schedule.due() == 0;
                    schedule.count();
                    is_due
                })
                .count()
        });
        assert_eq!(shares, [4, 3, 3]);
    }
}
