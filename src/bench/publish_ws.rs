//! One WebSocket publisher: `message` frames with `ref`, several waiting for their ack.
//!
//! Its connection is a subscriber of the channel as well: it reads the broadcasts and skips
//! them. They count neither as deliveries nor in the checks.

use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::connect::{self, CLOSE, PONG, TEXT};
use super::latency::nanos;
use super::plan::{Plan, STAMP_DIGITS, Schedule, filler, stamp};
use super::publishers::{PAUSE, Published};
use super::scanner::{self, Kind, shortened};

pub(super) struct WsPublisher {
    socket: TcpStream,
    plan: Plan,
    index: usize,
    channel: usize,
    /// Read, and not yet a whole frame.
    arrived: Vec<u8>,
    chunk: Vec<u8>,
    /// `ref` and time of the messages without an ack, oldest first.
    waiting: VecDeque<(u64, u64)>,
    /// Frames for the next write.
    batch: Vec<u8>,
    payload: Vec<u8>,
    payload_start: usize,
    next_ref: u64,
}

impl WsPublisher {
    pub(super) fn connect(plan: Plan, index: usize) -> Result<Self, String> {
        let channel = index % plan.channels.count;
        let (socket, arrived) = connect::web_socket(plan.address, &plan.path(channel))?;
        let before_stamp = r#"{"type":"message","author":"bench","content":""#;
        let filler = filler(plan.content_bytes);
        let payload = format!(r#"{before_stamp}{:0STAMP_DIGITS$}{filler}","ref":"#, 0);
        Ok(Self {
            socket,
            plan,
            index,
            channel,
            arrived,
            chunk: vec![0; 64 << 10],
            waiting: VecDeque::with_capacity(plan.in_flight),
            batch: Vec::new(),
            payload: payload.into_bytes(),
            payload_start: before_stamp.len(),
            next_ref: 1,
        })
    }

    /// Publishes until `end`, then waits for the acks.
    pub(super) fn run(
        mut self,
        mut published: Published,
        mut schedule: Schedule,
        end: u64,
    ) -> Published {
        if let Err(error) = self.publish(&mut published, &mut schedule, end) {
            published.failure = Some(format!("WebSocket publisher {}: {error}", self.index));
        }
        published
    }

    fn publish(
        &mut self,
        published: &mut Published,
        schedule: &mut Schedule,
        end: u64,
    ) -> Result<(), String> {
        loop {
            let now = self.plan.clock.now();
            let ended = schedule.due().max(now) >= end;
            let has_room =
                |publisher: &Self| !ended && publisher.waiting.len() < publisher.plan.in_flight;
            let may_publish = published.may_publish();
            while has_room(self) && may_publish && schedule.due() <= now {
                schedule.count();
                self.push_message(now);
            }
            self.send()?;
            if ended && self.waiting.is_empty() {
                break;
            }
            // With room for more, wait no longer than until the next message may go.
            let wait = match may_publish {
                true => schedule.due().saturating_sub(self.plan.clock.now()),
                false => nanos(PAUSE),
            };
            let wait = has_room(self).then_some(wait);
            if self.readable(wait)? {
                self.read(published)?;
            }
        }
        connect::push_masked(&mut self.batch, CLOSE, &1000_u16.to_be_bytes());
        self.send()
    }

    fn push_message(&mut self, now: u64) {
        let message_ref = self.next_ref;
        self.next_ref += 1;
        stamp(&mut self.payload[self.payload_start..][..STAMP_DIGITS], now);
        let length = self.payload.len();
        self.payload
            .extend_from_slice(format!("{message_ref}}}").as_bytes());
        connect::push_masked(&mut self.batch, TEXT, &self.payload);
        self.payload.truncate(length);
        self.waiting.push_back((message_ref, now));
    }

    fn send(&mut self) -> Result<(), String> {
        self.socket
            .write_all(&self.batch)
            .map_err(|error| format!("can't send: {error}"))?;
        self.batch.clear();
        Ok(())
    }

    /// Waits at most so many nanoseconds for something to read; without a bound the read itself waits.
    fn readable(&self, nanos: Option<u64>) -> Result<bool, String> {
        let Some(nanos) = nanos else { return Ok(true) };
        let timeout = Timespec {
            tv_sec: (nanos / 1_000_000_000) as i64,
            tv_nsec: (nanos % 1_000_000_000) as _,
        };
        match poll(
            &mut [PollFd::new(&self.socket, PollFlags::IN)],
            Some(&timeout),
        ) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(format!("poll: {error}")),
        }
    }

    fn read(&mut self, published: &mut Published) -> Result<(), String> {
        match connect::read(&mut self.socket, &mut self.chunk) {
            Ok(0) => return Err("the server closed the connection".to_owned()),
            Ok(read) => self.arrived.extend_from_slice(&self.chunk[..read]),
            Err(error) => return Err(format!("no ack: {error}")),
        }
        let now = self.plan.clock.now();
        let mut arrived = std::mem::take(&mut self.arrived);
        let mut rest = &arrived[..];
        while let Some((frame, following)) = scanner::split(rest)? {
            rest = following;
            match frame.kind {
                Kind::Text if frame.payload.starts_with(br#"{"type":"message""#) => {}
                Kind::Text => self.take_answer(frame.payload, published, now)?,
                Kind::Ping => connect::push_masked(&mut self.batch, PONG, frame.payload),
                Kind::Pong => {}
                Kind::Close => {
                    return Err(format!("the server closed: {}", shortened(frame.payload)));
                }
            }
        }
        let taken = arrived.len() - rest.len();
        arrived.drain(..taken);
        self.arrived = arrived;
        Ok(())
    }

    /// Takes an ack or an error, which both say by their `ref` what they answer.
    fn take_answer(
        &mut self,
        payload: &[u8],
        published: &mut Published,
        now: u64,
    ) -> Result<(), String> {
        let answer: Value = serde_json::from_slice(payload).unwrap_or_default();
        let place = self
            .waiting
            .iter()
            .position(|(message_ref, _)| answer["ref"] == *message_ref);
        let Some((_, sent)) = place.and_then(|place| self.waiting.remove(place)) else {
            return Err(format!("an answer to nothing: {}", shortened(payload)));
        };
        match (answer["type"].as_str(), answer["id"].as_u64()) {
            (Some("ack"), Some(id)) => published.acknowledge(self.channel, id, sent, now),
            _ => published.refuse(|| shortened(payload)),
        }
        Ok(())
    }
}
