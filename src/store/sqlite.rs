//! SQLite: one writer connection, a few readers, write-ahead log.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Row, TransactionBehavior, named_params, params,
};

use super::pool::Pool;
use super::totals::{Counted, Totals};
use super::{
    Batch, ChannelTotals, Missed, MissedPage, Page, PageBudget, Reader, Rule, StoredState, Summary,
    Writer, retention, schema,
};
use crate::config::Sync;
use crate::error::{Error, Result};
use crate::history::Transition;
use crate::protocol::{Channel, Draft, Message, MessageId, Rev, State};

/// How long a commit waits for another program that has the file locked.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that read for REST, one for each of its threads.
const READERS: usize = 2;

/// Connections that read for subscribers who catch up. They take turns: a thousand who come
/// back at once read no faster with more, and each costs memory and three descriptors.
const REPLAYERS: usize = 2;

const INSERT: &str =
    "INSERT INTO messages (channel_id, author, content, timestamp, lane, provider, token_count)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

const PUT_STATE: &str = "INSERT INTO threadcast_feeds (feed, rev, state, own) VALUES (?1, ?2, ?3, ?4)
     ON CONFLICT (feed) DO UPDATE SET rev = excluded.rev, state = excluded.state, own = excluded.own";

const INSERT_TRANSITION: &str =
    "INSERT INTO threadcast_workflow_history (workflow, change, timestamp, state)
     VALUES (?1, ?2, ?3, ?4)";

const FORGET_TRANSITIONS: &str = "DELETE FROM threadcast_workflow_history WHERE id <= ?1";

/// Transitions of workflows that are kept.
const KEPT_TRANSITIONS: i64 = 10_000;

/// Transitions of one change that are kept, the last: a list of thousands that appears or
/// goes at once must not hold up the messages behind it.
const MAX_TRANSITIONS: usize = 1000;

const COLUMNS: &str = "id, channel_id, author, content, timestamp, lane, provider, token_count";

/// Opens the file and returns its writer and its readers.
pub(super) fn open(path: &Path, sync: Sync) -> Result<(SqliteWriter, Arc<SqliteReader>)> {
    let refused = |reason: String| Error::Database {
        path: path.to_owned(),
        reason,
    };
    let connection = schema::open(path).map_err(refused)?;
    let synchronous = match sync {
        Sync::Normal => "NORMAL",
        Sync::Full => "FULL",
    };
    connection
        .pragma_update(None, "synchronous", synchronous)
        .map_err(|error| refused(error.to_string()))?;
    let pool = |size| Pool::new(size, || connect(path)).map_err(|error| refused(error.to_string()));
    let readers = Arc::new(SqliteReader {
        serving: pool(READERS)?,
        replaying: pool(REPLAYERS)?,
        totals: Mutex::default(),
    });
    Ok((
        SqliteWriter {
            connection,
            readers: Arc::clone(&readers),
        },
        readers,
    ))
}

/// The journal's connection.
pub(super) struct SqliteWriter {
    connection: Connection,
    readers: Arc<SqliteReader>,
}

impl Writer for SqliteWriter {
    fn commit(&mut self, batch: &Batch<'_>) -> Result<Vec<MessageId>> {
        if !self.connection.is_autocommit() {
            // An earlier rollback failed (a disk error); without this every later commit would.
            self.connection.execute_batch("ROLLBACK")?;
        }
        // A transaction that is dropped uncommitted is rolled back.
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let ids = insert(&transaction, batch.drafts, batch.timestamp)?;
        for stored in batch.states {
            let rev = i64::try_from(stored.rev.0).unwrap_or(i64::MAX);
            transaction.prepare_cached(PUT_STATE)?.execute(params![
                stored.feed.as_str(),
                rev,
                stored.state,
                stored.own
            ])?;
        }
        insert_transitions(&transaction, batch.transitions, batch.timestamp)?;
        transaction.commit()?;
        Ok(ids)
    }

    fn forget(&mut self, rule: &Rule, limit: usize) -> Result<bool> {
        // Whoever counts everything for the first time takes seconds: deleting waits.
        let mut totals = match self.readers.totals.try_lock() {
            Ok(totals) => totals,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        let (through, counts) = &mut *totals;
        let forgotten = retention::forget(&mut self.connection, rule, limit)?;
        for message in forgotten.messages {
            if message.id <= *through {
                counts.remove(&message.as_counted());
            }
        }
        Ok(forgotten.more)
    }

    fn close(self: Box<Self>) {
        // The last connection to close removes the write-ahead log, and a read-only one cannot.
        self.readers.serving.close();
        self.readers.replaying.close();
        let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
        if let Err(error) = self.connection.query_row(checkpoint, [], |_| Ok(())) {
            log::warn!("the write-ahead log stays beside the database, nothing is lost: {error}");
        }
    }
}

fn insert_transitions(
    connection: &Connection,
    transitions: &[Transition],
    timestamp: &str,
) -> rusqlite::Result<()> {
    if transitions.is_empty() {
        return Ok(());
    }
    let mut insert = connection.prepare_cached(INSERT_TRANSITION)?;
    for step in &transitions[transitions.len().saturating_sub(MAX_TRANSITIONS)..] {
        let state =
            serde_json::to_string(&step.state).expect("a JSON object always has a JSON form");
        insert.execute(params![
            step.workflow,
            step.change.as_str(),
            timestamp,
            state
        ])?;
    }
    connection
        .prepare_cached(FORGET_TRANSITIONS)?
        .execute([connection.last_insert_rowid() - KEPT_TRANSITIONS])?;
    Ok(())
}

fn insert(
    connection: &Connection,
    drafts: &[Draft],
    timestamp: &str,
) -> rusqlite::Result<Vec<MessageId>> {
    let mut insert = connection.prepare_cached(INSERT)?;
    let mut ids = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let name = draft.channel_id.as_str();
        insert.execute(params![
            name,
            draft.author,
            draft.content,
            timestamp,
            draft.lane,
            draft.provider,
            draft.token_count
        ])?;
        ids.push(id(connection.last_insert_rowid()));
    }
    Ok(ids)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // SQLite opens the rest of its files with the first read.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(connection)
}

/// Read-only connections, in two pools so that neither kind of reader waits for the other.
pub(super) struct SqliteReader {
    serving: Pool,
    replaying: Pool,
    /// Counts of all messages up to an id; only newer ones are read when somebody asks.
    totals: Mutex<(MessageId, Totals)>,
}

impl SqliteReader {
    /// The counts, brought up to date. The first call reads the whole table.
    fn totals<T>(&self, take: impl FnOnce(&Totals) -> T) -> Result<T> {
        let mut locked = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let (through, totals) = &mut *locked;
        self.serving.read(|connection| {
            let mut newer = connection
                .prepare_cached("SELECT id, channel_id, lane, provider, token_count FROM messages WHERE id > ?1 ORDER BY id")?;
            let mut rows = newer.query([rowid(*through)])?;
            while let Some(row) = rows.next()? {
                let counted = counted(row)?;
                totals.add(&counted.as_counted());
                *through = counted.id;
            }
            Ok(())
        })?;
        Ok(take(totals))
    }
}

impl Reader for SqliteReader {
    fn head(&self) -> Result<MessageId> {
        // The sequence remembers ids whose messages are gone.
        self.serving.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'messages'), 0),
                                coalesce((SELECT max(id) FROM messages), 0))",
                )?
                .query_row([], |row| row.get(0).map(id))
        })
    }

    fn page(&self, page: &Page) -> Result<Vec<Message>> {
        let (messages, _) = self
            .serving
            .read(|connection| read_page(connection, page))?;
        Ok(messages)
    }

    fn missed(&self, missed: &Missed<'_>) -> Result<MissedPage> {
        self.replaying.read(|connection| {
            // One snapshot: what is deleted between the two is either in both or in neither.
            let snapshot = connection.unchecked_transaction()?;
            let (messages, complete) = read_page(&snapshot, &missed.page())?;
            Ok(MissedPage {
                messages,
                complete,
                oldest: oldest(&snapshot)?,
            })
        })
    }

    fn oldest(&self) -> Result<MessageId> {
        self.replaying.read(oldest)
    }

    fn nth_newest(
        &self,
        channel: &Channel,
        head: MessageId,
        n: usize,
    ) -> Result<Option<MessageId>> {
        let offset = i64::try_from(n).unwrap_or(i64::MAX).saturating_sub(1);
        self.replaying.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT id FROM messages WHERE channel_id = ?1 AND id <= ?2
                     ORDER BY id DESC LIMIT 1 OFFSET ?3",
                )?
                .query_row(params![channel.as_str(), rowid(head), offset], |row| {
                    row.get(0).map(id)
                })
                .optional()
        })
    }

    fn channels(&self) -> Result<Vec<ChannelTotals>> {
        self.totals(Totals::channels)
    }

    fn summary(&self) -> Result<Summary> {
        self.totals(Totals::summary)
    }

    fn states(&self) -> Result<Vec<StoredState>> {
        let rows: Vec<_> = self.serving.read(|connection| {
            connection
                .prepare("SELECT feed, rev, state, own FROM threadcast_feeds ORDER BY feed")?
                .query_map([], |row| {
                    Ok((
                        text(row, 0)?.unwrap_or_default(),
                        integer(row, 1)?.unwrap_or_default(),
                        text(row, 2)?.unwrap_or_default(),
                        integer(row, 3)? == Some(1),
                    ))
                })?
                .collect()
        })?;
        let mut states = Vec::with_capacity(rows.len());
        for (name, rev, state, own) in rows {
            match stored_state(&name, rev, &state, own) {
                Ok(state) => states.push(state),
                // Another program wrote it; the others must not suffer from that.
                Err(why) => log::error!("the stored feed {name:?} is left out: {why}"),
            }
        }
        Ok(states)
    }
}

/// A state that cannot be read is null, so that its feed goes on with its revision.
fn stored_state(name: &str, rev: i64, state: &str, own: bool) -> Result<StoredState, String> {
    let state = State::parse(state.as_bytes()).unwrap_or_else(|error| {
        log::error!("the stored state of the feed {name:?} is not JSON, it is null now: {error}");
        State::from(serde_json::Value::Null)
    });
    Ok(StoredState {
        feed: name.parse()?,
        rev: Rev(u64::try_from(rev).map_err(|_| format!("its revision is {rev}"))?),
        state: state.into_text(),
        own,
    })
}

/// A page, and whether nothing was left out at its end.
fn read_page(connection: &Connection, page: &Page) -> rusqlite::Result<(Vec<Message>, bool)> {
    let since = page.since.map_or(-1, rowid);
    let before = page.before.map_or(i64::MAX, rowid);
    // One more than wanted tells whether there is more.
    let limit = i64::try_from(page.limit)
        .unwrap_or(i64::MAX)
        .saturating_add(1);
    let mut select = connection.prepare_cached(&page_sql(page))?;
    let mut rows = match &page.channel {
        Some(channel) => select.query(
            named_params! {":channel": channel.as_str(), ":since": since, ":before": before, ":limit": limit},
        )?,
        None => select.query(named_params! {":since": since, ":before": before, ":limit": limit})?,
    };
    let mut budget = PageBudget::new(page);
    let mut messages = Vec::new();
    while let Some(row) = rows.next()? {
        let message = message(row)?;
        if !budget.takes(&message) {
            break;
        }
        messages.push(message);
    }
    drop(rows);
    if page.since.is_none() {
        messages.reverse();
    }
    Ok((messages, !budget.exceeded))
}

/// Without a scan: the first entry of the table's tree, or the sequence.
fn oldest(connection: &Connection) -> rusqlite::Result<MessageId> {
    connection
        .prepare_cached(
            "SELECT coalesce((SELECT min(id) FROM messages),
                             (SELECT seq FROM sqlite_sequence WHERE name = 'messages') + 1,
                             1)",
        )?
        .query_row([], |row| row.get(0).map(id))
}

/// One seek, then as many steps as the page is long: an index of a channel ends with the id.
fn page_sql(page: &Page) -> String {
    let channel = if page.channel.is_some() {
        "channel_id = :channel AND "
    } else {
        ""
    };
    let order = if page.since.is_some() { "ASC" } else { "DESC" };
    format!(
        "SELECT {COLUMNS} FROM messages WHERE {channel}id > :since AND id < :before ORDER BY id {order} LIMIT :limit"
    )
}

fn message(row: &Row<'_>) -> rusqlite::Result<Message> {
    Ok(Message {
        id: id(row.get(0)?),
        channel_id: Channel::stored(&text(row, 1)?.unwrap_or_default()),
        author: text(row, 2)?.unwrap_or_default(),
        content: text(row, 3)?.unwrap_or_default(),
        timestamp: text(row, 4)?.unwrap_or_default(),
        lane: text(row, 5)?,
        provider: text(row, 6)?,
        token_count: integer(row, 7)?,
    })
}

/// A column as text: SQLite's columns take any type, and another program may have written it.
fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<String>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Null => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
            Some(String::from_utf8_lossy(bytes).into_owned())
        }
    })
}

fn integer(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<i64>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Integer(number) => Some(number),
        ValueRef::Real(number) => Some(number as i64),
        _ => None,
    })
}

/// What counts of a message, read from columns id, channel_id, lane, provider, token_count.
pub(super) struct OwnedCount {
    id: MessageId,
    channel: String,
    lane: Option<String>,
    provider: Option<String>,
    token_count: Option<i64>,
}

impl OwnedCount {
    fn as_counted(&self) -> Counted<'_> {
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
        channel: text(row, 1)?.unwrap_or_default(),
        lane: text(row, 2)?,
        provider: text(row, 3)?,
        token_count: integer(row, 4)?,
    })
}

fn id(rowid: i64) -> MessageId {
    MessageId(u64::try_from(rowid).unwrap_or(0))
}

fn rowid(id: MessageId) -> i64 {
    i64::try_from(id.0).unwrap_or(i64::MAX)
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The promise that history costs the same however much of it there is.
    #[test]
    fn a_page_of_a_channel_is_one_index_seek() {
        let dir = tempfile::tempdir().expect("a directory");
        let (writer, _) = open(&dir.path().join("plan.db"), Sync::Normal).expect("a database");
        for (since, before) in [
            (Some(5), None),
            (None, Some(9)),
            (None, None),
            (Some(5), Some(9)),
        ] {
            let page = Page {
                channel: Some("lab".parse().expect("a channel")),
                since: since.map(MessageId),
                before: before.map(MessageId),
                limit: 10,
                max_bytes: 1 << 20,
            };
            let plan: Vec<String> = writer
                .connection
                .prepare(&format!("EXPLAIN QUERY PLAN {}", page_sql(&page)))
                .and_then(|mut explain| {
                    explain
                        .query_map(named_params! {":channel": "lab", ":since": 5, ":before": 9, ":limit": 10}, |row| row.get(3))?
                        .collect()
                })
                .expect("a plan");
            let [step] = &plan[..] else {
                panic!("more than one step: {plan:?}")
            };
            assert!(step.contains("SEARCH messages USING INDEX idx_messages_channel_id (channel_id=? AND rowid>? AND rowid<?)"), "{step}");
        }
    }
}
