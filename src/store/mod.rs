//! Where messages and states are kept: SQLite, or a ring in memory.
//!
//! One [`Writer`], owned by the journal; any number of readers share the [`Reader`].

mod holes;
mod memory;
mod receipt;
mod sqlite;
mod totals;

use std::sync::Arc;

use crate::config::{Config, Database};
use crate::error::Result;
use crate::frame::{Chunk, MessageFrames};
use crate::history::Transition;
use crate::protocol::{Channel, Draft, Hole, LogMark, Message, MessageId};

pub use crate::protocol::{Claim, Given, Receipt, Remembered, StoredState};
pub use receipt::{Left, RECEIPTS_KEPT};
pub use totals::{ChannelTotals, Summary};

/// The one appender. Blocks on the disk.
pub trait Writer: Send {
    /// Stores all of a batch in one transaction and returns the ids of its drafts, ascending.
    ///
    /// # Errors
    /// Nothing is stored then; the next call may succeed.
    fn commit(&mut self, batch: &Batch<'_>) -> Result<Vec<MessageId>>;

    /// Stores what was read from the log that several nodes share, in one transaction. A message
    /// that is there already stays as it is.
    ///
    /// # Errors
    /// Nothing is stored then; the next call may succeed.
    fn apply(&mut self, applied: &Applied<'_>) -> Result<()>;

    /// Deletes up to so many of the oldest messages that are not to be kept, and gives back
    /// some of their space; whether there is more to do. Does not wait for other programs.
    ///
    /// # Errors
    /// Nothing is deleted then.
    fn forget(&mut self, rule: &Rule, step: Step) -> Result<bool>;

    /// What is remembered under the key of a claim, if it is younger than this timestamp.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn remembered(&mut self, key: &[u8; 32], after: &str) -> Result<Option<Remembered>>;

    /// Deletes up to so many of the oldest receipts that are not younger than this timestamp.
    /// Does not wait for other programs.
    ///
    /// # Errors
    /// Nothing is deleted then.
    fn forget_receipts(&mut self, until: &str, most: usize) -> Result<Left>;

    /// Moves everything into the one database file and closes it, its readers too.
    fn close(self: Box<Self>);
}

/// Which messages are kept, at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// The newest so many.
    pub keep_messages: Option<u64>,
    /// Those with a timestamp not less than this.
    pub not_before: Option<String>,
    /// As many as fit so many bytes of the file.
    pub max_db_bytes: Option<u64>,
}

/// How much is deleted at once: two hundred messages take a millisecond or two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Step {
    /// Messages.
    pub messages: usize,
    /// And their bytes, though never less than one message.
    pub bytes: usize,
}

/// What is committed together or not at all.
#[derive(Debug)]
pub struct Batch<'a> {
    /// Messages, in order.
    pub drafts: &'a [Draft],
    /// Last states of feeds, each feed once.
    pub states: &'a [StoredState],
    /// What happened to workflows, in order.
    pub transitions: &'a [Transition],
    /// What is to be remembered of it.
    pub receipts: &'a [Receipt],
    /// When all of it happened.
    pub timestamp: &'a str,
}

/// A part of the log that several nodes share.
#[derive(Debug)]
pub struct Applied<'a> {
    /// Messages in order, with the ids that the log gave them.
    pub messages: &'a [Message],
    /// Last states of feeds, each feed once.
    pub states: &'a [StoredState],
    /// What happened to workflows, in order, with the times.
    pub transitions: &'a [(String, Vec<Transition>)],
    /// Messages before all of these that nobody can get any more.
    pub hole: Option<Hole>,
    /// Up to where the log is stored then.
    pub mark: &'a LogMark,
}

/// What reads history. Blocks on the disk, never on the writer.
pub trait Reader: Send + Sync {
    /// The newest id, 0 when there never was a message.
    fn head(&self) -> Result<MessageId>;

    /// Part of the history, always in ascending order of ids.
    fn page(&self, page: &Page) -> Result<Vec<Message>>;

    /// What a subscriber of a channel has missed, as far as it fits a page.
    fn missed(&self, missed: &Missed<'_>) -> Result<MissedPage>;

    /// The id of the oldest message that is kept, whatever its channel; one more than the head
    /// if none is.
    fn oldest(&self) -> Result<MessageId>;

    /// The id of a channel's nth newest message (1 is the newest) up to `head`, or `None` if it
    /// has fewer.
    fn nth_newest(&self, channel: &Channel, head: MessageId, n: usize)
    -> Result<Option<MessageId>>;

    /// Every channel that has messages, by name.
    fn channels(&self) -> Result<Vec<ChannelTotals>>;

    /// Counts over all messages.
    fn summary(&self) -> Result<Summary>;

    /// Every feed's last state.
    fn states(&self) -> Result<Vec<StoredState>>;

    /// Up to where it has the log that several nodes share.
    fn mark(&self) -> Result<LogMark>;

    /// How large its files are; `None` for one in memory.
    fn file_bytes(&self) -> Option<FileBytes> {
        None
    }
}

/// The size of a store on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileBytes {
    /// The database file.
    pub main: u64,
    /// The write-ahead log beside it.
    pub wal: u64,
}

/// Which part of the history is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Only this channel's messages.
    pub channel: Option<Channel>,
    /// Only ids greater than this, oldest first; without it the newest `limit`.
    pub since: Option<MessageId>,
    /// Only ids less than this.
    pub before: Option<MessageId>,
    /// At most so many messages.
    pub limit: usize,
    /// It ends after so many bytes, though never before its first message.
    pub max_bytes: usize,
}

/// Which part of a channel a subscriber has missed.
#[derive(Debug, Clone, Copy)]
pub struct Missed<'a> {
    /// The channel.
    pub channel: &'a Channel,
    /// Only ids greater than this.
    pub cursor: MessageId,
    /// Only ids up to this.
    pub head: MessageId,
    /// At most so many messages.
    pub limit: usize,
    /// It ends after so many bytes, though never before its first message.
    pub max_bytes: usize,
}

/// A page of what a subscriber has missed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MissedPage {
    /// The messages in ascending order of ids, encoded: nothing else is done with them.
    pub chunk: Chunk,
    /// How many there are.
    pub number: usize,
    /// Who has it has everything up to here: the last message, or `until` when there is no more.
    pub reach: MessageId,
    /// How far was looked: up to the head, or to the next hole.
    pub until: MessageId,
    /// The oldest message of all that was kept at that moment, see [`Reader::oldest`]; when the
    /// cursor is before a hole, the first one after it.
    pub oldest: MessageId,
}

impl MissedPage {
    /// `complete` when there are no more than these up to `until`.
    fn new(frames: MessageFrames, complete: bool, until: MessageId, oldest: MessageId) -> Self {
        let reach = match frames.last() {
            Some(last) if !complete => last,
            _ => until,
        };
        Self {
            number: frames.number(),
            chunk: frames.into_chunk(),
            reach,
            until,
            oldest,
        }
    }
}

impl Missed<'_> {
    fn up_to(self, head: MessageId) -> Self {
        Self { head, ..self }
    }

    fn page(&self) -> Page {
        Page {
            channel: Some(self.channel.clone()),
            since: Some(self.cursor),
            before: Some(self.head.next()),
            limit: self.limit,
            max_bytes: self.max_bytes,
        }
    }
}

/// Opens the store that the configuration names, creating it when it isn't there.
///
/// # Errors
/// [`Error::Database`](crate::Error::Database) with a sentence that names the file.
pub fn open(config: &Config) -> Result<(Box<dyn Writer>, Arc<dyn Reader>)> {
    match &config.database {
        Database::File(path) => {
            let (writer, reader) = sqlite::open(path, config.sync, config.retention.max_db_bytes)?;
            Ok((Box::new(writer), reader))
        }
        Database::Memory => {
            let ring = memory::Ring::new(config.limits.memory_bytes);
            Ok((Box::new(ring.clone()), Arc::new(ring)))
        }
    }
}

/// Takes messages until the page is full.
struct PageBudget {
    messages: usize,
    bytes: usize,
    first: bool,
    /// A message did not fit.
    exceeded: bool,
}

impl PageBudget {
    fn new(page: &Page) -> Self {
        Self {
            messages: page.limit,
            bytes: page.max_bytes,
            first: true,
            exceeded: false,
        }
    }

    /// Whether a message of this size still belongs to the page.
    fn takes(&mut self, size: usize) -> bool {
        self.exceeded |= self.messages == 0 || (size > self.bytes && !self.first);
        if !self.exceeded {
            self.messages -= 1;
            self.bytes = self.bytes.saturating_sub(size);
            self.first = false;
        }
        !self.exceeded
    }
}
