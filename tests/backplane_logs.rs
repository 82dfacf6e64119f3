//! A Redis that has gone back in time, a node that has to end without it, and whatever may be
//! in a message.
//!
//! The story: Redis was restored from yesterday's snapshot, its nodes were not. Two messages then
//! had the same id, and which one a client got was a matter of the node that it came to.
#![cfg(feature = "redis")]

mod common;

use std::collections::HashSet;
use std::thread;
use std::time::Duration;

use common::cli::{Client, threadcast};
use common::cluster::{Cluster, Node, contents, id, single, try_publish};
use common::eventually;
use common::gate::Gate;
use common::load::Load;
use common::redis::Redis;
use rustix::process::Signal;
use serde_json::{Value, json};

#[test]
fn a_redis_that_has_lost_its_newest_entries_goes_on_after_what_the_nodes_have() {
    let Some(redis) = Redis::start() else { return };
    let mut cluster = Cluster::of(redis);
    for turn in 1..=5 {
        cluster.nodes[0].publish("lab", &turn.to_string());
    }
    cluster.redis.call(&["SAVE"]);
    for turn in 6..=8 {
        cluster.nodes[1].publish("lab", &turn.to_string());
    }
    cluster.nodes[1].http().put_state("board", "[1]");
    let before = cluster.history();
    eventually("all have the state", || {
        let mut nodes = cluster.nodes.iter();
        nodes.all(|node| node.http().state("board")["rev"] == 1)
    });
    // Back at the fifth.
    cluster.redis.restart();
    for node in &cluster.nodes {
        node.await_connected();
        let mut http = node.http();
        eventually("it publishes", || {
            try_publish(&mut http, "after").status == 200
        });
    }
    let history = cluster.history();
    assert_eq!(history[..8], before);
    assert_eq!(contents(&history[8..]), ["after"; 3]);
    assert!(id(&history[8]) > 8, "an id is given twice: {history:?}");
    let put = cluster.nodes[2].http().put_state("board", "[2]");
    assert_eq!(put["rev"], 2, "a revision is given twice");
    // A new node has what Redis has, and knows what it does not have.
    let last = id(&history[10]);
    let fourth = cluster.add();
    fourth.await_head(last);
    let mut ws = fourth.subscribe("lab?since=5");
    assert_eq!(ws.next()["type"], "gap");
    assert_eq!(ws.next_message(), history[8]);
}

/// What was appended and not yet answered when Redis went is not appended to what came back.
#[test]
fn a_redis_that_loses_its_end_under_load_gives_no_id_twice_and_nothing_acknowledged_is_nowhere() {
    for pause in [0, 1500] {
        let Some(redis) = Redis::start() else { return };
        let mut cluster = Cluster::of(redis);
        cluster.nodes[0].publish("lab", "first");
        cluster.redis.call(&["SAVE"]);
        let load = Load::on(&cluster.nodes, "load");
        load.await_acknowledged(300);
        cluster.redis.kill();
        thread::sleep(Duration::from_millis(pause));
        cluster.redis.restart();
        load.await_acknowledged(300);
        load.end().assert_each_is_somewhere(&cluster.nodes);
    }
}

/// Replication does not wait: a replica that takes its master's place lacks the newest entries.
#[test]
fn a_replica_that_takes_its_masters_place_gives_no_id_twice_and_nothing_acknowledged_is_nowhere() {
    let Some(mut master) = Redis::start() else {
        return;
    };
    let replica = master.replica();
    let gate = Gate::before(master.address);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let start = |number| {
        let database = dir.path().join(format!("{number}.db"));
        Node::start_at(database, &format!("redis://{}", gate.address), &[])
    };
    let nodes: Vec<Node> = (0..3).map(start).collect();
    nodes.iter().for_each(Node::await_connected);
    let load = Load::on(&nodes, "load");
    load.await_acknowledged(200);
    replica.pause();
    load.await_acknowledged(100);
    master.kill();
    replica.resume();
    replica.call(&["REPLICAOF", "NO", "ONE"]);
    gate.turn_to(replica.address);
    load.await_acknowledged(300);
    load.end().assert_each_is_somewhere(&nodes);
}

/// Whoever comes first after a restart of Redis does not know what others had.
#[test]
fn a_node_with_more_than_redis_comes_back_after_one_with_less_and_both_go_on() {
    let Some(redis) = Redis::start() else { return };
    let mut cluster = Cluster::of(redis);
    for turn in 1..=5 {
        cluster.nodes[0].publish("lab", &turn.to_string());
    }
    cluster.redis.call(&["SAVE"]);
    for turn in 6..=8 {
        cluster.nodes[0].publish("lab", &turn.to_string());
    }
    cluster.history();
    cluster.nodes.iter_mut().for_each(Node::kill);
    cluster.redis.restart();
    let newest = cluster.add().publish("lab", "another");
    assert!(newest > 8, "an id is given twice: {newest}");
    let first = &mut cluster.nodes[0];
    first.restart();
    first.await_head(newest);
    let history = ["1", "2", "3", "4", "5", "6", "7", "8", "another"];
    assert_eq!(contents(&first.history()), history);
    // Nothing is missing there.
    let mut ws = first.subscribe("lab?since=7");
    assert_eq!(
        contents(&[ws.next_message(), ws.next_message()]),
        history[7..]
    );
    let last = first.publish("lab", "last");
    assert_eq!(last, newest + 1);
    cluster.nodes[3].await_head(last);
}

/// What was lost may have a jump in it, of which nobody who is there knows.
#[test]
fn a_redis_that_goes_back_twice_to_the_same_snapshot_gives_no_id_twice() {
    let Some(redis) = Redis::start() else { return };
    let mut cluster = Cluster::of(redis);
    cluster.nodes[0].publish("lab", "1");
    cluster.redis.call(&["SAVE"]);
    let mut given = HashSet::new();
    for round in 0..3 {
        // Only one node is there at a time, and each is another one.
        cluster.nodes.iter_mut().for_each(Node::kill);
        cluster.redis.restart();
        cluster.nodes[round].restart();
        let node = &cluster.nodes[round];
        node.await_connected();
        for _ in 0..20 {
            let id = node.publish("lab", "another");
            assert!(given.insert(id), "{id} is given twice");
        }
    }
    cluster.nodes.iter_mut().for_each(Node::restart);
    for node in &cluster.nodes {
        node.await_connected();
        assert!(given.insert(node.publish("lab", "together")));
    }
}

/// A copy of the keys is put back while Redis runs: nothing tells that from what was there.
#[test]
fn a_node_that_has_other_messages_under_the_same_ids_refuses_to_go_on() {
    let Some(redis) = Redis::start() else { return };
    let mut cluster = Cluster::of(redis);
    for turn in 1..=5 {
        cluster.nodes[0].publish("lab", &turn.to_string());
    }
    cluster.redis.call(&["COPY", "threadcast", "yesterday"]);
    for turn in 6..=8 {
        cluster.nodes[0].publish("lab", &turn.to_string());
    }
    cluster.history();
    cluster.nodes.iter_mut().for_each(Node::kill);
    let put_back = ["COPY", "yesterday", "threadcast", "REPLACE"];
    cluster.redis.call(&put_back);
    // All that had the three are away; who comes now gives their ids to others.
    let fourth = cluster.add();
    fourth.await_head(5);
    for turn in 6..=9 {
        assert_eq!(fourth.publish("lab", "another"), turn);
    }
    let url = cluster.redis.url();
    let mut command = threadcast(&["serve", "--listen", "127.0.0.1:0", "--backplane", &url]);
    command.arg("--db").arg(&cluster.nodes[0].database);
    let (client, _stdout) = Client::spawn(command);
    let (code, _, errors) = client.end();
    assert_eq!(code, Some(1), "{errors:?}");
    let said = errors.concat();
    assert!(said.contains("--db"), "what to do is not said: {said}");
    // The log, and those that follow it, are as they were.
    let fourth = &cluster.nodes[3];
    assert_eq!(fourth.publish("lab", "another"), 10);
    assert_eq!(fourth.history().len(), 10);
}

#[test]
fn a_node_ends_in_time_with_redis_gone_or_standing_still_and_publishers_waiting() {
    let Some(redis) = Redis::start() else { return };
    let mut cluster = Cluster::of_with(redis, &["--backplane-timeout", "60s"]);
    cluster.history();
    for (number, is_gone) in [(0, false), (1, true)] {
        match is_gone {
            false => cluster.redis.pause(),
            true => cluster.redis.kill(),
        }
        let mut listener = cluster.nodes[number].subscribe("lab");
        thread::scope(|scope| {
            let node = &cluster.nodes[number];
            let mut http = node.http();
            let waiting = scope.spawn(move || {
                let body = json!({"channel_id": "lab", "author": "a", "content": "x"});
                http.try_post_json("/api/messages", &body)
                    .map(|answer| answer.status)
            });
            let queued = || node.health()["limits"]["queued_bytes"]["used"].as_u64();
            eventually("it waits for Redis, or has its answer", || {
                queued() > Some(0) || waiting.is_finished()
            });
            node.program.signal(Signal::TERM);
            assert_eq!(listener.close_code(), Some(1001));
            // Told that it may not have been done, or not at all.
            let answer = waiting.join().expect("a publisher");
            assert!(matches!(answer, None | Some(503)), "{answer:?}");
        });
        let status = cluster.nodes[number].program.wait();
        assert_eq!(status.code(), Some(0));
        if !is_gone {
            cluster.redis.resume();
        }
    }
}

#[test]
fn whatever_is_in_a_message_is_the_same_on_all_nodes() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    let long = "x\u{1F600}\"\\\n".repeat(20_000);
    let messages = [
        json!({"channel_id": "lab", "author": "a", "content": ""}),
        json!({"channel_id": "a/b \u{1F600}", "author": "\u{e9}\"\\", "content": "\u{0}\r\n\t\u{7f}"}),
        json!({"channel_id": "lab", "author": "a", "content": long}),
        json!({"channel_id": "lab", "author": "a", "content": "x", "lane": "", "provider": "p\u{0}", "token_count": 0}),
        json!({"channel_id": "lab", "author": "a", "content": "x", "lane": null, "provider": null, "token_count": -1}),
        json!({"channel_id": "lab", "author": "a", "content": "x", "token_count": i64::MAX}),
        json!({"channel_id": "lab", "author": "", "content": "*1\r\n$4\r\nQUIT\r\n"}),
    ];
    let mut acknowledged = Vec::new();
    for (number, message) in messages.iter().enumerate() {
        let mut http = cluster.nodes[number % 3].http();
        let answer = http.post_json("/api/messages", message);
        if answer.status == 422 {
            // What one server does not take, none does.
            continue;
        }
        assert_eq!(answer.status, 200, "{}", answer.text());
        let stored = answer.json()["message"].clone();
        let fields = message.as_object().expect("an object");
        for (field, value) in fields {
            assert_eq!(stored[field], *value, "{field}");
        }
        acknowledged.push(stored);
    }
    assert!(acknowledged.len() > 4, "{}", acknowledged.len());
    assert_eq!(cluster.history(), acknowledged);

    let states = [
        json!({"\u{1F600}": [1.5, -0.1, 1e300, 12345678901234567890u64, null]}),
        json!("\u{0}\r\n"),
        json!([]),
    ];
    for (number, state) in states.iter().enumerate() {
        let put = cluster.nodes[number]
            .http()
            .put_state("board", &state.to_string());
        assert_eq!(put["rev"], number + 1);
        for node in &cluster.nodes {
            let of_node = || -> Value { node.http().state("board") };
            eventually("it has the state", || of_node()["rev"] == number + 1);
            assert_eq!(of_node()["data"], *state);
        }
    }
}

#[test]
fn a_first_node_that_is_killed_while_its_log_begins_knows_it_again() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("first.db");
    drop(single(&database, &["1", "2", "3"]));
    let gate = Gate::before(redis.address);
    gate.close_instead_of_answering("Begins a log");
    let mut first = Node::start_at(database, &format!("redis://{}", gate.address), &[]);
    assert_eq!(gate.lost(), 1);
    assert!(!first.is_connected());
    first.kill();
    gate.open();
    first.restart();
    first.await_connected();
    assert_eq!(contents(&first.history()), ["1", "2", "3"]);
    assert_eq!(first.publish("lab", "4"), 4);
    let second = Node::start(dir.path().join("second.db"), &redis, &[]);
    second.await_head(4);
    assert_eq!(second.publish("lab", "5"), 5);
    first.await_head(5);
    // Further starts are those of any node.
    first.kill();
    first.restart();
    first.await_connected();
    assert_eq!(contents(&first.history()), ["1", "2", "3", "4", "5"]);
}
