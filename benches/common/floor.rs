//! The floor: what a fan-out costs when nothing else is done.
//!
//! One thread, one frame, one `send` for each subscriber in turn. It stores nothing, checks nothing
//! and knows one channel; of HTTP and WebSocket it has what `threadcast bench` needs to load it.
//! A `send` that finds a socket full waits, so nothing is lost, and everybody waits with it.
//!
//! It is started by that program as a server is, with `serve` and flags, none of which it reads,
//! lives for one run, and is ended by a signal.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::net::{SendFlags, send};

/// What the generator's handshakes expect: all have the nonce of RFC 6455, 1.3.
const ACCEPTED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const BEFORE_ID: &[u8] = br#"{"type":"message","data":{"id":"#;
const AFTER_BODY: &[u8] = br#","timestamp":"2026-01-05T12:34:56.789012+00:00","lane":null,"provider":null,"token_count":null}}"#;
/// A close frame with code 1000.
const CLOSE: &[u8] = &[0x88, 2, 0x03, 0xe8];
/// The listener among the epoll's numbers; connections are numbered from 1.
const LISTENER: u64 = 0;

/// Whether this program was started to be the floor.
pub(crate) fn is_wanted() -> bool {
    std::env::args().nth(1).as_deref() == Some("serve")
}

/// Serves until a signal ends the process.
pub(crate) fn serve() -> std::io::Result<std::convert::Infallible> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    // As many handshakes as the generator has under way at once fit std's backlog of 128.
    println!(
        "floor listening on http://{}, nothing is stored",
        listener.local_addr()?
    );
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let data = epoll::EventData::new_u64(LISTENER);
    epoll::add(&epoll, &listener, data, epoll::EventFlags::IN)?;
    let mut floor = Floor {
        epoll,
        asking: Vec::new(),
        subscribers: Vec::new(),
        last_id: 0,
        frame: Vec::new(),
    };
    let mut connections = LISTENER;
    let mut events = Vec::with_capacity(1024);
    loop {
        epoll::wait(&floor.epoll, spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            let number = event.data.u64();
            if number != LISTENER {
                floor.read(number)?;
                continue;
            }
            let (socket, _) = listener.accept()?;
            socket.set_nodelay(true)?;
            connections += 1;
            let data = epoll::EventData::new_u64(connections);
            epoll::add(&floor.epoll, &socket, data, epoll::EventFlags::IN)?;
            floor.asking.push(Asking {
                number: connections,
                socket,
                arrived: Vec::new(),
            });
        }
    }
}

struct Floor {
    epoll: OwnedFd,
    asking: Vec<Asking>,
    subscribers: Vec<(u64, TcpStream)>,
    last_id: u64,
    frame: Vec<u8>,
}

/// A connection that sends requests.
struct Asking {
    number: u64,
    socket: TcpStream,
    /// Of the next request.
    arrived: Vec<u8>,
}

impl Floor {
    /// Takes what a connection sent: a request, or a subscriber's goodbye.
    fn read(&mut self, number: u64) -> std::io::Result<()> {
        let Some(at) = self.asking.iter().position(|one| one.number == number) else {
            // The only frame that a subscriber sends is the one that closes.
            if let Some(at) = self.subscribers.iter().position(|(one, _)| *one == number) {
                let (_, mut socket) = self.subscribers.swap_remove(at);
                let _ = socket.write_all(CLOSE);
            }
            return Ok(());
        };
        let mut chunk = [0; 16 << 10];
        let asking = &mut self.asking[at];
        let read = asking.socket.read(&mut chunk).unwrap_or_default();
        if read == 0 {
            self.asking.swap_remove(at);
            return Ok(());
        }
        asking.arrived.extend_from_slice(&chunk[..read]);
        let Some(body_at) = end_of_head(&asking.arrived) else {
            return Ok(());
        };
        if asking.arrived.starts_with(b"GET ") {
            let mut asking = self.asking.swap_remove(at);
            asking.socket.write_all(ACCEPTED)?;
            self.subscribers.push((number, asking.socket));
            return Ok(());
        }
        if asking.arrived.len() < body_at + content_length(&asking.arrived[..body_at]) {
            return Ok(());
        }
        self.last_id += 1;
        let answer = format!(r#"{{"success":true,"message":{{"id":{}}}}}"#, self.last_id);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        asking.socket.write_all((head + &answer).as_bytes())?;
        write_frame(&mut self.frame, self.last_id, &asking.arrived[body_at..]);
        asking.arrived.clear();
        // Whoever is gone is removed when its goodbye is read.
        for (_, socket) in &self.subscribers {
            let _ = send(socket, &self.frame, SendFlags::NOSIGNAL);
        }
        Ok(())
    }
}

fn end_of_head(request: &[u8]) -> Option<usize> {
    let at = request.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(at + 4)
}

fn content_length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head);
    let (_, length) = head.split_once("Content-Length: ").unwrap_or_default();
    let length = length.lines().next().unwrap_or_default();
    length.parse().unwrap_or_default()
}

/// The frame of a message: the fields that were posted, between those that a server adds.
fn write_frame(frame: &mut Vec<u8>, id: u64, body: &[u8]) {
    let fields = &body[1..body.len() - 1];
    let id = id.to_string();
    let length = BEFORE_ID.len() + id.len() + 1 + fields.len() + AFTER_BODY.len();
    frame.clear();
    frame.push(0x81);
    match u16::try_from(length) {
        Ok(length) if length < 126 => frame.push(length as u8),
        Ok(length) => frame.extend([&[126][..], &length.to_be_bytes()].concat()),
        Err(_) => frame.extend([&[127][..], &(length as u64).to_be_bytes()].concat()),
    }
    for part in [BEFORE_ID, id.as_bytes(), b",", fields, AFTER_BODY] {
        frame.extend_from_slice(part);
    }
}
