//! What a client says, frame by frame, in the words of the session.

use std::io::{self, Read, Write};

use tungstenite::error::{CapacityError, Error, ProtocolError};
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Bytes, Message, Utf8Bytes};

use crate::frame::{Chunk, CloseCode};
use crate::stream::Stream;

/// Bytes read at once; tungstenite's default of 128 KiB is for few clients.
const READ_BUFFER: usize = 2 << 10;

/// Reads frames from a non-blocking socket. Holds at most one message of the largest size, and
/// nothing while the client says nothing.
pub(super) struct Decoder {
    /// Made when there is something to read, let go of between two frames.
    context: Option<Box<WebSocketContext>>,
    max_frame_bytes: usize,
    /// Bytes that went into the context.
    read: u64,
    /// Bytes that the frames which came out of it have at the least.
    decoded: u64,
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
        let mut decoder = Self {
            context: None,
            max_frame_bytes,
            read: early.len() as u64,
            decoded: 0,
        };
        if !early.is_empty() {
            decoder.context = Some(decoder.context(early));
        }
        decoder
    }

    #[inline(never)]
    fn context(&self, early: Vec<u8>) -> Box<WebSocketContext> {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .max_message_size(Some(self.max_frame_bytes))
            .max_frame_size(Some(self.max_frame_bytes));
        let context = WebSocketContext::from_partially_read(early, Role::Server, Some(config));
        Box::new(context)
    }

    /// The next thing the client said. Never blocks.
    pub(super) fn next(&mut self, stream: &Stream) -> Heard {
        let mut context = match self.context.take() {
            Some(context) => context,
            None => self.context(Vec::new()),
        };
        let read = &mut self.read;
        let message = context.read(&mut Inbound { stream, read });
        self.decoded += message.as_ref().map_or(0, shortest);
        // If the frames that came out have all the bytes that went in, even if each was as short
        // as can be, there is nothing left of any. A client that sends them longer, or in
        // fragments, has its context for good.
        let is_empty = self.decoded == self.read;
        let heard = understand(message);
        if !(is_empty && matches!(heard, Heard::Nothing)) {
            self.context = Some(context);
        }
        heard
    }
}

/// Bytes of the shortest frame with this payload, from a client: header, mask and payload (RFC
/// 6455, section 5.2).
fn shortest(message: &Message) -> u64 {
    let payload = message.len() as u64;
    let length = match payload {
        0..=125 => 0,
        126..=0xFFFF => 2,
        _ => 8,
    };
    2 + length + 4 + payload
}

fn understand(message: Result<Message, Error>) -> Heard {
    match message {
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
        Err(Error::Capacity(CapacityError::MessageTooLong { size, max_size })) => Heard::Violation(
            CloseCode::TooLarge,
            format!("{size} bytes are too many, {max_size} are allowed"),
        ),
        Err(Error::Utf8(_)) => {
            Heard::Violation(CloseCode::InvalidPayload, "text must be UTF-8".to_owned())
        }
        Err(error) => Heard::Violation(CloseCode::Protocol, error.to_string()),
    }
}

/// The reading side of the socket. tungstenite's own pongs and closes end here: the session
/// sends them through the outbox, where they cannot overtake a frame or follow a close.
struct Inbound<'a> {
    stream: &'a Stream,
    /// Counts what was read.
    read: &'a mut u64,
}

impl Read for Inbound<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&mut &*self.stream).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    *self.read += result.as_ref().copied().unwrap_or(0) as u64;
                    return result;
                }
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

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const PONG: &[u8] = b"\x8A\x80\0\0\0\0";

    fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let theirs = TcpStream::connect(address).expect("a connection");
        let (ours, _) = listener.accept().expect("a connection");
        (Stream::from(ours), theirs)
    }

    /// Sends these bytes and waits until they are read; the texts that are complete by then.
    fn hear(
        decoder: &mut Decoder,
        (stream, theirs): &mut (Stream, TcpStream),
        bytes: &[u8],
    ) -> Vec<String> {
        theirs.write_all(bytes).expect("written");
        stream.set_nonblocking(true).expect("non-blocking");
        let due = decoder.read + bytes.len() as u64;
        let mut texts = Vec::new();
        loop {
            match decoder.next(stream) {
                Heard::Text(text) => texts.push(text.as_str().to_owned()),
                Heard::Pong => {}
                Heard::Nothing if decoder.read < due => std::thread::yield_now(),
                Heard::Nothing => return texts,
                _ => panic!("neither a text nor a pong"),
            }
        }
    }

    #[test]
    fn nothing_is_kept_between_two_frames_and_nothing_lost_within_one() {
        let mut pair = pair();
        let mut decoder = Decoder::new(Vec::new(), 1 << 20);
        let text = b"\x81\x85\0\0\0\0hello";
        for cut in 0..=text.len() {
            let mut texts = hear(&mut decoder, &mut pair, &text[..cut]);
            let is_within = (1..text.len()).contains(&cut);
            assert_eq!(decoder.context.is_some(), is_within, "{cut}");
            texts.extend(hear(&mut decoder, &mut pair, &text[cut..]));
            texts.extend(hear(&mut decoder, &mut pair, PONG));
            assert!(decoder.context.is_none(), "{cut}");
            assert_eq!(texts, ["hello"], "{cut}");
        }
        let twice = [PONG, text, text].concat();
        assert_eq!(hear(&mut decoder, &mut pair, &twice), ["hello", "hello"]);
        assert!(decoder.context.is_none());
    }

    #[test]
    fn a_fragment_waits_for_the_next_whatever_comes_between() {
        let mut pair = pair();
        let mut decoder = Decoder::new(b"\x01\x83\0\0\0\0hel".to_vec(), 1 << 20);
        assert!(hear(&mut decoder, &mut pair, PONG).is_empty());
        let last = b"\x80\x82\0\0\0\0lo";
        assert_eq!(hear(&mut decoder, &mut pair, last), ["hello"]);
        // A length in more bytes than it needs looks the same.
        let mut decoder = Decoder::new(Vec::new(), 1 << 20);
        let long = b"\x81\xFE\0\x02\0\0\0\0hi\x81";
        assert_eq!(hear(&mut decoder, &mut pair, long), ["hi"]);
        assert_eq!(hear(&mut decoder, &mut pair, b"\x82\0\0\0\0ho"), ["ho"]);
    }
}
