//! Standard output: many lines in a write, and nobody reading is an end, not an error.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// More than so many bytes are not held back.
const FULL: usize = 64 << 10;

/// Lines on their way to standard output.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) is_human: bool,
    file: File,
    buffer: Vec<u8>,
    /// A write failed: what it was to write is not there, and nothing may follow it.
    is_broken: bool,
}

/// Why nothing more can be printed.
#[derive(Debug)]
pub(super) enum Unprinted {
    /// Nobody reads it any more.
    Closed,
    Failed(String),
}

impl Output {
    pub(super) fn new(is_human: bool) -> Result<Self, String> {
        // Without the standard library's own buffer, which knows nothing of pauses.
        let file = io::stdout().as_fd().try_clone_to_owned();
        let file = file.map_err(|error| format!("no standard output: {error}"))?;
        Ok(Self {
            is_human,
            file: File::from(file),
            buffer: Vec::new(),
            is_broken: false,
        })
    }

    /// Prints a line, at the latest with the next [`Self::flush`].
    pub(super) fn line(&mut self, line: &str) -> Result<(), Unprinted> {
        self.buffer.extend_from_slice(line.as_bytes());
        self.buffer.push(b'\n');
        if self.buffer.len() >= FULL {
            return self.flush();
        }
        Ok(())
    }

    /// Writes what is held back. Blocks while its reader does not read.
    pub(super) fn flush(&mut self) -> Result<(), Unprinted> {
        if self.is_broken {
            return Err(Unprinted::Closed);
        }
        let result = self.file.write_all(&self.buffer);
        self.buffer.clear();
        result.map_err(|error| {
            self.is_broken = true;
            match error.kind() {
                ErrorKind::BrokenPipe => Unprinted::Closed,
                _ => Unprinted::Failed(format!("cannot write to standard output: {error}")),
            }
        })
    }

    /// Whether everything is written.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
