//! At every limit there is a clear answer, below it everything works, and the numbers tell.
//!
//! The story: a server that has a limit but says nothing at it is a server that is «sometimes
//! slow» or «drops connections», until somebody reads its source.

mod common;

use std::fs::{self, Permissions};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::thread;

use rusqlite::Connection;
use serde_json::{Value, json};
use tungstenite::Message;

use common::{Http, Program, Response, TestServer, Ws, eventually};

/// A user that is not root, by convention nobody.
const NOBODY: u32 = 65_534;

/// One limit, as a new connection is told.
fn limit(address: SocketAddr, name: &str) -> Value {
    limits(&mut Http::connect(address))[name].take()
}

fn limits(http: &mut Http) -> Value {
    http.get("/api/health").json()["limits"].take()
}

/// What a connection is told that asks for health, if it is told something before its end.
fn answer(address: SocketAddr) -> Option<Response> {
    let mut http = Http::connect(address);
    http.send("GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    http.try_response(false)
}

fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// The answer to a WebSocket handshake.
fn handshake(address: SocketAddr, path: &str) -> Response {
    let mut http = Http::connect(address);
    http.send(upgrade(path));
    http.response(false)
}

/// A problem of this status that says when to come again, and names these.
#[track_caller]
fn assert_refused(response: &Response, status: u16, names: &[&str]) {
    assert_eq!(response.status, status, "{}", response.text());
    let seconds = response.header("Retry-After").map(str::parse);
    assert!(matches!(seconds, Some(Ok(1_u32..))), "{response:?}");
    let problem = response.json();
    assert_eq!(problem["status"], status);
    let detail = problem["detail"].as_str().expect("a sentence");
    for name in names {
        assert!(detail.contains(name), "{name} is not in: {detail}");
    }
}

#[test]
fn a_connection_too_many_is_answered_503_and_counted() {
    let server = TestServer::start_with(|config| config.limits.max_connections = 2);
    let (mut first, mut second) = (server.http(), server.http());
    let before = json!({"used": 2, "max": 2, "refused": 0});
    assert_eq!(second.get("/api/health").status, 200);
    assert_eq!(limits(&mut first)["connections"], before);

    for _ in 0..3 {
        let refused = answer(server.address).expect("an answer");
        assert_refused(&refused, 503, &["2 connections"]);
    }
    let after = json!({"used": 2, "max": 2, "refused": 3});
    assert_eq!(limits(&mut first)["connections"], after);
    drop(second);
    eventually("the place is free again", || {
        limits(&mut first)["connections"]["used"] == 1
    });
    server.subscribe("lab");
}

/// The machine's own address, if it has one beside loopback: connecting a UDP socket sends
/// nothing, it only chooses the way (192.0.2.0/24 is for documentation, RFC 5737).
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[test]
fn an_address_with_too_many_connections_hears_429_and_loopback_never_does() {
    let server = TestServer::start_with(|config| {
        config.listen = "0.0.0.0:0".parse().expect("an address");
        config.insecure = true;
        config.limits.max_connections_per_address = 2;
    });
    let here = SocketAddr::from(([127, 0, 0, 1], server.address.port()));
    let mut exempt: Vec<Http> = (0..5).map(|_| Http::connect(here)).collect();
    for http in &mut exempt {
        assert_eq!(http.get("/api/health").status, 200);
    }
    let unused = json!({"max": 2, "refused": 0});
    assert_eq!(limits(&mut exempt[0])["per_address"], unused);

    let Some(own) = own_address() else {
        eprintln!("this machine has no address beside loopback: only the exemption was tested");
        return;
    };
    let there = SocketAddr::new(own, server.address.port());
    let mut first = Http::connect(there);
    assert_eq!(first.get("/api/health").status, 200);
    let mut second = Ws::subscribe(there, "lab");
    for _ in 0..3 {
        let refused = answer(there).expect("an answer");
        let names = ["2 connections", "--max-connections-per-address"];
        assert_refused(&refused, 429, &names);
        assert_eq!(refused.reason, "Too Many Requests");
    }
    assert_eq!(limits(&mut first)["per_address"]["refused"], 3);
    let id = exempt[0].publish("lab", "others are served");
    assert_eq!(second.next_message()["id"], id);
    drop(second);
    eventually("the place is free again", || {
        answer(there).is_some_and(|response| response.status == 200)
    });
}

#[test]
fn a_channel_or_feed_with_too_many_subscribers_refuses_more_and_no_other_does() {
    let server = TestServer::start_with(|config| config.limits.max_subscribers = 2);
    let mut http = server.http();
    let put = |http: &mut Http, state: &[u8]| {
        let response = http.request("PUT", "/api/state/full", &[], state);
        assert_eq!(response.status, 200);
    };
    put(&mut http, b"\"before\"");
    for (path, other, name) in [
        ("/api/ws/full", "/api/ws/other", "channel \"full\""),
        ("/ws/full", "/ws/other", "feed full"),
    ] {
        let is_channel = name.starts_with("channel");
        let mut there = [0, 1].map(|_| Ws::open(server.address, path));
        let refused_before = limits(&mut http)["subscribers"]["refused"].as_u64();
        for _ in 0..3 {
            let refused = handshake(server.address, path);
            assert_refused(&refused, 503, &[name, "2 subscribers", "--max-subscribers"]);
        }
        let refused = refused_before.map(|refused| refused + 3);
        let told = json!({"max": 2, "refused": refused});
        assert_eq!(limits(&mut http)["subscribers"], told);
        drop(Ws::open(server.address, other));

        let id = http.publish("full", "hello");
        for subscriber in &mut there {
            let frame = subscriber.next();
            if is_channel {
                assert_eq!(frame["data"]["id"], id);
            } else {
                assert_eq!(frame["data"], "before");
            }
        }
        if !is_channel {
            put(&mut http, b"\"after\"");
            for subscriber in &mut there {
                assert_eq!(subscriber.next()["data"], "after");
            }
        }
        let [left, _stays] = there;
        drop(left);
        eventually("the place is free again", || {
            handshake(server.address, path).status == 101
        });
    }
}

/// A check before the registration would let a whole audience through that comes at once.
#[test]
fn subscribers_that_come_at_once_do_not_race_past_the_limit() {
    const MANY: usize = 24;
    let server = TestServer::start_with(|config| config.limits.max_subscribers = 5);
    // A check made too early went unnoticed in two runs of eight with ten rounds.
    for path in (0..25).flat_map(|round| ["/api/ws/", "/ws/"].map(|at| format!("{at}lab-{round}")))
    {
        let before = limits(&mut server.http())["subscribers"]["refused"].as_u64();
        let (all_are_here, all_are_answered) = (Barrier::new(MANY), Barrier::new(MANY));
        let join = || {
            let mut http = server.http();
            assert_eq!(http.get("/api/health").status, 200);
            all_are_here.wait();
            http.send(upgrade(&path));
            let status = http.response(false).status;
            all_are_answered.wait();
            status
        };
        let mut statuses: Vec<u16> = thread::scope(|scope| {
            let threads: Vec<_> = (0..MANY).map(|_| scope.spawn(join)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("an answer"))
                .collect()
        });
        statuses.sort_unstable();
        let expected = [vec![101; 5], vec![503; MANY - 5]].concat();
        assert_eq!(statuses, expected, "{path}");
        let after = limits(&mut server.http())["subscribers"]["refused"].as_u64();
        assert_eq!(after, before.map(|before| before + MANY as u64 - 5));
    }
}

/// The disk stands still: what waits for it is bounded, and the server can be asked all the while.
#[test]
fn a_journal_that_is_too_far_behind_answers_503_until_it_has_caught_up() {
    let server = TestServer::start_with(|config| config.limits.max_queued_bytes = 1000);
    let lock = Connection::open(server.database()).expect("a database");
    lock.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let body = json!({"channel_id": "lab", "author": "a", "content": "x".repeat(1000)}).to_string();
    let mut waiting = server.http();
    waiting.send(format!(
        "POST /api/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    let mut http = server.http();
    eventually("a message waits", || {
        limits(&mut http)["queued_bytes"]["used"].as_u64() >= Some(1000)
    });
    let names = ["1000 bytes", "--max-queued-bytes"];
    let draft = json!({"channel_id": "lab", "author": "a", "content": "one more"});
    assert_refused(&http.post_json("/api/messages", &draft), 503, &names);
    let state = http.request("PUT", "/api/state/board", &[], b"1");
    assert_refused(&state, 503, &names);

    lock.execute_batch("ROLLBACK").expect("an unlock");
    assert_eq!(waiting.response(false).status, 200);
    let caught_up = json!({"used": 0, "max": 1000, "refused": 2});
    eventually("nothing waits", || {
        limits(&mut http)["queued_bytes"] == caught_up
    });
    http.publish("lab", "one more");
    let contents = http.get("/api/messages").json()["messages"]
        .as_array()
        .map(|messages| messages.len());
    assert_eq!(contents, Some(2), "what was refused is not stored");
}

#[test]
fn bodies_and_frames_that_are_too_large_are_refused_and_counted_one_by_one() {
    let server = TestServer::start_with(|config| config.limits.max_body_bytes = 500);
    let refused = || limit(server.address, "message_bytes")["refused"].take();
    let start = "POST /api/messages HTTP/1.1\r\nHost: localhost\r\n";
    for (count, body) in [
        (1, "Content-Length: 501\r\n\r\n"),
        (2, "Transfer-Encoding: chunked\r\n\r\n1f5\r\n"),
    ] {
        let mut http = server.http();
        http.send(format!("{start}{body}"));
        assert_eq!(http.response(false).status, 413);
        assert_eq!(refused(), count);
    }
    let mut ws = server.subscribe("lab");
    let text = |length| json!({"type": "message", "author": "a", "content": "x".repeat(length)});
    ws.send(&text(501));
    assert_eq!(ws.next()["code"], "too_large");
    assert_eq!(refused(), 3);
    ws.send(&text(400));
    assert_eq!(ws.next_message()["id"], 1);
    ws.socket
        .send(Message::text("x".repeat(1001)))
        .expect("the server reads");
    assert_eq!(ws.close_code(), Some(1009));
    assert_eq!(
        limit(server.address, "message_bytes"),
        json!({"max": 500, "refused": 4})
    );
}

#[test]
fn one_feed_too_many_is_refused_and_those_that_are_there_go_on() {
    let server = TestServer::start_with(|config| config.limits.max_feeds = 1);
    let mut http = server.http();
    let mut put = |feed: &str, state: &str| {
        let target = format!("/api/state/{feed}");
        http.request("PUT", &target, &[], state.as_bytes()).status
    };
    assert_eq!(put("board", "1"), 200);
    assert_eq!(put("one-more", "1"), 422);
    assert_eq!(put("board", "2"), 200);
    assert_eq!(put("workflows", "[]"), 200);
    let told = json!({"used": 1, "max": 1, "refused": 1});
    assert_eq!(limit(server.address, "feeds"), told);
}

#[test]
fn channels_and_feeds_that_nobody_wrote_to_are_forgotten_with_their_last_subscriber() {
    let server = TestServer::start();
    let mut http = server.http();
    http.publish("stays", "hello");
    http.request("PUT", "/api/state/stays", &[], b"1");
    let mut known = |names: &str| {
        let channels = http.get("/api/channels").json()["channels"].take();
        let feeds = http.get("/api/state").json()["feeds"].take();
        let feeds = feeds.as_array().expect("feeds").iter();
        let feeds = feeds.map(|feed| feed["feed"].as_str().expect("a name").to_owned());
        let built_in = ["routes", "workflow-history", "workflows"];
        let feeds: Vec<_> = feeds.filter(|feed| !built_in.contains(&&**feed)).collect();
        let names: Vec<_> = names.split(' ').collect();
        channels == json!(names) && feeds == names
    };
    let names = ["passing-1", "passing-2", "stays"];
    let subscribers: Vec<_> = names
        .iter()
        .flat_map(|name| ["/api/ws/", "/ws/"].map(|path| format!("{path}{name}")))
        .map(|path| Ws::open(server.address, &path))
        .collect();
    assert!(known("passing-1 passing-2 stays"));
    drop(subscribers);
    eventually("they are forgotten", || known("stays"));
}

/// A program started behind this line of shell, and its log.
fn start_behind(limit: &str, program: &Path, dir: &Path, user: Option<u32>) -> (Program, String) {
    let log = dir.join("log");
    let script = format!(r#"{limit}; exec "$0" "$@" 2>"{}""#, log.display());
    let mut command = Command::new("sh");
    command
        .args(["-c", &script])
        .arg(program)
        .args(["--listen", "127.0.0.1:0", "--db", ":memory:"])
        .current_dir(dir);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let program = Program::start_command(command);
    let log = fs::read_to_string(log).expect("a log");
    (program, log)
}

/// The log names the rule and what to do; that many are served, and one more hears 503.
fn serves_as_many_as_it_says(program: &Program, log: &str, names: &[&str]) {
    let line = log
        .lines()
        .find(|line| line.contains("connections at most, not 10000"))
        .unwrap_or_else(|| panic!("nothing about connections in the log: {log}"));
    for name in names {
        assert!(line.contains(name), "{name} is not in: {line}");
    }
    let mut http = program.http();
    let max = limits(&mut http)["connections"]["max"].as_u64();
    let max = max.expect("a number");
    assert!(line.contains(&format!(" {max} connections")), "{line}");

    let mut others: Vec<Ws> = (1..max).map(|_| program.subscribe("lab")).collect();
    let refused = answer(program.address).expect("an answer");
    assert_refused(&refused, 503, &[&format!("{max} connections")]);
    let id = http.publish("lab", "for all of them");
    for ws in &mut others {
        assert_eq!(ws.next_message()["id"], id);
    }
}

#[test]
fn a_program_that_may_have_few_descriptors_says_so_and_serves_as_many_as_fit() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let binary = Path::new(env!("CARGO_BIN_EXE_threadcast"));
    let (program, log) = start_behind("ulimit -n 300", binary, dir.path(), None);
    serves_as_many_as_it_says(&program, &log, &["300 descriptors", "ulimit -n"]);
}

/// It is `-u` in most shells, and `-p` in dash.
fn limit_threads(count: usize) -> String {
    format!("ulimit -u {count} 2>/dev/null || ulimit -p {count}")
}

/// Root may have any number of threads, so root's tests run the program as nobody. Every other
/// user has threads of other programs, too: there only what the log says can be known.
#[test]
fn a_program_that_may_have_few_threads_says_so_and_serves_as_many_as_fit() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let binary = Path::new(env!("CARGO_BIN_EXE_threadcast"));
    if !rustix::process::getuid().is_root() {
        let (_program, log) = start_behind(&limit_threads(5000), binary, dir.path(), None);
        assert!(log.contains("the user may have 5000 threads"), "{log}");
        return;
    }
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("a directory");
    let copy = dir.path().join("threadcast");
    fs::copy(binary, &copy).expect("a copy where nobody can reach it");
    let (program, log) = start_behind(&limit_threads(200), &copy, dir.path(), Some(NOBODY));
    serves_as_many_as_it_says(&program, &log, &["200 threads", "ulimit -u"]);
}
