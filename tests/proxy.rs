//! Behind nginx and Caddy, run with the very configurations and flags of the README.

mod common;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use common::proxy::{Kind, Proxy, SITE, flags};
use common::system::{own_address, skipped};
use common::tokens::{Tokens, bearer};
use common::{DEADLINE, Http, Program, Response, Ws, eventually};
use data_encoding::BASE64URL_NOPAD;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use serde_json::{Value, json};
use tempfile::TempDir;
use threadcast::Limits;
use threadcast::access::Scope::{Admin, Publish, State, Subscribe};
use tungstenite::client::IntoClientRequest;
use tungstenite::http::{HeaderName, HeaderValue};
use tungstenite::{HandshakeError, Message};

/// A server with tokens and the README's flags, and a proxy in front of it.
struct Site {
    proxy: Proxy,
    server: Program,
    dir: TempDir,
    tokens: Tokens,
    /// May do everything.
    secret: String,
}

impl Site {
    fn start(kind: Kind, more: &[&str]) -> Self {
        let tokens = Tokens::new();
        let scopes = [Publish, Subscribe, State, Admin];
        let secret = tokens.add("all", &scopes, &["*"], &["*"]);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let any = SocketAddr::from((own_address(), 0));
        let server = serve(any, &dir, &tokens, more);
        Self {
            proxy: Proxy::start(kind, server.address),
            server,
            dir,
            tokens,
            secret,
        }
    }

    /// A request over the proxy.
    fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Response {
        ask(self.proxy.address, method, target, headers, body)
    }

    /// The same with the token.
    fn ask_with_token(&self, method: &str, target: &str, body: &str) -> Response {
        let authorization = bearer(&self.secret);
        let headers = [JSON, ("Authorization", authorization.as_str())];
        self.ask(method, target, &headers, body)
    }

    /// Publishes over the proxy; the message's id.
    fn publish(&self, content: &str) -> u64 {
        let body = json!({"channel_id": "lab", "author": "ada", "content": content});
        let answer = self.ask_with_token("POST", "/api/messages", &body.to_string());
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["message"]["id"].as_u64().expect("an id")
    }

    /// Subscribes over the proxy, with the token in a header.
    fn join(&self, path: &str) -> Ws {
        let authorization = bearer(&self.secret);
        let headers = [("Authorization", authorization.as_str())];
        let joined = join(connect_from(HERE, self.proxy.address), path, &headers);
        joined.expect("a handshake").0
    }
}

const JSON: (&str, &str) = ("Content-Type", "application/json");
const HERE: [u8; 4] = [127, 0, 0, 1];

fn serve(listen: SocketAddr, dir: &TempDir, tokens: &Tokens, more: &[&str]) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_threadcast"));
    command.args(["serve", "--listen", &listen.to_string(), "--db"]);
    command.arg(dir.path().join("test.db"));
    command.args(flags(&tokens.path)).args(more);
    Program::start_command(command)
}

/// Tells the story behind every proxy that is installed.
fn behind_each(story: impl Fn(Kind)) {
    for kind in Kind::ALL {
        if kind.is_installed() {
            story(kind);
        } else {
            skipped(&format!("{} is not installed", kind.program()));
        }
    }
}

fn ask(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "Host") {
        bytes.push_str(&format!("Host: {SITE}\r\n"));
    }
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        bytes.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    let mut http = Http::connect(address);
    http.send(format!("{bytes}\r\n{body}"));
    http.response(method == "HEAD")
}

/// A WebSocket on this connection, and the subprotocol that was chosen; the answer's status
/// when it is refused.
fn join(
    stream: TcpStream,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<(Ws, Option<String>), u16> {
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let request = format!("ws://{SITE}{path}").into_client_request();
    let mut request = request.expect("a request");
    for (name, value) in headers {
        let value = HeaderValue::from_str(value).expect("ASCII");
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        request.headers_mut().insert(name, value);
    }
    match tungstenite::client(request, stream) {
        Ok((socket, response)) => {
            let chosen = response.headers().get("Sec-WebSocket-Protocol");
            let chosen = chosen.map(|it| it.to_str().expect("ASCII").to_owned());
            Ok((Ws { socket }, chosen))
        }
        Err(HandshakeError::Failure(tungstenite::Error::Http(response))) => {
            Err(response.status().as_u16())
        }
        Err(other) => panic!("{other}"),
    }
}

/// A connection from one of this machine's addresses.
fn connect_from(source: [u8; 4], address: SocketAddr) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&socket, &SocketAddr::from((source, 0))).expect("an address of this machine");
    connect(&socket, &address).expect("the proxy accepts");
    TcpStream::from(socket)
}

/// The number of seconds behind these words of a configuration.
fn seconds(text: &str, words: &str) -> Duration {
    let rest = text.split(words).nth(1).expect(words);
    let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
    assert!(rest[number.len()..].starts_with('s'), "{words}");
    Duration::from_secs(number.parse().expect("a number"))
}

#[test]
fn the_configurations_fit_the_servers_defaults() {
    let limits = Limits::default();
    let nginx = Kind::Nginx.configuration();
    let silence = seconds(nginx, "proxy_read_timeout ");
    assert!(silence > limits.ping_interval + limits.pong_timeout);
    assert!(seconds(nginx, "keepalive_timeout ") < limits.idle_timeout);
    let kib = limits.max_body_bytes >> 10;
    assert!(nginx.contains(&format!("client_max_body_size {kib}k;")));
    // It has no timeout for what it has upgraded.
    let caddy = Kind::Caddy.configuration();
    assert!(seconds(caddy, "keepalive ") < limits.idle_timeout);
}

#[test]
fn subscribers_behind_a_proxy_have_what_is_published_behind_it() {
    behind_each(|kind| {
        let site = Site::start(kind, &[]);
        let authorization = bearer(&site.secret);
        let encoded = BASE64URL_NOPAD.encode(site.secret.as_bytes());
        let protocols = format!("threadcast, bearer.{encoded}");
        let in_query = format!("?token={}", site.secret);
        // The ways a token comes, and the subprotocol that is chosen.
        let ways = [
            ("", ("Authorization", authorization.as_str()), None),
            (
                "",
                ("Sec-WebSocket-Protocol", protocols.as_str()),
                Some("threadcast"),
            ),
            (in_query.as_str(), ("X-Other", "-"), None),
        ];
        let mut subscribers: Vec<(Ws, Ws)> = Vec::new();
        for (query, header, subprotocol) in ways {
            let open = |path: &str| {
                let stream = connect_from(HERE, site.proxy.address);
                let joined = join(stream, &format!("{path}{query}"), &[header]);
                let (ws, chosen) = joined.expect("a handshake");
                assert_eq!(chosen.as_deref(), subprotocol, "{kind:?}");
                ws
            };
            let (lab, mut board) = (open("/api/ws/lab"), open("/ws/board"));
            assert_eq!(board.next()["rev"], 0);
            subscribers.push((lab, board));
        }
        let id = site.publish("hi");
        let answer = site.ask_with_token("PUT", "/api/state/board", "[1]");
        assert_eq!(answer.status, 200, "{kind:?}: {}", answer.text());
        for (lab, board) in &mut subscribers {
            assert_eq!(lab.next_message()["id"], id);
            assert_eq!(board.next()["data"], json!([1]));
        }
        subscribers[0]
            .0
            .send(&json!({"type": "message", "content": "back"}));
        for (lab, _) in &mut subscribers {
            assert_eq!(lab.next_message()["content"], "back");
        }
        let page = site.ask_with_token("GET", "/api/messages?channel_id=lab", "");
        assert_eq!(page.json()["messages"].as_array().map(Vec::len), Some(2));

        // Without a token, and with a wrong one.
        let stream = || connect_from(HERE, site.proxy.address);
        assert_eq!(join(stream(), "/api/ws/lab", &[]).err(), Some(401));
        let wrong = [("Authorization", "Bearer tc_wrong")];
        assert_eq!(join(stream(), "/ws/board", &wrong).err(), Some(401));
        let answer = site.ask("GET", "/api/channels", &wrong, "");
        assert_eq!(answer.status, 401, "{kind:?}: {}", answer.text());
        assert_eq!(
            site.ask("GET", "/api/health", &[], "").json(),
            json!({"status": "ok"})
        );
    });
}

#[test]
fn no_token_of_a_query_is_in_the_proxys_access_log() {
    behind_each(|kind| {
        let mut site = Site::start(kind, &[]);
        let target = format!("/api/channels?token={}", site.secret);
        assert_eq!(site.ask("GET", &target, &[], "").status, 200);
        let log = site.proxy.dir.path().join("threadcast.log");
        if kind == Kind::Nginx {
            eventually("the request is in the log", || {
                fs::read_to_string(&log).is_ok_and(|log| log.contains("\"GET /api/channels\" 200"))
            });
        }
        site.proxy.kill();
        let files = fs::read_dir(site.proxy.dir.path()).expect("a directory");
        for file in files {
            let file = file.expect("a file").path();
            let text = fs::read(&file).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            assert!(!text.contains(&site.secret), "{}", file.display());
        }
    });
}

#[test]
fn the_servers_pings_come_through_and_keep_an_idle_connection() {
    behind_each(|kind| {
        let site = Site::start(kind, &["--ping-interval", "100ms"]);
        let mut ws = site.join("/api/ws/lab");
        for _ in 0..5 {
            let frame = ws.read().expect("a ping before the deadline");
            assert!(matches!(frame, Message::Ping(_)), "{kind:?}: {frame}");
        }
        let id = site.publish("still there");
        assert_eq!(ws.next_message()["id"], id);
    });
}

#[test]
fn the_client_is_at_the_address_that_the_proxy_saw_whatever_it_says_itself() {
    behind_each(|kind| {
        let site = Site::start(kind, &[]);
        let authorization = bearer(&site.secret);
        let forged: [&[(&str, &str)]; 5] = [
            &[],
            &[("X-Forwarded-For", "203.0.113.9")],
            &[("X-Forwarded-For", "203.0.113.9, 127.0.0.1")],
            &[("Forwarded", "for=203.0.113.9")],
            &[
                ("X-Real-IP", "203.0.113.9"),
                ("Forwarded", "for=\"203.0.113.9\""),
                ("x-forwarded-for", "unknown"),
            ],
        ];
        let mut held = Vec::new();
        for (number, forged) in forged.iter().enumerate() {
            let last = u8::try_from(number + 7).expect("a few");
            let stream = connect_from([127, 0, 0, last], site.proxy.address);
            let mut headers = forged.to_vec();
            headers.push(("Authorization", authorization.as_str()));
            let joined = join(stream, &format!("/api/ws/c{last}"), &headers);
            held.push(joined.expect("a handshake"));
        }
        let list = site.ask_with_token("GET", "/api/connections", "").json();
        let list = list["connections"].as_array().expect("a list");
        assert_eq!(list.len(), forged.len());
        for one in list {
            let channel = one["channel"].as_str().expect("a channel");
            let expected = channel.replace('c', "127.0.0.");
            assert_eq!(one["address"], expected, "{kind:?}: {one}");
        }
    });
}

#[test]
fn pages_of_the_site_pass_the_proxy_and_foreign_ones_do_not() {
    behind_each(|kind| {
        let site = Site::start(kind, &[]);
        let own = format!("https://{SITE}");
        for (origin, passes) in [
            (Some(own.as_str()), true),
            (None, true),
            (Some("https://evil.example"), false),
            (Some("https://board.example.evil.example"), false),
            (Some("null"), false),
        ] {
            let authorization = bearer(&site.secret);
            let mut headers = vec![("Authorization", authorization.as_str())];
            headers.extend(origin.map(|origin| ("Origin", origin)));
            let answer = site.ask("GET", "/api/channels", &headers, "");
            let (rest, socket) = if passes {
                (200, None)
            } else {
                (403, Some(403))
            };
            assert_eq!(answer.status, rest, "{kind:?}, {origin:?}");
            let readable = answer.header("Access-Control-Allow-Origin");
            assert_eq!(readable, origin.filter(|_| passes), "{kind:?}");
            let stream = connect_from(HERE, site.proxy.address);
            let joined = join(stream, "/api/ws/lab", &headers).err();
            assert_eq!(joined, socket, "{kind:?}, {origin:?}");
        }
        // A name that was made to lead here: the server refuses it, or the proxy does not know it.
        let headers = [("Host", "evil.example"), ("Origin", "http://evil.example")];
        let answer = site.ask("GET", "/", &headers, "");
        assert!(
            !answer.text().contains("curl"),
            "{kind:?}: {}",
            answer.text()
        );
    });
}

#[test]
fn a_body_passes_up_to_the_limit_and_no_further() {
    behind_each(|kind| {
        let site = Site::start(kind, &[]);
        let limit = Limits::default().max_body_bytes;
        let empty = json!({"channel_id": "lab", "author": "ada", "content": ""}).to_string();
        let of_length = |length: usize| {
            let content = "x".repeat(length - empty.len());
            json!({"channel_id": "lab", "author": "ada", "content": content}).to_string()
        };
        let mut ws = site.join("/api/ws/lab");
        let body = of_length(limit);
        assert_eq!(body.len(), limit);
        let answer = site.ask_with_token("POST", "/api/messages", &body);
        assert_eq!(answer.status, 200, "{kind:?}: {}", answer.text());
        let content = ws.next_message()["content"].as_str().map(str::len);
        assert_eq!(content, Some(limit - empty.len()));
        for length in [limit + 1, limit * 8] {
            let answer = site.ask_with_token("POST", "/api/messages", &of_length(length));
            assert_eq!(answer.status, 413, "{kind:?}: {}", answer.text());
        }
        ws.is_quiet();
    });
}

/// What a client knows that comes back: its messages, and the last id.
struct Returning {
    ws: Ws,
    seen: Vec<u64>,
}

impl Returning {
    fn new(site: &Site) -> Self {
        let (ws, seen) = (site.join("/api/ws/lab?since=0"), Vec::new());
        Self { ws, seen }
    }

    /// Reads until this message.
    fn read_to(&mut self, id: u64) {
        while self.seen.last() != Some(&id) {
            let frame = self.ws.next();
            if frame["type"] == "message" {
                self.seen.push(frame["data"]["id"].as_u64().expect("an id"));
            } else {
                assert_eq!(frame["type"], "caught_up", "{frame}");
            }
        }
    }

    /// Reads what comes before the connection ends, however it does.
    fn read_to_the_end(&mut self) {
        while let Ok(frame) = self.ws.read() {
            let Message::Text(text) = frame else { continue };
            let frame: Value = serde_json::from_str(&text).expect("JSON");
            self.seen.extend(frame["data"]["id"].as_u64());
        }
    }

    fn come_back(&mut self, site: &Site) {
        let since = self.seen.last().expect("a message");
        self.ws = site.join(&format!("/api/ws/lab?since={since}"));
    }
}

#[test]
fn a_proxy_that_dies_costs_nobody_a_message() {
    behind_each(|kind| {
        let mut site = Site::start(kind, &[]);
        let mut clients = [Returning::new(&site), Returning::new(&site)];
        let first = site.publish("before");
        clients[0].read_to(first);
        clients[1].read_to(first);
        site.proxy.kill();
        // From this machine, which needs no proxy.
        let mut ids = vec![first];
        let authorization = bearer(&site.secret);
        for _ in 0..50 {
            let headers = [JSON, ("Authorization", authorization.as_str())];
            let body = r#"{"channel_id":"lab","author":"ada","content":"meanwhile"}"#;
            let answer = ask(site.server.address, "POST", "/api/messages", &headers, body);
            ids.extend(answer.json()["message"]["id"].as_u64());
        }
        clients.iter_mut().for_each(Returning::read_to_the_end);
        site.proxy = Proxy::start(kind, site.server.address);
        for client in &mut clients {
            client.come_back(&site);
        }
        ids.push(site.publish("after"));
        for client in &mut clients {
            client.read_to(ids[51]);
            assert_eq!(client.seen, ids, "{kind:?}");
        }
    });
}

#[test]
fn a_server_that_dies_behind_its_proxy_comes_back_behind_it() {
    behind_each(|kind| {
        let mut site = Site::start(kind, &[]);
        let mut client = Returning::new(&site);
        let mut ids = vec![site.publish("before")];
        client.read_to(ids[0]);
        ids.push(site.publish("at the end"));
        site.server.kill();
        client.read_to_the_end();
        let answer = site.ask_with_token("GET", "/api/channels", "");
        assert_eq!(answer.status, 502, "{kind:?}: {}", answer.text());
        site.server = serve(site.server.address, &site.dir, &site.tokens, &[]);
        client.come_back(&site);
        ids.push(site.publish("after"));
        client.read_to(ids[2]);
        assert_eq!(client.seen, ids, "{kind:?}");
    });
}
