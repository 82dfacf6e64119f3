//! The `append` thread: what publishers submit, a batch at a time, into the shared log.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::super::Order;
use super::super::batch::Batch;
use super::super::receipts;
use super::super::sequencer::MAX_BATCH_BYTES;
use super::super::states::Feeds;
use super::{OwnFeeds, Step, Waiting, not_known};
use crate::backplane::{Appended, Appender, Asked, Backplane, Link, Outcome};
use crate::error::Error;
use crate::manager::ConnectionManager;
use crate::protocol::{
    MessageId, Position, Receipt, Remembered, WORKFLOW_HISTORY, WORKFLOWS, clock,
};
use crate::usage::Usage;

/// How long a batch goes on after everybody was told to end.
const LAST_MOMENTS: Duration = Duration::from_secs(1);

/// What the thread works with.
pub(super) struct Appending {
    pub(super) backplane: Backplane,
    pub(super) appender: Appender,
    pub(super) link: Arc<Link>,
    pub(super) own: OwnFeeds,
    pub(super) manager: Arc<ConnectionManager>,
    pub(super) feeds: Feeds,
    pub(super) queued_bytes: Arc<AtomicUsize>,
    pub(super) usage: Arc<Usage>,
    pub(super) max_batch: usize,
    pub(super) steps: Sender<Step>,
    /// The end of what this node has appended.
    pub(super) last: Position,
    /// How often the log had been joined again at the last batch.
    pub(super) reconnects: u64,
}

/// Which request a receipt is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Part(usize),
    State(usize),
}

/// What becomes of a batch.
enum Next {
    Waits(Box<Waiting>),
    /// Some of it was answered, or the feeds have changed: once more.
    Again(Batch),
    Refused(Batch, Error),
}

impl Appending {
    /// Runs until it is told to stop.
    pub(super) fn run(mut self, orders: &Receiver<Order>) {
        let mut held = None;
        while let Some(order) = held.take().or_else(|| orders.recv().ok()) {
            let mut batch = Batch::default();
            let mut next = Some(order);
            let mut stopping = false;
            while let Some(order) = next {
                match order {
                    Order::Stop => {
                        stopping = true;
                        break;
                    }
                    // What comes of that is known when the first one is done.
                    order if batch.has_key_of(&order) => {
                        held = Some(order);
                        break;
                    }
                    order => {
                        batch.bytes += order.bytes();
                        batch.add(Some(order));
                    }
                }
                let is_full = batch.drafts.len() + batch.states.len() >= self.max_batch
                    || batch.bytes >= MAX_BATCH_BYTES;
                next = if is_full {
                    None
                } else {
                    orders.try_recv().ok()
                };
            }
            let bytes = batch.bytes;
            // A bug here must not leave a node that refuses everything for ever.
            if catch_unwind(AssertUnwindSafe(|| self.take(batch))).is_err() {
                log::error!("a bug in the append thread: a batch was lost before its answer");
                self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
            self.link.set_appending(false);
            if stopping {
                return;
            }
        }
    }

    /// Appends a batch; its publishers are answered here or when it is applied.
    fn take(&mut self, batch: Batch) {
        if batch.parts.is_empty() && batch.states.is_empty() {
            return;
        }
        let bytes = batch.bytes;
        let identity = match self.link.accepts() {
            Ok(identity) => identity,
            // What was submitted before is still let in.
            Err(_) if self.link.is_stopping() && self.link.status().away.is_none() => {
                self.link.identity()
            }
            Err(error) => {
                self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                return refuse(batch, &error);
            }
        };
        let reconnects = self.link.reconnects();
        if reconnects != self.reconnects {
            // The connection is to a Redis that may be gone: nobody is to wonder whether it has
            // done what it is sent.
            self.appender.disconnect();
            self.reconnects = reconnects;
        }
        self.appender.next_batch();
        let deadline = Instant::now() + self.backplane.timeout;
        let mut next = Next::Again(batch);
        loop {
            next = match next {
                Next::Again(batch) if batch.parts.is_empty() && batch.states.is_empty() => {
                    self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                    return;
                }
                Next::Again(batch) => {
                    self.link.set_appending(true);
                    let next = self.append(&identity, batch, deadline);
                    self.link.set_appending(false);
                    next
                }
                Next::Waits(waiting) => {
                    // The thread ends after this one.
                    let _ = self.steps.send(Step::Appended(waiting));
                    return;
                }
                Next::Refused(batch, error) => {
                    self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                    return refuse(batch, &error);
                }
            }
        }
    }

    fn append(&mut self, identity: &str, mut batch: Batch, deadline: Instant) -> Next {
        if !batch.states.is_empty() {
            // Planned with what this node knows: its own last states at least.
            self.link.wait_for(self.last, deadline);
            let touches_history = |feed: &str| [WORKFLOWS, WORKFLOW_HISTORY].contains(&feed);
            if batch
                .states
                .iter()
                .any(|order| touches_history(order.feed.as_str()))
            {
                self.feeds.set_history(self.own.history(&self.manager));
            }
        }
        let known = self.link.applied();
        let plan = self.feeds.plan(&batch.states, &clock::now());
        let subscribers: Vec<usize> = batch
            .drafts
            .iter()
            .map(|draft| self.manager.subscribers(&draft.channel_id))
            .collect();
        let of_parts = batch.parts.iter().enumerate();
        let of_parts = of_parts.filter(|(_, part)| part.claim.is_some());
        let mut claims: Vec<(Whose, Receipt)> = of_parts
            .map(|(at, _)| Whose::Part(at))
            .zip(batch.receipts(&subscribers))
            .collect();
        let of_states = plan.receipts_by_order(&batch.states);
        claims.extend(of_states.map(|(at, receipt)| (Whose::State(at), receipt)));
        let receipts: Vec<Receipt> = claims.iter().map(|(_, receipt)| *receipt).collect();
        let asked = Asked {
            messages: &batch.drafts,
            checks: &plan.checks(&batch.states),
            states: &plan.steps(),
            claims: &receipts,
            known,
        };
        if asked.messages.is_empty() && asked.checks.is_empty() {
            // All of them are refused, which needs no log.
            let appended = Appended::nothing(self.last);
            return Next::Waits(self.waiting(batch, plan, subscribers, appended, deadline));
        }
        let link = Arc::clone(&self.link);
        let end = move || link.has_stopped_for(LAST_MOMENTS);
        let begin = Instant::now();
        let outcome = self.appender.append(identity, asked, deadline, &end);
        self.usage.traffic.appends.observe_time(begin.elapsed());
        match outcome {
            Outcome::Done(appended) => {
                self.last = self.last.max(appended.last);
                self.link.saw(appended.last);
                self.link.set_refusal(None);
                Next::Waits(self.waiting(batch, plan, subscribers, appended, deadline))
            }
            Outcome::Stale(last) if known >= last => {
                // This node had all there is, and yet other feeds than Redis.
                self.link.look_again();
                let error = self.unavailable("its feeds are not those that this node has");
                Next::Refused(batch, error)
            }
            Outcome::Stale(last) => {
                if self.link.wait_for(last, deadline) {
                    return Next::Again(batch);
                }
                let error = self.unavailable("this node is too far behind it");
                Next::Refused(batch, error)
            }
            Outcome::Once(found) => {
                let found = found.into_iter().filter_map(|(place, found)| {
                    let (whose, receipt) = claims.get(place)?;
                    Some((*whose, *receipt, found))
                });
                let found: Vec<_> = found.collect();
                // Whoever asks this node for what it was told then finds it.
                let messages = found
                    .iter()
                    .filter(|(whose, ..)| matches!(whose, Whose::Part(_)));
                let newest = messages.map(|(_, _, found)| found.number).max();
                if let Some(newest) = newest {
                    self.link
                        .wait_for(Position::of(MessageId(newest)), deadline);
                }
                answer_again(&mut batch, &found);
                Next::Again(batch)
            }
            Outcome::Refused(reason) => {
                let error = self.unavailable(&reason);
                Next::Refused(batch, error)
            }
            Outcome::Denied(failure) => {
                let reason = failure.reason();
                self.link.set_refusal(Some(&reason));
                let error = self.unavailable(&reason);
                Next::Refused(batch, error)
            }
            Outcome::Other => {
                self.link.look_again();
                let error = self.unavailable("it has lost the log that this node was in");
                Next::Refused(batch, error)
            }
            Outcome::Unknown(reason) => {
                let error = not_known(&format!(
                    "the backplane {} did not answer ({reason})",
                    self.backplane.address()
                ));
                Next::Refused(batch, error)
            }
        }
    }

    fn waiting(
        &self,
        batch: Batch,
        plan: super::Plan,
        subscribers: Vec<usize>,
        appended: Appended,
        deadline: Instant,
    ) -> Box<Waiting> {
        Box::new(Waiting {
            batch,
            plan,
            subscribers,
            appended,
            deadline: deadline.max(Instant::now() + self.backplane.timeout / 2),
        })
    }

    fn unavailable(&self, reason: &str) -> Error {
        Error::Backplane(format!(
            "the backplane {} is unavailable: {reason}; nothing was stored",
            self.backplane.address()
        ))
    }
}

/// Answers those requests of a batch that were done before, and takes them out of it.
fn answer_again(batch: &mut Batch, found: &[(Whose, Receipt, Remembered)]) {
    let known = |whose: Whose| {
        let (_, receipt, found) = found.iter().find(|(known, ..)| *known == whose)?;
        Some(if receipt.claim.fingerprint == found.fingerprint {
            Ok(found)
        } else {
            Err(Error::KeyReused)
        })
    };
    let mut rest = Batch {
        bytes: batch.bytes,
        ..Batch::default()
    };
    let mut drafts = std::mem::take(&mut batch.drafts).into_iter();
    for (at, part) in std::mem::take(&mut batch.parts).into_iter().enumerate() {
        let own: Vec<_> = drafts.by_ref().take(part.count).collect();
        match known(Whose::Part(at)) {
            None => {
                rest.drafts.extend(own);
                rest.parts.push(part);
            }
            Some(outcome) => {
                let outcome = outcome.map(|found| receipts::committed(&own, found));
                let done = part.done;
                // A publisher's code that panics costs the others nothing; the panic is reported.
                let _ = catch_unwind(AssertUnwindSafe(|| done(outcome.as_deref())));
            }
        }
    }
    for (at, order) in std::mem::take(&mut batch.states).into_iter().enumerate() {
        match known(Whose::State(at)) {
            None => rest.states.push(order),
            Some(outcome) => {
                let outcome = outcome.map(receipts::published);
                let done = order.done;
                let _ = catch_unwind(AssertUnwindSafe(|| done(outcome)));
            }
        }
    }
    *batch = rest;
}

/// Tells all publishers of a batch that nothing came of it.
pub(super) fn refuse(batch: Batch, error: &Error) {
    for part in batch.parts {
        let done = part.done;
        // A publisher's code that panics costs the others nothing; the panic is reported.
        let _ = catch_unwind(AssertUnwindSafe(|| done(Err(error))));
    }
    for order in batch.states {
        let done = order.done;
        let _ = catch_unwind(AssertUnwindSafe(|| done(Err(error.as_store()))));
    }
}
