//! What a node's threads know of the log together: whether it can be reached, and how far this
//! node is.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::presence::{EXPIRY, INTERVAL};
use crate::error::{Error, Result};
use crate::protocol::Position;

/// An append that takes longer than this counts as no answer: whoever publishes then is not made
/// to wait behind it.
const SILENCE: Duration = Duration::from_secs(1);

/// After heartbeats have failed for long, every node has told again by then.
const SETTLING: Duration = Duration::from_secs(5);

/// Shared by the threads of one node.
#[derive(Debug)]
pub(crate) struct Link {
    inner: Mutex<Inner>,
    changed: Condvar,
    address: String,
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// The last entry that is applied here.
    applied: Position,
    /// The last entry that this node knows of.
    newest: Position,
    /// All that was in the log then is applied here.
    complete_at: Option<Instant>,
    /// When the append at hand began.
    appending: Option<Instant>,
    /// Why Redis has refused the last append, if it has.
    refusal: Option<String>,
    /// This node's own store fails.
    store_failure: Option<String>,
    /// When the other nodes could hear of this one last.
    heard_at: Option<Instant>,
    /// Why they could not since.
    unheard: Option<String>,
    /// Until then others may be forgotten that are there.
    settled_at: Option<Instant>,
    stopping: Option<Instant>,
    /// Somebody found another log than the one that was joined.
    look_again: bool,
    reconnects: u64,
}

#[derive(Debug, Clone)]
enum State {
    Joined {
        identity: String,
    },
    Away {
        since: Instant,
        reason: String,
        /// Somebody has to do something about it.
        is_fatal: bool,
    },
}

/// How the log is, for those who look after the server.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    /// Where it is, without a password.
    pub(crate) address: String,
    /// Why it cannot be used, and for how long, if it cannot.
    pub(crate) away: Option<(String, Duration)>,
    /// It is away until somebody does something about it.
    pub(crate) is_stranded: bool,
    /// Why Redis has refused the last append, if it has.
    pub(crate) refusal: Option<String>,
    /// The last entry that is applied here.
    pub(crate) applied: Position,
    /// Messages that this node knows of and has not applied yet.
    pub(crate) behind: u64,
    /// How often the connection was made again.
    pub(crate) reconnects: u64,
}

impl Link {
    pub(crate) fn new(address: String, applied: Position) -> Self {
        Self {
            inner: Mutex::new(Inner {
                state: State::Away {
                    since: Instant::now(),
                    reason: "not connected yet".to_owned(),
                    is_fatal: false,
                },
                applied,
                newest: applied,
                complete_at: None,
                appending: None,
                refusal: None,
                store_failure: None,
                heard_at: None,
                unheard: None,
                settled_at: None,
                stopping: None,
                look_again: false,
                reconnects: 0,
            }),
            changed: Condvar::new(),
            address,
        }
    }

    /// Whether something can be published now; the log that it goes to.
    ///
    /// # Errors
    /// [`Error::Backplane`], with why not.
    pub(crate) fn accepts(&self) -> Result<String> {
        let inner = self.lock();
        let State::Joined { identity } = &inner.state else {
            return Err(self.away(&inner));
        };
        if let Some(reason) = &inner.store_failure {
            return Err(Error::Store(reason.clone()));
        }
        let is_silent = |since: Instant| since.elapsed() > SILENCE;
        if inner.appending.is_some_and(is_silent) || inner.stopping.is_some() {
            return Err(self.away(&inner));
        }
        Ok(identity.clone())
    }

    fn away(&self, inner: &Inner) -> Error {
        let reason = match &inner.state {
            // A sentence that says all of it.
            State::Away {
                reason,
                is_fatal: true,
                ..
            } => return Error::Backplane(format!("{reason}; nothing was stored")),
            State::Away { reason, .. } => reason,
            State::Joined { .. } if inner.stopping.is_some() => "the server is shutting down",
            State::Joined { .. } => "it does not answer",
        };
        Error::Backplane(format!(
            "the backplane {} is unavailable: {reason}; nothing was stored",
            self.address
        ))
    }

    /// An append begins, or has ended.
    pub(crate) fn set_appending(&self, is_appending: bool) {
        self.lock().appending = is_appending.then(Instant::now);
    }

    /// The log can be used.
    pub(crate) fn set_joined(&self, identity: &str, is_again: bool) {
        let mut inner = self.lock();
        inner.state = State::Joined {
            identity: identity.to_owned(),
        };
        inner.look_again = false;
        inner.reconnects += u64::from(is_again);
        drop(inner);
        self.changed.notify_all();
    }

    /// The log cannot be used; whether it could before, or for another reason. A fatal one stays
    /// until the log is joined: what somebody has to do is not done by Redis being gone, too.
    pub(crate) fn set_away(&self, reason: &str, is_fatal: bool) -> bool {
        let mut inner = self.lock();
        let since = match &inner.state {
            State::Away { is_fatal: true, .. } if !is_fatal => return false,
            State::Away { reason: before, .. } if before == reason => return false,
            State::Away { since, .. } => *since,
            State::Joined { .. } => Instant::now(),
        };
        inner.state = State::Away {
            since,
            reason: reason.to_owned(),
            is_fatal,
        };
        drop(inner);
        self.changed.notify_all();
        true
    }

    /// How often the log was joined again.
    pub(crate) fn reconnects(&self) -> u64 {
        self.lock().reconnects
    }

    /// Redis is there, and has refused an append for this reason, or takes what is written.
    pub(crate) fn set_refusal(&self, reason: Option<&str>) {
        let before = std::mem::replace(&mut self.lock().refusal, reason.map(str::to_owned));
        let address = &self.address;
        match (before, reason) {
            (None, Some(reason)) => log::warn!(
                "the backplane {address} refuses what is published: {reason}; \
                 publishing is answered 503 until it takes it"
            ),
            (Some(_), None) => log::info!("the backplane {address} can be written to again"),
            _ => {}
        }
    }

    /// The other nodes can hear of this one.
    pub(crate) fn set_heard(&self) {
        let mut inner = self.lock();
        let now = Instant::now();
        let unheard = inner.unheard.take();
        let was_unheard = unheard.is_some();
        // What kept heartbeats from being written kept appends, too. If something still does,
        // the next one tells, which may be long in coming.
        let is_over = was_unheard && unheard == inner.refusal;
        // Those that failed alike may have told last a heartbeat earlier.
        let is_long = |heard: Instant| now - heard > EXPIRY - INTERVAL;
        if inner.heard_at.map_or(was_unheard, is_long) {
            inner.settled_at = Some(now + SETTLING);
        }
        inner.heard_at = Some(now);
        drop(inner);
        if is_over {
            self.set_refusal(None);
        }
    }

    /// A heartbeat has failed.
    pub(crate) fn set_unheard(&self, reason: &str) {
        self.lock().unheard = Some(reason.to_owned());
    }

    /// Why what the nodes have told may not be of all that are there: what keeps this one from
    /// telling may keep the others. One that has just come knows of the others all the same.
    pub(crate) fn unheard(&self) -> Option<String> {
        let inner = self.lock();
        let is_old = |heard: Instant| heard.elapsed() > EXPIRY;
        if let Some(reason) = &inner.unheard {
            Some(format!("this node's heartbeats fail: {reason}"))
        } else if inner.heard_at.is_some_and(is_old) {
            let seconds = EXPIRY.as_secs();
            Some(format!("this node has had no heartbeat for {seconds} s"))
        } else if inner.settled_at.is_some_and(|at| Instant::now() < at) {
            Some("heartbeats have just begun to come again".to_owned())
        } else {
            None
        }
    }

    /// Makes the follower join anew.
    pub(crate) fn look_again(&self) {
        self.lock().look_again = true;
    }

    pub(crate) fn is_to_look_again(&self) -> bool {
        self.lock().look_again
    }

    /// This node's store takes nothing, or does again.
    pub(crate) fn set_store_failure(&self, reason: Option<String>) {
        self.lock().store_failure = reason;
    }

    /// The log has at least this.
    pub(crate) fn saw(&self, newest: Position) {
        let mut inner = self.lock();
        inner.newest = inner.newest.max(newest);
    }

    /// Everything up to here is applied.
    pub(crate) fn set_applied(&self, position: Position) {
        let mut inner = self.lock();
        inner.applied = position;
        inner.newest = inner.newest.max(position);
        drop(inner);
        self.changed.notify_all();
    }

    /// Whoever asked then found no more than what is applied here up to `position`.
    pub(crate) fn set_complete(&self, position: Position, asked: Instant) {
        let mut inner = self.lock();
        if inner.applied >= position {
            inner.complete_at = inner.complete_at.max(Some(asked));
        }
    }

    /// Whether everything that was in the log then is applied here.
    pub(crate) fn is_complete_since(&self, then: Instant) -> bool {
        let inner = self.lock();
        matches!(inner.state, State::Joined { .. }) && inner.complete_at >= Some(then)
    }

    /// Waits until everything up to here is applied; `false` if that is not so in time.
    pub(crate) fn wait_for(&self, position: Position, deadline: Instant) -> bool {
        let mut inner = self.lock();
        while inner.applied < position {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (inner, _) = self
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Everybody is to end.
    pub(crate) fn stop(&self) {
        self.lock().stopping.get_or_insert_with(Instant::now);
        self.changed.notify_all();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.lock().stopping.is_some()
    }

    /// Everybody was told to end so long ago.
    pub(crate) fn has_stopped_for(&self, time: Duration) -> bool {
        self.lock()
            .stopping
            .is_some_and(|since| since.elapsed() >= time)
    }

    /// The log that was joined last; empty when it is away.
    pub(crate) fn identity(&self) -> String {
        match &self.lock().state {
            State::Joined { identity } => identity.clone(),
            State::Away { .. } => String::new(),
        }
    }

    /// Sleeps, but not when everybody is to end.
    pub(crate) fn sleep(&self, pause: Duration) {
        let deadline = Instant::now() + pause;
        let mut inner = self.lock();
        while inner.stopping.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            (inner, _) = self
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The last entry that is applied here.
    pub(crate) fn applied(&self) -> Position {
        self.lock().applied
    }

    pub(crate) fn status(&self) -> Status {
        let inner = self.lock();
        Status {
            address: self.address.clone(),
            away: match &inner.state {
                State::Joined { .. } => None,
                State::Away { since, reason, .. } => Some((reason.clone(), since.elapsed())),
            },
            is_stranded: matches!(inner.state, State::Away { is_fatal: true, .. }),
            refusal: inner.refusal.clone(),
            applied: inner.applied,
            behind: inner.newest.id.0.saturating_sub(inner.applied.id.0),
            reconnects: inner.reconnects,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
