//! The `journal` thread of a node: what was read from the shared log goes to the store, then to
//! the subscribers, then their publishers are answered.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};

use super::super::broadcast::Broadcast;
use super::super::forgetting::Forgetting;
use super::super::states::Feeds;
use super::super::{Committed, Order};
use super::changes::{Changes, Reading};
use super::follow::Found;
use super::unanswered::Unanswered;
use super::{OwnFeeds, Step};
use crate::backplane::{Link, Read};
use crate::error::{Error, Result};
use crate::frame::MessageFrame;
use crate::manager::ConnectionManager;
use crate::protocol::{LogMark, MessageId, Position, StoredState};
use crate::store::{Applied, Writer};
use crate::usage::Usage;

/// How long a store that failed is left alone.
const RETRY: Duration = Duration::from_millis(250);

/// How long publishers are waited for at the end, whose messages are in the log already.
const LAST_MOMENTS: Duration = Duration::from_secs(1);

/// What the thread works with.
pub(in crate::journal) struct Replica {
    pub(in crate::journal) steps: Receiver<Step>,
    pub(in crate::journal) finds: Receiver<Found>,
    pub(in crate::journal) head: Arc<AtomicU64>,
    pub(in crate::journal) writer: Box<dyn Writer>,
    pub(in crate::journal) manager: Arc<ConnectionManager>,
    pub(in crate::journal) usage: Arc<Usage>,
    pub(in crate::journal) broadcast: Broadcast,
    pub(in crate::journal) feeds: Feeds,
    pub(in crate::journal) link: Arc<Link>,
    pub(in crate::journal) own: OwnFeeds,
    pub(in crate::journal) mark: LogMark,
    pub(in crate::journal) forgetting: Forgetting,
    pub(in crate::journal) unanswered: Unanswered,
    /// The store failed, which was logged.
    pub(in crate::journal) failing: bool,
}

impl Replica {
    /// Runs until it is told to stop and has done what was appended, or nobody can tell it
    /// anything any more.
    pub(in crate::journal) fn run(&mut self) {
        let nothing = never();
        let mut failed = None;
        let mut stopping: Option<Instant> = None;
        loop {
            if let Some(found) = failed.take() {
                failed = self.take(found);
            }
            self.answer();
            let until = stopping.map(|since| since + LAST_MOMENTS);
            if until.is_some_and(|until| self.unanswered.is_empty() || until <= Instant::now()) {
                self.unanswered.give_up("the server is shutting down");
                return self.forgetting.finish(self.writer.as_mut());
            }
            let patience = if failed.is_some() {
                RETRY
            } else {
                self.patience(until)
            };
            let finds = if failed.is_some() {
                &nothing
            } else {
                &self.finds
            };
            select! {
                recv(self.steps) -> step => match step {
                    Ok(Step::Appended(waiting)) => self.unanswered.push(*waiting),
                    Ok(Step::Order(Order::Stop)) => stopping = Some(Instant::now()),
                    // Whoever asks hears that it is dropped.
                    Ok(Step::Order(_)) => {}
                    Err(_) => return,
                },
                recv(finds) -> found => match found {
                    Ok(found) => failed = self.take(found),
                    // The follower ended: nothing more comes.
                    Err(_) => self.finds = never(),
                },
                default(patience) => self.forgetting.look(),
            }
        }
    }

    /// How long nothing may come; what is to be forgotten is, meanwhile.
    fn patience(&mut self, until: Option<Instant>) -> Duration {
        let mut patience = Duration::from_secs(60);
        if !self.forgetting.is_off() {
            patience = self.forgetting.interval();
            if self.forgetting.is_due() {
                self.forgetting.step(self.writer.as_mut());
                if self.forgetting.is_due() {
                    patience = Duration::ZERO;
                }
            }
        }
        for end in [until, self.unanswered.deadline()].into_iter().flatten() {
            patience = patience.min(end.saturating_duration_since(Instant::now()));
        }
        patience
    }

    /// Stores and broadcasts what was read; it comes back when the store fails.
    fn take(&mut self, found: Found) -> Option<Found> {
        let outcome = catch_unwind(AssertUnwindSafe(|| match &found {
            Found::Joined {
                identity,
                jump,
                states,
            } => self.join(identity, *jump, states),
            Found::Read(read) => self.read(read),
        }));
        match outcome {
            Ok(Ok(())) => {
                self.log_changes(None);
                None
            }
            Ok(Err(error)) => {
                self.log_changes(Some(&error));
                Some(found)
            }
            Err(_) => {
                log::error!("a bug in the journal: what was read from the log is tried again");
                std::thread::sleep(RETRY);
                Some(found)
            }
        }
    }

    fn join(
        &mut self,
        identity: &str,
        jump: Option<Position>,
        states: &[StoredState],
    ) -> Result<()> {
        let mut reading = Reading::after(&self.mark, &self.own, &self.manager);
        reading.add_newer(states);
        reading.set_identity(identity);
        if let Some(to) = jump {
            reading.miss(to);
        }
        self.apply(reading.done())
    }

    fn read(&mut self, read: &Read) -> Result<()> {
        let mut reading = Reading::after(&self.mark, &self.own, &self.manager);
        if let Some((to, states)) = &read.missed {
            reading.add_newer(states);
            reading.miss(*to);
        }
        for entry in &read.entries {
            reading.add(entry);
        }
        self.apply(reading.done())?;
        if let Some(asked) = read.complete_at {
            self.link.set_complete(self.mark.position, asked);
        }
        Ok(())
    }

    fn apply(&mut self, changes: Changes) -> Result<()> {
        let mut last_states: Vec<StoredState> = Vec::new();
        for stored in changes.states.iter().rev() {
            if last_states.iter().all(|known| known.feed != stored.feed) {
                last_states.push(stored.clone());
            }
        }
        let begin = Instant::now();
        let outcome = self.writer.apply(&Applied {
            messages: &changes.messages,
            states: &last_states,
            transitions: &changes.transitions,
            hole: changes.hole,
            mark: &changes.mark,
        });
        self.count(&changes, begin.elapsed(), outcome.is_ok());
        outcome?;
        self.mark.clone_from(&changes.mark);
        self.unanswered.pass_over(&changes.skipped);
        for stored in &changes.states {
            self.own.note(stored);
            self.feeds.replace(stored);
        }
        self.tell(changes);
        self.link.set_applied(self.mark.position);
        Ok(())
    }

    /// Tells subscribers and whoever waits.
    fn tell(&mut self, changes: Changes) {
        let head = MessageId(self.head.load(Ordering::Acquire));
        if let Some(hole) = changes.hole {
            // They go on from the store, which tells them.
            self.head.fetch_max(hole.last.0, Ordering::AcqRel);
            self.broadcast.jump(hole.last);
        }
        let bytes = changes
            .messages
            .iter()
            .map(|message| message.view().size())
            .sum();
        self.forgetting.note(changes.messages.len(), bytes);
        let messages: Vec<Committed> = changes
            .messages
            .into_iter()
            .map(|message| Committed {
                frame: MessageFrame::new(&message),
                subscribers: 0,
                channel: message.channel_id,
                replayed: false,
            })
            .collect();
        if let Some(newest) = messages.last() {
            self.head.fetch_max(newest.frame.id.0, Ordering::AcqRel);
            for message in &messages {
                self.manager
                    .announce(&message.channel, message.frame.chunk());
            }
            let channels = messages.iter().map(|message| &message.channel);
            self.manager.wake_waiting_for(channels, newest.frame.id);
            self.broadcast.send(&messages);
        }
        let end = self.mark.position.id;
        if end > head && messages.last().is_none_or(|newest| newest.frame.id < end) {
            // The log goes on here, although there is no message.
            self.head.fetch_max(end.0, Ordering::AcqRel);
            self.broadcast.jump(end);
        }
    }

    /// Answers publishers whose batches are applied, and those who have waited long enough.
    fn answer(&mut self) {
        self.unanswered.answer(self.mark.position, &self.feeds);
        if self.failing {
            let reason = "it is in the log, but this node's store fails";
            self.unanswered.give_up(reason);
        } else {
            self.unanswered.give_up_late();
        }
    }

    fn count(&self, changes: &Changes, time: Duration, succeeded: bool) {
        let traffic = &self.usage.traffic;
        traffic.commits.observe_time(time);
        if succeeded {
            let size = changes.messages.len() + changes.states.len();
            traffic.batches.observe(size as u64);
            traffic.messages.add_many(changes.messages.len());
        } else {
            traffic.commit_errors.add();
        }
    }

    fn log_changes(&mut self, error: Option<&Error>) {
        match error {
            Some(error) if !self.failing => {
                log::error!(
                    "{error}; publishers get 503 until what the others published is stored"
                );
            }
            None if self.failing => log::info!("the store works again"),
            _ => {}
        }
        if self.failing != error.is_some() {
            self.link.set_store_failure(error.map(Error::to_string));
        }
        self.failing = error.is_some();
    }
}
