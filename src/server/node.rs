//! A server that is a node of several: its log is joined before anything runs.

use std::sync::Arc;

use crate::backplane::{Backplane, Link, Own, Refusal};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::journal::{Node, OwnFeeds};
use crate::protocol::{LogMark, MessageId, Position, StoredState};

/// Joins the log that the configuration names, if it names one. When Redis cannot be reached the
/// server runs all the same, and goes on trying. Blocks for some seconds at most.
///
/// # Errors
/// [`Error::Backplane`] when somebody has to do something about it.
pub(super) fn join(
    backplane: Option<Backplane>,
    mut mark: LogMark,
    head: MessageId,
    stored: &[StoredState],
) -> Result<Option<Node>> {
    let Some(backplane) = backplane else {
        return Ok(None);
    };
    if mark.identity.is_empty() {
        // A server by itself becomes the first node with what it has.
        mark.position = Position::of(head);
    }
    let own = OwnFeeds::default();
    stored.iter().for_each(|stored| own.note(stored));
    let published = |stored: &&StoredState| stored.rev.0 > 0;
    let states = || stored.iter().filter(published).cloned().collect();
    let joined = backplane.join(&Own {
        mark: &mark,
        has_content: head.0 > 0 || stored.iter().any(|stored| published(&stored)),
        states: &states,
        compare_feeds: false,
    });
    let link = Arc::new(Link::new(backplane.address(), mark.position));
    let follower = match joined {
        Ok(follower) => {
            log::info!("the backplane {} is there", backplane.address());
            Some(follower)
        }
        Err(Refusal::Fatal(sentence)) => return Err(Error::Backplane(sentence)),
        Err(Refusal::Away(reason)) => {
            log::warn!(
                "the backplane {} is away: {reason}; publishing is answered 503 until it is there",
                backplane.address()
            );
            link.set_away(&reason);
            None
        }
    };
    Ok(Some(Node {
        backplane,
        mark,
        follower,
        link,
        own,
    }))
}

/// What is asked for, if it is.
///
/// # Errors
/// [`Error::Config`].
pub(super) fn backplane(config: &Config) -> Result<Option<Backplane>> {
    config.backplane.as_ref().map(Backplane::new).transpose()
}
