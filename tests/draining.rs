//! A server that is about to end says so, for as long as a load balancer takes to see it.
//!
//! The story: the port closed at once, the balancer looked every five seconds, and everybody
//! it sent there meanwhile saw an error at each deploy.

mod common;

use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use common::tokens::Tokens;
use common::{Http, Program, Response, TestServer, eventually, post_sized};
use rustix::process::Signal;

fn is_draining(answer: &Response) -> bool {
    if answer.status == 200 {
        assert_eq!(answer.json()["status"], "ok");
        return false;
    }
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.json()["status"], "draining");
    assert_eq!(answer.header("Retry-After"), Some("1"));
    true
}

#[test]
fn during_the_delay_everything_goes_on_but_health_says_draining() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut program = Program::start(&dir.path().join("test.db"), &["--drain-delay", "1h"]);
    let mut socket = program.subscribe("lab");
    let mut kept = program.http();
    assert!(!is_draining(&kept.get("/api/health")));
    program.signal(Signal::TERM);
    eventually("health says draining", || {
        is_draining(&program.http().get("/api/health"))
    });
    // A connection from before sees it, too, and is not kept any longer.
    let answer = kept.get("/api/health");
    assert!(is_draining(&answer));
    assert_eq!(answer.header("Connection"), Some("close"));
    assert!(kept.closed());
    program.http().publish("lab", "still here");
    assert_eq!(socket.next_message()["content"], "still here");
    program.subscribe("lab").is_quiet();
    let metrics = program.http().get("/metrics").text();
    assert!(metrics.contains("\nthreadcast_draining 1\n"), "{metrics}");
    // A second signal ends it at once, as ever.
    program.signal(Signal::TERM);
    assert_eq!(program.wait().code(), Some(1));
}

#[test]
fn a_load_balancer_needs_no_token_to_see_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let tokens = Tokens::new();
    let file = tokens.path.to_str().expect("ASCII");
    let args = ["--drain-delay", "1h", "--tokens", file];
    let program = Program::start(&dir.path().join("test.db"), &args);
    assert!(!is_draining(&program.http().get("/api/health")));
    program.signal(Signal::TERM);
    eventually("health says draining", || {
        is_draining(&program.http().get("/api/health"))
    });
    let head = program.http().request("HEAD", "/api/health", &[], b"");
    assert_eq!(head.status, 503);
}

#[test]
fn after_the_delay_it_ends_in_order() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let args = ["--drain-delay", "300ms"];
    let mut program = Program::start(&dir.path().join("test.db"), &args);
    let mut socket = program.subscribe("lab");
    program.signal(Signal::TERM);
    assert_eq!(socket.close_code(), Some(1001));
    drop(socket);
    assert_eq!(program.wait().code(), Some(0));
}

#[test]
fn a_request_that_is_being_read_when_the_server_stops_hears_that_it_is_draining() {
    let mut server = TestServer::start_with(|config| config.drain = Duration::from_secs(60));
    let address = server.address;
    let mut http = Http::connect(address);
    http.send(
        "GET /api/health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\
         Expect: 100-continue\r\n\r\n",
    );
    assert_eq!(http.response(false).status, 100);
    thread::scope(|scope| {
        scope.spawn(|| server.shutdown());
        eventually("the port is closed", || {
            TcpStream::connect(address).is_err()
        });
        http.send("[]");
        assert!(is_draining(&http.response(false)));
        assert!(http.closed());
    });
}

#[test]
fn what_was_sent_on_an_answer_that_kept_the_connection_is_answered() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut program = Program::start(&dir.path().join("test.db"), &["--drain", "60s"]);
    let mut clients: Vec<Http> = (0..20).map(|_| program.http()).collect();
    let body = r#"{"channel_id": "lab", "author": "test", "content": "x"}"#;
    for http in &mut clients {
        http.publish("lab", "x");
        http.send(post_sized(body));
    }
    program.signal(Signal::TERM);
    for http in &mut clients {
        let answer = http.response(false);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(http.closed());
    }
    assert_eq!(program.wait().code(), Some(0));
}
