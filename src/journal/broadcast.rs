//! The fan-out: takes committed batches in order and merges what waits into one chunk per channel.
//!
//! While one fan-out runs, several commits may wait; their frames then go out together, so
//! the cost per subscriber is per chunk, and no publisher waits for an audience.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::Committed;
use crate::frame::Chunk;
use crate::manager::ConnectionManager;
use crate::protocol::Channel;

/// Bytes after which a channel's frames go out as one chunk; more follow in the next.
const MAX_CHUNK_BYTES: usize = 64 << 10;

/// The journal's end of the queue. Bounded by bytes.
pub(super) struct Broadcast {
    frames: Sender<Vec<(Channel, Chunk)>>,
    waiting: Arc<Waiting>,
    max_bytes: usize,
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
        max_bytes: usize,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let (frames, received) = unbounded();
        let waiting = Arc::new(Waiting::default());
        let fan_out = FanOut {
            manager,
            frames: received,
            waiting: Arc::clone(&waiting),
        };
        let thread = thread::Builder::new()
            .name("broadcast".to_owned())
            .spawn(move || fan_out.run())?;
        Ok((
            Self {
                frames,
                waiting,
                max_bytes,
            },
            thread,
        ))
    }

    /// Queues a batch. Blocks while more waits than may: publishers then wait for the fan-out.
    pub(super) fn send(&self, messages: &[Committed]) {
        let batch: Vec<_> = messages
            .iter()
            .filter(|message| message.subscribers > 0)
            .map(|message| (message.channel.clone(), message.frame.chunk().clone()))
            .collect();
        if batch.is_empty() {
            return;
        }
        let bytes: usize = batch.iter().map(|(_, chunk)| chunk.len()).sum();
        let mut waiting = self.waiting.lock();
        while *waiting > self.max_bytes {
            waiting = self
                .waiting
                .fewer
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *waiting += bytes;
        drop(waiting);
        // The thread ends after its senders.
        let _ = self.frames.send(batch);
    }
}

/// The broadcast thread.
struct FanOut {
    manager: Arc<ConnectionManager>,
    frames: Receiver<Vec<(Channel, Chunk)>>,
    waiting: Arc<Waiting>,
}

impl FanOut {
    fn run(&self) {
        while let Ok(first) = self.frames.recv() {
            let mut merged = Merged::default();
            merged.add(first);
            // At most what `Waiting` lets in is taken at once.
            while let Ok(batch) = self.frames.try_recv() {
                merged.add(batch);
            }
            // The journal waits for the bytes below: a bug must not keep them.
            if catch_unwind(AssertUnwindSafe(|| self.offer(&merged))).is_err() {
                log::error!("a bug in the fan-out: messages were stored and not delivered");
            }
            *self.waiting.lock() -= merged.bytes;
            self.waiting.fewer.notify_all();
        }
    }

    fn offer(&self, merged: &Merged) {
        for (channel, frames) in &merged.channels {
            for chunk in chunks(frames) {
                self.manager.offer(channel, &chunk);
            }
        }
    }
}

/// The frames of several batches by channel, each channel's in order.
#[derive(Default)]
struct Merged {
    channels: HashMap<Channel, Vec<Chunk>>,
    bytes: usize,
}

impl Merged {
    fn add(&mut self, batch: Vec<(Channel, Chunk)>) {
        for (channel, chunk) in batch {
            self.bytes += chunk.len();
            self.channels.entry(channel).or_default().push(chunk);
        }
    }
}

/// The frames as few chunks, none much larger than it may be.
fn chunks(frames: &[Chunk]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, frame) in frames.iter().enumerate() {
        if bytes > 0 && bytes + frame.len() > MAX_CHUNK_BYTES {
            chunks.push(Chunk::concat(&frames[start..at]));
            (start, bytes) = (at, 0);
        }
        bytes += frame.len();
    }
    if start < frames.len() {
        chunks.push(Chunk::concat(&frames[start..]));
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_keep_every_byte_in_order_and_stay_small() {
        let frames: Vec<Chunk> = (0..100)
            .map(|number| Chunk::text(&format!("{number:0>5000}")))
            .collect();
        let merged = chunks(&frames);
        assert!(merged.iter().all(|chunk| chunk.len() <= MAX_CHUNK_BYTES));
        assert!(merged.len() < 10);
        let whole: Vec<u8> = frames
            .iter()
            .flat_map(|frame| frame.bytes().to_vec())
            .collect();
        assert_eq!(
            merged
                .iter()
                .flat_map(|chunk| chunk.bytes().to_vec())
                .collect::<Vec<_>>(),
            whole
        );
        assert!(chunks(&[]).is_empty());
    }
}
