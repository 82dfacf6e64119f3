//! Publishers whose messages are in the shared log, until they are in this node's store as well.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::super::Committed;
use super::super::states::Feeds;
use super::append::refuse;
use super::{Waiting, not_known};
use crate::backplane::Appended;
use crate::frame::MessageFrame;
use crate::protocol::{MessageId, Position, clock};

/// Parts of the log that this node passed over and remembers: publishers wait for some seconds, and
/// each is another end that Redis has lost, or a stream that was trimmed.
const SKIPPED: usize = 16;

/// In the order of the log. What may wait is bounded by the bytes of all that is queued.
pub(in crate::journal) struct Unanswered {
    batches: VecDeque<Waiting>,
    /// What was between these was not read: after the first, up to the second.
    skipped: VecDeque<(Position, Position)>,
    queued_bytes: Arc<AtomicUsize>,
}

impl Unanswered {
    pub(in crate::journal) fn new(queued_bytes: Arc<AtomicUsize>) -> Self {
        Self {
            batches: VecDeque::new(),
            skipped: VecDeque::new(),
            queued_bytes,
        }
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        self.batches.push_back(waiting);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// When the next publishers have waited long enough.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.batches.front().map(|waiting| waiting.deadline)
    }

    /// These parts of the log were not read.
    pub(super) fn pass_over(&mut self, parts: &[(Position, Position)]) {
        self.skipped.extend(parts);
        let old = self.skipped.len().saturating_sub(SKIPPED);
        self.skipped.drain(..old);
    }

    /// Answers those whose batches are applied: everything up to here is.
    pub(super) fn answer(&mut self, applied: Position, feeds: &Feeds) {
        while let Some(waiting) = self.pop_if(|waiting| waiting.appended.last <= applied) {
            if self.has(&waiting.appended) {
                self.answer_one(waiting, feeds);
            } else {
                self.refuse(waiting, "it was appended and is gone from the log");
            }
        }
    }

    /// Tells those who have waited long enough that nobody knows.
    pub(super) fn give_up_late(&mut self) {
        let now = Instant::now();
        while let Some(waiting) = self.pop_if(|waiting| waiting.deadline <= now) {
            let reason = "it is in the log, but this node has not applied it in time";
            self.refuse(waiting, reason);
        }
    }

    /// Tells all of them that nobody knows.
    pub(super) fn give_up(&mut self, reason: &str) {
        while let Some(waiting) = self.batches.pop_front() {
            self.refuse(waiting, reason);
        }
    }

    fn pop_if(&mut self, is_to_go: impl FnOnce(&Waiting) -> bool) -> Option<Waiting> {
        let first = self.batches.front()?;
        if is_to_go(first) {
            self.batches.pop_front()
        } else {
            None
        }
    }

    /// Whether a batch is among what was applied, and not among what was passed over.
    fn has(&self, appended: &Appended) -> bool {
        let mut skipped = self.skipped.iter();
        appended.is_nothing()
            || skipped.all(|(after, to)| appended.last <= *after || appended.last > *to)
    }

    fn answer_one(&self, waiting: Waiting, feeds: &Feeds) {
        let Waiting {
            batch,
            plan,
            subscribers,
            appended,
            ..
        } = waiting;
        self.queued_bytes.fetch_sub(batch.bytes, Ordering::Relaxed);
        feeds.answer(plan, batch.states, None);
        let timestamp = clock::at(appended.micros);
        let drafts = batch.drafts.iter().zip(appended.first.0..).zip(subscribers);
        let committed: Vec<Committed> = drafts
            .map(|((draft, id), subscribers)| Committed {
                channel: draft.channel_id.clone(),
                frame: MessageFrame::new(&draft.committed(MessageId(id), &timestamp)),
                subscribers,
                replayed: false,
            })
            .collect();
        let mut first = 0;
        for part in batch.parts {
            let messages = &committed[first..first + part.count];
            let done = part.done;
            // A publisher's code that panics costs the others nothing; the panic is reported.
            let _ = catch_unwind(AssertUnwindSafe(|| done(Ok(messages))));
            first += part.count;
        }
    }

    fn refuse(&self, waiting: Waiting, reason: &str) {
        let batch = waiting.batch;
        self.queued_bytes.fetch_sub(batch.bytes, Ordering::Relaxed);
        refuse(batch, &not_known(reason));
    }
}
