//! One subscriber: its connection, and what came over it.

use std::io::Write;
use std::net::TcpStream;

use serde_json::Value;

use super::arriving::Arriving;
use super::connect::{self, Open};
use super::tally::Tally;

/// Where a subscriber begins.
pub(super) struct Seat {
    pub(super) channel: usize,
    /// `None` for one that is still to connect, and then asks for what it has missed.
    pub(super) socket: Option<Open>,
    /// Reads nothing until the measured time is over.
    pub(super) is_stalled: bool,
}

/// One subscriber's connection and what came over it.
#[derive(Debug)]
pub(super) struct Subscriber {
    /// `None` while it is away.
    pub(super) socket: Option<TcpStream>,
    /// It asked for what it had missed and was not told yet that it has it.
    pub(super) is_coming_back: bool,
    /// Reads nothing for a while.
    pub(super) is_stalled: bool,
    /// Latencies count for messages published since it was last live.
    pub(super) live_since: u64,
    pub(super) channel: usize,
    /// The beginning of a frame whose end has not arrived.
    pub(super) tail: Vec<u8>,
    /// A long state of which the beginning has arrived; there is no tail then.
    pub(super) arriving: Option<Arriving>,
    pub(super) tally: Tally,
    /// The close code with which the server ended it.
    pub(super) closed: Option<u16>,
}

impl Subscriber {
    /// One that takes its seat; its ids are greater than `base`.
    pub(super) fn new(seat: Seat, base: u64) -> Self {
        let (socket, tail) = seat.socket.unzip();
        Self {
            socket,
            is_coming_back: false,
            is_stalled: seat.is_stalled,
            live_since: 0,
            channel: seat.channel,
            tail: tail.unwrap_or_default(),
            arriving: None,
            tally: Tally::after(base),
            closed: None,
        }
    }

    /// Whether this is the frame that ends what a subscriber has missed, where one is due.
    pub(super) fn has_caught_up(&mut self, payload: &[u8], now: u64) -> bool {
        if !self.is_coming_back {
            return false;
        }
        let frame: Value = serde_json::from_slice(payload).unwrap_or_default();
        let (true, Some(head)) = (frame["type"] == "caught_up", frame["head"].as_u64()) else {
            return false;
        };
        self.tally.caught_up(head);
        self.is_coming_back = false;
        self.live_since = now;
        true
    }

    /// Sends a control frame. It always fits: a subscriber sends nothing else. If the
    /// connection is gone, the next read tells.
    pub(super) fn send(&self, opcode: u8, payload: &[u8]) {
        let mut frame = Vec::with_capacity(16);
        connect::push_masked(&mut frame, opcode, payload);
        if let Some(mut socket) = self.socket.as_ref() {
            let _ = socket.write_all(&frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_promised_frame_makes_one_live() {
        let frame = r#"{"type":"caught_up","head":7}"#;
        let gap = r#"{"type":"gap","since":1,"oldest":2,"head":7,"reason":"retention"}"#;
        for (is_coming_back, frame, expected) in [
            (true, frame, true),
            (false, frame, false),
            (true, gap, false),
            (true, r#"{"type":"caught_up"}"#, false),
            (true, "{", false),
        ] {
            let seat = Seat {
                channel: 0,
                socket: None,
                is_stalled: false,
            };
            let mut subscriber = Subscriber {
                is_coming_back,
                live_since: u64::MAX,
                ..Subscriber::new(seat, 5)
            };
            let is_live = subscriber.has_caught_up(frame.as_bytes(), 9);
            assert_eq!(is_live, expected, "{frame}");
            let told = if expected { (9, 7) } else { (u64::MAX, 5) };
            assert_eq!((subscriber.live_since, subscriber.tally.last), told);
        }
    }
}
