//! The `journal` thread of a node: what was read from the shared log goes to the store, then to
//! the subscribers, then their publishers are answered.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};

use super::super::broadcast::Broadcast;
use super::super::forgetting::Forgetting;
use super::super::states::Feeds;
use super::super::{Committed, Order};
use super::append::refuse;
use super::follow::Found;
use super::{OwnFeeds, Step, Waiting, not_known};
use crate::backplane::{Appended, Content, Entry, Link, Read};
use crate::error::{Error, Result};
use crate::frame::MessageFrame;
use crate::history::{Transition, transitions};
use crate::manager::ConnectionManager;
use crate::protocol::{
    Hole, LogMark, Message, MessageId, Position, Rev, State, StoredState, WORKFLOW_HISTORY,
    WORKFLOWS, clock,
};
use crate::store::{Applied, Writer};
use crate::usage::Usage;

/// How long a store that failed is left alone.
const RETRY: Duration = Duration::from_millis(250);

/// Parts of the log that this node passed over and remembers: publishers wait for some seconds, and
/// each is another end that Redis has lost, or a stream that was trimmed.
const SKIPPED: usize = 16;

/// How long publishers are waited for at the end, whose messages are in the log already.
const LAST_MOMENTS: Duration = Duration::from_secs(1);

/// What the thread works with.
pub(in crate::journal) struct Replica {
    pub(in crate::journal) steps: Receiver<Step>,
    pub(in crate::journal) finds: Receiver<Found>,
    pub(in crate::journal) queued_bytes: Arc<AtomicUsize>,
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
    pub(in crate::journal) waiting: VecDeque<Waiting>,
    /// What was between these was not read: after the first, up to the second.
    pub(in crate::journal) skipped: VecDeque<(Position, Position)>,
    /// The store failed, which was logged.
    pub(in crate::journal) failing: bool,
}

/// What comes of entries in one transaction.
#[derive(Default)]
struct Changes {
    messages: Vec<Message>,
    /// In order; a feed may be there several times.
    states: Vec<StoredState>,
    transitions: Vec<(String, Vec<Transition>)>,
    hole: Option<Hole>,
    skipped: Vec<(Position, Position)>,
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
            self.answer(stopping.is_some());
            let until = stopping.map(|since| since + LAST_MOMENTS);
            if until.is_some_and(|until| self.waiting.is_empty() || until <= Instant::now()) {
                self.give_up("the server is shutting down");
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
                    Ok(Step::Appended(waiting)) => self.waiting.push_back(*waiting),
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
        let deadline = self.waiting.front().map(|waiting| waiting.deadline);
        for end in [until, deadline].into_iter().flatten() {
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
        let mut changes = Changes::default();
        self.add_newer(&mut changes, states);
        let mut mark = self.mark.clone();
        identity.clone_into(&mut mark.identity);
        if let Some(to) = jump {
            self.miss(&mut changes, &mut mark, to);
        }
        self.apply(changes, mark)
    }

    fn read(&mut self, read: &Read) -> Result<()> {
        let mut changes = Changes::default();
        let mut mark = self.mark.clone();
        if let Some((to, states)) = &read.missed {
            self.add_newer(&mut changes, states);
            self.miss(&mut changes, &mut mark, *to);
        }
        for entry in &read.entries {
            self.add(&mut changes, entry, mark.position);
            mark.position = entry.position;
            mark.batch.clone_from(&entry.batch);
        }
        self.apply(changes, mark)?;
        if let Some(asked) = read.complete_at {
            self.link.set_complete(self.mark.position, asked);
        }
        Ok(())
    }

    /// What came after the mark up to here is gone from the log.
    fn miss(&self, changes: &mut Changes, mark: &mut LogMark, to: Position) {
        let first = mark.position.id.next();
        let last = to.id;
        if mark.position == Position::default() {
            log::info!("the log on the backplane begins at {to} for this new node");
        } else if last >= first {
            log::warn!(
                "messages {first} to {last} were gone from the backplane before this node had them: \
                 subscribers who miss them are told of a gap"
            );
        }
        if last >= first {
            changes.hole = Some(Hole { first, last });
        }
        changes.skipped.push((mark.position, to));
        mark.position = mark.position.max(to);
        mark.batch.clear();
    }

    fn add(&self, changes: &mut Changes, entry: &Entry, before: Position) {
        match &entry.content {
            Content::Message(draft) => {
                let timestamp = clock::at(entry.micros);
                changes
                    .messages
                    .push(draft.committed(entry.position.id, &timestamp));
            }
            Content::State(stored) => self.add_state(changes, stored, entry.micros),
            // Ids go on further up, and nothing is between.
            Content::Mark => {
                changes.skipped.push((before, entry.position));
                if entry.position.id > before.id {
                    changes.hole = Some(Hole {
                        first: before.id.next(),
                        last: before.id,
                    });
                }
            }
            Content::Foreign => log::warn!(
                "the entry {} of the backplane's stream is not of this program: it is left out",
                entry.position
            ),
        }
    }

    fn add_state(&self, changes: &mut Changes, stored: &StoredState, micros: u64) {
        let (rev, before) = self.last(changes, stored.feed.as_str(), stored);
        if stored.rev == rev && !stored.own && self.own.has(&stored.feed) {
            // Somebody took it over as it was.
            changes.states.push(stored.clone());
        }
        if stored.rev <= rev {
            return;
        }
        if stored.feed.as_str() == WORKFLOWS
            && let Ok(after) = State::parse(stored.state.as_bytes())
        {
            let steps = transitions(&before, &after);
            if !steps.is_empty() && self.is_history_own(changes) {
                changes.transitions.push((clock::at(micros), steps));
            }
        }
        changes.states.push(stored.clone());
    }

    /// States that may be newer than what is here.
    fn add_newer(&self, changes: &mut Changes, states: &[StoredState]) {
        for stored in states {
            let (rev, _) = self.last(changes, stored.feed.as_str(), stored);
            if stored.rev > rev {
                changes.states.push(stored.clone());
            }
        }
    }

    /// A feed's last revision and state, with these changes.
    fn last(&self, changes: &Changes, name: &str, stored: &StoredState) -> (Rev, String) {
        let mut changed = changes.states.iter().rev();
        match changed.find(|changed| changed.feed.as_str() == name) {
            Some(changed) => (changed.rev, changed.state.clone()),
            None => {
                let last = self.manager.last_state(&stored.feed);
                (last.rev, last.state().to_owned())
            }
        }
    }

    fn is_history_own(&self, changes: &Changes) -> bool {
        let mut changed = changes.states.iter().rev();
        match changed.find(|changed| changed.feed.as_str() == WORKFLOW_HISTORY) {
            Some(changed) => changed.own,
            None => self.own.history(&self.manager).is_some(),
        }
    }

    fn apply(&mut self, changes: Changes, mark: LogMark) -> Result<()> {
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
            mark: &mark,
        });
        self.count(&changes, begin.elapsed(), outcome.is_ok());
        outcome?;
        self.mark = mark;
        self.skipped.extend(&changes.skipped);
        let old = self.skipped.len().saturating_sub(SKIPPED);
        self.skipped.drain(..old);
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
    fn answer(&mut self, stopping: bool) {
        while let Some(waiting) = self.waiting.front() {
            if waiting.appended.last <= self.mark.position {
                let is_here = self.has(&waiting.appended);
                if let Some(waiting) = self.waiting.pop_front() {
                    match is_here {
                        true => self.answer_one(waiting),
                        false => self.refuse(waiting, "it was appended and is gone from the log"),
                    }
                }
            } else if self.failing || waiting.deadline <= Instant::now() {
                let reason = if self.failing && !stopping {
                    "it is in the log, but this node's store fails"
                } else {
                    "it is in the log, but this node has not applied it in time"
                };
                if let Some(waiting) = self.waiting.pop_front() {
                    self.refuse(waiting, reason);
                }
            } else {
                return;
            }
        }
    }

    /// Whether a batch is among what was applied, and not among what was passed over.
    fn has(&self, appended: &Appended) -> bool {
        let mut skipped = self.skipped.iter();
        appended.is_nothing()
            || skipped.all(|(after, to)| appended.last <= *after || appended.last > *to)
    }

    fn answer_one(&mut self, waiting: Waiting) {
        let Waiting {
            batch,
            plan,
            subscribers,
            appended,
            ..
        } = waiting;
        self.queued_bytes.fetch_sub(batch.bytes, Ordering::Relaxed);
        self.feeds.answer(plan, batch.states, None);
        let timestamp = clock::at(appended.micros);
        let drafts = batch.drafts.iter().zip(appended.first.0..).zip(subscribers);
        let committed: Vec<Committed> = drafts
            .map(|((draft, id), subscribers)| Committed {
                channel: draft.channel_id.clone(),
                frame: MessageFrame::new(&draft.committed(MessageId(id), &timestamp)),
                subscribers,
                replayed: false,
            })
            .collect();
        let mut first = 0;
        for part in batch.parts {
            let messages = &committed[first..first + part.count];
            let done = part.done;
            // A publisher's code that panics costs the others nothing; the panic is reported.
            let _ = catch_unwind(AssertUnwindSafe(|| done(Ok(messages))));
            first += part.count;
        }
    }

    fn refuse(&self, waiting: Waiting, reason: &str) {
        let batch = waiting.batch;
        self.queued_bytes.fetch_sub(batch.bytes, Ordering::Relaxed);
        refuse(batch, &not_known(reason));
    }

    fn give_up(&mut self, reason: &str) {
        while let Some(waiting) = self.waiting.pop_front() {
            self.refuse(waiting, reason);
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
