//! The journal of a node that shares its log with others.
//!
//! | thread | what it does |
//! |---|---|
//! | `append` | takes what publishers submit, appends it to the shared log, a batch at a time |
//! | `follow` | reads the log and hands it over |
//! | `journal` | stores and broadcasts what was read, and answers publishers when theirs is there |
//!
//! So what a publisher is told is in the log, and in this node's store: whoever asks this node
//! finds it.

mod append;
pub(super) mod apply;
mod changes;
pub(super) mod follow;
mod unanswered;

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::Order;
use super::batch::Batch;
use super::states::{Feeds, Plan};
use crate::backplane::{Appended, Appender, Backplane, Follower, Link, Presence};
use crate::error::Error;
use crate::history::History;
use crate::manager::ConnectionManager;
use crate::protocol::{Feed, LogMark, Position, State, StoredState, WORKFLOW_HISTORY};
use crate::usage::Usage;
use append::Appending;
pub(super) use apply::Replica;
use follow::{Following, Found};
pub(super) use unanswered::Unanswered;

/// What a server needs to be a node.
pub(crate) struct Node {
    /// Where the log is.
    pub(crate) backplane: Backplane,
    /// Up to where this node has it.
    pub(crate) mark: LogMark,
    /// The log, if it could be joined already.
    pub(crate) follower: Option<Follower>,
    /// What is known of it.
    pub(crate) link: Arc<Link>,
    /// Feeds whose state a server made itself.
    pub(crate) own: OwnFeeds,
    /// How this node and the others tell of themselves.
    pub(crate) presence: Arc<Presence>,
    /// The state of the feed `routes`, if the server makes it.
    pub(crate) routes: Option<State>,
}

/// Feeds whose last state a server made itself, so that servers go on with them.
#[derive(Clone, Default)]
pub(crate) struct OwnFeeds(Arc<Mutex<BTreeSet<Feed>>>);

impl OwnFeeds {
    pub(crate) fn note(&self, stored: &StoredState) {
        let mut own = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if stored.own {
            own.insert(stored.feed.clone());
        } else {
            own.remove(&stored.feed);
        }
    }

    pub(crate) fn has(&self, feed: &Feed) -> bool {
        let own = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        own.contains(feed)
    }

    /// Every feed that somebody has published to, as the log has it.
    pub(crate) fn states(&self, manager: &ConnectionManager) -> Vec<StoredState> {
        let published = manager.feeds().into_iter().filter(|feed| feed.rev.0 > 0);
        published
            .map(|status| {
                let last = manager.last_state(&status.feed);
                StoredState {
                    own: self.has(&status.feed),
                    rev: last.rev,
                    state: last.state().to_owned(),
                    feed: status.feed,
                }
            })
            .collect()
    }

    /// The history of workflows, if servers go on with it.
    fn history(&self, manager: &ConnectionManager) -> Option<History> {
        let feed: Feed = WORKFLOW_HISTORY.parse().expect("a feed");
        let last = manager.last_state(&feed);
        (last.rev.0 == 0 || self.has(&feed)).then(|| History::restore(last.state()))
    }
}

/// What is told to the journal's thread.
pub(super) enum Step {
    /// A batch is in the log, and its publishers wait until it is applied.
    Appended(Box<Waiting>),
    /// Somebody asks whether the thread works.
    Order(Order),
}

/// A batch that is in the log.
pub(super) struct Waiting {
    batch: Batch,
    plan: Plan,
    /// Subscribers of each draft's channel when it was appended.
    subscribers: Vec<usize>,
    appended: Appended,
    /// When its publishers are answered at the latest.
    deadline: Instant,
}

/// The threads of a node.
pub(super) struct Shared {
    pub(super) link: Arc<Link>,
    /// How this node and the others tell of themselves.
    pub(super) presence: Arc<Presence>,
    steps: Sender<Step>,
    append: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    /// Starts `append` and `follow`; the `journal` thread takes what they send.
    pub(super) fn start(
        node: Node,
        orders: Receiver<Order>,
        queued_bytes: &Arc<AtomicUsize>,
        usage: Arc<Usage>,
        max_batch: usize,
        manager: &Arc<ConnectionManager>,
        planner: Feeds,
    ) -> io::Result<(Self, Receiver<Step>, Receiver<Found>)> {
        let (steps, stepped) = unbounded();
        // What is in there, in the hand of either thread: one read and three parts at most.
        let (found, finds) = bounded(2);
        let following = Following {
            backplane: node.backplane.clone(),
            link: Arc::clone(&node.link),
            manager: Arc::clone(manager),
            own: node.own.clone(),
            mark: node.mark,
            routes: node.routes,
            found,
        };
        let appending = Appending {
            appender: Appender::new(node.backplane.clone()),
            backplane: node.backplane,
            link: Arc::clone(&node.link),
            own: node.own,
            manager: Arc::clone(manager),
            feeds: planner,
            queued_bytes: Arc::clone(queued_bytes),
            usage,
            max_batch,
            steps: steps.clone(),
            last: Position::default(),
            reconnects: 0,
        };
        let follower = node.follower;
        let presence = node.presence;
        // It ends by itself, some seconds after the link was stopped, and holds nothing.
        thread::Builder::new()
            .name("follow".to_owned())
            .spawn(move || following.run(follower))?;
        let append = thread::Builder::new()
            .name("append".to_owned())
            .spawn(move || appending.run(&orders))?;
        let shared = Self {
            link: node.link,
            presence,
            steps,
            append: Mutex::new(Some(append)),
        };
        Ok((shared, stepped, finds))
    }

    /// Hands something to the journal's thread, past the log.
    pub(super) fn tell(&self, order: Order) -> Result<(), Order> {
        self.steps
            .send(Step::Order(order))
            .map_err(|refused| match refused.into_inner() {
                Step::Order(order) => order,
                Step::Appended(_) => Order::Stop,
            })
    }

    /// Waits until what was submitted is appended or refused, then ends the journal's thread.
    pub(super) fn stop(&self) {
        self.link.stop();
        let append = self
            .append
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(append) = append {
            // A panic was reported when it happened.
            let _ = append.join();
        }
        let _ = self.steps.send(Step::Order(Order::Stop));
    }
}

fn not_known(reason: &str) -> Error {
    Error::Backplane(format!(
        "{reason}: it may have been stored; repeating it is safe with the same `Idempotency-Key`"
    ))
}
