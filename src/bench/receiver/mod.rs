//! A receiving thread: one epoll and one read buffer for all its subscribers.

mod going;

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;

use crate::bench::arriving::{Arriving, Payload};
use crate::bench::churn::Churn;
use crate::bench::connect::{CLOSE, PONG};
use crate::bench::latency::{Clock, Window};
use crate::bench::plan::{Load, Plan};
use crate::bench::reader::Reader;
use crate::bench::received::{Progress, Received};
use crate::bench::returning::Returning;
use crate::bench::scanner::{self, Kind};
use crate::bench::subscriber::{Seat, Subscriber};

/// Most that one read takes. It is read again at once, so it had better stay in the cache.
const READ_BYTES: usize = 128 << 10;
/// Every so many messages or states one is read with a JSON parser and checked in full.
const CHECKED: u64 = 1009;
/// Longest sleep: while somebody is being connected, and else.
const SHORT_PAUSE_NANOS: u32 = 1_000_000;
const PAUSE_NANOS: u32 = 50_000_000;
/// Longest wait for the answers to the closing handshakes.
const LEAVING_NANOS: u64 = 2_000_000_000;
/// Close codes of RFC 6455, 7.4.1: all is done, a close frame without a code, no close frame.
const NORMAL: u16 = 1000;
const NO_CODE: u16 = 1005;
const ABNORMAL: u16 = 1006;

/// The state of the receiving thread.
pub(in crate::bench) struct Receiver {
    epoll: OwnedFd,
    plan: Plan,
    clock: Clock,
    window: Window,
    /// One for each channel.
    readers: Vec<Reader>,
    buffer_bytes: usize,
    delivered: u64,
    /// Messages, or steps of the subscribers' revs.
    advanced: u64,
    /// Long states that did not arrive in one read.
    cut: u64,
    progress: Arc<Progress>,
    received: Received,
    churn: Churn,
    returning: Returning,
    /// How many of them are on their way.
    awaited: usize,
}

impl Receiver {
    /// Takes over open WebSockets, and connects the subscribers that have none.
    pub(in crate::bench) fn new(
        seats: Vec<Seat>,
        plan: &Plan,
        window: Window,
        progress: Arc<Progress>,
    ) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut churn = Churn::new(plan, window, seats.len());
        let mut subscribers = Vec::with_capacity(seats.len());
        for (index, seat) in seats.into_iter().enumerate() {
            let subscriber = Subscriber::new(seat, plan.base);
            if let Some(socket) = &subscriber.socket {
                socket.set_nonblocking(true)?;
                if subscriber.is_stalled {
                    churn.stall_to_the_end(index);
                } else {
                    listen(&epoll, socket, index)?;
                }
            }
            subscribers.push(subscriber);
        }
        progress
            .open
            .fetch_add(subscribers.len(), Ordering::Relaxed);
        let reader = |index| Reader::new(plan, index);
        // A long message is kept until it is complete, a long state is not.
        let frame_bytes = match plan.load {
            Load::Messages => plan.content_bytes * 2,
            Load::States | Load::EqualStates => 0,
        };
        Ok(Self {
            epoll,
            plan: *plan,
            clock: plan.clock,
            window,
            readers: (0..plan.channels.count).map(reader).collect(),
            buffer_bytes: READ_BYTES.max(frame_bytes),
            delivered: 0,
            advanced: 0,
            cut: 0,
            progress,
            received: Received {
                subscribers,
                ..Received::default()
            },
            churn,
            returning: Returning::start(plan.address)?,
            awaited: 0,
        })
    }

    /// Runs until all subscribers are closed or [`Progress::leave`] is set and answered.
    pub(in crate::bench) fn run(mut self) -> Result<Received, String> {
        let mut subscribers = std::mem::take(&mut self.received.subscribers);
        let mut buffer = vec![0; self.buffer_bytes];
        let mut events = Vec::with_capacity(1024);
        let mut open = subscribers.len();
        let mut deadline = None;
        for (index, subscriber) in subscribers.iter_mut().enumerate() {
            if subscriber.socket.is_none() {
                self.call_back(subscriber, index);
            }
        }
        while open > 0 && deadline.is_none_or(|deadline| self.clock.now() < deadline) {
            let pause = Timespec {
                tv_sec: 0,
                tv_nsec: match self.awaited {
                    0 => PAUSE_NANOS,
                    _ => SHORT_PAUSE_NANOS,
                }
                .into(),
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
                subscriber.socket = None;
                // Whoever is leaving is closed because it asked for it.
                subscriber.closed = deadline.is_none().then_some(code);
            }
            open -= self.welcome(&mut subscribers);
            self.go_and_rest(&mut subscribers)
                .map_err(|error| format!("epoll: {error}"))?;
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
        let Some(mut socket) = subscriber.socket.as_ref() else {
            return Ok(());
        };
        let read = match socket.read(free) {
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
        self.take(subscriber, &buffer[..kept + read])
    }

    /// Takes all complete frames; fails with a close code when the connection has ended.
    fn take(&mut self, subscriber: &mut Subscriber, bytes: &[u8]) -> Result<(), u16> {
        // One date for all that a read brought: they arrived together.
        let now = self.clock.now();
        let (before, advanced) = (self.delivered, self.advanced);
        let ended = self.take_frames(subscriber, bytes, now);
        let delivered = self.delivered - before;
        if self.window.contains(now) {
            self.received.in_window += delivered;
        }
        self.progress
            .delivered
            .fetch_add(self.advanced - advanced, Ordering::Relaxed);
        ended
    }

    fn take_frames(
        &mut self,
        subscriber: &mut Subscriber,
        mut bytes: &[u8],
        now: u64,
    ) -> Result<(), u16> {
        if let Some(mut arriving) = subscriber.arriving.take() {
            bytes = arriving.take(bytes);
            let Some(payload) = arriving.payload() else {
                subscriber.arriving = Some(arriving);
                return Ok(());
            };
            self.take_text(subscriber, payload, payload.is_whole(), now);
        }
        loop {
            match scanner::split(bytes) {
                Ok(Some((frame, rest))) => {
                    bytes = rest;
                    match frame.kind {
                        Kind::Text => {
                            let is_checked = self.delivered.is_multiple_of(CHECKED);
                            let payload = Payload::whole(frame.payload);
                            self.take_text(subscriber, payload, is_checked, now);
                        }
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
        if matches!(self.readers[subscriber.channel], Reader::States(_)) {
            subscriber.arriving = Arriving::begin(bytes, self.cut.is_multiple_of(CHECKED));
            self.cut += u64::from(subscriber.arriving.is_some());
        }
        if subscriber.arriving.is_none() {
            subscriber.tail.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn take_text(
        &mut self,
        subscriber: &mut Subscriber,
        payload: Payload<'_>,
        is_checked: bool,
        now: u64,
    ) {
        let delivery = match self.readers[subscriber.channel].read(payload, is_checked) {
            Ok(delivery) => delivery,
            Err(_) if subscriber.has_caught_up(payload.kept, now) => {
                self.received.gone.caught_up += 1;
                self.progress.last_back.fetch_max(now, Ordering::Relaxed);
                self.progress.came_back.fetch_add(1, Ordering::Relaxed);
                self.progress.delivered.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Err(fault) => return self.note(fault),
        };
        self.delivered += 1;
        let step = subscriber.tally.add(delivery.id);
        self.advanced += match self.readers[subscriber.channel] {
            Reader::Messages(_) => 1,
            Reader::States(_) => step,
        };
        if self.window.contains(delivery.sent) && delivery.sent >= subscriber.live_since {
            self.received
                .latency
                .record(now.saturating_sub(delivery.sent));
        }
    }

    fn note(&mut self, fault: String) {
        self.received.malformed += 1;
        self.received.first_malformed.get_or_insert(fault);
    }
}

fn listen(epoll: &OwnedFd, socket: &TcpStream, index: usize) -> rustix::io::Result<()> {
    let data = epoll::EventData::new_u64(index as u64);
    epoll::add(epoll, socket, data, epoll::EventFlags::IN)
}

fn close_code(payload: &[u8]) -> u16 {
    payload
        .first_chunk()
        .map_or(NO_CODE, |code| u16::from_be_bytes(*code))
}
