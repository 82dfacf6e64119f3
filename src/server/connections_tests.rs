//! What the limits of connections promise, with addresses that no machine of a test has.

use std::net::{TcpListener, TcpStream};

use super::*;

const SHARED: &str = "198.51.100.7";

fn connections(max: usize, max_per_address: usize) -> Arc<Connections> {
    let limits = Limits {
        max_connections: max,
        max_connections_per_address: max_per_address,
        ..Limits::default()
    };
    Connections::new(&limits, &[], Arc::default())
}

/// Any open socket does.
fn stream() -> Arc<Stream> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    Arc::new(TcpStream::connect(address).expect("a connection").into())
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn the_machine_itself_is_exempt_and_a_host_is_one_whatever_it_calls_itself() {
    for exempt in ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"] {
        assert_eq!(counted_as(ip(exempt)), None, "{exempt}");
    }
    for (peer, counted) in [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::", "2001:db8:1:2::"),
        ("2001:db8:1:3::1", "2001:db8:1:3::"),
    ] {
        assert_eq!(counted_as(ip(peer)), Some(ip(counted)), "{peer}");
    }
}

#[test]
fn one_address_has_so_many_and_no_more_until_one_of_them_ends() {
    let (connections, stream) = (connections(100, 2), stream());
    let admit = |peer| connections.admit(&stream, ip(peer));
    let first = admit(SHARED).expect("a place");
    let _second = admit("::ffff:198.51.100.7").expect("a place");
    for _ in 0..3 {
        let problem = admit(SHARED).expect_err("the limit");
        assert_eq!(problem.status, 429);
        for part in ["2 connections", "--max-connections-per-address"] {
            assert!(problem.detail.contains(part), "{problem}");
        }
    }
    let _other = admit("198.51.100.8").expect("another address");
    let _here: Vec<_> = (0..5)
        .map(|_| admit("127.0.0.1").expect("exempt"))
        .collect();
    drop(first);
    let _third = admit(SHARED).expect("a place again");
    assert_eq!(connections.usage.refused.per_address.total(), 3);
    assert_eq!(connections.usage.refused.connections.total(), 0);
}

#[test]
fn an_address_is_forgotten_with_its_last_connection() {
    let (connections, stream) = (connections(100, 2), stream());
    let peers = [SHARED, SHARED, "2001:db8::1", "2001:db8::2", "127.0.0.1"];
    let open: Vec<_> = peers
        .iter()
        .map(|peer| connections.admit(&stream, ip(peer)).expect("a place"))
        .collect();
    let addresses = || connections.lock().by_address.len();
    assert_eq!(addresses(), 2);
    let open_now = || connections.usage.connections.load(Ordering::Relaxed);
    assert_eq!(open_now(), 5);
    drop(open);
    assert_eq!(addresses(), 0);
    assert_eq!(open_now(), 0);
}

#[test]
fn a_connection_refused_for_the_total_takes_nothing_of_its_address() {
    let (connections, stream) = (connections(1, 1), stream());
    let here = connections.admit(&stream, ip("::1")).expect("a place");
    let problem = connections.admit(&stream, ip(SHARED));
    assert_eq!(problem.expect_err("the limit").status, 503);
    assert_eq!(connections.usage.refused.connections.total(), 1);
    drop(here);
    let _there = connections.admit(&stream, ip(SHARED)).expect("a place");
}
