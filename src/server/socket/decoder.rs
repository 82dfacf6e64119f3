//! What a client says, frame by frame, in the words of the session.

use std::io::{self, Read, Write};

use tungstenite::error::{CapacityError, Error, ProtocolError};
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Bytes, Message, Utf8Bytes};

use crate::frame::{Chunk, CloseCode};
use crate::stream::Stream;

/// Bytes read at once and kept per client; tungstenite's default of 128 KiB is for few clients.
const READ_BUFFER: usize = 2 << 10;

/// Reads frames from a non-blocking socket. Holds at most one message of the largest size.
pub(super) struct Decoder {
    context: WebSocketContext,
}

/// What came.
pub(super) enum Heard {
    Text(Utf8Bytes),
    Ping(Bytes),
    Pong,
    /// The peer closes; this is the answer to it.
    Close(Chunk),
    /// The peer broke a rule and is told so.
    Violation(CloseCode, String),
    /// The connection ended without a word.
    Gone,
    /// All that has arrived is read.
    Nothing,
}

impl Decoder {
    /// Starts with the bytes that came together with the handshake.
    pub(super) fn new(early: Vec<u8>, max_frame_bytes: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .max_message_size(Some(max_frame_bytes))
            .max_frame_size(Some(max_frame_bytes));
        Self {
            context: WebSocketContext::from_partially_read(early, Role::Server, Some(config)),
        }
    }

    /// The next thing the client said. Never blocks.
    pub(super) fn next(&mut self, stream: &Stream) -> Heard {
        match self.context.read(&mut Inbound(stream)) {
            Ok(Message::Text(text)) => Heard::Text(text),
            Ok(Message::Ping(payload)) => Heard::Ping(payload),
            Ok(Message::Pong(_)) => Heard::Pong,
            Ok(Message::Close(None)) => Heard::Close(Chunk::close(None, "")),
            // A code that may not be sent was replaced by 1002 (RFC 6455, section 7.4.2).
            Ok(Message::Close(Some(frame))) => {
                Heard::Close(Chunk::close(Some(frame.code.into()), frame.reason.as_str()))
            }
            Ok(Message::Binary(_) | Message::Frame(_)) => Heard::Violation(
                CloseCode::Unsupported,
                "binary frames are not understood; send text".to_owned(),
            ),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Heard::Nothing,
            Err(Error::Io(_) | Error::ConnectionClosed | Error::AlreadyClosed) => Heard::Gone,
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => Heard::Gone,
            Err(Error::Capacity(CapacityError::MessageTooLong { size, max_size })) => {
                Heard::Violation(
                    CloseCode::TooLarge,
                    format!("{size} bytes are too many, {max_size} are allowed"),
                )
            }
            Err(Error::Utf8(_)) => {
                Heard::Violation(CloseCode::InvalidPayload, "text must be UTF-8".to_owned())
            }
            Err(error) => Heard::Violation(CloseCode::Protocol, error.to_string()),
        }
    }
}

/// The reading side of the socket. tungstenite's own pongs and closes end here: the session
/// sends them through the outbox, where they cannot overtake a frame or follow a close.
struct Inbound<'a>(&'a Stream);

impl Read for Inbound<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl Write for Inbound<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
