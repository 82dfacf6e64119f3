//! Reading the log: what comes after what, and where something is missing.

use std::time::{Duration, Instant};

use super::entry::{self, Entry};
use super::portion::{MOST_BYTES, Portion};
use super::{Connection, Failure, PATIENCE, Reply};
use crate::protocol::{Position, StoredState};

/// A log that was joined.
pub(crate) struct Follower {
    pub(super) connection: Connection,
    pub(super) stream: String,
    pub(super) feeds: String,
    /// Which log it is.
    pub(crate) identity: String,
    /// The last entry that was read.
    pub(crate) position: Position,
    /// How much the next read asks for.
    pub(super) portion: Portion,
    /// The states of all feeds, if this node's may not be what they should be.
    pub(crate) states: Vec<StoredState>,
    /// All entries between the position that the node had and this one are gone.
    pub(crate) has_jumped: bool,
}

/// What was read.
pub(crate) struct Read {
    /// In order, those that follow one another without a hole.
    pub(crate) entries: Vec<Entry>,
    /// Before them there were others that are gone from the stream: where it goes on, and the
    /// states of all feeds.
    pub(crate) missed: Option<(Position, Vec<StoredState>)>,
    /// There was nothing more in the log at this moment.
    pub(crate) complete_at: Option<Instant>,
}

impl Read {
    /// The same in parts that the journal may have several of in memory, each with copies: what
    /// was read may be large, if it came after something small.
    pub(crate) fn parts(self) -> impl Iterator<Item = Self> {
        let mut entries = self.entries.into_iter().peekable();
        let mut missed = self.missed;
        std::iter::from_fn(move || {
            let first = entries.next()?;
            let mut bytes = first.bytes;
            let mut part = vec![first];
            while let Some(entry) = entries.next_if(|next| bytes + next.bytes <= MOST_BYTES) {
                bytes += entry.bytes;
                part.push(entry);
            }
            Some(Self {
                entries: part,
                missed: missed.take(),
                complete_at: self.complete_at.filter(|_| entries.peek().is_none()),
            })
        })
    }
}

impl Follower {
    /// What comes next, waiting for it for so long.
    pub(crate) fn read(&mut self, wait: Duration) -> Result<Read, Failure> {
        let asked = Instant::now();
        self.connection.set_patience(wait + PATIENCE)?;
        let (wait, at, count) = (
            wait.as_millis().max(1).to_string(),
            self.position.to_string(),
            self.portion.0.to_string(),
        );
        let arguments: [&[u8]; 7] = [
            b"COUNT",
            count.as_bytes(),
            b"BLOCK",
            wait.as_bytes(),
            b"STREAMS",
            self.stream.as_bytes(),
            at.as_bytes(),
        ];
        let reply = self.connection.run("XREAD", &arguments)?;
        let streams = reply.into_list().unwrap_or_default().into_iter();
        let found: Vec<Entry> = streams
            .filter_map(|stream| stream.into_list()?.pop()?.into_list())
            .flatten()
            .filter_map(Entry::read)
            .collect();
        let complete_at = (found.len() < self.portion.0).then_some(asked);
        self.portion = Portion::after(found.len(), found.iter().map(|entry| entry.bytes).sum());
        self.take(found, complete_at)
    }

    /// Whether the stream has no entry after this position.
    pub(super) fn is_at_the_end(&mut self) -> Result<bool, Failure> {
        let after = self.position.next_step().to_string();
        let arguments: [&[u8]; 5] = [
            self.stream.as_bytes(),
            after.as_bytes(),
            b"+",
            b"COUNT",
            b"1",
        ];
        let found = self.connection.run("XRANGE", &arguments)?;
        Ok(found.into_list().is_none_or(|found| found.is_empty()))
    }

    /// As many of these as follow one another.
    fn take(&mut self, found: Vec<Entry>, complete_at: Option<Instant>) -> Result<Read, Failure> {
        let mut read = Read {
            entries: Vec::new(),
            missed: None,
            complete_at,
        };
        for entry in found {
            let is_mark = matches!(entry.content, entry::Content::Mark);
            if is_mark && !read.entries.is_empty() {
                // Subscribers have what is before it when they hear that ids jump.
                read.complete_at = None;
                break;
            }
            let follows = match entry.after {
                // The log goes on there without what this node has more.
                Some(after) if is_mark => after <= self.position,
                Some(after) => after == self.position,
                None => entry.position.id <= self.position.id,
            };
            if !follows {
                if !read.entries.is_empty() {
                    // The rest is read again, and begins with it.
                    read.complete_at = None;
                    break;
                }
                let before = match entry.content {
                    // Only states are missing, and no message is.
                    entry::Content::Mark
                        if let Some(after) = entry.after
                            && after.id == self.position.id =>
                    {
                        after
                    }
                    entry::Content::Message(_) => Position::of(entry.position.id.previous()),
                    _ => Position {
                        step: entry.position.step.saturating_sub(1),
                        ..entry.position
                    },
                };
                read.missed = Some((before.max(self.position), self.feeds()?));
            }
            self.position = entry.position;
            read.entries.push(entry);
        }
        Ok(read)
    }

    /// Every feed's last state.
    pub(super) fn feeds(&mut self) -> Result<Vec<StoredState>, Failure> {
        self.connection.set_patience(PATIENCE)?;
        let all = self.connection.run("HGETALL", &[self.feeds.as_bytes()])?;
        let all = all.into_list().unwrap_or_default();
        let mut pairs = all.chunks(2);
        let mut states = Vec::new();
        while let Some([name, value]) = pairs.next() {
            if let (Some(name), Reply::Bytes(payload)) = (name.text(), value)
                && name.ends_with(':')
            {
                states.extend(entry::state(payload));
            }
        }
        Ok(states)
    }
}
