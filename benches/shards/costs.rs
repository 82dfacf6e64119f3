//! What one thing costs, in microseconds of one core: measured here, or as it was recorded.

/// Costs of the parts, in microseconds of a core, for messages of 200 bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Costs {
    /// Redis: one append, and each message in it.
    pub(crate) append: f64,
    pub(crate) append_message: f64,
    /// Redis: one read, and each entry that it hands to one node.
    pub(crate) read: f64,
    pub(crate) read_entry: f64,
    /// Bytes of an entry on its way to a node.
    pub(crate) entry_bytes: f64,
    /// SQLite: one commit, and each message in it.
    pub(crate) commit: f64,
    pub(crate) commit_message: f64,
    /// A node: an entry that it follows, from Redis to its store, all threads together.
    pub(crate) apply: f64,
    /// The same as wall-clock time, which is the journal's: entries come one after the other.
    pub(crate) apply_wall: f64,
    /// A node: a message that it is given by HTTP, answered, without its apply.
    pub(crate) publish: f64,
    /// A node: a delivery while many messages are merged into a chunk, and when each goes alone.
    pub(crate) delivery: f64,
    pub(crate) delivery_alone: f64,
}

/// Medians of four runs on two cores of a shared machine, with Redis 7.0, Linux 6.18 and the databases on disk.
/// A node's are from when a read had 256 entries: with more, its part of a commit is 0.1 µs less.
pub(crate) const RECORDED: Costs = Costs {
    append: 60.2,
    append_message: 2.5,
    read: 31.0,
    read_entry: 0.42,
    entry_bytes: 330.0,
    commit: 36.0,
    commit_message: 3.3,
    apply: 7.4,
    apply_wall: 6.3,
    publish: 29.9,
    delivery: 0.15,
    delivery_alone: 7.0,
};

impl Costs {
    /// One after the other, with what it is.
    pub(crate) fn rows(&self) -> [(&'static str, f64); 12] {
        [
            ("Redis: one append", self.append),
            ("Redis: each message in it", self.append_message),
            ("Redis: one read by a node", self.read),
            ("Redis: each entry in it", self.read_entry),
            ("bytes of an entry on its way to a node", self.entry_bytes),
            ("SQLite: one commit", self.commit),
            ("SQLite: each message in it", self.commit_message),
            ("node: an entry applied, all threads", self.apply),
            ("node: the same by the clock", self.apply_wall),
            ("node: a POST answered, without that", self.publish),
            ("node: a delivery, many at once", self.delivery),
            ("node: a delivery alone", self.delivery_alone),
        ]
    }
}
