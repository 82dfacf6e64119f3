//! Every door, for everybody: who comes in, who does not, and what they are told.

mod common;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::sse::Sse;
use common::tokens::{Tokens, bearer};
use common::{DEADLINE, Http, Response, TestServer, Ws, eventually};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde_json::{Value, json};
use threadcast::access::Scope::{self, Admin, Publish, State, Subscribe};
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;

const JSON: (&str, &str) = ("Content-Type", "application/json");
const MESSAGE: &str = r#"{"channel_id":"lab","author":"ada","content":"hi"}"#;

/// A way in: its request, and the names of the tokens that open it; of those that don't, `none`,
/// `wrong` and `expired` hear 401, the others 403.
struct Door {
    method: &'static str,
    path: &'static str,
    body: &'static str,
    opens: &'static [&'static str],
    status: u16,
}

const fn door(
    method: &'static str,
    path: &'static str,
    body: &'static str,
    opens: &'static [&'static str],
) -> Door {
    Door {
        method,
        path,
        body,
        opens,
        status: 200,
    }
}

/// A WebSocket path: the upgrade is answered 101.
const fn socket(path: &'static str, opens: &'static [&'static str]) -> Door {
    Door {
        status: 101,
        ..door("GET", path, "", opens)
    }
}

const EVERY: &[&str] = &[
    "none",
    "all",
    "publish",
    "subscribe",
    "state",
    "admin",
    "elsewhere",
];
const READS_LAB: &[&str] = &["all", "subscribe"];
const READS_BOARD: &[&str] = &["all", "subscribe"];

const DOORS: &[Door] = &[
    door("GET", "/", "", EVERY),
    door("GET", "/api/health", "", EVERY),
    door("POST", "/api/messages", MESSAGE, &["all", "publish"]),
    door(
        "POST",
        "/api/channels/lab/messages",
        MESSAGE,
        &["all", "publish"],
    ),
    door("GET", "/api/messages?channel_id=lab", "", READS_LAB),
    door(
        "GET",
        "/api/messages?channel_id=lab&since=0&wait=1",
        "",
        READS_LAB,
    ),
    door("GET", "/api/messages", "", &["all"]),
    door(
        "GET",
        "/api/channels",
        "",
        &["all", "subscribe", "elsewhere"],
    ),
    door("GET", "/api/summary", "", &["all"]),
    door("PUT", "/api/state/board", "[1]", &["all", "state"]),
    door(
        "GET",
        "/api/state/board",
        "",
        &["all", "subscribe", "state"],
    ),
    door(
        "GET",
        "/api/state",
        "",
        &["all", "publish", "subscribe", "state", "admin", "elsewhere"],
    ),
    door("GET", "/api/connections", "", &["all", "admin"]),
    door("GET", "/metrics", "", &["all", "admin"]),
    Door {
        status: 404,
        ..door("DELETE", "/api/connections/999", "", &["all", "admin"])
    },
    socket("/api/ws/lab", READS_LAB),
    socket("/ws/board", READS_BOARD),
    socket("/api/v1/ws/board", READS_BOARD),
    // Their heads are those of streams, without the stream.
    door("HEAD", "/api/sse/lab", "", READS_LAB),
    door("HEAD", "/sse/board", "", READS_BOARD),
];

/// Pages that ask; `None` is no page.
const OWN: &str = "http://127.0.0.1:9";
const ORIGINS: [(Option<&str>, bool); 4] = [
    (None, true),
    (Some(OWN), true),
    (Some("https://evil.example"), false),
    (Some("null"), false),
];

/// The tokens of the table, by name.
fn tokens(file: &Tokens) -> Vec<(&'static str, Option<String>)> {
    let all: &[Scope] = &[Publish, Subscribe, State, Admin];
    let lab = &["lab"][..];
    let expired = |line: &mut threadcast::access::Line| {
        line.expires = Some("2020-01-01T00:00:00Z".to_owned());
    };
    vec![
        ("none", None),
        ("wrong", Some("tc_wrong".to_owned())),
        (
            "expired",
            Some(file.add_line("expired", all, &["*"], &["*"], expired)),
        ),
        ("all", Some(file.add("all", all, &["*"], &["*"]))),
        (
            "publish",
            Some(file.add("publish", &[Publish], lab, &["board"])),
        ),
        (
            "subscribe",
            Some(file.add("subscribe", &[Subscribe], &["l?b"], &["b*"])),
        ),
        ("state", Some(file.add("state", &[State], lab, &["board"]))),
        ("admin", Some(file.add("admin", &[Admin], &["*"], &["*"]))),
        (
            "elsewhere",
            Some(file.add(
                "elsewhere",
                &[Publish, Subscribe, State],
                &["other"],
                &["other"],
            )),
        ),
    ]
}

fn knock(server: &TestServer, door: &Door, secret: Option<&str>, origin: Option<&str>) -> Response {
    let authorization = secret.map(bearer);
    let mut headers = vec![JSON];
    headers.extend(
        authorization
            .as_deref()
            .map(|value| ("Authorization", value)),
    );
    headers.extend(origin.map(|origin| ("Origin", origin)));
    if door.status == 101 {
        headers.extend([
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]);
    }
    server
        .http()
        .request(door.method, door.path, &headers, door.body.as_bytes())
}

fn with_tokens(file: &Tokens) -> TestServer {
    TestServer::start_with(|config| config.tokens = Some(file.path.clone()))
}

#[test]
fn every_door_opens_for_its_tokens_and_its_pages_alone() {
    let file = Tokens::new();
    let tokens = tokens(&file);
    for door in DOORS {
        // One each, so that a wrong token is the first of its address.
        let server = with_tokens(&file);
        for (name, secret) in &tokens {
            for (origin, is_let_in) in ORIGINS {
                let answer = knock(&server, door, secret.as_deref(), origin);
                let asked = format!("{} {} as {name} from {origin:?}", door.method, door.path);
                let is_nobody = ["none", "wrong", "expired"].contains(name);
                let expected = match (is_let_in, door.opens.contains(name)) {
                    (false, _) => 403,
                    (true, true) => door.status,
                    (true, false) if door.opens == EVERY && *name == "expired" => 200,
                    (true, false) if is_nobody => 401,
                    (true, false) => 403,
                };
                assert_eq!(answer.status, expected, "{asked}: {}", answer.text());
                if expected == 401 {
                    let challenge = answer.header("WWW-Authenticate");
                    assert!(
                        challenge.is_some_and(|it| it.starts_with("Bearer")),
                        "{asked}"
                    );
                }
                let readable = answer.header("Access-Control-Allow-Origin");
                let wanted = origin.filter(|_| is_let_in && expected != 101);
                assert_eq!(readable, wanted, "{asked}");
                assert!(!answer.text().contains("tc_"), "{asked}: {}", answer.text());
            }
        }
        let head = server.server().publish(draft("probe"));
        let stored = door.method == "POST";
        // Once for each of the two tokens from each of the two pages.
        assert_eq!(
            head.expect("an id").0,
            if stored { 5 } else { 1 },
            "{}",
            door.path
        );
    }
}

fn draft(channel: &str) -> threadcast::protocol::Draft {
    threadcast::protocol::Draft {
        channel_id: channel.parse().expect("a channel"),
        author: "me".to_owned(),
        content: "x".to_owned(),
        lane: None,
        provider: None,
        token_count: None,
    }
}

#[test]
fn a_preflight_needs_no_token_and_a_foreign_one_is_refused() {
    let file = Tokens::new();
    let server = with_tokens(&file);
    let ask = |origin| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            (
                "Access-Control-Request-Headers",
                "authorization,content-type",
            ),
        ];
        server
            .http()
            .request("OPTIONS", "/api/messages", &headers, b"")
    };
    let answer = ask(OWN);
    assert_eq!(answer.status, 204, "{}", answer.text());
    let allowed = answer.header("Access-Control-Allow-Headers");
    assert!(
        allowed.is_some_and(|it| it.contains("authorization")),
        "{answer:?}"
    );
    assert_eq!(ask("https://evil.example").status, 403);
}

#[test]
fn a_token_comes_in_whichever_way_its_client_can_send_it() {
    let file = Tokens::new();
    let secret = file.add("ci", &[Publish, Subscribe], &["lab"], &[]);
    let server = with_tokens(&file);
    let basic = |user: &str| {
        format!(
            "Basic {}",
            BASE64.encode(format!("{user}:{secret}").as_bytes())
        )
    };
    for header in [
        bearer(&secret),
        format!("bearer  {secret}"),
        basic("ada"),
        basic(""),
    ] {
        let headers = [("Authorization", header.as_str())];
        let answer = server
            .http()
            .request("GET", "/api/messages?channel_id=lab", &headers, b"");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    for query in [format!("token={secret}"), format!("a=b&%74oken={secret}&c")] {
        let answer = server
            .http()
            .get(&format!("/api/messages?channel_id=lab&{query}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let mut ws = Ws::open(server.address, &format!("/api/ws/lab?last=0&{query}"));
        assert_eq!(ws.next()["type"], "caught_up");
    }
    let encoded = BASE64URL_NOPAD.encode(secret.as_bytes());
    for protocols in [
        format!("threadcast, bearer.{encoded}"),
        format!("bearer.{encoded}=,x,threadcast"),
    ] {
        let (_, response) = offer(&server, &protocols).expect("a handshake");
        let chosen = response
            .headers()
            .get("Sec-WebSocket-Protocol")
            .map(HeaderValue::as_bytes);
        assert_eq!(chosen, Some(&b"threadcast"[..]), "{protocols}");
    }
    for (protocols, status) in [
        (format!("bearer.{encoded}"), 400),
        ("threadcast, bearer.!".to_owned(), 401),
        ("threadcast, bearer.AAAA".to_owned(), 401),
        ("threadcast".to_owned(), 401),
    ] {
        let refused = offer(&server, &protocols).err().expect("no token");
        assert_eq!(refused, status, "{protocols}");
    }
    for header in [
        "Bearer",
        "Bearer ",
        "Basic !",
        "Digest x",
        "Basic bm9jb2xvbg==",
    ] {
        let headers = [("Authorization", header)];
        let answer = server.http().request("GET", "/api/channels", &headers, b"");
        assert_eq!(answer.status, 401, "{header}: {}", answer.text());
    }
}

/// A handshake that offers these subprotocols; its answer's status when it fails.
fn offer(
    server: &TestServer,
    protocols: &str,
) -> Result<(Ws, tungstenite::handshake::client::Response), u16> {
    let stream = TcpStream::connect(server.address).expect("the server accepts");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut request = format!("ws://{}/api/ws/lab", server.address)
        .into_client_request()
        .expect("a request");
    let value = HeaderValue::from_str(protocols).expect("ASCII");
    request
        .headers_mut()
        .insert("Sec-WebSocket-Protocol", value);
    match tungstenite::client(request, stream) {
        Ok((socket, response)) => Ok((Ws { socket }, response)),
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(response))) => {
            Err(response.status().as_u16())
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn what_a_token_is_not_for_does_not_exist_for_it() {
    let file = Tokens::new();
    let lab = file.add("lab", &[Publish, Subscribe], &["lab"], &["board"]);
    let server = with_tokens(&file);
    for channel in ["lab", "secret"] {
        server.server().publish(draft(channel)).expect("a message");
    }
    let feed = "hidden".parse().expect("a feed");
    server
        .server()
        .publish_state(&feed, json!(1).into())
        .expect("a state");
    let authorization = bearer(&lab);
    let get = |path: &str| {
        let headers = [("Authorization", authorization.as_str())];
        server.http().request("GET", path, &headers, b"")
    };
    assert_eq!(get("/api/channels").json()["channels"], json!(["lab"]));
    let feeds = get("/api/state").text();
    assert!(!feeds.contains("hidden"), "{feeds}");
    for (there, missing) in [
        (
            "/api/messages?channel_id=secret",
            "/api/messages?channel_id=nothing",
        ),
        ("/api/state/hidden", "/api/state/nothing"),
        ("/api/ws/secret", "/api/ws/nothing"),
        ("/ws/hidden", "/ws/nothing"),
    ] {
        let (there, missing) = (get(there), get(missing));
        assert_eq!(there.status, 403, "{}", there.text());
        assert_eq!(there.text(), missing.text());
    }
}

#[test]
fn a_subscriber_without_the_scope_to_publish_is_told_and_stays() {
    let file = Tokens::new();
    let reader = file.add("reader", &[Subscribe], &["lab"], &[]);
    let writer = file.add("writer", &[Subscribe, Publish], &["lab"], &[]);
    let server = with_tokens(&file);
    let mut ws = Ws::open(server.address, &format!("/api/ws/lab?token={reader}"));
    ws.send(&json!({"type":"message","author":"a","content":"no","ref":7}));
    let frame = ws.next();
    assert_eq!(frame["type"], "error");
    assert_eq!(frame["code"], "forbidden");
    assert_eq!(frame["ref"], 7);
    assert!(
        frame["detail"]
            .as_str()
            .is_some_and(|it| it.contains("`publish`")),
        "{frame}"
    );
    let mut other = Ws::open(server.address, &format!("/api/ws/lab?token={writer}"));
    other.send(&json!({"type":"message","author":"a","content":"yes"}));
    assert_eq!(ws.next_message()["content"], "yes");
}

#[test]
fn a_token_that_expires_closes_its_connections_with_1008() {
    let file = Tokens::new();
    let long = file.add("long", &[Subscribe], &["*"], &["*"]);
    let server = with_tokens(&file);
    let soon = time::OffsetDateTime::now_utc() + Duration::from_secs(6);
    let soon = soon
        .format(&time::format_description::well_known::Rfc3339)
        .expect("a time");
    let short = file.add_line("short", &[Subscribe], &["*"], &["*"], |line| {
        line.expires = Some(soon)
    });
    server.server().reload().expect("a tokens file");
    let mut ending = [
        Ws::open(server.address, &format!("/api/ws/lab?token={short}")),
        Ws::open(server.address, &format!("/ws/board?token={short}")),
    ];
    let mut stream = Sse::open(server.address, &format!("/api/sse/lab?token={short}"));
    let mut staying = Ws::open(server.address, &format!("/api/ws/lab?token={long}"));
    for ws in &mut ending {
        assert_eq!(ws.close_code(), Some(1008));
    }
    assert!(stream.try_event().is_none(), "the stream ends");
    let answer = server.http().get(&format!("/api/channels?token={short}"));
    assert_eq!(answer.status, 401);
    assert!(answer.text().contains("expired"), "{}", answer.text());
    let id = server.server().publish(draft("lab")).expect("a message");
    assert_eq!(staying.next_message()["id"], id.0);
}

#[test]
fn a_reload_ends_who_may_no_longer_be_there_and_nobody_else() {
    let file = Tokens::new();
    let gone = file.add("gone", &[Subscribe], &["*"], &["*"]);
    let narrowed = file.add("narrowed", &[Subscribe], &["*"], &["*"]);
    let kept = file.add("kept", &[Subscribe, Publish], &["*"], &["*"]);
    let server = with_tokens(&file);
    let open =
        |path: &str, secret: &str| Ws::open(server.address, &format!("{path}?token={secret}"));
    let mut ended = [
        open("/api/ws/lab", &gone),
        open("/ws/board", &gone),
        open("/api/ws/lab", &narrowed),
    ];
    let mut stay = [open("/api/ws/other", &narrowed), open("/api/ws/lab", &kept)];

    // A file that cannot be read changes nothing.
    file.append("{\"name\":\n");
    let error = server
        .server()
        .reload()
        .expect_err("line 6 is broken")
        .to_string();
    assert!(error.contains("line 6"), "{error}");
    let answer = server.http().get(&format!("/api/channels?token={gone}"));
    assert_eq!(answer.status, 200);

    let text = std::fs::read_to_string(&file.path).expect("the file");
    let text: String = text
        .lines()
        .filter(|line| !line.contains("\"gone\"") && *line != "{\"name\":")
        .map(|line| match line.contains("narrowed") {
            true => line.replace("[\"*\"]", "[\"other\"]") + "\n",
            false => line.to_owned() + "\n",
        })
        .collect();
    std::fs::write(&file.path, text).expect("the file");
    let added = file.add("added", &[Subscribe], &["*"], &[]);
    server.server().reload().expect("a file as it should be");

    for ws in &mut ended {
        assert_eq!(ws.close_code(), Some(1008));
    }
    let answer = server.http().get(&format!("/api/channels?token={gone}"));
    assert_eq!(answer.status, 401);
    assert_eq!(
        server
            .http()
            .get(&format!("/api/channels?token={added}"))
            .status,
        200
    );
    let other = server.server().publish(draft("other")).expect("a message");
    let lab = server.server().publish(draft("lab")).expect("a message");
    assert_eq!(stay[0].next_message()["id"], other.0);
    assert_eq!(stay[1].next_message()["id"], lab.0);
}

#[test]
fn who_publishes_too_fast_is_told_when_to_come_back() {
    let server = TestServer::start_with(|config| {
        config.publish_rate = Some(1);
        config.publish_burst = 3;
        config.trusted_proxies = vec!["127.0.0.1".parse().expect("a network")];
    });
    let post = |client: &str| {
        let headers = [JSON, ("X-Forwarded-For", client)];
        server
            .http()
            .request("POST", "/api/messages", &headers, MESSAGE.as_bytes())
    };
    let start = Instant::now();
    // One more for each second that it takes.
    let free = || 3..=4 + start.elapsed().as_secs();
    let mut passed = 0;
    let refused = loop {
        let answer = post("198.51.100.1");
        if answer.status != 200 {
            break answer;
        }
        passed += 1;
    };
    assert!(free().contains(&passed), "{passed}");
    assert_eq!(refused.status, 429, "{}", refused.text());
    let seconds: u64 = refused
        .header("Retry-After")
        .and_then(|it| it.parse().ok())
        .expect("seconds");
    assert!((1..=2).contains(&seconds), "{seconds}");
    assert_eq!(post("198.51.100.2").status, 200, "others are not concerned");

    // One who speaks for itself has one bucket, whatever the way.
    let mut ws = Ws::open(server.address, "/api/ws/lab");
    let send = |ws: &mut Ws, number: u64| {
        ws.send(&json!({"type":"message","content":"x","ref":number}));
    };
    let mut acks = 0;
    send(&mut ws, acks);
    let refused = loop {
        let frame = ws.next();
        match frame["type"].as_str() {
            Some("ack") => {
                acks += 1;
                send(&mut ws, acks);
            }
            Some("message") => {}
            _ => break frame,
        }
    };
    assert_eq!(refused["code"], "rate_limited", "{refused}");
    assert_eq!(refused["ref"], acks);
    assert!(free().contains(&acks), "{acks}");
    eventually("a state is too much as well", || {
        server.http().put("/api/state/board", "1").status == 429
    });
    eventually("the rate has let one more through", || {
        send(&mut ws, 1_000);
        loop {
            let frame = ws.next();
            match frame["type"].as_str() {
                Some("error") => return false,
                Some("ack") => return true,
                _ => {}
            }
        }
    });
    let limits = server.http().get("/api/health").json()["limits"].take();
    assert!(
        limits["publish_rate"]["refused"].as_u64() >= Some(3),
        "{limits}"
    );
}

#[test]
fn each_token_has_a_rate_of_its_own() {
    let file = Tokens::new();
    let [one, two] = ["one", "two"].map(|name| file.add(name, &[Publish], &["*"], &[]));
    let server = TestServer::start_with(|config| {
        config.tokens = Some(file.path.clone());
        config.publish_rate = Some(1);
        config.publish_burst = 1;
    });
    let post = |secret: &str, messages: usize| {
        let authorization = bearer(secret);
        let lines = ("Content-Type", "application/x-ndjson");
        let headers = [lines, ("Authorization", authorization.as_str())];
        let body = format!("{MESSAGE}\n").repeat(messages);
        server
            .http()
            .request("POST", "/api/messages", &headers, body.as_bytes())
            .status
    };
    // So many at once pass a full bucket, and leave it empty for as many seconds.
    assert_eq!(
        [post(&one, 60), post(&one, 1), post(&two, 1)],
        [200, 429, 200]
    );
}

/// The first ones are answered at once, for whoever mistypes; then each waits longer. Whoever
/// has a token is served meanwhile, from the same address.
#[test]
fn guessing_tokens_takes_longer_and_longer() {
    let file = Tokens::new();
    let secret = file.add("ci", &[Subscribe], &["*"], &[]);
    let server = with_tokens(&file);
    let start = Instant::now();
    let guess = |number: u32| {
        let answer = server
            .http()
            .get(&format!("/api/channels?token=tc_{number}"));
        assert_eq!(answer.status, 401);
    };
    (0..10).for_each(guess);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| (10..12).for_each(guess));
        let answer = server.http().get(&format!("/api/channels?token={secret}"));
        assert_eq!(answer.status, 200);
        slow.join().expect("two answers");
    });
    // Two more than the burst, at one a second: not before so long, whatever the machine does.
    assert!(
        start.elapsed() >= Duration::from_millis(1900),
        "{:?}",
        start.elapsed()
    );
    let limits = server
        .http()
        .get(&format!("/api/health?token={secret}"))
        .json();
    assert_eq!(limits["limits"]["credentials"]["refused"], 12);
}

/// Each wait keeps a connection and its thread: a thousand wrong tokens a second from one address
/// once kept them all.
#[test]
fn a_flood_of_wrong_tokens_keeps_few_connections() {
    let file = Tokens::new();
    let secret = file.add("ci", &[Subscribe], &["*"], &[]);
    let server = with_tokens(&file);
    let limits = || {
        let target = format!("/api/health?token={secret}");
        server.http().get(&target).json()["limits"].take()
    };
    let mut guesses = Vec::new();
    for number in 1..=40 {
        let mut http = server.http();
        http.send("GET /api/channels?token=tc_wrong HTTP/1.1\r\nHost: localhost\r\n\r\n");
        eventually("the token is found wrong", || {
            limits()["credentials"]["refused"] == number
        });
        guesses.push(http);
    }
    // Ten are answered at once and about ten wait; the others are sent away.
    let mut last = guesses.pop().expect("the last one");
    let answer = last.response(false);
    assert_eq!(answer.status, 429, "{}", answer.text());
    assert_eq!(answer.header("Retry-After"), Some("10"));
    // Whoever goes gives its place back at once: all those who had to wait longer than this one.
    let mut waiting = guesses.swap_remove(12);
    drop(guesses);
    assert_eq!(waiting.response(false).status, 401);
    let used = limits()["connections"]["used"].as_u64();
    assert!(used <= Some(4), "{used:?}");
}

#[test]
fn headers_between_the_rooms_cannot_be_forged() {
    let file = Tokens::new();
    let reader = file.add("reader", &[Subscribe], &["*"], &[]);
    let admin = file.add("admin", &[Admin], &["*"], &[]);
    let server = with_tokens(&file);
    let mut first = server.http();
    // The administrator's request went over a connection of the relay; whoever comes next may not
    // be taken for it.
    let authorization = bearer(&admin);
    let as_admin = [("Authorization", authorization.as_str())];
    assert_eq!(
        first
            .request("GET", "/api/connections", &as_admin, b"")
            .status,
        200
    );
    let authorization = bearer(&reader);
    for caller in 0..40 {
        let caller = caller.to_string();
        let headers = [
            ("Authorization", authorization.as_str()),
            ("X-Threadcast-Caller", caller.as_str()),
        ];
        let answer = server
            .http()
            .request("GET", "/api/connections", &headers, b"");
        assert_eq!(answer.status, 403, "{}", answer.text());
    }
    let smuggled = [
        // A second request inside a body, and behind one.
        format!(
            "POST /api/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {reader}\r\nContent-Length: 62\r\n\r\nGET /api/connections HTTP/1.1\r\nX-Threadcast-Caller: 0\r\n\r\n    "
        ),
        format!(
            "GET /api/channels HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {reader}\r\n\r\nGET /api/connections HTTP/1.1\r\nHost: localhost\r\nX-Threadcast-Caller: 0\r\n\r\n"
        ),
        // Lengths that two readers could take differently.
        format!(
            "POST /api/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {reader}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /api/connections HTTP/1.1\r\nHost: localhost\r\n\r\n"
        ),
        format!(
            "POST /api/messages HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {reader}\r\nContent-Length: 0\r\nContent-Length: 9\r\n\r\nGET /api/connections HTTP/1.1\r\nHost: localhost\r\n\r\n"
        ),
        // A value that would be a line of its own.
        format!(
            "GET /api/connections HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {reader}\r\nAccept: x\rX-Threadcast-Caller: 0\r\n\r\n"
        ),
        format!(
            "GET /api/connections HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {reader}\r\nX-Threadcast-Caller : 0\r\n\r\n"
        ),
        format!(
            "GET /api/connections HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {reader}\r\nX_Threadcast_Caller: 0\r\n\r\n"
        ),
    ];
    for bytes in smuggled {
        let mut http = server.http();
        http.send(&bytes);
        http.send("GET /api/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        for answer in answers(&mut http) {
            assert!(
                !answer.text().contains("connections\":["),
                "{bytes}: {}",
                answer.text()
            );
        }
    }
}

/// Every answer until the server closes.
fn answers(http: &mut Http) -> Vec<Response> {
    let mut answers = Vec::new();
    while !http.closed() {
        answers.push(http.response(false));
    }
    answers
}

#[test]
fn an_administrator_sees_who_is_connected_and_can_end_them() {
    let server = TestServer::start();
    let mut lab = server.subscribe("lab");
    let mut board = server.subscribe_feed("board");
    board.next();
    let id = server.publish("lab", "hi");
    lab.next_message();
    let list = || server.http().get("/api/connections").json()["connections"].take();
    let of = |name: &str, value: &str| {
        let connections = list();
        let list = connections.as_array().expect("a list");
        list.iter().find(|one| one[name] == value).cloned()
    };
    eventually("it is known what it has", || {
        of("channel", "lab").is_some_and(|one| one["cursor"] == id)
    });
    let one = of("channel", "lab").expect("the subscriber");
    assert_eq!(one["kind"], "websocket");
    assert_eq!(one["feed"], Value::Null);
    assert_eq!(one["token"], Value::Null);
    assert_eq!(one["cursor"], id);
    assert_eq!((&one["lag"], &one["behind"]), (&json!(0), &json!(false)));
    assert_eq!(one["queued_bytes"], 0);
    let address = lab.socket.get_ref().local_addr().expect("an address");
    assert_eq!(one["address"], address.to_string());
    assert!(
        one["since"]
            .as_str()
            .is_some_and(|it| it.ends_with("+00:00")),
        "{one}"
    );
    let other = of("feed", "board").expect("the feed's subscriber");
    assert_eq!(
        (&other["channel"], &other["lag"]),
        (&Value::Null, &json!(0))
    );
    let mut stream = Sse::subscribe(server.address, "stream");
    let third = of("channel", "stream").expect("the event stream");
    assert_eq!(third["kind"], "sse");
    let path = format!("/api/connections/{}", third["id"]);
    let answer = server.http().request("DELETE", &path, &[], b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(stream.try_event().is_none(), "the stream ends");

    let path = format!("/api/connections/{}", one["id"]);
    let answer = server.http().request("DELETE", &path, &[], b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(lab.close_code(), Some(1008));
    eventually("it is gone from the list", || {
        of("channel", "lab").is_none()
    });
    assert_eq!(server.http().request("DELETE", &path, &[], b"").status, 404);
    assert!(of("feed", "board").is_some(), "the other one stays");
}

#[test]
fn without_tokens_administration_is_for_this_machine_only() {
    let proxy = |config: &mut threadcast::Config| {
        config.trusted_proxies = vec!["127.0.0.0/8".parse().expect("a network")];
    };
    // One whose proxy is believed, and one that was not told of it.
    for server in [TestServer::start_with(proxy), TestServer::start()] {
        assert_eq!(server.http().get("/api/connections").status, 200);
        for header in [
            ("X-Forwarded-For", "203.0.113.7"),
            ("X-Forwarded-For", "127.0.0.1"),
            ("X-Forwarded-For", "unix:"),
            ("X-Forwarded-For", ""),
            ("Forwarded", "for=_hidden"),
            ("Via", "1.1 somebody"),
        ] {
            let answer = server
                .http()
                .request("GET", "/api/connections", &[header], b"");
            assert_eq!(answer.status, 403, "{header:?}: {}", answer.text());
        }
    }
}

#[test]
fn sessions_that_a_proxy_brings_count_for_their_clients() {
    let server = TestServer::start_with(|config| {
        config.trusted_proxies = vec!["127.0.0.1".parse().expect("a network")];
        config.limits.max_connections_per_address = 2;
    });
    let open = |client: &str| {
        let headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("X-Forwarded-For", client),
        ];
        let mut http = server.http();
        let status = http.request("GET", "/api/ws/lab", &headers, b"").status;
        (status, http)
    };
    let held: Vec<_> = (0..2).map(|_| open("203.0.113.7")).collect();
    assert!(held.iter().all(|(status, _)| *status == 101));
    assert_eq!(open("203.0.113.7").0, 429);
    assert_eq!(open("203.0.113.8").0, 101);
    drop(held);
    eventually("their places are free", || open("203.0.113.7").0 == 101);
}
