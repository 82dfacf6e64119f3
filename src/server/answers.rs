//! The answers to what one connection publishes over HTTP.
//!
//! Whoever has the answer writes it: the journal's thread at the commit, into a socket that has
//! room for it, so that the connection's own thread is not woken for that but by the client's next
//! request. What does not fit is left to that thread. One answer is under way at a time.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::manager::Wake;
use crate::stream::Stream;

/// Where answers go. Holds the part of one answer that the socket did not take.
#[derive(Debug)]
pub(super) struct Answers {
    stream: Arc<Stream>,
    wake: Wake,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// Nothing is awaited.
    Written,
    /// A handler or the journal has the request. Whether the connection's thread waits for that.
    Awaited { wake: bool },
    /// What the socket did not take.
    Left(Vec<u8>),
}

/// The way for one answer.
pub(super) struct Awaited(Arc<Answers>);

impl Answers {
    /// # Errors
    /// When the process has no descriptor left.
    pub(super) fn new(stream: Arc<Stream>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            stream,
            wake: Wake::new()?,
            state: Mutex::new(State::Written),
        }))
    }

    /// A request is about to be handled, and those before it are answered.
    pub(super) fn begin(self: &Arc<Self>) -> Awaited {
        *self.lock() = State::Awaited { wake: false };
        Awaited(Arc::clone(self))
    }

    /// Waits until the client has sent something or is gone, or there is something to do for this
    /// thread: what the socket did not take is to be written, or somebody calls [`Self::wake`].
    /// `false` when neither came in time.
    pub(super) fn wait_for_more(&self, timeout: Duration) -> bool {
        if self.stream.has_unread() {
            return true;
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let mut ready = [
            PollFd::new(&*self.stream, PollFlags::IN),
            PollFd::new(&self.wake, PollFlags::IN),
        ];
        // An interruption is one more look.
        !matches!(poll(&mut ready, Some(&timeout)), Ok(0))
    }

    /// Waits until the answer under way is there, and returns what is left of it to write.
    pub(super) fn settle(&self) -> Option<Vec<u8>> {
        loop {
            match &mut *self.lock() {
                State::Written => return None,
                State::Awaited { wake } => *wake = true,
                state => {
                    let State::Left(bytes) = std::mem::replace(state, State::Written) else {
                        return None;
                    };
                    self.wake.clear();
                    return Some(bytes);
                }
            }
            let mut ready = [PollFd::new(&self.wake, PollFlags::IN)];
            let _ = poll(&mut ready, None);
            self.wake.clear();
        }
    }

    /// Makes the connection's thread look around.
    pub(super) fn wake(&self) {
        self.wake.wake();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Awaited {
    /// Writes the answer as far as the socket takes it. Never blocks.
    pub(super) fn write(self, mut bytes: Vec<u8>) {
        let mut state = self.0.lock();
        let sent = self.0.stream.send_now(&bytes);
        bytes.drain(..sent);
        let waits = matches!(*state, State::Awaited { wake: true });
        let is_left = !bytes.is_empty();
        *state = match is_left {
            true => State::Left(bytes),
            false => State::Written,
        };
        drop(state);
        if waits || is_left {
            self.0.wake();
        }
    }
}
