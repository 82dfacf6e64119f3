//! What every test needs: a server on a free port with a temporary database, the real
//! program as a child, and small clients that give up at a deadline.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod browser;
pub mod cable;
pub mod cli;
pub mod cluster;
pub mod exposition;
pub mod gate;
#[cfg(feature = "tls")]
pub mod identity;
pub mod load;
pub mod proxy;
pub mod redis;
pub mod resp;
pub mod sse;
pub mod system;
pub mod tokens;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use threadcast::Server;
use threadcast::config::{Config, Database};
use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};
use tungstenite::{Message, client::IntoClientRequest};

/// Longest wait for anything a test expects; generous, because a test never waits for it when all is well.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A server inside the test's process, on a free port with a database of its own.
pub struct TestServer {
    server: Option<Server>,
    pub address: SocketAddr,
    pub dir: TempDir,
}

impl TestServer {
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// Starts with a changed configuration; `listen` and `database` are already set.
    pub fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut config = Config::default();
        config.listen = "127.0.0.1:0".parse().expect("an address");
        config.database = Database::File(dir.path().join("test.db"));
        change(&mut config);
        let server = Server::start(config).expect("the server starts");
        let address = server.address();
        Self {
            server: Some(server),
            address,
            dir,
        }
    }

    /// The server itself, for what a program that embeds it does.
    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("it was not shut down")
    }

    pub fn database(&self) -> PathBuf {
        self.dir.path().join("test.db")
    }

    pub fn http(&self) -> Http {
        Http::connect(self.address)
    }

    pub fn subscribe(&self, channel: &str) -> Ws {
        Ws::subscribe(self.address, channel)
    }

    pub fn subscribe_feed(&self, feed: &str) -> Ws {
        Ws::subscribe_feed(self.address, feed)
    }

    /// Publishes over HTTP on a connection of its own and returns the message's id.
    pub fn publish(&self, channel: &str, content: &str) -> u64 {
        self.http().publish(channel, content)
    }

    /// Ends the server as SIGTERM would; returns once it is gone.
    pub fn shutdown(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown();
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// The real program, as a child process.
pub struct Program {
    pub child: Child,
    pub address: SocketAddr,
}

impl Program {
    /// `threadcast serve --listen 127.0.0.1:0 --db DATABASE ARGS…`; waits until it says where it listens.
    pub fn start(database: &Path, args: &[&str]) -> Self {
        Self::start_command(serve(database, args))
    }

    /// The same; what it logs goes to the file `log`.
    pub fn start_logging(database: &Path, args: &[&str], log: &Path) -> Self {
        Self::spawn(serve(database, args).stderr(File::create(log).expect("a file")))
    }

    /// Starts any command that prints threadcast's start-up line on standard output.
    pub fn start_command(mut command: Command) -> Self {
        Self::spawn(command.stderr(Stdio::null()))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let line = lines.next().expect("a start-up line").expect("text");
        let address = line
            .split("://")
            .nth(1)
            .and_then(|rest| rest.split([',', ' ', '/']).next())
            .and_then(|address| address.parse().ok())
            .unwrap_or_else(|| panic!("no address in the start-up line: {line}"));
        // Whatever else it prints is read and dropped, so it never blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the process is there");
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "the program did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn http(&self) -> Http {
        Http::connect(self.address)
    }

    pub fn subscribe(&self, channel: &str) -> Ws {
        Ws::subscribe(self.address, channel)
    }

    pub fn subscribe_feed(&self, feed: &str) -> Ws {
        Ws::subscribe_feed(self.address, feed)
    }
}

fn serve(database: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_threadcast"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--db"])
        .arg(database)
        .args(args);
    command
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A keep-alive HTTP connection that sends raw bytes and reads whole responses.
pub struct Http<S = TcpStream> {
    pub stream: S,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub reason: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!(
                "not JSON ({error}): {}",
                String::from_utf8_lossy(&self.body)
            )
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A message as the body that publishes it.
pub fn message(channel: &str, content: &str) -> Value {
    json!({"channel_id": channel, "author": "test", "content": content})
}

fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if !body.is_empty() {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

impl Http {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server accepts");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_nodelay(true).expect("nodelay");
        Self::over(stream)
    }
}

impl<S: Read + Write> Http<S> {
    /// On a connection of another kind.
    pub fn over(stream: S) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
        }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .write_all(bytes.as_ref())
            .expect("the server takes bytes");
    }

    /// One request with a `Host` and, where there is a body, a `Content-Length`; returns its response.
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        self.send(request(method, target, headers, body));
        self.response(method == "HEAD")
    }

    pub fn get(&mut self, target: &str) -> Response {
        self.request("GET", target, &[], b"")
    }

    pub fn post_json(&mut self, target: &str, body: &Value) -> Response {
        self.request(
            "POST",
            target,
            &[("Content-Type", "application/json")],
            body.to_string().as_bytes(),
        )
    }

    /// The same; `None` when the connection ends before the response.
    pub fn try_post_json(&mut self, target: &str, body: &Value) -> Option<Response> {
        let json = [("Content-Type", "application/json")];
        let request = request("POST", target, &json, body.to_string().as_bytes());
        self.stream.write_all(&request).ok()?;
        self.try_response(false)
    }

    /// Publishes a message and returns its id.
    pub fn publish(&mut self, channel: &str, content: &str) -> u64 {
        let response = self.post_json("/api/messages", &message(channel, content));
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()["message"]["id"].as_u64().expect("an id")
    }

    pub fn put(&mut self, target: &str, body: &str) -> Response {
        self.request(
            "PUT",
            target,
            &[("Content-Type", "application/json")],
            body.as_bytes(),
        )
    }

    /// Gives a feed this state and returns the answer.
    pub fn put_state(&mut self, feed: &str, state: &str) -> Value {
        let response = self.put(&format!("/api/state/{feed}"), state);
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    }

    /// A feed's last state, as the object of its frame.
    pub fn state(&mut self, feed: &str) -> Value {
        let response = self.get(&format!("/api/state/{feed}"));
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    }

    /// Reads one response; panics at the deadline or when the connection ends first.
    pub fn response(&mut self, head_only: bool) -> Response {
        self.try_response(head_only)
            .expect("a response before the end of the connection")
    }

    /// Reads one response; `None` when the connection ends before its first byte.
    pub fn try_response(&mut self, head_only: bool) -> Option<Response> {
        let end = loop {
            if let Some(at) = self
                .buffer
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                break at + 4;
            }
            if !self.fill() {
                assert!(
                    self.buffer.is_empty(),
                    "half a head: {:?}",
                    String::from_utf8_lossy(&self.buffer)
                );
                return None;
            }
        };
        let head = String::from_utf8(self.buffer.drain(..end).collect()).expect("an ASCII head");
        let mut lines = head.trim_end().split("\r\n");
        let mut status_line = lines.next().expect("a status line").splitn(3, ' ');
        assert!(
            status_line
                .next()
                .expect("a version")
                .starts_with("HTTP/1.")
        );
        let status = status_line
            .next()
            .expect("a status")
            .parse()
            .expect("a number");
        let reason = status_line.next().unwrap_or_default().to_owned();
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(':').expect("a header"))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut response = Response {
            status,
            reason,
            headers,
            body: Vec::new(),
        };
        if head_only || status < 200 || status == 204 || status == 304 {
            return Some(response);
        }
        let length: usize = response
            .header("Content-Length")
            .expect("every response has a length")
            .parse()
            .expect("a number");
        while self.buffer.len() < length {
            assert!(self.fill(), "the connection ended inside a body");
        }
        response.body = self.buffer.drain(..length).collect();
        Some(response)
    }

    /// Whether the server has closed the connection; waits for that up to the deadline.
    pub fn closed(&mut self) -> bool {
        self.buffer.is_empty() && !self.fill()
    }

    /// Reads once; `false` at the end of the connection.
    fn fill(&mut self) -> bool {
        let mut bytes = [0; 65536];
        match uninterrupted(|| self.stream.read(&mut bytes)) {
            Ok(0) => false,
            Ok(n) => {
                self.buffer.extend_from_slice(&bytes[..n]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("no answer before the deadline: {error}"),
        }
    }
}

/// A WebSocket client that gives up at the deadline.
pub struct Ws<S = TcpStream> {
    pub socket: WebSocket<S>,
}

impl Ws {
    /// Joins `/api/ws/{channel}`; `channel` is put into the path as it is.
    pub fn subscribe(address: SocketAddr, channel: &str) -> Self {
        Self::open(address, &format!("/api/ws/{channel}"))
    }

    /// Joins `/ws/{feed}`; its first frame is the feed's state.
    pub fn subscribe_feed(address: SocketAddr, feed: &str) -> Self {
        Self::open(address, &format!("/ws/{feed}"))
    }

    pub fn open(address: SocketAddr, path: &str) -> Self {
        let stream = TcpStream::connect(address).expect("the server accepts");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_nodelay(true).expect("nodelay");
        Self::over(stream, path)
    }

    /// A client on an already upgraded stream.
    pub fn from_stream(stream: TcpStream) -> Self {
        Self {
            socket: WebSocket::from_raw_socket(
                stream,
                Role::Client,
                Some(WebSocketConfig::default()),
            ),
        }
    }
}

impl<S: Read + Write> Ws<S> {
    /// Makes the handshake on a connection of any kind.
    pub fn over(stream: S, path: &str) -> Self {
        let request = format!("ws://localhost{path}")
            .into_client_request()
            .expect("a request");
        let (socket, _) = tungstenite::client(request, stream)
            .unwrap_or_else(|error| panic!("no handshake on {path}: {error}"));
        Self { socket }
    }

    pub fn send(&mut self, frame: &Value) {
        self.socket
            .send(Message::text(frame.to_string()))
            .expect("the server takes a frame");
    }

    /// The next text frame as JSON; pings are answered and skipped.
    pub fn next(&mut self) -> Value {
        serde_json::from_str(&self.next_text()).expect("JSON")
    }

    /// The next text frame as it is; pings are answered and skipped.
    pub fn next_text(&mut self) -> String {
        loop {
            match self.read().expect("a frame before the deadline") {
                Message::Text(text) => return text.as_str().to_owned(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("a text frame was expected, not {other:?}"),
            }
        }
    }

    /// Reads a frame. Another test's child that ends may interrupt a wait.
    pub fn read(&mut self) -> tungstenite::Result<Message> {
        loop {
            match self.socket.read() {
                Err(tungstenite::Error::Io(error))
                    if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// The next message's `data`; panics on any other frame.
    pub fn next_message(&mut self) -> Value {
        let mut frame = self.next();
        assert_eq!(frame["type"], "message", "{frame}");
        frame["data"].take()
    }

    /// Panics if a frame has come that was not read. Shows it without waiting: the pong is next.
    pub fn is_quiet(&mut self) {
        self.send(&json!({"type": "ping", "timestamp": "quiet?"}));
        assert_eq!(self.next(), json!({"type": "pong", "timestamp": "quiet?"}));
    }

    /// Reads until the server closes and returns its code, `None` when it closed without one.
    pub fn close_code(&mut self) -> Option<u16> {
        loop {
            match self.read() {
                Ok(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
                Ok(_) => {}
                Err(error) => panic!("the connection ended without a close frame: {error}"),
            }
        }
    }
}

/// A request that publishes, as it goes over the wire.
pub fn post(headers: &str, body: &str) -> String {
    format!("POST /api/messages HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n{body}")
}

pub fn post_sized(body: &str) -> String {
    post(&format!("Content-Length: {}\r\n", body.len()), body)
}

pub fn post_chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked\r\n", body)
}

/// A server with a file and one with the ring in memory, each with the same changed configuration.
pub fn both_stores(change: impl Fn(&mut Config)) -> impl Iterator<Item = TestServer> {
    [false, true].into_iter().map(move |in_memory| {
        TestServer::start_with(|config| {
            if in_memory {
                config.database = Database::Memory;
            }
            change(config);
        })
    })
}

/// Repeats a system call that a signal cut short.
fn uninterrupted<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Calls `ready` until it is true; panics at the deadline.
pub fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(
            start.elapsed() < DEADLINE,
            "not before the deadline: {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}
