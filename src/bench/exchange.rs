//! HTTP as a client: a request out, its answer in.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use rustix::fd::{AsFd, BorrowedFd};

use super::connect;
use super::scanner::shortened;
use crate::client::answer;

/// A keep-alive connection, one request at a time.
pub(super) struct Connection {
    socket: TcpStream,
    /// What has arrived of the answer.
    buffer: Vec<u8>,
    chunk: Vec<u8>,
}

impl Connection {
    pub(super) fn connect(address: SocketAddr) -> Result<Self, String> {
        Ok(Self {
            socket: connect::tcp(address)?,
            buffer: Vec::with_capacity(4096),
            chunk: vec![0; 64 << 10],
        })
    }

    pub(super) fn send(&mut self, request: &[u8]) -> Result<(), String> {
        self.buffer.clear();
        self.socket
            .write_all(request)
            .map_err(|error| format!("can't send a request: {error}"))
    }

    /// Reads once, waiting for it if nothing is there, and returns status and body of the answer if that
    /// was its end.
    pub(super) fn receive(&mut self) -> Result<Option<(u16, Vec<u8>)>, String> {
        match connect::read(&mut self.socket, &mut self.chunk) {
            Ok(0) => return Err("the server closed the connection".to_owned()),
            Ok(read) => self.buffer.extend_from_slice(&self.chunk[..read]),
            Err(error) => return Err(format!("no answer: {error}")),
        }
        let answer = answer::answer(&self.buffer, false)
            .map_err(|error| format!("no HTTP answer ({error}): {}", shortened(&self.buffer)))?;
        Ok(answer.map(|answer| (answer.status, answer.body)))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
