//! The `follow` thread: joins the log, reads it, hands over what it reads.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::OwnFeeds;
use crate::backplane::{Backoff, Backplane, Follower, Link, Own, Read, Refusal};
use crate::manager::ConnectionManager;
use crate::protocol::{LogMark, Position, State, StoredState};

/// How long one read waits for something to come. A shutdown waits for no more than that.
const WAIT: Duration = Duration::from_millis(500);

/// What the thread works with.
pub(super) struct Following {
    pub(super) backplane: Backplane,
    pub(super) link: Arc<Link>,
    pub(super) manager: Arc<ConnectionManager>,
    pub(super) own: OwnFeeds,
    /// How far it was handed over.
    pub(super) mark: LogMark,
    pub(super) routes: Option<State>,
    pub(super) found: Sender<Found>,
}

/// What is handed over.
pub(in crate::journal) enum Found {
    /// A log was joined.
    Joined {
        /// Which one.
        identity: String,
        /// All entries before this one that this node had not yet are gone.
        jump: Option<Position>,
        /// States of feeds that may be newer than this node's.
        states: Vec<StoredState>,
    },
    /// Entries, in order.
    Read(Read),
}

/// Nobody takes it any more.
struct Ended;

impl Following {
    /// Runs until the link is stopped.
    pub(super) fn run(mut self, mut joined: Option<Follower>) {
        let mut backoff = Backoff::default();
        let mut has_joined = false;
        let mut compare_feeds = false;
        let mut was_away = joined.is_none();
        while !self.link.is_stopping() {
            let follower = match joined.take() {
                Some(follower) => Ok(follower),
                None => self.join(compare_feeds),
            };
            let (reason, is_fatal) = match follower {
                Ok(follower) => {
                    if was_away {
                        log::info!("the backplane {} is there", self.backplane.address());
                    }
                    was_away = true;
                    match self.follow(follower, has_joined) {
                        Ok(reason) => {
                            (has_joined, compare_feeds) = (true, self.link.is_to_look_again());
                            backoff = Backoff::default();
                            (reason, false)
                        }
                        Err(Ended) => return,
                    }
                }
                Err(Refusal::Unusable(reason) | Refusal::Away(reason)) => (reason, false),
                // It goes on trying: what has to be done may be done at Redis.
                Err(Refusal::Fatal(reason)) => (reason, true),
            };
            if self.link.set_away(&reason, is_fatal) && !self.link.is_stopping() {
                if is_fatal {
                    log::error!(
                        "{reason}; until then subscribers here hear of nothing new, and publishing \
                         and GET /api/health are answered 503"
                    );
                } else {
                    log::warn!(
                        "the backplane {} is away: {reason}; publishing is answered 503 until it is back",
                        self.backplane.address()
                    );
                }
            }
            self.link.sleep(backoff.pause());
        }
    }

    fn join(&self, compare_feeds: bool) -> Result<Follower, Refusal> {
        let states = || self.own.states(&self.manager);
        let has_states = || !states().is_empty();
        self.backplane.join(&Own {
            mark: &self.mark,
            has_content: self.mark.position > Position::default() || has_states(),
            states: &states,
            routes: self.routes.as_ref(),
            compare_feeds,
        })
    }

    /// Reads on until that fails, and why it did.
    fn follow(&mut self, mut follower: Follower, is_again: bool) -> Result<String, Ended> {
        self.mark.identity.clone_from(&follower.identity);
        let jump = follower.has_jumped.then_some(follower.position);
        self.hand_over(Found::Joined {
            identity: follower.identity.clone(),
            jump,
            states: std::mem::take(&mut follower.states),
        })?;
        self.mark.position = follower.position;
        self.link.saw(follower.position);
        self.link.set_joined(&follower.identity, is_again);
        loop {
            if self.link.is_stopping() {
                return Err(Ended);
            }
            if self.link.is_to_look_again() {
                return Ok("its log has changed".to_owned());
            }
            let read = match follower.read(WAIT) {
                Ok(read) => read,
                Err(failure) => return Ok(failure.reason()),
            };
            let before = self.mark.position;
            if let Some(last) = read.entries.last() {
                self.mark.position = last.position;
                self.mark.batch.clone_from(&last.batch);
                self.link.saw(last.position);
                for part in read.parts() {
                    self.hand_over(Found::Read(part))?;
                }
            } else if let Some(asked) = read.complete_at {
                self.link.set_complete(before, asked);
            }
        }
    }

    fn hand_over(&self, found: Found) -> Result<(), Ended> {
        self.found.send(found).map_err(|_| Ended)
    }
}
