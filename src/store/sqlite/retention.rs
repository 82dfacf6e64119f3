//! Deleting the oldest messages of the database, a few at a time.

use rusqlite::{Connection, TransactionBehavior};

use super::rows::{OwnedCount, counted};
use crate::store::Rule;

/// Pages given back at once: moving so many takes about a millisecond.
const PAGES_AT_ONCE: i64 = 64;

/// Bytes of messages deleted at once, so that a step with large ones stays short, too.
const MAX_STEP_BYTES: i64 = 1 << 20;

/// What a message takes beside its texts, about, with its entries in the indexes.
const ROW_BYTES: i64 = 100;

/// Free pages that stay in the file for the messages to come, as a part of it.
const FREE_PART: i64 = 8;

/// The value of `PRAGMA auto_vacuum` for that mode.
const INCREMENTAL: i64 = 2;

/// How full the file is, in pages.
struct Pages {
    all: i64,
    free: i64,
    max: i64,
    /// Bytes of one.
    size: i64,
    /// The file was made so that it can (`auto_vacuum`).
    can_shrink: bool,
}

/// What a step has done.
#[derive(Default)]
pub(super) struct Forgotten {
    /// The messages that are gone.
    pub(super) messages: Vec<OwnedCount>,
    /// There is more to do.
    pub(super) more: bool,
}

/// Deletes up to `limit` messages that the rule does not keep, in one transaction.
pub(super) fn forget(
    connection: &mut Connection,
    rule: &Rule,
    limit: usize,
) -> rusqlite::Result<Forgotten> {
    // Most of the time there is nothing to do, which needs no transaction: nobody else writes.
    let pages = Pages::of(connection, rule)?;
    let chosen = choose(connection, rule, limit, &pages)?;
    if chosen.last.is_none() && !pages.are_to_be_given_back() {
        return Ok(Forgotten::default());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut messages = Vec::new();
    if let Some(last) = chosen.last {
        let mut delete = transaction.prepare_cached(
            "DELETE FROM messages WHERE id <= ?1
             RETURNING id, channel_id, lane, provider, token_count",
        )?;
        let mut rows = delete.query([last])?;
        while let Some(row) = rows.next()? {
            messages.push(counted(row)?);
        }
    }
    let gave_back = give_back(&transaction, rule)?;
    transaction.commit()?;
    Ok(Forgotten {
        messages,
        more: chosen.more || gave_back,
    })
}

/// Which messages go now.
#[derive(Default)]
struct Chosen {
    /// The newest of them.
    last: Option<i64>,
    /// There were too many for one step.
    more: bool,
}

fn choose(
    connection: &Connection,
    rule: &Rule,
    limit: usize,
    pages: &Pages,
) -> rusqlite::Result<Chosen> {
    let kept_after = match rule.keep_messages {
        // Ids have no holes, but for what other programs delete.
        Some(most) => newest(connection)? - i64::try_from(most).unwrap_or(i64::MAX),
        None => 0,
    };
    let excess_bytes = pages.excess_bytes();
    let mut oldest = connection.prepare_cached(
        "SELECT id, timestamp, octet_length(author) + octet_length(content)
         FROM messages ORDER BY id",
    )?;
    let mut rows = oldest.query([])?;
    let (mut chosen, mut count, mut bytes) = (Chosen::default(), 0, 0);
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let is_too_old = match &rule.not_before {
            Some(limit) => row.get_ref(1)?.as_str().is_ok_and(|time| time < &limit[..]),
            None => false,
        };
        if id > kept_after && !is_too_old && bytes >= excess_bytes {
            break;
        }
        if count >= limit || bytes >= MAX_STEP_BYTES {
            chosen.more = true;
            break;
        }
        chosen.last = Some(id);
        count += 1;
        bytes += ROW_BYTES + row.get::<_, Option<i64>>(2)?.unwrap_or(0);
    }
    Ok(chosen)
}

fn newest(connection: &Connection) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("SELECT coalesce(max(id), 0) FROM messages")?
        .query_row([], |row| row.get(0))
}

/// Gives free pages back to the disk, some at a time; whether that did anything. A file that
/// another program made keeps them for later messages.
fn give_back(connection: &Connection, rule: &Rule) -> rusqlite::Result<bool> {
    let pages = Pages::of(connection, rule)?;
    if !pages.are_to_be_given_back() {
        return Ok(false);
    }
    let mut vacuum =
        connection.prepare_cached(&format!("PRAGMA incremental_vacuum({PAGES_AT_ONCE})"))?;
    // Each step gives back one page.
    let mut rows = vacuum.query([])?;
    while rows.next()?.is_some() {}
    Ok(Pages::of(connection, rule)?.free < pages.free)
}

impl Pages {
    fn of(connection: &Connection, rule: &Rule) -> rusqlite::Result<Self> {
        let pragma = |name: &str| -> rusqlite::Result<i64> {
            connection
                .prepare_cached(&format!("PRAGMA {name}"))?
                .query_row([], |row| row.get(0))
        };
        let size = pragma("page_size")?.max(1);
        let max = match rule.max_db_bytes {
            Some(bytes) => i64::try_from(bytes).unwrap_or(i64::MAX) / size,
            None => i64::MAX,
        };
        Ok(Self {
            all: pragma("page_count")?,
            free: pragma("freelist_count")?,
            max,
            size,
            can_shrink: pragma("auto_vacuum")? == INCREMENTAL,
        })
    }

    /// How much more than may be is in use.
    fn excess_bytes(&self) -> i64 {
        (self.all - self.free - self.max).max(0) * self.size
    }

    fn are_to_be_given_back(&self) -> bool {
        self.can_shrink
            && self.free > 0
            && (self.all > self.max || self.free > (self.all / FREE_PART).max(PAGES_AT_ONCE))
    }
}
