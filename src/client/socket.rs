//! A WebSocket to the server: non-blocking, with a heartbeat of its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use tungstenite::error::{Error, ProtocolError};
use tungstenite::handshake::{client::generate_key, derive_accept_key};
use tungstenite::protocol::{CloseFrame, Role, WebSocket, WebSocketConfig};
use tungstenite::{Bytes, Message, Utf8Bytes};

use super::answer::{self, Head};
use super::connection::Connection;
use super::{Failure, PATIENCE, Remote, Retry, shown};

/// Largest frame that is taken: far above any message or state of a server with default limits.
const MAX_FRAME_BYTES: usize = 16 << 20;

/// Never reached: only [`Socket::flush`] writes.
const NO_EARLY_WRITE: usize = usize::MAX / 2;

/// The codes of a server that refuses for good: not allowed, and too large, which it will be
/// the next time as well (RFC 6455, 7.4.1).
const FOR_GOOD: [u16; 2] = [1008, 1009];

/// An open WebSocket.
pub(crate) struct Socket {
    inner: WebSocket<Connection>,
    keep_alive: KeepAlive,
    /// When the ping was sent that nothing has answered.
    pinged: Option<Instant>,
    /// The connection was full: something waits to be written.
    is_full: bool,
    /// Writing failed. What the server said before it left is still read: it may say why.
    broken: Option<Failure>,
}

/// How a dead server is told from a quiet one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeepAlive {
    /// Silence after which it is pinged.
    pub(crate) interval: Duration,
    /// Further silence after which it is given up.
    pub(crate) timeout: Duration,
}

/// What came.
pub(crate) enum Heard {
    Text(Utf8Bytes),
    /// A ping, which is answered, or a pong.
    Control,
    /// All that has arrived is read.
    Nothing,
}

impl Socket {
    /// Connects and shakes hands. Blocks up to 10 s for each.
    pub(crate) fn open(
        remote: &Remote,
        path: &str,
        keep_alive: KeepAlive,
    ) -> Result<Self, Failure> {
        let mut connection = Connection::open(remote)?;
        let early = shake_hands(&mut connection, remote, path)?;
        connection
            .set_nonblocking()
            .map_err(|error| Failure::passing(error.to_string()))?;
        let config = WebSocketConfig::default()
            .write_buffer_size(NO_EARLY_WRITE)
            .max_frame_size(Some(MAX_FRAME_BYTES))
            .max_message_size(Some(MAX_FRAME_BYTES));
        let inner = WebSocket::from_partially_read(connection, early, Role::Client, Some(config));
        Ok(Self {
            inner,
            keep_alive,
            pinged: None,
            is_full: false,
            broken: None,
        })
    }

    /// The next thing the server said. Never blocks.
    ///
    /// # Errors
    /// When the connection is over, in whatever way.
    pub(crate) fn next(&mut self) -> Result<Heard, Failure> {
        match self.inner.read() {
            Ok(Message::Text(text)) => Ok(Heard::Text(text)),
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => Ok(Heard::Control),
            Ok(Message::Binary(_)) => Err(Failure::passing("the server sent a binary frame")),
            Ok(Message::Close(frame)) => Err(closed(frame)),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                self.broken.take().map_or(Ok(Heard::Nothing), Err)
            }
            Err(error) => Err(self.broken.take().unwrap_or_else(|| lost(&error))),
        }
    }

    /// Queues a text frame; [`Socket::flush`] sends it.
    pub(crate) fn queue(&mut self, text: String) -> Result<(), Failure> {
        self.write(Message::text(text))
    }

    /// Writes what is queued as far as the connection takes it. Never blocks. That it failed is
    /// told by [`Socket::next`], once all that came is read.
    pub(crate) fn flush(&mut self) {
        match self.inner.flush() {
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                self.is_full = true
            }
            result => {
                self.is_full = false;
                self.broken = result.err().map(|error| lost(&error));
            }
        }
    }

    /// Whether something waits for the connection to take more.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Pings a silent server and returns the time until this has to be called again. To be
    /// called when [`Heard::Nothing`] was heard: what waits to be read is a sign of life, too.
    ///
    /// # Errors
    /// When it has been silent for too long.
    pub(crate) fn keep_alive(&mut self) -> Result<Duration, Failure> {
        let (now, heard) = (Instant::now(), self.inner.get_ref().heard());
        self.pinged = self.pinged.filter(|pinged| heard < *pinged);
        let due = match self.pinged {
            None => heard + self.keep_alive.interval,
            Some(pinged) => pinged + self.keep_alive.timeout,
        };
        if now < due {
            return Ok(due - now);
        }
        if self.pinged.is_some() {
            let silence = now - heard;
            return Err(Failure::passing(format!(
                "the server said nothing for {:.1} s, not even to a ping",
                silence.as_secs_f64()
            )));
        }
        self.pinged = Some(now);
        self.write(Message::Ping(Bytes::new()))?;
        Ok(self.keep_alive.timeout)
    }

    /// Says good-bye as far as that needs no waiting.
    pub(crate) fn close(mut self) {
        let code = tungstenite::protocol::frame::coding::CloseCode::Normal;
        let _ = self.inner.close(Some(CloseFrame {
            code,
            reason: Utf8Bytes::default(),
        }));
        self.inner.get_mut().finish();
    }

    fn write(&mut self, message: Message) -> Result<(), Failure> {
        match self.inner.write(message) {
            Ok(()) => Ok(()),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(lost(&error)),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.get_ref().as_fd()
    }
}

/// Asks for a WebSocket (RFC 6455, 4.1) and returns what came behind the answer.
fn shake_hands(
    connection: &mut Connection,
    remote: &Remote,
    path: &str,
) -> Result<Vec<u8>, Failure> {
    let key = generate_key();
    let mut request = remote.request("GET", path);
    request.push_str(&format!(
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\n\r\n"
    ));
    let deadline = Instant::now() + PATIENCE;
    connection
        .send(request.as_bytes(), deadline)
        .map_err(|error| Failure::passing(format!("cannot send: {error}")))?;
    let mut bytes = Vec::new();
    let head: Head = answer::read(connection, &mut bytes, deadline, |bytes, _| {
        answer::head(bytes)
    })?;
    if head.status != 101 {
        let whole = match answer::answer(&bytes, false) {
            Ok(Some(answer)) => answer,
            // The status says enough where the body does not come.
            _ => answer::read(connection, &mut bytes, deadline, answer::answer)
                .unwrap_or_else(|_| head.without_body()),
        };
        return Err(whole.refusal());
    }
    if head.accept.as_deref() != Some(&*derive_accept_key(key.as_bytes())) {
        return Err(Failure::passing(
            "the server accepted another WebSocket than ours",
        ));
    }
    Ok(bytes.split_off(head.bytes))
}

fn closed(frame: Option<CloseFrame>) -> Failure {
    let Some(frame) = frame else {
        return Failure::passing("the server closed the connection");
    };
    let code = u16::from(frame.code);
    let reason = shown(frame.reason.as_str());
    let separator = if reason.is_empty() { "" } else { ": " };
    Failure {
        sentence: format!("the server closed the connection with {code}{separator}{reason}"),
        retry: if FOR_GOOD.contains(&code) {
            Retry::Never
        } else {
            Retry::Soon
        },
    }
}

fn lost(error: &Error) -> Failure {
    Failure::passing(match error {
        Error::Io(error) => format!("the connection was lost: {error}"),
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Protocol(
            ProtocolError::ResetWithoutClosingHandshake | ProtocolError::SendAfterClosing,
        ) => "the server ended the connection without a word".to_owned(),
        other => format!("the server broke the rules of WebSockets: {other}"),
    })
}
