//! The ring in memory: the newest messages, as many as its bytes allow.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use super::holes::Holes;
use super::receipt::most_receipts;
use super::totals::Totals;
use super::{
    Applied, Batch, ChannelTotals, Given, Left, Missed, MissedPage, Page, PageBudget, Reader,
    Receipt, Remembered, Rule, Step, StoredState, Summary, Writer,
};
use crate::error::Result;
use crate::frame::MessageFrames;
use crate::protocol::{Channel, Draft, LogMark, Message, MessageId};

/// Shared by its writer and readers. Bounded by `max_bytes`: the oldest messages make room.
#[derive(Debug, Clone)]
pub(super) struct Ring {
    inner: Arc<Mutex<Inner>>,
    max_bytes: usize,
    holes: Holes,
}

#[derive(Debug, Default)]
struct Inner {
    head: MessageId,
    bytes: usize,
    messages: VecDeque<Arc<Message>>,
    /// Each channel's part of `messages`, so that reading one never walks over the others.
    channels: HashMap<Channel, VecDeque<Arc<Message>>>,
    totals: Totals,
    receipts: HashMap<[u8; 32], Remembered>,
    /// Their keys and times as they came. Of a key that came again the later counts.
    receipts_in_order: VecDeque<([u8; 32], String)>,
}

/// What a receipt takes, about.
const RECEIPT_BYTES: u64 = 400;

impl Ring {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            inner: Arc::default(),
            max_bytes,
            holes: Holes::default(),
        }
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Writer for Ring {
    /// Keeps the messages; states need no keeping, the manager has them.
    fn commit(&mut self, batch: &Batch<'_>) -> Result<Vec<MessageId>> {
        let max_bytes = self.max_bytes;
        Ok(self.locked(|ring| {
            let ids: Vec<MessageId> = batch
                .drafts
                .iter()
                .map(|draft| ring.push(draft, batch.timestamp))
                .collect();
            while ring.bytes > max_bytes && ring.messages.len() > 1 {
                ring.forget_oldest();
            }
            for receipt in batch.receipts {
                ring.remember(receipt, &ids, batch.timestamp);
            }
            let most = most_receipts(Some(max_bytes as u64), RECEIPT_BYTES);
            while ring.receipts_in_order.len() as u64 > most {
                ring.forget_receipt();
            }
            ids
        }))
    }

    fn apply(&mut self, applied: &Applied<'_>) -> Result<()> {
        let max_bytes = self.max_bytes;
        if let Some(hole) = applied.hole {
            self.holes.replace(self.holes.with(hole));
        }
        self.locked(|ring| {
            for message in applied.messages {
                ring.push_message(Arc::new(message.clone()));
            }
            while ring.bytes > max_bytes && ring.messages.len() > 1 {
                ring.forget_oldest();
            }
        });
        Ok(())
    }

    fn forget(&mut self, rule: &Rule, step: Step) -> Result<bool> {
        Ok(self.locked(|ring| {
            for _ in 0..step.messages {
                if !ring.is_oldest_forgotten(rule) {
                    return false;
                }
                ring.forget_oldest();
            }
            ring.is_oldest_forgotten(rule)
        }))
    }

    fn remembered(&mut self, key: &[u8; 32], after: &str) -> Result<Option<Remembered>> {
        Ok(self.locked(|ring| {
            let found = ring.receipts.get(key).cloned();
            found.filter(|found| found.timestamp.as_str() > after)
        }))
    }

    fn forget_receipts(&mut self, until: &str, most: usize) -> Result<Left> {
        Ok(self.locked(|ring| {
            for _ in 0..most {
                match ring.receipts_in_order.front() {
                    None => return Left::Nothing,
                    Some((_, timestamp)) if timestamp.as_str() > until => return Left::Young,
                    Some(_) => ring.forget_receipt(),
                }
            }
            Left::Old
        }))
    }

    fn close(self: Box<Self>) {}
}

impl Inner {
    fn push(&mut self, draft: &Draft, timestamp: &str) -> MessageId {
        let id = self.head.next();
        self.push_message(Arc::new(draft.committed(id, timestamp)));
        id
    }

    fn push_message(&mut self, message: Arc<Message>) {
        self.head = message.id;
        self.bytes += message.view().size();
        self.totals.add(&(&*message).into());
        self.channels
            .entry(message.channel_id.clone())
            .or_default()
            .push_back(Arc::clone(&message));
        self.messages.push_back(message);
    }

    fn remember(&mut self, receipt: &Receipt, ids: &[MessageId], timestamp: &str) {
        let (number, changed) = match receipt.given {
            Given::Ids(first) => (ids[first].0, false),
            Given::Rev(rev, changed) => (rev.0, changed),
        };
        let remembered = Remembered {
            fingerprint: receipt.claim.fingerprint,
            timestamp: timestamp.to_owned(),
            number,
            changed,
            subscribers: receipt.subscribers,
        };
        let key = receipt.claim.key;
        self.receipts.insert(key, remembered);
        self.receipts_in_order
            .push_back((key, timestamp.to_owned()));
    }

    fn forget_receipt(&mut self) {
        let Some((key, timestamp)) = self.receipts_in_order.pop_front() else {
            return;
        };
        let is_it = |found: &Remembered| found.timestamp == timestamp;
        if self.receipts.get(&key).is_some_and(is_it) {
            self.receipts.remove(&key);
        }
    }

    fn is_oldest_forgotten(&self, rule: &Rule) -> bool {
        let Some(oldest) = self.messages.front() else {
            return false;
        };
        let too_many = |most| self.messages.len() as u64 > most;
        rule.keep_messages.is_some_and(too_many)
            || rule
                .not_before
                .as_ref()
                .is_some_and(|limit| oldest.timestamp < *limit)
    }

    fn forget_oldest(&mut self) {
        let Some(message) = self.messages.pop_front() else {
            return;
        };
        self.bytes -= message.view().size();
        self.totals.remove(&(&*message).into());
        if let Some(channel) = self.channels.get_mut(&message.channel_id) {
            channel.pop_front();
            if channel.is_empty() {
                self.channels.remove(&message.channel_id);
            }
        }
    }

    fn oldest(&self) -> MessageId {
        self.messages
            .front()
            .map_or(self.head.next(), |message| message.id)
    }

    /// A page, and whether nothing was left out at its end.
    fn page(&self, page: &Page) -> (Vec<Arc<Message>>, bool) {
        let nothing = VecDeque::new();
        let messages = match &page.channel {
            Some(channel) => self.channels.get(channel).unwrap_or(&nothing),
            None => &self.messages,
        };
        let end = page.before.map_or(messages.len(), |before| {
            messages.partition_point(|message| message.id < before)
        });
        let mut budget = PageBudget::new(page);
        if let Some(since) = page.since {
            let start = messages
                .partition_point(|message| message.id <= since)
                .min(end);
            let taken = messages
                .range(start..end)
                .take_while(|message| budget.takes(message.view().size()))
                .cloned()
                .collect();
            return (taken, !budget.exceeded);
        }
        let mut newest: Vec<Arc<Message>> = messages
            .range(..end)
            .rev()
            .take_while(|message| budget.takes(message.view().size()))
            .cloned()
            .collect();
        newest.reverse();
        (newest, !budget.exceeded)
    }
}

/// Made outside the lock, which the journal needs.
fn copies(shared: &[Arc<Message>]) -> Vec<Message> {
    shared
        .iter()
        .map(|message| Message::clone(message))
        .collect()
}

impl Reader for Ring {
    fn head(&self) -> Result<MessageId> {
        Ok(self.locked(|ring| ring.head))
    }

    fn page(&self, page: &Page) -> Result<Vec<Message>> {
        let (shared, _) = self.locked(|ring| ring.page(page));
        Ok(copies(&shared))
    }

    fn missed(&self, missed: &Missed<'_>) -> Result<MissedPage> {
        let (until, after_hole) = self.holes.reach(missed.cursor, missed.head);
        let page = missed.up_to(until).page();
        let ((messages, complete), oldest) = self.locked(|ring| (ring.page(&page), ring.oldest()));
        // Encoded outside the lock, which the journal needs.
        let mut frames = MessageFrames::default();
        messages
            .iter()
            .for_each(|message| frames.push(&message.view()));
        let oldest = oldest.max(after_hole.unwrap_or_default());
        Ok(MissedPage::new(frames, complete, until, oldest))
    }

    fn oldest(&self) -> Result<MessageId> {
        Ok(self.locked(|ring| ring.oldest()))
    }

    fn nth_newest(
        &self,
        channel: &Channel,
        head: MessageId,
        n: usize,
    ) -> Result<Option<MessageId>> {
        Ok(self.locked(|ring| {
            let messages = ring.channels.get(channel)?;
            let end = messages.partition_point(|message| message.id <= head);
            let nth = end.checked_sub(n)?;
            Some(messages.get(nth)?.id)
        }))
    }

    fn channels(&self) -> Result<Vec<ChannelTotals>> {
        Ok(self.locked(|ring| ring.totals.channels()))
    }

    fn summary(&self) -> Result<Summary> {
        Ok(self.locked(|ring| ring.totals.summary()))
    }

    fn states(&self) -> Result<Vec<StoredState>> {
        Ok(Vec::new())
    }

    fn mark(&self) -> Result<LogMark> {
        Ok(LogMark::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(channel: &str, content: &str) -> Draft {
        Draft {
            channel_id: channel.parse().expect("a channel"),
            author: "a".into(),
            content: content.into(),
            lane: Some("l".into()),
            provider: None,
            token_count: Some(2),
        }
    }

    fn append(ring: &mut Ring, channel: &str, content: &str) {
        ring.commit(&Batch {
            drafts: &[draft(channel, content)],
            states: &[],
            transitions: &[],
            receipts: &[],
            timestamp: "t",
        })
        .expect("memory");
    }

    fn page(
        ring: &Ring,
        channel: Option<&str>,
        since: Option<u64>,
        before: Option<u64>,
        limit: usize,
    ) -> Vec<u64> {
        let page = Page {
            channel: channel.map(|name| name.parse().expect("a channel")),
            since: since.map(MessageId),
            before: before.map(MessageId),
            limit,
            max_bytes: 1 << 20,
        };
        ring.page(&page)
            .expect("memory")
            .iter()
            .map(|message| message.id.0)
            .collect()
    }

    #[test]
    fn the_oldest_make_room_and_are_forgotten_everywhere() {
        let mut ring = Ring::new(1000);
        let big = "x".repeat(300);
        for (channel, content) in [("a", &big), ("b", &big), ("b", &big)] {
            append(&mut ring, channel, content);
        }
        assert_eq!(page(&ring, None, None, None, 10), [2, 3]);
        assert_eq!(page(&ring, Some("a"), None, None, 10), [0_u64; 0]);
        assert_eq!(ring.head().expect("memory"), MessageId(3));
        let summary = ring.summary().expect("memory");
        assert_eq!(
            (
                summary.total_messages,
                summary.total_tokens,
                summary.by_lane["l"]
            ),
            (2, 4, 2)
        );
        let names: Vec<_> = ring
            .channels()
            .expect("memory")
            .iter()
            .map(|channel| channel.channel_id.to_string())
            .collect();
        assert_eq!(names, ["b"]);
    }

    #[test]
    fn pages_are_ascending_and_bounded_on_both_sides() {
        let mut ring = Ring::new(1 << 20);
        for number in 0..10 {
            let channel = if number % 2 == 0 { "even" } else { "odd" };
            append(&mut ring, channel, "x");
        }
        assert_eq!(page(&ring, None, None, None, 3), [8, 9, 10]);
        assert_eq!(page(&ring, None, Some(2), None, 3), [3, 4, 5]);
        assert_eq!(page(&ring, None, None, Some(5), 2), [3, 4]);
        assert_eq!(page(&ring, Some("even"), Some(3), Some(9), 10), [5, 7]);
        assert_eq!(page(&ring, None, Some(8), Some(3), 10), [0_u64; 0]);
    }
}
