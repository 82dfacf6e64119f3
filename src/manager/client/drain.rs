//! From the outbox to the socket: who drains when, and what the client's own thread does.

use std::io;
use std::sync::atomic::{Ordering, fence};
use std::sync::{MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::writer::{MAX_SLICES, Writer, Written};
use super::{Client, End, LastWord};
use crate::frame::Chunk;

impl Client {
    /// Drains although the socket was full: for the client's own thread, when it is writable.
    pub fn drain(&self) {
        let mut writer = self.writer();
        self.write_out(&mut writer);
        drop(writer);
        self.drain_if_free();
    }

    /// Waits until the client has sent something, or somebody wakes it, or the time is up, and
    /// drains meanwhile when the socket takes bytes again. `true` when there is something to
    /// read; without `reading` nobody looks for that.
    ///
    /// This is what the client's own thread does all day, between two looks at
    /// [`Self::end`] and [`Self::stalled_for`].
    pub fn wait(&self, reading: bool, timeout: Duration) -> bool {
        if reading && self.stream.has_unread() {
            return true;
        }
        if self.stream.has_unsent() && !self.is_congested() {
            // Reading made TLS say something that the socket did not take.
            self.drain();
        }
        let congested = self.is_congested();
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, reading);
        events.set(PollFlags::OUT, congested);
        let mut ready = [
            PollFd::new(&*self.stream, events),
            PollFd::new(&self.wake, PollFlags::IN),
        ];
        if poll(&mut ready, timespec(timeout).as_ref()).is_err() {
            // Interrupted: the caller looks at everything again.
            return false;
        }
        let (socket, wake) = (ready[0].revents(), ready[1].revents());
        if !wake.is_empty() {
            self.wake.clear();
        }
        let broken = socket.intersects(PollFlags::ERR | PollFlags::HUP);
        if congested && (broken || socket.contains(PollFlags::OUT)) {
            self.drain();
        }
        if broken && !reading {
            // The peer is gone while nothing is read: say so instead of spinning.
            self.finish_with(Chunk::raw(Vec::new()));
            return false;
        }
        reading && (broken || socket.contains(PollFlags::IN))
    }

    /// Drains unless somebody else does, or the socket is full.
    pub(super) fn drain_if_free(&self) {
        // Pairs with the fence in `let_go`: either this thread finds the lock free, or its holder,
        // looking again after letting go, finds what this thread has pushed. Without both
        // a frame could be left behind in the outbox.
        fence(Ordering::SeqCst);
        while let Some(mut writer) = self.free_writer() {
            self.write_out(&mut writer);
            if self.let_go(writer) {
                return;
            }
        }
    }

    /// Writes a chunk past the outbox, if nothing waits there and nobody is writing. Most are:
    /// the outbox has memory of its own, which at a low rate no cache has any more.
    pub(super) fn write_at_once(&self, chunk: &Chunk) -> bool {
        // Everything that waits, in the outbox or the writer, is counted there.
        let nothing_waits = || self.queued_bytes.load(Ordering::Relaxed) == 0;
        if !nothing_waits() {
            return false;
        }
        let Some(mut writer) = self.free_writer() else {
            return false;
        };
        let is_next = nothing_waits() && writer.is_idle() && !self.state_waits();
        if is_next {
            let left = writer.write_first(&self.stream, chunk);
            self.queued_bytes.fetch_add(left, Ordering::Relaxed);
            // What TLS has taken may be beside the socket, not in it.
            if left > 0 || self.stream.has_unsent() {
                self.write_out(&mut writer);
            }
        }
        if !self.let_go(writer) {
            self.drain_if_free();
        }
        is_next
    }

    /// Puts a chunk behind what the writer has; gives it back when others wait before it, or
    /// when nothing is written any more.
    pub(super) fn hand_over(&self, writer: &mut Writer, chunk: Chunk) -> Option<Chunk> {
        let is_next = writer.end.is_none() && !writer.closing && self.nothing_queued();
        if !is_next || writer.unsent.len() >= MAX_SLICES {
            return Some(chunk);
        }
        writer.unsent.push_back(chunk);
        None
    }

    /// The writer, unless somebody else has it, or the socket is full.
    pub(super) fn free_writer(&self) -> Option<MutexGuard<'_, Writer>> {
        if self.is_congested() {
            return None;
        }
        match self.writer.try_lock() {
            Ok(writer) => Some(writer),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Lets go of a writer that has drained; whether nothing has come meanwhile.
    fn let_go(&self, writer: MutexGuard<'_, Writer>) -> bool {
        let nothing_left = writer.end.is_some() || writer.closing || self.last_word.get().is_none();
        drop(writer);
        fence(Ordering::SeqCst);
        nothing_left && self.nothing_queued() && !self.state_waits()
    }

    /// Looks at the writer. Whoever found it taken meanwhile has left what it brought to this
    /// thread.
    pub(super) fn peek<T>(&self, look: impl FnOnce(&Writer) -> T) -> T {
        let seen = look(&self.writer());
        self.drain_if_free();
        seen
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes until the outbox is empty or the socket full.
    fn write_out(&self, writer: &mut Writer) {
        loop {
            self.take_up(writer);
            if writer.end.is_some() {
                writer.unsent.clear();
                self.congested.store(false, Ordering::SeqCst);
                return;
            }
            match writer.write(&self.stream) {
                Ok(Written::Some(sent)) => {
                    self.queued_bytes.fetch_sub(sent, Ordering::Relaxed);
                }
                Ok(Written::All) if writer.closing => {
                    writer.end = Some(End::Said);
                    self.wake.wake();
                }
                Ok(Written::All) => {
                    self.congested.store(false, Ordering::SeqCst);
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    writer.stalled_since.get_or_insert_with(Instant::now);
                    if !self.congested.swap(true, Ordering::SeqCst) {
                        self.wake.wake();
                    }
                    return;
                }
                Err(_) => {
                    writer.end = Some(End::Lost);
                    // Whoever offers now need not try: there is nobody to hear it.
                    let nothing = LastWord {
                        chunk: Chunk::raw(Vec::new()),
                        code: None,
                    };
                    let _ = self.last_word.set(Box::new(nothing));
                    self.wake.wake();
                }
            }
        }
    }

    /// Moves chunks from the outbox to the writer, and the last word behind the last of them.
    fn take_up(&self, writer: &mut Writer) {
        while (writer.unsent.len() < MAX_SLICES || writer.end.is_some())
            && let Some((_, outbox)) = self.outbox.get()
            && let Ok(queued) = outbox.try_recv()
        {
            let counter = if queued.reply {
                &self.queued_replies
            } else {
                &self.queued_chunks
            };
            counter.fetch_sub(1, Ordering::Relaxed);
            if writer.closing {
                // Offered while the last word was said: nothing may follow a close frame.
                self.queued_bytes
                    .fetch_sub(queued.chunk.len(), Ordering::Relaxed);
            } else {
                writer.unsent.push_back(queued.chunk);
            }
        }
        // One state at a time: until it is written, newer ones replace each other in their place.
        if writer.unsent.is_empty()
            && !writer.closing
            && let Some(states) = self.newest.as_ref().and_then(|newest| newest.take())
        {
            let states = self.kind.form(&states);
            self.queued_bytes.fetch_add(states.len(), Ordering::Relaxed);
            writer.unsent.push_back(states);
        }
        if let Some(close) = self.last_word.get()
            && !writer.closing
            && self.nothing_queued()
            && !self.state_waits()
        {
            writer.closing = true;
            let close = close.chunk.clone();
            self.queued_bytes.fetch_add(close.len(), Ordering::Relaxed);
            writer.unsent.push_back(close);
        }
    }

    fn nothing_queued(&self) -> bool {
        // Counted before it is pushed.
        self.queued_bytes.load(Ordering::Relaxed) == 0
            || (self.outbox.get()).is_none_or(|(_, receiver)| receiver.is_empty())
    }

    fn state_waits(&self) -> bool {
        self.newest.as_ref().is_some_and(|newest| newest.waits())
    }
}

/// For `poll`; what is too long to say is for ever.
fn timespec(duration: Duration) -> Option<Timespec> {
    // Rounded up: waking before a deadline would only mean waiting again.
    let duration = if duration.is_zero() {
        duration
    } else {
        duration + Duration::from_millis(1)
    };
    Timespec::try_from(duration).ok()
}
