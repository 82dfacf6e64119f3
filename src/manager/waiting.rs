//! Threads that wait for the next message without being clients: long polls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{ConnectionManager, Wake};
use crate::protocol::{Channel, MessageId};

/// Who waits for a message of a channel, or with `None` for any. Bounded by the connections:
/// each waits in one place at most.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    last_id: u64,
    by_channel: HashMap<Option<Channel>, HashMap<u64, Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    /// Up to this message it has seen all.
    since: MessageId,
    wake: Arc<Wake>,
}

/// Somebody who is woken at every commit that may concern it, until this is dropped.
pub(crate) struct Awaiting<'a> {
    waiting: &'a Waiting,
    id: u64,
    channel: Option<Channel>,
}

impl ConnectionManager {
    /// Wakes a thread whenever a message of this channel, or any, is committed from now on with
    /// a greater id than this, and when something that concerns everybody has changed.
    ///
    /// Whoever looks at the store after this has missed nothing: it finds the message there or
    /// is woken.
    pub(crate) fn await_messages(
        &self,
        channel: Option<Channel>,
        since: MessageId,
        wake: Arc<Wake>,
    ) -> Awaiting<'_> {
        let mut inner = self.waiting.lock();
        inner.last_id += 1;
        let id = inner.last_id;
        let there = inner.by_channel.entry(channel.clone()).or_default();
        there.insert(id, Waiter { since, wake });
        Awaiting {
            waiting: &self.waiting,
            id,
            channel,
        }
    }

    /// Messages of these channels were committed, up to the newest: wakes who waits for them.
    pub(crate) fn wake_waiting_for<'a>(
        &self,
        channels: impl Iterator<Item = &'a Channel>,
        newest: MessageId,
    ) {
        // Always under the lock: whoever comes after it finds the messages in the store.
        let wakes: Vec<Arc<Wake>> = {
            let inner = self.waiting.lock();
            if inner.by_channel.is_empty() {
                return;
            }
            let mut concerned: Vec<Option<Channel>> = channels.cloned().map(Some).collect();
            concerned.push(None);
            concerned.sort_unstable();
            concerned.dedup();
            let maps = concerned.iter().filter_map(|it| inner.by_channel.get(it));
            let waiters = maps.flat_map(HashMap::values);
            waiters
                .filter(|waiter| waiter.since < newest)
                .map(|waiter| Arc::clone(&waiter.wake))
                .collect()
        };
        wakes.iter().for_each(|wake| wake.wake());
    }

    /// Makes everybody who waits look around.
    pub(crate) fn wake_waiting(&self) {
        let wakes: Vec<Arc<Wake>> = {
            let inner = self.waiting.lock();
            let waiters = inner.by_channel.values().flat_map(HashMap::values);
            waiters.map(|waiter| Arc::clone(&waiter.wake)).collect()
        };
        wakes.iter().for_each(|wake| wake.wake());
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        let mut inner = self.waiting.lock();
        if let Some(there) = inner.by_channel.get_mut(&self.channel) {
            there.remove(&self.id);
            if there.is_empty() {
                inner.by_channel.remove(&self.channel);
            }
        }
    }
}
