//! Feeds when much happens at once: nobody ends on an old state, nobody holds up the others or
//! fills the memory, and a restart, even by `kill -9`, takes nothing back.

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::{Http, Program, Response, TestServer, Ws, both_stores, eventually};
use rustix::net::sockopt::set_socket_linger;
use rustix::process::Signal;
use serde_json::{Value, json};
use threadcast::config::{Config, Database};
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;

#[test]
fn a_thousand_connects_among_a_thousand_changes_all_end_on_the_newest_state() {
    const CONNECTORS: usize = 4;
    const CONNECTS: usize = 250;
    // Most of them answer no ping for as long as this takes.
    let patience = |config: &mut Config| config.limits.ping_interval = Duration::from_secs(3_600);
    for server in both_stores(patience) {
        let connecting = AtomicUsize::new(CONNECTORS);
        let (newest, clients) = thread::scope(|scope| {
            let publisher = scope.spawn(|| {
                let mut http = server.http();
                let mut rev = 0;
                while rev < 1_000 || connecting.load(Ordering::Relaxed) > 0 {
                    rev += 1;
                    assert_eq!(http.put_state("x", &rev.to_string())["rev"], rev);
                }
                rev
            });
            let connectors = [(); CONNECTORS].map(|()| {
                scope.spawn(|| {
                    let mut http = server.http();
                    eventually("it has begun", || http.state("x")["rev"] != 0);
                    let connect = |_| server.subscribe_feed("x");
                    let clients: Vec<Ws> = (0..CONNECTS).map(connect).collect();
                    connecting.fetch_sub(1, Ordering::Relaxed);
                    clients
                })
            });
            let clients: Vec<Ws> = connectors
                .into_iter()
                .flat_map(|thread| thread.join().expect("a connector"))
                .collect();
            (publisher.join().expect("the publisher"), clients)
        });

        assert_eq!(clients.len(), CONNECTORS * CONNECTS);
        let mut between = 0;
        for mut client in clients {
            let revs = revs_until(&mut client, newest);
            between += usize::from(revs[0] > 0 && revs[0] < newest);
            client.is_quiet();
        }
        assert!(between > 100, "only {between} came among the changes");
    }
}

/// No further change helps out whoever would fall between the state of before and the next one.
#[test]
fn whoever_connects_while_the_state_changes_once_has_the_new_one_at_once_or_next() {
    const CHANGES: u64 = 250;
    const CONNECTORS: usize = 8;
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        for newest in 1..=CHANGES {
            let start = Barrier::new(1 + CONNECTORS);
            thread::scope(|scope| {
                for _ in 0..CONNECTORS {
                    scope.spawn(|| {
                        start.wait();
                        revs_until(&mut server.subscribe_feed("x"), newest);
                    });
                }
                start.wait();
                http.put_state("x", &newest.to_string());
            });
        }
    }
}

/// Reads up to a revision; panics unless revisions ascend to it, each with the state of its number.
fn revs_until(client: &mut Ws, newest: u64) -> Vec<u64> {
    let mut revs = Vec::new();
    while revs.last() != Some(&newest) {
        let frame = client.next();
        let rev = rev(&frame);
        assert!(revs.last() < Some(&rev), "{frame} after {revs:?}");
        assert!(rev <= newest, "{frame} after {newest}, the last");
        if rev > 0 {
            assert_eq!(frame["data"], rev, "{frame}");
        }
        revs.push(rev);
    }
    revs
}

#[test]
fn publishers_that_race_on_a_feed_get_revisions_of_their_own_and_subscribers_hear_them_ascend() {
    const PUBLISHERS: u64 = 4;
    const STATES: u64 = 150;
    for server in both_stores(|_| {}) {
        let listeners = [(); 3].map(|()| server.subscribe_feed("x"));
        let (answers, heard) = thread::scope(|scope| {
            let publishers: Vec<_> = (0..PUBLISHERS)
                .map(|publisher| {
                    let mut http = server.http();
                    scope.spawn(move || {
                        let states = (0..STATES).map(|n| json!([publisher, n]));
                        let put = |state: Value| {
                            let answer = http.put_state("x", &state.to_string());
                            assert_eq!(answer["changed"], true, "{answer}");
                            (rev(&answer), state)
                        };
                        states.map(put).collect::<Vec<_>>()
                    })
                })
                .collect();
            let listeners = listeners.map(|mut listener| {
                scope.spawn(move || {
                    let mut heard = Vec::new();
                    while heard
                        .last()
                        .is_none_or(|(rev, _)| *rev < PUBLISHERS * STATES)
                    {
                        let mut frame = listener.next();
                        heard.push((rev(&frame), frame["data"].take()));
                    }
                    listener.is_quiet();
                    heard
                })
            });
            let join = |thread: thread::ScopedJoinHandle<'_, Vec<(u64, Value)>>| {
                let answers = thread.join().expect("a publisher");
                let ascending = answers.is_sorted_by(|one, next| one.0 < next.0);
                assert!(
                    ascending,
                    "whoever waits for the answer is not overtaken by itself"
                );
                answers
            };
            let answers: Vec<_> = publishers.into_iter().flat_map(join).collect();
            let heard = listeners.map(|thread| thread.join().expect("a listener"));
            (answers, heard)
        });

        let mut by_rev: BTreeMap<u64, Value> = answers.iter().cloned().collect();
        assert_eq!(by_rev.len(), answers.len(), "a revision was given twice");
        assert!(by_rev.keys().copied().eq(1..=PUBLISHERS * STATES));
        by_rev.insert(0, Value::Null);
        for heard in heard {
            assert!(heard.is_sorted_by(|one, next| one.0 < next.0));
            for (rev, state) in &heard {
                assert_eq!(*state, by_rev[rev], "revision {rev}");
            }
        }
        let last = by_rev
            .last_key_value()
            .map(|(rev, state)| (*rev, state.clone()));
        let got = server.http().state("x");
        assert_eq!(Some((rev(&got), got["data"].clone())), last);
    }
}

#[test]
fn a_subscriber_that_does_not_read_costs_no_memory_and_nobody_else_a_state() {
    const CHANGES: u64 = 10_000;
    const RUN_IN: u64 = 300;
    const MAX_GROWTH: u64 = 8 << 20;
    let program = Program::start(Path::new(":memory:"), &["--write-timeout", "10m"]);
    let mut idle = program.subscribe_feed("x");
    let mut reader = program.subscribe_feed("x");
    assert_eq!(rev(&reader.next()), 0);

    let mut http = program.http();
    let padding = "x".repeat(100 << 10);
    let mut after_run_in = 0;
    for n in 1..=CHANGES {
        let state = format!(r#"{{"number":{n},"padding":"{padding}"}}"#);
        assert_eq!(rev(&http.put_state("x", &state)), n);
        // It reads, and so has every state, whatever the other one does not take.
        let frame = reader.next_text();
        assert!(frame.contains(&format!("\"number\":{n},")), "not state {n}");
        if n == RUN_IN {
            after_run_in = program.peak_memory();
        } else if n > RUN_IN && n % 100 == 0 {
            let grown = program.peak_growth(after_run_in);
            assert!(
                grown < MAX_GROWTH,
                "{grown} bytes for one that does not read"
            );
        }
    }

    let mut revs = Vec::new();
    while revs.last() != Some(&CHANGES) {
        let frame = idle.next();
        let rev = rev(&frame);
        assert!(revs.last() < Some(&rev), "{rev} after {revs:?}");
        assert!(rev == 0 || frame["data"]["number"] == rev, "revision {rev}");
        revs.push(rev);
    }
    assert!(
        revs.len() as u64 <= CHANGES / 2,
        "{} states were kept for it",
        revs.len()
    );
    idle.is_quiet();
    reader.is_quiet();
}

#[test]
fn a_restart_keeps_states_and_revisions_and_the_next_change_goes_on_from_there() {
    for signal in [Signal::TERM, Signal::KILL] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let database = dir.path().join("feeds.db");
        let state = |round: u64| format!(r#"{{"z":{round}.10,"a":[12345678901234567890123]}}"#);
        let mut before: Vec<(&str, String)> = Vec::new();
        for round in 0..4 {
            let mut program = Program::start(&database, &[]);
            let mut http = program.http();
            for (feed, said) in &before {
                assert_eq!(
                    program.subscribe_feed(feed).next_text(),
                    *said,
                    "{signal:?}"
                );
                assert_eq!(http.get(&format!("/api/state/{feed}")).text(), *said);
            }
            let mut client = program.subscribe_feed("x");
            client.next();
            if round > 0 {
                let same = http.put_state("x", &format!(" {}", state(round - 1)));
                assert_eq!(same["changed"], false, "{signal:?}");
            }
            http.put_state("x", &round.to_string());
            assert_eq!(rev(&client.next()), 2 * round + 1);
            http.put_state("x", &state(round));
            assert_eq!(rev(&client.next()), 2 * round + 2);
            http.put_state("workflows", &format!(r#"[{{"id":{round}}}]"#));
            before = ["x", "workflows", "workflow-history", "never-published"]
                .map(|feed| (feed, http.get(&format!("/api/state/{feed}")).text()))
                .into();
            // Its farewell would be waited for.
            drop(client);
            program.signal(signal);
            program.wait();
        }
    }
}

#[test]
fn after_kill_9_under_load_every_acknowledged_state_is_the_last_one_or_was_followed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("killed.db");
    let mut acknowledged = 0;
    for _ in 0..4 {
        let mut program = Program::start(&database, &[]);
        let mut listener = program.subscribe_feed("x");
        let last = rev(&listener.next());
        // One more may have been committed whose answer the end cut off.
        assert!(
            (acknowledged..=acknowledged + 1).contains(&last),
            "{last} after {acknowledged}"
        );
        let address = program.address;
        let publisher = thread::spawn(move || {
            let mut acknowledged = last;
            let mut http = Http::connect(address);
            while let Some(answer) = try_put(&mut http, acknowledged + 1) {
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert_eq!(rev(&answer.json()), acknowledged + 1);
                acknowledged += 1;
            }
            acknowledged
        });
        while rev(&listener.next()) < last + 200 {}
        program.kill();
        let mut heard = 0;
        while let Ok(Message::Text(text)) = listener.read() {
            heard = rev(&serde_json::from_str(&text).expect("JSON"));
        }
        acknowledged = publisher.join().expect("the publisher");

        let program = Program::start(&database, &[]);
        let stored = program.http().state("x");
        assert!(
            rev(&stored) >= acknowledged.max(heard),
            "{stored} after {acknowledged}, {heard} was heard"
        );
        assert_eq!(
            stored["data"],
            rev(&stored),
            "a state and its revision belong together"
        );
    }
}

/// Puts a number to the feed `x`; `None` when the connection ends before the answer.
fn try_put(http: &mut Http, state: u64) -> Option<Response> {
    let body = state.to_string();
    let request = format!(
        "PUT /api/state/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    http.stream.write_all(request.as_bytes()).ok()?;
    http.try_response(false)
}

#[test]
fn a_shutdown_among_changes_delivers_what_was_acknowledged_and_closes_with_1001() {
    for mut server in both_stores(|_| {}) {
        let address = server.address;
        let clients: Vec<_> = (0..20)
            .map(|_| server.subscribe_feed("x"))
            .map(|client| thread::spawn(move || hear_until_closed(client)))
            .collect();
        let mut watcher = server.subscribe_feed("x");
        let publisher = thread::spawn(move || {
            let mut acknowledged = 0;
            let mut http = Http::connect(address);
            while let Some(answer) = try_put(&mut http, acknowledged + 1)
                && answer.status == 200
            {
                acknowledged += 1;
            }
            acknowledged
        });
        while rev(&watcher.next()) < 50 {}
        let watcher = thread::spawn(move || {
            let (last, code) = hear_until_closed(watcher);
            // Nothing may have come after what it has heard already.
            (last.max(50), code)
        });
        server.shutdown();
        let acknowledged = publisher.join().expect("the publisher");
        for client in clients.into_iter().chain([watcher]) {
            let (last, code) = client.join().expect("a client");
            assert_eq!(code, Some(1001));
            assert!(
                last >= acknowledged,
                "{last} was the last, {acknowledged} acknowledged"
            );
        }
    }
}

/// The last revision before the server's close, and its code.
fn hear_until_closed(mut client: Ws) -> (u64, Option<u16>) {
    let mut last = 0;
    loop {
        match client.read().expect("a close frame before the end") {
            Message::Text(text) => last = rev(&serde_json::from_str(&text).expect("JSON")),
            Message::Close(frame) => return (last, frame.map(|frame| frame.code.into())),
            _ => {}
        }
    }
}

#[test]
fn whoever_comes_back_again_and_again_starts_with_the_newest_state() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let on_the_same_file = || {
        let database = Database::File(dir.path().join("same.db"));
        TestServer::start_with(|config| config.database = database)
    };
    let mut newest = 0;
    for _ in 0..5 {
        let server = on_the_same_file();
        let mut http = server.http();
        let mut vanished = Vec::new();
        for goodbye in 0..40 {
            let mut client = server.subscribe_feed("x");
            let first = client.next();
            assert_eq!(rev(&first), newest, "{first}");
            newest = rev(&http.put_state("x", &(newest + 1).to_string()));
            match goodbye % 4 {
                // A polite close, after having heard the change.
                0 => {
                    assert_eq!(client.next()["data"], newest);
                    let goodbye = CloseFrame {
                        code: CloseCode::Normal,
                        reason: "bye".into(),
                    };
                    client.socket.close(Some(goodbye)).expect("a close frame");
                    assert_eq!(client.close_code(), Some(1000));
                }
                // A FIN.
                1 => drop(client),
                // A reset.
                2 => set_socket_linger(client.socket.get_ref(), Some(Duration::ZERO))
                    .expect("a linger"),
                // Nothing: the peer is gone and nobody says so.
                _ => vanished.push(client),
            }
        }
        let mut client = server.subscribe_feed("x");
        assert_eq!(client.next()["data"], newest);
        for mut client in vanished {
            revs_until(&mut client, newest);
        }
    }
}

#[test]
fn a_socket_that_takes_no_byte_is_given_up_and_its_feed_goes_on() {
    let server = TestServer::start_with(|config| {
        config.limits.write_timeout = Duration::from_millis(300);
    });
    let mut stalled = server.subscribe_feed("x");
    let mut reader = server.subscribe_feed("x");
    assert_eq!(rev(&reader.next()), 0);
    let mut http = server.http();
    let padding = "x".repeat(200 << 10);
    let mut newest = 0;
    loop {
        newest += 1;
        let answer = http.put_state("x", &format!(r#"[{newest},"{padding}"]"#));
        assert_eq!(reader.next()["data"][0], newest);
        if answer["subscribers"] == 1 {
            break;
        }
        assert!(newest < 2_000, "the socket took 400 MB and more");
    }
    // What the socket had taken may still be read; then the connection is reset.
    let mut heard = 0;
    while let Ok(Message::Text(_)) = stalled.read() {
        heard += 1;
    }
    assert!(heard < newest);
}

fn rev(object: &Value) -> u64 {
    object["rev"].as_u64().expect("a revision")
}
