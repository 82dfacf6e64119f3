//! HTTP/1.1 at the public door, byte for byte over raw sockets: what is sent, what answers it,
//! and whether the connection is good for another request. Clients that stall, flood or
//! starve the server are in `http_faults.rs`.

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::panic::{AssertUnwindSafe, catch_unwind};

use After::{Closes, Either, Stays};
use common::{Response, TestServer, eventually, post, post_chunked, post_sized};

/// What becomes of the connection after the answer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum After {
    Stays,
    Closes,
    /// The server may choose, but its `Connection` header has to tell the truth.
    Either,
}

struct Shape {
    name: &'static str,
    bytes: Vec<u8>,
    statuses: &'static [u16],
    after: After,
}

/// A table of shapes: what it is, its bytes, the statuses that may answer it, what becomes of the connection.
macro_rules! shapes {
    ($($name:literal: $bytes:expr => $($status:literal)|+ $after:ident;)*) => {
        [$(Shape { name: $name, bytes: $bytes.into(), statuses: &[$($status),+], after: $after }),*]
    };
}

/// Fifty bytes.
const MESSAGE: &str = r#"{"channel_id":"lab","author":"ada","content":"hi"}"#;

const MAX_HEAD: usize = 16 << 10;
const MAX_BODY: usize = 256 << 10;

fn get(headers: &str) -> String {
    format!("GET /api/health HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")
}

/// `body` in chunks of `size`, without the last one of length zero.
fn chunks(body: &str, size: usize) -> String {
    let chunk = |piece: &[u8]| {
        format!(
            "{:x}\r\n{}\r\n",
            piece.len(),
            String::from_utf8_lossy(piece)
        )
    };
    body.as_bytes().chunks(size).map(chunk).collect()
}

/// A `GET` whose head has exactly `length` bytes.
fn get_of_length(length: usize) -> String {
    let padding = length - get("X-Padding: \r\n").len();
    get(&format!("X-Padding: {}\r\n", "x".repeat(padding)))
}

/// A `GET` with exactly `count` header fields.
fn get_with_headers(count: usize) -> String {
    get(&(1..count)
        .map(|n| format!("X-{n}: {n}\r\n"))
        .collect::<String>())
}

fn says_close(response: &Response) -> bool {
    response
        .header("Connection")
        .is_some_and(|value| value.eq_ignore_ascii_case("close"))
}

/// Every error of the contract is a problem+json that repeats its status.
fn assert_problem(name: &str, response: &Response) {
    assert_eq!(
        response.header("Content-Type"),
        Some("application/problem+json"),
        "{name}"
    );
    let problem = response.json();
    assert_eq!(problem["status"], response.status, "{name}: {problem}");
    for member in ["type", "title", "detail"] {
        assert!(
            problem[member]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{name}: {problem}"
        );
    }
}

/// Sends one shape on a connection of its own and holds the answer against the row.
fn check(server: &TestServer, shape: &Shape) {
    let Shape {
        name,
        bytes,
        statuses,
        after,
    } = shape;
    let mut http = server.http();
    http.send(bytes);
    let response = http
        .try_response(false)
        .unwrap_or_else(|| panic!("{name}: no answer"));
    assert!(
        statuses.contains(&response.status),
        "{name}: {} {}",
        response.status,
        response.text()
    );
    if response.status >= 400 {
        assert_problem(name, &response);
    }
    match after {
        Stays => assert!(!says_close(&response), "{name}: closes"),
        Closes => assert!(says_close(&response), "{name}: doesn't say that it closes"),
        Either => {}
    }
    if says_close(&response) {
        assert!(
            http.closed(),
            "{name}: says close and stays open, or says more"
        );
    } else {
        assert_eq!(
            http.get("/api/health").status,
            200,
            "{name}: the next request"
        );
    }
}

/// Runs every row, so that one failure doesn't hide the next.
fn check_all(shapes: impl IntoIterator<Item = Shape>) {
    let server = TestServer::start();
    let failed: Vec<&str> = shapes
        .into_iter()
        .filter(|shape| catch_unwind(AssertUnwindSafe(|| check(&server, shape))).is_err())
        .map(|shape| shape.name)
        .collect();
    assert!(failed.is_empty(), "these shapes failed: {failed:#?}");
}

#[test]
fn well_formed_requests_are_answered_and_keep_their_connection() {
    let absolute = "GET http://localhost/api/messages?limit=1 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n";
    let latin = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Name: J\xfcrgen\r\n\r\n";
    check_all(shapes! {
        "a GET": get("") => 200 Stays;
        "a GET with a body": get("Content-Length: 5\r\n") + "hello" => 200 Stays;
        "a GET with chunks": get("Transfer-Encoding: chunked\r\n") + "2\r\nhi\r\n0\r\n\r\n" => 200 Stays;
        "a POST": post_sized(MESSAGE) => 200 Stays;
        "a length in white space": post("Content-Length: \t50 \r\n", MESSAGE) => 200 Stays;
        "header names in capitals": post("CONTENT-LENGTH: 50\r\n", MESSAGE) => 200 Stays;
        "a CRLF before the request line": format!("\r\n{}", get("")) => 200 Stays;
        "absolute form": absolute.to_owned() => 200 Stays;
        "Connection: keep-alive": get("Connection: keep-alive\r\n") => 200 Stays;
        "TE: chunked": get("TE: trailers, chunked\r\nConnection: TE\r\n") => 200 Stays;
        "an upgrade to something else": get(h2c) => 200 Stays;
        "UTF-8 in the target": get("").replace("health", "messages?channel_id=ü") => 200 | 400 Either;
        "UTF-8 in a header": get("X-Name: Jürgen 🐝\r\n") => 200 Stays;
        "Latin-1 in a header": latin => 200 Stays;
        "an empty header": get("X-Empty:\r\n") => 200 Stays;
        "OPTIONS *": "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n" => 200 | 204 Stays;
        "a head at the limit": get_of_length(MAX_HEAD) => 200 Stays;
        "100 headers": get_with_headers(100) => 200 Stays;
    });
}

#[test]
fn a_refusal_of_a_whole_request_keeps_its_connection() {
    let delete = "DELETE /api/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}";
    check_all(shapes! {
        "no such path": get("").replace("/api/health", "/nope") => 404 Stays;
        "known method, wrong route": delete.to_owned() => 405 Stays;
        "not JSON": post_sized("hello") => 400 Stays;
        "a field missing": post_sized("{}") => 422 Stays;
        "BREW": get("").replace("GET", "BREW") => 501 Either;
        "methods know their case": get("").replace("GET", "get") => 501 Either;
        "an expectation nobody knows": post("Expect: tea\r\nContent-Length: 50\r\n", MESSAGE) => 417 Either;
    });
    let response = TestServer::start()
        .http()
        .request("DELETE", "/api/messages", &[], b"");
    let allow = response.header("Allow").expect("405 comes with Allow");
    assert!(
        allow.contains("GET") && allow.contains("POST") && !allow.contains("DELETE"),
        "{allow}"
    );
}

#[test]
fn the_connection_closes_when_the_client_says_so() {
    let old = |headers: &str| format!("GET /api/health HTTP/1.0\r\n{headers}\r\n");
    let old_post = format!("POST /api/messages HTTP/1.0\r\nContent-Length: 50\r\n\r\n{MESSAGE}");
    check_all(shapes! {
        "close": get("Connection: close\r\n") => 200 Closes;
        "close, in a list and capitals": get("Connection: TE, Close\r\n") => 200 Closes;
        "close, in a second header": get("Connection: keep-alive\r\nConnection: close\r\n") => 200 Closes;
        "close and an error": get("Connection: close\r\n").replace("/api/health", "/nope") => 404 Closes;
        "HTTP/1.0": old("") => 200 Closes;
        "HTTP/1.0 POST": old_post => 200 Closes;
        "HTTP/1.0 keep-alive": old("Connection: Keep-Alive\r\n") => 200 Stays;
    });
    let server = TestServer::start();
    let mut http = server.http();
    http.send(old("Connection: keep-alive\r\n"));
    let connection = http
        .response(false)
        .header("Connection")
        .map(str::to_ascii_lowercase);
    assert_eq!(
        connection.as_deref(),
        Some("keep-alive"),
        "an HTTP/1.0 client has to be told"
    );
}

#[test]
fn lengths_that_can_be_read_in_two_ways_are_refused() {
    let length = |value: &str| post(&format!("Content-Length: {value}\r\n"), MESSAGE);
    let coding = |value: &str| post(&format!("Transfer-Encoding: {value}\r\n"), "0\r\n\r\n");
    let both = "Content-Length: 50\r\nTransfer-Encoding: chunked\r\n";
    let whole = chunks(MESSAGE, 50) + "0\r\n\r\n";
    let old = post_chunked(&whole).replace("HTTP/1.1", "HTTP/1.0");
    check_all(shapes! {
        "two lengths": post("Content-Length: 50\r\nContent-Length: 49\r\n", MESSAGE) => 400 Closes;
        "one length twice": post("Content-Length: 50\r\nContent-Length: 50\r\n", MESSAGE) => 400 Closes;
        "a list": length("50, 50") => 400 Closes;
        "plus": length("+50") => 400 Closes;
        "minus": length("-50") => 400 Closes;
        "a space inside": length("5 0") => 400 Closes;
        "hex": length("0x32") => 400 Closes;
        "empty": length("") => 400 Closes;
        "over 64 bits": length("18446744073709551666") => 400 | 413 Closes;
        "length and chunks": post(both, &whole) => 400 Closes;
        "chunks in HTTP/1.0": old => 400 Closes;
        "gzip": coding("gzip") => 501 Closes;
        "gzip, chunked": coding("gzip, chunked") => 501 Closes;
        "identity": coding("identity") => 400 | 501 Closes;
        "chunked twice": coding("chunked, chunked") => 400 | 501 Closes;
        "chunked, in two headers": coding("chunked\r\nTransfer-Encoding: chunked") => 400 | 501 Closes;
        "a coding like chunked": coding("xchunked") => 400 | 501 Closes;
        "a POST without length": post("", "") => 411 Closes;
    });
}

#[test]
fn heads_that_are_not_http_are_refused() {
    let line = |line: &str| format!("{line}\r\nHost: localhost\r\n\r\n");
    check_all(shapes! {
        "bare LF": "GET / HTTP/1.1\nHost: localhost\n\n" => 400 Closes;
        "bare LF after a header": get("X-A: 1\nX-B: 2\r\n") => 400 Closes;
        "bare LF at the end": "GET / HTTP/1.1\r\nHost: localhost\r\n\n" => 400 Closes;
        "bare CR in a header": get("X-A: 1\rX-B: 2\r\n") => 400 Closes;
        "NUL in a header": get("X-A: 1\0\r\n") => 400 Closes;
        "a folded header": get("X-A: 1\r\n folded\r\n") => 400 Closes;
        "a fold before the first header": "GET / HTTP/1.1\r\n Host: a\r\n\r\n" => 400 Closes;
        "a space before the colon": get("X-A : 1\r\n") => 400 Closes;
        "a header without a name": get(": 1\r\n") => 400 Closes;
        "a header without a colon": get("X-A\r\n") => 400 Closes;
        "no Host": "GET / HTTP/1.1\r\n\r\n" => 400 Closes;
        "two Hosts": get("Host: localhost\r\n") => 400 Closes;
        "a Host with a space": get("").replace("localhost", "local host") => 400 Closes;
        "HTTP/2.0": line("GET / HTTP/2.0") => 505 Closes;
        "the HTTP/2 preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" => 505 Closes;
        "no version": line("GET /") => 400 Closes;
        "no target": line("GET HTTP/1.1") => 400 Closes;
        "a space in the target": line("GET /a b HTTP/1.1") => 400 Closes;
        "a target without a slash": line("GET api/health HTTP/1.1") => 400 | 404 Either;
        "CONNECT": line("CONNECT example.org:443 HTTP/1.1") => 400 | 405 | 501 Either;
        "TLS": "\x16\x03\x01\x02\0\x01\0\x01\u{7c}\x03\x03" => 400 Closes;
        "garbage": "\0\x01\x02\x03 \r\n\r\n" => 400 Closes;
    });
}

#[test]
fn heads_and_bodies_over_their_limits_are_refused() {
    let endless = |start: &str| format!("{start}{}", "x".repeat(2 * MAX_HEAD));
    let declared = |length: usize| post(&format!("Content-Length: {length}\r\n"), "");
    let flood = chunks(&"x".repeat(MAX_BODY + 1), 40_000);
    let trailers = "X-Trailer: 1\r\n".repeat(2000);
    check_all(shapes! {
        "a head one byte over": get_of_length(MAX_HEAD + 1) => 431 Closes;
        "an endless request line": endless("GET /") => 431 Closes;
        "an endless header": endless("GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ") => 431 Closes;
        "101 headers": get_with_headers(101) => 431 Closes;
        "a body declared one byte over": declared(MAX_BODY + 1) => 413 Closes;
        "a body declared and sent": post_sized(&"x".repeat(MAX_BODY + 1)) => 413 Closes;
        "a chunk over the limit": post_chunked("40001\r\n") => 413 Closes;
        "chunks that grow past the limit": post_chunked(&flood) => 413 Closes;
        "a chunk of 2^64 bytes": post_chunked("10000000000000000\r\n") => 400 | 413 Closes;
        "an endless chunk extension": post_chunked(&endless("1;")) => 400 | 413 | 431 Closes;
        "endless trailers": post_chunked(&format!("0\r\n{trailers}")) => 400 | 413 | 431 Closes;
    });
}

#[test]
fn a_body_of_exactly_the_limit_is_stored() {
    let server = TestServer::start();
    let padding = "x".repeat(MAX_BODY - MESSAGE.len());
    let body = MESSAGE.replace("hi", &format!("hi{padding}"));
    let mut http = server.http();
    for bytes in [
        post_sized(&body),
        post_chunked(&(chunks(&body, 7000) + "0\r\n\r\n")),
    ] {
        http.send(bytes);
        let response = http.response(false);
        assert_eq!(response.status, 200, "{}", response.text());
        let content = response.json()["message"]["content"].take();
        assert_eq!(content.as_str().map(str::len), Some(2 + padding.len()));
    }
}

#[test]
fn chunked_bodies_are_read_as_their_senders_cut_them() {
    let pieces = chunks(MESSAGE, 7);
    let one = format!("0032\r\n{MESSAGE}\r\n0;last\r\n\r\n");
    let extended = pieces.replacen("\r\n", ";a=b;c=\"d;e\";f\r\n", 1);
    let bad = |body: &str| post_chunked(&format!("{body}\r\n0\r\n\r\n"));
    let capitals = post_chunked(&format!("{pieces}0\r\n\r\n")).replace("chunked", "Chunked");
    check_all(shapes! {
        "several chunks": post_chunked(&format!("{pieces}0\r\n\r\n")) => 200 Stays;
        "capitals": capitals => 200 Stays;
        "leading zeros, last chunk extended": post_chunked(&one) => 200 Stays;
        "extensions": post_chunked(&format!("{extended}0\r\n\r\n")) => 200 Stays;
        "trailers": post_chunked(&format!("{pieces}0\r\nX-Sum: 1\r\nX-End: 2\r\n\r\n")) => 200 Stays;
        "a trailer that lies": post_chunked(&format!("{pieces}0\r\nContent-Length: 9\r\n\r\n")) => 200 | 400 Either;
        "no size": bad("\r\nhello") => 400 Closes;
        "no number": bad("five\r\nhello") => 400 Closes;
        "minus": bad("-5\r\nhello") => 400 Closes;
        "plus": bad("+5\r\nhello") => 400 Closes;
        "0x": bad("0x5\r\nhello") => 400 Closes;
        "LF after the size": bad("5\nhello") => 400 Closes;
        "LF in an extension": bad("5;a\nhello") => 400 Closes;
        "more than its size": bad("3\r\nhello") => 400 Closes;
        "LF after a trailer": post_chunked(&format!("{pieces}0\r\nX-Sum: 1\n\r\n")) => 400 Closes;
        "LF after the data": post_chunked("5\r\nhello\n0\r\n\r\n") => 400 Closes;
    });
}

#[test]
fn a_request_split_anywhere_is_the_same_request() {
    let server = TestServer::start();
    let body = chunks(MESSAGE, 20).replacen("\r\n", ";x=y\r\n", 1) + "0\r\nX-Sum: 1\r\n\r\n";
    let request = post_chunked(&body);
    let mut http = server.http();
    for at in 1..request.len() {
        http.send(&request[..at]);
        http.send(&request[at..]);
        assert_eq!(http.response(false).status, 200, "split before byte {at}");
    }
    for byte in request.bytes() {
        http.send([byte]);
    }
    let response = http.response(false);
    assert_eq!(response.json()["message"]["content"], "hi");
    assert_eq!(
        response.json()["message"]["id"],
        request.len(),
        "every one was stored once"
    );
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let server = TestServer::start();
    let mut http = server.http();
    let sized = |n: usize| post_sized(&MESSAGE.replace("hi", &n.to_string()));
    let chunked =
        |n: usize| post_chunked(&(chunks(&MESSAGE.replace("hi", &n.to_string()), 9) + "0\r\n\r\n"));
    let requests = (0..10).map(|n| match n % 3 {
        0 => sized(n),
        1 => get(""),
        _ => chunked(n),
    });
    http.send(requests.collect::<String>());
    for n in 0..10 {
        let response = http.response(false);
        assert_eq!(response.status, 200, "{}", response.text());
        match n % 3 {
            1 => assert_eq!(response.json()["status"], "ok", "answer {n}"),
            _ => assert_eq!(
                response.json()["message"]["content"],
                n.to_string(),
                "answer {n}"
            ),
        }
    }
}

#[test]
fn a_connection_serves_many_requests_one_after_another() {
    let server = TestServer::start();
    let mut http = server.http();
    for n in 1..=300 {
        assert_eq!(http.publish("lab", "again"), n);
    }
}

#[test]
fn a_client_that_expects_100_gets_it_before_it_sends_its_body() {
    let server = TestServer::start();
    let mut http = server.http();
    for (headers, body) in [
        (
            "Expect: 100-continue\r\nContent-Length: 50\r\n",
            MESSAGE.to_owned(),
        ),
        (
            "Expect: 100-Continue\r\nTransfer-Encoding: chunked\r\n",
            chunks(MESSAGE, 9) + "0\r\n\r\n",
        ),
    ] {
        http.send(post(headers, ""));
        assert_eq!(http.response(false).status, 100, "{headers}");
        http.send(body);
        assert_eq!(http.response(false).status, 200, "{headers}");
    }
    let old = post("Expect: 100-continue\r\nContent-Length: 50\r\n", MESSAGE);
    let mut http = server.http();
    http.send(old.replace("HTTP/1.1", "HTTP/1.0"));
    assert_eq!(http.response(false).status, 200, "HTTP/1.0 knows no 100");
}

#[test]
fn a_body_too_large_is_refused_before_it_is_sent() {
    let server = TestServer::start();
    for (headers, status) in [
        (
            format!(
                "Expect: 100-continue\r\nContent-Length: {}\r\n",
                MAX_BODY + 1
            ),
            413,
        ),
        (
            "Expect: 100-continue\r\nContent-Length: 1\r\nContent-Length: 2\r\n".to_owned(),
            400,
        ),
        ("Expect: 200-ok\r\nContent-Length: 50\r\n".to_owned(), 417),
    ] {
        let mut http = server.http();
        http.send(post(&headers, ""));
        assert_eq!(http.response(false).status, status, "{headers}");
        assert!(
            http.closed(),
            "{headers}: where would the next request begin?"
        );
    }
}

#[test]
fn a_client_that_sends_all_of_a_body_too_large_still_reads_its_refusal() {
    let server = TestServer::start();
    let body = "x".repeat(32 * MAX_BODY);
    for bytes in [post_sized(&body), post_chunked(&chunks(&body, 50_000))] {
        // It is listened to for a second; a busy machine may need longer now and then.
        eventually("all of it is sent", || {
            let mut http = server.http();
            if http.stream.write_all(bytes.as_bytes()).is_err() {
                return false;
            }
            assert_eq!(http.response(false).status, 413);
            assert!(http.closed());
            true
        });
    }
}

#[test]
fn head_has_the_length_of_get_and_no_body() {
    let server = TestServer::start();
    let mut http = server.http();
    http.publish("lab", &"x".repeat(100_000));
    for target in ["/", "/api/messages", "/api/channels", "/nope"] {
        let whole = http.get(target);
        let head = http.request("HEAD", target, &[], b"");
        assert_eq!(head.status, whole.status, "{target}");
        assert_eq!(
            head.header("Content-Type"),
            whole.header("Content-Type"),
            "{target}"
        );
        assert_eq!(
            head.header("Content-Length"),
            Some(&*whole.body.len().to_string()),
            "{target}"
        );
    }
    http.send("HEAD / HTTP/1.0\r\n\r\n");
    assert_eq!(http.response(true).status, 200);
    assert!(http.closed(), "a body after HEAD");
}

#[test]
fn a_client_that_closes_its_half_still_gets_its_answer() {
    let server = TestServer::start();
    let mut http = server.http();
    http.send(post_sized(MESSAGE) + &get(""));
    http.stream
        .shutdown(Shutdown::Write)
        .expect("an open connection");
    assert_eq!(http.response(false).status, 200);
    assert_eq!(http.response(false).json()["head"], 1);
    assert!(http.closed());
}
