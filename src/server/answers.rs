//! The answers to what one connection publishes over HTTP.
//!
//! Whoever has the answer writes it: the journal's thread at the commit, into a socket that has
//! room for it, so that the connection's own thread is not woken for that but by the client's next
//! request. What does not fit is left to that thread. One answer is under way at a time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::manager::Wake;
use crate::stream::Stream;

/// Where answers go. Holds the part of one answer that the socket did not take.
#[derive(Debug)]
pub(super) struct Answers {
    stream: Arc<Stream>,
    /// Without one, because the process has no descriptor left, the thread waits for the answer
    /// instead of the next request.
    wake: Option<Wake>,
    state: Mutex<State>,
    settled: Condvar,
}

#[derive(Debug)]
enum State {
    /// Nothing is awaited.
    Written,
    /// A handler or the journal has the request.
    Awaited,
    /// What the socket did not take.
    Left(Vec<u8>),
}

/// The way for one answer.
pub(super) struct Awaited(Arc<Answers>);

impl Answers {
    pub(super) fn new(stream: Arc<Stream>) -> Arc<Self> {
        Arc::new(Self {
            stream,
            wake: Wake::new().ok(),
            state: Mutex::new(State::Written),
            settled: Condvar::new(),
        })
    }

    /// A request is about to be handled, and those before it are answered.
    pub(super) fn begin(self: &Arc<Self>) -> Awaited {
        *self.lock() = State::Awaited;
        Awaited(Arc::clone(self))
    }

    /// Waits until the client has sent something or is gone, or there is something to do for this
    /// thread: what the socket did not take is to be written, or somebody calls [`Self::wake`].
    /// `false` when neither came in time.
    pub(super) fn wait_for_more(&self, timeout: Duration) -> bool {
        let Some(wake) = &self.wake else {
            return true;
        };
        if self.stream.has_unread() {
            return true;
        }
        // What is too long to say is for ever.
        let timeout = Timespec::try_from(timeout).ok();
        let mut ready = [
            PollFd::new(&*self.stream, PollFlags::IN),
            PollFd::new(wake, PollFlags::IN),
        ];
        // An interruption is one more look.
        !matches!(poll(&mut ready, timeout.as_ref()), Ok(0))
    }

    /// Waits until the answer under way is there, and returns what is left of it to write.
    pub(super) fn settle(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        while matches!(*state, State::Awaited) {
            state = self
                .settled
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        match std::mem::replace(&mut *state, State::Written) {
            State::Left(bytes) => {
                if let Some(wake) = &self.wake {
                    wake.clear();
                }
                Some(bytes)
            }
            State::Written | State::Awaited => None,
        }
    }

    /// Makes the connection's thread look around.
    pub(super) fn wake(&self) {
        if let Some(wake) = &self.wake {
            wake.wake();
        }
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
        let is_left = !bytes.is_empty();
        *state = match is_left {
            true => State::Left(bytes),
            false => State::Written,
        };
        drop(state);
        self.0.settled.notify_one();
        if is_left {
            self.0.wake();
        }
    }
}
