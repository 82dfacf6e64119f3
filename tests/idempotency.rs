//! `Idempotency-Key`: who does not hear the answer asks again, and it is done once.
//!
//! The story: a sensor's POST was committed, its answer was lost, and the sensor did what every
//! good client does. From then on there were two readings where there was one.

mod common;

use std::path::Path;
use std::sync::Barrier;
use std::thread;

use common::system::{FakeClock, skipped};
use common::tokens::{Tokens, bearer};
use common::{Http, Program, Response, TestServer, both_stores, eventually};
use rusqlite::Connection;
use serde_json::json;
use threadcast::access::Scope::{Publish, State};

const REPLAYED: &str = "Idempotency-Replayed";
const DAY: i64 = 24 * 60 * 60;

/// A request that stores something.
#[derive(Clone, Copy)]
struct Request {
    method: &'static str,
    target: &'static str,
    kind: &'static str,
    body: &'static str,
}

const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";

const MESSAGE: Request = Request {
    method: "POST",
    target: "/api/messages",
    kind: JSON,
    body: r#"{"channel_id":"lab","author":"ada","content":"hi"}"#,
};

const REQUESTS: [Request; 4] = [
    MESSAGE,
    Request {
        kind: LINES,
        body: "{\"channel_id\":\"lab\",\"author\":\"a\",\"content\":\"1\"}\n{\"channel_id\":\"log\",\"author\":\"a\",\"content\":\"2\"}",
        ..MESSAGE
    },
    Request {
        target: "/api/channels/lab/messages?author=me",
        kind: "text/plain",
        body: "hello",
        ..MESSAGE
    },
    Request {
        method: "PUT",
        target: "/api/state/board",
        kind: JSON,
        body: "[1]",
    },
];

impl Request {
    fn send(&self, http: &mut Http, key: &str) -> Response {
        self.send_with(http, &[("Idempotency-Key", key)])
    }

    fn send_with(&self, http: &mut Http, headers: &[(&str, &str)]) -> Response {
        let mut all = vec![("Content-Type", self.kind)];
        all.extend(headers);
        http.request(self.method, self.target, &all, self.body.as_bytes())
    }
}

/// Newest id and the revision of the feed: what there is to see of all that was stored.
fn stored(http: &mut Http) -> (u64, u64) {
    let head = http.get("/api/health").json()["head"].as_u64();
    let rev = http.state("board")["rev"].as_u64();
    (head.expect("an id"), rev.expect("a revision"))
}

#[track_caller]
fn assert_first(answer: &Response) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header(REPLAYED), None, "{}", answer.text());
}

#[track_caller]
fn assert_same(answer: &Response, first: &Response) {
    assert_eq!(answer.status, first.status, "{}", answer.text());
    assert_eq!(answer.header(REPLAYED), Some("true"), "{}", answer.text());
    assert_eq!(answer.text(), first.text());
    let kind = |answer: &Response| answer.header("Content-Type").map(str::to_owned);
    assert_eq!(kind(answer), kind(first));
}

#[track_caller]
fn assert_refused(answer: &Response, status: u16) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let detail = answer.json()["detail"].to_string().to_lowercase();
    assert!(detail.contains("idempotency-key"), "{detail}");
    assert_eq!(answer.header(REPLAYED), None);
}

/// The newest id of the channel, 0 when it has none.
fn newest(http: &mut Http) -> u64 {
    let page = http.get("/api/messages?channel_id=lab&limit=1").json();
    page["messages"][0]["id"].as_u64().unwrap_or_default()
}

#[test]
fn a_repeated_request_is_done_once_and_gets_the_same_answer() {
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        for (number, request) in REQUESTS.iter().enumerate() {
            eventually("those of before have gone", || {
                server.server().active_connections() == 0
            });
            let key = format!("key-{number}");
            let before = newest(&mut http);
            let mut listener = server.subscribe("lab");
            let watcher = server.subscribe_feed("board");
            let first = request.send(&mut http, &key);
            assert_first(&first);
            let is_one = !first.text().contains("ids");
            assert!(
                !is_one || first.json()["subscribers"] == 1,
                "{}",
                first.text()
            );
            let after = stored(&mut http);
            // A 200 says stored: who comes before it is delivered hears it, too.
            let mut heard = before;
            while heard < newest(&mut http) {
                heard = listener.next_message()["id"].as_u64().expect("an id");
            }
            // As many as there were then, whoever came or went.
            drop((listener, watcher));
            let mut listener = server.subscribe("lab");
            let _second = server.subscribe("lab");
            for _ in 0..3 {
                assert_same(&request.send(&mut http, &key), &first);
                assert_same(&request.send(&mut server.http(), &key), &first);
            }
            assert_eq!(stored(&mut http), after, "{}", first.text());
            listener.is_quiet();
        }
        // Without a key, or with another one, it is another request.
        assert_first(&MESSAGE.send(&mut http, "another"));
        assert_first(&MESSAGE.send_with(&mut http, &[]));
        assert_eq!(stored(&mut http).0, 6);
    }
}

#[test]
fn a_key_that_came_with_another_request_is_refused_and_nothing_is_stored() {
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        let first = MESSAGE.send(&mut http, "key");
        assert_first(&first);
        let others = [
            Request {
                body: r#"{"channel_id":"lab","author":"ada","content":"ho"}"#,
                ..MESSAGE
            },
            Request {
                body: "{\"channel_id\":\"lab\",\"author\":\"ada\",\"content\":\"hi\"} ",
                ..MESSAGE
            },
            Request {
                target: "/api/messages?x",
                ..MESSAGE
            },
            Request {
                target: "/api/channels/lab/messages",
                ..MESSAGE
            },
            Request {
                kind: LINES,
                ..MESSAGE
            },
            Request {
                method: "PUT",
                target: "/api/state/board",
                ..MESSAGE
            },
        ];
        for other in others {
            let answer = other.send(&mut http, "key");
            assert_refused(&answer, 422);
            assert_eq!(answer.json()["field"], "Idempotency-Key");
        }
        assert_eq!(stored(&mut http), (1, 0));
        assert_same(&MESSAGE.send(&mut http, "key"), &first);
    }
}

#[test]
fn a_key_has_1_to_255_visible_characters() {
    let server = TestServer::start();
    let mut http = server.http();
    let long = "x".repeat(255);
    let too_long = "x".repeat(256);
    for request in REQUESTS {
        for (key, status) in [
            (&too_long[..], 422),
            ("", 422),
            ("a b", 422),
            ("a\tb", 400),
            ("schlüssel", 400),
        ] {
            assert_refused(&request.send(&mut http, key), status);
        }
        let twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")];
        assert_refused(&request.send_with(&mut http, &twice), 422);
    }
    assert_eq!(stored(&mut http), (0, 0));
    for key in [
        &long[..],
        "x",
        "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"",
        "~!",
    ] {
        assert_first(&MESSAGE.send(&mut http, key));
    }
    // It is for what stores something: others have no use for it.
    let answer = http.request("GET", "/api/messages", &[("Idempotency-Key", "a b")], b"");
    assert_eq!(answer.status, 200);
}

#[test]
fn of_fifty_that_come_at_once_one_is_done_and_all_get_its_answer() {
    for server in both_stores(|config| config.limits.max_batch = 7) {
        for (number, request) in REQUESTS.iter().enumerate() {
            let before = stored(&mut server.http());
            let start = Barrier::new(50);
            let answers: Vec<Response> = thread::scope(|scope| {
                let threads: Vec<_> = (0..50)
                    .map(|at| {
                        let (server, start) = (&server, &start);
                        scope.spawn(move || {
                            let mut http = server.http();
                            start.wait();
                            // Others are under way between them.
                            if at % 5 == 0 {
                                http.publish("other", "x");
                            }
                            request.send(&mut http, &format!("key {number}").replace(' ', "-"))
                        })
                    })
                    .collect();
                threads
                    .into_iter()
                    .map(|it| it.join().expect("an answer"))
                    .collect()
            });
            let firsts: Vec<&Response> = answers
                .iter()
                .filter(|answer| answer.header(REPLAYED).is_none())
                .collect();
            assert_eq!(firsts.len(), 1, "exactly one was done");
            assert_first(firsts[0]);
            let repeated = answers
                .iter()
                .filter(|answer| answer.header(REPLAYED).is_some());
            repeated.for_each(|answer| assert_same(answer, firsts[0]));
            let after = stored(&mut server.http());
            let messages = firsts[0].json()["messages"].as_u64();
            let expected = match request.method {
                "PUT" => (before.0 + 10, before.1 + 1),
                _ => (before.0 + 10 + messages.unwrap_or(1), before.1),
            };
            assert_eq!(after, expected);
        }
    }
}

/// The message itself may be gone by then: its answer is not.
#[test]
fn the_answer_outlives_a_restart_and_its_message() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("test.db");
    let mut program = Program::start(&database, &[]);
    let mut http = program.http();
    let first = REQUESTS.map(|request| request.send(&mut http, request.own_key()));
    first.iter().for_each(assert_first);
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
        program.signal(signal);
        program.wait();
        program = Program::start(&database, &["--keep-messages", "1"]);
        let mut http = program.http();
        http.publish("other", "the only one that is kept");
        eventually("the others are gone", || {
            http.get("/api/messages?since=0").json()["messages"]
                .as_array()
                .map(Vec::len)
                == Some(1)
        });
        http.put_state("board", &signal.as_raw().to_string());
        let before = stored(&mut http);
        for (request, first) in REQUESTS.iter().zip(&first) {
            assert_same(&request.send(&mut http, request.own_key()), first);
        }
        assert_eq!(stored(&mut http), before);
    }
}

impl Request {
    /// A key that is this request's alone.
    fn own_key(&self) -> &'static str {
        if self.kind == LINES {
            "lines"
        } else {
            self.target
        }
    }
}

/// A subscriber has heard the message, so it is committed; its publisher has read no answer.
#[test]
fn after_kill_9_before_the_answer_a_retry_finds_what_was_stored() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("killed.db");
    for round in 0..5_u64 {
        let mut program = Program::start(&database, &[]);
        let mut listener = program.subscribe("lab");
        let mut http = program.http();
        let request = |key: &str| {
            let body = MESSAGE.body;
            format!(
                "POST /api/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\nIdempotency-Key: {key}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        let key = format!("round-{round}");
        http.send(request(&key));
        let heard = listener.next_message();
        // This one's fate is open.
        http.send(request(&format!("open-{round}")));
        program.kill();

        let program = Program::start(&database, &[]);
        let mut http = program.http();
        let answer = MESSAGE.send(&mut http, &key);
        assert_eq!(answer.header(REPLAYED), Some("true"));
        assert_eq!(answer.json()["message"], heard);
        assert_eq!(answer.json()["subscribers"], 1);
        let open = MESSAGE.send(&mut http, &format!("open-{round}"));
        assert_eq!(open.status, 200);
        assert_eq!(open.json()["message"]["id"], 2 * round + 2, "stored once");
        assert_eq!(stored(&mut http).0, 2 * round + 2);
    }
}

#[test]
fn after_a_day_a_key_is_new_and_its_place_is_free() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(clock) = FakeClock::new(dir.path()) else {
        return skipped("no C compiler for a library that sets the program's clock");
    };
    for database in [dir.path().join("clock.db"), ":memory:".into()] {
        clock.set_ahead(0);
        let program = clock.start(&database, &["--keep-age", "9999d"]);
        let mut http = program.http();
        let first = REQUESTS.map(|request| request.send(&mut http, request.own_key()));
        first.iter().for_each(assert_first);
        let before = stored(&mut http);
        clock.set_ahead(DAY - 60);
        for (request, first) in REQUESTS.iter().zip(&first) {
            assert_same(&request.send(&mut http, request.own_key()), first);
        }
        clock.set_ahead(DAY + 1);
        let again = REQUESTS.map(|request| request.send(&mut http, request.own_key()));
        again.iter().for_each(assert_first);
        // The same state once more is no change.
        assert_eq!(stored(&mut http), (before.0 + 4, before.1));
        clock.set_ahead(2 * DAY - 60);
        for (request, again) in REQUESTS.iter().zip(&again) {
            assert_same(&request.send(&mut http, request.own_key()), again);
        }
        clock.set_ahead(3 * DAY);
        assert_first(&MESSAGE.send(&mut http, "one-more"));
        drop(program);
        if database.exists() {
            let mut program = clock.start(&database, &[]);
            eventually("the old ones are deleted", || rows(&database) == 1);
            program.signal(rustix::process::Signal::TERM);
            program.wait();
        }
    }
}

fn rows(database: &Path) -> i64 {
    let connection = Connection::open(database).expect("a database");
    let count = "SELECT count(*) FROM threadcast_idempotency";
    connection
        .query_row(count, [], |row| row.get(0))
        .expect("a number")
}

#[test]
fn a_key_is_its_token_s_own() {
    let file = Tokens::new();
    let [ada, bob] = ["ada", "bob"]
        .map(|name| bearer(&file.add(name, &[Publish, State], &["lab", "log"], &["board"])));
    let server = TestServer::start_with(|config| config.tokens = Some(file.path.clone()));
    let send = |token: &str, request: Request| {
        let headers = [("Idempotency-Key", "key"), ("Authorization", token)];
        request.send_with(&mut server.http(), &headers)
    };
    let first = send(&ada, MESSAGE);
    assert_first(&first);
    let other = send(&bob, REQUESTS[2]);
    assert_first(&other);
    assert_same(&send(&ada, MESSAGE), &first);
    assert_same(&send(&bob, REQUESTS[2]), &other);
    // What the token may no longer do is not told again either.
    let lines = std::fs::read_to_string(&file.path).expect("the file");
    std::fs::write(&file.path, lines.replace("\"lab\"", "\"x\"")).expect("the file");
    server.server().reload().expect("a file as it should be");
    assert_eq!(send(&ada, MESSAGE).status, 403);
}

#[test]
fn what_was_refused_is_not_remembered() {
    let server = TestServer::start_with(|config| {
        config.limits.max_feeds = 0;
        config.publish_rate = Some(1);
        config.publish_burst = 4;
    });
    let mut http = server.http();
    let wrong = Request {
        body: r#"{"channel_id":"lab"}"#,
        ..MESSAGE
    };
    assert_eq!(wrong.send(&mut http, "key").status, 422);
    // One feed too many.
    let full = REQUESTS[3].send(&mut http, "key");
    assert_eq!(full.json()["field"], "feed", "{}", full.text());

    let lock = Connection::open(server.database()).expect("a database");
    lock.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let unavailable = MESSAGE.send(&mut http, "key");
    assert_eq!(unavailable.status, 503, "{}", unavailable.text());
    lock.execute_batch("ROLLBACK").expect("an unlock");

    let mut answer = MESSAGE.send(&mut http, "key");
    eventually("its rate lets it", || {
        if answer.status == 429 {
            answer = MESSAGE.send(&mut http, "key");
        }
        answer.status != 429
    });
    assert_first(&answer);
    assert_eq!(stored(&mut http).0, 1);
}

#[test]
fn a_state_that_is_replaced_meanwhile_does_not_come_back() {
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        let put = |http: &mut Http, key: &str, body: &'static str| {
            Request {
                body,
                ..REQUESTS[3]
            }
            .send(http, key)
        };
        let one = put(&mut http, "one", "1");
        let same = put(&mut http, "same", "1");
        assert_eq!(
            one.json(),
            json!({"success": true, "changed": true, "rev": 1, "subscribers": 0})
        );
        assert_eq!(
            same.json(),
            json!({"success": true, "changed": false, "rev": 1, "subscribers": 0})
        );
        assert_first(&put(&mut http, "two", "2"));
        assert_same(&put(&mut http, "one", "1"), &one);
        assert_same(&put(&mut http, "same", "1"), &same);
        let state = http.state("board");
        assert_eq!((&state["data"], &state["rev"]), (&json!(2), &json!(2)));
    }
}

/// An eighth of the smallest database is 655 answers, one of a ring of 1 MiB is 327.
#[test]
fn the_newest_answers_are_remembered_as_many_as_fit_a_bounded_store() {
    let servers = both_stores(|config| {
        config.retention.max_db_bytes = Some(1 << 20);
        config.limits.memory_bytes = 1 << 20;
    });
    for server in servers {
        let mut http = server.http();
        let mut answers: Vec<Response> = Vec::new();
        for number in 0..700 {
            let answer = MESSAGE.send(&mut http, &format!("key-{number}"));
            assert_first(&answer);
            answers.push(answer);
        }
        for number in (400..700).rev() {
            let answer = MESSAGE.send(&mut http, &format!("key-{number}"));
            assert_same(&answer, &answers[number]);
        }
        assert_first(&MESSAGE.send(&mut http, "key-0"));
        if let Ok(true) = server.database().try_exists() {
            let size = std::fs::metadata(server.database()).expect("a file").len();
            assert!(rows(&server.database()) <= 655, "{size}");
        }
    }
}

#[test]
fn a_page_may_send_a_key_and_read_that_the_answer_is_old() {
    let server = TestServer::start();
    let origin = ("Origin", "http://127.0.0.1:9");
    let mut http = server.http();
    let preflight = [
        origin,
        ("Access-Control-Request-Method", "POST"),
        (
            "Access-Control-Request-Headers",
            "content-type,idempotency-key",
        ),
    ];
    let answer = http.request("OPTIONS", "/api/messages", &preflight, b"");
    let allowed = answer
        .header("Access-Control-Allow-Headers")
        .unwrap_or_default();
    assert!(allowed.contains("idempotency-key"), "{allowed}");
    let headers = [origin, ("Idempotency-Key", "key")];
    let [_, answer] = [(); 2].map(|()| MESSAGE.send_with(&mut http, &headers));
    assert_eq!(answer.header(REPLAYED), Some("true"));
    let exposed = answer
        .header("Access-Control-Expose-Headers")
        .unwrap_or_default();
    assert!(exposed.contains(REPLAYED), "{exposed}");
}
