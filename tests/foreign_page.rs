//! A page of another site, in a real browser on the machine of the server: it can neither read
//! nor publish, whatever it tries.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use common::TestServer;
use common::browser::{Browser, Page};
use serde_json::{Value, json};

/// A site that is somebody else's, by a name that leads to this machine.
const EVIL: &str = "evil.test";

/// What a page can try; each says `in` or `out`. `form` and `blind` hear nothing of what came
/// of them.
const TRY_ALL: &str = r#"
(async () => {
    const http = `http://${target}`, post = (init) =>
        fetch(`${http}/api/messages`, {method: "POST", body: message, ...init});
    const headers = {"Content-Type": "application/json"};
    const outcome = (promise) => promise.then(() => "in", () => "out");
    const event = (source) => new Promise((open, fail) => {
        source.onopen = open;
        source.onerror = fail;
    });
    const form = document.createElement("form");
    form.method = "POST";
    form.enctype = "text/plain";
    form.action = `${http}/api/messages`;
    form.target = "answer";
    const input = document.createElement("input");
    input.name = message.slice(0, -2);
    input.value = message.slice(-2);
    form.append(input);
    const frame = document.createElement("iframe");
    frame.name = "answer";
    document.body.append(form, frame);
    const loaded = new Promise((done) => frame.onload = done);
    form.submit();
    await loaded;
    await outcome(post({mode: "no-cors"}));
    await outcome(fetch(`${http}/sse/board`, {mode: "no-cors"}));
    return {
        socket: await outcome(event(new WebSocket(`ws://${target}/api/ws/lab`))),
        feed: await outcome(event(new WebSocket(`ws://${target}/ws/board`))),
        stream: await outcome(event(new EventSource(`${http}/api/sse/lab`))),
        read: await outcome(fetch(`${http}/api/messages`)),
        json: await outcome(post({headers})),
        plain: await outcome(post({})),
        put: await outcome(fetch(`${http}/api/state/board`, {method: "PUT", headers, body: "1"})),
        end: await outcome(fetch(`${http}/api/connections/1`, {method: "DELETE"})),
    };
})()
"#;

#[test]
fn a_foreign_page_can_neither_read_nor_publish_and_one_of_this_machine_can() {
    let rule = format!("--host-resolver-rules=MAP {EVIL} 127.0.0.1");
    let Some(mut browser) = Browser::start_with(&[&rule]) else {
        return;
    };
    let server = TestServer::start();
    let site = site();
    let mut evil = browser.open(&format!("http://{EVIL}:{}/", site.port()));
    let tried = try_all(&mut evil, server.address);
    for (way, outcome) in tried.as_object().expect("an object") {
        assert_eq!(outcome, "out", "{way}: {tried}");
    }
    let mut http = server.http();
    assert_eq!(
        http.get("/api/messages").json()["head"],
        0,
        "nothing is stored"
    );
    assert_eq!(
        http.get("/api/state/board").json()["rev"],
        0,
        "nothing is published"
    );
    assert_eq!(server.server().active_connections(), 0, "nobody subscribes");

    // The same page where it may: the browser can do all of this.
    let mut own = browser.open(&format!("http://localhost:{}/", site.port()));
    let tried = try_all(&mut own, server.address);
    for way in ["socket", "feed", "stream", "read", "json", "put"] {
        assert_eq!(tried[way], "in", "{way}: {tried}");
    }
    assert!(http.get("/api/messages").json()["head"].as_u64() >= Some(1));
    assert_eq!(http.get("/api/state/board").json()["rev"], 1);
}

/// The page's own name leads to the server by now (DNS rebinding): to the browser it is the
/// same origin, and only the `Host` tells.
#[test]
fn a_page_whose_name_was_made_to_lead_here_is_refused() {
    let rule = format!("--host-resolver-rules=MAP {EVIL} 127.0.0.1");
    let Some(mut browser) = Browser::start_with(&[&rule]) else {
        return;
    };
    let server = TestServer::start();
    server.publish("lab", "secret");
    let mut page = browser.open(&format!("http://{EVIL}:{}/", server.address.port()));
    page.wait("document.body.innerText.includes('is not a name of this server')");
    let answer = page.eval("fetch('/api/messages').then((answer) => answer.status)");
    assert_eq!(answer, 403);
}

fn try_all(page: &mut Page, target: SocketAddr) -> Value {
    let message = json!({"channel_id": "lab", "author": "page", "content": "x"}).to_string();
    let script = format!(
        "const target = {}, message = {}; {TRY_ALL}",
        json!(target.to_string()),
        json!(message)
    );
    page.eval(&format!("eval({})", json!(script)))
}

/// A web site with one empty page; ends with the test.
fn site() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            // The browser may open connections that it does not use yet.
            thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 21\r\nConnection: close\r\n\r\n<!doctype html><body>",
                );
            });
        }
    });
    address
}
