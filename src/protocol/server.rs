//! What the server says to one client, beside messages and states.

use serde::Serialize;
use serde_json::Value;

use super::{FrameError, MessageId};

/// Where a channel's subscriber begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Start {
    /// With the next message.
    #[default]
    Live,
    /// With the first message after this one.
    Since(MessageId),
    /// So many messages back.
    Last(usize),
}

/// Why messages that a subscriber asked for do not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// They are no longer kept; what follows starts with the oldest that is.
    Retention,
    /// There never was a message with the id given; what follows is new.
    UnknownId,
}

/// What the server says to one client, beside messages.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame {
    /// The message sent with `ref` is committed as `id`.
    Ack {
        /// As the client sent it.
        #[serde(rename = "ref")]
        reference: Value,
        /// The new message's id.
        id: MessageId,
    },
    /// The answer to a `ping`.
    Pong {
        /// As the client sent it.
        #[serde(skip_serializing_if = "Option::is_none")]
        timestamp: Option<Value>,
    },
    /// Everything up to `head` was sent; what follows is live.
    CaughtUp {
        /// The newest message's id.
        head: MessageId,
    },
    /// Messages after `since` are missing from what follows.
    Gap {
        /// The last id before them.
        since: MessageId,
        /// The oldest message that is there; one more than `head` if none is.
        oldest: MessageId,
        /// The newest message's id.
        head: MessageId,
        /// Why.
        reason: GapReason,
    },
    /// A frame was refused; nothing was stored.
    Error {
        /// For programs.
        code: &'static str,
        /// For people.
        detail: String,
        /// As the client sent it.
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<Value>,
    },
}

impl From<FrameError> for ServerFrame {
    fn from(error: FrameError) -> Self {
        Self::Error {
            code: error.code,
            detail: error.detail,
            reference: error.reference,
        }
    }
}
