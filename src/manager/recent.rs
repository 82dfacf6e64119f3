//! The chunks that were broadcast last, for clients that fall behind: they get them as they
//! are, without the store, while the chunks are here.

use std::collections::{HashMap, VecDeque};

use super::ChannelEntry;
use crate::frame::Chunk;
use crate::protocol::{Channel, MessageId};

/// Chunks of all channels together, whatever their bytes.
const MAX_CHUNKS: usize = 8192;

/// What is kept of all channels, and in which order it goes. Bounded by bytes and chunks.
#[derive(Debug, Default)]
pub(super) struct Recent {
    max_bytes: usize,
    bytes: usize,
    /// Each chunk by its channel and last message, the oldest first. A channel that is gone
    /// leaves its chunks' places here until their turn comes.
    order: VecDeque<(Channel, MessageId)>,
}

/// One channel's part, without a hole as long as the channel has subscribers.
#[derive(Debug, Default)]
pub(super) struct Window {
    chunks: VecDeque<Offered>,
}

#[derive(Debug)]
struct Offered {
    /// No message of the channel is between this and the chunk's first.
    after: MessageId,
    first: MessageId,
    last: MessageId,
    messages: usize,
    chunk: Chunk,
}

/// Where the next message after a cursor is.
#[derive(Debug)]
pub(crate) enum Upcoming {
    /// In this chunk, which ends with this message and has so many.
    Chunk(Chunk, MessageId, usize),
    /// In the store, if there is one; what comes after this message may be in a chunk again.
    Store(MessageId),
}

impl Recent {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            ..Self::default()
        }
    }

    /// Keeps a chunk of so many messages `first..=last` that is about to be offered.
    pub(super) fn remember(
        &mut self,
        channels: &mut HashMap<Channel, ChannelEntry>,
        channel: &Channel,
        (first, last): (MessageId, MessageId),
        messages: usize,
        chunk: &Chunk,
    ) {
        let Some(entry) = channels.get_mut(channel) else {
            return;
        };
        let chunks = &mut entry.window.chunks;
        chunks.push_back(Offered {
            after: chunks.back().map_or(first.previous(), |before| before.last),
            first,
            last,
            messages,
            chunk: chunk.clone(),
        });
        self.bytes += chunk.len();
        self.order.push_back((channel.clone(), last));
        while self.bytes > self.max_bytes || self.order.len() > MAX_CHUNKS {
            let Some((channel, last)) = self.order.pop_front() else {
                return;
            };
            if let Some(entry) = channels.get_mut(&channel) {
                self.bytes -= entry.window.forget(last);
            }
        }
    }

    /// Bytes that are kept now.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A channel goes, or its window begins anew.
    pub(super) fn forget(&mut self, window: &mut Window) {
        let bytes: usize = window.chunks.iter().map(|it| it.chunk.len()).sum();
        self.bytes -= bytes;
        window.chunks.clear();
    }
}

impl Window {
    /// Lets the oldest chunk go if it ends with this message; how many bytes that were.
    fn forget(&mut self, last: MessageId) -> usize {
        match self.chunks.front() {
            Some(oldest) if oldest.last == last => {
                let bytes = oldest.chunk.len();
                self.chunks.pop_front();
                bytes
            }
            _ => 0,
        }
    }

    /// Where the channel's next message after a cursor is; `head` is the offered head.
    pub(super) fn upcoming(&self, cursor: MessageId, head: MessageId) -> Upcoming {
        let at = self.chunks.partition_point(|it| it.last <= cursor);
        match self.chunks.get(at) {
            Some(it) if it.after <= cursor && cursor < it.first => {
                Upcoming::Chunk(it.chunk.clone(), it.last, it.messages)
            }
            // Up to where the chunks begin, so that the next one fits exactly.
            Some(it) if cursor < it.first => Upcoming::Store(it.after),
            // In the middle of a chunk, which nobody can be given a part of.
            Some(it) => Upcoming::Store(it.last),
            None => Upcoming::Store(head),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(name: &str) -> Channel {
        name.parse().expect("a channel")
    }

    struct Kept {
        recent: Recent,
        channels: HashMap<Channel, ChannelEntry>,
    }

    impl Kept {
        fn new(max_bytes: usize) -> Self {
            let names = ["a", "b"].map(|name| (channel(name), ChannelEntry::default()));
            Self {
                recent: Recent::new(max_bytes),
                channels: HashMap::from(names),
            }
        }

        fn remember(&mut self, name: &str, first: u64, last: u64) {
            let chunk = Chunk::raw(vec![last as u8; 10]);
            let ids = (MessageId(first), MessageId(last));
            self.recent
                .remember(&mut self.channels, &channel(name), ids, 1, &chunk);
        }

        /// The last message of the chunk that comes next, or how far the store has to be read.
        fn upcoming(&self, name: &str, cursor: u64) -> Result<u64, u64> {
            let window = &self.channels[&channel(name)].window;
            match window.upcoming(MessageId(cursor), MessageId(100)) {
                Upcoming::Chunk(chunk, last, _) => {
                    assert_eq!(chunk.bytes()[0], last.0 as u8);
                    Ok(last.0)
                }
                Upcoming::Store(until) => Err(until.0),
            }
        }
    }

    #[test]
    fn a_chunk_is_next_for_whoever_has_all_before_it() {
        let mut kept = Kept::new(1000);
        kept.remember("a", 10, 12);
        kept.remember("b", 13, 14);
        kept.remember("a", 17, 17);
        kept.remember("a", 18, 20);
        for (cursor, expected) in [
            (0, Err(9)),
            (8, Err(9)),
            (9, Ok(12)),
            (10, Err(12)),
            (11, Err(12)),
            (12, Ok(17)),
            (15, Ok(17)),
            (17, Ok(20)),
            (19, Err(20)),
            (20, Err(100)),
        ] {
            assert_eq!(kept.upcoming("a", cursor), expected, "after {cursor}");
        }
        assert_eq!(kept.upcoming("b", 12), Ok(14));
    }

    #[test]
    fn the_oldest_go_first_and_leave_no_hole() {
        let mut kept = Kept::new(30);
        for id in 1..=5 {
            kept.remember(if id % 2 == 0 { "b" } else { "a" }, id, id);
        }
        assert_eq!(kept.recent.bytes, 30);
        assert_eq!(kept.upcoming("a", 0), Err(1));
        assert_eq!(kept.upcoming("a", 1), Ok(3));
        assert_eq!(kept.upcoming("b", 2), Ok(4));
        // A channel that went and came back begins anew.
        let gone = kept.channels.get_mut(&channel("a")).expect("a channel");
        kept.recent.forget(&mut gone.window);
        assert_eq!(kept.recent.bytes, 10);
        kept.remember("a", 9, 9);
        assert_eq!(kept.upcoming("a", 5), Err(8));
        assert_eq!(kept.upcoming("a", 8), Ok(9));
        for id in 10..20 {
            kept.remember("b", id, id);
        }
        assert_eq!(kept.recent.bytes, 30);
        assert_eq!(kept.upcoming("a", 8), Err(100));
    }

    #[test]
    fn nothing_is_kept_of_channels_that_nobody_knows_and_places_are_bounded() {
        let mut kept = Kept::new(usize::MAX);
        kept.remember("c", 1, 1);
        assert_eq!(kept.recent.order.len(), 0);
        for id in 1..=2 * MAX_CHUNKS as u64 {
            kept.remember("a", id, id);
        }
        assert_eq!(kept.recent.order.len(), MAX_CHUNKS);
        assert_eq!(kept.recent.bytes, 10 * MAX_CHUNKS);
    }
}
