//! The client commands as children, and servers that misbehave as told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tungstenite::protocol::{Role, WebSocket};

use super::{DEADLINE, Program};

/// A running `threadcast sub` or `threadcast pub`.
pub struct Client {
    child: Child,
    pub stdin: Option<ChildStdin>,
    /// `None` when the test reads it.
    lines: Option<Receiver<String>>,
    errors: Receiver<String>,
}

/// `threadcast ARGS…`, in an environment without settings.
pub fn threadcast(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_threadcast"));
    command
        .args(args)
        .env_remove("THREADCAST_URL")
        .env_remove("THREADCAST_TOKEN");
    command
}

impl Client {
    /// Starts `threadcast ARGS… --url http://ADDRESS`.
    pub fn start(address: SocketAddr, args: &[&str]) -> Self {
        let mut command = threadcast(args);
        command.args(["--url", &format!("http://{address}")]);
        let (mut client, stdout) = Self::spawn(command);
        client.lines = Some(lines_of(stdout));
        client
    }

    /// One whose standard output the test reads by itself.
    pub fn spawn(mut command: Command) -> (Self, ChildStdout) {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stdout = child.stdout.take().expect("a pipe");
        let errors = lines_of(child.stderr.take().expect("a pipe"));
        let client = Self {
            stdin: child.stdin.take(),
            child,
            lines: None,
            errors,
        };
        (client, stdout)
    }

    /// The next line of standard output.
    pub fn line(&self) -> String {
        let lines = self.lines.as_ref().expect("the output is not taken");
        lines.recv_timeout(DEADLINE).expect("a line in time")
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.line()).expect("JSON")
    }

    /// The `id`s of the next lines.
    pub fn ids(&self, count: usize) -> Vec<u64> {
        (0..count)
            .map(|_| self.json()["id"].as_u64().expect("an id"))
            .collect()
    }

    /// The next line of standard error.
    pub fn error(&self) -> String {
        self.errors.recv_timeout(DEADLINE).expect("a line in time")
    }

    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        stdin.write_all(bytes.as_ref()).expect("it reads");
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Waits for its end; returns its code, and what it had not printed before.
    pub fn end(mut self) -> (Option<i32>, Vec<String>, Vec<String>) {
        drop(self.stdin.take());
        let status = wait(&mut self.child);
        let lines = self
            .lines
            .take()
            .map_or(Vec::new(), |lines| lines.iter().collect());
        (status.code(), lines, self.errors.iter().collect())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        assert!(start.elapsed() < DEADLINE, "it did not end");
        thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn lines_of(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let lines = BufReader::new(pipe).lines();
        for line in lines.map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

impl Program {
    /// Kills the server and starts it anew, where it was.
    pub fn restart(&mut self, database: &Path) {
        self.kill();
        let start = Instant::now();
        loop {
            let mut command = threadcast(&["serve", "--listen", &self.address.to_string(), "--db"]);
            command.arg(database);
            let mut child = command
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("the program starts");
            let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
            if lines.next().is_some() {
                thread::spawn(move || lines.for_each(drop));
                self.child = child;
                return;
            }
            // Somebody else has the port for a moment.
            let _ = child.wait();
            assert!(start.elapsed() < DEADLINE, "the port stays taken");
            thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// A server that does what the test says.
pub struct Fake {
    listener: TcpListener,
    pub address: SocketAddr,
}

impl Fake {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        Self { listener, address }
    }

    /// The next connection with the head of its request.
    pub fn request(&self) -> (TcpStream, String) {
        self.listener.set_nonblocking(true).expect("a listener");
        let start = Instant::now();
        let mut stream = loop {
            if let Ok((stream, _)) = self.listener.accept() {
                break stream;
            }
            assert!(start.elapsed() < DEADLINE, "nobody connects");
            thread::sleep(std::time::Duration::from_millis(2));
        };
        stream.set_nonblocking(false).expect("a socket");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a whole head");
            head.push(byte[0]);
        }
        (stream, String::from_utf8(head).expect("ASCII"))
    }

    /// Answers the next request with this, and closes.
    pub fn answer(&self, answer: &str) {
        let (mut stream, _) = self.request();
        stream.write_all(answer.as_bytes()).expect("it reads");
    }

    /// Makes a WebSocket of the next connection; returns its target, too.
    pub fn accept(&self) -> (WebSocket<TcpStream>, String) {
        let (mut stream, head) = self.request();
        let key = head
            .lines()
            .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))
            .expect("a key");
        let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).expect("it reads");
        let target = head.split(' ').nth(1).expect("a target").to_owned();
        (
            WebSocket::from_raw_socket(stream, Role::Server, None),
            target,
        )
    }
}
