//! Whether a request may become a WebSocket (RFC 6455, section 4.2).

use tungstenite::error::{Error, ProtocolError};
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::http::{HeaderName, HeaderValue, Method};

use crate::access::SUBPROTOCOL;
use crate::http::{Framing, Head, Problem};

/// Headers that decide about the upgrade.
const DECIDING: [&str; 4] = [
    "connection",
    "upgrade",
    "sec-websocket-version",
    "sec-websocket-key",
];

/// The answer that makes the connection a WebSocket.
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
    let mut request = Request::new(());
    *request.method_mut() = Method::GET;
    for name in DECIDING {
        if let Some(value) = head
            .joined(name)
            .and_then(|value| HeaderValue::from_str(&value).ok())
        {
            request
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
    }
    let mut response = create_response(&request).map_err(|error| refusal(&error))?;
    // The only one that there is; whoever offers others alone gets none (RFC 6455, section 4.2.2).
    if head.lists("sec-websocket-protocol", SUBPROTOCOL) {
        let chosen = HeaderValue::from_static(SUBPROTOCOL);
        response
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", chosen);
    }
    let mut bytes = Vec::new();
    write_response(&mut bytes, &response).map_err(|error| refusal(&error))?;
    Ok(bytes)
}

fn refusal(error: &Error) -> Problem {
    match error {
        Error::Protocol(ProtocolError::MissingConnectionUpgradeHeader) => {
            upgrade_required("has no `Connection: Upgrade`")
        }
        Error::Protocol(ProtocolError::MissingUpgradeWebSocketHeader) => {
            upgrade_required("has no `Upgrade: websocket`")
        }
        Error::Protocol(ProtocolError::MissingSecWebSocketVersionHeader) => {
            upgrade_required("has no `Sec-WebSocket-Version: 13`")
        }
        _ => Problem::new(400, error.to_string()),
    }
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
