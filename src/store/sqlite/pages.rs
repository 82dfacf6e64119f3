//! Pages of what was missed, for others who miss the same.
//!
//! After a restart everybody comes back with nearly the same cursor, and after a burst that nobody
//! could take everybody reads the same part of the log: then a page is read and encoded once, and
//! all of them have the same bytes. Whoever is alone finds and leaves nothing here.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::protocol::{Channel, MessageId};
use crate::store::{Missed, MissedPage};

/// How long a page is there for others. They come at once or not at all; and what retention has
/// deleted is not given out for longer.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// Pages at most: they are looked through one by one.
const MAX_PAGES: usize = 32;

/// Bytes at most of all pages but the newest: as many as [`MAX_PAGES`] of the usual ones, whose
/// buffers may be twice as large.
const MAX_BYTES: usize = 2 << 20;

#[derive(Default)]
pub(super) struct Pages {
    kept: Mutex<VecDeque<Kept>>,
    /// How many look for a page at this moment.
    asking: AtomicUsize,
}

struct Kept {
    channel: Channel,
    cursor: MessageId,
    page: MissedPage,
    since: Instant,
}

/// Somebody who looks for a page.
pub(super) struct Asking<'a> {
    pages: &'a Pages,
    missed: &'a Missed<'a>,
}

impl Pages {
    pub(super) fn ask<'a>(&'a self, missed: &'a Missed<'a>) -> Asking<'a> {
        self.asking.fetch_add(1, Ordering::Relaxed);
        Asking {
            pages: self,
            missed,
        }
    }

    /// What is not too old.
    fn kept(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while kept
            .front()
            .is_some_and(|oldest| oldest.since.elapsed() > SHARED_FOR)
        {
            kept.pop_front();
        }
        kept
    }
}

impl Asking<'_> {
    /// The page, if somebody has just read it.
    pub(super) fn find(&self) -> Option<MissedPage> {
        let kept = self.pages.kept();
        let mut kept = kept.iter().filter(|kept| self.is_of_the_channel(kept));
        let found = kept
            .find(|kept| kept.cursor == self.missed.cursor && kept.page.reach <= self.missed.head);
        found.map(|kept| kept.page.clone())
    }

    /// Where a page has to end at the latest so that somebody else's is the next one.
    pub(super) fn end(&self, until: MessageId) -> MessageId {
        let kept = self.pages.kept();
        let kept = kept.iter().filter(|kept| self.is_of_the_channel(kept));
        let later = kept
            .map(|kept| kept.cursor)
            .filter(|cursor| *cursor > self.missed.cursor);
        later.min().map_or(until, |cursor| cursor.min(until))
    }

    /// Leaves a page for the others, if there are any. One behind a gap is nobody else's.
    pub(super) fn keep(&self, page: &MissedPage) {
        let is_alone = self.pages.asking.load(Ordering::Relaxed) < 2;
        if is_alone || page.number == 0 || page.oldest > self.missed.cursor.next() {
            return;
        }
        let mut kept = self.pages.kept();
        let mut bytes: usize = kept.iter().map(|kept| kept.page.chunk.len()).sum();
        while kept.len() >= MAX_PAGES || bytes > MAX_BYTES {
            let Some(oldest) = kept.pop_front() else {
                break;
            };
            bytes -= oldest.page.chunk.len();
        }
        kept.push_back(Kept {
            channel: self.missed.channel.clone(),
            cursor: self.missed.cursor,
            page: page.clone(),
            since: Instant::now(),
        });
    }

    fn is_of_the_channel(&self, kept: &Kept) -> bool {
        kept.channel == *self.missed.channel
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.pages.asking.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Chunk;

    fn missed(channel: &Channel, cursor: u64, head: u64) -> Missed<'_> {
        Missed {
            channel,
            cursor: MessageId(cursor),
            head: MessageId(head),
            limit: 100,
            max_bytes: 1000,
        }
    }

    fn page(reach: u64, bytes: usize) -> MissedPage {
        MissedPage {
            chunk: Chunk::raw(vec![b'x'; bytes]),
            number: 1,
            reach: MessageId(reach),
            until: MessageId(1_000),
            oldest: MessageId(1),
        }
    }

    #[test]
    fn others_at_the_same_place_find_it_and_nobody_else() {
        let [lab, other] = ["lab", "other"].map(|name| name.parse().expect("a channel"));
        let pages = Pages::default();
        let (here, waiting) = (missed(&lab, 7, 1_000), missed(&lab, 7, 20));
        let (asking, others) = (pages.ask(&here), pages.ask(&waiting));
        assert!(asking.find().is_none());
        asking.keep(&page(20, 10));
        assert_eq!(others.find().expect("the page").reach, MessageId(20));
        for elsewhere in [
            missed(&other, 7, 1_000),
            missed(&lab, 6, 1_000),
            missed(&lab, 8, 1_000),
            // It has not been told of all that is in the page.
            missed(&lab, 7, 19),
        ] {
            assert!(pages.ask(&elsewhere).find().is_none(), "{elsewhere:?}");
        }
    }

    #[test]
    fn a_page_before_it_ends_where_it_begins() {
        let lab = "lab".parse().expect("a channel");
        let pages = Pages::default();
        let (here, before) = (missed(&lab, 7, 1_000), missed(&lab, 3, 1_000));
        let (asking, others) = (pages.ask(&here), pages.ask(&before));
        asking.keep(&page(20, 10));
        assert_eq!(others.end(MessageId(1_000)), MessageId(7));
        assert_eq!(others.end(MessageId(5)), MessageId(5), "a hole is nearer");
        assert_eq!(asking.end(MessageId(1_000)), MessageId(1_000));
    }

    #[test]
    fn who_is_alone_leaves_nothing_nor_does_who_is_behind_a_gap() {
        let lab = "lab".parse().expect("a channel");
        let pages = Pages::default();
        let here = missed(&lab, 7, 1_000);
        pages.ask(&here).keep(&page(20, 10));
        let (asking, _others) = (pages.ask(&here), pages.ask(&here));
        asking.keep(&MissedPage {
            oldest: MessageId(9),
            ..page(20, 10)
        });
        asking.keep(&MissedPage {
            number: 0,
            ..page(20, 0)
        });
        assert!(asking.find().is_none());
        assert_eq!(asking.end(MessageId(1_000)), MessageId(1_000));
    }

    #[test]
    fn memory_is_bounded_by_their_number_and_their_bytes() {
        let lab = "lab".parse().expect("a channel");
        let pages = Pages::default();
        let others = missed(&lab, 0, 1_000);
        let _others = pages.ask(&others);
        for (bytes, most) in [(10, MAX_PAGES), (1 << 20, 3), (3 << 20, 1)] {
            for cursor in 0..100 {
                let here = missed(&lab, cursor, 1_000);
                pages.ask(&here).keep(&page(cursor + 1, bytes));
            }
            assert_eq!(pages.kept().len(), most, "of {bytes} bytes");
        }
    }
}
