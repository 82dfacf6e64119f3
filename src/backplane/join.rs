//! Joining the log: whether it is one, whether it is this node's, and from where it goes on.

use super::entry::{self, Entry, mark_header};
use super::follower::Follower;
use super::server::Info;
use super::{Backplane, Connection, Failure, PATIENCE, Reply, eval, micros, setup};
use crate::protocol::{LogMark, MessageId, Position, State, StoredState};

const CREATE: &[u8] = include_bytes!("create.lua");
const RAISE: &[u8] = include_bytes!("raise.lua");

/// Streams are in Redis since 5.0.
const OLDEST_MAJOR: u32 = 5;

/// Ids that are left out at least when Redis has lost the end of the log, so that none is given to
/// two messages: other nodes may have more of it than the one that goes on first.
///
/// And it goes on at no less than the microseconds since [`BEGIN`], which is more than any stream has
/// entries: whatever was lost before, an earlier jump and what followed it included, is below that.
const MARGIN: u64 = 1_000_000;

/// 2026-01-01, in microseconds since 1970. Ids stay below 2^53, where JavaScript's numbers end, for
/// 285 years.
const BEGIN: u64 = 1_767_225_600_000_000;

/// What a node has when it joins.
pub(crate) struct Own<'a> {
    /// The log it was in, and how far it had it.
    pub(crate) mark: &'a LogMark,
    /// It has messages or states, of a log or of its own.
    pub(crate) has_content: bool,
    /// Its feeds, when they are asked for.
    pub(crate) states: &'a dyn Fn() -> Vec<StoredState>,
    /// The server's own state of the feed `routes`, if it makes it.
    pub(crate) routes: Option<&'a State>,
    /// It has reason to think that feeds are not what they should be.
    pub(crate) compare_feeds: bool,
}

/// Why a log was not joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Somebody has to do something about it.
    Fatal(String),
    /// Redis is not set up for it. A server that starts has been given the wrong one; one that has
    /// used it may find it better in a moment, as after a failover.
    Unusable(String),
    /// It may be better in a moment.
    Away(String),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match setup::fault(&failure) {
            Some(reason) => Self::Unusable(reason),
            None => Self::Away(failure.reason()),
        }
    }
}

impl Backplane {
    /// Joins the log, or begins it. Blocks for some seconds at most. Nothing is written to a log
    /// that is refused.
    pub(crate) fn join(&self, own: &Own<'_>) -> Result<Follower, Refusal> {
        let mut connection = self.connect(PATIENCE)?;
        // TLS may have been so far without a look at this side's certificate.
        let info = Info::of(&mut connection)?;
        self.check_version(info.version())?;
        self.check_setup(&mut connection, &info)?;
        let run = info.run();
        let position = own.mark.position;
        let mut compare = own.compare_feeds;
        let mut found = self.look(&mut connection, own)?;
        if found.is_none() {
            self.create(&mut connection, own, run)?;
            // Another node may have been faster.
            found = self.look(&mut connection, own)?;
        }
        let Some(identity) = found else {
            return Err(Refusal::Away(
                "the log that has just begun is gone".to_owned(),
            ));
        };
        self.check_identity(&identity, own)?;
        let mut last = self.last(&mut connection)?;
        compare |= position == Position::default() || position > last;
        if position > Position::default() && position <= last {
            compare |= !self.has_not_diverged(&mut connection, own.mark)?;
        }
        if run.is_empty() {
            log::warn!(
                "the backplane {} does not say which run of it this is (INFO server): \
                 if it loses the end of the log, ids may be given twice",
                self.address()
            );
        }
        let before = self.last_run(&mut connection)?;
        if position > last || (before != run && !run.is_empty()) {
            last = self.raise(&mut connection, &identity, position, last, [&before, run])?;
        }
        let mut follower = Follower {
            connection,
            stream: self.keys.stream.clone(),
            feeds: self.keys.feeds.clone(),
            identity,
            position,
            portion: Default::default(),
            states: Vec::new(),
            has_jumped: false,
        };
        if compare {
            follower.states = self.compare_feeds(&mut follower, own)?;
        }
        if let Some(routes) = own.routes {
            self.publish_routes(&mut follower, routes)?;
        }
        if last > position && follower.is_at_the_end()? {
            (follower.position, follower.has_jumped) = (last, true);
        }
        Ok(follower)
    }

    fn check_identity(&self, found: &str, own: &Own<'_>) -> Result<(), Refusal> {
        let mark = own.mark;
        let stream = &self.keys.stream;
        if mark.has_joined() && found != mark.identity {
            return Err(self.fatal(&format!(
                "it has another log than this database was in; take the database of that log \
                 or a new one with --db, or another key with --backplane-key (now {stream:?})"
            )));
        }
        // Without one it begins a log of the name that it takes for its own.
        if !mark.has_joined() && own.has_content && found != self.own_identity(mark) {
            return Err(self.fatal(&format!(
                "this database has messages of its own, and Redis has another log, of other nodes \
                 or begun before this server went on by itself; take a new database with --db, or another key with --backplane-key (now {stream:?})"
            )));
        }
        Ok(())
    }

    pub(super) fn fatal(&self, what: &str) -> Refusal {
        Refusal::Fatal(format!(
            "cannot use the backplane {}: {what}",
            self.address()
        ))
    }

    fn check_version(&self, version: &str) -> Result<(), Refusal> {
        let major = version.split('.').next();
        match major.and_then(|major| major.parse::<u32>().ok()) {
            Some(major) if major < OLDEST_MAJOR => Err(self.fatal(&format!(
                "it is Redis {version}, which has no streams; use Redis 5.0 or newer, or Valkey"
            ))),
            // Whoever may not ask is not asked to prove it.
            _ => Ok(()),
        }
    }

    /// The run of Redis in which the log was last gone on with, if it is noted.
    fn last_run(&self, connection: &mut Connection) -> Result<String, Refusal> {
        let log = self.keys.log.as_bytes();
        let noted = connection.run("HGET", &[log, b"run"])?;
        Ok(noted.text().unwrap_or_default().to_owned())
    }

    /// Begins a log where this node is, or, if it was in one that is gone, well behind that.
    fn create(&self, connection: &mut Connection, own: &Own<'_>, run: &str) -> Result<(), Refusal> {
        let position = own.mark.position;
        let new = self.own_identity(own.mark);
        let mut identity = new.as_str();
        let mut first = position.next_step();
        let micros = self.time(connection)?;
        if own.mark.has_joined() {
            self.check_place(&own.mark.identity)?;
            identity = &own.mark.identity;
            first = behind(position, micros);
            log::warn!(
                "the backplane {} has no log any more: a new one begins behind {}",
                self.address(),
                first.id
            );
        }
        let (first, header) = (
            first.to_string(),
            mark_header(&position.to_string(), micros),
        );
        let mut arguments: Vec<Vec<u8>> = [identity, &first, &header, run]
            .map(|argument| argument.as_bytes().to_vec())
            .into();
        for stored in (own.states)() {
            arguments.extend([
                stored.feed.as_str().as_bytes().to_vec(),
                stored.rev.to_string().into_bytes(),
                entry::encode_state(&stored),
            ]);
        }
        let keys = [&self.keys.stream, &self.keys.log, &self.keys.feeds];
        eval(connection, CREATE, &keys, &arguments)?;
        Ok(())
    }

    /// What Redis' clock shows, in microseconds since 1970.
    fn time(&self, connection: &mut Connection) -> Result<u64, Refusal> {
        let time = connection.run("TIME", &[])?;
        micros(&time).ok_or_else(|| Refusal::Away("TIME made no sense".to_owned()))
    }

    /// The last id that the stream has given.
    fn last(&self, connection: &mut Connection) -> Result<Position, Refusal> {
        let info = match connection.run("XINFO", &[b"STREAM", self.keys.stream.as_bytes()]) {
            Ok(info) => info.into_list().unwrap_or_default(),
            // The stream was deleted, but not which log it was.
            Err(Failure::Refused { reason, .. }) if reason.contains("no such key") => {
                return Ok(Position::default());
            }
            Err(failure) => return Err(failure.into()),
        };
        let mut pairs = info.chunks(2);
        let last = pairs.find_map(|pair| match pair {
            [name, value] if name.text() == Some("last-generated-id") => value.text(),
            _ => None,
        });
        last.and_then(|last| last.parse().ok())
            .ok_or_else(|| Refusal::Away("XINFO made no sense".to_owned()))
    }

    /// Redis has lost the end of the log, or was started anew and may have: nobody else may get
    /// the ids that were in it. Where the log goes on then.
    fn raise(
        &self,
        connection: &mut Connection,
        identity: &str,
        position: Position,
        last: Position,
        [before, run]: [&str; 2],
    ) -> Result<Position, Refusal> {
        let end = position.max(last);
        let micros = self.time(connection)?;
        let next = behind(end, micros);
        let address = self.address();
        let header = mark_header(&end.to_string(), micros);
        let arguments = [
            identity,
            &last.to_string(),
            before,
            &next.to_string(),
            &header,
            run,
        ]
        .map(|argument| argument.as_bytes().to_vec());
        let keys = [&self.keys.stream, &self.keys.log];
        let Reply::Number(1) = eval(connection, RAISE, &keys, &arguments)? else {
            return Err(Refusal::Away("the log has just changed".to_owned()));
        };
        if position > last {
            log::warn!(
                "the backplane {address} has lost the end of the log: it ends at {last}, this node has {position}; \
                 it goes on behind {}",
                next.id
            );
        } else {
            log::info!(
                "the backplane {address} was started anew: in case it has lost the end of the log, it goes on behind {}",
                next.id
            );
        }
        Ok(next)
    }

    /// Whether the entry that this node had last is still there, if it is the same; another one
    /// in its place is of another history.
    fn has_not_diverged(
        &self,
        connection: &mut Connection,
        mark: &LogMark,
    ) -> Result<bool, Refusal> {
        let at = mark.position.to_string();
        let arguments = [&self.keys.stream, &at, &at].map(|argument| argument.as_bytes());
        let found = connection
            .run("XRANGE", &arguments)?
            .into_list()
            .unwrap_or_default();
        let Some(entry) = found.into_iter().next().and_then(Entry::read) else {
            return Ok(false);
        };
        if mark.batch.is_empty() || entry.batch.is_empty() || entry.batch == mark.batch {
            return Ok(true);
        }
        Err(self.fatal(&format!(
            "its log has another entry at {at} than this database: they went apart there; \
             take a new database with --db, which fills from the log"
        )))
    }
}

/// Where a log goes on whose end was here, or further, and is lost.
fn behind(end: Position, micros: u64) -> Position {
    let elapsed = micros.saturating_sub(BEGIN);
    Position {
        id: MessageId((end.id.0 + MARGIN).max(elapsed)),
        step: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_end_is_jumped_over_whatever_the_clock_says() {
        let year = 365 * 24 * 3600 * 1_000_000;
        for (id, micros, then) in [
            (5, BEGIN + year, year),
            // More than there can be, or a clock that is wrong.
            (2 * year, BEGIN + year, 2 * year + MARGIN),
            (5, 0, 5 + MARGIN),
        ] {
            let end = Position {
                id: MessageId(id),
                step: 3,
            };
            let next = behind(end, micros);
            assert_eq!((next.id.0, next.step), (then, 1));
        }
    }
}
