//! What a WebSocket client says.

use serde_json::{Map, Value};

use super::{Channel, Draft, FieldError, Topic, kind, optional_fields, string};

/// What a WebSocket client may send.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientFrame {
    /// A message for the client's channel; the sender wants an ack if it gave a `ref`.
    Message(Draft, Option<Value>),
    /// An application-level ping with its timestamp, which the pong brings back.
    Ping(Option<Value>),
    /// The client says that it is there: nothing to do.
    ClientReady,
}

/// Why a client's frame was refused; the connection stays.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameError {
    /// `invalid_json`, `unknown_type`, `invalid_field`, `too_large`, `store_unavailable` or,
    /// on a feed, `read_only`.
    pub code: &'static str,
    /// What was found and what would be right.
    pub detail: String,
    /// The `ref` of the refused frame, if it had one.
    pub reference: Option<Value>,
}

impl ClientFrame {
    /// Reads a text frame that came on a connection to `topic`.
    ///
    /// # Errors
    /// Says what was wrong in the words of the protocol.
    pub fn parse(text: &str, topic: &Topic) -> Result<Self, FrameError> {
        let frame = Self::read(text, topic);
        match topic {
            Topic::Channel(_) => frame,
            Topic::Feed(feed) => frame.map_err(|error| FrameError {
                code: "read_only",
                detail: format!(
                    "a feed takes `ping` and `client_ready` only ({}); PUT /api/state/{feed} publishes to it",
                    error.detail
                ),
                ..error
            }),
        }
    }

    fn read(text: &str, topic: &Topic) -> Result<Self, FrameError> {
        let refuse = |code, detail| FrameError {
            code,
            detail,
            reference: None,
        };
        let value = serde_json::from_str(text)
            .map_err(|error| refuse("invalid_json", format!("the frame is not JSON: {error}")))?;
        let Value::Object(mut object) = value else {
            return Err(refuse(
                "invalid_json",
                format!("the frame must be a JSON object, not {}", kind(&value)),
            ));
        };
        let reference = match object.remove("ref") {
            None | Some(Value::Null) => None,
            Some(reference @ (Value::String(_) | Value::Number(_))) => Some(reference),
            Some(other) => {
                return Err(refuse(
                    "invalid_field",
                    format!("`ref` must be a string or a number, not {}", kind(&other)),
                ));
            }
        };
        let refuse = |code, detail| FrameError {
            code,
            detail,
            reference: reference.clone(),
        };
        match object.get("type") {
            Some(Value::String(name)) if name == "message" => {
                let Topic::Channel(channel) = topic else {
                    return Err(refuse("read_only", "this is a message".to_owned()));
                };
                let draft = channel_draft(&mut object, channel)
                    .map_err(|error| refuse("invalid_field", error.detail))?;
                Ok(Self::Message(draft, reference))
            }
            Some(Value::String(name)) if name == "ping" => {
                Ok(Self::Ping(object.remove("timestamp")))
            }
            Some(Value::String(name)) if name == "client_ready" => Ok(Self::ClientReady),
            Some(Value::String(name)) => Err(refuse(
                "unknown_type",
                format!("the type {name:?} is not known; `message`, `ping` and `client_ready` are"),
            )),
            Some(other) => Err(refuse(
                "unknown_type",
                format!("`type` must be a string, not {}", kind(other)),
            )),
            None => Err(refuse("unknown_type", "`type` is missing".to_owned())),
        }
    }
}

fn channel_draft(object: &mut Map<String, Value>, channel: &Channel) -> Result<Draft, FieldError> {
    Ok(Draft {
        channel_id: channel.clone(),
        author: string(object, "author")?.unwrap_or_else(|| "unknown".to_owned()),
        content: string(object, "content")?.unwrap_or_default(),
        ..optional_fields(object)?
    })
}
