//! What clients say: bytes of a WebSocket decoded as the server does it, the frames in them,
//! and the states that publishers send.
#![no_main]

use std::io::{self, Read, Write};

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use threadcast::protocol::{ClientFrame, State, Topic};
use tungstenite::Message;
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};

/// As the server's `server::socket::decoder`, which nobody outside can call.
const READ_BUFFER: usize = 2 << 10;
const MAX_FRAME: usize = 64 << 10;

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let cut = usize::from(cut) % (bytes.len() + 1);
    let texts = decode(&[bytes]);
    assert_eq!(
        texts,
        decode(&[&bytes[..cut], &bytes[cut..]]),
        "cut at {cut}"
    );
    // Bytes that are no frames may be what is in one, or two states.
    let as_text = str::from_utf8(bytes).ok().map(str::to_owned);
    for text in texts.iter().chain(&as_text) {
        frame(text);
    }
    states(&bytes[..cut], &bytes[cut..]);
    states(bytes, bytes);
});

/// The texts in a client's bytes, as far as they can be read.
fn decode(reads: &[&[u8]]) -> Vec<String> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .max_message_size(Some(MAX_FRAME))
        .max_frame_size(Some(MAX_FRAME));
    let early = reads[0].to_vec();
    let mut context = WebSocketContext::from_partially_read(early, Role::Server, Some(config));
    let mut rest = Rest(reads[1..].concat());
    let mut texts = Vec::new();
    // A socket that has nothing more now may have later: the server asks again.
    while let Ok(message) = context.read(&mut rest) {
        match message {
            Message::Text(text) => texts.push(text.as_str().to_owned()),
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Binary(_) | Message::Close(_) | Message::Frame(_) => break,
        }
    }
    texts
}

fn frame(text: &str) {
    for topic in [
        Topic::Channel("lab".parse().expect("a channel")),
        Topic::Feed("workflows".parse().expect("a feed")),
    ] {
        match ClientFrame::parse(text, &topic) {
            Ok(ClientFrame::Message(draft, reference)) => {
                assert_eq!(Topic::Channel(draft.channel_id), topic);
                assert!(is_scalar(reference.as_ref()));
            }
            Ok(ClientFrame::Ping(_) | ClientFrame::ClientReady) => {}
            Err(error) => assert!(is_scalar(error.reference.as_ref())),
        }
    }
}

/// A `ref` is given back as it came: a string or a number.
fn is_scalar(reference: Option<&Value>) -> bool {
    reference.is_none_or(|reference| reference.is_string() || reference.is_number())
}

/// The text of a state is the state, and to be the same goes both ways.
fn states(one: &[u8], other: &[u8]) {
    let Ok(one) = State::parse(one) else { return };
    let again = State::parse(one.as_str().as_bytes()).expect("the text of a state is a state");
    assert_eq!(one.as_str(), again.as_str(), "nothing is left to take out");
    assert!(one.is_same(again.as_str()));
    if let Ok(other) = State::parse(other) {
        assert_eq!(one.is_same(other.as_str()), other.is_same(one.as_str()));
    }
}

/// The reading end of a socket; what tungstenite would say by itself goes nowhere.
struct Rest(Vec<u8>);

impl Read for Rest {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = buffer.len().min(self.0.len());
        buffer[..count].copy_from_slice(&self.0[..count]);
        self.0.drain(..count);
        Ok(count)
    }
}

impl Write for Rest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
