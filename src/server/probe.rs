//! Whether the server still works, asked of the threads that everything goes through.

use std::fmt;
use std::sync::Arc;

use super::relay::Relay;
use crate::journal::Journal;

/// Asks a server whether it still works, from any thread: [`Server::probe`](super::Server::probe).
#[derive(Clone)]
pub struct Probe {
    journal: Arc<Journal>,
    relay: Arc<Relay>,
}

impl Probe {
    pub(super) fn new(journal: Arc<Journal>, relay: Arc<Relay>) -> Self {
        Self { journal, relay }
    }

    /// Blocks until the `journal` and the `rest` thread have answered, however long that takes:
    /// who waits in vain has the answer, too. `false` when one of them has ended, as at a
    /// shutdown. Whether commits succeed is not asked: a full disk is no reason to begin anew.
    pub fn is_answered(&self) -> bool {
        self.journal.is_running() && self.relay.is_answered()
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").finish_non_exhaustive()
    }
}
