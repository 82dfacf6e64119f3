//! How the server is: from memory, however busy the store is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::handlers::{RETRY_AFTER, json_body};
use super::{Api, Call};
use crate::http::Reply;
use crate::protocol::MessageId;
use crate::usage::Count;

/// Load balancers have no token; the numbers are for those who have one. 503 tells them to send
/// nobody any more: the server is about to end, or is stranded: shut out of the log that it
/// shares with others until somebody does something about it. One that only
/// misses Redis stays: so do the others, and what it has can be read.
pub(super) fn get_health(api: &Arc<Api>, call: Call) {
    let is_stranded = || {
        let link = api.journal.link();
        link.is_some_and(|link| link.status().is_stranded)
    };
    let status = if api.usage.traffic.is_draining() {
        "draining"
    } else if is_stranded() {
        "stranded"
    } else {
        "ok"
    };
    let body = if call.peer().is_known().is_ok() {
        json_body(&health(api, status))
    } else {
        json_body(&Status { status })
    };
    let mut reply = Reply::json(body);
    if status != "ok" {
        reply.status = 503;
        reply = reply.with_header("Retry-After", RETRY_AFTER.to_string());
    }
    call.reply(reply);
}

fn health(api: &Api, status: &'static str) -> Health {
    Health {
        status,
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: api.started.elapsed().as_secs(),
        connections: api.manager.active_connections(),
        head: api.journal.head(),
        backplane: api.journal.link().map(|link| Backplane::of(link.status())),
        limits: LimitReport::of(api),
    }
}

#[derive(Serialize)]
struct Status {
    status: &'static str,
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    version: &'static str,
    uptime_seconds: u64,
    connections: usize,
    head: MessageId,
    /// Left out for a server by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    backplane: Option<Backplane>,
    limits: LimitReport,
}

/// The log that several nodes share, as this one sees it.
#[derive(Serialize)]
struct Backplane {
    address: String,
    connected: bool,
    /// How long it has been away, and why; left out while it is connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    away_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Why Redis has refused the last append; left out once it takes one.
    #[serde(skip_serializing_if = "Option::is_none")]
    refuses: Option<String>,
    /// The last entry that is applied here.
    position: String,
    /// Messages that are known to be in the log and are not here yet.
    behind: u64,
    reconnects: u64,
}

impl Backplane {
    fn of(status: crate::backplane::Status) -> Self {
        let (reason, away) = status.away.unzip();
        Self {
            address: status.address,
            connected: reason.is_none(),
            away_seconds: away.map(|away| away.as_secs()),
            reason,
            refuses: status.refusal,
            position: status.applied.to_string(),
            behind: status.behind,
            reconnects: status.reconnects,
        }
    }
}

/// Every limit with a clear answer.
#[derive(Serialize)]
struct LimitReport {
    connections: Limit,
    per_address: Limit,
    subscribers: Limit,
    queued_bytes: Limit,
    message_bytes: Limit,
    feeds: Limit,
    publish_rate: Limit,
    credentials: Limit,
}

#[derive(Serialize)]
struct Limit {
    /// Left out where each address, channel or message has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<usize>,
    /// Left out where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<usize>,
    /// Since the start.
    refused: u64,
}

impl LimitReport {
    fn of(api: &Api) -> Self {
        let (limits, usage, refused) = (&api.limits, &api.usage, &api.usage.refused);
        let limit = |used, max: usize, refused: &Count| Limit {
            used,
            max: Some(max).filter(|max| *max > 0),
            refused: refused.total(),
        };
        Self {
            connections: limit(
                Some(usage.connections.load(Ordering::Relaxed)),
                limits.max_connections,
                &refused.connections,
            ),
            per_address: limit(
                None,
                limits.max_connections_per_address,
                &refused.per_address,
            ),
            subscribers: limit(None, limits.max_subscribers, &refused.subscribers),
            queued_bytes: limit(
                Some(api.journal.queued_bytes()),
                limits.max_queued_bytes,
                &refused.queued_bytes,
            ),
            message_bytes: limit(None, limits.max_body_bytes, &refused.message_bytes),
            feeds: limit(
                Some(api.manager.published_feeds()),
                limits.max_feeds,
                &refused.feeds,
            ),
            publish_rate: limit(None, api.access.publish_rate(), &refused.rate),
            credentials: limit(None, 0, &refused.credentials),
        }
    }
}
