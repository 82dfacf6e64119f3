//! Who is subscribed to what, and how a chunk of frames gets to all of them.
//!
//! The manager never does I/O under its lock: the lock is held for edits of the map and to
//! take a channel's list of clients, which is shared and copied on write.

mod client;
mod wake;

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::frame::{Chunk, CloseCode};
use crate::protocol::Channel;

pub use client::{Client, End, Offer, OutboxLimits};
pub use wake::Wake;

/// The clients of one channel, as they were when the list was taken.
type Clients = Arc<Vec<Arc<Client>>>;

/// Every subscriber's outbox, by channel.
///
/// A channel is forgotten when its last client leaves; memory is bounded by the connections.
#[derive(Debug)]
pub struct ConnectionManager {
    inner: Mutex<Inner>,
    limits: OutboxLimits,
}

#[derive(Debug, Default)]
struct Inner {
    channels: HashMap<Channel, Clients>,
    connections: usize,
    last_id: u64,
    /// Everybody was told to go: so is whoever still comes.
    finishing: Option<(CloseCode, String)>,
}

impl ConnectionManager {
    /// A manager whose clients have outboxes of this size.
    pub fn new(limits: OutboxLimits) -> Self {
        Self {
            inner: Mutex::default(),
            limits,
        }
    }

    /// Registers a client: it hears every broadcast from now on, after `first`.
    ///
    /// `stream` must be non-blocking. `first` is the answer to its handshake; it goes out
    /// with the first broadcast or when the caller drains the client.
    ///
    /// # Errors
    /// When the process has no descriptor left for the client's wake handle.
    pub fn connect(
        &self,
        channel: Channel,
        peer: SocketAddr,
        stream: Arc<TcpStream>,
        first: Chunk,
    ) -> io::Result<Arc<Client>> {
        let id = {
            let mut inner = self.lock();
            inner.last_id += 1;
            inner.last_id
        };
        let client = Arc::new(Client::new(
            id,
            channel.clone(),
            peer,
            stream,
            first,
            self.limits,
        )?);
        let (subscribers, connections, finishing) = {
            let mut inner = self.lock();
            inner.connections += 1;
            let connections = inner.connections;
            let clients = inner.channels.entry(channel).or_default();
            Arc::make_mut(clients).push(Arc::clone(&client));
            (clients.len(), connections, inner.finishing.clone())
        };
        if let Some((code, reason)) = finishing {
            client.finish(code, &reason);
        }
        log::debug!(
            "client {id} from {peer} joined {:?}: {subscribers} there, {connections} in all",
            client.channel.as_str()
        );
        Ok(client)
    }

    /// Removes a client; `false` when it was removed before.
    pub fn disconnect(&self, client: &Client) -> bool {
        let (subscribers, connections) = {
            let mut inner = self.lock();
            let Some(clients) = inner.channels.get_mut(&client.channel) else {
                return false;
            };
            let Some(at) = clients.iter().position(|other| other.id == client.id) else {
                return false;
            };
            Arc::make_mut(clients).swap_remove(at);
            let subscribers = clients.len();
            if subscribers == 0 {
                inner.channels.remove(&client.channel);
            }
            inner.connections -= 1;
            (subscribers, inner.connections)
        };
        log::debug!(
            "client {} left {:?}: {subscribers} there, {connections} in all",
            client.id,
            client.channel.as_str()
        );
        true
    }

    /// Offers a chunk of frames to every client of a channel, and returns how many took it.
    ///
    /// Writes to idle sockets itself, never waits for a full one. A client whose outbox is
    /// full is removed and told to come back (1013).
    pub fn broadcast(&self, channel: &Channel, chunk: &Chunk) -> usize {
        let Some(clients) = self.clients(channel) else {
            return 0;
        };
        let mut reached = clients.len();
        for client in clients.iter() {
            if client.offer(chunk) == Offer::Full {
                reached -= 1;
                log::info!(
                    "client {} from {} reads too slowly: its outbox is full",
                    client.id,
                    client.peer
                );
                self.disconnect(client);
                client.finish(CloseCode::TryAgainLater, "too slow: reconnect with `since`");
            }
        }
        log::debug!(
            "broadcast {} bytes on {:?} to {reached} clients",
            chunk.len(),
            channel.as_str()
        );
        reached
    }

    /// How many clients a channel has.
    pub fn subscribers(&self, channel: &Channel) -> usize {
        self.lock()
            .channels
            .get(channel)
            .map_or(0, |clients| clients.len())
    }

    /// How many clients each channel has, channels without any left out.
    pub fn subscribers_by_channel(&self) -> Vec<(Channel, usize)> {
        self.lock()
            .channels
            .iter()
            .map(|(channel, clients)| (channel.clone(), clients.len()))
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
            inner.channels.values().cloned().collect()
        };
        for client in lists.iter().flat_map(|clients| clients.iter()) {
            client.finish(code, reason);
        }
    }

    /// Cuts every client off, whatever waits in its outbox.
    pub fn sever_all(&self) {
        let lists: Vec<Clients> = self.lock().channels.values().cloned().collect();
        for client in lists.iter().flat_map(|clients| clients.iter()) {
            // It fails only when the peer is gone already.
            let _ = client.stream().shutdown(Shutdown::Both);
        }
    }

    fn clients(&self, channel: &Channel) -> Option<Clients> {
        self.lock().channels.get(channel).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
