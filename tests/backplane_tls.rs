//! A Redis that speaks TLS (`rediss://`), known by its certificate, and knowing its nodes by theirs.
//!
//! The story: the log went over the network of a hoster, password and messages in plain.
#![cfg(all(feature = "redis", feature = "tls"))]

mod common;

use std::fs;
use std::path::PathBuf;

use common::cluster::{Node, assert_says, contents, refused};
use common::eventually;
use common::identity::{Identity, write_for_owner};
use common::redis::Redis;

/// A file with an identity's certificate and key.
fn both(identity: &Identity) -> String {
    both_of(identity.tls().each_ref())
}

/// A file with both of these, in the directory of the second.
fn both_of(files: [&PathBuf; 2]) -> String {
    let pem = files.map(|file| fs::read_to_string(file).expect("text"));
    let path = files[1].with_file_name("both.pem");
    write_for_owner(&path, &pem.concat());
    path.display().to_string()
}

#[test]
fn nodes_share_a_log_over_tls_and_find_it_again() {
    let own = Identity::of("node");
    let Some((mut redis, port)) = Redis::start_tls(&own) else {
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (cacert, cert) = (port.identity.root(), both(&own));
    let flags = ["--backplane-cacert", &cacert, "--backplane-cert", &cert];
    let nodes =
        ["a.db", "b.db"].map(|name| Node::start_at(dir.path().join(name), &port.url, &flags));
    for node in &nodes {
        node.await_connected();
    }
    let mut listener = nodes[1].subscribe("lab");
    let large = "x".repeat(200 << 10);
    for content in ["one", &large, "two"] {
        nodes[0].publish("lab", content);
        assert_eq!(listener.next_message()["content"], content);
    }
    redis.kill();
    for node in &nodes {
        node.await_disconnected();
    }
    redis.restart();
    for node in &nodes {
        node.await_connected();
    }
    nodes[1].publish("lab", "three");
    eventually("the other one has it", || nodes[0].history().len() == 4);
    assert_eq!(contents(&nodes[0].history())[3], "three");
}

#[test]
fn a_redis_that_is_not_known_or_does_not_know_the_node_is_said() {
    let own = Identity::of("node");
    let Some((_redis, port)) = Redis::start_tls(&own) else {
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("a.db");
    let (cacert, cert) = (port.identity.root(), both(&own));
    let (stranger, plain) = (
        Identity::of("stranger"),
        port.url.replace("rediss", "redis"),
    );
    let other = Identity::of("other");
    let mixed = both_of([&own.tls()[0], &other.tls()[1]]);
    let key = stranger.tls()[1].display().to_string();
    for (flags, url, words) in [
        (
            &[
                "--backplane-cacert",
                &stranger.root(),
                "--backplane-cert",
                &cert,
            ][..],
            &port.url,
            &["certificate"][..],
        ),
        (
            &["--backplane-cacert", &cacert],
            &port.url,
            &["certificate"],
        ),
        (
            &[
                "--backplane-cacert",
                &cacert,
                "--backplane-cert",
                &both(&stranger),
            ],
            &port.url,
            &["alert", "--backplane-cert"],
        ),
        (
            &["--backplane-cacert", "/no/such"],
            &port.url,
            &["--backplane-cacert", "/no/such"],
        ),
        (
            &["--backplane-cacert", &key],
            &port.url,
            &["--backplane-cacert", &key, "no certificate"],
        ),
        (
            &["--backplane-cert", &cacert],
            &port.url,
            &["--backplane-cert", &cacert, "no private key"],
        ),
        (
            &["--backplane-cert", &mixed],
            &port.url,
            &["--backplane-cert", &mixed, "do not go together"],
        ),
        (
            &["--backplane-cacert", &cacert],
            &plain,
            &["--backplane-cacert", "rediss://"],
        ),
    ] {
        assert_says(&refused(&database, url, flags), words);
    }
}
