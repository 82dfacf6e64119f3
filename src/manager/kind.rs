//! What a client speaks.

use crate::frame::Chunk;

/// What a client speaks, and so the form of everything it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Frames (RFC 6455).
    WebSocket,
    /// Server-Sent Events, the body of a response that has no end (HTML standard, section 9.2).
    EventStream,
}

impl Kind {
    /// `websocket` or `sse`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::EventStream => "sse",
        }
    }

    /// Frames as a client of this kind gets them; empty when they say nothing to it.
    pub(super) fn form(self, frames: &Chunk) -> Chunk {
        match self {
            Self::WebSocket => frames.clone(),
            Self::EventStream => frames.as_events(),
        }
    }
}

/// How a client was accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// What it speaks from now on.
    pub(crate) kind: Kind,
    /// The answer that tells it so, as it is; it goes out before anything else.
    pub(crate) answer: Chunk,
}
