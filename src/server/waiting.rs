//! Long polls: who asks for what comes next waits at the door, on its connection's own thread.
//!
//! Nothing of REST is held meanwhile: neither its thread, nor a connection of the relay, nor a
//! `query` thread. Only when there is something, or no more time, the request goes there like
//! any other. It is no subscriber: the connections bound how many wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::connection::Door;
use super::connections::Admitted;
use super::rest::awaited;
use crate::access::{On, Peer, Scope, Stay};
use crate::http::{Head, Problem};
use crate::manager::Wake;
use crate::stream::Stream;

/// What ends a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// The request is to be answered now.
    Enough,
    /// The client is gone.
    Gone,
}

/// Waits until a request can be answered that asked to wait for messages; every other one can
/// at once. Whatever is wrong with it is left to its handler.
///
/// # Errors
/// 429 or 503 when it may not wait here.
#[inline(never)]
pub(super) fn wait(
    door: &Door,
    head: &Head,
    peer: &Peer,
    stream: &Stream,
    admitted: &Admitted,
) -> Result<Waited, Problem> {
    let Some((page, longest)) = awaited(head) else {
        return Ok(Waited::Enough);
    };
    let subscribers = &door.streams.subscribers;
    // Before the look: what is revoked meanwhile is noticed.
    let mut stay = Stay::new(Arc::clone(&door.access), peer);
    let on = page.channel.as_ref().map_or(On::Everything, On::Channel);
    if peer.may(Scope::Subscribe, on).is_err() {
        return Ok(Waited::Enough);
    }
    let _counted = admitted.count(peer)?;
    let wake = Wake::new().map_err(|error| {
        let detail = format!("the server lacks a descriptor for this wait: {error}");
        Problem::unavailable(detail, 1)
    })?;
    let wake = Arc::new(wake);
    let since = page.since.unwrap_or_default();
    let deadline = Instant::now() + longest;
    // First registered, then looked: what is committed in between is seen or wakes.
    let _awaiting =
        subscribers
            .manager
            .await_messages(page.channel.clone(), since, Arc::clone(&wake));
    loop {
        wake.clear();
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || admitted.is_stopping() || stay.check(peer, on).is_err() {
            return Ok(Waited::Enough);
        }
        // A store that cannot be read is told by the handler, too.
        if !subscribers
            .reader
            .page(&page)
            .is_ok_and(|page| page.is_empty())
        {
            return Ok(Waited::Enough);
        }
        let until = stay.until().map(|end| end - Instant::now().min(end));
        let is_gone = sleep(stream, &wake, until.map_or(left, |until| until.min(left)));
        // A shutdown ends the reading side itself.
        if is_gone && !admitted.is_stopping() {
            return Ok(Waited::Gone);
        }
    }
}

/// Waits for the wake handle; whether the client has gone meanwhile.
fn sleep(stream: &Stream, wake: &Wake, timeout: Duration) -> bool {
    // What is too long to say is for ever.
    let timeout = Timespec::try_from(timeout).ok();
    let mut watched = [
        PollFd::new(stream, HUNG_UP),
        PollFd::new(wake, PollFlags::IN),
    ];
    // An interruption is one more look.
    let _ = poll(&mut watched, timeout.as_ref());
    watched[0]
        .revents()
        .intersects(HUNG_UP | PollFlags::HUP | PollFlags::ERR)
}

/// The client's end of its sending side, whatever it sent before that: nobody who closes that
/// waits a minute for an answer. Where the system does not tell, a reset is noticed.
#[cfg(target_os = "linux")]
const HUNG_UP: PollFlags = PollFlags::RDHUP;
#[cfg(not(target_os = "linux"))]
const HUNG_UP: PollFlags = PollFlags::empty();
