//! Requests that are to be done once, and what is remembered of them.

use super::Rev;

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
