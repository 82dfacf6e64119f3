//! One accepted connection's bytes, whatever carries them.
//!
//! Everything behind the accept knows this type and not the socket. On a plain socket each
//! call is the one system call of that name.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// A connected socket.
///
/// Shared: one thread reads, and whoever holds the client's writer lock writes.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
}

impl From<TcpStream> for Stream {
    /// A plain connection.
    fn from(socket: TcpStream) -> Self {
        Self { socket }
    }
}

impl Stream {
    /// Sends what was taken by a write before and is not in the socket yet; returns how many
    /// bytes the socket took, 0 when nothing waits. A plain socket never has anything waiting.
    ///
    /// # Errors
    /// `WouldBlock` when something waits and a non-blocking socket takes nothing.
    pub fn push(&self) -> io::Result<usize> {
        Ok(0)
    }

    /// Whether reads and writes return `WouldBlock` instead of waiting.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(nonblocking)
    }

    /// Longest time that a read waits; `None` for ever.
    ///
    /// # Errors
    /// When the time is zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(timeout)
    }

    /// Longest time that a write waits for the socket to take a byte; `None` for ever.
    ///
    /// # Errors
    /// When the time is zero.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
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

    /// Ends one direction or both, for every thread that works with it. Never blocks.
    ///
    /// # Errors
    /// When the peer is gone already.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
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
        (&self.socket).read(buffer)
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.socket).write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.socket).write_vectored(slices)
    }

    /// Sends what [`Stream::push`] would, all of it.
    fn flush(&mut self) -> io::Result<()> {
        while self.push()? > 0 {}
        Ok(())
    }
}
