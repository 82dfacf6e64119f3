//! SQLite: one writer connection, a few readers, write-ahead log.

mod pages;
mod pool;
mod reader;
mod receipts;
mod retention;
mod rows;
mod schema;
mod shared;
mod wal;

use std::path::Path;
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, Row, Transaction, TransactionBehavior, params};

use super::receipt::most_receipts;
use super::{Applied, Batch, Left, Remembered, Rule, Step, StoredState, Writer};
use crate::config::Sync;
use crate::error::{Error, Result};
use crate::history::Transition;
use crate::protocol::{Draft, MessageId};
use pages::Pages;
use pool::Pool;
use reader::SqliteReader;
use rows::id;
use wal::Flusher;

/// How long a commit waits for another program that has the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of the write-ahead log that stay when it starts anew. While somebody reads it may grow
/// beyond that.
const MAX_IDLE_LOG: i64 = 16 << 20;

/// How long closing waits for reads under way, and then for another program that reads or writes
/// the file.
const CLOSING_TIMEOUT: Duration = Duration::from_millis(500);

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

/// Opens the file and returns its writer and its readers.
pub(super) fn open(
    path: &Path,
    sync: Sync,
    max_bytes: Option<u64>,
) -> Result<(SqliteWriter, Arc<SqliteReader>)> {
    let refused = |reason: String| Error::Database {
        path: path.to_owned(),
        reason,
    };
    let mut connection = schema::open(path).map_err(refused)?;
    let synchronous = match sync {
        Sync::Normal => "NORMAL",
        Sync::Full => "FULL",
    };
    connection
        .pragma_update(None, "synchronous", synchronous)
        .and_then(|()| connection.pragma_update(None, "journal_size_limit", MAX_IDLE_LOG))
        .map_err(|error| refused(error.to_string()))?;
    let pool = |size| Pool::new(size, || connect(path)).map_err(|error| refused(error.to_string()));
    let readers = Arc::new(SqliteReader {
        // A program that embeds this may change its directory.
        path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
        serving: pool(READERS)?,
        replaying: pool(REPLAYERS)?,
        pages: Pages::default(),
        totals: Mutex::default(),
        holes: shared::holes(&connection).map_err(|error| refused(error.to_string()))?,
    });
    let flusher = match sync {
        Sync::Normal => wal::file(&connection, path).map(|log| Some(move || log.sync_data())),
        Sync::Full => Ok(None),
    };
    let flusher = flusher
        .and_then(|flush| wal::attend(&mut connection, wal::SOON, flush))
        .map_err(|error| refused(format!("its write-ahead log: {error}")))?;
    Ok((
        SqliteWriter {
            connection,
            flusher,
            readers: Arc::clone(&readers),
            warned: false,
            most_receipts: most_receipts(max_bytes, receipts::BYTES),
        },
        readers,
    ))
}

/// The journal's connection.
pub(super) struct SqliteWriter {
    connection: Connection,
    flusher: Option<Flusher>,
    readers: Arc<SqliteReader>,
    /// Deleting messages does not make the file small enough, which was logged.
    warned: bool,
    most_receipts: u64,
}

impl Writer for SqliteWriter {
    fn commit(&mut self, batch: &Batch<'_>) -> Result<Vec<MessageId>> {
        let most = self.most_receipts;
        let transaction = self.transaction()?;
        let ids = insert(&transaction, batch.drafts, batch.timestamp)?;
        put_states(&transaction, batch.states)?;
        insert_transitions(&transaction, batch.transitions, batch.timestamp)?;
        receipts::insert(&transaction, batch.receipts, &ids, batch.timestamp, most)?;
        transaction.commit()?;
        Ok(ids)
    }

    fn apply(&mut self, applied: &Applied<'_>) -> Result<()> {
        let holes = self.readers.holes.clone();
        let transaction = self.transaction()?;
        shared::insert(&transaction, applied.messages)?;
        put_states(&transaction, applied.states)?;
        for (timestamp, transitions) in applied.transitions {
            insert_transitions(&transaction, transitions, timestamp)?;
        }
        shared::put_mark(&transaction, applied.mark)?;
        if let Some(hole) = applied.hole {
            let list = holes.with(hole);
            shared::put_holes(&transaction, &list)?;
            // Before anybody can read what comes after it.
            holes.replace(list);
        }
        Ok(transaction.commit()?)
    }

    fn forget(&mut self, rule: &Rule, step: Step) -> Result<bool> {
        // Whoever counts everything for the first time takes seconds: deleting is tried again.
        let mut totals = match self.readers.totals.try_lock() {
            Ok(totals) => totals,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        let (through, counts) = &mut *totals;
        let has_holes = !self.readers.holes.is_empty();
        // Deleting can wait, and the publishers behind it must not.
        self.connection.busy_timeout(Duration::ZERO)?;
        let forgotten = retention::forget(&mut self.connection, rule, step, has_holes);
        self.connection.busy_timeout(BUSY_TIMEOUT)?;
        let forgotten = forgotten?;
        if forgotten.in_vain && !self.warned {
            log::warn!(
                "the database is larger than --max-db-bytes although only the newest message is left"
            );
        }
        self.warned = forgotten.in_vain;
        for message in forgotten.messages {
            if message.id <= *through {
                counts.remove(&message.as_counted());
            }
        }
        Ok(forgotten.more)
    }

    fn remembered(&mut self, key: &[u8; 32], after: &str) -> Result<Option<Remembered>> {
        Ok(receipts::find(&self.connection, key, after)?)
    }

    fn forget_receipts(&mut self, until: &str, most: usize) -> Result<Left> {
        if receipts::look(&self.connection, until)? == Left::Old {
            // Deleting can wait, and the publishers behind it must not.
            self.connection.busy_timeout(Duration::ZERO)?;
            let forgotten = receipts::forget(&self.connection, until, most);
            self.connection.busy_timeout(BUSY_TIMEOUT)?;
            forgotten?;
        }
        Ok(receipts::look(&self.connection, until)?)
    }

    fn close(mut self: Box<Self>) {
        // The last connection to close removes the write-ahead log, and a read-only one cannot.
        let deadline = Instant::now() + CLOSING_TIMEOUT;
        self.readers.serving.close(deadline);
        self.readers.replaying.close(deadline);
        // Another program that reads the file holds up a checkpoint, not us for long.
        let _ = self.connection.busy_timeout(CLOSING_TIMEOUT);
        let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
        let is_busy = |row: &Row<'_>| row.get::<_, bool>(0);
        let why = match self.connection.query_row(checkpoint, [], is_busy) {
            Ok(false) => None,
            Ok(true) => Some("another program reads the database".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = why {
            log::warn!("the write-ahead log stays beside the database, nothing is lost: {why}");
        }
        if let Some(flusher) = self.flusher.take() {
            flusher.stop(&mut self.connection);
        }
    }
}

impl SqliteWriter {
    /// One that is dropped uncommitted is rolled back.
    fn transaction(&mut self) -> rusqlite::Result<Transaction<'_>> {
        if !self.connection.is_autocommit() {
            // An earlier rollback failed (a disk error); without this every later commit would.
            self.connection.execute_batch("ROLLBACK")?;
        }
        self.connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
    }
}

fn put_states(connection: &Connection, states: &[StoredState]) -> rusqlite::Result<()> {
    for stored in states {
        let rev = i64::try_from(stored.rev.0).unwrap_or(i64::MAX);
        connection.prepare_cached(PUT_STATE)?.execute(params![
            stored.feed.as_str(),
            rev,
            stored.state,
            stored.own
        ])?;
    }
    Ok(())
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

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.to_string())
    }
}
