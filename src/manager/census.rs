//! All clients and queues in a few numbers, for whoever watches the server.

use super::{Clients, ConnectionManager, Kind};
use crate::protocol::{MessageId, Rev};

/// What the manager holds, as it is when it is looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// Channels that have subscribers, and these.
    pub channels: Group,
    /// Feeds that have subscribers, and these.
    pub feeds: Group,
    /// Bytes of what was broadcast last, see [`OutboxLimits::recent`](super::OutboxLimits::recent).
    pub recent_bytes: usize,
}

/// All channels or all feeds together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Group {
    /// How many have subscribers.
    pub topics: usize,
    /// Their WebSockets.
    pub websockets: usize,
    /// Their event streams.
    pub event_streams: usize,
    /// Subscribers that lack something: of a channel those that are brought what they missed, of
    /// a feed those that were not sent its newest state.
    pub behind: usize,
    /// How far these are behind, added up: in ids of messages, or in revisions.
    pub lag: u64,
    /// How far the last of them is.
    pub longest_lag: u64,
    /// Bytes that wait in outboxes.
    pub queued_bytes: usize,
}

impl ConnectionManager {
    /// Looks at everybody. Under the lock only the lists are taken, one pointer for each channel
    /// and feed; the clients are looked at behind it, while the broadcast goes on.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        let channels: Vec<(Clients, MessageId)>;
        let feeds: Vec<(Clients, Rev)>;
        {
            let inner = self.lock();
            census.recent_bytes = inner.recent.bytes();
            let entries = inner.channels.values();
            channels = entries
                .map(|entry| (Clients::clone(&entry.clients), entry.offered))
                .collect();
            let entries = inner.feeds.values();
            feeds = entries
                .filter(|entry| !entry.clients.is_empty())
                .map(|entry| (Clients::clone(&entry.clients), entry.state().rev))
                .collect();
        }
        for (clients, offered) in &channels {
            census.channels.add(clients);
            for client in clients.iter().filter(|client| client.is_behind()) {
                let lag = offered.0.saturating_sub(client.cursor().0);
                census.channels.add_behind(lag);
            }
        }
        for (clients, newest) in &feeds {
            census.feeds.add(clients);
            for client in clients.iter() {
                let lag = newest.0.saturating_sub(client.rev().0);
                if lag > 0 {
                    census.feeds.add_behind(lag);
                }
            }
        }
        census
    }
}

impl Group {
    fn add(&mut self, clients: &Clients) {
        self.topics += 1;
        for client in clients.iter() {
            match client.kind {
                Kind::WebSocket => self.websockets += 1,
                Kind::EventStream => self.event_streams += 1,
            }
            self.queued_bytes += client.queued_bytes();
        }
    }

    fn add_behind(&mut self, lag: u64) {
        self.behind += 1;
        self.lag += lag;
        self.longest_lag = self.longest_lag.max(lag);
    }
}
