//! The journal's thread: gathers what waits, commits it, forgets what is not to be kept.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::broadcast::Broadcast;
use super::clock;
use super::states::{Feeds, StateOrder};
use super::{Committed, Done, Order, Submission};
use crate::config::Retention;
use crate::error::Error;
use crate::frame::MessageFrame;
use crate::manager::ConnectionManager;
use crate::protocol::Draft;
use crate::store::{self, Writer};

/// What the thread works with.
pub(super) struct Sequencer {
    pub(super) orders: Receiver<Order>,
    pub(super) queued_bytes: Arc<AtomicUsize>,
    pub(super) head: Arc<AtomicU64>,
    pub(super) writer: Box<dyn Writer>,
    pub(super) manager: Arc<ConnectionManager>,
    pub(super) broadcast: Broadcast,
    pub(super) feeds: Feeds,
    pub(super) max_batch: usize,
    pub(super) retention: Retention,
    /// There may be messages that are not to be kept.
    pub(super) forgetting: bool,
    /// Messages in the last batch.
    pub(super) last_batch: usize,
    /// The last commit failed; it is logged when that begins and when it ends.
    pub(super) failing: bool,
}

/// Drafts of several submissions and states, side by side for one transaction.
#[derive(Default)]
struct Batch {
    drafts: Vec<Draft>,
    parts: Vec<(usize, Done)>,
    states: Vec<StateOrder>,
    bytes: usize,
}

/// Bytes of drafts and states in one transaction, so that a batch of large ones stays short.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// Messages forgotten in one step: a millisecond or two.
const FORGOTTEN_AT_ONCE: usize = 200;

/// How often it is looked whether messages are too old.
const RETENTION_INTERVAL: Duration = Duration::from_secs(1);

impl Sequencer {
    /// Runs until it is told to stop, or nobody can tell it anything any more.
    pub(super) fn run(&mut self) {
        while let Some(order) = self.next_order() {
            let mut batch = Batch::default();
            let mut next = Some(order);
            let mut stopping = false;
            while let Some(order) = next {
                match order {
                    Order::Commit(submission) => batch.add(submission),
                    Order::State(order) => batch.add_state(order),
                    Order::Stop => {
                        stopping = true;
                        break;
                    }
                }
                let full = batch.drafts.len() + batch.states.len() >= self.max_batch
                    || batch.bytes >= MAX_BATCH_BYTES;
                next = if full {
                    None
                } else {
                    self.orders.try_recv().ok()
                };
            }
            let bytes = batch.bytes;
            // A bug here must not leave a server that refuses everything for ever: this batch's
            // publishers hear 500, the next batch is tried.
            if catch_unwind(AssertUnwindSafe(|| self.commit(batch))).is_err() {
                log::error!("a bug in the journal: a batch was lost before its answer");
            }
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            if stopping {
                return;
            }
        }
    }

    /// Waits for the next order and forgets messages meanwhile, a few at a time; `None` when
    /// nobody can send one any more.
    fn next_order(&mut self) -> Option<Order> {
        if self.retention == Retention::default() {
            return self.orders.recv().ok();
        }
        loop {
            if self.forgetting {
                // Twice what has come, so that it keeps up with any load.
                self.forget(FORGOTTEN_AT_ONCE.max(2 * self.last_batch));
            }
            // Messages grow older without an order, too.
            let patience = if self.forgetting {
                Duration::ZERO
            } else {
                RETENTION_INTERVAL
            };
            match self.orders.recv_timeout(patience) {
                Ok(order) => return Some(order),
                Err(RecvTimeoutError::Timeout) => self.forgetting = true,
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Deletes some of the messages that are not to be kept.
    fn forget(&mut self, limit: usize) {
        let rule = store::Rule {
            keep_messages: self.retention.keep_messages,
            not_before: self.retention.keep_age.map(clock::before),
            max_db_bytes: self.retention.max_db_bytes,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| self.writer.forget(&rule, limit)));
        self.forgetting = match outcome {
            Ok(Ok(more)) => more,
            Ok(Err(error)) => {
                log::warn!("old messages stay for now: {error}");
                false
            }
            Err(_) => false,
        };
    }

    fn commit(&mut self, batch: Batch) {
        if batch.parts.is_empty() && batch.states.is_empty() {
            return;
        }
        let timestamp = clock::now();
        let mut plan = self.feeds.plan(&batch.states, &timestamp);
        let outcome = if batch.drafts.is_empty() && plan.is_empty() {
            Ok(Vec::new())
        } else {
            let outcome = self.writer.commit(&store::Batch {
                drafts: &batch.drafts,
                states: &plan.states(),
                transitions: plan.transitions(),
                timestamp: &timestamp,
            });
            self.log_changes(outcome.as_ref().err());
            outcome
        };
        let committed = outcome.map(|ids| {
            if let Some(newest) = ids.last() {
                self.head.store(newest.0, Ordering::Release);
                self.forgetting = true;
                self.last_batch = ids.len();
            }
            let manager = &self.manager;
            batch
                .drafts
                .iter()
                .zip(ids)
                .map(|(draft, id)| Committed {
                    channel: draft.channel_id.clone(),
                    frame: MessageFrame::new(&draft.committed(id, &timestamp)),
                    subscribers: manager.subscribers(&draft.channel_id),
                })
                .collect::<Vec<_>>()
        });
        if committed.is_ok() {
            self.feeds.apply(&mut plan);
        }
        self.feeds
            .answer(plan, batch.states, committed.as_ref().err());
        if let Ok(messages) = &committed {
            for message in messages {
                self.manager
                    .announce(&message.channel, message.frame.chunk());
            }
            self.broadcast.send(messages);
        }
        let mut first = 0;
        for (count, done) in batch.parts {
            let outcome = committed
                .as_ref()
                .map(|messages| &messages[first..first + count]);
            // A publisher's code that panics costs the others nothing; the panic is reported.
            let _ = catch_unwind(AssertUnwindSafe(|| done(outcome)));
            first += count;
        }
    }

    fn log_changes(&mut self, error: Option<&Error>) {
        match error {
            Some(error) if !self.failing => {
                log::error!("{error}; publishers get 503 until a commit succeeds")
            }
            None if self.failing => log::info!("the store works again"),
            _ => {}
        }
        self.failing = error.is_some();
    }
}

impl Batch {
    fn add(&mut self, submission: Submission) {
        self.parts.push((submission.drafts.len(), submission.done));
        self.bytes += submission.bytes;
        self.drafts.extend(submission.drafts);
    }

    fn add_state(&mut self, order: StateOrder) {
        self.bytes += order.state.len();
        self.states.push(order);
    }
}
