//! Coming back: whoever names the last id it saw gets exactly what it missed, or is told that
//! there is a gap; whoever reads too slowly goes on from the store, and the others don't notice.

mod common;

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use common::sse::Sse;
use common::{Http, TestServer, Ws};
use serde_json::{Value, json};
use threadcast::Config;

/// A server with a file and one with the ring in memory, which give up nobody who does not read
/// for a while.
fn both_stores() -> impl Iterator<Item = TestServer> {
    common::both_stores(|config| config.limits.write_timeout = Duration::from_secs(120))
}

fn ids(frames: &[Value]) -> Vec<u64> {
    frames
        .iter()
        .map(|frame| {
            assert_eq!(frame["type"], "message", "{frame}");
            frame["data"]["id"].as_u64().expect("an id")
        })
        .collect()
}

/// Frames up to and without the first of this type, and that one.
fn until(ws: &mut Ws, wanted: &str) -> (Vec<Value>, Value) {
    let mut before = Vec::new();
    loop {
        let frame = ws.next();
        if frame["type"] == wanted {
            return (before, frame);
        }
        before.push(frame);
    }
}

fn publish(http: &mut Http, channel: &str, count: usize) -> Vec<u64> {
    (0..count)
        .map(|number| http.publish(channel, &format!("number {number}")))
        .collect()
}

#[test]
fn since_brings_what_was_missed_then_caught_up_then_what_is_live() {
    for server in both_stores() {
        let mut http = server.http();
        let lab = publish(&mut http, "lab", 5);
        let other = http.publish("other", "not for the lab");
        let mut clients = Vec::new();
        let since = |id: u64| format!("since={id}");
        for (query, expected) in [
            (since(0), &lab[..]),
            (since(lab[1]), &lab[2..]),
            (since(lab[4]), &[]),
            (since(other), &[]),
            ("last=2".to_owned(), &lab[3..]),
            ("last=5".to_owned(), &lab[..]),
            ("last=1000".to_owned(), &lab[..]),
            ("last=0".to_owned(), &[]),
            (format!("last=5&{}", since(lab[3])), &lab[4..]),
        ] {
            let mut client = server.subscribe(&format!("lab?{query}"));
            let (missed, caught_up) = until(&mut client, "caught_up");
            assert_eq!(ids(&missed), expected, "{query}");
            let told = json!({"type": "caught_up", "head": other});
            assert_eq!(caught_up, told, "{query}");
            clients.push(client);
        }
        let live = http.publish("lab", "live");
        for mut client in clients {
            assert_eq!(client.next_message()["id"], live);
        }
    }
}

#[test]
fn a_cursor_that_nobody_gave_out_is_a_gap_and_then_everything_is_live() {
    for server in both_stores() {
        let head = server.publish("lab", "one");
        let mut client = server.subscribe(&format!("lab?since={}", head + 1000));
        let gap = json!({
            "type": "gap", "since": head + 1000, "oldest": 1, "head": head, "reason": "unknown_id",
        });
        assert_eq!(client.next(), gap);
        assert_eq!(client.next(), json!({"type": "caught_up", "head": head}));
        let next = server.publish("lab", "two");
        assert_eq!(client.next_message()["id"], next);
    }
}

#[test]
fn a_wrong_cursor_is_refused_before_the_upgrade() {
    let server = TestServer::start();
    for (query, field) in [
        ("since=-1", "since"),
        ("since=", "since"),
        ("since=1.5", "since"),
        ("last=1001", "last"),
        ("last=x", "last"),
    ] {
        let mut http = server.http();
        let upgrade = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let response = http.request("GET", &format!("/api/ws/lab?{query}"), &upgrade, b"");
        assert_eq!(response.status, 422, "{query}");
        assert_eq!(response.json()["field"], field, "{query}");
    }
}

/// The heart of it: readers that join at any moment, from any cursor, while publishers run.
#[test]
fn whoever_joins_while_publishers_run_misses_nothing_and_gets_nothing_twice() {
    const PUBLISHERS: usize = 3;
    const EACH: usize = 400;
    const READERS: usize = 40;
    for server in both_stores() {
        let address = server.address;
        let heard: Vec<(u64, Vec<u64>)> = thread::scope(|scope| {
            let publishers: Vec<_> = (0..PUBLISHERS)
                .map(|publisher| {
                    scope.spawn(move || {
                        let mut http = Http::connect(address);
                        for number in 0..EACH {
                            // A second channel moves the head between the lab's messages.
                            let channel = if number % 3 == 0 { "other" } else { "lab" };
                            http.publish(channel, &format!("{publisher}/{number}"));
                        }
                    })
                })
                .collect();
            let readers: Vec<_> = (0..READERS)
                .map(|reader| {
                    scope.spawn(move || {
                        let mut http = Http::connect(address);
                        let head = http.get("/api/health").json()["head"].clone();
                        let head = head.as_u64().expect("a head");
                        let since = if reader % 4 == 0 { 0 } else { head / 2 };
                        let mut ws = Ws::subscribe(address, &format!("lab?since={since}"));
                        let (mut frames, _) = until(&mut ws, "caught_up");
                        loop {
                            let frame = ws.next();
                            let ended = frame["data"]["content"] == "the end";
                            frames.push(frame);
                            if ended {
                                return (since, ids(&frames));
                            }
                        }
                    })
                })
                .collect();
            publishers
                .into_iter()
                .for_each(|publisher| publisher.join().expect("a publisher"));
            server.publish("lab", "the end");
            readers
                .into_iter()
                .map(|reader| reader.join().expect("a reader"))
                .collect()
        });
        let stored = stored(&server, "lab");
        assert_eq!(heard.len(), READERS);
        for (since, heard) in heard {
            let expected: Vec<u64> = stored.iter().copied().filter(|id| *id > since).collect();
            assert_eq!(heard, expected, "since {since}");
        }
    }
}

/// After a restart nothing is in memory: pages of the store are read for all who want the same.
#[test]
fn everybody_who_comes_back_at_once_gets_what_it_missed_whatever_the_others_missed() {
    const CLIENTS: usize = 80;
    const MESSAGES: usize = 900;
    let config = |config: &mut Config| config.limits.recent_bytes = 0;
    for server in common::both_stores(config) {
        let mut http = server.http();
        let padding = "x".repeat(2_000);
        for number in 0..MESSAGES {
            let channel = if number % 3 == 0 { "other" } else { "lab" };
            http.publish(channel, &format!("{number} {padding}"));
        }
        let everything = ["lab", "other"].map(|channel| (channel, stored(&server, channel)));
        let barrier = Barrier::new(CLIENTS + 1);
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (channel, stored) = &everything[usize::from(client % 4 == 0)];
                let (barrier, address) = (&barrier, server.address);
                scope.spawn(move || {
                    // Some have the same cursor, some one that is near, some one far away.
                    let since = [0, 0, 1, 40, 41, 300, 600][client % 7] as u64;
                    let expected: Vec<u64> =
                        stored.iter().copied().filter(|id| *id > since).collect();
                    let path = format!("{channel}?since={since}");
                    barrier.wait();
                    let heard: Vec<u64> = if client % 5 == 0 {
                        let mut stream = Sse::subscribe(address, &path);
                        let next = |_: &u64| stream.next_message()["id"].as_u64().expect("an id");
                        expected.iter().map(next).collect()
                    } else {
                        let mut ws = Ws::subscribe(address, &path);
                        ids(&expected.iter().map(|_| ws.next()).collect::<Vec<_>>())
                    };
                    assert_eq!(heard, expected, "client {client}, since {since}");
                });
            }
            barrier.wait();
            // And the log goes on.
            for _ in 0..50 {
                http.publish("lab", "live");
                http.publish("other", "live");
            }
        });
    }
}

#[test]
fn a_subscriber_that_stops_reading_falls_behind_and_gets_everything_when_it_reads_again() {
    const MESSAGES: usize = 400;
    for server in both_stores() {
        let mut stuck = server.subscribe("lab");
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
        assert_eq!(reader.next_message()["id"], id);
    }
}

/// All ids of a channel, as `GET /api/messages` pages tell them.
fn stored(server: &TestServer, channel: &str) -> Vec<u64> {
    let mut http = server.http();
    let (mut all, mut since) = (Vec::new(), 0);
    loop {
        let target = format!("/api/messages?channel_id={channel}&since={since}&limit=1000");
        let page = http.get(&target).json();
        let page = page["messages"].as_array().expect("a list").clone();
        let Some(last) = page.last() else { return all };
        since = last["id"].as_u64().expect("an id");
        all.extend(
            page.iter()
                .map(|message| message["id"].as_u64().expect("an id")),
        );
    }
}
