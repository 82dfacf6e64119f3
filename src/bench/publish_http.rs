//! One HTTP publisher: a keep-alive connection, one `POST /api/messages` or
//! `PUT /api/state/{feed}` at a time.

use std::time::Duration;

use serde::Deserialize;

use super::exchange::Connection;
use super::plan::{Load, Plan, Schedule};
use super::publishers::{PAUSE, Published};
use super::requests::Requests;
use super::scanner::{number, shortened};

/// Pause after a refusal: whoever is told to come back later does.
const AFTER_REFUSAL: Duration = Duration::from_millis(10);

pub(super) struct HttpPublisher {
    connection: Connection,
    plan: Plan,
    index: usize,
    requests: Requests,
}

impl HttpPublisher {
    pub(super) fn connect(plan: Plan, index: usize) -> Result<Self, String> {
        Ok(Self {
            connection: Connection::connect(plan.address)?,
            plan,
            index,
            requests: match plan.load {
                Load::Messages => Requests::messages(&plan),
                Load::States => Requests::states(&plan, index),
                Load::EqualStates => Requests::equal_states(&plan),
            },
        })
    }

    /// Publishes until `end`, to all channels in turn.
    pub(super) fn run(
        mut self,
        mut published: Published,
        mut schedule: Schedule,
        end: u64,
    ) -> Published {
        let channels = self.plan.channels;
        let mut channel = self.index % channels.count;
        while schedule.due().max(self.plan.clock.now()) < end {
            self.plan.clock.sleep_until(schedule.due());
            if !published.may_publish() {
                std::thread::sleep(PAUSE);
                continue;
            }
            schedule.count();
            let sent = self.plan.clock.now();
            let request = self.requests.next(channels, channel, sent);
            match self.connection.exchange(request) {
                Ok((200, body)) => {
                    let now = self.plan.clock.now();
                    match answer(self.plan.load, &body) {
                        Some(Answer::New(id)) => published.acknowledge(channel, id, sent, now),
                        Some(Answer::Same) => published.acknowledge_unchanged(sent, now),
                        None => published.refuse(|| {
                            format!("an answer without an id or a rev: {}", shortened(&body))
                        }),
                    }
                }
                Ok((status, body)) => {
                    published.refuse(|| format!("status {status}: {}", shortened(&body)));
                    std::thread::sleep(AFTER_REFUSAL);
                }
                Err(error) => {
                    published.failure = Some(format!("HTTP publisher {}: {error}", self.index));
                    break;
                }
            }
            channel = (channel + self.plan.publishers) % channels.count;
        }
        published
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
