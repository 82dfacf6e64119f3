//! The reading side of a connection: whole requests out of whatever pieces arrive.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use super::body::{Chunks, too_large};
use super::{Framing, Head, Problem};
use crate::stream::Stream;

/// Bytes asked of the socket at first; most requests come whole. Small, because every idle
/// connection has this; more than the kilobyte that glibc keeps for the thread which freed it,
/// because a WebSocket has this once.
const READ_SIZE: usize = 1280;

/// Bytes asked of the socket at most, when more and more is there.
const MAX_READ_SIZE: usize = 64 << 10;

/// Bytes of a connection that arrived and were not used yet.
///
/// Holds no more than the longest head or body allowed, plus one read.
#[derive(Debug, Default)]
pub struct Incoming {
    buffer: Vec<u8>,
    timeout: Option<Duration>,
}

/// What waiting for a request gave.
#[derive(Debug)]
pub enum Received {
    /// A whole head.
    Head(Box<Head>),
    /// The client closed, or sent nothing in time: there is nobody to answer.
    Nothing,
}

impl Incoming {
    /// Waits for the next request head: `idle` for its first byte, then `limit` for the rest.
    /// Blocks for that long.
    ///
    /// # Errors
    /// 408, 431, and whatever [`Head::parse`] refuses.
    #[inline(never)]
    pub fn head(
        &mut self,
        stream: &Stream,
        idle: Duration,
        limit: Duration,
        max_bytes: usize,
    ) -> Result<Received, Problem> {
        // RFC 9112, section 2.2: empty lines before the request line are ignored.
        while self.buffer.is_empty() || self.skip_empty_lines() {
            if !matches!(self.fill(stream, idle), Ok(1..)) {
                return Ok(Received::Nothing);
            }
        }
        let deadline = Instant::now() + limit;
        loop {
            let end = Head::end(&self.buffer)?;
            if end.unwrap_or(self.buffer.len()) > max_bytes {
                return Err(Problem::new(
                    431,
                    format!("the request head has more than {max_bytes} bytes"),
                ));
            }
            if let Some(end) = end {
                let head = Head::parse(&self.buffer[..end]);
                self.consume(end);
                return head.map(|head| Received::Head(Box::new(head)));
            }
            match self.fill_until(stream, deadline) {
                Ok(0) => return Ok(Received::Nothing),
                Ok(_) => {}
                Err(error) if timed_out(&error) => {
                    return Err(Problem::new(
                        408,
                        format!("the request head was not complete within {limit:?}"),
                    ));
                }
                Err(_) => return Ok(Received::Nothing),
            }
        }
    }

    /// Waits for the whole body; `None` when the client closed before its end.
    /// Blocks for up to `limit`.
    ///
    /// # Errors
    /// 400, 408 or 413.
    #[inline(never)]
    pub fn body(
        &mut self,
        stream: &Stream,
        framing: Framing,
        limit: Duration,
        max_bytes: usize,
    ) -> Result<Option<Vec<u8>>, Problem> {
        let deadline = Instant::now() + limit;
        let mut chunks = Chunks::default();
        loop {
            match framing {
                Framing::None => return Ok(Some(Vec::new())),
                Framing::Length(length) if length > max_bytes => return Err(too_large(max_bytes)),
                Framing::Length(length) if self.buffer.len() >= length => {
                    let body = self.buffer[..length].to_vec();
                    self.consume(length);
                    return Ok(Some(body));
                }
                Framing::Length(_) => {}
                Framing::Chunked => {
                    let (used, complete) = chunks.decode(&self.buffer, max_bytes)?;
                    self.consume(used);
                    if complete {
                        return Ok(Some(chunks.into_body()));
                    }
                }
            }
            match self.fill_until(stream, deadline) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if timed_out(&error) => {
                    return Err(Problem::new(
                        408,
                        format!("the request body was not complete within {limit:?}"),
                    ));
                }
                Err(_) => return Ok(None),
            }
        }
    }

    /// Whether bytes are there that no request has used yet.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// What arrived behind the last request, for the protocol that the connection changes to.
    pub fn into_rest(self) -> Vec<u8> {
        self.buffer
    }

    /// Drops leading CRLFs; `true` when nothing else has arrived.
    fn skip_empty_lines(&mut self) -> bool {
        let blank = self
            .buffer
            .chunks(2)
            .take_while(|pair| pair == b"\r\n")
            .count()
            * 2;
        self.consume(blank);
        self.buffer.is_empty() || self.buffer == b"\r"
    }

    fn consume(&mut self, bytes: usize) {
        self.buffer.drain(..bytes);
    }

    fn fill_until(&mut self, stream: &Stream, deadline: Instant) -> io::Result<usize> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.fill(stream, left)
    }

    fn fill(&mut self, stream: &Stream, timeout: Duration) -> io::Result<usize> {
        self.set_timeout(stream, timeout)?;
        let begin = Instant::now();
        let before = self.buffer.len();
        self.buffer
            .resize(before + before.clamp(READ_SIZE, MAX_READ_SIZE), 0);
        let result = loop {
            match (&*stream).read(&mut self.buffer[before..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    // By a signal, with which the time does not begin anew.
                    let left = timeout.saturating_sub(begin.elapsed());
                    if left.is_zero() {
                        break Err(io::ErrorKind::TimedOut.into());
                    }
                    if let Err(error) = self.set_timeout(stream, left) {
                        break Err(error);
                    }
                }
                result => break result,
            }
        };
        self.buffer
            .truncate(before + result.as_ref().copied().unwrap_or(0));
        result
    }

    /// One system call less per request: the timeout of an idle connection seldom changes.
    fn set_timeout(&mut self, stream: &Stream, timeout: Duration) -> io::Result<()> {
        if self.timeout != Some(timeout) {
            stream.set_read_timeout(Some(timeout))?;
            self.timeout = Some(timeout);
        }
        Ok(())
    }
}

fn timed_out(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
