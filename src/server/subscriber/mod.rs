//! What every subscriber's session does, whatever it speaks: it knows what was asked for,
//! registers, brings what was missed, and ends.

mod catch_up;
mod wanted;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_socket_linger, set_socket_send_buffer_size};

use crate::access::{Access, Peer, Scope, Stay};
use crate::backplane::Link;
use crate::config::Limits;
use crate::frame::CloseCode;
use crate::http::{Problem, linger};
use crate::manager::{Accepted, Client, ConnectionManager, End, Kind, Unregistered};
use crate::protocol::{MessageId, Start, Topic};
use crate::store::Reader;
use crate::stream::Stream;
use crate::usage::Usage;

pub(super) use catch_up::CatchUp;
pub(super) use wanted::{start, wanted};

/// How long the peer may take to close its side once everything is said.
const LINGER: Duration = Duration::from_secs(2);

/// The kernel's buffer for a channel's subscriber (Linux takes it twice, and as much as
/// `net.core.wmem_max` at most). Left to itself it grows to 4 MiB: a thousand subscribers who
/// do not read would take gigabytes of a small machine.
const CHANNEL_SEND_BUFFER: usize = 256 << 10;

/// The same for a feed's subscriber, who wants only the newest state: what is in the buffer is
/// older than that.
const FEED_SEND_BUFFER: usize = 128 << 10;

/// What every session works with.
#[derive(Clone)]
pub(super) struct Subscribers {
    /// Where clients register.
    pub(super) manager: Arc<ConnectionManager>,
    /// Where they find what they have missed.
    pub(super) reader: Arc<dyn Reader>,
    /// Who may be here and publish.
    pub(super) access: Arc<Access>,
    /// Where refusals are counted.
    pub(super) usage: Arc<Usage>,
    /// What each may use.
    pub(super) limits: Limits,
    /// The log that other nodes share, of which this one may have less than a client has seen.
    pub(super) link: Option<Arc<Link>>,
}

impl Subscribers {
    /// Whether somebody may subscribe to this, and how long.
    ///
    /// # Errors
    /// 401 or 403.
    pub(super) fn admit(&self, peer: &Peer, topic: &Topic) -> Result<Stay, Problem> {
        // Before the look: what is revoked meanwhile is noticed.
        let stay = Stay::new(Arc::clone(&self.access), peer);
        peer.may(Scope::Subscribe, topic.into())?;
        Ok(stay)
    }

    /// Where a subscriber begins: a channel's may ask for what came before. `head` is the
    /// newest committed message. Blocks on the disk.
    ///
    /// # Errors
    /// 503 when the store cannot be read.
    #[inline(never)]
    pub(super) fn begin(
        &self,
        topic: &Topic,
        start: Start,
        head: MessageId,
    ) -> Result<(Option<MessageId>, CatchUp), Problem> {
        let Topic::Channel(channel) = topic else {
            return Ok(Default::default());
        };
        match start {
            Start::Live => {}
            Start::Since(_) => self.usage.traffic.since.add(),
            Start::Last(_) => self.usage.traffic.last.add(),
        }
        catch_up::begin(start, channel, head, &*self.reader, self.link.is_some())
            .map_err(|error| Problem::unavailable(error.to_string(), 1))
    }

    /// Registers a subscriber, before its answer goes out: whoever has seen that hears the next
    /// message.
    ///
    /// # Errors
    /// 503. Whoever is refused hears of its own channel or feed only.
    #[inline(never)]
    pub(super) fn register(
        &self,
        topic: Topic,
        peer: Peer,
        stream: &Arc<Stream>,
        accepted: Accepted,
        cursor: Option<MessageId>,
    ) -> Result<Registered<'_>, Problem> {
        let buffer = match topic {
            Topic::Channel(_) => CHANNEL_SEND_BUFFER,
            Topic::Feed(_) => FEED_SEND_BUFFER,
        };
        // Without it everything works, with more in the kernel's memory.
        let _ = set_socket_send_buffer_size(stream, buffer);
        let max = self.limits.max_subscribers.max(1);
        let client = self
            .manager
            .register(topic, peer, Arc::clone(stream), accepted, cursor, max)
            .map_err(|refused| {
                let _ = stream.set_nonblocking(false);
                self.unregistered(&refused)
            })?;
        match client.kind {
            Kind::WebSocket => self.usage.traffic.joined_websocket.add(),
            Kind::EventStream => self.usage.traffic.joined_sse.add(),
        }
        Ok(Registered {
            manager: &self.manager,
            usage: &self.usage,
            client,
        })
    }

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

    /// Why the session of this client is over, if it is.
    pub(super) fn ended(&self, client: &Client) -> Option<Ended> {
        match client.end() {
            Some(End::Said) => return Some(Ended::Said),
            Some(End::Lost) => return Some(Ended::Gone),
            None => {}
        }
        if client.stalled_for() < self.limits.write_timeout {
            return None;
        }
        log::info!(
            "client {} from {} took no byte in time and is given up",
            client.id,
            client.peer
        );
        // It may not come to hear it.
        client.finish(CloseCode::TryAgainLater, "too slow: reconnect with `since`");
        Some(Ended::Stalled)
    }

    /// Ends a client whose token was revoked, has expired or is for other things now.
    pub(super) fn leave_if_not_allowed(&self, client: &Client, stay: &mut Stay) {
        if let Err(problem) = stay.check(&client.peer, (&client.topic).into()) {
            log::info!(
                "client {} from {} has to go: {problem}",
                client.id,
                client.peer
            );
            self.manager.disconnect(client);
            client.finish(CloseCode::Policy, &problem.detail);
        }
    }

    /// Brings a client that is behind the next of what it has missed. Blocks on the disk.
    pub(super) fn bring_missed(&self, client: &Client, catch_up: &mut CatchUp) {
        if client.wants_missed() && catch_up.pause().is_none() {
            let patience = self.limits.write_timeout;
            let traffic = &self.usage.traffic;
            if let Some(link) = &self.link
                && catch_up.waits_for(link, client, &self.manager, &*self.reader)
            {
                return;
            }
            let outcome = catch_up.step(client, &self.manager, &*self.reader, traffic, patience);
            if let Err(error) = outcome {
                let (id, peer) = (client.id, &client.peer);
                log::error!(
                    "client {id} from {peer} cannot be brought what it has missed: {error}"
                );
                self.manager.disconnect(client);
                let reason = "the store failed: reconnect with `since`";
                client.finish(CloseCode::Internal, reason);
            }
        }
        // Somebody else may have held the writer when the page was put into the outbox: the
        // client is either congested now, or wants the next one.
        if client.is_behind() && !client.is_congested() {
            client.drain();
        }
    }

    /// How long the client's thread may wait, no longer than `longest`, before it looks again
    /// whether its socket is stalled or more can be brought.
    pub(super) fn timeout(
        &self,
        client: &Client,
        catch_up: &CatchUp,
        stay: &Stay,
        longest: Duration,
    ) -> Duration {
        let mut timeout = longest;
        if let Some(end) = stay.until() {
            timeout = timeout.min(end.saturating_duration_since(Instant::now()));
        }
        if client.is_congested() {
            let left = self.limits.write_timeout;
            timeout = timeout.min(left.saturating_sub(client.stalled_for()));
        }
        if client.wants_missed() {
            timeout = timeout.min(catch_up.pause().unwrap_or_default());
        }
        timeout
    }
}

/// Unregisters a client wherever its session ends, by a panic too.
pub(super) struct Registered<'a> {
    manager: &'a ConnectionManager,
    usage: &'a Usage,
    pub(super) client: Arc<Client>,
}

impl Registered<'_> {
    /// Unregisters the client, whose session ended so, and ends its connection. Blocks for at
    /// most two seconds.
    pub(super) fn end(self, ended: Ended) {
        let client = Arc::clone(&self.client);
        drop(self);
        let (id, peer, stream) = (client.id, &client.peer, client.stream());
        log::debug!("client {id} from {peer} ended: {ended:?}");
        match ended {
            Ended::Said => linger(stream, LINGER),
            Ended::Gone => {}
            // What it did not take must not stay in the kernel's memory: reset, not close.
            Ended::Stalled => drop(set_socket_linger(stream, Some(Duration::ZERO))),
        }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.manager.disconnect(&self.client);
        if std::thread::panicking() {
            self.client
                .finish(CloseCode::Internal, "a bug in the server");
        }
        let code = self.client.close_code().map(|code| code as u16);
        self.usage.traffic.left.add(code);
    }
}

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The last word is said.
    Said,
    /// The peer is gone.
    Gone,
    /// The socket took no byte for the write timeout.
    Stalled,
}
