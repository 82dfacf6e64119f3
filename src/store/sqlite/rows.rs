//! Rows as values: SQLite's columns take any type, and another program may have written them.

use std::borrow::Cow;

use rusqlite::Row;
use rusqlite::types::ValueRef;

use crate::protocol::{Channel, Message, MessageId, MessageView};
use crate::store::totals::Counted;

pub(super) fn message(view: MessageView<'_>) -> Message {
    Message {
        id: view.id,
        channel_id: Channel::stored(&view.channel_id),
        author: view.author.into_owned(),
        content: view.content.into_owned(),
        timestamp: view.timestamp.into_owned(),
        lane: view.lane.map(Cow::into_owned),
        provider: view.provider.map(Cow::into_owned),
        token_count: view.token_count,
    }
}

/// A message as it lies in SQLite's memory.
pub(super) fn view<'a>(row: &'a Row<'_>) -> rusqlite::Result<MessageView<'a>> {
    Ok(MessageView {
        id: id(row.get(0)?),
        channel_id: text(row, 1)?.unwrap_or_default(),
        author: text(row, 2)?.unwrap_or_default(),
        content: text(row, 3)?.unwrap_or_default(),
        timestamp: text(row, 4)?.unwrap_or_default(),
        lane: text(row, 5)?,
        provider: text(row, 6)?,
        token_count: integer(row, 7)?,
    })
}

/// A column as text, copied only if it is none.
pub(super) fn text<'a>(row: &'a Row<'_>, column: usize) -> rusqlite::Result<Option<Cow<'a, str>>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string().into()),
        ValueRef::Real(number) => Some(number.to_string().into()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(match str::from_utf8(bytes) {
            // Many times as fast as looking for what is to be replaced.
            Ok(text) => text.into(),
            Err(_) => String::from_utf8_lossy(bytes),
        }),
    })
}

pub(super) fn integer(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<i64>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Integer(number) => Some(number),
        ValueRef::Real(number) => Some(number as i64),
        _ => None,
    })
}

/// What counts of a message, read from columns id, channel_id, lane, provider, token_count.
pub(super) struct OwnedCount {
    pub(super) id: MessageId,
    channel: String,
    lane: Option<String>,
    provider: Option<String>,
    token_count: Option<i64>,
}

impl OwnedCount {
    pub(super) fn as_counted(&self) -> Counted<'_> {
        Counted {
            id: self.id,
            channel: &self.channel,
            lane: self.lane.as_deref(),
            provider: self.provider.as_deref(),
            token_count: self.token_count,
        }
    }
}

pub(super) fn counted(row: &Row<'_>) -> rusqlite::Result<OwnedCount> {
    Ok(OwnedCount {
        id: id(row.get(0)?),
        channel: text(row, 1)?.unwrap_or_default().into_owned(),
        lane: text(row, 2)?.map(Cow::into_owned),
        provider: text(row, 3)?.map(Cow::into_owned),
        token_count: integer(row, 4)?,
    })
}

pub(super) fn id(rowid: i64) -> MessageId {
    MessageId(u64::try_from(rowid).unwrap_or(0))
}

pub(super) fn rowid(id: MessageId) -> i64 {
    i64::try_from(id.0).unwrap_or(i64::MAX)
}
