//! What must be true of every view, whatever happened: the model that the property test holds
//! the server to. It knows nothing of sockets.

use std::collections::BTreeMap;
use std::fmt::Display;

/// What was published, in the order of sending: the place in this list is the message's number.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) sent: Vec<Sent>,
    /// Every message that is known to be committed, by id, with its number.
    log: BTreeMap<u64, usize>,
    /// The newest id that a publisher was told.
    pub(crate) acknowledged: u64,
    /// The newest id that a subscriber was given.
    pub(crate) heard: u64,
}

pub(crate) struct Sent {
    pub(crate) channel: usize,
    /// The server said no: it must never be seen.
    pub(crate) refused: bool,
}

/// Where a subscriber asked to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Live,
    Since(u64),
    Last(usize),
}

/// What one connection was given, and what was known when it began.
pub(crate) struct View {
    pub(crate) name: String,
    pub(crate) channel: usize,
    pub(crate) start: Start,
    pub(crate) began: Began,
    pub(crate) frames: Vec<Frame>,
    /// The oldest kept message, looked up after the first frame had come.
    pub(crate) oldest_then: Option<u64>,
    /// A message of the channel that it must have, if the connection lasted until the end.
    pub(crate) end: Option<u64>,
}

impl View {
    /// Everything up to this id was brought, or told to be missing.
    pub(crate) fn at(&self) -> Option<u64> {
        let places = self.frames.iter().map(|frame| match frame {
            Frame::Message(id) | Frame::CaughtUp { head: id } => *id,
            Frame::Gap { head, reason, .. } if reason == "unknown_id" => *head,
            Frame::Gap { oldest, .. } => oldest - 1,
        });
        places.max()
    }
}

/// What was known when a connection asked for its handshake.
#[derive(Clone, Copy)]
pub(crate) struct Began {
    /// How many messages were sent before.
    pub(crate) sent: usize,
    /// As in [`Model`].
    pub(crate) acknowledged: u64,
    pub(crate) heard: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Frame {
    Message(u64),
    CaughtUp {
        head: u64,
    },
    Gap {
        since: u64,
        oldest: u64,
        head: u64,
        reason: String,
        /// The oldest kept message, looked up after the frame had come.
        oldest_then: Option<u64>,
    },
}

type Verdict = Result<(), String>;

impl Model {
    /// A message is sent now; returns its number.
    pub(crate) fn send(&mut self, channel: usize) -> usize {
        self.sent.push(Sent {
            channel,
            refused: false,
        });
        self.sent.len() - 1
    }

    /// Its publisher was told that it is committed.
    pub(crate) fn acknowledge(&mut self, id: u64, number: usize) {
        self.learn(id, number);
        self.acknowledged = self.acknowledged.max(id);
    }

    /// Somebody was given it, or it is in the store.
    pub(crate) fn learn(&mut self, id: u64, number: usize) {
        assert!(!self.sent[number].refused, "{id} was refused");
        let known = *self.log.entry(id).or_insert(number);
        assert_eq!(known, number, "two messages have the id {id}");
    }

    /// The ids of a channel, ascending.
    pub(crate) fn channel(&self, channel: usize) -> Vec<u64> {
        let ids = self.log.iter();
        ids.filter(|(_, number)| self.sent[**number].channel == channel)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Whether a view is a contiguous run of its channel's log, or says where it is not.
    ///
    /// `forgets` tells whether the server may forget old messages, `oldest` is the oldest kept
    /// at the end.
    pub(crate) fn check(&self, view: &View, forgets: bool) -> Verdict {
        let reader = Reading {
            view,
            forgets,
            log: self.channel(view.channel),
            model: self,
            at: match view.start {
                Start::Since(since) => Some(since),
                Start::Live | Start::Last(_) => None,
            },
            caught_up: 0,
        };
        reader
            .read()
            .map_err(|why| format!("{}: {why}; it began {:?}", view.name, view.start))
    }
}

/// A look through one view, frame by frame.
struct Reading<'a> {
    view: &'a View,
    forgets: bool,
    log: Vec<u64>,
    model: &'a Model,
    /// The subscriber has been brought everything up to here; `None` before that is known.
    at: Option<u64>,
    caught_up: usize,
}

impl Reading<'_> {
    fn read(mut self) -> Verdict {
        let frames = &self.view.frames;
        for (place, frame) in frames.iter().enumerate() {
            let outcome = match frame {
                Frame::Message(id) => self.message(*id),
                Frame::CaughtUp { head } => self.caught_up(*head),
                Frame::Gap { .. } => self.gap(frame, place == 0),
            };
            outcome.map_err(|why| {
                let shown = &frames[place.saturating_sub(3)..frames.len().min(place + 3)];
                format!("{why}, in frame {place} ({frame:?}) of {shown:?}")
            })?;
        }
        let Some(end) = self.view.end else {
            return Ok(());
        };
        // What somebody sent before he left may be committed even later.
        if self.at < Some(end) {
            return Err(format!("it ends at {:?}, before {end}", self.at));
        }
        let asked = self.view.start != Start::Live;
        expect(self.caught_up, usize::from(asked), "`caught_up` came")
    }

    fn message(&mut self, id: u64) -> Verdict {
        let number = self.model.log[&id];
        let channel = self.model.sent[number].channel;
        expect(channel, self.view.channel, "it is of channel")?;
        match self.at {
            Some(at) if id <= at => return Err(format!("{id} comes after {at}")),
            Some(at) => self.nothing_between(at, id)?,
            None => self.first(id)?,
        }
        self.at = Some(id);
        Ok(())
    }

    /// The first message of a view whose beginning the server chose.
    fn first(&self, id: u64) -> Verdict {
        match self.view.start {
            Start::Since(_) => unreachable!("it begins somewhere"),
            Start::Live if id <= self.view.began.heard => Err(format!(
                "a live subscriber is given {id}, but others had {} before it came",
                self.view.began.heard
            )),
            Start::Live => self.no_certain_before(id),
            Start::Last(count) => self.nth_newest(count, id),
        }
    }

    /// What was sent after the handshake reaches a live subscriber.
    fn no_certain_before(&self, id: u64) -> Verdict {
        let missed = self
            .log
            .iter()
            .find(|missed| **missed < id && self.model.log[missed] >= self.view.began.sent);
        match missed {
            Some(missed) => Err(format!(
                "{missed} was sent after the handshake and is missing"
            )),
            None => Ok(()),
        }
    }

    /// `id` is the first of the newest `count`, as seen from some moment of the handshake.
    fn nth_newest(&self, count: usize, id: u64) -> Verdict {
        let began = &self.view.began;
        let sent_before = |id: &&u64| self.model.log[id] < began.sent;
        let earliest = self.place_after(began.acknowledged);
        let latest = self.log.iter().rposition(|id| sent_before(&id));
        let latest = latest.map_or(0, |place| place + 1).max(earliest);
        let place = self.place_after(id - 1);
        if place < earliest.saturating_sub(count) {
            return Err(format!("{id} is further back than {count} messages"));
        }
        let left_out = &self.log[latest.saturating_sub(count).min(place)..place];
        // Unknown when the connection ended with its first frames.
        let forgotten = self.view.oldest_then.unwrap_or(u64::MAX);
        match left_out
            .iter()
            .find(|id| !self.forgets || **id >= forgotten)
        {
            Some(missing) => Err(format!("{missing} is one of the last {count} and missing")),
            None => Ok(()),
        }
    }

    fn caught_up(&mut self, head: u64) -> Verdict {
        self.caught_up += 1;
        let began = &self.view.began;
        let due = began.heard.max(began.acknowledged);
        if head < due {
            return Err(format!("{due} was heard or acknowledged before"));
        }
        match (self.view.start, self.at) {
            (Start::Live, _) => return Err("nobody asked for it".to_owned()),
            (_, Some(at)) if head < at => return Err(format!("the view is at {at}")),
            (_, Some(at)) => self.nothing_between(at, head + 1)?,
            (_, None) => self.first(head + 1)?,
        }
        self.at = Some(head);
        Ok(())
    }

    fn gap(&mut self, frame: &Frame, first: bool) -> Verdict {
        let Frame::Gap {
            since,
            oldest,
            head,
            reason,
            oldest_then,
        } = frame
        else {
            return Ok(());
        };
        let began = &self.view.began;
        // It may be older than the store's oldest: what was broadcast last is in memory, too.
        if oldest_then.is_some_and(|then| *oldest > then) {
            return Err(format!("the oldest was {oldest_then:?} after"));
        }
        if reason == "unknown_id" {
            expect(first, true, "it is the first frame")?;
            expect(self.view.start, Start::Since(*since), "it answers")?;
            if *head >= *since || *head < began.acknowledged {
                return Err(format!("{} was acknowledged before", began.acknowledged));
            }
            self.at = Some(*head);
            return Ok(());
        }
        expect(&reason[..], "retention", "its reason is")?;
        expect(self.forgets, true, "the server may forget")?;
        if *oldest <= since + 1 {
            return Err("it leaves nothing out".to_owned());
        }
        match self.at {
            Some(at) if *since < at => return Err(format!("the view is at {at}")),
            Some(at) => self.nothing_between(at, since + 1)?,
            None if self.view.start == Start::Live => self.no_certain_before(since + 1)?,
            None => {}
        }
        // What was committed but not yet offered then comes live, even if it was forgotten since.
        if *oldest > head + 1 {
            return Err("messages behind the head may come, and before the oldest".to_owned());
        }
        self.at = Some(oldest - 1);
        Ok(())
    }

    /// No message of the channel lies between the two.
    fn nothing_between(&self, at: u64, id: u64) -> Verdict {
        match self.log.get(self.place_after(at)) {
            Some(missing) if *missing < id => Err(format!("{missing} is missing after {at}")),
            _ => Ok(()),
        }
    }

    /// How many messages of the channel there are up to this id.
    fn place_after(&self, id: u64) -> usize {
        self.log.partition_point(|other| *other <= id)
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(found: T, wanted: T, what: impl Display) -> Verdict {
    if found == wanted {
        Ok(())
    } else {
        Err(format!("{what} {found:?}, not {wanted:?}"))
    }
}
