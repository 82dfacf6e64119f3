//! Encoded WebSocket frames: made once, shared by every subscriber.
//!
//! A server's frames are unmasked (RFC 6455, section 5.1), so the same bytes serve everyone.
//! Subscribers of event streams share a second form, which the first of them has made.

mod event;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use serde::Serialize;

use crate::protocol::{Feed, Message, MessageId, MessageView, Rev};

/// Longest frame header: opcode, length marker and a 64-bit length, no mask.
const MAX_HEADER: usize = 10;

/// Longest reason of a close frame: a control frame's payload without the code.
const MAX_REASON: usize = 123;

const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8A;

/// Why a server closes a connection, as sent in the close frame (RFC 6455, section 7.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum CloseCode {
    /// The answer to the client's own close.
    Normal = 1000,
    /// The server is shutting down.
    GoingAway = 1001,
    /// The client broke the protocol.
    Protocol = 1002,
    /// A binary frame, which nobody here reads.
    Unsupported = 1003,
    /// Text that is not UTF-8.
    InvalidPayload = 1007,
    /// The client may not be here, or no longer.
    Policy = 1008,
    /// A frame or message beyond the limit.
    TooLarge = 1009,
    /// A bug in the server.
    Internal = 1011,
    /// The client was too slow or did not answer: it may come back.
    TryAgainLater = 1013,
}

/// Whole frames that go to a socket in one piece. Cheap to clone, and one pointer wide,
/// because every subscriber's outbox has room for many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk(Arc<Encoded>);

#[derive(Debug)]
struct Encoded {
    buffer: Vec<u8>,
    start: usize,
    /// The same for an event stream, once somebody wanted it.
    events: OnceLock<Chunk>,
}

impl Encoded {
    fn new(buffer: Vec<u8>, start: usize) -> Self {
        Self {
            buffer,
            start,
            events: OnceLock::new(),
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

impl PartialEq for Encoded {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Encoded {}

impl Chunk {
    /// A text frame.
    pub fn text(payload: &str) -> Self {
        Self::encode(TEXT, payload.len(), |buffer| {
            buffer.extend_from_slice(payload.as_bytes());
        })
        .0
    }

    /// A text frame of a value's JSON.
    pub fn json(value: &impl Serialize) -> Self {
        Self::encode(TEXT, 128, |buffer| write_json(buffer, value)).0
    }

    /// A ping with at most 125 bytes of payload.
    pub fn ping(payload: &[u8]) -> Self {
        Self::encode(PING, payload.len(), |buffer| {
            buffer.extend_from_slice(payload)
        })
        .0
    }

    /// The answer to a ping: its payload.
    pub fn pong(payload: &[u8]) -> Self {
        Self::encode(PONG, payload.len(), |buffer| {
            buffer.extend_from_slice(payload)
        })
        .0
    }

    /// A close frame; without a code its payload is empty, as the answer to an empty one.
    ///
    /// A reason is cut where a control frame ends (RFC 6455, section 5.5).
    pub fn close(code: Option<u16>, reason: &str) -> Self {
        let is_end = |at: &usize| reason.is_char_boundary(*at);
        let end = (0..=reason.len().min(MAX_REASON)).rev().find(is_end);
        let reason = &reason[..end.unwrap_or(0)];
        Self::encode(CLOSE, 2 + reason.len(), |buffer| {
            if let Some(code) = code {
                buffer.extend_from_slice(&code.to_be_bytes());
                buffer.extend_from_slice(reason.as_bytes());
            }
        })
        .0
    }

    /// Bytes as they are: a handshake, or frames encoded elsewhere.
    pub fn raw(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Encoded::new(bytes, 0)))
    }

    /// All the frames of several chunks, in order.
    pub fn concat(chunks: &[Self]) -> Self {
        if let [only] = chunks {
            return only.clone();
        }
        let mut bytes = Vec::with_capacity(chunks.iter().map(Self::len).sum());
        for chunk in chunks {
            bytes.extend_from_slice(chunk.bytes());
        }
        Self::raw(bytes)
    }

    /// What goes to the socket.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// The same frames for an event stream: each text an event, a ping and a close a comment.
    /// Made when it is first asked for, however many subscribers share it; it stays as long
    /// as the frames and takes about as much memory.
    pub fn as_events(&self) -> Self {
        let events = &self.0.events;
        events
            .get_or_init(|| Self::raw(event::encode(self.bytes())))
            .clone()
    }

    /// How many bytes go to the socket.
    pub fn len(&self) -> usize {
        self.bytes().len()
    }

    /// The texts of the text frames in it, in order: what subscribers read.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let mut rest = self.bytes();
        std::iter::from_fn(move || {
            loop {
                let (opcode, payload, after) = split(rest)?;
                rest = after;
                if opcode == TEXT {
                    return str::from_utf8(payload).ok();
                }
            }
        })
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    /// Encodes one frame whose payload, about so long, `write` appends; returns it with the
    /// header's length.
    fn encode(opcode: u8, length: usize, write: impl FnOnce(&mut Vec<u8>)) -> (Self, usize) {
        // Room for the longest header in front, so that the payload is written once, in place.
        let mut buffer = Vec::with_capacity(MAX_HEADER + length);
        buffer.resize(MAX_HEADER, 0);
        write(&mut buffer);
        let (header, length) = header(opcode, buffer.len() - MAX_HEADER);
        let start = MAX_HEADER - length;
        buffer[start..MAX_HEADER].copy_from_slice(&header[..length]);
        (Self(Arc::new(Encoded::new(buffer, start))), length)
    }
}

/// The header of a frame with so many bytes of payload, in the shortest form, and its length.
fn header(opcode: u8, payload: usize) -> ([u8; MAX_HEADER], usize) {
    let (marker, extended): (u8, &[u8]) = match payload {
        0..=125 => (payload as u8, &[]),
        126..=0xFFFF => (126, &(payload as u16).to_be_bytes()),
        _ => (127, &(payload as u64).to_be_bytes()),
    };
    let mut header = [0; MAX_HEADER];
    header[..2].copy_from_slice(&[opcode, marker]);
    header[2..2 + extended.len()].copy_from_slice(extended);
    (header, 2 + extended.len())
}

const BEFORE_MESSAGE: &[u8] = br#"{"type":"message","data":"#;
const AFTER_MESSAGE: &[u8] = b"}";

/// Messages as the frames that subscribers get, encoded one behind the other.
#[derive(Debug, Default)]
pub struct MessageFrames {
    bytes: Vec<u8>,
    /// One payload at a time, to know its length before its header is written.
    payload: Vec<u8>,
    last: Option<MessageId>,
    number: usize,
}

impl MessageFrames {
    /// Adds a message.
    pub fn push(&mut self, message: &MessageView<'_>) {
        self.payload.clear();
        self.payload.extend_from_slice(BEFORE_MESSAGE);
        write_json(&mut self.payload, message);
        self.payload.extend_from_slice(AFTER_MESSAGE);
        let (header, length) = header(TEXT, self.payload.len());
        self.bytes.extend_from_slice(&header[..length]);
        self.bytes.extend_from_slice(&self.payload);
        self.last = Some(message.id);
        self.number += 1;
    }

    /// The id of the last one.
    pub fn last(&self) -> Option<MessageId> {
        self.last
    }

    /// How many there are.
    pub fn number(&self) -> usize {
        self.number
    }

    /// All of them.
    pub fn into_chunk(self) -> Chunk {
        Chunk::raw(self.bytes)
    }
}

/// A committed message, encoded once for every subscriber and for its publisher's answer.
#[derive(Debug, Clone)]
pub struct MessageFrame {
    /// The message's id.
    pub id: MessageId,
    chunk: Chunk,
    json: Range<usize>,
}

impl MessageFrame {
    /// Encodes `{"type":"message","data":<message>}` as a text frame.
    pub fn new(message: &Message) -> Self {
        let about = 256 + message.author.len() + message.content.len();
        let (chunk, header) = Chunk::encode(TEXT, about, |buffer| {
            buffer.extend_from_slice(BEFORE_MESSAGE);
            write_json(buffer, message);
            buffer.extend_from_slice(AFTER_MESSAGE);
        });
        let json = header + BEFORE_MESSAGE.len()..chunk.len() - AFTER_MESSAGE.len();
        Self {
            id: message.id,
            chunk,
            json,
        }
    }

    /// The frame as it goes to subscribers.
    pub fn chunk(&self) -> &Chunk {
        &self.chunk
    }

    /// The message object alone, as JSON.
    pub fn message_json(&self) -> &[u8] {
        &self.chunk.bytes()[self.json.clone()]
    }
}

/// A feed's state at a revision, encoded once for every subscriber and for whoever asks.
#[derive(Debug, Clone)]
pub struct StateFrame {
    /// The feed's revision.
    pub rev: Rev,
    chunk: Chunk,
    json: Range<usize>,
    state: Range<usize>,
}

impl StateFrame {
    /// Encodes `{"type":"<feed>_update","data":<state>,"rev":<rev>}` as a text frame; `state`
    /// is JSON.
    pub fn new(feed: &Feed, state: &str, rev: Rev) -> Self {
        let before = format!(r#"{{"type":"{}","data":"#, feed.frame_type());
        let after = format!(r#","rev":{rev}}}"#);
        let length = before.len() + state.len() + after.len();
        let (chunk, header) = Chunk::encode(TEXT, length, |buffer| {
            buffer.extend_from_slice(before.as_bytes());
            buffer.extend_from_slice(state.as_bytes());
            buffer.extend_from_slice(after.as_bytes());
        });
        let start = header + before.len();
        Self {
            rev,
            json: header..chunk.len(),
            state: start..start + state.len(),
            chunk,
        }
    }

    /// The frame as it goes to subscribers.
    pub fn chunk(&self) -> &Chunk {
        &self.chunk
    }

    /// The frame's JSON object.
    pub fn json(&self) -> &[u8] {
        &self.chunk.bytes()[self.json.clone()]
    }

    /// The state alone, as JSON.
    pub fn state(&self) -> &str {
        str::from_utf8(&self.chunk.bytes()[self.state.clone()])
            .expect("it was a str when it was encoded")
    }
}

/// The opcode byte and payload of the first of our own frames, and what follows it.
fn split(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let &[opcode, marker, ref rest @ ..] = bytes else {
        return None;
    };
    let (length, rest) = match marker {
        127 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::try_from(u64::from_be_bytes(*length)).ok()?, rest)
        }
        126 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        short => (usize::from(short), rest),
    };
    let (payload, rest) = rest.split_at_checked(length)?;
    Some((opcode, payload, rest))
}

fn write_json(buffer: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(buffer, value)
        .expect("strings and numbers always have a JSON form, and a Vec takes them");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_shortest_length_form() {
        for (length, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let chunk = Chunk::text(&"x".repeat(length));
            assert_eq!(chunk.len(), header + length);
            assert_eq!(chunk.bytes()[0], 0x81);
            let announced = match chunk.bytes()[1] {
                126 => u64::from(u16::from_be_bytes([chunk.bytes()[2], chunk.bytes()[3]])),
                127 => u64::from_be_bytes(chunk.bytes()[2..10].try_into().expect("eight bytes")),
                short => u64::from(short),
            };
            assert_eq!(announced, length as u64);
        }
    }

    #[test]
    fn the_message_object_is_a_slice_of_its_frame() {
        let message = Message {
            id: MessageId(7),
            channel_id: "lab".parse().expect("a channel"),
            author: "ada".into(),
            content: "h\"i".into(),
            timestamp: "2026-01-05T12:34:56.789012+00:00".into(),
            lane: None,
            provider: Some("openai".into()),
            token_count: Some(3),
        };
        let frame = MessageFrame::new(&message);
        assert_eq!(
            frame.message_json(),
            serde_json::to_vec(&message).expect("JSON")
        );
        assert!(frame.chunk().bytes().ends_with(b"}}"));
        let mut frames = MessageFrames::default();
        frames.push(&message.view());
        frames.push(&message.view());
        assert_eq!(frames.last(), Some(MessageId(7)));
        let twice = [frame.chunk().clone(), frame.chunk().clone()];
        assert_eq!(
            frames.into_chunk(),
            Chunk::raw(Chunk::concat(&twice).bytes().to_vec())
        );
    }

    #[test]
    fn the_state_is_a_slice_of_its_frame() {
        let feed: Feed = "workflow-history".parse().expect("a feed");
        for state in ["[]".to_owned(), format!("{:?}", "x".repeat(70_000))] {
            let frame = StateFrame::new(&feed, &state, Rev(7));
            assert_eq!(frame.state(), state);
            let expected =
                format!(r#"{{"type":"workflow_history_update","data":{state},"rev":7}}"#);
            assert_eq!(frame.json(), expected.as_bytes());
            assert_eq!(frame.chunk().texts().collect::<Vec<_>>(), [expected]);
        }
    }

    #[test]
    fn the_texts_of_a_chunk_are_those_that_went_in() {
        let texts = [0, 125, 126, 65_535, 65_536].map(|length| "é".repeat(length / 2));
        let frames: Vec<Chunk> = texts
            .iter()
            .flat_map(|text| [Chunk::text(text), Chunk::ping(b"x")])
            .collect();
        let chunk = Chunk::concat(&frames);
        assert_eq!(chunk.texts().collect::<Vec<_>>(), texts);
        assert_eq!(Chunk::raw(b"HTTP".to_vec()).texts().count(), 0);
    }
}
