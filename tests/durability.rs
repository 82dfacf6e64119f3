//! What an acknowledgement is worth: what was answered 200 is in the database, whatever happens to
//! the program, and what could not be stored was neither acknowledged nor broadcast.

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use common::{DEADLINE, Http, Program, Response, TestServer, Ws, eventually};
use rusqlite::Connection;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::{Value, json};
use tempfile::TempDir;
use threadcast::config::Database;
use tungstenite::Message;

/// A message as far as these tests look at it: its id and its content, which is unique.
type Stored = (u64, String);

#[test]
fn after_kill_9_under_load_every_acknowledged_message_is_there_exactly_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("killed.db");
    let mut before = Vec::new();
    for round in 0..4 {
        let mut program = Program::start(&database, &[]);
        let load = Load::default();
        let heard = thread::scope(|scope| {
            let sockets = load.publish(scope, program.address, &format!("round {round}"));
            load.await_acknowledgements(400);
            program.kill();
            sockets
                .into_iter()
                .map(|socket| joined(socket).heard)
                .collect::<Vec<_>>()
        });

        let program = Program::start(&database, &[]);
        let stored = history(&mut program.http());
        assert!(
            stored.is_sorted_by(|earlier, later| earlier.0 < later.0),
            "ids grow"
        );
        let contents: HashSet<_> = stored.iter().map(|(_, content)| content).collect();
        assert_eq!(contents.len(), stored.len(), "no message is there twice");
        assert!(
            stored.starts_with(&before),
            "an earlier round's messages have changed"
        );
        load.assert_acknowledged_are_in(&stored);
        for heard in heard {
            assert!(
                stored[before.len()..].starts_with(&heard),
                "what was heard was stored"
            );
        }
        before = stored;
    }
}

#[test]
fn sigterm_under_load_loses_no_acknowledged_message_and_closes_every_subscriber_with_1001() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("stopped.db");
    let mut program = Program::start(&database, &["--drain", "60s"]);
    let load = Load::default();
    let ended = thread::scope(|scope| {
        let mut subscribers: Vec<_> = (0..5)
            .map(|_| program.subscribe("lab"))
            .map(|ws| scope.spawn(|| load.over_websocket(ws, "a listener", 0)))
            .collect();
        subscribers.extend(load.publish(scope, program.address, "load"));
        load.await_acknowledgements(400);
        program.signal(Signal::TERM);
        // Well before the drain is over.
        assert_eq!(program.wait().code(), Some(0));
        subscribers.into_iter().map(joined).collect::<Vec<_>>()
    });

    let files = fs::read_dir(dir.path()).expect("a directory").count();
    assert_eq!(files, 1, "all is checkpointed into the one file");
    let stored = rows(&database);
    load.assert_acknowledged_are_in(&stored);
    for Ended { heard, code } in ended {
        assert_eq!(code, Some(1001), "after {} messages", heard.len());
        assert!(
            stored.starts_with(&heard),
            "what was heard is the history without a gap"
        );
    }
}

#[test]
fn a_locked_database_is_503_until_it_is_free_and_stops_nothing_else() {
    let server = TestServer::start();
    let mut listener = server.subscribe("lab");
    let mut publisher = server.subscribe("lab");
    let before = server.publish("lab", "before");
    assert_eq!(publisher.next_message()["id"], before);

    let lock = Connection::open(server.database()).expect("a database");
    lock.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    publisher.send(&json!({"type": "message", "content": "refused, by socket", "ref": 7}));
    let mut http = server.http();
    let refused = thread::spawn(move || {
        http.post_json(
            "/api/messages",
            &json!({"channel_id": "lab", "author": "a", "content": "refused"}),
        )
    });
    let mut others = server.http();
    let mut rounds = 0;
    while !refused.is_finished() {
        assert_eq!(others.get("/api/health").json()["status"], "ok");
        assert_eq!(history(&mut others), [(before, "before".to_owned())]);
        rounds += 1;
        thread::sleep(Duration::from_millis(10));
    }
    // Whoever waited for the writer each time would have come this far once or twice.
    assert!(rounds > 5, "others waited, too: {rounds} answers");
    assert_unavailable(&refused.join().expect("a response"));
    let error = publisher.next();
    let expected = json!(["error", "store_unavailable", 7]);
    assert_eq!(
        json!([error["type"], error["code"], error["ref"]]),
        expected,
        "{error}"
    );

    lock.execute_batch("ROLLBACK").expect("an unlock");
    let after = server.publish("lab", "after");
    assert!(after > before);
    // Nothing was broadcast in between.
    assert_eq!(listener.next_message()["id"], before);
    assert_eq!(listener.next_message()["id"], after);
    let stored = history(&mut others);
    assert_eq!(
        stored,
        [(before, "before".to_owned()), (after, "after".to_owned())]
    );
}

/// The disk ends at 4 MiB, and 3 of them come back. Where tmpfs can't be mounted, a limit on the
/// size of files ends it instead.
#[test]
fn a_full_disk_is_503_until_there_is_space_again() {
    let Some(disk) = SmallDisk::mount() else {
        return a_file_that_may_not_grow_is_503_until_it_may();
    };
    let (ballast, database) = (disk.path().join("ballast"), disk.path().join("small.db"));
    fs::write(&ballast, vec![0; 3 << 20]).expect("3 of 4 MiB");
    let program = Program::start(&database, &[]);
    publishing_survives_a_full_store(&program, || fs::remove_file(ballast).expect("the file"));
    drop(program);
    assert_sound(&database);
}

/// Writes beyond the limit of `ulimit -f` fail with EFBIG; it is set from here, while the program runs.
#[test]
fn a_file_that_may_not_grow_is_503_until_it_may() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("limited.db");
    // Ignored, SIGXFSZ leaves the failed write; not ignored, it would kill.
    let ignoring = r#"trap "" XFSZ; exec "$0" serve --listen 127.0.0.1:0 --db "$1""#;
    let mut command = Command::new("sh");
    command
        .args(["-c", ignoring, env!("CARGO_BIN_EXE_threadcast")])
        .arg(&database);
    let program = Program::start_command(command);
    let limit_files_to = |current| {
        let (pid, limit) = (
            Pid::from_child(&program.child),
            Rlimit {
                current,
                maximum: None,
            },
        );
        prlimit(Some(pid), Resource::Fsize, limit).expect("a limit");
    };
    limit_files_to(Some(512 << 10));
    publishing_survives_a_full_store(&program, || limit_files_to(None));
    drop(program);
    assert_sound(&database);
}

/// The log is moved into the database file, again and again.
#[test]
fn the_write_ahead_log_stays_short_however_much_is_published() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("long.db");
    let program = Program::start(&database, &[]);
    let mut http = program.http();
    let content = "x".repeat(200 << 10);
    let bytes_of = |file: &Path| fs::metadata(file).expect("a file").len();
    let mut longest = 0;
    for _ in 0..200 {
        http.publish("lab", &content);
        longest = longest.max(bytes_of(&dir.path().join("long.db-wal")));
    }
    assert!(longest < 10 << 20, "{longest} bytes of log");
    assert!(bytes_of(&database) > 25 << 20, "the rest is in the file");
}

/// Nothing can be moved past what another program reads.
#[test]
fn a_program_that_reads_the_database_at_the_end_keeps_the_log_there_and_loses_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("read.db");
    let said = dir.path().join("log");
    let mut program = Program::start_logging(&database, &[], &said);
    program.http().publish("lab", "before");
    let reader = Connection::open(&database).expect("a database");
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM messages")
        .expect("a snapshot");
    program.http().publish("lab", "after");
    program.signal(Signal::TERM);
    assert_eq!(program.wait().code(), Some(0));
    let log = fs::read_to_string(said).expect("the log");
    assert!(log.contains("another program reads the database"), "{log}");
    reader.execute_batch("COMMIT").expect("the end of it");
    assert_eq!(rows(&database).len(), 2);
}

/// SQLite keeps the log beside the file, not beside the link.
#[test]
fn a_database_behind_a_link_is_one_like_any_other() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (file, link) = (dir.path().join("file.db"), dir.path().join("link.db"));
    std::os::unix::fs::symlink("file.db", &link).expect("a link");
    for round in 1..=2 {
        let mut program = Program::start(&link, &[]);
        assert_eq!(program.http().publish("lab", "hello"), round);
        program.signal(Signal::TERM);
        assert_eq!(program.wait().code(), Some(0));
        assert_eq!(rows(&file).len() as u64, round);
    }
    assert!(fs::symlink_metadata(&link).expect("a link").is_symlink());
    assert!(!dir.path().join("file.db-wal").exists(), "it is closed");
}

#[test]
fn an_id_is_never_given_twice_even_when_its_message_was_deleted_before_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("kept.db");
    let mut newest = 0;
    for deleted in ["false", "id = (SELECT max(id) FROM messages)", "true"] {
        let mut program = Program::start(&database, &[]);
        let mut http = program.http();
        for _ in 0..3 {
            let id = http.publish("lab", "hello");
            assert!(id > newest, "{id} was given before, up to {newest}");
            newest = id;
        }
        program.signal(Signal::TERM);
        assert_eq!(program.wait().code(), Some(0));
        let sql = format!("DELETE FROM messages WHERE {deleted}");
        Connection::open(&database)
            .and_then(|db| db.execute(&sql, ()))
            .expect("rows are deleted");
    }
    let program = Program::start(&database, &[]);
    assert!(program.http().publish("lab", "after all of them") > newest);
}

#[test]
fn a_database_of_the_seeds_own_store_opens_with_its_history_and_stays_its_owners() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("raqcoon_messages.db");
    let owner = seeds_database(&database);
    for row in [
        "'lab', 'ada', 'one', '2026-01-05T12:34:56.789012+00:00', 'llm', 'openai', 12",
        "'lab', 'ada', 'two', '2026-01-05T12:34:56.789013+00:00', NULL, NULL, NULL",
        "'lab', 'ada', 'deleted', '2026-01-05T12:34:56.789014+00:00', NULL, NULL, NULL",
    ] {
        insert(&owner, row);
    }
    owner
        .execute("DELETE FROM messages WHERE id = 3", ())
        .expect("a row is deleted");
    drop(owner);

    let on_the_same_file =
        || TestServer::start_with(|config| config.database = Database::File(database.clone()));
    let server = on_the_same_file();
    let page = server.http().get("/api/messages?channel_id=lab").json();
    let one = json!({
        "id": 1, "channel_id": "lab", "author": "ada", "content": "one", "lane": "llm",
        "timestamp": "2026-01-05T12:34:56.789012+00:00", "provider": "openai", "token_count": 12,
    });
    let two = json!({
        "id": 2, "channel_id": "lab", "author": "ada", "content": "two", "lane": null,
        "timestamp": "2026-01-05T12:34:56.789013+00:00", "provider": null, "token_count": null,
    });
    assert_eq!(page["messages"], json!([one, two]));
    assert_eq!(
        server.publish("lab", "by threadcast"),
        4,
        "3 was given to a deleted message"
    );
    drop(server);

    let owner = Connection::open(&database).expect("a database");
    let newest =
        "SELECT content FROM messages WHERE channel_id = ? ORDER BY timestamp DESC LIMIT 1";
    let newest: String = owner
        .query_row(newest, ["lab"], |row| row.get(0))
        .expect("a row");
    assert_eq!(newest, "by threadcast");
    insert(
        &owner,
        "'lab', 'ada', 'by the owner', '2026-01-05T12:34:57.000000+00:00', NULL, NULL, NULL",
    );
    drop(owner);

    let server = on_the_same_file();
    let newest = history(&mut server.http()).pop();
    assert_eq!(newest, Some((5, "by the owner".to_owned())));
    assert_eq!(server.publish("lab", "by threadcast again"), 6);
}

#[test]
fn reading_a_channel_after_an_id_is_one_seek_in_an_index() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let adopted = dir.path().join("adopted.db");
    drop(seeds_database(&adopted));
    for database in [dir.path().join("new.db"), adopted] {
        let mut server =
            TestServer::start_with(|config| config.database = Database::File(database.clone()));
        server.publish("lab", "a row");
        server.shutdown();

        let db = Connection::open(&database).expect("a database");
        let plan = "EXPLAIN QUERY PLAN
            SELECT id, channel_id, author, content, timestamp, lane, provider, token_count
            FROM messages WHERE channel_id = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
        let mut plan = db.prepare(plan).expect("a plan");
        let steps = plan
            .query_map(("lab", 0, 200), |row| row.get::<_, String>("detail"))
            .expect("steps");
        let steps: Vec<_> = steps.map(|step| step.expect("text")).collect();
        assert_eq!(steps.len(), 1, "one step and no sorting: {steps:?}");
        assert!(
            steps[0].starts_with("SEARCH messages USING INDEX"),
            "{steps:?}"
        );
        assert!(
            steps[0].ends_with("(channel_id=? AND rowid>?)"),
            "{steps:?}"
        );
    }
}

/// An empty database as the seed's own store leaves it.
fn seeds_database(path: &Path) -> Connection {
    let db = Connection::open(path).expect("a database");
    db.execute_batch(
        "CREATE TABLE messages (
            id INTEGER PRIMARY KEY AUTOINCREMENT, channel_id TEXT NOT NULL, author TEXT NOT NULL, content TEXT NOT NULL,
            timestamp TEXT NOT NULL, lane TEXT, provider TEXT, token_count INTEGER);
        CREATE INDEX idx_messages_channel ON messages(channel_id);
        CREATE INDEX idx_messages_timestamp ON messages(timestamp);",
    )
    .expect("a schema");
    db
}

/// A row as its own store would add it.
fn insert(seeds: &Connection, row: &str) {
    let into = "messages (channel_id, author, content, timestamp, lane, provider, token_count)";
    seeds
        .execute(&format!("INSERT INTO {into} VALUES ({row})"), ())
        .expect("a row");
}

/// Publishes until the store refuses, makes room, and goes on: what was acknowledged, and nothing
/// else, is heard and stored.
fn publishing_survives_a_full_store(program: &Program, make_room: impl FnOnce()) {
    let mut listener = program.subscribe("lab");
    let mut http = program.http();
    let mut acknowledged = Vec::new();
    let mut publish = |n: usize| {
        let content = format!("{n} {}", "x".repeat(20_000));
        let body = json!({"channel_id": "lab", "author": "a", "content": content});
        let response = http.post_json("/api/messages", &body);
        if response.status == 200 {
            let message = response.json()["message"].take();
            assert_eq!(
                listener.next_message(),
                message,
                "heard before anything acknowledged"
            );
            acknowledged.push(stored(&message));
        }
        response
    };
    let refused = (0..400)
        .map(&mut publish)
        .find(|response| response.status != 200);
    assert_unavailable(&refused.expect("8 MB don't fit"));
    assert_eq!(program.http().get("/api/health").status, 200);

    make_room();
    for n in 400..403 {
        let response = publish(n);
        assert_eq!(
            response.status,
            200,
            "there is room again: {}",
            response.text()
        );
    }
    assert_eq!(history(&mut program.http()), acknowledged);
}

fn assert_unavailable(response: &Response) {
    assert_eq!(response.status, 503, "{}", response.text());
    let seconds = response
        .header("Retry-After")
        .and_then(|seconds| seconds.parse().ok());
    assert!(seconds > Some(0_u32), "{response:?}");
    assert_eq!(
        response.header("Content-Type"),
        Some("application/problem+json")
    );
    assert_eq!(response.json()["status"], 503);
}

fn assert_sound(database: &Path) {
    let db = Connection::open(database).expect("a database");
    let verdict = db.query_row("PRAGMA integrity_check", (), |row| row.get::<_, String>(0));
    assert_eq!(verdict.expect("a verdict"), "ok");
}

/// Every stored message, page by page from the first.
fn history(http: &mut Http) -> Vec<Stored> {
    let mut all: Vec<Stored> = Vec::new();
    loop {
        let since = all.last().map_or(0, |(id, _)| *id);
        let page = http
            .get(&format!("/api/messages?since={since}&limit=1000"))
            .json();
        let messages = page["messages"].as_array().expect("a list");
        if messages.is_empty() {
            return all;
        }
        all.extend(messages.iter().map(stored));
    }
}

/// Every stored message, without asking the program.
fn rows(database: &Path) -> Vec<Stored> {
    let db = Connection::open(database).expect("a database");
    let mut select = db
        .prepare("SELECT id, content FROM messages ORDER BY id")
        .expect("a statement");
    let rows = select
        .query_map((), |row| {
            Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?))
        })
        .expect("rows");
    rows.map(|row| row.expect("a row")).collect()
}

fn stored(message: &Value) -> Stored {
    let content = message["content"].as_str().expect("a content");
    (message["id"].as_u64().expect("an id"), content.to_owned())
}

/// Messages after which a publisher stops if nobody ended its connection until then.
const ENOUGH: usize = 50_000;

/// Publishers that go on until the program ends their connections, and what it acknowledged.
#[derive(Default)]
struct Load {
    acknowledged: Mutex<Vec<Stored>>,
}

/// What a WebSocket had heard when it ended, and the code of the close frame if there was one.
struct Ended {
    heard: Vec<Stored>,
    code: Option<u16>,
}

impl Load {
    /// Two publishers over WebSocket, which hear the whole load, and three over HTTP.
    fn publish<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        address: SocketAddr,
        name: &str,
    ) -> Vec<ScopedJoinHandle<'s, Ended>> {
        let sockets = [(); 2].map(|()| Ws::subscribe(address, "lab"));
        let start_socket = |(n, ws)| {
            let name = format!("{name}, websocket {n}");
            scope.spawn(move || self.over_websocket(ws, &name, 16))
        };
        let sockets = sockets.into_iter().enumerate().map(start_socket).collect();
        for n in 0..3 {
            let name = format!("{name}, http {n}");
            let stream = TcpStream::connect(address).expect("the server accepts");
            scope.spawn(move || self.over_http(&stream, &name));
        }
        sockets
    }

    fn over_http(&self, stream: &TcpStream, name: &str) {
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let mut reader = BufReader::new(stream);
        for n in 0..ENOUGH {
            let content = format!("{name}, message {n}");
            let Ok((200, answer)) = post(stream, &mut reader, &content) else {
                return;
            };
            self.acknowledge((answer["message"]["id"].as_u64().expect("an id"), content));
        }
    }

    /// Publishes with up to `in_flight` messages unacknowledged.
    fn over_websocket(&self, mut ws: Ws, name: &str, in_flight: usize) -> Ended {
        let mut heard = Vec::new();
        let (mut sent, mut acknowledged) = (0, 0);
        loop {
            while sent < ENOUGH.min(acknowledged + in_flight) {
                let content = format!("{name}, message {sent}");
                let frame = json!({"type": "message", "content": content, "ref": content});
                // Where this fails the connection has ended, and reading says how.
                let _ = ws.socket.send(Message::text(frame.to_string()));
                sent += 1;
            }
            let text = match ws.socket.read() {
                Ok(Message::Text(text)) => text,
                Ok(Message::Close(frame)) => {
                    let code = frame.map(|frame| frame.code.into());
                    return Ended { heard, code };
                }
                Ok(_) => continue,
                Err(_) => return Ended { heard, code: None },
            };
            let frame: Value = serde_json::from_str(&text).expect("JSON");
            match frame["type"].as_str() {
                Some("message") => heard.push(stored(&frame["data"])),
                Some("ack") => {
                    let content = frame["ref"].as_str().expect("the ref that was sent");
                    self.acknowledge((frame["id"].as_u64().expect("an id"), content.to_owned()));
                    acknowledged += 1;
                }
                _ => {} // A refusal is allowed when the program ends.
            }
        }
    }

    fn acknowledge(&self, message: Stored) {
        self.acknowledged.lock().expect("a list").push(message);
    }

    fn await_acknowledgements(&self, enough: usize) {
        let all = || self.acknowledged.lock().expect("a list").len();
        eventually("enough acknowledgements", || all() >= enough);
    }

    fn assert_acknowledged_are_in(&self, stored: &[Stored]) {
        for message in self.acknowledged.lock().expect("a list").iter() {
            assert!(
                stored.binary_search(message).is_ok(),
                "acknowledged and lost: {message:?}"
            );
        }
    }
}

fn joined<T>(thread: ScopedJoinHandle<T>) -> T {
    thread.join().expect("a thread that does not panic")
}

/// One POST of `content`; an error when the connection ends before the whole answer.
fn post(
    mut stream: &TcpStream,
    reader: &mut impl BufRead,
    content: &str,
) -> io::Result<(u16, Value)> {
    let body = json!({"channel_id": "lab", "author": "load", "content": content}).to_string();
    let head = "POST /api/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length";
    stream.write_all(format!("{head}: {}\r\n\r\n{body}", body.len()).as_bytes())?;
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            2 => break,
            _ => line.make_ascii_lowercase(),
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a number");
        }
        head.push(line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let status = head[0]
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok((
        status.expect("a status"),
        serde_json::from_slice(&body).expect("JSON"),
    ))
}

/// A file system of 4 MiB in memory.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// `None` where mounting is not allowed.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mount = ["-t", "tmpfs", "-o", "size=4m", "threadcast-test"];
        let mounted = Command::new("mount")
            .args(mount)
            .arg(dir.path())
            .output()
            .is_ok_and(|run| run.status.success());
        mounted.then_some(Self { dir })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount")
            .arg("--lazy")
            .arg(self.dir.path())
            .status();
        assert!(
            unmounted.is_ok_and(|status| status.success()),
            "still mounted: {}",
            self.dir.path().display()
        );
    }
}
