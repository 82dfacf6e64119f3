//! A node says of itself what it can no longer do: publish, be counted, be one of several.
//!
//! The story: Redis was full. Every publisher heard 503 for an hour, while every node's health
//! said that all was well and no log said a word.
#![cfg(feature = "redis")]

mod common;

use std::net::TcpListener;

use common::cluster::{Cluster, Node, assert_says, try_publish};
use common::eventually;
use common::redis::Redis;
use common::system::own_address;

const REFUSES: &str = "refuses what is published";
const UNHEARD: &str = "do not hear of this node's subscribers";

/// One node on a Redis of its own.
fn node(redis: &Redis) -> (tempfile::TempDir, Node) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let node = Node::start(dir.path().join("a.db"), redis, &[]);
    node.await_connected();
    (dir, node)
}

fn has_metric(node: &Node, name: &str, value: u8) -> bool {
    let metrics = node.http().get("/metrics").text();
    metrics.contains(&format!("\nthreadcast_backplane_{name} {value}\n"))
}

/// How many lines of its log have these words.
fn said(node: &Node, level: &str, words: &str) -> usize {
    let log = node.log();
    let has = |line: &&str| line.contains(level) && line.contains(words);
    log.lines().filter(has).count()
}

#[test]
fn a_redis_that_is_read_and_takes_nothing_is_told_until_it_takes_something() {
    let cases: [(&[&str], &[&str], &str); 2] = [
        (
            &["CONFIG", "SET", "maxmemory", "1"],
            &["CONFIG", "SET", "maxmemory", "0"],
            "OOM command not allowed when used memory > 'maxmemory'",
        ),
        (
            &["ACL", "SETUSER", "default", "-evalsha"],
            &["ACL", "SETUSER", "default", "+evalsha"],
            "NOPERM",
        ),
    ];
    for (break_it, mend_it, reason) in cases {
        let Some(redis) = Redis::start() else { return };
        let (_dir, node) = node(&redis);
        assert!(node.health()["backplane"]["refuses"].is_null());
        assert!(has_metric(&node, "writable", 1));
        redis.call(break_it);
        for _ in 0..3 {
            let answer = try_publish(&mut node.http(), "refused");
            assert_says(&answer.text(), &[reason, "nothing was stored"]);
        }
        let health = node.http().get("/api/health");
        assert_eq!(
            (health.status, &health.json()["status"]),
            (200, &"ok".into())
        );
        let refuses = health.json()["backplane"]["refuses"].clone();
        let refuses = refuses.as_str().expect("a reason");
        assert!(refuses.starts_with(reason), "{refuses}");
        assert!(!refuses.contains("script"), "{refuses}");
        assert!(has_metric(&node, "writable", 0) && has_metric(&node, "connected", 1));
        assert_eq!(said(&node, "WARN", REFUSES), 1, "{}", node.log());
        redis.call(mend_it);
        eventually("it is stored", || {
            try_publish(&mut node.http(), "stored").status == 200
        });
        assert!(node.health()["backplane"]["refuses"].is_null());
        assert!(has_metric(&node, "writable", 1));
        assert_eq!(said(&node, "WARN", REFUSES), 1, "{}", node.log());
        eventually("it is logged", || {
            said(&node, "INFO", "can be written to again") == 1
        });
        assert_eq!(node.history().len(), 1, "{reason}");
    }
}

/// It ends what waits in it, so nodes notice at once.
#[test]
fn a_redis_that_becomes_a_replica_is_away_until_it_is_none() {
    let Some(redis) = Redis::start() else { return };
    let (_dir, node) = node(&redis);
    redis.call(&["REPLICAOF", &own_address().to_string(), "1"]);
    eventually("it is away", || {
        let health = node.http().get("/api/health");
        assert_eq!(health.status, 200, "{}", health.text());
        let reason = health.json()["backplane"]["reason"].clone();
        reason
            .as_str()
            .is_some_and(|reason| reason.contains("replica"))
    });
    assert_eq!(try_publish(&mut node.http(), "refused").status, 503);
    redis.call(&["REPLICAOF", "NO", "ONE"]);
    node.await_connected();
    assert_eq!(try_publish(&mut node.http(), "stored").status, 200);
    assert_eq!(node.history().len(), 1);
}

#[test]
fn a_redis_that_has_room_again_is_told_before_anybody_publishes() {
    let Some(redis) = Redis::start() else { return };
    let (_dir, node) = node(&redis);
    redis.call(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(try_publish(&mut node.http(), "refused").status, 503);
    assert!(node.health()["backplane"]["refuses"].is_string());
    eventually("a heartbeat fails", || said(&node, "WARN", UNHEARD) == 1);
    redis.call(&["CONFIG", "SET", "maxmemory", "0"]);
    eventually("health says so", || {
        node.health()["backplane"]["refuses"].is_null()
    });
    eventually("it is logged", || {
        said(&node, "INFO", "can be written to again") == 1
    });
}

#[test]
fn subscribers_of_all_nodes_are_counted_right_or_not_at_all() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    let _subscribers: Vec<_> = cluster.nodes.iter().map(|it| it.subscribe("lab")).collect();
    let count = |node: &Node| {
        let answer = node.http().get("/api/channels?cluster=1");
        (answer.status == 200).then(|| answer.json()["details"][0]["subscribers"].clone())
    };
    let all_count = || cluster.nodes.iter().all(|it| count(it) == Some(3.into()));
    eventually("all count all", all_count);
    // What heartbeats need, and appends do not.
    cluster.redis.call(&["ACL", "SETUSER", "default", "-zadd"]);
    eventually("none counts", || {
        let mut counts = cluster.nodes.iter().map(count);
        counts.all(|it| it.is_none())
    });
    for node in &cluster.nodes {
        let answer = node.http().get("/api/channels?cluster=1");
        let kind = answer.header("Content-Type");
        assert_eq!(kind, Some("application/problem+json"));
        assert!(answer.header("Retry-After").is_some());
        assert_says(&answer.text(), &["heartbeats", "user"]);
        // Its own are known to it, and publishing is not disturbed.
        assert_eq!(node.http().get("/api/channels").status, 200);
        node.publish("lab", "x");
        eventually("it is logged", || said(node, "WARN", UNHEARD) > 0);
        assert_eq!(said(node, "WARN", UNHEARD), 1, "{}", node.log());
    }
    eventually("all are forgotten", || {
        cluster.redis.call(&["KEYS", "*:node:*"]).list().is_empty()
    });
    cluster.redis.call(&["ACL", "SETUSER", "default", "+zadd"]);
    // Whoever tells again first does not count itself alone.
    eventually("all count all again", || {
        let counts: Vec<_> = cluster.nodes.iter().map(count).collect();
        assert!(counts.iter().flatten().all(|it| *it == 3), "{counts:?}");
        counts.iter().all(Option::is_some)
    });
    for node in &cluster.nodes {
        assert_eq!(said(node, "WARN", UNHEARD), 1, "{}", node.log());
        assert_eq!(said(node, "INFO", "hear of this node's"), 1);
    }
}

/// Replaces the newest entry of the stream by one that is the same but for this header, and
/// returns the header that it had; every node has to join again.
fn rewrite(redis: &Redis, header: Option<&str>) -> String {
    let stream = redis.stream();
    let all = redis.call(&["XRANGE", &stream, "-", "+"]);
    let newest = all.list().last().expect("an entry").list();
    let (id, fields) = (newest[0].text(), newest[1].list());
    let [_, before, kind, payload] = [0, 1, 2, 3].map(|at| fields[at].text());
    // As a node that nobody knows would have appended it.
    let (head, _) = before.rsplit_once(' ').expect("who appended it");
    let other = format!("{head} 0123456789abcdef:1");
    let header = header.unwrap_or(&other);
    // In one step: a node that looks in between would take the end of the log for lost.
    let script = "redis.call('DEL', KEYS[1])
        redis.call('XADD', KEYS[1], ARGV[1], 'h', ARGV[2], ARGV[3], ARGV[4])";
    redis.call(&["EVAL", script, "1", &stream, id, header, kind, payload]);
    redis.call(&["CLIENT", "KILL", "TYPE", "normal"]);
    before.to_owned()
}

#[test]
fn a_running_node_that_went_apart_from_the_log_sends_everybody_elsewhere_until_it_is_put_right() {
    let Some(mut redis) = Redis::start_durable() else {
        return;
    };
    let (_dir, node) = node(&redis);
    node.publish("lab", "1");
    let before = rewrite(&redis, None);
    eventually("it is stranded", || {
        node.http().get("/api/health").status == 503
    });
    let answer = node.http().get("/api/health");
    assert_eq!(answer.header("Retry-After"), Some("1"));
    let health = answer.json();
    assert_eq!(health["status"], "stranded");
    assert_eq!(health["backplane"]["connected"], false);
    let reason = health["backplane"]["reason"].as_str().expect("a sentence");
    assert_says(reason, &["went apart", "--db"]);
    assert!(has_metric(&node, "stranded", 1) && has_metric(&node, "connected", 0));
    let refused = try_publish(&mut node.http(), "refused");
    assert_eq!(refused.status, 503);
    assert_says(&refused.text(), &["went apart", "nothing was stored"]);
    assert_eq!(node.history().len(), 1);
    // That Redis is gone, too, does not make it one of them again.
    redis.kill();
    let nobody = TcpListener::bind(redis.address).expect("its port");
    nobody.set_nonblocking(true).expect("a listener");
    let mut attempts = 0;
    eventually("there are more attempts", || {
        attempts += u32::from(nobody.accept().is_ok());
        attempts == 5
    });
    drop(nobody);
    assert_eq!(node.http().get("/api/health").status, 503);
    redis.restart();
    assert_eq!(said(&node, "ERROR", "went apart"), 1, "{}", node.log());
    rewrite(&redis, Some(&before));
    node.await_connected();
    let answer = node.http().get("/api/health");
    assert_eq!(
        (answer.status, &answer.json()["status"]),
        (200, &"ok".into())
    );
    assert!(has_metric(&node, "stranded", 0));
    node.publish("lab", "2");
    assert_eq!(said(&node, "ERROR", ""), 1, "{}", node.log());
}

#[test]
fn a_node_that_only_misses_redis_is_still_a_place_to_go_to() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let (_dir, node) = node(&redis);
    redis.kill();
    node.await_disconnected();
    let answer = node.http().get("/api/health");
    assert_eq!(
        (answer.status, &answer.json()["status"]),
        (200, &"ok".into())
    );
    assert_eq!(said(&node, "ERROR", ""), 0, "{}", node.log());
}
