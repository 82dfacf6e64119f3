//! Messages over one WebSocket, a window of them waiting for their acknowledgement.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};
use threadcast::protocol::Channel;

use super::super::note;
use super::super::waiting::{Stop, wait};
use super::Common;
use super::input::{Lines, Next};
use super::progress::Progress;
use crate::client::{
    Backoff, Failure, Heard, KeepAlive, Remote, Retry, Socket, percent_encode, shown,
};

/// Messages waiting for their acknowledgement; the server works on 32 of one publisher.
const WINDOW: usize = 64;

/// Their bytes, unless it is one that is longer.
const WINDOW_BYTES: usize = 256 << 10;

/// A line that a server might find too long is alone in the window: nothing behind it was sent
/// when it is refused.
const LONG: usize = 16 << 10;

/// A signal's sentence.
const INTERRUPTED: &str = "interrupted";

/// A connection and everything that outlives it.
pub(super) struct Publisher {
    remote: Remote,
    keep_alive: KeepAlive,
    path: String,
    common: Common,
    lines: Lines,
    /// Read, and without room in the window yet.
    next: Option<Sent>,
    /// Why no further line is taken.
    ended: Option<Ended>,
    /// Sent and neither acknowledged nor refused, in order.
    window: VecDeque<Sent>,
    acknowledged: u64,
    /// The line sent last.
    sent: u64,
    /// Refusals that do not say of what.
    unnamed: usize,
    prints_ids: bool,
    retries: bool,
    progress: Progress,
    stop: Stop,
}

/// A message on its way.
struct Sent {
    /// Of its line, which is its `ref`.
    number: u64,
    frame: String,
    /// The server could not take it now, and may later.
    is_put_off: bool,
}

enum Ended {
    AtTheEnd,
    /// A sentence that begins the report.
    Failed(String),
}

#[derive(Serialize)]
struct Message<'a> {
    r#type: &'static str,
    #[serde(flatten)]
    common: &'a Common,
    content: &'a str,
    r#ref: u64,
}

/// Acks and errors; other frames have neither name nor number of ours.
#[derive(Deserialize)]
struct Answer {
    r#type: String,
    r#ref: Option<u64>,
    id: Option<u64>,
    code: Option<String>,
    detail: Option<String>,
}

impl Publisher {
    pub(super) fn new(
        remote: Remote,
        keep_alive: KeepAlive,
        channel: &Channel,
        common: Common,
        lines: Lines,
        stop: Stop,
    ) -> Self {
        Self {
            remote,
            keep_alive,
            path: format!("/api/ws/{}", percent_encode(channel.as_str())),
            common,
            lines,
            next: None,
            ended: None,
            window: VecDeque::with_capacity(WINDOW),
            acknowledged: 0,
            sent: 0,
            unnamed: 0,
            prints_ids: false,
            retries: false,
            progress: Progress::new(),
            stop,
        }
    }

    pub(super) fn printing_ids(self, prints_ids: bool) -> Self {
        Self { prints_ids, ..self }
    }

    pub(super) fn retrying(self, retries: bool) -> Self {
        Self { retries, ..self }
    }

    /// Publishes all lines.
    ///
    /// # Errors
    /// The report for the user, when not all of them were acknowledged.
    pub(super) fn run(&mut self) -> Result<(), String> {
        let result = self.publish();
        self.progress.clear();
        match (result, self.ended.take()) {
            (Ok(()), Some(Ended::Failed(why))) => Err(self.report(&why)),
            (Ok(()), _) => Ok(()),
            (Err(why), None | Some(Ended::AtTheEnd)) => Err(self.report(&why)),
            (Err(why), Some(Ended::Failed(first))) => Err(self.report(&format!("{first}; {why}"))),
        }
    }

    /// Over as many connections as are allowed.
    fn publish(&mut self) -> Result<(), String> {
        let mut backoff = Backoff::default();
        loop {
            let mut connected = None;
            let Err(failure) = self.connection(&mut connected) else {
                return Ok(());
            };
            if !self.retries || failure.retry == Retry::Never {
                return Err(failure.sentence);
            }
            self.progress.clear();
            note(&format!("{}; trying again", failure.sentence));
            let pause = backoff.pause(failure.retry, connected);
            wait(&mut [PollFd::new(&self.stop, PollFlags::IN)], pause);
            if self.stop.has_come() {
                return Err(INTERRUPTED.to_owned());
            }
        }
    }

    fn connection(&mut self, connected: &mut Option<Instant>) -> Result<(), Failure> {
        let mut socket = Socket::open(&self.remote, &self.path, self.keep_alive)?;
        *connected = Some(Instant::now());
        // Those of the connection before come first, in their order.
        self.unnamed = 0;
        for sent in &mut self.window {
            sent.is_put_off = false;
            socket.queue(sent.frame.clone())?;
        }
        loop {
            // In this order: an answer makes room, and after a line nothing is left to do but wait.
            self.listen(&mut socket)?;
            self.fill(&mut socket)?;
            if self.window.is_empty() && self.next.is_none() && self.ended.is_some() {
                socket.close();
                return Ok(());
            }
            self.progress.show(self.acknowledged);
            let due = socket.keep_alive()?;
            socket.flush();
            self.wait(&socket, due)?;
        }
    }

    /// Sends lines while there is room for them.
    fn fill(&mut self, socket: &mut Socket) -> Result<(), Failure> {
        while self.take_line() {
            let Some(next) = self
                .next
                .take_if(|next| has_room(&self.window, next.frame.len()))
            else {
                return Ok(());
            };
            socket.queue(next.frame.clone())?;
            self.sent = next.number;
            self.window.push_back(next);
        }
        Ok(())
    }

    /// Whether there is a line to send.
    fn take_line(&mut self) -> bool {
        if self.next.is_none() && self.ended.is_none() {
            match self.lines.next() {
                Next::Line(content) => self.next = Some(self.message(&content)),
                Next::Unread => {}
                Next::End => self.ended = Some(Ended::AtTheEnd),
                Next::Wrong(why) => self.ended = Some(Ended::Failed(why)),
            }
        }
        self.next.is_some()
    }

    fn message(&self, content: &str) -> Sent {
        let number = self.lines.taken();
        let message = Message {
            r#type: "message",
            common: &self.common,
            content,
            r#ref: number,
        };
        Sent {
            number,
            frame: serde_json::to_string(&message).expect("strings and numbers have a JSON form"),
            is_put_off: false,
        }
    }

    /// Takes what has been answered.
    fn listen(&mut self, socket: &mut Socket) -> Result<(), Failure> {
        loop {
            match socket.next()? {
                Heard::Nothing => return Ok(()),
                Heard::Control => {}
                // The publisher hears its own channel, too.
                Heard::Text(text) if text.as_str().starts_with(r#"{"type":"message""#) => {}
                Heard::Text(text) => {
                    if let Ok(answer) = serde_json::from_str(text.as_str()) {
                        self.answered(answer)?;
                    }
                }
            }
        }
    }

    fn answered(&mut self, answer: Answer) -> Result<(), Failure> {
        let place = self
            .window
            .iter()
            .position(|sent| Some(sent.number) == answer.r#ref);
        match (&*answer.r#type, place) {
            ("ack", Some(place)) => {
                self.window.remove(place);
                self.acknowledged += 1;
                if let Some(id) = answer.id.filter(|_| self.prints_ids) {
                    // Nobody reads them any more: the messages still have to get there.
                    self.prints_ids = writeln!(io::stdout(), "{id}").is_ok();
                }
            }
            ("error", place) => self.refused(answer, place),
            _ => {}
        }
        self.name_the_unnamed();
        let put_off = self.window.iter().filter(|sent| sent.is_put_off).count();
        if put_off > 0 && put_off == self.window.len() {
            return Err(Failure {
                sentence: "the server is too busy to take more".to_owned(),
                retry: Retry::Soon,
            });
        }
        Ok(())
    }

    fn refused(&mut self, answer: Answer, place: Option<usize>) {
        let code = answer.code.unwrap_or_default();
        let is_passing = matches!(&*code, "store_unavailable" | "rate_limited");
        let detail = answer.detail.unwrap_or_default();
        let reason = format!("{}: {}", shown(&code), shown(&detail));
        match place {
            Some(place) if is_passing && self.retries => self.window[place].is_put_off = true,
            Some(place) => {
                let number = self.window.remove(place).map_or(0, |sent| sent.number);
                self.fail(format!("line {number} was refused ({reason})"));
            }
            None => {
                self.unnamed += 1;
                self.fail(format!("a line was refused ({reason})"));
            }
        }
    }

    /// When only refusals that say nothing are left, it is known whose they are.
    fn name_the_unnamed(&mut self) {
        if self.unnamed > 0 && self.unnamed >= self.window.len() {
            self.unnamed = 0;
            self.window.clear();
        }
    }

    /// The first reason counts, and no further line is sent.
    fn fail(&mut self, why: String) {
        if !matches!(self.ended, Some(Ended::Failed(_))) {
            self.ended = Some(Ended::Failed(why));
        }
        self.next = None;
    }

    /// Waits for the server, a signal, or lines if there is room for them.
    fn wait(&mut self, socket: &Socket, timeout: Duration) -> Result<(), Failure> {
        let mut events = PollFlags::IN;
        events.set(PollFlags::OUT, socket.is_full());
        let mut fds = vec![
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::new(socket, events),
        ];
        let wants_more = self.next.is_none() && self.ended.is_none();
        let input = self.lines.open().filter(|_| wants_more);
        fds.extend(input.map(|input| PollFd::from_borrowed_fd(input, PollFlags::IN)));
        wait(&mut fds, timeout);
        let has_ended = !fds[0].revents().is_empty();
        // An end or an error are read, too.
        let has_input = fds.get(2).is_some_and(|input| !input.revents().is_empty());
        if has_ended {
            return Err(Failure {
                sentence: INTERRUPTED.to_owned(),
                retry: Retry::Never,
            });
        }
        if has_input && let Err(why) = self.lines.read() {
            self.fail(why);
        }
        Ok(())
    }

    /// What became of the lines.
    fn report(&self, why: &str) -> String {
        let acknowledged = match self.acknowledged {
            1 => "1 message was acknowledged".to_owned(),
            number => format!("{number} messages were acknowledged"),
        };
        let after = match self.sent {
            0 => "nothing was sent".to_owned(),
            number => format!("nothing after line {number} was sent"),
        };
        let (Some(first), Some(last)) = (self.window.front(), self.window.back()) else {
            return format!("{why}; {acknowledged}, {after}");
        };
        let lines = match (first.number, last.number) {
            (first, last) if first == last => format!("line {first} is"),
            (first, last) => {
                let number = self.window.len();
                format!("{number} lines from {first} to {last} are")
            }
        };
        format!("{why}; {acknowledged}, {lines} unknown (stored or not), {after}")
    }
}

fn has_room(window: &VecDeque<Sent>, bytes: usize) -> bool {
    let Some(last) = window.back() else {
        return true;
    };
    let taken: usize = window.iter().map(|sent| sent.frame.len()).sum();
    window.len() < WINDOW && bytes.max(last.frame.len()) < LONG && taken + bytes <= WINDOW_BYTES
}
