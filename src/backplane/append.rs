//! Appending: one script, one round trip for a batch, and never twice.

use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;

use super::entry::{encode_message, encode_state};
use super::server::Info;
use super::{Backplane, Connection, Failure, PATIENCE, Reply, micros};
use crate::protocol::{
    Draft, Feed, Given, MessageId, Position, Receipt, Remembered, Rev, StoredState, clock,
};

const SCRIPT: &[u8] = include_bytes!("append.lua");

/// The pause before another attempt when connecting failed at once.
const RETRY: Duration = Duration::from_millis(50);

/// Why nobody knows what became of a batch that was sent to an earlier run of Redis.
const ANEW: &str = "it was started anew";

/// One node's way to append.
pub(crate) struct Appender {
    backplane: Backplane,
    connection: Option<Ready>,
    /// Of the batch at hand: a repetition has the same.
    number: u64,
}

/// A connection on which the script can be run.
struct Ready {
    connection: Connection,
    script: Vec<u8>,
    /// Which run of Redis it is to; empty if that is not said.
    run: String,
    /// What Redis' clock showed, and when.
    clock: (u64, Instant),
}

/// A batch: all of it is appended, or nothing.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// Messages, in order. They come before the states.
    pub(crate) messages: &'a [Draft],
    /// Revisions that feeds must have before it.
    pub(crate) checks: &'a [(Feed, Rev)],
    /// States, in order.
    pub(crate) states: &'a [StoredState],
    /// Requests in it that are to be done once.
    pub(crate) claims: &'a [Receipt],
    /// How far this node has the log: one that ends before that has lost its end.
    pub(crate) known: Position,
}

/// What became of a batch.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is in the log.
    Done(Appended),
    /// Nothing was appended: a feed has changed meanwhile, and the log ends here.
    Stale(Position),
    /// Nothing was appended: these claims, by their place, were done before.
    Once(Vec<(usize, Remembered)>),
    /// Nothing was appended, for this reason.
    Refused(String),
    /// Nothing was appended: Redis is there and does not take it, and may not take the next one either.
    Denied(Failure),
    /// This is not the log that was joined, or it is gone.
    Other,
    /// It may be in the log or not.
    Unknown(String),
}

/// Where a batch is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Appended {
    /// Its first message's id.
    pub(crate) first: MessageId,
    /// Its last entry's place; for an empty batch that of the log's end.
    pub(crate) last: Position,
    /// When, in microseconds since 1970.
    pub(crate) micros: u64,
}

impl Appended {
    /// A batch of nothing, which is in the log as soon as this is.
    pub(crate) fn nothing(last: Position) -> Self {
        Self {
            first: MessageId(0),
            last,
            micros: 0,
        }
    }

    /// Nothing was appended for it.
    pub(crate) fn is_nothing(&self) -> bool {
        self.first == MessageId(0)
    }
}

impl Appender {
    pub(crate) fn new(backplane: Backplane) -> Self {
        Self {
            backplane,
            connection: None,
            number: 0,
        }
    }

    /// The next [`Self::append`] is of another batch.
    pub(crate) fn next_batch(&mut self) {
        self.number += 1;
    }

    /// Appends a batch to the log of this identity; the same batch is never in it twice. Blocks
    /// until the deadline at most, or until `give_up` says so.
    pub(crate) fn append(
        &mut self,
        identity: &str,
        asked: Asked<'_>,
        deadline: Instant,
        give_up: &dyn Fn() -> bool,
    ) -> Outcome {
        // Whoever waits is told at the deadline: by then it must not be possible any more.
        let now = Instant::now();
        let latest = now + deadline.saturating_duration_since(now).mul_f64(0.9);
        // Why an answer was lost, and which run of Redis owed the first that was.
        let mut lost: Option<(String, String)> = None;
        loop {
            let sent_to = lost.as_ref().map(|(_, run)| run.as_str());
            let failure = match self.attempt(identity, asked, latest, deadline, sent_to) {
                // It is known when some node has gone on with the log.
                Ok(Outcome::Other) if lost.is_some() => Failure::Lost(ANEW.to_owned()),
                Ok(outcome) => return outcome,
                Err((failure, was_sent)) => {
                    let run = self.connection.take().map(|ready| ready.run);
                    let is_lost = matches!(failure, Failure::Lost(_));
                    if !is_lost && lost.is_none() && !was_sent {
                        return Outcome::Denied(failure);
                    }
                    if was_sent && lost.is_none() {
                        lost = Some((failure.reason(), run.unwrap_or_default()));
                    }
                    failure
                }
            };
            let now = Instant::now();
            if now + RETRY >= deadline || give_up() {
                return match lost {
                    Some((reason, _)) => Outcome::Unknown(reason),
                    None => Outcome::Refused(failure.reason()),
                };
            }
            std::thread::sleep(RETRY);
        }
    }

    /// One attempt, which Redis does not begin after `latest`; what failed, and whether Redis may
    /// have done it all the same. An earlier one was `sent_to` that run of Redis.
    fn attempt(
        &mut self,
        identity: &str,
        asked: Asked<'_>,
        latest: Instant,
        deadline: Instant,
        sent_to: Option<&str>,
    ) -> Result<Outcome, (Failure, bool)> {
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = match &mut self.connection {
            Some(ready) => ready,
            place => {
                let ready = Ready::connect(&self.backplane, left.min(PATIENCE));
                place.insert(ready.map_err(|failure| (failure, false))?)
            }
        };
        // What an earlier run had appended may be lost, together with the number that tells of it,
        // and nodes may have read it before: it is only asked whether it is there.
        let is_asked = sent_to.is_some_and(|run| run != ready.run);
        let until = latest.saturating_duration_since(ready.clock.1);
        let latest = match is_asked {
            true => 0,
            false => ready.clock.0 + u64::try_from(until.as_micros()).unwrap_or(u64::MAX / 2),
        };
        let arguments = arguments(
            &self.backplane,
            identity,
            self.number,
            latest,
            asked,
            &ready.run,
        );
        // Half of what is left, so that a connection that went silent is not all there was.
        let patience = (left / 2).min(PATIENCE);
        let patience = patience.max(Duration::from_millis(200)).min(left);
        let sent = |failure: Failure| {
            // Certificates were accepted long ago: an alert says no more than an end.
            let unknown = matches!(failure, Failure::Lost(_) | Failure::Distrust(_));
            (failure, unknown)
        };
        ready.connection.set_patience(patience).map_err(sent)?;
        let reply = match ready.run(&arguments) {
            // What it had written before stays, without the number by which it is known again.
            Err(failure) if failure.is_of_a_script() => {
                return Ok(Outcome::Unknown(failure.reason()));
            }
            reply => reply.map_err(sent)?,
        };
        let (outcome, now) = outcome(reply)
            .ok_or_else(|| (Failure::Lost("an answer made no sense".to_owned()), true))?;
        ready.clock = (now, Instant::now());
        Ok(match outcome {
            Outcome::Refused(_) if is_asked => Outcome::Unknown(ANEW.to_owned()),
            outcome => outcome,
        })
    }

    /// The next batch goes over a new connection.
    pub(crate) fn disconnect(&mut self) {
        self.connection = None;
    }
}

impl Ready {
    fn connect(backplane: &Backplane, patience: Duration) -> Result<Self, Failure> {
        let mut connection = backplane.connect(patience)?;
        let script = load(&mut connection)?;
        let run = Info::in_short(&mut connection)?.run().to_owned();
        let time = connection.run("TIME", &[])?;
        let micros = micros(&time).ok_or(Failure::Lost("TIME made no sense".to_owned()))?;
        Ok(Self {
            connection,
            script,
            run,
            clock: (micros, Instant::now()),
        })
    }

    fn run(&mut self, arguments: &[Vec<u8>]) -> Result<Reply, Failure> {
        let mut all: Vec<&[u8]> = vec![&self.script];
        all.extend(arguments.iter().map(Vec::as_slice));
        match self.connection.run("EVALSHA", &all) {
            // Redis was started anew, or somebody has flushed its scripts.
            Err(failure) if failure.is("NOSCRIPT") => {
                load(&mut self.connection)?;
                self.connection.run("EVALSHA", &all)
            }
            outcome => outcome,
        }
    }
}

fn load(connection: &mut Connection) -> Result<Vec<u8>, Failure> {
    let hash = connection.run("SCRIPT", &[b"LOAD", SCRIPT])?;
    hash.into_bytes()
        .ok_or(Failure::Lost("SCRIPT LOAD made no sense".to_owned()))
}

/// Keys and arguments, as the script has them.
fn arguments(
    backplane: &Backplane,
    identity: &str,
    number: u64,
    latest: u64,
    asked: Asked<'_>,
    run: &str,
) -> Vec<Vec<u8>> {
    let Asked {
        messages,
        checks,
        states,
        claims,
        known,
    } = asked;
    let keys = &backplane.keys;
    let text = |text: &str| text.as_bytes().to_vec();
    let count = |number: usize| number.to_string().into_bytes();
    let mut all = vec![
        count(4 + claims.len()),
        text(&keys.stream),
        text(&keys.log),
        text(&keys.feeds),
        text(&format!("{}batch:{}", keys.prefix, backplane.node)),
    ];
    all.extend(claims.iter().map(|asked| {
        let key = HEXLOWER.encode(&asked.claim.key);
        text(&format!("{}once:{key}", keys.prefix))
    }));
    all.extend([
        text(identity),
        text(&backplane.node),
        text(&number.to_string()),
        text(&latest.to_string()),
        text(&backplane.keep.to_string()),
        count(messages.len()),
        count(checks.len()),
        count(states.len()),
        count(claims.len()),
        text(run),
        text(&known.id.to_string()),
        text(&known.step.to_string()),
    ]);
    all.extend(messages.iter().map(encode_message));
    for (feed, rev) in checks {
        all.extend([text(feed.as_str()), text(&rev.to_string())]);
    }
    for stored in states {
        let (feed, rev) = (text(stored.feed.as_str()), text(&stored.rev.to_string()));
        all.extend([feed, rev, encode_state(stored)]);
    }
    for asked in claims {
        let (first, rev, changed) = match asked.given {
            Given::Ids(first) => (first.to_string(), Rev(0), false),
            Given::Rev(rev, changed) => ("-1".to_owned(), rev, changed),
        };
        all.extend([
            text(&HEXLOWER.encode(&asked.claim.fingerprint)),
            text(&first),
            text(&rev.to_string()),
            text(&format!("{} {}", u8::from(changed), asked.subscribers)),
        ]);
    }
    all
}

/// What the script says, and when it said so.
fn outcome(reply: Reply) -> Option<(Outcome, u64)> {
    let mut parts = reply.into_list()?.into_iter();
    let kind = parts.next()?;
    let now = parts.next()?.text()?.parse().ok()?;
    let outcome = match kind.text()? {
        "done" => Outcome::Done(appended(parts.next()?.text()?)?),
        "stale" => Outcome::Stale(parts.next()?.text()?.parse().ok()?),
        "late" => Outcome::Refused("it took too long".to_owned()),
        "other" => Outcome::Other,
        "once" => {
            let mut found = Vec::new();
            while let (Some(place), Some(receipt)) = (parts.next(), parts.next()) {
                found.push((place.text()?.parse().ok()?, remembered(receipt.text()?)?));
            }
            Outcome::Once(found)
        }
        _ => return None,
    };
    Some((outcome, now))
}

fn appended(text: &str) -> Option<Appended> {
    let mut parts = text.split(' ');
    Some(Appended {
        first: MessageId(parts.next()?.parse().ok()?),
        last: parts.next()?.parse().ok()?,
        micros: parts.next()?.parse().ok()?,
    })
}

fn remembered(text: &str) -> Option<Remembered> {
    let mut parts = text.split(' ');
    let fingerprint = HEXLOWER.decode(parts.next()?.as_bytes()).ok()?;
    let number = parts.next()?.parse().ok()?;
    let changed = parts.next()? == "1";
    let subscribers = parts.next()?.parse().ok()?;
    Some(Remembered {
        fingerprint: fingerprint.try_into().ok()?,
        timestamp: clock::at(parts.next()?.parse().ok()?),
        number,
        changed,
        subscribers,
    })
}
