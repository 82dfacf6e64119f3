//! How much of the log one read asks for.
//!
//! A read costs Redis 31 µs and 0.42 µs for each entry: many at once are what carries many nodes.
//! It has all of them in memory, though, and how large they are is known afterwards only.
//! `benches/shards` reckons with this file.

/// Entries in a read after one that found nothing.
const LEAST: usize = 16;

/// Entries in a read at most.
pub(crate) const MOST: usize = 1024;

/// Bytes in a read, if its entries are as large as those before. What is more is handed over in
/// parts of so many, or of one entry.
pub(crate) const MOST_BYTES: usize = 2 << 20;

/// Entries to ask for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Portion(pub(crate) usize);

impl Default for Portion {
    fn default() -> Self {
        Self(LEAST)
    }
}

impl Portion {
    /// What to ask for after a read of so many entries with so many bytes: twice as many, where they
    /// fit. So a node that is behind soon asks for many, and one that is not never reads many
    /// large ones that come all of a sudden.
    pub(crate) fn after(entries: usize, bytes: usize) -> Self {
        let wanted = (2 * entries).clamp(LEAST, MOST);
        let fit = (MOST_BYTES * entries).checked_div(bytes).unwrap_or(MOST);
        Self(wanted.min(fit).max(1))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_read_asks_for_twice_as_many_as_were_there_where_they_fit() {
        // Entries, their bytes, and what is asked for then.
        let cases = [
            (0, 0, 16),
            (1, 300, 16),
            (16, 4_800, 32),
            (512, 150_000, 1024),
            (1024, 300_000, 1024),
            (16, 4_000_000, 8),
            (1024, 256_000_000, 8),
            (8, 2_000_000, 8),
            (8, 2_400, 16),
            (1, 16_000_000, 1),
        ];
        for (entries, bytes, portion) in cases {
            let after = super::Portion::after(entries, bytes);
            assert_eq!(after.0, portion, "{entries} of {bytes} bytes");
        }
    }
}
