//! The WebSocket session: one thread that reads what one client sends, and takes over its
//! outbox when its socket is full.
//!
//! tungstenite decodes. What it would answer by itself never reaches the socket; pongs and
//! closes go through the outbox like everything else, so nothing can come after a close.

mod decoder;
mod handshake;
mod heartbeat;
mod publishing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::subscriber::{CatchUp, Ended, Registered, Subscribers, start};
use crate::access::{On, Peer, Scope, Stay};
use crate::frame::{Chunk, CloseCode};
use crate::http::{Head, Problem};
use crate::journal::Journal;
use crate::manager::{Accepted, Client, Kind};
use crate::protocol::{ClientFrame, Draft, FrameError, ServerFrame, Start, Topic};
use crate::stream::Stream;
use decoder::{Decoder, Heard};
use heartbeat::{Beat, Heartbeat};
use publishing::Publishing;

/// How long nobody is blamed for silence whose socket was full: what is in the kernel's buffers
/// then comes before a ping.
const SLOW_PATIENCE: Duration = Duration::from_secs(60);

/// How long a session that may not publish waits before it looks again.
const ROOM_INTERVAL: Duration = Duration::from_millis(10);

/// What every session works with.
pub(super) struct Sockets {
    /// What it has in common with those of event streams.
    pub(super) subscribers: Subscribers,
    /// Where their messages go.
    pub(super) journal: Arc<Journal>,
}

impl Sockets {
    /// Makes the connection a WebSocket. `early` is what came behind the request's head.
    ///
    /// # Errors
    /// 400, 401, 403, 422, 426 or 503, before anything was written.
    #[inline(never)]
    pub(super) fn begin(
        &self,
        head: Box<Head>,
        topic: Topic,
        peer: Peer,
        stream: &Arc<Stream>,
        early: Vec<u8>,
    ) -> Result<Box<Session<'_>>, Problem> {
        let stay = self.subscribers.admit(&peer, &topic)?;
        let accepted = Accepted {
            kind: Kind::WebSocket,
            answer: Chunk::raw(handshake::accept(&head)?),
        };
        let start = match topic {
            Topic::Channel(_) => start(head.query(), None)?,
            Topic::Feed(_) => Start::Live,
        };
        let (cursor, catch_up) = self.subscribers.begin(&topic, start, self.journal.head())?;
        let registered = self
            .subscribers
            .register(topic, peer, stream, accepted, cursor)?;
        registered.client.drain();
        Ok(Session::new(self, registered, catch_up, stay, early))
    }
}

/// A client whose connection is a WebSocket.
pub(super) struct Session<'a> {
    sockets: &'a Sockets,
    client: Arc<Client>,
    registered: Registered<'a>,
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
    #[inline(never)]
    fn new(
        sockets: &'a Sockets,
        registered: Registered<'a>,
        catch_up: CatchUp,
        stay: Stay,
        early: Vec<u8>,
    ) -> Box<Self> {
        let limits = &sockets.subscribers.limits;
        let client = Arc::clone(&registered.client);
        Box::new(Self {
            sockets,
            registered,
            catch_up,
            stay,
            unread: !early.is_empty(),
            decoder: Decoder::new(early, limits.max_body_bytes.saturating_mul(2)),
            publishing: Publishing::new(Arc::clone(&client), limits.max_in_flight),
            heartbeat: Heartbeat::new(client.id, limits),
            slow_until: None,
            client,
        })
    }

    /// Serves it until its end.
    pub(super) fn serve(mut self: Box<Self>) {
        let ended = self.run();
        self.registered.end(ended);
    }

    #[inline(never)]
    fn run(&mut self) -> Ended {
        loop {
            if let Some(ended) = self.sockets.subscribers.ended(&self.client) {
                return ended;
            }
            let subscribers = &self.sockets.subscribers;
            subscribers.leave_if_not_allowed(&self.client, &mut self.stay);
            let has_room = self.sockets.journal.has_room() && self.publishing.has_room();
            let may_read = has_room && !self.client.is_finishing();
            if may_read && self.unread {
                if !self.read() {
                    return Ended::Gone;
                }
                continue;
            }
            self.keep_alive(may_read);
            self.sockets
                .subscribers
                .bring_missed(&self.client, &mut self.catch_up);
            if self.wait(may_read, has_room) && !self.read() {
                return Ended::Gone;
            }
        }
    }

    /// Waits for whatever comes first; `true` when there is something to read.
    fn wait(&mut self, may_read: bool, has_room: bool) -> bool {
        let mut until = self
            .heartbeat
            .due()
            .saturating_duration_since(Instant::now());
        // The journal tells nobody when it has room again, nor does whoever drains an answer.
        if !has_room && !self.client.is_congested() {
            until = until.min(ROOM_INTERVAL);
        }
        let subscribers = &self.sockets.subscribers;
        let timeout = subscribers.timeout(&self.client, &self.catch_up, &self.stay, until);
        self.client.wait(may_read, timeout)
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
                        self.sockets.subscribers.usage.refused.message_bytes.add();
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
        self.sockets.subscribers.manager.disconnect(&self.client);
        say(&self.client);
    }

    fn text(&mut self, text: &str) {
        let limit = self.sockets.subscribers.limits.max_body_bytes;
        let frame = ClientFrame::parse(text, &self.client.topic);
        let frame = if text.len() > limit {
            self.sockets.subscribers.usage.refused.message_bytes.add();
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
        let (peer, subscribers) = (&self.client.peer, &self.sockets.subscribers);
        peer.may(Scope::Publish, On::Channel(&draft.channel_id))
            .map_err(|problem| refused("forbidden", problem.detail))?;
        subscribers.access.publish(peer, 1).map_err(|too_fast| {
            subscribers.usage.refused.rate.add();
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
