//! Lines become messages on a WebSocket, over one connection or, with `--retry`, several.

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
use super::window::{Sent, Window};
use crate::client::{
    Backoff, Failure, Heard, KeepAlive, Remote, Retry, Socket, percent_encode, shown,
};

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
    window: Window,
    prints_ids: bool,
    retries: bool,
    progress: Progress,
    stop: Stop,
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
            window: Window::default(),
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
            (Ok(()), Some(Ended::Failed(why))) => Err(self.window.report(&why)),
            (Ok(()), _) => Ok(()),
            (Err(why), None | Some(Ended::AtTheEnd)) => Err(self.window.report(&why)),
            (Err(why), Some(Ended::Failed(first))) => {
                Err(self.window.report(&format!("{first}; {why}")))
            }
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
        for frame in self.window.frames_again() {
            socket.queue(frame.to_owned())?;
        }
        loop {
            // In this order: an answer makes room for lines, and there is nothing to wait for then.
            self.listen(&mut socket)?;
            self.fill(&mut socket)?;
            if self.window.is_empty() && self.next.is_none() && self.ended.is_some() {
                socket.close();
                return Ok(());
            }
            self.progress.show(self.window.acknowledged());
            let due = socket.keep_alive()?;
            socket.flush();
            self.wait(&socket, due)?;
        }
    }

    /// Sends lines while there is room for them.
    fn fill(&mut self, socket: &mut Socket) -> Result<(), Failure> {
        while self.take_line() {
            let Some(next) = self.next.take_if(|next| self.window.has_room(next)) else {
                return Ok(());
            };
            socket.queue(next.frame.clone())?;
            self.window.push(next);
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
        match &*answer.r#type {
            "ack" => {
                let is_ours = self.window.acknowledge(answer.r#ref);
                if let Some(id) = answer.id.filter(|_| is_ours && self.prints_ids) {
                    // Nobody reads them any more: the messages still have to get there.
                    self.prints_ids = writeln!(io::stdout(), "{id}").is_ok();
                }
            }
            "error" => self.refused(answer),
            _ => {}
        }
        if self.window.is_put_off() {
            return Err(Failure {
                sentence: "the server is too busy to take more".to_owned(),
                retry: Retry::Soon,
            });
        }
        Ok(())
    }

    fn refused(&mut self, answer: Answer) {
        let code = answer.code.unwrap_or_default();
        let is_passing = matches!(&*code, "store_unavailable" | "rate_limited");
        if is_passing && self.retries {
            return self.window.put_off(answer.r#ref);
        }
        let line = match self.window.refuse(answer.r#ref) {
            Some(number) => format!("line {number}"),
            None => "a line".to_owned(),
        };
        let detail = answer.detail.unwrap_or_default();
        self.fail(format!(
            "{line} was refused ({}: {})",
            shown(&code),
            shown(&detail)
        ));
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
}
