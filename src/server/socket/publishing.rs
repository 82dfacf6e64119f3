//! What a client publishes on its WebSocket: to the journal, and the acks back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::Value;

use crate::error::Error;
use crate::frame::Chunk;
use crate::journal::{Committed, Journal};
use crate::manager::Client;
use crate::protocol::{Draft, ServerFrame};

/// One client's drafts on their way.
pub(super) struct Publishing {
    shared: Arc<Shared>,
    drafts: Vec<Draft>,
    references: Vec<Option<Value>>,
    max_in_flight: usize,
}

struct Shared {
    client: Arc<Client>,
    /// Handed to the journal and not yet committed or refused.
    in_flight: AtomicUsize,
    /// The session waits for a commit before it reads on.
    waiting: AtomicBool,
}

impl Publishing {
    pub(super) fn new(client: Arc<Client>, max_in_flight: usize) -> Self {
        let shared = Shared {
            client,
            in_flight: AtomicUsize::new(0),
            waiting: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
            drafts: Vec::new(),
            references: Vec::new(),
            max_in_flight: max_in_flight.max(1),
        }
    }

    /// Whether one more draft may be read, its ack included. When not, the next commit wakes
    /// the session.
    pub(super) fn has_room(&self) -> bool {
        let taken = || {
            let client = &self.shared.client;
            self.shared.in_flight.load(Ordering::SeqCst)
                + self.drafts.len()
                + client.replies_waiting()
        };
        if taken() < self.max_in_flight {
            return true;
        }
        self.shared.waiting.store(true, Ordering::SeqCst);
        // The commit may have come between the look and the note.
        taken() < self.max_in_flight
    }

    /// Collects a draft; what is read together is committed together.
    pub(super) fn add(&mut self, draft: Draft, reference: Option<Value>) {
        self.drafts.push(draft);
        self.references.push(reference);
    }

    /// Hands the collected drafts to the journal. Never blocks.
    pub(super) fn submit(&mut self, journal: &Journal) {
        if self.drafts.is_empty() {
            return;
        }
        let drafts = std::mem::take(&mut self.drafts);
        let references = std::mem::take(&mut self.references);
        let shared = Arc::clone(&self.shared);
        shared.in_flight.fetch_add(drafts.len(), Ordering::SeqCst);
        journal.submit(
            drafts,
            Box::new(move |outcome| shared.answer(&references, outcome)),
        );
    }
}

impl Shared {
    /// Acks or refuses, all in one chunk.
    fn answer(&self, references: &[Option<Value>], outcome: Result<&[Committed], &Error>) {
        let frames: Vec<Chunk> = match outcome {
            Ok(committed) => references
                .iter()
                .zip(committed)
                .filter_map(|(reference, message)| {
                    Some(ServerFrame::Ack {
                        reference: reference.clone()?,
                        id: message.frame.id,
                    })
                })
                .map(|frame| Chunk::json(&frame))
                .collect(),
            Err(error) => references
                .iter()
                .map(|reference| ServerFrame::Error {
                    code: "store_unavailable",
                    detail: error.to_string(),
                    reference: reference.clone(),
                })
                .map(|frame| Chunk::json(&frame))
                .collect(),
        };
        if !frames.is_empty() {
            self.client.reply(Chunk::concat(&frames));
        }
        self.in_flight.fetch_sub(references.len(), Ordering::SeqCst);
        if self.waiting.swap(false, Ordering::SeqCst) {
            self.client.wake();
        }
    }
}
