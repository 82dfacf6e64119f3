//! What a node has missed: it catches up, or says where its hole is.
//!
//! The story: a node was away for longer than Redis keeps messages. It came back, went on with the
//! newest, and its subscribers took the silence between for all there was.
#![cfg(feature = "redis")]

mod common;

use common::cluster::{Cluster, Node, contents, id, publish_many};
use common::redis::Redis;
use common::sse::Sse;
use common::{Ws, eventually};
use serde_json::{Value, json};

/// Messages of an hour at ten a second: more than a page of the stream, of history, or of
/// memory for slow subscribers.
const AN_HOUR: usize = 36_000;

#[test]
fn a_node_that_was_away_for_an_hours_worth_of_messages_catches_up_with_all_of_them() {
    let Some(redis) = Redis::start() else { return };
    let mut cluster = Cluster::of(redis);
    let last = cluster.nodes[0].publish("lab", "before");
    cluster.history();
    cluster.nodes[2].kill();
    let newest = publish_many(&mut cluster.nodes[0].http(), "lab", AN_HOUR);
    assert_eq!(newest, last + AN_HOUR as u64);
    cluster.nodes[1].http().put_state("board", "[1]");
    cluster.nodes[2].restart();
    let back = &cluster.nodes[2];
    // Somebody comes with it, and waits for what it does not have yet.
    let mut ws = back.subscribe(&format!("lab?since={last}"));
    back.await_head(newest);
    let mut expected = last;
    while expected < newest {
        let frame = ws.next();
        match frame["type"].as_str() {
            Some("message") => {
                expected += 1;
                assert_eq!(frame["data"]["id"], expected);
            }
            Some("caught_up") => {}
            _ => panic!("{frame}"),
        }
    }
    assert_eq!(back.history().len(), AN_HOUR + 1);
    assert_eq!(back.http().state("board")["data"], json!([1]));
}

#[test]
fn a_node_whose_next_messages_were_trimmed_marks_its_hole_and_tells_who_asks_for_it() {
    let Some(redis) = Redis::start() else { return };
    let mut cluster = Cluster::of(redis);
    publish_many(&mut cluster.nodes[0].http(), "lab", 10);
    cluster.history();
    cluster.nodes[2].kill();
    publish_many(&mut cluster.nodes[0].http(), "lab", 50);
    cluster.nodes[0].http().put_state("board", "[1]");
    publish_many(&mut cluster.nodes[1].http(), "lab", 20);
    cluster.redis.trim(20);
    cluster.nodes[2].restart();
    let back = &cluster.nodes[2];
    back.await_head(80);

    // It has 1 to 10 and 61 to 80, here and after another start, and the state that went by.
    for start in 0..2 {
        if start == 1 {
            cluster.nodes[2].restart();
        }
        let back = &cluster.nodes[2];
        back.await_connected();
        let ids: Vec<_> = back.history().iter().map(id).collect();
        assert_eq!(ids, (1..=10).chain(61..=80).collect::<Vec<_>>());
        eventually("the state is there", || {
            back.http().state("board")["rev"] == 1
        });
        assert_eq!(back.http().state("board")["data"], json!([1]));
        for since in [0, 5, 10, 11, 40, 59] {
            let (heard, gaps) = replayed(back, since);
            let kept: Vec<u64> = (since + 1..=10).chain(61..=80).collect();
            // Where a part of it is here, it may come before the gap is told, or be skipped with it.
            assert!(kept.ends_with(&heard), "since {since}: {heard:?}");
            assert!(
                heard.ends_with(&(61..=80).collect::<Vec<_>>()),
                "since {since}: {heard:?}"
            );
            let [gap] = &gaps[..] else {
                panic!("since {since}: {gaps:?}");
            };
            assert_eq!(gap["reason"], "retention", "since {since}");
            assert_eq!(gap["oldest"], 61, "since {since}");
        }
        for since in [60, 61, 75] {
            let (heard, gaps) = replayed(back, since);
            assert_eq!(heard, (since + 1..=80).collect::<Vec<_>>());
            assert!(gaps.is_empty(), "since {since}: {gaps:?}");
        }
    }
    // Those that were there have everything.
    let (heard, gaps) = replayed(&cluster.nodes[0], 5);
    assert_eq!(heard, (6..=80).collect::<Vec<_>>());
    assert!(gaps.is_empty(), "{gaps:?}");
}

/// The ids that a subscriber is sent until it is caught up, and the gaps that it is told of.
fn replayed(node: &Node, since: u64) -> (Vec<u64>, Vec<Value>) {
    let mut ws = node.subscribe(&format!("lab?since={since}"));
    let (mut ids, mut gaps) = (Vec::new(), Vec::new());
    loop {
        let frame = ws.next();
        match frame["type"].as_str() {
            Some("message") => ids.push(id(&frame["data"])),
            Some("gap") => gaps.push(frame),
            Some("caught_up") => return (ids, gaps),
            _ => panic!("{frame}"),
        }
    }
}

#[test]
fn the_hole_is_said_in_the_log_of_the_node() {
    let Some(redis) = Redis::start() else { return };
    let mut cluster = Cluster::of(redis);
    publish_many(&mut cluster.nodes[0].http(), "lab", 10);
    cluster.history();
    cluster.nodes[2].kill();
    publish_many(&mut cluster.nodes[0].http(), "lab", 40);
    cluster.redis.trim(5);
    cluster.nodes[2].restart();
    let back = &cluster.nodes[2];
    back.await_head(50);
    let said = |line: &str| line.contains("WARN") && line.contains("messages 11 to 45 ");
    eventually("it says what is missing", || back.log().lines().any(said));
    let others = cluster.nodes[..2].iter().map(Node::log);
    assert!(others.into_iter().all(|log| !log.lines().any(said)));
}

#[test]
fn who_is_live_on_a_node_when_it_gets_a_hole_is_told_of_it_before_what_comes_after() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    let [others, _, cut_off] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    let mut live = cut_off.subscribe("lab");
    let mut event_stream = Sse::open(cut_off.program.address, "/api/sse/lab");
    let mut with_cursor = cut_off.subscribe("lab?since=0");
    assert_eq!(with_cursor.next()["type"], "caught_up");
    publish_many(&mut others.http(), "lab", 3);
    for expected in 1..=3 {
        assert_eq!(live.next_message()["id"], expected);
        assert_eq!(event_stream.next_message()["id"], expected);
        assert_eq!(with_cursor.next_message()["id"], expected);
    }
    cut_off.pause();
    // The answer to the read that waits is all that gets through to it: at most the first part.
    for part in 0..10 {
        assert_eq!(publish_many(&mut others.http(), "lab", 10), 13 + 10 * part);
    }
    cluster.redis.trim(10);
    cut_off.resume();
    cut_off.await_head(103);
    let frames = until(&mut live, 103);
    let heard = through_a_gap(&frames);
    assert!(
        heard.ends_with(&(94..=103).collect::<Vec<_>>()),
        "{heard:?}"
    );
    assert_eq!(through_a_gap(&until(&mut with_cursor, 103)), heard);
    let mut events = vec![event_stream.next()];
    while events.last().expect("an event")["data"]["id"] != 103 {
        events.push(event_stream.next());
    }
    assert_eq!(through_a_gap(&events), heard);
    // And goes on as if nothing had been.
    others.publish("lab", "after");
    assert_eq!(live.next_message()["id"], 104);
    assert_eq!(event_stream.next_message()["id"], 104);
}

fn until(ws: &mut Ws, last: u64) -> Vec<Value> {
    let mut frames = vec![ws.next()];
    while frames.last().expect("a frame")["data"]["id"] != last {
        frames.push(ws.next());
    }
    frames
}

/// The ids of the messages, whose only jump is where the gap is told.
#[track_caller]
fn through_a_gap(frames: &[Value]) -> Vec<u64> {
    let (mut ids, mut told) = (vec![3], false);
    for frame in frames {
        match frame["type"].as_str() {
            Some("gap") => {
                assert!(!told, "told twice: {frames:?}");
                told = true;
            }
            Some("message") => {
                let [last, this] = [*ids.last().expect("an id"), id(&frame["data"])];
                assert!(this > last && (this == last + 1 || told), "{last} {frame}");
                ids.push(this);
            }
            // After a gap, it may be said that the subscriber is live again.
            Some("caught_up") => {}
            _ => panic!("{frame}"),
        }
    }
    assert!(told, "nobody said that something is missing: {ids:?}");
    ids
}

#[test]
fn a_redis_that_has_lost_everything_gives_no_id_twice() {
    let Some(redis) = Redis::start() else { return };
    let mut cluster = Cluster::of(redis);
    publish_many(&mut cluster.nodes[0].http(), "lab", 20);
    cluster.nodes[1].http().put_state("board", "[1]");
    let before = cluster.history();
    eventually("all have the state", || {
        cluster
            .nodes
            .iter()
            .all(|it| it.http().state("board")["rev"] == 1)
    });
    let mut listener = cluster.nodes[2].subscribe("lab");
    // Without persistence it comes back empty.
    cluster.redis.restart();
    let mut ids = Vec::new();
    for node in &cluster.nodes {
        node.await_connected();
        eventually("it can publish", || {
            let answer = common::cluster::try_publish(&mut node.http(), "after");
            assert!(matches!(answer.status, 200 | 503), "{}", answer.text());
            let stored = answer.status == 200;
            ids.extend(stored.then(|| id(&answer.json()["message"])));
            stored
        });
    }
    assert!(ids[0] > 20 && ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    let history = cluster.history();
    assert_eq!(history[..20], before);
    assert_eq!(contents(&history[20..]), ["after"; 3]);
    for expected in &history[20..] {
        let mut frame = listener.next();
        while frame["type"] != "message" {
            frame = listener.next();
        }
        assert_eq!(frame["data"], *expected);
    }
    let put = cluster.nodes[0].http().put_state("board", "[2]");
    assert_eq!(put["rev"], 2);
}

/// The story: every read took 256 entries, whatever their size, and four of them may be on their way
/// to the store, each with copies: a new node took 340 MB to get 275 MB of messages.
#[test]
fn a_new_node_fills_from_a_stream_of_large_messages_with_little_memory() {
    const MESSAGES: u64 = 200;
    /// One read and three parts of 2 MiB with copies, what is kept for subscribers, and the program itself.
    const MOST: u64 = 64 << 20;
    let Some(redis) = Redis::start() else { return };
    let mut cluster = Cluster::of(redis);
    let large = "x".repeat(250_000);
    let mut http = cluster.nodes[0].http();
    for _ in 0..MESSAGES {
        http.publish("lab", &large);
    }
    let new = cluster.add();
    new.await_head(MESSAGES);
    let most = new.program.peak_memory();
    assert!(most < MOST, "{most} bytes");
    // All of them are there, not only the newest id.
    assert_eq!(new.history().len() as u64, MESSAGES);
}
