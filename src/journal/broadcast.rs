//! The fan-out: takes committed batches in order and merges what waits into one chunk per channel.
//!
//! While one fan-out runs, several commits may wait; their frames then go out together, so
//! the cost per subscriber is per chunk, and no publisher waits for an audience. Under load the
//! thread lingers a moment between two fan-outs, so that there are more.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::Committed;
use crate::frame::{Chunk, MessageFrame};
use crate::manager::{Client, Clients, ConnectionManager, Offer};
use crate::protocol::{Channel, MessageId};
use crate::usage::Usage;

/// Bytes after which a channel's frames go out as one chunk; more follow in the next.
const MAX_CHUNK_BYTES: usize = 64 << 10;

/// How long the thread lets messages gather under load, in times of the last fan-out, and at most.
/// Each send costs the same however many messages it carries, and meanwhile the cores are the
/// publishers'.
const LINGER: u32 = 2;
const MAX_LINGER: Duration = Duration::from_millis(2);

/// The journal's end of the queue. Bounded by bytes.
pub(super) struct Broadcast {
    batches: Sender<Batch>,
    manager: Arc<ConnectionManager>,
    /// The newest message that was sent here.
    head: MessageId,
    waiting: Arc<Waiting>,
    max_bytes: usize,
    usage: Arc<Usage>,
}

/// What is queued, in the order of the log.
enum Batch {
    Messages(Vec<(Channel, MessageFrame)>),
    /// Up to here subscribers go on from the store: there is something missing, or to be told.
    Jump(MessageId),
}

/// How many bytes wait for the fan-out.
#[derive(Default)]
struct Waiting {
    bytes: Mutex<usize>,
    fewer: Condvar,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Broadcast {
    pub(super) fn start(
        manager: Arc<ConnectionManager>,
        head: MessageId,
        max_bytes: usize,
        usage: Arc<Usage>,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let (batches, received) = unbounded();
        let waiting = Arc::new(Waiting::default());
        manager.begin_at(head);
        let fan_out = FanOut {
            manager: Arc::clone(&manager),
            batches: received,
            waiting: Arc::clone(&waiting),
            max_bytes,
            usage: Arc::clone(&usage),
        };
        let thread = thread::Builder::new()
            .name("broadcast".to_owned())
            .spawn(move || fan_out.run())?;
        Ok((
            Self {
                batches,
                manager,
                head,
                waiting,
                max_bytes,
                usage,
            },
            thread,
        ))
    }

    /// Queues a batch. Blocks while more waits than may: publishers then wait for the fan-out.
    pub(super) fn send(&mut self, messages: &[Committed]) {
        let Some(last) = messages.last() else { return };
        let after = std::mem::replace(&mut self.head, last.frame.id);
        let channels = messages.iter().map(|message| &message.channel);
        if self.manager.pass_unheard(channels, after, self.head) {
            return;
        }
        // All of them, whether they have subscribers now or not: whoever comes later may rely
        // on everything after the offered head.
        let batch: Vec<_> = messages
            .iter()
            .map(|message| (message.channel.clone(), message.frame.clone()))
            .collect();
        let bytes: usize = batch.iter().map(|(_, frame)| frame.chunk().len()).sum();
        let mut waiting = self.waiting.lock();
        while *waiting > self.max_bytes {
            waiting = self
                .waiting
                .fewer
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *waiting += bytes;
        self.usage.traffic.show_fanout_bytes(*waiting);
        drop(waiting);
        // The thread ends after its senders.
        let _ = self.batches.send(Batch::Messages(batch));
    }

    /// Lets every subscriber go on from the store up to here, when it has what was sent before.
    pub(super) fn jump(&mut self, head: MessageId) {
        self.head = self.head.max(head);
        let _ = self.batches.send(Batch::Jump(head));
    }
}

/// The broadcast thread.
struct FanOut {
    manager: Arc<ConnectionManager>,
    batches: Receiver<Batch>,
    waiting: Arc<Waiting>,
    max_bytes: usize,
    usage: Arc<Usage>,
}

impl FanOut {
    fn run(&self) {
        let mut held = None;
        while let Some(first) = held.take().or_else(|| self.batches.recv().ok()) {
            let mut merged = Merged::default();
            match first {
                Batch::Messages(batch) => merged.add(batch),
                Batch::Jump(head) => {
                    self.manager.fall_behind(head);
                    continue;
                }
            }
            // At most what `Waiting` lets in is taken at once.
            while let Ok(batch) = self.batches.try_recv() {
                match batch {
                    Batch::Messages(batch) => merged.add(batch),
                    jump @ Batch::Jump(_) => {
                        held = Some(jump);
                        break;
                    }
                }
            }
            // The journal waits for the bytes below: a bug must not keep them.
            let begin = Instant::now();
            if catch_unwind(AssertUnwindSafe(|| self.offer(&merged))).is_err() {
                log::error!("a bug in the fan-out: subscribers go on from the store");
                self.manager.fall_behind(merged.head);
            }
            let took = begin.elapsed();
            let traffic = &self.usage.traffic;
            traffic.fan_outs.observe_time(took);
            let mut waiting = self.waiting.lock();
            *waiting -= merged.bytes;
            traffic.show_fanout_bytes(*waiting);
            let is_full = *waiting > self.max_bytes;
            drop(waiting);
            self.waiting.fewer.notify_all();
            // Whoever has something to hear now and then hears it at once.
            if merged.messages > 1 && !self.batches.is_empty() && !is_full {
                thread::sleep((took * LINGER).min(MAX_LINGER));
            }
        }
    }

    fn offer(&self, merged: &Merged) {
        let newest = merged.channels.iter().filter_map(|(channel, frames)| {
            let last = frames.last()?;
            Some((channel, last.id))
        });
        let lists = self.manager.take_up(newest, merged.head);
        for ((channel, frames), clients) in merged.channels.iter().zip(lists) {
            if !clients.is_empty() {
                for part in chunks(frames) {
                    let (ids, messages) = (part.ids, part.messages);
                    self.manager.remember(channel, ids, messages, &part.chunk);
                    self.offer_chunk(channel, &clients, &part);
                }
            }
        }
    }

    fn offer_chunk(&self, channel: &Channel, clients: &Clients, part: &Part) {
        let (mut taken, mut fell_behind) = (0, 0);
        Client::visit(clients, |client| {
            match client.offer_messages(&part.chunk, part.ids) {
                Offer::Taken => taken += 1,
                Offer::Left => {}
                Offer::Full => {
                    fell_behind += 1;
                    log::debug!(
                        "client {} from {} falls behind: its outbox is full",
                        client.id,
                        client.peer
                    );
                }
            }
        });
        // Once for all of them: an atomic for each would be felt.
        let traffic = &self.usage.traffic;
        traffic.delivered_live.add_many(taken * part.messages);
        traffic.fell_behind.add_many(fell_behind);
        log::debug!(
            "broadcast {} bytes on {:?} to {taken} clients",
            part.chunk.len(),
            channel.as_str()
        );
    }
}

/// The frames of several batches by channel, each channel's in order.
#[derive(Default)]
struct Merged {
    channels: HashMap<Channel, Vec<MessageFrame>>,
    head: MessageId,
    messages: usize,
    bytes: usize,
}

impl Merged {
    fn add(&mut self, batch: Vec<(Channel, MessageFrame)>) {
        for (channel, frame) in batch {
            self.messages += 1;
            self.bytes += frame.chunk().len();
            self.head = frame.id;
            self.channels.entry(channel).or_default().push(frame);
        }
    }
}

/// Messages that are offered together.
struct Part {
    chunk: Chunk,
    /// The first one and the last.
    ids: (MessageId, MessageId),
    messages: usize,
}

/// The frames as few chunks, none much larger than it may be.
fn chunks(frames: &[MessageFrame]) -> Vec<Part> {
    let mut chunks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, frame) in frames.iter().enumerate() {
        let length = frame.chunk().len();
        if bytes > 0 && bytes + length > MAX_CHUNK_BYTES {
            chunks.extend(merge(&frames[start..at]));
            (start, bytes) = (at, 0);
        }
        bytes += length;
    }
    chunks.extend(merge(&frames[start..]));
    chunks
}

fn merge(frames: &[MessageFrame]) -> Option<Part> {
    let ids = (frames.first()?.id, frames.last()?.id);
    let frames: Vec<Chunk> = frames.iter().map(|frame| frame.chunk().clone()).collect();
    Some(Part {
        chunk: Chunk::concat(&frames),
        ids,
        messages: frames.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Message;

    #[test]
    fn chunks_keep_every_byte_in_order_and_stay_small() {
        let frames: Vec<MessageFrame> = (1..=100)
            .map(|number| {
                MessageFrame::new(&Message {
                    id: MessageId(number),
                    channel_id: "lab".parse().expect("a channel"),
                    author: String::new(),
                    content: format!("{number:0>5000}"),
                    timestamp: String::new(),
                    lane: None,
                    provider: None,
                    token_count: None,
                })
            })
            .collect();
        let merged = chunks(&frames);
        assert!(
            merged
                .iter()
                .all(|part| part.chunk.len() <= MAX_CHUNK_BYTES)
        );
        assert!(merged.len() < 10);
        let ids: Vec<_> = merged
            .iter()
            .map(|part| (part.ids.0.0, part.ids.1.0))
            .collect();
        assert_eq!(merged.iter().map(|part| part.messages).sum::<usize>(), 100);
        assert_eq!((ids[0].0, ids[ids.len() - 1].1), (1, 100));
        assert!(ids.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0));
        let whole: Vec<u8> = frames
            .iter()
            .flat_map(|frame| frame.chunk().bytes().to_vec())
            .collect();
        assert_eq!(
            merged
                .iter()
                .flat_map(|part| part.chunk.bytes().to_vec())
                .collect::<Vec<_>>(),
            whole
        );
        assert!(chunks(&[]).is_empty());
    }
}
