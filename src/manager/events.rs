//! What happens in the manager, for handlers of the program that it is embedded in.
//!
//! A handler runs on a thread of its own, behind a bounded queue: one that is slow, fails or
//! panics disturbs neither the clients nor the other handlers.

use std::fmt::Display;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::ConnectionManager;
use crate::access::Peer;
use crate::frame::{Chunk, StateFrame};
use crate::protocol::{Channel, Feed, Topic};

/// Events that wait for one handler; what comes beyond is counted and reported as missed.
const MAX_WAITING: usize = 1024;

/// A type of event, to subscribe to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// [`Event::Connected`].
    Connected,
    /// [`Event::Disconnected`].
    Disconnected,
    /// [`Event::Message`].
    Message,
    /// [`Event::State`].
    State,
}

/// Something that happened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A client was registered.
    Connected {
        /// Its id.
        client: u64,
        /// What it subscribed to.
        topic: Topic,
        /// Where it comes from.
        peer: Peer,
    },
    /// A client was unregistered.
    Disconnected {
        /// Its id.
        client: u64,
        /// What it had subscribed to.
        topic: Topic,
        /// Where it came from.
        peer: Peer,
    },
    /// Frames were broadcast on a channel, whether it has subscribers or not.
    Message {
        /// The channel.
        channel: Channel,
        /// What subscribers get; [`Chunk::texts`] are the JSON texts in it.
        frames: Chunk,
    },
    /// A feed's state has changed.
    State {
        /// The feed.
        feed: Feed,
        /// Its new state.
        state: StateFrame,
    },
    /// This handler was too slow: so many events of its type are lost to it. Told to handlers
    /// of every type.
    Missed {
        /// How many.
        count: u64,
    },
}

/// A handler's registration, for [`ConnectionManager::unsubscribe`]. Dropping it does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subscription(u64);

/// The handlers and the ways to them. Bounded by what the embedding program subscribes.
#[derive(Debug, Default)]
pub(super) struct Events {
    handlers: Mutex<Handlers>,
    /// How many there are, so that nobody takes a lock when there is none.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Handlers {
    last: u64,
    all: Vec<Handler>,
}

#[derive(Debug)]
struct Handler {
    subscription: Subscription,
    kind: EventKind,
    queue: Sender<Event>,
    missed: Arc<AtomicU64>,
}

impl ConnectionManager {
    /// Calls `handler` with every event of this type from now on, one at a time, in the order
    /// in which they happened, on a thread of its own.
    ///
    /// An error it returns is logged, a panic too; it is called again for the next event. Up
    /// to 1,024 events wait for it; what comes beyond it is told as [`Event::Missed`].
    ///
    /// # Errors
    /// When the process may not have another thread.
    pub fn subscribe<E: Display>(
        &self,
        kind: EventKind,
        handler: impl FnMut(&Event) -> Result<(), E> + Send + 'static,
    ) -> io::Result<Subscription> {
        let (queue, events) = bounded(MAX_WAITING);
        let missed = Arc::new(AtomicU64::new(0));
        let missed_there = Arc::clone(&missed);
        thread::Builder::new()
            .name("handler".to_owned())
            .spawn(move || run(handler, &events, &missed_there))?;
        let mut handlers = self.events.lock();
        handlers.last += 1;
        let subscription = Subscription(handlers.last);
        handlers.all.push(Handler {
            subscription,
            kind,
            queue,
            missed,
        });
        self.events
            .count
            .store(handlers.all.len(), Ordering::SeqCst);
        Ok(subscription)
    }

    /// Ends a subscription: the handler still gets what waits for it, then nothing. `false`
    /// when it was ended before.
    pub fn unsubscribe(&self, subscription: Subscription) -> bool {
        let mut handlers = self.events.lock();
        let before = handlers.all.len();
        handlers
            .all
            .retain(|handler| handler.subscription != subscription);
        self.events
            .count
            .store(handlers.all.len(), Ordering::SeqCst);
        handlers.all.len() < before
    }
}

impl Events {
    /// Queues an event for the handlers of its kind; it is made only if there is one. Never
    /// blocks.
    pub(super) fn emit(&self, kind: EventKind, event: impl FnOnce() -> Event) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let handlers = self.lock();
        let mut concerned = handlers
            .all
            .iter()
            .filter(|handler| handler.kind == kind)
            .peekable();
        if concerned.peek().is_none() {
            return;
        }
        let event = event();
        for handler in concerned {
            if let Err(TrySendError::Full(_)) = handler.queue.try_send(event.clone()) {
                handler.missed.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Handlers> {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run<E: Display>(
    mut handler: impl FnMut(&Event) -> Result<(), E>,
    events: &Receiver<Event>,
    missed: &AtomicU64,
) {
    let mut call = |event: &Event| {
        // The panic itself is reported by the program's panic hook.
        match catch_unwind(AssertUnwindSafe(|| handler(event))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn!("an event handler failed: {error}"),
            Err(_) => log::error!("an event handler panicked; it is called again"),
        }
    };
    for event in events {
        call(&event);
        // The queue was full behind this event or one before it.
        let count = missed.swap(0, Ordering::SeqCst);
        if count > 0 {
            call(&Event::Missed { count });
        }
    }
}
