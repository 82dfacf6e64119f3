//! Sets of message ids, small enough for every subscriber to keep and compare exactly.

/// A set of ids as its size and the sum of its members' hashes.
///
/// Two sets that differ have equal sums with probability 2^-64: nobody aims at this hash.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) count: u64,
    sum: u64,
}

impl Ids {
    pub(super) fn add(&mut self, id: u64) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(hash(id));
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// What one subscriber received.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Ids that came in ascending order, each greater than all before it.
    ascending: Ids,
    pub(super) last: u64,
    /// Ids that were not greater than one before them: doubled or out of order, rare.
    late: Vec<u64>,
}

/// How what was received differs from what was acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Acknowledged, never received; of states those after the last that was received.
    pub(super) missing: u64,
    /// Received again.
    pub(super) duplicated: u64,
    /// Received after a greater id; of states also those received again.
    pub(super) out_of_order: u64,
    /// Received, though no publisher got an acknowledgement for it.
    pub(super) unexpected: u64,
    /// States left out because a later one came instead, as the contract allows.
    pub(super) skipped: u64,
}

impl Tally {
    /// For ids greater than `last`.
    pub(super) fn after(last: u64) -> Self {
        Self {
            last,
            ..Self::default()
        }
    }

    /// Counts an arrival and returns how far it is ahead of all before it.
    pub(super) fn add(&mut self, id: u64) -> u64 {
        let step = id.saturating_sub(self.last);
        if step > 0 {
            self.last = id;
            self.ascending.add(id);
        } else {
            self.late.push(id);
        }
        step
    }

    /// Takes the server's word that nothing up to `head` is still to come: what comes all the
    /// same is late.
    pub(super) fn caught_up(&mut self, head: u64) {
        self.last = self.last.max(head);
    }

    /// Compares with the revs of a feed, `first` to `last`: some may be left out, not the last.
    pub(super) fn compare_states(&self, first: u64, last: u64) -> Findings {
        Findings {
            missing: last.saturating_sub(self.last),
            out_of_order: self.late.len() as u64,
            unexpected: self.last.saturating_sub(last),
            skipped: (self.last + 1 - first) - self.ascending.count,
            ..Findings::default()
        }
    }

    /// How many arrived in order.
    pub(super) fn arrived(&self) -> u64 {
        self.ascending.count
    }

    /// Compares with the ids acknowledged to the publishers of the subscriber's channel.
    pub(super) fn compare(mut self, acknowledged: Ids) -> Findings {
        if self.ascending == acknowledged {
            return Findings {
                duplicated: self.late.len() as u64,
                ..Findings::default()
            };
        }
        let arrivals = self.late.len() as u64;
        self.late.sort_unstable();
        self.late.dedup();
        let mut received = self.ascending;
        self.late.iter().for_each(|&id| received.add(id));
        let differs = received != acknowledged;
        let missing = acknowledged.count.saturating_sub(received.count);
        let unexpected = received.count.saturating_sub(acknowledged.count);
        // As many as expected, but others: at least one is missing and one too many.
        let swapped = u64::from(differs && missing == 0 && unexpected == 0);
        Findings {
            missing: missing + swapped,
            duplicated: arrivals - self.late.len() as u64,
            out_of_order: self.late.len() as u64,
            unexpected: unexpected + swapped,
            skipped: 0,
        }
    }
}

impl std::ops::AddAssign for Findings {
    fn add_assign(&mut self, other: Self) {
        self.missing += other.missing;
        self.duplicated += other.duplicated;
        self.out_of_order += other.out_of_order;
        self.unexpected += other.unexpected;
        self.skipped += other.skipped;
    }
}

/// The finalizer of SplitMix64: every bit of the id changes half of the bits.
fn hash(id: u64) -> u64 {
    let id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    id ^ (id >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_fault_is_found_and_counted() {
        let acknowledged = [3, 4, 7, 9];
        for (received, [missing, duplicated, out_of_order, unexpected]) in [
            (&[3, 4, 7, 9][..], [0, 0, 0, 0]),
            (&[3, 4, 9], [1, 0, 0, 0]),
            (&[], [4, 0, 0, 0]),
            (&[3, 4, 4, 7, 9, 9], [0, 2, 0, 0]),
            (&[3, 4, 7, 9, 3], [0, 1, 0, 0]),
            (&[3, 7, 4, 9], [0, 0, 1, 0]),
            (&[3, 9, 7, 4, 4], [0, 1, 2, 0]),
            (&[3, 4, 7, 8, 9], [0, 0, 0, 1]),
            (&[3, 4, 8, 9], [1, 0, 0, 1]),
            (&[4, 3, 9], [1, 0, 1, 0]),
        ] {
            let mut tally = Tally::default();
            for &id in received {
                tally.add(id);
            }
            let mut ids = Ids::default();
            // Publishers add in any order.
            acknowledged.iter().rev().for_each(|&id| ids.add(id));
            let expected = Findings {
                missing,
                duplicated,
                out_of_order,
                unexpected,
                skipped: 0,
            };
            assert_eq!(tally.compare(ids), expected, "received {received:?}");
        }
    }

    #[test]
    fn what_comes_after_the_server_said_it_was_all_is_late() {
        let mut acknowledged = Ids::default();
        for id in [3, 4, 5] {
            acknowledged.add(id);
        }
        for (head, out_of_order) in [(3, 0), (4, 1)] {
            let mut tally = Tally::default();
            tally.add(3);
            tally.caught_up(head);
            for id in [4, 5] {
                tally.add(id);
            }
            let findings = tally.compare(acknowledged);
            assert_eq!((findings.missing, findings.out_of_order), (0, out_of_order));
        }
    }

    #[test]
    fn states_may_be_skipped_but_for_the_last() {
        for (received, [missing, out_of_order, unexpected, skipped]) in [
            (&[4, 5, 6, 7][..], [0, 0, 0, 0]),
            (&[5, 7], [0, 0, 0, 2]),
            (&[7], [0, 0, 0, 3]),
            (&[4, 6], [1, 0, 0, 1]),
            (&[], [4, 0, 0, 0]),
            (&[4, 4, 7], [0, 1, 0, 2]),
            (&[6, 5, 7], [0, 1, 0, 2]),
            (&[3, 7], [0, 1, 0, 3]),
            (&[7, 9], [0, 0, 2, 4]),
        ] {
            let mut tally = Tally::after(3);
            let advanced: u64 = received.iter().map(|&rev| tally.add(rev)).sum();
            let expected = Findings {
                missing,
                duplicated: 0,
                out_of_order,
                unexpected,
                skipped,
            };
            assert_eq!(
                tally.compare_states(4, 7),
                expected,
                "received {received:?}"
            );
            // Every state is delivered, left out or still to come.
            assert_eq!(advanced, tally.arrived() + skipped);
            assert_eq!(advanced + missing, 4 + unexpected);
        }
    }
}
