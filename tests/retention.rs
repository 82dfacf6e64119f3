//! What is kept: the oldest messages go, a few at a time, and whoever comes back to one of
//! them is told so.

mod common;

use std::fs;
use std::time::Duration;

use common::{Http, Program, TestServer, eventually};
use serde_json::{Value, json};
use threadcast::Server;
use threadcast::config::{Config, Database};

fn keep_messages(number: u64) -> impl Fn(&mut Config) {
    move |config| config.retention.keep_messages = Some(number)
}

/// A server with a file and one with the ring in memory, which give up nobody who does not read
/// for a while.
fn both_stores(change: impl Fn(&mut Config)) -> impl Iterator<Item = TestServer> {
    common::both_stores(move |config| {
        config.limits.write_timeout = Duration::from_secs(120);
        change(config);
    })
}

fn kept(http: &mut Http) -> Vec<u64> {
    let page = http.get("/api/messages?since=0&limit=1000").json();
    page["messages"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|message| message["id"].as_u64().expect("an id"))
        .collect()
}

#[test]
fn the_newest_messages_are_kept_and_the_counts_are_theirs() {
    for server in both_stores(keep_messages(100)) {
        let mut http = server.http();
        for number in 0..500 {
            let channel = if number < 450 { "early" } else { "late" };
            let body = json!({
                "channel_id": channel, "author": "a", "content": "x", "lane": channel,
                "token_count": 1,
            });
            assert_eq!(http.post_json("/api/messages", &body).status, 200);
            if number == 200 {
                // From now on the counts are kept up.
                http.get("/api/summary");
            }
        }
        eventually("the others are gone", || kept(&mut http).len() == 100);
        assert_eq!(kept(&mut http), (401..=500).collect::<Vec<u64>>());
        assert_eq!(
            http.get("/api/summary").json()["summary"],
            json!({
                "total_messages": 100, "total_tokens": 100, "by_provider": {},
                "by_lane": {"early": 50, "late": 50},
            })
        );
        let details = http.get("/api/channels").json()["details"].clone();
        let counts: Vec<_> = details
            .as_array()
            .expect("a list")
            .iter()
            .map(|channel| (channel["messages"].clone(), channel["last_id"].clone()))
            .collect();
        assert_eq!(counts, [(json!(50), json!(450)), (json!(50), json!(500))]);
    }
}

#[test]
fn whoever_comes_back_to_what_is_gone_is_told_and_goes_on_with_the_oldest() {
    for server in both_stores(keep_messages(20)) {
        let mut http = server.http();
        for number in 0..60 {
            let channel = if number % 2 == 0 { "lab" } else { "other" };
            http.publish(channel, "x");
        }
        eventually("the others are gone", || kept(&mut http).len() == 20);
        for (since, gap) in [(0, true), (7, true), (39, true), (40, false), (55, false)] {
            let mut client = server.subscribe(&format!("lab?since={since}"));
            if gap {
                let expected = json!({
                    "type": "gap", "since": since, "oldest": 41, "head": 60, "reason": "retention",
                });
                assert_eq!(client.next(), expected);
            }
            for id in (41..=60).filter(|id| id % 2 == 1 && *id > since) {
                assert_eq!(client.next_message()["id"], id, "since {since}");
            }
            assert_eq!(client.next(), json!({"type": "caught_up", "head": 60}));
        }
        // `last` asks for what there is.
        let mut client = server.subscribe("lab?last=1000");
        assert_eq!(client.next_message()["id"], 41);
    }
}

#[test]
fn a_slow_subscriber_behind_the_oldest_gets_a_gap_exactly_where_the_hole_is_and_goes_on() {
    for (server, path) in both_stores(keep_messages(30)).zip(["lab", "lab?last=5"]) {
        let mut stuck = server.subscribe(path);
        if path != "lab" {
            // What it took as it was is behind it: from here on it is told.
            assert_eq!(stuck.next(), json!({"type": "caught_up", "head": 0}));
        }
        let mut http = server.http();
        // 24 MB: more than the sockets' buffers and the outbox.
        let content = "x".repeat(60_000);
        let head = (0..400)
            .map(|_| http.publish("lab", &content))
            .last()
            .expect("some");
        eventually("the others are gone", || kept(&mut http).len() == 30);
        let (mut next, mut gaps) = (1, Vec::new());
        while next <= head {
            let frame = stuck.next();
            if frame["type"] == "gap" {
                assert_eq!(frame["since"], next - 1);
                assert_eq!(frame["reason"], "retention");
                next = frame["oldest"].as_u64().expect("an id");
                gaps.push(frame);
                continue;
            }
            assert_eq!(frame["data"]["id"], next);
            next += 1;
        }
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        let live = http.publish("lab", "live");
        assert_eq!(stuck.next_message()["id"], live);
    }
}

#[test]
fn messages_grow_too_old_while_nothing_is_published() {
    let age = |config: &mut Config| config.retention.keep_age = Some(Duration::from_millis(500));
    for server in both_stores(age) {
        let mut http = server.http();
        let head = http.publish("lab", "soon gone");
        eventually("it is gone", || kept(&mut http).is_empty());
        // Its id is not given again, and a cursor on it has missed nothing.
        let mut client = server.subscribe(&format!("lab?since={head}"));
        assert_eq!(client.next(), json!({"type": "caught_up", "head": head}));
        let mut late = server.subscribe("lab?since=0");
        let gap = json!({
            "type": "gap", "since": 0, "oldest": head + 1, "head": head, "reason": "retention",
        });
        assert_eq!(late.next(), gap);
        assert_eq!(late.next()["type"], "caught_up");
        assert_eq!(http.publish("lab", "next"), head + 1);
        assert_eq!(late.next_message()["id"], head + 1);
    }
}

#[test]
fn the_file_stays_in_its_size_and_gives_space_back() {
    const MAX: u64 = 2 << 20;
    let dir = tempfile::tempdir().expect("a directory");
    let database = dir.path().join("bounded.db");
    let mut program = Program::start(&database, &[]);
    let mut http = program.http();
    for _ in 0..100 {
        http.publish("lab", &"x".repeat(60_000));
    }
    program.signal(rustix::process::Signal::TERM);
    program.wait();
    let size = || fs::metadata(&database).expect("the file").len();
    assert!(size() > 5 << 20, "{}", size());

    let mut program = Program::start(&database, &["--max-db-bytes", "2MiB"]);
    let mut http = program.http();
    let subscriber = program.subscribe("lab");
    eventually("the oldest are gone", || {
        (1..60).contains(&kept(&mut http).len())
    });
    let head = http.publish("lab", &"x".repeat(60_000));
    for _ in 0..100 {
        http.publish("lab", &"x".repeat(60_000));
    }
    drop(subscriber);
    let ids = kept(&mut http);
    assert_eq!(ids.last(), Some(&(head + 100)), "the newest stays");
    assert!(ids.is_sorted());
    program.signal(rustix::process::Signal::TERM);
    program.wait();
    assert!(size() <= MAX + (64 << 10), "{}", size());
}

#[test]
fn what_is_kept_survives_a_restart_with_its_gap() {
    let mut config = Vec::new();
    let dir = tempfile::tempdir().expect("a directory");
    let database = dir.path().join("kept.db");
    for _ in 0..2 {
        let mut program = Program::start(&database, &["--keep-messages", "10"]);
        let mut http = program.http();
        let head = (0..50).map(|_| http.publish("lab", "x")).last();
        eventually("the others are gone", || kept(&mut http).len() == 10);
        let mut client = program.subscribe("lab?since=1");
        let gap = client.next();
        assert_eq!(gap["oldest"].as_u64(), head.map(|head| head - 9));
        config.push(gap);
        program.signal(rustix::process::Signal::TERM);
        program.wait();
    }
    let oldest: Vec<Value> = config.iter().map(|gap| gap["oldest"].clone()).collect();
    assert_eq!(oldest, [41, 91]);
}

/// Its channel has fewer messages than that, or none: where the first of all kept messages went
/// meanwhile is nothing to it.
#[test]
fn whoever_asks_for_the_last_messages_is_told_no_gap() {
    for server in both_stores(keep_messages(50)) {
        let quiet = server.publish("quiet", "the only one");
        std::thread::scope(|scope| {
            let busy = scope.spawn(|| {
                let mut http = server.http();
                for number in 0..400 {
                    http.publish("busy", &format!("number {number}"));
                }
            });
            while !busy.is_finished() {
                for (path, most) in [("never?last=10", 0), ("quiet?last=5", 1)] {
                    let mut client = server.subscribe(path);
                    let mut frame = client.next();
                    if most == 1 && frame["type"] == "message" {
                        assert_eq!(frame["data"]["id"], quiet);
                        frame = client.next();
                    }
                    assert_eq!(frame["type"], "caught_up", "{path}: {frame}");
                }
            }
        });
    }
}

/// States are in the same file. Messages were deleted to make up for them, all there were, as soon
/// as they were acknowledged.
#[test]
fn the_newest_message_stays_although_the_file_is_too_large_without_it() {
    let server = TestServer::start_with(|config| {
        config.retention.max_db_bytes = Some(1 << 20);
    });
    let mut http = server.http();
    for feed in ["a", "b", "c", "d", "e", "f"] {
        let state = json!("x".repeat(250_000)).to_string();
        let target = format!("/api/state/{feed}");
        assert_eq!(
            http.request("PUT", &target, &[], state.as_bytes()).status,
            200
        );
    }
    for _ in 0..3 {
        let id = http.publish("lab", "hello");
        eventually("only the newest is left", || kept(&mut http) == [id]);
    }
    // It is not gone later either: what is too old goes in a second at most.
    let newest = http.publish("lab", "hello");
    let mut other = server.http();
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_millis(1500) {
        assert_eq!(kept(&mut other).last(), Some(&newest));
    }
}

#[test]
fn a_bound_that_no_database_keeps_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = Config::default();
    config.listen = "127.0.0.1:0".parse().expect("an address");
    config.database = Database::File(dir.path().join("small.db"));
    config.retention.max_db_bytes = Some(1 << 10);
    let Err(error) = Server::start(config) else {
        panic!("it starts")
    };
    assert!(
        error.to_string().contains("--max-db-bytes is 1024"),
        "{error}"
    );
}
