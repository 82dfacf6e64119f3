//! The journal's thread: gathers what waits, commits it, forgets what is not to be kept.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::batch::{Batch, Part};
use super::broadcast::Broadcast;
use super::forgetting::Forgetting;
use super::pace::Pace;
use super::states::Feeds;
use super::{Committed, Order};
use crate::error::Error;
use crate::frame::MessageFrame;
use crate::manager::ConnectionManager;
use crate::protocol::{MessageId, clock};
use crate::store::{self, Writer};
use crate::usage::Usage;

/// What the thread works with.
pub(super) struct Sequencer {
    pub(super) orders: Receiver<Order>,
    pub(super) queued_bytes: Arc<AtomicUsize>,
    pub(super) head: Arc<AtomicU64>,
    pub(super) writer: Box<dyn Writer>,
    pub(super) manager: Arc<ConnectionManager>,
    pub(super) usage: Arc<Usage>,
    pub(super) broadcast: Broadcast,
    pub(super) feeds: Feeds,
    /// Begins the next batch: its key is in the one before.
    pub(super) held: Option<Order>,
    pub(super) pace: Pace,
    pub(super) max_batch: usize,
    pub(super) forgetting: Forgetting,
    /// The last commit failed; it is logged when that begins and when it ends.
    pub(super) failing: bool,
}

/// Bytes of drafts and states in one transaction, so that a batch of large ones stays short.
pub(super) const MAX_BATCH_BYTES: usize = 4 << 20;

impl Sequencer {
    /// Runs until it is told to stop, or nobody can tell it anything any more.
    pub(super) fn run(&mut self) {
        while let Some(order) = self.next_order() {
            let (batch, stopping) = self.gather(order);
            let bytes = batch.bytes;
            // A bug here must not leave a server that refuses everything for ever: this batch's
            // publishers hear 500, the next batch is tried.
            if catch_unwind(AssertUnwindSafe(|| self.commit(batch))).is_err() {
                log::error!("a bug in the journal: a batch was lost before its answer");
                // If it was committed before that, nobody will offer it.
                let head = MessageId(self.head.load(Ordering::Acquire));
                self.broadcast.jump(head);
                self.manager.wake_waiting();
            }
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            if stopping {
                return self.forgetting.finish(self.writer.as_mut());
            }
        }
    }

    /// What goes into one transaction with this order; whether it is the last.
    fn gather(&mut self, first: Order) -> (Batch, bool) {
        let mut batch = Batch::default();
        let mut next = Some(first);
        while let Some(order) = next {
            match order {
                Order::Stop => return (batch, true),
                order if batch.has_key_of(&order) => {
                    self.held = Some(order);
                    break;
                }
                order => {
                    batch.bytes += order.bytes();
                    batch.add(self.answer_again(order));
                }
            }
            let full = batch.drafts.len() + batch.states.len() >= self.max_batch
                || batch.bytes >= MAX_BATCH_BYTES;
            if full {
                break;
            }
            next = self.orders.try_recv().ok();
        }
        (batch, false)
    }

    /// Waits for the next order and forgets messages meanwhile, a few at a time; `None` when
    /// nobody can send one any more.
    fn next_order(&mut self) -> Option<Order> {
        if let Some(order) = self.held.take() {
            return Some(order);
        }
        let begin = Instant::now();
        // Under load, too, forgetting has its turns.
        if !self.forgetting.is_due()
            && let Some(order) = self.pace.next(&self.orders)
        {
            return Some(order);
        }
        let order = self.sleep();
        self.pace.waited(begin.elapsed());
        order
    }

    fn sleep(&mut self) -> Option<Order> {
        loop {
            if self.forgetting.is_off() {
                return self.orders.recv().ok();
            }
            let mut patience = self.forgetting.interval();
            if self.forgetting.is_due() {
                self.forgetting.step(self.writer.as_mut());
                if self.forgetting.is_due() {
                    patience = Duration::ZERO;
                }
            }
            match self.orders.recv_timeout(patience) {
                Ok(order) => return Some(order),
                Err(RecvTimeoutError::Timeout) => self.forgetting.look(),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn commit(&mut self, batch: Batch) {
        if batch.parts.is_empty() && batch.states.is_empty() {
            return;
        }
        let timestamp = clock::now();
        let mut plan = self.feeds.plan(&batch.states, &timestamp);
        // As many as hear of it: whoever comes later is not counted.
        let subscribers: Vec<usize> = batch
            .drafts
            .iter()
            .map(|draft| self.manager.subscribers(&draft.channel_id))
            .collect();
        let mut receipts = batch.receipts(&subscribers);
        receipts.extend(plan.receipts(&batch.states));
        let outcome = if batch.drafts.is_empty() && plan.is_empty() && receipts.is_empty() {
            Ok(Vec::new())
        } else {
            let begin = Instant::now();
            let outcome = self.writer.commit(&store::Batch {
                drafts: &batch.drafts,
                states: &plan.states(),
                transitions: plan.transitions(),
                receipts: &receipts,
                timestamp: &timestamp,
            });
            self.count(&batch, begin.elapsed(), outcome.is_ok());
            self.log_changes(outcome.as_ref().err());
            outcome
        };
        let committed = outcome.map(|ids| {
            if let Some(newest) = ids.last() {
                self.head.store(newest.0, Ordering::Release);
                self.forgetting.note(ids.len(), batch.bytes);
            }
            if !receipts.is_empty() {
                self.forgetting.note_receipts();
            }
            let drafts = batch.drafts.iter().zip(ids).zip(subscribers);
            drafts
                .map(|((draft, id), subscribers)| Committed {
                    channel: draft.channel_id.clone(),
                    frame: MessageFrame::new(&draft.committed(id, &timestamp)),
                    subscribers,
                    replayed: false,
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
            if let Some(newest) = messages.last() {
                let channels = messages.iter().map(|message| &message.channel);
                self.manager.wake_waiting_for(channels, newest.frame.id);
            }
            self.broadcast.send(messages);
        }
        let mut first = 0;
        for Part { count, done, .. } in batch.parts {
            let outcome = committed
                .as_ref()
                .map(|messages| &messages[first..first + count]);
            // A publisher's code that panics costs the others nothing; the panic is reported.
            let _ = catch_unwind(AssertUnwindSafe(|| done(outcome)));
            first += count;
        }
    }

    fn count(&self, batch: &Batch, time: Duration, succeeded: bool) {
        let traffic = &self.usage.traffic;
        traffic.commits.observe_time(time);
        if succeeded {
            let size = batch.drafts.len() + batch.states.len();
            traffic.batches.observe(size as u64);
            traffic.messages.add_many(batch.drafts.len());
        } else {
            traffic.commit_errors.add();
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
