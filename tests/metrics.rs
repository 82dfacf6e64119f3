//! `GET /metrics`: the format, and that every number is what it says.
//!
//! The story: an alert on a counter that nobody had ever seen move was quiet for a year, and
//! so was the counter.

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use common::exposition::Page;
use common::sse::Sse;
use common::system::skipped;
use common::{Http, TestServer, eventually};
use serde_json::json;

fn page(http: &mut Http) -> Page {
    let answer = http.get("/metrics");
    assert_eq!(answer.status, 200, "{}", answer.text());
    Page::parse(&answer.text()).unwrap_or_else(|why| panic!("{why}\n{}", answer.text()))
}

/// Waits until a series has this value.
fn reaches(http: &mut Http, series: &str, value: f64) {
    let what = format!("{series} {value}");
    eventually(&what, || page(http).value(series) == value);
}

/// One of everything: publishers, subscribers of every kind, states, refusals.
fn some_of_everything(server: &TestServer) {
    let mut http = server.http();
    let mut socket = server.subscribe("lab");
    let mut feed = server.subscribe_feed("board");
    feed.next();
    http.publish("lab", "hello");
    socket.next_message();
    http.put_state("board", "[1]");
    feed.next();
    assert_eq!(http.get("/nothing").status, 404);
}

#[test]
fn the_page_obeys_the_format_before_and_after_traffic() {
    let server = TestServer::start();
    let mut http = server.http();
    let answer = http.get("/metrics");
    assert_eq!(
        answer.header("Content-Type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let series = |page: &Page| {
        page.series()
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let before = series(&page(&mut http));
    some_of_everything(&server);
    let after = page(&mut http);
    // What is there once is there always, so that a first time is seen as an increase.
    assert_eq!(series(&after), before);
    for (name, kind) in [
        ("threadcast_messages_published_total", "counter"),
        ("threadcast_connections", "gauge"),
        ("threadcast_commit_duration_seconds", "histogram"),
        ("process_resident_memory_bytes", "gauge"),
    ] {
        assert_eq!(after.kind(name), Some(kind), "{name}");
    }
}

#[test]
fn the_reader_of_this_test_sees_every_breach() {
    let good = "# HELP a_total A.\n# TYPE a_total counter\na_total{b=\"c\",d=\"e\"} 1\n\
                # HELP h_seconds H.\n# TYPE h_seconds histogram\n\
                h_seconds_bucket{le=\"0.1\"} 1\nh_seconds_bucket{le=\"+Inf\"} 2\n\
                h_seconds_sum 3.5\nh_seconds_count 2\n";
    Page::parse(good).expect("a good page");
    for (was, is) in [
        ("# HELP a_total A.\n", ""),
        ("# TYPE a_total counter\n", ""),
        ("# TYPE a_total counter", "# TYPE a_total gauge"),
        ("# TYPE a_total counter", "# TYPE b_total counter"),
        ("a_total{", "a_totals{"),
        ("a_total{b=\"c\",d=\"e\"} 1", "a_total 1\na_total 1"),
        ("d=\"e\"", "b=\"e\""),
        ("d=\"e\"", "d=\"e\","),
        ("d=\"e\"", "1=\"e\""),
        ("\"e\"} 1", "\"e\"} 1 1700000000000"),
        ("\"e\"} 1", "\"e\"} -1"),
        ("\"e\"} 1", "\"e\"} one"),
        ("a_total{b=\"c\",d=\"e\"} 1\n", ""),
        ("le=\"+Inf\"", "le=\"0.2\""),
        ("+Inf\"} 2", "+Inf\"} 0"),
        ("h_seconds_count 2", "h_seconds_count 3"),
        ("h_seconds_sum 3.5\n", ""),
        ("le=\"0.1\"", "le=\"+Inf\""),
        ("h_seconds_count 2\n", "h_seconds_count 2"),
        ("h_seconds_count 2\n", "h_seconds_count 2\n\n"),
    ] {
        let bad = good.replace(was, is);
        assert_ne!(bad, good, "{was}");
        assert!(Page::parse(&bad).is_err(), "{was:?} to {is:?}:\n{bad}");
    }
    for name in ["h_ms", "h_duration", "h_time", "h_bytes_used", "h_memory"] {
        let bad = good.replace("h_seconds", name);
        assert!(Page::parse(&bad).is_err(), "{name}");
    }
}

#[test]
fn promtool_has_nothing_to_say_about_it() {
    let server = TestServer::start();
    some_of_everything(&server);
    let text = server.http().get("/metrics").body;
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        return skipped("no promtool (Debian's package `prometheus`)");
    };
    let mut stdin = promtool.stdin.take().expect("a pipe");
    stdin.write_all(&text).expect("it reads");
    drop(stdin);
    let output = promtool.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn messages_are_counted_once_and_deliveries_once_for_each_subscriber() {
    let server = TestServer::start();
    let mut http = server.http();
    let mut sockets: Vec<_> = (0..3).map(|_| server.subscribe("lab")).collect();
    let _stream = Sse::open(server.address, "/api/sse/lab");
    let _elsewhere = server.subscribe("elsewhere");
    for number in 0..5 {
        http.publish("lab", &number.to_string());
    }
    for socket in &mut sockets {
        (0..5).for_each(|_| drop(socket.next_message()));
    }
    reaches(
        &mut http,
        r#"threadcast_deliveries_total{source="live"}"#,
        20.0,
    );
    reaches(&mut http, "threadcast_fanout_queue_bytes", 0.0);
    let seen = page(&mut http);
    // Those that waited for one another went out together.
    let fan_outs = seen.value("threadcast_fanout_duration_seconds_count");
    assert!((1.0..=5.0).contains(&fan_outs), "{fan_outs}");
    for (series, value) in [
        ("threadcast_messages_published_total", 5.0),
        (r#"threadcast_deliveries_total{source="store"}"#, 0.0),
        (r#"threadcast_connections{kind="websocket"}"#, 4.0),
        (r#"threadcast_connections{kind="sse"}"#, 1.0),
        (r#"threadcast_connections{kind="http"}"#, 1.0),
        (
            r#"threadcast_subscribers{kind="websocket",topic="channel"}"#,
            4.0,
        ),
        (r#"threadcast_subscribers{kind="sse",topic="channel"}"#, 1.0),
        (
            r#"threadcast_subscribers{kind="websocket",topic="feed"}"#,
            0.0,
        ),
        (r#"threadcast_subscriptions_total{kind="websocket"}"#, 4.0),
        (r#"threadcast_subscriptions_total{kind="sse"}"#, 1.0),
        ("threadcast_channels", 2.0),
        ("threadcast_feeds", 0.0),
        ("threadcast_newest_message_id", 5.0),
        ("threadcast_oldest_message_id", 1.0),
        ("threadcast_commit_duration_seconds_count", 5.0),
        ("threadcast_commit_batch_size_sum", 5.0),
        (r#"threadcast_commit_batch_size_bucket{le="1"}"#, 5.0),
        ("threadcast_commit_errors_total", 0.0),
        ("threadcast_rest_requests", 1.0),
        ("threadcast_draining", 0.0),
    ] {
        assert_eq!(seen.value(series), value, "{series}");
    }
    assert!(seen.value("threadcast_recent_bytes") > 0.0);
    assert!(seen.value(r#"threadcast_database_bytes{file="main"}"#) > 0.0);
    assert!(seen.value(r#"threadcast_database_bytes{file="wal"}"#) > 0.0);
}

#[test]
fn a_slow_subscriber_is_seen_to_fall_behind_and_to_catch_up_with_nothing_counted_twice() {
    let server = TestServer::start_with(|config| {
        config.limits.max_outbox_bytes = 64 << 10;
        config.limits.recent_bytes = 128 << 10;
    });
    let mut http = server.http();
    let mut slow = server.subscribe("lab");
    let behind = r#"threadcast_subscribers_behind{topic="channel"}"#;
    let content = "x".repeat(100_000);
    let mut published = 0;
    eventually("it falls behind", || {
        http.publish("lab", &content);
        published += 1;
        page(&mut http).value(behind) == 1.0
    });
    // What it lacks is no longer in memory.
    for _ in 0..20 {
        http.publish("lab", &content);
        published += 1;
    }
    let seen = page(&mut http);
    assert!(seen.value("threadcast_fall_behinds_total") >= 1.0);
    for series in [
        r#"threadcast_subscribers_behind_ids{topic="channel"}"#,
        r#"threadcast_subscribers_behind_max_ids{topic="channel"}"#,
        r#"threadcast_outbox_bytes{topic="channel"}"#,
    ] {
        assert!(seen.value(series) > 0.0, "{series}");
    }
    for _ in 0..published {
        slow.next_message();
    }
    reaches(&mut http, behind, 0.0);
    reaches(
        &mut http,
        r#"threadcast_outbox_bytes{topic="channel"}"#,
        0.0,
    );
    let seen = page(&mut http);
    assert!(seen.value(r#"threadcast_deliveries_total{source="store"}"#) > 0.0);
    assert_eq!(
        seen.sum("threadcast_deliveries_total"),
        f64::from(published)
    );
}

#[test]
fn coming_back_and_gaps_are_counted_by_how_and_why() {
    let server = TestServer::start_with(|config| config.retention.keep_messages = Some(2));
    let mut http = server.http();
    for number in 0..6 {
        http.publish("lab", &number.to_string());
    }
    reaches(&mut http, "threadcast_oldest_message_id", 5.0);
    for (query, first) in [
        ("since=5", "message"),
        ("since=1", "gap"),
        ("since=99", "gap"),
        ("last=1", "message"),
    ] {
        let mut socket = server.subscribe(&format!("lab?{query}"));
        assert_eq!(socket.next()["type"], first, "{query}");
    }
    reaches(
        &mut http,
        r#"threadcast_gaps_total{reason="retention"}"#,
        1.0,
    );
    let seen = page(&mut http);
    for (series, value) in [
        (r#"threadcast_gaps_total{reason="unknown_id"}"#, 1.0),
        (r#"threadcast_resumes_total{start="since"}"#, 3.0),
        (r#"threadcast_resumes_total{start="last"}"#, 1.0),
    ] {
        assert_eq!(seen.value(series), value, "{series}");
    }
    // One for `since=5`, two for `since=1`, one for `last=1`.
    assert_eq!(seen.sum("threadcast_deliveries_total"), 4.0);
}

#[test]
fn subscribers_that_go_are_counted_by_the_code_they_were_given() {
    let server = TestServer::start();
    let mut http = server.http();
    let code = |code: &str| format!("threadcast_disconnects_total{{code=\"{code}\"}}");

    drop(server.subscribe("lab"));
    reaches(&mut http, &code("none"), 1.0);

    let mut leaves = server.subscribe("lab");
    leaves.socket.close(None).expect("a close frame");
    leaves.close_code();
    reaches(&mut http, &code("1000"), 1.0);

    let mut sends_bytes = server.subscribe("lab");
    sends_bytes
        .socket
        .send(tungstenite::Message::binary(vec![1]))
        .expect("the server takes a frame");
    assert_eq!(sends_bytes.close_code(), Some(1003));
    reaches(&mut http, &code("1003"), 1.0);

    // An event stream has no close frames, but a last word for the same reasons.
    let mut ended = server.subscribe("lab");
    let _stream = Sse::open(server.address, "/api/sse/lab");
    let list = http.get("/api/connections").json();
    let list = list["connections"].as_array().expect("a list").clone();
    assert_eq!(list.len(), 2);
    for connection in list {
        let path = format!("/api/connections/{}", connection["id"]);
        assert_eq!(http.request("DELETE", &path, &[], b"").status, 200);
    }
    assert_eq!(ended.close_code(), Some(1008));
    drop(ended);
    reaches(&mut http, &code("1008"), 2.0);
    assert_eq!(page(&mut http).sum("threadcast_disconnects_total"), 5.0);
}

#[test]
fn a_socket_that_takes_no_byte_is_counted_with_1013() {
    let server = TestServer::start_with(|config| {
        config.limits.write_timeout = std::time::Duration::from_millis(200);
    });
    let mut http = server.http();
    let _stuck = server.subscribe("lab");
    let content = "x".repeat(200_000);
    eventually("it is given up", || {
        http.publish("lab", &content);
        let seen = page(&mut http);
        seen.value(r#"threadcast_disconnects_total{code="1013"}"#) == 1.0
    });
}

#[test]
fn states_are_counted_by_whether_they_change_anything() {
    let server = TestServer::start();
    let mut http = server.http();
    let mut feeds: Vec<_> = (0..2).map(|_| server.subscribe_feed("board")).collect();
    feeds.iter_mut().for_each(|feed| drop(feed.next()));
    for state in ["[1]", "[1]", "[ 1 ]", "[2]"] {
        http.put_state("board", state);
        if state != "[ 1 ]" {
            continue;
        }
        feeds.iter_mut().for_each(|feed| drop(feed.next()));
    }
    reaches(&mut http, "threadcast_state_deliveries_total", 4.0);
    let seen = page(&mut http);
    for (series, value) in [
        (r#"threadcast_states_published_total{changed="true"}"#, 2.0),
        (r#"threadcast_states_published_total{changed="false"}"#, 2.0),
        ("threadcast_messages_published_total", 0.0),
        ("threadcast_feeds", 1.0),
        ("threadcast_channels", 0.0),
        (r#"threadcast_subscribers_behind{topic="feed"}"#, 0.0),
    ] {
        assert_eq!(seen.value(series), value, "{series}");
    }
}

#[test]
fn requests_are_counted_by_status_and_refusals_by_limit() {
    let server = TestServer::start_with(|config| config.limits.max_body_bytes = 1000);
    let mut http = server.http();
    assert_eq!(http.get("/nothing").status, 404);
    assert_eq!(http.post_json("/api/messages", &json!({})).status, 422);
    // At the door, which closes behind it.
    let large = json!({"content": "x".repeat(2000)});
    assert_eq!(server.http().post_json("/api/messages", &large).status, 413);
    // A subscription that is refused is a request that is answered.
    assert_eq!(server.http().get("/api/ws/lab").status, 426);
    let seen = page(&mut http);
    for (code, number) in [("404", 1.0), ("422", 1.0), ("413", 1.0), ("426", 1.0)] {
        let series = format!("threadcast_http_requests_total{{code=\"{code}\"}}");
        assert_eq!(seen.value(&series), number, "{series}");
    }
    let limit = r#"threadcast_refusals_total{limit="message_bytes"}"#;
    assert_eq!(seen.value(limit), 1.0);
    // A page counts those before it.
    let good = r#"threadcast_http_requests_total{code="200"}"#;
    assert_eq!(seen.value(good), 0.0);
    assert_eq!(page(&mut http).value(good), 1.0);
}

#[test]
fn failing_watched_sources_are_counted() {
    let server = TestServer::start_with(|config| {
        config.watches = vec!["board=exec:exit 3".parse().expect("a watch")];
    });
    let _audience = server.subscribe_feed("board");
    let mut http = server.http();
    eventually("it fails", || {
        let seen = page(&mut http);
        let errors = seen.value("threadcast_watch_errors_total");
        errors >= 1.0 && errors <= seen.value("threadcast_watch_looks_total")
    });
}

#[test]
fn without_tokens_only_clients_of_the_same_machine_see_it() {
    let server = TestServer::start_with(|config| {
        config.trusted_proxies = vec!["127.0.0.0/8".parse().expect("a network")];
    });
    let forwarded = [("X-Forwarded-For", "203.0.113.7")];
    for (headers, status) in [(&[][..], 200), (&forwarded, 403)] {
        let answer = server.http().request("GET", "/metrics", headers, b"");
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.text());
    }
}

#[test]
fn there_are_as_many_series_however_many_channels_and_feeds() {
    let server = TestServer::start();
    let mut http = server.http();
    let before = page(&mut http).series().len();
    let _channels: Vec<_> = (0..20)
        .map(|number| server.subscribe(&format!("secret-{number}")))
        .collect();
    let _feeds: Vec<_> = (0..20)
        .map(|number| server.subscribe_feed(&format!("secret-{number}")))
        .collect();
    let text = http.get("/metrics").text();
    let seen = Page::parse(&text).expect("a good page");
    assert_eq!(seen.value("threadcast_channels"), 20.0);
    assert_eq!(seen.value("threadcast_feeds"), 20.0);
    assert_eq!(seen.series().len(), before);
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn the_process_is_seen_as_the_system_sees_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = common::Program::start(&dir.path().join("test.db"), &[]);
    let mut http = program.http();
    let seen = page(&mut http);
    let threads = program.entries("task").count();
    assert_eq!(seen.value("process_threads"), threads as f64);
    let fds = program.entries("fd").count() as f64;
    // One may be on its way while it is counted.
    assert!((seen.value("process_open_fds") - fds).abs() <= 2.0);
    assert!(seen.value("process_max_fds") > fds);
    let memory = seen.value("process_resident_memory_bytes");
    // The kernel adds its counters up roughly: what it calls the most may be some pages less.
    let most = (program.peak_memory() + (1 << 20)) as f64;
    assert!(memory > 1e6 && memory <= most, "{memory} of {most}");
    assert!(seen.value("process_virtual_memory_bytes") >= memory);
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).expect("a clock");
    let age = now.as_secs_f64() - seen.value("process_start_time_seconds");
    assert!((-2.0..60.0).contains(&age), "{age} s");
    assert!(seen.value("process_cpu_seconds_total") < 60.0);
}

#[test]
fn a_server_in_memory_has_no_database_to_measure() {
    let server = TestServer::start_with(|config| {
        config.database = threadcast::Database::Memory;
    });
    let mut http = server.http();
    http.publish("lab", "hello");
    let seen = page(&mut http);
    assert!(!seen.has(r#"threadcast_database_bytes{file="main"}"#));
    assert_eq!(seen.value("threadcast_newest_message_id"), 1.0);
}
