//! Complete requests to the REST thread, whole answers back.
//!
//! tiny_http must not face the network: it has no limits and no deadlines, and its accept
//! loop ends for good at the first error. So its connections are made once, here, before the
//! first request, and never again; a request borrows one for as long as it takes. What goes
//! over them was checked byte by byte: nothing a client sends can break one or be taken for
//! somebody else's request.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::access::{Callers, Peer};
use crate::config::Limits;
use crate::error::{Error, Result};
use crate::http::{Head, Problem, Reply};
use crate::usage::Usage;

/// Descriptors that each connection takes: the relay's end and tiny_http's, which it has twice.
pub(super) const DESCRIPTORS_PER_CONNECTION: usize = 3;

/// Time for the REST thread to answer on a new connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that are for reading alone.
pub(super) const READ_CONNECTIONS: usize = 4;

/// How many connections there are, of every kind.
pub(super) fn connections(limits: &Limits) -> usize {
    let shared = limits.max_rest_requests.max(1);
    shared + READ_CONNECTIONS.min(shared)
}

/// The connections to the request loop. Their number bounds the requests in hand.
pub(super) struct Relay {
    /// Held while a connection is made: one at a time, see [`connect`].
    socket: Mutex<PathBuf>,
    callers: Arc<Callers>,
    usage: Arc<Usage>,
    shared: Pool,
    reading: Pool,
}

/// Where one kind of request finds a free connection.
struct Pool {
    free: Receiver<Line>,
    give_back: Sender<Line>,
}

/// A connection by its number among the [`Callers`], or the place of one that broke.
struct Line {
    number: usize,
    connection: Option<UnixStream>,
}

/// A connection that goes back when this is dropped; without it, its place does.
struct Lease<'a> {
    pool: &'a Pool,
    usage: &'a Usage,
    line: Line,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let in_use = &self.usage.traffic.rest_requests;
        in_use.fetch_sub(1, Ordering::Relaxed);
        // There is room: this came from there.
        let _ = self.pool.give_back.send(Line {
            number: self.line.number,
            connection: self.line.connection.take(),
        });
    }
}

impl Relay {
    /// Connects to the request loop's socket: so often for every kind of request, and a few
    /// times more for reading.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub(super) fn new(
        socket: PathBuf,
        connections: usize,
        callers: Arc<Callers>,
        usage: Arc<Usage>,
    ) -> Result<Self> {
        let mut numbers = 0..;
        let mut pool = |size| -> Result<Pool> {
            let (give_back, free) = bounded(size);
            for number in numbers.by_ref().take(size) {
                let connection =
                    connect(&socket).map_err(Error::system("connect to the REST socket"))?;
                let line = Line {
                    number,
                    connection: Some(connection),
                };
                give_back
                    .send(line)
                    .expect("the pool has room for what it is made for");
            }
            Ok(Pool { free, give_back })
        };
        let connections = connections.max(1);
        let (shared, reading) = (pool(connections)?, pool(READ_CONNECTIONS.min(connections))?);
        Ok(Self {
            socket: Mutex::new(socket),
            callers,
            usage,
            shared,
            reading,
        })
    }

    /// Sends one request and returns the bytes of its answer, ready for the client.
    ///
    /// Blocks until a connection is free and the handler has answered.
    #[inline(never)]
    pub(super) fn exchange(
        &self,
        head: &Head,
        body: &[u8],
        peer: &Peer,
        keep_alive: bool,
    ) -> Vec<u8> {
        let answer = |problem: Problem| {
            Reply::from(problem).into_bytes(head.method == "HEAD", head.is_1_0, keep_alive)
        };
        let mut lease = self.lease(&head.method);
        let request = match request(head, body, lease.line.number) {
            Ok(request) => request,
            Err(problem) => return answer(problem),
        };
        self.callers.set(lease.line.number, peer);
        let connection = lease.line.connection.take();
        let connection = match connection.map_or_else(|| self.reconnect(), Ok) {
            Ok(connection) => lease.line.connection.insert(connection),
            Err(error) => {
                log::error!("the REST thread cannot be reached: {error}");
                return answer(Problem::unavailable(
                    "the server lacks a descriptor for this request",
                    1,
                ));
            }
        };
        match round_trip(connection, &request, head) {
            Ok(mut bytes) => {
                insert_connection(&mut bytes, head, keep_alive);
                bytes
            }
            Err(error) => {
                log::error!("a connection to the REST thread broke: {error}");
                lease.line.connection = None;
                answer(Problem::new(500, "the request was lost inside the server"))
            }
        }
    }

    /// Blocks until the `rest` thread has answered; `false` when it has ended.
    pub(super) fn is_answered(&self) -> bool {
        let mut lease = self.lease("OPTIONS");
        let Some(connection) = &mut lease.line.connection else {
            return self.reconnect().is_ok();
        };
        let is_answered = ask_for_nothing(connection).is_ok();
        if !is_answered {
            lease.line.connection = None;
        }
        is_answered
    }

    /// In the place of a connection that broke, which both ends being ours never happened.
    #[cold]
    fn reconnect(&self) -> io::Result<UnixStream> {
        connect(&self.socket.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lease(&self, method: &str) -> Lease<'_> {
        const OPEN: &str = "the pool holds its own sender";
        let (line, pool) = if matches!(method, "GET" | "HEAD" | "OPTIONS") {
            select! {
                recv(self.reading.free) -> line => (line, &self.reading),
                recv(self.shared.free) -> line => (line, &self.shared),
            }
        } else {
            (self.shared.free.recv(), &self.shared)
        };
        let line = line.expect(OPEN);
        let in_use = &self.usage.traffic.rest_requests;
        in_use.fetch_add(1, Ordering::Relaxed);
        Lease {
            pool,
            usage: &self.usage,
            line,
        }
    }
}

/// A connection that is served. tiny_http queues a new connection behind a busy one when its
/// threads have not woken up yet for those before, and ours stay: without an answer on each
/// before the next is made, some would wait for ever.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    let mut connection = UnixStream::connect(socket)?;
    connection.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    ask_for_nothing(&mut connection)?;
    // From now on it waits as long as a commit takes.
    connection.set_read_timeout(None)?;
    Ok(connection)
}

/// A request of the relay itself, in nobody's name.
fn ask_for_nothing(connection: &mut UnixStream) -> io::Result<()> {
    connection.write_all(b"OPTIONS * HTTP/1.1\r\nHost: relay\r\n\r\n")?;
    read_answer(connection, false).map(drop)
}

/// The request as tiny_http gets it: always HTTP/1.1, always with a length.
fn request(head: &Head, body: &[u8], caller: usize) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::with_capacity(512 + body.len());
    bytes.extend_from_slice(
        format!(
            "{} {} HTTP/1.1\r\nContent-Length: {}\r\n",
            head.method,
            head.target,
            body.len()
        )
        .as_bytes(),
    );
    for (name, value) in head.handed_on()? {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(format!("{}: {caller}\r\n\r\n", Callers::HEADER).as_bytes());
    bytes.extend_from_slice(body);
    Ok(bytes)
}

fn round_trip(connection: &mut UnixStream, request: &[u8], head: &Head) -> io::Result<Vec<u8>> {
    connection.write_all(request)?;
    read_answer(connection, head.method == "HEAD")
}

/// Bytes asked of the REST thread at first: most answers come whole.
const READ_SIZE: usize = 4 << 10;

/// Reads a whole answer, however large: the REST thread must not wait for a client.
/// Answers are bounded by [`Limits::max_page_bytes`](crate::config::Limits).
fn read_answer(connection: &mut UnixStream, head_only: bool) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(&bytes).map_err(io::Error::other)?;
        if let httparse::Status::Complete(end) = parsed {
            let has_body = !head_only && !matches!(response.code, Some(204 | 304));
            let length = if has_body {
                content_length(response.headers)?
            } else {
                0
            };
            let start = bytes.len();
            if end + length > start {
                bytes.resize(end + length, 0);
                connection.read_exact(&mut bytes[start..])?;
            }
            return Ok(bytes);
        }
        let before = bytes.len();
        bytes.resize(before + READ_SIZE, 0);
        let read = connection.read(&mut bytes[before..]);
        bytes.truncate(before + read.as_ref().copied().unwrap_or(0));
        match read {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn content_length(headers: &[httparse::Header<'_>]) -> io::Result<usize> {
    headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
        .ok_or_else(|| io::Error::other("an answer has no length"))
}

/// Says behind the status line whether the client's connection stays (RFC 9112, section 9.3).
fn insert_connection(bytes: &mut Vec<u8>, head: &Head, keep_alive: bool) {
    let header: &[u8] = match (keep_alive, head.is_1_0) {
        (false, _) => b"Connection: close\r\n",
        (true, true) => b"Connection: keep-alive\r\n",
        (true, false) => return,
    };
    if let Some(line) = bytes.iter().position(|byte| *byte == b'\n') {
        bytes.splice(line + 1..line + 1, header.iter().copied());
    }
}
