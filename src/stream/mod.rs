//! One accepted connection's bytes, whatever carries them: a bare socket, or TLS over it.
//!
//! Everything behind the accept knows this type and not the socket. On a plain socket each
//! call is the one system call of that name. TLS is the cargo feature `tls`.

#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
mod acceptor;
#[cfg(feature = "tls")]
pub(crate) mod pem;
#[cfg(feature = "tls")]
mod session;

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(feature = "tls")]
use std::sync::OnceLock;
use std::time::Duration;

use rustix::net::{SendFlags, send};
#[cfg(feature = "tls")]
use session::Session;

pub(crate) use acceptor::Acceptor;

/// What a client that begins with TLS reads instead of an answer that it could not decrypt: a
/// fatal alert, `internal_error` (RFC 8446, section 6), which takes no handshake.
pub(crate) const REFUSAL: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

/// A connected socket, over which TLS may be spoken.
///
/// Shared: one thread reads, and whoever holds the client's writer lock writes.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    /// Set once, by the connection's own thread, before anything is read or written.
    #[cfg(feature = "tls")]
    session: OnceLock<Box<Session>>,
}

/// Why a connection on which TLS is expected has none.
#[derive(Debug)]
#[cfg_attr(
    not(feature = "tls"),
    expect(dead_code, reason = "only TLS refuses a connection")
)]
pub(crate) enum Refused {
    /// The client speaks something else. Nothing was read: it can be answered in plain.
    NotTls,
    /// The handshake failed, or did not end in time.
    Failed(io::Error),
}

impl From<TcpStream> for Stream {
    /// A plain connection.
    fn from(socket: TcpStream) -> Self {
        Self {
            socket,
            #[cfg(feature = "tls")]
            session: OnceLock::new(),
        }
    }
}

impl Stream {
    /// Sends what was taken by a write before and is not in the socket yet; returns how many
    /// bytes the socket took, 0 when nothing waits. Never blocks. A plain socket never has
    /// anything waiting; TLS has at most the records of 64 KiB.
    ///
    /// # Errors
    /// `WouldBlock` when something waits and the socket takes nothing.
    pub fn push(&self) -> io::Result<usize> {
        #[cfg(feature = "tls")]
        if let Some(session) = self.session.get() {
            return session.push(&self.socket);
        }
        Ok(0)
    }

    /// Sends what the socket takes at once, whatever [`Self::set_nonblocking`] says; returns how
    /// many bytes that was. Over TLS it takes nothing: whoever writes there may have to wait.
    pub(crate) fn send_now(&self, bytes: &[u8]) -> usize {
        #[cfg(feature = "tls")]
        if self.session.get().is_some() {
            return 0;
        }
        // Whoever reads or writes next is told what is wrong with it.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        send(&self.socket, bytes, flags).unwrap_or(0)
    }

    /// Whether something waits for [`Self::push`].
    pub(crate) fn has_unsent(&self) -> bool {
        #[cfg(feature = "tls")]
        if let Some(session) = self.session.get() {
            return session.has_unsent();
        }
        false
    }

    /// Whether a read gives something that the socket has given already, and no `poll`
    /// announces again.
    pub(crate) fn has_unread(&self) -> bool {
        #[cfg(feature = "tls")]
        if let Some(session) = self.session.get() {
            return session.has_unread();
        }
        false
    }

    /// Whether reads and writes return `WouldBlock` instead of waiting.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        #[cfg(feature = "tls")]
        if let Some(session) = self.session.get() {
            session.set_nonblocking(nonblocking);
            return Ok(());
        }
        self.socket.set_nonblocking(nonblocking)
    }

    /// Longest time that a read waits; `None` for ever. Over TLS it is a deadline for the whole
    /// read, however many bytes come that give none to return.
    ///
    /// # Errors
    /// When the time is zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        #[cfg(feature = "tls")]
        if let Some(session) = self.session.get() {
            return session.set_read_timeout(timeout);
        }
        self.socket.set_read_timeout(timeout)
    }

    /// Longest time that a write waits for the socket to take a byte; `None` for ever.
    ///
    /// # Errors
    /// When the time is zero.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        #[cfg(feature = "tls")]
        if let Some(session) = self.session.get() {
            return session.set_write_timeout(timeout);
        }
        self.socket.set_write_timeout(timeout)
    }

    /// Whether small writes go out at once (`TCP_NODELAY`).
    ///
    /// # Errors
    /// Those of the system.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.socket.set_nodelay(nodelay)
    }

    /// Where it comes from.
    ///
    /// # Errors
    /// When it is not connected any more.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    /// Ends one direction or both, for every thread that works with it. Never blocks. Ending
    /// [`Shutdown::Write`] tells a TLS client so (`close_notify`); the others cut off.
    ///
    /// # Errors
    /// When the peer is gone already.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        #[cfg(feature = "tls")]
        if let (Some(session), Shutdown::Write) = (self.session.get(), how) {
            session.close(&self.socket);
        }
        self.socket.shutdown(how)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        #[cfg(feature = "tls")]
        if let Some(session) = self.session.get() {
            return session.read(&self.socket, buffer);
        }
        (&self.socket).read(buffer)
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(feature = "tls")]
        if let Some(session) = self.session.get() {
            return session.write(&self.socket, &[IoSlice::new(bytes)]);
        }
        (&self.socket).write(bytes)
    }

    /// Over TLS a write takes up to 64 KiB, and nothing while [`Stream::push`] has something to
    /// send: that bounds what waits encrypted.
    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        #[cfg(feature = "tls")]
        if let Some(session) = self.session.get() {
            return session.write(&self.socket, slices);
        }
        (&self.socket).write_vectored(slices)
    }

    /// Sends all of what [`Stream::push`] would.
    fn flush(&mut self) -> io::Result<()> {
        #[cfg(feature = "tls")]
        if let Some(session) = self.session.get() {
            return session.flush(&self.socket);
        }
        Ok(())
    }
}

#[cfg(feature = "tls")]
impl Drop for Stream {
    /// Whatever ended the connection, a client that is still there is told that this is the
    /// end and nothing was cut off (RFC 8446, section 6.1).
    fn drop(&mut self) {
        if let Some(session) = self.session.get() {
            session.close(&self.socket);
        }
    }
}

#[cfg(all(test, feature = "tls"))]
pub(crate) mod tests;
