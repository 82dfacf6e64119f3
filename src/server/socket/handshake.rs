//! Whether a request may become a WebSocket (RFC 6455, section 4.2).

use std::str::FromStr;

use tungstenite::error::{Error, ProtocolError};
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::http::{HeaderName, HeaderValue, Method};

use crate::access::SUBPROTOCOL;
use crate::http::{Framing, Head, Problem, percent_decode, query_pairs};
use crate::protocol::{Channel, Feed, MessageId, Start, Topic};

/// Messages that a subscriber may start back.
const MAX_LAST: usize = 1000;

/// Headers that decide about the upgrade.
const DECIDING: [&str; 4] = [
    "connection",
    "upgrade",
    "sec-websocket-version",
    "sec-websocket-key",
];

/// What a WebSocket path names; `None` for every other path.
///
/// # Errors
/// 400 or 422 when the name is not one.
pub(super) fn topic(path: &str) -> Option<Result<Topic, Problem>> {
    if let Some(name) = segment(path, "/api/ws/") {
        return Some(named::<Channel>(name, "channel_id"));
    }
    let name = segment(path, "/ws/").or_else(|| segment(path, "/api/v1/ws/"))?;
    Some(named::<Feed>(name, "feed"))
}

/// Where a channel's subscriber wants to begin. `since` counts when both are given.
///
/// # Errors
/// 400 or 422, with what would be right.
pub(super) fn start(query: &str) -> Result<Start, Problem> {
    let pairs = query_pairs(query)?;
    let value = |wanted: &str| {
        let found = pairs.iter().rev().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.as_str())
    };
    let wrong = |field, rule: &str, found| {
        Problem::field(field, format!("`{field}` must be {rule}, not {found:?}"))
    };
    if let Some(since) = value("since") {
        let id = since
            .parse()
            .map_err(|_| wrong("since", "a message id (0 or more)", since))?;
        return Ok(Start::Since(MessageId(id)));
    }
    let Some(last) = value("last") else {
        return Ok(Start::Live);
    };
    let number = last.parse().ok().filter(|number| *number <= MAX_LAST);
    let number = number.ok_or_else(|| wrong("last", &format!("0 to {MAX_LAST}"), last))?;
    Ok(Start::Last(number))
}

/// The one segment behind a prefix.
fn segment<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix)
        .filter(|name| !name.is_empty() && !name.contains('/'))
}

fn named<N: FromStr<Err = String> + Into<Topic>>(
    name: &str,
    field: &str,
) -> Result<Topic, Problem> {
    let name = percent_decode(name)?;
    let name: N = name
        .parse()
        .map_err(|detail| Problem::field(field, format!("`{field}` in the path: {detail}")))?;
    Ok(name.into())
}

/// The answer that makes the connection a WebSocket.
///
/// # Errors
/// 400 or 426, with what was missing.
#[inline(never)]
pub(super) fn accept(head: &Head) -> Result<Vec<u8>, Problem> {
    if head.framing != Framing::None && head.framing != Framing::Length(0) {
        return Err(Problem::new(
            400,
            "a request to become a WebSocket has no body",
        ));
    }
    if head.is_1_0 {
        return Err(upgrade_required("is HTTP/1.0, not HTTP/1.1"));
    }
    let mut request = Request::new(());
    *request.method_mut() = Method::GET;
    for name in DECIDING {
        if let Some(value) = head
            .joined(name)
            .and_then(|value| HeaderValue::from_str(&value).ok())
        {
            request
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
    }
    let mut response = create_response(&request).map_err(|error| refusal(&error))?;
    // The only one that there is; whoever offers others alone gets none (RFC 6455, section 4.2.2).
    if head.lists("sec-websocket-protocol", SUBPROTOCOL) {
        let chosen = HeaderValue::from_static(SUBPROTOCOL);
        response
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", chosen);
    }
    let mut bytes = Vec::new();
    write_response(&mut bytes, &response).map_err(|error| refusal(&error))?;
    Ok(bytes)
}

fn refusal(error: &Error) -> Problem {
    match error {
        Error::Protocol(ProtocolError::MissingConnectionUpgradeHeader) => {
            upgrade_required("has no `Connection: Upgrade`")
        }
        Error::Protocol(ProtocolError::MissingUpgradeWebSocketHeader) => {
            upgrade_required("has no `Upgrade: websocket`")
        }
        Error::Protocol(ProtocolError::MissingSecWebSocketVersionHeader) => {
            upgrade_required("has no `Sec-WebSocket-Version: 13`")
        }
        _ => Problem::new(400, error.to_string()),
    }
}

/// 426, with what would be right (RFC 9110, section 15.5.22; RFC 6455, section 4.2.2).
fn upgrade_required(found: &str) -> Problem {
    Problem::new(
        426,
        format!("this is a WebSocket of version 13, and the request {found}"),
    )
    .with_header("Connection", "Upgrade")
    .with_header("Upgrade", "websocket")
    .with_header("Sec-WebSocket-Version", "13")
}
