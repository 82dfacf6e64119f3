//! The one route table: dispatch, 404, 405 and `Allow`, and what the server says of itself.

use std::sync::Arc;

use serde::Serialize;

use super::handlers::json_body;
use super::{Api, Call, admin, handlers, health, metrics, openapi, publishing, states};
use crate::access::{On, Peer, Scope};
use crate::http::Problem;
use crate::protocol::State;

/// A method on a path.
#[derive(Serialize)]
pub struct Route {
    /// The path; a segment `{name}` stands for any one segment.
    pub path: &'static str,
    /// The method; GET answers HEAD too.
    pub method: &'static str,
    /// The handler's name.
    pub name: &'static str,
    /// What it is for, in one line.
    pub summary: &'static str,
    /// What a client has to know.
    pub description: &'static str,
    /// What it belongs to.
    pub tags: &'static [&'static str],
    #[serde(skip)]
    pub(super) needs: Needs,
    #[serde(skip)]
    pub(super) handler: fn(&Arc<Api>, Call),
}

impl Route {
    /// Whether it publishes something.
    pub(super) fn publishes(&self) -> bool {
        matches!(self.needs, Needs::Scope(Scope::Publish | Scope::State))
    }

    /// Runs the handler, if the caller may have it run.
    pub(super) fn answer(&self, api: &Arc<Api>, call: Call) {
        match self.needs.check(call.peer()) {
            Ok(()) => (self.handler)(api, call),
            Err(problem) => call.reply(problem.into()),
        }
    }
}

/// What whoever calls a route must be or have, where there are tokens; the handler asks for the
/// channel or feed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Needs {
    Nothing,
    /// Any token that is valid.
    Token,
    Scope(Scope),
}

impl Needs {
    /// # Errors
    /// 401 or 403.
    pub(super) fn check(self, peer: &Peer) -> Result<(), Problem> {
        match self {
            Self::Nothing => Ok(()),
            Self::Token => peer.is_known(),
            Self::Scope(scope) => peer.may(scope, On::Anything),
        }
    }
}

/// Every route of the server.
pub const ROUTES: &[Route] = &[
    Route {
        method: "GET",
        path: "/",
        name: "index",
        summary: "Commands to paste; the console for a browser",
        description: "Plain text: how to subscribe, publish and look, with this server's address. Who accepts text/html gets a page that does all that.",
        tags: &["server"],
        needs: Needs::Nothing,
        handler: handlers::index,
    },
    Route {
        method: "POST",
        path: "/api/messages",
        name: "post_message",
        summary: "Store a message and broadcast it to its channel",
        description: "A JSON object with `channel_id`, `author` and `content`, and if you like `lane`, `provider` and `token_count`. 200 means that it is committed. Of the type application/x-ndjson, application/jsonl or application/x-jsonlines: such an object in each line, all stored or none.",
        tags: &["messages"],
        needs: Needs::Scope(Scope::Publish),
        handler: publishing::post_message,
    },
    Route {
        method: "POST",
        path: "/api/channels/{channel_id}/messages",
        name: "post_to_channel",
        summary: "Store the body as a message of a channel, and broadcast it",
        description: "The body is the content, UTF-8 of any type but JSON. Query: `author` (default unknown), `lane`, `provider`, `token_count`. JSON is what POST /api/messages takes, without `channel_id`.",
        tags: &["messages"],
        needs: Needs::Scope(Scope::Publish),
        handler: publishing::post_to_channel,
    },
    Route {
        method: "GET",
        path: "/api/messages",
        name: "get_messages",
        summary: "Read the history, of one channel or of all",
        description: "Ascending ids. Query: `channel_id`, `since`, `before`, `limit` (1 to 1000, default 200); without `since` the newest. With `since` and `wait` (up to 60 seconds) the answer waits for the next message if there is none.",
        tags: &["messages"],
        needs: Needs::Scope(Scope::Subscribe),
        handler: handlers::get_messages,
    },
    Route {
        method: "GET",
        path: "/api/channels",
        name: "get_channels",
        summary: "List the channels with their counts",
        description: "By name, with messages, newest id and subscribers; with `cluster=1` those of all servers that share a log, or 503 when they cannot be counted.",
        tags: &["messages"],
        needs: Needs::Scope(Scope::Subscribe),
        handler: handlers::get_channels,
    },
    Route {
        method: "GET",
        path: "/api/summary",
        name: "get_summary",
        summary: "Count messages and tokens, by provider and lane",
        description: "Messages and tokens in total; null and empty providers and lanes are left out.",
        tags: &["messages"],
        needs: Needs::Scope(Scope::Subscribe),
        handler: handlers::get_summary,
    },
    Route {
        method: "GET",
        path: "/api/health",
        name: "get_health",
        summary: "Tell that the server is up, and its newest id",
        description: "Status, version, uptime, subscribers connected, newest id, and every limit with what is used of it and how often it refused something; from memory. 503 with the status `draining` once the server is about to end, `stranded` while it is shut out of the log that it shares with others.",
        tags: &["server"],
        needs: Needs::Nothing,
        handler: health::get_health,
    },
    Route {
        method: "GET",
        path: "/api/openapi.json",
        name: "get_openapi",
        summary: "Describe every route, for programs",
        description: "This server's routes as an OpenAPI 3.1 document. Its ETag changes with it: `If-None-Match` is answered 304.",
        tags: &["server"],
        needs: Needs::Nothing,
        handler: openapi::get_openapi,
    },
    Route {
        method: "GET",
        path: "/metrics",
        name: "get_metrics",
        summary: "Everything that is counted, for Prometheus",
        description: "Prometheus' text format, version 0.0.4. For the scope `admin`, or without tokens for clients of the same machine.",
        tags: &["admin"],
        needs: Needs::Scope(Scope::Admin),
        handler: metrics::get_metrics,
    },
    Route {
        method: "GET",
        path: "/api/ws/{channel_id}",
        name: "subscribe_channel",
        summary: "Subscribe to a channel and publish to it, over WebSocket",
        description: "Every message of the channel as a text frame, in ascending order of ids; `message`, `ping` and `client_ready` frames are taken.",
        tags: &["messages", "websocket"],
        needs: Needs::Scope(Scope::Subscribe),
        handler: handlers::upgrade_required,
    },
    Route {
        method: "GET",
        path: "/api/sse/{channel_id}",
        name: "stream_channel",
        summary: "Subscribe to a channel, as an event stream",
        description: "Server-Sent Events for `curl -N` and `EventSource`: every message of the channel as `data:`, its id as `id:`. Query: `since`, `last`; a `Last-Event-ID` header comes first.",
        tags: &["messages", "sse"],
        needs: Needs::Scope(Scope::Subscribe),
        handler: handlers::event_stream,
    },
    Route {
        method: "PUT",
        path: "/api/state/{feed}",
        name: "put_state",
        summary: "Publish a feed's state",
        description: "Any JSON value. Subscribers hear of it if it differs from the last one as a value; the answer says so, with the revision.",
        tags: &["feeds"],
        needs: Needs::Scope(Scope::State),
        handler: states::put_state,
    },
    Route {
        method: "GET",
        path: "/api/state/{feed}",
        name: "get_state",
        summary: "Read a feed's last state",
        description: "The same object as the subscribers' frame. The revision is its ETag: `If-None-Match` is answered 304.",
        tags: &["feeds"],
        needs: Needs::Token,
        handler: states::get_state,
    },
    Route {
        method: "GET",
        path: "/api/state",
        name: "get_states",
        summary: "List the feeds",
        description: "By name, with revision and subscribers; watched ones with how their source fares.",
        tags: &["feeds"],
        needs: Needs::Token,
        handler: states::get_states,
    },
    Route {
        method: "GET",
        path: "/api/connections",
        name: "get_connections",
        summary: "List the subscribers that are connected",
        description: "Each with its kind, channel or feed, address, token, how far it is and what waits for it. For the scope `admin`, or without tokens for clients of the same machine.",
        tags: &["admin"],
        needs: Needs::Scope(Scope::Admin),
        handler: admin::get_connections,
    },
    Route {
        method: "DELETE",
        path: "/api/connections/{id}",
        name: "delete_connection",
        summary: "Close a subscriber's connection",
        description: "With the close code 1008. For the scope `admin`, or without tokens for clients of the same machine.",
        tags: &["admin"],
        needs: Needs::Scope(Scope::Admin),
        handler: admin::delete_connection,
    },
    Route {
        method: "GET",
        path: "/ws/{feed}",
        name: "subscribe_feed",
        summary: "Subscribe to a feed, over WebSocket",
        description: "The last state at once, then every change; a slow client may skip states, never the newest.",
        tags: &["feeds", "websocket"],
        needs: Needs::Scope(Scope::Subscribe),
        handler: handlers::upgrade_required,
    },
    Route {
        method: "GET",
        path: "/sse/{feed}",
        name: "stream_feed",
        summary: "Subscribe to a feed, as an event stream",
        description: "Server-Sent Events for `curl -N` and `EventSource`: the last state at once, then every change as `data:`, its revision as `id:`.",
        tags: &["feeds", "sse"],
        needs: Needs::Scope(Scope::Subscribe),
        handler: handlers::event_stream,
    },
    Route {
        method: "GET",
        path: "/api/v1/ws/{feed}",
        name: "subscribe_feed_v1",
        summary: "Subscribe to a feed, over WebSocket",
        description: "The same as /ws/{feed}.",
        tags: &["feeds", "websocket"],
        needs: Needs::Scope(Scope::Subscribe),
        handler: handlers::upgrade_required,
    },
];

/// The REST routes as the `routes` feed shows them: those that answer a request and are done.
pub(in crate::server) fn route_table() -> State {
    let rest: Vec<&Route> = ROUTES
        .iter()
        .filter(|route| {
            let mut tags = route.tags.iter();
            !tags.any(|tag| matches!(*tag, "websocket" | "sse"))
        })
        .collect();
    State::parse(&json_body(&rest)).expect("strings always have a JSON form")
}

pub(super) enum Found {
    Route(&'static Route),
    /// OPTIONS, which every path answers: the methods it has.
    Options(String),
    /// The path has only these methods.
    OtherMethods(String),
    Nothing,
}

pub(super) fn find(method: &str, path: &str) -> Found {
    if path == "*" {
        return Found::Options("GET, HEAD, POST, PUT, DELETE, OPTIONS".to_owned());
    }
    let wanted = if method == "HEAD" { "GET" } else { method };
    let mut allow = Vec::new();
    for route in ROUTES.iter().filter(|route| matches(route.path, path)) {
        if route.method == wanted {
            return Found::Route(route);
        }
        allow.push(route.method);
        if route.method == "GET" {
            allow.push("HEAD");
        }
    }
    if allow.is_empty() {
        return Found::Nothing;
    }
    allow.push("OPTIONS");
    if method == "OPTIONS" {
        Found::Options(allow.join(", "))
    } else {
        Found::OtherMethods(allow.join(", "))
    }
}

fn matches(pattern: &str, path: &str) -> bool {
    let mut segments = path.split('/');
    let fits = pattern.split('/').all(|expected| match segments.next() {
        Some(segment) => segment == expected || (expected.starts_with('{') && !segment.is_empty()),
        None => false,
    });
    fits && segments.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_exactly_one_segment() {
        assert!(matches("/api/ws/{channel_id}", "/api/ws/lab"));
        for path in ["/api/ws/", "/api/ws", "/api/ws/a/b", "/api/wsx/a", "/"] {
            assert!(!matches("/api/ws/{channel_id}", path), "{path}");
        }
    }
}
