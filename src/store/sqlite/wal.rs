//! The write-ahead log: brought to the disk while the journal goes on, and into the database
//! file when it is long.
//!
//! Left to itself, SQLite does both whenever the log has a thousand pages, and the thread that
//! commits waits for it: 4 ms, up to forty times a second. So a thread of its own flushes the
//! log a step at a time, and what is left to do when it is long is little. No commit waits for
//! that thread.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use rusqlite::hooks::Wal;
use rusqlite::{Connection, ErrorCode};

/// Bytes of the log after which its content goes into the database file. The log then begins
/// anew, unless somebody reads it. With twice as many, each move took half as long again.
const LONG: u64 = 8 << 20;

/// Bytes of the log that are brought to the disk at a time: some milliseconds of a disk's work.
const STEP: u64 = 1 << 20;

/// Bytes after which a log that could not begin anew is tried again: it can when all of it is in
/// the database file at a moment in which nobody reads the rest of it.
const RETRY: u64 = 64 << 10;

/// Longest time until a commit is on its way to the disk.
///
/// As with `appendfsync everysec` of Redis: what a power cut takes is the last second.
pub(super) const SOON: Duration = Duration::from_secs(1);

/// When the log is to be brought to the disk.
enum Nudge {
    Soon,
    Now,
}

/// The thread that waits for the disk.
pub(super) struct Flusher {
    thread: JoinHandle<()>,
}

/// The log's file, which SQLite keeps beside the database and not beside a link to it.
pub(super) fn file(connection: &Connection, path: &Path) -> io::Result<File> {
    let mut log = match connection.path() {
        Some(resolved) => resolved.into(),
        // It is not UTF-8.
        None => path.canonicalize()?.into_os_string(),
    };
    log.push("-wal");
    File::open(log)
}

/// Has the log moved into the database file when it is long. With `flush`, commits do not wait
/// for the disk: a thread calls it to bring the log there, `soon` after a commit or earlier.
pub(super) fn attend(
    connection: &mut Connection,
    soon: Duration,
    flush: Option<impl FnMut() -> io::Result<()> + Send + 'static>,
) -> io::Result<Option<Flusher>> {
    let page_bytes: u32 = connection
        .pragma_query_value(None, "page_size", |row| row.get(0))
        .map_err(io::Error::other)?;
    let is_clean = Arc::new(AtomicBool::new(true));
    // What is to be done soon must not keep out what is to be done now.
    let (nudge, nudges) = bounded(2);
    let mut log = Log {
        page_bytes: u64::from(page_bytes),
        is_clean: Arc::clone(&is_clean),
        flushed: 0,
        moved: 0,
        nudge,
        failing: false,
    };
    let flusher = match flush {
        Some(flush) => Some(Flusher::start(flush, nudges, is_clean, soon)?),
        None => None,
    };
    connection
        .wal_hook(Some(move |wal: &mut Wal, pages: c_int| {
            log.grew(wal, pages);
            Ok(())
        }))
        .map_err(io::Error::other)?;
    Ok(flusher)
}

impl Flusher {
    fn start(
        mut flush: impl FnMut() -> io::Result<()> + Send + 'static,
        nudges: Receiver<Nudge>,
        is_clean: Arc<AtomicBool>,
        soon: Duration,
    ) -> io::Result<Self> {
        let mut failing = false;
        let run = move || {
            loop {
                let nudge = nudges.recv();
                if let Ok(Nudge::Soon) = nudge {
                    // One that comes earlier is as good, and so is the end.
                    let _ = nudges.recv_timeout(soon);
                }
                if is_clean.swap(true, Ordering::AcqRel) && nudge.is_err() {
                    return;
                }
                let error = flush().err();
                if let (Some(error), false) = (&error, failing) {
                    // SQLite hears of it, too, before it relies on what is in the log.
                    log::warn!("the write-ahead log cannot be brought to the disk: {error}");
                }
                failing = error.is_some();
            }
        };
        let thread = thread::Builder::new().name("flush".to_owned()).spawn(run)?;
        Ok(Self { thread })
    }

    /// Ends the thread. Blocks while the disk works.
    pub(super) fn stop(self, connection: &mut Connection) {
        // With the hook goes the way to the thread.
        let _ = connection.wal_hook(None::<fn(&mut Wal, c_int) -> rusqlite::Result<()>>);
        // A panic was reported when it happened.
        let _ = self.thread.join();
    }
}

/// What is known of the log.
struct Log {
    page_bytes: u64,
    /// The thread was not told of what came since its last flush.
    is_clean: Arc<AtomicBool>,
    /// So many bytes of it are on the disk, or on the way there.
    flushed: u64,
    /// So many are in the database file.
    moved: u64,
    nudge: Sender<Nudge>,
    /// Moving failed; it is logged when that begins.
    failing: bool,
}

impl Log {
    /// Something was committed: the log has so many pages now.
    fn grew(&mut self, wal: &mut Wal, pages: c_int) {
        let bytes = u64::try_from(pages).unwrap_or(0) * self.page_bytes;
        if bytes < self.flushed.max(self.moved) {
            // It began anew.
            (self.flushed, self.moved) = (0, 0);
        }
        // A nudge that finds no place is behind one that does as well, or has no thread.
        if bytes >= self.flushed + STEP {
            let _ = self.nudge.try_send(Nudge::Now);
            self.flushed = bytes;
        } else if self.is_clean.swap(false, Ordering::AcqRel) {
            let _ = self.nudge.try_send(Nudge::Soon);
        }
        if bytes >= LONG && bytes >= self.moved + RETRY {
            self.moved = bytes;
            self.go_into_file(wal);
        }
    }

    fn go_into_file(&mut self, wal: &mut Wal) {
        let error = wal.checkpoint().err();
        let is_busy =
            |error: &rusqlite::Error| error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
        // Another program does the same.
        let error = error.filter(|error| !is_busy(error));
        if let (Some(error), false) = (&error, self.failing) {
            log::warn!("the write-ahead log cannot be moved into the database, and grows: {error}");
        }
        self.failing = error.is_some();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// How long a test waits for what has to come.
    const DEADLINE: Duration = Duration::from_secs(30);

    /// A database whose log somebody attends to, and when it was flushed.
    struct Attended {
        directory: tempfile::TempDir,
        connection: Connection,
        flushes: Receiver<()>,
        flusher: Flusher,
    }

    impl Attended {
        fn new(soon: Duration) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let mut connection = open(directory.path());
            let (flushed, flushes) = crossbeam_channel::unbounded();
            let flush = move || flushed.send(()).map_err(io::Error::other);
            let flusher = attend(&mut connection, soon, Some(flush)).unwrap().unwrap();
            Self {
                directory,
                connection,
                flushes,
                flusher,
            }
        }

        fn commit(&self, bytes: usize) {
            commit(&self.connection, bytes);
        }

        fn log_bytes(&self) -> u64 {
            log_bytes(self.directory.path())
        }
    }

    fn open(directory: &Path) -> Connection {
        let connection = Connection::open(directory.join("test.db")).unwrap();
        connection
            .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE messages (content BLOB)")
            .unwrap();
        connection
    }

    fn commit(connection: &Connection, bytes: usize) {
        connection
            .execute("INSERT INTO messages VALUES (?1)", [vec![7u8; bytes]])
            .unwrap();
    }

    fn log_bytes(directory: &Path) -> u64 {
        let log = directory.join("test.db-wal");
        std::fs::metadata(log).unwrap().len()
    }

    #[test]
    fn a_single_commit_is_brought_to_the_disk_soon_and_once() {
        let soon = Duration::from_millis(50);
        let attended = Attended::new(soon);
        let begin = Instant::now();
        attended.commit(200);
        attended.flushes.recv_timeout(DEADLINE).unwrap();
        assert!(begin.elapsed() >= soon, "{:?}", begin.elapsed());
        assert!(attended.flushes.recv_timeout(4 * soon).is_err());
        attended.commit(200);
        attended.flushes.recv_timeout(DEADLINE).unwrap();
    }

    #[test]
    fn much_is_brought_to_the_disk_in_steps() {
        let attended = Attended::new(10 * DEADLINE);
        // The log begins anew on the way.
        for _ in 0..12 {
            attended.commit(2 * STEP as usize);
            attended.flushes.recv_timeout(DEADLINE).unwrap();
        }
    }

    #[test]
    fn the_log_stays_short_and_begins_anew() {
        let attended = Attended::new(SOON);
        for _ in 0..100 {
            attended.commit(STEP as usize);
        }
        let longest = LONG + 2 * STEP;
        assert!(attended.log_bytes() < longest, "{}", attended.log_bytes());
    }

    #[test]
    fn the_end_does_not_wait_for_the_last_second_and_does_not_forget_it() {
        let mut attended = Attended::new(10 * DEADLINE);
        attended.commit(200);
        attended.flusher.stop(&mut attended.connection);
        assert_eq!(attended.flushes.iter().count(), 1);
    }

    #[test]
    fn without_a_flusher_the_log_stays_short_too() {
        let directory = tempfile::tempdir().unwrap();
        let mut connection = open(directory.path());
        let none = attend(&mut connection, SOON, None::<fn() -> io::Result<()>>);
        assert!(none.unwrap().is_none());
        for _ in 0..20 {
            commit(&connection, STEP as usize);
        }
        assert!(log_bytes(directory.path()) < LONG + 2 * STEP);
    }

    #[test]
    fn a_log_that_somebody_reads_grows_until_they_are_done() {
        let attended = Attended::new(SOON);
        attended.commit(200);
        let reader = Connection::open(attended.directory.path().join("test.db")).unwrap();
        reader
            .execute_batch("BEGIN; SELECT count(*) FROM messages")
            .unwrap();
        for _ in 0..20 {
            attended.commit(STEP as usize);
        }
        let grown = attended.log_bytes();
        assert!(grown > LONG + 10 * STEP, "{grown}");
        reader.execute_batch("COMMIT").unwrap();
        for _ in 0..20 {
            attended.commit(STEP as usize);
        }
        assert!(
            attended.log_bytes() <= grown + 3 * STEP,
            "{}",
            attended.log_bytes()
        );
    }
}
