//! Several nodes behind a real load balancer, with the README's configuration.
//!
//! The story: a node was killed. Its publishers and subscribers came back through the load
//! balancer to the others, and were to notice no more than that.
#![cfg(feature = "redis")]

mod common;

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use common::cluster::{Cluster, contents, id};
use common::proxy::{Kind, Proxy};
use common::redis::Redis;
use common::system::skipped;
use common::{DEADLINE, Http, Ws, eventually};
use serde_json::json;
use tungstenite::Message;

const BEHIND: [&str; 4] = [
    "--trusted-proxy",
    "127.0.0.1",
    "--allow-origin",
    "https://board.example",
];

const ALL: u64 = 400;

#[test]
fn behind_a_load_balancer_the_end_of_a_node_loses_nothing_and_doubles_nothing() {
    if !Kind::Nginx.is_installed() {
        return skipped("there is no nginx");
    }
    let Some(redis) = Redis::start() else { return };
    let mut cluster = Cluster::of_with(redis, &BEHIND);
    let addresses: Vec<_> = cluster.nodes.iter().map(|it| it.program.address).collect();
    let proxy = Proxy::balancing(&addresses);
    let published = AtomicU64::new(0);
    thread::scope(|scope| {
        let subscribers: Vec<_> = (0..6)
            .map(|_| scope.spawn(|| follow(proxy.address)))
            .collect();
        for publisher in 0..2 {
            let (published, proxy) = (&published, proxy.address);
            scope.spawn(move || {
                for turn in 0..ALL / 2 {
                    publish_surely(proxy, &format!("{publisher}-{turn}"));
                    published.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        eventually("they publish", || {
            published.load(Ordering::Relaxed) > ALL / 3
        });
        cluster.nodes[1].kill();
        for subscriber in subscribers {
            let heard = subscriber.join().expect("a subscriber");
            assert_eq!(heard, (1..=ALL).collect::<Vec<_>>());
        }
    });
    cluster.nodes.remove(1);
    let history = cluster.history();
    let mut unique = contents(&history);
    unique.sort_unstable();
    unique.dedup();
    assert_eq!((history.len(), unique.len()), (ALL as usize, ALL as usize));
}

/// Repeats a message under its key until somebody has stored it.
fn publish_surely(proxy: SocketAddr, key: &str) {
    let body = json!({"channel_id": "lab", "author": "a", "content": key}).to_string();
    let headers = [
        ("Content-Type", "application/json"),
        ("Idempotency-Key", key),
    ];
    eventually("it is stored", || {
        let mut http = Http::connect(proxy);
        let answer = http.request("POST", "/api/messages", &headers, body.as_bytes());
        assert!(
            matches!(answer.status, 200 | 502..=504),
            "{}",
            answer.text()
        );
        answer.status == 200
    });
}

/// Comes back with its cursor, wherever it is sent, until it has all.
fn follow(proxy: SocketAddr) -> Vec<u64> {
    let mut ids: Vec<u64> = Vec::new();
    while ids.len() < ALL as usize {
        let since = ids.last().copied().unwrap_or(0);
        let Some(mut ws) = connect(proxy, since) else {
            thread::sleep(std::time::Duration::from_millis(20));
            continue;
        };
        while let Ok(Message::Text(text)) = ws.read() {
            let frame: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            match frame["type"].as_str() {
                Some("message") => ids.push(id(&frame["data"])),
                Some("caught_up") => {}
                _ => panic!("{frame} after {since}"),
            }
            if ids.len() == ALL as usize {
                break;
            }
        }
    }
    ids
}

/// `None` while the load balancer has nobody to send it to.
fn connect(proxy: SocketAddr, since: u64) -> Option<Ws> {
    let stream = TcpStream::connect(proxy).expect("the proxy accepts");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let url = format!("ws://localhost/api/ws/lab?since={since}");
    let (socket, _) = tungstenite::client(url, stream).ok()?;
    Some(Ws { socket })
}
