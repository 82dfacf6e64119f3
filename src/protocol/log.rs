//! Places in the log that several nodes share.

use std::fmt;
use std::str::FromStr;

use super::MessageId;

/// A place in the shared log: the newest message up to it, and how many states came since.
///
/// A message's place is its id; states have the id of the message before them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The newest message up to here.
    pub id: MessageId,
    /// Entries that are no messages, since that one.
    pub step: u64,
}

impl Position {
    /// The place of a message.
    pub fn of(id: MessageId) -> Self {
        Self { id, step: 0 }
    }

    /// The first place after this one that is no message's.
    pub fn next_step(self) -> Self {
        Self {
            id: self.id,
            step: self.step.saturating_add(1),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.id, self.step)
    }
}

impl FromStr for Position {
    type Err = ();

    /// Reads `41-2`, the form of an entry's id in a stream.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (id, step) = text.split_once('-').ok_or(())?;
        Ok(Self {
            id: MessageId(id.parse().map_err(drop)?),
            step: step.parse().map_err(drop)?,
        })
    }
}

/// What a mark's identity begins with before it is known whether its log has begun.
const INTENT: &str = "?";

/// Up to where a node has the shared log, as its store remembers it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogMark {
    /// Which log it is; empty before the first was joined, and [`Self::intended`] while the
    /// first is begun.
    pub identity: String,
    /// The last entry that was applied.
    pub position: Position,
    /// Which batch that entry came with; empty when it is not known.
    pub batch: String,
}

impl LogMark {
    /// Of a server that is about to begin a log of this identity with what it has: if it ends in
    /// that moment, it knows its log again.
    pub fn intend(&mut self, identity: &str) {
        self.identity = format!("{INTENT}{identity}");
    }

    /// The identity of the log that it was about to begin, if it does not know whether it has.
    pub fn intended(&self) -> Option<&str> {
        self.identity.strip_prefix(INTENT)
    }

    /// Whether it was in a log.
    pub fn has_joined(&self) -> bool {
        !self.identity.is_empty() && self.intended().is_none()
    }
}

/// Messages that this node never got: they were gone from the shared log before it read them.
/// One that ends before it begins says that ids jump there, and nothing is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// The first of them.
    pub first: MessageId,
    /// The last of them.
    pub last: MessageId,
}
