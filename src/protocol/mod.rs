//! The JSON types of the wire: what publishers send, what subscribers get.

mod client;
pub(crate) mod clock;
mod feed;
mod log;
mod receipt;
mod server;
mod state;

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

pub use client::{ClientFrame, FrameError};
pub use feed::{
    Feed, Published, ROUTES, Rev, StoredState, Topic, WORKFLOW_HISTORY, WORKFLOWS, WatchStatus,
};
pub use log::{Hole, LogMark, Position};
pub use receipt::{Claim, Given, Receipt, Remembered};
pub use server::{GapReason, ServerFrame, Start};
pub use state::State;
pub(crate) use state::same_object;

/// Longest channel name, in characters.
pub const MAX_CHANNEL_CHARS: usize = 128;

/// A message's place in the one order of the server: greater than every earlier one, never reused.
///
/// 0 comes before the first message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct MessageId(pub u64);

impl MessageId {
    /// The id after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The id before this one; that of 0 is 0.
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A channel's name: 1 to 128 characters, any Unicode but control characters. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel(Arc<str>);

impl Channel {
    /// A name from the store, which keeps what older programs accepted too.
    pub(crate) fn stored(name: &str) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Channel {
    type Err = String;

    /// Fails with a sentence that says what a name may be.
    fn from_str(name: &str) -> Result<Self, String> {
        if name.is_empty() {
            return Err(format!(
                "a channel name has 1 to {MAX_CHANNEL_CHARS} characters, this one is empty"
            ));
        }
        if name.len() > MAX_CHANNEL_CHARS {
            let characters = name.chars().count();
            if characters > MAX_CHANNEL_CHARS {
                return Err(format!(
                    "a channel name has 1 to {MAX_CHANNEL_CHARS} characters, this one has {characters}"
                ));
            }
        }
        match name.chars().find(|character| character.is_control()) {
            Some(control) => Err(format!(
                "a channel name has no control characters, this one has U+{:04X}",
                control as u32
            )),
            None => Ok(Self(name.into())),
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for Channel {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for Channel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// A message as its publisher wrote it: not stored, without id and time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Where it goes.
    pub channel_id: Channel,
    /// Who wrote it.
    pub author: String,
    /// What it says; may be empty.
    pub content: String,
    /// Free for the publisher's use, counted in the summary.
    pub lane: Option<String>,
    /// Free for the publisher's use, counted in the summary.
    pub provider: Option<String>,
    /// Summed up in the summary.
    pub token_count: Option<i64>,
}

impl Draft {
    /// Bytes it takes, roughly: what the bounds of queues count.
    pub fn size(&self) -> usize {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        128 + self.channel_id.as_str().len()
            + self.author.len()
            + self.content.len()
            + optional(&self.lane)
            + optional(&self.provider)
    }

    /// Stored under `id` at `timestamp`.
    pub fn committed(&self, id: MessageId, timestamp: &str) -> Message {
        Message {
            id,
            channel_id: self.channel_id.clone(),
            author: self.author.clone(),
            content: self.content.clone(),
            timestamp: timestamp.to_owned(),
            lane: self.lane.clone(),
            provider: self.provider.clone(),
            token_count: self.token_count,
        }
    }
}

/// A stored message, with the fields and names that clients see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Its place in the order.
    pub id: MessageId,
    /// Where it went.
    pub channel_id: Channel,
    /// Who wrote it.
    pub author: String,
    /// What it says.
    pub content: String,
    /// When it was committed: UTC, microseconds, `+00:00`.
    pub timestamp: String,
    /// As published.
    pub lane: Option<String>,
    /// As published.
    pub provider: Option<String>,
    /// As published.
    pub token_count: Option<i64>,
}

impl Message {
    /// The same, borrowed.
    pub fn view(&self) -> MessageView<'_> {
        MessageView {
            id: self.id,
            channel_id: self.channel_id.as_str().into(),
            author: self.author.as_str().into(),
            content: self.content.as_str().into(),
            timestamp: self.timestamp.as_str().into(),
            lane: self.lane.as_deref().map(Cow::Borrowed),
            provider: self.provider.as_deref().map(Cow::Borrowed),
            token_count: self.token_count,
        }
    }
}

/// A stored message that is only looked at: the same JSON as a [`Message`]'s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of `Message`")]
pub struct MessageView<'a> {
    pub id: MessageId,
    pub channel_id: Cow<'a, str>,
    pub author: Cow<'a, str>,
    pub content: Cow<'a, str>,
    pub timestamp: Cow<'a, str>,
    pub lane: Option<Cow<'a, str>>,
    pub provider: Option<Cow<'a, str>>,
    pub token_count: Option<i64>,
}

impl MessageView<'_> {
    /// Bytes it takes in a page, roughly.
    pub fn size(&self) -> usize {
        let optional = |text: &Option<Cow<'_, str>>| text.as_ref().map_or(0, |text| text.len());
        160 + self.channel_id.len()
            + self.author.len()
            + self.content.len()
            + optional(&self.lane)
            + optional(&self.provider)
    }
}

/// A field that is missing or wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Its name.
    pub field: &'static str,
    /// What was found and what would be right.
    pub detail: String,
}

/// The body of `POST /api/messages`.
///
/// # Errors
/// Names the first field that is missing or has the wrong type. Unknown fields are ignored.
pub fn draft(mut object: Map<String, Value>) -> Result<Draft, FieldError> {
    let name = required(string(&mut object, "channel_id")?, "channel_id")?;
    Ok(Draft {
        channel_id: name.parse().map_err(|detail| FieldError {
            field: "channel_id",
            detail: format!("`channel_id`: {detail}"),
        })?,
        author: required(string(&mut object, "author")?, "author")?,
        content: required(string(&mut object, "content")?, "content")?,
        ..optional_fields(&mut object)?
    })
}

/// A draft whose optional fields are the object's, for the callers above to complete.
fn optional_fields(object: &mut Map<String, Value>) -> Result<Draft, FieldError> {
    Ok(Draft {
        channel_id: Channel::stored(""),
        author: String::new(),
        content: String::new(),
        lane: string(object, "lane")?,
        provider: string(object, "provider")?,
        token_count: integer(object, "token_count")?,
    })
}

fn required(value: Option<String>, field: &'static str) -> Result<String, FieldError> {
    value.ok_or_else(|| FieldError {
        field,
        detail: format!("`{field}` is missing"),
    })
}

fn string(
    object: &mut Map<String, Value>,
    field: &'static str,
) -> Result<Option<String>, FieldError> {
    match object.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(FieldError {
            field,
            detail: format!("`{field}` must be a string, not {}", kind(&other)),
        }),
    }
}

fn integer(
    object: &mut Map<String, Value>,
    field: &'static str,
) -> Result<Option<i64>, FieldError> {
    match object.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => whole(&value).map(Some).ok_or_else(|| FieldError {
            field,
            detail: format!(
                "`{field}` must be an integer of 64 bits, not {}",
                kind(&value)
            ),
        }),
    }
}

/// A number without a fraction, however it is written: `3`, `3.0` and `3e0` are the same
/// (JSON Schema, section 4.2.3), and programs that know doubles only may write any of them.
fn whole(value: &Value) -> Option<i64> {
    // Exclusive at both ends: an integer below the least of 64 bits is read as this double, too.
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    value.as_i64().or_else(|| {
        let number = value.as_f64().filter(|_| value.is_f64())?;
        let is_whole = number.fract() == 0.0 && number.abs() < BEYOND;
        is_whole.then_some(number as i64)
    })
}

/// A value's kind in words, for error messages.
pub fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "a boolean".to_owned(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
