//! What a subscriber has missed, brought by its own thread: the log is the queue.
//!
//! Joining with `since` or `last` and coming back after the outbox was full are the same
//! thing: what comes after the client's cursor, up to the offered head, one page or chunk at a
//! time into an empty outbox: from the store, or as it was broadcast while that is in memory.
//! When there is no more, the client is fed live again, in one step with the look at the head:
//! no gap, no duplicate, bounded memory.

use std::mem;
use std::time::{Duration, Instant};

use crate::backplane::Link;
use crate::error::{Error, Result};
use crate::frame::Chunk;
use crate::manager::{Client, ConnectionManager, Upcoming};
use crate::metrics::Traffic;
use crate::protocol::{Channel, GapReason, MessageId, ServerFrame, Start, Topic};
use crate::store::{Missed, Reader};

/// One page; the next one is read when this is in the socket.
const PAGE_BYTES: usize = 64 << 10;
const PAGE_MESSAGES: usize = 1000;

/// How long a failed read is left alone.
const RETRY: Duration = Duration::from_millis(250);

/// How long the broadcast is waited for, when the client already has what it is about to offer.
const NEARLY: Duration = Duration::from_millis(2);

/// The same for a node that has to get as far as another one is, at the longest.
const AHEAD: Duration = Duration::from_millis(500);

/// One client's way back to what is live.
#[derive(Debug, Default)]
pub(in crate::server) struct CatchUp {
    /// Told before anything else, and the cursor after it.
    gap: Option<(Chunk, MessageId)>,
    /// The client asked where to begin: it is told when it has everything, at the least up to
    /// this message, which was committed before it came.
    announce: Option<MessageId>,
    /// It asked for what there is: the first page leaves nothing out, wherever it begins.
    takes_what_is_there: bool,
    /// It came then with a cursor that this node has not reached: another one may have.
    ahead_since: Option<Instant>,
    not_before: Option<Instant>,
    failing_since: Option<Instant>,
}

/// The cursor that a client begins with, `None` for one that is live at once, and what it has
/// to be told on the way. Of a shared log, another node may have more than this one's head.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn begin(
    start: Start,
    channel: &Channel,
    head: MessageId,
    reader: &dyn Reader,
    is_shared: bool,
) -> Result<(Option<MessageId>, CatchUp)> {
    let asked = CatchUp {
        announce: Some(head),
        ..CatchUp::default()
    };
    match start {
        Start::Live => Ok((None, CatchUp::default())),
        Start::Since(since) if is_shared && since > head => {
            let waits = CatchUp {
                ahead_since: Some(Instant::now()),
                ..asked
            };
            Ok((Some(since), waits))
        }
        // The store may be a moment ahead of what the journal tells.
        Start::Since(since) if since > head && since > reader.head()? => {
            let gap = ServerFrame::Gap {
                since,
                oldest: reader.oldest()?,
                head,
                reason: GapReason::UnknownId,
            };
            let told = CatchUp {
                gap: Some((Chunk::json(&gap), head)),
                ..asked
            };
            Ok((Some(head), told))
        }
        Start::Since(since) => Ok((Some(since), asked)),
        Start::Last(0) => Ok((Some(head), asked)),
        Start::Last(n) => {
            let first = match reader.nth_newest(channel, head, n)? {
                Some(first) => first,
                // All there are, which is no gap.
                None => reader.oldest()?,
            };
            let told = CatchUp {
                takes_what_is_there: true,
                ..asked
            };
            Ok((Some(first.previous()), told))
        }
    }
}

impl CatchUp {
    /// When [`Self::step`] is worth calling, for a client that wants it; `None` for at once.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.not_before
            .map(|time| time.saturating_duration_since(Instant::now()))
            .filter(|pause| !pause.is_zero())
    }

    /// Whether a client waits that this node gets as far as another one was, from where it came.
    /// When this node surely has all there is, the id is unknown.
    pub(super) fn waits_for(
        &mut self,
        link: &Link,
        client: &Client,
        manager: &ConnectionManager,
        reader: &dyn Reader,
    ) -> bool {
        let Some(since) = self.ahead_since else {
            return false;
        };
        let (cursor, head) = (client.cursor(), manager.offered_head());
        if head >= cursor {
            self.ahead_since = None;
            return false;
        }
        if link.is_complete_since(since) && link.applied().id <= head {
            self.ahead_since = None;
            self.announce = Some(head);
            let gap = ServerFrame::Gap {
                since: cursor,
                oldest: reader.oldest().unwrap_or(head.next()),
                head,
                reason: GapReason::UnknownId,
            };
            self.gap = Some((Chunk::json(&gap), head));
            return false;
        }
        let pause = (since.elapsed() / 4).clamp(NEARLY, AHEAD);
        self.not_before = Some(Instant::now() + pause);
        true
    }

    /// Brings the client one page, or makes it live. Blocks on the disk.
    ///
    /// # Errors
    /// When the store has failed for as long as `patience`.
    pub(super) fn step(
        &mut self,
        client: &Client,
        manager: &ConnectionManager,
        reader: &dyn Reader,
        traffic: &Traffic,
        patience: Duration,
    ) -> Result<()> {
        let Topic::Channel(channel) = &client.topic else {
            return Ok(());
        };
        match self.bring(client, channel, manager, reader, traffic) {
            Ok(has_more) => {
                (self.not_before, self.failing_since) = (None, None);
                if has_more {
                    return Ok(());
                }
            }
            Err(error) => return self.fail(error, patience),
        }
        let due = self.announce.unwrap_or_default().max(client.cursor());
        if manager.go_live(client, self.announce) {
            self.announce = None;
            client.drain();
        } else if manager.offered_head() < due {
            self.not_before = Some(Instant::now() + NEARLY);
        }
        Ok(())
    }

    /// Brings what comes next; whether there may be more of it.
    fn bring(
        &mut self,
        client: &Client,
        channel: &Channel,
        manager: &ConnectionManager,
        reader: &dyn Reader,
        traffic: &Traffic,
    ) -> Result<bool> {
        let cursor = client.cursor();
        if let Some((gap, cursor)) = self.gap.take() {
            client.feed_missed(&gap, cursor);
            traffic.gaps_unknown_id.add();
            return Ok(true);
        }
        let takes_what_is_there = mem::take(&mut self.takes_what_is_there);
        let until = match manager.upcoming(channel, cursor) {
            Upcoming::Chunk(chunk, last, messages) => {
                client.feed_missed(&chunk, last);
                traffic.delivered_recent.add_many(messages);
                return Ok(true);
            }
            Upcoming::Store(until) => until,
        };
        if until <= cursor {
            return Ok(false);
        }
        let page = reader.missed(&Missed {
            channel,
            cursor,
            head: until,
            limit: PAGE_MESSAGES,
            max_bytes: PAGE_BYTES,
        })?;
        let until = page.until;
        // What comes after this page comes, whether the store still keeps it or not.
        let oldest = page.oldest.min(until.next());
        let is_gap = oldest > cursor.next() && !takes_what_is_there;
        let gap = is_gap.then(|| {
            Chunk::json(&ServerFrame::Gap {
                since: cursor,
                oldest,
                head: manager.offered_head(),
                reason: GapReason::Retention,
            })
        });
        if is_gap {
            traffic.gaps_retention.add();
        }
        traffic.delivered_store.add_many(page.number);
        match gap {
            Some(gap) => client.feed_missed(&Chunk::concat(&[gap, page.chunk]), page.reach),
            None => client.feed_missed(&page.chunk, page.reach),
        }
        Ok(true)
    }

    fn fail(&mut self, error: Error, patience: Duration) -> Result<()> {
        let now = Instant::now();
        let since = *self.failing_since.get_or_insert(now);
        self.not_before = Some(now + RETRY);
        if now - since < patience {
            return Ok(());
        }
        Err(error)
    }
}
