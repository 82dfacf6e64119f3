//! The routes of feeds: publish a state, read one, list them all.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::Serialize;

use super::handlers::json_body;
use super::{Api, Call, idempotency};
use crate::access::{On, Peer, Scope};
use crate::error::{Error, Result};
use crate::frame::StateFrame;
use crate::http::{Problem, Reply};
use crate::manager::FeedStatus;
use crate::protocol::{Feed, Published, State};

/// What browsers and proxies may do with a state, or the console: keep it, and ask every time
/// whether it still is the last one.
pub(super) const CACHE_CONTROL: &str = "no-cache";

pub(super) fn put_state(api: &Arc<Api>, mut call: Call) {
    let asked = feed(&call).and_then(|feed| {
        call.peer().may(Scope::State, On::Feed(&feed))?;
        let body = body(&mut call)?;
        let claim = idempotency::claim(&call, &body)?;
        Ok((feed, state(&body)?, claim))
    });
    let (feed, state, claim) = match asked {
        Ok(asked) => asked,
        Err(problem) => return call.reply(problem.into()),
    };
    if let Err(problem) = api.check_room(call.peer(), 1) {
        return call.reply(problem.into());
    }
    let answer = move |outcome: Result<Published>| match outcome {
        Ok(published) => {
            let reply = Reply::json(json_body(&Answer {
                success: true,
                published,
            }));
            call.reply(idempotency::mark(reply, published.replayed));
        }
        Err(error @ Error::TooManyFeeds { .. }) => {
            call.reply(Problem::field("feed", error.to_string()).into());
        }
        Err(error) => call.reply(Problem::from(&error).into()),
    };
    api.journal
        .publish_once(feed, state, claim, Box::new(answer));
}

#[derive(Serialize)]
struct Answer {
    success: bool,
    #[serde(flatten)]
    published: Published,
}

/// Answers from memory, however busy the store is.
pub(super) fn get_state(api: &Arc<Api>, call: Call) {
    let feed = feed(&call).and_then(|feed| may_read(call.peer(), &feed).map(|()| feed));
    let feed = match feed {
        Ok(feed) => feed,
        Err(problem) => return call.reply(problem.into()),
    };
    let state = api.manager.last_state(&feed);
    let etag = etag(&state);
    let is_known = call
        .header("If-None-Match")
        .is_some_and(|known| lists(known, &etag));
    let reply = Reply::json(state.json().to_vec())
        .with_header("ETag", etag)
        .with_header("Cache-Control", CACHE_CONTROL);
    call.reply(if is_known {
        reply.not_modified()
    } else {
        reply
    });
}

/// Answers from memory, too.
pub(super) fn get_states(api: &Arc<Api>, call: Call) {
    let peer = call.peer();
    let mut feeds = api.manager.feeds();
    feeds.retain(|status| may_read(peer, &status.feed).is_ok());
    // Paths, commands and what they say are for those who look after the machine.
    if peer.may(Scope::Admin, On::Anything).is_err() {
        feeds.iter_mut().for_each(|status| status.watch = None);
    }
    call.reply(Reply::json(json_body(&FeedList { feeds })));
}

#[derive(Serialize)]
struct FeedList {
    feeds: Vec<FeedStatus>,
}

/// Whoever publishes a state may read it, too.
fn may_read(peer: &Peer, feed: &Feed) -> Result<(), Problem> {
    let subscribes = peer.may(Scope::Subscribe, On::Feed(feed));
    subscribes.or_else(|problem| {
        let publishes = peer.may(Scope::State, On::Feed(feed));
        publishes.map_err(|_| problem)
    })
}

/// The feed that the path names.
fn feed(call: &Call) -> Result<Feed, Problem> {
    call.last_segment()?
        .parse()
        .map_err(|detail| Problem::field("feed", format!("`feed` in the path: {detail}")))
}

/// The body. A type that only says «curl -d» is no obstacle: no page can send a PUT to a
/// stranger without being asked first.
fn body(call: &mut Call) -> Result<Vec<u8>, Problem> {
    call.body(&["application/x-www-form-urlencoded"])
}

fn state(body: &[u8]) -> Result<State, Problem> {
    State::parse(body).map_err(|error| Problem::new(400, format!("the body is not JSON: {error}")))
}

/// The rev, and a hash of the state: in a new database revisions begin again, and what a
/// client knows from the one before must not count as known.
fn etag(state: &StateFrame) -> String {
    let mut hasher = DefaultHasher::new();
    state.state().hash(&mut hasher);
    format!("\"{}-{:x}\"", state.rev, hasher.finish())
}

/// Whether an `If-None-Match` names this tag (RFC 9110, sections 13.1.2 and 8.8.3.2: weak
/// comparison).
pub(super) fn lists(header: &str, etag: &str) -> bool {
    header
        .split(',')
        .map(str::trim)
        .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_in_every_form_of_the_header() {
        for header in ["\"7\"", "W/\"7\"", "\"6\", \"7\"", "*", " \"7\" ,W/\"8\""] {
            assert!(lists(header, "\"7\""), "{header}");
        }
        for header in ["", "7", "\"77\"", "\"6\", \"8\"", "W/"] {
            assert!(!lists(header, "\"7\""), "{header}");
        }
    }
}
