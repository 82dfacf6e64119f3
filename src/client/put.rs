//! `PUT`: one request, one answer, one connection.

use std::time::Instant;

use super::answer::{self, Answer};
use super::connection::Connection;
use super::{Failure, PATIENCE, Remote};

/// Puts JSON at a path and returns the body of a 2xx answer.
///
/// Blocks up to 10 s for the connection, the request and the answer each.
///
/// # Errors
/// Any other answer, with what it says, and no answer.
pub(crate) fn put(remote: &Remote, path: &str, body: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut connection = Connection::open(remote)?;
    let mut request = remote.request("PUT", path);
    request.push_str(&format!(
        "Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    ));
    let request = [request.as_bytes(), body].concat();
    // A server that refuses early closes before it has read all: its answer says why.
    let sent = connection.send(&request, Instant::now() + PATIENCE);
    let answer: Result<Answer, Failure> = answer::read(
        &mut connection,
        &mut Vec::new(),
        Instant::now() + PATIENCE,
        answer::answer,
    );
    match (answer, sent) {
        (Ok(answer), _) if (200..300).contains(&answer.status) => Ok(answer.body),
        (Ok(answer), _) => Err(answer.refusal()),
        (Err(_), Err(error)) => Err(Failure::passing(format!("cannot send: {error}"))),
        (Err(failure), Ok(())) => Err(failure),
    }
}
