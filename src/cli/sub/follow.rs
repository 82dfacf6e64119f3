//! Following a channel or feed over all losses of the connection.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use serde_json::value::RawValue;
use threadcast::protocol::{Channel, Feed};

use super::super::note;
use super::super::waiting::{Stop, wait};
use super::cursor::CursorFile;
use super::frame::{self, Frame, Shown};
use super::output::{Output, Unprinted};
use crate::client::{
    Backoff, Failure, Heard, KeepAlive, Remote, Retry, Socket, percent_encode, shown,
};

/// What is followed.
#[derive(Debug)]
pub(super) enum Topic {
    Channel(Channel),
    Feed(Feed),
}

/// Where in a channel the next connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// So many messages back. With 0 the server tells where that is, so that a connection
    /// that is lost before the first message loses nothing either.
    Last(u64),
    /// After this message.
    Since(u64),
}

/// A subscription, and everything that outlives its connections.
pub(super) struct Follower {
    pub(super) remote: Remote,
    pub(super) keep_alive: KeepAlive,
    pub(super) topic: Topic,
    pub(super) start: Start,
    pub(super) cursor: Option<CursorFile>,
    pub(super) output: Output,
    /// Messages that are still to be printed, if they are counted.
    pub(super) left: Option<usize>,
    pub(super) may_reconnect: bool,
    /// The frame printed last, of a feed: a new connection begins with it.
    pub(super) last_state: String,
    pub(super) stop: Stop,
}

/// Why a connection was left.
enum Left {
    /// A signal, the count, or nobody reads any more.
    Done,
    /// The server's doing.
    Server(Failure),
    /// Ours: a full disk.
    Own(String),
}

impl From<Failure> for Left {
    fn from(failure: Failure) -> Self {
        Self::Server(failure)
    }
}

impl From<Unprinted> for Left {
    fn from(unprinted: Unprinted) -> Self {
        match unprinted {
            Unprinted::Closed => Self::Done,
            Unprinted::Failed(sentence) => Self::Own(sentence),
        }
    }
}

impl Follower {
    /// Prints until a signal, the count or a closed pipe, over any number of connections.
    ///
    /// # Errors
    /// The sentence for the user.
    pub(super) fn run(&mut self) -> Result<(), String> {
        let mut backoff = Backoff::default();
        let mut told: Option<String> = None;
        loop {
            let mut connected = None;
            let left = self.connection(&mut connected, &mut told);
            self.settle()?;
            let failure = match left {
                Left::Done => return Ok(()),
                Left::Own(sentence) => return Err(sentence),
                Left::Server(failure) => failure,
            };
            if failure.retry == Retry::Never || !self.may_reconnect {
                return Err(failure.sentence);
            }
            // The same reason again and again is one line.
            if told.as_ref() != Some(&failure.sentence) {
                note(&format!("{}; trying again", failure.sentence));
                told = Some(failure.sentence);
            }
            if !self.rest(backoff.pause(failure.retry, connected)) {
                return Ok(());
            }
        }
    }

    /// One connection, until it ends.
    fn connection(&mut self, connected: &mut Option<Instant>, told: &mut Option<String>) -> Left {
        let mut socket = match Socket::open(&self.remote, &self.path(), self.keep_alive) {
            Ok(socket) => socket,
            Err(failure) => return failure.into(),
        };
        *connected = Some(Instant::now());
        if told.take().is_some() {
            note("connected");
        }
        let Err(left) = self.follow(&mut socket);
        if matches!(left, Left::Done) {
            socket.close();
        }
        left
    }

    fn follow(&mut self, socket: &mut Socket) -> Result<std::convert::Infallible, Left> {
        loop {
            match socket.next()? {
                Heard::Text(text) => {
                    self.take(text.as_str())?;
                    // However much comes without a pause.
                    if self.output.is_empty() {
                        self.save_if_due()?;
                        self.wait(None, Duration::ZERO)?;
                    }
                }
                Heard::Control => {}
                Heard::Nothing => {
                    self.output.flush()?;
                    self.save_if_due()?;
                    let due = socket.keep_alive()?;
                    socket.flush();
                    let cursor_due = self.cursor.as_ref().and_then(CursorFile::due);
                    self.wait(Some(socket), cursor_due.map_or(due, |other| due.min(other)))?;
                }
            }
        }
    }

    fn take(&mut self, text: &str) -> Result<(), Left> {
        let Ok(frame) = serde_json::from_str::<Frame<'_>>(text) else {
            note("the server sent something that is no frame of the protocol; it is left out");
            return Ok(());
        };
        if let Topic::Feed(feed) = &self.topic {
            let is_state = frame.kind == feed.frame_type() && text != self.last_state;
            let Some(rev) = frame.rev.filter(|_| is_state) else {
                return Ok(());
            };
            // `null` is a state, too.
            let state = frame.data.map_or("null", RawValue::get);
            let line = match self.output.is_human {
                true => frame::state_line(feed.as_str(), rev, state).into(),
                false => frame::one_line(text),
            };
            self.output.line(&line)?;
            self.last_state.clear();
            self.last_state.push_str(text);
            return self.counted();
        }
        match (&*frame.kind, frame.data, frame.head) {
            ("message", Some(data), _) => self.message(data.get()),
            ("caught_up", _, Some(head)) => {
                // Newer messages may have come before it.
                if !matches!(self.start, Start::Since(id) if id >= head) {
                    self.passed(head);
                }
                Ok(())
            }
            ("gap", _, Some(head)) => {
                note(&frame::gap_sentence(&frame));
                if frame.reason.as_deref() == Some("unknown_id") {
                    self.passed(head);
                }
                Ok(())
            }
            ("error", ..) => {
                let detail = frame.detail.unwrap_or_default();
                note(&format!("the server says: {}", shown(&detail)));
                Ok(())
            }
            // Newer servers may say more.
            _ => Ok(()),
        }
    }

    fn message(&mut self, data: &str) -> Result<(), Left> {
        let Ok(message) = serde_json::from_str::<Shown<'_>>(data) else {
            note("the server sent a message without an id; it is left out");
            return Ok(());
        };
        let line = match self.output.is_human {
            true => message.line().into(),
            false => frame::one_line(data),
        };
        self.output.line(&line)?;
        self.passed(message.id);
        self.counted()
    }

    /// Everything up to this message is printed, at the latest with the next flush.
    fn passed(&mut self, id: u64) {
        self.start = Start::Since(id);
        if let Some(cursor) = &mut self.cursor {
            cursor.advance(id);
        }
    }

    fn counted(&mut self) -> Result<(), Left> {
        if let Some(left) = &mut self.left {
            *left -= 1;
            if *left == 0 {
                return Err(Left::Done);
            }
        }
        Ok(())
    }

    fn save_if_due(&mut self) -> Result<(), Left> {
        match &mut self.cursor {
            Some(cursor) => cursor.save_if_due().map_err(Left::Own),
            None => Ok(()),
        }
    }

    /// Writes what is held back, and then how far that is.
    fn settle(&mut self) -> Result<(), String> {
        match self.output.flush() {
            Ok(()) => self.cursor.as_mut().map_or(Ok(()), CursorFile::save),
            // What could not be printed is not passed.
            Err(Unprinted::Closed) => Ok(()),
            Err(Unprinted::Failed(sentence)) => Err(sentence),
        }
    }

    /// Waits before a new attempt; `false` when there shall be none.
    fn rest(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if self.wait(None, left).is_err() {
                return false;
            }
            if Instant::now() >= until {
                return true;
            }
        }
    }

    /// Waits for the server, a signal or the end of whoever reads the output.
    fn wait(&self, socket: Option<&mut Socket>, timeout: Duration) -> Result<(), Left> {
        // Of an output only its end is of interest, and that is always told.
        let mut fds = vec![
            PollFd::new(&self.output, PollFlags::empty()),
            PollFd::new(&self.stop, PollFlags::IN),
        ];
        if let Some(socket) = &socket {
            let mut events = PollFlags::IN;
            events.set(PollFlags::OUT, socket.is_full());
            fds.push(PollFd::new(*socket, events));
        }
        wait(&mut fds, timeout);
        let is_unread = fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP);
        if is_unread || !fds[1].revents().is_empty() {
            return Err(Left::Done);
        }
        Ok(())
    }

    fn path(&self) -> String {
        match (&self.topic, self.start) {
            (Topic::Feed(feed), _) => format!("/ws/{feed}"),
            (Topic::Channel(channel), start) => {
                let name = percent_encode(channel.as_str());
                match start {
                    Start::Since(id) => format!("/api/ws/{name}?since={id}"),
                    Start::Last(number) => format!("/api/ws/{name}?last={number}"),
                }
            }
        }
    }
}
