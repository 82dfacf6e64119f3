//! The JSON of requests and answers, as schemas. Objects are open: fields may be added.

use serde_json::{Value, json};

/// Every schema, by name.
pub(super) fn all() -> Value {
    json!({
        "ChannelName": channel_name(),
        "FeedName": feed_name(),
        "MessageId": message_id(),
        "Problem": problem(),
        "MessageInput": message_input(),
        "Message": message(),
        "Stored": object(json!({
            "success": {"const": true},
            "message": reference("Message"),
            "subscribers": count("Subscribers of the channel at the commit."),
        })),
        "StoredLines": object(json!({
            "success": {"const": true},
            "messages": count("How many."),
            "ids": list(reference("MessageId")),
        })),
        "ChannelMessageInput": channel_message_input(),
        "TokenCount": {"type": "integer", "format": "int64", "minimum": i64::MIN, "maximum": i64::MAX},
        "History": object(json!({
            "messages": list(reference("Message")),
            "head": reference("MessageId"),
        })),
        "Channels": channels(),
        "Summary": summary(),
        "Health": health(),
        "Limit": limit(),
        "StateFrame": state_frame(),
        "Published": published(),
        "StateList": state_list(),
        "Connections": object(json!({"connections": list(reference("Connection"))})),
        "Connection": connection(),
        "ConnectionEnded": object(json!({
            "success": {"const": true},
            "id": count("The connection's number."),
        })),
    })
}

/// The schema of this name.
pub(super) fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn channel_name() -> Value {
    json!({
        "type": "string",
        "minLength": 1,
        "maxLength": 128,
        "pattern": r"^[^\u0000-\u001f\u007f-\u009f]+$",
        "description": "Any Unicode but control characters.",
        "examples": ["lab"],
    })
}

fn feed_name() -> Value {
    json!({
        "type": "string",
        "pattern": "^[a-z0-9][a-z0-9_.-]{0,63}$",
        "examples": ["board", "workflow-history"],
    })
}

fn message_id() -> Value {
    json!({
        "type": "integer",
        "format": "uint64",
        "minimum": 0,
        "maximum": u64::MAX,
        "description": "A message's place in the one order of the server. 0 comes before the first.",
        "examples": [42],
    })
}

fn problem() -> Value {
    let mut problem = object(json!({
        "type": {"const": "about:blank"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "What was found and what would be right."},
    }));
    problem["properties"]["field"] =
        json!({"type": "string", "description": "The field that is missing or wrong."});
    problem["description"] = json!("RFC 9457. Nothing was stored and nothing was broadcast.");
    problem["examples"] = json!([{
        "type": "about:blank",
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "`author` is missing",
        "field": "author",
    }]);
    problem
}

fn message_input() -> Value {
    json!({
        "type": "object",
        "required": ["channel_id", "author", "content"],
        "properties": {
            "channel_id": reference("ChannelName"),
            "author": {"type": "string"},
            "content": {"type": "string", "description": "May be empty."},
            "lane": {"type": ["string", "null"]},
            "provider": {"type": ["string", "null"]},
            "token_count": integer_or_null(),
        },
        "description": "Unknown fields are ignored.",
        "examples": [{"channel_id": "lab", "author": "ada", "content": "hello"}],
    })
}

/// A message whose channel the path names.
fn channel_message_input() -> Value {
    let mut message = message_input();
    message["properties"]["channel_id"] =
        json!({"not": {}, "description": "The path has it; only the same may be here."});
    message["required"] = json!(["content"]);
    message["properties"]["author"] = json!({"type": ["string", "null"]});
    message["description"] =
        json!("What is not here is what the query says. Unknown fields are ignored.");
    message["examples"] = json!([{"author": "ada", "content": "hello"}]);
    message
}

fn message() -> Value {
    let mut message = object(json!({
        "id": reference("MessageId"),
        "channel_id": {"type": "string"},
        "author": {"type": "string"},
        "content": {"type": "string"},
        "timestamp": {
            "type": "string",
            "description": "When it was committed, in UTC. Programs that wrote the database before this one may have used another form.",
        },
        "lane": {"type": ["string", "null"]},
        "provider": {"type": ["string", "null"]},
        "token_count": integer_or_null(),
    }));
    message["examples"] = json!([{
        "id": 42,
        "channel_id": "lab",
        "author": "ada",
        "content": "hi",
        "timestamp": "2026-01-05T12:34:56.789012+00:00",
        "lane": null,
        "provider": null,
        "token_count": null,
    }]);
    message
}

fn channels() -> Value {
    let mut channels = object(json!({
        "channels": list(json!({"type": "string"})),
        "details": list(object(json!({
            "channel_id": {"type": "string"},
            "messages": count("Messages that are kept."),
            "last_id": reference("MessageId"),
            "subscribers": count("Subscribers that are connected."),
        }))),
    }));
    channels["properties"]["nodes"] = count("Servers that were counted, with `cluster=1`.");
    channels
}

fn summary() -> Value {
    let by_name = json!({"type": "object", "additionalProperties": count("Messages.")});
    object(json!({
        "summary": object(json!({
            "total_messages": count("Messages that are kept."),
            "total_tokens": {"type": "integer", "format": "int64"},
            "by_provider": by_name,
            "by_lane": by_name,
        })),
    }))
}

/// Only the status is for everybody.
fn health() -> Value {
    json!({
        "type": "object",
        "required": ["status"],
        "properties": {
            "status": {
                "enum": ["ok", "draining", "stranded"],
                "description": "`draining`: it is about to end. `stranded`: it is shut out of the log that it shares with others until somebody does something; `backplane.reason` says what.",
            },
            "version": {"type": "string"},
            "uptime_seconds": count("Since the start."),
            "connections": count("Subscribers that are connected."),
            "head": reference("MessageId"),
            "backplane": backplane(),
            "limits": {
                "type": "object",
                "additionalProperties": reference("Limit"),
                "description": "Every limit that refuses clients, by name.",
            },
        },
        "description": "Where there are tokens, whoever has none gets `status` alone.",
        "examples": [{"status": "ok"}],
    })
}

fn backplane() -> Value {
    json!({
        "type": "object",
        "required": ["address", "connected", "position", "behind", "reconnects"],
        "properties": {
            "address": {"type": "string", "description": "Without a password."},
            "connected": {"type": "boolean", "description": "Whether the log is read here; nothing can be published if not."},
            "away_seconds": count("How long it has not been connected."),
            "reason": {"type": "string", "description": "Why it is not connected."},
            "refuses": {
                "type": "string",
                "description": "Why Redis has refused what was published last; left out once it takes something.",
                "examples": ["OOM command not allowed when used memory > 'maxmemory'"],
            },
            "position": {"type": "string", "description": "The last entry that is stored here.", "examples": ["41-2"]},
            "behind": count("Messages that are known to be in the log and are not stored here yet."),
            "reconnects": count("How often the connection was made again."),
        },
        "description": "The log that several servers share; left out for a server by itself.",
    })
}

fn limit() -> Value {
    json!({
        "type": "object",
        "required": ["refused"],
        "properties": {
            "used": count("Left out where each address, channel or message has its own."),
            "max": count("Left out where there is no limit."),
            "refused": count("How often it refused something since the start."),
        },
    })
}

fn state_frame() -> Value {
    let mut frame = object(json!({
        "type": {
            "type": "string",
            "pattern": "_update$",
            "description": "The feed's name with `_` for `-`, and `_update`.",
        },
        "data": {"description": "The state: any JSON value."},
        "rev": revision(),
    }));
    frame["examples"] = json!([{"type": "board_update", "data": {"temperature": 21.5}, "rev": 7}]);
    frame
}

fn published() -> Value {
    object(json!({
        "success": {"const": true},
        "changed": {"type": "boolean", "description": "Whether the state differs from the one before."},
        "rev": revision(),
        "subscribers": count("Subscribers of the feed."),
    }))
}

fn state_list() -> Value {
    let mut feed = object(json!({
        "feed": reference("FeedName"),
        "rev": revision(),
        "subscribers": count("Subscribers that are connected."),
    }));
    feed["properties"]["watch"] = object(json!({
        "source": {"enum": ["file", "exec"]},
        "reads": count("How often the file was read or the command was run."),
        "error": {"type": ["string", "null"], "description": "Why the last look failed."},
    }));
    object(json!({"feeds": list(feed)}))
}

fn connection() -> Value {
    object(json!({
        "id": count("Its number, unique while the server runs."),
        "kind": {"enum": ["websocket", "sse"]},
        "channel": {"type": ["string", "null"]},
        "feed": {"type": ["string", "null"]},
        "address": {"type": "string"},
        "token": {"type": ["string", "null"], "description": "The name of its token."},
        "since": {"type": "string", "description": "When it was connected, in UTC."},
        "cursor": {"type": ["integer", "null"], "description": "The newest message of its channel that it has."},
        "lag": count("How far it is behind: in ids, or in revisions of its feed."),
        "behind": {"type": "boolean", "description": "Whether it is brought what it has missed."},
        "queued_bytes": count("Bytes that wait for its socket."),
    }))
}

/// An object that has all of these.
fn object(properties: Value) -> Value {
    let required: Vec<&String> = properties
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name)
        .collect();
    json!({"type": "object", "required": required, "properties": properties})
}

fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

fn count(of: &str) -> Value {
    json!({"type": "integer", "minimum": 0, "description": of})
}

fn revision() -> Value {
    count("How often the feed's state has changed.")
}

fn integer_or_null() -> Value {
    json!({"type": ["integer", "null"], "format": "int64", "minimum": i64::MIN, "maximum": i64::MAX})
}
