//! The event stream's session: one thread that takes over its client's outbox when the socket
//! is full, and notices when the client goes (HTML standard, section 9.2, Server-Sent Events).
//!
//! The response has no length and no chunks: it ends with its connection (RFC 9112, section
//! 6.3), so that whoever drains the outbox writes events as they are, and HTTP/1.0 will do.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::subscriber::{CatchUp, Ended, Registered, Subscribers, start};
use crate::access::{Peer, Stay};
use crate::config::Limits;
use crate::frame::Chunk;
use crate::http::{Head, Problem, Reply};
use crate::journal::Journal;
use crate::manager::{Accepted, Kind};
use crate::protocol::{MessageId, Start, Topic};
use crate::stream::Stream;

/// Time between two comment lines at most: proxies and clients drop a connection on which
/// nothing comes (HTML standard, section 9.2.7, which says "every 15 seconds or so").
const COMMENT_INTERVAL: Duration = Duration::from_secs(15);

/// How long an `EventSource` waits before it comes back, in milliseconds. Browsers choose 3 to
/// 5 s by themselves.
const RETRY_MS: u32 = 1000;

/// Bytes that a client may send behind its request, which nobody wants; with more it is cut off.
const MAX_HEARD_BYTES: usize = 64 << 10;

/// What every session works with.
pub(super) struct Streams {
    /// What it has in common with those of WebSockets.
    pub(super) subscribers: Subscribers,
    /// Who knows the newest message.
    pub(super) journal: Arc<Journal>,
}

impl Streams {
    /// Answers with an event stream, or with its head alone: `None`.
    ///
    /// # Errors
    /// 400, 401, 403, 422 or 503, before anything was written.
    #[inline(never)]
    pub(super) fn begin(
        &self,
        head: Box<Head>,
        topic: Topic,
        peer: Peer,
        stream: &Arc<Stream>,
    ) -> Result<Option<Box<Session<'_>>>, Problem> {
        let stay = self.subscribers.admit(&peer, &topic)?;
        let start = match topic {
            Topic::Channel(_) => {
                let last_event_id = head.joined("last-event-id").filter(|id| !id.is_empty());
                start(head.query(), last_event_id.as_deref())?
            }
            // Every feed begins with its state, whatever the client had before.
            Topic::Feed(_) => Start::Live,
        };
        let mut answer = response_head(&head);
        if head.method == "HEAD" {
            // It fails only when there is nobody to tell.
            let _ = (&**stream).write_all(&answer);
            return Ok(None);
        }
        let (cursor, catch_up) = self.subscribers.begin(&topic, start, self.journal.head())?;
        // From before the registration: whoever comes back with it has missed nothing since.
        let begins = cursor.unwrap_or_else(|| self.subscribers.manager.offered_head());
        answer.extend_from_slice(&first_lines(&topic, begins));
        let accepted = Accepted {
            kind: Kind::EventStream,
            answer: Chunk::raw(answer),
        };
        let registered = self
            .subscribers
            .register(topic, peer, stream, accepted, cursor)?;
        notice_lost_peers(stream, &self.subscribers.limits);
        registered.client.drain();
        let session = Session::new(&self.subscribers, registered, catch_up, stay);
        Ok(Some(session))
    }
}

/// The head of the answer.
#[inline(never)]
fn response_head(head: &Head) -> Vec<u8> {
    let mut reply = Reply::new(200, "text/event-stream", Vec::new())
        .with_header("Cache-Control", "no-store")
        // nginx would keep events until its buffer is full.
        .with_header("X-Accel-Buffering", "no");
    // The door has let it in.
    if let Some(origin) = head.joined("origin").filter(|it| it.is_ascii()) {
        reply = reply.readable_by(&origin);
    }
    reply.into_endless_head()
}

/// What comes before the first event. A channel's `EventSource` that is cut off before its first
/// event names this id when it comes back; no event is made of an id alone.
fn first_lines(topic: &Topic, begins: MessageId) -> Vec<u8> {
    match topic {
        Topic::Channel(_) => format!("retry: {RETRY_MS}\nid: {begins}\n\n"),
        Topic::Feed(_) => format!("retry: {RETRY_MS}\n\n"),
    }
    .into_bytes()
}

/// There are no pongs: the kernel notices that nobody acknowledges the comments. By itself it
/// would take a quarter of an hour.
fn notice_lost_peers(stream: &Stream, limits: &Limits) {
    #[cfg(target_os = "linux")]
    {
        let timeout = (limits.write_timeout + limits.pong_timeout).as_millis();
        let timeout = u32::try_from(timeout).unwrap_or(u32::MAX);
        // Without it lost peers are noticed late.
        let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, timeout);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, limits);
}

/// A client that is sent events.
pub(super) struct Session<'a> {
    subscribers: &'a Subscribers,
    registered: Registered<'a>,
    catch_up: CatchUp,
    stay: Stay,
    interval: Duration,
    next_comment: Instant,
    /// Bytes that the client has sent.
    heard: usize,
}

impl<'a> Session<'a> {
    #[inline(never)]
    fn new(
        subscribers: &'a Subscribers,
        registered: Registered<'a>,
        catch_up: CatchUp,
        stay: Stay,
    ) -> Box<Self> {
        let interval = COMMENT_INTERVAL.min(subscribers.limits.ping_interval);
        Box::new(Self {
            subscribers,
            registered,
            catch_up,
            stay,
            interval,
            next_comment: Instant::now() + interval,
            heard: 0,
        })
    }

    /// Serves it until its end.
    #[expect(
        clippy::boxed_local,
        reason = "in the frame it would be a page of stack, of which none is given back"
    )]
    pub(super) fn serve(mut self: Box<Self>) {
        let ended = self.run();
        self.registered.end(ended);
    }

    #[inline(never)]
    fn run(&mut self) -> Ended {
        loop {
            let client = &self.registered.client;
            if let Some(ended) = self.subscribers.ended(client) {
                return ended;
            }
            self.subscribers
                .leave_if_not_allowed(client, &mut self.stay);
            self.comment();
            let client = &self.registered.client;
            self.subscribers.bring_missed(client, &mut self.catch_up);
            let until = self.next_comment;
            let until = until.saturating_duration_since(Instant::now());
            let timeout = self
                .subscribers
                .timeout(client, &self.catch_up, &self.stay, until);
            if client.wait(true, timeout) && !self.is_here() {
                return Ended::Gone;
            }
        }
    }

    /// Says that the stream is alive when it is time, unless there is enough to read.
    fn comment(&mut self) {
        let now = Instant::now();
        if self.next_comment > now {
            return;
        }
        self.next_comment = now + self.interval;
        let client = &self.registered.client;
        if !client.is_congested() && client.replies_waiting() == 0 {
            client.reply(Chunk::ping(b""));
        }
    }

    /// Drops what the client has sent; `false` when it is gone.
    #[inline(never)]
    fn is_here(&mut self) -> bool {
        let mut dropped = [0; 1024];
        match self.registered.client.stream().read(&mut dropped) {
            Ok(0) => false,
            Ok(n) => {
                self.heard += n;
                self.heard <= MAX_HEARD_BYTES
            }
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        }
    }
}
