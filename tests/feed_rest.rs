//! Feeds over REST: what a PUT is answered, what a GET need not tell again, and every refusal, which
//! changes nothing and is heard by nobody.

mod common;

use std::thread;

use common::{Response, TestServer, Ws, both_stores};
use rusqlite::Connection;
use serde_json::json;

#[test]
fn a_state_that_the_client_knows_is_304_and_any_other_is_told() {
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        let before = http.get("/api/state/x");
        http.put_state("x", "[1]");
        let known = http.get("/api/state/x");
        let etag = known.header("ETag").expect("a tag").to_owned();
        assert!(etag.starts_with('"') && etag.ends_with('"'), "{etag}");
        assert_ne!(before.header("ETag"), Some(&etag[..]));
        assert_eq!(known.header("Content-Type"), Some("application/json"));

        #[rustfmt::skip]
        let rows = [
            (etag.clone(), 304),
            (format!("W/{etag}"), 304),
            (format!(r#""other", {etag}"#), 304),
            (format!(r#"W/"other",W/{etag} , "third""#), 304),
            ("*".to_owned(), 304),
            (r#""other""#.to_owned(), 200),
            (format!(r#""{}0""#, etag.trim_matches('"')), 200),
            (r#""a", W/"b""#.to_owned(), 200),
            (etag.trim_matches('"').to_owned(), 200),
        ];
        let mut ask = |method: &str, tag: &str| {
            http.request(method, "/api/state/x", &[("If-None-Match", tag)], b"")
        };
        for (tag, status) in &rows {
            for method in ["GET", "HEAD"] {
                // On one connection: bytes of a body that must not be would spoil the next answer.
                let answer = ask(method, tag);
                assert_eq!(answer.status, *status, "{method} {tag}");
                assert_eq!(answer.header("ETag"), Some(&etag[..]), "{method} {tag}");
                if (method, *status) == ("GET", 200) {
                    assert_eq!(answer.body, known.body);
                }
            }
        }
        server.http().put_state("x", "[2]");
        let answer = ask("GET", &etag);
        assert_eq!(
            (answer.status, answer.json()["rev"].as_u64()),
            (200, Some(2))
        );

        let (get, head) = (
            http.get("/api/state/x"),
            http.request("HEAD", "/api/state/x", &[], b""),
        );
        assert_eq!(head.status, 200);
        assert_eq!(head.header("ETag"), get.header("ETag"));
        assert_eq!(head.header("Content-Length"), get.header("Content-Length"));
    }
}

#[test]
fn the_list_of_feeds_tells_revision_and_subscribers_by_name() {
    let entry = |feed: &str, rev: u64, subscribers: u64| json!({"feed": feed, "rev": rev, "subscribers": subscribers});
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        let built_in = ["routes", "workflow-history", "workflows"].map(|feed| entry(feed, 0, 0));
        assert_eq!(http.get("/api/state").json(), json!({"feeds": built_in}));

        let _subscribers = ["x", "x", "workflows"].map(|feed| server.subscribe_feed(feed));
        http.put_state("x", "1");
        http.put_state("x", "2");
        http.put_state("a", "1");
        #[rustfmt::skip]
        let expected = [
            entry("a", 1, 0), entry("routes", 0, 0), entry("workflow-history", 0, 0), entry("workflows", 0, 1), entry("x", 2, 2),
        ];
        assert_eq!(http.get("/api/state").json(), json!({"feeds": expected}));
        let head = http.request("HEAD", "/api/state", &[], b"");
        assert_eq!(head.status, 200);
    }
}

/// Status, method, target, type, body, and what the answer's detail says.
type Refused<'a> = (u16, &'a str, &'a str, &'a str, &'a [u8], &'a str);

#[test]
fn what_is_refused_changes_nothing_and_is_heard_by_nobody() {
    let too_large = format!("\"{}\"", "x".repeat(1_000));
    let deep = "[".repeat(200) + &"]".repeat(200);
    const JSON: &str = "application/json";
    #[rustfmt::skip]
    let rows: [Refused; 18] = [
        (400, "PUT", "/api/state/x", JSON, b"{\"a\":1,\n \"b\":}", "line 2 column 6"),
        (400, "PUT", "/api/state/x", JSON, b"[1,2", "line 1 column 4"),
        (400, "PUT", "/api/state/x", JSON, b"1 2", "line 1 column 3"),
        (400, "PUT", "/api/state/x", JSON, b" ", "line 1 column 1"),
        (411, "PUT", "/api/state/x", JSON, b"", ""),
        (400, "PUT", "/api/state/x", JSON, b"NaN", "line 1"),
        (400, "PUT", "/api/state/x", JSON, b"\"\xff\"", "line 1"),
        (400, "PUT", "/api/state/x", JSON, b"state=1", "line 1"),
        (400, "PUT", "/api/state/x", JSON, deep.as_bytes(), "line 1"),
        (413, "PUT", "/api/state/x", JSON, too_large.as_bytes(), ""),
        (415, "PUT", "/api/state/x", "text/plain", b"1", "text/plain"),
        (415, "PUT", "/api/state/x", "multipart/form-data; boundary=x", b"1", ""),
        (422, "PUT", "/api/state/X", JSON, b"1", "feed"),
        (405, "POST", "/api/state/x", JSON, b"1", ""),
        (405, "DELETE", "/api/state/x", JSON, b"", ""),
        (405, "PUT", "/api/state", JSON, b"1", ""),
        (405, "PUT", "/ws/x", JSON, b"1", ""),
        (404, "PUT", "/api/state/x/y", JSON, b"1", ""),
    ];
    for server in both_stores(|config| config.limits.max_body_bytes = 1_000) {
        let mut listener = server.subscribe_feed("x");
        listener.next();
        let feeds = server.http().get("/api/state").text();
        for &(status, method, target, kind, body, says) in &rows {
            let headers = [("Content-Type", kind)];
            let answer = server.http().request(method, target, &headers, body);
            let detail = problem(&answer, status);
            assert!(detail.contains(says), "{method} {target}: {detail}");
            let allow = answer.header("Allow").map(|allow| {
                let mut methods: Vec<_> = allow.split(", ").collect();
                methods.sort_unstable();
                methods.join(" ")
            });
            let allowed = match (status, target) {
                (405, "/api/state/x") => Some("GET HEAD OPTIONS PUT"),
                (405, _) => Some("GET HEAD OPTIONS"),
                _ => None,
            };
            assert_eq!(allow.as_deref(), allowed, "{method} {target}");
        }
        listener.is_quiet();
        assert_eq!(server.http().get("/api/state").text(), feeds);
        assert_eq!(server.http().put_state("x", "1")["rev"], 1);
        let first = json!({"type": "x_update", "data": 1, "rev": 1});
        assert_eq!(listener.next(), first);
    }
}

#[test]
fn a_name_that_is_none_is_422_over_rest_and_before_the_upgrade() {
    let too_long = "a".repeat(65);
    #[rustfmt::skip]
    let rows: [(u16, &[&str]); 3] = [
        (422, &["X", "aB", "-a", "_a", ".a", "a%20b", "a+b", "a:b", "%C3%A9", "a%2Fb", "a%00", &too_long]),
        (400, &["%", "a%2", "%zz", "%ff"]),
        (404, &["", "a/b"]),
    ];
    let server = TestServer::start();
    for (status, names) in rows {
        for name in names {
            let mut answers = vec![server.http().put(&format!("/api/state/{name}"), "1")];
            answers.push(server.http().get(&format!("/api/state/{name}")));
            for prefix in ["/ws", "/api/v1/ws"] {
                answers.push(upgrade(&server, &format!("{prefix}/{name}")));
            }
            for answer in answers {
                problem(&answer, status);
                let field = &answer.json()["field"];
                let expected = if status == 422 {
                    json!("feed")
                } else {
                    json!(null)
                };
                assert_eq!(*field, expected, "{name}");
            }
        }
    }
    let longest = "a".repeat(64);
    for name in ["0", "a.b_c-d", "%61%2d", &longest] {
        assert_eq!(upgrade(&server, &format!("/ws/{name}")).status, 101);
        assert_eq!(server.http().put_state(name, "1")["rev"], 1, "{name}");
    }
}

#[test]
fn a_feed_without_an_upgrade_is_426_and_says_what_would_be_right() {
    let server = TestServer::start();
    for path in ["/ws/x", "/api/v1/ws/workflows"] {
        let answer = server.http().get(path);
        problem(&answer, 426);
        assert_eq!(answer.header("Upgrade"), Some("websocket"));
        assert_eq!(answer.header("Sec-WebSocket-Version"), Some("13"));
    }
}

#[test]
fn the_type_that_curl_sends_by_itself_is_no_obstacle() {
    #[rustfmt::skip]
    let types = [
        Some("application/x-www-form-urlencoded"), None, Some("application/json; charset=utf-8"), Some("APPLICATION/JSON"),
    ];
    for server in both_stores(|_| {}) {
        for (kind, rev) in types.into_iter().zip(1..) {
            let headers: Vec<_> = kind.iter().map(|kind| ("Content-Type", *kind)).collect();
            let state = format!("[{rev}]");
            let answer = server
                .http()
                .request("PUT", "/api/state/x", &headers, state.as_bytes());
            assert_eq!(answer.status, 200, "{kind:?}: {}", answer.text());
            assert_eq!(answer.json()["rev"], rev, "{kind:?}");
        }
    }
}

#[test]
fn one_feed_more_than_may_be_is_422_and_the_known_ones_go_on() {
    for server in both_stores(|config| config.limits.max_feeds = 2) {
        let mut http = server.http();
        let mut third = server.subscribe_feed("third");
        third.next();
        http.put_state("first", "1");
        http.put_state("second", "1");
        for _ in 0..2 {
            let answer = http.put("/api/state/third", "1");
            let detail = problem(&answer, 422);
            assert_eq!(answer.json()["field"], "feed");
            assert!(detail.contains('2'), "the limit is in {detail:?}");
        }
        assert_eq!(http.put_state("first", "2")["rev"], 2);
        assert_eq!(http.put_state("second", "2")["rev"], 2);
        third.is_quiet();
        let nothing = json!({"type": "third_update", "data": null, "rev": 0});
        assert_eq!(http.state("third"), nothing);
    }
}

#[test]
fn a_locked_database_is_503_nobody_hears_of_it_and_afterwards_it_works() {
    let server = TestServer::start();
    let mut feeds = ["x", "workflows", "workflow-history"].map(|feed| server.subscribe_feed(feed));
    for feed in &mut feeds {
        assert_eq!(feed.next()["rev"], 0);
    }
    server.http().put_state("x", "\"before\"");
    assert_eq!(feeds[0].next()["rev"], 1);
    let list = server.http().get("/api/state").text();

    let lock = Connection::open(server.database()).expect("a database");
    lock.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let refused = [
        ("x", "\"refused\""),
        ("workflows", r#"[{"id":1}]"#),
        ("y", "1"),
    ]
    .map(|(feed, state)| {
        let mut http = server.http();
        thread::spawn(move || http.put(&format!("/api/state/{feed}"), state))
    });
    // The last state is no change, and needs no store.
    assert_eq!(server.http().put_state("x", "\"before\"")["changed"], false);
    for answer in refused.map(|thread| thread.join().expect("an answer")) {
        problem(&answer, 503);
        assert!(answer.header("Retry-After").is_some());
    }
    feeds.iter_mut().for_each(Ws::is_quiet);
    assert_eq!(server.http().get("/api/state").text(), list);

    lock.execute_batch("ROLLBACK").expect("an unlock");
    server.http().put_state("x", "\"after\"");
    let after = json!({"type": "x_update", "data": "after", "rev": 2});
    assert_eq!(feeds[0].next(), after);
    server.http().put_state("workflows", r#"[{"id":2}]"#);
    let after = json!({"type": "workflows_update", "data": [{"id": 2}], "rev": 1});
    assert_eq!(feeds[1].next(), after);
    let history = feeds[2].next();
    assert_eq!(history["rev"], 1);
    assert_eq!(history["data"]["total_count"], 1, "{history}");
    assert_eq!(history["data"]["workflows"][0]["id"], 2, "{history}");
}

/// The answer to a request to become a WebSocket.
fn upgrade(server: &TestServer, path: &str) -> Response {
    let headers = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "13"),
    ];
    server.http().request("GET", path, &headers, b"")
}

/// Panics unless it is a problem of this status; returns its detail.
fn problem(response: &Response, status: u16) -> String {
    assert_eq!(response.status, status, "{}", response.text());
    let kind = response.header("Content-Type");
    assert_eq!(kind, Some("application/problem+json"));
    let problem = response.json();
    assert_eq!(problem["status"], status, "{problem}");
    problem["detail"].as_str().expect("a detail").to_owned()
}
