//! One HTTP publisher: a keep-alive connection, one `POST /api/messages` at a time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::time::Duration;

use httparse::Status;

use super::connect;
use super::plan::{Plan, STAMP_DIGITS, Schedule, filler, stamp};
use super::publishers::{PAUSE, Published};
use super::scanner::{number, shortened};

/// Pause after a refusal: whoever is told to come back later does.
const AFTER_REFUSAL: Duration = Duration::from_millis(10);

pub(super) struct HttpPublisher {
    connection: Connection,
    plan: Plan,
    index: usize,
    /// The whole request; channel and stamp are written over before each call.
    request: Vec<u8>,
    channel: Range<usize>,
    stamp: Range<usize>,
}

impl HttpPublisher {
    pub(super) fn connect(plan: Plan, index: usize) -> Result<Self, String> {
        let socket = connect::tcp(plan.address)?;
        let name = plan.channels.name(0);
        let before_channel = r#"{"channel_id":""#;
        let before_stamp = format!(r#"{before_channel}{name}","author":"bench","content":""#);
        let filler = filler(plan.content_bytes);
        let body = format!(r#"{before_stamp}{:0STAMP_DIGITS$}{filler}"}}"#, 0);
        let head = format!(
            "POST /api/messages HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            plan.address,
            body.len()
        );
        let channel = head.len() + before_channel.len();
        let stamp = head.len() + before_stamp.len();
        Ok(Self {
            connection: Connection {
                socket,
                buffer: Vec::with_capacity(4096),
                chunk: vec![0; 64 << 10],
            },
            plan,
            index,
            channel: channel..channel + name.len(),
            stamp: stamp..stamp + STAMP_DIGITS,
            request: (head + &body).into_bytes(),
        })
    }

    /// Publishes until `end`, to all channels in turn.
    pub(super) fn run(
        mut self,
        mut published: Published,
        mut schedule: Schedule,
        end: u64,
    ) -> Published {
        let channels = self.plan.channels;
        let mut channel = self.index % channels.count;
        while schedule.due().max(self.plan.clock.now()) < end {
            self.plan.clock.sleep_until(schedule.due());
            if !published.may_publish() {
                std::thread::sleep(PAUSE);
                continue;
            }
            schedule.count();
            if channels.count > 1 {
                self.request[self.channel.clone()]
                    .copy_from_slice(channels.name(channel).as_bytes());
            }
            let sent = self.plan.clock.now();
            stamp(&mut self.request[self.stamp.clone()], sent);
            match self.connection.exchange(&self.request) {
                Ok((200, body)) => {
                    let now = self.plan.clock.now();
                    match id(&body) {
                        Some(id) => published.acknowledge(channel, id, sent, now),
                        None => published
                            .refuse(|| format!("an answer without an id: {}", shortened(&body))),
                    }
                }
                Ok((status, body)) => {
                    published.refuse(|| format!("status {status}: {}", shortened(&body)));
                    std::thread::sleep(AFTER_REFUSAL);
                }
                Err(error) => {
                    published.failure = Some(format!("HTTP publisher {}: {error}", self.index));
                    break;
                }
            }
            channel = (channel + self.plan.publishers) % channels.count;
        }
        published
    }
}

/// The id in the answer; no other text in it can look like one, as the content is ours.
fn id(body: &[u8]) -> Option<u64> {
    const BEFORE_ID: &[u8] = b"\"id\":";
    let at = body
        .windows(BEFORE_ID.len())
        .position(|window| window == BEFORE_ID)?;
    let (id, _) = number(&body[at + BEFORE_ID.len()..]);
    (id > 0).then_some(id)
}

struct Connection {
    socket: TcpStream,
    /// What has arrived of the answer.
    buffer: Vec<u8>,
    chunk: Vec<u8>,
}

impl Connection {
    /// Sends a request and reads the whole answer: its status and body.
    fn exchange(&mut self, request: &[u8]) -> Result<(u16, Vec<u8>), String> {
        self.socket
            .write_all(request)
            .map_err(|error| format!("can't send a request: {error}"))?;
        self.buffer.clear();
        loop {
            match self.socket.read(&mut self.chunk) {
                Ok(0) => return Err("the server closed the connection".to_owned()),
                Ok(read) => self.buffer.extend_from_slice(&self.chunk[..read]),
                Err(error) => return Err(format!("no answer: {error}")),
            }
            if let Some(answer) = response(&self.buffer)? {
                return Ok(answer);
            }
        }
    }
}

/// Status and body of an answer; `None` when it is not complete.
fn response(bytes: &[u8]) -> Result<Option<(u16, Vec<u8>)>, String> {
    let fault = |error: &str| format!("no HTTP answer ({error}): {}", shortened(bytes));
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let Status::Complete(length) = head
        .parse(bytes)
        .map_err(|error| fault(&error.to_string()))?
    else {
        return Ok(None);
    };
    let header = |name: &str| {
        head.headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))
    };
    let status = head.code.unwrap_or_default();
    let rest = &bytes[length..];
    if header("transfer-encoding").is_some() {
        let body = chunked(rest).map_err(fault)?;
        return Ok(body.map(|body| (status, body)));
    }
    let length = header("content-length")
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
        .ok_or_else(|| fault("no length"))?;
    match rest.len() {
        arrived if arrived < length => Ok(None),
        arrived if arrived == length => Ok(Some((status, rest.to_vec()))),
        _ => Err(fault("more bytes than announced")),
    }
}

/// The body in chunks that have all arrived (RFC 9112, 7.1, without trailers).
fn chunked(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    let mut body = Vec::new();
    loop {
        let Status::Complete((start, length)) =
            httparse::parse_chunk_size(bytes).map_err(|_| "invalid chunk size")?
        else {
            return Ok(None);
        };
        let end = start + usize::try_from(length).map_err(|_| "a chunk of impossible length")?;
        let Some(chunk) = bytes.get(start..end) else {
            return Ok(None);
        };
        let Some(line_end) = bytes.get(end..end + 2) else {
            return Ok(None);
        };
        if line_end != b"\r\n" {
            return Err("no line end after a chunk");
        }
        if length == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(chunk);
        bytes = &bytes[end + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_when_its_last_byte_has_arrived() {
        let body = br#"{"success":true,"message":{"id":42}}"#;
        let whole = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 36\r\nX: y\r\n\r\n",
            &body[..],
        ]
        .concat();
        let (first, second) = body.split_at(10);
        let chunked = [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n",
            first,
            b"\r\n1A\r\n",
            second,
            b"\r\n0\r\n\r\n",
        ]
        .concat();
        for bytes in [whole, chunked] {
            for end in 0..bytes.len() {
                assert_eq!(response(&bytes[..end]), Ok(None), "after {end} bytes");
            }
            assert_eq!(response(&bytes), Ok(Some((200, body.to_vec()))));
        }
        assert_eq!(id(body), Some(42));
        assert_eq!(id(b"{\"success\":false}"), None);
    }

    #[test]
    fn bytes_beyond_the_answer_and_answers_without_length_are_errors() {
        for bytes in [
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
            "HTTP/1.1 200 OK\r\n\r\n",
            "SMTP\r\n",
        ] {
            assert!(response(bytes.as_bytes()).is_err(), "{bytes}");
        }
    }
}
