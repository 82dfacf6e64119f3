//! Whether a request may become a WebSocket (RFC 6455, section 4.2).

use data_encoding::BASE64;
use tungstenite::handshake::derive_accept_key;

use crate::access::SUBPROTOCOL;
use crate::http::{Framing, Head, Problem};

/// Bytes of a key once its Base64 is undone.
const KEY_BYTES: usize = 16;

/// The answer that makes the connection a WebSocket.
///
/// tungstenite's own takes 1,500 bytes of stack for a request and an answer with maps of
/// headers, and leaves as many with the thread's allocator: for each client, as long as it stays.
///
/// # Errors
/// 400 or 426, with what was missing.
#[inline(never)]
pub(super) fn accept(head: &Head) -> Result<Vec<u8>, Problem> {
    if head.framing != Framing::None && head.framing != Framing::Length(0) {
        return Err(Problem::new(
            400,
            "a request to become a WebSocket has no body",
        ));
    }
    if head.is_1_0 {
        return Err(upgrade_required("is HTTP/1.0, not HTTP/1.1"));
    }
    if !head.lists("connection", "upgrade") {
        return Err(upgrade_required("has no `Connection: Upgrade`"));
    }
    if !head.is("upgrade", |value| value.eq_ignore_ascii_case("websocket")) {
        return Err(upgrade_required("has no `Upgrade: websocket`"));
    }
    if !head.is("sec-websocket-version", |value| value == "13") {
        return Err(upgrade_required("has no `Sec-WebSocket-Version: 13`"));
    }
    let key = head
        .joined("sec-websocket-key")
        .ok_or_else(|| Problem::new(400, "the header `Sec-WebSocket-Key` is missing"))?;
    let is_key = |bytes: Vec<u8>| bytes.len() == KEY_BYTES;
    if !BASE64.decode(key.as_bytes()).is_ok_and(is_key) {
        let detail = "the header `Sec-WebSocket-Key` must be 16 bytes in Base64";
        return Err(Problem::new(400, detail));
    }
    let mut answer = String::with_capacity(192);
    answer.push_str("HTTP/1.1 101 Switching Protocols\r\n");
    answer.push_str("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ");
    answer.push_str(&derive_accept_key(key.as_bytes()));
    // The only one that there is; whoever offers others alone gets none (RFC 6455, section 4.2.2).
    if head.lists("sec-websocket-protocol", SUBPROTOCOL) {
        answer.push_str("\r\nSec-WebSocket-Protocol: ");
        answer.push_str(SUBPROTOCOL);
    }
    answer.push_str("\r\n\r\n");
    Ok(answer.into_bytes())
}

/// 426, with what would be right (RFC 9110, section 15.5.22; RFC 6455, section 4.2.2).
fn upgrade_required(found: &str) -> Problem {
    Problem::new(
        426,
        format!("this is a WebSocket of version 13, and the request {found}"),
    )
    .with_header("Connection", "Upgrade")
    .with_header("Upgrade", "websocket")
    .with_header("Sec-WebSocket-Version", "13")
}
