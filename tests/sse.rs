//! Server-Sent Events: `curl -N` and a browser's `EventSource` hear what WebSockets hear, in the
//! same order, and an `EventSource` that is cut off misses nothing when it comes back.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::sse::Sse;
use common::system::skipped;
use common::{DEADLINE, Http, Program, TestServer, Ws, both_stores, eventually};
use rustix::net::sockopt::set_socket_linger;
use rustix::process::Signal;
use serde_json::{Value, json};
use threadcast::config::Database;

const PATIENT: Duration = Duration::from_secs(120);

#[test]
fn a_hundred_event_streams_and_a_hundred_websockets_see_the_same() {
    const EACH: usize = 100;
    const PUBLISHERS: usize = 3;
    const MESSAGES: usize = 30;
    for server in both_stores(|_| {}) {
        let address = server.address;
        let mut streams: Vec<Sse> = (0..EACH).map(|_| Sse::subscribe(address, "lab")).collect();
        let mut sockets: Vec<Ws> = (0..EACH).map(|_| server.subscribe("lab")).collect();
        thread::scope(|scope| {
            for publisher in 0..PUBLISHERS {
                scope.spawn(move || {
                    let mut http = Http::connect(address);
                    for number in 0..MESSAGES {
                        // What must not be taken for fields of the stream.
                        let content = format!("{publisher}/{number}\r\n\ndata: é\u{2028}id: 1\n\n");
                        http.publish("lab", &content);
                    }
                });
            }
        });
        let expected: Vec<String> = (0..PUBLISHERS * MESSAGES)
            .map(|_| sockets[0].next_text())
            .collect();
        for socket in &mut sockets[1..] {
            for text in &expected {
                assert_eq!(socket.next_text(), *text);
            }
        }
        for stream in &mut streams {
            let mut last = 0;
            for text in &expected {
                let event = stream.next_event();
                assert_eq!(event.data, *text);
                let id = event.json()["data"]["id"].as_u64().expect("an id");
                assert_eq!(event.id, id.to_string());
                assert!(id > last, "{id} after {last}");
                last = id;
            }
        }
    }
}

#[test]
fn the_answer_is_an_event_stream_that_nobody_keeps_or_holds_back() {
    let server = TestServer::start();
    for path in ["/api/sse/lab", "/sse/board"] {
        let mut stream = Sse::open_with(
            server.address,
            path,
            "Origin: http://localhost:3000\r\nAccept: application/json\r\n",
        );
        for (name, value) in [
            ("Content-Type", "text/event-stream"),
            ("Cache-Control", "no-store"),
            ("X-Accel-Buffering", "no"),
            ("Connection", "close"),
            ("Access-Control-Allow-Origin", "http://localhost:3000"),
        ] {
            assert_eq!(stream.header(name), Some(value), "{path}");
        }
        assert_eq!(stream.header("Content-Length"), None);
        assert_eq!(stream.header("Transfer-Encoding"), None);
        server.http().put_state("board", "1");
        server.publish("lab", "hello");
        stream.next_event();
        assert_eq!(stream.retry, Some(1000));

        let head = server.http().request("HEAD", path, &[], b"");
        assert_eq!(head.status, 200);
        assert_eq!(head.header("Content-Type"), Some("text/event-stream"));
        assert_eq!(head.header("Content-Length"), None);
        let mut foreign = server.http();
        let origin = [("Origin", "http://example.com")];
        let head = foreign.request("HEAD", path, &origin, b"");
        assert_eq!(head.header("Access-Control-Allow-Origin"), None);
        assert!(foreign.closed(), "a head alone has nothing behind it");

        for method in ["POST", "PUT", "DELETE"] {
            let response = server.http().request(method, path, &[], b"{}");
            assert_eq!(response.status, 405, "{method} {path}");
            assert_eq!(response.header("Allow"), Some("GET, HEAD, OPTIONS"));
        }
        let options = server.http().request("OPTIONS", path, &[], b"");
        assert_eq!(options.header("Allow"), Some("GET, HEAD, OPTIONS"));
    }
    for path in [
        "/api/sse",
        "/api/sse/",
        "/api/sse/a/b",
        "/sse/",
        "/api/v1/sse/x",
    ] {
        assert_eq!(server.http().get(path).status, 404, "{path}");
    }
}

#[test]
fn an_http_1_0_client_gets_the_stream_too() {
    let server = TestServer::start();
    let id = server.publish("lab", "one");
    let mut stream = server.http().stream;
    stream
        .write_all(b"GET /api/sse/lab?since=0 HTTP/1.0\r\n\r\n")
        .expect("the server takes bytes");
    let mut lines = BufReader::new(stream)
        .lines()
        .map(|line| line.expect("text"));
    let expected = format!("id: {id}");
    assert!(lines.any(|line| line == expected));
    assert!(lines.next().expect("a line").starts_with("data: {"));
}

#[test]
fn since_last_and_last_event_id_bring_what_was_missed() {
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        let lab: Vec<u64> = (0..5).map(|_| http.publish("lab", "x")).collect();
        let head = http.publish("other", "not for the lab");
        let back = |id: u64| format!("Last-Event-ID: {id}\r\n");
        for (query, header, expected) in [
            ("since=0".to_owned(), String::new(), &lab[..]),
            (format!("since={}", lab[1]), String::new(), &lab[2..]),
            ("last=2".to_owned(), String::new(), &lab[3..]),
            ("last=0".to_owned(), String::new(), &[]),
            (String::new(), back(lab[1]), &lab[2..]),
            ("since=0".to_owned(), back(lab[3]), &lab[4..]),
            ("last=5".to_owned(), back(lab[4]), &[]),
            ("since=0".to_owned(), back(head), &[]),
            ("since=x".to_owned(), back(lab[0]), &lab[1..]),
            // Whoever has no id yet sends none, or an empty one.
            (
                "last=1".to_owned(),
                "Last-Event-ID:\r\n".to_owned(),
                &lab[4..],
            ),
        ] {
            let path = format!("/api/sse/lab?{query}");
            let mut stream = Sse::open_with(server.address, &path, &header);
            for id in expected {
                assert_eq!(stream.next_message()["id"], *id, "{query} {header}");
            }
            let caught_up = stream.next_event();
            let told = json!({"type": "caught_up", "head": head});
            assert_eq!(caught_up.json(), told, "{query} {header}");
            assert_eq!(caught_up.id, head.to_string(), "{query} {header}");
        }
    }
}

#[test]
fn a_gap_is_told_and_not_told_again_to_whoever_comes_back_with_its_id() {
    let server = TestServer::start_with(|config| {
        config.database = Database::Memory;
        config.limits.memory_bytes = 16 << 10;
    });
    let mut http = server.http();
    let content = "x".repeat(1000);
    let ids: Vec<u64> = (0..100).map(|_| http.publish("lab", &content)).collect();
    let (path, head) = ("/api/sse/lab", ids[99]);

    let mut stream = Sse::come_back(server.address, path, "1");
    let gap = stream.next_event();
    let frame = gap.json();
    let oldest = frame["oldest"].as_u64().expect("an id");
    assert!(oldest > 2, "{frame}");
    let told = json!({
        "type": "gap", "since": 1, "oldest": oldest, "head": head, "reason": "retention",
    });
    assert_eq!(frame, told);
    assert_eq!(gap.id, (oldest - 1).to_string());
    assert_eq!(stream.next_message()["id"], oldest);
    let mut again = Sse::come_back(server.address, path, &gap.id);
    assert_eq!(again.next_message()["id"], oldest);

    let mut stream = Sse::come_back(server.address, path, "1000000");
    let gap = stream.next_event();
    assert_eq!(gap.json()["reason"], "unknown_id");
    assert_eq!(gap.id, head.to_string());
    assert_eq!(stream.next()["type"], "caught_up");
    let mut again = Sse::come_back(server.address, path, &gap.id);
    assert_eq!(again.next(), json!({"type": "caught_up", "head": head}));
}

/// An `EventSource` knows only the ids it was sent. One that was cut off before the first
/// message, or whose few last messages were all there was, once would have begun anew.
#[test]
fn whoever_is_cut_off_before_the_first_message_misses_none_of_those_that_come_meanwhile() {
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        http.publish("other", "not for the lab");
        for path in [
            "/api/sse/lab",
            "/api/sse/lab?last=2",
            "/api/sse/lab?since=1",
        ] {
            let mut stream = Sse::open(server.address, path);
            if path.contains('?') {
                while stream.next()["type"] != "caught_up" {}
            } else {
                stream.comments_after_next();
            }
            let last = stream.last_event_id.clone();
            drop(stream);
            let missed: Vec<u64> = (0..5).map(|_| http.publish("lab", "missed")).collect();
            let mut back = Sse::come_back(server.address, path, &last);
            for id in missed {
                assert_eq!(back.next_message()["id"], id, "{path}, {last:?}");
            }
            assert_eq!(back.next()["type"], "caught_up");
        }
    }
}

#[test]
fn names_are_decoded_and_wrong_ones_refused_with_their_field() {
    let server = TestServer::start();
    let mut stream = Sse::subscribe(server.address, "a%2Fb%20%C3%BC");
    server.publish("a/b ü", "hello");
    assert_eq!(stream.next_message()["channel_id"], "a/b ü");

    let too_long = format!("/api/sse/{}", "x".repeat(129));
    for (path, header, status, field) in [
        ("/api/sse/a%00", "", 422, "channel_id"),
        (&too_long, "", 422, "channel_id"),
        ("/sse/UPPER", "", 422, "feed"),
        ("/api/sse/%zz", "", 400, ""),
        ("/api/sse/lab?since=-1", "", 422, "since"),
        ("/api/sse/lab?last=1001", "", 422, "last"),
        ("/api/sse/lab", "x", 422, "Last-Event-ID"),
        ("/api/sse/lab?since=0", "1, 2", 422, "Last-Event-ID"),
    ] {
        let headers = [("Last-Event-ID", header)];
        let headers = &headers[..usize::from(!header.is_empty())];
        let mut http = server.http();
        let response = http.request("GET", path, headers, b"");
        assert_eq!(response.status, status, "{path} {header}");
        let told = response.json()["field"].clone();
        assert_eq!(told.as_str().unwrap_or_default(), field, "{path} {header}");
        assert_eq!(
            response.header("Content-Type"),
            Some("application/problem+json")
        );
        let mut http = server.http();
        assert_eq!(http.request("HEAD", path, headers, b"").status, status);
        assert!(http.closed(), "HEAD {path} has no body");
    }
}

#[test]
fn a_feed_begins_with_its_state_whatever_the_client_had_and_goes_on_with_what_changes() {
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        http.put_state("board", r#"{ "a": [1, 2] }"#);
        let mut socket = server.subscribe_feed("board");
        let state = socket.next_text();
        for last in ["", "0", "1", "7", "x"] {
            let mut stream = Sse::come_back(server.address, "/sse/board?since=x", last);
            let first = stream.next_event();
            assert_eq!((&first.data, &first.id[..]), (&state, "1"), "{last}");
        }
        let mut stream = Sse::subscribe_feed(server.address, "board");
        stream.next_event();
        assert_eq!(http.put_state("board", r#"{"a":[1,2]}"#)["changed"], false);
        assert_eq!(http.put_state("board", "null")["changed"], true);
        let event = stream.next_event();
        assert_eq!((event.data, &event.id[..]), (socket.next_text(), "2"));
        // Revision 0 is an id like every other.
        let first = Sse::subscribe_feed(server.address, "new").next_event();
        assert_eq!(
            first.json(),
            json!({"type": "new_update", "data": null, "rev": 0})
        );
        assert_eq!(first.id, "0");
    }
}

#[test]
fn a_feed_s_stream_that_is_not_read_skips_states_and_gets_the_newest() {
    const STATES: usize = 200;
    let server = TestServer::start_with(|config| config.limits.write_timeout = PATIENT);
    let mut stream = Sse::subscribe_feed(server.address, "board");
    let mut http = server.http();
    for number in 0..STATES {
        http.put_state("board", &json!([number, "x".repeat(200_000)]).to_string());
    }
    let mut revs = Vec::new();
    while revs.last() != Some(&STATES) {
        let event = stream.next_event();
        assert_eq!(event.json()["rev"].to_string(), event.id);
        revs.push(event.id.parse().expect("a rev"));
    }
    assert!(revs.is_sorted_by(|one, other| one < other), "{revs:?}");
    assert!(revs.len() < STATES, "nothing was skipped");
}

#[test]
fn a_channel_s_stream_that_is_not_read_falls_behind_and_loses_nothing() {
    const MESSAGES: usize = 400;
    // With nothing in memory everything comes from the store.
    for recent in [8 << 20, 0] {
        for server in both_stores(|config| {
            config.limits.write_timeout = PATIENT;
            config.limits.recent_bytes = recent;
        }) {
            let mut stuck = Sse::subscribe(server.address, "lab");
            let mut reader = server.subscribe("lab");
            let mut http = server.http();
            // 24 MB: more than the sockets' buffers and the outbox.
            let content = "x".repeat(60_000);
            let published: Vec<u64> = (0..MESSAGES)
                .map(|_| {
                    let id = http.publish("lab", &content);
                    assert_eq!(reader.next_message()["id"], id);
                    id
                })
                .collect();
            for id in &published {
                assert_eq!(stuck.next_message()["id"], *id);
            }
            // And live again, without a word about it.
            let id = http.publish("lab", "live");
            assert_eq!(stuck.next_message()["id"], id);
        }
    }
}

#[test]
fn a_stream_that_takes_no_byte_for_the_write_timeout_is_given_up() {
    let server = TestServer::start_with(|config| {
        config.limits.write_timeout = Duration::from_millis(300);
    });
    let stuck = Sse::subscribe(server.address, "lab");
    let mut http = server.http();
    let content = "x".repeat(200_000);
    for _ in 0..100 {
        http.publish("lab", &content);
    }
    drop(http);
    gone(&server);
    drop(stuck);
}

#[test]
fn a_comment_comes_again_and_again_while_nothing_happens() {
    let server = TestServer::start_with(|config| {
        config.limits.ping_interval = Duration::from_millis(50);
    });
    for path in ["/api/sse/lab", "/sse/board"] {
        let mut stream = Sse::open(server.address, path);
        while stream.comments_after_next() < 3 {}
        assert_eq!(stream.comments, ["", "", ""]);
        assert_eq!(stream.header("Content-Type"), Some("text/event-stream"));
    }
}

#[test]
fn whoever_goes_is_off_the_list_at_once() {
    let server = TestServer::start();
    for path in ["/api/sse/lab", "/sse/board"] {
        for reset in [false, true] {
            let stream = Sse::open(server.address, path);
            assert_eq!(server.server().active_connections(), 1);
            if reset {
                set_socket_linger(&stream.stream, Some(Duration::ZERO)).expect("a socket");
            }
            drop(stream);
            gone(&server);
        }
    }
}

/// Waits until nobody is subscribed and no connection but the asking one is open.
/// The connection that saw it is the only one left.
fn gone(server: &TestServer) -> Http {
    let mut http = server.http();
    eventually("the subscriber is gone", || {
        let health = http.get("/api/health").json();
        health["connections"] == 0 && health["limits"]["connections"]["used"] == 1
    });
    http
}

#[test]
fn what_a_client_says_behind_its_request_is_nothing_and_too_much_of_it_the_end() {
    let server = TestServer::start();
    let body = "Content-Length: 5\r\n";
    let mut stream = Sse::open_with(server.address, "/api/sse/lab", body);
    stream.stream.write_all(b"hello").expect("bytes");
    stream
        .stream
        .write_all(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("bytes");
    let id = server.publish("lab", "still here");
    assert_eq!(stream.next_message()["id"], id);
    let flood = [b'x'; 4096];
    // The server stops reading: sooner or later the connection is reset.
    while stream.stream.write_all(&flood).is_ok() {}
    gone(&server);
}

#[test]
fn sigterm_ends_the_stream_behind_everything_acknowledged_and_the_next_start_goes_on() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("test.db");
    let mut program = Program::start(&database, &[]);
    let mut streams: Vec<Sse> = (0..20)
        .map(|_| Sse::subscribe(program.address, "lab"))
        .collect();
    let mut feed = Sse::subscribe_feed(program.address, "board");
    assert_eq!(feed.next()["rev"], 0);
    let mut http = program.http();
    let ids: Vec<u64> = (0..200).map(|_| http.publish("lab", "x")).collect();
    http.put_state("board", "1");
    program.signal(Signal::TERM);
    for stream in &mut streams {
        for id in &ids {
            assert_eq!(stream.next_message()["id"], *id);
        }
        assert_eq!(stream.try_event(), None);
        assert_eq!(stream.comments, ["1001 the server is shutting down"]);
    }
    assert_eq!(feed.next()["rev"], 1);
    assert_eq!(feed.try_event(), None);
    let last = streams[0].last_event_id.clone();
    // The server waits for the clients to close their side.
    drop((streams, feed, http));
    assert!(program.wait().success());

    let program = Program::start(&database, &[]);
    let missed = program.http().publish("lab", "meanwhile");
    let mut back = Sse::come_back(program.address, "/api/sse/lab", &last);
    assert_eq!(back.next_message()["id"], missed);
}

#[test]
fn event_streams_count_as_subscribers_and_as_connections() {
    let server = TestServer::start_with(|config| {
        config.limits.max_subscribers = 2;
        config.limits.max_connections = 5;
    });
    for (paths, route) in [
        (["/api/sse/lab", "/api/ws/lab"], "channel \"lab\""),
        (["/sse/board", "/ws/board"], "feed board"),
    ] {
        let stream = Sse::open(server.address, paths[0]);
        let socket = Ws::open(server.address, paths[1]);
        let response = server.http().get(paths[0]);
        assert_eq!(response.status, 503);
        assert_eq!(response.header("Retry-After"), Some("1"));
        let detail = response.json()["detail"].to_string();
        assert!(detail.contains("--max-subscribers"), "{route}: {detail}");
        drop((stream, socket));
        gone(&server);
    }
    let mut http = gone(&server);
    let streams = [(); 2].map(|()| Sse::subscribe(server.address, "lab"));
    let feeds = [(); 2].map(|()| Sse::subscribe_feed(server.address, "board"));
    let channels = http.get("/api/channels").json();
    assert_eq!(channels["details"][0]["subscribers"], 2, "{channels}");
    let states = http.get("/api/state").json();
    let board = json!({"feed": "board", "rev": 0, "subscribers": 2});
    assert_eq!(states["feeds"][0], board, "{states}");
    // The fifth connection asks; a sixth has no place.
    let response = server.http().response(false);
    assert_eq!(response.status, 503);
    drop((streams, feeds));
}

#[test]
fn a_watcher_wakes_for_an_event_stream() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("board.json");
    std::fs::write(&file, r#"["watched"]"#).expect("a file");
    let server = TestServer::start_with(|config| {
        config.watches = vec![
            format!("board=file:{}", file.display())
                .parse()
                .expect("it"),
        ];
    });
    let mut stream = Sse::subscribe_feed(server.address, "board");
    while stream.next()["data"] != json!(["watched"]) {}
}

#[test]
fn curl_shows_every_event_as_it_comes() {
    let curl = |address, path: &str| {
        let mut curl = Command::new("curl");
        curl.args(["--no-progress-meter", "-N", "--max-time"]);
        curl.arg(DEADLINE.as_secs().to_string());
        curl.arg(format!("http://{address}{path}"));
        curl.stdout(Stdio::piped()).spawn()
    };
    let mut server = TestServer::start();
    let first = server.publish("lab", "one");
    let path = "/api/sse/lab?since=0";
    let Ok(mut child) = curl(server.address, path) else {
        return skipped("there is no curl");
    };
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut next_message = || -> Value {
        loop {
            let line = lines.next().expect("a line before the end").expect("text");
            let data = line.strip_prefix("data: ").unwrap_or("{}");
            let frame: Value = serde_json::from_str(data).expect("JSON");
            if frame["type"] == "message" {
                return frame["data"]["id"].clone();
            }
        }
    };
    assert_eq!(next_message(), first);
    let second = server.publish("lab", "two");
    assert_eq!(next_message(), second);
    server.shutdown();
    let rest: Vec<String> = lines.map(|line| line.expect("text")).collect();
    assert!(rest.contains(&": 1001 the server is shutting down".to_owned()));
    // To curl the end of such a stream is an ordinary one.
    assert!(child.wait().expect("a child").success());
}

#[test]
fn a_stream_s_head_comes_only_when_the_next_message_is_heard() {
    let server = TestServer::start();
    let mut http = server.http();
    for number in 0..200 {
        let mut stream = TcpStream::connect(server.address).expect("a connection");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream
            .write_all(b"GET /api/sse/lab HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .expect("bytes");
        // One byte of the head is enough.
        stream.read_exact(&mut [0]).expect("a head");
        let id = http.publish("lab", &number.to_string());
        let found = BufReader::new(stream)
            .lines()
            .map(|line| line.expect("text"))
            .any(|line| line.starts_with("data: ") && line.contains(&format!("\"id\":{id},")));
        assert!(found);
    }
}
