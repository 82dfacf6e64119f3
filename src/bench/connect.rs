//! The client's side of a connection: where to, the WebSocket handshake, masked frames.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::plan::Plan;

/// An open WebSocket and the bytes that came after its handshake.
pub(super) type Open = (TcpStream, Vec<u8>);

/// Longest wait for one answer of the server; a run never hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Handshakes under way at once; below the backlog of common listeners.
pub(super) const HANDSHAKES: usize = 64;

/// The nonce of RFC 6455, 1.3, and the answer to it given there.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The address in a URL or `HOST:PORT`; refused unless it is this machine's own.
pub(super) fn address(url: &str) -> Result<SocketAddr, String> {
    let bare = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("ws://"))
        .unwrap_or(url);
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    let addresses = bare.to_socket_addrs().map_err(|error| {
        format!("--url {url}: {error}; expected something like http://127.0.0.1:8010")
    })?;
    addresses
        .into_iter()
        .find(|address| address.ip().is_loopback())
        .ok_or_else(|| {
            format!(
                "--url {url}: not a loopback address; the load is only for a server on this machine"
            )
        })
}

/// Raises the soft limit of open descriptors to the hard one and fails if `connections` don't fit.
pub(super) fn raise_descriptor_limit(connections: usize) -> Result<(), String> {
    /// Standard streams, epoll, the child's pipe and what is opened for a moment.
    const OTHERS: usize = 32;
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised)
        .map_err(|error| format!("can't raise the limit of open files: {error}"))?;
    match limit.maximum {
        Some(maximum) if maximum < (connections + OTHERS) as u64 => Err(format!(
            "{connections} connections don't fit into the limit of {maximum} open files; see `ulimit -Hn`"
        )),
        _ => Ok(()),
    }
}

/// Opens a WebSocket.
pub(super) fn web_socket(address: SocketAddr, path: &str) -> Result<Open, String> {
    let mut socket = ask(address, path)?;
    let rest = read_accepted(&mut socket)?;
    Ok((socket, rest))
}

/// Opens the WebSockets of all subscribers, spread evenly over the channels.
pub(super) fn web_sockets(plan: &Plan) -> Result<Vec<Open>, String> {
    let count = plan.subscribers;
    let mut open = Vec::with_capacity(count);
    while open.len() < count {
        let batch = open.len()..count.min(open.len() + HANDSHAKES);
        for socket in handshakes(plan.address, batch.map(|index| plan.path(index))) {
            let number = open.len() + 1;
            open.push(socket.map_err(|error| format!("subscriber {number} of {count}: {error}"))?);
        }
    }
    Ok(open)
}

/// Opens WebSockets with all handshakes under way at once, at most [`HANDSHAKES`].
pub(super) fn handshakes(
    address: SocketAddr,
    paths: impl Iterator<Item = String>,
) -> Vec<Result<Open, String>> {
    let asked: Vec<_> = paths.map(|path| ask(address, &path)).collect();
    let accept = |socket: Result<TcpStream, String>| {
        let mut socket = socket?;
        let rest = read_accepted(&mut socket)?;
        Ok((socket, rest))
    };
    asked.into_iter().map(accept).collect()
}

/// Connects with [`PATIENCE`] as the bound of every later read and write.
pub(super) fn tcp(address: SocketAddr) -> Result<TcpStream, String> {
    let connect = || {
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    connect().map_err(|error: io::Error| format!("can't connect to {address}: {error}"))
}

fn ask(address: SocketAddr, path: &str) -> Result<TcpStream, String> {
    let mut socket = tcp(address)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    socket
        .write_all(request.as_bytes())
        .map_err(|error| format!("can't send a handshake: {error}"))?;
    Ok(socket)
}

/// Reads once. Whoever was stopped and goes on (^Z, `fg`) is interrupted: it reads again.
pub(super) fn read(socket: &mut TcpStream, chunk: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.read(chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

fn read_accepted(socket: &mut TcpStream) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(512);
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut headers);
        let parsed = head
            .parse(&bytes)
            .map_err(|error| format!("no HTTP answer to the handshake: {error}"))?;
        if let httparse::Status::Complete(length) = parsed {
            let accepted = head.headers.iter().any(|header| {
                header.name.eq_ignore_ascii_case("sec-websocket-accept")
                    && header.value == ACCEPT.as_bytes()
            });
            if head.code != Some(101) || !accepted {
                let answer = String::from_utf8_lossy(&bytes);
                return Err(format!(
                    "the server refused the WebSocket: {}",
                    answer.lines().next().unwrap_or_default()
                ));
            }
            return Ok(bytes.split_off(length));
        }
        let mut chunk = [0; 1024];
        match read(socket, &mut chunk) {
            Ok(0) => return Err("the server closed the connection during the handshake".to_owned()),
            Ok(read) => bytes.extend_from_slice(&chunk[..read]),
            Err(error) => return Err(format!("no answer to the handshake: {error}")),
        }
    }
}

/// Opcodes of the frames that the generator sends, final fragment.
pub(super) const TEXT: u8 = 0x81;
pub(super) const CLOSE: u8 = 0x88;
pub(super) const PONG: u8 = 0x8a;

/// Appends a client's frame. The mask need not be secret here: nothing between this program
/// and the server could be fooled.
pub(super) fn push_masked(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    const MASK: [u8; 4] = [0x3c, 0xa5, 0x5a, 0xc3];
    out.push(opcode);
    match payload.len() {
        length @ 0..126 => out.push(0x80 | length as u8),
        length @ 126..65_536 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    let start = out.len();
    out.extend_from_slice(payload);
    for (index, byte) in out[start..].iter_mut().enumerate() {
        *byte ^= MASK[index % 4];
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tungstenite::protocol::{Message, Role, WebSocket};

    use super::*;

    #[test]
    fn only_this_machine_is_loaded() {
        for url in [
            "http://127.0.0.1:8010",
            "http://127.0.0.1:8010/",
            "ws://127.0.0.1:8010",
            "127.0.0.1:8010",
        ] {
            assert_eq!(
                address(url),
                Ok(SocketAddr::from(([127, 0, 0, 1], 8010))),
                "{url}"
            );
        }
        assert!(address("[::1]:80").is_ok());
        for url in [
            "http://192.0.2.1:8010",
            "0.0.0.0:8010",
            "https://127.0.0.1:8010",
            "127.0.0.1",
            "http://127.0.0.1:1/x",
            "",
        ] {
            let error = address(url).expect_err(url);
            assert!(error.starts_with(&format!("--url {url}: ")), "{error}");
        }
    }

    #[test]
    fn a_server_decodes_masked_frames_of_every_header_length() {
        let texts = [0, 1, 125, 126, 65_535, 65_536]
            .map(|length| "é".repeat(length / 2) + &"x".repeat(length % 2));
        let mut bytes = Vec::new();
        texts
            .iter()
            .for_each(|text| push_masked(&mut bytes, TEXT, text.as_bytes()));
        let mut server = WebSocket::from_raw_socket(Cursor::new(bytes), Role::Server, None);
        for text in texts {
            assert_eq!(server.read().expect("a frame"), Message::text(text));
        }
    }
}
