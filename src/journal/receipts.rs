//! Requests that are to be done once: the second of a key gets the first one's answer.
//!
//! Only the journal's thread looks and stores, so of any number that come at once one is done,
//! and the others are answered when it is committed. One that was refused is not remembered.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::sequencer::Sequencer;
use super::{Committed, Order};
use crate::error::{Error, Result};
use crate::frame::MessageFrame;
use crate::protocol::{Draft, MessageId, Published, Rev, clock};
use crate::store::{Claim, RECEIPTS_KEPT, Remembered};

impl Order {
    /// By which key it is to be done once, if it is.
    pub(super) fn claim(&self) -> Option<Claim> {
        match self {
            Self::Commit(submission) => submission.claim.as_deref().copied(),
            Self::State(order) => order.claim.as_deref().copied(),
            Self::Stop => None,
        }
    }

    /// What it has in the queue.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Commit(submission) => submission.bytes,
            Self::State(order) => order.state.len(),
            Self::Stop => 0,
        }
    }
}

impl Sequencer {
    /// Answers an order that was done before, or cannot be; every other one comes back.
    pub(super) fn answer_again(&mut self, order: Order) -> Option<Order> {
        let Some(claim) = order.claim() else {
            return Some(order);
        };
        match self.remembered(&claim) {
            Ok(None) => return Some(order),
            // A publisher's code that panics costs the others nothing; the panic is reported.
            outcome => drop(catch_unwind(AssertUnwindSafe(|| answer(order, outcome)))),
        }
        None
    }

    fn remembered(&mut self, claim: &Claim) -> Result<Option<Remembered>> {
        let after = clock::before(RECEIPTS_KEPT);
        let found = self.writer.remembered(&claim.key, &after)?;
        match found {
            Some(found) if found.fingerprint != claim.fingerprint => Err(Error::KeyReused),
            found => Ok(found),
        }
    }
}

fn answer(order: Order, outcome: Result<Option<Remembered>>) {
    let outcome = outcome.map(|found| found.expect("what is not remembered is done"));
    match order {
        Order::Commit(submission) => {
            let outcome = outcome.map(|found| committed(&submission.drafts, &found));
            (submission.done)(outcome.as_deref());
        }
        Order::State(order) => (order.done)(outcome.map(|found| published(&found))),
        Order::Stop => {}
    }
}

pub(super) fn published(found: &Remembered) -> Published {
    Published {
        changed: found.changed,
        rev: Rev(found.number),
        subscribers: found.subscribers,
        replayed: true,
    }
}

/// The same drafts with the same ids and the same time are the same messages, whether they are
/// still stored or not.
pub(super) fn committed(drafts: &[Draft], found: &Remembered) -> Vec<Committed> {
    let drafts = drafts.iter().zip(found.number..);
    drafts
        .map(|(draft, id)| Committed {
            channel: draft.channel_id.clone(),
            frame: MessageFrame::new(&draft.committed(MessageId(id), &found.timestamp)),
            subscribers: found.subscribers,
            replayed: true,
        })
        .collect()
}
