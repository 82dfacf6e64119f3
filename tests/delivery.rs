//! Who hears what: every subscriber of a channel hears every message of it once, in the order of
//! the store, whatever the other subscribers do or fail to do.

mod common;

use std::io::Read;
use std::thread;
use std::time::Duration;

use common::{TestServer, Ws, eventually};
use serde_json::{Value, json};
use threadcast::config::Database;

#[test]
fn two_clients_hear_the_seeds_own_curl_line() {
    for server in both_stores() {
        let mut listeners = [
            server.subscribe("test-channel"),
            server.subscribe("test-channel"),
        ];

        let body = r#"{"channel_id":"test-channel","author":"tester","content":"Hello!"}"#;
        let mut curl = server.http();
        curl.send(format!(
            "POST /api/messages HTTP/1.1\r\nHost: {}\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            server.address,
            body.len(),
        ));
        let response = curl.response(false);

        assert_eq!(response.status, 200, "{}", response.text());
        let answer = response.json();
        assert_eq!(answer["success"], true);
        assert_eq!(answer["subscribers"], 2);
        let message = &answer["message"];
        assert!(message["id"].as_u64().is_some_and(|id| id > 0), "{message}");
        assert_utc_microseconds(message["timestamp"].as_str().expect("a timestamp"));
        let mut expected = json!({
            "channel_id": "test-channel", "author": "tester", "content": "Hello!",
            "lane": null, "provider": null, "token_count": null,
        });
        expected["id"] = message["id"].clone();
        expected["timestamp"] = message["timestamp"].clone();
        assert_eq!(*message, expected);
        for listener in &mut listeners {
            assert_eq!(listener.next(), json!({"type": "message", "data": message}));
        }
        let stored = curl.get("/api/messages?channel_id=test-channel").json();
        assert_eq!(
            stored,
            json!({"messages": [message], "head": message["id"]})
        );
    }
}

#[test]
fn a_hundred_clients_hear_several_publishers_in_the_order_of_the_store() {
    for server in both_stores() {
        let clients: Vec<_> = (0..100)
            .map(|_| server.subscribe("lab"))
            .map(|mut ws| thread::spawn(move || hear_until_the_end(&mut ws).0))
            .collect();
        let mut over_websocket = [server.subscribe("lab"), server.subscribe("lab")];

        let (mut heard, acknowledged) = thread::scope(|scope| {
            for n in 0..3 {
                let mut http = server.http();
                scope.spawn(move || {
                    for i in 0..100 {
                        http.publish("lab", &format!("http {n}, message {i}"));
                    }
                });
            }
            let sockets: Vec<_> = over_websocket
                .iter_mut()
                .enumerate()
                .map(|(n, ws)| {
                    scope.spawn(move || {
                        for i in 0..100 {
                            let content = format!("websocket {n}, message {i}");
                            ws.send(
                                &json!({"type": "message", "content": content, "ref": content}),
                            );
                        }
                        hear_until_the_end(ws)
                    })
                })
                .collect();
            let mut reader = server.http();
            eventually("all 500 messages are stored", || {
                history(&mut reader).len() == 500
            });
            server.publish("lab", "the end");
            sockets
                .into_iter()
                .map(|socket| socket.join().expect("a publisher"))
                .unzip::<_, _, Vec<_>, Vec<_>>()
        });
        heard.extend(
            clients
                .into_iter()
                .map(|client| client.join().expect("a client")),
        );

        let stored = history(&mut server.http());
        assert_eq!(stored.len(), 501);
        assert!(
            stored.is_sorted_by(|earlier, later| earlier.0 < later.0),
            "ids grow"
        );
        assert_eq!(heard.len(), 102);
        for heard in heard {
            assert_eq!(heard, stored);
        }
        for acknowledged in acknowledged {
            assert_eq!(acknowledged.len(), 100);
            assert!(
                acknowledged.iter().all(|ack| stored.contains(ack)),
                "an ack names its message's id"
            );
        }
    }
}

#[test]
fn a_channel_hears_nothing_of_another_however_alike_their_names_are() {
    const CHANNELS: [(&str, &str); 6] = [
        ("lab", "lab"),
        ("Lab", "Lab"),
        ("lab%20", "lab "),
        ("lab%2F1", "lab/1"),
        ("lab%2525", "lab%25"),
        ("%C3%A9", "é"),
    ];
    for server in both_stores() {
        let mut listeners = CHANNELS.map(|(path, _)| server.subscribe(path));
        let mut http = server.http();
        for round in ["first", "second"] {
            for (_, name) in CHANNELS {
                http.publish(name, &format!("{round} for {name}"));
            }
        }
        for (listener, (_, name)) in listeners.iter_mut().zip(CHANNELS) {
            for round in ["first", "second"] {
                let message = listener.next_message();
                assert_eq!(message["channel_id"], name);
                assert_eq!(message["content"], format!("{round} for {name}"));
            }
        }
    }
}

#[test]
fn clients_that_vanish_disturb_nobody() {
    for server in both_stores() {
        let mut healthy = server.subscribe("lab");
        let mut http = server.http();
        let mut half_open = Vec::new();
        let mut published = Vec::new();
        for i in 0..20 {
            let mut dropped = server.subscribe("lab");
            let reset = server.subscribe("lab");
            half_open.push(server.subscribe("lab"));
            published.push(http.publish("lab", &format!("to all of them, {i}")));
            // Neither sends a close frame. The first has read everything and leaves with a FIN, the second with a RST.
            dropped.next_message();
            rustix::net::sockopt::set_socket_linger(reset.socket.get_ref(), Some(Duration::ZERO))
                .expect("a linger");
            drop((dropped, reset));
            for j in 0..5 {
                published.push(http.publish("lab", &format!("into the void, {i}.{j}")));
            }
        }
        for id in published {
            assert_eq!(healthy.next_message()["id"], id);
        }
        eventually("the vanished are off the list", || {
            subscribers(&server) == 1 + half_open.len() as u64
        });
    }
}

#[test]
fn a_client_that_answers_no_ping_is_given_up_and_one_that_answers_stays() {
    let server = TestServer::start_with(|config| {
        config.limits.ping_interval = Duration::from_millis(200);
        config.limits.pong_timeout = Duration::from_secs(5);
    });
    let mut healthy = server.subscribe("lab");
    let mut silent = server.subscribe("lab");
    let mut http = server.http();

    eventually("the silent client is off the list", || {
        let id = http.publish("lab", "anybody there?");
        // Not many of them: whose socket is full is not blamed for its silence.
        thread::sleep(Duration::from_millis(50));
        // Reading answers the pings that came in between.
        assert_eq!(healthy.next_message()["id"], id);
        subscribers(&server) == 1
    });

    let mut bytes = Vec::new();
    silent
        .socket
        .get_mut()
        .read_to_end(&mut bytes)
        .expect("the connection ends");
    let closed = bytes
        .windows(4)
        .any(|frame| frame[0] == 0x88 && frame[2..] == 1013_u16.to_be_bytes());
    assert!(closed, "a close frame with 1013");
}

#[test]
fn whoever_has_connected_hears_the_very_next_message() {
    for server in both_stores() {
        let mut http = server.http();
        for i in 0..100 {
            let mut client = server.subscribe("lab");
            let id = http.publish("lab", &format!("number {i}"));
            let message = client.next_message();
            assert_eq!(
                (&message["id"], &message["content"]),
                (&json!(id), &json!(format!("number {i}")))
            );
        }
    }
}

#[test]
fn a_subscriber_that_never_reads_does_not_keep_20000_messages_from_another() {
    const MESSAGES: usize = 20_000;
    const IN_FLIGHT: usize = 24;
    for server in both_stores() {
        let never_reads = server.subscribe("lab");
        // A small window, so that the messages don't all fit into the kernel's buffers.
        rustix::net::sockopt::set_socket_recv_buffer_size(never_reads.socket.get_ref(), 4096)
            .expect("a buffer");
        let mut reader = server.subscribe("lab");
        let mut publisher = server.subscribe("lab");

        let publishing = thread::spawn(move || {
            let mut ids = Vec::with_capacity(MESSAGES);
            for sent in 0..MESSAGES {
                publisher.send(&json!({"type": "message", "author": "a", "content": "x".repeat(200), "ref": sent}));
                while sent - ids.len() >= IN_FLIGHT {
                    ids.extend(acknowledged_id(&publisher.next()));
                }
            }
            while ids.len() < MESSAGES {
                ids.extend(acknowledged_id(&publisher.next()));
            }
            ids
        });
        let heard: Vec<u64> = (0..MESSAGES)
            .map(|_| reader.next_message()["id"].as_u64().expect("an id"))
            .collect();

        assert_eq!(heard, publishing.join().expect("the publisher"));
        drop(never_reads);
    }
}

/// Far from a full outbox, but its socket takes nothing: it would hold memory for ever.
#[test]
fn a_client_whose_socket_takes_no_byte_for_the_write_timeout_is_given_up() {
    let server = TestServer::start_with(|config| {
        config.limits.write_timeout = Duration::from_millis(300);
        config.limits.max_outbox_bytes = 1 << 30;
        config.limits.max_outbox_chunks = 1 << 16;
    });
    let mut stalled = server.subscribe("lab");
    let mut http = server.http();
    let content = "x".repeat(200_000);
    let mut sent = 0;
    while subscribers(&server) == 1 {
        http.publish("lab", &content);
        sent += 1;
        assert!(sent < 1000, "the socket took 200 MB and more");
    }
    // What the socket had taken may still be read; then the connection is reset.
    let mut heard = 0;
    while let Ok(tungstenite::Message::Text(_)) = stalled.read() {
        heard += 1;
    }
    assert!(heard < sent);
}

/// A server with a file and one with the ring in memory.
fn both_stores() -> impl Iterator<Item = TestServer> {
    [TestServer::start as fn() -> TestServer, || {
        TestServer::start_with(|config| config.database = Database::Memory)
    }]
    .into_iter()
    .map(|start| start())
}

/// Reads up to the message `the end`: what was heard, that message included, and what was acknowledged.
#[expect(clippy::type_complexity, reason = "two lists of the same pair")]
fn hear_until_the_end(ws: &mut Ws) -> (Vec<(u64, String)>, Vec<(u64, String)>) {
    let (mut heard, mut acknowledged) = (Vec::new(), Vec::new());
    loop {
        let frame = ws.next();
        match frame["type"].as_str() {
            Some("message") => heard.push(id_and_content(&frame["data"])),
            Some("ack") => {
                let content = frame["ref"].as_str().expect("the ref that was sent");
                acknowledged.push((frame["id"].as_u64().expect("an id"), content.to_owned()));
            }
            _ => panic!("neither message nor ack: {frame}"),
        }
        if heard
            .last()
            .is_some_and(|(_, content)| content == "the end")
        {
            return (heard, acknowledged);
        }
    }
}

fn acknowledged_id(frame: &Value) -> Option<u64> {
    match frame["type"].as_str() {
        Some("ack") => Some(frame["id"].as_u64().expect("an id")),
        Some("message") => None,
        _ => panic!("neither message nor ack: {frame}"),
    }
}

/// The channel `lab` as `GET /api/messages` tells it.
fn history(http: &mut common::Http) -> Vec<(u64, String)> {
    let page = http.get("/api/messages?channel_id=lab&limit=1000").json();
    page["messages"]
        .as_array()
        .expect("a list")
        .iter()
        .map(id_and_content)
        .collect()
}

fn id_and_content(message: &Value) -> (u64, String) {
    (
        message["id"].as_u64().expect("an id"),
        message["content"].as_str().expect("a content").to_owned(),
    )
}

/// How many subscribers the channel `lab` has.
fn subscribers(server: &TestServer) -> u64 {
    let channels = server.http().get("/api/channels").json();
    let details = channels["details"].as_array().expect("a list");
    let lab = details
        .iter()
        .find(|channel| channel["channel_id"] == "lab")
        .expect("the channel");
    lab["subscribers"].as_u64().expect("a number")
}

/// Panics unless `timestamp` looks like `2026-01-05T12:34:56.789012+00:00`.
fn assert_utc_microseconds(timestamp: &str) {
    let shape: String = timestamp
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000000+00:00", "{timestamp}");
}
