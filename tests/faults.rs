//! A machine that gives nothing more, clients that stall, never read or vanish without a word, a
//! shutdown in the middle of it: whoever behaves is served, whoever comes later is served again,
//! and what was taken is given back.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Barrier, mpsc};
use std::thread;

use common::cable::Cable;
use common::sse::Sse;
use common::system::{raise_descriptor_limit, skipped};
use common::{Http, Program, Ws, eventually};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::process::{Resource, Signal};
use serde_json::{Value, json};
use tungstenite::Message;

const HEALTH: &str = "GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// More than the buffers of a socket and an outbox take, in messages of [`LARGE`] bytes.
const FLOOD: usize = 150;
const LARGE: usize = 60_000;

/// A receive buffer that is fixed from then on: left to itself it grows to 6 MiB.
const WINDOW: usize = 256 << 10;

/// Connections of each kind in an attack.
const HUNDREDS: usize = 300;

/// Not one descriptor is left: what is connected goes on, replay from the store and all. A watcher
/// cannot open its file and says so; its feed keeps its state. When descriptors come back, it
/// looks again, and whoever waited in vain is served.
#[test]
fn when_descriptors_run_out_all_that_is_there_goes_on_and_newcomers_wait_for_their_turn() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let state = dir.path().join("state.json");
    fs::write(&state, "1").expect("a file");
    let watch = format!("board=file:{}", state.display());
    let args = "--watch-interval 50ms --head-timeout 60s --write-timeout 60s";
    let args: Vec<&str> = ["--watch", &watch]
        .into_iter()
        .chain(args.split(' '))
        .collect();
    let log = dir.path().join("log");
    let program = Program::start_logging(&dir.path().join("test.db"), &args, &log);
    let mut board = Ws::open(program.address, "/ws/board");
    hear_state(&mut board, 1);
    let mut http = program.http();
    let mut slow = slow_subscriber(&program, "lab");

    let silent = take_descriptors(&program, &log, 12);
    let mut newcomer = program.http();
    newcomer.send(HEALTH);
    fs::write(&state, "22").expect("a file");

    let published = flood(&mut http, "lab");
    for id in &published {
        assert_eq!(slow.next_message()["id"], *id);
    }
    eventually("the watcher says that it cannot look", || {
        watcher_error(&mut http).is_some_and(|error| error.contains("Too many open files"))
    });
    assert_eq!(read_now(&newcomer.stream), None, "it got a descriptor");

    drop(silent);
    assert_eq!(newcomer.response(false).status, 200);
    hear_state(&mut board, 22);
    let mut late = program.subscribe("lab?since=0");
    for id in &published {
        assert_eq!(late.next_message()["id"], *id);
    }
    assert_eq!(late.next()["type"], "caught_up");
    let id = program.http().publish("lab", "to all");
    assert_eq!(late.next_message()["id"], id);
    assert_eq!(slow.next_message()["id"], id);
}

/// `ulimit -u`: not one thread more. What has its thread goes on, also forty requests at once;
/// whoever comes is told 503 and that it was for a thread. A watched command cannot be run and
/// its feed keeps its state. Root is bound by no such limit, so the program runs as somebody else
/// then.
#[test]
fn when_threads_run_out_newcomers_are_told_so_and_served_as_soon_as_there_are_some() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let state = dir.path().join("state.json");
    fs::write(&state, "1").expect("a file");
    let watch = format!("board=exec:cat {}", state.display());
    let args = "--watch-interval 50ms --write-timeout 120s";
    let args: Vec<&str> = ["--watch", &watch]
        .into_iter()
        .chain(args.split(' '))
        .collect();
    let Some(program) = Program::start_bound(dir.path(), &args) else {
        return skipped(Program::NOT_BOUND);
    };
    let mut board = Ws::open(program.address, "/ws/board");
    hear_state(&mut board, 1);
    let mut early: Vec<Http> = (0..40).map(|_| program.http()).collect();
    let ids = early.iter_mut().map(|http| http.publish("lab", "before"));
    let mut newest = ids.last().expect("some");
    let mut slow = slow_subscriber(&program, "lab");

    program.limit_threads(Some(1));
    for request in [HEALTH.to_owned(), upgrade("/api/ws/lab?since=0")] {
        for _ in 0..5 {
            let mut newcomer = program.http();
            newcomer.send(&request);
            let refused = newcomer.response(false);
            assert_eq!(refused.status, 503, "{}", refused.text());
            assert!(refused.header("Retry-After").is_some(), "{refused:?}");
            assert!(refused.text().contains("thread"), "{}", refused.text());
        }
    }
    let published = flood(&mut early[0], "lab");
    let at_once: Vec<u64> = thread::scope(|scope| {
        let publish = |http| scope.spawn(|| Http::publish(http, "lab", "at once"));
        let threads: Vec<_> = early.iter_mut().map(publish).collect();
        let ids = threads.into_iter().map(|thread| thread.join());
        ids.map(|id| id.expect("an id")).collect()
    });
    for _ in 0..published.len() + at_once.len() {
        newest += 1;
        assert_eq!(slow.next_message()["id"], newest);
    }
    fs::write(&state, "22").expect("a file");
    eventually("the watcher says that it cannot run its command", || {
        watcher_error(&mut early[0]).is_some()
    });

    program.limit_threads(None);
    assert_eq!(program.http().publish("lab", "after"), newest + 1);
    let mut late = program.subscribe("lab?since=0");
    for id in 1..=newest + 1 {
        assert_eq!(late.next_message()["id"], id);
    }
    assert_eq!(slow.next_message()["id"], newest + 1);
    hear_state(&mut board, 22);
}

/// Slowloris: hundreds of heads and bodies without an end take a thread each and nothing else.
#[test]
fn hundreds_of_half_requests_take_nothing_from_whoever_sends_whole_ones() {
    raise_descriptor_limit();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let args = ["--head-timeout", "120s", "--body-timeout", "120s"];
    let program = Program::start(&dir.path().join("test.db"), &args);
    let (mut heads, mut bodies) = half_requests(&program);
    let mut listener = program.subscribe("lab");
    let mut http = program.http();
    for _ in 0..100 {
        let id = http.publish("lab", "hello");
        assert_eq!(listener.next_message()["id"], id);
        // New ones are served like those that are there.
        assert_eq!(program.http().get("/api/messages?limit=1").status, 200);
    }
    for held in heads.iter().chain(&bodies) {
        assert_eq!(read_now(&held.stream), None, "it was not held until now");
    }
    // And they were requests: what is missing makes them whole.
    for half in &mut heads {
        half.send("host\r\n\r\n");
        assert_eq!(half.response(false).status, 200);
    }
    for half in &mut bodies {
        half.send("hello\"}");
        let answer = half.response(false);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(listener.next_message(), answer.json()["message"]);
    }
}

#[test]
fn hundreds_of_half_requests_are_answered_408_at_their_time_and_leave_nothing_behind() {
    raise_descriptor_limit();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let args = ["--head-timeout", "3s", "--body-timeout", "3s"];
    let program = Program::start(&dir.path().join("test.db"), &args);
    let mut listener = program.subscribe("lab");
    let mut http = program.http();
    let before = http.publish("lab", "before");
    let (threads, sockets) = program.threads_and_sockets();
    let (heads, bodies) = half_requests(&program);
    for mut half in heads.into_iter().chain(bodies) {
        let answer = half.response(false);
        assert_eq!(answer.status, 408, "{}", answer.text());
        assert!(half.closed());
    }
    eventually("every thread has ended, every socket is closed", || {
        let (now_threads, now_sockets) = program.threads_and_sockets();
        now_threads <= threads && now_sockets <= sockets
    });
    assert_eq!(listener.next_message()["id"], before);
    let id = http.publish("lab", "after");
    assert_eq!(id, before + 1, "half a body was stored");
    assert_eq!(listener.next_message()["id"], id);
}

/// What waits for it is in the store, not in memory. Given time it gets all of that; given little,
/// it is given up and its place is free.
#[test]
fn a_flood_that_one_subscriber_never_reads_takes_no_memory_and_nothing_from_the_others() {
    const MESSAGES: usize = 300;
    for patient in [false, true] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let timeout = if patient { "120s" } else { "300ms" };
        // What was broadcast last stays in memory with nobody behind, too: little of it here.
        let args = ["--write-timeout", timeout, "--recent-bytes", "256KiB"];
        let program = Program::start(&dir.path().join("test.db"), &args);
        let mut http = program.http();
        // Whatever a publisher and a reader need is in use once.
        let mut reader = program.subscribe("lab");
        let first = http.publish("lab", &"x".repeat(LARGE));
        assert_eq!(reader.next_message()["id"], first);
        let mut never_reads = slow_subscriber(&program, "lab");
        let before = program.peak_memory();
        let content = "x".repeat(LARGE);
        for n in 1..=MESSAGES as u64 {
            assert_eq!(http.publish("lab", &content), first + n);
            assert_eq!(reader.next_message()["id"], first + n);
        }
        let grown = program.peak_growth(before);
        let half = (MESSAGES * LARGE / 2) as u64;
        assert!(
            grown < half,
            "{grown} bytes more for twice {half} of messages"
        );
        if patient {
            for n in 1..=MESSAGES as u64 {
                assert_eq!(never_reads.next_message()["id"], first + n);
            }
            let live = http.publish("lab", "live");
            assert_eq!(never_reads.next_message()["id"], live);
        } else {
            eventually("it is given up", || subscribers(&mut http, "lab") == 1);
            let end = std::iter::repeat_with(|| never_reads.read()).find(Result::is_err);
            assert!(end.is_some(), "its connection was reset");
        }
    }
}

/// A cable is cut: no FIN, no RST, and what the server sends is never acknowledged. Silent
/// subscribers end with the ping, flooded ones with the write timeout, requests with theirs.
#[test]
fn peers_behind_a_cut_cable_are_given_up_with_their_threads_and_descriptors() {
    let Some(cable) = Cable::new() else {
        return skipped("no network namespace can be made here");
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let times = "--ping-interval 3s --pong-timeout 2s --write-timeout 4s --idle-timeout 5s \
                 --head-timeout 5s --body-timeout 5s";
    let program = cable.start(&dir.path().join("test.db"), times);
    let before = program.threads_and_sockets();
    flood(&mut program.http(), "lab");

    let silent = [(); 3].map(|()| program.subscribe("quiet"));
    let feed = Ws::open(program.address, "/ws/board");
    let streams = ["/api/sse/quiet", "/sse/board"].map(|path| Sse::open(program.address, path));
    let flooded = [(); 3].map(|()| slow_subscriber(&program, "lab?since=0"));
    let mut idle = program.http();
    assert_eq!(idle.get("/api/health").status, 200);
    let mut half_a_head = program.http();
    half_a_head.send("GET / HTTP/1.1\r\nHost: local");
    let mut half_a_body = program.http();
    half_a_body.send(post("Content-Length: 100\r\n"));
    eventually("all are there", || {
        let (_, sockets) = program.threads_and_sockets();
        sockets >= before.1 + 2 * (3 + 1 + 2 + 3) + 3
    });
    cable.cut();

    eventually("their threads and descriptors are free", || {
        let (threads, sockets) = program.threads_and_sockets();
        threads <= before.0 && sockets <= before.1
    });
    cable.mend();
    let mut back = program.subscribe("lab?since=0");
    for id in 1..=FLOOD as u64 {
        assert_eq!(back.next_message()["id"], id);
    }
    drop((
        silent,
        feed,
        streams,
        flooded,
        idle,
        half_a_head,
        half_a_body,
    ));
}

/// At the moment of the signal they are in the middle of a long history, which they read slowly
/// enough to be in the store's hands and not in the kernel's, while messages are published.
#[test]
fn sigterm_ends_subscribers_that_catch_up_with_1001_behind_a_run_without_holes() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("stopped.db");
    let mut program = Program::start(&database, &["--drain", "20s", "--write-timeout", "120s"]);
    let mut http = program.http();
    for _ in 0..2 {
        flood(&mut http, "lab");
    }
    let history = 2 * FLOOD as u64;
    let address = program.address;
    let (in_the_middle, signalled) = (Barrier::new(11), Barrier::new(11));
    let catch_up = |since: u64| {
        let mut ws = Ws::subscribe(address, &format!("lab?since={since}"));
        set_socket_recv_buffer_size(ws.socket.get_ref(), WINDOW).expect("a buffer");
        let mut heard = since;
        let mut hear = |ws: &mut Ws| match ws.read().expect("a close frame before the end") {
            Message::Text(text) => {
                let frame: Value = serde_json::from_str(&text).expect("JSON");
                if frame["type"] != "caught_up" {
                    heard += 1;
                    assert_eq!(frame["data"]["id"], heard, "since {since}: {frame}");
                }
                None
            }
            Message::Close(frame) => Some(frame.map(|frame| u16::from(frame.code))),
            _ => None,
        };
        for _ in 0..10 {
            assert_eq!(hear(&mut ws), None);
        }
        in_the_middle.wait();
        signalled.wait();
        let code = loop {
            if let Some(code) = hear(&mut ws) {
                break code;
            }
        };
        assert_eq!(code, Some(1001), "since {since}, after {heard}");
        heard
    };
    let heard: Vec<u64> = thread::scope(|scope| {
        let catch_up = &catch_up;
        let clients = (0..10).map(|n| scope.spawn(move || catch_up(5 * n)));
        let clients: Vec<_> = clients.collect();
        let (stop, stopped) = mpsc::channel::<()>();
        let publisher = scope.spawn(move || {
            let mut ws = Ws::subscribe(address, "lab");
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                let frame = json!({"type": "message", "content": "more"}).to_string();
                // Its end is the program's.
                if ws.socket.send(Message::text(frame)).is_err() || ws.read().is_err() {
                    break;
                }
            }
        });
        in_the_middle.wait();
        program.signal(Signal::TERM);
        signalled.wait();
        let heard = clients.into_iter().map(|client| client.join());
        let heard = heard.map(|heard| heard.expect("a client")).collect();
        drop(stop);
        publisher.join().expect("the publisher");
        heard
    });
    assert_eq!(program.wait().code(), Some(0));
    assert!(heard.iter().any(|heard| *heard < history), "{heard:?}");
}

#[test]
fn sigterm_without_a_descriptor_left_ends_everybody_with_1001() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = dir.path().join("log");
    let database = dir.path().join("test.db");
    let program = Program::start_logging(&database, &["--drain", "20s"], &log);
    ends_well(program, dir.path(), |program| {
        take_descriptors(program, &log, 6)
    });
}

#[test]
fn sigterm_without_a_thread_left_ends_everybody_with_1001() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(program) = Program::start_bound(dir.path(), &["--drain", "20s"]) else {
        return skipped(Program::NOT_BOUND);
    };
    ends_well(program, dir.path(), |program| {
        program.limit_threads(Some(1))
    });
}

/// The end needs nothing that the machine could refuse.
fn ends_well<T>(mut program: Program, dir: &Path, starve: impl FnOnce(&Program) -> T) {
    let subscribers = [(); 3].map(|()| program.subscribe("lab"));
    let mut http = program.http();
    http.publish("lab", "before");
    let starved = starve(&program);
    let last = http.publish("lab", "last");
    program.signal(Signal::TERM);
    for mut subscriber in subscribers {
        assert_eq!(subscriber.next_message()["content"], "before");
        assert_eq!(subscriber.next_message()["id"], last);
        assert_eq!(subscriber.close_code(), Some(1001));
    }
    assert_eq!(program.wait().code(), Some(0));
    let log = dir.join("test.db-wal");
    assert!(!log.exists(), "all is checkpointed into the one file");
    drop(starved);
}

/// Leaves the program so many descriptors more, and connects until it says that it has none. They
/// cannot be counted from outside: a thread blocked in `accept` holds a number that nothing shows.
fn take_descriptors(program: &Program, log: &Path, more: u64) -> Vec<TcpStream> {
    let taken = program.entries("fd").count() as u64;
    program.limit(Resource::Nofile, Some(taken + more));
    let connect = |_| TcpStream::connect(program.address).expect("the kernel accepts");
    let silent = (0..3 * more).map(connect).collect();
    eventually("no descriptor is left", || {
        fs::read_to_string(log).is_ok_and(|log| log.contains("cannot accept a connection"))
    });
    silent
}

/// A subscriber with a small window that has not read yet.
fn slow_subscriber(program: &Program, channel: &str) -> Ws {
    let ws = program.subscribe(channel);
    set_socket_recv_buffer_size(ws.socket.get_ref(), WINDOW).expect("a buffer");
    ws
}

fn flood(http: &mut Http, channel: &str) -> Vec<u64> {
    let content = "x".repeat(LARGE);
    (0..FLOOD)
        .map(|_| http.publish(channel, &content))
        .collect()
}

/// Reads the feed's frames until its state is this.
fn hear_state(feed: &mut Ws, state: u64) {
    while feed.next()["data"] != state {}
}

/// What the watcher of the feed `board` complains about.
fn watcher_error(http: &mut Http) -> Option<String> {
    let feeds = http.get("/api/state").json()["feeds"].take();
    let board = feeds
        .as_array()?
        .iter()
        .find(|feed| feed["feed"] == "board");
    board?["watch"]["error"].as_str().map(str::to_owned)
}

fn subscribers(http: &mut Http, channel: &str) -> u64 {
    let details = http.get("/api/channels").json()["details"].take();
    let channels = details.as_array().expect("a list");
    let found = channels.iter().find(|one| one["channel_id"] == channel);
    found
        .and_then(|one| one["subscribers"].as_u64())
        .expect("a number")
}

/// What can be read at once: nothing yet is `None`, the end is 0 bytes.
fn read_now(stream: &TcpStream) -> Option<usize> {
    stream.set_nonblocking(true).expect("a socket");
    let read = stream.peek(&mut [0]);
    stream.set_nonblocking(false).expect("a socket");
    match read {
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        read => Some(read.unwrap_or(0)),
    }
}

fn post(headers: &str) -> String {
    format!("POST /api/messages HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
}

fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// Heads that lack `host` and an empty line, and bodies that lack `hello"}`.
fn half_requests(program: &Program) -> (Vec<Http>, Vec<Http>) {
    let body = r#"{"channel_id":"lab","author":"slow","content":""#;
    let length = format!("Content-Length: {}\r\n", body.len() + 7);
    let half_a_body = post(&length) + body;
    let half_a_head = "GET /api/health HTTP/1.1\r\nHost: local";
    let open = |half: &str| -> Vec<Http> {
        // At once: a connection without a byte is closed without a word.
        let open = |_| {
            let mut http = program.http();
            http.send(half);
            http
        };
        (0..HUNDREDS).map(open).collect()
    };
    (open(half_a_head), open(&half_a_body))
}
