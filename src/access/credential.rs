//! Where a request's token is.

use data_encoding::{BASE64, BASE64URL_NOPAD};

use super::SUBPROTOCOL;
use super::token::unauthorized;
use crate::http::{Head, Problem};

/// The query parameter that may carry a token.
const PARAMETER: &str = "token";

/// What a subprotocol with a token begins with.
const BEARER: &str = "bearer.";

/// Takes the secret out of a request: from `Authorization`, else from the subprotocols, else from
/// the query, which is without it from then on.
///
/// # Errors
/// 401 when what is there cannot be one, 400 when a subprotocol stands alone. What is wrong is
/// told without quoting it.
pub(super) fn take(head: &mut Head) -> Result<Option<String>, Problem> {
    let in_query = head.take_from_query(PARAMETER);
    if let Some(header) = head.joined("authorization") {
        return of_header(&header).map(Some);
    }
    if let Some(protocols) = head.joined("sec-websocket-protocol")
        && let Some(secret) = of_subprotocols(&protocols)?
    {
        return Ok(Some(secret));
    }
    match in_query {
        Some(Ok(secret)) => Ok(Some(secret)),
        Some(Err(_)) => Err(unauthorized(
            "`token` in the query is not percent-encoded text",
        )),
        None => Ok(None),
    }
}

fn of_header(header: &str) -> Result<String, Problem> {
    let (scheme, value) = header.split_once(' ').unwrap_or((header, ""));
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !value.is_empty() {
        return Ok(value.to_owned());
    }
    let password = || {
        let bytes = BASE64.decode(value.as_bytes()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        text.split_once(':')
            .map(|(_, password)| password.to_owned())
    };
    scheme
        .eq_ignore_ascii_case("basic")
        .then(password)
        .flatten()
        .ok_or_else(|| {
            unauthorized(
                "`Authorization` must be `Bearer` and a token, or `Basic` with the token as the password",
            )
        })
}

/// Browsers can give a WebSocket no header but this one.
fn of_subprotocols(protocols: &str) -> Result<Option<String>, Problem> {
    let mut offered = protocols.split(',').map(str::trim);
    let Some(encoded) = offered.find_map(|one| one.strip_prefix(BEARER)) else {
        return Ok(None);
    };
    if !protocols.split(',').any(|one| one.trim() == SUBPROTOCOL) {
        return Err(Problem::new(
            400,
            format!(
                "a token as subprotocol needs the subprotocol `{SUBPROTOCOL}` beside it, which is the one that is chosen"
            ),
        ));
    }
    let encoded = encoded.trim_end_matches('=');
    BASE64URL_NOPAD
        .decode(encoded.as_bytes())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .map(Some)
        .ok_or_else(|| unauthorized("the subprotocol `bearer.…` is not base64url"))
}
