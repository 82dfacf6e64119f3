//! The way from a client's outbox to its socket, for whoever holds its lock.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::time::Instant;

use super::End;
use crate::frame::Chunk;
use crate::stream::Stream;

/// Chunks gathered into one write.
pub(super) const MAX_SLICES: usize = 16;

/// What is on its way to the socket.
#[derive(Debug)]
pub(super) struct Writer {
    /// Taken from the outbox or past it, not wholly written: of the first one `written` bytes are.
    pub(super) unsent: VecDeque<Chunk>,
    written: usize,
    /// The last word is among `unsent`, or written.
    pub(super) closing: bool,
    /// When the socket refused a byte; `None` once it has taken one.
    pub(super) stalled_since: Option<Instant>,
    pub(super) end: Option<End>,
}

/// What one write did.
pub(super) enum Written {
    /// So many bytes of the chunks were taken.
    Some(usize),
    /// Nothing was left: the socket has everything.
    All,
}

impl Writer {
    /// A writer that sends `first`, if there is any, before anything of the outbox.
    pub(super) fn new(first: Chunk) -> Self {
        let first = Some(first).filter(|first| !first.is_empty());
        Self {
            unsent: first.into_iter().collect(),
            written: 0,
            closing: false,
            stalled_since: None,
            end: None,
        }
    }

    /// Whether the socket has everything that was taken up, and may have more.
    pub(super) fn is_idle(&self) -> bool {
        self.unsent.is_empty() && !self.closing && self.end.is_none()
    }

    /// Writes a chunk when [`Self::is_idle`]; returns how many bytes are left for [`Self::write`],
    /// which meets the error, too, if there was one.
    pub(super) fn write_first(&mut self, mut stream: &Stream, chunk: &Chunk) -> usize {
        let sent = match stream.has_unsent() {
            true => 0,
            false => stream.write(chunk.bytes()).unwrap_or(0),
        };
        let left = chunk.len() - sent;
        if left > 0 {
            self.unsent.push_back(chunk.clone());
            self.written = sent;
        }
        left
    }

    /// One write of several chunks, once nothing of those before waits in the stream.
    pub(super) fn write(&mut self, mut stream: &Stream) -> io::Result<Written> {
        if stream.push()? > 0 {
            self.stalled_since = None;
            return Ok(Written::Some(0));
        }
        if self.unsent.is_empty() {
            self.stalled_since = None;
            return Ok(Written::All);
        }
        let sent = if self.unsent.len() == 1 {
            stream.write(&self.unsent[0].bytes()[self.written..])?
        } else {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES + 1];
            for (slice, chunk) in slices.iter_mut().zip(&self.unsent) {
                *slice = IoSlice::new(chunk.bytes());
            }
            slices[0].advance(self.written);
            stream.write_vectored(&slices[..self.unsent.len().min(MAX_SLICES + 1)])?
        };
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.stalled_since = None;
        self.written += sent;
        while let Some(first) = self.unsent.front()
            && self.written >= first.len()
        {
            self.written -= first.len();
            self.unsent.pop_front();
        }
        Ok(Written::Some(sent))
    }
}
