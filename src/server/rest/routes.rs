//! The one route table: dispatch, 404, 405 and `Allow`, and what the server says of itself.

use std::sync::Arc;

use super::handlers;
use super::{Api, Call};

/// A method on a path.
pub struct Route {
    /// The method; GET answers HEAD too.
    pub method: &'static str,
    /// The path; a segment `{name}` stands for any one segment.
    pub path: &'static str,
    /// The handler's name.
    pub name: &'static str,
    /// What it is for, in one line.
    pub summary: &'static str,
    /// What it belongs to.
    pub tags: &'static [&'static str],
    pub(super) handler: fn(&Arc<Api>, Call),
}

/// Every route of the server.
pub const ROUTES: &[Route] = &[
    Route {
        method: "GET",
        path: "/",
        name: "index",
        summary: "Commands to paste",
        tags: &["server"],
        handler: handlers::index,
    },
    Route {
        method: "POST",
        path: "/api/messages",
        name: "post_message",
        summary: "Store a message and broadcast it to its channel",
        tags: &["messages"],
        handler: handlers::post_message,
    },
    Route {
        method: "GET",
        path: "/api/messages",
        name: "get_messages",
        summary: "Read the history, of one channel or of all",
        tags: &["messages"],
        handler: handlers::get_messages,
    },
    Route {
        method: "GET",
        path: "/api/channels",
        name: "get_channels",
        summary: "List the channels with their counts",
        tags: &["messages"],
        handler: handlers::get_channels,
    },
    Route {
        method: "GET",
        path: "/api/summary",
        name: "get_summary",
        summary: "Count messages and tokens, by provider and lane",
        tags: &["messages"],
        handler: handlers::get_summary,
    },
    Route {
        method: "GET",
        path: "/api/health",
        name: "get_health",
        summary: "Tell that the server is up, and its newest id",
        tags: &["server"],
        handler: handlers::get_health,
    },
    Route {
        method: "GET",
        path: "/api/ws/{channel_id}",
        name: "subscribe_channel",
        summary: "Subscribe to a channel and publish to it, over WebSocket",
        tags: &["messages", "websocket"],
        handler: handlers::upgrade_required,
    },
];

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
        return Found::Options("GET, HEAD, POST, OPTIONS".to_owned());
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
