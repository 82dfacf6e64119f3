//! `Idempotency-Key`: a request that is repeated under its key is done once
//! (draft-ietf-httpapi-idempotency-key-header, as Stripe does it).

use sha2::{Digest, Sha256};

use super::Call;
use crate::http::{Problem, Reply};
use crate::store::Claim;

const HEADER: &str = "Idempotency-Key";

/// Longest key, in characters, as with Stripe.
const MAX_CHARS: usize = 255;

/// The key of a request with this body, if it names one. A key is its token's; without tokens
/// it is the server's.
///
/// # Errors
/// 422 when it is no key.
pub(super) fn claim(call: &Call, body: &[u8]) -> Result<Option<Claim>, Problem> {
    let Some(key) = call.header(HEADER) else {
        return Ok(None);
    };
    let is_visible = key.bytes().all(|byte| byte.is_ascii_graphic());
    if key.is_empty() || key.len() > MAX_CHARS || !is_visible {
        let detail = format!("`{HEADER}` must be 1 to {MAX_CHARS} visible ASCII characters");
        return Err(Problem::field(HEADER, detail));
    }
    let key = match call.peer().token() {
        Some(token) => digest(&[b"token", token.as_bytes(), key.as_bytes()]),
        None => digest(&[b"server", key.as_bytes()]),
    };
    let media_type = call.header("Content-Type").unwrap_or_default();
    let fingerprint = digest(&[
        call.method().as_bytes(),
        call.target().as_bytes(),
        media_type.as_bytes(),
        body,
    ]);
    Ok(Some(Claim { key, fingerprint }))
}

/// Says of an answer that it was given before.
pub(super) fn mark(reply: Reply, replayed: bool) -> Reply {
    if replayed {
        reply.with_header("Idempotency-Replayed", "true")
    } else {
        reply
    }
}

/// Each part with its length, so that no two lists have the same bytes.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
