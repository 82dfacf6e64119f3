//! Which messages and remembered answers are not to be kept, and when they go: some at a time,
//! between commits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::config::Retention;
use crate::protocol::clock;
use crate::store::{Left, RECEIPTS_KEPT, Rule, Step, Writer};

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

/// How often it is looked whether messages are too old.
const MESSAGES_INTERVAL: Duration = Duration::from_secs(1);

/// The same for remembered answers, which are not found any more when they are.
const RECEIPTS_INTERVAL: Duration = Duration::from_secs(60);

/// Remembered answers that go at once.
const RECEIPTS_AT_ONCE: usize = 500;

/// What the journal's thread remembers of it.
pub(super) struct Forgetting {
    retention: Retention,
    /// What was committed since the last step.
    come: Step,
    /// The last step left something to do, or nobody has looked yet.
    more: bool,
    /// The last step failed, which was logged.
    failing: bool,
    /// What is known of remembered answers, and when to look again.
    receipts: Left,
    next_receipts: Instant,
}

impl Forgetting {
    pub(super) fn new(retention: Retention) -> Self {
        Self {
            retention,
            come: Step::default(),
            more: true,
            failing: false,
            receipts: Left::Old,
            next_receipts: Instant::now(),
        }
    }

    /// Whether nothing will have to go.
    pub(super) fn is_off(&self) -> bool {
        self.keeps_messages() && self.receipts == Left::Nothing
    }

    fn keeps_messages(&self) -> bool {
        self.retention == Retention::default()
    }

    /// How long nothing may come before [`Self::look`].
    pub(super) fn interval(&self) -> Duration {
        if self.keeps_messages() {
            RECEIPTS_INTERVAL
        } else {
            MESSAGES_INTERVAL
        }
    }

    /// A batch was committed.
    pub(super) fn note(&mut self, messages: usize, bytes: usize) {
        self.come.messages += messages;
        self.come.bytes += bytes;
    }

    /// A batch had answers to remember.
    pub(super) fn note_receipts(&mut self) {
        if self.receipts == Left::Nothing {
            self.receipts = Left::Young;
            self.next_receipts = Instant::now() + RECEIPTS_INTERVAL;
        }
    }

    /// Nothing has come for a while: messages grow older, too.
    pub(super) fn look(&mut self) {
        self.more = true;
    }

    /// Whether it is time for a step.
    pub(super) fn is_due(&self) -> bool {
        self.are_messages_due() || self.are_receipts_due()
    }

    fn are_messages_due(&self) -> bool {
        let is_worth_it =
            self.come.messages >= WORTH_IT.messages || self.come.bytes >= WORTH_IT.bytes;
        !self.keeps_messages() && (self.more || is_worth_it)
    }

    fn are_receipts_due(&self) -> bool {
        self.receipts != Left::Nothing && self.next_receipts <= Instant::now()
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

    /// Deletes some of what is not to be kept.
    pub(super) fn step(&mut self, writer: &mut dyn Writer) {
        if self.are_receipts_due() {
            self.step_receipts(writer);
        }
        if self.are_messages_due() {
            self.step_messages(writer);
        }
    }

    fn step_receipts(&mut self, writer: &mut dyn Writer) {
        self.next_receipts = Instant::now() + RECEIPTS_INTERVAL;
        let until = clock::before(RECEIPTS_KEPT);
        let step = || writer.forget_receipts(&until, RECEIPTS_AT_ONCE);
        match catch_unwind(AssertUnwindSafe(step)) {
            Ok(Ok(left)) => {
                self.receipts = left;
                if left == Left::Old {
                    self.next_receipts = Instant::now();
                }
            }
            Ok(Err(error)) => log::debug!("remembered answers stay for now: {error}"),
            // It is tried again; the panic was reported.
            Err(_) => {}
        }
    }

    /// Deletes some of the messages that are not to be kept: twice what has come, so that it
    /// keeps up with any load.
    fn step_messages(&mut self, writer: &mut dyn Writer) {
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
