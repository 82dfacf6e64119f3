//! TLS over one socket.
//!
//! The socket is always non-blocking, and waiting, where a caller wants to wait, is `poll`
//! without any lock: so the thread that reads and the one that writes share the connection's
//! state and never wait for each other's peer. Each holds its lock for one system call and the
//! cipher of what that moved.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::{ServerConfig, ServerConnection};

/// Plaintext that is taken at once, when nothing waits encrypted: what bounds that.
const MAX_UNSENT: usize = 64 << 10;

/// The state of one connection's TLS.
///
/// What reads and writes is never inlined: a plain connection's stack needs no room for it.
#[derive(Debug)]
pub(super) struct Session {
    connection: Mutex<ServerConnection>,
    /// Decrypted bytes that nobody has read.
    unread: AtomicUsize,
    nonblocking: AtomicBool,
    read_timeout: Timeout,
    write_timeout: Timeout,
}

impl Session {
    /// Takes over a blocking socket, with its timeouts.
    pub(super) fn new(config: Arc<ServerConfig>, socket: &TcpStream) -> io::Result<Self> {
        let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
        connection.set_buffer_limit(Some(MAX_UNSENT));
        socket.set_nonblocking(true)?;
        Ok(Self {
            connection: Mutex::new(connection),
            unread: AtomicUsize::new(0),
            nonblocking: AtomicBool::new(false),
            read_timeout: Timeout::new(socket.read_timeout()?),
            write_timeout: Timeout::new(socket.write_timeout()?),
        })
    }

    /// Blocks until the handshake is made, until the deadline at most.
    #[inline(never)]
    pub(super) fn handshake(&self, socket: &TcpStream, deadline: Instant) -> io::Result<()> {
        while self.lock().is_handshaking() {
            wait(socket, true, self.has_unsent(), Some(deadline))?;
            self.push_what_goes(socket)?;
            let received = self.receive(&mut self.lock(), socket);
            match received {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    #[inline(never)]
    pub(super) fn read(&self, socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        let deadline = self.read_timeout.deadline();
        loop {
            match self.read_now(socket, buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            if self.nonblocking.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            wait(socket, true, self.has_unsent(), deadline)?;
            self.push_what_goes(socket)?;
        }
    }

    /// Reads from the socket until that gives a byte of plaintext.
    fn read_now(&self, socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // Taken anew for each record, so that whoever writes comes in between.
            let mut connection = self.lock();
            match connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.receive(&mut connection, socket)?;
                }
                Ok(read) => {
                    self.unread.fetch_sub(read, Ordering::Relaxed);
                    return Ok(read);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One read of the socket, and what follows from it: plaintext, and what TLS itself has to
    /// say (tickets, key updates, alerts). What of that the socket does not take now goes out
    /// with the next [`Self::push`].
    fn receive(&self, connection: &mut ServerConnection, socket: &TcpStream) -> io::Result<usize> {
        let received = connection.read_tls(&mut &*socket)?;
        let state = connection.process_new_packets();
        if let Err(error) = send(connection, socket)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            return Err(error);
        }
        let state = state.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.unread
            .store(state.plaintext_bytes_to_read(), Ordering::Relaxed);
        Ok(received)
    }

    #[inline(never)]
    pub(super) fn write(&self, socket: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.flush(socket)?;
        let taken = self.lock().writer().write_vectored(slices)?;
        if self.nonblocking.load(Ordering::Relaxed) {
            self.push_what_goes(socket)?;
        } else {
            self.flush(socket)?;
        }
        Ok(taken)
    }

    #[inline(never)]
    pub(super) fn flush(&self, socket: &TcpStream) -> io::Result<()> {
        loop {
            match self.push(socket) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        && !self.nonblocking.load(Ordering::Relaxed) =>
                {
                    wait(socket, false, true, self.write_timeout.deadline())?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    #[inline(never)]
    pub(super) fn push(&self, socket: &TcpStream) -> io::Result<usize> {
        send(&mut self.lock(), socket)
    }

    /// [`Self::push`] as far as the socket goes, which may be nowhere.
    fn push_what_goes(&self, socket: &TcpStream) -> io::Result<()> {
        match self.push(socket) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Says that this is the end, if there is somebody to say it to and it was not said yet.
    #[inline(never)]
    pub(super) fn close(&self, socket: &TcpStream) {
        let mut connection = self.lock();
        if !connection.is_handshaking() {
            connection.send_close_notify();
        }
        // Nobody waits for a socket that does not take it.
        while matches!(send(&mut connection, socket), Ok(1..)) {}
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.lock().wants_write()
    }

    pub(super) fn has_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed) > 0
    }

    pub(super) fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.read_timeout.set(timeout)
    }

    pub(super) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.write_timeout.set(timeout)
    }

    fn lock(&self) -> MutexGuard<'_, ServerConnection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One write of what is encrypted; how many bytes the socket took, 0 when there are none.
fn send(connection: &mut ServerConnection, socket: &TcpStream) -> io::Result<usize> {
    while connection.wants_write() {
        match connection.write_tls(&mut &*socket) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
    Ok(0)
}

/// Waits until the socket can be read, or written; `TimedOut` at the deadline.
pub(super) fn wait(
    socket: &TcpStream,
    read: bool,
    write: bool,
    deadline: Option<Instant>,
) -> io::Result<()> {
    let mut events = PollFlags::empty();
    events.set(PollFlags::IN, read);
    events.set(PollFlags::OUT, write);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // What is too long to say is for ever.
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(socket, events)], timeout.as_ref()) {
            Ok(1..) => return Ok(()),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A time that another thread may set.
#[derive(Debug)]
struct Timeout(AtomicU64);

/// For ever.
const NONE: u64 = u64::MAX;

impl Timeout {
    fn new(timeout: Option<Duration>) -> Self {
        Self(AtomicU64::new(nanoseconds(timeout)))
    }

    /// Refuses zero, as a socket does.
    fn set(&self, timeout: Option<Duration>) -> io::Result<()> {
        if timeout == Some(Duration::ZERO) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.0.store(nanoseconds(timeout), Ordering::Relaxed);
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        match self.0.load(Ordering::Relaxed) {
            NONE => None,
            nanoseconds => Some(Instant::now() + Duration::from_nanos(nanoseconds)),
        }
    }
}

fn nanoseconds(timeout: Option<Duration>) -> u64 {
    timeout.map_or(NONE, |timeout| {
        u64::try_from(timeout.as_nanos()).unwrap_or(NONE)
    })
}
