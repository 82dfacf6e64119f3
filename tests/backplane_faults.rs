//! What several nodes have of what was acknowledged when one of them, or Redis, is killed or
//! stands still.
//!
//! The story: Redis stood still for ten seconds. Publishers were told 503, published again, and
//! when Redis went on it stored what had waited in its socket, too: everything was there twice.
#![cfg(feature = "redis")]

mod common;

use std::collections::HashSet;
use std::sync::Mutex;
use std::thread;

use common::cluster::{Cluster, Node, contents, id, try_publish};
use common::load::Load;
use common::redis::Redis;
use common::{Http, Response, eventually};
use serde_json::json;

#[test]
fn after_kill_9_of_a_node_what_it_acknowledged_is_on_all_and_it_goes_on_where_it_was() {
    let Some(redis) = Redis::start() else { return };
    let mut cluster = Cluster::of(redis);
    for round in 0..3 {
        let victim = round % 3;
        let load = Load::on(&cluster.nodes, &format!("round {round}"));
        load.await_acknowledged(300);
        cluster.nodes[victim].kill();
        load.await_acknowledged(100);
        cluster.nodes[victim].restart();
        load.await_acknowledged(100);
        let acknowledged = load.end();
        let history = cluster.history();
        acknowledged.assert_is_in(&history);
        let gaps = history
            .windows(2)
            .find(|two| id(&two[1]) != id(&two[0]) + 1);
        assert!(gaps.is_none(), "{gaps:?}");
    }
}

#[test]
fn kill_9_of_a_redis_that_syncs_each_append_loses_nothing_that_was_acknowledged() {
    let Some(redis) = Redis::start_durable() else {
        return;
    };
    let mut cluster = Cluster::of(redis);
    let mut listeners: Vec<_> = cluster.nodes.iter().map(|it| it.subscribe("lab")).collect();
    let load = Load::on(&cluster.nodes, "load");
    for _ in 0..3 {
        load.await_acknowledged(150);
        cluster.redis.restart();
    }
    load.await_acknowledged(150);
    let acknowledged = load.end();
    let history = cluster.history();
    acknowledged.assert_is_in(&history);
    // The listeners stayed, and have all of it in its order.
    for listener in &mut listeners {
        for message in &history {
            assert_eq!(listener.next_message(), *message);
        }
        listener.is_quiet();
    }
}

#[test]
fn while_redis_is_gone_publishing_is_503_with_retry_after_and_the_rest_goes_on() {
    let Some(redis) = Redis::start_durable() else {
        return;
    };
    let mut cluster = Cluster::of(redis);
    let mut listener = cluster.nodes[0].subscribe("lab");
    let mut watcher = cluster.nodes[0].program.subscribe_feed("board");
    watcher.next();
    cluster.nodes[1].publish("lab", "before");
    assert_eq!(listener.next_message()["content"], "before");
    cluster.history();
    cluster.redis.kill();
    for node in &cluster.nodes {
        node.await_disconnected();
        for _ in 0..20 {
            assert_refused(&try_publish(&mut node.http(), "refused"));
        }
        let put = node.http().put("/api/state/board", "[1]");
        assert_refused(&put);
        let summed = node.http().get("/api/channels?cluster=1");
        assert_eq!(summed.status, 503, "{}", summed.text());
        // What is here is answered.
        assert_eq!(node.history().len(), 1);
        let mut late = node.subscribe("lab?since=0");
        assert_eq!(late.next_message()["content"], "before");
    }
    let mut publisher = cluster.nodes[0].subscribe("lab");
    publisher.send(&json!({"type": "message", "content": "refused", "ref": 7}));
    let error = publisher.next();
    assert_eq!(error["code"], "store_unavailable", "{error}");
    assert_eq!(error["ref"], 7, "{error}");
    listener.is_quiet();
    watcher.is_quiet();

    cluster.redis.restart();
    for node in &cluster.nodes {
        node.await_connected();
        node.publish("lab", "after");
    }
    let history = cluster.history();
    assert_eq!(contents(&history), ["before", "after", "after", "after"]);
    for message in &history[1..] {
        assert_eq!(listener.next_message(), *message);
    }
    // Redis may have lost something, for all that the nodes know: no id is taken twice.
    assert!(id(&history[1]) > 1_000_000, "{history:?}");
}

#[track_caller]
fn assert_refused(answer: &Response) {
    assert_eq!(answer.status, 503, "{}", answer.text());
    let after = answer.header("Retry-After").expect("Retry-After");
    assert!(after.parse::<u32>().is_ok(), "{after}");
}

#[test]
fn a_redis_that_stands_still_stores_nothing_that_was_answered_with_503() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    let mut listener = cluster.nodes[1].subscribe("lab");
    cluster.nodes[0].publish("lab", "before");
    assert_eq!(listener.next_message()["content"], "before");
    cluster.history();
    cluster.redis.pause();
    // All of them are answered while it stands still: nobody waits in line for it.
    let refused: Vec<Response> = thread::scope(|scope| {
        let publish = |number: usize| {
            let node = &cluster.nodes[number % 3];
            move || {
                let mut http = node.http();
                let first = try_publish(&mut http, &format!("refused {number}"));
                [
                    first,
                    try_publish(&mut http, &format!("refused {number} again")),
                ]
            }
        };
        let all: Vec<_> = (0..30).map(|it| scope.spawn(publish(it))).collect();
        all.into_iter()
            .flat_map(|it| it.join().expect("answers"))
            .collect()
    });
    refused.iter().for_each(assert_refused);
    for node in &cluster.nodes {
        // Reading is not disturbed by it.
        assert_eq!(node.history().len(), 1);
    }
    listener.is_quiet();
    cluster.redis.resume();
    for node in &cluster.nodes {
        node.await_connected();
        node.publish("lab", "after");
    }
    assert_eq!(
        contents(&cluster.history()),
        ["before", "after", "after", "after"]
    );
    for expected in 2..=4 {
        assert_eq!(listener.next_message()["id"], expected);
    }
}

#[test]
fn a_redis_that_stands_still_under_load_stores_each_acknowledged_message_once() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of_with(redis, &["--backplane-timeout", "1s"]);
    let load = Load::on(&cluster.nodes, "load");
    for longer_than_the_timeout in [false, true, false] {
        load.await_acknowledged(200);
        cluster.redis.pause();
        if longer_than_the_timeout {
            cluster.nodes.iter().for_each(Node::await_disconnected);
        }
        cluster.redis.resume();
    }
    load.await_acknowledged(200);
    let acknowledged = load.end();
    acknowledged.assert_is_in(&cluster.history());
}

#[test]
fn who_repeats_what_was_503_with_the_same_key_has_it_stored_once() {
    let Some(redis) = Redis::start_durable() else {
        return;
    };
    let mut cluster = Cluster::of(redis);
    let addresses: Vec<_> = cluster.nodes.iter().map(|it| it.program.address).collect();
    let done = Mutex::new(0);
    thread::scope(|scope| {
        for (number, &address) in addresses.iter().enumerate() {
            let done = &done;
            scope.spawn(move || {
                for turn in 0..120 {
                    repeat_until_stored(address, &format!("{number}-{turn}"));
                    *done.lock().expect("a number") += 1;
                }
            });
        }
        for rounds in [60, 140, 220] {
            eventually("they publish", || *done.lock().expect("a number") > rounds);
            cluster.redis.restart();
        }
    });
    let history = cluster.history();
    let unique: HashSet<_> = contents(&history).into_iter().collect();
    assert_eq!((history.len(), unique.len()), (360, 360));
}

fn repeat_until_stored(node: std::net::SocketAddr, key: &str) {
    let body = json!({"channel_id": "lab", "author": "a", "content": key}).to_string();
    let headers = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", key),
    ];
    let mut http = Http::connect(node);
    eventually("it is stored", || {
        let answer = http.request("POST", "/api/messages", &headers, body.as_bytes());
        assert!(matches!(answer.status, 200 | 503), "{}", answer.text());
        answer.status == 200
    });
}

#[test]
fn a_batch_whose_answer_was_lost_is_stored_once_and_its_publisher_hears_of_it() {
    let Some(redis) = Redis::start() else { return };
    let (cluster, gate) = Cluster::with_gate(redis, &[]);
    let mut listener = cluster.nodes[0].subscribe("lab");
    for turn in 0..5 {
        let content = format!("is lost {turn}");
        gate.lose_answer_to(&content);
        // Its node asks again, by itself.
        assert_eq!(cluster.nodes[2].publish("lab", &content), 2 * turn + 1);
        assert_eq!(gate.lost() as u64, turn + 1);
        cluster.nodes[1].publish("lab", &format!("between {turn}"));
        assert_eq!(listener.next_message()["content"], content);
        assert_eq!(listener.next_message()["id"], 2 * turn + 2);
    }
    let state = json!({"is lost": "too"}).to_string();
    gate.lose_answer_to("is lost");
    let put = cluster.nodes[2].http().put_state("board", &state);
    assert_eq!((&put["changed"], &put["rev"]), (&json!(true), &json!(1)));
    assert_eq!(gate.lost(), 6);
    assert_eq!(cluster.history().len(), 10);
}

#[test]
fn a_node_that_is_cut_off_keeps_its_subscribers_and_brings_them_everything_later() {
    let Some(redis) = Redis::start() else { return };
    let (cluster, gate) = Cluster::with_gate(redis, &[]);
    let cut_off = &cluster.nodes[2];
    let mut listener = cut_off.subscribe("lab");
    let mut watcher = cut_off.program.subscribe_feed("board");
    watcher.next();
    cluster.nodes[0].publish("lab", "0");
    assert_eq!(listener.next_message()["content"], "0");
    gate.close();
    assert_refused(&try_publish(&mut cut_off.http(), "refused"));
    cut_off.await_disconnected();
    assert_refused(&try_publish(&mut cut_off.http(), "refused"));
    // The others don't notice.
    for turn in 1..50 {
        cluster.nodes[turn % 2].publish("lab", &turn.to_string());
        let state = format!("[{turn}]");
        cluster.nodes[turn % 2].http().put_state("board", &state);
    }
    listener.is_quiet();
    watcher.is_quiet();
    gate.open();
    for turn in 1..50 {
        assert_eq!(listener.next_message()["content"], turn.to_string());
    }
    while watcher.next()["rev"] != 49 {}
    cut_off.await_connected();
    cut_off.publish("lab", "50");
    let all: Vec<_> = (0..=50).map(|turn| turn.to_string()).collect();
    assert_eq!(contents(&cluster.history()), all);
}
