//! Feeds: named latest values, and what a connection subscribes to.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::Channel;

/// The feed whose changes make the history.
pub const WORKFLOWS: &str = "workflows";

/// The feed of the server's own route table.
pub const ROUTES: &str = "routes";

/// The feed of what appeared, changed and went in [`WORKFLOWS`].
pub const WORKFLOW_HISTORY: &str = "workflow-history";

/// Longest feed name, in characters.
const MAX_CHARS: usize = 64;

/// A feed's name: `[a-z0-9][a-z0-9_.-]{0,63}`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Feed(Arc<str>);

impl Feed {
    /// The feeds that are there before anybody publishes to them.
    pub fn built_in() -> [Self; 3] {
        [WORKFLOWS, ROUTES, WORKFLOW_HISTORY].map(|name| Self(name.into()))
    }

    /// Whether it is one of those.
    pub fn is_built_in(&self) -> bool {
        matches!(self.as_str(), WORKFLOWS | ROUTES | WORKFLOW_HISTORY)
    }

    /// The feed [`ROUTES`].
    pub fn routes() -> Self {
        Self(ROUTES.into())
    }

    /// The feed [`WORKFLOW_HISTORY`].
    pub fn workflow_history() -> Self {
        Self(WORKFLOW_HISTORY.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The `type` of its frames: `workflow_history_update` for `workflow-history`.
    pub fn frame_type(&self) -> String {
        format!("{}_update", self.0.replace('-', "_"))
    }

    /// Its state before anybody published one, as JSON.
    pub fn initial_state(&self) -> &'static str {
        match self.as_str() {
            WORKFLOWS | ROUTES => "[]",
            WORKFLOW_HISTORY => r#"{"workflows":[],"total_count":0,"analytics":null}"#,
            _ => "null",
        }
    }
}

impl FromStr for Feed {
    type Err = String;

    /// Fails with a sentence that says what a name may be.
    fn from_str(name: &str) -> Result<Self, String> {
        let rule = "a feed's name has 1 to 64 of a-z, 0-9, `_`, `.` and `-` and starts with a letter or digit";
        let is_alphanumeric =
            |character: char| character.is_ascii_lowercase() || character.is_ascii_digit();
        if !name.starts_with(is_alphanumeric) {
            return Err(match name.chars().next() {
                None => format!("{rule}; this one is empty"),
                Some(first) => format!("{rule}; this one starts with {first:?}"),
            });
        }
        let is_allowed =
            |character: char| is_alphanumeric(character) || matches!(character, '_' | '.' | '-');
        if let Some(other) = name.chars().find(|character| !is_allowed(*character)) {
            return Err(format!("{rule}; this one has {other:?}"));
        }
        if name.len() > MAX_CHARS {
            return Err(format!("{rule}; this one has {}", name.len()));
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for Feed {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for Feed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// How often a feed's state has changed: 0 before the first publication, kept over restarts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Rev(pub u64);

impl Rev {
    /// The revision after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Rev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a publication to a feed came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Published {
    /// Whether the state differs from the one before, so that subscribers hear of it.
    pub changed: bool,
    /// The feed's revision, with the change.
    pub rev: Rev,
    /// How many subscribers the feed had.
    pub subscribers: usize,
    /// It came to that earlier: the request was a repetition (`Idempotency-Key`).
    #[serde(skip)]
    pub replayed: bool,
}

/// How a watched feed's source fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WatchStatus {
    /// `file` or `exec`.
    pub source: &'static str,
    /// How often the file was read or the command was run.
    pub reads: u64,
    /// Why the last look failed; the feed keeps its last state then.
    pub error: Option<String>,
}

/// What a connection subscribes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Every message of a channel.
    Channel(Channel),
    /// The newest state of a feed.
    Feed(Feed),
}

impl From<Channel> for Topic {
    fn from(channel: Channel) -> Self {
        Self::Channel(channel)
    }
}

impl From<Feed> for Topic {
    fn from(feed: Feed) -> Self {
        Self::Feed(feed)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Channel(channel) => write!(f, "channel {:?}", channel.as_str()),
            Self::Feed(feed) => write!(f, "feed {feed}"),
        }
    }
}

/// A feed's state as it outlives the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredState {
    /// The feed.
    pub feed: Feed,
    /// Its revision.
    pub rev: Rev,
    /// The state, as JSON.
    pub state: String,
    /// Whether the server made it itself, so that it may replace it.
    pub own: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_contract() {
        let longest = "a".repeat(MAX_CHARS);
        for name in ["workflows", "workflow-history", "0", "a.b_c-d", &longest] {
            assert!(name.parse::<Feed>().is_ok(), "{name}");
        }
        let too_long = "a".repeat(MAX_CHARS + 1);
        for name in ["", "-a", ".", "A", "a b", "a/b", "é", "aé", &too_long] {
            assert!(name.parse::<Feed>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_frame_is_named_after_its_feed() {
        let feed: Feed = "workflow-history".parse().expect("a feed");
        assert_eq!(feed.frame_type(), "workflow_history_update");
    }
}
