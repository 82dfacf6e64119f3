//! Messages on their way to the clients, and which of them are fed live.
//!
//! The offered head is the newest message that was taken up: what comes after it is live, what
//! comes before it is in the store. It is raised in one step with taking the lists of clients,
//! and a client goes live in one step with the look at it.

use std::sync::Arc;

use super::client::{Client, Offer};
use super::events::{Event, EventKind};
use super::{Clients, ConnectionManager, Inner, Upcoming};
use crate::frame::{Chunk, CloseCode};
use crate::protocol::{Channel, MessageId, ServerFrame, Topic};

impl ConnectionManager {
    /// Offers a chunk of frames to every client of a channel, and returns how many took it.
    ///
    /// Writes to idle sockets itself, never waits for a full one. A client whose outbox is
    /// full is removed and told to come back (1013): a manager by itself has no store from
    /// which it could go on.
    pub fn broadcast(&self, channel: &Channel, chunk: &Chunk) -> usize {
        self.announce(channel, chunk);
        let clients = match self.lock().channels.get(channel) {
            Some(entry) => Arc::clone(&entry.clients),
            None => return 0,
        };
        let mut reached = clients.len();
        Client::visit(&clients, |client| {
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
        });
        reached
    }

    /// Tells the handlers of frames that [`Client::offer_messages`] brings to the clients.
    pub(crate) fn announce(&self, channel: &Channel, frames: &Chunk) {
        self.events.emit(EventKind::Message, || Event::Message {
            channel: channel.clone(),
            frames: frames.clone(),
        });
    }

    /// Everything up to `head` is in the store, and nothing of it will be offered.
    pub(crate) fn begin_at(&self, head: MessageId) {
        self.lock().offered_head = head;
    }

    /// Takes up messages without offering them, because none of their channels has a
    /// subscriber and everything up to `after` was taken up before; `false` if that is not so.
    pub(crate) fn pass_unheard<'a>(
        &self,
        mut channels: impl Iterator<Item = &'a Channel>,
        after: MessageId,
        head: MessageId,
    ) -> bool {
        let mut inner = self.lock();
        let unheard = inner.offered_head == after
            && channels.all(|channel| !inner.channels.contains_key(channel));
        if unheard {
            inner.offered_head = head;
        }
        unheard
    }

    /// Takes up messages: raises the offered head and returns the clients of each channel, in
    /// one step. Whoever registers or goes live later has all of them from the store.
    pub(crate) fn take_up<'a>(
        &self,
        newest: impl Iterator<Item = (&'a Channel, MessageId)>,
        head: MessageId,
    ) -> Vec<Clients> {
        let mut inner = self.lock();
        inner.offered_head = inner.offered_head.max(head);
        newest
            .map(|(channel, id)| match inner.channels.get_mut(channel) {
                Some(entry) => {
                    entry.offered = entry.offered.max(id);
                    Arc::clone(&entry.clients)
                }
                None => Clients::default(),
            })
            .collect()
    }

    /// Keeps a chunk of so many messages `ids.0..=ids.1`, which is offered next, for those that
    /// fall behind.
    pub(crate) fn remember(
        &self,
        channel: &Channel,
        ids: (MessageId, MessageId),
        messages: usize,
        chunk: &Chunk,
    ) {
        let mut inner = self.lock();
        let Inner {
            recent, channels, ..
        } = &mut *inner;
        recent.remember(channels, channel, ids, messages, chunk);
    }

    /// Where the next message of a client that is behind is.
    pub(crate) fn upcoming(&self, channel: &Channel, cursor: MessageId) -> Upcoming {
        let inner = self.lock();
        match inner.channels.get(channel) {
            Some(entry) => entry.window.upcoming(cursor, inner.offered_head),
            None => Upcoming::Store(inner.offered_head),
        }
    }

    /// Lets every client of a channel go on from the store: what was committed up to `head` may
    /// not have reached all of them, and will not.
    pub(crate) fn fall_behind(&self, head: MessageId) {
        let lists: Vec<Clients> = {
            let mut inner = self.lock();
            inner.offered_head = inner.offered_head.max(head);
            let Inner {
                recent, channels, ..
            } = &mut *inner;
            let entries = channels.values_mut();
            let lists = entries.map(|entry| {
                // Chunks may be missing in it.
                recent.forget(&mut entry.window);
                Arc::clone(&entry.clients)
            });
            lists.collect()
        };
        for client in lists.iter().flat_map(|clients| clients.iter()) {
            client.fall_behind();
        }
    }

    /// The newest message that was taken up.
    pub(crate) fn offered_head(&self) -> MessageId {
        self.lock().offered_head
    }

    /// Feeds a client again that was brought everything up to its cursor; `false` when there
    /// is more of its channel by now, or when the broadcast is not yet as far as its cursor.
    /// With `announce` it is told `caught_up` before whatever comes live, and not before the
    /// broadcast is as far as that.
    pub(crate) fn go_live(&self, client: &Client, announce: Option<MessageId>) -> bool {
        let inner = self.lock();
        let Topic::Channel(channel) = &client.topic else {
            return true;
        };
        let Some(entry) = inner.channels.get(channel) else {
            // It was removed: nobody feeds it any more, and there is nothing to wait for.
            client.set_cursor(client.cursor(), false);
            return true;
        };
        let (cursor, head) = (client.cursor(), inner.offered_head);
        if entry.offered > cursor || head < cursor.max(announce.unwrap_or_default()) {
            return false;
        }
        if announce.is_some() {
            client.queue_reply(Chunk::json(&ServerFrame::CaughtUp { head }));
        }
        client.set_cursor(head, false);
        true
    }
}
