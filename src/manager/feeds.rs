//! Feeds in the manager: the last state of each, and how a new one gets to its subscribers.
//!
//! A state is replaced under the manager's lock, the lock under which subscribers register:
//! whoever comes before the replacement is on the list that gets the new state, whoever comes
//! after starts with it. Nobody is told an older state after a newer one, because every
//! subscriber knows the revision it was given last.

use std::mem;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use serde::Serialize;

use super::client::Client;
use super::events::{Event, EventKind};
use super::{Clients, ConnectionManager, Inner};
use crate::frame::{Chunk, StateFrame};
use crate::protocol::{Feed, Published, Rev, State, WatchStatus};

/// States of one feed that wait for their fan-out together; of more than this the oldest are
/// left out. A single larger state may wait alone.
const MAX_FRESH_BYTES: usize = 64 << 10;

/// One feed: its last state, and who wants to hear of the next.
#[derive(Debug)]
pub(super) struct FeedEntry {
    state: StateFrame,
    /// States since the last fan-out, the newest of them `state`.
    fresh: Vec<StateFrame>,
    pub(super) clients: Clients,
    /// Somebody waits for the first subscriber to come.
    waker: Option<Sender<()>>,
    watch: Option<WatchStatus>,
}

impl FeedEntry {
    pub(super) fn new(feed: &Feed) -> Self {
        Self {
            state: StateFrame::new(feed, feed.initial_state(), Rev(0)),
            fresh: Vec::new(),
            clients: Clients::default(),
            waker: None,
            watch: None,
        }
    }

    /// Whether the entry says no more than a new one would. What is built in stays: the routes
    /// have a state of their own before the first revision.
    pub(super) fn is_forgettable(&self, feed: &Feed) -> bool {
        self.clients.is_empty()
            && self.state.rev == Rev(0)
            && self.waker.is_none()
            && !feed.is_built_in()
    }

    pub(super) fn state(&self) -> &StateFrame {
        &self.state
    }

    /// A subscriber came: the first one is what a waker waits for. Never blocks.
    pub(super) fn wake(&self) {
        if let Some(waker) = &self.waker
            && self.clients.len() == 1
        {
            // Full means that it was woken already.
            let _ = waker.try_send(());
        }
    }
}

/// States on their way to a feed's subscribers.
#[derive(Debug)]
pub(super) struct Update {
    /// The first one's revision.
    pub(super) first: Rev,
    /// All of them, in order.
    pub(super) all: Chunk,
    /// The newest alone.
    pub(super) last: StateFrame,
}

impl Update {
    pub(super) fn new(states: &[StateFrame]) -> Option<Self> {
        let (first, last) = (states.first()?, states.last()?);
        let chunks: Vec<Chunk> = states.iter().map(|state| state.chunk().clone()).collect();
        Some(Self {
            first: first.rev,
            all: Chunk::concat(&chunks),
            last: last.clone(),
        })
    }
}

/// A feed as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FeedStatus {
    /// Its name.
    pub feed: Feed,
    /// The revision of its last state.
    pub rev: Rev,
    /// How many clients subscribe to it.
    pub subscribers: usize,
    /// How its source fares, if it is watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch: Option<WatchStatus>,
}

/// What a replaced state came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replaced {
    pub(crate) subscribers: usize,
    /// It is the first that waits for a fan-out, which nobody was asked for yet.
    pub(crate) needs_fan_out: bool,
}

impl ConnectionManager {
    /// Gives a feed this state, and tells its subscribers if it differs from the last one.
    ///
    /// Writes to idle sockets itself, never waits for a full one. Inside a
    /// [`Server`](crate::Server) states are stored, too, and come through
    /// [`Server::publish_state`](crate::Server::publish_state).
    pub fn publish(&self, feed: &Feed, state: &State) -> Published {
        loop {
            let last = self.last_state(feed);
            if state.is_same(last.state()) {
                return Published {
                    changed: false,
                    rev: last.rev,
                    subscribers: self.feed_subscribers(feed),
                    replayed: false,
                };
            }
            let rev = last.rev.next();
            let next = StateFrame::new(feed, state.as_str(), rev);
            // Somebody else may have published since the comparison, which is made again then.
            if let Some(replaced) = self.replace_state(feed, last.rev, next) {
                self.fan_out(feed);
                return Published {
                    changed: true,
                    rev,
                    subscribers: replaced.subscribers,
                    replayed: false,
                };
            }
        }
    }

    /// A feed's last state; the one it starts with if nobody has published to it.
    pub fn last_state(&self, feed: &Feed) -> StateFrame {
        let known = self.lock().feeds.get(feed).map(|entry| entry.state.clone());
        known.unwrap_or_else(|| FeedEntry::new(feed).state)
    }

    /// Every feed that has a state or a subscriber, and those that are built in, by name.
    pub fn feeds(&self) -> Vec<FeedStatus> {
        let status = |(feed, entry): (&Feed, &FeedEntry)| FeedStatus {
            feed: feed.clone(),
            rev: entry.state.rev,
            subscribers: entry.clients.len(),
            watch: entry.watch.clone(),
        };
        let mut feeds: Vec<_> = self.lock().feeds.iter().map(status).collect();
        for feed in Feed::built_in() {
            if !feeds.iter().any(|known| known.feed == feed) {
                feeds.push(FeedStatus {
                    feed,
                    rev: Rev(0),
                    subscribers: 0,
                    watch: None,
                });
            }
        }
        feeds.sort_by(|one, other| one.feed.cmp(&other.feed));
        feeds
    }

    /// How many clients a feed has.
    pub fn feed_subscribers(&self, feed: &Feed) -> usize {
        self.lock().feed_subscribers(feed)
    }

    /// How many feeds beside those that are built in have a state that somebody published.
    pub(crate) fn published_feeds(&self) -> usize {
        let inner = self.lock();
        let published = inner
            .feeds
            .iter()
            .filter(|(feed, entry)| entry.state.rev > Rev(0) && !feed.is_built_in());
        published.count()
    }

    /// Gives a feed the state that it had before this program started.
    pub(crate) fn restore(&self, feed: &Feed, state: StateFrame) {
        let mut inner = self.lock();
        let entry = inner.feed(feed);
        entry.state = state;
    }

    /// Replaces a feed's state if it is still that of `after`. Who connects from now on starts
    /// with it, who is there gets it with the next [`Self::fan_out`].
    pub(crate) fn replace_state(
        &self,
        feed: &Feed,
        after: Rev,
        state: StateFrame,
    ) -> Option<Replaced> {
        let mut inner = self.lock();
        let entry = inner.feed(feed);
        if entry.state.rev != after {
            return None;
        }
        entry.state = state.clone();
        let subscribers = entry.clients.len();
        let needs_fan_out = subscribers > 0 && entry.fresh.is_empty();
        if subscribers == 0 {
            entry.fresh.clear();
        } else {
            entry.fresh.push(state.clone());
            let mut bytes: usize = entry.fresh.iter().map(|state| state.chunk().len()).sum();
            while bytes > MAX_FRESH_BYTES && entry.fresh.len() > 1 {
                bytes -= entry.fresh.remove(0).chunk().len();
            }
        }
        self.events.emit(EventKind::State, || Event::State {
            feed: feed.clone(),
            state,
        });
        Some(Replaced {
            subscribers,
            needs_fan_out,
        })
    }

    /// Offers a feed's subscribers what is new since the last fan-out, and returns to how many
    /// that was new.
    ///
    /// Several threads may do this at once: no subscriber is given an older state after a
    /// newer one.
    pub(crate) fn fan_out(&self, feed: &Feed) -> usize {
        let (states, clients) = {
            let mut inner = self.lock();
            let Some(entry) = inner.feeds.get_mut(feed) else {
                return 0;
            };
            (mem::take(&mut entry.fresh), Arc::clone(&entry.clients))
        };
        let Some(update) = Update::new(&states) else {
            return 0;
        };
        let mut told = 0;
        Client::visit(&clients, |client| {
            told += usize::from(client.offer_states(&update));
        });
        log::debug!(
            "feed {feed} is at {}: {} bytes to {} clients",
            update.last.rev,
            update.all.len(),
            clients.len()
        );
        told
    }

    /// Something arrives here whenever the feed's first subscriber comes. One receiver for
    /// each feed; the latest counts.
    pub(crate) fn first_subscribers(&self, feed: &Feed) -> Receiver<()> {
        let (waker, woken) = crossbeam_channel::bounded(1);
        let mut inner = self.lock();
        let entry = inner.feed(feed);
        entry.waker = Some(waker);
        woken
    }

    /// Notes how a feed's source fares.
    pub(crate) fn show_watch(&self, feed: &Feed, status: WatchStatus) {
        self.lock().feed(feed).watch = Some(status);
    }
}

impl Inner {
    pub(super) fn feed_subscribers(&self, feed: &Feed) -> usize {
        self.feeds.get(feed).map_or(0, |entry| entry.clients.len())
    }

    /// The feed's entry, made if it isn't there.
    pub(super) fn feed(&mut self, feed: &Feed) -> &mut FeedEntry {
        self.feeds
            .entry(feed.clone())
            .or_insert_with(|| FeedEntry::new(feed))
    }
}
