//! What is remembered of an answer, so that a request that is repeated gets it again.

use std::time::Duration;

/// How long an answer is remembered: as long as Stripe, whose header this is, remembers it.
pub const RECEIPTS_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Answers that are remembered at most, the newest.
const MOST: u64 = 100_000;

/// And at least, however small the store.
const LEAST: u64 = 64;

/// The part of a bounded store that they may take, as a divisor.
const SHARE: u64 = 8;

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
