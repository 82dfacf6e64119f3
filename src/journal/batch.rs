//! What goes into one transaction.

use super::states::StateOrder;
use super::{Done, Order};
use crate::protocol::Draft;
use crate::store::{Claim, Given, Receipt};

/// Drafts of several submissions and states, side by side for one transaction.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) drafts: Vec<Draft>,
    pub(super) parts: Vec<Part>,
    pub(super) states: Vec<StateOrder>,
    pub(super) bytes: usize,
}

/// One submission's drafts in a batch.
pub(super) struct Part {
    pub(super) count: usize,
    pub(super) claim: Option<Claim>,
    pub(super) done: Done,
}

impl Batch {
    /// All of a submission: what is committed together is never split.
    pub(super) fn add(&mut self, order: Option<Order>) {
        match order {
            Some(Order::Commit(submission)) => {
                self.parts.push(Part {
                    count: submission.drafts.len(),
                    claim: submission.claim.map(|claim| *claim),
                    done: submission.done,
                });
                self.drafts.extend(submission.drafts);
            }
            Some(Order::State(order)) => self.states.push(order),
            Some(Order::Stop) | None => {}
        }
    }

    /// Whether an order is already in it, or another one by the same key: what comes of that is
    /// known at the commit.
    pub(super) fn has_key_of(&self, order: &Order) -> bool {
        let Some(claim) = order.claim() else {
            return false;
        };
        let parts = self.parts.iter().filter_map(|part| part.claim);
        let states = self
            .states
            .iter()
            .filter_map(|state| state.claim.as_deref().copied());
        parts.chain(states).any(|other| other.key == claim.key)
    }

    /// What is to be remembered of submissions that are to be done once; `subscribers` are
    /// those of each draft.
    pub(super) fn receipts(&self, subscribers: &[usize]) -> Vec<Receipt> {
        let mut first = 0;
        let mut receipts = Vec::new();
        for part in &self.parts {
            if let (Some(claim), Some(subscribers)) = (part.claim, subscribers.get(first)) {
                receipts.push(Receipt {
                    claim,
                    given: Given::Ids(first),
                    subscribers: *subscribers,
                });
            }
            first += part.count;
        }
        receipts
    }
}
