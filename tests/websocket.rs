//! RFC 6455 from a raw socket: handshakes, frames and endings as no client library would send them.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use Delivery::{InOneWrite, InPieces, WithTheRequest};
use common::{DEADLINE, Response, TestServer, eventually};
use serde_json::{Value, json};

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

const FIN: u8 = 0x80;

/// A frame of the server: opcode and payload.
type Frame = (u8, Vec<u8>);

/// The mask of the RFC's own example (section 5.7).
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

const GET: &str = "GET /api/ws/lab HTTP/1.1";
const UPGRADE: &str = "Upgrade: websocket";
const CONNECTION: &str = "Connection: Upgrade";
const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
const VERSION: &str = "Sec-WebSocket-Version: 13";
const STANDARD: &[&str] = &[UPGRADE, CONNECTION, KEY, VERSION];

/// A masked frame; `first` holds FIN, the reserved bits and the opcode.
fn raw_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, payload.len() as u64);
    let masks = MASK.iter().cycle();
    bytes.extend(payload.iter().zip(masks).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// Everything of a masked frame that comes before its payload.
fn header(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..=125 => bytes.push(0x80 | length as u8),
        126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes
}

/// A whole message or control frame.
fn frame(opcode: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    raw_frame(FIN | opcode, payload.as_ref())
}

/// A fragment that is not the last one.
fn part(opcode: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    raw_frame(opcode, payload.as_ref())
}

/// A text message in fragments of `size` bytes.
fn fragments(text: &str, size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let count = text.len().div_ceil(size);
    for (index, piece) in text.as_bytes().chunks(size).enumerate() {
        let opcode = if index == 0 { TEXT } else { CONTINUATION };
        let fin = if index + 1 == count { FIN } else { 0 };
        bytes.extend(raw_frame(fin | opcode, piece));
    }
    bytes
}

fn close(code: u16, reason: impl AsRef<[u8]>) -> Vec<u8> {
    frame(CLOSE, [&code.to_be_bytes()[..], reason.as_ref()].concat())
}

/// A JSON ping, whose pong shows what the server understood.
fn ping(timestamp: &str) -> String {
    json!({"type": "ping", "timestamp": timestamp}).to_string()
}

fn pong(timestamp: &str) -> String {
    json!({"type": "pong", "timestamp": timestamp}).to_string()
}

fn request(line: &str, headers: &[&str], body: &str) -> String {
    let headers = headers.join("\r\n");
    format!("{line}\r\nHost: localhost\r\n{headers}\r\n\r\n{body}")
}

/// The answer to one request on a connection of its own.
fn answer(server: &TestServer, line: &str, headers: &[&str], body: &str) -> Response {
    let mut http = server.http();
    http.send(request(line, headers, body));
    http.response(false)
}

fn is_problem(response: &Response) -> bool {
    let kind = response.header("Content-Type").unwrap_or_default();
    kind.starts_with("application/problem+json") && response.json()["status"] == response.status
}

/// An upgraded connection to channel `lab` that shows every byte.
struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    fn upgrade(server: &TestServer) -> Self {
        Self::upgrade_with(server, b"")
    }

    /// Sends `frames` in the same write as the upgrade request.
    fn upgrade_with(server: &TestServer, frames: &[u8]) -> Self {
        let stream = TcpStream::connect(server.address).expect("the server accepts");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_nodelay(true).expect("nodelay");
        let buffer = Vec::new();
        let mut raw = Self { stream, buffer };
        raw.send(&[request(GET, STANDARD, "").as_bytes(), frames].concat());
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(raw.take(1));
        }
        let head = String::from_utf8_lossy(&head);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        raw
    }

    fn send(&mut self, bytes: &[u8]) {
        let sent = self.stream.write_all(bytes);
        sent.expect("the server takes bytes");
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            let mut bytes = [0; 65536];
            let read = self.stream.read(&mut bytes).expect("bytes in time");
            assert!(read > 0, "ended early, after {:?}", self.buffer);
            self.buffer.extend_from_slice(&bytes[..read]);
        }
        self.buffer.drain(..count).collect()
    }

    /// The next frame; a server's frames are whole and unmasked.
    fn next(&mut self) -> Frame {
        let head = self.take(2);
        assert_eq!(head[0] & 0xf0, FIN, "FIN and no reserved bit: {head:?}");
        let length = match head[1] {
            126 => u16::from_be_bytes(self.take(2).try_into().expect("two bytes")).into(),
            127 => u64::from_be_bytes(self.take(8).try_into().expect("eight bytes")) as usize,
            length => usize::from(length),
        };
        assert!(length < 1 << 24, "masked or absurdly long: {head:?}");
        (head[0] & 0x0f, self.take(length))
    }

    /// Nothing has come that was not read, and the connection is alive.
    fn is_quiet(&mut self) {
        self.send(&frame(PING, "quiet?"));
        assert_eq!(self.next(), (PONG, b"quiet?".to_vec()));
    }

    /// Skips to the server's close frame; its code, `None` when it has none.
    fn close_code(&mut self) -> Option<u16> {
        loop {
            if let (CLOSE, payload) = self.next() {
                return payload.first_chunk().map(|code| u16::from_be_bytes(*code));
            }
        }
    }

    /// Waits for the orderly end of the connection: a reset could have destroyed the close frame.
    fn ended(&mut self) {
        assert_eq!(self.buffer, b"", "bytes after the close frame");
        let read = self.stream.read(&mut [0]);
        assert_eq!(read.expect("an end, not a reset"), 0, "more bytes");
    }

    /// The code of a close that the server began; answers it and waits for the end.
    fn refused(&mut self) -> Option<u16> {
        let code = self.close_code();
        let _ = self.stream.write_all(&close(code.unwrap_or(1000), ""));
        self.ended();
        code
    }
}

#[test]
fn the_handshake_answers_the_key_of_the_rfc_and_declines_what_was_not_asked_of_us() {
    let server = TestServer::start();
    let extensions = "Sec-WebSocket-Extensions: permessage-deflate";
    let protocols = "Sec-WebSocket-Protocol: chat, superchat";
    let headers = [STANDARD, &[extensions, protocols]].concat();
    let response = answer(&server, GET, &headers, "");
    assert_eq!(response.status, 101);
    let lower = |name| response.header(name).map(str::to_lowercase);
    assert_eq!(lower("Upgrade").as_deref(), Some("websocket"));
    assert_eq!(lower("Connection").as_deref(), Some("upgrade"));
    let accept = response.header("Sec-WebSocket-Accept");
    assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(response.header("Sec-WebSocket-Extensions"), None);
    assert_eq!(response.header("Sec-WebSocket-Protocol"), None);
}

#[test]
fn an_upgrade_is_one_however_its_headers_are_written() {
    #[rustfmt::skip]
    let rows: &[(&str, &[&str])] = &[
        ("values in capitals", &["Upgrade: WebSocket", "Connection: UPGRADE", KEY, VERSION]),
        ("names in small letters", &["upgrade: websocket", "connection: upgrade", KEY, "sec-websocket-version: 13"]),
        ("as Firefox sends it", &[UPGRADE, "Connection: keep-alive, Upgrade", KEY, VERSION]),
        ("no white space", &["Upgrade:websocket", "Connection:keep-alive,upgrade", KEY, VERSION]),
        ("a browser's other headers", &[UPGRADE, CONNECTION, KEY, VERSION, "Cookie: a=b", "Cache-Control: no-cache"]),
    ];
    let server = TestServer::start();
    for (name, headers) in rows {
        let mut http = server.http();
        http.send(request(GET, headers, ""));
        assert_eq!(http.response(false).status, 101, "{name}");
        http.send(frame(PING, "alive"));
        let mut answer = [0; 7];
        http.stream.read_exact(&mut answer).expect("a pong");
        assert_eq!(&answer, b"\x8a\x05alive", "{name}");
    }
}

#[test]
fn what_cannot_become_a_websocket_is_refused_with_an_http_status() {
    const BODY: &str = "Content-Length: 5";
    const CHUNKED: &str = "Transfer-Encoding: chunked";
    #[rustfmt::skip]
    let rows: &[(&str, &str, &[&str], &str, u16)] = &[
        ("no upgrade", GET, &["Accept: */*"], "", 426),
        ("another upgrade", GET, &["Upgrade: h2c", CONNECTION, KEY, VERSION], "", 426),
        ("version 8", GET, &[UPGRADE, CONNECTION, KEY, "Sec-WebSocket-Version: 8"], "", 426),
        ("no key", GET, &[UPGRADE, CONNECTION, VERSION], "", 400),
        ("a short key", GET, &[UPGRADE, CONNECTION, "Sec-WebSocket-Key: c2hvcnQ=", VERSION], "", 400),
        ("no base64", GET, &[UPGRADE, CONNECTION, "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==", VERSION], "", 400),
        ("two keys", GET, &[UPGRADE, CONNECTION, KEY, KEY, VERSION], "", 400),
        ("a body", GET, &[UPGRADE, CONNECTION, KEY, VERSION, BODY], "hello", 400),
        ("chunks", GET, &[UPGRADE, CONNECTION, KEY, VERSION, CHUNKED], "5\r\nhello\r\n0\r\n\r\n", 400),
        ("POST", "POST /api/ws/lab HTTP/1.1", &[UPGRADE, CONNECTION, KEY, VERSION, "Content-Length: 0"], "", 405),
        ("an unknown path", "GET /nowhere HTTP/1.1", STANDARD, "", 404),
        ("no channel", "GET /api/ws HTTP/1.1", STANDARD, "", 404),
        ("a path below a channel", "GET /api/ws/lab/more HTTP/1.1", STANDARD, "", 404),
    ];
    let server = TestServer::start();
    for &(name, line, headers, body, status) in rows {
        let response = answer(&server, line, headers, body);
        assert_eq!(response.status, status, "{name}: {response:?}");
        assert!(is_problem(&response), "{name}: {response:?}");
        let offer = ["Upgrade", "Sec-WebSocket-Version"].map(|header| response.header(header));
        if response.status == 426 {
            assert_eq!(offer, [Some("websocket"), Some("13")], "{name}");
        }
    }
    let old = answer(&server, "GET /api/ws/lab HTTP/1.0", STANDARD, "");
    assert!([400, 426, 505].contains(&old.status), "HTTP/1.0: {old:?}");
}

#[test]
fn a_channel_name_is_decoded_from_the_path() {
    let longest = "%C3%A9".repeat(128);
    #[rustfmt::skip]
    let rows = [
        ("lab", "lab".to_owned()),
        ("a%2Fb", "a/b".to_owned()),
        ("%C3%A9%f0%9f%98%80", "é😀".to_owned()),
        ("a+b%20c", "a+b c".to_owned()),
        ("100%2525", "100%25".to_owned()),
        ("a%3Fb%23c", "a?b#c".to_owned()),
        (&longest, "é".repeat(128)),
    ];
    let server = TestServer::start();
    for (path, name) in rows {
        let mut client = server.subscribe(path);
        server.publish(&name, "hello");
        assert_eq!(client.next_message()["channel_id"], name, "{path}");
    }
}

#[test]
fn a_wrong_channel_name_is_refused_before_the_upgrade() {
    let too_long = "x".repeat(129);
    let too_long_encoded = "%C3%A9".repeat(129);
    #[rustfmt::skip]
    let rows: [(u16, &[&str]); 3] = [
        (404, &[""]),
        (422, &[&too_long, &too_long_encoded, "a%00", "a%0Ab", "%7F", "%C2%85"]),
        (400, &["%", "a%2", "%zz", "%+1", "%ff", "%C3", "%ED%A0%80"]),
    ];
    let server = TestServer::start();
    for (status, paths) in rows {
        for path in paths {
            let line = format!("GET /api/ws/{path} HTTP/1.1");
            let response = answer(&server, &line, STANDARD, "");
            assert_eq!(response.status, status, "{path:?}");
            assert!(is_problem(&response), "{path:?}: {response:?}");
        }
    }
}

/// How the frames of a row travel.
#[derive(Debug, Clone, Copy)]
enum Delivery {
    InOneWrite,
    /// Byte by byte, or some thousand pieces of a long row.
    InPieces,
    WithTheRequest,
}

const DELIVERIES: [Delivery; 3] = [InOneWrite, InPieces, WithTheRequest];

#[test]
fn frames_mean_the_same_however_they_are_cut_and_delivered() {
    let [short, medium, longer, long] = [20, 100, 30_000, 40_000].map(|length| "é".repeat(length));
    let pongs = |payload: &[u8]| vec![(PONG, payload.to_vec())];
    let answers = |timestamp: &str| vec![(TEXT, pong(timestamp).into_bytes())];
    let (start, middle, end) = (r#"{"type":"ping","#, r#""timestamp":"#, r#""three"}"#);
    #[rustfmt::skip]
    let between = [
        part(TEXT, start),
        frame(PING, "between"),
        part(CONTINUATION, middle),
        frame(PONG, "unasked"),
        frame(CONTINUATION, end),
    ];
    let inside_a_character = [
        part(TEXT, b"{\"type\":\"ping\",\"timestamp\":\"\xe2\x82"),
        frame(PING, b"\xff\xfe"),
        frame(CONTINUATION, b"\xac\"}"),
    ];
    #[rustfmt::skip]
    let empty_parts = [
        part(TEXT, ""),
        part(CONTINUATION, ping("x")),
        frame(CONTINUATION, ""),
    ];
    let many: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    #[rustfmt::skip]
    let rows: Vec<(&str, Vec<u8>, Vec<Frame>)> = vec![
        ("a text", frame(TEXT, ping(&short)), answers(&short)),
        ("a 16-bit length", frame(TEXT, ping(&medium)), answers(&medium)),
        ("a long 16-bit length", frame(TEXT, ping(&longer)), answers(&longer)),
        ("a 64-bit length", frame(TEXT, ping(&long)), answers(&long)),
        ("three fragments", fragments(&ping(&short), 50), answers(&short)),
        ("fragments inside characters", fragments(&ping("€😀é"), 1), answers("€😀é")),
        ("control frames between", between.concat(), [pongs(b"between"), answers("three")].concat()),
        ("a ping in a character", inside_a_character.concat(), [pongs(b"\xff\xfe"), answers("€")].concat()),
        ("empty fragments", empty_parts.concat(), answers("x")),
        ("a ping", frame(PING, "payload"), pongs(b"payload")),
        ("an empty ping", frame(PING, ""), pongs(b"")),
        ("the longest ping", frame(PING, [0xa5; 125]), pongs(&[0xa5; 125])),
        ("an unsolicited pong", frame(PONG, "nobody asked"), vec![]),
        ("many frames", many.iter().flat_map(|n| frame(TEXT, ping(n))).collect(), many.iter().flat_map(|n| answers(n)).collect()),
    ];
    let server = TestServer::start();
    for (name, bytes, expected) in &rows {
        for delivery in DELIVERIES {
            let mut client = match delivery {
                WithTheRequest => Raw::upgrade_with(&server, bytes),
                InOneWrite | InPieces => Raw::upgrade(&server),
            };
            match delivery {
                InOneWrite => client.send(bytes),
                InPieces => {
                    let pieces = bytes.chunks(1 + bytes.len() / 2_000);
                    pieces.for_each(|piece| client.send(piece));
                }
                WithTheRequest => {}
            }
            for (opcode, payload) in expected {
                let (got, answer) = client.next();
                let same = match got {
                    TEXT => as_json(&answer) == as_json(payload),
                    _ => answer == *payload,
                };
                assert_eq!(got, *opcode, "{name} {delivery:?}");
                assert!(same, "{name} {delivery:?}: {}", answer.escape_ascii());
            }
            client.is_quiet();
        }
    }
}

fn as_json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

#[test]
fn a_breach_of_the_protocol_is_closed_with_its_code() {
    let unmasked = |opcode: u8| vec![FIN | opcode, 2, b'{', b'}'];
    let start = || part(TEXT, r#"{"type":"#);
    #[rustfmt::skip]
    let mut rows: Vec<(String, Vec<u8>, u16)> = [
        ("an unmasked text", unmasked(TEXT), 1002),
        ("an unmasked ping", unmasked(PING), 1002),
        ("an unmasked close", vec![FIN | CLOSE, 2, 0x03, 0xe8], 1002),
        ("a continuation of nothing", frame(CONTINUATION, "{}"), 1002),
        ("a part of nothing", part(CONTINUATION, "{}"), 1002),
        ("a continuation of a whole", [frame(TEXT, ping("x")), frame(CONTINUATION, "{}")].concat(), 1002),
        ("a text inside a text", [start(), frame(TEXT, "{}")].concat(), 1002),
        ("a part inside a text", [start(), part(TEXT, "{}")].concat(), 1002),
        ("a binary inside a text", [start(), frame(BINARY, "{}")].concat(), 1002),
        ("a ping of 126 bytes", frame(PING, [b'x'; 126]), 1002),
        ("a pong of 126 bytes", frame(PONG, [b'x'; 126]), 1002),
        ("a close of 126 bytes", close(1000, [b'x'; 124]), 1002),
        ("a ping in parts", part(PING, "x"), 1002),
        ("a close in parts", part(CLOSE, "\u{3}"), 1002),
        ("a binary message", frame(BINARY, "{}"), 1003),
        ("an empty binary message", frame(BINARY, ""), 1003),
        ("a binary in fragments", [part(BINARY, "{"), frame(CONTINUATION, "}")].concat(), 1003),
        ("no UTF-8", frame(TEXT, b"\xff"), 1007),
        ("half a character", frame(TEXT, b"\"\xe2\x82\""), 1007),
        ("half a character at the end", frame(TEXT, b"\"\xe2\x82"), 1007),
        ("an overlong form", frame(TEXT, b"\"\xc0\xaf\""), 1007),
        ("a surrogate", frame(TEXT, b"\"\xed\xa0\x80\""), 1007),
        ("beyond Unicode", frame(TEXT, b"\"\xf4\x90\x80\x80\""), 1007),
        ("no UTF-8 in fragments", [part(TEXT, b"\"\xe2"), frame(CONTINUATION, b"\x28\"")].concat(), 1007),
        ("half a character in fragments", [part(TEXT, b"\"\xe2"), frame(CONTINUATION, b"\x82")].concat(), 1007),
    ]
    .map(|(name, bytes, code)| (name.to_owned(), bytes, code))
    .into();
    for first in [0xc1, 0xa1, 0x91, 0xf1, 0xc9, 0xa9, 0x99, 0xc8] {
        let name = format!("reserved bits {first:#x}");
        rows.push((name, raw_frame(first, b""), 1002));
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        let name = format!("reserved opcode {opcode}");
        rows.push((name, frame(opcode, "x"), 1002));
    }
    let server = TestServer::start();
    for (name, bytes, code) in rows {
        let mut client = Raw::upgrade(&server);
        client.send(&bytes);
        assert_eq!(client.refused(), Some(code), "{name}");
    }
    let head = server.http().get("/api/messages").json()["head"].clone();
    assert_eq!(head, 0, "nothing was stored");
}

#[test]
fn a_long_text_is_answered_with_an_error_and_a_much_longer_one_with_1009() {
    const LIMIT: usize = 1_000;
    let text = |length: usize| ping(&"x".repeat(length - ping("").len()));
    let server = TestServer::start_with(|config| config.limits.max_body_bytes = LIMIT);
    let mut client = Raw::upgrade(&server);
    #[rustfmt::skip]
    let rows = [(LIMIT, "pong", None), (LIMIT + 1, "error", Some("too_large")), (2 * LIMIT, "error", Some("too_large"))];
    for (length, kind, code) in rows {
        for bytes in [frame(TEXT, text(length)), fragments(&text(length), 300)] {
            client.send(&bytes);
            let answer = as_json(&client.next().1);
            assert_eq!(answer["type"], kind, "{length}: {answer}");
            assert_eq!(answer["code"].as_str(), code, "{length}: {answer}");
            client.is_quiet();
        }
    }
    #[rustfmt::skip]
    let rows = [
        ("whole", frame(TEXT, text(2 * LIMIT + 1))),
        ("in fragments", fragments(&text(2 * LIMIT + 1), 300)),
        ("in endless fragments", [part(TEXT, "x"), part(CONTINUATION, "x".repeat(100)).repeat(30)].concat()),
        ("far above the limit", frame(TEXT, text(60_000))),
    ];
    for (name, bytes) in rows {
        let mut client = Raw::upgrade(&server);
        client.send(&bytes);
        assert_eq!(client.refused(), Some(1009), "{name}");
    }
}

#[test]
fn a_header_that_announces_too_much_is_closed_at_once_and_reserves_nothing() {
    let server = TestServer::start();
    let before = peak_memory_kib();
    for length in [1 << 36, 1 << 62] {
        for start in [vec![], part(TEXT, "begun")] {
            let mut client = Raw::upgrade(&server);
            let opcode = if start.is_empty() { TEXT } else { CONTINUATION };
            client.send(&[start, header(FIN | opcode, length)].concat());
            assert_eq!(client.refused(), Some(1009), "{length}");
        }
    }
    // Half of the smaller announcement, and far more than this process' other tests take meanwhile.
    let more = peak_memory_kib().saturating_sub(before);
    assert!(more < 1 << 25, "{more} KiB reserved for an announcement");
}

/// The most address space this process, the server in it, ever had; 0 where the system does not say.
fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let peak = peak.and_then(|line| line.trim().strip_suffix(" kB"));
    peak.map_or(0, |kib| kib.parse().expect("a number"))
}

#[test]
fn a_close_is_answered_with_its_own_code_and_then_the_connection_ends() {
    let server = TestServer::start();
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 3000, 4999] {
        for reason in ["", "bye", &"é".repeat(61)] {
            let mut client = Raw::upgrade(&server);
            client.send(&close(code, reason));
            assert_eq!(client.close_code(), Some(code), "{reason:?}");
            client.ended();
        }
    }
    let mut client = Raw::upgrade(&server);
    client.send(&frame(CLOSE, ""));
    let code = client.close_code();
    assert!(matches!(code, None | Some(1000)), "an empty one: {code:?}");
    client.ended();
}

#[test]
fn a_close_that_is_none_is_answered_with_its_code() {
    let server = TestServer::start();
    #[rustfmt::skip]
    let mut rows = vec![
        ("half a code".to_owned(), frame(CLOSE, [3]), 1002),
        ("a reason that is no UTF-8".to_owned(), close(1000, b"\xff"), 1007),
        ("a reason that ends in a character".to_owned(), close(1000, b"x\xe2\x82"), 1007),
    ];
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        rows.push((format!("code {code}"), close(code, "why"), 1002));
    }
    for (name, bytes, code) in rows {
        let mut client = Raw::upgrade(&server);
        client.send(&bytes);
        assert_eq!(client.close_code(), Some(code), "{name}");
        client.ended();
    }
}

#[test]
fn what_comes_before_a_close_counts_and_what_comes_after_it_does_not() {
    let message = |content: &str| {
        let json = json!({"type": "message", "content": content});
        frame(TEXT, json.to_string())
    };
    let server = TestServer::start();
    let mut client = Raw::upgrade(&server);
    // More than the server reads at once: what it leaves unread must not reset the connection.
    let garbage = vec![0xff; 100_000];
    let after = [message("after"), frame(PING, "after"), garbage].concat();
    client.send(&[message("before"), close(1000, "done"), after].concat());
    assert_eq!(client.close_code(), Some(1000));
    client.ended();
    let contents = || server.http().get("/api/messages").json()["messages"].clone();
    eventually("what came before the close is stored", || {
        contents()[0]["content"] == "before"
    });
    server.publish("lab", "later");
    assert_eq!(contents()[1]["content"], "later", "what came after is not");
}

#[test]
fn an_end_without_a_close_is_an_end() {
    #[rustfmt::skip]
    let rows = [
        ("between frames", vec![]),
        ("inside a header", vec![FIN | TEXT]),
        ("inside a frame", header(FIN | TEXT, 100)),
        ("inside a message", part(TEXT, "{")),
    ];
    let server = TestServer::start();
    for (name, bytes) in rows {
        let mut client = Raw::upgrade(&server);
        client.send(&bytes);
        let shutdown = client.stream.shutdown(Shutdown::Write);
        shutdown.expect("a connection");
        let rest = client.stream.read_to_end(&mut Vec::new());
        assert!(rest.is_ok(), "{name}: {rest:?}");
        let body = json!({"channel_id": "lab", "author": "test", "content": name});
        eventually("the client is forgotten", || {
            server.http().post_json("/api/messages", &body).json()["subscribers"] == 0
        });
    }
}
