//! A Redis that a node cannot or must not use: one clear sentence, and it ends, before it has
//! changed anything.
//!
//! The story: a server was pointed at the cache of another program, and added to one of its
//! streams.
#![cfg(feature = "redis")]

mod common;

use std::path::Path;

use common::cli::threadcast;
use common::cluster::{Cluster, Node, assert_says, refused, try_publish};
use common::eventually;
use common::redis::{Redis, Reply, pretend};

#[test]
fn a_wrong_password_or_none_is_said_and_the_right_one_is_taken() {
    let Some(redis) = Redis::start_locked("right-s3cret") else {
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("a.db");
    let address = redis.address;
    for user in [":wrong-s3cret@", "", "nobody:right-s3cret@"] {
        let sentence = refused(&database, &format!("redis://{user}{address}"), &[]);
        assert_says(&sentence, &["password", &address.to_string()]);
    }
    let node = Node::start(database, &redis, &[]);
    node.await_connected();
    assert_eq!(node.publish("lab", "x"), 1);
    assert!(!node.log().contains("s3cret"), "{}", node.log());
    let health = node.health().to_string();
    assert!(!health.contains("s3cret"), "{health}");
}

#[test]
fn a_redis_too_old_for_streams_is_said_with_its_version_and_the_least_one() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let url = format!("redis://{}", pretend("4.0.14"));
    let sentence = refused(&dir.path().join("a.db"), &url, &[]);
    assert_says(&sentence, &["4.0.14", "5.0"]);
}

/// The name of the stream, from a node that has made it; Redis is empty again.
fn stream_of(redis: &Redis, dir: &Path) -> String {
    let node = Node::start(dir.join("for_its_name.db"), redis, &[]);
    node.await_connected();
    node.publish("lab", "x");
    drop(node);
    let stream = redis.stream();
    redis.call(&["FLUSHALL"]);
    stream
}

#[test]
fn a_key_of_another_type_under_the_streams_name_is_said_and_left_alone() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let stream = stream_of(&redis, dir.path());
    redis.call(&["SET", &stream, "of somebody else"]);
    let sentence = refused(&dir.path().join("a.db"), &redis.url(), &[]);
    assert_says(&sentence, &[&stream, "string", "--backplane-key"]);
    assert_eq!(redis.call(&["GET", &stream]).text(), "of somebody else");
    assert_eq!(
        redis.call(&["DBSIZE"]),
        Reply::Number(1),
        "it wrote something"
    );
}

#[test]
fn a_stream_of_another_program_is_said_and_left_alone() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let stream = stream_of(&redis, dir.path());
    redis.call(&["XADD", &stream, "*", "temperature", "21.5"]);
    let sentence = refused(&dir.path().join("a.db"), &redis.url(), &[]);
    assert_says(&sentence, &[&stream, "--backplane-key"]);
    assert_eq!(redis.call(&["XLEN", &stream]), Reply::Number(1));
    assert_eq!(
        redis.call(&["DBSIZE"]),
        Reply::Number(1),
        "it wrote something"
    );
    // Under another name there is room for both.
    let node = Node::start(
        dir.path().join("a.db"),
        &redis,
        &["--backplane-key", "ours"],
    );
    node.await_connected();
    assert_eq!(node.publish("lab", "x"), 1);
}

#[test]
fn a_foreign_entry_in_the_middle_of_the_stream_disturbs_no_other() {
    let Some(redis) = Redis::start() else { return };
    let cluster = Cluster::of(redis);
    let mut listener = cluster.nodes[1].subscribe("lab");
    cluster.nodes[0].publish("lab", "before");
    let stream = cluster.redis.stream();
    // What somebody may try by hand: an id of the clock's would take all others' place, so it
    // is one behind the newest.
    cluster
        .redis
        .call(&["XADD", &stream, "1-77", "temperature", "21.5"]);
    eventually("the others go on", || {
        try_publish(&mut cluster.nodes[0].http(), "after").status == 200
    });
    assert_eq!(listener.next_message()["content"], "before");
    assert_eq!(listener.next_message()["content"], "after");
    assert_eq!(cluster.history().len(), 2);
    let said = |node: &Node| node.log().contains("1-77");
    eventually("each says what it found", || cluster.nodes.iter().all(said));
}

#[test]
fn a_node_of_another_log_is_told_so_and_neither_log_is_changed() {
    let Some(redis) = Redis::start() else { return };
    let Some(elsewhere) = Redis::start() else {
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ours = Node::start(dir.path().join("ours.db"), &redis, &[]);
    ours.await_connected();
    ours.publish("lab", "ours");
    let mut theirs = Node::start(dir.path().join("theirs.db"), &elsewhere, &[]);
    theirs.await_connected();
    theirs.publish("lab", "theirs");
    theirs.kill();
    let sentence = refused(&theirs.database, &redis.url(), &[]);
    assert_says(&sentence, &["another log", "--db"]);
    assert_eq!(ours.publish("lab", "ours again"), 2);
    assert_eq!(ours.history().len(), 2);
    theirs.restart();
    theirs.await_connected();
    assert_eq!(theirs.history().len(), 1);
    assert_eq!(theirs.publish("lab", "theirs again"), 2);
}

#[test]
fn a_single_server_with_messages_of_its_own_cannot_join_a_log_that_has_others() {
    let Some(redis) = Redis::start() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let first = Node::start(dir.path().join("first.db"), &redis, &[]);
    first.await_connected();
    first.publish("lab", "1");
    let single = common::Program::start(&dir.path().join("single.db"), &[]);
    single.http().publish("lab", "another 1");
    drop(single);
    let sentence = refused(&dir.path().join("single.db"), &redis.url(), &[]);
    assert_says(&sentence, &["--db"]);
    assert_eq!(first.publish("lab", "2"), 2);
}

#[test]
fn a_url_that_is_none_is_said_before_anything_is_opened() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for url in [
        "localhost",
        "http://localhost",
        "redis://",
        "redis://local host",
    ] {
        let database = dir.path().join("a.db");
        let mut command = threadcast(&["serve", "--listen", "127.0.0.1:0", "--backplane", url]);
        let run = command
            .arg("--db")
            .arg(&database)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(!run.status.success(), "{url}: {said}");
        assert!(
            said.contains("redis://") && said.contains("backplane"),
            "{url}: {said}"
        );
        assert!(!database.exists(), "{url}");
    }
}

#[cfg(not(feature = "tls"))]
#[test]
fn tls_to_redis_without_the_feature_is_said() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sentence = refused(&dir.path().join("a.db"), "rediss://localhost", &[]);
    assert_says(&sentence, &["rediss://", "tls"]);
}

#[test]
fn a_redis_that_is_not_there_yet_is_waited_for() {
    let Some(mut redis) = Redis::start() else {
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    redis.kill();
    let node = Node::start(dir.path().join("a.db"), &redis, &[]);
    assert!(!node.is_connected());
    let answer = try_publish(&mut node.http(), "too early");
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.header("Retry-After").is_some());
    assert!(node.history().is_empty());
    let mut listener = node.subscribe("lab");
    redis.restart();
    node.await_connected();
    assert_eq!(node.publish("lab", "in time"), 1);
    assert_eq!(listener.next_message()["content"], "in time");
}
