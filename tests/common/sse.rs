//! An `EventSource` (HTML standard, section 9.2) that gives up at the deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::{DEADLINE, uninterrupted};

/// An open event stream.
pub struct Sse {
    pub stream: TcpStream,
    /// The response's head.
    pub head: String,
    /// What the client would name when it comes back.
    pub last_event_id: String,
    /// Milliseconds, as the server wants it.
    pub retry: Option<u64>,
    /// Comments that came so far.
    pub comments: Vec<String>,
    buffer: Vec<u8>,
    /// So many bytes of it are no end of anything.
    searched: usize,
}

/// What a look at a stream gave.
pub enum Polled {
    Event(Event),
    Nothing,
    End,
}

/// What an `EventSource` would give to its page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub id: String,
    pub data: String,
}

impl Event {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).expect("JSON")
    }
}

impl Sse {
    /// Joins `/api/sse/{channel}`; `channel` is put into the path as it is.
    pub fn subscribe(address: SocketAddr, channel: &str) -> Self {
        Self::open(address, &format!("/api/sse/{channel}"))
    }

    /// Joins `/sse/{feed}`.
    pub fn subscribe_feed(address: SocketAddr, feed: &str) -> Self {
        Self::open(address, &format!("/sse/{feed}"))
    }

    pub fn open(address: SocketAddr, path: &str) -> Self {
        Self::open_with(address, path, "")
    }

    /// As an `EventSource` comes back: with the last id it has.
    pub fn come_back(address: SocketAddr, path: &str, last_event_id: &str) -> Self {
        Self::open_with(
            address,
            path,
            &format!("Last-Event-ID: {last_event_id}\r\n"),
        )
    }

    /// `headers` are whole lines.
    pub fn open_with(address: SocketAddr, path: &str, headers: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the server accepts");
        Self::on(stream, path, headers)
    }

    pub fn on(mut stream: TcpStream, path: &str, headers: &str) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{headers}\r\n"
        );
        stream
            .write_all(request.as_bytes())
            .expect("the server takes bytes");
        let mut sse = Self {
            stream,
            head: String::new(),
            last_event_id: String::new(),
            retry: None,
            comments: Vec::new(),
            buffer: Vec::new(),
            searched: 0,
        };
        sse.head = sse.until(b"\r\n\r\n").expect("a head");
        assert!(sse.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", sse.head);
        sse
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// The next event; comments and ids that come alone are noted and skipped.
    pub fn next_event(&mut self) -> Event {
        self.try_event().expect("an event before the end")
    }

    /// The next event's JSON.
    pub fn next(&mut self) -> Value {
        self.next_event().json()
    }

    /// The next event, a message, of which this is the `data`.
    pub fn next_message(&mut self) -> Value {
        let event = self.next_event();
        let mut frame = event.json();
        assert_eq!(frame["type"], "message", "{frame}");
        assert_eq!(frame["data"]["id"].to_string(), event.id, "{frame}");
        frame["data"].take()
    }

    /// The next event; `None` when the stream ends between two.
    pub fn try_event(&mut self) -> Option<Event> {
        loop {
            let block = self.until(b"\n\n")?;
            if let Some(event) = self.take(&block) {
                return Some(event);
            }
        }
    }

    /// Reads one comment or event, whatever comes first, and returns how many comments there are.
    pub fn comments_after_next(&mut self) -> usize {
        let block = self.until(b"\n\n").expect("something before the end");
        self.take(&block);
        self.comments.len()
    }

    fn take(&mut self, block: &str) -> Option<Event> {
        let mut data: Option<String> = None;
        for line in block.trim_end().lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" => self.comments.push(value.to_owned()),
                "id" => self.last_event_id = value.to_owned(),
                "retry" => self.retry = Some(value.parse().expect("milliseconds")),
                "data" => match &mut data {
                    Some(data) => data.extend(["\n", value]),
                    None => data = Some(value.to_owned()),
                },
                other => panic!("a field {other:?} in {block:?}"),
            }
        }
        data.map(|data| Event {
            id: self.last_event_id.clone(),
            data,
        })
    }

    /// What comes up to and with this; `None` when the stream ends before its first byte.
    fn until(&mut self, end: &[u8]) -> Option<String> {
        loop {
            if let Some(block) = self.buffered(end) {
                return Some(block);
            }
            match self.fill() {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => panic!("nothing before the deadline: {error}"),
            }
        }
    }

    /// The next event of a socket that does not block, if it is there.
    pub fn poll_event(&mut self) -> Polled {
        loop {
            if let Some(block) = self.buffered(b"\n\n") {
                if let Some(event) = self.take(&block) {
                    return Polled::Event(event);
                }
                continue;
            }
            match self.fill() {
                Ok(0) => return Polled::End,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Polled::Nothing,
                Err(error) => panic!("the stream is lost: {error}"),
            }
        }
    }

    fn buffered(&mut self, end: &[u8]) -> Option<String> {
        let found = self.buffer[self.searched..]
            .windows(end.len())
            .position(|window| window == end);
        let Some(at) = found else {
            self.searched = self.buffer.len().saturating_sub(end.len());
            return None;
        };
        let bytes = self.buffer.drain(..self.searched + at + end.len());
        let block = String::from_utf8(bytes.collect()).expect("UTF-8");
        self.searched = 0;
        Some(block)
    }

    /// Reads once; 0 at the end, which is never in the middle of something.
    fn fill(&mut self) -> io::Result<usize> {
        // Little at a time: what is read ahead is out of the server's sight.
        let mut bytes = [0; 1024];
        match uninterrupted(|| self.stream.read(&mut bytes)) {
            Ok(0) => {
                let rest = String::from_utf8_lossy(&self.buffer);
                assert!(rest.is_empty(), "the stream ends in the middle of {rest:?}");
                Ok(0)
            }
            Ok(n) => {
                self.buffer.extend_from_slice(&bytes[..n]);
                Ok(n)
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(0),
            Err(error) => Err(error),
        }
    }
}
