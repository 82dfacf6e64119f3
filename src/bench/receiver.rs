//! A receiving thread: one epoll and one read buffer for all its subscribers.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;

use super::connect::{self, CLOSE, PONG};
use super::latency::{Clock, Histogram, Window};
use super::plan::Plan;
use super::scanner::{self, Kind, Reader};
use super::tally::Tally;

/// Most that one read takes. It is read again at once, so it had better stay in the cache.
const READ_BYTES: usize = 128 << 10;
/// Every so many messages one is read with a JSON parser and checked in full.
const CHECKED: u64 = 1009;
/// Longest wait for the answers to the closing handshakes.
const LEAVING_NANOS: u64 = 2_000_000_000;
/// Close codes of RFC 6455, 7.4.1: all is done, a close frame without a code, no close frame.
const NORMAL: u16 = 1000;
const NO_CODE: u16 = 1005;
const ABNORMAL: u16 = 1006;

/// What the main thread sees of the receiving threads while they run, and tells them.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Deliveries that the acknowledged messages make, over all subscribers.
    pub(super) due: AtomicU64,
    /// Those that arrived.
    pub(super) delivered: AtomicU64,
    /// Subscribers whose connection stands.
    pub(super) open: AtomicUsize,
    /// Set once: close all subscribers and end.
    pub(super) leave: AtomicBool,
}

impl Progress {
    /// Deliveries that are still to come.
    pub(super) fn outstanding(&self) -> u64 {
        let delivered = self.delivered.load(Ordering::Relaxed);
        self.due.load(Ordering::Relaxed).saturating_sub(delivered)
    }
}

/// What several subscribers together received.
#[derive(Debug, Default)]
pub(super) struct Received {
    /// Messages that arrived in the measured time.
    pub(super) in_window: u64,
    /// From publish call to arrival, of messages published in the measured time.
    pub(super) latency: Histogram,
    /// Frames that are neither control frames nor the messages that were published.
    pub(super) malformed: u64,
    pub(super) first_malformed: Option<String>,
    pub(super) subscribers: Vec<Subscriber>,
}

impl Received {
    pub(super) fn merge(&mut self, other: Self) {
        self.in_window += other.in_window;
        self.latency.merge(&other.latency);
        self.malformed += other.malformed;
        self.first_malformed = self.first_malformed.take().or(other.first_malformed);
        self.subscribers.extend(other.subscribers);
    }
}

/// One subscriber's connection and what came over it.
#[derive(Debug)]
pub(super) struct Subscriber {
    socket: TcpStream,
    pub(super) channel: usize,
    /// The beginning of a frame whose end has not arrived.
    tail: Vec<u8>,
    pub(super) tally: Tally,
    /// The close code with which the server ended it.
    pub(super) closed: Option<u16>,
}

/// The state of the receiving thread.
pub(super) struct Receiver {
    epoll: OwnedFd,
    clock: Clock,
    window: Window,
    /// One for each channel.
    readers: Vec<Reader>,
    buffer_bytes: usize,
    delivered: u64,
    progress: Arc<Progress>,
    received: Received,
}

impl Receiver {
    /// Takes over open WebSockets, each with its channel and the bytes that were read too far.
    pub(super) fn new(
        sockets: Vec<(usize, TcpStream, Vec<u8>)>,
        plan: &Plan,
        window: Window,
        progress: Arc<Progress>,
    ) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut subscribers = Vec::with_capacity(sockets.len());
        for (index, (channel, socket, tail)) in sockets.into_iter().enumerate() {
            socket.set_nonblocking(true)?;
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&epoll, &socket, data, epoll::EventFlags::IN)?;
            subscribers.push(Subscriber {
                socket,
                channel,
                tail,
                tally: Tally::default(),
                closed: None,
            });
        }
        progress
            .open
            .fetch_add(subscribers.len(), Ordering::Relaxed);
        let reader = |index| Reader::new(&plan.channels.name(index), plan.content_bytes);
        Ok(Self {
            epoll,
            clock: plan.clock,
            window,
            readers: (0..plan.channels.count).map(reader).collect(),
            buffer_bytes: READ_BYTES.max(plan.content_bytes * 2),
            delivered: 0,
            progress,
            received: Received {
                subscribers,
                ..Received::default()
            },
        })
    }

    /// Runs until all subscribers are closed or [`Progress::leave`] is set and answered.
    pub(super) fn run(mut self) -> Result<Received, String> {
        let mut subscribers = std::mem::take(&mut self.received.subscribers);
        let mut buffer = vec![0; self.buffer_bytes];
        let mut events = Vec::with_capacity(1024);
        let mut open = subscribers.len();
        let mut deadline = None;
        while open > 0 && deadline.is_none_or(|deadline| self.clock.now() < deadline) {
            let pause = Timespec {
                tv_sec: 0,
                tv_nsec: 50_000_000,
            };
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&pause)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(format!("epoll: {error}")),
            }
            for event in events.drain(..) {
                let subscriber = &mut subscribers[event.data.u64() as usize];
                let Err(code) = self.receive(subscriber, &mut buffer) else {
                    continue;
                };
                open -= 1;
                self.progress.open.fetch_sub(1, Ordering::Relaxed);
                let _ = epoll::delete(&self.epoll, &subscriber.socket);
                // Whoever is leaving is closed because it asked for it.
                subscriber.closed = deadline.is_none().then_some(code);
            }
            if deadline.is_none() && self.progress.leave.load(Ordering::Relaxed) {
                deadline = Some(self.clock.now() + LEAVING_NANOS);
                subscribers
                    .iter()
                    .filter(|one| one.closed.is_none())
                    .for_each(|one| one.send(CLOSE, &NORMAL.to_be_bytes()));
            }
        }
        self.received.subscribers = subscribers;
        Ok(self.received)
    }

    /// Reads once and takes all complete frames; fails with a close code when the connection has ended.
    fn receive(&mut self, subscriber: &mut Subscriber, buffer: &mut [u8]) -> Result<(), u16> {
        let (tail, free) = buffer.split_at_mut(subscriber.tail.len());
        tail.copy_from_slice(&subscriber.tail);
        let kept = tail.len();
        let read = match subscriber.socket.read(free) {
            // Also a frame that fills the whole buffer and is still incomplete.
            Ok(0) => return Err(ABNORMAL),
            Ok(read) => read,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(());
            }
            Err(_) => return Err(ABNORMAL),
        };
        // One date for all that this read brought: they arrived together.
        let now = self.clock.now();
        let before = self.delivered;
        let ended = self.take_frames(subscriber, &buffer[..kept + read], now);
        let delivered = self.delivered - before;
        if self.window.contains(now) {
            self.received.in_window += delivered;
        }
        self.progress
            .delivered
            .fetch_add(delivered, Ordering::Relaxed);
        ended
    }

    fn take_frames(
        &mut self,
        subscriber: &mut Subscriber,
        mut bytes: &[u8],
        now: u64,
    ) -> Result<(), u16> {
        loop {
            match scanner::split(bytes) {
                Ok(Some((frame, rest))) => {
                    bytes = rest;
                    match frame.kind {
                        Kind::Text => self.take_message(subscriber, frame.payload, now),
                        Kind::Ping => subscriber.send(PONG, frame.payload),
                        Kind::Pong => {}
                        Kind::Close => return Err(close_code(frame.payload)),
                    }
                }
                Ok(None) => break,
                Err(fault) => {
                    self.note(format!("{fault}: {}", scanner::shortened(bytes)));
                    return Err(ABNORMAL);
                }
            }
        }
        subscriber.tail.clear();
        subscriber.tail.extend_from_slice(bytes);
        Ok(())
    }

    fn take_message(&mut self, subscriber: &mut Subscriber, payload: &[u8], now: u64) {
        let reader = &self.readers[subscriber.channel];
        let quick = reader.quick(payload);
        let read = match quick {
            Some(delivery) if !self.delivered.is_multiple_of(CHECKED) => Ok(delivery),
            _ => reader.thorough(payload),
        };
        match read {
            Ok(delivery) if quick.is_none_or(|quick| quick == delivery) => {
                self.delivered += 1;
                subscriber.tally.add(delivery.id);
                if self.window.contains(delivery.sent) {
                    self.received
                        .latency
                        .record(now.saturating_sub(delivery.sent));
                }
            }
            Ok(_) => self.note(format!(
                "read differently by a JSON parser: {}",
                scanner::shortened(payload)
            )),
            Err(fault) => self.note(fault),
        }
    }

    fn note(&mut self, fault: String) {
        self.received.malformed += 1;
        self.received.first_malformed.get_or_insert(fault);
    }
}

impl Subscriber {
    /// Sends a control frame. It always fits: a subscriber sends nothing else. If the
    /// connection is gone, the next read tells.
    fn send(&self, opcode: u8, payload: &[u8]) {
        let mut frame = Vec::with_capacity(16);
        connect::push_masked(&mut frame, opcode, payload);
        let _ = (&self.socket).write_all(&frame);
    }
}

fn close_code(payload: &[u8]) -> u16 {
    payload
        .first_chunk()
        .map_or(NO_CODE, |code| u16::from_be_bytes(*code))
}
