//! What an administrator sees of the clients.

use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::{Client, ConnectionManager};
use crate::access::Peer;
use crate::protocol::clock;
use crate::protocol::{Channel, Feed, MessageId, Topic};

/// One client, as it is when it is looked at.
#[derive(Debug, Clone, Serialize)]
pub struct ConnectionStatus {
    /// Its number, unique while the server runs.
    pub id: u64,
    /// What it speaks: `websocket` or `sse`.
    pub kind: &'static str,
    /// What it subscribed to, if that is a channel.
    pub channel: Option<Channel>,
    /// What it subscribed to, if that is a feed.
    pub feed: Option<Feed>,
    /// Where it comes from.
    #[serde(serialize_with = "shown")]
    pub address: Peer,
    /// The name of its token.
    pub token: Option<String>,
    /// When it was connected: UTC, microseconds, `+00:00`.
    pub since: String,
    /// The newest message of its channel that it has, or is about to have.
    pub cursor: Option<MessageId>,
    /// How far that is behind its channel's newest message, or its state behind its feed's
    /// newest: in ids, or in revisions.
    pub lag: u64,
    /// Whether it is brought what it has missed from the store, because it was too slow or has just come.
    pub behind: bool,
    /// Bytes that wait for its socket.
    pub queued_bytes: usize,
}

fn shown<S: Serializer>(peer: &Peer, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&peer.address())
}

impl ConnectionManager {
    /// Every client, by id.
    pub fn connections(&self) -> Vec<ConnectionStatus> {
        let mut found = Vec::new();
        {
            let inner = self.lock();
            for entry in inner.channels.values() {
                found.extend(entry.clients.iter().map(|client| {
                    let lag = entry.offered.0.saturating_sub(client.cursor().0);
                    (Arc::clone(client), lag)
                }));
            }
            for entry in inner.feeds.values() {
                let newest = entry.state().rev;
                found.extend(entry.clients.iter().map(|client| {
                    let lag = newest.0.saturating_sub(client.rev().0);
                    (Arc::clone(client), lag)
                }));
            }
        }
        found.sort_unstable_by_key(|(client, _)| client.id);
        found
            .iter()
            .map(|(client, lag)| client.status(*lag))
            .collect()
    }

    /// The client of this number.
    pub fn find(&self, id: u64) -> Option<Arc<Client>> {
        let lists = self.lock().lists();
        let mut clients = lists.iter().flat_map(|clients| clients.iter());
        clients.find(|client| client.id == id).map(Arc::clone)
    }
}

impl Client {
    fn status(&self, lag: u64) -> ConnectionStatus {
        let (channel, feed) = match &self.topic {
            Topic::Channel(channel) => (Some(channel.clone()), None),
            Topic::Feed(feed) => (None, Some(feed.clone())),
        };
        ConnectionStatus {
            id: self.id,
            kind: self.kind.as_str(),
            cursor: channel.is_some().then(|| self.cursor()),
            channel,
            feed,
            address: self.peer.clone(),
            token: self.peer.token().map(str::to_owned),
            since: clock::format(self.since),
            lag,
            behind: self.is_behind(),
            queued_bytes: self.queued_bytes(),
        }
    }
}
