//! States on their way through the journal: which are changes, what else changes with them,
//! and who hears of it.
//!
//! The journal is the only one that changes a feed of the server, so a feed's revision and
//! its stored state always belong together.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::error::{Error, Result};
use crate::frame::StateFrame;
use crate::history::{History, Transition, transitions};
use crate::manager::ConnectionManager;
use crate::protocol::{Feed, Published, Rev, State, WORKFLOW_HISTORY, WORKFLOWS};
use crate::store::StoredState;

/// Called at the commit, on the journal's thread: it must not block.
pub type StateDone = Box<dyn FnOnce(Result<Published>) + Send>;

/// A state for a feed, and who wants to know.
pub(super) struct StateOrder {
    pub(super) feed: Feed,
    pub(super) state: State,
    pub(super) done: StateDone,
}

/// What the sequencer knows of feeds.
pub(super) struct Feeds {
    manager: Arc<ConnectionManager>,
    /// The history that is derived from workflows; `None` when somebody else publishes it.
    history: Option<History>,
    max_feeds: usize,
    /// Bounded by the feeds: each waits there once at most.
    fan_outs: Sender<Feed>,
}

/// What the orders of one transaction come to.
pub(super) struct Plan {
    changes: Vec<Change>,
    /// One for each order.
    outcomes: Vec<Outcome>,
    transitions: Vec<Transition>,
    /// What [`Feeds::history`] will be, if it changes.
    history: Option<Option<History>>,
}

/// A feed's step to its next state.
struct Change {
    feed: Feed,
    after: Rev,
    state: StateFrame,
    own: bool,
}

enum Outcome {
    Same(Rev),
    Changed(Rev),
    Refused(Error),
}

impl Feeds {
    /// Starts the `feeds` thread, which offers new states to subscribers beside the messages
    /// of `broadcast`: neither waits for the other.
    pub(super) fn start(
        manager: Arc<ConnectionManager>,
        history: Option<History>,
        max_feeds: usize,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let (fan_outs, feeds) = unbounded();
        let there = Arc::clone(&manager);
        let thread = thread::Builder::new()
            .name("feeds".to_owned())
            .spawn(move || offer_states(&there, &feeds))?;
        let feeds = Self {
            manager,
            history,
            max_feeds,
            fan_outs,
        };
        Ok((feeds, thread))
    }

    /// Works out what these orders change, one after the other. Nothing has happened yet.
    pub(super) fn plan(&self, orders: &[StateOrder], timestamp: &str) -> Plan {
        let mut plan = Plan {
            changes: Vec::new(),
            outcomes: Vec::with_capacity(orders.len()),
            transitions: Vec::new(),
            history: None,
        };
        for order in orders {
            let outcome = self.plan_one(&mut plan, order, timestamp);
            plan.outcomes.push(outcome);
        }
        plan
    }

    fn plan_one(&self, plan: &mut Plan, order: &StateOrder, timestamp: &str) -> Outcome {
        let last = self.last_state(plan, &order.feed);
        if order.state.is_same(last.state()) {
            return Outcome::Same(last.rev);
        }
        if last.rev == Rev(0) && self.is_full(plan) {
            return Outcome::Refused(Error::TooManyFeeds {
                limit: self.max_feeds,
            });
        }
        if order.feed.as_str() == WORKFLOW_HISTORY {
            // Whoever publishes it takes over.
            plan.history = Some(None);
        }
        let rev = plan.change(&order.feed, &last, order.state.as_str(), false);
        if order.feed.as_str() == WORKFLOWS {
            self.record(plan, last.state(), &order.state, timestamp);
        }
        Outcome::Changed(rev)
    }

    /// Adds what happened to workflows to their history.
    fn record(&self, plan: &mut Plan, before: &str, after: &State, timestamp: &str) {
        let planned = plan.history.get_or_insert_with(|| self.history.clone());
        let Some(history) = planned else { return };
        let steps = transitions(before, after);
        if steps.is_empty() {
            return;
        }
        history.record(&steps, timestamp);
        let state = history.state();
        plan.transitions.extend(steps);
        let feed = Feed::workflow_history();
        let last = self.last_state(plan, &feed);
        plan.change(&feed, &last, &state, true);
    }

    fn last_state(&self, plan: &Plan, feed: &Feed) -> StateFrame {
        let planned = plan
            .changes
            .iter()
            .rev()
            .find(|change| change.feed == *feed);
        match planned {
            Some(change) => change.state.clone(),
            None => self.manager.last_state(feed),
        }
    }

    fn is_full(&self, plan: &Plan) -> bool {
        let new = plan.changes.iter().filter(|change| change.after == Rev(0));
        self.manager.published_feeds() + new.count() >= self.max_feeds
    }

    /// The plan is committed: from now on these are the feeds' states.
    pub(super) fn apply(&mut self, plan: &mut Plan) {
        if let Some(history) = plan.history.take() {
            self.history = history;
        }
        for change in plan.changes.drain(..) {
            let replaced = self
                .manager
                .replace_state(&change.feed, change.after, change.state);
            if replaced.is_some_and(|replaced| replaced.needs_fan_out) {
                // The thread ends after this sender.
                let _ = self.fan_outs.send(change.feed);
            }
        }
    }

    /// Tells publishers what became of their orders.
    pub(super) fn answer(&self, plan: Plan, orders: Vec<StateOrder>, failure: Option<&Error>) {
        for (order, outcome) in orders.into_iter().zip(plan.outcomes) {
            let published = |changed, rev| Published {
                changed,
                rev,
                subscribers: self.manager.feed_subscribers(&order.feed),
            };
            let answer = match (outcome, failure) {
                (Outcome::Refused(error), _) => Err(error),
                (_, Some(error)) => Err(error.as_store()),
                (Outcome::Same(rev), None) => Ok(published(false, rev)),
                (Outcome::Changed(rev), None) => Ok(published(true, rev)),
            };
            let done = order.done;
            // A publisher's code that panics costs the others nothing; the panic is reported.
            let _ = catch_unwind(AssertUnwindSafe(|| done(answer)));
        }
    }
}

impl Plan {
    fn change(&mut self, feed: &Feed, last: &StateFrame, state: &str, own: bool) -> Rev {
        let rev = last.rev.next();
        self.changes.push(Change {
            feed: feed.clone(),
            after: last.rev,
            state: StateFrame::new(feed, state, rev),
            own,
        });
        rev
    }

    /// Whether nothing changes.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// What the store has to keep: of every feed the last state.
    pub(super) fn states(&self) -> Vec<StoredState> {
        let mut states: Vec<StoredState> = Vec::new();
        for change in self.changes.iter().rev() {
            if states.iter().all(|stored| stored.feed != change.feed) {
                states.push(StoredState {
                    feed: change.feed.clone(),
                    rev: change.state.rev,
                    state: change.state.state().to_owned(),
                    own: change.own,
                });
            }
        }
        states
    }

    /// What happened to workflows.
    pub(super) fn transitions(&self) -> &[Transition] {
        &self.transitions
    }
}

/// The `feeds` thread.
fn offer_states(manager: &ConnectionManager, feeds: &Receiver<Feed>) {
    for feed in feeds {
        if catch_unwind(AssertUnwindSafe(|| manager.fan_out(&feed))).is_err() {
            log::error!(
                "a bug in the fan-out of the feed {feed}: its subscribers wait for the next state"
            );
        }
    }
}
