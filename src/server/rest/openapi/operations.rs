//! What each route takes and answers: one function for each, by the route's name.

use serde_json::{Value, json};

use super::responses::with_headers;
use super::schemas::reference;

/// What the document says of a route beside what the route table and the door do.
#[derive(Default)]
pub(super) struct Operation {
    /// What comes in the path, the query and the headers.
    pub(super) parameters: Vec<Value>,
    pub(super) body: Option<Value>,
    /// What is no refusal, by status.
    pub(super) answers: Vec<(u16, Value)>,
    /// Statuses of refusals that not every route has.
    pub(super) refusals: &'static [u16],
}

type Describe = fn() -> Operation;

/// Every operation. A route that is new needs its function below, and its line here.
const OPERATIONS: &[(&str, Describe)] = &[
    ("index", index),
    ("post_message", post_message),
    ("post_to_channel", post_to_channel),
    ("get_messages", get_messages),
    ("get_channels", get_channels),
    ("get_summary", get_summary),
    ("get_health", get_health),
    ("get_openapi", get_openapi),
    ("get_metrics", get_metrics),
    ("subscribe_channel", subscribe_channel),
    ("stream_channel", stream_channel),
    ("put_state", put_state),
    ("get_state", get_state),
    ("get_states", get_states),
    ("get_connections", get_connections),
    ("delete_connection", delete_connection),
    ("subscribe_feed", subscribe_feed),
    ("stream_feed", stream_feed),
    ("subscribe_feed_v1", subscribe_feed),
];

/// The operation of the route of this name.
pub(super) fn find(name: &str) -> Option<Operation> {
    let mut operations = OPERATIONS.iter();
    let (_, operation) = operations.find(|(known, _)| *known == name)?;
    Some(operation())
}

/// The names of all.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    OPERATIONS.iter().map(|(name, _)| *name)
}

fn index() -> Operation {
    let content = json!({
        "text/plain": {"schema": {"type": "string"}},
        "text/html": {"schema": {"type": "string"}},
    });
    let page =
        json!({"description": "Commands to paste; for browsers the console.", "content": content});
    Operation {
        parameters: vec![if_none_match()],
        answers: vec![(200, with_headers(page, &["Vary"])), (304, not_modified())],
        ..Operation::default()
    }
}

fn post_message() -> Operation {
    let lines = json!({
        "type": "string",
        "description": "A `MessageInput` in each line. All are stored, or none is.",
    });
    let body = json!({
        "required": true,
        "description": "The message, or many of them.",
        "content": {
            "application/json": {"schema": reference("MessageInput")},
            "application/x-ndjson": {"schema": lines},
        },
    });
    Operation {
        parameters: vec![idempotency_key()],
        body: Some(body),
        answers: vec![(200, stored(&["Stored", "StoredLines"]))],
        refusals: &[411, 415, 422],
    }
}

fn post_to_channel() -> Operation {
    let text = json!({"type": "string", "description": "The content, as it is. So is every other type of text."});
    let body = json!({
        "required": false,
        "description": "The content, or the message without its channel. Without a body the content is empty.",
        "content": {
            "text/plain": {"schema": text},
            "application/json": {"schema": reference("ChannelMessageInput")},
        },
    });
    let text = || json!({"type": "string"});
    Operation {
        parameters: vec![
            in_path("channel_id", reference("ChannelName")),
            query("author", text(), "Who writes; `unknown` without it."),
            query("lane", text(), "As in a message."),
            query("provider", text(), "As in a message."),
            query("token_count", reference("TokenCount"), "As in a message."),
            idempotency_key(),
        ],
        body: Some(body),
        answers: vec![(200, stored(&["Stored"]))],
        refusals: &[404, 411, 415, 422],
    }
}

fn get_messages() -> Operation {
    let limit = json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 200});
    Operation {
        parameters: vec![
            query(
                "channel_id",
                reference("ChannelName"),
                "Of this channel only.",
            ),
            query("since", reference("MessageId"), "Ids greater than this."),
            query("before", reference("MessageId"), "Ids less than this."),
            query("limit", limit, "So many messages at most."),
            query(
                "wait",
                json!({"type": "integer", "minimum": 0, "maximum": 60}),
                "So many seconds at most for the first message after `since`, which must be given.",
            ),
        ],
        answers: vec![(
            200,
            json_answer(
                "History",
                "By ascending id; `head` is the newest id of all channels.",
            ),
        )],
        refusals: &[422],
        ..Operation::default()
    }
}

fn get_channels() -> Operation {
    Operation {
        parameters: vec![query(
            "cluster",
            json!({"enum": ["0", "1"]}),
            "1 to count the subscribers of all servers that share a log.",
        )],
        refusals: &[422],
        ..answers_json("Channels", "By name.")
    }
}

fn get_summary() -> Operation {
    answers_json("Summary", "Over all messages that are kept.")
}

fn get_health() -> Operation {
    let stay_away = json!({
        "description": "The server is about to end, or stranded: go to another one.",
        "content": {
            "application/json": {"schema": reference("Health")},
            "application/problem+json": {"schema": reference("Problem")},
        },
    });
    Operation {
        answers: vec![
            (200, json_answer("Health", "The server is up.")),
            (503, with_headers(stay_away, &["Retry-After"])),
        ],
        ..Operation::default()
    }
}

fn get_metrics() -> Operation {
    let content = json!({"text/plain": {"schema": {"type": "string"}}});
    let text =
        json!({"description": "Prometheus' text format, version 0.0.4.", "content": content});
    Operation {
        answers: vec![(200, text)],
        ..Operation::default()
    }
}

fn get_openapi() -> Operation {
    let content = json!({"application/json": {"schema": {"type": "object"}}});
    let document = json!({"description": "This document.", "content": content});
    Operation {
        parameters: vec![if_none_match()],
        answers: vec![
            (200, with_headers(document, &["ETag", "Cache-Control"])),
            (304, not_modified()),
        ],
        ..Operation::default()
    }
}

fn subscribe_channel() -> Operation {
    Operation {
        parameters: vec![
            in_path("channel_id", reference("ChannelName")),
            since(),
            last(),
        ],
        answers: vec![(101, switching())],
        refusals: &[404, 422, 426],
        ..Operation::default()
    }
}

fn subscribe_feed() -> Operation {
    Operation {
        parameters: vec![in_path("feed", reference("FeedName"))],
        answers: vec![(101, switching())],
        refusals: &[404, 422, 426],
        ..Operation::default()
    }
}

fn stream_channel() -> Operation {
    let comes_back = json!({
        "name": "Last-Event-ID",
        "in": "header",
        "description": "The last id that the client has seen. Comes before `since`.",
        "schema": reference("MessageId"),
    });
    Operation {
        parameters: vec![
            in_path("channel_id", reference("ChannelName")),
            since(),
            last(),
            comes_back,
        ],
        answers: vec![(
            200,
            event_stream("Every message of the channel as `data:`, its id as `id:`."),
        )],
        refusals: &[404, 422],
        ..Operation::default()
    }
}

fn stream_feed() -> Operation {
    Operation {
        parameters: vec![in_path("feed", reference("FeedName"))],
        answers: vec![(
            200,
            event_stream("The state at once, then every change as `data:`, its revision as `id:`."),
        )],
        refusals: &[404, 422],
        ..Operation::default()
    }
}

fn put_state() -> Operation {
    let body = json!({
        "required": true,
        "description": "The state: any JSON value, with arrays and objects nested up to 100 deep. The type that `curl -d` sends will do, too.",
        "content": {"application/json": {"schema": {}}},
    });
    Operation {
        parameters: vec![in_path("feed", reference("FeedName")), idempotency_key()],
        body: Some(body),
        answers: vec![(
            200,
            with_headers(
                json_answer("Published", "It is committed, if it changed."),
                &["Idempotency-Replayed"],
            ),
        )],
        refusals: &[404, 411, 415, 422],
    }
}

fn get_state() -> Operation {
    let frame = json_answer("StateFrame", "The last state.");
    Operation {
        parameters: vec![in_path("feed", reference("FeedName")), if_none_match()],
        answers: vec![
            (200, with_headers(frame, &["ETag", "Cache-Control"])),
            (304, not_modified()),
        ],
        refusals: &[404, 422],
        ..Operation::default()
    }
}

fn get_states() -> Operation {
    answers_json("StateList", "By name: the feeds that the token may read.")
}

fn get_connections() -> Operation {
    answers_json("Connections", "By id.")
}

fn delete_connection() -> Operation {
    let id = json!({"type": "integer", "minimum": 0});
    Operation {
        parameters: vec![in_path("id", id)],
        answers: vec![(200, json_answer("ConnectionEnded", "It is being closed."))],
        refusals: &[404],
        ..Operation::default()
    }
}

/// A route that takes nothing.
fn answers_json(schema: &str, description: &str) -> Operation {
    Operation {
        answers: vec![(200, json_answer(schema, description))],
        ..Operation::default()
    }
}

fn json_answer(schema: &str, description: &str) -> Value {
    let content = json!({"application/json": {"schema": reference(schema)}});
    json!({"description": description, "content": content})
}

fn not_modified() -> Value {
    let answer = json!({"description": "The client has it."});
    with_headers(answer, &["ETag", "Cache-Control"])
}

fn event_stream(description: &str) -> Value {
    let content = json!({"text/event-stream": {"schema": {"type": "string"}}});
    let answer = json!({"description": description, "content": content});
    with_headers(answer, &["Cache-Control", "X-Accel-Buffering"])
}

fn switching() -> Value {
    let answer = json!({"description": "From here on it is a WebSocket (RFC 6455)."});
    with_headers(answer, &["Upgrade", "Connection", "Sec-WebSocket-Accept"])
}

fn in_path(name: &str, schema: Value) -> Value {
    json!({"name": name, "in": "path", "required": true, "schema": schema})
}

fn query(name: &str, schema: Value, description: &str) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": schema})
}

/// What publishers get back: one of these.
fn stored(schemas: &[&str]) -> Value {
    let schemas: Vec<Value> = schemas.iter().map(|name| reference(name)).collect();
    let content = json!({"application/json": {"schema": {"oneOf": schemas}}});
    let answer = json!({"description": "It is committed.", "content": content});
    with_headers(answer, &["Idempotency-Replayed"])
}

fn idempotency_key() -> Value {
    json!({
        "name": "Idempotency-Key",
        "in": "header",
        "description": "New for each publication: whatever is sent again under it within 24 hours is done once.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    })
}

fn since() -> Value {
    let description = "Begin with the first message after this one.";
    query("since", reference("MessageId"), description)
}

fn last() -> Value {
    let number = json!({"type": "integer", "minimum": 0, "maximum": 1000});
    query(
        "last",
        number,
        "Begin so many messages back, unless `since` is given.",
    )
}

fn if_none_match() -> Value {
    json!({
        "name": "If-None-Match",
        "in": "header",
        "description": "The `ETag` of what the client has.",
        "schema": {"type": "string"},
    })
}
