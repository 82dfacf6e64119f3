//! Every row of the contract's WebSocket message table, and how its connections live and end.

mod common;

use std::collections::BTreeSet;
use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Http, TestServer, Ws, eventually};
use rustix::net::sockopt;
use serde_json::{Value, json};
use tungstenite::Message;

/// A frame of the server: opcode and payload.
type Frame = (u8, Vec<u8>);

const CLOSE: u8 = 8;
const PING: u8 = 9;

/// A close frame with code 1000, masked with zeros.
const CLOSE_1000: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];

/// The stream below a client that has heard nothing yet, to read it without answering anything.
fn raw(client: &Ws) -> BufReader<TcpStream> {
    let stream = client.socket.get_ref().try_clone();
    BufReader::new(stream.expect("a second handle"))
}

/// The server's next frame; `None` at an orderly end between frames.
fn read_frame(stream: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut head = [0; 2];
    if stream.read(&mut head[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[1..])?;
    // A short length, or the number of bytes that hold it.
    let (short, extended) = match head[1] {
        126 => (0, 2),
        127 => (0, 8),
        short => (short, 0),
    };
    let mut length = [0; 8];
    stream.read_exact(&mut length[8 - extended..])?;
    let mut payload = vec![0; usize::from(short) + u64::from_be_bytes(length) as usize];
    stream.read_exact(&mut payload)?;
    Ok(Some((head[0] & 0x0f, payload)))
}

/// Two clients in `lab`.
fn pair(server: &TestServer) -> [Ws; 2] {
    [(), ()].map(|()| server.subscribe("lab"))
}

/// Every frame to the server's close frame, that one included.
fn until_close(stream: &mut impl Read) -> Vec<Frame> {
    let mut frames = Vec::new();
    while frames.last().is_none_or(|(opcode, _)| *opcode != CLOSE) {
        let frame = read_frame(stream).expect("whole frames");
        frames.push(frame.expect("a close frame before the end"));
    }
    frames
}

fn close_code(payload: &[u8]) -> Option<u16> {
    payload.first_chunk().map(|code| u16::from_be_bytes(*code))
}

/// Every message to the server's close frame, which has this code.
fn messages_until(code: u16, client: &Ws) -> Vec<Value> {
    let mut frames = until_close(&mut raw(client));
    let (_, close) = frames.pop().expect("a close frame");
    assert_eq!(close_code(&close), Some(code));
    let frames = frames
        .iter()
        .map(|(_, json)| serde_json::from_slice(json).expect("JSON"));
    frames
        .map(|mut frame: Value| frame["data"].take())
        .collect()
}

/// Shows that nothing else came: the answer to a ping is the very next frame.
fn nothing_more(client: &mut Ws, marker: impl Into<Value>) {
    let marker = marker.into();
    client.send(&json!({"type": "ping", "timestamp": marker}));
    assert_eq!(client.next(), json!({"type": "pong", "timestamp": marker}));
}

/// The whole history of a channel, oldest first.
fn history(server: &TestServer, channel: &str) -> Vec<Value> {
    let target = format!("/api/messages?channel_id={channel}&limit=1000");
    let answer = server.http().get(&target).json();
    answer["messages"].as_array().expect("messages").clone()
}

/// Publishes to `lab` and says how many heard it.
fn subscribers(http: &mut Http) -> u64 {
    let body = json!({"channel_id": "lab", "author": "test", "content": "who is there?"});
    let answer = http.post_json("/api/messages", &body).json();
    answer["subscribers"].as_u64().expect("a number")
}

#[test]
fn a_message_is_stored_and_reaches_everyone_in_the_channel_its_sender_included() {
    let server = TestServer::start();
    let [mut sender, mut other] = pair(&server);
    let mut elsewhere = server.subscribe("attic");
    sender.send(&json!({
        "type": "message", "author": "ada", "content": "hi", "lane": "llm", "provider": "openai", "token_count": 3,
    }));
    let message = sender.next_message();
    #[rustfmt::skip]
    let expected = json!({
        "id": 1, "channel_id": "lab", "author": "ada", "content": "hi", "timestamp": message["timestamp"],
        "lane": "llm", "provider": "openai", "token_count": 3,
    });
    assert_eq!(message, expected);
    assert_eq!(other.next_message(), expected);
    assert_eq!(history(&server, "lab"), [expected]);
    nothing_more(&mut sender, "without ref no ack");
    nothing_more(&mut elsewhere, "another channel");
}

#[test]
fn what_a_message_leaves_out_has_its_default() {
    let plain = json!({"channel_id": "lab", "author": "unknown", "content": "", "lane": null, "provider": null, "token_count": null});
    let plain = plain.as_object().expect("an object");
    #[rustfmt::skip]
    let rows = [
        json!({}),
        json!({"author": "ada"}),
        json!({"content": "hi"}),
        json!({"author": "", "content": ""}),
        json!({"lane": null, "provider": null, "token_count": null}),
        json!({"lane": "llm"}),
        json!({"provider": "openai"}),
        json!({"token_count": 0}),
        json!({"token_count": -1}),
        json!({"token_count": i64::MAX}),
        json!({"content": "\"\\\n\u{0}\u{7f}é😀\u{2028}"}),
        json!({"content": "x".repeat(70_000)}),
    ];
    let server = TestServer::start();
    let mut client = server.subscribe("lab");
    for row in rows {
        let mut sent = row.clone();
        sent["type"] = json!("message");
        sent["unknown_field"] = json!({"ignored": [true]});
        client.send(&sent);
        let message = client.next_message();
        let mut expected = plain.clone();
        let own = json!({"id": message["id"], "timestamp": message["timestamp"]});
        for given in [row.as_object(), own.as_object()] {
            expected.extend(given.expect("an object").clone());
        }
        assert_eq!(message, Value::Object(expected), "{row}");
    }
}

#[test]
fn a_ref_gets_its_sender_exactly_one_ack_after_the_commit() {
    let server = TestServer::start();
    let [mut sender, mut other] = pair(&server);
    #[rustfmt::skip]
    let refs = [
        json!("r1"),
        json!(""),
        json!("é\"\u{0}"),
        json!(7),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(u64::MAX),
    ];
    for reference in refs {
        sender.send(&json!({"type": "message", "content": "hi", "ref": reference}));
        let mut frames = [sender.next(), sender.next()];
        frames.sort_by_key(|frame| frame["type"].to_string());
        let [ack, message] = frames;
        let data = &message["data"];
        let expected = json!({"type": "ack", "ref": reference, "id": data["id"]});
        assert_eq!(ack, expected);
        let stored = history(&server, "lab");
        assert_eq!(stored.last(), Some(data), "acknowledged is stored");
        assert_eq!(data.get("ref"), None, "the ref is the sender's own affair");
        assert_eq!(other.next(), message);
        nothing_more(&mut sender, reference.clone());
        nothing_more(&mut other, reference);
    }
}

#[test]
fn a_ping_is_answered_with_its_own_timestamp_whatever_that_is() {
    #[rustfmt::skip]
    let timestamps = [
        json!(1_736_000_000_123_u64),
        json!(-1),
        json!(0.1),
        json!(1e300),
        json!("2026-01-05T12:34:56Z"),
        json!(""),
        json!("é😀\u{0}"),
        json!(true),
        json!(null),
        json!([]),
        json!({"a": [1, {"b": null}]}),
    ];
    let server = TestServer::start();
    let [mut client, mut other] = pair(&server);
    client.send(&json!({"type": "ping"}));
    assert_eq!(client.next(), json!({"type": "pong"}));
    for timestamp in timestamps {
        nothing_more(&mut client, timestamp);
    }
    nothing_more(&mut other, "a pong is nobody else's");
}

#[test]
fn client_ready_is_heard_in_silence() {
    let server = TestServer::start();
    let mut client = server.subscribe("lab");
    client.send(&json!({"type": "client_ready"}));
    nothing_more(&mut client, 1);
    client.send(&json!({"type": "client_ready", "ref": "r", "timestamp": 1, "page": {}}));
    nothing_more(&mut client, 2);
    assert!(history(&server, "lab").is_empty());
}

#[test]
fn a_wrong_frame_gets_its_sender_an_error_and_changes_nothing() {
    let deep = "[".repeat(100_000);
    let large = "x".repeat(200_000);
    let large = json!({"type": "message", "content": large, "ref": "large"}).to_string();
    // What is sent, the error's code, a word its detail must have, the ref that comes back.
    #[rustfmt::skip]
    let rows: &[(&str, &str, &str, Value)] = &[
        ("", "invalid_json", "", json!(null)),
        ("hello", "invalid_json", "", json!(null)),
        (r#"{"type":"ping""#, "invalid_json", "", json!(null)),
        (r#"{"type":"ping"} x"#, "invalid_json", "", json!(null)),
        (r#"{"type":"message","content":"\ud800"}"#, "invalid_json", "", json!(null)),
        (&deep, "invalid_json", "", json!(null)),
        ("[]", "invalid_json", "object", json!(null)),
        (r#""ping""#, "invalid_json", "object", json!(null)),
        ("1", "invalid_json", "object", json!(null)),
        ("null", "invalid_json", "object", json!(null)),
        ("{}", "unknown_type", "type", json!(null)),
        (r#"{"content":"hi","ref":1}"#, "unknown_type", "type", json!(1)),
        (r#"{"type":5,"ref":"r"}"#, "unknown_type", "type", json!("r")),
        (r#"{"type":"Message","ref":"r"}"#, "unknown_type", "Message", json!("r")),
        (r#"{"type":"subscribe"}"#, "unknown_type", "subscribe", json!(null)),
        (r#"{"type":"message","author":5}"#, "invalid_field", "author", json!(null)),
        (r#"{"type":"message","author":["ada"],"ref":1.5}"#, "invalid_field", "author", json!(1.5)),
        (r#"{"type":"message","content":{},"ref":"r"}"#, "invalid_field", "content", json!("r")),
        (r#"{"type":"message","lane":true,"ref":0}"#, "invalid_field", "lane", json!(0)),
        (r#"{"type":"message","provider":1,"ref":-3}"#, "invalid_field", "provider", json!(-3)),
        (r#"{"type":"message","token_count":"3","ref":""}"#, "invalid_field", "token_count", json!("")),
        (r#"{"type":"message","token_count":1.5}"#, "invalid_field", "token_count", json!(null)),
        (r#"{"type":"message","token_count":9223372036854775808}"#, "invalid_field", "token_count", json!(null)),
        (r#"{"type":"message","ref":true}"#, "invalid_field", "ref", json!(null)),
        (r#"{"type":"message","ref":["r"]}"#, "invalid_field", "ref", json!(null)),
        (r#"{"type":"message","ref":{}}"#, "invalid_field", "ref", json!(null)),
        (&large, "too_large", "", json!("large")),
    ];
    let server = TestServer::start_with(|config| config.limits.max_body_bytes = 150_000);
    let [mut client, mut other] = pair(&server);
    for (sent, code, word, reference) in rows {
        let taken = client.socket.send(Message::text(*sent));
        taken.expect("the server takes a frame");
        let name: String = sent.chars().take(60).collect();
        let error = client.next();
        assert_eq!(error["type"], "error", "{name}: {error}");
        assert_eq!(error["code"], *code, "{name}: {error}");
        assert_eq!(error["ref"], *reference, "{name}: {error}");
        let detail = error["detail"].as_str().unwrap_or_default();
        let says = !detail.is_empty() && detail.contains(word);
        assert!(says, "{name}: {error}");
        nothing_more(&mut client, name);
    }
    nothing_more(&mut other, "an error is nobody else's");
    let stored = server.http().get("/api/messages").json();
    assert_eq!(stored, json!({"messages": [], "head": 0}));
}

#[test]
fn a_store_that_refuses_is_an_error_frame_and_the_next_message_goes_through() {
    let server = TestServer::start();
    let [mut client, mut other] = pair(&server);
    let store = rusqlite::Connection::open(server.database()).expect("the server's database");
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON messages BEGIN SELECT RAISE(ABORT, 'disk full'); END";
    store.execute_batch(refuse).expect("a trigger");
    client.send(&json!({"type": "message", "content": "lost", "ref": "r"}));
    let error = client.next();
    assert_eq!(error["code"], "store_unavailable", "{error}");
    assert_eq!(error["ref"], "r");
    client.send(&json!({"type": "message", "content": "lost too"}));
    assert_eq!(client.next()["code"], "store_unavailable");
    nothing_more(&mut other, "nothing is broadcast that is not stored");
    let allow = store.execute_batch("DROP TRIGGER refuse");
    allow.expect("a trigger");
    client.send(&json!({"type": "message", "content": "kept"}));
    assert_eq!(client.next_message()["content"], "kept");
    assert_eq!(other.next_message()["content"], "kept");
    assert_eq!(history(&server, "lab").len(), 1);
}

#[test]
fn a_message_is_the_same_object_whichever_way_it_was_published() {
    let server = TestServer::start();
    let mut client = server.subscribe("lab");
    let full = json!({"author": "ada", "content": "hi", "lane": "llm", "provider": "openai", "token_count": 3});
    for fields in [full, json!({"author": "ada", "content": ""})] {
        let mut body = fields.clone();
        body["channel_id"] = json!("lab");
        let answer = server.http().post_json("/api/messages", &body).json();
        let by_http = client.next_message();
        assert_eq!(answer["message"], by_http);
        let mut frame = fields;
        frame["type"] = json!("message");
        client.send(&frame);
        let by_websocket = client.next_message();
        assert!(by_websocket["id"].as_u64() > by_http["id"].as_u64());
        assert!(by_websocket["timestamp"].as_str() >= by_http["timestamp"].as_str());
        let mut same = by_websocket.clone();
        for own in ["id", "timestamp"] {
            same[own] = by_http[own].clone();
        }
        assert_eq!(same, by_http);
        for message in [&by_http, &by_websocket] {
            let timestamp = message["timestamp"].as_str().unwrap_or_default();
            let shape = timestamp.replace(|c: char| c.is_ascii_digit(), "0");
            assert_eq!(shape, "0000-00-00T00:00:00.000000+00:00");
        }
        assert!(history(&server, "lab").ends_with(&[by_http, by_websocket]));
    }
}

#[test]
fn five_hundred_pipelined_messages_get_their_acks_and_copies_in_order() {
    const COUNT: usize = 500;
    let server = TestServer::start();
    let mut client = server.subscribe("lab");
    for n in 0..COUNT {
        let frame = json!({"type": "message", "content": n.to_string(), "ref": n});
        let written = client.socket.write(Message::text(frame.to_string()));
        written.expect("room");
    }
    client.socket.flush().expect("the server takes frames");
    let (mut acks, mut copies) = (Vec::new(), Vec::new());
    while acks.len() < COUNT || copies.len() < COUNT {
        let frame = client.next();
        match frame["type"].as_str() {
            Some("ack") => acks.push([frame["ref"].to_string(), frame["id"].to_string()]),
            Some("message") => {
                let content = frame["data"]["content"].as_str().expect("text").to_owned();
                copies.push([content, frame["data"]["id"].to_string()]);
            }
            _ => panic!("neither ack nor message: {frame}"),
        }
    }
    nothing_more(&mut client, "one of each");
    // Nobody else publishes: the ids are those after 0.
    let expected: Vec<_> = (0..COUNT)
        .map(|n| [n.to_string(), (n + 1).to_string()])
        .collect();
    assert_eq!(acks, expected);
    assert_eq!(copies, expected);
}

#[test]
fn a_client_that_answers_no_ping_is_closed_with_1013() {
    let server = TestServer::start_with(|config| {
        config.limits.ping_interval = Duration::from_millis(200);
        config.limits.pong_timeout = Duration::from_millis(300);
    });
    let start = Instant::now();
    let client = server.subscribe("lab");
    let mut silent = raw(&client);
    let frames = until_close(&mut silent);
    let (close, pings) = frames.split_last().expect("a close frame");
    assert_eq!(close_code(&close.1), Some(1013));
    let only_pings = pings.iter().all(|frame| frame.0 == PING);
    assert!(only_pings && !pings.is_empty(), "{pings:?}");
    // The interval may be a tenth shorter; the default pong timeout alone is 10 s.
    let (waited, ms) = (start.elapsed(), Duration::from_millis);
    assert!((ms(480)..ms(9_000)).contains(&waited), "{waited:?}");
    eventually("it is forgotten, though it is silent still", || {
        subscribers(&mut server.http()) == 0
    });
}

#[test]
fn a_client_that_answers_pings_stays() {
    let server = TestServer::start_with(|config| {
        config.limits.ping_interval = Duration::from_millis(100);
        config.limits.pong_timeout = Duration::from_secs(10);
    });
    let mut client = server.subscribe("lab");
    // As long as one is unanswered no other comes.
    for _ in 0..10 {
        let ping = client.socket.read().expect("a ping");
        assert!(matches!(ping, Message::Ping(_)), "{ping:?}");
    }
    nothing_more(&mut client, "still here");
}

#[test]
fn the_subscriber_count_follows_every_way_of_coming_and_leaving() {
    let reset = |client: Ws| {
        let at_once = Some(Duration::ZERO);
        let option = sockopt::set_socket_linger(client.socket.get_ref(), at_once);
        option.expect("a reset at the drop");
    };
    let polite = |mut client: Ws| {
        client.socket.close(None).expect("a connection");
        while client.socket.read().is_ok() {}
    };
    let ways: [(&str, &dyn Fn(Ws)); 3] =
        [("a close", &polite), ("an end", &drop), ("a reset", &reset)];
    let server = TestServer::start();
    let mut http = server.http();
    assert_eq!(subscribers(&mut http), 0);
    let _elsewhere = server.subscribe("attic");
    let _stays = server.subscribe("lab");
    for (name, leave) in ways {
        assert_eq!(subscribers(&mut http), 1, "{name}");
        let clients = [(), (), ()].map(|()| server.subscribe("lab"));
        assert_eq!(subscribers(&mut http), 4, "{name}");
        let channels = http.get("/api/channels").json();
        let details = channels["details"].as_array().expect("channels");
        let lab = details.iter().find(|detail| detail["channel_id"] == "lab");
        assert_eq!(lab.expect("the channel")["subscribers"], 4, "{name}");
        clients.into_iter().for_each(leave);
        eventually(name, || subscribers(&mut http) == 1);
    }
}

#[test]
fn a_shutdown_closes_every_client_with_1001_after_all_that_was_committed() {
    let mut server = TestServer::start_with(|config| config.drain = Duration::from_secs(2));
    let clients: Vec<Ws> = (0..50).map(|_| server.subscribe("lab")).collect();
    let [mut publisher, deaf] = pair(&server);
    for n in 0..500 {
        let frame = json!({"type": "message", "content": n.to_string()});
        let written = publisher.socket.write(Message::text(frame.to_string()));
        written.expect("room");
    }
    publisher.socket.flush().expect("the server takes frames");
    publisher.next_message();
    let start = Instant::now();
    let heard: Vec<Vec<Value>> = thread::scope(|scope| {
        scope.spawn(|| server.shutdown());
        // A client that has heard the close leaves; the deaf one stays and holds up nobody.
        let closed = clients
            .into_iter()
            .map(|client| messages_until(1001, &client));
        closed.collect()
    });
    let waited = start.elapsed();
    assert!(waited < Duration::from_secs(8), "the end took {waited:?}");
    let store = rusqlite::Connection::open(server.database()).expect("the server's database");
    let mut select = store
        .prepare("SELECT id FROM messages ORDER BY id")
        .expect("SQL");
    let ids = select.query_map([], |row| row.get(0)).expect("rows");
    let ids: Vec<i64> = ids.collect::<Result<_, _>>().expect("ids");
    for messages in heard.iter().chain([&messages_until(1001, &deaf)]) {
        let heard: Vec<_> = messages
            .iter()
            .filter_map(|message| message["id"].as_i64())
            .collect();
        assert_eq!(heard, ids);
    }
}

#[test]
fn three_hundred_clients_leave_during_a_flood_and_every_close_is_answered() {
    const CLIENTS: usize = 300;
    let server = TestServer::start();
    let clients: Vec<Ws> = (0..CLIENTS).map(|_| server.subscribe("lab")).collect();
    let flooding = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut http = server.http();
            while flooding.load(Ordering::Relaxed) {
                subscribers(&mut http);
            }
        });
        let leaving: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(n, client)| scope.spawn(move || leave_after(client, n % 20 + 1, n % 2 == 0)))
            .collect();
        let ends: Vec<_> = leaving.into_iter().map(|client| client.join()).collect();
        flooding.store(false, Ordering::Relaxed);
        let ends = ends.into_iter().map(|end| end.expect("no panic"));
        let failures: BTreeSet<String> = ends.filter_map(Result::err).collect();
        assert_eq!(failures, BTreeSet::new());
    });
    eventually("all are gone", || subscribers(&mut server.http()) == 0);
}

/// Hears `count` frames, then leaves: with a proper close, or just so.
fn leave_after(client: Ws, count: usize, properly: bool) -> Result<(), String> {
    let mut stream = raw(&client);
    for _ in 0..count {
        let frame = read_frame(&mut stream).map_err(|error| format!("before leaving: {error}"))?;
        frame.ok_or("ended before it wanted to leave")?;
    }
    if !properly {
        return Ok(());
    }
    let taken = stream.get_mut().write_all(&CLOSE_1000);
    taken.map_err(|error| format!("the close was not taken: {error}"))?;
    let mut last = None;
    while let Some(frame) = read_frame(&mut stream).map_err(|error| format!("no end: {error}"))? {
        last = Some(frame);
    }
    match last {
        Some((CLOSE, payload)) if close_code(&payload) == Some(1000) => Ok(()),
        other => Err(format!("the last frame is {other:?}")),
    }
}
