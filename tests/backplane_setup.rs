//! A Redis that is set up for something else: a node says at its start what will never work.
//!
//! The story: a node was given the address of a replica. It read everything, said "away" of
//! nothing, and answered every publisher 503; another one waited for a database that its Redis
//! did not have.
#![cfg(feature = "redis")]

mod common;

use std::fs;

use common::cluster::{Node, assert_says, refused, try_publish};
use common::eventually;
use common::redis::{Connection, Redis};
use rustix::process::Signal;

/// Cuts all connections of nodes.
fn cut(redis: &Redis) {
    redis.call(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
}

#[test]
fn a_database_number_that_redis_does_not_have_is_said() {
    let Some(redis) = Redis::start() else { return };
    let Some(sharded) = Redis::start_with(&["--cluster-enabled", "yes"]) else {
        return;
    };
    let Some(locked) = Redis::start_locked("s3cret") else {
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (url, words) in [
        (
            format!("{}/99", redis.url()),
            ["database 99", "out of range"],
        ),
        (
            format!("{}/1", sharded.url()),
            ["database 1", "cluster mode"],
        ),
        (
            format!("redis://{}/1", locked.address),
            ["password", "--backplane"],
        ),
    ] {
        let sentence = refused(&dir.path().join("a.db"), &url, &[]);
        assert_says(&sentence, &words);
    }
    let node = Node::start_at(dir.path().join("a.db"), &format!("{}/3", redis.url()), &[]);
    node.await_connected();
    assert_eq!(node.publish("lab", "1"), 1);
    let keyspace = redis.call(&["INFO", "keyspace"]).text().to_owned();
    assert!(
        keyspace.contains("db3:") && !keyspace.contains("db0:"),
        "{keyspace}"
    );
}

#[test]
fn a_redis_that_takes_no_more_clients_is_waited_for() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut only = Connection::open(redis.address);
    let mut clients = |most: &str| only.call(&["CONFIG", "SET", "maxclients", most]);
    assert_eq!(clients("1").text(), "OK");
    // It is told so when it chooses the database.
    let node = Node::start_at(dir.path().join("a.db"), &format!("{}/3", redis.url()), &[]);
    assert!(!node.is_connected());
    assert_eq!(clients("100").text(), "OK");
    node.await_connected();
    assert_eq!(node.publish("lab", "1"), 1);
}

#[test]
fn a_replica_is_said_at_the_start_and_waited_for_later() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let node = Node::start(dir.path().join("a.db"), &redis, &[]);
    node.await_connected();
    assert_eq!(node.publish("lab", "1"), 1);
    // As in a failover: a master that is not there leaves it the data that it has.
    redis.call(&["REPLICAOF", "127.0.0.1", "1"]);
    cut(&redis);
    eventually("it says so", || node.log().contains("it is a replica"));
    let answer = try_publish(&mut node.http(), "refused");
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("replica"), "{}", answer.text());
    let sentence = refused(&dir.path().join("b.db"), &redis.url(), &[]);
    assert_says(&sentence, &["replica", "master"]);
    // Who may not ask what it is finds out when there is something to write.
    redis.call(&[
        "ACL", "SETUSER", "x", "on", ">s3cret", "~*", "+@all", "-info",
    ]);
    let url = format!("redis://x:s3cret@{}", redis.address);
    let other = ["--backplane-key", "other"];
    let sentence = refused(&dir.path().join("b.db"), &url, &other);
    assert_says(&sentence, &["replica", "master"]);
    redis.call(&["REPLICAOF", "NO", "ONE"]);
    node.await_connected();
    assert_eq!(node.publish("lab", "2"), 2);
}

#[test]
fn a_redis_that_may_evict_the_log_is_warned_of_once() {
    let lru = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let none = ["--maxmemory", "100mb", "--maxmemory-policy", "noeviction"];
    let warnings = |config: &[&str]| {
        let redis = Redis::start_with(config)?;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = Node::start(dir.path().join("a.db"), &redis, &[]);
        node.await_connected();
        node.publish("lab", "1");
        cut(&redis);
        eventually("it has joined again", || {
            node.health()["backplane"]["reconnects"].as_u64() >= Some(1)
        });
        let log = node.log();
        let warnings = log.lines().filter(|line| line.contains("noeviction"));
        Some(warnings.map(str::to_owned).collect::<Vec<_>>())
    };
    let Some(warned) = warnings(&lru) else { return };
    let [warning] = &warned[..] else {
        panic!("not one: {warned:?}");
    };
    assert_says(warning, &["WARN", "allkeys-lru"]);
    assert_eq!(warnings(&none), Some(vec![]));
    assert_eq!(warnings(&lru[2..]), Some(vec![]), "without a bound");
}

/// The line of README.md that allows a user what a node needs.
fn readme_line() -> Vec<String> {
    let readme = fs::read_to_string("README.md").expect("the README");
    let mut lines = readme.lines().map(str::trim);
    let line = lines.find(|line| line.starts_with("ACL SETUSER"));
    let line = line.expect("a line for the user");
    line.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_readmes_user_may_do_all_that_nodes_do() {
    let Some(redis) = Redis::start() else { return };
    let words = readme_line();
    redis.call(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let url = format!("redis://threadcast:PASSWORD@{}", redis.address);
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (number, url) in [&url, &format!("{url}/3")].into_iter().enumerate() {
        let start =
            |name: &str| Node::start_at(dir.path().join(format!("{number}{name}.db")), url, &[]);
        let (mut first, mut second) = (start("a"), start("b"));
        first.await_connected();
        second.await_connected();
        let mut listener = second.subscribe("lab");
        first.publish("lab", "1");
        assert_eq!(listener.next_message()["content"], "1");
        let headers = [
            ("Content-Type", "application/json"),
            ("Idempotency-Key", "once"),
        ];
        for _ in 0..2 {
            let body = br#"{"channel_id": "lab", "author": "a", "content": "2"}"#;
            let answer = first
                .http()
                .request("POST", "/api/messages", &headers, body);
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        second.await_head(2);
        first.http().put_state("board", "[1]");
        eventually("the other one has the state", || {
            second.http().state("board")["rev"] == 1
        });
        eventually("they know each other", || {
            let counted = first.http().get("/api/channels?cluster=1").json();
            counted["nodes"] == 2
        });
        // One comes back, and the log with it when all of it is gone.
        second.kill();
        second.restart();
        second.await_connected();
        redis.call(&["FLUSHALL"]);
        eventually("it goes on", || {
            try_publish(&mut first.http(), "3").status == 200
        });
        drop(listener);
        for node in [&mut first, &mut second] {
            node.program.signal(Signal::TERM);
            assert_eq!(node.program.wait().code(), Some(0));
        }
    }
    let denied = redis.call(&["ACL", "LOG"]);
    assert!(denied.list().is_empty(), "{denied:?}");
}

#[test]
fn a_right_that_a_node_needs_and_its_user_has_not_is_named() {
    let Some(redis) = Redis::start() else { return };
    let words = readme_line();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let url = format!("redis://threadcast:PASSWORD@{}", redis.address);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("a.db");
    // A log that is there has to be enough: nothing is found out by beginning one.
    redis.call(&words);
    let mut node = Node::start_at(database.clone(), &url, &[]);
    node.await_connected();
    node.publish("lab", "1");
    node.kill();
    for word in &words[3..] {
        let (without, name) = match word.split_at(1) {
            // Whoever may not ask does without; there is nothing to select.
            ("+", "info" | "select") => continue,
            ("+", right) => (format!("-{right}"), right.replace('|', " ")),
            ("~", key) => {
                let fewer: Vec<_> = words.iter().filter(|it| *it != word).copied().collect();
                redis.call(&["ACL", "DELUSER", "threadcast"]);
                redis.call(&fewer);
                ("on".to_owned(), key.trim_end_matches('*').to_owned())
            }
            _ => continue,
        };
        redis.call(&["ACL", "SETUSER", "threadcast", &without]);
        let sentence = refused(&database, &url, &[]);
        assert_says(&sentence, &["user", &name, "README"]);
        redis.call(&words);
    }
    // Later it is waited for.
    node.restart();
    node.await_connected();
    redis.call(&["ACL", "SETUSER", "threadcast", "-xadd"]);
    let answer = try_publish(&mut node.http(), "refused");
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("can't run"), "{}", answer.text());
    assert!(!answer.text().contains("user_script"), "{}", answer.text());
    cut(&redis);
    node.await_disconnected();
    eventually("it says so", || node.log().contains("XADD"));
    redis.call(&words);
    node.await_connected();
    assert_eq!(node.publish("lab", "2"), 2);
}
