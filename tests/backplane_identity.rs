//! Which log it is: a node goes on with the log that it was in, and with no other.
//!
//! The story: after an update one of three nodes was started with a typing error in its key. It
//! began a log of its own, and for a day its clients and the others' did not hear of each other.
#![cfg(feature = "redis")]

mod common;

use std::path::Path;

use common::cluster::{Node, assert_says, contents, refused, single};
use common::eventually;
use common::redis::{Redis, Reply};

const LOG: &str = "{threadcast}:log";

/// A node that has published one message, and is gone.
fn gone(dir: &Path, redis: &Redis) -> Node {
    let mut node = Node::start(dir.join("a.db"), redis, &[]);
    node.await_connected();
    assert_eq!(node.publish("lab", "1"), 1);
    node.kill();
    node
}

fn identity(redis: &Redis) -> String {
    redis.call(&["HGET", LOG, "id"]).text().to_owned()
}

#[test]
fn a_mistyped_key_or_database_number_begins_no_second_log() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut node = gone(dir.path(), &redis);
    let elsewhere = format!("{}/3", redis.url());
    for (url, key, asked) in [
        (
            redis.url(),
            "threadcats",
            "none under \"threadcats\" of database 0",
        ),
        (
            elsewhere,
            "threadcast",
            "none under \"threadcast\" of database 3",
        ),
    ] {
        let sentence = refused(&node.database, &url, &["--backplane-key", key]);
        let was = "the key \"threadcast\" of database 0";
        assert_says(&sentence, &[was, asked, "--backplane-key", "--db"]);
    }
    let keyspace = redis.call(&["INFO", "keyspace"]).text().to_owned();
    assert!(!keyspace.contains("db3"), "it wrote something: {keyspace}");
    assert_eq!(redis.call(&["EXISTS", "threadcats"]), Reply::Number(0));
    node.restart();
    node.await_connected();
    assert_eq!(node.publish("lab", "2"), 2);
    // Where it was, a log that is gone begins anew.
    node.kill();
    let before = identity(&redis);
    redis.call(&["FLUSHALL"]);
    node.restart();
    node.await_connected();
    assert!(node.publish("lab", "3") > 1_000_000);
    assert_eq!(identity(&redis), before);
}

#[test]
fn a_log_that_does_not_say_where_it_was_begun_is_gone_on_with_as_before() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    gone(dir.path(), &redis);
    redis.call(&["HSET", LOG, "id", "0123456789abcdef"]);
    let mut node = Node::start(dir.path().join("b.db"), &redis, &[]);
    node.await_head(1);
    assert_eq!(node.publish("lab", "2"), 2);
    node.kill();
    let moved = Node::start(node.database.clone(), &redis, &["--backplane-key", "other"]);
    moved.await_connected();
    assert!(moved.publish("lab", "3") > 1_000_000);
    assert!(
        moved.log().contains("no log any more"),
        "it is not said: {}",
        moved.log()
    );
}

#[test]
fn a_first_node_that_never_reached_its_log_may_begin_it_under_another_key() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("first.db");
    drop(single(&database, &["1"]));
    redis.kill();
    let mut mistyped = Node::start(database.clone(), &redis, &["--backplane-key", "threadcats"]);
    assert!(!mistyped.is_connected());
    mistyped.kill();
    redis.restart();
    let node = Node::start(database, &redis, &[]);
    node.await_connected();
    assert_eq!(node.publish("lab", "2"), 2);
    assert_eq!(contents(&node.history()), ["1", "2"]);
    let identity = identity(&redis);
    assert!(identity.ends_with("/0/threadcast"), "{identity}");
}

#[test]
fn a_log_without_its_hash_is_known_for_one_and_what_to_do_is_said() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut node = gone(dir.path(), &redis);
    let identity = identity(&redis);
    redis.call(&["DEL", LOG]);
    let sentence = refused(&dir.path().join("new.db"), &redis.url(), &[]);
    assert_says(&sentence, &[LOG, "gone", "DEL"]);
    assert!(!sentence.contains("another program"), "{sentence}");
    let sentence = refused(&node.database, &redis.url(), &[]);
    assert_says(&sentence, &[LOG, "gone", "HSET", &identity]);
    // What is said, done.
    let told = |command: &str| {
        let from = sentence.find(command).expect("a command");
        let words = sentence[from..].split(';').next().expect("its end");
        let words = words.split_whitespace().map(|word| word.trim_matches('"'));
        redis.call(&words.collect::<Vec<_>>());
    };
    told("HSET");
    node.restart();
    node.await_connected();
    assert!(node.publish("lab", "2") > 1);
    // A node that runs says it, too, and is not ended by it.
    redis.call(&["DEL", LOG]);
    common::cluster::try_publish(&mut node.http(), "unheard");
    node.await_disconnected();
    eventually("it says so", || node.log().contains("is gone"));
    told("DEL");
    node.await_connected();
    assert!(node.publish("lab", "3") > 1_000_000);
    assert_eq!(contents(&node.history()), ["1", "2", "3"]);
}

#[test]
fn a_log_of_a_later_version_is_said_and_left_alone() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let node = gone(dir.path(), &redis);
    redis.call(&["HSET", LOG, "version", "2"]);
    let entries = redis.call(&["XLEN", "threadcast"]);
    for database in [&node.database, &dir.path().join("new.db")] {
        let sentence = refused(database, &redis.url(), &[]);
        assert_says(&sentence, &["version 2", "up to 1", "newer"]);
    }
    assert_eq!(redis.call(&["XLEN", "threadcast"]), entries);
}
