//! Feeds, each a named latest value: a subscriber starts with the state and hears what changes it,
//! in the words that its publisher chose, as long as it likes to stay.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::{DEADLINE, TestServer, Ws, both_stores, eventually};
use serde_json::{Value, json};
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;

#[test]
fn a_subscriber_starts_with_the_state_of_before_anybody_published() {
    let history = json!({"workflows": [], "total_count": 0, "analytics": null});
    #[rustfmt::skip]
    let rows = [
        ("workflows", "workflows_update", json!([])),
        ("workflow-history", "workflow_history_update", history),
        ("any.other_feed-0", "any.other_feed_0_update", json!(null)),
        ("0", "0_update", json!(null)),
    ];
    for server in both_stores(|_| {}) {
        for (feed, kind, state) in &rows {
            let expected = json!({"type": kind, "data": state, "rev": 0});
            for prefix in ["/ws", "/api/v1/ws"] {
                let mut client = Ws::open(server.address, &format!("{prefix}/{feed}"));
                assert_eq!(client.next(), expected, "{prefix}/{feed}");
                client.is_quiet();
            }
            assert_eq!(server.http().state(feed), expected);
        }
    }
}

/// Forgotten with its last subscriber, the feed once was `[]` for everybody until a restart.
#[test]
fn the_routes_stay_when_their_subscriber_leaves() {
    for server in both_stores(|_| {}) {
        let first = server.subscribe_feed("routes").next();
        eventually("the subscriber is off the list", || {
            let feeds = server.http().get("/api/state").json();
            feeds["feeds"][0] == json!({"feed": "routes", "rev": 0, "subscribers": 0})
        });
        assert_eq!(server.http().state("routes"), first);
        assert_eq!(server.subscribe_feed("routes").next(), first);
    }
}

#[test]
fn the_routes_feed_describes_routes_that_are_there_and_forgets_none() {
    for server in both_stores(|_| {}) {
        let frame = server.subscribe_feed("routes").next();
        assert_eq!(frame["type"], "routes_update");
        assert_eq!(frame["rev"], 0);
        let routes = frame["data"].as_array().expect("a list");
        for route in routes {
            let members: Vec<_> = route.as_object().expect("an object").keys().collect();
            let expected = ["description", "method", "name", "path", "summary", "tags"];
            assert_eq!(members, expected);
            let text = |member: &str| {
                let text = route[member].as_str().expect("a string");
                assert!(!text.is_empty(), "{member} of {route}");
                text
            };
            let tags = route["tags"].as_array().expect("a list");
            assert!(!tags.is_empty() && tags.iter().all(Value::is_string));
            for member in expected.iter().filter(|member| **member != "tags") {
                text(member);
            }
            let path = ["{feed}", "{channel_id}", "{id}"]
                .iter()
                .fold(text("path").to_owned(), |path, name| {
                    path.replace(name, "lab")
                });
            assert!(!path.contains('{'), "{path} has a parameter to fill in");
            let answer = server.http().request(text("method"), &path, &[], b"");
            let detail = answer.text();
            let is_there = !detail.contains("there is nothing at");
            assert!(is_there && answer.status != 405, "{route}: {detail}");
        }
        for (method, path) in [
            ("POST", "/api/messages"),
            ("POST", "/api/channels/{channel_id}/messages"),
            ("GET", "/api/messages"),
            ("GET", "/api/channels"),
            ("GET", "/api/summary"),
            ("GET", "/api/health"),
            ("PUT", "/api/state/{feed}"),
            ("GET", "/api/state/{feed}"),
            ("GET", "/api/state"),
        ] {
            let of_path = |route: &&Value| route["method"] == method && route["path"] == path;
            assert_eq!(routes.iter().filter(of_path).count(), 1, "{method} {path}");
        }
    }
}

#[test]
fn an_equal_state_in_another_notation_is_silence_and_another_value_is_heard() {
    #[rustfmt::skip]
    let rows: [(&str, &[&str], &str); 5] = [
        (r#"{"a":1,"b":[{"c":null,"d":"é"}]}"#,
            &[r#"{"b":[{"d":"é","c":null}],"a":1}"#, "\r\n{ \"a\" :\t1, \"b\":[ {\"c\":null,\"d\":\"\\u00e9\"} ] }\n", r#"{"a":1.0,"b":[{"c":null,"d":"é"}]}"#, r#"{"a":2,"b":[{"c":null,"d":"é"}],"a":1}"#],
            r#"{"a":1,"b":[{"c":null,"d":"e"}]}"#),
        ("[1,2]", &["[1, 2]", "[1e0,2.00]"], "[2,1]"),
        ("100", &["100.0", "1e2", " 1E+2 "], r#""100""#),
        ("9007199254740993", &["9007199254740993"], "9007199254740992.0"),
        (r#"{"a":null}"#, &[r#"{ "\u0061" : null }"#], "{}"),
    ];
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        let mut listener = server.subscribe_feed("x");
        assert_eq!(listener.next()["rev"], 0);
        for (at, (state, equals, other)) in rows.iter().enumerate() {
            let rev = 2 * at + 1;
            assert_eq!(http.put_state("x", state)["rev"], rev, "{state}");
            assert_eq!(listener.next()["rev"], rev, "{state}");
            let as_written = http.get("/api/state/x").text();
            for equal in *equals {
                let expected =
                    json!({"success": true, "changed": false, "rev": rev, "subscribers": 1});
                assert_eq!(http.put_state("x", equal), expected, "{state} {equal}");
                listener.is_quiet();
                assert_eq!(http.get("/api/state/x").text(), as_written, "{equal}");
            }
            assert_eq!(http.put_state("x", other)["changed"], true, "{other}");
            // Had an equal state been offered late, it would be here, before this one.
            let frame = listener.next();
            assert_eq!(frame["rev"], rev + 1, "{other}");
            assert_eq!(frame["data"], value(other));
        }
    }
}

#[test]
fn a_state_that_says_what_the_feed_starts_with_changes_nothing() {
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        for (feed, state) in [("workflows", "[ ]"), ("x", "null")] {
            let mut listener = server.subscribe_feed(feed);
            listener.next();
            let expected = json!({"success": true, "changed": false, "rev": 0, "subscribers": 1});
            assert_eq!(http.put_state(feed, state), expected);
            listener.is_quiet();
        }
    }
}

#[test]
fn a_change_reaches_every_subscriber_of_its_feed_and_nobody_else() {
    for server in both_stores(|_| {}) {
        let paths = ["/ws/lab", "/api/v1/ws/lab", "/ws/%6cab?token=x"];
        let mut subscribers = paths.map(|path| Ws::open(server.address, path));
        let mut others = [
            "la",
            "lab0",
            "lab-",
            "workflows",
            "workflow-history",
            "routes",
        ]
        .map(|feed| server.subscribe_feed(feed));
        for client in subscribers.iter_mut().chain(&mut others) {
            assert_eq!(client.next()["rev"], 0);
        }
        let mut channel = server.subscribe("lab");

        let mut http = server.http();
        for rev in 1..=3 {
            let answer = http.put_state("lab", &rev.to_string());
            let expected = json!({"success": true, "changed": true, "rev": rev, "subscribers": 3});
            assert_eq!(answer, expected);
            let frame = json!({"type": "lab_update", "data": rev, "rev": rev});
            for client in &mut subscribers {
                assert_eq!(client.next(), frame);
            }
        }
        subscribers.iter_mut().for_each(Ws::is_quiet);
        others.iter_mut().for_each(Ws::is_quiet);
        channel.is_quiet();
        // Nothing is on its way to them either: the next they hear is their own.
        http.put_state("la", "true");
        let own = json!({"type": "la_update", "data": true, "rev": 1});
        assert_eq!(others[0].next(), own);
        http.publish("lab", "a message");
        assert_eq!(channel.next_message()["content"], "a message");
        subscribers.iter_mut().for_each(Ws::is_quiet);
    }
}

#[test]
fn what_changed_while_nobody_was_there_is_what_the_next_one_starts_with() {
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        for rev in 1..=30 {
            let answer = http.put_state("x", &format!("[{rev}]"));
            let expected = json!({"success": true, "changed": true, "rev": rev, "subscribers": 0});
            assert_eq!(answer, expected);
            if rev % 3 == 0 {
                let mut client = server.subscribe_feed("x");
                let state = json!({"type": "x_update", "data": [rev], "rev": rev});
                assert_eq!(client.next(), state);
                client.is_quiet();
                // Whoever has its close answered is off the list.
                client.socket.close(None).expect("a close frame");
                client.close_code();
            }
        }
    }
}

#[test]
fn a_state_is_passed_on_as_its_publisher_wrote_it() {
    let long = format!("[{}]", vec!["1.10"; 30_000].join(","));
    #[rustfmt::skip]
    let states = [
        r#"{"z":1,"a":{"y":2,"b":3},"m":[]}"#,
        "12345678901234567890123",
        "[1.10,1e300,-0,18446744073709551616,0.1000000000000000055]",
        r#"{"same":1,"same":2}"#,
        r#""é \u00e9 \/ \ud83d\ude00 \" \\ and  two blanks""#,
        "false",
        &long,
    ];
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        let mut early = server.subscribe_feed("x");
        early.next();
        for (state, rev) in states.iter().zip(1..) {
            assert_eq!(http.put_state("x", state)["rev"], rev, "{state}");
            let frame = early.next_text();
            assert!(frame.contains(&format!("\"data\":{state}")), "{frame}");
            assert!(frame.ends_with(&format!("\"rev\":{rev}}}")), "{frame}");
            assert_eq!(server.subscribe_feed("x").next_text(), frame);
            assert_eq!(http.get("/api/state/x").text(), frame);
        }
    }
}

#[test]
fn a_ping_brings_its_timestamp_back_whatever_it_is_and_ready_is_no_question() {
    let server = TestServer::start();
    let mut client = server.subscribe_feed("workflows");
    client.next();
    #[rustfmt::skip]
    let timestamps = [
        json!(1_767_616_496_789_u64), json!(1_767_616_496.789), json!("2026-01-05T12:34:56Z"), json!(""), json!(null),
        json!(true), json!([1, [2]]), json!({"at": {"z": 1, "a": 2}}), json!(-1), json!(u64::MAX),
    ];
    for timestamp in timestamps {
        client.send(&json!({"type": "client_ready"}));
        client.send(&json!({"type": "ping", "timestamp": timestamp}));
        assert_eq!(
            client.next(),
            json!({"type": "pong", "timestamp": timestamp})
        );
    }
    client.send(&json!({"type": "client_ready", "timestamp": 1, "client": "a browser"}));
    client.send(&json!({"type": "ping"}));
    assert_eq!(client.next(), json!({"type": "pong"}));
}

#[test]
fn what_a_feed_does_not_take_is_read_only_with_its_ref_and_the_connection_stays() {
    #[rustfmt::skip]
    let rows = [
        (r#"{"type":"message","content":"hi"}"#, None),
        (r#"{"type":"message","content":"hi","ref":7}"#, Some(json!(7))),
        (r#"{"type":"message","content":5,"ref":"a"}"#, Some(json!("a"))),
        (r#"{"type":"workflows_update","data":[],"ref":1.5}"#, Some(json!(1.5))),
        (r#"{"type":"subscribe"}"#, None),
        (r#"{"type":7,"ref":"b"}"#, Some(json!("b"))),
        (r#"{"ref":"c"}"#, Some(json!("c"))),
        (r#"{"type":"subscribe","ref":{}}"#, None),
        ("{}", None),
        ("[]", None),
        ("null", None),
        ("hello", None),
        ("", None),
        ("{\"type\":\"ping\"", None),
    ];
    let server = TestServer::start();
    for feed in ["workflows", "x"] {
        let mut client = server.subscribe_feed(feed);
        client.next();
        for (text, reference) in &rows {
            client.socket.send(Message::text(*text)).expect("a frame");
            let error = client.next();
            assert_eq!(error["type"], "error", "{text}: {error}");
            assert_eq!(error["code"], "read_only", "{text}: {error}");
            assert!(
                error["detail"]
                    .as_str()
                    .is_some_and(|detail| !detail.is_empty())
            );
            assert_eq!(error.get("ref"), reference.as_ref(), "{text}: {error}");
        }
        client.is_quiet();
        server.http().put_state(feed, "[1]");
        assert_eq!(client.next()["data"], json!([1]));
    }
    assert_eq!(server.http().get("/api/messages").json()["head"], 0);
}

#[test]
fn a_client_that_only_answers_pings_stays_over_many_of_them() {
    let server = TestServer::start_with(|config| {
        config.limits.ping_interval = Duration::from_millis(20);
        config.limits.pong_timeout = Duration::from_secs(10);
    });
    let mut client = server.subscribe_feed("x");
    client.next();
    // As long as one is unanswered no other comes.
    for _ in 0..20 {
        let ping = client.read().expect("a ping");
        assert!(matches!(ping, Message::Ping(_)), "{ping:?}");
    }
    server.http().put_state("x", "1");
    assert_eq!(client.next()["rev"], 1);
}

#[test]
fn a_client_that_answers_no_ping_is_closed_with_1013() {
    let server = TestServer::start_with(|config| {
        config.limits.ping_interval = Duration::from_millis(50);
        config.limits.pong_timeout = Duration::from_millis(200);
    });
    for feed in ["x", "workflows", "routes"] {
        let stream = TcpStream::connect(server.address).expect("the server accepts");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let stream = MaybeMute {
            stream,
            mute: false,
        };
        let url = format!("ws://{}/ws/{feed}", server.address);
        let (mut mute, _) = tungstenite::client(url, stream).expect("a handshake");
        mute.get_mut().mute = true;
        let mut heard = Vec::new();
        let code = loop {
            match mute.read().expect("a close frame before the end") {
                Message::Close(frame) => break frame.map(|CloseFrame { code, .. }| code.into()),
                frame => heard.push(frame),
            }
        };
        assert_eq!(code, Some(1013));
        assert!(heard[0].is_text(), "first the state: {heard:?}");
        assert!(heard[1..].iter().all(Message::is_ping), "{heard:?}");
        assert!(heard.len() > 1, "closed without having been asked");
    }
}

/// A stream that can stop to send anything.
struct MaybeMute {
    stream: TcpStream,
    mute: bool,
}

impl Read for MaybeMute {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        self.stream.read(bytes)
    }
}

impl Write for MaybeMute {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.mute {
            return Ok(bytes.len());
        }
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

fn value(json: &str) -> Value {
    serde_json::from_str(json).expect(json)
}
