//! The public port: accepts, enforces the limits, gives every connection its thread.
//!
//! It never dies. When the machine refuses a descriptor or a thread, it says so once, waits
//! a moment and goes on.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::connection::{Door, serve};
use super::connections::{Admitted, Connections};
use crate::error::{Error, Result};
use crate::http::{Problem, Reply};
use crate::manager::Wake;
use crate::stream::{REFUSAL, Stream};

/// Connections the kernel may hold until they are accepted: a whole audience may come at once.
const BACKLOG: i32 = 4096;

/// Stack of a connection's thread. Only what is touched takes memory; JSON nested as deep as
/// its parser allows must fit, in a debug build too.
const STACK_BYTES: usize = 256 << 10;

/// How long to wait when the machine has no descriptor or thread left.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Turned away at the limit and given time to read why; bounded, as each holds a descriptor.
const MAX_REFUSED: usize = 32;

/// How long they are given.
const REFUSED_LINGER: Duration = Duration::from_millis(500);

/// The running listener.
pub(super) struct Listener {
    thread: JoinHandle<()>,
    wake: Arc<Wake>,
}

impl Listener {
    /// Starts accepting on a bound socket.
    pub(super) fn start(
        socket: TcpListener,
        door: Arc<Door>,
        connections: Arc<Connections>,
    ) -> Result<Self> {
        let wake = Arc::new(Wake::new().map_err(Error::system("make the listener's wake handle"))?);
        let mut accepting = Accepting {
            socket,
            door,
            connections,
            wake: Arc::clone(&wake),
            refused: VecDeque::new(),
            in_trouble: false,
        };
        let thread = thread::Builder::new()
            .name("listener".to_owned())
            .spawn(move || accepting.run())
            .map_err(Error::system("start a thread"))?;
        Ok(Self { thread, wake })
    }

    /// Stops accepting and closes the port.
    pub(super) fn stop(self) {
        self.wake.wake();
        // A panic was reported when it happened.
        let _ = self.thread.join();
    }
}

/// Binds the public address.
///
/// # Errors
/// [`Error::Listen`].
pub(super) fn bind(address: SocketAddr) -> Result<TcpListener> {
    let refused = |source| Error::Listen { address, source };
    let socket = TcpListener::bind(address).map_err(refused)?;
    socket.set_nonblocking(true).map_err(refused)?;
    // The standard library asks for 128 only; asking again replaces that.
    rustix::net::listen(&socket, BACKLOG).map_err(|error| refused(error.into()))?;
    Ok(socket)
}

struct Accepting {
    socket: TcpListener,
    door: Arc<Door>,
    connections: Arc<Connections>,
    wake: Arc<Wake>,
    refused: VecDeque<(Instant, Arc<Stream>)>,
    /// The machine refused something, which was logged.
    in_trouble: bool,
}

impl Accepting {
    fn run(&mut self) {
        while !self.wait(None) {
            self.forget_refused();
            match self.socket.accept() {
                Ok((stream, peer)) => self.take(stream, peer),
                Err(error) if is_of_the_peer(&error) => {}
                Err(error) => self.trouble("accept a connection", &error),
            }
        }
    }

    fn take(&mut self, stream: TcpStream, peer: SocketAddr) {
        if let Err(error) = stream.set_nonblocking(false) {
            return self.trouble("set up a connection", &error);
        }
        let stream = Arc::new(Stream::from(stream));
        let admitted = match self.connections.admit(&stream, peer.ip()) {
            Ok(admitted) => admitted,
            Err(problem) => {
                log::debug!("refused {peer}: {problem}");
                return self.refuse(&stream, problem);
            }
        };
        // The thread takes its connection out of here; if there is none, it can be answered.
        let handover = Arc::new(Mutex::new(Some((Arc::clone(&stream), admitted))));
        let (door, taken) = (Arc::clone(&self.door), Arc::clone(&handover));
        let work = move || {
            if let Some((stream, admitted)) = take_out(&taken) {
                serve(&door, &stream, peer, &admitted);
            }
        };
        let name = format!("conn-{}", take_id(&handover));
        match thread::Builder::new()
            .name(name)
            .stack_size(STACK_BYTES)
            .spawn(work)
        {
            Ok(_) if self.in_trouble => {
                self.in_trouble = false;
                log::info!("accepting connections again");
            }
            Ok(_) => {}
            Err(error) => {
                drop(take_out(&handover));
                let why = "the machine has no thread left for this connection";
                self.refuse(&stream, self.connections.no_place(why));
                self.trouble("start a thread for a connection", &error);
            }
        }
    }

    /// Says it once, and waits: trying again at once would only burn the processor.
    fn trouble(&mut self, doing: &str, error: &io::Error) {
        if !self.in_trouble {
            self.in_trouble = true;
            log::error!("cannot {doing}: {error}; trying again until it works");
        }
        self.forget_refused();
        self.wait(Some(RETRY_INTERVAL));
    }

    /// Answers without a thread. The answer fits into the socket's empty buffer, so this
    /// does not block. A handshake would cost more than the refusal saves: over TLS the answer
    /// is an alert.
    fn refuse(&mut self, stream: &Arc<Stream>, problem: Problem) {
        let answer = match self.door.tls {
            Some(_) => REFUSAL.to_vec(),
            None => {
                let answers = &self.door.usage.traffic.answers;
                answers.add(Some(problem.status));
                Reply::from(problem).into_last_bytes()
            }
        };
        let mut socket = &**stream;
        let written = socket
            .set_nonblocking(true)
            .and_then(|()| socket.write_all(&answer))
            .and_then(|()| socket.shutdown(Shutdown::Write));
        if written.is_ok() && self.refused.len() < MAX_REFUSED {
            self.refused
                .push_back((Instant::now() + REFUSED_LINGER, Arc::clone(stream)));
        }
    }

    /// Closes the sockets that had time to read their refusal.
    fn forget_refused(&mut self) {
        while self
            .refused
            .front()
            .is_some_and(|(until, _)| *until <= Instant::now())
        {
            if let Some((_, stream)) = self.refused.pop_front() {
                // Unread bytes would make the close a reset.
                let _ = (&*stream).read(&mut [0; 4096]);
            }
        }
    }

    /// Waits for a connection, or only for so long; `true` when it is time to stop.
    fn wait(&mut self, pause: Option<Duration>) -> bool {
        loop {
            let events = if pause.is_some() {
                PollFlags::empty()
            } else {
                PollFlags::IN
            };
            let mut ready = [
                PollFd::new(&*self.wake, PollFlags::IN),
                PollFd::new(&self.socket, events),
            ];
            let timeout = pause.or_else(|| (!self.refused.is_empty()).then_some(REFUSED_LINGER));
            let timeout = timeout.and_then(|duration| Timespec::try_from(duration).ok());
            let count = poll(&mut ready, timeout.as_ref()).unwrap_or(0);
            let (stop, accept) = (
                !ready[0].revents().is_empty(),
                !ready[1].revents().is_empty(),
            );
            if stop || accept || pause.is_some() {
                return stop;
            }
            if count == 0 {
                self.forget_refused();
            }
        }
    }
}

type Handover = Mutex<Option<(Arc<Stream>, Admitted)>>;

fn take_out(handover: &Handover) -> Option<(Arc<Stream>, Admitted)> {
    handover
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
}

fn take_id(handover: &Handover) -> u64 {
    handover
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
        .map_or(0, |(_, admitted)| admitted.id())
}

/// The connection failed, not the listener (accept(2), "Error handling").
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::WouldBlock
            | Kind::Interrupted
            | Kind::ConnectionAborted
            | Kind::ConnectionReset
            | Kind::HostUnreachable
            | Kind::NetworkUnreachable
            | Kind::NetworkDown
    )
}
