//! The sequencer: the one thread that commits messages and states and thereby decides their order.
//!
//! It takes all that wait, commits them in one transaction, passes messages on to the
//! `broadcast` thread and states to the `feeds` thread, and answers the publishers. Commit
//! order is id order is delivery order; nothing is broadcast or acknowledged that is not
//! committed.

mod broadcast;
mod clock;
mod states;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use crate::config::{Config, Retention};
use crate::error::{Error, Result};
use crate::frame::MessageFrame;
use crate::history::History;
use crate::manager::ConnectionManager;
use crate::protocol::{Channel, Draft, Feed, MessageId, Published, State, WORKFLOW_HISTORY};
use crate::store::{self, Writer};
use crate::usage::Usage;
use broadcast::Broadcast;
use states::{Feeds, StateOrder};

pub use states::StateDone;

/// Called at the commit, on the journal's thread: it must not block.
pub type Done = Box<dyn FnOnce(Result<&[Committed], &Error>) + Send>;

/// A draft that is now a message.
#[derive(Debug)]
pub struct Committed {
    /// Where it goes.
    pub channel: Channel,
    /// Its id, and its bytes for subscribers and publisher.
    pub frame: MessageFrame,
    /// How many subscribers its channel had at the commit.
    pub subscribers: usize,
}

/// Drafts that are committed together or not at all, and who wants to know.
struct Submission {
    drafts: Vec<Draft>,
    bytes: usize,
    done: Done,
}

enum Order {
    Commit(Submission),
    State(StateOrder),
    Stop,
}

/// Takes drafts and states from any thread.
///
/// Its queue is bounded by bytes: publishers ask [`Self::has_room`] first. What they submit
/// after that is always taken, so it may be overrun by one submission per publisher.
pub struct Journal {
    orders: Sender<Order>,
    queued_bytes: Arc<AtomicUsize>,
    head: Arc<AtomicU64>,
    max_queued_bytes: usize,
    manager: Arc<ConnectionManager>,
    /// In the order in which they end.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Journal {
    /// Starts the `journal`, `broadcast` and `feeds` threads; `head` is the newest id of the
    /// store, `history` what the workflows' history was, if the server is to go on with it.
    ///
    /// # Errors
    /// When the process may not have another thread.
    pub fn start(
        writer: Box<dyn Writer>,
        head: MessageId,
        history: Option<History>,
        manager: Arc<ConnectionManager>,
        usage: Arc<Usage>,
        config: &Config,
    ) -> io::Result<Self> {
        let limits = &config.limits;
        let (orders, received) = unbounded();
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let (broadcast, broadcast_thread) =
            Broadcast::start(Arc::clone(&manager), head, limits.max_fanout_bytes)?;
        let head = Arc::new(AtomicU64::new(head.0));
        let (feeds, feeds_thread) =
            Feeds::start(Arc::clone(&manager), history, limits.max_feeds, usage)?;
        let mut sequencer = Sequencer {
            orders: received,
            queued_bytes: Arc::clone(&queued_bytes),
            head: Arc::clone(&head),
            writer,
            manager: Arc::clone(&manager),
            broadcast,
            feeds,
            max_batch: limits.max_batch.max(1),
            retention: config.retention.clone(),
            forgetting: true,
            last_batch: 0,
            failing: false,
        };
        let journal_thread =
            thread::Builder::new()
                .name("journal".to_owned())
                .spawn(move || {
                    sequencer.run();
                    sequencer.writer.close();
                })?;
        Ok(Self {
            orders,
            queued_bytes,
            head,
            max_queued_bytes: limits.max_queued_bytes,
            manager,
            threads: Mutex::new(vec![journal_thread, broadcast_thread, feeds_thread]),
        })
    }

    /// The newest id that is committed, 0 before the first.
    pub fn head(&self) -> MessageId {
        MessageId(self.head.load(Ordering::Acquire))
    }

    /// Whether less waits than may. Publishers that find no room answer 503 or read no further.
    pub fn has_room(&self) -> bool {
        self.queued_bytes() < self.max_queued_bytes
    }

    /// How many bytes of drafts and states wait to be committed, those of the commit at hand
    /// included.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes.load(Ordering::Relaxed)
    }

    /// Queues drafts to be committed together; `done` hears the outcome. Never blocks.
    pub fn submit(&self, drafts: Vec<Draft>, done: Done) {
        let bytes = drafts.iter().map(Draft::size).sum();
        let submission = Submission {
            drafts,
            bytes,
            done,
        };
        if let Err(Order::Commit(refused)) = self.send(Order::Commit(submission), bytes) {
            (refused.done)(Err(&shutting_down()));
        }
    }

    /// Submits a draft and waits until it is committed.
    ///
    /// # Errors
    /// [`Error::Store`]; nothing was stored then.
    pub fn submit_and_wait(&self, draft: Draft) -> Result<MessageId> {
        let (answer, answered) = crossbeam_channel::bounded(1);
        let done = move |outcome: Result<&[Committed], &Error>| {
            let id = match outcome {
                Ok(committed) => Ok(committed[0].frame.id),
                Err(error) => Err(error.as_store()),
            };
            // The receiver below waits for it.
            let _ = answer.send(id);
        };
        self.submit(vec![draft], Box::new(done));
        answered.recv().unwrap_or_else(|_| Err(lost()))
    }

    /// Queues a state for a feed; `done` hears what it came to. One that is the last state
    /// already is answered on the spot. Never blocks.
    pub fn publish(&self, feed: Feed, state: State, done: StateDone) {
        let last = self.manager.last_state(&feed);
        // Whoever publishes the history takes it over, which the journal has to know.
        let is_same = state.is_same(last.state());
        if is_same && feed.as_str() != WORKFLOW_HISTORY {
            return done(Ok(Published {
                changed: false,
                rev: last.rev,
                subscribers: self.manager.feed_subscribers(&feed),
            }));
        }
        let state = state.into_text();
        let bytes = state.len();
        let order = StateOrder {
            feed,
            state,
            differs_from: (!is_same).then_some(last.rev),
            done,
        };
        if let Err(Order::State(refused)) = self.send(Order::State(order), bytes) {
            (refused.done)(Err(shutting_down()));
        }
    }

    /// Publishes a state and waits until it is committed.
    ///
    /// # Errors
    /// [`Error::Store`] or [`Error::TooManyFeeds`]; nothing has changed then.
    pub fn publish_and_wait(&self, feed: &Feed, state: State) -> Result<Published> {
        let (answer, answered) = crossbeam_channel::bounded(1);
        let done = move |outcome| {
            // The receiver below waits for it.
            let _ = answer.send(outcome);
        };
        self.publish(feed.clone(), state, Box::new(done));
        answered.recv().unwrap_or_else(|_| Err(lost()))
    }

    /// Counts an order in and hands it over; it comes back when the journal has ended.
    fn send(&self, order: Order, bytes: usize) -> Result<(), Order> {
        self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.orders.send(order).map_err(|refused| {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            refused.into_inner()
        })
    }

    /// Commits and broadcasts what was submitted before, refuses what comes after, closes the
    /// store. Blocks until that is done.
    pub fn stop(&self) {
        let _ = self.orders.send(Order::Stop);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn lost() -> Error {
    Error::Store("a bug lost the answer".to_owned())
}

fn shutting_down() -> Error {
    Error::Store("the server is shutting down".to_owned())
}

/// The journal's thread.
struct Sequencer {
    orders: Receiver<Order>,
    queued_bytes: Arc<AtomicUsize>,
    head: Arc<AtomicU64>,
    writer: Box<dyn Writer>,
    manager: Arc<ConnectionManager>,
    broadcast: Broadcast,
    feeds: Feeds,
    max_batch: usize,
    retention: Retention,
    /// There may be messages that are not to be kept.
    forgetting: bool,
    /// Messages in the last batch.
    last_batch: usize,
    /// The last commit failed; it is logged when that begins and when it ends.
    failing: bool,
}

/// Drafts of several submissions and states, side by side for one transaction.
#[derive(Default)]
struct Batch {
    drafts: Vec<Draft>,
    parts: Vec<(usize, Done)>,
    states: Vec<StateOrder>,
    bytes: usize,
}

/// Bytes of drafts and states in one transaction, so that a batch of large ones stays short.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// Messages forgotten in one step: a millisecond or two.
const FORGOTTEN_AT_ONCE: usize = 200;

/// How often it is looked whether messages are too old.
const RETENTION_INTERVAL: Duration = Duration::from_secs(1);

impl Sequencer {
    fn run(&mut self) {
        while let Some(order) = self.next_order() {
            let mut batch = Batch::default();
            let mut next = Some(order);
            let mut stopping = false;
            while let Some(order) = next {
                match order {
                    Order::Commit(submission) => batch.add(submission),
                    Order::State(order) => batch.add_state(order),
                    Order::Stop => {
                        stopping = true;
                        break;
                    }
                }
                let full = batch.drafts.len() + batch.states.len() >= self.max_batch
                    || batch.bytes >= MAX_BATCH_BYTES;
                next = if full {
                    None
                } else {
                    self.orders.try_recv().ok()
                };
            }
            let bytes = batch.bytes;
            // A bug here must not leave a server that refuses everything for ever: this batch's
            // publishers hear 500, the next batch is tried.
            if catch_unwind(AssertUnwindSafe(|| self.commit(batch))).is_err() {
                log::error!("a bug in the journal: a batch was lost before its answer");
            }
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            if stopping {
                return;
            }
        }
    }

    /// Waits for the next order and forgets messages meanwhile, a few at a time; `None` when
    /// nobody can send one any more.
    fn next_order(&mut self) -> Option<Order> {
        if self.retention == Retention::default() {
            return self.orders.recv().ok();
        }
        loop {
            if self.forgetting {
                // Twice what has come, so that it keeps up with any load.
                self.forget(FORGOTTEN_AT_ONCE.max(2 * self.last_batch));
            }
            // Messages grow older without an order, too.
            let patience = if self.forgetting {
                Duration::ZERO
            } else {
                RETENTION_INTERVAL
            };
            match self.orders.recv_timeout(patience) {
                Ok(order) => return Some(order),
                Err(RecvTimeoutError::Timeout) => self.forgetting = true,
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Deletes some of the messages that are not to be kept.
    fn forget(&mut self, limit: usize) {
        let rule = store::Rule {
            keep_messages: self.retention.keep_messages,
            not_before: self.retention.keep_age.map(clock::before),
            max_db_bytes: self.retention.max_db_bytes,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| self.writer.forget(&rule, limit)));
        self.forgetting = match outcome {
            Ok(Ok(more)) => more,
            Ok(Err(error)) => {
                log::warn!("old messages stay for now: {error}");
                false
            }
            Err(_) => false,
        };
    }

    fn commit(&mut self, batch: Batch) {
        if batch.parts.is_empty() && batch.states.is_empty() {
            return;
        }
        let timestamp = clock::now();
        let mut plan = self.feeds.plan(&batch.states, &timestamp);
        let outcome = if batch.drafts.is_empty() && plan.is_empty() {
            Ok(Vec::new())
        } else {
            let outcome = self.writer.commit(&store::Batch {
                drafts: &batch.drafts,
                states: &plan.states(),
                transitions: plan.transitions(),
                timestamp: &timestamp,
            });
            self.log_changes(outcome.as_ref().err());
            outcome
        };
        let committed = outcome.map(|ids| {
            if let Some(newest) = ids.last() {
                self.head.store(newest.0, Ordering::Release);
                self.forgetting = true;
                self.last_batch = ids.len();
            }
            let manager = &self.manager;
            batch
                .drafts
                .iter()
                .zip(ids)
                .map(|(draft, id)| Committed {
                    channel: draft.channel_id.clone(),
                    frame: MessageFrame::new(&draft.committed(id, &timestamp)),
                    subscribers: manager.subscribers(&draft.channel_id),
                })
                .collect::<Vec<_>>()
        });
        if committed.is_ok() {
            self.feeds.apply(&mut plan);
        }
        self.feeds
            .answer(plan, batch.states, committed.as_ref().err());
        if let Ok(messages) = &committed {
            for message in messages {
                self.manager
                    .announce(&message.channel, message.frame.chunk());
            }
            self.broadcast.send(messages);
        }
        let mut first = 0;
        for (count, done) in batch.parts {
            let outcome = committed
                .as_ref()
                .map(|messages| &messages[first..first + count]);
            // A publisher's code that panics costs the others nothing; the panic is reported.
            let _ = catch_unwind(AssertUnwindSafe(|| done(outcome)));
            first += count;
        }
    }

    fn log_changes(&mut self, error: Option<&Error>) {
        match error {
            Some(error) if !self.failing => {
                log::error!("{error}; publishers get 503 until a commit succeeds")
            }
            None if self.failing => log::info!("the store works again"),
            _ => {}
        }
        self.failing = error.is_some();
    }
}

impl Batch {
    fn add(&mut self, submission: Submission) {
        self.parts.push((submission.drafts.len(), submission.done));
        self.bytes += submission.bytes;
        self.drafts.extend(submission.drafts);
    }

    fn add_state(&mut self, order: StateOrder) {
        self.bytes += order.state.len();
        self.states.push(order);
    }
}
