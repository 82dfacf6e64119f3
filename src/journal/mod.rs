//! The sequencer: the one thread that commits messages and states and thereby decides their order.
//!
//! It takes all that wait, commits them in one transaction, passes messages on to the
//! `broadcast` thread and states to the `feeds` thread, and answers the publishers. Commit
//! order is id order is delivery order; nothing is broadcast or acknowledged that is not
//! committed.

mod batch;
mod broadcast;
mod forgetting;
mod pace;
mod receipts;
mod sequencer;
mod shared;
mod states;

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Sender, unbounded};

use crate::backplane::{Link, Presence};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::frame::MessageFrame;
use crate::history::History;
use crate::manager::ConnectionManager;
use crate::protocol::{Channel, Draft, Feed, MessageId, Published, State, WORKFLOW_HISTORY};
use crate::store::{Claim, Writer};
use crate::usage::Usage;
use broadcast::Broadcast;
use forgetting::Forgetting;
use pace::Pace;
use sequencer::Sequencer;
use shared::{Replica, Shared, Unanswered};
use states::{Feeds, StateOrder};

pub(crate) use shared::{Node, OwnFeeds};
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
    /// It was committed earlier: the request was a repetition (`Idempotency-Key`).
    pub replayed: bool,
}

/// Drafts that are committed together or not at all, and who wants to know.
struct Submission {
    drafts: Vec<Draft>,
    bytes: usize,
    /// To be done once.
    claim: Option<Box<Claim>>,
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
    usage: Arc<Usage>,
    /// The other threads of a node of several.
    shared: Option<Shared>,
    ending: Mutex<Ending>,
}

/// What is left to do at the end.
struct Ending {
    journal: Option<JoinHandle<Box<dyn Writer>>>,
    fan_outs: Vec<JoinHandle<()>>,
    writer: Option<Box<dyn Writer>>,
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
        Self::start_with(writer, head, history, manager, usage, config, None)
    }

    /// [`Self::start`]; with a node, its log is the one that others share.
    pub(crate) fn start_with(
        writer: Box<dyn Writer>,
        head: MessageId,
        history: Option<History>,
        manager: Arc<ConnectionManager>,
        usage: Arc<Usage>,
        config: &Config,
        node: Option<Node>,
    ) -> io::Result<Self> {
        let limits = &config.limits;
        let (orders, received) = unbounded();
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let (broadcast, broadcast_thread) = Broadcast::start(
            Arc::clone(&manager),
            head,
            limits.max_fanout_bytes,
            Arc::clone(&usage),
        )?;
        let head = Arc::new(AtomicU64::new(head.0));
        let (feeds, feeds_thread) = Feeds::start(
            Arc::clone(&manager),
            history,
            limits.max_feeds,
            Arc::clone(&usage),
        )?;
        let max_batch = limits.max_batch.max(1);
        let forgetting = Forgetting::new(config.retention.clone());
        let (shared, journal_thread) = match node {
            None => {
                let sequencer = Sequencer {
                    orders: received,
                    queued_bytes: Arc::clone(&queued_bytes),
                    head: Arc::clone(&head),
                    writer,
                    manager: Arc::clone(&manager),
                    usage: Arc::clone(&usage),
                    broadcast,
                    feeds,
                    held: None,
                    pace: Pace::default(),
                    max_batch,
                    forgetting,
                    failing: false,
                };
                (
                    None,
                    spawn(sequencer, Sequencer::run, |ended| ended.writer)?,
                )
            }
            Some(node) => {
                let (link, own, mark) =
                    (Arc::clone(&node.link), node.own.clone(), node.mark.clone());
                let (shared, steps, finds) = Shared::start(
                    node,
                    received,
                    &queued_bytes,
                    Arc::clone(&usage),
                    max_batch,
                    &manager,
                    feeds.planner(),
                )?;
                let replica = Replica {
                    steps,
                    finds,
                    head: Arc::clone(&head),
                    writer,
                    manager: Arc::clone(&manager),
                    usage: Arc::clone(&usage),
                    broadcast,
                    feeds,
                    link,
                    own,
                    mark,
                    forgetting,
                    unanswered: Unanswered::new(Arc::clone(&queued_bytes)),
                    failing: false,
                };
                (
                    Some(shared),
                    spawn(replica, Replica::run, |ended| ended.writer)?,
                )
            }
        };
        Ok(Self {
            orders,
            queued_bytes,
            head,
            max_queued_bytes: limits.max_queued_bytes,
            manager,
            usage,
            shared,
            ending: Mutex::new(Ending {
                journal: Some(journal_thread),
                fan_outs: vec![broadcast_thread, feeds_thread],
                writer: None,
            }),
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

    /// What is known of the log that it shares with other nodes, if it does.
    pub(crate) fn link(&self) -> Option<&Arc<Link>> {
        self.shared.as_ref().map(|shared| &shared.link)
    }

    /// How this node and the others tell of themselves, if there are any.
    pub(crate) fn presence(&self) -> Option<&Arc<Presence>> {
        self.shared.as_ref().map(|shared| &shared.presence)
    }

    /// How many publishers' drafts and states wait for the journal to take them.
    pub fn queued_orders(&self) -> usize {
        self.orders.len()
    }

    /// Queues drafts to be committed together; `done` hears the outcome. Never blocks.
    pub fn submit(&self, drafts: Vec<Draft>, done: Done) {
        self.submit_once(drafts, None, done);
    }

    /// [`Self::submit`]; with a claim that was committed before, `done` hears of that again, or
    /// [`Error::KeyReused`].
    pub(crate) fn submit_once(&self, drafts: Vec<Draft>, claim: Option<Claim>, done: Done) {
        if let Some(Err(error)) = self.shared.as_ref().map(|shared| shared.link.accepts()) {
            return done(Err(&error));
        }
        let bytes = drafts.iter().map(Draft::size).sum();
        let submission = Submission {
            drafts,
            bytes,
            claim: claim.map(Box::new),
            done,
        };
        if let Err(Order::Commit(refused)) = self.send(Order::Commit(submission), bytes) {
            (refused.done)(Err(&shutting_down()));
        }
    }

    /// Waits until the journal has done what was submitted before, well or not; `false` when it
    /// has ended.
    pub fn is_running(&self) -> bool {
        let (answer, answered) = crossbeam_channel::bounded::<()>(0);
        let nothing = Submission {
            drafts: Vec::new(),
            bytes: 0,
            claim: None,
            done: Box::new(move |_| drop(answer)),
        };
        let order = Order::Commit(nothing);
        let is_taken = match &self.shared {
            None => self.send(order, 0).is_ok(),
            Some(shared) => shared.tell(order).is_ok(),
        };
        // Nothing is ever said on it: it closes.
        let _ = answered.recv();
        is_taken
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
        self.publish_once(feed, state, None, done);
    }

    /// [`Self::publish`]; with a claim that was committed before, `done` hears of that again, or
    /// [`Error::KeyReused`].
    pub(crate) fn publish_once(
        &self,
        feed: Feed,
        state: State,
        claim: Option<Claim>,
        done: StateDone,
    ) {
        if let Some(Err(error)) = self.shared.as_ref().map(|shared| shared.link.accepts()) {
            return done(Err(error));
        }
        let last = self.manager.last_state(&feed);
        // Whoever publishes the history takes it over, which the journal has to know.
        let is_same = state.is_same(last.state());
        // Of several nodes another one may have a newer state, which only the log knows.
        let is_certain = claim.is_none() && self.shared.is_none();
        if is_same && is_certain && feed.as_str() != WORKFLOW_HISTORY {
            self.usage.traffic.states_unchanged.add();
            return done(Ok(Published {
                changed: false,
                rev: last.rev,
                subscribers: self.manager.feed_subscribers(&feed),
                replayed: false,
            }));
        }
        let state = state.into_text();
        let bytes = state.len();
        let order = StateOrder {
            feed,
            state,
            differs_from: (!is_same).then_some(last.rev),
            claim: claim.map(Box::new),
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

    /// Commits and broadcasts what was submitted before, refuses what comes after. Blocks until
    /// that is done. The store stays open, for those that still read it.
    pub fn stop(&self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(shared) = &self.shared {
            shared.stop();
        }
        let mut ending = self.ending();
        // A panic was reported when it happened.
        if let Some(writer) = ending.journal.take().and_then(|thread| thread.join().ok()) {
            ending.writer = Some(writer);
        }
        for thread in ending.fan_outs.drain(..) {
            let _ = thread.join();
        }
    }

    /// Closes the store, after [`Self::stop`]. Blocks until what is read is read.
    pub fn close(&self) {
        if let Some(writer) = self.ending().writer.take() {
            writer.close();
        }
    }

    fn ending(&self) -> MutexGuard<'_, Ending> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs what has the writer on the journal's thread.
fn spawn<T: Send + 'static>(
    mut sequencer: T,
    run: impl FnOnce(&mut T) + Send + 'static,
    writer: impl FnOnce(T) -> Box<dyn Writer> + Send + 'static,
) -> io::Result<JoinHandle<Box<dyn Writer>>> {
    thread::Builder::new()
        .name("journal".to_owned())
        .spawn(move || {
            run(&mut sequencer);
            // With the rest the ways to the other threads end, and they do.
            writer(sequencer)
        })
}

fn lost() -> Error {
    Error::Store("a bug lost the answer".to_owned())
}

fn shutting_down() -> Error {
    Error::Store("the server is shutting down".to_owned())
}
