//! REST: every route of the contract's "Messages over HTTP", every error it can give, on both
//! stores. Feeds and event streams have files of their own.

mod common;

use std::path::Path;

use common::{Http, Response, TestServer, eventually};
use serde_json::{Value, json};
use threadcast::config::{Config, Database};

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// Runs the same story on a SQLite file and in memory.
fn on_both(story: impl Fn(&TestServer)) {
    on_both_with(|_| {}, story);
}

fn on_both_with(change: impl Fn(&mut Config), story: impl Fn(&TestServer)) {
    story(&TestServer::start_with(&change));
    story(&TestServer::start_with(|config| {
        config.database = Database::Memory;
        change(config);
    }));
}

fn message(channel: &str, content: &str) -> Value {
    json!({"channel_id": channel, "author": "ada", "content": content})
}

/// `message("lab", "hi")` with one member changed.
fn with(member: &str, value: Value) -> Value {
    let mut body = message("lab", "hi");
    body[member] = value;
    body
}

fn post(http: &mut Http, body: &Value) -> Response {
    http.post_json("/api/messages", body)
}

/// Posts a body that is fine, returns the stored message.
fn stored(http: &mut Http, body: &Value) -> Value {
    let response = post(http, body);
    assert_eq!(response.status, 200, "{body}: {}", response.text());
    response.json()["message"].take()
}

/// GETs JSON that is there.
fn read(http: &mut Http, target: &str) -> Value {
    let response = http.get(target);
    assert_eq!(response.status, 200, "{target}: {}", response.text());
    assert_eq!(response.header("Content-Type"), Some("application/json"));
    response.json()
}

fn messages(http: &mut Http, query: &str) -> Vec<Value> {
    match read(http, &format!("/api/messages{query}"))["messages"].take() {
        Value::Array(messages) => messages,
        other => panic!("{query}: an array was expected, not {other}"),
    }
}

fn ids(messages: &[Value]) -> Vec<u64> {
    let id = |message: &Value| message["id"].as_u64().expect("an id");
    messages.iter().map(id).collect()
}

/// Every error is a problem+json; returns it.
fn problem(response: &Response, status: u16, what: &str) -> Value {
    assert_eq!(response.status, status, "{what}: {}", response.text());
    let kind = response.header("Content-Type");
    assert_eq!(kind, Some("application/problem+json"), "{what}");
    let problem = response.json();
    assert_eq!(problem["status"], status, "{what}: {problem}");
    assert_eq!(problem["type"], "about:blank", "{what}: {problem}");
    for member in ["title", "detail"] {
        let text = problem[member].as_str().unwrap_or_default();
        assert!(!text.is_empty(), "{what}: {problem}");
    }
    problem
}

fn assert_invalid(response: &Response, field: &str, what: &str) {
    let problem = problem(response, 422, what);
    assert_eq!(problem["field"], field, "{what}: {problem}");
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(field), "{what}: {problem}");
}

fn assert_nothing_stored(http: &mut Http) {
    let page = read(http, "/api/messages");
    assert_eq!(page, json!({"messages": [], "head": 0}));
}

#[test]
fn a_stored_message_is_answered_and_read_with_all_its_fields() {
    on_both(|server| {
        let mut http = server.http();
        let mut body = message("lab", "hi 🐝 \"\\\n\u{0}\u{2028}");
        body["lane"] = json!("llm");
        body["provider"] = json!("openai");
        body["token_count"] = json!(12);
        let answer = post(&mut http, &body).json();
        assert_eq!(answer["success"], true);
        assert_eq!(answer["subscribers"], 0);
        let message = &answer["message"];
        assert!(message["id"].as_u64().is_some_and(|id| id > 0), "{message}");
        assert_timestamp(message["timestamp"].as_str().expect("a string"));
        body["id"] = message["id"].clone();
        body["timestamp"] = message["timestamp"].clone();
        assert_eq!(
            *message, body,
            "what was sent, an id, a time and nothing else"
        );
        assert_eq!(messages(&mut http, ""), [body]);
    });
}

/// `2026-01-05T12:34:56.789012+00:00`, and now.
fn assert_timestamp(text: &str) {
    let shape = text.replace(|digit: char| digit.is_ascii_digit(), "0");
    assert_eq!(shape, "0000-00-00T00:00:00.000000+00:00", "{text}");
    assert!(text.ends_with("+00:00"), "{text}");
    let number = |from: usize, to: usize| text[from..to].parse::<u8>().expect("digits");
    let year = text[..4].parse().expect("digits");
    let month = number(5, 7).try_into().expect("a month");
    let date = time::Date::from_calendar_date(year, month, number(8, 10)).expect("a date");
    let (hour, minute, second) = (number(11, 13), number(14, 16), number(17, 19));
    let micro = text[20..26].parse().expect("digits");
    let time = date
        .with_hms_micro(hour, minute, second, micro)
        .expect("a time")
        .assume_utc();
    let age = time::OffsetDateTime::now_utc() - time;
    assert!(
        (-1..=60).contains(&age.whole_seconds()),
        "{text} is {age} ago"
    );
}

#[test]
fn fields_left_out_are_null_and_fields_unknown_are_ignored() {
    on_both(|server| {
        let mut http = server.http();
        let mut explicit = message("lab", "");
        for field in ["lane", "provider", "token_count"] {
            explicit[field] = Value::Null;
        }
        let mut strange = message("lab", "");
        strange["id"] = json!(77);
        strange["timestamp"] = json!("yesterday");
        strange["mood"] = json!({"deep": [1, {"er": null}]});
        for (id, body) in [(1, message("lab", "")), (2, explicit), (3, strange)] {
            let mut message = stored(&mut http, &body);
            assert_timestamp(message["timestamp"].take().as_str().expect("a string"));
            let expected = json!({
                "id": id, "channel_id": "lab", "author": "ada", "content": "", "timestamp": null,
                "lane": null, "provider": null, "token_count": null,
            });
            assert_eq!(message, expected);
        }
    });
}

/// The story: a program whose language has only doubles sent `336909.0`, which every schema
/// calls an integer, and was refused.
#[test]
fn a_token_count_is_any_number_without_a_fraction_however_it_is_written() {
    on_both(|server| {
        let mut http = server.http();
        let body = |number: &str| {
            format!(
                r#"{{"channel_id":"lab","author":"ada","content":"hi","token_count":{number}}}"#
            )
        };
        for (written, count) in [
            ("3.0", 3),
            ("3e2", 300),
            ("-0.0", 0),
            ("-9223372036854774784.0", i64::MIN + 1024),
            ("-9223372036854775808", i64::MIN),
        ] {
            let body = body(written);
            let response = http.request("POST", "/api/messages", &[JSON], body.as_bytes());
            assert_eq!(response.status, 200, "{written}: {}", response.text());
            assert_eq!(response.json()["message"]["token_count"], count);
        }
        for written in [
            "3.5",
            "1e-1",
            "1e300",
            "9223372036854775808.0",
            "9223372036854775808",
            "-9223372036854775809",
        ] {
            let body = body(written);
            let response = http.request("POST", "/api/messages", &[JSON], body.as_bytes());
            assert_invalid(&response, "token_count", written);
        }
    });
}

#[test]
fn a_field_missing_or_wrong_is_named_and_nothing_is_stored() {
    let not_strings = [json!(1), json!(true), json!(["a"]), json!({"a": 1})];
    let not_integers = [
        json!("1"),
        json!(1.5),
        json!(true),
        json!([1]),
        json!(1e300),
    ];
    on_both(|server| {
        let mut http = server.http();
        for field in ["channel_id", "author", "content"] {
            let mut without = message("lab", "hi");
            without.as_object_mut().expect("an object").remove(field);
            assert_invalid(&post(&mut http, &without), field, &without.to_string());
            let null = with(field, Value::Null);
            assert_invalid(&post(&mut http, &null), field, &null.to_string());
        }
        for field in ["channel_id", "author", "content", "lane", "provider"] {
            for value in &not_strings {
                let body = with(field, value.clone());
                assert_invalid(&post(&mut http, &body), field, &body.to_string());
            }
        }
        for value in &not_integers {
            let body = with("token_count", value.clone());
            assert_invalid(&post(&mut http, &body), "token_count", &body.to_string());
        }
        assert_nothing_stored(&mut http);
    });
}

#[test]
fn a_channel_has_1_to_128_characters_and_none_is_a_control_character() {
    let long = ["a".repeat(128), "é".repeat(128), "🐝".repeat(128)];
    let odd = [
        "a/b",
        "..",
        " ",
        "%2F",
        "a b?c#d&e=f+g",
        "日本語",
        "\u{202e}",
        "'; --",
    ];
    let too_long = ["a".repeat(129), "🐝".repeat(129)];
    let control = ["", "\0", "a\n", "\t", "\u{1b}[1m", "\u{7f}", "\u{85}"];
    on_both(|server| {
        let mut http = server.http();
        for name in too_long.iter().map(String::as_str).chain(control) {
            let response = post(&mut http, &message(name, "hi"));
            assert_invalid(&response, "channel_id", &format!("POST {name:?}"));
            let response = http.get(&format!("/api/messages?channel_id={}", encoded(name)));
            assert_invalid(&response, "channel_id", &format!("GET {name:?}"));
        }
        assert_nothing_stored(&mut http);
        for name in long.iter().map(String::as_str).chain(odd) {
            let sent = stored(&mut http, &message(name, "hi"));
            assert_eq!(sent["channel_id"], name);
            let query = format!("?channel_id={}", encoded(name));
            assert_eq!(messages(&mut http, &query), [sent], "{name}");
        }
        let form = messages(&mut http, "?channel_id=a+b?c%23d%26e=f%2bg");
        assert_eq!(
            form.len(),
            1,
            "a form writes a space as +, and %2b for a plus"
        );
    });
}

/// Percent-encodes every byte.
fn encoded(name: &str) -> String {
    name.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[test]
fn a_body_that_is_not_json_is_refused_with_its_line_and_column() {
    let deep = format!("{{\"mood\":{}", "[".repeat(100_000));
    let bodies: [(&[u8], &str); 8] = [
        (
            b"{\n  \"channel_id\": \"lab\",\n  \"author\": ada\n}",
            "line 3 column 13",
        ),
        (b"hello", "line 1 column 1"),
        (b"{\"channel_id\":\"lab\"", "line 1 column 19"),
        (b"{} {}", "line 1 column 4"),
        (b"{\"author\":\"\xff\"}", "line 1"),
        (b"{\"author\":\"\\ud800\"}", "line 1"),
        (b"{\"token_count\":NaN}", "line 1 column 16"),
        (deep.as_bytes(), "line 1"),
    ];
    on_both(|server| {
        let mut http = server.http();
        for (body, place) in bodies {
            let what = String::from_utf8_lossy(&body[..body.len().min(60)]);
            let response = http.request("POST", "/api/messages", &[JSON], body);
            let problem = problem(&response, 400, &what);
            let detail = problem["detail"].as_str().unwrap_or_default();
            assert!(detail.contains(place), "{what}: {detail}");
        }
        assert_nothing_stored(&mut http);
    });
}

#[test]
fn a_body_that_is_not_an_object_is_refused() {
    on_both(|server| {
        let mut http = server.http();
        let like_an_object = r#"["lab","ada","hi",null,null,null]"#;
        for body in [like_an_object, "[]", "\"lab\"", "42", "null", "true"] {
            let response = http.request("POST", "/api/messages", &[JSON], body.as_bytes());
            assert!(
                [400, 422].contains(&response.status),
                "{body}: {}",
                response.text()
            );
            problem(&response, response.status, body);
        }
        let empty = [JSON, ("Content-Length", "0")];
        problem(
            &http.request("POST", "/api/messages", &empty, b""),
            400,
            "an empty body",
        );
        assert_nothing_stored(&mut http);
    });
}

#[test]
fn only_json_is_taken_and_no_type_at_all_counts_as_json() {
    on_both(|server| {
        let mut http = server.http();
        let body = message("lab", "hi").to_string();
        let mut send = |headers: &[(&str, &str)]| {
            http.request("POST", "/api/messages", headers, body.as_bytes())
        };
        for wrong in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/jsonp",
        ] {
            problem(&send(&[("Content-Type", wrong)]), 415, wrong);
        }
        for right in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
        ] {
            let response = send(&[("Content-Type", right)]);
            assert_eq!(response.status, 200, "{right}: {}", response.text());
        }
        assert_eq!(
            send(&[]).json()["message"]["id"],
            4,
            "the refused ones took no id"
        );
    });
}

#[test]
fn pages_are_cut_by_since_before_and_limit_and_always_ascend() {
    on_both(|server| {
        let mut http = server.http();
        for n in 1..=10 {
            let channel = if n % 2 == 0 { "even" } else { "odd" };
            assert_eq!(http.publish(channel, "hi"), n);
        }
        let table: [(&str, &[u64]); 20] = [
            ("", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
            ("?limit=3", &[8, 9, 10]),
            ("?limit=1000", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
            ("?since=0", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
            ("?since=7", &[8, 9, 10]),
            ("?since=3&limit=2", &[4, 5]),
            ("?since=10", &[]),
            ("?since=9223372036854775807", &[]),
            ("?before=4", &[1, 2, 3]),
            ("?before=4&limit=2", &[2, 3]),
            ("?before=1", &[]),
            ("?before=9223372036854775807&limit=2", &[9, 10]),
            ("?since=3&before=7", &[4, 5, 6]),
            ("?before=7&since=3&limit=2", &[4, 5]),
            ("?since=7&before=3", &[]),
            ("?channel_id=even", &[2, 4, 6, 8, 10]),
            ("?channel_id=even&since=2&before=9&limit=2", &[4, 6]),
            ("?channel_id=odd&limit=2", &[7, 9]),
            ("?channel_id=odd&before=9&limit=2", &[5, 7]),
            ("?channel_id=nobody&_=123", &[]),
        ];
        for (query, expected) in table {
            let page = read(&mut http, &format!("/api/messages{query}"));
            let found = page["messages"].as_array().expect("an array");
            assert_eq!(ids(found), expected, "{query}");
            assert_eq!(page["head"], 10, "{query}: head is of the whole store");
        }
    });
}

#[test]
fn a_query_that_is_no_number_or_out_of_range_is_named() {
    on_both(|server| {
        let mut http = server.http();
        http.publish("lab", "hi");
        for field in ["since", "before", "limit"] {
            for value in [
                "abc",
                "",
                "-1",
                "1.5",
                "1x",
                "%201",
                "99999999999999999999",
                "null",
            ] {
                let query = format!("{field}={value}");
                let response = http.get(&format!("/api/messages?{query}"));
                assert_invalid(&response, field, &query);
            }
        }
        for query in ["limit=0", "limit=1001", "since=1&before=2&limit=1001"] {
            assert_invalid(&http.get(&format!("/api/messages?{query}")), "limit", query);
        }
    });
}

#[test]
fn a_page_has_200_messages_unless_asked_otherwise() {
    on_both(|server| {
        let mut http = server.http();
        for n in 1..=205 {
            assert_eq!(http.publish("lab", "hi"), n);
        }
        let all: Vec<u64> = (1..=205).collect();
        assert_eq!(ids(&messages(&mut http, "")), all[5..]);
        assert_eq!(ids(&messages(&mut http, "?channel_id=lab")), all[5..]);
        assert_eq!(ids(&messages(&mut http, "?since=0")), all[..200]);
        assert_eq!(ids(&messages(&mut http, "?limit=1000")), all);
    });
}

#[test]
fn a_page_ends_at_its_bytes_as_well_and_the_next_one_goes_on() {
    const BYTES: usize = 10_000;
    on_both_with(
        |config| config.limits.max_page_bytes = BYTES,
        |server| {
            let mut http = server.http();
            for n in 1..=20 {
                // The tenth is larger than a page: it comes alone.
                http.publish("lab", &"x".repeat(if n == 10 { 3 * BYTES } else { 1000 }));
            }
            for channel in ["", "&channel_id=lab"] {
                let mut seen = Vec::new();
                while seen.last() != Some(&20) {
                    let since = seen.last().copied().unwrap_or(0);
                    let response = http.get(&format!("/api/messages?since={since}{channel}"));
                    let page = ids(response.json()["messages"].as_array().expect("an array"));
                    assert!(!page.is_empty(), "nothing after {since}");
                    assert!(
                        page == [10] || response.body.len() < BYTES + 2000,
                        "{page:?}"
                    );
                    seen.extend(page);
                }
                assert_eq!(seen, (1..=20).collect::<Vec<_>>());
                let newest = ids(&messages(&mut http, &format!("?limit=20{channel}")));
                assert!((5..=10).contains(&newest.len()), "{newest:?}");
                assert!(
                    newest.ends_with(&[19, 20]),
                    "the newest of them: {newest:?}"
                );
            }
        },
    );
}

#[test]
fn an_empty_store_says_so_everywhere() {
    on_both(|server| {
        let mut http = server.http();
        assert_nothing_stored(&mut http);
        let channels = read(&mut http, "/api/channels");
        assert_eq!(channels, json!({"channels": [], "details": []}));
        let nothing = json!({
            "total_messages": 0, "total_tokens": 0, "by_provider": {}, "by_lane": {},
        });
        assert_eq!(read(&mut http, "/api/summary"), json!({"summary": nothing}));
        assert_eq!(read(&mut http, "/api/health")["head"], 0);
    });
}

#[test]
fn channels_are_listed_by_name_with_their_counts() {
    on_both(|server| {
        let mut http = server.http();
        let mut listener = server.subscribe("lab");
        for channel in ["lab", "zoo", "Ärger", "lab", "a/b"] {
            http.publish(channel, "hi");
        }
        let detail = |channel: &str, messages: u64, last_id: u64, subscribers: u64| {
            json!({"channel_id": channel, "messages": messages, "last_id": last_id,
                "subscribers": subscribers})
        };
        let expected = json!({
            "channels": ["a/b", "lab", "zoo", "Ärger"],
            "details": [detail("a/b", 1, 5, 0), detail("lab", 2, 4, 1), detail("zoo", 1, 2, 0),
                detail("Ärger", 1, 3, 0)],
        });
        assert_eq!(read(&mut http, "/api/channels"), expected);
        listener.socket.close(None).expect("an open socket");
        eventually("the subscriber is gone", || {
            read(&mut http, "/api/channels")["details"][1]["subscribers"] == 0
        });
    });
}

#[test]
fn a_publisher_is_told_how_many_listen_to_its_channel() {
    on_both(|server| {
        let mut http = server.http();
        let _elsewhere = server.subscribe("elsewhere");
        let mut listeners = vec![server.subscribe("lab"), server.subscribe("l%61b")];
        assert_eq!(
            post(&mut http, &message("lab", "hi")).json()["subscribers"],
            2
        );
        listeners.truncate(1);
        eventually("one has left", || {
            post(&mut http, &message("lab", "hi")).json()["subscribers"] == 1
        });
    });
}

#[test]
fn the_summary_counts_and_leaves_out_what_is_null_or_empty() {
    on_both(|server| {
        let mut http = server.http();
        for (lane, provider, tokens) in [
            (json!("llm"), json!("openai"), json!(5)),
            (json!("llm"), json!("openai"), json!(7)),
            (json!("cli"), json!("ollama"), json!(0)),
            (json!(""), json!(""), json!(null)),
            (json!(null), json!(null), json!(null)),
        ] {
            let mut body = with("lane", lane);
            body["provider"] = provider;
            body["token_count"] = tokens;
            stored(&mut http, &body);
        }
        let summary = json!({
            "total_messages": 5, "total_tokens": 12,
            "by_provider": {"ollama": 1, "openai": 2}, "by_lane": {"cli": 1, "llm": 2},
        });
        assert_eq!(read(&mut http, "/api/summary"), json!({"summary": summary}));
    });
}

#[test]
fn token_counts_that_overflow_do_not_take_the_summary_away() {
    on_both(|server| {
        let mut http = server.http();
        for _ in 0..3 {
            // Storing it and refusing it are both fine.
            let response = post(&mut http, &with("token_count", json!(i64::MAX)));
            assert!([200, 422].contains(&response.status), "{}", response.text());
        }
        let summary = &read(&mut http, "/api/summary")["summary"];
        assert!(summary["total_tokens"].is_number(), "{summary}");
    });
}

#[test]
fn health_says_who_and_how_long_and_how_many() {
    on_both(|server| {
        let mut http = server.http();
        let id = http.publish("lab", "hi");
        let health = read(&mut http, "/api/health");
        assert_eq!(health["status"], "ok");
        assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(health["head"], id);
        let uptime = health["uptime_seconds"].as_f64().expect("a number");
        assert!((0.0..60.0).contains(&uptime), "{uptime}");
        let before = health["connections"].as_u64().expect("a number");
        let _more = [server.subscribe("lab"), server.subscribe("lab")];
        assert_eq!(read(&mut http, "/api/health")["connections"], before + 2);
    });
}

#[test]
fn the_root_is_text_with_something_to_paste() {
    let response = TestServer::start().http().get("/");
    assert_eq!(response.status, 200);
    let kind = response.header("Content-Type").expect("a type");
    assert!(kind.starts_with("text/plain"), "{kind}");
    for hint in ["curl", "/api/messages", "/api/ws/"] {
        assert!(
            response.text().contains(hint),
            "no {hint}: {}",
            response.text()
        );
    }
}

#[test]
fn every_stored_value_survives_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("kept.db");
    let start = |path: &Path| {
        TestServer::start_with(|config| config.database = Database::File(path.to_owned()))
    };
    let routes = [
        "/api/messages",
        "/api/messages?channel_id=%C3%BC%2F",
        "/api/channels",
        "/api/summary",
    ];
    let before = {
        let server = start(&path);
        let mut http = server.http();
        stored(&mut http, &message("lab", "hi \u{0} 🐝"));
        let mut full = with("lane", json!("llm"));
        full["channel_id"] = json!("ü/");
        full["provider"] = json!("");
        full["token_count"] = json!(-3);
        stored(&mut http, &full);
        routes.map(|route| read(&mut http, route))
    };
    let server = start(&path);
    let mut http = server.http();
    assert_eq!(routes.map(|route| read(&mut http, route)), before);
    assert_eq!(before[0]["messages"].as_array().map(Vec::len), Some(2));
    assert_eq!(http.publish("lab", "after"), 3, "no id twice");
}

#[test]
fn the_ring_in_memory_drops_the_oldest_and_keeps_the_order() {
    let server = TestServer::start_with(|config| {
        config.database = Database::Memory;
        config.limits.memory_bytes = 64 << 10;
    });
    let mut http = server.http();
    for n in 1..=200 {
        assert_eq!(http.publish("lab", &"x".repeat(1000)), n);
    }
    let kept = ids(&messages(&mut http, "?since=0&limit=1000"));
    assert!(
        (20..=65).contains(&kept.len()),
        "{} messages in 64 KiB",
        kept.len()
    );
    let newest: Vec<u64> = (201 - kept.len() as u64..=200).collect();
    assert_eq!(kept, newest);
    assert_eq!(
        ids(&messages(&mut http, "?channel_id=lab&limit=1000")),
        newest
    );
    assert_eq!(read(&mut http, "/api/messages")["head"], 200);
}

/// Every route of this issue and the methods it knows besides OPTIONS.
const ROUTES: [(&str, &[&str]); 7] = [
    ("/", &["GET", "HEAD"]),
    ("/api/messages", &["GET", "HEAD", "POST"]),
    ("/api/messages?channel_id=lab", &["GET", "HEAD", "POST"]),
    ("/api/channels", &["GET", "HEAD"]),
    ("/api/summary", &["GET", "HEAD"]),
    ("/api/health", &["GET", "HEAD"]),
    ("/api/ws/lab", &["GET"]),
];

/// The methods of a list header such as `Allow`.
fn methods<'a>(response: &'a Response, header: &str) -> Vec<&'a str> {
    let list = response
        .header(header)
        .unwrap_or_else(|| panic!("no {header}"));
    list.split(',').map(str::trim).collect()
}

#[test]
fn a_path_without_a_route_is_404() {
    let server = TestServer::start();
    let mut http = server.http();
    for path in [
        "/nope",
        "/api",
        "/api/nope",
        "/api/messages/1",
        "/favicon.ico",
        "/API/health",
    ] {
        problem(&http.get(path), 404, path);
        problem(&http.post_json(path, &message("lab", "hi")), 404, path);
    }
    // A channel is one segment of the path, and it has a name.
    for path in ["/api/ws", "/api/ws/", "/api/ws/lab/2"] {
        problem(&http.get(path), 404, path);
        problem(&http.request("GET", path, &UPGRADE, b""), 404, path);
    }
    problem(
        &http.request("GET", "/nope", &UPGRADE, b""),
        404,
        "an upgrade to nowhere",
    );
    assert_nothing_stored(&mut http);
}

#[test]
fn a_method_without_a_route_is_405_and_told_what_is_allowed() {
    let server = TestServer::start();
    let mut http = server.http();
    for (path, known) in ROUTES {
        for method in ["POST", "PUT", "PATCH", "DELETE", "TRACE"] {
            if known.contains(&method) {
                continue;
            }
            let response = http.request(method, path, &[JSON], b"{}");
            problem(&response, 405, &format!("{method} {path}"));
            let allowed = methods(&response, "Allow");
            let missing: Vec<_> = known
                .iter()
                .filter(|known| !allowed.contains(known))
                .collect();
            assert!(
                missing.is_empty(),
                "{path} also knows {missing:?}: {allowed:?}"
            );
            assert!(!allowed.contains(&method), "{method} {path}: {allowed:?}");
        }
    }
}

#[test]
fn options_tells_the_methods_of_every_route() {
    let server = TestServer::start();
    let mut http = server.http();
    for (path, known) in ROUTES {
        let response = http.request("OPTIONS", path, &[], b"");
        assert!(
            [200, 204].contains(&response.status),
            "{path}: {}",
            response.status
        );
        let allowed = methods(&response, "Allow");
        for method in known.iter().chain(&["OPTIONS"]) {
            assert!(allowed.contains(method), "{path}: {method} of {allowed:?}");
        }
    }
    problem(
        &http.request("OPTIONS", "/nope", &[], b""),
        404,
        "OPTIONS /nope",
    );
}

const LOOPBACK: [&str; 4] = [
    "http://localhost:3000",
    "http://127.0.0.1:5173",
    "https://localhost",
    "http://[::1]:8080",
];

const FOREIGN: [&str; 7] = [
    "https://evil.example",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example:3000",
    "http://evil.example:3000/localhost",
    "http://localhost@evil.example",
    "http://notlocalhost",
    "null",
];

#[test]
fn a_page_on_this_machine_may_use_the_api_and_a_foreign_one_may_not() {
    let server = TestServer::start();
    let body = message("lab", "hi").to_string();
    let ask = |origin: &str| {
        let preflight = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "content-type"),
        ];
        let actual = [("Origin", origin), JSON];
        [
            ("OPTIONS", "/api/messages", &preflight[..], &b""[..]),
            ("POST", "/api/messages", &actual, body.as_bytes()),
            ("POST", "/api/messages", &actual, b"{}"),
            ("GET", "/nope", &actual, b""),
        ]
        .map(|(method, path, headers, body)| server.http().request(method, path, headers, body))
    };
    for origin in LOOPBACK {
        let answers = ask(origin);
        for answer in &answers {
            let allowed = answer.header("Access-Control-Allow-Origin");
            assert!(
                [Some(origin), Some("*")].contains(&allowed),
                "{origin}: {answer:?}"
            );
        }
        assert!(
            [200, 204].contains(&answers[0].status),
            "{origin}: {:?}",
            answers[0]
        );
        assert!(methods(&answers[0], "Access-Control-Allow-Methods").contains(&"POST"));
        let headers = methods(&answers[0], "Access-Control-Allow-Headers").join(",");
        assert!(headers.to_lowercase().contains("content-type"), "{headers}");
        assert_eq!(answers[1].status, 200, "{origin}");
    }
    for origin in FOREIGN {
        for answer in ask(origin) {
            assert_eq!(answer.status, 403, "{origin}: {answer:?}");
            let allowed = answer.header("Access-Control-Allow-Origin");
            assert_eq!(allowed, None, "{origin}: {answer:?}");
        }
    }
    let stored = server.http().get("/api/messages").json();
    assert_eq!(stored["head"], LOOPBACK.len());
}

const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// A handshake with one header changed, or left out where the value is `None`.
fn handshake(http: &mut Http, change: &str, value: Option<&str>) -> Response {
    let change = |(name, usual)| match name == change {
        true => value.map(|value| (name, value)),
        false => Some((name, usual)),
    };
    let headers: Vec<_> = UPGRADE.into_iter().filter_map(change).collect();
    http.request("GET", "/api/ws/lab", &headers, b"")
}

#[test]
fn a_websocket_path_without_an_upgrade_is_426_and_told_which() {
    let server = TestServer::start();
    let plain = server.http().get("/api/ws/lab");
    let half = [
        ("Connection", Some("close")),
        ("Upgrade", None),
        ("Upgrade", Some("h2c")),
    ];
    let half = half.map(|(name, value)| handshake(&mut server.http(), name, value));
    for response in half.iter().chain([&plain]) {
        problem(response, 426, &format!("{response:?}"));
        let upgrade = response.header("Upgrade");
        assert!(upgrade.is_some_and(|name| name.eq_ignore_ascii_case("websocket")));
        assert_eq!(response.header("Sec-WebSocket-Version"), Some("13"));
    }
    // RFC 6455, 4.4: another version is answered with the one that is spoken.
    let old = handshake(&mut server.http(), "Sec-WebSocket-Version", Some("8"));
    assert_eq!(
        (old.status, old.header("Sec-WebSocket-Version")),
        (426, Some("13"))
    );
}

#[test]
fn a_handshake_without_a_proper_key_is_400() {
    let server = TestServer::start();
    let fifteen = "dGhlIHNhbXBsZSBub25j";
    let seventeen = "dGhlIHNhbXBsZSBub25jZSE=";
    let keys = [
        None,
        Some(""),
        Some("key"),
        Some(fifteen),
        Some(seventeen),
        Some("!!!!!!!!!!!!!!!!!!!!!!=="),
    ];
    for key in keys {
        let response = handshake(&mut server.http(), "Sec-WebSocket-Key", key);
        problem(&response, 400, &format!("{key:?}"));
    }
    let good = handshake(&mut server.http(), "", None);
    assert_eq!(
        good.header("Sec-WebSocket-Accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
}

#[test]
fn subscribers_hear_nothing_of_what_was_refused() {
    on_both(|server| {
        let mut listener = server.subscribe("lab");
        let mut http = server.http();
        let fine = message("lab", "hi").to_string();
        let large = message("lab", &"x".repeat(256 << 10)).to_string();
        for (status, method, target, kind, body) in [
            (400, "POST", "/api/messages", JSON, &fine[1..]),
            (404, "POST", "/api/message", JSON, &fine),
            (405, "PUT", "/api/messages", JSON, &fine),
            (405, "POST", "/api/ws/lab", JSON, &fine),
            (413, "POST", "/api/messages", JSON, &large),
            (
                415,
                "POST",
                "/api/messages",
                ("Content-Type", "text/plain"),
                &fine,
            ),
            (417, "POST", "/api/messages", ("Expect", "tea"), &fine),
            (
                422,
                "POST",
                "/api/messages",
                JSON,
                "{\"channel_id\":\"lab\"}",
            ),
            (501, "BREW", "/api/messages", JSON, &fine),
        ] {
            let response = server
                .http()
                .request(method, target, &[kind], body.as_bytes());
            problem(&response, status, &format!("{method} {target}"));
        }
        let id = http.publish("lab", "the first to be stored");
        assert_eq!(id, 1);
        assert_eq!(listener.next_message()["content"], "the first to be stored");
    });
}
