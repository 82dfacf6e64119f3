//! What a request's target asks to subscribe to.

use std::str::FromStr;

use crate::http::{Head, Problem, percent_decode, query_pairs};
use crate::manager::Kind;
use crate::protocol::{Channel, Feed, MessageId, Start, Topic};

/// Messages that a subscriber may start back.
const MAX_LAST: usize = 1000;

/// What a request wants to subscribe to, and speaking what; `None` for every other request,
/// which goes to REST.
///
/// # Errors
/// 400 or 422 when the path names no channel or feed.
pub(in crate::server) fn wanted(head: &Head) -> Option<Result<(Kind, Topic), Problem>> {
    let path = head.path();
    let (kind, topic) = match &head.method[..] {
        "GET" => of_websocket(path)
            .map(|topic| (Kind::WebSocket, topic))
            .or_else(|| Some((Kind::EventStream, of_event_stream(path)?)))?,
        // Here, because only whoever makes the streams knows how they begin.
        "HEAD" => (Kind::EventStream, of_event_stream(path)?),
        _ => return None,
    };
    Some(topic.map(|topic| (kind, topic)))
}

fn of_websocket(path: &str) -> Option<Result<Topic, Problem>> {
    if let Some(name) = segment(path, "/api/ws/") {
        return Some(named::<Channel>(name, "channel_id"));
    }
    let name = segment(path, "/ws/").or_else(|| segment(path, "/api/v1/ws/"))?;
    Some(named::<Feed>(name, "feed"))
}

fn of_event_stream(path: &str) -> Option<Result<Topic, Problem>> {
    if let Some(name) = segment(path, "/api/sse/") {
        return Some(named::<Channel>(name, "channel_id"));
    }
    Some(named::<Feed>(segment(path, "/sse/")?, "feed"))
}

/// Where a channel's subscriber wants to begin. `since` counts when `last` is given, too, and
/// the id that a returning `EventSource` names before both.
///
/// # Errors
/// 400 or 422, with what would be right.
#[inline(never)]
pub(in crate::server) fn start(query: &str, last_event_id: Option<&str>) -> Result<Start, Problem> {
    let pairs = query_pairs(query)?;
    let value = |wanted: &str| {
        let found = pairs.iter().rev().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.as_str())
    };
    let wrong = |field, rule: &str, found| {
        Problem::field(field, format!("`{field}` must be {rule}, not {found:?}"))
    };
    let since = last_event_id.map(|id| ("Last-Event-ID", id));
    if let Some((field, since)) = since.or_else(|| Some(("since", value("since")?))) {
        let id = since
            .parse()
            .map_err(|_| wrong(field, "a message id (0 or more)", since))?;
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
