//! Clients that stall, lie, flood, vanish or take every descriptor: each gets its answer or its
//! end, and nobody else waits, loses or hears anything because of it.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Resource, Signal};
use serde_json::json;

use common::{Http, Program, TestServer, Ws, eventually, post, post_chunked, post_sized};

const MESSAGE: &str = r#"{"channel_id":"lab","author":"ada","content":"hi"}"#;
const HEALTH: &str = "GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n";

const UPGRADE: &str = "GET /api/ws/lab HTTP/1.1\r\nHost: localhost\r\n\
    Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Long enough for a busy machine, short enough to wait for.
const SHORT: Duration = Duration::from_secs(1);

/// What nobody should ever wait for on a server with nothing to do.
const PROMPT: Duration = Duration::from_secs(10);

/// A POST, a page of history and a WebSocket, each on a connection of its own.
fn assert_serves(address: SocketAddr) {
    let mut listener = Ws::subscribe(address, "alive");
    let id = Http::connect(address).publish("alive", "still here");
    assert_eq!(listener.next_message()["id"], id);
    let page = Http::connect(address).get("/api/messages?channel_id=alive&limit=1");
    assert_eq!(page.json()["messages"][0]["id"], id);
}

#[test]
fn nothing_that_follows_a_refused_request_is_executed() {
    let server = TestServer::start();
    let end = "0\r\n\r\n";
    let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
    let late = "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n";
    for refused in [
        post(both, end),
        post(late, end),
        post("Content-Length: 0\r\nContent-Length: 3\r\n", ""),
        post("Content-Length: 0\r\nContent-Length: 0\r\n", ""),
        post("Content-Length: +0\r\n", ""),
        post("Content-Length : 0\r\n", ""),
        post("Content-Length: 300000\r\n", ""),
        post("", ""),
        post("Transfer-Encoding: cow\r\n", end),
        post("Transfer-Encoding: chunked, identity\r\n", end),
        post_chunked(end).replace("HTTP/1.1", "HTTP/1.0"),
        post_chunked("x\r\n\r\n"),
        post_chunked("1\r\n{}\r\n0\r\n\r\n"),
        post_chunked("2;\n{}\r\n0\r\n\r\n"),
        HEALTH.replace("Host", "X-A: 1\nHost"),
        HEALTH.replace("Host", "X-A: 1\r\n X-B: 2\r\nHost"),
        HEALTH.replace("Host:", "Host :"),
        HEALTH.replace("Host", "X-A"),
    ] {
        let mut http = server.http();
        http.send(format!("{refused}{}", post_sized(MESSAGE)));
        assert!(http.response(false).status >= 400, "{refused}");
        assert!(http.closed(), "answered twice or left open: {refused}");
    }
    let mut http = server.http();
    let closing = HEALTH.replace("Host", "Connection: close\r\nHost");
    http.send(closing + &post_sized(MESSAGE));
    assert_eq!(http.response(false).status, 200);
    assert!(http.closed(), "answered after `Connection: close`");
    assert_eq!(server.publish("lab", "the first to be stored"), 1);
}

#[test]
fn a_request_cut_short_stores_nothing() {
    let server = TestServer::start();
    for bytes in [
        post("Content-Length: 51\r\n", MESSAGE),
        post("Content-Length: 50\r\n", &MESSAGE[..49]),
        post_chunked(&format!("32\r\n{MESSAGE}\r\n")),
        post_chunked(&format!("32\r\n{MESSAGE}\r\n0\r\n")),
    ] {
        let mut http = server.http();
        http.send(&bytes);
        let shut = http.stream.shutdown(Shutdown::Write);
        shut.expect("an open connection");
        if let Some(response) = http.try_response(false) {
            assert_eq!(response.status, 400, "{bytes}");
        }
        assert!(http.closed(), "{bytes}");
    }
    assert_eq!(server.publish("lab", "the first to be stored"), 1);
}

#[test]
fn headers_the_server_uses_inside_mean_nothing_from_outside() {
    let server = TestServer::start();
    let mut http = server.http();
    http.publish("lab", "hi");
    let mut ask = |headers: &[(&str, &str)]| {
        let mut response = http.request("GET", "/api/messages?limit=1", headers, b"");
        response.headers.retain(|(name, _)| name != "Date");
        (response.status, response.headers, response.body)
    };
    let honest = ask(&[]);
    for name in ["peer", "Peer", "Identity", "Connection", "Request", "Id"] {
        let name = &*format!("X-Threadcast-{name}");
        for value in ["6.6.6.6:6", "admin", "-1", ""] {
            assert_eq!(ask(&[(name, value)]), honest, "{name}: {value}");
            let twice = ask(&[(name, value), (name, "1")]);
            assert_eq!(twice, honest, "{name}: {value}, twice");
        }
    }
}

#[test]
fn a_stalled_head_is_answered_408() {
    let server = TestServer::start_with(|config| config.limits.head_timeout = SHORT);
    for start in ["G", "GET / HTTP/1.1\r\nHost: local", "POST / HTTP/1.1\r\n"] {
        // On a new connection, and on one that has been used before.
        for used in [false, true] {
            let mut http = server.http();
            if used {
                assert_eq!(http.get("/api/health").status, 200);
            }
            http.send(start);
            assert_timed_out(&mut http);
        }
    }
    let mut silent = server.http();
    if silent
        .try_response(false)
        .is_some_and(|response| response.status != 408)
    {
        panic!("a connection that never sent a byte was answered");
    }
    assert!(silent.closed());
}

#[test]
fn a_stalled_body_is_answered_408() {
    let server = TestServer::start_with(|config| config.limits.body_timeout = SHORT);
    for stalled in [
        post("Content-Length: 50\r\n", ""),
        post("Content-Length: 50\r\n", &MESSAGE[..49]),
        post_chunked("5\r\nhel"),
        post_chunked("5\r\nhello\r\n"),
        post_chunked("0\r\nX-Trailer: "),
    ] {
        let mut http = server.http();
        http.send(stalled);
        assert_timed_out(&mut http);
    }
    assert_eq!(server.publish("lab", "the first to be stored"), 1);
}

#[test]
fn a_byte_now_and_then_does_not_buy_more_time() {
    let server = TestServer::start_with(|config| {
        config.limits.head_timeout = SHORT;
        config.limits.body_timeout = SHORT;
    });
    for start in [
        "GET / HTTP/1.1\r\nHost: localhost\r\nX-Padding: ".to_owned(),
        post("Content-Length: 100000\r\n", ""),
        post_chunked("ffff\r\n"),
    ] {
        let mut http = server.http();
        http.send(start);
        let mut drip = http.stream.try_clone().expect("a second handle");
        let dripping = thread::spawn(move || {
            while drip.write_all(b"x").is_ok() {
                thread::sleep(SHORT / 10);
            }
        });
        assert_timed_out(&mut http);
        drop(http);
        dripping
            .join()
            .expect("a thread that ends with its connection");
    }
}

/// The next thing on this connection is a 408, and its end.
fn assert_timed_out(http: &mut Http) {
    let start = Instant::now();
    let response = http.response(false);
    assert_eq!(response.status, 408, "{}", response.text());
    assert_eq!(response.json()["status"], 408);
    assert_eq!(response.header("Connection"), Some("close"));
    assert!(http.closed());
    assert!(start.elapsed() < SHORT + PROMPT, "{:?}", start.elapsed());
}

/// ^Z and `fg`, a debugger, a frozen container: a read that is interrupted has no more time for it.
#[test]
fn a_program_that_is_stopped_again_and_again_ends_stalled_requests_all_the_same() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let args = "--idle-timeout 1s --head-timeout 1s --body-timeout 1s";
    let args: Vec<&str> = args.split(' ').collect();
    let program = Program::start(&dir.path().join("test.db"), &args);
    let mut idle = program.http();
    assert_eq!(idle.get("/api/health").status, 200);
    let mut stalled = [
        "GET / HTTP/1.1\r\nHost: local".to_owned(),
        post("Content-Length: 50\r\n", &MESSAGE[..49]),
    ]
    .map(|start| {
        let mut http = program.http();
        http.send(start);
        http
    });
    thread::scope(|scope| {
        let [head, body] = &mut stalled;
        let ends = [
            scope.spawn(|| assert_timed_out(head)),
            scope.spawn(|| assert_timed_out(body)),
            scope.spawn(|| assert!(idle.closed())),
        ];
        while !ends.iter().all(|end| end.is_finished()) {
            program.signal(Signal::STOP);
            thread::sleep(SHORT / 20);
            program.signal(Signal::CONT);
            thread::sleep(SHORT / 4);
        }
    });
}

#[test]
fn an_idle_connection_is_closed_after_its_time_and_not_before() {
    let idle = 3 * SHORT;
    let server = TestServer::start_with(|config| {
        config.limits.idle_timeout = idle;
        config.limits.head_timeout = SHORT;
        config.limits.body_timeout = SHORT;
    });
    let mut listener = server.subscribe("lab");
    let mut http = server.http();
    let start = Instant::now();
    http.publish("lab", "the last for now");
    assert!(http.closed(), "an idle connection ends without a word");
    assert!(
        start.elapsed() >= idle,
        "closed after {:?}",
        start.elapsed()
    );
    assert!(start.elapsed() < idle + PROMPT);
    // A subscriber is not idle, however quiet it is.
    let id = server.publish("lab", "and again");
    assert_eq!(listener.next_message()["content"], "the last for now");
    assert_eq!(listener.next_message()["id"], id);
}

#[test]
fn clients_that_send_byte_by_byte_delay_nobody() {
    let server = TestServer::start_with(|config| config.limits.max_rest_requests = 4);
    let request = post_sized(MESSAGE);
    let (most, last) = request.split_at(request.len() - 1);
    let mut slow: Vec<Http> = (0..20).map(|_| server.http()).collect();
    for byte in most.bytes() {
        slow.iter_mut().for_each(|http| http.send([byte]));
    }
    let start = Instant::now();
    let mut quick = server.http();
    for id in 1..=100 {
        assert_eq!(quick.publish("lab", "quick"), id);
    }
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    for http in &mut slow {
        http.send(last);
        assert_eq!(http.response(false).status, 200);
    }
}

/// Ten messages of 200 KiB.
fn fill_half_a_page(http: &mut Http) {
    for _ in 0..10 {
        http.publish("big", &"x".repeat(200 << 10));
    }
}

/// A page of almost 4 MiB.
fn fill_a_page(server: &TestServer) {
    fill_half_a_page(&mut server.http());
    fill_half_a_page(&mut server.http());
}

#[test]
fn clients_that_ask_for_pages_and_read_none_delay_nobody() {
    const PAGES: usize = 8;
    let server = TestServer::start_with(|config| {
        config.limits.max_rest_requests = 4;
        config.limits.write_timeout = Duration::from_secs(120);
    });
    fill_a_page(&server);
    let page = HEALTH.replace("/api/health", "/api/messages?limit=1000");
    let mut stalled: Vec<Http> = (0..8).map(|_| server.http()).collect();
    for http in &mut stalled {
        http.send(page.repeat(PAGES));
    }
    // The first byte of an answer is there, so each of them is stuck in the middle of one.
    for http in &mut stalled {
        assert_eq!(http.stream.peek(&mut [0]).expect("an answer"), 1);
    }
    let start = Instant::now();
    let mut quick = server.http();
    for _ in 0..100 {
        quick.publish("lab", "quick");
        assert_eq!(quick.get("/api/channels").status, 200);
    }
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    // Who reads late still gets all of it.
    let late = &mut stalled[0];
    for _ in 0..PAGES {
        let messages = late.response(false).json()["messages"].take();
        assert!(messages.as_array().is_some_and(|all| all.len() >= 20));
    }
}

#[test]
fn a_client_that_reads_nothing_is_given_up_after_the_write_timeout() {
    let server = TestServer::start_with(|config| config.limits.write_timeout = SHORT);
    fill_a_page(&server);
    let mut http = server.http();
    let page = HEALTH.replace("/api/health", "/api/messages?limit=1000");
    http.send(page.repeat(8));
    eventually("the server gives up", || {
        http.stream.write_all(b"\r\n").is_err()
    });
    assert_serves(server.address);
}

#[test]
fn one_connection_too_many_is_answered_503() {
    let server = TestServer::start_with(|config| config.limits.max_connections = 3);
    let mut held = [server.http(), server.http(), server.http()];
    for http in &mut held {
        assert_eq!(http.get("/api/health").status, 200);
    }
    let mut refused = server.http();
    refused.send(HEALTH);
    let response = refused.response(false);
    assert_eq!(response.status, 503);
    assert_eq!(response.json()["status"], 503);
    assert!(
        response.header("Retry-After").is_some(),
        "{:?}",
        response.headers
    );
    assert!(refused.closed());
    let [mut first, second, _third] = held;
    assert_eq!(first.get("/api/health").status, 200);
    drop(second);
    eventually("its place is free again", || {
        answers(server.address, HEALTH, "HTTP/1.1 200").is_some()
    });
}

#[test]
fn hundreds_of_hostile_connections_leave_nothing_behind() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = Program::start(&dir.path().join("test.db"), &[]);
    assert_serves(program.address);
    let (threads, sockets) = program.threads_and_sockets();
    let flood = format!("GET /{}", "x".repeat(40_000));
    let hostile: [&[u8]; 9] = [
        b"",
        b"GET / HT",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        flood.as_bytes(),
        HEALTH.as_bytes(),
        b"GET /api/messages HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"POST /api/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n{\"cha",
        UPGRADE.as_bytes(),
        b"GET /api/ws/lab HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n",
    ];
    let attack = |reset: bool| {
        for bytes in hostile.iter().cycle().take(360) {
            let mut stream = TcpStream::connect(program.address).expect("the server accepts");
            if reset {
                set_socket_linger(&stream, Some(Duration::ZERO)).expect("a socket");
            }
            // The server may have refused it half-way.
            let _ = stream.write_all(bytes);
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| attack(false));
        scope.spawn(|| attack(true));
    });
    assert_serves(program.address);
    eventually("every thread has ended, every socket is closed", || {
        let (now_threads, now_sockets) = program.threads_and_sockets();
        now_threads <= threads && now_sockets <= sockets
    });
    assert_eq!(program.http().publish("lab", "the first in the lab"), 3);
}

/// A connection on which the answer to `request` begins with `expected`; `None` when the server
/// refuses, closes or doesn't answer.
fn answers(address: SocketAddr, request: &str, expected: &str) -> Option<TcpStream> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut start = vec![0; expected.len()];
    stream.read_exact(&mut start).ok()?;
    (start == expected.as_bytes()).then_some(stream)
}

/// Takes every descriptor that is left, in both ways that connections take them: whoever is
/// there is still served, and when descriptors come back, so is everybody else.
fn starve(program: &Program) {
    let mut early = program.http();
    let before = early.publish("lab", "before");
    for (request, expected) in [(HEALTH, "HTTP/1.1 200"), (UPGRADE, "HTTP/1.1 101")] {
        let mut held = Vec::new();
        while let Some(stream) = answers(program.address, request, expected) {
            held.push(stream);
            assert!(held.len() < 80, "more connections than descriptors");
        }
        assert!(!held.is_empty(), "nobody can connect");
        // And as many more as the system takes, which send nothing at all.
        let connect = |_| TcpStream::connect_timeout(&program.address, SHORT).ok();
        let silent: Vec<_> = (0..100).map_while(connect).collect();
        for _ in 0..20 {
            early.publish("lab", "during");
            assert_eq!(early.get("/api/messages?limit=1").status, 200);
        }
        drop((held, silent));
        eventually("new connections are answered", || {
            answers(program.address, UPGRADE, "HTTP/1.1 101").is_some()
        });
        assert_serves(program.address);
    }
    assert_eq!(early.publish("lab", "after"), before + 2 * 20 + 2 + 1);
}

#[test]
fn a_server_started_with_few_descriptors_serves_as_many_clients_as_it_can() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -n 80; exec "$0" "$@""#]);
    command.arg(env!("CARGO_BIN_EXE_threadcast"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--db"]);
    command.arg(dir.path().join("test.db"));
    starve(&Program::start_command(command));
}

/// Here the server could not know: `accept` fails with EMFILE.
#[test]
fn a_server_that_runs_out_of_descriptors_serves_who_is_there_and_recovers() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = Program::start(&dir.path().join("test.db"), &[]);
    assert_serves(program.address);
    let few = program.entries("fd").count() as u64 + 12;
    program.limit(Resource::Nofile, Some(few));
    starve(&program);
}

/// Pages are read on several threads; none of them may need a new descriptor for that.
#[test]
fn several_can_read_history_when_no_descriptor_is_left() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = Program::start(&dir.path().join("test.db"), &[]);
    let mut early: Vec<Http> = (0..6).map(|_| program.http()).collect();
    for http in &mut early {
        fill_half_a_page(http);
    }
    let few = program.entries("fd").count() as u64;
    program.limit(Resource::Nofile, Some(few));
    let page = HEALTH.replace("/api/health", "/api/messages?limit=2");
    for http in &mut early {
        http.send(page.repeat(20));
    }
    for http in &mut early {
        for _ in 0..20 {
            let response = http.response(false);
            assert_eq!(response.status, 200, "{}", response.text());
        }
    }
}

#[test]
fn a_publisher_that_reads_no_answers_delays_nobody_and_gets_all_of_them_in_order() {
    const MESSAGES: usize = 60;
    let server = TestServer::start_with(|config| {
        config.limits.write_timeout = Duration::from_secs(120);
    });
    // The answers, which have the messages in them, are far more than a socket takes.
    let padding = "x".repeat(200 << 10);
    let mut stalled = server.http();
    let mut sending = stalled.stream.try_clone().expect("the same socket");
    let requests = (0..MESSAGES).map(|number| {
        let content = format!("{number} {padding}");
        post_sized(&json!({"channel_id": "big", "author": "ada", "content": content}).to_string())
    });
    let requests: Vec<String> = requests.collect();
    thread::scope(|scope| {
        scope.spawn(move || {
            for request in requests {
                sending.write_all(request.as_bytes()).expect("it is read");
            }
        });
        assert_eq!(stalled.stream.peek(&mut [0]).expect("an answer"), 1);
        let start = Instant::now();
        let mut quick = server.http();
        for _ in 0..100 {
            quick.publish("lab", "quick");
        }
        assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
        let mut last = 0;
        for number in 0..MESSAGES {
            let message = stalled.response(false).json()["message"].take();
            let content = message["content"].as_str().expect("a content");
            assert!(content.starts_with(&format!("{number} ")), "not {number}");
            let id = message["id"].as_u64().expect("an id");
            assert!(id > last, "{id} after {last}");
            last = id;
        }
    });
}
