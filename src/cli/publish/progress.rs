//! How far it is, on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Nobody reads faster.
const INTERVAL: Duration = Duration::from_millis(250);

/// A line on standard error that is written again and again; nothing where that is no terminal.
pub(super) struct Progress {
    start: Instant,
    shown: Instant,
    is_terminal: bool,
    has_line: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            shown: now,
            is_terminal: io::stderr().is_terminal(),
            has_line: false,
        }
    }

    pub(super) fn show(&mut self, acknowledged: u64) {
        if self.is_terminal && self.shown.elapsed() >= INTERVAL {
            self.shown = Instant::now();
            self.has_line = true;
            let rate = acknowledged as f64 / self.start.elapsed().as_secs_f64();
            let _ = write!(io::stderr(), "\r\x1b[K{acknowledged} messages, {rate:.0}/s");
        }
    }

    /// Makes room for other lines.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.has_line) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
