//! TLS on the one port: everything that holds in plain holds over it, and what is no TLS, or
//! not in time, takes nothing from anybody.
#![cfg(feature = "tls")]

mod common;

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use common::cli::{Client, threadcast};
use common::identity::{Identity, Tunnel, plain};
use common::{DEADLINE, Http, Program, TestServer, Ws, eventually};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::process::Signal;
use rustls::AlertDescription;
use serde_json::{Value, json};
use threadcast::config::{Config, Database, Tls};
use threadcast::{Error, Server};
use tungstenite::Message;
use tungstenite::protocol::{Role, WebSocket};

#[test]
fn rest_works_over_https_with_many_requests_on_one_connection_and_large_bodies_both_ways() {
    let (server, identity) = start(|_| {});
    let mut http = Http::over(identity.connect(server.address));
    assert_eq!(http.get("/api/health").status, 200);
    let large = "x".repeat(255 << 10);
    for content in ["small", &large, "", &large] {
        let id = http.publish("lab", content);
        let page = http.get("/api/messages?channel_id=lab&limit=1").json();
        assert_eq!(page["messages"][0]["id"], id);
        assert_eq!(page["messages"][0]["content"], content);
    }
    // Two requests in one record: the second one's bytes are nowhere but in TLS.
    let request = "GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    http.send(request.repeat(2));
    assert_eq!(http.response(false).status, 200);
    assert_eq!(http.response(false).status, 200);
    let page = http.get("/api/messages?limit=1000");
    assert!(page.body.len() > 500 << 10);
    // Whoever reads `closed` was told that this is the end: without that it is an error.
    http.send("GET /api/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(http.response(false).status, 200);
    assert!(http.closed());
}

#[test]
fn a_subscriber_publishes_is_acknowledged_and_hears_everybody_over_wss() {
    let (server, identity) = start(|_| {});
    let mut one = identity.subscribe(server.address, "lab");
    let mut other = identity.subscribe(server.address, "lab");
    one.send(&json!({"type": "message", "author": "one", "content": "hi", "ref": 7}));
    let mut frames = [one.next(), one.next()];
    frames.sort_by_key(|frame| frame["type"].as_str().map(str::to_owned));
    assert_eq!(frames[0], json!({"type": "ack", "ref": 7, "id": 1}));
    assert_eq!(frames[1]["data"]["content"], "hi");
    assert_eq!(other.next_message(), frames[1]["data"]);
    let id = Http::over(identity.connect(server.address)).publish("lab", "from REST");
    for ws in [&mut one, &mut other] {
        assert_eq!(ws.next_message()["id"], id);
        ws.is_quiet();
    }
}

/// What came in one record with the handshake lay decrypted, and no `poll` ever told of it.
#[test]
fn frames_that_come_in_one_record_with_the_handshake_are_heard() {
    let (server, identity) = start(|_| {});
    let upgrade = "GET /api/ws/lab HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Filler: ";
    let mut frames = Vec::new();
    for number in 0..100 {
        let text = format!(r#"{{"type":"message","content":"{number:03}"}}"#);
        // Masked with zeros.
        frames.extend([0x81, 0x80 | text.len() as u8, 0, 0, 0, 0]);
        frames.extend(text.as_bytes());
    }
    // Heads that fill one read of the server and leave it nothing of the frames, too.
    for head in [300, 1 << 10, 2 << 10, 4 << 10, 8 << 10] {
        let filler = "x".repeat(head - upgrade.len() - 4);
        let mut bytes = format!("{upgrade}{filler}\r\n\r\n").into_bytes();
        assert_eq!(bytes.len(), head);
        bytes.extend(&frames);
        assert!(bytes.len() < 16 << 10);
        let mut ws = upgraded(identity.connect(server.address), &bytes);
        for number in 0..100 {
            assert_eq!(ws.next_message()["content"], format!("{number:03}"));
        }
    }
}

/// A WebSocket whose client sent these bytes, a handshake and more.
fn upgraded(mut tunnel: Tunnel, bytes: &[u8]) -> Ws<Tunnel> {
    tunnel.write_all(bytes).expect("the server takes it");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tunnel.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    Ws {
        socket: WebSocket::from_raw_socket(tunnel, Role::Client, None),
    }
}

#[test]
fn many_hear_all_in_order_while_one_does_not_read_and_it_misses_nothing_either() {
    const MESSAGES: usize = 400;
    let (server, identity) = start(|config| {
        config.limits.recent_bytes = 64 << 10;
        config.limits.write_timeout = 2 * DEADLINE;
    });
    let mut slow = identity.subscribe(server.address, "lab");
    set_socket_recv_buffer_size(&slow.socket.get_ref().sock, 64 << 10).expect("a buffer");
    let readers: Vec<_> = (0..20)
        .map(|_| {
            let mut ws = identity.subscribe(server.address, "lab");
            thread::spawn(move || hear(&mut ws, MESSAGES))
        })
        .collect();
    let mut http = Http::over(identity.connect(server.address));
    let content = "x".repeat(5 << 10);
    for _ in 0..MESSAGES {
        http.publish("lab", &content);
    }
    for reader in readers {
        let heard = reader.join().expect("a reader that hears everything");
        assert!(heard.is_sorted_by(|one, next| one < next));
    }
    // A quarter of it fits the kernel's buffers and the outbox; the rest it has from the store.
    let heard = hear(&mut slow, MESSAGES);
    assert!(heard.is_sorted_by(|one, next| one < next));
    slow.is_quiet();
}

#[test]
fn a_feed_s_subscriber_that_does_not_read_gets_the_newest_state_and_not_all() {
    let (server, identity) = start(|_| {});
    let mut slow = identity.open(server.address, "/ws/board");
    set_socket_recv_buffer_size(&slow.socket.get_ref().sock, 64 << 10).expect("a buffer");
    assert_eq!(slow.next()["rev"], 0);
    let mut http = Http::over(identity.connect(server.address));
    let filler = "x".repeat(100 << 10);
    for number in 1..=100 {
        http.put_state("board", &format!(r#"["{filler}",{number}]"#));
    }
    let mut revs = Vec::new();
    while revs.last() != Some(&100) {
        let frame = slow.next();
        let rev = frame["rev"].as_u64().expect("a rev");
        assert_eq!(frame["data"][1], rev);
        revs.push(rev);
    }
    assert!(revs.is_sorted_by(|one, next| one < next), "{revs:?}");
    assert!(revs.len() < 50, "{revs:?}");
    slow.is_quiet();
}

#[test]
fn a_large_frame_comes_whole_without_anything_that_pushes_it_and_so_does_a_farewell_behind_it() {
    let (mut server, identity) = start(|config| {
        config.limits.max_body_bytes = 4 << 20;
        config.drain = DEADLINE;
    });
    let mut ws = identity.open(server.address, "/ws/board");
    set_socket_recv_buffer_size(&ws.socket.get_ref().sock, 64 << 10).expect("a buffer");
    assert_eq!(ws.next()["rev"], 0);
    let mut http = Http::over(identity.connect(server.address));
    for rev in 1..=4 {
        http.put_state(
            "board",
            &format!("{:?}", "x".repeat((1 << 20) + rev * 1234)),
        );
        let frame = ws.next();
        assert_eq!(frame["rev"], rev);
        let state = frame["data"].as_str().expect("text");
        assert_eq!(state.len(), (1 << 20) + rev * 1234);
    }
    http.put_state("board", &format!("{:?}", "y".repeat(3 << 20)));
    let end = thread::spawn(move || server.shutdown());
    assert_eq!(ws.next()["data"].as_str().expect("text").len(), 3 << 20);
    assert_eq!(ws.close_code(), Some(1001));
    assert_eq!(ws.socket.get_mut().read(&mut [0]).expect("the end"), 0);
    end.join().expect("an orderly end");
}

#[test]
fn a_plain_client_is_told_in_plain_words_to_use_https_or_wss() {
    let (server, _identity) = start(|_| {});
    for request in [
        "GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /api/ws/lab HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\r\n",
        "?",
    ] {
        let mut http = server.http();
        http.send(request);
        let answer = http.response(false);
        assert_eq!(answer.status, 400);
        assert_eq!(
            answer.header("Content-Type"),
            Some("application/problem+json")
        );
        let detail = answer.json()["detail"].as_str().expect("text").to_owned();
        assert!(
            detail.contains("https://") && detail.contains("wss://"),
            "{detail}"
        );
        assert!(http.closed());
    }
}

#[test]
fn a_handshake_that_drips_ends_at_its_deadline_and_so_does_the_first_request() {
    let (server, identity) = start(|config| {
        config.limits.head_timeout = Duration::from_secs(3);
    });
    // The head of a record of 16 KiB, which takes far longer at this pace.
    let mut handshake = plain(server.address);
    handshake.write_all(&[22, 3, 1, 0x3f, 0xff]).expect("taken");
    let mut request = identity.connect(server.address);
    request.flush().expect("a handshake");
    while request.conn.is_handshaking() {
        request
            .conn
            .complete_io(&mut request.sock)
            .expect("a handshake");
    }
    let mut request = request.sock;
    request.write_all(&[23, 3, 3, 0x3f, 0xff]).expect("taken");
    let mut dripping = vec![handshake, request];
    eventually("both are closed", || {
        // Whatever they are answered, tickets or an alert, is no end.
        dripping.retain_mut(|stream| stream.write_all(&[7]).is_ok() && !has_ended(stream));
        dripping.is_empty()
    });
}

#[test]
fn whoever_sends_no_handshake_at_all_is_closed_at_the_deadline() {
    let (server, _identity) = start(|config| {
        config.limits.head_timeout = Duration::from_millis(100);
    });
    let mut silent = plain(server.address);
    assert_eq!(silent.read(&mut [0; 64]).expect("the end"), 0);
}

#[test]
fn garbage_that_begins_like_a_handshake_is_answered_with_an_alert() {
    let (server, identity) = start(|_| {});
    for garbage in [
        &[22, 3, 1, 0, 5, 99, 0, 0, 1, 0][..],
        &[22, 9, 9, 0, 1, 0],
        &[22; 200],
    ] {
        let mut stream = plain(server.address);
        stream.write_all(garbage).expect("taken");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        // A fatal alert (RFC 8446, section 6).
        assert_eq!(answer.first(), Some(&21), "{garbage:?}: {answer:?}");
        assert_eq!(answer.get(5), Some(&2), "{garbage:?}: {answer:?}");
    }
    let mut http = Http::over(identity.connect(server.address));
    assert_eq!(http.get("/api/health").status, 200);
}

#[test]
fn half_handshakes_take_nothing_from_whoever_makes_whole_ones() {
    let (server, identity) = start(|_| {});
    let mut hello = Vec::new();
    identity
        .connect(server.address)
        .conn
        .write_tls(&mut hello)
        .expect("a ClientHello");
    let half: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = plain(server.address);
            stream.write_all(&hello[..hello.len() / 2]).expect("taken");
            stream
        })
        .collect();
    let mut ws = identity.subscribe(server.address, "lab");
    let id = Http::over(identity.connect(server.address)).publish("lab", "hi");
    assert_eq!(ws.next_message()["id"], id);
    drop(half);
}

#[test]
fn at_the_limit_of_connections_the_handshake_is_refused_with_an_alert() {
    let (server, identity) = start(|config| config.limits.max_connections = 1);
    let _one = identity.subscribe(server.address, "lab");
    let mut other = identity.connect(server.address);
    let error = other.read(&mut [0]).expect_err("no place");
    let cause = error.get_ref().and_then(|error| error.downcast_ref());
    assert_eq!(
        cause,
        Some(&rustls::Error::AlertReceived(
            AlertDescription::InternalError
        )),
        "{error}"
    );
}

#[test]
fn the_end_is_announced_to_whoever_waits_and_the_close_frame_comes_before_it() {
    let (mut server, identity) = start(|_| {});
    let mut idle = Http::over(identity.connect(server.address));
    assert_eq!(idle.get("/api/health").status, 200);
    let mut ws = identity.subscribe(server.address, "lab");
    let closing = thread::spawn(move || {
        assert_eq!(ws.close_code(), Some(1001));
        // An end without `close_notify` would be an error here.
        let tunnel = ws.socket.get_mut();
        assert_eq!(tunnel.read(&mut [0]).expect("the end"), 0);
    });
    server.shutdown();
    assert!(idle.closed());
    closing.join().expect("a client that was told");
}

#[test]
fn sighup_gives_newcomers_the_new_certificate_and_a_broken_one_changes_nothing() {
    let before = Identity::new();
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("log");
    let [cert, key] = before
        .tls()
        .map(|path| path.to_str().expect("text").to_owned());
    let program = Program::start_logging(
        &dir.path().join("test.db"),
        &["--tls-cert", &cert, "--tls-key", &key],
        &log,
    );
    let logged = |text: &str| fs::read_to_string(&log).expect("a log").contains(text);
    let mut old = before.subscribe(program.address, "lab");

    let after = Identity::new();
    fs::copy(&after.tls()[0], &cert).expect("a copy");
    fs::copy(&after.tls()[1], &key).expect("a copy");
    program.signal(Signal::HUP);
    eventually("it says that it has reloaded", || {
        logged("the certificate as it is now")
    });
    let mut new = after.subscribe(program.address, "lab");
    assert!(before.connect(program.address).read(&mut [0]).is_err());

    fs::write(&cert, "-----BEGIN CERTIFICATE-----\n").expect("a file");
    program.signal(Signal::HUP);
    eventually("it says that it has not", || logged("stays as it was"));
    assert!(logged(&cert));
    let id = Http::over(after.connect(program.address)).publish("lab", "hi");
    for ws in [&mut old, &mut new] {
        assert_eq!(ws.next_message()["id"], id);
    }
}

#[test]
fn sigterm_under_load_ends_everybody_with_1001() {
    let identity = Identity::new();
    let dir = tempfile::tempdir().expect("a directory");
    let [cert, key] = identity
        .tls()
        .map(|path| path.to_str().expect("text").to_owned());
    let mut program = Program::start_logging(
        &dir.path().join("test.db"),
        &["--tls-cert", &cert, "--tls-key", &key, "--drain", "20s"],
        &dir.path().join("log"),
    );
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let mut ws = identity.subscribe(program.address, "lab");
            thread::spawn(move || {
                assert!(ws.next_message()["id"].is_u64());
                ws.close_code()
            })
        })
        .collect();
    let mut publisher = identity.subscribe(program.address, "lab");
    let frame = json!({"type": "message", "content": "x".repeat(1000)}).to_string();
    for number in 0.. {
        if number == 500 {
            program.signal(Signal::TERM);
        }
        if publisher.socket.send(Message::text(frame.clone())).is_err() || number == 1000 {
            break;
        }
    }
    for client in clients {
        assert_eq!(client.join().expect("a client that was told"), Some(1001));
    }
    drop(publisher);
    assert!(program.wait().success());
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_would_be_right() {
    let (one, other) = (Identity::new(), Identity::new());
    let [cert, key] = one.tls();
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("a mode");
        path
    };
    let missing = dir.path().join("missing.pem");
    let text = fs::read_to_string(&key).expect("a key");
    let open = file("open.pem", &text);
    fs::set_permissions(&open, Permissions::from_mode(0o640)).expect("a mode");
    let encrypted = file(
        "encrypted.pem",
        &text.replace("BEGIN PRIVATE", "BEGIN ENCRYPTED PRIVATE"),
    );
    let empty = file("empty.pem", "");
    let damaged = file("damaged.pem", "-----BEGIN CERTIFICATE-----\n?\n");
    let rows = [
        (&missing, &key, &missing, "cannot read"),
        (&cert, &missing, &missing, "cannot read"),
        (&empty, &key, &empty, "BEGIN CERTIFICATE"),
        (&cert, &empty, &empty, "BEGIN PRIVATE KEY"),
        (&damaged, &key, &damaged, "damaged"),
        (&key, &key, &key, "no certificate"),
        (&cert, &open, &open, "chmod 600"),
        (&cert, &encrypted, &encrypted, "openssl pkey"),
        (&cert, &other.tls()[1], &cert, "is not that of"),
    ];
    for (cert, key, culprit, advice) in rows {
        let mut config = Config::default();
        config.listen = "127.0.0.1:0".parse().expect("an address");
        config.database = Database::Memory;
        config.tls = Some(Tls {
            cert: cert.clone(),
            key: key.clone(),
        });
        let sentence = match Server::start(config) {
            Err(Error::Config(sentence)) => sentence,
            Err(error) => panic!("another error: {error}"),
            Ok(_) => panic!("it starts with {} and {}", cert.display(), key.display()),
        };
        assert!(sentence.contains(text_of(culprit)), "{sentence}");
        assert!(sentence.contains(advice), "{sentence}");
        assert!(!sentence.contains('\n'), "{sentence}");
    }
}

#[test]
fn the_start_up_line_and_its_curl_example_say_https() {
    let identity = Identity::new();
    let dir = tempfile::tempdir().expect("a directory");
    let [cert, key] = identity.tls();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_threadcast"));
    command
        .args(["--listen", "127.0.0.1:0", "--db"])
        .arg(dir.path().join("test.db"))
        .env("THREADCAST_TLS_CERT", cert)
        .env("THREADCAST_TLS_KEY", key)
        .stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut said = String::new();
    let mut stdout = child.stdout.take().expect("a pipe");
    while said.lines().count() < 2 || !said.ends_with('\n') {
        let mut bytes = [0; 1024];
        let read = stdout.read(&mut bytes).expect("text");
        assert!(read > 0, "{said}");
        said.push_str(std::str::from_utf8(&bytes[..read]).expect("text"));
    }
    child.kill().expect("a child");
    child.wait().expect("a child");
    assert!(said.contains("listening on https://127.0.0.1:"), "{said}");
    assert!(
        said.contains("curl -k -X POST https://127.0.0.1:"),
        "{said}"
    );
}

/// The program's own client commands know a server by the certificates that they are given, or
/// the system has, and by its name.
#[test]
fn sub_and_pub_speak_tls_with_servers_that_they_know() {
    let (server, identity) = start(|_| {});
    let (root, other) = (identity.root(), Identity::new());
    let url = format!("https://localhost:{}", server.address.port());
    let command = |args: &[&str], url: &str, root: Option<&str>| {
        let mut command = threadcast(args);
        command.args(["--url", url]);
        command.args(root.iter().flat_map(|root| ["--cacert", root]));
        command
    };
    let sub = command(
        &["sub", "lab", "--since", "0", "--count", "3000"],
        &url,
        Some(&root),
    );
    let (sub, stdout) = Client::spawn(sub);
    // More than one write takes, so that encrypted bytes wait for the socket.
    let lines: String = (0..3000)
        .map(|number| format!("{number} {}\n", "x".repeat(1000)))
        .collect();
    let (mut publisher, _) = Client::spawn(command(&["pub", "lab"], &url, Some(&root)));
    publisher.write(&lines);
    assert_eq!(publisher.end().0, Some(0));
    let heard = std::io::read_to_string(stdout).expect("text");
    let contents = heard.lines().map(|line| {
        let message: Value = serde_json::from_str(line).expect("JSON");
        message["content"].as_str().expect("text").to_owned()
    });
    assert!(contents.eq(lines.lines()), "all of them, in order");
    assert_eq!(sub.end().0, Some(0));
    let put = command(&["pub", "--state", "board", "[1]"], &url, Some(&root)).output();
    assert!(put.expect("it runs").status.success());
    assert_eq!(
        server
            .server()
            .last_state(&"board".parse().expect("a feed"))
            .state(),
        "[1]"
    );

    let address = format!("wss://{}", server.address);
    let (plain, stranger) = (format!("http://{}", server.address), other.root());
    for (url, root, said) in [
        (&url, None, "invalid peer certificate"),
        (&url, Some(&*stranger), "invalid peer certificate"),
        (&address, Some(&*root), "not valid for name"),
        (&url, Some("/no/such"), "/no/such"),
        (&plain, Some(&*root), "--cacert is for https"),
        (&plain, None, "https://"),
    ] {
        let run = command(&["sub", "lab"], url, root)
            .output()
            .expect("it runs");
        assert!([Some(1), Some(2)].contains(&run.status.code()), "{url}");
        let text = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(text.contains(said), "no {said} for {url}: {text}");
    }
}

fn start(change: impl FnOnce(&mut Config)) -> (TestServer, Identity) {
    let identity = Identity::new();
    let [cert, key] = identity.tls();
    let server = TestServer::start_with(|config| {
        config.tls = Some(Tls { cert, key });
        change(config);
    });
    (server, identity)
}

/// The ids of so many messages.
fn hear(ws: &mut Ws<Tunnel>, messages: usize) -> Vec<u64> {
    let id = |message: Value| message["id"].as_u64().expect("an id");
    (0..messages).map(|_| id(ws.next_message())).collect()
}

/// Looks without waiting.
fn has_ended(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).expect("non-blocking");
    let ended = loop {
        match stream.read(&mut [0; 1024]) {
            Ok(1..) => {}
            Ok(0) => break true,
            Err(error) => break error.kind() != ErrorKind::WouldBlock,
        }
    };
    stream.set_nonblocking(false).expect("blocking");
    ended
}

fn text_of(path: &Path) -> &str {
    path.to_str().expect("text")
}
