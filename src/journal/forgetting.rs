//! Which messages are not to be kept, and when they go: some at a time, between commits.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::config::Retention;
use crate::protocol::clock;
use crate::store::{Rule, Step, Writer};

/// The least that a step takes on: a millisecond or two.
const STEP: Step = Step {
    messages: 200,
    bytes: 1 << 20,
};

/// So much has to have come before a step is worth its transaction; what is less waits for the
/// next look.
const WORTH_IT: Step = Step {
    messages: 128,
    bytes: 512 << 10,
};

/// Steps at the end, so that a shutdown takes no longer for it.
const LAST_STEPS: usize = 16;

/// What the journal's thread remembers of it.
pub(super) struct Forgetting {
    retention: Retention,
    /// What was committed since the last step.
    come: Step,
    /// The last step left something to do, or nobody has looked yet.
    more: bool,
    /// The last step failed, which was logged.
    failing: bool,
}

impl Forgetting {
    pub(super) fn new(retention: Retention) -> Self {
        Self {
            retention,
            come: Step::default(),
            more: true,
            failing: false,
        }
    }

    /// Whether everything is kept.
    pub(super) fn is_off(&self) -> bool {
        self.retention == Retention::default()
    }

    /// A batch was committed.
    pub(super) fn note(&mut self, messages: usize, bytes: usize) {
        self.come.messages += messages;
        self.come.bytes += bytes;
    }

    /// Nothing has come for a while: messages grow older, too.
    pub(super) fn look(&mut self) {
        self.more = true;
    }

    /// Whether it is time for a step.
    pub(super) fn is_due(&self) -> bool {
        self.more || self.come.messages >= WORTH_IT.messages || self.come.bytes >= WORTH_IT.bytes
    }

    /// At the end: what is left, as far as a few steps go.
    pub(super) fn finish(&mut self, writer: &mut dyn Writer) {
        self.look();
        for _ in 0..LAST_STEPS {
            if self.is_off() || !self.is_due() {
                return;
            }
            self.step(writer);
        }
    }

    /// Deletes some of the messages that are not to be kept: twice what has come, so that it
    /// keeps up with any load.
    pub(super) fn step(&mut self, writer: &mut dyn Writer) {
        let rule = Rule {
            keep_messages: self.retention.keep_messages,
            not_before: self.retention.keep_age.map(clock::before),
            max_db_bytes: self.retention.max_db_bytes,
        };
        let step = Step {
            messages: STEP.messages.max(2 * self.come.messages),
            bytes: STEP.bytes.max(2 * self.come.bytes),
        };
        self.come = Step::default();
        self.more = false;
        match catch_unwind(AssertUnwindSafe(|| writer.forget(&rule, step))) {
            Ok(Ok(more)) => {
                self.more = more;
                self.failing = false;
            }
            Ok(Err(error)) if !self.failing => {
                self.failing = true;
                log::warn!("old messages stay for now: {error}");
            }
            // It is tried again; a panic was reported.
            Ok(Err(_)) | Err(_) => {}
        }
    }
}
