//! The database file: what is in it, and whether a file that is there can be used.
//!
//! Version 1 is the table and indexes of the first seed's store, so that a file of either is
//! readable by both; tables with a prefix of ours beside it disturb nobody. A refused file is
//! not touched.

use std::fs;
use std::io::Read;
use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags};

/// `PRAGMA user_version` of the files this program writes; 0 is a new file or the first seed's.
const VERSION: i64 = 1;

/// The first bytes of every SQLite file (sqlite.org/fileformat2.html, section 1.3.1).
const MAGIC: &[u8] = b"SQLite format 3\0";

/// Length of a file's header, and where it has the version (section 1.3).
const HEADER_BYTES: u64 = 100;
const USER_VERSION: std::ops::Range<usize> = 60..64;

const COLUMNS: [&str; 8] = [
    "id",
    "channel_id",
    "author",
    "content",
    "timestamp",
    "lane",
    "provider",
    "token_count",
];

const TABLE: &str = "CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    channel_id TEXT NOT NULL,
    author TEXT NOT NULL,
    content TEXT NOT NULL,
    timestamp TEXT NOT NULL,
    lane TEXT,
    provider TEXT,
    token_count INTEGER
)";

/// States of feeds, what happened to workflows, remembered answers, and what there is of the log
/// of several nodes, with the columns they must have.
const OWN_TABLES: [(&str, &[&str], &str); 5] = [
    (
        "threadcast_feeds",
        &["feed", "rev", "state", "own"],
        "CREATE TABLE IF NOT EXISTS threadcast_feeds (
    feed TEXT PRIMARY KEY NOT NULL,
    rev INTEGER NOT NULL,
    state TEXT NOT NULL,
    own INTEGER NOT NULL
)",
    ),
    (
        "threadcast_workflow_history",
        &["id", "workflow", "change", "timestamp", "state"],
        "CREATE TABLE IF NOT EXISTS threadcast_workflow_history (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    workflow TEXT NOT NULL,
    change TEXT NOT NULL,
    timestamp TEXT NOT NULL,
    state TEXT NOT NULL
)",
    ),
    (
        "threadcast_idempotency",
        &[
            "id",
            "key",
            "fingerprint",
            "timestamp",
            "number",
            "changed",
            "subscribers",
        ],
        "CREATE TABLE IF NOT EXISTS threadcast_idempotency (
    id INTEGER PRIMARY KEY,
    key BLOB UNIQUE NOT NULL,
    fingerprint BLOB NOT NULL,
    timestamp TEXT NOT NULL,
    number INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    subscribers INTEGER NOT NULL
)",
    ),
    (
        "threadcast_log",
        &["id", "identity", "position", "batch"],
        "CREATE TABLE IF NOT EXISTS threadcast_log (
    id INTEGER PRIMARY KEY,
    identity TEXT NOT NULL,
    position TEXT NOT NULL,
    batch TEXT NOT NULL
)",
    ),
    (
        "threadcast_holes",
        &["first", "last"],
        "CREATE TABLE IF NOT EXISTS threadcast_holes (
    first INTEGER PRIMARY KEY,
    last INTEGER NOT NULL
)",
    ),
];

/// Opens the file for the writer: created when it isn't there, checked when it is.
pub(super) fn open(path: &Path) -> Result<Connection, String> {
    check_file(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection =
        Connection::open_with_flags(path, flags).map_err(|error| explain(&error))?;
    connection
        .busy_timeout(super::BUSY_TIMEOUT)
        .map_err(|error| explain(&error))?;
    check_content(&connection)?;
    create(&mut connection).map_err(|error| explain(&error))?;
    Ok(connection)
}

/// Looks at the file itself, because SQLite would take a short foreign file for a new database.
fn check_file(path: &Path) -> Result<(), String> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return check_directory(path),
        Err(error) => return Err(error.to_string()),
    };
    if !metadata.is_file() {
        return Err("it is not a file".to_owned());
    }
    let mut start = Vec::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(HEADER_BYTES)
        .read_to_end(&mut start)
        .map_err(|error| error.to_string())?;
    if !start.is_empty() && !start.starts_with(MAGIC) {
        return Err("it is not a SQLite database; name another file with --db".to_owned());
    }
    // Before SQLite opens it, which would replay what a crash left beside a newer file.
    match start.get(USER_VERSION) {
        Some(bytes) => check_version(
            bytes
                .iter()
                .fold(0, |version, byte| version << 8 | i64::from(*byte)),
        ),
        None => Ok(()),
    }
}

fn check_directory(path: &Path) -> Result<(), String> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
            Err(format!("the directory {} does not exist", parent.display()))
        }
        _ => Ok(()),
    }
}

fn check_content(connection: &Connection) -> Result<(), String> {
    let version: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(|error| explain(&error))?;
    check_version(version)?;
    for (table, expected, _) in OWN_TABLES {
        let columns = columns(connection, table)?;
        let missing = expected
            .iter()
            .find(|column| !columns.iter().any(|name| name == *column));
        if let Some(column) = missing
            && !columns.is_empty()
        {
            return Err(format!("its table `{table}` has no column `{column}`"));
        }
    }
    let columns = columns(connection, "messages")?;
    if columns.is_empty() {
        let tables = names(
            connection,
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
        )?;
        return match tables.first() {
            None => Ok(()),
            Some(table) => Err(format!(
                "it belongs to another program: it has a table `{table}` and no `messages`"
            )),
        };
    }
    if let Some(column) = COLUMNS
        .iter()
        .find(|column| !columns.iter().any(|name| name == *column))
    {
        return Err(format!(
            "it belongs to another program: its table `messages` has no column `{column}`"
        ));
    }
    // AUTOINCREMENT is only there on an INTEGER PRIMARY KEY of a table with rowids.
    let ours = names(
        connection,
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name = 'messages'
         AND sql LIKE '%AUTOINCREMENT%'
         AND (SELECT name FROM pragma_table_info('messages') WHERE pk = 1) = 'id'",
    )?;
    if ours.is_empty() {
        return Err("it belongs to another program: the `id` of its `messages` is no INTEGER PRIMARY KEY AUTOINCREMENT".to_owned());
    }
    let required = names(
        connection,
        "SELECT name FROM pragma_table_info('messages') WHERE \"notnull\" AND dflt_value IS NULL AND pk = 0",
    )?;
    match required
        .iter()
        .find(|name| !COLUMNS.contains(&name.as_str()))
    {
        None => Ok(()),
        Some(column) => Err(format!(
            "it belongs to another program: its `messages` requires a `{column}`"
        )),
    }
}

fn check_version(version: i64) -> Result<(), String> {
    if version > VERSION {
        return Err(format!(
            "its version is {version}, this program knows up to {VERSION}; use a newer threadcast"
        ));
    }
    Ok(())
}

fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    // Space of deleted messages can be given back in small steps; only a new file takes this.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLE)?;
    for (_, _, create) in OWN_TABLES {
        transaction.execute_batch(create)?;
    }
    for column in ["channel_id", "timestamp"] {
        if !has_index(&transaction, column)? {
            transaction.execute_batch(&format!(
                "CREATE INDEX idx_messages_{column} ON messages ({column})"
            ))?;
        }
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

/// Whether some index, whatever its name, starts with this column.
fn has_index(connection: &Connection, column: &str) -> rusqlite::Result<bool> {
    connection.query_row(
        "SELECT count(*) FROM pragma_index_list('messages') AS list, pragma_index_info(list.name) AS info
         WHERE info.seqno = 0 AND info.name = ?1 AND list.partial = 0",
        [column],
        |row| row.get::<_, i64>(0).map(|count| count > 0),
    )
}

fn columns(connection: &Connection, table: &str) -> Result<Vec<String>, String> {
    names(
        connection,
        &format!("SELECT name FROM pragma_table_info('{table}')"),
    )
}

fn names(connection: &Connection, sql: &str) -> Result<Vec<String>, String> {
    let read = || -> rusqlite::Result<Vec<String>> {
        connection
            .prepare(sql)?
            .query_map([], |row| row.get(0))?
            .collect()
    };
    read().map_err(|error| explain(&error))
}

/// What SQLite said, in the words of somebody who named the wrong file.
fn explain(error: &rusqlite::Error) -> String {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            "it is not a SQLite database, or it is encrypted; name another file with --db"
                .to_owned()
        }
        Some(ErrorCode::DatabaseCorrupt) => {
            format!("it is damaged ({error}); restore it from a backup")
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another program has locked it; end that program first".to_owned()
        }
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            "it cannot be opened; check the permissions of the file and its directory".to_owned()
        }
        Some(ErrorCode::ReadOnly) => {
            "it can only be read; check the permissions of the file and its directory".to_owned()
        }
        _ => error.to_string(),
    }
}
