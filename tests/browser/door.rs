//! A proxy with one address for a server that comes and goes, which may want a token and tell
//! of connections.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

/// What the door does; a test may change it at any time.
#[derive(Default)]
pub(crate) struct Orders {
    /// Where the server is; without one, connections are closed as they come.
    pub(crate) server: Option<SocketAddr>,
    /// Only who says this token gets past.
    pub(crate) token: Option<&'static str>,
    /// The answer to `GET /api/connections`.
    pub(crate) connections: Option<Value>,
    /// The paths that were asked to be deleted.
    pub(crate) deleted: Vec<String>,
}

pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    orders: Arc<Mutex<Orders>>,
}

impl Door {
    pub(crate) fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let orders = Arc::new(Mutex::new(Orders {
            server: Some(server),
            ..Orders::default()
        }));
        let theirs = Arc::clone(&orders);
        // Ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let orders = Arc::clone(&theirs);
                thread::spawn(move || serve(client, &orders));
            }
        });
        Self { address, orders }
    }

    pub(crate) fn orders<T>(&self, change: impl FnOnce(&mut Orders) -> T) -> T {
        change(&mut self.orders.lock().expect("no panic under this lock"))
    }
}

/// One request, and whatever follows it if it becomes a WebSocket.
fn serve(mut client: TcpStream, orders: &Mutex<Orders>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match client.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8(head).expect("an ASCII head");
    let (answer, server) = {
        let mut orders = orders.lock().expect("no panic under this lock");
        (answer(&head, &mut orders), orders.server)
    };
    if let Some((status, body)) = answer {
        let length = body.len();
        let _ = write!(
            client,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        return;
    }
    let Some(mut server) = server.and_then(|address| TcpStream::connect(address).ok()) else {
        return;
    };
    let is_socket = head.contains("Upgrade: websocket");
    let lines = head.trim_end().split("\r\n");
    let mut lines: Vec<&str> = lines
        .filter(|line| !line.starts_with("Sec-WebSocket-Protocol:"))
        .filter(|line| is_socket || !line.starts_with("Connection:"))
        .collect();
    if !is_socket {
        lines.push("Connection: close");
    }
    let _ = server.write_all(format!("{}\r\n\r\n", lines.join("\r\n")).as_bytes());
    if head.contains("Sec-WebSocket-Protocol:") {
        // The server's own first line, then what it would add.
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") && matches!(server.read(&mut byte), Ok(1)) {
            line.push(byte[0]);
        }
        line.extend_from_slice(b"Sec-WebSocket-Protocol: threadcast\r\n");
        let _ = client.write_all(&line);
    }
    let pair = (
        client.try_clone().expect("a handle"),
        server.try_clone().expect("a handle"),
    );
    thread::spawn(move || pass(pair.0, pair.1));
    pass(server, client);
}

/// What the door says itself; `None` when the server is to answer.
fn answer(head: &str, orders: &mut Orders) -> Option<(&'static str, String)> {
    let mut words = head.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    if let Some(token) = orders.token.filter(|_| path != "/") {
        let encoded = data_encoding::BASE64URL_NOPAD.encode(token.as_bytes());
        let wanted = [
            format!("authorization: Bearer {token}"),
            format!("Sec-WebSocket-Protocol: threadcast, bearer.{encoded}"),
        ];
        let is_said = head.lines().any(|line| wanted.iter().any(|it| it == line));
        if !is_said {
            let body = r#"{"title":"Unauthorized","status":401,"detail":"no token"}"#;
            return Some(("401 Unauthorized", body.to_owned()));
        }
    }
    if method == "DELETE" {
        orders.deleted.push(path.to_owned());
        return Some(("200 OK", "{}".to_owned()));
    }
    let connections = orders.connections.as_ref();
    let connections = connections.filter(|_| path == "/api/connections")?;
    Some(("200 OK", connections.to_string()))
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = from.shutdown(Shutdown::Read);
    let _ = to.shutdown(Shutdown::Both);
}
