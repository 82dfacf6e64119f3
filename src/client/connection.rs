//! The bytes to and from the server, encrypted where that is asked for.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::tls::Session;
use super::{Failure, PATIENCE, Remote};

/// An open connection. It blocks, up to a deadline, until [`Connection::set_nonblocking`].
#[derive(Debug)]
pub(super) struct Connection {
    socket: TcpStream,
    /// With it everything is encrypted.
    session: Option<Session>,
    /// When the last byte came.
    heard: Instant,
}

impl Connection {
    /// Connects to the first of the host's addresses that answers. Blocks up to [`PATIENCE`],
    /// and as long as the system's resolver does.
    ///
    /// # Errors
    /// For good when the server's certificate is not one that is known here.
    pub(super) fn open(remote: &Remote) -> Result<Self, Failure> {
        let url = remote.url();
        let unknown =
            |error| Failure::passing(format!("cannot find the host {}: {error}", url.host));
        let addresses = (&*url.host, url.port).to_socket_addrs().map_err(unknown)?;
        let deadline = Instant::now() + PATIENCE;
        let mut last = io::Error::other("it has no address");
        for address in addresses {
            let Some(left) = left(deadline) else { break };
            match TcpStream::connect_timeout(&address, left).and_then(without_delay) {
                Ok(mut socket) => {
                    let session = url
                        .tls
                        .then(|| Session::begin(&mut socket, remote, deadline));
                    return Ok(Self {
                        session: session.transpose()?,
                        socket,
                        heard: Instant::now(),
                    });
                }
                Err(error) => last = error,
            }
        }
        let authority = url.authority();
        Err(Failure::passing(format!(
            "cannot connect to {authority}: {last}"
        )))
    }

    pub(super) fn heard(&self) -> Instant {
        self.heard
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        self.socket.set_nonblocking(true)
    }

    /// Sends all of it; blocks up to the deadline while nothing is taken.
    pub(super) fn send(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let left = left(deadline).ok_or(io::ErrorKind::TimedOut)?;
        self.socket.set_write_timeout(Some(left))?;
        self.write_all(bytes)
    }

    /// Reads once what has arrived, or arrives until the deadline; 0 at the end.
    pub(super) fn receive(&mut self, bytes: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let left = left(deadline).ok_or(io::ErrorKind::TimedOut)?;
        self.socket.set_read_timeout(Some(left))?;
        match self.read(bytes) {
            // What a socket's timeout is called on Unix.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::ErrorKind::TimedOut.into())
            }
            result => result,
        }
    }

    /// Nothing more will be sent.
    pub(super) fn finish(&mut self) {
        if let Some(session) = &mut self.session {
            session.finish(&mut self.socket);
        }
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

impl Read for Connection {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let result = match &mut self.session {
                Some(session) => session.read(&mut self.socket, bytes),
                None => self.socket.read(bytes),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    if result.as_ref().is_ok_and(|read| *read > 0) {
                        self.heard = Instant::now();
                    }
                    return result;
                }
            }
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let result = match &mut self.session {
                Some(session) => session.write(&mut self.socket, bytes),
                None => self.socket.write(bytes),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.session {
            Some(session) => session.flush(&mut self.socket),
            None => self.socket.flush(),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn without_delay(socket: TcpStream) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// The time until then, if it is any.
pub(super) fn left(deadline: Instant) -> Option<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(left)
}
