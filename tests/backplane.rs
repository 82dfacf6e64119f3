//! Several nodes behind one Redis are one server: the same messages, ids and order on each.
//!
//! The story: one machine was not enough, and two servers with a log each gave every message two
//! ids and two places. Whoever was sent from one to the other by the load balancer missed some
//! and had others twice.
#![cfg(feature = "redis")]

mod common;

use std::collections::HashSet;
use std::thread;
use std::time::Instant;

use common::cluster::{Cluster, Node, contents, id, publish, publish_many, single};
use common::redis::Redis;
use common::sse::Sse;
use common::{DEADLINE, Ws, eventually};
use serde_json::{Value, json};

#[test]
fn messages_published_on_any_node_reach_the_subscribers_of_all_once_in_one_order() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    let nodes = &cluster.nodes;
    let mut sockets: Vec<_> = nodes.iter().map(|node| node.subscribe("lab")).collect();
    let mut streams: Vec<_> = nodes
        .iter()
        .map(|node| Sse::open(node.program.address, "/api/sse/lab"))
        .collect();
    const EACH: usize = 150;
    let acknowledged: HashSet<u64> = thread::scope(|scope| {
        let by_http = nodes.iter().enumerate().map(|(number, node)| {
            scope.spawn(move || -> Vec<u64> {
                let mut http = node.http();
                let publish = |turn| publish(&mut http, "lab", &format!("http {number} {turn}"));
                (0..EACH).map(publish).collect()
            })
        });
        let by_socket = nodes.iter().enumerate().map(|(number, node)| {
            scope.spawn(move || -> Vec<u64> {
                let mut ws = node.subscribe(&format!("of node {number}").replace(' ', "%20"));
                let message = |turn: &Value| {
                    let content = format!("ws {turn}");
                    json!({"type": "message", "content": content, "ref": turn})
                };
                (0..EACH).for_each(|turn| ws.send(&message(&json!(turn))));
                let mut ids = Vec::new();
                while ids.len() < EACH {
                    let answer = ws.next();
                    match answer["type"].as_str() {
                        Some("ack") => ids.push(id(&answer)),
                        Some("error") => {
                            let text = answer.to_string();
                            assert!(text.contains("nothing was stored"), "{text}");
                            ws.send(&message(&answer["ref"]));
                        }
                        _ => {}
                    }
                }
                ids
            })
        });
        let all: Vec<_> = by_http.chain(by_socket).collect();
        all.into_iter()
            .flat_map(|publisher| publisher.join().expect("a publisher"))
            .collect()
    });

    let history = cluster.history();
    let ids: Vec<_> = history.iter().map(id).collect();
    assert_eq!(ids, (1..=6 * EACH as u64).collect::<Vec<_>>());
    assert_eq!(acknowledged, ids.into_iter().collect());
    let of_lab: Vec<_> = history
        .iter()
        .filter(|message| message["channel_id"] == "lab")
        .cloned()
        .collect();
    assert_eq!(of_lab.len(), 3 * EACH);
    for socket in &mut sockets {
        let heard: Vec<_> = of_lab.iter().map(|_| socket.next_message()).collect();
        assert_eq!(heard, of_lab, "an order of its own");
        socket.is_quiet();
    }
    for stream in &mut streams {
        let heard: Vec<_> = of_lab.iter().map(|_| stream.next_message()).collect();
        assert_eq!(heard, of_lab, "an order of its own");
    }
    // Counted alike, too.
    let summary = |node: &Node| node.http().get("/api/summary").text();
    let details = |node: &Node| -> Vec<_> {
        let answer = node.http().get("/api/channels").json();
        let details = answer["details"].as_array().expect("a list").iter();
        let of = |it: &Value| ["channel_id", "messages", "last_id"].map(|field| it[field].clone());
        details.map(of).collect()
    };
    for node in nodes {
        assert_eq!(summary(node), summary(&nodes[0]));
        assert_eq!(details(node), details(&nodes[0]));
    }
}

#[test]
fn a_client_that_hops_between_nodes_with_since_misses_nothing_and_has_nothing_twice() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    const ALL: u64 = 600;
    thread::scope(|scope| {
        for part in 0..2 {
            let node = &cluster.nodes[part];
            scope.spawn(move || {
                let mut http = node.http();
                for _ in 0..ALL / 2 {
                    publish(&mut http, "lab", "x");
                }
            });
        }
        let mut cursor = 0;
        for hop in 0.. {
            // A few messages here, then on to the next node at once.
            let address = cluster.nodes[hop % 3].program.address;
            let mut ws = Ws::open(address, &format!("/api/ws/lab?since={cursor}"));
            for _ in 0..7 {
                let frame = ws.next();
                match frame["type"].as_str() {
                    Some("message") => {
                        assert_eq!(id(&frame["data"]), cursor + 1, "at hop {hop}");
                        cursor += 1;
                    }
                    Some("caught_up") => {}
                    _ => panic!("after {cursor}, at hop {hop}: {frame}"),
                }
                if cursor == ALL {
                    return;
                }
            }
        }
    });
}

#[test]
fn a_client_that_is_ahead_of_the_node_it_comes_to_waits_there_for_what_it_does_not_have() {
    let Some(redis) = Redis::start() else { return };
    let (cluster, gate) = Cluster::with_gate(redis, &["--backplane-timeout", "60s"]);
    let [fast, _, behind] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    behind.await_head(fast.publish("lab", "1"));
    gate.close();
    fast.publish("lab", "2");
    fast.publish("lab", "3");
    // A hop, and one by a reader of events, and one who asks.
    let mut ws = behind.subscribe("lab?since=3");
    let mut events = Sse::come_back(behind.program.address, "/api/sse/lab", "3");
    let mut poll = behind.http();
    poll.send("GET /api/messages?since=3&wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(behind.head(), 1, "it has nothing of it");
    gate.open();
    behind.await_head(3);
    fast.publish("lab", "4");
    let until_a_message = |next: &mut dyn FnMut() -> Value| loop {
        let frame = next();
        match frame["type"].as_str() {
            Some("message") => return frame["data"]["id"].clone(),
            Some("caught_up") => {}
            _ => panic!("{frame}"),
        }
    };
    assert_eq!(until_a_message(&mut || ws.next()), 4);
    assert_eq!(until_a_message(&mut || events.next()), 4);
    let page = poll.response(false).json();
    assert_eq!(page["messages"][0]["id"], 4, "{page}");
}

#[test]
fn a_long_poll_on_one_node_is_answered_with_what_another_was_given() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    let mut http = cluster.nodes[2].http();
    http.send("GET /api/messages?since=0&wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n");
    cluster.nodes[0].publish("lab", "hello");
    let answer = http.response(false).json();
    assert_eq!(answer["messages"][0]["content"], "hello");
    assert_eq!(answer["head"], 1);
}

#[test]
fn an_acknowledged_message_is_on_the_node_that_acknowledged_it() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    for turn in 0..60 {
        let node = &cluster.nodes[turn % 3];
        let mut http = node.http();
        let published = http.publish("lab", "x");
        let page = http.get("/api/messages?limit=1").json();
        assert!(page["head"].as_u64() >= Some(published), "{page}");
    }
}

#[test]
fn subscribers_in_answers_are_the_nodes_own_and_cluster_1_sums_those_of_nodes_alive() {
    let Some(redis) = Redis::start() else { return };
    let mut cluster = Cluster::of(redis);
    let subscribers: Vec<Vec<_>> = [3, 2, 1]
        .into_iter()
        .zip(&cluster.nodes)
        .map(|(number, node)| (0..number).map(|_| node.subscribe("lab")).collect())
        .collect();
    let own = |node: &Node| {
        let body = json!({"channel_id": "lab", "author": "a", "content": "x"});
        let answer = node.http().post_json("/api/messages", &body).json();
        answer["subscribers"].clone()
    };
    assert_eq!(own(&cluster.nodes[0]), 3);
    assert_eq!(own(&cluster.nodes[2]), 1);
    cluster.history();
    assert_eq!(counted(&cluster.nodes[1], "/api/channels"), Some(2));
    for node in &cluster.nodes {
        eventually("the heartbeats of all have come", || {
            counted(node, "/api/channels?cluster=1") == Some(6)
        });
    }
    // Killed, it cannot take its count back: that ends by itself.
    cluster.nodes[0].kill();
    let start = Instant::now();
    while counted(&cluster.nodes[1], "/api/channels?cluster=1") != Some(3) {
        assert!(start.elapsed() < 2 * DEADLINE, "the dead node still counts");
        thread::sleep(std::time::Duration::from_millis(50));
    }
    drop(subscribers);
}

/// Subscribers of `lab`.
fn counted(node: &Node, target: &str) -> Option<u64> {
    let answer = node.http().get(target);
    if answer.status == 503 {
        // A heartbeat was late: it does not say what it does not know.
        return None;
    }
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    let details = answer["details"].as_array().expect("a list").clone();
    let lab = details.into_iter().find(|it| it["channel_id"] == "lab");
    lab.and_then(|lab| lab["subscribers"].as_u64())
}

#[test]
fn channels_without_messages_are_in_the_clusters_sum_and_a_server_alone_is_one_of_one() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    let _listener = cluster.nodes[0].subscribe("lab");
    eventually("its heartbeat has come", || {
        counted(&cluster.nodes[2], "/api/channels?cluster=1") == Some(1)
    });
    let alone = common::TestServer::start();
    let _listener = alone.subscribe("lab");
    let answer = alone.http().get("/api/channels?cluster=1").json();
    assert_eq!(answer["nodes"], 1);
    assert_eq!(answer["details"][0]["subscribers"], 1);
}

#[test]
fn a_new_node_fills_its_history_from_the_stream() {
    let Some(redis) = Redis::start() else { return };
    let mut cluster = Cluster::of(redis);
    publish_many(&mut cluster.nodes[0].http(), "lab", 3000);
    cluster.nodes[1].http().put_state("board", "[1]");
    cluster.nodes[2].http().put_state("board", "[2]");
    let fourth = cluster.add();
    fourth.await_head(3000);
    eventually("it has the state, too", || {
        fourth.http().state("board")["rev"] == 2
    });
    assert_eq!(fourth.http().state("board")["data"], json!([2]));
    assert_eq!(cluster.history().len(), 3000);
    // And is one of them.
    let mut ws = cluster.nodes[0].subscribe("lab");
    assert_eq!(cluster.nodes[3].publish("lab", "of the new one"), 3001);
    assert_eq!(ws.next_message()["content"], "of the new one");
}

#[test]
fn a_single_servers_database_becomes_the_first_node_and_keeps_its_ids() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("first.db");
    let single = single(&database, &["1", "2", "3"]);
    single.http().put_state("board", "[1]");
    drop(single);

    let first = Node::start(database, &redis, &[]);
    first.await_connected();
    assert_eq!(contents(&first.history()), ["1", "2", "3"]);
    assert_eq!(first.publish("lab", "4"), 4);
    let second = Node::start(dir.path().join("second.db"), &redis, &[]);
    second.await_connected();
    second.await_head(4);
    assert_eq!(second.publish("lab", "5"), 5);
    first.await_head(5);
    assert_eq!(contents(&first.history()), ["1", "2", "3", "4", "5"]);
    assert_eq!(contents(&second.history()), ["4", "5"]);
    // What it never had is a gap, not nothing.
    let mut ws = second.subscribe("lab?since=1");
    let gap = ws.next();
    assert_eq!(gap["type"], "gap", "{gap}");
    assert_eq!(gap["oldest"], 4, "{gap}");
    assert_eq!(gap["reason"], "retention", "{gap}");
    assert_eq!(ws.next_message()["id"], 4);
    // The feed's revisions go on, too, on both.
    eventually("the state has come", || {
        second.http().state("board")["rev"] == 1
    });
    assert_eq!(second.http().put_state("board", "[2]")["rev"], 2);
    eventually("and goes back", || first.http().state("board")["rev"] == 2);
}

#[test]
fn a_node_in_memory_has_the_streams_messages_after_each_start() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    publish_many(&mut cluster.nodes[0].http(), "lab", 50);
    for round in 0..2 {
        let node = Node::start(":memory:".into(), &cluster.redis, &[]);
        node.await_head(50 + round);
        assert_eq!(node.publish("lab", "x"), 51 + round);
        assert_eq!(node.history().len() as u64, 51 + round);
    }
    assert_eq!(cluster.history().len(), 52);
}
