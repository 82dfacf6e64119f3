//! What is remembered of an answer, so that a request that is repeated gets it again.

use std::time::Duration;

use crate::protocol::Rev;

/// How long an answer is remembered: as long as Stripe, whose header this is, remembers it.
pub const RECEIPTS_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Answers that are remembered at most, the newest.
const MOST: u64 = 100_000;

/// And at least, however small the store.
const LEAST: u64 = 64;

/// The part of a bounded store that they may take, as a divisor.
const SHARE: u64 = 8;

/// A request that is to be done once: who asks for it by which key, and what it asks for, as
/// SHA-256 of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The key, with whose it is.
    pub key: [u8; 32],
    /// All of the request that decides what it does.
    pub fingerprint: [u8; 32],
}

/// What is remembered of a batch's part that has a claim.
#[derive(Debug, Clone, Copy)]
pub struct Receipt {
    /// Of whose request.
    pub claim: Claim,
    /// What it was given.
    pub given: Given,
    /// How many subscribers its channel or feed had; of several messages the first one's.
    pub subscribers: usize,
}

/// What a request was given.
#[derive(Debug, Clone, Copy)]
pub enum Given {
    /// Ids without a hole: of the draft at this place of its batch, and those after it.
    Ids(usize),
    /// A revision, and whether it is new.
    Rev(Rev, bool),
}

/// A receipt as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// See [`Claim`].
    pub fingerprint: [u8; 32],
    /// When it was committed.
    pub timestamp: String,
    /// The first message's id, or the revision.
    pub number: u64,
    /// Whether the revision was new.
    pub changed: bool,
    /// See [`Receipt`].
    pub subscribers: usize,
}

/// What was left when old receipts were deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// No receipt at all.
    Nothing,
    /// Only such that are not old yet.
    Young,
    /// More to delete.
    Old,
}

/// How many receipts a store of so many bytes keeps that needs so many for each.
pub(super) fn most_receipts(store_bytes: Option<u64>, receipt_bytes: u64) -> u64 {
    let fitting = store_bytes.map_or(MOST, |bytes| bytes / SHARE / receipt_bytes);
    fitting.clamp(LEAST, MOST)
}
