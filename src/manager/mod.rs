//! Who is subscribed to what, and how a chunk of frames gets to all of them.
//!
//! The manager never does I/O under its lock: the lock is held for edits of the maps and to
//! take a list of clients, which is shared and copied on write.

mod census;
mod client;
mod events;
mod feeds;
mod kind;
mod live;
mod recent;
mod status;
mod waiting;
mod wake;

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::access::Peer;
use crate::frame::{Chunk, CloseCode};
use crate::protocol::{Channel, Feed, MessageId, Topic};
use crate::stream::Stream;
use events::Events;
use feeds::FeedEntry;
use recent::{Recent, Window};
use waiting::Waiting;

pub use census::{Census, Group};
pub use client::{Client, End, Offer, OutboxLimits};
pub use events::{Event, EventKind, Subscription};
pub use feeds::FeedStatus;
pub(crate) use kind::Accepted;
pub use kind::Kind;
pub(crate) use recent::Upcoming;
pub use status::ConnectionStatus;
pub use wake::Wake;

/// The clients of one channel or feed, as they were when the list was taken.
pub(crate) type Clients = Arc<Vec<Arc<Client>>>;

/// Every subscriber's outbox, by channel and feed, and the last state of every feed.
///
/// A channel is forgotten when its last client leaves, and so is a feed that nobody has
/// published to; memory is bounded by the connections and the states.
///
/// It needs no [`Server`](crate::Server). A program with a listener of its own makes the
/// WebSocket handshake, hands the socket over, and broadcasts:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::net::{TcpListener, TcpStream};
/// use std::sync::Arc;
///
/// use serde_json::json;
/// use threadcast::frame::{Chunk, CloseCode};
/// use threadcast::protocol::{Channel, Feed, State};
/// use threadcast::stream::Stream;
/// use threadcast::ConnectionManager;
///
/// let manager = ConnectionManager::default();
/// let lab: Channel = "lab".parse()?;
/// let workflows: Feed = "workflows".parse()?;
///
/// // In the thread of a connection, once the handshake is made; `handshake` is its answer.
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # let _browser = TcpStream::connect(listener.local_addr()?)?;
/// # let (stream, peer) = listener.accept()?;
/// # let handshake = Vec::new();
/// let stream = Arc::new(Stream::from(stream));
/// let client = manager.connect(lab.clone(), peer, stream, Chunk::raw(handshake))?;
/// assert_eq!(manager.active_connections(), 1);
///
/// // Anywhere else:
/// let update = Chunk::json(&json!({"type": "update", "data": "Your update here"}));
/// assert_eq!(manager.broadcast(&lab, &update), 1);
///
/// // A feed's subscribers hear of a state only when it differs from the last one.
/// let state = State::from(json!([{"id": 1, "status": "running"}]));
/// assert!(manager.publish(&workflows, &state).changed);
/// assert!(!manager.publish(&workflows, &state).changed);
/// assert_eq!(manager.last_state(&workflows).rev.0, 1);
///
/// // When the connection ends, in whatever way; a second time does no harm.
/// assert!(manager.disconnect(&client));
/// assert!(!manager.disconnect(&client));
/// client.finish(CloseCode::GoingAway, "the show is over");
/// # Ok(())
/// # }
/// ```
///
/// `examples/clock.rs` is a whole program of this kind.
#[derive(Debug)]
pub struct ConnectionManager {
    inner: Mutex<Inner>,
    events: Events,
    waiting: Waiting,
    limits: OutboxLimits,
}

impl Default for ConnectionManager {
    fn default() -> Self {
        Self::new(OutboxLimits::default())
    }
}

#[derive(Debug, Default)]
struct Inner {
    channels: HashMap<Channel, ChannelEntry>,
    /// The newest message that `broadcast` has taken up: subscribers who begin now, or are
    /// behind, have everything up to it from the store and everything after it live.
    offered_head: MessageId,
    recent: Recent,
    feeds: HashMap<Feed, FeedEntry>,
    connections: usize,
    last_id: u64,
    /// Everybody was told to go: so is whoever still comes.
    finishing: Option<(CloseCode, String)>,
}

/// Why a client was not registered.
#[derive(Debug)]
pub(crate) enum Unregistered {
    /// Its channel or feed has as many as it may have.
    Full { topic: Topic, max: usize },
    /// The system refused what a client needs.
    System(io::Error),
}

impl From<io::Error> for Unregistered {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// A channel that has subscribers.
#[derive(Debug, Default)]
struct ChannelEntry {
    clients: Clients,
    /// The newest of its messages that was taken up since it has subscribers.
    offered: MessageId,
    /// What was broadcast last.
    window: Window,
}

impl ConnectionManager {
    /// A manager whose clients have outboxes of this size.
    pub fn new(limits: OutboxLimits) -> Self {
        let inner = Inner {
            recent: Recent::new(limits.recent),
            ..Inner::default()
        };
        Self {
            inner: Mutex::new(inner),
            events: Events::default(),
            waiting: Waiting::default(),
            limits,
        }
    }

    /// Registers a WebSocket client: it hears everything on its topic from now on, after `first` and,
    /// on a feed, the state of this moment.
    ///
    /// Makes `stream` non-blocking. `first` is the answer to its handshake, or nothing when
    /// that is given already; it goes out with the first broadcast or when the caller drains
    /// the client. A thread of the caller's looks after the client: [`Client::wait`].
    ///
    /// # Errors
    /// When the process has no descriptor left for the client's wake handle.
    pub fn connect(
        &self,
        topic: impl Into<Topic>,
        peer: impl Into<Peer>,
        stream: Arc<Stream>,
        first: Chunk,
    ) -> io::Result<Arc<Client>> {
        let accepted = Accepted {
            kind: Kind::WebSocket,
            answer: first,
        };
        match self.register(
            topic.into(),
            peer.into(),
            stream,
            accepted,
            None,
            usize::MAX,
        ) {
            Ok(client) => Ok(client),
            Err(Unregistered::System(error)) => Err(error),
            Err(Unregistered::Full { .. }) => unreachable!("no list has so many clients"),
        }
    }

    /// [`Self::connect`], if the topic has fewer than `max` clients; with a cursor the client is
    /// behind from the start, and its own thread brings it what came after that.
    pub(crate) fn register(
        &self,
        topic: Topic,
        peer: Peer,
        stream: Arc<Stream>,
        accepted: Accepted,
        cursor: Option<MessageId>,
        max: usize,
    ) -> Result<Arc<Client>, Unregistered> {
        let id = {
            let mut inner = self.lock();
            inner.last_id += 1;
            inner.last_id
        };
        stream.set_nonblocking(true)?;
        let kind = accepted.kind.as_str();
        let client = Client::new(id, topic.clone(), peer, stream, accepted, self.limits)?;
        let peer = &client.peer;
        let (subscribers, connections, finishing) = {
            let mut inner = self.lock();
            // In one step with the registration, so that no race goes above the limit.
            if inner.subscribers(&topic) >= max {
                return Err(Unregistered::Full { topic, max });
            }
            inner.connections += 1;
            let subscribers = match &topic {
                Topic::Channel(channel) => {
                    client.set_cursor(cursor.unwrap_or(inner.offered_head), cursor.is_some());
                    let entry = inner.channels.entry(channel.clone()).or_default();
                    Arc::make_mut(&mut entry.clients).push(Arc::clone(&client));
                    entry.clients.len()
                }
                Topic::Feed(feed) => {
                    let entry = inner.feed(feed);
                    client.start_with(entry.state());
                    Arc::make_mut(&mut entry.clients).push(Arc::clone(&client));
                    entry.wake();
                    entry.clients.len()
                }
            };
            // Under the lock, so that handlers hear of things in their order.
            self.events.emit(EventKind::Connected, || Event::Connected {
                client: id,
                topic: topic.clone(),
                peer: peer.clone(),
            });
            (subscribers, inner.connections, inner.finishing.clone())
        };
        if let Some((code, reason)) = finishing {
            client.finish(code, &reason);
        }
        log::debug!(
            "client {id} ({kind}) from {peer} joined {topic}: {subscribers} there, {connections} in all"
        );
        Ok(client)
    }

    /// Removes a client; `false` when it was removed before.
    pub fn disconnect(&self, client: &Client) -> bool {
        let (subscribers, connections) = {
            let mut inner = self.lock();
            let Some(left) = inner.remove(client) else {
                return false;
            };
            self.events
                .emit(EventKind::Disconnected, || Event::Disconnected {
                    client: client.id,
                    topic: client.topic.clone(),
                    peer: client.peer.clone(),
                });
            left
        };
        log::debug!(
            "client {} left {}: {subscribers} there, {connections} in all",
            client.id,
            client.topic
        );
        true
    }

    /// How many clients a channel has.
    pub fn subscribers(&self, channel: &Channel) -> usize {
        self.lock().channel_subscribers(channel)
    }

    /// How many clients each channel has, channels without any left out.
    pub fn subscribers_by_channel(&self) -> Vec<(Channel, usize)> {
        self.lock()
            .channels
            .iter()
            .map(|(channel, entry)| (channel.clone(), entry.clients.len()))
            .collect()
    }

    /// How many clients there are.
    pub fn active_connections(&self) -> usize {
        self.lock().connections
    }

    /// Ends every client with this code, behind what waits in its outbox, and every one that
    /// still comes.
    pub fn finish_all(&self, code: CloseCode, reason: &str) {
        let lists: Vec<Clients> = {
            let mut inner = self.lock();
            inner.finishing = Some((code, reason.to_owned()));
            inner.lists()
        };
        for client in lists.iter().flat_map(|clients| clients.iter()) {
            client.finish(code, reason);
        }
    }

    /// Makes every client's own thread look around, and whoever waits: something that concerns
    /// all has changed.
    pub(crate) fn wake_all(&self) {
        self.wake_waiting();
        let lists = self.lock().lists();
        for client in lists.iter().flat_map(|clients| clients.iter()) {
            client.wake();
        }
    }

    /// Cuts every client off, whatever waits in its outbox.
    pub fn sever_all(&self) {
        let lists = self.lock().lists();
        for client in lists.iter().flat_map(|clients| clients.iter()) {
            // It fails only when the peer is gone already.
            let _ = client.stream().shutdown(Shutdown::Both);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn subscribers(&self, topic: &Topic) -> usize {
        match topic {
            Topic::Channel(channel) => self.channel_subscribers(channel),
            Topic::Feed(feed) => self.feed_subscribers(feed),
        }
    }

    fn channel_subscribers(&self, channel: &Channel) -> usize {
        let entry = self.channels.get(channel);
        entry.map_or(0, |entry| entry.clients.len())
    }

    /// Takes a client off its list; returns how many are left there and in all.
    fn remove(&mut self, client: &Client) -> Option<(usize, usize)> {
        let clients = match &client.topic {
            Topic::Channel(channel) => &mut self.channels.get_mut(channel)?.clients,
            Topic::Feed(feed) => &mut self.feeds.get_mut(feed)?.clients,
        };
        let at = clients.iter().position(|other| other.id == client.id)?;
        Arc::make_mut(clients).swap_remove(at);
        let subscribers = clients.len();
        match &client.topic {
            Topic::Channel(channel) if subscribers == 0 => {
                if let Some(mut gone) = self.channels.remove(channel) {
                    self.recent.forget(&mut gone.window);
                }
            }
            Topic::Feed(feed) if self.feeds.get(feed)?.is_forgettable(feed) => {
                self.feeds.remove(feed);
            }
            _ => {}
        }
        self.connections -= 1;
        Some((subscribers, self.connections))
    }

    /// Every client, by lists.
    fn lists(&self) -> Vec<Clients> {
        let channels = self.channels.values().map(|entry| &entry.clients);
        let feeds = self.feeds.values().map(|entry| &entry.clients);
        channels.chain(feeds).cloned().collect()
    }
}
