//! The publishing side: what HTTP and WebSocket publishers share.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use super::Via;
use super::latency::{Histogram, Window, nanos};
use super::plan::{Plan, Schedule};
use super::publish_http::HttpPublishers;
use super::publish_ws::WsPublisher;
use super::received::Progress;
use super::tally::Ids;

/// How long publishers pause until they look again whether subscribers have caught up.
pub(super) const PAUSE: Duration = Duration::from_micros(200);

/// Messages without an ack, and the longest time, when the store is filled.
const FILL_IN_FLIGHT: usize = 256;
const LONGEST_FILL: Duration = Duration::from_secs(600);

/// What became of the published messages or states.
#[derive(Debug)]
pub(super) struct Published {
    /// The acknowledged ids of each channel, or the feed's revs.
    pub(super) acknowledged: Vec<Ids>,
    /// The greatest of them.
    pub(super) last_id: u64,
    /// States that were no change.
    pub(super) unchanged: u64,
    /// Messages or states acknowledged in the measured time.
    pub(super) in_window: u64,
    /// From publish call to acknowledgement, of calls made in the measured time.
    pub(super) latency: Histogram,
    /// Messages or states that the server refused.
    pub(super) refused: u64,
    pub(super) first_refusal: Option<String>,
    /// Why a publisher gave up.
    pub(super) failure: Option<String>,
    /// The same, while subscribers came back.
    pub(super) latency_of_return: Histogram,
    window: Window,
    /// How many of them.
    returning: u64,
    /// Messages or states that subscribers may be behind, all subscribers' added up.
    max_outstanding: u64,
    /// Subscribers of each channel.
    audience: Vec<u64>,
    progress: Arc<Progress>,
}

impl Published {
    pub(super) fn new(plan: &Plan, window: Window, progress: Arc<Progress>) -> Self {
        let channels = plan.channels.count;
        let audience = |channel| {
            plan.subscribers / channels + usize::from(channel < plan.subscribers % channels)
        };
        Self {
            acknowledged: vec![Ids::default(); channels],
            last_id: plan.base,
            unchanged: 0,
            in_window: 0,
            latency: Histogram::default(),
            refused: 0,
            first_refusal: None,
            failure: None,
            latency_of_return: Histogram::default(),
            window,
            returning: if plan.since_back.is_some() {
                plan.subscribers as u64
            } else {
                0
            },
            max_outstanding: plan.max_behind.map_or(u64::MAX, |behind| {
                behind.saturating_mul(plan.subscribers as u64)
            }),
            audience: (0..channels)
                .map(|channel| audience(channel) as u64)
                .collect(),
            progress,
        }
    }

    /// Whether the subscribers are near enough for one more.
    pub(super) fn may_publish(&self) -> bool {
        self.max_outstanding == u64::MAX || self.progress.outstanding() <= self.max_outstanding
    }

    /// Counts an answer: what was sent at `sent` has this id or rev.
    pub(super) fn acknowledge(&mut self, channel: usize, id: u64, sent: u64, now: u64) {
        self.acknowledged[channel].add(id);
        self.progress
            .due
            .fetch_add(self.audience[channel], Ordering::Relaxed);
        self.last_id = self.last_id.max(id);
        self.count_answer(sent, now);
    }

    /// Counts an answer: the state that was sent at `sent` is no change.
    pub(super) fn acknowledge_unchanged(&mut self, sent: u64, now: u64) {
        self.unchanged += 1;
        self.count_answer(sent, now);
    }

    fn count_answer(&mut self, sent: u64, now: u64) {
        self.in_window += u64::from(self.window.contains(now));
        if self.window.contains(sent) {
            self.latency.record(now.saturating_sub(sent));
            if self.progress.came_back.load(Ordering::Relaxed) < self.returning {
                self.latency_of_return.record(now.saturating_sub(sent));
            }
        }
    }

    /// Adds what was published before the subscribers connected, and is due to them all the same.
    pub(super) fn add_earlier(&mut self, earlier: Self) {
        self.last_id = self.last_id.max(earlier.last_id);
        for (channel, ids) in earlier.acknowledged.into_iter().enumerate() {
            self.acknowledged[channel].merge(ids);
            self.progress
                .due
                .fetch_add(ids.count * self.audience[channel], Ordering::Relaxed);
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
        self.last_id = self.last_id.max(other.last_id);
        self.unchanged += other.unchanged;
        self.in_window += other.in_window;
        self.latency.merge(&other.latency);
        self.latency_of_return.merge(&other.latency_of_return);
        self.refused += other.refused;
        self.first_refusal = self.first_refusal.take().or(other.first_refusal);
        self.failure = self.failure.take().or(other.failure);
    }
}

/// Publishes so many messages to channels that have no subscriber yet, as fast as it goes.
pub(super) fn fill(plan: &Plan, messages: u64) -> Result<Published, String> {
    let plan = Plan {
        via: Via::Ws,
        publishers: plan.channels.count,
        in_flight: FILL_IN_FLIGHT,
        rate: None,
        messages: Some(messages),
        subscribers: 0,
        max_behind: None,
        ..*plan
    };
    let now = plan.clock.now();
    let window = Window {
        start: now,
        end: now + nanos(LONGEST_FILL),
    };
    let filled = Connected::new(&plan)?
        .start(&plan, window, &Arc::default())?
        .finish()?;
    let acknowledged: u64 = filled.acknowledged.iter().map(|ids| ids.count).sum();
    if acknowledged == messages {
        return Ok(filled);
    }
    let fault = filled.failure.or(filled.first_refusal).unwrap_or_default();
    Err(format!(
        "only {acknowledged} of {messages} messages could be stored before the subscribers came: {fault}"
    ))
}

/// The publishing threads.
#[derive(Debug)]
pub(super) struct Publishers {
    threads: Vec<JoinHandle<Published>>,
    none: Published,
}

/// What one thread publishes.
enum Publisher {
    Http(HttpPublishers),
    Ws(WsPublisher),
}

/// Connections of publishers that have not begun.
pub(super) struct Connected(Vec<Publisher>);

impl Connected {
    pub(super) fn new(plan: &Plan) -> Result<Self, String> {
        let http = |thread| HttpPublishers::connect(*plan, thread).map(Publisher::Http);
        let ws = |index| WsPublisher::connect(*plan, index).map(Publisher::Ws);
        let publishers: Result<_, _> = match plan.via {
            Via::Http => (0..plan.publisher_threads.min(plan.publishers))
                .map(http)
                .collect(),
            Via::Ws => (0..plan.publishers).map(ws).collect(),
        };
        publishers.map(Self)
    }

    /// Publishes until the window's end.
    pub(super) fn start(
        self,
        plan: &Plan,
        window: Window,
        progress: &Arc<Progress>,
    ) -> Result<Publishers, String> {
        let none = || Published::new(plan, window, Arc::clone(progress));
        let start = |(index, publisher)| {
            let published = none();
            let plan = *plan;
            std::thread::Builder::new()
                .name(format!("publisher-{index}"))
                .spawn(move || match publisher {
                    Publisher::Http(publishers) => publishers.run(published, window.end),
                    Publisher::Ws(publisher) => {
                        publisher.run(published, Schedule::new(&plan, index), window.end)
                    }
                })
        };
        let threads: Result<_, _> = self.0.into_iter().enumerate().map(start).collect();
        let threads = threads.map_err(|error| format!("can't start a thread: {error}"))?;
        Ok(Publishers {
            threads,
            none: none(),
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
