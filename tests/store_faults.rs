//! What happens to the file: the end of its log is torn, the program is killed while it deletes,
//! nothing can be written for a while, the clock jumps. What is there afterwards is whole and in
//! order, and who reads the store and who reads the server see the same.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::system::{FakeClock, skipped};
use common::{Http, Program, Ws, eventually};
use rusqlite::Connection;
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::process::{Resource, Signal};
use serde_json::{Value, json};
use threadcast::config::{Config, Database};
use threadcast::error::Error;
use threadcast::journal::{Committed, Journal};
use threadcast::manager::{ConnectionManager, OutboxLimits};
use threadcast::protocol::{Draft, MessageId};
use threadcast::store;

/// A message as far as these tests look at it.
type Stored = (u64, String);

/// Head of a write-ahead log, and of each of its frames (sqlite.org/fileformat2.html, section 4).
const WAL_HEAD: usize = 32;
const FRAME_HEAD: usize = 24;
const PAGE: usize = 4096;

/// A power cut leaves some of the log, or some of it wrong. Each copy of the files that a kill
/// left is cut or broken at another place; the program starts on every one of them.
#[test]
fn a_torn_log_costs_its_last_messages_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("killed.db");
    let mut program = Program::start(&database, &[]);
    let mut http = program.http();
    for n in 0..20 {
        http.publish("lab", &format!("checkpointed {n}"));
    }
    program.signal(Signal::TERM);
    assert_eq!(program.wait().code(), Some(0));
    let mut program = Program::start(&database, &[]);
    publish_until_killed(&mut program, "in the log", 300);
    let files = ["", "-wal", "-shm"].map(|suffix| {
        let path = with_suffix(&database, suffix);
        (suffix, fs::read(path).unwrap_or_default())
    });
    let wal = files[1].1.len();
    assert!(wal > WAL_HEAD + 20 * (FRAME_HEAD + PAGE), "{wal} bytes");
    let whole = read_all(&mut Program::start(&database, &[]).http());
    assert!(whole.len() >= 320);

    let last_frame = wal - FRAME_HEAD - PAGE;
    let mut random = Random(whole.len() as u64);
    let cuts = [
        0,
        1,
        WAL_HEAD,
        WAL_HEAD + 1,
        last_frame - 1,
        last_frame,
        wal - 1,
    ];
    let cuts = cuts.into_iter().chain((0..8).map(|_| random.below(wal)));
    let cuts: Vec<_> = cuts.map(Damage::CutAt).collect();
    let in_frame = [0, 8, FRAME_HEAD - 1, FRAME_HEAD, FRAME_HEAD + PAGE - 1];
    let flips = in_frame.map(|at| Damage::FlipAt(last_frame + at));
    let random_flips = [(); 6].map(|()| Damage::FlipAt(random.below(wal)));
    let mut left = Vec::new();
    for damage in cuts.into_iter().chain(flips).chain(random_flips) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let copy = dir.path().join("copy.db");
        for (suffix, bytes) in &files {
            let mut bytes = bytes.clone();
            if *suffix == "-wal" {
                damage.apply(&mut bytes);
            }
            fs::write(with_suffix(&copy, suffix), bytes).expect("a copy");
        }
        left.push(assert_starts_and_goes_on(
            &copy,
            &whole,
            &format!("{damage:?}"),
        ));
    }
    assert!(
        left.contains(&20),
        "a log of nothing was lost whole: {left:?}"
    );
    assert!(
        left.iter().any(|left| (21..whole.len()).contains(left)),
        "something was lost and something was not: {left:?}"
    );
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    CutAt(usize),
    FlipAt(usize),
}

impl Damage {
    fn apply(self, log: &mut Vec<u8>) {
        match self {
            Self::CutAt(at) => log.truncate(at),
            Self::FlipAt(at) => log[at] ^= 0x55,
        }
    }
}

/// The program has the beginning of `whole`, the same on every way to read it, and goes on
/// behind that; returns how much of it is left.
fn assert_starts_and_goes_on(database: &Path, whole: &[Stored], what: &str) -> usize {
    let mut program = Program::start(database, &[]);
    let mut http = program.http();
    let left = read_all(&mut http);
    assert!(whole.starts_with(&left), "{what}: {} left", left.len());
    assert!(left.len() >= 20, "{what}: what was checkpointed is lost");
    assert_eq!(replay(&program, 0), left, "{what}");
    let head = left.len() as u64;
    // Whoever heard more than what is left is told.
    let mut knows_more = program.subscribe(&format!("lab?since={}", head + 1));
    let gap = knows_more.next();
    assert_eq!(gap["reason"], "unknown_id", "{what}: {gap}");
    assert_eq!(knows_more.next()["type"], "caught_up", "{what}");
    assert_eq!(http.publish("lab", "after"), head + 1, "{what}");
    assert_eq!(knows_more.next_message()["id"], head + 1, "{what}");
    program.signal(Signal::TERM);
    drop(knows_more);
    assert_eq!(program.wait().code(), Some(0), "{what}");
    assert_sound(database, what);
    left.len()
}

/// Whatever was deleted when it was killed, what is left is the newest without a hole.
#[test]
fn kill_9_while_retention_deletes_leaves_the_newest_in_one_run() {
    const KEPT: usize = 50;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("kept.db");
    for round in 0..5 {
        let args = ["--keep-messages", &KEPT.to_string()];
        let mut program = Program::start(&database, &args);
        let content = format!("round {round}");
        // A little more in each round, so that the kill comes at other moments.
        let acknowledged = publish_until_killed(&mut program, &content, 300 + 37 * round);

        // Without retention it stays as the kill left it.
        let mut program = Program::start(&database, &[]);
        let left = read_all(&mut program.http());
        let (oldest, newest) = (left[0].0, left[left.len() - 1].0);
        assert!(oldest > 1, "it was killed before it deleted anything");
        assert!(left.len() >= KEPT, "{} are left", left.len());
        assert!(newest >= acknowledged, "{newest} < {acknowledged}");
        let ids: Vec<u64> = left.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, (oldest..=newest).collect::<Vec<_>>());
        let mut subscriber = program.subscribe("lab?since=0");
        let gap = subscriber.next();
        let expected = json!([oldest, newest, "retention"]);
        assert_eq!(json!([gap["oldest"], gap["head"], gap["reason"]]), expected);
        assert_eq!(replay(&program, oldest - 1), left);
        assert_eq!(program.http().publish("lab", "next"), newest + 1);
        program.signal(Signal::TERM);
        drop(subscriber);
        assert_eq!(program.wait().code(), Some(0));
        assert_sound(&database, &content);

        let program = Program::start(&database, &args);
        let mut http = program.http();
        eventually("retention goes on where it was", || {
            read_all(&mut http).len() == KEPT
        });
        assert_eq!(read_all(&mut http)[KEPT - 1].0, newest + 1);
    }
}

/// Another program holds the lock, or no file may grow: publishers are refused, and all that time
/// subscribers catch up with what there is.
#[test]
fn while_nothing_can_be_written_subscribers_catch_up_and_then_they_are_live() {
    for locked in [true, false] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let database = dir.path().join("readable.db");
        let program = start_that_survives_sigxfsz(&database, &["--write-timeout", "120s"]);
        let slow = program.subscribe("lab");
        set_socket_recv_buffer_size(slow.socket.get_ref(), 256 << 10).expect("a buffer");
        let mut http = program.http();
        for _ in 0..150 {
            http.publish("lab", &"x".repeat(60_000));
        }
        let lock = Connection::open(&database).expect("a database");
        if locked {
            lock.execute_batch("BEGIN IMMEDIATE").expect("the lock");
        } else {
            program.limit(Resource::Fsize, Some(1 << 20));
        }
        let refused = json!({"channel_id": "lab", "author": "a", "content": "x".repeat(60_000)});
        let mut refusals = (0..).map(|_| http.post_json("/api/messages", &refused));
        let refusal = refusals.find(|answer| answer.status != 200);
        assert_eq!(refusal.map(|answer| answer.status), Some(503));

        let stored = read_all(&mut program.http());
        assert!(stored.len() >= 150);
        let mut subscribers = vec![slow, program.subscribe("lab?since=0")];
        for subscriber in &mut subscribers {
            for (id, _) in &stored {
                assert_eq!(subscriber.next_message()["id"], *id, "locked: {locked}");
            }
        }
        let head = stored.len();
        let caught_up = json!({"type": "caught_up", "head": head});
        assert_eq!(subscribers[1].next(), caught_up);
        if locked {
            lock.execute_batch("ROLLBACK").expect("an unlock");
        } else {
            let still = http.post_json("/api/messages", &refused);
            assert_eq!(still.status, 503, "{}", still.text());
            program.limit(Resource::Fsize, None);
        }
        let id = http.publish("lab", "there is room");
        assert!(id > head as u64);
        for subscriber in &mut subscribers {
            assert_eq!(subscriber.next_message()["id"], id, "locked: {locked}");
        }
    }
}

/// A message of the year 2999 is in the store, and messages of now come behind it: nothing is
/// sorted or found by time.
#[test]
fn a_clock_that_went_back_a_thousand_years_changes_no_order() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("clock.db");
    publish_and_stop(&database, 2);
    date(&database, &[(2, "2999-12-31T23:59:59.999999+00:00")]);
    let program = Program::start(&database, &[]);
    let mut http = program.http();
    let mut live = program.subscribe("lab");
    for id in [3, 4] {
        assert_eq!(http.publish("lab", "now"), id);
        let message = live.next_message();
        assert_eq!(message["id"], id);
        let time = message["timestamp"].as_str().expect("a timestamp");
        assert!(time < "2999", "{time}");
    }
    for (query, expected) in [
        ("", &[1, 2, 3, 4][..]),
        ("since=1", &[2, 3, 4]),
        ("since=2", &[3, 4]),
        ("before=4", &[1, 2, 3]),
        ("limit=1", &[4]),
        ("limit=3", &[2, 3, 4]),
    ] {
        let target = format!("/api/messages?channel_id=lab&{query}");
        let page = http.get(&target).json()["messages"].take();
        assert_eq!(ids(&page), expected, "{query}");
    }
    for (query, expected) in [
        ("since=1", &[2, 3, 4][..]),
        ("since=2", &[3, 4]),
        ("last=1", &[4]),
        ("last=3", &[2, 3, 4]),
    ] {
        let mut subscriber = program.subscribe(&format!("lab?{query}"));
        for id in expected {
            assert_eq!(subscriber.next_message()["id"], *id, "{query}");
        }
        assert_eq!(subscriber.next()["type"], "caught_up", "{query}");
    }
    let details = http.get("/api/channels").json()["details"].take();
    assert_eq!(details[0]["last_id"], 4);
}

/// The machine's clock is set a day back and then two days forth, while the program runs.
#[test]
fn a_clock_that_is_set_changes_timestamps_and_neither_ids_nor_who_hears_what() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(clock) = FakeClock::new(dir.path()) else {
        return skipped("no C compiler for a library that sets the program's clock");
    };
    let args = ["--keep-age", "1h", "--ping-interval", "100ms"];
    let program = clock.start(&dir.path().join("clock.db"), &args);
    let mut http = program.http();
    let mut live = program.subscribe("lab");
    let mut publish = |live: &mut Ws, id: u64| {
        assert_eq!(http.publish("lab", "hello"), id);
        let message = live.next_message();
        assert_eq!(message["id"], id);
        message["timestamp"].as_str().expect("a time").to_owned()
    };
    let first = publish(&mut live, 1);
    clock.set_ahead(-86_400);
    let second = publish(&mut live, 2);
    assert!(second < first, "{second} is before {first}");
    // Retention has looked after the second before it commits the third.
    let third = publish(&mut live, 3);
    assert!(third < first, "{third} is before {first}");
    let all: Vec<u64> = replay(&program, 0).iter().map(|(id, _)| *id).collect();
    assert_eq!(all, [1, 2, 3]);

    clock.set_ahead(86_400);
    let fourth = publish(&mut live, 4);
    assert!(fourth > first, "{fourth} is after {first}");
    let mut reader = program.http();
    eventually("all of before are too old", || {
        read_all(&mut reader).first().map(|(id, _)| *id) == Some(4)
    });
    publish(&mut live, 5);
}

/// Messages go in the order of their ids: one that is young enough, or says so, keeps all behind
/// it, and no message from the middle goes.
#[test]
fn messages_too_old_go_from_the_oldest_id_up_to_the_first_that_is_young_enough() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("clock.db");
    publish_and_stop(&database, 5);
    let old = "2001-01-01T00:00:00.000000+00:00";
    let future = "2999-12-31T23:59:59.999999+00:00";
    date(&database, &[(1, old), (2, old), (3, future), (4, old)]);
    let program = Program::start(&database, &["--keep-age", "1h"]);
    let mut http = program.http();
    let mut kept = || {
        // A commit lets retention look again before the next one is answered.
        let newest = http.publish("lab", "now");
        let page = http.get("/api/messages?since=0&limit=1000").json()["messages"].take();
        (ids(&page), newest)
    };
    eventually("the two oldest are gone", || kept().0[0] > 2);
    for _ in 0..5 {
        let (kept, newest) = kept();
        assert_eq!(kept, (3..=newest).collect::<Vec<_>>());
    }
    let mut subscriber = program.subscribe("lab?since=0");
    assert_eq!(subscriber.next()["oldest"], 3);
    assert_eq!(subscriber.next_message()["id"], 3);
    assert_eq!(subscriber.next_message()["id"], 4);
}

/// A backup, a shell: whoever reads the file keeps the write-ahead log from being emptied. The
/// end once waited five seconds for it, whatever `--drain` said.
#[test]
fn another_program_s_reader_does_not_hold_up_the_end_past_the_drain() {
    let end = || {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let database = dir.path().join("read.db");
        let mut program = Program::start(&database, &["--drain", "1s"]);
        let mut http = program.http();
        http.publish("lab", "before");
        let reader = Connection::open(&database).expect("a database");
        let snapshot = "BEGIN; SELECT count(*) FROM messages";
        reader.execute_batch(snapshot).expect("a snapshot");
        http.publish("lab", "after");
        let start = Instant::now();
        program.signal(Signal::TERM);
        assert_eq!(program.wait().code(), Some(0));
        start.elapsed()
    };
    // A busy machine may take its time once or twice.
    let mut ends = std::iter::repeat_with(end).take(3);
    let limit = Duration::from_secs(4);
    assert!(ends.any(|took| took < limit), "it waits for the reader");
}

/// The store was closed before its last readers were told to go: to them it was a failed one.
#[test]
fn sigterm_while_another_program_reads_closes_who_catches_up_with_1001() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("read.db");
    let mut program = Program::start(&database, &["--drain", "20s"]);
    let mut http = program.http();
    for _ in 0..150 {
        http.publish("lab", &"x".repeat(60_000));
    }
    let reader = Connection::open(&database).expect("a database");
    let snapshot = "BEGIN; SELECT count(*) FROM messages";
    reader.execute_batch(snapshot).expect("a snapshot");
    http.publish("lab", "after");
    let mut subscriber = program.subscribe("lab?since=0");
    set_socket_recv_buffer_size(subscriber.socket.get_ref(), 256 << 10).expect("a buffer");
    assert_eq!(subscriber.next_message()["id"], 1);
    program.signal(Signal::TERM);
    assert_eq!(subscriber.close_code(), Some(1001));
    assert_eq!(program.wait().code(), Some(0));
}

/// A bug in whoever wants to know of a commit: his is stored like the others, which hear of theirs.
#[test]
fn a_publisher_that_panics_at_its_commit_costs_the_others_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = Config::default();
    config.database = Database::File(dir.path().join("panics.db"));
    let (writer, reader) = store::open(&config).expect("a store");
    let manager = Arc::new(ConnectionManager::new(OutboxLimits::default()));
    let journal = Journal::start(writer, MessageId(0), None, manager, Arc::default(), &config)
        .expect("threads");
    let (told, hears) = std::sync::mpsc::channel();
    for n in 1..=20 {
        let told = told.clone();
        let done = move |outcome: Result<&[Committed], &Error>| {
            let ids = outcome.expect("it is stored");
            assert!(n % 2 == 0, "a bug in a publisher, wanted by this test");
            told.send(ids[0].frame.id.0).expect("a listener");
        };
        journal.submit(vec![draft()], Box::new(done));
    }
    assert_eq!(
        journal.submit_and_wait(draft()).expect("it is stored").0,
        21
    );
    let heard: Vec<u64> = hears.try_iter().collect();
    assert_eq!(heard, (1..=10).map(|n| 2 * n).collect::<Vec<_>>());
    assert_eq!(reader.head().expect("a head").0, 21);
    journal.stop();
}

fn draft() -> Draft {
    Draft {
        channel_id: "lab".parse().expect("a channel"),
        author: "a".to_owned(),
        content: "hello".to_owned(),
        lane: None,
        provider: None,
        token_count: None,
    }
}

/// Numbers that look random and are the same each time (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ (mixed >> 27)) as usize % limit
    }
}

/// Publishes with many messages in flight and kills the program when so many are acknowledged;
/// returns the newest id that was.
fn publish_until_killed(program: &mut Program, content: &str, enough: usize) -> u64 {
    let mut ws = program.subscribe("lab");
    let (mut sent, mut acknowledged, mut newest) = (0, 0, 0);
    while acknowledged < enough {
        while sent < acknowledged + 24 {
            let content = format!("{content}, message {sent}");
            ws.send(&json!({"type": "message", "content": content, "ref": sent}));
            sent += 1;
        }
        let frame = ws.next();
        if frame["type"] == "ack" {
            acknowledged += 1;
            newest = frame["id"].as_u64().expect("an id");
        }
    }
    program.kill();
    newest
}

/// All messages, page by page from the first.
fn read_all(http: &mut Http) -> Vec<Stored> {
    let mut all: Vec<Stored> = Vec::new();
    loop {
        let since = all.last().map_or(0, |(id, _)| *id);
        let page = http.get(&format!("/api/messages?since={since}&limit=1000"));
        let page = page.json()["messages"].take();
        let messages = page.as_array().expect("a list");
        if messages.is_empty() {
            return all;
        }
        all.extend(messages.iter().map(stored));
    }
}

/// What a subscriber of the channel is brought.
fn replay(program: &Program, since: u64) -> Vec<Stored> {
    let mut ws = program.subscribe(&format!("lab?since={since}"));
    let mut all = Vec::new();
    loop {
        let frame = ws.next();
        if frame["type"] == "caught_up" {
            return all;
        }
        assert_eq!(frame["type"], "message", "{frame}");
        all.push(stored(&frame["data"]));
    }
}

fn stored(message: &Value) -> Stored {
    let content = message["content"].as_str().expect("a content");
    (message["id"].as_u64().expect("an id"), content.to_owned())
}

fn ids(messages: &Value) -> Vec<u64> {
    let messages = messages.as_array().expect("a list");
    messages.iter().map(|message| stored(message).0).collect()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

fn assert_sound(database: &Path, what: &str) {
    let db = Connection::open(database).expect("a database");
    let verdict = db.query_row("PRAGMA integrity_check", (), |row| row.get::<_, String>(0));
    assert_eq!(verdict.expect("a verdict"), "ok", "{what}");
}

fn publish_and_stop(database: &Path, count: usize) {
    let mut program = Program::start(database, &[]);
    let mut http = program.http();
    for _ in 0..count {
        http.publish("lab", "then");
    }
    program.signal(Signal::TERM);
    assert_eq!(program.wait().code(), Some(0));
}

/// Gives messages of a stopped program other times.
fn date(database: &Path, times: &[(u64, &str)]) {
    let db = Connection::open(database).expect("a database");
    for (id, time) in times {
        let update = "UPDATE messages SET timestamp = ? WHERE id = ?";
        let changed = db.execute(update, (time, *id as i64));
        assert_eq!(changed, Ok(1), "message {id}");
    }
}

/// Beyond the limit of `ulimit -f` a write fails; not ignored, the signal would kill.
fn start_that_survives_sigxfsz(database: &Path, args: &[&str]) -> Program {
    let ignoring = r#"trap "" XFSZ; exec "$0" serve --listen 127.0.0.1:0 --db "$@""#;
    let mut command = Command::new("sh");
    command
        .args(["-c", ignoring, env!("CARGO_BIN_EXE_threadcast")])
        .arg(database)
        .args(args);
    Program::start_command(command)
}
