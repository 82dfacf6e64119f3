//! The HTTP publishers: each a keep-alive connection with one `POST /api/messages` or
//! `PUT /api/state/{feed}` at a time.
//!
//! One thread serves many: it sends what is due and waits for the first answer. A thread for each
//! would take turns on the cores that the server needs, and cost more than the requests do.

use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use serde::Deserialize;

use super::connect::PATIENCE;
use super::exchange::Connection;
use super::latency::nanos;
use super::plan::{Load, Plan, Schedule};
use super::publishers::{PAUSE, Published};
use super::requests::Requests;
use super::scanner::{number, shortened};

/// Pause after a refusal: whoever is told to come back later does.
const AFTER_REFUSAL: Duration = Duration::from_millis(10);

/// Those of one thread, connected.
pub(super) struct HttpPublishers {
    plan: Plan,
    epoll: OwnedFd,
    publishers: Vec<HttpPublisher>,
}

struct HttpPublisher {
    index: usize,
    connection: Connection,
    requests: Requests,
    channel: usize,
    schedule: Schedule,
    /// When the request was sent whose answer is still to come.
    asked: Option<u64>,
    /// After a refusal.
    not_before: u64,
}

impl HttpPublishers {
    /// Every so-manieth of the plan's publishers.
    pub(super) fn connect(plan: Plan, thread: usize) -> Result<Self, String> {
        let fault = |error| format!("epoll: {error}");
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(fault)?;
        let publishers: Vec<_> = (thread..plan.publishers)
            .step_by(plan.publisher_threads)
            .map(|index| HttpPublisher::connect(&plan, index))
            .collect::<Result<_, _>>()?;
        for (index, publisher) in publishers.iter().enumerate() {
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&epoll, &publisher.connection, data, epoll::EventFlags::IN)
                .map_err(fault)?;
        }
        Ok(Self {
            plan,
            epoll,
            publishers,
        })
    }

    /// Publishes until `end`, each to all channels in turn, and waits for the answers.
    pub(super) fn run(mut self, mut published: Published, end: u64) -> Published {
        for publisher in &mut self.publishers {
            publisher.schedule = Schedule::new(&self.plan, publisher.index);
        }
        if let Err(error) = self.publish(&mut published, end) {
            published.failure = Some(error);
        }
        published
    }

    fn publish(&mut self, published: &mut Published, end: u64) -> Result<(), String> {
        let mut events = Vec::with_capacity(self.publishers.len());
        loop {
            let next = self.send(published, end)?;
            let asked = self.publishers.iter().filter_map(|one| one.asked).min();
            let Some(asked) = asked else {
                if next == u64::MAX {
                    return Ok(());
                }
                self.plan.clock.sleep_until(next);
                continue;
            };
            if let [only] = &mut self.publishers[..] {
                // Its connection waits by itself.
                only.receive(&self.plan, published)?;
                continue;
            }
            let now = self.plan.clock.now();
            let give_up = asked + nanos(PATIENCE);
            if now > give_up {
                return Err(format!(
                    "an HTTP publisher had no answer within {PATIENCE:?}"
                ));
            }
            let pause = next.min(give_up).saturating_sub(now);
            let pause = Timespec {
                tv_sec: (pause / 1_000_000_000) as i64,
                tv_nsec: (pause % 1_000_000_000) as _,
            };
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&pause)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(format!("epoll: {error}")),
            }
            for event in events.drain(..) {
                let index = event.data.u64() as usize;
                self.publishers[index].receive(&self.plan, published)?;
            }
        }
    }

    /// Sends what is due, and returns when the next one is: never, when only answers are to come.
    fn send(&mut self, published: &Published, end: u64) -> Result<u64, String> {
        let mut next = u64::MAX;
        for publisher in &mut self.publishers {
            let now = self.plan.clock.now();
            let due = publisher.schedule.due().max(publisher.not_before);
            if publisher.asked.is_some() || due.max(now) >= end {
                continue;
            }
            if due > now {
                next = next.min(due);
            } else if published.may_publish() {
                publisher.send(&self.plan, now)?;
            } else {
                next = next.min(now + nanos(PAUSE));
            }
        }
        Ok(next)
    }
}

impl HttpPublisher {
    fn connect(plan: &Plan, index: usize) -> Result<Self, String> {
        Ok(Self {
            index,
            connection: Connection::connect(plan.address)?,
            requests: match plan.load {
                Load::Messages => Requests::messages(plan),
                Load::States => Requests::states(plan, index),
                Load::EqualStates => Requests::equal_states(plan),
            },
            channel: index % plan.channels.count,
            schedule: Schedule::new(plan, index),
            asked: None,
            not_before: 0,
        })
    }

    fn send(&mut self, plan: &Plan, now: u64) -> Result<(), String> {
        self.schedule.count();
        self.asked = Some(now);
        let request = self.requests.next(plan.channels, self.channel, now);
        let sent = self.connection.send(request);
        sent.map_err(|error| format!("HTTP publisher {}: {error}", self.index))
    }

    fn receive(&mut self, plan: &Plan, published: &mut Published) -> Result<(), String> {
        let fault = |error| format!("HTTP publisher {}: {error}", self.index);
        let Some((status, body)) = self.connection.receive().map_err(fault)? else {
            return Ok(());
        };
        let Some(sent) = self.asked.take() else {
            return Err(format!("an answer to nothing: {}", shortened(&body)));
        };
        let now = plan.clock.now();
        match (status, answer(plan.load, &body)) {
            (200, Some(Answer::New(id))) => published.acknowledge(self.channel, id, sent, now),
            (200, Some(Answer::Same)) => published.acknowledge_unchanged(sent, now),
            (200, None) => published
                .refuse(|| format!("an answer without an id or a rev: {}", shortened(&body))),
            _ => {
                published.refuse(|| format!("status {status}: {}", shortened(&body)));
                self.not_before = now + nanos(AFTER_REFUSAL);
            }
        }
        self.channel = (self.channel + plan.publishers) % plan.channels.count;
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// A message has this id, or a state that is a change this rev.
    New(u64),
    /// A state that is no change.
    Same,
}

fn answer(load: Load, body: &[u8]) -> Option<Answer> {
    #[derive(Deserialize)]
    struct Put {
        changed: bool,
        rev: u64,
    }
    if load == Load::Messages {
        return id(body).map(Answer::New);
    }
    let put: Put = serde_json::from_slice(body).ok()?;
    Some(if put.changed {
        Answer::New(put.rev)
    } else {
        Answer::Same
    })
}

/// The id in the answer; no other text in it can look like one, as the content is ours.
fn id(body: &[u8]) -> Option<u64> {
    const BEFORE_ID: &[u8] = b"\"id\":";
    let at = body
        .windows(BEFORE_ID.len())
        .position(|window| window == BEFORE_ID)?;
    let (id, _) = number(&body[at + BEFORE_ID.len()..]);
    (id > 0).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_what_became_of_the_request() {
        for (load, body, expected) in [
            (
                Load::Messages,
                r#"{"success":true,"message":{"id":42}}"#,
                Some(Answer::New(42)),
            ),
            (Load::Messages, r#"{"success":false}"#, None),
            (
                Load::States,
                r#"{"success":true,"changed":true,"rev":7,"subscribers":2}"#,
                Some(Answer::New(7)),
            ),
            (
                Load::EqualStates,
                r#"{"success":true,"changed":false,"rev":7,"subscribers":2}"#,
                Some(Answer::Same),
            ),
            (Load::States, r#"{"success":true}"#, None),
        ] {
            assert_eq!(answer(load, body.as_bytes()), expected, "{body}");
        }
    }
}
