//! A proxy with one address for a server that comes and goes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What the door does; a test may change it at any time.
#[derive(Default)]
pub(crate) struct Orders {
    /// Where the server is; without one, connections are closed as they come.
    pub(crate) server: Option<SocketAddr>,
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
    let server = orders.lock().expect("no panic under this lock").server;
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
fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = from.shutdown(Shutdown::Read);
    let _ = to.shutdown(Shutdown::Both);
}
