//! Entries of the shared log, read into what changes here.

use super::OwnFeeds;
use crate::backplane::{Content, Entry};
use crate::history::{Transition, transitions};
use crate::manager::ConnectionManager;
use crate::protocol::{
    Hole, LogMark, Message, Position, Rev, State, StoredState, WORKFLOW_HISTORY, WORKFLOWS, clock,
};

/// What comes of entries in one transaction.
pub(super) struct Changes {
    pub(super) messages: Vec<Message>,
    /// In order; a feed may be there several times.
    pub(super) states: Vec<StoredState>,
    pub(super) transitions: Vec<(String, Vec<Transition>)>,
    pub(super) hole: Option<Hole>,
    /// What was between these was not read: after the first, up to the second.
    pub(super) skipped: Vec<(Position, Position)>,
    /// Up to where this node has the log then.
    pub(super) mark: LogMark,
}

/// Reads on in the log, from where this node is.
pub(super) struct Reading<'a> {
    own: &'a OwnFeeds,
    manager: &'a ConnectionManager,
    changes: Changes,
}

impl<'a> Reading<'a> {
    pub(super) fn after(mark: &LogMark, own: &'a OwnFeeds, manager: &'a ConnectionManager) -> Self {
        let changes = Changes {
            messages: Vec::new(),
            states: Vec::new(),
            transitions: Vec::new(),
            hole: None,
            skipped: Vec::new(),
            mark: mark.clone(),
        };
        Self {
            own,
            manager,
            changes,
        }
    }

    pub(super) fn done(self) -> Changes {
        self.changes
    }

    /// The log that was joined is this one.
    pub(super) fn set_identity(&mut self, identity: &str) {
        identity.clone_into(&mut self.changes.mark.identity);
    }

    /// What came after the mark up to here is gone from the log.
    pub(super) fn miss(&mut self, to: Position) {
        let from = self.changes.mark.position;
        let first = from.id.next();
        let last = to.id;
        if from == Position::default() {
            log::info!("the log on the backplane begins at {to} for this new node");
        } else if last >= first {
            log::warn!(
                "messages {first} to {last} were gone from the backplane before this node had them: \
                 subscribers who miss them are told of a gap"
            );
        }
        if last >= first {
            self.changes.hole = Some(Hole { first, last });
        }
        self.changes.skipped.push((from, to));
        self.changes.mark.position = from.max(to);
        self.changes.mark.batch.clear();
    }

    pub(super) fn add(&mut self, entry: &Entry) {
        let before = self.changes.mark.position;
        match &entry.content {
            Content::Message(draft) => {
                let timestamp = clock::at(entry.micros);
                let message = draft.committed(entry.position.id, &timestamp);
                self.changes.messages.push(message);
            }
            Content::State(stored) => self.add_state(stored, entry.micros),
            // Ids go on further up, and nothing is between.
            Content::Mark => {
                self.changes.skipped.push((before, entry.position));
                if entry.position.id > before.id {
                    self.changes.hole = Some(Hole {
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
        self.changes.mark.position = entry.position;
        self.changes.mark.batch.clone_from(&entry.batch);
    }

    fn add_state(&mut self, stored: &StoredState, micros: u64) {
        let (rev, before) = self.last(stored);
        if stored.rev == rev && !stored.own && self.own.has(&stored.feed) {
            // Somebody took it over as it was.
            self.changes.states.push(stored.clone());
        }
        if stored.rev <= rev {
            return;
        }
        if stored.feed.as_str() == WORKFLOWS
            && let Ok(after) = State::parse(stored.state.as_bytes())
        {
            let steps = transitions(&before, &after);
            if !steps.is_empty() && self.is_history_own() {
                self.changes.transitions.push((clock::at(micros), steps));
            }
        }
        self.changes.states.push(stored.clone());
    }

    /// States that may be newer than what is here.
    pub(super) fn add_newer(&mut self, states: &[StoredState]) {
        for stored in states {
            let (rev, _) = self.last(stored);
            if stored.rev > rev {
                self.changes.states.push(stored.clone());
            }
        }
    }

    /// The last revision and state of this one's feed, with what was read.
    fn last(&self, stored: &StoredState) -> (Rev, String) {
        let mut changed = self.changes.states.iter().rev();
        match changed.find(|changed| changed.feed == stored.feed) {
            Some(changed) => (changed.rev, changed.state.clone()),
            None => {
                let last = self.manager.last_state(&stored.feed);
                (last.rev, last.state().to_owned())
            }
        }
    }

    fn is_history_own(&self) -> bool {
        let mut changed = self.changes.states.iter().rev();
        match changed.find(|changed| changed.feed.as_str() == WORKFLOW_HISTORY) {
            Some(changed) => changed.own,
            None => self.own.history(self.manager).is_some(),
        }
    }
}
