//! Remembered answers: one row each, by the hash of its key.

use rusqlite::{Connection, OptionalExtension, params};

use super::rows::rowid;
use crate::protocol::MessageId;
use crate::store::{Given, Left, Receipt, Remembered};

/// What one takes in the file, about, with its place in the index.
pub(super) const BYTES: u64 = 200;

const INSERT: &str = "INSERT OR REPLACE INTO threadcast_idempotency
     (key, fingerprint, timestamp, number, changed, subscribers) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

const BOUND: &str = "DELETE FROM threadcast_idempotency WHERE id <= ?1";

const FIND: &str = "SELECT fingerprint, timestamp, number, changed, subscribers
     FROM threadcast_idempotency WHERE key = ?1 AND timestamp > ?2";

const OLDEST: &str = "SELECT timestamp FROM threadcast_idempotency ORDER BY id LIMIT 1";

/// In the order in which they came, so that it ends at the first that is young, whatever the
/// clock did.
const FORGET: &str = "DELETE FROM threadcast_idempotency WHERE timestamp <= ?1 AND id IN
     (SELECT id FROM threadcast_idempotency ORDER BY id LIMIT ?2)";

/// Inserts receipts of messages with these ids, and deletes the oldest beyond `most`.
pub(super) fn insert(
    connection: &Connection,
    receipts: &[Receipt],
    ids: &[MessageId],
    timestamp: &str,
    most: u64,
) -> rusqlite::Result<()> {
    if receipts.is_empty() {
        return Ok(());
    }
    let mut insert = connection.prepare_cached(INSERT)?;
    for receipt in receipts {
        let (number, changed) = match receipt.given {
            Given::Ids(first) => (rowid(ids[first]), false),
            Given::Rev(rev, changed) => (i64::try_from(rev.0).unwrap_or(i64::MAX), changed),
        };
        insert.execute(params![
            receipt.claim.key,
            receipt.claim.fingerprint,
            timestamp,
            number,
            changed,
            i64::try_from(receipt.subscribers).unwrap_or(i64::MAX)
        ])?;
    }
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    connection
        .prepare_cached(BOUND)?
        .execute([connection.last_insert_rowid() - most])?;
    Ok(())
}

/// What is remembered under a key, if it is younger than this.
pub(super) fn find(
    connection: &Connection,
    key: &[u8; 32],
    after: &str,
) -> rusqlite::Result<Option<Remembered>> {
    connection
        .prepare_cached(FIND)?
        .query_row(params![key, after], |row| {
            Ok(Remembered {
                fingerprint: row.get(0)?,
                timestamp: row.get(1)?,
                number: row.get::<_, i64>(2)?.try_into().unwrap_or(0),
                changed: row.get(3)?,
                subscribers: row.get::<_, i64>(4)?.try_into().unwrap_or(0),
            })
        })
        .optional()
}

/// What there is to delete. Takes no lock of the file.
pub(super) fn look(connection: &Connection, until: &str) -> rusqlite::Result<Left> {
    let oldest: Option<String> = connection
        .prepare_cached(OLDEST)?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(match oldest {
        None => Left::Nothing,
        Some(oldest) if oldest.as_str() > until => Left::Young,
        Some(_) => Left::Old,
    })
}

/// Deletes up to so many that are not younger than this.
pub(super) fn forget(connection: &Connection, until: &str, most: usize) -> rusqlite::Result<()> {
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    connection
        .prepare_cached(FORGET)?
        .execute(params![until, most])?;
    Ok(())
}
