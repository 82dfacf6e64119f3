//! One subscriber: a bounded outbox, and a writer that whoever holds its lock drains in place.
//!
//! Nothing else writes to the socket. The broadcasting thread hands a chunk to the writer and
//! sends it right there without blocking, which costs no thread a wake-up. Where somebody else
//! is writing, it pushes the chunk into the outbox, which whoever writes drains. When the
//! socket is full the client is *congested*: everybody else leaves the socket alone, and the
//! client's own thread, which waits in `poll`, drains when it is writable again. The outbox,
//! whose places are all made at once, is made when the first chunk has to wait.

mod drain;
mod newest;
mod writer;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use time::OffsetDateTime;

use super::Wake;
use super::feeds::Update;
use super::kind::{Accepted, Kind};
use crate::access::Peer;
use crate::frame::{Chunk, CloseCode, StateFrame};
use crate::protocol::{MessageId, Rev, Topic};
use crate::stream::Stream;
use newest::Newest;
use writer::Writer;

/// Clients whose memory is asked for at once. Writing to so many leaves it in the cache.
const BLOCK: usize = 16;

/// Bounds of one outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Chunks of broadcasts that may wait.
    pub chunks: usize,
    /// Bytes that may wait; a single larger chunk may still wait alone.
    pub bytes: usize,
    /// Answers to the client itself (pongs, acks, errors) that may wait beside the broadcasts.
    pub replies: usize,
    /// Bytes of broadcasts that all clients together have in memory when they fall behind.
    pub recent: usize,
}

impl Default for OutboxLimits {
    /// 64 chunks, 256 KiB, 32 replies, 8 MiB.
    fn default() -> Self {
        Self {
            chunks: 64,
            bytes: 256 << 10,
            replies: 32,
            recent: 8 << 20,
        }
    }
}

/// What became of an offered chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It is on its way, or the client is leaving and wants no more.
    Taken,
    /// The client has it, or gets it from the store when it is as far.
    Left,
    /// The outbox is full: the client is too slow.
    Full,
}

/// A subscriber of one channel or feed.
///
/// What each delivery looks at comes first, in two cache lines: where many clients seldom hear
/// something, no cache has them any more, and every line costs a way to the memory.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Client {
    writer: Mutex<Writer>,
    stream: Arc<Stream>,
    queued_bytes: AtomicUsize,
    /// The newest message that was put into the outbox, or does not concern this client: where
    /// it would go on from the store.
    cursor: AtomicU64,
    /// A feed's subscriber has one place for states beside the outbox, whatever comes.
    newest: Option<Box<Newest>>,
    /// The close frame, or what it is to an event stream; once it is set, nothing more goes into the outbox.
    last_word: OnceLock<Box<LastWord>>,
    /// The client is not fed: its own thread brings it what it has missed, from the store.
    behind: AtomicBool,
    /// The socket took no more; only the client's own thread may write until it does.
    congested: AtomicBool,
    /// What it speaks.
    pub kind: Kind,
    /// Unique within its manager.
    pub id: u64,
    /// What it subscribed to.
    pub topic: Topic,
    /// Where it comes from, and by which token.
    pub peer: Peer,
    /// When it was connected, by the system's clock.
    pub since: OffsetDateTime,
    wake: Wake,
    limits: OutboxLimits,
    outbox: OnceLock<(Sender<Queued>, Receiver<Queued>)>,
    queued_chunks: AtomicUsize,
    queued_replies: AtomicUsize,
}

/// What nothing follows.
#[derive(Debug)]
struct LastWord {
    chunk: Chunk,
    /// Why the server closes; `None` when the peer does, or is gone.
    code: Option<CloseCode>,
}

/// A chunk in the outbox.
#[derive(Debug)]
struct Queued {
    chunk: Chunk,
    reply: bool,
}

/// Why nothing is written any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The close frame, or an event stream's last comment, is in the socket's buffer.
    Said,
    /// The socket failed: the peer is gone.
    Lost,
}

impl Client {
    /// A client whose socket gets the answer by which it was accepted, if there is any, before
    /// anything else.
    ///
    /// `stream` must be non-blocking. The answer goes out with the first [`Self::drain`] or offer.
    #[inline(never)]
    pub(super) fn new(
        id: u64,
        topic: Topic,
        peer: Peer,
        stream: Arc<Stream>,
        accepted: Accepted,
        limits: OutboxLimits,
    ) -> io::Result<Arc<Self>> {
        let Accepted { kind, answer } = accepted;
        let newest = match topic {
            Topic::Channel(_) => None,
            Topic::Feed(_) => Some(Box::default()),
        };
        Ok(Arc::new(Self {
            stream,
            queued_bytes: AtomicUsize::new(answer.len()),
            cursor: AtomicU64::new(0),
            newest,
            last_word: OnceLock::new(),
            behind: AtomicBool::new(false),
            congested: AtomicBool::new(false),
            kind,
            id,
            topic,
            peer,
            since: OffsetDateTime::now_utc(),
            wake: Wake::new()?,
            limits,
            outbox: OnceLock::new(),
            queued_chunks: AtomicUsize::new(0),
            queued_replies: AtomicUsize::new(0),
            writer: Mutex::new(Writer::new(answer)),
        }))
    }

    /// Puts a chunk of broadcast frames into the outbox and, when nobody else is writing,
    /// writes it. Never blocks.
    pub fn offer(&self, chunk: &Chunk) -> Offer {
        if self.is_finishing() {
            return Offer::Taken;
        }
        let chunk = self.kind.form(chunk);
        let waiting = self.queued_bytes.load(Ordering::Relaxed);
        let full = waiting > 0
            && (waiting + chunk.len() > self.limits.bytes
                || self.queued_chunks.load(Ordering::Relaxed) >= self.limits.chunks);
        if full { Offer::Full } else { self.queue(chunk) }
    }

    /// Writes a chunk, in the client's own form, or puts it into the outbox.
    fn queue(&self, chunk: Chunk) -> Offer {
        let length = chunk.len();
        if length == 0 || self.write_at_once(&chunk) {
            return Offer::Taken;
        }
        self.queued_bytes.fetch_add(length, Ordering::Relaxed);
        self.queued_chunks.fetch_add(1, Ordering::Relaxed);
        if self.push(chunk, false) {
            self.drain_if_free();
            return Offer::Taken;
        }
        self.queued_bytes.fetch_sub(length, Ordering::Relaxed);
        self.queued_chunks.fetch_sub(1, Ordering::Relaxed);
        Offer::Full
    }

    /// Puts a chunk into the outbox; `false` when that is full.
    fn push(&self, chunk: Chunk, reply: bool) -> bool {
        let limits = &self.limits;
        let (sender, _) = self.outbox.get_or_init(|| {
            bounded(match self.topic {
                Topic::Channel(_) => limits.chunks + limits.replies,
                Topic::Feed(_) => limits.replies.max(1),
            })
        });
        sender.try_send(Queued { chunk, reply }).is_ok()
    }

    /// Offers a chunk of messages, from the first to the last of these ids. When the outbox is
    /// full the client is behind from now on: its own thread goes on from the store.
    ///
    /// Only the one thread that broadcasts in the order of ids may call it.
    pub(crate) fn offer_messages(
        &self,
        chunk: &Chunk,
        (first, last): (MessageId, MessageId),
    ) -> Offer {
        if self.is_behind() || last <= self.cursor() {
            return Offer::Left;
        }
        let offer = self.offer(chunk);
        match offer {
            Offer::Taken => self.cursor.store(last.0, Ordering::SeqCst),
            Offer::Left => {}
            Offer::Full => {
                // It has had everything of its channel before this chunk.
                self.cursor.fetch_max(first.previous().0, Ordering::SeqCst);
                self.fall_behind();
            }
        }
        offer
    }

    /// Puts what the client has missed, up to this message, into the outbox, whatever its
    /// size: for its own thread, when [`Self::wants_missed`].
    pub(crate) fn feed_missed(&self, chunk: &Chunk, last: MessageId) {
        if !self.is_finishing() && self.queue(self.kind.form(chunk)) == Offer::Full {
            // Nothing else fills the places of chunks while it is behind.
            self.finish(CloseCode::Internal, "a bug in the server");
        }
        self.cursor.store(last.0, Ordering::SeqCst);
    }

    /// Visits clients to bring them something. Their memory is asked for some of them at a time:
    /// together it comes sooner than one after the other.
    pub(crate) fn visit(clients: &[Arc<Self>], mut visit: impl FnMut(&Self)) {
        for block in clients.chunks(BLOCK) {
            block.iter().for_each(|client| client.look());
            block.iter().for_each(|client| visit(client));
        }
    }

    /// Brings what an offer looks at into the cache.
    fn look(&self) {
        let place = self.newest.as_ref().map(|newest| newest.look());
        let first = (self.writer.is_poisoned(), self.stream.as_fd().as_raw_fd());
        std::hint::black_box((first, self.is_behind(), place));
    }

    /// Where it would go on from the store.
    pub(crate) fn cursor(&self) -> MessageId {
        MessageId(self.cursor.load(Ordering::SeqCst))
    }

    /// The revision of its feed that it was sent last.
    pub(super) fn rev(&self) -> Rev {
        self.newest
            .as_ref()
            .map(|newest| newest.sent())
            .unwrap_or_default()
    }

    /// Bytes that wait in the outbox or are on their way to the socket.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes.load(Ordering::Relaxed)
    }

    /// It has everything up to this message, and is fed or not from now on. The cursor comes
    /// first: who finds that it is fed knows what it has.
    pub(super) fn set_cursor(&self, cursor: MessageId, behind: bool) {
        self.cursor.store(cursor.0, Ordering::SeqCst);
        self.behind.store(behind, Ordering::SeqCst);
    }

    /// It is not fed from now on; its own thread goes on from the store.
    pub(super) fn fall_behind(&self) {
        self.behind.store(true, Ordering::SeqCst);
        self.wake.wake();
    }

    /// Whether it is not fed, and its own thread has to bring it what it has missed.
    pub fn is_behind(&self) -> bool {
        self.behind.load(Ordering::SeqCst)
    }

    /// Whether its own thread may bring it more: it is behind, and what was brought before is
    /// in the socket.
    pub(crate) fn wants_missed(&self) -> bool {
        self.is_behind()
            && !self.is_finishing()
            && !self.is_congested()
            && self.queued_chunks.load(Ordering::Relaxed) == 0
    }

    /// Gives a feed's subscriber the newest states and, when nobody else is writing, writes
    /// them. What it has not taken of the states before is replaced: memory is one state.
    /// Never blocks; states that it has or had are left out. Whether there was anything new.
    pub(super) fn offer_states(&self, update: &Update) -> bool {
        let is_news = self
            .newest
            .as_ref()
            .is_some_and(|newest| newest.replace(update, || !self.is_finishing()));
        if is_news {
            self.drain_if_free();
        }
        is_news
    }

    /// The state that a feed's subscriber starts with; whoever drains it next sends that.
    pub(super) fn start_with(&self, state: &StateFrame) {
        if let Some(newest) = &self.newest {
            newest.start_with(state);
        }
    }

    /// Puts an answer to the client itself into the outbox and writes it when nobody else is
    /// writing. Never blocks; the caller asks for no more than [`OutboxLimits::replies`], by
    /// reading no further while [`Self::replies_waiting`] is that many.
    pub fn reply(&self, chunk: Chunk) {
        let chunk = self.kind.form(&chunk);
        if self.is_finishing() || chunk.is_empty() {
            return;
        }
        if !self.write_at_once(&chunk) {
            self.queued_bytes.fetch_add(chunk.len(), Ordering::Relaxed);
            self.push_reply(chunk);
            self.drain_if_free();
        }
    }

    /// [`Self::reply`] without the writing: whoever drains it next does that.
    pub(super) fn queue_reply(&self, chunk: Chunk) {
        let chunk = self.kind.form(&chunk);
        if self.is_finishing() || chunk.is_empty() {
            return;
        }
        self.queued_bytes.fetch_add(chunk.len(), Ordering::Relaxed);
        let waiting = match self.free_writer() {
            Some(mut writer) => self.hand_over(&mut writer, chunk),
            None => Some(chunk),
        };
        if let Some(chunk) = waiting {
            self.push_reply(chunk);
        }
    }

    fn push_reply(&self, chunk: Chunk) {
        self.queued_replies.fetch_add(1, Ordering::Relaxed);
        let length = chunk.len();
        if !self.push(chunk, true) {
            // Offers may fill a little more than their share when several threads offer at once.
            self.queued_bytes.fetch_sub(length, Ordering::Relaxed);
            self.queued_replies.fetch_sub(1, Ordering::Relaxed);
            self.finish(CloseCode::TryAgainLater, "too slow: reconnect with `since`");
        }
    }

    /// Answers that wait in the outbox.
    pub fn replies_waiting(&self) -> usize {
        self.queued_replies.load(Ordering::Relaxed)
    }

    /// Ends the client: what is in the outbox goes out, then a close frame, then nothing.
    /// Only the first call has an effect.
    pub fn finish(&self, code: CloseCode, reason: &str) {
        self.end_with(&Chunk::close(Some(code as u16), reason), Some(code));
    }

    /// Ends the client with this answer to its own close frame.
    pub fn finish_with(&self, close: Chunk) {
        self.end_with(&close, None);
    }

    /// An event stream's last word is a comment.
    fn end_with(&self, close: &Chunk, code: Option<CloseCode>) {
        let chunk = self.kind.form(close);
        let last_word = Box::new(LastWord { chunk, code });
        if self.last_word.set(last_word).is_ok() {
            fence(Ordering::SeqCst);
            self.drain_if_free();
            self.wake.wake();
        }
    }

    /// Whether the client was told, or is about to be told, that this is the end.
    pub fn is_finishing(&self) -> bool {
        self.last_word.get().is_some()
    }

    /// The code with which it was, or is about to be, closed: [`CloseCode::Normal`] when its
    /// own close is answered, `None` when it is gone without one.
    pub fn close_code(&self) -> Option<CloseCode> {
        let last_word = self.last_word.get()?;
        let answers = !last_word.chunk.is_empty();
        last_word.code.or(answers.then_some(CloseCode::Normal))
    }

    /// Whether and why nothing is written any more.
    pub fn end(&self) -> Option<End> {
        self.peek(|writer| writer.end)
    }

    /// Whether the socket is full, and its own thread has to wait for it.
    pub fn is_congested(&self) -> bool {
        self.congested.load(Ordering::SeqCst)
    }

    /// How long the socket has been taking no byte at all.
    pub fn stalled_for(&self) -> Duration {
        self.peek(|writer| writer.stalled_since)
            .map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Makes the client's own thread look around.
    pub fn wake(&self) {
        self.wake.wake();
    }

    /// The connection, for reading.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }
}

#[cfg(test)]
mod tests;
