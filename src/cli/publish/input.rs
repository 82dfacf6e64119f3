//! The lines to publish, as they come: a terminal or a pipe may take its time.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// A longer line is refused here; common servers take much less.
const MAX_LINE_BYTES: usize = 16 << 20;

/// Lines of standard input, or the one text of the command line.
pub(super) struct Lines {
    source: Source,
    /// Read and not yet taken.
    buffer: Vec<u8>,
    /// Where in it the next line starts.
    start: usize,
    /// Up to where it has no line end.
    searched: usize,
    taken: u64,
}

enum Source {
    Open(File),
    Ended,
    Text(String),
}

/// What is next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Line(String),
    /// More has to be read first.
    Unread,
    End,
    /// No message can be made of it; what comes after it is not looked at.
    Wrong(String),
}

impl Lines {
    pub(super) fn of_text(text: String) -> Self {
        Self::of(Source::Text(text))
    }

    pub(super) fn of_standard_input() -> Result<Self, String> {
        // Without the standard library's buffer: what is in it, no poll announces.
        let file = io::stdin().as_fd().try_clone_to_owned();
        let file = file.map_err(|error| format!("no standard input: {error}"))?;
        Ok(Self::of(Source::Open(file.into())))
    }

    fn of(source: Source) -> Self {
        Self {
            source,
            buffer: Vec::new(),
            start: 0,
            searched: 0,
            taken: 0,
        }
    }

    /// How many lines were taken: the number of the last.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Takes the next line, without its end (`\n` or `\r\n`). Reads nothing.
    pub(super) fn next(&mut self) -> Next {
        match &mut self.source {
            Source::Text(text) => {
                let text = std::mem::take(text);
                self.source = Source::Ended;
                self.taken = 1;
                return Next::Line(text);
            }
            Source::Open(_) | Source::Ended => {}
        }
        let found = self.buffer[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n');
        let end = match (found, &self.source) {
            (Some(at), _) => self.searched + at,
            (None, Source::Open(_)) if self.buffer.len() - self.start > MAX_LINE_BYTES => {
                let number = self.taken + 1;
                return Next::Wrong(format!(
                    "line {number} has more than {MAX_LINE_BYTES} bytes"
                ));
            }
            (None, Source::Open(_)) => {
                self.searched = self.buffer.len();
                return Next::Unread;
            }
            (None, _) if self.start == self.buffer.len() => return Next::End,
            (None, _) => self.buffer.len(),
        };
        let line = &self.buffer[self.start..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let number = self.taken + 1;
        let next = match str::from_utf8(line) {
            Ok(line) => Next::Line(line.to_owned()),
            Err(error) => {
                let byte = error.valid_up_to() + 1;
                return Next::Wrong(format!("line {number} is not UTF-8 (byte {byte})"));
            }
        };
        self.taken = number;
        self.start = (end + 1).min(self.buffer.len());
        self.searched = self.start;
        next
    }

    /// What to wait for before [`Self::read`], if there may be more.
    pub(super) fn open(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::Open(file) => Some(file.as_fd()),
            Source::Ended | Source::Text(_) => None,
        }
    }

    /// Reads once; blocks when there is nothing.
    pub(super) fn read(&mut self) -> Result<(), String> {
        let Source::Open(file) = &mut self.source else {
            return Ok(());
        };
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        let filled = self.buffer.len();
        self.buffer.resize(filled + CHUNK, 0);
        let result = file.read(&mut self.buffer[filled..]);
        self.buffer
            .truncate(filled + result.as_ref().map_or(0, |read| *read));
        match result {
            Ok(0) => self.source = Source::Ended,
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) => return Err(format!("cannot read standard input: {error}")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn all(bytes: &[u8]) -> Vec<Next> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("a file");
        std::io::Seek::rewind(&mut file).expect("a file");
        let mut lines = Lines::of(Source::Open(file));
        let mut found = Vec::new();
        loop {
            match lines.next() {
                Next::Unread => lines.read().expect("a file"),
                Next::Line(line) => found.push(Next::Line(line)),
                last => {
                    found.push(last);
                    return found;
                }
            }
        }
    }

    fn line(text: &str) -> Next {
        Next::Line(text.to_owned())
    }

    #[test]
    fn lines_end_with_a_newline_or_with_the_input() {
        assert_eq!(all(b""), [Next::End]);
        assert_eq!(
            all(b"a\r\n\nb"),
            [line("a"), line(""), line("b"), Next::End]
        );
        assert_eq!(all(b"a\n"), [line("a"), Next::End]);
        // Longer than a read, and a character cut by it.
        let long = format!("{}é", "x".repeat(CHUNK - 1));
        let twice = format!("{long}\n{long}\n");
        assert_eq!(all(twice.as_bytes()), [line(&long), line(&long), Next::End]);
    }

    #[test]
    fn a_line_that_is_no_message_is_named_and_ends_it() {
        let wrong = |sentence: &str| Next::Wrong(sentence.to_owned());
        let found = all(b"a\nb\xff\nc\n");
        assert_eq!(found, [line("a"), wrong("line 2 is not UTF-8 (byte 2)")]);
        let found = all(&vec![b'x'; MAX_LINE_BYTES + CHUNK + 1]);
        assert_eq!(found, [wrong("line 1 has more than 16777216 bytes")]);
    }
}
