//! `threadcast sub`: what a script or a person at a terminal can rely on.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::cli::{Client, Fake, threadcast};
use common::system::own_address;
use common::{Http, Program, TestServer, eventually, system};
use rustix::process::Signal;
use serde_json::{Value, json};
use threadcast::config::Database;
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;

/// A message as servers send it.
fn message(id: u64) -> Message {
    let data = json!({"id": id, "channel_id": "lab", "author": "ada", "content": "hi"});
    Message::text(json!({"type": "message", "data": data}).to_string())
}

fn subscribers(mut http: Http, channel: &str) -> u64 {
    let channels = http.get("/api/channels").json();
    let details = channels["details"].as_array().expect("a list").clone();
    let found = details.iter().find(|entry| entry["channel_id"] == channel);
    found.map_or(0, |entry| entry["subscribers"].as_u64().expect("a number"))
}

/// Waits until the file says that everything up to `id` was printed.
fn cursor_is(file: &Path, id: u64) {
    eventually("the cursor is saved", || {
        let text = fs::read_to_string(file).unwrap_or_default();
        serde_json::from_str::<Value>(&text).is_ok_and(|cursor| cursor["id"] == id)
    });
}

#[test]
fn a_pipe_gets_the_message_objects_and_people_get_a_line_without_control_characters() {
    let server = TestServer::start();
    let sent = json!({"channel_id": "a/b ü", "author": "ada\u{1b}[31m", "content": "x\ny\u{9b}2J", "lane": "llm"});
    let stored = server.http().post_json("/api/messages", &sent).json()["message"].clone();

    let sub = ["sub", "a/b ü", "--last", "1", "--count", "1"];
    let client = Client::start(server.address, &sub);
    assert_eq!(client.json(), stored);
    assert_eq!(client.end(), (Some(0), vec![], vec![]));

    let client = Client::start(server.address, &[&sub[..], &["--human"]].concat());
    let day = &stored["timestamp"].as_str().expect("a time")[..10];
    let line = client.line();
    let rest = line.strip_prefix(day).expect("the day");
    assert_eq!(&rest[9..], " ada\\u{1b}[31m [llm]: x\\ny\\u{9b}2J");
    assert_eq!(client.end(), (Some(0), vec![], vec![]));
}

#[test]
fn on_a_terminal_it_prints_lines_for_people_without_being_told() {
    let found = Command::new("script").arg("--version").output();
    if !found.is_ok_and(|run| run.status.success()) {
        return system::skipped("no `script`");
    }
    let server = TestServer::start();
    server.publish("lab", "hello");
    let command = format!(
        "{} sub lab --last 1 --count 1 --url http://{}",
        env!("CARGO_BIN_EXE_threadcast"),
        server.address
    );
    let run = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .expect("a terminal");
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(text.contains(" test: hello"), "{text}");
    assert!(!text.contains('{'), "{text}");
}

#[test]
fn of_a_feed_it_prints_the_frames_and_none_again_after_a_reconnect() {
    let fake = Fake::new();
    let client = Client::start(fake.address, &["sub", "--feed", "work-flows"]);
    let frame = |rev: u64| format!(r#"{{"type":"work_flows_update","data":null,"rev":{rev}}}"#);
    let (mut socket, target) = fake.accept();
    assert_eq!(target, "/ws/work-flows");
    socket.send(Message::text(frame(1))).expect("a client");
    assert_eq!(client.line(), frame(1));
    drop(socket);
    let (mut socket, _) = fake.accept();
    for rev in [1, 2] {
        socket.send(Message::text(frame(rev))).expect("a client");
    }
    assert_eq!(client.line(), frame(2));
    client.signal(Signal::TERM);
    assert_eq!(client.end().0, Some(0));

    let server = TestServer::start();
    server.http().put_state("routes2", "{\"a\": \"\\u009b\"}");
    let args = ["sub", "--feed", "routes2", "--count", "1", "--human"];
    let client = Client::start(server.address, &args);
    assert_eq!(client.line(), "routes2 rev 1: {\"a\":\"\\u009b\"}");
}

/// The story: the server is killed and comes back on the same port, messages are published
/// before the subscriber is back, and it must have all of them once.
#[test]
fn over_a_killed_server_nothing_is_missing_and_nothing_is_there_twice() {
    let dir = tempfile::tempdir().expect("a directory");
    let database = dir.path().join("test.db");
    let mut server = Program::start(&database, &[]);
    let client = Client::start(server.address, &["sub", "lab"]);
    eventually("it is subscribed", || {
        subscribers(server.http(), "lab") == 1
    });
    let mut expected = Vec::new();
    for _ in 0..3 {
        let mut http = server.http();
        expected.extend((0..40).map(|number| http.publish("lab", &number.to_string())));
        server.restart(&database);
    }
    let last = server.http().publish("lab", "last");
    expected.push(last);
    assert_eq!(client.ids(expected.len()), expected);
    assert!(client.error().ends_with("; trying again"));
    client.signal(Signal::INT);
    let (code, lines, _) = client.end();
    assert_eq!((code, lines), (Some(0), vec![]));
}

#[test]
fn a_cursor_file_goes_on_over_restarts_of_both_even_before_the_first_message() {
    let dir = tempfile::tempdir().expect("a directory");
    let (database, file) = (dir.path().join("test.db"), dir.path().join("cursor"));
    let mut server = Program::start(&database, &[]);
    let before = server.http().publish("other", "before");
    let path = file.to_str().expect("a name");
    let start =
        |server: &Program| Client::start(server.address, &["sub", "lab", "--cursor-file", path]);

    let client = start(&server);
    cursor_is(&file, before);
    client.signal(Signal::TERM);
    assert_eq!(client.end().0, Some(0));

    let missed = server.http().publish("lab", "missed");
    server.restart(&database);
    let client = start(&server);
    assert_eq!(client.ids(1), [missed]);
    let live = server.http().publish("lab", "live");
    assert_eq!(client.ids(1), [live]);
    cursor_is(&file, live);
    // Even one that has no time to say good-bye.
    client.signal(Signal::KILL);
    client.end();
    let next = server.http().publish("lab", "next");
    let client = start(&server);
    assert_eq!(client.ids(1), [next]);
    cursor_is(&file, next);
    client.signal(Signal::INT);
    assert_eq!(client.end().0, Some(0));
    let names = fs::read_dir(dir.path()).expect("a directory");
    let temporary = names.filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        name.to_string_lossy().starts_with(".cursor")
    });
    assert_eq!(temporary.count(), 0, "a temporary file is left");
}

#[test]
fn a_file_that_is_no_cursor_is_refused_before_anything_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("passwd");
    fs::write(&file, "root:x:0:0\n").expect("a file");
    let path = file.to_str().expect("a name");
    // No server is there to be asked.
    let fake = Fake::new();
    let client = Client::start(fake.address, &["sub", "lab", "--cursor-file", path]);
    let said = client.error();
    assert!(said.contains(path) && said.contains("no cursor"), "{said}");
    assert_eq!(client.end(), (Some(2), vec![], vec![]));
    assert_eq!(fs::read_to_string(&file).expect("a file"), "root:x:0:0\n");
}

#[test]
fn a_gap_is_told_on_standard_error() {
    let server = TestServer::start_with(|config| {
        config.database = Database::Memory;
        config.limits.memory_bytes = 8 << 10;
    });
    let mut http = server.http();
    let ids: Vec<u64> = (0..100)
        .map(|_| http.publish("lab", &"x".repeat(500)))
        .collect();
    let newest = ids[99];
    let kept = http.get("/api/messages?since=0").json()["messages"].clone();
    let oldest = kept[0]["id"].as_u64().expect("an id");
    assert!(oldest > 2, "nothing was forgotten");
    let client = Client::start(
        server.address,
        &["sub", "lab", "--since", "1", "--count", "1"],
    );
    assert_eq!(client.ids(1), [oldest]);
    let said = client.error();
    assert!(
        said.contains("gap: ") && said.contains(&oldest.to_string()),
        "{said}"
    );
    assert_eq!(client.end().0, Some(0));

    let client = Client::start(
        server.address,
        &["sub", "lab", "--since", "9999", "--count", "1"],
    );
    let said = client.error();
    assert!(
        said.contains("has no message 9999") && said.contains(&newest.to_string()),
        "{said}"
    );
    let new = server.publish("lab", "new");
    assert_eq!(client.ids(1), [new]);
}

#[test]
fn a_closed_pipe_ends_it_quietly_even_when_nothing_more_comes() {
    let server = TestServer::start();
    server.publish("lab", "one");
    let mut command = threadcast(&["sub", "lab", "--since", "0"]);
    command.args(["--url", &format!("http://{}", server.address)]);
    let (client, stdout) = Client::spawn(command);
    let mut reader = BufReader::new(stdout);
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    assert!(line.contains("\"one\""), "{line}");
    drop(reader);
    assert_eq!(client.end(), (Some(0), vec![], vec![]));
}

#[test]
fn signals_end_it_with_0_while_it_listens_while_it_waits_and_while_its_reader_sleeps() {
    let server = TestServer::start();
    let client = Client::start(server.address, &["sub", "lab", "--last", "0"]);
    eventually("it is subscribed", || {
        subscribers(server.http(), "lab") == 1
    });
    client.signal(Signal::INT);
    assert_eq!(client.end(), (Some(0), vec![], vec![]));

    let client = Client::start(nobody(), &["sub", "lab"]);
    assert!(client.error().contains("cannot connect"));
    client.signal(Signal::TERM);
    assert_eq!(client.end().0, Some(0));

    // More than a pipe holds.
    let mut http = server.http();
    for _ in 0..8 {
        http.publish("lab", &"x".repeat(100_000));
    }
    let mut command = threadcast(&["sub", "lab", "--since", "0"]);
    command.args(["--url", &format!("http://{}", server.address)]);
    let (client, stdout) = Client::spawn(command);
    let mut reader = BufReader::new(stdout);
    reader.fill_buf().expect("it has begun");
    client.signal(Signal::INT);
    assert_eq!(client.end(), (Some(0), vec![], vec![]));
}

#[test]
fn without_reconnect_a_server_that_is_not_there_is_an_error_with_its_reason() {
    let address = nobody();
    let client = Client::start(address, &["sub", "lab", "--no-reconnect"]);
    let said = client.error();
    assert!(
        said.contains(&format!("cannot connect to {address}: ")),
        "{said}"
    );
    assert_eq!(client.end(), (Some(1), vec![], vec![]));

    let mut command = threadcast(&["sub", "lab", "--no-reconnect"]);
    command.args(["--url", "http://no-such-host.invalid"]);
    // Where no name server answers it is given up soon.
    command.env("RES_OPTIONS", "timeout:1 attempts:1");
    let (client, _) = Client::spawn(command);
    let said = client.error();
    assert!(
        said.contains("cannot find the host no-such-host.invalid"),
        "{said}"
    );
    assert_eq!(client.end().0, Some(1));

    let fake = Fake::new();
    let client = Client::start(fake.address, &["sub", "lab", "--no-reconnect"]);
    drop(fake.accept());
    let said = client.error();
    assert!(said.contains("the server ended the connection"), "{said}");
    assert_eq!(client.end().0, Some(1));
}

#[test]
fn a_refusal_for_good_ends_it_and_one_for_now_is_waited_out() {
    let fake = Fake::new();
    let client = Client::start(fake.address, &["sub", "lab"]);
    let (mut stream, _) = fake.request();
    let asked = Instant::now();
    let answer = b"HTTP/1.1 503 Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(answer).expect("it reads");
    drop(stream);
    // The backoff alone would be back within 200 ms, and then 400.
    fake.answer("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n");
    assert!(asked.elapsed() >= Duration::from_secs(1));
    let (mut socket, _) = fake.accept();
    socket.send(message(1)).expect("a client");
    assert_eq!(client.ids(1), [1]);
    let code = tungstenite::protocol::frame::coding::CloseCode::Policy;
    let reason = "token revoked\u{1b}".into();
    socket
        .close(Some(CloseFrame { code, reason }))
        .expect("a client");
    let (code, _, said) = client.end();
    assert_eq!(code, Some(1));
    let last = said.last().expect("a sentence");
    assert!(last.ends_with("with 1008: token revoked\\u{1b}"), "{last}");

    let client = Client::start(fake.address, &["sub", "lab"]);
    let body = r#"{"detail":"no such token"}"#;
    fake.answer(&format!(
        "HTTP/1.1 401 Unauthorized\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    let said = client.error();
    assert_eq!(
        said,
        "threadcast: the server refused with 401: no such token"
    );
    assert_eq!(client.end(), (Some(1), vec![], vec![]));
}

#[test]
fn a_server_that_is_silent_is_pinged_given_up_and_asked_again_from_there() {
    let fake = Fake::new();
    let args = [
        "sub",
        "lab",
        "--ping-interval",
        "1s",
        "--pong-timeout",
        "1s",
    ];
    let client = Client::start(fake.address, &args);
    let (mut socket, target) = fake.accept();
    assert_eq!(target, "/api/ws/lab?last=0");
    socket.send(Message::Ping("x".into())).expect("a client");
    socket.send(message(7)).expect("a client");
    assert_eq!(client.ids(1), [7]);
    assert_eq!(socket.read().expect("an answer"), Message::Pong("x".into()));
    // Its ping is read with the next frame, and not answered.
    let (_second, target) = fake.accept();
    assert_eq!(target, "/api/ws/lab?since=7");
    assert!(matches!(socket.get_mut().peek(&mut [0; 2]), Ok(2)));
    assert!(matches!(socket.read(), Ok(Message::Ping(_))));
    let said = client.error();
    assert!(said.contains("not even to a ping"), "{said}");
}

#[test]
fn what_is_no_frame_of_the_protocol_is_left_out() {
    let fake = Fake::new();
    let client = Client::start(fake.address, &["sub", "lab", "--count", "1"]);
    let (mut socket, _) = fake.accept();
    for garbage in [
        "",
        "[",
        "[]",
        "{}",
        "{\"type\":7}",
        "{\"type\":\"message\"}",
        "{\"type\":\"message\",\"data\":{}}",
        "{\"type\":\"message\",\"data\":{\"id\":-1}}",
        "{\"type\":\"message\",\"data\":[[[[",
        "{\"type\":\"caught_up\",\"head\":null}",
        "{\"type\":\"gap\"}",
        "{\"type\":\"later\",\"data\":1}",
    ] {
        socket.send(Message::text(garbage)).expect("a client");
    }
    socket.send(message(5)).expect("a client");
    assert_eq!(client.ids(1), [5]);
    assert_eq!(client.end().0, Some(0));
}

#[test]
fn bytes_that_are_no_websocket_are_an_error_and_no_panic() {
    let fake = Fake::new();
    let client = Client::start(fake.address, &["sub", "lab"]);
    fake.answer("\0\x01\x02 nonsense\r\n\r\n");
    fake.answer("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n");
    let (mut socket, _) = fake.accept();
    // A frame of 2^63 bytes, a reserved opcode.
    socket
        .get_mut()
        .write_all(b"\x81\x7f\x7f\xff\xff\xff\xff\xff\xff\xff")
        .expect("a client");
    let (mut socket, _) = fake.accept();
    socket.get_mut().write_all(b"\x8f\x00").expect("a client");
    let (mut socket, _) = fake.accept();
    socket.send(message(1)).expect("a client");
    assert_eq!(client.ids(1), [1]);
    client.signal(Signal::TERM);
    let (code, _, said) = client.end();
    assert_eq!(code, Some(0));
    assert!(
        said.iter().all(|line| line.starts_with("threadcast: ")),
        "{said:?}"
    );
}

#[test]
fn a_token_goes_into_its_header_and_is_shown_nowhere() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("token");
    fs::write(&file, "from-file\n").expect("a file");
    let fake = Fake::new();
    let url = format!("http://{}/behind/", fake.address);
    for (args, variable, expected) in [
        (vec!["--token", "from-flag"], "", "from-flag"),
        (vec![], "from-variable", "from-variable"),
        (
            vec!["--token-file", file.to_str().expect("a name")],
            "other",
            "from-file",
        ),
    ] {
        let mut command = threadcast(&["sub", "lab", "--no-reconnect", "--url", &url]);
        command.args(args).env("THREADCAST_TOKEN", variable);
        let (client, _) = Client::spawn(command);
        let (stream, head) = fake.request();
        assert!(
            head.starts_with("GET /behind/api/ws/lab?last=0 HTTP/1.1\r\n"),
            "{head}"
        );
        assert!(
            head.contains(&format!("\r\nAuthorization: Bearer {expected}\r\n")),
            "{head}"
        );
        drop(stream);
        let (code, _, said) = client.end();
        assert_eq!(code, Some(1));
        assert!(!said.concat().contains(expected), "{said:?}");
    }
    let mut help = threadcast(&["sub", "--help"]);
    let help = help
        .env("THREADCAST_TOKEN", "s3cret")
        .output()
        .expect("help");
    let help = String::from_utf8_lossy(&help.stdout);
    assert!(
        help.contains("THREADCAST_TOKEN") && !help.contains("s3cret"),
        "{help}"
    );
    assert!(help.contains("Exit codes"), "{help}");
}

#[test]
fn wrong_usage_is_2_and_says_what_would_be_right() {
    for (args, expected) in [
        (&["sub"][..], "CHANNEL"),
        (&["sub", ""], "this one is empty"),
        (&["sub", "lab", "--feed", "f"], "cannot be used with"),
        (&["sub", "--feed", "Not a feed"], "a-z"),
        (
            &["sub", "--feed", "f", "--since", "1"],
            "cannot be used with",
        ),
        (
            &["sub", "lab", "--since", "1", "--last", "1"],
            "cannot be used with",
        ),
        (&["sub", "lab", "--last", "1001"], "1000"),
        (&["sub", "lab", "--count", "0"], "at least 1"),
        (&["sub", "lab", "--cacert", "x"], "https://"),
        (
            &["sub", "lab", "--url", "http://x/?a"],
            "http://127.0.0.1:8010",
        ),
        (&["sub", "lab", "--token", "a b"], "visible ASCII"),
        (&["sub", "lab", "--token-file", "/no/such"], "/no/such"),
        (&["sub", "lab", "--json", "--human"], "cannot be used with"),
    ] {
        let run = threadcast(args).output().expect("a run");
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
        assert!(!said.contains("a b"), "{said}");
    }
}

/// An address where nobody listens: the port was given out and is free again.
fn nobody() -> std::net::SocketAddr {
    let listener = TcpListener::bind((own_address(), 0)).expect("a port");
    listener.local_addr().expect("an address")
}
