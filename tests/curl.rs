//! What a script or a sensor sends with one line of curl: the body as it is, many lines at once.
//!
//! The story: whoever tries a server first types `curl -d hello`. Until it took that, the first
//! thing it ever said to anybody was 415.

mod common;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::system::skipped;
use common::tokens::{Tokens, bearer};
use common::{Http, Program, Response, TestServer, both_stores};
use rusqlite::Connection;
use serde_json::{Value, json};
use threadcast::access::Scope::{Publish, Subscribe};

const LINES: (&str, &str) = ("Content-Type", "application/x-ndjson");
const LAB: &str = "/api/channels/lab/messages";

/// A POST that has a length even when it is 0.
fn post(http: &mut Http, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let length = body.len().to_string();
    let mut headers = headers.to_vec();
    if body.is_empty() {
        headers.push(("Content-Length", &length));
    }
    http.request("POST", target, &headers, body)
}

fn line(channel: &str, content: &str) -> String {
    json!({"channel_id": channel, "author": "ada", "content": content}).to_string() + "\n"
}

/// The history from the first message on, all of it.
fn contents(http: &mut Http) -> Vec<(String, String)> {
    let page = http.get("/api/messages?since=0&limit=1000");
    assert_eq!(page.status, 200, "{}", page.text());
    let text = |message: &Value, member: &str| message[member].as_str().expect("text").to_owned();
    let messages = page.json()["messages"].take();
    let messages = messages.as_array().expect("a list").iter();
    messages
        .map(|message| (text(message, "channel_id"), text(message, "content")))
        .collect()
}

#[track_caller]
fn assert_refused(answer: &Response, status: u16, names: &[&str]) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let detail = answer.json()["detail"].to_string();
    for name in names {
        assert!(detail.contains(name), "no {name} in {detail}");
    }
}

#[test]
fn the_body_as_it_is_becomes_a_message_of_the_channel_whatever_its_type() {
    for server in both_stores(|_| {}) {
        let mut listener = server.subscribe("a%2Fb");
        let mut http = server.http();
        let target = "/api/channels/a%2Fb/messages";
        for (kind, body) in [
            (None, "hello"),
            (Some("application/x-www-form-urlencoded"), "a=1&b=%20+ü"),
            (Some("text/plain; charset=utf-8"), "two\nlines\n"),
            (Some("application/octet-stream"), "\u{0}🐝"),
            (Some("text/plain"), "{\"channel_id\":\"x\"}"),
            (Some("text/plain"), ""),
        ] {
            let headers: Vec<_> = kind
                .map(|kind| ("Content-Type", kind))
                .into_iter()
                .collect();
            let answer = post(&mut http, target, &headers, body.as_bytes());
            assert_eq!(answer.status, 200, "{kind:?}: {}", answer.text());
            let answer = answer.json();
            let message = listener.next_message();
            assert_eq!(
                answer,
                json!({"success": true, "message": message, "subscribers": 1})
            );
            let parts = json!([message["channel_id"], message["author"], message["content"]]);
            assert_eq!(parts, json!(["a/b", "unknown", body]), "{kind:?}");
            assert_eq!(message["lane"], Value::Null);
        }
        let query = "author=x&author=ada%20l&lane=llm&provider=p+q&token_count=-7&other=1";
        post(&mut http, &format!("{target}?{query}"), &[], b"hi");
        let message = listener.next_message();
        let members = ["author", "lane", "provider", "token_count", "content"];
        let found: Vec<_> = members.iter().map(|it| message[it].clone()).collect();
        assert_eq!(json!(found), json!(["ada l", "llm", "p q", -7, "hi"]));
    }
}

#[test]
fn json_for_a_channel_is_a_message_object_that_need_not_name_it() {
    let server = TestServer::start();
    let mut http = server.http();
    let mut send = |body: Value| http.post_json(LAB, &body);
    for body in [
        json!({"author": "ada", "content": "hi"}),
        json!({"author": "ada", "content": "hi", "channel_id": "lab"}),
        json!({"author": "ada", "content": "hi", "channel_id": null}),
    ] {
        let answer = send(body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["message"]["channel_id"], "lab");
    }
    for (body, field) in [
        (
            json!({"author": "ada", "content": "hi", "channel_id": "other"}),
            "channel_id",
        ),
        (
            json!({"author": "ada", "content": "hi", "channel_id": 1}),
            "channel_id",
        ),
        (json!({"author": 1, "content": "hi"}), "author"),
        (json!({"author": "ada", "content": 1}), "content"),
        (json!({"author": "ada"}), "content"),
    ] {
        let answer = send(body);
        assert_refused(&answer, 422, &[field]);
        assert_eq!(answer.json()["field"], field);
    }
    assert_refused(&send(json!("hi")), 422, &["object", "a string"]);
    assert_eq!(contents(&mut http).len(), 3);

    // What it leaves out is what the query says; what is wrong there is wrong whatever it says.
    let target = format!("{LAB}?author=query&lane=l");
    for (body, author) in [
        (json!({"content": "hi"}), "query"),
        (json!({"content": "hi", "author": "body"}), "body"),
        (json!({"content": "hi", "author": null}), "query"),
    ] {
        let message = http.post_json(&target, &body).json()["message"].take();
        assert_eq!(
            (&message["author"], &message["lane"]),
            (&json!(author), &json!("l"))
        );
    }
    let message = http.post_json(LAB, &json!({"content": "hi"})).json();
    assert_eq!(message["message"]["author"], "unknown");
    let body = json!({"content": "hi", "token_count": 3});
    let answer = http.post_json(&format!("{LAB}?token_count=x"), &body);
    assert_refused(&answer, 422, &["token_count", "integer"]);
}

#[test]
fn what_is_no_text_or_names_no_channel_is_refused_and_nothing_is_stored() {
    let long = format!("/api/channels/{}/messages", "x".repeat(129));
    for server in both_stores(|config| config.limits.max_body_bytes = 1000) {
        let mut http = server.http();
        let mut send = |target: &str, body: &[u8]| post(&mut http, target, &[], body);
        let answer = send(LAB, b"ab\xff");
        assert_refused(&answer, 422, &["UTF-8", "byte 2"]);
        assert_eq!(answer.json()["field"], "content");
        for (target, status, name) in [
            ("/api/channels/%0A/messages", 422, "channel_id"),
            (&long, 422, "channel_id"),
            ("/api/channels/%zz/messages", 400, "%"),
            ("/api/channels//messages", 404, "nothing"),
            (
                "/api/channels/lab/messages?token_count=x",
                422,
                "token_count",
            ),
        ] {
            assert_refused(&send(target, b"hi"), status, &[name]);
        }
        let get = http.get(LAB);
        assert_eq!(
            (get.status, get.header("Allow")),
            (405, Some("POST, OPTIONS"))
        );
        // No page of a stranger: text/plain asks no permission first (CORS, simple requests).
        let foreign = [
            ("Content-Type", "text/plain"),
            ("Origin", "https://evil.example"),
        ];
        assert_refused(&post(&mut server.http(), LAB, &foreign, b"hi"), 403, &[]);
        let large = post(&mut server.http(), LAB, &[], &[b'x'; 1001]);
        assert_refused(&large, 413, &[]);
        assert!(contents(&mut server.http()).is_empty());
    }
}

#[test]
fn curl_itself_publishes_a_word_a_file_and_lines_and_waits_for_the_next() {
    let curl = |args: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-sS", "--fail-with-body", "--max-time", "20"]);
        command.args(args).output()
    };
    if !curl(&["--version"]).is_ok_and(|run| run.status.success()) {
        return skipped("no curl");
    }
    let server = TestServer::start();
    let base = format!("http://{}", server.address);
    let ask = |args: &[&str]| -> Value {
        let run = curl(args).expect("curl");
        let text = String::from_utf8_lossy(&run.stdout);
        assert!(
            run.status.success(),
            "{text} {}",
            String::from_utf8_lossy(&run.stderr)
        );
        serde_json::from_str(&text).expect("JSON")
    };
    let lab = format!("{base}{LAB}?author=me");
    assert_eq!(ask(&["-d", "hello", &lab])["message"]["content"], "hello");
    let file = server.dir.path().join("file");
    std::fs::write(&file, "one\ntwo\n").expect("a file");
    let data = format!("@{}", file.display());
    let answer = ask(&[
        "--data-binary",
        &data,
        "-H",
        "Content-Type: text/plain",
        &lab,
    ]);
    assert_eq!(answer["message"]["content"], "one\ntwo\n");
    let answer = ask(&["-T", file.to_str().expect("text"), "-X", "POST", &lab]);
    assert_eq!(answer["message"]["content"], "one\ntwo\n");
    std::fs::write(&file, line("lab", "a") + &line("log", "b")).expect("a file");
    let messages = format!("{base}/api/messages");
    let kind = "Content-Type: application/x-ndjson";
    let answer = ask(&["--data-binary", &data, "-H", kind, &messages]);
    assert_eq!(
        answer,
        json!({"success": true, "messages": 2, "ids": [4, 5]})
    );
    thread::scope(|scope| {
        let next = format!("{messages}?channel_id=lab&since=4&wait=60");
        let waiting = scope.spawn(move || ask(&["-m", "60", &next]));
        ask(&["-d", "next", &lab]);
        let page = waiting.join().expect("a page");
        assert_eq!(page["messages"][0]["content"], "next");
    });
}

#[test]
fn every_line_is_a_message_in_the_order_of_the_lines() {
    for server in both_stores(|config| config.limits.max_batch = 2) {
        let mut listeners = ["lab", "log"].map(|channel| server.subscribe(channel));
        let mut http = server.http();
        let mut expected: Vec<(String, String)> = Vec::new();
        for kind in [
            "application/x-ndjson",
            "application/jsonl; charset=utf-8",
            "Application/X-JsonLines",
        ] {
            let mut body = "\n  \r\n".to_owned();
            for number in 0..100 {
                let channel = if number % 3 == 0 { "log" } else { "lab" };
                let content = format!("{kind} {number}");
                body += &line(channel, &content).replace('\n', "\r\n\n");
                expected.push((channel.to_owned(), content));
            }
            let body = body.trim_end();
            let answer = post(
                &mut http,
                "/api/messages",
                &[("Content-Type", kind)],
                body.as_bytes(),
            );
            assert_eq!(answer.status, 200, "{}", answer.text());
            let last = expected.len() as u64;
            let ids: Vec<u64> = (last - 99..=last).collect();
            assert_eq!(
                answer.json(),
                json!({"success": true, "messages": 100, "ids": ids})
            );
        }
        assert_eq!(contents(&mut http), expected);
        for (channel, listener) in ["lab", "log"].iter().zip(&mut listeners) {
            for (_, content) in expected.iter().filter(|(of, _)| of == channel) {
                assert_eq!(listener.next_message()["content"], **content);
            }
        }
        let body = r#"{"author":"a","content":"x"}"#;
        let answer = post(&mut http, LAB, &[LINES], body.as_bytes());
        assert_eq!(answer.json()["messages"], 1);
        assert_eq!(listeners[0].next_message()["content"], "x");
    }
}

#[test]
fn a_wrong_line_is_named_and_no_line_is_stored() {
    let good = line("lab", "x");
    #[rustfmt::skip]
    let rows: [(String, u16, &[&str], Option<&str>); 7] = [
        (format!("{good}\n{{\"channel_id\":1}}\n{good}"), 422, &["line 3", "`channel_id`"], Some("channel_id")),
        (format!("{good}{}", r#"{"channel_id":"lab","author":"a"}"#), 422, &["line 2", "`content`"], Some("content")),
        (format!("{good}{good}{{\"channel_id\":\"lab\",}}"), 400, &["line 3", "column 21"], None),
        (format!("{good}[]"), 422, &["line 2", "an array"], None),
        (format!("{good}\u{1f41d}"), 400, &["line 2"], None),
        (String::new(), 422, &["no message"], None),
        ("\n \r\n\n".to_owned(), 422, &["no message"], None),
    ];
    for server in both_stores(|_| {}) {
        let mut http = server.http();
        for (body, status, names, field) in &rows {
            let answer = post(&mut http, "/api/messages", &[LINES], body.as_bytes());
            assert_refused(&answer, *status, names);
            assert_eq!(answer.json()["field"].as_str(), *field, "{body}");
            assert!(!answer.json()["detail"].to_string().contains("at line"));
        }
        // One that is read on another thread, for its length.
        let body = good.repeat(200) + "x";
        let answer = post(&mut http, "/api/messages", &[LINES], body.as_bytes());
        assert_refused(&answer, 400, &["line 201"]);
        assert!(contents(&mut http).is_empty());
    }
}

#[test]
fn every_line_counts_for_the_rate_and_is_asked_for_its_right() {
    let file = Tokens::new();
    let lab = file.add("lab", &[Publish, Subscribe], &["lab"], &[]);
    let all = file.add("all", &[Publish, Subscribe], &["*"], &[]);
    let server = TestServer::start_with(|config| {
        config.tokens = Some(file.path.clone());
        config.publish_rate = Some(1);
        config.publish_burst = 5;
    });
    let send = |secret: &str, body: String| {
        let authorization = bearer(secret);
        let headers = [LINES, ("Authorization", &authorization[..])];
        post(
            &mut server.http(),
            "/api/messages",
            &headers,
            body.as_bytes(),
        )
    };
    // So many at once pass a full bucket, and leave it empty for as many seconds.
    let mixed = line("lab", "1") + "\n" + &line("hidden", "2") + &line("lab", "3").repeat(30);
    let answer = send(&lab, mixed.clone());
    assert_refused(&answer, 403, &["line 3"]);
    assert!(!answer.text().contains("hidden"), "{}", answer.text());
    let ids: Vec<_> = (1..=32).collect();
    assert_eq!(send(&all, mixed).json()["ids"], json!(ids));
    let more = send(&all, line("lab", "4").repeat(4));
    assert_refused(&more, 429, &["faster"]);
    assert!(more.header("Retry-After").is_some());
    assert_eq!(send(&lab, line("lab", "4").repeat(5)).status, 200);
    assert_eq!(server.server().publish(draft()).expect("an id").0, 38);
}

fn draft() -> threadcast::protocol::Draft {
    threadcast::protocol::Draft {
        channel_id: "lab".parse().expect("a channel"),
        author: "me".to_owned(),
        content: "x".to_owned(),
        lane: None,
        provider: None,
        token_count: None,
    }
}

/// Small transactions, many publishers: whoever looks meanwhile finds whole batches.
#[test]
fn nobody_ever_sees_a_part_of_a_batch() {
    let server = TestServer::start_with(|config| config.limits.max_batch = 8);
    let running = AtomicBool::new(true);
    thread::scope(|scope| {
        for name in ["a", "b", "c"] {
            let (server, running) = (&server, &running);
            scope.spawn(move || {
                let mut http = server.http();
                let body = line(name, "x").repeat(50);
                for _ in 0..20 {
                    let answer = post(&mut http, "/api/messages", &[LINES], body.as_bytes());
                    assert_eq!(answer.json()["messages"], 50);
                    http.publish("single", "x");
                }
                if name == "a" {
                    running.store(false, Ordering::SeqCst);
                }
            });
        }
        let reader = Connection::open(server.database()).expect("a database");
        let counts =
            "SELECT channel_id, count(*) FROM messages WHERE channel_id <> 'single' GROUP BY 1";
        while running.load(Ordering::SeqCst) {
            let mut counts = reader.prepare(counts).expect("a query");
            let rows = counts.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
            for row in rows.expect("rows") {
                let (channel, count): (String, i64) = row.expect("a row");
                assert_eq!(count % 50, 0, "{channel}");
            }
        }
    });
}

#[test]
fn after_kill_9_every_batch_is_there_whole_or_not_at_all() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("killed.db");
    let mut acknowledged = 0;
    for round in 0..6 {
        let mut program = Program::start(&database, &["--max-batch", "4"]);
        let mut sockets: Vec<Http> = (0..4).map(|_| program.http()).collect();
        // Many in hand at every moment, each batch with a name of its own.
        let mut sent = 0;
        for turn in 0..5 + round {
            for (at, http) in sockets.iter_mut().enumerate() {
                if turn > 0 {
                    assert_eq!(http.response(false).status, 200);
                    acknowledged += 1;
                }
                let body = line(&format!("{round} {at} {turn}"), "x").repeat(40 + at);
                let head = format!(
                    "POST /api/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
                    LINES.1,
                    body.len()
                );
                http.send(head + &body);
                sent += 1;
            }
        }
        program.kill();
        assert!(sent > 0);
    }
    let program = Program::start(&database, &[]);
    let details = program.http().get("/api/channels").json()["details"].take();
    let mut whole = BTreeMap::new();
    for channel in details.as_array().expect("a list") {
        let name = channel["channel_id"].as_str().expect("a name");
        let at: u64 = name
            .split(' ')
            .nth(1)
            .and_then(|at| at.parse().ok())
            .expect("a number");
        assert_eq!(channel["messages"], 40 + at, "{name}");
        whole.insert(name.to_owned(), at);
    }
    assert!(
        whole.len() >= acknowledged,
        "{} of {acknowledged}",
        whole.len()
    );
}
