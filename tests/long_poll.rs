//! `GET /api/messages?since=…&wait=…`: who asks for what comes next is answered when it comes.
//!
//! The story: a long poll that sits in a request handler takes the place of everybody else's
//! request, and the message that it waits for can no longer be published.

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use common::tokens::{Tokens, bearer};
use common::{Http, Program, TestServer, both_stores, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use threadcast::access::Scope::{Publish, Subscribe};

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn ask(http: &mut Http, query: &str) {
    http.send(format!(
        "GET /api/messages?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    ));
}

/// Sends a request that waits, on a connection that is served already.
fn waiting(mut http: Http, query: &str) -> Http {
    assert_eq!(http.get("/api/health").status, 200);
    ask(&mut http, query);
    http
}

fn page(http: &mut Http) -> Value {
    let answer = http.response(false);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn ids(page: &Value) -> Vec<u64> {
    let messages = page["messages"].as_array().expect("a list").iter();
    messages
        .map(|message| message["id"].as_u64().expect("an id"))
        .collect()
}

#[test]
fn what_is_there_is_answered_at_once_and_what_is_not_when_it_comes() {
    for server in both_stores(|_| {}) {
        server.publish("lab", "1");
        let mut http = server.http();
        ask(&mut http, "since=0&wait=60");
        assert_eq!(ids(&page(&mut http)), [1]);
        let mut of_lab = waiting(server.http(), "channel_id=lab&since=1&wait=60");
        let mut of_any = waiting(server.http(), "since=1&wait=60&limit=5");
        let mut of_later = waiting(server.http(), "channel_id=lab&since=3&wait=60");
        server.publish("other", "2");
        let found = page(&mut of_any);
        assert_eq!((ids(&found), &found["head"]), (vec![2], &json!(2)));
        // The other channel's message was none for this one: it is still open.
        server.publish("lab", "3");
        assert_eq!(ids(&page(&mut of_lab)), [3]);
        server.publish("lab", "4");
        assert_eq!(ids(&page(&mut of_later)), [4]);
        // The connection goes on.
        assert_eq!(of_lab.get("/api/health").status, 200);
        let body = json!({"feed": "no message"}).to_string();
        let mut again = waiting(server.http(), "since=4&wait=60");
        assert_eq!(server.http().put("/api/state/board", &body).status, 200);
        server.publish("x", "5");
        assert_eq!(ids(&page(&mut again)), [5]);
    }
}

#[test]
fn when_nothing_comes_the_page_is_empty_after_the_wait_and_tells_the_head() {
    for server in both_stores(|_| {}) {
        server.publish("other", "1");
        let start = Instant::now();
        let mut http = waiting(server.http(), "channel_id=lab&since=0&wait=1");
        assert_eq!(page(&mut http), json!({"messages": [], "head": 1}));
        assert!(start.elapsed() >= Duration::from_secs(1));
    }
}

#[test]
fn a_wait_that_cannot_be_is_refused_and_none_is_none() {
    let server = TestServer::start();
    let mut http = server.http();
    for (query, field) in [
        ("wait=10", "wait"),
        ("since=0&before=9&wait=10", "wait"),
        ("since=0&wait=61", "wait"),
        ("since=0&wait=-1", "wait"),
        ("since=0&wait=", "wait"),
        ("since=x&wait=60", "since"),
        ("since=0&wait=60&limit=0", "limit"),
        ("since=0&wait=60&channel_id=", "channel_id"),
    ] {
        let answer = http.get(&format!("/api/messages?{query}"));
        assert_eq!(answer.status, 422, "{query}: {}", answer.text());
        assert_eq!(answer.json()["field"], field, "{query}");
    }
    let empty = json!({"messages": [], "head": 0});
    ask(&mut http, "since=0&wait=0");
    assert_eq!(page(&mut http), empty);
    let head = http.request("HEAD", "/api/messages?since=0&wait=60", &[], b"");
    assert_eq!(head.status, 200);
}

#[test]
fn any_number_that_wait_hold_up_no_other_request() {
    let server = TestServer::start_with(|config| config.limits.max_rest_requests = 1);
    let mut waiting: Vec<Http> = (0..100)
        .map(|number| {
            let query = ["since=1&wait=60", "channel_id=lab&since=1&wait=60"][number % 2];
            waiting(server.http(), query)
        })
        .collect();
    let mut http = server.http();
    for _ in 0..20 {
        assert_eq!(http.get("/api/health").status, 200);
        assert_eq!(http.get("/api/messages").status, 200);
        assert_eq!(http.put("/api/state/board", "1").status, 200);
    }
    let health = http.get("/api/health").json();
    assert_eq!(health["connections"], 0, "they are no subscribers");
    assert_eq!(http.publish("other", "nobody waits for the first"), 1);
    assert_eq!(http.publish("lab", "hi"), 2);
    for http in &mut waiting {
        assert_eq!(ids(&page(http)), [2]);
    }
}

/// Each reader asks for what comes after its last message, while several publish: with a lost
/// wake-up one of them would wait beyond the deadline.
#[test]
fn whoever_follows_by_asking_again_gets_every_message_and_is_never_forgotten() {
    for server in both_stores(|_| {}) {
        thread::scope(|scope| {
            for name in ["lab", "log"] {
                let server = &server;
                scope.spawn(move || {
                    let mut http = server.http();
                    // One at a time: the next is published when the last was seen.
                    let (mut echo, mut since) = (server.http(), 0);
                    for _ in 0..150 {
                        let id = http.publish(name, "x");
                        ask(
                            &mut echo,
                            &format!("channel_id={name}&since={since}&wait=60"),
                        );
                        assert_eq!(ids(&page(&mut echo)), [id]);
                        since = id;
                    }
                });
            }
            for _ in 0..4 {
                let server = &server;
                scope.spawn(move || {
                    let (mut http, mut since) = (server.http(), 0);
                    while since < 300 {
                        ask(&mut http, &format!("since={since}&wait=60&limit=1000"));
                        let found = ids(&page(&mut http));
                        let expected: Vec<u64> = (since + 1..).take(found.len()).collect();
                        assert!(!found.is_empty(), "woken for nothing");
                        assert_eq!(found, expected);
                        since += found.len() as u64;
                    }
                });
            }
        });
    }
}

#[test]
fn a_client_that_goes_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = Program::start(&dir.path().join("test.db"), &[]);
    let mut http = program.http();
    http.publish("lab", "x");
    let before = program.threads_and_sockets();
    let clients: Vec<Http> = (0..20)
        .map(|_| waiting(program.http(), "since=1&wait=60"))
        .collect();
    eventually(
        "each waits with a thread, a socket and a wake handle",
        || program.threads_and_sockets() == (before.0 + 20, before.1 + 40),
    );
    for (number, client) in clients.into_iter().enumerate() {
        // With something unread on its way, too.
        if number % 2 == 0 {
            client.stream.shutdown(Shutdown::Write).expect("a socket");
        } else {
            (&client.stream)
                .write_all(b"GET / HTTP/1.1\r\n")
                .expect("a socket");
        }
    }
    eventually("all of it is gone", || {
        program.threads_and_sockets() == before
    });
    assert_eq!(http.publish("lab", "y"), 2);
}

#[test]
fn a_request_behind_one_that_waits_is_answered_after_it() {
    let server = TestServer::start();
    let mut http = waiting(server.http(), "since=0&wait=60");
    ask(&mut http, "since=1&wait=60");
    server.publish("lab", "1");
    assert_eq!(ids(&page(&mut http)), [1]);
    server.publish("lab", "2");
    assert_eq!(ids(&page(&mut http)), [2]);
}

#[test]
fn a_shutdown_answers_everybody_who_waits() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut program = Program::start(&dir.path().join("test.db"), &["--drain", "60s"]);
    let mut clients: Vec<Http> = (0..20)
        .map(|_| waiting(program.http(), "since=0&wait=60"))
        .collect();
    program.signal(Signal::TERM);
    for http in &mut clients {
        assert_eq!(page(http), json!({"messages": [], "head": 0}));
        assert!(http.closed());
    }
    assert_eq!(program.wait().code(), Some(0));
}

#[test]
fn a_token_is_asked_for_before_the_wait_and_its_end_ends_it() {
    let file = Tokens::new();
    let lab = bearer(&file.add("lab", &[Subscribe], &["lab"], &[]));
    let soon = bearer(&file.add_line("soon", &[Subscribe], &["lab"], &[], |line| {
        let end = time::OffsetDateTime::now_utc() + Duration::from_secs(2);
        let format = &time::format_description::well_known::Rfc3339;
        line.expires = Some(end.format(format).expect("a date"));
    }));
    let other = bearer(&file.add("other", &[Publish, Subscribe], &["*"], &[]));
    let server = TestServer::start_with(|config| config.tokens = Some(file.path.clone()));
    let target = "/api/messages?channel_id=lab&since=0&wait=60";
    let get = |headers: &[(&str, &str)], target: &str| {
        server.http().request("GET", target, headers, b"").status
    };
    assert_eq!(get(&[], target), 401);
    assert_eq!(
        get(&[("Authorization", &lab)], "/api/messages?since=0&wait=60"),
        403
    );
    assert_eq!(
        get(&[("Authorization", &lab)], &target.replace("lab", "log")),
        403
    );
    let with = |token: &str| {
        let mut http = server.http();
        http.send(format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\n\r\n"
        ));
        http
    };
    let (mut expiring, mut revoked, mut kept) = (with(&soon), with(&lab), with(&other));
    assert_eq!(expiring.response(false).status, 401, "it has expired");
    file.remove("lab");
    server.server().reload().expect("a file as it should be");
    assert_eq!(revoked.response(false).status, 401, "it was revoked");
    let body = json!({"channel_id": "lab", "author": "a", "content": "x"}).to_string();
    let headers = [JSON, ("Authorization", &other[..])];
    let answer = server
        .http()
        .request("POST", "/api/messages", &headers, body.as_bytes());
    assert_eq!(answer.status, 200);
    assert_eq!(ids(&page(&mut kept)), [1]);
}
