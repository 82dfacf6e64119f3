//! The publishing side: what HTTP and WebSocket publishers share.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use super::Via;
use super::connect::Channels;
use super::latency::{Clock, Histogram, Window};
use super::publish_http::HttpPublisher;
use super::publish_ws::WsPublisher;
use super::tally::Ids;

/// Every content starts with the time of its publish call in so many decimal digits
/// (nanoseconds since the run's start: enough for four months).
pub(super) const STAMP_DIGITS: usize = 16;

/// What all publishers of a run are to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) address: SocketAddr,
    pub(super) channels: Channels,
    pub(super) publishers: usize,
    pub(super) via: Via,
    pub(super) in_flight: usize,
    /// Messages per second, all publishers together; `None` for as fast as answers come.
    pub(super) rate: Option<f64>,
    pub(super) content_bytes: usize,
    pub(super) clock: Clock,
}

/// What became of the published messages.
#[derive(Debug)]
pub(super) struct Published {
    /// The acknowledged ids of each channel.
    pub(super) acknowledged: Vec<Ids>,
    /// Messages acknowledged in the measured time.
    pub(super) in_window: u64,
    /// From publish call to acknowledgement, of calls made in the measured time.
    pub(super) latency: Histogram,
    /// Messages that the server refused.
    pub(super) refused: u64,
    pub(super) first_refusal: Option<String>,
    /// Why a publisher gave up.
    pub(super) failure: Option<String>,
    window: Window,
}

impl Published {
    pub(super) fn new(channels: usize, window: Window) -> Self {
        Self {
            acknowledged: vec![Ids::default(); channels],
            in_window: 0,
            latency: Histogram::default(),
            refused: 0,
            first_refusal: None,
            failure: None,
            window,
        }
    }

    /// Counts an answer: the message that was sent at `sent` has this id.
    pub(super) fn acknowledge(&mut self, channel: usize, id: u64, sent: u64, now: u64) {
        self.acknowledged[channel].add(id);
        self.in_window += u64::from(self.window.contains(now));
        if self.window.contains(sent) {
            self.latency.record(now.saturating_sub(sent));
        }
    }

    pub(super) fn refuse(&mut self, answer: impl FnOnce() -> String) {
        self.refused += 1;
        self.first_refusal.get_or_insert_with(answer);
    }

    fn merge(&mut self, other: Self) {
        self.acknowledged
            .iter_mut()
            .zip(other.acknowledged)
            .for_each(|(mine, theirs)| mine.merge(theirs));
        self.in_window += other.in_window;
        self.latency.merge(&other.latency);
        self.refused += other.refused;
        self.first_refusal = self.first_refusal.take().or(other.first_refusal);
        self.failure = self.failure.take().or(other.failure);
    }
}

/// The times at which one publisher may publish.
#[derive(Debug)]
pub(super) struct Schedule {
    /// `None`: at any time.
    gap: Option<f64>,
    first: f64,
    sent: u64,
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
        }
    }

    /// When the next message is due, on the run's clock.
    pub(super) fn due(&self) -> u64 {
        self.gap
            .map_or(0, |gap| (self.first + gap * self.sent as f64) as u64)
    }

    pub(super) fn count(&mut self) {
        self.sent += 1;
    }
}

/// The publishing threads.
#[derive(Debug)]
pub(super) struct Publishers {
    threads: Vec<JoinHandle<Published>>,
    none: Published,
}

enum Publisher {
    Http(HttpPublisher),
    Ws(WsPublisher),
}

/// Connections of publishers that have not begun.
pub(super) struct Connected(Vec<Publisher>);

impl Connected {
    pub(super) fn new(plan: &Plan) -> Result<Self, String> {
        let connect = |index| match plan.via {
            Via::Http => HttpPublisher::connect(*plan, index).map(Publisher::Http),
            Via::Ws => WsPublisher::connect(*plan, index).map(Publisher::Ws),
        };
        (0..plan.publishers)
            .map(connect)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Publishes until the window's end.
    pub(super) fn start(self, plan: &Plan, window: Window) -> Result<Publishers, String> {
        let start = |(index, publisher)| {
            let published = Published::new(plan.channels.count, window);
            let schedule = Schedule::new(plan, index);
            std::thread::Builder::new()
                .name(format!("publisher-{index}"))
                .spawn(move || match publisher {
                    Publisher::Http(publisher) => publisher.run(published, schedule, window.end),
                    Publisher::Ws(publisher) => publisher.run(published, schedule, window.end),
                })
        };
        let threads: Result<_, _> = self.0.into_iter().enumerate().map(start).collect();
        let threads = threads.map_err(|error| format!("can't start a thread: {error}"))?;
        Ok(Publishers {
            threads,
            none: Published::new(plan.channels.count, window),
        })
    }
}

impl Publishers {
    /// Waits until every publisher has its last answer.
    pub(super) fn finish(self) -> Result<Published, String> {
        let mut all = self.none;
        for thread in self.threads {
            all.merge(
                thread
                    .join()
                    .map_err(|_| "a publishing thread panicked".to_owned())?,
            );
        }
        Ok(all)
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

    #[test]
    fn a_stamp_is_the_time_in_decimal_digits() {
        let mut digits = *b"xxxxxxxxxxxxxxxx";
        stamp(&mut digits, 1_234_567_890);
        assert_eq!(&digits, b"0000001234567890");
    }

    #[test]
    fn publishers_share_the_rate_in_turn() {
        let plan = Plan {
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            channels: Channels { count: 1 },
            publishers: 4,
            via: Via::Http,
            in_flight: 1,
            rate: Some(20.0),
            content_bytes: 200,
            clock: Clock::start(),
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
}
