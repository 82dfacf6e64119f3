//! This node's part of a log of several nodes: messages with the ids that they have there, up to
//! where it is, and what is missing.

use rusqlite::{Connection, OptionalExtension, params};

use super::rows::{id, rowid};
use crate::protocol::{Hole, LogMark, Message};
use crate::store::holes::Holes;

const INSERT: &str = "INSERT OR IGNORE INTO messages
     (id, channel_id, author, content, timestamp, lane, provider, token_count)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

const PUT_MARK: &str = "INSERT OR REPLACE INTO threadcast_log (id, identity, position, batch)
     VALUES (1, ?1, ?2, ?3)";

pub(super) fn insert(connection: &Connection, messages: &[Message]) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(INSERT)?;
    for message in messages {
        insert.execute(params![
            rowid(message.id),
            message.channel_id.as_str(),
            message.author,
            message.content,
            message.timestamp,
            message.lane,
            message.provider,
            message.token_count
        ])?;
    }
    Ok(())
}

pub(super) fn put_mark(connection: &Connection, mark: &LogMark) -> rusqlite::Result<()> {
    connection.prepare_cached(PUT_MARK)?.execute(params![
        mark.identity,
        mark.position.to_string(),
        mark.batch
    ])?;
    Ok(())
}

/// Where it was left; the beginning of none if it never was in any.
pub(super) fn mark(connection: &Connection) -> rusqlite::Result<LogMark> {
    let found = connection
        .prepare_cached("SELECT identity, position, batch FROM threadcast_log WHERE id = 1")?
        .query_row([], |row| {
            Ok(LogMark {
                identity: row.get(0)?,
                position: row.get::<_, String>(1)?.parse().unwrap_or_default(),
                batch: row.get(2)?,
            })
        })
        .optional()?;
    Ok(found.unwrap_or_default())
}

pub(super) fn put_holes(connection: &Connection, holes: &[Hole]) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM threadcast_holes", [])?;
    let mut insert = connection
        .prepare_cached("INSERT OR REPLACE INTO threadcast_holes (first, last) VALUES (?1, ?2)")?;
    for hole in holes {
        insert.execute([rowid(hole.first), rowid(hole.last)])?;
    }
    Ok(())
}

pub(super) fn holes(connection: &Connection) -> rusqlite::Result<Holes> {
    let list = connection
        .prepare("SELECT first, last FROM threadcast_holes ORDER BY first")?
        .query_map([], |row| {
            Ok(Hole {
                first: id(row.get(0)?),
                last: id(row.get(1)?),
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    Ok(Holes::new(list))
}
