//! States on their way through the journal: which are changes, what else changes with them,
//! and who hears of it.
//!
//! The journal is the only one that changes a feed of a running server, so a feed's revision
//! and its stored state always belong together.

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
use crate::store::{Claim, Given, Receipt, StoredState};
use crate::usage::Usage;

/// Called at the commit, on the journal's thread: it must not block.
pub type StateDone = Box<dyn FnOnce(Result<Published>) + Send>;

/// A state for a feed, and who wants to know.
pub(super) struct StateOrder {
    pub(super) feed: Feed,
    /// JSON in one line: what the queue's bound counts.
    pub(super) state: String,
    /// It was found to differ from the state of this revision.
    pub(super) differs_from: Option<Rev>,
    /// To be done once.
    pub(super) claim: Option<Box<Claim>>,
    pub(super) done: StateDone,
}

/// What the sequencer knows of feeds.
pub(super) struct Feeds {
    manager: Arc<ConnectionManager>,
    /// The history that is derived from workflows; `None` when somebody else publishes it.
    history: Option<History>,
    max_feeds: usize,
    usage: Arc<Usage>,
    /// Bounded by the feeds: each waits there once at most.
    fan_outs: Sender<Feed>,
}

/// What the orders of one transaction come to.
#[derive(Default)]
pub(super) struct Plan {
    steps: Vec<Step>,
    /// One for each order.
    outcomes: Vec<Outcome>,
    /// How many subscribers each order's feed has.
    subscribers: Vec<usize>,
    transitions: Vec<Transition>,
    history: NextHistory,
    /// The history's state, when somebody takes it over without changing it.
    claimed: Option<StoredState>,
}

/// What [`Feeds::history`] will be.
#[derive(Default)]
enum NextHistory {
    #[default]
    Unchanged,
    Recorded(History),
    TakenOver,
}

/// Whose state it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Publisher,
    Server,
}

/// A feed's step to its next state.
struct Step {
    feed: Feed,
    after: Rev,
    state: StateFrame,
    origin: Origin,
}

impl Step {
    fn stored(&self) -> StoredState {
        StoredState {
            feed: self.feed.clone(),
            rev: self.state.rev,
            state: self.state.state().to_owned(),
            own: self.origin == Origin::Server,
        }
    }
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
        usage: Arc<Usage>,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let (fan_outs, feeds) = unbounded();
        let (there, counts) = (Arc::clone(&manager), Arc::clone(&usage));
        let thread = thread::Builder::new()
            .name("feeds".to_owned())
            .spawn(move || offer_states(&there, &feeds, &counts))?;
        let feeds = Self {
            manager,
            history,
            max_feeds,
            usage,
            fan_outs,
        };
        Ok((feeds, thread))
    }

    /// Another one, for the thread that plans what is then applied by this one's.
    pub(super) fn planner(&self) -> Self {
        Self {
            manager: Arc::clone(&self.manager),
            history: None,
            max_feeds: self.max_feeds,
            usage: Arc::clone(&self.usage),
            fan_outs: self.fan_outs.clone(),
        }
    }

    /// What the workflows' history is; `None` when somebody else publishes it.
    pub(super) fn set_history(&mut self, history: Option<History>) {
        self.history = history;
    }

    /// Gives a feed this state, which another node may have made, and tells its subscribers.
    pub(super) fn replace(&self, stored: &StoredState) {
        let after = self.manager.last_state(&stored.feed).rev;
        let state = StateFrame::new(&stored.feed, &stored.state, stored.rev);
        self.hand_over(&stored.feed, after, state);
    }

    fn hand_over(&self, feed: &Feed, after: Rev, state: StateFrame) {
        let replaced = self.manager.replace_state(feed, after, state);
        if replaced.is_some_and(|replaced| replaced.needs_fan_out) {
            // The thread ends after this sender.
            let _ = self.fan_outs.send(feed.clone());
        }
    }

    /// Works out what these orders change, one after the other. Nothing has happened yet.
    pub(super) fn plan(&self, orders: &[StateOrder], timestamp: &str) -> Plan {
        let mut plan = Plan::default();
        for order in orders {
            let outcome = self.plan_one(&mut plan, order, timestamp);
            plan.outcomes.push(outcome);
            let subscribers = self.manager.feed_subscribers(&order.feed);
            plan.subscribers.push(subscribers);
        }
        plan
    }

    fn plan_one(&self, plan: &mut Plan, order: &StateOrder, timestamp: &str) -> Outcome {
        let last = self.last_state(plan, &order.feed);
        let differs = order.differs_from == Some(last.rev)
            || !State::parse(order.state.as_bytes()).is_ok_and(|state| state.is_same(last.state()));
        if order.feed.as_str() == WORKFLOW_HISTORY {
            // Whoever publishes it takes over, with what it is already, too.
            plan.history = NextHistory::TakenOver;
            plan.claimed = (!differs && self.history.is_some()).then(|| StoredState {
                feed: order.feed.clone(),
                rev: last.rev,
                state: last.state().to_owned(),
                own: false,
            });
        }
        if !differs {
            return Outcome::Same(last.rev);
        }
        if last.rev == Rev(0) && !order.feed.is_built_in() && self.is_full(plan) {
            return Outcome::Refused(Error::TooManyFeeds {
                limit: self.max_feeds,
            });
        }
        let rev = plan.step(&order.feed, &last, &order.state, Origin::Publisher);
        if order.feed.as_str() == WORKFLOWS {
            self.record(plan, last.state(), &order.state, timestamp);
        }
        Outcome::Changed(rev)
    }

    /// Adds what happened to workflows to their history.
    fn record(&self, plan: &mut Plan, before: &str, after: &str, timestamp: &str) {
        let mut history = match (&plan.history, &self.history) {
            (NextHistory::Recorded(history), _) => history.clone(),
            (NextHistory::Unchanged, Some(history)) => history.clone(),
            (NextHistory::TakenOver, _) | (_, None) => return,
        };
        let Ok(after) = State::parse(after.as_bytes()) else {
            return;
        };
        let transitions = transitions(before, &after);
        if transitions.is_empty() {
            return;
        }
        history.record(&transitions, &after, timestamp);
        plan.transitions.extend(transitions);
        let feed = Feed::workflow_history();
        let last = self.last_state(plan, &feed);
        plan.step(&feed, &last, &history.state(), Origin::Server);
        plan.history = NextHistory::Recorded(history);
    }

    fn last_state(&self, plan: &Plan, feed: &Feed) -> StateFrame {
        let planned = plan.steps.iter().rev().find(|step| step.feed == *feed);
        match planned {
            Some(step) => step.state.clone(),
            None => self.manager.last_state(feed),
        }
    }

    fn is_full(&self, plan: &Plan) -> bool {
        let new = plan
            .steps
            .iter()
            .filter(|step| step.after == Rev(0) && !step.feed.is_built_in());
        self.manager.published_feeds() + new.count() >= self.max_feeds
    }

    /// The plan is committed: from now on these are the feeds' states.
    pub(super) fn apply(&mut self, plan: &mut Plan) {
        match std::mem::take(&mut plan.history) {
            NextHistory::Unchanged => {}
            NextHistory::Recorded(history) => self.history = Some(history),
            NextHistory::TakenOver => self.history = None,
        }
        for step in plan.steps.drain(..) {
            self.hand_over(&step.feed, step.after, step.state);
        }
    }

    /// Tells publishers what became of their orders.
    pub(super) fn answer(&self, plan: Plan, orders: Vec<StateOrder>, failure: Option<&Error>) {
        let outcomes = plan.outcomes.into_iter().zip(plan.subscribers);
        for (order, (outcome, subscribers)) in orders.into_iter().zip(outcomes) {
            let published = |changed, rev| Published {
                changed,
                rev,
                subscribers,
                replayed: false,
            };
            let answer = match (outcome, failure) {
                (Outcome::Refused(error), _) => {
                    self.usage.refused.feeds.add();
                    Err(error)
                }
                (_, Some(error)) => Err(error.as_store()),
                (Outcome::Same(rev), None) => {
                    self.usage.traffic.states_unchanged.add();
                    Ok(published(false, rev))
                }
                (Outcome::Changed(rev), None) => {
                    self.usage.traffic.states_changed.add();
                    Ok(published(true, rev))
                }
            };
            let done = order.done;
            // A publisher's code that panics costs the others nothing; the panic is reported.
            let _ = catch_unwind(AssertUnwindSafe(|| done(answer)));
        }
    }
}

impl Plan {
    fn step(&mut self, feed: &Feed, last: &StateFrame, state: &str, origin: Origin) -> Rev {
        let rev = last.rev.next();
        self.steps.push(Step {
            feed: feed.clone(),
            after: last.rev,
            state: StateFrame::new(feed, state, rev),
            origin,
        });
        rev
    }

    /// What is to be remembered of orders that are to be done once.
    pub(super) fn receipts(&self, orders: &[StateOrder]) -> Vec<Receipt> {
        let receipts = self.receipts_by_order(orders);
        receipts.map(|(_, receipt)| receipt).collect()
    }

    /// The same, each with its order's place.
    pub(super) fn receipts_by_order(
        &self,
        orders: &[StateOrder],
    ) -> impl Iterator<Item = (usize, Receipt)> {
        let outcomes = self.outcomes.iter().zip(&self.subscribers);
        let receipts = orders.iter().zip(outcomes).enumerate();
        receipts.filter_map(|(at, (order, (outcome, subscribers)))| {
            let given = match outcome {
                Outcome::Same(rev) => Given::Rev(*rev, false),
                Outcome::Changed(rev) => Given::Rev(*rev, true),
                Outcome::Refused(_) => return None,
            };
            let receipt = Receipt {
                claim: *order.claim.as_deref()?,
                given,
                subscribers: *subscribers,
            };
            Some((at, receipt))
        })
    }

    /// The revisions from which it goes on: what a shared log has to have for it.
    pub(super) fn checks(&self, orders: &[StateOrder]) -> Vec<(Feed, Rev)> {
        let steps = self.steps.iter().map(|step| (&step.feed, step.after));
        let same = orders.iter().zip(&self.outcomes);
        let same = same.filter_map(|(order, outcome)| match outcome {
            Outcome::Same(rev) => Some((&order.feed, *rev)),
            Outcome::Changed(_) | Outcome::Refused(_) => None,
        });
        let mut checks: Vec<(Feed, Rev)> = Vec::new();
        // A feed's first step is the one that tells.
        for (feed, rev) in steps.chain(same) {
            if checks.iter().all(|(known, _)| known != feed) {
                checks.push((feed.clone(), rev));
            }
        }
        checks
    }

    /// Every step in order, as a shared log has them.
    pub(super) fn steps(&self) -> Vec<StoredState> {
        let mut steps: Vec<StoredState> = self.steps.iter().map(Step::stored).collect();
        if let Some(claimed) = &self.claimed
            && steps
                .iter()
                .all(|step| step.feed != claimed.feed || step.rev <= claimed.rev)
        {
            steps.push(claimed.clone());
        }
        steps
    }

    /// Whether the store has nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.claimed.is_none()
    }

    /// What the store has to keep: of every feed the last state.
    pub(super) fn states(&self) -> Vec<StoredState> {
        let mut states: Vec<StoredState> = Vec::new();
        let last_first = self.steps.iter().rev().map(Step::stored);
        for state in self.claimed.clone().into_iter().chain(last_first) {
            if states.iter().all(|stored| stored.feed != state.feed) {
                states.push(state);
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
fn offer_states(manager: &ConnectionManager, feeds: &Receiver<Feed>, usage: &Usage) {
    for feed in feeds {
        match catch_unwind(AssertUnwindSafe(|| manager.fan_out(&feed))) {
            Ok(told) => usage.traffic.states_delivered.add_many(told),
            Err(_) => log::error!(
                "a bug in the fan-out of the feed {feed}: its subscribers wait for the next state"
            ),
        }
    }
}
