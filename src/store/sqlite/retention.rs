//! Deleting the oldest messages of the database, a few at a time.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::rows::{OwnedCount, counted};
use crate::store::{Rule, Step};

/// The least that is given back at once: moving so many pages takes about a millisecond.
const PAGES_AT_ONCE: i64 = 64;

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
    /// The file is too large, and only the newest message is left.
    pub(super) in_vain: bool,
}

/// Deletes up to a step's messages that the rule does not keep, in one transaction.
pub(super) fn forget(
    connection: &mut Connection,
    rule: &Rule,
    step: Step,
    has_holes: bool,
) -> rusqlite::Result<Forgotten> {
    // Most of the time there is nothing to do, which needs no transaction: nobody else writes.
    let pages = Pages::of(connection, rule)?;
    let chosen = choose(connection, rule, step, &pages, has_holes)?;
    if chosen.last.is_none() && !pages.are_to_be_given_back() {
        return Ok(Forgotten {
            in_vain: pages.excess_bytes() > 0,
            ..Forgotten::default()
        });
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
    let at_once = PAGES_AT_ONCE.max(i64::try_from(step.bytes).unwrap_or(i64::MAX) / pages.size);
    let gave_back = give_back(&transaction, rule, at_once)?;
    transaction.commit()?;
    Ok(Forgotten {
        messages,
        more: chosen.more || gave_back,
        in_vain: false,
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
    step: Step,
    pages: &Pages,
    has_holes: bool,
) -> rusqlite::Result<Chosen> {
    let newest = newest(connection)?;
    let kept_after = match rule.keep_messages {
        Some(most) if has_holes => beyond(connection, most)?,
        // Ids have no holes, but for what other programs delete.
        Some(most) => newest - i64::try_from(most).unwrap_or(i64::MAX),
        None => 0,
    };
    let excess_bytes = pages.excess_bytes();
    let mut oldest = connection.prepare_cached(
        "SELECT id, timestamp, octet_length(author) + octet_length(content)
         FROM messages ORDER BY id",
    )?;
    let mut rows = oldest.query([])?;
    let max_bytes = i64::try_from(step.bytes).unwrap_or(i64::MAX);
    let (mut chosen, mut count, mut bytes) = (Chosen::default(), 0, 0);
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let is_too_old = match &rule.not_before {
            Some(limit) => row
                .get_ref(1)?
                .as_str()
                .is_ok_and(|time| is_before(time, limit)),
            None => false,
        };
        let is_too_much = bytes < excess_bytes && id < newest;
        if id > kept_after && !is_too_old && !is_too_much {
            break;
        }
        if count >= step.messages || bytes >= max_bytes {
            chosen.more = true;
            break;
        }
        chosen.last = Some(id);
        count += 1;
        bytes += ROW_BYTES + row.get::<_, Option<i64>>(2)?.unwrap_or(0);
    }
    Ok(chosen)
}

/// Whether a timestamp is earlier than another of our own form. The first seed's are alike, and
/// some programs write a space for the `T`; what is of no known form is not earlier.
fn is_before(time: &str, limit: &str) -> bool {
    const SECONDS: usize = "2026-01-05T12:34:56".len();
    let Some(seconds) = time.get(..SECONDS) else {
        return false;
    };
    let is_known = seconds.bytes().enumerate().all(|(at, byte)| match at {
        4 | 7 => byte == b'-',
        10 => matches!(byte, b'T' | b't' | b' '),
        13 | 16 => byte == b':',
        _ => byte.is_ascii_digit(),
    });
    // A second more or less does not matter.
    let (date, clock) = (&seconds[..10], &seconds[11..]);
    is_known && (date, clock) < (&limit[..10], &limit[11..SECONDS])
}

/// The newest message that is not one of the newest so many, by counting them; 0 if there is none.
fn beyond(connection: &Connection, most: u64) -> rusqlite::Result<i64> {
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let found = connection
        .prepare_cached("SELECT id FROM messages ORDER BY id DESC LIMIT 1 OFFSET ?1")?
        .query_row([most], |row| row.get(0))
        .optional()?;
    Ok(found.unwrap_or(0))
}

fn newest(connection: &Connection) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("SELECT coalesce(max(id), 0) FROM messages")?
        .query_row([], |row| row.get(0))
}

/// Gives free pages back to the disk, some at a time; whether that did anything. A file that
/// another program made keeps them for later messages.
fn give_back(connection: &Connection, rule: &Rule, at_once: i64) -> rusqlite::Result<bool> {
    let pages = Pages::of(connection, rule)?;
    if !pages.are_to_be_given_back() {
        return Ok(false);
    }
    let mut vacuum = connection.prepare(&format!("PRAGMA incremental_vacuum({at_once})"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certainly_earlier_is_earlier() {
        let limit = "2026-11-25T23:16:33.000000+00:00";
        for earlier in [
            "2026-11-25T23:16:32.999999+00:00",
            "2026-11-25 23:16:32",
            "2026-11-24T23:59:59Z",
            "0001-01-01t00:00:00",
        ] {
            assert!(is_before(earlier, limit), "{earlier}");
        }
        for other in [
            limit,
            "2026-11-25 23:16:33",
            "2026-11-26T00:00:00Z",
            "9999-12-31T00:00:00",
            "",
            "yesterday",
            "1764112593",
            "2026-11-25",
            "25.11.2025 23:16:32",
        ] {
            assert!(!is_before(other, limit), "{other}");
        }
    }
}
