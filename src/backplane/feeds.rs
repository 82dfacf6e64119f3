//! Feeds when a log is joined: what Redis has and what this node has become one.

use std::time::Instant;

use super::append::{Appender, Asked, Outcome};
use super::follower::Follower;
use super::join::{Own, Refusal};
use super::{Backplane, PATIENCE, entry, random};
use crate::protocol::{Feed, Position, ROUTES, Rev, State, StoredState};

impl Backplane {
    /// Which feeds have newer states in Redis than here; those that have newer ones here are
    /// appended.
    pub(super) fn compare_feeds(
        &self,
        follower: &mut Follower,
        own: &Own<'_>,
    ) -> Result<Vec<StoredState>, Refusal> {
        let there = follower.feeds()?;
        let rev_there = |feed: &Feed| {
            let found = there.iter().find(|stored| stored.feed == *feed);
            found.map_or(Rev(0), |stored| stored.rev)
        };
        let (mut checks, mut states) = (Vec::new(), Vec::new());
        for mut stored in (own.states)() {
            let found = rev_there(&stored.feed);
            let is_other = there.iter().any(|other| {
                other.feed == stored.feed && other.rev == stored.rev && other.state != stored.state
            });
            if is_other {
                // Both were told to subscribers: the next revision decides.
                stored.rev = stored.rev.next();
            }
            if stored.rev > found {
                checks.push((stored.feed.clone(), found));
                states.push(stored);
            }
        }
        if !states.is_empty() {
            log::warn!(
                "{} feeds have newer states here than on the backplane: they are appended",
                states.len()
            );
            self.append_states(&follower.identity, &checks, &states)?;
        }
        Ok(there)
    }

    /// The routes of the newest program that came are everybody's, unless somebody else has
    /// published there.
    pub(super) fn publish_routes(
        &self,
        follower: &mut Follower,
        routes: &State,
    ) -> Result<(), Refusal> {
        let field = format!("{ROUTES}:");
        let arguments = [&self.keys.feeds, &field].map(|argument| argument.as_bytes());
        let found = follower.connection.run("HGET", &arguments)?.into_bytes();
        let found = found.and_then(|payload| entry::state(&payload));
        let rev = match &found {
            Some(found) if !found.own || routes.is_same(&found.state) => return Ok(()),
            Some(found) => found.rev,
            None => Rev(0),
        };
        let stored = StoredState {
            feed: Feed::routes(),
            rev: rev.next(),
            state: routes.as_str().to_owned(),
            own: true,
        };
        self.append_states(&follower.identity, &[(Feed::routes(), rev)], &[stored])
    }

    fn append_states(
        &self,
        identity: &str,
        checks: &[(Feed, Rev)],
        states: &[StoredState],
    ) -> Result<(), Refusal> {
        // Batches of its own, beside those of the node.
        let mut appender = Appender::new(Self {
            node: random().into(),
            ..self.clone()
        });
        let asked = Asked {
            messages: &[],
            checks,
            states,
            claims: &[],
            // The log was looked at a moment ago.
            known: Position::default(),
        };
        let deadline = Instant::now() + PATIENCE;
        match appender.append(identity, asked, deadline, &|| false) {
            Outcome::Done(_) => Ok(()),
            Outcome::Denied(failure) => Err(failure.into()),
            Outcome::Refused(reason) => Err(Refusal::Away(reason)),
            _ => Err(Refusal::Away("the feeds have just changed".to_owned())),
        }
    }
}
