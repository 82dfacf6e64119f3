//! The WebSocket session: one thread that reads what one client sends, and takes over its
//! outbox when its socket is full.
//!
//! tungstenite decodes. What it would answer by itself never reaches the socket; pongs and
//! closes go through the outbox like everything else, so nothing can come after a close.

mod catch_up;
mod decoder;
mod handshake;
mod heartbeat;
mod publishing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use rustix::net::sockopt::{set_socket_linger, set_socket_send_buffer_size};

use crate::access::{Access, On, Peer, Scope, Stay};
use crate::config::Limits;
use crate::frame::{Chunk, CloseCode};
use crate::http::{Head, Problem, linger};
use crate::journal::Journal;
use crate::manager::{Client, ConnectionManager, End, Unregistered};
use crate::protocol::{ClientFrame, Draft, FrameError, MessageId, ServerFrame, Topic};
use crate::store::Reader;
use crate::stream::Stream;
use crate::usage::Usage;
use catch_up::CatchUp;
use decoder::{Decoder, Heard};
use heartbeat::{Beat, Heartbeat};
use publishing::Publishing;

/// How long the peer may take to close its side once everything is said.
const LINGER: Duration = Duration::from_secs(2);

/// How long nobody is blamed for silence whose socket was full: what is in the kernel's buffers
/// then comes before a ping.
const SLOW_PATIENCE: Duration = Duration::from_secs(60);

/// How long a session that may not publish waits before it looks again.
const ROOM_INTERVAL: Duration = Duration::from_millis(10);

/// The kernel's buffer for a channel's subscriber (Linux takes it twice, and as much as
/// `net.core.wmem_max` at most). Left to itself it grows to 4 MiB: a thousand subscribers who
/// do not read would take gigabytes of a small machine.
const CHANNEL_SEND_BUFFER: usize = 256 << 10;

/// The same for a feed's subscriber, who wants only the newest state: what is in the buffer is
/// older than that.
const FEED_SEND_BUFFER: usize = 128 << 10;

/// What a request wants to subscribe to over WebSocket; `None` for every other request, which
/// goes to REST.
///
/// # Errors
/// 400 or 422 when the path names no channel or feed.
pub(super) fn wanted_topic(head: &Head) -> Option<Result<Topic, Problem>> {
    if head.method == "GET" {
        handshake::topic(head.path())
    } else {
        None
    }
}

/// What every session works with.
pub(super) struct Sockets {
    /// Where clients register.
    pub(super) manager: Arc<ConnectionManager>,
    /// Where their messages go.
    pub(super) journal: Arc<Journal>,
    /// Where they find what they have missed.
    pub(super) reader: Arc<dyn Reader>,
    /// Who may be here and publish.
    pub(super) access: Arc<Access>,
    /// Where refusals are counted.
    pub(super) usage: Arc<Usage>,
    /// What each may use.
    pub(super) limits: Limits,
}

impl Sockets {
    /// Makes the connection a WebSocket and serves it until its end. `early` is what came
    /// behind the request's head.
    ///
    /// # Errors
    /// 400, 401, 403, 422, 426 or 503, before anything was written.
    pub(super) fn serve(
        &self,
        head: Head,
        topic: Topic,
        peer: Peer,
        stream: &Arc<Stream>,
        early: Vec<u8>,
    ) -> Result<(), Problem> {
        // Before anybody registers: what is revoked meanwhile is noticed.
        let stay = Stay::new(Arc::clone(&self.access), &peer);
        peer.may(Scope::Subscribe, (&topic).into())?;
        let accepted = Chunk::raw(handshake::accept(&head)?);
        let (cursor, catch_up) = self.begin(&topic, &head)?;
        // Sessions last: what belongs to the request is let go of first.
        drop(head);
        let buffer = match topic {
            Topic::Channel(_) => CHANNEL_SEND_BUFFER,
            Topic::Feed(_) => FEED_SEND_BUFFER,
        };
        // Without it everything works, with more in the kernel's memory.
        let _ = set_socket_send_buffer_size(stream, buffer);
        // Registered before the 101 goes out: whoever has seen it hears the next message.
        let client = self
            .manager
            .register(
                topic,
                peer,
                Arc::clone(stream),
                accepted,
                cursor,
                self.limits.max_subscribers.max(1),
            )
            .map_err(|refused| {
                let _ = stream.set_nonblocking(false);
                self.unregistered(&refused)
            })?;
        let registered = Registered {
            manager: &self.manager,
            client: &client,
        };
        client.drain();
        let mut session = Session::new(self, &client, catch_up, stay, early);
        let end = session.run();
        drop(registered);
        log::debug!("client {} from {} ended: {end:?}", client.id, client.peer);
        match end {
            Ended::Said => linger(stream, LINGER),
            Ended::Gone => {}
            // What it did not take must not stay in the kernel's memory: reset, not close.
            Ended::Stalled => drop(set_socket_linger(stream, Some(Duration::ZERO))),
        }
        Ok(())
    }

    /// 503. Whoever is refused hears of its own channel or feed only.
    fn unregistered(&self, refused: &Unregistered) -> Problem {
        let detail = match refused {
            Unregistered::Full { topic, max } => {
                self.usage.refused.subscribers.add();
                format!("{topic} has {max} subscribers, which is the limit (--max-subscribers)")
            }
            Unregistered::System(error) => {
                format!("the server lacks a descriptor for this connection: {error}")
            }
        };
        Problem::unavailable(detail, 1)
    }

    /// Where the subscriber begins: a channel's may ask for what came before.
    fn begin(&self, topic: &Topic, head: &Head) -> Result<(Option<MessageId>, CatchUp), Problem> {
        let Topic::Channel(channel) = topic else {
            return Ok(Default::default());
        };
        let start = handshake::start(head.query())?;
        catch_up::begin(start, channel, self.journal.head(), &*self.reader)
            .map_err(|error| Problem::unavailable(error.to_string(), 1))
    }
}

/// Unregisters a client wherever its session ends, by a panic too.
struct Registered<'a> {
    manager: &'a ConnectionManager,
    client: &'a Client,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.manager.disconnect(self.client);
        if std::thread::panicking() {
            self.client
                .finish(CloseCode::Internal, "a bug in the server");
        }
    }
}

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// A close frame was the last word.
    Said,
    /// The peer is gone.
    Gone,
    /// The socket took no byte for the write timeout.
    Stalled,
}

struct Session<'a> {
    sockets: &'a Sockets,
    client: &'a Arc<Client>,
    decoder: Decoder,
    publishing: Publishing,
    catch_up: CatchUp,
    stay: Stay,
    /// The decoder may hold frames that the socket will not announce again.
    unread: bool,
    heartbeat: Heartbeat,
    /// Its socket was full lately: it may have a lot to read before it comes to a ping.
    slow_until: Option<Instant>,
}

impl<'a> Session<'a> {
    fn new(
        sockets: &'a Sockets,
        client: &'a Arc<Client>,
        catch_up: CatchUp,
        stay: Stay,
        early: Vec<u8>,
    ) -> Self {
        let limits = &sockets.limits;
        Self {
            sockets,
            client,
            catch_up,
            stay,
            unread: !early.is_empty(),
            decoder: Decoder::new(early, limits.max_body_bytes.saturating_mul(2)),
            publishing: Publishing::new(Arc::clone(client), limits.max_in_flight),
            heartbeat: Heartbeat::new(client.id, limits),
            slow_until: None,
        }
    }

    #[inline(never)]
    fn run(&mut self) -> Ended {
        loop {
            match self.client.end() {
                Some(End::Said) => return Ended::Said,
                Some(End::Lost) => return Ended::Gone,
                None => {}
            }
            if self.client.stalled_for() >= self.sockets.limits.write_timeout {
                log::info!(
                    "client {} from {} took no byte in time and is given up",
                    self.client.id,
                    self.client.peer
                );
                return Ended::Stalled;
            }
            self.leave_if_not_allowed();
            let has_room = self.sockets.journal.has_room() && self.publishing.has_room();
            let may_read = has_room && !self.client.is_finishing();
            if may_read && self.unread {
                if !self.read() {
                    return Ended::Gone;
                }
                continue;
            }
            self.keep_alive(may_read);
            self.bring_missed();
            // Somebody else may have held the writer when the page was put into the outbox: the
            // client is either congested now, or wants the next one.
            if self.client.is_behind() && !self.client.is_congested() {
                self.client.drain();
            }
            if self.wait(may_read, has_room) && !self.read() {
                return Ended::Gone;
            }
        }
    }

    /// Ends a client whose token was revoked, has expired or is for other things now.
    fn leave_if_not_allowed(&mut self) {
        let (peer, topic) = (&self.client.peer, &self.client.topic);
        if let Err(problem) = self.stay.check(peer, topic) {
            log::info!("client {} from {peer} has to go: {problem}", self.client.id);
            self.leave(|client| client.finish(CloseCode::Policy, &problem.detail));
        }
    }

    /// Brings a client that is behind the next of what it has missed.
    fn bring_missed(&mut self) {
        if !self.client.wants_missed() || self.catch_up.pause().is_some() {
            return;
        }
        let Sockets {
            manager, reader, ..
        } = self.sockets;
        let patience = self.sockets.limits.write_timeout;
        let outcome = self
            .catch_up
            .step(self.client, manager, &**reader, patience);
        if let Err(error) = outcome {
            let (id, peer) = (self.client.id, &self.client.peer);
            log::error!("client {id} from {peer} cannot be brought what it has missed: {error}");
            self.leave(|client| {
                client.finish(
                    CloseCode::Internal,
                    "the store failed: reconnect with `since`",
                );
            });
        }
    }

    /// Waits for whatever comes first; `true` when there is something to read.
    fn wait(&mut self, may_read: bool, has_room: bool) -> bool {
        let timeout = self.timeout(self.client.is_congested(), has_room);
        self.client.wait(may_read, timeout)
    }

    fn timeout(&self, congested: bool, has_room: bool) -> Duration {
        let mut until = self
            .heartbeat
            .due()
            .saturating_duration_since(Instant::now());
        if congested {
            until = until.min(
                self.sockets
                    .limits
                    .write_timeout
                    .saturating_sub(self.client.stalled_for()),
            );
        }
        // The journal tells nobody when it has room again, nor does whoever drains an answer.
        if !has_room && !congested {
            until = until.min(ROOM_INTERVAL);
        }
        if let Some(end) = self.stay.until() {
            until = until.min(end.saturating_duration_since(Instant::now()));
        }
        if self.client.wants_missed() {
            until = until.min(self.catch_up.pause().unwrap_or_default());
        }
        until
    }

    /// Reads what has arrived, as far as its publisher may go; `false` when the peer is gone.
    #[inline(never)]
    fn read(&mut self) -> bool {
        let mut here = true;
        self.unread = false;
        loop {
            if self.client.is_finishing() {
                break;
            }
            if !self.publishing.has_room() {
                self.unread = true;
                break;
            }
            match self.decoder.next(self.client.stream()) {
                Heard::Nothing => break,
                Heard::Text(text) => self.text(&text),
                Heard::Ping(payload) => self.client.reply(Chunk::pong(&payload)),
                Heard::Pong => {}
                Heard::Close(answer) => self.leave(|client| client.finish_with(answer)),
                Heard::Violation(code, reason) => {
                    if code == CloseCode::TooLarge {
                        self.sockets.usage.refused.message_bytes.add();
                    }
                    self.leave(|client| client.finish(code, &reason));
                }
                Heard::Gone => {
                    here = false;
                    break;
                }
            }
            self.heartbeat.heard();
        }
        self.publishing.submit(&self.sockets.journal);
        here
    }

    /// Stops delivery, then says the last word.
    fn leave(&mut self, say: impl FnOnce(&Client)) {
        self.publishing.submit(&self.sockets.journal);
        self.sockets.manager.disconnect(self.client);
        say(self.client);
    }

    fn text(&mut self, text: &str) {
        let limit = self.sockets.limits.max_body_bytes;
        let frame = ClientFrame::parse(text, &self.client.topic);
        let frame = if text.len() > limit {
            self.sockets.usage.refused.message_bytes.add();
            Err(too_large(text.len(), limit, frame))
        } else {
            frame
        };
        match frame {
            Ok(ClientFrame::Message(draft, reference)) => {
                match self.may_publish(&draft, &reference) {
                    Ok(()) => self.publishing.add(draft, reference),
                    Err(error) => self.client.reply(Chunk::json(&ServerFrame::from(error))),
                }
            }
            Ok(ClientFrame::Ping(timestamp)) => self
                .client
                .reply(Chunk::json(&ServerFrame::Pong { timestamp })),
            Ok(ClientFrame::ClientReady) => {}
            Err(error) => self.client.reply(Chunk::json(&ServerFrame::from(error))),
        }
    }

    /// Whether its client may publish this now.
    fn may_publish(&self, draft: &Draft, reference: &Option<Value>) -> Result<(), FrameError> {
        let refused = |code, detail| FrameError {
            code,
            detail,
            reference: reference.clone(),
        };
        let (peer, sockets) = (&self.client.peer, self.sockets);
        peer.may(Scope::Publish, On::Channel(&draft.channel_id))
            .map_err(|problem| refused("forbidden", problem.detail))?;
        sockets.access.publish(peer, 1).map_err(|too_fast| {
            sockets.usage.refused.rate.add();
            refused("rate_limited", too_fast.to_string())
        })
    }

    /// Pings when it is time, and gives up a client that has not been heard of since.
    fn keep_alive(&mut self, may_read: bool) {
        let now = Instant::now();
        if self.client.is_congested() {
            self.slow_until = Some(now + SLOW_PATIENCE);
        }
        let is_slow = self.slow_until.is_some_and(|until| now < until);
        let patient = !may_read || is_slow;
        match self.heartbeat.beat(now, patient) {
            Beat::Nothing => {}
            Beat::Ping => self.client.reply(Chunk::ping(b"")),
            Beat::Dead => {
                let (id, peer) = (self.client.id, &self.client.peer);
                log::info!("client {id} from {peer} answered no ping and is given up");
                self.leave(|client| {
                    client.finish(CloseCode::TryAgainLater, "no pong: reconnect with `since`");
                });
            }
        }
    }
}

fn too_large(length: usize, limit: usize, parsed: Result<ClientFrame, FrameError>) -> FrameError {
    let reference = match parsed {
        Ok(ClientFrame::Message(_, reference)) => reference,
        Ok(_) => None,
        Err(error) => error.reference,
    };
    FrameError {
        code: "too_large",
        detail: format!("the frame has {length} bytes, {limit} are allowed"),
        reference,
    }
}

#[cfg(test)]
mod panic_tests;
