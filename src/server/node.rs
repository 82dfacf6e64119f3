//! A server that is a node of several: its log is joined before anything runs.

use std::sync::Arc;
use std::thread;

use super::rest::route_table;
use crate::backplane::{Backplane, INTERVAL, Link, Own, Presence, Refusal};
use crate::config::{Config, Watch};
use crate::error::{Error, Result};
use crate::journal::{Journal, Node, OwnFeeds};
use crate::manager::ConnectionManager;
use crate::protocol::{LogMark, MessageId, Position, ROUTES, StoredState};
use crate::store::{Applied, Writer};

/// Joins the log that the configuration names, if it names one. When Redis cannot be reached the
/// server runs all the same, and goes on trying. Blocks for some seconds at most.
///
/// # Errors
/// [`Error::Backplane`] when somebody has to do something about it.
pub(super) fn join(
    backplane: Option<Backplane>,
    writer: &mut dyn Writer,
    mut mark: LogMark,
    head: MessageId,
    stored: &[StoredState],
    watches: &[Watch],
) -> Result<Option<Node>> {
    let Some(backplane) = backplane else {
        return Ok(None);
    };
    let own = OwnFeeds::default();
    stored.iter().for_each(|stored| own.note(stored));
    let published = |stored: &&StoredState| stored.rev.0 > 0;
    let has_content = head.0 > 0 || stored.iter().any(|stored| published(&stored));
    if !mark.has_joined() {
        // A server by itself becomes the first node with what it has.
        let here = Position::of(head);
        let has_gone_on = mark.position != here;
        mark.position = here;
        if has_content && (has_gone_on || mark.intended().is_none()) {
            backplane.intend(&mut mark);
            writer.apply(&Applied {
                messages: &[],
                states: &[],
                transitions: &[],
                hole: None,
                mark: &mark,
            })?;
        }
    }
    let states = || stored.iter().filter(published).cloned().collect();
    let is_watched = watches.iter().any(|watch| watch.feed.as_str() == ROUTES);
    let routes = (!is_watched).then(route_table);
    let joined = backplane.join(&Own {
        mark: &mark,
        has_content,
        states: &states,
        routes: routes.as_ref(),
        compare_feeds: false,
    });
    let link = Arc::new(Link::new(backplane.address(), mark.position));
    let follower = match joined {
        Ok(follower) => {
            log::info!("the backplane {} is there", backplane.address());
            Some(follower)
        }
        Err(Refusal::Fatal(sentence)) => return Err(Error::Backplane(sentence)),
        Err(Refusal::Unusable(reason)) => {
            let address = backplane.address();
            return Err(Error::Backplane(format!(
                "cannot use the backplane {address}: {reason}"
            )));
        }
        Err(Refusal::Away(reason)) => {
            log::warn!(
                "the backplane {} is away: {reason}; publishing is answered 503 until it is there",
                backplane.address()
            );
            link.set_away(&reason, false);
            None
        }
    };
    Ok(Some(Node {
        presence: Arc::new(Presence::new(backplane.clone())),
        routes,
        backplane,
        mark,
        follower,
        link,
        own,
    }))
}

/// Starts the `presence` thread, which tells the other nodes of this one's subscribers until the
/// link is stopped.
///
/// # Errors
/// When the process may not have another thread.
pub(super) fn tell(journal: &Journal, manager: &Arc<ConnectionManager>) -> Result<()> {
    let (Some(link), Some(presence)) = (journal.link(), journal.presence()) else {
        return Ok(());
    };
    let (link, presence, manager) = (Arc::clone(link), Arc::clone(presence), Arc::clone(manager));
    let tell = move || {
        let mut was_said = false;
        while !link.is_stopping() {
            let channels = manager.subscribers_by_channel().into_iter();
            let subscribers = channels
                .map(|(channel, number)| (channel.as_str().to_owned(), number))
                .collect();
            match presence.tell(&subscribers) {
                Ok(()) => {
                    link.set_heard();
                    if was_said {
                        log::info!("the other nodes hear of this node's subscribers again");
                    }
                    was_said = false;
                }
                Err(reason) => {
                    link.set_unheard(&reason);
                    // Whether Redis is there is logged by those who read it.
                    if !was_said && link.status().away.is_none() {
                        was_said = true;
                        log::warn!(
                            "the other nodes do not hear of this node's subscribers: {reason}; \
                             GET /api/channels?cluster=1 is answered 503 until they do"
                        );
                    }
                }
            }
            link.sleep(INTERVAL);
        }
        presence.leave();
    };
    // It ends by itself, some seconds after the link was stopped.
    let thread = thread::Builder::new().name("presence".to_owned());
    thread
        .spawn(tell)
        .map(drop)
        .map_err(Error::system("start a thread"))
}

/// What is asked for, if it is.
///
/// # Errors
/// [`Error::Config`].
pub(super) fn backplane(config: &Config) -> Result<Option<Backplane>> {
    config.backplane.as_ref().map(Backplane::new).transpose()
}
