//! Feeds at the start: the states of before, and those that the server makes itself.

use super::rest::route_table;
use crate::config::Watch;
use crate::frame::StateFrame;
use crate::history::History;
use crate::manager::ConnectionManager;
use crate::protocol::{Feed, ROUTES, Rev, State, WORKFLOW_HISTORY};
use crate::store::{Batch, StoredState, Writer};

/// Gives every feed the state it had, and `routes` the route table of this program, which goes
/// to the store; without a writer, only if it has none yet. Returns the history of workflows, if
/// the server is to go on with it.
pub(super) fn restore(
    manager: &ConnectionManager,
    mut states: Vec<StoredState>,
    watches: &[Watch],
    writer: Option<&mut dyn Writer>,
) -> Option<History> {
    let is_watched = |name: &str| watches.iter().any(|watch| watch.feed.as_str() == name);
    if !is_watched(ROUTES) {
        publish_routes(&mut states, &route_table(), writer);
    }
    for stored in &states {
        let state = StateFrame::new(&stored.feed, &stored.state, stored.rev);
        manager.restore(&stored.feed, state);
    }
    let last = states
        .iter()
        .find(|stored| stored.feed.as_str() == WORKFLOW_HISTORY);
    match last {
        _ if is_watched(WORKFLOW_HISTORY) => None,
        None => Some(History::default()),
        Some(stored) => stored.own.then(|| History::restore(&stored.state)),
    }
}

/// The first table is what the feed starts with; another one, of a newer program, is a change.
/// What somebody else has published there stays.
fn publish_routes(states: &mut Vec<StoredState>, table: &State, writer: Option<&mut dyn Writer>) {
    let at = states
        .iter()
        .position(|stored| stored.feed.as_str() == ROUTES);
    let rev = match at.map(|at| &states[at]) {
        None => Rev(0),
        Some(stored) if !stored.own || table.is_same(&stored.state) => return,
        // What all nodes have is not for one of them to change.
        Some(_) if writer.is_none() => return,
        Some(stored) => stored.rev.next(),
    };
    let routes = StoredState {
        feed: Feed::routes(),
        rev,
        state: table.as_str().to_owned(),
        own: true,
    };
    let batch = Batch {
        drafts: &[],
        states: std::slice::from_ref(&routes),
        transitions: &[],
        receipts: &[],
        timestamp: "",
    };
    if let Some(writer) = writer
        && let Err(error) = writer.commit(&batch)
    {
        log::warn!("the feed {ROUTES} is not stored: {error}");
    }
    match at {
        Some(at) => states[at] = routes,
        None => states.push(routes),
    }
}
