//! Feeds and repeated requests on several nodes: one revision after the other, one answer for
//! one key.
//!
//! The story: two nodes gave a feed the revision 8 with a different state each, and their
//! subscribers never agreed again.
#![cfg(feature = "redis")]

mod common;

use std::sync::Barrier;
use std::thread;

use common::cluster::{Cluster, Node, contents, until_taken};
use common::redis::Redis;
use common::{Http, Response, eventually};
use serde_json::{Value, json};

const REPLAYED: &str = "Idempotency-Replayed";

#[test]
fn feeds_converge_however_many_publishers_compete_on_all_nodes() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    let nodes = &cluster.nodes;
    let mut watchers: Vec<_> = nodes
        .iter()
        .map(|node| node.program.subscribe_feed("board"))
        .collect();
    let mut revs: Vec<u64> = thread::scope(|scope| {
        let publisher = |number: usize| {
            let node = &nodes[number % 3];
            move || -> Vec<u64> {
                let mut http = node.http();
                let mut put = |turn: usize| {
                    // Every third is what another may have set at this moment.
                    let state = match turn % 3 {
                        0 => json!({"turn": turn}),
                        _ => json!({"by": number, "turn": turn}),
                    };
                    let put = || http.put("/api/state/board", &state.to_string());
                    until_taken(put).json()
                };
                let answers = (0..60).map(&mut put);
                let changes = answers.filter(|answer| answer["changed"] == true);
                changes.map(|answer| rev(&answer)).collect()
            }
        };
        let all: Vec<_> = (0..6).map(|it| scope.spawn(publisher(it))).collect();
        all.into_iter()
            .flat_map(|it| it.join().expect("a publisher"))
            .collect()
    });
    revs.sort_unstable();
    let newest = revs.len() as u64;
    assert_eq!(
        revs,
        (1..=newest).collect::<Vec<_>>(),
        "one change, one rev"
    );
    eventually("all nodes have the newest", || {
        let mut states = nodes.iter().map(|node| node.http().state("board"));
        states.all(|state| rev(&state) == newest)
    });
    let last = nodes[0].http().state("board");
    for node in nodes {
        assert_eq!(node.http().state("board"), last);
    }
    for watcher in &mut watchers {
        let mut seen = watcher.next();
        while rev(&seen) < newest {
            let next = watcher.next();
            assert!(rev(&next) > rev(&seen), "{next} after {seen}");
            seen = next;
        }
        assert_eq!(seen, last);
    }
}

fn rev(state: &Value) -> u64 {
    state["rev"].as_u64().expect("a revision")
}

#[test]
fn a_state_that_another_node_has_set_is_no_change() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    let mut changes = 0;
    for turn in 0..30 {
        // At once on the next node, which may not have it yet.
        for node in &cluster.nodes {
            let state = format!("[{turn}]");
            let answer = node.http().put_state("board", &state);
            changes += u64::from(answer["changed"] == true);
            assert_eq!(answer["rev"], turn + 1, "{answer}");
        }
    }
    assert_eq!(changes, 30);
}

#[test]
fn the_history_of_workflows_is_the_same_on_every_node() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    for turn in 0..12 {
        let state = json!([{"id": format!("w{}", turn % 3), "status": if turn % 2 == 0 { "running" } else { "completed" }}]);
        cluster.nodes[turn % 3]
            .http()
            .put_state("workflows", &state.to_string());
    }
    let history = |node: &Node| node.http().state("workflow-history");
    eventually("all have applied the last", || {
        let of = |node: &Node| (history(node), node.http().state("workflows"));
        let first = of(&cluster.nodes[0]);
        cluster.nodes.iter().all(|node| of(node) == first)
    });
    assert!(rev(&history(&cluster.nodes[0])) > 0, "there is a history");
    assert_eq!(rev(&cluster.nodes[0].http().state("workflows")), 12);
}

/// A POST or PUT with this key.
fn keyed(http: &mut Http, key: &str, content: &str) -> Response {
    let body = json!({"channel_id": "lab", "author": "ada", "content": content}).to_string();
    let headers = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", key),
    ];
    until_taken(|| http.request("POST", "/api/messages", &headers, body.as_bytes()))
}

#[test]
fn a_request_repeated_on_another_node_is_done_once_and_gets_the_same_answer() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    let _listener = cluster.nodes[0].subscribe("lab");
    for turn in 0..20 {
        let key = format!("key-{turn}");
        let content = turn.to_string();
        let first = keyed(&mut cluster.nodes[turn % 3].http(), &key, &content);
        assert_eq!(first.status, 200, "{}", first.text());
        assert_eq!(first.header(REPLAYED), None);
        for next in 1..=3 {
            let node = &cluster.nodes[(turn + next) % 3];
            let again = keyed(&mut node.http(), &key, &content);
            assert_eq!(again.status, 200, "{}", again.text());
            assert_eq!(again.header(REPLAYED), Some("true"));
            assert_eq!(again.text(), first.text());
        }
        // The same key for something else.
        let other = keyed(&mut cluster.nodes[(turn + 1) % 3].http(), &key, "another");
        assert_eq!(other.status, 422, "{}", other.text());
    }
    assert_eq!(cluster.history().len(), 20);
}

#[test]
fn a_put_repeated_on_another_node_gets_the_first_answer_although_the_feed_has_gone_on() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    let put = |node: &Node, key: &str, body: &str| {
        let headers = [
            ("Content-Type", "application/json"),
            ("Idempotency-Key", key),
        ];
        let target = "/api/state/board";
        node.http()
            .request("PUT", target, &headers, body.as_bytes())
    };
    let first = put(&cluster.nodes[0], "a", "[1]");
    assert_eq!(put(&cluster.nodes[1], "b", "[2]").json()["rev"], 2);
    let again = put(&cluster.nodes[2], "a", "[1]");
    assert_eq!(again.text(), first.text());
    assert_eq!(again.header(REPLAYED), Some("true"));
    for node in &cluster.nodes {
        eventually("the second state stays", || {
            node.http().state("board")["rev"] == 2
        });
    }
}

#[test]
fn of_one_key_at_the_same_moment_on_all_nodes_one_is_stored_and_all_hear_of_it() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    for round in 0..15 {
        let barrier = Barrier::new(6);
        let answers: Vec<_> = thread::scope(|scope| {
            let ask = |number: usize| {
                let (node, barrier) = (&cluster.nodes[number % 3], &barrier);
                move || {
                    let mut http = node.http();
                    barrier.wait();
                    keyed(&mut http, &format!("round-{round}"), "x")
                }
            };
            let all: Vec<_> = (0..6).map(|it| scope.spawn(ask(it))).collect();
            all.into_iter()
                .map(|it| it.join().expect("an answer"))
                .collect()
        });
        for answer in &answers {
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.json()["message"], answers[0].json()["message"]);
        }
        let first = answers.iter().filter(|it| it.header(REPLAYED).is_none());
        assert_eq!(first.count(), 1, "one did it, the others heard of it");
    }
    assert_eq!(contents(&cluster.history()), ["x"; 15]);
}
